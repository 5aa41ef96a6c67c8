"""Everything that an unlearning run needs before its first step, checked in the order of what it costs to check."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate.tracking import get_available_trackers

from expunge.config import SETS, UnlearnConfig
from expunge.config.checks import check_types
from expunge.data.examples import Example, check_sets, parse_columns, read_examples
from expunge.data.holdout import check_unseen, documents, example_hashes, split_off
from expunge.data.lume import read_lume
from expunge.data.tokenize import TokenizedExample, tokenize_all
from expunge.errors import ConfigError, DataError, ModelError, UserError
from expunge.model.load import LoadedModel, load_model, load_shared
from expunge.model.prompt_format import JoinReport, measure_join
from expunge.model.shard import held_bytes, own_part
from expunge.utils.distributed import current
from expunge.utils.text import show_bytes

REFERENCE_WIDTH, REFERENCE_RATE = 256, 1.5e-3
"""The default learning rate is REFERENCE_RATE up to a hidden size of REFERENCE_WIDTH and falls with 1 / width above."""


@dataclass
class Sets:
    """The texts of a run; all but `forget` may be empty.

    Attributes:
        forget: Texts to forget.
        retain: Texts to keep.
        holdout: Texts like the forget set that the model has never seen, as the user gave them.
        instead: What the model should say instead.
        members: What membership is judged on: the forget set, or the benchmark's documents.
        nonmembers: Texts like `members` that the model has never seen: `holdout`, or the benchmark's documents.
    """

    forget: list[Example]
    retain: list[Example]
    holdout: list[Example]
    instead: list[Example]
    members: list[Example]
    nonmembers: list[Example]

    @property
    def all(self) -> list[Example]:
        """Texts that the model has seen: forget and retain."""
        return self.forget + self.retain


@dataclass(frozen=True)
class SelectionRows:
    """The selection half of the membership texts.

    Attributes:
        members: Rows that are to be forgotten.
        nonmembers: Rows that the model has never seen.
        hashes: What stands for both, for whoever reports on the other half.
    """

    members: list[TokenizedExample]
    nonmembers: list[TokenizedExample]
    hashes: list[str]


@dataclass
class Prepared:
    """A run that is ready to start.

    Attributes:
        config: The resolved settings (no `auto` left where the run has decided).
        loaded: The untouched model.
        forget: Tokenized rows, in the order of the file; likewise those of the other sets.
        join: What the preflight found.
        warnings: Findings that the user should read.
        selection: Rows that say when to stop, and their hashes; None where there are too few unseen texts.
        instead: Tokenized rows of what to say instead.
        unlooked: Of the holdout rows those that do not say when to stop, so that losses are reported on them.
    """

    config: UnlearnConfig
    loaded: LoadedModel
    forget: list[TokenizedExample]
    retain: list[TokenizedExample]
    holdout: list[TokenizedExample]
    join: JoinReport
    warnings: list[str]
    selection: SelectionRows | None = None
    instead: list[TokenizedExample] = field(default_factory=list)
    unlooked: list[TokenizedExample] = field(default_factory=list)

    @property
    def told(self) -> dict[str, list[TokenizedExample]]:
        """Set -> the rows that losses are reported on."""
        return {name: getattr(self, name) for name in SETS} | {"holdout": self.unlooked}


def read_sets(config: UnlearnConfig) -> tuple[Sets, list[str]]:
    """Read the texts that the settings name.

    Returns:
        The sets and the warnings about them (ids and numbers, no texts).

    Raises:
        DataError: A file or row that cannot be used.
        ConfigError: `--columns` that cannot be used.
    """
    columns = parse_columns(config.columns) if config.columns else None

    def read(source: str | None) -> list[Example]:
        return read_examples(source, columns=columns) if source else []

    instead = read(config.instead)
    if config.benchmark == "semeval":
        found = read_lume(config.data or "", config.split)
        retain = found.retain if config.needs_retain else []
        if config.holdout:
            holdout = read(config.holdout)
            sets = Sets(found.forget, retain, holdout, instead, found.forget, holdout)
        else:
            sets = Sets(found.forget, retain, [], instead, found.member or [], found.nonmember or [])
    else:
        forget, holdout = read(config.forget), read(config.holdout)
        retain = read(config.retain) if config.needs_retain else []
        sets = Sets(forget, retain, holdout, instead, forget, holdout)
    _check_apart(config, sets)
    return sets, check_sets(sets.forget, sets.retain or None, sets.holdout, sets.instead)


def _check_apart(config: UnlearnConfig, sets: Sets) -> None:
    """Look whether what the model should say instead answers something, and whether that and the unseen texts are not
    what it should forget.

    Raises:
        DataError: The first row to say instead where it is not so, or all of `holdout` is to be forgotten.
    """
    forgotten = set(example_hashes(sets.forget))
    for row, mark in zip(sets.instead, example_hashes(sets.instead), strict=True):
        if not row.prompt:
            raise DataError(f"{row.source}: --instead needs a prompt beside what the model should say to it")
        if mark in forgotten:
            raise DataError(f"{row.source}: --instead holds a text that is to be forgotten")
    if config.holdout:
        check_unseen(config.holdout, sets.forget, sets.holdout)


def prepare(config: UnlearnConfig, say: Callable[[str], None]) -> Prepared:
    """Validate, read, load and tokenize.

    Args:
        config: The settings as given.
        say: Told, in a line each, what was decided.

    Raises:
        UserError: Whatever is wrong, before weights load wherever it can be known by then.
    """
    config.validate()
    for name in ("model", *SETS, "data"):
        source = getattr(config, name)
        if source and os.path.exists(source) and Path(source).resolve().is_relative_to(Path(config.output).resolve()):
            raise ConfigError(f"--output {config.output} holds --{name} {source}: choose another place")
    check_trackers(config.report_to)
    sets, warnings = read_sets(config)
    followed = _followed(config, sets)
    if followed is None and sets.nonmembers:
        say(f"recipe {config.recipe}, which does not follow the unseen texts: {_why_not_followed(sets)}")
    options = {"dtype": config.dtype, "device": config.device, "trust_remote_code": config.trust_remote_code}
    if config.shard_base:
        loaded = load_shared(config.model, current(), **options)
        held, whole = map(show_bytes, held_bytes(loaded.base))
        say(f"base: {held} of {whole} in each of {current().count} processes")
    else:
        loaded = load_model(config.model, load_in_4bit=config.load_in_4bit, **options)
    if loaded.folded:
        say(f"model: adapter {loaded.folded} folded into its base; the reference is the folded model")
    if loaded.plain_head:
        say(f"head: plain path, slower and larger, because {loaded.plain_head}")
    max_length = min(config.max_length, loaded.context or config.max_length)
    report = measure_join(
        loaded,
        sets.all,
        style=config.join,
        end_of_text=config.end_of_text,
        max_length=max_length,
        seed=config.seed,
    )
    _check_finite(loaded, report)
    say(f"join: {report}")

    def rows(examples: list[Example], *, cut: bool = config.truncate_completions) -> list[TokenizedExample]:
        return tokenize_all(loaded.tokenizer, examples, report.join, max_length=max_length, truncate_completions=cut)

    tokenized = {name: rows(getattr(sets, name)) for name in SETS}
    for name, side in tokenized.items():
        if side:
            cut = [row for row in side if row.truncated]
            tail = f"; {len(cut)} were cut by {sum(row.truncated for row in cut):,} tokens to fit" if cut else ""
            say(f"{name}: {len(side):,} texts, {sum(map(len, side)):,} tokens{tail}")
    if not sets.forget:
        raise DataError("the forget set is empty: there is nothing to forget")
    selection, unlooked = None, tokenized["holdout"]
    if followed is not None:
        hashes, (members, nonmembers) = split_off(followed, sets.retain, loaded.tokenizer)
        counts = f"{len(members)} texts to forget and {len(nonmembers)} unseen ones"
        say(f"selection: {counts} say when to stop; evaluate reports on the others")
        selection = SelectionRows(rows(members, cut=True), rows(nonmembers, cut=True), hashes)
        looked_at = set(hashes)
        unlooked = [
            row for row, own in zip(unlooked, example_hashes(sets.holdout), strict=True) if own not in looked_at
        ]
    resolved = _resolve(config, loaded, report, max_length)
    return Prepared(
        resolved, loaded, **tokenized, join=report, warnings=warnings, unlooked=unlooked, selection=selection
    )


def fitting_recipe(settings: Mapping[str, Any]) -> str:
    """The recipe for settings that name none: `steered` where there are enough unseen texts, else `default`.

    Whatever cannot be read or is too little counts as no unseen texts; if it is a mistake, the run itself says so.
    """
    names = (*SETS, "benchmark", "data", "split", "columns")
    given = {name: settings[name] for name in names if name in settings}
    try:
        config = UnlearnConfig.from_recipe("steered", model="", **given)
        check_types(config)
        _followed(config, read_sets(config)[0])
    except UserError:
        return "default"
    return "steered"


def _followed(config: UnlearnConfig, sets: Sets) -> list[list[Example]] | None:
    """The texts, forgotten and unseen, that the run may follow; None where it is to follow none.

    Raises:
        DataError: There are no unseen texts, or too few.
    """
    if config.select_every == 0:
        return None
    asked = "--recipe steered" if config.recipe == "steered" else "--select-every"
    otherwise = f"; without them a run cannot know how deep is deep enough: leave out {asked}"
    if not sets.nonmembers:
        raise DataError(f"{config.data}: has no documents that the model has never seen: give --holdout{otherwise}")
    try:
        return membership_texts(sets)
    except DataError as error:
        raise DataError(f"{asked} follows unseen texts: {error}{otherwise}") from None


def _why_not_followed(sets: Sets) -> str:
    """Why a run does not follow its unseen texts: because it cannot, or because it takes another recipe."""
    try:
        membership_texts(sets)
    except DataError as error:
        return str(error)
    return "--recipe steered does"


def membership_texts(sets: Sets) -> list[list[Example]]:
    """The texts, forgotten and unseen, that membership can be judged on, one half of them while a run goes on.

    Texts that are trained on too, on whichever side, are no unseen ones and left out.

    Raises:
        DataError: There are too few of them.
    """
    seen = set(example_hashes([*sets.members, *sets.retain, *sets.instead]))
    unseen = [
        own for own, mark in zip(sets.nonmembers, example_hashes(sets.nonmembers), strict=True) if mark not in seen
    ]
    if not unseen:
        raise DataError(
            f"all {len(sets.nonmembers)} unseen texts are among those to forget, to keep or to say instead: give texts "
            "that the model has never seen"
        )
    return documents(sets.members, unseen)


def check_trackers(report_to: str | None) -> None:
    """Look whether accelerate can use the trackers that are asked for; it would leave out the others silently.

    Raises:
        ConfigError: One is unknown or not installed.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in report_to.split(",") if report_to else []:
        if name not in available:
            there = ", ".join(available) or "none"
            raise ConfigError(
                f"--report-to {name or report_to}: unknown or not installed; there is {there} (expunge[tensorboard])"
            )


