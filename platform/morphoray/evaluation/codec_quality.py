"""How well a codec reconstructs images: PSNR, and Fréchet distance beside the real-against-real floor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from diffusers import AutoencoderKL

from morphoray.diffusion.codec import channel_psnr, encode_posterior, psnr, reconstruct
from morphoray.evaluation.distances import CODEC, FLOOR, compare
from morphoray.evaluation.features import load_extractor
from morphoray.seeds import numpy_generator


def codec_quality(
    codec: AutoencoderKL,
    images: npt.NDArray[np.uint8],
    extractor: str | None = "efficientnet_lite0",
    channels: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures for uint8 images (N, K, H, W) and their reconstructions through the posterior's mean.

    psnr_db, channel_psnr_db (in the channels' order), posterior_std (of scaled latents), latent_std; with an
    extractor also frechet, frechet_floor and frechet_n: halves of N // 2 images, ten random splits.
    channels: their names, of which the extractor's label tells where they are not RGB.
    """
    reconstructed = reconstruct(codec, images)
    mean, std = encode_posterior(codec, images)
    factor = float(codec.config.scaling_factor)
    figures: dict[str, Any] = {
        "images": len(images),
        "psnr_db": round(psnr(images, reconstructed), 2),
        "channel_psnr_db": [round(value, 2) for value in channel_psnr(images, reconstructed)],
        "scaled_latent_std": round(float(mean.std()) * factor, 4),
        "posterior_std": round(float(std.mean()) * factor, 4),
    }
    if extractor is None:
        return figures
    names = channels or [str(place + 1) for place in range(images.shape[1])]
    network = load_extractor(extractor, channels=names)
    distances = compare(
        network(images), {}, numpy_generator("codec-quality"), reconstructed=network(reconstructed)
    )
    return figures | {
        "frechet": round(distances[CODEC].value, 3),
        "frechet_floor": round(distances[FLOOR].value, 3),
        "frechet_n": len(images) // 2,
        "extractor": f"{network.name} {network.mode} {network.weights_hash}",
    }
