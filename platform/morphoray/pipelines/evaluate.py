"""The evaluation: any number of methods against real images, METRICS and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import MethodConfig, RunConfig
from morphoray.datasets.splits import TRAIN
from morphoray.errors import ConfigError, DataError, MissingExtraError
from morphoray.evaluation.features import ChannelExtractor, Extractor, load_extractor
from morphoray.evaluation.measures import Measured, Sampling, measure
from morphoray.evaluation.novelty import Novelty, novelties
from morphoray.evaluation.report import write_report
from morphoray.evaluation.results import (
    BASELINES,
    BATCHES,
    CODEC,
    CONDITIONAL,
    HELD_OUT,
    SEEN,
    ReportData,
    RunFacts,
)
from morphoray.perturbations.base import Perturbation, from_rows
from morphoray.pipelines.cells import CellFinder, cell_finder
from morphoray.pipelines.cluster import connected, preflight
from morphoray.pipelines.codecs import codec_fingerprint
from morphoray.pipelines.conditions import fit_conditions
from morphoray.pipelines.encode import read_plan
from morphoray.pipelines.evaluation_checks import check_evaluation
from morphoray.pipelines.features import FeatureTable, measure_features
from morphoray.pipelines.image_parts import ImageParts, ImageRow, measuring_resources, owner_of
from morphoray.pipelines.layout import dataset_of, layout_of, mapping_of, resolve, storage_from
from morphoray.pipelines.method_images import (
    MethodImages,
    at_most,
    few,
    folder_notes,
    method_images,
    run_of,
    with_the_datas_names,
)
from morphoray.pipelines.profiles import MeasuredProfiles, measure_profiles
from morphoray.pipelines.ranks import pairwise
from morphoray.pipelines.reference import (
    PADDING,
    REAL,
    TRAINING,
    Reference,
    finite,
    limits,
    mixed,
    origin_of,
    places_of,
    real_rows,
)
from morphoray.pipelines.shown import ShownImages, losses, run_facts, unseen_perturbations
from morphoray.pipelines.sites import import_sites, read_sites
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
    """Measure this run's model, if any, and evaluation.methods against real images; returns the report's URI.

    Features are kept under <out>/features, so that the same call goes on, and another metric costs no
    network; what evaluation.profiles measures under <out>/measurements. Writes metrics.parquet and .csv,
    report.html and .md, montage.png, and where there are any profiles.parquet and quarantine.parquet.
    """
    storage, out = storage_from(config.storage), _out(config)
    methods = methods_of(config)
    sites = read_sites(config)
    cells = cell_finder(config, sites)
    # before images are generated, which takes long: the weights may be out of reach, or the cluster too small
    extractor = _extractor(config, storage)
    preflight("features", measuring_resources(config.evaluation))
    compared = _compared(config, methods, sites, out)
    parts = feature_parts(config, storage, extractor, cells, out)
    found = _measure(config, compared, sites, parts, extractor, cells)
    profiles = _profiles(config, compared, sites, out)
    unread = [*parts.quarantine, *(profiles.quarantine if profiles else ())]
    nearest, unknown = _novelties(config, compared)
    shown = ShownImages(config, found.rows, list(methods), compared.unseen, compared.controls)
    curves = {name: run for name, method in methods.items() if (run := run_of(config, method))}
    data = ReportData(
        title=title,
        experiment=config.dataset.name,
        facts=facts or run_facts(config),
        perturbations=[
            shown.result(item, batches, measured, nearest.get(item.perturbation_id))
            for batches, measured in found.measured.items()
            for item in compared.shared
            if item.perturbation_id in measured.distances
        ],
        losses={name: losses(run) for name, run in curves.items()},
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        mode=f"{extractor.mode}+{cells.mode if cells else _crop(config)}",
        seed=config.seed,
        made_by=parts.made_by,
        data_statement=statement or _statement(config),
        notes=[
            *compared.notes,
            *found.notes,
            *unknown,
            *_write_quarantine(storage, unread, parts.made_by, out),
        ],
        models=list(methods),
        excluded={**compared.excluded, **found.excluded},
        profiles=profiles.results if profiles else None,
    )
    return write_report(data, out, storage)


def _profiles(config: RunConfig, compared: "Compared", sites: pa.Table, out: str) -> MeasuredProfiles | None:
    """What evaluation.profiles asks for, its rows written to profiles.parquet; None where it doesn't."""
    settings = config.evaluation.profiles
    if settings is None:
        return None
    names = [item.perturbation_id for item in compared.shared]
    profiles = measure_profiles(config, settings, compared.methods, names, compared.perturbations, sites, out)
    storage_from(config.storage).write_table(join(out, "profiles.parquet"), profiles.table)
    return profiles


