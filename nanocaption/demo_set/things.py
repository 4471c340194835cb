"""How each kind of thing is drawn: flat shapes in the unit square of its box, lit from one side."""

from typing import NamedTuple

from PIL import ImageDraw

Colour = tuple[int, int, int]

PALETTE: dict[str, Colour] = {
    "red": (220, 44, 48), "orange": (248, 134, 24), "yellow": (253, 212, 40), "green": (36, 158, 72),
    "blue": (38, 98, 220), "purple": (132, 56, 180), "pink": (250, 122, 180), "white": (252, 252, 252),
    "black": (40, 40, 48), "brown": (134, 80, 40),
}  # fmt: skip
GLASS, LIT_GLASS, DARK = (205, 232, 246), (255, 226, 130), (54, 50, 60)


class Pen(NamedTuple):
    """A drawing surface whose unit square lies on a box of the picture, in pixels; mirrored where `flip`."""

    solid: ImageDraw.ImageDraw
    blend: ImageDraw.ImageDraw  # of the same image, for colours with alpha; slow on large areas
    left: float
    top: float
    width: float
    height: float
    flip: bool = False
    background: str = ""


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """From the first colour (amount 0) to the second (1)."""
    r, g, b = (round(x + (y - x) * amount) for x, y in zip(first, second, strict=True))
    return r, g, b


def shade(colour: Colour, amount: float) -> Colour:
    """Towards black (amount < 0) or white (amount > 0); 0 keeps the colour, +-1 is white or black."""
    return mix(colour, (255, 255, 255) if amount > 0 else (0, 0, 0), abs(amount))


def at(pen: Pen, x: float, y: float) -> tuple[float, float]:
    return pen.left + (1 - x if pen.flip else x) * pen.width, pen.top + y * pen.height


def surface(pen: Pen, fill: tuple[int, ...]) -> ImageDraw.ImageDraw:
    return pen.blend if len(fill) == 4 else pen.solid


def polygon(pen: Pen, points: list[tuple[float, float]], fill: tuple[int, ...]) -> None:
    surface(pen, fill).polygon([at(pen, x, y) for x, y in points], fill=fill)


def span(pen: Pen, x0: float, y0: float, x1: float, y1: float) -> list[float]:
    (ax, ay), (bx, by) = at(pen, x0, y0), at(pen, x1, y1)
    return [min(ax, bx), ay, max(ax, bx), by]


def oval(pen: Pen, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...]) -> None:
    surface(pen, fill).ellipse(span(pen, x0, y0, x1, y1), fill=fill)


def disc(pen: Pen, x: float, y: float, radius: float, fill: tuple[int, ...]) -> None:
    """A true circle; the radius is a fraction of the box's width."""
    cx, cy = at(pen, x, y)
    r = radius * pen.width
    surface(pen, fill).ellipse([cx - r, cy - r, cx + r, cy + r], fill=fill)


def rect(pen: Pen, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...], radius: float = 0.0) -> None:
    """A rectangle; the corner radius is a fraction of the box's width."""
    if radius:
        surface(pen, fill).rounded_rectangle(span(pen, x0, y0, x1, y1), radius * pen.width, fill=fill)
    else:
        surface(pen, fill).rectangle(span(pen, x0, y0, x1, y1), fill=fill)


def line(pen: Pen, points: list[tuple[float, float]], fill: tuple[int, ...], width: float) -> None:
    """A stroke with round joints; the width is a fraction of the box's width."""
    pixels = max(1, round(width * pen.width))
    surface(pen, fill).line([at(pen, x, y) for x, y in points], fill=fill, width=pixels, joint="curve")


