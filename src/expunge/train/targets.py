"""How unlikely each token of a forget text should end: its target NLL.

From unseen texts: the mean NLL, under the untouched model, of the unseen texts of its kind (task and kind of the row,
prompt and completion apart; of all unseen texts where a kind has none), times how unlikely this token of the
vocabulary is in unseen texts, over the mean of all tokens. From an origin, a model that never saw the forget texts:
its own NLL of the token.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.errors import ConfigError
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.reference import RowValues
from expunge.train.setup import Prepared
from expunge.utils.distributed import Processes
from expunge.utils.progress import Reporter

LEAST_RELATIVE = 0.5
"""Least relative NLL of a token: what is easy in unseen texts, a digit of a year, may be what must be forgotten in
others."""


def target_nlls(prepared: Prepared, processes: Processes, reporter: Reporter) -> RowValues:
    """The target NLL of every target token of the forget rows, nats; the adapter must be off.

    Raises:
        ConfigError: The origin has another tokenizer.
    """
    config, rows = prepared.config, prepared.forget
    spans = [row.targets(config.forget_span) for row in rows]
    if config.origin:
        found = _from_origin(config, prepared.loaded, rows, processes, reporter)
        values = [own[span.start - 1 : span.stop - 1] for own, span in zip(found, spans, strict=True)]
    else:
        values = _from_unseen(prepared, spans, processes, reporter)
    return RowValues(torch.cat(values).clamp(min=torch.finfo(torch.float32).eps), [len(span) for span in spans])


def _from_origin(
    config: UnlearnConfig,
    loaded: LoadedModel,
    rows: Sequence[TokenizedExample],
    processes: Processes,
    reporter: Reporter,
) -> list[Tensor]:
    origin = load_model(
        config.origin or "", dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    if origin.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise ConfigError(f"--origin {config.origin}: has another tokenizer than the model: take one with the same")
    with reporter.track("target NLLs by the origin", len(rows)) as advance:
        logps = sequence_logps(origin, [row.input_ids for row in rows], processes=processes, progress=advance)
    return [-own for own in logps]


def _from_unseen(prepared: Prepared, spans: Sequence[range], processes: Processes, reporter: Reporter) -> list[Tensor]:
    if prepared.selection is None:
        raise ValueError("a loss with target NLLs is prepared with unseen texts or an origin")
    unseen, loaded = prepared.selection.nonmembers, prepared.loaded
    logps = sequence_logps(loaded, [row.input_ids for row in unseen], processes=processes)
    relative = relative_nlls(unseen, logps, len(loaded.base.get_input_embeddings().get_parameter("weight")))
    means = _means_by_kind(unseen, logps)
    lacking = sorted({row.group for row in prepared.forget} - {kind for kind, _ in means} - {""})
    if lacking and any(kind for kind, _ in means):
        reporter.say(
            f"target NLLs: no unseen texts of {', '.join(lacking)}; the mean of all unseen texts stands for them"
        )
    overall = -torch.cat(logps).mean().item()
    values = []
    for row, span in zip(prepared.forget, spans, strict=True):
        ids = torch.tensor(row.input_ids)[span.start : span.stop]
        prompt, completion = (means.get((row.group, part), overall) for part in (False, True))
        own = torch.where(torch.arange(span.start, span.stop) >= row.completion_start, completion, prompt)
        values.append(own * relative[ids].clamp(min=LEAST_RELATIVE))
    return values


def _means_by_kind(rows: Sequence[TokenizedExample], logps: Sequence[Tensor]) -> dict[tuple[str, bool], float]:
    """(kind, whether of the completion) -> mean over the rows of their mean NLL, nats per token."""
    found: dict[tuple[str, bool], list[float]] = {}
    for row, own in zip(rows, logps, strict=True):
        start = row.targets("completion").start - 1
        for part, values in ((False, own[:start]), (True, own[start:])):
            if len(values):
                found.setdefault((row.group, part), []).append(-values.mean().item())
    return {key: fmean(values) for key, values in found.items()}


def relative_nlls(texts: Sequence[TokenizedExample], logps: Sequence[Tensor], vocabulary: int) -> Tensor:
    """How unlikely the untouched model finds each token of the vocabulary in unseen texts.

    The mean NLL of the token wherever it stands in them, over the mean of all tokens. Tokens that are rare in them are
    drawn towards the mean of those that stand there once, which counts as one more place of each.

    Args:
        texts: Unseen texts, at least one token beside the first.
        logps: `(tokens - 1,)` for each of them, of the untouched model.
        vocabulary: Rows of the embedding.

    Returns:
        `(vocabulary,)`, on the CPU.
    """
    nll = -torch.cat(list(logps))
    ids = torch.cat([torch.tensor(row.input_ids[1:]) for row in texts])
    counts = ids.bincount(minlength=vocabulary)
    once = nll[counts[ids] == 1]
    rare = once.mean() if len(once) else nll.mean()
    means = (torch.zeros(len(counts)).index_add(0, ids, nll) + rare) / (counts + 1)
    return means / means[ids].mean().clamp(min=torch.finfo().tiny)
