"""Contrastive training: the captions of an image nearer to it than those of other images, over a whole step at once.

The loss is a function of the vectors of all images and captions of a step, on all processes and in all micro-batches,
so that neither division changes it. Following GradCache (Gao et al. 2021, arXiv 2101.06983) a step first makes the
vectors, gathers them, and takes the loss's gradient with respect to its own; each micro-batch's backward pass then
begins with these. As every process computes the loss of the whole, a gradient counts its part in the rows and columns
of all others, and the sum over processes is that of one process: no factor of their number, and nothing lost.

    softmax   InfoNCE both ways (CLIP), the targets shared equally among all that belong together
    sigmoid   a yes or no for every pair (SigLIP, arXiv 2303.15343), per caption; the bias is beside the log-odds of the
              share of positives in the step, so that it may begin at 0 whatever the step's size

All captions of an image are its positives, and so is every caption that says the same, word for word. Nothing here is
weighted by how many captions an image has beyond that.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import Batch, ImageTextDataset
from nanocaption.data.loader import make_loader
from nanocaption.data.order import Group, in_order, packed, seed_of
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.retrieval import WIDTH, ContrastiveHead
from nanocaption.score.retrieval import ranks_of, scores_of
from nanocaption.train.losses import Objective
from nanocaption.train.setup import Run


class Vectors(NamedTuple):
    """N images and B captions of a step, or of a part of it."""

    images: Tensor  # float32 (N, WIDTH)
    texts: Tensor  # float32 (B, WIDTH)
    names: Tensor  # int64 (N,) the number of each image in its data set
    owners: Tensor  # int64 (B,) the same of each caption's image
    said: Tensor  # int64 (B,) equal where captions are, token by token


class Held(NamedTuple):
    """What a step knows before its backward passes."""

    loss: Tensor  # () of the whole step, on all processes the same
    parts: list[Vectors]  # of this process's micro-batches, with a graph where there is one alone
    gradients: list[tuple[Tensor, Tensor]]  # of the loss with respect to their images and texts
    own: tuple[Tensor, Tensor] | None  # with respect to scale and bias; of one process alone, which adds them
    encoded: list[Tensor | None]  # the features that the first pass made, where it kept its graph


def weight_of(settings: Settings) -> float:
    """Of the contrastive loss in what a step minimizes."""
    return 1.0 if settings.OBJECTIVE == "contrastive" else settings.CONTRASTIVE_WEIGHT


def head_objective() -> Objective:
    """For a head that is trained alone: of the captions nothing is asked."""
    return Objective(lambda model, batch: torch.zeros((), device=batch.target_tokens.device),
                     lambda batch: len(batch.image_index))  # fmt: skip


def named(batch: Batch, groups: Sequence[Group]) -> Batch:
    """The batch with the numbers of its images in the data set. groups: of these, in their order."""
    return batch._replace(names=torch.tensor([image for image, *_ in groups]))


def row(run: Run, loss: float) -> dict[str, float]:
    """The fields of a row of log.jsonl. loss: of the step; where the head is trained alone, it is the row's loss."""
    if run.model.retrieval is None:
        return {}
    own = {"contrastive_loss": loss, "temperature": 1 / run.model.retrieval.scale().item()}
    return own | ({"loss": loss} if run.settings.OBJECTIVE == "contrastive" else {})


# --- The loss ---


def belongs(names: Tensor, owners: Tensor, said: Tensor) -> Tensor:
    """bool (N, B): which captions are right for which image, its own and what says the same as one of them."""
    own = names[:, None] == owners  # (N, B)
    kinds, kind = said.unique(return_inverse=True)
    has = own.new_zeros(len(names), len(kinds), dtype=torch.bool)
    image, caption = own.nonzero(as_tuple=True)
    has[image, kind[caption]] = True
    return has[:, kind]


def contrastive_loss(
    head: ContrastiveHead, images: Tensor, texts: Tensor, right: Tensor, kind: str = "softmax"
) -> Tensor:
    """The loss () of images (N, W) and texts (B, W) of length 1. right: bool (N, B), see `belongs`; kind: "softmax" or
    "sigmoid". In nats, per image and per caption in equal parts, or per caption."""
    logits = head.scale() * images @ texts.T  # (N, B)
    if kind == "sigmoid":
        share = right.float().mean().clamp(1e-6, 1 - 1e-6)
        signs = torch.where(right, 1.0, -1.0)
        return -F.logsigmoid(signs * (logits + head.bias + share.logit())).sum() / logits.shape[1]
    targets = right.float()
    to_text = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True).clamp(min=1))
    to_image = F.cross_entropy(logits.T, (targets / targets.sum(0).clamp(min=1)).T)
    return (to_text + to_image) / 2


# --- A step ---


def first_pass(run: Run, micro_batches: Sequence[Batch], resident: Tensor | None, step: int) -> Held:
    """Vectors of the step's images and captions, gathered, and the loss with its gradients. All processes together."""
    head = run.model.retrieval
    assert head is not None
    head.clamp()
    alone = len(micro_batches) == 1
    parts, encoded = [], []
    for number, batch in enumerate(micro_batches):
        with torch.set_grad_enabled(alone):
            part, features = vectors_of(run, batch.to(run.device, resident), step, number)
        parts.append(part)
        encoded.append(features if alone else None)
    merged = joined(parts, run.device)
    everything, starts = gathered(merged)
    images, texts = (rows.detach().requires_grad_() for rows in (everything.images, everything.texts))
    right = belongs(everything.names, everything.owners, everything.said)
    with torch.enable_grad():
        loss = contrastive_loss(head, images, texts, right, run.settings.CONTRASTIVE_LOSS)
        wanted = [images, texts, head.log_scale, head.bias]
        of_images, of_texts, *own = torch.autograd.grad(loss, wanted, allow_unused=True)
    sizes = [(len(part.images), len(part.texts)) for part in parts]
    mine = [of[start : start + len(rows)] for of, start, rows in
            zip((of_images, of_texts), starts, (merged.images, merged.texts), strict=True)]  # fmt: skip
    pieces = [of.split([size[n] for size in sizes]) for n, of in enumerate(mine)] if parts else ([], [])
    gradients = list(zip(*pieces, strict=True))
    first = starts[0] == 0 and len(merged.images) > 0  # one process alone: the first that has images
    scale, bias = (torch.zeros((), device=run.device) if of is None else of for of in own)
    return Held(loss.detach(), parts, gradients, (scale, bias) if first else None, encoded)


