"""Choosing tokens: beam search against trying everything and against transformers, greedy, sampling."""

import itertools

import pytest
import torch

from nanocaption.model import decode
from nanocaption.model.options import Options

START, END = 0, 1


def logits_of(seed: int, image: int, prefix: tuple[int, ...], vocabulary: int) -> torch.Tensor:
    """A random but fixed distribution after every prefix."""
    number = hash((seed, image, prefix)) % 2**31  # of integers: the same in every process
    return 2 * torch.randn(vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


def toy_step(seed: int, images: list[int], vocabulary: int):
    """A step function that, as the contract says, follows parents and keeps rows with their image."""
    rows: list[tuple[int, tuple[int, ...]]] = []  # image and tokens of each

    def step(tokens, parents=None):
        nonlocal rows
        rows = rows or [(image, ()) for image in images for _ in range(len(tokens) // len(images))]
        if parents is not None:
            rows = [rows[parent] for parent in parents.tolist()]
        rows = [(image, (*prefix, token)) for (image, prefix), token in zip(rows, tokens.tolist(), strict=True)]
        return torch.stack([logits_of(seed, image, prefix, vocabulary) for image, prefix in rows])

    return step


def log_prob_of(seed: int, image: int, ids: list[int], ended: bool, vocabulary: int) -> float:
    total, prefix = 0.0, (START,)
    for token in [*ids, *([END] if ended else [])]:
        total += logits_of(seed, image, prefix, vocabulary).log_softmax(-1)[token].item()
        prefix = (*prefix, token)
    return total


def every_caption(seed: int, image: int, vocabulary: int, max_length: int, penalty: float):
    """(score, ids) of all captions there are, best first."""
    words = [token for token in range(vocabulary) if token != END]
    found = []
    for length in range(max_length):
        for ids in itertools.product(words, repeat=length):
            found.append((log_prob_of(seed, image, ids, True, vocabulary) / (length + 1) ** penalty, list(ids)))
    for ids in itertools.product(words, repeat=max_length):  # no end in time: counts as it stands
        found.append((log_prob_of(seed, image, ids, False, vocabulary) / max_length**penalty, list(ids)))
    return sorted(found, reverse=True)


def ids(captions):
    return [[caption.ids for caption in found] for found in captions]


LIMITS = {"start_id": START, "end_id": END}


def run(step, images, options, seeds=None, **limits):
    return decode.decode(step, images, options, decode.Limits(**limits), seeds)


def chosen(step, images, *, start_id, end_id, max_length, seeds=None, groups=1, **options):
    limits = {"start_id": start_id, "end_id": end_id, "max_length": max_length}
    return run(step, images, Options(beam_groups=groups, **options), seeds, **limits)


def beam_search(step, images, beams, **how):
    return chosen(step, images, beam_size=beams, **how)


def greedy(step, images, **how):
    return chosen(step, images, **how)


def sample(step, images, captions, **how):
    return chosen(step, images, samples=captions, **how)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_beam_of_full_width_finds_what_trying_everything_finds(seed, penalty):
    expected = every_caption(seed, 0, vocabulary=4, max_length=3, penalty=penalty)
    found = beam_search(
        toy_step(seed, [0], 4), 1, len(expected), max_length=3, length_penalty=penalty, **LIMITS
    )[0]  # fmt: skip
    assert [caption.ids for caption in found] == [ids for _, ids in expected]
    assert [c.score for c in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_length_penalty_changes_the_order_towards_longer_captions():
    def mean_length(penalty):
        found = [beam_search(toy_step(s, [0], 6), 1, 4, max_length=6, length_penalty=penalty, **LIMITS)[0][0]
                 for s in range(12)]  # fmt: skip
        return sum(len(caption.ids) for caption in found)

    assert mean_length(0.0) < mean_length(1.0) < mean_length(3.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beams, penalty", [(2, 0.0), (3, 1.0), (4, 0.7), (3, 2.0)])
def test_batched_beams_are_those_of_single_images(seed, beams, penalty):
    options = {"max_length": 6, "length_penalty": penalty, **LIMITS}
    together = beam_search(toy_step(seed, [0, 1, 2, 3], 5), 4, beams, **options)
    alone = [beam_search(toy_step(seed, [image], 5), 1, beams, **options)[0] for image in range(4)]
    assert ids(together) == ids(alone)
    assert ids(together)[0] != ids(together)[1]


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy_and_greedy_takes_the_likeliest_token(seed):
    options = {"max_length": 6, **LIMITS}
    found = greedy(toy_step(seed, [0, 1], 6), 2, **options)
    assert beam_search(toy_step(seed, [0, 1], 6), 2, 1, **options) == found
    for image in range(2):
        (caption,) = found[image]
        prefix = (START,)
        for token in caption.ids:
            assert logits_of(seed, image, prefix, 6).argmax() == token
            prefix = (*prefix, token)
        assert len(caption.ids) == 6 or logits_of(seed, image, prefix, 6).argmax() == END


@pytest.mark.parametrize("beams", [1, 2])
def test_images_that_are_finished_are_left_out_of_the_further_steps(beams):
    inner, rows = toy_step(2, list(range(10)), 6), []

    def step(tokens, parents=None):
        rows.append(len(tokens))
        return inner(tokens, parents)

    found = beam_search(step, 10, beams, max_length=12, **LIMITS)
    assert rows[0] == 10 * beams and rows[-1] < rows[0] and rows == sorted(rows, reverse=True)
    lengths = [len(captions[0].ids) for captions in found]
    assert len(rows) > min(lengths) + 3  # some went on long after others were finished
    alone = [beam_search(toy_step(2, [image], 6), 1, beams, max_length=12, **LIMITS)[0] for image in range(10)]
    assert ids(found) == ids(alone)


@pytest.mark.parametrize("search", ["beam", "greedy", "sample"])
def test_log_prob_is_that_of_scoring_the_caption_again(search):
    for seed in range(6):
        step, options = toy_step(seed, [0, 1], 5), {"max_length": 4, **LIMITS}
        if search == "beam":
            found = beam_search(step, 2, 3, length_penalty=0.7, **options)
        elif search == "greedy":
            found = greedy(step, 2, **options)
        else:
            found = sample(step, 2, 3, temperature=1.5, top_k=4, seeds=[seed, seed + 1], **options)
        for image, captions in enumerate(found):
            assert captions == sorted(captions, key=lambda caption: -caption.score)
            for caption in captions:
                again = log_prob_of(seed, image, caption.ids, len(caption.ids) < 4, 5)
                assert caption.log_prob == pytest.approx(again, abs=1e-5)


def never_ending(tokens, parents=None):
    logits = torch.zeros(len(tokens), 5)
    logits[:, 2:] = torch.tensor([3.0, 2.0, 1.0])
    logits[:, END] = -1e4
    return logits


def test_a_caption_without_end_is_cut_at_the_limit_and_still_comes_back():
    for captions in (
        greedy(never_ending, 2, max_length=3, **LIMITS),
        beam_search(never_ending, 2, 2, max_length=3, **LIMITS),
        sample(never_ending, 2, 2, max_length=3, temperature=0.0, **LIMITS),
    ):
        assert len(captions) == 2
        assert captions[0][0].ids == [2, 2, 2]
    two = beam_search(never_ending, 1, 2, max_length=3, **LIMITS)[0]
    assert two[0].ids != two[1].ids and len(two[1].ids) == 3


def test_an_end_at_once_is_an_empty_caption():
    def ending(tokens, parents=None):
        logits = torch.full((len(tokens), 5), -20.0)
        logits[:, END] = 20.0
        return logits

    assert greedy(ending, 1, max_length=4, **LIMITS)[0][0].ids == []
    assert beam_search(ending, 1, 3, max_length=4, **LIMITS)[0][0].ids == []


def test_beams_of_one_image_are_different_captions():
    for seed in range(5):
        (found,) = ids(beam_search(toy_step(seed, [0], 5), 1, 4, max_length=5, **LIMITS))
        assert len({tuple(caption) for caption in found}) == 4


def test_a_beam_finds_likelier_captions_than_greedy():
    gains = []
    for seed in range(20):
        options = {"max_length": 5, **LIMITS}
        best = beam_search(toy_step(seed, [0], 5), 1, 4, length_penalty=0.0, **options)[0][0]
        gains.append(best.log_prob - greedy(toy_step(seed, [0], 5), 1, **options)[0][0].log_prob)
    assert sum(gains) > 1 and min(gains) > -0.7


# --- sampling ---


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_sampling_without_freedom_is_greedy(options):
    for seed in range(4):
        found = sample(toy_step(seed, [0, 1], 6), 2, 2, max_length=5, **options, **LIMITS)
        likeliest = ids(greedy(toy_step(seed, [0, 1], 6), 2, max_length=5, **LIMITS))
        assert ids(found) == [captions * 2 for captions in likeliest]


def first_tokens(number: int = 4000, seed: int = 0, **options) -> torch.Tensor:
    """Shares of the tokens 0..4 as the first of `number` sampled captions; token 1 ends."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 1.5])

    def step(tokens, parents=None):
        return logits.expand(len(tokens), -1)

    (found,) = sample(step, 1, number, max_length=1, seeds=[seed], **options, **LIMITS)
    drawn = torch.tensor([caption.ids[0] if caption.ids else END for caption in found])
    return torch.bincount(drawn, minlength=5) / number


def test_sampling_follows_the_distribution_as_changed_by_its_options():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 1.5])
    top_two = logits.clone().index_fill_(0, torch.tensor([0, 1, 3]), -torch.inf)
    for options, expected in [
        ({}, logits.softmax(-1)),
        ({"temperature": 0.5}, (logits / 0.5).softmax(-1)),
        ({"top_k": 2}, top_two.softmax(-1)),
        ({"top_k": 99}, logits.softmax(-1)),
        ({"top_p": 0.6}, top_two.softmax(-1)),  # 0.44 alone is less than 0.6, with 0.27 it is more
        ({"top_p": 0.4}, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])),
    ]:
        shares = first_tokens(**options)
        assert (shares - expected).abs().max() < 0.03, options
        assert not shares[expected == 0].any(), options


def test_seeds_make_sampling_repeatable_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    a, again, other = first_tokens(50, seed=1), first_tokens(50, seed=1), first_tokens(50, seed=2)
    assert torch.equal(a, again) and not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_seeds_sampling_follows_the_global_generator():
    def drawn() -> list:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return [sample(toy_step(0, [0, 1], 6), 2, 3, max_length=6, **LIMITS) for _ in range(2)]

    one, again = drawn(), drawn()
    assert one == again and one[0] != one[1]


def test_what_is_drawn_for_an_image_depends_on_its_seed_alone():
    def drawn(images: list[int], number: int = 3, seeds: dict[int, int] | None = None) -> dict[int, list]:
        given = [(seeds or {}).get(image, 70 + image) for image in images]
        found = sample(toy_step(0, images, 6), len(images), number, max_length=8, seeds=given, **LIMITS)
        return dict(zip(images, found, strict=True))

    together = drawn([0, 1, 2, 3, 4, 5, 6, 7])
    lengths = {max(len(caption.ids) for caption in captions) for captions in together.values()}
    assert len(lengths) > 2  # images leave the batch at different steps
    assert drawn([7, 2, 5]) == {image: together[image] for image in (7, 2, 5)}
    for image in range(8):
        assert drawn([image])[image] == together[image]
        more = drawn([image], number=5)[image]
        assert all(caption in more for caption in together[image])
    assert drawn([0, 1], seeds={1: 5})[0] == together[0] and drawn([0, 1], seeds={1: 5})[1] != together[1]


def test_the_outermost_chances_take_the_first_and_the_last_token_that_may_come():
    logits = torch.full((3, 40), -torch.inf)
    logits[:, 5:30] = torch.randn(25, generator=torch.Generator().manual_seed(0))
    almost_one = 1 - 2**-24  # the largest number below 1 that torch.rand gives
    assert decode._draw(logits, 0, 1.0, torch.tensor([0.0, almost_one, 0.5])).tolist()[:2] == [5, 29]
    for seed in range(200):  # sums that round so that this share is the whole
        some = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
        some[:, 30:] = -torch.inf
        assert decode._draw(some, 0, 1.0, torch.tensor([almost_one])).item() <= 29


# --- transformers as the second opinion ---


@pytest.fixture(scope="module")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 12, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=START, eos_token_id=END, pad_token_id=END)).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.7)
        model.transformer.wte.weight.data[END] += 1.0 * model.transformer.ln_f.bias.data  # so that captions do end
    return model


@pytest.mark.parametrize("beams, penalty", [(2, 1.0), (3, 0.0), (3, 1.0), (5, 2.0)])
def test_beam_search_agrees_with_transformers(gpt2, beams, penalty):
    from transformers import GenerationConfig

    images = list(range(2, 12))  # an "image" is a token before <start>

    def step_for(images):
        rows = None

        @torch.no_grad()
        def step(tokens, parents=None):
            nonlocal rows
            if rows is None:
                rows = torch.tensor(images).repeat_interleave(len(tokens) // len(images))[:, None]
            rows = torch.cat([rows if parents is None else rows[parents], tokens[:, None]], 1)
            return gpt2(rows).logits[:, -1]

        return step

    ours = beam_search(step_for(images), len(images), beams, max_length=8, length_penalty=penalty, **LIMITS)
    with torch.no_grad():
        prompts = torch.tensor([[image, START] for image in images])
        theirs = gpt2.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=GenerationConfig(
                num_beams=beams, num_return_sequences=beams, max_new_tokens=8, do_sample=False, early_stopping=False,
                length_penalty=penalty, eos_token_id=END, pad_token_id=END, return_dict_in_generate=True,
                output_scores=True,
            ),
        )  # fmt: skip
    sequences = [row[: row.index(END)] if END in row else row for row in theirs.sequences[:, 2:].tolist()]
    assert [caption.ids for found in ours for caption in found] == sequences
    scores = [caption.score for found in ours for caption in found]
    assert scores == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)
    assert any(len(row) < 8 for row in sequences) and len({len(row) for row in sequences}) > 2
