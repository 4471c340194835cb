"""Real processes on the demo set: the time to the first step, and one process against two with gloo.

    python benchmarks/processes.py [--repeats 3] [--only start gloo]

start_to_first_step        `python train.py`, from its start to the row of its first step in log.jsonl; the set is
                           prepared, but tokenizer and caches are made by this start
start_to_first_step_again  the same with tokenizer and caches there
gloo_2_processes           captions/s of training the default model with 2 processes of one thread and half the batch
                           each, against 1 process with one thread and the same whole batch
gloo_2_processes_vs_2_threads    the same against 1 process with two threads

All run on the CPU. Rates are the medians of the log's captions_per_s. What two processes lose is told by a third run:
1 process, one thread, half the batch, which is what each of two has to do between two sums of their gradients.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402
from nanocaption.prepare import check  # noqa: E402
from nanocaption.prepare.make import prepare  # noqa: E402

PARTS = ("start", "gloo")
BATCH = 80  # captions, as config.py has it
PATIENCE = 300.0  # seconds until a process counts as stuck
WARM = 5  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs of all sides; the median counts [3]")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    a = parser.parse_args()
    for row in measure(a.only, a.repeats):
        print(f"{row['name']:<32} {table.line(row)}")


def measure(
    parts: Sequence[str] = PARTS, repeats: int = 3, pictures: int | None = None, more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}], as the text above says.

    pictures: of the demo set, None = all; more: further flags of train.py. Raises CannotRun for gloo on one core.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with contextlib.redirect_stdout(sys.stderr):
            rules = check.Rules(workers=os.cpu_count() or 1)
            prepare("demo", place / "data", cutoff=pictures, rules=rules)
        more = [*more, *(["--data-cutoff", str(pictures)] if pictures else [])]
        if "start" in parts:
            rows += starts(place, repeats, more)
        if "gloo" in parts:
            rows += gloo(place, repeats, more)
    return rows


def starts(place: Path, repeats: int, more: Sequence[str]) -> list[dict[str, Any]]:
    """The two rows of a start."""
    times: dict[str, list[float]] = {"start_to_first_step": [], "start_to_first_step_again": []}
    for _ in range(repeats):
        for made in ("tokenizer", "cache"):
            shutil.rmtree(place / "data" / "demo" / made, ignore_errors=True)
        for name in times:
            times[name].append(seconds_to_first_step(place, more))
    notes = ("tokenizer trained and caches filled by it", "tokenizer and caches there")
    return [
        {
            "name": name, "ours": statistics.median(found), "peer": None, "ratio": None, "unit": "s", "range": None,
            "note": f"{note}; {min(found):.1f} to {max(found):.1f} s",
        }
        for (name, found), note in zip(times.items(), notes, strict=True)
    ]  # fmt: skip


def seconds_to_first_step(place: Path, more: Sequence[str]) -> float:
    """From the start of `python train.py` to its first row of a step; the run is then told to stop."""
    runs = place / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    with open(place / "output.txt", "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *_places(place), *more], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while not _steps(runs):
                if process.poll() is not None or time.perf_counter() > start + PATIENCE:
                    raise SystemExit(f"train.py came to no step: {_last_line(place)}")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def gloo(place: Path, repeats: int, more: Sequence[str]) -> list[dict[str, Any]]:
    """The two rows of two processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        raise table.CannotRun("two processes need two cores")
    # name -> (processes, threads of each, captions of each in a step)
    sides = {"two": (2, 1, BATCH // 2), "one": (1, 1, BATCH), "threads": (1, 2, BATCH), "half": (1, 1, BATCH // 2)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    gradient = 0.0
    for _ in range(repeats):
        for name, side in sides.items():
            rate, gradient = train_with(place, *side, more)
            rates[name].append(rate)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    step, half = 1000 * BATCH / middle["two"], 1000 * BATCH // 2 / middle["half"]
    note = (
        f"a step of two takes {step:.1f} ms, half the batch alone on one core {half:.1f} ms: the other "
        f"{step - half:.1f} ms are the sum of {gradient:.1f} MB of gradients and what the cores share"
    )
    rows = []
    for name, peer in (("gloo_2_processes", "one"), ("gloo_2_processes_vs_2_threads", "threads")):
        ratios = [two / other for two, other in zip(rates["two"], rates[peer], strict=True)]
        rows.append({
            "name": name, "ours": middle["two"], "peer": middle[peer], "ratio": statistics.median(ratios),
            "unit": "captions/s", "range": [min(ratios), max(ratios)], "note": note,
        })  # fmt: skip
    return rows


def train_with(place: Path, processes: int, threads: int, batch: int, more: Sequence[str]) -> tuple[float, float]:
    """An epoch over 400 pictures: (median captions/s of its steps, MB of gradients in a step)."""
    runs = place / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [*_places(place), "--data-cutoff", "400", "--num-epochs", "2", "--validation-score-images", "0",
             "--batch-size", str(batch), *more]  # fmt: skip
    with open(place / "output.txt", "wb") as output:
        done = subprocess.run(
            [sys.executable, *(launch if processes > 1 else []), ROOT / "train.py", *words], stdout=output,
            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, timeout=2 * PATIENCE,
            check=False,
        )  # fmt: skip
    rates = [row["captions_per_s"] for row in _steps(runs)[WARM:]]
    if done.returncode or not rates:
        raise SystemExit(f"training with {processes} processes failed: {_last_line(place)}")
    counts = [line for line in (place / "output.txt").read_text().splitlines() if line.startswith("model: ")]
    return statistics.median(rates), 4e-6 * int(counts[0].split()[1].replace(",", ""))


def _places(place: Path) -> list[str]:
    return ["--data-dir", str(place / "data"), "--output-dir", str(place / "runs"), "--device", "cpu"]


def _steps(runs: Path) -> list[dict[str, Any]]:
    """The rows of steps in the one run's log so far."""
    (log,) = [*runs.glob("*/log.jsonl")] or [None]
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log else []
    return [row for row in map(json.loads, lines) if row["type"] == "train"]


def _last_line(place: Path) -> str:
    lines = (place / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


if __name__ == "__main__":
    main()
