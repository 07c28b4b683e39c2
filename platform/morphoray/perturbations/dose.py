"""The concentration of a perturbation on the training doses' logarithmic scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from morphoray.errors import DataError
from morphoray.perturbations.base import Encoded, Perturbation, encoded
from morphoray.storage import Storage


class DoseOptions(BaseModel):
    """Options of the `dose` encoder: none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass
class DoseEncoder:
    """Two numbers: the scaled log10 of concentration_um, and 1 where there is no dose (else 0).

    The first is -1 at the lowest training dose and 1 at the highest, linear in log10 between and beyond
    them; where training has one dose only, decades from it. No dose (a control, or a concentration of 0,
    whose logarithm is not finite) is (1, 1), ones as every encoder gives for a control.
    """

    low: float
    high: float
    name: str = "dose"
    width: int = 2
    reads: frozenset[str] = frozenset({"concentration_um"})

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """A missing, negative or non-finite concentration is a reason."""
        return encoded(self.width, [self._row(item) for item in perturbations])

    def _row(self, item: Perturbation) -> npt.NDArray[np.float64] | str:
        concentration = item.concentration_um
        if concentration is not None and not 0 <= concentration < math.inf:
            return (
                f"{item.perturbation_id}: concentration_um {concentration:g}, "
                "expected a finite number of 0 or more"
            )
        if item.is_control or concentration == 0:
            return np.ones(self.width)
        if concentration is None:
            return (
                f"{item.perturbation_id}: no concentration_um, or several under one id; the dose encoder "
                "needs one. Complete it, or give each dose an id of its own."
            )
        half = (self.high - self.low) / 2 or 1.0
        return np.array([(math.log10(concentration) - (self.low + self.high) / 2) / half, 0.0])

    def state(self) -> dict[str, Any]:
        """log10 of the lowest and the highest training dose in micromolar."""
        return {"low": self.low, "high": self.high}


def fit(options: DoseOptions, training: Sequence[Perturbation], storage: Storage) -> DoseEncoder:
    """The range of the training perturbations' positive doses, controls left out. DataError when none has."""
    doses = [
        item.concentration_um
        for item in training
        if not item.is_control and item.concentration_um and 0 < item.concentration_um < math.inf
    ]
    if not doses:
        raise DataError(
            f"the dose encoder found no positive concentration_um among {len(training)} training "
            "perturbations, expected at least one. Complete the column; where an id has several doses, give "
            "each dose an id of its own (<name>@<dose>; imagefolder: dose_in_id)."
        )
    return DoseEncoder(math.log10(min(doses)), math.log10(max(doses)))


def load(state: dict[str, Any]) -> DoseEncoder:
    """The encoder that `state` came from."""
    return DoseEncoder(state["low"], state["high"])
