"""A map of profiles as inline SVG: a panel a source of images, coloured and numbered by perturbation."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from morphoray.evaluation.charts import WIDTH
from morphoray.evaluation.profile_results import ProfileMap
from morphoray.evaluation.profiles import REAL

HUES = 12  # perturbations with a colour and a number of their own; report.html has as many
ACROSS = 3  # panels side by side
GAP, HEAD = 26, 30  # pixels between panels, and above one for its title
EDGES = (0.005, 0.995)  # quantiles of all points that the frame holds

Points = npt.NDArray[np.float64]


def map_chart(found: ProfileMap, labels: Mapping[str, str], named: Sequence[str]) -> str:
    """Panels on one scale, the real images first; in the others these stand behind in grey.

    labels: each source's name. named: perturbations with a number and a colour, HUES at most; others are
    grey. Points beyond the frame stand at its edge.
    """
    sources = [REAL, *(name for name in found.coordinates if name != REAL)]
    across = max(2, min(ACROSS, len(sources)))
    width = (WIDTH - GAP * (across - 1)) / across
    height = round(width * 0.72)
    everything = np.concatenate(list(found.coordinates.values()))
    low, high = np.quantile(everything, EDGES, axis=0)
    parts = []
    for place, source in enumerate(sources):
        left = (place % across) * (width + GAP)
        top = HEAD + (place // across) * (height + HEAD + GAP)
        scaled = {
            name: _scaled(points, low, high, (left, top, width, height))
            for name, points in found.coordinates.items()
        }
        parts.append(f'<rect class="frame" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>')
        parts.append(f'<text class="panel" x="{left:.1f}" y="{top - 9}">{escape(labels[source])}</text>')
        if source != REAL:
            parts.append(f'<path class="dots ghost" d="{_path(scaled[REAL])}"/>')
        parts += _groups(scaled[source], found.perturbation_ids[source], named)
    rows = -(-len(sources) // across)
    legend, bottom = _legend(named, rows * (height + HEAD + GAP) + 12)
    across_by, up_by = found.axes
    title = escape(f"{found.title} of profiles, by source of images: {across_by} across, {up_by} up")
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom}" role="img" aria-label="{title}">{"".join(parts)}{legend}</svg>'
    )


def furthest(found: ProfileMap) -> list[str]:
    """The HUES perturbations whose real images' medians lie furthest from all real ones', by their spread."""
    points, names = found.coordinates[REAL], found.perturbation_ids[REAL]
    middle, spread = np.median(points, axis=0), points.std(axis=0) + 1e-12
    distances = {
        str(name): float(np.linalg.norm((np.median(points[names == name], axis=0) - middle) / spread))
        for name in sorted(set(names))
    }
    return sorted(distances, key=lambda name: -distances[name])[:HUES]


def _scaled(points: Points, low: Points, high: Points, box: tuple[float, float, float, float]) -> Points:
    """Pixels (N, 2) inside the box with a margin; the second coordinate points up."""
    left, top, width, height = box
    share = np.clip((points - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.stack(
        [left + 10 + share[:, 0] * (width - 20), top + height - 10 - share[:, 1] * (height - 20)], 1
    )


def _path(points: Points) -> str:
    """Dots as lines without length, whose caps are round: a tenth of a circle element each."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)


def _groups(points: Points, names: npt.NDArray[np.object_], named: Sequence[str]) -> list[str]:
    """The dots of one panel, other perturbations' first, and the numbers at the medians last."""
    others = points[~np.isin(names.astype(str), list(named))]
    parts = [f'<path class="dots other" d="{_path(others)}"/>'] if len(others) else []
    numbers = []
    for place, name in enumerate(named):
        mine = points[names == name]
        if len(mine):
            parts.append(
                f'<path class="dots hue{place}" d="{_path(mine)}"><title>{escape(name)}</title></path>'
            )
            x, y = np.median(mine, axis=0)
            numbers.append(f'<text class="number" x="{x:.1f}" y="{y + 5:.1f}">{place + 1}</text>')
    return [*parts, *numbers]


def _legend(named: Sequence[str], top: float) -> tuple[str, float]:
    """Numbers and names in as many lines as they need, and where the last line ends."""
    parts, x, y = [], 0.0, top
    for place, name in enumerate(named):
        short = name if len(name) <= 28 else name[:27] + "…"
        width = 52 + 8 * len(short)
        if x and x + width > WIDTH:
            x, y = 0.0, y + 24
        parts.append(
            f'<path class="dots large hue{place}" d="M{x + 8:.1f} {y - 5:.1f}h0"/>'
            f'<text class="name" x="{x + 20:.1f}" y="{y:.1f}"><tspan class="key">{place + 1}</tspan> '
            f"{escape(short)}</text>"
        )
        x += width
    return "".join(parts), y + 10
