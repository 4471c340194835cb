"""Scores of answers to questions: one fraction a question, each function of the form (answers, predictions).

answers: for every question the texts that people gave, one or several. predictions: for every question the text to be
judged. All raise ValueError where there are not equally many of both, or a question has no answer. Without torch.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

Answers = Sequence[Sequence[str]]

# The official evaluator of VQA (GT-Vision-Lab/VQA, PythonEvaluationTools, version of 2021) reads these as one thing.
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MOST_PERIODS = 32  # it hands re.UNICODE to re.sub as the count
# What it gives an apostrophe, as the words come out.
_CONTRACTED = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
    how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
    shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
    there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've"""
_CONTRACTED_TWICE = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"""


def _contractions() -> dict[str, str]:
    """How a word went in -> how it comes out; of two apostrophes either may have been missing."""
    found = {word.replace("'", ""): word for word in _CONTRACTED.split()}
    for word in _CONTRACTED_TWICE.split():
        head, middle, tail = word.split("'")
        found |= {f"{head}{middle}'{tail}": word, f"{head}'{middle}{tail}": word}
    found |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    found |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return found | {"somebody'd": "somebodyd"}  # its table has this one the wrong way round


_CONTRACTIONS = _contractions()


def vqa_accuracy(answers: Answers, predictions: Sequence[str]) -> list[float]:
    """VQA accuracy to the bit as the official evaluator gives it, before its rounding to percent.

    answers: the ten that people gave to each question. Each of them is left out in turn, and of the others those count
    that equal the prediction: min(1, count / 3), and the mean of the ten. So with n of ten equal to it: 0.3, 0.6, 0.9
    for n = 1, 2, 3, and 1 from 4 on. Texts are compared as `vqa_text` writes them, but where all ten are the same
    string they are compared as they stand: there "Yes" is not "yes". With fewer answers the rule is the same, and a
    single one is never met: those sets are for `exact_match`.
    """
    return _of_each(answers, predictions, _vqa_one)


def _vqa_one(answers: Sequence[str], prediction: str) -> float:
    texts = [_one_line(text) for text in answers]
    said = _one_line(prediction)
    if len(set(texts)) > 1:
        texts, said = [vqa_text(text) for text in texts], vqa_text(said)
    equal = [text == said for text in texts]
    shares = [min(1, float(sum(equal) - own) / 3) for own in equal]
    return float(sum(shares)) / len(shares)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_text(text: str) -> str:
    """A text as the official evaluator compares it: punctuation, then case, numbers, articles and contractions.

    A mark of punctuation is deleted where it touches a space anywhere in the text, or where a comma stands between two
    digits anywhere; else it becomes a space. Of the periods those stay that a digit follows.
    """
    plain = text
    of_numbers = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        touches = of_numbers or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if touches else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def squad_text(text: str) -> str:
    """A text as SQuAD compares it: lower case, no ASCII punctuation, no a, an, the, single spaces."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answers: Answers, predictions: Sequence[str]) -> list[float]:
    """1 where the prediction is one of the answers, both as `squad_text` writes them, else 0."""
    return _of_each(answers, predictions, _best(lambda answer, said: float(squad_text(answer) == squad_text(said))))


def token_f1(answers: Answers, predictions: Sequence[str]) -> list[float]:
    """F1 of the words that prediction and answer share, as often as both have them; of several answers the best.

    Words as `squad_text` writes them. Both without words are 1, one without words is 0.
    """
    return _of_each(answers, predictions, _best(_f1))


def _f1(answer: str, said: str) -> float:
    theirs, own = Counter(squad_text(answer).split()), Counter(squad_text(said).split())
    shared = (theirs & own).total()
    if not theirs or not own:
        return float(theirs == own)
    precision, recall = shared / own.total(), shared / theirs.total()
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def anls(answers: Answers, predictions: Sequence[str], threshold: float = 0.5) -> list[float]:
    """Average normalised Levenshtein similarity (ST-VQA, DocVQA): 1 - distance / longer length; of several the best.

    Texts in lower case with single spaces. What is below `threshold` counts 0.
    """

    def similarity(answer: str, said: str) -> float:
        a, b = (" ".join(text.lower().split()) for text in (answer, said))
        alike = 1 - _levenshtein(a, b) / max(len(a), len(b), 1)
        return alike if alike >= threshold else 0.0

    return _of_each(answers, predictions, _best(similarity))


