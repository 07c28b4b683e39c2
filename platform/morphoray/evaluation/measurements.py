"""CellProfiler's measurements of every cell, by cp-measure: one table a field, one row a cell.

One core makes 0.38 simulated fields a second of 256 × 256 pixels, 6 channels and 43 cells, segmentation
included, and 2.6 of 128 × 128 pixels, 3 channels and 8 cells, in CPU seconds on a busy machine:
`OMP_NUM_THREADS=1 python jobs/benchmarks/measurements.py`, and with `--size 128 --channels 3 --images 6`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from morphoray.errors import DataError, MissingExtraError
from morphoray.evaluation.cell_crops import nucleus_centres
from morphoray.evaluation.segmentation import Labels, Segmentation, SegmentationOptions, segment

Values = dict[str, npt.NDArray[np.float64]]
Pixels = npt.NDArray[np.float64]

COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")

SHAPE_FAMILIES = ("sizeshape", "zernike", "feret")
CHANNEL_FAMILIES = ("intensity", "texture", "granularity", "radial_distribution", "radial_zernikes")
PAIR_FAMILIES = ("pearson", "manders_fold", "rwc", "costes")

# Without costes, slower than all others together and undefined for every second cell, and without the 60
# radial Zernike moments a channel.
DEFAULT_FAMILIES = (*SHAPE_FAMILIES, *CHANNEL_FAMILIES[:4], *PAIR_FAMILIES[:3])

# Where a cell lies in its field and which way it points say nothing about the cell.
POSITIONS = ("Location_", "Center_", "BoundingBoxMinimum_", "BoundingBoxMaximum_", "Orientation")
UNDEFINED = ("NormalizedMoment_0_0", "NormalizedMoment_0_1", "NormalizedMoment_1_0")  # NaN by definition

COUNTS = ("Metadata_cell_count", "Metadata_nucleus_count")


def measure(
    image: npt.NDArray[np.generic],
    channels: Sequence[str],
    segmentation: Segmentation,
    metadata: Mapping[str, Any],
    families: Sequence[str] = DEFAULT_FAMILIES,
) -> pd.DataFrame:
    """One row a cell: Metadata_ columns, then float64 features named as CellProfiler names them.

    image: (K, H, W) uint8 or uint16; intensities are shares of the type's maximum. metadata: constant
    columns, without the prefix. Besides these Metadata_cell is the label, Metadata_y and Metadata_x the
    nucleus's centroid. What can't be measured (an empty cytoplasm) is NaN; without cells the table has no
    rows and the same columns. Raises DataError for unknown families, or a channel name with an underscore.
    """
    _check(image, channels, families)
    count = segmentation.count
    scale = int(np.iinfo(image.dtype).max)  # type: ignore[type-var]
    planes = {name: image[index] / np.float64(scale) for index, name in enumerate(channels)}
    parts = (segmentation.nuclei, segmentation.cells, segmentation.cytoplasm)
    columns: Values = {}
    for compartment, labels in zip(COMPARTMENTS, parts, strict=True):
        for name, values in _compartment(labels, planes, scale, count, families).items():
            columns[f"{compartment}_{name}"] = values
    centres = nucleus_centres(segmentation.nuclei)
    own = {"cell": np.arange(1, count + 1), "y": centres[:, 0], "x": centres[:, 1]}
    head = {f"Metadata_{name}": [value] * count for name, value in metadata.items()}
    head |= {f"Metadata_{name}": list(values) for name, values in own.items()}
    return pd.concat([pd.DataFrame(head), pd.DataFrame(columns)], axis=1)


def image_means(cells: pd.DataFrame, segmentation: Segmentation, metadata: Mapping[str, Any]) -> pd.DataFrame:
    """One row for the image: means of the features over its cells (NaN without any), and COUNTS.

    The counts are Metadata_ columns: a confounder to report, never a feature.
    """
    head = {f"Metadata_{name}": [value] for name, value in metadata.items()}
    head |= dict(zip(COUNTS, ([segmentation.count], [segmentation.nucleus_count]), strict=True))
    means = cells[feature_columns(cells)].mean().to_frame().T
    return pd.concat([pd.DataFrame(head), means], axis=1)


def measured_image(
    image: npt.NDArray[np.generic],
    channels: Sequence[str],
    options: SegmentationOptions,
    families: Sequence[str] = DEFAULT_FAMILIES,
) -> tuple[int, int, npt.NDArray[np.float64]]:
    """Find an image's cells and measure them: whole cells, nuclei, and means (d,) of the features over cells.

    The means are in the order of `feature_names`, NaN without a cell. Raises what `segment` and `measure` do.
    """
    found = segment(image, channels, options)
    means = image_means(measure(image, channels, found, {}, families), found, {})
    values = means[feature_columns(means)].to_numpy(np.float64)[0]
    return found.count, found.nucleus_count, values


def feature_names(channels: Sequence[str], families: Sequence[str] = DEFAULT_FAMILIES) -> list[str]:
    """The names of the features that `measure` gives of such images, in its order."""
    nothing = np.zeros((1, 1), np.int32)
    blank = np.zeros((len(channels), 1, 1), np.uint8)
    return feature_columns(measure(blank, channels, Segmentation(nothing, nothing, nothing, 0), {}, families))


def feature_columns(table: pd.DataFrame) -> list[str]:
    """The table's columns that are features: those that begin with a compartment."""
    return [name for name in table.columns if name.startswith(tuple(f"{part}_" for part in COMPARTMENTS))]


