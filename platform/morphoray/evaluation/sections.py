"""Sections of the page that not every report has: comparisons, ranks, the paper's table, trust."""

from collections.abc import Iterable, Sequence
from html import escape

from morphoray.evaluation import charts
from morphoray.evaluation.comparisons import COMPARISON_HEAD, comparison_cells, comparisons, untested
from morphoray.evaluation.paper_form import PAPER_HEAD, PAPER_NOTE, paper_rows
from morphoray.evaluation.results import BATCHES, FRECHET, METRICS, RANK, ReportData, explained, figure
from morphoray.evaluation.trust import TRUST_HEAD, Trust, trust_rows, trust_sentences, trusts

COMPARED = """The first model against the others and against real images of other conditions, treatment by
treatment, mechanisms averaged first: the mean difference, below 0 where the first model is closer, with its
bootstrap interval, the paired t-test with its p adjusted for all rows (Benjamini–Hochberg), and the paper's
two-sample t-test over perturbations (* p < 0.01, ** p < 0.001; Welch's form is our reading), which takes
numbers that share real images for independent ones."""
RANKED = "By Fréchet distance; a model that knows nothing of the perturbation spreads evenly over all ranks."
LEAST_CHARTED = 3  # points
TRUSTED = """The first model's error on perturbations that training never saw, by how far each lies from the
nearest one that it did see."""


def section(heading: str, under: str, *parts: str) -> str:
    """A heading, a line of explanation and what follows, HTML; empty without parts."""
    found = "".join(parts)
    told = f'<p class="under">{escape(under)}</p>' if under else ""
    return f"<h2>{escape(heading)}</h2>{told}{found}" if found else ""


def chart_box(above: str, chart: str) -> str:
    """A chart that print keeps on one page with what stands above it, HTML both; empty without a chart."""
    return f'<figure class="chart">{above}<div class="scroll">{chart}</div></figure>' if chart else ""


def table(head: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, escaped; empty without rows."""
    return _table(head, [[escape(cell) for cell in row] for row in rows])


def _table(head: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML, in a box that scrolls; empty without rows."""
    if not rows:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    found = f'<table class="numbers texts"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{found}</div>'


def compared(data: ReportData) -> str:
    """Whether the differences between methods are more than chance."""
    found = comparisons(data)
    if told := untested(found):
        return section("Is the difference real?", "", f"<p>{escape(told)}</p>")
    rows = [comparison_cells(data, row) for row in found]
    return section("Is the difference real?", COMPARED, table(COMPARISON_HEAD, rows))


def ranks(data: ReportData) -> str:
    """Histograms of the matched cohort's rank, one a group of batches."""
    parts = []
    for batches in data.batches:
        results = data.of(batches).perturbations
        found = {
            data.methods[model].label: [
                result.distances[RANK][model].value
                for result in results
                if model in result.distances.get(RANK, {})
            ]
            for model in data.models
        }
        places = {label: place for place, label in enumerate(found)}
        chart = charts.rank_chart({name: values for name, values in found.items() if values}, places)
        parts.append(chart_box(subheading(data, batches), chart))
    return section("Which real cohort lies nearest?", f"{explained(data, RANK)} {RANKED}", *parts)


def subheading(data: ReportData, batches: str) -> str:
    """The group's name above a chart; empty where there is one group."""
    return f"<h3>{escape(BATCHES[batches].capitalize())}</h3>" if len(data.batches) > 1 else ""


def paper(data: ReportData) -> str:
    """The paper's table in its own form."""
    rows = [
        [f"<b>{escape(each.text)}</b>" if each.bold else escape(each.text) for each in row]
        for row in paper_rows(data)
    ]
    return section("In the paper's form", PAPER_NOTE, _table(PAPER_HEAD, rows))


def trust(data: ReportData) -> str:
    """Error against distance from training: what the correlations say, a chart each, and every value."""
    sentences = "".join(f"<p>{escape(text)}</p>" for text in trust_sentences(data))
    charted = [_trust_chart(each) for each in trusts(data) if len(each.results) >= LEAST_CHARTED]
    above = [sentences, *[""] * len(charted)]  # the first chart stays with the sentences
    boxes = [chart_box(text, chart) for text, chart in zip(above, charted, strict=False)] or [sentences]
    return section("Where can the model be trusted?", TRUSTED, *boxes, table(TRUST_HEAD, trust_rows(data)))


def _trust_chart(found: Trust) -> str:
    points = [
        charts.Point(
            distance,
            error,
            f"{result.perturbation_id}: {figure(error)} at {distance:.2f}",
            result.perturbation_id,
        )
        for result, distance, error in zip(found.results, found.distances, found.errors, strict=True)
    ]
    where = f", {BATCHES[found.batches]}" if found.batches else ""
    axis = f"Distance to the nearest training perturbation, {found.kind}{where}"
    return charts.scatter_chart(points, axis, METRICS[FRECHET].heading)
