"""What the shipped denoiser learns from: simulated crops in two looks, each with what it was drawn from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.phenotype import PARAMETERS, Phenotype
from morphoray.imaging.channels import MAPPINGS
from morphoray.seeds import numpy_generator
from morphoray.training.codec_data import BankField, random_view, zoom_crop

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
WIDTH = len(PARAMETERS) + 7  # numbers that describe a crop
SCREEN_SHARE = 0.6  # of the crops: six channels in RxRx1's colours; the others: three channels as RGB
CELL_ZOOM = (1.0, 2.2)  # of the three-channel crops, from a field's own scale to a cell that fills the image
PERCENTILE = 99.7


def phenotype_vector(phenotype: Phenotype) -> Float32:
    """The phenotype's parameters in -1..1 of their range (logarithms of those that move by ratios)."""
    values = asdict(phenotype)
    vector = []
    for name, parameter in PARAMETERS.items():
        low, high, value = parameter.low, parameter.high, float(values[name])
        if parameter.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        vector.append(2 * (value - low) / (high - low) - 1)
    return np.asarray(vector, np.float32)


def start_crops(
    fields: Sequence[BankField], count: int, resolution: int, seed: int
) -> Iterator[tuple[Uint8, Float32]]:
    """`count` images (3, resolution, resolution) with their conditions (WIDTH,); crop i depends on (seed, i).

    A condition is the phenotype's vector, then: three channels or six, the nucleus' diameter and the zoom as
    base-2 logarithms, the whole colour gain, and the three colours' own.
    """
    screens = [field for field in fields if len(field.channels) == 6]
    cells = [field for field in fields if len(field.channels) == 3]
    for index in range(count):
        rng = numpy_generator("start-crop", seed, index)
        if rng.random() < SCREEN_SHARE:
            field = screens[int(rng.integers(len(screens)))]
            image, look = _screen(field, resolution, rng)
        else:
            field = cells[int(rng.integers(len(cells)))]
            image, look = _cell(field, resolution, rng)
        diameter = math.log2(field.nucleus_diameter_px / 18.0)
        told = [float(len(field.channels) == 3), diameter, *look]
        condition = np.concatenate([phenotype_vector(field.phenotype), np.asarray(told, np.float32)])
        yield random_view(image, rng), condition


def _screen(field: BankField, resolution: int, rng: np.random.Generator) -> tuple[Uint8, list[float]]:
    """A crop at the field's own scale in the paper's colours; its zoom and gains are none."""
    crop = zoom_crop(field.channels, resolution, 1.0, rng)
    return MAPPINGS["rxrx1_rgb"].apply(np.rint(crop).astype(np.uint8)), [0.0] * 5


def _cell(field: BankField, resolution: int, rng: np.random.Generator) -> tuple[Uint8, list[float]]:
    """A zoomed crop of three channels as red, green and blue, each scaled by the field's percentile."""
    zoom = float(np.exp(rng.uniform(*np.log(CELL_ZOOM))))
    crop = zoom_crop(field.channels, resolution, zoom, rng)
    top = np.maximum(np.percentile(field.channels[:, ::4, ::4], PERCENTILE, axis=(1, 2)), 24.0)
    whole, own = float(rng.normal(-0.2, 0.3)), rng.normal(0.0, 0.25, 3)
    gain = np.exp(whole + own)
    image = np.clip(np.rint(crop * (255.0 * gain / top)[:, None, None]), 0, 255).astype(np.uint8)
    return image, [math.log2(zoom), whole, *own.tolist()]
