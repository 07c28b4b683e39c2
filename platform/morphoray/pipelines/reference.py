"""What images are measured against: real ones by what training saw of their batches, and their cohorts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.datasets.splits import SEEN_BATCH, TRAIN
from morphoray.errors import ConfigError
from morphoray.evaluation.distances import half_size
from morphoray.evaluation.measures import Cohort
from morphoray.evaluation.results import CODEC, HELD_OUT, SEEN
from morphoray.imaging.crops import VIEWS
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.features import FeatureTable
from morphoray.pipelines.image_parts import ImageRow
from morphoray.seeds import numpy_generator

REAL, TRAINING, PADDING = "real", "training", "padding"
PAPER = "paper"  # evaluation.protocol
TURNED = [name for name in VIEWS if name != "identity"]


def origin_of(kind: str, batches: str) -> str:
    """The origin of REAL, PADDING or CODEC images of one group of batches."""
    return f"{kind}/{batches}"


def by_batches(config: RunConfig, sites: pa.Table) -> dict[str, pa.Table]:
    """The evaluated sites by what training saw of their batch: SEEN, HELD_OUT; of empty groups nothing."""
    sites = evaluated_sites(config, sites)
    seen = pc.is_in(sites["split"], pa.array(SEEN_BATCH, pa.string()))
    groups = {SEEN: sites.filter(seen), HELD_OUT: sites.filter(pc.invert(seen))}
    return {batches: table for batches, table in groups.items() if len(table)}


def evaluated_sites(config: RunConfig, sites: pa.Table) -> pa.Table:
    """The sites of evaluation.experiments (None: all). Raises ConfigError for ones the data don't have."""
    chosen = config.evaluation.experiments
    known = set(sites["experiment"].unique().to_pylist())
    absent = sorted(set(chosen or ()) - known)
    if absent:
        raise ConfigError(
            f"evaluation.experiments: found {absent}, the data have {', '.join(sorted(known))}."
        )
    return sites.filter(pc.is_in(sites["experiment"], pa.array(chosen, pa.string()))) if chosen else sites


def mixed(config: RunConfig, sites: pa.Table) -> list[str]:
    """A warning where evaluation.experiments has batches trained on and held-out ones; else nothing."""
    groups = by_batches(config, sites)
    if not config.evaluation.experiments or len(groups) < 2:
        return []
    names = [", ".join(sorted(set(table["experiment"].to_pylist()))) for table in groups.values()]
    return [
        f"evaluation.experiments mixes batches that were trained on ({names[0]}) with held-out ones "
        f"({names[1]}): they are measured apart, and only the latter tell how the model does on new batches."
    ]


def real_rows(
    config: RunConfig, sites: pa.Table, names: Sequence[str], images: int, n: int = 0
) -> list[ImageRow]:
    """Real images of the perturbations in each group of batches, and what else they are measured with.

    Of each perturbation so many images, drawn over its sites by the run's seed, and as many more as it takes
    to have n in either of two halves without a field of view in common. TRAINING: images
    trained on, when some are held out and the seen ones are not all measured. PADDING: flipped and turned
    copies of a perturbation's images up to evaluation.n, when the protocol is the paper's.
    """
    rows: list[ImageRow] = []
    groups = by_batches(config, sites)
    for batches, table in groups.items():
        mine = drawn_rows(config, origin_of(REAL, batches), table, "perturbation_id", names, images, n)
        rows += mine
        if config.evaluation.protocol == PAPER:
            for name in names:
                own = [row for row in mine if row.perturbation_id == name]
                rows += _padding(config, own, origin_of(PADDING, batches))
    if HELD_OUT in groups and config.evaluation.experiments:
        trained = sites.filter(pc.equal(sites["split"], TRAIN))
        rows += drawn_rows(config, TRAINING, trained, "perturbation_id", names, images)
    return rows


