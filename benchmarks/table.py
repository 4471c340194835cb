"""The tables of measured times, made from benchmarks/results.json: all in docs/performance.md, six in README.md.

benchmarks/run.py writes them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- performance: made by benchmarks/run.py -->", "<!-- end -->"

VED = "`VisionEncoderDecoderModel`"
TRAINED, FROZEN = (f"training step of 160 captions, ViT-Tiny {what}" for what in ("trained", "frozen"))
PIXELS = "beam 3 from pixels, ViT-Tiny at 224 px, 100 pictures at once"
FEATURES = "beam 3 from a frozen encoder's features, 100 at once"
# name -> (what is measured, what ours is compared with; None where it is compared with nothing). Several rows of one
# text follow each other, and the second says "the same".
SHOWN = {
    "train_step_encoder_trained": (TRAINED, f"{VED}, `Trainer`"),
    "train_step_encoder_trained_divided": (TRAINED, f"{VED}, `Trainer`, in 4 passes of 40"),
    "train_step_encoder_trained_80": ("the same, 80 captions", f"{VED}, `Trainer`"),
    "train_step_encoder_trained_40": ("the same, 40 captions", f"{VED}, `Trainer`"),
    "train_step_frozen_tiny": (FROZEN, f"{VED}, `Trainer`"),
    "train_step_frozen_tiny_divided": (FROZEN, f"{VED}, `Trainer`, in 4 passes of 40"),
    "train_step_frozen_tiny_40": ("the same, 40 captions", f"{VED}, `Trainer`"),
    "train_step_frozen_base": ("training step of 80 captions, ViT-B/16 frozen", f"{VED}, `Trainer`"),
    "train_step_scst": ("self-critical step of 160 drawn captions, one thread", "cross-entropy step of as many"),
    "beam3_captioning": (PIXELS, f"{VED}, `generate`"),
    "beam3_captioning_divided": (PIXELS, f"{VED}, `generate`, 50 at once"),
    "beam3_captioning_50": ("the same, 50 at once", f"{VED}, `generate`"),
    "beam3_captioning_10": ("the same, 10 at once", f"{VED}, `generate`"),
    "beam3_decoder": (FEATURES, f"{VED}, `generate`"),
    "beam3_decoder_divided": (FEATURES, f"{VED}, `generate`, 50 at once"),
    "beam3_captioning_default_sizes": ("beam 3, sizes of `config.py`, 64 px, 100 at once", f"{VED}, `generate`"),
    "scoring_1000x5_cold": ("BLEU, CIDEr, ROUGE-L of 1,000 images", "pycocoevalcap"),
    "scoring_1000x5_prepared": ("the same, references kept", "pycocoevalcap"),
    "rewards": ("CIDEr rewards of 250 captions", "plain dictionaries"),
    "image_pipeline": ("reading pictures, one core", "PIL and the processor of `transformers`"),
    "image_pipeline_cached": ("the same, from the cache", "PIL and the processor of `transformers`"),
    "checkpoint_save": ("wait for a checkpoint, frozen ViT-B/16", "`torch.save`"),
    "scaling_captions_145000_vs_1000": ("training on 145,000 captions", "the same on 1,000"),
    "memory_epochs": ("memory after the last of several epochs", "after the first"),
    "start_caption": ("`nanocaption caption photo.jpg`, a ViT-Tiny with torch, CPU time", "the build before"),
    "start_caption_memory": ("its memory", "the build before"),
    "start_train": ("`python train.py`, cached, to its first step, CPU time", "the build before"),
    "cold_start_onnx": ("`nanocaption caption photo.jpg`, an ONNX export", "the same model with torch"),
    "cold_start_onnx_memory": ("its memory", "the same model with torch"),
    "caption_onnx": ("captions with onnxruntime, ViT-Tiny, one thread", "the same model with torch"),
    "caption_onnx_int8": ("the same, 8 bits", "the same model with torch, 32 bits"),
    "likelihood_pairs": ("log p(caption | image) of all pairs, one thread", f"{VED}, a pass for each pair"),
    "likelihood_pairs_batched": ("the same", f"{VED}, 12 pairs a pass"),
    "likelihood_pairs_features": ("the same, features given", f"{VED}, 12 pairs a pass"),
    "search_10000": ("words to the nearest of 10,000 pictures, one core", None),
    "start_to_first_step": ("start to first step, nothing cached", None),
    "start_to_first_step_again": ("start to first step, cached", None),
    "gloo_2_processes": ("2 processes, a core each", "1 process, 1 core"),
    "gloo_2_processes_vs_2_threads": ("2 processes, a core each", "1 process, 2 threads"),
}

# README.md's six. Where the other side can take a batch in parts, this is the row with the parts that suit it best.
README = (
    "train_step_encoder_trained_divided", "train_step_frozen_tiny_divided", "beam3_captioning_divided",
    "scoring_1000x5_cold", "image_pipeline", "checkpoint_save",
)  # fmt: skip


class CannotRun(Exception):
    """A benchmark needs what this machine lacks: recorded with this reason, no failure."""


def write(page: Path, results: dict[str, dict[str, Any]], names: Sequence[str] = tuple(SHOWN)) -> None:
    """Put the table of `names` between the markers of `page`. Raises SystemExit where it has no markers."""
    before, old, after = split(page.read_text(encoding="utf-8"), page)
    new = table(results, names)
    if new != old:
        temporary = page.with_name(f".{page.name}.{os.getpid()}.tmp")
        temporary.write_text(before + new + after, encoding="utf-8")
        os.replace(temporary, page)


def split(text: str, origin: Any = "the text") -> tuple[str, str, str]:
    """(up to and with the first marker, the table, the rest)"""
    match = re.fullmatch(f"(.*{re.escape(BEGIN)}\n)(.*?)({re.escape(END)}.*)", text, re.DOTALL)
    if match is None:
        raise SystemExit(f"{origin} has not the two lines {BEGIN} and {END}: put them where the table belongs.")
    return match.group(1), match.group(2), match.group(3)


def table(results: dict[str, dict[str, Any]], shown: Sequence[str] = tuple(SHOWN)) -> str:
    """Markdown of the comparisons `shown`: a table for each machine that was measured on, and what was not measured."""
    places: dict[str, list[str]] = {}
    for name in shown:
        if name in results and "not_run" not in results[name]:
            places.setdefault(_place(results[name]), []).append(name)
    text = "\n"
    for place, names in places.items():
        text += "| | ours | compared with | ratio [range] |\n|---|---|---|---|\n"
        above = [None, *(SHOWN[name][0] for name in names)]
        text += "".join(_row(name, results[name], what) for name, what in zip(names, above, strict=False))
        days = sorted(results[name]["date"][:10] for name in names)
        when = " to ".join(dict.fromkeys([days[0], days[-1]]))
        text += f"\n*{place}; {when}. Medians; ratio: how many times better.*\n\n"
    absent = [
        f"{SHOWN[name][0]} ({results[name]['not_run'] if name in results else 'not measured yet'})"
        for name in shown if name not in results or "not_run" in results[name]
    ]  # fmt: skip
    if len(absent) == len(shown) and not results:
        text += "Not measured yet: `make bench`.\n\n"
    elif absent:
        text += f"Not in the table: {'; '.join(absent)}.\n\n"
    return text


def _row(name: str, result: dict[str, Any], above: str | None) -> str:
    """above: what the row above it measures."""
    what, against = SHOWN[name]
    unit = result["unit"]
    peer = f"{number(result['peer'])} {unit}, {against}" if result["peer"] is not None else "-"
    ratio = "-" if result["ratio"] is None else f"{result['ratio']:.2f}x" + _range(result)
    what = "the same" if what == above else what
    return f"| {what} | {number(result['ours'])} {unit} | {peer} | {ratio} |\n"


def _range(result: dict[str, Any]) -> str:
    low, high = result.get("range") or (None, None)
    return "" if low is None else f" [{low:.2f}-{high:.2f}]"


def _place(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']:.0f} GB{gpu}; " + ", ".join(
        f"{name} {version}" for name, version in versions.items()
    )


def line(result: dict[str, Any]) -> str:
    """A result for the terminal."""
    if "not_run" in result:
        return f"not run: {result['not_run']}"
    text = f"ours {number(result['ours'])} {result['unit']}"
    if result["peer"] is not None:
        text += f", peer {number(result['peer'])} {result['unit']}, {result['ratio']:.2f}x{_range(result)}"
    return text + (f"; {result['note']}" if result["note"] else "")


def number(value: float) -> str:
    """Three digits, or all of a larger whole number: 0.0123, 1.23, 12.3, 123, 12,345."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.1 else f"{value:.2g}"
