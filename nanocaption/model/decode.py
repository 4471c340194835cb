"""Choosing a caption's tokens: greedy, beam search, diverse beams, sampling, ensembles. Knows ids only.

step(tokens (R,), parents (R,) or None) -> logits (R, V): feeds one token per row and gives the logits of the next.
`parents` names the row of the step before that each row continues (None: its own). Rows are grouped by image: with K
captions at once, image n has the rows n*K .. n*K+K-1. An image that is finished may be left out with all its rows; the
step then counts those of the others anew.
N images, K beams, G groups of K/G beams, R = N*K rows, V vocabulary, L tokens so far (<start> included).

What the numbers of a caption mean, whichever way it was found: log_prob is its log-probability under the model itself
(of an ensemble: under the averaged probabilities), however the choice was restricted; score is
log_prob / length ** length_penalty, where length counts the tokens after <start>, <end> included. Minimum length,
n-gram blocking and no_bad_endings forbid tokens without raising the probability of the rest. Where every token is
forbidden, <end> is allowed again, so a caption may then be shorter than min_length, or end badly; no score is ever
infinite because of a rule.
A model whose logits are no numbers (NaN) for an image gives an empty caption there, and its log_prob and score are NaN.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanocaption.model.caption_types import Caption, caption_of
from nanocaption.model.endings import Endings
from nanocaption.model.options import Options, option_problems

Step = Callable[[Tensor, Tensor | None], Tensor]
_FLOOR = -1e9  # total of a beam that is none: -inf would become NaN in a difference
# Finished images are left out of the batch once they are this share of it: for fewer, copying the rest costs too much.
_LEAVE_OUT = 0.2


class Limits(NamedTuple):
    """What the model sets."""

    start_id: int
    end_id: int
    max_length: int  # most tokens after <start>, <end> included
    device: torch.device | str = "cpu"
    endings: Endings | None = None  # for Options.no_bad_endings, on `device`


def decode(
    step: Step, images: int, options: Options, limits: Limits, seeds: Sequence[int] | None = None
) -> list[list[Caption]]:
    """The captions of each image as `options` ask for, the best first. seeds: of the random ones, see `sample`.

    options.max_length can only lower that of the limits. One beam is greedy: the likeliest token each time.
    Raises ValueError for options that cannot be meant so.
    """
    o = options
    if wrong := option_problems(o):
        raise ValueError("; ".join(wrong))
    if o.no_bad_endings and limits.endings is None:
        raise ValueError("no_bad_endings needs the table of a tokenizer, see endings.py: it is not among the limits")
    limits = limits._replace(max_length=min(o.max_length or limits.max_length, limits.max_length))
    if o.samples:
        return sample(step, images, o, limits, seeds)
    if o.beam_size % o.beam_groups:
        raise ValueError(f"{o.beam_size} beams cannot be dealt out to {o.beam_groups} groups: give a multiple, e.g. "
                         f"{2 * o.beam_groups}.")  # fmt: skip
    if o.beam_size == 1:
        return sample(step, images, o._replace(samples=1, temperature=0.0), limits)
    return beam_search(step, images, o, limits)


def ensemble(steps: Sequence[Step]) -> Step:
    """One step function of several over one vocabulary: the log of the mean of their probabilities."""
    if len(steps) == 1:
        return steps[0]

    def step(tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        log_probs = torch.stack([F.log_softmax(member(tokens, parents).float(), -1) for member in steps])  # (M, R, V)
        return log_probs.logsumexp(0) - math.log(len(steps))

    return step


def sample(
    step: Step, images: int, options: Options, limits: Limits, seeds: Sequence[int] | None = None
) -> list[list[Caption]]:
    """options.samples random captions per image, drawn token by token; per image the best score first.

    temperature divides the logits (0 = greedy); top_k keeps the k likeliest tokens (0 = all); top_p the fewest that
    hold that much probability (Holtzman et al. 2020). Other rules as in `beam_searches`.
    seeds: one per image. What is drawn for an image depends on its own seed alone, whatever else is in the batch, and
    its first captions are the same however many are asked for. None: seeds from torch's global generator.
    Two captions of an image may be equal. log_prob is under the model itself, not under the distribution drawn from.
    """
    o, captions, (start_id, end_id, max_length, device, _) = options, options.samples, limits
    rows = torch.arange(images * captions, device=device)  # whose captions are still being made
    history = torch.full((len(rows), 1), start_id, device=device)  # (R, L)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
    log_prob = torch.zeros(len(rows), device=device)
    drawn = o.temperature >= torch.finfo(torch.float32).tiny  # anything lower is 0 to the logits
    chances = _chances(images, captions, max_length, seeds).to(device) if drawn else None  # (R, max_length)
    parents = None
    found: dict[int, Caption] = {}
    for length in range(1, max_length + 1):
        logits = step(history[:, -1], parents).float()
        forbidden = _forbidden(history, logits.shape[-1], limits, o)
        allowed = logits if forbidden is None else logits.masked_fill(forbidden, -torch.inf)
        if chances is None:
            tokens = allowed.argmax(-1)
        else:
            if o.temperature != 1:  # a low one makes infinity of numbers other than differences from the largest
                allowed = (allowed - allowed.amax(-1, keepdim=True)) / o.temperature
            tokens = _draw(allowed, o.top_k, o.top_p, chances[rows, length - 1])
        chosen = F.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
        log_prob += chosen.masked_fill(finished, 0.0)
        tokens = tokens.masked_fill(finished, end_id)
        history = torch.cat([history, tokens[:, None]], 1)
        finished |= tokens == end_id
        leaving = _leaving(finished.view(-1, captions).all(1), length == max_length)
        parents = None
        if leaving is not None:
            left = leaving.repeat_interleave(captions)
            for row, ids, total in zip(*(x[left].tolist() for x in (rows, history[:, 1:], log_prob)), strict=True):
                found[row] = caption_of(ids, end_id, total, o.length_penalty)
            parents = (~left).nonzero()[:, 0]
            if not len(parents):
                break
            rows, history, finished, log_prob = (x[parents] for x in (rows, history, finished, log_prob))
    per_image = [[found[i * captions + k] for k in range(captions)] for i in range(images)]
    return [sorted(captions_of, key=lambda caption: -caption.score) for captions_of in per_image]


def beam_search(step: Step, images: int, options: Options, limits: Limits) -> list[list[Caption]]:
    """`beam_searches` with the one length penalty of the options."""
    return beam_searches(step, images, options, limits, [options.length_penalty])[0]


def beam_searches(
    step: Step, images: int, options: Options, limits: Limits, penalties: Sequence[float]
) -> list[list[list[Caption]]]:
    """The best options.beam_size captions of each image, best first, by log_prob / length ** length_penalty.

    max_length limits the length, and what has no <end> by then counts as it stands. An image is settled when no open
    beam can still pass its worst finished one, judged at the present length as transformers does
    (early_stopping=False).
    min_length: fewest tokens before <end>. no_repeat_ngram: no n tokens occur twice in a caption (0 = off); <start>
    counts as its first token. no_bad_endings: no caption ends, or is cut, behind a word that must go on (endings.py).
    beam_groups > 1, which must divide the beams: diverse beam search (Vijayakumar et al. 2016). The groups go one after
    the other at every step, and each token costs a group diversity_penalty for every open beam of an earlier group that
    took it at this step. The costs lead the search of a group and stay with its beams, but are in neither log_prob nor
    score. First comes the best caption of each group, by score, then the second best of each; two groups may find the
    same caption.
    penalties: the search is made once for all of these length penalties, and gives for each what a search with it alone
    gives: they only decide which finished captions stay, and when an image is settled; the open beams are the same.
    More than one do not go with groups, which watch each other until they are settled. That of the options is not used.
    """
    if options.beam_groups > 1 and len(penalties) > 1:
        raise ValueError("several length penalties do not go with beam_groups: search with each")
    beams, groups = options.beam_size, options.beam_groups
    searches = [_start(images, beams // groups, limits, penalties) for _ in range(groups)]
    place = torch.arange(images, device=limits.device)  # the images that are still searched
    tokens, parents = torch.full((images * beams,), limits.start_id, device=limits.device), None
    found: dict[int, list[list[Caption]]] = {}
    for length in range(1, limits.max_length + 1):
        searches, rows = _advance(searches, step(tokens, parents).float(), options, limits)
        settled = torch.stack([search.settled() for search in searches]).all(0)
        leaving = _leaving(settled, length == limits.max_length)
        if leaving is not None:
            leavers = [search.of(leaving) for search in searches]
            done = zip(*(_collect([search.done[place] for search in leavers], limits.end_id)
                         for place in range(len(penalties))), strict=True)  # fmt: skip
            found.update(zip(place[leaving].tolist(), map(list, done), strict=True))
            going = (~leaving).nonzero()[:, 0]
            if not len(going):
                break
            place, rows = place[going], rows[going]
            searches = [search.of(going) for search in searches]
        parents, tokens = rows.flatten(), torch.cat([search.ids[:, :, -1] for search in searches], 1).flatten()
    return [[found[image][place] for image in range(images)] for place in range(len(penalties))]


def _leaving(finished: Tensor, last: bool) -> Tensor | None:
    """The images (N,) to leave out after this step, as a mask; None: go on with all. last: there is no further step."""
    count = len(finished) if last else int(finished.sum())
    if count == len(finished):
        return torch.ones_like(finished)
    return finished if count >= _LEAVE_OUT * len(finished) else None


class _Done(NamedTuple):
    """The best K finished captions of every image under one length penalty, best first."""

    scores: Tensor  # (N, K) totals / length ** penalty; _FLOOR = none
    log_probs: Tensor  # (N, K)
    ids: Tensor  # (N, K, max_length) without <start>, <end> and after it more of it
    settled: Tensor  # (N,) no open beam can pass the worst of them
    penalty: float

    def of(self, images: Tensor) -> "_Done":
        scores, log_probs, ids, settled = (part[images] for part in self[:4])
        return _Done(scores, log_probs, ids, settled, self.penalty)


class _Search(NamedTuple):
    """One group of K beams of every image: the open ones, and for each length penalty the finished ones."""

    totals: Tensor  # (N, K) what is compared: log-probability less the costs of diversity; _FLOOR = no beam
    log_probs: Tensor  # (N, K)
    ids: Tensor  # (N, K, L)
    done: tuple[_Done, ...]

    def of(self, images: Tensor) -> "_Search":
        """That of some images, by a mask or by their places."""
        totals, log_probs, ids = (part[images] for part in self[:3])
        return _Search(totals, log_probs, ids, tuple(done.of(images) for done in self.done))

    def settled(self) -> Tensor:
        """(N,) under every penalty."""
        return torch.stack([done.settled for done in self.done]).all(0)


def _start(images: int, beams: int, limits: Limits, penalties: Sequence[float]) -> _Search:
    floor = torch.full((images, beams), _FLOOR, device=limits.device)
    totals = floor.clone()
    totals[:, 0] = 0.0  # one open beam per image: K equal ones would find the same caption K times
    ids = torch.full((images, beams, 1), limits.start_id, device=limits.device)
    done_ids = torch.full((images, beams, limits.max_length), limits.end_id, device=limits.device)
    settled = torch.zeros(images, dtype=torch.bool, device=limits.device)
    done = tuple(_Done(floor, floor, done_ids, settled, penalty) for penalty in penalties)
    return _Search(totals, totals, ids, done)


def _advance(
    searches: list[_Search], logits: Tensor, options: Options, limits: Limits
) -> tuple[list[_Search], Tensor]:
    """One more token for the beams of all groups. logits: (R, V).

    Returns the searches and which row of the step each open beam continues, (N, K).
    """
    images, width = searches[0].totals.shape
    groups = len(searches)
    totals = logits.logsumexp(-1, keepdim=True)
    history = torch.cat([search.ids for search in searches], 1).flatten(0, 1)  # (R, L)
    forbidden = _forbidden(history, logits.shape[-1], limits, options)
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, _FLOOR)
    own = [x.view(images, groups, width, -1).unbind(1) for x in (logits, totals)]  # each (N, K/G, V or 1)
    costs = logits.new_zeros(images, logits.shape[-1]) if groups > 1 else None  # (N, V)
    first_row = torch.arange(images, device=logits.device)[:, None] * groups * width  # (N, 1)
    advanced, rows = [], []
    for group, (before, own_logits, own_totals) in enumerate(zip(searches, *own, strict=True)):
        search, beam = _advance_group(before, own_logits, own_totals, costs, limits)
        if costs is not None:
            counted = (search.totals > _FLOOR / 2) & ~search.settled()[:, None]
            costs.scatter_add_(1, search.ids[:, :, -1], options.diversity_penalty * counted.float())
        advanced.append(search)
        rows.append(first_row + group * width + beam)
    return advanced, torch.cat(rows, 1)


def _advance_group(
    search: _Search, logits: Tensor, totals: Tensor, costs: Tensor | None, limits: Limits
) -> tuple[_Search, Tensor]:
    """One more token for the beams of a group. logits (N, K, V) and their logsumexp (N, K, 1), costs (N, V) of tokens.

    Returns the search and which of the K beams each open one continues, (N, K).
    """
    length, max_length = search.ids.shape[2], limits.max_length
    images, beams, vocabulary = logits.shape
    # 2K candidates: at most K of them end, so K remain to go on. None of them is beyond the 2K best of its own beam.
    gains, token = (logits if costs is None else logits - costs[:, None]).topk(min(2 * beams, vocabulary))
    best = (search.totals[:, :, None] + gains - totals).flatten(1)  # (N, K * 2K)
    best, index = best.topk(min(2 * beams, best.shape[1]), dim=1)
    beam, token = index // gains.shape[2], token.flatten(1).gather(1, index)  # (N, 2K)
    own = logits.flatten(1).gather(1, beam * vocabulary + token) - totals[:, :, 0].gather(1, beam)
    own = search.log_probs.gather(1, beam) + own
    ids = torch.cat([_pick(search.ids, beam), token[:, :, None]], 2)
    ends = token == limits.end_id

    # What ends among the first K, and at the limit everything, is measured against the finished ones.
    rank = torch.arange(best.shape[1], device=best.device)
    finishes = (ends | (length == max_length)) & (rank < beams) & (best > _FLOOR / 2)
    padded = F.pad(ids[:, :, 1:], (0, max_length - length), value=limits.end_id)
    totals, order = best.masked_fill(ends, _FLOOR).topk(beams, dim=1)
    done = tuple(_finish(done, best.masked_fill(~finishes, _FLOOR), own, padded, totals[:, 0], length)
                 for done in search.done)  # fmt: skip
    return _Search(totals, own.gather(1, order), _pick(ids, order), done), beam.gather(1, order)


def _finish(
    done: _Done, totals: Tensor, log_probs: Tensor, ids: Tensor, best_open: Tensor, length: int
) -> _Done:
    """`done` with what finishes at this length: totals (N, 2K), _FLOOR where nothing does. best_open: totals (N,).

    A settled image takes no more, however long the others of its batch go on.
    """
    there = (totals > _FLOOR / 2) & ~done.settled[:, None]
    scores = (totals / length**done.penalty).masked_fill(~there, _FLOOR)
    scores, order = torch.cat([done.scores, scores], 1).topk(done.scores.shape[1], dim=1)
    settled = done.settled | (best_open / length**done.penalty <= scores[:, -1])
    log_probs = torch.cat([done.log_probs, log_probs], 1).gather(1, order)
    return _Done(scores, log_probs, _pick(torch.cat([done.ids, ids], 1), order), settled, done.penalty)


def _pick(ids: Tensor, index: Tensor) -> Tensor:
    """The rows `index` (N, J) of ids (N, K, L), (N, J, L)."""
    return ids.gather(1, index[:, :, None].expand(-1, -1, ids.shape[2]))


def _collect(parts: list[_Done], end_id: int) -> list[list[Caption]]:
    """The finished captions per image: the best of each group by score, then the second of each, and so on."""
    results: list[list[Caption]] = []
    for image in range(len(parts[0].settled)):
        ranked: list[tuple[int, float, Caption]] = []
        for done in parts:
            rows = (done.ids[image], done.log_probs[image], done.scores[image])
            found = [
                caption_of(ids, end_id, log_prob, done.penalty)
                for ids, log_prob, score in zip(*(row.tolist() for row in rows), strict=True)
                if score > _FLOOR / 2
            ]
            found.sort(key=lambda caption: -caption.score)  # the search went by totals that hold the costs
            found = found or [Caption([], math.nan, math.nan)]
            ranked += [(place, -caption.score, caption) for place, caption in enumerate(found)]
        results.append([caption for *_, caption in sorted(ranked, key=lambda entry: entry[:2])])
    return results


def _forbidden(history: Tensor, vocabulary: int, limits: Limits, options: Options) -> Tensor | None:
    """(R, V) True for tokens that may not follow `history` (R, L); None where all may.

    A row that would have nothing left may end.
    """
    end_id, endings = limits.end_id, limits.endings if options.no_bad_endings else None
    ngram, too_short = options.no_repeat_ngram, history.shape[1] <= options.min_length
    repeats = ngram and history.shape[1] >= ngram
    if not too_short and not repeats and endings is None:
        return None
    rows = len(history)
    forbidden = torch.zeros((rows, vocabulary + 1), dtype=torch.bool, device=history.device)
    if repeats:
        grams = history.unfold(1, ngram, 1)  # (R, L-n+1, n) all n-grams so far
        tail = history[:, history.shape[1] - ngram + 1 :]  # (R, n-1) what a new one would begin with
        met = (grams[:, :, :-1] == tail[:, None]).all(2)
        # The column after the vocabulary takes the n-grams that begin otherwise.
        forbidden.scatter_(1, grams[:, :, -1].masked_fill(~met, vocabulary), True)
    forbidden = forbidden[:, :vocabulary]
    if too_short:
        forbidden[:, end_id] = True
    if endings is not None:
        # Found anew at every step: a look-up for each token so far is cheaper than states that move with their beams.
        state = torch.zeros_like(history[:, 0])
        for tokens in history.T:
            state = endings.following[state, tokens]
        last = history.shape[1] == limits.max_length  # what comes now has nothing behind it
        forbidden |= (endings.last if last else endings.forbidden)[state]
    if repeats or endings is not None:
        forbidden[:, end_id] &= ~forbidden.all(1)
    return forbidden


def _chances(images: int, captions: int, length: int, seeds: Sequence[int] | None) -> Tensor:
    """A random number in [0, 1) for every token of every caption, (N * captions, length)."""
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (images,)).tolist()
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([torch.rand(captions, length, generator=stream) for stream in streams])


def _draw(logits: Tensor, top_k: int, top_p: float, chances: Tensor) -> Tensor:
    """One token per row of logits (R, V): the one whose share of the probabilities in a row chances (R,) fall into."""
    if top_k:
        lowest = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the likeliest token always stays
        dropped = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    shares = logits.softmax(-1).cumsum(-1)  # (R, V)
    token = torch.searchsorted(shares, shares[:, -1:] * chances[:, None], right=True).clamp(max=logits.shape[1] - 1)
    # Rounding may lead to a token that may not come: behind all others, or where sums made in parallel fall again.
    possible = logits.gather(1, token) > -torch.inf
    if possible.device.type == "cpu" and possible.all():  # on a GPU the answer would be waited for
        return token[:, 0]
    return torch.where(possible, token, logits.argmax(-1, keepdim=True))[:, 0]
