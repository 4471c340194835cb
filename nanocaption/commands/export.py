"""Export a checkpoint: a folder that captions pictures anywhere, without network, and can be put on the Hub.

    nanocaption export my_captioner                                 the newest run's best checkpoint
    nanocaption export runs/demo-001/best_cider.safetensors my_captioner
    nanocaption export my_captioner --push user/name                and upload it to the Hugging Face Hub
    nanocaption export my_captioner plain --format transformers     for transformers alone, without nanoCaption
    nanocaption export my_captioner light --format onnx             for onnxruntime, without torch
    nanocaption export my_captioner page --format web               a page that captions in the browser, for any host
    nanocaption export vit_gpt2_folder my_captioner                 back: a VisionEncoderDecoderModel with GPT-2

nanocaption/model/exported.py says what is in the folder. Its card, README.md, takes the scores of an evaluation of the
same checkpoint where there is one beside it: run `nanocaption evaluate` first. With HF_REPO_ID a training does the same
for each new best checkpoint, in its own folder runs/<run>/export, and uploads it beside the training.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanocaption.base import cli, hub
from nanocaption.base.settings import Settings, load_settings

if TYPE_CHECKING:  # imports torch
    from nanocaption.base.tensors import State
    from nanocaption.export.card import Facts
    from nanocaption.export.onnx_export import Compared

_PARSER = cli.parser("nanocaption export", __doc__)
_PARSER.add_argument(
    "checkpoint", nargs="?", help="a checkpoint file, or an exported folder, for another format [the best of "
    "the newest run under OUTPUT_DIR]",
)  # fmt: skip
_PARSER.add_argument("folder", type=Path, help="new or empty, or an older export, whose files are replaced")
_PARSER.add_argument(
    "--format", choices=("nanocaption", "transformers", "onnx", "web"), default="nanocaption",
    help="transformers: a VisionEncoderDecoderModel; onnx: graphs for onnxruntime; web: these and a page for them; all "
    "are compared with this one before they are handed out [nanocaption]",
)  # fmt: skip
_PARSER.add_argument(
    "--precision", choices=("fp32", "int8", "both"), help="of --format onnx and web: int8 takes a third of the size, "
    "gives captions a little different [onnx: fp32, web: int8]",
)  # fmt: skip
_PARSER.add_argument(
    "--onnxruntime-web", type=Path, metavar="PACKAGE", help="of --format web: npm's package of the program that runs "
    "the model in the browser, a .tgz or a folder [node_modules, else loaded once from npm's registry]",
)  # fmt: skip
_PARSER.add_argument("--push", metavar="USER/NAME", help="upload the folder to this model repository of the Hub")


def main(argv: list[str]) -> None:
    """Write, verify and, where asked for, upload the folder that argv names."""
    arguments, settings = cli.parse(_PARSER, argv, but=("PRECISION",))
    _check_flags(arguments)
    from nanocaption.export import from_transformers
    from nanocaption.export.facts import title_of, write_samples
    from nanocaption.use.load import load_state

    path, foreign = _find(arguments, settings)
    if foreign:
        settings, state = from_transformers.read_foreign(path, settings)
    else:
        state, settings = load_state(path, settings)
    facts, files, proven = _write(arguments, settings, state, path)
    write_samples(arguments.folder, facts)
    after = "as it is" if foreign else f"after {state['epoch']} epochs"
    if arguments.format not in ("onnx", "web"):
        after += f", {(arguments.folder / hub.WEIGHTS).stat().st_size / 1e6:.1f} MB of weights"
    print(f"{arguments.folder}: {path} {after}; {proven}")
    if not facts.scores and not foreign:
        print("Note: the card has no test scores. For these, evaluate first, then export again:\n"
              f"    nanocaption evaluate --checkpoint {shlex.quote(str(path))}")  # fmt: skip
    if arguments.push:
        print(hub.push(arguments.folder, arguments.push, settings.HF_PRIVATE, title_of(state, facts), files))


def _check_flags(arguments: argparse.Namespace) -> None:
    """SystemExit for flags that do not go together, and for what is not installed."""
    form = arguments.format
    if arguments.precision and form not in ("onnx", "web"):
        raise SystemExit(f"--precision {arguments.precision} belongs to --format onnx or web: leave it out, or add one")
    if arguments.precision == "both" and form == "web":
        raise SystemExit("--precision both: a page has one model, give int8 or fp32")
    if arguments.onnxruntime_web and form != "web":
        raise SystemExit("--onnxruntime-web belongs to --format web: leave it out, or add that")
    if form in ("onnx", "web"):
        for module in ("onnx", "onnxscript", "onnxruntime"):
            cli.require(module, "export", f"nanocaption export --format {form}")
    if arguments.push is not None:
        load_settings(["--hf-repo-id", arguments.push])  # refuses what can be no name on the Hub


def _find(arguments: argparse.Namespace, settings: Settings) -> tuple[Path, bool]:
    """What is exported, and whether it is another program's. What stands against it is told before it is read."""
    from nanocaption.export import from_transformers, transformers_folder
    from nanocaption.model import exported, onnx_folder
    from nanocaption.use.load import find_checkpoint, is_exported

    older = {
        "transformers": transformers_folder.is_transformers_export, "onnx": onnx_folder.is_plain_onnx_export,
        "web": onnx_folder.is_page,
    }  # fmt: skip
    exported.check_target(arguments.folder, older.get(arguments.format))
    given = Path(arguments.checkpoint) if arguments.checkpoint else None
    foreign = given is not None and from_transformers.is_foreign(given)
    path = given if given and foreign else find_checkpoint(arguments.checkpoint, settings.OUTPUT_DIR)
    if arguments.format == "nanocaption" and not foreign and is_exported(path):
        raise SystemExit(f"{path.parent} is an export already. Upload it: nanocaption upload {path.parent} USER/NAME")
    if arguments.push and (problem := hub.access_problem(arguments.push)):
        raise SystemExit(f"Nothing can be uploaded to {arguments.push}: {problem}.")
    return path, foreign


