"""Flickr30k from a local server that speaks the Hub's dataset routes, and archives that must not be unpacked."""

import csv
import io
import json
import shutil
import stat
import zipfile

import pytest

from nanocaption.base import retry
from nanocaption.data.prepared import is_whole, verify
from nanocaption.prepare import flickr30k
from nanocaption.prepare.make import prepare_flickr30k
from tests import hub_files as hubs
from tests.hub_files import Fault
from tests.raw_sets import CAPTIONS, NAMES, SPLITS, expected_records, jpeg, listing, prepared_records, run_script


def annotations_csv() -> bytes:
    file = io.StringIO(newline="")
    table = csv.writer(file)
    table.writerow(["raw", "sentids", "split", "filename", "img_id"])
    for number, (name, split) in enumerate(zip(NAMES, SPLITS, strict=True)):
        sentids = [3 * number + k for k in range(3)]
        table.writerow([json.dumps(CAPTIONS[name]), json.dumps(sentids), split, name, number])
    return file.getvalue().encode()


def images_zip(extra: list[tuple[zipfile.ZipInfo | str, bytes]] = (), names: list[str] = NAMES) -> bytes:
    """The zip of the Hub in small: folder entry, pictures, a picture without captions, macOS junk."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flickr30k-images/", b"")
        for shade, name in enumerate(names):
            archive.writestr(f"flickr30k-images/{name}", jpeg(20 + shade))
            archive.writestr(f"__MACOSX/flickr30k-images/._{name}", b"\0\5\x16\7")
        archive.writestr("flickr30k-images/99.jpg", jpeg(99))
        archive.writestr("flickr30k-images/.DS_Store", b"\0")
        for info, data in extra:
            archive.writestr(info, data)
    return file.getvalue()


def parquet_shards() -> dict[str, bytes]:
    """AnyModal's copy in small: two shards, the human captions in original_alt_text, a split column."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    shards = {}
    for number, part in enumerate((NAMES[:4], NAMES[4:])):
        rows = [{"image": {"bytes": jpeg(20 + NAMES.index(name)), "path": name}, "alt_text": ["rewritten"],
                 "sentids": ["0"], "split": SPLITS[NAMES.index(name)], "img_id": "0", "filename": name,
                 "original_alt_text": CAPTIONS[name]} for name in part]  # fmt: skip
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        shards[f"data/train-0000{number}-of-00002.parquet"] = file.getvalue()
    return shards


@pytest.fixture
def hub():
    files = {flickr30k.CSV_NAME: annotations_csv(), flickr30k.ZIP_NAME: images_zip(), "README.md": b"# mini"}
    with hubs.serve(hubs.Hub("someone/mini30k", files)) as served:
        served.repositories.append(flickr30k.OFFICIAL_ID)
        yield served


