"""What the check of a data set found, for people: a summary in lines, report.json, and histograms."""

import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from nanocaption.base import on_disk
from nanocaption.base.files import write_atomically, write_file
from nanocaption.data.prepared import Record

SHOWN = 3  # cases of each kind that are printed; report.json has CASES of them, and every refused picture
CASES = 20


class Examined(TypedDict, total=False):
    """What check.py found in a picture: a line of scan.jsonl."""

    name: str
    bytes: int  # the file's size, and its time of change in ns; 0 where it could not be asked
    time: int
    version: int  # of the rules it was examined by
    width: int
    height: int
    conversions: list[str]  # what reading it had to change
    sha256: str  # of the file
    pixels: int  # CRC-32 of what was decoded
    crc: int  # of a packed picture: CRC-32 of its bytes
    refused: dict[str, str] | None  # reason and detail, where it cannot be used


class Cases(TypedDict):
    """Of one kind: how many, and the first of them."""

    count: int
    cases: list[str]


class Report(TypedDict, total=False):
    """What report.json says, with the set's manifest where one was made."""

    captions: dict[str, Any]  # checked, kept, refused, refused_in, repaired, text
    questions: dict[str, Any]  # of sets that have some: checked, kept, answers, refused, most_frequent, types
    pictures: dict[str, Any]  # checked, kept, refused, converted, refused_pictures, copies
    sizes: dict[str, dict[str, float]]  # width, height, kB, words -> least, median, mean, most


def names_of(records: Iterable[Record]) -> Iterator[str]:
    return (record["file_name"] for record in records)


def entries_of(records: Iterable[Record], found: Mapping[str, Examined]) -> Iterator[Examined]:
    """What was found in the picture of each record."""
    return on_disk.values_of(names_of(records), found)


def of_pictures(
    checked: int, kept: Sequence[Record], found: Mapping[str, Examined], refused: Mapping[str, dict[str, str]]
) -> dict[str, Any]:
    """What the report says of pictures, but for copies. refused: file_name -> reason and detail, which may be empty."""
    def shown(name: str, detail: str) -> str:
        return f"{name} ({detail})" if detail else name

    return {
        "checked": checked,
        "kept": len(kept),
        "refused": by_reason((entry["reason"], shown(name, entry["detail"])) for name, entry in refused.items()),
        "converted": by_reason((kind, name) for name, entry in zip(names_of(kept), entries_of(kept, found), strict=True)
                               for kind in entry["conversions"]),
        "refused_pictures": {name: ": ".join(filter(None, (entry["reason"], entry["detail"])))
                             for name, entry in refused.items()},
    }  # fmt: skip


def sizes(kept: Sequence[Record], found: Mapping[str, Examined]) -> dict[str, dict[str, float]]:
    counted = counts_of(kept, found)
    rounded: Counter[float] = Counter()
    for size, count in counted["kB"].items():
        rounded[round(size, 1)] += count
    return {what: spread(counts) for what, counts in (counted | {"kB": rounded}).items()}


def counts_of(kept: Sequence[Record], found: Mapping[str, Examined]) -> dict[str, Counter[float]]:
    """How often each width, height and size of a file occurs, and each number of words of a caption."""
    counted: dict[str, Counter[float]] = {what: Counter() for what in ("width", "height", "kB", "words")}
    for record, entry in zip(kept, entries_of(kept, found), strict=True):
        counted["width"][entry["width"]] += 1
        counted["height"][entry["height"]] += 1
        counted["kB"][entry["bytes"] / 1000] += 1
        texts = record["captions"] or [question["question"] for question in record.get("questions", ())]
        counted["words"].update(len(text.split()) for text in texts)
    return counted


def problem(report: Report, allowed: float, folder: Path) -> str | None:
    """What to tell where more than the fraction `allowed` of pictures or captions is bad. folder: has report.json."""
    for noun, part in (("pictures", report["pictures"]), ("captions", report["captions"]),
                       ("questions", report.get("questions", {"refused": {}, "checked": 0}))):  # fmt: skip
        bad = sum(kind["count"] for kind in part["refused"].values())
        if bad > allowed * part["checked"]:
            first = "; ".join(f"{reason}: {count_and_cases(kind)}" for reason, kind in part["refused"].items())
            return (f"{bad:,} of {part['checked']:,} {noun} ({100 * bad / part['checked']:.2f} %) cannot be used, "
                    f"above MAX_BAD_FRACTION = {allowed:g}: {first}. Mend or take out these {noun} "
                    f"({folder / 'report.json'} says more), or raise MAX_BAD_FRACTION")
    return None


