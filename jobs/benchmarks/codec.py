"""What the shipped codec keeps of real crops, beside principal components and the distance of the classes.

Fréchet distances (EfficientNet-Lite0 features, clean-fid's resizing) of reconstructions from the other half
of a class's crops, at the same number of images; the floor is one half against the other. Needs the BBBC021
crops under ../shared/data, or in the folder that MORPHORAY_TEST_DATA names; says so where they are absent.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from morphoray.diffusion.codec import load_codec, psnr, reconstruct
from morphoray.diffusion.sources import shipped_codec
from morphoray.evaluation.distances import CODEC, FLOOR, compare, frechet
from morphoray.evaluation.features import Extractor, load_extractor
from morphoray.imaging.png import decode_png
from morphoray.seeds import numpy_generator
from morphoray.training.codec_data import SimulatedCrops, draw_bank

Uint8 = npt.NDArray[np.uint8]
ROOT = Path(__file__).parents[2]
SIDE, BLOCK = 64, 8


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
    return f"{name:32} {psnr(images, made):6.2f} dB  {distances}"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=800, help="crops of each class")
    parser.add_argument("--fields", type=int, default=60, help="simulated fields for the components")
    parser.add_argument("--vae", default=str(shipped_codec()), help="an autoencoder's folder")
    arguments = parser.parse_args()
    shared = os.environ.get("MORPHORAY_TEST_DATA", ROOT.parent / "shared" / "data")
    data = Path(shared) / "bbbc021-crops" / "train"
    if not data.is_dir():
        print(f"codec: skipped, {data} is missing (set MORPHORAY_TEST_DATA)")
        return 0
    network = load_extractor("efficientnet_lite0")
    codec, components = load_codec(arguments.vae), Components(arguments.fields, 400)
    features = {}
    for name, images in real_crops(data).items():
        images = images[numpy_generator("codec-benchmark", name).permutation(len(images))[: arguments.most]]
        features[name] = network(images)
        print(row(f"{name}: codec", images, reconstruct(codec, images), features[name], network), flush=True)
        for count in (16, 32, 64):
            made = components.reconstruct(images, count)
            print(row(f"{name}: {count} components", images, made, features[name], network), flush=True)
    first, second = features.values()
    n = min(len(first), len(second)) // 2
    print(f"between the classes: {frechet(first[:n], second[:n]).value:.1f}  N = {n}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
