"""The page of --format web in a browser: captions of Python, no other host, offline, by keyboard, on a phone, dark."""

import base64
import contextlib
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nanocaption
from nanocaption.commands import export
from nanocaption.data.picture_forms import fitted_form
from nanocaption.data.pictures import ORIENTATION
from nanocaption.export import web_export, web_runtime
from nanocaption.model.onnx_captioner import OnnxCaptioner
from nanocaption.use.attention import words_of
from tests import browser
from tests.run.test_transformers import make_checkpoint

pytestmark = [
    pytest.mark.long,  # it exports, and starts Chromium
    pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium"),
]
STATUS = "document.getElementById('status').textContent"
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
# A file as a visitor drops it.
DROP = """((text, name, type) => {
  const moved = new DataTransfer();
  moved.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type}));
  for (const kind of ["dragover", "drop"]) {
    const event = new DragEvent(kind, {dataTransfer: moved, bubbles: true, cancelable: true});
    document.getElementById("drop").dispatchEvent(event);
  }
})"""
# The page's worker and its reader of pictures, asked directly.
ASK = """
window.ask = text => new Promise(done => {
  window.own ??= new Worker("worker.js", {type: "module"});
  own.onmessage = ({data}) => "id" in data && done(data);
  own.postMessage({id: 1, blob: new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))])});
});
window.pixels = async (text, type, spec) => {
  const {readPicture} = await import("./pictures.js");
  const {pixels} = await readPicture(new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))], {type}), spec);
  return btoa(String.fromCharCode(...pixels));
};
0"""
# The least contrast of any text on the page with what is painted behind it, and where.
CONTRAST = """(() => {
  const levels = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => levels(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((levels(color)[3] ?? 1) > 0) return color;
    }
  };
  const texts = [...document.querySelectorAll("body *")].filter(node => node.offsetParent && !node.closest(".hidden")
    && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
  return texts.map(node => {
    const [a, b] = [getComputedStyle(node).color, behind(node)].map(light).sort((a, b) => b - a);
    return [(a + 0.05) / (b + 0.05), node.id || node.className || node.tagName];
  }).sort((a, b) => a[0] - b[0])[0];
})()"""


class Served:
    """A folder on a port of its own. asked: the paths that it was asked for."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, []

    @contextlib.contextmanager
    def up(self, port: int = 0) -> Iterator[str]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Handler, self))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.port = server.server_port
        try:
            yield f"http://127.0.0.1:{self.port}/some/where/"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, served: Served, *arguments: object):
        self.served = served
        super().__init__(*arguments, directory=str(served.folder))

    def do_GET(self) -> None:
        self.served.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def in_a_field(text: str) -> str:
    """A text as a text field of a page gives it back, whose lines end with "\\n" alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """some/where/: the page of an untrained model, whose captions differ from picture to picture."""
    place = tmp_path_factory.mktemp("web")
    try:
        web_runtime.find_runtime()
    except ValueError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")
    path = make_checkpoint("ViT", place, "--beam-size 3 --length-penalty 0.7 --min-length 4 --no-repeat-ngram 2")
    export.main([str(path), str(place / "site" / "some" / "where"), "--format", "web"])
    return place / "site"


@pytest.fixture(scope="module")
def light(site) -> OnnxCaptioner:
    return nanocaption.load(site / "some" / "where")


@pytest.fixture(scope="module")
def photos(demo_data) -> list[Path]:
    return sorted((demo_data / "demo" / "images").iterdir())[:8]


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def drop(page: browser.Page, path: Path) -> None:
    page.run(f"{DROP}({json.dumps(encoded(path))}, {json.dumps(path.name)}, 'image/{path.suffix[1:]}')")
    page.until(f"/Found in|cannot/.test({STATUS})", 300)


def forms(photo: Path, folder: Path) -> list[Path]:
    """Pictures as people have them: turned by EXIF, grey, with alpha, of a palette, CMYK, odd in shape."""
    folder.mkdir()
    image = Image.open(photo).convert("RGB").crop((0, 0, 150, 97))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.save(folder / f"turned{orientation}.jpeg", exif=exif, quality=92)
    ramp = Image.linear_gradient("L").resize(image.size)
    with_alpha = image.copy()
    with_alpha.putalpha(ramp)
    with_alpha.save(folder / "alpha.png")
    with_alpha.save(folder / "alpha.webp", lossless=True)
    image.convert("L").save(folder / "grey.jpeg")
    image.convert("1").save(folder / "two.png")
    image.quantize(31).save(folder / "palette.gif")
    image.convert("CMYK").save(folder / "cmyk.jpeg", quality=95)
    image.resize((900, 70)).save(folder / "long.png")
    image.resize((11, 12)).save(folder / "small.bmp")
    return sorted(folder.iterdir())


