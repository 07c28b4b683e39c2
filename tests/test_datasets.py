"""Importers and the reader: real samples, trees built by hand, and everything that can be wrong with them."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from morphoray.datasets import DATASETS, find_dataset, imagefolder, rxrx1
from morphoray.datasets.base import Imported
from morphoray.datasets.genes import read_sirna_genes
from morphoray.datasets.reading import read_raw
from morphoray.errors import ConfigError, DataError
from morphoray.imaging.channels import MAPPINGS, takes
from morphoray.schema import QUARANTINE, SITES
from morphoray.storage import Storage

STORAGE = Storage()
# SITES columns of other datasets than these.
NO_MORE = {"replicate": None, "intensity_ranges": None, "pixel_size_um": None}
HEADER = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"


def png(seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L", deep: bool = False) -> bytes:
    generator = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    top, kind = (65536, np.uint16) if deep else (256, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, top, shape).astype(kind)).save(buffer, format="PNG")
    return buffer.getvalue()


def flat(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, format="PNG")
    return buffer.getvalue()


# The registry's contract.


@pytest.mark.parametrize("name", DATASETS)
def test_registry(name: str) -> None:
    entry = find_dataset(name)
    assert entry.name == name
    assert takes(MAPPINGS[entry.mapping], entry.channels)
    assert entry.options.model_config["frozen"]
    with pytest.raises(ValidationError, match="no_such_key"):
        entry.options(no_such_key=1)


def test_unknown_dataset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'rxrx2'; known: rxrx1, .*imagefolder"):
        find_dataset("rxrx2")


# read_raw


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[str]]:
    def write(*contents: bytes | None) -> list[str]:
        paths = [tmp_path / f"w{number}.png" for number in range(1, len(contents) + 1)]
        for path, data in zip(paths, contents, strict=True):
            if data is not None:
                path.write_bytes(data)
        return [str(path) for path in paths]

    return write


def test_read_raw_stacks_channels(files: Callable[..., list[str]]) -> None:
    raw = read_raw(files(png(1), png(2), png(3)), STORAGE)
    assert raw.shape == (3, 8, 8)
    assert raw.dtype == np.uint8
    for plane, seed in zip(raw, (1, 2, 3), strict=True):
        np.testing.assert_array_equal(plane, np.asarray(Image.open(io.BytesIO(png(seed)))))
    deep = read_raw(files(png(1, deep=True), png(2, deep=True)), STORAGE)
    assert (deep.shape, deep.dtype) == ((2, 8, 8), np.uint16)


def test_read_raw_of_one_rgb_file(files: Callable[..., list[str]]) -> None:
    raw = read_raw(files(png(1, (9, 7), "RGB")), STORAGE)
    np.testing.assert_array_equal(
        raw.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(png(1, (9, 7), "RGB"))))
    )


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ((), "no channel files"),
        ((png(), None), r"w2\.png: missing"),
        ((flat(0),), r"w1\.png: all black"),
    ],
)
def test_read_raw_gives_a_reason(
    contents: tuple[bytes | None, ...], reason: str, files: Callable[..., list[str]]
) -> None:
    with pytest.raises(DataError, match=reason):
        read_raw(files(*contents), STORAGE)


# rxrx1

PLATES = [("HUVEC-01", "HUVEC"), ("HUVEC-02", "HUVEC"), ("RPE-01", "RPE")]
WELLS = [("B02", "EMPTY", "negative_control"), ("B03", "s1", "treatment"), ("B04", "s2", "positive_control")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """3 experiments x 1 plate x 3 wells x 2 sites = 18 sites of 6 channels."""
    lines = [HEADER]
    for experiment, cell_type in PLATES:
        folder = tmp_path / f"rxrx1/images/{experiment}/Plate1"
        folder.mkdir(parents=True)
        for well, sirna, well_type in WELLS:
            for site in (1, 2):
                name = f"{experiment}_1_{well}"
                lines.append(
                    f"{name}_{site},{name},{cell_type},train,{experiment},1,{well},{site},{well_type},{sirna},0"
                )
                for channel in range(1, 7):
                    (folder / f"{well}_s{site}_w{channel}.png").write_bytes(png(channel))
    (tmp_path / "rxrx1/metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "rxrx1"


def import_rxrx1(source: Path, **options: Any) -> Imported:
    found = rxrx1.read(str(source), STORAGE, rxrx1.Rxrx1Options(**options))
    assert found.sites.schema.equals(SITES)
    assert found.quarantine.schema.equals(QUARANTINE)
    return found


def test_rxrx1_sites(tree: Path, tmp_path: Path) -> None:
    genes = tmp_path / "genes.csv"
    genes.write_text("siRNA ID,Gene Symbol\ns1,TAB1;TAB2\ns9,X\n")
    found = import_rxrx1(tree, gene_table=str(genes))
    assert found.sites.num_rows == 18
    assert found.quarantine.num_rows == 0
    first, third = found.sites.slice(0, 1).to_pylist()[0], found.sites.slice(2, 1).to_pylist()[0]
    assert first == {
        "site_id": "HUVEC-01_1_B02_1", "dataset": "rxrx1", "experiment": "HUVEC-01", "plate": "1",
        "well": "B02", "site": "1", "cell_type": "HUVEC", "perturbation_id": "EMPTY",
        "perturbation_kind": "control", "smiles": None, "gene": None, "concentration_um": None, "moa": None,
        "is_control": True, "illumination_uris": None, **NO_MORE, "split": "train",
        "channel_uris": [f"{tree}/images/HUVEC-01/Plate1/B02_s1_w{channel}.png" for channel in range(1, 7)],
    }  # fmt: skip
    assert (third["perturbation_id"], third["perturbation_kind"], third["gene"]) == ("s1", "gene", "TAB1")
    assert not third["is_control"]
    assert "18 sites, 0 quarantined" in found.summary
    assert "cell types: HUVEC 12, RPE 6" in found.summary
    assert "experiments: HUVEC-01 6, HUVEC-02 6, RPE-01 6" in found.summary
    assert "plates: HUVEC-01/1 6, HUVEC-02/1 6, RPE-01/1 6" in found.summary
    assert "kinds: control 6, gene 12" in found.summary
    assert "missing files: none" in found.summary
    assert "genes: 1 of 2 siRNAs named; without one: 1 (s2)" in found.summary
    assert read_raw(first["channel_uris"], STORAGE).shape == (6, 8, 8)


def test_rxrx1_uris_do_not_depend_on_the_working_directory(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    relative = import_rxrx1(Path("rxrx1"))
    assert relative.sites.equals(import_rxrx1(tree).sites)


def test_rxrx1_from_s3(tree: Path, s3_env: Any) -> None:
    storage, uri = Storage(), f"s3://{s3_env.bucket}/datasets/rxrx1"
    (tree / "images/RPE-01/Plate1/B03_s2_w4.png").unlink()
    storage.upload_dir(tree, uri)
    found = rxrx1.read(uri, storage, rxrx1.Rxrx1Options())
    assert (found.sites.num_rows, found.quarantine["item"].to_pylist()) == (17, ["RPE-01_1_B03_2"])
    uris = found.sites["channel_uris"][0].as_py()
    assert uris[0] == f"{uri}/images/HUVEC-01/Plate1/B02_s1_w1.png"
    assert read_raw(uris, storage).shape == (6, 8, 8)
    missing = [*uris[:5], uri + "/none.png"]
    with pytest.raises(DataError, match=r"none\.png: missing"):
        read_raw(missing, storage)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "s3"])
@pytest.mark.parametrize(
    ("images", "metadata"), [("rxrx1/", "rxrx1/"), ("", ""), ("rxrx1/", None), (None, "rxrx1/")]
)
def test_rxrx1_from_its_archives(
    images: str | None,
    metadata: str | None,
    remote: bool,
    tree: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Read in place; None: unpacked beside the other's archive."""
    source = tmp_path / "packed"
    source.mkdir()
    for name, prefix in (("images", images), ("metadata", metadata)):
        files = sorted((tree / "images").rglob("*.png")) if name == "images" else [tree / "metadata.csv"]
        if prefix is None:
            files[0] = tree / name if name == "images" else files[0]
            (shutil.copytree if name == "images" else shutil.copy)(files[0], source / files[0].name)
            continue
        with zipfile.ZipFile(source / f"rxrx1-{name}.zip", "w") as archive:
            for file in files:
                archive.write(file, f"{prefix}{file.relative_to(tree).as_posix()}")
    uri = str(source)
    if remote:
        uri = f"s3://{request.getfixturevalue('s3_env').bucket}/{tmp_path.name}"
        STORAGE.upload_dir(source, uri)
    found, expected = rxrx1.read(uri, STORAGE, rxrx1.Rxrx1Options()).sites, import_rxrx1(tree).sites
    assert found.drop_columns("channel_uris").equals(expected.drop_columns("channel_uris"))
    place = "" if images is None else f"/rxrx1-images.zip!/{images}".rstrip("/")
    uris = found["channel_uris"][5].as_py()
    assert uris[0] == f"{uri}{place}/images/HUVEC-01/Plate1/B04_s2_w1.png"
    raw = read_raw(expected["channel_uris"][5].as_py(), STORAGE)
    np.testing.assert_array_equal(read_raw(uris, STORAGE), raw)


