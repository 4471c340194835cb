"""Shards that stay on a server: https://..., and hf://datasets/OWNER/NAME[@REVISION]/PATH of the Hugging Face Hub.

Their bytes are asked for with Range. huggingface_hub knows endpoint, token and proxies of the Hub; its token goes to no
other server. What breaks on the way is asked for again (base/retry.py).
"""

import functools
import io
import os
import re
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from nanocaption.base import hub, retry

AHEAD = 4 * 2**20  # bytes that a File fetches at once
SCHEMES = ("http://", "https://", "hf://")


class ShardError(ValueError):
    """What is wrong with a shard, not with one of its pictures."""


class MissingError(ShardError, FileNotFoundError):
    """A server has no such shard."""


class Told(NamedTuple):
    """What a server says of a file."""

    size: int  # bytes
    etag: str  # "" where it does not say


class Address(PurePosixPath):
    """The address of a shard, with as much of a path as readers of shards need."""

    def __str__(self) -> str:
        return re.sub(r"^(\w+):/+", r"\1://", super().__str__())

    def open(self, _mode: str = "rb") -> IO[bytes]:
        return File(str(self))

    def stat(self) -> os.stat_result:
        """Of this only the size means anything."""
        return os.stat_result((0, 0, 0, 0, 0, 0, ask(str(self)).size, 0, 0, 0))

    def resolve(self) -> "Address":
        return self


class File(io.RawIOBase):
    """A file on a server, read in stretches of AHEAD bytes."""

    def __init__(self, address: str):
        super().__init__()
        self.address, self.size, self.place = address, ask(address).size, 0
        self.held, self.begin = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        end = self.size if size < 0 else min(self.size, self.place + size)
        if not self.begin <= self.place <= end <= self.begin + len(self.held):
            length = min(max(end - self.place, AHEAD), self.size - self.place)
            self.held, self.begin = (read(self.address, self.place, length) if length > 0 else b""), self.place
        data = self.held[self.place - self.begin : max(end, self.place) - self.begin]
        self.place += len(data)
        return data


def is_address(path: str) -> bool:
    return path.startswith(SCHEMES)


def ask(address: str) -> Told:
    """Size and ETag of a file. Raises MissingError, and ShardError with one line where they cannot be had."""
    answer = _answered(address, 0, 1)
    found = re.fullmatch(r"bytes 0-0/(\d+)", answer.headers.get("Content-Range", ""))
    if found is None:
        raise ShardError(f"{address}: the server does not tell the size of the file")
    linked = [one.headers.get("X-Linked-Etag") for one in answer.history]  # of the Hub, before its store's own
    own = [answer.headers.get(name) for name in ("ETag", "Last-Modified")]
    return Told(int(found[1]), next(filter(None, [*linked, *own]), ""))


def read(address: str, start: int, length: int) -> bytes:
    """These bytes of a file. Raises MissingError, and ShardError with one line where they cannot be had."""
    return _answered(address, start, length).content if length else b""


def _answered(address: str, start: int, length: int) -> Any:
    """The server's answer with these bytes, whole."""

    def once() -> Any:
        from huggingface_hub import utils

        url, headers = _request(address)
        headers |= {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        with utils.get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
            if answer.status_code == 200:  # and the whole shard would follow
                raise ShardError(f"{address}: the server sends whole files only (it ignores Range), and a stream reads "
                                 "parts of them: download the shards and name their folder")  # fmt: skip
            answer.read()
            if answer.status_code == 404:
                raise MissingError(f"{address}: the server has no such file (404)")
            if answer.status_code == 416:
                raise ShardError(f"{address}: the server has nothing at byte {start:,}: the shard has changed")
            answer.raise_for_status()
            span = answer.headers.get("Content-Range", "")
            if not re.fullmatch(rf"bytes {start}-{start + length - 1}/\d+", span) or len(answer.content) != length:
                raise ShardError(f"{address}: bytes {start}-{start + length - 1} were asked for, the server sent "
                                 f"{span or 'others'}: the shard has changed")  # fmt: skip
            return answer

    try:
        return retry.retried(once, PurePosixPath(address).name)
    except ShardError:
        raise
    except hub.errors() as error:
        raise ShardError(f"{address} could not be read ({hub.reason_of(error)}): is the network there? The same "
                         "command goes on from here") from error  # fmt: skip


@functools.lru_cache(4096)
def _url_of(address: str) -> str:
    import huggingface_hub
    from huggingface_hub import constants

    form = r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)"
    found = re.fullmatch(form, address)
    if found is None:
        raise ShardError(f"{address}: write hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH")
    return huggingface_hub.hf_hub_url(found[1], found[3], repo_type="dataset", revision=found[2],
                                      endpoint=constants.ENDPOINT)  # fmt: skip


def _request(address: str) -> tuple[str, dict[str, str]]:
    from huggingface_hub import utils

    if address.startswith("hf://"):
        return _url_of(address), dict(utils.build_hf_headers())
    return address, {}
