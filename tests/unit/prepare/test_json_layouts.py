"""JSON of captions, known by its content: the sets people publish, and what labelling tools and trainers write."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from nanocaption.data.prepared import load_records
from nanocaption.prepare import caption_json, layouts
from nanocaption.prepare.caption_files import plain_split
from nanocaption.prepare.make import prepare
from tests.raw_sets import CAPTIONS, NAMES, draw, fix_splits, write

SPLITS = ("train", "val", "test")
WANTED = {"a.jpg": ["a dog", "the dog"], "b.jpg": ["a cat"]}


def read(folder) -> layouts.Contents:
    return layouts.read_layout(folder, 1)


def by_name(folder) -> dict[str, list]:
    return {record["file_name"]: record["captions"] for record in read(folder).records}


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Two pictures are too few to draw from."""
    monkeypatch.setattr(
        layouts, "splits_of", lambda names, rows, *_: ([plain_split(row.split or "train") for row in rows], [])
    )


def coco(ids=(5, 6), **more) -> dict:
    images = [{"id": ids[0], "file_name": "a.jpg"}, {"id": ids[1], "file_name": "b.jpg"}]
    texts = [(ids[1], "a cat"), (ids[0], "a dog"), (ids[0], "the dog")]
    return {
        "images": images,
        "annotations": [{"id": n, "image_id": i, "caption": text, **more} for n, (i, text) in enumerate(texts)],
    }


