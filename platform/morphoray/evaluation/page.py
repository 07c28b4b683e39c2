"""The report as one self-contained HTML page: pictures as data URIs, charts as SVG, no scripts, no links."""

import base64
from collections import Counter
from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template

import numpy as np
import numpy.typing as npt

from morphoray.evaluation import charts
from morphoray.evaluation.comparisons import COMPARISON_HEAD, comparison_cells, comparisons
from morphoray.evaluation.profile_section import profile_html
from morphoray.evaluation.results import (
    CODEC,
    FRECHET,
    HEADLINE,
    METRICS,
    PerturbationResult,
    ReportData,
    duration,
    figure,
    image_counts,
    mean,
    measured,
)
from morphoray.evaluation.words import caveats, summary
from morphoray.imaging.crops import resize_square
from morphoray.imaging.png import encode_png

Images = npt.NDArray[np.uint8]

RECONSTRUCTED = "Codec: the real images above, reconstructed"
SHOWN = 8  # images of each kind
LARGE, SMALL = 128, 64  # CSS pixels of a tile in report.html
COMPARED = """The first model against the others, pair by pair over perturbations: the mean difference
with its bootstrap interval, the paired t-test with its p adjusted for all rows (Benjamini–Hochberg), and the
paper's unpaired t-test with its stars, which takes numbers that share real images for independent ones."""
RANKED = """The rank of the matched real images among the real images of all perturbations, by Fréchet
distance from the generated ones. 1 is right; a model that knows nothing of the perturbation spreads
evenly."""
MAX_STORED = 192  # larger images are shrunk: a 512-pixel one would make the page eight times as heavy


