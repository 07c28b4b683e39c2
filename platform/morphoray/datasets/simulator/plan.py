"""What a simulated tree holds: options, the perturbations with their phenotypes, and one row a site."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from morphoray.datasets.options import SelectionOptions
from morphoray.datasets.simulator import effects, library
from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype
from morphoray.errors import ConfigError
from morphoray.perturbations.base import Perturbation
from morphoray.seeds import numpy_generator

VERSION = 1  # raised when the same options draw other pixels

# The inner wells of a 384-well plate, as RxRx1 uses them: B02 to O23, 308 of them.
WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24))


class SimulatedOptions(SelectionOptions):
    """Options of the `simulated` dataset; its defaults are the demo's."""

    seed: int = 0
    kind: Literal["compound", "gene"] = "compound"
    perturbations: tuple[str, ...] | Literal["all"] | None = Field(
        None, description="names of the library's compounds or genes; null: fourteen with the control"
    )
    doses_um: tuple[float, ...] = Field((10.0,), description="compounds; several: ids are <name>@<dose>")
    held_out_perturbations: tuple[str, ...] | None = Field(
        None, description="names or ids; null: an analog in each of three mechanisms"
    )
    experiments: int = Field(4, ge=1, le=99)
    held_out_experiments: int = Field(1, ge=0, description="the last so many are held-out batches")
    plates: int = Field(1, ge=1, le=99)
    wells_per_perturbation: int = Field(2, ge=1, description="on every plate; the control has as many")
    sites_per_well: int = Field(8, ge=1, le=99)
    size: int = Field(128, ge=32, multiple_of=8)
    nucleus_diameter_px: float = Field(18.0, ge=6)
    channels: Literal[3, 5, 6] = 6
    bit_depth: Literal[8, 16] = 8
    effect_strength: float = Field(1.0, ge=0)
    batch_strength: float = Field(1.0, ge=0)

    def tree(self) -> dict[str, Any]:
        """The options that the tree depends on: all but those of what is taken from it."""
        return self.model_dump(mode="json", exclude=set(SelectionOptions.model_fields))


@dataclass(frozen=True)
class Treatment:
    """A perturbation, its phenotype, and whether it is held out."""

    perturbation: Perturbation
    phenotype: Phenotype
    held_out: bool


@dataclass(frozen=True)
class Site:
    """One field to draw."""

    site_id: str
    experiment: str
    plate: str
    well: str
    site: str
    treatment: Treatment
    batch: BatchEffect
    key: tuple[str | int, ...]


def plan_treatments(options: SimulatedOptions) -> list[Treatment]:
    """The control and every perturbation at every dose.

    Raises ConfigError naming what the library lacks, or an option that can't be.
    """
    known = library.COMPOUNDS if options.kind == "compound" else effects.gene_table()
    names = _names(options, tuple(known))
    found = _compounds(options, names) if options.kind == "compound" else _genes(options, names)
    control = Perturbation(library.CONTROL, "control", is_control=True)
    unseen = _unseen(options, [item for item, _ in found])
    pairs = [(control, Phenotype()), *found]
    return [Treatment(item, phenotype, item.perturbation_id in unseen) for item, phenotype in pairs]


def _names(options: SimulatedOptions, known: tuple[str, ...]) -> tuple[str, ...]:
    if options.perturbations == "all":
        return known
    if options.perturbations is None:
        return library.DEFAULT_COMPOUNDS if options.kind == "compound" else library.DEFAULT_GENES
    unknown = [name for name in options.perturbations if name not in known]
    if unknown or not options.perturbations:
        raise ConfigError(f"dataset.perturbations: found {unknown}; the simulator has {', '.join(known)}")
    return tuple(dict.fromkeys(options.perturbations))


