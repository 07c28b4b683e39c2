"""The report: complete, self-contained, safe against hostile names, the same bytes for the same data."""

import base64
import csv
import dataclasses
import io
import itertools
import math
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from morphoray import schema
from morphoray.errors import DataError
from morphoray.evaluation import charts
from morphoray.evaluation import marks as marks_of
from morphoray.evaluation.caveats import caveats
from morphoray.evaluation.comparisons import comparisons
from morphoray.evaluation.distances import Distance
from morphoray.evaluation.montage import montage, row_label
from morphoray.evaluation.novelty import COSINE, TANIMOTO, Novelty
from morphoray.evaluation.page import RECONSTRUCTED, render
from morphoray.evaluation.report import PerturbationResult, ReportData, RunFacts, markdown, write_report
from morphoray.evaluation.results import BASELINES, METRICS, cells, duration, figure, metrics_table
from morphoray.evaluation.trust import trust_sentences, trusts
from morphoray.evaluation.words import summary
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


def test_a_molecule_is_no_link_in_markdown(data: ReportData) -> None:
    named = dataclasses.replace(data.perturbations[0], perturbation_id="C[N+](C)C/C=C\\C*")
    text = markdown(dataclasses.replace(data, perturbations=[named, *data.perturbations[1:]]))
    assert "\n| C\\[N+\\](C)C/C=C\\\\C\\* |" in text


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
        "unseen": "false",
        "metric": "frechet",
        "value": 20.0,
        "n_real": "24",
        "n_generated": "24",
        "extractor": "efficientnet_lite0@0123456789abcdef",
        "mode": "clean-224",
        "seed": "7",
    }
    assert {row["perturbation_id"] for row in rows if row["unseen"] == "true"} == {"epothilone-b"}
    sheet = decode_png(storage.read_bytes(f"{out}/montage.png"))
    named = sheet.shape[2] - (26 * 18 - 2)  # pixels of the rows' names
    assert named > 100
    assert sheet.shape[:2] == (3, 22 + 4 * 18 - 2 + 22)  # captions, four rows, the scale bars' note
    sheet = sheet[:, 22:, named:]
    assert np.array_equal(sheet[:, :16, :16], data.perturbations[0].real[0])
    assert np.array_equal(sheet[:, :16, 9 * 18 : 9 * 18 + 16], data.perturbations[0].images["conditional"][0])
    text = storage.read_text(f"{out}/report.md")
    assert "| taxol | Microtubule stabilizers |  | 24 | 21.0 | 29.0 | 12.0 | 8.00 |" in text
    # Mean of the conditional model: (20 + 21 + 22 + 25) / 4 = 22, seen (20 + 21 + 22) / 3 = 21, unseen 25.
    assert "| Conditional model | 22.0 | 21.0 | 25.0 |" in text


@pytest.fixture
def grouped(data: ReportData) -> ReportData:
    """Six seen and five unseen compounds in seen and held-out batches; errors grow with both."""
    results = []
    for batches, more in (("seen", 0), ("held_out", 10)):
        for number in range(11):
            unseen = number >= 6
            nearest = Novelty("taxol", (number - 5) / 10, TANIMOTO) if unseen else None
            ours = 20 + number + more
            results.append(
                result(
                    f"c{number}", ours, ours + 5 + number % 3, batches=batches, unseen=unseen, nearest=nearest
                )
            )
    return dataclasses.replace(data, perturbations=results, notes=[])


