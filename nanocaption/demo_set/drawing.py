"""Scene → picture: a background in soft layers, then the things from far to near, drawn large and reduced."""

import math
import random

from PIL import Image, ImageDraw

from nanocaption.demo_set.things import DRAW_KIND, PALETTE, Colour, Pen, disc, mix, oval, polygon, rect, shade

SUPERSAMPLING = 4
SKIES = (
    ((118, 190, 240), (232, 246, 250)),
    ((134, 204, 236), (252, 244, 222)),
    ((150, 190, 244), (246, 236, 244)),
)
NO_SHADOW = ("boat", "fish", "kite", "balloon", "bird", "sun", "moon")
# Rolling lines from far to near: height, swing, colour of the page below, number of waves.
HILLS: dict[str, tuple[tuple[float, float, Colour, float], ...]] = {
    "meadow": ((0.50, 0.035, (176, 218, 176), 1.2), (0.57, 0.030, (160, 214, 130), 1.2),
               (0.66, 0.020, (150, 208, 104), 1.2), (0.84, 0.020, (138, 198, 92), 1.2)),
    "beach": ((0.615, 0.012, (226, 246, 250), 1.6), (0.63, 0.008, (222, 196, 144), 1.6),
              (0.655, 0.010, (246, 224, 172), 1.4), (0.84, 0.02, (250, 230, 184), 1.2)),
    "snow": ((0.60, 0.02, (206, 222, 240), 1.2), (0.68, 0.02, (220, 232, 246), 1.2),
             (0.84, 0.02, (230, 239, 249), 1.2)),
    "night": ((0.54, 0.04, (48, 62, 118), 1.2), (0.62, 0.03, (42, 66, 104), 1.2), (0.70, 0.02, (38, 72, 92), 1.2),
              (0.86, 0.02, (34, 64, 82), 1.2)),
    "sea": ((0.49, 0.012, (150, 190, 206), 0.8), (0.50, 0.004, (92, 176, 220), 3.0), (0.56, 0.010, (74, 162, 214), 3.0),
            (0.66, 0.010, (58, 148, 206), 3.0), (0.80, 0.010, (44, 132, 194), 3.0)),
}  # fmt: skip


