"""What a report is made of: a run's facts, each perturbation's images and distances, and their summary."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray import schema
from morphoray.errors import DataError
from morphoray.evaluation.distances import CODEC, FLOOR, Distance
from morphoray.evaluation.measures import (
    CONTROL,
    FRECHET,
    FRECHET_PAPER,
    KID,
    KID_PAPER,
    OTHER,
    RANK,
    RECOGNISED,
    SHARE,
    TRAINED,
)
from morphoray.evaluation.metrics import METRICS
from morphoray.evaluation.novelty import Novelty
from morphoray.evaluation.profile_results import ProfileResults

Images = npt.NDArray[np.uint8]

CONDITIONAL = "conditional"
UNCONDITIONAL = "unconditional"

SEEN, HELD_OUT = "seen", "held_out"
BATCHES = {"": "", SEEN: "seen batches", HELD_OUT: "held-out batches"}


@dataclass(frozen=True)
class Method:
    """A row of the headline table: where images come from, and what their distance tells.

    short: its name where a line has room for a word or two.
    """

    label: str
    note: str
    short: str


MODELS: dict[str, Method] = {
    CONDITIONAL: Method("Conditional model", "images generated for this perturbation", "Conditional"),
    UNCONDITIONAL: Method(
        "Unconditional model", "images generated without knowing the perturbation", "Unconditional"
    ),
}
BASELINES: dict[str, Method] = {
    CONTROL: Method(
        "Copy control",
        "real control images of the same batches: what ignoring the drug gives",
        "Copy control",
    ),
    OTHER: Method("Another perturbation", "real images of another perturbation", "Other perturbation"),
    TRAINED: Method("Trained on", "the real images of this perturbation that training saw", "Trained on"),
    CODEC: Method("Codec alone", "real images, encoded and decoded: what the codec costs", "Codec"),
    FLOOR: Method("Real against real", "two disjoint sets of real images: the floor at this N", "Floor"),
}

HEADLINE = (FRECHET, KID)  # metrics of the first table
__all__ = [
    "CODEC",
    "CONTROL",
    "FLOOR",
    "FRECHET",
    "FRECHET_PAPER",
    "KID",
    "KID_PAPER",
    "METRICS",
    "OTHER",
    "RANK",
    "RECOGNISED",
    "SHARE",
    "TRAINED",
]


@dataclass(frozen=True)
class RunFacts:
    """What the run cost, and what more would bring. steps and images_seen are None where none was trained.

    machine_gflops: measured GFLOP/s. outlook: a sentence or two. details: further facts by name, as they
    should be printed (preset, sampler, dataset, …).
    """

    steps: int | None = None
    images_seen: int | None = None
    seconds: float | None = None  # wall time; None: not measured
    machine_gflops: float | None = None
    outlook: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> dict[str, str]:
        """What is known of the cost, by name, as print shows it."""
        counts = {"Training steps": self.steps, "Images seen": self.images_seen}
        shown = {name: f"{count:,}" for name, count in counts.items() if count is not None}
        if self.seconds is not None:
            shown["Time"] = duration(self.seconds)
        if self.machine_gflops is not None:
            shown["Machine"] = f"{self.machine_gflops:,.0f} GFLOP/s"
        return shown


@dataclass(frozen=True)
class PerturbationResult:
    """One perturbation in one group of batches: images (K, 3, H, W) uint8 of each kind, and its distances.

    distances: metric → method → Distance, as `measures.measure_one` gives them.
    images: by method; CODEC's are the reconstructions of the very images in `real`, in their order.
    channels: extractor of one channel → method → its Fréchet distance; none where images are RGB.
    unseen: whether it was held out of training. batches: a key of BATCHES, what training saw of the batches
    that the real images come from; "" where nothing is held out. nearest: an unseen one's nearest training
    perturbation. um_per_pixel: of `real`; None if the data don't tell.
    """

    perturbation_id: str
    real: Images
    distances: Mapping[str, Mapping[str, Distance]]
    channels: Mapping[str, Mapping[str, Distance]] = field(default_factory=dict)
    images: Mapping[str, Images] = field(default_factory=dict)
    moa: str | None = None
    smiles: str | None = None
    gene: str | None = None
    concentration_um: float | None = None
    unseen: bool = False
    is_control: bool = False
    batches: str = ""
    nearest: Novelty | None = None
    um_per_pixel: float | None = None

    @property
    def n(self) -> int | None:
        """Images a side of its Fréchet distances; None if there are none."""
        return next((distance.n_a for distance in self.distances.get(FRECHET, {}).values()), None)


@dataclass(frozen=True)
class ReportData:
    """Everything a report says. `write_report` in report.py writes it.

    models: the methods that generate, in the order of the report; the first is the one that others are
    compared with. losses: model → its (step, loss) points. extractor, weights_hash, mode: of the Extractor.
    made_by: the fingerprint of the run. data_statement: a sentence on where the data come from ('simulated').
    notes: further caveats, a sentence or two each. excluded: perturbation → why it was not measured.
    profiles: what the cells' measurements tell, where they were made.
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
    profiles: ProfileResults | None = None

    @property
    def batches(self) -> list[str]:
        """The groups of batches that were measured, in the order of BATCHES."""
        return [name for name in BATCHES if any(result.batches == name for result in self.perturbations)]

    def of(self, batches: str) -> "ReportData":
        """The same report of one group of batches."""
        return replace(self, perturbations=[each for each in self.perturbations if each.batches == batches])

    def mark(self, method: str) -> str:
        """How charts and keys draw a method: a baseline's own name, or model<place>."""
        return method if method in BASELINES else f"model{list(self.models).index(method)}"

    @property
    def methods(self) -> dict[str, Method]:
        """All that was measured: the models, then the baselines that some perturbation has."""
        there = {
            name for result in self.perturbations for found in result.distances.values() for name in found
        }
        models = {
            name: MODELS.get(name, Method(name, "images of another method", name)) for name in self.models
        }
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
    """Every distance as a row of schema.METRICS, stamped with the run's fingerprint.

    experiment: the data's name, then /seen or /held_out where batches are told apart. A mean over draws has
    two more rows, <metric>_low and <metric>_high: 95 % of its draws lie between them. unseen: whether the
    perturbation was held out of training.
    """
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
            "experiment": "/".join(filter(None, (data.experiment, result.batches))),
            "method": method,
            "perturbation_id": result.perturbation_id,
            "unseen": result.unseen,
            "metric": name,
            "value": value,
            "n_real": distance.n_b,
            "n_generated": distance.n_a,
            "extractor": f"{extractor}@{data.weights_hash}",
            "mode": data.mode,
            "seed": data.seed,
        }
        for result, metric, extractor, distances in found
        for method, distance in distances.items()
        for name, value in (
            (metric, distance.value),
            (f"{metric}_low", distance.low),
            (f"{metric}_high", distance.high),
        )
        if value is not None
    ]
    return schema.stamp(pa.Table.from_pylist(rows, schema=schema.METRICS), data.made_by)


