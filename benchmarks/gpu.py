"""Everything that only a GPU shows, in one command: does it work there, and how fast is it.

    python benchmarks/gpu.py                       all of it, less than 8 minutes on one H100
    python benchmarks/gpu.py --only vit_b_trained  some rows, the others stay
    python benchmarks/gpu.py --smoke               everything tiny, on the CPU; nothing is kept

Makes its own data, needs no network and nothing but what `nanocaption[caption]` installs. Results, with the card's
name, go into benchmarks/results_gpu.json, whose fields are those of benchmarks/run.py. Each row is measured in a
process of its own; one that fails is told, the others still run, and the exit status is 1.

check_*             what benchmarks/gpu_checks.py says of each
vit_b_trained       ViT-B/16 with its decoder trained in bf16: operations per second in whole steps of training, against
                    a large matrix product here and now; the ratio is the share of it (goal 0.45)
vit_b_compiled      the same with COMPILE
frozen_20_epochs    seconds of 20 epochs over 29,000 pictures with 5 captions each, a frozen ViT-B's features cached
                    (they are random numbers), validations and checkpoints included (goal 60)
beam3               images/s of beam 3 from pixels, ViT-B/16, bf16, against transformers' generate at its best of
                    several batches
kernels_*           with vit_b_trained and beam3: torch.profiler's table of the largest kernels
"""

import argparse
import contextlib
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import run, table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results_gpu.json"
SECONDS = 475.0  # of all rows together
CHECK_SECONDS, ROW_SECONDS = 90.0, 150.0
CHECKS = (  # benchmarks/gpu_checks.py has them; their names are needed before torch is imported
    "trains", "resumes", "rewards", "precisions", "workers", "captions", "resident", "out_of_memory",
    "batch_of_all_memory", "compiled", "one_process_group", "spread",
)  # fmt: skip
ROWS = ("vit_b_trained", "frozen_20_epochs", "beam3", "vit_b_compiled")
KERNELS = {"vit_b_trained": "kernels_training", "beam3": "kernels_beam3"}  # a row -> the one that comes with it
CHECKS_AT_ONCE = 4  # each uses a little of the card
NAMES = (*ROWS, *(f"check_{name}" for name in CHECKS))


class Scale(NamedTuple):
    """How much is measured."""

    encoder: dict[str, int]  # of transformers.ViTConfig
    decoder: tuple[str, ...]  # flags
    captions: int  # of a step of a trained encoder
    steps: int  # of it that are measured, after WARM others
    pictures: int  # with a frozen encoder
    epochs: int
    frozen: tuple[str, ...]  # flags of its training
    beams: tuple[int, ...]  # pictures at once, the first is ours


BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "image_size": 224, "patch_size": 16}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": 32, "patch_size": 8}  # fmt: skip
WIDE = ("--decoder-embed-dim", "512", "--decoder-heads", "8", "--decoder-layers", "4", "--decoder-ff-dim", "2048",
        "--decoder-dropout", "0.1", "--vocab-size", "8000", "--max-seq-len", "40")  # fmt: skip
NARROW = ("--decoder-embed-dim", "32", "--decoder-heads", "2", "--decoder-layers", "1", "--decoder-ff-dim", "64",
          "--vocab-size", "320", "--max-seq-len", "24")  # fmt: skip
FULL = Scale(BASE, WIDE, 1280, 14, 29_000, 20, ("--batch-size", "auto"), (100, 100, 300))
SMOKE = Scale(TINY, NARROW, 20, 3, 300, 2, ("--batch-size", "100"), (6, 6, 3))
WARM, PROFILED = 3, 3  # steps: not measured, and under the profiler
VALIDATION = 20  # pictures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--smoke", action="store_true", help="everything tiny, on the CPU, to see that it runs")
    parser.add_argument("--results", type=Path, help=f"the file to write [{RESULTS.relative_to(ROOT)}; --smoke: none]")
    a = parser.parse_args(argv)
    if not a.smoke:
        require_a_gpu()
    with tempfile.TemporaryDirectory() as folder:
        path = a.results or (Path(folder) / "results.json" if a.smoke else RESULTS)
        failed = measure_all(a.only or NAMES, Path(folder), path, a.smoke)
    print(f"results: {path}" if a.results or not a.smoke else "The smoke test keeps no results.")
    if failed:
        raise SystemExit(f"Failed, see above: {', '.join(failed)}")


