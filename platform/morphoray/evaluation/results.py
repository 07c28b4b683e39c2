"""What a report is made of: a run's facts, each perturbation's images and distances, and their summary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray import schema
from morphoray.errors import DataError
from morphoray.evaluation.distances import CODEC, FLOOR, Distance
from morphoray.evaluation.measures import CONTROL, FRECHET, KID, OTHER, TRAINED
from morphoray.evaluation.statistics import (
    PairedDifference,
    UnpairedDifference,
    benjamini_hochberg,
    paired_difference,
    stars,
    unpaired_difference,
)
from morphoray.seeds import numpy_generator

Images = npt.NDArray[np.uint8]

CONDITIONAL = "conditional"
UNCONDITIONAL = "unconditional"


@dataclass(frozen=True)
class Method:
    """A row of the headline table: where images come from, and what their distance tells."""

    label: str
    note: str


MODELS: dict[str, Method] = {
    CONDITIONAL: Method("Conditional model", "images generated for this perturbation"),
    UNCONDITIONAL: Method("Unconditional model", "images generated without knowing the perturbation"),
}
BASELINES: dict[str, Method] = {
    CONTROL: Method("Copy control", "real control images of the same batches: what ignoring the drug gives"),
    OTHER: Method("Another perturbation", "real images of another perturbation"),
    TRAINED: Method("Trained on", "the real images of this perturbation that training saw"),
    CODEC: Method("Codec alone", "real images, encoded and decoded: what the best denoiser could reach"),
    FLOOR: Method("Real against real", "two disjoint sets of real images: the floor at this N"),
}


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written: `better` is where a good method goes, scale what print shows."""

    label: str
    better: Literal["lower", "higher", "one"] = "lower"


METRICS: dict[str, Metric] = {
    FRECHET: Metric("Fréchet distance"),
    KID: Metric("Kernel distance"),
    "frechet_infinity": Metric("Fréchet distance at infinite N, extrapolated"),
    "rank": Metric("Rank of the matched real cohort"),
    "precision": Metric("Precision", "higher"),
    "recall": Metric("Recall", "higher"),
    "density": Metric("Density", "one"),
    "coverage": Metric("Coverage", "higher"),
    "nearest_training_ratio": Metric("Distance to the nearest training image, over held-out ones'", "one"),
}
HEADLINE = (FRECHET, KID)  # metrics of the first table
__all__ = ["CODEC", "CONTROL", "FLOOR", "FRECHET", "KID", "OTHER", "TRAINED"]


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

    distances: metric → method → Distance, as `measures.measure_one` gives them.
    images: by method; CODEC's are the reconstructions of the very images in `real`, in their order.
    unseen: whether it was held out of training.
    """

    perturbation_id: str
    real: Images
    distances: Mapping[str, Mapping[str, Distance]]
    images: Mapping[str, Images] = field(default_factory=dict)
    moa: str | None = None
    smiles: str | None = None
    gene: str | None = None
    concentration_um: float | None = None
    unseen: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class ReportData:
    """Everything a report says. `write_report` in report.py writes it.

    models: the methods that generate, in the order of the report; the first is the one that others are
    compared with. losses: model → its (step, loss) points. extractor, weights_hash, mode: of the Extractor.
    made_by: the fingerprint of the run. data_statement: a sentence on where the data come from ('simulated').
    notes: further caveats, a sentence or two each. excluded: perturbation → why it was not measured.
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
    models: Sequence[str] = (CONDITIONAL, UNCONDITIONAL)
    excluded: Mapping[str, str] = field(default_factory=dict)

    def mark(self, method: str) -> str:
        """How charts and keys draw a method: a baseline's own name, or model<place>."""
        return method if method in BASELINES else f"model{min(list(self.models).index(method), 4)}"

    @property
    def methods(self) -> dict[str, Method]:
        """All that was measured: the models, then the baselines that some perturbation has."""
        there = {
            name for result in self.perturbations for found in result.distances.values() for name in found
        }
        models = {name: MODELS.get(name, Method(name, "images of another method")) for name in self.models}
        return models | {name: method for name, method in BASELINES.items() if name in there}

    def __post_init__(self) -> None:
        if not self.perturbations:
            raise DataError(f"report {self.title!r}: found no perturbations, expected at least one")
        for result in self.perturbations:
            unknown = (
                {*result.distances} - {*METRICS},
                {name for found in result.distances.values() for name in found} - {*self.models, *BASELINES},
            )
            if any(unknown):
                raise DataError(
                    f"report, {result.perturbation_id}: found metrics {sorted(unknown[0])} and methods "
                    f"{sorted(unknown[1])}, expected some of {list(METRICS)} and {[*self.models, *BASELINES]}"
                )


