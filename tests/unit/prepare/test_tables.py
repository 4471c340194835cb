"""Tables of captions: lists in cells, quotes, separators, several files of one set; what is read, what is refused."""

import csv
import json
import re

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from nanocaption.prepare import caption_files, layouts
from nanocaption.prepare.make import prepare
from tests.raw_sets import CAPTIONS, NAMES, draw, fix_splits, write, write_csv

SPLITS = ("train", "val", "test")
TWO = ["a dog runs", 'the dog, "Rex", runs']


def read(folder) -> layouts.Contents:
    return layouts.read_layout(folder, 1)


def captions_in(folder) -> dict[str, list]:
    return {record["file_name"]: record["captions"] for record in read(folder).records}


def as_pandas(path, rows: list[list[str]], sign: str, quoting: int = csv.QUOTE_MINIMAL) -> None:
    """As DataFrame.to_csv writes it, which asks the csv module."""
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=sign, quoting=quoting, lineterminator="\n").writerows(
            [["image", "caption", "split"], *rows]
        )


def split_table(cell: str) -> list[list[str]]:
    return [[f"{split}.jpg", cell, split] for split in SPLITS]


CONTAINERS = {
    "Python list": str(TWO),
    "JSON list": json.dumps(TWO),
    "tuple": str(tuple(TWO)),
    "JSON objects": json.dumps([{"raw": text, "id": 7} for text in TWO]),
    "Python objects": str([{"caption": text} for text in TWO]),
    "an object of a list": json.dumps({"text": TWO}),
    "an array of numpy": str(numpy.array(TWO)),
    "an array's own form": repr(numpy.array(TWO, dtype=object)),
    "texts of numpy": str(list(numpy.array(TWO))),
}


@pytest.mark.parametrize("cell", CONTAINERS.values(), ids=CONTAINERS.keys())
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "coco", "parquet", "karpathy"])
def test_a_list_in_a_cell_is_several_captions_and_told(tmp_path, kind, cell):
    if kind in ("csv", "tsv"):
        as_pandas(tmp_path / f"captions.{kind}", split_table(cell), "," if kind == "csv" else "\t")
    elif kind == "jsonl":
        rows = [json.dumps({"image": name, "caption": cell, "split": split}) for name, _, split in split_table(cell)]
        write(tmp_path / "captions.jsonl", "\n".join(rows))
    elif kind == "coco":
        for split in SPLITS:
            write(
                tmp_path / f"captions_{split}2014.json",
                json.dumps(
                    {
                        "images": [{"id": 5, "file_name": f"{split}.jpg"}],
                        "annotations": [{"image_id": 5, "id": 1, "caption": cell}],
                    }
                ),
            )
    elif kind == "karpathy":
        images = [
            {"filename": name, "split": split, "sentences": [{"raw": cell}]} for name, _, split in split_table(cell)
        ]
        write(tmp_path / "dataset_x.json", json.dumps({"images": images}))
    else:
        table = {
            "image": [{"bytes": b"\xff\xd8", "path": f"{split}.jpg"} for split in SPLITS],
            "caption": [cell] * 3,
            "split": SPLITS,
        }
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    contents = read(tmp_path)
    assert [record["captions"] for record in contents.records] == [TWO] * 3
    assert sorted(record["split"] for record in contents.records) == sorted(SPLITS)
    assert any("3 cells (" in note and "hold lists of captions" in note for note in contents.notes)


@pytest.mark.parametrize("value", [TWO, [{"text": text} for text in TWO], {"text": TWO}, {"captions": TWO}])
@pytest.mark.parametrize("key", ["caption", "captions", "text"])
def test_lists_and_objects_that_are_such_in_json_are_read_alike(tmp_path, value, key):
    rows = [json.dumps({"image": f"{split}.jpg", key: value, "split": split}) for split in SPLITS]
    write(tmp_path / "captions.jsonl", "\n".join(rows))
    assert captions_in(tmp_path) == {f"{split}.jpg": TWO for split in SPLITS}