def draw_house(pen: Pen, colour: Colour) -> None:
    glass = LIT_GLASS if pen.background == "night" else GLASS
    rect(pen, 0.70, 0.06, 0.82, 0.40, (150, 112, 100))
    rect(pen, 0.68, 0.05, 0.84, 0.10, (120, 88, 80))
    rect(pen, 0.08, 0.42, 0.92, 1.0, colour)
    polygon(pen, [(0.08, 0.42), (0.5, 0.10), (0.92, 0.42)], colour)
    rect(pen, 0.76, 0.42, 0.92, 1.0, shade(colour, -0.14))
    polygon(pen, [(0.0, 0.46), (0.5, 0.0), (1.0, 0.46), (0.93, 0.50), (0.5, 0.13), (0.07, 0.50)], (98, 70, 68))
    polygon(pen, [(0.5, 0.0), (1.0, 0.46), (0.93, 0.50), (0.5, 0.13)], (80, 56, 58))
    if pen.background == "snow":
        snow = [(0.0, 0.46), (0.5, 0.0), (1.0, 0.46), (0.97, 0.47), (0.5, 0.07), (0.03, 0.47)]
        polygon(pen, snow, (246, 250, 255))
    disc(pen, 0.5, 0.34, 0.062, (255, 255, 255))
    disc(pen, 0.5, 0.34, 0.045, glass)
    for x in (0.15, 0.65):
        rect(pen, x, 0.56, x + 0.2, 0.79, (255, 255, 255))
        rect(pen, x + 0.02, 0.58, x + 0.18, 0.77, glass)
        rect(pen, x + 0.09, 0.58, x + 0.11, 0.77, (255, 255, 255))
        rect(pen, x - 0.02, 0.79, x + 0.22, 0.82, shade(colour, -0.3))
    rect(pen, 0.41, 0.64, 0.59, 1.0, (112, 74, 56), 0.03)
    disc(pen, 0.55, 0.83, 0.015, (250, 220, 120))


def _draw_fir(pen: Pen, colour: Colour) -> None:
    rect(pen, 0.43, 0.80, 0.57, 1.0, (112, 76, 52))
    for top, bottom, half in ((0.40, 0.88, 0.48), (0.20, 0.64, 0.39), (0.0, 0.40, 0.29)):
        snow = bottom - 0.10
        polygon(pen, [(0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)], colour)
        polygon(pen, [(0.5, top), (0.5 + half, bottom), (0.5, bottom)], shade(colour, -0.16))
        upper = [(0.5 - half, bottom), (0.5 - half * 0.8, snow), (0.5, snow + 0.05), (0.5 + half * 0.8, snow)]
        lower = [(0.5 + half, bottom), (0.5 + half * 0.4, bottom - 0.02), (0.5 - half * 0.4, bottom - 0.02)]
        polygon(pen, upper + lower, (244, 249, 255))


def draw_tree(pen: Pen, colour: Colour) -> None:
    colour = shade(colour, 0.0 if pen.background == "night" else -0.2)
    if pen.background == "snow":
        _draw_fir(pen, colour)
        return
    polygon(pen, [(0.43, 0.55), (0.57, 0.55), (0.61, 1.0), (0.39, 1.0)], (120, 80, 52))
    polygon(pen, [(0.51, 0.55), (0.57, 0.55), (0.61, 1.0), (0.52, 1.0)], (98, 64, 44))
    for x, y, r in ((0.27, 0.48, 0.27), (0.73, 0.48, 0.27), (0.5, 0.28, 0.36), (0.5, 0.54, 0.26)):
        disc(pen, x, y, r, shade(colour, -0.16))
    for x, y, r in ((0.25, 0.46, 0.22), (0.67, 0.45, 0.22), (0.46, 0.26, 0.31), (0.46, 0.50, 0.22)):
        disc(pen, x, y, r, colour)
    for x, y, r in ((0.38, 0.18, 0.13), (0.22, 0.41, 0.09), (0.62, 0.40, 0.08)):
        disc(pen, x, y, r, shade(colour, 0.16))


def _wheels(pen: Pen, xs: tuple[float, ...], y: float, radius: float) -> None:
    for x in xs:
        disc(pen, x, y, radius, DARK)
        disc(pen, x, y, radius * 0.5, (196, 200, 208))


