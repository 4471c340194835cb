"""The settings: constants of config.py, then a config.py of the user's own, then a recipe, then flags.

A recipe may build on another: BASE_RECIPE = "flickr30k_vit_b16.py", a path from its own folder, and then what differs.
`load_settings(argv)` gives all of them, checked, as `Settings`, the one form in which the package knows them. What they
may be says rules.py.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import re
import runpy
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nanocaption.base import rules
from nanocaption.base.version import VERSION

# Where config.py, train.py, evaluate.py and recipes/ are: inside the package once installed, in a checkout beside it.
_INSTALLED = Path(__file__).resolve().parents[1] / "root"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1]

# The data of a run: as its checkpoint has them, but free to change where the model is put to another use.
DATA_SETTINGS = ("DATASET", "DATA_CUTOFF", "DATA_SEED", "TRAIN_SPLITS", "VAL_SPLITS", "TEST_SPLITS")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What fixes the model, and what it reads and writes: the settings of these names."""

    VOCAB_SIZE: int
    MAX_SEQ_LEN: int
    PAD_TOKEN_ID: int
    START_TOKEN_ID: int
    END_TOKEN_ID: int
    UNK_TOKEN_ID: int
    ENCODER_MODEL_NAME: str | None
    FREEZE_ENCODER: bool
    IMAGE_SIZE: int | None
    VIT_PATCH_SIZE: int
    VIT_STEM: str
    VIT_EMBED_DIM: int
    VIT_LAYERS: int
    VIT_HEADS: int
    DECODER_EMBED_DIM: int
    DECODER_HEADS: int
    DECODER_LAYERS: int
    DECODER_FF_DIM: int
    CAPTION_CASE: str = "keep"  # the first checkpoints do not say
    ENCODER_LAYERS: tuple[int, ...] | None = None  # nor this
    QUESTIONS: bool = False  # nor this

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "ModelSettings":
        """Those among all settings by name. Raises TypeError where one is missing."""
        own: dict[str, Any] = {field.name: values.get(field.name) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in own.items() if name in values})


