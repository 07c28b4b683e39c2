"""Screening: libraries read line by line, the score, and a screen on a real local Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundles import CONTROL
from morphoray import schema
from morphoray.config import RunConfig, ScreenConfig
from morphoray.errors import ConfigError, DataError, FingerprintError
from morphoray.imaging.png import decode_png
from morphoray.screening.libraries import Molecule, library_fingerprint, read_library
from morphoray.screening.scores import paired_effect, ranked
from morphoray.storage import Storage

# sockets and files that Ray leaves to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # what Ray Data says of its own defaults, and of the bound on retries, which has no other name in 2.60
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\..*"),
    pytest.mark.filterwarnings("ignore:`ray_remote_args` is deprecated:DeprecationWarning"),
]


def library(tmp_path: Path, name: str, content: str) -> list[Molecule]:
    path = tmp_path / name
    path.write_text(content)
    return read_library(str(path), Storage())


def test_smi_keeps_every_line(tmp_path: Path) -> None:
    text = "SMILES name\nCCO\tethyl alcohol\n\nc1ccccc1\nCCO again\n"
    assert library(tmp_path, "a.smi", text) == [
        Molecule(2, "ethyl alcohol", "CCO"),
        Molecule(3, "line 3", "", "blank line"),
        Molecule(4, "line 4", "c1ccccc1"),
        Molecule(5, "again", "CCO", "duplicate of line 2"),
    ]
    assert [item.line for item in library(tmp_path, "b.smi", "CCO\nCCN\n")] == [1, 2]


def test_csv_keeps_every_line(tmp_path: Path) -> None:
    text = 'Name,SMILES\nethanol,CCO\n\n"with, comma",CCN\nragged\nempty,\n,CCC\n'
    assert library(tmp_path, "a.csv", text) == [
        Molecule(2, "ethanol", "CCO"),
        Molecule(3, "line 3", "", "blank line"),
        Molecule(4, "with, comma", "CCN"),
        Molecule(5, "line 5", "", "found 1 values, expected 2"),
        Molecule(6, "empty", "", "empty SMILES"),
        Molecule(7, "line 7", "CCC"),
    ]


def test_parquet_and_what_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"smiles": ["CCO", None], "id": [7, 8]}), path)
    found = read_library(str(path), Storage())
    assert found == [Molecule(1, "7", "CCO"), Molecule(2, "8", "", "empty SMILES")]
    assert library_fingerprint(found) != library_fingerprint(found[:1])
    for name, content, word in (
        ("a.xlsx", "CCO", "expected a library that ends in"),
        ("b.csv", "name,structure\na,CCO\n", "expected one called smiles"),
        ("c.smi", "", "found no molecules"),
        ("d.csv", 'smiles\n"CCO\n', "Correct the quotes"),
    ):
        with pytest.raises(DataError, match=word):
            library(tmp_path, name, content)


def test_effect_of_paired_features() -> None:
    control = np.array([[1.0, 2.0], [5.0, -1.0]])
    assert paired_effect(control, control) == (0.0, 0.0)
    # differences (3, 4) and (3, 0): mean (3, 2), without either one 3 and 5, so sqrt(1/2 x 2 x 1²) = 1
    score, error = paired_effect(control + np.array([[3.0, 4.0], [3.0, 0.0]]), control)
    assert score == pytest.approx(math.sqrt(13)) and error == pytest.approx(1.0)
    assert paired_effect(control[:1] + np.array([3.0, 4.0]), control[:1]) == (5.0, None)
    with pytest.raises(DataError, match=r"\(2, 2\) and \(1, 2\)"):
        paired_effect(control, control[:1])


def test_ranking_breaks_ties_by_line_and_keeps_the_rejected() -> None:
    rows = [
        {"line": line, "molecule_id": str(line), "smiles": "C", "score": score, "score_std": None}
        | {"n_generated": 1, "reason": None}
        for line, score in ((4, 1.0), (3, None), (2, 1.0), (5, 2.0), (1, None))
    ]
    table = ranked(rows, "f")
    assert table.schema == schema.HITS
    assert table["line"].to_pylist() == [5, 2, 4, 1, 3]
    assert table["rank"].to_pylist() == [1, 2, 3, None, None]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    from morphoray.pipelines.cluster import connected

    with connected("local"):
        yield


def thirty_lines() -> str:
    """24 alkanes, alcohols and amines, the control, 2 invalid molecules, 1 duplicate, 2 blank lines."""
    chains = ["C" * n for n in range(2, 10)]
    lines = [f"{chain}{end} {end or 'H'}{len(chain)}" for end in ("", "O", "N") for chain in chains]
    lines[3:3] = ["C1CC open ring", "", "CS(C)=O solvent"]
    lines[20:20] = ["CCO the same", "not-a-smiles"]
    return "\n".join([*lines, "  ", ""])


@pytest.fixture(scope="module")
def config(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("screen")
    (folder / "library.smi").write_text(thirty_lines())
    (folder / "bundle").symlink_to(tiny_bundle)
    return RunConfig(
        run_dir=str(folder),
        generation={"steps": 2, "cpus_per_actor": 0.5},
        screen={"library": str(folder / "library.smi"), "n": 2, "molecules_per_part": 10},
    )


def hits_of(config: RunConfig) -> pa.Table:
    return pq.read_table(Path(config.run_dir) / "screen" / "hits.parquet")


@pytest.mark.timeout(600)
def test_screen_of_thirty_lines(
    config: RunConfig, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from morphoray.pipelines.screen import run_screen

    lines = thirty_lines().splitlines()
    assert len(lines) == 30
    summary = run_screen(config)
    table = hits_of(config)
    schema.conform(table, schema.HITS, "hits")
    rows = {row["line"]: row for row in table.to_pylist()}
    assert sorted(rows) == list(range(1, 31))
    rejected = {line: row["reason"] for line, row in rows.items() if row["reason"]}
    for line, reason in rejected.items():
        text = lines[line - 1]
        if not text.strip():
            assert reason == "blank line"
        elif text == "CCO the same":
            assert reason == f"duplicate of line {lines.index('CCO O2') + 1}"
        else:
            assert "invalid SMILES" in reason
    assert len(rejected) == summary.rejected == 5 and summary.ranked == 25
    scores = [row["score"] for row in table.to_pylist() if row["rank"]]
    assert scores == sorted(scores, reverse=True) and all(map(math.isfinite, scores)) and scores[0] > 0
    # the control itself as a molecule: the same vector and the same noise
    solvent = next(row for row in rows.values() if row["molecule_id"] == "solvent")
    assert solvent["score"] == pytest.approx(0, abs=0.02 * scores[0]) and solvent["rank"] == 25
    assert summary.picture is not None
    assert decode_png(Path(summary.picture).read_bytes()).shape == (3, 6 * 34 - 2, 2 * 34 - 2)
    printed = capsys.readouterr().out
    assert "25 of 30 lines ranked, 5 rejected" in printed and f"  1. {table['molecule_id'][0]}" in printed


@pytest.mark.timeout(600)
def test_screen_resumes_by_part_and_says_when_it_is_finished(
    config: RunConfig, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from morphoray.pipelines.screen import run_screen

    folder = Path(config.run_dir) / "screen"
    before, parts = hits_of(config), sorted((folder / "parts").glob("*.parquet"))
    assert [path.name for path in parts] == [f"part-{number:06d}.parquet" for number in range(3)]
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    assert not run_screen(config).finished_before
    assert hits_of(config).equals(before) and parts[0].stat().st_mtime_ns == kept and parts[1].exists()
    capsys.readouterr()
    assert run_screen(config).finished_before
    assert "finished before" in capsys.readouterr().out


def test_screen_refuses_other_settings(config: RunConfig, tmp_path: Path) -> None:
    from morphoray.pipelines.screen import run_screen

    def changed(**fields: object) -> RunConfig:
        return config.model_copy(update={"screen": config.screen.model_copy(update=fields)})

    with pytest.raises(FingerprintError, match=r"screen\.n: stored 2, now 3"):
        run_screen(changed(n=3))
    other = tmp_path / "other.smi"
    other.write_text("CCO\n")
    with pytest.raises(FingerprintError, match="library"):
        run_screen(changed(library=str(other)))
    with pytest.raises(ConfigError, match=rf"screen\.control: found 'water', expected .*{CONTROL}"):
        run_screen(changed(control="water"))
    with pytest.raises(ConfigError, match=r"screen\.library: missing"):
        run_screen(changed(library=None))


def test_screen_needs_an_encoder_of_molecules() -> None:
    from morphoray.pipelines.screen import find_control

    with pytest.raises(ConfigError, match="'table', which has no vectors of new molecules"):
        find_control({"condition": {"encoder": "table", "state": {}}}, ScreenConfig())
