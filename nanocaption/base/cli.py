"""How a command begins and ends: no traceback for a mistake, a full disk or Ctrl-C."""

import argparse
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanocaption.base.settings import Settings, load_settings, take_settings
from nanocaption.base.shown import ShownStream

_ADVICE = {
    errno.ENOSPC: "free some space, or name another place",
    errno.EROFS: "name another place",
    errno.EACCES: "name another place, or change its rights",
}


def begin() -> None:
    """Before slow imports: Ctrl-C ends the process there and then, without the traceback of an import."""
    _on_ctrl_c(signal.SIG_DFL)
    _open_streams()


def _open_streams() -> None:
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # not where it was redirected within Python
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may be no text
    for name in ("stdout", "stderr"):  # captions, names of files, what files say: of anybody
        if not isinstance(getattr(sys, name), ShownStream):
            setattr(sys, name, ShownStream(getattr(sys, name)))


def run(main: Callable[[list[str]], int | None], stopped: str = "Stopped.") -> None:
    """Call main(argv) and leave the process with its code.

    ValueError and OSError become one line, a UserWarning one line each; Ctrl-C says `stopped` and leaves with 130, an
    output that nobody reads any more leaves with 141, as the system's own programs do.
    """
    _on_ctrl_c(signal.default_int_handler)
    _open_streams()
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError) as error:
        raise SystemExit(told(error)) from error
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code or 0)


def _on_ctrl_c(handler: Any) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # else: started in the background, not meant
        signal.signal(signal.SIGINT, handler)


def told(error: Exception) -> str:
    """An error as one line; of the system's errors which file, what, and what to do, without numbers."""
    # Torch's account of an error in a process that reads pictures has the traceback of that process.
    account = r"Caught (\w+) in DataLoader worker.*?\n(?:\w+\.)*\1: (?:\[Errno \d+\] )?(.*)"
    if worker := re.match(account, str(error), re.DOTALL):
        return worker[2].strip()
    if not isinstance(error, OSError) or error.strerror is None or error.errno is None:
        return str(error)
    # Files are written under a name of their own first, which nobody has heard of.
    path = re.sub(r"\.([^/]+)\.\d+\.(?:part|tmp)$", r"\1", os.fsdecode(error.filename)) if error.filename else ""
    advice = _ADVICE.get(error.errno)
    return f"{path}{': ' if path else ''}{error.strerror}{f': {advice}' if advice else ''}"


def parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """For a command that takes settings besides its own flags, with its docstring as the help."""
    return argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="All other flags are settings of config.py, e.g. --data-dir: nanocaption train --help",
    )  # fmt: skip


def parse(
    own: argparse.ArgumentParser, argv: list[str], but: Collection[str] = ()
) -> tuple[argparse.Namespace, Settings]:
    """argv -> (the command's own arguments, the settings). --help and mistakes leave here, before torch is imported.

    but: settings whose flags mean something else to this command.
    """
    flags, rest = take_settings(argv, but)
    arguments = own.parse_intermixed_args(rest)
    return arguments, load_settings(flags)


class MissingExtra(ImportError, ValueError):
    """Something is not installed; told in one line, as every mistake is."""


def require(module: str, extra: str, who: str) -> None:
    """MissingExtra, with the command that mends it, where `module` is not installed."""
    if find_spec(module) is None:
        raise MissingExtra(f"{who} needs {module}: pip install 'nanocaption[{extra}]'")


def own_process(module: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that run a module of this package in a process of its own, from any folder.

    The folder itself is not searched: its files may have names of modules.
    """
    places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return [sys.executable, "-P", "-m", module], os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
