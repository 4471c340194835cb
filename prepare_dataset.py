"""Raw pictures and captions -> data/<name>/: the face of nanocaption/prepare.

    python prepare_dataset.py                                     the built-in demo set
    python prepare_dataset.py --dataset flickr30k                 download it
    python prepare_dataset.py --dataset mine --raw-data-dir DIR   your own pictures and captions
    ... --remake                                                  again, after DIR has grown or changed
    ... --model CHECKPOINT                                        and tell pictures of one split that are nearly others'

make.py decides what is made from what; layouts.py, caption_*.py, joining.py, packed.py, tars.py, sidecars.py and
archives.py read what people have, picture_files.py finds the pictures; check.py looks at every picture and caption;
mix.py joins prepared sets. Every flag: python train.py --help
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from nanocaption.base import cli
from nanocaption.base.settings import Settings, load_settings
from nanocaption.prepare.make import prepare, prepare_flickr30k, prepare_from

__all__ = ["main", "prepare", "prepare_flickr30k", "prepare_from"]


def main(argv: Sequence[str] | None = None) -> None:
    words = [*(sys.argv[1:] if argv is None else argv)]
    if {"-h", "--help"} & set(words):
        print(__doc__)
    words, model = without_model(words)
    settings = load_settings([word for word in words if word != "--remake"])
    try:
        folder = prepare_from(settings, remake="--remake" in words)
        if model is not None:
            tell_near_duplicates(settings, folder, model)
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare_dataset: {cli.told(error)}") from error


def without_model(words: list[str]) -> tuple[list[str], str | None]:
    """(the words without --model CHECKPOINT, the checkpoint)"""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--model=") else [word])]
    if "--model" not in words:
        return words, None
    place = words.index("--model")
    if place + 1 == len(words):
        raise SystemExit("--model: name a checkpoint")
    return words[:place] + words[place + 2 :], words[place + 1]


def tell_near_duplicates(settings: Settings, folder: Path, model: str) -> None:
    """By the vectors of a trained model, see nanocaption/use/duplicates.py."""
    from nanocaption.data.shards import is_streamed
    from nanocaption.use.duplicates import report
    from nanocaption.use.load import find_checkpoint, load_models

    if is_streamed(folder):
        raise SystemExit(f"--model compares pictures that are files; those of {folder} are in shards")
    report(load_models([find_checkpoint(model, settings.OUTPUT_DIR)], settings), folder, model)


if __name__ == "__main__":
    cli.run(main, "prepare_dataset: stopped; run it again to go on from here")
