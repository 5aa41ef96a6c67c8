"""How unlikely each token of a forget text should end: its target NLL.

From unseen texts: what the untouched model's NLL of such a token is in them. Where the same two or three tokens stand
in a row there, that place tells (the words of a template stay likely); else the token wherever it stands; else tokens
that stand there once. Then all are scaled so that the forget texts of a kind (task and kind of the row; prompt and
completion apart) end with the mean NLL of the unseen texts of that kind, or of all where a kind has none. From an
origin, a model that never saw the forget texts: its own NLL of the token.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor

from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.reference import RowValues
from expunge.train.setup import Prepared
from expunge.utils.distributed import Processes
from expunge.utils.progress import Reporter

LONGEST = 3
"""Tokens in a row that are looked for in unseen texts, the last of which is predicted."""
Kind = tuple[str, bool]
"""Task and kind of a row, and whether a token is of its completion."""


def target_nlls(prepared: Prepared, processes: Processes, reporter: Reporter) -> RowValues:
    """The target NLL of every target token of the forget rows, nats; the adapter must be off."""
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
    with reporter.track("target NLLs by the origin", len(rows)) as advance:
        logps = sequence_logps(origin, [row.input_ids for row in rows], processes=processes, progress=advance)
    return [-own for own in logps]


def _from_unseen(prepared: Prepared, spans: Sequence[range], processes: Processes, reporter: Reporter) -> list[Tensor]:
    if prepared.selection is None:
        raise ValueError("a loss with target NLLs is prepared with unseen texts or an origin")
    unseen = prepared.selection.unseen
    logps = sequence_logps(prepared.loaded, [row.input_ids for row in unseen], processes=processes)
    nlls = [[0.0, *(-own).tolist()] for own in logps]  # the first token has nothing to be predicted from
    known = {row.group for row in unseen}
    lacking = sorted({row.group for row in prepared.forget} - known - {""})
    if lacking and known != {""}:
        names = ", ".join(lacking)
        reporter.say(f"target NLLs: no unseen texts of {names}; the mean of all unseen texts stands for them")
    expected = expected_nlls(prepared.forget, unseen, nlls)
    means, own_means = _means(unseen, nlls), _means(prepared.forget, expected)
    overall = fmean(value for own in nlls for value in own[1:])
    found = []
    for row, values, span in zip(prepared.forget, expected, spans, strict=True):
        scales = {part: means.get((row.group, part), overall) / own_means.get((row.group, part), 1.0)
                  for part in (False, True)}  # fmt: skip
        found.append(torch.tensor([values[at] * scales[at >= row.completion_start] for at in span]))
    return found


def expected_nlls(
    rows: Sequence[TokenizedExample], unseen: Sequence[TokenizedExample], nlls: Sequence[Sequence[float]]
) -> list[list[float]]:
    """The NLL that each token of `rows` would have if the model had not seen them, by the same tokens in unseen texts.

    Estimates from longer contexts are drawn towards those from shorter ones, which count as one more place of each.

    Args:
        rows: Texts to be forgotten.
        unseen: Texts that the model has never seen.
        nlls: For each of them the untouched model's NLL of every token, the first one anything.

    Returns:
        For each row as many values as tokens, the first one 0.
    """
    sums: defaultdict[tuple[int, ...], float] = defaultdict(float)
    counts: Counter[tuple[int, ...]] = Counter()
    for row, own in zip(unseen, nlls, strict=True):
        for context, at in _contexts(row.input_ids):
            sums[context] += own[at]
            counts[context] += 1
    once = [sums[context] for context, count in counts.items() if len(context) == 1 and count == 1]
    rare = fmean(once) if once else fmean(value for own in nlls for value in own[1:])
    found = []
    for row in rows:
        own = [0.0] + [rare] * (len(row.input_ids) - 1)
        for context, at in _contexts(row.input_ids):
            if counts[context]:
                own[at] = (sums[context] + own[at]) / (counts[context] + 1)
        found.append(own)
    return found


def _contexts(ids: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """The tokens that end at each place but the first, shortest first; and the place."""
    for at in range(1, len(ids)):
        for length in range(1, min(LONGEST, at + 1) + 1):
            yield tuple(ids[at + 1 - length : at + 1]), at


def _means(rows: Sequence[TokenizedExample], values: Sequence[Sequence[float]]) -> dict[Kind, float]:
    """Kind -> mean of the values of its tokens."""
    found: dict[Kind, list[float]] = {}
    for row, own in zip(rows, values, strict=True):
        for at in range(1, len(own)):
            found.setdefault((row.group, at >= row.completion_start), []).append(own[at])
    return {kind: fmean(own) for kind, own in found.items()}
