"""Odd but valid shards: columns of any width, cells without a picture, equal names in two shards, points in keys."""

import hashlib
import io
import json
import tarfile

import pytest

from nanocaption.data.prepared import verify
from nanocaption.prepare import check, layouts, packed, tars
from nanocaption.prepare.make import prepare
from tests.raw_sets import jpeg, listing, write

PICTURES = [jpeg(20 + number) for number in range(6)]
SPLITS = ["train", "train", "train", "train", "val", "test"]
NAMES = [f"{number}.jpg" for number in range(6)]
LENIENT = check.Rules(max_bad_fraction=0.5)


def write_table(path, columns, group=4, **types):
    """A parquet file of columns, with the types of some of them."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pyarrow.array(values, type=types.get(name)) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(arrays), path, row_group_size=group)
    return path


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def captions_in(folder):
    return {
        entry["file_name"]: entry["captions"] for entry in json.loads((folder / "captions.json").read_text())["images"]
    }


def table(**more):
    return {"image": PICTURES, "file_name": NAMES, "caption": [f"a dog {n}" for n in range(6)], "split": SPLITS} | more


EXPECTED = {name: [f"a dog {number}"] for number, name in enumerate(NAMES)}


# --- parquet ---


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("image", "binary"),
        ("image", "large_binary"),
        ("image", "binary_view"),
        ("caption", "large_string"),
        ("caption", "string_view"),
        ("file_name", "string_view"),
        ("split", "large_string"),
        ("split", "string_view"),
    ],
)
def test_bytes_and_texts_of_every_width(tmp_path, column, kind):
    pyarrow = pytest.importorskip("pyarrow")
    write_table(tmp_path / "raw" / "x.parquet", table(), **{column: getattr(pyarrow, kind)()})
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    assert captions_in(folder) == EXPECTED and listing(folder / "images") == dict(zip(NAMES, PICTURES, strict=True))


@pytest.mark.parametrize("kind", ["list_", "large_list", "list_view", "large_list_view"])
def test_lists_of_every_width(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    texts = [[f"a dog {n}", f"one dog {n}"] for n in range(6)]
    type_ = getattr(pyarrow, kind)(pyarrow.string_view())
    write_table(tmp_path / "raw" / "x.parquet", table(caption=texts), caption=type_)
    assert captions_in(prepare("mine", tmp_path, raw_dir=tmp_path / "raw")) == dict(zip(NAMES, texts, strict=True))


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "dictionary"])
def test_pictures_in_structs_of_every_width_and_in_dictionaries(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    if kind == "dictionary":
        columns, type_ = table(), pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())
    else:
        columns = table(image=[{"bytes": data, "path": name} for data, name in zip(PICTURES, NAMES, strict=True)])
        type_ = pyarrow.struct({"bytes": getattr(pyarrow, kind)(), "path": pyarrow.string_view()})
    write_table(tmp_path / "raw" / "x.parquet", columns, 6, image=type_)  # pyarrow cannot cut views within structs
    assert captions_in(prepare("mine", tmp_path, raw_dir=tmp_path / "raw")) == EXPECTED


def test_dictionaries_and_structs_of_lists_and_a_column_for_each_caption(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    write_table(tmp_path / "a" / "x.parquet", table(), caption=words, split=words, file_name=words)
    assert captions_in(prepare("a", tmp_path / "data", raw_dir=tmp_path / "a")) == EXPECTED
    write_table(tmp_path / "b" / "x.parquet", table(caption=[{"raw": [f"a dog {n}", "x y"]} for n in range(6)]))
    assert captions_in(prepare("b", tmp_path / "data", raw_dir=tmp_path / "b"))["3.jpg"] == ["a dog 3", "x y"]
    columns = table(
        caption_1=["second"] * 5 + [None], caption_0=[f"a dog {n}" for n in range(6)], caption_10=["last"] * 6
    )
    del columns["caption"]
    write_table(tmp_path / "c" / "x.parquet", columns)
    found = captions_in(prepare("c", tmp_path / "data", raw_dir=tmp_path / "c"))
    assert found["0.jpg"] == ["a dog 0", "second", "last"] and found["5.jpg"] == ["a dog 5", "last"]


def cells(form, number, data):
    return {"bytes": data, "path": f"{number}.jpg" if data else None} if form == "struct" else data


@pytest.mark.parametrize("form", ["struct", "plain"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("gap", [None, b""])
def test_empty_cells_are_bad_pictures_counted_and_named(tmp_path, form, named, gap):
    data = [*PICTURES[:2], gap, *PICTURES[3:]]
    columns = table(image=[cells(form, number, value) for number, value in enumerate(data)])
    if not named:
        del columns["file_name"]
    write_table(tmp_path / "raw" / "x.parquet", columns)
    with pytest.raises(
        ValueError, match=r"1 of 6 pictures .16.67 %. cannot be used, above MAX_BAD_FRACTION = 0.01: empty file: 1"
    ):
        prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw", rules=LENIENT)
    assert [*captions_in(folder).values()] == [said for name, said in EXPECTED.items() if name != "2.jpg"]
    refused = json.loads((folder / "report.json").read_text())["pictures"]["refused_pictures"]
    assert refused == {"2.jpg" if named else "x-row-3": "empty file"}
    told = "1 row (x.parquet row 3) with an empty picture cell" in "\n".join(verify(folder)["notes"])
    assert told or (named and gap == b"")  # then nothing but its bytes tells, and these are not read twice


def test_a_whole_row_that_is_null_and_a_table_without_gaps(tmp_path):
    columns = table(
        image=[None, *[{"bytes": data, "path": name} for data, name in zip(PICTURES, NAMES, strict=True)][1:]]
    )
    del columns["file_name"]
    write_table(tmp_path / "raw" / "x.parquet", columns)
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw", rules=LENIENT)
    assert captions_in(folder) == {name: said for name, said in EXPECTED.items() if name != "0.jpg"}
    write_table(tmp_path / "whole" / "x.parquet", table())
    assert not packed.parquet_columns(tmp_path / "whole" / "x.parquet").gaps  # so its pictures are read once


@pytest.mark.parametrize("beside", [False, True])
def test_paths_without_bytes_are_no_pictures(tmp_path, beside):
    columns = table(image=[{"bytes": None, "path": f"/home/bob/{name}"} for name in NAMES])
    del columns["file_name"]
    pyarrow = pytest.importorskip("pyarrow")
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    write_table(tmp_path / "x.parquet", columns, image=kind)
    if beside:
        (tmp_path / "0.jpg").write_bytes(PICTURES[0])
    with pytest.raises(
        ValueError, match=r"no bytes of a picture .* holds no pictures, only their names \(first: 0.jpg\)"
    ):
        layouts.read_layout(tmp_path, 1)


def test_an_absolute_path_beside_the_bytes_gives_its_last_part(tmp_path):
    columns = table(
        image=[{"bytes": data, "path": f"/home/bob/{name}"} for data, name in zip(PICTURES, NAMES, strict=True)]
    )
    del columns["file_name"]
    write_table(tmp_path / "raw" / "x.parquet", columns)
    assert captions_in(prepare("mine", tmp_path, raw_dir=tmp_path / "raw")) == EXPECTED


def test_rows_that_img2dataset_could_not_fetch_are_left_out_with_a_count(tmp_path):
    columns = {
        "jpg": [*PICTURES, None, None],
        "caption": [f"a dog {n}" for n in range(8)],
        "status": ["success"] * 6 + ["failed_to_download"] * 2,
        "error_message": [None] * 6 + ["404"] * 2,
    }
    for split in ("train", "val"):
        rows = {"train": slice(0, 4), "val": slice(4, 8)}[split]
        write_table(
            tmp_path / "raw" / split / "00000.parquet", {name: values[rows] for name, values in columns.items()}
        )
    write(tmp_path / "raw" / "train" / "00000_stats.json", "{}")
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    assert [*captions_in(folder).values()] == [*EXPECTED.values()]
    assert any(note.startswith("2 rows (00000.parquet row 3: failed_to_download, ") for note in verify(folder)["notes"])


def test_equal_names_in_two_shards_are_told_apart_the_same_way_every_time(tmp_path):
    for shard, rows in (("a-train", [0, 1, 2, 3]), ("b-val", [4, 5])):
        columns = {
            "image": [{"bytes": PICTURES[number], "path": f"{place}.jpg"} for place, number in enumerate(rows)],
            "caption": [[f"a dog {number}"] for number in rows],
        }
        write_table(tmp_path / "raw" / f"{shard}.parquet", columns)
    expected = {"a-train/0.jpg": 0, "a-train/1.jpg": 1, "2.jpg": 2, "3.jpg": 3, "b-val/0.jpg": 4, "b-val/1.jpg": 5}
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    assert captions_in(folder) == {name: [f"a dog {number}"] for name, number in expected.items()}
    assert listing(folder / "images") == {name: PICTURES[number] for name, number in sorted(expected.items())}
    assert any(
        note.startswith("2 names (0.jpg, 1.jpg) of several different pictures") for note in verify(folder)["notes"]
    )
    before = captions_in(folder)
    (folder / "manifest.json").unlink()
    (folder / "images" / "b-val" / "0.jpg").write_bytes(b"cut")
    assert captions_in(prepare("mine", tmp_path, raw_dir=tmp_path / "raw")) == before
    assert (folder / "images" / "b-val" / "0.jpg").read_bytes() == PICTURES[4]


def test_equal_names_within_a_shard_and_equal_bytes_across(tmp_path):
    columns = {
        "image": [PICTURES[0], PICTURES[1], PICTURES[0], PICTURES[2]],
        "file_name": ["1.jpg", "1.jpg", "1.jpg", "2.jpg"],
        "caption": ["a", "b", "c", "d"],
    }
    write_table(tmp_path / "a.parquet", columns)
    write_table(
        tmp_path / "b.parquet",
        {"image": [PICTURES[0], PICTURES[3]], "file_name": ["1.jpg", "1.jpg"], "caption": ["e", "f"]},
    )
    rows, _ = packed.read_parquet(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"])
    by_digest = [packed.with_digest("1.jpg", hashlib.sha256(data).hexdigest()) for data in PICTURES]
    expected = {
        f"a/{by_digest[0]}": ["a", "c", "e"],
        f"a/{by_digest[1]}": ["b"],
        "2.jpg": ["d"],
        f"b/{by_digest[3]}": ["f"],
    }
    assert {row.file_name: row.captions for row in rows} == expected
    packed.unpack_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], [*expected], tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes() for name in expected] == [
        PICTURES[number] for number in (0, 1, 2, 3)
    ]


def test_a_shard_whose_name_would_make_a_name_that_is_there(tmp_path):
    write_table(
        tmp_path / "a.parquet", {"image": PICTURES[:2], "file_name": ["1.jpg", "a/1.jpg"], "caption": ["a", "b"]}
    )
    write_table(tmp_path / "b.parquet", {"image": PICTURES[2:3], "file_name": ["1.jpg"], "caption": ["c"]})
    with pytest.raises(ValueError, match=r"1 name \(a/1.jpg\) given to a picture by its shard"):
        packed.read_parquet(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"])


# --- tars ---


def read_tar(tmp_path, members):
    source = layouts.find(write_tar(tmp_path / "set.tar", members).parent)
    assert source.name == "WebDataset"
    rows, notes = source.read()
    return {row.file_name: row.captions for row in rows}, "\n".join(notes)


def test_points_in_a_key_pair_by_the_whole_stem_with_a_note(tmp_path):
    members = [
        (f"img {n}.150.{ending}", data) for n in range(3) for ending, data in (("jpg", PICTURES[n]), ("txt", b"a dog"))
    ]
    found, notes = read_tar(tmp_path, [*members, ("plain.jpg", PICTURES[3]), ("plain.txt", b"a cat")])
    assert found == {f"img {n}.150.jpg": ["a dog"] for n in range(3)} | {"plain.jpg": ["a cat"]}
    assert (
        "3 pictures (img 0.150.jpg, img 1.150.jpg, img 2.150.jpg) with several points in the name: WebDataset ends"
        in notes
    )
    packed_names = [*found]
    tars.unpack_tars([tmp_path / "set.tar"], packed_names, tmp_path / "out")
    assert listing(tmp_path / "out") == dict(zip(packed_names, PICTURES, strict=False))


def test_what_is_in_a_tar_and_not_used_is_counted_and_named(tmp_path):
    found, notes = read_tar(
        tmp_path,
        [
            ("a.jpg", PICTURES[0]),
            ("a.txt", b"a dog"),
            ("a.seg.png", PICTURES[1]),
            ("img 2.150.jpg", PICTURES[2]),
            ("b.c.txt", b"a cat"),
            ("a.cls", b"3"),
            ("README", b"x"),
            ("._a.jpg", b"x"),
        ],
    )
    assert found == {"a.jpg": ["a dog"]}
    assert (
        "2 pictures (a.seg.png, img 2.150.jpg) without a text of the same key, left out (WebDataset ends a key at"
        in notes
    )
    assert "1 text (b.c.txt) without a picture" in notes
    assert "2 members (a.cls, README) that are neither picture nor text (.cls, no ending), not read" in notes


def test_members_of_a_key_need_not_be_neighbours(tmp_path):
    members = [
        *((f"{n}.jpg", PICTURES[n % 6]) for n in range(300)),
        *((f"{n}.txt", b"a dog %d" % n) for n in range(300)),
    ]
    found, notes = read_tar(tmp_path, members)
    assert found == {f"{n}.jpg": [f"a dog {n}"] for n in range(300)} and not notes


def test_json_before_caption_before_txt_in_a_tar(tmp_path):
    found, notes = read_tar(
        tmp_path,
        [
            ("a.txt", b"from txt"),
            ("a.jpg", PICTURES[0]),
            ("a.json", b'{"caption": "from json"}'),
            ("b.jpg", PICTURES[1]),
            ("b.json", b'{"width": 3}'),
            ("b.txt", b"A man in a shirt\nis standing."),
            ("c.jpg", PICTURES[2]),
            ("c.caption", b"a cat"),
            ("d.jpg", PICTURES[3]),
            ("d.json", b'{"width": 3}'),
            ("e.jpg", PICTURES[4]),
            ("e.json", b'["one", "two"]'),
        ],
    )
    assert found == {
        "a.jpg": ["from json"],
        "b.jpg": ["A man in a shirt is standing."],
        "c.jpg": ["a cat"],
        "e.jpg": ["one", "two"],
    }
    assert "1 picture (a.json) with several texts" in notes and "in 1 picture (a) they differ" in notes
    assert (
        "1 text (b) with a caption wrapped over several lines, joined; the first: 'A man in a shirt is standing.'"
        in notes
    )
    assert (
        "1 .json file (d.json) without any of the keys captions" in notes
        and "1 picture (d.jpg) without a text" in notes
    )


def test_img2datasets_tars_with_their_lists(tmp_path):
    for shard in range(2):
        write_tar(
            tmp_path / f"0000{shard}.tar",
            [
                (f"0000{shard}000{n}.{ending}", data)
                for n in range(2)
                for ending, data in (
                    ("jpg", PICTURES[2 * shard + n]),
                    ("txt", b"a\ndog"),
                    ("json", b'{"caption": "a\\ndog"}'),
                )
            ],
        )
        write_table(
            tmp_path / f"0000{shard}.parquet", {"caption": ["a dog"], "url": ["http://x/y.jpg"], "status": ["success"]}
        )
        write(tmp_path / f"0000{shard}_stats.json", "{}")
    source = layouts.find(tmp_path)
    rows, notes = source.read()
    assert source.name == "WebDataset" and [row.file_name for row in rows] == [
        f"0000{s}000{n}.jpg" for s in range(2) for n in range(2)
    ]
    assert all(row.captions == ["a\ndog"] for row in rows) and "all say the same" in "\n".join(notes)
    assert "2 packed files (00000.parquet, 00001.parquet) beside what is read" in "\n".join(notes)


def test_shards_of_parquet_with_pictures_go_before_tars_and_say_so(tmp_path):
    write_table(tmp_path / "x.parquet", table())
    write_tar(tmp_path / "x.tar", [("a.jpg", PICTURES[0]), ("a.txt", b"a dog")])
    contents = layouts.read_layout(tmp_path, 1)
    assert contents.source.name == "parquet" and any("1 packed file (x.tar) beside" in note for note in contents.notes)


def test_equal_keys_in_the_shards_of_two_splits(tmp_path):
    for split, shades in (("train", range(4)), ("val", range(4, 6))):
        members = [
            (f"{place:06d}.{ending}", data)
            for place, n in enumerate(shades)
            for ending, data in (("jpg", PICTURES[n]), ("txt", f"a dog {n}".encode()))
        ]
        write_tar(tmp_path / "raw" / split / "00000.tar", [*members, ("same.jpg", jpeg(200)), ("same.txt", b"a cat")])
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    expected = {f"train/00000/{n:06d}.jpg" if n < 2 else f"{n:06d}.jpg": n for n in range(4)}
    expected |= {f"val/00000/{n:06d}.jpg": 4 + n for n in range(2)}
    images = listing(folder / "images")
    assert {name: images[name] for name in expected} == {name: PICTURES[n] for name, n in expected.items()}
    counts = verify(folder)["counts"]
    assert (counts["train"]["images"], counts["val"]["images"]) == (4, 3)  # the copy stays in val alone
    before = captions_in(folder)
    (folder / "manifest.json").unlink()
    assert captions_in(prepare("mine", tmp_path, raw_dir=tmp_path / "raw")) == before


def test_folders_in_a_tar_are_splits(tmp_path):
    members = [
        (f"{split}/{n}.{ending}", data)
        for split, n in (("train", 0), ("train", 1), ("validation", 0))
        for ending, data in (("jpg", PICTURES[n]), ("txt", b"a dog"))
    ]
    rows, _ = layouts.find(write_tar(tmp_path / "all.tar", members)).read()
    assert [(row.file_name, row.split) for row in rows] == [
        ("train/0.jpg", "train"),
        ("train/1.jpg", "train"),
        ("validation/0.jpg", "val"),
    ]


def test_two_pictures_of_a_key_and_a_list_of_addresses(tmp_path):
    members = [("a.jpg", PICTURES[0]), ("a.png", PICTURES[1]), ("a.txt", b"a dog")]
    found, notes = read_tar(tmp_path, members)
    assert found == {"a.jpg": ["a dog"], "a.png": ["a dog"]} and "1 text (a) for several pictures of that key" in notes
    write_table(tmp_path / "urls" / "x.parquet", {"url": ["http://x/a.jpg"], "caption": ["a dog"]})
    with pytest.raises(ValueError, match=r"url gives addresses: fetch the pictures with img2dataset"):
        layouts.read_layout(tmp_path / "urls", 1)
