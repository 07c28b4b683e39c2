"""The evaluation: any number of methods against real images, METRICS and the report."""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import MethodConfig, RunConfig
from morphoray.errors import DataError, MissingObjectError
from morphoray.evaluation.features import load_extractor
from morphoray.evaluation.measures import Cohort, Measured, measure
from morphoray.evaluation.report import write_report
from morphoray.evaluation.results import CODEC, CONDITIONAL, PerturbationResult, ReportData, RunFacts
from morphoray.perturbations.base import Perturbation, from_rows
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.codecs import codec_fingerprint, local_bundle_config
from morphoray.pipelines.encode import read_plan, site_images
from morphoray.pipelines.features import FeatureStore, FeatureTable, ImageRow, read_image
from morphoray.pipelines.generate import read_manifest
from morphoray.pipelines.layout import dataset_of, layout_of, resolve, storage_from
from morphoray.pipelines.method_images import (
    REAL,
    TRAINING,
    MethodImages,
    method_images,
    real_rows,
    run_of,
    with_the_datas_names,
)
from morphoray.pipelines.sites import read_sites
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, absolute, join

SHOWN = 8


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
    sites = read_sites(config)
    perturbations = from_rows(sites)
    chosen = {CONDITIONAL: MethodConfig(run=layout_of(config).of("config.yaml")), **config.evaluation.methods}
    methods, runs, notes = [], [], []
    for name, method in chosen.items():
        runs.append(run_of(config, method))
        made = method_images(config, name, method, out)
        found, unknown = with_the_datas_names(made, perturbations)
        methods.append(found)
        if unknown:
            notes.append(
                f"{name} has images of {len(unknown)} perturbations that the data lack: {_few(unknown)}."
            )
    shared = [
        item for item in perturbations if all(item.perturbation_id in method.counts for method in methods)
    ]
    if len(shared) < len(perturbations):
        left = sorted({item.perturbation_id for item in perturbations} - {i.perturbation_id for i in shared})
        notes.append(
            f"{len(left)} perturbations are left out, since not every method has them: {_few(left)}."
        )
    controls = [item.perturbation_id for item in perturbations if item.is_control]
    names = [item.perturbation_id for item in shared]
    rows = real_rows(config, sites, list(dict.fromkeys([*names, *controls])))
    rows += [row for method in methods for row in _at_most(method.rows, 2 * config.evaluation.n)]
    store = _store(config, storage, out)
    tables = store.measure(rows)
    codec = [replace(row, origin=CODEC) for row in rows if row.origin == REAL]
    tables |= store.measure(codec, codec_of=config)
    cohorts = [_cohort(config, item, tables, methods, controls, names) for item in shared]
    if not cohorts:
        raise DataError("evaluate: no perturbation has images of every method. See evaluation.methods.")
    measured = measure(cohorts, config.evaluation.n, config.evaluation.repeats, config.seed)
    if not measured.distances:
        reasons = [f"  {name}: {reason}" for name, reason in measured.excluded.items()]
        raise DataError("\n".join(["evaluate: no perturbation can be measured:", *reasons[:5]]))
    if store.quarantine:
        where = join(out, "quarantine.parquet")
        table = pa.Table.from_pylist(store.quarantine, schema=schema.QUARANTINE)
        storage.write_table(where, schema.stamp(table, store.made_by))
        notes.append(f"{len(store.quarantine)} images could not be read and are left out, see {where}.")
    shown = _Shown(config, rows, _unseen(sites))
    results = [
        shown.result(item, measured, [method.name for method in methods])
        for item in shared
        if item.perturbation_id in measured.distances
    ]
    extractor = load_extractor(config.evaluation.extractor, storage=storage)
    data = ReportData(
        title=title,
        experiment=config.dataset.name,
        facts=facts or run_facts(config),
        perturbations=results,
        losses={method.name: losses(run) for method, run in zip(methods, runs, strict=True) if run},
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        mode=extractor.mode,
        seed=config.seed,
        made_by=store.made_by,
        data_statement=statement or _statement(config),
        notes=notes,
        models=[method.name for method in methods],
        excluded=measured.excluded,
    )
    return write_report(data, out, storage)


