"""Learning rate by step, which weights decay, and an optimizer state that goes by names."""

import json

import pytest
import torch
import torch.nn.functional as F

from nanocaption.base.settings import ModelSettings, load_settings
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.train import optim

SCHEDULE = {
    "peak": 1.0, "schedule": "cosine", "warmup_steps": 10, "total_steps": 110, "steps_per_epoch": 20, "warmup_lr": 0.1,
    "min_lr": 0.2, "decay_rate": 0.5,
}  # fmt: skip


def rate(step: int, **changes) -> float:
    return optim.Schedule(**{**SCHEDULE, **changes}).rate(step)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_warmup_rises_in_a_line_to_the_peak(schedule):
    assert [rate(s, schedule=schedule) for s in (0, 5, 9, 10)] == pytest.approx([0.1, 0.55, 0.91, 1.0])
    assert rate(0, schedule=schedule, warmup_steps=0) == 1.0


@pytest.mark.parametrize(
    "schedule, steps, values",
    [
        ("constant", [10, 60, 109, 500], [1.0, 1.0, 1.0, 1.0]),
        ("linear", [10, 35, 60, 110, 500], [1.0, 0.8, 0.6, 0.2, 0.2]),
        ("cosine", [10, 35, 60, 110, 500], [1.0, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.2, 0.2]),
        ("step", [10, 19, 20, 39, 40, 59, 60, 500], [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]),
    ],
)
def test_each_schedule_has_its_values_at_the_boundaries(schedule, steps, values):
    assert [rate(step, schedule=schedule) for step in steps] == pytest.approx(values)


def test_decay_never_rises_and_edge_lengths_divide_by_nothing():
    for schedule in ("linear", "cosine", "step"):
        rates = [rate(step, schedule=schedule) for step in range(10, 130)]
        assert rates == sorted(rates, reverse=True)
    assert rate(5, warmup_steps=5, total_steps=5) == 1.0
    assert rate(6, warmup_steps=5, total_steps=5, schedule="linear") == pytest.approx(0.2)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="LR_SCHEDULE = 'exp'"):
        rate(50, schedule="exp")


def tiny() -> ImageToTextModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {
            "DECODER_EMBED_DIM": 8, "DECODER_HEADS": 2, "DECODER_LAYERS": 2, "DECODER_FF_DIM": 16, "MAX_SEQ_LEN": 6,
            "IMAGE_SIZE": 8, "VIT_PATCH_SIZE": 4, "VIT_EMBED_DIM": 8, "VIT_LAYERS": 1, "VIT_HEADS": 2,
        }  # fmt: skip
        return ImageToTextModel(ModelSettings.of(load_settings([]).values | sizes), 20)


