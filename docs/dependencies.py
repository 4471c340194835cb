"""What the project depends on: docs/dependencies.md with the licence of every package, and whether the lock fits.

    python docs/dependencies.py            write docs/dependencies.md
    python docs/dependencies.py --check    one line for each disagreement, exit status 1 where there is one

Licences are those that the installed packages themselves state; of one that is not installed here (another system's,
another Python's) the page says so.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# Imported under another name, or no import at all: what is run, or what another package asks for.
IMPORTS = {"pillow": "PIL", "huggingface-hub": "huggingface_hub", "pytest-xdist": "xdist"}
TOOLS = {
    "ruff": "lint", "pytest-xdist": "make test on several cores", "hatchling": "builds the package",
    "editables": "the checkout, installed editable", "accelerate": "the Trainer in benchmarks/training.py",
    "mypy": "a long test", "onnxscript": "torch's ONNX exporter", "torchvision": "picture processors of transformers",
}  # fmt: skip
SIZE = """`pip install .` alone, for metrics and the check of data, takes 98 MiB on Linux with Python 3.11 (numpy 73,
Pillow 22); `[onnx]`, captions without torch, 229 MiB; all of requirements.txt 6.3 GiB, most of it the CUDA
libraries that torch's default wheel brings."""


def locked(text: str) -> dict[str, tuple[set[str], int]]:
    """name -> (the versions, how many hashes), of a requirements.lock."""
    found: dict[str, tuple[set[str], int]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", "\n" + text):
        if match := re.match(r"([a-z0-9][\w.-]*)==([^\s;\\]+)", entry):
            versions, hashes = found.get(match[1], (set(), 10**6))
            found[match[1]] = (versions | {match[2]}, min(hashes, entry.count("--hash=sha256:")))
    return found


def required(text: str) -> dict[str, str]:
    """name -> version that a requirements.txt pins."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def disagreements(root: Path = ROOT) -> Iterator[str]:
    """What does not fit between requirements, lock, pyproject.toml and the imports of the code, a line each."""
    text = (root / "requirements.lock").read_text()
    lock = locked(text)
    pinned = required((root / "requirements.txt").read_text()) | required((root / "requirements-demo.txt").read_text())
    yield from (f"requirements.lock: {host} names a host" for host in re.findall(r"\S*://\S*|--\w*index\S*", text))
    yield from (f"requirements.lock: {name} has no hash" for name, (_, hashes) in lock.items() if not hashes)
    for name, version in pinned.items():
        if version not in lock.get(name, ({"nothing"}, 0))[0]:
            yield f"{name}: requirements say {version}, the lock has {', '.join(lock.get(name, ({'nothing'}, 0))[0])}"
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = [one for group in project["optional-dependencies"].values() for one in group]
    for one in map(Requirement, [*project["dependencies"], *extras]):
        name = canonicalize_name(one.name)
        if name != "nanocaption" and not any(one.specifier.contains(Version(v), prereleases=True)
                                             for v in lock.get(name, (set(), 0))[0]):  # fmt: skip
            yield f"{name}: pyproject.toml wants {one.specifier}, which the lock does not hold"
    used = imported(root)
    yield from (f"{name}: required, but nothing imports it" for name in pinned
                if IMPORTS.get(name, name.replace("-", "_")) not in used and name not in TOOLS)  # fmt: skip


def imported(root: Path) -> set[str]:
    """The top names of all imports in the repository's code."""
    found = set()
    for path in [*root.glob("*.py"), *root.glob("nanocaption/**/*.py"), *root.glob("tests/**/*.py"),
                 *root.glob("benchmarks/*.py")]:  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    return found


def licence(name: str) -> str:
    """As the installed package states it: its expression, its short field, or its classifiers."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed on this system"
    field = (about.get("License-Expression") or "").strip() or (about.get("License") or "").strip()
    if field and len(field) < 60 and "\n" not in field:
        return field
    lines = [line for line in about.get_all("Classifier") or () if line.startswith("License")]
    classes = [line.rpartition("::")[2].strip() for line in lines]
    return "; ".join(classes) or field.partition("\n")[0][:60].strip() or "not stated"


def page(root: Path = ROOT) -> str:
    lock = locked((root / "requirements.lock").read_text())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    asked: dict[str, list[str]] = {}
    for group, ones in groups.items():
        for one in map(Requirement, ones):
            asked.setdefault(canonicalize_name(one.name), []).append(group)
    rows = [f"| {name} | {', '.join(sorted(lock[name][0]))} | {licence(name)} | {', '.join(asked.get(name, []))} |"
            for name in sorted(lock)]  # fmt: skip
    return (
        "# Dependencies\n\n"
        "`requirements.lock` holds the tested set with all that it brings along, with the sha256 of every file; "
        "`pip install --require-hashes -r requirements.lock` takes these and nothing else. `make lock` makes it anew "
        "(with [uv](https://docs.astral.sh/uv/)), `python docs/dependencies.py` this page. A test fails where lock, "
        "requirements, pyproject.toml and the imports of the code disagree.\n\n"
        f"{SIZE}\n\n| package | version | licence, as it states it | asked for by |\n|---|---|---|---|\n"
        + "\n".join(rows) + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        problems = list(disagreements())
        print("\n".join(problems) or "requirements, lock, pyproject.toml and imports agree")
        raise SystemExit(bool(problems))
    (ROOT / "docs" / "dependencies.md").write_text(page(), encoding="utf-8")
