"""Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868, Eq. 3), per token and per sequence."""

from torch import Tensor
from torch.nn.functional import softplus


def npo_token(
    logps: Tensor, ref_logps: Tensor, *, beta: float, num_tokens: int | None = None, push: Tensor | float = 1.0
) -> Tensor:
    """NPO with a token as the unit (arXiv 2503.13690): (2/beta) mean_t softplus(-beta (ref_logp_t - logp_t)).

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        ref_logps: `(tokens,)`, the reference's.
        beta: Inverse temperature; towards 0 the gradient becomes that of gradient ascent.
        num_tokens: Denominator; the number of tokens in `logps` when None.
        push: Factor on each token's loss, `(tokens,)` or one for all.
    """
    return (2 / beta) * (push * softplus(-beta * (ref_logps - logps))).sum() / (num_tokens or logps.numel())


def npo_sequence(
    logps: Tensor,
    ref_logps: Tensor,
    sequence_ids: Tensor,
    *,
    beta: float,
    num_sequences: int | None = None,
    push: Tensor | float = 1.0,
) -> Tensor:
    """NPO with a sequence as the unit: (2/beta) mean_b softplus(-beta sum_{t in b} (ref_logp_t - logp_t)).

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        ref_logps: `(tokens,)`, the reference's.
        sequence_ids: `(tokens,)` int64, the sequence of each token: 0, 1, ... without a gap; all tokens of a sequence
            must be in this call.
        beta: Inverse temperature.
        num_sequences: Denominator; the number of sequences in this call when None.
        push: Factor on each sequence's loss, `(sequences,)` or one for all.
    """
    present = int(sequence_ids.max()) + 1
    log_ratios = (ref_logps - logps).new_zeros(present).index_add(0, sequence_ids, ref_logps - logps)
    return (2 / beta) * (push * softplus(-beta * log_ratios)).sum() / (num_sequences or present)
