"""A report in words: what was measured, and what a reader must know before trusting it."""

from collections.abc import Sequence

import numpy as np

from morphoray.evaluation.comparisons import Comparison, Verdict, comparisons, rivals, verdict
from morphoray.evaluation.paper_form import paper_caveat
from morphoray.evaluation.profile_section import profile_words
from morphoray.evaluation.results import (
    BATCHES,
    CODEC,
    CONTROL,
    FLOOR,
    FRECHET,
    HELD_OUT,
    KID,
    MODELS,
    OTHER,
    SEEN,
    Cell,
    ReportData,
    equals,
    figure,
    image_counts,
    mean,
    measured,
)
from morphoray.evaluation.statistics import LEAST_PAIRS, SIGNIFICANT

DISTANCES = {FRECHET: "Fréchet distance", KID: "kernel distance"}
DIVERSITY = ("recall", "coverage")
LITTLE = 0.5  # of what real images reach
VERDICTS: dict[Verdict, str] = {
    "closer": "{ours} lie closer to the real ones than {theirs}",
    "further": "{ours} lie further from the real ones than {theirs}",
    "disagree": "the two distances disagree on whether {ours} or {theirs} lie closer to the real ones",
    "unclear": "there is no clear difference between {ours} and {theirs}",
    "few": f"there is no verdict on {{ours}} against {{theirs}} below {LEAST_PAIRS} {{groups}}",
}
ONE_RUN = (
    "These verdicts are on the trained models at hand, one training run each: another run of the same may "
    "give another."
)
FITTED = (
    "The real images are those that training saw: this tells how well training images are fitted, and is no "
    "test on new ones."
)
SAME_IMAGES = (
    "These are the same generated images as above, held against other real ones, not a second experiment."
)


def summary(data: ReportData) -> list[str]:
    """The result in plain sentences, taken from the measurements only, then what the data are."""
    rows = comparisons(data)
    paragraphs = [text for batches in data.batches for text in _of_batches(data, batches, rows)]
    if data.profiles and not data.profiles.problem:
        paragraphs.append(f"Cells. {' '.join(profile_words(data, data.profiles))}")
    if any(row.rival in data.models for row in rows):
        paragraphs.append(ONE_RUN)
    if data.excluded:
        paragraphs.append(_excluded(data))
    return [*paragraphs, data.data_statement]


def _of_batches(data: ReportData, batches: str, rows: Sequence[Comparison]) -> list[str]:
    """A paragraph for each cell of one group of batches, then what else was found there."""
    cells = dict.fromkeys(row.cell for row in rows if row.cell.batches in (None, batches))
    told = [_of_cell(data, cell, batches, [row for row in rows if row.cell == cell]) for cell in cells]
    paragraphs = [text for text in told if text]
    mine = data.of(batches)
    more = [*_diversity(mine), *_reference_points(mine)]
    if more:
        where = f"{BATCHES[batches].capitalize()}. " if len(data.batches) > 1 else ""
        paragraphs.append(where + " ".join(more))
    if batches == HELD_OUT and len(data.batches) > 1:
        paragraphs[:1] = [f"{text} {SAME_IMAGES}" for text in paragraphs[:1]]
    return paragraphs


def _of_cell(data: ReportData, cell: Cell, batches: str, rows: Sequence[Comparison]) -> str:
    unseen = next(result.unseen for result in data.perturbations if cell.has(result))
    where = f"{'Unseen' if unseen else 'Seen'} perturbations"
    if len(data.batches) > 1:
        where += f" in {BATCHES[batches]}"
    told = [
        _against(data, rival, [row for row in rows if row.rival == rival])
        for rival in dict.fromkeys(row.rival for row in rows)
    ]
    told = [text for text in told if text]
    if told and batches == SEEN and not unseen:
        told.append(FITTED)
    return f"{where}. {' '.join(told)}" if told else ""


