"""The montage: real images and every model's side by side, rows and strips named, with a scale bar."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphoray.evaluation.results import BATCHES, CONTROL, PerturbationResult, ReportData
from morphoray.imaging.crops import resize_square
from morphoray.imaging.png import encode_png, grid
from morphoray.imaging.scale_bar import bar_length, text_strip, text_width, with_bar

Images = npt.NDArray[np.uint8]

SHOWN = 8  # images of each kind
GAP = 2
LINE, LEAST_LINE = 22, 18  # pixels: a line of text, and the least that can be read
LONGEST = 32  # characters of a name
WIDEST = 16_000  # pixels of all strips: three of images of 600 pixels, ten of 178


def montage(data: ReportData) -> bytes:
    """PNG: a row a perturbation and group of batches; SHOWN real images, then as many of each model.

    Beside a single model stand real controls. Left of a row stand its perturbation, group and whether
    training saw it. The first real image of a row has a scale bar where its pixel size is known; the last
    line tells the bars' lengths. Images are shrunk where all strips would be wider than WIDEST pixels.
    """
    kinds = strips(data)
    columns = (SHOWN + 1) * (1 + len(kinds)) - 1
    side = min(data.perturbations[0].real.shape[-1], WIDEST // columns - GAP)
    tiles = [tile for result in data.perturbations for tile in _row(result, kinds, side)]
    labels = _labels(data, side)
    sheet = np.concatenate([labels, grid(tiles, columns, GAP)], axis=2)
    step, line = (SHOWN + 1) * (side + GAP), max(LINE, side // 8)
    labelled = [data.methods[kind].label if kind in data.methods else "Real controls" for kind in kinds]
    places = [
        (labels.shape[2] + place * step, _fitting(name, step, line))
        for place, name in enumerate(["Real", *labelled])
    ]
    head = text_strip(places, sheet.shape[2], line)
    # Pillow's own font has no µ.
    foot = text_strip([(0, scale_note(data).replace("µm", "micrometres"))], sheet.shape[2], line)
    return encode_png(np.concatenate([head, sheet, foot], axis=1))


def _row(result: PerturbationResult, kinds: Sequence[str], side: int) -> list[Images]:
    """A row's tiles: SHOWN of each kind, real ones first, blank ones between kinds and for absent ones."""
    blank = np.full((3, side, side), 255, np.uint8)
    row: list[Images] = []
    for images in (result.real, *(result.images.get(kind) for kind in kinds)):
        found = [resize_square(image, side) for image in (images if images is not None else ())[:SHOWN]]
        if not row and found and result.um_per_pixel is not None:
            found[0] = with_bar(found[0], result.um_per_pixel * result.real.shape[-1] / side)
        row += [*found, *[blank] * (SHOWN - len(found)), blank]
    return row[:-1]


def _fitting(name: str, width: int, line: int) -> str:
    """The name, its end cut off where the strip below it is narrower."""
    if text_width(name, line) < width:
        return name
    while name and text_width(name + "...", line) >= width:
        name = name[:-1]
    return name + "..."


def _labels(data: ReportData, side: int) -> Images:
    """The column (3, rows, width) that names rows of images of this side, in one line where they're low."""
    texts = [row_label(result) for result in data.perturbations]
    most = max(map(len, texts))
    if side < most * LEAST_LINE:
        texts, most = [[", ".join(lines)] for lines in texts], 1
    line = min(max(LINE, side // 8), side // most)
    width = max(text_width(text, line) for lines in texts for text in lines) + line
    column = np.full((3, len(texts) * (side + GAP) - GAP, width), 255, np.uint8)
    for row, lines in enumerate(texts):
        top = row * (side + GAP) + (side - len(lines) * line) // 2
        for place, text in enumerate(lines):
            start = top + place * line
            column[:, start : start + line] = text_strip([(0, text)], width, line)
    return column


def row_label(result: PerturbationResult) -> list[str]:
    """The lines left of a row: perturbation, group of batches, whether it was held out of training."""
    name = result.perturbation_id
    short = name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."  # the font has no ellipsis
    return [short, *filter(None, [BATCHES[result.batches], "unseen in training" if result.unseen else ""])]


def strips(data: ReportData) -> list[str]:
    """What stands beside the real images: every model; beside a single one real controls, if any."""
    if len(data.models) > 1:
        return list(data.models)
    there = any(CONTROL in result.images for result in data.perturbations)
    return [*data.models, *([CONTROL] if there else [])]


def scale_note(data: ReportData) -> str:
    """The lengths of the scale bars in words, or why there are none."""
    lengths = {_length(result) for result in data.perturbations}
    known = sorted(length for length in lengths if length is not None)
    if not known:
        return "No scale bars: the data don't tell the size of a pixel."
    text = f"Scale bar: {' or '.join(f'{length:g}' for length in known)} µm"
    return text + (". None where the size of a pixel is not known." if None in lengths else ".")


def _length(result: PerturbationResult) -> float | None:
    if result.um_per_pixel is None:
        return None
    return bar_length(result.real.shape[-1], result.um_per_pixel)
