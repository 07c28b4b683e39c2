"""Does each metric respond as it should? Sets of simulated images with known faults, a table rows × metrics.

    python jobs/benchmarks/validation.py [--n 200] [--profiles 100] [--repeats 24]

Four perturbations (the control and three compounds of different mechanisms) in two batches, rendered as
the demo does, one crop of 64 px a field. ✗ marks a cell that is not as expected. Values of rows without
levels are means over the four, or over the three compounds where profiles are compared. What is expected
of each cell, and why, stands in _responses.py. A metric that doesn't respond is a finding and no failure.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from _common import machine
from _faults import Extract, Faults, Rows, Sets, faulty_sets
from _profiles import measure_images, profile_correlations
from _responses import METRICS, PROFILE, ROWS, Seen

from morphoray.evaluation.cohorts import frechet_matrix, matched_ranks, moments
from morphoray.evaluation.features import load_extractor
from morphoray.evaluation.measures import RANK, Cohort, Sampling, measure
from morphoray.seeds import numpy_generator

Floats = npt.NDArray[np.float64]

DRAWS = 5  # that a distance is the mean of


@dataclass(frozen=True)
class Cell:
    """What was seen of one metric in one row, what was expected, and whether it was that."""

    seen: Seen
    words: str
    passed: bool

    def __str__(self) -> str:
        values = [f"{value:.3g}" for value in self.seen.values]
        shown = (
            values[0] if len(values) == 1 else f"{values[0]} → {values[-1]}, ρ {self.seen.correlation:.2f}"
        )
        return shown.replace("-", "−") if self.passed else f"**{shown}** ✗".replace("-", "−")


Table = dict[str, dict[str, Cell]]


def validate(extract: Extract, n: int, repeats: int) -> dict[str, dict[str, Seen]]:
    """What was seen by row and metric, of features of sets of n images and a null of `repeats` splits.

    A metric that isn't measured at this n (evaluation/measures.py) is not among them.
    """
    faults = faulty_sets(extract, n)
    return _seen(faults, _null(faults.sets, n, repeats), n)


def judge(seen: Mapping[str, Mapping[str, Seen]]) -> Table:
    """Cells by row and metric: what was seen against what is expected."""
    return {
        row: {
            metric: Cell(seen[row][metric], expected.words, expected.holds(seen[row][metric]))
            for metric, expected in responses().items()
            if metric in seen[row]
        }
        for row, responses in ROWS.items()
    }


def _measured(
    sets: Mapping[str, Sets], generated: Mapping[str, Mapping[str, Rows]], n: int, draws: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Every metric of evaluation/measures.py by perturbation, metric and set."""
    cohorts = [Cohort(name, each.real, generated[name], trained=each.trained) for name, each in sets.items()]
    distances = measure(cohorts, Sampling(n, draws, seed=seed)).distances
    return {
        name: {
            metric: {row: distance.value for row, distance in by_set.items()}
            for metric, by_set in metrics.items()
        }
        for name, metrics in distances.items()
    }


def _null(sets: Mapping[str, Sets], n: int, repeats: int) -> dict[str, Floats]:
    """By metric (repeats, perturbations): real and fresh images pooled and split again, by chance."""
    values: dict[str, list[list[float]]] = {}
    for repeat in range(repeats):
        split, claimed = {}, {}
        for name, each in sets.items():
            generator = numpy_generator("validation-null", repeat, name)
            pooled = np.concatenate([each.real, each.fresh])
            pooled = pooled[generator.permutation(len(pooled))]
            split[name] = Sets(pooled[n:], pooled[:n], each.trained, each.other_batch)
            claimed[name] = {"null": split[name].fresh}
        found = _measured(split, claimed, n, DRAWS, repeat)
        for metric in next(iter(found.values())):
            values.setdefault(metric, []).append([found[name][metric]["null"] for name in sets])
    return {metric: np.array(each) for metric, each in values.items()}


def _seen(faults: Faults, null: Mapping[str, Floats], n: int) -> dict[str, dict[str, Seen]]:
    """By row and metric: means over the perturbations, or a ladder's values level by level."""
    sets, rows, ladders = faults.sets, faults.rows, faults.ladders
    generated = {name: {row: claimed[name] for row, claimed in rows.items()} for name in sets}
    for row, ladder in ladders.items():
        levels = zip(ladder.levels, ladder.sets, strict=True)
        generated[ladder.of] |= {f"{row} {level}": features for level, features in levels}
    measured = _measured(sets, generated, n, DRAWS, 0)
    seen: dict[str, dict[str, Seen]] = {row: {} for row in ROWS}
    for metric in (metric for metric in METRICS if metric in null):
        for row in rows:
            value = np.mean([measured[name][metric][row] for name in sets])
            seen[row][metric] = Seen(np.array([value]), np.zeros(1), null[metric].mean(1))
        for row, ladder in ladders.items():
            values = (
                [_rank(features, ladder.of, sets) for features in ladder.sets]
                if metric == RANK
                else [measured[ladder.of][metric][f"{row} {level}"] for level in ladder.levels]
            )
            column = null[metric][:, list(sets).index(ladder.of)]
            seen[row][metric] = Seen(np.array(values, float), np.array(ladder.levels), column)
    return seen


def _rank(features: Rows, claimed: str, sets: Mapping[str, Sets]) -> int:
    """The claimed perturbation's rank among the real cohorts, by distance from these images alone."""
    n = len(features)
    row = frechet_matrix([moments(features)], [moments(each.real[:n]) for each in sets.values()])
    return int(matched_ranks(np.repeat(row, len(sets), axis=0))[list(sets).index(claimed)])


def markdown(table: Table) -> str:
    """A line a row, a column a metric."""
    metrics = [metric for metric in METRICS if all(metric in cells for cells in table.values())]
    lines = [["", *metrics], ["---"] * (1 + len(metrics))]
    lines += [[row, *(str(cells[metric]) for metric in metrics)] for row, cells in table.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def findings(table: Table) -> list[str]:
    """A line for every metric that did not respond as it should."""
    return [
        f"{metric}, {row}: expected {cell.words}; found {', '.join(f'{v:.3g}' for v in cell.seen.values)} "
        f"(real images {cell.seen.null.mean():.3g} ± {cell.seen.null.std(ddof=1):.2g})"
        for row, cells in table.items()
        for metric, cell in cells.items()
        if not cell.passed
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="images a set, 24 or more")
    parser.add_argument("--profiles", type=int, default=100, help="images a set of profiles; 0: none")
    parser.add_argument("--repeats", type=int, default=24, help="splits of real images")
    parser.add_argument("--extractor", default="efficientnet_lite0")
    options = parser.parse_args()
    print(machine(), flush=True)
    seen = validate(load_extractor(options.extractor), options.n, options.repeats)
    if options.profiles:
        for row, correlation in profile_correlations(
            measure_images, options.profiles, options.repeats
        ).items():
            seen[row][PROFILE] = correlation
    table = judge(seen)
    print(
        f"N = {options.n}, {options.extractor}; profiles: {options.profiles} images a set, CellProfiler's "
        f"measurements; {options.repeats} splits of real images for the null"
    )
    print(markdown(table))
    failed = findings(table)
    cells = sum(len(row) for row in table.values())
    print(f"\n{len(failed)} of {cells} cells are not as expected (✗){':' if failed else ''}")
    for line in failed:
        print(f"- {line}")


if __name__ == "__main__":
    main()