def _check_finite(loaded: LoadedModel, report: JoinReport) -> None:
    """Look whether the model can say anything about its texts.

    Raises:
        ModelError: Its log-probabilities are not finite; the message names the weight where that comes from.
    """
    if math.isfinite(report.token_loss) and all(map(math.isfinite, report.losses.values())):
        return
    for name, parameter in loaded.base.named_parameters():
        if parameter.is_floating_point() and current().any(not own_part(parameter).isfinite().all()):
            raise ModelError(f"the model's weight {name} holds values that are not finite: its files are damaged")
    raise ModelError(f"the model's log-probabilities are not finite in {loaded.dtype}: try --dtype float32")


def _resolve(config: UnlearnConfig, loaded: LoadedModel, report: JoinReport, max_length: int) -> UnlearnConfig:
    """The settings with every choice that was left to the run filled in."""
    hidden = loaded.base.config.get_text_config().hidden_size
    rate = config.learning_rate or REFERENCE_RATE * min(1.0, REFERENCE_WIDTH / hidden)
    return replace(
        config,
        learning_rate=rate,
        lora_alpha=float(config.lora_rank) if config.lora_alpha is None else config.lora_alpha,
        join=report.join.style,
        end_of_text="yes" if report.join.end_of_text else "no",
        max_length=max_length,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device) if ":" in config.device else loaded.device.type,
    )
