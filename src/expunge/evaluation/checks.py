"""What is refused before any weights load: files that must not be replaced, and things that do not belong together."""

import os
from collections.abc import Iterator
from pathlib import Path

from expunge.config import EvaluateConfig
from expunge.data.lume import find_lume, read_lume
from expunge.errors import DataError, ModelError, RunError
from expunge.evaluation.benchmarks.suite import Suite
from expunge.evaluation.examples_file import check_examples_file, examples_path
from expunge.evaluation.predictions import SPLITS, Predictions, read_predictions
from expunge.evaluation.results import read_results
from expunge.model.load import base_name, check_model, load_tokenizer
from expunge.runs.manifest import model_fingerprint, read_manifest

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


def mismatches(run: Path, config: EvaluateConfig, split: str | None) -> Iterator[str]:
    """What is to be said where a run's adapter is scored on another model or another split than the run's own.

    Args:
        run: The run, which may be a folder without a manifest.
        config: What is scored.
        split: The split that was read; None where there are none.
    """
    file = run / "manifest.json"
    if not file.exists():
        return
    manifest = read_manifest(file, "--adapter")
    settings = manifest["settings"]
    if Path(config.model).is_dir() and model_fingerprint(config.model) != manifest["model_sha256"]:
        made_on = settings.get("model")
        yield f"--model {config.model}: its weights or settings are not those that the run was made on ({made_on})"
    if settings.get("benchmark") == config.benchmark and settings.get("split") != split:
        yield from _other_split(config, settings["split"], split)


def _other_split(config: EvaluateConfig, forgotten: str, split: str | None) -> Iterator[str]:
    data = config.data or ""
    try:
        if find_lume(data, forgotten) != find_lume(data, split):
            yield (
                f"the run has forgotten --split {forgotten} of {config.benchmark}, and --split {split} is scored: "
                f"give --split {forgotten} to measure what it forgot"
            )
    except DataError:
        yield f"the run has forgotten --split {forgotten} of {config.benchmark}, which this data has not"


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
