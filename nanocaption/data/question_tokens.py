"""Questions and answers as ids: <start> question <sep> answer <end>.

What was said before comes first, each turn as <start> question <sep> answer. <sep> is the token <unk>, which no text
gives: what follows its last one is what a model learns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nanocaption.data.questions import Asking
from nanocaption.data.tokenizer import END, SEP, START, encode_batch, whole_characters

LEAST_ROOM = 2  # for an answer: a token and <end>
_ALL = 2**31  # no text has more tokens


class Encoded(NamedTuple):
    """Questions with their answers as ids."""

    rows: list[np.ndarray | None]  # int32, <end> last unless the answer was cut; None: the question is too long
    too_long: list[tuple[int, int]]  # (which, how many ids up to <sep>) of those that leave no room for an answer
    shortened: int  # whose oldest turns are left out, to make room
    cut: list[int]  # how many ids each question would have whose answer is cut


def encode_questions(tokenizer: Tokenizer, askings: Sequence[Asking], longest: int) -> Encoded:
    """Each question with its answer, at most `longest` ids."""
    ids = _ids_of(tokenizer, [text for asking in askings for text in asking.texts()])
    found = Encoded([], [], 0, [])
    shortened = 0
    for number, asking in enumerate(askings):
        head, dropped = _head(ids, asking, longest)
        shortened += dropped > 0
        if len(head) > longest - LEAST_ROOM:
            found.too_long.append((number, len(head)))
            found.rows.append(None)
            continue
        answer = ids[asking.answer]
        if len(head) + len(answer) + 1 > longest:
            found.cut.append(len(head) + len(answer) + 1)
            row = [*head, *whole_characters(tokenizer, answer[: longest - len(head)])]
        else:
            row = [*head, *answer, END]
        found.rows.append(np.asarray(row, dtype=np.int32))
    return found._replace(shortened=shortened)


def question_ids(tokenizer: Tokenizer, askings: Sequence[Asking], longest: int) -> list[list[int] | None]:
    """The ids of each question up to <sep>, which is not among them; None where no room is left for an answer."""
    ids = _ids_of(tokenizer, [text for asking in askings for text in asking.texts()])
    heads = [_head(ids, asking, longest)[0] for asking in askings]
    return [head[:-1] if len(head) <= longest - LEAST_ROOM else None for head in heads]


def answer_starts(ids: np.ndarray) -> int:
    """Where in a row of ids those begin that a model learns: after the last <sep>; at 0 where there is none."""
    (places,) = np.nonzero(ids == SEP)
    return int(places[-1]) + 1 if len(places) else 0


def _ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
    different = list(dict.fromkeys(texts))
    rows = encode_batch(tokenizer, different, _ALL)
    return {text: row[1:-1] for text, row in zip(different, rows, strict=True)}


def _head(ids: dict[str, list[int]], asking: Asking, longest: int) -> tuple[list[int], int]:
    """(the ids up to <sep>, how many of the oldest turns are left out for want of room)"""
    question = [START, *ids[asking.question], SEP]
    turns = [[START, *ids[asked], SEP, *ids[said]] for asked, said in asking.turns]
    room = longest - LEAST_ROOM - len(question)
    dropped = 0
    while turns and sum(map(len, turns)) > room:
        turns.pop(0)
        dropped += 1
    return [*(token for turn in turns for token in turn), *question], dropped
