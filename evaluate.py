"""Caption a split with a trained model and score the captions.

    python evaluate.py                                        the newest run's best checkpoint, test split
    python evaluate.py --checkpoint runs/demo-001/last.safetensors --split val
    python evaluate.py --checkpoint my_captioner              a folder that `nanocaption export` wrote
    python evaluate.py --checkpoint A.safetensors,B.safetensors   an ensemble: their probabilities are averaged
    python evaluate.py --beam-size 1 --device cpu             any setting of config.py is a flag here, too
    python evaluate.py --sample --top-p 0.9                   random captions; --beam-groups for diverse beam search
    python evaluate.py --predictions anyones.json             score captions of any model, without one
    python evaluate.py --compare A B                          is B better? A, B: checkpoints, results folders or files
    torchrun --nproc-per-node 2 evaluate.py                   several processes share the pictures

Writes predictions.json (COCO results layout), references.json (COCO annotations layout), scores.json and report.html
into a folder beside the checkpoint and prints the scores, each with its 95 % bootstrap interval. What was captioned is
kept there until all is done: an evaluation that was stopped goes on where it was.
"""

import argparse
import sys

from nanocaption.base import cli
from nanocaption.base.settings import Settings, load_settings, take_settings
from nanocaption.commands import decoding_flags
from nanocaption.model.options import Options

_PARSER = argparse.ArgumentParser(
    prog="evaluate.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="All other flags are settings of config.py: python train.py --help",
    allow_abbrev=False,
)
_PARSER.add_argument(
    "--checkpoint", help="a file or an exported folder; several with commas: an ensemble [the newest run's best]"
)
_PARSER.add_argument("--split", help="train, val, test (as TEST_SPLITS says), or another one [test]")
_PARSER.add_argument("--output", help="folder for the results [beside the checkpoint, named after it]")
_PARSER.add_argument("--predictions", metavar="FILE", help="score these captions of the split, caption nothing")
_PARSER.add_argument("--compare", nargs=2, metavar=("A", "B"), help="test B minus A over the same images")
_PARSER.add_argument("--json", metavar="FILE", help="with --compare: write the differences there as well")
_PARSER.add_argument("--meteor", action="store_true", help="METEOR as well: needs Java and pycocoevalcap")
_PARSER.add_argument("--spice", action="store_true", help="SPICE as well: Java 8 or 11, pycocoevalcap, a download")
decoding_flags.add(_PARSER)


if __name__ == "__main__":
    _own, _rest = take_settings(sys.argv[1:])
    _PARSER.parse_args(_rest)
    load_settings(_own)  # --help and mistakes answer before torch is imported
    cli.begin()

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from nanocaption import metrics
from nanocaption.base import devices
from nanocaption.base.files import read_log, write_atomically
from nanocaption.data.dataset import ImageTextDataset, load_image
from nanocaption.data.inputs import cached_features
from nanocaption.data.order import chunks
from nanocaption.data.prepared import folder_name, load_records, verify
from nanocaption.data.tokenizer import encode
from nanocaption.data.transform import seen_part
from nanocaption.model.captions import search_options
from nanocaption.score import results
from nanocaption.score.report import FEW_IMAGES, gallery_rows, shown_rows, write_report
from nanocaption.score.scoring import score_captions
from nanocaption.use.attention import attend
from nanocaption.use.captioning import caption_batches
from nanocaption.use.load import WEIGHTS, Loaded, find_checkpoints, is_exported, load_models


class Split(NamedTuple):
    name: str
    folder: Path  # of the prepared data set
    records: list[dict[str, Any]]
    training: list[str] | None  # the captions of the training split, if there is one


