"""A local server that speaks the Hub's dataset routes, and one that keeps its large files, as the real one's do.

Every answer is noted in `log`; `faults` are taken one by one by the next GETs of a file's bytes.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

COMMIT = "2b239bef" + "0" * 32
HTML = b"<!DOCTYPE html><html><body>Sign in to the network</body></html>"


class Request(NamedTuple):
    command: str
    path: str
    range: str | None
    status: int
    first: int | None  # of the bytes sent
    token: str | None


class Fault(NamedTuple):
    """What is wrong with one answer."""

    cut: int | None = None  # bytes after which the connection is cut
    status: int | None = None
    retry_after: str | None = None
    body: bytes | None = None  # sent instead, whole
    html: bool = False  # with that Content-Type
    lines_up: bool = True  # False: Range is ignored
    slow: float = 0.0  # seconds before each 64 kB


class Hub:
    """The state of both servers; tests change it."""

    def __init__(self, repository: str, files: dict[str, bytes]):
        self.repositories, self.files, self.commit = [repository], files, COMMIT
        self.etags: dict[str, str] = {}  # where the Hub's is not the sha256
        self.small: set[str] = set()  # kept by the Hub itself, behind a redirect within it
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.keeper_etag = '"kept-1"'  # of the host that keeps the bytes
        self.url = self.keeper_url = ""

    def etag(self, name: str) -> str:
        return self.etags.get(name, hashlib.sha256(self.files[name]).hexdigest())

    def downloads(self, name: str = "") -> list[Request]:
        """The GETs of files' bytes, without the redirects to them."""
        return [r for r in self.log if r.command == "GET" and "/kept/" in r.path and r.path.endswith(name)]


def turn_to(monkeypatch: Any, url: str, cache: Path) -> None:
    """huggingface_hub in this process, turned to a server: it reads its variables when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    with running(handler_of(hub, answer_hub)) as hub.url, running(handler_of(hub, answer_keeper)) as keeper:
        hub.keeper_url = keeper.replace("127.0.0.1", "localhost")  # another host, not only another port
        yield hub


@contextlib.contextmanager
def running(handler: type) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def handler_of(hub: Hub, answer: Callable[[Any, Hub], None]) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            with contextlib.suppress(ConnectionError):
                answer(self, hub)

        do_GET = do_HEAD

        def log_message(self, *_args):
            pass

    return Handler


def send(handler: Any, hub: Hub, status: int, body: bytes = b"", first: int | None = None, cut: int | None = None,
         slow: float = 0.0, **headers: str) -> None:  # fmt: skip
    hub.log.append(Request(handler.command, handler.path, handler.headers.get("Range"), status, first,
                           handler.headers.get("Authorization")))  # fmt: skip
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command == "GET":
        body = body[:cut]
        for start in range(0, len(body), 2**16):
            time.sleep(slow)
            handler.wfile.write(body[start : start + 2**16])


def answer_hub(handler: Any, hub: Hub) -> None:
    path = handler.path.partition("?")[0]
    api = re.fullmatch(r"/api/datasets/(.+?)(?:/revision/(.+))?", path)
    asked = re.fullmatch(r"/datasets/(.+?)/resolve/([^/]+)/(.+)", path)
    if path.startswith("/cache/"):
        name = path.removeprefix("/cache/")
        return send(handler, hub, 200, hub.files[name], 0, X_Repo_Commit=hub.commit, ETag=f'"{hub.etag(name)}"')
    if not (api or asked):
        return send(handler, hub, 404)
    repository, revision = (api or asked)[1], (api or asked)[2] or "main"
    if repository not in hub.repositories:
        return send(handler, hub, 404, X_Error_Code="RepoNotFound")
    if revision not in ("main", hub.commit):
        return send(handler, hub, 404, X_Error_Code="RevisionNotFound")
    if api:
        if hub.faults and hub.faults[0].html and hub.faults[0].body is None:
            return send(handler, hub, 200, HTML, Content_Type="text/html")
        about = {"id": repository, "sha": hub.commit, "siblings": [{"rfilename": name} for name in hub.files]}
        return send(handler, hub, 200, json.dumps(about).encode(), Content_Type="application/json")
    name = asked[3]
    if name not in hub.files:
        return send(handler, hub, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.commit)
    if name in hub.small:
        return send(handler, hub, 307, X_Repo_Commit=hub.commit, ETag='W/"of the redirect"', Location=f"/cache/{name}")
    return send(handler, hub, 302, X_Repo_Commit=hub.commit, X_Linked_Etag=f'"{hub.etag(name)}"',
                X_Linked_Size=str(len(hub.files[name])), Location=f"{hub.keeper_url}/kept/{name}")  # fmt: skip


def answer_keeper(handler: Any, hub: Hub) -> None:
    fault = hub.faults.pop(0) if hub.faults and handler.command == "GET" else Fault()
    if fault.status:
        headers = {"Retry_After": fault.retry_after} if fault.retry_after else {}
        return send(handler, hub, fault.status, **headers)
    if handler.path.removeprefix("/kept/") not in hub.files:
        return send(handler, hub, 404)
    data = hub.files[handler.path.removeprefix("/kept/")] if fault.body is None else fault.body
    headers = {"ETag": hub.keeper_etag, "Content_Type": "text/html" if fault.html else "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    same = handler.headers.get("If-Range") in (None, hub.keeper_etag)
    if asked and same and fault.lines_up and fault.body is None:
        start = int(asked[1])
        if start >= len(data):
            return send(handler, hub, 416)
        end = min(int(asked[2]) + 1, len(data)) if asked[2] else len(data)
        headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return send(handler, hub, 206, data[start:end], start, fault.cut, fault.slow, **headers)
    return send(handler, hub, 200, data, 0, fault.cut, fault.slow, **headers)
