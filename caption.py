"""Caption pictures with a trained model.

    python caption.py holiday.jpg beach/*.png                 the newest run's best checkpoint
    python caption.py folder/ --num-captions 3 --json
    python caption.py holiday.jpg --checkpoint runs/demo-001/last.safetensors --beam-size 5
"""

import argparse
import json
import sys
from pathlib import Path

import config

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PARSER = argparse.ArgumentParser(
    prog="caption.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="All other flags are settings of config.py: python train.py --help",
    allow_abbrev=False,
)
_PARSER.add_argument("pictures", nargs="+", help="picture files, or folders of them")
_PARSER.add_argument("--checkpoint", help="a checkpoint file [the best of the newest run under OUTPUT_DIR]")
_PARSER.add_argument("--num-captions", type=int, default=1, help="captions per picture, best first [1]")
_PARSER.add_argument("--json", action="store_true", help="print JSON with log-probabilities instead of text")


def main(argv: list[str]) -> None:
    own, rest = config.take_settings(argv)
    arguments = _PARSER.parse_args(rest)
    settings = config.load(own)  # --help and mistakes answer before torch is imported
    pictures = find_pictures(arguments.pictures)
    if arguments.num_captions < 1:
        raise SystemExit(f"--num-captions {arguments.num_captions}: must be 1 or more")

    import dataset as data
    import inference

    path = inference.find_checkpoint(arguments.checkpoint, settings.OUTPUT_DIR)
    state, settings = inference.load_state(path, own)
    device = inference.pick_device(settings.DEVICE)
    model, tokenizer = inference.load_model(state, device)
    records = [{"file_name": str(picture)} for picture in pictures]
    images = data.ImageTextDataset(records, Path(), [[] for _ in records], model.image_spec)
    captions = inference.caption_images(
        model, tokenizer, images, batch_size=settings.EVAL_BATCH_SIZE,
        beam_size=max(settings.BEAM_SIZE, arguments.num_captions), length_penalty=settings.LENGTH_PENALTY,
        device=device, precision=settings.PRECISION, workers=settings.NUM_WORKERS if len(pictures) > 50 else 0,
        progress="captioning" if len(pictures) > 50 else None,
    )  # fmt: skip
    chosen = [found[: arguments.num_captions] for found in captions]
    if arguments.json:
        rows = [
            {"file_name": str(p), "captions": [{"caption": c.text, "log_prob": c.log_prob} for c in found]}
            for p, found in zip(pictures, chosen, strict=True)
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for picture, found in zip(pictures, chosen, strict=True):
            for caption in found:
                print(f"{picture}: {caption.text}")


def find_pictures(names: list[str]) -> list[Path]:
    """Files as named, folders as the pictures in them. SystemExit for a name that leads to none."""
    pictures: list[Path] = []
    for name in map(Path, names):
        if name.is_dir():
            found = sorted(path for path in name.iterdir() if path.suffix.lower() in _ENDINGS)
            if not found:
                raise SystemExit(f"The folder {str(name)!r} holds no pictures ({', '.join(_ENDINGS)}).")
            pictures += found
        elif name.is_file():
            pictures.append(name)
        else:
            raise SystemExit(f"There is no picture {str(name)!r}.")
    return pictures


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