def metrics_table(data: ReportData) -> pa.Table:
    """Every distance as a row of schema.METRICS, stamped with the run's fingerprint."""
    rows = [
        {
            "experiment": data.experiment,
            "method": method,
            "perturbation_id": result.perturbation_id,
            "metric": metric,
            "value": distance.value,
            "n_real": distance.n_b,
            "n_generated": distance.n_a,
            "extractor": f"{data.extractor}@{data.weights_hash}",
            "mode": data.mode,
            "seed": data.seed,
        }
        for result in data.perturbations
        for metric, found in result.distances.items()
        for method, distance in found.items()
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


def compare_models(
    data: ReportData, rival: str, unseen: bool | None = None, metric: str = FRECHET
) -> PairedDifference | None:
    """The first model's − the rival's distance over the perturbations that have both."""
    first = data.models[0]
    pairs = [
        (found[first].value, found[rival].value)
        for result in data.perturbations
        if (unseen is None or result.unseen == unseen)
        and {first, rival} <= {*(found := result.distances.get(metric, {}))}
    ]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return paired_difference(ours, theirs, numpy_generator("report", data.seed))


def rivals(data: ReportData) -> list[str]:
    """What the first model is compared with: the other models, and the copy control."""
    return [*data.models[1:], *(name for name in (CONTROL,) if name in data.methods)]


@dataclass(frozen=True)
class Comparison:
    """The first model against a rival by one metric: paired, and as the paper tests it.

    adjusted: the paired p, Benjamini–Hochberg over the report's comparisons.
    """

    metric: str
    rival: str
    paired: PairedDifference
    adjusted: float
    paper: UnpairedDifference


def comparisons(data: ReportData) -> list[Comparison]:
    """By Fréchet and kernel distance, against every rival over the perturbations that both have."""
    pairs = [(metric, rival) for metric in HEADLINE for rival in rivals(data)]
    found = [(pair, compare_models(data, pair[1], metric=pair[0])) for pair in pairs]
    kept = [(pair, paired) for pair, paired in found if paired is not None]
    adjusted = benjamini_hochberg([paired.p for _, paired in kept])
    rows = []
    for ((metric, rival), paired), corrected in zip(kept, adjusted, strict=True):
        values = [[each.value for each in measured(data, metric, name)] for name in (data.models[0], rival)]
        rows.append(Comparison(metric, rival, paired, float(corrected), unpaired_difference(*values)))
    return rows


def comparison_cells(data: ReportData, row: Comparison) -> tuple[str, ...]:
    """A comparison as text, in the order of COMPARISON_HEAD."""
    paired, paper = row.paired, row.paper
    return (
        METRICS[row.metric].label,
        data.methods[row.rival].label,
        figure(paired.mean),
        f"{figure(paired.low)} to {figure(paired.high)}",
        f"{paired.first_smaller} of {paired.n}",
        f"{figure(paired.p)} ({figure(row.adjusted)})",
        f"{figure(paper.p)} {stars(paper.p)}".strip(),
        figure(paper.effect),
    )


COMPARISON_HEAD = (
    "metric",
    "against",
    "difference",
    "95 % interval",
    "closer on",
    "paired p (adjusted)",
    "the paper's t-test, p",
    "Cohen's d",
)


def summary(data: ReportData) -> list[str]:
    """The result in plain sentences, taken from the measurements only, then what the data are."""
    paragraphs = []
    for rival in rivals(data):
        if difference := compare_models(data, rival):
            paragraphs.append(_verdict(data, rival, difference))
    floor, codec = (mean(measured(data, FRECHET, method)) for method in (FLOOR, CODEC))
    if floor is not None:
        text = f"Two disjoint sets of {image_counts(data)} real images already lie {figure(floor)} apart"
        if codec is not None:
            text += f", and real images that only pass through the codec {figure(codec)} from other real ones"
        paragraphs.append(text + ": no generated image can be expected to come closer.")
    for rival in data.models[1:]:
        if unseen := compare_models(data, rival, unseen=True):
            counted = f"{unseen.n} perturbation{'s' if unseen.n > 1 else ''} held out of training"
            pair = (data.models[0], rival)
            ours, theirs = (figure(mean(measured(data, FRECHET, method, unseen=True))) for method in pair)
            names = [_named(data, method) for method in pair]
            paragraphs.append(
                f"On the {counted}, the {names[0]}'s images lie closer than the {names[1]}'s on "
                f"{unseen.first_smaller} of {unseen.n} (mean {ours} against {theirs})."
            )
    if data.excluded:
        paragraphs.append(_excluded(data))
    return [*paragraphs, data.data_statement]


def _excluded(data: ReportData) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(data.excluded.items())[:3]]
    more = ", …" if len(data.excluded) > 3 else ""
    return f"{len(data.excluded)} perturbations could not be measured: {'; '.join(shown)}{more}."


def _named(data: ReportData, method: str) -> str:
    label = data.methods[method].label
    return label[0].lower() + label[1:] if method in MODELS or method in BASELINES else label


def _verdict(data: ReportData, rival: str, difference: PairedDifference) -> str:
    first = data.models[0]
    ours, theirs = (figure(mean(measured(data, FRECHET, method))) for method in (first, rival))
    names = _named(data, first), _named(data, rival)
    closer = difference.mean < 0
    if np.isnan(difference.low) or difference.low <= 0 <= difference.high:
        opening = f"There is no clear difference between the {names[0]} and the {names[1]}"
    elif (first, rival) == (CONDITIONAL, UNCONDITIONAL):
        opening = (
            f"Knowing the perturbation {'helps' if closer else 'does not help'}: the conditional model's "
        )
        opening += f"images lie {'closer to the real ones' if closer else 'further away'}"
    else:
        place = "closer to" if closer else "further from"
        opening = f"The {names[0]} lies {place} the real images than the {names[1]}"
    interval = ""
    if np.isfinite(difference.low):
        interval = f", difference {figure(difference.mean)}, 95 % bootstrap interval over perturbations "
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
    if any(result.unseen for result in data.perturbations):
        paragraphs.append(
            "Perturbations marked unseen were held out of training: the model knows them only by their "
            "condition vector."
        )
    return [*paragraphs, *data.notes]