def _check(image: npt.NDArray[np.generic], channels: Sequence[str], families: Sequence[str]) -> None:
    if image.ndim != 3 or image.dtype not in (np.uint8, np.uint16) or len(image) != len(channels):
        raise DataError(
            f"measurements: found {image.dtype} of shape {image.shape} for channels {list(channels)}, "
            "expected (K, H, W) of uint8 or uint16 with a name for each of K"
        )
    split = [name for name in channels if "_" in name or not name]
    if split or len(set(channels)) < len(channels):
        raise DataError(f"measurements: found channels {list(channels)}, expected names without underscores")
    known = (*SHAPE_FAMILIES, *CHANNEL_FAMILIES, *PAIR_FAMILIES)
    unknown = sorted(set(families) - set(known))
    if unknown or not families:
        raise DataError(f"measurements: found families {unknown}, expected some of {list(known)}")


def _compartment(
    labels: Labels, planes: Mapping[str, Pixels], scale: int, count: int, families: Sequence[str]
) -> Values:
    """Every feature (count,) of one compartment, NaN for the labels that it lacks."""
    core, pairs = _functions()
    present = np.unique(labels[labels > 0])
    # with nothing to measure a stand-in gives the names
    dense = np.searchsorted(present, labels).astype(np.int32) + (labels > 0) if len(present) else None
    found: Values = {}
    for family in (name for name in SHAPE_FAMILIES if name in families):
        for name, values in _call(core[family], labels=dense).items():
            found[f"AreaShape_{name}"] = values
    for family in (name for name in CHANNEL_FAMILIES if name in families):
        for channel, pixels in planes.items():
            for name, values in _call(core[family], pixels, labels=dense).items():
                found[_channel_name(family, name, channel)] = values
    for family in (name for name in PAIR_FAMILIES if name in families):
        options = {"scale_max": scale} if family == "costes" else {}
        for first, second in combinations(planes, 2):
            both = (planes[first], planes[second])
            for name, values in _call(pairs[family], *both, labels=dense, **options).items():
                found[_pair_name(name, first, second)] = values
    kept = {
        name: values
        for name, values in found.items()
        if not name.removeprefix("AreaShape_").startswith((*POSITIONS, *UNDEFINED))
    }
    return {name: _expand(values, present, count) for name, values in kept.items()}


def _call(
    function: Callable[..., Mapping[str, npt.NDArray[Any]]],
    *planes: Pixels,
    labels: Labels | None,
    **options: Any,
) -> Values:
    """What cp-measure gives; a stand-in's names with no values where there are no labels."""
    empty = labels is None
    if labels is None:
        labels = np.zeros((16, 16), np.int32)
        labels[4:12, 4:12] = 1
        texture = np.arange(256.0).reshape(16, 16) / 255
        planes = tuple(texture for _ in planes)
    pixels = planes or (None,)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of what is undefined, and NaN in the table
        found = function(*pixels, labels, **options) if len(pixels) > 1 else function(labels, *pixels)
    if empty:
        return {name: np.empty(0) for name in found}
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _expand(values: npt.NDArray[np.float64], present: npt.NDArray[Any], count: int) -> Pixels:
    full = np.full(count, np.nan)
    full[present - 1] = np.where(np.isfinite(values), values, np.nan)
    return full


def _channel_name(family: str, name: str, channel: str) -> str:
    """CellProfiler puts the channel after the measure, and a measure's parameters after the channel."""
    if family == "texture":
        measure, *parameters = name.split("_")
        return "_".join(["Texture", measure, channel, *parameters])
    if family in ("radial_distribution", "radial_zernikes"):
        head, measure, *parameters = name.split("_")
        return "_".join([head, measure, channel, *parameters])
    return f"{name}_{channel}"


def _pair_name(name: str, first: str, second: str) -> str:
    """Manders_1 of (a, b) is Manders_a_b, _2 is Manders_b_a; Pearson is CellProfiler's Correlation."""
    name = name.replace("Correlation_Pearson", "Correlation_Correlation")
    stem, _, number = name.rpartition("_")
    if number == "1":
        return f"{stem}_{first}_{second}"
    if number == "2":
        return f"{stem}_{second}_{first}"
    return f"{name}_{first}_{second}"


def _functions() -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
    try:
        from cp_measure.bulk import get_core_measurements, get_correlation_measurements
    except ModuleNotFoundError:
        raise MissingExtraError("cp-measure", "eval") from None
    # legacy: CellProfiler's own convention of quartiles
    return get_core_measurements(legacy=True, sanitize=False), get_correlation_measurements(sanitize=False)
