"""Which generated images an evaluation measures: every method's, wherever they lie and whoever made them."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from morphoray.config import MethodConfig, RunConfig, load
from morphoray.errors import ConfigError, DataError, MissingObjectError, StorageError
from morphoray.perturbations.base import Perturbation, read_csv
from morphoray.perturbations.table import normalise_id
from morphoray.pipelines.cluster import generate_resources, preflight
from morphoray.pipelines.generate import generate_images, known_perturbations, read_manifest
from morphoray.pipelines.image_parts import ImageRow, read_image, stored_as
from morphoray.pipelines.layout import layout_of, mapping_of, resolve, storage_from
from morphoray.storage import Storage, absolute, join

PROBED = 25  # images that a folder's common size is taken from
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MANIFEST = "morphoray.json"
_FOLDERS = f"<perturbation>/*{', *'.join(SUFFIXES)}"
TABLES = (".csv", ".parquet")
COLUMNS = ("perturbation_id", "file_name")  # of a table of image files
_EXPECTED = f"what `morphoray generate` writes (parts/*.parquet), or {_FOLDERS}"


@dataclass(frozen=True)
class MethodImages:
    """Where a method's images lie: rows of IMAGES parts, or files, by perturbation.

    ignored: what else lies in a folder of files: not in a perturbation's folder, or no image by its name.
    listed: a table says which image is of which perturbation, not the folders.
    """

    name: str
    rows: Sequence[ImageRow]
    ignored: Sequence[str] = ()
    listed: bool = False

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
        return read_method(storage, name, absolute(method.images), len(mapping_of(config).outputs))
    source, bundle = bundle_of(config, name, method)
    target = join(out, "images", name) if method.bundle else layout_of(source).of("images")
    items = known_perturbations(read_manifest(storage, bundle))
    preflight("generate", generate_resources(source))
    generate_images(bundle, items, target, source.generation, source.seed, source.storage)
    return read_method(storage, name, target)


def bundle_of(config: RunConfig, name: str, method: MethodConfig) -> tuple[RunConfig, str]:
    """The run whose settings generate a method's images, and the bundle.

    Raises DataError, MissingObjectError or ConfigError naming the method where either isn't there.
    """
    storage, key = storage_from(config.storage), f"evaluation.methods.{name}"
    try:
        source = run_of(config, method) or config
    except (ConfigError, DataError, StorageError) as error:
        raise type(error)(f"{key}.run: {error}") from None
    bundle = absolute(method.bundle) if method.bundle else layout_of(source).bundle
    if storage.exists(join(bundle, MANIFEST)):
        return source, bundle
    if method.bundle:
        found = f"found no {MANIFEST}" if storage.exists(bundle) else "there is no such folder"
        raise DataError(
            f"{key}.bundle: {bundle}: {found}, expected a bundle that training has finished. Check the path: "
            "a run's is <run_dir>/bundle."
        )
    if source is config:
        raise DataError(
            f"{bundle}: this run has no finished bundle yet (no {MANIFEST}). Train it with `morphoray run "
            "CONFIG`, or `morphoray train CONFIG`; then evaluate it."
        )
    raise DataError(
        f"{key}.run: {bundle}: that run has no finished bundle yet (no {MANIFEST}). Train it with `morphoray "
        f"train {method.run}`."
    )


def run_of(config: RunConfig, method: MethodConfig) -> RunConfig | None:
    """The run that a method names, None if it names none; this very run is `config`, as the call sets it."""
    if method.run is None:
        return None
    uri = absolute(method.run)
    if uri == layout_of(config).of("config.yaml"):
        return config
    return resolve(load(uri, storage_from(config.storage)))


def read_method(storage: Storage, name: str, uri: str, channels: int | None = None) -> MethodImages:
    """Images at `uri`: IMAGES parts, a folder of image files for each perturbation, or a table of files.

    channels: how many an image should have, for the error where none can be read. Raises DataError when
    none is there.
    """
    listed = uri.lower().endswith(TABLES)
    if not listed and (parts := storage.list_files(join(uri, "parts"), suffix=".parquet")):
        return MethodImages(name, list(_part_rows(storage, name, parts)))
    rows, ignored = (_listed_rows(storage, name, uri), []) if listed else _file_rows(storage, name, uri)
    if not rows:
        raise DataError(f"evaluation.methods.{name}: {uri}: {_without_images(storage, uri, ignored)}")
    shape = _common_shape(storage, rows, channels)
    return MethodImages(name, [replace(row, row=row.row | {"shape": shape}) for row in rows], ignored, listed)


def _without_images(storage: Storage, uri: str, files: Sequence[str]) -> str:
    """Why there are no images of perturbations among a folder's files, and what to do."""
    parent, _, folder = uri.rstrip("/").rpartition("/")
    beside = [file for file in files if "/" not in file]
    if images := [file for file in beside if file.lower().endswith(SUFFIXES)]:
        return (
            f"{len(images)} images lie directly in it, expected in a folder for each perturbation, "
            f"{_FOLDERS}. If {folder!r} is a perturbation, name the folder above: {parent}."
        )
    if folder == "parts" and any(file.endswith(".parquet") for file in beside):
        return f"found parts of generated images; name the folder above: {parent}."
    if files:
        return f"none of its {len(files)} files, such as {files[0]}, is an image; expected {_EXPECTED}."
    if not storage.exists(uri):
        return "there is no such folder. Check the path."
    with contextlib.suppress(StorageError):  # what a folder raises
        storage.open(uri).close()
        return f"it is a file, expected a table ({' or '.join(TABLES)}), or a folder: {_EXPECTED}."
    return f"the folder is empty; expected {_EXPECTED}."