def draw_car(pen: Pen, colour: Colour) -> None:
    polygon(pen, [(0.16, 0.46), (0.29, 0.06), (0.34, 0.0), (0.66, 0.0), (0.71, 0.05), (0.86, 0.46)], colour)
    polygon(pen, [(0.24, 0.43), (0.33, 0.11), (0.48, 0.11), (0.48, 0.43)], GLASS)
    polygon(pen, [(0.52, 0.43), (0.52, 0.11), (0.66, 0.11), (0.77, 0.43)], GLASS)
    rect(pen, 0.0, 0.38, 1.0, 0.84, colour, 0.09)
    rect(pen, 0.02, 0.66, 0.98, 0.84, shade(colour, -0.18), 0.06)
    rect(pen, 0.93, 0.46, 1.0, 0.58, (255, 240, 170), 0.02)
    rect(pen, 0.0, 0.46, 0.04, 0.58, (190, 40, 50), 0.01)
    rect(pen, 0.53, 0.50, 0.60, 0.54, shade(colour, -0.35), 0.01)
    _wheels(pen, (0.23, 0.77), 0.80, 0.105)


def draw_bus(pen: Pen, colour: Colour) -> None:
    rect(pen, 0.0, 0.0, 1.0, 0.86, colour, 0.07)
    rect(pen, 0.0, 0.58, 1.0, 0.86, shade(colour, -0.16), 0.04)
    rect(pen, 0.0, 0.56, 1.0, 0.61, (255, 255, 255))
    for x in (0.05, 0.24, 0.43, 0.62):
        rect(pen, x, 0.14, x + 0.15, 0.46, GLASS, 0.02)
    rect(pen, 0.82, 0.14, 1.0, 0.50, GLASS, 0.03)
    rect(pen, 0.95, 0.64, 1.0, 0.74, (255, 240, 170), 0.01)
    _wheels(pen, (0.22, 0.76), 0.86, 0.083)


def draw_boat(pen: Pen, colour: Colour) -> None:
    rect(pen, 0.475, 0.0, 0.515, 0.78, (110, 76, 54))
    polygon(pen, [(0.52, 0.05), (0.66, 0.30), (0.78, 0.66), (0.52, 0.66)], shade(colour, 0.10))
    polygon(pen, [(0.47, 0.12), (0.34, 0.34), (0.14, 0.66), (0.47, 0.66)], shade(colour, -0.10))
    polygon(pen, [(0.52, 0.0), (0.66, 0.03), (0.52, 0.07)], shade(colour, -0.2))
    polygon(pen, [(0.0, 0.72), (1.0, 0.70), (0.84, 1.0), (0.16, 1.0)], colour)
    polygon(pen, [(0.07, 0.84), (0.92, 0.84), (0.84, 1.0), (0.16, 1.0)], shade(colour, -0.22))
    polygon(pen, [(0.0, 0.72), (1.0, 0.70), (0.98, 0.75), (0.02, 0.77)], (255, 255, 255))


def draw_ball(pen: Pen, colour: Colour) -> None:
    oval(pen, 0.0, 0.0, 1.0, 1.0, shade(colour, -0.2))
    for n in range(6):
        panel = colour if n % 2 else shade(colour, 0.36)
        pen.solid.pieslice(span(pen, 0.0, 0.0, 0.96, 0.96), 60 * n + 12, 60 * n + 72, fill=panel)
    oval(pen, 0.40, 0.40, 0.56, 0.56, (255, 255, 255))