def drawn_rows(
    config: RunConfig,
    origin: str,
    sites: pa.Table,
    column: str,
    values: Sequence[str],
    images: int,
    n: int = 0,
) -> list[ImageRow]:
    """For each value of a column so many images of these sites, by the run's seed; for n a half more."""
    kind = origin.partition("/")[0]
    ids = np.asarray(sites[column].to_pylist(), object)
    wanted = -(-images // config.image.crops)
    fields = np.asarray([place.field for place in places_of(sites).values()], object) if n else None
    rows = []
    for value in values:
        where = np.flatnonzero(ids == value)
        order = numpy_generator(kind, config.seed, value).permutation(len(where))
        enough = wanted if fields is None else _enough(fields[where[order]], config.image.crops, wanted, n)
        picked = sites.take(where[order[:enough]])
        columns = [*SITE_COLUMNS, "experiment", "perturbation_id"]
        for site in picked.select(columns).to_pylist():
            experiment, name = site.pop("experiment"), site.pop("perturbation_id")
            rows.append(ImageRow(origin, name, experiment, site["site_id"], "site", site))
    return rows


def _enough(fields: np.ndarray, crops: int, wanted: int, n: int) -> int:
    """How many of the first sites, of these fields, `wanted` or more, have n in either of two `halves`."""
    while wanted < len(fields):
        lacking = n - half_size(np.repeat(fields[:wanted], crops))
        if lacking <= 0:
            break
        wanted += -(-lacking // crops)
    return wanted


def _padding(config: RunConfig, rows: Sequence[ImageRow], origin: str) -> list[ImageRow]:
    """Random flips and turns of random images of `rows`, as many as evaluation.n wants beside them."""
    crops = config.image.crops
    missing = -(-(config.evaluation.n - len(rows) * crops) // crops)
    if not rows or missing <= 0:
        return []
    generator = numpy_generator(PADDING, config.seed, rows[0].perturbation_id)
    made = []
    for number in range(missing):
        row, view = rows[int(generator.integers(len(rows)))], TURNED[int(generator.integers(len(TURNED)))]
        item = f"{row.item}/{number}/{view}"
        made.append(replace(row, origin=origin, item=item, row=row.row | {"view": view}))
    return made


class Place(NamedTuple):
    """What a site shows: a field of view, which sites that are crops of one field share, and its well."""

    field: str
    well: str


def places_of(sites: pa.Table) -> dict[str, Place]:
    """By site_id what it shows: told by experiment, plate, well and site.

    A site without a well is a field, and a well, of its own.
    """
    columns = sites.select(["site_id", "experiment", "plate", "well", "site"]).to_pydict()
    return {
        name: Place("/".join(place), "/".join(place[:3])) if place[2] else Place(name, name)
        for name, *place in zip(*columns.values(), strict=True)
    }


def finite(tables: Mapping[str, FeatureTable]) -> tuple[dict[str, FeatureTable], list[str]]:
    """The tables without images whose features are NaN or infinite, and a note of every origin that had some.

    Real images and the codec's of them stay row by row: one that lacks the other goes too.
    """
    kept, notes = {}, []
    for origin, table in tables.items():
        mask = np.isfinite(table.features).all(1)
        kept[origin] = table.where(mask)
        if not mask.all():
            notes.append(
                f"{origin}: {int((~mask).sum())} of {len(mask)} images are left out, whose features are not "
                "finite."
            )
    for batches in (SEEN, HELD_OUT):
        pair = [origin_of(REAL, batches), origin_of(CODEC, batches)]
        if all(name in kept for name in pair):
            both = set(kept[pair[0]].items) & set(kept[pair[1]].items)
            for name in pair:
                kept[name] = kept[name].where(np.isin(kept[name].items, list(both)))
    return kept, notes


@dataclass(frozen=True)
class Reference:
    """What the cohorts of every group of batches are made of.

    tables: features by origin. shared: the perturbations that every method has; controls: the data's. unseen:
    ids that were held out of training. places: `places_of` the data's sites.
    """

    config: RunConfig
    tables: Mapping[str, FeatureTable]
    methods: Sequence[str]
    shared: Sequence[Perturbation]
    controls: Sequence[str]
    unseen: set[str]
    places: Mapping[str, Place]

    def cohorts(self, batches: str) -> list[Cohort]:
        """The features of every perturbation with real images in that group, and of its baselines."""
        there = set(self.tables[origin_of(REAL, batches)].perturbation_ids)
        return [
            self._cohort(batches, each.perturbation_id)
            for each in self.shared
            if each.perturbation_id in there
        ]

    def _cohort(self, batches: str, name: str) -> Cohort:
        real = self.tables[origin_of(REAL, batches)]
        mine, trained = real.rows(name), self._trained(batches, name)
        experiments = sorted(set(mine.experiments))
        control = [real.of(other, experiments) for other in self.controls if other != name]
        return Cohort(
            name,
            mine.features,
            {method: self._of(method, name, real) for method in self.methods},
            self._codec(batches, name),
            control=np.concatenate(control) if control else None,
            other=self._another(real, name, experiments),
            trained=trained.features if trained else None,
            padded=self._padded(batches, name, real),
            groups=self._fields(mine),
            trained_groups=self._fields(trained) if trained else None,
            wells=np.array([self.places[owner].well for owner in mine.owners], object),
        )

    def _fields(self, table: FeatureTable) -> np.ndarray:
        """The field that each real image was cut out of."""
        return np.array([self.places[owner].field for owner in table.owners], object)

    def _codec(self, batches: str, name: str) -> np.ndarray | None:
        """Features of the codec's images of the real ones; None where they aren't measured."""
        origin = origin_of(CODEC, batches)
        return self.tables[origin].of(name) if origin in self.tables else None

    def _of(self, origin: str, name: str, real: FeatureTable) -> np.ndarray:
        """An origin's features of a perturbation; (0, width) where it has none."""
        return self.tables[origin].of(name) if origin in self.tables else real.features[:0]

    def _another(self, real: FeatureTable, name: str, experiments: Sequence[str]) -> np.ndarray | None:
        """Real images of another treatment in these experiments, of another mechanism where both are known.

        Drawn by the run's seed among those that have some.
        """
        mechanisms = {each.perturbation_id: each.moa for each in self.shared if not each.is_control}
        names = [other for other in mechanisms if other != name]
        own = mechanisms.get(name)
        apart = [other for other in names if own and mechanisms[other] not in (None, own)]
        ordered = numpy_generator("another", self.config.seed, name).permutation(sorted(apart or names))
        sets = (real.of(str(other), experiments) for other in ordered)
        return next((found for found in sets if len(found)), None)

    def _trained(self, batches: str, name: str) -> FeatureTable | None:
        """Where the reference is of held-out batches: the images that training saw of a seen perturbation."""
        if batches != HELD_OUT or name in self.unseen:
            return None
        origin = TRAINING if self.config.evaluation.experiments else origin_of(REAL, SEEN)
        found = self.tables[origin].rows(name) if origin in self.tables else None
        return found if found is not None and len(found.features) else None

    def _padded(self, batches: str, name: str, real: FeatureTable) -> np.ndarray | None:
        """By the paper's protocol: the first evaluation.n of the real images and their copies."""
        if self.config.evaluation.protocol != PAPER:
            return None
        copies = self._of(origin_of(PADDING, batches), name, real)
        return np.concatenate([real.of(name), copies])[: self.config.evaluation.n]


def limits(found: Sequence[Cohort], n: int, where: str) -> list[str]:
    """Whose images keep N below n, and for how many perturbations: a note each."""
    counts: Counter[str] = Counter()
    for cohort in found:
        if cohort.n < n:
            sides = {"real images (2 N are needed, no field on both sides)": half_size(cohort.fields)}
            sides |= {f"images of {name}": len(features) for name, features in cohort.generated.items()}
            counts[min(sides, key=lambda side: sides[side])] += 1
    return [
        f"In {where} N is below evaluation.n = {n} for {count} perturbations, for want of {side}."
        for side, count in counts.items()
    ]
