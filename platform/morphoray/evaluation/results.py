"""What a report is made of: a run's facts, each perturbation's images and distances, and their summary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray import schema
from morphoray.errors import DataError
from morphoray.evaluation.distances import CODEC, FLOOR, Distance
from morphoray.evaluation.statistics import PairedDifference, paired_difference
from morphoray.seeds import numpy_generator

Images = npt.NDArray[np.uint8]

CONDITIONAL = "conditional"
UNCONDITIONAL = "unconditional"
FRECHET = "frechet"


@dataclass(frozen=True)
class Method:
    """A row of the headline table: where images come from, and what their distance tells."""

    label: str
    note: str


METHODS: dict[str, Method] = {
    CONDITIONAL: Method("Conditional model", "images generated for this perturbation"),
    UNCONDITIONAL: Method("Unconditional model", "images generated without knowing the perturbation"),
    CODEC: Method("Codec alone", "real images, encoded and decoded: what the best denoiser could reach"),
    FLOOR: Method("Real against real", "two disjoint sets of real images: the floor at this N"),
}
METRICS: dict[str, str] = {FRECHET: "Fréchet distance", "kid": "Kernel distance"}


@dataclass(frozen=True)
class RunFacts:
    """What the run cost, and what more would bring.

    machine_gflops: measured GFLOP/s. outlook: a sentence or two. details: further facts by name, as they
    should be printed (preset, sampler, dataset, …).
    """

    steps: int
    images_seen: int
    seconds: float | None = None  # wall time; None: not measured
    machine_gflops: float | None = None
    outlook: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PerturbationResult:
    """One perturbation: K ≥ 1 images (K, 3, H, W) uint8 of each kind to show, and its distances.

    reconstructions: the codec's, of the very images in `real`, in their order.
    distances: metric → method → Distance, as `distances.compare` gives for each metric; METRICS, METHODS.
    channels: extractor of one channel → method → its Fréchet distance; none where images are RGB.
    unseen: whether it was held out of training.
    """

    perturbation_id: str
    real: Images
    distances: Mapping[str, Mapping[str, Distance]]
    channels: Mapping[str, Mapping[str, Distance]] = field(default_factory=dict)
    conditional: Images | None = None
    unconditional: Images | None = None
    reconstructions: Images | None = None
    moa: str | None = None
    smiles: str | None = None
    gene: str | None = None
    concentration_um: float | None = None
    unseen: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class ReportData:
    """Everything a report says. `write_report` in report.py writes it.

    losses: model → its (step, loss) points. extractor, weights_hash, mode: of the Extractor.
    made_by: the fingerprint of the run. data_statement: a sentence on where the data come from ('simulated').
    notes: further caveats, a sentence or two each.
    """

    title: str
    experiment: str
    facts: RunFacts
    perturbations: Sequence[PerturbationResult]
    losses: Mapping[str, Sequence[tuple[int, float]]]
    extractor: str
    weights_hash: str
    mode: str
    seed: int
    made_by: str
    data_statement: str
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.perturbations:
            raise DataError(f"report {self.title!r}: found no perturbations, expected at least one")
        for result in self.perturbations:
            unknown = (
                {*result.distances} - {*METRICS},
                {name for found in result.distances.values() for name in found} - {*METHODS},
            )
            if any(unknown):
                raise DataError(
                    f"report, {result.perturbation_id}: found metrics {sorted(unknown[0])} and methods "
                    f"{sorted(unknown[1])}, expected some of {list(METRICS)} and {list(METHODS)}"
                )


def metrics_table(data: ReportData) -> pa.Table:
    """Every distance as a row of schema.METRICS, stamped with the run's fingerprint."""
    found = [
        (result, metric, data.extractor, distances)
        for result in data.perturbations
        for metric, distances in result.distances.items()
    ]
    found += [
        (result, FRECHET, extractor, distances)
        for result in data.perturbations
        for extractor, distances in result.channels.items()
    ]
    rows = [
        {
            "experiment": data.experiment,
            "method": method,
            "perturbation_id": result.perturbation_id,
            "metric": metric,
            "value": distance.value,
            "n_real": distance.n_b,
            "n_generated": distance.n_a,
            "extractor": f"{extractor}@{data.weights_hash}",
            "mode": data.mode,
            "seed": data.seed,
        }
        for result, metric, extractor, distances in found
        for method, distance in distances.items()
    ]
    return schema.stamp(pa.Table.from_pylist(rows, schema=schema.METRICS), data.made_by)


def measured(data: ReportData, metric: str, method: str, unseen: bool | None = None) -> list[Distance]:
    """The distances of one method over all perturbations, or the seen or unseen ones only."""
    chosen = (result for result in data.perturbations if unseen is None or result.unseen == unseen)
    found = (result.distances.get(metric, {}).get(method) for result in chosen)
    return [distance for distance in found if distance is not None]


def mean(found: Iterable[Distance]) -> float | None:
    """The mean distance, None of none."""
    values = [distance.value for distance in found]
    return float(np.mean(values)) if values else None


def image_counts(data: ReportData) -> str:
    """N as text: '32', or '24–32' where perturbations differ."""
    counts = [
        n
        for result in data.perturbations
        for found in result.distances.values()
        for distance in found.values()
        for n in (distance.n_a, distance.n_b)
    ]
    if not counts:
        return "0"
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"


