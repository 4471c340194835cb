"""BATCH_SIZE = "auto": as many captions at once as the GPU can hold."""

import operator
from collections.abc import Callable

import torch

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import ImageTextDataset, collate_fn
from nanocaption.data.order import deal, packed
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.train.losses import caption_objective
from nanocaption.train.steps import caption_counts, whole_steps

CPU_CAPTIONS = 160  # a CPU is as fast per caption from about here on
SHARE = 0.9  # of the GPU's memory that a step may take
STEPS_AN_EPOCH = 100  # at least: a larger batch learns less per epoch
FEWEST_CAPTIONS = 20  # however small the set is: fewer learn no more per epoch, and take longer


def choose(settings: Settings, model: ImageToTextModel, train_set: ImageTextDataset, device: torch.device) -> int:
    """BATCH_SIZE in captions: the most that fits, doubled from one image on, on the first process's GPU.

    Tried with the longest caption of the set. No larger than leaves STEPS_AN_EPOCH steps, but FEWEST_CAPTIONS for all
    processes and micro-batches together. Raises SystemExit where not even one image fits.
    """
    together = min(settings.CAPTIONS_PER_IMAGE, max(caption_counts(train_set)))
    captions = int(sum(map(operator.mul, caption_counts(train_set), train_set.weights)))
    parts = settings.GRAD_ACCUM_STEPS * devices.world_size()
    per_step = max(FEWEST_CAPTIONS, captions // STEPS_AN_EPOCH)
    most, limit = max(1, per_step // (together * parts)), f"leave an epoch {STEPS_AN_EPOCH} steps"
    if per_step == FEWEST_CAPTIONS:
        limit = f"suit so small a set ({captions:,} captions)"
    drawn = captions_drawn(settings)
    if device.type == "cuda":
        images, bound = 0, "fit"
        if devices.rank() == 0:
            images = largest(lambda number: _fits(number, together, settings, model, train_set, device), most)
        (images,) = devices.max_(images)
    else:
        images, bound = min(most, max(1, CPU_CAPTIONS // max(together, drawn))), f"pay here ({CPU_CAPTIONS})"
    if not images:
        raise SystemExit(
            f"BATCH_SIZE = 'auto': not even the {together} captions of one image fit into {device}. Lower "
            "CAPTIONS_PER_IMAGE, or set GRADIENT_CHECKPOINTING = True."
        )
    found = max(settings.CAPTIONS_PER_IMAGE, images * together)  # no smaller one is a setting
    devices.console(
        f"BATCH_SIZE = 'auto': {found} captions at a time, as many as {bound} and {limit}"
    )
    return found


def captions_drawn(settings: Settings) -> int:
    """Captions per picture in a step of self-critical training; 0 of cross-entropy."""
    return settings.SCST_SAMPLES + (settings.SCST_XE_WEIGHT > 0) if settings.OBJECTIVE == "scst" else 0


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1, 2, 4, ... up to `most`, and `most` itself, that fits; 0 where 1 does not."""
    found, number = 0, 1
    while fits(number):
        found = number
        if number == most:
            break
        number = min(2 * number, most)
    return found


def most_pictures(settings: Settings, train_set: ImageTextDataset) -> int:
    """In a batch of the first epoch: more than BATCH_SIZE / CAPTIONS_PER_IMAGE where pictures have fewer captions."""
    ranks, steps = devices.world_size(), whole_steps(settings, train_set, epoch=0)
    return max(len(batch) for step in steps for own in deal(step, ranks) for batch in packed(own, settings.BATCH_SIZE))


def _fits(
    images: int, together: int, settings: Settings, model: ImageToTextModel, train_set: ImageTextDataset,
    device: torch.device,
) -> bool:  # fmt: skip
    """Whether images * together captions, all as the longest there is, leave room for the optimizer."""
    captions = images * together
    pictures = most_pictures(settings.replace(BATCH_SIZE=captions), train_set)
    captions = max(captions, pictures * captions_drawn(settings))
    longest, place = max(
        ((image, place) for image, ids in enumerate(train_set.token_ids) for place in range(len(ids))),
        key=lambda pair: len(train_set.token_ids[pair[0]][pair[1]]),
    )
    shares = [captions // pictures + (number < captions % pictures) for number in range(pictures)]
    batch = collate_fn([train_set[(longest, (place,) * share)] for share in shares])
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    later = (3 if settings.EMA_DECAY else 2) * trained  # AdamW's moments and the average come later
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model.train()
    try:
        with devices.autocast(device, devices.pick_dtype(settings.PRECISION, device)):
            loss = caption_objective(settings.LABEL_SMOOTHING).total(model, batch.to(device, train_set.resident))
        loss.backward()
        taken = torch.cuda.max_memory_allocated(device) + later
        return taken < SHARE * torch.cuda.get_device_properties(device).total_memory
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
