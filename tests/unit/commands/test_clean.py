"""`nanocaption clean` says what is whose, and removes only what nobody uses."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from nanocaption.base.files import locked
from nanocaption.commands import clean
from nanocaption.data.caches import note_user
from tests.processes import end, fork

DEAD = 4_000_000  # above the largest number of a process


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set with caches of a run that is there, of one that is gone, of nobody, and a half-made one; and leavings."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for path in ("data/mine/images/a.png", "data/mine/captions.json", "data/mine/manifest.json", "runs/first/log.jsonl",
                 "data/mine/tokenizer/digest.json", "data/mine/unpacked/a.png", "runs/first/last.safetensors",
                 "runs/first/eval/scores.json", "runs/empty/.lock", "runs/first/.lock",
                 "data/half/download/part", f"runs/first/.last.safetensors.{DEAD}.tmp",
                 f"data/mine/.captions.json.{DEAD}.tmp", f"data/mine/.captions.json.{os.getpid()}.tmp",
                 "tmp/nanocaption-demo-x/.lock", "tmp/other/file"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("content")
    for name, run in (("pictures_used", "first"), ("pictures_gone", "gone"), ("pictures_nobodys", None)):
        cache = tmp_path / "data/mine/cache" / name
        cache.mkdir(parents=True)
        (cache / "00000-x.npy").write_bytes(bytes(9000))
        (cache / "whole").touch()
        note_user(cache, tmp_path / "runs" / run if run else None)
    shutil.copytree(tmp_path / "data/mine/cache/pictures_gone", tmp_path / "caches/mine/cache/features_gone")
    (tmp_path / "data/mine/cache/half_made").mkdir()
    return tmp_path


def argv(place: Path) -> list[str]:
    return [f"--data-dir={place / 'data'}", f"--output-dir={place / 'runs'}", f"--cache-dir={place / 'caches'}"]


def files(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


UNUSED = {
    "data/mine/unpacked", f"data/mine/.captions.json.{DEAD}.tmp", "data/mine/cache/pictures_gone",
    "data/mine/cache/half_made", "caches/mine/cache/features_gone", "runs/empty", "tmp/nanocaption-demo-x",
    f"runs/first/.last.safetensors.{DEAD}.tmp",
}  # fmt: skip


def test_only_what_is_unused_goes_and_all_is_told(place, capsys):
    before = files(place)
    clean.main([*argv(place), "--dry-run"])
    said = capsys.readouterr().out
    assert files(place) == before and "nothing was removed (--dry-run)" in said
    lines = {line.split(": ")[0].split("  ")[-1]: line for line in said.splitlines()[:-1]}
    told = {str(Path(path).relative_to(place)) for path, line in lines.items() if line.startswith("unused")}
    assert told == UNUSED
    assert "a cache of first" in lines[str(place / "data/mine/cache/pictures_used")]
    clean.main(argv(place))
    gone = {name for name in before if any(name == one or name.startswith(f"{one}/") for one in UNUSED)}
    assert files(place) == before - gone
    clean.main([*argv(place), "--dry-run"])
    assert "0 of" in capsys.readouterr().out.splitlines()[-1]


def test_what_a_process_holds_is_used(place, tmp_path, capsys):
    """A run in training, a cache in the making, a page that is served: each is removed once its lock is free."""
    held = ["runs/empty/.lock", "data/mine/cache/half_made/lock", "tmp/nanocaption-demo-x/.lock"]

    def hold_and_look() -> None:
        with locked(place / held[0], ""), locked(place / held[1], ""), locked(place / held[2], ""):
            assert end(fork(lambda: clean.main(argv(place)), tmp_path / "said", tmp_path / "said")) == 0

    assert end(fork(hold_and_look, tmp_path / "holder", tmp_path / "holder")) == 0
    assert all((place / name).exists() for name in held), (tmp_path / "said").read_text()
    assert not (place / "data/mine/cache/pictures_gone").exists()
    clean.main(argv(place))
    assert not any((place / name).exists() for name in held)


def test_a_link_is_removed_and_not_what_it_leads_to(place):
    target = place / "data/mine/cache/pictures_used"
    (place / f"data/mine/.images.{DEAD}.tmp").symlink_to(target, target_is_directory=True)
    clean.main(argv(place))
    assert (target / "whole").exists() and not (place / f"data/mine/.images.{DEAD}.tmp").is_symlink()
