"""A run's curves: what its log says, ready to draw, and as a PNG."""

import io
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from nanocaption.base.files import log_rows, write_file
from nanocaption.score.charts import Chart, Points, draw_lines

Rows = Sequence[Mapping[str, object]]
MOST_ROWS = 4096  # of a kind that are held while a log is read


_DRAWN = ("type", "step", "epoch", "loss", "reward", "val_loss", "CIDEr")


class Curves(NamedTuple):
    """What a run's log says; x in epochs where the training rows have them, else in steps."""

    x_label: str
    train: Points
    smooth: Points
    val: Points
    cider: Points  # times 100, as scores are shown
    note: str | None  # says how many values cannot be drawn, if any
    reward: Points = []  # of self-critical training, whose loss is none to be drawn: about 0, whatever is learnt


def read_thinned(path: Path | str) -> list[dict[str, object]]:
    """The rows of a log.jsonl that curves are drawn from, `thinned` while they are read. Raises as files.log_rows."""
    return thinned(log_rows(path))


def thinned(rows: Iterable[dict[str, Any]], most: int = MOST_ROWS) -> list[dict[str, object]]:
    """The rows of "train" and "val", as they are while there are no more than `most` of a kind.

    Of more, neighbours become one, so that memory does not grow with the log: training rows their mean, of validations
    those of the lowest loss and of the highest CIDEr are kept. What is not finite then is counted, in a row "lost".
    Rows of "resume" take back what was logged beyond their step.
    """
    kinds = {"train": _Thinned(most, "loss"), "reward": _Thinned(most, "reward"), "val": _Thinned(most, "")}
    for row in rows:
        if not is_finite(row.get("step")):
            continue  # of another program
        if row.get("type") == "resume":
            for kind in kinds.values():
                kind.take_back(row["step"])
        elif row.get("type") in ("train", "val"):
            kinds["reward" if row["type"] == "train" and "reward" in row else row["type"]].add(row)
    lost = sum(kind.lost for kind in kinds.values())
    found = [row for kind in kinds.values() for row in kind.all()]
    return [*found, {"type": "lost", "step": 0, "number": lost}] if lost else found


