"""The importers of Cell Painting Gallery projects: layouts, real pixels, S3, and what can be wrong."""

import gzip
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gallery_trees as trees
from gallery_trees import jump_tree, pilot_tree, rohban_tree, vignette
from morphoray.config import ImageConfig
from morphoray.datasets import jump, rohban
from morphoray.datasets.base import Imported
from morphoray.datasets.platemaps import well_name
from morphoray.datasets.reading import read_site
from morphoray.datasets.tables import text_batches
from morphoray.errors import ConfigError, DataError
from morphoray.imaging.channels import MAPPINGS
from morphoray.imaging.crops import crop_positions
from morphoray.imaging.intensity import stretch, to_uint8
from morphoray.pipelines.encode import EncodePart, ReadPlan, read_part, read_plan, write_part
from morphoray.pipelines.layout import layout_of, resolve
from morphoray.pipelines.sites import import_sites, read_sites
from morphoray.pipelines.stream import pack, unpack
from morphoray.schema import QUARANTINE, SITES
from morphoray.sections import build
from morphoray.storage import Storage
from tinyrun import run_of

STORAGE = Storage()
BATCH = trees.ROHBAN_BATCH
ONE = [("a02", 1)]


def import_rohban(source: Path | str, storage: Storage = STORAGE, **options: Any) -> Imported:
    return checked(rohban.read(str(source), storage, rohban.RohbanOptions(**options)))


def import_jump(source: Path | str, storage: Storage = STORAGE, **options: Any) -> Imported:
    return checked(jump.read(str(source), storage, jump.JumpOptions(**options)))


def checked(found: Imported) -> Imported:
    assert found.sites.schema.equals(SITES)
    assert found.quarantine.schema.equals(QUARANTINE)
    return found


def column(found: Imported, name: str) -> list[Any]:
    return found.sites[name].to_pylist()


def reasons(found: Imported) -> list[str]:
    return found.quarantine["reason"].to_pylist()


# Rohban


def test_rohban_sites(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path)
    found = import_rohban(tree)
    images, illum = (f"{tree}/broad/images/{BATCH}/{kind}/41744/" for kind in ("images", "illum"))
    assert found.sites.slice(2, 1).to_pylist()[0] == {
        "site_id": f"{BATCH}__41744__A02__1", "dataset": "rohban", "experiment": BATCH, "plate": "41744",
        "well": "A02", "site": "1", "cell_type": "U2OS", "replicate": None, "perturbation_id": "RAC1_WT.1",
        "perturbation_kind": "gene", "smiles": None, "gene": "RAC1", "concentration_um": None, "moa": None,
        "is_control": False, "intensity_ranges": None, "pixel_size_um": None, "split": "train",
        "channel_uris": [images + trees.image_xpress(name, "a02", 1) for name in trees.CHANNELS],
        "illumination_uris": [f"{illum}41744_Illum{name}.npy" for name in trees.CHANNELS],
    }  # fmt: skip
    assert column(found, "perturbation_id")[::2][:6] == [
        "EMPTY", "RAC1_WT.1", "RAC1_T17N", "KRAS_WT.2", "Luciferase", "XBP1_S",
    ]  # fmt: skip
    control = found.sites.slice(0, 1).to_pylist()[0]
    assert (control["perturbation_kind"], control["gene"], control["is_control"]) == ("control", None, True)
    assert "rohban: 24 sites, 0 quarantined" in found.summary
    assert "plates: 2013_10_11_SIGMA2_Pilot/41744 12, 2013_10_11_SIGMA2_Pilot/41754 12" in found.summary
    assert "kinds: control 8, gene 16" in found.summary
    assert "missing files: none" in found.summary


def test_rohban_files_are_in_the_channels_order(tmp_path: Path) -> None:
    """The table has RNA, ER, AGP, Mito, DNA; the fixture's channels have levels of their own."""
    tree = rohban_tree(tmp_path, plates=["41744"])
    uris = column(import_rohban(tree), "channel_uris")[0]
    levels = [np.asarray(Image.open(uri)).max() for uri in uris]
    assert levels == sorted(levels)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize(
    "table", ["load_data_with_illum.parquet", "load_data_with_illum.csv", "load_data_with_illum.csv.gz"]
)
def test_rohban_reads_every_table_and_line_end(tmp_path: Path, table: str, end: str) -> None:
    first = import_rohban(rohban_tree(tmp_path, plates=["41744"])).sites
    shutil.rmtree(tmp_path / trees.ROHBAN)
    assert import_rohban(rohban_tree(tmp_path, plates=["41744"], table=table, end=end)).sites.equals(first)


