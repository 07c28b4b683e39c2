"""Where the cells of a field lie and what their outlines are: contours as radius over angle."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

ANGLES = 128
CELLS_PER_SQUARE_DIAMETER = 0.28  # an untreated field: 46 cells of 20 px nuclei in 256 x 256
INTERPHASE, CONDENSED, FRAGMENTED = 0, 1, 2

_THETA = (np.arange(ANGLES) * (2 * np.pi / ANGLES)).astype(np.float32)


@dataclass
class Cells:
    """Cells of a field and its margin; arrays of length n, pixels, radians."""

    y: Floats
    x: Floats
    kind: Ints  # INTERPHASE, CONDENSED (mitotic or rounded) or FRAGMENTED (apoptotic)
    nuclei_count: Ints
    angle: Floats  # long axis
    contour: Floats  # (n, ANGLES) radius of the outline
    radius: Floats  # mean of the contour


@dataclass
class Nuclei:
    """Nuclei (or their fragments); arrays of length m, pixels."""

    y: Floats
    x: Floats
    cell: Ints  # index into Cells
    contour: Floats  # (m, ANGLES)
    area: Floats  # enclosed by the contour, px^2
    gain: Floats  # DNA brightness, 1 is an interphase nucleus


def contours(
    rng: np.random.Generator,
    radius: Floats,
    aspect: Floats,
    angle: Floats,
    roughness: Floats,
    lowest: int = 2,
) -> Floats:
    """(n, ANGLES) closed outlines: an ellipse of axis ratio `aspect`, times exp(Fourier series).

    `roughness` (n,) is the sd of log radius that five harmonics from `lowest` on add, falling as 1/k.
    """
    n = len(radius)
    turned = _THETA[None] - angle[:, None]
    root = np.sqrt(aspect)[:, None]
    ellipse = 1 / np.sqrt((np.cos(turned) / root) ** 2 + (np.sin(turned) * root) ** 2)
    orders = np.arange(lowest, lowest + 5, dtype=np.float32)
    amplitude = rng.normal(0, 1, (n, 2, 5)).astype(np.float32) / orders * lowest * roughness[:, None, None]
    waves = np.stack([np.cos(orders[:, None] * _THETA), np.sin(orders[:, None] * _THETA)])
    series = (amplitude[:, :, :, None] * waves[None]).sum((1, 2))
    return np.asarray(radius[:, None] * ellipse * np.exp(series), dtype=np.float32)


def areas(contour: Floats) -> Floats:
    """Area enclosed by each outline, px^2: the integral of R^2 / 2."""
    return np.asarray((contour**2).sum(1) * (np.pi / ANGLES), dtype=np.float32)


def _positions(
    rng: np.random.Generator, phenotype: Phenotype, batch: BatchEffect, size: int, d: float, margin: float
) -> Floats:
    """(n, 2) centres over the field and its margin, no two closer than cells can pack."""
    density = CELLS_PER_SQUARE_DIAMETER * phenotype.cell_count * batch.density / d**2
    extent = size + 2 * margin
    wanted = max(1, round(density * extent**2 * float(np.exp(rng.normal(0, 0.06)))))
    points = rng.uniform(-margin, size + margin, (3 * wanted + 8, 2)).astype(np.float32)
    nearest = min(0.66 / np.sqrt(density), 1.15 * d * np.sqrt(phenotype.nuclear_area))
    gap = nearest * rng.uniform(0.75, 1.1, len(points)).astype(np.float32)
    y, x = points[:, 0], points[:, 1]
    conflict = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < (gap**2)[:, None]
    free = np.ones(len(points), bool)
    taken: list[int] = []
    for i in range(len(points)):
        if free[i]:
            taken.append(i)
            if len(taken) == wanted:
                break
            free &= ~conflict[i]
    return points[taken]


def place_cells(
    rng: np.random.Generator, phenotype: Phenotype, batch: BatchEffect, size: int, d: float
) -> Cells:
    """Cells over a field of `size` px and a margin around it, for nuclei of `d` px at the baseline."""
    points = _positions(rng, phenotype, batch, size, d, margin=1.6 * d)
    n = len(points)
    draw = rng.random(n)
    kind = np.where(
        draw < phenotype.condensed,
        CONDENSED,
        np.where(draw < phenotype.condensed + phenotype.fragmented, FRAGMENTED, INTERPHASE),
    )
    several = (rng.random(n) < phenotype.multinucleated) & (kind == INTERPHASE)
    nuclei_count = np.where(several, rng.choice([2, 2, 3, 4], n), 1)
    common = rng.uniform(0, np.pi)
    own = rng.uniform(-np.pi / 2, np.pi / 2, n)
    angle = (common + own * (1 - phenotype.alignment)).astype(np.float32)
    spread = np.exp(rng.normal(0, 0.13, n)) * np.where(several, 1.25, 1.0)
    radius = (1.55 * d * phenotype.cell_spread * spread).astype(np.float32)
    round_radius = 0.78 * d * np.exp(rng.normal(0, 0.08, n)) * np.where(kind == FRAGMENTED, 0.85, 1.0)
    rounded = kind != INTERPHASE
    radius = np.where(rounded, round_radius, radius).astype(np.float32)
    aspect = np.exp(np.log(phenotype.cell_elongation) * rng.uniform(0.5, 1.5, n))
    aspect = np.where(rounded, 1.05, np.maximum(aspect, 1.0)).astype(np.float32)
    roughness = np.where(rounded, 0.025, phenotype.cell_irregularity).astype(np.float32)
    contour = contours(rng, radius, aspect, angle, roughness)
    return Cells(
        y=points[:, 0],
        x=points[:, 1],
        kind=kind.astype(np.intp),
        nuclei_count=nuclei_count.astype(np.intp),
        angle=angle,
        contour=np.minimum(contour, 3.0 * d).astype(np.float32),
        radius=contour.mean(1),
    )


def place_nuclei(rng: np.random.Generator, phenotype: Phenotype, cells: Cells, d: float) -> Nuclei:
    """The nuclei of `cells`: ellipses with rough outlines; mitotic plates; the balls of dying cells."""
    kinds = cells.kind
    pieces = np.where(kinds == FRAGMENTED, rng.integers(3, 7, len(kinds)), cells.nuclei_count)
    halved = (kinds == CONDENSED) & (rng.random(len(kinds)) < 0.2)  # anaphase
    pieces = np.where(halved, 2, pieces)
    cell = np.repeat(np.arange(len(kinds)), pieces)
    order = np.arange(len(cell)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    kind, m = kinds[cell], len(cell)
    plate = (rng.random(len(kinds)) < 0.55)[cell] | halved[cell]
    size = np.exp(rng.normal(0, 0.09, m)) * np.sqrt(phenotype.nuclear_area) * d / 2
    size = size * np.where(pieces[cell] > 1, 0.82, 1.0)
    size = np.where(kind == CONDENSED, d * np.where(halved[cell], 0.22, 0.33), size)
    size = np.where(kind == FRAGMENTED, d * rng.uniform(0.09, 0.22, m), size).astype(np.float32)
    aspect = np.exp(np.log(phenotype.nuclear_elongation) * rng.uniform(0.3, 1.7, m))
    aspect = np.where(
        kind == CONDENSED, np.where(plate, 2.3, 1.15), np.where(kind == FRAGMENTED, 1.05, aspect)
    )
    angle = cells.angle[cell] + rng.normal(0, 0.25, m)
    rough = np.where(
        kind == CONDENSED, 0.1, np.where(kind == FRAGMENTED, 0.05, phenotype.nuclear_irregularity)
    )
    contour = contours(
        rng, size, aspect.astype(np.float32), angle.astype(np.float32), rough.astype(np.float32)
    )
    turn = rng.uniform(0, 2 * np.pi, len(kinds))[cell] + order * (2 * np.pi / pieces[cell])
    turn = np.where(halved[cell], cells.angle[cell] + np.pi / 2 + np.pi * order, turn)
    away = np.where(pieces[cell] > 1, 0.58 * d * np.sqrt(phenotype.nuclear_area), rng.uniform(0, 0.2 * d, m))
    away = np.where(
        kind == FRAGMENTED, d * rng.uniform(0.1, 0.5, m), np.where(kind == CONDENSED, 0.02 * d, away)
    )
    away = np.where(halved[cell], 0.3 * d, away)
    gain = np.exp(rng.normal(0, 0.16, m)) * np.where(kind == INTERPHASE, 1.0, rng.uniform(1.8, 2.6, m))
    return Nuclei(
        y=(cells.y[cell] + away * np.sin(turn)).astype(np.float32),
        x=(cells.x[cell] + away * np.cos(turn)).astype(np.float32),
        cell=cell,
        contour=contour,
        area=areas(contour),
        gain=gain.astype(np.float32),
    )
