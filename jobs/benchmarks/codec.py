"""What a codec keeps of real crops and of each channel of real fields, beside principal components.

Of a codec of three channels (the shipped one): Fréchet distances (EfficientNet-Lite0 features, clean-fid's
resizing) of reconstructions from the other half of a class's crops, at the same number of images; the floor
is one half against the other. Of any: the PSNR of each channel of real fields with as many channels: RxRx1's
sites (six: as they are, and each stretched; three: the paper's RGB; one or two: the first ones), and JUMP's
field (five; each from its 0.1 to its 99.9 percentile, which is stated beside the figure). Needs the images
under ../shared/data, or in the folder that MORPHORAY_TEST_DATA names; says so where they are absent.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from diffusers import AutoencoderKL

from morphoray.datasets.reading import read_raw
from morphoray.diffusion.codec import channel_psnr, load_codec, psnr, reconstruct
from morphoray.diffusion.sources import shipped_codec
from morphoray.evaluation.distances import CODEC, FLOOR, compare, frechet
from morphoray.evaluation.features import Extractor, load_extractor
from morphoray.imaging.channels import CELL_PAINTING_CHANNELS, ChannelMapping, find_mapping
from morphoray.imaging.crops import resize_square
from morphoray.imaging.intensity import PERCENTILES, to_uint8
from morphoray.imaging.png import decode_png
from morphoray.seeds import numpy_generator
from morphoray.storage import Storage
from morphoray.training.codec_data import SimulatedCrops, draw_bank

Uint8 = npt.NDArray[np.uint8]
ROOT = Path(__file__).parents[2]
SIDE, BLOCK = 64, 8
FIELD = 512  # px: fields are resized to this side
JUMP = {"dna": 5, "er": 4, "rna": 3, "agp": 2, "mito": 1}  # the number in a channel's file name
RXRX1_MAPPINGS = {
    6: ("identity", "rxrx1_channels"),
    3: ("rxrx1_rgb",),
    2: (("nuclei", "er"),),
    1: (("nuclei",),),
}


def real_crops(folder: Path) -> dict[str, Uint8]:
    """The crops (N, 3, 64, 64) of each class, cut to their middle."""
    classes: dict[str, list[Uint8]] = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        image = decode_png((folder / row["file_name"]).read_bytes())
        top = (image.shape[1] - SIDE) // 2
        image = image[:, top : top + SIDE, top : top + SIDE]
        classes.setdefault(row["additional_feature"], []).append(image)
    return {name: np.stack(images) for name, images in classes.items()}


@dataclass(frozen=True)
class Fields:
    """Real fields (N, K, 512, 512) uint8, and how they came to their channels."""

    title: str
    channels: tuple[str, ...]
    images: Uint8


def real_fields(folder: Path, channels: int) -> list[Fields]:
    """The real fields with so many channels; none for four."""
    found = [
        rxrx1_fields(folder, find_mapping(wanted, CELL_PAINTING_CHANNELS, "rxrx1_rgb"), sites.name)
        for wanted in RXRX1_MAPPINGS.get(channels, ())
        for sites in sorted((folder / "rxrx1-sample" / "images").iterdir())
    ]
    return [*found, jump_field(folder)] if channels == len(JUMP) else found


def rxrx1_fields(folder: Path, mapping: ChannelMapping, experiment: str) -> Fields:
    """The mapped sites of an experiment, one of each plate."""
    sites = sorted((folder / "rxrx1-sample" / "images" / experiment).rglob("*_w1.png"))
    files = [[str(first).replace("_w1.png", f"_w{c}.png") for c in range(1, 7)] for first in sites]
    images = [mapping.apply(read_raw(each, Storage())) for each in files]
    return Fields(f"{experiment}, {mapping.name}", mapping.outputs, np.stack(images))


def jump_field(folder: Path) -> Fields:
    """JUMP's field, 16 to 8 bits by each channel's percentiles, 1080 to 512 pixels."""
    files = [f"{folder}/jump-sample/r01c01f01p01-ch{number}sk1fk1fl1.tiff" for number in JUMP.values()]
    levels = to_uint8(read_raw(files, Storage()))
    return Fields(f"JUMP, percentiles {PERCENTILES}", tuple(JUMP), resize_square(levels, FIELD)[None])


def field_row(fields: Fields, made: Uint8) -> str:
    """One line: the PSNR of all channels and of each."""
    each = zip(fields.channels, channel_psnr(fields.images, made), strict=True)
    told = "  ".join(f"{name} {value:.2f}" for name, value in each)
    return f"{fields.title:32} {psnr(fields.images, made):6.2f} dB  N = {len(made)}  {told}"


def to_blocks(images: Uint8) -> npt.NDArray[np.float32]:
    """(N, 3, 64, 64) to rows of 8 x 8 x 3 values, 64 rows an image."""
    count = SIDE // BLOCK
    cut = images.reshape(len(images), 3, count, BLOCK, count, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, 3 * BLOCK * BLOCK).astype(np.float32)


def from_blocks(blocks: npt.NDArray[np.float32]) -> Uint8:
    """The images that `to_blocks` cut, rounded and clipped."""
    count = SIDE // BLOCK
    images = blocks.reshape(-1, count, count, 3, BLOCK, BLOCK).transpose(0, 3, 1, 4, 2, 5)
    return images.reshape(-1, 3, SIDE, SIDE).round().clip(0, 255).astype(np.uint8)


class Components:
    """Principal components of 8 x 8 blocks of simulated crops: the linear codec of the same latent shape."""

    def __init__(self, fields: int, crops: int) -> None:
        blocks = to_blocks(SimulatedCrops(draw_bank(fields, 0), crops)(0, 0))
        self._mean = blocks.mean(0)
        self._directions = np.linalg.eigh(np.cov((blocks - self._mean).T))[1][:, ::-1].astype(np.float32)

    def reconstruct(self, images: Uint8, count: int) -> Uint8:
        """The images from their `count` first components."""
        basis = self._directions[:, :count]
        return from_blocks((to_blocks(images) - self._mean) @ basis @ basis.T + self._mean)


def row(name: str, images: Uint8, made: Uint8, real: npt.NDArray[np.floating], network: Extractor) -> str:
    """One line of the table: PSNR and the two distances."""
    generator = numpy_generator("codec-benchmark")
    found = compare(real, {}, generator, reconstructed=network(made), repeats=5)
    distances = f"{found[CODEC].value:7.1f}  floor {found[FLOOR].value:6.1f}  N = {found[CODEC].n_a}"
    each = "/".join(f"{value:.1f}" for value in channel_psnr(images, made))
    return f"{name:32} {psnr(images, made):6.2f} dB ({each})  {distances}"


def print_crops(codec: AutoencoderKL, components: Components, crops: dict[str, Uint8], most: int) -> None:
    """The table of the classes of crops."""
    network = load_extractor("efficientnet_lite0")
    features = {}
    for name, images in crops.items():
        images = images[numpy_generator("codec-benchmark", name).permutation(len(images))[:most]]
        features[name] = network(images)
        print(row(f"{name}: codec", images, reconstruct(codec, images), features[name], network), flush=True)
        for count in (16, 32, 64):
            made = components.reconstruct(images, count)
            print(row(f"{name}: {count} components", images, made, features[name], network), flush=True)
    first, second = features.values()
    n = min(len(first), len(second)) // 2
    print(f"between the classes: {frechet(first[:n], second[:n]).value:.1f}  N = {n}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=800, help="crops of each class")
    parser.add_argument("--fields", type=int, default=60, help="simulated fields for the components")
    parser.add_argument("--vae", default=str(shipped_codec()), help="an autoencoder's folder")
    arguments = parser.parse_args()
    shared = os.environ.get("MORPHORAY_TEST_DATA", ROOT.parent / "shared" / "data")
    if not (Path(shared) / "rxrx1-sample").is_dir():
        print(f"codec: skipped, {shared} has no real images (set MORPHORAY_TEST_DATA)")
        return 0
    codec = load_codec(arguments.vae)
    channels = int(codec.config.in_channels)
    for fields in real_fields(Path(shared), channels):
        print(field_row(fields, reconstruct(codec, fields.images, batch_size=1)), flush=True)
    if channels == 3:
        components = Components(arguments.fields, 400)
        print_crops(codec, components, real_crops(Path(shared) / "bbbc021-crops" / "train"), arguments.most)
    return 0


if __name__ == "__main__":
    sys.exit(main())
