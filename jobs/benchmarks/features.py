"""Images a second of an evaluation's features beside a bare loop, and memory at 1, 4 and 16 times the images.

The pipeline's steady rate is taken between its first and its last finished part; what comes before, the
start of Ray's workers and of the network, is printed apart. The driver keeps every image's row and features
and nothing else that grows; the actors keep a part. Fails when the whole at 16 times the images exceeds 1.5
times the memory.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from _common import (
    MIB,
    Peaks,
    Rates,
    TimedStage,
    images_of_sites,
    interleave,
    machine,
    memory_ratio,
    peaks_by_size,
    peaks_of,
    print_rates,
    print_start,
    print_target,
    ratio,
    seconds_of,
    simulated_run,
)

from morphoray.config import RunConfig, parse
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.evaluation.features import load_extractor
from morphoray.evaluation.networks import WIDTH
from morphoray.pipelines.cluster import connected, use_threads
from morphoray.pipelines.encode import read_plan
from morphoray.pipelines.features import measure_features
from morphoray.pipelines.image_parts import ImageParts, ImageRow
from morphoray.pipelines.layout import dataset_of, storage_from
from morphoray.pipelines.sites import read_sites

TARGET = 0.9
MOST = 1.5
CHILD = "--measure"  # what this script is started with when it is watched: the run's config.yaml


@dataclass(frozen=True)
class Figures:
    """rates: images/s of both, round by round; start_s: until the first part begins."""

    rates: Rates
    start_s: list[float]


def measure(folder: Path, parts: int, sites_per_part: int, repeats: int) -> Figures:
    """Features of `parts` x `sites_per_part` sites through the pipeline, in turn with the loop."""
    config = simulated_run(
        folder / "run", parts * sites_per_part, evaluation={"features_per_part": sites_per_part}
    )
    images = images_of_sites(config, sites_per_part)
    use_threads(config.evaluation.cpus_per_actor)
    extractor = load_extractor(config.evaluation.extractor)
    rows = image_rows(config)
    timed = TimedStage(len(images))

    def bare() -> float:
        return len(images) / seconds_of(lambda: extractor(images))

    def pipeline() -> float:
        out = folder / f"features-{len(timed.start_s)}"
        return timed.rate(lambda: measure_features(feature_parts(config, out), rows), out, "*.parquet")

    bare()
    with connected():
        rates = interleave({"bare": bare, "pipeline": pipeline}, repeats)
    return Figures(rates, timed.start_s)


def image_rows(config: RunConfig) -> list[ImageRow]:
    """A row for every site of the run, as an evaluation's real images have them."""
    return [
        ImageRow(
            "real",
            site["perturbation_id"],
            site["experiment"],
            site["site_id"],
            "site",
            {name: site[name] for name in SITE_COLUMNS},
        )
        for site in read_sites(config).to_pylist()
    ]


def feature_parts(config: RunConfig, out: Path) -> ImageParts:
    """Empty parts of the run's extractor."""
    settings, storage, sites = config.evaluation, storage_from(config.storage), dataset_of(config)[2]
    size, plan = settings.features_per_part, read_plan(config)
    return ImageParts("features", storage, str(out), settings, size, sites, plan, "benchmark")


def measure_memory(folder: Path, images: int, images_per_part: int) -> Peaks:
    """Features of `images` sites of 3 x 64 x 64 in a process of its own, watched from outside."""
    config = simulated_run(
        folder,
        images,
        dataset={"size": 64, "channels": 3},
        image={"resolution": 64, "crops": 1},
        evaluation={"features_per_part": images_per_part},
    )
    command = [sys.executable, __file__, CHILD, f"{config.run_dir}/config.yaml"]
    return peaks_of(command, folder / "log.txt", "FeaturePart")


def measure_watched(uri: str) -> None:
    """The work of a watched process: every feature of a run, held at the end as an evaluation holds them."""
    config = parse(Path(uri).read_text(), uri)
    with connected():
        tables = measure_features(feature_parts(config, Path(uri).parent / "features"), image_rows(config))
    print(f"{tables['real'].features.nbytes} bytes of features")


def main() -> int:
    """Measure and print; 1 when memory grows with the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=12)
    parser.add_argument("--sites-per-part", type=int, default=24, help="of four images each")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--images", type=int, default=128, help="of the smallest input whose memory is taken")
    parser.add_argument(CHILD, metavar="CONFIG", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_watched(arguments.measure)
        return 0
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.parts, arguments.sites_per_part, arguments.repeats)
    print(
        "features: efficientnet_lite0, 6 x 128 x 128 sites, 4 crops of 64 px, "
        f"{arguments.parts} parts of {arguments.sites_per_part} sites"
    )
    print_rates(figures.rates, "images/s")
    print_target("pipeline / bare", ratio(figures.rates, "pipeline", "bare"), TARGET)
    print_start(figures.start_s)
    return _print_memory(arguments.images)


def _print_memory(smallest: int) -> int:
    """1 when memory at 16 times the images exceeds MOST times that at once."""
    print("memory, images of 3 x 64 x 64 (12 KiB each), 32 a part; MiB without shared pages:")
    with tempfile.TemporaryDirectory() as folder:
        found = peaks_by_size(lambda n: measure_memory(Path(folder) / str(n), n, 32), smallest, "images")
    grown = (found[-1].driver_mib - found[0].driver_mib) * MIB / 1024 / (15 * smallest)
    growth = memory_ratio(found)
    print(f"  the driver grows by {grown:.1f} KiB an image; its features are {4 * WIDTH / 1024:.1f} KiB")
    print(f"  16 times the images take {growth:.2f} times the memory, at most {MOST:g} allowed")
    return int(growth > MOST)


if __name__ == "__main__":
    sys.exit(main())
