"""The BBBC021 importer: simulated trees in its exact layout, its real tables, and what can be wrong."""

import csv
import gzip
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from morphoray.config import ImageConfig
from morphoray.datasets import bbbc021, simulated
from morphoray.datasets.base import Imported
from morphoray.datasets.bbbc021_tables import COLUMNS
from morphoray.datasets.ranges import channel_ranges
from morphoray.datasets.reading import read_raw, read_site
from morphoray.errors import ConfigError, DataError
from morphoray.imaging.channels import MAPPINGS
from morphoray.perturbations.base import read_csv
from morphoray.schema import QUARANTINE, SITES
from morphoray.storage import Storage, join

STORAGE = Storage()
SIMULATED = simulated.SimulatedOptions(
    layout="bbbc021",
    perturbations=("lovastatin", "caffeine"),
    held_out_perturbations=("caffeine",),
    doses_um=(1.0, 30.0),
    experiments=2,
    wells_per_perturbation=1,
    sites_per_well=2,
    size=32,
    nucleus_diameter_px=8,
)
PLATES = ("Week1_1001", "Week2_2001")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated tree, to be read only: 2 weeks x 1 plate x (6 DMSO + 4 treated wells) x 2 sites."""
    root = tmp_path_factory.mktemp("bbbc021") / "made"
    simulated.read(str(root), STORAGE, SIMULATED)
    return root


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Path:
    """A copy of the tree that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "tree"))


def import_from(source: Path | str, **options: Any) -> Imported:
    found = bbbc021.read(str(source), STORAGE, bbbc021.Bbbc021Options(**options))
    assert found.sites.schema.equals(SITES)
    assert found.quarantine.schema.equals(QUARANTINE)
    return found


def rows_of(found: Imported) -> list[dict[str, Any]]:
    return list(found.sites.to_pylist())


