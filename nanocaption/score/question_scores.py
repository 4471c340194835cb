"""Scores of the answers to a set's questions, with intervals, by type, and beside what needs no picture at all."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NotRequired, TypedDict

from nanocaption import metrics
from nanocaption.data.prepared import Question, Record
from nanocaption.data.questions import best_answer
from nanocaption.metrics.files import FEW_IMAGES
from nanocaption.score.answers import Answers, anls, exact_match, letter_in, multiple_choice, token_f1, vqa_accuracy

PEOPLE = 4  # answers of every question from which on VQA accuracy means something: four equal ones are right
LONG = 4.0  # words of an answer on average from which on it is scored as a text, too
COMMON = 12  # types that are told, those of most questions
BY_TYPE, SHUFFLED = "most frequent answer of the type", "pictures shuffled"


class Part(TypedDict):
    """Some of the questions."""

    accuracy: float
    interval: tuple[float, float]  # 95 %, over pictures
    questions: int


class QuestionScores(TypedDict):
    """The content of scores.json of a set of questions. All scores are fractions."""

    rule: str  # by which an answer is right: VQA, choice, or exact
    corpus: dict[str, float]  # accuracy, exact_match, token_f1, anls; of long answers Bleu_4, ROUGE_L, CIDEr
    intervals: dict[str, tuple[float, float]]  # of the first four
    questions: int
    images: int
    empty: int  # answers without a text
    question_types: dict[str, Part]
    answer_types: dict[str, Part]
    controls: dict[str, Part]
    dataset: NotRequired[str]
    split: NotRequired[str]
    decoding: NotRequired[dict[str, object]]
    checkpoints: NotRequired[list[str]]
    key: NotRequired[str]
    signature: NotRequired[str]


class Scored(TypedDict):
    """One question with its answer."""

    file_name: str
    question: Question
    answer: str
    accuracy: float


def rule_of(questions: Sequence[Question]) -> tuple[str, Callable[[Answers, Sequence[str]], list[float]]]:
    """(name, score) by which answers to these questions are right.

    VQA accuracy where people gave PEOPLE answers or more to each; the letter, where each has one letter for its answer;
    else the same text after SQuAD's normalisation.
    """
    if all(len(question["answers"]) >= PEOPLE for question in questions):
        return "VQA", vqa_accuracy
    single = [question["answers"][0] for question in questions if len(question["answers"]) == 1]
    if len(single) == len(questions) and all(letter_in(text) and len(text) == 1 for text in single):
        return "choice", multiple_choice
    return "exact", exact_match


def accuracy_of(questions: Sequence[Question], predictions: Sequence[str]) -> list[float]:
    """By the rule that suits the questions, a fraction for each."""
    return rule_of(questions)[1]([question["answers"] for question in questions], predictions)


def score_answers(
    records: Sequence[Record],
    predictions: Sequence[str],
    training: Iterable[Question] = (),
    shuffled: Sequence[str] | None = None,
    likeliest: Sequence[str] | None = None,
) -> tuple[QuestionScores, list[Scored]]:
    """(content of scores.json, a row for each question) of one answer per question of the records, in their order.

    training: what people answered there; the control answers by the most frequent one of each type. Where there is none
    the scored questions themselves say it, which is the most that such a control can reach. shuffled: what the same
    model answers where the pictures are exchanged for each other. likeliest: of multiple choice the letters that the
    model finds likeliest, whatever it writes.
    """
    asked = [(record["file_name"], question) for record in records for question in record["questions"]]
    questions, owners = [question for _, question in asked], [name for name, _ in asked]
    answers = [question["answers"] for question in questions]
    rule, right = rule_of(questions)
    columns = {"accuracy": right(answers, predictions)}
    columns |= {score.__name__: score(answers, predictions) for score in (exact_match, token_f1, anls)}
    if likeliest is not None:
        columns["by_likelihood"] = right(answers, likeliest)
    accuracy = columns["accuracy"]
    controls = {BY_TYPE: right(answers, most_frequent(questions, [*training] or questions))}
    if shuffled is not None:
        controls[SHUFFLED] = right(answers, shuffled)
    corpus = {name: sum(values) / len(values) for name, values in columns.items()}
    scores: QuestionScores = {
        "rule": rule, "corpus": corpus | text_scores(answers, predictions),
        "intervals": metrics.mean_intervals(columns, owners), "questions": len(questions), "images": len(set(owners)),
        "empty": sum(not text.strip() for text in predictions),
        "question_types": parts_of(accuracy, owners, [question_type(question) for question in questions]),
        "answer_types": parts_of(accuracy, owners, [answer_type(question) for question in questions]),
        "controls": {name: part_of(values, owners) for name, values in controls.items()},
    }  # fmt: skip
    rows = zip(asked, predictions, accuracy, strict=True)
    return scores, [Scored(file_name=name, question=question, answer=text, accuracy=value)
                    for (name, question), text, value in rows]  # fmt: skip


def text_scores(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """BLEU-4, ROUGE-L and CIDEr of long answers, as of captions; {} of short ones."""
    words = [len(text.split()) for own in answers for text in own]
    if sum(words) < LONG * len(words):
        return {}
    references = {str(number): list(own) for number, own in enumerate(answers)}
    measured = metrics.measure(metrics.prepare_references(references), {
        str(number): text for number, text in enumerate(predictions)})  # fmt: skip
    corpus = metrics.total(measured).corpus
    return {name: corpus[name] for name in ("Bleu_4", "ROUGE_L", "CIDEr")}


def question_type(question: Question) -> str:
    """VQA's, or another set's; else the first two words."""
    return question.get("type") or " ".join(question["question"].lower().split()[:2])


def answer_type(question: Question) -> str:
    """VQA's; of other sets what the answer looks like: yes/no, number, other."""
    best = best_answer(question).strip().lower()
    told = "yes/no" if best in ("yes", "no") else "number" if best.isdecimal() else "other"
    return question.get("answer_type") or told


