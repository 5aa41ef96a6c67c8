"""Per-token log-probabilities from hidden states, chunk by chunk, with the gradient computed on the way forward."""

from dataclasses import dataclass

from torch import Tensor

from expunge.kernels.head import Head, fused

IGNORE_INDEX = -100


def plain_token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The formula that `token_logps` equals: log softmax of all logits, gathered at the targets; 0 where ignored."""
    logps = head.logits(hidden).log_softmax(-1)
    kept = targets != IGNORE_INDEX
    return logps.gather(-1, targets.where(kept, 0)[:, None])[:, 0].where(kept, 0)


def token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Log-probability (nats) of each target token; equals `plain_token_logps`, without its memory (`head.fused`).

    Args:
        hidden: `(num_tokens, hidden)`, final hidden states of the positions that predict the targets.
        head: The frozen head.
        targets: `(num_tokens,)` int64; -100 gives 0 and takes no gradient.

    Returns:
        `(num_tokens,)`, fp32 (fp64 for fp64 input).
    """
    all_targets = Targets.of(targets)

    def chunk(rows: slice, slopes: bool) -> list[Tensor]:
        logits, picked = head.logits(hidden[rows]), all_targets[rows]
        logp = logits.log_softmax(-1)
        logps = picked.values(logp)
        return [logps, head.grad_hidden(picked.gradient(logp.exp_()), logits)] if slopes else [logps]

    (logps,) = fused(hidden, head, 1, chunk)
    return logps


@dataclass(frozen=True)
class Targets:
    """Target tokens that may be ignored.

    Attributes:
        ids: `(num_tokens, 1)` int64, the token ids; 0 where ignored.
        ignored: `(num_tokens,)` bool.
    """

    ids: Tensor
    ignored: Tensor

    @classmethod
    def of(cls, targets: Tensor) -> "Targets":
        """From `(num_tokens,)` token ids and -100."""
        return cls(targets.clamp(min=0)[:, None], targets == IGNORE_INDEX)

    def __getitem__(self, rows: slice | Tensor) -> "Targets":
        return Targets(self.ids[rows], self.ignored[rows])

    def values(self, logp: Tensor) -> Tensor:
        """What `logp` `(num_tokens, vocab)` says of the targets: `(num_tokens,)`, 0 where ignored."""
        return logp.gather(-1, self.ids)[:, 0].masked_fill_(self.ignored, 0)

    def gradient(self, probs: Tensor) -> Tensor:
        """That of `values` by the logits: onehot(target) - probs, zero rows where ignored. Overwrites `probs`."""
        grad = probs.neg_().scatter_(-1, self.ids, 1, reduce="add")
        return grad.masked_fill_(self.ignored[:, None], 0)
