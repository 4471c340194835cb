"""Uploads and downloads against a local server that speaks the Hub's routes, with the real client; and a dead Hub."""

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import nanocaption
import train
from nanocaption.base import hub
from nanocaption.commands import caption, export
from nanocaption.export import transformers_folder
from nanocaption.export.uploads import Uploads
from nanocaption.model import exported
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import best_files
from tests.conftest import TINY_RUN
from tests.hub_server import Hub, point_to, serve
from tests.processes import CONTEXT, end, losses, wait_for
from tests.run.test_transformers import make_checkpoint

# Of the Hub's client, when it uploads a large file the plain way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(monkeypatch, tmp_path) -> type[Hub]:
    with serve() as handler:
        point_to(handler.url, monkeypatch, tmp_path)
        yield handler


def test_pushed_by_hand_and_loaded_from_there(tiny_run_made, demo_data, tmp_path, server, capsys):
    (best, *_) = best_files(tiny_run_made)
    args = [str(best), str(tmp_path / "mine"), "--push", "someone/captioner", "--data-dir", str(demo_data)]
    export.main(args)
    repository = server.repositories["someone/captioner"]
    assert repository["private"] and f"{server.url}/someone/captioner" in capsys.readouterr().out
    ((title, files),) = repository["commits"]
    assert title.startswith(f"epoch {checkpoint.read_header(best)['epoch']}: validation loss")
    assert files == {name: (tmp_path / "mine" / name).read_bytes() for name in (*hub.FILES, hub.SAMPLES)}
    card = files["README.md"].decode()
    with Image.open(tmp_path / "mine" / hub.SAMPLES) as pictures:  # drawn here, so they may be shown
        assert pictures.size == (3 * 160 + 2 * 8, 160) and f"({hub.SAMPLES})\n" in card
    assert 'nanocaption.load("someone/captioner")' in card and "unknown" not in card
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == "captioner"

    here, there = ImageToTextModel.from_pretrained(tmp_path / "mine"), ImageToTextModel.from_pretrained(
        "someone/captioner", revision="main"
    )
    for (name, a), b in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    picture = str(next((demo_data / "demo" / "images").iterdir()))
    capsys.readouterr()
    assert caption.main([picture, "--checkpoint", "someone/captioner"]) == 0
    assert capsys.readouterr().out == f"{picture}: {here.caption(picture)}\n"

    export.main([*args, "--no-hf-private"])  # again: replaced, and the repository stays as private as it is
    assert len(repository["commits"]) == 2 and repository["private"]
    export.main([*args[:3], "group/captioner", *args[4:], "--no-hf-private"])
    assert not server.repositories["group/captioner"]["private"]


def test_only_the_exports_own_files_are_uploaded(tiny_run_made, demo_data, tmp_path, server):
    folder = tmp_path / "mine"
    export.main([str(tiny_run_made / "last.safetensors"), str(folder), "--data-dir", str(demo_data)])
    (folder / "eval_test").mkdir()
    (folder / "eval_test" / "report.html").write_text("pictures of others")
    hub.push(folder, "someone/captioner", True, "by hand")
    ((title, files),) = server.repositories["someone/captioner"]["commits"]
    assert title == "by hand" and set(files) - {hub.SAMPLES} == set(hub.FILES)


