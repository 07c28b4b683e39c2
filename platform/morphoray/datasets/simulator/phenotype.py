"""What a field is drawn from: a perturbation's phenotype and a batch's effects, with broad priors."""

import math
from dataclasses import dataclass

import numpy as np

STAINS = ("dna", "er", "actin", "rna", "mito", "golgi", "tubulin")


@dataclass(frozen=True)
class Parameter:
    """Range and baseline of one phenotype parameter; `log` ones move by ratios, the others by differences."""

    baseline: float
    low: float
    high: float
    log: bool = False


PARAMETERS: dict[str, Parameter] = {
    "cell_count": Parameter(1.0, 0.15, 1.8, log=True),
    "nuclear_area": Parameter(1.0, 0.4, 2.6, log=True),
    "nuclear_elongation": Parameter(1.28, 1.02, 2.2, log=True),
    "nuclear_irregularity": Parameter(0.035, 0.01, 0.2, log=True),
    "chromatin_contrast": Parameter(0.16, 0.04, 0.6, log=True),
    "chromatin_scale": Parameter(0.4, 0.0, 1.0),
    "nucleoli": Parameter(0.5, 0.0, 1.0),
    "multinucleated": Parameter(0.04, 0.0, 0.9),
    "condensed": Parameter(0.03, 0.0, 0.8),
    "fragmented": Parameter(0.015, 0.0, 0.6),
    "cell_spread": Parameter(1.0, 0.5, 1.7, log=True),
    "cell_elongation": Parameter(1.35, 1.0, 3.5, log=True),
    "cell_irregularity": Parameter(0.10, 0.03, 0.3, log=True),
    "alignment": Parameter(0.15, 0.0, 1.0),
    "actin_fibres": Parameter(0.45, 0.0, 1.0),
    "actin_cortex": Parameter(0.45, 0.0, 1.0),
    "actin_aggregates": Parameter(0.05, 0.0, 1.0),
    "tubulin_bundling": Parameter(0.25, 0.0, 1.0),
    "mito_clumping": Parameter(0.2, 0.0, 1.0),
    "er_granularity": Parameter(0.35, 0.05, 1.0),
    "golgi_dispersion": Parameter(0.25, 0.0, 1.0),
    "vacuoles": Parameter(0.05, 0.0, 1.0),
    "debris": Parameter(0.3, 0.0, 2.0),
    "dna_intensity": Parameter(1.0, 0.3, 3.0, log=True),
    "er_intensity": Parameter(1.0, 0.2, 3.5, log=True),
    "actin_intensity": Parameter(1.0, 0.2, 3.5, log=True),
    "rna_intensity": Parameter(1.0, 0.2, 3.5, log=True),
    "mito_intensity": Parameter(1.0, 0.2, 3.5, log=True),
    "golgi_intensity": Parameter(1.0, 0.2, 3.5, log=True),
    "tubulin_intensity": Parameter(1.0, 0.2, 3.5, log=True),
}


@dataclass(frozen=True)
class Phenotype:
    """What the cells of a field look like.

    Areas, counts, spread and intensities are ratios to an untreated field; elongations are axis ratios;
    `multinucleated`, `condensed` and `fragmented` are fractions of the cells; the others are strengths from
    0 to 1. PARAMETERS holds every baseline and range.
    """

    cell_count: float = PARAMETERS["cell_count"].baseline
    nuclear_area: float = PARAMETERS["nuclear_area"].baseline
    nuclear_elongation: float = PARAMETERS["nuclear_elongation"].baseline
    nuclear_irregularity: float = PARAMETERS["nuclear_irregularity"].baseline
    chromatin_contrast: float = PARAMETERS["chromatin_contrast"].baseline
    chromatin_scale: float = PARAMETERS["chromatin_scale"].baseline
    nucleoli: float = PARAMETERS["nucleoli"].baseline
    multinucleated: float = PARAMETERS["multinucleated"].baseline
    condensed: float = PARAMETERS["condensed"].baseline
    fragmented: float = PARAMETERS["fragmented"].baseline
    cell_spread: float = PARAMETERS["cell_spread"].baseline
    cell_elongation: float = PARAMETERS["cell_elongation"].baseline
    cell_irregularity: float = PARAMETERS["cell_irregularity"].baseline
    alignment: float = PARAMETERS["alignment"].baseline
    actin_fibres: float = PARAMETERS["actin_fibres"].baseline
    actin_cortex: float = PARAMETERS["actin_cortex"].baseline
    actin_aggregates: float = PARAMETERS["actin_aggregates"].baseline
    tubulin_bundling: float = PARAMETERS["tubulin_bundling"].baseline
    mito_clumping: float = PARAMETERS["mito_clumping"].baseline
    er_granularity: float = PARAMETERS["er_granularity"].baseline
    golgi_dispersion: float = PARAMETERS["golgi_dispersion"].baseline
    vacuoles: float = PARAMETERS["vacuoles"].baseline
    debris: float = PARAMETERS["debris"].baseline
    dna_intensity: float = PARAMETERS["dna_intensity"].baseline
    er_intensity: float = PARAMETERS["er_intensity"].baseline
    actin_intensity: float = PARAMETERS["actin_intensity"].baseline
    rna_intensity: float = PARAMETERS["rna_intensity"].baseline
    mito_intensity: float = PARAMETERS["mito_intensity"].baseline
    golgi_intensity: float = PARAMETERS["golgi_intensity"].baseline
    tubulin_intensity: float = PARAMETERS["tubulin_intensity"].baseline


