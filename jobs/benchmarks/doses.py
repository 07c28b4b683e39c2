"""Whether generated images move along the true dose axis, from one seed, held-out doses included.

    python jobs/benchmarks/doses.py RUN/config.yaml

RUN is a finished run on simulated compounds at several doses (jobs/configs/simulated_doses.yaml). For every
compound its doses are generated from shared noise, those of the data and the geometric means between them.
An image's position is its features' projection on the line from the mean of real controls (0) to the mean of
real images at the highest dose (1); the truth is the simulator's response, the share of a full effect.
Without a run it says so and ends.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from morphoray.config import RunConfig, parse
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.datasets.simulator.effects import compound_vectors, response
from morphoray.errors import DataError, MissingObjectError, MorphorayError
from morphoray.evaluation.features import Extractor, load_extractor
from morphoray.imaging.png import decode_image, encode_png, grid
from morphoray.perturbations.base import Perturbation, dose_id, plain_id
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.encode import read_plan, site_images
from morphoray.pipelines.generate import generate_images, known_perturbations, read_images, read_manifest
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, storage_from
from morphoray.pipelines.shown import unseen_perturbations
from morphoray.pipelines.sites import read_sites
from morphoray.seeds import numpy_generator
from morphoray.storage import Storage, join

SHOWN = 4  # noise seeds of the picture


@dataclass(frozen=True)
class Dose:
    """A row of the table: positions of images on the axis; real is None where the data lack the dose."""

    dose_um: float
    seen: str
    truth: float
    generated: np.ndarray
    real: float | None


def series(items: Sequence[Perturbation]) -> dict[str, list[Perturbation]]:
    """Every compound at each of its doses and at the geometric means between them, lowest first."""
    found: dict[str, list[Perturbation]] = {}
    for item in items:
        if not item.is_control:
            found.setdefault(plain_id(item.perturbation_id), []).append(item)
    for name, known in found.items():
        known.sort(key=lambda item: item.concentration_um or 0.0)
        between = [
            math.sqrt((low.concentration_um or 0.0) * (high.concentration_um or 0.0))
            for low, high in itertools.pairwise(known)
        ]
        known += [
            replace(known[0], perturbation_id=dose_id(name, dose), concentration_um=dose) for dose in between
        ]
        known.sort(key=lambda item: item.concentration_um or 0.0)
    return found


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


def positions(features: np.ndarray, control: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(N,) places of features (N, width) on the line from the controls' mean, 0, to the top dose's, 1."""
    origin = control.mean(0)
    line = top.mean(0) - origin
    return np.asarray((features - origin) @ line / (line @ line))


def rank_correlation(rows: Sequence[Dose]) -> tuple[float, float]:
    """Spearman's rho of the generated mean positions with the truth, and the mean of each seed's own."""
    truth = [row.truth for row in rows]
    means = [row.generated.mean() for row in rows]
    each = [spearmanr(truth, places).statistic for places in np.stack([row.generated for row in rows], 1)]
    return float(spearmanr(truth, means).statistic), float(np.mean(each))


@dataclass(frozen=True)
class Judge:
    """Reads a run's real and generated images and places them on a compound's axis."""

    config: RunConfig
    extractor: Extractor
    sites: pa.Table
    out: str

    def real(self, name: str) -> np.ndarray:
        """Features of a perturbation's real images in the experiments trained on."""
        most = 4 * self.config.generation.n
        images = real_images(self.config, self.sites, name, seen_experiments(self.sites), most)
        return self.extractor(images)

    def made(self, name: str) -> np.ndarray:
        """A perturbation's generated images, in the order of their noise."""
        table = read_images(storage_from(self.config.storage), self.out, name)
        return np.stack([decode_image(data) for data in table["image"].to_pylist()])

    def rows(self, items: Sequence[Perturbation], controls: np.ndarray) -> list[Dose]:
        """One compound's doses. The axis goes through every other real image, the rest are placed on it."""
        there = {*self.sites["perturbation_id"].unique().to_pylist()}
        unseen = unseen_perturbations(self.sites)
        real = {name: self.real(name) for item in items if (name := item.perturbation_id) in there}
        top = list(real.values())[-1]
        found = []
        for item in items:
            name, dose = item.perturbation_id, item.concentration_um or 0.0
            seen = "no image" if name not in there else "held out" if name in unseen else "trained on"
            (truth,) = response(compound_vectors([str(item.smiles)]), np.array([dose]))
            places = positions(self.extractor(self.made(name)), controls[::2], top[::2])
            told = positions(real[name][1::2], controls[::2], top[::2]).mean() if name in real else None
            found.append(Dose(dose, seen, float(truth), places, told))
        return found

    def picture(self, planned: Sequence[Sequence[Perturbation]]) -> bytes:
        """PNG: a column a dose, a few noise seeds of every compound below each other."""
        render = mapping_of(self.config).render
        tiles = []
        for items in planned:
            columns = [self.made(item.perturbation_id)[:SHOWN] for item in items]
            tiles += [render(column[seed]) for seed in range(SHOWN) for column in columns]
        return encode_png(grid(tiles, len(planned[0])))


def measure(config: RunConfig, extractor: Extractor) -> dict[str, list[Dose]]:
    """The table of every compound; writes the images and the picture series.png below RUN/doses."""
    storage, layout = storage_from(config.storage), layout_of(config)
    known = known_perturbations(read_manifest(storage, layout.bundle))
    planned = series(known)
    generation = config.generation.model_copy(update={"shared_noise": True})
    wanted = [item for items in planned.values() for item in items]
    judge = Judge(config, extractor, read_sites(config), layout.of("doses"))
    generate_images(layout.bundle, wanted, judge.out, generation, config.seed, config.storage)
    storage.write_bytes(join(judge.out, "series.png"), judge.picture(list(planned.values())))
    (control,) = (item.perturbation_id for item in known if item.is_control)
    controls = judge.real(control)
    return {name: judge.rows(items, controls) for name, items in planned.items()}


def show(tables: dict[str, list[Dose]]) -> None:
    """Print a table a compound."""
    for name, rows in tables.items():
        print(f"\n{name}\n{'dose, uM':>10} {'':>11} {'true effect':>12} {'generated':>10} {'real':>6}")
        for row in rows:
            real = "" if row.real is None else f"{row.real:.2f}"
            place = row.generated.mean()
            print(f"{row.dose_um:>10.3g} {row.seen:>11} {row.truth:>12.2f} {place:>10.2f} {real:>6}")
        means, seeds = rank_correlation(rows)
        print(f"Spearman with the truth: {means:.3f} of the means, {seeds:.3f} of one seed's on average")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="its config.yaml")
    arguments = parser.parse_args()
    if arguments.run is None:
        print("doses: skipped, no run is named (jobs/benchmarks/doses.py --help)")
        return 0
    config = parse(Storage().read_text(arguments.run), arguments.run)
    with connected(None):
        show(measure(config, load_extractor(config.evaluation.extractor)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MorphorayError as error:
        sys.exit(f"doses: {error}")
