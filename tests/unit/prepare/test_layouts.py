"""Raw layouts: what is recognised, what is repaired, what is refused."""

import json
import shutil

import pytest

from nanocaption.prepare import layouts
from tests.raw_sets import (
    CAPTIONS,
    NAMES,
    OFFICIAL,
    ROOT,
    UNSPLIT,
    draw,
    expected_records,
    fix_splits,
    karpathy_images,
    write,
    write_csv,
    write_karpathy,
    write_results,
    write_token,
)

FLICKR8K = ROOT.parent / "shared" / "data" / "flickr8k"


@pytest.mark.parametrize("name", [*OFFICIAL, *UNSPLIT])
def test_every_layout_gives_the_same_records(tmp_path, name, monkeypatch):
    fix_splits(monkeypatch)
    (OFFICIAL | UNSPLIT)[name](tmp_path)
    layout = layouts.read_layout(tmp_path, seed=1)
    assert layout.source.name == name
    assert layout.records == expected_records()
    assert layout.drawn == (name in UNSPLIT)
    assert str(tmp_path) in layout.source.why


def test_first_layout_in_the_order_is_read_and_the_others_are_named(tmp_path):
    for writer in (OFFICIAL | UNSPLIT).values():
        writer(tmp_path)
    layout = layouts.read_layout(tmp_path, seed=1)
    assert layout.source.name == "Karpathy JSON"
    why = layout.source.why
    assert "results.csv" in why and "Flickr8k.token.txt" in why and "lemma" not in why