def test_flickr30k_is_downloaded_from_a_hub_and_then_works_offline(tmp_path, hub):
    command = ("--dataset", "flickr30k", "--hf-dataset-id", "someone/mini30k")
    done = run_script(tmp_path, *command, anew=True, HF_ENDPOINT=hub.url)
    assert done.code == 0, done.err
    folder = tmp_path / "data" / "flickr30k"
    assert json.loads((folder / "captions.json").read_text(encoding="utf-8")) == {"images": prepared_records()}
    assert listing(folder / "images") == {name: jpeg(20 + shade) for shade, name in enumerate(NAMES)}
    manifest = verify(folder)
    assert (manifest["commit"], manifest["revision"]) == (hubs.COMMIT, "main")
    assert manifest["files"] == {name: {"sha256": hub.etag(name), "etag": hub.etag(name)}
                                 for name in (flickr30k.CSV_NAME, flickr30k.ZIP_NAME)}  # fmt: skip
    assert manifest["splits_sha256"] == flickr30k.splits_digest(expected_records())
    assert "non-commercial" in manifest["licence"] and "non-commercial" in done.out
    assert "to download" in done.out and "free" in done.out
    assert f"{folder / 'download'} keeps the downloaded files; now that the set is whole" in done.out
    assert len(hub.downloads()) == 2

    (folder / "manifest.json").unlink()
    (folder / "images" / NAMES[2]).write_bytes(b"cut")
    done = run_script(tmp_path, *command, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.code == 0, done.err
    assert (folder / "images" / NAMES[2]).read_bytes() == jpeg(22) and is_whole(folder)


@pytest.mark.parametrize(("offline", "message"), [
    ("1", "HF_HUB_OFFLINE is set and nlphuji/flickr30k is neither in"),
    ("0", "could not get the list of files of nlphuji/flickr30k from http://127.0.0.1:9 (ConnectError"),
])  # fmt: skip
def test_unreachable_hub_gives_one_line_with_three_ways_on(tmp_path, offline, message):
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = run_script(tmp_path, "--dataset", "flickr30k", **variables)
    assert done.code == 1 and "Traceback" not in done.err
    line = done.err.strip().splitlines()[-1]
    assert message in line
    assert all(way in line for way in ("run again", "RAW_DATA_DIR", "DATASET = demo"))
    assert not (tmp_path / "data" / "flickr30k").exists()


@pytest.fixture
def client(tmp_path, hub, monkeypatch):
    """huggingface_hub in this process, turned to the local server."""
    hubs.turn_to(monkeypatch, hub.url, tmp_path / "cache")
    monkeypatch.setattr(retry, "WAITS", ())
    return hub


@pytest.mark.parametrize("commit", [None, hubs.COMMIT])
def test_a_file_in_the_cache_of_the_hub_is_used(tmp_path, client, commit):
    """Without the commit of `main` the cache cannot serve it, so that the Hub is asked, but for no file."""
    import huggingface_hub as hub_client

    for name in (flickr30k.CSV_NAME, flickr30k.ZIP_NAME):
        hub_client.hf_hub_download("someone/mini30k", name, repo_type="dataset", revision=commit or "main")
    client.log.clear()
    folder = prepare_flickr30k(tmp_path, "someone/mini30k")
    assert is_whole(folder) and client.downloads() == []
    assert not client.log or commit
    assert verify(folder)["files"][flickr30k.ZIP_NAME]["sha256"] == client.etag(flickr30k.ZIP_NAME)
    assert verify(folder)["commit"] == hubs.COMMIT and not (folder / "download").exists()


def test_the_parquet_copy_gives_the_same_set(tmp_path, client, monkeypatch):
    zipped = prepare_flickr30k(tmp_path / "zip", "someone/mini30k")
    client.files = parquet_shards() | {"README.md": b""}
    client.commit = "a" * 40
    client.faults = [Fault(), Fault(cut=700)]
    with pytest.raises(ValueError, match="could not get data/train-00001-of-00002.parquet .*Ways on: run again"):
        prepare_flickr30k(tmp_path / "parquet", "someone/mini30k")
    packed = prepare_flickr30k(tmp_path / "parquet", "someone/mini30k")
    assert [request.range for request in client.downloads(".parquet")] == [None, None, "bytes=700-"]
    assert listing(packed / "images") == listing(zipped / "images")
    assert (packed / "captions.json").read_bytes() == (zipped / "captions.json").read_bytes()
    manifest = verify(packed)
    assert manifest["layout"] == "Hub parquet" and manifest["splits_sha256"] == verify(zipped)["splits_sha256"]
    assert "captions are of the column 'original_alt_text', not of alt_text" in manifest["notes"]
    client.url, before = "http://127.0.0.1:9", len(client.log)
    (packed / "manifest.json").unlink()
    assert is_whole(prepare_flickr30k(tmp_path / "parquet", "someone/mini30k")) and len(client.log) == before


def test_a_parquet_copy_that_calls_all_of_it_test_is_refused(tmp_path, client):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"image": [{"bytes": jpeg(1), "path": NAMES[0]}], "caption": [["a dog"]]}), file)
    client.files = {"data/test-00000-of-00009.parquet": file.getvalue()}
    with pytest.raises(ValueError, match="no column `split` .*its test split is then the whole set"):
        prepare_flickr30k(tmp_path, "someone/mini30k")


def test_official_id_must_bring_the_karpathy_split(tmp_path, client):
    with pytest.raises(ValueError, match="should be the Karpathy split .*29000.* but the copy has .*'train': 4"):
        prepare_flickr30k(tmp_path)
    assert client.downloads(flickr30k.ZIP_NAME) == []


def test_karpathy_split_is_checked_by_exact_counts():
    splits = [split for split, count in {"train": 29_000, "val": 1_014, "test": 1_000}.items() for _ in range(count)]
    flickr30k.check_counts(splits)
    with pytest.raises(ValueError, match="'test': 999"):
        flickr30k.check_counts(splits[:-1])


