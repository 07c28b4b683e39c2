"""Draws Cell Painting fields: phenotypes and batch effects to images and their ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.banks import banks
from morphoray.datasets.simulator.optics import digitise, expose, illumination
from morphoray.datasets.simulator.phenotype import (
    STAINS,
    BatchEffect,
    Phenotype,
    random_batch,
    random_phenotype,
)
from morphoray.datasets.simulator.raster import map_cells, map_nuclei, splat
from morphoray.datasets.simulator.shapes import (
    CONDENSED,
    FRAGMENTED,
    Cells,
    Nuclei,
    place_cells,
    place_nuclei,
)
from morphoray.datasets.simulator.stains import make_scene, stain
from morphoray.seeds import numpy_generator

__all__ = [
    "LAYOUTS",
    "FieldTruth",
    "Fields",
    "draw_fields",
    "field_truth",
    "random_batch",
    "random_phenotype",
]

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_STREAM = "simulated-field"

# Channels as (stain, counts of 255 for a typical bright structure). Three: BBBC021's order after mapping
# (red actin, green tubulin, blue DNA). Five: JUMP (DNA, ER, RNA, actin and Golgi together, mitochondria).
# Six: RxRx1's w1..w6, in the ranges that its RGB mapping shows.
LAYOUTS: dict[int, tuple[tuple[str, tuple[tuple[str, float], ...]], ...]] = {
    3: (
        ("actin", (("actin", 120.0),)),
        ("tubulin", (("tubulin", 95.0),)),
        ("dna", (("dna", 125.0),)),
    ),
    5: (
        ("dna", (("dna", 110.0),)),
        ("er", (("er", 100.0),)),
        ("rna", (("rna", 120.0),)),
        ("agp", (("actin", 70.0), ("golgi", 60.0))),
        ("mito", (("mito", 90.0),)),
    ),
    6: (
        ("dna", (("dna", 38.0),)),
        ("er", (("er", 62.0),)),
        ("actin", (("actin", 30.0),)),
        ("rna", (("rna", 56.0),)),
        ("mito", (("mito", 34.0),)),
        ("golgi", (("golgi", 52.0),)),
    ),
}


@dataclass(frozen=True)
class FieldTruth:
    """What a field holds; counts and means over the cells whose centre lies in it, areas in px^2."""

    cell_count: int
    nucleus_count: int
    mean_nuclear_area_px: float
    mean_nuclear_elongation: float
    mean_spread_area_px: float  # a cell's outline, where no neighbour limited it
    multinucleated_count: int
    condensed_count: int
    fragmented_count: int


@dataclass(frozen=True)
class Fields:
    """images: (N, C, size, size), uint8 or uint16; truth: one entry a field."""

    images: Images
    truth: list[FieldTruth]


def draw_fields(
    phenotypes: Sequence[Phenotype],
    batches: Sequence[BatchEffect],
    size: int = 256,
    channels: int = 6,
    bit_depth: int = 8,
    *,
    keys: Sequence[tuple[str | int, ...]],
    nucleus_diameter_px: float = 20.0,
) -> Fields:
    """One field for each (phenotype, batch, key); a field is a function of its own three and the settings.

    `size` is a multiple of 8, at least 32; `channels` one of LAYOUTS; `bit_depth` 8 or 16. Raises ValueError.
    """
    if size < 32 or size % 8:
        raise ValueError(f"size is {size}, expected a multiple of 8 of at least 32")
    if channels not in LAYOUTS:
        raise ValueError(f"channels is {channels}, expected one of {sorted(LAYOUTS)}")
    if bit_depth not in (8, 16):
        raise ValueError(f"bit_depth is {bit_depth}, expected 8 or 16")
    if not len(phenotypes) == len(batches) == len(keys):
        raise ValueError(f"found {len(phenotypes)} phenotypes, {len(batches)} batches and {len(keys)} keys")
    images = np.zeros((len(keys), channels, size, size), np.uint8 if bit_depth == 8 else np.uint16)
    truth = []
    for i, (phenotype, batch, key) in enumerate(zip(phenotypes, batches, keys, strict=True)):
        rng = numpy_generator(_STREAM, *key)
        image, held = _draw(phenotype, batch, size, channels, nucleus_diameter_px, rng)
        images[i] = digitise(image, bit_depth)
        truth.append(held)
    return Fields(images, truth)


def field_truth(
    phenotype: Phenotype,
    batch: BatchEffect,
    size: int,
    key: tuple[str | int, ...],
    nucleus_diameter_px: float = 20.0,
) -> FieldTruth:
    """What `draw_fields` draws for the same arguments, without drawing it: about 2 ms."""
    rng = numpy_generator(_STREAM, *key)
    cells = place_cells(rng, phenotype, batch, size, nucleus_diameter_px)
    return _truth(cells, place_nuclei(rng, phenotype, cells, nucleus_diameter_px), size)


def _draw(
    phenotype: Phenotype,
    batch: BatchEffect,
    size: int,
    channels: int,
    diameter: float,
    rng: np.random.Generator,
) -> tuple[Floats, FieldTruth]:
    """(channels, size, size) float32 counts of 255, and what is in them."""
    cells = place_cells(rng, phenotype, batch, size, diameter)
    nuclei = place_nuclei(rng, phenotype, cells, diameter)
    cell_map, nucleus_map = map_cells(cells, size), map_nuclei(nuclei, cells, size)
    textures = banks(float(diameter), size)
    scene = make_scene(phenotype, cells, nuclei, cell_map, nucleus_map, textures, diameter, rng)
    dust = _debris(rng, phenotype.debris, size, diameter)
    light = illumination(batch, size)
    image = np.empty((channels, size, size), np.float32)
    for i, (_, parts) in enumerate(LAYOUTS[channels]):
        signal = np.zeros((size, size), np.float32)
        background = 0.0
        for name, level in parts:
            gain = level * batch.stain_gain[STAINS.index(name)]
            signal += gain * stain(scene, name)
            background += batch.background[STAINS.index(name)] * level / 38.0
            signal += gain * float(rng.uniform(0.1, 1.0)) * dust
        image[i] = expose(signal, background, batch, light, diameter, rng)
    return image, _truth(cells, nuclei, size)


def _debris(rng: np.random.Generator, amount: float, size: int, diameter: float) -> Floats:
    """Bright dust, fragments of dead cells and blobs out of focus."""
    expected = amount * (size / (12.8 * diameter)) ** 2
    small, large = rng.poisson(7 * expected), rng.poisson(1.2 * expected)
    n = small + large
    sigma = diameter * np.where(np.arange(n) < small, rng.uniform(0.03, 0.09, n), rng.uniform(0.25, 0.5, n))
    gain = np.where(np.arange(n) < small, rng.uniform(0.3, 1.8, n), rng.uniform(0.3, 0.9, n))
    y, x = rng.uniform(0, size, (2, n)).astype(np.float32)
    sharp = np.arange(n) < small
    canvas = np.zeros((size, size), np.float32)
    for part in (sharp, ~sharp):
        canvas += splat(y[part], x[part], sigma[part], gain[part], size)
    return canvas


def _truth(cells: Cells, nuclei: Nuclei, size: int) -> FieldTruth:
    here = (cells.y >= 0) & (cells.y < size) & (cells.x >= 0) & (cells.x < size)
    living = (cells.kind[nuclei.cell] != CONDENSED) & (cells.kind[nuclei.cell] != FRAGMENTED)
    seen = here[nuclei.cell] & living
    contour = nuclei.contour[seen]
    half = contour.shape[1] // 2
    widths = contour[:, :half] + contour[:, half:]
    nothing = float("nan")
    return FieldTruth(
        cell_count=int(here.sum()),
        nucleus_count=int(here[nuclei.cell].sum()),
        mean_nuclear_area_px=float(nuclei.area[seen].mean()) if seen.any() else nothing,
        mean_nuclear_elongation=float((widths.max(1) / widths.min(1)).mean()) if seen.any() else nothing,
        mean_spread_area_px=float(np.pi * (cells.radius[here] ** 2).mean()) if here.any() else nothing,
        multinucleated_count=int((here & (cells.nuclei_count > 1)).sum()),
        condensed_count=int((here & (cells.kind == CONDENSED)).sum()),
        fragmented_count=int((here & (cells.kind == FRAGMENTED)).sum()),
    )