def test_seen_and_unseen_stand_beside_seen_and_held_out_batches_in_every_table(
    grouped: ReportData, tmp_path: Path
) -> None:
    labels = [
        "seen in seen batches",
        "unseen in seen batches",
        "seen in held-out batches",
        "unseen in held-out batches",
    ]
    assert [cell.label for cell in cells(grouped)] == labels
    text = markdown(grouped)
    head, _, first = next(part for part in text.split("\n\n") if "| method |" in part).splitlines()[:3]
    assert head == f"| method | {' | '.join(labels)} |"
    # Means of 20 … 25 and of 26 … 30, and of these ten more.
    assert first.startswith("| Conditional model | 22.5 | 28.0 | 32.5 | 38.0 |")
    assert "| c9 |  | unseen | held-out batches | 24 | 39.0 |" in text
    compared = {row.cell.label: row for row in comparisons(grouped) if row.metric == "frechet"}
    assert [compared[label].paired.n for label in labels] == [6, 5, 6, 5]
    # Differences 5 + (0, 1, 2, 0, 1, 2) and 5 + (0, 1, 2, 0, 1).
    assert [compared[label].paired.mean for label in labels] == pytest.approx([-6, -5.8, -6, -5.8])
    page = Page(Path(write_report(grouped, str(tmp_path), Storage())).read_text(encoding="utf-8"))
    shown = "".join(page.text)
    for label in labels:
        assert shown.count(label) >= 2  # the means and the comparisons
    assert shown.count("Unseen in training") == 2 + 5  # a chart a group, and a badge each unseen compound
    rows = metrics_table(grouped).to_pylist()
    assert {row["experiment"] for row in rows} == {"demo/seen", "demo/held_out"}
    kinds = [f"{label[0].upper()}{label[1:].replace(' in', ' perturbations in')}" for label in labels]
    assert summary(grouped).head == ["The conditional model's images, against", *kinds]
    for kind in kinds:
        assert kind in shown and kind in text


def test_error_against_distance_from_training(grouped: ReportData, tmp_path: Path) -> None:
    seen, held_out = trusts(grouped)
    assert (seen.batches, held_out.batches, seen.kind) == ("seen", "held_out", TANIMOTO)
    assert seen.distances == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]) and seen.errors == [26, 27, 28, 29, 30]
    assert (seen.correlation.rho, seen.correlation.n) == (pytest.approx(1), 5)
    told = trust_sentences(grouped)
    assert (
        "the further from what was trained on, the larger the error" in told[0]
        and "p = 0.0167, n = 5" in told[0]
    )
    page = Path(write_report(grouped, str(tmp_path), Storage())).read_text(encoding="utf-8")
    text = "".join(Page(page).text)
    assert "Where can the model be trusted?" in text and "c9: 39.0 at 0.40" in text
    assert "| c6 | held-out batches | taxol | 0.10 (1 − Tanimoto) | 36.0 | 8.00 |" in markdown(grouped)


@pytest.mark.parametrize(
    ("distances", "word"),
    [
        ([None, None], "2 unseen perturbations have no distance to training"),
        ([0.5], "too few (5 are needed) to tell"),
        ([0.1, 0.2, 0.3, 0.4], "too few (5 are needed) to tell"),
        ([0.5, 0.5, 0.5, 0.5, 0.5], "too equal to tell"),
        ([0.1, 0.4, 0.3, 0.2, 0.25], "no clear relation"),
    ],
)
def test_too_few_distances_are_told(data: ReportData, distances: list[float | None], word: str) -> None:
    results = [
        result(
            f"c{number}",
            20 + number % 2,
            30,
            unseen=True,
            nearest=None if distance is None else Novelty("taxol", distance, COSINE),
        )
        for number, distance in enumerate(distances)
    ]
    few = dataclasses.replace(data, perturbations=results)
    told = trust_sentences(few)[0]
    assert word in told and ("ρ" in told) == (word == "no clear relation")
    assert word in "".join(Page(render(few)).text) and word in markdown(few)


def test_the_papers_table_in_its_form(data: ReportData) -> None:
    assert "In the paper's form" not in markdown(data)
    values = {
        "conditional": (100, 110, 105, 108),
        "unconditional": (140, 152, 149, 160),
        "IMPA": (300, 200, 400, 100),
    }
    results = [
        result(
            f"c{number}",
            20,
            30,
            distances={
                "frechet": {name: Distance(20, 24, 24) for name in values},
                "frechet_paper": {name: Distance(found[number], 500, 500) for name, found in values.items()},
                "kid_paper": {name: Distance(0.05, 500, 500) for name in values},
            },
        )
        for number in range(4)
    ]
    paper = dataclasses.replace(data, perturbations=results, models=tuple(values))
    # Welch's test of 100, 110, 105, 108 and 140, 152, 149, 160: t = −9.27, p = 0.0005; 0.05 and 0.05: none.
    assert r"| demo | Conditional model | 500 | **1.06\*\*** | 0.0500 |" in markdown(paper)
    assert "| demo | Unconditional model | 500 | 1.50 | 0.0500 |" in markdown(paper)
    html = render(paper)
    assert "<b>1.06**</b>" in html and "In the paper&#x27;s form" in html
    assert any("the paper's way, not ours" in text for text in caveats(paper))


