"""The contrastive loss: as a plain sum over pairs gives it, of a whole step however it is divided."""

import math
from types import SimpleNamespace

import pytest
import torch

from nanocaption.base.settings import load_settings
from nanocaption.data.dataset import Batch, padded
from nanocaption.data.packing import find_places
from nanocaption.data.tokenizer import PAD, START
from nanocaption.model.retrieval import SCALES, ContrastiveHead
from nanocaption.train import contrastive, setup
from nanocaption.train.losses import caption_loss, caption_objective
from nanocaption.train.step import accumulate_gradients, read_found
from tests.unit.model.test_model import pictures, tiny

IMAGES, EACH = 6, 2
WEIGHT = 10.0  # so that an error in this part of the gradient is no small one


def with_head():
    model = tiny()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.add_contrastive_head()
        for parameter in model.retrieval.parameters():
            if parameter.ndim:
                parameter.data.normal_(std=0.4)
    model.retrieval.image.dropout.p = model.retrieval.text.dropout.p = 0.0
    return model.double()


def batch_of(images: list[int]) -> Batch:
    """These of IMAGES pictures, each with EACH captions of its own; those of pictures 0 and 3 say one thing alike."""
    ids = [[START, 4 + 2 * n, 5 + 2 * n + k, 6][: 3 + k] for n in images for k in range(EACH)]
    for place, n in enumerate(images):
        if n in (0, 3):
            ids[EACH * place] = [START, 20, 21]
    tokens = torch.from_numpy(padded(ids, PAD))
    index = torch.arange(len(images)).repeat_interleave(EACH)
    places = find_places(tokens[:, :-1], PAD, index, len(images))
    batch = Batch(pictures(IMAGES)[images], tokens[:, :-1], tokens[:, 1:], index, places)
    return contrastive.named(batch, [(n, tuple(range(EACH))) for n in images])


def fake_run(model, *flags: str) -> SimpleNamespace:
    settings = load_settings(["--contrastive-weight", str(WEIGHT), "--grad-clip-value", "0", *flags])
    parameters = [p for p in model.parameters() if p.requires_grad]
    return SimpleNamespace(
        settings=settings, model=model, device=torch.device("cpu"), train_set=None,
        optimizer=torch.optim.SGD(parameters, 1.0), scaler=torch.amp.GradScaler("cpu", enabled=False),
    )  # fmt: skip


def gradients_of(divided: list[list[int]], *flags: str):
    model = with_head()
    run = fake_run(model, *flags)
    found = read_found(accumulate_gradients(run, caption_objective(), [batch_of(own) for own in divided]))
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_step_has_the_gradient_of_its_whole_loss_however_it_is_divided(kind):
    model, batch = with_head(), batch_of(list(range(IMAGES)))
    images, texts = model.image_vectors(batch.images), model.text_vectors(batch.decoder_input_tokens, batch.places)
    names = torch.arange(IMAGES)
    right = contrastive.belongs(names, names[batch.image_index], contrastive.said_by(batch.decoder_input_tokens))
    apart = contrastive.contrastive_loss(model.retrieval, images, texts, right, kind)
    (caption_loss(model, batch) / len(batch.places.in_captions) + WEIGHT * apart).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert {"retrieval.log_scale", "retrieval.image.queries", "retrieval.text.queries"} <= expected.keys()
    assert kind == "softmax" or "retrieval.bias" in expected
    for divided in ([[0, 1, 2, 3, 4, 5]], [[0, 1], [2, 3], [4, 5]], [[5], [0, 1, 2, 3, 4]]):
        found, gradients = gradients_of(divided, "--contrastive-loss", kind)
        assert found.contrastive == pytest.approx(apart.item(), rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    # The control: the mean of the losses of the parts is another loss.
    _, parts = gradients_of([[0, 1, 2]], "--contrastive-loss", kind)
    name = "retrieval.image.queries"
    assert (parts[name] - expected[name]).abs().max() > 1e-3


def test_the_losses_are_those_of_a_plain_double_loop():
    torch.manual_seed(0)
    head = ContrastiveHead(8, 8)
    head.bias.data.fill_(0.3)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 5), dim=-1) for n in (3, 7))
    owner = [0, 0, 1, 1, 1, 2, 2]
    right = torch.tensor([[o == n for o in owner] for n in range(3)])
    logits = head.scale().item() * (images @ texts.T)
    rows = [-logits[n].log_softmax(0)[right[n]].mean() for n in range(3)]
    columns = [-logits[:, c].log_softmax(0)[owner[c]] for c in range(7)]
    softmax = (sum(rows) / 3 + sum(columns) / 7) / 2
    torch.testing.assert_close(contrastive.contrastive_loss(head, images, texts, right), softmax)
    offset = 0.3 + math.log((7 / 21) / (14 / 21))
    total = sum(math.log1p(math.exp(-(1 if right[n, c] else -1) * (logits[n, c].item() + offset)))
                for n in range(3) for c in range(7))  # fmt: skip
    found = contrastive.contrastive_loss(head, images, texts, right, "sigmoid").item()
    assert found == pytest.approx(total / 7, rel=1e-5)
    # The control: an image's other captions as negatives are another loss.
    alone = torch.tensor([[c == 2 * n for c in range(7)] for n in range(3)])
    assert contrastive.contrastive_loss(head, images, texts, alone).item() != pytest.approx(softmax.item(), rel=0.01)


