"""The plan of the house: which room may import which, read from the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> what of ours it may import. Only scripts read config; runs, inference and training_run apply it for them.
ALLOWED = {
    "config": {"config_checks"},
    "config_checks": set(),
    "tokenizer": set(),
    "caches": {"files"},
    "packing": set(),
    "captions": set(),
    "pictures": set(),
    "transform": {"pictures"},
    "dataset": {"packing", "signals", "transform"},
    "encoder": set(),
    "hub": set(),
    "card": {"mixing"},
    "pretrained": {"checkpoint", "decode", "encoder", "hub", "tokenizer", "transform"},
    "model": {"encoder", "packing", "pretrained"},  # the last for from_pretrained and caption alone
    "decode": {"options"},
    "decoding_flags": {"options"},
    "options": set(),
    "optim": {"sharding"},
    "sharding": {"distributed"},
    "metrics": set(),
    "checkpoint": {"commands"},
    "commands": set(),
    "distributed": set(),
    "runlog": {"distributed"},
    "runs": {"checkpoint", "config", "distributed", "mixing"},
    "attention": {"tokenizer"},
    "inference": {
        "attention", "checkpoint", "config", "dataset", "decode", "hub", "model", "pretrained", "runs", "tokenizer",
    },
    "training_sets": {"caches", "dataset", "distributed", "encoder", "inference", "model", "runlog", "tokenizer"},
    "signals": set(),
    "saver": {"checkpoint", "runs"},
    "snapshot": {"checkpoint", "distributed", "model", "optim", "sharding"},
    "step": {"dataset", "distributed", "inference", "model", "sharding"},
    "training_run": {
        "batch_size", "checkpoint", "config", "dataset", "distributed", "inference", "model", "optim",
        "prepare_dataset", "runlog", "runs", "saver", "sharding", "signals", "snapshot", "tokenizer", "training_sets",
    },
    "batch_size": {"checkpoint", "dataset", "distributed", "inference", "model", "step"},
    "profiling": {"dataset", "distributed", "inference", "runlog", "signals", "step", "training_run"},
    "trouble": {"dataset", "distributed", "runlog", "training_run"},
    "tracking": {"distributed", "report", "runlog"},
    "report": {"files", "pictures", "report_html"},
    "report_html": set(),
    "results": {"files", "metrics", "report"},
    "demo_set": set(),
    "mixing": set(),
    "download": {"files", "hub"},
    "files": set(),
    "caption_files": {"files"},
    "archives": {"files"},
    "packed": {"archives", "caption_files", "files"},
    "layouts": {"archives", "caption_files", "files", "packed"},
    "flickr30k": {"archives", "caption_files", "download", "files", "hub", "packed"},
    "preflight": {"captions", "pictures", "preflight_report"},
    "preflight_report": {"files"},
    "prepare_dataset": {
        "archives", "commands", "config", "demo_set", "files", "flickr30k", "layouts", "mixing", "preflight",
        "preflight_report",
    },
    "evaluate": {
        "commands", "config", "tokenizer", "dataset", "model", "decode", "decoding_flags", "metrics", "checkpoint",
        "files", "distributed", "report", "inference", "demo_set", "mixing", "prepare_dataset", "results",
        "training_sets",
    },
    "caption": {
        "attention", "commands", "config", "tokenizer", "dataset", "model", "decode", "decoding_flags", "checkpoint",
        "files", "inference", "pictures",
    },
}  # fmt: skip
ALLOWED["export"] = {
    "card", "commands", "config", "distributed", "encoder", "hub", "inference", "mixing", "model", "pretrained",
    "report", "results", "saver",
}
ALLOWED["demo"] = {
    "commands", "config", "dataset", "inference", "mixing", "pretrained", "report", "transform",
}
ALLOWED["train"] = set(ALLOWED) - {"demo"}
SCRIPTS = {"prepare_dataset", "train", "evaluate", "caption", "export", "demo"}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def imports(source: str) -> set[str]:
    """Top-level names of all modules a source imports, inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            found.add(node.module.partition(".")[0])
    return found


def imports_of(room: str) -> set[str]:
    return set().union(*(imports(path.read_text(encoding="utf-8")) for path in sources(room))) - {room}


def test_the_reader_of_imports_sees_every_form():
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n    import i\n    from j import k\n"
    assert imports(source) == {"a", "c", "e", "i", "j"}


def test_the_table_names_every_room():
    rooms = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms - {"tests"} == set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_the_table_allows(room):
    ours = imports_of(room) & set(ALLOWED)
    assert ours <= ALLOWED[room], f"{room} must not import {sorted(ours - ALLOWED[room])}"


def test_nothing_imports_train_and_only_scripts_and_their_helpers_import_config():
    importers = {name: {room for room in ALLOWED if name in imports_of(room)} for name in ("train", "config")}
    assert importers["train"] == set()
    assert importers["config"] <= SCRIPTS | {"runs", "inference", "training_run"}


def test_rooms_import_without_any_circle():
    order: list[str] = []
    waiting = {room: imports_of(room) & set(ALLOWED) for room in ALLOWED}
    while ready := [room for room in waiting if waiting[room] <= set(order)]:
        order += ready
        waiting = {room: needs for room, needs in waiting.items() if room not in ready}
    assert waiting == {}


def test_light_rooms_import_nothing_heavy():
    heavy = {"torch", "torchvision", "transformers", "tokenizers", "safetensors", "wandb"}
    assert imports_of("config") | imports_of("config_checks") <= {*sys.stdlib_module_names, "config_checks"}
    for room in ("metrics", "layouts", "caption_files", "packed", "archives", "download", "report", "report_html",
                 "results", "demo_set", "flickr30k", "captions", "pictures", "preflight", "preflight_report",
                 "prepare_dataset", "hub", "card", "decoding_flags", "commands",
                 "options"):  # fmt: skip
        assert not imports_of(room) & heavy, room
    assert imports_of("decode") <= {*sys.stdlib_module_names, "torch", "options"}  # knows no text and no files


def test_light_rooms_stay_light_when_imported():
    code = (
        "import sys, config, metrics, layouts, report, results, flickr30k, prepare_dataset, card, hub\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'wandb', 'huggingface_hub', 'pyarrow', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_passes_400_lines_by_much():
    long = {path.name: len(path.read_text().splitlines()) for room in ALLOWED for path in sources(room)}
    assert {name: lines for name, lines in long.items() if lines > 440} == {}
