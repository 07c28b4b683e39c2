"""Charts as inline SVG: losses, a row of distances for each perturbation, ranks. Colours come from CSS."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH = 1100
MAX_POINTS = 600  # a curve; more is finer than the picture
MARK, LANES = 11.0, (0.0, -11.0, 11.0)  # pixels: the size of a mark, and where a row's marks stand


@dataclass(frozen=True)
class Dot:
    """One method's value in a row; `mark` is its shape and CSS class, `hint` what the pointer shows."""

    mark: str
    value: float
    hint: str


@dataclass(frozen=True)
class DotRow:
    """A labelled row of dots; `marked` rows are drawn apart, at the end."""

    label: str
    dots: Sequence[Dot]
    marked: bool = False


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that cover [low, high] in about `count` steps."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [unit * 10.0**power for power in powers for unit in (1, 2, 5) if low <= unit * 10.0**power <= high]


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a fiftieth of the curve, corrected for its start."""
    weight = 1 - 1 / max(2.0, len(values) / 50)
    total, mass, out = 0.0, 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        total, mass = weight * total + value, weight * mass + 1
        out[index] = total / mass
    return out


def loss_chart(losses: Mapping[str, Sequence[tuple[int, float]]], height: int = 300) -> str:
    """Loss by step of each model: points faint, their smoothed curve strong; logarithmic or from 0.

    Points that are not finite and positive are left out. An empty string when nothing is left.
    """
    curves = {}
    for name, points in losses.items():
        kept = np.array([point for point in points if math.isfinite(point[1]) and point[1] > 0])
        if len(kept):
            curves[name] = kept[np.argsort(kept[:, 0], kind="stable")]
    if not curves:
        return ""
    left, right, top, bottom = 64, 180, 30, 54
    values = np.concatenate([curve[:, 1] for curve in curves.values()])
    log, y_ticks, y_low, y_high = _loss_axis(values)
    last_step = max(float(curve[-1, 0]) for curve in curves.values()) or 1.0

    def x_of(step: float) -> float:
        return left + (WIDTH - left - right) * step / last_step

    def y_of(value: float) -> float:
        scale = math.log if log else float
        share = (scale(value) - scale(y_low)) / (scale(y_high) - scale(y_low))
        return top + (height - top - bottom) * (1 - min(1.0, max(0.0, share)))

    parts = _frame(WIDTH, height, "Training loss by step")
    parts += [_grid_line(left, WIDTH - right, y_of(tick), f"{tick:g}") for tick in y_ticks]
    for tick in linear_ticks(0, last_step, 8):
        if tick <= last_step:
            parts.append(_text(x_of(tick), height - 34, f"{tick:,.0f}", "tick", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 10, "Training step", "name", "middle"))
    parts.append(_text(0, 14, f"Training loss{', logarithmic' if log else ''}", "name", "start"))
    ends = _spread({name: y_of(smooth(curve[:, 1])[-1]) for name, curve in curves.items()}, 18)
    for index, (name, curve) in enumerate(curves.items()):
        stride = -(-len(curve) // MAX_POINTS)
        for values_of, kind in ((curve[:, 1], "raw"), (smooth(curve[:, 1]), "smoothed")):
            pairs = zip(curve[::stride, 0], values_of[::stride], strict=True)
            path = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in pairs)
            parts.append(f'<polyline class="{kind} series{index % 4}" points="{path}"/>')
        end = x_of(float(curve[-1, 0])) + 8
        parts.append(_text(end, ends[name] + 4, _short(name, 22), f"label fill{index % 4}", "start"))
    return "".join([*parts, "</svg>"])


def _loss_axis(values: np.ndarray) -> tuple[bool, list[float], float, float]:
    """Whether the axis is logarithmic, its ticks and its ends: from 0 unless losses span a factor above 6."""
    low, high = float(np.quantile(values, 0.002)), float(np.quantile(values, 0.998))
    log = high / low > 6
    ticks = log_ticks(low, high) if log else linear_ticks(0, high, 5)
    return log, ticks, min([low, *ticks]), max([high, *ticks])


def dot_plot(rows: Sequence[DotRow], axis: str, marked_title: str) -> str:
    """Rows of dots on one scale from 0, the marked rows below a heading of their own."""
    left, right, top, row_height = 230, 30, 14, 34
    high = max([dot.value for row in rows for dot in row.dots if math.isfinite(dot.value)], default=1.0)
    ticks = linear_ticks(0, high or 1.0, 8)
    scale = (WIDTH - left - right) / ticks[-1]
    groups = [[row for row in rows if row.marked is marked] for marked in (False, True)]
    height = top + row_height * (len(rows) + bool(groups[1])) + 54
    parts = _frame(WIDTH, height, "Distance from real images, one row a perturbation")
    for tick in ticks:
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 50}"/>')
        parts.append(_text(x, height - 32, f"{tick:g}", "tick", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 10, axis, "name", "middle"))
    y = top + row_height / 2
    for group in groups:
        if group and group is groups[1]:
            parts.append(_text(left - 16, y + 4, marked_title, "group", "end"))
            parts.append(f'<line class="rule" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            y += row_height
        for row in group:
            parts.append(_dot_row(row, left, scale, y))
            y += row_height
    return "".join([*parts, "</svg>"])


def _dot_row(row: DotRow, left: float, scale: float, y: float) -> str:
    name = _text(left - 16, y + 4, _short(row.label, 28), "name", "end")
    parts = [f"<g><title>{escape(row.label)}</title>{name}</g>"]
    dots = [dot for dot in row.dots if math.isfinite(dot.value)]
    places = [left + dot.value * scale for dot in dots]
    if dots:
        ends = f'x1="{min(places):.1f}" x2="{max(places):.1f}"'
        parts.append(f'<line class="span" {ends} y1="{y}" y2="{y}"/>')
    for dot, x, lane in zip(dots, places, dodged(places), strict=True):
        parts.append(marker(dot.mark, x, y + lane, dot.hint))
    return "".join(parts)


def dodged(places: Sequence[float]) -> list[float]:
    """How far up or down each mark moves, so that no two within MARK pixels hide each other.

    The middle first, then above and below it; where all three are taken, the one with most room.
    """
    placed: list[tuple[float, float]] = []
    lanes = [0.0] * len(places)
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        x = places[index]
        room = {lane: min((math.hypot(x - a, lane - b) for a, b in placed), default=MARK) for lane in LANES}
        free = [lane for lane in LANES if room[lane] >= MARK]
        lanes[index] = free[0] if free else max(LANES, key=lambda lane: room[lane])
        placed.append((x, lanes[index]))
    return lanes


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart; `label` stands beside it, `hint` is what the pointer shows."""

    x: float
    y: float
    hint: str
    label: str = ""


