"""Real, reconstructed and generated images of every perturbation, for runs that share their data."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.datasets.splits import SEEN_BATCH, UNSEEN
from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.png import decode_png
from morphoray.perturbations.base import Perturbation, from_rows
from morphoray.pipelines.codecs import image_channels, local_bundle_config
from morphoray.pipelines.encode import read_plan, site_images
from morphoray.pipelines.generate import read_images
from morphoray.pipelines.layout import dataset_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.seeds import numpy_generator

SHOWN = 8


@dataclass(frozen=True)
class ImageSets:
    """Images (N, K, R, R) uint8 of one perturbation; reconstructed are the codec's of `real`, row by row."""

    perturbation: Perturbation
    unseen: bool
    real: np.ndarray
    reconstructed: np.ndarray
    generated: dict[str, np.ndarray]


def seen_experiments(sites: pa.Table) -> list[str]:
    """The experiments that training sites come from."""
    names: list[str] = sites.filter(pc.equal(sites["split"], "train"))["experiment"].unique().to_pylist()
    return sorted(names)


def real_images(
    config: RunConfig, sites: pa.Table, perturbation_id: str, experiments: list[str], most: int
) -> np.ndarray:
    """Up to `most` real images (N, K, R, R) of a perturbation, drawn over its `sites` in these experiments.

    Sites that can't be read are left out: encoding has quarantined them.
    """
    mine = pc.and_(
        pc.equal(sites["perturbation_id"], perturbation_id),
        pc.is_in(sites["experiment"], pa.array(experiments, pa.string())),
    )
    rows = sites.filter(mine).select(list(SITE_COLUMNS)).to_pylist()
    if not rows:
        raise DataError(
            f"{perturbation_id}: found no real sites in the experiments {', '.join(experiments)}."
        )
    plan = read_plan(config)
    storage = dataset_of(config)[2]

    def read(row: dict[str, Any]) -> np.ndarray | None:
        try:
            return site_images(row, plan, storage)
        except (DataError, MissingObjectError):
            return None

    order = numpy_generator("real", config.seed, perturbation_id).permutation(len(rows))
    needed = -(-most // config.image.crops)
    with ThreadPoolExecutor(plan.threads) as pool:
        found = [images for images in pool.map(read, [rows[i] for i in order[:needed]]) if images is not None]
    if not found:
        raise DataError(f"{perturbation_id}: none of its real images can be read.")
    # The first crop of every site, then the second: images that are shown side by side are of other cells.
    return np.stack(found, axis=1).reshape(-1, *found[0].shape[1:])[:most]


def collect(
    config: RunConfig, generated: dict[str, str], most: int, experiments: list[str] | None = None
) -> list[ImageSets]:
    """Real, reconstructed and generated images of every perturbation that all methods have.

    generated: method → URI of its IMAGES. experiments: the real images' (default: those trained on).
    """
    from morphoray.diffusion.bundle import vae_for
    from morphoray.diffusion.codec import reconstruct

    storage = storage_from(config.storage)
    sites = read_sites(config)
    pool = sites if experiments else sites.filter(pc.is_in(sites["split"], pa.array(SEEN_BATCH)))
    held_out = pc.is_in(sites["split"], pa.array(UNSEEN))
    unseen = set(sites.filter(held_out)["perturbation_id"].unique().to_pylist())
    tables = {method: read_images(storage, uri) for method, uri in generated.items()}
    codec = vae_for(local_bundle_config(config), config.seed, image_channels(config))
    sets = []
    for item in from_rows(sites):
        name = item.perturbation_id
        made = {
            method: table.filter(pc.equal(table["perturbation_id"], name))["image"].to_pylist()
            for method, table in tables.items()
        }
        if not all(made.values()):
            continue
        real = real_images(config, pool, name, experiments or seen_experiments(sites), most)
        images = {method: np.stack([decode_png(data) for data in rows]) for method, rows in made.items()}
        sets.append(ImageSets(item, name in unseen, real, reconstruct(codec, real), images))
    return sets