def test_pixels_and_captions_are_those_of_python(site, light, photos, tmp_path):
    served = Served(site)
    with served.up() as address, browser.browser(tmp_path / "profile") as page:
        page.open(address)
        page.run(ASK)
        spec = json.dumps(light.export.image_spec)
        for path in [*photos[:2], *forms(photos[0], tmp_path / "forms")]:
            kind = path.suffix[1:].replace("jpg", "jpeg")
            text = page.run(f"pixels({json.dumps(encoded(path))}, 'image/{kind}', {spec})")
            own = fitted_form(path, light.export.image_spec)
            found = np.frombuffer(base64.b64decode(text), np.uint8).reshape(own.shape)
            assert np.array_equal(found, own), (path.name, np.abs(found.astype(int) - own).max())
        texts = set()
        for photo in photos:
            found = page.run(f"ask({json.dumps(encoded(photo))})")["captions"]
            own = light.captions([photo], attention=True)[0]
            assert [one["ids"] for one in found] == [one.ids for one in own]
            assert [one["text"] for one in found] == [one.text for one in own]
            assert np.allclose([one["logProb"] for one in found], [one.log_prob for one in own], atol=1e-3)
            for one, ours in zip(found, own, strict=True):
                words = words_of(light.tokenizer, ours.ids)
                assert [word["text"] for word in one["words"]] == [text for text, _ in words]
                for word, (_, places) in zip(one["words"], words, strict=True):
                    looked = list(word["map"].values())
                    assert np.allclose(looked, ours.attention[places].mean(0).ravel(), atol=1e-4)
                whole = np.prod([word["probability"] for word in one["words"]])
                assert np.isclose(whole, chance(light, photo, ours.ids), rtol=0.01)
            texts.add(own[0].text)
        assert len(texts) > 2  # pictures make a difference, so that another one's caption would be seen
        assert page.errors == []


def chance(light: OnnxCaptioner, photo: Path, ids: list[int]) -> float:
    """The probability of a caption's tokens, without that of its end."""
    step = light.start_decoding(light.encode(fitted_form(photo, light.export.image_spec)[None]))
    total = 0.0
    for before, token in zip([1, *ids], ids, strict=False):
        logits = step(np.array([before]), None)[0].astype(np.float64)
        total += logits[token] - np.logaddexp.reduce(logits)
    return float(np.exp(total))


def test_a_visitor_drops_chooses_photographs_and_copies(site, light, photos, tmp_path):
    served = Served(site)
    with served.up() as address, browser.browser(tmp_path / "profile", *CAMERA) as page:
        page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        page.size(1280, 900)
        page.open(address)
        page.until(f"/Ready|cannot/.test({STATUS})", 300)
        drop(page, photos[0])
        best = light.captions([photos[0]])[0]
        assert page.run("document.getElementById('alt').value") == in_a_field(best[0].text)
        assert page.run("picture.alt") == best[0].text
        shown = page.run("[...document.querySelectorAll('#others button')].map(b => b.firstChild.data)")
        assert shown == [one.text or "(no words)" for one in best]
        assert page.run(STATUS).startswith(f"Caption: {best[0].text}")  # what a screen reader says
        # By keyboard: words, by arrows within them; what one looked at darkens the rest.
        page.run("document.querySelector('#words button').focus()")
        page.key("ArrowRight")
        assert page.run("document.activeElement === document.querySelectorAll('#words button')[1]")
        dark = "veil.getContext('2d').getImageData(0, 0, veil.width, veil.height).data.some(level => level)"
        assert not page.run(dark)
        page.key("Enter")
        assert page.run(dark) and page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert "looked" in page.run("looked.textContent")
        page.key("Enter")
        assert not page.run(dark)
        page.mouse("#others li:nth-child(2) button", click=True)
        assert page.run("document.getElementById('alt').value") == in_a_field(best[1].text)
        page.run("document.getElementById('alt').value += ' Mended.'")
        page.mouse("#copy", click=True)
        page.until(f"{STATUS}.startsWith('Copied')")
        assert page.run("navigator.clipboard.readText()") == f"{best[1].text} Mended."
        page.choose_file("#open", photos[1])
        page.until(f"document.getElementById('alt').value === {json.dumps(in_a_field(light.caption(photos[1])))}")
        # What is no picture is one line, and the page goes on.
        for name, content in (("notes.jpeg", b"no picture"), ("empty.png", b"")):
            (tmp_path / name).write_bytes(content)
            drop(page, tmp_path / name)
            assert "cannot be captioned: " in page.run(STATUS) and page.run("result.hidden")
        page.mouse("#photograph", click=True)
        page.until("document.getElementById('camera').open && video.videoWidth > 0")
        page.mouse("#shoot", click=True)
        page.until(f"/Found in/.test({STATUS}) && !result.hidden")
        assert page.run("document.activeElement.id") == "photograph" and page.run("video.srcObject.active") is False
        assert page.errors == []


