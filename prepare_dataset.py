"""Raw pictures and captions -> data/<name>/: the face of nanocaption/prepare.

    python prepare_dataset.py                                     the built-in demo set
    python prepare_dataset.py --dataset flickr30k                 download it
    python prepare_dataset.py --dataset mine --raw-data-dir DIR   your own pictures and captions
    ... --remake                                                  again, after DIR has grown or changed

make.py decides what is made from what; layouts.py, caption_*.py, joining.py, packed.py, tars.py, sidecars.py and
archives.py read what people have, picture_files.py finds the pictures; check.py looks at every picture and caption;
mix.py joins prepared sets. Every flag: python train.py --help
"""

import sys
from collections.abc import Sequence

from nanocaption.base import cli
from nanocaption.base.settings import load_settings
from nanocaption.prepare.make import prepare, prepare_flickr30k, prepare_from

__all__ = ["main", "prepare", "prepare_flickr30k", "prepare_from"]


def main(argv: Sequence[str] | None = None) -> None:
    words = [*(sys.argv[1:] if argv is None else argv)]
    if {"-h", "--help"} & set(words):
        print(__doc__)
    settings = load_settings([word for word in words if word != "--remake"])
    try:
        prepare_from(settings, remake="--remake" in words)
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare_dataset: {cli.told(error)}") from error


if __name__ == "__main__":
    cli.run(main, "prepare_dataset: stopped; run it again to go on from here")
