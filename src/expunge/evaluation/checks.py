"""What is refused before any weights load, and what an evaluation takes from a run instead of asking for it again."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge.config import SETS, EvaluateConfig
from expunge.config.evaluate import OWN_FILES
from expunge.data.examples import Example
from expunge.data.lume import find_lume, read_lume
from expunge.data.readers import looks_like_path
from expunge.errors import ConfigError, DataError, ModelError, RunError
from expunge.evaluation.earlier import as_given
from expunge.evaluation.measurement import NO_ROWS
from expunge.evaluation.metrics import ATTACKS
from expunge.evaluation.paired import Table
from expunge.evaluation.predictions import SPLITS, Predictions, read_predictions
from expunge.evaluation.results import read_results
from expunge.evaluation.same_model import same_model
from expunge.evaluation.suite import Suite
from expunge.evaluation.values_file import check_values_file, values_path
from expunge.model.device import pick_device
from expunge.model.load import load_tokenizer, other_tokenizer
from expunge.model.source import base_name, source_of
from expunge.runs.manifest import known_base
from expunge.runs.reads import data_path
from expunge.runs.record import MERGED, check_adapter_kept, merged_from, read_manifest
from expunge.runs.settings import check_finished, run_settings
from expunge.runs.texts import other_texts, run_rows

ENCODED = 32
"""Texts of the data that two tokenizers are compared on."""
LOSSES = ("forget", "nll")
"""By which a reference is known to be the model that was unlearned."""
FORMAT = ("prompt_format", "end_of_text")
BENCHMARK_FILES = ("data", "split")
"""Settings that an evaluation takes from a run beside `OWN_FILES`: prompt format, a benchmark's files."""


def resolved(config: EvaluateConfig) -> EvaluateConfig:
    """The settings with what they leave open filled in from `--run`, or from the run of `--adapter` or `--model`.

    `--run` gives all, and so does a run as `--model` where nothing says what it is to be scored on; of an adapter, the
    prompt format and, on the run's own benchmark, the split.

    Raises:
        RunError: A run's manifest cannot be read, or it is not finished.
        ConfigError: `--run` contradicts another flag.
    """
    flag, asked = ("--adapter", config.adapter) if config.adapter else ("--run", config.run)
    folder = run_of(asked) if config.model and asked else None
    if folder and folder.resolve() == Path(config.model).resolve():
        raise ConfigError(f"--model {config.model}: is a run, which has an adapter: leave {flag} out")
    if config.run is None and not config.adapter and is_run(config.model):
        if not (config.benchmark or config.data or config.forget):
            return resolved(replace(config, run=config.model, model=""))
        made = read_manifest(Path(config.model) / "manifest.json", "--model")["settings"]
        revision = config.revision or made.get("revision")
        config = replace(config, model=made.get("model") or "", revision=revision, adapter=config.model)
    if config.run is not None:
        if config.adapter not in (None, config.run):
            raise ConfigError(f"--run {config.run}: has an adapter: leave --adapter out")
        check_finished(config.run)
        settings = read_manifest(Path(config.run) / "manifest.json", "--run")["settings"]
        benchmark = config.benchmark or settings.get("benchmark") or "custom"
        given = config
        files: tuple[str, ...] = OWN_FILES if benchmark == "custom" else BENCHMARK_FILES
        others = {"test": config.retain_test, "retain_test": config.test}  # of which a run then gives none
        files = tuple(name for name in files if not others.get(name))
        same = benchmark == (settings.get("benchmark") or "custom")
        origin = settings.get("origin") or ""
        gone = (looks_like_path(origin) or origin.endswith(".gguf")) and data_path(origin) is None
        shown = not (config.reference or gone)
        place = ("revision",) if config.model in ("", settings.get("model")) else ()  # one given instead has its own
        names = ("model", "load_in_4bit", *place, *(("origin",) if shown else ()))
        config = replace(
            _filled(config, settings, (*names, *files) if same else names),
            adapter=config.run,
            benchmark=benchmark,
            output=config.output or str(Path(config.run) / "results.json"),
        )
        for name in (*SETS, "data"):
            place = getattr(config, name)
            local = name == "data" or looks_like_path(place or "")
            if place != getattr(given, name) and local and data_path(place) is None:
                raise RunError(f"--run {config.run}: was made with --{name} {place}, which is not here: give --{name}")
    config = replace(config, benchmark=config.chosen_benchmark)
    if config.adapter and (folder := run_of(config.adapter)):
        check_finished(folder, "--adapter")
        manifest = read_manifest(folder / "manifest.json", "--adapter")
        check_adapter_kept(folder, manifest, "--adapter")
        settings = manifest["settings"]
        split = ("split",) if settings.get("benchmark") == config.benchmark else ()
        config = _filled(config, settings, (*split, *(FORMAT if config.prompt_format == "auto" else ())))
    return config