def test_scale_bars_where_a_pixels_size_is_known(data: ReportData, tmp_path: Path) -> None:
    known = [
        dataclasses.replace(each, um_per_pixel=0.65, real=images(1, size=64)) for each in data.perturbations
    ]
    bars = dataclasses.replace(data, perturbations=known)
    # 64 pixels are 41.6 µm; two fifths of them are 16.6, so the bar is 10 µm: 15.4 pixels, a 24.04 % of 64.
    page = render(bars)
    assert "Scale bar: 10 µm." in page and 'style="width:24.04%"' in page
    assert page.count('class="bar"') == len(known)
    sheet = decode_png(montage(bars))
    named = sheet.shape[2] - (26 * 66 - 2)
    first = sheet[:, 22 : 22 + 64, named : named + 64]
    bar = (first != known[0].real[0]).any(0)
    assert (first[:, bar] == 255).all(0).sum() >= 15 and bar[:32].sum() == 0
    page = render(data)
    assert "No scale bars: the data don&#x27;t tell" in page and 'class="bar"' not in page
    assert any("pixel_size_um" in text for text in caveats(data))


@pytest.mark.parametrize("side", [16, 64, 300])
def test_the_montages_rows_are_named(grouped: ReportData, side: int) -> None:
    names = [row_label(each) for each in grouped.perturbations]
    assert names[0] == ["c0", "seen batches"]
    assert names[-1] == ["c10", "held-out batches", "unseen in training"]
    long = row_label(dataclasses.replace(grouped.perturbations[0], perturbation_id="x" * 100))
    assert len(long[0]) == 32
    kept = [grouped.perturbations[index] for index in (0, 10, 11, 21)]  # seen, unseen; twice
    shown = [dataclasses.replace(each, real=images(1, size=side)) for each in kept]
    sheet = decode_png(montage(dataclasses.replace(grouped, perturbations=shown)))
    column = sheet[:, :, : sheet.shape[2] - (26 * (side + 2) - 2)]
    head = (sheet.shape[1] - 4 * (side + 2) + 2) // 2
    rows = [column[:, head + row * (side + 2) :][:, :side] for row in range(4)]
    assert all((row[0] < 128).any() and row[:, :, -3:].min() == 255 for row in rows)  # black text, none cut
    assert len({row.tobytes() for row in rows}) == 4
    assert (column[:, [head + side, head + side + 1]] == 255).all()  # none runs into the next row


@pytest.fixture
def nine(data: ReportData) -> ReportData:
    """Nine methods, each of one grey level, on two perturbations in two groups of batches."""
    models = ["conditional", *(f"a method with a long name {number}" for number in range(8))]
    shown = {name: np.full((8, 3, 32, 32), 20 * place, np.uint8) for place, name in enumerate(models)}
    shown["codec"] = images(4, size=32)
    found = {
        name: Distance(20 + place, 24, 24) for place, name in enumerate([*models, "copy_control", "codec"])
    }
    results = [
        result(
            name, 0, 0, distances={"frechet": found}, images=shown, real=images(1, size=32), batches=batches
        )
        for batches in ("seen", "held_out")
        for name in "ab"
    ]
    return dataclasses.replace(data, perturbations=results, models=models)


