"""Charts as inline SVG: losses, a row of distances for each perturbation, ranks. Colours come from CSS."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from morphoray.evaluation.marks import bar, curve, marker, tone

WIDTH = 1100
MAX_POINTS = 600  # a curve; more is finer than the picture
MARK, LANES = 11.0, (0.0, -11.0, 11.0)  # pixels: the size of a mark, and where a row's marks stand
MOST_LANES = 7  # of a row in which more marks fall together
BARS = 4  # most models of a panel of ranks: more are too thin for their hatching
KEYED = 4  # curves that are told by the name at their end; more have their dash beside it


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


def loss_chart(
    losses: Mapping[str, Sequence[tuple[int, float]]],
    places: Mapping[str, int] | None = None,
    height: int = 300,
) -> str:
    """Loss by step of each model: points faint, their smoothed curve strong; logarithmic or from 0.

    places: each model's among all, which gives its colour and dash; None: in the order of losses. Points that
    are not finite and positive are left out. An empty string when nothing is left.
    """
    places = places or {name: place for place, name in enumerate(losses)}
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
    ends = _spread(
        {name: y_of(smooth(found[:, 1])[-1]) for name, found in curves.items()}, 18, height - bottom
    )
    for name, found in curves.items():
        stride = -(-len(found) // MAX_POINTS)
        for values_of, kind in ((found[:, 1], "raw"), (smooth(found[:, 1]), "smoothed")):
            pairs = zip(found[::stride, 0], values_of[::stride], strict=True)
            path = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in pairs)
            parts.append(curve(kind, places[name], path))
        if len(curves) <= KEYED:
            parts.append(_end(name, places[name], x_of(float(found[-1, 0])) + 8, ends[name]))
        else:
            parts.append(_end(name, places[name], WIDTH - right + 8, ends[name], keyed=True))
    return "".join([*parts, "</svg>"])


def _end(name: str, place: int, x: float, y: float, keyed: bool = False) -> str:
    """The name at a curve's end, behind a piece of the curve where it is keyed."""
    key = curve("smoothed", place, f"{x:.1f},{y:.1f} {x + 44:.1f},{y:.1f}") if keyed else ""
    x += 50 * keyed
    return key + _text(x, y + 4, _short(name, 16 if keyed else 22), f"label {tone(place)}", "start")


def _loss_axis(values: np.ndarray) -> tuple[bool, list[float], float, float]:
    """Whether the axis is logarithmic, its ticks and its ends: from 0 unless losses span a factor above 6."""
    low, high = float(np.quantile(values, 0.002)), float(np.quantile(values, 0.998))
    log = high / low > 6
    ticks = log_ticks(low, high) if log else linear_ticks(0, high, 5)
    return log, ticks, min([low, *ticks]), max([high, *ticks])


def dot_plot(rows: Sequence[DotRow], axis: str, marked_title: str) -> str:
    """Rows of dots on one scale from 0, the marked rows below a heading of their own."""
    left, right, top = 230, 30, 14
    high = max([dot.value for row in rows for dot in row.dots if math.isfinite(dot.value)], default=1.0)
    ticks = linear_ticks(0, high or 1.0, 8)
    scale = (WIDTH - left - right) / ticks[-1]
    lanes = _lanes([[left + dot.value * scale for dot in _finite(row)] for row in rows])
    row_height = 34 + MARK * (len(lanes) - len(LANES))
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
            parts.append(_dot_row(row, left, scale, y, lanes))
            y += row_height
    return "".join([*parts, "</svg>"])


def _finite(row: DotRow) -> list[Dot]:
    return [dot for dot in row.dots if math.isfinite(dot.value)]


