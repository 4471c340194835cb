"""Texts that go with a picture by name: which counts, which lines are captions, what is paired and what is left."""

import json
import unicodedata
import zipfile

import pytest

from nanocaption.data.prepared import verify
from nanocaption.prepare import layouts, sidecars
from nanocaption.prepare.make import prepare, read_raw
from tests.raw_sets import jpeg, write


def put(folder, *names):
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(20 + shade))


def read(folder):
    """{name: captions} and all notes in one."""
    source = layouts.find(folder)
    assert source.name == "captions beside pictures"
    rows, notes = source.read()
    return {row.file_name: row.captions for row in rows}, "\n".join(notes)


def lines_of(*texts):
    """What becomes of the lines of these texts, and the notes."""
    paragraphs = {
        ("", str(number)): sidecars.parse_text(text.encode(), ".txt", "x").captions for number, text in enumerate(texts)
    }
    captions, notes = sidecars.captions_of_lines(paragraphs)
    return [*captions.values()], "\n".join(notes)


@pytest.mark.parametrize("ending", [".txt", ".caption", ".TXT", ".json"])
def test_a_text_beside_each_picture(tmp_path, ending):
    put(tmp_path, "a.jpg", "sub/b.1.png", "alone.jpg")
    for stem in ("a", "sub/b.1", "nobody"):
        write(
            tmp_path / f"{stem}{ending}",
            json.dumps({"caption": f"a dog {stem}"}) if ending == ".json" else f"a dog {stem}\n",
        )
    captions, notes = read(tmp_path)
    assert captions == {"a.jpg": ["a dog a"], "sub/b.1.png": ["a dog sub/b.1"]}
    assert f"1 text (nobody{ending}) without a picture" in notes


def test_pictures_without_a_text_are_counted_and_the_set_is_made(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for number in range(count):
            put(tmp_path / "raw" / split, f"{number}.jpg")
            (tmp_path / "raw" / split / f"{number}.jpg").write_bytes(jpeg(40 * len(split) + number))
            write(tmp_path / "raw" / split / f"{number}.txt", f"a dog of {split} {number}")
    put(tmp_path / "raw", "train/alone.jpg", "alone.jpg")
    manifest = verify(prepare("mine", tmp_path / "data", raw_dir=tmp_path / "raw"))
    assert {split: count["images"] for split, count in manifest["counts"].items()} == {"train": 3, "val": 2, "test": 2}
    assert any(note.startswith("2 pictures (alone.jpg, train/alone.jpg)") for note in manifest["notes"])
    assert (tmp_path / "data" / "mine" / "images" / "val" / "0.jpg").read_bytes() == jpeg(120)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "validation", "test"), ["train", "val", "test"]),
        (("train2014", "val2014", "val_images"), ["train", "val", "val"]),
        (("steam train", "cats", "dogs"), [None] * 3),
        (("train", "cats", "dogs"), [None] * 3),
        (("train",) * 3, [None] * 3),
    ],
)
def test_folders_are_splits_only_where_they_part_all(tmp_path, folders, splits):
    for number, folder in enumerate(folders):
        put(tmp_path, f"{folder}/x/{number}.jpg")
        write(tmp_path / folder / "x" / f"{number}.txt", "a dog")
    rows, notes = layouts.find(tmp_path).read()
    of_name = {row.file_name[-5:]: row.split for row in rows}
    assert [of_name[f"{number}.jpg"] for number in range(3)] == splits
    assert any("not taken for splits" in note for note in notes) == ("train" in folders and splits[0] is None)


@pytest.mark.parametrize(
    ("pictures", "texts"),
    [
        ("images", "captions"),
        ("images", "texts"),
        ("", "labels"),
        ("img", ""),
        ("train/images", "train/captions"),
        ("images/train", "captions/train"),
    ],
)
def test_texts_in_a_folder_beside_the_pictures(tmp_path, pictures, texts):
    for stem in ("a", "b"):
        put(tmp_path / pictures, f"{stem}.jpg")
        write(tmp_path / texts / f"{stem}.txt", f"a dog {stem}")
    captions, notes = read(tmp_path)
    assert {name[-5:]: said for name, said in captions.items()} == {"a.jpg": ["a dog a"], "b.jpg": ["a dog b"]}
    assert "2 texts (" in notes and "of nearly the picture's name: in a folder beside" in notes


