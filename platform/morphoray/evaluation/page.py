"""The report as one self-contained HTML page: pictures as data URIs, charts as SVG, no scripts, no links."""

import base64
from collections import defaultdict
from html import escape
from importlib import resources
from string import Template

import numpy as np
import numpy.typing as npt

from morphoray.evaluation import charts
from morphoray.evaluation.caveats import caveats
from morphoray.evaluation.distances import Distance
from morphoray.evaluation.marks import key_of
from morphoray.evaluation.measures import RATIO
from morphoray.evaluation.montage import SHOWN, scale_note
from morphoray.evaluation.profile_section import profile_html
from morphoray.evaluation.results import (
    BATCHES,
    CODEC,
    CONTROL,
    FEWER_MEANT,
    FRECHET,
    HEADLINE,
    HELD_OUT,
    METRICS,
    SHARE,
    Cell,
    PerturbationResult,
    ReportData,
    cells,
    explained,
    figure,
    image_counts,
    mean,
    measured,
    of_subsets,
    short_of,
    written,
)
from morphoray.evaluation.sections import chart_box, compared, paper, ranks, section, subheading, trust
from morphoray.evaluation.words import RULE, Judgement, summary
from morphoray.imaging.crops import resize_square
from morphoray.imaging.png import encode_png
from morphoray.imaging.scale_bar import bar_length

Images = npt.NDArray[np.uint8]

RECONSTRUCTED = "Codec: the real images above, reconstructed"
LIKE_REAL = (RATIO, SHARE)  # copies: best about as real images are, so that no extreme is
LARGE, SMALL = 128, 64  # CSS pixels of a tile in report.html
ACROSS = 7  # methods beside each other in a perturbation's table of distances
MAX_STORED = 192  # larger images are shrunk: a 512-pixel one would make the page eight times as heavy


def render(data: ReportData) -> str:
    """The HTML text. Everything that comes from data is escaped."""
    template = resources.files("morphoray.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(data.title),
        kicker=escape(f"morphoray · {data.experiment} · run {data.made_by}"),
        summary=_summary(data),
        facts=_facts(data),
        n=escape(image_counts(data)),
        headline=_headline(data),
        compared=compared(data),
        paper=paper(data),
        ranks=ranks(data),
        profiles=profile_html(data),
        trust=trust(data),
        dots="".join(_dots(data, batches) for batches in data.batches),
        scale=escape(scale_note(data)),
        montages="".join(_montage(data, results) for results in _by_perturbation(data)),
        training=_training(data),
        reconstructed=" and below them what the codec makes of the same images" if _codec(data) else "",
        caveats="".join(f"<li>{escape(text)}</li>" for text in caveats(data)),
        numbers=_numbers(data),
        details=_details(data),
    )


def _summary(data: ReportData) -> str:
    """What was found in a sentence or two, the table of verdicts, and what else must be known first."""
    told = summary(data)
    parts = [f"<p>{escape(text)}</p>" for text in told.lead]
    parts.append(f'<p class="soft">{escape(data.data_statement)}</p>')
    if told.verdicts:
        head = "".join(f"<th>{escape(name)}</th>" for name in told.head)
        rows = "".join(
            f"<tr><td>{escape(data.methods[rival].label)}</td>{''.join(map(_judged, found))}</tr>"
            for rival, found in told.verdicts.items()
        )
        table = f'<table class="verdicts"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        parts.append(f'<div class="scroll">{table}</div><p class="told">{escape(RULE)}</p>')
    points = "".join(f"<li>{escape(text)}</li>" for text in told.notes)
    return f'{"".join(parts)}<ul class="points">{points}</ul>'


def _judged(judgement: Judgement | None) -> str:
    if judgement is None:
        return "<td>–</td>"
    small = "".join(f"<small>{escape(text)}</small>" for text in judgement.figures)
    return f'<td><b class="{judgement.found}">{escape(judgement.words)}</b>{small}</td>'