def draw_cat(pen: Pen, colour: Colour) -> None:
    dark, light = shade(colour, -0.2), shade(colour, 0.14)
    line(pen, [(0.74, 0.92), (0.90, 0.88), (0.96, 0.72), (0.90, 0.58), (0.95, 0.50)], dark, 0.10)
    oval(pen, 0.14, 0.42, 0.82, 1.02, colour)
    rect(pen, 0.14, 0.74, 0.82, 1.0, colour, 0.10)
    oval(pen, 0.56, 0.62, 0.84, 1.0, dark)
    polygon(pen, [(0.08, 0.28), (0.10, 0.0), (0.36, 0.14)], colour)
    polygon(pen, [(0.76, 0.28), (0.74, 0.0), (0.48, 0.14)], colour)
    polygon(pen, [(0.14, 0.20), (0.15, 0.06), (0.28, 0.14)], (244, 168, 168))
    polygon(pen, [(0.70, 0.20), (0.69, 0.06), (0.56, 0.14)], (244, 168, 168))
    oval(pen, 0.04, 0.09, 0.80, 0.58, light)
    eye = (150, 220, 110) if sum(colour) < 200 else DARK
    for x in (0.27, 0.57):
        disc(pen, x, 0.31, 0.055, eye)
    polygon(pen, [(0.38, 0.38), (0.46, 0.38), (0.42, 0.43)], (236, 130, 140))
    for x in (0.26, 0.46):
        oval(pen, x, 0.90, x + 0.17, 1.0, light)


def draw_dog(pen: Pen, colour: Colour) -> None:
    dark, light = shade(colour, -0.22), shade(colour, 0.14)
    line(pen, [(0.10, 0.52), (0.03, 0.38), (0.06, 0.24)], colour, 0.08)
    for x in (0.16, 0.52):
        rect(pen, x + 0.06, 0.68, x + 0.17, 0.98, dark, 0.03)
    rect(pen, 0.07, 0.42, 0.71, 0.78, colour, 0.14)
    for x in (0.10, 0.57):
        rect(pen, x, 0.64, x + 0.12, 1.0, colour, 0.04)
    polygon(pen, [(0.52, 0.50), (0.60, 0.20), (0.82, 0.30), (0.70, 0.66)], colour)
    oval(pen, 0.52, 0.02, 0.88, 0.44, light)
    rect(pen, 0.70, 0.20, 1.0, 0.42, light, 0.08)
    oval(pen, 0.92, 0.18, 1.0, 0.28, DARK if sum(colour) > 200 else (150, 140, 150))
    oval(pen, 0.49, 0.07, 0.64, 0.50, dark)
    disc(pen, 0.75, 0.17, 0.032, DARK if sum(colour) > 200 else (255, 255, 255))
    rect(pen, 0.54, 0.48, 0.74, 0.55, (214, 60, 66), 0.02)


def draw_flower(pen: Pen, colour: Colour) -> None:
    line(pen, [(0.5, 0.35), (0.52, 0.7), (0.5, 1.0)], (44, 128, 64), 0.08)
    polygon(pen, [(0.51, 0.92), (0.62, 0.74), (0.92, 0.66), (0.80, 0.84)], (52, 146, 74))
    polygon(pen, [(0.50, 0.84), (0.38, 0.68), (0.10, 0.62), (0.22, 0.78)], (40, 122, 62))
    petals = ((0.5, 0.12), (0.75, 0.21), (0.80, 0.38), (0.65, 0.52), (0.35, 0.52), (0.20, 0.38), (0.25, 0.21))
    for x, y in petals:
        disc(pen, x, y, 0.20, shade(colour, -0.12))
        disc(pen, x - 0.015, y - 0.01, 0.165, colour)
    disc(pen, 0.5, 0.33, 0.19, (120, 78, 44) if colour == PALETTE["yellow"] else (255, 214, 70))
    disc(pen, 0.48, 0.32, 0.13, (146, 98, 56) if colour == PALETTE["yellow"] else (255, 226, 110))