def _compounds(options: SimulatedOptions, names: tuple[str, ...]) -> list[tuple[Perturbation, Phenotype]]:
    doses = options.doses_um
    if not doses or any(not 0 < dose < math.inf for dose in doses) or len(set(doses)) < len(doses):
        raise ConfigError(f"dataset.doses_um: found {list(doses)}, expected distinct positive numbers")
    pairs = list(itertools.product(names, doses))
    smiles = [library.COMPOUNDS[name].smiles for name, _ in pairs]
    drawn = effects.compound_phenotypes(smiles, [dose for _, dose in pairs], options.effect_strength)
    treatments = []
    for (name, dose), text, phenotype in zip(pairs, smiles, drawn, strict=True):
        name_and_dose = name if len(doses) == 1 else f"{name}@{dose:g}"
        moa = effects.FAMILY_MECHANISM[library.COMPOUNDS[name].family]
        item = Perturbation(name_and_dose, "compound", smiles=text, concentration_um=dose, moa=moa)
        treatments.append((item, phenotype))
    return treatments


def _genes(options: SimulatedOptions, names: tuple[str, ...]) -> list[tuple[Perturbation, Phenotype]]:
    pathway = {gene: pathway for pathway, genes in library.PATHWAYS.items() for gene in genes}
    drawn = effects.gene_phenotypes(names, options.effect_strength)
    return [
        (Perturbation(name, "gene", gene=name, moa=effects.FAMILY_MECHANISM[pathway[name]]), phenotype)
        for name, phenotype in zip(names, drawn, strict=True)
    ]


def _unseen(options: SimulatedOptions, items: list[Perturbation]) -> set[str]:
    """The held-out ids; a name stands for all its doses."""
    ids = {item.perturbation_id for item in items}
    by_name: dict[str, set[str]] = {}
    for name in ids:
        by_name.setdefault(name.partition("@")[0], set()).add(name)
    if options.held_out_perturbations is None:
        compounds = options.kind == "compound"
        default = library.DEFAULT_UNSEEN_COMPOUNDS if compounds else library.DEFAULT_UNSEEN_GENES
        wanted = tuple(name for name in default if name in by_name)
    else:
        wanted = options.held_out_perturbations
    absent = [name for name in wanted if name not in by_name and name not in ids]
    if absent:
        raise ConfigError(
            f"dataset.held_out_perturbations: found {absent}; this tree has {', '.join(sorted(ids))}"
        )
    return {match for name in wanted for match in by_name.get(name, {name})}


def experiment_names(options: SimulatedOptions) -> tuple[list[str], list[str]]:
    """All experiments, and the held-out ones: the last. Raises ConfigError when none is left to train on."""
    names = [f"SIM-{number:02d}" for number in range(1, options.experiments + 1)]
    if options.held_out_experiments >= options.experiments:
        raise ConfigError(
            f"dataset.held_out_experiments is {options.held_out_experiments} of {options.experiments} "
            "experiments, expected at least one to train on"
        )
    return names, names[len(names) - options.held_out_experiments :]


def plan_sites(options: SimulatedOptions, treatments: list[Treatment]) -> Iterator[Site]:
    """Every field, plate by plate; each plate has its own random arrangement of the wells.

    Raises ConfigError when a plate has too few wells.
    """
    used = len(treatments) * options.wells_per_perturbation
    if used > len(WELLS):
        raise ConfigError(
            f"{len(treatments)} perturbations x {options.wells_per_perturbation} wells_per_perturbation need "
            f"{used} wells a plate, and it has {len(WELLS)}. Lower one of them, or use more experiments."
        )
    for experiment in experiment_names(options)[0]:
        for plate in range(1, options.plates + 1):
            rng = numpy_generator("plate-layout", options.seed, experiment, plate)
            order = rng.permutation(len(WELLS))[:used]
            for slot, place in enumerate(order):
                treatment = treatments[slot // options.wells_per_perturbation]
                yield from _well(options, experiment, str(plate), WELLS[place], treatment)


def _well(
    options: SimulatedOptions, experiment: str, plate: str, well: str, treatment: Treatment
) -> Iterator[Site]:
    batch = effects.batch_effect(options.seed, experiment, plate, well, options.batch_strength)
    for site in range(1, options.sites_per_well + 1):
        site_id = f"{experiment}_{plate}_{well}_{site}"
        key = (options.seed, site_id)
        yield Site(site_id, experiment, plate, well, str(site), treatment, batch, key)
