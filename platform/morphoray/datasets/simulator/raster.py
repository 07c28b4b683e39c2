"""From outlines to pixels: who owns a pixel, how deep inside the cell it lies, and small round things."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.shapes import ANGLES, INTERPHASE, Cells, Nuclei

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]


@dataclass
class CellMap:
    """Per-pixel geometry of a field, each (size, size).

    owner: index of the cell on top, n where there is none; depth: radial coordinate, 0 at the centre and 1 on
    the outline; second: the same of the cell below; dy, dx: offset from the owner's centre, px.
    """

    owner: Ints
    depth: Floats
    second: Floats
    dy: Floats
    dx: Floats

    def spread(self, values: npt.NDArray[Any]) -> Floats:
        """(size, size): the owner's value of a per-cell array, 0 outside every cell."""
        return np.append(values, 0).astype(np.float32)[self.owner]


@dataclass
class NucleusMap:
    """Per-pixel nuclei of a field, each (size, size).

    mask: 0..1, soft over a pixel; dna: summed over overlapping nuclei, times their gain; flat: 1 where the
    chromatin is condensed and shows no texture.
    """

    mask: Floats
    dna: Floats
    flat: Floats


@lru_cache(maxsize=4)
def _polar(half: int) -> tuple[Floats, Ints]:
    """Distance from the middle and angle index of a (2 half + 1) square."""
    axis = np.arange(-half, half + 1)
    distance = np.hypot(axis[:, None], axis[None]).astype(np.float32)
    angle = np.arctan2(axis[:, None], axis[None]) * (ANGLES / (2 * np.pi))
    return distance, np.rint(angle).astype(np.intp) % ANGLES


@dataclass(frozen=True)
class Patch:
    """Where a round patch lies in the field (`field`) and in the polar square (`square`)."""

    field: tuple[slice, slice]
    square: tuple[slice, slice]


def _patch(y: float, x: float, reach: int, half: int, size: int) -> Patch | None:
    """The part of a square of `reach` px around (y, x) that lies in the field; None if none does."""
    cy, cx = int(np.rint(y)), int(np.rint(x))
    y0, y1 = max(cy - reach, 0), min(cy + reach + 1, size)
    x0, x1 = max(cx - reach, 0), min(cx + reach + 1, size)
    if y0 >= y1 or x0 >= x1:
        return None
    square = (slice(y0 - cy + half, y1 - cy + half), slice(x0 - cx + half, x1 - cx + half))
    return Patch((slice(y0, y1), slice(x0, x1)), square)


def map_cells(cells: Cells, size: int) -> CellMap:
    """Who owns each pixel: the cell in whose outline it lies deepest; rounded cells lie on top."""
    n = len(cells.y)
    reach = np.ceil(cells.contour.max(1) * 1.12).astype(int) + 1
    half = int(reach.max())
    distance, angle = _polar(half + (-half) % 16)  # few distinct sizes, so that the cache holds
    half += (-half) % 16
    owner = np.full((size, size), n, np.intp)
    depth = np.full((size, size), 9.0, np.float32)
    second = np.full((size, size), 9.0, np.float32)
    for i in np.argsort(cells.kind != INTERPHASE, kind="stable"):
        patch = _patch(cells.y[i], cells.x[i], int(reach[i]), half, size)
        if patch is None:
            continue
        own = distance[patch.square] / cells.contour[i].take(angle[patch.square], mode="clip")
        top, below = depth[patch.field], second[patch.field]
        if cells.kind[i] == INTERPHASE:
            nearer = own < top
            np.minimum(below, np.maximum(own, top), out=below)
            np.minimum(top, own, out=top)
        else:
            nearer = own < 1.05
            np.copyto(below, 9.0, where=nearer)
            np.copyto(top, own, where=nearer)
        np.copyto(owner[patch.field], i, where=nearer)
    grid = np.arange(size, dtype=np.float32)
    centre_y, centre_x = np.append(cells.y, 0).astype(np.float32), np.append(cells.x, 0).astype(np.float32)
    return CellMap(owner, depth, second, grid[:, None] - centre_y[owner], grid[None] - centre_x[owner])


def map_nuclei(nuclei: Nuclei, cells: Cells, size: int) -> NucleusMap:
    """The nuclei's masks and DNA, with edges one pixel soft."""
    mask, dna, flat = (np.zeros((size, size), np.float32) for _ in range(3))
    reach = np.ceil(nuclei.contour.max(1)).astype(int) + 2
    half = int(reach.max(initial=1))
    half += (-half) % 16
    distance, angle = _polar(half)
    kind, mean_radius = cells.kind[nuclei.cell], nuclei.contour.mean(1)
    for i in range(len(nuclei.y)):
        patch = _patch(nuclei.y[i], nuclei.x[i], int(reach[i]), half, size)
        if patch is None:
            continue
        radius = nuclei.contour[i].take(angle[patch.square], mode="clip")
        inward = radius - distance[patch.square]
        shape = np.minimum(np.maximum(0.6 * inward + 0.5, 0), 1)
        np.maximum(mask[patch.field], shape, out=mask[patch.field])
        dome = 0.72 * nuclei.gain[i] + (0.28 * nuclei.gain[i] / mean_radius[i]) * inward
        dna[patch.field] += shape * dome
        if kind[i] != INTERPHASE:
            np.maximum(flat[patch.field], shape, out=flat[patch.field])
    return NucleusMap(mask, dna, flat)


def splat(
    y: npt.NDArray[Any], x: npt.NDArray[Any], sigma: npt.NDArray[Any], gain: npt.NDArray[Any], size: int
) -> Floats:
    """(size, size): Gaussian spots at sub-pixel places; arrays of length m, `sigma` in pixels."""
    canvas = np.zeros((size, size), np.float32)
    y, x, sigma, gain = (values.astype(np.float32) for values in (y, x, sigma, gain))
    if len(y) == 0:
        return canvas
    reach = int(np.ceil(2.6 * float(sigma.max())))
    offset = np.arange(-reach, reach + 1)
    cy, cx = np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)
    rows, columns = cy[:, None] + offset, cx[:, None] + offset
    scale = 1 / (np.sqrt(2, dtype=np.float32) * sigma[:, None])
    fy = np.exp(-(((rows - y[:, None]) * scale) ** 2)) * gain[:, None]
    fx = np.exp(-(((columns - x[:, None]) * scale) ** 2))
    fy[(rows < 0) | (rows >= size)] = 0
    fx[(columns < 0) | (columns >= size)] = 0
    flat = np.clip(rows, 0, size - 1)[:, :, None] * size + np.clip(columns, 0, size - 1)[:, None, :]
    weights = fy[:, :, None] * fx[:, None, :]
    canvas += np.bincount(flat.ravel(), weights.ravel(), minlength=size * size).reshape(size, size)
    return canvas
