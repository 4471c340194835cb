"""Parts of the report page as HTML: score tables, charts, confusions, the gallery's cards.

What they look like stands in report_template.html; `fill` puts data into it, escaped.
"""

import base64
import functools
import html
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from nanocaption.base.shown import shown
from nanocaption.score.charts import Chart, draw_histogram, svg
from nanocaption.score.curves import Rows, curve_charts, extract_curves
from nanocaption.score.scoring import DomainScores, Scores

METRIC_LABELS = {**{f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)}, "METEOR": "METEOR", "ROUGE_L": "ROUGE-L",
                 "CIDEr": "CIDEr", "SPICE": "SPICE"}
TEXT_LABELS = {"distinct_1": "Distinct words per word", "distinct_2": "Distinct pairs per pair",
               "mean_length": "Words per caption", "vocabulary": "Different words", "repetition": "Repeat themselves",
               "empty": "Empty captions", "broken": "Broken captions",
               "bad_endings": "End in a word that must go on", "unstopped": "Without a full stop",
               "seen": "In the training captions, word for word"}


class Maps(TypedDict):
    """Where the model looked for each word of a caption, on a grid over the picture or a part of it."""

    rows: int
    cols: int
    words: list[dict[str, Any]]  # {"text": ..., "weights": rows * cols whole numbers 0..255, row by row from the top}
    box: NotRequired[Sequence[float]]  # the part: left, top, right, bottom as fractions of the picture


class GalleryRow(TypedDict):
    """One picture of the gallery."""

    file_name: str
    caption: str
    references: list[str]
    cider: float  # a fraction
    attention: NotRequired[Maps]


@functools.cache
def parts(template: str = "report_template.html") -> dict[str, str]:
    """Of a template beside this file: "page", and each <template> by its id, on one line."""
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    found = re.findall(r'<template id="(\w+)">(.*?)</template>', text, re.DOTALL)
    return {name: re.sub(r"\n\s*", "", part) for name, part in found} | {"page": text[: text.index("<template")]}


def fill(part: str, template: str = "report_template.html", **values: object) -> str:
    """A part of a template with its slots filled in one pass: {{name}} is escaped, {{{name}}} is HTML already."""

    def value_of(slot: re.Match[str]) -> str:
        text = str(values[slot["name"]])
        return text if slot["raw"] else html.escape(shown(text))

    return re.sub(r"\{\{(?P<raw>\{)?(?P<name>\w+)\}?\}\}", value_of, parts(template)[part])


def _panel(title: str, body: str, note: str = "") -> str:
    return fill("panel", title=title, note=note, body=body)


def repeated_words(words: Sequence[str]) -> list[bool]:
    """For each word: does it stutter ("dog dog") or end a pair that stood there already ("a dog, a dog")?"""
    plain = [re.sub(r"\W", "", word).casefold() for word in words]
    seen: set[tuple[str, str]] = set()
    flags = []
    for before, word in zip(["", *plain], plain, strict=False):
        flags.append(bool(word) and (word == before or (before, word) in seen))
        if before:
            seen.add((before, word))
    return flags


def card_html(
    row: GalleryRow, picture: str, rank: int, total: int, metric: str = "CIDEr", lead: str = ""
) -> str:
    """The card of one picture, `rank` of `total` by its score; picture: where it is loaded from.

    metric: what the score is called. lead: a text before the caption, the question that it answers.

    With maps each word of the caption is a button: the first is reached by Tab, the others by the arrow keys. Maps of
    other words are left out: a token that holds half a character has no text of its own.
    """
    words, maps = row["caption"].split(), row.get("attention")
    flags = repeated_words(words)
    shown = [fill("repeated" if flag else "plain", text=word) for word, flag in zip(words, flags, strict=True)]
    attributes = ""
    if maps and words and [word["text"] for word in maps["words"]] == words:
        shown = [fill("word", n=n, tab=-1 if n else 0, text=word) for n, word in enumerate(shown)]
        attributes = _map_attributes(maps)
    return fill(
        "card", name=row["file_name"], picture=picture, metric=metric,
        caption=fill("lead", text=lead) * bool(lead) + (" ".join(shown) or "<em>empty caption</em>"),
        words=len(words), repeats=sum(flags), cider=f"{row['cider']:.6f}", score=format_score(row["cider"]),
        rank=f"{rank:,}", total=f"{total:,}", share=100 * (total - rank) // max(total - 1, 1), maps=attributes,
        references="".join(fill("reference", text=text) for text in row["references"]),
    )  # fmt: skip


