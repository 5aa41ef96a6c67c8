"""The data flows one way: a room imports only from rooms before its own; some never load torch."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "expunge"
MAX_LINES, MAX_FUNCTION, MAX_METHODS = 400, 100, 20
"""Lines of a file and of a function, its docstring among them, and methods of a class, at most."""
ROOMS = (
    "errors", "utils", "config", "kernels", "data", "model", "losses", "runs", "train", "evaluation", "interview",
    "report", "api", "demo", "cli",
)  # fmt: skip
"""Folders of the package in the order of the data; `errors` is the one module beside them that others import."""
SELF_CONTAINED = ("kernels",)
"""Rooms that import nothing else of the package."""
WITHOUT_TORCH = ("errors", "config", "report")
"""Rooms that must not load torch, by themselves or through what they import at the top of a file."""


@cache
def imports(path: Path, package: Path, *, deferred: bool = True) -> set[str]:
    """Dotted names that a file imports, save those that only a type checker sees.

    Args:
        path: The file.
        package: The package's folder.
        deferred: Count imports inside functions too.
    """
    found: set[str] = set()

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
                parts = [package.name, *path.relative_to(package).parts[:-1]]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def room_of(name: str, package: Path) -> str | None:
    """The room that a dotted name leads to; None for other packages and for the package's own face."""
    parts = name.split(".")
    return parts[1] if parts[0] == package.name and len(parts) > 1 and parts[1] in ROOMS else None


def violations(package: Path) -> list[str]:
    """What breaks the rules, a line each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        room = module.parts[0].removesuffix(".py")
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            found.append(f"{module}: {lines} lines, more than {MAX_LINES}")
        found += [f"{module}: {line}" for line in too_large(ast.parse(text))]
        if room in ("__init__", "__main__"):
            continue
        if room not in ROOMS:
            found.append(f"{module}: stands in no room")
            continue
        for name in sorted(imports(path, package)):
            other = room_of(name, package)
            if other and ROOMS.index(other) > ROOMS.index(room):
                found.append(f"{module}: imports {name}, but {other} comes after {room}")
            if other and other != room and room in SELF_CONTAINED:
                found.append(f"{module}: imports {name}, but {room} stands alone")
            if name.split(".")[0] == package.name and not other:
                found.append(f"{module}: imports {name} from the package's face")
        if room in WITHOUT_TORCH and (chain := _loads_torch(path, package, set())):
            found.append(f"{module}: loads torch ({chain})")
    return found


def too_large(tree: ast.AST) -> list[str]:
    """Functions of too many lines and classes of too many methods, a line each."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION:
                found.append(f"{node.name} has {lines} lines, more than {MAX_FUNCTION}")
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) for child in node.body)
            if methods > MAX_METHODS:
                found.append(f"{node.name} has {methods} methods, more than {MAX_METHODS}")
    return found


def _loads_torch(path: Path, package: Path, seen: set[Path]) -> str:
    """How a file loads torch or transformers when it is imported, as a chain of names; empty when it does not."""
    seen.add(path)
    for name in sorted(imports(path, package, deferred=False)):
        if name.split(".")[0] in ("torch", "transformers", "peft", "accelerate"):
            return name
        for target in _modules(name, package):
            if target not in seen and (chain := _loads_torch(target, package, seen)):
                return f"{name} -> {chain}"
    return ""


def _modules(name: str, package: Path) -> list[Path]:
    """The files that run when a name of the package is imported."""
    parts = name.split(".")
    if parts[0] != package.name:
        return []
    found = []
    for end in range(2, len(parts) + 1):
        place = package.joinpath(*parts[1:end])
        found += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    return found


def test_the_package_keeps_the_rules() -> None:
    assert violations(PACKAGE) == []


def test_no_loose_modules() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that keeps the rules."""
    files = {
        "__init__.py": "", "errors.py": "", "kernels/__init__.py": "", "kernels/head.py": "import torch",
        "evaluation/__init__.py": "", "evaluation/generate.py": "import torch", "report/__init__.py": "",
        "report/page.py": "def f():\n    from pkg.evaluation import generate",
    }  # fmt: skip
    root = tmp_path / "pkg"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_package_that_keeps_the_rules_passes(package: Path) -> None:
    assert violations(package) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("errors.py", "from pkg.report import page", "report comes after errors"),
        ("evaluation/generate.py", "from ..report import page", "report comes after evaluation"),
        ("kernels/head.py", "from pkg.errors import UserError", "kernels stands alone"),
        ("report/page.py", "import torch.nn", "loads torch (torch.nn)"),
        ("report/page.py", "from pkg.evaluation import generate", "loads torch (pkg.evaluation.generate -> torch)"),
        ("evaluation/generate.py", "from pkg import unlearn", "from the package's face"),
        ("errors.py", "#\n" * 401, "401 lines, more than 400"),
        ("errors.py", "def f():\n" + "    f()\n" * 100, "f has 101 lines, more than 100"),
        ("errors.py", "class A:\n" + "    def f(self): ...\n" * 21, "A has 21 methods, more than 20"),
        ("stray.py", "", "stands in no room"),
    ],
)
def test_a_breach_is_found(package: Path, name: str, text: str, problem: str) -> None:
    (package / name).write_text(text)
    assert any(problem in line for line in violations(package))
