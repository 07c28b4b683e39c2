"""RDKit's 2D descriptors of a compound, z-scored by the training compounds (rdkit, imported late)."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from morphoray.errors import DataError, MissingExtraError
from morphoray.perturbations.base import Encoded, Perturbation, encoded
from morphoray.storage import Storage

# The 200 classic descriptors, in the order of the original project's table (checked on 18 of its
# compounds: its 173 columns are these without the constant ones). RDKit has gained others since.
_NAMES = """
BalabanJ BertzCT Chi0 Chi0n Chi0v Chi1 Chi1n Chi1v Chi2n Chi2v Chi3n Chi3v Chi4n Chi4v EState_VSA1
EState_VSA10 EState_VSA11 EState_VSA2 EState_VSA3 EState_VSA4 EState_VSA5 EState_VSA6 EState_VSA7
EState_VSA8 EState_VSA9 ExactMolWt FpDensityMorgan1 FpDensityMorgan2 FpDensityMorgan3 FractionCSP3
HallKierAlpha HeavyAtomCount HeavyAtomMolWt Ipc Kappa1 Kappa2 Kappa3 LabuteASA MaxAbsEStateIndex
MaxAbsPartialCharge MaxEStateIndex MaxPartialCharge MinAbsEStateIndex MinAbsPartialCharge MinEStateIndex
MinPartialCharge MolLogP MolMR MolWt NHOHCount NOCount NumAliphaticCarbocycles NumAliphaticHeterocycles
NumAliphaticRings NumAromaticCarbocycles NumAromaticHeterocycles NumAromaticRings NumHAcceptors NumHDonors
NumHeteroatoms NumRadicalElectrons NumRotatableBonds NumSaturatedCarbocycles NumSaturatedHeterocycles
NumSaturatedRings NumValenceElectrons PEOE_VSA1 PEOE_VSA10 PEOE_VSA11 PEOE_VSA12 PEOE_VSA13 PEOE_VSA14
PEOE_VSA2 PEOE_VSA3 PEOE_VSA4 PEOE_VSA5 PEOE_VSA6 PEOE_VSA7 PEOE_VSA8 PEOE_VSA9 RingCount SMR_VSA1 SMR_VSA10
SMR_VSA2 SMR_VSA3 SMR_VSA4 SMR_VSA5 SMR_VSA6 SMR_VSA7 SMR_VSA8 SMR_VSA9 SlogP_VSA1 SlogP_VSA10 SlogP_VSA11
SlogP_VSA12 SlogP_VSA2 SlogP_VSA3 SlogP_VSA4 SlogP_VSA5 SlogP_VSA6 SlogP_VSA7 SlogP_VSA8 SlogP_VSA9 TPSA
VSA_EState1 VSA_EState10 VSA_EState2 VSA_EState3 VSA_EState4 VSA_EState5 VSA_EState6 VSA_EState7 VSA_EState8
VSA_EState9 fr_Al_COO fr_Al_OH fr_Al_OH_noTert fr_ArN fr_Ar_COO fr_Ar_N fr_Ar_NH fr_Ar_OH fr_COO fr_COO2
fr_C_O fr_C_O_noCOO fr_C_S fr_HOCCN fr_Imine fr_NH0 fr_NH1 fr_NH2 fr_N_O fr_Ndealkylation1 fr_Ndealkylation2
fr_Nhpyrrole fr_SH fr_aldehyde fr_alkyl_carbamate fr_alkyl_halide fr_allylic_oxid fr_amide fr_amidine
fr_aniline fr_aryl_methyl fr_azide fr_azo fr_barbitur fr_benzene fr_benzodiazepine fr_bicyclic fr_diazo
fr_dihydropyridine fr_epoxide fr_ester fr_ether fr_furan fr_guanido fr_halogen fr_hdrzine fr_hdrzone
fr_imidazole fr_imide fr_isocyan fr_isothiocyan fr_ketone fr_ketone_Topliss fr_lactam fr_lactone fr_methoxy
fr_morpholine fr_nitrile fr_nitro fr_nitro_arom fr_nitro_arom_nonortho fr_nitroso fr_oxazole fr_oxime
fr_para_hydroxylation fr_phenol fr_phenol_noOrthoHbond fr_phos_acid fr_phos_ester fr_piperdine fr_piperzine
fr_priamide fr_prisulfonamd fr_pyridine fr_quatN fr_sulfide fr_sulfonamd fr_sulfone fr_term_acetylene
fr_tetrazole fr_thiazole fr_thiocyan fr_thiophene fr_unbrch_alkane fr_urea qed
"""
DESCRIPTORS: tuple[str, ...] = tuple(_NAMES.split())

# The descriptors' cost grows with the cube of the size: 0.5 s at 200 atoms, 1.4 s at 300, 10 s at 500.
MAX_HEAVY_ATOMS = 300
MAX_CHARACTERS = 5000  # of a SMILES, checked before it is parsed


class RdkitOptions(BaseModel):
    """Options of the `rdkit` encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_std: float = Field(
        0.001, ge=0, description="drop descriptors that vary no more over the training compounds"
    )
    clip: float | None = Field(
        None, gt=0, description="limit z-scores to +-clip; null: not limited, as in the paper"
    )