def _lanes(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """As many lanes as keep the marks of every row apart: LANES, else up to MOST_LANES, the middle first."""
    lanes: tuple[float, ...] = LANES
    while len(lanes) < MOST_LANES and any(_hidden(places, lanes) for places in rows):
        further = lanes[-1] + MARK
        lanes = (*lanes, -further, further)
    return lanes


def _hidden(places: Sequence[float], lanes: Sequence[float]) -> bool:
    """Whether a mark hides another in so many lanes."""
    marks = [*zip(places, dodged(places, lanes), strict=True)]
    return any(math.dist(a, b) < MARK for index, a in enumerate(marks) for b in marks[:index])


def _dot_row(row: DotRow, left: float, scale: float, y: float, lanes: Sequence[float]) -> str:
    name = _text(left - 16, y + 4, _short(row.label, 28), "name", "end")
    parts = [f"<g><title>{escape(row.label)}</title>{name}</g>"]
    dots = _finite(row)
    places = [left + dot.value * scale for dot in dots]
    if dots:
        ends = f'x1="{min(places):.1f}" x2="{max(places):.1f}"'
        parts.append(f'<line class="span" {ends} y1="{y}" y2="{y}"/>')
    for dot, x, lane in zip(dots, places, dodged(places, lanes), strict=True):
        parts.append(marker(dot.mark, x, y + lane, dot.hint))
    return "".join(parts)


def dodged(places: Sequence[float], lanes: Sequence[float] = LANES) -> list[float]:
    """How far up or down each mark moves, so that no two within MARK pixels hide each other.

    The middle first, then above and below it; where all lanes are taken, the one with most room.
    """
    placed: list[tuple[float, float]] = []
    moved = [0.0] * len(places)
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        x = places[index]
        room = {lane: min((math.hypot(x - a, lane - b) for a, b in placed), default=MARK) for lane in lanes}
        free = [lane for lane in lanes if room[lane] >= MARK]
        moved[index] = free[0] if free else max(lanes, key=room.__getitem__)
        placed.append((x, moved[index]))
    return moved


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


def rank_chart(
    ranks: Mapping[str, Sequence[float]], places: Mapping[str, int] | None = None, height: int = 200
) -> str:
    """Histograms of ranks from 1 to the number of perturbations, a bar a model and bin; empty for none.

    places: as loss_chart takes them. Panels of BARS models at most stand below each other, on one scale.
    """
    count = max((len(values) for values in ranks.values()), default=0)
    if count < 2:
        return ""
    places = places or {name: place for place, name in enumerate(ranks)}
    edges = np.linspace(0.5, count + 0.5, min(count, 20) + 1)
    heights = {name: np.histogram(values, edges)[0] for name, values in ranks.items()}
    panels = -(-len(ranks) // BARS)
    size = -(-len(ranks) // panels)
    names = list(heights)
    most = max(int(each.max()) for each in heights.values())
    ticks = [tick for tick in linear_ticks(0, most, 4) if tick == int(tick)]
    parts = _frame(WIDTH, panels * height - 28 * (panels - 1), "Ranks of the matched real cohort")
    for panel in range(panels):
        shown = {name: heights[name] for name in names[panel * size : (panel + 1) * size]}
        parts += _rank_panel(shown, places, ticks, edges, panel * (height - 28) + 30, height - 84)
    bottom = panels * (height - 28) + 28
    left, right = SIDES
    axis = f"Rank of the right cohort among {count}: 1 is right"
    parts.append(_text((left + WIDTH - right) / 2, bottom - 10, axis, "name", "middle"))
    parts.append(_text(0, 14, "Perturbations", "name", "start"))
    return "".join([*parts, "</svg>"])


SIDES = 64, 210  # pixels left and right of a panel of ranks


def _rank_panel(
    heights: Mapping[str, np.ndarray],
    places: Mapping[str, int],
    ticks: Sequence[float],
    edges: np.ndarray,
    top: float,
    height: float,
) -> list[str]:
    """The bars of a few models with grid, names and bins' labels, from `top` on, `height` pixels high."""
    left, right = SIDES
    bins, bottom = len(edges) - 1, top + height
    slot = (WIDTH - left - right) / bins
    width = min(28.0, (slot - 6) / len(heights))
    parts = [
        _grid_line(left, WIDTH - right, bottom - height * tick / ticks[-1], f"{tick:g}") for tick in ticks
    ]
    for index, (name, values) in enumerate(heights.items()):
        for place, value in enumerate(values):
            x = left + place * slot + (slot - width * len(heights)) / 2 + index * width
            parts.append(bar(places[name], x, bottom, width - 3, height * value / ticks[-1]))
        y = top + 14 + 24 * index
        parts.append(bar(places[name], WIDTH - right + 14, y + 4, 16, 14))
        parts.append(_text(WIDTH - right + 38, y + 2, _short(name, 22), "name", "start"))
    for place in range(0, bins, max(1, bins // 10)):
        low, high = math.ceil(edges[place]), math.floor(edges[place + 1])
        label = f"{low}" if low >= high else f"{low}–{high}"
        parts.append(_text(left + (place + 0.5) * slot, bottom + 20, label, "tick", "middle"))
    return parts


def _spread(places: Mapping[str, float], least: float, most: float) -> dict[str, float]:
    """The places moved down where needed, so that labels stand at least `least` apart, then up to `most`."""
    moved: dict[str, float] = {}
    previous = -math.inf
    for name in sorted(places, key=lambda name: places[name]):
        previous = moved[name] = max(places[name], previous + least)
    below = max(most, *places.values()) + least
    for name in reversed(moved):
        below = moved[name] = min(moved[name], below - least)
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