def _map_attributes(maps: Maps) -> str:
    weights = base64.b64encode(bytes(weight for word in maps["words"] for weight in word["weights"])).decode()
    corners = ",".join(f"{float(edge):.4g}" for edge in maps.get("box", (0, 0, 1, 1)))
    return f' data-grid="{maps["rows"]},{maps["cols"]}" data-box="{corners}" data-maps="{weights}"'


def format_score(value: float) -> str:
    """A fraction as the field writes scores: 0.934 -> "93.4"; a dash for what is not a finite number."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def format_value(value: float, key: str = "") -> str:
    """A statistic of the text for reading: 1234 -> "1,234", 10.43 -> "10.4", 0.03 -> "0.03"; shares in percent."""
    if key in ("repetition", "seen", "bad_endings", "unstopped"):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{value:,}"


def scores_html(scores: Scores) -> str:
    """The scores beside those of the references as a table, true claims as bars, statistics of the text as a list."""
    panels = [_panel("Scores", _metrics_table(scores))]
    if domains := scores.get("domains"):
        panels.append(_domains_html(domains))
    if truth := scores.get("truth"):
        rates = [(kind, n["true"], n["claims"]) for kind, n in truth.items()]
        bars = [fill("truth", kind=kind.capitalize(), true=f"{true:,}", claims=f"{claims:,}",
                     rate=f"{100 * true / claims:.1f} %" if claims else "–",
                     share=f"{100 * true / max(claims, 1):.2f}") for kind, true, claims in rates]  # fmt: skip
        panels.append(_panel("True claims", f'<ul class="truth">{"".join(bars)}</ul>'))
    if text := scores.get("text"):
        rows = [fill("value", name=TEXT_LABELS.get(key, key.capitalize()), value=format_value(value, key))
                for key, value in text.items()]  # fmt: skip
        panels.append(_panel("Text", f"<dl>{''.join(rows)}</dl>"))
    return "".join(panels)


def _domains_html(domains: Mapping[str, DomainScores]) -> str:
    """A row for each domain, with the interval of its CIDEr."""
    names = [key for key in METRIC_LABELS if key in next(iter(domains.values()))["corpus"]]
    rows = ""
    for domain, part in domains.items():
        cells = [f"{part['images']:,}", *(format_score(part["corpus"][key]) for key in names)]
        cells[1 + names.index("CIDEr")] += f"<small>{'–'.join(map(format_score, part['intervals']['CIDEr']))}</small>"
        rows += fill("score", key="domain", label=domain, cells="</td><td>".join(cells))
    heads = "".join(fill("head", text=text) for text in ["Pictures", *map(METRIC_LABELS.__getitem__, names)])
    note = "The document frequencies of CIDEr are those of all pictures together."
    return _panel("Domains", fill("table", kind="scores", heads=heads, rows=rows), note)


def _metrics_table(scores: Scores) -> str:
    own, theirs, intervals = scores["corpus"], scores.get("leave_one_out", {}), scores.get("intervals", {})
    heads = ["Model\n95 % interval" if intervals else "Model"]
    heads += ["References against each other", "Model as share of references"] if theirs else []
    rows = ""
    for key in [key for key in dict.fromkeys([*METRIC_LABELS, *own]) if key in own]:
        cells = [format_score(own[key])]
        if key in intervals:
            cells[0] += f"<small>{'–'.join(map(format_score, intervals[key]))}</small>"
        if theirs:
            known = theirs.get(key, 0) >= 0.0005  # less is shown as 0.0
            cells += [format_score(theirs[key]), f"{100 * own[key] / theirs[key]:.0f} %"] if known else ["–", "–"]
        rows += fill("score", key=key, label=METRIC_LABELS.get(key, key), cells="</td><td>".join(cells))
    return fill("table", kind="scores", heads="".join(fill("head", text=text) for text in heads), rows=rows)


def charts_html(history: Rows, predictions: Sequence[GalleryRow]) -> str:
    """The curves of the run, of what its log has, and two histograms over all pictures, if there are any."""
    curves = extract_curves(history)
    charts = curve_charts(curves)
    note = curves.note if charts or not history else "The log holds no losses that can be drawn."
    return "".join([*map(_figure, charts), fill("note", text=note or ""),
                    *(map(_figure, _distributions(predictions)) if predictions else ())])  # fmt: skip


def _figure(chart: Chart) -> str:
    legend = "".join(fill("legend", color=color, text=text) for text, color in chart.legend.items())
    return fill("figure", title=chart.title, legend=legend, chart=svg(chart.draw))


def _distributions(predictions: Sequence[GalleryRow]) -> list[Chart]:
    """Words per caption beside those of the references, and CIDEr, of all pictures."""
    own = [len(row["caption"].split()) for row in predictions]
    theirs = [len(text.split()) for row in predictions for text in row["references"]]
    cider = [100 * row["cider"] for row in predictions]
    words = functools.partial(draw_histogram, samples=[own, theirs], form="{:.0f} words", x_label="words", whole=True)
    scores = functools.partial(draw_histogram, samples=[cider], form="CIDEr from {:.0f}", x_label="CIDEr", whole=False)
    charts = [Chart("Words per caption", {"model": "train", "references": "val"}, words)]
    return charts + ([Chart("CIDEr of the pictures", {}, scores)] if len(predictions) > 1 else [])


def confusions_html(confusions: Mapping[str, Sequence[tuple[str, str, int]]]) -> str:
    """Colours as a table of true against said; things as a list of the most frequent mistakes."""
    colours, things = confusions.get("colours"), confusions.get("things")
    return (_colours_html(colours) if colours else "") + (_things_html(things) if things else "")


def _colours_html(rows: Sequence[tuple[str, str, int]]) -> str:
    counts = {(true, said): n for true, said, n in rows}
    seen: Counter[str] = Counter()
    for true, said, n in rows:
        seen[true] += n
        seen[said] += 0
    names = sorted(seen, key=lambda name: (-seen[name], name))
    body = ""
    for true in names:
        cells = "".join(fill("confusion", kind="right" if true == said else "wrong", true=true, said=said, n=n,
                             shown=n or "", share=f"{100 * n / max(seen[true], 1):.0f}")
                        for said in names for n in [counts.get((true, said), 0)])  # fmt: skip
        body += fill("colour", name=true, cells=cells)
    right = sum(n for true, said, n in rows if true == said)
    table = fill("table", kind="matrix", heads="".join(fill("head", text=name) for name in names), rows=body)
    note = f"{right:,} of {sum(counts.values()):,} right, of things that are in the picture"
    return _panel("Colours: true (rows) and said (columns)", table, note)


def _things_html(rows: Sequence[tuple[str, str, int]]) -> str:
    wrong = sorted((row for row in rows if row[0] != row[1]), key=lambda row: (-row[2], row[:2]))
    total = sum(n for _, _, n in rows)
    items = "".join(fill("mistake", true=true, said=said, n=f"{n:,}", share=f"{100 * n / wrong[0][2]:.0f}")
                    for true, said, n in wrong[:12])  # fmt: skip
    more = f"; the {min(len(wrong), 12)} most frequent mistakes" if wrong else ""
    note = f"{total - sum(n for _, _, n in wrong):,} of {total:,} right{more}"
    return _panel("Things: said, and what was there", fill("mistakes", items=items) if wrong else "", note)
