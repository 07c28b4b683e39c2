"""Sites a second of the encode stage beside a bare loop over images in memory, and where the time goes.

The pipeline's steady rate is taken between its first and its last finished part; what comes before, the start
of Ray's workers and of the codec, is printed apart.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from _common import (
    Rates,
    TimedStage,
    images_of_sites,
    interleave,
    machine,
    print_rates,
    print_start,
    print_target,
    ratio,
    seconds_of,
    simulated_run,
    stage_arguments,
)

from morphoray.config import RunConfig
from morphoray.datasets.reading import read_raw
from morphoray.diffusion.bundle import vae_for
from morphoray.diffusion.codec import encode_posterior
from morphoray.imaging.crops import VIEWS
from morphoray.pipelines.cluster import connected, use_threads
from morphoray.pipelines.codecs import local_bundle_config
from morphoray.pipelines.encode import (
    EncodePart,
    encode,
    read_part,
    read_plan,
    write_part,
)
from morphoray.pipelines.layout import dataset_of, layout_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.pipelines.stream import pack

TARGET = 0.9


@dataclass(frozen=True)
class Figures:
    """rates: sites/s of both, round by round; start_s: until the first part begins; stages: ms a site."""

    rates: Rates
    start_s: list[float]
    stages_ms: dict[str, float]


def measure(folder: Path, parts: int, sites_per_part: int, repeats: int) -> Figures:
    """Encode `parts` x `sites_per_part` sites `repeats` times through the pipeline, in turn with the loop."""
    encoding = {"sites_per_part": sites_per_part, "splits": None}
    config = simulated_run(folder / "run", parts * sites_per_part, encode=encoding)
    images = _images_in_memory(config, sites_per_part)
    codec = vae_for(local_bundle_config(config), config.seed)
    use_threads(config.encode.cpus_per_actor)
    timed = TimedStage(sites_per_part)

    def bare() -> float:
        return sites_per_part / seconds_of(
            lambda: [encode_posterior(codec, view, config.encode.batch_size) for view in images]
        )

    def pipeline() -> float:
        data = folder / f"data-{len(timed.start_s)}"
        target = _elsewhere(config, data)
        return timed.rate(lambda: encode(target), data / "latents", "part-*.counts.json")

    bare()
    with connected():
        rates = interleave({"bare": bare, "pipeline": pipeline}, repeats)
    return Figures(rates, timed.start_s, _stages(config, sites_per_part))


def _images_in_memory(config: RunConfig, sites: int) -> list[np.ndarray]:
    """What the pipeline feeds the codec for the first `sites` sites: uint8 (crops, K, R, R) a view."""
    images = images_of_sites(config, sites)
    return [VIEWS[view](images) for view in config.encode.views]


def _elsewhere(config: RunConfig, folder: Path) -> RunConfig:
    """The same run with a data_dir of its own, so that nothing is encoded already."""
    target = config.model_copy(update={"data_dir": str(folder)})
    storage = storage_from(config.storage)
    storage.write_bytes(layout_of(target).sites, storage.read_bytes(layout_of(config).sites))
    return target


def _stages(config: RunConfig, sites: int) -> dict[str, float]:
    """Milliseconds a site of each step of one part, in this process, one after the other, on one thread."""
    plan = replace(read_plan(config), threads=1)
    storage, table = dataset_of(config)[2], read_sites(config).slice(0, sites)
    uris = table["channel_uris"].to_pylist()
    raw = [read_raw(each, storage) for each in uris]
    part = {"part": 0, "sites": pack(table)}
    read = read_part(part, plan, storage)
    actor = EncodePart(config)
    encoded = actor(read)
    images = _images_in_memory(config, sites)
    codec = vae_for(local_bundle_config(config), config.seed)
    size = config.encode.batch_size
    seconds = {
        "files": seconds_of(lambda: [storage.read_bytes(uri) for site in uris for uri in site]),
        "files and PNG": seconds_of(lambda: [read_raw(each, storage) for each in uris]),
        "map": seconds_of(lambda: [plan.mapping.apply(pixels) for pixels in raw]),
        "reading task": seconds_of(lambda: read_part(part, plan, storage)),
        "VAE": seconds_of(lambda: [encode_posterior(codec, each, size) for each in images]),
        "encoding actor": seconds_of(lambda: actor(read)),
        "writing task": seconds_of(
            lambda: write_part(encoded, layout_of(config), storage_from(config.storage), "benchmark")
        ),
    }
    return {name: 1e3 * value / sites for name, value in seconds.items()}


def main() -> None:
    """Measure and print."""
    arguments = stage_arguments(__doc__, "sites", parts=12, per_part=48)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.parts, arguments.per_part, arguments.repeats)
    print(
        "encode: the demo's settings (6 x 128 x 128 sites, 4 crops of 64 px, 2 views, tiny codec), "
        f"{arguments.parts} parts of {arguments.per_part} sites"
    )
    print_rates(figures.rates, "sites/s")
    print_target("pipeline / bare", ratio(figures.rates, "pipeline", "bare"), TARGET)
    print_start(figures.start_s)
    print("where the time of one part goes, in one process:")
    for name, value in figures.stages_ms.items():
        print(f"  {name:15s} {value:7.2f} ms a site")


if __name__ == "__main__":
    main()
