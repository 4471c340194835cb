"""Parts of the report page as HTML text: score tables, charts, confusions, the gallery's cards. Data are escaped."""

import base64
import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NotRequired, TypedDict

from nanocaption.score.charts import Histogram, LineChart, svg
from nanocaption.score.curves import Rows, curve_charts, extract_curves, is_finite
from nanocaption.score.scoring import Scores

METRIC_LABELS = {**{f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)}, "METEOR": "METEOR", "ROUGE_L": "ROUGE-L",
                 "CIDEr": "CIDEr", "SPICE": "SPICE"}
TEXT_LABELS = {"distinct_1": "Distinct words per word", "distinct_2": "Distinct pairs per pair",
               "mean_length": "Words per caption", "vocabulary": "Different words", "repetition": "Repeat themselves",
               "empty": "Empty captions", "seen": "In the training captions, word for word"}
LEGEND = {"training, moving mean": "train", "validation": "val", "model": "train", "references": "val"}  # colours


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


def card_html(row: GalleryRow, picture: str, rank: int, total: int) -> str:
    """The card of one picture, `rank` of `total` by its score; picture: where it is loaded from."""
    words = row["caption"].split()
    flags = repeated_words(words)
    caption = " ".join(_marked(word, flag) for word, flag in zip(words, flags, strict=True))
    attributes = ""
    if (maps := row.get("attention")) and (spans := _spans(row["caption"], [word["text"] for word in maps["words"]])):
        caption, attributes = _tappable(row["caption"], spans), _map_attributes(maps)
    references = "".join(f'<li dir="auto">{html.escape(text)}</li>' for text in row["references"])
    name = html.escape(row["file_name"])
    share = 100 * (total - rank) // max(total - 1, 1)
    return (f'<article class="card" data-cider="{row["cider"]:.6f}" data-words="{len(words)}" '
            f'data-repeats="{sum(flags)}" data-name="{name}"{attributes}>'
            f'<div class="picture"><img src="{picture}" alt="picture {name}"></div>'
            f'<div class="said"><p class="caption" dir="auto">{caption or "<em>empty caption</em>"}</p>'
            f'<p class="score" style="--share:{share}%">'
            f'<span><b>{format_score(row["cider"])}</b> CIDEr</span> '
            f'<small>rank {rank:,}<i> of {total:,}</i></small></p></div>'
            f'<ul class="references">{references}</ul><p class="name">{name}</p></article>')  # fmt: skip


def _marked(word: str, repeated: bool) -> str:
    return f"<mark>{html.escape(word)}</mark>" if repeated else html.escape(word)


