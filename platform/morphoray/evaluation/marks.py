"""How charts draw a method: a colour and a shape, dash or hatching by its place among the models, as SVG.

Colours repeat after 5 models and shapes, dashes and hatchings after 12, so that no two of the first 60 look
alike, and no two of the first 12 without colour. Colours come from report.html's CSS.
"""

from html import escape

import numpy as np

TONES = 5
FORMS = 12  # entries of SHAPES, DASHES and HATCHINGS each

UP, DOWN, RIGHT = "M{x} {y}m0 -6l5.5 10h-11z", "M{x} {y}m0 6l5.5 -10h-11z", "M{x} {y}m6 0l-10 5.5v-11z"
SMALL_UP, SMALL_DOWN = "M{x} {y}m0 -5.5l5 9h-10z", "M{x} {y}m0 5.5l5 -9h-10z"
SMALL_RIGHT = "M{x} {y}m5.5 0l-9 5v-10z"
SQUARE, HOURGLASS = "M{x} {y}m-4.5 -4.5h9v9h-9z", "M{x} {y}m-5 -5.5h10l-10 11h10z"
STAR = "M{x} {y}m0 -7l1.8 4.6 4.9 .3 -3.8 3.1 1.2 4.7 -4.1 -2.6 -4.1 2.6 1.2 -4.7 -3.8 -3.1 4.9 -.3z"
SHAPES = (  # whether it is filled, and its path; a circle has a radius
    (True, 5.5),
    (False, 4.75),
    (True, UP),
    (True, DOWN),
    (True, SQUARE),
    (False, SMALL_UP),
    (True, STAR),
    (False, SMALL_DOWN),
    (False, STAR),
    (True, HOURGLASS),
    (True, RIGHT),
    (False, SMALL_RIGHT),
)
BASELINES = {
    "copy_control": SQUARE,
    "other_perturbation": "M{x} {y}m-5 -5l10 10m0 -10l-10 10",
    "trained": "M{x} {y}m-5.5 0h11m-5.5 -5.5v11",
    "codec": "M{x} {y}m0 -5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
    "floor": "M{x} {y}m0 -6v12",
}
DASHES = (  # pixels of line and gap
    "",
    "9 4",
    "3 3",
    "12 3 3 3",
    "20 5",
    "1.5 4",
    "12 3 3 3 3 3",
    "20 4 9 4",
    "7 9",
    "20 3 3 3 3 3 3 3",
    "3 9",
    "9 3 9 9",
)
HATCHINGS = (  # the bar's ground, and its stripes: across, upwards, rising, falling
    ("solid", ""),
    ("hollow", ""),
    ("hollow", "across"),
    ("hollow", "upwards"),
    ("hollow", "rising"),
    ("hollow", "falling"),
    ("solid", "across"),
    ("hollow", "across upwards"),
    ("solid", "rising"),
    ("hollow", "rising falling"),
    ("solid", "falling"),
    ("solid", "upwards"),
)


def tone(place: int) -> str:
    """The CSS class with the colour of the model at this place."""
    return f"tone{place % TONES}"


def marker(mark: str, x: float, y: float, hint: str = "") -> str:
    """The mark of a method, `model<place>` or a baseline's name, about 11 pixels wide around (x, y)."""
    title = f"<title>{escape(hint)}</title>" if hint else ""
    if mark in BASELINES:
        return f'<g class="mark {mark}">{_shape(BASELINES[mark], x, y)}{title}</g>'
    place = int(mark.removeprefix("model"))
    solid, shape = SHAPES[place % FORMS]
    kind = "solid" if solid else "hollow"
    return f'<g class="mark {kind} {tone(place)}">{_shape(shape, x, y)}{title}</g>'


def key_of(mark: str) -> str:
    """The mark alone, as a table or a legend has it before a method's name."""
    return f'<svg class="key" viewBox="0 0 18 18" aria-hidden="true">{marker(mark, 9, 9)}</svg>'


def _shape(shape: str | float, x: float, y: float) -> str:
    if isinstance(shape, str):
        return f'<path d="{shape.format(x=f"{x:.1f}", y=f"{y:.1f}")}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{shape:g}"/>'


def curve(kind: str, place: int, points: str) -> str:
    """A polyline through `points` ("x,y x,y"), of class `kind`, dashed where it is "smoothed"."""
    dash = DASHES[place % FORMS]
    dashed = f' stroke-dasharray="{dash}"' if dash and kind == "smoothed" else ""
    return f'<polyline class="{kind} {tone(place)}"{dashed} points="{points}"/>'


def bar(place: int, x: float, bottom: float, width: float, height: float) -> str:
    """A bar of the model's own hatching, x its left side. Empty without height."""
    if height <= 0:
        return ""
    ground, stripes = HATCHINGS[place % FORMS]
    top = bottom - height
    shape = f'x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    path = "".join(_stripes(name, x, top, width, height) for name in stripes.split())
    hatching = f'<path class="hatch" d="{path}"/>' if path else ""
    return f'<g class="rank {ground} {tone(place)}"><rect {shape}/>{hatching}</g>'


def _stripes(name: str, x: float, top: float, width: float, height: float) -> str:
    """The path of stripes 4 pixels apart, slanted ones 5, within a box of pixels."""
    right, bottom = x + width, top + height
    if name == "across":
        return "".join(f"M{x:.1f} {y:.1f}h{width:.1f}" for y in np.arange(bottom - 4, top, -4))
    if name == "upwards":
        return "".join(f"M{at:.1f} {top:.1f}v{height:.1f}" for at in np.arange(x + 4, right, 4))
    parts = []
    for start in np.arange(5, width + height, 5):  # along the left side upwards, then along the top
        a, b = max(0.0, start - height), min(width, start)  # a stripe's ends, from the left
        low, high = bottom - (start - a), bottom - (start - b)
        left, to = (x + a, x + b) if name == "falling" else (right - a, right - b)
        parts.append(f"M{left:.1f} {low:.1f}L{to:.1f} {high:.1f}")
    return "".join(parts)
