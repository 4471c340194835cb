"""Where a page's onnxruntime-web comes from: given, beside, kept from before, or npm's registry; always one version."""

import base64
import functools
import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path

import pytest

from nanocaption.export import web_runtime
from nanocaption.export.web_runtime import BUNDLE, WASM, find_runtime

FILES = {BUNDLE: b"export const ort = 1;", WASM: b"\0asm" + bytes(range(250)) * 40}


def packed(files: dict[str, bytes]) -> bytes:
    """A package as npm packs it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def package(monkeypatch, tmp_path) -> bytes:
    """A small package in place of the real one; no registry, an empty cache, an empty working folder."""
    data = packed(FILES)
    monkeypatch.setattr(web_runtime, "_SHA512", base64.b64encode(hashlib.sha512(data).digest()).decode())
    monkeypatch.setattr(web_runtime, "_SHA256", {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1/")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return data


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    (folder / "dist").mkdir(parents=True)
    for name, data in files.items():
        (folder / "dist" / name).write_bytes(data)
    return folder


def serve(folder: Path, monkeypatch) -> http.server.ThreadingHTTPServer:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/npm")
    return server


def test_a_given_package_is_taken_packed_or_unpacked(package, tmp_path):
    (tmp_path / "given.tgz").write_bytes(package)
    inside = unpack(tmp_path / "project" / "node_modules" / "onnxruntime-web", FILES)
    for given in (tmp_path / "given.tgz", inside, inside.parent, tmp_path / "project"):
        assert find_runtime(given) == FILES
    assert not (tmp_path / "cache").exists()


def test_what_npm_installed_beside_is_taken_and_another_version_of_it_is_not(package, tmp_path):
    beside = unpack(Path("node_modules") / "onnxruntime-web", FILES)
    assert find_runtime() == FILES
    (beside / "dist" / BUNDLE).write_bytes(b"another version")
    with pytest.raises(ValueError, match="cannot be loaded from"):
        find_runtime()


def test_it_is_loaded_from_the_registry_once_and_kept(package, tmp_path, monkeypatch):
    place = tmp_path / "served" / "npm" / "onnxruntime-web" / "-"
    place.mkdir(parents=True)
    (place / f"onnxruntime-web-{web_runtime.VERSION}.tgz").write_bytes(package)
    server = serve(tmp_path / "served", monkeypatch)
    assert find_runtime() == FILES
    server.shutdown()
    server.server_close()
    assert find_runtime() == FILES  # the server is gone
    (web_runtime.cache_folder() / WASM).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be loaded from"):  # asked for again, not used
        find_runtime()


@pytest.mark.parametrize("served, told", [
    (None, "cannot be loaded from http://127.0.0.1"), (b"<html>log in</html>", "gave another file than onnxruntime"),
    (packed({**FILES, WASM: b"\0asm of another"}), "gave another file than"),
])  # fmt: skip
def test_what_a_registry_gives_instead_is_one_line_and_nothing_is_kept(package, tmp_path, monkeypatch, served, told):
    place = tmp_path / "served" / "npm" / "onnxruntime-web" / "-"
    place.mkdir(parents=True)
    if served is not None:
        (place / f"onnxruntime-web-{web_runtime.VERSION}.tgz").write_bytes(served)
    server = serve(tmp_path / "served", monkeypatch)
    try:
        with pytest.raises(ValueError, match=told) as error:
            find_runtime()
    finally:
        server.shutdown()
        server.server_close()
    assert "\n" not in str(error.value) and "npm pack onnxruntime-web" in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content, told", [
    (b"no archive", "is no package onnxruntime-web as npm packs it"),
    (packed({BUNDLE: FILES[BUNDLE]}), "is no package onnxruntime-web as npm packs it"),
    (packed({**FILES, WASM: b"\0asm of 1.29"}), "its ort-wasm-simd-threaded.wasm is not that of onnxruntime-web"),
    (packed(FILES)[:-30], "is no package onnxruntime-web as npm packs it"),
])  # fmt: skip
def test_what_is_given_instead_is_one_line(package, tmp_path, content, told):
    (tmp_path / "given.tgz").write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        find_runtime(tmp_path / "given.tgz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("files, told", [
    ({}, "is no package onnxruntime-web: it has no dist/"), ({**FILES, BUNDLE: b"old"}, f"its {BUNDLE} is not that of"),
])  # fmt: skip
def test_a_folder_of_something_else_is_one_line(package, tmp_path, files, told):
    with pytest.raises(ValueError, match=told):
        find_runtime(unpack(tmp_path / "given", files))


def test_a_registry_that_is_no_address_is_one_line(package, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(ValueError, match="npm_config_registry = 'file:///etc' is no address"):
        find_runtime()
