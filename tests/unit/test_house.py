"""The rules of the house: which room may import which, read from the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = (
    ("base", "metrics", "demo_set"), ("data",), ("prepare", "model", "runs", "score"), ("train", "use", "export"),
    ("commands",),
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}
HEAVY = {"torch", "torchvision", "transformers", "tokenizers", "safetensors", "wandb", "onnx", "onnxruntime"}
LIGHT = ("metrics", "demo_set", "prepare", "score")
LIGHT_HALF = {
    "base": ("cli", "files", "hub", "rules", "settings", "version"),
    "data": ("caption_text", "fitting", "picture_forms", "pictures", "prepared"),
    "model": ("onnx_folder", "options"),
}  # fmt: skip
FACES = {"config", "train", "evaluate", "model", "dataset", "tokenizer", "prepare_dataset"}
PACKAGE = sorted(path for path in (ROOT / "nanocaption").rglob("*.py") if "root" not in path.parts)


def imported(source: str) -> list[str]:
    """Every module or name that a source imports, inside functions as well, in full."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(path: Path) -> str | None:
    """None: the front door, nanocaption/__init__.py and __main__.py."""
    place = path.relative_to(ROOT / "nanocaption")
    return place.parts[0] if len(place.parts) > 1 else None


def floor_broken(room: str, name: str) -> bool:
    """Whether `room` may not import `name`: a room above it or beside it."""
    parts = name.split(".")
    if parts[0] != "nanocaption" or len(parts) < 2 or parts[1] == room:
        return False
    return parts[1] not in FLOOR or FLOOR[parts[1]] >= FLOOR[room]


def test_the_readers_of_imports_see_every_form():
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n    import i\n    from j import k\n"
    assert imported(source) == ["a.b", "c", "e.f.g", "i", "j.k"]
    assert not floor_broken("data", "nanocaption.base.files") and not floor_broken("data", "nanocaption.data.order")
    assert floor_broken("data", "nanocaption.model.encoder") and floor_broken("model", "nanocaption.runs.folder")
    assert floor_broken("base", "nanocaption.load")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_rules(path):
    room, names = room_of(path), imported(path.read_text(encoding="utf-8"))
    assert not FACES & {name.partition(".")[0] for name in names}, "nothing imports a file of the root"
    if room is None:
        return
    assert room in FLOOR, f"{room} stands on no floor"
    assert [name for name in names if floor_broken(room, name)] == [], "imports go down only"
    heavy = sorted({name.partition(".")[0] for name in names} & HEAVY)
    if room in LIGHT or path.stem in LIGHT_HALF.get(room, ()):
        assert heavy == [], "a light room imports nothing heavy"
    if path.name == "__init__.py" and room not in ("metrics", "demo_set"):
        assert path.read_text() == ""
    own_as = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)
              and "nanocaption" in (getattr(node, "module", None) or node.names[0].name)
              and any(alias.asname for alias in node.names)]  # fmt: skip
    assert own_as == [], "a module keeps its name"


def unclear(source: str) -> list[str]:
    """The public functions and methods of a source that say Any, or nothing, of what goes in or out."""
    found = []
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef)
               and not getattr(node, "name", "").startswith("_")]  # fmt: skip
    for owner, function in ((its, node) for its in classes for node in its.body
                            if isinstance(node, ast.FunctionDef)):  # fmt: skip
        a = function.args
        given = [arg for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
                 if arg and arg.arg not in ("self", "cls")]  # fmt: skip
        said = [function.returns, *(arg.annotation for arg in given)]
        names = {node.id for one in said if one for node in ast.walk(one) if isinstance(node, ast.Name)}
        if not function.name.startswith("_") and (None in said or "Any" in names):
            found.append(function.name if isinstance(owner, ast.Module) else f"{owner.name}.{function.name}")
    return found


def crossing(sources: dict[Path, str]) -> set[str]:
    """The names in full, nanocaption.ROOM.FILE.NAME, that a file of another room or of the root uses."""
    found = set()
    for path, source in sources.items():
        tree, own = ast.parse(source), path.relative_to(ROOT).parts[:-1]
        names, modules = imported(source), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanocaption"):
                modules |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        names += [f"{modules[node.value.id]}.{node.attr}" for node in ast.walk(tree)
                  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                  and node.value.id in modules]  # fmt: skip
        found |= {name for name in names if tuple(name.split(".")[:2]) != own}
    return found


def test_what_crosses_a_border_has_a_type():
    source = "def f(a: int, *b: str) -> Any: ...\nclass C:\n    def g(self, a): ...\ndef _h(a): ..."
    assert unclear(source) == ["f", "C.g"]
    read = {ROOT / "nanocaption/use/a.py": "from nanocaption.base import b\nb.c()",
            ROOT / "nanocaption/base/f.py": "from nanocaption.base import b\nb.g()",
            ROOT / "train.py": "from nanocaption.train.d import e"}  # fmt: skip
    assert {"nanocaption.base.b.c", "nanocaption.train.d.e"} <= crossing(read)
    assert "nanocaption.base.b.g" not in crossing(read)
    used = crossing({path: path.read_text(encoding="utf-8") for path in [*PACKAGE, *ROOT.glob("*.py")]})
    found = []
    for path in PACKAGE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found += [name for function in unclear(path.read_text(encoding="utf-8"))
                  if (name := f"{module}.{function}") in used or f"{module}.{function.partition('.')[0]}" in used]
    assert found == []


def test_every_name_of_a_floor_is_a_room():
    assert {room for path in PACKAGE if (room := room_of(path))} == set(FLOOR)


def test_rooms_import_files_without_any_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
               for path in PACKAGE}  # fmt: skip
    needs = {}
    for module, path in modules.items():
        names = imported(path.read_text(encoding="utf-8"))
        needs[module] = {found for name in names for found in (name, name.rpartition(".")[0]) if found in modules}
        needs[module] -= {module, "nanocaption", module.rpartition(".")[0]}
    done: set[str] = set()
    while ready := {module for module in needs if module not in done and needs[module] <= done}:
        done |= ready
    assert sorted(set(needs) - done - {"nanocaption"}) == []


def test_light_rooms_stay_light_when_imported():
    code = (
        "import sys, nanocaption, prepare_dataset, nanocaption.score.results, nanocaption.base.settings, "
        "nanocaption.metrics\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'wandb', 'huggingface_hub', 'pyarrow', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
