"""The report's section on profiles of cells: a table, maps, the features that move, and how to read them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import numpy as np

from morphoray.evaluation.marks import key_of
from morphoray.evaluation.measures import CONTROL
from morphoray.evaluation.profile_analysis import CLIP
from morphoray.evaluation.profile_chart import furthest, map_chart
from morphoray.evaluation.profile_results import Estimate, ProfileResults, SourceProfiles
from morphoray.evaluation.profiles import REAL
from morphoray.evaluation.results import BASELINES, ReportData, figure, interval, percent
from morphoray.evaluation.statistics import LEAST_PAIRS

TITLE = "What the cells look like"
UNDER = """Cells are found in real and generated images alike and measured as CellProfiler does. An image's
profile is the mean over its cells, scaled by real controls."""
MOST_MOVED = 8  # perturbations whose features are told


@dataclass(frozen=True)
class Cell:
    """A figure of the table, and what stands small below it."""

    value: str
    small: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.small})" if self.small else self.value


def _label(data: ReportData, source: str) -> str:
    if source == REAL:
        return "Real images"
    return BASELINES[source].label if source in BASELINES else data.methods[source].label


def _estimate(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("–")
    return Cell(figure(found.mean), interval(found.low, found.high) if np.isfinite(found.low) else "")


def _distance(source: SourceProfiles) -> Cell:
    values = [distance.value for distance in source.distances.values()]
    return Cell(figure(float(np.mean(values))) if values else "–")


def _nmi(source: SourceProfiles, label: str) -> Cell:
    found = source.nmi.get(label)
    return Cell(figure(found.nmi), f"chance {figure(found.chance)}") if found else Cell("–")


def _mechanisms(source: SourceProfiles, name: str) -> Cell:
    share, of = getattr(source.mechanisms, name) if source.mechanisms else (np.nan, 0)
    return Cell(percent(share), f"of {of}") if of else Cell("–")


def _recognised(source: SourceProfiles, label: str) -> Cell:
    found = source.recognised.get(label)
    return Cell(percent(float(np.mean([*found.values()]))), f"of {len(found)}") if found else Cell("–")


COLUMNS: dict[str, Callable[[SourceProfiles], Cell]] = {
    "Correlation with real profiles ↑": lambda source: _estimate(source.correlation),
    "Fréchet distance of profiles ↓": _distance,
    "Clusters, perturbation ↑": lambda source: _nmi(source, "perturbation"),
    "Clusters, mechanism ↑": lambda source: _nmi(source, "moa"),
    "NSC ↑": lambda source: _mechanisms(source, "nsc"),
    "NSCB ↑": lambda source: _mechanisms(source, "nscb"),
    "Recognised, perturbation ↑": lambda source: _recognised(source, "perturbation"),
    "Recognised, mechanism ↑": lambda source: _recognised(source, "moa"),
}


def profile_table(
    data: ReportData, results: ProfileResults
) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The head, and a row a source: models, control, real images; columns without figures are left out."""
    order = [*data.models, CONTROL, REAL]
    rows = {source: results.sources.get(source, SourceProfiles()) for source in order}
    columns = {name: [column(source) for source in rows.values()] for name, column in COLUMNS.items()}
    columns = {name: cells for name, cells in columns.items() if any(cell.value != "–" for cell in cells)}
    counts = [_counted(results, source) for source in order]
    table = [
        (source, [*(cells[place] for cells in columns.values()), counts[place]])
        for place, source in enumerate(order)
        if source != CONTROL or source in results.sources
    ]
    return [*columns, "Cells an image"], table


def _counted(results: ProfileResults, source: str) -> Cell:
    cells = results.cells.get(source)
    if cells is None:
        return Cell("–")
    return Cell(figure(cells.per_image), f"{cells.without_cells} of {cells.images} images without")


def profile_words(data: ReportData, results: ProfileResults) -> list[str]:
    """What the table says of correlations, in a sentence or two."""
    if results.problem:
        return [f"Beyond the number of cells nothing could be told: {results.problem}"]
    sources = (*data.models, CONTROL, REAL)
    found = {
        source: estimate
        for source in sources
        if (estimate := results.sources.get(source, SourceProfiles()).correlation)
    }
    told = [
        f"{_label(data, source)}{', half against half' if source == REAL else ''} {_estimate(estimate)}"
        for source, estimate in found.items()
    ]
    words = []
    if told:
        counts = sorted({estimate.n for estimate in found.values()})
        over = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
        treatments = "treatment" if counts[-1] == 1 else "treatments"
        words = [f"Correlation with the profiles of real cells, over {over} {treatments}: {'; '.join(told)}."]
    missing = [_label(data, model) for model in data.models if model not in found]
    return words + [f"{name}: too few images have cells to compare profiles." for name in missing]


