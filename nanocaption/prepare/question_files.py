"""Readers of question sets: a file -> one Row per picture, whose `captions` are its questions, and notes.

Which layout a file has is told by its content (`SHAPES`, and entries of `questions_in`):

    VQAv2, OK-VQA   {"questions": [{question_id, image_id, question}]}, and beside it {"annotations": [{question_id,
                    question_type, answer_type, answers: [{answer}]}]}
    GQA             {"id": {"question", "imageId", "answer", "types"}}
    TextVQA         {"data": [{question_id, image_id, question, answers: [...], set_name}]}
    lists           [{"image", "question", "answer" or "answers", "weights", ...}], as VizWiz's and LAVIS's; JSON, JSON
                    lines, CSV and TSV
    LLaVA           [{"image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}], and messages
    chat rows       [{"images": [...], "texts": [{"user", "assistant"}]}]

Whatever the layout, a question may hold a conversation: "[USER] ... [ASSISTANT] ... [USER] ...": its last question is
the one that is asked, what was said before are its turns.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanocaption.base.files import cases
from nanocaption.data.prepared import Question
from nanocaption.prepare.caption_files import Row, Rows, merged, read_text
from nanocaption.prepare.caption_json import ASSISTANTS, have, id_of, in_lines, name_in, picture_in

Entry = Mapping[str, Any]
USERS = ("human", "user")
ID_KEYS = ("question_id", "questionId", "id", "index", "qid")
TAGS = re.compile(r"\[(USER|ASSISTANT)\]")
IMAGE_MARK = re.compile(r"\s*<image>\s*")
FEW = 50  # entries of a list that say what it is


def read_questions(path: Path, answers: Sequence[Path] = ()) -> Rows:
    """The rows of a file. answers: files of VQA's kind that may hold the annotations of its questions."""
    data = load(path)
    if is_vqa(data):
        return vqa_rows(data, path, answers)
    return rows_of(entries_of(data), path)


def kind_of(path: Path) -> str | None:
    """What a file of questions is called: "VQA", "VQA annotations", "GQA", ...; None where it is none.

    Raises ValueError where it is no whole JSON.
    """
    data = load(path)
    if is_vqa(data):
        return "VQA"
    if is_annotations(data):
        return "VQA annotations"
    entries = entries_of(data)
    known = any(questions_in(entry) and picture_of(entry) is not None for entry in entries[:FEW])
    return (("GQA" if is_gqa(data) else "TextVQA" if is_textvqa(data) else "list of questions") if known else None)


def load(path: Path) -> Any:
    """JSON, JSON lines, or a table as a list of its rows."""
    text = read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return in_lines(text) or []


def is_vqa(data: Any) -> bool:
    return isinstance(data, dict) and have(data.get("questions"), "question_id", "image_id", "question")


def is_annotations(data: Any) -> bool:
    return isinstance(data, dict) and have(data.get("annotations"), "question_id", "image_id", "answers")


def is_textvqa(data: Any) -> bool:
    return isinstance(data, dict) and have(data.get("data"), "question")


def is_gqa(data: Any) -> bool:
    return isinstance(data, dict) and bool(data) and have([*data.values()], "question", "imageId")


def entries_of(data: Any) -> list[Entry]:
    """The entries of a file, each of one picture; [] where it has none of a known kind."""
    if is_gqa(data):
        return [{"id": number, **entry, "image": str(entry["imageId"])} for number, entry in data.items()]
    if is_textvqa(data):
        return data["data"]
    return data if have(data) else []


def vqa_rows(data: Any, path: Path, answers: Sequence[Path]) -> Rows:
    """The questions of a file with the annotations of another one of `answers`, joined by their ids."""
    found: dict[str, Entry] = {}
    wanted = {str(entry["question_id"]) for entry in data["questions"]}
    for file in answers:
        its = {str(entry["question_id"]): entry for entry in load(file)["annotations"]}
        found |= {number: entry for number, entry in its.items() if number in wanted}
    bare = [str(entry["question_id"]) for entry in data["questions"] if str(entry["question_id"]) not in found]
    if len(bare) == len(wanted):
        raise ValueError(f"{path}: none of its {len(wanted):,} questions has an answer; put the file of annotations of "
                         "the same split beside it (v2_mscoco_train2014_annotations.json)")
    notes = [f"{path.name}: {cases(bare, 'question')} without an annotation, left out"] * bool(bare)
    entries = [{**found[str(entry["question_id"])], **entry} for entry in data["questions"]
               if str(entry["question_id"]) in found]  # fmt: skip
    rows, more = rows_of(entries, path)
    return rows, notes + more


def rows_of(entries: Iterable[Entry], path: Path) -> Rows:
    """One row a picture; what names no picture, several or no question is left out, and noted."""
    rows, lost, several = [], [], []
    for number, entry in enumerate(entries, start=1):
        questions, name = questions_in(entry), picture_of(entry)
        if isinstance(entry.get("images"), list) and len(entry["images"]) > 1:
            several.append(f"entry {number}")
        elif name is None or not questions:
            lost.append(f"entry {number}")
        else:
            rows.append(Row(name, split_in(entry), questions))
    notes = [f"{path.name}: {cases(lost, 'entry')} without a picture or a question, left out"] * bool(lost)
    notes += [f"{path.name}: {cases(several, 'entry')} about several pictures, left out"] * bool(several)
    return list(merged(rows, path)), [note.replace("entrys", "entries") for note in notes]


def split_in(entry: Entry) -> Any:
    return entry.get("split") or entry.get("set_name")


