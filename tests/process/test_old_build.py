"""What the build of before the move into one package left behind: it resumes, loads and captions to the same bits.

old_build/ holds a checkpoint of it, saved at step 8 of 12 within an epoch (crops, flips, dropout, two workers), the
export of the run that went on from there, and what that build itself then logged, weighed and captioned.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nanocaption
from nanocaption.prepare.make import prepare
from nanocaption.runs import checkpoint
from tests.processes import command

OLD = Path(__file__).with_name("old_build")
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
# Other sums may round otherwise: there the numbers are compared, not their bits.
EXACT = (EXPECTED["torch"], EXPECTED["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the data set that the checkpoint was trained on, and the checkpoint in a run of its own."""
    folder = tmp_path_factory.mktemp("old")
    prepare("demo", folder / "data", cutoff=12)
    (folder / "runs" / "resumed").mkdir(parents=True)
    shutil.copy(OLD / "checkpoint.safetensors", folder / "runs" / "resumed" / "last.safetensors")
    return folder


def resumed(place: Path, run: str, *more: str) -> tuple[list[dict], str]:
    """The rows that a resume of `run` logs, and the digest of its last weights and moments."""
    done = command(place, "train.py", "--resume-checkpoint-path", f"runs/{run}/last.safetensors", *more)
    assert done.code == 0, done.err
    lines = (place / "runs" / run / "log.jsonl").read_text().splitlines()
    keys = ("type", "step", "loss", "val_loss", "lr", "grad_norm", "CIDEr")
    rows = [{key: row[key] for key in keys if key in row} for row in map(json.loads, lines)
            if row["type"] in ("train", "val")]  # fmt: skip
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(place / "runs" / run / "last.safetensors").items()):
        if name.startswith(("model/", "optim/")):
            digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return rows, digest.hexdigest()


def test_a_checkpoint_of_the_old_build_resumes_to_the_same_bits(place):
    rows, digest = resumed(place, "resumed")
    if EXACT:
        assert (rows, digest) == (EXPECTED["rows"], EXPECTED["weights_sha256"])
    for row, expected in zip(rows, EXPECTED["rows"], strict=True):
        kind = expected.pop("type")
        assert row.pop("type") == kind and row == pytest.approx(expected, rel=1e-3)


def test_one_changed_bit_of_a_weight_would_show(place):
    state = checkpoint.load(OLD / "checkpoint.safetensors")
    weight = state["model_state_dict"]["memory_projection.weight"]
    weight.view(torch.int32)[0, 0] ^= 1
    (place / "runs" / "changed").mkdir()
    checkpoint.save(place / "runs" / "changed" / "last.safetensors", state)
    rows, digest = resumed(place, "changed", "--num-workers", "0")
    assert len(rows) == len(EXPECTED["rows"]) and digest != EXPECTED["weights_sha256"]


@pytest.mark.parametrize("kind, flags", [("captions", ["--num-captions", "3"]), ("sampled", ["--sample"])])
def test_an_export_and_a_checkpoint_of_the_old_build_caption_the_same(place, kind, flags):
    source = OLD / "export" if kind == "captions" else OLD / "checkpoint.safetensors"
    number = ["--num-captions", "2"] if kind == "sampled" else []
    pictures = [f"data/demo/images/{name}" for name, _ in EXPECTED[kind]]
    done = command(place, "nanocaption", "caption", *pictures, "--checkpoint", source, "--json", *flags, *number)
    assert done.code == 0, done.err
    found = [[Path(row["file_name"]).name, row["captions"]] for row in json.loads(done.out)]
    for _, captions in EXPECTED[kind]:
        for caption in captions:  # the old build showed bytes that are no character
            caption["caption"] = caption["caption"].replace("\ufffd", "")
    if EXACT:
        assert found == EXPECTED[kind]
    texts = [[caption["caption"] for caption in captions] for _, captions in found]
    assert texts == [[caption["caption"] for caption in captions] for _, captions in EXPECTED[kind]]


def test_load_takes_the_old_export_and_refuses_a_damaged_one(tmp_path):
    model = nanocaption.load(OLD / "export")
    assert model.tokenizer.get_vocab_size() == 280
    folder = shutil.copytree(OLD / "export", tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    tensors["memory_norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="is damaged, or not the file of its config.json"):
        nanocaption.load(folder)