def test_rxrx1_filters(tree: Path) -> None:
    assert import_rxrx1(tree, cell_types=["RPE"]).sites["experiment"].unique().to_pylist() == ["RPE-01"]
    assert import_rxrx1(tree, experiments=["HUVEC-02"]).sites.num_rows == 6
    assert import_rxrx1(tree, channels=3).sites["channel_uris"][0].as_py()[-1].endswith("_w3.png")


def test_rxrx1_limit_is_spread(tree: Path) -> None:
    found = import_rxrx1(tree, limit=3).sites
    assert found["site_id"].to_pylist() == ["HUVEC-01_1_B02_1", "HUVEC-02_1_B02_1", "RPE-01_1_B02_1"]
    assert import_rxrx1(tree, limit=100).sites.num_rows == 18


def test_rxrx1_held_out(tree: Path, tmp_path: Path) -> None:
    found = import_rxrx1(tree, held_out_experiments=["RPE-01"], held_out_perturbations=["s2"]).sites
    counts = {row["values"]: row["counts"] for row in found["split"].value_counts().to_pylist()}
    assert counts == {"train": 8, "held_out_batch": 4, "held_out_perturbation": 4, "held_out_both": 2}
    listed = tmp_path / "ood.csv"
    listed.write_text("\ufeffperturbation,ood\ns1,False\nS2,True\ns404,True\n")
    by_file = import_rxrx1(tree, held_out_experiments=["RPE-01"], held_out_perturbations=str(listed))
    assert by_file.sites.equals(found)
    assert "1 perturbations; 1 more are not here" in by_file.summary


