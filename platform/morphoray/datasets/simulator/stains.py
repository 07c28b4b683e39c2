"""Seven stains over a field's geometry: what each dye shows of a cell; a typical bright structure is 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.banks import ORIENTATIONS, PERIOD, Banks
from morphoray.datasets.simulator.phenotype import Phenotype
from morphoray.datasets.simulator.raster import CellMap, NucleusMap, splat
from morphoray.datasets.simulator.shapes import ANGLES, INTERPHASE, Cells, Nuclei

Floats = npt.NDArray[np.float32]


_BEND = 32  # px: how far actin fibres are moved sideways to bend them, at most


@dataclass
class Scene:
    """A field before it is stained: geometry, shared masks and the generator that the stains draw from."""

    phenotype: Phenotype
    cells: Cells
    nuclei: Nuclei
    map: CellMap
    nucleus: NucleusMap
    banks: Banks
    diameter: float
    size: int
    rng: np.random.Generator
    inside: Floats  # cell mask, 0..1, soft at the outline
    body: Floats  # cell thickness, about 1 over the nucleus and 0.2 in the lamella
    edge_px: Floats  # distance inward from the outline
    border_px: Floats  # distance to the neighbour that touches
    rounded: Floats  # 1 in rounded or dying cells
    nucleoli: Floats

    def texture(self, bank: Floats) -> Floats:
        return self.banks.window(bank, self.rng, self.size)

    def per_cell(self, values: npt.NDArray[Any]) -> Floats:
        """(size, size): the owner's value, 0 outside every cell."""
        return self.map.spread(values)


def make_scene(
    phenotype: Phenotype,
    cells: Cells,
    nuclei: Nuclei,
    cell_map: CellMap,
    nucleus: NucleusMap,
    textures: Banks,
    diameter: float,
    rng: np.random.Generator,
) -> Scene:
    """The masks that several stains share."""
    size = cell_map.depth.shape[0]
    radius = cell_map.spread(cells.radius)
    ruffle = textures.window(textures.coarse, rng, size) * 0.02
    depth = np.clip(cell_map.depth + ruffle * (cell_map.depth > 0.4), 0, 9)
    edge_px = (1 - depth) * radius
    alone = cell_map.spread(cells.kind != INTERPHASE)
    inside = np.clip(edge_px * 0.5 + 0.4, 0.5 * alone, 1)
    rounded = alone * inside
    lamella = 0.2 + 0.8 * np.exp(-((depth / 0.58) ** 2))
    body = inside * (lamella * (1 - rounded) + 0.9 * rounded * np.sqrt(np.clip(1.05 - depth**2, 0, 1)))
    below = np.clip((1 - cell_map.second) * 4, 0, 1) * np.clip(1.2 - cell_map.second, 0, 1)
    body += 0.25 * below * inside * (1 - rounded)
    border_px = (np.minimum(cell_map.second, 2) - depth) * radius
    scene = Scene(
        phenotype, cells, nuclei, cell_map, nucleus, textures, diameter, size, rng,
        inside, body, edge_px, border_px, rounded, np.zeros_like(inside),
    )  # fmt: skip
    scene.nucleoli = _nucleoli(scene)
    return scene


def _nucleoli(scene: Scene) -> Floats:
    """Two to four dense spots in every living nucleus, 0..1; fewer and fainter as `nucleoli` falls."""
    rng, nuclei, d = scene.rng, scene.nuclei, scene.diameter
    living = np.flatnonzero(scene.cells.kind[nuclei.cell] == INTERPHASE)
    count = rng.integers(1, 5, len(living))
    index = np.repeat(living, count)
    turn = rng.integers(0, ANGLES, len(index))
    out = nuclei.contour[index, turn] * np.sqrt(rng.uniform(0.02, 0.42, len(index)))
    theta = turn * (2 * np.pi / ANGLES)
    y = nuclei.y[index] + out * np.sin(theta)
    x = nuclei.x[index] + out * np.cos(theta)
    strength = scene.phenotype.nucleoli
    sigma = d * (0.045 + 0.05 * strength) * np.exp(rng.normal(0, 0.25, len(index)))
    gain = rng.uniform(0.6, 1.2, len(index)) * (0.25 + 1.1 * strength)
    spots = splat(y, x, sigma, gain, scene.size)
    return np.minimum(spots, 1.1) * scene.nucleus.mask


def _dna(scene: Scene) -> Floats:
    phenotype = scene.phenotype
    scale = phenotype.chromatin_scale
    grain = (1 - scale) * scene.texture(scene.banks.fine) + scale * scene.texture(scene.banks.coarse)
    grain = grain * (phenotype.chromatin_contrast / max(0.5, math.hypot(1 - scale, scale)))
    textured = np.exp(np.clip(grain, -1.2, 1.2)) * (1 - 0.42 * np.minimum(scene.nucleoli, 1))
    flat = scene.nucleus.flat
    return scene.nucleus.dna * (textured * (1 - flat) + flat) + 0.025 * scene.body