def methods_of(config: RunConfig) -> dict[str, MethodConfig]:
    """This run's own model, if any, then evaluation.methods. Raises ConfigError for a name that is taken."""
    methods = dict(config.evaluation.methods)
    own = MethodConfig(run=layout_of(config).of("config.yaml"))
    reserved = {CONDITIONAL, REAL, TRAINING, PADDING, *BASELINES}
    reserved |= {origin_of(kind, batches) for kind in (REAL, PADDING, CODEC) for batches in (SEEN, HELD_OUT)}
    if taken := sorted(reserved & set(methods)):
        raise ConfigError(
            f"evaluation.methods: {', '.join(taken)}: the report has other rows of that name. Rename it."
        )
    return {CONDITIONAL: own, **methods} if config.evaluation.own_model else methods


@dataclass(frozen=True)
class Compared:
    """The methods' images; the data's perturbations, those that all methods have, and those never trained on.

    excluded: perturbations that some methods have, and which don't. notes: what else was left out.
    """

    methods: Sequence[MethodImages]
    perturbations: Sequence[Perturbation]
    shared: Sequence[Perturbation]
    unseen: set[str]
    excluded: Mapping[str, str]
    notes: Sequence[str]

    @property
    def controls(self) -> list[str]:
        """The ids of the data's controls."""
        return [item.perturbation_id for item in self.perturbations if item.is_control]


def _compared(config: RunConfig, methods: Mapping[str, MethodConfig], sites: pa.Table, out: str) -> Compared:
    """Every method's images, generated where they are missing. Raises DataError when none can be compared."""
    perturbations = from_rows(sites)
    found, notes = [], []
    for name, method in methods.items():
        made = method_images(config, name, method, out)
        known, unknown = with_the_datas_names(made, perturbations)
        found.append(known)
        notes += folder_notes(config, made)
        if unknown:
            notes.append(f"{name}: the data have no such perturbations: {_guessed(unknown, perturbations)}.")
    shared, excluded, absent = _shared(found, perturbations)
    if absent:
        notes.append(f"Perturbations of the data that no method has: {len(absent)}, {few(absent)}.")
    left_out = [f"{name} is left out: {reason}." for name, reason in excluded.items()]
    for line in [*notes, *left_out[:5]]:
        print(f"evaluate: {line}", flush=True)
    if not shared:
        raise DataError("evaluate: no perturbation has images of every method. See evaluation.methods.")
    return Compared(found, perturbations, shared, unseen_perturbations(sites), excluded, notes)


def _shared(
    methods: Sequence[MethodImages], perturbations: Sequence[Perturbation]
) -> tuple[list[Perturbation], dict[str, str], list[str]]:
    """Perturbations that every method has; those that some lack, and which; ids that all lack."""
    counts = {each.name: each.counts for each in methods}
    shared, excluded, absent = [], {}, []
    for item in perturbations:
        lacking = [name for name, found in counts.items() if item.perturbation_id not in found]
        if not lacking:
            shared.append(item)
        elif len(lacking) < len(methods):
            excluded[item.perturbation_id] = f"no images of {' and '.join(lacking)}"
        else:
            absent.append(item.perturbation_id)
    return shared, excluded, absent


@dataclass(frozen=True)
class Found:
    """The images that were measured, and every metric by group of batches; what was left out, and notes."""

    rows: Sequence[ImageRow]
    measured: Mapping[str, Measured]
    excluded: Mapping[str, str]
    notes: Sequence[str]


def _measure(
    config: RunConfig,
    compared: Compared,
    sites: pa.Table,
    parts: ImageParts,
    extractor: Extractor,
    cells: CellFinder | None,
) -> Found:
    """Features of all images, then every metric of every group. Raises DataError when none can be had."""
    settings = config.evaluation
    names = [item.perturbation_id for item in compared.shared]
    most = 2 * (settings.cells.images if settings.cells else settings.n)
    wanted = 0 if settings.cells else settings.n
    rows = real_rows(config, sites, list(dict.fromkeys([*names, *compared.controls])), most, wanted)
    rows += [row for method in compared.methods for row in at_most(method.rows, most)]
    tables = measure_features(parts, rows, cells)
    told = _cells_note(cells, rows, tables) if cells else []
    for batches in (SEEN, HELD_OUT) if settings.own_model else ():
        mine = [row for row in rows if row.origin == origin_of(REAL, batches)]
        codec = [replace(row, origin=origin_of(CODEC, batches)) for row in mine]
        tables |= measure_features(parts, codec, cells, codec_of=config)
    tables, notes = finite(tables)
    notes += [*told, *mixed(config, sites), *_looked_at(rows, sites, names)]
    models = [method.name for method in compared.methods]
    reference = Reference(
        config, tables, models, compared.shared, compared.controls, compared.unseen, places_of(sites)
    )
    columns = extractor.columns() if isinstance(extractor, ChannelExtractor) else {}
    sampling = Sampling(
        settings.n, settings.repeats, settings.kid_subset_size, settings.kid_subsets, config.seed
    )
    measured, excluded = {}, {}
    for batches in (each for each in (SEEN, HELD_OUT) if origin_of(REAL, each) in tables):
        cohorts = reference.cohorts(batches)
        measured[batches] = measure(cohorts, sampling, columns, partial(pairwise, settings=settings))
        notes += limits(cohorts, settings.n, BATCHES[batches])
        for name, reason in measured[batches].excluded.items():
            excluded[f"{name}, {BATCHES[batches]}"] = reason
    if not any(each.distances for each in measured.values()):
        reasons = [f"  {name}: {reason}" for name, reason in excluded.items()]
        unread = [f"  {row['uri']}: {row['reason']}" for row in parts.quarantine]
        told = [*reasons[:5], *unread[:5], *(f"  {note}" for note in notes)]
        raise DataError("\n".join(["evaluate: no perturbation can be measured:", *told]))
    return Found(rows, measured, excluded, notes)


