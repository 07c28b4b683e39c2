"""A vector of ones for every perturbation: the unconditional baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from morphoray.perturbations.base import Encoded, Perturbation
from morphoray.storage import Storage


class ConstantOptions(BaseModel):
    """Options of the `constant` encoder. Padding is of ones too, so the width matters to no projection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(1, ge=1)


@dataclass
class ConstantEncoder:
    """Ones of shape (N, width), whatever the perturbations; no row fails."""

    width: int
    name: str = "constant"
    reads: frozenset[str] = frozenset()

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """One row of ones a perturbation."""
        count = len(perturbations)
        return Encoded(np.ones((count, self.width), np.float32), [None] * count, [None] * count)

    def state(self) -> dict[str, Any]:
        """The width."""
        return {"width": self.width}


def fit(options: ConstantOptions, training: Sequence[Perturbation], storage: Storage) -> ConstantEncoder:
    """Nothing is learned."""
    return ConstantEncoder(options.width)


def load(state: dict[str, Any]) -> ConstantEncoder:
    """The encoder that `state` came from."""
    return ConstantEncoder(state["width"])