def adamw(model, **changes):
    settings = {"weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-8, "fused": True, **changes}
    return optim.build_optimizer(model, **settings)


def groups_of(optimizer) -> dict[str, tuple[str, float]]:
    return {
        name: (group["part"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def test_matrices_decay_and_biases_norms_and_embeddings_do_not():
    model = tiny()
    groups = groups_of(adamw(model))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for name, (part, decay) in groups.items():
        assert part == ("encoder" if name.startswith("encoder.") else "decoder"), name
        spared = name.endswith("bias") or "norm" in name or "embedding" in name or "position" in name
        # the stem is Conv, GroupNorm, GELU, Conv, GroupNorm, GELU, Conv
        spared |= name in ("encoder.stem.1.weight", "encoder.stem.4.weight")
        assert decay == (0.0 if spared else 0.1), name
    assert groups["encoder.stem.0.weight"] == ("encoder", 0.1)
    assert groups["decoder.layers.0.self_qkv.weight"] == ("decoder", 0.1)
    assert groups["decoder.embedding.weight"] == ("decoder", 0.0)


def test_position_tables_and_class_tokens_of_pretrained_towers_do_not_decay():
    from transformers import CLIPVisionConfig, CLIPVisionModel, DeiTConfig, DeiTModel, Dinov2Config, Dinov2Model

    from nanocaption.model.encoder import PretrainedTower

    sizes = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    for kind, settings in ((CLIPVisionModel, CLIPVisionConfig), (DeiTModel, DeiTConfig), (Dinov2Model, Dinov2Config)):
        model = torch.nn.ModuleDict({"encoder": PretrainedTower(kind(settings(**sizes)))})
        for name, (part, decay) in groups_of(adamw(model)).items():
            matrix = name.endswith("weight") and "norm" not in name and "position" not in name
            assert part == "encoder" and decay == (0.1 if matrix else 0.0), name


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = tiny()
    model.encoder.requires_grad_(False)
    assert not any(name.startswith("encoder.") for name in groups_of(adamw(model)))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter"):
        adamw(model)


def train(model, optimizer, steps) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(3, 3, 8, 8, generator=generator)
        tokens = torch.randint(1, 20, (3, 6), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def through_a_file(saved: dict) -> dict:
    """As a checkpoint brings it back: tensors copied, the rest through JSON."""
    state = {name: {slot: tensor.clone() for slot, tensor in slots.items()} for name, slots in saved["state"].items()}
    return {"state": state, "param_groups": json.loads(json.dumps(saved["param_groups"]))}


def load(optimizer, saved):
    optimizer.load_state_dict(optim.positional_state(optimizer, saved))


def test_training_goes_on_from_a_stored_state_to_the_same_bits():
    model = tiny()
    optimizer = adamw(model)
    train(model, optimizer, range(3))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = through_a_file(optim.state_by_name(optimizer))
    uninterrupted = train(model, optimizer, range(3, 6))

    def resumed(saved) -> tuple[list[float], bool]:
        again = tiny()
        again.load_state_dict(weights)
        other = adamw(again)
        if saved is not None:
            load(other, saved)
        losses = train(again, other, range(3, 6))
        return losses, all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))

    assert resumed(saved) == (uninterrupted, True)
    assert resumed(None) != (uninterrupted, True)
    groups = [{**group, "without_state": group["param_names"]} for group in saved["param_groups"]]
    assert resumed({"state": {}, "param_groups": groups})[0] != uninterrupted


def test_state_names_its_parameters_and_is_json_ready():
    model = tiny()
    optimizer = adamw(model)
    train(model, optimizer, range(1))
    saved = optim.state_by_name(optimizer)
    assert set(saved["state"]) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert saved["state"][name]["exp_avg"].shape == parameter.shape
    expected = 0.1 * model.memory_projection.weight.grad
    assert torch.allclose(saved["state"]["memory_projection.weight"]["exp_avg"], expected)
    json.dumps(saved["param_groups"])


def test_a_state_of_other_parameters_is_refused_before_anything_changes():
    model = tiny()
    optimizer = adamw(model)
    train(model, optimizer, range(2))
    saved = through_a_file(optim.state_by_name(optimizer))
    before = json.dumps({n: s["exp_avg"].tolist() for n, s in optim.state_by_name(optimizer)["state"].items()})

    def refuse(change, match):
        broken = through_a_file(saved)
        change(broken)
        with pytest.raises(ValueError, match=match):
            load(optimizer, broken)
        now = {n: s["exp_avg"].tolist() for n, s in optim.state_by_name(optimizer)["state"].items()}
        assert json.dumps(now) == before

    def swap_names(broken):
        names = broken["param_groups"][0]["param_names"]
        names[0], names[1] = names[1], names[0]

    def drop_name(broken):
        broken["param_groups"][0]["param_names"].pop()

    def drop_group(broken):
        broken["param_groups"].pop()

    def reshape(broken):
        slots = broken["state"]["decoder.embedding.weight"]
        slots["exp_avg"] = slots["exp_avg"].T.contiguous()

    def unknown_name(broken):
        broken["state"]["decoder.other.weight"] = broken["state"].pop("decoder.embedding.weight")

    def lose_one(broken):
        del broken["state"]["decoder.embedding.weight"]

    def lose_all(broken):
        broken["state"].clear()

    def lose_a_slot(broken):
        del broken["state"]["decoder.embedding.weight"]["exp_avg_sq"]

    def other_type(broken):
        slots = broken["state"]["decoder.embedding.weight"]
        slots["exp_avg"] = slots["exp_avg"].to(torch.bfloat16)  # torch would take it and round

    refuse(lose_one, "optimizer does not fit the model: it lacks exp_avg of decoder.embedding.weight")
    refuse(lose_all, "it lacks exp_avg of .* more")
    refuse(lose_a_slot, "it lacks exp_avg_sq of decoder.embedding.weight")
    refuse(other_type, "exp_avg of decoder.embedding.weight is .* torch.bfloat16, must be .* torch.float32")
    refuse(swap_names, "other parameters")
    refuse(drop_name, "other parameters")
    refuse(drop_group, "other parameters")
    refuse(reshape, "exp_avg of decoder.embedding.weight")
    refuse(unknown_name, "has exp_avg of decoder.other.weight, which the model has not")

    def one_too_many(broken):
        broken["state"]["decoder.other.weight"] = broken["state"]["decoder.embedding.weight"]

    refuse(one_too_many, "has exp_avg of decoder.other.weight, which the model has not")
    load(optimizer, through_a_file(saved))


def test_the_optimizer_takes_the_steps_of_torchs_own():
    """Its methods are torch's without what they are wrapped in."""
    torch.manual_seed(0)
    found = []
    weights, gradients = torch.randn(40, 30), [torch.randn(40, 30) for _ in range(4)]
    for kind in (torch.optim.AdamW, optim.AdamW):
        weight = torch.nn.Parameter(weights.clone())
        optimizer = kind([{"params": [("w", weight)], "weight_decay": 0.1}], lr=1e-2, betas=(0.9, 0.98), fused=True)
        for number, gradient in enumerate(gradients):
            optimizer.zero_grad(set_to_none=True)
            weight.grad = gradient.clone()
            optimizer.step()
            if number == 1:  # what is saved goes on in the other kind
                saved = optimizer.state_dict()
                optimizer = kind([{"params": [("w", weight)], "weight_decay": 0.1}], lr=1.0, fused=True)
                optimizer.load_state_dict(saved)
        found.append((weight.detach(), optimizer.state_dict()["state"][0], optimizer.param_groups[0]["lr"]))
    (a, a_state, a_rate), (b, b_state, b_rate) = found
    assert torch.equal(a, b) and a_rate == b_rate == 1e-2
    assert all(torch.equal(a_state[slot], b_state[slot]) for slot in ("step", "exp_avg", "exp_avg_sq"))
    assert not torch.equal(a, weights) and a_state["step"] == 4
