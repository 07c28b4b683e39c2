"""A small but real bundle, untrained: a diffusers UNet, an AutoencoderKL and an rdkit encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from morphoray.diffusion.bundle import Bundle, save_bundle
from morphoray.diffusion.codec import CodecConfig, build_codec
from morphoray.diffusion.conditioning import Denoiser, make_projection
from morphoray.diffusion.presets import VELOCITY
from morphoray.imaging.channels import find_mapping
from morphoray.perturbations import ENCODERS
from morphoray.perturbations.base import Perturbation
from morphoray.perturbations.context import NO_CONTEXT, Context, context_state
from morphoray.storage import Storage

RESOLUTION = 32
SMILES = {
    "ethanol": "CCO",
    "benzene": "c1ccccc1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "glycine": "NCC(=O)O",
}
CONTROL = "DMSO"


def make_bundle(
    folder: Path, channels: tuple[str, ...] = ("red", "green", "blue"), context: Context = NO_CONTEXT
) -> Path:
    """Write the bundle into a new folder: K x 32 x 32 images, six compounds and the control DMSO."""
    items = [Perturbation(name, "compound", smiles) for name, smiles in SMILES.items()]
    items.append(Perturbation(CONTROL, "control", "CS(C)=O", is_control=True))
    kind = ENCODERS["rdkit"]
    encoder = kind.fit(kind.options(clip=5.0), items, Storage())
    shape = {"latent_channels": 4, "block_out_channels": (8, 16, 16)}
    codec = build_codec(CodecConfig(image_channels=len(channels), **shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=RESOLUTION // 4,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        width = encoder.width + context.width
        spec = {"kind": "mlp", "vector_width": width, "token_width": 32, "tokens": 1, "hidden": 32}
        denoiser = Denoiser(unet, make_projection(spec))
    bundle = Bundle(denoiser.eval(), codec.eval(), DDPMScheduler.from_config(VELOCITY))
    bundle.manifest = manifest(items, encoder.name, encoder.state())
    if len(channels) != 3:  # the others have the mapping's name alone, as bundles of earlier versions
        mapping = find_mapping(channels, channels, "")
        bundle.manifest |= {"mapping": mapping.model_dump(mode="json"), "channels": list(channels)}
    bundle.manifest["condition"] |= context_state(context)
    folder.mkdir(parents=True)
    save_bundle(bundle, dict(denoiser.state_dict()), folder)
    return folder


def manifest(items: list[Perturbation], encoder: str, state: dict[str, Any]) -> dict[str, Any]:
    """What training would have written into morphoray.json, but for projection and fingerprint."""
    return {
        "format": 1,
        "condition": {"encoder": encoder, "state": state},
        "mapping": "rgb",
        "channels": ["red", "green", "blue"],
        "resolution": RESOLUTION,
        "preset": "tiny",
        "control": CONTROL,
        "perturbations": [{**vars(item), "seen": True} for item in items],
        "sampling": {"sampler": "ddpm", "steps": 4, "guidance_scale": 1.0},
        "training": {"dataset": "none", "seed": 0, "settings": {}, "steps": 0},
    }
