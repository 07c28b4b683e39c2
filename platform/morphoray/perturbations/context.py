"""Context: what a model can be told of a sample beside its perturbation, its cell type and its experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray.errors import ConfigError
from morphoray.perturbations.base import CONTEXT_COLUMNS, Encoded, Perturbation

SHOWN_LEVELS = 60


@dataclass(frozen=True)
class Context:
    """The levels that a model knows, by column; no column: a model that is told of perturbations alone.

    A row's features are one-hot, column after column. A value that is absent or unknown is all zeros, which
    training shows the model too (`context_dropout`): they stand for the mixture of all that it has seen.
    """

    levels: Mapping[str, Sequence[str]]

    @classmethod
    def fit(cls, columns: Sequence[str], training: pa.Table) -> "Context":
        """The sorted levels of the training rows of SITES. Raises ConfigError for a column without any."""
        levels = {name: sorted(training[name].drop_null().unique().to_pylist()) for name in columns}
        for name, found in levels.items():
            if not found:
                raise ConfigError(
                    f"perturbations.context: no training site has a {name}. Leave it out, or import the data "
                    "with metadata that tell it."
                )
        return cls(levels)

    @property
    def width(self) -> int:
        """How many features there are."""
        return sum(len(known) for known in self.levels.values())

    def features(self, values: Mapping[str, Sequence[str | None]], rows: int) -> npt.NDArray[np.uint8]:
        """Features (rows, width) of 0 and 1, from the `rows` values of every column."""
        hot = np.zeros((rows, self.width), np.uint8)
        start = 0
        for name, known in self.levels.items():
            places = {level: start + place for place, level in enumerate(known)}
            found = [(row, places[value]) for row, value in enumerate(values[name]) if value in places]
            for row, place in found:
                hot[row, place] = 1
            start += len(known)
        return hot

    def extended(self, encoded: Encoded, items: Sequence[Perturbation]) -> Encoded:
        """The items' condition vectors (N, encoder's width + width): what the encoder gave, then features.

        An item that names a level which the model doesn't know fails.
        """
        values = {name: [getattr(item, name) for item in items] for name in self.levels}
        features = self.features(values, len(items)).astype(np.float32)
        reasons = [reason or self.refusal(item) for item, reason in zip(items, encoded.reasons, strict=True)]
        vectors = np.concatenate([encoded.vectors, features], axis=1)
        vectors[[reason is not None for reason in reasons]] = np.nan
        return Encoded(vectors, reasons, encoded.notes)

    def refusal(self, item: Perturbation) -> str | None:
        """Why the model can't show a perturbation in the context that the item names; None if it can."""
        for name in CONTEXT_COLUMNS:
            value = getattr(item, name)
            known = self.levels.get(name)
            if value is None:
                continue
            if known is None:
                return (
                    f"{name} {value!r}: this bundle was trained without {name} as a condition; leave it out"
                )
            if value not in known:
                more = f" and {len(known) - SHOWN_LEVELS} more" if len(known) > SHOWN_LEVELS else ""
                return (
                    f"{name} {value!r}: unknown to this bundle, expected one of "
                    f"{', '.join(known[:SHOWN_LEVELS])}{more}, or none for their mixture"
                )
        return None


NO_CONTEXT = Context({})


def context_state(context: Context) -> dict[str, Any]:
    """What conditions.json and a manifest's `condition` hold of it: nothing where there is none."""
    return (
        {"context": {name: list(known) for name, known in context.levels.items()}} if context.levels else {}
    )


def load_context(condition: Mapping[str, Any]) -> Context:
    """The context that `context_state` was given, from the mapping that holds its result."""
    return Context(condition.get("context", {}))
