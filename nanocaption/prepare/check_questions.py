"""The check of questions: what is one, and what of the others is told."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nanocaption.data.caption_text import fault
from nanocaption.data.prepared import Question, Record
from nanocaption.data.questions import best_answer
from nanocaption.prepare.check_report import Tally

OFTEN = 5  # answers that are told as the most frequent


def clean_questions(records: Sequence[Record]) -> tuple[list[Record], dict[str, Any]]:
    """The records with the questions that can be used, or with none, and what the report says of questions.

    A question is refused that is no text or has no word, that has no answer, or answers without any weight; of several
    answers those that are no text are left out. Twice the same question of one picture with the same answers is one.
    """
    refused, types, answers = Tally(), Counter[str](), Counter[str]()
    checked = given = 0
    cleaned: list[Record] = []
    for record in records:
        kept: list[Question] = []
        said = set()
        for question in record.get("questions", ()):
            checked += 1
            usable, reason = usable_question(question)
            if usable is not None:
                key = (usable["question"], *usable["answers"], *map(tuple, usable.get("turns", ())))
                usable, reason = (None, "said twice with the same answers") if key in said else (usable, "")
                said.add(key)
            if usable is None:
                refused.add(reason, f"{record['file_name']}: {ascii(question.get('question'))[:80]}")
                continue
            kept.append(usable)
            given += len(usable["answers"])
            types[usable.get("type", "none given")] += 1
            answers[best_answer(usable)] += 1
        cleaned.append(record | {"questions": kept})
    number = answers.total()
    return cleaned, {
        "checked": checked, "kept": number, "answers": given, "refused": refused.told(),
        "types": dict(types.most_common()),
        "most_frequent": [[answer[:60], count / number] for answer, count in answers.most_common(OFTEN)],
    }  # fmt: skip


def usable_question(question: Question) -> tuple[Question | None, str]:
    """(the question with the answers that are some, "") or (None, why it cannot be used)."""
    text = question.get("question")
    if reason := fault(text):
        return None, f"question {reason}"
    if not any(letter.isalnum() for letter in str(text)):
        return None, "question empty" if not str(text).strip() else "no word in the question"
    weights = question.get("weights")
    good = [place for place, answer in enumerate(question["answers"])
            if not fault(answer) and str(answer).strip() and (weights is None or weights[place] > 0)]  # fmt: skip
    if not good:
        given = [answer for answer in question["answers"] if answer is not None]
        return None, "answer empty" if all(isinstance(answer, str) for answer in given) else "answer not text"
    for asked, said in question.get("turns", ()):
        if fault(asked) or fault(said):
            return None, "a turn before it is no text"
    usable = question | {"answers": [question["answers"][place] for place in good]}
    return usable | ({"weights": [weights[place] for place in good]} if weights else {}), ""
