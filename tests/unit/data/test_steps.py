"""Optimizer steps filled by captions, for any numbers of captions, seeds, processes and micro-batches."""

import random
import time

import pytest

from nanocaption.data.order import deal, epoch_groups, epoch_steps, group_sizes, in_order, number_of_captions, packed

PER_IMAGE = 5


def some_counts(rng: random.Random) -> list[int]:
    most = rng.choice([1, 2, 5, 6, 12])
    return [rng.randint(1, most) if rng.random() < 0.7 else most for _ in range(rng.randint(6, 120))]


@pytest.mark.parametrize("case", range(60))
def test_each_pair_once_in_equally_many_steps_of_bounded_size(case):
    rng = random.Random(case)
    counts, seed = some_counts(rng), rng.randint(0, 99)
    batch, accumulate, ranks = rng.randint(PER_IMAGE, 40), rng.randint(1, 3), rng.randint(1, 5)
    per_step = batch * accumulate * ranks
    largest = max(group_sizes(counts, PER_IMAGE))
    epochs = [epoch_steps(counts, PER_IMAGE, per_step, seed, epoch) for epoch in range(4)]
    assert len({len(steps) for steps in epochs}) == 1
    assert epochs[0] == epoch_steps(counts, PER_IMAGE, per_step, seed, 0)
    for steps in epochs:
        pairs = [(image, caption) for step in steps for image, captions in step for caption in captions]
        assert sorted(pairs) == [(image, caption) for image, count in enumerate(counts) for caption in range(count)]
        sizes = [number_of_captions(step) for step in steps]
        assert max(sizes) < per_step + largest and min(sizes) > 0
        assert all(size > per_step - 2 * largest for size in sizes[:-1])
        for step in steps:
            check_division(step, batch, ranks, largest)
    if len(counts) > 12:
        assert epochs[0] != epochs[1]


def check_division(step, batch, ranks, largest):
    """Each group on one rank, the ranks balanced; no micro-batch above `batch`, and no two that were one."""
    shares = deal(step, ranks)
    assert sorted(group for share in shares for group in share) == sorted(step)
    loads = [number_of_captions(share) for share in shares]
    assert max(loads) - min(loads) <= largest
    assert all(loads) or len(step) < ranks
    for share in shares:
        assert share == sorted(share, key=step.index)
        batches = packed(share, batch)
        assert sorted(group for groups in batches for group in groups) == sorted(share)
        taken = [number_of_captions(groups) for groups in batches]
        assert all(0 < number <= batch for number in taken)
        assert all(a + b > batch for a, b in zip(taken, taken[1:], strict=False))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_equally_many_captions_give_the_steps_of_before(ranks, accumulate):
    """Chunks of the order: every ranks-th group from the rank's own on, BATCH_SIZE / 5 of them to a micro-batch."""
    pictures, images = 187, 4
    groups = epoch_groups([5] * pictures, 5, seed=3, epoch=2)
    steps = epoch_steps([5] * pictures, 5, images * 5 * accumulate * ranks, seed=3, epoch=2)
    size = images * accumulate * ranks
    assert steps == [groups[i : i + size] for i in range(0, pictures, size)]
    for step in steps:
        assert deal(step, ranks) == [step[rank::ranks] for rank in range(ranks)]
        assert packed(step, 5 * images) == [step[i : i + images] for i in range(0, len(step), images)]


def test_one_picture_with_more_captions_changes_nothing_for_the_others():
    """The issue's own: 199 pictures with one caption and one with five were trained on 16 at a time, not 80."""
    counts = [1] * 199 + [5]
    for epoch in range(5):
        sizes = [number_of_captions(step) for step in epoch_steps(counts, 5, 80, 1, epoch)]
        assert sizes == [80, 80, 44]
    # Nor in the smallest steps, where the large group is as large as a step.
    assert {len(epoch_steps(counts, 5, 5, 1, epoch)) for epoch in range(20)} == {40}  # 204 captions: the last four join


def test_mixed_numbers_fill_every_step_to_the_caption():
    """So that a step does not need a second pass for the few captions that one group is too large."""
    counts = [random.Random(image).randint(1, 5) for image in range(900)]
    sizes = [number_of_captions(step) for step in epoch_steps(counts, 5, 80, 1, 0)]
    assert set(sizes[:-1]) == {80}
    whole = epoch_steps(counts, 5, 160, 1, 0)  # on two processes each has 80, in one batch
    assert all([len(packed(share, 80)) for share in deal(step, 2)] == [1, 1] for step in whole)


def test_captions_that_do_not_fill_a_step_leave_it_smaller():
    assert [number_of_captions(step) for step in epoch_steps([5] * 10, 5, 24, 1, 0)] == [20, 20, 10]


def test_steps_do_not_depend_on_how_their_captions_are_divided():
    counts = some_counts(random.Random(7))
    assert epoch_steps(counts, 5, 80 * 1 * 1, 1, 0) == epoch_steps(counts, 5, 20 * 2 * 2, 1, 0)


def test_a_last_step_of_fewer_groups_than_processes_is_a_step():
    steps = epoch_steps([5] * 17, 5, 4 * 5 * 4, 1, 0)
    assert [len(step) for step in steps] == [16, 1]
    assert list(map(len, deal(steps[1], 4))) == [1, 0, 0, 0]


@pytest.mark.parametrize("case", range(20))
def test_weights_keep_the_number_of_steps(case):
    """Half of the pictures in one epoch, the others in the next: the captions of an epoch are not equally many."""
    rng = random.Random(case)
    counts = some_counts(rng)
    weights = [rng.choice([0.5, 1.0, 2.0]) for _ in counts]
    epochs = [epoch_steps(counts, 5, 20, 1, epoch, weights) for epoch in range(6)]
    assert len({len(steps) for steps in epochs}) == 1
    assert all(step for steps in epochs for step in steps)
    for epoch, steps in enumerate(epochs):
        expected = epoch_groups(counts, 5, 1, epoch, weights)
        assert sorted(group for step in steps for group in step) == sorted(expected)


def test_batches_of_whole_pictures_hold_the_captions_asked_for():
    """Validation: an image comes with all its captions, more than a batch holds where it has so many."""
    batches = packed(in_order([5, 90, 5, 70, 5, 1, 0]), 80)
    assert [number_of_captions(batch) for batch in batches] == [80, 90, 6]
    assert sorted(group for batch in batches for group in batch) == in_order([5, 90, 5, 70, 5, 1, 0])


def test_the_time_grows_with_the_set():
    """Sizes of which no small one is left to fill a step would be looked for to the end each time."""
    times = []
    for pictures in (2_000, 20_000):
        start = time.process_time()
        epoch_steps([4] * (pictures - 20) + [5] * 20, 5, 80, 1, 0)
        times.append(time.process_time() - start)
    assert times[1] < 60 * times[0]
