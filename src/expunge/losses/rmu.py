"""RMU: the hidden states of forget texts are sent in a random direction."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.config.checks import ABOVE_ZERO, SEED
from expunge.errors import ConfigError
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch, needed
from expunge.model.packing import send


@forget_loss(
    "rmu",
    formula="mean_b mean_t mean_d (h_t - c u)^2, h the states behind a layer, u a random unit vector",
    source="Li et al. 2024, arXiv 2403.03218, Sec. 4",
)
@dataclass(frozen=True)
class RMU:
    """Representation misdirection; its retain term is the retain KL of the run.

    Attributes:
        layer: Layer whose output is misdirected, from 0; -1 takes a quarter of the depth.
        steering_coefficient: c, the length of the vector that the states are sent to.
        seed: Of the direction u, uniform in [0, 1)^d and normalised.
    """

    layer: int = -1
    steering_coefficient: float = 20.0
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ("hidden",)

    def __post_init__(self) -> None:
        check_args(ABOVE_ZERO, steering_coefficient=self.steering_coefficient)
        if self.layer < -1:
            raise ConfigError(f"--loss-args layer={self.layer}: must be 0 or more, or -1 for a quarter of the depth")
        check_args(SEED, seed=self.seed)

    def __call__(self, batch: TokenBatch) -> Tensor:
        hidden = needed(batch.hidden)
        direction = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        target = send((self.steering_coefficient * direction / direction.norm()).to(hidden.dtype), hidden.device)
        distance = (hidden - target).square().mean(-1)
        return batch.sequence_mean(batch.per_sequence(distance) / batch.lengths)
