"""Results people can look at: one self-contained HTML page of scores and captions, and a run's curves as PNG.

All input is plain JSON-like data (scores.json, predictions, rows of log.jsonl) and a folder of pictures.
"""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

from nanocaption.base.files import write_file
from nanocaption.data.pictures import data_uri, thumbnail
from nanocaption.score.curves import extract_curves, is_finite, svg
from nanocaption.score.report_html import card_html, confusions_html, distributions_html, scores_html

FEW_IMAGES = 100  # below this, scores say little
TEMPLATE = Path(__file__).with_name("report_template.html")
MAX_IMAGES = 200


def write_report(path: Path | str, *, title: str, scores: dict, predictions: list[dict],
                 images_dir: Path | str, history: list[dict] | None = None, max_images: int = MAX_IMAGES) -> None:
    """Write one self-contained HTML page (no network, light and dark): scores, curves, gallery of captions.

    scores: as in scores.json, fractions (0.61 is shown as 61.0); "corpus" is needed, other groups are shown.
    predictions: rows with "file_name" (below images_dir), "caption", "references" (list of str), "cider" (a
    fraction); optional "attention" {"rows": r, "cols": c, "words": [{"text", "weights": r * c numbers 0..255}, ...]},
    where the model looked for each word of the caption, row by row from the top left, and in it "box": the part of
    the picture the grid covers, [left, top, right, bottom] as fractions. Other keys are ignored. Of more than
    max_images rows the best, the worst and evenly spaced ones between are shown, and the page says so. history: rows
    of log.jsonl, for the curves. Text of the data is escaped. The file appears complete or not at all.

    Raises ValueError for incomplete rows, maps of other words, and for shown pictures that are missing or unreadable.
    """
    if not isinstance(scores.get("corpus"), dict):
        raise ValueError('scores has no "corpus" group of metrics; give the contents of scores.json')
    if max_images < 1:
        raise ValueError(f"max_images is {max_images}, but must be at least 1")
    total = len(predictions)
    shown = _choose(predictions, max_images)
    small = (thumbnail(Path(images_dir) / row["file_name"]) for _, row in shown)
    embedded = [(data_uri(picture), *picture.size) for picture in small]
    aspects = sorted(width / height for _, width, height in embedded)
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    few = scores.get("images", total) < FEW_IMAGES
    parts = {
        # The page's policy runs this one script and nothing else, should an escape ever be forgotten.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": html.escape(title),
        "subtitle": html.escape(f"{scores.get('images', total)} {scores.get('split', 'captioned')} pictures")
                    + (": few, so these scores are rough, CIDEr above all" if few else ""),
        "signature": html.escape(str(scores.get("signature", ""))),
        "scores": scores_html(scores),
        "charts": _charts_html(history) + distributions_html(predictions),
        "confusions": confusions_html(scores.get("confusions") or {}),
        "hint": " Point at a word, tap it or move there with Tab and the arrow keys, to see where the model looked."
                if any(row.get("attention") for _, row in shown) else "",
        "counted": f"all {total:,} pictures" if len(shown) == total else
                   f"{len(shown):,} of {total:,} pictures: the best, the worst, and evenly spaced between",
        "aspect": f"{min(max(aspects[len(aspects) // 2], 0.75), 1.5):.3f}",
        "cards": "\n".join(card_html(row, picture, rank, total)
                           for (rank, row), (picture, _, _) in zip(shown, embedded, strict=True)),
    }
    # One pass: a caption that holds "{{cards}}" stays text.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    write_file(Path(path), page.encode("utf-8", "backslashreplace"))


def shown_rows(predictions: list[dict], max_images: int = MAX_IMAGES) -> list[dict]:
    """The rows that write_report puts into the gallery, e.g. to add "attention" to them alone."""
    return [row for _, row in _choose(predictions, max_images)]


def _choose(predictions: list[dict], max_images: int) -> list[tuple[int, dict]]:
    return choose_rows(list(enumerate(rank_predictions(predictions), start=1)), max_images)


def rank_predictions(predictions: list[dict]) -> list[dict]:
    """The rows, best CIDEr first, equals by file name. ValueError for an empty list or an incomplete row."""
    if not predictions:
        raise ValueError("no predictions: a report needs at least one captioned picture")
    for number, row in enumerate(predictions):
        missing = [key for key in ("file_name", "caption", "references", "cider") if row.get(key) is None]
        if missing:
            raise ValueError(f"prediction {number} ({row.get('file_name', 'no file name')}) has no "
                             f"{', '.join(missing)}; give rows with file_name, caption, references and cider")
        if not is_finite(row["cider"]):
            raise ValueError(f"prediction {number} ({row['file_name']}): cider {row['cider']!r} is no number")
    return sorted(predictions, key=lambda row: (-row["cider"], row["file_name"]))


def choose_rows(ranked: list, limit: int) -> list:
    """At most `limit` of the rows, in order: a third from the top, a third from the end, some between."""
    if len(ranked) <= limit:
        return ranked
    ends = limit // 3
    middle, count = ranked[ends:len(ranked) - ends], limit - 2 * ends
    spread = [middle[(2 * i + 1) * len(middle) // (2 * count)] for i in range(count)]
    return ranked[:ends] + spread + ranked[len(ranked) - ends:]


def _charts_html(history: list[dict] | None) -> str:
    curves = extract_curves(history or [])
    lines = {"raw": curves.train, "train": curves.smooth, "val": curves.val}
    charts = []
    if curves.train or curves.val:
        names = (("train", "training, moving mean"), ("val", "validation"))
        legend = "".join(f'<span class="{name}">{text}</span>' for name, text in names if lines[name])
        charts.append(("Loss per token", legend, svg(lines, min, "{:.3f}", curves.x_label)))
    if curves.cider:
        charts.append(("Validation CIDEr", "", svg({"cider": curves.cider}, max, "{:.1f}", curves.x_label)))
    note = curves.note
    if history and not charts:
        note = "The log holds no losses that can be drawn."
    return "".join(f'<figure class="panel"><figcaption><h2>{name}</h2>{legend}</figcaption>{svg}</figure>'
                   for name, legend, svg in charts) + (f'<p class="note">{note}</p>' if note else "")


def gallery_rows(
    records: list[dict[str, Any]], captions: list[str], per_image: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """One row per image, as report.write_report wants them."""
    return [
        {"file_name": record["file_name"], "caption": caption, "references": record["captions"], "cider": own["CIDEr"]}
        for record, caption, own in zip(records, captions, per_image, strict=True)
    ]
