"""The plain ViT in a few lines is transformers' own, to the bit: features, blocks' outputs, gradients, names."""

import pytest
import torch
import transformers

from nanocaption.model import vit
from nanocaption.model.encoder import PretrainedTower, of_transformers, rebuild_pretrained

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96,
         "image_size": 32, "patch_size": 8}  # fmt: skip


def pair(layers: list[int] | None = None, **changes) -> tuple[PretrainedTower, PretrainedTower]:
    """(transformers' tower, ours with its weights)"""
    torch.manual_seed(0)
    theirs = transformers.ViTModel(transformers.ViTConfig(**(SIZES | changes)), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms are not what they begin as
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = rebuild_pretrained(theirs.config.to_dict(), layers)
    assert isinstance(ours.tower, vit.ViT)
    ours.tower.load_state_dict(theirs.state_dict())
    return PretrainedTower(theirs, layers), ours


def gradients(tower: PretrainedTower) -> list[torch.Tensor | None]:
    return [parameter.grad for _, parameter in sorted(tower.named_parameters())]


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "layer_norm_eps": 1e-6}], ids=["plain", "other"])
@pytest.mark.parametrize("side", [32, 48], ids=["own side", "resized"])
@pytest.mark.parametrize("part", [False, True], ids=["all", "left out"])
def test_features_and_gradients_have_the_same_bits(changes, side, part):
    pictures, patches = torch.randn(2, 3, side, side), (side // 8) ** 2
    kept = torch.stack([torch.randperm(patches)[:5].sort().values for _ in range(2)]) if part else None
    found = []
    for tower in pair([1, 3], **changes):
        features = tower.train()(pictures, kept)
        features.square().sum().backward()
        found.append((features, gradients(tower)))
    (a, a_gradients), (b, b_gradients) = found
    assert torch.equal(a, b) and len(a_gradients) == len(b_gradients) == 4 + 3 * 16 + 2 - 9 * (not changes.get(
        "qkv_bias", True))  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(a_gradients, b_gradients, strict=True))
    ours = pair([1, 3], **changes)[1]
    with torch.no_grad():
        ours.tower.layers[1].mlp.fc1.bias[0] += 1e-3
    assert not torch.equal(ours(pictures, kept), b)  # the comparison sees one weight


def test_recomputed_blocks_have_the_same_gradients():
    theirs, ours = pair()
    pictures = torch.randn(2, 3, 32, 32)
    ours.checkpoint_blocks()
    for tower in (theirs.train(), ours.train()):
        tower(pictures).square().sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(gradients(theirs), gradients(ours), strict=True))


def test_config_and_names_stay_and_an_export_gets_the_class_of_transformers():
    theirs, ours = pair()
    assert ours.config == theirs.config and list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.width, ours.patch_size) == (theirs.width, theirs.patch_size)
    back = of_transformers(ours.eval())
    assert isinstance(back, transformers.ViTModel) and not back.training and of_transformers(theirs) is theirs.tower
    pictures = torch.randn(1, 3, 32, 32)
    assert torch.equal(back(pictures).last_hidden_state, ours(pictures))


@pytest.mark.parametrize(
    "changes", [
        {"hidden_act": "quick_gelu"}, {"hidden_dropout_prob": 0.1}, {"attention_probs_dropout_prob": 0.1},
        {"image_size": [32, 32]}, {"num_channels": 1}, {"model_type": "deit"}, {"hidden_size": 50},
        {"attn_implementation": "eager"}, {"layer_norm_eps": None}, {"num_hidden_layers": True},
    ], ids=str,
)  # fmt: skip
def test_what_is_not_plain_is_left_to_transformers(changes):
    config = transformers.ViTConfig(**SIZES).to_dict()
    assert vit.is_plain(config) and not vit.is_plain(config | changes)
    assert not vit.is_plain({"model_type": "vit", **SIZES})  # what is not said, its class knows
