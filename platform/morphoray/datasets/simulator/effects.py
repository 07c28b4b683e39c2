"""Phenotype as a fixed smooth function of a compound and its dose, or of a gene's vector; batch effects.

A perturbation's place v in descriptor (or gene) space gives it a share of every mechanism,

    w_m(v) = K(v, c_m) / (sum_j K(v, c_j) + 0.02),    K(v, c) = exp(-|v - c|^2 / (2 s^2)),

with c_m the mean of the mechanism's family: close analogs share a mechanism, and what is far from every
family does nothing. The dose acts through a Hill curve h(dose) = dose^1.5 / (dose^1.5 + EC50^1.5), and a
parameter p of the phenotype becomes baseline_p + efficacy h sum_m w_m D_mp (of its logarithm, if it is a
ratio). EC50 and efficacy are smooth functions of v too. The mechanisms D are invented.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.library import COMPOUNDS, INACTIVE, PATHWAYS
from morphoray.datasets.simulator.phenotype import PARAMETERS, BatchEffect, Phenotype, random_batch
from morphoray.errors import DataError
from morphoray.perturbations.rdkit import descriptors
from morphoray.seeds import numpy_generator

Vectors = npt.NDArray[np.float64]

# Standardised by their mean and standard deviation over the library, frozen here (name, mean, std).
DESCRIPTORS: tuple[tuple[str, float, float], ...] = (
    ("MolLogP", 1.274, 1.987),
    ("TPSA", 85.263, 26.549),
    ("MolMR", 80.446, 19.951),
    ("FractionCSP3", 0.414, 0.271),
    ("NumAromaticRings", 1.323, 0.894),
    ("NumHDonors", 2.0, 1.164),
    ("NumHAcceptors", 4.581, 1.454),
    ("NumAliphaticRings", 1.548, 1.387),
    ("NumRotatableBonds", 2.613, 2.043),
    ("HallKierAlpha", -1.873, 0.395),
    ("fr_halogen", 0.387, 0.549),
    ("fr_sulfonamd", 0.161, 0.368),
)
COMPOUND_REACH = 1.1  # s for compounds: families lie 2.2 to 7.9 apart, members within 1.5 (one at 3.0)
GENE_WIDTH, GENE_SPREAD, GENE_REACH = 16, 0.25, 1.2
NOTHING = 0.02
HILL = 1.5
TYPICAL_EC50_UM = 2.0

# What a full effect does: ratios of parameters that are ratios, else differences.
MECHANISMS: dict[str, dict[str, float]] = {
    "actin-disruptor": {
        "cell_count": 0.65, "cell_spread": 0.62, "cell_irregularity": 2.2, "actin_fibres": -0.42,
        "actin_aggregates": 0.85, "actin_intensity": 1.5, "actin_cortex": 0.3, "multinucleated": 0.2,
        "er_intensity": 0.75,
    },
    "dna-damage": {
        "cell_count": 0.45, "nuclear_area": 2.1, "cell_spread": 1.4, "nucleoli": 0.45, "dna_intensity": 0.7,
        "chromatin_contrast": 1.9, "chromatin_scale": 0.35, "rna_intensity": 1.5, "actin_fibres": 0.2,
    },
    "mitotic-arrest": {
        "condensed": 0.55, "cell_count": 0.7, "dna_intensity": 1.25, "fragmented": 0.05, "cell_spread": 0.9,
        "er_intensity": 0.8, "mito_intensity": 0.8,
    },
    "microtubule-stabiliser": {
        "multinucleated": 0.75, "nuclear_irregularity": 2.6, "nuclear_area": 0.72, "cell_count": 0.7,
        "tubulin_bundling": 0.6, "tubulin_intensity": 1.6, "mito_clumping": 0.7, "mito_intensity": 2.2,
        "fragmented": 0.08, "golgi_dispersion": 0.4,
    },
    "er-stress": {
        "er_intensity": 2.0, "er_granularity": 0.5, "golgi_dispersion": 0.6, "golgi_intensity": 1.5,
        "vacuoles": 0.6, "mito_intensity": 0.6, "cell_count": 0.85, "rna_intensity": 0.8,
        "tubulin_intensity": 0.75,
    },
    "transcription-block": {
        "cell_elongation": 2.2, "alignment": 0.75, "nuclear_elongation": 1.4, "actin_fibres": 0.5,
        "actin_intensity": 1.9, "rna_intensity": 0.45, "nucleoli": -0.5, "er_intensity": 0.5,
        "cell_count": 0.75,
    },
}  # fmt: skip

FAMILY_MECHANISM: dict[str, str] = {
    "statin": "actin-disruptor",
    "fluoroquinolone": "dna-damage",
    "benzodiazepine": "mitotic-arrest",
    "corticosteroid": "microtubule-stabiliser",
    "sulfonamide": "er-stress",
    "nucleoside": "transcription-block",
    "rho": "actin-disruptor",
    "dna-damage": "dna-damage",
    "mitosis": "mitotic-arrest",
    "microtubule": "microtubule-stabiliser",
    "er-stress": "er-stress",
    "tgf-beta": "transcription-block",
    INACTIVE: INACTIVE,
}


def _directions() -> Vectors:
    """(7, P): each mechanism's shift of every parameter (logarithms for ratios); the last is inactive."""
    rows = np.zeros((len(MECHANISMS) + 1, len(PARAMETERS)))
    for row, direction in zip(rows, MECHANISMS.values(), strict=False):
        for column, (name, parameter) in enumerate(PARAMETERS.items()):
            if name in direction:
                row[column] = math.log(direction[name]) if parameter.log else direction[name]
    return rows