def is_run(name: str) -> bool:
    """Whether a folder is a run directory and no model."""
    folder = Path(name)
    return bool(name) and (folder / "manifest.json").is_file() and not (folder / "config.json").exists()


def run_of(adapter: str) -> Path | None:
    """The run that an adapter lies in; None of an adapter from elsewhere."""
    folders = (Path(adapter), Path(adapter).resolve().parent)
    return next((folder for folder in folders if (folder / "manifest.json").is_file()), None)


def check_bits(config: EvaluateConfig) -> None:
    """Refuse weights in 4 bits, as a run may ask for them, where the device has none.

    Raises:
        ConfigError: So.
    """
    if config.load_in_4bit and (device := pick_device(config.device).type) != "cuda":
        raise ConfigError(
            f"--load-in-4bit{f' of --run {config.run}' if config.run else ''}: needs a CUDA device, this is {device}: "
            "--load-in-4bit false scores the whole weights, which are another model's"
        )


def check_attacks(config: EvaluateConfig) -> None:
    """Refuse attacks that are unknown, or that lack what they need.

    Raises:
        ConfigError: So.
    """
    unknown = [name for name in config.attack_names if name not in ATTACKS]
    if unknown:
        known = ", ".join(ATTACKS)
        raise ConfigError(f"--attacks {config.attacks}: unknown {', '.join(unknown)}; known are {known}")
    for name in config.attack_names:
        if "reference" in ATTACKS[name].needs and not (config.reference or config.origin):
            raise ConfigError(f"--attacks {name} needs --reference, the model to compare with")
        if "gradient" in ATTACKS[name].needs and config.shard_base:
            raise ConfigError(f"--shard-base: --attacks {name} cannot be measured on a sharded base")


def _filled(config: EvaluateConfig, settings: dict[str, Any], names: tuple[str, ...]) -> EvaluateConfig:
    """The settings with those of a run where they stand at their defaults."""
    fresh = EvaluateConfig()
    taken = {name: settings[name] for name in names if settings.get(name) is not None}
    return replace(
        config, **{name: value for name, value in taken.items() if getattr(config, name) == getattr(fresh, name)}
    )


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
    check_place(f"--output {output}", path.parent)
    check_values_file(values_path(output), overwrite=overwrite)


