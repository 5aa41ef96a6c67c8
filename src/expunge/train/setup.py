"""Everything that an unlearning run needs before its first step, checked in the order of what it costs to check."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge.config import SETS, UnlearnConfig
from expunge.config.checks import first_failed
from expunge.data.examples import Example, text_key
from expunge.data.holdout import Halves, example_hashes, split_off, unseen_alone
from expunge.data.lowercase import in_lower_case
from expunge.data.sets import Sets, fingerprints, pairs_for, unasked
from expunge.data.tokenize import TokenizedExample, tokenize_all
from expunge.errors import DataError, ModelError
from expunge.losses import ForgetLoss
from expunge.losses.collate import SideRows
from expunge.model.load import LoadedModel, load_model, load_shared
from expunge.model.prompt_format import PromptFormatReport, measure_prompt_format
from expunge.model.shard import held_bytes, own_part
from expunge.model.tokenizer_files import misread
from expunge.runs.reads import ModelState, model_state
from expunge.train.before_weights import check_origin, check_texts_fit, longest_text, read_texts, without_unseen
from expunge.train.unused import unused
from expunge.train.validation import ValidationRows
from expunge.utils import coarse
from expunge.utils.distributed import current
from expunge.utils.progress import Reporter
from expunge.utils.text import counted, show_bytes

REFERENCE_WIDTH, REFERENCE_RATE, BOUNDED_RATE = 256, 1.5e-3, 3e-3
"""The default learning rate is REFERENCE_RATE up to a hidden size of REFERENCE_WIDTH and falls with 1 / width above;
BOUNDED_RATE with `target_kl`, whose gradient is bounded and vanishes at the target."""
LOOKED_AT = 32
"""Texts to forget that are read twice, by the tokenizer and by its file."""
SAVE_EVERY, SAVE_EVERY_OF_SMALL, SMALL = 100, 1000, 1e9
"""Steps between checkpoints where the settings do not say; the second on CUDA with fewer than `SMALL` parameters, of
which a GPU takes 100 steps in a few seconds."""


@dataclass(frozen=True)
class SelectionRows:
    """The selection half of the unseen texts and of the texts that membership is judged on.

    Attributes:
        members: Rows that are to be forgotten.
        nonmembers: Rows that the model has never seen.
        short: Half of the unseen texts that are too short for membership.
        unseen: All that target NLLs are taken from: `nonmembers`, and all that are too short, of which no attack is
            reported, and nothing is trained on.
        hashes: What stands for all of them, for whoever reports on the others.
        kinds: Groups of the forget rows that have the text of one of `members`.
    """

    members: list[TokenizedExample]
    nonmembers: list[TokenizedExample]
    short: list[TokenizedExample]
    unseen: list[TokenizedExample]
    hashes: list[str]
    kinds: frozenset[str]

    @property
    def does(self) -> str:
        """What these rows say of the run."""
        if not self.members:
            return f"{len(self.nonmembers)} unseen texts say how far to go"
        counts = f"{len(self.members)} texts to forget and {len(self.nonmembers)} unseen ones"
        return f"{counts} say how far to go and when to stop"


@dataclass
class Prepared:
    """A run that is ready to start.

    Attributes:
        config: The resolved settings (no `auto` left where the run has decided).
        loaded: The untouched model.
        loss: The forget loss.
        forget: Tokenized rows, in the order of the file; likewise those of the other sets.
        pairs: For each forget row its prompt with another completion, where the loss needs it.
        selection: Rows that say when to stop; None where there are too few unseen texts, or they are not to be used.
        reported: Of the holdout rows those that do not steer the run, so that losses are reported on them.
        prompt_format: What was measured of the way from prompt to completion.
        texts: Set -> what stands for its texts, whatever is read of them; see `fingerprints`.
        model_files: State of the files of model and origin before they were loaded.
        warnings: Findings that the user should read.
        unseen_doubts: Those of them that say why the unseen texts may be of another kind.
        lower: The same with forget, retain, test and selection in lower case; None where the run has no use for it.
        few_unseen: Unseen texts that are too few to steer by, where there is an origin whose NLLs they scale.
    """

    config: UnlearnConfig
    loaded: LoadedModel
    loss: ForgetLoss
    forget: list[TokenizedExample]
    retain: list[TokenizedExample]
    test: list[TokenizedExample]
    holdout: list[TokenizedExample]
    instead: list[TokenizedExample]
    pairs: list[TokenizedExample]
    selection: SelectionRows | None
    reported: list[TokenizedExample]
    prompt_format: PromptFormatReport
    texts: dict[str, str]
    model_files: ModelState
    warnings: list[str]
    unseen_doubts: list[str] = field(default_factory=list)
    lower: "Prepared | None" = None
    few_unseen: list[TokenizedExample] = field(default_factory=list)

    @property
    def sides(self) -> dict[str, SideRows]:
        """The sides that a run trains on, with their spans; those without rows are left out.

        Behind the forget rows stand the same in lower case, where there are any.
        """
        config = self.config
        found = {
            "forget": SideRows([*self.forget, *(self.lower.forget if self.lower else [])], config.forget_span),
            "pairs": SideRows(self.pairs, "completion"),
            "instead": SideRows([] if self.pairs else self.instead, "completion"),
            "retain": SideRows(self.retain, config.kl_span if config.kl_weight else "completion"),
        }
        return {name: side for name, side in found.items() if side.rows}

    @property
    def sets(self) -> dict[str, list[TokenizedExample]]:
        """Set -> its rows."""
        return {name: getattr(self, name) for name in SETS}

    @property
    def validation(self) -> ValidationRows | None:
        """The rows of an evaluation step; None where the run has none."""
        selection = self.selection
        if selection is None or self.config.eval_every == 0:
            return None
        return ValidationRows.of(selection.members, selection.nonmembers, self.retain, self.forget, selection.short)

    @property
    def told(self) -> dict[str, list[TokenizedExample]]:
        """Set -> the rows that losses are reported on."""
        return self.sets | {"holdout": self.reported}


def prepare(config: UnlearnConfig, reporter: Reporter) -> Prepared:
    """Validate, read, load and tokenize.

    Raises:
        UserError: Whatever is wrong, before weights load wherever it can be known by then.
    """
    with reporter.working("reading the texts"):
        config, loss, sets, followed, whys = read_texts(config)
    pairs = pairs_for(sets, config.seed) if "pairs" in loss.needs else []
    if others := unasked(sets):
        then = "get their answers all the same"
        if pairs:
            then = "are not used, and texts to forget without an answer get a refusal"
        sets.warnings.append(f"{others} of the --instead prompts stand in no text to forget: they {then}")
    if config.origin:
        check_origin(config, config.origin)
    check_texts_fit(config, sets)
    model_files = model_state(config.model, config.origin)
    loaded = _load(config, reporter)
    for why in whys:
        reporter.say(why)
    max_length, bound = longest_text(config, loaded.context)
    with reporter.working("measuring the prompt format"):
        measured = measure_prompt_format(
            loaded,
            [*sets.forget, *sets.retain],
            style=config.prompt_format,
            end_of_text=config.end_of_text,
            max_length=max_length,
            seed=config.seed,
        )
    _check_finite(loaded, measured)
    reporter.say(f"prompt format: {measured}")
    sets.warnings += _misread(loaded, sets, reporter)

    def rows(examples: Sequence[Example], *, cut: bool = config.truncate_completions) -> list[TokenizedExample]:
        prompt_format = measured.chosen
        with reporter.working("tokenizing the texts"):
            return tokenize_all(
                loaded.tokenizer, examples, prompt_format, max_length=max_length, truncate_completions=cut, bound=bound
            )

    tokenized = {name: rows(getattr(sets, name)) for name in SETS}
    for name, side in tokenized.items():
        _tell(name, side, loaded.tokenizer, reporter)
    if cut := sum(row.truncated > 0 for row in tokenized["forget"]):
        sets.warnings.append(
            f"forget: {counted(cut, 'text')} longer than {bound} of {max_length} tokens: what was cut off (the head of "
            "a prompt; with --truncate-completions the end of a completion) is not trained on, and stays known: give "
            "such a text in pieces, a row each, or raise --max-length where the model reads more"
        )
    halves: Halves | None = None
    doubts: list[str] = []
    if followed is not None:
        try:
            with reporter.working("dividing the unseen texts"):
                if followed:
                    halves = split_off(followed, sets.nonmembers, sets.retain, loaded.tokenizer, doubts.append)
                else:
                    halves = unseen_alone(sets.nonmembers, sets.retain, loaded.tokenizer)
            sets.warnings += doubts
        except DataError as error:  # near-duplicates cannot be parted into halves
            config, told = without_unseen(config, loss, error)
            reporter.say(told)
    selection = None if halves is None else _selection(halves, sets.forget, partial(rows, cut=True))
    steers: set[str] = set()
    if selection is not None:
        reporter.say(f"selection: {selection.does}; evaluate reports on the others")
        steers = set(selection.hashes)
    marked = zip(tokenized["holdout"], example_hashes(sets.holdout), strict=True)
    prepared = Prepared(
        config=_resolve(config, loaded, measured, max_length),
        loaded=loaded,
        loss=loss,
        **tokenized,
        pairs=rows(pairs),
        selection=selection,
        few_unseen=rows(sets.nonmembers, cut=True) if config.origin and selection is None else [],
        reported=[row for row, digest in marked if digest not in steers],
        prompt_format=measured,
        model_files=model_files,
        texts=fingerprints(sets, steers),
        warnings=[*sets.warnings, *unused(config, loss, steered=selection is not None)],
        unseen_doubts=doubts,
        lower=None,
    )
    if config.lowercase_share and halves and "target_nll" in loss.needs:

        def lower(examples: Sequence[Example]) -> list[TokenizedExample]:
            return rows([in_lower_case(example) for example in examples], cut=True)  # it may have more tokens then

        prepared.lower = replace(
            prepared,
            forget=lower(sets.forget),
            retain=lower(sets.retain),
            test=lower(sets.test),
            selection=_selection(halves, sets.forget, lower),
        )
    return prepared


def _selection(
    halves: Halves, forget: Sequence[Example], rows: Callable[[Sequence[Example]], list[TokenizedExample]]
) -> SelectionRows:
    """The half that steers the run."""
    nonmembers, short, others = map(rows, (halves.nonmembers, halves.short, halves.others))
    texts = {text_key(example) for example in halves.members}
    kinds = frozenset(example.group for example in forget if text_key(example) in texts)
    unseen = [*nonmembers, *short, *others]
    return SelectionRows(rows(halves.members), nonmembers, short, unseen, halves.hashes, kinds)


def _load(config: UnlearnConfig, reporter: Reporter) -> LoadedModel:
    options = {name: getattr(config, name) for name in ("dtype", "device", "trust_remote_code", "revision")}
    with reporter.working("loading the model"):
        if config.shard_base:
            loaded = load_shared(config.model, current(), **options)
        else:
            loaded = load_model(config.model, load_in_4bit=config.load_in_4bit, **options)
    if config.shard_base:
        held, whole = map(show_bytes, held_bytes(loaded.base))
        reporter.say(f"base: {held} of {whole} in each of {current().count} processes")
    for note in loaded.told():
        reporter.say(note)
    return loaded


def _tell(name: str, side: list[TokenizedExample], tokenizer: PreTrainedTokenizerBase, reporter: Reporter) -> None:
    if side:
        cut = [row for row in side if row.truncated]
        told = coarse.tokens if coarse.few({name: len(side)}) else int  # as the manifest has them
        total = told(sum(map(len, side)))
        tail = f"; {len(cut)} were cut by {told(sum(row.truncated for row in cut)):,} tokens to fit" if cut else ""
        reporter.say(f"{name}: {counted(len(side), 'text')}, {counted(total, 'token')}{tail}")
        token = {tokenizer.unk_token_id} - {None, tokenizer.bos_token_id, tokenizer.eos_token_id}
        if unknown := sum(token_id in token for row in side for token_id in row.input_ids):
            reporter.warn(
                f"{name}: {told(unknown):,} of {total:,} tokens are unknown to the tokenizer, which has none "
                "for these characters: the model reads all of them as one, and can neither know nor forget them"
            )


def _misread(loaded: LoadedModel, sets: Sets, reporter: Reporter) -> list[str]:
    """That texts are read as other tokens than the model's file says, as a list of one; empty where they are not."""
    texts = [row.text for row in sets.forget[:LOOKED_AT]]
    with reporter.working("reading the tokenizer's own file"):
        count = misread(loaded, texts)
    if not count:
        return []
    return [
        f"{count} of {len(texts)} texts to forget that were looked at are read as other tokens than the model's "
        f"tokenizer.json says: transformers has rules of its own here ({type(loaded.tokenizer).__name__}). If the "
        "model learned by that file, what it knows in its own tokens stays: mend tokenizer_class or model_type"
    ]