DIRECTIONS = _directions()
MECHANISM_NAMES = (*MECHANISMS, INACTIVE)


def compound_vectors(smiles: Sequence[str]) -> Vectors:
    """(N, 12) standardised descriptors; a descriptor that is missing is 0, the library's mean.

    Raises DataError naming a SMILES that can't be read.
    """
    values, reasons = descriptors(smiles, [name for name, _, _ in DESCRIPTORS])
    bad = [reason for reason in reasons if reason is not None]
    if bad:
        raise DataError(f"the simulator found {len(bad)} of {len(smiles)} SMILES unusable: {bad[0]}")
    mean = np.array([mean for _, mean, _ in DESCRIPTORS])
    std = np.array([std for _, _, std in DESCRIPTORS])
    return np.asarray(np.nan_to_num((values - mean) / std, nan=0.0))


@lru_cache(maxsize=1)
def _compound_centroids() -> Vectors:
    library = list(COMPOUNDS.values())
    vectors = compound_vectors([compound.smiles for compound in library])
    owners = [FAMILY_MECHANISM[compound.family] for compound in library]
    return np.stack([vectors[[o == name for o in owners]].mean(0) for name in MECHANISM_NAMES])


@lru_cache(maxsize=1)
def gene_table() -> dict[str, Vectors]:
    """Every gene's vector (16,) float64: its pathway's centre, of norm about 4, plus noise of sd 0.25."""
    table = {}
    for pathway, genes in PATHWAYS.items():
        centre = _gene_centre(pathway)
        for gene in genes:
            table[gene] = centre + numpy_generator("gene", gene).normal(0, GENE_SPREAD, GENE_WIDTH)
    return table


def _gene_centre(pathway: str) -> Vectors:
    return np.asarray(numpy_generator("pathway", pathway).normal(0, 1, GENE_WIDTH))


@lru_cache(maxsize=1)
def _gene_centroids() -> Vectors:
    by_mechanism = {FAMILY_MECHANISM[pathway]: _gene_centre(pathway) for pathway in PATHWAYS}
    return np.stack([by_mechanism[name] for name in MECHANISM_NAMES])


def mechanism_shares(vectors: Vectors, kind: str) -> Vectors:
    """(N, 7): w_m(v) of the module's docstring, in the order of MECHANISM_NAMES; rows sum to at most 1."""
    centroids, reach = (
        (_compound_centroids(), COMPOUND_REACH) if kind == "compound" else (_gene_centroids(), GENE_REACH)
    )
    squared = ((vectors[:, None] - centroids[None]) ** 2).sum(-1)
    kernel = np.exp(-squared / (2 * reach**2))
    return np.asarray(kernel / (kernel.sum(1, keepdims=True) + NOTHING))