def test_rohban_takes_the_table_with_illumination(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path, plates=["41744"])
    rohban_tree(tmp_path, plates=["41744"], table="load_data.parquet")
    assert None not in column(import_rohban(tree), "illumination_uris")
    for path in tree.rglob("load_data_with_illum*"):
        path.unlink()
    bare = import_rohban(tree)
    assert set(column(bare, "illumination_uris")) == {None}
    assert "illumination: 12 sites have no illumination functions in their tables" in bare.summary


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"merge_alleles": True}, {"EMPTY", "RAC1", "KRAS", "Luciferase", "XBP1"}),
        ({"preset": "rohban_5"}, {"RAC1", "KRAS"}),
        ({"preset": "rohban_5", "merge_alleles": False}, {"RAC1_WT.1", "RAC1_T17N", "KRAS_WT.2"}),
        ({"preset": "rohban_5", "controls": True}, {"RAC1", "KRAS", "EMPTY", "Luciferase"}),
        ({"genes": ["RAC1_T17N", "XBP1"], "controls": False}, {"RAC1_T17N", "XBP1_S"}),
        ({"genes": ["XBP1", "EMPTY"], "controls": False}, {"EMPTY", "XBP1_S"}),
        ({"controls": False}, {"RAC1_WT.1", "RAC1_T17N", "KRAS_WT.2", "XBP1_S"}),
    ],
)
def test_rohban_chooses_genes(tmp_path: Path, options: dict[str, Any], expected: set[str]) -> None:
    found = import_rohban(rohban_tree(tmp_path), **options)
    assert set(column(found, "perturbation_id")) == expected


def test_rohban_presets_survive_a_resolved_configuration() -> None:
    given = rohban.RohbanOptions(preset="rohban_12", merge_alleles=False)
    assert rohban.RohbanOptions(**given.model_dump(mode="json")) == given
    assert len(rohban.PRESETS["rohban_12"]) == 12
    assert rohban.RohbanOptions(preset="rohban_12").merge_alleles
    assert not rohban.RohbanOptions().merge_alleles


def test_rohban_options_that_match_nothing(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path)
    for options, reason in (
        ({"genes": ["RAC2"]}, r"dataset\.genes: found \['RAC2'\].*RAC1_T17N"),
        ({"preset": "rohban_12"}, r"dataset\.genes: found \['MAPK14', .*which the data don't have"),
        ({"plates": ["41755"]}, r"dataset\.plates.*known: 41744, 41754"),
        ({"batches": ["other"]}, rf"dataset\.batches.*known: {BATCH}"),
        ({"held_out_experiments": ["other"]}, r"dataset\.held_out_experiments.*known: 2013"),
        ({"held_out_perturbations": ["RAC9"]}, r"dataset\.held_out_perturbations"),
    ):
        with pytest.raises(ConfigError, match=reason):
            import_rohban(tree, **options)


def test_rohban_holds_out_limits_and_takes_numbers_for_plates(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path)
    found = import_rohban(tree, held_out_perturbations=["XBP1_S"], plates=[41744])
    assert set(column(found, "plate")) == {"41744"}
    assert column(found, "split").count("held_out_perturbation") == 2
    by_gene = import_rohban(tree, held_out_perturbations=["RAC1"], held_out_plates=["41754"])
    assert {
        row["perturbation_id"]: row["split"] for row in by_gene.sites.to_pylist() if row["plate"] == "41744"
    } == {
        "EMPTY": "train", "KRAS_WT.2": "train", "Luciferase": "train", "XBP1_S": "train",
        "RAC1_WT.1": "held_out_perturbation", "RAC1_T17N": "held_out_perturbation",
    }  # fmt: skip
    assert column(by_gene, "split").count("held_out_both") == 4
    controls = import_rohban(tree, filter={"is_control": True, "well": ["A05"]})
    assert set(column(controls, "perturbation_id")) == {"Luciferase"}
    assert "selected: 4 of 24 sites, by filter (4) and limit" in controls.summary
    few = import_rohban(tree, limit=5)
    assert column(few, "plate") == ["41744"] * 3 + ["41754"] * 2
    assert column(few, "well") == ["A01", "A03", "A05", "A02", "A04"]


def test_a_fixed_intensity_range(tmp_path: Path) -> None:
    """Of all channels alike, over raw pixels; without it each image has a range of its own."""
    tree = rohban_tree(tmp_path, plates=["41744"], sites=ONE)
    (row,) = import_rohban(tree, intensity=[0, 5100], illumination=False).sites.to_pylist()
    assert row["intensity_ranges"] == [0.0, 5100.0] * 5
    raw = np.stack([np.asarray(Image.open(uri)) for uri in row["channel_uris"]])
    image = read_site(row, ImageConfig(), STORAGE)
    np.testing.assert_array_equal(image, np.rint(raw / np.float32(20)))
    assert image.max() < 255 == read_site(row | {"intensity_ranges": None}, ImageConfig(), STORAGE).max()
    with pytest.raises(ConfigError, match=r"intensity: found \[10.0, 10.0\], expected low < high"):
        build(rohban.RohbanOptions, {"intensity": [10, 10]}, "dataset")


