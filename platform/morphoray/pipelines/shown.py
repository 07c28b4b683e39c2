"""What a report tells beside its numbers: a run's facts and losses, and the few images that it shows."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.datasets.reading import read_site
from morphoray.datasets.splits import UNSEEN
from morphoray.errors import DataError, MissingObjectError
from morphoray.evaluation.measures import Measured
from morphoray.evaluation.novelty import Novelty
from morphoray.evaluation.results import CODEC, CONTROL, PerturbationResult, RunFacts
from morphoray.imaging.crops import resize_square
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.codecs import local_bundle_config
from morphoray.pipelines.encode import ReadPlan, read_plan, site_images
from morphoray.pipelines.generate import read_manifest
from morphoray.pipelines.image_parts import ImageRow, read_image
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, storage_from
from morphoray.pipelines.reference import REAL, origin_of
from morphoray.seeds import fingerprint
from morphoray.storage import Storage

SHOWN = 8


def losses(config: RunConfig) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics.jsonl."""
    lines = storage_from(config.storage).read_text(layout_of(config).of("metrics.jsonl")).splitlines()
    return [(int(record["step"]), float(record["loss"])) for record in map(json.loads, lines)]


def run_facts(config: RunConfig) -> RunFacts:
    """What a finished run's bundle tells of its training; of its images alone where no model is its own."""
    if not config.evaluation.own_model:
        return RunFacts(details={name: run_details(config)[name] for name in ("image", "channels")})
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


def um_per_pixel(site: Mapping[str, Any], plan: ReadPlan, storage: Storage) -> float | None:
    """The size of a pixel of what `site_images` makes of a site; None if the site's own is not known.

    Raises DataError and MissingObjectError for a site that can't be read.
    """
    image = plan.image
    size = image.um_per_pixel or site["pixel_size_um"]
    scaled = image.resolution if image.fit == "resize" else image.scale_to
    if size is None or scaled is None:
        return size
    side = min(read_site(site, image, storage).shape[1:])
    return float(size * side / scaled)


@dataclass(frozen=True)
class ShownImages:
    """Reads the few images that a report shows. controls: ids of the data's controls."""

    config: RunConfig
    rows: Sequence[ImageRow]
    models: Sequence[str]
    unseen: set[str]
    controls: Sequence[str]

    def result(
        self, item: Perturbation, batches: str, measured: Measured, nearest: Novelty | None
    ) -> PerturbationResult:
        """The first images of each kind, and the perturbation's distances in that group of batches."""
        name, origin = item.perturbation_id, origin_of(REAL, batches)
        real = self._images(origin, [name])
        controls = [other for other in self.controls if other != name]
        images = {
            CODEC: _reconstructed(self.config, real) if self.config.evaluation.own_model else real[:0],
            CONTROL: self._images(origin, controls),
            **{model: self._images(model, [name]) for model in self.models},
        }
        return PerturbationResult(
            perturbation_id=name,
            real=self._rendered(real),
            distances=measured.distances[name],
            channels=measured.channels[name],
            images={key: self._rendered(values) for key, values in images.items() if len(values)},
            moa=item.moa,
            smiles=item.smiles,
            gene=item.gene,
            concentration_um=item.concentration_um,
            unseen=name in self.unseen,
            is_control=item.is_control,
            batches=batches,
            nearest=nearest,
            um_per_pixel=self._um_per_pixel(origin, name),
        )

    def _rendered(self, images: np.ndarray) -> np.ndarray:
        mapping = mapping_of(self.config)
        return np.stack([mapping.render(image) for image in images])

    def _images(self, origin: str, names: Sequence[str]) -> np.ndarray:
        """The first SHOWN images (K, C, R, R) of the origin and perturbations that can be read, resized."""
        side = self.config.image.resolution
        found: list[np.ndarray] = []
        for row in self._rows(origin, names):
            if len(found) == SHOWN:
                break
            with contextlib.suppress(DataError, MissingObjectError):
                found.append(resize_square(self._read(row), side))
        shape = (0, len(mapping_of(self.config).outputs), side, side)
        return np.stack(found) if found else np.zeros(shape, np.uint8)

    def _rows(self, origin: str, names: Sequence[str]) -> Iterator[ImageRow]:
        return (row for row in self.rows if row.origin == origin and row.perturbation_id in names)

    def _um_per_pixel(self, origin: str, name: str) -> float | None:
        """Of the first real image that can be read."""
        for row in self._rows(origin, [name]):
            with contextlib.suppress(DataError, MissingObjectError):
                return um_per_pixel(row.row, read_plan(self.config), dataset_of(self.config)[2])
        return None

    def _read(self, row: ImageRow) -> np.ndarray:
        if row.reader == "site":
            first: np.ndarray = site_images(row.row, read_plan(self.config), dataset_of(self.config)[2])[0]
            return first
        return read_image(row.row, storage_from(self.config.storage))