def test_every_methods_strip_is_on_the_generated_side(nine: ReportData) -> None:
    article = render(nine).split("<article>")[1].split("</article>")[0]
    large, small = (
        part.split("</figcaption>") for part in re.split(r'<div class="pair [a-z]+">', article)[1:]
    )
    captions = [
        [re.sub(r".*<figcaption>", "", part, flags=re.S) for part in found[:-1]] for found in (large, small)
    ]
    assert captions[0] == ["Real, seen batches", "Generated (Conditional model)"]
    assert captions[1] == [RECONSTRUCTED, "Real, held-out batches", *nine.models[1:]]
    left, right = article.split('<div class="pair small"><div>')[1].split("</figure></div><div>")
    assert left.count("<figure>") == 2 and right.count("<figure>") == 8
    assert "<header class=wide>" in article  # 11 distances stand below the name, in two tables
    assert [table.count("<th>") for table in article.split("<table class=scores>")[1:]] == [
        1 + 6 + 2,
        1 + 5 + 2,
    ]


def test_the_montage_shows_every_method_beside_the_real_images(nine: ReportData) -> None:
    sheet = decode_png(montage(nine))
    step = 9 * 34
    named = sheet.shape[2] - (10 * step - 36)
    for place in range(9):
        strip = sheet[:, 22 : 22 + 32, named + (place + 1) * step :][:, :, : 8 * 34 - 2]
        assert {*np.unique(strip)} == {20 * place, 255}  # and the white gaps
    heads = [sheet[:, :22, named + place * step :][:, :, :step] for place in range(9)]
    assert len({head.tobytes() for head in heads}) == 9
    assert all((head < 128).any() and head[:, :, -2:].min() == 255 for head in heads)  # named, none cut


def test_a_montage_of_many_large_images_is_shrunk(nine: ReportData) -> None:
    large = [dataclasses.replace(nine.perturbations[0], real=images(1, size=300), um_per_pixel=0.65)]
    sheet = decode_png(montage(dataclasses.replace(nine, perturbations=large)))
    assert 15_800 < sheet.shape[2] < 16_400
    # 300 pixels are 195 µm: the bar is 50 µm, 76.9 pixels of 300 and 45.4 of the 177 that are left.
    row = sheet[0, 22:-22][-10, :]
    named = sheet.shape[2] - (89 * 179 - 2)
    assert 44 <= (row[named : named + 177] == 255).sum() <= 48


def test_kernel_distances_have_their_interval(data: ReportData) -> None:
    kid = {"conditional": Distance(0.02, 20, 20, 0.01, 100, 0.001, 0.039), "floor": Distance(0.0, 20, 20)}
    shown = [
        dataclasses.replace(each, distances={**each.distances, "kid": kid}) for each in data.perturbations
    ]
    with_interval = dataclasses.replace(data, perturbations=shown)
    assert "0.0010 to 0.0390" in render(with_interval)
    text = markdown(with_interval)
    assert "## Kernel distance ↓, every perturbation" in text
    assert "| taxol | Microtubule stabilizers |  | 20 | 0.0200 (0.0010 to 0.0390) | – | – | 0.0000 |" in text
    for page in (
        "".join(Page(render(with_interval)).text),
        text,
    ):  # N of one metric is not that of the others
        assert (
            "Fréchet distances at N = 24 images" in page and "A Fréchet distance compares 24 with 24" in page
        )
        assert "All rows" not in page and "Every distance" not in page
    rows = {row["metric"]: row["value"] for row in metrics_table(with_interval).to_pylist()}
    assert (rows["kid_low"], rows["kid_high"]) == (0.001, 0.039) and "frechet_low" not in rows
    assert any("mean over 100 random subsets of 20 images" in text for text in caveats(with_interval))


def test_a_mean_over_fewer_perturbations_says_so(data: ReportData) -> None:
    assert "(1 of 2)" not in render(data) + markdown(data)
    first, second, *others = data.perturbations
    control = {"copy_control": Distance(121, 24, 24)}
    more = {metric: {**found, **control} for metric, found in second.distances.items()}
    shown = [first, dataclasses.replace(second, distances=more), *others]
    fewer = dataclasses.replace(data, perturbations=shown)
    # One of all four, one of the three seen ones, none of the one unseen.
    assert "| Copy control | 121 (1 of 4) | 121 (1 of 3) | – |" in markdown(fewer)
    assert "| Conditional model | 22.0 | 21.0 | 25.0 |" in markdown(fewer)
    table = render(fewer).split('<table class="headline">')[1]
    assert "<td>121 <span class=part>(1 of 4)</span></td><td>121 <span class=part>(1 of 3)" in table
    for text in ("".join(Page(render(fewer)).text), markdown(fewer)):
        assert text.count("(1 of 2): a mean over 1 of the 2 perturbations") == 1


