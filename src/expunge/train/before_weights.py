"""Before weights load: texts are read, recipe and terms settled, and the model's tokenizer is looked at."""

import math
from typing import Any

from transformers import AutoConfig

from expunge.config import SETS, UnlearnConfig
from expunge.data.examples import check_sets
from expunge.data.holdout import FEWEST_ATTACKED, Side, enough_unseen
from expunge.data.sets import Sets, membership_texts, read_sets
from expunge.data.tokenize import check_lengths
from expunge.errors import ConfigError, DataError
from expunge.losses import ForgetLoss, make_forget_loss
from expunge.model.limits import context_of
from expunge.model.load import load_tokenizer, other_tokenizer
from expunge.model.source import check_model
from expunge.utils.keys import keyed
from expunge.utils.text import counted
from expunge.utils.trackers import check_trackers


def read_texts(config: UnlearnConfig) -> tuple[UnlearnConfig, ForgetLoss, Sets, list[Side] | None, list[str]]:
    """Check and read what needs no model, and settle the recipe and its terms; the texts, forgotten and unseen, that
    steer the run (empty where unseen ones give targets alone, None where it is to follow none); and what was settled,
    and why.
    """
    config.validate()
    check_trackers(config.report_to)
    keyed()  # which makes the key of hashes, or says why there can be none
    loss = make_forget_loss(config.loss, config.loss_args)
    targeted = "target_nll" in loss.needs
    sets = read_sets(config)
    kept_count = len(sets.retain) + (0 if config.test else len(sets.test))
    sets.warnings += check_sets({name: getattr(sets, name) for name in SETS}, kept_count=kept_count)
    if not sets.forget:
        raise DataError("the forget set is empty: there is nothing to forget")
    if len(sets.forget) < (enough := 2 * FEWEST_ATTACKED):
        sets.warnings.append(
            f"forget has {counted(len(sets.forget), 'text')}: on fewer than {enough}, and {enough} unseen ones "
            "(--holdout), answers of the report stay `unclear`: give more where you need them"
        )
    whys = []
    if config.needs_retain and not (config.retain or config.benchmark):
        config = config.without_retain()
        whys.append(
            "no texts to keep: instead of the retain terms, texts that the model writes itself hold the rest in place "
            f"(--replay-weight {config.replay_weight:g})"
        )
    if config.test_share and not sets.test:
        whys.append("test: too few different retain texts to leave some for testing: all are trained on")
    if sets.test and not (config.test or sets.retain):
        whys.append(f"test: {len(sets.test):,} retain texts say whether the rest is kept; none is trained on")
    elif sets.test and not config.test:
        whys.append(
            f"test: {len(sets.test):,} of {len(sets.test) + len(sets.retain):,} retain texts are not trained on and "
            "say whether the rest is kept (--retain-test)"
        )
    if targeted and config.origin:
        whys.append("target NLLs come from --origin")
    followed: list[Side] | None = None
    if targeted or config.eval_every != 0:
        try:
            followed = membership_texts(sets)
        except DataError as error:
            if targeted and not config.origin and not config.eval_every and enough_unseen(sets.nonmembers):
                config, followed = config if config.eval_every == 0 else config.without_unseen(), []
                told = (
                    f"missing: texts to forget: {error}. Half of the unseen texts say how far to go all the same, and "
                    "the run takes a set number of epochs"
                )
            else:
                config, told = without_unseen(config, loss, error)
            whys.append(told)
    return config, loss, sets, followed, whys


def without_unseen(config: UnlearnConfig, loss: ForgetLoss, why: DataError) -> tuple[UnlearnConfig, str]:
    """The settings of a run that no unseen text steers, and what is to be said of it.

    Raises:
        DataError: The settings need unseen texts.
    """
    written = "target_nll" in loss.needs and not config.origin
    if config.eval_every:
        raise DataError(f"--eval-every {config.eval_every} needs unseen texts: {why}; or leave it out")
    if written and not config.replay_weight:
        raise DataError(
            f"--loss {config.loss} needs unseen texts: {why}; or give a --replay-weight above 0: then texts that "
            "the model writes itself stand for them"
        )
    if config.eval_every is None:
        config = config.without_unseen()
    stand = "texts that the model writes itself stand for them, and " if written else ""
    return config, f"missing: unseen texts: {why}. Without them {stand}the run takes a set number of epochs"


def check_origin(config: UnlearnConfig, origin: str) -> None:
    """Look whether the model that the target NLLs come from is one, with the tokenizer of the model.

    Raises:
        ModelError: It is none, or the model is none.
        ConfigError: Its tokenizer has other tokens.
    """
    trusted = config.trust_remote_code
    check_model(config.model, trust_remote_code=trusted, revision=config.revision)
    tokenizer = load_tokenizer(config.model, trust_remote_code=trusted, revision=config.revision)
    if other_tokenizer(origin, "--origin", trust_remote_code=trusted).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"--origin {origin}: has another tokenizer than the model: take one with the same")


def check_texts_fit(config: UnlearnConfig, sets: Sets) -> None:
    """Refuse texts that are too long before weights load; of GGUF files a tokenizer is read with them.

    Raises:
        DataError: There is one.
        ModelError: The model is none.
    """
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
    source = check_model(config.model, **options)
    if config.truncate_completions or source.gguf:
        return
    settings = AutoConfig.from_pretrained(source.base, trust_remote_code=config.trust_remote_code, **source.options)
    max_length, bound = longest_text(config, context_of(settings))
    examples = (example for name in SETS for example in getattr(sets, name))
    if long := [example for example in examples if len(example.completion.encode()) > max_length]:
        check_lengths(load_tokenizer(config.model, **options), long, max_length, bound)  # a token has a byte at least


def longest_text(config: UnlearnConfig, context: int | None) -> tuple[int, str]:
    """Tokens of the longest text, and what sets the bound."""
    bound = "--max-length" if config.max_length < (context or math.inf) else "the model's context"
    return min(config.max_length, context or config.max_length), bound