def check_channels(config: RunConfig, made: MethodImages) -> None:
    """Raise DataError for a folder of files with another number of channels than this run's images."""
    shape, channels = made.rows[0].row.get("shape"), mapping_of(config).outputs
    if shape is not None and shape[0] != len(channels):
        raise DataError(
            f"evaluation.methods.{made.name}: found images of {shape[0]} channels, expected {len(channels)}: "
            f"{', '.join(channels)}. Convert them to {stored_as(len(channels))}."
        )


def folder_notes(config: RunConfig, made: MethodImages) -> list[str]:
    """What to know of a folder of files. Raises DataError for images of another number of channels."""
    notes = []
    if made.ignored:
        notes.append(
            f"{made.name}: {len(made.ignored)} files are left out, which lie in no perturbation's folder or "
            f"are no images by their names: {few(made.ignored)}."
        )
    check_channels(config, made)
    shape, side = made.rows[0].row.get("shape"), config.image.resolution
    if shape is None:
        return notes
    if shape[1:] != [side, side]:
        notes.append(
            f"{made.name}: its images are {shape[2]} × {shape[1]} pixels, the real ones {side} × {side}. The "
            "extractor resizes both: their distances mean something only if both show as large a field."
        )
    return notes


def few(names: Sequence[str]) -> str:
    """The first five names."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _part_rows(storage: Storage, name: str, parts: Sequence[str]) -> Iterator[ImageRow]:
    for part in parts:
        table = storage.read_table(part, ["perturbation_id", "index"])
        for number, row in enumerate(table.to_pylist()):
            item = f"{row['perturbation_id']}/{row['index']:05d}"
            yield ImageRow(name, row["perturbation_id"], "", item, "images", {"uri": part, "index": number})


def _listed_rows(storage: Storage, name: str, uri: str) -> list[ImageRow]:
    """The image files of a table with the columns COLUMNS: paths from its folder, or whole ones, or URIs.

    Raises DataError for a table without them, without rows, or with a row that lacks one or is there twice.
    """
    where, folder = f"evaluation.methods.{name}: {uri}", uri.rpartition("/")[0]
    try:
        text = uri.lower().endswith(".csv")
        table = read_csv(uri, storage) if text else storage.read_table(uri).to_pylist()
    except (DataError, StorageError) as error:
        raise type(error)(f"evaluation.methods.{name}: {error}") from None
    if not table:
        raise DataError(f"{where}: no rows; expected one an image, with {' and '.join(COLUMNS)}.")
    if lacking := [column for column in COLUMNS if column not in table[0]]:
        raise DataError(
            f"{where}: found no column {' and '.join(lacking)} among {list(table[0])}; expected "
            f"{' and '.join(COLUMNS)}, the image's path from the table's folder."
        )
    found: dict[str, ImageRow] = {}
    for number, row in enumerate(table, 1):
        perturbation, file = (str(row[column] or "").strip() for column in COLUMNS)
        if not perturbation or not file:
            raise DataError(f"{where}: row {number} has no {COLUMNS[1] if perturbation else COLUMNS[0]}.")
        if file in found:
            raise DataError(f"{where}: row {number}: {file} is there twice; expected every image once.")
        target = file if "://" in file or file.startswith("/") else join(folder, file)
        found[file] = ImageRow(name, perturbation, "", file, "file", {"uri": target})
    return list(found.values())


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


def _common_shape(storage: Storage, rows: Sequence[ImageRow], channels: int | None) -> list[int]:
    """The shape (K, H, W) of most of PROBED images, spread over the rows.

    Raises DataError if none of them can be read.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    probed, reasons = rows[:: -(-len(rows) // PROBED)], []
    for row in probed:
        try:
            shapes[read_image(row.row, storage, channels).shape] += 1
        except (DataError, MissingObjectError) as error:
            reasons.append(str(error))
    if not shapes:
        raise DataError(
            f"evaluation.methods.{rows[0].origin}: none of the {len(probed)} images looked at can be used, "
            f"such as {reasons[0]}"
        )
    return list(shapes.most_common(1)[0][0])


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

    The original project's spelling of an id counts as the id. Raises DataError when none is known, or files
    of one lie in several folders.
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
    if not method.listed:
        _refuse_pooled(method.name, rows)
    unknown = sorted(name for name, found in known.items() if found is None)
    return replace(method, rows=rows), unknown


def _refuse_pooled(name: str, rows: Sequence[ImageRow]) -> None:
    """Raise DataError where files of one perturbation lie in several folders, maybe of several methods."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        folder = str(row.row["uri"]).rpartition("/")[0]
        if row.reader == "file" and folder not in folders[row.perturbation_id]:
            folders[row.perturbation_id].append(folder)
    for perturbation, found in folders.items():
        if len(found) > 1:
            raise DataError(
                f"evaluation.methods.{name}: images of {perturbation!r} lie in {len(found)} folders, "
                f"{found[0]} and {found[1]}; expected one. If they are of several methods, make each of them "
                "a method, its `images` the folder above; else list the files in a table (.csv)."
            )
