"""Does each metric respond as it should? Sets of simulated images with known faults, a table rows × metrics.

    python jobs/benchmarks/validation.py [--n 200] [--repeats 12] [--extractor efficientnet_lite0]

Four perturbations (the control and three compounds of different mechanisms) in two batches, rendered as the
demo does, one crop of 64 px a field. Values of rows without levels are means over the four. What is expected
of each cell, and why, stands in _responses.py. A metric that doesn't respond is a finding and no failure.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from _common import machine
from _responses import CLASSIFIER, METRICS, RANK, ROWS, Seen
from scipy.ndimage import gaussian_filter

from morphoray.datasets.simulator.effects import batch_effect, compound_phenotypes
from morphoray.datasets.simulator.fields import draw_fields
from morphoray.datasets.simulator.library import COMPOUNDS, CONTROL
from morphoray.datasets.simulator.phenotype import Phenotype
from morphoray.datasets.simulator.plan import SimulatedOptions
from morphoray.evaluation.classifier import fit_classifier
from morphoray.evaluation.cohorts import frechet_matrix, matched_ranks, moments
from morphoray.evaluation.features import Features, Images, load_extractor
from morphoray.evaluation.measures import Cohort, Sampling, measure
from morphoray.imaging.channels import MAPPINGS
from morphoray.imaging.crops import crop, crop_positions
from morphoray.seeds import numpy_generator

Extract = Callable[[Images], Features]
Floats = npt.NDArray[np.float64]

RESOLUTION = 64
COMPOUND = "lovastatin"
NAMES = (CONTROL, COMPOUND, "ciprofloxacin", "diazepam")
BATCHES = ("SIM-01", "SIM-02")
WELLS = 16  # of each perturbation in each batch; sets of one batch share them
DOSES_UM = (0.5, 1.0, 2.0, 4.0)
FULL_DOSE_UM = 10.0
BLUR_PX = (0.5, 1.0, 2.0, 4.0)
NOISE_LEVELS = (4.0, 8.0, 16.0, 32.0)  # grey levels of 255
DRAWS = 5  # that a distance is the mean of


def draw(phenotype: Phenotype, batch: str, name: str, count: int) -> Images:
    """`count` images (count, 3, 64, 64) of independent fields; image i depends on the names and i."""
    options = SimulatedOptions()
    keys = [(options.seed, batch, name, index) for index in range(count)]
    fields = draw_fields(
        [phenotype] * count,
        [batch_effect(options.seed, batch, "1", f"{name}-{index % WELLS}") for index in range(count)],
        options.size,
        options.channels,
        keys=keys,
        nucleus_diameter_px=options.nucleus_diameter_px,
    )
    images = []
    for field, key in zip(fields.images, keys, strict=True):
        position = crop_positions(options.size, options.size, RESOLUTION, 1, *key)[0]
        images.append(crop(MAPPINGS["rxrx1_rgb"].apply(field), position, RESOLUTION))
    return np.stack(images)


def phenotypes(name: str, doses_um: Sequence[float]) -> list[Phenotype]:
    """The phenotype that a compound has at each dose; the control's is the baseline."""
    if name == CONTROL:
        return [Phenotype() for _ in doses_um]
    return compound_phenotypes([COMPOUNDS[name].smiles] * len(doses_um), doses_um)


def blurred(images: Images, sigma_px: float) -> Images:
    """Each channel under a Gaussian."""
    smooth = gaussian_filter(images.astype(np.float32), (0, 0, sigma_px, sigma_px))
    found: Images = np.rint(smooth).astype(np.uint8)
    return found


def noisy(images: Images, deviation: float) -> Images:
    """With independent Gaussian noise on every value, clipped to 0..255."""
    noise = numpy_generator("validation-noise").normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Sets:
    """Features of one perturbation: 2 N real ones, N others, N trained on, and N of another batch."""

    real: Features
    fresh: Features
    trained: Features
    other_batch: Features


@dataclass(frozen=True)
class Ladder:
    """A rising fault: sets of images claimed to be `of`; the first level is real images of it."""

    of: str
    levels: tuple[float, ...]
    sets: tuple[Features, ...]


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
        return f"{shown} {'pass' if self.passed else 'FAIL'}"


Table = dict[str, dict[str, Cell]]


def validate(extract: Extract, n: int, repeats: int) -> Table:
    """Cells by row and metric, of sets of n images and a null of `repeats` splits.

    A metric that isn't measured at this n (evaluation/measures.py) has no cells.
    """
    images = {name: _images(name, n) for name in NAMES}
    sets = {name: _sets(extract, *images[name], n) for name in NAMES}
    ladders = _ladders(extract, sets, images[COMPOUND][0][2 * n : 3 * n])
    rows = _rows(sets, n)
    null = _null(sets, n, repeats)
    seen = _seen_rows(rows, sets, ladders, null, n)
    return {
        row: {
            metric: Cell(seen[row][metric], expected.words, expected.holds(seen[row][metric]))
            for metric, expected in responses().items()
            if metric in seen[row]
        }
        for row, responses in ROWS.items()
    }


def _images(name: str, n: int) -> tuple[Images, Images]:
    """4 N images of the first batch, and N of the second."""
    phenotype = phenotypes(name, [FULL_DOSE_UM])[0]
    return draw(phenotype, BATCHES[0], name, 4 * n), draw(phenotype, BATCHES[1], name, n)


