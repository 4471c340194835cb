"""What keeps visitors of the page apart, and the page up: whose turn it is, where uploads lie, what may be asked for.

Nothing here knows Gradio: `Guard` stands before it as ASGI middleware, so that what is refused never reaches it.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

UPLOAD_BYTES = 20 * 10**6  # of a picture
MAX_PIXELS = 50_000_000  # a phone's 48 megapixels pass
WAITING = 64  # requests at most, besides the one that is answered
PATIENCE = 60.0  # seconds that one waits at most, and that an upload may take
HELD_BYTES = 512 * 10**6  # of all uploads together
HELD_SECONDS = 120.0  # an upload that nothing asks about is deleted
HELD_EACH = 4  # uploads of a visitor; with the next his oldest goes
BODY_BYTES = 10**6  # of any other request
TOLD = (f"Up to {UPLOAD_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} megapixels, deleted once answered; at most "
        f"{WAITING} requests wait, {PATIENCE:.0f} seconds at most.")  # fmt: skip
COOKIE = "nanocaption_visitor"
_API = "/gradio_api"
# All that the page and its clients ask for. Gradio has more, for what this page is not.
_READ = re.compile(
    rf"/|/config/?|/theme\.css|/(assets|static|svelte)/.*|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon.*"
    rf"|{_API}/(info|app_id|startup-events|theme\.css|upload_progress|queue/data|openapi\.json)/?"
    rf"|{_API}/heartbeat/[^/]*|{_API}/call/(caption|ask)/[^/]*|{_API}/file=.*"
)
_WRITE = re.compile(rf"{_API}/(upload|queue/join|call/(caption|ask)|cancel|reset)/?")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")


class Refused(Exception):
    """What a visitor is told in one line, with the HTTP status that says so."""

    def __init__(self, text: str, status: int = 503):
        super().__init__(text)
        self.status = status


# --- Turns ---


class _Ticket(NamedTuple):
    visitor: str
    since: float  # how long ago, in turns, the visitor had one
    place: asyncio.Future[None]  # done: it is his turn, or he was refused


class Turns:
    """Requests are answered one at a time, those of all visitors in turn: each visitor's next one goes behind the first
    of everybody else. So whoever sends many delays another by the one that is being answered, and no more.

    With `waiting` of them the newest request of the visitor who has most there makes room for one who has fewer.
    """

    def __init__(self, waiting: int = WAITING, patience: float = PATIENCE):
        self.most, self.patience = waiting, patience
        self.tickets: list[_Ticket] = []
        self.turn, self.busy = 0, False
        self.last: dict[str, int] = {}  # of those who wait, or are answered, the turn they had last
        self.thread = ThreadPoolExecutor(1, "captions")

    async def take(self, visitor: str, work: Callable[[], T]) -> T:
        """work() in a thread when it is the visitor's turn. Raises Refused where too many wait, or for too long."""
        if self.busy:
            await self._wait(visitor)
        self.busy, self.turn = True, self.turn + 1
        self.last[visitor] = self.turn
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        finally:
            self._next()

    async def _wait(self, visitor: str) -> None:
        if len(self.tickets) >= self.most:
            self._make_room(visitor)
        # A newcomer stands as if he had had the turn before the present one: before all who had that one or wait since.
        ticket = _Ticket(visitor, self.last.get(visitor, self.turn - 1), asyncio.get_running_loop().create_future())
        self.tickets.append(ticket)
        try:
            await asyncio.wait({ticket.place}, timeout=self.patience)
        except asyncio.CancelledError:
            if ticket.place.done() and ticket.place.exception() is None:
                self._next()
            raise
        finally:
            if ticket in self.tickets:
                self.tickets.remove(ticket)
        if not ticket.place.done():
            raise Refused(f"Too many want captions: yours waited {self.patience:.0f} seconds. Please try again.")
        ticket.place.result()

    def _make_room(self, visitor: str) -> None:
        full = Refused(f"{self.most} requests are waiting already. Please try again in a minute.")
        counts = Counter(ticket.visitor for ticket in self.tickets)
        heaviest, most = counts.most_common(1)[0]
        if most <= counts[visitor] + 1:
            raise full
        newest = [ticket for ticket in self.tickets if ticket.visitor == heaviest][-1]
        self.tickets.remove(newest)
        newest.place.set_exception(full)

    def _next(self) -> None:
        """Give the turn to whoever has waited for one longest."""
        waiting = {ticket.visitor for ticket in self.tickets}
        if not self.tickets:
            self.busy = False
            self.last.clear()
            return
        chosen = min(self.tickets, key=lambda ticket: max(ticket.since, self.last.get(ticket.visitor, -1)))
        self.tickets.remove(chosen)
        self.last = {name: turn for name, turn in self.last.items() if name in waiting or turn == self.turn}
        chosen.place.set_result(None)


