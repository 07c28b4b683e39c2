"""Which folders a model starts from, told without torch: what a run's driver asks costs no import of it."""

from pathlib import Path

from morphoray.config import SHIPPED, BundleConfig
from morphoray.diffusion.presets import get_preset
from morphoray.errors import ConfigError

WEIGHTS = Path(__file__).parent / "weights"


def shipped_codec() -> Path:
    """The folder of the autoencoder that comes with the package: 3 channels, 12 x H/8 x W/8 latents."""
    return WEIGHTS / "tiny_vae"


def vae_folder(config: BundleConfig) -> Path | None:
    """The local folder of that autoencoder; None when it starts from fresh weights.

    A source without a vae/ (the shipped denoiser is one) goes with the preset's own.
    """
    if config.vae:
        return Path(config.vae)
    own = shipped_codec() if get_preset(config.preset).vae is None else None
    source = source_folder(config)
    if source is not None and (own is None or (source / "vae").is_dir()):
        return source / "vae"
    return own


def source_folder(config: BundleConfig) -> Path | None:
    """The local folder of the weights to start from; None for fresh ones.

    Raises ConfigError when the preset isn't the one that the package ships a start for.
    """
    if config.source != SHIPPED:
        return Path(config.source) if config.source else None
    if config.preset != "tiny":
        raise ConfigError(
            f"bundle.source: the package ships a start for preset tiny, not for {config.preset}. Name a "
            "diffusers folder, or null for fresh weights."
        )
    return WEIGHTS / "tiny_start"
