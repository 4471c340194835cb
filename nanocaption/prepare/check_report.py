"""What the check of a data set found, for people: a summary in lines, report.json, and histograms."""

import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanocaption.base.files import write_atomically, write_file

SHOWN = 3  # cases of each kind that are printed; report.json has CASES of them, and every refused picture
CASES = 20


def count_and_cases(kind: dict) -> str:
    """'5 (a.jpg, b.jpg, c.jpg, ...)'"""
    cases = [case if len(case) <= 100 else case[:97] + "..." for case in kind["cases"][:SHOWN]]
    return f"{kind['count']:,} ({', '.join(cases)}{', ...' if kind['count'] > SHOWN else ''})"


def summary(report: dict) -> list[str]:
    """The report in lines for a person."""
    pictures, texts, sizes = report["pictures"], report["captions"], report["sizes"]
    copies, text = pictures["copies"], texts["text"]
    lines = [f"Checked {pictures['checked']:,} pictures and {texts['checked']:,} captions.",
             f"  pictures  {pictures['kept']:,} kept"]  # fmt: skip
    lines += [f"    refused, {reason}: {count_and_cases(kind)}" for reason, kind in pictures["refused"].items()]
    lines += [f"    converted, {what}: {count_and_cases(kind)}" for what, kind in pictures["converted"].items()]
    if copies["groups"]:
        first = ["/".join(group) for group in copies["cases"]]
        cases = count_and_cases({"count": copies["groups"], "cases": first})
        lines.append(f"    the same picture under several names: {cases}")
    if copies["across_splits"]:
        first = [" = ".join(group) for group in copies["across_cases"]]
        cases = count_and_cases({"count": copies["across_splits"], "cases": first})
        lines.append(f"  WARNING: the same picture in several splits: {cases}; {len(copies['left_out']):,} left out, "
                     "so that nothing of test or val is trained on")
    lines.append(f"  captions  {texts['kept']:,} kept")
    lines += [f"    refused, {reason}: {count_and_cases(kind)}" for reason, kind in texts["refused"].items()]
    lines += [f"    repaired, {what}: {kind['count']:,}" for what, kind in texts["repaired"].items()]
    lines += [f"      {before[:100]!r} -> {after[:100]!r}" for before, after in text["examples"]]
    lines.append(f"  case of captions: {text['case']} (CAPTION_CASE)")
    spreads = [f"{what} {of['least']:g} / {of['median']:g} / {of['most']:g}" for what, of in sizes.items()]
    lines.append(f"  least / median / most: {', '.join(spreads)}")
    return lines


def write_report(folder: Path, report: dict) -> None:
    """report.json, atomically."""
    write_atomically(folder / "report.json", json.dumps(report, ensure_ascii=True, indent=1) + "\n")


def draw(path: Path, records: Sequence[dict], found: dict[str, dict], name: str) -> None:
    """Histograms of the kept pictures' sizes, their files' sizes and the captions' lengths, as a PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = [found[record["file_name"]] for record in records]
    words = [len(text.split()) for record in records for text in record["captions"]]
    panels = (
        ("Picture sides", "pixels", "pictures", {"width": [entry["width"] for entry in entries],
                                                 "height": [entry["height"] for entry in entries]}),
        ("Files", "kB", "pictures", {"": [entry["bytes"] / 1000 for entry in entries]}),
        ("Caption lengths", "words", "captions", {"": words}),
    )  # fmt: skip
    figure = Figure(figsize=(12, 3.7), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.14, top=0.77, wspace=0.27)
    figure.suptitle(f"{name}: {len(records):,} pictures, {len(words):,} captions", fontsize=13)
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


def _histogram(axes: Any, series: dict[str, Sequence[float]], whole: bool) -> None:
    """One series filled, a second as a line, over common bins; the last bar takes what is longer than 99.5 % of all."""
    values = sorted(value for numbers in series.values() for value in numbers)
    low, high = values[0], values[int(0.995 * (len(values) - 1))]
    if high <= low:
        low, high = low - 2, high + 2
    width = max(1, round((high - low) / 40)) if whole else (high - low) / 40
    edges = [low + number * width - (0.5 if whole else 0) for number in range(int((high - low) / width) + 2)]
    styles = ({"color": "#3b6ea8", "alpha": 0.85}, {"color": "#d9822b", "histtype": "step", "linewidth": 2})
    for (label, numbers), style in zip(series.items(), styles, strict=False):
        label = f"{label}: median {statistics.median(numbers):,.0f}".removeprefix(": ")
        axes.hist([min(value, edges[-1]) for value in numbers], edges, label=label, **style)
    if values[-1] > edges[-1]:
        axes.plot([], [], " ", label=f"last bar: up to {values[-1]:,.0f}")
    axes.locator_params(axis="both", nbins=6, integer=whole)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.99), handlelength=1.2)


def spread(numbers: Sequence[float]) -> dict:
    if not numbers:
        return {"least": 0, "median": 0, "mean": 0, "most": 0}
    return {"least": min(numbers), "median": statistics.median(numbers), "mean": round(statistics.fmean(numbers), 2),
            "most": max(numbers)}  # fmt: skip


def by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """(reason, case) -> reason: {count, first cases}, the most frequent first."""
    pairs = list(pairs)
    counts = Counter(reason for reason, _ in pairs)
    return {reason: {"count": count, "cases": [case for other, case in pairs if other == reason][:CASES]}
            for reason, count in counts.most_common()}  # fmt: skip