def visitor_of(address: str, cookie: str) -> str:
    """Who asks: an address; behind a tunnel or proxy on this machine, where all have one, the cookie too."""
    return f"{address} {cookie}" if address in ("127.0.0.1", "::1", "") else address


# --- Uploads ---


class _Upload(NamedTuple):
    owner: str  # his cookie
    size: int
    time: float


class Uploads:
    """The pictures that were uploaded and not yet answered, each in a folder whose name nobody can guess."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.held: dict[str, _Upload] = {}
        self.size = 0  # bytes, with those that are being received and answered

    def reserve(self, size: int) -> None:
        """Keep room for so many bytes. Raises Refused where there is none."""
        old = [path for path, upload in self.held.items() if time.monotonic() - upload.time > HELD_SECONDS]
        for path in old:
            self.drop(path, self.held.pop(path).size)
        if self.size + size > HELD_BYTES:
            raise Refused("Too many pictures are waiting. Please try again in a minute.")
        self.size += size

    def write(self, name: str, data: bytes) -> str:
        """The path of a new file with these bytes, for `hold`."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700, parents=True)
        clean = "".join(letter for letter in Path(name).name if letter.isprintable()).strip(". ")[-60:]
        path = folder / (clean or "picture")
        try:
            path.write_bytes(data)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return str(path)

    def hold(self, path: str, owner: str, size: int) -> None:
        """Keep a file for its owner, whose bytes are reserved already; of HELD_EACH others the oldest goes."""
        mine = [held for held, upload in self.held.items() if upload.owner == owner]
        for old in mine[: max(0, len(mine) - HELD_EACH + 1)]:
            self.drop(old, self.held.pop(old).size)
        self.held[path] = _Upload(owner, size, time.monotonic())

    def owned(self, path: object, owner: str) -> bool:
        """Whether a path is one of an upload of this visitor that nothing was asked about yet."""
        upload = self.held.get(path) if isinstance(path, str) else None
        return upload is not None and bool(owner) and upload.owner == owner

    def take(self, path: object, owner: str) -> "_Taken":
        """The file of an upload, for a with block that deletes it. Raises Refused where it is not this visitor's."""
        if not self.owned(path, owner):
            raise Refused("That picture is not here, or no longer: please choose it again.", 403)
        return _Taken(self, str(path), self.held.pop(str(path)).size)

    def drop(self, path: str, size: int) -> None:
        shutil.rmtree(Path(path).parent, ignore_errors=True)
        self.size -= size


class _Taken(NamedTuple):
    uploads: Uploads
    path: str
    size: int

    def __enter__(self) -> Path:
        return Path(self.path)

    def __exit__(self, *_: object) -> None:
        self.uploads.drop(self.path, self.size)


# --- Before Gradio ---