@pytest.mark.parametrize("alone", [False, True])
def test_paths_are_mapped(tmp_path: Path, alone: bool) -> None:
    """The tables name the gallery's bucket: the project's folder, a source's own, or any other by `paths`."""
    tree = rohban_tree(tmp_path)
    source = tree / "broad" if alone else tree
    assert column(import_rohban(source), "channel_uris")[0][0].startswith(
        f"{tree}/broad/images/{BATCH}/images/"
    )
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tree / "broad/images", tmp_path / "elsewhere/images")
    first = f"{tree}/broad/images/{BATCH}/images/41744/{trees.image_xpress('DNA', 'a01', 1)}"
    elsewhere = import_rohban(source)
    assert (elsewhere.sites.num_rows, elsewhere.quarantine.num_rows) == (24, 0)
    assert f"missing files: all 24 sites lack all their images, the first {first}" in elsewhere.summary
    moved = import_rohban(source, paths={trees.MOUNT + trees.ROHBAN + "/broad": str(tmp_path / "elsewhere")})
    assert column(moved, "channel_uris")[0][0].startswith(
        f"{tmp_path}/elsewhere/images/{BATCH}/images/41744/"
    )
    public = import_rohban(source, paths={trees.MOUNT: trees.BUCKET}, check_files=False)
    assert column(public, "illumination_uris")[0][0] == (
        f"{trees.BUCKET}{trees.ROHBAN}/broad/images/{BATCH}/illum/41744/41744_IllumDNA.npy"
    )


def test_one_platemap_for_all_plates(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path)
    expected = import_rohban(tree).sites
    moved = tmp_path / "map.txt"
    shutil.move(next(tree.rglob("TAORF_REFERENCE_SET.txt")), moved)
    next(tree.rglob("barcode_platemap.csv")).unlink()
    assert import_rohban(tree, platemap=str(moved)).sites.equals(expected)
    with pytest.raises(DataError, match=r"barcode_platemap\.csv: missing"):
        import_rohban(tree)


# What can be wrong with a table: each row that is bad has its reason, and the others stay.


def change(**values: str) -> Callable[[list[trees.Row]], object]:
    """An edit of the first row."""
    return lambda rows: rows[0].update(values)


def swap(rows: list[trees.Row]) -> None:
    one, other = "FileName_OrigDNA", "FileName_OrigMito"
    rows[3][one], rows[3][other] = rows[3][other], rows[3][one]


def copy_name(rows: list[trees.Row]) -> None:
    rows[0]["FileName_OrigDNA"] = rows[0]["FileName_OrigER"]


@pytest.mark.parametrize(
    ("edit", "item", "reason"),
    [
        (change(FileName_OrigRNA=""), "A01__1", "no file that can be read is named for channels: RNA"),
        (change(PathName_OrigRNA="ftp://host/x"), "A01__1", "no file that can be read .* channels: RNA"),
        (change(FileName_OrigRNA="../x.tif"), "A01__1", "no file that can be read .* channels: RNA"),
        (change(FileName_IllumAGP=""), "A01__1", "no illumination function is named for channels: AGP"),
        (change(FileName_IllumAGP="41744_IllumAPG.npy"), "A01__1", "missing illumination functions: AGP"),
        (change(FileName_OrigER="gone_w2.tif"), "A01__1", "missing channel files: ER"),
        (change(Metadata_Well="a1x"), "__1", r"Metadata_Well 'a1x' is no well such as A01"),
        (change(Metadata_Well="c07"), "C07__1", "no perturbation is known for well C07"),
        (change(Metadata_Site=""), "A01__", "Metadata_Site is empty"),
        (change(Metadata_Plate="41754"), "A01__1", "Metadata_Plate is 41754, in the table of plate 41744"),
        (change(Metadata_Site="2"), "A01__2", "there twice"),
        (copy_name, "A01__1", "channels DNA and ER name one file"),
        (swap, "A02__2", "channels swapped, .*: DNA is 5, on the plate 1; Mito is 1, on the plate 5"),
    ],
)
def test_a_bad_row_is_quarantined(
    tmp_path: Path, edit: Callable[[list[trees.Row]], object], item: str, reason: str
) -> None:
    found = import_rohban(rohban_tree(tmp_path, plates=["41744"], edit=edit))
    assert found.sites.num_rows == 11
    (row,) = found.quarantine.to_pylist()
    assert row["item"] == f"{BATCH}__41744__{item}"
    assert row["stage"] == "import" and row["uri"]
    assert re.search(reason, row["reason"]), row["reason"]


def test_channels_may_share_a_file_on_the_whole_plate(tmp_path: Path) -> None:
    """JUMP's source_15 has one channel for ER and RNA."""

    def share(rows: list[trees.Row]) -> None:
        for row in rows:
            row["FileName_OrigRNA"] = row["FileName_OrigER"]

    found = import_rohban(rohban_tree(tmp_path, plates=["41744"], edit=share))
    assert (found.sites.num_rows, found.quarantine.num_rows) == (12, 0)
    first = column(found, "channel_uris")[0]
    assert first[1] == first[2]


