"""A report's sentences and tests: each verdict from the adjusted tests, and nothing that hides a failure."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from morphoray.evaluation.caveats import caveats
from morphoray.evaluation.comparisons import Comparison, comparison_cells, comparisons, verdict
from morphoray.evaluation.distances import Distance
from morphoray.evaluation.paper_form import PAPER_NOTE
from morphoray.evaluation.report import PerturbationResult, ReportData, RunFacts, markdown
from morphoray.evaluation.words import FITTED, ONE_RUN, SAME_IMAGES, Judgement, summary
from morphoray.pipelines.demo import Plan, _outlook

IMAGE = np.zeros((1, 3, 8, 8), np.uint8)
SPREAD = (0, 1, 2, 1, 0, 2, 1)  # keeps differences from being all one number


def result(name: str, frechet: Mapping[str, float], **more: object) -> PerturbationResult:
    """With kernel distances of a thousandth, unless they are given."""
    kid = more.pop("kid", {method: value / 1000 for method, value in frechet.items()})
    metrics = {"frechet": frechet, "kid": kid, **more.pop("metrics", {})}  # type: ignore[dict-item]
    distances = {
        metric: {method: Distance(value, 24, 24) for method, value in found.items()}
        for metric, found in metrics.items()
    }
    return PerturbationResult(name, IMAGE, distances, **more)  # type: ignore[arg-type]


def report(results: Sequence[PerturbationResult], **more: object) -> ReportData:
    given: dict[str, object] = {
        "title": "t",
        "experiment": "e",
        "facts": RunFacts(1, 1),
        "perturbations": results,
        "losses": {},
        "extractor": "efficientnet_lite0",
        "weights_hash": "0123456789abcdef",
        "mode": "clean-224",
        "seed": 7,
        "made_by": "feedbeef00000000",
        "data_statement": "Simulated.",
    }
    return ReportData(**(given | more))  # type: ignore[arg-type]


def judged(data: ReportData, rival: str = "unconditional", column: int = 0) -> Judgement:
    found = summary(data).verdicts[rival][column]
    assert found is not None
    return found


def models(number: int, ahead: float) -> dict[str, float]:
    """The conditional model about so much nearer than the unconditional one."""
    return {"conditional": 20 + number, "unconditional": 20 + number + ahead + SPREAD[number % 7]}


def test_a_verdict_needs_both_distances() -> None:
    ahead = {number: models(number, 10) for number in range(7)}
    level = {"conditional": 0.02, "unconditional": 0.02}
    kernels = {
        "lie closer to the real ones than": [{}] * 7,
        "no clear difference": [{"kid": level | {"conditional": 0.02 + (-1) ** n / 500}} for n in ahead],
        "two distances disagree": [{"kid": level | {"unconditional": 0.01 - n / 1000}} for n in ahead],
    }
    for words, more in kernels.items():
        results = [result(f"c{n}", found, **more[n]) for n, found in ahead.items()]
        told = summary(report(results))
        assert (
            words in told.lead[0] and len(told.lead) == 1 and told.lead[0].startswith("Seen perturbations: ")
        )
    behind = report([result(f"c{number}", models(number, -12)) for number in range(7)])
    assert "lie further from the real ones than the unconditional model's" in summary(behind).lead[0]
    assert judged(behind).words == "further"
    few = report([result(f"c{number}", models(number, 10)) for number in range(5)])
    assert "too few perturbations for a verdict" in summary(few).lead[0] and "takes 6" in summary(few).lead[0]
    assert judged(few).words == "too few to tell"
    lone = report([result(f"c{n}", found, metrics={"kid": {}}) for n, found in ahead.items()])
    lone = dataclasses.replace(
        lone,
        perturbations=[
            dataclasses.replace(each, distances={"frechet": each.distances["frechet"]})
            for each in lone.perturbations
        ],
    )
    assert judged(lone).words == "no clear difference"
    assert judged(lone).figures == ["Fréchet 23.0 against 34.0", "closer on 7 of 7 perturbations"]


def test_verdicts_stand_in_the_adjusted_table_without_controls_or_pooling() -> None:
    results = [result("dmso", {"conditional": 90, "unconditional": 10}, is_control=True)]
    results += [result(f"c{n}", models(n, 10)) for n in range(7)]
    results += [result(f"u{n}", models(n, 30), unseen=True) for n in range(7)]
    data = report(results)
    rows = comparisons(data)
    assert [(row.cell.label, row.metric) for row in rows] == [
        (label, metric) for label in ("seen", "unseen") for metric in ("frechet", "kid")
    ]
    # Without the control: 10 + (0, 1, 2, 1, 0, 2, 1), mean 11.
    assert (rows[0].paired.mean, rows[0].paired.n, rows[0].treatments) == (-11, 7, 7)
    adjusted = stats.false_discovery_control([row.paired.p for row in rows])
    assert [row.adjusted for row in rows] == pytest.approx(list(adjusted))
    told = summary(data)
    assert told.lead == [
        "Seen and unseen perturbations: the conditional model's images lie closer to the real ones than the "
        "unconditional model's."
    ]
    assert told.head[1:] == ["Seen perturbations", "Unseen perturbations"] and told.notes == [ONE_RUN]
    # Means over the treatments alone: 20 … 26 and 31 … 37, or 20 … and 51 ….
    counted = "closer on 7 of 7 perturbations"
    assert judged(data).figures == ["Fréchet 23.0 against 34.0", "kernel 0.0230 against 0.0340", counted]
    unseen = judged(data, column=1)
    assert unseen.figures == ["Fréchet 23.0 against 54.0", "kernel 0.0230 against 0.0540", counted]


def test_perturbations_of_one_mechanism_count_once() -> None:
    moas = ("a", "a", "a", "a", "b", "c", "d", "e", None)
    results = [
        result(f"c{n}", {"conditional": 10, "unconditional": 12 if moa == "a" else 13 + n}, moa=moa)
        for n, moa in enumerate(moas)
    ]
    row = comparisons(report(results))[0]
    # Differences by mechanism: a −2, b … e −7 … −10, and the one without: −11.
    assert (row.paired.n, row.treatments, row.groups) == (6, 9, "mechanisms")
    assert row.paired.mean == pytest.approx(-(2 + 7 + 8 + 9 + 10 + 11) / 6)
    assert row.paired.p == pytest.approx(stats.ttest_1samp([-2, -7, -8, -9, -10, -11], 0).pvalue)
    assert judged(report(results)).figures[-1] == "closer on 6 of 6 mechanisms (9 perturbations)"
    doses = [result(f"d{n}", models(n, 10), smiles=f"C{n // 2}") for n in range(8)]
    row = comparisons(report(doses))[0]
    assert (row.paired.n, row.counted) == (4, "4 compounds or genes")
    assert comparisons(report(doses[:2]))[0].counted == "1 compound or gene"


def test_only_pairs_are_compared() -> None:
    results = [result(f"c{n}", {"conditional": 20 + n, "copy_control": 30 + n + SPREAD[n]}) for n in range(6)]
    results.append(result("c6", {"conditional": 500}))
    data = report(results, models=("conditional",))
    row = comparisons(data)[0]
    ours, theirs = [20, 21, 22, 23, 24, 25], [30, 32, 34, 34, 34, 37]
    assert (row.rival, row.paired.first, row.paired.second) == ("copy_control", 22.5, 33.5)
    assert row.paper.p == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert f"n = {row.treatments}" in comparison_cells(data, row)[7] and row.treatments == 6
    assert judged(data, "copy_control").figures[0] == "Fréchet 22.5 against 33.5"
    assert "than real controls" in summary(data).lead[0], "the only rival leads"


def test_few_pairs_have_no_interval() -> None:
    def interval(count: int) -> str:
        data = report([result(f"c{n}", models(n, 10)) for n in range(count)])
        assert sum("of fewer a dash" in text for text in caveats(data)) == 1
        return comparison_cells(data, comparisons(data)[0])[4]

    assert interval(5) == "–"
    assert "−" in interval(6) and " to " in interval(6)


def test_little_diversity_is_said() -> None:
    def told(recall: Mapping[str, float]) -> str:
        found = [result("c", models(0, 10), metrics={"recall": recall})]
        return " ".join(summary(report(found)).notes)

    text = told({"conditional": 0.02, "unconditional": 0.05, "floor": 0.95})
    assert "little diversity" in text
    assert "recall 0.0200 (real images 0.950, the unconditional model's 0.0500)" in text
    assert "recall" not in told({"conditional": 0.85, "unconditional": 0.9, "floor": 0.95})
    text = told({"conditional": 0.8, "unconditional": 0.9, "floor": 0.95})
    assert "cover fewer of the real ones than another model's" in text and "little diversity" not in text
    assert "recall" not in told({"conditional": 0.9, "unconditional": 0.8, "floor": 0.95})
    assert "recall" not in told({"conditional": 0.9})


def test_recognition_is_said_as_the_table_has_it() -> None:
    shares = {"conditional": 0.5, "unconditional": 0.1, "floor": 0.9}
    results = [result(f"c{n}", models(n, 10), metrics={"recognised": shares}) for n in range(3)]
    control = {"recognised": {"conditional": 1.0, "unconditional": 0.5, "floor": 0.5}}
    results.append(result("dmso", models(0, 10), is_control=True, metrics=control))
    (text,) = [each for each in summary(report(results)).notes if "classifier" in each]
    assert text == (
        "A linear classifier taught on real images takes 62 % of the conditional model's images for the "
        "right perturbation (the unconditional model's 20 %, other real images 80 %, chance 25 %)."
    )
    new = summary(report([dataclasses.replace(results[0], unseen=True), *results[1:]])).notes
    assert any("62 % of the conditional model's images, 50 % of those of unseen pert" in each for each in new)
    alone = summary(report(results[-1:]))
    assert alone.lead[0].startswith("No verdict") and not alone.verdicts and ONE_RUN not in alone.notes
    both = [dataclasses.replace(each, batches=name) for name in ("seen", "held_out") for each in results]
    notes = summary(report(both)).notes
    starts = [each[: each.index(":")] for each in notes if "classifier" in each]
    assert starts == ["Seen batches", "Held-out batches"]


def test_likely_copies_are_said() -> None:
    def told(*shares: float) -> str:
        found = [
            result(f"c{n}", models(0, 10), metrics={"nearest_training_share": {"conditional": share}})
            for n, share in enumerate(shares)
        ]
        return " ".join(summary(report(found)).notes)

    images = "of the conditional model's images are likely copies of training images"
    assert f"20 % {images} (30 % of those of c1)" in told(0.1, 0.3)
    assert "copies" not in told(0.02)
    assert f"3 % {images} (30 % of those of c4)" in told(*[0.0] * 4, 0.3, *[0.0] * 5), "one of ten"
    rival = {"nearest_training_share": {"conditional": 0.01, "unconditional": 0.9}}
    (text,) = [
        each
        for each in summary(report([result("c", models(0, 10), metrics=rival)])).notes
        if "copies" in each
    ]
    assert text.startswith("90 % of the unconditional model's images are likely copies")


def test_images_nearer_to_real_ones_than_real_ones_are_is_said() -> None:
    def told(ours: float) -> list[str]:
        distances = {"conditional": 60.0, "unconditional": ours, "floor": 80.0}
        found = [result("c", dict(distances)), result("dmso", dict(distances), is_control=True)]
        return [each for each in summary(report(found)).notes if "themselves" in each]

    (_, second) = told(65)
    assert second == (
        "The unconditional model's images lie closer to the real ones (Fréchet 65.0) than other real images "
        "do (80.0): are they the real ones themselves, or crops of the same fields?"
    )
    assert len(told(75)) == 1, "by chance"


def test_one_verdict_on_many_rivals_is_one_sentence() -> None:
    names = ("conditional", "impa", "phendiff", "near")
    results = [
        result(
            f"c{n}",
            {"conditional": 20.0 + n, "impa": 40.0 + n * n, "phendiff": 50.0 + 2 * n, "near": 10.0 + 1.5 * n},
            kid={
                "conditional": 0.1,
                "impa": 0.2 + n / 100,
                "phendiff": 0.3 + n / 200,
                "near": 0.05 + n / 300,
            },
        )
        for n in range(8)
    ]
    lead = summary(report(results, models=names)).lead
    assert [each.partition(": ")[2] for each in lead] == [
        "the conditional model's images lie closer to the real ones than any of impa's and phendiff's.",
        "the conditional model's images lie further from the real ones than near's.",
    ]


def test_a_nearer_other_perturbation_is_said() -> None:
    def told(other: float, kernel: float, ours: float = 0.02) -> Judgement:
        found = [
            result(
                f"c{n}",
                {"conditional": 20 + n, "other_perturbation": other + 2 * n},
                kid={"conditional": ours + n / 1000, "other_perturbation": kernel + 3 * n / 1000},
            )
            for n in range(6)
        ]
        return judged(report(found, models=("conditional",)), "other_perturbation")

    nearer = told(10, 0.01)
    assert nearer.words == "further"
    assert (
        nearer.figures[0] == "Fréchet 22.5 against 15.0"
        and nearer.figures[-1] == "closer on 0 of 6 perturbations"
    )
    apart = told(30, 0.01)
    assert apart.words == "distances disagree"
    assert apart.figures[-1] == "closer on 6 (Fréchet) and 0 (kernel) of 6 perturbations"
    assert told(30, 0.03).words == "closer"


def test_what_the_real_images_are_is_said() -> None:
    results = [
        result(
            f"{batches}{n}",
            models(n, 10) | {"floor": 8.0 if batches == "seen" else 9.0, "codec": 12.0},
            batches=batches,
            unseen=n > 2,
        )
        for batches in ("seen", "held_out")
        for n in range(6)
    ]
    told = summary(report(results))
    assert told.lead[0].startswith(
        "Seen and unseen perturbations in seen batches and held-out batches: too few perturbations"
    )
    assert told.head[1:] == [
        "Seen perturbations in seen batches",
        "Unseen perturbations in seen batches",
        "Seen perturbations in held-out batches",
        "Unseen perturbations in held-out batches",
    ]
    assert told.notes[-3:] == [FITTED, SAME_IMAGES, ONE_RUN]
    floor = "two disjoint sets of 24 real images lie 8.00 (seen batches) and 9.00 (held-out batches) apart"
    assert floor in told.notes[0] and "no bounds" in told.notes[0]
    alone = summary(report([dataclasses.replace(each, batches="held_out") for each in results]))
    assert not {FITTED, SAME_IMAGES} & {*alone.notes} and ONE_RUN in alone.notes
    unjudged = summary(report([result("c", {"conditional": 20.0}, batches="seen")], models=("conditional",)))
    assert not unjudged.verdicts and not {FITTED, ONE_RUN} & {*unjudged.notes}
    everything = markdown(report(results))
    assert "expected to come closer" not in everything and "the best denoiser" not in everything


def test_how_to_read_the_distances_is_said() -> None:
    data = report([result(f"c{n}", models(n, 10)) for n in range(6)])
    subsets = {"conditional": Distance(0.02, 20, 20, 0.01, 100, 0.001, 0.039)}
    shown = [
        dataclasses.replace(each, distances={**each.distances, "kid": subsets}) for each in data.perturbations
    ]
    assert any("no error bar of the distance" in text for text in caveats(report(shown)))
    assert "it favours sets of little diversity" in caveats(data)[0]
    assert "Welch's form is our reading" in PAPER_NOTE


def test_a_verdict_of_opposite_signs_without_a_small_p_is_unclear() -> None:
    def row(metric: str, sign: int) -> Comparison:
        values = {"conditional": 20.0}
        results = [
            result(f"c{n}", values | {"unconditional": 20 + sign * ((-1) ** n * 5 + 0.1)}) for n in range(8)
        ]
        found = {each.metric: each for each in comparisons(report(results))}
        return found[metric]

    assert verdict([row("frechet", 1), row("kid", -1)]) == "unclear"


def test_the_demo_tells_a_trend_only_beyond_its_noise() -> None:
    plan = Plan(10, 100, 80, 2, 400)
    noise = np.random.default_rng(0).normal(0, 0.05, 400)

    def told(drop: float) -> str:
        curve = [(step, 0.74 + noise[step - 1] - drop * (step > 300)) for step in range(10, 401, 10)]
        return _outlook(plan, 32, curve)

    assert "loss went" not in told(0.0) and "DEMO_MINUTES=60" in told(0.0)
    assert "loss went from" in told(0.3) and "standard error of the change" in told(0.3)
    assert "importing, encoding and both trainings, before images were generated" in told(0.0)
    assert "loss went" not in _outlook(plan, 32, [(400, 0.7)])
