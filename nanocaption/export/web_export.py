"""The folder of `--format web`: an ONNX export (onnx_export.py) with a page beside it that captions in a browser.

    index.html, style.css, *.js     the page, see page/; nothing of it is generated but the title
    ort.wasm.bundle.min.js, ort-wasm-simd-threaded.wasm   onnxruntime-web, with its licence; see web_runtime.py
    endings.json                    of models with NO_BAD_ENDINGS: which bytes lead to a bad ending
    files.js                        length and sha256 of all these, and a version made of them
Any server of static files serves it, from any path.
"""

import hashlib
import html
import json
from pathlib import Path

from nanocaption.base.tensors import State
from nanocaption.export import onnx_export, web_runtime
from nanocaption.export.onnx_export import Compared
from nanocaption.model import ending_tables, exported, onnx_folder

_PAGE = Path(__file__).with_name("page")
_FILES_JS, _SERVICE_WORKER = "files.js", "service-worker.js"
_NOT_LISTED = (
    "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", _FILES_JS, _SERVICE_WORKER,
)  # fmt: skip
_ENDINGS, _LICENCE = "endings.json", "ONNXRUNTIME-LICENSE.txt"
_RUNTIME = {web_runtime.BUNDLE: "ort.wasm.bundle.min.js", web_runtime.WASM: web_runtime.WASM}  # .mjs: some hosts fail
_MIT = """onnxruntime-web {version}: {files}

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def files_of(precision: str, endings: bool) -> tuple[str, ...]:
    """What a folder holds, in the order of writing: who looks in between gets files that fit together, or is told."""
    page = sorted(path.name for path in _PAGE.iterdir() if path.name != _SERVICE_WORKER)
    more = (_ENDINGS,) if endings else ()
    return (*onnx_export.files_of(precision), *_RUNTIME.values(), _LICENCE, *more, *page, _FILES_JS, _SERVICE_WORKER)


def write_web(
    folder: Path, state: State, card: str, precision: str, runtime: dict[str, bytes], title: str, language: str | None
) -> tuple[Compared, int]:
    """Write `folder` from a checkpoint's state; returns how its model does beside torch, and the bytes of the rest.

    precision: "fp32" or "int8". runtime: of web_runtime.find_runtime. title: of the page. language: of the captions,
    "en", or None where it is not known. Raises as onnx_export.write_onnx.
    """
    endings = bool(state["config"].get("NO_BAD_ENDINGS"))
    with exported.made_beside(folder, files_of(precision, endings), onnx_folder.is_page) as new:
        own = files_of(precision, endings)[len(onnx_export.files_of(precision)) :]
        (found,) = onnx_export.fill(new, state, card, precision, own)
        for name, stored in _RUNTIME.items():
            (new / stored).write_bytes(runtime[name])
        names = " and ".join(_RUNTIME.values())
        (new / _LICENCE).write_text(_MIT.format(version=web_runtime.VERSION, files=names), encoding="utf-8")
        if endings:
            (new / _ENDINGS).write_text(json.dumps(_automaton()), encoding="utf-8")
        _write_page(new, title, language)
        _write_digests(new, precision)
        rest = sum(path.stat().st_size for path in new.iterdir() if path.suffix != ".wasm")
    onnx_export.drop_other_graphs(folder, precision)
    if not endings:
        (folder / _ENDINGS).unlink(missing_ok=True)
    return found, rest


def _write_page(folder: Path, title: str, language: str | None) -> None:
    """The files of page/, with what they leave open."""
    for path in _PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            tongue = f'lang="{html.escape(language)}"' if language else 'lang=""'
            text = text.replace("{title}", html.escape(title)).replace("{language}", tongue)
        elif path.suffix == ".webmanifest":
            text = text.replace('"{title}', json.dumps(title)[:-1])
        (folder / path.name).write_text(text, encoding="utf-8", newline="\n")


def _write_digests(folder: Path, precision: str) -> None:
    """files.js: the page and its service worker know by it what belongs together."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir()) if path.name not in _NOT_LISTED
    }  # fmt: skip
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    content = {"version": version, "graphs": onnx_folder.graph_names(precision), "files": files}
    (folder / _FILES_JS).write_text(f"self.NANOCAPTION = {json.dumps(content, indent=1)};\n", encoding="utf-8")


def _automaton() -> dict[str, object]:
    """ending_tables.automaton, JSON-ready, flat."""
    after, bad = ending_tables.automaton()
    return {"after": after.ravel().tolist(), "bad": bad.astype(int).tolist(), "closed": ending_tables.CLOSED}
