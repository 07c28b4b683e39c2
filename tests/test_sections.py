"""A configuration's errors: each names the key, what was found, what was expected and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphoray.cli import main
from morphoray.config import parse
from morphoray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "evaluation: {methods: {x: {image: real}}}",
            "evaluation.methods.x.image: unknown key, found 'real'. Known keys here: bundle, images, run. "
            "Did you mean images?",
        ),
        (
            "evaluation: {methods: {run: {image: real}}}",
            "evaluation.methods.run.image: unknown key, found 'real'. Known keys here: bundle, images, run. "
            "Did you mean images?",
        ),
        (
            "evaluation: {methods: {x: real}}",
            "evaluation.methods.x: expected {images: FOLDER}, {run: CONFIG} or {bundle: FOLDER}, "
            "found 'real'.",
        ),
        (
            "evaluation: {methods: real}",
            "evaluation.methods: expected a mapping of keys to values, found 'real'.",
        ),
        (
            "evaluation: {experiments: Week4_27821}",
            "evaluation.experiments: expected a list, for one [Week4_27821], found 'Week4_27821'.",
        ),
        (
            "evaluation: {experiments: {a: 1}}",
            "evaluation.experiments: expected a list, found a mapping.",
        ),
        (
            "storage: 3",
            "storage: expected a mapping of keys to values (anonymous, endpoint_url, region, retries, "
            "timeout_s), found 3.",
        ),
        (
            "evaluation: {cells: {sizes: 3, size: 8}}",
            "evaluation.cells.sizes: unknown key, found 3. Known keys here: images, size. Did you mean size?",
        ),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"run_dir: r\n{text}\n", "test")
    assert message in str(raised.value)


def test_a_misspelt_section_is_told_shortly() -> None:
    with pytest.raises(ConfigError) as raised:
        parse("run_dir: r\nevaluaton: {n: 3, methods: {x: {images: y}}}\n", "test")
    assert str(raised.value).startswith("evaluaton: unknown key, found a mapping. Known keys here: ")
    assert str(raised.value).endswith("Did you mean evaluation?")


@pytest.mark.parametrize("name", ["codec/seen", "a\\b", "..", "a..b", "a\nb", "a\x00b", " ", ""])
def test_a_methods_name_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.methods: found the name .*Rename the method\.$"):
        parse(f"run_dir: r\nevaluation: {{methods: {{{_quoted(name)}: {{images: y}}}}}}\n", "test")
    parse('run_dir: r\nevaluation: {methods: {"older (v1.5) µ": {images: y}}}\n', "test")


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\x00", "\\0")
    return f'"{escaped}"'


def test_a_folder_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("run_dir: r\n")
    assert main(["evaluate", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert (
        f"{tmp_path}: it is a folder, expected a run's YAML file, such as {tmp_path}/config.yaml.\n" in said
    )
    (tmp_path / "config.yaml").unlink()
    assert main(["evaluate", str(tmp_path)]) == 1
    assert f"{tmp_path}: it is a folder, expected a run's YAML file.\n" in capsys.readouterr().err
