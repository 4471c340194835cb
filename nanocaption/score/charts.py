"""Line charts and histograms by matplotlib, as panels of a PNG and as <svg> within a page.

matplotlib takes about a second to import, so it is imported where something is drawn.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
# By their names in report_template.html, where each has a second value for the dark.
COLORS = {"train": "#2f6db3", "val": "#c8502f", "good": "#2e8560", "soft": "#6a675f", "line": "#e4e1da"}
LINES: dict[str, dict[str, Any]] = {
    "training": {"color": COLORS["train"], "alpha": 0.28, "linewidth": 0.8},
    "training, moving mean": {"color": COLORS["train"], "linewidth": 1.6},
    "validation": {"color": COLORS["val"], "linewidth": 1.6},
    "CIDEr": {"color": COLORS["good"], "linewidth": 1.6},
}
MOST_POINTS = 1000  # of a line: more than a chart has pixels


class Chart(NamedTuple):
    """A title, what its colours mean by their names in COLORS, and what puts the chart on a panel."""

    title: str
    legend: dict[str, str]
    draw: Callable[["Axes"], None]


def draw_lines(panel: "Axes", lines: dict[str, Points], best: Callable, form: str, x_label: str) -> None:
    """Lines by the names of LINES; the last has dots and says its best value (min or max), written as `form` does.

    Spikes of single steps end at the frame.
    """
    ys = [y for name, line in lines.items() if name != "training" for _, y in line]
    margin = 0.1 * (max(ys) - min(ys)) or 0.1 * abs(ys[0]) or 1.0
    low, high = min(ys) - margin, max(ys) + margin
    for name, line in lines.items():
        shown = [(x, min(max(y, low), high)) for x, y in line[:: 1 + len(line) // MOST_POINTS]]
        if shown:
            panel.plot(*zip(*shown, strict=True), label=name, clip_on=False, **LINES[name])
    color = LINES[name]["color"]
    for x, y in line:
        title = f"title:{x_label} {x:.4g}: {form.format(y)}"
        panel.plot([x], [y], "o", color=color, markersize=4, clip_on=False, gid=title)
    if line:
        point = best(line, key=lambda p: p[1])
        away = (0, -14) if best is min else (0, 7)
        panel.annotate(form.format(point[1]), point, xytext=away, textcoords="offset points", ha="center", fontsize=9,
                       weight="bold", color=color)  # fmt: skip
    panel.set_ylim(low, high)
    panel.set_xlim(left=0)
    _set_frame(panel, x_label)


def draw_histogram(panel: "Axes", samples: Sequence[Sequence[float]], form: str, x_label: str, whole: bool) -> None:
    """How many of each sample lie in which bin, in percent: the first as bars, a second one as an outline.

    form: what stands for a bar, of the number it begins at. whole: the values are whole numbers, which stand below the
    middle of their bar where each has one.
    """
    highest = max(map(max, samples))
    width = next((size for size in (1, 2, 5, 10, 20, 25, 50, 100) if highest / size <= 30), math.ceil(highest / 30))
    shift = 0.5 if whole and width == 1 else 0
    edges = [n * width - shift for n in range(int(highest // width) + 2)]
    shares, _, bars = panel.hist(samples[0], edges, weights=[100 / len(samples[0])] * len(samples[0]), rwidth=0.92,
                                 color=COLORS["train"], alpha=0.75, clip_on=False)  # fmt: skip
    for n, (bar, share) in enumerate(zip(bars, shares, strict=True)):
        bar.set_gid(f"title:{form.format(n * width)}: {share:.1f} %")
    for sample in samples[1:]:
        panel.hist(sample, edges, weights=[100 / len(sample)] * len(sample), histtype="step", color=COLORS["val"],
                   linewidth=1.6, clip_on=False)  # fmt: skip
    panel.set_xlim(edges[0], edges[-1])
    panel.locator_params(axis="x", integer=True)
    panel.yaxis.set_major_formatter("{x:g} %")
    _set_frame(panel, x_label)


def _set_frame(panel: "Axes", x_label: str) -> None:
    panel.set_xlabel(x_label, fontsize=9, color=COLORS["soft"])
    panel.tick_params(labelsize=9, colors=COLORS["soft"], length=0)
    panel.grid(axis="y", color=COLORS["line"], linewidth=0.8, clip_on=False)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(COLORS["line"])


def svg(draw: Callable[["Axes"], None]) -> str:
    """What `draw` puts on a panel as an <svg> of 380 x 220 units, for a page with CSS variables named as COLORS."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(380 / 72, 220 / 72), layout="constrained")
    draw(figure.subplots())
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