@dataclass(frozen=True)
class BatchEffect:
    """What an experiment, plate or well does to an image whatever the perturbation.

    stain_gain: ratio per stain of STAINS; background: counts of 255 per stain; blur_px: PSF sigma;
    illumination: share of light lost in the corner, brightest at `illumination_centre` (y, x in 0..1);
    haze: share of the light that is out of focus; shot_noise: variance per count; read_noise: sd in counts;
    density: ratio of the cell count.
    """

    stain_gain: tuple[float, ...] = (1.0,) * len(STAINS)
    background: tuple[float, ...] = (1.5,) * len(STAINS)
    blur_px: float = 0.7
    illumination: float = 0.12
    illumination_centre: tuple[float, float] = (0.5, 0.5)
    haze: float = 0.25
    shot_noise: float = 0.05
    read_noise: float = 0.5
    density: float = 1.0


def random_phenotype(rng: np.random.Generator) -> Phenotype:
    """A phenotype from a broad prior: near the baseline, or with a few parameters anywhere in their range.

    Wide enough that a codec trained on such fields has met every effect that the simulator can make.
    """
    values = {}
    wild_share = rng.choice([0.0, 0.15, 0.4])
    for name, parameter in PARAMETERS.items():
        low, high, mid = parameter.low, parameter.high, parameter.baseline
        if parameter.log:
            low, high, mid = math.log(low), math.log(high), math.log(mid)
        if rng.random() < wild_share:
            value = rng.uniform(low, high)
        else:
            value = float(np.clip(rng.normal(mid, 0.07 * (high - low)), low, high))
        values[name] = math.exp(value) if parameter.log else value
    for rare in ("condensed", "fragmented"):  # fields of only dying cells would crowd out the living
        values[rare] *= float(rng.choice([0.3, 1.0], p=[0.8, 0.2]))
    return Phenotype(**values)


def random_batch(rng: np.random.Generator, strength: float = 1.0) -> BatchEffect:
    """A batch effect from a broad prior; `strength` 0 is the default batch, 1 about what plates differ by."""
    gains = np.exp(rng.normal(0, 0.22 * strength, len(STAINS)))
    return BatchEffect(
        stain_gain=tuple(float(g) for g in gains),
        background=tuple(float(b) for b in 1.5 * np.exp(rng.normal(0, 0.5 * strength, len(STAINS)))),
        blur_px=float(0.7 * np.exp(rng.normal(0, 0.18 * strength))),
        illumination=float(0.12 + 0.13 * strength * rng.random()),
        illumination_centre=tuple(float(c) for c in 0.5 + 0.3 * strength * (rng.random(2) - 0.5)),  # type: ignore[arg-type]
        haze=float(np.clip(0.25 + 0.08 * strength * rng.normal(), 0.08, 0.5)),
        shot_noise=float(0.05 * np.exp(rng.normal(0, 0.5 * strength))),
        read_noise=float(0.5 * np.exp(rng.normal(0, 0.3 * strength))),
        density=float(np.exp(rng.normal(0, 0.12 * strength))),
    )
