"""What a reader must know before trusting or comparing a report's numbers, a paragraph each."""

from morphoray.evaluation.comparisons import rivals
from morphoray.evaluation.paper_form import paper_caveat
from morphoray.evaluation.results import (
    BATCHES,
    FLOOR,
    FRECHET,
    KID,
    SEEN,
    ReportData,
    figure,
    image_counts,
    mean,
    measured,
)
from morphoray.evaluation.statistics import LEAST_PAIRS, SIGNIFICANT


def caveats(data: ReportData) -> list[str]:
    """What a reader must know before trusting or comparing the numbers, one paragraph each."""
    floors = [mean(measured(data.of(batches), FRECHET, FLOOR)) for batches in data.batches]
    told = " and ".join(figure(floor) for floor in floors if floor is not None)
    n = image_counts(data)
    bias = f", which the floor shows: {told}" if told else ""
    paragraphs = [
        f"A Fréchet distance compares {n} with {n} images. A Fréchet distance of few images carries a large "
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
        "interval beside a value, and kid_low and kid_high in metrics.csv, hold 95 % of the subsets. "
        "That is the spread of the subsets, which share images: no error bar of the distance. It has no bias "
        "of few images and may be negative."
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