def count_and_cases(kind: Cases) -> str:
    """'5 (a.jpg, b.jpg, c.jpg, ...)'"""
    cases = [case if len(case) <= 100 else case[:97] + "..." for case in kind["cases"][:SHOWN]]
    return f"{kind['count']:,} ({', '.join(cases)}{', ...' if kind['count'] > SHOWN else ''})"


def summary(report: Report) -> list[str]:
    """The report in lines for a person."""
    pictures, texts, asked = report["pictures"], report["captions"], report.get("questions")
    copies = pictures["copies"]
    what = f"{asked['checked']:,} questions" if asked else f"{texts['checked']:,} captions"
    lines = [f"Checked {pictures['checked']:,} pictures and {what}.", f"  pictures  {pictures['kept']:,} kept"]
    lines += [f"    refused, {reason}: {count_and_cases(kind)}" for reason, kind in pictures["refused"].items()]
    lines += [f"    converted, {what}: {count_and_cases(kind)}" for what, kind in pictures["converted"].items()]
    if copies["groups"]:
        told: Cases = {"count": copies["groups"], "cases": ["/".join(group) for group in copies["cases"]]}
        lines.append(f"    the same picture under several names: {count_and_cases(told)}")
    if copies["across_splits"]:
        told = {"count": copies["across_splits"], "cases": [" = ".join(group) for group in copies["across_cases"]]}
        lines.append(f"  WARNING: the same picture in several splits: {count_and_cases(told)}; "
                     f"{len(copies['left_out']):,} left out, so that nothing of test or val is trained on")
    if asked:
        return [*lines, *_questions_summary(asked), _spreads(report)]
    lines.append(f"  captions  {texts['kept']:,} kept")
    lines += [f"    refused, {reason}: {count_and_cases(kind)}" for reason, kind in texts["refused"].items()]
    if texts["refused_in"]:
        where = ", ".join(f"{split} {count:,}" for split, count in texts["refused_in"].items())
        lines.append(f"    by split: {where}; no references here, where scores of the raw file would count them")
    lines += [f"    training repairs, {what}: {kind['count']:,}" for what, kind in texts["repaired"].items()]
    lines += [f"      {before[:100]!r} -> {after[:100]!r}" for before, after in texts["text"]["examples"]]
    lines.append(f"  case of captions in training: {texts['text']['case']} (CAPTION_CASE); references stay as written")
    return [*lines, _spreads(report)]


def _spreads(report: Report) -> str:
    spreads = [f"{what} {of['least']:g} / {of['median']:g} / {of['most']:g}" for what, of in report["sizes"].items()]
    return f"  least / median / most: {', '.join(spreads)}"


def _questions_summary(asked: Mapping[str, Any]) -> list[str]:
    lines = [f"  questions {asked['kept']:,} kept, with {asked['answers']:,} answers"]
    lines += [f"    refused, {reason}: {count_and_cases(kind)}" for reason, kind in asked["refused"].items()]
    types = ", ".join(f"{name} {count:,}" for name, count in list(asked["types"].items())[:8])
    often = ", ".join(f"{answer!r} {share:.1%}" for answer, share in asked["most_frequent"])
    return [*lines, f"    types: {types}", f"    most frequent answers: {often}"]


def write_report(folder: Path, report: Mapping[str, object]) -> None:
    """report.json, atomically."""
    write_atomically(folder / "report.json", json.dumps(report, ensure_ascii=True, indent=1) + "\n")


