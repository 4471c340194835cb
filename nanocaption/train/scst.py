"""Self-critical training: the model's own captions, rewarded, as a batch for the ordinary step.

The policy gradient of Rennie et al. 2017 (arXiv 1612.00563) with the mean of an image's other samples as the baseline
of each (Luo 2020, arXiv 2003.09971). A step has two passes. In the first, without gradients, dropout or left-out
patches, `draw` has the model caption each image SCST_SAMPLES times at temperature 1 from the whole distribution, all of
an image's captions on one set of keys. In the second, the ordinary packed pass of a training step, the drawn tokens
are targets whose loss has the caption's advantage as its weight. The other way, a graph kept through the sampling,
costs twenty times as much.

    loss = - sum over drawn tokens of A * log p(token) / number of drawn tokens
    A = reward of the caption - mean reward of the image's other captions

A caption's <end> is one of its tokens; one that was cut by MAX_SEQ_LEN has none, and nothing after its last token
counts. Dropout and left-out patches in the second pass alone are a regulariser with a small bias: without them the
gradient is that of the expected reward.
"""

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocaption.base import devices
from nanocaption.data.dataset import Batch, padded
from nanocaption.data.order import Group, seed_of
from nanocaption.data.packing import Places, find_places
from nanocaption.data.tokenizer import END, PAD, START, UNK, text_of
from nanocaption.model import decode
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.options import Options
from nanocaption.train import sharding
from nanocaption.train.losses import Objective, predictions, token_loss
from nanocaption.train.rewards import Earned, earn
from nanocaption.train.setup import Progress, Run

WINDOW = 50  # steps whose mean stands for the phase's start, and for the present
FEWEST = 20  # steps of which anything is said


class Drawn(NamedTuple):
    """Of the captions of one step, over all processes: sums, but for the last."""

    captions: float
    images: float
    tokens: float
    reward: float
    spread: float  # of the rewards within an image: standard deviations
    log_prob: float  # of the captions, in nats
    words: float
    ended: float
    bad_endings: float
    unsigned: float
    own: float  # captions that the step's groups hold: what the progress bar counts
    signed: bool  # whether there is a sign to ask for

    def row(self) -> dict[str, float]:
        """The fields of a row of log.jsonl. Entropy is estimated by the drawn tokens, in nats per token."""
        captions, images, tokens = (max(n, 1) for n in (self.captions, self.images, self.tokens))
        found = {
            "reward": self.reward / captions, "reward_spread": self.spread / images, "entropy": -self.log_prob / tokens,
            "length": self.words / captions, "ended": self.ended / captions, "bad_endings": self.bad_endings / captions,
        }  # fmt: skip
        return found | ({"no_full_stop": self.unsigned / captions} if self.signed else {})


def begin_phase(run: Run, progress: Progress) -> None:
    """At the start of an epoch of the phase: weights do not decay; in its first step the optimizer is a fresh one.

    Moments of cross-entropy would carry the first steps on with another objective's gradient and scale.
    """
    if progress.step_in_epoch == 0 and progress.epoch == run.settings.SCST_START_EPOCH:
        run.optimizer.state.clear()
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.0


def scst_objective(xe_weight: float, label_smoothing: float) -> Objective:
    """The policy gradient per drawn token, for batches of `draw`; plus xe_weight times the cross-entropy.

    Label smoothing is for the pictures' own captions alone: a drawn token is no truth to be doubted.
    """

    def total(model: ImageToTextModel, batch: Batch) -> Tensor:
        hidden, targets = predictions(model, batch)
        drawn = 0 if batch.advantages is None else len(batch.advantages)
        weights = hidden.new_zeros(0, dtype=torch.float32) if batch.advantages is None else batch.advantages
        loss = token_loss(model, hidden[:drawn], targets[:drawn], weights=weights)
        if xe_weight and drawn < len(hidden):
            loss = loss + xe_weight * token_loss(model, hidden[drawn:], targets[drawn:], label_smoothing)
        return loss

    return Objective(total, lambda batch: 0 if batch.advantages is None else len(batch.advantages))