BROKEN = ["['a dog', 'the dog'", '["a dog", "the', "[{'id': 7}]", '{"id": "a dog"}', "['a' 'b' ... 'c']", "{'a', 'b'}"]


@pytest.mark.parametrize("cell", BROKEN)
def test_a_broken_list_is_refused_with_its_line(tmp_path, cell):
    write_csv(
        tmp_path / "captions.csv", ["image", "caption"], [["a.jpg", "a dog"], ["b.jpg", cell], ["c.jpg", "a cat"]]
    )
    with pytest.raises(
        ValueError, match=r"captions.csv: 1 cell \(line 3: .*that should hold several captions"
    ) as caught:
        read(tmp_path)
    assert cell in str(caught.value) and "JSON list" in str(caught.value)
    write(tmp_path / "captions.csv", "")
    (tmp_path / "captions.csv").unlink()
    write(
        tmp_path / "captions.jsonl",
        "".join(json.dumps({"image": n, "caption": c}) + "\n" for n, c in [("a.jpg", "a dog"), ("b.jpg", cell)]),
    )
    with pytest.raises(ValueError, match=r"captions.jsonl: 1 cell \(line 2: "):
        read(tmp_path)


def test_captions_in_brackets_stay_captions(tmp_path):
    texts = [
        "[a dog] runs",
        "(a dog)",
        "[music]",
        '["Hello" is written] on a wall',
        "{a dog} runs",
        "a [b]",
        "[1, 2]",
        "[",
        "(two) dogs and (three)",
        "[]x",
        *["a plain one"] * 6,
    ]
    found, notes = caption_files.texts_of([(str(number), text) for number, text in enumerate(texts)], "here")
    assert found == [[text] for text in texts] and notes == []
    rows = [[f"{number}.jpg", f"[dog {number}, cat]", SPLITS[number]] for number in range(3)]
    write_csv(tmp_path / "captions.csv", ["image", "caption", "split"], rows)
    with pytest.raises(ValueError, match=r"3 cells \(line 2: \[dog 0, cat\], "):  # all of them: lists without quotes
        read(tmp_path)


def test_one_odd_caption_among_thousands_does_not_stop_a_set():
    plain = [("plain", "a dog")] * 1200
    found, notes = caption_files.texts_of([*plain, ("odd.jpg", '{"id": 7}')], "here")
    assert found[-1] == ['{"id": 7}'] and "1 caption (odd.jpg: " in notes[0] and "begin like lists" in notes[0]
    for more in ([("b", "['a'")], [("b", "['a', 'b']")]):  # control: with another, or a list that is one
        with pytest.raises(ValueError, match="here: . cells? .odd.jpg: "):
            caption_files.texts_of([*plain[:900], ("odd.jpg", '{"id": 7}'), *more], "here")


def test_marked_rows_of_a_table_are_left_out_as_in_json(tmp_path):
    header = ["file_name", "caption", "split", "is_rejected", "is_precanned"]
    rows = [
        ["a.jpg", "a dog", "train", "False", "0"],
        ["a.jpg", "spam", "train", "True", "0"],
        ["b.jpg", "a cat", "val", "false", ""],
    ]
    write_csv(tmp_path / "metadata.csv", header, [*rows, ["b.jpg", "quality", "val", "0", "1"]])
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == {"a.jpg": ["a dog"], "b.jpg": ["a cat"]}
    assert any("2 of 4 captions are marked is_rejected (1), is_precanned (1)" in note for note in contents.notes)


