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
import tokenizer as tokenizers

PAD = tokenizers.PAD


class HalfUpdate(RuntimeError):
    """The update failed in the middle: weights and optimizer must not be saved."""


class Gradients(NamedTuple):
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
) -> Gradients:
    """Leave the clipped gradients of one batch, given in micro-batches of this rank, in the model's parameters."""
    real = sum(int((batch.target_tokens != PAD).sum()) for batch in micro_batches)
    counts = torch.tensor([real, sum(len(batch.image_index) for batch in micro_batches)], device=device)
    tokens, captions = distributed.sum_(counts).tolist()
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        with inference.autocast(device, inference.pick_dtype(settings.PRECISION, device)):
            loss = caption_loss(model, batch.to(device), settings.LABEL_SMOOTHING)
        scaler.scale(loss / max(tokens, 1)).backward()
        total += loss.detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, settings.GRAD_CLIP_VALUE or math.inf).item()
    mean_loss = distributed.sum_(total).item() / max(tokens, 1)
    return Gradients(mean_loss, norm, int(captions))


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
    logits = model.decoder.logits(model.hidden(*batch[:2], batch.image_index))  # (real tokens, V)
    targets = batch.target_tokens[batch.target_tokens != PAD]
    return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
