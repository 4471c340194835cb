"""Line charts and histograms by matplotlib, as an <svg> within a page and as panels of a PNG.

matplotlib takes about a second to import, so it is imported where something is drawn.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
# By their names in report_template.html, where each has a second value for the dark.
COLORS = {"train": "#2f6db3", "val": "#c8502f", "good": "#2e8560", "soft": "#6a675f", "line": "#e4e1da"}
STYLES: dict[str, dict[str, Any]] = {
    "each step": {"color": COLORS["train"], "alpha": 0.28, "linewidth": 0.8},
    "training, moving mean": {"color": COLORS["train"], "linewidth": 1.6},
    "validation": {"color": COLORS["val"], "linewidth": 1.6},
    "CIDEr": {"color": COLORS["good"], "linewidth": 1.6},
}
_MOST_POINTS = 1000  # of a line: more than a chart has pixels


class LineChart(NamedTuple):
    """One or several lines; the last one has dots and says its best value."""

    title: str
    series: dict[str, Points]  # by the names of STYLES; at least one has points
    best: Callable[..., tuple[float, float]]  # min or max
    form: str  # of a value, e.g. "{:.3f}"
    x_label: str


class Histogram(NamedTuple):
    """Bars, and outlines over them."""

    title: str
    series: dict[str, list[float]]  # percent by bin, from 0 on; the first are the bars
    width: float  # of a bin
    form: str  # of what a bin stands for, e.g. "{:.0f} words"
    x_label: str


def draw_lines(panel: "Axes", chart: LineChart) -> None:
    """Put a chart on a panel; a spike of the single steps ends at the frame."""
    low, high = y_range([point for name, line in chart.series.items() if name != "each step" for point in line])
    for name, line in chart.series.items():
        shown = [(x, min(max(y, low), high)) for x, y in line[:: 1 + len(line) // _MOST_POINTS]]
        if shown:
            panel.plot(*zip(*shown, strict=True), label=name, clip_on=False, **STYLES[name])
    color = STYLES[name]["color"]
    for x, y in line:
        title = f"title:{chart.x_label} {x:.4g}: {chart.form.format(y)}"
        panel.plot([x], [y], "o", color=color, markersize=4, clip_on=False, gid=title)
    if line:
        point = chart.best(line, key=lambda p: p[1])
        away = (0, -14) if chart.best is min else (0, 7)
        panel.annotate(chart.form.format(point[1]), point, xytext=away, textcoords="offset points", ha="center",
                       fontsize=9, weight="bold", color=color)  # fmt: skip
    panel.set_ylim(low, high)
    panel.set_xlim(left=0)
    _set_frame(panel, chart.x_label)


def draw_bars(panel: "Axes", chart: Histogram) -> None:
    """Put a chart on a panel: whole numbers stand below the middle of their bar, ranges begin at its left edge."""
    (bars, *outlines), width = chart.series.values(), chart.width
    shift = 0.5 if width == 1 else 0
    edges = [n * width - shift for n in range(len(bars) + 1)]
    for n, (edge, value) in enumerate(zip(edges, bars, strict=False)):
        if value:
            title = f"title:{chart.form.format(n * width)}: {value:.1f} %"
            panel.bar(edge + 0.04 * width, value, 0.92 * width, align="edge", color=COLORS["train"], alpha=0.75,
                      clip_on=False)[0].set_gid(title)  # fmt: skip
    for values in outlines:
        panel.stairs(values, edges, color=COLORS["val"], linewidth=1.6, clip_on=False)
    panel.set_xlim(edges[0], edges[-1])
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.yaxis.set_major_formatter("{x:g} %")
    _set_frame(panel, chart.x_label)


def _set_frame(panel: "Axes", x_label: str) -> None:
    panel.set_xlabel(x_label, fontsize=9, color=COLORS["soft"])
    panel.tick_params(labelsize=9, colors=COLORS["soft"], length=0)
    panel.grid(axis="y", color=COLORS["line"], linewidth=0.8, clip_on=False)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(COLORS["line"])


def svg(chart: LineChart | Histogram) -> str:
    """The chart as an <svg> of 380 x 220 units for a page that has CSS variables of the names of COLORS."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(380 / 72, 220 / 72), layout="constrained")
    draw_lines(figure.subplots(), chart) if isinstance(chart, LineChart) else draw_bars(figure.subplots(), chart)
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nanocaption"}):  # equal for equal charts
        figure.savefig(drawn, format="svg", transparent=True)
    text = re.sub(r"^.*?<svg[^>]*>", '<svg viewBox="0 0 380 220" role="img">', drawn.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="title:([^"]*)"', r"<g><title>\1</title", text)  # what a pointer on it shows
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # every chart has the same, and in one page each may stand once
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", text)


def y_range(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The frame of a chart: all values, and a tenth of their range above and below."""
    ys = [y for _, y in points]
    margin = 0.1 * (max(ys) - min(ys)) or 0.1 * abs(ys[0]) or 1.0
    return min(ys) - margin, max(ys) + margin
