"""What `evaluate` refuses before Ray starts: each error names the method, what was found and what to do."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from morphoray.config import MethodConfig
from morphoray.errors import ConfigError, DataError, FingerprintError, MissingObjectError, MorphorayError
from morphoray.imaging.png import encode_png
from morphoray.perturbations.base import from_rows
from morphoray.pipelines.evaluate import run_evaluate
from morphoray.pipelines.image_parts import read_image
from morphoray.pipelines.layout import resolve
from morphoray.pipelines.method_images import method_images, with_the_datas_names
from morphoray.pipelines.run import run_import
from morphoray.pipelines.sites import read_sites
from morphoray.storage import Storage
from tinyrun import make_images, run_of, settings


def pictures(folder: Path, count: int = 2, mode: str = "RGB", kind: str = "png") -> None:
    """Image files of a mode, as any other program leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    for number in range(count):
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(pixels).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if kind == "png" else "TIFF")
        (folder / f"{number}.{kind}").write_bytes(buffer.getvalue())


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """An imported run with something that looks like its bundle."""
    images = make_images(tmp_path / "data", count=4)
    made = settings(tmp_path / "run", images, tmp_path)
    run_import(run_of(made))
    (tmp_path / "run/bundle").mkdir()
    (tmp_path / "run/bundle/morphoray.json").write_text("{}")
    return made


def refused(
    values: dict[str, Any], error: type[MorphorayError], message: str, *overrides: str, **methods: Any
) -> None:
    """Run `evaluate`, which must fail with the whole message, before Ray starts."""
    values["evaluation"]["methods"] = methods
    with pytest.raises(error) as raised:
        run_evaluate(run_of(values, *overrides))
    assert re.fullmatch(message, str(raised.value)), str(raised.value)
    assert not ray.is_initialized()


