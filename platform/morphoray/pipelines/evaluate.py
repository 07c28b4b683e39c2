"""The evaluation: any number of methods against real images, METRICS and the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.codecs import codec_fingerprint
from morphoray.pipelines.encode import read_plan
from morphoray.pipelines.features import FeatureStore, FeatureTable, ImageRow
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, resolve, storage_from
from morphoray.pipelines.method_images import (
    REAL,
    TRAINING,
    MethodImages,
    method_images,
    real_rows,
    run_of,
    with_the_datas_names,
)
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
    network. Writes metrics.parquet and .csv, report.html and .md, montage.png and quarantine.parquet.
    """
    storage, out = storage_from(config.storage), _out(config)
    own = MethodConfig(run=layout_of(config).of("config.yaml"))
    methods = {CONDITIONAL: own, **config.evaluation.methods}
    sites = read_sites(config)
    compared = _compared(config, methods, from_rows(sites), out)
    extractor = _extractor(config, storage)
    store = _store(config, storage, extractor, out)
    rows, measured = _measure(config, compared, sites, store, extractor)
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
        mode=extractor.mode,
        seed=config.seed,
        made_by=store.made_by,
        data_statement=statement or _statement(config),
        notes=[*compared.notes, *_write_quarantine(store, out)],
        models=list(methods),
        excluded=measured.excluded,
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
    config: RunConfig, compared: Compared, sites: pa.Table, store: FeatureStore, extractor: Extractor
) -> tuple[list[ImageRow], Measured]:
    """The images that were measured, and every metric. Raises DataError when none could be."""
    settings = config.evaluation
    names = [item.perturbation_id for item in compared.shared]
    rows = real_rows(config, sites, list(dict.fromkeys([*names, *compared.controls])))
    rows += [row for method in compared.methods for row in _at_most(method.rows, 2 * settings.n)]
    tables = store.measure(rows)
    codec = [replace(row, origin=CODEC) for row in rows if row.origin == REAL]
    tables |= store.measure(codec, codec_of=config)
    cohorts = [_cohort(config, item, tables, compared) for item in compared.shared]
    columns = extractor.columns() if isinstance(extractor, ChannelExtractor) else {}
    measured = measure(cohorts, settings.n, settings.repeats, config.seed, columns)
    if not measured.distances:
        reasons = [f"  {name}: {reason}" for name, reason in measured.excluded.items()]
        raise DataError("\n".join(["evaluate: no perturbation can be measured:", *reasons[:5]]))
    return rows, measured


def _write_quarantine(store: FeatureStore, out: str) -> list[str]:
    """Write the images that could not be read, and a note of them; neither if there are none."""
    if not store.quarantine:
        return []
    where = join(out, "quarantine.parquet")
    table = pa.Table.from_pylist(store.quarantine, schema=schema.QUARANTINE)
    store.storage.write_table(where, schema.stamp(table, store.made_by))
    return [f"{len(store.quarantine)} images could not be read and are left out, see {where}."]


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


def _at_most(rows: Sequence[ImageRow], most: int) -> list[ImageRow]:
    """The first `most` rows of each perturbation."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.perturbation_id] += 1
        if seen[row.perturbation_id] <= most:
            kept.append(row)
    return kept


def _extractor(config: RunConfig, storage: Storage) -> Extractor:
    channels = mapping_of(config).outputs
    return load_extractor(config.evaluation.extractor, storage=storage, channels=channels)


def _store(config: RunConfig, storage: Storage, extractor: Extractor, out: str) -> FeatureStore:
    made_by = fingerprint(
        [
            extractor.name,
            extractor.weights_hash,
            extractor.mode,
            config.image.model_dump(mode="json"),
            codec_fingerprint(config),
            config.seed,
        ]
    )
    return FeatureStore(
        storage,
        join(out, "features", made_by),
        config.evaluation,
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
