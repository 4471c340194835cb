"""train, val and test of a set that brings no split of its own.

val and test get a twentieth of the pictures each, val at least 20 and test at least a tenth (at most 20 for that), of a
set below 60 val a third: 60 -> 34 / 20 / 6, 200 -> 160 / 20 / 20, 30,000 -> 27,000 / 1,500 / 1,500. All pictures stand
in an order that DATA_SEED and their names fix, whatever order the captions have: val takes from one end, test from the
other. Copies of one picture go into one split together. A picture that had a split in this set keeps it, and new
ones fill up what val and test then lack.
"""

import array
import hashlib
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from nanocaption.base import on_disk
from nanocaption.data.prepared import iter_records

LEAST = 3  # pictures that differ: one for each split
RULE = "a twentieth each for val and test; of a small set 20 pictures (below 60 a third) for val, a tenth for test"


def quotas(pictures: int) -> dict[str, int]:
    """How many of so many pictures val and test get."""
    share = round(pictures / 20)
    return {"val": max(share, min(20, pictures // 3)), "test": max(share, min(20, max(1, pictures // 10)))}


def draw(
    names: Sequence[str], seed: int, copies: Iterable[Sequence[str]] = (), known: Mapping[str, str] | None = None
) -> list[str]:
    """The split of each of `names`; one that stays empty is lacking, which below LEAST different pictures must be.

    copies: groups of names that are one picture. known: the splits that names had before. The counts are those of
    `quotas`, if no group of copies is larger than what is left of it and what was known leaves room. Of each name 50
    bytes are held.
    """
    drawn = ["train"] * len(names)
    groups, order = _groups(names, seed, copies)
    left = quotas(len(names))
    fresh, there = _keep_known(drawn, left, names, known or {}, ((n, groups.get(n, (n,))) for n in order))
    for split, others in (("val", {"test", "train"}), ("test", {"train"})):
        spare = len(fresh) - len(others - there)  # so many that each of the others still gets one
        turned = fresh if split == "val" else fresh[::-1]
        taken = _fill((groups.get(first, (first,)) for first in turned), left[split], spare)
        if split not in there and not taken and spare > 0:
            taken = [min((groups.get(first, (first,)) for first in turned), key=len)]
        for group in taken:
            _give(drawn, group, split)
        gone = {group[0] for group in taken}
        fresh = array.array("Q", (first for first in fresh if first not in gone))
    return drawn


def _keep_known(
    drawn: list[str], left: dict[str, int], names: Sequence[str], known: Mapping[str, str],
    groups: Iterable[tuple[int, Sequence[int]]],
) -> tuple["array.array[int]", set[str]]:  # fmt: skip
    """Give the groups that had a split before theirs, in `drawn` and out of `left`; the first place of each other
    group, and the splits given."""
    fresh, there = array.array("Q"), set()
    earlier = [sys.intern(known.get(name, "")) for name in names] if known else [""] * len(names)
    for first, group in groups:
        if before := {earlier[place] for place in group} - {""}:
            split = first_of(before)
            there.add(split)
            _give(drawn, group, split)
            left[split] = left.get(split, 0) - len(group)
        else:
            fresh.append(first)
    return fresh, there


def _give(drawn: list[str], group: Iterable[int], split: str) -> None:
    for place in group:
        drawn[place] = split


def _groups(
    names: Sequence[str], seed: int, copies: Iterable[Sequence[str]]
) -> tuple[dict[int, Sequence[int]], Iterator[int]]:
    """Copies as places in `names`, by the first of each group; and the first ones, also of single names, in the order
    that seed and names fix. A group stands where its first member would."""
    import numpy as np  # which --help need not wait for

    lists = list(copies)
    wanted = {name for copy in lists for name in copy}
    place_of = {name: place for place, name in enumerate(names) if name in wanted} if wanted else {}
    groups = {(places := [place_of[name] for name in copy])[0]: places for copy in lists}
    first_of_group = {place: first for first, group in groups.items() for place in group}
    digests = (hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16] for name in names)  # no two of them are equal
    keys = np.fromiter((half for digest in digests for half in struct.unpack(">QQ", digest)), np.uint64, 2 * len(names))
    order = np.lexsort((keys[1::2], keys[::2]))

    def firsts() -> Iterator[int]:
        told = set()
        for place in order:
            first = first_of_group.get(int(place), int(place))
            if first not in told:
                yield first
            if first in groups:
                told.add(first)

    return groups, firsts()


def _fill(groups: Iterable[Sequence[int]], room: int, most: int) -> list[Sequence[int]]:
    """The first of the groups that fit into what room there is, at most so many."""
    taken: list[Sequence[int]] = []
    for group in groups:
        if room <= 0 or len(taken) >= most:
            break
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
    return taken


def first_of(splits: Collection[str]) -> str:
    """Where a picture stays that several splits have: in test, else in val; to train on it would be the worse fault."""
    return next((split for split in ("test", "val") if split in splits), None) or min(splits)


def splits_before(folder: Path, scratch: Path | None = None) -> MutableMapping[str, str]:
    """file_name -> split, of all that the set in `folder` has held, see store.keep_replaced; see on_disk.table.

    Raises ValueError where one of its files is no JSON.
    """
    known: MutableMapping[str, str] = on_disk.table(scratch)
    for path in sorted(folder.glob("captions*.json")):
        try:
            for record in iter_records(path):
                name, split = record["file_name"], record["split"]
                known[name] = first_of({split, known.get(name, split)})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, which says what split each picture had, cannot be read: delete it to draw all "
                             "splits anew") from None
    return known
