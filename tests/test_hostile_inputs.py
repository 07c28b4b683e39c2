"""Bad inputs of every kind, by a table: an error that says what to do, a quarantine row, or what is right."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import gallery_trees as trees
from morphoray.config import ImageConfig, parse
from morphoray.datasets import bbbc021, imagefolder, jump, rohban, rxrx1, simulated
from morphoray.datasets.base import Imported
from morphoray.datasets.bbbc021_tables import COLUMNS
from morphoray.datasets.reading import read_site
from morphoray.errors import ConfigError, DataError, MorphorayError
from morphoray.imaging.channels import find_mapping
from morphoray.imaging.png import MAX_PIXELS
from morphoray.perturbations.base import read_perturbations
from morphoray.perturbations.table import read_vectors
from morphoray.pipelines.encode import ReadPlan, read_part
from morphoray.pipelines.generate import known_perturbations, read_manifest
from morphoray.pipelines.layout import resolve
from morphoray.pipelines.scgpt_checkpoint import load_state, read_vocabulary
from morphoray.pipelines.stream import pack, unpack
from morphoray.screening.libraries import read_library
from morphoray.storage import Storage

# Pillow warns of some of these files, and zipfile of what one of these archives is made of; what counts is
# what happens where warnings are no errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore:Duplicate name"),
]
STORAGE = Storage()
SIDE = 8


@dataclass(frozen=True)
class Outcome:
    """What an input gave: the number of good rows, the reasons of the others, and what was read."""

    good: int
    reasons: list[str]
    result: Any = None


@dataclass(frozen=True)
class Refused:
    """An error of this class, whose message has the words."""

    words: str
    error: type[MorphorayError] = DataError


@dataclass(frozen=True)
class Quarantined:
    """Rows in quarantine for this reason alone, while so many good ones stay."""

    words: str
    good: int = 1
    bad: int = 1


@dataclass(frozen=True)
class Accepted:
    """Nothing in quarantine; with `plain`, the same result as of the harmless input."""

    good: int
    plain: Callable[[Path], Outcome] | None = None


Expected = Refused | Quarantined | Accepted
Kind = tuple[Callable[[Path], Outcome], Expected]
Edit = Callable[[str], str | bytes]


def imported(found: Imported) -> Outcome:
    return Outcome(found.sites.num_rows, found.quarantine["reason"].to_pylist(), found.sites)


def read_all(sites: pa.Table, **image: Any) -> Outcome:
    """What the encode stage reads of sites with three channels, and what it quarantines."""
    channels = rxrx1.channel_names(3)
    plan = ReadPlan(ImageConfig(resolution=SIDE, **image), find_mapping("identity", channels, ""), 1, 0)
    read = read_part({"part": 0, "sites": pack(sites)}, plan, STORAGE)
    images = np.frombuffer(read["images"], np.uint8).reshape(read["shape"])
    good = len(unpack(read["good"]))
    return Outcome(good, unpack(read["bad"])["reason"].to_pylist(), images if good else None)


def edited(text: str, edit: Edit) -> bytes:
    changed = edit(text)
    return changed.encode() if isinstance(changed, str) else changed


def replaced(old: str, new: str) -> Edit:
    """An edit of a table, which must have the text."""

    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


# Images.


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(
    shape: tuple[int, ...] = (SIDE, SIDE), kind: type = np.uint8, top: int = 256, seed: int = 0
) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, top, shape).astype(kind))


PNG = saved(noise(), "PNG")
RGB = noise((SIDE, SIDE, 3))
TWELVE = saved(noise(kind=np.uint16, top=4096), "TIFF")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(
    pixels: bytes, side: int = SIDE, bits: int = 8, colour: int = 0, extra: tuple[bytes, bytes] | None = None
) -> bytes:
    """A PNG by hand: a header that may lie, an extra chunk, and filtered rows."""
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    more = chunk(*extra) if extra else b""
    parts = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def signed_tiff() -> bytes:
    """A TIFF whose 8-bit samples are signed, in its directory's words."""
    data = saved(noise(), "TIFF", tiffinfo={339: 2})
    assert Image.open(io.BytesIO(data)).mode == "L"
    return data


def picture(*contents: bytes) -> Callable[[Path], Outcome]:
    """Two sites of three channels; `contents` replace the second's files from its second channel on."""

    def run(root: Path) -> Outcome:
        sites = rxrx1_from(root, files=dict(zip(("2_w2", "2_w3", "2_w1"), contents, strict=False)))
        return read_all(sites.result)

    return run


def light(content: Callable[[], bytes]) -> Callable[[Path], Outcome]:
    """A site whose illumination function is this file."""

    def run(root: Path) -> Outcome:
        (root / "w1.tif").write_bytes(TWELVE)
        (root / "light.npy").write_bytes(content())
        site = {"channel_uris": [str(root / "w1.tif")], "illumination_uris": [str(root / "light.npy")]}
        more = {"intensity_ranges": None, "pixel_size_um": None}
        return Outcome(1, [], read_site(site | more, ImageConfig(), STORAGE))

    return run


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, light=np.ones((SIDE, SIDE)))
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


