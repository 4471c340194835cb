"""The moving average of the weights: its arithmetic, its place in a checkpoint, and the mean of whole checkpoints."""

import copy
import json
import shutil

import pytest
import torch

import nanocaption
from nanocaption.commands import average as command
from nanocaption.model import exported
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import BEST_CIDER, LAST
from nanocaption.train import average
from nanocaption.use import soup
from tests.conftest import run_command


def parameters() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(1)
    return {"a": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.randn(4))}


def test_the_average_is_the_recurrence_with_its_warm_up_and_training_goes_on_with_the_same_weights():
    weights = parameters()
    begun = average.begin(weights, None)
    expected = {name: tensor.detach().double() for name, tensor in weights.items()}
    decays = []
    for taken in range(30):
        with torch.no_grad():
            for tensor in weights.values():
                tensor += torch.randn_like(tensor)
        average.update(begun, weights, average.decay_at(0.7, taken, rewarded=False))
        decays.append(min(0.7, (1 + taken) / (10 + taken)))
        expected = {n: decays[-1] * old + (1 - decays[-1]) * weights[n].detach().double()
                    for n, old in expected.items()}  # fmt: skip
    assert decays[0] == 0.1 and decays[-1] == 0.7 and decays[5] == 6 / 15
    for name, tensor in begun.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(tensor, weights[name])
    own = {name: tensor.detach().clone() for name, tensor in weights.items()}
    kept = {name: tensor.clone() for name, tensor in begun.items()}
    with pytest.raises(KeyError), average.in_place(begun, weights):
        assert all(torch.equal(weights[name], kept[name]) for name in kept)
        raise KeyError
    assert all(torch.equal(weights[name], own[name]) and torch.equal(begun[name], kept[name]) for name in own)


# --- the mean of checkpoints ---


@pytest.fixture
def members(tiny_run):
    """Two checkpoints of one run."""
    first, second = (next(tiny_run.glob(f"checkpoint_epoch_{epoch}_*")) for epoch in (1, 2))
    return first, second


def go(*words) -> int:
    return run_command(command.main, list(map(str, words)))


def test_the_mean_of_two_is_the_hand_made_one_to_the_bit_says_what_it_is_of_and_captions(members, tmp_path, capsys):
    a, b = (checkpoint.load(path)["model_state_dict"] for path in members)
    for name, more, shares in (("half", [], (1, 1)), ("more", ["--weights", "0.7,0.3"], (0.7, 0.3))):
        output = tmp_path / f"{name}.safetensors"
        assert go(*members, "-o", output, *more) == 0
        state = checkpoint.load(output)
        for key, tensor in state["model_state_dict"].items():
            by_hand = (shares[0] * a[key].double() + shares[1] * b[key].double()) / sum(shares)
            assert torch.equal(tensor, by_hand.float()), key
        assert [row["step"] for row in state["average_of"]] == [6, 12]
        assert [row["weight"] for row in state["average_of"]] == pytest.approx([s / sum(shares) for s in shares])
        assert all(len(row["sha256"]) == 64 for row in state["average_of"])
    half, more = (checkpoint.load(tmp_path / f"{name}.safetensors")["model_state_dict"] for name in ("half", "more"))
    assert any(not torch.equal(half[key], more[key]) for key in half)  # the control: shares count
    assert "the mean of 2 models" in capsys.readouterr().out
    model = nanocaption.load(tmp_path / "half.safetensors")
    assert model.about is not None and len(model.about["average_of"]) == 2
    folder = tmp_path / "export"
    exported.write(folder, checkpoint.load(tmp_path / "half.safetensors"), "card")
    assert len(exported.read(folder)["average_of"]) == 2  # and it may be a member in its turn
    assert go(folder, members[0], "-o", tmp_path / "again.safetensors") == 0


def other_tokenizer(state) -> None:
    content = json.loads(state["tokenizer"])
    content["model"]["merges"].pop()
    state["tokenizer"] = json.dumps(content)