# Taken from the checkpoint when one is used; may not change on a resume.
CHECKPOINT_SETTINGS = (*DATA_SETTINGS, *(field.name for field in dataclasses.fields(ModelSettings)))
# On top of these, what fixes the course of the training itself. (BATCH_SIZE and GRAD_ACCUM_STEPS may change as long as
# their product with the number of processes stays.)
RESUME_SETTINGS = (
    *CHECKPOINT_SETTINGS,
    "SEED", "CAPTIONS_PER_IMAGE", "PRECISION", "COMPILE", "DECODER_DROPOUT", "RANDOM_CROP_AREA", "RANDOM_FLIP",
    "FEATURE_VIEWS", "CAPTION_QUESTION",
    "LEARNING_RATE", "ENCODER_LEARNING_RATE", "LR_SCHEDULE", "WARMUP_STEPS", "WARMUP_RATIO", "WARMUP_LR", "MIN_LR",
    "LR_DECAY_RATE", "WEIGHT_DECAY", "ADAM_BETAS", "ADAM_EPS", "GRAD_CLIP_VALUE", "LABEL_SMOOTHING",
    "PATCH_DROP", "PATCH_DROP_WHOLE_EPOCHS", "OBJECTIVE", "SCST_START_EPOCH", "SCST_SAMPLES", "SCST_REWARD",
    "SCST_XE_WEIGHT", "SCST_LEARNING_RATE", "SCST_LR_SCHEDULE", "CONTRASTIVE_WEIGHT", "CONTRASTIVE_LOSS",
)  # fmt: skip
# What a run did whose checkpoint is older than these settings and does not say.
AS_BEFORE = {
    "PATCH_DROP": 0.0, "PATCH_DROP_WHOLE_EPOCHS": 0, "OBJECTIVE": "xe", "QUESTIONS": False, "CAPTION_QUESTION": None,
    "CONTRASTIVE_WEIGHT": 0.0,
}  # fmt: skip
_SHORT = {"--lr": "LEARNING_RATE"}  # further names of flags


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings, checked, as attributes (`settings.BATCH_SIZE`); frozen.

    values: each by name. constants: as the config.py files have them. changes: by the recipe and the flags.
    """

    values: Mapping[str, Any]
    constants: Mapping[str, Any]
    changes: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.isupper() and name in self.values:
            return self.values[name]
        raise AttributeError(f"{name} is no setting")

    def replace(self, **values: object) -> "Settings":
        """The same with other values, unchecked."""
        return dataclasses.replace(self, values={**self.values, **values})

    def on(self, saved: Mapping[str, object]) -> "Settings":
        """Anew, with `saved` values in place of the constants: those of a checkpoint; recipe and flags stay stronger.

        Unknown names are left out, so that a checkpoint of another version still serves. Raises SystemExit where the
        whole does not fit together.
        """
        known = {name: _thawed(value) for name, value in saved.items() if name in self.constants}
        values = {**self.constants, **known, **self.changes}
        try:
            problems = rules.range_problems(values) + rules.cross_problems(values)
        except (TypeError, AttributeError, IndexError) as error:  # of a checkpoint of anybody
            problems = [f"the settings of the checkpoint are of other types than settings have ({error})"]
        _refuse(problems)
        return dataclasses.replace(self, values=values)


class Declared(NamedTuple):
    """What config.py says of every setting, by name."""

    types: dict[str, Any]
    constants: dict[str, Any]
    sections: dict[str, dict[str, str]]  # section -> setting -> its comment


def load_settings(argv: Collection[str]) -> Settings:
    """The settings of a start: config.py, then the recipe, then the flags in argv.

    argv: e.g. sys.argv[1:]; at most one positional, the path of a recipe.
    Raises SystemExit with every problem found, one line each; --help and --version print and exit.
    """
    declared = declared_settings()
    constants = declared.constants | own_constants(declared.types)
    # A value of config.py may be wrong as well: it was edited by hand.
    problems = [problem for name, value in constants.items()
                if (problem := rules.type_problem(name, value, declared.types[name]))]  # fmt: skip
    constants_fit = not problems
    changes: dict[str, Any] = {}
    recipe, flags, flag_problems = _parse_argv(list(argv), declared._replace(constants=constants))
    # After a misspelt flag, "the recipe" may be that flag's value.
    for name, value in _read_recipe(recipe, declared.types).items() if recipe and not flag_problems else ():
        problems += _assign(changes, name, value, declared.types, f"{recipe}: ")
    for name, value in flags.items():
        problems += _assign(changes, name, value, declared.types, "")
    problems += flag_problems
    understood = not problems
    values = constants | changes
    if constants_fit:
        problems += rules.range_problems(values)
    if understood:  # these compare settings with each other: misleading where one of them was not understood
        problems += rules.cross_problems(values)
    _refuse(problems)
    return Settings(values, constants, changes)


def _refuse(problems: list[str], head: str = "Settings are not right") -> None:
    if problems:
        raise SystemExit(f"{head}:\n" + "\n".join(f"  - {problem}" for problem in problems))


def take_settings(argv: list[str], but: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """argv -> (the flags that are settings, with their values; the rest), for a script with arguments of its own.

    but: settings that are left in the rest.
    """
    kinds = {name: kind for name, kind in declared_settings().types.items() if name not in but}
    own, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        flag = word.partition("=")[0]
        name = _SHORT.get(flag, flag.removeprefix("--").replace("-", "_").upper())
        if not word.startswith("--") or (name not in kinds and name.removeprefix("NO_") not in kinds):
            rest.append(word)
            continue
        own.append(word)
        if "=" not in word and kinds.get(name) not in (bool, None) and words:
            own.append(words.pop(0))
    return own, rest


# --- A checkpoint's settings beside these ---


def unchanged_since(settings: Settings, saved: Mapping[str, object]) -> set[str]:
    """The settings whose constant is what it was when `saved` (constants, through JSON) was stored."""
    return {name for name, value in settings.constants.items() if name in saved and value == _thawed(saved[name])}


def differences(settings: Settings, saved: Mapping[str, object], names: Iterable[str]) -> list[str]:
    """"NAME: old -> new" for each of `names` whose value is not the saved one (which went through JSON)."""
    pairs = [(name, saved[name], settings.values[name]) for name in names if name in saved]  # not: of later versions
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in pairs if _thawed(old) != _thawed(new)]


def _thawed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# --- config.py ---


@functools.cache
def declared_settings() -> Declared:
    """The settings of the config.py in ROOT.

    SystemExit where it, edited by hand, has lost one, or a type, or has a line that is no setting.
    """
    path = ROOT / "config.py"
    namespace = runpy.run_path(str(path))
    text = path.read_text(encoding="utf-8")
    annotated = {node.lineno: node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign)}
    kinds: dict[str, Any] = {}
    sections: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("# --- "):
            sections[line.strip("# -")] = section = {}
        elif number in annotated:
            name = ast.unparse(annotated[number].target)
            kinds[name] = eval(ast.unparse(annotated[number].annotation), dict(namespace))
            section[name] = line.partition("  # ")[2]
    bare = [name for name in namespace if name.isupper() and name[0] != "_" and name not in kinds]
    _refuse(_lost(namespace, kinds, bare), "config.py is not right")
    return Declared(kinds, {name: namespace[name] for name in kinds}, sections)


def _lost(namespace: Mapping[str, Any], kinds: Collection[str], bare: list[str]) -> list[str]:
    """What config.py lacks of the settings that are known without it. bare: its names without a type."""
    known = {*RESUME_SETTINGS, *rules.NAMES}
    problems = [
        f"{name} has lost its type: write {name}: <type> = {namespace[name]!r}, with the type that stood there"
        if name in known else f"{name} is not a setting{_nearest(name, {*kinds, *known})}"
        for name in bare
    ]  # fmt: skip
    return problems + [f"{name} is missing: put its line back" for name in sorted(known - {*kinds, *bare})]


def own_constants(kinds: Mapping[str, object]) -> dict[str, object]:
    """What a config.py in the present folder sets; nothing where there is none, or where it is of another program.

    It may hold all settings or a few, and counts as ours where most of the names in capitals that it sets are settings
    or nearly so. SystemExit where one of its names is no setting, or where it is no Python.
    """
    path = Path("config.py").absolute()
    if not path.is_file() or path == ROOT / "config.py":
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    names = set(re.findall(r"^([A-Z][A-Z0-9_]*)\s*[:=]", text, re.MULTILINE))
    strange = [name for name in sorted(names) if not difflib.get_close_matches(name, kinds, n=1, cutoff=0.8)]
    if 2 * len(strange) >= len(names):  # of another program: not even run
        if names & kinds.keys():
            _say_once(f"Note: {path} is taken for another program's ({', '.join(strange[:3])}): not used")
        return {}
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise SystemExit(f"{path}{where}: {error.args[0]}. It is read for its settings, as it stands here") from error
    values, problems = {}, []
    for name, value in _read_recipe(str(path), kinds).items():
        problems += _assign(values, name, value, kinds, "")
    _refuse(problems, f"{path} is read because it stands here and sets {min(names & kinds.keys())}; it is not right")
    _say_once(f"settings: {path} comes before the one in {ROOT}")
    return values


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def _read_recipe(path: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe sets, on top of what that one sets whose path, from this one's folder, is its BASE_RECIPE."""
    places = [place for place in (Path(path), ROOT / path) if place.is_file()]
    if not places:
        raise SystemExit(f"There is no recipe {path!r}. A recipe is a Python file of settings, see {ROOT / 'recipes'}.")
    read, known = [places[0].resolve()], (*kinds, "BASE_RECIPE")
    namespace = _run_recipe(read[0])
    while base := namespace.pop("BASE_RECIPE", None):
        read.append((read[-1].parent / str(base)).resolve())
        if read[-1] in read[:-1]:
            raise SystemExit(f"BASE_RECIPE leads from {read[-1]} back to itself: let one of the recipes stand alone")
        namespace = _run_recipe(read[-1]) | namespace
    # A setting in small letters would change nothing, silently.
    return {name: value for name, value in namespace.items() if name.isupper() or name.upper() in known}


