"""Parts of the report page as HTML text: score tables, charts, confusions, the gallery's cards. Data are escaped."""

import base64
import html
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from nanocaption.score.curves import is_finite, nice_ticks

METRIC_LABELS = {**{f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)}, "METEOR": "METEOR", "ROUGE_L": "ROUGE-L",
                 "CIDEr": "CIDEr", "SPICE": "SPICE"}
TEXT_LABELS = {"distinct_1": "Distinct words per word", "distinct_2": "Distinct pairs per pair",
               "mean_length": "Words per caption", "vocabulary": "Different words", "repetition": "Repeat themselves",
               "empty": "Empty captions", "seen": "In the training captions, word for word"}
GROUP_LABELS = {"corpus": "Model", "leave_one_out": "References against each other"}


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


def card_html(row: dict, picture: str, rank: int, total: int) -> str:
    words = row["caption"].split()
    flags = repeated_words(words)
    attributes, spans = _attention_parts(row) if row.get("attention") else ("", [])
    if spans:
        caption = _tappable(row["caption"], spans)
    else:
        caption = " ".join(f"<mark>{html.escape(word)}</mark>" if flag else html.escape(word)
                           for word, flag in zip(words, flags, strict=True))
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
            f'<ul class="references">{references}</ul><p class="name">{name}</p></article>')


def _attention_parts(row: dict) -> tuple[str, list[tuple[int, int]]]:
    """The attributes that hold a caption's maps, and where in the caption each of their words stands.

    Raises ValueError for maps that do not fit their grid or words that are not those of the caption.
    """
    maps, name = row["attention"], row["file_name"]
    rows, columns, words = maps["rows"], maps["cols"], maps["words"]
    box = maps.get("box", [0, 0, 1, 1])
    spans, place = [], 0
    for word in words:
        if len(word["weights"]) != rows * columns or not all(0 <= weight <= 255 for weight in word["weights"]):
            raise ValueError(f"{name}: the map of {word['text']!r} needs {rows} x {columns} weights from 0 to 255, "
                             f"it has {len(word['weights'])}")
        start = row["caption"].find(word["text"], place)
        if not word["text"] or start < 0 or row["caption"][place:start].strip():
            raise ValueError(f"{name}: {word['text']!r} is not the next word of {row['caption']!r}; its map would "
                             "stand at another one")
        place = start + len(word["text"])
        spans.append((start, place))
    weights = base64.b64encode(bytes(weight for word in words for weight in word["weights"])).decode()
    corners = ",".join(f"{float(edge):.4g}" for edge in box)
    return f' data-grid="{int(rows)},{int(columns)}" data-box="{corners}" data-maps="{weights}"', spans


def _tappable(caption: str, spans: list[tuple[int, int]]) -> str:
    """The caption, each word a button; the first one is reached by Tab, the others by the arrow keys."""
    texts = [caption[start:end] for start, end in spans]
    parts, place = [], 0
    for n, ((start, end), text, repeated) in enumerate(zip(spans, texts, repeated_words(texts), strict=True)):
        word = f"<mark>{html.escape(text)}</mark>" if repeated else html.escape(text)
        parts.append(f'{html.escape(caption[place:start])}<button type="button" class="word" aria-pressed="false" '
                     f'data-n="{n}" tabindex="{0 if n == 0 else -1}">{word}</button>')
        place = end
    return "".join(parts) + html.escape(caption[place:])


def format_score(value: object) -> str:
    """A fraction as the field writes scores: 0.934 -> "93.4"; a dash for what is not a finite number."""
    return f"{100 * value:.1f}" if is_finite(value) else "–"


def format_value(value: object, key: str = "", group: str = "") -> str:
    """Any JSON value for reading: 1234 -> "1,234", 10.43 -> "10.4", 0.03 -> "0.03"; others as JSON."""
    if group == "text" and key in ("repetition", "seen") and is_finite(value):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _label(key: str, group: str = "") -> str:
    text = TEXT_LABELS[key] if group == "text" and key in TEXT_LABELS else key.replace("_", " ")
    return html.escape(text[:1].upper() + text[1:])


