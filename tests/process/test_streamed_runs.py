"""Streamed runs: killed and resumed, on several processes, equal to the run on the unpacked set; shards on a server."""

import contextlib
import json
import os
import random
import signal
from pathlib import Path

import pytest

import evaluate
import train
from nanocaption.base import retry
from nanocaption.data import remote, shards, stream
from nanocaption.data.prepared import load_records, verify
from nanocaption.data.shard_index import Index, paths_of
from nanocaption.data.shards import read_bytes
from nanocaption.prepare.check import Rules
from nanocaption.prepare.make import prepare
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST
from tests.conftest import TINY_MODEL
from tests.hub_files import Fault, Hub, serve, turn_to
from tests.process.test_resume import fingerprint
from tests.processes import end, losses, rows, start, start_ranks, steps_done, wait_for
from tests.shard_sets import WRITERS, jpeg, samples, write_tars

long = pytest.mark.long
# Everything that draws at random; five steps an epoch.
HARD = """
    --decoder-dropout 0.2 --num-workers 1 --random-crop-area 0.5 --random-flip --checkpoint-every-steps 2
    --validation-score-images 2 --learning-rate 1e-2 --max-seq-len 16 --run-name run --resume-checkpoint-path last
    """
NUMBER, STEPS = 50, 10


def many_windows() -> None:
    """Windows of some ten pictures and blocks of three, so that the small set is read as a large one is."""
    shards.BLOCK_BYTES, stream.WINDOW_BYTES = 4_000, 12_000


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A DATA_DIR with a set as tars and as parquet, both streamed, and its raw shards."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_BYTES", 4_000)
        for kind, writer in WRITERS.items():
            raw = writer(folder / f"raw_{kind}", samples(NUMBER), 25)
            prepare(kind, folder, raw_dir=raw, stream=str(raw), rules=Rules(workers=1))
    return folder


def arguments(data: Path, output: Path, kind: str, *more: str) -> list[str]:
    places = ["--data-dir", str(data), "--output-dir", str(output), "--dataset", kind, "--stream",
              "--raw-data-dir", f"{data}/raw_{kind}/{{00000..00001}}.{kind}"]  # fmt: skip
    return [*places, *TINY_MODEL.split(), *HARD.split(), "--num-epochs", "2", *more]


def run_of(argv: list[str], output: Path, kills: list[int] = (), prelude=many_windows) -> Path:
    """The folder of a run that was killed once its log showed each of these steps, and then finished."""
    output.mkdir(exist_ok=True)
    run = output / "run"
    for target in kills:
        process = start(argv, output / "printed", prelude)
        wait_for(lambda target=target: steps_done(run) >= target, process)
        with contextlib.suppress(ProcessLookupError):  # one that has ended already
            os.kill(process.pid, signal.SIGKILL)
        assert end(process) in (-signal.SIGKILL, 0), (output / "printed").read_text()
    assert end(start(argv, output / "printed", prelude)) == 0, (output / "printed").read_text()
    return run


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> dict[str, Path]:
    """An uninterrupted run on each kind of shards, to be read only."""
    output = tmp_path_factory.mktemp("whole")
    return {kind: run_of(arguments(data, output / kind, kind), output / kind) for kind in WRITERS}


@pytest.mark.parametrize("kind", WRITERS)
def test_killed_at_a_random_step_equals_uninterrupted(data, tmp_path, whole, kind):
    step = random.randrange(1, STEPS - 1)
    print(f"killed at step {step}")
    run = run_of(arguments(data, tmp_path, kind), tmp_path, [step])
    assert steps_done(run) == STEPS and fingerprint(run) == fingerprint(whole[kind])
    assert len(rows(run, "resume")) + len(rows(run, "start")) > 1, "it was killed indeed"


def test_the_control_another_order_is_another_run(data, tmp_path, whole):
    def other_windows() -> None:
        many_windows()
        stream.WINDOW_BYTES = 24_000

    run = run_of(arguments(data, tmp_path, "tar"), tmp_path, prelude=other_windows)
    assert fingerprint(run) != fingerprint(whole["tar"])


@long
@pytest.mark.parametrize("kind", WRITERS)
def test_killed_at_ten_random_steps_equals_uninterrupted(data, tmp_path, whole, kind):
    steps = sorted(random.choices(range(1, STEPS), k=10))
    print(f"killed at {steps}")
    assert fingerprint(run_of(arguments(data, tmp_path, kind), tmp_path, steps)) == fingerprint(whole[kind])


