"""`nanocaption caption --shards`: the pictures of many shards, one parquet of captions each. See use/shards.py."""

import argparse
import os
import re
import sys
import time
from pathlib import Path

from nanocaption.base.settings import Settings
from nanocaption.commands import decoding_flags

WHAT = ("--shards takes WebDataset tars or parquet with pictures inside: a folder, a pattern (in/{0000..0999}.tar, "
        "in/*.parquet) or several with commas between")  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags."""
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--shards", metavar="PATTERN",
        help="caption the pictures of WebDataset tars or parquet: a folder, in/{0000..0999}.tar, hf://datasets/...; "
        "--output is then a folder, which gets one parquet of keys and captions a shard",
    )  # fmt: skip
    group.add_argument("--part", metavar="K/N", help="do the K-th of N parts of the shards, K from 1 to N [1/1]")
    group.add_argument("--force", action="store_true", help="do again what another checkpoint or other options made")


def read_part(text: str | None) -> tuple[int, int] | None:
    """'3/16' -> (3, 16); None where it is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if found is None:
        return None
    number, parts = int(found[1]), int(found[2])
    return (number, parts) if 1 <= number <= parts else None


def problems(arguments: argparse.Namespace) -> list[str]:
    """One line for each flag that cannot be meant so."""
    a = arguments
    if a.shards is None:
        rules = [(a.pictures, "Name pictures or folders, - for a list on stdin, or --shards"),
                 (a.part is None, f"--part {a.part} shares shards: add --shards"),
                 (not a.force, "--force is for --shards: other outputs are always replaced")]  # fmt: skip
        return [text for holds, text in rules if not holds]
    rules = [
        (not a.pictures, f"--shards names all pictures: leave {' '.join(a.pictures)} out"),
        (a.output, "--shards needs --output FOLDER, for one parquet a shard"),
        (not a.output or not os.path.lexists(a.output) or os.path.isdir(a.output),
         f"--output {a.output}: is no folder, with --shards name one"),
        (not a.attention, "--attention draws one picture: leave it or --shards out"),
        (not a.json, "--json: shards give parquet, leave it or --shards out"),
        (a.num_captions >= 1, f"--num-captions {a.num_captions}: must be 1 or more"),
        (read_part(a.part), f"--part {a.part}: must be K/N with K from 1 to N, as 3/16"),
    ]  # fmt: skip
    return [text for holds, text in rules if not holds] + decoding_flags.problems(a, a.num_captions)


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Caption the shards; returns the exit code, 1 where a shard could not be read or another process is at it."""
    from nanocaption.prepare.streamed import expanded

    places = expanded(arguments.shards, "--shards ", WHAT)

    from nanocaption.base import devices
    from nanocaption.data.shards import import_pyarrow
    from nanocaption.model.options import search_options
    from nanocaption.use import shards
    from nanocaption.use.load import find_checkpoints, load_models, refuse_answerer

    paths = find_checkpoints(arguments.checkpoint, settings.OUTPUT_DIR, hub=True)
    if arguments.checkpoint is None:
        print(f"captions of {paths[0]}", file=sys.stderr)
    import_pyarrow()  # what is missing is told before the model is loaded
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise ValueError(f"--output {output}: may not be written to, name another folder or change its rights")
    devices.pick_device(settings.DEVICE, devices.local_rank())  # a process of torchrun gets a GPU of its own
    loaded = load_models(paths, settings)
    refuse_answerer(loaded, paths[0])
    captions = arguments.num_captions
    options = decoding_flags.options(arguments, search_options(loaded.settings.values), captions)
    facts = shards.facts_of(loaded, paths, options, captions)
    jobs = shards.plan(places, output, facts, arguments.force)
    part, (rank, processes) = read_part(arguments.part) or (1, 1), _processes()
    mine, start = shards.part_of(jobs, part, rank, processes), time.monotonic()
    counts = shards.caption_shards(loaded, mine, options, captions, shown=rank == 0)
    share = f"part {part[0]}/{part[1]}, process {rank + 1} of {processes}: " if part[1] * processes > 1 else ""
    for line in shards.summary_lines(counts, mine, time.monotonic() - start):
        print(f"{share}{line}", flush=True)
    return 1 if counts.failed or counts.elsewhere else 0


def _processes() -> tuple[int, int]:
    """(which process of torchrun this is, how many there are). They need not know each other: each has its shards."""
    from nanocaption.base import devices

    return devices.rank_of_environment(), devices.world_size_of_environment()
