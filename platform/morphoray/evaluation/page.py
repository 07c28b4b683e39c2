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
from morphoray.evaluation.results import (
    CONDITIONAL,
    FRECHET,
    METHODS,
    METRICS,
    UNCONDITIONAL,
    PerturbationResult,
    ReportData,
    caveats,
    duration,
    figure,
    image_counts,
    mean,
    measured,
    summary,
)
from morphoray.imaging.crops import resize_square
from morphoray.imaging.png import encode_png

Images = npt.NDArray[np.uint8]

RECONSTRUCTED = "Codec: the real images above, reconstructed"
SHOWN = 8  # images of each kind
LARGE, SMALL = 128, 64  # CSS pixels of a tile in report.html
MAX_STORED = 192  # larger images are shrunk: a 512-pixel one would make the page eight times as heavy


def render(data: ReportData) -> str:
    """The HTML text. Everything that comes from data is escaped."""
    template = resources.files("morphoray.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    rows = [_dot_row(result) for result in data.perturbations]
    return Template(template).substitute(
        title=escape(data.title),
        kicker=escape(f"morphoray · {data.experiment} · run {data.made_by}"),
        summary=_paragraphs(summary(data)),
        facts=_facts(data),
        n=escape(image_counts(data)),
        headline=_headline(data),
        legend="".join(f"<span>{_key(key)}{escape(method.label)}</span>" for key, method in METHODS.items()),
        dots=charts.dot_plot(rows, METRICS[FRECHET], "Unseen in training"),
        montages="".join(_montage(result) for result in data.perturbations),
        outlook=escape(data.facts.outlook),
        losses=charts.loss_chart(data.losses) or "<p>No losses were recorded.</p>",
        caveats="".join(f"<li>{escape(text)}</li>" for text in caveats(data)),
        numbers=_numbers(data),
        details=_details(data),
    )


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _key(method: str) -> str:
    return f'<svg class="key" viewBox="0 0 18 18" aria-hidden="true">{charts.marker(method, 9, 9)}</svg>'


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
    metrics = [name for name in METRICS if any(measured(data, name, method) for method in METHODS)]
    span = f' colspan="{len(groups)}"'
    head = "".join(f"<th{span} class=group>{escape(METRICS[metric])}</th>" for metric in metrics)
    if len(groups) > 1:
        subheads = "".join(f"<th>{group}</th>" for _ in metrics for group in groups)
        head += f"</tr><tr><th></th>{subheads}"
    rows = []
    for key, method in METHODS.items():
        cells = [
            f"<td{'' if metric == FRECHET else ' class=light'}>"
            f"{figure(mean(measured(data, metric, key, unseen)))}</td>"
            for metric in metrics
            for unseen in groups.values()
        ]
        name = f"{_key(key)}{escape(method.label)}<small>{escape(method.note)}</small>"
        rows.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    return f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _dot_row(result: PerturbationResult) -> charts.DotRow:
    found = result.distances.get(FRECHET, {})
    dots = [
        charts.Dot(
            key,
            found[key].value,
            f"{result.perturbation_id}, {method.label}: {figure(found[key].value)} (N = {found[key].n_a})",
        )
        for key, method in reversed(METHODS.items())
        if key in found
    ]
    return charts.DotRow(result.perturbation_id, dots, result.unseen)


def _montage(result: PerturbationResult) -> str:
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
        f"<span>{METHODS[key].label.split()[0]} <b>{figure(found[key].value)}</b></span>"
        for key in METHODS
        if key in found
    )
    scores = f"{escape(METRICS[FRECHET])}{scores}" if scores else ""
    smiles = f"<code>{escape(result.smiles)}</code>" if result.smiles else ""
    name = result.perturbation_id
    return (
        f"<article{' class=unseen' if result.unseen else ''}><header><h3>{escape(name)}</h3>{badge}"
        f'<span class="meta">{meta}</span><span class="scores">{scores}</span>{smiles}</header>'
        f'<div class="pair large">{_tiles("Real", result.real, LARGE, name)}'
        f"{_tiles('Generated', result.conditional, LARGE, name)}</div>"
        f'<div class="pair small">{_tiles(RECONSTRUCTED, result.reconstructions, SMALL, name)}'
        f"{_tiles('Unconditional model', result.unconditional, SMALL, name)}</div></article>"
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
    columns = [(metric, method) for metric in METRICS for method in METHODS if measured(data, metric, method)]
    spans = Counter(metric for metric, _ in columns)
    groups = "".join(f"<th colspan={count} class=group>{METRICS[name]}</th>" for name, count in spans.items())
    names = "".join(f"<th>{METHODS[method].label}</th>" for _, method in columns)
    head = f"<tr><th></th><th></th>{groups}</tr><tr><th>Perturbation</th><th>N</th>{names}</tr>"
    rows = []
    for result in data.perturbations:
        found = [result.distances.get(metric, {}).get(method) for metric, method in columns]
        values = {column: distance.value for column, distance in zip(columns, found, strict=True) if distance}
        cells = []
        for metric, method in columns:
            rivals = [values.get((metric, other), np.inf) for other in (CONDITIONAL, UNCONDITIONAL)]
            best = method in (CONDITIONAL, UNCONDITIONAL) and values.get((metric, method)) == min(rivals)
            text = figure(values.get((metric, method)))
            cells.append(f"<td{' class=best' if best else ''}>{text}</td>")
        n = next((str(distance.n_a) for distance in found if distance), "–")
        name = escape(result.perturbation_id) + (" (unseen)" if result.unseen else "")
        rows.append(f"<tr><td>{name}</td><td>{n}</td>{''.join(cells)}</tr>")
    return f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"


def _details(data: ReportData) -> str:
    details = {
        **data.facts.details,
        "Extractor": f"{data.extractor}, weights {data.weights_hash}, {data.mode}",
        "Seed": str(data.seed),
        "Run": data.made_by,
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in details.items())