def _facts(data: ReportData) -> str:
    names = {result.perturbation_id for result in data.perturbations}
    unseen = len({result.perturbation_id for result in data.perturbations if result.unseen})
    hidden = f"of them {unseen} unseen" if unseen else ""
    facts = {name: escape(value) for name, value in data.facts.shown.items()}
    facts["Perturbations"] = f"{len(names)} <small>{hidden}</small>"
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _headline(data: ReportData) -> str:
    groups = cells(data)
    metrics = [name for name in HEADLINE if any(measured(data, name, method) for method in data.methods)]
    span = f' colspan="{len(groups)}"'
    head = "".join(f"<th{span} class=group>{escape(METRICS[metric].title)}</th>" for metric in metrics)
    if len(groups) > 1:
        subheads = "".join(f"<th>{escape(cell.label)}</th>" for _ in metrics for cell in groups)
        head += f"</tr><tr><th></th>{subheads}"
    rows = []
    for key, method in data.methods.items():
        values = [_mean(data, metric, key, cell) for metric in metrics for cell in groups]
        name = f"{key_of(data.mark(key))}{escape(method.label)}<small>{escape(method.note)}</small>"
        rows.append(f"<tr><td>{name}</td>{''.join(values)}</tr>")
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    shorter = any(
        short_of(data, metric, key, cell) for metric in metrics for key in data.methods for cell in groups
    )
    under = f'<p class="told">{escape(FEWER_MEANT)}</p>' if shorter else ""
    return f'<div class="scroll"><table class="headline">{table}</table></div>{under}'


def _mean(data: ReportData, metric: str, method: str, cell: Cell) -> str:
    """The table's cell: a mean, and how many perturbations it is over where others are over more."""
    shorter = short_of(data, metric, method, cell)
    part = f" <span class=part>{shorter}</span>" if shorter else ""
    kind = "" if metric == FRECHET else " class=light"
    return f"<td{kind}>{figure(mean(measured(data, metric, method, cell)))}{part}</td>"


def _dots(data: ReportData, batches: str) -> str:
    group = data.of(batches)
    rows = [_dot_row(data, result) for result in group.perturbations]
    legend = "".join(
        f"<span>{key_of(data.mark(key))}{escape(method.label)}</span>"
        for key, method in group.methods.items()
    )
    chart = charts.dot_plot(rows, METRICS[FRECHET].heading, "Unseen in training")
    return chart_box(f'{subheading(data, batches)}<p class="legend">{legend}</p>', chart)


def _codec(data: ReportData) -> bool:
    """Whether there are images that the codec made."""
    return any(len(result.images.get(CODEC, ())) for result in data.perturbations)


def _training(data: ReportData) -> str:
    """The section on the models' training: nothing of models whose losses nobody knows."""
    under = f'<p class="under">{escape(data.facts.outlook)}</p>' if data.facts.outlook else ""
    return section("Training", "", under, chart_box("", _losses(data)))


def _losses(data: ReportData) -> str:
    """The chart of losses, each model drawn as in the others."""
    known = {name: place for place, name in enumerate(data.models)}
    others = [name for name in data.losses if name not in known]
    return charts.loss_chart(data.losses, known | {name: len(known) + i for i, name in enumerate(others)})


def _by_perturbation(data: ReportData) -> list[list[PerturbationResult]]:
    """Results of one perturbation together, in the order of the groups of batches."""
    found = defaultdict(list)
    for result in data.perturbations:
        found[result.perturbation_id].append(result)
    return [*found.values()]


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


def _montage(data: ReportData, results: list[PerturbationResult]) -> str:
    """Of one perturbation: its images, and below them the real ones of further groups of batches."""
    result, *further = results
    about = [result.moa, result.gene]
    if result.concentration_um is not None:
        about.append(f"{result.concentration_um:g} µM")
    badge = ""
    if result.unseen:
        badge = '<span class="badge flag">Unseen in training</span>'
    elif result.is_control:
        badge = '<span class="badge">Control</span>'
    meta = " · ".join(escape(text) for text in about if text)
    smiles = f"<code>{escape(result.smiles)}</code>" if result.smiles else ""
    name = result.perturbation_id
    first, *others = data.models
    generated = "Generated" + (f" ({data.methods[first].label})" if others else "")
    real = "Real" + (f", {BATCHES[result.batches]}" if further or result.batches == HELD_OUT else "")
    left = [_tiles(RECONSTRUCTED, result.images.get(CODEC), SMALL, name)] if _codec(data) else []
    left += [_tiles(f"Real, {BATCHES[each.batches]}", each.real, SMALL, name) for each in further]
    right = [_tiles(data.methods[other].label, result.images.get(other), SMALL, name) for other in others]
    if not others and CONTROL in result.images:
        right.append(_tiles("Real controls of the same batches", result.images[CONTROL], SMALL, name))
    scores = _scores(data, results)
    wide = " class=wide" if len(scores) > 1 else ""
    return (
        f"<article{' class=unseen' if result.unseen else ''}><header{wide}>"
        f"<div><h3>{escape(name)}</h3>{badge}"
        f'<span class="meta">{meta}</span>{smiles}</div>{"".join(scores)}</header>'
        f'<div class="pair large">{_tiles(real, result.real, LARGE, name, result.um_per_pixel)}'
        f"{_tiles(generated, result.images.get(first), LARGE, name)}</div>"
        f'<div class="pair small"><div>{"".join(left)}</div><div>{"".join(right)}</div></div></article>'
    )


