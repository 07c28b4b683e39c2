"""Which generated images an evaluation measures: every method's, wherever they lie and whoever made them."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from morphoray.config import MethodConfig, RunConfig, parse
from morphoray.errors import DataError, MissingObjectError
from morphoray.perturbations.base import Perturbation
from morphoray.perturbations.table import normalise_id
from morphoray.pipelines.cluster import generate_resources, preflight
from morphoray.pipelines.generate import generate_images, known_perturbations, read_manifest
from morphoray.pipelines.image_parts import ImageRow, read_image
from morphoray.pipelines.layout import layout_of, resolve, storage_from
from morphoray.storage import Storage, absolute, join

PROBED = 25  # images that a folder's common size is taken from
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class MethodImages:
    """Where a method's images lie: rows of IMAGES parts, or files, by perturbation.

    ignored: what else lies in a folder of files: not in a perturbation's folder, or no image by its name.
    """

    name: str
    rows: Sequence[ImageRow]
    ignored: Sequence[str] = ()

    @property
    def counts(self) -> Counter[str]:
        """Images of each perturbation."""
        return Counter(row.perturbation_id for row in self.rows)


def method_images(config: RunConfig, name: str, method: MethodConfig, out: str) -> MethodImages:
    """The method's images, generated first where a run or a bundle is named; the same call goes on.

    What a bundle generates for this evaluation alone lies below `out`.
    """
    storage = storage_from(config.storage)
    if method.images is not None:
        return read_method(storage, name, absolute(method.images))
    source = run_of(config, method) or config
    bundle = absolute(method.bundle) if method.bundle else layout_of(source).bundle
    target = join(out, "images", name) if method.bundle else layout_of(source).of("images")
    items = known_perturbations(read_manifest(storage, bundle))
    preflight("generate", generate_resources(source))
    generate_images(bundle, items, target, source.generation, source.seed, source.storage)
    return read_method(storage, name, target)


def run_of(config: RunConfig, method: MethodConfig) -> RunConfig | None:
    """The run that a method names, None if it names none; this very run is `config`, as the call sets it."""
    if method.run is None:
        return None
    uri = absolute(method.run)
    if uri == layout_of(config).of("config.yaml"):
        return config
    return resolve(parse(storage_from(config.storage).read_text(uri), uri))


def read_method(storage: Storage, name: str, uri: str) -> MethodImages:
    """Images that lie at `uri`: IMAGES parts, or a folder with a folder of image files for each perturbation.

    Raises DataError when neither is there.
    """
    parts = storage.list_files(join(uri, "parts"), suffix=".parquet")
    if parts:
        return MethodImages(name, list(_part_rows(storage, name, parts)))
    rows, ignored = _file_rows(storage, name, uri)
    if not rows:
        raise DataError(
            f"evaluation.methods.{name}: found no images under {uri}; expected what `morphoray generate` "
            f"writes (parts/*.parquet), or <perturbation>/*{', *'.join(SUFFIXES)}."
        )
    shape = _common_shape(storage, rows)
    if shape is not None:
        rows = [replace(row, row=row.row | {"shape": shape}) for row in rows]
    return MethodImages(name, rows, ignored)


def _part_rows(storage: Storage, name: str, parts: Sequence[str]) -> Iterator[ImageRow]:
    for part in parts:
        table = storage.read_table(part, ["perturbation_id", "index"])
        for number, row in enumerate(table.to_pylist()):
            item = f"{row['perturbation_id']}/{row['index']:05d}"
            yield ImageRow(name, row["perturbation_id"], "", item, "images", {"uri": part, "index": number})


def _file_rows(storage: Storage, name: str, uri: str) -> tuple[list[ImageRow], list[str]]:
    """The image files in folders of their perturbation, and the names of all other files."""
    rows, ignored = [], []
    for file in storage.list_files(uri, recursive=True):
        below = file.removeprefix(uri.rstrip("/") + "/")
        folder, _, _ = below.rpartition("/")
        if folder and below.lower().endswith(SUFFIXES):
            rows.append(ImageRow(name, folder.rpartition("/")[2], "", below, "file", {"uri": file}))
        else:
            ignored.append(below)
    return rows, ignored


def _common_shape(storage: Storage, rows: Sequence[ImageRow]) -> list[int] | None:
    """The shape (K, H, W) of most of PROBED images, spread over the rows; None if none can be read."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for row in rows[:: -(-len(rows) // PROBED)]:
        with contextlib.suppress(DataError, MissingObjectError):
            shapes[read_image(row.row, storage).shape] += 1
    return list(shapes.most_common(1)[0][0]) if shapes else None


def at_most(rows: Sequence[ImageRow], most: int) -> list[ImageRow]:
    """The first `most` rows of each perturbation."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.perturbation_id] += 1
        if seen[row.perturbation_id] <= most:
            kept.append(row)
    return kept


def with_the_datas_names(
    method: MethodImages, perturbations: Sequence[Perturbation]
) -> tuple[MethodImages, list[str]]:
    """The method's images under the data's own perturbation ids, and ids that the data don't have.

    The original project's spelling of an id counts as the id. Raises DataError when none is known.
    """
    spelled = {normalise_id(item.perturbation_id): item.perturbation_id for item in perturbations}
    known = {name: spelled.get(normalise_id(name)) for name in method.counts}
    rows = [
        replace(row, perturbation_id=found)
        for row in method.rows
        if (found := known[row.perturbation_id]) is not None
    ]
    if not rows:
        raise DataError(
            f"evaluation.methods.{method.name}: found images of {sorted(method.counts)[:5]}, none of the "
            f"data's perturbations, such as {sorted(spelled.values())[:5]}."
        )
    unknown = sorted(name for name, found in known.items() if found is None)
    return replace(method, rows=rows), unknown
