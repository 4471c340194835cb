"""Caption pictures with a trained model.

    nanocaption caption holiday.jpg beach/*.png                 the newest run's best checkpoint
    nanocaption caption folder/ --num-captions 3 --json
    nanocaption caption holiday.jpg --checkpoint runs/demo-001/last.safetensors --beam-size 5
    nanocaption caption holiday.jpg --checkpoint user/name      an exported model: a folder, or on the Hub
    nanocaption caption holiday.jpg --checkpoint light          a folder of --format onnx: without torch
    nanocaption caption holiday.jpg --num-captions 5 --sample --temperature 0.8
    nanocaption caption holiday.jpg --attention words.png       the picture, lit where each word looked
    find . -name '*.jpg' | nanocaption caption - --output captions.json
    nanocaption caption --shards 'in/{0000..0999}.tar' --output out/    millions of pictures, see docs/masses.md

A picture that cannot be read is told on stderr, the others are captioned, and the exit code is 1.
"""

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nanocaption.base import cli
from nanocaption.base.files import PICTURE_SUFFIXES, walk_files, write_file
from nanocaption.commands import caption_shards, decoding_flags
from nanocaption.model.onnx_folder import find_onnx_export
from nanocaption.model.options import Options, search_options

if TYPE_CHECKING:  # these import torch, or numpy, which --help can do without
    import numpy as np

    from nanocaption.base.settings import Settings
    from nanocaption.model.caption_types import CaptionText
    from nanocaption.use.captioning import Judged
    from nanocaption.use.load import Loaded

Pixels = TypeVar("Pixels")
_AT_ONCE = 32  # pictures, of an ONNX export

_PARSER = cli.parser("nanocaption caption", __doc__)
_PARSER.add_argument(
    "pictures", nargs="*", help="files, folders with pictures in or below them, or - for a list of paths on stdin"
)
_PARSER.add_argument(
    "--checkpoint",
    help="a checkpoint file, an exported folder or its id on the Hub (user/name); several with commas between are "
    "averaged [the best of the newest run under OUTPUT_DIR]",
)
_PARSER.add_argument("--num-captions", type=int, default=1, help="captions per picture, best first [1]")
_PARSER.add_argument("--json", action="store_true", help="print JSON with log-probabilities instead of text")
_PARSER.add_argument("--output", help="write the JSON to this file instead")
_PARSER.add_argument("--attention", help="one picture: draw what each word looked at into this PNG file")
caption_shards.add(_PARSER)
decoding_flags.add(_PARSER)


def main(argv: list[str]) -> int:
    """Caption what argv names; returns the exit code, 1 where a picture could not be read."""
    arguments, settings = cli.parse(_PARSER, argv)
    if problems := caption_shards.problems(arguments):
        raise SystemExit("\n".join(problems))
    if arguments.shards is not None:
        return caption_shards.main(arguments, settings)
    pictures = find_pictures(arguments.pictures)
    check_arguments(arguments, pictures)
    if arguments.checkpoint is not None and (folder := find_onnx_export(arguments.checkpoint)) is not None:
        return caption_by_onnx(folder, arguments, settings, pictures)
    cli.require("torch", "caption", "nanocaption caption")

    from nanocaption.use.attention import draw_picture
    from nanocaption.use.captioning import judged_by
    from nanocaption.use.load import find_checkpoints, load_models, refuse_answerer

    paths = find_checkpoints(arguments.checkpoint, settings.OUTPUT_DIR, hub=True)
    if arguments.attention and len(paths) > 1:
        raise SystemExit("--attention shows what one model looks at: give one checkpoint")
    if arguments.checkpoint is None:
        print(f"captions of {paths[0]}", file=sys.stderr)
    loaded = load_models(paths, settings)
    refuse_answerer(loaded, paths[0])
    options = decoding_flags.options(arguments, search_options(loaded.settings.values), arguments.num_captions)
    if loaded.settings.CONSENSUS and arguments.sample:
        raise SystemExit("CONSENSUS chooses among the beams of a search: leave --sample out, or set it to 0")
    judged = judged_by(loaded)
    found = caption_pictures(loaded, pictures, options, judged, shows_progress(arguments, pictures))

    def draw(picture: Path, caption: "CaptionText") -> None:
        write_file(Path(arguments.attention), draw_picture(loaded.models[0], loaded.tokenizer, picture, caption))
        print(f"what each word looked at: {arguments.attention}", file=sys.stderr)

    return tell(found, arguments, len(pictures), draw if arguments.attention else None)