def picture_of(entry: Entry) -> Any:
    """The picture that an entry names, as text; None where it names none."""
    talk = talk_in(entry) or []
    name = name_in(dict(entry)) if "image" in entry or "images" in entry or "image_id" not in entry else None
    name = next((one for one in (name, picture_in(talk), entry.get("image_id")) if one is not None), None)
    number = id_of(name)
    return str(number) if number is not None else name


def talk_in(entry: Entry) -> list[dict[str, Any]] | None:
    talk = entry.get("conversations", entry.get("messages"))
    return talk if have(talk) else None


def questions_in(entry: Entry) -> list[Question]:
    """The questions of an entry of any layout with their answers, [] where it asks nothing."""
    about: Question = {"question": "", "answers": []}
    if (number := next((id_of(entry[key]) for key in ID_KEYS if key in entry), None)) is not None:
        about["id"] = number
    for key, names in (("type", ("question_type", "type", "category")), ("answer_type", ("answer_type",)),
                       ("source", ("source", "dataset"))):  # fmt: skip
        said = next((entry[name] for name in names if isinstance(entry.get(name), str) and entry[name]), None)
        if said is not None:
            about[key] = said  # type: ignore[literal-required]
    if "type" not in about and isinstance(entry.get("types"), dict):
        about["type"] = str(entry["types"].get("structural") or entry["types"].get("detailed") or "")
    if have(entry.get("texts"), "user", "assistant"):
        pairs = [(turn["user"], turn["assistant"]) for turn in entry["texts"]]
        source = next((turn["source"] for turn in entry["texts"] if turn.get("source")), None)
        return asked_in_turn(pairs, about | ({"source": str(source)} if source and "source" not in about else {}))
    if (talk := talk_in(entry)) is not None:
        return asked_in_turn(pairs_of(talk), about)
    if isinstance(entry.get("question"), str):
        return [one_question(entry, about)]
    return []


def one_question(entry: Entry, about: Question) -> Question:
    """The question of an entry with all answers, equal ones too; with tags in its text, the last one that they mark."""
    turns, question = parse_tags(entry["question"])
    answers, weights = answers_of(entry)
    found = about | {"question": question, "answers": answers}
    found |= {"weights": weights} if weights else {}
    return found | {"turns": turns} if turns else found


def answers_of(entry: Entry) -> tuple[list[Any], list[float]]:
    """(the answers as they stand, what each weighs where the entry says so)"""
    given = next((entry[key] for key in ("answers", "answer", "multiple_choice_answer", "label") if key in entry), None)
    cells = given if isinstance(given, list | tuple) else [given]
    answers = [cell.get("answer") if isinstance(cell, dict) else cell for cell in cells]
    answers = [str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text for text in answers]
    weights = entry.get("weights", entry.get("answer_weights"))
    fits = isinstance(weights, list) and len(weights) == len(answers) and all(
        isinstance(weight, int | float) and weight >= 0 for weight in weights)  # fmt: skip
    return answers, [float(weight) for weight in weights] if fits and weights else []


def parse_tags(text: str) -> tuple[list[tuple[str, str]], str]:
    """"[USER] a [ASSISTANT] b [USER] c [ASSISTANT]" -> ([("a", "b")], "c"); a text without tags is the question."""
    parts = TAGS.split(text)
    if len(parts) == 1:
        return [], text.strip()
    said = [(tag, IMAGE_MARK.sub(" ", part).strip()) for tag, part in zip(parts[1::2], parts[2::2], strict=True)]
    turns: list[tuple[str, str]] = []
    question = parts[0].strip()
    for tag, part in said:
        if tag == "USER":
            question = f"{question} {part}".strip() if question else part
        elif part:  # an empty one is where the answer goes
            turns.append((question, part))
            question = ""
    if not question and turns:  # it ends with an answer: the one that is asked for stands there
        question = turns.pop()[0]
    return turns, question


def pairs_of(talk: Sequence[Entry]) -> list[tuple[Any, Any]]:
    """(what was asked, what was answered) of a conversation; a system's words are none of it."""
    pairs: list[tuple[Any, Any]] = []
    asked: str | None = None
    for turn in talk:
        who, said = turn.get("from", turn.get("role")), text_in(turn)
        if who in USERS:
            asked = said
        elif who in ASSISTANTS and asked is not None:
            pairs.append((asked, said))
            asked = None
    return pairs


def text_in(turn: Entry) -> str:
    said = turn.get("value", turn.get("content"))
    parts = said if isinstance(said, list) else [said]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return " ".join(text for text in texts if isinstance(text, str))


def asked_in_turn(pairs: Sequence[tuple[Any, Any]], about: Question) -> list[Question]:
    """Each question of a conversation with what was said before it. Their ids are told apart by their number."""
    found: list[Question] = []
    turns: list[tuple[str, str]] = []
    for number, (asked, said) in enumerate(pairs):
        question = IMAGE_MARK.sub(" ", str(asked)).strip()
        own = about | {"question": question, "answers": [said]} | ({"turns": list(turns)} if turns else {})
        if "id" in about and len(pairs) > 1:
            own["id"] = f"{about['id']}-{number}"
        found.append(own)
        turns.append((question, str(said)))
    return found


def readers_of(kinds: Mapping[Path, str]) -> dict[Path, Callable[[], Rows]]:
    """For each file of questions what reads it; those of annotations are read with them. kinds: as kind_of."""
    answers = [path for path, kind in kinds.items() if kind == "VQA annotations"]

    def reader(path: Path) -> Callable[[], Rows]:
        return lambda: read_questions(path, answers)

    return {path: reader(path) for path, kind in kinds.items() if kind != "VQA annotations"}
