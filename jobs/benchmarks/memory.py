"""Peak memory of `morphoray encode` at 1, 4 and 16 times the input: it must not grow with the input.

Each size is one run of the command, watched from outside. Of every process in its tree what counts is the
resident memory less its shared-memory pages (VmRSS - RssShmem): Ray's object store is mapped by every worker
and would otherwise count many times, so it is told apart, once, as the largest such mapping. Fails when the
whole at 16 times exceeds 1.5 times that at once.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from _common import Peaks, machine, memory_ratio, peaks_by_size, peaks_of, simulated_run

MOST = 1.5


def measure(folder: Path, sites: int, sites_per_part: int) -> Peaks:
    """Encode `sites` small sites by the command and watch its processes. Raises CalledProcessError."""
    config = simulated_run(
        folder,
        sites,
        dataset={"size": 64, "channels": 3},
        image={"resolution": 64, "crops": 1},
        encode={"sites_per_part": sites_per_part, "views": ["identity"], "splits": None},
    )
    command = [sys.executable, "-m", "morphoray", "encode", f"{config.run_dir}/config.yaml"]
    return peaks_of(command, folder / "log.txt", "EncodePart")


def main() -> int:
    """Measure and print; 1 when memory grows with the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=64, help="of the smallest input")
    parser.add_argument("--sites-per-part", type=int, default=16)
    arguments = parser.parse_args()
    print(machine(), flush=True)
    print(f"encode, 3 x 64 x 64 sites, {arguments.sites_per_part} sites a part; MiB without shared pages:")
    with tempfile.TemporaryDirectory() as folder:
        found = peaks_by_size(
            lambda sites: measure(Path(folder) / str(sites), sites, arguments.sites_per_part),
            arguments.sites,
            "sites",
        )
    growth = memory_ratio(found)
    print(f"  16 times the input takes {growth:.2f} times the memory, at most {MOST:g} allowed")
    return int(growth > MOST)


if __name__ == "__main__":
    sys.exit(main())