class Guard:
    """ASGI middleware: lets through what the page needs, receives uploads itself, and gives each visitor a cookie.

    A file is sent only from `folder`, where Gradio has the examples, and never from that of the uploads. A request that
    names a file has to name an upload of its visitor: also Gradio's way to fetch an address is closed so.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], uploads: Uploads, folder: Path):
        self.app, self.uploads, self.folder = app, uploads, Path(os.path.realpath(folder))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self._http(scope, receive, send)
        except Refused as refused:
            await _answer(send, refused.status, {"detail": str(refused), "error": str(refused)})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        allowed = {"GET": _READ, "HEAD": _READ, "POST": _WRITE}.get(method)
        if allowed is None or not allowed.fullmatch(path) or not self._shown(path):
            raise Refused("There is nothing of that name here.", 404)
        owner = cookie_of(scope)
        if method == "POST" and path.startswith(f"{_API}/upload"):
            await _answer(send, 200, await self._receive(scope, receive, owner))
        elif method == "POST":
            body = await _body(receive, BODY_BYTES)
            self._check(body, owner)
            await self.app(scope, _replay(body, receive), send)
        elif path.startswith(f"{_API}/upload_progress"):  # pictures are small, and none is kept waiting for this
            await _answer(send, 200, b'data: {"msg": "done"}\n\n', "text/event-stream")
        else:
            await self.app(scope, receive, send if owner else _with_cookie(send))

    def _shown(self, path: str) -> bool:
        if not path.startswith(f"{_API}/file="):
            return True
        file = os.path.realpath(path.removeprefix(f"{_API}/file="))
        inside = [Path(file).is_relative_to(os.path.realpath(place)) for place in (self.folder, self.uploads.folder)]
        return inside == [True, False]

    async def _receive(self, scope: Scope, receive: Receive, owner: str) -> list[str]:
        """The path of the one picture in a form, as Gradio would answer. Its bytes are reserved before any comes."""
        if not owner:
            raise Refused("Pictures are taken from who has opened the page: send its cookie.", 403)
        announced = _header(scope, b"content-length")
        most = UPLOAD_BYTES + 10_000  # with the rest of the form
        size = int(announced) if announced.isdigit() else most
        if size > most:
            raise _too_large()
        self.uploads.reserve(size)
        kept = 0
        try:
            name, data = await asyncio.wait_for(_file_of(scope, receive, size), PATIENCE)
            path = await asyncio.to_thread(self.uploads.write, name, data)
            self.uploads.hold(path, owner, len(data))  # here, in the one thread that changes what is held
            kept = len(data)
            return [path]
        except TimeoutError:
            raise Refused(f"The picture took longer than {PATIENCE:.0f} seconds to come.", 408) from None
        except OSError:  # the disk is full
            raise Refused("There is no room for pictures just now. Please try again later.", 507) from None
        finally:
            self.uploads.size -= size - kept

    def _check(self, body: bytes, owner: str) -> None:
        """Refused where a request names a file other than an upload of its visitor."""
        try:
            found = json.loads(body or b"null")
        except (ValueError, RecursionError):
            raise Refused("That is no JSON.", 400) from None
        left = [found]
        while left:
            value = left.pop()
            if isinstance(value, dict) and "path" in value and not self.uploads.owned(value["path"], owner):
                raise Refused("That picture is not here, or no longer: please choose it again.", 403)
            left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


async def _file_of(scope: Scope, receive: Receive, most: int) -> tuple[str, bytes]:
    """(name, content) of the one file in a form of at most so many bytes."""
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException
    from starlette.requests import Request

    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise _too_large()
        return message

    try:
        form = await Request(scope, counted).form(max_files=1, max_fields=4)
    except (HTTPException, MultiPartException):
        raise Refused("That is no form with one file.", 400) from None
    files = [value for _, value in form.multi_items() if not isinstance(value, str)]
    if not files:
        raise Refused("There is no file in the form.", 400)
    name, data = files[0].filename or "", await files[0].read()
    await form.close()
    if len(data) > UPLOAD_BYTES:
        raise _too_large()
    return name, data


def _too_large() -> Refused:
    return Refused(f"The picture is too large: at most {UPLOAD_BYTES // 10**6} MB.", 413)


def cookie_of(scope: Mapping[str, Any]) -> str:
    """The visitor's cookie, "" for none."""
    try:
        found = SimpleCookie(_header(scope, b"cookie")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _header(scope: Mapping[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _with_cookie(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            cookie = f"{COOKIE}={secrets.token_hex(16)}; Path=/; HttpOnly; SameSite=Lax"
            message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie.encode())]
        await send(message)

    return sent


async def _body(receive: Receive, most: int) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise Refused("The request is too large.", 413)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    held = [body]

    async def replayed() -> Message:
        if held:
            return {"type": "http.request", "body": held.pop(), "more_body": False}
        return await receive()

    return replayed


async def _answer(send: Send, status: int, content: object, kind: str = "application/json") -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
