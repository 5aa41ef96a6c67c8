"""What one teacher-forced pass keeps of a text."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError


@dataclass(frozen=True)
class TokenRecord:
    """A model's view of the target tokens of one text; each array is `(targets,)`.

    Attributes:
        id: Id of the text.
        logps: float64, log p(label), nats.
        hits: bool, whether the label is the argmax (of equal logits the first).
        mean_logp: float64, mu = sum_v p log p, nats.
        var_logp: float64, sum_v p (log p - mu)^2, nats squared.
    """

    id: str
    logps: NDArray[np.float64]
    hits: NDArray[np.bool_]
    mean_logp: NDArray[np.float64]
    var_logp: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.logps)

    def require_targets(self) -> None:
        """Refuse a text in which nothing was predicted.

        Raises:
            DataError: There is no target token.
        """
        if not len(self):
            raise DataError(f"{self.id}: has no token to predict, so nothing can be measured on it: leave the row out")

    def __getitem__(self, part: slice) -> "TokenRecord":
        """The record of a stretch of the tokens: `record[:-1]` lacks the last."""
        return TokenRecord(self.id, self.logps[part], self.hits[part], self.mean_logp[part], self.var_logp[part])