def _check_finite(loaded: LoadedModel, measured: PromptFormatReport) -> None:
    """Look whether the model can say anything about its texts.

    Raises:
        ModelError: Its log-probabilities are not finite; the message names the weight where that comes from.
    """
    if math.isfinite(measured.token_loss) and all(map(math.isfinite, measured.losses.values())):
        return
    for name, parameter in loaded.base.named_parameters():
        if parameter.is_floating_point() and current().any(not own_part(parameter).isfinite().all()):
            raise ModelError(f"the model's weight {name} holds values that are not finite: its files are damaged")
    raise ModelError(f"the model's log-probabilities are not finite in {loaded.dtype}: try --dtype float32")


def _resolve(
    config: UnlearnConfig, loaded: LoadedModel, measured: PromptFormatReport, max_length: int
) -> UnlearnConfig:
    """The settings with every choice that was left to the run filled in, once these fit the model."""
    hidden = loaded.base.config.get_text_config().hidden_size
    reference = BOUNDED_RATE if config.loss == "target_kl" else REFERENCE_RATE
    rate = config.learning_rate or reference * min(1.0, REFERENCE_WIDTH / hidden)
    counted = config.is_given("epochs") and config.epochs is not None
    fast = loaded.device.type == "cuda" and loaded.base.num_parameters() < SMALL
    every = SAVE_EVERY_OF_SMALL if fast else SAVE_EVERY
    found: dict[str, Any] = {"prompt_format": measured.chosen.style, "dtype": str(loaded.dtype).removeprefix("torch.")}
    resolved = replace(
        config,
        **found,
        learning_rate=rate,
        min_steps=config.min_steps if config.is_given("min_steps") or not counted else 0,
        lora_alpha=float(config.lora_rank) if config.lora_alpha is None else config.lora_alpha,
        end_of_text="yes" if measured.chosen.end_of_text else "no",
        max_length=max_length,
        retain_test=config.test_share,
        save_every=every if config.save_every is None else config.save_every,
        device=str(loaded.device) if ":" in config.device else loaded.device.type,
    )
    first_failed([resolved.room_for_context()])  # the model's context is known now
    return resolved
