"""One command for everything: `nanocaption COMMAND ...`, also as `python -m nanocaption COMMAND ...`."""

import importlib
import sys
import types
from pathlib import Path
from typing import NamedTuple

from nanocaption.base import cli
from nanocaption.base.settings import ROOT
from nanocaption.base.version import VERSION


class Command(NamedTuple):
    """What runs: a file beside config.py ("train.py") or a module of the package; and what it needs installed."""

    runs: str
    about: str
    extra: str | None = None


COMMANDS = {
    "train": Command("train.py", "train a captioner; every setting of config.py is a flag", "train"),
    "evaluate": Command("evaluate.py", "caption a split and score the captions, or compare two models", "caption"),
    "prepare": Command("prepare_dataset.py", "pictures and captions -> a checked data set"),
    "caption": Command("nanocaption.commands.caption", "caption pictures"),  # says itself what the model needs
    "ask": Command("nanocaption.commands.ask", "ask a model that was trained on questions about a picture", "caption"),
    "search": Command("nanocaption.commands.search", "find pictures of a folder by words", "caption"),
    "similar": Command("nanocaption.commands.similar", "find pictures of a folder that are like a picture", "caption"),
    "average": Command("nanocaption.commands.average", "the mean of the weights of several checkpoints", "caption"),
    "export": Command("nanocaption.commands.export", "a checkpoint -> a folder that captions anywhere", "caption"),
    "demo": Command("nanocaption.commands.demo", "a page in the browser to try a model", "demo"),
    "verify": Command("nanocaption.commands.verify", "verify a checkpoint and print what is in it", "caption"),
    "upload": Command("nanocaption.commands.upload", "put an exported folder on the Hugging Face Hub", "caption"),
    "clean": Command("nanocaption.commands.clean", "say what caches, runs and uploads take, and remove what is unused"),
    "score": Command("nanocaption.commands.score", "score anyone's captions in COCO files; needs no model"),
}
_NEEDS = {"train": "torch", "caption": "torch", "demo": "gradio"}  # of each extra what tells that it is there


def usage() -> str:
    lines = [f"  {name:10}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: nanocaption COMMAND ...", "", *lines, "", "nanocaption COMMAND --help says more of each."]
    )


def run_script(path: Path) -> None:
    """Run a file as the program, as `python FILE` does, but under the name that sys.argv has."""
    program = types.ModuleType("__main__")
    program.__file__ = str(path)
    sys.modules["__main__"] = program
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), program.__dict__)


def main() -> None:
    """Run the command that sys.argv names, as if it were a script of its own."""
    cli.begin()
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if words else 2)
    if words[0] in ("-V", "--version"):
        print(f"nanoCaption {VERSION}")
        return
    name = words[0]
    if name not in COMMANDS:
        raise SystemExit(f"nanocaption: {name!r} is no command. There are: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    sys.argv = [f"nanocaption {name}", *words[1:]]
    if command.extra and not {"-h", "--help"} & set(words):
        try:
            cli.require(_NEEDS[command.extra], command.extra, f"nanocaption {name}")
        except ImportError as error:
            raise SystemExit(str(error)) from None
    if command.runs.endswith(".py"):
        run_script(ROOT / command.runs)
        return
    cli.run(importlib.import_module(command.runs).main)


if __name__ == "__main__":
    main()
