"""Profiles of an evaluation: the cells of real and generated images measured once, and what follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import ProfilesConfig, RunConfig
from morphoray.errors import MissingExtraError
from morphoray.evaluation.measurements import DEFAULT_FAMILIES, feature_names, measured_image
from morphoray.evaluation.profile_analysis import profile_results
from morphoray.evaluation.profile_results import ProfileResults
from morphoray.evaluation.segmentation import SegmentationOptions
from morphoray.perturbations.base import Perturbation, plain_id
from morphoray.pipelines.cells import segmentation_options
from morphoray.pipelines.encode import read_plan
from morphoray.pipelines.image_parts import ImageParts, ImageRow, images_of, measured_part, owner_of
from morphoray.pipelines.layout import dataset_of, mapping_of, storage_from
from morphoray.pipelines.method_images import MethodImages, at_most, few
from morphoray.pipelines.reference import REAL, drawn_rows, evaluated_sites, places_of
from morphoray.pipelines.stream import Item
from morphoray.seeds import fingerprint
from morphoray.storage import join


class MeasurementPart:
    """An actor that finds an image's cells and measures them: a row an image, its means over cells."""

    def __init__(
        self, options: SegmentationOptions, channels: tuple[str, ...], families: tuple[str, ...]
    ) -> None:
        self._options, self._channels, self._families = options, channels, families
        self._width = len(feature_names(channels, families))

    def __call__(self, item: Item) -> Item:
        """The part's MEASUREMENTS, packed."""
        rows = [
            measured_image(image, self._channels, self._options, self._families) for image in images_of(item)
        ]
        values = np.stack([row[2] for row in rows]) if rows else np.empty((0, self._width))
        columns = {
            "cell_count": [row[0] for row in rows],
            "nucleus_count": [row[1] for row in rows],
            "measurements": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), self._width),
        }
        return measured_part(item, item["owners"], columns, schema.measurements_schema(self._width))


@dataclass(frozen=True)
class MeasuredProfiles:
    """What the report tells of profiles, one row an image (quarantine apart), and images not read."""

    results: ProfileResults
    table: pa.Table
    quarantine: Sequence[dict[str, Any]]


def measure_profiles(
    config: RunConfig,
    settings: ProfilesConfig,
    methods: Sequence[MethodImages],
    names: Sequence[str],
    perturbations: Sequence[Perturbation],
    sites: pa.Table,
    out: str,
) -> MeasuredProfiles:
    """Profiles of real images and every method's of `names`; <out>/measurements keeps the parts.

    perturbations: all of the data, the controls among them. A part that is there is not measured again.
    Raises ConfigError for segmentation options that don't fit.
    """
    options = segmentation_options(config, sites)
    channels, families = mapping_of(config).outputs, settings.families or DEFAULT_FAMILIES
    features = feature_names(channels, families)
    rows, notes = _real_rows(config, settings, sites, names)
    for method in methods:
        rows += [row for row in at_most(method.rows, settings.n) if row.perturbation_id in names]
    parts = _parts(config, settings, options, families, out)
    holding = {"options": options, "channels": channels, "families": families}
    tables = [table for _, table in parts.measure(rows, MeasurementPart, holding)]
    known = {item.perturbation_id: item for item in perturbations}
    images = _described(pa.concat_tables(tables), features, known, sites)
    results = profile_results(
        images,
        [method.name for method in methods],
        channels,
        by=None if settings.normalise_by is None else f"Metadata_{settings.normalise_by}",
        seed=config.seed,
        umap=settings.umap,
        made_by=parts.made_by,
        notes=notes,
    )
    stored = schema.stamp(pa.Table.from_pandas(images, preserve_index=False), parts.made_by)
    return MeasuredProfiles(results, stored, parts.quarantine)


def _parts(
    config: RunConfig,
    settings: ProfilesConfig,
    options: SegmentationOptions,
    families: Sequence[str],
    out: str,
) -> ImageParts:
    try:
        package = version("cp-measure")
    except PackageNotFoundError:
        raise MissingExtraError("cp-measure", "eval") from None
    made_by = fingerprint(
        [
            f"cp-measure {package}",
            options.model_dump(mode="json"),
            list(families),
            config.image.model_dump(mode="json"),
            config.seed,
        ]
    )
    return ImageParts(
        "profiles",
        storage_from(config.storage),
        join(out, "measurements", made_by),
        config.evaluation,
        settings.images_per_part,
        dataset_of(config)[2],
        read_plan(config),
        made_by,
    )


