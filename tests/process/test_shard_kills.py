"""`nanocaption caption --shards` killed and started again, and shared by processes: the same files to the byte."""

import os
import random
import signal
from pathlib import Path

import pytest

from nanocaption.commands import caption
from nanocaption.use import shards
from tests import processes, shard_sets

SHARDS, EACH, BATCH = 3, 8, 4


@pytest.fixture(scope="module")
def argv(demo_data, tiny_run_made, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    pictures = sorted((demo_data / "demo" / "images").iterdir())[: SHARDS * EACH]
    shard_sets.write_tars(folder, [shard_sets.Sample(path.stem, path.read_bytes(), None) for path in pictures], EACH)
    checkpoint = str(tiny_run_made / "last.safetensors")
    return ["--shards", str(folder), "--checkpoint", checkpoint, "--eval-batch-size", str(BATCH), "--num-workers", "2"]


@pytest.fixture(scope="module")
def undisturbed(argv, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    assert caption.main([*argv, "--output", str(output)]) == 0
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(argv: list[str], output: Path, printed: Path, kill_at: int | None = None):
    """The command in a process of its own, which is killed when it asks for captions of its `kill_at`-th batch."""
    asked, real = 0, shards.caption_images

    def caption_images(*args, **how):
        nonlocal asked
        asked += 1
        if asked == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **how)

    def prelude() -> None:
        shards.caption_images = caption_images

    return processes.start([*argv, "--output", str(output)], printed, prelude, main=caption.main)


def test_killed_within_a_shard_and_started_again(argv, undisturbed, tmp_path):
    output = tmp_path / "out"
    assert processes.end(start(argv, output, tmp_path / "printed", kill_at=4)) == -signal.SIGKILL
    assert sorted(contents(output)) == [".00001.parquet.0.tmp", "00000.parquet"]  # the second was within
    first = (output / "00000.parquet").stat().st_mtime_ns
    assert processes.end(start(argv, output, tmp_path / "printed")) == 0
    assert contents(output) == undisturbed
    assert first == (output / "00000.parquet").stat().st_mtime_ns  # it was not done again
    assert "1 shard done before: 8 pictures" in (tmp_path / "printed").read_text()
    (output / "00000.parquet").unlink()  # the control: without its file it is
    assert processes.end(start(argv, output, tmp_path / "printed")) == 0
    assert contents(output) == undisturbed and first < (output / "00000.parquet").stat().st_mtime_ns


@pytest.mark.long
def test_killed_ten_times_in_a_row(argv, undisturbed, tmp_path):
    rng, output, killed = random.Random(0), tmp_path / "out", 0
    while processes.end(start(argv, output, tmp_path / "printed", kill_at=rng.randint(1, 3) if killed < 10 else None)):
        killed += 1
    assert contents(output) == undisturbed and killed >= 3


def test_processes_share_the_shards(argv, undisturbed, tmp_path):
    output, printed = tmp_path / "out", tmp_path / "printed"
    ranks = processes.start_ranks([*argv, "--output", str(output)], printed, 2, main=caption.main)
    assert [processes.end(rank) for rank in ranks] == [0, 0]
    assert contents(output) == undisturbed
    told = printed.read_text()
    assert "process 1 of 2: 2 shards captioned, 16 pictures" in told
    assert "process 2 of 2: 1 shard captioned, 8 pictures" in told


def test_the_same_command_twice_at_once_does_no_harm(argv, undisturbed, tmp_path):
    both = [start(argv, tmp_path / "out", tmp_path / "printed") for _ in range(2)]
    assert {processes.end(one) for one in both} <= {0, 1}  # 1: it left a shard to the other
    assert contents(tmp_path / "out") == undisturbed