def check_place(flag: str, folder: Path) -> None:
    """Refuse a folder in which what a flag names could not be written at the end.

    Raises:
        RunError: So.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{flag}: cannot write in {there}")


def check_predictions(name: str, *, overwrite: bool) -> None:
    """Refuse a folder for predictions that could not be written at the end, or holds anything but earlier ones.

    Raises:
        RunError: So.
    """
    folder = Path(name)
    check_place(f"--keep-predictions {folder}", folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise RunError(f"--keep-predictions {folder}: exists already: name another, or --overwrite")
    try:
        read_predictions(folder)
    except DataError:
        raise RunError(
            f"--keep-predictions {folder}: --overwrite replaces only predictions, and this holds something else"
        ) from None


def compared_with(config: EvaluateConfig) -> tuple[str, str]:
    """The model that is shown beside the one that is scored, and its flag; empty without one."""
    return (config.reference, "--reference") if config.reference else (config.origin or "", "--origin")


def check_reference(config: EvaluateConfig, suite: Suite, base: str | None) -> None:
    """Refuse a reference that is no model, reads texts in other tokens than the model does, or is the untouched model.

    `base` is the fingerprint of the model where it is known by now.

    Raises:
        ModelError: So.
    """
    reference, flag = compared_with(config)
    theirs = other_tokenizer(reference, flag, trust_remote_code=config.trust_remote_code)
    source = source_of(reference)
    if config.load_in_4bit and (source.adapters or source.gguf):
        raise ModelError(
            f"{flag} {reference}: cannot be loaded in 4 bits (an adapter's fold, or a GGUF file): merge it, or give "
            "--load-in-4bit false"
        )
    if config.adapter or (Path(config.model) / MERGED).is_file():
        scored, compared, below = base or known_base(config.model), known_base(reference), base_name(reference)
        bases = {merged_from(config.model, scored or "", "model_sha256"), scored if config.adapter else None} - {None}
        ways = {
            "is": compared,
            "was merged from an adapter on": merged_from(reference, compared or "", "model_sha256"),
            "is an adapter on": compared if below == reference else known_base(below),
        }
        if what := next((what for what, base in ways.items() if base in bases), None):
            raise ModelError(
                f"{flag} {reference}: {what} the untouched model, which has seen the texts: give one that never did, "
                "or leave it out"
            )
    ours = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, revision=config.revision)
    if ours.get_vocab() == theirs.get_vocab() and all(
        ours(text)["input_ids"] == theirs(text)["input_ids"] for text in _texts(suite)
    ):
        return
    raise ModelError(
        f"{flag} {reference}: its tokenizer is not that of --model {config.model} ({len(theirs):,} and {len(ours):,} "
        "tokens, or other rules), and numbers per token cannot be compared: give one retrained from the same base"
    )


def check_computed(config: EvaluateConfig, theirs: Table, ours: Mapping[str, Table | None]) -> None:
    """Refuse a reference that gives the losses of the model that was unlearned, or of the untouched one, on the texts
    to forget: whatever merged it, and whatever its files say.

    Args:
        config: What is scored.
        theirs: What was measured of the reference.
        ours: What a model is -> what was measured of it, where it is known.

    Raises:
        ModelError: So.
    """
    if not (config.adapter or (Path(config.model) / MERGED).is_file()):
        return
    reference, flag = compared_with(config)
    known = theirs.get(LOSSES, NO_ROWS).by_id
    for what, table in ours.items():
        if table is not None and same_model(table.get(LOSSES, NO_ROWS).by_id, known):
            raise ModelError(
                f"{flag} {reference}: gives the losses of the {what} model, which has seen the texts: give one that "
                "never did, or leave it out"
            )


def mismatches(
    run: Path, config: EvaluateConfig, base: str | None, suite: Suite, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """What is to be said where a run's adapter is scored in another way than the run was made.

    Args:
        run: The run, which may be a folder without a manifest.
        config: What is scored.
        base: Fingerprint of the model that is scored; None where it is not known.
        suite: The texts that are scored.
        tokenizer: That of the model.
    """
    if not (run / "manifest.json").exists():
        return
    manifest = read_manifest(run / "manifest.json", "--adapter")
    settings = manifest["settings"]
    if base and base != manifest["model_sha256"]:
        made_on = settings.get("model")
        yield f"--model {config.model}: its weights or settings are not those that the run was made on ({made_on})"
    if config.run and settings.get("origin") and not (config.origin or config.reference):
        yield f"the run's --origin {settings['origin']} is not here, so it is not shown beside: give --origin"
    if settings.get("load_in_4bit") and not config.load_in_4bit:
        yield "the run was made with --load-in-4bit: it is scored on the whole weights, which are another model's"
    if config.prompt_format != "auto" and settings.get("prompt_format") not in (None, config.prompt_format):
        yield (
            f"--prompt-format {config.prompt_format}: the run was made with --prompt-format "
            f"{settings['prompt_format']}, so what is scored is not what was trained: leave --prompt-format out"
        )
    if settings.get("benchmark") == config.benchmark and settings.get("split") not in (None, config.split):
        yield from _other_split(config, settings["split"])
    if config.forget and config.forget == settings.get("forget"):
        then = run_settings(str(run))
        texts: dict[str, Sequence[Example]] = {"forget": as_given(suite["forget"].examples)}
        if config.retain_test and all(getattr(config, key) == settings.get(key) for key in ("retain", "retain_test")):
            texts |= {rows.name: rows.examples for rows in suite.sets if rows.name == "test"}
        yield from other_texts(
            manifest, then, {name: run_rows(then, tokenizer, examples) for name, examples in texts.items()}
        )


def _other_split(config: EvaluateConfig, forgotten: str) -> Iterator[str]:
    says = (
        f"the run has forgotten --split {forgotten} of {config.benchmark}, and --split {config.split} is "
        f"scored: give --split {forgotten} to measure what it forgot"
    )
    if config.benchmark not in ("semeval", "lume"):
        yield says
        return
    data = config.data or ""
    try:
        if find_lume(data, forgotten) != find_lume(data, config.split):
            yield says
    except DataError:
        yield f"the run has forgotten --split {forgotten} of {config.benchmark}, which this data has not"


def check_same_rows(folder: str, found: Predictions, data: str, split: str | None) -> None:
    """Refuse predictions that are for other rows than those of the data.

    Raises:
        DataError: The two do not have the same ids.
    """
    rows = read_lume(data, split)
    for name in SPLITS:
        wanted, given = (dict.fromkeys(row.id for row in getattr(side, name)) for side in (rows, found))
        missing, strange = [key for key in wanted if key not in given], [key for key in given if key not in wanted]
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