def _looked_at(rows: Sequence[ImageRow], sites: pa.Table, names: Sequence[str]) -> list[str]:
    """Among how many of the training images copies are looked for; nothing where none are, or all."""
    looked = sum(row.origin == TRAINING and row.perturbation_id in names for row in rows)
    trained = sites.filter(pc.equal(sites["split"], TRAIN))
    there = int(pc.sum(pc.is_in(trained["perturbation_id"], pa.array(names, pa.string()))).as_py() or 0)
    if not 0 < looked < there:
        return []
    return [
        f"Copies of training images are looked for among {looked:,} of the {there:,} sites that training saw "
        "of these perturbations (2 evaluation.n of each): copies of the others are not seen."
    ]


def _novelties(config: RunConfig, compared: Compared) -> tuple[dict[str, Novelty], list[str]]:
    """How far every unseen perturbation is from training; or a note why that can't be told."""
    unseen = [item for item in compared.perturbations if item.perturbation_id in compared.unseen]
    if not unseen:
        return {}, []
    training = [item for item in compared.perturbations if item.perturbation_id not in compared.unseen]
    try:
        return novelties(unseen, training, fit_conditions(config).vectors), []
    except MissingExtraError as error:
        return {}, [f"Distances of unseen perturbations to training are missing: {error}"]


def _cells_note(cells: CellFinder, rows: Sequence[ImageRow], tables: Mapping[str, FeatureTable]) -> list[str]:
    """How many cells were cut from how many images of each origin."""
    told = []
    for origin in dict.fromkeys(row.origin for row in rows):
        asked = sum(row.origin == origin for row in rows)
        items = list(tables[origin].items)
        with_cells = len({owner_of(item) for item in items})
        told.append(f"{origin} {len(items)} cells of {with_cells} of {asked} images")
    return [
        f"All distances compare crops of {cells.size} × {cells.size} pixels around single nuclei, found in "
        "real and generated images alike, instead of whole images; cells of one image are not independent. "
        f"Cut out: {'; '.join(told)}."
    ]


def _write_quarantine(
    storage: Storage, unread: Sequence[Mapping[str, Any]], made_by: str, out: str
) -> list[str]:
    """Write the images that could not be read, each once, and a note of them; neither if there are none.

    An earlier call's table goes: it tells of other images.
    """
    rows = list({(row["item"], row["uri"]): dict(row) for row in unread}.values())
    where = join(out, "quarantine.parquet")
    if not rows:
        storage.delete(where)
        return []
    table = pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
    storage.write_table(where, schema.stamp(table, made_by))
    return [f"{len(rows)} images could not be read and are left out, see {where}."]


def run_evaluate(config: RunConfig, address: str | None = None) -> str:
    """Evaluate a finished run, or methods alone, imported if need be; prints and returns the report's URI."""
    config = resolve(config)
    if not config.evaluation.own_model:
        import_sites(config)
    check_evaluation(config, methods_of(config))
    with connected(address):
        report = evaluate(config)
    print(f"evaluate: {report}", flush=True)
    return report


def _statement(config: RunConfig) -> str:
    chosen = config.evaluation.experiments
    where = f"the experiments {', '.join(chosen)}" if chosen else "all experiments"
    return f"Real images: {config.dataset.name} from {config.dataset.source}, {where}."


def _crop(config: RunConfig) -> str:
    """What METRICS' mode says of an image: crop-64px, cut out at its scale, or resize-512px."""
    return f"{config.image.fit}-{config.image.resolution}px"


def _guessed(unknown: Sequence[str], perturbations: Sequence[Perturbation]) -> str:
    """A few of the names, each with the id that it may be meant for."""
    ids = [item.perturbation_id for item in perturbations]
    close = {name: get_close_matches(name, ids, 1) for name in unknown}
    return few([f"{name} ({found[0]}?)" if found else name for name, found in close.items()])


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
