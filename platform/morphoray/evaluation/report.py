"""Write a report: report.html, report.md, montage.png, and the numbers as metrics.csv and metrics.parquet."""

import io
import re
from collections.abc import Sequence
from html import escape

import pyarrow as pa
import pyarrow.csv

from morphoray.evaluation.caveats import caveats
from morphoray.evaluation.comparisons import COMPARISON_HEAD, comparison_cells, comparisons, untested
from morphoray.evaluation.distances import Distance
from morphoray.evaluation.montage import montage
from morphoray.evaluation.page import render
from morphoray.evaluation.paper_form import PAPER_HEAD, PAPER_NOTE, PaperValue, paper_rows
from morphoray.evaluation.profile_results import profile_metrics
from morphoray.evaluation.profile_section import profile_markdown
from morphoray.evaluation.results import (
    BATCHES,
    FEWER_MEANT,
    HEADLINE,
    METRICS,
    Cell,
    PerturbationResult,
    ReportData,
    RunFacts,
    cells,
    explained,
    image_counts,
    mean,
    measured,
    metrics_table,
    of_subsets,
    short_of,
    written,
)
from morphoray.evaluation.sections import COMPARED
from morphoray.evaluation.trust import TRUST_HEAD, trust_rows, trust_sentences
from morphoray.evaluation.words import RULE, summary
from morphoray.storage import Storage, join

__all__ = ["PerturbationResult", "ReportData", "RunFacts", "write_report"]


def write_report(data: ReportData, out_uri: str, storage: Storage) -> str:
    """Write the report's five files below out_uri; returns the URI of report.html, which is written last."""
    table = metrics_table(data)
    if data.profiles:
        unseen = {result.perturbation_id: result.unseen for result in data.perturbations}
        profiles = profile_metrics(data.profiles, data.experiment, data.seed, unseen)
        table = pa.concat_tables([table, profiles])
    storage.write_table(join(out_uri, "metrics.parquet"), table)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    storage.write_bytes(join(out_uri, "metrics.csv"), buffer.getvalue())
    storage.write_text(join(out_uri, "report.md"), markdown(data))
    storage.write_bytes(join(out_uri, "montage.png"), montage(data))
    page = join(out_uri, "report.html")
    storage.write_text(page, render(data))
    return page


def markdown(data: ReportData) -> str:
    """The report without its pictures."""
    facts = data.facts
    rows = [
        *facts.shown.items(),
        *facts.details.items(),
        ("Run", data.made_by),
    ]
    parts = [f"# {_cell(data.title)}", *_summary(data)]
    counts = f"Fréchet distances at N = {image_counts(data)} images a side."
    parts.append(f"## Means over perturbations\n\n{counts}\n\n{_headline(data)}")
    for metric in HEADLINE:
        if any(metric in result.distances for result in data.perturbations):
            parts.append(f"## {METRICS[metric].title}, every perturbation\n\n{_each(data, metric)}")
    compared = comparisons(data)
    if told := untested(compared):
        parts += ["## Is the difference real?", _cell(told)]
    elif compared:
        texts = [comparison_cells(data, row) for row in compared]
        parts += ["## Is the difference real?", _cell(COMPARED), _table(COMPARISON_HEAD, texts)]
    if paper := paper_rows(data):
        lines = _lines([*map(_cell, PAPER_HEAD)], [[*map(_bold, row)] for row in paper])
        parts += ["## In the paper's form", _cell(PAPER_NOTE), lines]
    if trust := [*map(_cell, trust_sentences(data))]:
        parts += ["## Where can the model be trusted?", *trust, _table(TRUST_HEAD, trust_rows(data))]
    parts += profile_markdown(data, _table, _cell)
    parts.append("## Run\n\n" + _table(("fact", "value"), rows))
    if facts.outlook:
        parts.append(_cell(facts.outlook))
    parts.append("## How to read this\n\n" + "\n".join(f"- {_cell(text)}" for text in caveats(data)))
    return "\n\n".join(parts) + "\n"


def _summary(data: ReportData) -> list[str]:
    told = summary(data)
    parts = [*map(_cell, (*told.lead, data.data_statement))]
    if told.verdicts:
        rows = [
            (
                data.methods[rival].label,
                *(f"{each.words}: {'; '.join(each.figures)}" if each else "–" for each in found),
            )
            for rival, found in told.verdicts.items()
        ]
        parts += [_table(told.head, rows), _cell(RULE)]
    return [*parts, "\n".join(f"- {_cell(text)}" for text in told.notes)] if told.notes else parts


def _headline(data: ReportData) -> str:
    """A table for each metric below its direction and what it tells, a column for each cell."""
    groups = cells(data)
    parts = []
    for metric in METRICS:
        rows = [
            (
                method.label,
                *(_mean(data, metric, key, cell) for cell in groups),
            )
            for key, method in data.methods.items()
            if measured(data, metric, key)
        ]
        if rows:
            head = ("method", *(cell.label for cell in groups))
            title = f"### {METRICS[metric].heading}\n\n{_cell(explained(data, metric))}"
            parts.append(f"{title}\n\n{_table(head, rows)}")
    shorter = (
        short_of(data, metric, method, cell)
        for metric in METRICS
        for method in data.methods
        for cell in groups
    )
    return "\n\n".join([_cell(FEWER_MEANT), *parts] if any(shorter) else parts)


def _mean(data: ReportData, metric: str, method: str, cell: Cell) -> str:
    """A mean, and how many perturbations it is over where others are over more."""
    text = written(metric, mean(measured(data, metric, method, cell)), mean=True)
    return f"{text} {short_of(data, metric, method, cell)}".strip()


def _each(data: ReportData, metric: str) -> str:
    """Every perturbation's distances by one metric, with the interval of the subsets where there is one."""
    several = len(data.batches) > 1
    where = ["batches"] if several else []
    labels = [method.label for method in data.methods.values()]
    head = ("perturbation", "mechanism", "unseen", *where, "N", *labels)
    rows = []
    for result in data.perturbations:
        found = result.distances.get(metric, {})
        n = str(next(iter(found.values())).n_a) if found else "–"
        values = [_with_interval(found.get(key), metric) for key in data.methods]
        unseen = "unseen" if result.unseen else ""
        where = [BATCHES[result.batches]] if several else []
        rows.append((result.perturbation_id, result.moa or "", unseen, *where, n, *values))
    return _table(head, rows)


def _with_interval(distance: Distance | None, metric: str) -> str:
    """A value; of a kernel distance with the interval that holds 95 % of its subsets; '–' for none."""
    if distance is None:
        return "–"
    told = of_subsets(distance, metric)
    return written(metric, distance.value) + (f" ({told})" if told else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return _lines([*map(_cell, head)], [[*map(_cell, row)] for row in rows])


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _bold(value: PaperValue) -> str:
    return f"**{_cell(value.text)}**" if value.bold else _cell(value.text)


def _cell(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no links (C[N+](C)C is a molecule), no column breaks."""
    return " ".join(re.sub(r"([\\|`*\[\]])", r"\\\1", escape(text, quote=False)).split())