def _scores(data: ReportData, results: list[PerturbationResult]) -> list[str]:
    """Every method's Fréchet distance from the real images, in tables of ACROSS methods at most."""
    there = [key for key in data.methods if any(key in each.distances.get(FRECHET, {}) for each in results)]
    tables = -(-len(there) // ACROSS)
    size = -(-len(there) // tables) if there else 0
    return [_score_table(data, results, there[at * size : (at + 1) * size]) for at in range(tables)]


def _score_table(data: ReportData, results: list[PerturbationResult], methods: list[str]) -> str:
    """A line a group of batches."""
    head = "".join(f"<th>{escape(data.methods[key].short)}</th>" for key in methods)
    rows = []
    for each in results:
        found = each.distances.get(FRECHET, {})
        values = "".join(f"<td>{figure(found[key].value if key in found else None)}</td>" for key in methods)
        rows.append(f"<tr><th>{BATCHES[each.batches].capitalize()}</th>{values}</tr>")
    return (
        f"<table class=scores><thead><tr><th>{escape(METRICS[FRECHET].title)}</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _tiles(
    caption: str, images: Images | None, shown_at: int, name: str, um_per_pixel: float | None = None
) -> str:
    if images is None or not len(images):
        return f"<figure><figcaption>{escape(caption)}: none</figcaption></figure>"
    tiles = []
    bar = ""
    if um_per_pixel is not None:
        width = images.shape[-1]
        length = bar_length(width, um_per_pixel)
        bar = f'<i class="bar" style="width:{100 * length / um_per_pixel / width:.2f}%"></i>'
        caption += f" (bar: {length:g} µm)"
    for index, image in enumerate(images[:SHOWN]):
        stored = resize_square(image, min(image.shape[1], image.shape[2], MAX_STORED))
        data = base64.b64encode(encode_png(stored, compress_level=9)).decode()
        crisp = ' class="crisp"' if shown_at % stored.shape[1] == 0 else ""
        alt = escape(f"{caption}, {name}, {index + 1}")
        picture = f'<img{crisp} alt="{alt}" src="data:image/png;base64,{data}">'
        tiles.append(f"<div>{picture}{bar if index == 0 else ''}</div>")
    heading = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure>{heading}<div class="tiles">{"".join(tiles)}</div></figure>'


def _numbers(data: ReportData) -> str:
    """A table for each metric below what it tells, a row a perturbation; the models' best value is bold."""
    return "".join(_of_metric(data, metric) for metric in METRICS)


def _of_metric(data: ReportData, metric: str) -> str:
    methods = [method for method in data.methods if measured(data, metric, method)]
    if not methods:
        return ""
    several = len(data.batches) > 1
    names = ["Perturbation", *(["Batches"] if several else []), "N"]
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names, *(data.methods[m].label for m in methods)])
    rows = []
    for result in data.perturbations:
        found = result.distances.get(metric, {})
        if not found:
            continue
        best = _best([found[model].value for model in data.models if model in found], metric)
        cells = [f"<td>{escape(result.perturbation_id)}{' (unseen)' if result.unseen else ''}</td>"]
        cells += [f"<td>{BATCHES[result.batches].removesuffix(' batches')}</td>"] if several else []
        cells.append(f"<td>{next(iter(found.values())).n_a}</td>")
        for method in methods:
            marked = method in data.models and method in found and found[method].value == best
            text = _with_interval(found.get(method), metric)
            cells.append(f"<td{' class=best' if marked else ''}>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<table class=numbers><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    title = f'<h3 class="of">{escape(METRICS[metric].heading)}</h3>'
    return f'{title}<p class="told">{escape(explained(data, metric))}</p><div class="scroll">{table}</div>'


def _with_interval(distance: Distance | None, metric: str) -> str:
    """A value; of a kernel distance with the interval that holds 95 % of its subsets."""
    if distance is None:
        return "–"
    told = of_subsets(distance, metric)
    return written(metric, distance.value) + (f"<small>{told}</small>" if told else "")


def _best(values: list[float], metric: str) -> float:
    """The best of the models' values; NaN of none, and where the best is what real images have."""
    if not values or metric in LIKE_REAL:
        return np.nan
    better = METRICS[metric].better
    if better == "up to one":
        return min(values, key=lambda value: abs(value - 1))
    return max(values) if better == "higher" else min(values)


def _details(data: ReportData) -> str:
    details = {
        **data.facts.details,
        "Extractor": f"{data.extractor}, weights {data.weights_hash}, {data.mode}",
        "Seed": str(data.seed),
        "Run": data.made_by,
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in details.items())