def _real_rows(
    config: RunConfig,
    settings: ProfilesConfig,
    sites: pa.Table,
    names: Sequence[str],
) -> tuple[list[ImageRow], list[str]]:
    """Real images of the perturbations, and controls of the groups that they are normalised in."""
    real = evaluated_sites(config, sites)
    group = _groups(real, settings.normalise_by)
    real = real.append_column("group", group)
    controls = real.filter(real["is_control"])
    counts = pd.Series(controls["group"].to_pylist(), dtype=object).value_counts() * config.image.crops
    known = [name for name, count in counts.items() if count >= 2]
    kept = real.filter(pc.is_in(real["group"], pa.array(known, pa.string())))
    lost = sorted(set(real["group"].to_pylist()) - set(known))
    notes = []
    if lost:
        notes.append(
            f"{len(lost)} {settings.normalise_by}s have fewer than two images of real controls and are left "
            f"out of profiles: {few(lost)}."
        )
    rows = drawn_rows(config, REAL, kept, "perturbation_id", names, settings.n)
    home = dict(zip(kept["site_id"].to_pylist(), kept["group"].to_pylist(), strict=True))
    used = sorted({home[row.item] for row in rows})
    extra = drawn_rows(config, REAL, kept.filter(kept["is_control"]), "group", used, settings.controls)
    return list({row.item: row for row in [*rows, *extra]}.values()), notes


def _groups(sites: pa.Table, by: str | None) -> pa.Array:
    """What each site is normalised in; plates of two experiments may share a name."""
    if by is None:
        return pa.array(["all"] * len(sites), pa.string())
    if by == "experiment":
        return pa.array(sites["experiment"].to_pylist(), pa.string())
    pairs = zip(sites["experiment"].to_pylist(), sites["plate"].to_pylist(), strict=True)
    return pa.array([f"{experiment}/{plate}" for experiment, plate in pairs], pa.string())


def _described(
    table: pa.Table,
    features: Sequence[str],
    perturbations: Mapping[str, Perturbation],
    sites: pa.Table,
) -> pd.DataFrame:
    """MEASUREMENTS as profiles: Metadata_ columns, then the features. Generated images have no plate."""
    values = pc.list_flatten(table["measurements"]).to_numpy().reshape(-1, len(features))
    origin, items = table["origin"].to_pylist(), table["item"].to_pylist()
    names = table["perturbation_id"].to_pylist()
    treatments = [perturbations[name] for name in names]
    columns = ["site_id", "experiment", "well"]
    rows = {row["site_id"]: row for row in sites.select(columns).to_pylist()}
    places = places_of(sites)
    plates = dict(zip(sites["site_id"].to_pylist(), _groups(sites, "plate").to_pylist(), strict=True))
    homes = [owner_of(item) if source == REAL else None for source, item in zip(origin, items, strict=True)]
    head = {
        "Metadata_source": origin,
        "Metadata_image": items,
        "Metadata_perturbation_id": names,
        "Metadata_compound": [
            item.gene or item.smiles or plain_id(item.perturbation_id) for item in treatments
        ],
        "Metadata_concentration_um": [item.concentration_um for item in treatments],
        "Metadata_moa": [item.moa for item in treatments],
        "Metadata_is_control": [item.is_control for item in treatments],
        "Metadata_experiment": [home and rows[home]["experiment"] for home in homes],
        "Metadata_batch": [home and rows[home]["experiment"] for home in homes],
        "Metadata_plate": [home and plates[home] for home in homes],
        "Metadata_well": [home and rows[home]["well"] for home in homes],
        "Metadata_field": [home and places[home].field for home in homes],
        "Metadata_cell_count": table["cell_count"].to_pylist(),
        "Metadata_nucleus_count": table["nucleus_count"].to_pylist(),
    }
    frame = pd.DataFrame(head).astype({"Metadata_concentration_um": float})
    return pd.concat([frame, pd.DataFrame(values, columns=list(features))], axis=1)
