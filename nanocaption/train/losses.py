"""What training minimizes. An objective of another kind stands here, or in a file beside this one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from nanocaption.data.dataset import Batch
from nanocaption.model.captioner import ImageToTextModel

_PART = 2**20  # logits made at once, 4 MB


class Objective(NamedTuple):
    """A sum over a batch and how many it sums; a step minimizes their quotient over all its batches and processes.

    Two functions, because a step divides by the number of all its micro-batches before the first backward pass.
    """

    total: Callable[[ImageToTextModel, Batch], Tensor]  # (), with gradients; the batch is on the model's device
    number: Callable[[Batch], int]


def caption_objective(label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy per real token; where there are questions, per token of the answers."""
    return Objective(
        lambda model, batch: caption_loss(model, batch, label_smoothing),
        lambda batch: len(batch.places.in_captions if batch.answers is None else batch.answers),
    )


def caption_loss(model: ImageToTextModel, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats summed over the real tokens of the batch; padding is never mapped to the vocabulary.

    Nor are questions, where there are some: the answers alone are learnt.
    """
    hidden, targets = predictions(model, batch)
    if batch.answers is not None:
        hidden, targets = hidden.index_select(0, batch.answers), targets.index_select(0, batch.answers)
    return token_loss(model, hidden, targets, label_smoothing)


def predictions(model: ImageToTextModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden states (R, D) of the real tokens of the batch, and the token (R,) that each should predict."""
    hidden = model.hidden(batch.images, batch.decoder_input_tokens, batch.places, batch.kept)  # (R, D)
    return hidden, batch.target_tokens.flatten().index_select(0, batch.places.in_captions)


def token_loss(
    model: ImageToTextModel,
    hidden: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy in nats summed over rows of hidden (R, D) with targets (R,), each times its weight (R,): ()."""
    if hidden.device.type == "cpu" and hidden.requires_grad and not torch.is_autocast_enabled("cpu"):
        return LossInParts.apply(hidden, model.decoder.embedding.weight, targets, label_smoothing, weights)
    logits = model.decoder.logits(hidden).float()  # (R, V)
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return (weights * F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)).sum()


class LossInParts(torch.autograd.Function):
    """The map to the vocabulary and its summed cross-entropy, forward and backward, a few rows at a time, on a CPU.

    apply(hidden (R, D), weight (V, D), targets (R,), label_smoothing, row_weights (R,) or None) -> the loss as
    F.cross_entropy gives it, each row times its weight. No more than _PART logits are there at once: they stay in the
    CPU's cache, where all of them would be new pages from the system at every step, which take longer to get than the
    products.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float,
        row_weights: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        rows = max(64, _PART // len(weight))
        loss, share = hidden.new_zeros(()), label_smoothing / len(weight)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows, None]
            logits = part @ weight.T  # (r, V)
            total = logits.logsumexp(-1, keepdim=True)
            own = None if row_weights is None else row_weights[start : start + rows, None]  # (r, 1)
            losses = total - (1 - label_smoothing) * logits.gather(1, target)  # (r, 1), the part of all words missing
            if own is None:
                loss += losses.sum() - share * logits.sum()
            else:
                loss += (own * (losses - share * logits.sum(1, keepdim=True))).sum()
            gradient = logits.sub_(total).exp_().sub_(share)  # softmax less what it should be
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, label_smoothing - 1))
            if own is not None:
                gradient.mul_(own)
            torch.mm(gradient, weight, out=of_hidden[start : start + rows])
            of_weight.addmm_(gradient.T, part)
        ctx.save_for_backward(of_hidden, of_weight)
        return loss

    @staticmethod
    def backward(ctx: BackwardCFunction, scale: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        of_hidden, of_weight = ctx.saved_tensors  # type: ignore[misc]
        return of_hidden * scale, of_weight * scale, None, None, None