def caption_by_onnx(
    folder: Path, arguments: argparse.Namespace, settings: "Settings", pictures: list[Path]
) -> int:
    """`main` for the folder of an ONNX export: nothing here imports torch."""
    cli.require("onnxruntime", "onnx", "nanocaption caption of an ONNX export")
    if arguments.attention:
        raise SystemExit("--attention draws with torch: give the checkpoint, or an export of --format nanocaption")
    if settings.CONSENSUS:
        raise SystemExit("CONSENSUS weighs captions with torch: set it to 0, or give the checkpoint")
    from nanocaption.data.order import seed_of
    from nanocaption.data.picture_forms import fitted_form
    from nanocaption.model.onnx_captioner import OnnxCaptioner

    model = OnnxCaptioner(folder)
    options = decoding_flags.options(arguments, search_options(settings.values), arguments.num_captions)

    def caption(readable: list[Path], pixels: "list[np.ndarray]") -> "list[list[CaptionText]]":
        import numpy

        seeds = [seed_of(settings.SEED, picture.name) for picture in readable]
        return model.decode(numpy.stack(pixels), options, seeds)

    size = min(settings.EVAL_BATCH_SIZE, _AT_ONCE)
    found = in_chunks(pictures, size, settings.NUM_WORKERS, shows_progress(arguments, pictures),
                      lambda picture: fitted_form(picture, model.export.image_spec), caption)  # fmt: skip
    return tell(found, arguments, len(pictures), None)


def shows_progress(arguments: argparse.Namespace, pictures: list[Path]) -> bool:
    """Whether there is a bar. Captions that scroll by on a terminal show the progress themselves."""
    as_text = not (arguments.json or arguments.output)
    return len(pictures) > 50 and not (as_text and sys.stdout.isatty())


def tell(
    found: "Iterator[tuple[Path, list[CaptionText] | None]]", arguments: argparse.Namespace, pictures: int,
    draw: "Callable[[Path, CaptionText], None] | None",
) -> int:  # fmt: skip
    """Print or write the captions of so many pictures as argv asks for; returns the exit code."""
    as_text = not (arguments.json or arguments.output)
    rows: list[dict[str, object]] = []
    for picture, its in found:
        if its is None:
            continue
        captions = its[: arguments.num_captions]
        for caption in captions if as_text else ():
            print(f"{picture}: {caption.text}")
        rows.append({"file_name": str(picture), "captions": [caption_row(caption) for caption in captions]})
        if draw is not None:
            draw(picture, captions[0])
    if not as_text:
        write_rows(rows, arguments.output)
    return 0 if len(rows) == pictures else 1


def caption_row(caption: "CaptionText") -> dict[str, str | float | None]:
    """A caption as JSON, which has no NaN: of a model that gives no numbers they are null."""
    numbers = {"log_prob": caption.log_prob, "score": caption.score}
    return {"caption": caption.text, **{n: None if math.isnan(caption.log_prob) else v for n, v in numbers.items()}}