def _run_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SystemExit(f"There is no recipe {path}, which BASE_RECIPE names.")
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        raise SystemExit(f"{path} does not run: {type(error).__name__}: {error}") from error


def _assign(values: dict[str, Any], name: str, value: Any, kinds: Mapping[str, Any], origin: str) -> list[str]:
    if name not in kinds:
        return [f"{origin}{name} is not a setting{_nearest(name, kinds)}"]
    kind = kinds[name]
    if type(value) is int and rules.accepts(kind, float) and not rules.accepts(kind, int):
        value = float(value)  # LEARNING_RATE = 1 means 1.0
    if problem := rules.type_problem(name, value, kind):
        return [origin + problem]
    values[name] = value
    return []


# --- Flags ---


def _parse_argv(argv: list[str], declared: Declared) -> tuple[str | None, dict[str, Any], list[str]]:
    """argv -> (recipe path, values by name, problems). Types are checked here, so that all problems come at once."""
    known, unknown = _parser(declared).parse_known_args(argv)
    flags = {name: _from_text(declared.types[name], text) for name, text in vars(known).items()
             if name != "recipe" and text is not None}  # fmt: skip
    options = ["--" + name.lower().replace("_", "-") for name in declared.types]
    problems = []
    for word in unknown:
        if word.startswith("--"):
            problems.append(f"{word} is not a flag{_nearest(word.split('=')[0], options)}")
        elif not problems:
            problems.append(f"{word!r} is one word too many: give one recipe, and each flag one value")
    return known.recipe, flags, problems