def test_broken_row_of_results_csv_is_repaired_and_reported(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    write_results(tmp_path)
    layout = layouts.read_layout(tmp_path, seed=1)
    assert any("repaired 1 row (line 9" in note for note in layout.notes)
    assert layout.records[2]["captions"][1] == CAPTIONS[NAMES[2]][1]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_of_other_systems_change_nothing(tmp_path, monkeypatch, end):
    fix_splits(monkeypatch)
    write_token(tmp_path)
    path = tmp_path / "Flickr8k.token.txt"
    expected, text = layouts.read_layout(tmp_path, seed=1).records, path.read_text()
    path.write_bytes(text.replace("\n", end).encode())
    assert layouts.read_layout(tmp_path, seed=1).records == expected
    path.write_bytes(text.replace(" ", "\r", 1).encode())  # one within a caption
    assert [len(record["captions"]) for record in layouts.read_layout(tmp_path, seed=1).records] == [
        len(record["captions"]) for record in expected
    ]


@pytest.mark.parametrize("header", ["", "file_name\tcaption\n", "Image\tCaption\r\n"])
@pytest.mark.parametrize("name", ["captions.csv", "captions.txt"])
def test_tabs_between_the_columns_are_read_with_or_without_a_header(tmp_path, name, header):
    captions = ['A dog, "Rex", runs.', "Two, three cats."]
    (tmp_path / name).write_text(header + "".join(f"{n}\t{caption}\n" for n in NAMES[:5] for caption in captions))
    layout = layouts.read_layout(tmp_path, seed=1)
    assert sorted(record["file_name"] for record in layout.records) == sorted(NAMES[:5])
    assert all(record["captions"] == captions for record in layout.records)
    (tmp_path / name).write_text(header + f"{NAMES[0]}\tOne.\n{NAMES[1]}\tTwo.\tThree.\n")
    with pytest.raises(ValueError, match="1 row .line . .3 cells.. unlike .* 2 columns; a caption holds no tab"):
        layouts.read_layout(tmp_path, seed=1)


def test_other_splits_keep_their_names_and_are_noted_and_odd_names_are_refused(tmp_path):
    images = karpathy_images()
    images[0]["split"], images[4]["split"] = "restval", "Dev"
    path = write(tmp_path / "dataset_coco.json", json.dumps({"images": images}))
    layout = layouts.read_layout(tmp_path, 1)
    assert [record["split"] for record in layout.records] == ["restval", "train", "train", "train", "val", "test"]
    assert any("TRAIN_SPLITS, VAL_SPLITS or TEST_SPLITS name them: restval (1)" in n for n in layout.notes)
    images[0]["split"] = "a dog, running"
    path.write_text(json.dumps({"images": images}))
    with pytest.raises(ValueError, match="1 split name .'a dog, running'. not a plain word; use train, val and test"):
        layouts.read_layout(tmp_path, 1)


def coco(names: list[str], first_id: int) -> dict:
    images = [{"id": first_id + number, "file_name": name, "height": 8} for number, name in enumerate(names)]
    # annotations come in no order, as in the real files
    annotations = [{"image_id": first_id + names.index(name), "id": 10 * first_id + 10 * names.index(name) + k,
                    "caption": CAPTIONS[name][k]} for k in range(3) for name in reversed(names)]  # fmt: skip
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def write_coco(folder) -> None:
    write(folder / "captions_train2014.json", json.dumps(coco(NAMES[:4], 100)))
    write(folder / "captions_val2014.json", json.dumps(coco(NAMES[4:], 500)))
    write(folder / "instances_val2014.json", "{}")


def test_coco_captions_of_several_files_are_one_set(tmp_path):
    write_coco(tmp_path / "annotations")
    draw(tmp_path / "train2014", NAMES[:4])
    draw(tmp_path / "val2014", NAMES[4:])
    layout = layouts.read_layout(tmp_path, 1)
    expected = [record | {"split": "val"} if record["split"] == "test" else record for record in expected_records()]
    ids = [image["id"] for name in ("train", "val") for image in
           json.loads((tmp_path / "annotations" / f"captions_{name}2014.json").read_text())["images"]]  # fmt: skip
    expected = [record | {"image_id": number} for record, number in zip(expected, ids, strict=True)]
    assert (layout.source.name, layout.records, layout.drawn) == ("COCO captions JSON", expected, False)
    assert "captions_train2014.json, captions_val2014.json stands in" in layout.source.why
    assert any("the source has no test pictures" in note for note in layout.notes)
    before = layouts.captions_digest(tmp_path)
    write(tmp_path / "annotations" / "captions_val2014.json", json.dumps(coco(NAMES[4:5], 500)))
    assert layouts.captions_digest(tmp_path) != before


def test_faults_in_coco_files_are_named(tmp_path):
    for change, message in (
        (lambda data: data["annotations"].append({"image_id": 7, "id": 1, "caption": "a"}), r"1 caption \(7\) of pict"),
        (lambda data: data["images"].append(data["images"][0]), r"images: 1 id \(100\) given more than once"),
        (lambda data: data["annotations"].append(data["annotations"][0]), "annotations: 1 id"),
        (lambda data: data.pop("annotations"), "is not in COCO's layout"),
    ):
        data = coco(NAMES, 100)
        change(data)
        write(tmp_path / "captions_train2017.json", json.dumps(data))
        with pytest.raises(ValueError, match=message):
            layouts.read_layout(tmp_path, 1)
    write_coco(tmp_path)
    with pytest.raises(ValueError, match="3 files of the layout COCO captions JSON .*keep the one"):
        layouts.read_layout(tmp_path, 1)


def test_a_picture_in_two_splits_counts_once_however_many_captions_it_has(tmp_path):
    lines = [f"{name}.jpg,a dog,{split}" for name in "ab" for split in ("train", "val", "test")]
    write(tmp_path / "captions.csv", "\n".join(["image,caption,split", *lines]))
    with pytest.raises(ValueError, match=r"2 pictures \('a.jpg', 'b.jpg'\) in two splits at once; give each"):
        layouts.read_layout(tmp_path, 1)


def test_all_captions_of_a_picture_share_its_split(tmp_path):
    names = [f"{number}.png" for number in range(60)]
    rows = [[name, f"word {k}"] for k in range(3) for name in names]
    write_csv(tmp_path / "captions.txt", ["image", "caption"], rows)
    records = layouts.read_layout(tmp_path, 1).records
    assert [record["file_name"] for record in records] == names
    assert all(len(record["captions"]) == 3 for record in records)


def test_missing_split_is_kept_and_said(tmp_path):
    write_token(tmp_path)
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    layout = layouts.read_layout(tmp_path, 1)
    assert {record["split"] for record in layout.records} == {"train", "val"}
    assert "the source has no test pictures, kept as it is" in layout.notes
    assert any(f"1 captioned picture ({NAMES[5]}) in none of the split lists" in note for note in layout.notes)


def test_captions_are_given_as_they_stand(tmp_path):
    """check.py cleans them, and reports what it left out."""
    images = karpathy_images()
    odd = ["", " \u2028\t", None, "\ud800", "  two \n lines\u2028here "]
    images[0]["sentences"] += [*({"raw": text} for text in odd), "text"]
    write(tmp_path / "dataset_mine.json", json.dumps({"images": images}))
    assert layouts.read_layout(tmp_path, 1).records[0]["captions"] == [*CAPTIONS[NAMES[0]], *odd, None]


@pytest.mark.parametrize(
    "name", ["/", "../", "a/../../x.jpg", "C:\\", "..\\a\\..\\x.jpg", "", " ", "a\0.jpg", "\ud800.jpg", 7]
)
def test_unsafe_file_names_are_refused(name):
    rows = [layouts.Row("fine/a..b.jpg", "train", ["a dog"])]
    assert layouts.clean_records(rows, 1, "here")[0][0]["file_name"] == "fine/a..b.jpg"
    with pytest.raises(ValueError, match=r"here: 1 file name \(.*\) not a plain path"):
        layouts.clean_records([*rows, layouts.Row(name, "train", ["a dog"])], 1, "here")


@pytest.mark.parametrize(("file", "text", "message"), [
    ("dataset_x.json", '{"images": [', "not whole JSON"),
    ("dataset_x.json", '{"images": {"a": 1}}', "not in Karpathy's layout"),
    ("dataset_x.json", '{"images": []}', "gives no picture with a caption"),
    ("captions.jsonl", '{"image": "a.jpg", "caption": "a"}\n{"image": ', "line 2 is not a JSON object"),
    ("captions.jsonl", '{"thing": "a dog", "caption": "a"}', 'line 1: expected an object with "file_name"'),
    ("captions.jsonl", '{"image": "a.jpg", "captions": ["a"], "split": "val"}\n' * 2, r"1 id \(a.jpg\) given more"),
    ("captions.csv", "name;text\na.jpg;a dog\n", "begins with 'name;text': expected a header"),
    ("captions.csv", "image,caption\na.jpg,a dog, a cat\n", r"1 row \(line 2 \(3 cells\)\)"),
    ("captions.csv", 'image,caption\na.jpg,"a dog\nb.jpg,a cat\n', "broken quotes"),
    ("captions.csv", "image,caption,split\na.jpg,a,train\na.jpg,b,val\n", r"1 picture \('a.jpg'\) in two splits"),
    ("captions.csv", "image,caption,split\na.jpg,a,train\nb.jpg,b,\n", r"1 picture \(b.jpg\) without a split"),
    ("captions.csv", "image,caption\na.jpg,a dog\n", "1 pictures are too few to draw train, val and test: 3 are"),
    ("captions.csv", "image,caption\na.jpg,\n", "too few|no picture with a caption"),
    ("results.csv", "image,comment\n", "expected 'image_name| comment_number| comment'"),
    ("results.csv", "image_name| comment_number| comment\na.jpg a dog\n", r"1 row \(line 2\) not of the form"),
    ("results.csv", "image_name| comment_number| comment\n" + "a.jpg| 0| dog\n" * 2, r"1 id \(a.jpg\|0\)"),
    ("x.token", "a.jpg\ta dog\n", r"1 line \(line 1\) not of the form name.jpg#0"),
    ("x.token", "a.jpg#0\ta dog\na.jpg#0\ta cat\n", r"1 id \(a.jpg#0\) given more than once"),
])  # fmt: skip
def test_wrong_caption_files_are_refused_in_one_line(tmp_path, file, text, message):
    write(tmp_path / file, text)
    with pytest.raises(ValueError, match=message) as caught:
        layouts.read_layout(tmp_path, 1)
    assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value)


