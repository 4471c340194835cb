"""A page in the browser: drop a picture, read its captions, tap a word to see what it looked at.

    nanocaption demo                                            the newest run's best checkpoint
    nanocaption demo runs/demo-001/last.safetensors --port 7861
    nanocaption demo my_captioner --host 0.0.0.0                an exported folder, for all who reach this machine
    nanocaption demo CHECKPOINT --images FOLDER                 with a field to search that folder's pictures by words

A model that was trained on questions (docs/questions.md) gets a field for them, and answers.

It needs Gradio: pip install 'nanocaption[demo]'. The pictures stay on this machine, and each is deleted when it is
answered. Programs ask the same address, at its endpoint /caption, or /ask for answers: see docs/serve.md.
"""

import contextlib
import functools
import html
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from nanocaption.base import cli
from nanocaption.base.files import locked
from nanocaption.base.shown import shown
from nanocaption.commands import ask, visitors
from nanocaption.commands.caption import caption_row

if TYPE_CHECKING:  # these import torch, and Gradio
    import gradio
    from torch import Tensor

    from nanocaption.data.questions import Asking
    from nanocaption.model.captions import CaptionText
    from nanocaption.model.options import Options
    from nanocaption.use.attention import JsonMaps
    from nanocaption.use.index import Index
    from nanocaption.use.load import Loaded

_PARSER = cli.parser("nanocaption demo", __doc__)
_PARSER.add_argument(
    "checkpoint", nargs="?", help="a checkpoint file or an exported folder [the best of the newest run]"
)
_PARSER.add_argument("--port", type=int, help="of the page's address [the first free one from 7860]")
_PARSER.add_argument("--host", default="127.0.0.1", help="0.0.0.0 = open to the network [127.0.0.1, this machine only]")
_PARSER.add_argument("--images", type=Path, metavar="FOLDER", help="whose pictures visitors may search, and see")
_PARSER.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
EXAMPLES = 12
FOUND, QUERY_LETTERS, THUMBNAIL = 24, 300, 240  # pictures of a search; longest query; pixels
MAX_CAPTIONS, MAX_BEAMS = 8, 10
SHOWN_SIDE = 960  # pixels: a phone's picture is sent back smaller
FIRST_QUESTION = "Is there a house in the picture?"
SESSIONS = 200  # whose picture is remembered, some 0.3 MB each; of more the oldest forgets it
T = TypeVar("T")


