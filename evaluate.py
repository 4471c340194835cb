"""Caption a split with a trained model and score the captions.

    python evaluate.py                                        the newest run's best checkpoint, test split
    python evaluate.py --checkpoint runs/demo-001/last.safetensors --split val
    python evaluate.py --checkpoint my_captioner              a folder that `nanocaption export` wrote
    python evaluate.py --checkpoint A.safetensors,B.safetensors   an ensemble: their probabilities are averaged
    python evaluate.py --beam-size 1 --device cpu             any setting of config.py is a flag here, too
    python evaluate.py --sample --top-p 0.9                   random captions; --beam-groups for diverse beam search
    python evaluate.py --length-penalties 0.7,1,1.3           the one that is best on val, for the test split
    python evaluate.py --predictions anyones.json             score captions of any model, without one
    python evaluate.py --task retrieval                       rank pictures and captions for each other: R@1, 5, 10
    python evaluate.py --compare A B                          is B better? A, B: checkpoints, results folders or files
    python evaluate.py --questions --predictions answers.json   score anyone's answers to a set's questions
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
_PARSER.add_argument(
    "--task", choices=("caption", "retrieval"), default="caption",
    help="caption the pictures and score that, or rank pictures and captions for each other [caption]",
)  # fmt: skip
_PARSER.add_argument("--by", metavar="RANKING,...", help="--task retrieval: likelihood, head, both [all that it can]")
_PARSER.add_argument("--split", help="train, val, test (as TEST_SPLITS says), or another one [test]")
_PARSER.add_argument("--output", help="folder for the results [beside the checkpoint, named after it]")
_PARSER.add_argument("--predictions", metavar="FILE", help="score these captions of the split, caption nothing")
_PARSER.add_argument("--compare", nargs=2, metavar=("A", "B"), help="test B minus A over the same images")
_PARSER.add_argument(
    "--only-predicted", action="store_true", help="with files: score the images that have a prediction alone"
)
_PARSER.add_argument("--json", metavar="FILE", help="with --compare: write the differences there as well")
_PARSER.add_argument(
    "--length-penalties", metavar="P,P,...",
    help="choose LENGTH_PENALTY among these: the one whose captions of the val split have the highest CIDEr",
)  # fmt: skip
_PARSER.add_argument("--meteor", action="store_true", help="METEOR as well: needs Java and pycocoevalcap")
_PARSER.add_argument("--spice", action="store_true", help="SPICE as well: Java 8 or 11, pycocoevalcap, a download")
_PARSER.add_argument(
    "--tokenize", choices=("ptb", "characters"), default="ptb",
    help="words as PTB cuts them, or characters: for languages without spaces between words [ptb]",
)  # fmt: skip
decoding_flags.add(_PARSER)


if __name__ == "__main__":
    _own, _rest = take_settings(sys.argv[1:])
    _PARSER.parse_args(_rest)
    load_settings(_own)  # --help and mistakes answer before torch is imported
    cli.begin()

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from nanocaption import metrics
from nanocaption.base import devices
from nanocaption.base.files import cases, write_atomically
from nanocaption.commands import retrieval_task
from nanocaption.commands.evaluate_questions import evaluate_answers, refuse_flags, score_answers_file
from nanocaption.data.dataset import load_image
from nanocaption.data.prepared import repaired_notes
from nanocaption.data.shard_index import paths_of
from nanocaption.data.shards import Packed
from nanocaption.data.tokenizer import UNK, encode
from nanocaption.data.transform import seen_part
from nanocaption.metrics.files import FEW_IMAGES
from nanocaption.model.options import Options, search_options
from nanocaption.score import results
from nanocaption.score.curves import read_thinned
from nanocaption.score.predictions import captions_by_id, compare_sides, image_ids, read_predictions, read_side
from nanocaption.score.report import shown_rows, write_report
from nanocaption.score.report_html import GalleryRow
from nanocaption.score.scoring import Scores, score_captions
from nanocaption.score.split import Split, load_split
from nanocaption.train.used import unpacked
from nanocaption.use.attention import attend
from nanocaption.use.captioning import caption_split, decoding_facts, judged_by, results_name
from nanocaption.use.load import WEIGHTS, Loaded, find_checkpoints, is_exported, load_models, trained_by_reward
from nanocaption.use.penalties import Tried, best_of, table, try_penalties


def main(argv: list[str]) -> None:
    own, rest = take_settings(argv)
    arguments = _PARSER.parse_args(rest)
    if problems := flag_problems(arguments):
        raise SystemExit("\n".join(problems))
    if arguments.length_penalties:
        decoding_flags.penalties(arguments)  # a mistake is told before a model is loaded
    arguments.split = arguments.split or "test"
    try:
        settings = load_settings(own)
        if arguments.compare and settings.QUESTIONS:
            refuse_flags(arguments)
        if arguments.task == "retrieval":
            retrieval_task.main(arguments, settings, find_checkpoints(arguments.checkpoint, settings.OUTPUT_DIR))
        elif arguments.compare:
            compare(arguments, settings)
        elif arguments.predictions:
            score_file(arguments, settings)
        else:
            evaluate(arguments, settings, find_checkpoints(arguments.checkpoint, settings.OUTPUT_DIR))
    finally:
        devices.stop()


def flag_problems(arguments: argparse.Namespace) -> list[str]:
    """One line for each flag that cannot be meant so."""
    a = arguments
    ranks = a.task == "retrieval"
    captioned = a.predictions or (a.compare and not any(map(_is_model, a.compare)))
    rules = [
        (a.compare or not a.json, "--json goes with --compare; the scores of one model are in scores.json"),
        (not a.compare or not (a.output or a.predictions or a.checkpoint),
         "--compare names both sides itself: leave out --checkpoint, --predictions and --output"),
        (not a.compare or not a.split or not captioned,
         "--split is for checkpoints: both sides of --compare are captions already"),
        (not captioned or not decoding_flags.used(a),
         "--sample, --max-length and their like are for checkpoints: here all is captioned already"),
        (not a.length_penalties or not (a.predictions or a.compare),
         "--length-penalties chooses for one checkpoint: leave out --predictions and --compare"),
        (not a.only_predicted or a.predictions or a.compare,
         "--only-predicted goes with --predictions FILE or --compare A B: a checkpoint captions all"),
        (not a.json or Path(a.json).absolute().parent.is_dir(),
         f"--json {a.json}: its folder does not exist; make it first"),
        (ranks or not a.by, "--by goes with --task retrieval"),
        (not ranks or not (captioned or a.compare or a.length_penalties or a.meteor or a.spice
                           or a.tokenize != "ptb" or decoding_flags.used(a)),
         "--task retrieval captions nothing: leave out --predictions, --compare, --length-penalties, --meteor, "
         "--spice, --tokenize, --sample and their like"),
    ]  # fmt: skip
    return [text for holds, text in rules if not holds] + decoding_flags.problems(a)


def evaluate(arguments: argparse.Namespace, given: Settings, paths: list[Path], reuse: bool = False) -> Path:
    """Caption with one checkpoint, or with several as an ensemble; score, write and print.

    Returns the results folder. With `reuse`, results that are there are taken.
    """
    device = _join_processes(given)
    loaded = load_models(paths, given)
    if loaded.settings.QUESTIONS:
        return evaluate_answers(arguments, loaded, paths)
    settings, states = loaded.settings, loaded.states
    options = decoding_flags.options(arguments, search_options(settings.values))
    refuse_consensus(arguments, settings)
    judged = judged_by(loaded, metrics.TOKENIZERS[arguments.tokenize])
    split = load_split(settings, arguments.split, states[0]["config"])
    digests = [results.digest(path) for path in paths]
    made_by = " + ".join(
        f"{path.name} {digest}{' scst:eos' * trained_by_reward(state)}"
        for path, digest, state in zip(paths, digests, states, strict=True)
    )
    tried: list[Tried] = []
    if arguments.length_penalties:
        options, tried = choose_penalty(arguments, loaded, options)
        if split.name == "+".join(settings.VAL_SPLITS):
            devices.console(f"Chosen on {split.name}: use it on another split with --length-penalty "
                            f"{options.length_penalty:g}")  # fmt: skip
            return split.folder
    decoding = decoding_facts(loaded, options, judged)
    key = results.digest(made_by, decoding, split.captions_sha256, split.folder.name, split.name, len(split.records),
                         *_tokens_named(arguments))  # fmt: skip
    metrics.require_java(arguments.meteor, arguments.spice)
    decided: list[tuple[Path, bool]] = []
    if devices.rank() == 0:  # the others would look while this one writes
        place = paths[0].parent / results_name(loaded, options, split, judged)
        output = Path(arguments.output) if arguments.output else results.folder_for(place, key)
        decided = [(output, reuse and results.read_object(output / "scores.json").get("key") == key)]
    output, done = devices.gather(decided)[0]
    if done:
        return output
    if devices.rank() == 0:
        announce(paths, loaded, split, device)
    captions, broken = caption_split(loaded, options, split, output, key, judged)
    if devices.rank() == 0:
        origin = f"{', '.join(f'{name} {value}' for name, value in decoding.items())} | {made_by}"
        facts: dict[str, object] = {"decoding": decoding, "checkpoints": digests, "key": key}
        facts |= {"length_penalties": [row._asdict() for row in tried]} if tried else {}
        finish(arguments, split, captions, output, origin, facts, paths[0].parent, loaded, broken)
    return output


def refuse_consensus(arguments: argparse.Namespace, settings: Settings) -> None:
    """SystemExit where CONSENSUS is asked for together with what leaves it nothing to choose."""
    if settings.CONSENSUS and arguments.sample:
        raise SystemExit("CONSENSUS chooses among the beams of a search: leave --sample out, or set it to 0")
    if settings.CONSENSUS and arguments.length_penalties:
        raise SystemExit("--length-penalties goes by beam search alone: set CONSENSUS to 0")


def announce(paths: Sequence[Path], loaded: Loaded, split: Split, device: torch.device) -> None:
    """Print what is captioned with what, and whether the set has changed since the training."""
    settings, states = loaded.settings, loaded.states
    trained_here = [state for state in states if state["config"]["DATASET"] == settings.DATASET]
    changed = any(state["captions_sha256"] != split.captions_sha256 for state in trained_here)
    noted = [state for state in trained_here if "used" in state and "stream_sha256" not in state]
    learnt = {one.name for state in noted for one in unpacked(state["used"]) if one.role == "train"}
    seen = [record["file_name"] for record in split.records if record["file_name"] in learnt]
    if changed and len(noted) < len(trained_here):
        print(f"Note: {split.folder} has changed since the training; its pictures may have been seen there.")
    elif changed and seen:
        print(f"Note: {split.folder} has changed since the training, which saw {cases(seen, 'picture')} of these "
              f"{len(split.records):,}.")  # fmt: skip
    print(f"{', '.join(map(str, paths))}: epoch {', '.join(str(state['epoch']) for state in states)}; captioning "
          f"{len(split.records)} images of {settings.DATASET}/{split.name} on {device}")  # fmt: skip


def choose_penalty(
    arguments: argparse.Namespace, loaded: Loaded, options: Options
) -> tuple[Options, list[Tried]]:
    """The options with the length penalty of --length-penalties that is best on the val split, and what each scored."""
    penalties = decoding_flags.penalties(arguments)
    if options.beam_size == 1:
        raise SystemExit("--length-penalties ranks beams: BEAM_SIZE = 1 leaves no choice")
    val = load_split(loaded.settings, "val", loaded.states[0]["config"])
    devices.console(f"captioning {len(val.records)} images of {val.folder.name}/{val.name} with "
                    f"{len(penalties)} length penalties")  # fmt: skip
    tried = try_penalties(loaded, options, val, penalties, metrics.TOKENIZERS[arguments.tokenize])
    devices.console(table(tried))
    return options._replace(length_penalty=best_of(tried)), tried


def score_file(arguments: argparse.Namespace, settings: Settings) -> None:
    """Score the captions of a predictions file, of whatever model, on a split."""
    path = Path(arguments.predictions)
    _join_processes(settings)
    if devices.rank() != 0:
        return  # there is nothing to share
    if settings.QUESTIONS:
        return score_answers_file(arguments, settings)
    split = load_split(settings, arguments.split, settings.values)
    found = read_predictions(path, split.records, arguments.only_predicted)
    captions = [caption for caption in found if caption is not None]
    ids = [name for name, caption in zip(image_ids(split.records), found, strict=True) if caption is not None]
    split = split._replace(records=[r for r, caption in zip(split.records, found, strict=True) if caption is not None])
    key = results.digest(path, split.folder / "captions.json", split.folder.name, split.name, len(split.records),
                         *_tokens_named(arguments))  # fmt: skip
    place = path.parent / f"eval_{split.name}_{path.stem}"
    output = Path(arguments.output) if arguments.output else results.folder_for(place, key)
    made_by = f"captions of {path.name} {results.digest(path)}"
    finish(arguments, split, captions, output, made_by, {"key": key}, path.parent, ids=ids, out_of=len(found))


def finish(
    arguments: argparse.Namespace, split: Split, captions: Sequence[str], output: Path, made_by: str,
    facts: Mapping[str, object], folder: Path, loaded: Loaded | None = None, broken: int = 0,
    ids: Sequence[int | str] | None = None, out_of: int = 0,
) -> None:  # fmt: skip
    """Score the captions, print the table, write the results folder `output`.

    made_by: the end of the signature. facts: what scores.json says besides. folder: what the page is called after.
    loaded: what captioned; the page then has the curves of its run, and where it looked. broken: of its captions.
    ids, out_of: of the records in the files, and how many the split has, where these are a part of it.
    """
    scores, per_image = score_captions(
        split.records, captions, training=split.training, meteor=arguments.meteor, spice=arguments.spice,
        tokenize=metrics.TOKENIZERS[arguments.tokenize], broken=broken,
    )  # fmt: skip
    references = {record["file_name"]: record["captions"] for record in split.records}
    measured = metrics.signature(references, scores["corpus"], arguments.tokenize, out_of, "domains" in scores)
    line = f"{split.folder.name}/{split.name} | {measured} | {made_by}"
    said = {"dataset": split.folder.name, "split": split.name, **facts, "signature": line}
    scores = cast(Scores, {**scores, **said})
    rows: list[GalleryRow] = [
        {"file_name": record["file_name"], "caption": caption, "references": record["captions"], "cider": own["CIDEr"]}
        for record, caption, own in zip(split.records, captions, per_image, strict=True)
    ]
    places = dict(zip(references, paths_of(split.folder / "images", split.records), strict=True))
    if loaded and len(loaded.models) == 1:
        _add_maps([row for _, row in shown_rows(rows)], loaded, places)
    results.write_results(output, split.records, captions, scores, ids)
    print("\n".join([*repaired_notes(split.folder), results.scores_table(scores)]), flush=True)
    write_report(
        output / "report.html", title=f"{folder.resolve().name}: captions of the {split.name} split", scores=scores,
        predictions=rows, images_dir=split.folder / "images", history=_history(folder) if loaded else (), places=places,
    )  # fmt: skip
    results.drop_kept(output)
    print(f"\npredictions, scores and the gallery: {output}/ (open {output / 'report.html'})")


def compare(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print the differences B - A with interval and p, over the same images. A checkpoint is captioned first."""
    # A mistake in either side is told before anything is captioned.
    sides = [find_checkpoints(name, "") if _is_model(name) else read_side(Path(name)) for name in arguments.compare]
    places = [evaluate(arguments, settings, side, reuse=True) if isinstance(side, list) else Path(name)
              for name, side in zip(arguments.compare, sides, strict=True)]  # fmt: skip
    if devices.rank() != 0:
        return
    first, second = map(read_side, places)
    differences, references, images = compare_sides(
        first, second, arguments.meteor, arguments.spice, metrics.TOKENIZERS[arguments.tokenize],
        arguments.only_predicted,
    )  # fmt: skip
    signature = metrics.signature(captions_by_id(references), differences, arguments.tokenize, images)
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