def _against(data: ReportData, rival: str, rows: Sequence[Comparison]) -> str:
    """The verdict and its figures; of another perturbation's images only where they lie nearer."""
    ours, theirs, found = f"{_whose(data, data.models[0])} images", _whose(data, rival), verdict(rows)
    text = VERDICTS[found].format(ours=ours, theirs=theirs, groups=rows[0].groups)
    if rival == OTHER:
        nearer = [DISTANCES[row.metric] for row in rows if row.paired.mean > 0]
        if not nearer:
            return ""
        by = "" if len(nearer) == len(rows) else f", by the {nearer[0]}"
        text = f"on average {theirs} lie nearer to the real ones than {ours}{by}"
    return f"{_sentence(text)}: {_figures(rows, tested=found != 'few')}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figures(rows: Sequence[Comparison], tested: bool) -> str:
    """Both sides' means over the groups that both have, and on how many the first is closer."""
    told = [
        f"{DISTANCES[row.metric]} {figure(row.paired.first)} against {figure(row.paired.second)}"
        + (f" (adjusted p {equals(row.adjusted)})" if tested and np.isfinite(row.adjusted) else "")
        for row in rows
    ]
    closer = " and ".join(str(row.paired.first_smaller) for row in rows)
    row = rows[0]
    counted = row.counted
    if row.paired.n != row.treatments:
        counted += f" ({row.treatments} perturbations)"
    return f"{', '.join(told)}, closer on {closer} of {counted}"


def _whose(data: ReportData, method: str) -> str:
    """Whose images are meant, as a sentence says it."""
    if method == CONTROL:
        return "real controls"
    if method == OTHER:
        return "real images of another perturbation"
    label = data.methods[method].label
    return f"the {label.lower()}'s" if method in MODELS else f"{label}'s"


def _diversity(data: ReportData) -> list[str]:
    """A sentence where the first model's recall or coverage is far below real images', or below a rival's."""
    found = [short for metric in DIVERSITY if (short := _short_of(data, metric))]
    if not found:
        return []
    what = "fewer of the real ones than another model's"
    if any(little for _, little in found):
        what = "few of the real ones (little diversity, or images that lie elsewhere)"
    told = "; ".join(text for text, _ in found)
    return [_sentence(f"{_whose(data, data.models[0])} images cover {what}: {told}.")]


def _short_of(data: ReportData, metric: str) -> tuple[str, bool] | None:
    """What the first model falls short of, and whether it is less than LITTLE of what real images reach."""
    first, *others = data.models
    value, floor = (mean(measured(data, metric, method)) for method in (first, FLOOR))
    if value is None or floor is None:
        return None
    beside = [f"real images reach {figure(floor)}"]
    for other in others:
        theirs = mean(measured(data, metric, other))
        if theirs is not None and theirs > value:
            beside.append(f"{_whose(data, other)} {figure(theirs)}")
    little = value < LITTLE * floor
    if not little and len(beside) == 1:
        return None
    return f"{metric} is {figure(value)} where {' and '.join(beside)}", little


def _reference_points(data: ReportData) -> list[str]:
    floor, codec = (mean(measured(data, FRECHET, method)) for method in (FLOOR, CODEC))
    if floor is None:
        return []
    text = (
        "Reference points, no bounds, by Fréchet distance: two disjoint sets of "
        f"{image_counts(data)} real images lie {figure(floor)} apart"
    )
    if codec is not None:
        text += f", and real images that only pass through the codec {figure(codec)} from other real ones"
    return [f"{text}."]


def _excluded(data: ReportData) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(data.excluded.items())[:3]]
    more = ", …" if len(data.excluded) > 3 else ""
    return f"{len(data.excluded)} perturbations could not be measured: {'; '.join(shown)}{more}."


