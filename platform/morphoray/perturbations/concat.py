"""Several encoders side by side: one vector of all their numbers, in the order of the parts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from morphoray.errors import ConfigError
from morphoray.perturbations.base import Encoded, Encoder, EncoderKind, Perturbation
from morphoray.sections import build
from morphoray.storage import Storage


def _kind(name: str) -> EncoderKind:
    from morphoray.perturbations import find_encoder  # which imports this module

    return find_encoder(name)


def _options(part: dict[str, Any]) -> tuple[EncoderKind, BaseModel]:
    """A part's registry entry and validated options. Raises ConfigError naming its encoder and key."""
    given = dict(part)
    name = given.pop("encoder", None)
    if not isinstance(name, str):
        raise ConfigError(f"encoder: found {name!r}, expected an encoder's name")
    kind = _kind(name)
    return kind, build(kind.options, given, name)


def _complete(part: dict[str, Any]) -> dict[str, Any]:
    try:
        _, options = _options(part)
    except ConfigError as error:
        message = re.sub(r", or pass --set [\w.]+=VALUE", "", str(error))  # which reaches into no list
        raise ValueError(message.removesuffix(".")) from None
    return {"encoder": part["encoder"], **options.model_dump(mode="json")}


class ConcatOptions(BaseModel):
    """Options of the `concat` encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[Annotated[dict[str, Any], AfterValidator(_complete)], ...] = Field(
        description="for each part `encoder`, and that encoder's options"
    )

    @field_validator("parts")
    @classmethod
    def _some(cls, parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if not parts:
            raise ValueError("expected at least one part")
        return parts


@dataclass
class ConcatEncoder:
    """Vectors of its parts, (N, sum of their widths); a row that fails in any part fails."""

    parts: tuple[Encoder, ...]
    name: str = "concat"

    @property
    def width(self) -> int:
        """The sum of the parts' widths."""
        return sum(part.width for part in self.parts)

    @property
    def reads(self) -> frozenset[str]:
        """All that its parts read."""
        return frozenset().union(*(part.reads for part in self.parts))

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """A row has the reason of the first part that fails, and the notes of all."""
        found = [part.encode(perturbations) for part in self.parts]
        vectors = np.concatenate([part.vectors for part in found], axis=1)
        reasons = [
            next(filter(None, row), None) for row in zip(*(part.reasons for part in found), strict=True)
        ]
        notes = [
            "; ".join(filter(None, row)) or None for row in zip(*(part.notes for part in found), strict=True)
        ]
        vectors[[reason is not None for reason in reasons]] = np.nan
        return Encoded(vectors, reasons, notes)

    def state(self) -> dict[str, Any]:
        """The name and state of each part."""
        return {"parts": [{"encoder": part.name, "state": part.state()} for part in self.parts]}


def fit(options: ConcatOptions, training: Sequence[Perturbation], storage: Storage) -> ConcatEncoder:
    """Each part fitted on the training perturbations. Raises what a part raises."""
    kinds = [_options(part) for part in options.parts]
    return ConcatEncoder(tuple(kind.fit(given, training, storage) for kind, given in kinds))


def load(state: dict[str, Any]) -> ConcatEncoder:
    """The encoder that `state` came from."""
    return ConcatEncoder(tuple(_kind(part["encoder"]).load(part["state"]) for part in state["parts"]))
