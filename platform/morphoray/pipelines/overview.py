"""A first look at a dataset: sites of a few perturbations as the model will see them, in one picture."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from morphoray.config import RunConfig
from morphoray.datasets.reading import read_site
from morphoray.errors import MorphorayError
from morphoray.imaging.crops import resize_square
from morphoray.pipelines.encode import ReadPlan, read_plan
from morphoray.pipelines.layout import dataset_of, layout_of, storage_from
from morphoray.storage import Storage

ROWS, COLUMNS = 6, 4  # of sites; each perturbation begins a row
BARS = 24  # experiments or plates
SIDE, GAP, LABEL, TEXT, SMALL = 160, 6, 190, 13, 10  # pixels
INK, PALE, BLUE = (32, 32, 32), (225, 225, 225), (76, 114, 176)

Pixels = npt.NDArray[np.uint8]


def write_overview(config: RunConfig, sites: pa.Table) -> str:
    """Write sites/overview.png of an imported, resolved run; a line that says so, or why not.

    At most ROWS x COLUMNS sites are read. Images that are absent or unreadable are shown as such.
    """
    storage, uri = storage_from(config.storage), layout_of(config).of_data("sites", "overview.png")
    source, plan = dataset_of(config)[2], read_plan(config)
    chosen = choose(sites)
    with ThreadPoolExecutor(config.encode.read_threads) as pool:
        images = list(pool.map(lambda tile: thumbnail(tile.site, plan, source), chosen))
    failures = [reason for reason in images if isinstance(reason, str)]
    if len(failures) == len(images):
        return f"no overview picture: none of {len(images)} images could be read, the first: {failures[0]}"
    storage.write_bytes(uri, draw(list(zip(chosen, images, strict=True)), *bars(sites)))
    if failures:
        return f"overview: {uri}; {len(failures)} of {len(images)} images could not be read: {failures[0]}"
    return f"overview: {uri}"


@dataclass(frozen=True)
class Tile:
    """A site of the picture, its place, and what stands beside its row (for a perturbation's first)."""

    site: dict[str, Any]
    row: int
    column: int
    label: str


def choose(sites: pa.Table) -> list[Tile]:
    """Up to ROWS x COLUMNS sites, the one or two most frequent controls first, then other perturbations.

    Perturbations are evenly spaced over the sorted ids, and the sites of each over its rows; where there
    are few, each has several rows of the picture.
    """
    names = ["perturbation_id", "is_control"]
    known = sites.select(names).group_by(names).aggregate([([], "count_all")]).to_pylist()
    controls = sorted((row for row in known if row["is_control"]), key=lambda row: -row["count_all"])[:2]
    others = sorted((row for row in known if not row["is_control"]), key=lambda row: row["perturbation_id"])
    spread = controls + [others[place] for place in _evenly(len(others), ROWS - len(controls))]
    tiles: list[Tile] = []
    for known_row in spread:
        mine = sites.filter(pc.equal(sites["perturbation_id"], known_row["perturbation_id"]))
        found = mine.take(_evenly(len(mine), COLUMNS * (ROWS // len(spread)))).to_pylist()
        first = tiles[-1].row + 1 if tiles else 0
        for number, site in enumerate(found):
            label = "" if number else _label(site, len(mine))
            tiles.append(Tile(site, first + number // COLUMNS, number % COLUMNS, label))
    return tiles


def _evenly(count: int, most: int) -> list[int]:
    shown = min(count, most)
    return [index * count // shown for index in range(shown)]


def _place(site: dict[str, Any]) -> str:
    batch = dict.fromkeys((site["experiment"], site["plate"]))  # where the plate is the batch, once
    return f"{'/'.join(batch)} {site['well']}/{site['site']}"


def _label(site: dict[str, Any], count: int) -> str:
    kind = "control" if site["is_control"] else site["gene"] or site["moa"] or site["perturbation_kind"]
    return f"{site['perturbation_id']}\n{kind}\n{count:,} sites"


def thumbnail(site: dict[str, Any], plan: ReadPlan, storage: Storage) -> Pixels | str:
    """The mapped image of a site as people see it, (3, SIDE, SIDE), or the reason that it has none."""
    try:
        image = plan.mapping.apply(read_site(site, plan.image, storage))
    except MorphorayError as error:
        return str(error)
    return resize_square(plan.mapping.render(image), SIDE)


def bars(sites: pa.Table) -> tuple[str, list[tuple[str, int]]]:
    """What is counted (experiments, or plates where there is one), and the sites of the first BARS."""
    several = pc.count_distinct(sites["experiment"]).as_py() > 1
    column = "experiment" if several else "plate"
    counts = sorted((row["values"], row["counts"]) for row in sites[column].value_counts().to_pylist())
    title = f"sites per {column}"
    return (title if len(counts) <= BARS else f"{title}, the first {BARS} of {len(counts)}"), counts[:BARS]


def draw(images: Sequence[tuple[Tile, Pixels | str]], title: str, counts: Sequence[tuple[str, int]]) -> bytes:
    """PNG bytes: the images at their places, and below them a bar for each count."""
    line, height = TEXT + 7, SIDE + SMALL + 2 * GAP
    top = GAP + height * (images[-1][0].row + 1)
    size = (LABEL + COLUMNS * (SIDE + GAP), top + line * (len(counts) + 1) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT), ImageFont.load_default(SMALL)
    for tile, image in images:
        x, y = LABEL + tile.column * (SIDE + GAP), GAP + tile.row * height
        for number, text in enumerate(tile.label.split("\n")):
            pen.text((GAP, y + number * line), _fit(text, font, LABEL - 2 * GAP), INK, font)
        if isinstance(image, str):
            pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), PALE)
            pen.text((x + GAP, y + GAP), "not readable", INK, font)
        else:
            sheet.paste(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), (x, y))
        pen.text((x, y + SIDE + 1), _fit(_place(tile.site), small, SIDE), INK, small)
    pen.text((GAP, top), title, INK, font)
    most = max(count for _, count in counts)
    for number, (name, count) in enumerate(counts, start=1):
        y = top + number * line
        end = LABEL + max(1, round((size[0] - LABEL - 80) * count / most))
        pen.text((GAP, y), _fit(name, font, LABEL - 2 * GAP), INK, font)
        pen.rectangle((LABEL, y + 2, end, y + TEXT + 1), BLUE)
        pen.text((end + GAP, y), f"{count:,}", INK, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _fit(text: str, font: Any, width: int) -> str:
    """The text, shortened to the width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