def render(data: ReportData) -> str:
    """The HTML text. Everything that comes from data is escaped."""
    template = resources.files("morphoray.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    rows = [_dot_row(data, result) for result in data.perturbations]
    return Template(template).substitute(
        title=escape(data.title),
        kicker=escape(f"morphoray · {data.experiment} · run {data.made_by}"),
        summary=_paragraphs(summary(data)),
        facts=_facts(data),
        n=escape(image_counts(data)),
        headline=_headline(data),
        legend="".join(
            f"<span>{_key(data.mark(key))}{escape(method.label)}</span>"
            for key, method in data.methods.items()
        ),
        compared=_compared(data),
        ranks=_ranks(data),
        profiles=profile_html(data),
        dots=charts.dot_plot(rows, METRICS[FRECHET].label, "Unseen in training"),
        montages="".join(_montage(data, result) for result in data.perturbations),
        outlook=escape(data.facts.outlook),
        losses=charts.loss_chart(data.losses) or "<p>No losses were recorded.</p>",
        caveats="".join(f"<li>{escape(text)}</li>" for text in caveats(data)),
        numbers=_numbers(data),
        details=_details(data),
    )


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _key(mark: str) -> str:
    return f'<svg class="key" viewBox="0 0 18 18" aria-hidden="true">{charts.marker(mark, 9, 9)}</svg>'


def _facts(data: ReportData) -> str:
    unseen = sum(result.unseen for result in data.perturbations)
    hidden = f"of them {unseen} unseen" if unseen else ""
    speed = data.facts.machine_gflops
    facts = {
        "Training steps": f"{data.facts.steps:,}",
        "Images seen": f"{data.facts.images_seen:,}",
        "Time": escape(duration(data.facts.seconds)),
        "Machine": f"{speed:,.0f} <small>GFLOP/s</small>" if speed else "–",
        "Perturbations": f"{len(data.perturbations)} <small>{hidden}</small>",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _headline(data: ReportData) -> str:
    groups: dict[str, bool | None] = {"all": None}
    if 0 < sum(result.unseen for result in data.perturbations) < len(data.perturbations):
        groups |= {"seen": False, "unseen": True}
    metrics = [name for name in HEADLINE if any(measured(data, name, method) for method in data.methods)]
    span = f' colspan="{len(groups)}"'
    head = "".join(f"<th{span} class=group>{escape(METRICS[metric].label)}</th>" for metric in metrics)
    if len(groups) > 1:
        subheads = "".join(f"<th>{group}</th>" for _ in metrics for group in groups)
        head += f"</tr><tr><th></th>{subheads}"
    rows = []
    for key, method in data.methods.items():
        cells = [
            f"<td{'' if metric == FRECHET else ' class=light'}>"
            f"{figure(mean(measured(data, metric, key, unseen)))}</td>"
            for metric in metrics
            for unseen in groups.values()
        ]
        name = f"{_key(data.mark(key))}{escape(method.label)}<small>{escape(method.note)}</small>"
        rows.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    return f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _dot_row(data: ReportData, result: PerturbationResult) -> charts.DotRow:
    found = result.distances.get(FRECHET, {})
    dots = [
        charts.Dot(
            data.mark(key),
            found[key].value,
            f"{result.perturbation_id}, {method.label}: {figure(found[key].value)} (N = {found[key].n_a})",
        )
        for key, method in reversed(data.methods.items())
        if key in found
    ]
    return charts.DotRow(result.perturbation_id, dots, result.unseen)


def _montage(data: ReportData, result: PerturbationResult) -> str:
    about = [result.moa, result.gene]
    if result.concentration_um is not None:
        about.append(f"{result.concentration_um:g} µM")
    badge = ""
    if result.unseen:
        badge = '<span class="badge flag">Unseen in training</span>'
    elif result.is_control:
        badge = '<span class="badge">Control</span>'
    meta = " · ".join(escape(text) for text in about if text)
    found = result.distances.get(FRECHET, {})
    scores = "".join(
        f"<span>{escape(method.label.split()[0])} <b>{figure(found[key].value)}</b></span>"
        for key, method in data.methods.items()
        if key in found
    )
    scores = f"{escape(METRICS[FRECHET].label)}{scores}" if scores else ""
    smiles = f"<code>{escape(result.smiles)}</code>" if result.smiles else ""
    name = result.perturbation_id
    first, *others = data.models
    tiles = [_tiles(data.methods[other].label, result.images.get(other), SMALL, name) for other in others]
    return (
        f"<article{' class=unseen' if result.unseen else ''}><header><h3>{escape(name)}</h3>{badge}"
        f'<span class="meta">{meta}</span><span class="scores">{scores}</span>{smiles}</header>'
        f'<div class="pair large">{_tiles("Real", result.real, LARGE, name)}'
        f"{_tiles('Generated', result.images.get(first), LARGE, name)}</div>"
        f'<div class="pair small">{_tiles(RECONSTRUCTED, result.images.get(CODEC), SMALL, name)}'
        f"{''.join(tiles)}</div></article>"
    )


def _tiles(caption: str, images: Images | None, shown_at: int, name: str) -> str:
    if images is None or not len(images):
        return f"<figure><figcaption>{escape(caption)}: none</figcaption></figure>"
    tiles = []
    for index, image in enumerate(images[:SHOWN]):
        stored = resize_square(image, min(image.shape[1], image.shape[2], MAX_STORED))
        data = base64.b64encode(encode_png(stored, compress_level=9)).decode()
        crisp = ' class="crisp"' if shown_at % stored.shape[1] == 0 else ""
        alt = escape(f"{caption}, {name}, {index + 1}")
        tiles.append(f'<img{crisp} alt="{alt}" src="data:image/png;base64,{data}">')
    heading = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure>{heading}<div class="tiles">{"".join(tiles)}</div></figure>'


def _numbers(data: ReportData) -> str:
    columns = [
        (metric, method) for metric in METRICS for method in data.methods if measured(data, metric, method)
    ]
    spans = Counter(metric for metric, _ in columns)
    groups = "".join(
        f"<th colspan={count} class=group>{escape(METRICS[name].label)}</th>" for name, count in spans.items()
    )
    names = "".join(f"<th>{escape(data.methods[method].label)}</th>" for _, method in columns)
    head = f"<tr><th></th><th></th>{groups}</tr><tr><th>Perturbation</th><th>N</th>{names}</tr>"
    rows = []
    for result in data.perturbations:
        found = [result.distances.get(metric, {}).get(method) for metric, method in columns]
        values = {column: distance.value for column, distance in zip(columns, found, strict=True) if distance}
        cells = []
        for metric, method in columns:
            rivals = [values[metric, other] for other in data.models if (metric, other) in values]
            best = method in data.models and values.get((metric, method)) == _best(rivals, metric)
            text = figure(values.get((metric, method)))
            cells.append(f"<td{' class=best' if best else ''}>{text}</td>")
        n = next((str(distance.n_a) for distance in found if distance), "–")
        name = escape(result.perturbation_id) + (" (unseen)" if result.unseen else "")
        rows.append(f"<tr><td>{name}</td><td>{n}</td>{''.join(cells)}</tr>")
    return f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"


def _compared(data: ReportData) -> str:
    rows = [comparison_cells(data, row) for row in comparisons(data)]
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in COMPARISON_HEAD)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<h2>Is the difference real?</h2><p class="under">{COMPARED}</p>'
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _ranks(data: ReportData) -> str:
    ranks = {
        data.methods[model].label: [
            result.distances["rank"][model].value
            for result in data.perturbations
            if model in result.distances.get("rank", {})
        ]
        for model in data.models
    }
    chart = charts.rank_chart({name: values for name, values in ranks.items() if values})
    if not chart:
        return ""
    return (
        f'<h2>Which real cohort lies nearest?</h2><p class="under">{RANKED}</p>'
        f'<div class="scroll">{chart}</div>'
    )


def _best(values: list[float], metric: str) -> float:
    """The best of the models' values; NaN of none."""
    if not values:
        return np.nan
    better = METRICS[metric].better
    return (
        min(values, key=lambda value: abs(value - 1))
        if better == "one"
        else (max(values) if better == "higher" else min(values))
    )


def _details(data: ReportData) -> str:
    details = {
        **data.facts.details,
        "Extractor": f"{data.extractor}, weights {data.weights_hash}, {data.mode}",
        "Seed": str(data.seed),
        "Run": data.made_by,
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in details.items())