def ec50_um(vectors: Vectors) -> Vectors:
    """(N,) half-effective concentration, 1 to 4 micromolar, smooth in the vector."""
    weights = numpy_generator("potency", vectors.shape[1]).normal(0, 0.15, vectors.shape[1])
    return np.asarray(TYPICAL_EC50_UM * 2 ** np.tanh(vectors @ weights))


def efficacy(vectors: Vectors) -> Vectors:
    """(N,) the largest effect, 0.85 to 1.15, smooth in the vector."""
    weights = numpy_generator("efficacy", vectors.shape[1]).normal(0, 0.15, vectors.shape[1])
    return np.asarray(1 + 0.15 * np.tanh(vectors @ weights))


def response(vectors: Vectors, doses_um: Vectors) -> Vectors:
    """(N,) how much of a full effect, 0 to 1.15: rises with the dose. An infinite dose is efficacy itself."""
    half = ec50_um(vectors)
    with np.errstate(divide="ignore"):
        hill = 1 / (1 + (half / np.asarray(doses_um, dtype=np.float64)) ** HILL)
    return np.asarray(efficacy(vectors) * hill)


def phenotypes(vectors: Vectors, doses_um: Vectors, kind: str, strength: float = 1.0) -> list[Phenotype]:
    """The phenotype of each row of vectors (N, width) at its dose (N,); `kind` is compound or gene."""
    shift = mechanism_shares(vectors, kind) @ DIRECTIONS
    return [shifted(row) for row in strength * response(vectors, doses_um)[:, None] * shift]


def shifted(shift: npt.NDArray[Any]) -> Phenotype:
    """The baseline moved by (P,) shifts in PARAMETERS' order, kept in each parameter's range."""
    values = {}
    for (name, parameter), by in zip(PARAMETERS.items(), shift, strict=True):
        moved = parameter.baseline * math.exp(by) if parameter.log else parameter.baseline + float(by)
        values[name] = min(max(moved, parameter.low), parameter.high)
    return Phenotype(**values)


def compound_phenotypes(
    smiles: Sequence[str], doses_um: Sequence[float], strength: float = 1.0
) -> list[Phenotype]:
    """The phenotype that each compound causes at its dose. Raises DataError naming a bad SMILES."""
    return phenotypes(compound_vectors(smiles), np.asarray(doses_um, dtype=np.float64), "compound", strength)


def gene_phenotypes(genes: Sequence[str], strength: float = 1.0) -> list[Phenotype]:
    """The phenotype of each gene's knock-down. Raises DataError naming an unknown gene."""
    table = gene_table()
    unknown = [gene for gene in genes if gene not in table]
    if unknown:
        raise DataError(f"the simulator has no gene {unknown[0]!r}; it has {', '.join(table)}")
    vectors = np.stack([table[gene] for gene in genes])
    return phenotypes(vectors, np.full(len(genes), np.inf), "gene", strength)


def batch_effect(seed: int, experiment: str, plate: str, well: str, strength: float = 1.0) -> BatchEffect:
    """What an experiment, its plate (a third as strong) and its well (a tenth) do to an image."""
    parts = [
        random_batch(numpy_generator("batch", seed, *key), strength * share)
        for key, share in (
            ((experiment,), 1.0),
            ((experiment, plate), 0.33),
            ((experiment, plate, well), 0.1),
        )
    ]
    neutral = BatchEffect()

    def ratio(values: Sequence[float], middle: float) -> float:
        return middle * math.prod(value / middle for value in values)

    gains = zip(*(part.stain_gain for part in parts), strict=True)
    backgrounds = zip(*(part.background for part in parts), neutral.background, strict=True)
    return BatchEffect(
        stain_gain=tuple(math.prod(values) for values in gains),
        background=tuple(ratio(values[:-1], values[-1]) for values in backgrounds),
        blur_px=min(ratio([part.blur_px for part in parts], neutral.blur_px), 2.0),
        illumination=parts[0].illumination,
        illumination_centre=parts[1].illumination_centre,
        haze=min(max(sum(part.haze - neutral.haze for part in parts) + neutral.haze, 0.05), 0.6),
        shot_noise=ratio([part.shot_noise for part in parts], neutral.shot_noise),
        read_noise=ratio([part.read_noise for part in parts], neutral.read_noise),
        density=math.prod(part.density for part in parts),
    )