def test_what_the_hub_lacks_is_named(tmp_path, client):
    for arguments, message in [
        (("someone/else",), "has no data set 'someone/else'"),
        (("someone/mini30k", "v2"), "has no revision 'v2'; see HF_DATASET_REVISION"),
        (("not an id",), "HFValidationError|no data set 'not an id'"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare_flickr30k(tmp_path, *arguments)
    del client.files[flickr30k.ZIP_NAME]
    with pytest.raises(ValueError, match="holds neither .* nor parquet shards; .*Ways on: run again"):
        prepare_flickr30k(tmp_path, "someone/mini30k")


def test_a_login_page_in_between_is_named(tmp_path, client):
    client.faults = [Fault(html=True)]
    with pytest.raises(ValueError, match="did not answer as the Hub does: is there a login page or a proxy"):
        prepare_flickr30k(tmp_path, "someone/mini30k")
    client.faults = [Fault(html=True, body=hubs.HTML)]
    with pytest.raises(ValueError, match="the Hub does|sent an HTML page"):
        prepare_flickr30k(tmp_path, "someone/mini30k")
    assert not is_whole(tmp_path / "flickr30k")
    assert is_whole(prepare_flickr30k(tmp_path, "someone/mini30k"))


def test_damaged_files_on_the_hub_itself_are_refused(tmp_path, client):
    whole = client.files[flickr30k.ZIP_NAME]
    client.files[flickr30k.ZIP_NAME] = whole[: len(whole) // 2]
    with pytest.raises(ValueError, match="is damaged .*fetch it again"):
        prepare_flickr30k(tmp_path, "someone/mini30k")
    assert not is_whole(tmp_path / "flickr30k")
    client.files[flickr30k.CSV_NAME] = b"<p>not a table"
    with pytest.raises(ValueError, match="begins with '<p>not a table', not with the columns"):
        prepare_flickr30k(tmp_path / "other", "someone/mini30k")


def test_names_that_lead_out_of_the_folder_are_not_downloaded():
    names = ["data/../../x.parquet", "/x.parquet", "C:/x.parquet", "data/b.parquet", "a.parquet", "README.md"]
    assert flickr30k.wanted_names(names) == ["a.parquet", "data/b.parquet"]
    assert flickr30k.wanted_names([*names, flickr30k.ZIP_NAME, flickr30k.CSV_NAME]) == [
        flickr30k.CSV_NAME, flickr30k.ZIP_NAME]  # fmt: skip


def test_too_small_a_disk_is_refused_before_the_download(tmp_path, client, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
    with pytest.raises(ValueError, match="free but .* are needed: free some space"):
        prepare_flickr30k(tmp_path, "someone/mini30k")
    assert client.downloads() == []


def linked_member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o644) << 16
    return info


@pytest.mark.parametrize(("info", "data", "message"), [
    ("../../outside.jpg", b"x", "leads out of the folder"),
    ("/etc/outside.jpg", b"x", "leads out of the folder"),
    ("flickr30k-images\\..\\..\\outside.jpg", b"x", "leads out of the folder"),
    ("C:/outside.jpg", b"x", "leads out of the folder"),
    (linked_member("flickr30k-images/link.jpg", stat.S_IFLNK), b"/etc/passwd", "is a link or a device"),
    (linked_member("flickr30k-images/device.jpg", stat.S_IFCHR), b"", "is a link or a device"),
    ("flickr30k-images/bomb.jpg", bytes(4_000_000), "unpacks from .* to 4,000,000 bytes"),
    (f"copy/{NAMES[0]}", b"x", "twice"),
])  # fmt: skip
def test_dangerous_archives_are_refused_before_anything_is_written(tmp_path, info, data, message):
    archive = tmp_path / "pictures.zip"
    archive.write_bytes(images_zip([(info, data)]))
    with pytest.raises(ValueError, match=message):
        flickr30k.unpack(archive, NAMES, tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures.zip"]


def test_unpacking_continues_and_names_what_the_archive_lacks(tmp_path):
    archive = tmp_path / "pictures.zip"
    archive.write_bytes(images_zip(names=NAMES[:4]))
    with pytest.raises(ValueError, match=rf"lacks 2 of 6 pictures \(first: {NAMES[4]}\)"):
        flickr30k.unpack(archive, NAMES, tmp_path / "images")
    flickr30k.unpack(archive, NAMES[:2], tmp_path / "images")
    kept = (tmp_path / "images" / NAMES[0]).stat().st_ino
    (tmp_path / "images" / NAMES[1]).write_bytes(b"half")
    flickr30k.unpack(archive, NAMES[:4], tmp_path / "images")
    assert listing(tmp_path / "images") == {name: jpeg(20 + shade) for shade, name in enumerate(NAMES[:4])}
    assert (tmp_path / "images" / NAMES[0]).stat().st_ino == kept
