"""What is installed: the image is built from files that are there, and the package asks for what it imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest

from expunge.cli.main import main
from expunge.evaluation.results import PACKAGES
from expunge.runs.manifest import versions
from expunge.utils.versions import versions_of

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {"pyyaml": "yaml", "rouge-score": "rouge_score"}
"""Distribution -> what is imported of it, where that has another name."""
OPTIONAL = {"lm_eval", "wandb", "bitsandbytes", "tensorboard", "gguf", "IPython"}
UNSEEN = {"accelerate"}
"""Needed by transformers to place weights, and never imported here."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, with their continued lines in one."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def test_the_image_stands_on_a_version() -> None:
    (base,) = (rest for name, rest in instructions() if name == "FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), f"{base} is not pinned to a patch version"
    least = tuple(map(int, re.findall(r"\d+", PROJECT["requires-python"])))
    assert tuple(map(int, re.findall(r"\d+", base)[:2])) >= least


def test_everything_that_is_copied_is_there_and_reaches_the_build() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    assert len(sources) == 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in kept, f"{source} is left out by .dockerignore"


def test_arguments_are_used_and_the_command_is_ours() -> None:
    known = instructions()
    assert {name for name, _ in known} <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    for argument in (rest.partition("=")[0] for name, rest in known if name == "ARG"):
        assert any(name == "RUN" and re.search(rf"\$\{{?{argument}\b", rest) for name, rest in known), argument
    (entry,) = (ast.literal_eval(rest) for name, rest in known if name == "ENTRYPOINT")
    assert entry == list(PROJECT["scripts"])
    for extra in re.findall(r"\.\[([\w,-]+)\]", dict(known)["RUN"]):
        assert set(extra.split(",")) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("name", ["shtab", "huggingface_hub", "torch"])
def test_versions_that_are_tested_are_pinned(name: str) -> None:
    assert re.search(rf"^{name}==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_a_source_tree_that_is_not_installed_knows_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine that finds it by PYTHONPATH alone."""
    installed = Distribution.from_name

    def without(name: str) -> Distribution:
        if name in ("expunge", "peft"):
            raise PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(Distribution, "from_name", without)
    for found in (versions(), versions_of(*PACKAGES)):
        assert found["expunge"] == PROJECT["version"]
        assert "torch" in found
        assert "peft" not in found
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"expunge {PROJECT['version']}\ntorch ")


def test_what_is_imported_is_asked_for_and_nothing_else() -> None:
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    imported -= {*sys.stdlib_module_names, *OPTIONAL, "expunge"}
    asked = {re.split(r"[<>=\[ ]", need)[0].lower() for need in PROJECT["dependencies"]}
    assert imported == {NAMES.get(name, name) for name in asked} - UNSEEN
