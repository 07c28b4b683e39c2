"""Compare runs that share their data: real, reconstructed and generated images of every perturbation."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.datasets.splits import SEEN_BATCH, UNSEEN
from morphoray.errors import DataError, MissingObjectError
from morphoray.evaluation.distances import compare, frechet, kid_full
from morphoray.evaluation.features import ChannelExtractor, Extractor, load_extractor
from morphoray.evaluation.report import write_report
from morphoray.evaluation.results import CONDITIONAL, FRECHET, PerturbationResult, ReportData, RunFacts
from morphoray.imaging.channels import ChannelMapping
from morphoray.imaging.png import decode_png
from morphoray.perturbations.base import Perturbation, from_rows
from morphoray.pipelines.codecs import image_channels, local_bundle_config
from morphoray.pipelines.encode import read_plan, site_images
from morphoray.pipelines.generate import read_images
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.seeds import fingerprint, numpy_generator

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


def measure_sets(
    sets: list[ImageSets], extractor: Extractor, mapping: ChannelMapping, seed: int
) -> list[PerturbationResult]:
    """Fréchet and kernel distances of every method for each perturbation, all at the same N."""

    def shown(images: np.ndarray) -> np.ndarray:
        return np.stack([mapping.render(image) for image in images[:SHOWN]])

    results = []
    for entry in sets:
        real, reconstructed = extractor(entry.real), extractor(entry.reconstructed)
        generated = {method: extractor(images) for method, images in entry.generated.items()}
        distances = {
            name: compare(
                real,
                generated,
                numpy_generator("compare", seed, entry.perturbation.perturbation_id),
                reconstructed=reconstructed,
                metric=metric,
            )
            for name, metric in ((FRECHET, frechet), ("kid", kid_full))
        }
        item = entry.perturbation
        columns = extractor.columns() if isinstance(extractor, ChannelExtractor) else {}
        channels = {
            name: compare(
                real[:, part],
                {method: features[:, part] for method, features in generated.items()},
                numpy_generator("compare", seed, item.perturbation_id),
                reconstructed=reconstructed[:, part],
            )
            for name, part in columns.items()
        }
        results.append(
            PerturbationResult(
                perturbation_id=item.perturbation_id,
                channels=channels,
                real=shown(entry.real),
                distances=distances,
                reconstructions=shown(entry.reconstructed),
                moa=item.moa,
                smiles=item.smiles,
                gene=item.gene,
                concentration_um=item.concentration_um,
                unseen=entry.unseen,
                is_control=item.is_control,
                **{method: shown(images) for method, images in entry.generated.items()},
            )
        )
    return results


def losses(config: RunConfig) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics.jsonl."""
    storage, layout = storage_from(config.storage), layout_of(config)
    lines = storage.read_text(layout.of("metrics.jsonl")).splitlines()
    return [(int(record["step"]), float(record["loss"])) for record in map(json.loads, lines)]


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


def report_runs(
    configs: dict[str, RunConfig],
    images: dict[str, str],
    facts: RunFacts,
    title: str,
    experiment: str,
    data_statement: str,
    out: str,
    experiments: list[str] | None = None,
) -> str:
    """Measure the methods' images against real ones and write the report to `out`; returns its URI.

    configs, images: by method, `conditional` and `unconditional`. experiments: the real images', by default
    those that were trained on.
    """
    first = configs[CONDITIONAL]
    storage = storage_from(first.storage)
    mapping = mapping_of(first)
    extractor = load_extractor(first.evaluation.extractor, storage=storage, channels=mapping.outputs)
    sets = collect(first, images, 2 * first.evaluation.n, experiments)
    markers = [layout_of(config).of("bundle", "morphoray.json") for config in configs.values()]
    data = ReportData(
        title=title,
        experiment=experiment,
        facts=facts,
        perturbations=measure_sets(sets, extractor, mapping, first.seed),
        losses={method: losses(config) for method, config in configs.items()},
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        mode=extractor.mode,
        seed=first.seed,
        made_by=fingerprint([storage.read_json(marker)["fingerprint"] for marker in markers]),
        data_statement=data_statement,
    )
    return write_report(data, out, storage)