def test_rxrx1_incomplete_sites_are_quarantined(tree: Path) -> None:
    plate = tree / "images/HUVEC-01/Plate1"
    (plate / "B02_s1_w3.png").unlink()
    (plate / "B02_s1_w6.png").unlink()
    shutil.rmtree(tree / "images/RPE-01")
    found = import_rxrx1(tree)
    assert found.sites.num_rows == 11
    rows = found.quarantine.to_pylist()
    assert rows[0] == {
        "stage": "import",
        "item": "HUVEC-01_1_B02_1",
        "uri": str(plate / "B02_s1_w3.png"),
        "reason": "missing channel files: w3, w6",
    }
    assert len(rows) == 7
    assert rows[1]["reason"] == "missing channel files: w1, w2, w3, w4, w5, w6"
    assert "quarantined: 6 x missing channel files: w1" in found.summary
    assert "missing files: 7 sites lack one" in found.summary
    assert import_rxrx1(tree, check_files=False).sites.num_rows == 18


def test_rxrx1_without_any_file(tree: Path) -> None:
    """Images that lie elsewhere, or have still to come, are said and keep nobody from a first look."""
    shutil.rmtree(tree / "images")
    found = import_rxrx1(tree)
    assert (found.sites.num_rows, found.quarantine.num_rows) == (18, 0)
    first = f"{tree}/images/HUVEC-01/Plate1/B02_s1_w1.png"
    assert f"missing files: all 18 sites lack all their images, the first {first}" in found.summary


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cell_types": ["HUVEK"]}, r"dataset\.filter\.cell_type: found \['HUVEK'\].*known: HUVEC, RPE"),
        ({"experiments": ["HUVEC-03"]}, r"dataset\.filter\.experiment: .*known: HUVEC-01, HUVEC-02, RPE-01"),
        ({"cell_types": ["RPE"], "experiments": ["HUVEC-01"]}, "no site of the data matches all of it"),
        ({"held_out_experiments": ["U2OS-01"]}, r"dataset\.held_out_experiments.*known: HUVEC-01"),
        ({"held_out_perturbations": ["s3"]}, r"dataset\.held_out_perturbations.*known: EMPTY, s1, s2"),
    ],
)
def test_rxrx1_options_that_match_nothing(tree: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        import_rxrx1(tree, **options)


def test_rxrx1_all_held_out(tree: Path) -> None:
    with pytest.raises(DataError, match="all 18 sites are held out"):
        import_rxrx1(tree, held_out_experiments=[experiment for experiment, _ in PLATES])


def edited(old: str, new: str) -> Callable[[str], str | bytes]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (
            edited(",B03,1,treatment,s1,", ",B03,1,treatment,,"),
            r"row 3: column 'sirna' is empty \(3 such rows\)",
        ),
        (
            lambda text: text.replace("\n", ",x\n").replace("sirna_id,x", "sirna_id"),
            "not a CSV table.*Expected 11 columns, got 12",
        ),
        (lambda text: text[:-1] + ",x\n", "not a CSV table"),
        (lambda text: text.splitlines()[0], "metadata.csv: not a CSV table.*Empty CSV"),
        (lambda text: text.replace("s1", "sé").encode("latin-1"), "not a CSV table in UTF-8"),
    ],
)
def test_rxrx1_metadata_that_break_their_contract(
    tree: Path, edit: Callable[[str], str | bytes], reason: str
) -> None:
    path = tree / "metadata.csv"
    changed = edit(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises((DataError, ConfigError), match=reason):
        import_rxrx1(tree)


def test_rxrx1_without_metadata(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv: missing\. The source must be the folder"):
        import_rxrx1(tmp_path)


def test_rxrx1_real_sample(real_data: Path) -> None:
    found = import_rxrx1(
        real_data / "rxrx1-sample", gene_table=str(real_data / "original-tables/sirna_to_gene.csv")
    )
    assert (found.sites.num_rows, found.quarantine.num_rows) == (12, 0)
    assert found.sites["is_control"].to_pylist() == [True] * 12
    assert "cell types: HEPG2 3, HUVEC 3, RPE 3, U2OS 3" in found.summary
    for uris in found.sites["channel_uris"].to_pylist():
        raw = read_raw(uris, STORAGE)
        assert (raw.shape, raw.dtype) == ((6, 512, 512), np.uint8)
    only = import_rxrx1(real_data / "rxrx1-sample", cell_types=["HUVEC"], experiments=["HUVEC-01"])
    assert only.sites["plate"].to_pylist() == ["1", "2", "3"]


def test_genes_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "genes.csv"
    path.write_text('siRNA ID,Gene Symbol\ns1,A;B\n"s2;s3",C\ns4,\ns1,A\n')
    assert read_sirna_genes(str(path), STORAGE) == {"s1": "A", "s2": "C"}
    path.write_text("siRNA ID,Gene Symbol\ns1,A\ns1,B\n")
    with pytest.raises(DataError, match="row 2: siRNA 's1' has two genes, 'A' and 'B'"):
        read_sirna_genes(str(path), STORAGE)
    path.write_text("sirna,gene\ns1,A\n")
    with pytest.raises(DataError, match="expected 'siRNA ID' and 'Gene Symbol'"):
        read_sirna_genes(str(path), STORAGE)


def test_genes_of_the_original(real_data: Path) -> None:
    genes = read_sirna_genes(str(real_data / "original-tables/sirna_to_gene.csv"), STORAGE)
    assert len(genes) > 1100
    assert (genes["s20785"], genes["s20452"]) == ("MTHFS", "TAB1")


# imagefolder

ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "additional_feature": "DMSO", "concentration_um": 0.0, "plate": "P1",
     "well": "B02", "site": 1, "replicate": 1, "moa": "DMSO"},
    {"file_name": "b.png", "additional_feature": "taxol", "concentration_um": 0.3, "plate": "P2",
     "well": "C03", "site": 2, "replicate": 1, "moa": "Microtubule stabilizers"},
    {"file_name": "sub/c.png", "additional_feature": "taxol", "concentration_um": 1, "plate": "P2",
     "well": "C04", "site": 2, "replicate": 1, "moa": "Microtubule stabilizers"},
]  # fmt: skip


