"""Scores of one caption per picture, and what stands beside them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from nanocaption import demo_set, metrics
from nanocaption.data.prepared import Record
from nanocaption.metrics.ptb import Tokenize


class DomainScores(TypedDict):
    """Scores of the pictures of one domain; CIDEr has the document frequencies of all pictures that were scored."""

    corpus: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    images: int


class Scores(TypedDict):
    """The content of scores.json. All scores are fractions."""

    corpus: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # of each score: its 95 % bootstrap interval
    images: int
    text: dict[str, float]  # metrics.TextStatistics
    domains: NotRequired[dict[str, DomainScores]]  # of sets whose pictures have one, as those of nocaps
    leave_one_out: NotRequired[dict[str, float]]  # what the references score against each other
    truth: NotRequired[dict[str, dict[str, int]]]  # of drawn scenes: claims by kind, how many there are, how many true
    confusions: NotRequired[dict[str, list[tuple[str, str, int]]]]  # of drawn scenes: (true, said, how often)
    # What was scored; evaluate.py adds it.
    dataset: NotRequired[str]
    split: NotRequired[str]
    decoding: NotRequired[dict[str, Any]]
    checkpoints: NotRequired[list[str]]  # their digests
    key: NotRequired[str]  # equal where the captions are of the same model, decoding and pictures
    signature: NotRequired[str]  # for people: two scores compare where it is equal up to what is meant to differ


def score_captions(
    records: Sequence[Record],
    captions: Sequence[str],
    people: bool = True,
    training: Iterable[str] | None = None,
    meteor: bool = False,
    spice: bool = False,
    tokenize: Tokenize = metrics.ptb_tokenize,
    broken: int = 0,
) -> tuple[Scores, list[dict[str, float]]]:
    """Scores of one caption per record against its references: (content of scores.json, values per image in order).

    "domains" is there where records have one, "leave_one_out" with `people`, "truth" and "confusions" for drawn scenes;
    `training` gives the share of captions that stand in it; `broken` of them were cut back to whole characters. Raises
    ValueError as `metrics.measure` does.
    """
    references = {record["file_name"]: record["captions"] for record in records}
    candidates = {record["file_name"]: caption for record, caption in zip(records, captions, strict=True)}
    measured = metrics.measure(metrics.prepare_references(references, tokenize), candidates, meteor, spice)
    corpus, per_image = metrics.total(measured)
    text = metrics.text_statistics(captions, tokenize, training)._asdict()
    text["broken"] += broken
    scores: Scores = {
        "corpus": corpus, "intervals": metrics.intervals(measured), "images": len(records),
        "text": {name: value for name, value in text.items() if value is not None},
    }  # fmt: skip
    if domains := domain_scores(measured, [record.get("domain") for record in records]):
        scores["domains"] = domains
    if people and all(len(captions) > 1 for captions in references.values()):
        scores["leave_one_out"] = metrics.leave_one_out(references, tokenize)
    scenes = [record["scene"] for record in records if "scene" in record]
    if len(scenes) == len(records):
        scores["truth"] = demo_set.total_truth(captions, scenes)
        scores["confusions"] = demo_set.total_confusions(captions, scenes)
    return scores, [per_image[record["file_name"]] for record in records]


def domain_scores(measured: metrics.Measured, domains: Sequence[str | None]) -> dict[str, DomainScores]:
    """{domain: its scores} by name, of the measured images whose domains are given in their order."""
    places: dict[str, list[int]] = {}
    for place, domain in enumerate(domains):
        if domain is not None:
            places.setdefault(domain, []).append(place)
    parts = {name: metrics.part_of(measured, places[name]) for name in sorted(places)}
    return {
        name: {"corpus": metrics.total(own).corpus, "intervals": metrics.intervals(own), "images": len(own.images)}
        for name, own in parts.items()
    }


def domain_lines(domains: Mapping[str, DomainScores], factor: int = 1) -> list[str]:
    """A table of the domains as lines of text, all scores times `factor`."""
    if not domains:
        return []
    digits, width = (1, 8) if factor > 1 else (4, 9)
    names = list(next(iter(domains.values()))["corpus"])
    first = max(10, *map(len, domains))
    lines = [f"{'domain':{first}}{'images':>8}" + "".join(f"{name:>{width}}" for name in names) + "   CIDEr's 95 %"]
    for name, part in domains.items():
        values = "".join(f"{factor * value:{width}.{digits}f}" for value in part["corpus"].values())
        low, high = (factor * value for value in part["intervals"]["CIDEr"])
        lines.append(f"{name:{first}}{part['images']:8d}{values}   {low:.{digits}f} to {high:.{digits}f}")
    return [*lines, "Domains: CIDEr with the document frequencies of all these images together."]