def test_any_number_of_workers_is_the_same_run(data, tmp_path, whole):
    run = run_of(arguments(data, tmp_path, "tar", "--num-workers", "0"), tmp_path)
    assert fingerprint(run) == fingerprint(whole["tar"])


@pytest.mark.parametrize("kind", ["tar", pytest.param("parquet", marks=long)])
def test_a_streamed_run_is_the_run_on_the_unpacked_set(data, tmp_path, capsys, kind):
    """Of one window the order is the same, and so are the losses and the captions, to the bit."""
    prepare("unpacked", data, raw_dir=data / "raw_tar")
    plain = ["--data-dir", str(data), *TINY_MODEL.split(), *HARD.split(), "--num-epochs", "2"]
    expected = None
    for name in ("unpacked", kind):
        train.main([*plain, "--output-dir", str(tmp_path / name), "--dataset", name])
        places = ["--data-dir", str(data), "--output-dir", str(tmp_path / name)]
        evaluate.main([*places, "--dataset", name, "--split", "val"])
        results = next((tmp_path / name / "run").glob("eval_*"))
        scores = json.loads((results / "scores.json").read_text())["corpus"]
        found = [losses(tmp_path / name / "run"), scores, (results / "predictions.json").read_text()]
        expected = expected or found
        assert found == expected and len(found[0]) == STEPS + 2
        assert "data:image/jpeg" in (results / "report.html").read_text()
    assert capsys.readouterr().out.count("streamed: each picture is read from its shard") == 1


def test_two_processes_share_the_pairs_and_resume_exactly(data, tmp_path):
    argv = arguments(data, tmp_path / "whole", "tar", "--num-workers", "0", "--batch-size", "10")
    seen = tmp_path / "seen"

    def noted() -> None:
        many_windows()
        real = stream.StreamedDataset.__getitem__

        def get(self, group):
            with seen.open("a") as file:
                file.write("".join(f"{self.epoch} {group[0]} {caption}\n" for caption in group[1]))
            return real(self, group)

        stream.StreamedDataset.__getitem__ = get

    (tmp_path / "whole").mkdir()
    statuses = [end(process) for process in start_ranks(argv, tmp_path / "whole" / "printed", 2, noted)]
    assert statuses == [0, 0], (tmp_path / "whole" / "printed").read_text()
    records = load_records(data / "tar", "train")
    pairs = [f"{epoch} {image} {caption}" for epoch in range(2) for image, record in enumerate(records)
             for caption in range(len(record["captions"]))]  # fmt: skip
    assert sorted(seen.read_text().split("\n")[:-1]) == sorted(pairs)

    argv = arguments(data, tmp_path / "parts", "tar", "--num-workers", "0", "--batch-size", "10")
    (tmp_path / "parts").mkdir()
    processes = start_ranks(argv, tmp_path / "parts" / "printed", 2, many_windows)
    wait_for(lambda: steps_done(tmp_path / "parts" / "run") >= 5, processes[0])
    os.kill(processes[1].pid, signal.SIGKILL)
    assert 0 not in {end(process) for process in processes}
    statuses = [end(process) for process in start_ranks(argv, tmp_path / "parts" / "printed", 2, many_windows)]
    assert statuses == [0, 0], (tmp_path / "parts" / "printed").read_text()
    assert fingerprint(tmp_path / "parts" / "run") == fingerprint(tmp_path / "whole" / "run")


def test_the_same_pictures_in_other_shards_are_another_order_and_no_resume(tmp_path):
    """Moved shards are the same; packed anew their blocks are others, though captions.json stays as it is."""
    raw = write_tars(tmp_path / "raw", samples(20), 10)
    places = ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "runs"), "--dataset", "set"]
    argv = [*places, *TINY_MODEL.split(), "--run-name", "run", "--resume-checkpoint-path", "last"]
    prepare("set", tmp_path, raw_dir=raw, stream=str(raw), rules=Rules(workers=1))
    train.main([*argv, "--num-epochs", "1"])
    moved = raw.rename(tmp_path / "moved")
    prepare("set", tmp_path, raw_dir=moved, stream=str(moved), rules=Rules(workers=1), remake=True)
    train.main([*argv, "--num-epochs", "2"])
    other = write_tars(tmp_path / "other", samples(20), 4)
    digest = verify(tmp_path / "set")["captions_sha256"]
    prepare("set", tmp_path, raw_dir=other, stream=str(other), rules=Rules(workers=1), remake=True)
    assert verify(tmp_path / "set")["captions_sha256"] == digest
    with pytest.raises(SystemExit, match="do not lie as they did for this run"):
        train.main([*argv, "--num-epochs", "3"])


