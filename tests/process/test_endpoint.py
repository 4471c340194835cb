"""The endpoint /caption of `nanocaption demo`, asked by gradio_client and by plain requests, in a real process."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanocaption.commands import caption, visitors
from tests.conftest import ROOT

pytestmark = pytest.mark.long  # Gradio takes seconds to import and to start
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def page(tiny_run_made, tmp_path_factory):
    """(address, the folder with its temporary files, its process)"""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("page")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nanocaption", "demo", str(tiny_run_made / "last.safetensors")]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0], folder, process
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert list(folder.glob("nanocaption-demo-*")) == []


@pytest.fixture(scope="module")
def pictures(demo_data) -> list[Path]:
    return sorted((demo_data / "demo" / "images").iterdir())[:3]


def client(address: str):
    import gradio_client

    return gradio_client.Client(address, verbose=False)


def uploaded(visitor, picture: Path) -> str:
    import httpx

    with picture.open("rb") as file:
        answer = httpx.post(visitor.upload_url, cookies=visitor.cookies, files=[("files", (picture.name, file))])
    return answer.raise_for_status().json()[0]


def test_the_endpoint_gives_what_the_command_gives(page, tiny_run_made, pictures, capsys):
    from gradio_client import handle_file

    address, folder, _ = page
    visitor = client(address)
    assert list(visitor.view_api(return_format="dict")["named_endpoints"]) == ["/caption"]
    flags = ["--checkpoint", str(tiny_run_made / "last.safetensors"), "--num-captions", "2", "--json"]
    capsys.readouterr()
    for picture in pictures:
        assert caption.main([str(picture), *flags]) == 0
        (alone,) = json.loads(capsys.readouterr().out)
        found = visitor.predict(handle_file(str(picture)), num_captions=2, api_name="/caption")
        assert found == {"captions": alone["captions"], "model": f"{tiny_run_made.name}/last.safetensors"}
    one = visitor.predict(handle_file(str(picture)), api_name="/caption")
    assert one["captions"] == found["captions"][:1]
    bounded = visitor.predict(handle_file(str(picture)), num_captions=10**9, beam_size=10**9, api_name="/caption")
    assert len(bounded["captions"]) == 8
    assert list(folder.glob("nanocaption-demo-*/uploads/*")) == []  # deleted when they were answered


def test_mistakes_are_one_line(page, pictures, tmp_path):
    from gradio_client import exceptions, handle_file
    from PIL import Image

    address, folder, _ = page
    visitor = client(address)
    (tmp_path / "notes.jpg").write_text("no picture")
    Image.new("1", (10_000, 5_001)).save(tmp_path / "large.png")
    for name, why in (("notes.jpg", "^notes.jpg cannot be read: not a picture"),
                      ("large.png", "^large.png cannot be read: too large: 10000 x 5001, above 50 megapixels")):
        with pytest.raises(exceptions.AppError, match=why):
            visitor.predict(handle_file(str(tmp_path / name)), api_name="/caption")
    (tmp_path / "heavy.jpg").write_bytes(b"x" * (visitors.UPLOAD_BYTES + 1))
    with pytest.raises(Exception, match="maximum file size|413"):
        visitor.predict(handle_file(str(tmp_path / "heavy.jpg")), api_name="/caption")
    assert list(folder.glob("nanocaption-demo-*/uploads/*")) == []


def test_another_visitor_cannot_use_or_read_a_picture_whose_path_he_knows(page, pictures):
    import httpx

    address, *_ = page
    owner, other = client(address), client(address)
    path = uploaded(owner, pictures[0])

    def ask(visitor) -> httpx.Response:
        body = {"data": [FILE | {"path": path}, 1, 1]}
        return httpx.post(f"{address}gradio_api/call/caption", cookies=visitor.cookies, json=body)

    for visitor in (owner, other):
        assert httpx.get(f"{address}gradio_api/file={path}", cookies=visitor.cookies).status_code == 404
    assert ask(other).status_code == 403
    event = ask(owner)  # the control: its owner may
    events = httpx.get(f"{address}gradio_api/call/caption/{event.json()['event_id']}", timeout=60).text
    assert "event: complete" in events and "log_prob" in events
    assert ask(owner).status_code == 403 and not Path(path).exists()


def test_fifty_at_once_are_answered_or_told_to_come_again(page, pictures):
    from gradio_client import exceptions, handle_file

    address, folder, process = page

    def ask(number: int) -> str:
        try:
            visitor = client(address)
            return str(visitor.predict(handle_file(str(pictures[number % 3])), api_name="/caption"))
        except exceptions.AppError as error:
            return str(error)

    with ThreadPoolExecutor(50) as crowd:
        said = list(crowd.map(ask, range(50)))
    answered = [text for text in said if "log_prob" in text]
    assert len(answered) >= 20 and all("Please try again" in text for text in said if text not in answered)
    assert len(set(answered)) <= 3 and list(folder.glob("nanocaption-demo-*/uploads/*")) == []
    assert process.poll() is None