def drop(*names: str) -> Callable[[list[trees.Row]], object]:
    def edit(rows: list[trees.Row]) -> None:
        for row in rows:
            for name in names:
                del row[name]

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (drop("FileName_OrigRNA"), r"no column FileName_OrigRNA and PathName_OrigRNA \(or URL_OrigRNA\)"),
        (drop("Metadata_Well", "Metadata_Site"), "no column Metadata_Well, Metadata_Site"),
    ],
)
def test_a_table_without_a_column_is_quarantined(
    tmp_path: Path, edit: Callable[[list[trees.Row]], object], reason: str
) -> None:
    found = import_rohban(rohban_tree(tmp_path, edit=edit))
    assert set(column(found, "plate")) == {"41754"}
    (row,) = found.quarantine.to_pylist()
    assert (row["item"], row["uri"].rpartition("/")[2]) == (
        f"broad/{BATCH}/41744",
        "load_data_with_illum.csv.gz",
    )
    assert re.search(reason, row["reason"])


def test_sites_without_some_illumination_columns_are_quarantined(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path, edit=drop("FileName_IllumER", "PathName_IllumER"))
    found = import_rohban(tree)
    assert set(reasons(found)) == {"no illumination function is named for channels: ER"}
    assert (found.sites.num_rows, found.quarantine.num_rows) == (12, 12)
    assert import_rohban(tree, illumination=False).sites.num_rows == 24


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("load_data_with_illum.csv.gz", b"", "not a CSV table"),
        ("load_data_with_illum.csv.gz", b"no gzip", "not a CSV table"),
        ("load_data_with_illum.csv", b"a,b\n1,2,3\n", "not a CSV table"),
        ("load_data_with_illum.csv", b"", "not a CSV table"),
        ("load_data_with_illum.csv", b"a,b\n", "no column Metadata_Well"),
        ("load_data_with_illum.csv", "Metadata_Well\n\ufeff\n".encode("utf-16"), "CSV table|no column"),
        ("load_data_with_illum.parquet", b"PAR1 not", "not a Parquet table"),
    ],
)
def test_a_broken_table_is_quarantined(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    tree = rohban_tree(tmp_path)
    folder = tree / "broad/workspace/load_data_csv" / BATCH / "41744"
    (folder / "load_data_with_illum.csv.gz").unlink()
    (folder / name).write_bytes(content)
    found = import_rohban(tree)
    assert set(column(found, "plate")) == {"41754"}
    assert len(reasons(found)) == 1 and re.search(reason, reasons(found)[0])


def test_a_plate_without_a_platemap_is_quarantined(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path)
    next(tree.rglob("barcode_platemap.csv")).write_text(
        "Assay_Plate_Barcode,Plate_Map_Name\n41744,TAORF_REFERENCE_SET\n"
    )
    found = import_rohban(tree)
    assert reasons(found) == ["plate 41754 has no platemap; barcode_platemap.csv names 41744"]
    assert set(column(found, "plate")) == {"41744"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("well_position,gene_name\ra01,X\r", "expected well_position and tabs between"),
        ("well_position\tgene_name\ra01\tX\r", r"expected also \['pert_name'\]"),
        ("well_position\tgene_name\tpert_name\r1a\tX\tY\r", "row 1: .*'1a' is no well such as A01"),
        ("well_position\tgene_name\tpert_name\ra01\tX\r", "row 1: 2 values, expected 3"),
        ("", "the file is empty"),
    ],
)
def test_a_platemap_that_breaks_its_contract(tmp_path: Path, text: str, reason: str) -> None:
    tree = rohban_tree(tmp_path)
    next(tree.rglob("TAORF_REFERENCE_SET.txt")).write_bytes(text.encode())
    with pytest.raises(DataError, match=reason):
        import_rohban(tree)


def test_well_names() -> None:
    names = {"a1": "A01", " A01 ": "A01", "p24": "P24", "aa07": "AA07", "A001": None, "1A": None, "": None}
    assert {text: well_name(text) for text in names} == names


def test_a_folder_that_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder workspace/ in it"):
        import_rohban(tmp_path)
    (tmp_path / "broad/workspace").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no load_data table; looked in workspace/load_data_csv/"):
        import_rohban(tmp_path)


def test_files_are_not_looked_for_when_told_so(tmp_path: Path) -> None:
    tree = rohban_tree(tmp_path)
    for path in [*tree.rglob("*_w3*.tif"), *tree.rglob("41754_IllumAGP.npy")]:
        path.unlink()
    with pytest.raises(DataError, match=r"24 were rejected; the first: .*missing channel files: RNA"):
        import_rohban(tree)
    assert import_rohban(tree, check_files=False).sites.num_rows == 24