def test_empty_lists_and_gaps_are_left_to_the_check(tmp_path):
    write_csv(
        tmp_path / "captions.csv",
        ["image", "caption", "split"],
        [["a.jpg", "[]", "train"], ["b.jpg", '["a dog", null]', "val"]],
    )
    assert captions_in(tmp_path) == {"a.jpg": [], "b.jpg": ["a dog", None]}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("train", "dev", "test"),
        ("Train", "Valid", "Test"),
        ("train_images", "val_images", "test_images"),
    ],
)
@pytest.mark.parametrize("table", ["captions.csv", "metadata.csv", "labels.csv", "metadata.jsonl", "captions.txt"])
def test_a_table_in_each_splits_folder_is_one_set(tmp_path, names, table):
    """The pictures have the same names in each folder, and lie beside the table or below it."""
    for shade, (split, folder) in enumerate(zip(SPLITS, names, strict=True)):
        draw(tmp_path / "raw" / folder / ("images" if shade else ""), ["a.jpg", f"b{shade}.jpg"])
        (tmp_path / "raw" / folder / ("images" if shade else "") / "a.jpg").write_bytes(
            (draw(tmp_path / "others", [f"{n}.jpg" for n in range(shade + 4)]) / f"{shade + 3}.jpg").read_bytes()
        )
        rows = [("a.jpg", f"a dog in {split}"), (f"b{shade}.jpg", "a cat")]
        if table.endswith("jsonl"):
            write(
                tmp_path / "raw" / folder / table,
                "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows),
            )
        else:
            write_csv(tmp_path / "raw" / folder / table, ["file_name", "caption"], rows)
    contents = read(tmp_path / "raw")
    assert not contents.drawn
    records = {(record["split"], *record["captions"]): record["file_name"] for record in contents.records}
    where = [names[0], f"{names[1]}/images", f"{names[2]}/images"]
    assert records == {
        (split, text): f"{folder}/{name}"
        for shade, (split, folder) in enumerate(zip(SPLITS, where, strict=True))
        for text, name in ((f"a dog in {split}", "a.jpg"), ("a cat", f"b{shade}.jpg"))
    }
    assert all(f"{folder}/{table}" in contents.source.why for folder in names)
    assert {path.parent.name for path in contents.source.files} == set(names)
    assert any("splits are those of the files' names or folders: " in note for note in contents.notes)


def test_such_a_set_is_made(tmp_path):
    for shade, split in enumerate(SPLITS):
        pictures = [f"{number}.jpg" for number in range(3 * shade, 3 * shade + 3)]
        for number, name in enumerate(pictures):
            drawn = draw(tmp_path / "pool", [f"{n}.png" for n in range(9)])
            draw(tmp_path / "raw" / split, [])
            (tmp_path / "raw" / split / name).write_bytes((drawn / f"{3 * shade + number}.png").read_bytes())
        write_csv(
            tmp_path / "raw" / split / "captions.csv",
            ["image", "caption"],
            [[name, f"picture {name}"] for name in pictures],
        )
    folder = prepare("mine", tmp_path / "data", raw_dir=tmp_path / "raw")
    images = json.loads((folder / "captions.json").read_text())["images"]
    assert [image["split"] for image in images] == sorted(
        (split for split in SPLITS for _ in range(3)),
        key=lambda s: images.index(next(image for image in images if image["split"] == s)),
    )
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts == {split: {"images": 3, "captions": 3} for split in SPLITS}
    assert {image["file_name"] for image in images} == {f"{SPLITS[n // 3]}/{n}.jpg" for n in range(9)}


def test_tables_of_the_splits_beside_each_other(tmp_path):
    for split, name in zip(SPLITS, NAMES, strict=False):
        write_csv(tmp_path / f"captions_{split}.csv", ["image", "caption"], [[name, text] for text in CAPTIONS[name]])
    contents = read(tmp_path)
    assert [
        (r["file_name"], r["split"], r["captions"])
        for r in sorted(contents.records, key=lambda r: NAMES.index(r["file_name"]))
    ] == [(name, split, CAPTIONS[name]) for split, name in zip(SPLITS, NAMES, strict=False)]


