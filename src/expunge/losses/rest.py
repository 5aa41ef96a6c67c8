"""What a forgotten token leaves to the others: their shares among themselves, as the untouched model has them."""

from torch import Tensor

SUREST = 1e-6
"""A probability counts as no nearer to 1 than this."""


def rest_kl(kl: Tensor, logps: Tensor, ref_logps: Tensor, *, num_tokens: int | None = None) -> Tensor:
    """Divergence between policy and reference once the token itself is taken out of both: mean_t (1 - p_t) KL_t.

    A push says what a token loses, and nothing of where that goes: it ends at whatever no text of the run holds down,
    and the model babbles. By the chain rule of the divergence, with q for the reference,

        KL(p || q) = KL(Bernoulli(p_t) || Bernoulli(q_t)) + (1 - p_t) KL(p without t || q without t)

    so this leaves the token's own probability free.

    Args:
        kl: `(tokens,)`, KL(policy || reference) over the whole vocabulary (nats).
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the tokens themselves.
        ref_logps: `(tokens,)`, the reference's.
        num_tokens: Denominator; the number of tokens in `logps` when None.
    """
    own, ref = logps.clamp(max=-SUREST), ref_logps.clamp(max=-SUREST)
    others, ref_others = -own.expm1(), -ref.expm1()
    bernoulli = own.exp() * (own - ref) + others * (others.log() - ref_others.log())
    return (kl - bernoulli).sum() / (num_tokens or logps.numel())