def test_a_loaded_model_is_pushed_and_loads_at_its_revision(tiny_run_made, demo_data, tmp_path, server, monkeypatch):
    export.main([str(tiny_run_made / "last.safetensors"), str(tmp_path / "mine"), "--data-dir", str(demo_data)])
    model = nanocaption.load(tmp_path / "mine", dtype="bfloat16")
    assert model.push_to_hub("someone/other", commit_message="half") == f"{server.url}/someone/other"
    repository = server.repositories["someone/other"]
    ((title, files),) = repository["commits"]
    assert title == "half" and repository["private"] and set(files) == set(hub.FILES)
    card = files["README.md"].decode()
    assert 'nanocaption.load("someone/other")' in card and "--checkpoint someone/other`" in card and "mine" not in card
    assert hub.SAMPLES not in card and (tmp_path / "mine" / hub.SAMPLES).is_file()  # the model has no pictures
    sha = server.sha(files)
    model.memory_projection.weight.data += 1
    model.push_to_hub("someone/other")
    first, second = (nanocaption.load("someone/other", revision=name, device="cpu") for name in (sha, "main"))
    own = nanocaption.load(tmp_path / "mine").memory_projection.weight
    assert torch.equal(first.memory_projection.weight, own.bfloat16().float())  # half is written as float32
    assert not torch.equal(second.memory_projection.weight, first.memory_projection.weight)
    with pytest.raises(ValueError, match="has no revision 'v9'"):
        nanocaption.load("someone/other", revision="v9")
    with pytest.raises(ValueError, match="Nothing can be uploaded to another/name: the token belongs to"):
        model.push_to_hub("another/name")
    with pytest.raises(ValueError, match="no card of its own"):
        nanocaption.load(tiny_run_made / "last.safetensors").push_to_hub("someone/other")


def test_a_folder_for_transformers_is_pushed_whole(tmp_path, server):
    path = make_checkpoint("from scratch", tmp_path)
    export.main([str(path), str(tmp_path / "plain"), "--format", "transformers", "--push", "someone/plain"])
    ((_, files),) = server.repositories["someone/plain"]["commits"]
    assert set(files) == set(transformers_folder.FILES) and "generation_config.json" in files
    assert 'name = "someone/plain"' in files["README.md"].decode()


def test_what_the_hub_refuses_is_one_line(tiny_run_made, tmp_path, server, monkeypatch):
    def refusal(name: str, revision: str | None = None) -> str:
        with pytest.raises(ValueError) as caught:
            exported.read(name, revision)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no such model" in refusal("someone/nothing")
    server.repositories["someone/other"] = {"private": False, "commits": [("first", {"config.json": b'{"a": 1}'})]}
    assert "no revision 'v9'" in refusal("someone/other", "v9")
    assert "type 'unknown', not one of nanoCaption" in refusal("someone/other")
    assert "no id of the Hub" in refusal("some one/other")
    args = [str(tiny_run_made / "last.safetensors"), str(tmp_path / "mine"), "--push"]
    with pytest.raises(SystemExit, match="belongs to someone and group, not to 'another'"):
        export.main([*args, "another/captioner"])
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match="does not say whose token this is"):
        export.main([*args, "someone/captioner"])
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit, match="there is no token: set HF_TOKEN"):
        export.main([*args, "someone/captioner"])
    assert not (tmp_path / "mine").exists()


def test_a_training_uploads_its_best_checkpoints(flags, tiny_run_made, tmp_path, server, capsys):
    train.main([*flags, *TINY_RUN.split(), "--hf-repo-id", "someone/captioner", "--run-name", "with"])
    printed = capsys.readouterr().out
    repository = server.repositories["someone/captioner"]
    title, files = repository["commits"][-1]
    (best, *_) = best_files(tmp_path / "runs" / "with")
    epoch = checkpoint.read_header(best)["epoch"]
    assert repository["private"] and title.startswith(f"epoch {epoch}: validation loss ")
    assert f"Hub: {server.url}/someone/captioner holds {title}" in printed
    card = files["README.md"].decode()
    assert "## Samples" in card and "At the validation during the training: loss" in card
    folder = tmp_path / "uploaded"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    weights = exported.read(folder)["model_state_dict"]
    for name, tensor in checkpoint.load(best)["model_state_dict"].items():
        assert torch.equal(weights[name], tensor), name

    assert losses(tmp_path / "runs" / "with") == losses(tiny_run_made)  # to the bit