def profile_caveats(results: ProfileResults) -> list[str]:
    """How to read the section, one paragraph each."""
    measured, selected = results.features
    paragraphs = [
        "↑: higher is better, ↓: lower is; the row of real images is what a perfect method reaches. The "
        "number of cells is best where the real images' is.",
        "The number of cells is a confounder, and no feature: most measurements of a cell depend on how "
        "crowded it is. Where a method's images hold another number of cells than the real ones, read the "
        "rest with that in mind.",
    ]
    if not results.problem:
        left_out = sum(each.incomplete for each in results.cells.values())
        incomplete = f", and {left_out} more in which a chosen feature is missing" if left_out else ""
        paragraphs += [
            f"Features are scaled by {results.normalised} (those of generated images by all) and chosen on "
            f"real images: {selected} of {measured}; values beyond ±{CLIP:g} are set there. Images without "
            f"cells are left out{incomplete}.",
            "Correlations (Spearman, over features) compare the medians of n generated and n real images, n "
            "being half of the real ones at most; the last row compares two such halves of real images, and "
            "below each stands a 95 % bootstrap interval over treatments, of fewer than "
            f"{LEAST_PAIRS} none. A mean above the last row's means less noise, not more truth.",
            "Clusters: normalised mutual information of k-means with the names, treatments only. NSC: share "
            "of treatments whose nearest real one, of another compound, has their mechanism; NSCB: and of "
            "another batch. Recognised: balanced accuracy of a linear classifier that half of the real "
            "images' batches, plates or wells taught; the last row is the other half.",
        ]
    if len(results.maps) > 1:
        paragraphs.append("UMAP keeps neighbours near; how far apart its groups lie means nothing.")
    return [*paragraphs, *results.notes]


def profile_html(data: ReportData) -> str:
    """The section; empty where there are no profiles."""
    results = data.profiles
    if results is None:
        return ""
    head, rows = profile_table(data, results)
    body = "".join(
        f"<tr><td>{_key(data, source)}{escape(_label(data, source))}</td>"
        + "".join(f"<td>{escape(cell.value)}<small>{escape(cell.small)}</small></td>" for cell in cells)
        + "</tr>"
        for source, cells in rows
    )
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<h2>{TITLE}</h2><p class="under">{UNDER}</p>{_paragraphs(profile_words(data, results))}'
        f'<div class="scroll"><table class="profiles"><thead><tr><th></th>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_maps(data, results)}{_moved(data, results)}"
        f'<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in profile_caveats(results))}</ul>'
    )


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _key(data: ReportData, source: str) -> str:
    return key_of("floor" if source == REAL else data.mark(source))


def _maps(data: ReportData, results: ProfileResults) -> str:
    labels = {source: _label(data, source) for source in (REAL, *data.models)}
    named = furthest(results.maps[0]) if results.maps else []  # the same on every map
    return "".join(
        f'<figure class="map"><h3>{escape(found.title)}</h3>'
        f'<p class="under">Across {escape(found.axes[0])}, up {escape(found.axes[1])}; a dot an image, the '
        "number at a perturbation's median, in grey the real images.</p>"
        f'<div class="scroll">{map_chart(found, labels, named)}</div></figure>'
        for found in results.maps
    )


def moved_rows(data: ReportData, results: ProfileResults) -> tuple[list[str], list[list[str]]]:
    """The features that move most, of the perturbations that move most, in real images and each model's."""
    most: dict[str, float] = {}
    for moved in results.moved:
        most[moved.perturbation_id] = max(most.get(moved.perturbation_id, 0), abs(moved.real))
    shown = sorted(most, key=lambda name: -most[name])[:MOST_MOVED]
    rows = [
        [
            moved.perturbation_id,
            moved.words[:1].upper() + moved.words[1:],
            _signed(moved.real),
            *(_signed(moved.methods.get(model, np.nan)) for model in data.models),
        ]
        for name in shown
        for moved in results.moved
        if moved.perturbation_id == name
    ]
    return ["Perturbation", "Feature", "Real", *(_label(data, model) for model in data.models)], rows


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


def _moved(data: ReportData, results: ProfileResults) -> str:
    head, rows = moved_rows(data, results)
    if not rows:
        return ""
    body, before = "", ""
    for name, words, *values in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        body += f"<tr><td>{escape(name) if name != before else ''}</td><td>{escape(words)}</td>{cells}</tr>"
        before = name
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        '<h3 class="apart">What moves, and whether it moves in generated images</h3>'
        '<p class="under">Differences from real controls in their standard deviations (Cohen\'s d), of the '
        "features that move most in real images.</p>"
        f'<div class="scroll"><table class="numbers moved"><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def profile_markdown(data: ReportData, table: Callable[..., str], cell: Callable[[str], str]) -> list[str]:
    """The section's parts without its maps, none where there are no profiles.

    table, cell: how the report writes a table of head and rows, and a text.
    """
    results = data.profiles
    if results is None:
        return []
    head, rows = profile_table(data, results)
    cells = [(_label(data, source), *map(str, values)) for source, values in rows]
    parts = [f"## {TITLE}", cell(UNDER), *map(cell, profile_words(data, results))]
    parts.append(table(("images", *head), cells))
    names, moved = moved_rows(data, results)
    if moved:
        parts.append("Cohen's d from real controls:\n\n" + table(names, moved))
    parts.append("\n".join(f"- {cell(text)}" for text in profile_caveats(results)))
    return parts
