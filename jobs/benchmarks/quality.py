"""How good a conditional and an unconditional run's images are, beside what real images can reach.

    python jobs/benchmarks/quality.py CONDITIONAL/config.yaml UNCONDITIONAL/config.yaml [EXPERIMENT …]

Both runs must have generated their images (`morphoray evaluate` does). Real images come from the experiments
named (held out ones), by default from those trained on. For each perturbation: Fréchet distances from real
images at one N, with two extractors that took no part in training anything:

    conditional, unconditional   the models
    codec        real images, encoded and decoded
    floor        other real images of the same experiments
    trained      real images of the experiments trained on: a perfect conditional model
    mixture      the same, of all perturbations: a perfect unconditional model
    nearest      real images of the perturbation that lies nearest

and the recall of a linear classifier trained on real images of the experiments trained on; its mean over
perturbations is the balanced accuracy. Without runs it says so and ends.
"""

import argparse
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig, parse
from morphoray.errors import MorphorayError
from morphoray.evaluation.classifier import fit_classifier
from morphoray.evaluation.distances import CODEC, FLOOR, Distance, compare
from morphoray.evaluation.features import Extractor, Features, load_extractor
from morphoray.evaluation.results import CONDITIONAL, UNCONDITIONAL
from morphoray.pipelines.compare import ImageSets, collect, real_images, seen_experiments
from morphoray.pipelines.layout import layout_of
from morphoray.pipelines.sites import read_sites
from morphoray.seeds import numpy_generator
from morphoray.storage import Storage

EXTRACTORS = ("efficientnet_lite0", "efficientnet_lite2")
MODELS = (CONDITIONAL, UNCONDITIONAL)
TRAINED, MIXTURE, NEAREST = "trained", "mixture", "nearest"
COLUMNS = (*MODELS, CODEC, FLOOR, TRAINED, MIXTURE, NEAREST)


def trained_images(config: RunConfig, sites: pa.Table, names: list[str], most: int) -> dict[str, np.ndarray]:
    """Up to `most` real images of each perturbation from the experiments trained on."""
    return {name: real_images(config, sites, name, seen_experiments(sites), most) for name in names}


def mixture(trained: dict[str, Features], shares: dict[str, int], n: int, key: str) -> Features:
    """n rows drawn from all perturbations, as often as training shows each."""
    generator = numpy_generator("mixture", key)
    weights = np.array([shares[name] for name in trained], float)
    counts = np.bincount(generator.choice(len(trained), n, p=weights / weights.sum()), minlength=len(trained))
    parts = [
        features[generator.choice(len(features), min(count, len(features)), replace=False)]
        for features, count in zip(trained.values(), counts, strict=True)
    ]
    return np.concatenate(parts)


def measure(
    sets: list[ImageSets], trained: dict[str, np.ndarray], shares: dict[str, int], network: Extractor
) -> None:
    """Print the table of one extractor."""
    print(f"\nextractor: {network.name} {network.mode} {network.weights_hash}")
    print(f"{'':24} {'N':>4}" + "".join(f"{column:>14}" for column in COLUMNS))
    seen = {name: network(images) for name, images in trained.items()}
    real = {entry.perturbation.perturbation_id: network(entry.real) for entry in sets}
    classifier = fit_classifier(seen)
    shown: dict[str, dict[str, Features]] = {"real": real}
    for entry in sets:
        name = entry.perturbation.perturbation_id
        made = {method: network(images) for method, images in entry.generated.items()}
        rebuilt = network(entry.reconstructed)
        for method, features in (made | {CODEC: rebuilt}).items():
            shown.setdefault(method, {})[name] = features
        n = min(len(real[name]) // 2, len(seen[name]), *(len(features) for features in made.values()))
        others = {TRAINED: seen[name], MIXTURE: mixture(seen, shares, n, name)}
        n = min(n, len(others[MIXTURE]))
        generator = numpy_generator("quality", name)
        found = compare(real[name], made | others, generator, reconstructed=rebuilt, n=n)
        found[NEAREST] = nearest(real, name, n)
        print(f"{name[:24]:24} {n:>4}" + "".join(f"{found[column].value:14.1f}" for column in COLUMNS))
    print("recall of a linear classifier (its mean is the balanced accuracy):")
    for method, sets_of_features in shown.items():
        recall = classifier.recall(sets_of_features)
        each = ", ".join(f"{name} {value:.3f}" for name, value in recall.items())
        print(f"  {method:14} {np.mean(list(recall.values())):.3f}  ({each})")


def nearest(real: dict[str, Features], name: str, n: int) -> Distance:
    """The distance to the perturbation whose real images lie nearest, at the same n."""
    distances = []
    for other, features in real.items():
        if other != name and len(features) >= n:
            generator = numpy_generator("nearest", name, other)
            distances.append(compare(real[name], {other: features}, generator, n=n)[other])
    return min(distances, key=lambda distance: distance.value, default=Distance(float("nan"), n, n))


def main() -> int:
    """Print a table for each extractor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="the two config.yaml, then experiments")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        print("quality: skipped, no runs are named (jobs/benchmarks/quality.py --help)")
        return 0
    paths, experiments = arguments.runs[:2], arguments.runs[2:]
    configs = [parse(Storage().read_text(path), path) for path in paths]
    images = {method: layout_of(config).of("images") for method, config in zip(MODELS, configs, strict=True)}
    first = configs[0]
    sites = read_sites(first)
    most = 4 * first.generation.n
    sets = collect(first, images, 2 * first.generation.n, experiments or None)
    names = [entry.perturbation.perturbation_id for entry in sets]
    trained = trained_images(first, sites, names, most)
    kept = sites.filter(pc.equal(sites["split"], "train"))["perturbation_id"].value_counts()
    shares = {row["values"]: row["counts"] for row in kept.to_pylist()}
    print(f"{', '.join(paths)}; real images: {', '.join(experiments) or 'the experiments trained on'}")
    for name in EXTRACTORS:
        measure(sets, trained, shares, load_extractor(name))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MorphorayError as error:
        sys.exit(f"quality: {error}")