def test_shards_that_came_since_touch_no_run(tmp_path):
    """Of train and of val: the run goes on with its own pictures, as it would have on the old shards."""
    argv = [*TINY_MODEL.split(), "--run-name", "run", "--resume-checkpoint-path", "last"]
    for name, number in (("old", 20), ("new", 30)):
        raw = write_tars(tmp_path / f"raw_{name}", samples(20), 10)
        place = tmp_path / name
        where = ["--data-dir", str(place), "--output-dir", str(place / "runs"), "--dataset", "set", *argv]
        prepare("set", place, raw_dir=raw, stream=str(raw), rules=Rules(workers=1))
        train.main([*where, "--num-epochs", "2", "--lr-schedule", "constant", "--early-stopping-patience", "0"])
        if number > 20:
            write_tars(raw, samples(number), 10)
            prepare("set", place, raw_dir=raw, stream=str(raw), rules=Rules(workers=1), remake=True)
            assert sum(n["images"] for n in verify(place / "set")["counts"].values()) == number
        train.main([*where, "--num-epochs", "3", "--lr-schedule", "constant"])
    assert fingerprint(tmp_path / "old" / "runs" / "run") == fingerprint(tmp_path / "new" / "runs" / "run")


def test_a_picture_that_breaks_while_training_stops_the_run_which_goes_on_once_it_is_mended(tmp_path, data):
    raw = write_tars(tmp_path / "raw_tar", samples(NUMBER), 25)
    argv = arguments(tmp_path, tmp_path, "tar", "--num-workers", "0")
    prepare("tar", tmp_path, raw_dir=raw, stream=f"{raw}/{{00000..00001}}.tar", rules=Rules(workers=1))
    path = Index(tmp_path / "tar").picture(30)
    shard, about = Path(path.shard), os.stat(path.shard)
    right = shard.read_bytes()

    def write(data: bytes) -> None:
        with shard.open("r+b") as file:
            file.write(data)
        os.utime(shard, ns=(about.st_atime_ns, about.st_mtime_ns))

    write(right[: path.start + 50] + b"\0" * 20 + right[path.start + 70 :])
    process = start(argv, tmp_path / "printed")
    assert end(process) == 1
    printed = (tmp_path / "printed").read_text()
    assert f"{path.file_name} in {path.shard} cannot be read: its shard has changed" in printed
    assert checkpoint.load(tmp_path / "run" / LAST)["step"] < STEPS // 2, "each picture comes in the first epoch"
    write(right)
    run_of(argv, tmp_path, prelude=None)
    assert steps_done(tmp_path / "run") == STEPS


