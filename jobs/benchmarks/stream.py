"""Images a second of training while encoding, beside encoding once and training from the cache.

Everything runs on this machine's CPUs in one Ray cluster: one encoding actor, one training worker. Rates are
steady ones, between the first and the last finished part or logged step; Ray's starts are not in them.
"""

import argparse
import json
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import Rates, interleave, machine, print_rates, quietly, ratio, simulated_run, steady_rate

from morphoray.config import RunConfig
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.encode import encode
from morphoray.pipelines.train import train


@dataclass(frozen=True)
class Figures:
    """rates: images/s of encode, cached and streamed, round by round; an image is one view of one crop."""

    rates: Rates
    images: int
    cache_bytes: int
    source_bytes: int

    @property
    def pays_from(self) -> float:
        """The median over rounds of the epochs from which the cache pays."""
        rounds = zip(*(self.rates[name] for name in ("encode", "cached", "streamed")), strict=True)
        return statistics.median(pays_from(*each) for each in rounds)


def pays_from(encode_rate: float, cached_rate: float, streamed_rate: float) -> float:
    """Epochs N from which encoding once is faster: 1/E + N/T < N/S, so N > (1/E) / (1/S - 1/T).

    infinity when streaming is as fast as training from the cache.
    """
    lost = 1 / streamed_rate - 1 / cached_rate
    return 1 / encode_rate / lost if lost > 0 else math.inf


def measure(
    folder: Path, sites: int, sites_per_part: int, epochs: int, repeats: int, **training: Any
) -> Figures:
    """Encode and train `epochs` epochs of `sites` simulated sites both ways, `repeats` times in turns."""
    encoding = {"sites_per_part": sites_per_part, "splits": ["train"], "cpus_per_actor": 0.5}
    config = simulated_run(folder / "run", sites, encode=encoding, training=training)
    images = sites * config.image.crops * len(config.encode.views)
    size = config.training.batch_size
    steps = {"max_steps": epochs * images // size, "log_every": 1, "checkpoint_every": epochs * images}
    runs = [0]

    def fresh(mode: str) -> RunConfig:
        settings = config.training.model_copy(update={**steps, "mode": mode, "schedule": "constant"})
        run_dir = str(folder / f"{mode}-{runs[0]}")
        where = {"run_dir": run_dir, "data_dir": config.run_dir}
        return config.model_copy(update={**where, "training": settings})

    def encoded() -> float:
        runs[0] += 1
        data = folder / "run" / "latents"
        if data.exists():
            data.rename(folder / f"latents-{runs[0]}")
        quietly(lambda: encode(config))
        return steady_rate(list(data.glob("part-*.counts.json")), sites_per_part)[0] * images / sites

    def trained(mode: str) -> float:
        target = fresh(mode)
        quietly(lambda: train(target))
        return _steady_images(Path(target.run_dir))

    with connected():
        measures = {
            "encode": encoded,
            "cached": lambda: trained("latents"),
            "streamed": lambda: trained("stream"),
        }
        rates = interleave(measures, repeats, budget_s=300)
    cache = sum(path.stat().st_size for path in (folder / "run" / "latents").glob("*.parquet"))
    drawn = [path.stat().st_size for path in (folder / "run" / "source").rglob("*.png")]
    channels = 6
    return Figures(rates, images, cache, sites * channels * sum(drawn) // len(drawn))


def _steady_images(run: Path) -> float:
    """Images a second between a run's first logged step and its last."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = records[0], records[-1]
    # images_per_s is the mean since the start, step x batch / seconds: this is seconds / batch of each.
    since = [record["step"] / record["images_per_s"] for record in (first, last)]
    return float((last["step"] - first["step"]) / (since[1] - since[0]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=96)
    parser.add_argument("--sites-per-part", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), **vars(arguments))
    print(
        f"stream: the demo's settings (4 crops of 64 px, 2 views, tiny preset, batch 32), {arguments.sites} "
        f"sites = {figures.images} images an epoch, {arguments.epochs} epochs"
    )
    print_rates(figures.rates, "images/s")
    print(f"  streamed / cached: {ratio(figures.rates, 'streamed', 'cached'):.3f}")
    print(f"  encode / cached: {ratio(figures.rates, 'encode', 'cached'):.2f}")
    print(f"  the cache pays from epoch {figures.pays_from:.2f} on (inf: streaming is as fast)")
    print(
        f"  cache: {figures.cache_bytes / figures.images:.0f} bytes an image, "
        f"{figures.cache_bytes / figures.source_bytes:.2f} of the source's files"
    )


if __name__ == "__main__":
    main()