@pytest.mark.parametrize("change, said", [
    (lambda s: s["config"].update(DECODER_HEADS=4), "DECODER_HEADS is 2 and 4"),
    (lambda s: s["config"].update(CAPTION_CASE="lower"), "CAPTION_CASE is 'keep' and 'lower'"),
    (other_tokenizer, "another tokenizer"),
    (lambda s: s["model_state_dict"].pop("decoder.norm.weight"), "decoder.norm.weight"),
    (lambda s: s["model_state_dict"]["decoder.norm.weight"].fill_(torch.nan), "not finite, in decoder.norm.weight"),
    (lambda s: s["model_arguments"].update(image_spec={"size": 48}), "another preparation of pictures"),
    (lambda s: s["model_arguments"].update(never_chosen=[5]), "another make of the decoder"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_strangers_are_refused_in_one_line_that_names_the_difference(members, tmp_path, capsys, change, said):
    state = checkpoint.load(members[1])
    change(state)
    other = tmp_path / "other.safetensors"
    checkpoint.save(other, state)
    assert go(members[0], other, "-o", tmp_path / "mean.safetensors") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and not (tmp_path / "mean.safetensors").exists()


def test_a_frozen_encoder_is_kept_and_another_one_refused(members):
    a, b = (soup.read_member(path) for path in members)
    for state in (a.state, b.state):
        state["config"]["FREEZE_ENCODER"] = True
    with pytest.raises(ValueError, match="another frozen encoder, in encoder"):
        soup.mean([a, b], [1, 1])
    for name, tensor in a.state["model_state_dict"].items():
        if name.startswith("encoder."):
            b.state["model_state_dict"][name] = tensor
    mean = soup.mean([a, b], [0.1, 0.7])["model_state_dict"]
    assert all(torch.equal(mean[n], t) for n, t in a.state["model_state_dict"].items() if n.startswith("encoder."))


def test_wrong_commands_are_told_in_one_line(members, tmp_path, capsys):
    first, second = members
    link, new = tmp_path / "link.safetensors", tmp_path / "new.safetensors"
    shutil.copyfile(first, link)
    for words, said in (
        ([first, "-o", new], "two members or more"),
        ([first, first, "-o", new], "hold the same weights"),
        ([first, link, "-o", new], "hold the same weights"),
        ([first, second, "-o", link], "is there already"),
        ([first, second, "-o", tmp_path / "mean.bin"], "must end in .safetensors"),
        ([first, second, "-o", tmp_path / "no" / "mean.safetensors"], "no folder"),
        ([first, second, "-o", tmp_path / LAST], "its own checkpoints"),
        ([first, second, "-o", tmp_path / BEST_CIDER], "its own checkpoints"),
        ([first, second, "-o", new, "--weights", "1"], "1 numbers for 2 members"),
        ([first, second, "-o", new, "--weights", "1,x"], "must be numbers"),
        ([first, second, "-o", new, "--weights", "2,-1"], "above 0"),
        ([first, second, "-o", new, "--weights", "1,nan"], "above 0"),
        ([first, tmp_path / "nowhere.safetensors", "-o", new], "no checkpoint"),
    ):
        assert go(*words) == 1
        assert said in capsys.readouterr().err, words
    assert not new.exists()


def test_what_is_known_to_have_no_common_start_is_warned_of(members):
    a, b = (soup.read_member(path) for path in members)
    assert soup.notes([a, b]) == []
    b.state["config"]["SEED"] = 2
    assert "began at different random weights (SEED 1 and 2" in soup.notes([a, b])[0]
    b.state["config"]["INIT_CHECKPOINT_PATH"] = "somewhere"
    assert soup.notes([a, b]) == []  # it may have begun at the other
    b.state["config"]["TRAIN_SPLITS"] = ["train", "val"]
    assert "trained on other pictures (TRAIN_SPLITS" in soup.notes([a, b])[0]


def test_a_mean_that_is_not_finite_is_refused(members):
    a = soup.read_member(members[0])
    b = a._replace(name="b", state=copy.deepcopy(a.state))
    for sign, member in ((1, a), (2, b)):
        member.state["model_state_dict"]["decoder.norm.weight"][:] = sign * 1e38
    assert torch.isfinite(soup.mean([a, b], [1, 1])["model_state_dict"]["decoder.norm.weight"]).all()
    with pytest.raises(ValueError, match="The mean holds values that are not finite, in decoder.norm.weight"):
        soup.mean([a, b], [1e308, 1e300])