def make_folder(root: Path, rows: list[dict[str, Any]], split: str | None = "train") -> Path:
    folder = root / "crops"
    inner = folder / split if split else folder
    for index, row in enumerate(ROWS):
        (inner / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (inner / row["file_name"]).write_bytes(png(index, mode="RGB"))
    (inner / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def import_folder(source: Path, **options: Any) -> Imported:
    found = imagefolder.read(str(source), STORAGE, imagefolder.ImagefolderOptions(**options))
    assert found.sites.schema.equals(SITES)
    assert found.quarantine.schema.equals(QUARANTINE)
    return found


@pytest.mark.parametrize("split", ["train", None])
def test_imagefolder_sites(tmp_path: Path, split: str | None) -> None:
    folder = make_folder(tmp_path, ROWS, split)
    found = import_folder(folder, smiles={"Taxol": "CCO"})
    inner = folder / split if split else folder
    assert found.sites.slice(1, 1).to_pylist()[0] == {
        "site_id": "b", "dataset": "imagefolder", "experiment": "P2", "plate": "P2",
        "well": "C03", "site": "2", "cell_type": None, "perturbation_id": "taxol",
        "perturbation_kind": "compound", "smiles": "CCO", "gene": None, "concentration_um": 0.3,
        "moa": "Microtubule stabilizers", "is_control": False,
        "channel_uris": [str(inner / "b.png")], "illumination_uris": None, **NO_MORE, "split": "train",
    }  # fmt: skip
    assert found.sites["site_id"].to_pylist() == ["a", "b", "sub/c"]
    assert found.sites["is_control"].to_pylist() == [True, False, False]
    assert found.sites["perturbation_kind"].to_pylist() == ["control", "compound", "compound"]
    assert read_raw(found.sites["channel_uris"][2].as_py(), STORAGE).shape == (3, 8, 8)


def test_imagefolder_minimal_metadata(tmp_path: Path) -> None:
    """The original's own folders have the two fields only."""
    rows = [{name: row[name] for name in ("file_name", "additional_feature")} for row in ROWS]
    found = import_folder(make_folder(tmp_path, rows), kind="gene")
    assert found.sites["experiment"].to_pylist() == ["all"] * 3
    assert found.sites["gene"].to_pylist() == [None, "taxol", "taxol"]
    assert "no field 'plate': all images are one batch" in found.summary


def test_imagefolder_csv_metadata(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ROWS)
    (folder / "train/metadata.jsonl").unlink()
    (folder / "train/metadata.csv").write_text(
        "file_name,additional_feature,plate\na.png,dmso,P1\nb.png,taxol,P2\n"
    )
    assert import_folder(folder).sites["experiment"].to_pylist() == ["P1", "P2"]


def test_imagefolder_perturbation_table(tmp_path: Path) -> None:
    path = tmp_path / "compounds.csv"
    path.write_text("perturbation_id,smiles,is_control\ntaxol,CCC,False\nDMSO,CS(C)=O,True\nunused,C,False\n")
    found = import_folder(make_folder(tmp_path, ROWS), perturbations=str(path), control_ids=[])
    assert found.sites["smiles"].to_pylist() == ["CS(C)=O", "CCC", "CCC"]
    assert found.sites["is_control"].to_pylist() == [True, False, False]


def test_imagefolder_held_out_and_limit(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ROWS)
    found = import_folder(folder, held_out_perturbations=["Taxol"])
    assert found.sites["split"].to_pylist() == ["train", "held_out_perturbation", "held_out_perturbation"]
    found = import_folder(folder, experiment_field="well", held_out_experiments=["C04"])
    assert found.sites["split"].to_pylist() == ["train", "train", "held_out_batch"]
    assert import_folder(folder, limit=2).sites["site_id"].to_pylist() == ["a", "b"]
    with pytest.raises(ConfigError, match=r"dataset\.held_out_experiments.*known: P1, P2"):
        import_folder(folder, held_out_experiments=["P3"])


def test_imagefolder_dose_in_id(tmp_path: Path) -> None:
    """Tables and held-out names match by the plain name, which stands for all doses; controls keep theirs."""
    path = tmp_path / "compounds.csv"
    path.write_text("perturbation_id,moa\nTaxol,stabilizer\n")
    folder = make_folder(tmp_path, ROWS)
    options = {"dose_in_id": True, "perturbations": str(path)}
    found = import_folder(folder, **options, held_out_perturbations=["Taxol"])
    assert found.sites["perturbation_id"].to_pylist() == ["DMSO", "taxol@0.3", "taxol@1"]
    assert found.sites["concentration_um"].to_pylist() == [0, 0.3, 1]
    assert found.sites["split"].to_pylist() == ["train", "held_out_perturbation", "held_out_perturbation"]
    found = import_folder(folder, **options, held_out_perturbations=["taxol@1"])
    assert found.sites["split"].to_pylist() == ["train", "train", "held_out_perturbation"]
    found = import_folder(folder, dose_in_id=True, smiles={"TAXOL": "CCO"}, kind="compound")
    assert found.sites["smiles"].to_pylist() == [None, "CCO", "CCO"]
    genes = import_folder(folder, dose_in_id=True, kind="gene")
    assert genes.sites["perturbation_id"].to_pylist() == ["DMSO", "taxol", "taxol"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "taxol: found the concentration None"),
        (-1, "concentration_um: found -1, expected micromolar of at least 0"),
    ],
)
def test_imagefolder_dose_in_id_needs_a_dose(tmp_path: Path, value: float | None, reason: str) -> None:
    folder = make_folder(tmp_path, [ROWS[0], ROWS[1] | {"concentration_um": value}, ROWS[2]])
    found = import_folder(folder, dose_in_id=True)
    assert found.sites["perturbation_id"].to_pylist() == ["DMSO", "taxol@1"]
    (row,) = found.quarantine.to_pylist()
    assert reason in row["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_name": "none.png"}, "missing file"),
        ({"file_name": None}, "expected a path below the folder"),
        ({"additional_feature": "  "}, "no additional_feature"),
        ({"additional_feature": ["a", "b"]}, "no additional_feature"),
    ],
)
def test_imagefolder_bad_row_is_quarantined(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    found = import_folder(make_folder(tmp_path, [ROWS[0], ROWS[1] | change, ROWS[2]]))
    assert found.sites["site_id"].to_pylist() == ["a", "sub/c"]
    (row,) = found.quarantine.to_pylist()
    assert row["stage"] == "import"
    assert reason in row["reason"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file has no rows"),
        ("{}\n", "no site could be imported, 1 were rejected"),
    ],
)
def test_imagefolder_metadata_that_break_their_contract(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    folder = make_folder(tmp_path, ROWS)
    (folder / "train/metadata.jsonl").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=reason):
        import_folder(folder)


