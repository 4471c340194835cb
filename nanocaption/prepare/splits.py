"""train, val and test of a set that brings no split of its own.

val and test get a twentieth of the pictures each, val at least 20 and test at least a tenth (at most 20 for that), of a
set below 60 val a third: 60 -> 34 / 20 / 6, 200 -> 160 / 20 / 20, 30,000 -> 27,000 / 1,500 / 1,500. All pictures stand
in an order that DATA_SEED and their names fix, whatever order the captions have: val takes from one end, test from the
other. Copies of one picture go into one split together. A picture that had a split in this set keeps it, and new
ones fill up what val and test then lack.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from nanocaption.data.prepared import Record

LEAST = 3  # pictures that differ: one for each split
RULE = "a twentieth each for val and test, of a small set up to 20 pictures"


def quotas(pictures: int) -> dict[str, int]:
    """How many of so many pictures val and test get."""
    share = round(pictures / 20)
    return {"val": max(share, min(20, pictures // 3)), "test": max(share, min(20, max(1, pictures // 10)))}


def draw(
    names: Collection[str], seed: int, copies: Iterable[Sequence[str]] = (), known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of each of `names`; one that stays empty is lacking, which below LEAST different pictures must be.

    copies: groups of names that are one picture. known: the splits that names had before. The counts are those of
    `quotas`, if no group of copies is larger than what is left of it and what was known leaves room.
    """
    known = known or {}
    drawn: dict[str, str] = {}
    fresh, left = [], quotas(len(names))
    for group in _groups(names, seed, copies):
        if before := {known[name] for name in group if name in known}:
            split = first_of(before)
            drawn |= dict.fromkeys(group, split)
            left[split] = left.get(split, 0) - len(group)
        else:
            fresh.append(group)
    there = set(drawn.values())
    for split, others in (("val", {"test", "train"}), ("test", {"train"})):
        spare = len(fresh) - len(others - there)  # so many that each of the others still gets one
        taken = _fill(fresh if split == "val" else fresh[::-1], left[split], spare, needed=split not in there)
        drawn |= {name: split for group in taken for name in group}
        fresh = [group for group in fresh if group[0] not in drawn]
    return drawn | {name: "train" for group in fresh for name in group}


def _groups(names: Collection[str], seed: int, copies: Iterable[Sequence[str]]) -> list[list[str]]:
    """The names, copies together, in the order that seed and names fix; a group stands where its first member would."""
    places = {name: hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names}
    groups = {name: [name] for name in names}
    for copy in copies:
        together = [name for member in copy for name in groups.pop(member)]
        groups[together[0]] = together
    return sorted(groups.values(), key=lambda group: min(places[name] for name in group))


def _fill(groups: Sequence[list[str]], room: int, most: int, needed: bool) -> list[list[str]]:
    """The first of the groups that fit into what room there is, at most so many; the smallest where none does.

    needed: whether the split has none yet.
    """
    taken: list[list[str]] = []
    for group in groups:
        if len(group) <= room and len(taken) < most:
            taken.append(group)
            room -= len(group)
    return [min(groups, key=len)] if needed and not taken and most > 0 else taken


def first_of(splits: Collection[str]) -> str:
    """Where a picture stays that several splits have: in test, else in val; to train on it would be the worse fault."""
    return next((split for split in ("test", "val") if split in splits), None) or min(splits)


def splits_before(folder: Path) -> dict[str, str]:
    """file_name -> split, of all that the set in `folder` has held, see store.keep_replaced.

    Raises ValueError where one of its files is no JSON.
    """
    known: dict[str, set[str]] = {}
    for path in sorted(folder.glob("captions*.json")):
        try:
            records: list[Record] = json.loads(path.read_bytes())["images"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, which says what split each picture had, cannot be read: delete it to draw all "
                             "splits anew") from None
        for record in records:
            known.setdefault(record["file_name"], set()).add(record["split"])
    return {name: first_of(splits) for name, splits in known.items()}