def _write(
    arguments: argparse.Namespace, settings: Settings, state: "State", path: Path
) -> tuple["Facts", Sequence[str], str]:
    """Write the folder and prove that it works: what its card has, its files, and what was proven."""
    from nanocaption.export import onnx_export, transformers_folder
    from nanocaption.export.facts import card_of, find_facts, write_export
    from nanocaption.model.captioner import ImageToTextModel

    if arguments.format == "nanocaption":
        facts = write_export(arguments.folder, state, path, Path(settings.DATA_DIR), arguments.push)
        ImageToTextModel.from_pretrained(arguments.folder)  # proves that it loads
        return facts, hub.FILES, "verified"
    if state["config"].get("QUESTIONS"):
        raise SystemExit(f"--format {arguments.format} knows no questions: leave it out, and load the folder with "
                         "nanocaption.load(FOLDER).answer(picture, question)")  # fmt: skip
    facts = find_facts(state, path, Path(settings.DATA_DIR), arguments.push or arguments.folder.name)
    if arguments.format == "web":
        return facts, *_write_web(arguments, state, facts)
    if arguments.format == "onnx":
        precision = arguments.precision or "fp32"
        proven = _write_onnx(arguments.folder, state, card_of(state, facts, "onnx"), precision)
        return facts, onnx_export.files_of(precision), proven
    if state["config"].get("NO_BAD_ENDINGS"):
        print("Note: transformers knows no NO_BAD_ENDINGS: captions that it makes may end badly")
    found = transformers_folder.write_transformers(arguments.folder, state, card_of(state, facts, "transformers"))
    proven = f"loaded by transformers, {found.captions} captions of {found.pictures} drawn pictures are the same, "
    return facts, transformers_folder.FILES, proven + f"logits to {found.logits:.0e}"


def _write_onnx(folder: Path, state: "State", card: str, precision: str) -> str:
    """Write the folder of --format onnx; returns what was found beside torch."""
    from nanocaption.export import as_onnx, onnx_export

    lines = [f"opset {as_onnx.OPSET}, beside torch on drawn pictures:"]
    lines += [_told(found) for found in onnx_export.write_onnx(folder, state, card, precision)]
    return "\n".join(lines)


def _write_web(arguments: argparse.Namespace, state: "State", facts: "Facts") -> tuple[Sequence[str], str]:
    """Write the folder of --format web; returns its files, and what was found beside torch."""
    from nanocaption.export import as_onnx, web_export, web_runtime
    from nanocaption.export.card import language_of
    from nanocaption.export.facts import card_of

    folder, precision, title = arguments.folder, arguments.precision or "int8", facts.name.rpartition("/")[2]
    runtime = web_runtime.find_runtime(arguments.onnxruntime_web)
    language = language_of(state["config"]["DATASET"])
    found, rest = web_export.write_web(
        folder, state, card_of(state, facts, "web"), precision, runtime, title, language
    )  # fmt: skip
    files = web_export.files_of(precision, bool(state["config"].get("NO_BAD_ENDINGS")))
    return files, (
        f"a page of {rest / 1e6:.1f} MB, and {len(runtime[web_runtime.WASM]) / 1e6:.1f} MB of onnxruntime-web "
        f"{web_runtime.VERSION}; opset {as_onnx.OPSET}, beside torch on drawn pictures:\n{_told(found)}\n"
        f"Look at it: python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(folder))}"
    )


def _told(found: "Compared") -> str:
    return (
        f"    {found.precision}: {found.bytes / 1e6:.1f} MB, {found.same} of {found.captions} captions the same, "
        f"logits {found.logits:.1e} of their spread apart, {found.seconds:.2f} s where torch took "
        f"{found.torch_seconds:.2f} s"
    )