def draw_umbrella(pen: Pen, colour: Colour) -> None:
    rect(pen, 0.475, 0.05, 0.525, 1.0, (146, 110, 84), 0.02)
    for left, right, amount in ((0.0, 1.0, 0.0), (0.18, 0.82, 0.34), (0.36, 0.64, 0.0)):
        pen.solid.pieslice(span(pen, left, 0.03, right, 1.07), 180, 360, fill=shade(colour, amount))
    for x, width, amount in ((0.0, 0.18, -0.2), (0.36, 0.28, -0.2), (0.82, 0.18, -0.2), (0.18, 0.18, 0.14),
                             (0.64, 0.18, 0.14)):  # fmt: skip
        oval(pen, x, 0.49, x + width, 0.60, shade(colour, amount))
    disc(pen, 0.5, 0.035, 0.033, (146, 110, 84))


def draw_fish(pen: Pen, colour: Colour) -> None:
    dark = shade(colour, -0.2)
    polygon(pen, [(0.24, 0.50), (0.0, 0.12), (0.06, 0.50), (0.0, 0.90)], dark)
    polygon(pen, [(0.36, 0.24), (0.50, 0.0), (0.72, 0.08), (0.72, 0.26)], dark)
    polygon(pen, [(0.44, 0.80), (0.50, 1.0), (0.64, 0.94), (0.66, 0.80)], dark)
    oval(pen, 0.14, 0.12, 1.0, 0.90, colour)
    oval(pen, 0.22, 0.54, 0.92, 0.86, shade(colour, 0.34))
    polygon(pen, [(0.46, 0.46), (0.64, 0.52), (0.46, 0.68)], dark)
    disc(pen, 0.82, 0.40, 0.062, (255, 255, 255))
    disc(pen, 0.835, 0.40, 0.034, DARK)


def draw_snowman(pen: Pen, colour: Colour) -> None:
    cool = (196, 212, 234)
    line(pen, [(0.20, 0.56), (0.0, 0.40)], (112, 78, 54), 0.035)
    line(pen, [(0.80, 0.56), (1.0, 0.40)], (112, 78, 54), 0.035)
    for x0, y0, x1, y1 in ((0.06, 0.56, 0.94, 1.0), (0.17, 0.36, 0.83, 0.74), (0.25, 0.14, 0.75, 0.46)):
        oval(pen, x0, y0, x1, y1, cool)
        oval(pen, x0, y0, x1 - 0.06, y1 - 0.015, colour)
    rect(pen, 0.27, 0.38, 0.73, 0.45, (214, 52, 58), 0.04)
    rect(pen, 0.58, 0.42, 0.69, 0.58, (190, 42, 50), 0.03)
    rect(pen, 0.32, 0.0, 0.68, 0.17, DARK, 0.03)
    rect(pen, 0.20, 0.14, 0.80, 0.185, DARK, 0.02)
    for x in (0.40, 0.58):
        disc(pen, x, 0.26, 0.032, DARK)
    polygon(pen, [(0.48, 0.29), (0.66, 0.32), (0.48, 0.345)], (248, 134, 24))
    for y in (0.54, 0.63, 0.76):
        disc(pen, 0.47, y, 0.03, DARK)


def draw_kite(pen: Pen, colour: Colour) -> None:
    line(pen, [(0.5, 0.66), (0.58, 0.76), (0.46, 0.86), (0.54, 0.98)], (120, 100, 96), 0.03)
    for x, y in ((0.565, 0.75), (0.46, 0.86), (0.53, 0.96)):
        polygon(pen, [(x, y), (x - 0.13, y - 0.035), (x - 0.13, y + 0.035)], shade(colour, -0.1))
        polygon(pen, [(x, y), (x + 0.13, y - 0.035), (x + 0.13, y + 0.035)], shade(colour, -0.1))
    polygon(pen, [(0.5, 0.0), (1.0, 0.28), (0.5, 0.68), (0.0, 0.28)], colour)
    polygon(pen, [(0.5, 0.0), (1.0, 0.28), (0.5, 0.28)], shade(colour, 0.28))
    polygon(pen, [(0.5, 0.28), (0.5, 0.68), (0.0, 0.28)], shade(colour, -0.16))
    line(pen, [(0.5, 0.0), (0.5, 0.68)], (255, 255, 255), 0.025)
    line(pen, [(0.0, 0.28), (1.0, 0.28)], (255, 255, 255), 0.025)


