"""The house rules: import directions, a light command line, no shadowed names, sizes, safe loading.

The README's tree is the fenced block under the heading `## Layout`. A line is a path from the repository
root, two spaces or more, and a description; blank lines are allowed:

    platform/morphoray/config.py     the typed configuration of a run
    platform/morphoray/imaging/      channels, crops and PNG

There is one line for every tracked Python file under platform/morphoray, jobs, serve and infra, for every
other tracked file under infra, and for every tracked file at the top level whose name does not begin with a
dot. The line of a folder (ending in /) stands for its __init__.py. More lines are welcome (tests/,
jobs/configs/), if what they name exists. The failure prints the lines to paste.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import source_rules

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform/morphoray"
PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = (PACKAGE, ROOT / "jobs", ROOT / "serve", ROOT / "infra")
SOURCES = sorted(path for room in ROOMS for path in room.rglob("*.py"))
LONG_BY_NATURE = PACKAGE / "training/loop.py"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    """The path from the repository root, as text."""
    return path.relative_to(ROOT).as_posix()


def python(code: str, *words: str) -> str:
    """What a fresh interpreter in the repository root prints."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    assert source_rules.import_errors(path.read_text(), path.relative_to(PACKAGE).as_posix()) == []


@pytest.mark.parametrize(
    ("path", "source", "word"),
    [
        ("imaging/crops.py", "from morphoray.datasets import DATASETS", "imports morphoray.datasets"),
        ("imaging/crops.py", "def f():\n    from morphoray import diffusion", "imports morphoray.diffusion"),
        ("imaging/crops.py", "from ..training.loop import train", "imports morphoray.training.loop"),
        ("imaging/__init__.py", "from .. import cli", "imports morphoray.cli"),
        ("evaluation/report.py", "import morphoray.training", "imports morphoray.training"),
        ("__init__.py", "from morphoray.storage import Storage\nfrom .pipelines import run", "pipelines"),
        ("training/loop.py", "def f():\n    import ray.train", "ray is for pipelines/ only"),
        ("cli.py", "import importlib\nimportlib.import_module('ray')", "ray is for pipelines/ only"),
        ("perturbations/table.py", "from rdkit import Chem", "rdkit is for perturbations/rdkit.py only"),
        ("perturbations/rdkit.py", "from rdkit import Chem", "inside the function"),
        ("pipelines/genes.py", "def f():\n    import scgpt", "scgpt is for pipelines/scgpt_package.py only"),
        ("datasets/rxrx1.py", "def f():\n    import s3fs", "s3fs is for s3.py only"),
        ("evaluation/distances.py", "def f():\n    import cleanfid.fid", "evaluation/features.py only"),
        ("screening/scores.py", "def f():\n    import torch.nn as nn", "does without torch"),
        ("pipelines/encode.py", "from serve.app import build", "the package imports serve.app"),
        ("helpers.py", "", "has no layer"),
    ],
)
def test_planted_import_is_found(path: str, source: str, word: str) -> None:
    assert any(word in error for error in source_rules.import_errors(source, path))