def _spans(caption: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where in the caption each of its words stands; empty if these are not its words, one after another.

    A token that holds half a character has no text of its own, so that its word cannot be found.
    """
    if "".join(words) != "".join(caption.split()):
        return []
    spans, place = [], 0
    for word in words:
        start = caption.index(word, place)
        place = start + len(word)
        spans.append((start, place))
    return spans


def _map_attributes(maps: Maps) -> str:
    weights = base64.b64encode(bytes(weight for word in maps["words"] for weight in word["weights"])).decode()
    corners = ",".join(f"{float(edge):.4g}" for edge in maps.get("box", (0, 0, 1, 1)))
    return f' data-grid="{maps["rows"]},{maps["cols"]}" data-box="{corners}" data-maps="{weights}"'


def _tappable(caption: str, spans: list[tuple[int, int]]) -> str:
    """The caption, each word a button; the first one is reached by Tab, the others by the arrow keys."""
    texts = [caption[start:end] for start, end in spans]
    parts, place = [], 0
    for n, ((start, end), text, repeated) in enumerate(zip(spans, texts, repeated_words(texts), strict=True)):
        parts.append(f'{html.escape(caption[place:start])}<button type="button" class="word" aria-pressed="false" '
                     f'data-n="{n}" tabindex="{0 if n == 0 else -1}">{_marked(text, repeated)}</button>')
        place = end
    return "".join(parts) + html.escape(caption[place:])


def format_score(value: object) -> str:
    """A fraction as the field writes scores: 0.934 -> "93.4"; a dash for what is not a finite number."""
    return f"{100 * value:.1f}" if is_finite(value) else "–"


def _label(key: str) -> str:
    text = TEXT_LABELS.get(key, key.replace("_", " "))
    return html.escape(text[:1].upper() + text[1:])


def _panel(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f'<section class="panel"><h2>{title}</h2>{note}{body}</section>'


def scores_html(scores: Scores) -> str:
    """The scores beside those of the references as a table, true claims as bars, statistics of the text as a list."""
    text = "".join(f"<dt>{_label(key)}</dt><dd>{format_value(value, key)}</dd>"
                   for key, value in scores.get("text", {}).items())  # fmt: skip
    return (_panel("Scores", _metrics_table(scores)) + _truth_html(scores.get("truth", {}))
            + (_panel("Text", f"<dl>{text}</dl>") if text else ""))  # fmt: skip


def format_value(value: float, key: str = "") -> str:
    """A statistic of the text for reading: 1234 -> "1,234", 10.43 -> "10.4", 0.03 -> "0.03"; shares in percent."""
    if key in ("repetition", "seen"):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{value:,}"


def _metrics_table(scores: Scores) -> str:
    own, theirs, intervals = scores["corpus"], scores.get("leave_one_out", {}), scores.get("intervals", {})
    heads = ["Model<br>95 % interval" if intervals else "Model"]
    heads += ["References against each other", "Model as share of references"] if theirs else []
    rows = []
    for key in [key for key in dict.fromkeys([*METRIC_LABELS, *own]) if key in own]:
        spread = "–".join(map(format_score, intervals.get(key, ())))
        cells = [format_score(own[key]) + (f"<small>{spread}</small>" if spread else "")]
        if theirs:
            known = theirs.get(key, 0) > 0
            cells += [format_score(theirs[key]), f"{100 * own[key] / theirs[key]:.0f} %"] if known else ["–", "–"]
        label = METRIC_LABELS.get(key) or html.escape(key)
        rows.append(f'<tr data-metric="{html.escape(key)}"><th scope="row">{label}</th>'
                    f'<td>{"</td><td>".join(cells)}</td></tr>')  # fmt: skip
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (f'<div class="scroll"><table><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            "</div>")  # fmt: skip


def _truth_html(truth: dict[str, dict[str, int]]) -> str:
    rows = []
    for name, counts in truth.items():
        true, claims = counts["true"], counts["claims"]
        share = f"{100 * true / claims:.1f} %" if claims else "–"
        rows.append(f'<li><span>{_label(name)}</span><b>{share}</b>'
                    f'<i style="--share:{100 * true / max(claims, 1):.2f}%"></i>'
                    f'<small>{true:,} of {claims:,} true</small></li>')  # fmt: skip
    return _panel("True claims", f'<ul class="truth">{"".join(rows)}</ul>') if rows else ""


def charts_html(history: Rows, predictions: Sequence[GalleryRow]) -> str:
    """The curves of the run, of what its log has, and two histograms over all pictures."""
    curves = extract_curves(history)
    charts = curve_charts(curves)
    note = curves.note if charts or not history else "The log holds no losses that can be drawn."
    parts = [*map(_figure_html, charts), f'<p class="note">{note}</p>' if note else "",
             *map(_figure_html, _distributions(predictions))]  # fmt: skip
    return "".join(parts)


def _figure_html(chart: LineChart | Histogram) -> str:
    names = [name for name, values in chart.series.items() if values and name in LEGEND]
    legend = "".join(f'<span class="{LEGEND[name]}">{name}</span>' for name in names)
    return f'<figure class="panel"><figcaption><h2>{chart.title}</h2>{legend}</figcaption>{svg(chart)}</figure>'


def _distributions(predictions: Sequence[GalleryRow]) -> list[Histogram]:
    """Words per caption beside those of the references, and CIDEr, of all pictures."""
    own = [len(row["caption"].split()) for row in predictions]
    theirs = [len(text.split()) for row in predictions for text in row["references"]]
    longest = max([*own, *theirs])
    width = math.ceil((longest + 1) / 32)
    bins = longest // width + 1
    words = {"model": _percent(own, width, bins), "references": _percent(theirs, width, bins)}
    charts = [Histogram("Words per caption", words, width, "{:.0f} words", "words")]
    if len(predictions) > 1:
        scores = [100 * row["cider"] for row in predictions]
        step = next(size for size in (1, 2, 5, 10, 20, 25, 50, 100, 200) if max(scores) / size <= 26 or size == 200)
        shares = _percent(scores, step, int(max(scores) // step) + 1)
        charts.append(Histogram("CIDEr of the pictures", {"pictures": shares}, step, "CIDEr from {:.0f}", "CIDEr"))
    return charts


def _percent(values: Sequence[float], width: float, bins: int) -> list[float]:
    """How many of the values lie in each bin of this width, from 0 on, in percent of all."""
    counts = Counter(int(value // width) for value in values)
    return [100 * counts[n] / max(1, len(values)) for n in range(bins)]


def confusions_html(confusions: dict[str, Iterable[Sequence]]) -> str:
    """Colours as a table of true against said; things as a list of the most frequent mistakes."""
    colours = [tuple(row) for row in confusions.get("colours", ())]
    things = [tuple(row) for row in confusions.get("things", ())]
    return (_colours_html(colours) if colours else "") + (_things_html(things) if things else "")


def _colours_html(rows: list[tuple[str, str, int]]) -> str:
    counts = {(true, said): n for true, said, n in rows}
    seen = Counter()
    for true, said, n in rows:
        seen[true] += n
        seen[said] += 0
    names = sorted(seen, key=lambda name: (-seen[name], name))
    right = sum(n for (true, said), n in counts.items() if true == said)
    head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in names)
    body = ""
    for true in names:
        cells = ""
        for said in names:
            n = counts.get((true, said), 0)
            kind = "right" if true == said else "wrong"
            share = 100 * n / seen[true] if seen[true] else 0
            cells += (f'<td class="{kind}" style="--share:{share:.0f}%" title="{html.escape(true)}, said '
                      f'{html.escape(said)}: {n}">{n or ""}</td>')
        body += f'<tr><th scope="row">{html.escape(true)}</th>{cells}</tr>'
    note = f"{right:,} of {sum(counts.values()):,} right, of things that are in the picture"
    return _panel("Colours: true (rows) and said (columns)",
                  f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
                  f"<tbody>{body}</tbody></table></div>", note)  # fmt: skip


def _things_html(rows: list[tuple[str, str, int]]) -> str:
    wrong = sorted(((true, said, n) for true, said, n in rows if true != said), key=lambda row: (-row[2], row[:2]))
    total = sum(n for _, _, n in rows)
    items = "".join(f'<li><span>{html.escape(said)}</span><small>{html.escape(true)}</small>'
                    f'<i style="--share:{100 * n / wrong[0][2]:.0f}%"></i><b>{n:,}</b></li>'
                    for true, said, n in wrong[:12])
    head = '<li class="head"><span>said</span><small>true</small></li>'
    items = f'<ul class="mistakes">{head}{items}</ul>' if wrong else ""
    more = f"; the {min(len(wrong), 12)} most frequent mistakes" if wrong else ""
    note = f"{total - sum(n for _, _, n in wrong):,} of {total:,} right{more}"
    return _panel("Things: said, and what was there", items, note)