def draw(
    run: Run, batches: Sequence[Batch], groups: Sequence[Sequence[Group]], epoch: int, resident: Tensor | None = None
) -> tuple[list[Batch], Drawn]:
    """The micro-batches of a step on this rank with drawn captions in place of their own, and what the step drew.

    groups: of the images of each batch, in their order. With SCST_XE_WEIGHT an own caption of each image follows the
    drawn ones: the first of its group, and so another one each epoch, as all five would double the cost of the pass.
    What is drawn for an image is a function of (SEED, epoch, group) and the weights. All ranks together.
    """
    settings, found, totals = run.settings, [], torch.zeros(len(Drawn._fields) - 1, dtype=torch.float64)
    most = run.model.decoder.max_seq_len - 1
    run.model.eval()
    with sharding.gathered(run.model):
        for batch, own in zip(batches, groups, strict=True):
            seeds = [seed_of(settings.SEED, "scst", epoch, group) for group in own]
            images = _encoded(run, batch.to(run.device, resident).images)
            if resident is None:  # where `batch` holds the images, and not their numbers
                batch = batch._replace(images=images)
            captions = _sample(run, images, seeds)
            earned = _earned(run, captions, [image for image, *_ in own])
            drawn = _as_batch(captions, earned, batch, most)
            found.append(drawn if not settings.SCST_XE_WEIGHT else _followed_by(drawn, _one_each(batch)))
            totals += torch.tensor([*_sums(captions, earned, most), len(batch.image_index)], dtype=torch.float64)
    run.model.train()
    totals = devices.sum_(totals.to(run.device if run.device.type == "cuda" else "cpu"))
    assert run.rewards is not None
    return found, Drawn(*totals.tolist(), signed=bool(run.rewards.ending))


def _encoded(run: Run, images: Tensor) -> Tensor:
    """Of a frozen encoder the features, made once for both passes of the step; else the images as they are."""
    if images.ndim == 3 or not run.model.freeze_encoder:
        return images
    with torch.no_grad(), devices.autocast(run.device, devices.pick_dtype(run.settings.PRECISION, run.device)):
        return run.model.encode(images)


def _sample(run: Run, images: Tensor, seeds: Sequence[int]) -> list[list[decode.Caption]]:
    model, settings = run.model, run.settings
    limits = decode.Limits(START, END, model.decoder.max_seq_len - 1, run.device)
    with devices.autocast(run.device, devices.pick_dtype(settings.PRECISION, run.device)):
        return decode.sample(
            model.start_decoding(images), len(seeds), Options(samples=settings.SCST_SAMPLES), limits, seeds
        )


def _earned(run: Run, captions: Sequence[Sequence[decode.Caption]], images: Sequence[int]) -> Earned:
    assert run.rewards is not None
    most, drawn = run.model.decoder.max_seq_len - 1, [caption.ids for own in captions for caption in own]
    return earn(
        run.rewards, np.repeat(images, run.settings.SCST_SAMPLES).tolist(),
        [text_of(run.tokenizer, ids) for ids in drawn], [sum(token <= UNK for token in ids) for ids in drawn],
        [len(ids) < most for ids in drawn],
    )  # fmt: skip


def advantages(rewards: np.ndarray) -> np.ndarray:
    """rewards (N, K) of the K captions of N images -> each less the mean of the others (N, K); exactly 0 for equals."""
    above = rewards - rewards[:, :1]
    return above - (above.sum(1, keepdims=True) - above) / (rewards.shape[1] - 1)


def _as_batch(captions: Sequence[Sequence[decode.Caption]], earned: Earned, batch: Batch, most: int) -> Batch:
    """N images with K drawn captions each as a batch. most: tokens after <start>; a caption of so many has no <end>."""
    each = len(captions[0])
    drawn = [[START, *caption.ids, *[END] * (len(caption.ids) < most)] for own in captions for caption in own]
    inputs, targets = (torch.from_numpy(padded([ids[part] for ids in drawn], PAD))
                       for part in (slice(-1), slice(1, None)))  # fmt: skip
    lengths = torch.tensor([len(ids) - 1 for ids in drawn])
    index = torch.arange(len(captions)).repeat_interleave(each)
    weights = torch.from_numpy(advantages(earned.rewards.reshape(-1, each)).astype(np.float32)).flatten()
    return batch._replace(
        decoder_input_tokens=inputs, target_tokens=targets, image_index=index,
        places=_places(lengths, inputs.shape[1], index, len(captions)), advantages=weights.repeat_interleave(lengths),
    )  # fmt: skip


