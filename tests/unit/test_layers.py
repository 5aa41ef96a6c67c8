"""The data flows one way: a module imports only from layers to the left of its own; some know torch alone."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "expunge"
MAX_LINES = 400

LAYERS = (
    "errors", "config", "progress", "interrupt", "processes", "run_dir", "kernels", "data", "ranking", "selection",
    "model", "objectives", "terms", "prepare", "signals", "strength", "steering", "stopping", "schedule", "card",
    "manifest", "run", "trainer", "unlearn", "plan", "merge", "evaluate", "calibrate", "tables", "report", "demo",
    "arguments", "cli", "__main__", "__init__",
)  # fmt: skip
"""Folders and top-level modules of the package, from left to right."""

THIRD_PARTY = {
    "errors": set(),
    "config": set(),
    "run_dir": {"yaml"},
    "kernels": {"torch"},
    "objectives": {"torch"},
}
"""All that these layers may import beside the standard library."""
SELF_CONTAINED = {"kernels", "objectives"}
"""Layers that import nothing else of the package."""
WITHOUT_TORCH = {"report"}
"""Layers that must not load torch, by themselves or through what they import."""


def layer_of(path: Path, package: Path) -> str:
    """`model` for model/load.py, `cli` for cli.py."""
    return path.relative_to(package).with_suffix("").parts[0]


def imports(path: Path, package: Path, *, deferred: bool = True) -> set[str]:
    """Dotted names of all modules that a file imports, save those that only a type checker sees.

    `from a import b` gives `a.b` where that is a module of the package and `a` otherwise.

    Args:
        path: The file.
        package: The package's folder.
        deferred: Count imports inside functions too.
    """
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not deferred:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = path.relative_to(package.parent).parts[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if file_of(whole, package) else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def file_of(module: str, package: Path) -> Path | None:
    """The file of a module of the package; None for any other name."""
    first, *rest = module.split(".")
    if first != package.name:
        return None
    path = package.joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def violations(package: Path) -> list[str]:
    """What in the package breaks the rules, one line each."""
    problems = []
    for path in sorted(package.rglob("*.py")):
        name, layer = str(path.relative_to(package)), layer_of(path, package)
        lines = path.read_text("utf-8").count("\n")
        if lines > MAX_LINES:
            problems.append(f"{name}: {lines} lines, more than {MAX_LINES}")
        if layer not in LAYERS:
            problems.append(f"{name}: no place in LAYERS")
            continue
        for module in sorted(imports(path, package)):
            first, _, rest = module.partition(".")
            if first == package.name:
                target = rest.split(".")[0] or "__init__"
                if target == layer:
                    continue
                if layer in SELF_CONTAINED:
                    problems.append(f"{name}: imports {module}, but {layer} stands alone")
                elif target not in LAYERS:
                    problems.append(f"{name}: imports {module}, which is not a module of the package")
                elif LAYERS.index(target) > LAYERS.index(layer):
                    problems.append(f"{name}: imports {module}, which is to the right of {layer}")
            elif layer in THIRD_PARTY and first not in sys.stdlib_module_names | THIRD_PARTY[layer]:
                problems.append(f"{name}: imports {module}, which {layer} must not know")
        if layer in WITHOUT_TORCH and (chain := way_to_torch(path, package)):
            problems.append(f"{name}: loads torch ({' -> '.join(chain)})")
    return problems


def way_to_torch(path: Path, package: Path) -> list[str]:
    """The chain of imports from a file to torch, as executed when it is imported; empty when there is none."""
    seen, queue = {path}, [(path, [path.stem])]
    while queue:
        current, chain = queue.pop(0)
        deferred = current == path  # what the file itself imports later counts too
        for module in sorted(imports(current, package, deferred=deferred)):
            if module.split(".")[0] == "torch":
                return [*chain, "torch"]
            file = file_of(module, package)
            folders = (file, *(folder / "__init__.py" for folder in file.parents)) if file else ()
            for needed in folders:
                if needed.is_file() and needed.is_relative_to(package) and needed not in seen:
                    seen.add(needed)
                    queue.append((needed, [*chain, module]))
    return []


def test_the_package_keeps_the_rules():
    assert violations(PACKAGE) == []


@pytest.fixture
def package(tmp_path) -> Path:
    """A package that keeps the rules."""
    files = {
        "__init__.py": "",
        "errors.py": "import sys\n",
        "kernels/head.py": "import torch\nfrom expunge.kernels import other\n",
        "kernels/other.py": "from torch import Tensor\n",
        "evaluate/__init__.py": "from expunge.evaluate.results import read\n",
        "evaluate/results.py": "from expunge.errors import UserError\ndef read():\n    import torch\n",
        "evaluate/generate.py": "import torch\n",
        "report/html.py": "from expunge.evaluate.results import read\n",
        "run.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import expunge.unlearn\n",
        "unlearn.py": "from .run import Run\nfrom . import errors\n",
    }
    for name, text in files.items():
        path = tmp_path / "expunge" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "expunge"


def test_a_package_that_keeps_the_rules_passes(package):
    assert violations(package) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "errors.py",
            "from expunge.unlearn import unlearn",
            "imports expunge.unlearn, which is to the right of errors",
        ),
        (
            "errors.py",
            "def f():\n    from expunge import unlearn",
            "imports expunge.unlearn, which is to the right",
        ),
        ("run.py", "from . import unlearn", "imports expunge.unlearn, which is to the right of run"),
        (
            "evaluate/generate.py",
            "from ..report.html import page",
            "imports expunge.report.html, which is to the right",
        ),
        ("run.py", "import expunge", "imports expunge, which is to the right of run"),
        ("run.py", "from expunge.lost import x", "imports expunge.lost, which is not a module"),
        ("errors.py", "import yaml", "imports yaml, which errors must not know"),
        ("kernels/head.py", "import transformers", "imports transformers, which kernels must not know"),
        (
            "kernels/head.py",
            "from expunge.errors import UserError",
            "imports expunge.errors, but kernels stands alone",
        ),
        ("report/html.py", "def f():\n    import torch.nn", "loads torch (html -> torch)"),
        (
            "report/html.py",
            "from expunge.evaluate import generate",
            "loads torch (html -> expunge.evaluate.generate -> t",
        ),
        (
            "evaluate/__init__.py",
            "from expunge.evaluate import generate",
            "html.py: loads torch (html -> expunge.eval",
        ),
        ("errors.py", "#\n" * 401, "errors.py: 401 lines, more than 400"),
        ("stray.py", "", "stray.py: no place in LAYERS"),
    ],
)
def test_a_breach_is_found(package, name, text, problem):
    (package / name).write_text(text)
    (found,) = violations(package)
    assert problem in found
