"""Write a report: report.html, report.md, montage.png, and the numbers as metrics.csv and metrics.parquet."""

import io
from collections.abc import Sequence
from html import escape

import numpy as np
import pyarrow as pa
import pyarrow.csv

from morphoray.evaluation.comparisons import COMPARISON_HEAD, comparison_cells, comparisons
from morphoray.evaluation.page import SHOWN, render
from morphoray.evaluation.profile_results import profile_metrics
from morphoray.evaluation.profile_section import profile_markdown
from morphoray.evaluation.results import (
    FRECHET,
    METRICS,
    PerturbationResult,
    ReportData,
    RunFacts,
    duration,
    figure,
    image_counts,
    mean,
    measured,
    metrics_table,
)
from morphoray.evaluation.words import caveats, summary
from morphoray.imaging.png import encode_png, grid
from morphoray.storage import Storage, join

__all__ = ["PerturbationResult", "ReportData", "RunFacts", "write_report"]


def write_report(data: ReportData, out_uri: str, storage: Storage) -> str:
    """Write the report's five files below out_uri; returns the URI of report.html, which is written last."""
    table = metrics_table(data)
    if data.profiles:
        table = pa.concat_tables([table, profile_metrics(data.profiles, data.experiment, data.seed)])
    storage.write_table(join(out_uri, "metrics.parquet"), table)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    storage.write_bytes(join(out_uri, "metrics.csv"), buffer.getvalue())
    storage.write_text(join(out_uri, "report.md"), markdown(data))
    storage.write_bytes(join(out_uri, "montage.png"), montage(data.perturbations, data.models[0]))
    page = join(out_uri, "report.html")
    storage.write_text(page, render(data))
    return page


def montage(results: Sequence[PerturbationResult], model: str) -> bytes:
    """PNG: a row a perturbation, its real images left, a white column, the model's right."""
    blank = np.full_like(results[0].real[0], 255)
    tiles = []
    for result in results:
        real, generated = list(result.real[:SHOWN]), list(result.images.get(model, ()))
        row = [*real, *[blank] * (SHOWN - len(real)), blank, *generated[:SHOWN]]
        tiles += [*row, *[blank] * (2 * SHOWN + 1 - len(row))]
    return encode_png(grid(tiles, 2 * SHOWN + 1))


def markdown(data: ReportData) -> str:
    """The report without its pictures."""
    facts = data.facts
    rows = [
        ("Training steps", f"{facts.steps:,}"),
        ("Images seen", f"{facts.images_seen:,}"),
        ("Time", duration(facts.seconds)),
        ("Machine, GFLOP/s", figure(facts.machine_gflops)),
        *facts.details.items(),
        ("Run", data.made_by),
    ]
    parts = [f"# {_cell(data.title)}", *map(_cell, summary(data))]
    parts.append(f"## Means over perturbations, N = {image_counts(data)}\n\n{_headline(data)}")
    parts.append(f"## {METRICS[FRECHET].label} of every perturbation\n\n{_each(data)}")
    if compared := comparisons(data):
        cells = [comparison_cells(data, row) for row in compared]
        parts.append("## The first model against the others\n\n" + _table(COMPARISON_HEAD, cells))
    parts += profile_markdown(data, _table, _cell)
    parts.append("## Run\n\n" + _table(("fact", "value"), rows))
    if facts.outlook:
        parts.append(_cell(facts.outlook))
    parts.append("## How to read this\n\n" + "\n".join(f"- {_cell(text)}" for text in caveats(data)))
    return "\n\n".join(parts) + "\n"


def _headline(data: ReportData) -> str:
    groups = {"all": None, "seen": False, "unseen": True}
    metrics = [name for name in METRICS if any(measured(data, name, method) for method in data.methods)]
    head = ("method", *(f"{METRICS[metric].label}, {group}" for metric in metrics for group in groups))
    rows = [
        (
            method.label,
            *(
                figure(mean(measured(data, metric, key, which)))
                for metric in metrics
                for which in groups.values()
            ),
        )
        for key, method in data.methods.items()
    ]
    return _table(head, rows)


def _each(data: ReportData) -> str:
    head = ("perturbation", "mechanism", "unseen", "N", *(method.label for method in data.methods.values()))
    rows = []
    for result in data.perturbations:
        found = result.distances.get(FRECHET, {})
        n = next((str(distance.n_a) for distance in found.values()), "–")
        values = [figure(found[key].value) if key in found else "–" for key in data.methods]
        unseen = "unseen" if result.unseen else ""
        rows.append((result.perturbation_id, result.moa or "", unseen, n, *values))
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no column breaks, one line."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").replace("`", "\\`").split())