def zipped(tree: Path, target: Path, form: str) -> Path:
    """The tables beside one archive a plate, with the members' folder in the given form."""
    target.mkdir()
    for table in tree.glob("*.csv"):
        shutil.copy(table, target)
    for plate in PLATES:
        folder = tree / plate.partition("_")[0] / plate
        with zipfile.ZipFile(target / f"BBBC021_v1_images_{plate}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                week = plate.partition("_")[0]
                archive.write(file, f"{form.format(week=week, plate=plate)}{file.name}")
    return target


# The tree itself.


def test_the_simulator_writes_the_real_columns_and_names(made: Path, real_bbbc021: Path) -> None:
    with gzip.open(real_bbbc021 / "BBBC021_v1_image.csv.gz", "rt") as file:
        real = next(csv.reader(file))
        example = next(csv.reader(file))
    with (made / "BBBC021_v1_image.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(real) == tuple(rows[0]) == COLUMNS
    form = re.compile(r"(Week\d+_\d+_)?[B-G]\d\d_s\d_w[124][0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\.tif")
    assert all(form.fullmatch(row[at]) for row in [example, *rows[1:]] for at in (2, 4, 6))
    assert all(
        re.fullmatch(r"Week\d+/Week\d+_\d+", row[at]) for row in [example, *rows[1:]] for at in (3, 5, 7)
    )
    moa = [folder / "BBBC021_v1_moa.csv" for folder in (made, real_bbbc021)]
    mine, theirs = (next(csv.reader(path.read_text().splitlines())) for path in moa)
    assert mine == theirs


def test_the_simulator_confounds_dose_and_column(made: Path) -> None:
    rows = rows_of(import_from(made, dose_in_id=True))
    assert {row["well"] for row in rows if row["is_control"]} == {"B02", "C02", "D02", "E11", "F11", "G11"}
    by_well = {row["well"]: row["concentration_um"] for row in rows if row["plate"] == PLATES[0]}
    assert [by_well[well] for well in ("E02", "F02", "G02", "B03")] == [1.0, 1.0, 30.0, 30.0]


def test_the_simulated_dataset_in_this_layout(made: Path) -> None:
    found = simulated.read(str(made), STORAGE, SIMULATED)
    assert "made before" in found.summary
    rows = rows_of(found)
    truth = {
        row["site_id"]: row for row in STORAGE.read_table(str(made / "ground_truth.parquet")).to_pylist()
    }
    assert {row["site_id"] for row in rows} == set(truth)
    assert all(truth[row["site_id"]]["perturbation_id"] == row["perturbation_id"] for row in rows)
    assert {row["perturbation_id"]: row["split"] for row in rows if row["experiment"] == "Week1"} == {
        "dmso": "train", "lovastatin@1": "train", "lovastatin@30": "train",
        "caffeine@1": "held_out_perturbation", "caffeine@30": "held_out_perturbation",
    }  # fmt: skip
    assert {row["split"] for row in rows if row["experiment"] == "Week2"} == {
        "held_out_batch", "held_out_both",
    }  # fmt: skip
    with pytest.raises(ValidationError, match=r"layout bbbc021 has .* found channels 6"):
        simulated.SimulatedOptions(layout="bbbc021", channels=6)


def test_an_interrupted_tree_is_completed(tree: Path) -> None:
    lost = next(iter((tree / "Week1").rglob("*.tif")))
    before = lost.read_bytes()
    lost.unlink()
    marker = STORAGE.read_json(str(tree / "simulator.json"))
    STORAGE.write_json(str(tree / "simulator.json"), {**marker, "finished": False})
    assert "1 of them drawn now" in simulated.read(str(tree), STORAGE, SIMULATED).summary
    assert lost.read_bytes() == before


# Sites.


def test_sites(made: Path) -> None:
    found = import_from(made, pixel_size_um=0.5)
    rows = rows_of(found)
    assert (len(rows), found.quarantine.num_rows) == (40, 0)
    row = next(row for row in rows if row["site_id"] == "Week1_1001_G02_s2")
    table = read_csv(str(made / "BBBC021_v1_image.csv"), STORAGE)
    listed = next(item for item in table if item["Image_FileName_DAPI"] in row["channel_uris"][0])
    assert len(row.pop("intensity_ranges")) == 6
    assert row == {
        "site_id": "Week1_1001_G02_s2", "dataset": "bbbc021", "experiment": "Week1", "plate": "Week1_1001",
        "well": "G02", "site": "2", "cell_type": "MCF7", "replicate": "1", "perturbation_id": "lovastatin",
        "perturbation_kind": "compound", "smiles": "CCC(C)C(=O)OC1CC(C)C=C2C1C(C(C=C2)C)CCC3CC(CC(=O)O3)O",
        "gene": None, "concentration_um": 30.0, "moa": row["moa"], "is_control": False,
        "illumination_uris": None, "pixel_size_um": 0.5, "split": "train",
        "channel_uris": [
            str(made / "Week1/Week1_1001" / listed[f"Image_FileName_{stain}"])
            for stain in ("DAPI", "Tubulin", "Actin")
        ],
    }  # fmt: skip
    assert row["moa"] is not None
    control = next(row for row in rows if row["is_control"])
    assert (control["perturbation_id"], control["perturbation_kind"]) == ("dmso", "control")
    assert (control["concentration_um"], control["moa"]) == (0.0, "DMSO")
    for line in (
        "40 sites, 0 quarantined",
        "SMILES: 2 of 2",
        "mechanisms: 2, of 4 treatments",
        "on each of 2",
    ):
        assert line in found.summary


PLACES = ("folder", "plates", "{plate}/", "{week}/{plate}/", "")


@pytest.mark.parametrize("remote", [False, True], ids=["local", "s3"])
@pytest.mark.parametrize("form", PLACES)
def test_every_place_gives_the_same_sites_and_pixels(
    form: str, remote: bool, made: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = made
    if form == "plates":  # as the archives unpack
        source = Path(shutil.copytree(made, tmp_path / "plates"))
        for path in source.glob("Week*/*"):
            path.rename(source / path.name)
    elif form != "folder":
        source = zipped(made, tmp_path / "zipped", form)
    uri = str(source)
    if remote:
        uri = f"s3://{request.getfixturevalue('s3_env').bucket}/{tmp_path.name}"
        STORAGE.upload_dir(source, uri)
    found, expected = import_from(uri), import_from(made)
    for column in expected.sites.column_names:
        if column != "channel_uris":
            assert found.sites[column].equals(expected.sites[column]), column
    for row, other in list(zip(rows_of(found), rows_of(expected), strict=True))[::9]:
        assert row["channel_uris"][0].startswith(uri)
        image = ImageConfig(resolution=32)
        np.testing.assert_array_equal(read_site(row, image, STORAGE), read_site(other, image, STORAGE))


def test_pixels_by_the_plates_controls(made: Path) -> None:
    rows = rows_of(import_from(made))
    controls = [row for row in rows if row["plate"] == PLATES[0] and row["is_control"]]
    fields = [read_raw(row["channel_uris"], STORAGE) for row in controls]
    fields = [fields[at] for at in np.arange(8) * len(fields) // 8]
    pooled = np.stack(fields, axis=1).reshape(3, -1)
    expected = np.percentile(pooled, [0.1, 99.9], axis=1, method="inverted_cdf").T.ravel()
    row = next(row for row in rows if row["perturbation_id"] == "lovastatin")
    np.testing.assert_array_equal(row["intensity_ranges"], expected)
    image = read_site(row, ImageConfig(resolution=32), STORAGE)
    raw = read_raw(row["channel_uris"], STORAGE)
    low, high = expected[0], expected[1]
    np.testing.assert_array_equal(
        image[0], np.rint(np.clip((raw[0] - np.float32(low)) * np.float32(255 / (high - low)), 0, 255))
    )
    rgb = MAPPINGS["bbbc021_rgb"].apply(image)
    np.testing.assert_array_equal(rgb, image[::-1])  # red is actin, the last file
    assert raw.dtype == np.uint16


def test_ranges_of_the_sample_and_of_other_kinds(tree: Path) -> None:
    by_plate = rows_of(import_from(tree, intensity_sites=1, percentiles=[0, 100]))
    first = read_raw(by_plate[0]["channel_uris"], STORAGE)
    ends = np.stack([first.min(axis=(1, 2)), first.max(axis=(1, 2))], axis=1).ravel()
    assert by_plate[0]["intensity_ranges"] == ends.tolist()
    assert rows_of(import_from(tree, intensity="image"))[0]["intensity_ranges"] is None
    fixed = rows_of(import_from(tree, intensity=[100, 4000]))[0]["intensity_ranges"]
    assert fixed == [100.0, 4000.0] * 3


def test_a_plate_without_readable_controls_takes_all_wells(tree: Path) -> None:
    rows = rows_of(import_from(tree))
    for row in rows:
        if row["is_control"] and row["experiment"] == "Week1":
            Path(row["channel_uris"][1]).write_bytes(b"")
    found = import_from(tree)
    assert (
        "intensity: of fields of any kind, for want of readable DMSO, on 1 (Week1/Week1_1001)"
        in found.summary
    )
    assert "on each of 1 plates" in found.summary
    assert all(row["intensity_ranges"] for row in rows_of(found))
    for row in rows:
        if row["experiment"] == "Week1":
            Path(row["channel_uris"][1]).write_bytes(b"")
    found = import_from(tree)
    assert "each image's own percentiles on 1 plates without readable fields" in found.summary
    none = {row["experiment"] for row in rows_of(found) if row["intensity_ranges"] is None}
    assert none == {"Week1"}


def test_a_constant_channel_has_a_range(tmp_path: Path) -> None:
    uris = []
    for channel, values in enumerate(([5, 5, 5, 6], [9, 9, 9, 10])):
        uris.append(str(tmp_path / f"{channel}.tif"))
        Image.fromarray(np.array(values, np.uint16).reshape(2, 2)).save(uris[-1])
    assert channel_ranges([uris], (0, 50), STORAGE) == [5.0, 6.0, 9.0, 10.0]
    assert channel_ranges([[str(tmp_path / "none.tif")]], (0, 50), STORAGE) is None


# Options.


def test_filters(made: Path) -> None:
    week = import_from(made, filter={"experiment": "Week2"}).sites
    assert week["plate"].unique().to_pylist() == [PLATES[1]]
    treated = import_from(made, filter={"is_control": False})
    assert treated.sites.num_rows == 16
    assert "of up to 8 DMSO fields on each of 2 plates" in treated.summary
    limited = import_from(made, limit=4).sites
    assert limited["plate"].to_pylist() == [PLATES[0], PLATES[0], PLATES[1], PLATES[1]]
    for some in (limited, treated.sites):
        assert some["intensity_ranges"][0].as_py() == rows_of(import_from(made))[0]["intensity_ranges"]


def test_moa_only(tree: Path) -> None:
    lines = (tree / "BBBC021_v1_moa.csv").read_text().splitlines(keepends=True)
    (tree / "BBBC021_v1_moa.csv").write_text("".join(line for line in lines if "caffeine" not in line))
    assert set(import_from(tree, moa_only=True).sites["perturbation_id"].to_pylist()) == {
        "dmso",
        "lovastatin",
    }
    assert import_from(tree).sites.num_rows == 40


def test_dose_in_id_and_held_out(made: Path) -> None:
    def splits(**options: Any) -> dict[str, str]:
        week = {"experiment": "Week1"}
        rows = rows_of(import_from(made, filter=week, dose_in_id=True, **options))
        return {row["perturbation_id"]: row["split"][:8] for row in rows}

    assert splits(held_out_perturbations=["lovastatin"]) == {
        "dmso": "train", "lovastatin@1": "held_out", "lovastatin@30": "held_out",
        "caffeine@1": "train", "caffeine@30": "train",
    }  # fmt: skip
    compound = import_from(made, dose_in_id=True, filter={"compound": "lovastatin"})
    assert set(compound.sites["perturbation_id"].to_pylist()) == {"lovastatin@1", "lovastatin@30"}
    one = splits(held_out_perturbations=["lovastatin@30"])
    assert [name for name, split in one.items() if split == "held_out"] == ["lovastatin@30"]
    assert (
        import_from(made, held_out_experiments=["Week2"]).sites["split"].to_pylist()[-1] == "held_out_batch"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"filter": {"plate": "x"}}, r"dataset\.filter\.plate.*known: Week1_1001, Week2_2001"),
        ({"held_out_experiments": ["Week9"]}, r"dataset\.held_out_experiments.*known: Week1, Week2"),
        ({"held_out_perturbations": ["taxol"]}, r"dataset\.held_out_perturbations"),
    ],
)
def test_options_that_match_nothing(made: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        import_from(made, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"percentiles": [99, 1]}, "expected 0 <= low < high <= 100"),
        ({"percentiles": [0, 101]}, "expected 0 <= low < high <= 100"),
        ({"intensity": [5, 5]}, "expected low < high"),
        ({"intensity": "plate"}, "intensity"),
        ({"preset": "bbbc021_14", "held_out_perturbations": ["taxol"]}, "brings its own"),
        ({"preset": "bbbc021_15"}, "preset"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        bbbc021.Bbbc021Options(**options)


# What can be wrong.


def test_files_that_are_missing(tree: Path) -> None:
    rows = rows_of(import_from(tree))
    for uri in rows[0]["channel_uris"][1:]:
        Path(uri).unlink()
    shutil.rmtree(tree / "Week2")
    found = import_from(tree)
    assert found.sites.num_rows == 19
    reasons = found.quarantine.to_pylist()
    assert reasons[0] == {
        "stage": "import",
        "item": rows[0]["site_id"],
        "uri": rows[0]["channel_uris"][1],
        "reason": "missing channel files: tubulin, actin",
    }
    assert reasons[1]["reason"] == "missing channel files: dapi, tubulin, actin"
    assert import_from(tree, check_files=False).sites.num_rows == 40


def test_tables_without_any_image(tree: Path) -> None:
    for week in tree.glob("Week*"):
        shutil.rmtree(week)
    (tree / "BBBC021_v1_compound.csv").unlink()
    (tree / "BBBC021_v1_moa.csv").unlink()
    found = import_from(tree)
    assert (found.sites.num_rows, found.quarantine.num_rows) == (40, 0)
    first = rows_of(found)[0]["channel_uris"][0]
    assert f"missing files: all 40 sites lack all their images, the first {first}" in found.summary
    assert "SMILES: none, since there is no BBBC021_v1_compound.csv" in found.summary
    assert "mechanisms: none, since there is no BBBC021_v1_moa.csv" in found.summary
    row = rows_of(found)[0]
    assert row["intensity_ranges"] is None
    assert row["channel_uris"][0].startswith(str(tree / "Week1/Week1_1001"))
    with pytest.raises(DataError, match=r"\.tif: missing"):
        read_site(row, ImageConfig(resolution=32), STORAGE)


def test_a_truncated_archive_costs_its_plate_only(made: Path, tmp_path: Path) -> None:
    source = zipped(made, tmp_path / "zipped", "{plate}/")
    archive = source / f"BBBC021_v1_images_{PLATES[0]}.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    found = import_from(source)
    assert (found.sites.num_rows, found.quarantine.num_rows) == (20, 20)
    reason = found.quarantine["reason"][0].as_py()
    assert str(archive) in reason and "truncated one. Copy it again" in reason


def test_a_damaged_member_is_a_reason(made: Path, tmp_path: Path) -> None:
    source = zipped(made, tmp_path / "zipped", "{plate}/")
    row = rows_of(import_from(source))[0]
    archive = source / f"BBBC021_v1_images_{PLATES[0]}.zip"
    data = bytearray(archive.read_bytes())
    data[200:220] = bytes(20)
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"zip!/Week1_1001/.*\.tif: corrupt in the archive"):
        read_site(row, ImageConfig(resolution=32), STORAGE)


def cell(row: int, column: str, value: str) -> Callable[[list[list[str]]], None]:
    def edit(rows: list[list[str]]) -> None:
        rows[row][rows[0].index(column)] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (cell(1, "Image_Metadata_Concentration", "inf"), "concentration: found 'inf', expected a number"),
        (cell(1, "Image_Metadata_Concentration", "1 uM"), "concentration: found '1 uM', expected a number"),
        (cell(1, "Image_Metadata_Compound", " "), "no compound"),
        (cell(1, "Replicate", ""), "no replicate"),
        (
            cell(1, "Image_Metadata_Plate_DAPI", "Week1_9"),
            "path 'Week1/Week1_1001' and plate 'Week1_9' differ",
        ),
        (cell(1, "Image_Metadata_Well_DAPI", "C05"), "dapi file name of another well or site"),
        (cell(1, "Image_PathName_Actin", "Week1/Week1_7"), "channel files in several folders"),
        (cell(1, "Image_PathName_DAPI", "/etc/passwd"), "path '/etc/passwd' is not <week>/<plate>"),
        (cell(1, "Image_FileName_DAPI", "../../x_B02_s1_w1A.tif"), "dapi file name is not <well>_s<site>_w1"),
        (cell(1, "Image_FileName_Actin", "B02_s1_w3AB.tif"), "actin file name is not"),
        (cell(1, "Image_FileName_Tubulin", "B02_s2_w2AB.tif"), "tubulin file name of another well or site"),
        (lambda rows: rows.append(rows[1]), "the same plate, well and site as an earlier row"),
    ],
)
def test_a_bad_row_is_quarantined(tree: Path, edit: Callable[[list[list[str]]], None], reason: str) -> None:
    path = tree / "BBBC021_v1_image.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    edit(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = import_from(tree)
    assert found.quarantine.num_rows == 1
    assert reason in found.quarantine["reason"][0].as_py()
    assert found.quarantine["uri"][0].as_py().startswith(f"{path} row ")
    assert found.sites.num_rows == len(rows) - 2


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        ("image", lambda data: data.replace(b"Replicate", b"Repl"), r"expected also \['Replicate'\]"),
        ("image", lambda data: b"", "not a CSV table"),
        ("image", lambda data: data.splitlines(keepends=True)[0], "no rows below the header"),
        ("image", lambda data: data + b'a,"b\n', "not a CSV table"),
        ("image", lambda data: data.decode().encode("utf-16"), "UTF-8"),
        ("image", lambda data: data.replace(b".tif", b".png"), "none of 40 rows can be used"),
        ("moa", lambda data: data.replace(b"moa", b"mechanism"), r"expected also \['moa'\]"),
        ("moa", lambda data: data + b"x,nan,y\n", "row 6, concentration: found 'nan', expected a number"),
        ("compound", lambda data: data.replace(b"smiles", b"SMILE"), r"expected also \['smiles'\]"),
    ],
)
def test_a_table_that_breaks_its_contract(
    tree: Path, name: str, edit: Callable[[bytes], bytes], reason: str
) -> None:
    path = tree / f"BBBC021_v1_{name}.csv"
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(DataError, match=reason):
        import_from(tree)