def test_a_text_that_could_belong_to_two_pictures_belongs_to_none(tmp_path):
    put(tmp_path, "images/a.jpg", "photos/a.jpg", "images/b.jpg")
    write(tmp_path / "captions" / "a.txt", "a dog")
    write(tmp_path / "captions" / "b.txt", "a cat")
    captions, notes = read(tmp_path)
    assert captions == {"images/b.jpg": ["a cat"]} and "1 text (captions/a.txt) without a picture" in notes


def test_texts_in_other_case_or_unicode(tmp_path):
    put(tmp_path, "IMG_1.JPG", unicodedata.normalize("NFD", "é.jpg"))
    write(tmp_path / "img_1.txt", "a dog")
    write(tmp_path / unicodedata.normalize("NFC", "é.txt"), "a cat")
    captions, notes = read(tmp_path)
    assert [*captions.values()] == [["a dog"], ["a cat"]] and "in other case or Unicode" in notes


def test_of_several_texts_one_is_taken_and_it_is_said_whether_they_differ(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    for stem, files in {
        "a": {"json": '{"caption": "from json"}', "txt": "from txt"},
        "b": {"caption": "same", "txt": "same\n"},
        "c": {"json": '{"width": 8}', "txt": "only txt"},
        "d": {"json": '{"captions": ["x", "y"]}'},
    }.items():
        for ending, text in files.items():
            write(tmp_path / f"{stem}.{ending}", text)
    captions, notes = read(tmp_path)
    assert captions == {"a.jpg": ["from json"], "b.jpg": ["same"], "c.jpg": ["only txt"], "d.jpg": ["x", "y"]}
    assert "2 pictures (a.json, b.caption) with several texts" in notes and "in 1 picture (a) they differ" in notes
    write(tmp_path / "a.txt", " from\njson ")
    assert "all say the same" in read(tmp_path)[1]


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("A man in a blue shirt\nis standing on a ladder.", ["A man in a blue shirt is standing on a ladder."]),
        ("A man in\r\nNew York walks.", ["A man in New York walks."]),
        ("a man and\na woman walk .", ["a man and a woman walk ."]),
        ("a man walks .\na woman\nsits .", ["a man walks .", "a woman sits ."]),
        ("a brown dog runs\nacross the field", ["a brown dog runs across the field"]),
        ("a dog, a cat,\na bird", ["a dog, a cat, a bird"]),
        ("A dog runs.\nA cat sits.", ["A dog runs.", "A cat sits."]),
        ("a dog runs .\na cat sits .", ["a dog runs .", "a cat sits ."]),
        ("A dog runs\nA cat sits", ["A dog runs", "A cat sits"]),
        ("a dog runs\na cat sits\n", ["a dog runs", "a cat sits"]),
        ("a dog runs\n\nbrown and quick", ["a dog runs", "brown and quick"]),
        ("A dog runs\nover a fence.\nA cat\nsits.", ["A dog runs over a fence.", "A cat sits."]),
        ("\u4e00\u53ea\u72d7\n\u4e00\u53ea\u732b", ["\u4e00\u53ea\u72d7", "\u4e00\u53ea\u732b"]),
        ("one\rtwo. \rThree", ["one two.", "Three"]),
        ("1 dog\n2 cats", ["1 dog", "2 cats"]),
        ("a dog\x0bruns", ["a dog\x0bruns"]),
        ("", []),
    ],
)
def test_which_lines_are_captions(text, captions):
    assert lines_of(text)[0] == [captions]


def test_the_set_decides_where_a_text_does_not_tell():
    listed = ["a dog runs\na cat sits\ntwo birds fly", "two men talk\nthe sun sets", "the dog\na cat\nbirds"]
    captions, notes = lines_of(*listed)
    assert captions == [text.split("\n") for text in listed] and "3 texts (0, 1, 2) with several captions" in notes
    wrapped = [
        "a dog that runs\nover the field\na bit",
        "two men who talk\nwith others",
        "the sun that sets\nbehind a hill",
    ]
    captions, notes = lines_of(*wrapped)
    assert captions == [[text.replace("\n", " ")] for text in wrapped]
    assert (
        "3 texts (0, 1, 2) with a caption wrapped" in notes
        and "the first: 'a dog that runs over the field a bit'" in notes
    )


