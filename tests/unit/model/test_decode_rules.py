"""Rules of decoding: minimum length, n-gram blocking, diverse groups, ensembles, and sampling's frequencies."""

import importlib.util
import math

import pytest
import torch

from nanocaption.data import tokenizer
from nanocaption.data.packing import find_places
from nanocaption.model import captioner, decode
from nanocaption.model.options import Options
from tests.conftest import ROOT
from tests.unit.model.test_decode import (
    END,
    LIMITS,
    START,
    beam_search,
    every_caption,
    first_tokens,
    greedy,
    ids,
    log_prob_of,
    logits_of,
    never_ending,
    run,
    sample,
    toy_step,
)  # fmt: skip
from tests.unit.model.test_model import pictures, tiny

RULES = [{"min_length": 2}, {"no_repeat_ngram": 1}, {"no_repeat_ngram": 2}, {"min_length": 3, "no_repeat_ngram": 2}]


def keeps(caption: list[int], max_length: int, min_length: int = 0, no_repeat_ngram: int = 0) -> bool:
    tokens = [START, *caption]
    grams = [tuple(tokens[i : i + no_repeat_ngram]) for i in range(len(tokens) - no_repeat_ngram + 1)]
    repeats = no_repeat_ngram > 0 and len(grams) != len(set(grams))
    return not repeats and len(caption) >= min(min_length, max_length)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_of_full_width_finds_the_best_of_all_captions_that_keep_the_rules(rule, penalty):
    everything = every_caption(3, 0, vocabulary=5, max_length=4, penalty=penalty)
    expected = [(score, caption) for score, caption in everything if keeps(caption, 4, **rule)]
    assert 10 < len(expected) < len(everything)
    options = {"max_length": 4, "length_penalty": penalty, **LIMITS}
    found = beam_search(toy_step(3, [0], 5), 1, len(everything), **rule, **options)[0]
    assert [caption.ids for caption in found] == [caption for _, caption in expected]
    assert [caption.score for caption in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_way_of_choosing_keeps_the_rules_and_counts_the_models_own_probability(rule):
    broken = 0
    for seed in range(5):
        for options in (
            Options(), Options(beam_size=3), Options(beam_size=4, beam_groups=2), Options(samples=3, temperature=1.5),
        ):  # fmt: skip
            free, held = (
                run(toy_step(seed, [0, 1], 6), 2, o, max_length=6, seeds=[seed, seed + 1], **LIMITS)
                for o in (options, options._replace(**rule, length_penalty=0.7))
            )
            broken += sum(not keeps(caption.ids, 6, **rule) for found in free for caption in found)
            for image, found in enumerate(held):
                assert len(found) == max(options.beam_size, options.samples)
                for caption in found:
                    assert keeps(caption.ids, 6, **rule)
                    ended = len(caption.ids) < 6
                    own = log_prob_of(seed, image, caption.ids, ended, 6)
                    assert caption.log_prob == pytest.approx(own, abs=1e-5)
                    assert caption.score == pytest.approx(own / (len(caption.ids) + ended) ** 0.7, abs=1e-5)
    assert broken > 5  # without the rule they do break it


def test_one_beam_is_greedy_with_its_rules_and_its_length_penalty():
    rules = {"min_length": 2, "no_repeat_ngram": 2, "length_penalty": 0.5, "max_length": 6, **LIMITS}
    (found,) = greedy(toy_step(0, [0], 6), 1, **rules)
    assert beam_search(toy_step(0, [0], 6), 1, 1, **rules) == [found]
    length = len(found[0].ids) + (len(found[0].ids) < 6)
    assert found[0].score == pytest.approx(found[0].log_prob / length**0.5) and length > 1


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_where_every_token_is_forbidden_the_caption_ends_and_its_score_is_finite(beams):
    """Tokens 2, 3 and 4 once each, then nothing is left, although 6 tokens were asked for."""
    rules = {"min_length": 6, "no_repeat_ngram": 1, "max_length": 8, **LIMITS}
    for found in (
        beam_search(toy_step(1, [0], 5), 1, beams, **rules)[0],
        sample(toy_step(1, [0], 5), 1, beams, **rules)[0],
    ):
        assert len(found) == beams
        for caption in found:
            assert sorted(caption.ids) == [2, 3, 4]
            assert math.isfinite(caption.log_prob) and math.isfinite(caption.score)


def test_a_rule_that_leaves_fewer_captions_than_beams_gives_those():
    found = beam_search(never_ending, 1, 9, max_length=3, no_repeat_ngram=1, **LIMITS)[0]
    assert {tuple(caption.ids) for caption in found} >= {(2, 3, 4), (4, 3, 2)}
    assert len({tuple(caption.ids) for caption in found}) == len(found) and all(c.score > -1e6 for c in found[:6])


# --- batches ---


@pytest.mark.parametrize("groups, beams", [(1, 3), (2, 4), (3, 3)])
def test_batched_is_single_in_any_order_of_the_images(groups, beams):
    rules = {"min_length": 2, "no_repeat_ngram": 2, "groups": groups, "max_length": 6, **LIMITS}
    alone = [ids(beam_search(toy_step(2, [image], 6), 1, beams, **rules))[0] for image in range(4)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        assert ids(beam_search(toy_step(2, order, 6), 4, beams, **rules)) == [alone[image] for image in order]
    assert alone[0] != alone[1]


@pytest.mark.parametrize("options", [Options(), Options(beam_size=4), Options(beam_size=4, beam_groups=2)])
def test_with_the_cache_is_without_it(options):
    model, images = tiny(0.7), pictures(3)
    rows = None

    @torch.no_grad()
    def uncached(tokens, parents=None):
        nonlocal rows
        before = tokens[:, None][:, :0] if rows is None else rows if parents is None else rows[parents]
        rows = torch.cat([before, tokens[:, None]], 1)
        index = torch.arange(3).repeat_interleave(len(rows) // 3)
        tokens = rows + (rows == 0) * 5
        hidden = model.hidden(images, tokens, find_places(tokens, 0, index, 3))
        return model.decoder.logits(hidden).view(*rows.shape, -1)[:, -1]

    def never_zero(step):  # token 0 is padding, which a whole pass leaves out
        return lambda tokens, parents=None: step(tokens, parents).clone().index_fill_(1, torch.tensor(0), -1e4)

    limits = {"start_id": 1, "end_id": 2, "max_length": 8}
    rules = options._replace(no_repeat_ngram=2, min_length=3)
    cached = run(never_zero(model.start_decoding(images)), 3, rules, **limits)
    full = run(never_zero(uncached), 3, rules, **limits)
    other = run(never_zero(model.start_decoding(images.roll(1, 0))), 3, rules, **limits)

    def log_probs(found):
        return [caption.log_prob for captions in found for caption in captions]

    assert ids(full) == ids(cached) and log_probs(full) == pytest.approx(log_probs(cached), abs=1e-5)
    assert log_probs(other) != pytest.approx(log_probs(cached), abs=1e-2)


# --- diverse groups ---


def diverse_reference(seed, image, vocabulary, beams, groups, max_length, length_penalty, diversity):
    """Vijayakumar et al. 2016 with Hamming diversity, one image, in plain lists."""
    width = beams // groups
    searches = [{"open": [(0.0, 0.0, ())], "done": [], "settled": False} for _ in range(groups)]
    for length in range(1, max_length + 1):
        taken = [0] * vocabulary
        for search in searches:
            candidates = []
            for total, log_prob, tokens in search["open"]:
                for token, gain in enumerate(logits_of(seed, image, (START, *tokens), vocabulary).log_softmax(-1)):
                    gain = gain.item()
                    cost = diversity * taken[token]
                    candidates.append((total + gain - cost, log_prob + gain, (*tokens, token)))
            candidates = sorted(candidates, reverse=True)[: 2 * width]
            for total, log_prob, tokens in candidates[:width]:
                if (tokens[-1] == END or length == max_length) and not search["settled"]:
                    score = log_prob / length**length_penalty
                    search["done"].append((total / length**length_penalty, score, [t for t in tokens if t != END]))
            search["done"] = sorted(search["done"], reverse=True)[:width]
            search["open"] = [entry for entry in candidates if entry[2][-1] != END][:width]
            full = len(search["done"]) == width
            search["settled"] |= full and search["open"][0][0] / length**length_penalty <= search["done"][-1][0]
            for *_, tokens in () if search["settled"] else search["open"]:
                taken[tokens[-1]] += 1
        if all(search["settled"] for search in searches):
            break
    ranked = [sorted(((score, tokens) for _, score, tokens in s["done"]), reverse=True) for s in searches]
    return [entry for place in zip(*ranked, strict=True) for entry in sorted(place, reverse=True)]


@pytest.mark.parametrize("beams, groups, penalty, diversity", [(4, 2, 1.0, 0.5), (3, 3, 0.0, 1.0), (6, 3, 0.7, 3.0)])
def test_diverse_groups_agree_with_a_plain_implementation(beams, groups, penalty, diversity):
    plain, lengths = 0, set()
    for seed in range(5):
        options = {"max_length": 5, "length_penalty": penalty, "groups": groups, **LIMITS}
        found = beam_search(toy_step(seed, [0, 1], 6), 2, beams, diversity_penalty=diversity, **options)
        without = beam_search(toy_step(seed, [0, 1], 6), 2, beams, diversity_penalty=0.0, **options)
        for image in range(2):
            expected = diverse_reference(seed, image, 6, beams, groups, 5, penalty, diversity)
            assert [caption.ids for caption in found[image]] == [tokens for _, tokens in expected]
            assert [c.score for c in found[image]] == pytest.approx([score for score, _ in expected], abs=1e-5)
            plain += ids(found)[image] == ids(without)[image]
            lengths |= {len(caption.ids) for caption in found[image]}
    assert plain < 5 and len(lengths) > 1


def test_a_larger_diversity_penalty_gives_more_different_first_words():
    def different(penalty):
        found = [beam_search(toy_step(seed, [0], 8), 1, 4, max_length=4, groups=4, diversity_penalty=penalty, **LIMITS)
                 for seed in range(6)]  # fmt: skip
        return sum(len({(caption.ids or [END])[0] for caption in captions}) for (captions,) in found)

    assert different(0.0) == 6  # four equal captions each
    assert 6 < different(0.5) < different(20.0)


def test_options_that_cannot_be_meant_so_are_refused_together():
    wrong = Options(beam_size=0, length_penalty=11, max_length=-1, temperature=-1, top_p=0, top_k=-2)
    with pytest.raises(ValueError) as refused:
        run(never_ending, 1, wrong, max_length=3, **LIMITS)
    assert str(refused.value).count("must be") == 6 and "beam_size = 0: must be 1 or more" in str(refused.value)
    for options in (Options(min_length=3, max_length=2), Options(beam_size=3, beam_groups=2)):
        with pytest.raises(ValueError, match="at least 3 .min_length = 3|3 beams cannot be dealt out to 2 groups"):
            run(never_ending, 1, options, max_length=3, **LIMITS)


@pytest.mark.parametrize("options", [Options(), Options(beam_size=2), Options(samples=2)])
def test_the_most_tokens_are_those_of_the_options_or_of_the_model(options):
    for asked, longest in ((0, 5), (3, 3), (9, 5)):
        found = run(never_ending, 1, options._replace(max_length=asked), max_length=5, **LIMITS)
        assert {len(caption.ids) for caption in found[0]} == {longest}


@pytest.mark.parametrize("options", [Options(), Options(beam_size=3), Options(samples=1, top_p=0.5)])
def test_an_image_without_numbers_has_an_empty_caption_and_the_others_theirs(options):
    def half(tokens, parents=None):
        logits = toy(tokens, parents)
        logits[: len(logits) // 2] = torch.nan
        return logits

    toy = toy_step(0, [0, 1], 6)
    broken, found = run(half, 2, options, max_length=3, seeds=[5, 6], **LIMITS)
    assert broken[0].ids == [] and math.isnan(broken[0].log_prob) and math.isnan(broken[0].score)
    expected = run(toy_step(0, [0, 1], 6), 2, options, max_length=3, seeds=[5, 6], **LIMITS)[1]
    assert found == expected


def test_a_temperature_near_zero_is_greedy():
    likeliest = ids(greedy(toy_step(0, [0, 1], 6), 2, max_length=5, **LIMITS))
    for temperature in (1e-6, 1e-37, 1e-38, 1e-45, 1e-50, 5e-324):
        found = sample(toy_step(0, [0, 1], 6), 2, 1, max_length=5, temperature=temperature, seeds=[0, 1], **LIMITS)
        assert ids(found) == likeliest


def test_groups_that_do_not_divide_the_beams_are_refused():
    with pytest.raises(ValueError, match="4 beams cannot be dealt out to 3 groups"):
        beam_search(never_ending, 1, 4, groups=3, max_length=3, **LIMITS)


# --- ensembles ---


@pytest.mark.parametrize("options", [Options(), Options(beam_size=3), Options(samples=2)])
def test_an_ensemble_of_one_or_of_equals_is_the_model_itself(options):
    def found(step):
        return run(step, 2, options, max_length=5, seeds=[0, 1], **LIMITS)

    own = found(toy_step(0, [0, 1], 6))
    assert found(decode.ensemble([toy_step(0, [0, 1], 6)])) == own
    twins = found(decode.ensemble([toy_step(0, [0, 1], 6), toy_step(0, [0, 1], 6)]))
    assert ids(twins) == ids(own)
    assert [c.score for row in twins for c in row] == pytest.approx([c.score for row in own for c in row], abs=1e-5)
    assert found(decode.ensemble([toy_step(0, [0, 1], 6), toy_step(1, [0, 1], 6)])) != own


def test_an_ensemble_averages_probabilities_and_hands_parents_to_all():
    step = decode.ensemble([toy_step(0, [0], 5), toy_step(1, [0], 5)])
    prefixes = [(START,), (START,)]
    step(torch.tensor([START, START]), None)
    logits = step(torch.tensor([2, 3]), torch.tensor([1, 0]))
    for row, prefix in enumerate([(*prefixes[1], 2), (*prefixes[0], 3)]):
        mean = sum(logits_of(seed, 0, prefix, 5).softmax(-1) for seed in (0, 1)) / 2
        torch.testing.assert_close(logits[row].exp(), mean.float())
        assert not torch.allclose(logits[row].exp(), logits_of(0, 0, prefix, 5).softmax(-1).float(), atol=1e-3)


# --- sampling ---


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """How many standard deviations Pearson's statistic lies above its mean."""
    expected = probabilities * counts.sum()
    degrees = len(counts) - 1
    return ((((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5).item()


def test_sampled_captions_come_as_often_as_the_model_says():
    everything = every_caption(0, 0, vocabulary=4, max_length=3, penalty=0.0)
    probabilities = torch.tensor([score for score, _ in everything]).exp()
    assert probabilities.sum().item() == pytest.approx(1)
    names = {tuple(caption): number for number, (_, caption) in enumerate(everything)}
    number = 1500
    (found,) = sample(memoised(toy_step, 0, 4), 1, number, max_length=3, seeds=[0], **LIMITS)
    counts = torch.bincount(torch.tensor([names[tuple(caption.ids)] for caption in found]), minlength=len(names))
    likely = probabilities * number > 5  # the statistic needs counts; the rare ones together are one more cell
    counts, probabilities = (
        torch.cat([values[likely], values[~likely].sum()[None]]) for values in (counts, probabilities)
    )
    assert abs(chi_square(counts, probabilities)) < 4
    assert chi_square(counts, probabilities.roll(1)) > 50


def memoised(toy, seed: int, vocabulary: int):
    """toy_step(seed, [0], vocabulary) for thousands of rows: each prefix is looked up once."""
    known: dict[tuple[int, ...], torch.Tensor] = {}
    rows: list[tuple[int, ...]] = []

    def step(tokens, parents=None):
        nonlocal rows
        rows = [(*prefix, token) for prefix, token in zip(rows or [()] * len(tokens), tokens.tolist(), strict=True)]
        for prefix in set(rows) - set(known):
            known[prefix] = logits_of(seed, 0, prefix, vocabulary)
        return torch.stack([known[prefix] for prefix in rows])

    return step


@pytest.mark.parametrize("rule, dropped", [({"min_length": 1}, [1]), ({"no_repeat_ngram": 1}, [0])])
def test_a_forbidden_token_is_never_drawn_and_the_rest_keep_their_proportions(rule, dropped):
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 1.5])
    expected = logits.index_fill(0, torch.tensor(dropped), -torch.inf).softmax(-1)
    shares = first_tokens(seed=3, **rule)
    assert not shares[dropped].any()
    kept = expected > 0
    assert abs(chi_square(4000 * shares[kept], expected[kept])) < 4
    assert chi_square(4000 * first_tokens(seed=3)[kept], expected[kept].roll(1)) > 50


# --- transformers as the second opinion ---


@pytest.mark.parametrize("rules", [(2, 0), (3, 0), (0, 4), (2, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("beams", [1, 3])
def test_rules_agree_with_transformers(beams, rules):
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    ngram, shortest = rules
    images = torch.arange(12, 20)  # an "image" is a token before <start>, and never comes again
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=START, eos_token_id=END, pad_token_id=END)).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.6)
    model.lm_head = torch.nn.Linear(16, 20)
    model.lm_head.weight.data = model.transformer.wte.weight.data.clone()
    model.lm_head.bias.data = torch.where(torch.arange(20) < 12, 0.0, -1e4).index_fill(0, torch.tensor(END), 4.2)
    rows = None

    @torch.no_grad()
    def step(tokens, parents=None):
        nonlocal rows
        before = images.repeat_interleave(len(tokens) // 8)[:, None] if rows is None else rows
        rows = torch.cat([before if parents is None else before[parents], tokens[:, None]], 1)
        return model(rows).logits[:, -1]

    ours = beam_search(step, 8, beams, max_length=9, min_length=shortest, no_repeat_ngram=ngram, **LIMITS)
    rows = None
    free = beam_search(step, 8, beams, max_length=9, **LIMITS)
    prompts = torch.stack([images, torch.full((8,), START)], 1)
    with torch.no_grad():
        theirs = model.generate(
            prompts, attention_mask=torch.ones_like(prompts),
            generation_config=GenerationConfig(
                num_beams=beams, num_return_sequences=beams, max_new_tokens=9, do_sample=False, early_stopping=False,
                length_penalty=1.0, no_repeat_ngram_size=ngram, min_new_tokens=shortest, eos_token_id=END,
                pad_token_id=END, return_dict_in_generate=True, output_scores=True,
            ),
        )  # fmt: skip
    sequences = [row[: row.index(END)] if END in row else row for row in theirs.sequences[:, 2:].tolist()]
    assert [caption.ids for found in ours for caption in found] == sequences
    assert ids(ours) != ids(free) and len({len(row) for row in sequences}) > 1
    if beams > 1:
        scores = [caption.score for found in ours for caption in found]
        assert scores == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)


def test_the_benchmark_compares_equal_work():
    """It raises where the two sides' encoders or numbers of tokens differ; times are not looked at."""
    spec = importlib.util.spec_from_file_location("benchmark_decoding", ROOT / "benchmarks" / "decoding.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = benchmark.measure(images=2, beams=3, repeats=1, kinds=benchmark.KINDS[-1:])
    assert [row["name"] for row in rows] == [
        f"{name}_default_sizes" for name in ("beam3_captioning", "beam3_decoder", "encoder")
    ]
    assert all(set(row) >= {"name", "ours", "peer", "ratio", "unit"} and row["ratio"] > 0 for row in rows)


@pytest.mark.parametrize(("images", "each"), [(16, 5), (80, 1)])
def test_captions_that_have_ended_may_be_left_out_of_the_products(monkeypatch, images, each):
    """Many rows on a CPU: the same captions as with all rows computed to the end."""
    model, left_out = tiny(vocab_size=6), []  # <end> is often drawn
    limits = decode.Limits(tokenizer.START, tokenizer.END, 8)
    pixels = torch.randn(images, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def drawn() -> list[list[decode.Caption]]:
        options = Options(samples=each)
        return decode.sample(model.start_decoding(pixels), images, options, limits, range(images))

    monkeypatch.setattr(decode, "_LEAVE_OUT", 2.0)  # images stay in the batch until all have ended
    real = captioner._open_rows
    monkeypatch.setattr(captioner, "_open_rows", lambda tokens: left_out.append(real(tokens)) or left_out[-1])
    found = drawn()
    assert any(rows is not None for rows in left_out)
    monkeypatch.setattr(captioner, "_MANY_ROWS", 10**9)
    left_out.clear()
    expected = drawn()
    assert left_out and not any(rows is not None for rows in left_out)
    assert [[c.ids for c in own] for own in found] == [[c.ids for c in own] for own in expected]
    for own, others in zip(found, expected, strict=True):
        assert [c.log_prob for c in own] == pytest.approx([c.log_prob for c in others], rel=1e-6)
    assert len({tuple(c.ids) for own in found for c in own}) > 20