def test_compressed_tables(tree: Path) -> None:
    expected = import_from(tree).sites
    path = tree / "BBBC021_v1_image.csv"
    data = path.read_bytes()
    path.unlink()
    packed = tree / "BBBC021_v1_image.csv.gz"
    packed.write_bytes(gzip.compress(data))
    assert import_from(tree).sites.equals(expected)
    for bad in (gzip.compress(data)[:-20], data):
        packed.write_bytes(bad)
        with pytest.raises(DataError, match="not a CSV table in UTF-8"):
            import_from(tree)
    packed.write_bytes(gzip.compress(b"\xff\xfe"))
    with pytest.raises(DataError, match="not a CSV table in UTF-8"):
        import_from(tree)
    packed.unlink()
    with pytest.raises(DataError, match=r"BBBC021_v1_image\.csv: missing\. The source must be the folder"):
        import_from(tree)


# The real tables.


def test_the_real_tables(real_bbbc021: Path) -> None:
    found = import_from(real_bbbc021, dose_in_id=True)
    rows = rows_of(found)
    assert (len(rows), found.quarantine.num_rows) == (13_200, 0)
    assert len({row["perturbation_id"].partition("@")[0] for row in rows}) == 113
    assert len({row["plate"] for row in rows}) == 55
    assert {row["experiment"] for row in rows} == {f"Week{number}" for number in range(1, 11)}
    treated = {row["perturbation_id"]: row["moa"] for row in rows if row["moa"] and not row["is_control"]}
    assert (len(treated), len(set(treated.values()))) == (103, 12)
    assert {row["moa"] for row in rows if row["is_control"]} == {"DMSO"}
    assert sum(row["is_control"] for row in rows) == 1320
    assert {row["site"] for row in rows} == {"1", "2", "3", "4"}
    assert {row["replicate"] for row in rows} == {"1", "2", "3"}
    assert "missing files: all 13200 sites lack all their images" in found.summary
    assert join(str(real_bbbc021), "Week4/Week4_27481/G10_s1_w1BEDC2073") in rows[0]["channel_uris"][0]


