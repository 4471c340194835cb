"""The order of an epoch: a pure function of (seed, epoch), so that a resume finds its place
without replaying anything."""

import collections
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar, overload

# (image, its captions that travel together), numbers within the data set; and, where a weight brings the image again
# in one epoch, which time this is, from 1.
Group = tuple[int, tuple[int, ...]] | tuple[int, tuple[int, ...], int]
T = TypeVar("T")
AHEAD = 32  # groups among which one is looked for that fills a step


def epoch_groups(
    caption_counts: Sequence[int], per_image: int, seed: int, epoch: int, weights: Sequence[float] | None = None,
    rounded_up: bool = False,
) -> list[Group]:  # fmt: skip
    """Every (image, caption) pair once, in groups of at most `per_image` captions of one image, shuffled.

    weights: how often the pairs of each image come instead: 2 = twice, 0.5 = half of these images' groups in one epoch
    and the others in the next. A pure function of its arguments; where weights are fractions epochs differ by a group,
    the first has the fewest. Which captions of an image travel together changes from epoch to epoch. rounded_up: as
    `share_of_groups`.
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
            groups += share_of_groups(counts, per_image, share, seed, epoch, int(weight), rounded_up)
    rng.shuffle(groups)
    return groups


def image_groups(image: int, count: int, per_image: int, rng: random.Random, visit: int) -> list[Group]:
    """The captions of an image, shuffled, in groups. From visit 1 on these say so: their picture is changed anew."""
    captions = list(range(count))
    rng.shuffle(captions)
    mark = (visit,) if visit else ()
    return [(image, tuple(some), *mark) for some in chunks(captions, per_image)]


def share_of_groups(
    counts: dict[int, int], per_image: int, share: float, seed: int, epoch: int, visit: int = 0,
    rounded_up: bool = False,
) -> list[Group]:  # fmt: skip
    """This epoch's piece of an endless row of passes over the images of `counts`, each pass in an order of its own.

    After any number of epochs so many groups have come as the share says, less than one fewer: 3 visits in 30 epochs of
    0.1. visit: how often the images came in this epoch before; a second pass that begins within it counts one more.
    rounded_up: as in runs of before, where each epoch was rounded up by itself, 4 visits in 30 epochs of 0.1 of 15.
    """
    total = sum(math.ceil(count / per_image) for count in counts.values())
    first, end = (groups_until(epoch + more, share, total) for more in (0, 1))
    if rounded_up:
        take = math.ceil(round(share * total, 6))
        first, end = epoch * take, (epoch + 1) * take
    taken: list[Group] = []
    while len(taken) < end - first:
        number, start = divmod(first + len(taken), total)
        rng = random.Random(f"share-{seed}-{share}-{number}")
        one_pass = [g for image, count in counts.items() for g in image_groups(image, count, per_image, rng, visit)]
        rng.shuffle(one_pass)
        taken += one_pass[start : start + end - first - len(taken)]
        visit += 1
    return taken


def groups_until(epoch: int, share: float, total: int) -> int:
    """How many groups of `total` have come before `epoch`, where each epoch takes a share of them (6 decimals)."""
    return epoch * round(share * 10**6) * total // 10**6


def in_order(caption_counts: Sequence[int]) -> list[Group]:
    """Every image once with all its captions, in the set's own order: for validation and captioning."""
    return [(image, tuple(range(count))) for image, count in enumerate(caption_counts)]