def main(argv: list[str]) -> None:
    """Serve the page that argv describes until Ctrl-C."""
    arguments, settings = cli.parse(_PARSER, argv)
    if importlib.util.find_spec("gradio") is None:
        raise SystemExit("The demo page needs Gradio: pip install 'nanocaption[demo]'")
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise SystemExit(f"--port {arguments.port}: must be 1 to 65535")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    from nanocaption.use.load import find_checkpoint, is_exported, load_models

    path = find_checkpoint(arguments.checkpoint, settings.OUTPUT_DIR)
    print(f"{path}: starting the page ...", file=sys.stderr)
    loaded = load_models([path], settings)
    index = index_of(loaded, path, arguments.images, settings.DATA_DIR) if arguments.images else None
    title = f"{path.parent.name}/{path.name}" if not is_exported(path) else path.parent.resolve().name
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the pictures are deleted
    with (
        tempfile.TemporaryDirectory(prefix="nanocaption-demo-") as folder,
        locked(Path(folder) / ".lock", ""),  # for `nanocaption clean`: this page is served
    ):
        os.environ["GRADIO_TEMP_DIR"] = folder
        import gradio as gr
        from starlette.middleware import Middleware

        uploads = visitors.Uploads(Path(folder) / "uploads")
        page = build_page(loaded, title, held_out(loaded), uploads, index)
        css, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("demo.css", "demo.js"))
        try:
            _, address, public = page.launch(
                server_name=arguments.host, server_port=arguments.port, share=arguments.share, show_error=True,
                quiet=True, prevent_thread_lock=True, run_history=False, footer_links=[], css=css,
                head=f"<script>\n{script}</script>", enable_monitoring=False, ssr_mode=False,
                max_file_size=visitors.UPLOAD_BYTES, state_session_capacity=SESSIONS, max_threads=4 * visitors.WAITING,
                app_kwargs={"middleware": [Middleware(visitors.Guard, uploads=uploads, folder=Path(folder))]},
                theme=gr.themes.Default(primary_hue="orange", font=["system-ui", "sans-serif"],
                                        font_mono=["ui-monospace", "monospace"]),
            )  # fmt: skip
        except OSError as error:
            place = f"--host {arguments.host}" + (f" --port {arguments.port}" if arguments.port else "")
            raise SystemExit(f"{place}: taken, or not of this machine. Name another, or leave it out.") from error
        except KeyboardInterrupt:  # the server may be up already, before its address is known
            page.close(verbose=False)
            return
        print(f"{path}: {public or address} (Ctrl-C ends it)", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            page.close(verbose=False)


def index_of(loaded: "Loaded", path: Path, folder: Path, data_dir: str) -> "Index":
    """The index of the pictures that visitors may search. SystemExit with one line where they cannot be."""
    from nanocaption.score import results
    from nanocaption.use.index import open_index, place_for, tell_faults

    if loaded.models[0].retrieval is None:
        raise SystemExit(f"--images {folder}: {path} has no contrastive head, which words are found by")
    if not folder.is_dir():
        raise SystemExit(f"--images {folder}: there is no such folder")
    digest = results.digest(path)
    index = open_index(loaded, folder, place_for(data_dir, folder, digest), digest)
    tell_faults(index)
    return index


def held_out(loaded: "Loaded") -> list[Path]:
    """The first pictures of the model's own test split, if that very data set is on this disk; else none."""
    from nanocaption.data.prepared import folder_name, load_records

    settings, state = loaded.settings, loaded.states[0]
    folder = Path(settings.DATA_DIR) / folder_name(settings.DATASET)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["captions_sha256"] != state.get("captions_sha256"):
            return []  # other captions, perhaps another split: these pictures may have been trained on
        records = load_records(folder, settings.TEST_SPLITS)
    except (OSError, ValueError, KeyError):
        return []
    if "stream" in manifest:
        return []  # the page shows files
    paths = [folder / "images" / record["file_name"] for record in records[:EXAMPLES]]
    return [path for path in paths if path.is_file()]


class Seen(NamedTuple):
    """A picture as the model is given it, and as it is shown."""

    pixels: "Tensor"  # uint8 (1, 3, S, S), on the CPU
    shown: str  # a small JPEG, as a data URI
    ratio: float  # width : height
    box: list[float]  # what of it the model saw, see transform.seen_part


class Problem(NamedTuple):
    """Why a picture cannot be seen, as HTML."""

    text: str


class Found(NamedTuple):
    """What there is to say of a picture, each kind of captions with the best first."""

    beam: "list[CaptionText]"
    sampled: "list[CaptionText]"
    maps: "list[JsonMaps]"  # what the words of both looked at


def look(loaded: "Loaded", path: Path) -> Seen:
    """A picture, read. ValueError where that is not possible, or it has more pixels than a visitor's may have."""
    from nanocaption.data.pictures import data_uri, thumbnail
    from nanocaption.data.transform import load_image, seen_part

    check_pixels(path)
    spec = loaded.models[0].image_spec
    pixels, image, box = load_image(path, spec)[None], thumbnail(path, SHOWN_SIDE), seen_part(path, spec)
    return Seen(pixels, data_uri(image, "JPEG"), image.width / image.height, box)


def check_pixels(path: Path) -> None:
    """Raises PictureError where a picture's header promises more pixels than a visitor's may have."""
    from PIL import Image, UnidentifiedImageError

    from nanocaption.data.pictures import FORMATS, PictureError

    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return  # what is wrong, load_image will say
    if width * height > visitors.MAX_PIXELS:
        most = visitors.MAX_PIXELS / 1e6
        raise PictureError("too large", f"{width} x {height}, above {most:.0f} megapixels")


def look_or_say(loaded: "Loaded", path: Path) -> Seen | Problem:
    """As `look`, with the reason in one line where it is not possible."""
    try:
        return look(loaded, path)
    except ValueError as error:
        return problem(reason_of(path, error))


def problem(text: str) -> Problem:
    return Problem(f'<p class="nc problem" role="alert">{html.escape(shown(text))}</p>')


def reason_of(path: Path, error: ValueError) -> str:
    """Why a picture cannot be read, without where it lies."""
    reason = str(error).removeprefix(f"The picture {path} cannot be read: ")
    return f"{path.name} cannot be read: {reason}"


@contextlib.contextmanager
def computing(loaded: "Loaded") -> Iterator[None]:
    """Without gradients, in the number format of the settings."""
    import torch

    from nanocaption.base import devices

    dtype = devices.pick_dtype(loaded.settings.PRECISION, loaded.device)
    with torch.inference_mode(), devices.autocast(loaded.device, dtype):
        yield


def asking_of(loaded: "Loaded", question: str | None) -> "Asking | None":
    """What a visitor asks; None of a model that captions. ValueError where it is no question, or too long for it."""
    from nanocaption.model.answers import refuse_long

    if not loaded.settings.QUESTIONS:
        return None
    if told := ask.question_problem(question or ""):
        raise ValueError(told)
    (asking,) = ask.read_questions([question or ""], loaded.settings.CAPTION_CASE)
    refuse_long(loaded.tokenizer, asking, loaded.models[0].decoder.max_seq_len)
    return asking


def decode(
    loaded: "Loaded", pixels: "Tensor", asking: "Asking | None", options: "Options"
) -> "list[CaptionText]":
    """Captions of one picture, or where something is asked about it, answers; the best first."""
    from nanocaption.model.answers import answer_questions
    from nanocaption.model.captions import decode_pictures

    if asking is None:
        return decode_pictures([loaded.models[0]], loaded.tokenizer, [pixels], options)[0]
    return answer_questions([loaded.models[0]], loaded.tokenizer, [pixels], [(0, asking)], options)[0]


def find_captions(
    loaded: "Loaded", picture: Path | Seen, *, beams: int, number: int, temperature: float, question: str | None = None
) -> Found:
    """Captions of a picture, `number` of each kind, or answers; the search takes as many beams at least.

    ValueError where the picture cannot be read, or the question.
    """
    from nanocaption.model.answers import head_of
    from nanocaption.model.options import search_options
    from nanocaption.use.attention import attend

    seen = look(loaded, picture) if isinstance(picture, Path) else picture
    model, pixels, asking = loaded.models[0], seen.pixels.to(loaded.device), asking_of(loaded, question)
    search = search_options(loaded.settings.values)._replace(beam_size=max(beams, number))
    draw = search._replace(samples=number, temperature=temperature)
    with computing(loaded):
        found = [decode(loaded, pixels, asking, options) for options in (search, draw)]
        beam, sampled = found[0][:number], found[1]
        ids = [caption.ids for caption in beam + sampled]
        head = head_of(loaded.tokenizer, asking, model.decoder.max_seq_len) if asking else None
        maps = attend(model, loaded.tokenizer, pixels, ids, head and [head] * len(ids))
    return Found(beam, sampled, maps)


def answer(
    loaded: "Loaded", title: str, path: Path, number: int, beams: int, question: str | None = None
) -> dict[str, object]:
    """What the endpoint /caption says of a picture, or /ask to a question: those of a search, the best first.

    ValueError with one line where it cannot be read, or the question.
    """
    from nanocaption.model.options import search_options

    asking = asking_of(loaded, question)
    try:
        pixels = look(loaded, path).pixels.to(loaded.device)
    except ValueError as error:
        raise ValueError(reason_of(path, error)) from error
    options = search_options(loaded.settings.values)._replace(beam_size=max(beams, number))
    with computing(loaded):
        rows = [caption_row(found) for found in decode(loaded, pixels, asking, options)[:number]]
    if asking is None:
        return {"captions": rows, "model": title}
    return {"answers": [{"answer": row.pop("caption"), **row} for row in rows], "question": question, "model": title}


def whole_number(value: object, low: int, high: int) -> int:
    """What a visitor sent for a number, within its bounds; the lower one for what is none."""
    number = value if isinstance(value, int | float) and math.isfinite(value) else low
    return max(low, min(high, int(number)))


class Handlers(NamedTuple):
    """What the page does when it is used, and its endpoint: functions for Gradio, which gives them the request."""

    take: Callable[..., object]  # an uploaded file -> (what was seen in it, an empty drop zone)
    show: Callable[..., object]  # what was seen, the settings and the question -> HTML
    caption: Callable[..., object]  # a file, how many, beams -> what `answer` gives
    ask: Callable[..., object]  # a file, a question, how many, beams -> the same
    search: Callable[..., object]  # words -> HTML


def make_handlers(
    loaded: "Loaded", title: str, uploads: visitors.Uploads, index: "Index | None" = None
) -> Handlers:
    """Each takes its visitor's turn, and deletes the upload when it ends."""
    import gradio as gr

    turns = visitors.Turns()

    async def turn(request: gr.Request, work: Callable[[], T]) -> T:
        address = request.client.host if request.client else ""
        return await turns.take(visitors.visitor_of(address, request.cookies.get(visitors.COOKIE, "")), work)

    async def take(file: dict[str, object] | None, request: gr.Request) -> tuple[Seen | Problem | None, None]:
        if file is None:
            return None, None
        try:  # as an error it would stay in the drop zone
            with uploads.take(file.get("path"), request.cookies.get(visitors.COOKIE, "")) as path:
                return await turn(request, functools.partial(look_or_say, loaded, path)), None
        except visitors.Refused as refused:
            return problem(str(refused)), None

    async def show(
        picture: Seen | Problem | Path | None, beams: float, number: float, temperature: float, question: str,
        request: gr.Request,
    ) -> str:  # fmt: skip
        if picture is None or isinstance(picture, Problem):
            return picture.text if picture else ""
        how = {"beams": whole_number(beams, 1, MAX_BEAMS), "number": whole_number(number, 1, MAX_CAPTIONS),
               "temperature": max(0.0, min(2.0, temperature)), "question": question}  # fmt: skip
        with told_by(gr):
            return await turn(request, functools.partial(result_html, loaded, picture, **how))

    async def caption(
        picture: dict[str, object] | None, num_captions: float, beam_size: float, request: gr.Request
    ) -> dict[str, object]:
        """Captions of a picture, the best first, each with the natural logarithm of its probability."""
        return await said(picture, num_captions, beam_size, None, request)

    async def ask(
        picture: dict[str, object] | None, question: str, num_answers: float, beam_size: float, request: gr.Request
    ) -> dict[str, object]:
        """Answers to a question about a picture, the best first, each with the logarithm of its probability."""
        return await said(picture, num_answers, beam_size, question, request)

    async def said(
        picture: dict[str, object] | None, most: float, beam_size: float, question: str | None, request: gr.Request
    ) -> dict[str, object]:
        number, beams = whole_number(most, 1, MAX_CAPTIONS), whole_number(beam_size, 1, MAX_BEAMS)
        if picture is None:
            raise gr.Error("No picture was sent.", print_exception=False)
        with told_by(gr), uploads.take(picture.get("path"), request.cookies.get(visitors.COOKIE, "")) as path:
            return await turn(request, functools.partial(answer, loaded, title, path, number, beams, question))

    async def search(words: object, request: gr.Request) -> str:
        if index is None or not isinstance(words, str) or not words.strip():
            return ""
        with told_by(gr):
            return await turn(request, functools.partial(found_html, loaded, index, words[:QUERY_LETTERS]))

    return Handlers(take, show, caption, ask, search)


def build_page(
    loaded: "Loaded", title: str, examples: Sequence[Path], uploads: visitors.Uploads, index: "Index | None" = None
) -> "gradio.Blocks":
    """The page and its endpoint. examples: pictures that are offered on it. index: of those that can be searched."""
    import gradio as gr

    take, show, caption, answers, search = make_handlers(loaded, title, uploads, index)
    asks = loaded.settings.QUESTIONS
    # Whose turn it is Turns says, not Gradio's queue.
    alone = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    with gr.Blocks(title=f"nanoCaption: {title}", analytics_enabled=False) as page:
        asked = "Ask about a picture" if asks else "What is in this picture?"
        head = f'<header class="nc"><h1>{asked}</h1><p>{html.escape(title)}</p></header>'
        gr.HTML(head, apply_default_css=False)
        chosen = gr.State()
        question = gr.Textbox(FIRST_QUESTION if asks else "", label="Your question", visible=asks, elem_id="question",
                              max_length=ask.MAX_CHARACTERS)  # fmt: skip
        drop = gr.File(label="Your picture", file_types=["image"], height=132, elem_id="drop")
        gr.HTML(f'<p class="nc limits">{visitors.TOLD}</p>', apply_default_css=False)
        result = gr.HTML(elem_id="result", apply_default_css=False)
        if examples:
            images = gr.Dataset(
                label="Pictures the model was not trained on", components=[gr.Image(render=False)],
                samples=[[str(path.resolve())] for path in examples], elem_id="examples", samples_per_page=EXAMPLES,
            )  # fmt: skip
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            what = "Answers" if asks else "Captions"
            number = gr.Slider(1, MAX_CAPTIONS, 3, step=1, label=f"{what} of each kind")
            first = min(loaded.settings.BEAM_SIZE, MAX_BEAMS)
            beams = gr.Slider(1, MAX_BEAMS, first, step=1, label="Beam size", info="1 = greedy")
            temperature = gr.Slider(
                0, 2, 0.7, step=0.1, label="Temperature", info=f"of the random {what.lower()}: lower = likelier words"
            )
            again = gr.Button("Ask again" if asks else "Caption it again")
        if index is not None:
            words = gr.Textbox(label=f"Search {len(index.names):,} pictures", placeholder="a dog in the snow",
                               max_lines=1, max_length=QUERY_LETTERS, elem_id="words")  # fmt: skip
            pictures = gr.HTML(elem_id="found", apply_default_css=False)
            words.submit(search, words, pictures, **(alone | {"show_progress": "full"}))
        inputs = [chosen, beams, number, temperature, question]
        follow = {"fn": show, "inputs": inputs, "outputs": result, "scroll_to_output": True} | alone
        follow["show_progress"] = "full"
        # The drop zone is emptied at once, ready for the next picture: the result shows this one. Without `preprocess`
        # Gradio hands over where the file lies, and makes no other of it.
        drop.upload(take, drop, [chosen, drop], preprocess=False, **alone).success(**follow)
        if examples:
            images.click(lambda place: examples[place], images, chosen, **alone).success(**follow)
            images.type = "index"
        again.click(**follow)
        question.submit(**follow)
        picture, many = gr.File(visible=False, label="picture"), gr.Number(1, visible=False)
        wide, found = gr.Number(first, visible=False), gr.JSON(visible=False)
        asked_for, endpoint = ([gr.Textbox(visible=False, label="question")], "ask") if asks else ([], "caption")
        gr.Button(visible=False).click(
            answers if asks else caption, [picture, *asked_for, many, wide], found, api_name=endpoint, preprocess=False,
            concurrency_limit=None,
        )  # fmt: skip
    return page.queue(max_size=8 * visitors.WAITING)


@contextlib.contextmanager
def told_by(gr: ModuleType) -> Iterator[None]:
    """What is refused, and a picture that cannot be read, becomes the one line that Gradio tells the visitor."""
    try:
        yield
    except (visitors.Refused, ValueError) as error:
        raise gr.Error(str(error), duration=10, print_exception=False) from None


def result_html(
    loaded: "Loaded", picture: Path | Seen | Problem, *, beams: int, number: int, temperature: float,
    question: str | None = None,
) -> str:  # fmt: skip
    """A picture with its captions, each word a button that holds its map; or, in one line, why there are none.

    question: of a model that answers; then these are answers.
    """
    seen = look_or_say(loaded, picture) if isinstance(picture, Path) else picture
    if isinstance(seen, Problem):
        return seen.text
    try:
        found = find_captions(loaded, seen, beams=beams, number=number, temperature=temperature, question=question)
    except ValueError as error:
        return problem(str(error)).text
    likeliest = max(caption.log_prob for caption in found.beam + found.sampled)
    parts, maps = [], iter(found.maps)
    whole = "answer" if loaded.settings.QUESTIONS else "caption"
    kinds = (("Beam search", f"and the probability of the whole {whole}", found.beam),
             ("Drawn at random", "likelier words more often", found.sampled))  # fmt: skip
    for heading, note, captions in kinds:
        counts = Counter(caption.text for caption in captions)
        rows = {c.text: caption_html(c, counts[c.text], likeliest, next(maps)) for c in captions}
        parts.append(f'<h2>{heading} <small>{note}</small></h2><ol>{"".join(rows.values())}</ol>')
    x, y, right, bottom = seen.box
    place = f"--ratio:{seen.ratio};--x:{x};--y:{y};--w:{right - x};--h:{bottom - y}"
    return (
        f'<div class="nc result"><figure><div class="stage" style="{place}">'
        f'<img src="{seen.shown}" alt="the picture"><div class="veil"></div></div>'
        "<figcaption>Tap a word: the picture stays light where the model looked.</figcaption></figure>"
        f'<div>{"".join(parts)}</div></div>'
    )


def found_html(loaded: "Loaded", index: "Index", words: str) -> str:
    """The pictures of the index that are nearest to these words, small, the nearest first."""
    from nanocaption.data.pictures import data_uri, thumbnail
    from nanocaption.use.index import query_vector, search

    cards, gone = [], 0
    for hit in search(index, query_vector(loaded, words), FOUND):
        try:
            picture = data_uri(thumbnail(hit.path, THUMBNAIL), "JPEG")
        except (ValueError, OSError):
            gone += 1  # since the index was made
            continue
        name = html.escape(hit.path.name)
        cards.append(f'<li><img src="{picture}" alt="{name}" title="{name}"><span>{hit.cosine:.2f}</span></li>')
    note = f'<p class="nc limits">{gone} of the nearest are no longer there.</p>' if gone else ""
    return f'<ol class="nc found">{"".join(cards)}</ol>{note}'


def caption_html(caption: "CaptionText", count: int, likeliest: float, maps: "JsonMaps") -> str:
    """One caption as a list entry. likeliest: the log-probability whose bar is full; count: how often it was drawn."""
    words = " ".join(
        f'<button type="button" class="word" aria-pressed="false" data-map="{mask(maps, word["weights"])}">'
        f'{html.escape(shown(word["text"]))}</button>'
        for word in maps["words"]
    )
    share = 100 * math.exp(caption.log_prob - likeliest)
    times = f" · drawn {count} times" if count > 1 else ""
    return (
        f'<li><p class="caption" dir="auto">{words or "<em>no words</em>"}</p>'
        f'<p class="chance" style="--share:{share:.1f}%">{chance(caption.log_prob)}{times}</p></li>'
    )


def chance(log_prob: float) -> str:
    """A log-probability for people: "12 %", "0.35 %", and below a thousandth "1 in 12,000"."""
    probability = math.exp(log_prob)
    if probability >= 0.001:
        return f"{float(f'{100 * probability:.2g}'):g} %"
    return f"1 in {float(f'{math.exp(min(-log_prob, 700)):.2g}'):,.0f}" if log_prob > -35 else "nearly 0 %"


def mask(maps: "JsonMaps", weights: Sequence[int]) -> str:
    """A word's map as a small PNG (data URI): the more opaque, the more it looked there."""
    from PIL import Image

    from nanocaption.data.pictures import data_uri

    low, high = min(weights), max(weights)
    alpha = bytes(round(255 * (weight - low) / max(1, high - low)) for weight in weights)
    image = Image.new("LA", (maps["cols"], maps["rows"]))
    image.putalpha(Image.frombytes("L", image.size, alpha))
    return data_uri(image, "PNG")
