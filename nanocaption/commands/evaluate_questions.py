"""What evaluate.py does with a model that answers questions, or with anyone's file of answers."""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from nanocaption.base import devices
from nanocaption.base.files import cases, read_log
from nanocaption.base.settings import Settings
from nanocaption.commands import decoding_flags
from nanocaption.data.question_tokens import question_ids
from nanocaption.data.questions import asking
from nanocaption.data.shard_index import paths_of
from nanocaption.data.shards import Packed
from nanocaption.data.tokenizer import SEP, UNK, encode
from nanocaption.data.transform import load_image, seen_part
from nanocaption.model.options import search_options
from nanocaption.score import results
from nanocaption.score.answer_files import read_answers, write_answers
from nanocaption.score.question_scores import QuestionScores, Scored, answers_table, exchanged, rule_of, score_answers
from nanocaption.score.report_questions import AnswerRow, shown_answers, write_answers_report
from nanocaption.score.split import Split, load_split, training_questions
from nanocaption.use.answering import answer_split, choose_letters
from nanocaption.use.attention import attend
from nanocaption.use.captioning import decoding_facts, results_name
from nanocaption.use.load import Loaded


def refuse_flags(arguments: argparse.Namespace) -> None:
    """SystemExit, with every problem found, for flags of evaluate.py that are for captions alone."""
    a = arguments
    rules = [
        (not a.compare, "--compare is for captions: score both files of answers, their intervals stand beside"),
        (not a.length_penalties, "--length-penalties goes by CIDEr, which is for captions: leave it out"),
        (not (a.meteor or a.spice), "--meteor and --spice are for captions: leave them out"),
        (a.tokenize == "ptb", "--tokenize is for captions: leave it out"),
    ]
    if problems := [text for holds, text in rules if not holds]:
        raise SystemExit("\n".join(problems))


def evaluate_answers(arguments: argparse.Namespace, loaded: Loaded, paths: Sequence[Path]) -> Path:
    """Answer the questions of a split with a model or an ensemble, and once more with the pictures shuffled; score."""
    refuse_flags(arguments)
    settings, states = loaded.settings, loaded.states
    options = decoding_flags.options(arguments, search_options(settings.values))
    split = load_split(settings, arguments.split, states[0]["config"])
    digests = [results.digest(path) for path in paths]
    decoding = decoding_facts(loaded, options) | {"answers": "questions"}
    key = results.digest(digests, decoding, split.captions_sha256, split.folder.name, split.name, len(split.records))
    decided: list[Path] = []
    if devices.rank() == 0:
        place = paths[0].parent / results_name(loaded, options, split)
        decided = [Path(arguments.output) if arguments.output else results.folder_for(place, key)]
    output = devices.gather(decided)[0]
    number = sum(len(record["questions"]) for record in split.records)
    devices.console(f"{', '.join(map(str, paths))}: epoch {', '.join(str(state['epoch']) for state in states)}; "
                    f"answering {number:,} questions about {len(split.records)} images of {settings.DATASET}/"
                    f"{split.name} on {loaded.device}")  # fmt: skip
    tell_long(loaded, split)
    answers = answer_split(loaded, options, split, output, key)
    others = answer_split(loaded, options, split, output, f"{key}x", exchanged(len(split.records)))
    if devices.rank() == 0:
        made_by = " + ".join(f"{path.name} {digest}" for path, digest in zip(paths, digests, strict=True))
        origin = f"{', '.join(f'{name} {value}' for name, value in decoding.items())} | {made_by}"
        facts: dict[str, object] = {"decoding": decoding, "checkpoints": digests, "key": key}
        trained = training_questions(Path(settings.DATA_DIR), states[0]["config"])
        flat = [question for record in split.records for question in record["questions"]]
        letters = choose_letters(loaded, split) if rule_of(flat)[0] == "choice" else None
        scores, rows = score_answers(split.records, answers, trained, others, letters)
        finish(split, answers, scores | facts, origin, rows, output, paths[0].parent, loaded)
    return output


def tell_long(loaded: Loaded, split: Split) -> None:
    """Print which questions of the split are too long for the model."""
    longest = min(model.decoder.max_seq_len for model in loaded.models)
    asked = [(record["file_name"], asking(question, loaded.settings.CAPTION_CASE))
             for record in split.records for question in record["questions"]]  # fmt: skip
    ids = question_ids(loaded.tokenizer, [one for _, one in asked], longest)
    long = [f"{name}: {one.question[:60]!r}" for (name, one), row in zip(asked, ids, strict=True) if row is None]
    if long:
        devices.console(f"{cases(long, 'question')} too long for MAX_SEQ_LEN = {longest}: answered with nothing, and "
                        "counted as wrong")  # fmt: skip


