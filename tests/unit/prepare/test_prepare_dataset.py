"""From a raw folder to a whole set: what is brought over, what survives a kill, what is never taken for whole."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from nanocaption.data.prepared import is_whole, verify
from nanocaption.prepare import layouts, make
from nanocaption.prepare.make import prepare
from nanocaption.prepare.picture_files import find_pictures
from tests.raw_sets import (
    NAMES,
    ROOT,
    draw,
    fix_splits,
    jpeg,
    listing,
    make_raw,
    prepared_records,
    run_script,
    stop_at_rename,
    write_csv,
    write_kaggle_txt,
    write_token,
)


@pytest.mark.parametrize("place", [".", "images", "Images", "flickr30k-images", "flickr30k_images/flickr30k_images"])
def test_pictures_are_found_where_they_lie(tmp_path, place):
    raw = make_raw(tmp_path / "raw", place)
    before = listing(raw)
    folder = prepare("mine", tmp_path / "data", raw_dir=raw)
    assert folder == tmp_path / "data" / "mine"
    assert json.loads((folder / "captions.json").read_text(encoding="utf-8")) == {"images": prepared_records()}
    assert {path.name: path.read_bytes() for path in (folder / "images").iterdir()} == {
        name: jpeg(20 + shade) for shade, name in enumerate(NAMES)
    }
    manifest = verify(folder)
    assert manifest["counts"] == {"train": {"images": 4, "captions": 12}, "val": {"images": 1, "captions": 3},
                                  "test": {"images": 1, "captions": 3}}  # fmt: skip
    assert (manifest["name"], manifest["layout"], manifest["source"]) == ("mine", "Karpathy JSON", str(raw.resolve()))
    assert listing(raw) == before


def test_captions_one_folder_below_and_linked_picture_folders_are_found(tmp_path):
    draw(tmp_path / "elsewhere")
    write_token(tmp_path / "raw" / "Flickr8k_text")
    (tmp_path / "raw" / "images").symlink_to(tmp_path / "elsewhere")
    assert verify(prepare("mine", tmp_path, raw_dir=tmp_path / "raw"))["counts"]["train"]["images"] == 4


def test_pictures_are_copied_where_links_fail(tmp_path, monkeypatch):
    raw = make_raw(tmp_path / "raw")
    linked = prepare("linked", tmp_path, raw_dir=raw)
    assert os.path.samefile(linked / "images" / NAMES[0], raw / "flickr30k-images" / NAMES[0])

    def refuse(*_args, **_kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copied = prepare("copied", tmp_path, raw_dir=raw)
    assert listing(copied / "images") == listing(linked / "images")
    assert not os.path.samefile(copied / "images" / NAMES[0], raw / "flickr30k-images" / NAMES[0])


def test_folders_in_file_names_are_kept(tmp_path):
    names = ["dogs/1.jpg", "cats/1.jpg", "3.jpg"]
    draw(tmp_path / "raw" / "images", names)
    rows = [[name, f"picture {name}", split] for name, split in zip(names, layouts.SPLITS, strict=True)]
    write_csv(tmp_path / "raw" / "captions.csv", ["image", "caption", "split"], rows)
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    assert {name: (folder / "images" / name).read_bytes() for name in names} == {
        name: jpeg(20 + shade) for shade, name in enumerate(names)
    }
    (folder / "images" / "cats" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 picture \(cats/1.jpg\) missing in images/"):
        verify(folder)


def test_missing_pictures_are_refused_with_cases_and_count(tmp_path):
    raw = make_raw(tmp_path / "raw")
    for name in NAMES[1:5]:
        (raw / "flickr30k-images" / name).unlink()
    with pytest.raises(ValueError, match=rf"4 pictures \({NAMES[1]}, {NAMES[2]}, {NAMES[3]}, ...\) named by the capt"):
        prepare("mine", tmp_path, raw_dir=raw)
    assert not (tmp_path / "mine").exists()


def test_two_different_pictures_of_one_name_are_refused_but_copies_are_fine(tmp_path):
    raw = make_raw(tmp_path / "raw", "a")
    shutil.copytree(raw / "a", raw / "b")
    pictures = find_pictures(raw, NAMES).pictures
    assert pictures[NAMES[0]] == raw / "a" / NAMES[0]
    (raw / "b" / NAMES[0]).write_bytes(jpeg(200))
    with pytest.raises(ValueError, match=rf"two different pictures are called {NAMES[0]} \(a/{NAMES[0]}, b/"):
        prepare("mine", tmp_path, raw_dir=raw)
    with pytest.raises(ValueError, match=r"1 picture \(.*\) under two file names"):
        find_pictures(raw, [NAMES[1], f"a/{NAMES[1]}"])


def test_pictures_without_captions_and_junk_are_left_out(tmp_path):
    raw = make_raw(tmp_path / "raw")
    draw(raw / "flickr30k-images", ["extra.jpg", f"._{NAMES[0]}", f"__MACOSX/{NAMES[1]}"])
    folder = prepare("mine", tmp_path, raw_dir=raw)
    assert sorted(path.name for path in (folder / "images").iterdir()) == sorted(NAMES)
    assert any("1 picture (flickr30k-images/extra.jpg) below" in note for note in verify(folder)["notes"])


def test_whole_set_is_not_made_again(tmp_path, monkeypatch, capsys):
    raw = make_raw(tmp_path / "raw")
    folder = prepare("mine", tmp_path, raw_dir=raw)
    before = listing(folder)
    monkeypatch.setattr(make, "prepare_folder", None)
    capsys.readouterr()
    assert prepare("mine", tmp_path, raw_dir=raw) == folder
    assert capsys.readouterr().out.count("\n") == 1
    shutil.rmtree(raw)
    assert prepare("mine", tmp_path, raw_dir=raw) == prepare("mine", tmp_path) == folder
    assert listing(folder) == before


def test_a_smaller_cutoff_uses_the_set_there_is_and_a_larger_one_makes_it_again(tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    folder = prepare("mine", tmp_path, raw_dir=raw, cutoff=1)
    assert verify(folder)["counts"]["train"]["images"] == 1
    prepare("mine", tmp_path, raw_dir=raw)
    assert "making it again with more" in capsys.readouterr().out
    whole = listing(folder)
    assert verify(folder)["counts"]["train"]["images"] > 1
    prepare("mine", tmp_path, raw_dir=raw, cutoff=1)
    assert listing(folder) == whole


def test_changed_source_or_seed_is_an_error_not_a_stale_set(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    raw = draw(tmp_path / "raw" / "images").parent
    write_kaggle_txt(raw)
    prepare("mine", tmp_path, raw_dir=raw, seed=1)
    with pytest.raises(ValueError, match="made with DATA_SEED = 1, now it is 2"):
        prepare("mine", tmp_path, raw_dir=raw, seed=2)
    with (raw / "captions.txt").open("a") as file:
        file.write(f"{NAMES[0]},one more caption\n")
    with pytest.raises(ValueError, match="made from other captions"):
        prepare("mine", tmp_path, raw_dir=raw, seed=1)
    (tmp_path / "mine" / "manifest.json").unlink()
    assert verify(prepare("mine", tmp_path, raw_dir=raw, seed=1))["counts"]["train"]["captions"] == 13


def test_cutoff_takes_the_first_pictures_of_each_split(tmp_path):
    folder = prepare("mine", tmp_path, raw_dir=make_raw(tmp_path / "raw"), cutoff=2)
    images = json.loads((folder / "captions.json").read_text(encoding="utf-8"))["images"]
    assert [image["file_name"] for image in images] == [NAMES[0], NAMES[1], NAMES[4], NAMES[5]]
    assert sorted(path.name for path in (folder / "images").iterdir()) == [NAMES[0], NAMES[1], NAMES[4], NAMES[5]]


# --- interrupted and damaged sets ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(len(NAMES) + 2))
def test_a_run_stopped_at_any_rename_is_never_whole_and_the_rerun_finishes(tmp_path, monkeypatch, step):
    raw = make_raw(tmp_path / "raw")
    whole = listing(prepare("mine", tmp_path / "reference", raw_dir=raw))
    done = stop_at_rename(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        prepare("mine", tmp_path, raw_dir=raw)
    monkeypatch.undo()
    assert not is_whole(tmp_path / "mine")
    assert "manifest.json" not in done
    kept = {name: (tmp_path / "mine" / "images" / name).stat().st_ino for name in done[:len(NAMES)]}
    prepare("mine", tmp_path, raw_dir=raw)
    assert listing(tmp_path / "mine") == whole
    assert {name: (tmp_path / "mine" / "images" / name).stat().st_ino for name in kept} == kept


def test_remaking_takes_the_old_manifest_away_first(tmp_path, monkeypatch):
    raw = make_raw(tmp_path / "raw")
    folder = prepare("mine", tmp_path, raw_dir=raw)
    (folder / "images" / NAMES[0]).unlink()
    monkeypatch.setattr(make, "write_set", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare("mine", tmp_path, raw_dir=raw)
    assert (folder / "images" / NAMES[0]).exists() and not is_whole(folder)


def test_edited_captions_are_noticed_and_never_overwritten(tmp_path):
    raw = make_raw(tmp_path / "raw")
    folder = prepare("mine", tmp_path, raw_dir=raw)
    text = (folder / "captions.json").read_text(encoding="utf-8").replace("dogs racing", "dogs RACING", 1)
    (folder / "captions.json").write_text(text, encoding="utf-8")
    assert not is_whole(folder)
    with pytest.raises(ValueError, match="captions.json has changed since manifest.json was written"):
        prepare("mine", tmp_path, raw_dir=raw)
    assert (folder / "captions.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    (lambda folder: (folder / "captions.json").unlink(), "has no captions.json"),
    (lambda folder: (folder / "images" / NAMES[3]).unlink(), rf"1 picture \({NAMES[3]}\) missing"),
    (lambda folder: (folder / "manifest.json").write_text('{"name"'), "manifest.json is no JSON"),
    (lambda folder: (folder / "manifest.json").write_text("{}"), "lacks counts or captions_sha256"),
    (lambda folder: shutil.rmtree(folder), "has no manifest.json"),
])  # fmt: skip
def test_damaged_sets_are_not_whole_and_are_made_again(tmp_path, damage, message):
    raw = make_raw(tmp_path / "raw")
    folder = prepare("mine", tmp_path, raw_dir=raw)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        verify(folder)
    assert is_whole(prepare("mine", tmp_path, raw_dir=raw))


# --- names and the command ----------------------------------------------------------------------------------


def test_unknown_names_say_how_to_point_at_a_folder(tmp_path):
    with pytest.raises(ValueError, match="'flickr30' is not in .*demo, flickr30k.*RAW_DATA_DIR"):
        prepare("flickr30", tmp_path)
    with pytest.raises(ValueError, match="DATASET is 'demo', which is drawn here"):
        prepare("demo", tmp_path, raw_dir=tmp_path)
    for name in ("", "..", "a/b", "a\\b"):
        with pytest.raises(ValueError, match="plain name of a folder"):
            prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_demo_set_is_drawn_whole_with_its_scenes(tmp_path):
    folder = prepare("demo", tmp_path, seed=3, cutoff=4)
    manifest = verify(folder)
    assert manifest["counts"] == {split: {"images": 4, "captions": 20} for split in layouts.SPLITS}
    assert (manifest["seed"], manifest["layout"]) == (3, "demo")
    images = json.loads((folder / "captions.json").read_text(encoding="utf-8"))["images"]
    assert all(image["scene"] for image in images)


def test_help_imports_nothing_heavy():
    code = "import sys, prepare_dataset; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "nanocaption.prepare.layouts" in loaded
    assert not loaded & {"torch", "huggingface_hub", "PIL", "numpy", "nanocaption.demo_set"}


def test_the_command_reads_a_folder_and_ends_mistakes_in_one_line(tmp_path):
    raw = make_raw(tmp_path / "raw")
    done = run_script(tmp_path, "--dataset", "mine", "--raw-data-dir", str(raw))
    assert done.code == 0, done.err
    assert "layout Karpathy JSON, because dataset_flickr30k.json stands in" in done.out
    assert "train 4 pictures / 12 captions" in done.out and is_whole(tmp_path / "data" / "mine")
    done = run_script(tmp_path, "--dataset", "other")
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1 and "RAW_DATA_DIR" in done.err
