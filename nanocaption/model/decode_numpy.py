"""decode.py in numpy, for models that run without torch: the same searches, rules and numbers, see there.

step(tokens (R,), parents (R,) or None) -> logits (R, V), float32. With the same logits the ids are the same, but for
exact ties between tokens; log-probabilities differ by rounding. Random captions with seeds are drawn from the same
random numbers: torch's generator on a CPU is MT19937, as numpy's RandomState is.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nanocaption.model.caption_types import Caption, caption_of
from nanocaption.model.ending_tables import Tables
from nanocaption.model.options import Options, option_problems

Step = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
_FLOOR = np.float32(-1e9)  # as in decode.py, and so is what else has its name
_LEAVE_OUT = 0.2
_FOLLOWED = (
    "beam_size", "length_penalty", "min_length", "no_repeat_ngram", "no_bad_endings", "beam_groups",
    "diversity_penalty", "samples", "temperature", "top_k", "top_p", "max_length",
)  # fmt: skip


class Limits(NamedTuple):
    """What the model sets."""

    start_id: int
    end_id: int
    max_length: int  # most tokens after <start>, <end> included
    endings: Tables | None = None  # for Options.no_bad_endings


def decode(
    step: Step, images: int, options: Options, limits: Limits, seeds: Sequence[int] | None = None
) -> list[list[Caption]]:
    """decode.decode. ValueError as well for an option that decode.py follows and this file does not."""
    o = options
    for name in set(o._fields) - {*_FOLLOWED}:
        if getattr(o, name) != o._field_defaults[name]:
            raise ValueError(f"{name} = {getattr(o, name)}: is not followed without torch, leave it out.")
    if wrong := option_problems(o):
        raise ValueError("; ".join(wrong))
    if o.no_bad_endings and limits.endings is None:
        raise ValueError("no_bad_endings needs the table of a tokenizer, see endings.py: it is not among the limits")
    limits = limits._replace(max_length=min(o.max_length or limits.max_length, limits.max_length))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # of logits that are no numbers, or -inf
        if o.samples:
            return _sample(step, images, o, limits, seeds)
        if o.beam_size % o.beam_groups:
            raise ValueError(f"{o.beam_size} beams cannot be dealt out to {o.beam_groups} groups: give a multiple, "
                             f"e.g. {2 * o.beam_groups}.")  # fmt: skip
        if o.beam_size == 1:
            return _sample(step, images, o._replace(samples=1, temperature=0.0), limits, None)
        return _beam_search(step, images, o, limits)


def _sample(
    step: Step, images: int, options: Options, limits: Limits, seeds: Sequence[int] | None
) -> list[list[Caption]]:
    """decode.sample. Without seeds they come from the system, not from a generator that a program has seeded."""
    o, captions, (start_id, end_id, max_length, _) = options, options.samples, limits
    rows = np.arange(images * captions)
    history = np.full((len(rows), 1), start_id)  # (R, L)
    finished = np.zeros(len(rows), bool)
    log_prob = np.zeros(len(rows), np.float32)
    drawn = o.temperature >= np.finfo(np.float32).tiny
    chances = _chances(images, captions, max_length, seeds) if drawn else None  # (R, max_length)
    parents = None
    found: dict[int, Caption] = {}
    for length in range(1, max_length + 1):
        logits = step(history[:, -1], parents)
        forbidden = _forbidden(history, logits.shape[-1], limits, o)
        allowed = logits if forbidden is None else np.where(forbidden, np.float32(-np.inf), logits)
        if chances is None:
            tokens = allowed.argmax(-1)
        else:
            below = allowed - allowed.max(-1, keepdims=True)
            tokens = _draw(below / np.float32(o.temperature), o.top_k, o.top_p, chances[rows, length - 1])
        chosen = np.take_along_axis(logits, tokens[:, None], 1)[:, 0] - _logsumexp(logits)[:, 0]
        log_prob = log_prob + np.where(finished, np.float32(0), chosen)
        tokens = np.where(finished, end_id, tokens)
        history = np.concatenate([history, tokens[:, None]], 1)
        finished = finished | (tokens == end_id)
        leaving = _leaving(finished.reshape(-1, captions).all(1), length == max_length)
        parents = None
        if leaving is not None:
            left = leaving.repeat(captions)
            for row, ids, total in zip(*(x[left].tolist() for x in (rows, history[:, 1:], log_prob)), strict=True):
                found[row] = caption_of(ids, end_id, total, o.length_penalty)
            parents = np.flatnonzero(~left)
            if not len(parents):
                break
            rows, history, finished, log_prob = (x[parents] for x in (rows, history, finished, log_prob))
    per_image = [[found[i * captions + k] for k in range(captions)] for i in range(images)]
    return [sorted(captions_of, key=lambda caption: -caption.score) for captions_of in per_image]


def _beam_search(step: Step, images: int, options: Options, limits: Limits) -> list[list[Caption]]:
    """decode.beam_search"""
    beams, groups = options.beam_size, options.beam_groups
    searches = [_start(images, beams // groups, limits) for _ in range(groups)]
    place = np.arange(images)
    tokens, parents = np.full(images * beams, limits.start_id), None
    found: dict[int, list[Caption]] = {}
    for length in range(1, limits.max_length + 1):
        searches, rows = _advance(searches, step(tokens, parents), options, limits)
        settled = np.stack([search.settled for search in searches]).all(0)
        leaving = _leaving(settled, length == limits.max_length)
        if leaving is not None:
            done = _collect([search.of(leaving) for search in searches], limits.end_id, options.length_penalty)
            found.update(zip(place[leaving].tolist(), done, strict=True))
            going = np.flatnonzero(~leaving)
            if not len(going):
                break
            place, rows = place[going], rows[going]
            searches = [search.of(going) for search in searches]
        parents, tokens = rows.ravel(), np.concatenate([search.ids[:, :, -1] for search in searches], 1).ravel()
    return [found[image] for image in range(images)]


def _leaving(finished: np.ndarray, last: bool) -> np.ndarray | None:
    count = len(finished) if last else int(finished.sum())
    if count == len(finished):
        return np.ones_like(finished)
    return finished if count >= _LEAVE_OUT * len(finished) else None


class _Search(NamedTuple):
    totals: np.ndarray  # (N, K) float32, as all numbers here
    log_probs: np.ndarray  # (N, K)
    ids: np.ndarray  # (N, K, L)
    done_scores: np.ndarray  # (N, K)
    done_log_probs: np.ndarray  # (N, K)
    done_ids: np.ndarray  # (N, K, max_length)
    settled: np.ndarray  # (N,)

    def of(self, images: np.ndarray) -> "_Search":
        return _Search(*(part[images] for part in self))


def _start(images: int, beams: int, limits: Limits) -> _Search:
    floor = np.full((images, beams), _FLOOR)
    totals = floor.copy()
    totals[:, 0] = 0.0
    ids = np.full((images, beams, 1), limits.start_id)
    done_ids = np.full((images, beams, limits.max_length), limits.end_id)
    return _Search(totals, totals, ids, floor, floor, done_ids, np.zeros(images, bool))


def _advance(
    searches: list[_Search], logits: np.ndarray, options: Options, limits: Limits
) -> tuple[list[_Search], np.ndarray]:
    """One more token for the beams of all groups -> the searches, and the row that each open beam continues (N, K)."""
    images, width = searches[0].totals.shape
    groups, vocabulary = len(searches), logits.shape[-1]
    totals = _logsumexp(logits)  # (R, 1)
    history = np.concatenate([search.ids for search in searches], 1).reshape(len(logits), -1)  # (R, L)
    forbidden = _forbidden(history, vocabulary, limits, options)
    if forbidden is not None:
        logits = np.where(forbidden, _FLOOR, logits)
    own_logits, own_totals = (x.reshape(images, groups, width, -1) for x in (logits, totals))
    costs = np.zeros((images, vocabulary), np.float32) if groups > 1 else None
    first_row = np.arange(images)[:, None] * groups * width  # (N, 1)
    advanced, rows = [], []
    for group, before in enumerate(searches):
        parts = (own_logits[:, group], own_totals[:, group])
        search, beam = _advance_group(before, *parts, costs, limits.end_id, options.length_penalty)
        if costs is not None:
            counted = (search.totals > _FLOOR / 2) & ~search.settled[:, None]
            places = (np.arange(images)[:, None], search.ids[:, :, -1])
            np.add.at(costs, places, np.float32(options.diversity_penalty) * counted)
        advanced.append(search)
        rows.append(first_row + group * width + beam)
    return advanced, np.concatenate(rows, 1)


def _advance_group(
    search: _Search, logits: np.ndarray, totals: np.ndarray, costs: np.ndarray | None, end_id: int,
    length_penalty: float,
) -> tuple[_Search, np.ndarray]:  # fmt: skip
    """decode._advance_group"""
    length, max_length = search.ids.shape[2], search.done_ids.shape[2]
    images, beams, vocabulary = logits.shape
    token = _largest(logits if costs is None else logits - costs[:, None], min(2 * beams, vocabulary))  # (N, K, 2K)
    gains = np.take_along_axis(logits, token, 2)
    if costs is not None:
        gains = gains - np.take_along_axis(np.broadcast_to(costs[:, None], logits.shape), token, 2)
    best = (search.totals[:, :, None] + gains - totals).reshape(images, -1)  # (N, K * 2K)
    index = _largest(best, min(2 * beams, best.shape[1]))
    best = np.take_along_axis(best, index, 1)
    beam, token = index // token.shape[2], np.take_along_axis(token.reshape(images, -1), index, 1)  # (N, 2K)
    own = np.take_along_axis(logits.reshape(images, -1), beam * vocabulary + token, 1)
    own = _of_beams(search.log_probs, beam) + (own - _of_beams(totals[:, :, 0], beam))
    ids = np.concatenate([_of_beams(search.ids, beam), token[:, :, None]], 2)
    ends = token == end_id

    rank = np.arange(best.shape[1])
    finishes = (ends | (length == max_length)) & (rank < beams) & (best > _FLOOR / 2) & ~search.settled[:, None]
    norm = np.float32(length**length_penalty)
    scores = np.concatenate([search.done_scores, np.where(finishes, best / norm, _FLOOR)], 1)
    order = _largest(scores, beams)
    filling = np.full((images, ids.shape[1], max_length - length), end_id)
    padded = np.concatenate([search.done_ids, np.concatenate([ids[:, :, 1:], filling], 2)], 1)
    done_scores = np.take_along_axis(scores, order, 1)
    done_log_probs = _of_beams(np.concatenate([search.done_log_probs, own], 1), order)

    totals = np.where(ends, _FLOOR, best)
    going = _largest(totals, beams)
    totals = np.take_along_axis(totals, going, 1)
    settled = search.settled | (totals[:, 0] / norm <= done_scores[:, -1])
    log_probs, ids, beam = _of_beams(own, going), _of_beams(ids, going), _of_beams(beam, going)
    return _Search(totals, log_probs, ids, done_scores, done_log_probs, _of_beams(padded, order), settled), beam


def _of_beams(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values (N, K, ...) at index (N, J) -> (N, J, ...)"""
    return values[np.arange(len(values))[:, None], index]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` largest along the last axis are, the largest first."""
    places = np.argpartition(values, -count, -1)[..., -count:]
    order = np.argsort(-np.take_along_axis(values, places, -1), -1, kind="stable")
    return np.take_along_axis(places, order, -1)


def _collect(searches: list[_Search], end_id: int, length_penalty: float) -> list[list[Caption]]:
    """decode._collect"""
    results = []
    for image in range(len(searches[0].settled)):
        ranked: list[tuple[int, float, Caption]] = []
        for search in searches:
            kept = np.flatnonzero(search.done_scores[image] > _FLOOR / 2)
            log_probs, ids = search.done_log_probs[image, kept].tolist(), search.done_ids[image, kept].tolist()
            found = [caption_of(*one, length_penalty) for one in zip(ids, [end_id] * len(ids), log_probs, strict=True)]
            found = sorted(found, key=lambda caption: -caption.score) or [Caption([], math.nan, math.nan)]
            ranked += [(place, -caption.score, caption) for place, caption in enumerate(found)]
        results.append([caption for *_, caption in sorted(ranked, key=lambda entry: entry[:2])])
    return results


def _forbidden(history: np.ndarray, vocabulary: int, limits: Limits, options: Options) -> np.ndarray | None:
    """decode._forbidden"""
    end_id, endings = limits.end_id, limits.endings if options.no_bad_endings else None
    ngram, too_short = options.no_repeat_ngram, history.shape[1] <= options.min_length
    repeats = ngram and history.shape[1] >= ngram
    if not too_short and not repeats and endings is None:
        return None
    forbidden = np.zeros((len(history), vocabulary), bool)
    if repeats:
        grams = np.lib.stride_tricks.sliding_window_view(history, ngram, 1)  # (R, L-n+1, n)
        tail = history[:, history.shape[1] - ngram + 1 :]  # (R, n-1)
        row, place = np.nonzero((grams[:, :, :-1] == tail[:, None]).all(2))
        forbidden[row, grams[row, place, -1]] = True
    if too_short:
        forbidden[:, end_id] = True
    if endings is not None:
        state = np.zeros(len(history), np.int64)
        for tokens in history.T:
            state = endings.following[state, tokens]
        last = history.shape[1] == limits.max_length
        forbidden |= (endings.last if last else endings.forbidden)[state]
    if repeats or endings is not None:
        forbidden[:, end_id] &= ~forbidden.all(1)
    return forbidden


def _chances(images: int, captions: int, length: int, seeds: Sequence[int] | None) -> np.ndarray:
    """A random number in [0, 1) for every token of every caption, (N * captions, length); 24 bits, as torch.rand's."""
    if seeds is None:
        seeds = np.random.default_rng().integers(2**63 - 1, size=images).tolist()
    streams = [np.random.RandomState(seed % 2**32) for seed in seeds]
    words = [stream.randint(0, 2**32, (captions, length), np.uint32) for stream in streams]
    return (np.concatenate(words) & 0xFFFFFF).astype(np.float32) / np.float32(2**24)


def _draw(logits: np.ndarray, top_k: int, top_p: float, chances: np.ndarray) -> np.ndarray:
    """decode._draw. Sums go through 64 bits, as torch's do on a CPU."""
    if top_k:
        lowest = np.partition(logits, -min(top_k, logits.shape[-1]), -1)[:, -min(top_k, logits.shape[-1]), None]
        logits = np.where(logits < lowest, np.float32(-np.inf), logits)
    if top_p < 1:
        order = np.argsort(-logits, -1, kind="stable")
        probabilities = _softmax(np.take_along_axis(logits, order, -1))
        before = _sums(probabilities) - probabilities
        dropped = np.zeros(logits.shape, bool)
        np.put_along_axis(dropped, order, before >= np.float32(top_p), -1)
        logits = np.where(dropped, np.float32(-np.inf), logits)
    shares = _sums(_softmax(logits))  # (R, V)
    token = (shares <= shares[:, -1:] * chances[:, None]).sum(-1).clip(max=logits.shape[1] - 1)
    possible = np.take_along_axis(logits, token[:, None], 1)[:, 0] > -np.inf
    return np.where(possible, token, logits.argmax(-1))


def _sums(values: np.ndarray) -> np.ndarray:
    return values.cumsum(-1, dtype=np.float64).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    """(R, V) -> (R, 1)"""
    top = logits.max(-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