class _Switch(argparse.BooleanOptionalAction):
    """--name and --no-name. Argparse's own takes every flag that begins with --no- for a no: --no-bad-endings, too."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        denied = {f"--no-{flag.removeprefix('--')}" for flag in self.option_strings}
        setattr(namespace, self.dest, option_string not in denied)


def _parser(declared: Declared) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [recipe] [--setting value ...]",  # argparse's own would list all flags after every mistake
        description="All settings. [Defaults] are those of config.py; a recipe changes them, a flag has the last word.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
    )
    parser.add_argument("--version", action="version", version=f"nanoCaption {VERSION}")
    parser.add_argument("recipe", nargs="?", help="a Python file of settings, e.g. recipes/flickr8k_vit_tiny.py")
    for section, names in declared.sections.items():
        group = parser.add_argument_group(section)
        for name, comment in names.items():
            flags = ["--" + name.lower().replace("_", "-"), *(flag for flag, of in _SHORT.items() if of == name)]
            text = (comment + " " if comment else "") + f"[{declared.constants[name]}]"
            text = text.replace("%", "%%")
            if declared.types[name] is bool:
                group.add_argument(*flags, dest=name, action=_Switch, default=None, help=text)
            else:
                group.add_argument(*flags, dest=name, metavar=name.split("_")[-1], help=text)
    return parser


def _from_text(kind: Any, text: Any) -> Any:
    """A flag's text as the setting's type; text that does not fit is returned as it is and refused by type."""
    if isinstance(text, bool) or (text.lower() == "none" and rules.accepts(kind, types.NoneType)):
        return text if isinstance(text, bool) else None
    try:
        for option in rules.options_of(kind):
            if typing.get_origin(option) is tuple:
                first, *more = typing.get_args(option)
                one = float if Ellipsis not in more else int if first is int else str.strip
                return tuple(one(part) for part in text.split(","))
        if rules.accepts(kind, int):
            return int(text)
        if rules.accepts(kind, float):
            return float(text)
    except ValueError:
        pass
    return text


def _nearest(word: str, choices: Collection[str]) -> str:
    exact = [name for name in (word.upper(), _SHORT.get(f"--{word.lower()}")) if name in choices]
    close = exact or difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; `python train.py --help` lists them all"
