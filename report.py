"""Results people can look at: one self-contained HTML page of scores and captions, and a run's curves as PNG.

All input is plain JSON-like data (scores.json, predictions, rows of log.jsonl) and a folder of pictures.
"""

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

import files
import pictures
import report_html
from report_html import Points

FEW_IMAGES = 100  # below this, scores say little
TEMPLATE = Path(__file__).with_name("report_template.html")
MAX_IMAGES = 200
THUMBNAIL_SIZE = 224  # pixels of the longer side: about 10 kB as JPEG, so 200 pictures make some 3 MB


class Curves(NamedTuple):
    """What a run's log says, ready to draw; x in epochs where the training rows have them, else in steps."""

    x_label: str
    train: Points
    smooth: Points
    val: Points
    cider: Points  # times 100, as scores are shown
    note: str | None  # says how many values cannot be drawn, if any


def read_log(path: Path | str) -> list[dict]:
    """The rows of a log.jsonl, in file order; blank lines are skipped.

    A last line without newline that does not parse is what a kill leaves behind: it is left out. Any other
    line that is not a JSON object raises ValueError naming file and line; so does a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such log; give the log.jsonl of a run folder")
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not a JSON object ({line[:60]!r}); repair or delete it")
    return rows


def extract_curves(history: list[dict]) -> Curves:
    """Drawable curves from rows of log.jsonl; types other than "train" and "val" are ignored.

    Rows of "resume" take back what was logged beyond their step; a step logged twice counts as logged last.
    """
    by_type: dict[str, dict[int, dict]] = {"train": {}, "val": {}}
    for row in history:
        if not report_html.is_finite(row.get("step")):
            continue  # of another program
        if row.get("type") in ("train", "val"):
            by_type[row["type"]][row["step"]] = row
        elif row.get("type") == "resume":
            by_type = {name: {step: r for step, r in rows.items() if step <= row["step"]}
                       for name, rows in by_type.items()}
    train_rows, val_rows = ([rows[step] for step in sorted(rows)] for rows in by_type.values())
    in_epochs = bool(train_rows) and all(report_html.is_finite(row.get("epoch")) for row in train_rows)
    # A validation row's own epoch is a whole number; its step places it exactly between the training rows.
    per_step = train_rows[-1]["epoch"] / max(train_rows[-1]["step"], 1) if in_epochs else 1
    train = [(row["epoch"] if in_epochs else row["step"], row.get("loss")) for row in train_rows]
    val = [(row["step"] * per_step, row.get("val_loss")) for row in val_rows]
    cider = [(row["step"] * per_step, row["CIDEr"]) for row in val_rows if "CIDEr" in row]
    kept = [[(x, y) for x, y in points if report_html.is_finite(y)] for points in (train, val, cider)]
    lost = len(train + val + cider) - sum(map(len, kept))
    return Curves("epoch" if in_epochs else "step", kept[0], smooth_curve(kept[0]), kept[1],
                  [(x, 100 * y) for x, y in kept[2]], f"left out, as not finite: {lost}" if lost else None)


def smooth_curve(points: Points) -> Points:
    """Centred moving mean over about 1/20 of the points; it narrows at both ends, so that nothing lags."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    smooth = []
    for i, (x, _) in enumerate(points):
        reach = min(len(points) // 40, i, len(points) - 1 - i)
        smooth.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return smooth


def plot_curves(history: list[dict], path: Path | str, title: str) -> None:
    """Write a PNG: training and validation loss on the left, validation CIDEr (x 100), if any, on the right.

    history: rows of log.jsonl. The file appears complete or not at all. ValueError if nothing can be drawn.
    """
    curves = extract_curves(history)
    if not curves.train and not curves.val:
        raise ValueError(f"no finite loss in {len(history)} log rows, none to plot; let the run log a step")
    from matplotlib.figure import Figure  # takes about a second, and only this function needs it

    width = 11 if curves.cider else 7
    figure = Figure(figsize=(width, 4.2), dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, parse_math=False, x=0.012, ha="left", fontsize=13, weight="bold", color="#222222")
    drawn = [("Loss per token", curves.val, min, "{:.3f}", "#c8502f")]
    drawn += [("Validation CIDEr", curves.cider, max, "{:.1f}", "#2e8560")] if curves.cider else []
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    if curves.train:
        blue = "#2f6db3"
        panels[0].plot(*zip(*curves.train, strict=True), color=blue, alpha=0.25, linewidth=0.8, label="training")
        panels[0].plot(*zip(*curves.smooth, strict=True), color=blue, label="training, moving mean")
    for panel, (name, points, best, form, color) in zip(panels, drawn, strict=True):
        if points:
            panel.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label="validation")
            point = best(points, key=lambda p: p[1])
            away = (0, -15) if best is min else (0, 7)
            panel.annotate(form.format(point[1]), point, xytext=away, textcoords="offset points", ha="center",
                           fontsize=9, weight="bold", color=color)
        panel.set_ylim(*report_html.y_range(points if panel is not panels[0] else curves.smooth + curves.val))
        panel.set_title(name, loc="left", fontsize=10, color="#444444")
        panel.set_xlabel(curves.x_label, fontsize=9, color="#666666")
        panel.tick_params(labelsize=9, colors="#666666", length=0)
        panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.spines["bottom"].set_color("#bbbbbb")
    panels[0].legend(loc="upper right", frameon=False, fontsize=9, title=curves.note, title_fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    files.write_file(Path(path), buffer.getvalue())


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
        "scores": report_html.scores_html(scores),
        "charts": _charts_html(history) + report_html.distributions_html(predictions),
        "confusions": report_html.confusions_html(scores.get("confusions") or {}),
        "hint": " Point at a word, tap it or move there with Tab and the arrow keys, to see where the model looked."
                if any(row.get("attention") for _, row in shown) else "",
        "counted": f"all {total:,} pictures" if len(shown) == total else
                   f"{len(shown):,} of {total:,} pictures: the best, the worst, and evenly spaced between",
        "aspect": f"{min(max(aspects[len(aspects) // 2], 0.75), 1.5):.3f}",
        "cards": "\n".join(report_html.card_html(row, picture, rank, total)
                           for (rank, row), (picture, _, _) in zip(shown, embedded, strict=True)),
    }
    # One pass: a caption that holds "{{cards}}" stays text.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    files.write_file(Path(path), page.encode("utf-8", "backslashreplace"))


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
        if not report_html.is_finite(row["cider"]):
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


