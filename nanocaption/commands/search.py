"""Find pictures by words, in a folder of any pictures, with a model that has a contrastive head.

    nanocaption search "a dog in the snow" --images FOLDER
    nanocaption search "a red car" "two people" --images FOLDER --top 5 --json
    nanocaption search - --images FOLDER < queries.txt          a query a line
    nanocaption search "a dog" --images FOLDER --checkpoint user/name

The first search reads all pictures and keeps a vector of each in an index on the disk; later ones read what is new.
Of each picture its cosine to the words is printed, the nearest first. The exit code is 1 where pictures cannot be read.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanocaption.base import cli

if TYPE_CHECKING:  # these import torch
    import numpy as np

    from nanocaption.base.settings import Settings
    from nanocaption.use.index import Hit, Index
    from nanocaption.use.load import Loaded

_PARSER = cli.parser("nanocaption search", __doc__)
_PARSER.add_argument("queries", nargs="+", metavar="QUERY", help="words in quotes; - reads one from each line of stdin")


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of search and of similar."""
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="pictures in it and below it")
    parser.add_argument("--top", type=int, default=10, help="so many pictures for each query [10]")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--index", type=Path, help="where the index is kept [in DATA_DIR/index/]")
    parser.add_argument(
        "--checkpoint", help="a checkpoint file, an exported folder or its id on the Hub [the best of the newest run]"
    )


add(_PARSER)


def main(argv: list[str]) -> int:
    """Print what is found for each query; returns the exit code."""
    arguments, settings = cli.parse(_PARSER, argv)
    queries = [line.rstrip("\r\n") for word in arguments.queries
               for line in ([given for given in sys.stdin if given.strip()] if word == "-" else [word])]  # fmt: skip
    if not queries:
        raise SystemExit("No query was given: the list on stdin is empty.")

    def vectors(loaded: "Loaded") -> "list[np.ndarray]":
        from nanocaption.use.index import query_vector

        return [query_vector(loaded, query) for query in queries]

    return find(arguments, settings, queries, vectors)


def find(
    arguments: argparse.Namespace, settings: "Settings", queries: Sequence[str],
    vectors: "Callable[[Loaded], list[np.ndarray]]",
) -> int:  # fmt: skip
    """Make or update the index, search it by the vector of each query and print; returns the exit code.

    What is wrong with a query or the model is told before the pictures are read.
    """
    if arguments.top < 1:
        raise SystemExit(f"--top {arguments.top}: must be 1 or more")
    if not arguments.images.is_dir():
        raise SystemExit(f"--images {arguments.images}: there is no such folder")
    from nanocaption.use.index import search, tell_faults

    loaded, index_of = load(arguments.checkpoint, settings)
    asked = vectors(loaded)
    index = index_of(arguments.images, arguments.index)
    tell_faults(index)
    tell(queries, [search(index, vector, arguments.top) for vector in asked], arguments.json)
    return 1 if index.faults else 0


def load(
    checkpoint: str | None, settings: "Settings"
) -> "tuple[Loaded, Callable[[Path, Path | None], Index]]":
    """The model, and what opens the index of a folder, in a place or by default in DATA_DIR."""
    from nanocaption.score import results
    from nanocaption.use.index import open_index, place_for
    from nanocaption.use.load import find_checkpoint, load_models

    path = find_checkpoint(checkpoint, settings.OUTPUT_DIR, hub=True)
    if checkpoint is None:
        print(f"by {path}", file=sys.stderr)
    loaded, digest = load_models([path], settings), results.digest(path)

    def index_of(folder: Path, place: Path | None) -> "Index":
        return open_index(loaded, folder, place or place_for(settings.DATA_DIR, folder, digest), digest)

    return loaded, index_of


def tell(queries: Sequence[str], found: "Sequence[Sequence[Hit]]", as_json: bool) -> None:
    """Print the pictures of each query, the nearest first."""
    if as_json:
        plain = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
        rows = [[{"file_name": str(hit.path), "cosine": round(hit.cosine, 6)} for hit in hits] for hits in found]
        queried = [{"query": query, "found": own} for query, own in zip(queries, rows, strict=True)]
        print(json.dumps(queried, indent=1, ensure_ascii=plain))
        return
    for query, hits in zip(queries, found, strict=True):
        if len(queries) > 1:
            print(f"{query}:")
        for hit in hits:
            print(f"{hit.cosine:6.3f}  {hit.path}")
