"""A run's curves: what its log says, drawn as a PNG and for a page."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nanocaption.base.files import write_file

Points = list[tuple[float, float]]


class Curves(NamedTuple):
    """What a run's log says, ready to draw; x in epochs where the training rows have them, else in steps."""

    x_label: str
    train: Points
    smooth: Points
    val: Points
    cider: Points  # times 100, as scores are shown
    note: str | None  # says how many values cannot be drawn, if any


def extract_curves(history: list[dict]) -> Curves:
    """Drawable curves from rows of log.jsonl; types other than "train" and "val" are ignored.

    Rows of "resume" take back what was logged beyond their step; a step logged twice counts as logged last.
    """
    by_type: dict[str, dict[int, dict]] = {"train": {}, "val": {}}
    for row in history:
        if not is_finite(row.get("step")):
            continue  # of another program
        if row.get("type") in ("train", "val"):
            by_type[row["type"]][row["step"]] = row
        elif row.get("type") == "resume":
            by_type = {name: {step: r for step, r in rows.items() if step <= row["step"]}
                       for name, rows in by_type.items()}
    train_rows, val_rows = ([rows[step] for step in sorted(rows)] for rows in by_type.values())
    in_epochs = bool(train_rows) and all(is_finite(row.get("epoch")) for row in train_rows)
    # A validation row's own epoch is a whole number; its step places it exactly between the training rows.
    per_step = train_rows[-1]["epoch"] / max(train_rows[-1]["step"], 1) if in_epochs else 1
    train = [(row["epoch"] if in_epochs else row["step"], row.get("loss")) for row in train_rows]
    val = [(row["step"] * per_step, row.get("val_loss")) for row in val_rows]
    cider = [(row["step"] * per_step, row["CIDEr"]) for row in val_rows if "CIDEr" in row]
    kept = [[(x, y) for x, y in points if is_finite(y)] for points in (train, val, cider)]
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
        panel.set_ylim(*y_range(points if panel is not panels[0] else curves.smooth + curves.val))
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
    write_file(Path(path), buffer.getvalue())


Points = list[tuple[float, float]]


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def svg(lines: dict[str, Points], best: Callable, form: str, x_label: str) -> str:
    """A chart of 380 x 220 units, coloured by the page's CSS; dots and the best value on the last line."""
    left, right, top, bottom = 38, 372, 8, 182
    read = [point for name, line in lines.items() if name != "raw" for point in line]
    low, high = y_range(read)
    x_high = max(x for x, _ in read) or 1

    def place(point: tuple[float, float]) -> tuple[float, float]:
        y = min(max(point[1], low), high)  # a spike of the raw losses ends at the frame
        return left + point[0] / x_high * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    out = []
    for tick in nice_ticks(low, high):
        y = place((0, tick))[1]
        out.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text class="y" x="{left - 8}" y="{y + 4:.1f}">{tick:.6g}</text>')
    out += [f'<text class="x" x="{place((tick, 0))[0]:.1f}" y="{bottom + 17}">{tick:,.6g}</text>'
            for tick in nice_ticks(0, x_high)]
    out.append(f'<text class="x" x="{(left + right) / 2}" y="{bottom + 34}">{x_label}</text>')
    for name, line in lines.items():
        thin = line[::1 + len(line) // 500]  # the chart is a few hundred pixels wide
        coordinates = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in thin)
        out.append(f'<polyline class="{name}" points="{coordinates}"/>')
    for point in line:
        x, y = place(point)
        out.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                   f'<title>{x_label} {point[0]:.4g}: {form.format(point[1])}</title></circle>')
    if line:
        point = best(line, key=lambda p: p[1])
        x, y = place(point)
        y += 15 if best is min else -7  # away from the line
        out.append(f'<text class="x best {name}" x="{min(x, right - 12):.1f}" y="{y:.1f}">'
                   f'{form.format(point[1])}</text>')
    return f'<svg viewBox="0 0 380 220" role="img">{"".join(out)}</svg>'


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers (1, 2 or 5 times a power of ten apart) within [low, high]; low < high."""
    rough = (high - low) / 7
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def y_range(points: Points) -> tuple[float, float]:
    ys = [y for _, y in points]
    margin = 0.1 * (max(ys) - min(ys)) or 0.1 * abs(ys[0]) or 1.0
    return min(ys) - margin, max(ys) + margin