def _holes(scene: Scene) -> Floats:
    """Vacuoles: a multiplier, 0.15 in their middle and 1 elsewhere."""
    share = scene.phenotype.vacuoles
    if share < 0.02:
        return np.ones_like(scene.inside)
    noise = scene.texture(scene.banks.coarse)
    image: Floats = 1 - 0.85 / (1 + np.exp(-6 * (noise - (2.4 - 1.9 * share))))
    return image


def _er(scene: Scene) -> Floats:
    phenotype, rng = scene.phenotype, scene.rng
    depth = scene.map.depth
    towards = rng.uniform(0, 2 * np.pi, len(scene.cells.y))
    lean = scene.map.dy * scene.per_cell(np.sin(towards) / scene.cells.radius)
    lean += scene.map.dx * scene.per_cell(np.cos(towards) / scene.cells.radius)
    reach = np.exp(-((depth / 0.5) ** 2)) * np.clip(1 + 1.3 * lean, 0.25, 2.2)
    contrast = 0.15 + 0.75 * phenotype.er_granularity
    grain = 0.65 * scene.texture(scene.banks.fine) + 0.6 * scene.texture(scene.banks.medium)
    grain = np.exp(np.clip(contrast * grain, -1.5, 1.5))
    mask = scene.nucleus.mask
    envelope = 1.2 * mask * (1 - mask)
    living = scene.inside * (0.10 + 1.05 * reach) * (1 - 0.72 * mask) * grain * _holes(scene) + envelope
    image: Floats = living * (1 - scene.rounded) + 0.75 * scene.rounded * scene.body
    return image


def _rna(scene: Scene) -> Floats:
    mask, depth = scene.nucleus.mask, scene.map.depth
    grain = np.exp(0.13 * scene.texture(scene.banks.fine) + 0.14 * scene.texture(scene.banks.medium))
    cytoplasm = scene.inside * (0.14 + 0.6 * np.exp(-((depth / 0.55) ** 2))) * grain * _holes(scene)
    living = cytoplasm * (1 - 0.42 * mask) + 0.75 * scene.nucleoli
    image: Floats = living * (1 - scene.rounded) + 0.62 * scene.rounded * scene.body
    return image


def _actin(scene: Scene) -> Floats:
    phenotype, rng, cells, size = scene.phenotype, scene.rng, scene.cells, scene.size
    n = len(cells.y)
    fibres, width = scene.banks.fibres, scene.banks.fibres.shape[1]
    tilt = cells.angle / np.pi * ORIENTATIONS + rng.normal(0, 0.6, n)
    start = (np.rint(tilt).astype(int) % ORIENTATIONS) * width**2
    start = start + rng.integers(0, PERIOD - _BEND, n) * width + rng.integers(0, PERIOD - _BEND, n)
    rows = np.arange(size) * width
    bend = _BEND / 2 + 0.16 * scene.diameter * scene.texture(scene.banks.smooth)
    bend = np.clip(bend, 0, _BEND - 1).astype(np.intp)
    pixel = rows[:, None] + np.arange(size)[None] + bend * (width + 1)
    bundles = fibres.reshape(-1)[np.append(start, 0)[scene.map.owner] + pixel]
    bundles = bundles * np.clip(0.75 + 0.4 * scene.texture(scene.banks.coarse), 0, 2)
    lamella = 0.16 + 0.22 * scene.body
    strength = phenotype.actin_fibres * scene.per_cell(np.exp(rng.normal(0, 0.35, n)))
    rim = np.exp(-((scene.edge_px - 1.0) ** 2) / (2 * (0.055 * scene.diameter) ** 2))
    touching = np.exp(-(scene.border_px**2) / (2 * (0.05 * scene.diameter) ** 2))
    ragged = np.clip(0.8 + 0.6 * scene.texture(scene.banks.medium), 0, 2)
    cortex = np.maximum(rim, 0.8 * touching) * ragged * scene.per_cell(np.exp(rng.normal(0, 0.4, n)))
    thin = 1 - 0.35 * scene.nucleus.mask
    stress = 0.85 * strength * np.clip(bundles, 0, 3)
    living = scene.inside * ((lamella + stress) * thin + 1.1 * phenotype.actin_cortex * cortex)
    if phenotype.actin_aggregates > 0.08:
        clump = np.clip(scene.texture(scene.banks.coarse) - 1.5, 0, 1.2)
        clump = clump + 1.5 * scene.texture(scene.banks.spots)
        living = living + 1.6 * (phenotype.actin_aggregates - 0.05) * clump * scene.inside
    ring = scene.rounded * (0.5 * scene.body + 0.8 * rim)
    image: Floats = living * (1 - scene.rounded) + ring
    return image