def test_allowed_imports_are_not_reported() -> None:
    source = "import torch\nfrom . import steps\nfrom ..schema import SITES\nfrom morphoray import errors"
    assert source_rules.import_errors(source, "training/loop.py") == []
    assert source_rules.import_errors("def f():\n    from rdkit import Chem", "perturbations/rdkit.py") == []


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "morphoray"], [str(Path(sys.executable).with_name("morphoray"))]],
    ids=["module", "script"],
)
def test_help_answers_in_under_a_second(command: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "morphoray" in done.stdout
    assert min(seconds) < 1.0, f"--help took {', '.join(f'{value:.2f} s' for value in seconds)}"


def test_help_loads_nothing_heavy() -> None:
    code = """
import contextlib, io, sys
from morphoray import cli
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    cli.main(["--help"])
print(*sys.modules)
"""
    loaded = {module.split(".")[0] for module in python(code).split()}
    heavy = {"torch", "ray", "pandas", "pyarrow", "diffusers", "rdkit", "s3fs", "scipy"}
    assert loaded & heavy == set()


def test_the_driver_of_a_run_loads_no_torch_before_it_trains() -> None:
    """Torch and diffusers are most of a start's imports, and of the memory of a task that reads files."""
    loaded = python("import sys, morphoray.pipelines.run; print(*sys.modules)").split()
    assert {"ray.data", "morphoray.pipelines.train"} <= set(loaded)
    assert {"torch", "diffusers", "accelerate", "ray.train", "scipy", "rdkit"} & set(loaded) == set()


def test_platform_folder_shadows_nothing() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    code = "import platform; print(platform.system(), platform.__file__)"
    system, file = python(code).split(maxsplit=1)
    assert system and ROOT not in Path(file).parents


def test_serve_folder_shadows_nothing() -> None:
    assert not (ROOT / "serve/__init__.py").exists()
    file = Path(python("import ray.serve; print(ray.serve.__file__)").strip())
    assert file.parts[-3:] == ("ray", "serve", "__init__.py")
    assert ROOT / "serve" not in file.parents


def tracked() -> list[str]:
    """The files of the repository that git tracks and that are on the disk."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: nothing tells the source files from the others")
    return [line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def needs_a_line(path: str) -> bool:
    """Whether the README's tree must name this file."""
    if "/" not in path:
        return not path.startswith(".")
    return path.startswith("infra/") or (
        path.endswith(".py") and path.startswith(("platform/morphoray/", "jobs/", "serve/"))
    )


def readme_tree(readme: str) -> list[tuple[str, str]]:
    """The paths of the Layout block and their descriptions, in order."""
    section = re.split(r"^## ", readme.partition("\n## Layout\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    block = re.search(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    if block is None:
        return []
    lines = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in block[1].splitlines() if line.strip()]
    return [(words[0], words[1] if len(words) > 1 else "") for words in lines]


def lines_to_paste(paths: list[str]) -> str:
    """A line of the tree for each path, described by what the file says of itself."""
    width = max(map(len, paths), default=0) + 2
    return "\n".join(f"{path:<{width}}{source_rules.first_line(ROOT / path)}" for path in paths)


def stands_for(line: str) -> str:
    """The file that a line of the tree covers."""
    return f"{line}__init__.py" if line.endswith("/") else line


def test_readme_names_every_source_file() -> None:
    tree = readme_tree((ROOT / "README.md").read_text())
    named = [stands_for(path) for path, _ in tree]
    missing = [path for path in sorted(tracked()) if needs_a_line(path) and path not in named]
    assert not missing, (
        f"README.md's Layout lacks {len(missing)} lines; to paste:\n\n{lines_to_paste(missing)}\n"
    )


def test_readme_names_nothing_that_is_not_there() -> None:
    tree = readme_tree((ROOT / "README.md").read_text())
    gone = [path for path, _ in tree if not (ROOT / path).exists()]
    assert not gone, f"README.md's Layout names what is not there: {gone}"
    assert [path for path, description in tree if not description] == [], "lines without a description"
    paths = [path for path, _ in tree]
    assert sorted(paths) == sorted(set(paths)), "paths with two lines"


def test_readme_tree_is_read_as_documented() -> None:
    block = "```text\nsetup.py   what it is\n\nb/c/  a folder\nd.py\n```"
    readme = f"# a\n\n## Layout\n\nIntro.\n\n{block}\n\n## End\n"
    assert readme_tree(readme) == [("setup.py", "what it is"), ("b/c/", "a folder"), ("d.py", "")]
    assert readme_tree("# a\n\n## Layout\n\nnone\n\n## Use\n\n```\nx  y\n```\n") == []
    assert stands_for("b/c/") == "b/c/__init__.py"
    assert needs_a_line("README.md") and needs_a_line("infra/Dockerfile") and needs_a_line("jobs/a/b.py")
    assert not needs_a_line(".gitignore") and not needs_a_line("tests/test_layout.py")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes(path: Path) -> None:
    if path == LONG_BY_NATURE:
        return
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= MAX_MODULE_LINES, f"{name_of(path)} has {lines} lines"
    long = [
        f"{name_of(path)}:{line}: {name} has {length} lines"
        for name, line, length in source_rules.functions(ast.parse(text))
        if length > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    assert source_rules.undocumented(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_executes_what_it_reads(path: Path) -> None:
    assert source_rules.unsafe_calls(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "import pandas as pd\npd.read_pickle(path)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "import subprocess\nsubprocess.run(command, shell=flag)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
        "from yaml import load\nload(text, Loader=yaml.UnsafeLoader)",
        "def f():\n    return eval(text)",
        "exec(text)",
    ],
)
def test_planted_unsafe_call_is_found(source: str) -> None:
    assert len(source_rules.unsafe_calls(source)) == 1


def test_safe_calls_are_not_reported() -> None:
    source = """
import torch, yaml, subprocess, json
model.eval()
torch.load(path, weights_only=True)
yaml.load(text, Loader=yaml.CSafeLoader)
yaml.safe_load(text)
subprocess.run(command, shell=False)
json.loads(text)
"""
    assert source_rules.unsafe_calls(source) == []


def test_length_and_docstrings_are_measured() -> None:
    tree = ast.parse(
        '"""Doc."""\nclass A:\n    def f(self):\n        pass\n\n\ndef g():\n    """Do."""\n\ndef _h(): ...'
    )
    assert list(source_rules.functions(tree)) == [("g", 7, 2), ("_h", 10, 1), ("f", 3, 2)]
    assert source_rules.undocumented(tree) == ["A"]
    assert source_rules.undocumented(ast.parse("x = 1")) == ["the module"]
