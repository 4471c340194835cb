"""Questions about pictures: those of a prepared set, and what a model learns from them.

A question may come with all the answers that people gave, equal ones as well. Scores read them as they are; what a
model learns is the answer that has most of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanocaption.base.files import cases
from nanocaption.data.caption_text import normalise
from nanocaption.data.prepared import Question, Record, load_records
from nanocaption.data.shards import is_streamed


class Asking(NamedTuple):
    """A question as a model reads it, its text normalised."""

    question: str
    answer: str  # that it should give; "" where that is not known
    turns: tuple[tuple[str, str], ...] = ()  # questions and answers before

    def texts(self) -> list[str]:
        return [text for turn in self.turns for text in turn] + [self.question, self.answer]


def questions_of(record: Record) -> list[Question]:
    """The questions of a picture: its own; of a drawn one those that its scene gives."""
    if "questions" in record or "scene" not in record:
        return record.get("questions", [])
    from nanocaption.demo_set import ask_scene  # and with it Pillow

    stem = PurePosixPath(record["file_name"]).stem
    return [
        Question(question=one["question"], answers=[one["answer"]], id=f"{stem}-{number}", type=one["type"],
                 answer_type=one["answer_type"])
        for number, one in enumerate(ask_scene(record["scene"]))
    ]  # fmt: skip


def asking(question: Question, case: str = "keep") -> Asking:
    """A question as a model learns it. case: CAPTION_CASE."""
    turns = tuple((normalise(asked, case), normalise(said, case)) for asked, said in question.get("turns", ()))
    return Asking(normalise(question["question"], case), normalise(best_answer(question), case), turns)


def best_answer(question: Question) -> str:
    """The answer with the most weight, equal ones together; of several the first."""
    weights: dict[str, float] = {}
    for answer, weight in zip(question["answers"], weights_of(question), strict=True):
        weights[answer] = weights.get(answer, 0.0) + weight
    return max(weights, key=weights.__getitem__)


def weights_of(question: Question) -> Sequence[float]:
    return question.get("weights") or [1.0] * len(question["answers"])


def texts_of(records: Iterable[Record], case: str) -> list[str]:
    """All that a tokenizer should know well: every question with the answer that is learnt."""
    return [text for record in records for question in record.get("questions", ())
            for text in asking(question, case).texts() if text]  # fmt: skip


def with_captions(records: Iterable[Record], question: str) -> tuple[list[Record], int]:
    """The records whose captions, each once, are also answers to `question`; and how many these are."""
    found: list[Record] = []
    number = 0
    for record in records:
        own = [Question(question=question, answers=[text]) for text in dict.fromkeys(record["captions"])]
        number += len(own)
        found.append(record | {"questions": [*record["questions"], *own]})
    return found, number


def digest_of(records: Iterable[Record]) -> str:
    """sha256 over the pictures and all that is asked about them."""
    total = hashlib.sha256()
    for record in records:
        total.update(json.dumps([record["file_name"], record.get("questions")], sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def load_questions(
    folder: Path, splits: str | Sequence[str], cutoff: int | None = None, tell: Callable[[str], object] = print
) -> list[Record]:
    """The pictures of some splits that have questions, with these in place; of drawn ones made here.

    cutoff: as in load_records, which reads them. tell: is told which have none and are left out. ValueError where no
    picture of a split has any.
    """
    records = load_records(folder, splits, cutoff)
    if is_streamed(folder):
        raise ValueError(f"{folder} is streamed, and holds captions alone: prepare its questions without STREAM")
    asked: list[Record] = [record | {"questions": own} for record in records if (own := questions_of(record))]
    for split in [splits] if isinstance(splits, str) else splits:
        if not any(record["split"] == split for record in asked):
            raise ValueError(f"{folder}: no picture of the split {split!r} has a question; docs/questions.md says what "
                             "sets do. To train on its captions set QUESTIONS = False (--no-questions)")
    if bare := [record["file_name"] for record in records if not questions_of(record)]:
        tell(f"{folder}: {cases(bare, 'picture')} of {len(records):,} without a question, left out")
    return asked
