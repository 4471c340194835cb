"""The captioner's equivalences: grouped = one by one, cached = in full, batched = single, causal, padding unseen.

In float64, with weights large enough that every path matters; each equality stands beside a case that must differ.
"""

import pytest
import torch
import torch.nn.functional as F

from nanocaption.base.settings import ModelSettings, load_settings
from nanocaption.data.packing import find_places
from nanocaption.model import captioner
from nanocaption.model.captioner import ImageToTextModel, build_model
from nanocaption.model.decoder import _ROOM

V, T, PAD, START = 23, 7, 0, 1


def tiny(
    scale: float = 0.4, vocab_size: int = V, dropout: float = 0.0, tower: dict | None = None, **changes
) -> ImageToTextModel:
    """16 patches, 2 layers, random weights of standard deviation `scale` (None: as initialised), float64, eval.

    changes: of ModelSettings.
    """
    sizes = {
        "DECODER_EMBED_DIM": 16, "DECODER_HEADS": 2, "DECODER_LAYERS": 2, "DECODER_FF_DIM": 32, "MAX_SEQ_LEN": 9,
        "IMAGE_SIZE": 16, "VIT_PATCH_SIZE": 4, "VIT_EMBED_DIM": 12, "VIT_LAYERS": 1, "VIT_HEADS": 2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = ModelSettings.of(load_settings([]).values | sizes | changes)
        model = ImageToTextModel(settings, vocab_size, dropout, tower)
        for parameter in model.parameters() if scale else ():
            parameter.data.normal_(std=scale)
    return model.double().eval()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(number: int) -> torch.Tensor:
    return torch.randn(number, 3, 16, 16, dtype=torch.float64, generator=rng())


def captions(number: int, length: int = T) -> torch.Tensor:
    tokens = torch.randint(4, V, (number, length), generator=rng(1))
    tokens[:, 0] = START
    return tokens


def loss_and_gradients(model, images, tokens, index):
    model.zero_grad()
    targets = captions(len(tokens)).roll(-1, 1)
    loss = F.cross_entropy(model(images, tokens, index).flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


# --- captions of one image together ---


@pytest.mark.parametrize("index", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [2, 0, 0, 0, 1, 1], [1, 1, 1, 0, 2, 2]])
def test_grouped_captions_have_the_loss_and_gradients_of_captions_with_images_of_their_own(index):
    model, images, tokens = tiny(), pictures(3), captions(6)
    index = torch.tensor(index)
    loss, gradients = loss_and_gradients(model, images, tokens, index)
    expected_loss, expected = loss_and_gradients(model, images[index], tokens, None)
    assert close(loss, expected_loss)
    assert all(close(gradients[name], expected[name]) for name in expected)
    wrong_loss, wrong = loss_and_gradients(model, images, tokens, index.roll(1))
    assert not close(wrong_loss, loss)
    assert not close(wrong["encoder.norm.weight"], gradients["encoder.norm.weight"])


@torch.no_grad()
def test_captions_in_any_order_give_the_logits_of_captions_image_after_image():
    model, images, tokens = tiny(), pictures(3), captions(6)
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    in_order = model(images, tokens, index)
    assert close(model(images, tokens[order], index[order]), in_order[order])
    assert not close(model(images, tokens, index[order]), in_order)


@torch.no_grad()
def test_batched_is_single():
    model, images, tokens = tiny(), pictures(3), captions(3)
    together = model(images, tokens)
    for i in range(3):
        assert close(model(images[i : i + 1], tokens[i : i + 1])[0], together[i])
    assert not close(together[0], together[1])


# --- what a token sees ---


@torch.no_grad()
def test_a_token_sees_itself_and_all_before_and_nothing_after():
    model, images, tokens = tiny(), pictures(2), captions(2)
    before = model(images, tokens)
    for position in range(T):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] - 4 + 1) % (V - 4) + 4
        after = model(images, changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert ((after[:, position:] - before[:, position:]).abs().amax((0, 2)) > 1e-6).all()


@torch.no_grad()
def test_order_of_the_tokens_matters():
    model, images, tokens = tiny(), pictures(1), captions(1)
    swapped = tokens[:, [0, 2, 1, 3, 4, 5, 6]]
    assert not close(model(images, swapped)[:, -1], model(images, tokens)[:, -1])


@torch.no_grad()
def test_padding_changes_no_real_token():
    model, images, tokens = tiny(), pictures(2), captions(2)
    padded = F.pad(tokens, (0, 2), value=PAD)
    padded[1, 4:] = PAD
    logits = model(images, padded)
    alone = model(images, tokens)
    assert close(logits[0, :T], alone[0])
    assert close(logits[1, :4], alone[1, :4])
    assert not logits[0, T:].any() and not logits[1, 4:].any()  # padding is never computed
    real = padded != PAD
    places = find_places(padded, PAD, None, 2)
    assert close(model.decoder.logits(model.hidden(images, padded, places)), logits[real])


def test_padding_adds_nothing_to_the_gradients():
    model, images = tiny(), pictures(2)
    tokens, index = captions(4), torch.tensor([0, 0, 0, 1])
    tokens[1, 3:] = PAD
    tokens[3, 5:] = PAD

    def gradients(tokens):
        model.zero_grad()
        logits = model(images, tokens, index)
        logits[tokens != PAD].square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    short, padded = gradients(tokens), gradients(F.pad(tokens, (0, 2), value=PAD))
    assert all(close(a, b) for a, b in zip(short, padded, strict=True))
    tokens[1, 3] = 5
    assert not all(close(a, b) for a, b in zip(short, gradients(tokens), strict=True))


@torch.no_grad()
def test_an_image_without_captions_changes_nothing():
    model, images, tokens = tiny(), pictures(3), captions(3)
    with_spare = model(images, tokens, torch.tensor([0, 0, 2]))
    assert close(with_spare, model(images[[0, 2]], tokens, torch.tensor([0, 0, 1])))


def test_every_patch_and_every_pixel_region_reaches_every_token():
    model, tokens = tiny(), captions(1)
    features = torch.randn(1, 16, 12, dtype=torch.float64, generator=rng(), requires_grad=True)
    logits = model(features, tokens)
    for position in range(T):
        (gradient,) = torch.autograd.grad(logits[0, position, 5], features, retain_graph=True)
        assert (gradient.norm(dim=-1) > 1e-9).all()
    images = pictures(1).requires_grad_()
    model(images, tokens)[0, -1, 5].backward()
    regions = images.grad.abs().sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2))
    assert regions.shape == (1, 4, 4) and (regions > 1e-9).all()