@dataclass(frozen=True)
class Cell:
    """Seen or unseen perturbations (None: both) in one group of batches (None: all); a table's column."""

    unseen: bool | None = None
    batches: str | None = None

    @property
    def label(self) -> str:
        """As a table writes it: 'unseen in held-out batches'."""
        kind = {None: "all", False: "seen", True: "unseen"}[self.unseen]
        return " in ".join(filter(None, (kind, BATCHES[self.batches or ""])))

    def has(self, result: PerturbationResult) -> bool:
        """Whether the result belongs to it."""
        return self.unseen in (None, result.unseen) and self.batches in (None, result.batches)


EVERYTHING = Cell()


def cells(data: ReportData) -> list[Cell]:
    """What tables tell apart: seen and unseen perturbations, in seen and held-out batches.

    Of one group of batches all perturbations first. Of two groups there is nothing over both: a perturbation
    in both would count twice, measured against different real images.
    """
    kinds = {result.unseen for result in data.perturbations}
    split: list[bool | None] = [False, True] if len(kinds) == 2 else [None]
    if len(data.batches) == 1:
        found = [Cell(), *(Cell(unseen) for unseen in split if unseen is not None)]
    else:
        found = [Cell(unseen, batches) for batches in data.batches for unseen in split]
    return [cell for cell in found if any(map(cell.has, data.perturbations))]