def require_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA device: --smoke tries everything, tiny, on the CPU.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, python {sys.version.split()[0]}", flush=True)


def measure_all(names: Sequence[str], folder: Path, path: Path, smoke: bool) -> list[str]:
    """Measure the rows `names` and put them into the file `path`; the names of those that failed.

    Rates one after the other, then the checks, several at once on a GPU. A row that this machine cannot measure has
    failed as well, unless the smoke test says that it needs a GPU.
    """
    from benchmarks import gpu_checks

    end = time.monotonic() + (10 * SECONDS if smoke else SECONDS)
    gpu_checks.make_data(folder / "data")

    def one(name: str) -> dict[str, Any]:
        left = end - time.monotonic()
        if left <= 0:
            return {name: {"not_run": "no time was left for it"}}
        job = job_of(name, folder, smoke, left)
        own = folder / f"{name}.json"
        run.run([job], own)
        return run.read(own)

    found: dict[str, Any] = {}
    checks = [name for name in names if name.startswith("check_")]
    with ThreadPoolExecutor(1 if smoke else CHECKS_AT_ONCE) as threads:
        for rows in itertools.chain(map(one, [name for name in names if name not in checks]), threads.map(one, checks)):
            found |= rows
            run.write(path, {**run.read(path), **found})
    failed = []
    for name, row in found.items():
        reason = row.get("not_run")
        if reason == gpu_checks.NEEDS_CUDA and smoke:
            print(f"    {name}: skipped, {reason}", flush=True)
        elif reason is not None:
            print(f"    {name}: FAILED, {reason}", flush=True)
            failed.append(name)
    return failed


def job_of(name: str, folder: Path, smoke: bool, left: float) -> run.Job:
    """left: seconds until the end of all."""
    same = {"place": str(folder), "device": "cpu" if smoke else "cuda"}
    if name.startswith("check_"):
        most = ROW_SECONDS if name == "check_compiled" else CHECK_SECONDS
        arguments = {**same, "name": name.removeprefix("check_"), "data": str(folder / "data")}
        return run.Job("benchmarks.gpu_checks", (name,), arguments, left if smoke else min(most, left))
    names = (name, KERNELS[name]) if name in KERNELS else (name,)
    arguments = {**same, "name": name, "smoke": smoke}
    return run.Job("benchmarks.gpu", names, arguments, left if smoke else min(ROW_SECONDS, left))


def measure(name: str, place: str, device: str, smoke: bool) -> list[dict[str, Any]]:
    """The row `name`, and the one of KERNELS that comes with it, for benchmarks/run.py."""
    from benchmarks import gpu_checks

    scale = SMOKE if smoke else FULL
    folder = Path(tempfile.mkdtemp(dir=place))
    if name == "vit_b_compiled" and device == "cpu":
        raise table.CannotRun(gpu_checks.NEEDS_CUDA)
    with open(folder / "printed", "w", encoding="utf-8") as printed:
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                found = MEASURES[name](scale, folder, device)
        except BaseException:
            sys.stderr.write("".join(gpu_checks.last_lines(folder / "printed")))
            raise
    rows = []
    for own, row in zip((name, KERNELS.get(name)), found, strict=False):
        empty = {"ours": None, "peer": None, "ratio": None, "unit": "", "range": None, "note": ""}
        rows.append({**empty, **row, "name": own})
        for kernel, milliseconds, share in row.get("kernels", ()):
            print(f"    {milliseconds:9.2f} ms {share:6.1%}  {kernel}")
    return rows


# --- A set, and a run on it ---


