"""Features of images by an extractor, of whole images or of the cells in them, with or without the codec."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from morphoray.config import RunConfig
from morphoray.pipelines.cells import CellFinder
from morphoray.pipelines.cluster import use_threads
from morphoray.pipelines.codecs import local_bundle_config
from morphoray.pipelines.image_parts import ImageParts, ImageRow, images_of, measured_part, owner_of
from morphoray.pipelines.stream import Item
from morphoray.schema import features_schema
from morphoray.storage import Storage


@dataclass(frozen=True)
class FeatureTable:
    """Features (N, width) float32 of one origin, with the perturbation and experiment of each image."""

    features: np.ndarray
    perturbation_ids: np.ndarray
    experiments: np.ndarray
    items: np.ndarray

    def of(self, perturbation_id: str, experiments: Sequence[str] | None = None) -> np.ndarray:
        """The features of one perturbation, of all experiments or of some."""
        return self.rows(perturbation_id, experiments).features

    def rows(self, perturbation_id: str, experiments: Sequence[str] | None = None) -> "FeatureTable":
        """The rows of one perturbation, of all experiments or of some."""
        mask = self.perturbation_ids == perturbation_id
        if experiments is not None:
            mask &= np.isin(self.experiments, list(experiments))
        return self.where(mask)

    @property
    def owners(self) -> np.ndarray:
        """What each image was cut out of (N,): a site's id, or the file or row of a generated one."""
        return np.array([owner_of(item) for item in self.items], object)

    def where(self, mask: np.ndarray) -> "FeatureTable":
        """The images at which the mask (N,) is true."""
        return FeatureTable(*(getattr(self, each.name)[mask] for each in fields(self)))


def measure_features(
    parts: ImageParts,
    rows: Sequence[ImageRow],
    cells: CellFinder | None = None,
    codec_of: RunConfig | None = None,
) -> dict[str, FeatureTable]:
    """Features of every image by origin, or with `cells` of every crop of a cell.

    With `codec_of`, of what that run's autoencoder makes of the images.
    """
    settings = parts.settings
    holding = {
        "extractor": settings.extractor,
        "channels": parts.plan.mapping.outputs,
        "cpus": settings.cpus_per_actor,
        "gpus": settings.gpus_per_actor,
        "cells": cells,
        "codec_of": codec_of,
        "storage": parts.storage,
    }
    tables: dict[str, list[FeatureTable]] = {}
    for origin, table in parts.measure(rows, FeaturePart, holding):
        tables.setdefault(origin, []).append(_feature_table(table))
    joined = {origin: _joined(tables.pop(origin)) for origin in list(tables)}
    pa.default_memory_pool().release_unused()  # Arrow keeps twice the features' size of what it freed
    return joined


def _feature_table(table: pa.Table) -> FeatureTable:
    """One part's FEATURES; no rows where none of its images could be read, or shows a cell."""
    width = table.schema.field("features").type.list_size
    features = pa.compute.list_flatten(table["features"]).to_numpy().reshape(-1, width)
    names = ("perturbation_id", "experiment", "item")
    return FeatureTable(features, *(np.asarray(table[name].to_pylist(), object) for name in names))


def _joined(parts: Sequence[FeatureTable]) -> FeatureTable:
    """Parts of one origin, one after the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return FeatureTable(*map(np.concatenate, columns))


class FeaturePart:
    """An actor that holds the extractor, and the autoencoder that images pass first, if one is given."""

    def __init__(
        self,
        extractor: str,
        channels: tuple[str, ...],
        cpus: float,
        gpus: float,
        cells: CellFinder | None,
        codec_of: RunConfig | None,
        storage: Storage,
    ) -> None:
        from morphoray.evaluation.features import load_extractor

        use_threads(cpus)
        device = "cuda" if gpus else "cpu"
        self._extractor = load_extractor(extractor, device, storage, channels)
        self._cells = cells
        self._codec = None
        if codec_of is not None:
            from morphoray.diffusion.bundle import vae_for

            self._codec = vae_for(local_bundle_config(codec_of), codec_of.seed).to(device)

    def __call__(self, item: Item) -> Item:
        """The part's FEATURES, packed."""
        images = images_of(item)
        places = [self._cells.places(image) for image in images] if self._cells else []
        if self._codec is not None and len(images):
            from morphoray.diffusion.codec import reconstruct

            images = reconstruct(self._codec, images)
        owners = item["owners"]
        if self._cells:
            # a row a cell, of the codec's images at the places found in the real ones
            cuts = [self._cells.cut(image, found) for image, found in zip(images, places, strict=True)]
            features = np.concatenate([self._extractor(images[:0]), *map(self._extractor, cuts)])
            owners = [owner for owner, cut in zip(owners, cuts, strict=True) for _ in cut]
        else:
            features = self._extractor(images)
        width = features.shape[1]
        flat = pa.array(features.ravel(), pa.float32())
        columns = {"features": pa.FixedSizeListArray.from_arrays(flat, width)}
        return measured_part(item, owners, columns, features_schema(width))
