"""A page in headless Chromium, driven over its debugging pipe: for what only a browser can show."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --hide-scrollbars
    --disable-background-networking --disable-component-update --remote-debugging-pipe
    """


class Page:
    """One tab. `errors` holds what its console complained of, and what its policy blocked.

    `requests`: after `watch`, the addresses that it and its workers asked for.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.number, self.rest, self.session, self.errors, self.chooser = 0, b"", None, [], None
        self.requests = []
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict:
        number = self.tell(self.session, method, **params)
        while (answer := self.receive()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def tell(self, session: str | None, method: str, **params: Any) -> int:
        """`send` without the answer, to the tab or to one of its workers; gives the number that an answer has."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        return self.number

    def watch(self, session: str | None = None) -> None:
        """Record what the tab asks for, and the workers that it starts from now on."""
        self.tell(session or self.session, "Network.enable")
        self.tell(session or self.session, "Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True,
                  flatten=True)  # fmt: skip

    def receive(self) -> dict:
        while b"\0" not in self.rest:
            part = os.read(self.from_browser, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        event = json.loads(message)
        params = event.get("params", {})
        level = params.get("entry", {}).get("level") or params.get("type")  # of the log, of console.error
        if event.get("method") == "Runtime.exceptionThrown" or level == "error":
            self.errors.append(json.dumps(params)[:500])
        if event.get("method") == "Target.attachedToTarget" and self.session:
            self.watch(params["sessionId"])
            self.tell(params["sessionId"], "Runtime.runIfWaitingForDebugger")
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event.get("method") == "Page.fileChooserOpened":
            self.chooser = params["backendNodeId"]
        return event

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait for an expression to hold."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"it never held: {script}"
            time.sleep(0.05)

    def open(self, path: Path | str, address: str = "") -> None:
        """A file with what may follow its name, e.g. #order=worst; or the URL of a server."""
        self.send("Page.navigate", url=(path if isinstance(path, str) else path.as_uri()) + address)
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def mouse(self, selector: str | None, click: bool = False) -> None:
        """Move over the middle of an element, or away from all; perhaps press there."""
        x, y = 1, 1
        if selector:
            box = f"document.querySelector({selector!r}).getBoundingClientRect()"
            self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
            x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose_file(self, selector: str, path: Path) -> None:
        """Click an element until it opens a file chooser (a moving page may be missed), and choose there."""
        self.send("Page.setInterceptFileChooserDialog", enabled=True)
        self.chooser = None
        for _ in range(50):
            self.mouse(selector, click=True)
            self.run("new Promise(done => setTimeout(done, 300))")
            if self.chooser is not None:
                break
        self.send("DOM.setFileInputFiles", files=[str(path)], backendNodeId=self.chooser)

    def key(self, name: str) -> None:
        number = {"Tab": 9, "Enter": 13, "Escape": 27}.get(name, 0)  # without it Chromium itself does nothing
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=number, **text)

    def picture(self, path: Path, whole: bool = False) -> None:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Page]:
    """Start Chromium with a profile of its own, and perhaps more flags; ended with the block."""
    # Chromium reads commands from descriptor 3 and writes to 4.
    read_command, write_command = os.pipe()
    read_answer, write_answer = os.pipe()
    start = f'exec "$@" 3<&{read_command} 4>&{write_answer}'
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", CHROMIUM, *FLAGS.split(), *flags, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(read_command, write_answer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read_command)
    os.close(write_answer)
    try:
        yield Page(write_command, read_answer)
    finally:
        os.close(write_command)
        os.close(read_answer)
        process.kill()
        process.wait()