def write_rows(rows: Sequence[dict[str, object]], output: str | None) -> None:
    """The JSON of all pictures, into the file `output` or printed."""
    plain = not output and (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    text = json.dumps(rows, indent=1, ensure_ascii=plain)
    if not output:
        print(text)
        return
    # A name that is no text comes out as JSON's own \udc80 to \udcff.
    write_file(Path(output), f"{text}\n".encode("utf-8", "backslashreplace"))
    print(f"captions of {len(rows)} pictures: {output}")


def check_arguments(arguments: argparse.Namespace, pictures: list[Path]) -> None:
    """Raise SystemExit, with every problem found, for flags that cannot be meant so."""
    a = arguments
    rules = [
        (a.num_captions >= 1, f"--num-captions {a.num_captions}: must be 1 or more"),
        (not a.attention or len(pictures) == 1, f"--attention draws one picture: give one, not {len(pictures)}"),
        (not a.attention or a.attention.endswith(".png"), f"--attention {a.attention}: must end in .png"),
    ]
    for flag, name in (("--output", a.output), ("--attention", a.attention)):
        rules.append((not name or Path(name).parent.is_dir(), f"{flag} {name}: there is no such folder"))
        rules.append((not name or not Path(name).is_dir(), f"{flag} {name}: is a folder, name a file"))
        rules.append((not _is_one_of(name, pictures), f"{flag} {name}: is one of the pictures, name another file"))
    problems = [text for holds, text in rules if not holds] + decoding_flags.problems(a, a.num_captions)
    if problems:
        raise SystemExit("\n".join(problems))


def _is_one_of(name: str | None, paths: list[Path]) -> bool:
    if not name or not os.path.isfile(name):
        return False
    return any(os.path.isfile(path) and os.path.samefile(name, path) for path in paths)


def caption_pictures(
    loaded: "Loaded", pictures: list[Path], options: Options, judged: "Judged | None", progress: bool
) -> Iterator[tuple[Path, "list[CaptionText] | None"]]:
    """(picture, its captions or None where it cannot be read, which is told on stderr), in order."""
    from torch import Tensor

    from nanocaption.data.dataset import ImageTextDataset
    from nanocaption.data.transform import load_image
    from nanocaption.use.captioning import caption_images

    settings, image_spec = loaded.settings, loaded.models[0].image_spec

    def caption(readable: list[Path], pixels: list[Tensor]) -> "list[list[CaptionText]]":
        records = [{"file_name": str(picture)} for picture in readable]
        images = ImageTextDataset(records, Path(), [[] for _ in records], image_spec, pixels)
        return caption_images(
            loaded.models, loaded.tokenizer, images, batch_size=settings.EVAL_BATCH_SIZE, options=options,
            device=loaded.device, precision=settings.PRECISION, workers=0, seed=settings.SEED,
            judged=judged,
        )  # fmt: skip

    return in_chunks(pictures, settings.EVAL_BATCH_SIZE, settings.NUM_WORKERS, progress,
                     lambda picture: load_image(picture, image_spec), caption)  # fmt: skip


def in_chunks(
    pictures: list[Path], size: int, workers: int, progress: bool, load: Callable[[Path], Pixels],
    caption: "Callable[[list[Path], list[Pixels]], list[list[CaptionText]]]",
) -> "Iterator[tuple[Path, list[CaptionText] | None]]":  # fmt: skip
    """(picture, its captions or None where it cannot be read, which is told on stderr), in order, `size` at once."""
    from concurrent.futures import ThreadPoolExecutor

    def read(picture: Path) -> Pixels | None:
        try:
            return load(picture)
        except ValueError as error:
            bar.write(str(error), file=sys.stderr) if bar else print(error, file=sys.stderr)
            return None

    bar = None
    if progress:  # the import takes as long as one caption
        from tqdm import tqdm

        bar = tqdm(total=len(pictures), desc="captioning", unit="image", mininterval=1)
    with bar or contextlib.nullcontext(), ThreadPoolExecutor(max(1, workers)) as readers:
        for start in range(0, len(pictures), size):
            chunk = pictures[start : start + size]
            pixels = {picture: image for picture, image in zip(chunk, readers.map(read, chunk), strict=True)
                      if image is not None}  # fmt: skip
            found = dict(zip(pixels, caption([*pixels], [*pixels.values()]) if pixels else [], strict=True))
            yield from ((picture, found.get(picture)) for picture in chunk)
            if bar:
                bar.update(len(chunk))


def find_pictures(names: list[str]) -> list[Path]:
    """Files as named, folders as the pictures in and below them, - as the paths on stdin.

    SystemExit for a folder without any, and where no file is there. One that is missing among others is kept: it is
    told in its turn.
    """
    pictures: list[Path] = []
    for name in names:
        path = Path(name)
        if not name:
            raise SystemExit('"" names no picture: for the folder you are in give .')
        if name == "-":
            pictures += [Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()]
        elif os.path.isdir(path):  # Path.is_dir raises where a folder above may not be entered
            names_below = walk_files(path, lambda error: print(cli.told(error), file=sys.stderr))
            below = (path / entry for entry in names_below if entry.lower().endswith(PICTURE_SUFFIXES))
            found = [picture for picture in below if not os.path.isdir(picture)]
            if not found:
                raise SystemExit(f"The folder {name!r} holds no pictures ({', '.join(PICTURE_SUFFIXES)}).")
            pictures += found
        else:
            pictures.append(path)
    if not pictures:
        raise SystemExit("No picture was named: the list on stdin is empty.")
    if not any(os.path.isfile(picture) for picture in pictures):
        raise SystemExit(f"There is no picture {str(pictures[0])!r}.")
    return pictures