def seen_part(path: Path, image_spec: dict) -> list[float]:
    """[left, top, right, bottom] of what an encoder sees of a picture, as fractions, for the "box" of its maps.

    image_spec: with "crop" the shorter side is resized to "resize" pixels and the middle "size" of it is cut out.
    """
    if not image_spec["crop"]:
        return [0.0, 0.0, 1.0, 1.0]
    height, width, _ = pictures.read(path, 2 * THUMBNAIL_SIZE).pixels.shape
    across, down = (image_spec["size"] / (side / min(width, height) * image_spec["resize"]) for side in (width, height))
    return [(1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2]


def thumbnail(path: Path, size: int = THUMBNAIL_SIZE) -> Image.Image:
    """A small RGB picture, `size` pixels at most, read as the encoder's are; ValueError where that is not possible."""
    try:
        picture = Image.fromarray(pictures.read(path, 2 * size).pixels)
    except pictures.PictureError as error:
        raise ValueError(f"The picture {path} cannot be read: {error}") from error
    picture.thumbnail((size, size))
    return picture


def data_uri(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture as a JPEG or PNG that can stand in a page."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=80, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _charts_html(history: list[dict] | None) -> str:
    curves = extract_curves(history or [])
    lines = {"raw": curves.train, "train": curves.smooth, "val": curves.val}
    charts = []
    if curves.train or curves.val:
        names = (("train", "training, moving mean"), ("val", "validation"))
        legend = "".join(f'<span class="{name}">{text}</span>' for name, text in names if lines[name])
        charts.append(("Loss per token", legend, report_html.svg(lines, min, "{:.3f}", curves.x_label)))
    if curves.cider:
        charts.append(("Validation CIDEr", "", report_html.svg({"cider": curves.cider}, max, "{:.1f}", curves.x_label)))
    note = curves.note
    if history and not charts:
        note = "The log holds no losses that can be drawn."
    return "".join(f'<figure class="panel"><figcaption><h2>{name}</h2>{legend}</figcaption>{svg}</figure>'
                   for name, legend, svg in charts) + (f'<p class="note">{note}</p>' if note else "")