HUGE_NPY = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 10000000000), }\n"

IMAGES: dict[str, Kind] = {
    "png truncated": (picture(PNG[:60]), Quarantined("w2.png: truncated: 60 bytes")),
    "png of no bytes": (picture(b""), Quarantined("w2.png: zero bytes")),
    "png that is a web page": (
        picture(b"<html>404</html>"),
        Quarantined("not an image: expected one of PNG"),
    ),
    "png with a bit flipped": (
        picture(PNG[:50] + bytes([PNG[50] ^ 1]) + PNG[51:]),
        Quarantined("corrupt: wrong checksum"),
    ),
    "png whose rows end early": (
        picture(png_of(b"\0abcdefgh")),
        Quarantined("truncated: 9 bytes of pixels, expected 72"),
    ),
    "png of three channels": (
        picture(saved(RGB, "PNG")),
        Quarantined("wrong mode: 3 channels, expected 1 in each of 3 files"),
    ),
    "png with transparency": (
        picture(saved(noise().convert("RGBA"), "PNG")),
        Quarantined("wrong mode: RGBA"),
    ),
    "png with a palette": (picture(saved(noise().convert("P"), "PNG")), Quarantined("wrong mode: P")),
    "png of 16 bits beside 8": (
        picture(saved(noise(kind=np.uint16, top=65536), "PNG")),
        Quarantined("sizes differ: 8 x 8 uint16, expected 8 x 8 uint8"),
    ),
    "png of 16 bits in colour": (
        picture(png_of((b"\0" + bytes(range(6 * SIDE))) * SIDE, bits=16, colour=2)),
        Quarantined("wrong mode: 16 bits a channel of three, expected 8"),
    ),
    "png animated": (
        picture(saved(noise(), "PNG", save_all=True, append_images=[noise(seed=1)])),
        Quarantined("2 pages, expected 1"),
    ),
    "png bomb that Pillow only warns of": (
        picture(png_of(b"", side=12_000)),
        Quarantined(f"too large: more than {MAX_PIXELS} pixels"),
    ),
    "png bomb of 3.6 gigapixels": (picture(png_of(b"", side=60_000)), Quarantined("too large: more than")),
    "png bomb in its text": (
        picture(png_of(b"\0abcdefgh" * SIDE, extra=(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))))),
        Quarantined("corrupt: Decompressed data too large"),
    ),
    "tiff of floats": (
        picture(saved(Image.fromarray(np.ones((SIDE, SIDE), np.float32)), "TIFF")),
        Quarantined("wrong mode: F, expected one of L"),
    ),
    "tiff of 32 bits": (picture(saved(noise(kind=np.int32), "TIFF")), Quarantined("wrong mode: I, expected")),
    "tiff of signed numbers": (
        picture(signed_tiff()),
        Quarantined("sample format .*2.*expected 1 .unsigned"),
    ),
    "tiff of several pages": (
        picture(saved(noise(), "TIFF", save_all=True, append_images=[noise(seed=1)])),
        Quarantined("2 pages, expected 1. Store each plane as a file of its own"),
    ),
    "tiff truncated": (picture(TWELVE[:-150]), Quarantined("w2.png: (corrupt|not an image|truncated)")),
    "tiff of 12 bits in 16": (picture(TWELVE, TWELVE, TWELVE), Accepted(2)),
    "jpeg called png": (picture(saved(noise(), "JPEG")), Accepted(2)),
    "jpeg in colour called png": (picture(saved(RGB, "JPEG")), Quarantined("wrong mode: 3 channels")),
    "gif called png": (picture(saved(noise(), "GIF")), Quarantined("not an image")),
    "image of another size": (
        picture(saved(noise((9, SIDE)), "PNG")),
        Quarantined("sizes differ: 9 x 8 uint8, expected 8 x 8 uint8"),
    ),
    "image too small": (
        picture(*[saved(noise((4, 4)), "PNG")] * 3),
        Quarantined("4 x 4 pixels, smaller than image.resolution 8"),
    ),
    "image all black": (
        picture(saved(Image.new("L", (SIDE, SIDE)), "PNG")),
        Quarantined("w2.png: all black"),
    ),
    "image constant": (
        picture(saved(Image.new("L", (SIDE, SIDE), 7), "PNG")),
        Quarantined("w2.png: constant: every pixel is 7"),
    ),
    "illumination in an npz": (light(npz), Refused(r"light\.npy: not a \.npy array")),
    "illumination of 10^20 numbers": (
        light(lambda: npy_header(HUGE_NPY)),
        Refused(r"light\.npy: not a \.npy array"),
    ),
    "illumination with half a header": (
        light(lambda: npy_header("{'descr': (")),
        Refused(r"light\.npy: not a \.npy array"),
    ),
    "illumination pickled": (light(lambda: pickle.dumps([1.0])), Refused(r"light\.npy: not a \.npy array")),
}


# RxRx1: its table, and its archives.

METADATA = (
    "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna\n"
    "E1_1,w,U2OS,train,E1,1,B02,1,negative_control,EMPTY\n"
    "E1_2,w,U2OS,train,E1,1,B02,2,treatment,s1\n"
)


