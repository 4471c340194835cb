"""A raw folder that has grown or changed since its set was made: what is told, what --remake does, what is kept."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import prepare_dataset
from nanocaption.base.settings import load_settings
from nanocaption.data.prepared import is_whole, kept_captions, verify
from nanocaption.prepare import changes, check, make
from nanocaption.prepare.make import look_first, prepare
from tests.raw_sets import listing, make_raw, run_script, stop_at_rename, write_csv

RULES = check.Rules(max_bad_fraction=0.5)


def rows(number: int) -> list[list[str]]:
    return [[f"{n}.png", f"a dog {n}"] for n in range(number)]


def save(raw: Path, number: int, shade: int = 0) -> None:
    Image.new("RGB", (10, 10), (number, shade, 99)).save(raw / f"{number}.png")


def captions(raw: Path, given: list[list[str]]) -> None:
    write_csv(raw / "captions.csv", ["image", "caption"], given)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """60 pictures without splits; 59.png is none."""
    (tmp_path / "raw").mkdir()
    for number in range(60):
        save(tmp_path / "raw", number)
    (tmp_path / "raw" / "59.png").write_bytes(b"no picture")
    captions(tmp_path / "raw", rows(60))
    return tmp_path / "raw"


@pytest.fixture
def made(tmp_path: Path, raw: Path) -> Path:
    return again(tmp_path, raw)


def again(tmp_path: Path, raw: Path | None, **more) -> Path:
    return prepare("mine", tmp_path, raw_dir=raw, rules=RULES, **more)


def split_of(folder: Path) -> dict[str, str]:
    return {row["file_name"]: row["split"] for row in json.loads((folder / "captions.json").read_text())["images"]}


def grow(raw: Path, number: int = 61) -> None:
    for new in range(60, number):
        save(raw, new)
    captions(raw, rows(number))


def test_what_changed_is_told_with_counts_and_the_way_on(tmp_path, raw, made):
    before = listing(made)
    assert again(tmp_path, raw) == made  # the control: unchanged
    grow(raw, 62)
    captions(raw, [[name, text + " runs" if name in ("3.png", "4.png", "5.png") else text]
                   for name, text in rows(62) if name != "7.png"])  # fmt: skip
    with pytest.raises(ValueError) as told:
        again(tmp_path, raw)
    assert (
        "2 pictures (60.png, 61.png) more; 1 picture (7.png) less; 3 pictures (3.png, 4.png, 5.png) with other "
        "captions. To make it anew from what is there now, run prepare_dataset.py --remake"
    ) in str(told.value) and "\n" not in str(told.value)
    assert again(tmp_path, None) == made == again(tmp_path, raw, compare=False)
    assert listing(made) == before


def test_a_caption_file_in_another_order_is_no_change_and_other_spaces_are_one(tmp_path, raw, made):
    captions(raw, rows(60)[::-1])
    assert again(tmp_path, raw) == made
    captions(raw, [[name, f"  {text} "] for name, text in rows(60)])  # references stay as they are written
    with pytest.raises(ValueError, match=r"59 pictures \(0.png, 1.png, 2.png, ...\) with other captions"):
        again(tmp_path, raw)


def test_another_split_of_the_source_is_told(tmp_path):
    raw = make_raw(tmp_path / "raw")
    prepare("mine", tmp_path, raw_dir=raw)
    path = raw / "dataset_flickr30k.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "val"'))
    with pytest.raises(ValueError, match=r"1 picture \(\S+\) in another split"):
        prepare("mine", tmp_path, raw_dir=raw)


def test_remake_grows_the_set_and_moves_no_picture(tmp_path, raw, made, capsys):
    old, text = split_of(made), (made / "captions.json").read_bytes()
    grow(raw, 90)
    capsys.readouterr()
    assert again(tmp_path, raw, remake=True) == made and is_whole(made)
    new = split_of(made)
    assert old.items() <= new.items() and len(new) == 89
    assert [[*new.values()].count(split) for split in ("train", "val", "test")] == [61, 20, 8]
    kept = kept_captions(made, hashlib.sha256(text).hexdigest())
    assert kept.read_bytes() == text
    told = capsys.readouterr().out
    assert "59 pictures keep the split that they had" in told and str(kept) in told
    assert again(tmp_path, raw) == made  # now there is nothing to tell
    # The control: drawn afresh, some would lie elsewhere.
    assert not old.items() <= split_of(prepare("fresh", tmp_path, raw_dir=raw, rules=RULES)).items()


def test_a_picture_that_was_taken_out_and_comes_back_has_its_split_again(tmp_path, raw, made):
    old = split_of(made)
    gone = [name for name, split in old.items() if split == "test"][1:]
    captions(raw, [row for row in rows(60) if row[0] not in gone])
    again(tmp_path, raw, remake=True)
    assert not set(gone) & set(split_of(made))
    captions(raw, rows(60))
    again(tmp_path, raw, remake=True)
    assert len(gone) == 4 and all(split_of(made)[name] == "test" for name in gone)


def test_a_split_that_lost_all_its_pictures_is_told_and_the_set_stays(tmp_path, raw, made):
    gone = [name for name, split in split_of(made).items() if split == "test"]
    captions(raw, [row for row in rows(60) if row[0] not in gone])
    with pytest.raises(ValueError, match=r"left for the split test, because .* add pictures, or delete \S*captions"):
        again(tmp_path, raw, remake=True)
    assert is_whole(made)


def test_a_set_drawn_by_an_older_rule_keeps_its_splits(tmp_path, raw, made):
    """Also where it has to be made again because a picture is missing."""
    text = (made / "captions.json").read_text()
    other = {"train": "val", "val": "train", "test": "train"}
    for number, name in enumerate(split_of(made)):
        line = next(line for line in text.split("\n") if f'"{name}"' in line)
        split = split_of(made)[name]
        text = text.replace(line, line.replace(f'"{split}"', f'"{other[split] if number else "test"}"'))
    (made / "captions.json").write_text(text)
    manifest = verify_less(made) | {"captions_sha256": hashlib.sha256(text.encode()).hexdigest()}
    (made / "manifest.json").write_text(json.dumps(manifest))
    old = split_of(made)
    assert again(tmp_path, raw) == made and split_of(made) == old
    (made / "images" / "3.png").unlink()
    assert again(tmp_path, raw) == made and is_whole(made) and split_of(made) == old
    grow(raw)
    again(tmp_path, raw, remake=True)
    assert old.items() <= split_of(made).items()


def verify_less(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_another_seed_says_what_to_delete_and_then_draws_anew(tmp_path, raw, made):
    old = split_of(made)
    with pytest.raises(ValueError, match=r"DATA_SEED = 1, now it is 2: .*delete \S*captions\*.json, all of them"):
        again(tmp_path, raw, seed=2)
    for path in made.glob("captions*.json"):
        path.unlink()
    assert split_of(again(tmp_path, raw, seed=2)) != old


@pytest.mark.parametrize("step", range(5))
def test_a_remake_that_is_stopped_at_any_rename_ends_like_an_uninterrupted_one(tmp_path, raw, made, monkeypatch, step):
    shutil.copytree(made, tmp_path / "reference" / "mine", copy_function=shutil.copy2)
    grow(raw)
    wanted = listing(prepare("mine", tmp_path / "reference", raw_dir=raw, rules=RULES, remake=True))
    stop_at_rename(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, raw, remake=True)
    monkeypatch.undo()
    assert not is_whole(made)
    again(tmp_path, raw)
    found = listing(made)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name] and name != "scan.jsonl"] == []


def test_a_remake_that_is_refused_leaves_the_set_whole(tmp_path, raw, made):
    before = split_of(made)
    grow(raw)
    for number in range(40):
        (raw / f"{number}.png").unlink()
        (raw / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="41 of 61 pictures"):
        again(tmp_path, raw, remake=True)
    assert is_whole(made) and split_of(made) == before and again(tmp_path, None) == made


# --- pictures ---


def replace(path: Path, shade: int = 200) -> None:
    path.unlink()
    save(path.parent, int(path.stem), shade)


def test_replaced_pictures_are_told_and_taken_by_remake(tmp_path, raw, made, monkeypatch):
    examine, decoded = check.examine, []
    monkeypatch.setattr(check, "examine", lambda path: decoded.append(Path(path).name) or examine(path))
    for number in (4, 5, 6):
        replace(raw / f"{number}.png")
    with pytest.raises(ValueError, match=r"other pictures than .*: 3 pictures \(4.png, 5.png, 6.png\) replaced"):
        again(tmp_path, raw)
    assert not decoded
    old = split_of(made)
    again(tmp_path, raw, remake=True)
    assert decoded == ["4.png", "5.png", "6.png"] and split_of(made) == old
    assert (made / "images" / "4.png").read_bytes() == (raw / "4.png").read_bytes()
    assert again(tmp_path, raw) == made


def test_of_one_size_and_another_time_the_content_decides(tmp_path, raw, made):
    for path in raw.glob("*.png"):
        copy = path.with_name("copy")
        shutil.copyfile(path, copy)
        os.utime(copy, (1, 1))
        os.replace(copy, path)
    assert again(tmp_path, raw) == made  # moved to another disk without its times
    content = (raw / "8.png").read_bytes()
    (raw / "8.png").write_bytes(content[:-5] + b"abcde")
    with pytest.raises(ValueError, match=r"1 picture \(8.png\) replaced"):
        again(tmp_path, raw)


def test_a_mended_picture_that_was_refused_is_told(tmp_path, raw, made):
    save(raw, 59)
    with pytest.raises(ValueError, match=r"1 picture \(59.png\) replaced"):
        again(tmp_path, raw)
    again(tmp_path, raw, remake=True)
    assert "59.png" in split_of(made)


def test_a_raw_picture_edited_in_place_is_noticed_in_the_set_as_well(tmp_path, raw, made, capsys):
    assert os.path.samefile(raw / "9.png", made / "images" / "9.png")
    save(raw, 9, 77)  # into the same file
    for given in (raw, None):
        with pytest.raises(ValueError, match=r"1 picture \(9.png\)"):
            again(tmp_path, given)
    capsys.readouterr()
    assert again(tmp_path, raw, compare=False) == made
    assert "Note: " in (told := capsys.readouterr().out) and "1 picture (9.png) in its images/" in told
    again(tmp_path, raw, remake=True)
    assert again(tmp_path, raw) == again(tmp_path, None) == made


def test_a_copied_set_without_times_is_read_once(tmp_path, raw, made, monkeypatch):
    for path in (made / "images").iterdir():
        copy = path.with_name("copy")
        shutil.copyfile(path, copy)
        os.utime(copy, (1, 1))
        os.replace(copy, path)
    digest, read = changes._digest, []
    monkeypatch.setattr(changes, "_digest", lambda path: read.append(path.name) or digest(path))
    assert again(tmp_path, None) == made and len(read) == 59
    assert again(tmp_path, None) == made and len(read) == 59


def test_pictures_that_are_gone_from_the_raw_folder_are_no_matter(tmp_path, raw, made):
    (raw / "3.png").unlink()
    assert again(tmp_path, raw) == made
    replace(raw / "4.png")
    with pytest.raises(ValueError, match=r"1 picture \(4.png\) replaced"):
        again(tmp_path, raw)


def test_an_archive_that_changed_is_told_and_unpacked_again(tmp_path, raw):
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", raw))
    folder = again(tmp_path, archive)
    assert again(tmp_path, archive) == folder
    content = (raw / "2.png").read_bytes()
    replace(raw / "2.png", 1)
    assert len((raw / "2.png").read_bytes()) == len(content)  # so that a size would not tell
    shutil.make_archive(str(tmp_path / "set"), "zip", raw)
    with pytest.raises(ValueError, match="the archives are others"):
        again(tmp_path, archive)
    again(tmp_path, archive, remake=True)
    assert (folder / "images" / "2.png").read_bytes() == (raw / "2.png").read_bytes() != content


def test_shards_that_changed_are_told_and_unpacked_again(tmp_path, raw):
    def pack(number: int) -> None:
        for n, (name, text) in enumerate(rows(number)):
            (raw / f"{n}.txt").write_text(text)
            assert (raw / name).exists()
        with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
            for n in range(number):
                for suffix in (".png", ".txt"):
                    tar.add(raw / f"{n}{suffix}", f"{n}{suffix}")

    (tmp_path / "shards").mkdir()
    shards = tmp_path / "shards"
    pack(40)
    folder = again(tmp_path, shards)
    old = split_of(folder)
    assert again(tmp_path, shards) == folder and len(old) == 40
    content = (raw / "2.png").read_bytes()
    replace(raw / "2.png", 1)
    assert len((raw / "2.png").read_bytes()) == len(content)
    pack(40)
    with pytest.raises(ValueError, match="the files are others"):
        again(tmp_path, shards)
    pack(45)
    with pytest.raises(ValueError, match=r"5 pictures \(40.png, 41.png, 42.png, ...\) more"):
        again(tmp_path, shards)
    again(tmp_path, shards, remake=True)
    assert (folder / "images" / "2.png").read_bytes() == (raw / "2.png").read_bytes() != content
    assert old.items() <= split_of(folder).items() and len(split_of(folder)) == 45
    assert again(tmp_path, shards) == folder


def test_a_changed_part_of_a_mix_is_told(tmp_path, raw, made):
    prepare("demo", tmp_path, cutoff=2)
    prepare("mine,demo", tmp_path, rules=RULES, cutoff=2)
    save(raw, 9, 77)
    with pytest.raises(ValueError, match=r"mine was made from other files than 1 picture \(9.png\)"):
        prepare("mine,demo", tmp_path, rules=RULES, cutoff=2)
    with pytest.raises(ValueError, match="name of one set"):
        prepare("mine,demo", tmp_path, rules=RULES, cutoff=2, remake=True)


# --- the command, and what is told first ---


def test_the_command_remakes_and_says_when_it_cannot(tmp_path, raw):
    flags = ["--dataset", "mine", "--raw-data-dir", str(raw), "--max-bad-fraction", "0.5"]
    assert run_script(tmp_path, *flags).code == 0
    grow(raw)
    done = run_script(tmp_path, *flags)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1
    assert "1 picture (60.png) more" in done.err and "--remake" in done.err
    done = run_script(tmp_path, "--remake", *flags)
    assert done.code == 0, done.err
    assert "60.png" in split_of(tmp_path / "data" / "mine") and "59 pictures keep the split" in done.out
    done = run_script(tmp_path, "--remake", "--dataset", "mine")
    assert done.code == 1 and "--remake makes a set of your own anew from RAW_DATA_DIR" in done.err
    assert is_whole(tmp_path / "data" / "mine")


def test_help_tells_of_remake(capsys):
    with pytest.raises(SystemExit):
        prepare_dataset.main(["--help"])
    assert "--remake" in capsys.readouterr().out


def settings(tmp_path: Path, raw: Path, dataset: str = "mine"):
    return load_settings(["--dataset", dataset, "--data-dir", str(tmp_path), "--raw-data-dir", str(raw)])


def test_the_raw_folder_is_looked_at_first_and_nothing_is_made(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(make, "make_set", None)
    look_first(settings(tmp_path, raw))
    (raw / "empty").mkdir()
    for where, message in ((raw / "nowhere", "no such folder"), (raw / "empty", "no captions in a known layout")):
        with pytest.raises(ValueError, match=message):
            look_first(settings(tmp_path / "data", where))
    (raw / "5.png").unlink()
    with pytest.raises(ValueError, match=r"1 picture \(5.png\) named by the captions but missing"):
        look_first(settings(tmp_path, raw))
    (raw / "captions.csv").write_text("words;text\n")
    with pytest.raises(ValueError, match="expected a header"):
        look_first(settings(tmp_path, raw))
    with pytest.raises(ValueError, match="several sets"):
        look_first(settings(tmp_path, raw, "mine,demo"))
    with pytest.raises(ValueError, match="'other' is not in"):
        look_first(load_settings(["--dataset", "other", "--data-dir", str(tmp_path)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_a_changed_folder_is_told_at_the_look(tmp_path, raw, made):
    look_first(settings(tmp_path, raw))
    grow(raw)
    with pytest.raises(ValueError, match=r"1 picture \(60.png\) more"):
        look_first(settings(tmp_path, raw))
    assert verify(made)