def scores_html(scores: dict) -> str:
    """Groups of metrics as columns of one table, "truth" as bars, all else as lists of names and values."""
    apart = ("truth", "images", "split", "signature", "intervals", "confusions", "key", "dataset", "decoding",
             "checkpoints")  # fmt: skip
    rest = {name: value for name, value in scores.items() if name not in apart}
    groups = {name: value for name, value in rest.items()
              if name == "corpus" or isinstance(value, dict) and METRIC_LABELS.keys() & value.keys()}
    panels = [_metrics_html(groups, scores.get("intervals") or {})]
    panels += [_truth_html(scores["truth"])] if scores.get("truth") else []
    lists = {name: value for name, value in rest.items() if name not in groups and isinstance(value, dict)}
    lists["details"] = {name: value for name, value in rest.items() if not isinstance(value, dict)}
    text = ""
    for name, group in lists.items():
        rows = "".join(f"<dt>{_label(key, name)}</dt><dd>{html.escape(format_value(value, key, name))}</dd>"
                       for key, value in group.items())
        text += f"<h2>{_label(name)}</h2><dl>{rows}</dl>" if rows else ""
    return "\n".join(panels + ([f'<section class="panel">{text}</section>'] if text else []))


def _metrics_html(groups: dict[str, dict], intervals: dict[str, Sequence[float]]) -> str:
    metrics = list(METRIC_LABELS) + [key for key in groups["corpus"] if key not in METRIC_LABELS]
    heads = [GROUP_LABELS.get(name) or _label(name) for name in groups]
    heads[0] += "<br>95 % interval" if intervals else ""
    heads += ["Model as share of references"] if "leave_one_out" in groups else []
    rows = []
    for key in metrics:
        cells = [format_score(group.get(key)) for group in groups.values()]
        if key in intervals:
            cells[0] += f"<small>{'–'.join(format_score(end) for end in intervals[key])}</small>"
        if "leave_one_out" in groups:
            own, theirs = groups["corpus"].get(key), groups["leave_one_out"].get(key)
            known = is_finite(own) and is_finite(theirs) and theirs > 0
            cells.append(f"{100 * own / theirs:.0f} %" if known else "–")
        if any(key in group for group in groups.values()):
            label = METRIC_LABELS.get(key) or html.escape(key)
            rows.append(f'<tr data-metric="{html.escape(key)}"><th scope="row">{label}</th>'
                        f'<td>{"</td><td>".join(cells)}</td></tr>')
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (f'<section class="panel"><h2>Scores</h2><div class="scroll"><table><thead><tr><td></td>'
            f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>')


def _truth_html(truth: dict[str, dict]) -> str:
    rows = []
    for name, counts in truth.items():
        true, claims = counts["true"], counts["claims"]
        share = f"{100 * true / claims:.1f} %" if claims else "–"
        rows.append(f'<li><span>{_label(name)}</span><b>{share}</b>'
                    f'<i style="--share:{100 * true / max(claims, 1):.2f}%"></i>'
                    f'<small>{true:,} of {claims:,} true</small></li>')
    return f'<section class="panel"><h2>True claims</h2><ul class="truth">{"".join(rows)}</ul></section>'


def distributions_html(predictions: Sequence[dict]) -> str:
    """Two histograms over all pictures: words per caption beside those of the references, and CIDEr."""
    own = Counter(len(row["caption"].split()) for row in predictions)
    theirs = Counter(len(text.split()) for row in predictions for text in row["references"])
    longest = max([*own, *theirs])
    width = max(1, math.ceil((longest + 1) / 32))
    starts = range(0, longest + 1, width)
    shares = [[100 * sum(counts[n] for n in range(start, start + width)) / max(1, counts.total()) for start in starts]
              for counts in (own, theirs)]
    legend = '<span class="train">model</span><span class="val">references</span>'
    charts = [("Words per caption", legend, _histogram(shares, width, "words", "{:.0f} words"))]
    if len(predictions) > 1:
        scores = [100 * row["cider"] for row in predictions]
        step = next(size for size in (1, 2, 5, 10, 20, 25, 50, 100, 200) if max(scores) / size <= 26 or size == 200)
        counts = Counter(int(score // step) for score in scores)
        share = [100 * counts[n] / len(scores) for n in range(max(counts) + 1)]
        charts.append(("CIDEr of the pictures", "", _histogram([share], step, "CIDEr", "CIDEr from {:.0f}")))
    return "".join(f'<figure class="panel"><figcaption><h2>{name}</h2>{legend}</figcaption>{chart}</figure>'
                   for name, legend, chart in charts)


def _histogram(series: list[list[float]], width: float, x_label: str, form: str) -> str:
    """Bars for the first series, an outline for a second one; percent of all per bin of this width."""
    left, right, top, bottom = 38, 372, 8, 182
    high = 1.08 * max(map(max, series)) or 1
    step = (right - left) / len(series[0])
    heights = [[bottom - value / high * (bottom - top) for value in values] for values in series]
    out = [f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/><text class="y" x="{left - 8}" y="{y + 4:.1f}">'
           f"{tick:.6g} %</text>"
           for tick in nice_ticks(0, high) for y in [bottom - tick / high * (bottom - top)]]
    # Whole numbers stand below the middle of their bar, ranges begin at its left edge.
    shift = step / 2 if width == 1 else 0
    ticks = [tick for tick in nice_ticks(0, width * len(series[0])) if left + tick / width * step + shift <= right]
    out += [f'<text class="x" x="{left + tick / width * step + shift:.1f}" y="{bottom + 17}">{tick:.6g}</text>'
            for tick in ticks]
    out.append(f'<text class="x" x="{(left + right) / 2}" y="{bottom + 34}">{x_label}</text>')
    for n, (y, value) in enumerate(zip(heights[0], series[0], strict=True)):
        if value:
            out.append(f'<rect class="train" x="{left + n * step + 0.7:.1f}" y="{y:.1f}" width="{step - 1.4:.1f}" '
                       f'height="{bottom - y:.1f}"><title>{form.format(n * width)}: {value:.1f} %</title></rect>')
    for line in heights[1:]:
        corners = "".join(f"V{y:.1f}H{left + (n + 1) * step:.1f}" for n, y in enumerate(line))
        out.append(f'<path class="val" d="M{left} {bottom}{corners}V{bottom}"/>')
    return f'<svg viewBox="0 0 380 220" role="img">{"".join(out)}</svg>'


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
    return (f'<section class="panel"><h2>Colours: true (rows) and said (columns)</h2>'
            f'<p class="note">{right:,} of {sum(counts.values()):,} right, of things that are in the picture</p>'
            f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div></section>")


def _things_html(rows: list[tuple[str, str, int]]) -> str:
    wrong = sorted(((true, said, n) for true, said, n in rows if true != said), key=lambda row: (-row[2], row[:2]))
    total = sum(n for _, _, n in rows)
    items = "".join(f'<li><span>{html.escape(said)}</span><small>{html.escape(true)}</small>'
                    f'<i style="--share:{100 * n / wrong[0][2]:.0f}%"></i><b>{n:,}</b></li>'
                    for true, said, n in wrong[:12])
    head = '<li class="head"><span>said</span><small>true</small></li>'
    items = f'<ul class="mistakes">{head}{items}</ul>' if wrong else ""
    more = f"; the {min(len(wrong), 12)} most frequent mistakes" if wrong else ""
    return (f'<section class="panel"><h2>Things: said, and what was there</h2><p class="note">'
            f"{total - sum(n for _, _, n in wrong):,} of {total:,} right{more}</p>{items}</section>")
