"""SURP on records whose tokens are certain or not, likely or not."""

import numpy as np
import pytest

from expunge.evaluation.metrics import ATTACKS, TokenRecord
from expunge.evaluation.metrics.surprising_tokens import surprising_tokens


def record(logps: list[float], entropies: list[float]) -> TokenRecord:
    """A record of which the attack reads these two."""
    return TokenRecord("a", np.array(logps), np.zeros(len(logps), bool), -np.array(entropies), np.ones(len(logps)))


def test_only_tokens_that_are_unlikely_where_the_model_is_certain_count() -> None:
    unsure = record([-9.0, -8.0, -0.1, -0.2, -0.3], [3.0, 3.0, 0.5, 0.5, 0.5])
    assert surprising_tokens(unsure) == 0, "unlikely tokens stand where the model was not certain"
    wrong = record([-9.0, -8.0, -0.1, -0.2, -0.3], [0.5, 3.0, 0.5, 0.5, 0.5])
    assert surprising_tokens(wrong) == pytest.approx(-9.0)
    both = record([-9.0, -8.0, -0.1, -0.2, -0.3], [0.5, 1.9, 0.5, 0.5, 0.5])
    assert surprising_tokens(both) == pytest.approx(-8.5)
    assert surprising_tokens(record([-0.5] * 4, [0.1] * 4)) == 0, "all are as likely as the others"


def test_it_is_run_on_request() -> None:
    assert not ATTACKS["surprising_tokens"].default
