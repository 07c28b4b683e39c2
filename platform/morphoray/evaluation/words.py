"""A report in words: what was measured, and what a reader must know before trusting it."""

import numpy as np

from morphoray.evaluation.comparisons import compare_models, rivals
from morphoray.evaluation.paper_form import paper_caveat
from morphoray.evaluation.results import (
    BASELINES,
    BATCHES,
    CODEC,
    CONDITIONAL,
    FLOOR,
    FRECHET,
    KID,
    MODELS,
    SEEN,
    UNCONDITIONAL,
    Cell,
    ReportData,
    figure,
    image_counts,
    mean,
    measured,
)
from morphoray.evaluation.statistics import PairedDifference

UNSEEN = Cell(unseen=True)


def summary(data: ReportData) -> list[str]:
    """The result in plain sentences, taken from the measurements only, then what the data are."""
    paragraphs = []
    for batches in data.batches:
        told = _of_one_group(data.of(batches))
        if len(data.batches) > 1:
            told = [f"{BATCHES[batches].capitalize()} — {told[0]}", " ".join(told[1:])] if told else []
        paragraphs += [text for text in told if text]
    if data.excluded:
        paragraphs.append(_excluded(data))
    return [*paragraphs, data.data_statement]


def _of_one_group(data: ReportData) -> list[str]:
    paragraphs = []
    for rival in rivals(data):
        if difference := compare_models(data, rival):
            paragraphs.append(_verdict(data, rival, difference))
    floor, codec = (mean(measured(data, FRECHET, method)) for method in (FLOOR, CODEC))
    if floor is not None:
        text = f"Two disjoint sets of {image_counts(data)} real images already lie {figure(floor)} apart"
        if codec is not None:
            text += f", and real images that only pass through the codec {figure(codec)} from other real ones"
        paragraphs.append(text + ": no generated image can be expected to come closer.")
    for rival in data.models[1:]:
        if unseen := compare_models(data, rival, UNSEEN):
            counted = f"{unseen.n} perturbation{'s' if unseen.n > 1 else ''} held out of training"
            pair = (data.models[0], rival)
            ours, theirs = (figure(mean(measured(data, FRECHET, method, UNSEEN))) for method in pair)
            names = [_named(data, method) for method in pair]
            paragraphs.append(
                f"On the {counted}, the {names[0]}'s images lie closer than the {names[1]}'s on "
                f"{unseen.first_smaller} of {unseen.n} (mean {ours} against {theirs})."
            )
    return paragraphs


def _excluded(data: ReportData) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(data.excluded.items())[:3]]
    more = ", …" if len(data.excluded) > 3 else ""
    return f"{len(data.excluded)} perturbations could not be measured: {'; '.join(shown)}{more}."


def _named(data: ReportData, method: str) -> str:
    label = data.methods[method].label
    return label[0].lower() + label[1:] if method in MODELS or method in BASELINES else label


def _verdict(data: ReportData, rival: str, difference: PairedDifference) -> str:
    first = data.models[0]
    ours, theirs = (figure(mean(measured(data, FRECHET, method))) for method in (first, rival))
    names = _named(data, first), _named(data, rival)
    closer = difference.mean < 0
    if np.isnan(difference.low) or difference.low <= 0 <= difference.high:
        opening = f"There is no clear difference between the {names[0]} and the {names[1]}"
    elif (first, rival) == (CONDITIONAL, UNCONDITIONAL):
        opening = (
            f"Knowing the perturbation {'helps' if closer else 'does not help'}: the conditional model's "
        )
        opening += f"images lie {'closer to the real ones' if closer else 'further away'}"
    else:
        place = "closer to" if closer else "further from"
        opening = f"The {names[0]} lies {place} the real images than the {names[1]}"
    interval = ""
    if np.isfinite(difference.low):
        interval = f", difference {figure(difference.mean)}, 95 % bootstrap interval over perturbations "
        interval += f"{figure(difference.low)} to {figure(difference.high)}"
        if np.isfinite(difference.p):
            interval += f"; paired t-test p = {difference.p:.2g}"
    return (
        f"{opening}. Mean Fréchet distance {ours} against {theirs}{interval}. It is the closer one on "
        f"{difference.first_smaller} of {difference.n} perturbations."
    )


def caveats(data: ReportData) -> list[str]:
    """What a reader must know before trusting or comparing the numbers, one paragraph each."""
    floors = [mean(measured(data.of(batches), FRECHET, FLOOR)) for batches in data.batches]
    told = " and ".join(figure(floor) for floor in floors if floor is not None)
    n = image_counts(data)
    bias = f": the floor, {told}, is nothing else" if told else ""
    paragraphs = [
        f"Every distance compares {n} with {n} images. A Fréchet distance of few images carries a large "
        f"sample-size bias{bias}. Read the differences between methods at this N; never compare the values "
        "with published FIDs, or with a report made at another N.",
        f"Features: {data.extractor}, weights {data.weights_hash}, resized by clean-fid ({data.mode}). "
        "Another extractor has another scale.",
        "All methods of a perturbation are measured from the same real images. The codec's and the floor's "
        "images are other real ones, so that neither profits from meeting itself again.",
    ]
    paragraphs += [*_kernel_subsets(data), *_batches(data), *paper_caveat(data)]
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
        "interval beside it, and kid_low and kid_high in metrics.csv, hold 95 % of the subsets. It has no "
        "bias of few images and may be negative."
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
