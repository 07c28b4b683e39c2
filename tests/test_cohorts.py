"""All pairs of cohorts, precision to coverage, copies, extrapolation and tests, against others' numbers."""

import numpy as np
import pytest
import scipy.linalg

from morphoray.errors import DataError
from morphoray.evaluation import measures
from morphoray.evaluation.cohorts import frechet_matrix, matched_ranks, moments
from morphoray.evaluation.distances import frechet, frechet_at_infinity
from morphoray.evaluation.fidelity import fidelity, memorisation, nearest_distance
from morphoray.evaluation.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    stars,
    unpaired_difference,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def cohort(rng: np.random.Generator, count: int, width: int, shift: float = 0.0) -> np.ndarray:
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return (rng.normal(size=(count, width)) @ mixing + shift).astype(np.float32)


def sqrtm_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, through scipy's square root of a d × d matrix."""
    first, second = np.cov(a.astype(float), rowvar=False), np.cov(b.astype(float), rowvar=False)
    cross = scipy.linalg.sqrtm(first @ second)
    means = a.astype(float).mean(0) - b.astype(float).mean(0)
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * np.trace(cross).real)


@pytest.mark.parametrize("sizes", [(90, 90, 90), (30, 45, 100)])
def test_all_pairs_equal_the_square_root_of_the_covariances(
    rng: np.random.Generator, sizes: tuple[int, ...]
) -> None:
    sets = [cohort(rng, size, 40, shift) for shift, size in enumerate(sizes)]
    found = frechet_matrix([moments(each) for each in sets], [moments(each) for each in sets[::-1]])
    for row, first in enumerate(sets):
        for column, second in enumerate(sets[::-1]):
            if first is not second:
                assert found[row, column] == pytest.approx(sqrtm_distance(first, second), rel=1e-6)
            assert found[row, column] == pytest.approx(frechet(first, second).value, rel=1e-9, abs=1e-9)


def test_sets_of_two_extractors_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match=r"widths \[4, 5\]"):
        frechet_matrix([moments(cohort(rng, 9, 4))], [moments(cohort(rng, 9, 5))])


def test_ranks_by_hand() -> None:
    distances = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    assert matched_ranks(distances).tolist() == [1, 2, 3]  # a tie counts against the match
    with pytest.raises(DataError, match="expected a square one"):
        matched_ranks(distances[:2])


