"""What a loss sees of one micro-batch: the target tokens of one side, collated once."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from expunge.kernels import Head, token_logps

T = TypeVar("T")


@dataclass(frozen=True)
class TokenBatch:
    """The target tokens of some rows of one side; a row is never divided between micro-batches.

    Means over the step are sums over the tokens (or sequences) here, divided by the counts of the whole step:
    micro-batches of one step, and the processes that share it, add up to the mean.

    Attributes:
        states: `(tokens, hidden)`, the policy's final hidden states that predict the targets; logits under a `Head`
            without weights.
        targets: `(tokens,)` int64, the token ids.
        sequence: `(tokens,)` int64, the row of each token, from 0 without a gap, ascending.
        completion: `(tokens,)` bool, whether the token belongs to the completion.
        head: The frozen vocabulary head.
        num_sequences_here: Rows in this batch.
        num_tokens: Target tokens of the side in the whole step.
        completion_lengths: Those of them that belong to the completion, for each row of the side in the whole step.
        ref_logps: `(tokens,)`, the untouched model's log-probabilities (nats), where they are needed.
        ref_states: `(tokens, hidden)`, its final hidden states, where they are needed.
        target_nll: `(tokens,)`, NLL (nats) that each token should end with, where it is needed.
        guessed: Whether unseen texts gave the target NLLs, which say how many tokens should be how unlikely but only
            guess which; a model that never saw the texts knows each token's own.
        hidden: `(tokens, width)`, the policy's states of the targets themselves behind an inner layer, where needed.
        pairs: The same prompts with another completion, row by row, where they are needed.
        noted: Column of the log -> this batch's share in its value, which a loss that names it in `columns` puts here.
    """

    states: Tensor
    targets: Tensor
    sequence: Tensor
    completion: Tensor
    head: Head
    num_sequences_here: int
    num_tokens: int
    completion_lengths: tuple[int, ...]
    ref_logps: Tensor | None = None
    ref_states: Tensor | None = None
    target_nll: Tensor | None = None
    hidden: Tensor | None = None
    pairs: "TokenBatch | None" = None
    guessed: bool = True
    noted: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_completion_tokens(self) -> int:
        """Target tokens of completions in the whole step."""
        return sum(self.completion_lengths)

    @property
    def num_sequences(self) -> int:
        """Rows of the side in the whole step."""
        return len(self.completion_lengths)

    @cached_property
    def logps(self) -> Tensor:
        """`(tokens,)`, the policy's log-probabilities (nats), differentiable; computed once."""
        return token_logps(self.states, self.head, self.targets)

    @cached_property
    def log_ratios(self) -> Tensor:
        """`(tokens,)`, s_t = log p_ref(y_t) - log p(y_t)."""
        return needed(self.ref_logps) - self.logps

    @cached_property
    def lengths(self) -> Tensor:
        """`(rows,)`, target tokens of each row."""
        return self.per_sequence(torch.ones_like(self.sequence, dtype=self.states.dtype))

    @cached_property
    def parts(self) -> Tensor:
        """`(tokens,)` int64, the part of a row that each token belongs to: twice the row, plus 1 in its completion."""
        return 2 * self.sequence + self.completion

    @cached_property
    def completion_places(self) -> Tensor:
        """`(tokens,)` int64, the place of each completion token in its completion, from 0."""
        ends = self.completion.cumsum(0)
        lengths = ends.new_zeros(self.num_sequences_here).index_add(0, self.sequence, self.completion.long())
        return ends - 1 - (lengths.cumsum(0) - lengths)[self.sequence]

    def per_sequence(self, values: Tensor) -> Tensor:
        """`(rows,)`, sums of `values` `(tokens,)` over each row."""
        wide = torch.promote_types(values.dtype, torch.float32)
        return values.new_zeros(self.num_sequences_here, dtype=wide).index_add(0, self.sequence, values.to(wide))

    def token_mean(self, values: Tensor) -> Tensor:
        """This batch's share in the mean of `values` `(tokens,)` over the target tokens of the step."""
        return values.sum() / self.num_tokens

    def sequence_mean(self, values: Tensor) -> Tensor:
        """This batch's share in the mean of `values` `(rows,)` over the rows of the step."""
        return values.sum() / self.num_sequences


def needed(values: T | None) -> T:
    """What a method has declared to need."""
    if values is None:
        raise ValueError("a forget loss reads what it does not declare in `needs`")
    return values
