"""What keeps the page's visitors apart, without Gradio: turns, uploads, and what is let through to it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanocaption.commands import visitors
from nanocaption.commands.visitors import Guard, Refused, Turns, Uploads

# --- Turns ---


def served(arrivals: list[str], waiting: int = 100) -> tuple[list[str], list[str]]:
    """(whose requests were answered, in their order, who was refused), where each comes while the first is answered."""
    order: list[str] = []
    refused: list[str] = []

    async def one(turns: Turns, visitor: str, ready: threading.Event) -> None:
        def work() -> None:
            ready.wait(10)
            order.append(visitor)

        try:
            await turns.take(visitor, work)
        except Refused:
            refused.append(visitor)

    async def all_of_them() -> None:
        turns, ready, tasks = Turns(waiting), threading.Event(), []
        for visitor in arrivals:
            tasks.append(asyncio.create_task(one(turns, visitor, ready)))
            await asyncio.sleep(0)
        ready.set()
        await asyncio.gather(*tasks)
        assert not turns.busy and turns.tickets == [] and turns.last == {}

    asyncio.run(all_of_them())
    return order, refused


def test_a_visitor_who_sends_many_delays_others_by_one_request():
    assert served(["heavy"] * 5 + ["a", "b"]) == (["heavy", "a", "b", *["heavy"] * 4], [])
    assert served(["heavy"] * 5 + ["a", "a", "b"])[0][:4] == ["heavy", "a", "b", "heavy"]
    # The control: as one visitor, as they would be without names, they come in the order of their arrival.
    assert served(["x"] * 7)[0] == ["x"] * 7


def test_nobody_waits_for_ever_while_others_come():
    async def race() -> int:
        turns, mine = Turns(), 0

        async def others() -> None:
            while not done:
                newcomers = [turns.take(f"new {time.perf_counter()}", lambda: time.sleep(0.001)) for _ in range(2)]
                await asyncio.gather(*newcomers, return_exceptions=True)

        done: list[int] = []
        crowd = [asyncio.create_task(others()) for _ in range(4)]
        await asyncio.sleep(0.01)
        for _ in range(3):
            before = turns.turn
            await turns.take("me", int)
            mine = max(mine, turns.turn - before)
        done.append(1)
        await asyncio.gather(*crowd)
        return mine

    assert asyncio.run(race()) <= 12  # 8 were there before


def test_when_all_places_are_taken_who_has_most_makes_room():
    order, refused = served(["heavy"] * 6 + ["a", "b", "c"], waiting=4)
    assert order[:4] == ["heavy", "a", "b", "c"] and set(refused) == {"heavy"} and len(order) + len(refused) == 9
    order, refused = served([f"visitor {number}" for number in range(9)], waiting=4)  # all have one
    assert order == [f"visitor {number}" for number in range(5)]
    assert refused == [f"visitor {number}" for number in range(5, 9)]


def test_who_waits_too_long_is_told_and_the_next_has_his_turn():
    async def wait() -> list[object]:
        turns = Turns(patience=0.02)
        first = asyncio.create_task(turns.take("a", lambda: time.sleep(0.2)))
        await asyncio.sleep(0.01)
        late = await asyncio.gather(turns.take("b", int), return_exceptions=True)
        await first
        return [*late, await turns.take("b", lambda: 7)]

    refused, seven = asyncio.run(wait())
    assert isinstance(refused, Refused) and "Please try again" in str(refused) and seven == 7


def test_who_leaves_gives_his_turn_on():
    async def leave() -> int:
        turns, ready = Turns(), threading.Event()
        first = asyncio.create_task(turns.take("a", lambda: ready.wait(10)))
        await asyncio.sleep(0.01)
        gone, stays = (asyncio.create_task(turns.take(name, lambda: 7)) for name in "bc")
        await asyncio.sleep(0.01)
        gone.cancel()
        ready.set()
        await first
        return await asyncio.wait_for(stays, 10)

    assert asyncio.run(leave()) == 7


def test_work_that_fails_ends_a_turn():
    async def fail() -> int:
        turns = Turns()
        with pytest.raises(ZeroDivisionError):
            await turns.take("a", lambda: 1 // 0)
        return await turns.take("b", lambda: 7)

    assert asyncio.run(fail()) == 7


def test_behind_a_tunnel_visitors_are_told_apart_by_their_cookies():
    assert visitors.visitor_of("127.0.0.1", "a") != visitors.visitor_of("127.0.0.1", "b")
    assert visitors.visitor_of("10.0.0.7", "a") == visitors.visitor_of("10.0.0.7", "b")


# --- Uploads ---


def held(uploads: Uploads, owner: str, name: str, data: bytes) -> str:
    path = uploads.write(name, data)
    uploads.hold(path, owner, len(data))
    return path


def test_an_upload_serves_its_visitor_once_and_is_deleted(tmp_path):
    uploads = Uploads(tmp_path)
    uploads.reserve(3)
    path = held(uploads, "me", "../../etc/pass\nwd.jpg", b"abc")
    assert Path(path).parent.parent == tmp_path and Path(path).name == "passwd.jpg"
    for owner in ("you", ""):
        with pytest.raises(Refused, match="not here"):
            uploads.take(path, owner)
    for strange in (None, 7, str(tmp_path), "/etc/hostname", [path]):
        assert not uploads.owned(strange, "me")
    with pytest.raises(KeyError), uploads.take(path, "me") as file:
        assert file.read_bytes() == b"abc"  # the control: it is there until it is answered
        raise KeyError
    assert not file.exists() and list(tmp_path.iterdir()) == [] and uploads.size == 0
    with pytest.raises(Refused, match="not here"):
        uploads.take(path, "me")


def test_uploads_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(visitors, "HELD_BYTES", 10)
    uploads = Uploads(tmp_path)
    for number in range(visitors.HELD_EACH + 2):  # the oldest go
        uploads.reserve(2)
        held(uploads, "me", f"{number}.jpg", b"ab")
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == ["2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    with pytest.raises(Refused, match="Too many pictures are waiting"):
        uploads.reserve(3)
    monkeypatch.setattr(visitors, "HELD_SECONDS", 0.0)
    time.sleep(0.001)
    uploads.reserve(3)  # nobody asked about the others
    assert list(tmp_path.rglob("*.jpg")) == [] and uploads.size == 3


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    uploads = Uploads(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        uploads.write("a.jpg", b"abc")
    assert list(tmp_path.iterdir()) == [] and uploads.held == {}


# --- What is let through ---


class Answer:
    """What a request to a Guard came to."""

    def __init__(self, guard: Guard, method: str, path: str, body: bytes = b"", **headers: str):
        self.status, self.headers, self.body = 0, {}, b""
        sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": sent}
        parts = [body[place : place + 1000] for place in range(0, max(1, len(body)), 1000)]

        async def receive() -> dict[str, object]:
            part = parts.pop(0) if parts else b""
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: dict) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])
            self.body += message.get("body", b"")

        asyncio.run(guard(scope, receive, send))


@pytest.fixture
def guard(tmp_path) -> Guard:
    """Before an application that says what it was sent."""

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        message = await receive() if scope["method"] == "POST" else {}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"seen:" + message.get("body", b"")})

    return Guard(app, Uploads(tmp_path / "uploads"), tmp_path)


def test_the_page_is_let_through_and_nothing_else(guard):
    for path in ("/", "/config", "/assets/index.js", "/gradio_api/info", "/gradio_api/queue/data",
                 "/gradio_api/call/caption/7"):  # fmt: skip
        assert Answer(guard, "GET", path).body == b"seen:"
    for method, path in (("GET", "/monitoring"), ("GET", "/gradio_api/proxy=http://a"), ("PUT", "/"),
                         ("POST", "/gradio_api/run/caption"), ("POST", "/gradio_api/call/show"),
                         ("GET", "/gradio_api/file/etc/hostname"), ("POST", "/gradio_api/component_server")):
        assert Answer(guard, method, path).status == 404


def test_a_visitor_gets_a_cookie_once(guard):
    first = Answer(guard, "GET", "/").headers[b"set-cookie"].decode()
    assert first.startswith("nanocaption_visitor=") and "HttpOnly" in first
    assert Answer(guard, "GET", "/").headers[b"set-cookie"].decode() != first
    assert b"set-cookie" not in Answer(guard, "GET", "/", cookie=first.partition(";")[0]).headers


def test_no_file_of_a_visitor_is_sent(guard, tmp_path):
    upload = held(guard.uploads, "me", "a.jpg", b"abc")
    example = tmp_path / "example.jpg"
    example.write_bytes(b"abc")
    (tmp_path / "link.jpg").symlink_to(upload)
    assert Answer(guard, "GET", f"/gradio_api/file={example}").status == 200  # the control
    for path in (upload, f"{tmp_path}/x/../uploads/{Path(upload).parent.name}/a.jpg", f"{tmp_path}/link.jpg",
                 "/etc/hostname", f"{tmp_path}/../outside.jpg", ""):  # fmt: skip
        for cookie in ("nanocaption_visitor=me", ""):
            assert Answer(guard, "GET", f"/gradio_api/file={path}", cookie=cookie).status == 404


def test_a_request_names_no_file_but_its_visitors_own(guard):
    upload = held(guard.uploads, "me", "a.jpg", b"abc")

    def asked(path: object, cookie: str = "nanocaption_visitor=me") -> Answer:
        body = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 1]}).encode()
        return Answer(guard, "POST", "/gradio_api/call/caption", body, cookie=cookie)

    assert asked(upload).body.startswith(b'seen:{"data"')  # the control: it is not used up by being named
    assert asked(upload).status == 200
    for path, cookie in ((upload, "nanocaption_visitor=you"), (upload, ""), ("/etc/hostname", "nanocaption_visitor=me"),
                         ("http://127.0.0.1/a.jpg", "nanocaption_visitor=me"), (None, "nanocaption_visitor=me")):
        answer = asked(path, cookie)
        assert answer.status == 403 and "choose it again" in json.loads(answer.body)["detail"]
    assert Answer(guard, "POST", "/gradio_api/queue/join", b"no json").status == 400
    assert Answer(guard, "POST", "/gradio_api/queue/join", b"[" * 10**5).status == 400
    assert Answer(guard, "POST", "/gradio_api/queue/join", b" " * (visitors.BODY_BYTES + 1)).status == 413


def form(data: bytes, name: str = "a.jpg") -> tuple[bytes, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def test_an_upload_is_received_up_to_its_bounds(guard, monkeypatch):
    pytest.importorskip("starlette")
    pytest.importorskip("python_multipart")
    monkeypatch.setattr(visitors, "UPLOAD_BYTES", 20_000)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    def sent(data: bytes, **headers: str) -> Answer:
        body, kind = form(data)
        headers = {"cookie": "nanocaption_visitor=me", "content_type": kind, **headers}
        return Answer(guard, "POST", "/gradio_api/upload", body, **headers)

    answer = sent(b"abc")
    assert answer.status == 200 and guard.uploads.size == 3
    (path,) = json.loads(answer.body)
    assert Path(path).read_bytes() == b"abc" and guard.uploads.owned(path, "me")
    assert sent(b"abc", cookie="").status == 403
    assert sent(b"x" * 20_001).status == 413 and sent(b"x" * 40_000).status == 413
    assert sent(b"abc", content_length="1000000").status == 413
    assert sent(b"abc", content_type="text/plain").status == 400
    monkeypatch.setattr(Uploads, "write", full)
    assert sent(b"abc").status == 507
    assert guard.uploads.size == 3  # what was refused holds no room