def vectors_of(run: Run, batch: Batch, step: int, number: int) -> tuple[Vectors, Tensor]:
    """Those of micro-batch `number`, on the device, and its images' features; with the dropout of this step and batch,
    whichever time it is."""
    model = run.model
    with devices.autocast(run.device, devices.pick_dtype(run.settings.PRECISION, run.device)):
        features = batch.images if batch.images.ndim == 3 else model.encode(batch.images)
        torch.manual_seed(seed_of(run.settings.SEED, "contrastive", step, devices.rank(), number))
        images = model.image_vectors(features, batch.kept)
        texts = model.text_vectors(batch.decoder_input_tokens, batch.places)
    assert batch.names is not None
    said = said_by(batch.decoder_input_tokens).to(run.device)
    return Vectors(images, texts, batch.names, batch.names[batch.image_index], said), features


def said_by(tokens: Tensor) -> Tensor:
    """int64 (B,) of captions (B, T): equal for equal captions, whatever the padding behind them."""
    rows = tokens.cpu().numpy()
    return torch.tensor([seed_of("said", np.trim_zeros(row, "b").tolist()) for row in rows], dtype=torch.int64)


def joined(parts: Sequence[Vectors], device: torch.device) -> Vectors:
    """The vectors of several parts in one, without their graph; empty where there are none."""
    if not parts:
        rows, numbers = torch.zeros(0, WIDTH, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        return Vectors(rows, rows, numbers, numbers, numbers)
    return Vectors._make(torch.cat([piece.detach() for piece in pieces]) for pieces in zip(*parts, strict=True))


def gathered(own: Vectors) -> tuple[Vectors, tuple[int, int]]:
    """Those of all processes, in the order of their ranks, and where this one's images and texts begin among them."""
    found = [devices.gather_rows(rows) for rows in own]
    return Vectors._make(rows for rows, _ in found), (found[0][1], found[1][1])


def pull(run: Run, held: Held, batch: Batch, number: int, step: int) -> tuple[Tensor, Batch]:
    """What a micro-batch adds to the loss so that its gradient is the contrastive one's, and the batch to go on with.

    Its value is of no meaning. batch: on the device; given back with its features where they are there already.
    """
    part, features = held.parts[number], held.encoded[number]
    if features is None:
        part, features = vectors_of(run, batch, step, number)
    of_images, of_texts = held.gradients[number]
    total = (part.images * of_images).sum() + (part.texts * of_texts).sum()
    if held.own is not None and number == 0:
        assert run.model.retrieval is not None
        total = total + run.model.retrieval.log_scale * held.own[0] + run.model.retrieval.bias * held.own[1]
    return weight_of(run.settings) * total, batch._replace(images=features)


# --- Validation ---


@torch.no_grad()
def validate(run: Run) -> tuple[float, dict[str, float]]:
    """The loss over the whole validation split, and recall both ways in per cent. All processes together; eval mode.

    Empty where the split has fewer than two images.
    """
    own = joined(list(embed(run.model, run.val_set, run.settings, run.device)), run.device)
    everything, _ = gathered(own)
    order = everything.names.argsort(stable=True)
    places = torch.full((int(everything.names.max()) + 1,), -1, device=run.device)
    places[everything.names[order]] = torch.arange(len(order), device=run.device)
    images, owner = everything.images[order], places[everything.owners]
    assert run.model.retrieval is not None
    right = belongs(everything.names[order], everything.owners, everything.said)
    loss = contrastive_loss(run.model.retrieval, images, everything.texts, right, run.settings.CONTRASTIVE_LOSS)
    if len(images) < 2:
        return loss.item(), {}
    cosines = (images @ everything.texts.T).cpu().numpy()
    return loss.item(), scores_of(ranks_of(cosines, owner.cpu().numpy()))


def embed(
    model: ImageToTextModel, images: ImageTextDataset, settings: Settings, device: torch.device
) -> Iterator[Vectors]:
    """Vectors of this process's share of a data set with its captions, batch by batch."""
    groups = [group for group in in_order([len(ids) for ids in images.token_ids]) if group[1]]
    mine = groups[devices.rank() :: devices.world_size()]
    batches = packed(mine, max(settings.BATCH_SIZE, 500))
    for own, batch in zip(batches, make_loader(images, batches, settings.NUM_WORKERS), strict=True):
        batch = named(batch, own).to(device, images.resident)
        assert batch.names is not None
        with devices.autocast(device, devices.pick_dtype(settings.PRECISION, device)):
            vectors = model.image_vectors(batch.images), model.text_vectors(batch.decoder_input_tokens, batch.places)
        said = said_by(batch.decoder_input_tokens).to(device)
        yield Vectors(*vectors, batch.names, batch.names[batch.image_index], said)