def figure(value: float | None) -> str:
    """A number at three significant digits, at most four decimals; '–' for none."""
    if value is None or not np.isfinite(value):
        return "–"
    digits = 4 if value == 0 else max(0, 2 - int(np.floor(np.log10(abs(value)))))
    rounded = round(value, min(digits, 4)) + 0.0  # + 0.0 makes −0.0 a 0.0
    return f"{rounded:,.{min(digits, 4)}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """'42 s', '7 min 42 s' or '3 h 5 min'; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def compare_models(data: ReportData, unseen: bool | None = None) -> PairedDifference | None:
    """Conditional − unconditional Fréchet distance over the perturbations that have both."""
    pairs = [
        (found[CONDITIONAL].value, found[UNCONDITIONAL].value)
        for result in data.perturbations
        if (unseen is None or result.unseen == unseen)
        and {CONDITIONAL, UNCONDITIONAL} <= {*(found := result.distances.get(FRECHET, {}))}
    ]
    if not pairs:
        return None
    first, second = zip(*pairs, strict=True)
    return paired_difference(first, second, numpy_generator("report", data.seed))


def summary(data: ReportData) -> list[str]:
    """The result in plain sentences, taken from the measurements only, then what the data are."""
    paragraphs = []
    if difference := compare_models(data):
        paragraphs.append(_verdict(data, difference))
    floor, codec = (mean(measured(data, FRECHET, method)) for method in (FLOOR, CODEC))
    if floor is not None:
        text = f"Two disjoint sets of {image_counts(data)} real images already lie {figure(floor)} apart"
        if codec is not None:
            text += f", and real images that only pass through the codec {figure(codec)} from other real ones"
        paragraphs.append(text + ": no generated image can be expected to come closer.")
    if unseen := compare_models(data, unseen=True):
        counted = f"{unseen.n} perturbation{'s' if unseen.n > 1 else ''} held out of training"
        ours, theirs = (
            figure(mean(measured(data, FRECHET, method, unseen=True)))
            for method in (CONDITIONAL, UNCONDITIONAL)
        )
        paragraphs.append(
            f"On the {counted}, the conditional model's images lie closer on {unseen.first_smaller} of "
            f"{unseen.n} (mean {ours} against {theirs})."
        )
    return [*paragraphs, data.data_statement]


def _verdict(data: ReportData, difference: PairedDifference) -> str:
    ours, theirs = (figure(mean(measured(data, FRECHET, method))) for method in (CONDITIONAL, UNCONDITIONAL))
    if np.isnan(difference.low) or difference.low <= 0 <= difference.high:
        opening = "There is no clear difference between the conditional and the unconditional model"
    elif difference.mean < 0:
        opening = "Knowing the perturbation helps: the conditional model's images lie closer to the real ones"
    else:
        opening = "Knowing the perturbation does not help: the conditional model's images lie further away"
    interval = ""
    if np.isfinite(difference.low):
        interval = f", difference {figure(difference.mean)}, 95 % bootstrap interval over perturbations "
        interval += f"{figure(difference.low)} to {figure(difference.high)}"
        if np.isfinite(difference.p):
            interval += f"; paired t-test p = {difference.p:.2g}"
    return (
        f"{opening}. Mean Fréchet distance {ours} against {theirs}{interval}. It is the closer one on "
        f"{difference.first_smaller} of {difference.n} perturbations."
    )


def caveats(data: ReportData) -> list[str]:
    """What a reader must know before trusting or comparing the numbers, one paragraph each."""
    floor = mean(measured(data, FRECHET, FLOOR))
    n = image_counts(data)
    bias = f": the floor, {figure(floor)}, is nothing else" if floor is not None else ""
    paragraphs = [
        f"Every distance compares {n} with {n} images. A Fréchet distance of few images carries a large "
        f"sample-size bias{bias}. Read the differences between methods at this N; never compare the values "
        "with published FIDs, or with a report made at another N.",
        f"Features: {data.extractor}, weights {data.weights_hash}, resized by clean-fid ({data.mode}). "
        "Another extractor has another scale.",
        "All methods of a perturbation are measured from the same real images. The codec's and the floor's "
        "images are other real ones, so that neither profits from meeting itself again.",
    ]
    paragraphs += _each_channel(data)
    if any(result.unseen for result in data.perturbations):
        paragraphs.append(
            "Perturbations marked unseen were held out of training: the model knows them only by their "
            "condition vector."
        )
    return [*paragraphs, *data.notes]


def _each_channel(data: ReportData) -> list[str]:
    """The mean Fréchet distances of each channel alone, in a paragraph; none where images are RGB."""
    channels = {extractor: None for result in data.perturbations for extractor in result.channels}
    told = []
    for extractor in channels:
        sets = [result.channels[extractor] for result in data.perturbations if extractor in result.channels]
        means = [
            f"{method.label.lower()} {figure(mean(found[key] for found in sets if key in found))}"
            for key, method in METHODS.items()
            if any(key in found for found in sets)
        ]
        told.append(f"{extractor}: {', '.join(means)}")
    if not told:
        return []
    return [
        "The features are those of each channel alone, side by side. Mean Fréchet distances of single "
        f"channels, which metrics.csv has for every perturbation: {'; '.join(told)}."
    ]
