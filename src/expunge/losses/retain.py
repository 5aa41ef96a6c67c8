"""What holds the rest of the model in place: negative log-likelihood and divergence from the untouched model."""

from torch import Tensor


def retain_nll(logps: Tensor, *, num_tokens: int | None = None) -> Tensor:
    """Mean of -logp over the retain completion tokens (the paper's RT).

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats).
        num_tokens: Denominator; the number of tokens in `logps` when None.
    """
    return -logps.sum() / (num_tokens or logps.numel())


def retain_kl(kl: Tensor, *, num_tokens: int | None = None) -> Tensor:
    """Mean of the full-vocabulary KL over the retain tokens in the KL's span (the paper's KRT, as described).

    Args:
        kl: `(tokens,)`, the divergence of each token's distribution (nats); see `expunge.kernels.token_kl`.
        num_tokens: Denominator; the number of tokens in `kl` when None.
    """
    return kl.sum() / (num_tokens or kl.numel())


def target_token_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """What the paper's published code computes in place of the KL: p_ref(y) (log p_ref(y) - log p(y)) per token.

    Only the observed token enters, so it can be negative and is not a divergence; its gradient is that of an NLL
    weighted by p_ref. Kept for comparison (recipe `paper-code`).

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats).
        ref_logps: `(tokens,)`, the reference's.
    """
    return ref_logps.exp() * (ref_logps - logps)
