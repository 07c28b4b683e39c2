"""`morphoray data import` from the command line: what it prints, and the picture that it writes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from morphoray.cli import main
from morphoray.config import ImageConfig
from morphoray.datasets.base import sites_table
from morphoray.datasets.reading import SITE_COLUMNS
from morphoray.imaging.channels import CELL_PAINTING_CHANNELS, find_mapping
from morphoray.imaging.png import encode_png
from morphoray.pipelines.encode import ReadPlan
from morphoray.pipelines.overview import COLUMNS, ROWS, SIDE, bars, choose, draw, thumbnail
from morphoray.storage import Storage

STORAGE = Storage()


def table(names: list[str], **more: Any) -> pa.Table:
    """Sites of one experiment; dmso is the control."""
    columns = {
        "site_id": [str(number) for number in range(len(names))],
        "dataset": ["test"] * len(names),
        "experiment": ["E"] * len(names),
        "plate": ["P"] * len(names),
        "well": ["B02"] * len(names),
        "site": ["1"] * len(names),
        "perturbation_id": names,
        "perturbation_kind": ["control" if name == "dmso" else "compound" for name in names],
        "is_control": [name == "dmso" for name in names],
        "channel_uris": [["none.png"]] * len(names),
    }
    return sites_table(columns | more)


def places(sites: pa.Table) -> list[tuple[int, int, str]]:
    return [(tile.row, tile.column, tile.site["site_id"]) for tile in choose(sites)]


def test_the_control_comes_first_and_sites_are_spread() -> None:
    names = [f"c{number:02d}" for number in range(30)] * 8 + ["dmso"] * 8
    tiles = choose(table(names))
    assert len(tiles) == ROWS * COLUMNS
    assert [tile.site["perturbation_id"] for tile in tiles[::COLUMNS]] == [
        "dmso", "c00", "c06", "c12", "c18", "c24",
    ]  # fmt: skip
    assert [tile.site["site_id"] for tile in tiles[:COLUMNS]] == ["240", "242", "244", "246"]
    assert [tile.label for tile in tiles[:2]] == ["dmso\ncontrol\n8 sites", ""]


def test_few_perturbations_have_more_sites_each() -> None:
    assert places(table(["x"] * 5)) == [(0, 0, "0"), (0, 1, "1"), (0, 2, "2"), (0, 3, "3"), (1, 0, "4")]
    two = places(table(["x"] * 100 + ["dmso"]))
    assert two[:2] == [(0, 0, "100"), (1, 0, "0")]
    assert len(two) == 1 + ROWS * COLUMNS // 2
    assert two[-1][:2] == (3, 3)


def test_bars_count_experiments_or_plates() -> None:
    sites = table(["x"] * 3, plate=["1", "2", "2"])
    assert bars(sites) == ("sites per plate", [("1", 1), ("2", 2)])
    many = table(["x"] * 30, experiment=[f"E{number:02d}" for number in range(30)])
    title, counts = bars(many)
    assert title == "sites per experiment, the first 24 of 30"
    assert (len(counts), counts[0]) == (24, ("E00", 1))


def plan(mapping: str, channels: tuple[str, ...] = ("red", "green", "blue")) -> ReadPlan:
    return ReadPlan(ImageConfig(resolution=8), find_mapping(mapping, channels, "rgb"), 1, 0)


def site_of(uris: list[str]) -> dict[str, Any]:
    return dict.fromkeys(SITE_COLUMNS) | {"channel_uris": uris}


def test_a_thumbnail_is_the_mapped_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE + 20)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))
    found = thumbnail(site_of([str(tmp_path / "a.png")]), plan("rgb"), STORAGE)
    np.testing.assert_array_equal(found, pixels[:, :, 10:-10])
    assert "none.png: missing" in thumbnail(site_of(["none.png"]), plan("rgb"), STORAGE)
    wrong = plan("rxrx1_rgb", CELL_PAINTING_CHANNELS)
    assert "takes 6 channels" in thumbnail(site_of([str(tmp_path / "a.png")]), wrong, STORAGE)


def test_six_channels_are_shown_in_their_colours(tmp_path: Path) -> None:
    uris = []
    for number in range(6):
        plane = np.zeros((1, 60, 60), np.uint8)
        plane[0, 10 * number : 10 * number + 10] = 200
        uris.append(str(tmp_path / f"w{number}.png"))
        Path(uris[-1]).write_bytes(encode_png(plane))
    image = thumbnail(site_of(uris), plan("identity", CELL_PAINTING_CHANNELS), STORAGE)
    assert isinstance(image, np.ndarray) and image.shape == (3, SIDE, SIDE)
    bands = [tuple(image[:, (2 * number + 1) * SIDE // 12, SIDE // 2]) for number in range(6)]
    assert len(set(bands)) == 6 and all(max(band) > 100 for band in bands)


def test_the_picture_shows_what_is_not_readable_and_long_names() -> None:
    sites = table(["a" * 200, "dmso"], well=["B02", "C" * 90])
    image = np.broadcast_to(np.array([250, 0, 90], np.uint8)[:, None, None], (3, SIDE, SIDE))
    (dmso, other) = choose(sites)
    data = draw([(dmso, image), (other, "missing")], *bars(sites))
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert (picture == [250, 0, 90]).all(axis=2).sum() == SIDE * SIDE
    assert (picture == 225).all(axis=2).sum() > 0.9 * SIDE * SIDE
    assert (picture[:, 185:190] == 255).all()  # labels end before the images


# The command


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Twelve images on two plates, of dmso and two compounds."""
    folder = tmp_path / "crops"
    folder.mkdir()
    lines = ["file_name,additional_feature,plate,well,site"]
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (3, 24, 24)).astype(np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
        name = ("dmso", "taxol", "az138")[number % 3]
        lines.append(f"{number}.png,{name},P{number // 6},B02,{number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_import_prints_and_draws(crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["data", "import", "imagefolder", str(crops), str(run)]) == 0
    printed = capsys.readouterr().out
    assert "imagefolder: 12 sites, 0 quarantined" in printed
    assert f"overview: {run}/sites/overview.png\n" in printed
    with Image.open(run / "sites/overview.png") as picture:
        assert picture.height > 3 * SIDE
    assert main(["data", "import", "imagefolder", str(crops), str(run)]) == 0
    assert "SITES are there" in capsys.readouterr().out


def imported(run: Path) -> list[str]:
    found: list[str] = pq.read_table(run / "sites/sites.parquet")["site_id"].to_pylist()
    return found


def test_filter_and_limit_from_the_command_line(crops: Path, tmp_path: Path) -> None:
    command = ["data", "import", "imagefolder", str(crops), str(tmp_path / "run")]
    filters = ["--filter", "plate=P1", "--filter", "perturbation_id=dmso,taxol"]
    assert main([*command, *filters, "--limit", "2"]) == 0
    assert imported(tmp_path / "run") == ["6", "9"]
    config = (
        f"run_dir: {tmp_path}/same\n"
        f"dataset: {{name: imagefolder, source: {crops}, limit: 2,\n"
        "  filter: {plate: P1, perturbation_id: [dmso, taxol]}}\n"
    )
    from morphoray.config import parse
    from morphoray.pipelines.run import run_import

    run_import(parse(config, "test"))
    assert imported(tmp_path / "same") == imported(tmp_path / "run")


def test_a_refused_import_leaves_the_place_free(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "import", "imagefolder", str(crops), str(tmp_path / "run")]
    assert main([*command, "--filter", "plate=P7"]) == 1
    assert "dataset.filter.plate: found ['P7']" in capsys.readouterr().err
    assert main([*command, "--filter", "plate"]) == 1
    assert "--filter plate: expected column=value[,value]" in capsys.readouterr().err
    assert main([*command, "--filter", "plate=P1"]) == 0
    assert main(command) == 1
    assert "dataset.filter.plate: stored ['P1'], now None" in capsys.readouterr().err


def test_unreadable_images_do_not_fail_the_import(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (crops / "3.png").write_bytes(b"x")
    command = ["data", "import", "imagefolder", str(crops)]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert f"1 of 12 images could not be read: {crops}/3.png: not an image" in capsys.readouterr().out
    for path in crops.glob("*.png"):
        path.unlink()
    assert main([*command, str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert "missing files: all 12 sites lack all their images" in printed
    assert "no overview picture: none of 12 images could be read" in printed
    assert len(imported(tmp_path / "none")) == 12
    assert not (tmp_path / "none/sites/overview.png").exists()


@pytest.mark.parametrize(
    ("name", "folder", "sites"), [("rxrx1", "rxrx1-sample", 12), ("imagefolder", "bbbc021-crops", 4440)]
)
def test_real_samples(real_data: Path, tmp_path: Path, name: str, folder: str, sites: int) -> None:
    assert main(["data", "import", name, str(real_data / folder), str(tmp_path)]) == 0
    assert len(imported(tmp_path)) == sites
    picture = np.asarray(Image.open(tmp_path / "sites/overview.png"))
    right = picture[: 3 * SIDE, -SIDE:]
    assert right.std() > 40  # images, not paper
