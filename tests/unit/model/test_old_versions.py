"""Checkpoints and exports outlive versions: of transformers, which renames a tower's weights, and of our own formats.

old_versions/ holds what earlier programs wrote, with transformers 5.17, the oldest that is supported, and torch 2.14:
a checkpoint of each kind of tower under the names that it had in memory (format 2; of the DINOv2s with an optimizer's
state), an export of one (format 1), and a checkpoint of format 1, whose digest ran over all bytes. expected.json says
what those programs computed.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from nanocaption.base import tower_names
from nanocaption.base.tensors import State
from nanocaption.model import exported
from nanocaption.model.captioner import ImageToTextModel, assemble
from nanocaption.model.encoder import of_transformers
from nanocaption.runs import checkpoint
from nanocaption.train import optim, state

OLD = Path(__file__).with_name("old_versions")
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
KINDS = ("vit", "deit", "dinov2", "dinov2_swiglu", "dinov2_with_registers", "clip", "siglip")
TRAINED = [kind for kind in KINDS if kind.startswith("dinov2")]
IMAGES = (torch.arange(2 * 3 * 16 * 16) * 37 % 251).to(torch.uint8).view(2, 3, 16, 16)
TOKENS = torch.tensor([[1, 70, 80, 90, 2], [1, 75, 85, 2, 0]])


def logits(model: ImageToTextModel) -> list[float]:
    with torch.no_grad():
        return model.eval()(IMAGES, TOKENS[:, :-1])[0, 1, :6].tolist()


def old(kind: str) -> State:
    return checkpoint.load(OLD / f"{kind}.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_the_oldest_transformers_computes_what_it_computed_there(kind):
    assert logits(assemble(old(kind))) == pytest.approx(EXPECTED[kind]["logits"], abs=1e-5)


def test_an_export_of_the_oldest_transformers_computes_what_it_computed_there():
    assert logits(assemble(exported.read(OLD / "export_dinov2"))) == pytest.approx(
        EXPECTED["dinov2"]["logits"], abs=1e-5
    )


@pytest.mark.parametrize("kind", TRAINED)
def test_its_training_goes_on_as_it_would_have_there(kind):
    saved = old(kind)
    model = assemble(saved).train()
    optimizer = optim.build_optimizer(model, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-8, fused=False)
    state.restore_state(saved, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    optim.set_learning_rates(optimizer, 1e-2, 1.0)
    model(IMAGES, TOKENS[:, :-1]).logsumexp(-1).sum().backward()
    optimizer.step()
    expected = EXPECTED[kind]["after_one_step_more"]
    assert logits(model) == pytest.approx(expected, abs=1e-4)
    # The control: without the moments it is another step.
    forgetful = assemble(saved).train()
    fresh = optim.build_optimizer(forgetful, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-8, fused=False)
    optim.set_learning_rates(fresh, 1e-2, 1.0)
    forgetful(IMAGES, TOKENS[:, :-1]).logsumexp(-1).sum().backward()
    fresh.step()
    assert logits(forgetful) != pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written_under_the_names_of_transformers_own_files(kind, tmp_path):
    saved = old(kind)
    model = assemble(saved)
    of_transformers(model.encoder).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    taken = saved | {"model_state_dict": dict(model.state_dict())}
    checkpoint.save(tmp_path / "new.safetensors", taken)
    ours = load_file(tmp_path / "new.safetensors")
    tower = {name: tensor for name, tensor in ours.items() if name.startswith("model/encoder.tower.")}
    assert {name.removeprefix("model/encoder.tower.") for name in tower} == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(tensor, tower[f"model/encoder.tower.{name}"]), name
    back = checkpoint.load(tmp_path / "new.safetensors")
    again = assemble(back)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert optim_content(back) == optim_content(saved)
    assert checkpoint.read_header(tmp_path / "new.safetensors")["format_version"] == 3
    exported.write(tmp_path / "folder", back, "# a card\n")
    assert {name for name in load_file(tmp_path / "folder" / "model.safetensors") if "tower" in name} == {
        f"encoder.tower.{name}" for name in theirs
    }
    assert logits(assemble(exported.read(tmp_path / "folder"))) == logits(model)


def optim_content(saved: State) -> dict[str, list[float]]:
    state = saved["optimizer_state_dict"]["state"]
    return {f"{name} {slot}": tensor.flatten().tolist() for name, its in state.items() for slot, tensor in its.items()}


def test_the_control_without_the_names_nothing_fits_and_both_versions_are_told(monkeypatch):
    monkeypatch.setattr(tower_names, "_RULES", ())
    wrote, here = re.escape(EXPECTED["transformers"]), re.escape(transformers.__version__)
    if EXPECTED["transformers"] == transformers.__version__:
        pytest.skip("this is the version that wrote the files")
    with pytest.raises(ValueError, match=rf"does not fit the model.*with transformers {wrote}, this is {here}"):
        assemble(old("dinov2"))


def test_names_of_files_are_their_own_and_nothing_else_is_renamed():
    for kind in KINDS:
        names = list(old(kind)["model_state_dict"])
        assert tower_names.file_names(names) == names
    for name in ("encoder.blocks.0.qkv.weight", "decoder.layers.0.norm.weight", "encoder.layers.0.mlp.fc1.weight"):
        assert tower_names.place_of(name) == tower_names.Place(name)


def test_a_checkpoint_of_our_first_format_loads_as_it_was():
    path = OLD / "format_1.safetensors"
    assert checkpoint.read_header(path)["format_version"] == 1
    images, tokens = IMAGES[:1], torch.tensor([[1, 70, 80]])
    found = assemble(checkpoint.load(path))(images, tokens)[0, 1, :4].tolist()
    assert found == pytest.approx([1.1295572, -0.3499570, 0.3846592, 0.1989588], abs=1e-5)


def test_the_control_one_changed_bit_of_the_first_format_is_refused(tmp_path):
    data = bytearray((OLD / "format_1.safetensors").read_bytes())
    data[-100] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="does not match its digest"):
        checkpoint.load(tmp_path / "a.safetensors")
