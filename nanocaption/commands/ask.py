"""Ask a trained model about a picture.

    nanocaption ask photo.jpg "What colour is the kite?"             the newest run's best checkpoint
    nanocaption ask photo.jpg "How many dogs are there?" "Is there a ball?" --checkpoint runs/demo-001/last.safetensors
    nanocaption ask photo.jpg "Who is it?" --checkpoint user/name --num-answers 3 --json
    nanocaption ask photo.jpg "What is left of the house?" --attention words.png

The model is one that was trained on questions: docs/questions.md. The picture is read once for all questions.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanocaption.base import cli
from nanocaption.base.files import write_file
from nanocaption.commands import decoding_flags
from nanocaption.model.options import search_options

if TYPE_CHECKING:  # these import torch, which --help can do without
    from nanocaption.data.questions import Asking
    from nanocaption.model.caption_types import CaptionText
    from nanocaption.model.options import Options
    from nanocaption.use.load import Loaded

MAX_CHARACTERS = 2000  # of a question
_PARSER = cli.parser("nanocaption ask", __doc__)
_PARSER.add_argument("picture", help="a file")
_PARSER.add_argument("questions", nargs="+", metavar="question", help="one or several, each as one word of the shell")
_PARSER.add_argument(
    "--checkpoint",
    help="a checkpoint file, an exported folder or its id on the Hub (user/name); several with commas between are "
    "averaged [the best of the newest run under OUTPUT_DIR]",
)
_PARSER.add_argument("--num-answers", type=int, default=1, help="answers to each question, best first [1]")
_PARSER.add_argument("--json", action="store_true", help="print JSON with log-probabilities instead of text")
_PARSER.add_argument("--attention", help="one question: draw what each word of the answer looked at into this PNG file")
decoding_flags.add(_PARSER)


def main(argv: list[str]) -> int:
    """Answer what argv asks; returns the exit code."""
    arguments, settings = cli.parse(_PARSER, argv)
    check_arguments(arguments)
    cli.require("torch", "caption", "nanocaption ask")

    from nanocaption.model.answers import refuse_long
    from nanocaption.use.load import find_checkpoints, load_models, refuse_captioner

    paths = find_checkpoints(arguments.checkpoint, settings.OUTPUT_DIR, hub=True)
    if arguments.attention and len(paths) > 1:
        raise SystemExit("--attention shows what one model looks at: give one checkpoint")
    if arguments.checkpoint is None:
        print(f"answers of {paths[0]}", file=sys.stderr)
    loaded = load_models(paths, settings)
    refuse_captioner(loaded, paths[0])
    asked = read_questions(arguments.questions, loaded.settings.CAPTION_CASE)
    for question in asked:
        refuse_long(loaded.tokenizer, question, min(model.decoder.max_seq_len for model in loaded.models))
    options = decoding_flags.options(arguments, search_options(loaded.settings.values), arguments.num_answers)
    found = answer(loaded, Path(arguments.picture), asked, options, arguments.num_answers)
    tell(arguments, found)
    if arguments.attention:
        from nanocaption.model.answers import head_of
        from nanocaption.use.attention import draw_picture

        head = head_of(loaded.tokenizer, asked[0], loaded.models[0].decoder.max_seq_len)
        drawn = draw_picture(loaded.models[0], loaded.tokenizer, Path(arguments.picture), found[0][0], head)
        write_file(Path(arguments.attention), drawn)
        print(f"what each word looked at: {arguments.attention}", file=sys.stderr)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise SystemExit, with every problem found, for flags and questions that cannot be meant so."""
    a = arguments
    rules = [
        (Path(a.picture).is_file(), f"There is no picture {a.picture!r}: name a file first, then the questions"),
        (a.num_answers >= 1, f"--num-answers {a.num_answers}: must be 1 or more"),
        (not a.attention or len(a.questions) == 1, "--attention draws one answer: ask one question"),
        (not a.attention or a.attention.endswith(".png"), f"--attention {a.attention}: must end in .png"),
        (not a.attention or Path(a.attention).parent.is_dir(), f"--attention {a.attention}: there is no such folder"),
    ]
    problems = [text for holds, text in rules if not holds]
    problems += [text for question in a.questions if (text := question_problem(question))]
    problems += decoding_flags.problems(a, a.num_answers)
    if problems:
        raise SystemExit("\n".join(problems))


def question_problem(question: str) -> str | None:
    """Why a text is no question; None where it is one."""
    if not any(letter.isalnum() for letter in question):
        return f"{question!r} asks nothing: write the question in quotes, \"What colour is the kite?\""
    if len(question) > MAX_CHARACTERS:
        return f"The question {question[:40]!r}... has {len(question):,} characters, {MAX_CHARACTERS:,} at most"
    return None


def read_questions(questions: Sequence[str], case: str) -> "list[Asking]":
    """Each as the model was trained to read it. case: CAPTION_CASE."""
    from nanocaption.data.caption_text import normalise
    from nanocaption.data.questions import Asking

    return [Asking(normalise(question, case), "") for question in questions]


def answer(
    loaded: "Loaded", picture: Path, asked: "Sequence[Asking]", options: "Options", number: int
) -> "list[list[CaptionText]]":
    """The answers to each question about a picture, at most `number` of each. ValueError where it cannot be read."""
    from torch import inference_mode

    from nanocaption.base import devices
    from nanocaption.data.order import seed_of
    from nanocaption.data.transform import load_image
    from nanocaption.model.answers import answer_questions

    pixels = [load_image(picture, model.image_spec)[None].to(loaded.device) for model in loaded.models]
    seeds = [seed_of(loaded.settings.SEED, picture.name, place) for place in range(len(asked))]
    dtype = devices.pick_dtype(loaded.settings.PRECISION, loaded.device)
    with inference_mode(), devices.autocast(loaded.device, dtype):
        found = answer_questions(loaded.models, loaded.tokenizer, pixels, [(0, one) for one in asked], options, seeds)
    return [answers[:number] for answers in found]


def tell(arguments: argparse.Namespace, found: "list[list[CaptionText]]") -> None:
    """Print the answers: of one question alone, of several behind the question."""
    if arguments.json:
        rows = [
            {"question": question,
             "answers": [{"answer": one.text, "log_prob": None if math.isnan(one.log_prob) else one.log_prob}
                         for one in answers]}
            for question, answers in zip(arguments.questions, found, strict=True)
        ]  # fmt: skip
        plain = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
        print(json.dumps(rows, indent=1, ensure_ascii=plain))
        return
    for question, answers in zip(arguments.questions, found, strict=True):
        for one in answers:
            print(one.text if len(found) == 1 else f"{question} {one.text}")