def _sets(extract: Extract, first: Images, second: Images, n: int) -> Sets:
    features = extract(first)
    return Sets(features[: 2 * n], features[2 * n : 3 * n], features[3 * n :], extract(second))


def _ladders(extract: Extract, sets: Mapping[str, Sets], images: Images) -> dict[str, Ladder]:
    """images: the compound's N fresh ones."""
    n = len(images)
    doses = [
        extract(draw(phenotype, BATCHES[0], f"{COMPOUND}@{dose}", n))
        for phenotype, dose in zip(phenotypes(COMPOUND, DOSES_UM), DOSES_UM, strict=True)
    ]
    control, compound = sets[CONTROL].fresh, sets[COMPOUND].fresh
    blur = [extract(blurred(images, sigma)) for sigma in BLUR_PX]
    noise = [extract(noisy(images, deviation)) for deviation in NOISE_LEVELS]
    return {
        "dose ladder": Ladder(CONTROL, (0.0, *DOSES_UM, FULL_DOSE_UM), (control, *doses, compound)),
        "blur ladder": Ladder(COMPOUND, (0.0, *BLUR_PX), (compound, *blur)),
        "noise ladder": Ladder(COMPOUND, (0.0, *NOISE_LEVELS), (compound, *noise)),
    }


def _rows(sets: Mapping[str, Sets], n: int) -> dict[str, dict[str, Features]]:
    """The rows without levels: a set for each perturbation that it is claimed to be."""
    names, few, fifth = list(sets), max(2, n // 25), n // 5
    following = dict(zip(names, names[1:] + names[:1], strict=True))
    return {
        "real against real": {name: each.fresh for name, each in sets.items()},
        "other batch": {name: each.other_batch for name, each in sets.items()},
        "mode collapse": {name: each.fresh[np.arange(n) % few] for name, each in sets.items()},
        "copies of training": {name: each.trained for name, each in sets.items()},
        "a fifth copied": {
            name: np.concatenate([each.trained[:fifth], each.fresh[fifth:]]) for name, each in sets.items()
        },
        "wrong perturbation": {name: sets[following[name]].fresh for name in names},
    }


def _measured(
    sets: Mapping[str, Sets], generated: Mapping[str, Mapping[str, Features]], n: int, draws: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Every metric of evaluation/measures.py by perturbation, metric and set; and the classifier's recall.

    The classifier is fitted on the first half of the real images.
    """
    cohorts = [Cohort(name, each.real, generated[name], trained=each.trained) for name, each in sets.items()]
    distances = measure(cohorts, Sampling(n, draws, seed=seed)).distances
    classifier = fit_classifier({name: each.real[:n] for name, each in sets.items()})
    found = {}
    for name, metrics in distances.items():
        values = {
            metric: {row: distance.value for row, distance in by_set.items()}
            for metric, by_set in metrics.items()
        }
        values[CLASSIFIER] = {
            row: classifier.recall({name: features})[name] for row, features in generated[name].items()
        }
        found[name] = values
    return found


def _null(sets: Mapping[str, Sets], n: int, repeats: int) -> dict[str, Floats]:
    """By metric (repeats, perturbations): real and fresh images pooled and split again, by chance.

    The classifier's are recalls of n images out of those that it wasn't fitted on.
    """
    values: dict[str, list[list[float]]] = {}
    for repeat in range(repeats):
        split, claimed = {}, {}
        for name, each in sets.items():
            generator = numpy_generator("validation-null", repeat, name)
            fitted, others = each.real[:n], np.concatenate([each.real[n:], each.fresh])
            others = others[generator.permutation(len(others))]
            split[name] = Sets(
                np.concatenate([fitted, others[n:]]), others[:n], each.trained, each.other_batch
            )
            claimed[name] = {"null": split[name].fresh}
        found = _measured(split, claimed, n, 1, repeat)
        for metric in next(iter(found.values())):
            values.setdefault(metric, []).append([found[name][metric]["null"] for name in sets])
    return {metric: np.array(each) for metric, each in values.items()}


def _seen_rows(
    rows: Mapping[str, Mapping[str, Features]],
    sets: Mapping[str, Sets],
    ladders: Mapping[str, Ladder],
    null: Mapping[str, Floats],
    n: int,
) -> dict[str, dict[str, Seen]]:
    """By row and metric: means over the perturbations, or a ladder's values level by level."""
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


def _rank(features: Features, claimed: str, sets: Mapping[str, Sets]) -> int:
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
    parser.add_argument("--repeats", type=int, default=12, help="splits of real images")
    parser.add_argument("--extractor", default="efficientnet_lite0")
    options = parser.parse_args()
    print(machine(), flush=True)
    table = validate(load_extractor(options.extractor), options.n, options.repeats)
    print(f"N = {options.n}, {options.extractor}, {options.repeats} splits of real images for the null")
    print(markdown(table))
    failed = findings(table)
    cells = sum(len(row) for row in table.values())
    print(f"\n{len(failed)} of {cells} cells are not as expected{':' if failed else ''}")
    for line in failed:
        print(f"- {line}")


if __name__ == "__main__":
    main()
