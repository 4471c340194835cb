"""Flickr30k from a local server that speaks the Hub's dataset routes, and archives that must not be unpacked."""

import csv
import http.server
import io
import json
import re
import shutil
import stat
import threading
import zipfile
from pathlib import Path

import pytest
from raw_sets import CAPTIONS, NAMES, SPLITS, jpeg, listing, prepared_records, run_script

import flickr30k
from prepare_dataset import is_whole, prepare_flickr30k, verify

COMMIT = "2b239bef" + "0" * 32


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


class Hub(http.server.BaseHTTPRequestHandler):
    """The dataset routes of the Hub that a download asks for."""

    files: dict[str, bytes]
    requests: list[tuple[str, str]]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        self.requests.append((self.command, self.path))
        repository, _, rest = self.path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository not in ("someone/mini30k", flickr30k.OFFICIAL_ID):
            return self.refuse("RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse("RevisionNotFound")
        if name not in self.files:
            return self.refuse("EntryNotFound")
        data = self.files[name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(data) & (2**64 - 1):016x}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, code: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args):
        pass


@pytest.fixture
def hub():
    handler = type("OneHub", (Hub,), {"requests": [], "files": {
        flickr30k.CSV_NAME: annotations_csv(), flickr30k.ZIP_NAME: images_zip()}})  # fmt: skip
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_flickr30k_is_downloaded_from_a_hub_and_then_works_offline(tmp_path, hub):
    command = ("--dataset", "flickr30k", "--hf-dataset-id", "someone/mini30k")
    done = run_script(tmp_path, *command, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "flickr30k"
    assert json.loads((folder / "captions.json").read_text(encoding="utf-8")) == {"images": prepared_records()}
    assert listing(folder / "images") == {name: jpeg(20 + shade) for shade, name in enumerate(NAMES)}
    manifest = verify(folder)
    assert (manifest["commit"], manifest["revision"]) == (COMMIT, "main")
    assert "non-commercial" in manifest["licence"] and "non-commercial" in done.stdout
    assert "to download" in done.stdout and "free" in done.stdout
    downloads = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(downloads) == 2

    (folder / "manifest.json").unlink()
    (folder / "images" / NAMES[2]).write_bytes(b"cut")
    done = run_script(tmp_path, *command, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (folder / "images" / NAMES[2]).read_bytes() == jpeg(22) and is_whole(folder)


@pytest.mark.parametrize(("offline", "message"), [
    ("1", "HF_HUB_OFFLINE is set and flickr_annotations_30k.csv of nlphuji/flickr30k is not in the cache"),
    ("0", "could not get flickr_annotations_30k.csv of nlphuji/flickr30k from http://127.0.0.1:9 (ConnectError"),
])  # fmt: skip
def test_unreachable_hub_gives_one_line_with_three_ways_on(tmp_path, offline, message):
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = run_script(tmp_path, "--dataset", "flickr30k", **variables)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert message in line
    assert all(way in line for way in ("run again", "RAW_DATA_DIR", "DATASET = demo"))
    assert not (tmp_path / "data" / "flickr30k").exists()


@pytest.fixture
def client(tmp_path, hub, monkeypatch):
    """huggingface_hub in this process, turned to the local server."""
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


def test_official_id_must_bring_the_karpathy_split(tmp_path, client):
    with pytest.raises(ValueError, match="should have the Karpathy split .*29000.* but this copy has .*'train': 4"):
        prepare_flickr30k(tmp_path)
    assert not any(flickr30k.ZIP_NAME in path for method, path in client.requests if method == "GET")


def test_karpathy_split_is_checked_by_exact_counts():
    splits = [split for split, count in {"train": 29_000, "val": 1_014, "test": 1_000}.items() for _ in range(count)]
    flickr30k.check_counts(splits)
    with pytest.raises(ValueError, match="'test': 999"):
        flickr30k.check_counts(splits[:-1])


def test_what_the_hub_lacks_is_named(tmp_path, client):
    for arguments, message in [
        (("someone/else",), "has no data set 'someone/else'"),
        (("someone/mini30k", "v2"), "has no revision 'v2'; see HF_DATASET_REVISION"),
        (("not an id",), "could not get .*HFValidationError"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare_flickr30k(tmp_path, *arguments)
    del client.files[flickr30k.ZIP_NAME]
    with pytest.raises(ValueError, match="holds no flickr30k-images.zip; .*Ways on: run again"):
        prepare_flickr30k(tmp_path, "someone/mini30k")


def delete_as_told(error: ValueError) -> None:
    Path(re.search(r"delete (\S+) and run again", str(error))[1]).unlink()


def test_html_instead_of_the_csv_and_a_cut_zip_are_refused(tmp_path, client):
    csv_data, zip_data = client.files[flickr30k.CSV_NAME], client.files[flickr30k.ZIP_NAME]
    client.files[flickr30k.CSV_NAME] = b"<html><body>Sign in to the network</body></html>"
    with pytest.raises(ValueError, match="begins with '<html>.*delete .* and run again") as caught:
        prepare_flickr30k(tmp_path, "someone/mini30k")
    delete_as_told(caught.value)
    client.files |= {flickr30k.CSV_NAME: csv_data, flickr30k.ZIP_NAME: zip_data[:len(zip_data) // 2]}
    with pytest.raises(ValueError, match="is damaged .* and run again") as caught:
        prepare_flickr30k(tmp_path, "someone/mini30k")
    assert not is_whole(tmp_path / "flickr30k")
    delete_as_told(caught.value)
    client.files[flickr30k.ZIP_NAME] = zip_data
    assert is_whole(prepare_flickr30k(tmp_path, "someone/mini30k"))


def test_too_small_a_disk_is_refused_before_the_download(tmp_path, client, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
    with pytest.raises(ValueError, match="free but .* are needed: free some space"):
        prepare_flickr30k(tmp_path, "someone/mini30k")
    assert not any(method == "GET" and "/resolve/" in path for method, path in client.requests)


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
