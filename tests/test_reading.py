"""From a row of SITES to 8-bit channels: intensity ranges, illumination, physical scale, and reasons."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from morphoray.config import ImageConfig
from morphoray.datasets.reading import read_site
from morphoray.errors import DataError
from morphoray.imaging.intensity import correct_illumination, stretch, to_uint8
from morphoray.storage import Storage

STORAGE = Storage()
RAW = np.array([[[100, 200], [300, 1100]], [[0, 50], [100, 65535]]], np.uint16)


def site(folder: Path, raw: np.ndarray, **more: Any) -> dict[str, Any]:
    """A row of SITES whose channels are 16-bit TIFFs."""
    uris = []
    for number, plane in enumerate(raw):
        path = folder / f"w{number}.tif"
        Image.fromarray(plane).save(path)
        uris.append(str(path))
    row = {"site_id": "a", "channel_uris": uris, "illumination_uris": None, "intensity_ranges": None}
    return row | {"pixel_size_um": None} | more


def illumination(folder: Path, values: np.ndarray) -> list[str]:
    """The functions as .npy files."""
    uris = []
    for number, plane in enumerate(values):
        path = folder / f"illum{number}.npy"
        np.save(path, plane)
        uris.append(str(path))
    return uris


def test_ranges_by_hand() -> None:
    image = to_uint8(RAW, [100, 1100, 0, 100])
    np.testing.assert_array_equal(image, [[[0, 26], [51, 255]], [[0, 128], [255, 255]]])
    assert to_uint8(image) is not None
    np.testing.assert_array_equal(to_uint8(image), image)


def test_without_ranges_an_image_has_its_own() -> None:
    raw = np.random.default_rng(0).integers(500, 3000, (2, 64, 64)).astype(np.uint16)
    image = to_uint8(raw)
    low, high = np.percentile(raw[0], [0.1, 99.9])
    np.testing.assert_array_equal(image[0], np.rint(np.clip((raw[0] - low) / (high - low), 0, 1) * 255))


@pytest.mark.parametrize("ranges", [[0.0, 1.0], [5.0, 5.0, 0.0, 1.0], [0.0, float("nan"), 0.0, 1.0]])
def test_wrong_ranges_are_refused(ranges: list[float]) -> None:
    with pytest.raises(DataError, match="expected low < high for each of 2 channels"):
        to_uint8(RAW, ranges)


def test_a_flat_channel_is_no_division_by_zero() -> None:
    flat = np.full((1, 4, 4), 7, np.uint16)
    assert to_uint8(flat).max() == 0
    assert stretch(flat).max() == 0


def test_read_site_divides_before_it_scales(tmp_path: Path) -> None:
    functions = np.array([[[1, 2], [1, 2]], [[1, 1], [2, 1]]], np.float64)
    row = site(tmp_path, RAW, illumination_uris=illumination(tmp_path, functions))
    row["intensity_ranges"] = [0.0, 1000.0, 0.0, 100.0]
    image = read_site(row, ImageConfig(resolution=8), STORAGE)
    np.testing.assert_array_equal(image, to_uint8(RAW / functions, [0, 1000, 0, 100]))
    off = read_site(row, ImageConfig(resolution=8, illumination="off"), STORAGE)
    np.testing.assert_array_equal(off, to_uint8(RAW, [0, 1000, 0, 100]))


def test_the_notebooks_order_stretches_first(tmp_path: Path) -> None:
    functions = np.array([[[1, 2], [1, 2]], [[1, 1], [2, 1]]], np.float64)
    row = site(tmp_path, RAW, illumination_uris=illumination(tmp_path, functions))
    image = read_site(row, ImageConfig(resolution=8, illumination="stretched"), STORAGE)
    # 100..1100 to 0..255, truncated, and then divided
    np.testing.assert_array_equal(image[0], [[0, 12], [51, 128]])


def test_um_per_pixel_resamples(tmp_path: Path) -> None:
    raw = np.random.default_rng(1).integers(0, 60000, (1, 90, 120)).astype(np.uint16)
    row = site(tmp_path, raw, pixel_size_um=0.5)
    settings = ImageConfig(resolution=8, fit="crop", um_per_pixel=0.75)
    assert read_site(row, settings, STORAGE).shape == (1, 60, 80)
    with pytest.raises(DataError, match=r"w0\.tif: no pixel size, which image\.um_per_pixel needs"):
        read_site(row | {"pixel_size_um": None}, settings, STORAGE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing illumination function"),
        (b"", "not a .npy array"),
        (b"not numpy", "not a .npy array"),
        (np.array([object()]), "not a .npy array"),
        (np.ones((2, 2), np.int64), "int64 of shape"),
        (np.ones((2, 3)), "expected the image's"),
        (np.zeros((2, 2)), "not positive and finite"),
        (np.full((2, 2), np.nan), "not positive and finite"),
    ],
)
def test_a_bad_illumination_function_has_a_reason(content: Any, reason: str, tmp_path: Path) -> None:
    uris = [str(tmp_path / f"bad{number}.npy") for number in (0, 1)]
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, content, allow_pickle=True)
        content = buffer.getvalue()
    for uri in uris if content is not None else []:
        Path(uri).write_bytes(content)
    for illumination in ("raw", "stretched"):
        with pytest.raises(DataError, match=rf"^{uris[0]}: .*{reason}"):
            read_site(
                site(tmp_path, RAW, illumination_uris=uris), ImageConfig(illumination=illumination), STORAGE
            )


def test_the_function_that_is_bad_is_named(tmp_path: Path) -> None:
    uris = [str(tmp_path / f"{number}.npy") for number in (0, 1)]
    np.save(uris[0], np.ones(RAW.shape[1:]))
    np.save(uris[1], np.zeros(RAW.shape[1:]))
    for functions, reason in (
        (uris, rf"^{uris[1]}: illumination has values that are not positive and finite$"),
        (uris[:1], rf"^{uris[0]}: 1 illumination functions, expected one for each of 2 channels$"),
    ):
        with pytest.raises(DataError, match=reason):
            read_site(site(tmp_path, RAW, illumination_uris=functions), ImageConfig(), STORAGE)


def test_the_jump_field_in_eight_bits(real_data: Path) -> None:
    files = sorted(map(str, (real_data / "jump-sample").glob("*.tiff")))
    row = {"site_id": "jump", "channel_uris": files, "illumination_uris": None, "intensity_ranges": None}
    image = read_site(row | {"pixel_size_um": None}, ImageConfig(resolution=64), STORAGE)
    assert image.shape == (5, 1080, 1080)
    saturated = (image == 255).mean(axis=(1, 2))
    assert (saturated < 0.005).all()  # of each channel's own 0.1 %, and ties
    assert (np.median(image, axis=(1, 2)) < 128).all()


def test_functions_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="illumination of shape"):
        correct_illumination(RAW, np.ones((2, 2, 3)))
