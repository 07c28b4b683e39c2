"""An image is its own: the same from one or two actors and in any batch, but for rounding."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from morphoray.config import GenerationConfig, StorageConfig
from morphoray.imaging.png import decode_png
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.generate import generate_images, known_perturbations, read_images, read_manifest
from morphoray.storage import Storage
from tinyrun import REAL_RAY

pytestmark = REAL_RAY


def images(
    bundle: Path, out: Path, items: list[Perturbation] | None = None, **options: int | float
) -> tuple[list[tuple[str, int]], np.ndarray]:
    """(perturbation_id, index) and the images (N, 3, R, R) int16 of a run with these options."""
    items = items or known_perturbations(read_manifest(Storage(), str(bundle)))
    common = {"n": 6, "steps": 6, "images_per_part": 5, "cpus_per_actor": 0.5}
    generation = GenerationConfig(**{**common, **options})
    generate_images(str(bundle), items, str(out), generation, 3, StorageConfig())
    table = read_images(Storage(), str(out))
    names = list(zip(table["perturbation_id"].to_pylist(), table["index"].to_pylist(), strict=True))
    return names, np.stack([decode_png(data) for data in table["image"].to_pylist()]).astype(np.int16)


def test_actors_batches_and_parts_change_no_image(
    ray_cluster: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    names, first = images(tiny_bundle, tmp_path / "one", num_actors=1, batch_size=5)
    assert len(set(names)) == len(names) == 42
    same_batches = images(tiny_bundle, tmp_path / "two", num_actors=2, batch_size=5)
    assert same_batches[0] == names
    assert np.array_equal(same_batches[1], first)  # who samples a part changes nothing
    for number, options in enumerate(({"batch_size": 1}, {"batch_size": 3, "images_per_part": 11})):
        others, other = images(tiny_bundle, tmp_path / f"batch-{number}", num_actors=2, **options)
        assert others == names
        apart = np.abs(other - first)
        share = np.mean(apart.max(axis=1) > 0)
        print(f"{options}: {100 * share:.3f} % of the pixels differ, by {apart.max()} grey levels at most")
        assert apart.max() <= 1
        assert share < 0.01


def test_shared_noise_shows_the_same_cells_under_every_perturbation(
    ray_cluster: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    first = known_perturbations(read_manifest(Storage(), str(tiny_bundle)))[0]
    twins = [first, replace(first, perturbation_id="twin")]  # one condition under two names
    for shared in (True, False):
        names, found = images(tiny_bundle, tmp_path / str(shared), twins, shared_noise=shared, batch_size=6)
        assert len(set(names)) == 12
        assert np.array_equal(found[:6], found[6:]) is shared
