"""Pictures packed with their captions, and archives: what is read out of them, and which are never unpacked."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from nanocaption.data.prepared import is_whole, verify
from nanocaption.prepare import archives, layouts, packed
from nanocaption.prepare.make import prepare, read_raw
from tests.raw_sets import (
    CAPTIONS,
    NAMES,
    SPLITS,
    draw,
    fix_splits,
    jpeg,
    listing,
    make_raw,
    prepared_records,
    write,
    write_karpathy,
)

EXPECTED = {name: jpeg(20 + shade) for shade, name in enumerate(NAMES)}


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def image(name: str, path: str | None = "") -> dict:
    return {"bytes": EXPECTED[name], "path": name if path == "" else path}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, link
    tar.addfile(info, io.BytesIO(data))


def captions_of(folder: Path) -> list[dict]:
    return json.loads((folder / "captions.json").read_text(encoding="utf-8"))["images"]


# --- parquet ---


def test_parquet_with_one_row_per_picture_and_the_split_in_the_shards_name(tmp_path, capsys):
    raw = tmp_path / "raw"
    for split, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = [{"image": image(name), "sentences": [{"raw": text, "sentid": 1} for text in CAPTIONS[name]]}
                for name, own in zip(NAMES, SPLITS, strict=True) if own == split]  # fmt: skip
        write_parquet(raw / "data" / f"{word}-00000-of-00001.parquet", rows)
    write(raw / "README.md", "# a data set")
    folder = prepare("mine", tmp_path, raw_dir=raw)
    assert sorted(captions_of(folder), key=lambda r: r["file_name"]) == prepared_records()
    assert listing(folder / "images") == EXPECTED
    assert "layout parquet, because 3 shards (test-00000-of-00001.parquet, " in capsys.readouterr().out
    assert verify(prepare("mine", tmp_path, raw_dir=raw))["layout"] == "parquet"


def test_parquet_with_one_row_per_caption(tmp_path):
    rows = [{"image": EXPECTED[name], "file_name": name, "caption": text, "split": split}
            for name, split in zip(NAMES, SPLITS, strict=True) for text in CAPTIONS[name]]  # fmt: skip
    folder = prepare("mine", tmp_path, raw_dir=write_parquet(tmp_path / "raw" / "all.parquet", rows))
    assert captions_of(folder) == prepared_records() and listing(folder / "images") == EXPECTED
    rows[1]["image"] = jpeg(200)
    write_parquet(tmp_path / "torn" / "all.parquet", rows)
    names = [record["file_name"] for record in captions_of(prepare("torn", tmp_path, raw_dir=tmp_path / "torn"))]
    stem = NAMES[0].removesuffix(".jpg")
    assert len(names) == 7 and sum(name.startswith(f"all/{stem}-") for name in names) == 2 and NAMES[0] not in names


def test_nameless_pictures_of_parquet_are_called_by_their_content(tmp_path):
    rows = [{"image": image(name, None), "text": text, "split": split}
            for name, split in zip(NAMES, SPLITS, strict=True) for text in CAPTIONS[name]]  # fmt: skip
    write_parquet(tmp_path / "raw" / "x.parquet", rows)
    folder = prepare("mine", tmp_path, raw_dir=tmp_path / "raw")
    assert [(r["split"], r["captions"]) for r in captions_of(folder)] == [
        (r["split"], r["captions"]) for r in prepared_records()
    ]
    assert sorted(listing(folder / "images").values()) == sorted(EXPECTED.values())
    assert all(name == packed.content_name(data) for name, data in listing(folder / "images").items())


def test_parquet_without_pictures_or_captions_or_whole_is_refused_in_one_line(tmp_path):
    for number, rows in enumerate(([{"caption": "a"}], [{"image": image(NAMES[0])}])):
        write_parquet(tmp_path / str(number) / "x.parquet", rows)
        with pytest.raises(ValueError, match="expected one with the bytes of pictures, and one of original_alt"):
            layouts.read_layout(tmp_path / str(number), 1)
    write_parquet(tmp_path / "nobytes" / "x.parquet",
                  [{"image": {"bytes": None, "path": "a.jpg"}, "caption": "a", "split": "train"}])  # fmt: skip
    with pytest.raises(ValueError, match="expected one with the bytes|no bytes of a picture"):
        prepare("nobytes", tmp_path / "data", raw_dir=tmp_path / "nobytes")
    write(tmp_path / "cut" / "x.parquet", "PAR1 cut")
    with pytest.raises(ValueError, match="x.parquet is no whole parquet file") as caught:
        layouts.read_layout(tmp_path / "cut", 1)
    assert "\n" not in str(caught.value)


# --- WebDataset ---


def write_shards(folder: Path, ending: str = ".tar") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in layouts.SPLITS:
        with tarfile.open(folder / f"mini-{split}-000000{ending}", "w:gz" if ending.endswith("gz") else "w") as tar:
            for number, (name, own) in enumerate(zip(NAMES, SPLITS, strict=True)):
                if own == split:
                    stem = name.removesuffix(".jpg")
                    add(tar, f"{stem}.jpg", EXPECTED[name])
                    if number % 2:
                        add(tar, f"{stem}.txt", "\n".join(CAPTIONS[name]).encode())
                    else:
                        add(tar, f"{stem}.json", json.dumps({"captions": CAPTIONS[name], "width": 8}).encode())


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_webdataset_shards_are_read_and_a_rerun_goes_on(tmp_path, capsys, ending):
    raw = tmp_path / "raw"
    write_shards(raw, ending)
    folder = prepare("mine", tmp_path, raw_dir=raw)
    assert sorted(captions_of(folder), key=lambda r: r["file_name"]) == prepared_records()
    assert listing(folder / "images") == EXPECTED
    assert "layout WebDataset, because 3 tars (mini-test-000000" in capsys.readouterr().out
    kept = (folder / "images" / NAMES[0]).stat().st_ino
    (folder / "manifest.json").unlink()
    (folder / "images" / NAMES[1]).write_bytes(b"cut")
    assert is_whole(prepare("mine", tmp_path, raw_dir=raw)) and listing(folder / "images") == EXPECTED
    assert (folder / "images" / NAMES[0]).stat().st_ino == kept


def test_one_tar_without_splits_and_with_orphans(tmp_path, monkeypatch):
    fix_splits(monkeypatch)
    shard = tmp_path / "set.tar"
    with tarfile.open(shard, "w") as tar:
        for name in NAMES:
            add(tar, name, EXPECTED[name])
            add(tar, name.replace(".jpg", ".json"), json.dumps({"caption": CAPTIONS[name][0], "split": None}).encode())
        add(tar, "alone.jpg", jpeg(1))
        add(tar, "alone2.txt", b"a dog")
        add(tar, "._alone.jpg", b"\0\5\x16\7")
    layout = layouts.read_layout(shard, 1)
    assert layout.drawn and [r["captions"] for r in layout.records] == [CAPTIONS[name][:1] for name in NAMES]
    assert any("1 picture (alone.jpg) without a text" in note for note in layout.notes)
    assert any("1 text (alone2.txt) without a picture" in note for note in layout.notes)


def test_a_sample_whose_json_is_broken_is_refused_and_one_that_comes_twice_is_one(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "1.jpg", jpeg(1))
        add(tar, "1.json", b'{"caption": ')
    with pytest.raises(ValueError, match="a.tar: 1.json is no JSON"):
        layouts.read_layout(tmp_path, 1)
    for shard in "ab":
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            add(tar, "1.jpg", jpeg(1))
            add(tar, "1.txt", f"a dog {shard}".encode())
    (row,), _ = layouts.find(tmp_path).read()
    assert row.file_name == "1.jpg" and row.captions == ["a dog a", "a dog b"]


# --- archives ---


def pack(raw: Path, archive: Path) -> Path:
    """All of a folder in a zip or tar, with the junk that macOS adds."""
    files = listing(raw) | {f"__MACOSX/._{NAMES[0]}": b"\0\5\x16\7", ".DS_Store": b"\0"}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in files.items():
                opened.writestr(f"top/{name}", data)
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as opened:
            for name, data in files.items():
                add(opened, f"top/{name}", data)
    return archive


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tgz"])
def test_an_archive_of_pictures_and_captions_serves_like_its_folder(tmp_path, name):
    archive = pack(make_raw(tmp_path / "raw"), tmp_path / name)
    folder = prepare("mine", tmp_path / "data", raw_dir=archive)
    assert captions_of(folder) == prepared_records() and listing(folder / "images") == EXPECTED
    assert "MACOSX" not in str(list(listing(folder / "unpacked")))
    prepare("mine", tmp_path / "data", raw_dir=archive)  # whole, and made from this archive
    with archive.open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ValueError, match="made from other captions"):
        prepare("mine", tmp_path / "data", raw_dir=archive)


def test_captions_beside_an_archive_of_pictures(tmp_path, monkeypatch):
    pack(draw(tmp_path / "pictures"), tmp_path / "images.tar.gz")
    raw = tmp_path / "raw"
    write_karpathy(raw)
    (tmp_path / "images.tar.gz").rename(raw / "images.tar.gz")
    folder = prepare("mine", tmp_path / "data", raw_dir=raw)
    assert captions_of(folder) == prepared_records() and listing(folder / "images") == EXPECTED
    draw(raw / "unpacked_by_hand")  # from here on the archive is not needed
    monkeypatch.setattr(archives, "unpack_beside", None)
    assert is_whole(prepare("other", tmp_path / "data", raw_dir=raw))


def test_the_two_files_of_the_hub_serve_as_a_local_copy(tmp_path):
    from tests.process.test_flickr30k import annotations_csv, images_zip

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "flickr_annotations_30k.csv").write_bytes(annotations_csv())
    (tmp_path / "raw" / "flickr30k-images.zip").write_bytes(images_zip())
    folder = prepare("flickr30k", tmp_path, raw_dir=tmp_path / "raw")
    assert captions_of(folder) == prepared_records() and listing(folder / "images") == EXPECTED
    assert verify(folder)["layout"] == "Hub annotations CSV"


@pytest.mark.parametrize(("add_to", "message"), [
    (lambda tar: add(tar, "../outside.jpg", b"x"), "leads out of the folder"),
    (lambda tar: add(tar, "/etc/outside.jpg", b"x"), "leads out of the folder"),
    (lambda tar: add(tar, "a\\..\\..\\outside.jpg", b"x"), "leads out of the folder"),
    (lambda tar: add(tar, "link.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is a link or a device"),
    (lambda tar: add(tar, "hard.jpg", kind=tarfile.LNKTYPE, link="../../x"), "is a link or a device"),
    (lambda tar: add(tar, "device.jpg", kind=tarfile.CHRTYPE), "is a link or a device"),
    (lambda tar: add(tar, "pipe.jpg", kind=tarfile.FIFOTYPE), "is a link or a device"),
    (lambda tar: add(tar, NAMES[0], b"x"), "is there twice"),
    (lambda tar: add(tar, "bomb.jpg", bytes(2**20 + 1)), "has 1,048,577 bytes, more than"),
    (lambda tar: [add(tar, f"{n}.bin", bytes(2**20)) for n in range(2)], "brings the unpacked size to 2,"),
    (lambda tar: add(tar, "x" * (3 * 2**20), b"x"), "is damaged .a header of"),
])  # fmt: skip
def test_hostile_tars_are_refused_before_anything_is_written(tmp_path, monkeypatch, add_to, message):
    monkeypatch.setattr(archives, "MAX_PICTURE_BYTES", 2**20)  # small bombs are made faster
    monkeypatch.setattr(archives, "MAX_RATIO", 2)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz", compresslevel=1) as tar:
        for name, data in listing(make_raw(tmp_path / "raw", ".")).items():
            add(tar, name, data)
        add_to(tar)
    with pytest.raises(ValueError, match=message) as caught:
        prepare("mine", tmp_path / "data", raw_dir=tmp_path / "set.tar.gz")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["set.zip", "set.tar"])
def test_coco_in_an_archive_with_one_top_folder(tmp_path, name):
    from tests.unit.prepare.test_layouts import write_coco

    write_coco(tmp_path / "raw" / "annotations")
    draw(tmp_path / "raw" / "val2014")
    (tmp_path / "raw" / "train2014").mkdir()
    for picture in NAMES[:4]:
        (tmp_path / "raw" / "val2014" / picture).rename(tmp_path / "raw" / "train2014" / picture)
    folder = prepare("coco", tmp_path / "data", raw_dir=pack(tmp_path / "raw", tmp_path / name))
    assert listing(folder / "images") == EXPECTED and verify(folder)["layout"] == "COCO captions JSON"


def test_a_member_whose_bytes_were_damaged_is_told_and_the_rerun_goes_on(tmp_path):
    archive = pack(make_raw(tmp_path / "raw"), tmp_path / "set.zip")
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(f"top/flickr30k-images/{NAMES[3]}")
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    archive.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match="set.zip is damaged .*fetch it again"):
        prepare("mine", tmp_path / "data", raw_dir=archive)
    assert not is_whole(tmp_path / "data" / "mine")
    archive.write_bytes(whole)
    assert listing(prepare("mine", tmp_path / "data", raw_dir=archive) / "images") == EXPECTED


def test_a_cut_archive_is_damaged_and_one_with_nothing_in_it_is_no_layout(tmp_path):
    archive = pack(make_raw(tmp_path / "raw"), tmp_path / "set.tar.gz")
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(ValueError, match="set.tar.gz is damaged .*fetch it again"):
        prepare("mine", tmp_path / "data", raw_dir=archive)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as opened:
        opened.writestr("notes.md", "nothing")
    with pytest.raises(ValueError, match="holds no captions in a known layout"):
        prepare("mine", tmp_path / "data", raw_dir=tmp_path / "empty.zip")
    with pytest.raises(ValueError, match="no such folder|no captions in a known layout"):
        read_raw(tmp_path / "raw" / "dataset_flickr30k.json", 1, tmp_path / "data")