def test_most_compounds_live_in_one_week(real_bbbc021: Path) -> None:
    """109 of 113 names; the other four are DMSO, which is no perturbation here, and three compounds."""
    found = import_from(real_bbbc021)
    batches: dict[str, set[str]] = {}
    for row in rows_of(found):
        batches.setdefault(row["perturbation_id"], set()).add(row["experiment"])
    assert (sum(len(weeks) == 1 for weeks in batches.values()), len(batches)) == (109, 113)
    assert (
        "confounding: of 112 perturbations (controls aside) these occur in one of 10 experiments only: 109 ("
    ) in found.summary


@pytest.mark.parametrize("preset", ["bbbc021_14", "bbbc021_all"])
def test_the_presets_are_the_originals_lists(preset: str, real_bbbc021: Path, real_data: Path) -> None:
    name = {"bbbc021_14": "BBBC021_14_compounds", "bbbc021_all": "BBBC021_all"}[preset]
    listed = read_csv(str(real_data / f"original-tables/{name}_pert_ood_info.csv"), STORAGE)
    rows = rows_of(import_from(real_bbbc021, preset=preset))
    splits = {row["perturbation_id"]: row["split"] for row in rows if not row["is_control"]}
    expected = {"False": "train", "True": "held_out_perturbation"}
    assert splits == {row["perturbation"]: expected[row["ood"]] for row in listed}
    assert sum(row["is_control"] for row in rows) == 1320


def test_a_preset_with_doses_and_filters(real_bbbc021: Path) -> None:
    """A held-out compound stands for its doses; what moa_only or the filter leaves out is not asked for."""
    found = import_from(
        real_bbbc021, preset="bbbc021_14", dose_in_id=True, moa_only=True, filter={"experiment": "Week4"}
    )
    rows = [row for row in rows_of(found) if not row["is_control"]]
    assert {row["moa"] is None for row in rows} == {False}
    splits = {row["perturbation_id"]: row["split"] for row in rows}
    compounds = {name.partition("@")[0] for name in splits}
    assert len(compounds) < len(splits)
    for name, value in splits.items():
        seen = name.partition("@")[0] in bbbc021.SEEN_14
        assert value == ("train" if seen else "held_out_perturbation"), name
    assert set(splits.values()) == {"train", "held_out_perturbation"}
    assert "bbbc021_14: 20 of 34 compounds are held out" in found.summary
