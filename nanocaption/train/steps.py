"""The steps of a run's epochs: on all processes, and those of this one."""

import math
from collections.abc import Sequence

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.order import Group, Steps, deal, epoch_steps, groups_until, packed
from nanocaption.data.stream import StreamedDataset


def steps_of_epoch(settings: Settings, train_set: ImageTextDataset, epoch: int) -> Sequence[list[list[Group]]]:
    """The optimizer steps of an epoch on this process: per step its micro-batches, each of BATCH_SIZE captions at most.

    Of these a step has GRAD_ACCUM_STEPS, or one more where its groups do not fit; none, in a last step of fewer groups
    than processes. Raises ValueError where the whole epoch has fewer.
    """
    rank, ranks = devices.rank(), devices.world_size()
    steps = whole_steps(settings, train_set, epoch)

    def own(step: Sequence[Group]) -> list[list[Group]]:
        return packed(deal(step, ranks)[rank], settings.BATCH_SIZE)

    if isinstance(steps, Steps) and len(train_set) >= ranks:
        return Steps(len(steps), lambda: map(own, steps))
    if (groups := sum(map(len, steps))) < ranks:
        raise ValueError(f"{groups} groups of captions cannot be dealt out to {ranks} processes.")
    return [own(step) for step in steps]


def whole_steps(settings: Settings, train_set: ImageTextDataset, epoch: int) -> Sequence[list[Group]]:
    """The groups of each step on all processes together, see order.epoch_steps; of a streamed set made when needed."""
    if isinstance(train_set, StreamedDataset):
        return train_set.steps(settings.CAPTIONS_PER_IMAGE, captions_together(settings), settings.SEED, epoch)
    return epoch_steps(
        caption_counts(train_set), settings.CAPTIONS_PER_IMAGE, captions_together(settings), settings.SEED, epoch,
        train_set.weights, train_set.rounded_up,
    )  # fmt: skip


def check_visits(settings: Settings, train_set: ImageTextDataset) -> None:
    """Raises ValueError for a weight of a mix that leads to no visit in the whole run, or to an empty first epoch."""
    if isinstance(train_set, StreamedDataset) or train_set.rounded_up:
        return
    counts, first_epoch = caption_counts(train_set), 0
    for weight in sorted(set(train_set.weights)):
        own = [count for count, other in zip(counts, train_set.weights, strict=True) if other == weight]
        groups = sum(-(-count // settings.CAPTIONS_PER_IMAGE) for count in own)
        first_epoch += groups_until(1, weight, groups)
        if not groups_until(settings.NUM_EPOCHS, weight, groups):
            least = math.ceil(10**6 / (groups * settings.NUM_EPOCHS)) / 10**6
            raise ValueError(
                f"DATASET = {settings.DATASET!r}: with a weight of {weight:g} none of its {len(own):,} pictures would "
                f"be visited in NUM_EPOCHS = {settings.NUM_EPOCHS}: give {least:g} or more, or leave that set out"
            )
    if not first_epoch:
        raise ValueError(f"DATASET = {settings.DATASET!r}: with these weights the first epoch has no picture: make "
                         "them larger")  # fmt: skip


def captions_together(settings: Settings) -> int:
    """Of a step on all processes, as the settings ask."""
    return settings.BATCH_SIZE * settings.GRAD_ACCUM_STEPS * devices.world_size()


def caption_counts(images: ImageTextDataset) -> Sequence[int]:
    if isinstance(images, StreamedDataset):
        return images.counts
    return [len(ids) for ids in images.token_ids]
