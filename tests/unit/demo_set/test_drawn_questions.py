"""Questions about drawn scenes: their answers are true, and nothing but the picture tells them."""

from collections import Counter, defaultdict

import pytest

from nanocaption.demo_set import Asked, ask_scene, caption_truth
from nanocaption.demo_set.captions import NUMBERS
from nanocaption.demo_set.scenes import sample_scenes


@pytest.fixture(scope="module")
def asked() -> list[tuple[dict, list[Asked]]]:
    return [(scene, ask_scene(scene)) for scene in sample_scenes(7, 400)]


def said(one: Asked, answer: str) -> str:
    """The answer as a sentence that the check of captions can read."""
    words = one["question"].rstrip("?").split()
    if one["type"] == "colour":
        return f"the {words[-1]} {words[2]} {answer}"
    if one["type"] == "count":
        return f"{NUMBERS[int(answer)]} {words[2]}"
    if one["type"] == "relation":
        return f"the {answer} {' '.join(words[2:])}"
    return " ".join(words[3:-3])  # is there a red car in the picture: "red car"


def holds(text: str, scene: dict) -> bool:
    true, claims = map(sum, zip(*caption_truth(text, scene).values(), strict=True))
    assert claims, text
    return true == claims


def test_every_answer_is_true_of_its_scene_and_others_are_not(asked):
    colours, things = ("red", "blue", "green", "white"), ("fish", "bus", "car", "cat")
    wrong = {"colour": colours, "count": ("1", "2", "3"), "relation": things}
    seen: Counter[str] = Counter()
    for scene, questions in asked:
        for one in questions:
            seen[one["type"]] += 1
            assert holds(said(one, one["answer"]), scene) == (one["answer"] != "no"), (one, scene)
            if one["type"] in ("colour", "count"):
                others = [answer for answer in wrong[one["type"]] if answer != one["answer"]]
                assert not any(holds(said(one, answer), scene) for answer in others), "the control must be false"
            elif one["type"] == "relation":
                others = [name for name in things if name not in one["answer"] and name not in one["question"]]
                assert not any(holds(said(one, answer), scene) for answer in others), "its answer is the only one"
    assert seen.keys() == {"colour", "count", "relation", "is there"} and min(seen.values()) > 200


def test_a_scene_always_gives_the_same_questions_each_once(asked):
    for scene, questions in asked[:50]:
        assert ask_scene(scene) == questions
        assert len({one["question"] for one in questions}) == len(questions) >= 2
    assert ask_scene(asked[0][0] | {"look": 5}) != asked[0][1], "another look, other choices"


def test_yes_and_no_are_balanced_in_each_picture_and_nearly_so_for_each_kind(asked):
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in asked:
        answers = [one["answer"] for one in questions if one["type"] == "is there"]
        assert answers.count("yes") == answers.count("no") == len(answers) / 2 > 0
        for one in questions:
            if one["type"] == "is there":
                kinds[" ".join(one["question"].split()[3:-3])][one["answer"]] += 1
    best = sum(max(of.values()) for of in kinds.values()) / sum(of.total() for of in kinds.values())
    assert best < 0.65, "who knows only the thing that is asked for guesses little better than a coin"
