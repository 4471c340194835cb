"""log p(caption | image): packed with shared beginnings = a teacher-forced pass for each pair."""

import pytest
import torch

from nanocaption.data.tokenizer import END, PAD, START
from nanocaption.model.likelihood import log_likelihoods, pack_captions
from tests.unit.model.test_model import pictures, tiny

CAPTIONS = [
    [START, 5, 6, 7, END], [START, 5, 6, END], [START, 9, END], [START, 5, 6, 7, END], [START, END],
    [START, 5, 6, 7, 8, 9, 10, 11, 12],  # cut: no <end>
    [START, 9, 5, 6, END], [START, 5, 8, END],
]  # fmt: skip


@torch.no_grad()
def one_by_one(model, image, ids) -> float:
    logits = model(image, torch.tensor([ids[:-1]]))[0]
    return float(logits.float().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum())


@pytest.mark.parametrize("at_once", [3, 100])
def test_packed_captions_have_the_likelihood_of_a_pass_for_each_pair(at_once):
    model, images = tiny(), pictures(2)
    packed = pack_captions(CAPTIONS, PAD, at_once)
    assert len(packed) == (3 if at_once == 3 else 1)
    for n in range(2):
        found = log_likelihoods(model, images[n : n + 1], packed)
        expected = torch.tensor([one_by_one(model, images[n : n + 1], ids) for ids in CAPTIONS])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found[0] == found[3]  # said twice
        features = model.encode(images[n : n + 1])
        torch.testing.assert_close(log_likelihoods(model, features, packed), found)
    other = log_likelihoods(model, images[:1], pack_captions(CAPTIONS[::-1], PAD, at_once))
    torch.testing.assert_close(other.flip(0), log_likelihoods(model, images[:1], packed), rtol=1e-5, atol=1e-5)
    assert (found - log_likelihoods(model, images[:1], packed)).abs().max() > 0.01  # another image, other numbers


def test_a_beginning_is_computed_once():
    (packed,) = pack_captions(CAPTIONS, PAD)
    beginnings = {tuple(ids[:length]) for ids in CAPTIONS for length in range(1, len(ids))}
    assert len(packed.places.in_captions) == len(beginnings) < len(packed.target) == sum(len(c) - 1 for c in CAPTIONS)
    (apart,) = pack_captions([[START, 5, END], [START, 6, END]], PAD)
    assert len(apart.places.in_captions) == 3  # <start> is shared


def test_without_a_memory_the_states_are_of_the_text_alone():
    model = tiny()
    (packed,) = pack_captions(CAPTIONS, PAD)
    one, two = (model.decoder(packed.tokens, model.memory(pictures(2)[n : n + 1]), packed.places) for n in (0, 1))
    assert (one - two).abs().max() > 0.01
    text = model.decoder(packed.tokens, None, packed.places)
    assert text.shape == one.shape and (text - one).abs().max() > 0.01
