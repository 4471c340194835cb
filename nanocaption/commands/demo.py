"""A page in the browser: drop a picture, read its captions, tap a word to see what it looked at.

    nanocaption demo                                            the newest run's best checkpoint
    nanocaption demo runs/demo-001/last.safetensors --port 7861
    nanocaption demo my_captioner --host 0.0.0.0                an exported folder, for all who reach this machine

It needs Gradio: pip install 'nanocaption[demo]'. The pictures stay on this machine, and are deleted at the end.
"""

import argparse
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
from typing import Any

from nanocaption.base.settings import load_settings, take_settings

_PARSER = argparse.ArgumentParser(
    prog="nanocaption demo",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="All other flags are settings of config.py, e.g. --beam-size, --device: nanocaption train --help",
    allow_abbrev=False,
)
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
    own, rest = take_settings(argv)
    arguments = _PARSER.parse_intermixed_args(rest)
    settings = load_settings(own)  # --help and mistakes answer before torch is imported
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
        page = build_page(loaded, title, held_out(loaded))
        try:
            _, address, public = page.launch(
                server_name=arguments.host, server_port=arguments.port, share=arguments.share, show_error=True,
                quiet=True, prevent_thread_lock=True, run_history=False, footer_links=[], css=CSS, head=HEAD,
                enable_monitoring=False, theme=_theme(),
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


def held_out(loaded: Any) -> list[Path]:
    """The first pictures of the model's own test split, if that very data set is on this disk; else none."""
    from nanocaption.data.prepared import folder_name, load_records
    pass  # REMOVE

    settings, state = loaded.settings, loaded.states[0]
    folder = Path(settings.DATA_DIR) / folder_name(settings.DATASET)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["captions_sha256"] != state.get("captions_sha256"):
            return []  # other captions, perhaps another split: these pictures may have been trained on
        records = load_records(folder, settings.TEST_SPLITS)
    except (OSError, ValueError, KeyError):
        return []
    paths = [folder / "images" / record["file_name"] for record in records[:EXAMPLES]]
    return [path for path in paths if path.is_file()]


def find_captions(loaded: Any, path: Path, *, beams: int, number: int, temperature: float) -> dict[str, list[Any]]:
    """{"beam", "sampled": their captions (inference.CaptionText), best first; "maps": inference.attend of both}.

    beams: of the search; number: how many captions of each kind, the search takes as many beams at least.
    ValueError where the picture cannot be read.
    """
    import torch

    from nanocaption.base import devices
    from nanocaption.data.transform import load_image
    from nanocaption.model.captions import decode_pictures, search_options
    from nanocaption.use.attention import attend
    pass  # REMOVE
    pass  # REMOVE

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
    return {"beam": beam, "sampled": sampled, "maps": maps}


def build_page(loaded: Any, title: str, examples: Sequence[Path]) -> Any:
    """The page as gradio.Blocks."""
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
        follow: dict[str, Any] = {"fn": show, "inputs": inputs, "outputs": result, "scroll_to_output": True}
        # The drop zone is emptied at once, ready for the next picture: the result shows this one.
        drop.upload(lambda path: (path, None), drop, [chosen, drop], show_progress="hidden").then(**follow)
        if examples:
            images.click(lambda place: str(examples[place]), images, chosen, show_progress="hidden").then(**follow)
            images.type = "index"
        again.click(**follow)
    return page


def _theme() -> Any:
    import gradio as gr

    return gr.themes.Default(
        primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def result_html(loaded: Any, path: Path, **how: Any) -> str:
    """A picture with its captions, each word a button that holds its map; or, in one line, why there are none."""
    from nanocaption.data.pictures import data_uri, thumbnail
    from nanocaption.data.transform import seen_part

    try:
        image = thumbnail(path, SHOWN_SIDE)
        width, height = image.size
        found = find_captions(loaded, path, **how)
        box = seen_part(path, loaded.models[0].image_spec)
    except ValueError as error:
        reason = str(error).removeprefix(f"The picture {path} cannot be read: ")
        return f'<p class="nc problem" role="alert">{html.escape(path.name)} cannot be read: {html.escape(reason)}</p>'
    likeliest = max(caption.log_prob for caption in found["beam"] + found["sampled"])
    parts, maps = [], iter(found["maps"])
    kinds = (("Beam search", "and the probability of the whole caption", found["beam"]),
             ("Drawn at random", "likelier words more often", found["sampled"]))  # fmt: skip
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


def caption_html(caption: Any, count: int, likeliest: float, maps: dict[str, Any]) -> str:
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


def mask(maps: dict[str, Any], weights: Sequence[int]) -> str:
    """A word's map as a small PNG (data URI): the more opaque, the more it looked there."""
    from PIL import Image

    from nanocaption.data.pictures import data_uri

    low, high = min(weights), max(weights)
    alpha = bytes(round(255 * (weight - low) / max(1, high - low)) for weight in weights)
    image = Image.new("LA", (maps["cols"], maps["rows"]))
    image.putalpha(Image.frombytes("L", image.size, alpha))
    return data_uri(image, "PNG")


# The veil covers what lies outside of what the encoder sees, and inside of that what the word's map leaves.
CSS = """
.gradio-container { width: 100%; max-width: 1040px !important; margin: 0 auto !important; overflow: clip !important; }
.gradio-container .main.fillable { padding: 8px clamp(2px, 2vw, 20px); }
.gradio-container .html-container { padding: 0; }
#examples .gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); }
#examples .gallery :is(button, span, div, img) { display: block; width: 100%; height: auto; max-width: none;
  max-height: none; aspect-ratio: 1; }
#examples .gallery img { object-fit: cover; }
.nc { --soft: color-mix(in srgb, var(--body-text-color) 68%, transparent); color: var(--body-text-color); }
.nc p, .nc ol, .nc li, .nc figure, .nc h1, .nc h2 { display: block; margin: 0; padding: 0; }
.nc h1 { font-size: clamp(24px, 5vw, 34px); line-height: 1.2; font-weight: 650; letter-spacing: -0.02em; }
header.nc p { color: var(--soft); overflow-wrap: anywhere; }
.nc.result { display: grid; gap: 16px 32px; grid-template-columns: 1fr 1fr; }
.nc figure { position: sticky; top: 0; z-index: 1; padding: 8px 0; align-self: start;
  background: var(--body-background-fill); }
.nc .stage { position: relative; overflow: hidden; border-radius: 10px; margin: 0 auto; aspect-ratio: var(--ratio);
  width: min(100%, var(--ratio) * 56vh); }
.nc .stage img { display: block; width: 100%; height: 100%; margin: 0; }
@media (max-width: 700px) {
  .nc.result { grid-template-columns: 1fr; }
  .nc .stage { width: min(100%, var(--ratio) * 36vh); }
}
.nc .veil { position: absolute; inset: 0; background: rgb(8 8 16 / 88%); opacity: 0; pointer-events: none;
  mask-composite: exclude; mask-repeat: no-repeat; }
.nc .veil.on { opacity: 1; }
.nc figcaption { color: var(--soft); font-size: 13px; margin-top: 8px; text-align: center; }
.nc h2 { font-size: 13px; font-weight: 600; color: var(--soft); margin-bottom: 4px; }
.nc h2 small { font-weight: 400; font-size: inherit; }
.nc ol + h2 { margin-top: 16px; }
.nc li { padding: 8px 0 10px; }
.nc .caption { font-size: 18px; line-height: 1.5; }
.nc.result > * { min-width: 0; }
.nc .word { padding: 2px 3px; margin: 0 -3px; border: 0; border-radius: 5px; cursor: pointer; font: inherit;
  color: inherit; background: none; text-decoration: underline dotted 1.5px var(--soft); text-underline-offset: 4px;
  max-width: 100%; overflow-wrap: anywhere; text-align: start; }
.nc .word:hover, .nc .word[aria-pressed=true] { background: var(--body-text-color); text-decoration: none;
  color: var(--body-background-fill); }
.nc .word:focus-visible { outline: 2px solid var(--color-accent); }
.nc p.chance { font-size: 13px; line-height: 1.3; margin-top: 6px; padding-top: 8px; color: var(--soft);
  background: linear-gradient(var(--color-accent) 0 0) 0 0 / var(--share) 3px no-repeat,
    linear-gradient(var(--border-color-primary) 0 0) 0 0 / 100% 3px no-repeat; }
p.nc.problem { border: 1px solid var(--error-border-color); background: var(--error-background-fill);
  color: var(--error-text-color); padding: 12px 16px; border-radius: 10px; overflow-wrap: anywhere; }
"""
# Hover looks for a moment, a tap or Enter keeps the word, a second tap lets it go.
HEAD = """
<script>
(() => {
  const wordOf = event => event.target.closest?.(".nc .word");
  function look(result, word) {
    const veil = result.querySelector(".veil"), stage = result.querySelector(".stage");
    veil.classList.toggle("on", Boolean(word));
    if (!word) return;
    const part = (name, length) => `${stage.style.getPropertyValue(name) * length}px`;
    const across = name => part(name, stage.clientWidth), down = name => part(name, stage.clientHeight);
    veil.style.maskImage = `url(${word.dataset.map}), linear-gradient(#000 0 0)`;
    veil.style.maskPosition = `${across("--x")} ${down("--y")}, 0 0`;
    veil.style.maskSize = `${across("--w")} ${down("--h")}, 100% 100%`;
  }
  const kept = result => result.querySelector(".word[aria-pressed=true]");
  document.addEventListener("pointerover", event => {
    const result = document.querySelector(".nc.result");
    if (result && event.pointerType === "mouse") look(result, wordOf(event) ?? kept(result));
  });
  document.addEventListener("click", event => {
    const word = wordOf(event), result = word?.closest(".result");
    if (!word) return;
    const keep = word.getAttribute("aria-pressed") !== "true";
    kept(result)?.setAttribute("aria-pressed", "false");
    word.setAttribute("aria-pressed", keep);
    look(result, keep ? word : null);
  });
})();
</script>
"""
