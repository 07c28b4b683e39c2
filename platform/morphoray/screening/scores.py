"""How far a molecule's images lie from the control's, with an error, and the ranking by it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray import schema
from morphoray.errors import DataError

Features = npt.NDArray[np.floating]


def paired_effect(features: Features, control: Features) -> tuple[float, float | None]:
    """(score, standard error) of a molecule's features (n, width) against the control's (n, width).

    Row i of both must come from the same noise, so that what the noise does to an image cancels in the
    difference d_i. score = |mean of d_i|: 0 for a molecule the model can't tell from the control. Like every
    norm of a mean it is biased upwards, by about tr(cov d) / n in its square: compare only equal n.

    The error is the jackknife's (Tukey 1958): sqrt((n - 1) / n x sum (s_-i - mean s_-i)²), where s_-i is the
    score without image i; None for n = 1. Raises DataError when the shapes differ.
    """
    if features.shape != control.shape or features.ndim != 2 or not len(features):
        raise DataError(
            f"paired_effect: found features {features.shape} and {control.shape}, expected one (n, width)"
        )
    difference = features.astype(np.float64) - control
    n, mean = len(difference), difference.mean(axis=0)
    score = float(np.linalg.norm(mean))
    if n == 1:
        return score, None
    without = np.linalg.norm((n * mean - difference) / (n - 1), axis=1)
    return score, float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def ranked(rows: Iterable[Mapping[str, Any]], bundle_fingerprint: str) -> pa.Table:
    """HITS from rows of its other columns: by score from 1, ties by line; then those without one, by line."""
    rows = list(rows)
    scored = sorted(
        (row for row in rows if row["score"] is not None), key=lambda row: (-row["score"], row["line"])
    )
    rest = sorted((row for row in rows if row["score"] is None), key=lambda row: row["line"])
    whole = [
        {**row, "rank": rank, "bundle_fingerprint": bundle_fingerprint}
        for rank, row in [*enumerate(scored, start=1), *((None, row) for row in rest)]
    ]
    return pa.Table.from_pylist(whole, schema=schema.HITS)