def measured(data: ReportData, metric: str, method: str, cell: Cell = EVERYTHING) -> list[Distance]:
    """The distances of one method over the perturbations of a cell."""
    chosen = (result for result in data.perturbations if cell.has(result))
    found = (result.distances.get(metric, {}).get(method) for result in chosen)
    return [distance for distance in found if distance is not None]


def mean(found: Iterable[Distance]) -> float | None:
    """The mean distance, None of none."""
    values = [distance.value for distance in found]
    return float(np.mean(values)) if values else None


FEWER_MEANT = (
    "(1 of 2): a mean over 1 of the 2 perturbations that others of its column are over: no like for like."
)


def short_of(data: ReportData, metric: str, method: str, cell: Cell) -> str:
    """'(1 of 2)' where a mean is over fewer perturbations than the most of its column; else empty."""
    most = max(len(measured(data, metric, each, cell)) for each in data.methods)
    count = len(measured(data, metric, method, cell))
    return f"({count} of {most})" if 0 < count < most else ""


def image_counts(data: ReportData) -> str:
    """N of the Fréchet distances as text: '32', or '24–32' where perturbations differ."""
    counts = [result.n for result in data.perturbations if result.n is not None]
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


def percent(share: float) -> str:
    """A share from 0 to 1 as '45 %'; '–' where it isn't finite."""
    return f"{share:.0%}".replace("%", " %") if np.isfinite(share) else "–"


def interval(low: float, high: float) -> str:
    """Both ends of an interval; '–' for none."""
    return f"{figure(low)} to {figure(high)}" if np.isfinite(low) else "–"


def of_subsets(distance: Distance, metric: str) -> str:
    """What holds 95 % of a kernel distance's subsets; empty for other metrics."""
    low, high = distance.low, distance.high
    return "" if metric != KID or low is None or high is None else interval(low, high)


def written(metric: str, value: float | None, mean: bool = False) -> str:
    """A metric's value as print shows it: a rank whole, a mean rank at two decimals, others as `figure`."""
    if metric != RANK or value is None or not np.isfinite(value):
        return figure(value)
    return f"{value:.2f}" if mean else f"{value:.0f}"


def explained(data: ReportData, metric: str) -> str:
    """What the metric tells, for a line above its table; of ranks and `recognised` what chance gives, too."""
    chance = _among(data, metric) if metric in CHANCE else ""
    return f"{METRICS[metric].means} {chance}" if chance else METRICS[metric].means


CHANCE: dict[str, Callable[[int], str]] = {  # among so many perturbations
    RANK: lambda count: f"{count} cohorts, where chance gives a mean of {(count + 1) / 2:g}",
    RECOGNISED: lambda count: f"{count} perturbations, where chance gives {figure(1 / count)}",
}


def candidates(data: ReportData, metric: str) -> int:
    """Among how many perturbations a metric of CHANCE chooses."""
    return max(len(measured(data, metric, model)) for model in data.models)


def _among(data: ReportData, metric: str) -> str:
    """Among how many there is a choice, and what chance gives; empty where it wasn't measured."""
    counts = {batches: candidates(data.of(batches), metric) for batches in data.batches}
    told = {batches: CHANCE[metric](count) for batches, count in counts.items() if count}
    if len({*told.values()}) > 1:
        return f"Among {'; '.join(f'{text} ({BATCHES[batches]})' for batches, text in told.items())}."
    return f"Among {next(iter(told.values()))}." if told else ""


def probability(p: float) -> str:
    """A p value as `figure` writes it, '< 0.0001' below that."""
    return "< 0.0001" if p < 1e-4 else figure(p)


def equals(p: float) -> str:
    """A p value within a sentence: '= 0.012' or '< 0.0001'."""
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


def duration(seconds: float) -> str:
    """'42 s', '7 min 42 s' or '3 h 5 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
