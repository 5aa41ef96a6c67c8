"""One metric on many rows: what is averaged, compared in pairs and written beside the results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from expunge.data.examples import Example
from expunge.errors import ModelError
from expunge.evaluation.stats import Estimate, mean_estimate


@dataclass(frozen=True)
class Values:
    """One metric on the rows of a set that have it.

    Attributes:
        ids: Ids of the rows.
        tasks: Their tasks.
        documents: What each row is about.
        values: float64 `(rows,)`, all finite.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    documents: tuple[str, ...]
    values: NDArray[np.float64]

    @classmethod
    def of(
        cls, what: str, examples: Sequence[Example], documents: Sequence[str], values: Sequence[float | None]
    ) -> "Values":
        """The rows whose value is not None.

        Raises:
            ModelError: A value is not a finite number.
        """
        kept = [i for i, value in enumerate(values) if value is not None]
        array = np.array([values[i] for i in kept], dtype=np.float64)
        broken = int(np.count_nonzero(~np.isfinite(array)))
        if broken:
            raise ModelError(
                f"{what} is no finite number on {broken} of {len(array)} rows: this model's outputs are broken, or "
                "--dtype float32 is needed"
            )
        return cls(
            tuple(examples[i].id for i in kept),
            tuple(examples[i].task for i in kept),
            tuple(documents[i] for i in kept),
            array,
        )

    def __add__(self, other: "Values") -> "Values":
        """The rows of both."""
        return Values(
            self.ids + other.ids,
            self.tasks + other.tasks,
            self.documents + other.documents,
            np.concatenate([self.values, other.values]),
        )

    def of_task(self, task: str) -> "Values":
        """The rows of one task."""
        kept = [i for i, own in enumerate(self.tasks) if own == task]
        return replace(
            self,
            ids=tuple(self.ids[i] for i in kept),
            tasks=tuple(self.tasks[i] for i in kept),
            documents=tuple(self.documents[i] for i in kept),
            values=self.values[kept],
        )

    def estimate(self) -> Estimate:
        """Mean over the rows; the interval resamples documents."""
        return mean_estimate(self.values, self.documents)
