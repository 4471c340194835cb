"""The copies of log.jsonl: W&B's own files and TensorBoard's, read back; a W&B that does not answer."""

import functools
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import train
from nanocaption.runs import checkpoint, tracking
from tests.conftest import TINY_RUN
from tests.processes import end, losses, rows, start

WANDB_OFFLINE = {"WANDB_MODE": "offline"}
WANDB_DEAD = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}


@pytest.fixture
def run_training(monkeypatch, capfd):
    """A training in this process, under a W&B of its own; what it printed."""
    monkeypatch.setenv("WANDB_CONSOLE", "off")  # pytest has its own hands on the output

    def run(argv: list[str], environment: dict[str, str]) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        try:
            train.main(argv)
        finally:
            if "--log-wandb" in argv:
                sys.modules["wandb"].teardown()  # as the end of a process; the next start reads the environment anew
        return capfd.readouterr().out

    return run


def copied(log: list[dict]) -> list[dict[str, float]]:
    """What a copy must hold of the rows of a log."""
    found = []
    for row in log:
        if row["type"] in ("train", "val"):
            numbers = {f"{row['type']}/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
            found.append({"global_step": row["step"], **numbers})
    return found


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a run-*.wandb: after 7 bytes LevelDB's log, blocks of 32 KiB, records cut at their ends."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # no room for a header: filled up
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def read_wandb(folder: Path) -> tuple[str, dict, list[dict]]:
    """(run id, config, logged rows) of an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    run_id, config, logged = "", {}, []
    for content in wandb_records(path):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id = record.run.run_id
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = ((item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item)
            logged.append({name: json.loads(value) for name, value in items if not name.startswith("_")})
    return run_id, config, logged


def read_tensorboard(folder: Path) -> dict[int, dict[str, float]]:
    """{step: {name: value}} as TensorBoard shows it: what a resume purged is gone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in found.setdefault(event.step, {}), (name, event.step)
            found[event.step][name] = event.value
    assert len(events.Tags()["images"]) == 3 and "samples/text_summary" in events.Tags()["tensors"]
    return found


def test_offline_wandb_and_tensorboard_hold_log_jsonl_and_a_resume_continues_them(flags, tmp_path, run_training):
    run = tmp_path / "runs" / "x"
    argv = [*flags, "--log-wandb", "--log-tensorboard"]
    fresh = ["--num-epochs", "2", "--keep-best", "3", "--run-name", "x", "--encoder-learning-rate", "1e-3"]
    printed = run_training([*argv, *fresh], WANDB_OFFLINE)
    first_log = rows(run)
    state = checkpoint.load(next(run.glob("checkpoint_epoch_1_*")))
    resume = ["--resume-checkpoint-path", str(next(run.glob("checkpoint_epoch_1_*")))]
    more = run_training([*argv, *resume], WANDB_OFFLINE)
    second_log = [row for row in rows(run) if row["step"] > 6]
    assert len(second_log) > 6 and first_log != rows(run)

    first, second = sorted((run / "wandb").glob("offline-run-*"))
    assert f"W&B, offline: {first}" in printed and f"W&B, offline: {second}" in more and "sync them all" in more
    for folder, log in ((first, first_log), (second, second_log)):
        run_id, config, logged = read_wandb(folder)
        assert run_id == state["wandb_run_id"] != ""
        assert config["SEED"] == 1 and config["ENCODER_LEARNING_RATE"] == 1e-3
        assert [row for row in logged if "samples.path" not in row] == copied(log)
        tables = [row["samples.path"] for row in logged if "samples.path" in row]
        samples = [row for row in log if row["type"] == "samples"]
        assert len(tables) == len(samples) > 0
        for table, row in zip(tables, samples, strict=True):
            page = (folder / "files" / table).read_text()
            assert page.count("data:image/jpeg;base64,") == 3
            assert re.findall(r"<td>([^<]*)</td></tr>", page) == [sample["caption"] for sample in row["samples"]]
    assert all(row["encoder_lr"] == pytest.approx(row["lr"] / 3) for row in rows(run, "train"))
    assert not list(tmp_path.rglob("artifacts"))

    pytest.importorskip("tensorboard", reason="W&B's part passed")
    shown: dict[int, dict[str, float]] = {}
    for row in copied(rows(run)):
        shown.setdefault(row.pop("global_step"), {}).update(row)
    assert read_tensorboard(run / "tensorboard") == {
        step: {name: pytest.approx(value, rel=1e-6) for name, value in numbers.items()}
        for step, numbers in shown.items()
    }


def test_a_dead_wandb_loses_no_step_and_its_id_waits_in_the_checkpoint(flags, tiny_run_made, tmp_path, run_training):
    printed = run_training([*flags, *TINY_RUN.split(), "--log-wandb", "--run-name", "dead"], WANDB_DEAD)
    assert "W&B could not be started (http://127.0.0.1:9 does not answer" in printed
    runs = tmp_path / "runs" / "dead", tiny_run_made
    assert losses(runs[0]) == losses(runs[1])
    dead, plain = (checkpoint.load(run / "last.safetensors") for run in runs)
    assert re.fullmatch(r"[0-9a-f]{8}", dead["wandb_run_id"]) and plain["wandb_run_id"] is None


@pytest.mark.long
def test_a_dead_wandb_costs_a_few_seconds_at_most(flags, tmp_path):
    """Side by side, three times: the machine's own swings are larger than what is measured."""
    extra = []
    for turn in range(3):
        seconds = []
        for name, more, environment in (("plain", [], {}), ("dead", ["--log-wandb"], WANDB_DEAD)):
            begun = time.monotonic()
            argv = [*flags, "--num-epochs", "1", "--run-name", f"{name}{turn}", *more]
            process = start(argv, tmp_path / name, functools.partial(os.environ.update, environment))
            assert end(process) == 0, (tmp_path / name).read_text()
            seconds.append(time.monotonic() - begun)
        extra.append(seconds[1] - seconds[0])
    assert min(extra) < 5, extra


# --- What W&B may do at the start ---


class FakeRun:
    url, dir, id = "https://example.org/run", "x/files", "abc"

    def __init__(self):
        self.rows, self.metrics, self.ended = [], [], []

    def define_metric(self, name, **arguments):
        self.metrics.append((name, arguments))

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.ended.append(exit_code)


def fake_wandb(monkeypatch, run=None, *, mode="online", url="http://127.0.0.1:9", login=True) -> dict:
    """A wandb module whose init returns `run`, or raises it; the arguments that init was given."""
    given: dict = {}

    def init(**arguments):
        given.update(arguments)
        if isinstance(run, Exception):
            raise run
        return run

    own = types.SimpleNamespace(mode=mode, base_url=url)
    module = types.SimpleNamespace(
        init=init, Settings=lambda **arguments: arguments, login=lambda prompt: login,
        setup=lambda settings: types.SimpleNamespace(settings=own),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", module)
    return given


def setup(folder=Path("runs/x"), run_id=None, log_wandb=True):
    settings = types.SimpleNamespace(LOG_WANDB=log_wandb, WANDB_PROJECT="project", WANDB_ENTITY=None)
    about = {"wandb_run_id": run_id, "config": {"SEED": 1}}
    return tracking.setup_wandb(settings, folder, about, resumed=run_id is not None), about["wandb_run_id"]


def test_a_run_is_begun_under_an_own_id_and_continued_under_it(monkeypatch, capsys):
    run = FakeRun()
    given = fake_wandb(monkeypatch, run)
    monkeypatch.setattr(tracking, "_answers", lambda url: True)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    found, run_id = setup()
    assert found is run and given["id"] == run_id and given["resume"] == "allow"
    assert given["config"] == {"SEED": 1} and given["name"] == "x" and given["dir"] == "runs/x"
    assert given["settings"]["init_timeout"] <= 5 and given["settings"]["finish_timeout"] <= 10
    assert ("*", {"step_metric": "global_step"}) in run.metrics
    assert "W&B: https://example.org/run" in capsys.readouterr().out
    assert setup(run_id="before")[1] == given["id"] == "before"
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    setup()
    assert given["dir"] == "/elsewhere"


def test_off_is_off(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert setup(log_wandb=False, run_id="before") == (None, "before")


@pytest.mark.parametrize("error", [RuntimeError("no key\nsecond line"), TimeoutError(), OSError("offline")])
def test_wandb_that_cannot_start_is_one_line_and_no_run(monkeypatch, capsys, error):
    fake_wandb(monkeypatch, error, mode="offline")
    found, run_id = setup()
    assert found is None and run_id
    (line,) = capsys.readouterr().out.splitlines()
    assert "W&B could not be started" in line and "log.jsonl" in line


@pytest.mark.parametrize(
    "how, said", [({"mode": "disabled"}, "WANDB_MODE"), ({"login": False}, "wandb login"), ({}, "does not answer")]
)
def test_what_is_missing_is_one_line_and_wandb_is_not_begun(monkeypatch, capsys, how, said):
    given = fake_wandb(monkeypatch, FakeRun(), **how)
    monkeypatch.setattr(tracking, "_answers", lambda url: how != {})
    assert setup()[0] is None and not given
    (line,) = capsys.readouterr().out.splitlines()
    assert said in line


def test_wandb_that_is_not_installed_is_one_line_and_no_run(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert setup()[0] is None
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.fixture
def server():
    """A socket that accepts and answers what the test puts there, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answer: list[bytes] = []
        held = []

        def accept():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                held.append(connection)
                if answer:
                    question = b""
                    while not question.endswith(b"}"):
                        question += connection.recv(4096)
                    assert question.startswith(b"POST /graphql ")
                    connection.sendall(answer[0])
                    connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", answer
        for connection in held:
            connection.close()


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Broken"])
def test_any_answer_is_an_answer(server, monkeypatch, status):
    monkeypatch.setenv("NO_PROXY", "*")
    url, answer = server
    answer.append(f"HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    assert tracking._answers(url)


def test_a_server_that_says_nothing_is_not_waited_for(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 0.1)
    assert not tracking._answers(server[0])
    assert not tracking._answers("http://127.0.0.1:9")
    assert not tracking._answers("no address")
    asked = threading.Event()

    def look_up(*_, **__):
        asked.wait(5)
        raise OSError("no such host")

    monkeypatch.setattr(tracking.urllib.request, "urlopen", look_up)
    assert not tracking._answers(server[0])  # a name server that says nothing
    asked.set()


@pytest.mark.parametrize("error", [None, RuntimeError("boom"), SystemExit(143)])
def test_copies_end_with_the_training_however_it_ends(error, capsys):
    run, closed = FakeRun(), []
    writer = types.SimpleNamespace(close=lambda: closed.append(True))
    try:
        with tracking.copies(run, writer, {}) as found:
            found[0]({"type": "train", "step": 3, "loss": 1.5, "lr": None, "note": "text"})
            if error:
                raise error
    except (RuntimeError, SystemExit) as raised:
        assert raised is error
    assert run.ended == [int(error is not None)] and closed == [True]
    assert run.rows == [{"train/loss": 1.5, "global_step": 3}]
    run.finish = lambda exit_code: 1 / 0
    with tracking.copies(run, None, {}):
        pass
    assert "W&B did not end well (division by zero)" in capsys.readouterr().out


def test_captions_are_text_in_the_table(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.jpg")
    table = tracking.samples_table([{"file_name": "a.jpg", "caption": "<b>a & b"}], {"a.jpg": tmp_path / "a.jpg"})
    assert "<td>&lt;b&gt;a &amp; b</td>" in table and "<b>" not in table


def test_tensorboard_that_is_not_installed_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tracking.start_tensorboard(types.SimpleNamespace(LOG_TENSORBOARD=True), tmp_path, 0) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert "pip install tensorboard" in line