def _one_each(batch: Batch) -> Batch:
    """The batch with the first caption of each image alone."""
    index = batch.image_index
    first = torch.ones(len(index), dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    lengths, images = _lengths(batch.places)[first], len(batch.images)
    return batch._replace(
        decoder_input_tokens=batch.decoder_input_tokens[first], target_tokens=batch.target_tokens[first],
        image_index=index[first], places=_places(lengths, batch.places.captions[1], index[first], images),
    )  # fmt: skip


def _followed_by(drawn: Batch, batch: Batch) -> Batch:
    """The captions of `drawn`, and after them those of `batch`, of the same images."""
    longest = max(own.places.captions[1] for own in (drawn, batch))

    def both(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=PAD) for part in (first, second)])

    lengths = torch.cat([_lengths(drawn.places), _lengths(batch.places)])
    index = torch.cat([drawn.image_index, batch.image_index])
    return drawn._replace(
        decoder_input_tokens=both(drawn.decoder_input_tokens, batch.decoder_input_tokens),
        target_tokens=both(drawn.target_tokens, batch.target_tokens),
        image_index=index, places=_places(lengths, longest, index, len(drawn.images)),
    )  # fmt: skip


def _lengths(places: Places) -> Tensor:
    """The real tokens of each caption, (B,)."""
    captions, length = places.captions
    return torch.bincount(places.in_captions // length, minlength=captions)


def _places(lengths: Tensor, longest: int, index: Tensor, images: int) -> Places:
    """By lengths (B,), as a drawn token may be <pad> itself."""
    return find_places((torch.arange(longest) < lengths[:, None]).long(), 0, index, images)


def _sums(captions: Sequence[Sequence[decode.Caption]], earned: Earned, most: int) -> list[float]:
    """The first fields of Drawn, of one batch."""
    each = [caption for own in captions for caption in own]
    ended = sum(len(caption.ids) < most for caption in each)
    spread = earned.rewards.reshape(len(captions), -1).std(1).sum()
    return [
        len(each), len(captions), sum(len(caption.ids) for caption in each) + ended, earned.rewards.sum(), spread,
        sum(caption.log_prob for caption in each), earned.lengths.sum(), ended, earned.bad_endings.sum(),
        earned.unsigned.sum(),
    ]  # fmt: skip


# What is told of a phase: a field of the log, whether it went astray (from its start -> now), and what that means.
_SIGNS: tuple[tuple[str, Callable[[float, float], bool], str], ...] = (
    ("reward", lambda start, now: now < start, "the reward falls: lower SCST_LEARNING_RATE"),
    ("reward_spread", lambda start, now: now < start / 4, "a picture's captions earn the same: little to learn"),
    ("entropy", lambda start, now: now < start / 4, "nearly the same is drawn every time"),
    ("length", lambda start, now: not 0.7 * start <= now <= 1.4 * start, "captions change their length"),
    ("ended", lambda start, now: now < start - 0.02, "captions are cut at MAX_SEQ_LEN"),
    ("bad_endings", lambda start, now: now > max(2 * start, start + 0.01), "captions end in the middle of a phrase"),
    ("no_full_stop", lambda start, now: now > start + 0.02, "captions lose their last sign"),
)


def drift(history: Iterable[Mapping[str, object]]) -> str | None:
    """One line of what goes astray in self-critical training, None where nothing does.

    history: rows of log.jsonl; the means over the first and the last WINDOW steps of the phase are compared, of fewer
    steps those of the first and the last half, and nothing is said of fewer than FEWEST.
    """
    first: list[Mapping[str, object]] = []
    last: collections.deque[Mapping[str, object]] = collections.deque(maxlen=WINDOW)
    number = 0
    for row in history:  # which may be long: only both ends are held
        if row.get("type") == "train" and "reward" in row:
            first += [row] * (number < WINDOW)
            last.append(row)
            number += 1
    if number < FEWEST:
        return None
    width = min(WINDOW, number // 2)

    def mean(part: Iterable[Mapping[str, object]], name: str) -> float:
        values = [value for row in part if isinstance(value := row.get(name), int | float)]
        return statistics.fmean(values) if values else math.nan

    found = []
    for name, astray, meaning in _SIGNS:
        start, now = mean(first[:width], name), mean([*last][-width:], name)
        if not math.isnan(start + now) and astray(start, now):
            found.append(f"{name} {start:.3g} -> {now:.3g} ({meaning})")
    return f"WARNING, self-critical training since its start: {'; '.join(found)}." if found else None
