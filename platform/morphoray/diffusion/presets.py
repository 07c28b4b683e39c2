"""The model sizes: `tiny`, `small` and `sd`, each a UNet, an autoencoder and a noise schedule."""

from dataclasses import dataclass
from typing import Any

from morphoray.errors import ConfigError

# Stable Diffusion v1's schedule (Rombach et al. 2022): betas scaled-linear in 1000 steps.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}

# Our own sizes predict the velocity and start sampling at the last training step: an error in the noise is
# divided by sqrt(alpha_bar) = 0.07 there, which ruins images after a few hundred steps of training.
VELOCITY: dict[str, Any] = SCHEDULE | {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
}

SD_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

SD_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


@dataclass(frozen=True)
class Preset:
    """One model size.

    unet: UNet2DConditionModel configuration; its in_channels and sample_size follow the codec and image.
    vae: AutoencoderKL configuration for fresh weights, or None for the codec shipped with the package.
    schedule: DDPMScheduler configuration.
    downsampling: image pixels a latent pixel, along each side.
    """

    unet: dict[str, Any]
    vae: dict[str, Any] | None
    schedule: dict[str, Any]
    downsampling: int = 8


def _two_level(first: int, second: int, layers: int, cross: int) -> dict[str, Any]:
    """Convolutions at the upper level, attention to the condition below it and in the middle.

    At 8 x 8 latents, attention on the upper level too would cost a quarter of the images per second.
    """
    return {
        "sample_size": 8,
        "in_channels": 32,
        "out_channels": 32,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [first, second],
        "layers_per_block": layers,
        "cross_attention_dim": cross,
        "attention_head_dim": 8,
        "norm_num_groups": 16,
    }


PRESETS: dict[str, Preset] = {
    "tiny": Preset(unet=_two_level(96, 160, 1, 256), vae=None, schedule=VELOCITY),
    "small": Preset(unet=_two_level(192, 320, 2, 256), vae=None, schedule=VELOCITY),
    "sd": Preset(unet=SD_UNET, vae=SD_VAE, schedule=SCHEDULE),
}


def get_preset(name: str) -> Preset:
    """The preset called `name`; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"bundle.preset: {name!r} is unknown. Known presets: {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]
