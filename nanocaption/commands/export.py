"""Export a checkpoint: a folder that captions pictures anywhere, without network, and can be put on the Hub.

    nanocaption export my_captioner                                 the newest run's best checkpoint
    nanocaption export runs/demo-001/best_cider.safetensors my_captioner
    nanocaption export my_captioner --push user/name                and upload it to the Hugging Face Hub
    nanocaption export my_captioner plain --format transformers     for transformers alone, without nanoCaption
    nanocaption export vit_gpt2_folder my_captioner                 back: a VisionEncoderDecoderModel with GPT-2

nanocaption/model/exported.py says what is in the folder. Its card, README.md, takes the scores of an evaluation of the
same checkpoint where there is one beside it: run `nanocaption evaluate` first. With HF_REPO_ID a training does the same
for each new best checkpoint, in its own folder runs/<run>/export, and uploads it beside the training.
"""

import shlex
from pathlib import Path

from nanocaption.base import cli, hub
from nanocaption.base.settings import load_settings

_PARSER = cli.parser("nanocaption export", __doc__)
_PARSER.add_argument(
    "checkpoint", nargs="?", help="a checkpoint file, or an exported folder, for another format [the best of "
    "the newest run under OUTPUT_DIR]",
)  # fmt: skip
_PARSER.add_argument("folder", type=Path, help="new or empty, or an older export, whose files are replaced")
_PARSER.add_argument(
    "--format", choices=("nanocaption", "transformers"), default="nanocaption",
    help="transformers: a VisionEncoderDecoderModel, compared with this one before it is handed out [nanocaption]",
)  # fmt: skip
_PARSER.add_argument("--push", metavar="USER/NAME", help="upload the folder to this model repository of the Hub")


def main(argv: list[str]) -> None:
    """Write, verify and, where asked for, upload the folder that argv names."""
    arguments, settings = cli.parse(_PARSER, argv)
    if arguments.push is not None:
        load_settings(["--hf-repo-id", arguments.push])  # refuses what can be no name on the Hub
    from nanocaption.export import from_transformers, transformers_folder
    from nanocaption.export.facts import card_of, find_facts, title_of, write_export
    from nanocaption.model import exported
    from nanocaption.model.captioner import ImageToTextModel
    from nanocaption.use.load import find_checkpoint, is_exported, load_state

    plain = arguments.format == "transformers"
    exported.check_target(arguments.folder, transformers_folder.is_transformers_export if plain else None)
    given = Path(arguments.checkpoint) if arguments.checkpoint else None
    foreign = given is not None and from_transformers.is_foreign(given)
    path = given if given and foreign else find_checkpoint(arguments.checkpoint, settings.OUTPUT_DIR)
    if not plain and not foreign and is_exported(path):
        raise SystemExit(f"{path.parent} is an export already. Upload it: nanocaption upload {path.parent} USER/NAME")
    if arguments.push and (problem := hub.access_problem(arguments.push)):
        raise SystemExit(f"Nothing can be uploaded to {arguments.push}: {problem}.")
    if foreign:
        settings, state = from_transformers.read_foreign(path, settings)
    else:
        state, settings = load_state(path, settings)
    if plain:
        facts = find_facts(state, path, Path(settings.DATA_DIR), arguments.push or arguments.folder.name)
        found = transformers_folder.write_transformers(arguments.folder, state, card_of(state, facts, "transformers"))
        proven = f"loaded by transformers, {found.captions} captions of {found.pictures} drawn pictures are the same, "
        proven += f"logits to {found.logits:.0e}"
    else:
        facts = write_export(arguments.folder, state, path, Path(settings.DATA_DIR), arguments.push)
        ImageToTextModel.from_pretrained(arguments.folder)  # proves that it loads
        proven = "verified"
    size = (arguments.folder / hub.WEIGHTS).stat().st_size / 1e6
    after = "as it is" if foreign else f"after {state['epoch']} epochs"
    print(f"{arguments.folder}: {path} {after}, {size:.1f} MB of weights; {proven}")
    if not facts.scores and not foreign:
        print("Note: the card has no test scores. For these, evaluate first, then export again:\n"
              f"    nanocaption evaluate --checkpoint {shlex.quote(str(path))}")  # fmt: skip
    if arguments.push:
        files = transformers_folder.FILES if plain else hub.FILES
        print(hub.push(arguments.folder, arguments.push, settings.HF_PRIVATE, title_of(state, facts), files))
