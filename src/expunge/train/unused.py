"""Settings that were given and change nothing about a run: each is warned of, with the reason."""

from collections.abc import Iterator

from expunge.config import UnlearnConfig
from expunge.config.checks import flag
from expunge.losses import FORGET_LOSSES, TEXTS_ALONE, ForgetLoss


def unused(config: UnlearnConfig, loss: ForgetLoss, *, steered: bool) -> Iterator[str]:
    """A line for each setting that was given and is of no use to a run that unseen texts steer, or do not."""
    own_files = bool(config.holdout or config.test or config.instead)
    without = {
        "patience": (steered and config.eval_every != 0, "there are no evaluation steps"),
        "kl_span": (config.kl_weight > 0, "there is no retain KL"),
        "instead_weight": ("pairs" not in loss.needs, f"--loss {config.loss} has the answers as pairs of its own"),
        "data": (bool(config.benchmark), "there is no --benchmark"),
        "columns": (not config.benchmark or own_files, "a --benchmark has its own"),
    }
    for name, (used, why) in without.items():
        value = getattr(config, name)
        if config.is_given(name) and value != getattr(UnlearnConfig, name) and not used:
            yield f"{flag(name)} {value}: is not used: {why}"
    if config.lowercase_share and (not steered or "target_nll" not in loss.needs):
        yield (
            f"--lowercase-share {config.lowercase_share:g}: is not used: it needs a loss with target NLLs, and unseen "
            "texts that steer the run"
        )
    if config.origin and "target_nll" not in loss.needs:
        targeted = ", ".join(name for name, method in FORGET_LOSSES.items() if "target_nll" in method.needs)
        yield f"--origin {config.origin}: is not used: --loss {config.loss} has no target NLLs (those with: {targeted})"
    if config.context_tokens and TEXTS_ALONE & {*loss.needs}:
        yield (
            f"--context-tokens {config.context_tokens}: is not used: --loss {config.loss} compares each text with what "
            "the untouched model finds of it alone, or with another answer to its prompt"
        )
