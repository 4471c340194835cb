"""How captions are chosen: plain values and their rules, for decode.py, and for flags before torch is loaded."""

import difflib
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict


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


def search_options(settings: Mapping[str, object]) -> Options:
    """The beam search that settings, by name, ask for."""
    names = ("beam_size", "length_penalty", "min_length", "no_repeat_ngram")
    chosen: dict[str, Any] = {name: settings[name.upper()] for name in names}
    # Earlier checkpoints and exports do not say.
    return Options(**chosen, no_bad_endings=bool(settings.get("NO_BAD_ENDINGS", False)))


class Names(TypedDict, total=False):
    """Every name that an option may be given by: those of Options, those of transformers' generate, and `seed`."""

    beam_size: int
    length_penalty: float
    min_length: int
    no_repeat_ngram: int
    beam_groups: int
    diversity_penalty: float
    samples: int
    temperature: float
    top_k: int
    top_p: float
    max_length: int  # of transformers as well, which counts <start>: see max_new_tokens

    num_beams: int  # beam_size
    min_new_tokens: int  # min_length
    max_new_tokens: int  # max_length: <start> is not counted
    no_repeat_ngram_size: int  # no_repeat_ngram
    num_beam_groups: int  # beam_groups
    do_sample: bool  # random captions, num_return_sequences of them; False: beam search
    num_return_sequences: int  # captions of a picture: of a search the best, at most num_beams
    seed: int  # of random captions; without it torch's global generator draws


_SYNONYMS = {
    "num_beams": "beam_size", "min_new_tokens": "min_length", "max_new_tokens": "max_length",
    "no_repeat_ngram_size": "no_repeat_ngram", "num_beam_groups": "beam_groups",
}  # fmt: skip


class Asked(NamedTuple):
    """What a call asks for."""

    options: Options
    captions: int | None  # of a picture at most; None: all that are found
    seed: int | None


def asked(given: Mapping[str, object], search: Options) -> Asked:
    """The options of a call, by any of Names, in place of those of `search`.

    ValueError with one line for an unknown name, a value that is no number, two names of one thing with different
    values, and what cannot be meant together.
    """
    fields, origin = _fields_of(given)
    count, draws, seed = (fields.pop(name, None) for name in ("num_return_sequences", "do_sample", "seed"))
    if count is not None and count < 1:
        raise ValueError(f"num_return_sequences = {count}: must be 1 or more.")
    if origin.get("max_length") == "max_new_tokens" and fields["max_length"] == 0:
        raise ValueError("max_new_tokens = 0: must be 1 or more.")  # as max_length it says: as many as the model can
    if draws is not None:
        fields["samples"] = _samples(bool(draws), count, fields, origin)
    options = search._replace(**fields)  # type: ignore[arg-type]  # by _number
    unused = [name for name in ("temperature", "top_k", "top_p") if fields.get(name, 0) not in (0, 1)]
    if unused and not options.samples:
        warnings.warn(f"{' and '.join(unused)}: of random captions alone, add do_sample=True", stacklevel=5)
    most = options.samples or options.beam_size
    if count is not None and count > most:
        name = "samples" if options.samples else "num_beams"
        raise ValueError(f"num_return_sequences = {count} is more than {name} = {most}: raise it to {count} or more"
                         f"{'' if options.samples else ', or draw them with do_sample=True'}.")  # fmt: skip
    return Asked(options, None if count is None else int(count), None if seed is None else int(seed))


def _fields_of(given: Mapping[str, object]) -> tuple[dict[str, int | float], dict[str, str]]:
    """The values by the names of Options and of the three that are none of it, and the name that each was given by."""
    known = Names.__annotations__
    fields: dict[str, int | float] = {}
    origin: dict[str, str] = {}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(f"{name} is no option{f'; did you mean {near[0]}?' if near else '.'} "
                             f"There are: {', '.join(known)}.")  # fmt: skip
    for name, asked_for in given.items():
        field, value = _SYNONYMS.get(name, name), _number(name, asked_for)
        if field in fields and fields[field] != value:
            raise ValueError(f"{origin[field]} = {fields[field]} and {name} = {value} are one thing: give one of them.")
        fields[field], origin[field] = value, name
    return fields, origin


def _samples(
    draws: bool, count: int | float | None, fields: Mapping[str, int | float], origin: Mapping[str, str]
) -> int:
    """Options.samples where do_sample was given. ValueError where another option says otherwise."""
    given = fields.get("samples")
    if not draws:
        if given:
            raise ValueError(f"samples = {given} asks for random captions and do_sample = False for none.")
        return 0
    if given == 0:
        raise ValueError("samples = 0 asks for no random captions and do_sample = True for some.")
    for name in ("beam_size", "beam_groups"):
        if fields.get(name, 1) != 1:
            raise ValueError(f"{origin[name]} = {fields[name]} searches, do_sample = True draws: leave one out.")
    return int(given or count or 1)


def _number(name: str, value: object) -> int | float:
    """An option's value as the type that Names says. ValueError where it is none."""
    kind = Names.__annotations__[name]
    if kind is bool or isinstance(value, bool):
        if kind is bool and value in (True, False):
            return bool(value)
        raise ValueError(f"{name} = {value!r}: must be {'True or False' if kind is bool else 'a number'}.")
    try:
        return float(value) if kind is float and not isinstance(value, str) else operator.index(value)  # type: ignore
    except (TypeError, ValueError):
        number = "a number" if kind is float else "a whole number"
        raise ValueError(f"{name} = {value!r}: must be {number}.") from None


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