def test_imagefolder_without_metadata(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no metadata; looked for .*metadata\.jsonl"):
        import_folder(tmp_path)
    with pytest.raises(DataError, match=r"/absent: there is no such folder\. Check the path"):
        import_folder(tmp_path / "absent")


def test_imagefolder_real_crops(real_data: Path) -> None:
    found = import_folder(real_data / "bbbc021-crops", smiles={"dmso": "CS(C)=O"})
    sites = found.sites
    assert (sites.num_rows, found.quarantine.num_rows) == (4440, 0)
    assert sorted(sites["experiment"].unique().to_pylist()) == ["Week4_27481", "Week4_27801", "Week4_27821"]
    assert sorted(sites["perturbation_id"].unique().to_pylist()) == ["cyclohexamide", "dmso"]
    doses = sites.filter(pa.compute.equal(sites["perturbation_id"], "cyclohexamide"))["concentration_um"]
    assert sorted(doses.unique().to_pylist()) == [5, 15, 50]
    with_doses = import_folder(real_data / "bbbc021-crops", dose_in_id=True).sites["perturbation_id"]
    assert set(with_doses.to_pylist()) == {"dmso", *(f"cyclohexamide@{dose}" for dose in (5, 15, 50))}
    for uris in sites["channel_uris"].to_pylist()[::400]:
        raw = read_raw(uris, STORAGE)
        assert (raw.shape, raw.dtype) == ((3, 68, 68), np.uint8)
