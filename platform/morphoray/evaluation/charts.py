"""Charts as inline SVG: loss curves, and a row of distances for each perturbation. Colours come from CSS."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH = 1100
MAX_POINTS = 600  # a curve; more is finer than the picture


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
    """Loss by step of each model: points faint, their smoothed curve strong; logarithmic over a wide range.

    Points that are not finite and positive are left out. An empty string when nothing is left.
    """
    curves = {}
    for name, points in losses.items():
        kept = np.array([point for point in points if math.isfinite(point[1]) and point[1] > 0])
        if len(kept):
            curves[name] = kept[np.argsort(kept[:, 0], kind="stable")]
    if not curves:
        return ""
    left, right, top, bottom = 64, 150, 12, 36
    values = np.concatenate([curve[:, 1] for curve in curves.values()])
    low, high = float(np.quantile(values, 0.002)), float(np.quantile(values, 0.998))
    high = max(high, low * 1.05)
    log = high / low > 6
    y_ticks = log_ticks(low, high) if log else linear_ticks(low, high, 5)
    y_low, y_high = min(low, y_ticks[0] if y_ticks else low), max(high, y_ticks[-1] if y_ticks else high)
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
            parts.append(_text(x_of(tick), height - 14, f"{tick:,.0f}", "tick", "middle"))
    parts.append(_text(WIDTH - right + 14, height - 14, "step", "tick", "start"))
    ends = _spread({name: y_of(smooth(curve[:, 1])[-1]) for name, curve in curves.items()}, 18)
    for index, (name, curve) in enumerate(curves.items()):
        stride = -(-len(curve) // MAX_POINTS)
        for values_of, kind in ((curve[:, 1], "raw"), (smooth(curve[:, 1]), "smoothed")):
            pairs = zip(curve[::stride, 0], values_of[::stride], strict=True)
            path = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in pairs)
            parts.append(f'<polyline class="{kind} series{index % 4}" points="{path}"/>')
        end = x_of(float(curve[-1, 0])) + 8
        parts.append(_text(end, ends[name] + 4, name, f"label fill{index % 4}", "start"))
    return "".join([*parts, "</svg>"])


def dot_plot(rows: Sequence[DotRow], axis: str, marked_title: str) -> str:
    """Rows of dots on one scale from 0, the marked rows below a heading of their own."""
    left, right, row_height = 230, 30, 26
    plain = [row for row in rows if not row.marked]
    marked = [row for row in rows if row.marked]
    high = max([dot.value for row in rows for dot in row.dots if math.isfinite(dot.value)], default=1.0)
    ticks = linear_ticks(0, high or 1.0, 8)
    scale = (WIDTH - left - right) / ticks[-1]
    top = 14
    height = top + row_height * (len(rows) + (1 if marked else 0)) + 34
    parts = _frame(WIDTH, height, "Distance from real images, one row a perturbation")
    for tick in ticks:
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 30}"/>')
        parts.append(_text(x, height - 12, f"{tick:g}", "tick", "middle"))
    parts.append(_text(left - 16, height - 12, axis, "tick", "end"))
    y = top + row_height / 2
    for group in (plain, marked):
        if group and group is marked:
            parts.append(_text(left - 16, y + 4, marked_title, "group", "end"))
            parts.append(f'<line class="rule" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            y += row_height
        for row in group:
            parts.append(_dot_row(row, left, scale, y))
            y += row_height
    return "".join([*parts, "</svg>"])


def _dot_row(row: DotRow, left: float, scale: float, y: float) -> str:
    short = row.label if len(row.label) <= 28 else row.label[:27] + "…"
    parts = [f"<g><title>{escape(row.label)}</title>{_text(left - 16, y + 4, short, 'name', 'end')}</g>"]
    dots = [dot for dot in row.dots if math.isfinite(dot.value)]
    if dots:
        ends = [left + bound(dot.value for dot in dots) * scale for bound in (min, max)]
        parts.append(f'<line class="span" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>')
    for dot in dots:
        parts.append(marker(dot.mark, left + dot.value * scale, y, dot.hint))
    return "".join(parts)


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart; `hint` is what the pointer shows."""

    x: float
    y: float
    hint: str


def scatter_chart(points: Sequence[Point], x_axis: str, y_axis: str, height: int = 340) -> str:
    """Points on two scales, y from 0; those that are not finite are left out. Empty when nothing is left."""
    kept = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not kept:
        return ""
    left, right, top, bottom = 64, 30, 30, 46
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
    parts.append(_text(WIDTH - right, height - 6, x_axis, "name", "end"))
    parts.append(_text(0, 14, y_axis, "name", "start"))
    for point in kept:
        parts.append(marker("model0", left + point.x * x_scale, y_of(point.y), point.hint))
    return "".join([*parts, "</svg>"])


def rank_chart(ranks: Mapping[str, Sequence[float]], height: int = 220) -> str:
    """Histograms of ranks from 1 to the number of perturbations, a bar a model and bin; empty for none."""
    count = max((len(values) for values in ranks.values()), default=0)
    if count < 2:
        return ""
    bins = min(count, 20)
    edges = np.linspace(0.5, count + 0.5, bins + 1)
    heights = {name: np.histogram(values, edges)[0] for name, values in ranks.items()}
    most = max(int(values.max()) for values in heights.values())
    left, right, top, bottom = 64, 190, 12, 36
    ticks = [tick for tick in linear_ticks(0, most, 4) if tick == int(tick)]
    scale_y = (height - top - bottom) / max(ticks[-1], most)
    slot = (WIDTH - left - right) / bins
    bar = min(28.0, (slot - 6) / len(heights))
    parts = _frame(WIDTH, height, "Ranks of the matched real cohort")
    parts += [
        _grid_line(left, WIDTH - right, height - bottom - tick * scale_y, f"{tick:g}") for tick in ticks
    ]
    for index, (name, values) in enumerate(heights.items()):
        for place, value in enumerate(values):
            x = left + place * slot + (slot - bar * len(heights)) / 2 + index * bar
            y = height - bottom - value * scale_y
            parts.append(
                f'<rect class="fill{index % 4}" x="{x:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" '
                f'height="{value * scale_y:.1f}"/>'
            )
        parts.append(
            _text(WIDTH - right + 14, top + 14 + 20 * index, name, f"label fill{index % 4}", "start")
        )
    for place in range(0, bins, max(1, bins // 10)):
        low, high = math.ceil(edges[place]), math.floor(edges[place + 1])
        label = f"{low}" if low >= high else f"{low}–{high}"
        parts.append(_text(left + (place + 0.5) * slot, height - 14, label, "tick", "middle"))
    parts.append(_text(WIDTH - right + 14, height - 14, "rank", "tick", "start"))
    return "".join([*parts, "</svg>"])


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
        "floor": f'<path d="M{x:.1f} {y - 7:.1f}v14"/>',
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


def _frame(width: int, height: float, title: str) -> list[str]:
    return [f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(title)}">']


def _grid_line(x1: float, x2: float, y: float, label: str) -> str:
    line = f'<line class="grid" x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(x1 - 10, y + 4, label, "tick", "end")


def _text(x: float, y: float, content: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
