"""The report: complete, self-contained, safe against hostile names, the same bytes for the same data."""

import base64
import csv
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from morphoray import schema
from morphoray.errors import DataError
from morphoray.evaluation import charts
from morphoray.evaluation.comparisons import compare_models, comparisons
from morphoray.evaluation.distances import Distance
from morphoray.evaluation.report import PerturbationResult, ReportData, RunFacts, markdown, write_report
from morphoray.evaluation.results import duration, figure
from morphoray.evaluation.words import caveats, summary
from morphoray.imaging.png import decode_png
from morphoray.storage import Storage

HOSTILE = '<script>alert("x")</script>&amp; | `a`'
VOID = {"meta", "img", "br"}


def images(shade: int, count: int = 8, size: int = 16) -> np.ndarray:
    return np.random.default_rng(shade).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def result(name: str, conditional: float, unconditional: float, **more: object) -> PerturbationResult:
    found = {"conditional": conditional, "unconditional": unconditional, "codec": 12.0, "floor": 8.0}
    given: dict[str, object] = {
        "perturbation_id": name,
        "real": images(1),
        "distances": {
            "frechet": {method: Distance(value, 24, 24) for method, value in found.items()},
            "kid": {method: Distance(value / 1000, 24, 24) for method, value in found.items()},
        },
        "images": {
            "conditional": images(2),
            "unconditional": images(3, size=600),
            "codec": images(4, count=3),
        },
    }
    return PerturbationResult(**(given | more))  # type: ignore[arg-type]


@pytest.fixture
def data() -> ReportData:
    return ReportData(
        title=f"A demo of {HOSTILE}",
        experiment="demo",
        facts=RunFacts(2400, 153_600, 462, 81.3, "More steps bring more.", {"Preset": HOSTILE}),
        perturbations=[
            result("dmso", 20, 30, is_control=True),
            result("taxol", 21, 29, moa="Microtubule stabilizers", smiles="C/C=C\\C", concentration_um=0.3),
            result(HOSTILE, 22, 33, moa=HOSTILE, smiles=HOSTILE, gene=HOSTILE),
            result("epothilone-b", 25, 24, unseen=True),
        ],
        losses={
            HOSTILE: [(step, 1 / step) for step in range(1, 2000)],
            "unconditional": [(1, 1.0), (2, 0.5)],
        },
        extractor="efficientnet_lite0",
        weights_hash="0123456789abcdef",
        mode="clean-224",
        seed=7,
        made_by="feedbeef00000000",
        data_statement=f"These images are simulated. {HOSTILE}",
        notes=[HOSTILE],
    )


