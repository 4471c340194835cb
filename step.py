"""One optimizer step: the loss, its gradients over all micro-batches and processes, and the update.

B captions, T tokens of the longest caption of a batch.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dataset as data
import distributed
import inference
import model as models
import sharding

_PART = 2**20  # logits made at once, 4 MB


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


def gradients(
    model: models.ImageToTextModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: list[data.Batch],
    settings: Any,
    device: torch.device,
    resident: Tensor | None = None,
) -> Tensor:
    """Leave the clipped gradients of one batch, given in micro-batches of this rank, in the model's parameters.

    resident: the images on the device, where batches hold their numbers (Batch.to). Returns what `read` turns into
    Found. On a GPU all of it is only begun: nothing in here waits for a result (with FSDP one thing: how many passes
    the other ranks make).
    """
    counts = [[len(batch.places.in_captions), len(batch.image_index)] for batch in micro_batches]
    counts = distributed.sum_(torch.tensor(counts).sum(0).to(device, non_blocking=True))  # (2,) tokens, captions
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    own = len(micro_batches)
    for number in range(sharding.passes(model, own)):
        batch = micro_batches[min(number, own - 1)]
        with inference.autocast(device, inference.pick_dtype(settings.PRECISION, device)):
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
        distributed.sum_gradients(parameters)
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, limit)
    return torch.stack([distributed.sum_(total), norm, *counts.float()])


def read(begun: Tensor) -> Found:
    """What `gradients` began. The one place where a step waits for the GPU."""
    loss, norm, tokens, captions = begun.tolist()
    return Found(loss / max(tokens, 1), norm, int(captions))


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, skip: bool) -> None:
    """Take the step that `gradients` prepared, or `skip` it. Raises HalfUpdate where it failed in the middle."""
    try:
        if not skip:
            scaler.step(optimizer)  # skips the update by itself where fp16 gradients overflowed
        scaler.update()
    except Exception as error:
        raise HalfUpdate(f"the optimizer step failed: {error}") from error


def caption_loss(model: models.ImageToTextModel, batch: data.Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats summed over the real tokens of the batch; padding is never mapped to the vocabulary."""
    hidden = model.hidden(batch.images, batch.decoder_input_tokens, batch.places)  # (R, D)
    return hidden_loss(model, hidden, batch, label_smoothing)


def hidden_loss(model: models.ImageToTextModel, hidden: Tensor, batch: data.Batch, label_smoothing: float) -> Tensor:
    """`caption_loss` from the decoder's hidden states (R, D) on."""
    targets = batch.target_tokens.flatten().index_select(0, batch.places.in_captions)  # (R,)
    if hidden.device.type == "cpu" and hidden.requires_grad and not torch.is_autocast_enabled("cpu"):
        return LossInParts.apply(hidden, model.decoder.embedding.weight, targets, label_smoothing)
    logits = model.decoder.logits(hidden).float()  # (R, V)
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)


class LossInParts(torch.autograd.Function):
    """The map to the vocabulary and its summed cross-entropy, forward and backward, a few rows at a time, on a CPU.

    apply(hidden (R, D), weight (V, D), targets (R,), label_smoothing) -> the loss as F.cross_entropy gives it. No more
    than _PART logits are there at once: they stay in the CPU's cache, where all of them would be new pages from the
    system at every step, which take longer to get than the products.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        rows = max(64, _PART // len(weight))
        loss, share = hidden.new_zeros(()), label_smoothing / len(weight)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows, None]
            logits = part @ weight.T  # (r, V)
            total = logits.logsumexp(-1, keepdim=True)
            loss += (total - (1 - label_smoothing) * logits.gather(1, target)).sum() - share * logits.sum()
            gradient = logits.sub_(total).exp_().sub_(share)  # softmax less what it should be
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, label_smoothing - 1))
            torch.mm(gradient, weight, out=of_hidden[start : start + rows])
            of_weight.addmm_(gradient.T, part)
        ctx.save_for_backward(of_hidden, of_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * scale, of_weight * scale, None, None