def draw(path: Path, records: Sequence[Record], found: Mapping[str, Examined], name: str) -> None:
    """Histograms of the kept pictures' sizes, their files' sizes and the captions' lengths, as a PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counted = counts_of(records, found)
    noun = "caption" if any(record["captions"] for record in records) else "question"
    panels: tuple[tuple[str, str, str, dict[str, Counter[float]]], ...] = (
        ("Picture sides", "pixels", "pictures", {"width": counted["width"], "height": counted["height"]}),
        ("Files", "kB", "pictures", {"": counted["kB"]}),
        (f"{noun.capitalize()} lengths", "words", f"{noun}s", {"": counted["words"]}),
    )
    figure = Figure(figsize=(12, 3.7), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.14, top=0.77, wspace=0.27)
    figure.suptitle(f"{name}: {len(records):,} pictures, {counted['words'].total():,} {noun}s", fontsize=13)
    for axes, (title, unit, counted, series) in zip(figure.subplots(1, 3), panels, strict=True):
        _histogram(axes, series, whole=unit != "kB")
        axes.set_title(title, fontsize=11, pad=24)
        axes.set_xlabel(unit)
        axes.set_ylabel(counted)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())


def _histogram(axes: Any, series: dict[str, Counter[float]], whole: bool) -> None:
    """One series filled, a second as a line, over common bins; the last bar takes what is longer than 99.5 % of all."""
    together: Counter[float] = sum(series.values(), Counter())
    low, high = at_place(together, 0), at_place(together, int(0.995 * (together.total() - 1)))
    if high <= low:
        low, high = low - 2, high + 2
    width = max(1, round((high - low) / 40)) if whole else (high - low) / 40
    edges = [low + number * width - (0.5 if whole else 0) for number in range(int((high - low) / width) + 2)]
    styles = ({"color": "#3b6ea8", "alpha": 0.85}, {"color": "#d9822b", "histtype": "step", "linewidth": 2})
    for (label, counts), style in zip(series.items(), styles, strict=False):
        label = f"{label}: median {median(counts):,.0f}".removeprefix(": ")
        axes.hist([min(value, edges[-1]) for value in counts], edges, weights=[*counts.values()], label=label, **style)
    if max(together) > edges[-1]:
        axes.plot([], [], " ", label=f"last bar: up to {max(together):,.0f}")
    axes.locator_params(axis="both", nbins=6, integer=whole)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.99), handlelength=1.2)


def spread(counts: Counter[float]) -> dict[str, float]:
    """Of the numbers that are there so many times each."""
    if not counts:
        return {"least": 0, "median": 0, "mean": 0, "most": 0}
    return {"least": min(counts), "median": median(counts), "mean": round(statistics.fmean(counts.elements()), 2),
            "most": max(counts)}  # fmt: skip


def median(counts: Counter[float]) -> float:
    """As statistics.median."""
    half, odd = divmod(counts.total(), 2)
    return at_place(counts, half) if odd else (at_place(counts, half - 1) + at_place(counts, half)) / 2


def at_place(counts: Counter[float], place: int) -> float:
    """The number at this place of all in order."""
    for number in sorted(counts):
        place -= counts[number]
        if place < 0:
            return number
    raise IndexError("there are fewer numbers")


class Tally:
    """How often each reason comes, and its first cases."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.cases: dict[str, list[str]] = {}

    def add(self, reason: str, case: str) -> None:
        self.counts[reason] += 1
        first = self.cases.setdefault(reason, [])
        if len(first) < CASES:
            first.append(case)

    def told(self) -> dict[str, Cases]:
        """reason: {count, first cases}, the most frequent first."""
        return {reason: {"count": count, "cases": self.cases[reason]} for reason, count in self.counts.most_common()}


def by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, Cases]:
    """(reason, case) -> as Tally.told."""
    tally = Tally()
    for reason, case in pairs:
        tally.add(reason, case)
    return tally.told()


class Repairs:
    """What training will find else than is written: how often, and examples."""

    def __init__(self) -> None:
        self.number = 0
        self.first: dict[str, tuple[str, str, str, str]] = {}  # of each kind; last the kind that came last
        self.begin: list[tuple[str, str, str, str]] = []  # the first ones, of whatever kind

    def add(self, what: str, name: str, before: str, after: str) -> None:
        if before != after:
            entry = (what, name, before, after)
            self.number += 1
            self.first[what] = self.first.pop(what, entry)
            if len(self.begin) < SHOWN:
                self.begin.append(entry)

    def examples(self) -> list[list[str]]:
        """Before and after, SHOWN of them: one of each kind, then others."""
        first = [*self.first.values()]
        others = [entry for entry in self.begin if entry not in first]
        return [[before, after] for _, _, before, after in [*first, *others][:SHOWN]]
