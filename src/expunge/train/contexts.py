"""Whether forget texts are trained on after other texts, too, and how unlikely they should be there."""

from collections.abc import Sequence

from expunge.data.contexts import Contexts
from expunge.data.tokenize import TokenizedExample, evenly
from expunge.losses import TEXTS_ALONE
from expunge.model.logps import sequence_logps
from expunge.train.setup import Prepared
from expunge.train.targets import nll_ratio
from expunge.utils.distributed import Processes
from expunge.utils.progress import Reporter

TOKENS = 24
"""Tokens of other texts before a forget text, in the mean, where the settings do not name them."""
MOST_RATIO = 1.1
"""An unseen text's NLL after other texts over its NLL alone: a model with more does not read a text after others."""
MOST_TEXTS = 64
"""Unseen texts that are read for it."""


def contexts_of(prepared: Prepared, written: Sequence[TokenizedExample] = ()) -> Contexts | None:
    """What may stand before forget rows: texts to keep, and what the model has written; None where nothing may."""
    config, needs = prepared.config, prepared.loss.needs
    tokens = config.context_tokens
    if tokens is None:
        tokens = TOKENS if "target_nll" in needs else 0
    if not tokens or TEXTS_ALONE & {*needs}:
        return None
    before = [*prepared.retain, *written]
    found = Contexts.of(before, prepared.loaded.tokenizer, tokens=tokens, max_length=config.max_length)
    return found if found.texts else None


def settled(
    contexts: Contexts | None, prepared: Prepared, processes: Processes, reporter: Reporter
) -> tuple[Contexts | None, float]:
    """The contexts, and what target NLLs are multiplied by in them; the adapter must be off.

    That is an unseen text's NLL after other texts over its NLL alone, by the untouched model, of the second half of its
    tokens: with the first ones any model must find out that another text has begun. Where the settings do not
    ask for contexts, there are none if it is high (the model reads each text alone, and training on others moves it),
    or if no unseen text tells it: the model's own texts are likeliest where it wrote them.

    Args:
        contexts: What may stand before forget rows.
        prepared: The run.
        processes: Those that share the work.
        reporter: Told what was found.
    """
    asked = prepared.config.context_tokens is not None
    if contexts is None:
        if prepared.config.context_tokens:
            reporter.warn("--context-tokens: there are no texts to keep or to replay, so none can stand before others")
        return None, 1.0
    unseen = evenly(prepared.selection.unseen, MOST_TEXTS) if prepared.selection else []
    placed = [contexts.before(row, f"{prepared.config.seed} {at} unseen") for at, row in enumerate(unseen)]
    pairs = [(text, row) for text, row in zip(unseen, placed, strict=True) if row.context]
    if not pairs:
        if not asked:
            why = "no unseen text leaves room for others" if unseen else "no unseen texts steer this run"
            reporter.say(
                f"contexts: none: {why}, so nothing says whether the model reads texts after others "
                "(--context-tokens 24 trains on them)"
            )
        return (contexts if asked else None), 1.0
    with reporter.track("unseen texts after others", 2 * len(pairs)) as advance:
        alone, behind = (
            sequence_logps(
                prepared.loaded, [pair[at].input_ids for pair in pairs], processes=processes, progress=advance
            )
            for at in (0, 1)
        )
    behind = [logps[row.context :] for logps, (_, row) in zip(behind, pairs, strict=True)]
    ratio = nll_ratio(*([logps[len(logps) // 2 :] for logps in side] for side in (behind, alone)))
    found = f"an unseen text's NLL is {ratio:.2f} times as high after other texts"
    if not asked and ratio > MOST_RATIO:
        reporter.say(f"contexts: none, since {found}: the model reads each text alone (--context-tokens)")
        return None, 1.0
    reporter.say(f"contexts: half of the time a text to forget stands after other texts; {found}")
    return contexts, ratio