def draw_balloon(pen: Pen, colour: Colour) -> None:
    for x in (0.38, 0.62):
        line(pen, [(x + (x - 0.5) * 0.9, 0.62), (x, 0.86)], (120, 96, 80), 0.025)
    polygon(pen, [(0.06, 0.48), (0.94, 0.48), (0.64, 0.76), (0.36, 0.76)], shade(colour, -0.12))
    oval(pen, 0.0, 0.0, 1.0, 0.70, shade(colour, -0.12))
    oval(pen, 0.0, 0.0, 0.90, 0.69, colour)
    polygon(pen, [(0.10, 0.52), (0.80, 0.52), (0.58, 0.74), (0.38, 0.74)], colour)
    oval(pen, 0.33, 0.0, 0.67, 0.74, shade(colour, 0.34))
    rect(pen, 0.36, 0.72, 0.64, 0.77, shade(colour, -0.3), 0.02)
    rect(pen, 0.36, 0.85, 0.64, 1.0, (158, 108, 62), 0.03)
    rect(pen, 0.36, 0.85, 0.64, 0.89, (118, 78, 46), 0.02)


def draw_bird(pen: Pen, colour: Colour) -> None:
    dark = shade(colour, -0.24)
    polygon(pen, [(0.24, 0.60), (0.0, 0.52), (0.04, 0.66), (0.0, 0.80)], dark)
    polygon(pen, [(0.40, 0.55), (0.58, 0.04), (0.70, 0.0), (0.72, 0.56)], dark)
    oval(pen, 0.16, 0.42, 0.82, 0.88, colour)
    disc(pen, 0.77, 0.48, 0.145, colour)
    polygon(pen, [(0.88, 0.42), (1.0, 0.51), (0.88, 0.58)], (250, 150, 40))
    oval(pen, 0.34, 0.64, 0.74, 0.87, shade(colour, 0.35))
    polygon(pen, [(0.32, 0.60), (0.22, 0.10), (0.32, 0.02), (0.50, 0.22), (0.62, 0.62)], shade(colour, 0.12))
    disc(pen, 0.81, 0.44, 0.032, DARK if sum(colour) > 200 else (255, 255, 255))


def draw_sun(pen: Pen, colour: Colour) -> None:
    for inset, alpha in ((-0.28, 40), (-0.14, 70)):
        oval(pen, inset, inset, 1 - inset, 1 - inset, (255, 236, 150, alpha))
    oval(pen, 0.0, 0.0, 1.0, 1.0, (255, 200, 40))
    oval(pen, 0.07, 0.07, 0.93, 0.93, shade(colour, 0.12))


def draw_moon(pen: Pen, colour: Colour) -> None:
    for inset, alpha in ((-0.3, 22), (-0.15, 30)):
        oval(pen, inset, inset, 1 - inset, 1 - inset, (255, 246, 190, alpha))
    oval(pen, 0.0, 0.0, 1.0, 1.0, shade(colour, 0.36))
    for x, y, r in ((0.34, 0.36, 0.11), (0.62, 0.62, 0.14), (0.66, 0.28, 0.07)):
        disc(pen, x, y, r, shade(colour, 0.14))


DRAW_KIND = {
    "house": draw_house, "tree": draw_tree, "car": draw_car, "bus": draw_bus, "boat": draw_boat,
    "ball": draw_ball, "cat": draw_cat, "dog": draw_dog, "flower": draw_flower, "umbrella": draw_umbrella,
    "fish": draw_fish, "snowman": draw_snowman, "kite": draw_kite, "balloon": draw_balloon,
    "bird": draw_bird, "sun": draw_sun, "moon": draw_moon,
}  # fmt: skip
