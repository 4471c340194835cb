"""The page of an evaluation of answers: scores by type and controls, what is confused, questions with their answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired

from nanocaption.data.questions import best_answer
from nanocaption.data.shards import Packed
from nanocaption.metrics.files import FEW_IMAGES
from nanocaption.score import report_html
from nanocaption.score.curves import Rows
from nanocaption.score.question_scores import Part, QuestionScores, Scored
from nanocaption.score.report import MAX_IMAGES, Words, choose_rows, write_page
from nanocaption.score.report_html import GalleryRow, Maps, fill, format_score

WORDS = Words("Questions", "answer", "questions", "questions, answers", "right")
MISTAKES = 12  # that are told, the most frequent ones
NAMES = {"exact_match": "Exact match", "token_f1": "Token F1", "anls": "ANLS", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L",
         "by_likelihood": "Choice by likelihood"}  # fmt: skip


class AnswerRow(Scored):
    """A question of the gallery."""

    attention: NotRequired[Maps]


def write_answers_report(
    path: Path, *, title: str, scores: QuestionScores, shown: Sequence[tuple[int, AnswerRow]],
    rows: Sequence[Scored], places: Mapping[str, Path | Packed], history: Rows = (),
) -> None:  # fmt: skip
    """Write one self-contained HTML page. shown: as shown_answers gives them, with attention where it is known.

    Raises ValueError for shown pictures that are missing or unreadable.
    """
    few = ": few, so these scores are rough" if scores["images"] < FEW_IMAGES else ""
    about = f"{scores['questions']:,} questions about {scores['images']:,} {scores.get('split', '')} pictures"
    cards = [(rank, _card_of(row)) for rank, row in shown]
    write_page(
        path, cards, len(rows), places, WORDS, [row["question"]["question"] for _, row in shown], title=title,
        subtitle=about + few, signature=scores.get("signature", ""), scores=_panels(scores),
        charts=report_html.charts_html(history, ()), confusions=_mistakes(rows),
    )  # fmt: skip


def shown_answers(rows: Sequence[Scored], most: int = MAX_IMAGES) -> list[tuple[int, AnswerRow]]:
    """(rank, row) of what the page shows, the right ones first, equals by file name; to the rows "attention" may be
    added."""
    ranked = sorted(rows, key=lambda row: (-row["accuracy"], row["file_name"]))
    return choose_rows([(rank, AnswerRow(**row)) for rank, row in enumerate(ranked, start=1)], most)


def _card_of(row: AnswerRow) -> GalleryRow:
    answers = Counter(row["question"]["answers"])
    people = [f"{text} ({count})" if len(answers) > 1 or count > 1 else text for text, count in answers.most_common()]
    said = [f"{asked} {answered}" for asked, answered in row["question"].get("turns", ())]
    card = GalleryRow(file_name=row["file_name"], caption=row["answer"], cider=row["accuracy"],
                      references=["right: " + ", ".join(people), *(f"before: {text}" for text in said)])  # fmt: skip
    return card | {"attention": row["attention"]} if "attention" in row else card


def _panels(scores: QuestionScores) -> str:
    rows = ""
    for name, value in scores["corpus"].items():
        interval = scores["intervals"].get(name)
        label = f"Accuracy ({scores['rule']})" if name == "accuracy" else NAMES.get(name, name)
        rows += fill("score", key="CIDEr" if name == "accuracy" else name, label=label, cells=_cell(value, interval))
    heads = fill("head", text="Model\n95 % interval")
    table = fill("table", kind="scores", heads=heads, rows=rows)
    panels = [fill("panel", title="Scores", note="Intervals over the pictures.", body=table)]
    for title, parts, note in (
        ("By question type", scores["question_types"], ""), ("By answer type", scores["answer_types"], ""),
        ("Controls", scores["controls"], "What is right without looking: a model that sees is well above."),
    ):  # fmt: skip
        panels.append(fill("panel", title=title, note=note, body=_parts_table(parts)))
    return "".join(panels)


def _cell(value: float, interval: tuple[float, float] | None) -> str:
    spread = f"<small>{'–'.join(map(format_score, interval))}</small>" if interval else ""
    return format_score(value) + spread


def _parts_table(parts: Mapping[str, Part]) -> str:
    rows = "".join(fill("score", key="part", label=kind, cells=f"{part['questions']:,}</td><td>"
                        + _cell(part["accuracy"], part["interval"])) for kind, part in parts.items())  # fmt: skip
    heads = "".join(fill("head", text=text) for text in ("Questions", "Right\n95 % interval"))
    return fill("table", kind="scores", heads=heads, rows=rows)


def _mistakes(rows: Sequence[Scored]) -> str:
    wrong = Counter((row["answer"] or "nothing", best_answer(row["question"])) for row in rows if row["accuracy"] == 0)
    most = wrong.most_common(MISTAKES)
    if not most:
        return ""
    items = "".join(fill("mistake", said=said, true=true, n=count, share=f"{100 * count / most[0][1]:.0f}")
                    for (said, true), count in most)  # fmt: skip
    return fill("panel", title="Most frequent mistakes", note="", body=fill("mistakes", items=items))