def test_a_page_for_everybody(site, photos, tmp_path):
    """Names, order and contrast; nothing sticks out of a phone."""
    served = Served(site)
    with served.up() as address, browser.browser(tmp_path / "profile") as page:
        page.size(1280, 900)
        page.open(address)
        page.until(f"/Ready|cannot/.test({STATUS})", 300)
        order = []
        for _ in range(3):
            page.key("Tab")
            order.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        assert order == ["open", "photograph", "A"]
        drop(page, photos[0])
        page.run("document.getElementById('photograph').focus()")
        for _ in range(4):
            page.key("Tab")
            order.append(page.run("document.activeElement.className || document.activeElement.id"))
        assert order[3:] == ["word", "alt", "main", ""]  # the words are one stop
        nodes = page.send("Accessibility.getFullAXTree")["nodes"]
        roles = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
        named = [name for role, name in roles if role in ("button", "textbox", "image", "link", "progressbar")]
        assert len(named) > 8 and all(named)
        assert any(role == "status" for role, _ in roles)
        for width, height in ((1280, 900), (390, 844)):
            for dark in (False, True):
                page.size(width, height, dark)
                assert page.run("document.documentElement.scrollWidth") == width
                least, where = page.run(CONTRAST)
                assert least >= 4.5, (where, least)
                page.picture(tmp_path / f"{width}-{dark}.png", whole=True)
        page.run("document.querySelector('h1').style.color = 'rgb(90 90 90)'")  # so it would be seen, in the dark
        assert page.run(CONTRAST)[0] < 4.5
    with Image.open(tmp_path / "390-False.png") as light, Image.open(tmp_path / "390-True.png") as dark:
        assert light.convert("L").getpixel((2, 2)) > 200 > 60 > dark.convert("L").getpixel((2, 2))


def test_it_asks_no_other_host_and_works_offline_after_the_first_visit(site, light, photos, tmp_path):
    served, text = Served(site), light.caption(photos[0])
    with browser.browser(tmp_path / "profile") as page:
        page.watch()
        with served.up() as address:
            page.open(address)
            page.until("offline.textContent !== ''", 300)
            assert page.run("offline.textContent") == "Works offline from now on."
            large = [path for path in served.asked if path.endswith((".wasm", ".onnx"))]
            assert len(large) == len(set(large)) == 3  # nothing large comes twice
            assert all(path.startswith("/some/where/") for path in served.asked)
            # What the page asked for, its worker (the model) and its service worker (the manifest, to keep it).
            names = ("index.html", "worker.js", ".wasm", ".onnx", "manifest.webmanifest")
            assert all(any(url.endswith(name) for url in page.requests) for name in names)
            elsewhere = [url for url in page.requests if not url.startswith((address, "blob:", "data:"))]
            assert elsewhere == [] and page.errors == []
            page.run("fetch('http://elsewhere.invalid/picture').catch(() => 0)")
            assert "violates the following Content Security Policy" in page.errors[0]
        page.open(address)  # the server is gone
        page.until(f"/Ready|cannot/.test({STATUS})", 300)
        drop(page, photos[0])
        assert page.run("document.getElementById('alt').value") == in_a_field(text)
        page.send("Page.navigate", url="http://elsewhere.invalid/")
        assert any("elsewhere.invalid" in url for url in page.requests)  # so it would have been seen


def test_a_newer_version_comes_whole_or_not_at_all(site, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    served, where = Served(tmp_path / "site"), tmp_path / "site" / "some" / "where"
    title = "document.querySelector('h1').textContent"
    with served.up() as address, browser.browser(tmp_path / "profile") as page:
        page.open(address)
        page.until("offline.textContent !== ''", 300)
        (where / "index.html").write_text((where / "index.html").read_text().replace("<h1>", "<h1>Newer "))
        page.open(address)
        assert not page.run(title).startswith("Newer")  # its digests are the old ones
        web_export._write_digests(where, "int8")
        for _ in range(200):
            page.open(address)
            if page.run(title).startswith("Newer"):
                break
            page.until(f"/Ready|cannot/.test({STATUS})", 300)
        assert page.run(title).startswith("Newer")
        # A host with a part of one version and a part of another: told, not used.
        (where / "tokenizer.json").write_text("{}")
        page.run("caches.keys().then(names => Promise.all(names.map(name => caches.delete(name))))")
        page.open(address)
        page.until(f"/cannot/.test({STATUS})", 300)
        assert "tokenizer.json is not the file that this page was made with" in page.run(STATUS)
