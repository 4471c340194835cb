"""Scores of answers against plain statements of their rules, each with a rule changed that must be seen."""

import hashlib
import itertools
import json
import random
import re

import pytest

from nanocaption.score import answers as scores
from nanocaption.score.answers import (
    anls,
    exact_match,
    letter_in,
    likeliest,
    multiple_choice,
    options_in,
    relaxed_accuracy,
    token_f1,
    vqa_accuracy,
)

CONTRACTED = {
    "dont": "don't", "wont": "won't", "its": "its", "hes": "he's", "couldn'tve": "couldn't've", "oclock": "o'clock",
    "couldnt've": "couldn't've", "somebody'd": "somebodyd", "'ow'sat": "'ow's'at", "twas": "'twas", "yall": "y'all",
    "y'alld've": "y'all'd've", "whose": "whose", "shes": "shes", "im": "im", "id've": "id've", "lets": "lets",
}  # fmt: skip
# Of the evaluator's whole table, as its file of 2021 has it: what is in lower case and changes something.
TABLE_SHA256 = "853d25c89947b7f6d41f6c5f81b2d6c3119927f4b16f557fc1b03af6ef45605e"


class Evaluator:
    """The rules of the official evaluator one by one, with answers as the dicts that its loop works on."""

    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    digits = {word: str(number) for number, word in enumerate(words)} | {"none": "0"}
    marks = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")

    def punctuation(self, text: str) -> str:
        result = text
        threes = list(zip(text, text[1:], text[2:], strict=False))
        thousands = any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in threes)
        for mark in self.marks:
            beside_a_space = mark + " " in text or " " + mark in text
            result = result.replace(mark, "" if beside_a_space or thousands else " ")
        kept, gone = [], 0
        for place, letter in enumerate(result):
            if letter == "." and gone < 32 and not result[place + 1 : place + 2].isdecimal():
                gone += 1
            else:
                kept.append(letter)
        return "".join(kept)

    def digits_and_articles(self, text: str) -> str:
        words = [self.digits.get(word, word) for word in text.lower().split()]
        return " ".join(CONTRACTED.get(word, word) for word in words if word not in ("a", "an", "the"))

    def same(self, item: dict, other: dict) -> bool:
        return item == other

    def accuracy(self, texts: list[str], prediction: str) -> float:
        people = [{"answer_id": number, "answer": text} for number, text in enumerate(texts, start=1)]
        for person in people:
            person["answer"] = person["answer"].replace("\n", " ").replace("\t", " ").strip()
        said = prediction.replace("\n", " ").replace("\t", " ").strip()
        if len({person["answer"] for person in people}) > 1:
            for person in people:
                person["answer"] = self.digits_and_articles(self.punctuation(person["answer"]))
            said = self.digits_and_articles(self.punctuation(said))
        found = []
        for person in people:
            others = [other for other in people if not self.same(other, person)]
            found.append(min(1, float(len([other for other in others if other["answer"] == said])) / 3))
        return float(sum(found)) / len(found)


class WithoutIds(Evaluator):
    def same(self, item: dict, other: dict) -> bool:
        return item["answer"] == other["answer"]


class SimpleRule(Evaluator):
    def accuracy(self, texts: list[str], prediction: str) -> float:
        return min(1.0, sum(text == prediction for text in texts) / 3)


class AlwaysPlain(Evaluator):
    def accuracy(self, texts: list[str], prediction: str) -> float:
        return super().accuracy([f"{text} {number}" for number, text in enumerate(texts)], prediction)


def cases(number: int) -> list[tuple[list[str], str]]:
    """Ten answers and a prediction each, drawn from few texts so that they often agree, with all that is odd."""
    rng = random.Random(5)
    words = [
        *CONTRACTED, "a", "The", "two", "None", "ten", "Yes", "no", "red", "red", "blue", "3.5", "3.", "1,000", "$5",
        "x-ray", "and/or", "é", "٣,٤", "...", "it's", "¿", "U.S.A.",
    ]  # fmt: skip
    marks = ['"', " ", ",", ".", "?", "!", ":", "'", ";", "- ", "\t", "\n"]

    def text() -> str:
        said = rng.choice(" \t\n-,").join(rng.choices(words, k=rng.choice((1, 1, 1, 2, 3))))
        for _ in range(rng.choice((0, 0, 1, 2))):
            place = rng.randrange(len(said) + 1)
            said = said[:place] + rng.choice(marks) + said[place:]
        return said + "." * rng.choice((0, 0, 0, 40))

    found = []
    for _ in range(number):
        few = [text() for _ in range(rng.choice((1, 1, 2, 3, 5)))]
        few += [few[0].upper(), f"the {few[0]}", f" {few[0]}\n"] if rng.random() < 0.5 else []
        found.append((rng.choices(few, k=10), rng.choice([*few, text(), ""])))
    return found


