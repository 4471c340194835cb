"""What captions of demo pictures say in place of what is there: (true, said) for colours and for things."""

import re
from collections import Counter
from collections.abc import Iterable

from nanocaption.demo_set.truth import TRUTH_KINDS, caption_truth, find_mentions

NOTHING = "nothing"
CONFUSION_KINDS = ("colours", "things")


def caption_confusions(caption: str, scene: dict) -> dict[str, list[tuple[str, str]]]:
    """For each of CONFUSION_KINDS the pairs (true, said) of a caption; true == said where it is right.

    colours  for each colour bound to a thing that is in the scene: the thing's own colour, and the one said
    things   for each thing named: itself if it is there; else the thing it was most likely taken for, one that the
             caption leaves out, one of the colour said before any other; else "nothing"

    Any text is accepted.
    """
    mentions = find_mentions(re.findall(r"[a-z]+|\d+|[,.;]", caption.lower()))
    there = {thing["kind"]: thing for thing in scene["things"]}
    named = {mention.kind for mention in mentions}
    left_out = [thing for kind, thing in there.items() if kind not in named]
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in CONFUSION_KINDS}
    for mention in mentions:
        if mention.kind in there:
            pairs["things"].append((mention.kind, mention.kind))
            pairs["colours"] += [(there[mention.kind]["color"], colour) for colour in mention.colours]
            continue
        left_out.sort(key=lambda thing: thing["color"] not in mention.colours)
        pairs["things"].append((left_out.pop(0)["kind"] if left_out else NOTHING, mention.kind))
    return pairs


def total_confusions(captions: Iterable[str], scenes: Iterable[dict]) -> dict[str, list[tuple[str, str, int]]]:
    """For each of CONFUSION_KINDS all (true, said, how often) over a set of captions, the most frequent first."""
    counts: dict[str, Counter] = {kind: Counter() for kind in CONFUSION_KINDS}
    for caption, scene in zip(captions, scenes, strict=True):
        for kind, pairs in caption_confusions(caption, scene).items():
            counts[kind].update(pairs)
    return {kind: [(*pair, n) for pair, n in counter.most_common()] for kind, counter in counts.items()}


def total_truth(captions: Iterable[str], scenes: Iterable[dict]) -> dict[str, dict[str, int]]:
    """{kind: {"true", "claims"}} for each of TRUTH_KINDS, summed over a set of captions."""
    totals = {kind: {"true": 0, "claims": 0} for kind in TRUTH_KINDS}
    for caption, scene in zip(captions, scenes, strict=True):
        for kind, (true, claims) in caption_truth(caption, scene).items():
            totals[kind]["true"] += true
            totals[kind]["claims"] += claims
    return totals
