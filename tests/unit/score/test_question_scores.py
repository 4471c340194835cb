"""Scores of a set's answers: the rule that suits it, intervals over pictures, types, controls."""

import random

import numpy as np
import pytest

from nanocaption import metrics
from nanocaption.score.answer_files import question_ids
from nanocaption.score.question_scores import (
    BY_TYPE,
    SHUFFLED,
    answers_table,
    exchanged,
    most_frequent,
    rule_of,
    score_answers,
)


def asked(text: str, *answers: str, **more) -> dict:
    return {"question": text, "answers": list(answers), **more}


def records() -> list[dict]:
    """Ten pictures with three questions each, of two types."""
    return [
        {"file_name": f"{n}.jpg", "split": "test", "captions": [], "questions": [
            asked("Is it red?", "yes" if n % 2 else "no", type="is", answer_type="yes/no"),
            asked("How many?", str(n % 3), type="count"), asked("Is it new?", "no", type="is", answer_type="yes/no")]}
        for n in range(10)
    ]  # fmt: skip


def test_the_rule_is_that_of_the_answers():
    assert rule_of([asked("a", *["x"] * 10), asked("b", *["y"] * 4)])[0] == "VQA"
    assert rule_of([asked("a", *["x"] * 10), asked("b", "y")])[0] == "exact"
    assert rule_of([asked("a", "B"), asked("b", "A")])[0] == "choice"
    assert rule_of([asked("a", "B"), asked("b", "dog")])[0] == "exact"
    assert rule_of([asked("a", "7"), asked("b", "3")])[0] == "exact", "a number is no letter"


def test_parts_and_controls_are_counted_question_by_question():
    given = ["yes", "0", "no"] * 10
    training = [asked("Is it?", "no", type="is")] * 3
    training += [asked("Is it?", "yes", type="is"), asked("n", "1", type="count")]
    scores, rows = score_answers(records(), given, training, ["no", "1", "no"] * 10)
    right = [row["accuracy"] for row in rows]
    assert right[:6] == [0, 1, 1, 1, 0, 1] and scores["corpus"]["accuracy"] == sum(right) / 30
    assert scores["question_types"]["is"]["accuracy"] == 15 / 20 and scores["question_types"]["is"]["questions"] == 20
    assert scores["answer_types"]["number"]["accuracy"] == 4 / 10, "without a type it is what the answer looks like"
    assert scores["controls"][BY_TYPE]["accuracy"] == (15 + 3) / 30 == scores["controls"][SHUFFLED]["accuracy"]
    assert scores["images"] == 10 and scores["questions"] == 30 and scores["empty"] == 0
    table = answers_table(scores)
    assert "accuracy (exact)" in table and SHUFFLED in table and "Only 10 pictures" in table
    assert set(score_answers(records(), given)[0]["controls"]) == {BY_TYPE}


def test_the_most_frequent_answer_goes_by_type_and_falls_back_on_all():
    known = [asked("a", "yes", type="is")] * 2 + [asked("b", "no", type="is"), *[asked("c", "2", type="count")] * 3]
    assert most_frequent([asked("x", "?", type="is"), asked("y", "?", type="new")], known) == ["yes", "2"]


def test_intervals_draw_pictures_with_all_their_questions():
    rng = random.Random(3)
    owners = [f"{n}" for n in range(60) for _ in range(5)]
    of_picture = {name: rng.random() for name in set(owners)}
    together = [float(of_picture[name] < 0.5) for name in owners]  # all questions of a picture right, or none
    (low, high), = metrics.mean_intervals({"a": together}, owners).values()
    apart, = metrics.mean_intervals({"a": together}, list(map(str, range(300)))).values()
    assert low < np.mean(together) < high
    assert high - low > 1.7 * (apart[1] - apart[0]), "as 300 pictures they look surer than they are"
    names = [str(n) for n in range(40) for _ in range(1 + n % 4)]
    values = [rng.random() for _ in names]
    found = metrics.mean_intervals({"a": values, "b": [1 - value for value in values]}, names)
    assert found["b"] == pytest.approx((1 - found["a"][1], 1 - found["a"][0]))


def test_long_answers_are_scored_as_texts_too():
    long = [{"file_name": f"{n}.jpg", "split": "test", "captions": [], "questions": [
        asked("What?", f"a man with hat number {n} stands on the beach")]} for n in range(6)]  # fmt: skip
    scores, _ = score_answers(long, [f"a man with hat number {n} stands on the beach" for n in range(6)])
    assert scores["corpus"]["Bleu_4"] == pytest.approx(1) and {"ROUGE_L", "CIDEr"} <= scores["corpus"].keys()
    assert "Bleu_4" not in score_answers(records(), ["x"] * 30)[0]["corpus"]


def test_pictures_are_exchanged_for_others_each_once():
    for number in (2, 3, 10, 101):
        order = exchanged(number)
        assert sorted(order) == list(range(number)) and all(place != other for place, other in enumerate(order))
    assert exchanged(1) == [0] and exchanged(10) == exchanged(10)


def test_ids_are_the_sets_own_where_they_tell_questions_apart():
    assert question_ids([asked("a", "x", id=7), asked("b", "x", id="q")]) == [7, "q"]
    assert question_ids([asked("a", "x", id=7), asked("b", "x", id="7")]) == [0, 1]
    assert question_ids([asked("a", "x", id=7), asked("b", "x")]) == [0, 1]
