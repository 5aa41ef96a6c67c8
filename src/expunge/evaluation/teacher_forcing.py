"""One teacher-forced pass over texts; every teacher-forced metric is a function of what it leaves."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.metrics.record import TokenRecord
from expunge.kernels import token_stats
from expunge.model.load import LoadedModel
from expunge.model.logps import final_states, lay_out, passes, target_positions


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
        batch = lay_out(loaded, [row.input_ids for row in examples])
        targets = target_positions(batch, examples, span)
        stats = token_stats(final_states(loaded, batch)[targets - 1], loaded.head, batch.flat_ids[targets])
        # One copy to the CPU: on another device each of them would wait.
        logps, mean, var, hits = (
            torch.stack([stats.logps, stats.mean_logp, stats.var_logp, stats.hits]).double().cpu().numpy()
        )
        ends = np.cumsum([len(row.targets(span)) for row in examples])[:-1]
        parts = zip(*(np.split(values, ends) for values in (logps, hits > 0, mean, var)), strict=True)
        return [TokenRecord(row.id, *part) for row, part in zip(examples, parts, strict=True)]

    records = dict(passes(loaded, rows, passed, progress=progress))
    return [records[index] for index in range(len(rows))]
