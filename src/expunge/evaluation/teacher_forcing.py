"""One teacher-forced pass over texts; every teacher-forced metric is a function of what it leaves."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.metrics.record import TokenRecord
from expunge.kernels import token_stats
from expunge.model.load import LoadedModel
from expunge.model.logps import passes, target_states


@torch.no_grad()
def token_records(
    loaded: LoadedModel,
    rows: Sequence[TokenizedExample],
    *,
    span: str = "completion",
    progress: Callable[[int], None] | None = None,
) -> list[TokenRecord]:
    """What the model thinks of every target token of each text, given the text before it: a record per row, in order.

    Targets are the tokens of the `completion`, or `all` but the first; a row without one gives an empty record.
    """

    def passed(group: list[int]) -> list[TokenRecord]:
        examples = [rows[index] for index in group]
        targets = [row.targets(span) for row in examples]
        states, ids = target_states(loaded, [row.input_ids for row in examples], targets)
        stats = token_stats(states, loaded.head, ids)
        # One copy to the CPU: on another device each of them would wait.
        logps, mean, var, hits = (
            torch.stack([stats.logps, stats.mean_logp, stats.var_logp, stats.hits]).double().cpu().numpy()
        )
        ends = np.cumsum([*map(len, targets)])[:-1]
        parts = zip(*(np.split(values, ends) for values in (logps, hits > 0, mean, var)), strict=True)
        return [TokenRecord(row.id, *part) for row, part in zip(examples, parts, strict=True)]

    records = dict(passes(loaded, rows, passed, progress=progress))
    return [records[index] for index in range(len(rows))]
