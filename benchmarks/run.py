"""Every benchmark, one after the other, each in a process of its own, into benchmarks/results.json.

    python benchmarks/run.py                                  all of them, and then the tables of the pages
    python benchmarks/run.py --only train_step_frozen_tiny rewards    these anew, the others stay
    python benchmarks/run.py --table                          measure nothing, only write the tables

results.json is a map from a comparison's name to
    ours, peer, ratio  as measured; ratio is how many times ours is better; peer and ratio are null where there is none
    unit, range        of ours and peer; the smallest and the largest ratio of the repeats
    note               what a reader must know besides
    seconds, date      what the measurement took, and when it ended (UTC)
    machine, versions  where it was measured, and with what; load is what the machine did besides, before it began
or to not_run, the reason, and date. The file is written anew after each benchmark: a run that is stopped keeps what is
done.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results.json"


class Job(NamedTuple):
    """One process: measure(**arguments) of a module, which gives rows of these names, perhaps others as well."""

    module: str
    names: tuple[str, ...]
    arguments: dict[str, Any] = {}  # read only
    seconds: float | None = None  # after which it has failed; None: as long as it takes


JOBS = (
    *(Job("benchmarks.training", (name,), {"names": [name]}) for name in (
        "train_step_encoder_trained", "train_step_encoder_trained_divided", "train_step_encoder_trained_80",
        "train_step_encoder_trained_40", "train_step_frozen_tiny", "train_step_frozen_tiny_divided",
        "train_step_frozen_tiny_40", "train_step_frozen_base",
    )),
    Job("benchmarks.scst", ("train_step_scst",)),
    Job("benchmarks.decoding", tuple(
        f"{row}{kind}" for kind in ("", "_divided", "_50", "_10", "_default_sizes")
        for row in ("beam3_captioning", "beam3_decoder", "encoder")
    )),
    Job("benchmarks.scoring", (
        "scoring_1000x5_cold", "scoring_1000x5_prepared", "scoring_5000x5_cold", "scoring_5000x5_prepared",
    )),
    Job("benchmarks.rewards", ("rewards",)),
    Job("benchmarks.image_pipeline", ("image_pipeline", "image_pipeline_cached")),
    Job("benchmarks.checkpoints", (
        "checkpoint_save", "checkpoint_stall_trained_base",
        *(f"checkpoint_{what}_{kind}_base" for kind in ("frozen", "trained")
          for what in ("save", "save_fsync", "load", "size")),
    )),
    Job("benchmarks.scaling", (
        "scaling_captions_10000_vs_1000", "scaling_captions_145000_vs_1000", "memory_epochs", "startup_145000",
    )),
    Job("benchmarks.starts", ("start_caption", "start_caption_memory", "start_train")),
    Job("benchmarks.light", ("cold_start_onnx", "cold_start_onnx_memory", "caption_onnx", "caption_onnx_int8")),
    Job("benchmarks.retrieval", (
        "likelihood_pairs", "likelihood_pairs_batched", "likelihood_pairs_features", "search_10000",
    )),
    Job("benchmarks.processes", ("start_to_first_step", "start_to_first_step_again"), {"parts": ["start"]}),
    Job("benchmarks.processes", ("gloo_2_processes", "gloo_2_processes_vs_2_threads"), {"parts": ["gloo"]}),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    names = [name for job in JOBS for name in job.names]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"some of: {', '.join(names)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write [benchmarks/results.json]")
    parser.add_argument("--table", action="store_true", help="measure nothing: only write the tables")
    a = parser.parse_args(argv)
    failed = []
    if not a.table:
        jobs = [job for job in JOBS if a.only is None or set(a.only) & set(job.names)]
        try:
            failed = run(jobs, a.results)
        except KeyboardInterrupt:
            raise SystemExit(f"\nStopped. What was done is in {a.results}.") from None
    if a.results.resolve() == RESULTS:  # a file elsewhere is nobody's table
        table.write(ROOT / "docs" / "performance.md", read(RESULTS))
        table.write(ROOT / "README.md", read(RESULTS), table.README)
        print("docs/performance.md, README.md: the tables are those of benchmarks/results.json")
    if failed:
        raise SystemExit(f"Failed, see above: {', '.join(failed)}")


def run(jobs: Sequence[Job], path: Path) -> list[str]:
    """Measure `jobs` one after the other and put each into the results at `path`; what is there of others stays.

    Returns the names of those that failed. What only lacks something this machine has not is no failure: not_run.
    """
    results, failed = read(path), []  # a file that cannot be read is told before any work
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {', '.join(job.names)}", flush=True)
        load, start = os.getloadavg()[0], time.perf_counter()
        found = in_a_process(job)
        same = {
            "seconds": round(time.perf_counter() - start, 1),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            **{key: found[key] for key in ("machine", "versions") if key in found},
        }
        if "machine" in same:
            same["machine"]["load"] = round(load, 2)
        rows = {row.pop("name"): row for row in found["rows"]}
        reason = found.get("reason") or "the benchmark gave no row of this name"
        for name in (*job.names, *(rows.keys() - set(job.names))):
            if name in rows:
                results[name] = {"note": "", **rows[name], **same}
            else:
                results[name] = {"not_run": reason, "date": same["date"]}
                failed += [] if found.get("absent") else [name]
            print(f"    {name}: {table.line(results[name])}", flush=True)
        write(path, results)
    return failed


def in_a_process(job: Job) -> dict[str, Any]:
    """{"rows", "machine", "versions"} of `job`; {"rows": [], "reason", "absent"} where it did not come to an end."""
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place) / "answer.json"
        process = multiprocessing.get_context("spawn").Process(target=answer_with, args=(job, answer))
        process.start()
        process.join(job.seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return {"rows": [], "reason": f"it took longer than {job.seconds:.0f} s", "absent": False}
        if answer.is_file():
            return json.loads(answer.read_text(encoding="utf-8"))
        return {"rows": [], "reason": f"its process ended with status {process.exitcode}", "absent": False}


def answer_with(job: Job, answer: Path) -> None:
    """In the process of a job: measure, and write what in_a_process returns."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    try:
        rows = importlib.import_module(job.module).measure(**job.arguments)
        found: dict[str, Any] = {"rows": rows, "machine": machine(), "versions": versions()}
    except table.CannotRun as error:
        found = {"rows": [], "reason": str(error), "absent": True}
    except ImportError as error:  # a peer that is not installed
        found = {"rows": [], "reason": " ".join(str(error).split())[:300], "absent": True}
    except (Exception, SystemExit) as error:
        import traceback

        traceback.print_exc()
        found = {"rows": [], "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300], "absent": False}
    temporary = answer.with_suffix(".tmp")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    os.replace(temporary, answer)


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, torch's threads, memory, GPU (None without one)."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(), "cores": cores, "threads": torch.get_num_threads(),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def versions() -> dict[str, str]:
    from importlib import metadata

    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("torch", "transformers", "numpy")
    }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The results so far; none where there is no file. Raises SystemExit where it is damaged."""
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON ({error}): move it away to measure everything anew.") from None
    if not isinstance(results, dict):
        raise SystemExit(f"{path} is no map of results: move it away to measure everything anew.")
    return results


def write(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """All results, in the order of JOBS, whole or not at all."""
    order = {name: number for number, name in enumerate(name for job in JOBS for name in job.names)}
    ordered = dict(sorted(results.items(), key=lambda item: order.get(item[0], len(order))))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