def caveats(data: ReportData) -> list[str]:
    """What a reader must know before trusting or comparing the numbers, one paragraph each."""
    floors = [mean(measured(data.of(batches), FRECHET, FLOOR)) for batches in data.batches]
    told = " and ".join(figure(floor) for floor in floors if floor is not None)
    n = image_counts(data)
    bias = f", which the floor shows: {told}" if told else ""
    paragraphs = [
        f"Every distance compares {n} with {n} images. A Fréchet distance of few images carries a large "
        f"sample-size bias{bias}. Where N is below the number of features (1,280 of EfficientNet-Lite0, "
        "2,048 of InceptionV3) it favours sets of little diversity: read it beside the kernel distance, "
        "precision and recall. Never compare the values with published FIDs, or with a report made at "
        "another N.",
        f"Features: {data.extractor}, weights {data.weights_hash}, resized by clean-fid ({data.mode}). "
        "Another extractor has another scale.",
        "All methods of a perturbation are measured from the same real images. The codec's and the floor's "
        "images are other real ones, of other fields of view: crops of one field are alike, so none lies on "
        "both sides.",
    ]
    paragraphs += [*_kernel_subsets(data), *_tests(data), *_batches(data), *paper_caveat(data)]
    for batches in data.batches:
        paragraphs += _each_channel(data.of(batches), BATCHES[batches] if len(data.batches) > 1 else "")
    if any(result.um_per_pixel is None for result in data.perturbations):
        paragraphs.append(
            "Images without a scale bar: the data don't tell the size of a pixel. The importers of measured "
            "data take it as an option (pixel_size_um)."
        )
    if any(result.unseen for result in data.perturbations):
        paragraphs.append(
            "Perturbations marked unseen were held out of training: the model knows them only by their "
            "condition vector."
        )
    return [*paragraphs, *data.notes]


def _kernel_subsets(data: ReportData) -> list[str]:
    """How many random subsets a kernel distance is the mean of; nothing where none was drawn."""
    found = [each for method in data.methods for each in measured(data, KID, method) if each.draws > 1]
    if not found:
        return []
    sizes = sorted({each.n_a for each in found})
    size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return [
        f"A kernel distance is the mean over {found[0].draws} random subsets of {size} images a side; the "
        "interval beside it, and kid_low and kid_high in metrics.csv, hold 95 % of the subsets. That is the "
        "spread of the subsets, which share images: no error bar of the distance. It has no bias of few "
        "images and may be negative."
    ]


def _tests(data: ReportData) -> list[str]:
    """What is tested, and when a difference is called clear; nothing where nothing is compared."""
    if not rivals(data):
        return []
    return [
        "Tests leave controls out. Perturbations of one mechanism (where it is unknown, of one gene or "
        "structure) are no independent evidence: distances are averaged over them first, and tested over "
        "mechanisms. A difference is called clear where the Fréchet and the kernel distance have one sign "
        f"and each a p below {SIGNIFICANT}, adjusted for all rows of the table, over {LEAST_PAIRS} "
        "mechanisms or more; the two disagree where the signs differ and each unadjusted p is below it.",
        f"Intervals (bootstrap, BCa) are given of {LEAST_PAIRS} differences or more, of fewer a dash: they "
        "would be hardly more than the smallest and the largest. No verdict rests on one.",
    ]


def _batches(data: ReportData) -> list[str]:
    """What the groups of batches are; nothing where the data tell none apart."""
    if not any(data.batches):
        return []
    if len(data.batches) == 1:
        known = "training saw" if data.batches[0] == SEEN else "training never saw"
        return [f"All real images are from batches that {known}."]
    return [
        "Seen batches are those that training saw, held-out batches those that it never saw. Each has its "
        "own real images, floor, baselines and ranks; the generated images are the same. No mean spans both."
    ]


def _each_channel(data: ReportData, where: str) -> list[str]:
    """The mean Fréchet distances of each channel alone, in a paragraph; none where images are RGB."""
    channels = {extractor: None for result in data.perturbations for extractor in result.channels}
    told = []
    for extractor in channels:
        sets = [result.channels[extractor] for result in data.perturbations if extractor in result.channels]
        means = [
            f"{method.label.lower()} {figure(mean(found[key] for found in sets if key in found))}"
            for key, method in data.methods.items()
            if any(key in found for found in sets)
        ]
        told.append(f"{extractor}: {', '.join(means)}")
    if not told:
        return []
    return [
        "The features are those of each channel alone, side by side. Mean Fréchet distances of single "
        f"channels{f' in {where}' if where else ''}, which metrics.csv has for every perturbation: "
        f"{'; '.join(told)}."
    ]
