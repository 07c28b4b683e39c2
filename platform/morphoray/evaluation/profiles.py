"""Profiles: measurements normalised on real controls, selected features, medians of wells and treatments.

A table of profiles has the features of measurements.py and, among its Metadata_ columns, these:
Metadata_source ("real", or a method's name), Metadata_is_control, Metadata_plate where there are plates, and
Metadata_field where several real images were cut out of one field of view.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from morphoray.errors import DataError, MissingExtraError
from morphoray.evaluation.measurements import COUNTS, feature_columns

METHODS = ("mad_robustize", "standardize", "robustize")
REAL = "real"

OUTLIER_CUTOFF = 500  # of a normalised feature
CORRELATION = 0.9
OPERATIONS = (
    "frequency_threshold",
    "variance_threshold",
    "drop_na_columns",
    "blocklist",
    "drop_outliers",
    "correlation_threshold",
)
# pycytominer's own list (Way 2019), whose channels are JUMP's, for any channels
BLOCKED = (
    "Nuclei_Correlation_Manders_",
    "Nuclei_Correlation_RWC_",
    "Nuclei_Granularity_14_",
    "Nuclei_Granularity_15_",
    "Nuclei_Granularity_16_",
)


def real_controls(profiles: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are real controls. Raises DataError for a missing column."""
    _need(profiles, ["Metadata_source", "Metadata_is_control"])
    control = profiles["Metadata_is_control"].astype(bool)
    return (profiles["Metadata_source"] == REAL) & control


def normalise(
    profiles: pd.DataFrame, by: str | None = "Metadata_plate", method: str = "mad_robustize"
) -> pd.DataFrame:
    """The table with its features centred and scaled by pycytominer, fitted on real controls only.

    by: fitted for each value of this column apart; rows without one (a generated image has no plate) by
    all real controls together. None: all rows by all of them. Other columns and the order of rows stay.
    Raises DataError for groups with fewer than two real controls that have cells, by name.
    """
    if method not in METHODS:
        raise DataError(f"profiles: found method {method!r}, expected one of {list(METHODS)}")
    features = feature_columns(profiles)
    reference = real_controls(profiles) & profiles[features].notna().any(axis=1)
    if by is None:
        groups = pd.Series([None] * len(profiles), index=profiles.index, dtype=object)
    else:
        _need(profiles, [by])
        groups = profiles[by].astype(object).where(profiles[by].notna(), None)
    names = [name for name in groups.unique() if name is not None]
    few = [name for name in names if (reference & (groups == name)).sum() < 2]
    if few or reference.sum() < 2:
        raise DataError(
            f"profiles: {by or 'the table'} {few} has fewer than two real controls with cells to normalise "
            "by. Add their control images, leave it out, or normalise over all plates (by: none)."
        )
    result = profiles.copy()
    result[features] = result[features].astype(np.float64)
    for name in (*names, None):
        rows = groups.isna() if name is None else groups == name
        fitted_on = reference if name is None else reference & rows
        if rows.any():
            result.loc[rows, features] = _scaled(profiles, features, rows, fitted_on, method)
    return result.copy()  # one block of memory again, after a column at a time


def _scaled(
    profiles: pd.DataFrame, features: list[str], rows: Any, fitted_on: Any, method: str
) -> np.ndarray:
    """The features of `rows` (n, d), scaled as `fitted_on` is."""
    table = pd.concat([profiles.loc[fitted_on, features], profiles.loc[rows, features]], ignore_index=True)
    table["Metadata_fitted_on"] = np.arange(len(table)) < fitted_on.sum()
    # a feature that never varies over controls becomes huge by pycytominer's epsilon, and is left out later
    with _quiet():
        scaled = _pycytominer().normalize(
            table,
            features=features,
            meta_features=["Metadata_fitted_on"],
            samples="Metadata_fitted_on == True",
            method=method,
        )
    return np.asarray(scaled.loc[~scaled["Metadata_fitted_on"], features], np.float64)


def select_features(profiles: pd.DataFrame) -> list[str]:
    """The features to compare by, chosen by pycytominer on the real rows of a normalised table.

    In turn: values that hardly vary, columns with more than 5 % missing, the blocklist, any value beyond
    500, and of features correlated at 0.9 or more all but one. Raises DataError when none is left.
    """
    _need(profiles, ["Metadata_source"])
    features = feature_columns(profiles)
    rows = profiles["Metadata_source"] == REAL
    table = profiles.loc[rows & profiles[features].notna().any(axis=1), features].reset_index(drop=True)
    if len(table) < 3:
        raise DataError(f"profiles: found {len(table)} real rows with cells, expected 3 or more to choose by")
    blocked = [name for name in features if name.startswith(BLOCKED)]
    for operation in OPERATIONS:
        if table.shape[1] == 0:
            raise DataError(
                f"profiles: none of {len(features)} features is left before {operation}. "
                "Are there enough different real images?"
            )
        with _quiet():
            table = _pycytominer().feature_select(
                table,
                features=list(table.columns),
                operation=operation,
                outlier_cutoff=OUTLIER_CUTOFF,
                corr_threshold=CORRELATION,
                blocklist=blocked,
            )
    return list(table.columns)


def aggregate(profiles: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row for each combination of the columns `by`: medians of the features, means of COUNTS.

    Other Metadata_ columns are kept where they have one value in the group, else null; Metadata_n is the
    number of rows. Missing features are left out of the median. Null is a value of its own in `by`.
    """
    _need(profiles, by)
    features = feature_columns(profiles)
    groups = profiles.groupby(list(by), dropna=False, sort=True)
    medians = groups[features].median()
    others = [
        name
        for name in profiles.columns
        if name.startswith("Metadata_") and name not in by and name not in COUNTS
    ]
    same = groups[others].agg(_only_value)
    counts = groups[[name for name in COUNTS if name in profiles.columns]].mean()
    size = groups.size().rename("Metadata_n")
    return pd.concat([same, counts, size, medians], axis=1).reset_index()


def _only_value(values: "pd.Series[Any]") -> Any:
    found = values.dropna().unique()
    return found[0] if len(found) == 1 else None


def matrix(profiles: pd.DataFrame, features: Sequence[str]) -> np.ndarray:
    """The features (n, d) float64 of a table. Raises DataError for missing columns or values not finite."""
    _need(profiles, features)
    values = np.asarray(profiles[list(features)], np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"profiles: {len(bad)} of {len(values)} rows have missing values, first row {bad[0]}. "
            "Leave out images without cells (with_cells), and select features first."
        )
    return values


def fields_of_view(profiles: pd.DataFrame) -> np.ndarray | None:
    """Metadata_field of every row (N,); None where the table doesn't say."""
    return profiles["Metadata_field"].to_numpy(object) if "Metadata_field" in profiles else None


def with_cells(profiles: pd.DataFrame, features: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The rows in which all of these features are known, and how many were left out."""
    _need(profiles, features)
    known = np.isfinite(profiles[list(features)]).all(axis=1)
    return profiles[known].reset_index(drop=True), int((~known).sum())


def _need(profiles: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in profiles.columns]
    if missing:
        raise DataError(
            f"profiles: no columns {missing[:5]}, found {list(profiles.columns[:12])} and more; "
            "expected them beside the features of measurements.py"
        )


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Without pycytominer's warnings on all-missing columns, and on an option that pandas 3 dropped."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def _pycytominer() -> Any:
    try:
        with _quiet():
            import pycytominer
    except ModuleNotFoundError:
        raise MissingExtraError("pycytominer", "eval") from None
    return pycytominer