def test_every_metric_has_its_direction_and_what_it_tells(grouped: ReportData) -> None:
    arrows = {"frechet": "↓", "precision": "↑", "recall": "↑", "density": "↑", "coverage": "↑", "rank": "↓"}
    assert {name: METRICS[name].title[-1] for name in arrows} == arrows
    every = {metric: {"conditional": Distance(1.0, 24, 24)} for metric in METRICS}
    shown = [dataclasses.replace(each, distances=every) for each in grouped.perturbations]
    data = dataclasses.replace(grouped, perturbations=shown)
    page, text = " ".join(Page(render(data)).text), markdown(data)
    for metric in METRICS.values():
        assert metric.heading in page and metric.means in page
        assert f"### {metric.heading}\n\n{metric.means}" in text
    # 11 perturbations in either group: the mean of 1 … 11 is 6.
    for shown_in in (page, text):
        assert "1 is right. Among 11 cohorts, where chance gives a mean of 6." in shown_in
        assert "little diversity. Among 11 perturbations, where chance gives 0.0909." in shown_in
    fewer = dataclasses.replace(data, perturbations=data.perturbations[1:])
    assert "10 cohorts, where chance gives a mean of 5.5 (seen batches); 11 cohorts" in markdown(fewer)


def test_ranks_are_whole_and_their_means_are_not(data: ReportData) -> None:
    ranks = [{"rank": {"conditional": Distance(rank, 24, 24)}} for rank in (1, 14, 3, 2)]
    pairs = zip(data.perturbations, ranks, strict=True)
    shown = [dataclasses.replace(each, distances={**each.distances, **rank}) for each, rank in pairs]
    ranked = dataclasses.replace(data, perturbations=shown)
    table = render(ranked).split("Rank of the matched real cohort ↓")[1].split("</table>")[0]
    assert re.findall(r"class=best>([^<]+)<", table) == ["1", "14", "3", "2"]
    # (1 + 14 + 3 + 2) / 4 = 5, of the seen ones 18 / 3 = 6.
    assert "| Conditional model | 5.00 | 6.00 | 2.00 |" in markdown(ranked)


def test_the_best_value_is_bold_whichever_model_has_it(html: str) -> None:
    table = html.split(f'class="of">{METRICS["frechet"].heading}')[1].split("</table>")[0]
    assert re.findall(r"class=best>([^<]+)<", table) == ["20.0", "21.0", "22.0", "24.0"]
    assert re.findall(r"\.best \{([^}]*)\}", html) == [" font-weight: 750; "]  # no model's colour


def test_none_is_bold_where_the_best_is_what_real_images_have(data: ReportData) -> None:
    found = {"conditional": Distance(0.0, 24, 24), "unconditional": Distance(0.02, 24, 24)}
    named = ("nearest_training_share", "nearest_training_ratio", "recognised")
    shown = [dataclasses.replace(each, distances=dict.fromkeys(named, found)) for each in data.perturbations]
    page = render(dataclasses.replace(data, perturbations=shown))
    bold = [
        page.split(f'class="of">{METRICS[name].heading}')[1].split("</table>")[0].count("class=best")
        for name in named
    ]
    assert bold == [0, 0, 4]