def test_a_dead_hub_costs_no_step(flags, tmp_path, monkeypatch, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{probe.getsockname()[1]}", monkeypatch, tmp_path)  # nobody listens there
        flags += ["--num-epochs", "1", "--validation-score-images", "0", "--hf-repo-id", "someone/captioner"]
        train.main([*flags, "--run-name", "dead"])
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "dead"
    assert len(losses(run)) == 7 and checkpoint.load(run / "last.safetensors")["epoch"] == 1
    assert "HF_REPO_ID = 'someone/captioner'" in printed and "Training goes on" in printed
    (best, *_) = best_files(run)
    assert "is not uploaded" in printed
    assert f"By hand: nanocaption export {best} {run / 'export'} --push someone/captioner" in printed
    assert exported.is_export(run / "export")  # it lies there


def test_a_silent_hub_is_left_and_a_newer_upload_ends_the_one_before(
    tiny_run_made, demo_data, tmp_path, server, monkeypatch
):
    export.main([str(tiny_run_made / "last.safetensors"), str(tmp_path / "mine"), "--data-dir", str(demo_data)])
    server.silent = threading.Event()
    told: list[str] = []
    uploads = Uploads("someone/captioner", True, told.append)
    uploads.start(tmp_path / "mine", "epoch 1", "nanocaption export a b")
    wait_for(lambda: any("/preupload/" in line for line in server.requests))
    uploads.start(tmp_path / "mine", "epoch 2", "nanocaption export c d")
    assert told == ["Hub: epoch 1 is not uploaded: dropped for a newer one"]
    uploads.finish(0.1)
    assert told[1] == "Hub: uploading epoch 2 to someone/captioner; waiting 0 s at most"
    assert told[2] == "Hub: epoch 2 is not uploaded: not done within 0 s. By hand: nanocaption export c d"
    uploads.start(tmp_path / "mine", "epoch 3", "nanocaption export e f")
    uploads.finish(0)
    assert told[3:] == ["Hub: epoch 3 is not uploaded: the run ended before it. By hand: nanocaption export e f"]
    assert server.repositories["someone/captioner"]["commits"] == []

    def interrupted(process, *_, timeout=None):
        if timeout is not None:
            raise KeyboardInterrupt
        return communicate(process)

    communicate = subprocess.Popen.communicate
    uploads.start(tmp_path / "mine", "epoch 4", "nanocaption export g h")
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    uploads.finish(60)
    assert told[-1] == "Hub: epoch 4 is not uploaded: not waited for. By hand: nanocaption export g h"


def test_an_upload_ends_with_the_training_that_was_killed(tiny_run_made, demo_data, tmp_path, server):
    folder = tmp_path / "mine"
    export.main([str(tiny_run_made / "last.safetensors"), str(folder), "--data-dir", str(demo_data)])
    server.silent = threading.Event()

    def killed() -> None:
        uploads = Uploads("someone/captioner", True, print)
        uploads.start(folder, "epoch 1", "nanocaption export a b")
        (tmp_path / "pid").write_text(str(uploads._process.pid))
        wait_for(lambda: any("/preupload/" in line for line in Path(tmp_path / "seen").read_text().splitlines()))
        os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "seen").touch()
    process = CONTEXT.Process(target=killed)
    process.start()
    wait_for(lambda: any("/preupload/" in line for line in server.requests))
    command = Path(f"/proc/{(tmp_path / 'pid').read_text()}/cmdline")
    assert "-m\0nanocaption\0upload\0" in command.read_text()
    (tmp_path / "seen").write_text("/preupload/")
    assert end(process) == -signal.SIGKILL
    wait_for(lambda: not command.exists() or command.read_text() == "")


def test_a_hub_that_does_not_answer_is_known_within_the_time_given(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "CHECK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and says nothing
        point_to(f"http://127.0.0.1:{mute.getsockname()[1]}", monkeypatch, tmp_path)
        assert "does not say whose token this is" in hub.access_problem("someone/captioner")


@pytest.mark.parametrize("name", ["captioner", "a/b/c", "/b", "a/", "a b/c", "a--b/c", "a/.b", "a/b-", "a/" + 97 * "b"])
def test_a_name_that_cannot_be_is_told_before_anything(name, tmp_path):
    with pytest.raises(SystemExit, match="HF_REPO_ID = .*must be 'user/name'"):
        train.main(["--hf-repo-id", name, "--output-dir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
