"""The README's picture: held-out demo pictures with the captions of a run.

    python docs/demo_picture.py runs/demo-001/eval_test_epoch12_beam3_penalty1 docs/demo.png
"""

import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS, SIDE, GAP, TEXT = 6, 2, 200, 16, 100


def main(results: Path, images: Path, target: Path) -> None:
    """The first COLUMNS * ROWS predictions, unchosen, each under its picture."""
    predictions = json.loads((results / "predictions.json").read_text(encoding="utf-8"))[: COLUMNS * ROWS]
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, ROWS * (SIDE + TEXT + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for number, row in enumerate(predictions):
        x = GAP + number % COLUMNS * (SIDE + GAP)
        y = GAP + number // COLUMNS * (SIDE + TEXT + GAP)
        picture = Image.open(images / row["file_name"]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, y))
        draw.multiline_text((x, y + SIDE + 8), textwrap.fill(row["caption"], 27), fill="#222", font=font, spacing=3)
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path("data/demo/images"), Path(sys.argv[2]))