@dataclass
class RdkitEncoder:
    """z = (descriptor - mean) / std of the kept descriptors; a missing one is 0, that is the mean."""

    names: tuple[str, ...]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    clip: float | None = None
    name: str = "rdkit"

    @property
    def width(self) -> int:
        """The number of kept descriptors."""
        return len(self.names)

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """Vectors by SMILES; a control without one is all ones. Missing descriptors are told in `notes`."""
        values, reasons = descriptors([item.smiles or "" for item in perturbations], self.names)
        missing = ~np.isfinite(values)
        scores = np.where(missing, 0.0, (values - self.mean) / self.std)
        if self.clip is not None:
            scores = np.clip(scores, -self.clip, self.clip)
        rows = [self._row(*row) for row in zip(perturbations, scores, reasons, strict=True)]
        result = encoded(self.width, rows)
        for index, row in enumerate(missing):
            if reasons[index] is None and row.any():
                names = ", ".join(np.array(self.names)[row])
                result.notes[index] = f"{perturbations[index].perturbation_id}: missing descriptors: {names}"
        return result

    def _row(
        self, item: Perturbation, scores: npt.NDArray[np.float64], reason: str | None
    ) -> npt.NDArray[np.float64] | str:
        if item.smiles is None:
            if item.is_control:
                return np.ones(self.width)
            return f"{item.perturbation_id}: no SMILES, which the rdkit encoder needs"
        if reason is not None:
            return f"{item.perturbation_id}: {reason}"
        worst = int(np.abs(scores).argmax())
        if abs(scores[worst]) > np.finfo(np.float32).max:
            return (
                f"{item.perturbation_id}: descriptor {self.names[worst]} lies {scores[worst]:.0e} standard "
                "deviations from the training compounds; set clip to limit it"
            )
        return scores

    def state(self) -> dict[str, Any]:
        """Names, means and standard deviations of the kept descriptors."""
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "clip": self.clip,
        }


