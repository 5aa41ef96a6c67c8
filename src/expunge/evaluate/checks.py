"""What is refused before any weights load: files that must not be replaced, and things that do not belong together."""

import os
from collections.abc import Iterator
from pathlib import Path

from expunge.data.lume import find_lume, read_lume
from expunge.errors import DataError, ModelError, RunError
from expunge.evaluate.benchmarks.suite import Suite
from expunge.evaluate.examples_file import check_examples_file, examples_path
from expunge.evaluate.predictions import SPLITS, Predictions, read_predictions
from expunge.evaluate.results import read_results
from expunge.manifest import model_fingerprint, read_manifest
from expunge.model.load import base_name, check_model, load_tokenizer

ENCODED = 32
"""Texts of the data that two tokenizers are compared on."""


def check_output(output: str, *, overwrite: bool) -> None:
    """Refuse a results file that could not be written at the end, or that is something else.

    Raises:
        RunError: So.
    """
    path = Path(output)
    if path.is_dir():
        raise RunError(f"--output {output}: is a folder: give the name of a file")
    if path.exists():
        if not overwrite:
            raise RunError(f"--output {output}: exists already: give another name or --overwrite")
        try:
            read_results(path)
        except DataError:
            raise RunError(f"--output {output}: --overwrite replaces only a results file, and this is none") from None
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"--output {output}: cannot write in {parent}")
    check_examples_file(examples_path(output), overwrite=overwrite)


def check_predictions(name: str, *, overwrite: bool) -> None:
    """Refuse a folder for predictions that holds anything but earlier predictions.

    Raises:
        RunError: So.
    """
    folder = Path(name)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise RunError(f"--keep-predictions {folder}: exists already: name another, or --overwrite")
    try:
        read_predictions(folder)
    except DataError:
        raise RunError(
            f"--keep-predictions {folder}: --overwrite replaces only predictions, and this holds something else"
        ) from None


def check_reference(model: str, reference: str, suite: Suite, *, trust_remote_code: bool = False) -> None:
    """Refuse a reference that is no model, or reads texts in other tokens than the model does.

    Raises:
        ModelError: So.
    """
    try:
        check_model(base_name(reference), trust_remote_code=trust_remote_code)
        theirs = load_tokenizer(reference, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(str(error).replace("--model", "--reference", 1)) from None
    ours = load_tokenizer(model, trust_remote_code=trust_remote_code)
    if ours.get_vocab() == theirs.get_vocab() and all(
        ours(text)["input_ids"] == theirs(text)["input_ids"] for text in _texts(suite)
    ):
        return
    raise ModelError(
        f"--reference {reference}: its tokenizer is not that of --model {model} ({len(theirs):,} and {len(ours):,} "
        "tokens, or other rules), and numbers per token cannot be compared: give a retrained twin of the model"
    )


def other_model(run: Path, model: str) -> str | None:
    """What is to be said where the adapter of a run is put on a model in a folder that it was not made for."""
    file = run / "manifest.json"
    if not file.exists() or not Path(model).is_dir():
        return None
    manifest = read_manifest(file, "--adapter")
    recorded = manifest["settings"].get("model")
    if model_fingerprint(model) == manifest["model_sha256"]:
        return None
    return f"--model {model}: its weights or settings are not those that the run was made on ({recorded})"


def other_split(run: Path, benchmark: str, data: str | None, split: str | None) -> str | None:
    """What is to be said where a run has forgotten another split of the benchmark than the one that is scored."""
    file = run / "manifest.json"
    settings = read_manifest(file, "--adapter")["settings"] if file.exists() else {}
    forgotten = settings.get("split")
    if settings.get("benchmark") != benchmark or forgotten == split:
        return None
    try:
        if find_lume(data or "", forgotten) == find_lume(data or "", split):
            return None  # the plain layout, which has none
    except DataError:
        return f"the run has forgotten --split {forgotten} of {benchmark}, which this data has not"
    return (
        f"the run has forgotten --split {forgotten} of {benchmark}, and --split {split} is scored: "
        f"give --split {forgotten} to measure what it forgot"
    )


def check_same_rows(folder: str, found: Predictions, data: str, split: str) -> None:
    """Refuse predictions that are for other rows than those of the data.

    Raises:
        DataError: The two do not have the same ids.
    """
    rows = read_lume(data, split)
    for name in SPLITS:
        wanted, given = ([row.id for row in getattr(side, name)] for side in (rows, found))
        present, known = set(given), set(wanted)
        missing = [own for own in wanted if own not in present]
        strange = [own for own in given if own not in known]
        if missing or strange:
            example = f"{missing[0]!r} has none" if missing else f"{strange[0]!r} is not in the data"
            raise DataError(
                f"{folder}: these predictions are for other rows than {data}: of its {len(wanted)} {name} rows "
                f"{len(missing)} have none, and {len(strange)} are for rows that it does not have ({example[:80]})"
            )


def _texts(suite: Suite) -> Iterator[str]:
    for rows in suite.sets:
        for row in rows.examples[:ENCODED]:
            yield row.prompt + row.completion