def run_evaluate(config: RunConfig, address: str | None = None) -> str:
    """Evaluate a finished run; prints and returns the report's URI."""
    config = resolve(config)
    with connected(address):
        report = evaluate(config)
    print(f"evaluate: {report}", flush=True)
    return report


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
        "sampler": f"{generation.sampler}, {generation.steps} steps, guidance {generation.guidance_scale:g}",
        "configuration": fingerprint(json.loads(config.model_dump_json(exclude={"run_dir", "data_dir"}))),
    }


def _statement(config: RunConfig) -> str:
    where = config.evaluation.experiments
    return (
        f"Real images: {config.dataset.name} from {config.dataset.source}, "
        f"{'experiments ' + ', '.join(where) if where else 'the experiments trained on'}."
    )


def _unseen(sites: pa.Table) -> set[str]:
    held_out = pc.equal(sites["split"], "held_out_perturbation")
    return set(sites.filter(held_out)["perturbation_id"].unique().to_pylist())


def _reconstructed(config: RunConfig, images: np.ndarray) -> np.ndarray:
    from morphoray.diffusion.bundle import vae_for
    from morphoray.diffusion.codec import reconstruct

    return reconstruct(vae_for(local_bundle_config(config), config.seed), images)


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


def _store(config: RunConfig, storage: Storage, out: str) -> FeatureStore:
    extractor = load_extractor(config.evaluation.extractor, storage=storage)
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
    methods: Sequence[MethodImages],
    controls: Sequence[str],
    names: Sequence[str],
) -> Cohort:
    """The features of one perturbation and of its baselines."""
    name, real = item.perturbation_id, tables[REAL]
    experiments = sorted(set(real.experiments[real.perturbation_ids == name]))
    others = [other for other in names if other != name and other not in controls]
    after = [other for other in others if other > name] or others
    control = [real.of(other, experiments) for other in controls if other != name]
    trained = tables[TRAINING].of(name) if TRAINING in tables else None
    overlap = config.evaluation.experiments is None
    return Cohort(
        name,
        real.of(name),
        {method.name: tables[method.name].of(name) for method in methods},
        tables[CODEC].of(name),
        control=np.concatenate(control) if control else None,
        other=real.of(after[0], experiments) if after else None,
        trained=None if overlap or trained is None or not len(trained) else trained,
    )


@dataclass(frozen=True)
class _Shown:
    """Reads the few images that a report shows."""

    config: RunConfig
    rows: Sequence[ImageRow]
    unseen: set[str]

    def result(self, item: Perturbation, measured: Measured, models: Sequence[str]) -> PerturbationResult:
        """The first images of each kind, and the perturbation's distances."""
        name = item.perturbation_id
        real = self._images(REAL, name)
        images = {CODEC: _reconstructed(self.config, real)}
        images |= {model: self._images(model, name) for model in models}
        return PerturbationResult(
            perturbation_id=name,
            real=real,
            distances=measured.distances[name],
            images=images,
            moa=item.moa,
            smiles=item.smiles,
            gene=item.gene,
            concentration_um=item.concentration_um,
            unseen=name in self.unseen,
            is_control=item.is_control,
        )

    def _images(self, origin: str, name: str) -> np.ndarray:
        found: list[np.ndarray] = []
        for row in self.rows:
            if len(found) < SHOWN and (row.origin, row.perturbation_id) == (origin, name):
                with contextlib.suppress(DataError, MissingObjectError):
                    found.append(self._read(row))
        return np.stack(found)

    def _read(self, row: ImageRow) -> np.ndarray:
        if row.reader == "site":
            first: np.ndarray = site_images(row.row, read_plan(self.config), dataset_of(self.config)[2])[0]
            return first
        return read_image(row.row, storage_from(self.config.storage))
