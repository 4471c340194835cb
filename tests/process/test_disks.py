"""Shared disks: read-only ones, full ones, ones without locks, and several processes that make the same at once."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import evaluate
import train
from nanocaption.base import cli
from nanocaption.commands import export
from nanocaption.prepare.make import prepare
from nanocaption.runs.folder import LAST
from tests import disks
from tests.conftest import tiny_flags
from tests.processes import end, fork, losses, start
from tests.raw_sets import write_csv


@pytest.fixture(scope="session")
def own_disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not disks.allowed(tmp_path_factory.mktemp("allowed")):
        pytest.skip("a process may not mount anything here")


def said_by(tmp_path: Path, body: Callable[[], object]) -> str:
    """What body() printed in a process of its own, which must not fail."""
    printed = tmp_path / "printed"
    printed.unlink(missing_ok=True)
    code = end(fork(body, printed, printed))
    assert code == 0, printed.read_text()
    return printed.read_text()


def tried(main: Callable[[list[str]], object], argv: list[str]) -> None:
    """main(argv), whose end by a mistake is printed as its command would."""
    try:
        main(argv)
    except (SystemExit, OSError, ValueError) as error:
        print("ENDED:", cli.told(error))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_set_on_a_read_only_disk_trains_and_what_is_not_kept_is_told(own_disks, demo_data, tmp_path, tiny_run_made):
    data = tmp_path / "data"
    shutil.copytree(demo_data / "demo", data / "demo", ignore=shutil.ignore_patterns("cache", "tokenizer"))
    argv = [*tiny_flags(data, tmp_path / "runs"), "--num-epochs", "2", "--decoder-dropout", "0.2", "--run-name"]
    before = listing(data)

    def body() -> None:
        disks.own_mounts()
        disks.read_only(data)
        with pytest.raises(OSError):  # the control
            (data / "demo" / "x").touch()
        train.main([*argv, "plain"])
        print("AND NOW WITH CACHE_DIR")
        train.main([*argv, "kept", "--cache-dir", str(tmp_path / "caches")])

    plain, kept = said_by(tmp_path, body).split("AND NOW WITH CACHE_DIR")
    assert plain.count("Not kept: ") == 3 and "Not kept" not in kept  # the tokenizer, pictures of train and of val
    assert "tokenizer: 320 tokens, trained on" in plain
    assert losses(tmp_path / "runs" / "plain") == losses(tmp_path / "runs" / "kept") == losses(tiny_run_made)
    assert listing(data) == before
    found = {path.name.partition("_")[0] for path in (tmp_path / "caches" / "demo" / "cache").iterdir()}
    assert found == {"pictures"} and (tmp_path / "caches" / "demo" / "tokenizer" / "digest.json").is_file()


@pytest.mark.parametrize(("room", "what"), [(20_000, "tokenizer"), (110_000, "pictures")])
def test_a_disk_that_fills_with_a_tokenizer_or_a_cache_is_one_line_and_a_rerun_goes_on(
    own_disks, demo_data, tmp_path, tiny_run_made, room, what
):
    small = tmp_path / "small"
    argv = [*tiny_flags(demo_data, tmp_path / "runs"), "--cache-dir", str(small), "--num-epochs", "2",
            "--decoder-dropout", "0.2", "--run-name", "run", "--resume-checkpoint-path", "last"]  # fmt: skip

    def body() -> None:
        disks.own_mounts()
        disks.small(small, room)
        tried(train.main, argv)
        print("AND NOW WITH ROOM")
        disks.grow(small, 2**25)
        train.main(argv)

    full, then = said_by(tmp_path, body).split("AND NOW WITH ROOM")
    if what == "tokenizer":
        assert "ENDED: " in full and "No space left on device" in full.rpartition("ENDED: ")[2]
        assert len(full.rpartition("ENDED: ")[2].strip().splitlines()) == 1
    else:
        assert "Not kept: " in full and "free at" in full  # no cache, and the run goes on without
    assert losses(tmp_path / "runs" / "run") == losses(tiny_run_made), then


def test_a_disk_that_fills_with_results_or_an_export_is_one_line_and_a_rerun_goes_on(
    own_disks, demo_data, tmp_path, tiny_run
):
    small, flags = tmp_path / "small", tiny_flags(demo_data, tmp_path / "runs")
    scored = [*flags, "--checkpoint", str(tiny_run / LAST), "--split", "val", "--output"]
    exported = [str(tiny_run / LAST), "--data-dir", str(demo_data)]

    def body() -> None:
        disks.own_mounts()
        evaluate.main([*scored, str(tmp_path / "elsewhere")])
        disks.small(small, 3 * 4096)
        tried(evaluate.main, [*scored, str(small / "results")])
        tried(export.main, [exported[0], str(small / "export"), *exported[1:]])
        left = sorted(str(path.relative_to(small)) for path in small.rglob("*"))
        print("LEFT:", json.dumps(left))
        disks.grow(small, 2**25)
        evaluate.main([*scored, str(small / "results")])
        export.main([exported[0], str(small / "export"), *exported[1:]])
        shutil.copytree(small, tmp_path / "copy")

    said = said_by(tmp_path, body)
    ended = [line for line in said.splitlines() if line.startswith("ENDED: ")]
    assert len(ended) == 2 and all("No space left on device" in line for line in ended), said
    assert not [name for name in json.loads(said.partition("LEFT: ")[2].splitlines()[0]) if ".tmp" in name]
    for name in ("predictions.json", "references.json"):
        assert (tmp_path / "copy" / "results" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
    assert (tmp_path / "copy" / "export" / "model.safetensors").stat().st_size > 10_000


def raw_folder(folder: Path, number: int = 40) -> Path:
    folder.mkdir()
    for place in range(number):
        Image.effect_noise((90, 90), place + 1).save(folder / f"{place}.png")
    write_csv(folder / "captions.csv", ["image", "caption"], [[f"{n}.png", f"a noise of number {n}"]
                                                              for n in range(number)])  # fmt: skip
    return folder


def test_space_for_copies_is_looked_at_before_the_first_picture_is_decoded(own_disks, tmp_path, monkeypatch):
    raw, small = raw_folder(tmp_path / "raw"), tmp_path / "small"

    def body() -> None:
        disks.own_mounts()
        disks.small(small, 150_000)
        tried(lambda _: prepare("mine", small, raw_dir=raw), [])
        print("LEFT:", sorted(path.name for path in small.rglob("*")))
        disks.grow(small, 2**25)
        prepare("mine", small, raw_dir=raw)
        shutil.copytree(small / "mine", tmp_path / "copied")

    said = said_by(tmp_path, body)
    refused, then = said.split("LEFT:")
    assert f"{small / 'mine'} has" in refused and "are needed" in refused and "checking pictures" not in refused
    assert then.startswith(" []\n") and "is ready" in then
    prepare("mine", tmp_path / "linked", raw_dir=raw)  # by hard links
    assert listing(tmp_path / "copied" / "images") == listing(tmp_path / "linked" / "mine" / "images")


def killed_at_random(make: Callable[[], object], tmp_path: Path, number: int, longest: float, seed: int) -> None:
    """Three processes that do the same at once, each killed at a random moment, `number` times."""
    draw = random.Random(seed)
    for _ in range(number):
        running = [fork(make, tmp_path / "printed", tmp_path / "printed") for _ in range(3)]
        for process in running:
            time.sleep(draw.uniform(0, longest / 3))
            if process.is_alive():
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has made no group of its own yet
                    process.kill()
        for process in running:
            end(process)


def test_three_processes_that_prepare_the_same_set_killed_at_random_make_what_one_makes(tmp_path):
    raw = raw_folder(tmp_path / "raw", 60)
    prepare("mine", tmp_path / "alone", raw_dir=raw)
    took = time.monotonic()
    prepare("mine", tmp_path / "timed", raw_dir=raw)
    took = time.monotonic() - took
    make = lambda: prepare("mine", tmp_path / "data", raw_dir=raw)  # noqa: E731
    killed_at_random(make, tmp_path, 4, took, seed=3)
    running = [fork(make, tmp_path / "printed", tmp_path / "printed") for _ in range(3)]
    assert [end(process) for process in running] == [0, 0, 0], (tmp_path / "printed").read_text()
    for name in ("captions.json", "manifest.json"):
        assert (tmp_path / "data" / "mine" / name).read_bytes() == (tmp_path / "alone" / "mine" / name).read_bytes()
    assert listing(tmp_path / "data" / "mine" / "images") == listing(tmp_path / "alone" / "mine" / "images")
    assert (tmp_path / "printed").read_text().count("is ready") >= 1
    assert "waiting for it" in (tmp_path / "printed").read_text()  # the control: they met


def test_trainings_and_evaluations_of_the_same_at_once_end_as_one_alone(demo_data, tmp_path, tiny_run, tiny_run_made):
    data = tmp_path / "data"
    shutil.copytree(demo_data / "demo", data / "demo", ignore=shutil.ignore_patterns("cache", "tokenizer"))
    flags = tiny_flags(data, tmp_path / "runs")
    argv = [*flags, "--num-epochs", "2", "--decoder-dropout", "0.2", "--run-name"]
    killed = [start([*argv, f"killed{number}"], tmp_path / "printed") for number in range(2)]
    time.sleep(0.5)
    for process in killed:
        os.killpg(process.pid, signal.SIGKILL)
        end(process)
    running = [start([*argv, f"run{number}"], tmp_path / "printed") for number in range(2)]
    assert [end(process) for process in running] == [0, 0], (tmp_path / "printed").read_text()
    for number in range(2):
        assert losses(tmp_path / "runs" / f"run{number}") == losses(tiny_run_made)

    score = [*flags, "--checkpoint", str(tiny_run / LAST), "--split", "val", "--eval-batch-size", "2", "--output"]
    evaluate.main([*score, str(tmp_path / "alone")])
    together = lambda: evaluate.main([*score, str(tmp_path / "together")])  # noqa: E731
    killed_at_random(together, tmp_path, 2, 1.5, seed=1)
    running = [fork(together, tmp_path / "printed", tmp_path / "printed") for _ in range(2)]
    assert [end(process) for process in running] == [0, 0], (tmp_path / "printed").read_text()
    for name in ("predictions.json", "references.json"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not list((tmp_path / "together").glob("captions-*"))