@torch.no_grad()
def test_features_serve_in_place_of_the_images():
    model, images, tokens = tiny(), pictures(2), captions(2)
    assert torch.equal(model(model.encode(images), tokens), model(images, tokens))
    half = model.float().encode(images.float()).half()  # as the feature cache keeps them
    assert model(half, tokens).dtype == torch.float32


def test_a_cpu_encodes_few_images_at_a_time_without_gradients_and_finds_the_same(monkeypatch):
    model, images, sizes = tiny(), pictures(5), []
    model.encoder.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    whole = model.encode(images)
    monkeypatch.setattr(captioner, "_CPU_PATCHES", 2 * 16 + 3)  # 16 patches each: two images at a time
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images), whole)
        monkeypatch.setattr(captioner, "_CPU_PATCHES", 3)  # not one whole image: then one at a time
        torch.testing.assert_close(model.encode(images), whole)
        model.encode_in_parts = False
        model.encode(images)
    assert sizes == [5, 2, 2, 1, 1, 1, 1, 1, 1, 5]


# --- generation ---


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cached_step_gives_the_logits_of_the_full_forward_pass(beams):
    model, images = tiny(), pictures(2)
    step = model.start_decoding(images)
    rows = 2 * beams
    sequences = torch.full((rows, 1), START)
    parents = None
    for length in range(1, 9):
        logits = step(sequences[:, -1], parents)
        full = model(images, sequences, torch.arange(2).repeat_interleave(beams))[:, -1]
        assert close(logits, full), f"token {length}"
        # each row continues any row of its image, as a beam search makes it
        parents = torch.randint(beams, (2, beams), generator=rng(length)).add(torch.arange(2)[:, None] * beams)
        parents = parents.flatten()
        following = torch.randint(4, V, (rows, 1), generator=rng(90 + length))
        wrong = torch.cat([sequences, following], 1)
        sequences = torch.cat([sequences[parents], following], 1)
    if beams > 1:  # without following the parents the logits would be others
        assert not close(model(images, wrong, torch.arange(2).repeat_interleave(beams))[:, -1][0], full[0])


@torch.no_grad()
@pytest.mark.parametrize("left", [[1, 2], [0, 2], [2]])
def test_images_left_out_of_the_steps_change_nothing_for_the_others(left):
    model, images, beams = tiny(), pictures(3), 2
    all_of_them, fewer = model.start_decoding(images), model.start_decoding(images)
    tokens = torch.randint(4, V, (T, 3 * beams), generator=rng(1))
    parents = torch.tensor([1, 0, 2, 2, 5, 4])  # of each image, in other orders
    rows = torch.tensor([image * beams + beam for image in left for beam in range(beams)])
    for position in range(3):
        step_parents = parents if position else None
        assert close(all_of_them(tokens[position], step_parents), fewer(tokens[position], step_parents))
    expected = all_of_them(tokens[3], parents)
    logits = fewer(tokens[3][rows], parents[rows])
    assert close(logits, expected[rows])
    assert not close(expected[:beams], expected[beams : 2 * beams])
    assert close(fewer(tokens[4][rows]), all_of_them(tokens[4])[rows])


@torch.no_grad()
def test_steps_beyond_the_caches_first_room_are_those_of_the_full_pass():
    length = 2 * _ROOM + 2
    model, image = tiny(MAX_SEQ_LEN=length), pictures(1)
    step = model.start_decoding(image)
    tokens = torch.randint(4, V, (2, length), generator=rng(3))
    full = model(image, tokens, torch.zeros(2, dtype=torch.long))
    for position in range(length):
        assert close(step(tokens[:, position]), full[:, position]), f"token {position}"


