"""A page in the browser: drop a picture, read its captions, tap a word to see what it looked at.

    nanocaption demo                                            the newest run's best checkpoint
    nanocaption demo runs/demo-001/last.safetensors --port 7861
    nanocaption demo my_captioner --host 0.0.0.0                an exported folder, for all who reach this machine

It needs Gradio: pip install 'nanocaption[demo]'. The pictures stay on this machine, and are deleted at the end.
"""

import html
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nanocaption.base import cli

if TYPE_CHECKING:  # these import torch, and Gradio
    import gradio

    from nanocaption.model.captions import CaptionText
    from nanocaption.use.attention import JsonMaps
    from nanocaption.use.load import Loaded

_PARSER = cli.parser("nanocaption demo", __doc__)
_PARSER.add_argument(
    "checkpoint", nargs="?", help="a checkpoint file or an exported folder [the best of the newest run]"
)
_PARSER.add_argument("--port", type=int, help="of the page's address [the first free one from 7860]")
_PARSER.add_argument("--host", default="127.0.0.1", help="0.0.0.0 = open to the network [127.0.0.1, this machine only]")
_PARSER.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
EXAMPLES = 12
MAX_CAPTIONS, MAX_BEAMS = 8, 10
SHOWN_SIDE = 960  # pixels: a phone's picture is sent back smaller


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
    title = f"{path.parent.name}/{path.name}" if not is_exported(path) else path.parent.resolve().name
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the pictures are deleted
    with tempfile.TemporaryDirectory(prefix="nanocaption-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        import gradio as gr

        page = build_page(loaded, title, held_out(loaded))
        css, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("demo.css", "demo.js"))
        try:
            _, address, public = page.launch(
                server_name=arguments.host, server_port=arguments.port, share=arguments.share, show_error=True,
                quiet=True, prevent_thread_lock=True, run_history=False, footer_links=[], css=css,
                head=f"<script>\n{script}</script>", enable_monitoring=False,
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


class Found(NamedTuple):
    """What there is to say of a picture, each kind of captions with the best first."""

    beam: "list[CaptionText]"
    sampled: "list[CaptionText]"
    maps: "list[JsonMaps]"  # what the words of both looked at


def find_captions(loaded: "Loaded", path: Path, *, beams: int, number: int, temperature: float) -> Found:
    """Captions of a picture, `number` of each kind; the search takes as many beams at least.

    ValueError where the picture cannot be read.
    """
    import torch

    from nanocaption.base import devices
    from nanocaption.data.transform import load_image
    from nanocaption.model.captions import decode_pictures, search_options
    from nanocaption.use.attention import attend

    model, settings = loaded.models[0], loaded.settings
    pixels = load_image(path, model.image_spec)[None].to(loaded.device)
    search = search_options(settings.values)._replace(beam_size=max(beams, number))
    draw = search._replace(samples=number, temperature=temperature)
    with torch.inference_mode(), devices.autocast(
        loaded.device, devices.pick_dtype(settings.PRECISION, loaded.device)
    ):
        found = [
            decode_pictures([model], loaded.tokenizer, [pixels], options)[0] for options in (search, draw)
        ]
        beam, sampled = found[0][:number], found[1]
        maps = attend(model, loaded.tokenizer, pixels, [caption.ids for caption in beam + sampled])
    return Found(beam, sampled, maps)


def build_page(loaded: "Loaded", title: str, examples: Sequence[Path]) -> "gradio.Blocks":
    """The page. examples: pictures that are offered on it."""
    import gradio as gr

    def show(path: str | None, beams: float, number: float, temperature: float) -> str:
        if path is None:
            return ""
        return result_html(loaded, Path(path), beams=int(beams), number=int(number), temperature=temperature)

    with gr.Blocks(title=f"nanoCaption: {title}", analytics_enabled=False) as page:
        head = f'<header class="nc"><h1>What is in this picture?</h1><p>{html.escape(title)}</p></header>'
        gr.HTML(head, apply_default_css=False)
        chosen = gr.State()
        drop = gr.File(label="Your picture", file_types=["image"], height=132, elem_id="drop")
        result = gr.HTML(elem_id="result", apply_default_css=False)
        if examples:
            images = gr.Dataset(
                label="Pictures the model was not trained on", components=[gr.Image(render=False)],
                samples=[[str(path.resolve())] for path in examples], elem_id="examples", samples_per_page=EXAMPLES,
            )  # fmt: skip
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            number = gr.Slider(1, MAX_CAPTIONS, 3, step=1, label="Captions of each kind")
            first = min(loaded.settings.BEAM_SIZE, MAX_BEAMS)
            beams = gr.Slider(1, MAX_BEAMS, first, step=1, label="Beam size", info="1 = greedy")
            temperature = gr.Slider(
                0, 2, 0.7, step=0.1, label="Temperature", info="of the random captions: lower = likelier words"
            )
            again = gr.Button("Caption it again")
        inputs = [chosen, beams, number, temperature]
        follow = {"fn": show, "inputs": inputs, "outputs": result, "scroll_to_output": True}
        # The drop zone is emptied at once, ready for the next picture: the result shows this one.
        drop.upload(lambda path: (path, None), drop, [chosen, drop], show_progress="hidden").then(**follow)
        if examples:
            images.click(lambda place: str(examples[place]), images, chosen, show_progress="hidden").then(**follow)
            images.type = "index"
        again.click(**follow)
    return page


def result_html(loaded: "Loaded", path: Path, *, beams: int, number: int, temperature: float) -> str:
    """A picture with its captions, each word a button that holds its map; or, in one line, why there are none."""
    from nanocaption.data.pictures import data_uri, thumbnail
    from nanocaption.data.transform import seen_part

    try:
        image = thumbnail(path, SHOWN_SIDE)
        width, height = image.size
        found = find_captions(loaded, path, beams=beams, number=number, temperature=temperature)
        box = seen_part(path, loaded.models[0].image_spec)
    except ValueError as error:
        reason = str(error).removeprefix(f"The picture {path} cannot be read: ")
        return f'<p class="nc problem" role="alert">{html.escape(path.name)} cannot be read: {html.escape(reason)}</p>'
    likeliest = max(caption.log_prob for caption in found.beam + found.sampled)
    parts, maps = [], iter(found.maps)
    kinds = (("Beam search", "and the probability of the whole caption", found.beam),
             ("Drawn at random", "likelier words more often", found.sampled))  # fmt: skip
    for heading, note, captions in kinds:
        counts = Counter(caption.text for caption in captions)
        rows = {c.text: caption_html(c, counts[c.text], likeliest, next(maps)) for c in captions}
        parts.append(f'<h2>{heading} <small>{note}</small></h2><ol>{"".join(rows.values())}</ol>')
    x, y, right, bottom = box
    place = f"--ratio:{width / height};--x:{x};--y:{y};--w:{right - x};--h:{bottom - y}"
    return (
        f'<div class="nc result"><figure><div class="stage" style="{place}">'
        f'<img src="{data_uri(image, "JPEG")}" alt="the picture"><div class="veil"></div></div>'
        "<figcaption>Tap a word: the picture stays light where the model looked.</figcaption></figure>"
        f'<div>{"".join(parts)}</div></div>'
    )


def caption_html(caption: "CaptionText", count: int, likeliest: float, maps: "JsonMaps") -> str:
    """One caption as a list entry. likeliest: the log-probability whose bar is full; count: how often it was drawn."""
    words = " ".join(
        f'<button type="button" class="word" aria-pressed="false" data-map="{mask(maps, word["weights"])}">'
        f'{html.escape(word["text"])}</button>'
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
