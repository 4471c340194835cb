"""A file of a Hub dataset repository, downloaded so that a broken transfer goes on, also in another process.

huggingface_hub builds the URLs, knows endpoint, token, proxies and the offline switch, and its cache is looked into
before anything is asked. The transfer is done here, because its own starts a killed download from zero: the bytes go to
NAME.part, what they are the beginning of stands in NAME.part.json, and the next try asks for the rest with Range. A
file takes its name only when its length is right and its sha256 is the one that the Hub names.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypedDict, cast

from tqdm import tqdm

from nanocaption.base import retry
from nanocaption.base.files import size_of, write_atomically

HTML = "instead of {} the server sent an HTML page: a login page or a proxy?"


class Remote(NamedTuple):
    """What the Hub says of a file."""

    repository: str
    commit: str
    name: str
    etag: str  # of the content; for large files its sha256
    size: int  # bytes


class Fetched(NamedTuple):
    """A whole file on this machine."""

    path: Path
    commit: str
    etag: str | None  # None where the Hub's cache had it
    sha256: str | None


class About(TypedDict, total=False):
    """What the .json files beside downloads say: of a file or the beginning of one, or of a whole copy."""

    repository: str
    revision: str
    commit: str
    names: list[str]
    etag: str
    host_etag: str | None  # of the host that keeps the bytes
    size: int
    sha256: str


class WrongContent(ValueError):
    """The server sent something else than the file."""


def listing(repository: str, revision: str) -> tuple[str, list[str]]:
    """(commit, names of all files) of a dataset repository. Raises what `hub.errors` names."""
    import huggingface_hub
    from huggingface_hub import constants

    api = huggingface_hub.HfApi(endpoint=constants.ENDPOINT)
    info = retry.retried(lambda: api.dataset_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT),
                         "the list of files", patient=False)  # fmt: skip
    return str(info.sha), [str(sibling.rfilename) for sibling in info.siblings or ()]


def ask(repository: str, commit: str, name: str) -> Remote:
    """ETag and size of one file. Raises what `hub.errors` names."""
    import huggingface_hub

    found = retry.retried(lambda: huggingface_hub.get_hf_file_metadata(url_of(repository, commit, name)), name)
    if not found.etag or found.size is None or not found.commit_hash:
        raise WrongContent(f"the server tells no ETag, size and commit of {name}: is it a Hub?")
    return Remote(repository, found.commit_hash, name, found.etag, found.size)


def url_of(repository: str, commit: str, name: str) -> str:
    import huggingface_hub
    from huggingface_hub import constants

    return huggingface_hub.hf_hub_url(repository, name, repo_type="dataset", revision=commit,
                                      endpoint=constants.ENDPOINT)  # fmt: skip


def in_hub_cache(repository: str, revision: str, name: str) -> Fetched | None:
    """The file, where huggingface_hub has downloaded it before."""
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repository, name, repo_type="dataset", revision=revision)
    if not isinstance(path, str):  # None, or a marker that the file is known not to exist
        return None
    # .../snapshots/<commit>/<name>; large files are links to blobs/<sha256>
    commit = Path(path).parents[name.count("/")].name
    return Fetched(Path(path), commit, None, sha256_name(Path(path).resolve().name))


def in_folder(folder: Path, name: str, repository: str) -> Fetched | None:
    """The file, where `fetch` has brought it into `folder` before."""
    about, path = read_json(beside(folder / name, ".json")), folder / name
    if about.get("repository") != repository or not path.is_file() or size_of(path) != about.get("size"):
        return None
    return Fetched(path, about["commit"], about["etag"], about["sha256"])


def part_bytes(folder: Path, remote: Remote) -> int:
    """How much of the file a download that was cut off has left in `folder`."""
    part = beside(folder / remote.name, ".part")
    return size_of(part) or 0 if read_json(beside(part, ".json")).get("etag") == remote.etag else 0


def fetch(remote: Remote, folder: Path) -> Fetched:
    """Bring the file to folder/name, from where an earlier start was cut off.

    Raises WrongContent with one line for HTML and for a wrong length or hash, and what `hub.errors` names where the
    network fails for good. What came so far is kept, but for bytes that cannot be the file's.
    """
    target = folder / remote.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        there = in_folder(folder, remote.name, remote.repository)  # another process may have brought it meanwhile
        if there and there.etag == remote.etag:
            return there
        part = begin_part(target, remote)
        with tqdm(total=remote.size, initial=size_of(part), desc=remote.name, unit="B", unit_scale=True,
                  mininterval=0.5) as bar:  # fmt: skip
            while part.stat().st_size < remote.size:
                retry.retried(lambda: one_request(part, remote, bar), remote.name, lambda: part.stat().st_size)
        digest = checked_digest(part, remote)
        beside(target, ".json").unlink(missing_ok=True)  # it may speak of an older file of this name
        os.replace(part, target)
        write_json(beside(target, ".json"), {"repository": remote.repository, "commit": remote.commit,
                                             "etag": remote.etag, "size": remote.size, "sha256": digest})  # fmt: skip
        beside(part, ".json").unlink(missing_ok=True)
        return Fetched(target, remote.commit, remote.etag, digest)


def begin_part(target: Path, remote: Remote) -> Path:
    """The file that grows to `target`: what an earlier start has left of this very content, or an empty one."""
    part = beside(target, ".part")
    about, have = read_json(beside(part, ".json")), size_of(part) or 0
    if have and about.get("etag") == remote.etag and have <= remote.size:
        print(f"{remote.name}: going on at {have:,} of {remote.size:,} bytes", flush=True)
        return part
    if have:
        print(f"{remote.name} has changed on the server since its download began: starting it again", flush=True)
    # In this order: a kill in between leaves no bytes under a wrong ETag.
    part.unlink(missing_ok=True)
    write_json(beside(part, ".json"), {"etag": remote.etag})
    part.touch()
    return part


def one_request(part: Path, remote: Remote, bar: tqdm) -> None:
    """GET the rest of the file and append it to `part`."""
    from huggingface_hub import constants, utils

    have, about = part.stat().st_size, read_json(beside(part, ".json"))
    headers = utils.build_hf_headers() | {"Accept-Encoding": "identity"}  # with compression, offsets mean nothing
    if have:
        headers["Range"] = f"bytes={have}-"
        # The Hub's ETag was compared just now. If-Range speaks to the host that keeps the bytes, in its own ETag.
        headers |= {"If-Range": host} if (host := about.get("host_etag")) else {}
    url = url_of(remote.repository, remote.commit, remote.name)
    # Large files are redirected to another host: the client leaves the token behind where the origin changes.
    with utils.get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                                    follow_redirects=True) as response:  # fmt: skip
        if response.status_code == 416:
            part.write_bytes(b"")
            raise retry.Broken(f"the server has nothing beyond byte {have:,} of {remote.name}")
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        start = _first_byte(response, remote, have)
        if start < have:
            bar.write(f"{remote.name}: the server sends the whole file again")
            bar.reset()
        host_etag = response.headers.get("ETag", "W/")
        with part.open("r+b") as file:
            file.truncate(start)  # before the new ETag is noted
            file.seek(start)
            write_json(beside(part, ".json"), about | {"host_etag": None if host_etag.startswith("W/") else host_etag})
            append(file, response.iter_bytes(), remote, bar)
    if part.stat().st_size < remote.size:
        raise retry.Broken(f"the transfer of {remote.name} ended at byte {part.stat().st_size:,} of {remote.size:,}")


def append(file: IO[bytes], chunks: Iterator[bytes], remote: Remote, bar: tqdm) -> None:
    for chunk in chunks:
        if not file.tell() and re.match(rb"\s*<(!doctype html|html)", chunk[:200], re.IGNORECASE):
            raise WrongContent(HTML.format(remote.name))
        file.write(chunk)
        bar.update(len(chunk))
        if file.tell() > remote.size:
            os.unlink(file.name)
            raise WrongContent(f"{remote.name} came with more than the {remote.size:,} bytes announced")


def _told_etags(response: Any) -> set[str]:
    """What an answer says of the content; the ETag of a redirect, or of the host it leads to, is another thing."""
    linked = {answer.headers.get("X-Linked-Etag") for answer in (*response.history, response)} - {None}
    own = set() if response.history else {response.headers.get("ETag")} - {None}
    return {etag.removeprefix("W/").strip('"') for etag in linked or own}


def _first_byte(response: Any, remote: Remote, have: int) -> int:
    """Where the body of the answer begins, 0 or `have`. Raises WrongContent where it is not of this file."""
    if remote.etag not in (_told_etags(response) or {remote.etag}):
        raise WrongContent(f"{remote.name} has changed on the server during its download; run again")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise WrongContent(HTML.format(remote.name))
    start, total = 0, response.headers.get("Content-Length", "*")
    if response.status_code == 206:
        parts = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if parts is None:
            raise WrongContent(f"{remote.name}: the server sent a part without saying which")
        start, total = int(parts[1]), parts[3]
    if total not in ("*", str(remote.size)):
        raise WrongContent(f"{remote.name} should have {remote.size:,} bytes but the server sends {int(total):,}")
    if start not in (0, have):
        raise WrongContent(f"{remote.name}: byte {have:,} and on were asked for, the server sent from {start:,} on")
    return start


def checked_digest(part: Path, remote: Remote) -> str:
    """The sha256 of a file. Raises WrongContent where the Hub names another one."""
    if remote.size >= 2**28:
        print(f"{remote.name}: comparing its sha256", flush=True)
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    expected = sha256_name(remote.etag)
    if expected and expected != digest:
        part.unlink()
        raise WrongContent(f"{remote.name} came damaged (sha256 {digest[:12]}..., the Hub names "
                           f"{expected[:12]}...) and was removed; run again")
    return digest


def sha256_name(text: str) -> str | None:
    """The ETag of a large file is its sha256; a small file's is something else."""
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


def locked(target: Path) -> AbstractContextManager[object]:
    """One process at a time brings `target`; the others wait, and the lock of one that died is free."""
    from filelock import FileLock, Timeout  # huggingface_hub needs it as well

    lock = FileLock(beside(target, ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is downloading {target}: waiting for it", flush=True)
        return lock.acquire()


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def read_json(path: Path) -> About:
    """The object in a file; {} where there is none, or a kill left it half-written."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    return cast(About, content) if isinstance(content, dict) else {}


def write_json(path: Path, content: About) -> None:
    write_atomically(path, json.dumps(content))
