"""What a report tells beside its numbers: a run's facts and losses, and the few images that it shows."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.datasets.splits import UNSEEN
from morphoray.errors import DataError, MissingObjectError
from morphoray.evaluation.measures import Measured
from morphoray.evaluation.results import CODEC, PerturbationResult, RunFacts
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.codecs import local_bundle_config
from morphoray.pipelines.encode import read_plan, site_images
from morphoray.pipelines.generate import read_manifest
from morphoray.pipelines.image_parts import ImageRow, read_image
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, storage_from
from morphoray.pipelines.method_images import REAL
from morphoray.seeds import fingerprint

SHOWN = 8


def losses(config: RunConfig) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics.jsonl."""
    lines = storage_from(config.storage).read_text(layout_of(config).of("metrics.jsonl")).splitlines()
    return [(int(record["step"]), float(record["loss"])) for record in map(json.loads, lines)]


def run_facts(config: RunConfig) -> RunFacts:
    """What a finished run's bundle tells of its training."""
    training = read_manifest(storage_from(config.storage), layout_of(config).bundle)["training"]
    return RunFacts(steps=training["steps"], images_seen=training["images_seen"], details=run_details(config))


def run_details(config: RunConfig) -> dict[str, str]:
    """What a report says of a run's configuration."""
    generation = config.generation
    return {
        "preset": config.bundle.preset,
        "start": Path(config.bundle.source).name if config.bundle.source else "fresh weights",
        "image": f"{config.image.resolution} × {config.image.resolution} pixels",
        "channels": mapping_of(config).legend,
        "sampler": f"{generation.sampler}, {generation.steps} steps, guidance {generation.guidance_scale:g}",
        "configuration": fingerprint(json.loads(config.model_dump_json(exclude={"run_dir", "data_dir"}))),
    }


def unseen_perturbations(sites: pa.Table) -> set[str]:
    """Those that were held out of training."""
    held_out = pc.is_in(sites["split"], pa.array(UNSEEN, pa.string()))
    return set(sites.filter(held_out)["perturbation_id"].unique().to_pylist())


def _reconstructed(config: RunConfig, images: np.ndarray) -> np.ndarray:
    from morphoray.diffusion.bundle import vae_for
    from morphoray.diffusion.codec import reconstruct

    return reconstruct(vae_for(local_bundle_config(config), config.seed), images)


@dataclass(frozen=True)
class ShownImages:
    """Reads the few images that a report shows."""

    config: RunConfig
    rows: Sequence[ImageRow]
    models: Sequence[str]
    unseen: set[str]

    def result(self, item: Perturbation, measured: Measured) -> PerturbationResult:
        """The first images of each kind, and the perturbation's distances."""
        name = item.perturbation_id
        real = self._images(REAL, name)
        images = {CODEC: _reconstructed(self.config, real)}
        images |= {model: self._images(model, name, real.shape[1:]) for model in self.models}
        return PerturbationResult(
            perturbation_id=name,
            real=self._rendered(real),
            distances=measured.distances[name],
            channels=measured.channels[name],
            images={key: self._rendered(values) for key, values in images.items()},
            moa=item.moa,
            smiles=item.smiles,
            gene=item.gene,
            concentration_um=item.concentration_um,
            unseen=name in self.unseen,
            is_control=item.is_control,
        )

    def _rendered(self, images: np.ndarray) -> np.ndarray:
        mapping = mapping_of(self.config)
        return np.stack([mapping.render(image) for image in images])

    def _images(self, origin: str, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The first SHOWN images that can be read, of `shape` if one is given."""
        found: list[np.ndarray] = []
        for row in self.rows:
            if len(found) < SHOWN and (row.origin, row.perturbation_id) == (origin, name):
                with contextlib.suppress(DataError, MissingObjectError):
                    image = self._read(row)
                    found += [image] if shape in (None, image.shape) else []
        return np.stack(found)

    def _read(self, row: ImageRow) -> np.ndarray:
        if row.reader == "site":
            first: np.ndarray = site_images(row.row, read_plan(self.config), dataset_of(self.config)[2])[0]
            return first
        return read_image(row.row, storage_from(self.config.storage))