def test_a_classifier_that_real_images_taught_recognises_what_is_right(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fields of view an image: the halves that teach and are recognised share none."""
    names = ("a", "b", "c")
    places = {name: np.eye(6)[index] * 6 for index, name in enumerate(names)}
    made = {name: (rng.normal(size=(4, 60, 6)) + place).astype(np.float32) for name, place in places.items()}
    sets = [
        measures.Cohort(
            name,
            np.concatenate([made[name][0], made[name][1]]),
            {"right": made[name][2], "half": np.concatenate([made[name][2][:30], made["a"][3][:30]])},
            np.concatenate([made["c"][0], made["c"][1]]),
            other=made["b" if name == "a" else "a"][3],
            groups=np.arange(120) // 2,
        )
        for name in names
    ]
    few = measures.Cohort("few", sets[0].real[:30], {"right": sets[0].real[:15]})
    found = measures.measure([*sets, few], measures.Sampling(50, 2)).distances
    shares = {name: found[name]["recognised"] for name in names}
    assert {each[method].value for each in shares.values() for method in ("right", "floor")} == {1.0}
    assert not any("other_perturbation" in each for each in shares.values()), "half of them taught"
    assert [shares[name]["codec"].value for name in names] == [0, 0, 1], "it makes c of every image"
    assert shares["a"]["half"].value == 1 and 0.3 < shares["b"]["half"].value < 0.7
    assert (shares["a"]["right"].n_a, shares["a"]["right"].n_b) == (50, 50)
    assert "recognised" not in found["few"], "15 images teach nothing"
    assert "recognised" not in measures.measure(sets[:1], measures.Sampling(50, 2)).distances["a"]
    monkeypatch.setattr(measures, "TAUGHT", 90)
    capped = measures.measure(sets, measures.Sampling(50, 2)).distances["b"]["recognised"]["right"]
    assert (capped.n_a, capped.n_b, capped.value) == (50, 30, 1)


def test_what_a_well_has_in_common_is_not_taken_for_the_perturbation(rng: np.random.Generator) -> None:
    """Six perturbations that do nothing, in four wells each of a look of its own."""
    wells = np.repeat(np.arange(4), 30)
    places = {name: rng.normal(size=(4, 40)) * 3 for name in "abcdef"}
    real = {name: np.float32(rng.normal(size=(120, 40)) + place[wells]) for name, place in places.items()}

    def floor(**groups: np.ndarray) -> float:
        sets = [
            measures.Cohort(name, values, {"ours": values[:60]}, **groups) for name, values in real.items()
        ]
        found = measures.measure(sets, measures.Sampling(40, 1)).distances
        return float(np.mean([each["recognised"]["floor"].value for each in found.values()]))

    assert floor() == 1
    assert floor(wells=wells) < 0.6
    assert floor(wells=np.zeros(120)) == 1, "a single well: by field"
    assert floor(wells=(np.arange(120) < 10)) == 1, "10 images a side teach nothing: by field"


def test_another_method_beside_it_changes_no_value_of_a_method(rng: np.random.Generator) -> None:
    """At one N every method has draws of its own."""
    real, ours, theirs = (rng.normal(size=(300, 24)).astype(np.float32) for _ in range(3))

    def measured(generated: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        sets = [
            measures.Cohort(name, real, generated, real + 1, trained=theirs, control=theirs)
            for name in ("a", "b")
        ]
        found = measures.measure(sets, measures.Sampling(100, 3, kid_subset_size=20, kid_subsets=5)).distances
        return {
            metric: {name: each.value for name, each in by_set.items()}
            for metric, by_set in found["a"].items()
        }

    alone, beside = measured({"ours": ours}), measured({"theirs": theirs[:250], "ours": ours})
    assert set(alone) == set(beside) and len(alone) == 11
    for metric, values in alone.items():
        assert values.items() <= beside[metric].items(), metric


def test_fidelity_of_the_same_distribution_of_one_mode_and_of_another_place(rng: np.random.Generator) -> None:
    real, alike = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    good = fidelity(real, alike)
    assert good.precision > 0.9 and good.recall > 0.9
    assert good.density == pytest.approx(1, abs=0.15) and good.coverage > 0.9
    collapsed = fidelity(real, 0.01 * rng.normal(size=(300, 4)))
    assert collapsed.precision == 1 and collapsed.recall < 0.2 and collapsed.coverage < 0.3
    elsewhere = fidelity(real, alike + 100)
    assert (elsewhere.precision, elsewhere.recall, elsewhere.density, elsewhere.coverage) == (0, 0, 0, 0)


def test_fidelity_by_hand() -> None:
    real = np.array([[0.0], [1.0], [3.0]])  # radii to the nearest other: 1, 1, 2
    generated = np.array([[0.5], [4.5], [9.0]])  # radii: 4, 4, 4.5
    found = fidelity(real, generated, neighbours=1)
    assert found.precision == pytest.approx(2 / 3)  # 0.5 in the balls of 0 and 1, 4.5 in that of 3
    assert found.recall == 1
    assert found.density == pytest.approx((2 + 1 + 0) / 3)
    assert found.coverage == 1
    with pytest.raises(DataError, match="at least 6 images"):
        fidelity(real, generated)


def test_copies_are_found(rng: np.random.Generator) -> None:
    training, fresh = (rng.normal(size=(400, 6)) for _ in range(2))
    fields = np.arange(400)
    honest = memorisation(training, fields, fresh)
    assert honest.ratio == pytest.approx(1, abs=0.1) and honest.share < 0.05
    copied = memorisation(training, fields, training[:100] + 1e-3)
    assert copied.ratio < 0.02 and copied.share == 1
    assert nearest_distance(training[:1], training)[0] == 0
    partly = memorisation(training, fields, np.concatenate([training[:80], fresh[80:]]))
    assert partly.ratio > 0.8 and partly.share > 0.19  # a fifth copied: medians hardly move
    crops = np.repeat(training[:100], 4, axis=0) + 0.01 * rng.normal(size=(400, 6))
    assert memorisation(crops, np.repeat(fields[:100], 4), fresh).ratio == pytest.approx(1, abs=0.15)
    assert memorisation(crops, fields, fresh).ratio > 10  # each crop beside one of its own field
    with pytest.raises(DataError, match="every second training image is there twice"):
        memorisation(np.repeat(training, 2, axis=0), np.arange(800), fresh)
    with pytest.raises(DataError, match="training images of one field"):
        memorisation(training, np.zeros(400), fresh)


def test_the_extrapolated_distance_has_less_bias(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(400, 20)), rng.normal(size=(400, 20))  # true distance 0
    biased, extrapolated = frechet(a, b).value, frechet_at_infinity(a, b, rng)
    assert biased > 0.4
    assert abs(extrapolated.value) < 0.3 * biased
    assert 0 < extrapolated.std < biased
    with pytest.raises(DataError, match="at least 16 images"):
        frechet_at_infinity(a[:9], b, rng)


def test_the_papers_test_and_stars() -> None:
    found = unpaired_difference([1.0, 2.0, 3.0], [5.0, 6.0, 7.0])
    assert found.mean == -4 and found.effect == pytest.approx(-4)
    assert found.p == pytest.approx(0.008049893, rel=1e-5)  # t = −4 / √(2/3), 4 degrees of freedom
    assert [stars(p) for p in (0.2, 0.04, 0.009, 0.0009, float("nan"))] == ["", "", "*", "**", ""]
    assert np.isnan(unpaired_difference([1.0], [2.0, 3.0]).p)


def test_benjamini_hochberg_by_hand() -> None:
    adjusted = benjamini_hochberg([0.01, float("nan"), 0.04, 0.03])
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.04, 0.04])


def test_the_interval_of_a_mean_covers_it(rng: np.random.Generator) -> None:
    low, high = bootstrap_interval(rng.normal(2, 1, 200).tolist(), rng)
    assert low < 2 < high and high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.2)
    skewed = rng.exponential(1, 12)
    low, high = bootstrap_interval(skewed, rng)
    assert high - skewed.mean() > skewed.mean() - low  # BCa leans to the long tail
    assert np.isnan(bootstrap_interval([1.0, 2.0, 4.0, 8.0, 16.0], rng)).all()
    assert np.isnan(bootstrap_interval([3.0] * 9, rng)).all()
