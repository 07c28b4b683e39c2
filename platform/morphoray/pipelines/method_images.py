"""Which images an evaluation measures: the real ones of SITES, and every method's, wherever they lie."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import MethodConfig, RunConfig, parse
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.datasets.splits import TRAIN
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import Perturbation
from morphoray.perturbations.table import normalise_id
from morphoray.pipelines.cluster import generate_resources, preflight
from morphoray.pipelines.generate import generate_images, known_perturbations, read_manifest
from morphoray.pipelines.image_parts import ImageRow
from morphoray.pipelines.layout import layout_of, resolve, storage_from
from morphoray.seeds import numpy_generator
from morphoray.storage import Storage, absolute, join

REAL, TRAINING = "real", "training"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class MethodImages:
    """Where a method's images lie: rows of IMAGES parts, or files, by perturbation."""

    name: str
    rows: Sequence[ImageRow]

    @property
    def counts(self) -> Counter[str]:
        """Images of each perturbation."""
        return Counter(row.perturbation_id for row in self.rows)


def method_images(config: RunConfig, name: str, method: MethodConfig, out: str) -> MethodImages:
    """The method's images, generated first where a run or a bundle is named; the same call goes on.

    What a bundle generates for this evaluation alone lies below `out`.
    """
    storage = storage_from(config.storage)
    if method.images is not None:
        return read_method(storage, name, absolute(method.images))
    source = run_of(config, method) or config
    bundle = absolute(method.bundle) if method.bundle else layout_of(source).bundle
    target = join(out, "images", name) if method.bundle else layout_of(source).of("images")
    items = known_perturbations(read_manifest(storage, bundle))
    preflight("generate", generate_resources(source))
    generate_images(bundle, items, target, source.generation, source.seed, source.storage)
    return read_method(storage, name, target)


def run_of(config: RunConfig, method: MethodConfig) -> RunConfig | None:
    """The run that a method names, None if it names none."""
    if method.run is None:
        return None
    uri = absolute(method.run)
    return resolve(parse(storage_from(config.storage).read_text(uri), uri))


def read_method(storage: Storage, name: str, uri: str) -> MethodImages:
    """Images that lie at `uri`: IMAGES parts, or a folder with a folder of image files for each perturbation.

    Raises DataError when neither is there.
    """
    parts = storage.list_files(join(uri, "parts"), suffix=".parquet")
    rows = list(_part_rows(storage, name, parts) if parts else _file_rows(storage, name, uri))
    if not rows:
        raise DataError(
            f"evaluation.methods.{name}: found no images under {uri}; expected what `morphoray generate` "
            f"writes (parts/*.parquet), or <perturbation>/*{', *'.join(SUFFIXES)}."
        )
    return MethodImages(name, rows)


def _part_rows(storage: Storage, name: str, parts: Sequence[str]) -> Iterator[ImageRow]:
    for part in parts:
        table = storage.read_table(part, ["perturbation_id", "index"])
        for number, row in enumerate(table.to_pylist()):
            item = f"{row['perturbation_id']}/{row['index']:05d}"
            yield ImageRow(name, row["perturbation_id"], "", item, "images", {"uri": part, "index": number})


def _file_rows(storage: Storage, name: str, uri: str) -> Iterator[ImageRow]:
    for file in storage.list_files(uri, recursive=True):
        below = file.removeprefix(uri.rstrip("/") + "/")
        folder, _, _ = below.rpartition("/")
        if folder and below.lower().endswith(SUFFIXES):
            yield ImageRow(name, folder.rpartition("/")[2], "", below, "file", {"uri": file})


def evaluated_sites(config: RunConfig, sites: pa.Table) -> pa.Table:
    """SITES of evaluation.experiments, or of those trained on. Raises ConfigError for unknown ones."""
    chosen = config.evaluation.experiments
    known = set(sites["experiment"].unique().to_pylist())
    absent = sorted(set(chosen or ()) - known)
    if absent:
        raise ConfigError(
            f"evaluation.experiments: found {absent}, the data have {', '.join(sorted(known))}."
        )
    seen = _trained(sites)["experiment"].unique().to_pylist()
    return sites.filter(pc.is_in(sites["experiment"], pa.array(chosen or seen, pa.string())))


def _trained(sites: pa.Table) -> pa.Table:
    return sites.filter(pc.equal(sites["split"], TRAIN))


def real_rows(config: RunConfig, sites: pa.Table, names: Sequence[str], images: int) -> list[ImageRow]:
    """Sites of the perturbations for REAL (evaluation.experiments) and TRAINING (those trained on).

    Of each perturbation so many images, drawn over its sites by the run's seed.
    """
    return [
        row
        for origin, table in ((REAL, evaluated_sites(config, sites)), (TRAINING, _trained(sites)))
        for row in drawn_rows(config, origin, table, "perturbation_id", names, images)
    ]


def drawn_rows(
    config: RunConfig, origin: str, sites: pa.Table, column: str, values: Sequence[str], images: int
) -> list[ImageRow]:
    """For each value of a column of these sites so many images, drawn by the run's seed."""
    rows = []
    ids = np.asarray(sites[column].to_pylist(), object)
    for value in values:
        where = np.flatnonzero(ids == value)
        order = numpy_generator(origin, config.seed, value).permutation(len(where))
        wanted = -(-images // config.image.crops)
        picked = sites.take(where[order[:wanted]])
        columns = [*SITE_COLUMNS, "experiment", "perturbation_id"]
        for site in picked.select(columns).to_pylist():
            experiment, name = site.pop("experiment"), site.pop("perturbation_id")
            rows.append(ImageRow(origin, name, experiment, site["site_id"], "site", site))
    return rows


def at_most(rows: Sequence[ImageRow], most: int) -> list[ImageRow]:
    """The first `most` rows of each perturbation."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.perturbation_id] += 1
        if seen[row.perturbation_id] <= most:
            kept.append(row)
    return kept


def with_the_datas_names(
    method: MethodImages, perturbations: Sequence[Perturbation]
) -> tuple[MethodImages, list[str]]:
    """The method's images under the data's own perturbation ids, and ids that the data don't have.

    The original project's spelling of an id counts as the id. Raises DataError when none is known.
    """
    spelled = {normalise_id(item.perturbation_id): item.perturbation_id for item in perturbations}
    known = {name: spelled.get(normalise_id(name)) for name in method.counts}
    rows = [
        replace(row, perturbation_id=found)
        for row in method.rows
        if (found := known[row.perturbation_id]) is not None
    ]
    if not rows:
        raise DataError(
            f"evaluation.methods.{method.name}: found images of {sorted(method.counts)[:5]}, none of the "
            f"data's perturbations, such as {sorted(spelled.values())[:5]}."
        )
    unknown = sorted(name for name, found in known.items() if found is None)
    return replace(method, rows=rows), unknown
