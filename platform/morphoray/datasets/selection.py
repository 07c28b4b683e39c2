"""The rows of a dataset that an import takes: a filter by column, then a limit."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import parse_bool, parse_float, plain_id
from morphoray.schema import SITES

COMPOUND = "compound"  # perturbation_id without a dose: what `<name>@<dose>` ids have in common
FILTERED = (
    *(field.name for field in SITES if field.name != "split" and not pa.types.is_list(field.type)),
    COMPOUND,
)  # what a filter may name


def keep(sites: pa.Table, wanted: Mapping[str, Sequence[str]]) -> pa.Table:
    """The rows whose value is one of `wanted` in each of its columns, or in COMPOUND.

    Raises ConfigError for a column that SITES doesn't have, a value that the data don't have, and a filter
    that leaves nothing.
    """
    mask = pa.scalar(True)
    for name, values in wanted.items():
        if name not in FILTERED:
            raise ConfigError(f"dataset.filter: found column {name!r}; known: {', '.join(FILTERED)}")
        column = _compounds(sites["perturbation_id"]) if name == COMPOUND else sites[name]
        mask = pc.and_(mask, _matches(column, name, values))
    kept = sites.filter(mask) if wanted else sites
    if not len(kept):
        shown = ", ".join(f"{name}={','.join(values)}" for name, values in wanted.items())
        raise ConfigError(f"dataset.filter {shown}: no site of the data matches all of it")
    return kept


def _compounds(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The id of each without its dose."""
    known = ids.unique()
    return pc.take(pa.array(map(plain_id, known.to_pylist()), pa.string()), pc.index_in(ids, known))


def _matches(column: pa.ChunkedArray, name: str, values: Sequence[str]) -> pa.ChunkedArray:
    typed = pa.array([_typed(value, column.type, name) for value in values], column.type)
    known = column.unique().drop_null()
    absent = [
        value for value, there in zip(values, pc.is_in(typed, known).to_pylist(), strict=True) if not there
    ]
    if absent or not values:
        raise ConfigError(unknown(f"filter.{name}", absent, map(str, known.to_pylist())))
    return pc.is_in(column, typed)


def _typed(value: str, kind: pa.DataType, name: str) -> Any:
    try:
        if pa.types.is_boolean(kind):
            return parse_bool(value, f"dataset.filter.{name}")
        if pa.types.is_floating(kind):
            return parse_float(value, f"dataset.filter.{name}")
    except DataError as error:
        raise ConfigError(str(error)) from None
    return value


def thin(sites: pa.Table, limit: int | None) -> pa.Table:
    """At most `limit` rows, evenly spaced."""
    if limit is None or limit >= len(sites):
        return sites
    return sites.take(np.arange(limit) * len(sites) // limit)


def unknown(key: str, names: Sequence[str], known: Iterable[str]) -> str:
    """A message for option values that the data don't have: the values, and the known ones or the nearest."""
    choices = sorted(known)
    shown = choices
    if len(choices) > 30:
        shown = (difflib.get_close_matches(names[0], choices, 5, 0.3) if names else []) or choices[:5]
    kind = "known" if len(shown) == len(choices) else f"nearest of {len(choices)} known"
    return f"dataset.{key}: found {list(names[:10])}, which the data don't have; {kind}: {', '.join(shown)}"
