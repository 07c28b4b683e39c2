"""Where everything of a run lies under its `run_dir`, and the checks between its stages."""

from dataclasses import dataclass
from typing import Any

from morphoray.config import SHIPPED, DatasetConfig, RunConfig, StorageConfig
from morphoray.datasets import find_dataset
from morphoray.datasets.base import Dataset
from morphoray.errors import ConfigError, FingerprintError
from morphoray.imaging.channels import ChannelMapping, find_mapping
from morphoray.perturbations import find_encoder
from morphoray.sections import build
from morphoray.storage import Storage, absolute, join


def storage_from(config: StorageConfig) -> Storage:
    """The storage a configuration describes."""
    return Storage(**config.model_dump())


@dataclass(frozen=True)
class RunLayout:
    """URIs of a run's parts; what is made from the dataset alone lies under `data`, which runs can share."""

    root: str
    data: str

    def of(self, *parts: str) -> str:
        """The URI of a part under run_dir, for one of("samples", "final.png")."""
        return join(self.root, *parts)

    def of_data(self, *parts: str) -> str:
        """The URI of a part under data_dir, for one of_data("quarantine", "encode")."""
        return join(self.data, *parts)

    @property
    def sites(self) -> str:
        """The SITES table."""
        return self.of_data("sites", "sites.parquet")

    @property
    def latents(self) -> str:
        """The folder of LATENTS parts."""
        return self.of_data("latents")

    @property
    def checkpoints(self) -> str:
        """The folder of training checkpoints."""
        return self.of("checkpoints")

    @property
    def bundle(self) -> str:
        """The finished bundle; its morphoray.json is written last."""
        return self.of("bundle")

    @property
    def conditions(self) -> str:
        """The condition vector of every perturbation in SITES."""
        return self.of("conditions.json")


def resolve(config: RunConfig) -> RunConfig:
    """Complete the parts that name a registry entry: absolute URIs, importer and encoder options.

    Raises ConfigError for an unknown dataset, encoder, option or channel.
    """
    dataset = find_dataset(config.dataset.name)
    options = build(dataset.options, config.dataset.options, "dataset")
    if options.is_random and options.held_out_seed is None:
        options = options.model_copy(update={"held_out_seed": config.seed})
    source = config.dataset.source
    root = absolute(config.run_dir)
    data = absolute(config.data_dir or config.run_dir)
    if source is None:
        if config.dataset.name != "simulated":
            raise ConfigError(
                f"dataset.source: missing. Where does {config.dataset.name} lie (path or s3://)?"
            )
        source = join(data, "source")
    encoder = find_encoder(config.perturbations.encoder)
    encoder_options = build(encoder.options, config.perturbations.options, "perturbations")
    known = set(type(config.perturbations).model_fields)
    perturbations = {key: value for key, value in config.perturbations.model_dump().items() if key in known}
    values = config.model_dump(mode="json")
    values["run_dir"], values["data_dir"] = root, data
    values["dataset"] = {
        "name": config.dataset.name,
        "source": absolute(source),
        "storage": values["dataset"]["storage"],
        **options.model_dump(mode="json"),
    }
    values["perturbations"] = perturbations | encoder_options.model_dump(mode="json")
    for key in ("source", "vae"):  # Ray Train workers have another working directory
        if values["bundle"][key] and values["bundle"][key] != SHIPPED:
            values["bundle"][key] = absolute(values["bundle"][key])
    for section in ("evaluation", "screen"):  # nor do its actors
        values[section]["extractor"] = _absolute_extractor(values[section]["extractor"])
    found = find_mapping(config.image.mapping, dataset.channel_names(options), dataset.mapping_name(options))
    if config.image.mapping is None:
        values["image"]["mapping"] = found.name
    return build(RunConfig, values, "")


def _absolute_extractor(name: str) -> str:
    """`<kind>:<URI>` with the URI in a form that means the same everywhere; other names as they are."""
    kind, colon, uri = name.partition(":")
    return f"{kind}:{absolute(uri)}" if colon and uri else name


def mapping_of(config: RunConfig) -> ChannelMapping:
    """The run's channel mapping. Raises ConfigError for one that the dataset's channels don't fit."""
    dataset, options, _ = dataset_of(config)
    return find_mapping(config.image.mapping, dataset.channel_names(options), dataset.mapping_name(options))


def dataset_of(config: RunConfig) -> tuple[Dataset, Any, Storage]:
    """The run's importer, its validated options and the storage its source is read with."""
    section: DatasetConfig = config.dataset
    dataset = find_dataset(section.name)
    options = build(dataset.options, section.options, "dataset")
    return dataset, options, storage_from(section.storage or config.storage)


def layout_of(config: RunConfig) -> RunLayout:
    """The layout under the run's run_dir and data_dir."""
    return RunLayout(absolute(config.run_dir), absolute(config.data_dir or config.run_dir))


def claim(storage: Storage, uri: str, made_by: dict[str, Any], what: str) -> None:
    """Write `made_by` beside a stage's output, or raise FingerprintError if other settings lie there.

    The message lists each setting that differs, as path: stored, now.
    """
    if storage.exists(uri):
        compare(storage.read_json(uri), made_by, uri, what)
    else:
        storage.write_json(uri, made_by)


def compare(stored: Any, made_by: dict[str, Any], uri: str, what: str) -> None:
    """Raise claim's FingerprintError if `stored`, which lies at `uri`, is not `made_by`."""
    if stored == made_by:
        return
    differences = [
        f"  {key}: stored {before}, now {after}" for key, before, after in _differences(stored, made_by)
    ]
    raise FingerprintError(
        f"{what} under {uri} were made by other settings:\n" + "\n".join(differences) + "\n"
        "Restore these settings, or use another run_dir; nothing was changed."
    )


def _differences(stored: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = sorted(stored.keys() | now.keys())
        return [
            difference
            for key in keys
            for difference in _differences(stored.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if stored == now else [(path, stored, now)]