def epoch_steps(
    caption_counts: Sequence[int], per_image: int, per_step: int, seed: int, epoch: int,
    weights: Sequence[float] | None = None, rounded_up: bool = False,
) -> list[list[Group]]:  # fmt: skip
    """The groups of an epoch, see epoch_groups, as its optimizer steps: in their order until `per_step` captions are
    there, however many pictures that takes.

    A pure function of its arguments, with equally many steps in every epoch. Step k ends where the captions so far
    reach k targets (`step_target`), so that one step's excess is the next one's lack, and no step exceeds the target
    by a group. A group that would do so waits where one of the next AHEAD groups fits in. A rest smaller than a group
    joins the last step. Where weights are fractions, epochs differ in captions, and the targets are stretched to fit.
    """
    groups = epoch_groups(caption_counts, per_image, seed, epoch, weights, rounded_up)
    captions = usual = number_of_captions(groups)
    if any(weight % 1 for weight in weights or ()):
        usual = number_of_captions(epoch_groups(caption_counts, per_image, seed, 0, weights, rounded_up))
    target = step_target(caption_counts, per_image, per_step)
    number = number_of_steps(usual, target, group_sizes(caption_counts, per_image))
    goals = [step * target * captions // usual for step in range(1, number)]
    return list(filled(groups, len(groups), goals))


def number_of_steps(captions: int, target: int, sizes: Collection[int]) -> int:
    """Of an epoch of so many captions, with `target` in a step. sizes: those of its groups."""
    return max(1, captions // target + (captions % target >= max(sizes)))


def filled(groups: Iterable[Group], number: int, goals: Iterable[int]) -> Iterator[list[Group]]:
    """The steps that `number` groups make, in their order but for what waits: see epoch_steps.

    goals: how many captions there are with each step but the last, which takes the rest. No more groups are taken from
    `groups` than the next AHEAD.
    """
    source = iter(groups)
    pending: collections.deque[Group] = collections.deque(itertools.islice(source, AHEAD))
    goals, taken = list(goals), 0
    for left, goal in zip(range(len(goals), 0, -1), goals, strict=True):  # steps after this one, each needs a group
        step: list[Group] = []
        while not step or (taken < goal and number > left):
            place = next((place for place, group in enumerate(pending) if len(group[1]) <= goal - taken), 0)
            step.append(pending[place])
            taken += len(pending[place][1])
            number -= 1
            del pending[place]
            pending.extend(itertools.islice(source, 1))
        yield step
    yield [*pending, *source]


class Steps(Sequence[T]):
    """`length` items that `make` gives anew whenever they are asked for, so that they need not be held in memory."""

    def __init__(self, length: int, make: Callable[[], Iterable[T]], start: int = 0):
        self.length, self.make, self.start = length, make, start

    def __len__(self) -> int:
        return self.length - self.start

    def __iter__(self) -> Iterator[T]:
        return itertools.islice(self.make(), self.start, None)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, int):
            return next(itertools.islice(iter(self), range(len(self))[place], None))
        start, stop, _ = place.indices(len(self))
        if stop == len(self) and place.step in (None, 1):
            return Steps(self.length, self.make, self.start + start)
        return list(itertools.islice(iter(self), start, stop, place.step))


def flattened(steps: Sequence[list[T]]) -> Sequence[T]:
    """The items of all steps in one row; of Steps as Steps, whose length is then that of the steps."""
    def items() -> Iterator[T]:
        return (item for step in steps for item in step)

    return Steps(len(steps), items) if isinstance(steps, Steps) else [*items()]


def step_target(caption_counts: Sequence[int], per_image: int, per_step: int) -> int:
    """How many captions a step aims at: `per_step`, or a little less where whole groups cannot fill that.

    So a step of 24 captions takes four pictures of five, and not five and four in turn.
    """
    sizes = group_sizes(caption_counts, per_image)
    return max(per_step - per_step % math.gcd(*sizes), max(sizes))


def group_sizes(caption_counts: Sequence[int], per_image: int) -> set[int]:
    return {size for count in caption_counts for size in (min(count, per_image), count % per_image) if size}


def deal(step: Sequence[Group], ranks: int) -> list[list[Group]]:
    """The groups of a step for each process, in their order, with about equally many captions.

    A last step of fewer groups than processes leaves some without any. The steps do not depend on the number of
    processes, and with equally large groups process r has every `ranks`-th, from the r-th on.
    """
    places: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(step)), key=lambda place: -len(step[place][1])):  # the largest first
        rank = loads.index(min(loads))
        places[rank].append(place)
        loads[rank] += len(step[place][1])
    return [[step[place] for place in sorted(own)] for own in places]


def packed(groups: Sequence[Group], size: int) -> list[list[Group]]:
    """The groups in batches of at most `size` captions (one group alone may have more), each into the first with room.

    Equally large groups stay in their order.
    """
    batches: list[list[Group]] = []
    room: dict[int, int] = {}  # of the batches that are not full
    for group in groups:
        captions = len(group[1])
        batch = next((batch for batch, free in room.items() if captions <= free), len(batches))
        if batch == len(batches):
            batches.append([])
            room[batch] = size
        batches[batch].append(group)
        room[batch] -= captions
        if room[batch] <= 0:
            del room[batch]
    return batches


def number_of_captions(groups: Iterable[Group]) -> int:
    return sum(len(captions) for _, captions, *_ in groups)


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else; Python's hash() differs from process to process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in their order, `size` together; the last ones may be fewer."""
    return [items[i : i + size] for i in range(0, len(items), size)]