def test_all_captions_of_an_image_and_what_says_the_same_belong_to_it():
    batch = batch_of(list(range(IMAGES)))
    said = contrastive.said_by(batch.decoder_input_tokens)
    names = torch.arange(IMAGES)
    right = contrastive.belongs(names, names[batch.image_index], said)
    expected = torch.zeros(IMAGES, IMAGES * EACH, dtype=torch.bool)
    for n in range(IMAGES):
        expected[n, EACH * n : EACH * (n + 1)] = True
    expected[0, EACH * 3] = expected[3, 0] = True  # they say the same
    assert torch.equal(right, expected)
    longer = torch.nn.functional.pad(batch.decoder_input_tokens, (0, 3))
    assert torch.equal(contrastive.said_by(longer), said) and len(said.unique()) == IMAGES * EACH - 1
    twice = contrastive.belongs(torch.tensor([4, 4]), torch.tensor([4, 4, 4]), torch.tensor([1, 2, 3]))
    assert twice.all()  # an image whose captions came in two groups


def test_the_scale_is_kept_within_its_bounds_and_comes_back_from_beyond_them():
    head = ContrastiveHead(8, 8)
    assert 1 / head.scale().item() == pytest.approx(0.07)
    head.log_scale.data.fill_(9.0)
    assert head.scale().item() == pytest.approx(SCALES[1], rel=1e-5)
    head.scale().backward()
    assert head.log_scale.grad > 0  # so that it can fall again
    head.clamp()
    assert head.log_scale.item() == pytest.approx(math.log(SCALES[1]))


def test_vectors_are_of_length_one_and_padding_is_not_seen():
    model, batch = with_head().float(), batch_of([0, 1, 2])
    texts = model.text_vectors(batch.decoder_input_tokens, batch.places)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(6))
    one = torch.nn.functional.pad(batch.decoder_input_tokens[:1], (0, 4), value=PAD)
    padded_more = model.text_vectors(one, find_places(one, PAD, None, 1))
    torch.testing.assert_close(padded_more[0], texts[0], rtol=1e-4, atol=1e-5)
    assert (texts[0] - texts[2]).abs().max() > 1e-3


@pytest.mark.parametrize(("flags", "told"), [
    (["--objective", "scst", "--contrastive-weight", "0.5"], "goes with OBJECTIVE = 'xe'"),
    (["--objective", "contrastive", "--fsdp"], "FSDP does not go with a contrastive head"),
    (["--contrastive-weight", "0.5", "--batch-size", "auto"], "BATCH_SIZE = 'auto'"),
    (["--contrastive-weight", "-1"], "CONTRASTIVE_WEIGHT = -1.0: must be 0 or more"),
    (["--k-test", "0"], "K_TEST = 0: must be 1 or more"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_told(flags, told):
    with pytest.raises(SystemExit, match=told):
        load_settings(flags)


def test_a_head_alone_needs_a_captioner():
    with pytest.raises(SystemExit, match="--init-checkpoint-path"):
        setup.find_start(load_settings(["--objective", "contrastive"]))