def test_split_lists_that_contradict_or_name_nothing_are_refused(tmp_path):
    write_token(tmp_path)
    write(tmp_path / "Flickr_8k.testImages.txt", "\n")
    with pytest.raises(ValueError, match="names no picture that has captions, so test would be empty"):
        layouts.read_layout(tmp_path, 1)
    write(tmp_path / "Flickr_8k.testImages.txt", f"{NAMES[0]}\n{NAMES[5]}\n")
    with pytest.raises(ValueError, match="also in another split's list"):
        layouts.read_layout(tmp_path, 1)


def test_latin1_captions_are_refused_with_the_line(tmp_path):
    (tmp_path / "captions.txt").write_bytes("image,caption\na.jpg,dog\nb.jpg,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 3: not UTF-8 \(byte 0xe9\)"):
        layouts.read_layout(tmp_path, 1)


def test_unknown_and_ambiguous_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        layouts.read_layout(tmp_path / "nowhere", 1)
    draw(tmp_path / "images")
    write(tmp_path / "dataset_infos.json", "{}")  # of another library, not Karpathy's
    with pytest.raises(ValueError, match="no captions in a known layout. It holds .*Give it one of"):
        layouts.read_layout(tmp_path, 1)
    write_karpathy(tmp_path)
    shutil.copy(tmp_path / "dataset_flickr30k.json", tmp_path / "dataset_flickr8k.json")
    with pytest.raises(ValueError, match="holds 2 files of the layout Karpathy JSON"):
        layouts.read_layout(tmp_path, 1)


@pytest.mark.long
@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared/data/flickr8k")
def test_the_three_caption_layouts_of_flickr8k_agree(tmp_path):
    official = layouts.read_layout(FLICKR8K, 1)
    assert (official.source.name, len(official.records)) == ("Karpathy JSON", 7000)
    assert [sum(r["split"] == split for r in official.records) for split in layouts.SPLITS] == [6000, 1000, 0]
    captions = {record["file_name"]: record["captions"] for record in official.records}
    for files in (["captions.txt"], ["Flickr8k.token.txt", "Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt"]):
        folder = tmp_path / files[0]
        folder.mkdir()
        for file in files:
            shutil.copy(FLICKR8K / file, folder)
        layout = layouts.read_layout(folder, 1)
        assert {record["file_name"]: record["captions"] for record in layout.records} == captions
        if not layout.drawn:
            splits = {record["file_name"]: record["split"] for record in layout.records}
            assert splits == {record["file_name"]: record["split"] for record in official.records}