def score_answers_file(arguments: argparse.Namespace, settings: Settings) -> None:
    """Score anyone's file of answers on a split."""
    refuse_flags(arguments)
    path = Path(arguments.predictions)
    split = load_split(settings, arguments.split, settings.values)
    flat = [question for record in split.records for question in record["questions"]]
    found = read_answers(path, flat, arguments.only_predicted)
    given = iter(found)
    kept = [record | {"questions": [question for question in record["questions"] if next(given) is not None]}
            for record in split.records]  # fmt: skip
    split = split._replace(records=[record for record in kept if record["questions"]])
    answers = [text for text in found if text is not None]
    if len(answers) < len(found):
        print(f"{len(answers):,} of the {len(found):,} questions of {split.name} are answered in {path.name}")
    key = results.digest(path, split.folder / "captions.json", split.folder.name, split.name, len(answers))
    place = path.parent / f"eval_{split.name}_{path.stem}"
    output = Path(arguments.output) if arguments.output else results.folder_for(place, key)
    trained = training_questions(Path(settings.DATA_DIR), settings.values)
    scores, rows = score_answers(split.records, answers, trained)
    made_by = f"answers of {path.name} {results.digest(path)}"
    finish(split, answers, scores | {"key": key}, made_by, rows, output, path.parent)


def finish(
    split: Split, answers: Sequence[str], scores: Mapping[str, object], made_by: str, rows: Sequence[Scored],
    output: Path, folder: Path, loaded: Loaded | None = None,
) -> None:  # fmt: skip
    """Print the table, and write the results folder `output`: predictions, questions, scores and the page."""
    told = cast(QuestionScores, dict(scores))
    line = f"{split.folder.name}/{split.name} | {told['questions']} questions, {told['rule']} accuracy | {made_by}"
    told = cast(QuestionScores, {**told, "dataset": split.folder.name, "split": split.name, "signature": line})
    write_answers(output, split.records, answers, told)
    print(answers_table(told), flush=True)
    images = [record["file_name"] for record in split.records]
    places = dict(zip(images, paths_of(split.folder / "images", split.records), strict=True))
    shown = shown_answers(rows)
    if loaded and len(loaded.models) == 1:
        add_maps([row for _, row in shown], loaded, places)
    log = folder / "log.jsonl"
    write_answers_report(
        output / "report.html", title=f"{folder.resolve().name}: answers about the {split.name} split", scores=told,
        shown=shown, rows=rows, places=places, history=_history(log) if loaded else (),
    )  # fmt: skip
    results.drop_kept(output)
    print(f"\nanswers, scores and the gallery: {output}/ (open {output / 'report.html'})")


def _history(log: Path) -> list[dict[str, object]]:
    try:
        return read_log(log) if log.is_file() else []
    except ValueError as error:
        warnings.warn(f"no curves in the report: {error}", stacklevel=2)
        return []


def add_maps(rows: Sequence[AnswerRow], loaded: Loaded, places: Mapping[str, Path | Packed]) -> None:
    """Add "attention" to the rows: where the model looked for each word of its answer."""
    (model,), settings = loaded.models, loaded.settings
    longest = model.decoder.max_seq_len
    for start in range(0, len(rows), settings.EVAL_BATCH_SIZE):
        part = rows[start : start + settings.EVAL_BATCH_SIZE]
        askings = [asking(row["question"], settings.CAPTION_CASE) for row in part]
        heads = question_ids(loaded.tokenizer, askings, longest)
        known = [(row, [*head, SEP]) for row, head in zip(part, heads, strict=True) if head is not None]
        if not known:
            continue
        pixels = torch.stack([load_image(places[row["file_name"]], model.image_spec) for row, _ in known])
        ids = [[token for token in encode(loaded.tokenizer, row["answer"], longest - len(head)) if token > UNK]
               for row, head in known]  # fmt: skip
        with devices.autocast(loaded.device, devices.pick_dtype(settings.PRECISION, loaded.device)):
            maps = attend(model, loaded.tokenizer, pixels, ids, [head for _, head in known])
        for (row, _), one in zip(known, maps, strict=True):
            row["attention"] = one | {"box": seen_part(places[row["file_name"]], model.image_spec)}
