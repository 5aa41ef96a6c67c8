"""Losses as pure functions on tensors: one method a file, torch alone, every mean over a stated denominator.

A denominator defaults to what is in the tensors; a step that is spread over several micro-batches passes the count of
the whole step instead, so that the sum over its micro-batches is the mean over the step.
"""

from expunge.losses.depth import insistence, push, push_odds, pushed, spread
from expunge.losses.npo import npo_sequence, npo_token
from expunge.losses.rest import rest_kl
from expunge.losses.retain import retain_kl, retain_nll, target_token_kl

__all__ = [
    "insistence", "npo_sequence", "npo_token", "push", "push_odds", "pushed", "rest_kl", "retain_kl", "retain_nll",
    "spread", "target_token_kl",
]  # fmt: skip