class Page(HTMLParser):
    """Checks that tags are balanced and collects text, elements and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def html(data: ReportData, tmp_path: Path) -> str:
    return Path(write_report(data, str(tmp_path / "report"), Storage())).read_text(encoding="utf-8")


def test_page_is_whole_and_shows_every_perturbation(html: str, data: ReportData) -> None:
    page = Page(html)
    text = "".join(page.text)
    for shown in data.perturbations:
        assert text.count(shown.perturbation_id) >= 3  # a dot row, a montage, a row of numbers
    assert text.count("Unseen in training") == 2  # the group of dots, and the badge of the one that is
    for word in ("2,400", "153,600", "7 min 42 s", "More steps bring more.", "0123456789abcdef", "N = 24"):
        assert word in text


def test_page_refers_to_nothing_outside(html: str) -> None:
    assert not re.search(r"https?:|[\"'(]//|@import|url\(|<script|<link|<iframe|javascript:", html)
    page = Page(html)
    sources = [
        value for tag, name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")
    ]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_hostile_names_stay_text(html: str, data: ReportData) -> None:
    page = Page(html)
    assert "script" not in {tag for tag, _, _ in page.attributes} and "<script" not in html
    assert HOSTILE in "".join(page.text)
    assert any(HOSTILE in value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert "<script" not in markdown(data) and "\n| &lt;script" in markdown(data)


def test_pictures_are_the_images_given(html: str, data: ReportData) -> None:
    found = [decode_png(base64.b64decode(part)) for part in re.findall(r'base64,([^"]+)"', html)]
    assert len(found) == 4 * (8 + 8 + 3 + 8)
    assert np.array_equal(found[0], data.perturbations[0].real[0])
    assert max(image.shape[1] for image in found) == 192  # the 600-pixel ones are stored smaller
    assert 'class="crisp"' in html


def test_files_carry_the_numbers(data: ReportData, tmp_path: Path) -> None:
    storage, out = Storage(), str(tmp_path / "report")
    write_report(data, out, storage)
    table = storage.read_table(f"{out}/metrics.parquet")
    schema.check_stamp(table.schema.metadata, data.made_by, "metrics")
    assert schema.conform(table, schema.METRICS, "metrics").num_rows == 4 * 2 * 4
    rows = list(csv.DictReader(io.StringIO(storage.read_text(f"{out}/metrics.csv"))))
    assert rows[0] | {"value": float(rows[0]["value"])} == {
        "experiment": "demo",
        "method": "conditional",
        "perturbation_id": "dmso",
        "metric": "frechet",
        "value": 20.0,
        "n_real": "24",
        "n_generated": "24",
        "extractor": "efficientnet_lite0@0123456789abcdef",
        "mode": "clean-224",
        "seed": "7",
    }
    sheet = decode_png(storage.read_bytes(f"{out}/montage.png"))
    assert sheet.shape == (3, 4 * 18 - 2, 17 * 18 - 2)
    assert np.array_equal(sheet[:, :16, :16], data.perturbations[0].real[0])
    text = storage.read_text(f"{out}/report.md")
    assert "| taxol | Microtubule stabilizers |  | 24 | 21.0 | 29.0 | 12.0 | 8.00 |" in text
    # Mean of the conditional model: (20 + 21 + 22 + 25) / 4 = 22, seen (20 + 21 + 22) / 3 = 21, unseen 25.
    assert "| Conditional model | 22.0 | 21.0 | 25.0 |" in text


def test_same_data_give_the_same_bytes(data: ReportData, tmp_path: Path) -> None:
    pages = [Path(write_report(data, str(tmp_path / name), Storage())).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_summary_says_what_was_measured(data: ReportData) -> None:
    # Differences −10, −8, −11, +1: the mean is −7, and three of four are below 0.
    difference = compare_models(data, "unconditional")
    assert difference is not None and (difference.mean, difference.first_smaller) == (-7, 3)
    text = " ".join(summary(data))
    assert "22.0 against 29.0" in text and "on 3 of 4 perturbations" in text
    assert "on 0 of 1 (mean 25.0 against 24.0)" in text
    assert "24 real images already lie 8.00 apart" in text and "simulated" in text
    worse = [result(str(index), 30 + index, 20) for index in range(6)]
    assert "does not help" in summary(dataclasses.replace(data, perturbations=worse))[0]
    equal = [result(str(index), 20 + (-1) ** index, 20) for index in range(6)]
    assert "no clear difference" in summary(dataclasses.replace(data, perturbations=equal))[0]
    assert any("efficientnet_lite0, weights 0123456789abcdef" in text for text in caveats(data))


def test_models_are_compared_pair_by_pair_and_as_the_paper_does(data: ReportData) -> None:
    # Differences −10, −8, −11, +1; scipy's Welch test of 20, 21, 22, 25 and 30, 29, 33, 24 gives 0.0243.
    first = comparisons(data)[0]
    assert (first.metric, first.rival, first.paired.mean) == ("frechet", "unconditional", -7)
    assert first.paired.p <= first.adjusted < 0.1
    assert first.paper.p == pytest.approx(0.0243, abs=1e-4)
    assert "| Fréchet distance | Unconditional model | −7.00 |" in markdown(data)
    assert "0.0243 *" in markdown(data)


def test_any_number_of_methods_and_baselines_make_a_report(data: ReportData, tmp_path: Path) -> None:
    other = "IMPA <b>"
    models = [*data.models, other]
    found = {name: Distance(20 + 5 * index, 24, 24) for index, name in enumerate(models)}
    baselines = ("copy_control", "other_perturbation", "trained", "floor")
    found |= {name: Distance(15, 24, 24) for name in baselines}
    ranks = {name: Distance(1 + index, 24, 24) for index, name in enumerate(models)}
    results = [
        result(name, 20, 25, distances={"frechet": found, "rank": ranks}) for name in ("a", "b", "c", "d")
    ]
    many = dataclasses.replace(data, perturbations=results, models=models, excluded={"e": "3 real images"})
    page = Path(write_report(many, str(tmp_path), Storage())).read_text(encoding="utf-8")
    text = "".join(Page(page).text)
    for shown in (
        other,
        "Copy control",
        "Which real cohort lies nearest?",
        "Is the difference real?",
        "e (3 real",
    ):
        assert shown in text
    assert "further from the real images than the copy control" in text
    assert comparisons(many)[1].rival == other


def test_one_method_alone_makes_a_report(data: ReportData, tmp_path: Path) -> None:
    lone = PerturbationResult("only", images(1, count=2), {"frechet": {"floor": Distance(5, 2, 2)}})
    bare = dataclasses.replace(data, perturbations=[lone], losses={}, notes=())
    page = Path(write_report(bare, str(tmp_path), Storage())).read_text(encoding="utf-8")
    assert "No losses were recorded" in page and "Generated: none" in page
    Page(page)


def test_data_that_make_no_report_are_refused(data: ReportData) -> None:
    with pytest.raises(DataError, match="no perturbations"):
        dataclasses.replace(data, perturbations=[])
    wrong = PerturbationResult("x", images(1), {"fid": {"ours": Distance(1, 2, 2)}})
    with pytest.raises(DataError, match=r"metrics \['fid'\] and methods \['ours'\]"):
        dataclasses.replace(data, perturbations=[wrong])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (152.34, "152"),
        (90.04, "90.0"),
        (0.0867, "0.0867"),
        (-0.000002, "0.0000"),
        (-11.4, "−11.4"),
        (12345, "12,345"),
        (None, "–"),
        (float("nan"), "–"),
        (0, "0.0000"),
    ],
)
def test_figure(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_duration() -> None:
    assert [duration(seconds) for seconds in (41.7, 462, 11_100)] == ["42 s", "7 min 42 s", "3 h 5 min"]
    assert duration(None) == "–"


def test_ticks_and_smoothing() -> None:
    assert charts.linear_ticks(0, 203, 8) == [0, 50, 100, 150, 200, 250]
    assert charts.linear_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.log_ticks(0.15, 1.2) == pytest.approx([0.2, 0.5, 1])
    assert np.allclose(charts.smooth(np.full(300, 0.7)), 0.7)
    assert charts.loss_chart({"a": [(1, float("nan")), (2, 0.0)]}) == ""
    Page(charts.loss_chart({"a": [(1, 0.5)]}))
