"""Hidden states -> per-token log-probabilities and divergences, without a tensor of (tokens, vocab)."""

from expunge.kernels.head import Head
from expunge.kernels.token_kl import plain_token_kl, token_logps_and_kl
from expunge.kernels.token_logps import plain_token_logps, token_logps

__all__ = ["Head", "plain_token_kl", "plain_token_logps", "token_logps", "token_logps_and_kl"]
