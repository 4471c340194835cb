"""Choosing a caption's tokens: greedy, beam search and sampling over a step function. Knows ids only.

step(tokens (R,), parents (R,) or None) -> logits (R, V): feeds one token per row and gives the logits of the next.
`parents` names the row of the step before that each row continues (None: its own). Rows are grouped by image: with K
captions at once, image n has the rows n*K .. n*K+K-1.
N images, K beams, R = N*K rows, V vocabulary, L tokens so far.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor, Tensor | None], Tensor]


class Caption(NamedTuple):
    ids: list[int]  # without <start> and <end>
    log_prob: float  # sum over its tokens, <end> included where it was reached
    score: float  # what captions of one image are ranked by


def greedy(
    step: Step, images: int, *, start_id: int, end_id: int, max_length: int, device: torch.device | str = "cpu"
) -> list[list[Caption]]:
    """The likeliest token each time. Returns one list per image, with its one caption.

    max_length: most tokens after <start>, <end> included.
    """
    return sample(
        step, images, 1, start_id=start_id, end_id=end_id, max_length=max_length, temperature=0.0, device=device
    )


def sample(
    step: Step,
    images: int,
    captions: int,
    *,
    start_id: int,
    end_id: int,
    max_length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[list[Caption]]:
    """`captions` random captions per image, drawn token by token; per image the likeliest first.

    temperature divides the logits (0 = greedy); top_k keeps the k likeliest tokens (0 = all); top_p the fewest that
    hold that much probability (Holtzman et al. 2020). log_prob is under the model itself, not the changed distribution.
    """
    rows = images * captions
    tokens = torch.full((rows,), start_id, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    log_prob = torch.zeros(rows, device=device)
    sequence = []
    for _ in range(max_length):
        logits = step(tokens, None).float()
        tokens = _draw(logits, temperature, top_k, top_p, generator)
        chosen = F.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
        log_prob += chosen.masked_fill(finished, 0.0)
        tokens = tokens.masked_fill(finished, end_id)
        sequence.append(tokens)
        finished |= tokens == end_id
        if finished.all():
            break
    ids = torch.stack(sequence, 1).tolist()
    rows_done = [_caption(row, end_id, lp, lp) for row, lp in zip(ids, log_prob.tolist(), strict=True)]
    groups = [rows_done[i * captions : (i + 1) * captions] for i in range(images)]
    return [sorted(group, key=lambda caption: -caption.score) for group in groups]


def beam_search(
    step: Step,
    images: int,
    beams: int,
    *,
    start_id: int,
    end_id: int,
    max_length: int,
    length_penalty: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[list[Caption]]:
    """The `beams` best captions of each image, best first, by log_prob / length ** length_penalty.

    length counts the tokens after <start>, <end> included; max_length limits it, and what has no <end> by then counts
    as it stands. An image is settled when no open beam can still pass its worst finished one, judged at the present
    length as transformers does (early_stopping=False). beams = 1 is greedy.
    """
    if beams == 1:
        return greedy(step, images, start_id=start_id, end_id=end_id, max_length=max_length, device=device)
    floor = -1e9
    # One open beam per image at first: K equal ones would find the same caption K times.
    open_scores = torch.full((images, beams), floor, device=device)
    open_scores[:, 0] = 0.0
    open_ids = torch.zeros((images, beams, 0), dtype=torch.long, device=device)
    done_scores = torch.full((images, beams), floor, device=device)
    done_log_probs = torch.full((images, beams), floor, device=device)
    done_ids = torch.full((images, beams, max_length), end_id, dtype=torch.long, device=device)
    first_row = torch.arange(images, device=device)[:, None] * beams  # (N, 1)
    tokens = torch.full((images * beams,), start_id, device=device)
    parents: Tensor | None = None
    settled = torch.zeros(images, dtype=torch.bool, device=device)

    for length in range(1, max_length + 1):
        log_probs = F.log_softmax(step(tokens, parents).float(), -1).view(images, beams, -1)
        vocabulary = log_probs.shape[-1]
        totals = (open_scores[:, :, None] + log_probs).flatten(1)  # (N, K*V)
        # 2K candidates: at most K of them end, so K remain to go on.
        best, index = totals.topk(min(2 * beams, totals.shape[1]), dim=1)
        beam, token = index // vocabulary, index % vocabulary  # (N, 2K)
        ids = torch.cat([open_ids.gather(1, beam[:, :, None].expand(-1, -1, length - 1)), token[:, :, None]], 2)
        ends = token == end_id
        last = length == max_length

        # What ends among the first K, and at the limit everything, is measured against the finished ones.
        rank = torch.arange(best.shape[1], device=device)
        # A settled image takes no more, however long the others of its batch go on.
        finishes = (ends | last) & (rank < beams) & (best > floor / 2) & ~settled[:, None]
        scores = (best / length**length_penalty).masked_fill(~finishes, floor)
        padded = F.pad(ids, (0, max_length - length), value=end_id)
        done_scores, order = torch.cat([done_scores, scores], 1).topk(beams, dim=1)
        done_log_probs = torch.cat([done_log_probs, best], 1).gather(1, order)
        done_ids = torch.cat([done_ids, padded], 1).gather(1, order[:, :, None].expand(-1, -1, max_length))

        going = best.masked_fill(ends, floor)
        open_scores, order = going.topk(beams, dim=1)
        open_ids = ids.gather(1, order[:, :, None].expand(-1, -1, length))
        parents = (first_row + beam.gather(1, order)).flatten()
        tokens = token.gather(1, order).flatten()
        settled |= open_scores[:, 0] / length**length_penalty <= done_scores[:, -1]
        if last or bool(settled.all()):
            break

    results = []
    for ids, log_probs, scores in zip(done_ids.tolist(), done_log_probs.tolist(), done_scores.tolist(), strict=True):
        found = [_caption(*row) for row in zip(ids, [end_id] * beams, log_probs, scores, strict=True)]
        results.append([caption for caption in found if caption.score > floor / 2])
    return results


def _draw(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        lowest = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the likeliest token always stays
        dropped = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _caption(ids: list[int], end_id: int, log_prob: float, score: float) -> Caption:
    return Caption(ids[: ids.index(end_id)] if end_id in ids else ids, log_prob, score)