def rxrx1_files(files: dict[str, bytes]) -> dict[str, bytes]:
    names = [f"{site}_w{channel}" for site in (1, 2) for channel in (1, 2, 3)]
    return {f"images/E1/Plate1/B02_s{name}.png": files.get(name, PNG) for name in names}


def rxrx1_from(
    root: Path, edit: Edit = lambda text: text, files: dict[str, bytes] | None = None, **options: Any
) -> Outcome:
    """The import of two sites of three channels; `edit`: of the table; `files`: other contents by name."""
    (root / "metadata.csv").write_bytes(edited(METADATA, edit))
    for name, data in rxrx1_files(files or {}).items():
        trees.write(root / name, data)
    return imported(rxrx1.read(str(root), STORAGE, rxrx1.Rxrx1Options(channels=3, **options)))


def table(edit: Edit, **options: Any) -> Callable[[Path], Outcome]:
    return lambda root: rxrx1_from(root, edit, **options)


def zipped(
    rename: Callable[[str], str] = str,
    content: bytes = PNG,
    attributes: int = 0,
    patch: Callable[[bytes], bytes] = bytes,
) -> Callable[[Path], Outcome]:
    """The same from an archive whose last member has another name, content or attributes; then its pixels."""

    def run(root: Path) -> Outcome:
        (root / "metadata.csv").write_text(METADATA)
        files = rxrx1_files({"2_w3": content})
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                info = zipfile.ZipInfo(rename(name) if name.endswith("s2_w3.png") else name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = attributes
                archive.writestr(info, data)
        (root / "rxrx1-images.zip").write_bytes(patch(buffer.getvalue()))
        found = imported(rxrx1.read(str(root), STORAGE, rxrx1.Rxrx1Options(channels=3)))
        read = read_all(found.result)
        return Outcome(read.good, found.reasons + read.reasons, read.result)

    return run


def encrypted(data: bytes) -> bytes:
    """The archive with the flag of encryption in its directory's last entry."""
    changed = bytearray(data)
    changed[data.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


ARCHIVES: dict[str, Kind] = {
    "zip": (zipped(), Accepted(2)),
    "zip with ../ names": (zipped(lambda name: f"../{name}"), Quarantined("missing channel files: w3")),
    "zip with absolute names": (zipped(lambda name: f"/{name}"), Quarantined("missing channel files: w3")),
    "zip with a name twice": (
        zipped(lambda name: name.replace("w3", "w2")),
        Quarantined("missing channel files: w2, w3"),
    ),
    "zip bomb": (zipped(content=bytes(2**25)), Quarantined("more than 100 times: a zip bomb")),
    "zip encrypted": (zipped(patch=encrypted), Quarantined("encrypted in the archive. Decrypt it first")),
    "zip of symbolic links": (
        zipped(content=b"/etc/passwd", attributes=0o120777 << 16),
        Quarantined("w3.png: not an image"),
    ),
    "zip truncated": (
        zipped(patch=lambda data: data[:-30]),
        Refused("not a zip archive, or a truncated one. Copy it again"),
    ),
}

TABLES: dict[str, Kind] = {
    "BOM": (table(lambda text: "\ufeff" + text), Accepted(2, rxrx1_from)),
    "CR alone": (table(lambda text: text.replace("\n", "\r")), Accepted(2, rxrx1_from)),
    "CRLF": (table(lambda text: text.replace("\n", "\r\n")), Accepted(2, rxrx1_from)),
    "a field of 5 MB": (table(replaced("E1_1,w", "E1_1," + "w" * 5_000_000)), Accepted(2, rxrx1_from)),
    "missing column": (table(replaced("well_type", "kind")), Refused(r"expected also \['well_type'\]")),
    "column twice": (
        table(replaced("well_id", "sirna")),
        Refused(r"metadata\.csv: found columns .*, expected \['sirna'\] once"),
    ),
    "site_id twice": (table(replaced("E1_2,", "E1_1,")), Refused(r"1 site_ids appear more than once.*E1_1")),
    "site twice by another id": (
        table(replaced("B02,2", "B02,1")),
        Refused("1 sites appear more than once, under several site_ids, such as .*E1/1/B02/1"),
    ),
    "experiment that is a path": (
        table(replaced(",E1,1,B02,2", ",../E1,1,B02,2")),
        Refused(r"row 2: experiment is '\.\./E1', expected part of a path"),
    ),
    "well with a null character": (
        table(replaced("B02,2", "B\x0002,2")),
        Refused("row 2: well is .*expected"),
    ),
    "well in lower case": (
        table(replaced("B02,2", "b02,2")),
        Quarantined("missing channel files: w1, w2, w3"),
    ),
    "empty cell": (table(replaced("treatment,s1", "treatment,")), Refused("row 2: column 'sirna' is empty")),
    "empty file": (table(lambda text: ""), Refused("not a CSV table in UTF-8")),
    "header only": (table(lambda text: text.splitlines()[0] + "\n"), Refused("no rows below the header")),
    "semicolons": (table(replaced(",", ";")), Refused(r"found columns \['site_id;well_id;.*expected also")),
    "ragged row": (table(lambda text: text + "a,b\n"), Refused("Expected 10 columns, got 2: a,b")),
    "open quote": (table(lambda text: text + 'a,"b\n'), Refused("not a CSV table")),
    "UTF-16": (table(lambda text: text.encode("utf-16")), Refused("not a CSV table in UTF-8")),
    "a PNG": (table(lambda text: PNG), Refused("not a CSV table in UTF-8")),
}


# The original project's folder.

ROWS = [
    {"file_name": "a.png", "additional_feature": "dmso", "concentration_um": 0, "plate": "P1"},
    {"file_name": "b.png", "additional_feature": "taxol", "concentration_um": 0.3, "plate": "P1"},
]


def folder_of(root: Path, content: bytes, name: str = "metadata.jsonl", **options: Any) -> Outcome:
    for row in ROWS:
        (root / str(row["file_name"])).write_bytes(saved(RGB, "PNG"))
    (root / name).write_bytes(content)
    found = imagefolder.read(str(root), STORAGE, imagefolder.ImagefolderOptions(**options))
    return imported(found)


def row(**changes: Any) -> Callable[[Path], Outcome]:
    """Its metadata with changes in the second row."""
    lines = [json.dumps(each) for each in (ROWS[0], ROWS[1] | changes)]
    return lambda root: folder_of(root, "\n".join(lines).encode())


def lines(text: str | bytes, name: str = "metadata.jsonl", **options: Any) -> Callable[[Path], Outcome]:
    data = text.encode() if isinstance(text, str) else text
    return lambda root: folder_of(root, data, name, **options)


GOOD_CSV = "file_name,additional_feature\na.png,dmso\nb.png,taxol\n"
PLACE = "expected a path below the folder"
FOLDERS: dict[str, Kind] = {
    "dose NaN": (
        row(concentration_um=float("nan")),
        Quarantined("concentration_um: found nan, expected a num"),
    ),
    "dose infinite": (row(concentration_um=float("inf")), Quarantined("found inf, expected a number")),
    "dose negative": (row(concentration_um=-1), Quarantined("found -1, expected micromolar of at least 0")),
    "dose in words": (row(concentration_um="high"), Quarantined("found 'high', expected a number")),
    "dose with a comma": (row(concentration_um="0,3"), Quarantined("found '0,3', expected a number")),
    "dose with an underscore": (row(concentration_um="1_0"), Quarantined("found '1_0', expected a number")),
    "dose of 400 digits": (row(concentration_um=10**400), Quarantined("expected a number")),
    "dose true": (row(concentration_um=True), Quarantined("found True, expected a number")),
    "no perturbation": (row(additional_feature=None), Quarantined("no additional_feature")),
    "perturbation NaN": (row(additional_feature=float("nan")), Quarantined("no additional_feature")),
    "half of a surrogate pair": (
        row(additional_feature="x\ud800"),
        Quarantined(r"found 'x\\ud800', expected Unicode text"),
    ),
    "file name of half a pair": (row(file_name="b\ud800.png"), Quarantined("expected Unicode text")),
    "file name ..": (row(file_name="../b.png"), Quarantined(PLACE)),
    "file name absolute": (row(file_name="/etc/passwd"), Quarantined(PLACE)),
    "file name of a URL": (row(file_name="s3://bucket/b.png"), Quarantined(PLACE)),
    "file name .": (row(file_name="."), Quarantined(PLACE)),
    "file name with a null": (row(file_name="b\0.png"), Quarantined("missing file")),
    "file name of 5000 letters": (row(file_name="b" * 5000), Quarantined("missing file")),
    "image twice": (row(file_name="a.png"), Refused("1 images appear more than once in the metadata")),
    "JSON cut": (lines('{"file_name": "a.png", '), Refused("line 1: not JSON")),
    "JSON too deep": (lines('{"file_name": ' + "[" * 100_000), Refused("line 1: not JSON")),
    "JSON with a number of 5000 digits": (lines('{"x": ' + "1" * 5000 + "}"), Refused("line 1: not JSON")),
    "JSON list": (lines('["a.png"]'), Refused("line 1: found list, expected an object")),
    "JSON in UTF-16": (lines('{"a": 1}'.encode("utf-16")), Refused("UTF-8")),
    "CSV with a column twice": (
        lines("file_name,additional_feature,additional_feature\na.png,x,y\n", "metadata.csv"),
        Refused(r"columns \['additional_feature'\] more than once, expected each once"),
    ),
    "CSV without a column": (
        lines("file,additional_feature\na.png,x\n", "metadata.csv"),
        Refused(r"metadata\.csv: no column file_name among \['file', 'additional_feature'\]; expected one"),
    ),
    "CSV without perturbations": (
        lines("file_name,compound\na.png,x\n", "metadata.csv"),
        Refused(
            r"metadata\.csv: no additional_feature, which names the perturbation, among "
            r"\['file_name', 'compound'\]; expected it, or another column's name as dataset\.id_field"
        ),
    ),
    "JSON without a field": (
        lines('{"filename": "a.png"}'),
        Refused(r"1 were rejected; the first: row 1: no column file_name among \['filename'\]"),
    ),
    "CSV with its perturbations in another column": (
        lines("file_name,compound\na.png,x\nb.png,y\n", "metadata.csv", id_field="compound"),
        Accepted(2),
    ),
    "CSV ragged": (lines(GOOD_CSV + "c.png\n", "metadata.csv"), Refused("row 3: 1 values, expected 2")),
    "CSV with CR alone": (
        lines(GOOD_CSV.replace("\n", "\r"), "metadata.csv"),
        Accepted(2, lines(GOOD_CSV, "metadata.csv")),
    ),
    "filter of an unknown column": (
        lines(GOOD_CSV, "metadata.csv", filter={"plat": "P1"}),
        Refused("dataset.filter: found column 'plat'; known: .*plate", ConfigError),
    ),
    "hold-out of an unknown experiment": (
        lines(GOOD_CSV, "metadata.csv", held_out_experiments=["P7"]),
        Refused("dataset.held_out_experiments: found .'P7'.*known: all", ConfigError),
    ),
    "hold-out of an unknown compound": (
        lines(GOOD_CSV, "metadata.csv", held_out_perturbations=["aspirin"]),
        Refused("dataset.held_out_perturbations: found .'aspirin'.*known: dmso, taxol", ConfigError),
    ),
}


# BBBC021.


def bbbc021_from(
    root: Path, edit: dict[str, str] | None = None, name: str = "", text: str = "", spell: Edit = str
) -> Outcome:
    """Two fields; `edit` changes the second's cells, `text` is added to table `name`, `spell` spells all."""
    records = []
    for site, compound in ((1, "DMSO"), (2, "taxol")):
        record = dict.fromkeys(COLUMNS, "1")
        for stain, wavelength in (("DAPI", 1), ("Tubulin", 2), ("Actin", 4)):
            file = f"B02_s{site}_w{wavelength}A.tif"
            trees.write(root / "Week1/Week1_1" / file, TWELVE)
            record |= {f"Image_FileName_{stain}": file, f"Image_PathName_{stain}": "Week1/Week1_1"}
        record |= {"Image_Metadata_Plate_DAPI": "Week1_1", "Image_Metadata_Well_DAPI": "B02"}
        records.append(record | {"Image_Metadata_Compound": compound})
    records[1] |= edit or {}
    tables = {
        "image": trees.csv_of(records),
        "moa": "compound,concentration,moa\ntaxol,1,stabilizer\n",
        "compound": "compound,smiles\ntaxol,CCO\n",
    }
    for table, content in tables.items():
        whole = content + (text if table == name else "")
        (root / f"BBBC021_v1_{table}.csv").write_bytes(edited(whole, spell))
    return imported(bbbc021.read(str(root), STORAGE, bbbc021.Bbbc021Options(intensity="image")))


def cell(column: str, value: str) -> Callable[[Path], Outcome]:
    return lambda root: bbbc021_from(root, {f"Image_{column}": value})


def added(name: str, text: str) -> Callable[[Path], Outcome]:
    return lambda root: bbbc021_from(root, None, name, text)


OTHER_WELL = "dapi file name of another well or site"
BBBC021: dict[str, Kind] = {
    "BBBC021 with CR alone": (
        lambda root: bbbc021_from(root, spell=replaced("\n", "\r")),
        Accepted(2, bbbc021_from),
    ),
    "BBBC021 with CRLF": (
        lambda root: bbbc021_from(root, spell=replaced("\n", "\r\n")),
        Accepted(2, bbbc021_from),
    ),
    "BBBC021 with BOM": (
        lambda root: bbbc021_from(root, spell=lambda text: "\ufeff" + text),
        Accepted(2, bbbc021_from),
    ),
    "BBBC021 dose NaN": (
        cell("Metadata_Concentration", "NaN"),
        Quarantined("found 'NaN', expected a number"),
    ),
    "BBBC021 dose negative": (
        cell("Metadata_Concentration", "-1"),
        Quarantined("concentration: found '-1', expected micromolar of at least 0"),
    ),
    "BBBC021 no dose": (cell("Metadata_Concentration", ""), Quarantined("concentration: found ''")),
    "BBBC021 well out of the plate": (cell("Metadata_Well_DAPI", "Z99"), Quarantined(OTHER_WELL)),
    "BBBC021 well in lower case": (cell("Metadata_Well_DAPI", "b02"), Quarantined(OTHER_WELL)),
    "BBBC021 path elsewhere": (
        cell("PathName_DAPI", "Week1/.."),
        Quarantined("path 'Week1/..' is not <week>/<plate>"),
    ),
    "BBBC021 compound unknown to its tables": (cell("Metadata_Compound", "nosuch"), Accepted(2)),
    "BBBC021 compound of two structures": (added("compound", "taxol,CCN\n"), Refused("has two structures")),
    "BBBC021 treatment of two mechanisms": (
        added("moa", "taxol,1.0,inhibitor\n"),
        Refused("row 2: 'taxol' at 1 has two mechanisms, 'stabilizer' and 'inhibitor', expected one"),
    ),
    "BBBC021 mechanism of a negative dose": (
        added("moa", "taxol,-1,inhibitor\n"),
        Refused("row 2, concentration: found '-1', expected micromolar of at least 0"),
    ),
}


# The Cell Painting Gallery.


def rohban_from(root: Path, edit: trees.Edit = lambda rows: None, end: str = "\n") -> Outcome:
    tree = trees.rohban_tree(root, plates=["1", "2"], sites=[("a01", 1), ("a02", 1)], edit=edit, end=end)
    return imported(rohban.read(str(tree), STORAGE, rohban.RohbanOptions()))


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Outcome]:
    """Rohban with the first file of that name changed."""

    def run(root: Path) -> Outcome:
        rohban_from(root)
        path = next(iter(sorted(root.rglob(name))))
        path.write_bytes(change(path.read_bytes()))
        return imported(rohban.read(str(root / trees.ROHBAN), STORAGE, rohban.RohbanOptions()))

    return run


def jump_from(table: str, **values: str) -> Callable[[Path], Outcome]:
    """JUMP's compound plate with one row more in a table of its metadata."""

    def run(root: Path) -> Outcome:
        tree = trees.jump_tree(root, sites=1)
        more = {f"Metadata_{name}": value for name, value in values.items()}
        rows = trees.JUMP_TABLES[table]
        trees.table_of([*rows, dict.fromkeys(rows[0], "") | more], tree / f"metadata/{table}.csv.gz")
        return imported(jump.read(str(tree), STORAGE, jump.JumpOptions(sources=("source_8",))))

    return run


def unpacked(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress(change(gzip.decompress(data).decode()).encode())


def column_twice(text: str) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    extra = ["FileName_OrigDNA", *["other.tif"] * (len(rows) - 1)]
    return "".join(",".join([*row, more]) + "\n" for row, more in zip(rows, extra, strict=True))


BARCODES = b"Assay_Plate_Barcode,Plate_Map_Name\n"
LOAD_DATA = "load_data_with_illum.csv.gz"
GALLERY: dict[str, Kind] = {
    "platemap with CR alone": (lambda root: rohban_from(root, end="\r"), Accepted(4, rohban_from)),
    "well out of the plate": (
        lambda root: rohban_from(root, lambda rows: rows[0].update(Metadata_Well="Z99")),
        Quarantined("no perturbation is known for well Z99", good=3),
    ),
    "wells in mixed case": (
        lambda root: rohban_from(root, lambda rows: rows[0].update(Metadata_Well="A1")),
        Accepted(4, rohban_from),
    ),
    "platemap with a well twice": (
        rewritten("TAORF*.txt", lambda data: data + data.splitlines(keepends=True)[1]),
        Refused("row 11: well_position 'a01' is there already"),
    ),
    "platemap with a column twice": (
        rewritten("TAORF*.txt", lambda data: data.replace(b"GeneID", b"gene_name")),
        Refused(r"columns \['gene_name'\] more than once"),
    ),
    "platemap of its header": (
        rewritten("TAORF*.txt", lambda data: data.splitlines(keepends=True)[0]),
        Refused("no rows below the header"),
    ),
    "plate with two platemaps": (
        rewritten("barcode_platemap.csv", lambda data: data + b"1,other\n"),
        Refused("row 3: plate 1 has two platemaps, TAORF_REFERENCE_SET and other"),
    ),
    "platemap's name that is a path": (
        rewritten("barcode_platemap.csv", lambda data: BARCODES + b"1,../../secret\n"),
        Refused(r"row 1: Plate_Map_Name '\.\./\.\./secret', expected a file's name"),
    ),
    "load_data with a column twice": (
        rewritten(LOAD_DATA, unpacked(column_twice)),
        Quarantined(r"expected \['FileName_OrigDNA'\] once", good=2),
    ),
    "load_data without line ends": (
        rewritten(LOAD_DATA, lambda data: gzip.compress(bytes(2**24))),
        Quarantined("not a CSV table", good=2),
    ),
    "load_data cut": (rewritten(LOAD_DATA, lambda data: data[:-20]), Quarantined("not a CSV table", good=2)),
    "file in /dev": (
        lambda root: rohban_from(
            root, lambda rows: rows[0].update(PathName_OrigDNA="/dev", FileName_OrigDNA="zero")
        ),
        Quarantined("missing channel files: DNA", good=3),
    ),
    "JUMP well of two perturbations": (
        jump_from("well", Source="source_8", Plate="A1170383", Well="A3", JCP2022="JCP2022_000001"),
        Quarantined("two perturbations are named for well A03: JCP2022_999999 and JCP2022_000001", good=2),
    ),
    "JUMP compound of two structures": (
        jump_from("compound", JCP2022="JCP2022_000001", SMILES="CCC"),
        Refused(r"compound\.csv\.gz: JCP2022_000001 is there twice, with two values of Metadata_SMILES"),
    ),
}


# Perturbations, genes, libraries, checkpoints and configurations.


class Malicious:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


def file_to(
    reader: Callable[[str, Storage], Any], name: str, content: str | bytes
) -> Callable[[Path], Outcome]:
    def run(root: Path) -> Outcome:
        trees.write(root / name, content)
        return Outcome(1, [], reader(str(root / name), STORAGE))

    return run


def listed(text: str | bytes) -> Callable[[Path], Outcome]:
    return file_to(read_perturbations, "wanted.csv", text)


def parquet(reader: Callable[[str, Storage], Any], **columns: Any) -> Callable[[Path], Outcome]:
    def run(root: Path) -> Outcome:
        STORAGE.write_table(str(root / "a.parquet"), pa.table(columns))
        return Outcome(1, [], reader(str(root / "a.parquet"), STORAGE))

    return run


def with_genes(text: str) -> Callable[[Path], Outcome]:
    def run(root: Path) -> Outcome:
        (root / "genes.csv").write_text(text)
        return rxrx1_from(root, gene_table=str(root / "genes.csv"))

    return run


def config(text: str, *overrides: str) -> Callable[[Path], Outcome]:
    return lambda root: Outcome(1, [], resolve(parse(text, "run.yaml", overrides)))


def bomb_of_aliases() -> str:
    nested = "".join(
        f"  {b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return "run_dir: x\ndataset:\n  name: rxrx1\n  source: x\n  a: &a [x, x, x]\n" + nested


SMALL: dict[str, Any] = {
    "perturbations": ("caffeine",),
    "held_out_perturbations": (),
    "experiments": 1,
    "held_out_experiments": 0,
    "wells_per_perturbation": 1,
    "sites_per_well": 1,
    "size": 32,
    "nucleus_diameter_px": 8,
}


def simulated_with(old: str, new: str) -> Callable[[Path], Outcome]:
    """A small simulated tree with an edit of its perturbations.csv."""

    def run(root: Path) -> Outcome:
        options = simulated.SimulatedOptions(**SMALL)
        simulated.read(str(root), STORAGE, options)
        path = root / "perturbations.csv"
        path.write_bytes(edited(path.read_text(), replaced(old, new)))
        return imported(simulated.read(str(root), STORAGE, options))

    return run


RUN = "run_dir: x\n"
OTHERS: dict[str, Kind] = {
    "perturbations with a column twice": (
        listed("perturbation_id,smiles,smiles\nx,C,CC\n"),
        Refused(r"wanted\.csv: found the columns \['smiles'\] more than once"),
    ),
    "perturbations with CR alone and BOM": (
        listed("\ufeffperturbation_id,smiles\rx,C\r"),
        Accepted(1, listed("perturbation_id,smiles\nx,C\n")),
    ),
    "perturbation of a negative dose": (
        listed("perturbation_id,concentration_um\nx,-1\n"),
        Refused("row 1, concentration_um: found '-1', expected micromolar of at least 0"),
    ),
    "perturbations in UTF-16 without a mark": (
        listed("perturbation_id\nx\n".encode("utf-16-le")),
        Refused("found a null character: UTF-16. Convert the file to UTF-8"),
    ),
    "perturbation of 200,000 letters": (
        listed("perturbation_id\n" + "x" * 200_000),
        Refused("line 2: field larger than field limit"),
    ),
    "perturbations with semicolons": (listed("perturbation_id;smiles\nx;C\n"), Refused("expected one of")),
    "perturbation twice": (
        listed("perturbation_id\nx\nx\n"),
        Refused("row 2: perturbation 'x' appears twice"),
    ),
    "perturbation NaN, as pandas writes none": (
        parquet(read_perturbations, perturbation_id=[float("nan")]),
        Refused("row 1: the perturbation_id is empty"),
    ),
    "gene table with a column twice": (
        with_genes("siRNA ID,Gene Symbol,Gene Symbol\ns1,A,B\n"),
        Refused(r"columns \['Gene Symbol'\] more than once"),
    ),
    "gene table of its header": (with_genes("a,b\n"), Refused(r"no rows below the header \['a', 'b'\]")),
    "gene table of two genes": (
        with_genes("siRNA ID,Gene Symbol\ns1,A\ns1,B\n"),
        Refused("row 2: siRNA 's1' has two genes, 'A' and 'B'"),
    ),
    "vector with NaN": (file_to(read_vectors, "v.csv", "x,1,nan\n"), Refused("number 2 is NaN, infinite")),
    "vector beyond float32": (
        file_to(read_vectors, "v.csv", "x,1,1e300\n"),
        Refused("number 2 is NaN, infin"),
    ),
    "vectors of words": (
        parquet(read_vectors, perturbation_id=["x"], vector=[["one", "two"]]),
        Refused("expected perturbation_id, and one list column of numbers"),
    ),
    "vectors of vectors": (
        parquet(read_vectors, perturbation_id=["x"], vector=[[[1.0]]]),
        Refused("expected perturbation_id, and one list column of numbers"),
    ),
    "library with two columns of SMILES": (
        file_to(read_library, "a.csv", "smiles,SMILES\nC,CC\n"),
        Refused("expected one called smiles, not several"),
    ),
    "library with an open quote": (
        file_to(read_library, "a.csv", 'smiles\n"C\n'),
        Refused("Correct the quotes"),
    ),
    "checkpoint with code": (
        file_to(
            lambda uri, _: load_state(Path(uri), uri), "best_model.pt", pickle.dumps(Malicious(), protocol=2)
        ),
        Refused(r"refused: it names the code \w+\.system.*none of it was executed"),
    ),
    "checkpoint's vocabulary too deep": (
        lambda root: Outcome(
            1, [], read_vocabulary(str(trees.write(root / "vocab.json", "[" * 100_000).parent), STORAGE)
        ),
        Refused(r"vocab\.json: expected JSON, but"),
    ),
    "bundle whose manifest is a list": (
        file_to(lambda uri, storage: read_manifest(storage, str(Path(uri).parent)), "morphoray.json", "[]"),
        Refused(r"morphoray\.json: found no proper fingerprint, resolution, condition, perturbations"),
    ),
    "bundle of unknown fields": (
        lambda root: Outcome(1, [], known_perturbations({"perturbations": [{"perturbation": "x"}]})),
        Refused(r"morphoray\.json: perturbations: .*'perturbation'; expected rows as training writes"),
    ),
    "simulated tree with a column cut": (
        simulated_with('"gene"', '"symbol"'),
        Refused(r"expected also \['gene'\]"),
    ),
    "simulated tree with a row cut": (
        simulated_with('\n"dmso"', '\n"water"'),
        Refused(r"perturbations\.csv has no row for \['dmso'\], which the sites name"),
    ),
    "config of an unknown preset": (
        config(RUN + "dataset: {name: rohban, source: x, preset: [1]}"),
        Refused(r"dataset\.preset: Input should be 'rohban_5' or 'rohban_12', found \[1\]", ConfigError),
    ),
    "config of an unknown dataset": (
        config(RUN + "dataset: {name: rxrx2, source: x}"),
        Refused("unknown dataset 'rxrx2'; known: rxrx1, bbbc021", ConfigError),
    ),
    "config with an unknown key": (
        config(RUN + "dataset: {name: rxrx1, source: x, cel_types: [U2OS]}"),
        Refused("dataset.cel_types: unknown key, found .*Known keys here: .*cell_types", ConfigError),
    ),
    "config with a key twice": (
        config(RUN + "seed: 1\nseed: 2\n"),
        Refused(r"run\.yaml: not valid YAML: key 'seed' is there twice.*\n.*line 3", ConfigError),
    ),
    "config with code": (
        config("run_dir: !!python/object/apply:os.system [false]"),
        Refused("not valid YAML: could not determine a constructor", ConfigError),
    ),
    "config too deep": (config("[" * 20_000), Refused(r"run\.yaml: not valid YAML", ConfigError)),
    "config with a date that is none": (
        config("run_dir: 2020-13-45"),
        Refused(r"run\.yaml: not valid YAML: month must be in 1\.\.12", ConfigError),
    ),
    "config of nested aliases": (
        config(bomb_of_aliases()),
        Refused(
            r"dataset\.a: unknown key, found \['x', 'x', 'x'\](.|\n)*dataset\.i: unknown key", ConfigError
        ),
    ),
    "config without an end": (
        config(RUN + "training: {learning_rate: .inf}"),
        Refused("training.learning_rate: Input should be a finite number, found inf", ConfigError),
    ),
    "override that is no YAML": (
        config(RUN, "training.max_steps=[1"),
        Refused(r"--set training\.max_steps=\[1: not valid YAML", ConfigError),
    ),
}

GROUPS = (IMAGES, ARCHIVES, TABLES, FOLDERS, BBBC021, GALLERY, OTHERS)
KINDS = {name: kind for group in GROUPS for name, kind in group.items()}
assert len(KINDS) == sum(map(len, GROUPS)), "two kinds of one name"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_bad_input_gives(kind: str, tmp_path: Path) -> None:
    run, expected = KINDS[kind]
    here = tmp_path / "here"
    here.mkdir()
    if isinstance(expected, Refused):
        with pytest.raises(expected.error, match=expected.words) as raised:
            run(here)
        assert type(raised.value) is expected.error
        return
    found = run(here)
    if isinstance(expected, Quarantined):
        assert (found.good, len(found.reasons)) == (expected.good, expected.bad), found.reasons
        assert all(re.search(expected.words, reason) for reason in found.reasons), found.reasons
        return
    assert (found.good, found.reasons) == (expected.good, [])
    if expected.plain is not None:
        (tmp_path / "here").rename(tmp_path / "before")
        here.mkdir()
        plain = expected.plain(here)
        assert found.result == plain.result


def test_a_name_on_the_disk_that_is_no_text_harms_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "images/E1/Plate1"
    folder.mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(PNG)
    assert rxrx1_from(tmp_path).good == 2


def test_all_of_a_grey_range_is_used_of_twelve_bits(tmp_path: Path) -> None:
    """What is accepted is also right: 4095 of 65535 is no black image."""
    images = picture(TWELVE, TWELVE, TWELVE)(tmp_path).result
    assert [image.max() for image in images] == [PNG_TOP, 255]


PNG_TOP = int(np.asarray(Image.open(io.BytesIO(PNG))).max())
