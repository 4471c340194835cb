"""The order of an epoch: a pure function of (seed, epoch), so that a resume finds its place
without replaying anything."""

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TypeVar

# (image, its captions that travel together), numbers within the data set; and, where a weight brings the image again
# in one epoch, which time this is, from 1.
Group = tuple[int, tuple[int, ...]] | tuple[int, tuple[int, ...], int]
T = TypeVar("T")


def epoch_groups(
    caption_counts: Sequence[int], per_image: int, seed: int, epoch: int, weights: Sequence[float] | None = None
) -> list[Group]:
    """Every (image, caption) pair once, in groups of at most `per_image` captions of one image, shuffled.

    weights: how often the pairs of each image come instead: 2 = twice, 0.5 = half of these images' groups in one epoch
    and the others in the next. A pure function of its arguments, with equally many groups in every epoch; which
    captions of an image travel together changes from epoch to epoch.
    """
    rng = random.Random(f"order-{seed}-{epoch}")
    weights = weights or [1.0] * len(caption_counts)
    groups: list[Group] = []
    for image, count in enumerate(caption_counts):
        for visit in range(int(weights[image])):
            groups += image_groups(image, count, per_image, rng, visit)
    for weight in sorted(set(weights)):
        if share := round(weight % 1, 6):
            counts = {image: caption_counts[image] for image, own in enumerate(weights) if own == weight}
            groups += share_of_groups(counts, per_image, share, seed, epoch, int(weight))
    rng.shuffle(groups)
    return groups


def image_groups(image: int, count: int, per_image: int, rng: random.Random, visit: int) -> list[Group]:
    """The captions of an image, shuffled, in groups. From visit 1 on these say so: their picture is changed anew."""
    captions = list(range(count))
    rng.shuffle(captions)
    mark = (visit,) if visit else ()
    return [(image, tuple(some), *mark) for some in chunks(captions, per_image)]


def share_of_groups(
    counts: dict[int, int], per_image: int, share: float, seed: int, epoch: int, visit: int = 0
) -> list[Group]:
    """This epoch's piece of an endless row of passes over the images of `counts`, each pass in an order of its own.

    visit: how often the images came in this epoch before; a second pass that begins within it counts one more.
    """
    total = sum(math.ceil(count / per_image) for count in counts.values())
    take = math.ceil(round(share * total, 6))
    taken: list[Group] = []
    while len(taken) < take:
        number, start = divmod(epoch * take + len(taken), total)
        rng = random.Random(f"share-{seed}-{share}-{number}")
        one_pass = [g for image, count in counts.items() for g in image_groups(image, count, per_image, rng, visit)]
        rng.shuffle(one_pass)
        taken += one_pass[start : start + take - len(taken)]
        visit += 1
    return taken


def in_order(caption_counts: Sequence[int]) -> list[Group]:
    """Every image once with all its captions, in the set's own order: for validation and captioning."""
    return [(image, tuple(range(count))) for image, count in enumerate(caption_counts)]


def epoch_steps(
    groups: Sequence[Group], batch_size: int, accumulate: int, rank: int = 0, ranks: int = 1
) -> list[list[Sequence[Group]]]:
    """The optimizer steps of an epoch for one process: per step its micro-batches, each a list of groups.

    A step has `accumulate` micro-batches; the last one may have fewer, and one more where a rest joined it.

    batch_size: groups per micro-batch. A step takes the next ranks * accumulate * batch_size groups, dealt out to the
    ranks, so that the order of the data does not depend on their number. A rest too small to give every rank something
    joins the step before. Raises ValueError where there are fewer groups than ranks.
    """
    if len(groups) < ranks:
        raise ValueError(f"{len(groups)} groups of captions cannot be dealt out to {ranks} processes.")
    per_step = ranks * accumulate * batch_size
    steps = [list(step) for step in chunks(groups, per_step)]
    if len(steps[-1]) < ranks:
        rest = steps.pop()
        steps[-1] += rest
    return [chunks(step[rank::ranks], batch_size) for step in steps]


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else; Python's hash() differs from process to process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in their order, `size` together; the last ones may be fewer."""
    return [items[i : i + size] for i in range(0, len(items), size)]