def make_set(place: Path, pictures: int, seed: int = 0) -> list[str]:
    """A prepared set "many" in `place`: links to a few small pictures, 5 made-up captions each; its flags."""
    from PIL import Image

    from nanocaption.prepare.store import bring, write_set

    rng, folder = random.Random(seed), place / "many"
    (folder / "images").mkdir(parents=True)
    samples = []
    for number in range(200):  # a file takes only so many links
        samples.append(place / f"{number}.png")
        Image.new("RGB", (64, 48), (number, 128, 255 - number)).save(samples[-1])
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 8))) for _ in range(2000)]
    often = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))  # as words of a language
    records = []
    for number, sample in zip(range(pictures + VALIDATION), itertools.cycle(samples), strict=False):
        bring(sample, folder / "images" / f"{number:06d}.png")
        lengths = [max(4, round(rng.gauss(10.5, 3))) for _ in range(5)]
        captions = [" ".join(rng.choices(words, cum_weights=often, k=length)) + "." for length in lengths]
        records.append({"file_name": f"{number:06d}.png", "captions": captions,
                        "split": "train" if number < pictures else "val"})  # fmt: skip
    write_set(folder, records, [])
    return ["--dataset", "many", "--data-dir", str(place), "--output-dir", str(place / "runs"), "--run-name", "run",
            "--validation-score-images", "0", "--warmup-steps", "10"]  # fmt: skip


def started(flags: Sequence[str], device: str) -> Any:
    """(the run that train.main would begin with these flags, its first Progress); its log is a file."""
    import torch

    from nanocaption.base.settings import load_settings
    from nanocaption.runs import signals
    from nanocaption.runs.folder import check_writable, new_folder
    from nanocaption.runs.resume import Start
    from nanocaption.train.setup import prepare

    settings = load_settings(flags)
    folder = new_folder(settings)
    check_writable(folder)
    return prepare(Start(settings), folder, torch.device("cuda:0" if device == "cuda" else device),
                   signals.Requests())  # fmt: skip


