"""When a run ends, and which state it keeps: the one that comes closest to the criteria on the validation rows.

Nothing here changes what is minimised.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from expunge.config.criteria import MET, NO_BETTER, Criteria
from expunge.errors import RunError
from expunge.train.validation import Validation, targets, violation, violations

IN_A_ROW = 2
"""Evaluation steps in a row at which all criteria are met before a run ends: on few texts once may be chance, and what
forgetting has moved on the way comes back with the next steps."""
BEST = "best"
"""The best state, in a checkpoint."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation step: the steps before it, its metrics, and how far they are from the criteria."""

    step: int
    metrics: Validation
    violation: float


class EarlyStopping:
    """The evaluation steps of a run so far.

    Args:
        criteria: What to reach.
        untouched: Metrics of the untouched model.
        patience: Evaluation steps without improvement after which the run ends, counted from where the violation first
            is less than the untouched model's.

    Attributes:
        history: The evaluation steps, in order.
        state: The parameter at the best of them.
    """

    def __init__(self, criteria: Criteria, untouched: Validation, patience: int) -> None:
        self.criteria, self.untouched, self.patience = criteria, untouched, patience
        self.history: list[Evaluated] = []
        self.state: Tensor | None = None

    def add(self, step: int, metrics: Validation, parameter: Tensor) -> dict[str, Any]:
        """Take in an evaluation step, and keep the state if it is the best so far; gives what the log should hold."""
        missing = violations(metrics, self.untouched, self.criteria)
        self.history.append(Evaluated(step, metrics, sum(missing.values())))
        if self.best is self.history[-1]:
            self.state = parameter.detach().clone()
        return {**asdict(metrics), "targets": targets(self.untouched, self.criteria), "violations": missing}

    @property
    def best(self) -> Evaluated | None:
        """The last of those with the least violation."""
        return min(reversed(self.history), key=lambda evaluated: evaluated.violation, default=None)

    @property
    def over(self) -> str | None:
        """Why the run should end now; None where it should not."""
        best = self.best
        if best is None:
            return None
        latest = [evaluated.violation for evaluated in self.history[-IN_A_ROW:]]
        if latest == [0] * IN_A_ROW:
            return f"{MET} {IN_A_ROW} times in a row, at step {self.history[-1].step:,}"
        since = sum(evaluated.step > best.step for evaluated in self.history)
        improved = best.violation < violation(self.untouched, self.untouched, self.criteria)
        return f"{NO_BETTER} since step {best.step:,}" if improved and since >= self.patience else None

    def tensors(self) -> dict[str, Tensor]:
        """The best state, for a checkpoint."""
        return {} if self.state is None else {BEST: self.state}

    def restore(self, lines: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Take over the evaluation steps in the log's lines, and the best state of a checkpoint.

        Raises:
            RunError: The metrics are not those of this version.
        """
        self.history = []
        for line in lines:
            if "validation" in line:
                values = dict(line["validation"])
                missing = values.pop("violations", {})
                values.pop("targets", None)
                if values.keys() != {field.name for field in fields(Validation)}:
                    raise RunError("--resume: the run was begun by another version of Expunge: start it again")
                self.history.append(Evaluated(line["step"], Validation(**values), sum(missing.values())))
        self.state = tensors.get(BEST)
