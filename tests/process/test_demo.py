"""`nanocaption demo`: what the page says, and the page itself in a browser, with real clicks, from a real process."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanocaption.base.settings import load_settings, take_settings
from nanocaption.commands import demo
from nanocaption.use.attention import attend
from nanocaption.use.load import Loaded, load_models
from tests import browser
from tests.conftest import CUTOFF


@pytest.fixture(scope="module")
def flags(demo_data, tiny_run_made) -> list[str]:
    """Of nanocaption demo; the first is its checkpoint."""
    places = ["--data-dir", str(demo_data), "--output-dir", str(tiny_run_made.parent)]
    return [str(tiny_run_made / "last.safetensors"), *places, "--min-length", "5"]  # there are words to tap


@pytest.fixture(scope="module")
def loaded(flags) -> Loaded:
    own, (path,) = take_settings(flags)
    return load_models([Path(path)], load_settings(own))


# --- What the page says ---


@pytest.mark.parametrize(
    "probability, text",
    [(1, "100 %"), (0.1249, "12 %"), (0.0345, "3.5 %"), (0.001, "0.1 %"), (0.00043, "1 in 2,300"),
     (1.23e-9, "1 in 810,000,000"), (1e-40, "nearly 0 %")],
)  # fmt: skip
def test_probabilities_are_told_for_people(probability, text):
    assert demo.chance(math.log(probability)) == text


def test_examples_are_the_models_own_test_split_or_none(loaded, demo_data, tmp_path):
    rows = json.loads((demo_data / "demo" / "captions.json").read_text())["images"]
    names = [row["file_name"] for row in rows if row["split"] == "test"]
    assert [path.name for path in demo.held_out(loaded)] == names[: demo.EXAMPLES]
    assert len(names) == CUTOFF > demo.EXAMPLES
    others = loaded._replace(states=[loaded.states[0] | {"captions_sha256": "of another set"}])
    assert demo.held_out(others) == []
    elsewhere = load_settings(["--data-dir", str(tmp_path)])
    assert demo.held_out(loaded._replace(settings=elsewhere)) == []


def test_captions_are_those_of_the_search_and_draws_and_carry_their_maps(loaded):
    path = demo.held_out(loaded)[0]
    found = demo.find_captions(loaded, path, beams=2, number=3, temperature=1.0)
    assert [len(kind) for kind in found] == [3, 3, 6]
    for caption, maps in zip(found.beam + found.sampled, found.maps, strict=True):
        assert [word["text"] for word in maps["words"]] == [w.strip() for w in caption.text.split(" ") if w.strip()]
    cold = demo.find_captions(loaded, path, beams=1, number=1, temperature=0)
    assert cold.beam[0].ids == cold.sampled[0].ids  # greedy, both ways
    page = demo.result_html(loaded, path, beams=1, number=2, temperature=0)
    assert page.count("<li>") == 3 and "drawn 2 times" in page


def test_one_picture_serves_all_its_captions(loaded):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ids = [[5, 6, 7], [8, 9]]
    args = loaded.models[0], loaded.tokenizer
    assert attend(*args, images[:1], ids) == attend(*args, images[[0, 0]], ids)
    assert attend(*args, images[:1], ids) != attend(*args, images, ids)


def test_a_file_that_is_no_picture_is_told_in_one_line(loaded, tmp_path):
    path = tmp_path / "<b>notes.jpg"
    path.write_text("no picture")
    page = demo.result_html(loaded, path, beams=1, number=1, temperature=1)
    assert 'role="alert"' in page and "&lt;b&gt;notes.jpg cannot be read: not a picture: no format" in page
    assert str(tmp_path) not in page


def test_mistakes_are_told_before_any_work(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as left:
        demo.main(["--help"])
    assert left.value.code == 0
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs Gradio: pip install 'nanocaption\\[demo\\]'"):
        demo.main([])
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(SystemExit, match="--port 0: must be 1 to 65535"):
        demo.main(["--port", "0"])
    with pytest.raises(SystemExit, match="no run with a checkpoint"):
        demo.main(["--output-dir", str(tmp_path)])


# --- The page ---


@pytest.mark.long  # it imports Gradio and starts Chromium
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(flags, loaded, demo_data, tmp_path):
    """An example, a word, an own picture, a file that is none; wide and on a phone, light and dark."""
    pytest.importorskip("gradio")
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-m", "nanocaption", "demo", *flags]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())[0]
            with browser.browser(tmp_path / "profile") as page:
                use(page, address, loaded, demo_data / "demo" / "images", tmp_path)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert not list((tmp_path / "tmp").glob("nanocaption-demo-*"))  # no picture stays behind
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["profile", "tmp"]


def press(page: browser.Page, word: str, pressed: str) -> None:
    """Click a word until it is pressed, or is not: clicks miss it while the page still scrolls to its result."""
    for _ in range(50):
        if page.run(f"document.querySelector('{word}').getAttribute('aria-pressed')") == pressed:
            return
        page.mouse(word, click=True)
    raise AssertionError(f"{word} was not reached")


def use(page: browser.Page, address: str, loaded: Loaded, images: Path, folder: Path) -> None:
    how = {"beams": loaded.settings.BEAM_SIZE, "number": 3, "temperature": 1}
    first = "document.querySelector('.nc.result .caption')"
    picture, own = demo.held_out(loaded)[1], sorted(images.iterdir())[0]
    best, other = (" ".join(demo.find_captions(loaded, path, **how).beam[0].text.split()) or "no words"
                   for path in (picture, own))  # fmt: skip
    page.send("Page.addScriptToEvaluateOnNewDocument", source="new PerformanceObserver(list => (window.asked ??= [])"
              ".push(...list.getEntries().map(e => e.name))).observe({type: 'resource', buffered: true})")  # fmt: skip
    page.size(1280, 800)
    page.open(address)
    page.until("document.querySelectorAll('#examples img').length === 12")
    page.mouse("#examples button:nth-child(2)", click=True)
    page.until("document.querySelectorAll('.nc.result li').length >= 4")
    assert page.run(f"{first}.textContent") == best
    assert page.run("document.querySelector('.nc.result img').naturalWidth") == 160  # shown, as large as the file
    assert page.run("document.querySelector('.nc.result .chance').textContent").strip()[-1] in "%0123456789"

    veil = "getComputedStyle(document.querySelector('.nc .veil'))"
    assert page.run(f"{veil}.opacity") == "0"
    press(page, ".nc.result .word:nth-child(2)", "true")
    page.mouse(None)
    assert page.run(f"{veil}.opacity") == "1" and "data:image/png" in page.run(f"{veil}.maskImage")
    one = page.run(f"{veil}.maskImage")
    press(page, ".nc.result li:nth-child(2) .word:nth-child(4)", "true")
    assert page.run(f"{veil}.maskImage") != one
    page.picture(folder / "wide.png")
    press(page, ".nc.result li:nth-child(2) .word:nth-child(4)", "false")
    page.mouse(None)
    assert page.run(f"{veil}.opacity") == "0"

    page.size(390, 844, dark=True)
    page.run("window.before = document.querySelector('.nc.result img').src")
    page.choose_file("#drop button", own)
    page.until("document.querySelector('.nc.result img').src !== before")
    page.until(f"{first}.textContent === {json.dumps(other)}")
    page.until("document.querySelector('#drop button') !== null")  # ready for the next one
    assert page.run("document.documentElement.scrollWidth") == 390
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    assert max(int(level) for level in re.findall(r"\d+", dark)[:3]) < 64
    page.picture(folder / "phone.png")

    (folder / "notes.jpg").write_text("no picture")
    page.choose_file("#drop button", folder / "notes.jpg")
    page.until("document.querySelector('.nc.problem') !== null")
    assert page.run("document.querySelector('.nc.problem').textContent").startswith("notes.jpg cannot be read: not a p")

    page.mouse("#examples button:nth-child(1)", click=True)  # goes on as before
    page.until("document.querySelectorAll('.nc.result li').length >= 4")
    asked = page.run("window.asked")
    assert len(asked) > 5 and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert page.errors == []