def _mito(scene: Scene) -> Floats:
    phenotype, mask = scene.phenotype, scene.nucleus.mask
    clumping = phenotype.mito_clumping
    reach = 0.72 - 0.34 * clumping
    where = np.exp(-(((scene.map.depth / reach) ** 2) ** 2)) * (1 - 0.9 * mask) * scene.inside
    network = scene.texture(scene.banks.network) * (1.35 - 0.75 * clumping)
    blobs = np.clip(0.5 + scene.texture(scene.banks.coarse), 0, 2.5) * clumping
    haze = 0.22 * (0.5 + clumping)
    own = scene.per_cell(np.exp(scene.rng.normal(0, 0.35, len(scene.cells.y))))
    living = where * (network + blobs * 0.7 + haze) * own * _holes(scene) + 0.05 * scene.body
    image: Floats = living * (1 - scene.rounded) + 0.6 * scene.rounded * scene.body
    return image


def _golgi(scene: Scene) -> Floats:
    phenotype, rng, cells, d = scene.phenotype, scene.rng, scene.cells, scene.diameter
    living = np.flatnonzero(cells.kind == INTERPHASE)
    index = np.repeat(living, 12)
    towards = rng.uniform(0, 2 * np.pi, len(cells.y))[index]
    away = 0.55 * d * np.sqrt(phenotype.nuclear_area)
    loose = d * (0.10 + 0.55 * phenotype.golgi_dispersion)
    y = cells.y[index] + away * np.sin(towards) + loose * rng.normal(0, 1, len(index))
    x = cells.x[index] + away * np.cos(towards) + loose * rng.normal(0, 1, len(index))
    sigma = d * rng.uniform(0.035, 0.075, len(index))
    gain = rng.uniform(0.1, 0.5, len(index))
    spots = splat(y, x, sigma, gain, scene.size) * scene.inside
    membrane = np.exp(-(np.minimum(scene.edge_px, np.abs(scene.border_px)) ** 2) / (2 * (0.06 * d) ** 2))
    grain = np.exp(0.16 * scene.texture(scene.banks.medium))
    puncta = 0.5 * scene.texture(scene.banks.spots) * scene.inside
    sheet = 0.30 * scene.body * grain + 0.16 * membrane * scene.inside + 0.14 * scene.nucleus.mask
    image: Floats = (sheet + np.minimum(spots, 1.2) + puncta) * (
        1 - scene.rounded
    ) + 0.62 * scene.rounded * scene.body
    return image


def _tubulin(scene: Scene) -> Floats:
    """Microtubules run out from a centre beside the nucleus: streaks in polar coordinates, and a mesh."""
    phenotype, rng, d = scene.phenotype, scene.rng, scene.diameter
    n = len(scene.cells.y)
    towards = rng.uniform(0, 2 * np.pi, n)
    dy = scene.map.dy - scene.per_cell(0.45 * d * np.sin(towards))
    dx = scene.map.dx - scene.per_cell(0.45 * d * np.cos(towards))
    distance = np.sqrt(dy**2 + dx**2)
    wave = 0.12 * scene.texture(scene.banks.smooth) + 0.07 * scene.texture(scene.banks.coarse)
    turn = (np.arctan2(dy, dx) + wave) * (PERIOD / (2 * np.pi))  # a whole period a turn: no seam
    row = (distance * (7 / d)).astype(np.intp) % PERIOD
    column = (turn + scene.per_cell(rng.integers(0, PERIOD, n)) + PERIOD).astype(np.intp) % PERIOD
    spokes = scene.banks.streaks[row, column] * np.clip(distance / (0.5 * d), 0.2, 1)
    tilt = rng.integers(0, ORIENTATIONS, 2)
    mesh = sum(scene.texture(scene.banks.fibres[i]) for i in tilt) - 0.8
    bundling = phenotype.tubulin_bundling
    filaments = (0.12 + 0.5 * bundling) * spokes + (0.16 + 0.2 * bundling) * mesh
    centre = np.exp(-((distance / (0.9 * d)) ** 2))
    tubes = np.clip(1 + filaments, 0.15, 3) * (1 - 0.32 * scene.nucleus.mask)
    living = scene.inside * (0.24 + 0.5 * scene.body + 0.35 * centre) * tubes
    image: Floats = living * (1 - scene.rounded) + 0.85 * scene.rounded * scene.body
    return image


STAINING: dict[str, Callable[[Scene], npt.NDArray[Any]]] = {
    "dna": _dna,
    "er": _er,
    "actin": _actin,
    "rna": _rna,
    "mito": _mito,
    "golgi": _golgi,
    "tubulin": _tubulin,
}


def stain(scene: Scene, name: str) -> Floats:
    """(size, size) float32 >= 0: one stain, with cells that differ in how much of it they took up."""
    uptake = scene.per_cell(np.exp(scene.rng.normal(0, 0.18, len(scene.cells.y))))
    image = STAINING[name](scene)
    if name != "dna":
        image = image * uptake
    return np.asarray(image * getattr(scene.phenotype, f"{name}_intensity"), dtype=np.float32)