def main(argv: list[str]) -> None:
    own, rest = take_settings(argv)
    arguments = _PARSER.parse_args(rest)
    if arguments.json and not arguments.compare:
        raise SystemExit("--json goes with --compare; the scores of one model are in scores.json")
    if arguments.compare and (arguments.output or arguments.predictions or arguments.checkpoint):
        raise SystemExit("--compare names both sides itself: leave out --checkpoint, --predictions and --output")
    if arguments.split and arguments.compare and not any(map(_is_model, arguments.compare)):
        raise SystemExit("--split is for checkpoints: both sides of --compare are captions already")
    captioned = not arguments.predictions and (not arguments.compare or any(map(_is_model, arguments.compare)))
    if decoding_flags.used(arguments) and not captioned:
        raise SystemExit("--sample, --max-length and their like are for checkpoints: here all is captioned already")
    if problems := decoding_flags.problems(arguments):
        raise SystemExit("\n".join(problems))
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise SystemExit(f"--json {arguments.json}: its folder does not exist; make it first")
    arguments.split = arguments.split or "test"
    try:
        if arguments.compare:
            compare(arguments, load_settings(own))
        elif arguments.predictions:
            score_file(arguments, load_settings(own))
        else:
            settings = load_settings(own)
            evaluate(arguments, settings, find_checkpoints(arguments.checkpoint, settings.OUTPUT_DIR))
    finally:
        devices.stop()


def evaluate(arguments: argparse.Namespace, given: Settings, paths: list[Path], reuse: bool = False) -> Path:
    """Caption with one checkpoint, or with several as an ensemble; score, write and print.

    Returns the results folder. With `reuse`, results that are there are taken.
    """
    device = _join_processes(given)
    loaded = load_models(paths, given)
    settings, states = loaded.settings, loaded.states
    options = decoding_flags.options(arguments, search_options(settings.values))
    split = load_split(settings, arguments.split, states[0]["config"])
    results.check_records(split.records, split.folder / "images")
    captions_sha256 = hashlib.sha256((split.folder / "captions.json").read_bytes()).hexdigest()
    digests = [results.digest(path) for path in paths]
    made_by = " + ".join(f"{path.name} {digest}" for path, digest in zip(paths, digests, strict=True))
    decoding = _decoding(loaded, options)
    key = results.digest(made_by, decoding, captions_sha256, split.folder.name, split.name, len(split.records))
    metrics.require_java(arguments.meteor, arguments.spice)
    first = devices.rank() == 0
    decided: list[tuple[Path, bool]] = []
    if first:  # the others would look while this one writes
        place = paths[0].parent / _label(settings, options, split, states)
        output = Path(arguments.output) if arguments.output else results.folder_for(place, key)
        there = results.read_object(output / "scores.json").get("key") == key
        decided = [(output, reuse and there)]
    output, done = devices.gather(decided)[0]
    if done:
        return output

    if first:
        trained_here = [state for state in states if state["config"]["DATASET"] == settings.DATASET]
        if any(state["captions_sha256"] != captions_sha256 for state in trained_here):
            print(f"Note: {split.folder} has changed since the training; its pictures may have been seen there.")
        print(f"{', '.join(map(str, paths))}: epoch {', '.join(str(state['epoch']) for state in states)}; captioning "
              f"{len(split.records)} images of {settings.DATASET}/{split.name} on {device}")  # fmt: skip
    captions = caption_split(loaded, options, split, output, key)
    if not first:
        return output
    scores, per_image = score_captions(
        split.records, captions, training=split.training, meteor=arguments.meteor, spice=arguments.spice
    )
    origin = f"{', '.join(f'{name} {value}' for name, value in decoding.items())} | {made_by}"
    scores |= {
        "dataset": split.folder.name, "split": split.name, "decoding": decoding, "checkpoints": digests, "key": key,
        "signature": _signature(split, scores, origin),
    }  # fmt: skip
    rows = gallery_rows(split.records, captions, per_image)
    shown = shown_rows(rows)
    for row, maps in zip(shown, _attention(loaded, split, shown), strict=True):
        # A token that holds half a character has no text of its own, so that its word cannot be found.
        if maps and "".join(word["text"] for word in maps["words"]) == "".join(row["caption"].split()):
            row["attention"] = maps
    finish(output, split, captions, per_image, scores, rows, paths[0].parent, _history(paths[0].parent))
    return output