@torch.no_grad()
def test_steps_of_a_batch_are_those_of_single_images():
    model, images, tokens = tiny(), pictures(3), captions(3)
    together = model.start_decoding(images)
    alone = [model.start_decoding(images[i : i + 1]) for i in range(3)]
    for position in range(T):
        logits = together(tokens[:, position], None)
        for i in range(3):
            assert close(alone[i](tokens[i : i + 1, position], None)[0], logits[i])


def test_generation_keeps_no_graph():
    step = tiny().start_decoding(pictures(1))
    assert not step(torch.tensor([START]), None).requires_grad


# --- limits ---


def test_more_tokens_than_the_decoder_holds_are_refused():
    model, images = tiny(), pictures(1)
    assert model(images, captions(1, 9)).shape == (1, 9, V)
    with pytest.raises(ValueError, match="10 tokens: the decoder holds at most 9"):
        model(images, captions(1, 10))
    step = model.start_decoding(images)
    for _ in range(9):
        step(torch.tensor([5]), None)
    with pytest.raises(ValueError, match="Token 10: the decoder holds at most 9"):
        step(torch.tensor([5]), None)


def test_captions_without_matching_images_are_refused():
    with pytest.raises(ValueError, match="4 captions but images for 2"):
        tiny()(pictures(2), captions(4))
    with pytest.raises(ValueError, match="4 captions but images for 3"):
        tiny()(pictures(2), captions(4), torch.tensor([0, 0, 1]))


# --- parameters ---


@torch.no_grad()
def test_the_output_map_is_the_token_embedding():
    model, images, tokens = tiny(), pictures(1), captions(1)
    assert sum(p.numel() == V * 16 for p in model.parameters()) == 1
    before = model(images, tokens)
    unused = next(i for i in range(4, V) if i not in tokens)
    model.decoder.embedding.weight[unused] += 1.0
    changed = (model(images, tokens) - before).abs().amax((0, 1)) > 1e-9
    assert changed.nonzero().flatten().tolist() == [unused]


def test_documented_initialisation():
    model = tiny(
        scale=0.0, vocab_size=500, DECODER_EMBED_DIM=128, DECODER_FF_DIM=256, DECODER_LAYERS=3, VIT_EMBED_DIM=64,
        MAX_SEQ_LEN=40,
    )  # fmt: skip
    writers = 9  # self, cross and feed-forward of three layers
    for layer in model.decoder.layers:
        for linear in (layer.self_qkv, layer.cross_q, layer.cross_kv, layer.feedforward[0]):
            assert linear.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
        for linear in (layer.self_out, layer.cross_out, layer.feedforward[2]):
            assert linear.weight.std().item() == pytest.approx((linear.in_features * writers) ** -0.5, rel=0.05)
    for embedding in (model.decoder.embedding, model.decoder.position_embedding):
        assert embedding.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "stem" not in name:
            assert not parameter.any(), name
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
    for linear in (model.memory_projection, model.encoder.blocks[0].qkv):
        out, into = linear.weight.shape
        bound = (6 / (into + out)) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
    images, tokens = pictures(4), captions(4)
    loss = F.cross_entropy(model(images, tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(torch.tensor(500.0).log().item() + 0.5, abs=0.7)  # logits of about unit size


def test_dropout_acts_in_training_only():
    model, images, tokens = tiny(dropout=0.5), pictures(1), captions(1)
    assert torch.equal(model(images, tokens), model(images, tokens))
    model.train()
    assert not close(model(images, tokens), model(images, tokens))


def test_a_frozen_encoder_gets_no_gradient():
    for frozen in (True, False):
        model = tiny(FREEZE_ENCODER=frozen).train()
        model(pictures(1), captions(1)).sum().backward()
        assert all((p.grad is None) is frozen for p in model.encoder.parameters())
        assert model.encoder.training is not frozen
        assert all(p.grad is not None for p in model.decoder.parameters())


def test_build_follows_the_settings():
    argv = "--decoder-embed-dim 24 --decoder-heads 3 --decoder-layers 2 --decoder-ff-dim 40 --max-seq-len 11"
    argv += " --image-size 32 --vit-patch-size 16 --vit-embed-dim 20 --vit-heads 5 --vit-layers 2 --vit-stem patch"
    model = build_model(dict(load_settings([*argv.split(), "--decoder-dropout", "0.3"]).values), 77)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["decoder.embedding.weight"] == (77, 24)
    assert shapes["decoder.position_embedding.weight"] == (11, 24)
    assert shapes["decoder.layers.1.feedforward.0.weight"] == (40, 24)
    assert shapes["encoder.stem.weight"] == (20, 3, 16, 16) and shapes["encoder.position"] == (1, 4, 20)
    assert (len(model.decoder.layers), model.decoder.layers[0].heads, len(model.encoder.blocks)) == (2, 3, 2)
    assert model.encoder.blocks[0].heads == 5 and model.decoder.layers[0].dropout.p == 0.3
    assert model.arguments() == {}
