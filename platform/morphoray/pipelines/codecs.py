"""The run's autoencoder, wherever it lies: fetched once a machine, and named by its weights."""

import hashlib
import json
import tempfile
from pathlib import Path

from morphoray.config import SHIPPED, BundleConfig, RunConfig
from morphoray.diffusion.sources import vae_folder
from morphoray.errors import ConfigError, DataError
from morphoray.pipelines.layout import mapping_of, storage_from
from morphoray.storage import Storage, absolute, is_remote


def local_copy(storage: Storage, uri: str) -> Path:
    """A local folder with the contents of `uri`; a remote one is downloaded once a machine and version."""
    if not is_remote(uri):
        return Path(absolute(uri).removeprefix("file://"))
    files = storage.list_files(uri, recursive=True)
    if not files:
        raise DataError(f"{uri}: found no files; expected a model folder.")
    version = hashlib.sha256(repr([(file, storage.size(file)) for file in files]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "morphoray" / version
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as scratch:
            storage.download_dir(uri, scratch)
            try:
                Path(scratch).rename(folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
            Path(scratch).mkdir(exist_ok=True)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def local_bundle_config(config: RunConfig) -> BundleConfig:
    """The bundle section with its URIs replaced by local folders."""
    storage = storage_from(config.storage)
    values = config.bundle.model_dump()
    for key in ("source", "vae"):
        if values[key] and values[key] != SHIPPED:
            values[key] = str(local_copy(storage, values[key]))
    return BundleConfig(**values)


def image_channels(config: RunConfig) -> int:
    """How many channels the run's images have."""
    return len(mapping_of(config).outputs)


def _check_channels(folder: Path, config: RunConfig) -> None:
    mapping = mapping_of(config)
    found, wanted = (
        json.loads((folder / "config.json").read_text()).get("in_channels", 3),
        len(mapping.outputs),
    )
    if found != wanted:
        raise ConfigError(
            f"bundle.vae: the autoencoder in {folder} has {found} image channels, image.mapping gives "
            f"{wanted} ({', '.join(mapping.outputs)}). Train one first: python jobs/train_codec.py --config "
            f"jobs/configs/codec_channels.yaml --set codec.image_channels={wanted} --set run_dir=CODEC, then "
            "set bundle.vae: CODEC/vae (docs/running.md, Channels)."
        )


def codec_fingerprint(config: RunConfig) -> str:
    """Names the autoencoder by its weights and configuration, or as fresh from the run's seed.

    Raises ConfigError when it has another number of image channels than the run's mapping.
    """
    folder, channels = vae_folder(local_bundle_config(config)), image_channels(config)
    if folder is None:
        fresh = f"fresh:{config.bundle.preset}:{config.seed}"
        return fresh if channels == 3 else f"{fresh}:{channels}"
    digest = hashlib.sha256()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder}: found no {name}; expected a diffusers AutoencoderKL folder.")
        digest.update(path.read_bytes())
    _check_channels(folder, config)
    return digest.hexdigest()[:16]