def fit(options: RdkitOptions, training: Sequence[Perturbation], storage: Storage) -> RdkitEncoder:
    """Means and standard deviations over the distinct valid SMILES of the training perturbations.

    The sample standard deviation (n - 1) over the values that are present, as in the original's table:
    its columns have a sample standard deviation of exactly 1. Raises DataError when nothing varies.
    """
    smiles = sorted({item.smiles for item in training if item.smiles})
    values, reasons = descriptors(smiles)
    valid = [index for index, reason in enumerate(reasons) if reason is None]
    if len(valid) < 2:
        raise DataError(
            f"the rdkit encoder found {len(valid)} valid SMILES among {len(training)} training "
            "perturbations, expected at least 2. Give the dataset a table of SMILES, or use another encoder."
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # a descriptor that is missing everywhere: NaN, dropped
        mean = np.nanmean(values[valid], axis=0)
        std = np.nanstd(values[valid], axis=0, ddof=1)
    kept = np.flatnonzero(std > options.min_std)
    if kept.size == 0:
        raise DataError(f"no descriptor varies by more than {options.min_std} over {len(valid)} compounds")
    return RdkitEncoder(tuple(DESCRIPTORS[index] for index in kept), mean[kept], std[kept], options.clip)


def load(state: dict[str, Any]) -> RdkitEncoder:
    """The encoder that `state` came from."""
    return RdkitEncoder(tuple(state["names"]), np.array(state["mean"]), np.array(state["std"]), state["clip"])


def descriptors(
    smiles: Sequence[str], names: Sequence[str] = DESCRIPTORS
) -> tuple[npt.NDArray[np.float64], list[str | None]]:
    """Descriptors (N, D) float64 in the order of `names`, and per row why it failed (its row is then NaN).

    A descriptor that is infinite or that rdkit can't compute is NaN. About 5 ms a drug-like molecule.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import Descriptors
    except ImportError:
        raise MissingExtraError("rdkit", "chem") from None
    functions = dict(Descriptors.descList)
    unknown = [name for name in names if name not in functions]
    if unknown:
        raise DataError(
            f"this rdkit ({rdBase.rdkitVersion}) lacks the descriptors {unknown}. Install another version."
        )
    values = np.full((len(smiles), len(names)), np.nan)
    reasons: list[str | None] = [None] * len(smiles)
    quiet = rdBase.BlockLogs()
    for index, text in enumerate(smiles):
        readable = 0 < len(text.strip()) <= MAX_CHARACTERS and text.isprintable()
        molecule = Chem.MolFromSmiles(text) if readable else None
        reasons[index] = _reason(text, molecule, Chem)
        if reasons[index] is None:
            values[index] = [_value(functions[name], molecule) for name in names]
    del quiet
    values[~np.isfinite(values)] = np.nan
    return values, reasons


def _value(function: Callable[[Any], float], molecule: Any) -> float:
    try:
        return float(function(molecule))
    except (ValueError, ArithmeticError, RuntimeError, IndexError):  # undefined for this molecule
        return float("nan")


def _reason(text: str, molecule: Any, chem: Any) -> str | None:
    """Why a SMILES has no descriptors, or None."""
    if not text.strip():
        return "empty SMILES"
    shown = text if len(text) <= 60 else text[:57] + "..."
    if len(text) > MAX_CHARACTERS:
        return f"SMILES {shown!r} has {len(text)} characters, expected at most {MAX_CHARACTERS}"
    if not text.isprintable():
        return f"invalid SMILES {shown!r}: unprintable characters"
    if molecule is None:
        sketch = chem.MolFromSmiles(text, sanitize=False)
        problems = chem.DetectChemistryProblems(sketch) if sketch is not None else ()
        cause = problems[0].Message() if problems else "can't be parsed"
        return f"invalid SMILES {shown!r}: {cause}"
    atoms = molecule.GetNumHeavyAtoms()
    if atoms == 0:
        return f"invalid SMILES {shown!r}: no heavy atoms"
    if atoms > MAX_HEAVY_ATOMS:
        return f"SMILES {shown!r} has {atoms} heavy atoms, expected at most {MAX_HEAVY_ATOMS}"
    return None


def scaffolds(smiles: Sequence[str]) -> list[str | None]:
    """The Bemis-Murcko scaffold (rings and what links them) of each SMILES, as canonical SMILES.

    An acyclic molecule has the empty scaffold, an invalid SMILES None. Stereochemistry is left out.
    Source: Bemis and Murcko, J. Med. Chem. 39, 2887 (1996), as rdkit computes it.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem.Scaffolds import MurckoScaffold
    except ImportError:
        raise MissingExtraError("rdkit", "chem") from None
    quiet = rdBase.BlockLogs()
    molecules = [
        Chem.MolFromSmiles(text) if 0 < len(text.strip()) <= MAX_CHARACTERS and text.isprintable() else None
        for text in smiles
    ]
    scaffold: Callable[..., str] = MurckoScaffold.MurckoScaffoldSmiles
    found = [None if molecule is None else scaffold(mol=molecule) for molecule in molecules]
    del quiet
    return found
