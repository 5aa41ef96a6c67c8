"""`expunge evaluate` and `expunge score`: from a model, or from stored predictions, to a results file."""

import os
from pathlib import Path
from typing import Any

from expunge.config import EvaluateConfig
from expunge.data.lume import read_lume
from expunge.data.tokenize import completion_ids, prompt_ids
from expunge.errors import ConfigError, DataError, RunError
from expunge.evaluate.predictions import Predictions, read_any, read_mmlu, read_predictions, write_predictions
from expunge.evaluate.results import read_results, semeval_results, write_results
from expunge.evaluate.semeval import score
from expunge.evaluate.semeval_run import evaluate_semeval
from expunge.model.adapter import adapter_folder, attach_adapter
from expunge.model.load import load_model
from expunge.model.preflight import measure_join
from expunge.progress import Reporter


def evaluate(config: EvaluateConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Score a model, with an adapter on it or not, and write the results file.

    Args:
        config: The settings.
        reporter: Where progress goes; silent when None.

    Returns:
        The content of the results file.

    Raises:
        UserError: The input or a setting is at fault; nothing has been written then.
    """
    reporter = reporter or Reporter(quiet=True)
    if config.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {config.max_new_tokens}: must be at least 1")
    _check_output(config.output, overwrite=config.overwrite)
    if config.keep_predictions:
        _check_predictions(config)
    mmlu = read_mmlu(config.mmlu) if config.mmlu else None
    data = read_lume(config.data, config.split)
    if config.adapter:
        adapter_folder(config.adapter)
    loaded = load_model(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    report = measure_join(loaded, data.forget + data.retain, style=config.join)
    reporter.say(f"join: {report}")
    if config.adapter:
        attach_adapter(loaded, config.adapter)

    scores, predictions = evaluate_semeval(
        loaded,
        data,
        encode_prompt=lambda example: prompt_ids(loaded.tokenizer, example, report.join),
        encode_draft=lambda example: completion_ids(loaded.tokenizer, example, report.join),
        max_new_tokens=config.max_new_tokens,
        mmlu=mmlu,
        reporter=reporter,
    )
    settings = {"split": config.split, "max_new_tokens": config.max_new_tokens, "dtype": str(loaded.dtype)[6:]}
    results = semeval_results(scores, predictions, model=config.model, adapter=config.adapter, settings=settings)
    if config.keep_predictions:
        write_predictions(config.keep_predictions, predictions, overwrite=config.overwrite)
    write_results(config.output, results, overwrite=config.overwrite)
    return results


def score_predictions(
    predictions: str, output: str, *, mmlu: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Score stored generations, Expunge's own or the organisers', and write the results file.

    Raises:
        DataError: The folder holds no predictions that can be read.
        RunError: `output` exists and `overwrite` is off.
    """
    _check_output(output, overwrite=overwrite)
    accuracy = read_mmlu(mmlu) if mmlu else None
    found: Predictions = read_any(predictions)
    scores = score(found.forget, found.retain, found.member, found.nonmember, accuracy)
    results = semeval_results(scores, found)
    write_results(output, results, overwrite=overwrite)
    return results


def _check_output(output: str, *, overwrite: bool) -> None:
    """Refuse, before any work, a results file that could not be written at the end, or that is something else."""
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


def _check_predictions(config: EvaluateConfig) -> None:
    """Refuse a folder for predictions that holds anything but earlier predictions."""
    folder = Path(config.keep_predictions or "")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not config.overwrite:
        raise RunError(f"--keep-predictions {folder}: exists already: name another, or --overwrite")
    try:
        read_predictions(folder)
    except DataError:
        raise RunError(
            f"--keep-predictions {folder}: --overwrite replaces only predictions, and this holds something else"
        ) from None
