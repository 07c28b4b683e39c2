"""What a Python source file imports, calls and measures, read from its syntax tree without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYERS = (
    {"", "config", "sections", "schema", "storage", "archives", "s3", "errors", "seeds", "progress"},
    {"imaging"},
    {"perturbations"},
    {"datasets"},
    {"diffusion"},
    {"training", "screening", "evaluation"},
    {"pipelines"},
    {"cli", "__main__"},
)
"""morphoray's top-level modules, lowest first; "" is the package's own __init__."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

CONFINED = {
    "ray": ("pipelines/",),
    "rdkit": ("perturbations/rdkit.py",),
    "scgpt": ("pipelines/scgpt_package.py",),
    "s3fs": ("s3.py",),
    "cleanfid": ("evaluation/features.py",),
    "efficientnet_lite_pytorch": ("evaluation/networks.py",),
    "cp_measure": ("evaluation/measurements.py",),
    "pycytominer": ("evaluation/profiles.py",),
    "skimage": ("evaluation/segmentation.py",),
    "sklearn": ("evaluation/profile_scores.py",),
    "umap": ("evaluation/profile_scores.py",),
}
"""Library -> the only places in platform/morphoray that may import it."""

LATE = (
    "rdkit",
    "scgpt",
    "s3fs",
    "cleanfid",
    "efficientnet_lite_pytorch",
    "cp_measure",
    "pycytominer",
    "skimage",
    "sklearn",
    "umap",
)
"""Libraries of an extra, imported inside functions only, so that their absence is met at the need."""

WITHOUT_TORCH = {name for names in LAYERS[:4] for name in names} | {"screening"}

DYNAMIC_IMPORTS = {"importlib.import_module", "import_module", "__import__"}


@dataclass(frozen=True)
class Import:
    """One imported module, absolute."""

    module: str
    line: int
    at_import: bool
    """False inside a function and under TYPE_CHECKING."""


def imports(tree: ast.Module, module: str, is_package: bool = False) -> list[Import]:
    """Every import in a file, at any depth; `from a import b` gives `a` and `a.b` (b may be a module)."""
    found: list[Import] = []
    late = {id(node) for outer in ast.walk(tree) if _is_late(outer) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "importlib.import_module",
            "__import__",
        }:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                names = [first.value]
        line = getattr(node, "lineno", 0)
        found += [Import(name, line, id(node) not in late) for name in names]
    return found


def _is_late(node: ast.AST) -> bool:
    """Whether what is inside does not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def import_errors(source: str, path: str) -> list[str]:
    """Breaches of the import rules in one file of morphoray; `path` is relative to the package's folder."""
    dotted = path.removesuffix(".py").replace("/", ".").removesuffix("__init__").removesuffix(".")
    here = dotted.split(".")[0]
    if here not in LEVEL:
        return [f"{path}: {here!r} has no layer; give it one in tests/source_rules.py LAYERS"]
    module = ".".join(filter(None, ["morphoray", dotted]))
    found = imports(ast.parse(source), module, path.endswith("__init__.py"))
    breaches = [f"{path}:{item.line}: {reason}" for item in found if (reason := _breach(item, here, path))]
    return sorted(set(breaches))


def _breach(item: Import, here: str, path: str) -> str:
    """Why the import is not allowed in this file, or nothing."""
    top, _, rest = item.module.partition(".")
    if top == "morphoray":
        there = rest.split(".")[0]
        # an unknown name after `from morphoray import` is an attribute, which __init__ answers for
        if there not in LEVEL or there == here or there == "" or LEVEL[there] < LEVEL[here]:
            return ""
        if LEVEL[there] == LEVEL[here] == 0 or here == "__main__":
            return ""
        return f"{here or 'morphoray'} (layer {LEVEL[here]}) imports {item.module} (layer {LEVEL[there]})"
    if top in {"jobs", "serve", "tests"}:
        return f"the package imports {item.module}"
    if top in CONFINED and not any(path.startswith(place) for place in CONFINED[top]):
        return f"{top} is for {' and '.join(CONFINED[top])} only"
    if top in LATE and item.at_import:
        return f"{top} is imported with the module; import it inside the function that needs it"
    if top == "torch" and here in WITHOUT_TORCH:
        return f"{here or 'morphoray'} does without torch"
    return ""


UNSAFE = {
    "eval": "runs code",
    "exec": "runs code",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "builds objects",
    **{
        f"{module}.{name}": "executes a pickle"
        for module in ("pickle", "cloudpickle", "ray.cloudpickle", "dill", "joblib")
        for name in ("load", "loads", "Unpickler")
    },
    "pandas.read_pickle": "executes a pickle",
}
"""Calls that are never allowed -> why."""


def unsafe_calls(source: str) -> list[str]:
    """The calls in a file that execute what they read, each as `line: reason`."""
    tree = ast.parse(source)
    names = _aliases(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, tail = ast.unparse(node.func).partition(".")
        called = names.get(head, head) + dot + tail
        options = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        reason = UNSAFE.get(called, "")
        if called == "torch.load" and options.get("weights_only") != "True":
            reason = "executes a pickle without weights_only=True"
        if called in {"yaml.load", "yaml.load_all"}:
            loader = options.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
            if "Safe" not in loader:
                reason = "builds objects without a safe loader"
        if options.get("shell", "False") != "False":
            reason = "runs a shell"
        if options.get("allow_pickle", "False") != "False":
            reason = "executes a pickle"
        if reason:
            found.append(f"{node.lineno}: {called} {reason}")
    return found


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> what it was imported as."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length in lines of every function and method, decorators left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def undocumented(tree: ast.Module) -> list[str]:
    """The module itself and its public functions and classes that have no docstring."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            missing.append(node.name)
    return missing


def first_line(path: Path) -> str:
    """What a file says it is: its docstring's, heading's or first comment's first line; may be empty."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return ""
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    lines = (line.lstrip("#! ").strip() for line in text.splitlines()[:5])
    return next((line for line in lines if line), "")