def draw_scene(scene: dict, size: int = 160) -> Image.Image:
    """The picture of a scene from `sample_scene`: RGB, size x size pixels; a pure function of its arguments.

    Drawn SUPERSAMPLING times larger and box-averaged, which is the anti-aliasing.
    """
    side = size * SUPERSAMPLING
    rng = random.Random(scene["look"])
    background = scene["background"]
    image = _draw_sky(rng, background, side)
    pen = Pen(ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA"), 0, 0, side, side, False, background)
    if background != "night":
        _draw_clouds(pen, rng)
    DRAW_BACKGROUND[background](pen, rng)
    for thing in sorted(scene["things"], key=lambda thing: thing["box"][3]):
        for box, flip in zip(thing["items"], thing["flip"], strict=True):
            _draw_item(pen, scene, thing, box, flip)
    return image.reduce(SUPERSAMPLING)


def _draw_item(page: Pen, scene: dict, thing: dict, box: list[float], flip: bool) -> None:
    x0, y0, x1, y1 = box
    side = page.width
    pen = page._replace(left=x0 * side, top=y0 * side, width=(x1 - x0) * side, height=(y1 - y0) * side, flip=flip)
    if thing["kind"] not in NO_SHADOW:
        flat = 0.10 * pen.width / pen.height
        oval(pen, -0.04, 1 - flat * 0.9, 1.06, 1 + flat * 0.8, (20, 30, 60, 56))
    DRAW_KIND[thing["kind"]](pen, PALETTE[thing["color"]])
    if scene["background"] == "sea" and thing["kind"] in ("boat", "fish"):
        for start, width in ((-0.06, 0.5), (0.38, 0.66)):
            oval(pen, start, 0.955, start + width, 1.02, (236, 248, 255, 190))


def _draw_sky(rng: random.Random, background: str, side: int) -> Image.Image:
    top, bottom = ((18, 26, 74), (74, 78, 148)) if background == "night" else rng.choice(SKIES)
    column = Image.new("RGB", (1, 64))
    column.putdata([mix(top, bottom, min(1.0, y / 38)) for y in range(64)])
    smooth = column.resize((1, side), Image.Resampling.BILINEAR)
    return smooth.resize((side, side), Image.Resampling.NEAREST)  # bilinear here costs 20 times more


def _draw_clouds(pen: Pen, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        x, y, w = rng.uniform(0.05, 0.95), rng.uniform(0.08, 0.34), rng.uniform(0.05, 0.08)
        for dx, dy, r in ((-1.0, 0.1, 0.62), (0.0, -0.2, 0.9), (0.95, 0.12, 0.58)):
            disc(pen, x + dx * w, y + dy * w, r * w, (255, 255, 255, 150))
        rect(pen, x - 1.5 * w, y + 0.15 * w, x + 1.4 * w, y + 0.7 * w, (255, 255, 255, 150), 0.27 * w)


def _draw_hills(pen: Pen, rng: random.Random) -> None:
    for y, swing, fill, waves in HILLS[pen.background]:
        phase, waves = rng.uniform(0, 2 * math.pi), waves * rng.uniform(0.8, 1.2)
        top = [(n / 32, y + swing * math.sin(phase + 2 * math.pi * waves * n / 32)) for n in range(33)]
        polygon(pen, [*top, (1, 1), (0, 1)], fill)


def _draw_meadow(pen: Pen, rng: random.Random) -> None:
    _draw_hills(pen, rng)
    for _ in range(26):
        x, y = rng.uniform(0, 1), rng.uniform(0.70, 0.98)
        polygon(pen, [(x - 0.008, y), (x - 0.004, y - 0.02), (x, y), (x + 0.006, y - 0.016), (x + 0.008, y)],
                (112, 178, 76))  # fmt: skip
    for _ in range(8):
        disc(pen, rng.uniform(0, 1), rng.uniform(0.72, 0.98), 0.006, (250, 252, 230))


def _draw_beach(pen: Pen, rng: random.Random) -> None:
    rect(pen, 0, 0.46, 1, 0.70, (72, 172, 214))
    rect(pen, 0, 0.46, 1, 0.50, (98, 186, 220))
    for _ in range(7):
        x, y = rng.uniform(-0.05, 0.9), rng.uniform(0.49, 0.57)
        rect(pen, x, y, x + rng.uniform(0.06, 0.14), y + 0.006, (214, 240, 248), 0.003)
    _draw_hills(pen, rng)
    for _ in range(18):
        disc(pen, rng.uniform(0, 1), rng.uniform(0.72, 0.98), rng.uniform(0.003, 0.005), (224, 196, 144))


def _draw_street(pen: Pen, rng: random.Random) -> None:
    x = -0.04
    while x < 1:
        width, height = rng.uniform(0.11, 0.19), rng.uniform(0.14, 0.30)
        tone = rng.choice(((190, 204, 222), (200, 212, 228), (180, 196, 216)))
        rect(pen, x, 0.62 - height, x + width, 0.66, tone)
        for row in range(int(height / 0.06)):
            for col in range(int(width / 0.05)):
                wx, wy = x + 0.018 + col * 0.05, 0.64 - height + row * 0.06
                rect(pen, wx, wy, wx + 0.02, wy + 0.028, shade(tone, 0.45))
        x += width
    rect(pen, 0, 0.62, 1, 0.80, (222, 218, 212))
    for n in range(9):
        polygon(pen, [(n / 8 - 0.003, 0.62), (n / 8 + 0.003, 0.62), (n / 8 + (n - 4) * 0.02 + 0.004, 0.79),
                      (n / 8 + (n - 4) * 0.02 - 0.004, 0.79)], (206, 201, 196))  # fmt: skip
    rect(pen, 0, 0.78, 1, 0.80, (190, 186, 184))
    rect(pen, 0, 0.80, 1, 1, (142, 146, 158))
    for n in range(5):
        rect(pen, n * 0.24 - 0.04, 0.945, n * 0.24 + 0.08, 0.96, (246, 244, 236), 0.004)
    lamp = rng.choice((0.03, 0.97))
    rect(pen, lamp - 0.005, 0.36, lamp + 0.005, 0.66, (112, 116, 128))
    rect(pen, lamp - 0.016, 0.64, lamp + 0.016, 0.66, (112, 116, 128), 0.004)
    disc(pen, lamp, 0.35, 0.02, (255, 244, 200))


def _draw_snow(pen: Pen, rng: random.Random) -> None:
    for n in range(4):
        x, peak = n * 0.32 + rng.uniform(-0.06, 0.06), rng.uniform(0.36, 0.44)
        polygon(pen, [(x - 0.28, 0.66), (x, peak), (x + 0.28, 0.66)], (164, 186, 214))
        polygon(pen, [(x - 0.07, peak + 0.07), (x, peak), (x + 0.07, peak + 0.07), (x + 0.03, peak + 0.055),
                      (x, peak + 0.08), (x - 0.03, peak + 0.055)], (240, 246, 252))  # fmt: skip
    _draw_hills(pen, rng)
    for _ in range(34):
        disc(pen, rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.003, 0.007), (255, 255, 255, 220))


def _draw_night(pen: Pen, rng: random.Random) -> None:
    for _ in range(36):
        disc(pen, rng.uniform(0, 1), rng.uniform(0, 0.5), rng.uniform(0.002, 0.006), (255, 250, 220, 220))
    _draw_hills(pen, rng)
    for _ in range(16):
        x, y = rng.uniform(0, 1), rng.uniform(0.74, 0.98)
        polygon(pen, [(x - 0.006, y), (x, y - 0.02), (x + 0.006, y)], (54, 94, 108))


def _draw_sea(pen: Pen, rng: random.Random) -> None:
    _draw_hills(pen, rng)
    for _ in range(16):
        y = rng.uniform(0.54, 0.97)
        x, w = rng.uniform(-0.05, 0.95), 0.05 + 0.10 * (y - 0.5)
        rect(pen, x, y, x + w, y + 0.007, (190, 228, 246, 170), 0.0035)


DRAW_BACKGROUND = {
    "meadow": _draw_meadow, "beach": _draw_beach, "street": _draw_street, "snow": _draw_snow,
    "night": _draw_night, "sea": _draw_sea,
}  # fmt: skip
