"""What an import found, for people: counts, the cells of the split, and what could mislead a model."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.datasets.splits import (
    HELD_OUT_BATCH,
    HELD_OUT_BOTH,
    HELD_OUT_PERTURBATION,
    TRAIN,
    shorten,
)

_LISTED = 8  # values of a column that are counted one by one
_REASONS = 5


def describe(name: str, sites: pa.Table, quarantine: pa.Table, notes: Sequence[str]) -> str:
    """The summary of an import, several lines."""
    plates = pc.binary_join_element_wise(sites["experiment"], sites["plate"], "/")
    found = {
        "cell types": sites["cell_type"],
        "experiments": sites["experiment"],
        "plates": plates,
        "perturbations": sites["perturbation_id"],
        "kinds": sites["perturbation_kind"],
    }
    lines = [
        f"{name}: {sites.num_rows} sites, {quarantine.num_rows} quarantined",
        *(
            f"{label}: {_counted(column)}"
            for label, column in found.items()
            if column.null_count < len(column)
        ),
        *_reasons(quarantine),
        *_cells(sites),
        *notes,
        *(f"warning: {text}" for text in warnings(sites)),
    ]
    return "\n  ".join(lines)


def _counted(column: pa.ChunkedArray) -> str:
    """The values with their sites, or their number and how many sites each has."""
    counts = {row["values"]: row["counts"] for row in column.drop_null().value_counts().to_pylist()}
    if len(counts) <= _LISTED:
        return ", ".join(f"{value} {counts[value]}" for value in sorted(counts))
    sizes = np.array(list(counts.values()))
    if sizes.min() == sizes.max():
        return f"{len(counts)}, {sizes[0]} sites each"
    return f"{len(counts)}, {sizes.min()} to {sizes.max()} sites each (median {np.median(sizes):g})"


def _reasons(quarantine: pa.Table) -> list[str]:
    rows = sorted(quarantine["reason"].value_counts().to_pylist(), key=lambda row: -row["counts"])
    shown = [f"quarantined: {row['counts']} x {row['values']}" for row in rows[:_REASONS]]
    rest = sum(row["counts"] for row in rows[_REASONS:])
    return [*shown, f"quarantined: {rest} for other reasons"] if rest else shown


def _cells(sites: pa.Table) -> list[str]:
    """The 2 x 2 table: seen and unseen perturbations in seen and held-out batches."""

    def cell(split: str) -> str:
        rows = sites.filter(pc.equal(sites["split"], split))
        return f"{pc.count_distinct(rows['perturbation_id']).as_py()}, {len(rows)} sites ({split})"

    table = [
        ("perturbations", "seen batches", "held-out batches"),
        ("seen", cell(TRAIN), cell(HELD_OUT_BATCH)),
        ("unseen", cell(HELD_OUT_PERTURBATION), cell(HELD_OUT_BOTH)),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in table]
    return [
        f"{label}{line.rstrip()}" for label, line in zip(("split: ", " " * 7, " " * 7), lines, strict=True)
    ]


def warnings(sites: pa.Table) -> list[str]:
    """What could mislead a model or a comparison, each with counts and the first few names."""
    return [*_one_batch(sites), *_without_control(sites), *_nothing_held_out(sites)]


def _one_batch(sites: pa.Table) -> list[str]:
    """Perturbations, controls aside, that live in one experiment of several."""
    total = pc.count_distinct(sites["experiment"]).as_py()
    treated = sites.filter(pc.invert(sites["is_control"])).select(["perturbation_id", "experiment"])
    batches = treated.group_by("perturbation_id").aggregate([("experiment", "count_distinct")])
    single = batches.filter(pc.equal(batches["experiment_count_distinct"], 1))["perturbation_id"]
    if total == 1 or not len(single):
        return []
    names = sorted(single.to_pylist())
    return [
        f"confounding: of {len(batches)} perturbations (controls aside) these occur in one of {total} "
        f"experiments only: {shorten(names)}. A model can tell them by the batch."
    ]


def _without_control(sites: pa.Table) -> list[str]:
    """Perturbations of the training split in experiments that have no control."""
    if not pc.any(sites["is_control"]).as_py():
        return ["no control sites: nothing tells a perturbation's effect from its batch's"]
    with_control = sites["experiment"].filter(sites["is_control"]).unique()
    trained = sites.filter(pc.and_(pc.equal(sites["split"], TRAIN), pc.invert(sites["is_control"])))
    bare = trained.filter(pc.invert(pc.is_in(trained["experiment"], with_control)))
    if not len(bare):
        return []
    names, experiments = (sorted(bare[key].unique().to_pylist()) for key in ("perturbation_id", "experiment"))
    return [f"no control in experiments {shorten(experiments)}, where perturbations {shorten(names)} are"]


def _nothing_held_out(sites: pa.Table) -> list[str]:
    if not pc.all(pc.equal(sites["split"], TRAIN)).as_py():
        return []
    places = ["experiment", "plate", "well"]
    wells = sites.select(places).group_by(places).aggregate([([], "count_all")])["count_all"]
    several = pc.sum(pc.greater(wells, 1)).as_py()
    return [
        "nothing is held out, and sites drawn at random would leak: sites of one well, plate and batch look "
        f"alike ({several} of {len(wells)} wells have several). Set dataset.held_out_experiments or its like."
    ]
