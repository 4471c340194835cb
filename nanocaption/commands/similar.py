"""Find the pictures of a folder that are most like a picture.

    nanocaption similar photo.jpg --images FOLDER
    nanocaption similar a.jpg b.jpg --images FOLDER --top 5 --json

By the vectors of the model's contrastive head; of a model without one by the mean of its encoder's features, of which
even very different pictures have a cosine near 1. The index is that of `nanocaption search`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from nanocaption.base import cli
from nanocaption.commands import search

if TYPE_CHECKING:  # these import torch
    import numpy as np

    from nanocaption.use.load import Loaded

_PARSER = cli.parser("nanocaption similar", __doc__)
_PARSER.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="files")
search.add(_PARSER)


def main(argv: list[str]) -> int:
    """Print what is found for each picture; returns the exit code. ValueError where one of them cannot be read."""
    arguments, settings = cli.parse(_PARSER, argv)

    def vectors(loaded: "Loaded") -> "list[np.ndarray]":
        from nanocaption.data.transform import load_image
        from nanocaption.use.index import picture_vectors

        pixels = [load_image(path, loaded.models[0].image_spec) for path in arguments.pictures]
        return list(picture_vectors(loaded, pixels))

    return search.find(arguments, settings, list(map(str, arguments.pictures)), vectors)
