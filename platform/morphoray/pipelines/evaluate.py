"""The evaluation: any number of methods against real images, METRICS and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from morphoray import schema
from morphoray.config import MethodConfig, RunConfig
from morphoray.errors import DataError
from morphoray.evaluation.features import ChannelExtractor, Extractor, load_extractor
from morphoray.evaluation.measures import Cohort, Measured, measure
from morphoray.evaluation.report import write_report
from morphoray.evaluation.results import CODEC, CONDITIONAL, ReportData, RunFacts
from morphoray.perturbations.base import Perturbation, from_rows
from morphoray.pipelines.cells import CellFinder, cell_finder
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.codecs import codec_fingerprint
from morphoray.pipelines.encode import read_plan
from morphoray.pipelines.features import FeatureTable, measure_features
from morphoray.pipelines.image_parts import ImageParts, ImageRow
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, resolve, storage_from
from morphoray.pipelines.method_images import (
    REAL,
    TRAINING,
    MethodImages,
    at_most,
    method_images,
    real_rows,
    run_of,
    with_the_datas_names,
)
from morphoray.pipelines.profiles import measure_profiles
from morphoray.pipelines.shown import ShownImages, losses, run_facts, unseen_perturbations
from morphoray.pipelines.sites import read_sites
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, absolute, join


def _out(config: RunConfig) -> str:
    return absolute(config.evaluation.out) if config.evaluation.out else layout_of(config).of("evaluation")


def evaluate(
    config: RunConfig,
    facts: RunFacts | None = None,
    title: str = "Generated and real images",
    statement: str | None = None,
) -> str:
    """Measure this run's model and evaluation.methods against real images; returns the report's URI.

    Features are kept under <out>/features, so that the same call goes on, and another metric costs no
    network; what evaluation.profiles measures under <out>/measurements. Writes metrics.parquet and .csv,
    report.html and .md, montage.png, and where there are any profiles.parquet and quarantine.parquet.
    """
    storage, out = storage_from(config.storage), _out(config)
    own = MethodConfig(run=layout_of(config).of("config.yaml"))
    methods = {CONDITIONAL: own, **config.evaluation.methods}
    sites = read_sites(config)
    cells = cell_finder(config, sites)
    compared = _compared(config, methods, from_rows(sites), out)
    extractor = _extractor(config, storage)
    parts = feature_parts(config, storage, extractor, cells, out)
    rows, measured, notes = _measure(config, compared, sites, parts, extractor, cells)
    profiles = None
    if config.evaluation.profiles:
        names = [item.perturbation_id for item in compared.shared]
        profiles = measure_profiles(config, config.evaluation.profiles, compared.methods, names, sites, out)
        storage.write_table(join(out, "profiles.parquet"), profiles.table)
    unread = [*parts.quarantine, *(profiles.quarantine if profiles else ())]
    shown = ShownImages(config, rows, list(methods), unseen_perturbations(sites))
    curves = {name: run for name, method in methods.items() if (run := run_of(config, method))}
    data = ReportData(
        title=title,
        experiment=config.dataset.name,
        facts=facts or run_facts(config),
        perturbations=[
            shown.result(item, measured)
            for item in compared.shared
            if item.perturbation_id in measured.distances
        ],
        losses={name: losses(run) for name, run in curves.items()},
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        mode=f"{extractor.mode}+{cells.mode}" if cells else extractor.mode,
        seed=config.seed,
        made_by=parts.made_by,
        data_statement=statement or _statement(config),
        notes=[*compared.notes, *notes, *_write_quarantine(storage, unread, parts.made_by, out)],
        models=list(methods),
        excluded=measured.excluded,
        profiles=profiles.results if profiles else None,
    )
    return write_report(data, out, storage)


@dataclass(frozen=True)
class Compared:
    """The methods' images, the perturbations that all have, the data's controls, and what was left out."""

    methods: Sequence[MethodImages]
    shared: Sequence[Perturbation]
    controls: Sequence[str]
    notes: Sequence[str]


def _compared(
    config: RunConfig, methods: Mapping[str, MethodConfig], perturbations: Sequence[Perturbation], out: str
) -> Compared:
    """Every method's images, generated where they are missing. Raises DataError when none can be compared."""
    found, notes = [], []
    for name, method in methods.items():
        made = method_images(config, name, method, out)
        known, unknown = with_the_datas_names(made, perturbations)
        found.append(known)
        if unknown:
            notes.append(f"{name}: {len(unknown)} perturbations that the data don't have: {_few(unknown)}.")
    shared = [item for item in perturbations if all(item.perturbation_id in each.counts for each in found)]
    left = [item.perturbation_id for item in perturbations if item not in shared]
    if left:
        notes.append(f"{len(left)} perturbations are left out that not every method has: {_few(left)}.")
    if not shared:
        raise DataError("evaluate: no perturbation has images of every method. See evaluation.methods.")
    controls = [item.perturbation_id for item in perturbations if item.is_control]
    return Compared(found, shared, controls, notes)