def test_five_a_picture_are_five_also_where_some_have_no_mark():
    texts = [f"A dog {n} .\nTwo men at a caf\u00e9\ndogs racing .\nrunning dogs .\nOne" for n in range(4)]
    assert lines_of(*texts)[0] == [text.split("\n") for text in texts]
    assert [len(its) for its in lines_of(*texts, "A dog\nruns.")[0]] == [4, 4, 4, 4, 1]  # control


def test_img2datasets_files_with_a_list_of_failed_rows_beside(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for shard in ("00000", "00001"):
        for number in range(2):
            key = f"{shard}{number:04d}"
            put(tmp_path / shard, f"{key}.jpg")
            write(tmp_path / shard / f"{key}.txt", f"a dog {key}")
            write(
                tmp_path / shard / f"{key}.json",
                json.dumps({"caption": f"a dog {key}", "key": key, "status": "success"}),
            )
        parquet.write_table(
            pyarrow.Table.from_pylist([{"caption": "x", "url": "u", "status": "failed"}]), tmp_path / f"{shard}.parquet"
        )
        write(tmp_path / f"{shard}_stats.json", '{"count": 3, "successes": 2}')
    captions, notes = read(tmp_path)
    assert captions == {
        f"{key[:5]}/{key}.jpg": [f"a dog {key}"] for key in ("000000000", "000000001", "000010000", "000010001")
    }
    assert (
        "2 packed files (00000.parquet, 00001.parquet) beside" in notes
        and "4 pictures (" in notes
        and "all say the same" in notes
    )


@pytest.mark.parametrize("several", [False, True])
def test_a_zip_of_pictures_and_texts(tmp_path, several):
    for part in range(1 + several):
        with zipfile.ZipFile(tmp_path / f"part{part}.zip", "w") as opened:
            for number, split in enumerate(("train", "val")):
                opened.writestr(f"{split}/{number}.jpg", jpeg(20 + 3 * number + 50 * part))
                opened.writestr(f"{split}/{number}.txt", f"a dog {number} of {part}")
    contents, pictures = read_raw(tmp_path, 1, tmp_path / "data")
    said = {record["file_name"]: (record["split"], record["captions"]) for record in contents.records}
    names = {
        (part, number): f"{split}/{number}.jpg" for part in range(2) for number, split in ((0, "train"), (1, "val"))
    }
    if several:  # the names are the same, so each archive has a folder
        expected = {f"part{part}/{name}": (name[:-6], [f"a dog {n} of {part}"]) for (part, n), name in names.items()}
        assert said == expected and pictures["part1/train/0.jpg"].read_bytes() == jpeg(70)
    else:
        assert said == {name: (name[:-6], [f"a dog {n} of 0"]) for (part, n), name in names.items() if part == 0}


def test_labels_of_boxes_are_no_captions(tmp_path):
    put(tmp_path, "train/a.jpg", "val/b.jpg")
    for stem in ("train/a", "val/b"):
        write(tmp_path / f"{stem}.txt", "0 0.5 0.5 0.2 0.1\n")
    with pytest.raises(ValueError, match="2 texts .train/a.txt, val/b.txt. gives no picture with a caption"):
        prepare("mine", tmp_path / "data", raw_dir=tmp_path)


def test_texts_named_after_the_whole_picture(tmp_path):
    put(tmp_path, "a.jpg", "b.png")
    write(tmp_path / "a.jpg.txt", "a dog")
    write(tmp_path / "b.png.json", '{"text": "a cat"}')
    captions, notes = read(tmp_path)
    assert captions == {"a.jpg": ["a dog"], "b.png": ["a cat"]} and "or a.jpg.txt" in notes


def test_json_beside_pictures_without_captions_is_told_by_its_keys(tmp_path):
    put(tmp_path, "a.jpg")
    write(tmp_path / "a.json", '{"shapes": [], "imagePath": "a.jpg"}')
    with pytest.raises(
        ValueError, match=r"no text says anything .* 1 .json file \(a.json\) without any of the keys captions"
    ):
        layouts.find(tmp_path).read()
