"""Files of answers: anyone's, and the results folder of an evaluation of answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanocaption.base.files import cases, read_log, write_atomically
from nanocaption.data.prepared import Question, Record
from nanocaption.metrics.files import id_key
from nanocaption.score.question_scores import QuestionScores

ID_KEYS, TEXT_KEYS = ("question_id", "questionId", "id"), ("answer", "prediction", "text", "response")
FORM = '[{"question_id": 7, "answer": "yes"}, ...], JSON lines of these, or {"7": "yes", ...}'


def question_ids(questions: Sequence[Question]) -> list[int | str]:
    """The id of each question in files: its own where all have one and no two the same, else its place from 0."""
    ids = [question["id"] for question in questions if "id" in question]
    return ids if len(ids) == len(questions) == len(set(map(id_key, ids))) else list(range(len(questions)))


def read_answers(path: Path, questions: Sequence[Question], only_predicted: bool = False) -> list[str | None]:
    """The answer in the file `path` to each question, in their order; None only with `only_predicted`.

    Raises ValueError with one line for another form, ids that are no question's or come twice, and missing ones.
    """
    found = {}
    twice = []
    for number, text in _pairs(path):
        key = id_key(number)
        if key in found:
            twice.append(str(number))
        found[key] = text
    if twice:
        raise ValueError(f"{path}: {cases(twice, 'question')} answered twice; keep one answer of each")
    ids = question_ids(questions)
    places = {id_key(number): place for place, number in enumerate(ids)}
    if strangers := [str(key) for key in found if key not in places]:
        raise ValueError(f"{path}: {cases(strangers, 'answer')} to questions that the split does not have (its first "
                         f"question_id is {ids[0]!r}): name the split that was answered, --split NAME")  # fmt: skip
    missing = [str(number) for number in ids if id_key(number) not in found]
    if missing and (not only_predicted or len(missing) == len(ids)):
        raise ValueError(f"{path} has no answer to {cases(missing, 'question')}; to score those that it has give "
                         "--only-predicted")  # fmt: skip
    return [found.get(id_key(number)) for number in ids]


def _pairs(path: Path) -> list[tuple[int | str, str]]:
    """(question_id, answer) as they stand in the file."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        data: Any = json.loads(text)
    except ValueError:
        try:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(f"{path} is neither JSON nor JSON lines ({error}); answers are {FORM}") from None
    if isinstance(data, dict) and isinstance(data.get("annotations", data.get("answers")), list):
        data = data.get("annotations", data.get("answers"))
    entries = list(data.items()) if isinstance(data, dict) else data if isinstance(data, list) else [data]
    rows = [_pair(row) if isinstance(row, dict) else row if isinstance(row, tuple) else (None, None) for row in entries]
    if not all(isinstance(number, int | str) and isinstance(said, str) for number, said in rows):
        raise ValueError(f"{path} is not of the form of answers: {FORM}")
    return rows


def _pair(row: Mapping[str, Any]) -> tuple[Any, Any]:
    number, text = (next((row[key] for key in keys if key in row), None) for keys in (ID_KEYS, TEXT_KEYS))
    return number, str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text


def write_answers(output: Path, records: Sequence[Record], answers: Sequence[str], scores: QuestionScores) -> None:
    """predictions.json (VQA's submission format), questions.json and scores.json in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    asked = [(record["file_name"], question) for record in records for question in record["questions"]]
    ids = question_ids([question for _, question in asked])
    predictions = [{"question_id": number, "answer": text, "file_name": name}
                   for number, text, (name, _) in zip(ids, answers, asked, strict=True)]  # fmt: skip
    questions = [{"question_id": number, "image": name, **{k: v for k, v in question.items() if k != "id"}}
                 for number, (name, question) in zip(ids, asked, strict=True)]  # fmt: skip
    for name, content in (("predictions", predictions), ("questions", questions), ("scores", scores)):
        write_atomically(output / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False))


def read_kept_answers(folder: Path, key: str) -> dict[int, list[str]]:
    """{place of a picture in the split: the answers about it} of finished batches with this key, see results.open_kept;
    a torn last line is left out."""
    rows = [row for path in sorted(folder.glob(f"captions-{key}-*.jsonl")) for row in read_log(path)]
    return {row["image"]: row["answers"] for row in rows
            if type(row.get("image")) is int and isinstance(row.get("answers"), list)}  # fmt: skip
