"""What makes training fast changes nothing of what is trained: dropout, recomputation, compiled parts, batch size."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers

from nanocaption.base.settings import load_settings
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.loader import make_loader
from nanocaption.data.packing import find_places
from nanocaption.model.decoder import Dropout
from nanocaption.model.encoder import scratch_image_spec
from nanocaption.runs.resume import Start
from nanocaption.train import batch_size, profile
from nanocaption.train.losses import caption_objective
from nanocaption.train.setup import prepare
from nanocaption.train.step import accumulate_gradients
from nanocaption.train.steps import steps_of_epoch
from tests.unit.model.test_model import PAD, captions, pictures, tiny


def test_dropout_drops_its_share_keeps_the_mean_and_follows_the_generator():
    x, layer = torch.full((1001, 257), 3.0), Dropout(0.3)
    torch.manual_seed(5)
    dropped = layer(x)
    zero = dropped == 0
    assert zero.float().mean().item() == pytest.approx(0.3, abs=0.005)  # 5 standard deviations
    assert dropped[~zero].unique().item() == pytest.approx(3 / 0.7, rel=1e-4) and dropped.mean().item() == (
        pytest.approx(3, abs=0.03)
    )
    # Neighbours, rows and columns are independent: four elements share one random number.
    pairs = zero.float() - 0.3
    for a, b in ((pairs[:, :-1], pairs[:, 1:]), (pairs[:-1], pairs[1:]), (pairs[:, :-2], pairs[:, 2:])):
        assert abs((a * b).mean().item()) < 0.002
    torch.manual_seed(5)
    assert torch.equal(layer(x), dropped) and not torch.equal(layer(x), dropped)
    assert torch.equal(layer.eval()(x), x)


def test_dropouts_gradient_is_its_mask():
    x, layer = torch.ones(50, 8, requires_grad=True), Dropout(0.5)
    out = layer(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def gradients(model, images, tokens) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    places = find_places(tokens, PAD, None, len(images))
    model.decoder.logits(model.hidden(images, tokens, places)).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model, images) -> int:
    """What the encoder keeps for its backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        model.encode(images)
    return sum(sizes)


@pytest.mark.parametrize("kind", ["scratch", "vit"])
def test_recomputed_blocks_have_the_same_gradients_and_keep_less(kind, tmp_path):
    if kind == "vit":
        vit = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=16,
            patch_size=4,
        )  # fmt: skip
        spec = {**scratch_image_spec(16)}
        model = tiny(tower={"encoder_config": vit.to_dict(), "image_spec": spec}, ENCODER_MODEL_NAME="vit")
    else:
        model = tiny(VIT_LAYERS=4)
    model.train()
    images, tokens = pictures(2), captions(2)
    before, kept = gradients(model, images, tokens), kept_bytes(model, images)
    model.encoder.checkpoint_blocks()
    after = gradients(model, images, tokens)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert kept_bytes(model, images) < 0.6 * kept


# --- BATCH_SIZE = "auto" ---


@pytest.mark.parametrize(
    ("room", "most", "expected"), [(0, 9, 0), (1, 9, 1), (5, 9, 4), (8, 9, 8), (9, 9, 9), (99, 1, 1)]
)
def test_the_largest_batch_that_fits_is_found_by_doubling(room, most, expected):
    asked = []
    assert batch_size.largest(lambda number: asked.append(number) or number <= room, most) == expected
    assert len(asked) <= 5 and max(asked) <= most


def test_the_number_found_is_one_that_the_settings_allow_and_counts_weights(flags, tmp_path):
    settings = load_settings([*flags, "--batch-size", "auto"])
    images = ImageTextDataset([{"file_name": "a"}] * 24, tmp_path, [[[1, 5, 2]]] * 24, {})
    found = batch_size.choose(settings, None, images, torch.device("cpu"))
    load_settings([*flags, "--batch-size", str(found)])
    many = ImageTextDataset([{"file_name": "a"}] * 4000, tmp_path, [[[1, 5, 2]]] * 4000, {})
    assert batch_size.choose(settings, None, many, torch.device("cpu")) == 40
    many.weights = [0.5] * 4000
    assert batch_size.choose(settings, None, many, torch.device("cpu")) == 20


def test_where_nothing_fits_the_error_says_what_to_change(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "_fits", lambda *_: False)
    settings = load_settings([*flags, "--batch-size", "auto"])
    images = ImageTextDataset([{"file_name": "a"}], tmp_path, [[[1, 5, 2]] * 5], {})
    with pytest.raises(SystemExit, match="GRADIENT_CHECKPOINTING"):
        batch_size.choose(settings, None, images, torch.device("cuda"))


# --- PROFILE ---


def test_the_profile_counts_the_fused_attention_as_plain_products():
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    with profile.flop_counter() as fused:
        mixed = F.scaled_dot_product_attention(q, k, v)
    with profile.flop_counter() as plain:
        (q @ k.transpose(-1, -2)).softmax(-1) @ v
    assert fused.get_total_flops() == plain.get_total_flops() == 2 * 2 * (2 * 3 * 5 * 5 * 8)
    with profile.flop_counter() as backward:
        mixed.sum().backward()
    assert backward.get_total_flops() == 2.5 * fused.get_total_flops()  # one of the five makes the weights again


def test_a_profiled_step_is_that_of_training_and_marks_its_parts(flags, tmp_path):
    """Otherwise the profile would be one of something else."""
    settings = load_settings([*flags, "--decoder-dropout", "0"])
    run, _ = prepare(Start(settings), tmp_path, torch.device("cpu"), SimpleNamespace(stop=0, save=False))
    groups = steps_of_epoch(settings, run.train_set, 0)[0]
    batches = list(make_loader(run.train_set, groups, 0))
    run.model.train()

    def gradients_now(*mark) -> dict[str, torch.Tensor]:
        accumulate_gradients(run, caption_objective(), batches, None, *mark)
        return {name: p.grad.clone() for name, p in run.model.named_parameters()}

    expected = gradients_now()
    clock = profile.Clock(run.device)
    with profile.watched(run.model, clock):
        found = gradients_now(clock.mark)
    run.log.close()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert list(clock.steps[0]) == list(profile.PARTS)[2:-2]
    gradients_now()
    assert len(clock.steps) == 1 and clock.steps[0]["encoder"] == clock.medians()["encoder"]  # only inside


# --- COMPILE ---


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_compiled_parts_have_the_same_gradients_and_few_compilations():
    from torch._dynamo.utils import counters

    plain, compiled = tiny(), tiny()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_parts()
    counters.clear()
    graphs = []
    for seed in range(8):
        torch.manual_seed(seed)
        images, tokens = pictures(2 + seed % 3), captions(2 + seed % 3)
        tokens[0, 3 + seed % 4 :] = PAD
        expected, found = gradients(plain, images, tokens), gradients(compiled, images, tokens)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[4], graphs