SHAPES = {
    "COCO": (coco(), "COCO captions JSON"),
    "STAIR": (coco(tokenized_caption="a t t"), "COCO captions JSON"),
    "Karpathy": (
        {"images": [{"filename": name, "sentences": [{"raw": t} for t in texts]} for name, texts in WANTED.items()]},
        "Karpathy JSON",
    ),
    "map of lists": (WANTED, "JSON map"),
    "map of objects": ({name: {"captions": texts} for name, texts in WANTED.items()}, "JSON map"),
    "map of names without an ending": ({name[0]: texts for name, texts in WANTED.items()}, "JSON map"),
    "list of numbered captions": (
        [
            {"image": name, **{f"caption_{n}": text for n, text in enumerate([*texts, ""])}}
            for name, texts in WANTED.items()
        ],
        "JSON list",
    ),
    "list of numbered objects": (
        [{"image": name, "captions": {str(n): text for n, text in enumerate(texts)}} for name, texts in WANTED.items()],
        "JSON list",
    ),
    "list": ([{"image": name, "caption": text} for name, texts in WANTED.items() for text in texts], "JSON list"),
    "list of lists": ([{"file_name": name, "captions": texts} for name, texts in WANTED.items()], "JSON list"),
    "list of texts": ([{"img_path": name, "text": texts} for name, texts in WANTED.items()], "JSON list"),
    "a list in an object": (
        {
            "info": {"year": 1},
            "annotations": [{"image_id": name, "caption": text} for name, texts in WANTED.items() for text in texts],
        },
        "JSON list",
    ),
    "a key of its own": ([{"my picture": name, "caption": texts} for name, texts in WANTED.items()], "JSON list"),
    "LLaVA": (
        [
            {
                "id": "1",
                "image": name,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": f"<image>\n{text}"},
                    {"from": "human", "value": "Really?"},
                    {"from": "gpt", "value": "Yes."},
                ],
            }
            for name, texts in WANTED.items()
            for text in texts
        ],
        "JSON list",
    ),
    "messages and images": (
        [
            {
                "images": [name],
                "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": text}],
            }
            for name, texts in WANTED.items()
            for text in texts
        ],
        "JSON list",
    ),
    "messages of parts": (
        [
            {
                "messages": [
                    {"role": "system", "content": "You caption."},
                    {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "What?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": text}]},
                ]
            }
            for name, texts in WANTED.items()
            for text in texts
        ],
        "JSON list",
    ),
    "messages with an image_url": (
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": name}}]},
                    {"role": "assistant", "content": text},
                ]
            }
            for name, texts in WANTED.items()
            for text in texts
        ],
        "JSON list",
    ),
    "TextCaps": (
        {
            "data": [
                {"image_id": name[0], "caption_str": text, "reference_strs": texts, "image_path": f"train/{name}"}
                for name, texts in WANTED.items()
                for text in texts
            ]
        },
        "TextCaps JSON",
    ),
    "TextCaps without references": (
        {"data": [{"image_id": name[0], "caption_str": text} for name, texts in WANTED.items() for text in texts]},
        "TextCaps JSON",
    ),
    "Label Studio": (
        [
            {
                "id": n,
                "data": {"image": f"/data/upload/3/{name}"},
                "annotations": [
                    {
                        "result": [
                            {"type": "textarea", "from_name": "caption", "to_name": "image", "value": {"text": [text]}}
                        ]
                    }
                    for text in texts
                ],
            }
            for n, (name, texts) in enumerate(WANTED.items())
        ],
        "Label Studio JSON",
    ),
    "Label Studio JSON-MIN": (
        [
            {
                "image": "/data/upload/3/a.jpg",
                "id": 1,
                "caption": {"text": WANTED["a.jpg"]},
                "annotator": 1,
                "annotation_id": 1,
            },
            {"image": "/data/upload/3/b.jpg", "id": 2, "caption": "a cat", "annotator": 1, "annotation_id": 2},
        ],
        "JSON list",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("file", ["annotations.json", "captions_all.json", "dataset_mine.json"])
def test_shapes_are_known_by_their_content(tmp_path, shape, file):
    data, name = SHAPES[shape]
    draw(tmp_path, ["a.jpg", "b.jpg"])
    write(tmp_path / file, json.dumps(data))
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == WANTED
    assert caption_json.is_json(tmp_path / file) == name
    if file == "annotations.json":
        assert contents.source.name == name and file in contents.source.why


@pytest.mark.parametrize("shape", ["list", "list of lists", "LLaVA", "messages and images", "messages of parts"])
@pytest.mark.parametrize(
    "file", ["captions.jsonl", "sharegpt.jsonl", "metadata.jsonl", "lines.json", "Captions_all.JSONL"]
)
def test_the_same_in_lines(tmp_path, shape, file):
    write(tmp_path / file, "\n".join(json.dumps(entry) for entry in SHAPES[shape][0]))
    assert by_name(tmp_path) == WANTED


@pytest.mark.parametrize("shape", ["list", "map of lists", "COCO"])
def test_splits_as_keys_of_one_file(tmp_path, shape):
    data = SHAPES[shape][0]
    other = json.loads(json.dumps(data).replace("a.jpg", "c.jpg").replace("b.jpg", "d.jpg"))
    write(tmp_path / "annotations.json", json.dumps({"train": data, "validation": other}))
    assert {r["file_name"]: r["split"] for r in read(tmp_path).records} == {
        "a.jpg": "train",
        "b.jpg": "train",
        "c.jpg": "val",
        "d.jpg": "val",
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train.json", "val.json", "test.json"),
        ("stair_captions_v1.2_train.json", "stair_captions_v1.2_val.json", "x_test.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
        ("captions_train2014.json", "captions_val2014.json", "captions_test.json"),
    ],
)
def test_a_coco_file_of_each_split(tmp_path, names):
    for number, name in enumerate(names):
        text = json.dumps(coco()).replace("a.jpg", f"a{number}.jpg").replace("b.jpg", f"b{number}.jpg")
        write(tmp_path / name, text)
    contents = read(tmp_path)
    assert {(r["file_name"], r["split"]) for r in contents.records} == {
        (f"{letter}{number}.jpg", split) for number, split in enumerate(SPLITS) for letter in "ab"
    }
    assert not contents.drawn and len(contents.source.files) == 3


def test_two_files_of_one_split_are_refused(tmp_path):
    for name in ("val.json", "other_val.json"):
        write(tmp_path / name, json.dumps(coco()))
    with pytest.raises(ValueError, match="holds 2 files of the layout COCO captions JSON .*keep the one"):
        read(tmp_path)


def test_vizwizs_marked_captions_are_left_out_of_all_splits(tmp_path):
    for split in ("train", "val"):
        images = [
            {"id": n, "file_name": f"VizWiz_{split}_{n}.jpg", "vizwiz_url": "u", "text_detected": True}
            for n in range(4)
        ]
        entries = [
            (0, "good", False, False),
            (0, "rejected", True, False),
            (0, "precanned", False, True),
            (1, "fine", False, False),
            (2, "both", True, True),
        ]
        annotations = [
            {"id": n, "image_id": i, "caption": text, "is_rejected": rejected, "is_precanned": precanned}
            for n, (i, text, rejected, precanned) in enumerate(entries)
        ]
        write(tmp_path / f"{split}.json", json.dumps({"info": {}, "images": images, "annotations": annotations}))
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == {
        f"VizWiz_{split}_{n}.jpg": [text] for split in ("train", "val") for n, text in ((0, "good"), (1, "fine"))
    }
    for split in ("train", "val"):
        assert (
            f"{split}.json: 3 of 5 captions are marked is_rejected (2), is_precanned (2), left out as the set's own "
            "evaluator does"
        ) in contents.notes
        assert (
            f"{split}.json: 2 pictures (VizWiz_{split}_2.jpg, VizWiz_{split}_3.jpg) without a caption, left out"
            in contents.notes
        )
    write(tmp_path / "val.json", json.dumps(coco(is_rejected=0, is_precanned=False)))  # nothing marked
    assert {"a.jpg", "b.jpg"} <= by_name(tmp_path).keys() and not any(
        "val.json" in note for note in read(tmp_path).notes
    )


@pytest.mark.parametrize("flag", [True, 1, 1.0, "True", "true"])
def test_the_marks_of_other_writers_and_lists_without_images(tmp_path, flag):
    entries = [{"image_id": name, "caption": text} for name, texts in WANTED.items() for text in texts]
    data = {"annotations": [*entries, {"image_id": "a.jpg", "caption": "spam", "is_rejected": flag}]}
    write(tmp_path / "all.json", json.dumps(data))
    assert by_name(tmp_path) == WANTED


def test_nocaps_keeps_its_domains(tmp_path):
    data = coco(ids=(0, 1))
    for image, domain in zip(data["images"], ("in-domain", "out-domain"), strict=True):
        image |= {"domain": domain, "open_images_id": "0013ea2087020901", "coco_url": "https://example.org/a.jpg"}
    write(tmp_path / "raw" / "nocaps_val_4500_captions.json", json.dumps(data))
    contents = read(tmp_path / "raw")
    assert [(r["image_id"], r["domain"], r["split"]) for r in contents.records] == [
        (0, "in-domain", "val"),
        (1, "out-domain", "val"),
    ]
    draw(tmp_path / "raw" / "images", ["a.jpg", "b.jpg"])
    folder = prepare("nocaps", tmp_path / "data", raw_dir=tmp_path / "raw")
    assert [r["domain"] for r in load_records(folder, "val")] == ["in-domain", "out-domain"]


@pytest.mark.parametrize(
    ("ids", "of_annotations", "kept"),
    [
        ((5, 6), str, [5, 6]),
        (("5", "6"), int, ["5", "6"]),
        (("x1", "007"), str, ["x1", "007"]),
        ((5.0, 6.0), int, [5, 6]),
        ((5, 6), float, [5, 6]),
        ((0, "1"), str, [0, "1"]),
    ],
)
def test_ids_are_joined_by_their_text_and_kept_as_they_came(tmp_path, ids, of_annotations, kept):
    data = coco(ids)
    for entry in data["annotations"]:
        entry["image_id"] = of_annotations(entry["image_id"])
    write(tmp_path / "captions_val2017.json", json.dumps(data))
    assert by_name(tmp_path) == WANTED
    assert [(type(r["image_id"]), r["image_id"]) for r in read(tmp_path).records] == [(type(i), i) for i in kept]


@pytest.mark.parametrize("ids", [(5, "5"), (5, 5.0), ("5", "5")])
def test_one_id_written_in_two_ways_is_refused(tmp_path, ids):
    write(tmp_path / "captions_val2017.json", json.dumps(coco(ids)))
    with pytest.raises(ValueError, match=r"images: 1 id \(5\) given more than once"):
        read(tmp_path)


def test_numbers_without_names_find_cocos_pictures(tmp_path):
    draw(tmp_path / "val2017", ["000000000139.jpg", "000000001390.jpg"])
    draw(tmp_path / "train2014", ["COCO_train2014_000000000285.jpg"])
    entries = [
        {"image_id": 139, "caption": "a dog"},
        {"image_id": "285", "caption": "a cat"},
        {"image_id": 139, "caption": "the dog"},
    ]
    write(tmp_path / "annotations.json", json.dumps({"annotations": entries}))
    contents = read(tmp_path)
    assert [(r["file_name"], r["captions"], r["image_id"]) for r in contents.records] == [
        ("000000000139.jpg", ["a dog", "the dog"], 139),
        ("COCO_train2014_000000000285.jpg", ["a cat"], "285"),
    ]
    assert any("2 names (139 is 000000000139.jpg, " in note for note in contents.notes)


def test_karpathys_imgid_and_filepath(tmp_path):
    images = [
        {"filename": "1.jpg", "filepath": folder, "split": split, "imgid": 7 + n, "sentences": [{"raw": split}]}
        for n, (folder, split) in enumerate([("train2014", "train"), ("val2014", "val")])
    ]
    write(tmp_path / "dataset_x.json", json.dumps({"images": images}))
    for shade, folder in enumerate(("train2014", "val2014")):
        draw(tmp_path / "images" / folder, ["0.jpg", "1.jpg"][1 - shade :])
    assert [(r["file_name"], r["image_id"], r["captions"]) for r in read(tmp_path).records] == [
        ("train2014/1.jpg", 7, ["train"]),
        ("val2014/1.jpg", 8, ["val"]),
    ]
    images[1] |= {"filename": "2.jpg"}
    images = [image | {"cocoid": 100 + n} for n, image in enumerate(images)]
    draw(tmp_path / "images" / "val2014", ["2.jpg"])
    write(tmp_path / "dataset_x.json", json.dumps({"images": images}))
    assert [(r["file_name"], r["image_id"]) for r in read(tmp_path).records] == [
        ("train2014/1.jpg", 100),
        ("2.jpg", 101),
    ]


def test_textcaps_keeps_its_ids_and_leaves_pictures_without_captions_out(tmp_path):
    for split in ("train", "val", "test"):
        entry = {
            "image_id": f"0054c9{split}",
            "set_name": split,
            "image_path": f"{split}/0054c9{split}.jpg",
            "image_classes": ["Dog"],
        }
        entries = [
            entry | {"caption_str": text, "reference_strs": ["a sign", "the sign"]} for text in ("a sign", "the sign")
        ]
        write(
            tmp_path / f"TextCaps_0.1_{split}.json",
            json.dumps({"dataset_name": "textcaps", "data": entries + [entry | {"image_path": "x/bare.jpg"}]}),
        )
    contents = read(tmp_path)
    assert sorted(
        (r["file_name"], r["split"], r["image_id"], tuple(r["captions"])) for r in contents.records
    ) == sorted((f"0054c9{split}.jpg", split, f"0054c9{split}", ("a sign", "the sign")) for split in SPLITS)
    assert any("1 object (bare.jpg) without a caption, left out" in note for note in contents.notes)


def test_label_studios_unfinished_tasks_are_counted(tmp_path):
    tasks = json.loads(json.dumps(SHAPES["Label Studio"][0]))
    text = tasks[1]["annotations"][0]
    tasks[1]["annotations"] += [
        {**text, "was_cancelled": True},
        {"result": []},
        {"result": [{"type": "choices", "value": {"choices": ["x"]}}]},
    ]
    tasks.append({"id": 9, "data": {"image": "/data/upload/3/c.jpg"}, "annotations": []})
    write(tmp_path / "project-1.json", json.dumps(tasks))
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == WANTED
    assert any("project-1.json: 1 task (task 9) without an annotation, left out" in note for note in contents.notes)
    small = [*SHAPES["Label Studio JSON-MIN"][0], {"image": "/data/upload/3/c.jpg", "id": 3}]
    write(tmp_path / "project-1.json", json.dumps([entry | {"lead_time": None} for entry in small]))
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == WANTED
    assert any("1 object (entry 3) without a picture or a caption, left out" in note for note in contents.notes)
    for result in (task for task in tasks[:1] for task in task["annotations"]):
        result["result"] += [{"type": "textarea", "from_name": "notes", "value": {"text": ["no caption"]}}]
    write(tmp_path / "project-1.json", json.dumps(tasks))
    assert by_name(tmp_path) == WANTED  # the field called caption


def test_conversations_without_picture_or_answer_are_counted(tmp_path):
    entries = [
        *SHAPES["LLaVA"][0],
        {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi"}]},
        {"id": "none", "image": "c.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
    ]
    write(tmp_path / "llava.json", json.dumps(entries))
    contents = read(tmp_path)
    assert {r["file_name"]: r["captions"] for r in contents.records} == WANTED
    assert any("2 objects (entry 4, entry 5) without a picture or a caption" in note for note in contents.notes)


@pytest.mark.parametrize("file", ["list.json", "captions.jsonl"])
def test_an_entry_that_is_none_is_refused_with_its_place(tmp_path, file):
    entries = [{"image": "a.jpg", "caption": "a dog"}, {"image": "b.jpg", "cpation": "a cat"}]
    write(tmp_path / file, json.dumps(entries) if file == "list.json" else "\n".join(map(json.dumps, entries)))
    with pytest.raises(ValueError, match=f"{file}, (entry|line) 2: expected an object with"):
        read(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"a": "b"},
        [1, 2],
        "text",
        {"images": [{"id": 1, "file_name": "a.jpg"}]},
        {"annotations": [{"id": 1, "image_id": 2, "bbox": [1, 2, 3, 4]}], "images": [{"id": 2, "file_name": "a.jpg"}]},
        {"image": "a.jpg", "width": 7},
    ],
)
def test_other_json_is_not_taken_for_captions(tmp_path, data):
    write(tmp_path / "other.json", json.dumps(data))
    with pytest.raises(ValueError, match="no captions in a known layout.*not read: .*other.json"):
        read(tmp_path)
    write(tmp_path / "captions.csv", "image,caption,split\na.jpg,a dog,train\nb.jpg,a cat,val\n")
    contents = read(tmp_path)  # and is in nobody's way
    assert contents.source.name == "captions.csv" and "not read: other.json" in contents.source.why


def test_json_beside_each_picture_is_no_caption_file(tmp_path):
    draw(tmp_path / "raw", ["a.jpg", "b.jpg"])
    for name in ("a", "b"):
        write(
            tmp_path / "raw" / f"{name}.json",
            json.dumps({"image": f"{name}.jpg", "caption": "one", "data": [{"file_name": "x.jpg", "caption": "y"}]}),
        )
    assert layouts.caption_candidates(tmp_path / "raw") == []


def test_many_files_are_not_looked_at_one_by_one(tmp_path):
    for number in range(layouts.MOST_LOOKED_AT + 1):
        write(tmp_path / "labels" / f"{number}.json", json.dumps([{"image": f"{number}.jpg", "caption": "a dog"}]))
    with pytest.raises(
        ValueError, match="201 files .*more than are looked at one by one; put the captions into one file"
    ):
        read(tmp_path)


def image_folder(folder, kind: str, rows: list[dict]) -> None:
    if kind == "parquet":
        folder.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    else:
        write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("key", ["text", "caption", "captions"])
@pytest.mark.parametrize("per_split", [True, False])
def test_an_image_folder_of_the_hub(tmp_path, kind, key, per_split):
    texts = ["None", "NA"] if key == "captions" else "None"
    for split in SPLITS:
        draw(tmp_path / split, ["a.jpg"])
        if per_split:
            image_folder(tmp_path / split, kind, [{"file_name": "a.jpg", key: texts}])
    if not per_split:
        image_folder(tmp_path, kind, [{"file_name": f"{split}/a.jpg", key: texts, "split": split} for split in SPLITS])
    assert {(r["file_name"], r["split"], *r["captions"]) for r in read(tmp_path).records} == {
        (f"{split}/a.jpg", split, *(texts if key == "captions" else [texts])) for split in SPLITS
    }


def test_a_prepared_set_can_be_read_again(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    draw(tmp_path / "raw")
    write(
        tmp_path / "raw" / "captions.jsonl", "\n".join(json.dumps({"image": n, "captions": CAPTIONS[n]}) for n in NAMES)
    )
    folder = prepare("mine", tmp_path / "data", raw_dir=tmp_path / "raw")
    again = layouts.read_layout(folder, 1)
    assert [dict(record) for record in again.records] == json.loads((folder / "captions.json").read_text())["images"]
