"""Seconds and peak memory of `morphoray data import rxrx1` of a metadata.csv with RxRx1's columns, no images.

The table has RxRx1's 51 experiments, four plates each of 308 wells with two sites; more rows repeat them
under other names. The command's whole start is part of what is measured: about 150 MiB and a second or two.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _common import machine

HEADER = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
EXPERIMENTS = {"HUVEC": 24, "HEPG2": 11, "RPE": 11, "U2OS": 5}
WELLS = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]
WATCH = """
import json, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump({"cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}, file)
sys.exit(status)
"""


@dataclass(frozen=True)
class Cost:
    """Of one command: processor seconds, wall seconds, and the peak of its resident memory."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def metadata(rows: int) -> Iterator[str]:
    """The lines of metadata.csv: the header and `rows` sites."""
    yield HEADER
    yield from itertools.islice(_sites(), rows)


def _sites() -> Iterator[str]:
    for again in itertools.count():
        for cell_type, number in EXPERIMENTS.items():
            names = [f"{cell_type}-{again * number + index:02d}" for index in range(1, number + 1)]
            yield from _of_cell_type(cell_type, names)


def _of_cell_type(cell_type: str, names: list[str]) -> Iterator[str]:
    for name, plate, (index, well), site in itertools.product(names, "1234", enumerate(WELLS), "12"):
        # One untreated well, 30 positive controls that every plate has, 277 siRNAs of the plate's own.
        kind = "negative_control" if index == 0 else "positive_control" if index <= 30 else "treatment"
        sirna = "EMPTY" if index == 0 else f"s{index if index <= 30 else int(plate) * 1000 + index}"
        yield (
            f"{name}_{plate}_{well}_{site},{name}_{plate}_{well},{cell_type},train,{name},{plate},{well},"
            f"{site},{kind},{sirna},{index}"
        )


def measure(folder: Path, rows: int) -> Cost:
    """What importing a table of `rows` takes. Raises CalledProcessError if the command fails."""
    source = folder / f"rxrx1-{rows}"
    source.mkdir()
    with (source / "metadata.csv").open("w") as file:
        file.writelines(f"{line}\n" for line in metadata(rows))
    command = [sys.executable, "-m", "morphoray", "data", "import", "rxrx1", str(source), f"{source}/run"]
    report = source / "cost.json"
    start = time.perf_counter()
    # A child's peak starts at its parent's (Linux keeps it across exec), so a small process stands between.
    watched = [sys.executable, "-S", "-c", WATCH, str(report), *command]
    subprocess.run([*watched, "--set", "dataset.check_files=false"], check=True)
    wall = time.perf_counter() - start
    return Cost(wall_s=wall, **json.loads(report.read_text()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[125_510, 1_000_000])
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        costs = {rows: measure(Path(folder), rows) for rows in arguments.rows}
    print("rows        CPU s    wall s   peak MiB")
    for rows, cost in costs.items():
        print(f"{rows:<10,} {cost.cpu_s:6.1f} {cost.wall_s:9.1f} {cost.peak_mib:10.0f}")


if __name__ == "__main__":
    main()
