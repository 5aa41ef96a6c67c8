"""Whether forget texts are trained on after other texts, too, and how unlikely they should be there."""

from collections.abc import Sequence

from expunge.data.contexts import Contexts
from expunge.data.tokenize import TokenizedExample
from expunge.model.logps import sequence_logps
from expunge.train.setup import Prepared
from expunge.train.targets import nll_ratio
from expunge.train.validation import evenly
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
    if not tokens or "pairs" in needs:
        return None
    before = [*prepared.retain, *written]
    found = Contexts.of(before, prepared.loaded.tokenizer, tokens=tokens, max_length=config.max_length)
    return found if found.texts else None


def settled(
    contexts: Contexts | None,
    prepared: Prepared,
    written: Sequence[TokenizedExample],
    processes: Processes,
    reporter: Reporter,
) -> tuple[Contexts | None, float]:
    """The contexts, and what target NLLs are multiplied by in them; the adapter must be off.

    That is an unseen text's NLL after other texts over its NLL alone, by the untouched model. Where it is high and the
    settings do not ask for contexts, there are none: the model reads each text alone, and training on others moves it.

    Args:
        contexts: What may stand before forget rows.
        prepared: The run.
        written: Texts of the untouched model, which stand for unseen ones where there are none.
        processes: Those that share the work.
        reporter: Told what was found.
    """
    unseen, span = (prepared.selection.unseen, "all") if prepared.selection else (written, "completion")
    if contexts is None:
        if prepared.config.context_tokens:
            reporter.warn("--context-tokens: there are no texts to keep or to replay, so none can stand before others")
        return None, 1.0
    pairs = [
        (row, contexts.before(row, f"{prepared.config.seed} {at} unseen"))
        for at, row in enumerate(evenly(unseen, MOST_TEXTS))
    ]
    unseen, after = ([pair[at] for pair in pairs if pair[1].context] for at in (0, 1))
    if not unseen:
        return (contexts if prepared.config.context_tokens else None), 1.0
    ids = [row.input_ids for row in (*unseen, *after)]
    with reporter.track("unseen texts after others", len(ids)) as advance:
        logps = sequence_logps(prepared.loaded, ids, processes=processes, progress=advance)
    alone, behind = (
        [own[row.targets(span).start - 1 :] for own, row in zip(side, rows, strict=True)]
        for side, rows in ((logps[: len(unseen)], unseen), (logps[len(unseen) :], after))
    )
    ratio = nll_ratio(behind, alone)
    found = f"an unseen text's NLL is {ratio:.2f} times as high after other texts"
    if prepared.config.context_tokens is None and ratio > MOST_RATIO:
        reporter.say(f"contexts: none, since {found}: the model reads each text alone (--context-tokens)")
        return None, 1.0
    reporter.say(f"contexts: half of the time a text to forget stands after other texts; {found}")
    return contexts, ratio