def test_a_large_table_comes_in_batches(tmp_path: Path) -> None:
    """50 MB of CSV, gzipped: batches of a few megabytes, and text whatever the columns look like."""
    path = tmp_path / "large.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("Metadata_Plate,Metadata_Well,other\n")
        for start in range(0, 1_000_000, 10_000):
            file.write("".join(f"{n:07d},A01,{'x' * 35}\n" for n in range(start, start + 10_000)))
    sizes = []
    first = None
    for batch in text_batches(str(path), STORAGE, ["Metadata_Plate", "absent"]):
        assert batch.column_names == ["Metadata_Plate"]
        first = first or batch["Metadata_Plate"][0].as_py()
        sizes.append(len(batch))
    assert (first, sum(sizes)) == ("0000000", 1_000_000)
    assert max(sizes) < 100_000


# JUMP


def test_jump_sites(tmp_path: Path) -> None:
    tree = jump_tree(tmp_path)
    found = import_jump(tree)
    assert found.sites.num_rows == 14
    first = next(row for row in found.sites.to_pylist() if row["perturbation_id"] == "JCP2022_900002")
    folder = f"{tree}/source_4/images/2021_04_26_Batch1"
    assert first["channel_uris"] == [
        f"{folder}/images/BR00117035__2021-05-02T16_02_51-Measurement1/Images/{trees.phenix(name, 'A01', 1)}"
        for name in trees.CHANNELS
    ]
    assert first["illumination_uris"][0] == f"{folder}/illum/BR00117035/BR00117035_IllumDNA.npy"
    assert (first["site_id"], first["experiment"], first["plate"], first["cell_type"]) == (
        "source_4__2021_04_26_Batch1__BR00117035__A01__1", "source_4__2021_04_26_Batch1", "BR00117035",
        "U2OS",
    )  # fmt: skip
    kinds = {
        row["perturbation_id"]: (row["perturbation_kind"], row["smiles"], row["gene"], row["pixel_size_um"])
        for row in found.sites.to_pylist()
    }
    assert kinds == {
        "JCP2022_900002": ("gene", None, "NAT1", 0.597976),
        "JCP2022_915131": ("control", None, None, 0.597976),
        "JCP2022_000001": ("compound", "CCO", None, 0.7032),
        "JCP2022_033924": ("control", "CS(C)=O", None, 0.7032),
        "JCP2022_800003": ("gene", None, "A1CF", 0.65),
        "JCP2022_800001": ("control", None, None, 0.65),
        "JCP2022_805264": ("gene", None, "PLK1", 0.65),
    }
    assert sorted(set(reasons(found))) == [
        f"JCP2022_UNKNOWN is in no table of {tree}/metadata: compound, orf, crispr",
        "empty well (JCP2022_999999)",
    ]
    assert "jump: 14 sites, 4 quarantined" in found.summary
    assert "experiments: source_13__20220914_Run1 6, source_4__2021_04_26_Batch1 4, " in found.summary
    assert "illumination: 4 sites have no illumination functions" in found.summary