def most_frequent(questions: Sequence[Question], known: Iterable[Question]) -> list[str]:
    """For each question the most frequent answer to the `known` ones of its type, whatever the picture shows."""
    counts: dict[str, Counter[str]] = {}
    overall: Counter[str] = Counter()
    for question in known:
        counts.setdefault(question_type(question), Counter())[best_answer(question)] += 1
        overall[best_answer(question)] += 1
    best = {kind: count.most_common(1)[0][0] for kind, count in counts.items()}
    return [best.get(question_type(question), overall.most_common(1)[0][0]) for question in questions]


def exchanged(number: int, seed: int = 0) -> list[int]:
    """For each of so many pictures another one, each taken once, at random; a single one has only itself."""
    order = list(range(number))
    random.Random(f"exchanged-{seed}").shuffle(order)
    return [after for _, after in sorted(zip(order, order[1:] + order[:1], strict=True))]


def part_of(values: Sequence[float], owners: Sequence[str]) -> Part:
    interval = metrics.mean_intervals({"accuracy": values}, owners)["accuracy"]
    return Part(accuracy=sum(values) / len(values), interval=interval, questions=len(values))


def parts_of(values: Sequence[float], owners: Sequence[str], kinds: Sequence[str]) -> dict[str, Part]:
    """Those of the COMMON kinds of most questions by name, the others together."""
    common = [kind for kind, _ in Counter(kinds).most_common(COMMON)]
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind if kind in common else "all others", []).append(place)
    return {kind: part_of([values[i] for i in its], [owners[i] for i in its])
            for kind in [*common, "all others"] if (its := places.get(kind))}  # fmt: skip


def answers_table(scores: QuestionScores) -> str:
    """The scores as lines of text, times 100."""
    names = {"accuracy": f"accuracy ({scores['rule']})", "exact_match": "exact match", "token_f1": "token F1",
             "anls": "ANLS", "by_likelihood": "choice by likelihood", "Bleu_4": "BLEU-4",
             "ROUGE_L": "ROUGE-L"}  # fmt: skip
    lines = [f"\n{'':37}{'':8}   95 % interval over pictures"]
    for name, value in scores["corpus"].items():
        lines.append(_line(names.get(name, name), value, scores["intervals"].get(name)))
    for title, parts in (("by question type", scores["question_types"]), ("by answer type", scores["answer_types"]),
                         ("controls: what is right without looking", scores["controls"])):  # fmt: skip
        lines.append(title)
        lines += [_line(f"  {kind}", part["accuracy"], part["interval"], f"{part['questions']:,} questions")
                  for kind, part in parts.items()]  # fmt: skip
    if scores["empty"]:
        lines.append(f"{scores['empty']:,} answers are empty.")
    if scores["images"] < FEW_IMAGES:
        lines.append(f"Only {scores['images']} pictures: these scores are rough.")
    return "\n".join([*lines, scores.get("signature", "")])


def _line(name: str, value: float, interval: tuple[float, float] | None, more: str = "") -> str:
    spread = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""
    return f"{name[:36]:37}{100 * value:8.1f}   {spread:<16}{more}".rstrip()