# --- shards on a server ---


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A plain server of files, whose `files`, `faults`, `keeper_etag` and `log` tests change and read."""
    monkeypatch.setattr(retry, "WAITS", (0.01, 0.01, 0.01))
    hub = Hub("owner/set", {})
    for kind, writer in WRITERS.items():
        for path in sorted(writer(tmp_path / kind, samples(30), 8).iterdir()):
            hub.files[path.name] = path.read_bytes()
    with serve(hub):
        turn_to(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


def address(server: Hub, kind: str) -> str:
    return f"{server.keeper_url}/kept/{{00000..00003}}.{kind}"


def remote_set(tmp_path: Path, where: str, name: str = "far") -> Path:
    return prepare(name, tmp_path, raw_dir=Path("far"), stream=where, rules=Rules(workers=1))


@pytest.mark.parametrize("kind", WRITERS)
def test_shards_on_a_server_are_those_on_the_disk(server, tmp_path, kind):
    far = remote_set(tmp_path, address(server, kind))
    near = prepare("near", tmp_path, raw_dir=tmp_path / kind, stream=str(tmp_path / kind), rules=Rules(workers=1))
    assert (far / "captions.json").read_bytes() == (near / "captions.json").read_bytes()
    assert (far / "stream" / "index.npy").read_bytes() == (near / "stream" / "index.npy").read_bytes()
    server.log.clear()
    shards._row_groups.cache_clear()
    index = Index(far)
    assert [read_bytes(index.picture(place)) for place in range(30)] == [jpeg(place) for place in range(30)]
    asked = server.downloads()
    assert asked and all(request.status == 206 and request.token is None for request in asked)
    if kind == "tar":
        assert [request.range for request in asked] == [
            f"bytes={index.picture(n).start}-{index.picture(n).start + index.picture(n).length - 1}" for n in range(30)]
    kept = [path for path in far.rglob("*") if path.is_file()]
    assert not any(jpeg(3) in path.read_bytes() for path in kept), "no picture is kept"


def test_a_data_set_on_the_hub_is_read_under_its_commit(server, tmp_path):
    far = remote_set(tmp_path, "hf://datasets/owner/set/*.tar")
    assert [shard["path"] for shard in shards.read_shards(far)] == [
        f"hf://datasets/owner/set@{server.commit}/0000{number}.tar" for number in range(4)]  # fmt: skip
    assert read_bytes(Index(far).picture(7)) == jpeg(7)
    assert {request.token for request in server.downloads()} == {None}, "the token stays with the Hub"
    assert any(request.token for request in server.log)


def test_a_connection_that_breaks_is_tried_again(server, tmp_path, capsys):
    far = remote_set(tmp_path, address(server, "tar"))
    server.faults += [Fault(cut=100), Fault(status=503), Fault(cut=0)]
    assert read_bytes(Index(far).picture(3)) == jpeg(3)
    assert capsys.readouterr().out.count("next try in") == 3
    server.faults += [Fault(cut=100)] * 4
    with pytest.raises(ValueError, match="00000.tar could not be read .*The same command goes on"):
        read_bytes(Index(far).picture(3))
    server.faults.clear()
    server.faults += [Fault(cut=500), Fault(status=500)]
    again = remote_set(tmp_path, address(server, "tar"), "again")
    assert (again / "captions.json").read_bytes() == (far / "captions.json").read_bytes()


def test_what_a_server_does_not_have_or_cannot_do_is_told(server, tmp_path):
    with pytest.raises(ValueError, match="00004.tar: the server has no such file"):
        remote_set(tmp_path, f"{server.keeper_url}/kept/{{00003..00004}}.tar")
    server.faults += [Fault(lines_up=False)]
    with pytest.raises(ValueError, match="ignores Range.*download the shards"):
        remote_set(tmp_path, address(server, "tar"))
    far = remote_set(tmp_path, address(server, "tar"))
    server.faults += [Fault(lines_up=False)]
    with pytest.raises(remote.ShardError, match="ignores Range"):
        read_bytes(Index(far).picture(3))


def test_a_shard_that_changed_on_its_server_is_told(server, tmp_path):
    far = remote_set(tmp_path, address(server, "tar"))
    picture = Index(far).picture(3)
    prepare("far", tmp_path)
    old = server.files["00000.tar"]
    server.keeper_etag = '"kept-2"'
    with pytest.raises(ValueError, match="4 shards .*changed since"):
        prepare("far", tmp_path)
    server.files["00000.tar"] = old[: picture.start] + b"\0" * picture.length + old[picture.start + picture.length :]
    with pytest.raises(remote.ShardError, match="its shard has changed"):
        read_bytes(picture)
    server.files["00000.tar"] = old[: picture.start + 5]
    with pytest.raises(remote.ShardError, match="the shard has changed"):
        read_bytes(picture)
    server.keeper_etag, server.files["00000.tar"] = '"kept-1"', old
    assert prepare("far", tmp_path) == far, "the control: as it was it serves"


def test_a_network_that_fails_counts_no_picture_as_bad(server, tmp_path, monkeypatch):
    real = remote.read
    monkeypatch.setattr(remote, "read", lambda a, start, length: real(a, start, length) if length > 4000 else fail())

    def fail():
        raise remote.ShardError("the network is gone")

    with pytest.raises(ValueError, match="the network is gone"):
        remote_set(tmp_path, address(server, "tar"))
    assert not (tmp_path / "far" / "manifest.json").exists()
    monkeypatch.setattr(remote, "read", real)
    assert len(load_records(remote_set(tmp_path, address(server, "tar")), ("train", "val", "test"))) == 30


def test_a_run_on_shards_from_a_server_is_the_run_on_the_disk(server, tmp_path):
    prepare("near", tmp_path, raw_dir=tmp_path / "tar", stream=str(tmp_path / "tar"), rules=Rules(workers=1))
    remote_set(tmp_path, address(server, "tar"))
    found = []
    for name in ("near", "far"):
        train.main(["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / name), "--dataset", name,
                    *TINY_MODEL.split(), "--num-epochs", "1", "--run-name", "run"])  # fmt: skip
        found.append(losses(tmp_path / name / "run"))
    assert found[0] == found[1] and len(found[0]) > 3


def test_paths_of_a_set_that_is_not_streamed_are_files(demo_data):
    records = load_records(demo_data / "demo", "val")
    assert paths_of(demo_data / "demo" / "images", records)[0].is_file()
