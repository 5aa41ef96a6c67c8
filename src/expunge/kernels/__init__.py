"""Hidden states -> per-token log-probabilities, moments and divergences, without a tensor of (tokens, vocab)."""

from expunge.kernels.head import Head
from expunge.kernels.target_kl import plain_target_kl, token_target_kl
from expunge.kernels.token_kl import plain_token_kl, token_kl, token_logps_and_kl
from expunge.kernels.token_logps import plain_token_logps, token_logps
from expunge.kernels.token_stats import TokenStats, plain_token_stats, token_stats

__all__ = [
    "Head",
    "TokenStats",
    "plain_target_kl",
    "plain_token_kl",
    "plain_token_logps",
    "plain_token_stats",
    "token_kl",
    "token_logps",
    "token_logps_and_kl",
    "token_stats",
    "token_target_kl",
]