@pytest.mark.parametrize(
    ("options", "plates", "perturbations"),
    [
        ({"sources": ["source_13"]}, {"CP-CC9-R1-01"}, 3),
        ({"batches": ["J1"]}, {"A1170383"}, 2),
        ({"plates": ["BR00117035", "A1170383"]}, {"BR00117035", "A1170383"}, 4),
        ({"plate_types": ["CRISPR", "ORF"]}, {"CP-CC9-R1-01", "BR00117035"}, 5),
        ({"perturbations": ["JCP2022_805264"], "controls": False}, {"CP-CC9-R1-01"}, 1),
        ({"perturbations": ["JCP2022_805264"], "sources": ["source_13"]}, {"CP-CC9-R1-01"}, 2),
        ({"controls": False, "sources": ["source_8"]}, {"A1170383"}, 1),
    ],
)
def test_jump_selects(tmp_path: Path, options: dict[str, Any], plates: set[str], perturbations: int) -> None:
    found = import_jump(jump_tree(tmp_path), **options)
    assert set(column(found, "plate")) == plates
    assert len(set(column(found, "perturbation_id"))) == perturbations


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sources": ["source_5"]}, r"dataset\.sources: .*known: metadata, source_13, source_4, source_8"),
        ({"plate_types": ["DMSO"]}, r"dataset\.plate_types.*known: COMPOUND, CRISPR, ORF"),
        ({"perturbations": ["JCP2022_000009"]}, r"dataset\.perturbations.*known: JCP2022_000001"),
        ({"batches": ["J1"], "plates": ["BR00117035"]}, "together leave no plate"),
    ],
)
def test_jump_options_that_match_nothing(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        import_jump(jump_tree(tmp_path), **options)


def test_jump_of_one_source_with_the_metadata_elsewhere(tmp_path: Path) -> None:
    tree = jump_tree(tmp_path)
    whole = import_jump(tree, sources=["source_4"])
    shutil.move(tree / "metadata", tmp_path / "tables")
    with pytest.raises(
        DataError, match=r"no well\.csv\.gz, and no barcode_platemap\.csv .*dataset\.metadata"
    ):
        import_jump(tree)
    alone = import_jump(tree / "source_4", metadata=str(tmp_path / "tables"))
    assert alone.sites.equals(whole.sites)


def test_jump_metadata_with_gaps(tmp_path: Path) -> None:
    """A plate, a table and a column that are missing: a reason for each site, or an error that names it."""
    tree = jump_tree(tmp_path)
    wells = [row for row in trees.JUMP_TABLES["well"] if row["Metadata_Source"] != "source_4"]
    trees.table_of(wells, tree / "metadata/well.csv.gz")
    (tree / "metadata/crispr.csv.gz").unlink()
    found = import_jump(tree, pixel_sizes_um={"source_8": 0.5})
    assert "plate BR00117035 has no wells in the metadata" in reasons(found)
    assert any("JCP2022_805264 is in no table" in reason for reason in reasons(found))
    assert set(column(found, "pixel_size_um")) == {0.5, 0.65}
    trees.table_of([{"Metadata_Plate": "x"}], tree / "metadata/well.csv.gz")
    with pytest.raises(DataError, match=r"well\.csv\.gz: found .*Metadata_Well', 'Metadata_JCP2022'\]"):
        import_jump(tree)


def test_jump_says_which_pixel_sizes_it_lacks(tmp_path: Path) -> None:
    tree = jump_tree(tmp_path)
    (tree / "source_4").rename(tree / "source_99")
    found = import_jump(tree, sources=["source_99"], check_files=False)
    assert set(column(found, "pixel_size_um")) == {None}
    assert "pixel size: unknown of source_99; set dataset.pixel_sizes_um" in found.summary


def test_the_pilots_layout(tmp_path: Path) -> None:
    tree = pilot_tree(tmp_path)
    elsewhere = import_jump(tree).summary
    assert f"missing files: all 5 sites lack all their images, the first {trees.PRIVATE}" in elsewhere
    found = import_jump(tree, paths={trees.PRIVATE: f"{tree}/source_4/images"})
    rows = {row["perturbation_id"]: row for row in found.sites.to_pylist()}
    kinds = {name: (row["perturbation_kind"], row["smiles"], row["gene"]) for name, row in rows.items()}
    assert kinds == {
        "BRD-A86665761-001-01-1": ("compound", "CC(C)C(=O)O", None),
        "DMSO": ("control", None, None),
        "ccsbBroad304_00900": ("gene", None, "KCNN1"),
        "ccsbBroad304_02831": ("control", None, None),
        "untreated": ("control", None, None),
    }
    assert reasons(found) == [
        f"BRD-K00000000-001-01-1 is in no .tsv table of {tree}/source_4/workspace/metadata/external_metadata"
    ]
    assert rows["DMSO"]["experiment"] == f"source_4__{trees.PILOT_BATCH}"
    assert "cell type: unknown" in found.summary
    mapped = import_jump(tree, paths={trees.PRIVATE: f"{tree}/source_4/images"}, cell_type="A549")
    assert set(column(mapped, "cell_type")) == {"A549"}
    with pytest.raises(ConfigError, match=r"dataset\.plate_types: no plate\.csv\.gz"):
        import_jump(tree, plate_types=["COMPOUND"])


# The real field


@pytest.fixture(scope="module")
def field(real_data: Path) -> list[bytes]:
    """The five files of a real JUMP field, in the order of CHANNELS."""
    names = [f"r01c01f01p01-ch{number}sk1fk1fl1.tiff" for number in (5, 4, 3, 2, 1)]
    return [(real_data / "jump-sample" / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def functions() -> list[np.ndarray]:
    """Illumination functions of a field of 1080 x 1080 pixels: smooth, median 1."""
    return [vignette(1080, depth) for depth in (0.2, 0.3, 0.25, 0.35, 0.15)]


def pixels_of(field: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in field])


def test_illumination_correction_takes_a_shading_away(
    tmp_path: Path, field: list[bytes], functions: list[np.ndarray]
) -> None:
    """The real field under uneven light, corrected by the functions of that light, is the real field."""
    raw = pixels_of(field)
    shaded = [
        trees.tiff(np.rint(np.minimum(plane * light, 65535)))
        for plane, light in zip(raw, functions, strict=True)
    ]
    tree = rohban_tree(tmp_path, shaded, [trees.npy(light) for light in functions], ["41744"], ONE)
    (row,) = import_rohban(tree).sites.to_pylist()
    flat, corrected = to_uint8(raw).astype(int), read_site(row, ImageConfig(), STORAGE).astype(int)
    uncorrected = read_site(row, ImageConfig(illumination="off"), STORAGE).astype(int)
    assert np.abs(corrected - flat).max() <= 2
    for plane, other in zip(flat, uncorrected, strict=True):
        assert np.abs(plane - other).mean() > 1


def test_both_orders_of_the_correction(
    tmp_path: Path, field: list[bytes], functions: list[np.ndarray]
) -> None:
    tree = rohban_tree(tmp_path, field, [trees.npy(light) for light in functions], ["41744"], ONE)
    (row,) = import_rohban(tree).sites.to_pylist()
    raw, light = pixels_of(field), np.stack(functions)
    first = read_site(row, ImageConfig(), STORAGE)
    assert np.abs(first - to_uint8(raw / light).astype(int)).max() <= 1  # float32 against float64 at a half
    notebook = read_site(row, ImageConfig(illumination="stretched"), STORAGE)
    expected = np.rint(np.clip(stretch(raw) / light, 0, 255))
    assert np.abs(notebook - expected).max() <= 1
    assert (first != notebook).mean() > 0.5


def plan_of(**image: Any) -> ReadPlan:
    return ReadPlan(ImageConfig(**image), MAPPINGS["rohban_rgb"], 2, 7)


def test_a_site_is_resized_or_gives_five_crops(
    tmp_path: Path, field: list[bytes], functions: list[np.ndarray]
) -> None:
    tree = jump_tree(tmp_path, field, [trees.npy(light) for light in functions], sites=1)
    sites = import_jump(tree, sources=["source_4"]).sites
    item = {"part": 0, "sites": pack(sites)}
    resized = read_part(item, plan_of(), STORAGE)
    assert resized["shape"] == [2, 3, 512, 512]
    crops = read_part(item, plan_of(fit="crop", crops=5), STORAGE)
    assert crops["shape"] == [10, 3, 512, 512]
    images = np.frombuffer(crops["images"], np.uint8).reshape(crops["shape"])
    whole = read_site(sites.to_pylist()[0], ImageConfig(), STORAGE)[[2, 4, 0]]  # RNA, Mito, DNA as R, G, B
    places = crop_positions(1080, 1080, 512, 5, "crop", 7, sites["site_id"][0].as_py())
    for image, (y, x) in zip(images[:5], places, strict=True):
        np.testing.assert_array_equal(image, whole[:, y : y + 512, x : x + 512])
    at_scale = read_part(item, plan_of(fit="crop", um_per_pixel=1.2, resolution=256), STORAGE)
    assert at_scale["shape"] == [2, 3, 256, 256]


def test_what_only_the_pixels_tell_is_quarantined_when_they_are_read(tmp_path: Path) -> None:
    """Zero-byte, truncated and black TIFFs, and functions that are none, beside a site that is fine."""
    tree = rohban_tree(tmp_path, plates=["41744"])
    image = f"images/{BATCH}/images/41744/"
    good, bad = trees.small_field()[0], trees.npy(np.zeros((24, 24)))
    for well, data in (("a01", b""), ("a02", good[:200]), ("a03", trees.tiff(np.zeros((24, 24))))):
        (tree / "broad" / image / trees.image_xpress("RNA", well, 1)).write_bytes(data)
    other = tree / f"broad/images/{BATCH}/illum/41744/other.npy"
    other.write_bytes(bad)
    table = next(tree.rglob("load_data_with_illum.csv.gz"))
    text = gzip.decompress(table.read_bytes()).decode().splitlines()
    text[7] = text[7].replace("41744_IllumAGP.npy", "other.npy")  # a04, site 1
    table.write_bytes(gzip.compress("\n".join(text).encode()))
    sites = import_rohban(tree).sites
    assert len(sites) == 12
    read = read_part({"part": 0, "sites": pack(sites)}, plan_of(resolution=16), STORAGE)
    rows = unpack(read["bad"]).to_pylist()
    found = {row["item"].split("__")[2]: row["reason"].rpartition("/")[2] for row in rows}
    assert found == {
        "A01": f"{trees.image_xpress('RNA', 'a01', 1)}: zero bytes",
        "A02": found["A02"],
        "A03": f"{trees.image_xpress('RNA', 'a03', 1)}: all black",
        "A04": found["A04"],
    }
    assert re.search("corrupt|truncated", found["A02"])
    assert found["A04"].endswith(": illumination has values that are not positive and finite")
    assert read["shape"] == [8, 3, 16, 16]


def test_the_too_dark_rule(tmp_path: Path) -> None:
    """It looks at the image in 8 bits: what the original's order leaves of a strong correction."""
    strong = [trees.npy(np.full((24, 24), level)) for level in (5.0, 5.0, 5.0, 5.0, 4.0)]
    tree = rohban_tree(tmp_path, functions=strong, plates=["41744"], sites=ONE)
    item = {"part": 0, "sites": pack(import_rohban(tree).sites)}

    def bad(**image: Any) -> list[str]:
        read = read_part(item, plan_of(resolution=16, **image), STORAGE)
        return [row["reason"] for row in unpack(read["bad"]).to_pylist()]

    assert bad(illumination="stretched") == []
    assert bad(illumination="stretched", min_maximum=64) == []  # 255 / 4 of Mito, the brightest of the three
    (reason,) = bad(illumination="stretched", min_maximum=65)
    assert re.search(r"too dark: .* is 64 of 255, below image\.min_maximum 65$", reason)
    assert bad(min_maximum=255) == []  # each image has its own range


def test_rohban_and_jump_from_s3(
    field: list[bytes], functions: list[np.ndarray], tmp_path: Path, s3_env: Any
) -> None:
    light = [trees.npy(function.astype(np.float32)) for function in functions]
    storage, root = Storage(), f"s3://{s3_env.bucket}/gallery"
    for tree in (
        rohban_tree(tmp_path, field, light, ["41744"], [("a01", 1), ("a02", 1)]),
        jump_tree(tmp_path, field, light, sites=1),
    ):
        storage.upload_dir(tree, f"{root}/{tree.name}")
    local = import_rohban(tmp_path / trees.ROHBAN)
    rohban_uri, jump_uri = f"{root}/{trees.ROHBAN}", f"{root}/{trees.JUMP}"
    assert storage.list_folders(jump_uri) == [
        f"{jump_uri}/{name}" for name in ("metadata", "source_13", "source_4", "source_8")
    ]
    assert [Path(uri).name for uri in storage.list_folders(str(tmp_path / trees.JUMP))] == [
        "metadata", "source_13", "source_4", "source_8",
    ]  # fmt: skip
    assert storage.list_folders(f"{root}/none") == storage.list_folders(str(tmp_path / "none")) == []
    found = import_rohban(rohban_uri, storage)
    assert column(found, "site_id") == column(local, "site_id")
    uris = column(found, "channel_uris")[0]
    assert uris[0].startswith(f"{rohban_uri}/broad/images/{BATCH}/images/41744/")
    np.testing.assert_array_equal(
        read_site(found.sites.to_pylist()[0], ImageConfig(), storage),
        read_site(local.sites.to_pylist()[0], ImageConfig(), STORAGE),
    )
    everything = import_jump(jump_uri, storage)
    assert column(everything, "site_id") == column(import_jump(tmp_path / trees.JUMP), "site_id")
    storage.delete(column(everything, "channel_uris")[0][2])
    storage.delete(f"{jump_uri}/source_4/images/2021_04_26_Batch1/illum/BR00117035/BR00117035_IllumER.npy")
    lacking = import_jump(jump_uri, storage)
    assert {"missing channel files: RNA", "missing illumination functions: ER"} < set(reasons(lacking))
    moved = import_jump(tmp_path / trees.JUMP, paths={trees.BUCKET: root}, sources=["source_8"])
    assert column(moved, "channel_uris")[0][0].startswith(f"{jump_uri}/source_8/images/J1/images/A1170383/")


def test_a_gallery_project_becomes_latents(
    tmp_path: Path, field: list[bytes], functions: list[np.ndarray], codec_folder: Path
) -> None:
    """Import, read, encode and write, as the stage does, without Ray: a bad site, and one of five crops."""
    tree = rohban_tree(
        tmp_path, field, [trees.npy(light) for light in functions], ["41744"], [("a02", 1), ("a04", 1)]
    )
    (tree / f"broad/images/{BATCH}/images/41744" / trees.image_xpress("AGP", "a04", 1)).write_bytes(b"")
    config = resolve(
        run_of(
            {
                "run_dir": str(tmp_path / "run"),
                "dataset": {"name": "rohban", "source": str(tree), "merge_alleles": True},
                "image": {"resolution": 64, "fit": "crop", "crops": 5, "scale_to": 256},
                "bundle": {"preset": "tiny", "vae": str(codec_folder)},
                "encode": {"views": ["identity"]},
            }
        )
    )
    imported = import_sites(config)
    assert imported is not None
    print(imported.summary)
    assert "rohban: 2 sites, 0 quarantined" in imported.summary
    assert import_sites(config) is None
    read = read_part({"part": 0, "sites": pack(read_sites(config))}, read_plan(config), STORAGE)
    counts = write_part(EncodePart(config)(read), layout_of(config), STORAGE, "test")
    assert counts == {"part": 0, "rows": 5, "sites": 2, "bad": 1}
    latents = STORAGE.read_table(layout_of(config).of_data("latents", "part-000000.parquet"))
    assert set(latents["perturbation_id"].to_pylist()) == {"RAC1"}
    assert latents["crop"].to_pylist() == [0, 1, 2, 3, 4]
    means = latents["latent_mean"].combine_chunks().to_numpy_ndarray()
    assert np.isfinite(means).all() and len(np.unique(means.reshape(5, -1), axis=0)) == 5
    bad = STORAGE.read_table(
        layout_of(config).of_data("quarantine", "encode", "part-000000.parquet")
    ).to_pylist()
    assert [row["reason"].rpartition(": ")[2] for row in bad] == ["zero bytes"]