def _measure(
    config: RunConfig,
    compared: Compared,
    sites: pa.Table,
    parts: ImageParts,
    extractor: Extractor,
    cells: CellFinder | None,
) -> tuple[list[ImageRow], Measured, list[str]]:
    """The images that were measured, every metric, and notes. Raises DataError when none could be."""
    settings = config.evaluation
    names = [item.perturbation_id for item in compared.shared]
    most = 2 * (settings.cells.images if settings.cells else settings.n)
    rows = real_rows(config, sites, list(dict.fromkeys([*names, *compared.controls])), most)
    rows += [row for method in compared.methods for row in at_most(method.rows, most)]
    tables = measure_features(parts, rows, cells)
    codec = [replace(row, origin=CODEC) for row in rows if row.origin == REAL]
    tables |= measure_features(parts, codec, cells, codec_of=config)
    cohorts = [_cohort(config, item, tables, compared) for item in compared.shared]
    columns = extractor.columns() if isinstance(extractor, ChannelExtractor) else {}
    measured = measure(cohorts, settings.n, settings.repeats, config.seed, columns)
    if not measured.distances:
        reasons = [f"  {name}: {reason}" for name, reason in measured.excluded.items()]
        raise DataError("\n".join(["evaluate: no perturbation can be measured:", *reasons[:5]]))
    return rows, measured, _cells_note(cells, rows, tables) if cells else []


def _cells_note(cells: CellFinder, rows: Sequence[ImageRow], tables: Mapping[str, FeatureTable]) -> list[str]:
    """How many cells were cut from how many images of each origin."""
    told = []
    for origin in dict.fromkeys(row.origin for row in rows):
        asked = sum(row.origin == origin for row in rows)
        items = list(tables[origin].items)
        with_cells = len({item.rpartition("#")[0] for item in items})
        told.append(f"{origin} {len(items)} cells of {with_cells} of {asked} images")
    return [
        f"All distances compare crops of {cells.size} × {cells.size} pixels around single nuclei, found in "
        "real and generated images alike, instead of whole images; cells of one image are not independent. "
        f"Cut out: {'; '.join(told)}."
    ]


def _write_quarantine(
    storage: Storage, unread: Sequence[Mapping[str, Any]], made_by: str, out: str
) -> list[str]:
    """Write the images that could not be read, each once, and a note of them; neither if there are none."""
    rows = list({(row["item"], row["uri"]): dict(row) for row in unread}.values())
    if not rows:
        return []
    where = join(out, "quarantine.parquet")
    table = pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
    storage.write_table(where, schema.stamp(table, made_by))
    return [f"{len(rows)} images could not be read and are left out, see {where}."]


def run_evaluate(config: RunConfig, address: str | None = None) -> str:
    """Evaluate a finished run; prints and returns the report's URI."""
    config = resolve(config)
    with connected(address):
        report = evaluate(config)
    print(f"evaluate: {report}", flush=True)
    return report


def _statement(config: RunConfig) -> str:
    where = config.evaluation.experiments
    return (
        f"Real images: {config.dataset.name} from {config.dataset.source}, "
        f"{'experiments ' + ', '.join(where) if where else 'the experiments trained on'}."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _extractor(config: RunConfig, storage: Storage) -> Extractor:
    channels = mapping_of(config).outputs
    return load_extractor(config.evaluation.extractor, storage=storage, channels=channels)


def feature_parts(
    config: RunConfig, storage: Storage, extractor: Extractor, cells: CellFinder | None, out: str
) -> ImageParts:
    """Where the features of this extractor lie below `out`, of whole images or of crops of their cells."""
    made_by = fingerprint(
        [
            extractor.name,
            extractor.weights_hash,
            extractor.mode,
            config.image.model_dump(mode="json"),
            codec_fingerprint(config),
            config.seed,
            *([cells.settings()] if cells else []),
        ]
    )
    return ImageParts(
        "features",
        storage,
        join(out, "features", made_by),
        config.evaluation,
        config.evaluation.features_per_part,
        dataset_of(config)[2],
        read_plan(config),
        made_by,
    )


def _cohort(
    config: RunConfig,
    item: Perturbation,
    tables: dict[str, FeatureTable],
    compared: Compared,
) -> Cohort:
    """The features of one perturbation and of its baselines."""
    name, real = item.perturbation_id, tables[REAL]
    experiments = sorted(set(real.experiments[real.perturbation_ids == name]))
    others = [
        other.perturbation_id
        for other in compared.shared
        if other.perturbation_id != name and not other.is_control
    ]
    after = [other for other in others if other > name] or others
    control = [real.of(other, experiments) for other in compared.controls if other != name]
    trained = tables[TRAINING].of(name) if TRAINING in tables else None
    overlap = config.evaluation.experiments is None
    return Cohort(
        name,
        real.of(name),
        {method.name: tables[method.name].of(name) for method in compared.methods},
        tables[CODEC].of(name),
        control=np.concatenate(control) if control else None,
        other=real.of(after[0], experiments) if after else None,
        trained=None if overlap or trained is None or not len(trained) else trained,
    )
