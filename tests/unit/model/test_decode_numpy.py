"""The searches in numpy find what torch's find: ids, order and numbers, over one random model."""

import numpy as np
import pytest
import torch

from nanocaption.model import decode, decode_numpy
from nanocaption.model.ending_tables import Tables
from nanocaption.model.endings import Endings
from nanocaption.model.options import Options
from tests.unit.model.test_decode import END, START, toy_step

LIMITS = {"start_id": START, "end_id": END, "max_length": 9}
SEARCHES = {
    "greedy": Options(),
    "greedy, bounded": Options(min_length=4, no_repeat_ngram=1),
    "beam 3": Options(beam_size=3),
    "beam 5": Options(beam_size=5, length_penalty=0.6, no_repeat_ngram=2, min_length=3),
    "more beams than tokens": Options(beam_size=12, length_penalty=2.0),
    "unigrams run out": Options(beam_size=4, no_repeat_ngram=1, min_length=8),
    "short": Options(beam_size=3, max_length=3),
    "groups": Options(beam_size=6, beam_groups=3, diversity_penalty=0.7),
    "groups of one": Options(beam_size=3, beam_groups=3, length_penalty=0.0),
    "sampled": Options(samples=4),
    "top-k": Options(samples=3, top_k=3, temperature=1.4, no_repeat_ngram=2),
    "top-p": Options(samples=3, top_p=0.7, min_length=2),
    "cold": Options(samples=2, temperature=0.0),
}


def test_bad_endings_are_avoided_as_torch_avoids_them():
    rng = np.random.default_rng(0)
    tables = Tables(rng.integers(0, 3, (3, 7)), rng.random((3, 7)) < 0.3, rng.random((3, 7)) < 0.5)
    endings = Endings(*map(torch.from_numpy, tables))
    plain = 0
    for name, options in SEARCHES.items():
        options = options._replace(no_bad_endings=True)
        own = decode.decode(toy_step(1, [0, 1], 7), 2, options, decode.Limits(**LIMITS, endings=endings), [3, 4])
        limits = decode_numpy.Limits(**LIMITS, endings=tables)
        found = decode_numpy.decode(in_numpy(toy_step(1, [0, 1], 7)), 2, options, limits, [3, 4])
        assert [[c.ids for c in row] for row in found] == [[c.ids for c in row] for row in own], name
        without = decode_numpy.decode(in_numpy(toy_step(1, [0, 1], 7)), 2, SEARCHES[name], limits, [3, 4])
        plain += [[c.ids for c in row] for row in found] != [[c.ids for c in row] for row in without]
    assert plain > 5  # the control: the tables do change captions


def in_numpy(step):
    """A step of torch as one of numpy, float32."""
    def own(tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        parents = None if parents is None else torch.from_numpy(parents)
        return step(torch.from_numpy(tokens), parents).float().numpy()

    return own


@pytest.mark.parametrize("images", [[0], [3, 1, 4, 2, 5]], ids=["one", "five"])
@pytest.mark.parametrize("name", SEARCHES)
def test_ids_and_numbers_are_torchs(name, images):
    options, seeds = SEARCHES[name], [2**40 + image for image in images]
    for seed in range(3):
        expected = decode.decode(toy_step(seed, images, 7), len(images), options, decode.Limits(**LIMITS), seeds)
        found = decode_numpy.decode(
            in_numpy(toy_step(seed, images, 7)), len(images), options, decode_numpy.Limits(**LIMITS), seeds
        )
        assert [[c.ids for c in row] for row in found] == [[c.ids for c in row] for row in expected]
        for row, own in zip(found, expected, strict=True):
            assert [c.log_prob for c in row] == pytest.approx([c.log_prob for c in own], abs=1e-4)
            assert [c.score for c in row] == pytest.approx([c.score for c in own], abs=1e-4)


def test_other_logits_or_seeds_give_others():
    """The control: what is compared above does depend on what it is given."""
    limits = decode_numpy.Limits(**LIMITS)
    steps = [in_numpy(toy_step(seed, [0], 7)) for seed in (0, 1)]
    first, second = (decode_numpy.decode(step, 1, Options(beam_size=3), limits) for step in steps)
    assert first != second
    drawn = [decode_numpy.decode(in_numpy(toy_step(0, [0], 7)), 1, Options(samples=4), limits, [seed])
             for seed in (1, 1, 2)]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]
    unseeded = [decode_numpy.decode(in_numpy(toy_step(0, [0], 7)), 1, Options(samples=4), limits) for _ in range(4)]
    assert any(one != unseeded[0] for one in unseeded)


def test_the_random_numbers_are_those_of_torch_to_the_bit():
    seeds = [0, 1, 2**31, 2**32 + 5, 2**63 - 1]
    assert np.array_equal(decode_numpy._chances(5, 3, 31, seeds), decode._chances(5, 3, 31, seeds).numpy())
    assert (decode_numpy._chances(1, 3, 31, [1]) != decode_numpy._chances(1, 3, 31, [2])).any()


@pytest.mark.parametrize("name", ["greedy", "beam 3", "groups", "sampled"])
def test_a_picture_without_numbers_has_an_empty_caption_and_the_others_theirs(name):
    options = SEARCHES[name]
    rows = options.samples or options.beam_size

    def broken(step):
        def own(tokens, parents=None):
            nonlocal place
            if parents is not None:
                place = place[parents]
            return torch.where((place == 1)[:, None], torch.nan, step(tokens, parents).double())

        place = torch.arange(2).repeat_interleave(rows)
        return own

    expected = decode.decode(broken(toy_step(0, [0, 1], 7)), 2, options, decode.Limits(**LIMITS), [1, 2])
    found = decode_numpy.decode(in_numpy(broken(toy_step(0, [0, 1], 7))), 2, options, decode_numpy.Limits(**LIMITS),
                                [1, 2])  # fmt: skip
    assert [c.ids for c in found[0]] == [c.ids for c in expected[0]]
    assert np.isnan(found[1][0].log_prob) and np.isnan(expected[1][0].log_prob) and found[1][0].ids == []


def test_options_that_cannot_be_meant_are_refused_in_the_same_words():
    for options in (Options(beam_size=0), Options(beam_size=5, beam_groups=2), Options(samples=1, top_p=0.0)):
        told = []
        for module in (decode, decode_numpy):
            with pytest.raises(ValueError) as caught:
                module.decode(None, 1, options, module.Limits(**LIMITS))
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_an_option_that_only_torch_follows_is_refused_not_ignored(monkeypatch):
    limits = decode_numpy.Limits(**LIMITS)
    assert set(Options._fields) <= {*decode_numpy._FOLLOWED}
    monkeypatch.setattr(decode_numpy, "_FOLLOWED", tuple(name for name in Options._fields if name != "min_length"))
    with pytest.raises(ValueError, match="min_length = 2: is not followed without torch"):
        decode_numpy.decode(in_numpy(toy_step(0, [0], 7)), 1, Options(min_length=2), limits)
    assert decode_numpy.decode(in_numpy(toy_step(0, [0], 7)), 1, Options(), limits)
