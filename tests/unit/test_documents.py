"""What the README and the documents beside it name is there: files, settings, flags, commands."""

import hashlib
import re
import shlex

import pytest

import evaluate
import prepare_dataset
from nanocaption.__main__ import COMMANDS as NANOCAPTION
from nanocaption.base.settings import declared_settings, load_settings
from nanocaption.commands import caption, demo, export
from tests.conftest import ROOT

CONSTANTS = declared_settings().constants  # cached: changed here, changed for load_settings

README, FAQ = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/faq.md"))
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("python ", "nanocaption "))
]
OF_OTHERS = {"--nproc-per-node", "--flag", "--signals-to-handle", "--help", "--no-deps"}
documents = pytest.mark.parametrize("text", [README, FAQ], ids=["README", "faq"])


@documents
def test_settings_flags_and_commands_that_are_named_exist(text):
    settings = set(re.findall(r"(?<![A-Z_/])[A-Z]+(?:_[A-Z]+)+\b(?!\.)", text))
    assert len(settings) > 10
    names = {name for name in settings if not name.startswith(("HF_", "WANDB_", "OMP_", "CHECKPOINT_OR_"))}
    assert names <= set(CONSTANTS)
    helps = [module._PARSER.format_help() for module in (caption, evaluate, export, demo)]
    own = "".join([*helps, prepare_dataset.__doc__])
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - OF_OTHERS
    assert len(flags) > 2
    for flag in flags:
        name = flag.removeprefix("--no-").removeprefix("--").replace("-", "_").upper()
        assert {name, flag[2:].replace("-", "_").upper()} & set(CONSTANTS) or re.search(rf"{flag}\b", own), flag
    commands = set(re.findall(r"`nanocaption ([a-z]+)\b", text)) | set(re.findall(r"^nanocaption ([a-z]+)", text, re.M))
    assert commands and commands <= set(NANOCAPTION)


@documents
def test_files_that_are_named_are_there(text):
    named = re.findall(r"`([\w/.]+\.(?:py|md|txt))`", text) + re.findall(r"\]\(([^):]+\.png)\)", text)
    for name in set(named) - {"merges.txt", "captions.txt"}:  # of a data set
        assert (ROOT / name).is_file(), name


def test_every_command_of_the_readme_has_flags_that_pass():
    commands = [shlex.split(line, comments=True) for line in COMMANDS]
    assert len(commands) > 8
    for words in commands:
        if words[0] == "nanocaption":
            assert words[1] in NANOCAPTION
        elif words[1] == "train.py":
            load_settings([str(ROOT / word) if word.startswith("recipes/") else word for word in words[2:]])
        else:
            assert (ROOT / words[1]).is_file() or words[1] == "-m", words


def test_every_promise_names_tests_that_are_there():
    """tests/README.md: promise, test, control."""
    promises = [line for line in (ROOT / "tests" / "README.md").read_text().splitlines() if "::test_" in line]
    assert len(promises) > 30
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", "".join(promises)):
        assert f"def {name}(" in sources[file], f"{file}::{name}"


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert "@@" not in README and "TODO" not in README


def test_the_licence_is_the_standard_text_and_named_in_the_citation():
    # sha256 of apache.org/licenses/LICENSE-2.0.txt
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()


def test_contributing_takes_ten_lines():
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert [line.split(".")[0] for line in lines[2:]] == [str(number) for number in range(1, 11)]