def _tokens_named(arguments: argparse.Namespace) -> list[str]:
    """For the key of results: what other tokens than the field's give belongs into a folder of its own."""
    return [] if arguments.tokenize == "ptb" else [arguments.tokenize]


def _join_processes(settings: Settings) -> torch.device:
    """The device of this process; joins the group if torchrun started several."""
    device = devices.pick_device(settings.DEVICE, devices.local_rank())
    devices.start(device.type)
    return device


def _is_model(name: str) -> bool:
    """Whether a side of --compare is to be captioned first: a checkpoint, an export, or several with commas between."""
    parts = [name] if Path(name).exists() else name.split(",")
    return all(part.endswith(".safetensors") or is_exported(Path(part) / WEIGHTS) for part in parts)


def _add_maps(rows: Sequence[GalleryRow], loaded: Loaded, places: Mapping[str, Path | Packed]) -> None:
    """Add "attention" to the rows: where the one model looked, word by word.

    The captions are cut into tokens anew, which nearly always gives the model's own.
    """
    (model,), settings = loaded.models, loaded.settings
    for start in range(0, len(rows), settings.EVAL_BATCH_SIZE):
        part = rows[start : start + settings.EVAL_BATCH_SIZE]
        paths = [places[row["file_name"]] for row in part]
        pixels = torch.stack([load_image(path, model.image_spec) for path in paths])
        tokens = [encode(loaded.tokenizer, row["caption"], settings.MAX_SEQ_LEN) for row in part]
        ids = [[token for token in row if token > UNK] for row in tokens]  # a cut one has no <end>
        with devices.autocast(loaded.device, devices.pick_dtype(settings.PRECISION, loaded.device)):
            maps = attend(model, loaded.tokenizer, pixels, ids)
        for row, one, path in zip(part, maps, paths, strict=True):
            row["attention"] = one | {"box": seen_part(path, model.image_spec)}


def _history(run: Path) -> list[dict[str, object]]:
    """What the run's log has for the curves; none where it has no log, or one that cannot be read."""
    log = run / "log.jsonl"
    try:
        return read_thinned(log) if log.is_file() else []
    except ValueError as error:
        warnings.warn(f"no curves in the report: {error}", stacklevel=2)
        return []


if __name__ == "__main__":
    cli.run(main, "Stopped. What is captioned is kept: the same command goes on from there.")
