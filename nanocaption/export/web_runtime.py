"""onnxruntime-web, which runs an ONNX model in a browser: two files of one version, taken from npm's package.

From a package that is given, from node_modules of the working folder, from the cache of an earlier export, or from
npm's registry (npm_config_registry, as npm itself understands it), in that order. Whichever it is, the files must have
the digests that stand here: a page is made with the version that it was tested with, or not at all.
"""

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from nanocaption.base.files import write_file

VERSION = "1.30.0"
PACKAGE = "onnxruntime-web"
BUNDLE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # for processors alone: half the size of all
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # of the package
_SHA256 = {
    BUNDLE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_MOST = 200_000_000  # bytes of a package; this one has 33 million
_REGISTRY = "https://registry.npmjs.org"
_BY_HAND = f"Get it with `npm pack {PACKAGE}@{VERSION}`, and name the file with --onnxruntime-web."


def find_runtime(given: Path | None = None) -> dict[str, bytes]:
    """The files BUNDLE and WASM by name. given: the package, as npm packs it (.tgz) or unpacks it (a folder).

    Raises ValueError with one line where it is another version or damaged, or cannot be had.
    """
    if given is not None:
        return _of_package(given)
    beside = Path("node_modules") / PACKAGE
    if all(_is_ours(name, beside / "dist" / name) for name in _SHA256):
        return {name: (beside / "dist" / name).read_bytes() for name in _SHA256}
    cache = cache_folder()
    if not all(_is_ours(name, cache / name) for name in _SHA256):
        for name, data in _unpacked(_downloaded(), f"the downloaded {PACKAGE}").items():
            write_file(cache / name, data)
    return {name: (cache / name).read_bytes() for name in _SHA256}


def cache_folder() -> Path:
    """Where the files lie after the first export."""
    place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place) / "nanocaption" / f"{PACKAGE}-{VERSION}"


def _of_package(given: Path) -> dict[str, bytes]:
    if given.is_file():
        return _unpacked(given.read_bytes(), str(given))
    inside = next((place for place in (given, given / PACKAGE, given / "node_modules" / PACKAGE)
                   if (place / "dist" / BUNDLE).is_file()), given)  # fmt: skip
    if not all((inside / "dist" / name).is_file() for name in _SHA256):
        raise ValueError(f"{given} is no package {PACKAGE}: it has no dist/{BUNDLE} and dist/{WASM}. {_BY_HAND}")
    return _checked({name: (inside / "dist" / name).read_bytes() for name in _SHA256}, str(given))


def _unpacked(package: bytes, told: str) -> dict[str, bytes]:
    """The two files of a .tgz."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
            for name in _SHA256:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                found[name] = member.read()
    except (tarfile.TarError, OSError, EOFError, KeyError, AssertionError) as error:
        raise ValueError(f"{told} is no package {PACKAGE} as npm packs it. {_BY_HAND}") from error
    return _checked(found, told)


def _checked(found: dict[str, bytes], told: str) -> dict[str, bytes]:
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != _SHA256[name]:
            raise ValueError(f"{told}: its {name} is not that of {PACKAGE} {VERSION}. {_BY_HAND}")
    return found


def _is_ours(name: str, path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256[name]


def _downloaded() -> bytes:
    """The package from the registry, checked."""
    settings = {name.lower(): value for name, value in os.environ.items()}  # npm takes both
    registry = settings.get("npm_config_registry") or _REGISTRY
    url = f"{registry.rstrip('/')}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"npm_config_registry = {registry!r} is no address of a registry.")
    data = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, desc=f"{PACKAGE} {VERSION}", unit="B", unit_scale=True) as bar:
                while len(data) < _MOST and (part := answer.read(1 << 20)):
                    data += part
                    bar.update(len(part))
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", error)
        raise ValueError(f"{PACKAGE} cannot be loaded from {url}: {reason}. {_BY_HAND}") from error
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != _SHA512:
        raise ValueError(f"{url} gave another file than {PACKAGE} {VERSION} ({len(data):,} bytes). {_BY_HAND}")
    return bytes(data)
