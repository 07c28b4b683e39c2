"""Morgan fingerprints of a compound: which circular substructures it has. Nothing is fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from morphoray.perturbations.base import Encoded, Perturbation, encoded
from morphoray.perturbations.rdkit import STANDARDISE, morgan_fingerprints, row_without_smiles, smiles_of
from morphoray.storage import Storage


class MorganOptions(BaseModel):
    """Options of the `morgan` encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    radius: int = Field(2, ge=0, le=10, description="bonds around an atom; 2 is ECFP4")
    bits: int = Field(2048, ge=1, le=65536, description="the width; substructures are hashed into it")
    counts: bool = Field(False, description="how often a substructure occurs, not whether")
    standardise: bool = STANDARDISE


@dataclass
class MorganEncoder:
    """0 and 1, or counts, of shape (N, bits)."""

    options: MorganOptions
    name: str = "morgan"
    reads: frozenset[str] = frozenset({"smiles"})

    @property
    def width(self) -> int:
        """The number of bits."""
        return self.options.bits

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """Vectors by SMILES; a control without one is all ones."""
        options = self.options
        smiles = smiles_of(perturbations, options.standardise)
        values, reasons = morgan_fingerprints(smiles, options.radius, options.bits, options.counts)
        rows = [self._row(*row) for row in zip(perturbations, values, reasons, strict=True)]
        return encoded(self.width, rows)

    def _row(
        self, item: Perturbation, values: npt.NDArray[np.float32], reason: str | None
    ) -> npt.NDArray[np.floating[Any]] | str:
        if item.smiles is None:
            return row_without_smiles(item, self)
        return values if reason is None else f"{item.perturbation_id}: {reason}"

    def state(self) -> dict[str, Any]:
        """The options."""
        return self.options.model_dump(mode="json")


def fit(options: MorganOptions, training: Sequence[Perturbation], storage: Storage) -> MorganEncoder:
    """Nothing is learned."""
    return MorganEncoder(options)


def load(state: dict[str, Any]) -> MorganEncoder:
    """The encoder that `state` came from."""
    return MorganEncoder(MorganOptions(**state))
