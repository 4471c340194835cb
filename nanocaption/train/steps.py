"""The steps of a run's epochs: on all processes, and those of this one."""

from collections.abc import Sequence

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.order import Group, Steps, deal, epoch_steps, packed
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
        train_set.weights,
    )  # fmt: skip


def captions_together(settings: Settings) -> int:
    """Of a step on all processes, as the settings ask."""
    return settings.BATCH_SIZE * settings.GRAD_ACCUM_STEPS * devices.world_size()


def caption_counts(images: ImageTextDataset) -> Sequence[int]:
    if isinstance(images, StreamedDataset):
        return images.counts
    return [len(ids) for ids in images.token_ids]
