"""One optimizer step: the loss, its gradients over all micro-batches and processes, and the update.

B captions, T tokens of the longest caption of a batch.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import Batch
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.train import sharding
from nanocaption.train.losses import caption_loss


class HalfUpdate(RuntimeError):
    """The update failed in the middle: weights and optimizer must not be saved."""


class Found(NamedTuple):
    """What a step's forward and backward passes gave."""

    loss: float  # mean per real token of the whole batch, in nats
    norm: float  # of the whole gradient, before clipping
    captions: int  # over all ranks

    def finite(self, scaled: bool) -> bool:
        """Whether the update may be made. With a loss scale (fp16) an overflowing gradient is normal: it skips it."""
        return math.isfinite(self.loss) and (math.isfinite(self.norm) or scaled)


def accumulate_gradients(
    model: ImageToTextModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: list[Batch],
    settings: Settings,
    device: torch.device,
    resident: Tensor | None = None,
) -> Tensor:
    """Leave the clipped gradients of one batch, given in micro-batches of this rank, in the model's parameters.

    resident: the images on the device, where batches hold their numbers (Batch.to). Returns what `read` turns into
    Found. On a GPU all of it is only begun: nothing in here waits for a result (with FSDP one thing: how many passes
    the other ranks make).
    """
    counts = [[len(batch.places.in_captions), len(batch.image_index)] for batch in micro_batches]
    counts = devices.sum_(torch.tensor(counts).sum(0).to(device, non_blocking=True))  # (2,) tokens, captions
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    own = len(micro_batches)
    for number in range(sharding.passes(model, own)):
        batch = micro_batches[min(number, own - 1)]
        with devices.autocast(device, devices.pick_dtype(settings.PRECISION, device)):
            loss = caption_loss(model, batch.to(device, resident), settings.LABEL_SMOOTHING)
        if number >= own:
            loss = 0 * loss  # only to take part in what the others gather and sum
        scaler.scale(loss / counts[0].clamp(min=1)).backward()
        total += loss.detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit = settings.GRAD_CLIP_VALUE or math.inf
    if sharding.is_spread(model):
        sharding.take_gradients(parameters, scaler.is_enabled())
        scaler.unscale_(optimizer)
        norm = sharding.clip_gradients(parameters, limit)
    else:
        devices.sum_gradients(parameters)
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, limit)
    return torch.stack([devices.sum_(total), norm, *counts.float()])


def read_found(begun: Tensor) -> Found:
    """What `gradients` began. The one place where a step waits for the GPU."""
    loss, norm, tokens, captions = begun.tolist()
    return Found(loss / max(tokens, 1), norm, int(captions))


def take_update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, skip: bool) -> None:
    """Take the step that `gradients` prepared, or `skip` it. Raises HalfUpdate where it failed in the middle."""
    try:
        if not skip:
            scaler.step(optimizer)  # skips the update by itself where fp16 gradients overflowed
        scaler.update()
    except Exception as error:
        raise HalfUpdate(f"the optimizer step failed: {error}") from error