def score_file(arguments: argparse.Namespace, settings: Settings) -> None:
    """Score the captions of a predictions file, of whatever model, on a split."""
    path = Path(arguments.predictions)
    _join_processes(settings)
    if devices.rank() != 0:
        return  # there is nothing to share
    split = load_split(settings, arguments.split, settings.values)
    results.check_records(split.records, split.folder / "images")
    captions = results.read_predictions(path, split.records)
    scores, per_image = score_captions(
        split.records, captions, training=split.training, meteor=arguments.meteor, spice=arguments.spice
    )
    made_by = f"{path.name} {results.digest(path)}"
    key = results.digest(path, split.folder / "captions.json", split.folder.name, split.name, len(split.records))
    signature = _signature(split, scores, f"captions of {made_by}")
    scores |= {"dataset": split.folder.name, "split": split.name, "key": key, "signature": signature}
    place = path.parent / f"eval_{split.name}_{path.stem}"
    output = Path(arguments.output) if arguments.output else results.folder_for(place, key)
    rows = gallery_rows(split.records, captions, per_image)
    finish(output, split, captions, per_image, scores, rows, path.parent)


def compare(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print the differences B - A with interval and p, over the same images. A checkpoint is captioned first."""
    sides: list[list[Path] | Path] = []
    for name in arguments.compare:  # a mistake is told before the other side is captioned
        sides.append(find_checkpoints(name, "") if _is_model(name) else Path(name))
        if isinstance(sides[-1], Path):
            results.read_results(sides[-1])
    places = [side if isinstance(side, Path) else evaluate(arguments, settings, side, reuse=True) for side in sides]
    if devices.rank() != 0:
        return
    read = [results.read_results(place) for place in places]
    differences, references = results.compare_results(*read, arguments.meteor, arguments.spice)
    signature = metrics.signature(references, differences)
    origins = [results.origin(place) for place in places]
    for name, place, made_by in zip(("first: ", "second:"), places, origins, strict=True):
        print(f"\n{name} {place}\n        {made_by}")
    print(f"\n{metrics.differences_table(differences)}\n{signature}")
    if len(references) < FEW_IMAGES:
        print(f"Only {len(references)} images: a difference would have to be large to show here.")
    if arguments.json:
        rows = {name: row._asdict() for name, row in differences.items()}
        content = {"first": str(places[0]), "second": str(places[1]), "made_by": origins, "differences": rows,
                   "signature": signature}  # fmt: skip
        write_atomically(Path(arguments.json), json.dumps(content, indent=1) + "\n")


def caption_split(
    loaded: Loaded, options: Options, split: Split, output: Path, key: str
) -> list[str]:
    """The best caption of every image of the split, in order; on every process, each of which captions its share.

    Captions are written to `output` batch by batch under `key`, and taken from there if they are there already.
    """
    if devices.rank() == 0:
        results.tidy_kept(output, key)
    devices.barrier()
    kept = results.read_kept(output, key)
    devices.barrier()  # all have read before the first one writes
    left = [i for i in range(len(split.records)) if i not in kept]
    mine = left[devices.rank() :: devices.world_size()]
    images = _images(split, loaded, cached=bool(left)).part(mine)
    if kept and devices.rank() == 0:
        print(f"{len(kept)} captions are there from a start that was stopped")
    quiet = devices.rank() != 0 or not mine
    bar = tqdm(total=len(mine), desc=f"captioning {split.name}", unit="image", disable=quiet, mininterval=1)
    rows: list[dict[str, Any]] = []
    with (output / f"captions-{devices.rank()}.jsonl").open("w", encoding="utf-8") as file, bar:
        file.write(json.dumps({"key": key}) + "\n")
        for captions in _caption_batches(loaded, options, images) if mine else ():
            places = mine[len(rows) : len(rows) + len(captions)]
            batch = [{"image": i, "caption": row[0].text} for i, row in zip(places, captions, strict=True)]
            file.write("".join(json.dumps(row) + "\n" for row in batch))
            file.flush()
            rows += batch
            bar.update(len(batch))
    found = kept | {row["image"]: row["caption"] for row in devices.gather(rows)}
    return [found[i] for i in range(len(split.records))]


def _images(split: Split, loaded: Loaded, cached: bool = False) -> ImageTextDataset:
    """The split's images; with `cached`, for all processes together, a frozen encoder's features of them, from the
    cache that training uses too."""
    settings, model = loaded.settings, loaded.models[0]
    token_ids = [[] for _ in split.records]
    images = ImageTextDataset(split.records, split.folder / "images", token_ids, model.image_spec)
    if cached and len(loaded.models) == 1 and settings.FREEZE_ENCODER and settings.CACHE_FEATURES:
        images.cached = cached_features(settings, split.folder, split.name, images, model, loaded.device)
    return images


def load_split(settings: Settings, name: str, trained: dict[str, Any]) -> Split:
    """The split to score, and the captions of the training split of `trained`, the settings of the training."""
    folder = Path(settings.DATA_DIR) / folder_name(settings.DATASET)
    make = f"python prepare_dataset.py --dataset '{settings.DATASET}'"
    if not (folder / "captions.json").is_file():
        raise SystemExit(f"There is no data set {folder}. Make it: {make}. Or name yours: --dataset NAME")
    try:
        verify(folder)
    except ValueError as error:
        raise ValueError(f"{error}. Prepare it again: {make}") from error
    splits = getattr(settings, f"{name.upper()}_SPLITS", (name,))
    try:
        records = load_records(folder, splits, settings.DATA_CUTOFF)
    except ValueError as error:
        raise ValueError(f"{error} Or name one of its splits: --split val") from error
    origin = Path(settings.DATA_DIR) / folder_name(trained["DATASET"]) / "captions.json"
    there = {row["split"] for row in results.read_object(origin).get("images", [])}
    seen = [split for split in trained.get("TRAIN_SPLITS", ("train",)) if split in there]  # older checkpoints: none
    rows = load_records(origin.parent, seen, trained["DATA_CUTOFF"]) if seen else []
    training = [caption for row in rows for caption in row["captions"]]
    return Split("+".join(splits), folder, records, training or None)


def finish(
    output: Path, split: Split, captions: list[str], per_image: list[dict[str, float]], scores: dict[str, Any],
    rows: list[dict[str, Any]], origin: Path, history: list[dict[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Write the results folder, print the table. origin: the folder that the captions are of; history: its curves."""
    results.write_results(output, split.records, captions, per_image, scores)
    print(results.scores_table(scores), flush=True)
    write_report(
        output / "report.html", title=f"{origin.resolve().name}: captions of the {split.name} split", scores=scores,
        predictions=rows, images_dir=split.folder / "images", history=history,
    )  # fmt: skip
    results.drop_kept(output)
    print(f"\npredictions, scores and the gallery: {output}/ (open {output / 'report.html'})")


def _history(run: Path) -> list[dict[str, Any]] | None:
    log = run / "log.jsonl"
    try:
        return read_log(log) if log.is_file() else None
    except ValueError as error:
        warnings.warn(f"no curves in the report: {error}", stacklevel=2)
        return None


def _is_model(name: str) -> bool:
    """Whether a side of --compare is to be captioned first: a checkpoint, an export, or several with commas between."""
    parts = [name] if Path(name).exists() else name.split(",")
    return all(part.endswith(".safetensors") or is_exported(Path(part) / WEIGHTS) for part in parts)


def _caption_batches(loaded: Loaded, options: Options, images: ImageTextDataset) -> Any:
    settings = loaded.settings
    return caption_batches(
        loaded.models, loaded.tokenizer, images, batch_size=settings.EVAL_BATCH_SIZE,
        options=options, device=loaded.device, precision=settings.PRECISION, workers=settings.NUM_WORKERS,
        seed=settings.SEED,
    )  # fmt: skip


def _decoding(loaded: Loaded, options: Options) -> dict[str, Any]:
    """Everything that can change a caption of a given checkpoint: part of the signature and of the captions' key."""
    o, settings, dtype = options, loaded.settings, devices.pick_dtype(loaded.settings.PRECISION, loaded.device)
    limit = {"cut at": o.max_length} if o.max_length else {}
    how: dict[str, Any] = {"beam": o.beam_size, "length penalty": o.length_penalty}
    if o.samples:
        how = {"sampled with seed": settings.SEED, "temperature": o.temperature, "top-k": o.top_k, "top-p": o.top_p}
    elif o.beam_groups > 1:
        how |= {"groups": o.beam_groups, "diversity penalty": o.diversity_penalty}
    longest = min(model.decoder.max_seq_len for model in loaded.models)
    return how | limit | {
        "longest": longest, "shortest": o.min_length, "no repeated n-gram": o.no_repeat_ngram,
        "precision": str(dtype).removeprefix("torch."),
    }


def _attention(loaded: Loaded, split: Split, rows: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """For each row of the gallery where the model looked, word by word, as report.write_report wants "attention".

    None for each where several models voted. The captions are cut into tokens anew, which nearly always gives the
    model's own.
    """
    if len(loaded.models) > 1:
        return [None for _ in rows]
    (model,), settings, found = loaded.models, loaded.settings, []
    for part in chunks(rows, settings.EVAL_BATCH_SIZE):
        paths = [split.folder / "images" / row["file_name"] for row in part]
        pixels = torch.stack([load_image(path, model.image_spec) for path in paths])
        ids = [encode(loaded.tokenizer, row["caption"], settings.MAX_SEQ_LEN)[1:-1] for row in part]
        with devices.autocast(loaded.device, devices.pick_dtype(settings.PRECISION, loaded.device)):
            maps = attend(model, loaded.tokenizer, pixels, ids)
        boxes = [seen_part(path, model.image_spec) for path in paths]
        found += [one | {"box": box} for one, box in zip(maps, boxes, strict=True)]
    return found


def _signature(split: Split, scores: dict[str, Any], origin: str) -> str:
    """One line: two scores compare where it is equal up to the part that is meant to differ."""
    references = {record["file_name"]: record["captions"] for record in split.records}
    return f"{split.folder.name}/{split.name} | {metrics.signature(references, scores['corpus'])} | {origin}"


def _label(settings: Settings, options: Options, split: Split, states: list[dict[str, Any]]) -> str:
    o, label = options, f"eval_{split.name}_epoch{'+'.join(str(state['epoch']) for state in states)}"
    if o.samples:
        label += f"_sampled{settings.SEED}_temperature{o.temperature:g}_topk{o.top_k}_topp{o.top_p:g}"
    else:
        label += f"_beam{o.beam_size}_penalty{o.length_penalty:g}"
        label += f"_groups{o.beam_groups}_diversity{o.diversity_penalty:g}" if o.beam_groups > 1 else ""
    for name, value in (("max", o.max_length), ("min", o.min_length), ("ngram", o.no_repeat_ngram)):
        label += f"_{name}{value}" if value else ""
    return label if settings.DATA_CUTOFF is None else f"{label}_first{settings.DATA_CUTOFF}"


def _join_processes(settings: Settings) -> torch.device:
    """The device of this process; joins the group if torchrun started several."""
    device = devices.pick_device(settings.DEVICE, devices.local_rank())
    devices.start(device.type)
    return device


if __name__ == "__main__":
    cli.run(main, "Stopped. What is captioned is kept: the same command goes on from there.")