def test_what_a_run_lacks_is_named_with_the_command_that_makes_it(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    (tmp_path / "run/bundle/morphoray.json").unlink()
    refused(
        values, DataError, r".*/run/bundle: this run has no finished bundle yet .*`morphoray run CONFIG`.*"
    )
    (tmp_path / "run/sites/sites.parquet").unlink()
    refused(
        values, MissingObjectError, r".*sites\.parquet: this run has no SITES yet.*`morphoray run CONFIG`.*"
    )


def test_settings_that_differ_from_the_imports_are_named(tmp_path: Path, values: dict[str, Any]) -> None:
    for override, told in (
        ("seed=3", "seed: stored 0, now 3"),
        ("dataset.smiles={dmso: CS(C)=O}", r"dataset\.smiles\.dmso: stored None, now CS\(C\)=O"),
    ):
        message = rf"SITES under .* were made by other settings:\n  {told}\nRestore these settings.*"
        refused(values, FingerprintError, message, override)
        with pytest.raises(FingerprintError, match=told):
            run_import(run_of(values, override))
    described = tmp_path / "run/sites/settings.json"
    Storage().write_json(str(described), {"dataset": Storage().read_json(str(described))["dataset"]})
    run_import(run_of(values, "seed=0"))  # as older versions wrote it: without the seed
    refused(values, FingerprintError, r"(?s).*  seed: stored None, now 3\n.*", "seed=3")
    described.unlink()
    refused(
        values, FingerprintError, r".*sites\.parquet was made by \w{16}, but .* are \w{16}\. .*", "seed=3"
    )


def test_names_are_checked_at_once(values: dict[str, Any]) -> None:
    found = r"evaluation\.extractor: found 'resnet50', expected one of .*inception.*"
    refused(values, ConfigError, found, "evaluation.extractor=resnet50")
    found = r"evaluation\.experiments: found \['p7'\], the data have p0, p1\."
    refused(values, ConfigError, found, "evaluation.experiments=[p7]")
    refused(values, ConfigError, r"evaluation\.methods: floor: .*Rename it\.", floor={"images": "x"})


def test_a_methods_run_or_bundle_is_named(tmp_path: Path, values: dict[str, Any]) -> None:
    absent = str(tmp_path / "absent")
    found = r"evaluation\.methods\.x\.bundle: .*/absent: there is no such folder, expected a bundle .*"
    refused(values, DataError, found, x={"bundle": absent})
    found = r"evaluation\.methods\.x\.run: .*/absent/config\.yaml: there is no such file\. Check the path\."
    refused(values, MissingObjectError, found, x={"run": f"{absent}/config.yaml"})
    other = run_of(values | {"run_dir": str(tmp_path / "other")})
    (tmp_path / "other.yaml").write_text(other.to_yaml())
    found = (
        r"evaluation\.methods\.x\.run: .*/other/bundle: that run has no .*`morphoray train .*/other\.yaml`\."
    )
    refused(values, DataError, found, x={"run": str(tmp_path / "other.yaml")})


def test_a_folder_without_images_is_told_by_what_it_is(tmp_path: Path, values: dict[str, Any]) -> None:
    pictures(tmp_path / "real/dmso", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("file\n")
    (tmp_path / "texts/dmso").mkdir(parents=True)
    (tmp_path / "texts/dmso/a.txt").write_text("no image")
    for folder, told in {
        "absent": r"there is no such folder\. Check the path\.",
        "empty": r"the folder is empty; expected what .*<perturbation>/\*\.png.*",
        "real/dmso": r"3 images lie directly in it, .* If 'dmso' is a perturbation, name .*: .*/real\.",
        "list.txt": r"it is a file, expected a table \(\.csv or \.parquet\), or a folder: .*",
        "texts": r"none of its 1 files, such as dmso/a\.txt, is an image; expected .*",
    }.items():
        found = rf"evaluation\.methods\.x: {tmp_path}/{folder}: {told}"
        refused(values, DataError, found, x={"images": str(tmp_path / folder)})


def test_images_of_one_perturbation_come_out_of_one_folder(tmp_path: Path, values: dict[str, Any]) -> None:
    for folder in ("blur/dmso", "real/dmso", "blur/plots", "real/plots"):
        pictures(tmp_path / "parent" / folder)
    found = r"evaluation\.methods\.x: images of 'dmso' lie in 2 folders, .*/blur/dmso and .*/real/dmso; .*"
    refused(values, DataError, found, x={"images": str(tmp_path / "parent")})
    pictures(tmp_path / "spelled/dmso")
    pictures(tmp_path / "spelled/DMSO")
    refused(
        values,
        DataError,
        found.replace("blur/dmso", "DMSO").replace("real", "spelled"),
        x={"images": str(tmp_path / "spelled")},
    )


@pytest.mark.parametrize(
    ("mode", "kind", "told"),
    [
        ("RGBA", "png", "wrong mode: RGBA, expected 8-bit RGB. Convert it to 8-bit RGB."),
        ("I;16", "png", "wrong mode: 16 bits a channel, expected 8-bit RGB. Convert it to 8-bit RGB."),
        ("L", "png", "found images of 1 channels, expected 3: red, green, blue. Convert them to 8-bit RGB."),
        (
            "I;16",
            "tif",
            "found images of 1 channels, expected 3: red, green, blue. Convert them to 8-bit RGB.",
        ),
    ],
)
def test_images_of_another_kind_are_told_with_the_kind_that_is_needed(
    tmp_path: Path, values: dict[str, Any], mode: str, kind: str, told: str
) -> None:
    pictures(tmp_path / "m/dmso", 2, mode, kind)
    first = tmp_path / f"m/dmso/0.{kind}"
    looked = f"none of the 2 images looked at can be used, such as {first}: " if "wrong mode" in told else ""
    refused(
        values,
        DataError,
        re.escape(f"evaluation.methods.x: {looked}{told}"),
        x={"images": str(tmp_path / "m")},
    )


def test_a_run_of_one_channel_asks_for_grey(tmp_path: Path) -> None:
    pictures(tmp_path, 1, "RGBA")
    row = {"uri": str(tmp_path / "0.png")}
    with pytest.raises(DataError, match=r"wrong mode: RGBA, expected 8-bit grey\. Convert it"):
        read_image(row, Storage(), 1)
    with pytest.raises(DataError, match=r"RGBA, expected PNG stacks of 5 channels, as `morphoray generate`"):
        read_image(row, Storage(), 5)
    (tmp_path / "0.png").write_bytes(encode_png(np.zeros((3, 8, 8), np.uint8)))
    assert read_image(row, Storage(), 3).shape == (3, 8, 8)


def test_a_table_says_which_image_is_of_which_perturbation(tmp_path: Path, values: dict[str, Any]) -> None:
    pictures(tmp_path / "a")
    pictures(tmp_path / "b")
    table = tmp_path / "files.csv"
    table.write_text(f"file_name,perturbation_id\na/0.png,DMSO\n{tmp_path}/b/1.png,dmso\nb/0.png,taxol\n")
    config = resolve(run_of(values))
    method = MethodConfig(images=str(table))
    made = method_images(config, "x", method, "")
    assert [row.row["uri"] for row in made.rows] == [f"{tmp_path}/{at}.png" for at in ("a/0", "b/1", "b/0")]
    known, unknown = with_the_datas_names(made, from_rows(read_sites(config)))
    assert known.counts == {"dmso": 2, "taxol": 1} and not unknown, "of two folders, as it says"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "files.parquet")
    parquet = MethodConfig(images=str(tmp_path / "files.parquet"))
    assert method_images(config, "x", parquet, "").rows == made.rows
    for text, told in {
        "": "the file is empty, .*",
        "file_name,perturbation_id\n": "no rows below the header .*",
        "file,perturbation_id\na/0.png,dmso\n": r"found no column file_name among \['file', 'pert.*",
        "file_name,perturbation_id\na/0.png,\n": r"row 1 has no perturbation_id\.",
        "file_name,perturbation_id\na/0.png,dmso\na/0.png,dmso\n": r"row 2: a/0\.png is there twice; .*",
        "file_name,perturbation_id\nc/0.png,dmso\n": r"none of the 1 images looked at can be used, .*",
    }.items():
        table.write_text(text)
        found = rf"evaluation\.methods\.x: (?:{table}: )?{told}"
        refused(values, DataError, found, x={"images": str(table)})
    refused(values, MissingObjectError, r"evaluation\.methods\.x: .*no\.csv.*", x={"images": "no.csv"})
