"""Trees in the layouts of cpg0017 (Rohban), cpg0016 (JUMP) and cpg0000 (its pilot), around given pixels.

Folder and file names, columns and their order, well spelling and line ends are those of the public files.
"""

from __future__ import annotations

import csv
import gzip
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
ROHBAN, JUMP, PILOT = "cpg0017-rohban-pathways", "cpg0016-jump", "cpg0000-jump-pilot"
MOUNT, BUCKET = "/home/ubuntu/bucket/", "s3://cellpainting-gallery/"
Row = dict[str, str]
Edit = Callable[[list[Row]], object]


def tiff(pixels: np.ndarray) -> bytes:
    """A 16-bit LZW TIFF, as the microscopes' are."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(buffer, format="TIFF", compression="tiff_lzw")
    return buffer.getvalue()


def small_field(side: int = 24) -> list[bytes]:
    """Five channels of noise, each with a level of its own."""
    generator = np.random.default_rng(0)
    return [tiff(generator.integers(100, 1000 * (c + 1), (side, side))) for c in range(5)]


def small_functions(side: int = 24) -> list[bytes]:
    """Illumination functions of such a field."""
    return [npy(vignette(side, 0.1 * (c + 1))) for c in range(5)]


def vignette(side: int, depth: float) -> np.ndarray:
    """Light that falls off from the centre by about `depth`; smooth, of median 1."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    function = 1 - depth * (x**2 + 0.5 * y**2 + 0.3 * x)
    return function / np.median(function)


