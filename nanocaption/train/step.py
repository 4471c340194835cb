"""One optimizer step: the loss, its gradients over all micro-batches and processes, and the update.

What it minimizes is an objective of losses.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanocaption.base import devices
from nanocaption.data.dataset import Batch, collate_fn
from nanocaption.train import contrastive, sharding
from nanocaption.train.losses import Objective
from nanocaption.train.setup import Run, trains_head

Mark = Callable[[str], object]  # told the name of each part of a step that has ended


class HalfUpdate(RuntimeError):
    """The update failed in the middle: weights and optimizer must not be saved."""


class Found(NamedTuple):
    """What a step's forward and backward passes gave."""

    loss: float  # the objective's mean over the whole batch; of captions per real token, in nats
    norm: float  # of the whole gradient, before clipping
    captions: int  # over all ranks
    contrastive: float = 0.0  # the contrastive loss of the whole batch, unweighted; 0 where there is none

    def finite(self, scaled: bool) -> bool:
        """Whether the update may be made. With a loss scale (fp16) an overflowing gradient is normal: it skips it."""
        return math.isfinite(self.loss + self.contrastive) and (math.isfinite(self.norm) or scaled)


def accumulate_gradients(
    run: Run,
    objective: Objective,
    micro_batches: list[Batch],
    resident: Tensor | None = None,
    mark: Mark = lambda part: None,
    step: int = 0,
) -> Tensor:
    """Leave the clipped gradients of one batch, given in micro-batches of this rank, in the model's parameters.

    micro_batches: none where the step has too few groups for all ranks. resident: the images on the device, where
    batches hold their numbers (Batch.to). mark: for the profile. step: its number, for what the contrastive loss draws.
    Returns what `read_found` turns
    into Found. On a GPU all of it is only begun: nothing in here waits for a result (with FSDP one thing: how many
    passes the other ranks make).
    """
    model, scaler, settings, device = run.model, run.scaler, run.settings, run.device
    numbers = [objective.number(batch) for batch in micro_batches]
    counts = torch.tensor([sum(numbers), sum(len(batch.image_index) for batch in micro_batches)])
    counts = devices.sum_(counts.to(device, non_blocking=True))  # (2,) of the objective, captions
    run.optimizer.zero_grad(set_to_none=True)
    held = contrastive.first_pass(run, micro_batches, resident, step) if trains_head(settings) else None
    total = scaler.scale(torch.zeros((), device=device))  # 0 still; a rank without a batch needs the scale as well
    own = len(micro_batches)
    for number in range(sharding.passes(model, own)):
        batch = micro_batches[number] if number < own else collate_fn([run.train_set[(0, (0,))]])
        batch = batch.to(device, resident)
        mark("copy to device")
        extra = 0.0
        if held is not None:
            extra, batch = contrastive.pull(run, held, batch, number, step)
        with devices.autocast(device, devices.pick_dtype(settings.PRECISION, device)):
            loss = objective.total(model, batch)
        if number >= own:
            loss = 0 * loss  # only to take part in what the others gather and sum
        mark("loss")
        scaler.scale(loss / counts[0].clamp(min=1) + extra).backward()
        mark("encoder backward")
        total += loss.detach()
    norm = _clip_gradients(run)
    mark("gradients")
    apart = total.new_zeros(()) if held is None else held.loss
    return torch.stack([devices.sum_(total), norm, *counts.float(), apart])


def _clip_gradients(run: Run) -> Tensor:
    """Sum the gradients over the processes, take the loss scale out, clip; their norm () before that."""
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    spread = sharding.is_spread(run.model)
    if not spread:  # there the backward passes have summed them
        devices.sum_gradients(parameters)
    run.scaler.unscale_(run.optimizer)
    clip = sharding.clip_gradients if spread else nn.utils.clip_grad_norm_
    return clip(parameters, run.settings.GRAD_CLIP_VALUE or math.inf)


def read_found(begun: Tensor) -> Found:
    """What `accumulate_gradients` began. The one place where a step waits for the GPU."""
    loss, norm, counted, captions, apart = begun.tolist()
    return Found(loss / max(counted, 1), norm, int(captions), apart)


def take_update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, skip: bool) -> None:
    """Take the step that was prepared, or `skip` it. Raises HalfUpdate where it failed in the middle."""
    try:
        if not skip:
            scaler.step(optimizer)  # skips the update by itself where fp16 gradients overflowed
        scaler.update()
    except Exception as error:
        raise HalfUpdate(f"the optimizer step failed: {error}") from error
