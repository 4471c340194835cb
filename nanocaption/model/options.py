"""How captions are chosen: plain values and their rules, for decode.py, and for flags before torch is loaded."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Options(NamedTuple):
    """Beam search, or `samples` random captions. What each means: decode.beam_searches and decode.sample."""

    beam_size: int = 1
    length_penalty: float = 1.0
    min_length: int = 0
    no_repeat_ngram: int = 0
    no_bad_endings: bool = False
    beam_groups: int = 1
    diversity_penalty: float = 0.5
    samples: int = 0  # above 0: this many random captions instead of a search
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_length: int = 0  # most tokens of a caption; 0: as many as the model can


GREEDY = Options()


def option_problems(
    options: Options, told: Callable[[str, object], str] = lambda name, value: f"{name} = {value}"
) -> list[str]:
    """One line for each option that cannot be meant so. told: (name, value) -> how the user wrote them."""
    o = options
    rules = {
        "beam_size": (o.beam_size >= 1, "must be 1 or more"),
        "length_penalty": (0 <= o.length_penalty <= 10, "must be from 0 to 10"),
        "min_length": (o.min_length >= 0, "must be 0 or more"),
        "no_repeat_ngram": (o.no_repeat_ngram >= 0, "must be 0 (off) or more"),
        "beam_groups": (o.beam_groups >= 1, "must be 1 or more"),
        "diversity_penalty": (0 <= o.diversity_penalty < math.inf, "must be 0 or more, and finite"),
        "samples": (o.samples >= 0, "must be 0 (beam search) or more"),
        "temperature": (0 <= o.temperature < math.inf, "must be 0 (greedy) or more, and finite"),
        "top_k": (o.top_k >= 0, "must be 0 (all tokens) or more"),
        "top_p": (0 < o.top_p <= 1, "must be above 0 and at most 1"),
        "max_length": (
            o.max_length == 0 or o.max_length >= max(1, o.min_length),
            f"must be 0 (as many as the model can), or at least {max(1, o.min_length)} (min_length = {o.min_length})",
        ),
    }
    return [f"{told(name, getattr(o, name))}: {rule}" for name, (holds, rule) in rules.items() if not holds]
