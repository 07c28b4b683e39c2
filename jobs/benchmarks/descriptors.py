"""Molecules a second of the encoders of compounds beside bare RDKit on the same molecules.

The molecules are every so many of the NCI set that comes with RDKit (NCI/first_5K.smi). `rdkit` is our
encoder of the 200 descriptors as a screen calls it, of standardised SMILES and as given; `bare` parses and
runs RDKit's own MolecularDescriptorCalculator of the same names. `morgan` and `bare morgan` are the same for
fingerprints. Then as many processes as there are cores, each with a share, as a screen's actors have.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from _common import Rates, interleave, machine, print_rates, print_target, ratio

from morphoray.perturbations import find_encoder
from morphoray.perturbations.base import Encoder, Perturbation
from morphoray.perturbations.rdkit import DESCRIPTORS
from morphoray.storage import Storage

TARGET = 0.9


def molecules(count: int) -> list[str]:
    """SMILES, evenly spaced over those that RDKit can read."""
    from rdkit import Chem, RDConfig, rdBase

    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    quiet = rdBase.BlockLogs()
    lines = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    spaced = [lines[index * len(lines) // count] for index in range(count)]
    readable = [text for text in spaced if Chem.MolFromSmiles(text) is not None]
    del quiet
    return readable


def encoders(smiles: Sequence[str]) -> dict[str, Encoder]:
    """Ours, by the name of their measure. The descriptors are all 200, kept whatever their deviation."""
    items = [Perturbation(text, "compound", text) for text in smiles[:20]]
    found = {}
    for name, encoder, options in (
        ("rdkit", "rdkit", {}),
        ("as given", "rdkit", {"standardise": False}),
        ("morgan", "morgan", {}),
        ("morgan as given", "morgan", {"standardise": False}),
    ):
        kind = find_encoder(encoder)
        found[name] = kind.fit(kind.options(**options), items, Storage())
    for name in ("rdkit", "as given"):
        state = found[name].state() | {"names": DESCRIPTORS, "mean": [0.0] * 200, "std": [1.0] * 200}
        found[name] = find_encoder("rdkit").load(state)
    return found


def bare_descriptors(smiles: Sequence[str]) -> None:
    """RDKit's own calculator of the same descriptors."""
    from rdkit import Chem
    from rdkit.ML.Descriptors.MoleculeDescriptors import MolecularDescriptorCalculator

    calculator: Any = MolecularDescriptorCalculator
    calculate = calculator(DESCRIPTORS).CalcDescriptors
    np.array([calculate(Chem.MolFromSmiles(text)) for text in smiles], dtype=np.float32)


def bare_morgan(smiles: Sequence[str], standardise: bool = False) -> None:
    """RDKit's own generator, of the parent by RDKit's own functions where `standardise` is true."""
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator
    from rdkit.Chem.MolStandardize import rdMolStandardize

    largest, uncharger = rdMolStandardize.LargestFragmentChooser(), rdMolStandardize.Uncharger()
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    found = []
    for text in smiles:
        molecule = Chem.MolFromSmiles(text)
        if standardise:
            parent = uncharger.uncharge(largest.choose(molecule))
            molecule = Chem.MolFromSmiles(Chem.MolToSmiles(parent))
        found.append(generator.GetFingerprintAsNumPy(molecule))
    np.array(found, dtype=np.float32)


def rate(work: Callable[[Sequence[str]], object], smiles: Sequence[str]) -> float:
    """Molecules a CPU second of this process: other processes on the machine change it little."""
    start = time.process_time()
    work(smiles)
    return len(smiles) / (time.process_time() - start)


def encode(encoder: Encoder, smiles: Sequence[str]) -> None:
    """Vectors of molecules, all of which have one. Raises AssertionError otherwise."""
    encoded = encoder.encode([Perturbation(text, "compound", text) for text in smiles])
    assert not any(encoded.reasons), encoded.reasons


def measure(count: int, repeats: int) -> Rates:
    """Molecules a CPU second, one process."""
    smiles = molecules(count)
    ours = encoders(smiles)

    def of(name: str) -> Callable[[], float]:
        return lambda: rate(lambda texts: encode(ours[name], texts), smiles)

    return interleave(
        {
            "bare": lambda: rate(bare_descriptors, smiles),
            "rdkit": of("rdkit"),
            "as given": of("as given"),
            "bare morgan": lambda: rate(bare_morgan, smiles),
            "bare parent": lambda: rate(lambda texts: bare_morgan(texts, standardise=True), smiles),
            "morgan": of("morgan"),
            "morgan as given": of("morgan as given"),
        },
        repeats,
    )


def measure_processes(count: int, repeats: int, processes: int) -> Rates:
    """Molecules a second of wall time of `processes` at once, each with a share of the molecules."""
    smiles = molecules(count)
    ours = encoders(smiles)["rdkit"]
    shares = [smiles[number::processes] for number in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def all_shares(work: Callable[..., None], *given: object) -> float:
            start = time.perf_counter()
            for future in [pool.submit(work, *given, share) for share in shares]:
                future.result()
            return len(smiles) / (time.perf_counter() - start)

        all_shares(bare_descriptors)  # starts the processes and imports RDKit
        all_shares(encode, ours)
        return interleave(
            {"bare": lambda: all_shares(bare_descriptors), "rdkit": lambda: all_shares(encode, ours)}, repeats
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    print(machine(), flush=True)
    rates = measure(arguments.molecules, arguments.repeats)
    print("one process:")
    print_rates(rates, "molecules/CPU s")
    print_target("descriptors of standardised SMILES / bare", ratio(rates, "rdkit", "bare"), TARGET)
    print_target("descriptors of SMILES as given / bare", ratio(rates, "as given", "bare"), TARGET)
    print_target("Morgan, as given / bare", ratio(rates, "morgan as given", "bare morgan"), TARGET)
    print_target(
        "Morgan, standardised / bare with MolStandardize", ratio(rates, "morgan", "bare parent"), TARGET
    )
    rates = measure_processes(arguments.molecules, arguments.repeats, arguments.processes)
    print(f"{arguments.processes} processes:")
    print_rates(rates, "molecules/s")
    print_target("descriptors of standardised SMILES / bare", ratio(rates, "rdkit", "bare"), TARGET)


if __name__ == "__main__":
    main()