def npy(function: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, function)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def csv_of(rows: Sequence[Mapping[str, str]], delimiter: str = ",", end: str = "\n") -> str:
    """A CSV with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def table_of(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """The rows as the path's ending says: .parquet, .csv.gz or .csv."""
    if path.name.endswith(".parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        text = csv_of(rows)
        write(path, gzip.compress(text.encode()) if path.name.endswith(".gz") else text)


class Source:
    """A source's folder: its plates' images, illumination functions and load_data tables."""

    def __init__(
        self, root: Path, project: str, name: str, field: list[bytes], functions: list[bytes]
    ) -> None:
        self.folder = root / project / name
        self._field, self._functions = field, functions

    def plate(
        self,
        batch: str,
        plate: str,
        table: str,
        sites: Sequence[tuple[str, int]],
        file_name: Callable[[str, str, int], str],
        named: Callable[[str], str],
        measurement: str = "",
        more: Mapping[str, str] = MappingProxyType({}),
        edit: Edit = lambda rows: None,
    ) -> None:
        """Write a plate; `named`: what its table calls a folder; `edit`: of the table's rows.

        measurement: what the images' folder has after the plate; more: columns of the table.
        """
        images = f"images/{batch}/images/{plate}{measurement}"
        rows: list[Row] = []
        for well, site in sites:
            row: Row = {}
            for channel in ("RNA", "ER", "AGP", "Mito", "DNA"):
                name = file_name(channel, well, site)
                write(self.folder / images / name, self._field[CHANNELS.index(channel)])
                row |= {f"FileName_Orig{channel}": name, f"PathName_Orig{channel}": named(images)}
            row |= {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": str(site)}
            if "with_illum" in table:
                functions = f"images/{batch}/illum/{plate}"
                for channel in sorted(CHANNELS):
                    name = f"{plate}_Illum{channel}.npy"
                    if not rows:
                        write(self.folder / functions / name, self._functions[CHANNELS.index(channel)])
                    row |= {f"FileName_Illum{channel}": name, f"PathName_Illum{channel}": named(functions)}
            rows.append(row | more)
        edit(rows)
        table_of(rows, self.folder / "workspace/load_data_csv" / batch / plate / table)


def image_xpress(channel: str, well: str, site: int) -> str:
    """Rohban's file names: w1 DNA, w2 ER, w3 RNA, w4 AGP, w5 Mito, and a GUID."""
    guid = uuid.uuid5(uuid.NAMESPACE_OID, f"{channel}{well}{site}")
    return f"taoe005-u2os-72h-cp-a-au00044859_{well}_s{site}_w{CHANNELS.index(channel) + 1}{guid}.tif"


def phenix(channel: str, well: str, site: int) -> str:
    """source_4's file names: ch5 DNA, ch4 ER, ch3 RNA, ch2 AGP, ch1 Mito."""
    row, column = "ABCDEFGHIJKLMNOP".index(well[0]) + 1, int(well[1:])
    return f"r{row:02d}c{column:02d}f{site:02d}p01-ch{5 - CHANNELS.index(channel)}sk1fk1fl1.tiff"


def cell_voyager(channel: str, well: str, site: int) -> str:
    """source_13's file names: C01 DNA, C04 ER, C03 RNA, C05 AGP, C02 Mito."""
    code = {"DNA": 1, "ER": 4, "RNA": 3, "AGP": 5, "Mito": 2}[channel]
    return f"CP-CC9-R1-01_{well}_T0001F{site:03d}L01A01Z01C{code:02d}.tif"


ROHBAN_BATCH = "2013_10_11_SIGMA2_Pilot"
ROHBAN_WELLS = {
    "a01": ("EMPTY", "EMPTY_", "Untreated"),
    "a02": ("RAC1", "RAC1_WT.1", "Treated"),
    "a03": ("RAC1", "RAC1_T17N", "Treated"),
    "a04": ("KRAS", "KRAS_WT.2", "Treated"),
    "a05": ("Luciferase", "Luciferase_CTRL", "CTRL"),
    "a06": ("XBP1", "XBP1_S", "Treated"),
    "a07": ("CDC42", "CDC42_WT", "Treated"),
    "a08": ("RHOA", "RHOA_WT", "Treated"),
    "a09": ("PAK1", "PAK1_WT.1", "Treated"),
    "p24": ("eGFP", "eGFP_CTRL", "CTRL"),
}


def rohban_tree(
    root: Path,
    field: list[bytes] | None = None,
    functions: list[bytes] | None = None,
    plates: Sequence[str] = ("41744", "41754"),
    sites: Sequence[tuple[str, int]] = tuple(
        (well, site) for well in list(ROHBAN_WELLS)[:6] for site in (1, 2)
    ),
    table: str = "load_data_with_illum.csv.gz",
    end: str = "\r",
    edit: Edit = lambda rows: None,
) -> Path:
    """cpg0017's folder: bare CR line ends in the platemap, lower-case wells. `edit`: of the first plate."""
    source = Source(root, ROHBAN, "broad", field or small_field(), functions or small_functions())
    named = f"{MOUNT}{ROHBAN}/broad/{{}}".format
    for plate in plates:
        change = edit if plate == plates[0] else (lambda rows: None)
        source.plate(ROHBAN_BATCH, plate, table, sites, image_xpress, named, edit=change)
    rows = [
        {
            "well_position": well,
            "gene_name": gene,
            "pert_name": construct,
            "broad_sample": "NA",
            "cell_line": "U2OS",
            "ASSAY_WELL_ROLE": role,
            "GeneID": "NA",
        }
        for well, (gene, construct, role) in ROHBAN_WELLS.items()
    ]
    folder = source.folder / "workspace/metadata/platemaps" / ROHBAN_BATCH
    write(folder / "platemap/TAORF_REFERENCE_SET.txt", csv_of(rows, "\t", end))
    barcodes = [{"Assay_Plate_Barcode": each, "Plate_Map_Name": "TAORF_REFERENCE_SET"} for each in plates]
    write(folder / "barcode_platemap.csv", csv_of(barcodes))
    return root / ROHBAN


JUMP_PLATES = (  # source, batch, plate, type
    ("source_4", "2021_04_26_Batch1", "BR00117035", "ORF"),
    ("source_8", "J1", "A1170383", "COMPOUND"),
    ("source_13", "20220914_Run1", "CP-CC9-R1-01", "CRISPR"),
)
JUMP_WELLS = {
    "BR00117035": {"A01": "JCP2022_900002", "A02": "JCP2022_915131", "A03": "JCP2022_UNKNOWN"},
    "A1170383": {"A01": "JCP2022_000001", "A02": "JCP2022_033924", "A03": "JCP2022_999999"},
    "CP-CC9-R1-01": {"A01": "JCP2022_800003", "A02": "JCP2022_800001", "A03": "JCP2022_805264"},
}


def _metadata(columns: str, *rows: str) -> list[Row]:
    names = [f"Metadata_{name}" for name in columns.split()]
    return [dict(zip(names, row.split(), strict=True)) for row in rows]


JUMP_TABLES: dict[str, list[Row]] = {
    "plate": _metadata("Source Batch Plate PlateType", *(" ".join(plate) for plate in JUMP_PLATES)),
    "well": _metadata(
        "Source Plate Well JCP2022",
        *(
            f"{source} {plate} {well} {name}"
            for source, _, plate, _ in JUMP_PLATES
            for well, name in JUMP_WELLS[plate].items()
        ),
    ),
    "compound": _metadata(
        "JCP2022 InChIKey InChI SMILES",
        'JCP2022_000001 LFQSCWFLJHTTHZ-UHFFFAOYSA-N "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3" CCO',
        'JCP2022_033924 IAZDPXIOMUYVGZ-UHFFFAOYSA-N "InChI=1S/C2H6OS/c1-4(2)3/h1-2H3" CS(C)=O',
    ),
    "orf": _metadata(
        "JCP2022 broad_sample Symbol pert_type",
        "JCP2022_900002 ccsbBroad304_00001 NAT1 trt",
        "JCP2022_915131 ccsbBroad304_99994 LacZ negcon",
    ),
    "crispr": _metadata(
        "JCP2022 NCBI_Gene_ID Symbol",
        "JCP2022_800001 0 no-guide",
        "JCP2022_800003 29974 A1CF",
        "JCP2022_805264 5347 PLK1",
    ),
}


def urls(rows: list[Row]) -> None:
    """FileName_ and PathName_ of the images as one URL_ column, as some sources' tables have them."""
    for row in rows:
        for channel in CHANNELS:
            folder, name = row.pop(f"PathName_Orig{channel}"), row.pop(f"FileName_Orig{channel}")
            row[f"URL_Orig{channel}"] = f"{folder.rstrip('/')}/{name}"


def _in_bucket(source: str) -> Callable[[str], str]:
    """Folders as JUMP's tables name them: those of images end in a slash, those of functions don't."""
    return lambda folder: f"{BUCKET}{JUMP}/{source}/{folder}" + ("" if "/illum/" in folder else "/")


def jump_tree(
    root: Path,
    field: list[bytes] | None = None,
    functions: list[bytes] | None = None,
    sites: int = 2,
    edit: Edit = lambda rows: None,
) -> Path:
    """cpg0016's folder of three sources: Parquet, gzipped CSV without illumination, CSV with URLs.

    `edit` changes source_4's rows.
    """
    pixels, light = field or small_field(), functions or small_functions()
    places = [(well, site) for well in ("A01", "A02", "A03") for site in range(1, sites + 1)]
    how: dict[str, tuple[str, Callable[[str, str, int], str], str, Edit]] = {
        "source_4": (
            "load_data_with_illum.parquet",
            phenix,
            "__2021-05-02T16_02_51-Measurement1/Images",
            edit,
        ),
        "source_8": ("load_data.csv.gz", image_xpress, "", lambda rows: None),
        "source_13": ("load_data_with_illum.csv", cell_voyager, "", urls),
    }
    for name, batch, plate, _ in JUMP_PLATES:
        table, file_name, measurement, change = how[name]
        source = Source(root, JUMP, name, pixels, light)
        where = {"Metadata_Source": name, "Metadata_Batch": batch}
        source.plate(batch, plate, table, places, file_name, _in_bucket(name), measurement, where, change)
    for table, rows in JUMP_TABLES.items():
        table_of(rows, root / JUMP / "metadata" / f"{table}.csv.gz")
    return root / JUMP


PILOT_BATCH, PRIVATE = "2020_11_04_CPJUMP1", "/home/ubuntu/bucket/projects/2019_07_11_JUMP-CP/"


def pilot_tree(root: Path, field: list[bytes] | None = None, functions: list[bytes] | None = None) -> Path:
    """cpg0000's folder: a compound and an ORF plate, CSV, and paths in the bucket the pilot was made in."""
    source = Source(root, PILOT, "source_4", field or small_field(), functions or small_functions())
    places = [(well, 1) for well in ("A01", "A02", "A03")]

    def named(folder: str) -> str:
        return PRIVATE + folder.removeprefix("images/")

    maps = {"BR00116991": "JUMP-Target-1_compound_platemap", "BR00117020": "JUMP-Target-1_orf_platemap"}
    for plate in maps:
        source.plate(
            PILOT_BATCH, plate, "load_data_with_illum.csv", places, phenix, named, "__2020-11-05-Measurement1"
        )
    folder = source.folder / "workspace/metadata"
    platemaps = folder / "platemaps" / PILOT_BATCH
    write(
        platemaps / "barcode_platemap.csv",
        csv_of([{"Assay_Plate_Barcode": plate, "Plate_Map_Name": name} for plate, name in maps.items()]),
    )
    compounds = ("BRD-A86665761-001-01-1", "", "BRD-K00000000-001-01-1")
    write(
        platemaps / "platemap/JUMP-Target-1_compound_platemap.txt",
        csv_of(
            [
                {"well_position": f"A{n:02d}", "broad_sample": sample, "solvent": "DMSO"}
                for n, sample in enumerate(compounds, start=1)
            ],
            "\t",
        ),
    )
    constructs = ("ccsbBroad304_00900", "ccsbBroad304_02831", "")
    write(
        platemaps / "platemap/JUMP-Target-1_orf_platemap.txt",
        csv_of(
            [
                {"well_position": f"A{n:02d}", "broad_sample": sample}
                for n, sample in enumerate(constructs, start=1)
            ],
            "\t",
        ),
    )
    write(
        folder / "external_metadata/JUMP-Target-1_compound_metadata.tsv",
        "broad_sample\tInChIKey\tpert_iname\tgene\tpert_type\tcontrol_type\tsmiles\n"
        "BRD-A86665761-001-01-1\tTZDUHAJSIBHXDL-UHFFFAOYSA-N\tgabapentin-enacarbil\tCACNB4\ttrt\t\tCC(C)C(=O)O\n"
        "\t\tDMSO\t\tcontrol\tnegcon\t\n",
    )
    write(
        folder / "external_metadata/JUMP-Target-1_orf_metadata.tsv",
        "broad_sample\tgene\tpert_type\tcontrol_type\n"
        "ccsbBroad304_00900\tKCNN1\ttrt\t\nccsbBroad304_02831\tSGK3\tcontrol\tnegcon\n\t\t\t\n",
    )
    return root / PILOT
