"""What a codec learns from: simulated fields in many colours, or a user's images; batches by (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from morphoray.datasets.simulator.fields import draw_fields, random_batch, random_phenotype
from morphoray.datasets.simulator.phenotype import Phenotype
from morphoray.errors import DataError
from morphoray.imaging.channels import MAPPINGS
from morphoray.seeds import numpy_generator

Uint8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
DIAMETERS = (14.0, 18.0, 22.0, 28.0)  # px of a nucleus; the texture banks are kept for each of them


@dataclass(frozen=True)
class BankField:
    """A simulated field (C, size, size) uint8 and what it was drawn from."""

    channels: Uint8
    phenotype: Phenotype
    nucleus_diameter_px: float


def draw_bank_fields(count: int, seed: int, size: int = 256) -> list[BankField]:
    """`count` simulated fields with random phenotypes and batch effects.

    Two in three have six channels, one in three BBBC021's three; field i is a function of (seed, i).
    """
    fields = []
    for index in range(count):
        rng = numpy_generator("codec-bank", seed, index)
        phenotype = random_phenotype(rng)
        batch = random_batch(rng)
        diameter = DIAMETERS[int(rng.integers(len(DIAMETERS)))]
        drawn = draw_fields(
            [phenotype],
            [batch],
            size,
            3 if index % 3 == 2 else 6,
            keys=[("codec-bank", seed, index)],
            nucleus_diameter_px=diameter,
        )
        fields.append(BankField(drawn.images[0].astype(np.uint8, copy=False), phenotype, diameter))
    return fields


def draw_bank(count: int, seed: int, size: int = 256) -> list[Uint8]:
    """The channels of `draw_bank_fields`."""
    return [field.channels for field in draw_bank_fields(count, seed, size)]


def zoom_crop(field: Uint8, resolution: int, zoom: float, rng: np.random.Generator) -> Floats:
    """A random crop of resolution / zoom pixels, resized (antialiased) to `resolution`; float32 0..255."""
    side = int(min(round(resolution / zoom), *field.shape[1:]))
    top, left = (int(rng.integers(length - side + 1)) for length in field.shape[1:])
    crop = field[:, top : top + side, left : left + side].astype(np.float32)
    if side == resolution:
        return crop
    size = (resolution, resolution)
    resized = F.interpolate(torch.from_numpy(crop)[None], size, mode="bilinear", antialias=True)
    values: Floats = resized[0].numpy()
    return values


def recolour(crop: Floats, channels: int, rng: np.random.Generator) -> Floats:
    """Raw channels (C, H, W) in 0..255 to an image (channels, H, W) in 0..255, in random colours.

    Of six-channel crops bound for RGB, two in five get RxRx1's colours; otherwise each output is one raw
    channel (half of the time) or a random mixture, stretched as per-plate percentiles would.
    """
    if channels == 3 and len(crop) == 6 and rng.random() < 0.4:
        return MAPPINGS["rxrx1_rgb"].apply(np.rint(crop).astype(np.uint8)).astype(np.float32)
    top = np.maximum(np.percentile(crop[:, ::4, ::4], 99.7, axis=(1, 2)), 24.0)
    mixture = np.zeros((channels, len(crop)))
    if rng.random() < 0.5:
        mixture[range(channels), rng.choice(len(crop), channels, replace=channels > len(crop))] = 1.0
    else:
        mixture = rng.random(mixture.shape) * (rng.random(mixture.shape) < 0.4)
    image = np.tensordot((mixture / top).astype(np.float32), crop, axes=1)
    gain = np.exp(rng.normal(-0.2, 0.3, (channels, 1, 1)) + rng.normal(0.0, 0.3)).astype(np.float32)
    return np.asarray(image * gain * 255.0, np.float32)


def photographic(image: Floats, rng: np.random.Generator) -> Uint8:
    """A random gamma and offset in a third of the images, a random view, then uint8."""
    image = np.clip(image, 0.0, 255.0)
    if rng.random() < 0.35:
        image = 255.0 * (image / 255.0) ** float(np.exp(rng.uniform(-0.45, 0.45)))
    if rng.random() < 0.25:
        image = image + rng.uniform(0.0, 30.0, (len(image), 1, 1)).astype(np.float32)
    return random_view(np.clip(np.rint(image), 0, 255).astype(np.uint8), rng)


def random_view(image: Uint8, rng: np.random.Generator) -> Uint8:
    """One of the square's eight symmetries of (K, H, W), at random."""
    turned = np.rot90(image, int(rng.integers(4)), axes=(1, 2))
    return turned[:, :, ::-1] if rng.random() < 0.5 else turned


@dataclass(frozen=True)
class SimulatedCrops:
    """Batches of simulated crops: uint8 (batch_size, image_channels, resolution, resolution)."""

    bank: Sequence[Uint8]
    batch_size: int
    image_channels: int = 3
    resolution: int = 64
    zooms: tuple[float, float] = (0.3, 2.0)

    def __call__(self, seed: int, step: int) -> Uint8:
        """The batch of a step."""
        rng = numpy_generator("codec-batch", seed, step)
        return np.stack([self.image(rng) for _ in range(self.batch_size)])

    def image(self, rng: np.random.Generator) -> Uint8:
        """One crop: a third at the fields' own scale, the others log-uniform over `zooms`."""
        field = self.bank[int(rng.integers(len(self.bank)))]
        zoom = 1.0 if rng.random() < 0.33 else float(np.exp(rng.uniform(*np.log(self.zooms))))
        crop = zoom_crop(field, self.resolution, zoom, rng)
        return photographic(recolour(crop, self.image_channels, rng), rng)


@dataclass(frozen=True)
class ImageCrops:
    """Batches of random crops and views of a user's mapped images, each uint8 (K, H, W)."""

    images: Sequence[Uint8]
    batch_size: int
    resolution: int = 64

    def __post_init__(self) -> None:
        small = [i for i, image in enumerate(self.images) if min(image.shape[1:]) < self.resolution]
        if small or not len(self.images):
            raise DataError(
                f"codec images: found {len(self.images)}, of which {len(small)} smaller than "
                f"{self.resolution} px (first: {small[:3]}); expected at least one and none smaller. "
                "Lower `resolution`."
            )

    def __call__(self, seed: int, step: int) -> Uint8:
        """The batch of a step."""
        rng = numpy_generator("codec-batch", seed, step)
        crops = []
        for _ in range(self.batch_size):
            image = self.images[int(rng.integers(len(self.images)))]
            top, left = (int(rng.integers(length - self.resolution + 1)) for length in image.shape[1:])
            crop = image[:, top : top + self.resolution, left : left + self.resolution]
            crops.append(random_view(crop, rng))
        return np.stack(crops)