def test_vqa_accuracy_is_the_official_evaluators_on_2000_random_cases():
    drawn = cases(2000)
    found = vqa_accuracy([people for people, _ in drawn], [said for _, said in drawn])
    expected = [Evaluator().accuracy(people, said) for people, said in drawn]
    assert found == expected
    assert min(map(found.count, (0.0, 1.0))) > 100 and len(set(found)) >= 5, "the cases are of all kinds"
    for other in (WithoutIds(), SimpleRule(), AlwaysPlain()):
        control = [other.accuracy(people, said) for people, said in drawn[:200]]
        assert control != expected[:200], "the control must differ"


def test_its_table_of_contractions_is_whole():
    table = scores._contractions()
    assert all(table.get(before, before) == after for before, after in CONTRACTED.items())
    assert hashlib.sha256(json.dumps(sorted(table.items())).encode()).hexdigest() == TABLE_SHA256


@pytest.mark.parametrize("n,expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_n_of_ten_equal_answers(n: int, expected: float):
    people = ["yes"] * n + [f"other {number}" for number in range(10 - n)]
    assert vqa_accuracy([people], ["Yes."]) == [pytest.approx(expected)]


def test_where_all_ten_agree_the_strings_are_compared_as_they_stand():
    assert vqa_accuracy([["yes"] * 10] * 3, ["Yes", "yes", " yes\n"]) == [0, 1, 1]
    assert vqa_accuracy([["yes"] * 9 + ["Yes"]], ["YES!"]) == [1]


def test_the_others_by_hand():
    assert exact_match([["The cat."], ["a", "dog"], ["an owl"]], ["cat", "Dog!", "owls"]) == [1, 1, 0]
    assert token_f1([["red car"], ["the"], ["x"], ["a b c", "c d"]], ["a red bus", "", "", "c c d"]) == [
        pytest.approx(0.5), 1, 0, pytest.approx(0.8)]  # fmt: skip
    assert anls([["hello"], ["Hello  World"], ["abcd"]], ["helo", "hello world", "xyzd"]) == [pytest.approx(0.8), 1, 0]
    assert anls([["abcd"]], ["abxy"]) == [0.5], "the threshold itself counts"
    numbers = [["100"], ["100"], ["12%"], ["Yes"], ["0"], ["1,000"], ["-10"]]
    said = ["105", "105.1", "0.12", "yes ", "0.0", "1049", "-9.6"]
    assert relaxed_accuracy(numbers, said) == [1, 0, 1, 1, 0, 1, 1]


def test_levenshtein_is_that_of_the_definition():
    def by_definition(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        replaced = by_definition(a[1:], b[1:]) + (a[0] != b[0])
        return min(by_definition(a[1:], b) + 1, by_definition(a, b[1:]) + 1, replaced)

    texts = ["".join(letters) for n in range(4) for letters in itertools.product("ab", repeat=n)] + ["abcba", "bacab"]
    assert all(scores._levenshtein(a, b) == by_definition(a, b) for a in texts for b in texts)


def test_a_choice_is_read_by_its_letter_alone_and_options_as_mmstar_lists_them():
    said = ["B", "(b)", "b.", "B: a dog", "Option B", "The answer is B.", "the correct option is (B)", "Answer: B"]
    assert [letter_in(text) for text in said] == ["B"] * len(said)
    assert [letter_in(text) for text in ("A dog", "Because", "", "bear", "AB")] == [""] * 5
    assert multiple_choice([["B"], ["b"], ["C"], ["A"]], ["B: a dog", "(B)", "B", "A dog"]) == [1, 1, 0, 0]
    question = "Which is it?\nOptions: A: a red, round ball, B: a cat, C: 3, D: none of these"
    assert options_in(question) == {"A": "a red, round ball", "B": "a cat", "C": "3", "D": "none of these"}
    assert options_in("Hint\n(A) left\n(B) right") == {"A": "left", "B": "right"}
    assert options_in("Is it A: or not?") == {} == options_in("What is it?")
    assert likeliest([{"A": -2.0, "B": -1.0}, {"A": -1.0, "B": -1.0}]) == ["B", "A"]


@pytest.mark.parametrize("score", [vqa_accuracy, exact_match, token_f1, anls, relaxed_accuracy, multiple_choice])
def test_what_cannot_be_scored_is_one_line(score):
    for answers, predictions, said in (
        ([["a"]], [], "0 predictions for 1 questions"), (["a"], ["a"], "lists of texts"), ([["a"]], "a", "lists of"),
        ([["a"], []], ["a", "b"], "1 questions have no answer, the first is number 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(said)) as error:
            score(answers, predictions)
        assert "\n" not in str(error.value)
    assert score([], []) == []
