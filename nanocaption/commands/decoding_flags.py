"""The flags of evaluate and caption that choose captions otherwise than by the beam search of config.py."""

import argparse

from nanocaption.model.options import Options, option_problems

_NAMES = ("max_length", "beam_groups", "diversity_penalty", "temperature", "top_k", "top_p")  # of Options
_DEFAULTS = {"sample": False, **{name: Options._field_defaults[name] for name in _NAMES}}
_MOST_BEAMS, _MOST_SAMPLES = 100, 1000  # a picture; the first as in base/rules.py


def add(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags. Their values go through `problems` and, after that, `options`."""
    group = parser.add_argument_group("decoding", "besides --beam-size, --length-penalty, --min-length, "
                                      "--no-repeat-ngram and --seed, which are settings of config.py")  # fmt: skip
    group.add_argument("--sample", action="store_true", help="random captions, not beam search; --seed repeats them")
    for flag, kind, text in (
        ("--max-length", int, "most tokens of a caption [0, as many as the model can]"),
        ("--beam-groups", int, "diverse beam search: groups that avoid each other [1]"),
        ("--diversity-penalty", float, "what a token costs a group that an earlier one took [0.5]"),
        ("--temperature", float, "--sample: below 1 likelier captions, 0 greedy [1]"),
        ("--top-k", int, "--sample: among the k likeliest tokens only, 0 = all [0]"),
        ("--top-p", float, "--sample: among the likeliest that hold this share [1]"),
    ):
        group.add_argument(flag, type=kind, help=text)
    parser.set_defaults(**_DEFAULTS)


def used(arguments: argparse.Namespace) -> bool:
    """Whether any of the flags was given another value than its default."""
    return any(getattr(arguments, name) != value for name, value in _DEFAULTS.items())


def problems(arguments: argparse.Namespace, captions: int = 1) -> list[str]:
    """One line for each flag that cannot be meant so, with so many captions a picture."""
    a = arguments
    own = Options(**{name: getattr(a, name) for name in _NAMES})
    rules = [
        (a.beam_groups <= _MOST_BEAMS, f"--beam-groups {a.beam_groups}: at most {_MOST_BEAMS}, give fewer"),
        (
            captions <= _MOST_BEAMS or a.sample,
            f"--num-captions {captions}: one beam each, at most {_MOST_BEAMS}, or add --sample",
        ),
        (not a.sample or captions <= _MOST_SAMPLES, f"--num-captions {captions}: at most {_MOST_SAMPLES}, give fewer"),
        (
            a.beam_groups > 1 or a.diversity_penalty == _DEFAULTS["diversity_penalty"],
            "--diversity-penalty keeps groups apart: add --beam-groups",
        ),
        (a.beam_groups == 1 or not a.sample, "--beam-groups belongs to beam search: leave --sample out"),
        (
            a.sample or (a.temperature, a.top_k, a.top_p) == (1.0, 0, 1.0),
            "--temperature, --top-k and --top-p change random captions: add --sample",
        ),
    ]
    lines = option_problems(own, lambda name, value: f"--{name.replace('_', '-')} {value}")
    return lines + [text for holds, text in rules if not holds]


def penalties(arguments: argparse.Namespace) -> list[float]:
    """The length penalties of evaluate.py's --length-penalties. SystemExit with one line for what are none."""
    a = arguments
    text = f"--length-penalties {a.length_penalties}"
    try:
        found = [float(part) for part in a.length_penalties.split(",")]
    except ValueError:
        raise SystemExit(f"{text}: must be numbers with commas between, e.g. 0.7,1,1.3") from None
    if not all(0 <= penalty <= 10 for penalty in found) or len(set(found)) < max(2, len(found)):
        raise SystemExit(f"{text}: must be two or more different numbers from 0 to 10")
    if a.sample or a.beam_groups > 1:
        raise SystemExit("--length-penalties goes by plain beam search: leave out --sample and --beam-groups")
    return found


def options(arguments: argparse.Namespace, search: Options, captions: int = 1) -> Options:
    """`search` (as the settings have it) changed as the flags say, for so many captions a picture.

    A search gets beams enough for them, a multiple of its groups. Raises ValueError where lengths exclude each other.
    """
    a = arguments
    if 0 < a.max_length < search.min_length:
        raise ValueError(f"--max-length {a.max_length} is below MIN_LENGTH = {search.min_length}: raise it")
    search = search._replace(max_length=a.max_length)
    if a.sample:
        return search._replace(samples=captions, temperature=a.temperature, top_k=a.top_k, top_p=a.top_p)
    beams = max(search.beam_size, captions, a.beam_groups)
    beams = -(-beams // a.beam_groups) * a.beam_groups
    return search._replace(beam_size=beams, beam_groups=a.beam_groups, diversity_penalty=a.diversity_penalty)