def scatter_chart(points: Sequence[Point], x_axis: str, y_axis: str, height: int = 270) -> str:
    """Points on two scales, y from 0; those that are not finite are left out. Empty when nothing is left.

    A label that would cover a mark or another label is left out, and only its hint tells the name.
    """
    kept = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not kept:
        return ""
    left, right, top, bottom = 64, 30, 34, 54
    x_ticks = linear_ticks(0, max(point.x for point in kept) or 1.0, 8)
    y_ticks = linear_ticks(min(0.0, *(point.y for point in kept)), max(point.y for point in kept) or 1.0, 5)
    x_scale = (WIDTH - left - right) / x_ticks[-1]
    y_scale = (height - top - bottom) / (y_ticks[-1] - y_ticks[0])

    def y_of(value: float) -> float:
        return height - bottom - (value - y_ticks[0]) * y_scale

    parts = _frame(WIDTH, height, f"{y_axis} by {x_axis}")
    parts += [_grid_line(left, WIDTH - right, y_of(tick), f"{tick:g}") for tick in y_ticks]
    parts += [
        _text(left + tick * x_scale, height - bottom + 18, f"{tick:g}", "tick", "middle") for tick in x_ticks
    ]
    parts.append(_text((left + WIDTH - right) / 2, height - 10, x_axis, "name", "middle"))
    parts.append(_text(0, 14, y_axis, "name", "start"))
    places = [(left + point.x * x_scale, y_of(point.y)) for point in kept]
    for point, (x, y) in zip(kept, places, strict=True):
        parts.append(marker("model0", x, y, point.hint))
    return "".join([*parts, *_beside(places, [_short(point.label, 28) for point in kept]), "</svg>"])


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _beside(places: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[str]:
    """The labels right or left of their marks, above or below, wherever they cover nothing."""
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    parts = []
    for (x, y), label in zip(places, labels, strict=True):
        width = 7.6 * len(label)
        for start, middle in (
            (x + 11, y),
            (x - 11 - width, y),
            (x - width / 2, y - 17),
            (x - width / 2, y + 17),
        ):
            box = (start, middle - 8, start + width, middle + 8)
            if label and _free(box, taken):
                taken.append(box)
                parts.append(_text(start, middle + 4.5, label, "beside", "start"))
                break
    return parts


def _free(box: Box, taken: Sequence[Box]) -> bool:
    """Whether the box lies inside the picture and apart from the others."""
    left, top, right, bottom = box
    apart = (left >= b[2] or right <= b[0] or top >= b[3] or bottom <= b[1] for b in taken)
    return left >= 0 and right <= WIDTH and all(apart)


def rank_chart(ranks: Mapping[str, Sequence[float]], height: int = 200) -> str:
    """Histograms of ranks from 1 to the number of perturbations, a bar a model and bin; empty for none."""
    count = max((len(values) for values in ranks.values()), default=0)
    if count < 2:
        return ""
    bins = min(count, 20)
    edges = np.linspace(0.5, count + 0.5, bins + 1)
    heights = {name: np.histogram(values, edges)[0] for name, values in ranks.items()}
    left, right, top, bottom = 64, 210, 30, 54
    most = max(int(each.max()) for each in heights.values())
    ticks = [tick for tick in linear_ticks(0, most, 4) if tick == int(tick)]
    scale_y = (height - top - bottom) / ticks[-1]
    slot = (WIDTH - left - right) / bins
    bar = min(28.0, (slot - 6) / len(heights))
    parts = _frame(WIDTH, height, "Ranks of the matched real cohort")
    parts += [
        _grid_line(left, WIDTH - right, height - bottom - tick * scale_y, f"{tick:g}") for tick in ticks
    ]
    for index, (name, values) in enumerate(heights.items()):
        for place, value in enumerate(values):
            x = left + place * slot + (slot - bar * len(heights)) / 2 + index * bar
            parts.append(_bar(index, x, height - bottom, bar - 3, value * scale_y))
        y = top + 14 + 24 * index
        parts.append(_bar(index, WIDTH - right + 14, y + 4, 16, 14))
        parts.append(_text(WIDTH - right + 38, y + 2, _short(name, 22), "name", "start"))
    for place in range(0, bins, max(1, bins // 10)):
        low, high = math.ceil(edges[place]), math.floor(edges[place + 1])
        label = f"{low}" if low >= high else f"{low}–{high}"
        parts.append(_text(left + (place + 0.5) * slot, height - 34, label, "tick", "middle"))
    axis = f"Rank of the right cohort among {count}: 1 is right"
    parts.append(_text((left + WIDTH - right) / 2, height - 10, axis, "name", "middle"))
    parts.append(_text(0, 14, "Perturbations", "name", "start"))
    return "".join([*parts, "</svg>"])


def _bar(index: int, x: float, bottom: float, width: float, height: float) -> str:
    """A bar of its own hatching: filled, hollow, striped across, striped upwards. Empty without height."""
    if height <= 0:
        return ""
    kind = index % 4
    top = bottom - height
    shape = f'x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    across = [f"M{x:.1f} {y:.1f}h{width:.1f}" for y in np.arange(bottom - 4, top, -4)]
    upwards = [f"M{at:.1f} {top:.1f}v{height:.1f}" for at in np.arange(x + 4, x + width, 4)]
    stripes = "".join({2: across, 3: upwards}.get(kind, []))
    hatching = f'<path class="hatch series{kind}" d="{stripes}"/>' if stripes else ""
    return f'<rect class="rank fill{kind} series{kind}" {shape}/>{hatching}'


def marker(mark: str, x: float, y: float, hint: str = "") -> str:
    """A method's mark, a shape of its own, so that methods are told apart without colour."""
    shapes = {
        "model0": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>',
        "model1": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.75"/>',
        "model2": f'<path d="M{x:.1f} {y - 6:.1f}l5.5 10h-11z"/>',
        "model3": f'<path d="M{x:.1f} {y + 6:.1f}l5.5 -10h-11z"/>',
        "model4": f'<path d="M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z"/>',
        "copy_control": f'<path d="M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z"/>',
        "other_perturbation": f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>',
        "trained": f'<path d="M{x - 5.5:.1f} {y:.1f}h11m-5.5 -5.5v11"/>',
        "codec": f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5-5.5z"/>',
        "floor": f'<path d="M{x:.1f} {y - 6:.1f}v12"/>',
    }
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<g class="mark {mark}">{shapes[mark]}{title}</g>'


def _spread(places: Mapping[str, float], least: float) -> dict[str, float]:
    """The places moved down where needed, so that labels stand at least `least` apart."""
    moved: dict[str, float] = {}
    previous = -math.inf
    for name in sorted(places, key=lambda name: places[name]):
        previous = moved[name] = max(places[name], previous + least)
    return moved


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _frame(width: int, height: float, title: str) -> list[str]:
    return [f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(title)}">']


def _grid_line(x1: float, x2: float, y: float, label: str) -> str:
    line = f'<line class="grid" x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(x1 - 10, y + 4, label, "tick", "end")


def _text(x: float, y: float, content: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