def _levenshtein(a: str, b: str) -> int:
    """Fewest letters put in, left out or replaced that make one text of the other."""
    row = list(range(len(b) + 1))
    for number, letter in enumerate(a, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(b, start=1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != other))
    return row[-1]


def relaxed_accuracy(answers: Answers, predictions: Sequence[str], tolerance: float = 0.05) -> list[float]:
    """ChartQA's: 1 where the number is at most `tolerance` of the answer's away, or the text the same but for case.

    "12%" is 0.12. An answer of 0 allows no tolerance: it is compared as text.
    """

    def right(answer: str, said: str) -> float:
        wanted, found = _number_in(answer), _number_in(said)
        if wanted and found is not None:
            return float(abs(found - wanted) / abs(wanted) <= tolerance)
        return float(answer.strip().lower() == said.strip().lower())

    return _of_each(answers, predictions, _best(right))


def _number_in(text: str) -> float | None:
    """The number that a text is, without the commas between its thousands; None where it is none."""
    found = re.fullmatch(r"[$€£]?\s*([-+]?[\d,]*\.?\d+(?:[eE][-+]?\d+)?)\s*(%?)", text.strip())
    if found is None:
        return None
    return float(found[1].replace(",", "")) / (100 if found[2] else 1)


def multiple_choice(answers: Answers, predictions: Sequence[str]) -> list[float]:
    """1 where the prediction names the letter of the right option, as `letter_in` reads it, else 0.

    answers: the letters, as MMStar has them, e.g. [["B"], ["D"]].
    """
    return _of_each(answers, predictions, _best(lambda answer, said: float(letter_in(said) == letter_in(answer) != "")))


def letter_in(text: str) -> str:
    """The option that an answer names: "B", "(b)", "B: a dog", "Option B.", "The answer is B"; "" where it names none.

    The letter must stand by itself: "A dog" could be a sentence, and names none.
    """
    lead = r"(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*"
    found = re.match(rf"\s*(?:{lead})?\(?([A-Z])(?:\)|[.:,]|\s*$)", text, re.IGNORECASE)
    return found[1].upper() if found else ""


def options_in(question: str) -> dict[str, str]:
    """The options that a question lists, as MMStar does: "... Options: A: a dog, B: a cat" -> {"A": "a dog", ...}.

    {} where it does not list at least two, by the letters from A on in their order.
    """
    listed = re.split(r"\boptions?\s*:", question, flags=re.IGNORECASE)[-1]
    marks = list(re.finditer(r"(?:^|[\s,;(])([A-Z])\s*[:.)]\s*", listed))
    found: dict[str, str] = {}
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(listed)], strict=False):
        if mark[1] != chr(ord("A") + len(found)):
            break
        found[mark[1]] = listed[mark.end() : end].strip().rstrip(",;")
    return found if len(found) > 1 else {}


def likeliest(log_probs: Sequence[Mapping[str, float]]) -> list[str]:
    """For each question the option of the highest log-probability; of equals the first. For `multiple_choice`.

    log_probs: option -> its log-probability as the answer, e.g. the letter's, or the text's divided by its tokens.
    """
    if any(not options for options in log_probs):
        raise ValueError("a question has no options: give the log-probability of each of them")
    return [max(options, key=options.__getitem__) for options in log_probs]


def _best(one: Callable[[str, str], float]) -> Callable[[Sequence[str], str], float]:
    """The largest of one(answer, prediction) over the answers."""
    return lambda answers, said: max(one(answer, said) for answer in answers)


def _of_each(answers: Answers, predictions: Sequence[str], one: Callable[[Sequence[str], str], float]) -> list[float]:
    if isinstance(predictions, str) or any(isinstance(own, str) for own in answers):
        raise ValueError("answers are lists of texts, one list a question, and predictions a list of texts")
    if len(answers) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions: give one for each")
    bare = [number for number, own in enumerate(answers) if not own]
    if bare:
        raise ValueError(f"{len(bare)} questions have no answer, the first is number {bare[0]}: leave them out")
    return [one(own, said) for own, said in zip(answers, predictions, strict=True)]
