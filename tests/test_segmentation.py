"""Segmentation, crops and CellProfiler's measurements: real fields, simulated truth, degenerate images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.spatial import cKDTree

from morphoray.datasets.simulator.fields import draw_fields
from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype, random_batch, random_phenotype
from morphoray.errors import DataError
from morphoray.evaluation.cell_crops import cell_crops, nucleus_centres
from morphoray.evaluation.measurements import (
    DEFAULT_FAMILIES,
    PAIR_FAMILIES,
    feature_columns,
    image_means,
    measure,
)
from morphoray.evaluation.segmentation import Segmentation, SegmentationOptions, find_nuclei, segment

RXRX1 = ("nuclei", "er", "actin", "rna", "mito", "golgi")
JUMP = ("Mito", "AGP", "RNA", "ER", "DNA")  # ch1 to ch5, by their agreement with the table
OPTIONS = SegmentationOptions(nuclei="nuclei", cell_body=("rna",), nucleus_diameter_px=20)


def discs(size: int, centres: list[tuple[int, int]], radius: float, background: int = 10) -> np.ndarray:
    """Two channels (2, size, size): bright discs, and dimmer ones of twice the radius, with noise."""
    y, x = np.mgrid[:size, :size]
    image = np.random.default_rng(0).poisson(background, (2, size, size)).astype(float)
    for channel, (reach, level) in enumerate(((radius, 120), (2 * radius, 60))):
        for cy, cx in centres:
            image[channel][(y - cy) ** 2 + (x - cx) ** 2 <= reach**2] = level + background
    return image.astype(np.uint8)


def check(found: Segmentation) -> None:
    """What holds of every segmentation."""
    labels = set(range(1, found.count + 1))
    assert set(np.unique(found.nuclei)) - {0} == labels == set(np.unique(found.cells)) - {0}
    inside = found.nuclei > 0
    np.testing.assert_array_equal(found.cells[inside], found.nuclei[inside])
    np.testing.assert_array_equal(found.cytoplasm, np.where(inside, 0, found.cells))
    border = np.concatenate([found.nuclei[[0, -1]].ravel(), found.nuclei[:, [0, -1]].ravel()])
    assert not border.any()
    assert found.nucleus_count >= found.count


def test_discs_are_found_where_they_are() -> None:
    centres = [(30, 30), (30, 90), (80, 60), (88, 78), (120, 3)]
    image = discs(128, centres, 10)
    options = SegmentationOptions(nuclei="a", cell_body=("b",), nucleus_diameter_px=20)
    found = segment(image, ["a", "b"], options)
    check(found)
    assert (found.count, found.nucleus_count) == (4, 5), "the fifth is cut by the border, two touch"
    distance, match = cKDTree(nucleus_centres(found.nuclei)).query(centres[:4])
    assert distance.max() < 2 and len(set(match)) == 4
    area = np.bincount(found.nuclei.ravel())[1:][match[:2]]
    np.testing.assert_allclose(np.sqrt(area / np.pi), 10, atol=1)
    cell_area = np.bincount(found.cells.ravel())[1:][match[:2]]
    np.testing.assert_allclose(np.sqrt(cell_area / np.pi), 20, atol=1)
    again = segment(image, ["a", "b"], options)
    np.testing.assert_array_equal(found.cells, again.cells)
    deep = segment(image.astype(np.uint16) * 200, ["a", "b"], options)
    assert deep.count == 4
    um = SegmentationOptions(nuclei="a", cell_body=("b",), nucleus_diameter_um=10)
    np.testing.assert_array_equal(segment(image, ["a", "b"], um, 0.5).cells, found.cells)


@pytest.mark.parametrize(
    "kind", ["black", "constant", "noise", "ramp", "blob", "hot pixel", "one pixel", "thin"]
)
@pytest.mark.parametrize("threshold", ["local", "otsu"])
def test_degenerate_images_have_no_cells(kind: str, threshold: str) -> None:
    size = {"one pixel": (1, 1), "thin": (1, 50)}.get(kind, (96, 96))
    plane = np.full(size, 7 if kind != "black" else 0, np.float64)
    y, x = np.mgrid[: size[0], : size[1]]
    noise = np.random.default_rng(1)
    if kind in ("noise", "ramp"):
        plane = noise.poisson(20 + (y / 8 if kind == "ramp" else 0), size)
    if kind == "blob":
        plane = np.where((y - 48) ** 2 + (x - 48) ** 2 < 45**2, 200, 5)
    if kind == "hot pixel":
        plane[40, 40] = 255
    image = np.stack([plane] * 2).astype(np.uint8)
    options = SegmentationOptions(
        nuclei="a",
        cell_body=("b",),
        nucleus_diameter_px=20,
        threshold=threshold,  # type: ignore[arg-type]
    )
    found = segment(image, ["a", "b"], options)
    check(found)
    assert found.count == found.nucleus_count == 0
    crops = cell_crops(image, found.nuclei, 32)
    assert crops.crops.shape == (0, 2, 32, 32) and crops.left_out == 0
    cells = measure(image, ["a", "b"], found, {"plate": "p"}, ("sizeshape", "intensity", "pearson"))
    means = image_means(cells, found, {"plate": "p"})
    assert len(cells) == 0 and means["Metadata_cell_count"].tolist() == [0]
    assert means[feature_columns(means)].isna().all(axis=None) and len(feature_columns(means)) > 100


def test_wrong_input_is_told() -> None:
    image = discs(64, [(32, 32)], 8)
    with pytest.raises(DataError, match=r"no channels \['nuclei', 'rna'\]"):
        segment(image, ["a", "b"], OPTIONS)
    with pytest.raises(DataError, match="float64 of shape"):
        segment(image.astype(float), ["nuclei", "rna"], OPTIONS)
    with pytest.raises(DataError, match="shape"):
        segment(image, ["nuclei"], OPTIONS)
    with pytest.raises(ValidationError, match="either nucleus_diameter_px"):
        SegmentationOptions(nuclei="a", cell_body=("b",))
    um = SegmentationOptions(nuclei="nuclei", cell_body=("rna",), nucleus_diameter_um=10)
    with pytest.raises(DataError, match="pixel size"):
        segment(image, ["nuclei", "rna"], um)
    with pytest.raises(DataError, match=r"2\.0 pixels"):
        segment(image, ["nuclei", "rna"], um, 5.0)
    found = segment(image, ["nuclei", "rna"], OPTIONS)
    with pytest.raises(DataError, match="families"):
        measure(image, ["nuclei", "rna"], found, {}, ("shape",))
    with pytest.raises(DataError, match="underscores"):
        measure(image, ["nuclei", "r_na"], found, {})
    with pytest.raises(DataError, match="size 0"):
        cell_crops(image, found.nuclei, 0)


def test_crops_are_centred_and_whole() -> None:
    image = discs(96, [(20, 40), (60, 60), (14, 80)], 8)
    options = SegmentationOptions(nuclei="a", cell_body=("b",), nucleus_diameter_px=16)
    found = segment(image, ["a", "b"], options)
    assert found.count == 3
    crops = cell_crops(image, found.nuclei, 32)
    assert (len(crops.crops), crops.left_out) == (2, 1)
    for picture, (y, x), label in zip(crops.crops, crops.positions, crops.labels, strict=True):
        np.testing.assert_array_equal(picture, image[:, y : y + 32, x : x + 32])
        np.testing.assert_allclose(nucleus_centres(found.nuclei)[label - 1] - (y, x), 16, atol=0.51)
    assert crops.crops.dtype == np.uint8


def test_counts_follow_the_simulator() -> None:
    generator = np.random.default_rng(1)
    phenotypes = [Phenotype()] * 4 + [random_phenotype(generator) for _ in range(8)]
    batches = [BatchEffect()] * 4 + [random_batch(generator) for _ in range(8)]
    fields = draw_fields(phenotypes, batches, 256, 6, keys=[("count", i) for i in range(12)])
    truth = np.array([each.nucleus_count for each in fields.truth])
    found = np.array([find_nuclei(image[0].astype(np.float32), 20, OPTIONS).max() for image in fields.images])
    print(f"nuclei, true: {truth.tolist()}, found: {found.tolist()}")
    assert abs(found.sum() - truth.sum()) < 0.06 * truth.sum()
    # the truth counts centres in the field, and fragments and micronuclei that merge or are too small
    assert np.abs(found - truth).mean() < 0.12 * truth.mean()


def jump_field(real_data: Path) -> np.ndarray:
    names = [f"r01c01f01p01-ch{channel}sk1fk1fl1.tiff" for channel in range(1, 6)]
    return np.stack([np.asarray(Image.open(real_data / "jump-sample" / name)) for name in names]).astype(
        np.uint16
    )


def test_nuclei_agree_with_cellprofiler(real_data: Path) -> None:
    """Against CellProfiler's own table of the field.

    Its pipeline divided by illumination functions that the sample lacks: intensities are compared after
    dividing by the smooth surface (degree 2 in the position) that the ratio of both follows.
    """
    theirs = pd.read_csv(real_data / "jump-sample/Nuclei.csv")
    image = jump_field(real_data)
    options = SegmentationOptions(nuclei="DNA", cell_body=("RNA",), nucleus_diameter_px=30)
    found = segment(image, JUMP, options)
    check(found)
    cells = measure(image, JUMP, found, {"plate": "jump"}, ("sizeshape", "intensity"))
    ours = cells[["Metadata_y", "Metadata_x"]].to_numpy()
    distance, match = cKDTree(ours).query(theirs[["AreaShape_Center_Y", "AreaShape_Center_X"]].to_numpy())
    near = distance < 10
    assert len(set(match[near])) == near.sum(), "one nucleus for each"
    rows = cells.iloc[match[near]]
    r = {}
    y, x = ours[match[near]].T / 1080
    surface = np.stack([np.ones_like(y), y, x, y * x, y**2, x**2], axis=1)
    for name in ("AreaShape_Area", "AreaShape_Eccentricity", *(f"Intensity_MeanIntensity_{c}" for c in JUMP)):
        values, expected = rows[f"Nuclei_{name}"].to_numpy(), theirs.loc[near, name].to_numpy()
        r[name] = [float(np.corrcoef(values, expected)[0, 1])]
        if name.startswith("Intensity"):
            ratio = np.log(values / expected)
            smooth = np.exp(surface @ np.linalg.lstsq(surface, ratio, rcond=None)[0])
            r[name].append(float(np.corrcoef(values / smooth, expected)[0, 1]))
    print(f"matched {near.sum()} of {len(theirs)}, ours {found.count} and {found.nucleus_count}: {r}")
    assert near.sum() >= 105 and found.count <= 112
    assert r["AreaShape_Area"][0] > 0.9 and r["AreaShape_Eccentricity"][0] > 0.9
    assert all(r[f"Intensity_MeanIntensity_{stain}"][1] > 0.97 for stain in JUMP)


@pytest.mark.parametrize(
    ("experiment", "diameter", "least", "most"),
    [("HUVEC-01", 22, 110, 140), ("U2OS-01", 26, 100, 140), ("HEPG2-01", 14, 550, 1000)],
)
def test_rxrx1_sites(real_data: Path, experiment: str, diameter: float, least: int, most: int) -> None:
    """Bounds by eye on the overlays; HEPG2 is a dense, overexposed layer."""
    folder = real_data / "rxrx1-sample/images" / experiment / "Plate1"
    image = np.stack([np.asarray(Image.open(folder / f"B02_s2_w{w}.png")) for w in range(1, 7)])
    options = OPTIONS.model_copy(update={"nucleus_diameter_px": diameter})
    found = segment(image, RXRX1, options)
    check(found)
    assert least <= found.nucleus_count <= most


def test_real_bbbc021_crops_have_a_nucleus(real_data: Path) -> None:
    files = sorted((real_data / "bbbc021-crops/train").glob("*.png"))[::200]
    options = SegmentationOptions(nuclei="dna", cell_body=("tubulin", "actin"), nucleus_diameter_px=28)
    counts = []
    for file in files:
        image = np.ascontiguousarray(np.moveaxis(np.asarray(Image.open(file)), -1, 0))
        found = segment(image, ("actin", "tubulin", "dna"), options)
        check(found)
        counts.append(found.count)
    assert np.mean(np.array(counts) >= 1) > 0.85, counts


def test_measurements_of_known_shapes() -> None:
    nuclei, cells = np.zeros((2, 64, 64), np.int32)
    nuclei[10:20, 10:20] = 1
    cells[5:25, 5:25] = 1
    nuclei[40:50, 40:44] = cells[40:50, 40:44] = 2  # no cytoplasm
    image = np.zeros((2, 64, 64), np.uint16)
    image[0, 10:20, 10:20] = 6553
    image[1] = np.arange(64 * 64).reshape(64, 64)
    found = measure(
        image, ["a", "b"], Segmentation(nuclei, cells, np.where(nuclei > 0, 0, cells), 2), {"plate": 3}
    )
    first, second = found.iloc[0], found.iloc[1]
    assert found["Metadata_plate"].tolist() == [3, 3] and found["Metadata_cell"].tolist() == [1, 2]
    assert (first["Metadata_y"], first["Metadata_x"]) == (14.5, 14.5)
    areas = [first[f"{part}_AreaShape_Area"] for part in ("Nuclei", "Cells", "Cytoplasm")]
    assert areas == [100, 400, 300]
    assert first["Nuclei_Intensity_MeanIntensity_a"] == pytest.approx(6553 / 65535)
    assert first["Cells_Intensity_MeanIntensity_a"] == pytest.approx(6553 / 65535 / 4)
    assert second["Nuclei_AreaShape_Area"] == 40 and np.isnan(second["Cytoplasm_AreaShape_Area"])
    features = feature_columns(found)
    assert len(set(features)) == len(features)
    assert not [name for name in features if "Center_X" in name or "Location" in name or "Orient" in name]
    assert {"Nuclei_Texture_Contrast_a_3_00_256", "Cells_Granularity_1_b"} <= set(features)
    assert {"Cytoplasm_Correlation_Manders_a_b", "Cytoplasm_Correlation_Manders_b_a"} <= set(features)
    assert {"Cells_RadialDistribution_FracAtD_b_1of4", "Nuclei_Correlation_Correlation_a_b"} <= set(features)


def test_a_table_has_the_same_columns_whatever_the_cells() -> None:
    families = (*DEFAULT_FAMILIES, *PAIR_FAMILIES[3:], "radial_zernikes")
    image = discs(64, [(32, 32)], 8)
    labels = np.zeros((64, 64), np.int32)
    empty = measure(image, ["a", "b"], Segmentation(labels, labels, labels, 0), {}, families)
    labels = labels.copy()
    labels[5, 5], labels[5, 6] = 1, 2  # of one pixel each
    tiny = measure(image, ["a", "b"], Segmentation(labels, labels, labels * 0, 2), {}, families)
    whole = measure(image, ["a", "b"], segment(image, ["nuclei", "rna"], OPTIONS), {}, families)
    assert list(empty) == list(tiny) == list(whole)
    assert (len(empty), len(tiny), len(whole)) == (0, 2, 1)
    assert whole[feature_columns(whole)].notna().mean(axis=None) > 0.95