def test_same_data_give_the_same_bytes(data: ReportData, tmp_path: Path) -> None:
    pages = [Path(write_report(data, str(tmp_path / name), Storage())).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_summary_says_what_was_measured(data: ReportData) -> None:
    # Without the control and the unseen one: 21 and 22 against 29 and 33.
    told = summary(data)
    assert {rival: [each.figures for each in found if each] for rival, found in told.verdicts.items()} == {
        "unconditional": [
            ["Fréchet 21.5 against 31.0", "kernel 0.0215 against 0.0310", "closer on 2 of 2 mechanisms"],
            ["Fréchet 25.0 against 24.0", "kernel 0.0250 against 0.0240", "closer on 0 of 1 perturbation"],
        ]
    }
    assert any("24 real images lie 8.00 apart" in text for text in told.notes)
    for page in (render(data), markdown(data)):
        assert "too few to tell" in page and "These images are simulated." in page
    assert any("efficientnet_lite0, weights 0123456789abcdef" in text for text in caveats(data))


def test_models_are_compared_pair_by_pair_and_as_the_paper_does(data: ReportData) -> None:
    # Of treatments: −8, −11 and −10; scipy's Welch test of 21, 22, 20 and 29, 33, 30 gives 0.0062.
    compared = dataclasses.replace(data, perturbations=[*data.perturbations[:3], result("c", 20, 30)])
    first = comparisons(compared)[0]
    assert (first.metric, first.rival) == ("frechet", "unconditional")
    assert first.paired.mean == pytest.approx(-29 / 3) and first.paired.p <= first.adjusted < 0.02
    assert first.paper.p == pytest.approx(0.0062, abs=1e-4)
    text = markdown(compared)
    assert "| Fréchet distance | Unconditional model | −9.67 | – | 3 of 3 mechanisms |" in text
    assert "| 0.0062 \\* (n = 3) |" in text


def test_a_sentence_stands_for_tests_of_one_treatment(data: ReportData) -> None:
    one = dataclasses.replace(data, perturbations=data.perturbations[:2])  # a control and a treatment
    for text in ("".join(Page(render(one)).text), markdown(one)):
        assert "Is the difference real?" in text and "every comparison is over a single treatment" in text
        assert "Cohen's d" not in text
    two = markdown(dataclasses.replace(data, perturbations=data.perturbations[:3]))
    assert "Nothing can be tested" not in two and "Cohen's d" in two


def test_any_number_of_methods_and_baselines_make_a_report(data: ReportData, tmp_path: Path) -> None:
    other = "IMPA <b>"
    models = [*data.models, other]
    found = {name: Distance(20 + 5 * index, 24, 24) for index, name in enumerate(models)}
    baselines = ("copy_control", "other_perturbation", "trained", "floor")
    found |= {name: Distance(15, 24, 24) for name in baselines}
    ranks = {name: Distance(1 + index, 24, 24) for index, name in enumerate(models)}
    results = [
        result(name, 20, 25, distances={"frechet": found, "kid": found, "rank": ranks}) for name in "abcdef"
    ]
    many = dataclasses.replace(data, perturbations=results, models=models, excluded={"x": "3 real images"})
    page = Path(write_report(many, str(tmp_path), Storage())).read_text(encoding="utf-8")
    text = "".join(Page(page).text)
    for shown in (
        other,
        "Copy control",
        "Which real cohort lies nearest?",
        "Is the difference real?",
        "x (3 real",
    ):
        assert shown in text
    assert text.count("further") >= 2, "from the real ones than real images of other conditions"
    assert [row.rival for row in comparisons(many)[1:4]] == [other, *baselines[:2]]


def test_an_articles_head_has_every_groups_distances_by_name(grouped: ReportData) -> None:
    every = {"conditional": 30, "copy_control": 31, "other_perturbation": 32, "codec": 12, "floor": 8}
    results = [
        result("c", 0, 0, batches=batches, distances={"frechet": found})
        for batches, more in (("seen", 0), ("held_out", 0.5))
        for found in [{name: Distance(value + more, 24, 24) for name, value in every.items()}]
    ]
    shown = dataclasses.replace(grouped, perturbations=results, models=("conditional",))
    table = re.search(r"<table class=scores>.*?</table>", render(shown))
    assert table is not None
    assert re.findall(r"<t[hd]>([^<]*)<", table[0]) == [
        *("Fréchet distance ↓", "Conditional", "Copy control", "Other perturbation", "Codec", "Floor"),
        *("Seen batches", "30.0", "31.0", "32.0", "12.0", "8.00"),
        *("Held-out batches", "30.5", "31.5", "32.5", "12.5", "8.50"),
    ]


def test_print_keeps_a_chart_with_its_legend_and_text(grouped: ReportData) -> None:
    page = render(grouped)
    assert re.search(r"\.chart \{[^}]*break-inside: avoid", page)
    boxes = re.findall(r'<figure class="chart">(.*?)</figure>', page, re.S)
    assert sum("<svg" in box.split("</svg>")[-2] for box in boxes) == len(boxes) == 5  # dots, trust, losses
    dots = [box for box in boxes if "Distance from real images, one row" in box]
    assert len(dots) == 2 and all('class="legend"' in box and "<h3>" in box for box in dots)
    trusted = [box for box in boxes if "Distance to the nearest training" in box]
    assert all(escape(text) in trusted[0] for text in trust_sentences(grouped))


def test_one_method_alone_makes_a_report(data: ReportData, tmp_path: Path) -> None:
    lone = PerturbationResult("only", images(1, count=2), {"frechet": {"floor": Distance(5, 2, 2)}})
    bare = dataclasses.replace(data, perturbations=[lone], losses={}, notes=())
    page = Path(write_report(bare, str(tmp_path), Storage())).read_text(encoding="utf-8")
    assert "Generated (Conditional model): none" in page
    assert "More steps bring more." in page, "what more training would bring, without a chart"
    nobody = dataclasses.replace(bare, facts=RunFacts())
    page = Path(write_report(nobody, str(tmp_path), Storage())).read_text(encoding="utf-8")
    assert "<h2>Training" not in page and "odec" not in page.partition("<h2>Real and generated")[2][:600]
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
    assert set(RunFacts(1, 2).shown) == {"Training steps", "Images seen"}, "what isn't known isn't shown"


def test_no_mark_of_a_row_hides_another() -> None:
    assert charts.dodged([0, 20, 40]) == [0, 0, 0]
    assert charts.dodged([]) == []
    places = [5.0, 5.0, 100.0, 8.0, 105.0]
    marks = list(zip(places, charts.dodged(places), strict=True))
    apart = [math.dist(a, b) for a, b in itertools.combinations(marks, 2)]
    assert min(apart) >= charts.MARK
    assert set(charts.dodged([5.0] * 7)) == set(charts.LANES)  # more than there is room for


def test_marks_fit_into_further_lanes_where_three_are_too_few() -> None:
    dots = [charts.Dot(f"model{place}", 10.0, "") for place in range(7)]
    charted = charts.dot_plot([charts.DotRow("a", dots), charts.DotRow("b", dots[:2])], "x", "unseen")
    rows = charted.split('class="span"')[1:]
    heights = [re.findall(r'(?:M[\d.]+ |cy=")([\d.]+)', row) for row in rows]
    assert [len({*found}) for found in heights] == [7, 2]
    few = charts.dot_plot([charts.DotRow("a", dots[:3])], "x", "unseen")
    assert 'viewBox="0 0 1100 102"' in few and 'viewBox="0 0 1100 224"' in charted  # rows of 34 and of 78


def test_methods_differ_in_every_chart_with_and_without_colour() -> None:
    marks = [marks_of.marker(f"model{place}", 9, 9) for place in range(60)]
    bars = [marks_of.bar(place, 0, 40, 16, 30) for place in range(60)]
    curves = [marks_of.curve("smoothed", place, "0,0 9,9") for place in range(60)]
    others = [marks_of.marker(name, 9, 9) for name in BASELINES]
    assert len({*marks, *others}) == 65 and len({*bars}) == len({*curves}) == 60
    for found in (marks[:12], bars[:12], curves[:12]):
        assert len({re.sub(r" tone\d", "", each) for each in found}) == 12
    assert marks[0] == marks_of.marker("model60", 9, 9)


def test_bars_of_ranks_differ_without_colour() -> None:
    chart = charts.rank_chart({name: [1, 2, 3] for name in "abcd"})
    Page(chart)
    bars = [marks_of.bar(index, 0, 40, 16, 30) for index in range(4)]
    assert ["hatch" in bar for bar in bars] == [False, False, True, True]
    assert "h16.0" in bars[2] and "v30.0" in bars[3] and marks_of.bar(0, 0, 40, 16, 0) == ""
    assert chart.count('class="rank hollow tone1"') == 3 + 1  # and the key
    assert "Rank of the right cohort among 3: 1 is right" in chart
    rising, width, height = marks_of._stripes("rising", 0, 0, 6, 30), 6, 30
    ends = [float(text) for text in re.findall(r"[ML][\d.]+ ([\d.]+)", rising)]
    assert max(ends) <= height and max(map(float, re.findall(r"[ML]([\d.]+)", rising))) <= width


def test_ranks_of_many_models_stand_in_panels() -> None:
    names = "abcdefghi"
    chart = charts.rank_chart(
        {name: [1, 2, 3] for name in names}, {name: place for place, name in enumerate(names)}
    )
    Page(chart)
    assert chart.count('text-anchor="middle">2</text>') == 3  # panels of three
    assert 'viewBox="0 0 1100 544"' in chart and 'viewBox="0 0 1100 200"' in charts.rank_chart({"a": [1, 2]})


def test_a_model_looks_the_same_in_every_chart(data: ReportData) -> None:
    models = ["conditional", "folder", "unconditional"]
    found = {name: Distance(20, 24, 24) for name in models}
    ranks = {name: Distance(1, 24, 24) for name in models}
    results = [result(name, 0, 0, distances={"frechet": found, "rank": ranks}) for name in "ab"]
    losses = {name: [(1, 1.0), (2, 0.5)] for name in ("conditional", "unconditional")}
    page = render(dataclasses.replace(data, perturbations=results, models=models, losses=losses))
    assert '"label tone2"' in page and '"label tone1"' not in page


def test_curves_ends_stay_inside_the_chart() -> None:
    losses = {name: [(1, 1.0), (2, 0.001 * place + 0.5)] for place, name in enumerate("abcdefghij")}
    chart = charts.loss_chart(losses)
    ends = [float(y) for y in re.findall(r'"label tone\d" x="[\d.]+" y="([\d.]+)"', chart)]
    assert len(ends) == 10 and max(ends) <= 300 - 54 + 4 and min(np.diff(sorted(ends))) >= 17.9
    assert chart.count("<polyline") == 3 * 10  # points, curve and key


def test_labels_of_points_stand_inside_and_apart() -> None:
    points = [charts.Point(x, 10, "", f"compound-{x}") for x in (0, 0.001, 0.5, 1)]
    chart = charts.scatter_chart([*points, *[charts.Point(0.5, 10, "", "hidden")] * 9], "x", "y")
    Page(chart)
    found = re.findall(r'class="beside" x="([\d.]+)" y="([\d.]+)" text-anchor="start">([^<]+)<', chart)
    assert {name for _, _, name in found} > {f"compound-{x}" for x in (0, 0.001, 0.5, 1)}
    boxes = [(float(x), float(y), float(x) + 7.6 * len(name)) for x, y, name in found]
    assert all(left >= 0 and right <= charts.WIDTH for left, _, right in boxes)
    for (left, y, right), (other_left, other_y, other_right) in itertools.combinations(boxes, 2):
        assert left >= other_right or other_left >= right or abs(y - other_y) >= 16
    assert chart.count(">hidden<") < 9  # not one over the other


def test_losses_of_a_narrow_range_stand_on_an_axis_from_zero() -> None:
    rng = np.random.default_rng(0)
    losses = [(step, 0.75 + 0.01 * rng.standard_normal()) for step in range(20, 800, 20)]
    chart = charts.loss_chart({"a": losses})
    heights = [float(y) for y in re.findall(r",([\d.]+)", chart)]
    assert max(heights) - min(heights) < 30  # of 216 pixels
    assert ">0<" in chart and "Training step" in chart and "Training loss" in chart
    assert "logarithmic" in charts.loss_chart({"a": [(1, 1.0), (2, 0.01)]})


def test_ticks_and_smoothing() -> None:
    assert charts.linear_ticks(0, 203, 8) == [0, 50, 100, 150, 200, 250]
    assert charts.linear_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.log_ticks(0.15, 1.2) == pytest.approx([0.2, 0.5, 1])
    assert np.allclose(charts.smooth(np.full(300, 0.7)), 0.7)
    assert charts.loss_chart({"a": [(1, float("nan")), (2, 0.0)]}) == ""
    Page(charts.loss_chart({"a": [(1, 0.5)]}))