def trained_encoder(scale: Scale, place: Path, device: str, *more: str) -> Any:
    """A run of a trained encoder, with one epoch of WARM + scale.steps + PROFILED steps."""
    from benchmarks import gpu_checks

    encoder = gpu_checks.tower(place / "vit", **scale.encoder)
    set_flags = make_set(place, (WARM + scale.steps + PROFILED) * scale.captions // 5)
    run, _ = started([*set_flags, *scale.decoder, "--encoder-model-name", str(encoder), "--batch-size",
                      str(scale.captions), "--num-epochs", "1", "--device", device, "--precision", "bf16", *more],
                     device)  # fmt: skip
    return run


# --- What is measured ---


def vit_b_trained(scale: Scale, place: Path, device: str, *more: str) -> list[dict[str, Any]]:
    """Whole steps of train.train_one_epoch, reading, log rows and all; then PROFILED others under the profiler."""
    import torch

    from nanocaption.train import profile

    run = trained_encoder(scale, place, device, *more)
    steps = steps_timed(run)
    seconds = list(itertools.islice(steps, WARM + scale.steps))[WARM:]
    largest = kernels(lambda: list(steps), device, f"{PROFILED} training steps of the ViT-B/16")
    flops = operations(run)
    rate = profile.matmul_rate(run.device, torch.bfloat16 if device == "cuda" else torch.float32)
    every = [flops / own for own in seconds]
    middle = statistics.median(every)
    if not 0 < middle / rate < 1.2:
        raise SystemExit(f"{middle / 1e12:.1f} TFLOP/s beside {rate / 1e12:.1f} of a plain product: a wrong count")
    pictures = scale.captions / 5 / statistics.median(seconds)
    return [{
        "ours": middle / 1e12, "peer": rate / 1e12, "ratio": middle / rate, "unit": "TFLOP/s",
        "range": [min(every) / rate, max(every) / rate],
        "note": f"{scale.captions} captions of {scale.captions // 5} pictures a step, {flops / 1e12:.3g} TFLOP; "
                f"{1e3 * statistics.median(seconds):.1f} ms, {pictures:,.0f} pictures/s",
    }, largest]  # fmt: skip


def steps_timed(run: Any) -> Iterator[float]:
    """Seconds from the end of a step to the end of the next, over the first epoch."""
    from tqdm import tqdm

    import train
    from nanocaption.train.setup import Progress

    with tqdm(disable=True) as bar, run.log:
        last = time.perf_counter()
        for _ in train.train_one_epoch(run, Progress(), bar):  # each step waits for its loss, and so for the device
            now = time.perf_counter()
            yield now - last
            last = now


def operations(run: Any) -> int:
    """Of one training step, as torch counts products: without what COMPILE or the optimizer does besides."""
    from nanocaption.train import profile
    from nanocaption.train.steps import steps_of_epoch

    for part in (run.model.encoder, run.model.decoder):
        part._compiled_call_impl = None  # a compiled part shows no products
    groups = steps_of_epoch(run.settings, run.train_set, epoch=0)[0]
    pictures = run.train_set.at_epoch(0)
    loader = iter(profile.make_loader(pictures, groups, 0, run.device.type == "cuda"))
    with profile.flop_counter() as counter, open(os.devnull, "ab", buffering=0) as nowhere:
        profile.step(replaced(run, log=nowhere), loader, groups, pictures.resident, 0)
    return counter.get_total_flops()


def replaced(run: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(run, **changes)


def vit_b_compiled(scale: Scale, place: Path, device: str) -> list[dict[str, Any]]:
    return vit_b_trained(scale, place, device, "--compile")[:1]


def frozen_20_epochs(scale: Scale, place: Path, device: str) -> list[dict[str, Any]]:
    """train.fit, from the first step to the end of the last validation, on a cache that is filled with random numbers
    in a moment."""
    import train
    from benchmarks import gpu_checks
    from nanocaption.base.files import read_log
    from nanocaption.data import inputs

    encoder = gpu_checks.tower(place / "vit", **scale.encoder)
    side = scale.encoder["image_size"] // scale.encoder["patch_size"]
    shape = (side * side + 1, scale.encoder["hidden_size"])
    kept = inputs._kept

    def filled(settings: Any, folder: Path, name: str, key: str, source: Any) -> Any:
        if name.startswith("features"):
            fill_cache(folder / "cache" / f"{name}_{key[:16]}", source, shape)
        return kept(settings, folder, name, key, source)

    flags = [*make_set(place, scale.pictures), *scale.decoder, *scale.frozen, "--encoder-model-name", str(encoder),
             "--freeze-encoder", "--num-epochs", str(scale.epochs), "--device", device]  # fmt: skip
    begin = time.perf_counter()
    with mock.patch.object(inputs, "_kept", filled):
        run, progress = started(flags, device)
    ready = time.perf_counter()
    with run.log:
        train.fit(run, progress)
    seconds = time.perf_counter() - ready
    rows = [row for row in read_log(run.folder / "log.jsonl") if row["type"] == "train"]
    rate = statistics.median(row["captions_per_s"] for row in rows)
    waited = sum(row["input_s"] for row in rows)
    if len({row["epoch"] for row in rows}) < scale.epochs or not rows[-1]["loss"] < rows[0]["loss"]:
        raise SystemExit(f"{len(rows)} steps, loss {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f}: not trained")
    return [{
        "ours": seconds, "unit": "s",
        "note": f"{scale.epochs} epochs over {scale.pictures:,} pictures, {len(rows)} steps of "
                f"{run.settings.BATCH_SIZE} captions at {rate:,.0f} captions/s, input waited for {waited:.1f} s, "
                f"validations and checkpoints included; the start before it took {ready - begin:.1f} s; features "
                f"{'on the device' if run.train_set.resident is not None else 'from the cache'}",
    }]  # fmt: skip


def fill_cache(folder: Path, source: Any, shape: tuple[int, int]) -> None:
    """A whole cache of random features in the format of data/caches.py; full chunks are links to one of four."""
    import io

    import numpy as np

    from nanocaption.base.files import link_or_copy, write_file
    from nanocaption.data import caches

    rng, made = np.random.default_rng(0), {}
    for number, start in enumerate(range(0, source.length, source.chunk)):
        rows = min(source.chunk, source.length - start)
        kind = (rows, number % 4)
        if kind not in made:
            file = io.BytesIO()
            np.save(file, rng.standard_normal((rows, *shape), dtype=np.float32).astype(np.float16))
            made[kind] = folder / f"{number:05}-{caches._digest(file)}.npy"
            write_file(made[kind], file.getvalue())
        else:
            link_or_copy(made[kind], folder / f"{number:05}-{made[kind].stem[6:]}.npy")
    (folder / "whole").touch()


def beam3(scale: Scale, place: Path, device: str) -> list[dict[str, Any]]:
    """Ours at the first of scale.beams, the peer at the best of the others; they alternate."""
    from benchmarks.decoding import timed

    own, _ = beam_sides(scale, scale.beams[0], device)
    peers = {images: beam_sides(scale, images, device)[1] for images in scale.beams[1:]}
    rates: list[float] = []
    theirs: dict[int, list[float]] = {images: [] for images in peers}
    for turn in range(4):
        found = scale.beams[0] / timed(own), {images: images / timed(call) for images, call in peers.items()}
        if turn:  # the first one warms up
            rates.append(found[0])
            for images, rate in found[1].items():
                theirs[images].append(rate)
    best = max(theirs, key=lambda images: statistics.median(theirs[images]))
    ratios = [ours / peer for ours, peer in zip(rates, theirs[best], strict=True)]
    largest = kernels(own, device, f"beam 3 of {scale.beams[0]} pictures from pixels, ViT-B/16")
    return [{
        "ours": statistics.median(rates), "peer": statistics.median(theirs[best]), "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)], "unit": "images/s",
        "note": f"beam 3 from pixels, {scale.beams[0]} at once, the peer's best batch {best}; weights of both "
                f"{'bfloat16' if device == 'cuda' else 'float32'}, captions of equal lengths",
    }, largest]  # fmt: skip


def beam_sides(scale: Scale, images: int, device: str) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch

    from benchmarks import decoding

    kind = decoding.Kind("", images, scale.decoder, scale.encoder)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return decoding.make_sides(kind, images, 3, device, dtype)["beam3_captioning"]


def kernels(work: Callable[[], object], device: str, what: str, most: int = 14) -> dict[str, Any]:
    """What `work` does on the device: its time there, and the kernels that take most of it, with their shares."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        start = time.perf_counter()
        work()
        wall = time.perf_counter() - start
    time_of = (lambda e: e.self_device_time_total) if on_gpu else (lambda e: e.self_cpu_time_total)
    events = [event for event in found.key_averages() if time_of(event) > 0]
    if on_gpu:  # beside the kernels stand the ranges that somebody named, which hold kernels
        events = [e for e in events if "CUDA" in str(e.device_type) and not getattr(e, "is_user_annotation", False)]
    events.sort(key=time_of, reverse=True)
    whole = sum(map(time_of, events)) / 1e6
    if not events or whole <= 0:
        raise SystemExit("the profiler saw no kernel")
    return {
        "ours": whole, "unit": "s", "note": f"{what}: {whole / wall:.0%} of {1e3 * wall:.0f} ms in kernels",
        "kernels": [[event.key[:90], time_of(event) / 1e3, time_of(event) / 1e6 / whole] for event in events[:most]],
    }  # fmt: skip


MEASURES: dict[str, Callable[[Scale, Path, str], list[dict[str, Any]]]] = {
    "vit_b_trained": vit_b_trained, "frozen_20_epochs": frozen_20_epochs, "beam3": beam3,
    "vit_b_compiled": vit_b_compiled,
}  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