class _Thinned:
    """The rows of one kind. mean_of: what of them is averaged; "": of validations, of which the best are kept."""

    def __init__(self, most: int, mean_of: str):
        self.most, self.mean_of = most, mean_of
        self.rows: list[dict[str, Any]] = []
        self.latest: list[dict[str, Any]] = []  # fewer than `together`
        self.together = 1
        self.lost = 0

    def add(self, row: dict[str, Any]) -> None:
        self.latest.append({name: row[name] for name in _DRAWN if name in row})
        if len(self.latest) >= self.together:
            self.rows += self._merged(self.latest)
            self.latest = []
        if len(self.rows) > self.most:
            self.together *= 2
            several = 2 if self.mean_of else 4  # of which one is left, or two
            groups = (self.rows[place : place + several] for place in range(0, len(self.rows), several))
            self.rows = [row for group in groups for row in self._merged(group)]

    def all(self) -> list[dict[str, Any]]:
        return [*self.rows, *self._merged(self.latest)]

    def take_back(self, step: float) -> None:
        self.rows, self.latest = ([row for row in part if row["step"] <= step] for part in (self.rows, self.latest))

    def _merged(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.together == 1 or not rows:
            return rows
        name = self.mean_of or "val_loss"
        finite = [row for row in rows if is_finite(row.get(name))]
        self.lost += len(rows) - len(finite)
        if not finite:
            return []
        if self.mean_of:
            return [rows[-1] | {name: sum(row[name] for row in finite) / len(finite)}]
        best = [min(finite, key=operator.itemgetter(name)), max(finite, key=lambda row: row.get("CIDEr", -math.inf))]
        return best[:1] if best[0] is best[1] else sorted(best, key=operator.itemgetter("step"))


def extract_curves(history: Rows) -> Curves:
    """Drawable curves from rows of log.jsonl; types other than "train" and "val" are ignored.

    Rows of "resume" take back what was logged beyond their step; a step logged twice counts as logged last.
    """
    train_rows, val_rows = _rows_that_hold(history)
    in_epochs = bool(train_rows) and all(is_finite(row.get("epoch")) for row in train_rows)
    # A validation row's own epoch is a whole number; its step places it exactly between the training rows.
    per_step = train_rows[-1]["epoch"] / max(train_rows[-1]["step"], 1) if in_epochs else 1
    places = [(row["epoch"] if in_epochs else row["step"], row) for row in train_rows]
    train = [(x, row.get("loss")) for x, row in places if "reward" not in row]
    reward = [(x, row["reward"]) for x, row in places if "reward" in row]
    val = [(row["step"] * per_step, row.get("val_loss")) for row in val_rows]
    cider = [(row["step"] * per_step, row["CIDEr"]) for row in val_rows if "CIDEr" in row]
    kept = [[(x, y) for x, y in points if is_finite(y)] for points in (train, val, cider, reward)]
    lost = len(train + val + cider + reward) - sum(map(len, kept))
    lost += sum(int(str(row["number"])) for row in history if row.get("type") == "lost")
    return Curves("epoch" if in_epochs else "step", kept[0], smooth_curve(kept[0]), kept[1],
                  [(x, 100 * y) for x, y in kept[2]], f"left out, as not finite: {lost}" if lost else None, kept[3])


def _rows_that_hold(history: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows of "train" and those of "val", each in the order of their steps."""
    by_type: dict[str, dict[float, Mapping[str, Any]]] = {"train": {}, "val": {}}
    for row in history:
        if not is_finite(row.get("step")):
            continue  # of another program
        if row.get("type") in ("train", "val"):
            by_type[row["type"]][row["step"]] = row
        elif row.get("type") == "resume":
            by_type = {name: {step: r for step, r in rows.items() if step <= row["step"]}
                       for name, rows in by_type.items()}
    return [[rows[step] for step in sorted(rows)] for rows in by_type.values()]


def is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def curve_charts(curves: Curves) -> list[Chart]:
    """The losses and, if there are any, CIDEr and rewards of drawn captions; empty where there is nothing to draw."""
    charts = []
    if curves.train or curves.val:
        lines = {"training": curves.train, "training, moving mean": curves.smooth, "validation": curves.val}
        legend = {"training, moving mean": "train"} if curves.train else {}
        legend |= {"validation": "val"} if curves.val else {}
        draw = partial(draw_lines, lines=lines, best=min, form="{:.3f}", x_label=curves.x_label)
        charts.append(Chart("Loss per token", legend, draw))
    if curves.cider:
        draw = partial(draw_lines, lines={"CIDEr": curves.cider}, best=max, form="{:.1f}", x_label=curves.x_label)
        charts.append(Chart("Validation CIDEr", {}, draw))
    if curves.reward:
        lines = {"training": curves.reward, "training, moving mean": smooth_curve(curves.reward), "CIDEr": []}
        draw = partial(draw_lines, lines=lines, best=max, form="{:.2f}", x_label=curves.x_label)
        charts.append(Chart("Reward of drawn captions", {}, draw))
    return charts


def plot_curves(history: Rows, path: Path | str, title: str) -> None:
    """Write a PNG: training and validation loss, and beside them, if any, validation CIDEr (x 100) and rewards.

    history: rows of log.jsonl. The file appears complete or not at all. ValueError if no loss can be drawn.
    """
    curves = extract_curves(history)
    if not curves.train and not curves.val:
        raise ValueError(f"no finite loss in {len(history)} log rows, none to plot; let the run log a step")
    charts = curve_charts(curves)
    from matplotlib.figure import Figure

    width = 7 if len(charts) == 1 else 5.5 * len(charts)
    figure = Figure(figsize=(width, 4.2), dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, parse_math=False, x=0.012, ha="left", fontsize=13, weight="bold", color="#222222")
    panels = figure.subplots(1, len(charts), squeeze=False)[0]
    for panel, chart in zip(panels, charts, strict=True):
        chart.draw(panel)
        panel.set_title(chart.title, loc="left", fontsize=10, color="#444444")
    panels[0].legend(loc="upper right", frameon=False, fontsize=9, title=curves.note, title_fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_file(Path(path), drawn.getvalue())