def test_parts_of_one_list_are_one_set(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    for part in range(3):
        lines = [json.dumps({"file_name": name, "caption": CAPTIONS[name][part]}) for name in NAMES]
        write(tmp_path / f"part-{part}.jsonl", "\n".join(lines))
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == CAPTIONS
    assert any("with captions in several files, put together" in note for note in contents.notes)


def test_copies_and_contradictions_among_several_tables_are_refused(tmp_path):
    rows = [["a.jpg", "a dog"], ["b.jpg", "a cat"]]
    write_csv(tmp_path / "captions.csv", ["image", "caption"], rows)
    write_csv(tmp_path / "captions (1).csv", ["image", "caption"], rows)
    with pytest.raises(ValueError, match=r"2 pictures \(a.jpg in .*with the same captions in two files; keep one"):
        read(tmp_path)
    (tmp_path / "captions (1).csv").unlink()
    write_csv(tmp_path / "old" / "captions.csv", ["image", "caption"], [["a.jpg", "an older caption"]])
    with pytest.raises(
        ValueError, match=r"1 picture \(a.jpg in captions.csv and old/captions.csv\) in files of two folders"
    ):
        read(tmp_path)
    (tmp_path / "captions.csv").unlink(), (tmp_path / "old" / "captions.csv").unlink()
    for split in ("train", "val"):
        write_csv(tmp_path / f"captions_{split}.csv", ["image", "caption"], [["a.jpg", f"a dog {split}"]])
    with pytest.raises(
        ValueError, match=r"1 picture \(a.jpg in captions_train.csv and captions_val.csv\) in two splits"
    ):
        read(tmp_path)


def test_tables_of_splits_whose_pictures_lie_in_folders_of_theirs(tmp_path):
    for tables in (("train/labels/captions.csv", "test/labels/captions.csv"), ("tables/train.csv", "tables/test.csv")):
        for table, split in zip(tables, ("train", "test"), strict=True):
            draw(tmp_path / split / "images", ["a.jpg"])
            write_csv(tmp_path / table, ["image", "caption"], [["a.jpg", f"a dog {split}"]])
        assert captions_in(tmp_path) == {f"{split}/images/a.jpg": [f"a dog {split}"] for split in ("train", "test")}
        for table in tables:
            (tmp_path / table).unlink()


def test_a_split_column_goes_before_the_folder_and_that_is_told(tmp_path):
    for folder in ("train", "val"):
        draw(tmp_path / folder, [f"{folder}.jpg"])
        write_csv(
            tmp_path / folder / "captions.csv", ["image", "caption", "split"], [[f"{folder}.jpg", "a dog", "train"]]
        )
    draw(tmp_path / "val", ["more.jpg"])
    contents = read(tmp_path)
    assert {r["file_name"]: r["split"] for r in contents.records} == {
        "train/train.jpg": "train",
        "val/val.jpg": "train",
    }
    assert any("1 picture (val.jpg) of another split by the captions than by" in note for note in contents.notes)


def test_only_a_train_file_is_divided_and_a_test_file_is_kept(tmp_path):
    rows = [[f"{number}.jpg", f"dog {number}"] for number in range(300)]
    write_csv(tmp_path / "train" / "metadata.csv", ["file_name", "text"], rows)
    contents = read(tmp_path)
    assert contents.drawn and {r["split"] for r in contents.records} == set(SPLITS)
    assert any("all captions are of a split called train" in note for note in contents.notes)
    (tmp_path / "train").rename(tmp_path / "test")
    contents = read(tmp_path)
    assert not contents.drawn and {r["split"] for r in contents.records} == {"test"}


def test_of_two_kinds_one_is_read_and_the_other_named(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    write_csv(tmp_path / "captions.csv", ["image", "caption"], [[name, "csv"] for name in NAMES])
    write(tmp_path / "captions.jsonl", "\n".join(json.dumps({"image": name, "caption": "jsonl"}) for name in NAMES))
    write(tmp_path / "notes.csv", "a,b\n1,2\n")
    contents = read(tmp_path)
    assert {text for r in contents.records for text in r["captions"]} == {"jsonl"}
    assert (
        "captions.jsonl stands in" in contents.source.why and "not read: captions.csv, notes.csv" in contents.source.why
    )


@pytest.mark.parametrize("name", ["captions.tsv", "captions.csv", "labels.tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotes_of_pandas_between_tabs_go(tmp_path, name, quoting):
    texts = ['A sign says "stop".', '"Happy birthday"', "plain, with comma", 'an inch is 1"', "it's"]
    table = [[f"{n}.jpg", text, SPLITS[n % 3]] for n, text in enumerate(texts)]
    as_pandas(tmp_path / name, table, "\t", quoting)
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == {row[0]: [row[1]] for row in table}
    assert any("cells freed of the quotes" in note for note in contents.notes)


def test_quotes_of_excel_around_cells_with_commas_go(tmp_path):
    write(
        tmp_path / "captions.tsv",
        'image\tcaption\tsplit\na.jpg\t"A dog, a cat"\ttrain\nb.jpg\t"Title"\tval\nc.jpg\tA dog\tval\n',
    )
    assert captions_in(tmp_path) == {"a.jpg": ["A dog, a cat"], "b.jpg": ['"Title"'], "c.jpg": ["A dog"]}
    write(tmp_path / "captions.tsv", 'image\tcaption\tsplit\na.jpg\t"Hi, you"\ttrain\nb.jpg\tone, two\tval\n')
    assert captions_in(tmp_path) == {"a.jpg": ['"Hi, you"'], "b.jpg": ["one, two"]}  # control: commas without quotes


def test_tabs_within_quotes_and_raw_quotes(tmp_path):
    as_pandas(tmp_path / "captions.tsv", [["a.jpg", "one\ttwo", "train"], ["b.jpg", "one\ntwo", "val"]], "\t")
    assert captions_in(tmp_path) == {"a.jpg": ["one\ttwo"], "b.jpg": ["one\ntwo"]}
    raw = {
        "a.jpg": '"Rex" runs',
        "b.jpg": '"Happy birthday"',
        "c.jpg": 'a sign, "stop"',
        "d.jpg": '"',
    }  # nobody's quotes
    write(
        tmp_path / "captions.tsv",
        "image\tcaption\tsplit\n"
        + "".join(f"{n}\t{t}\t{s}\n" for (n, t), s in zip(raw.items(), ["train", "val", "test", "test"], strict=True)),
    )
    assert captions_in(tmp_path) == {name: [text] for name, text in raw.items()}


@pytest.mark.parametrize(
    "text",
    [
        'image;caption;split\na.jpg;"a dog; ""Rex""";train\nb.jpg;a cat, two;val\n',
        'sep=;\nimage;caption;split\na.jpg;"a dog; ""Rex""";train\nb.jpg;a cat, two;val\n',
        'Split,Caption,File_Name\ntrain,"a dog; ""Rex""",a.jpg\nval,"a cat, two",b.jpg\n',
        '\ufefffile_name,text,split\na.jpg,"a dog; ""Rex""",train\nb.jpg,"a cat, two",val\n',
        ',image,caption,split\n0,a.jpg,"a dog; ""Rex""",train\n1,b.jpg,"a cat, two",val\n',
    ],
)
def test_separators_heads_and_columns_in_any_order(tmp_path, text):
    for name in ("captions.csv", "my table.csv"):
        write(tmp_path / "raw" / name, text)
        assert captions_in(tmp_path / "raw") == {"a.jpg": ['a dog; "Rex"'], "b.jpg": ["a cat, two"]}
        (tmp_path / "raw" / name).unlink()


@pytest.mark.parametrize("order", ["path first", "caption first"])
@pytest.mark.parametrize("sign", ["\t", ","])
@pytest.mark.parametrize("name", ["captions.tsv", "captions.csv", "pairs.tsv", "captions.txt"])
def test_two_columns_without_a_header_either_way_round(tmp_path, monkeypatch, order, sign, name):
    fix_splits(monkeypatch)
    if sign == "," and name.startswith("pairs"):
        return
    pairs = [
        [picture, text.replace(",", "") if sign == "," else text] for picture in NAMES for text in CAPTIONS[picture]
    ]
    pairs = [[cell.replace('"', "") for cell in pair] for pair in pairs]
    lines = [sign.join(pair if order == "path first" else reversed(pair)) for pair in pairs]
    write(tmp_path / name, "\n".join(lines) + "\n")
    expected: dict[str, list[str]] = {}
    for picture, text in pairs:
        expected.setdefault(picture, []).append(text)
    assert captions_in(tmp_path) == expected


def test_several_columns_of_captions(tmp_path):
    header = ["caption_10", "image", "caption_0", "caption_2", "split"]
    write_csv(
        tmp_path / "captions.csv",
        header,
        [["ten", "a.jpg", "zero", "two", "train"], ["ten", "b.jpg", "zero", " ", "val"], ["", "c.jpg", "", "", "val"]],
    )
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == {
        "a.jpg": ["zero", "two", "ten"],
        "b.jpg": ["zero", "ten"],
        "c.jpg": [""],
    }
    assert any("captions are of the 3 columns caption_0 to caption_10" in note for note in contents.notes)
    write_csv(
        tmp_path / "captions.csv",
        ["image", "text", "caption", "split"],
        [["a.jpg", "t", "c", "train"], ["b.jpg", "t", "c", "val"]],
    )
    contents = read(tmp_path)
    assert {text for r in contents.records for text in r["captions"]} == {"c"}
    assert any("captions are of the column 'caption', not of text" in note for note in contents.notes)
    write_csv(tmp_path / "captions.csv", ["image", "caption", "caption"], [["a.jpg", "t", "c"]])
    with pytest.raises(ValueError, match=r"1 column \(caption\) named twice; rename one"):
        read(tmp_path)


def test_texts_that_a_data_frame_takes_for_gaps_stay_texts(tmp_path):
    texts = ["None", "NA", "null", "nan", "N/A", "007"]
    rows = [[f"{n}.jpg", text, SPLITS[n % 3]] for n, text in enumerate(texts)]
    write_csv(tmp_path / "metadata.csv", ["file_name", "text", "split"], rows)
    assert captions_in(tmp_path) == {row[0]: [row[1]] for row in rows}


@pytest.mark.parametrize(
    "text",
    [
        "a dog\thttps://example.org/1.jpg\n",
        "https://example.org/1.jpg\ta dog\n",
        "caption\turl\na dog\thttp://example.org/1\n",
        "url,caption\nhttp://e.org/1,a dog\n",
        "image,caption\nhttp://example.org/1.jpg,a dog\n",
    ],
)
@pytest.mark.parametrize("name", ["captions.tsv", "Train_GCC-training.tsv"])
def test_lists_of_urls_are_refused_with_the_way_on(tmp_path, text, name):
    write(tmp_path / name, text * 1)
    with pytest.raises(ValueError, match="pictures are urls: fetch them with img2dataset") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_urls_of_pictures_that_are_here_are_names(tmp_path):
    draw(tmp_path / "images", ["1.jpg", "2.jpg"])
    write(
        tmp_path / "captions.csv",
        "image,caption,split\nhttps://e.org/x/1.jpg,a dog,train\nhttps://e.org/y/2.jpg,a cat,val\n",
    )
    assert captions_in(tmp_path) == {"1.jpg": ["a dog"], "2.jpg": ["a cat"]}
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"captions.csv: 1 name \(https://e.org/y/2.jpg\) not of files: pictures are urls"
    ):
        read(tmp_path)


@pytest.mark.parametrize("name", ["captions.xlsx", "my captions.xls"])
def test_a_spreadsheet_is_named_with_the_way_on(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=f"{re.escape(name)} is a spreadsheet: save it as CSV"):
        read(tmp_path)


def test_ids_without_an_ending_are_found_by_what_is_there(tmp_path):
    """ROCO: data/SPLIT/CLASS/captions.txt, with a tab, a space, no header, no ending."""
    for number, split in enumerate(("train", "validation", "test")):
        for kind in ("radiology", "non-radiology"):
            folder = tmp_path / "data" / split / kind
            draw(folder / "images", [f"ROCO_0000{number}{len(kind)}.jpg"])
            write(folder / "captions.txt", f"ROCO_0000{number}{len(kind)}\t A scan of {kind}.\n")
    contents = read(tmp_path)
    assert sorted((r["file_name"], r["split"], *r["captions"]) for r in contents.records) == sorted(
        (f"data/{split}/{kind}/images/ROCO_0000{number}{len(kind)}.jpg", short, f" A scan of {kind}.")
        for number, (split, short) in enumerate([("train", "train"), ("validation", "val"), ("test", "test")])
        for kind in ("radiology", "non-radiology")
    )
    assert any("found by what comes before the ending" in note for note in contents.notes)


def test_the_odd_name_of_flickr8ks_token_file_is_mended_and_told(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    lines = [f"{name}#{k}\t{text}" for name in NAMES for k, text in enumerate(CAPTIONS[name])]
    odd = f"{NAMES[2]}.1#0\tA fifth caption."
    for file in ("Flickr8k.token.txt", "captions.txt"):
        write(tmp_path / file, "\n".join([*lines, odd]))
        contents = read(tmp_path)
        assert {r["file_name"]: r["captions"] for r in contents.records} == CAPTIONS | {
            NAMES[2]: [*CAPTIONS[NAMES[2]], "A fifth caption."]
        }
        assert any(f"1 name ({NAMES[2]}.1) mended" in note for note in contents.notes)
        (tmp_path / file).unlink()


LABEL_STUDIO = [
    ["id", "image", "caption", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"],
    ["1", "/data/upload/1/0a1b2c3d-a.jpg", "one text", "1", "11", "2024", "2024", "1.5"],
    ["2", "/data/upload/1/b.jpg", '{"text":["two","texts"]}', "1", "12", "2024", "2024", "1.5"],
    ["3", "/data/local-files/?d=some/c.jpg", '["of","regions"]', "1", "13", "2024", "2024", "1.5"],
    ["4", "/data/upload/1/d.jpg", "first", "1", "14", "2024", "2024", "1.5"],
    ["4", "/data/upload/1/d.jpg", "second", "2", "15", "2024", "2024", "1.5"],
    ["5", "/data/upload/1/e.jpg", "", "", "", "", "", ""],
]


@pytest.mark.parametrize("file", ["project-1-at-2024.csv", "captions.csv"])
def test_label_studios_csv(tmp_path, monkeypatch, file):
    monkeypatch.setattr(layouts, "splits_of", lambda names, *_: (["train"] * len(names), []))
    draw(tmp_path, ["a.jpg", "b.jpg", "d.jpg"])
    write_csv(tmp_path / file, *[LABEL_STUDIO[0], LABEL_STUDIO[1:]])
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == {
        "a.jpg": ["one text"],
        "b.jpg": ["two", "texts"],
        "some/c.jpg": ["of", "regions"],
        "d.jpg": ["first", "second"],
    }
    assert any("1 row (line 7) without an annotation, left out" in note for note in contents.notes)


def test_the_folder_without_captions_names_what_it_looked_at(tmp_path):
    write(tmp_path / "sizes.csv", "image,width\na.jpg,7\n")
    with pytest.raises(ValueError, match="no captions in a known layout.*not read: sizes.csv has no header with"):
        read(tmp_path)
