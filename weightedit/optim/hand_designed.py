"""Update rules designed by hand: what learned ones are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.spec import NetworkSpec, Params


class AdamState(NamedTuple):
    """First and second moments, and how many steps were done."""

    first: Params
    second: Params
    steps: int


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1).

    Args:
        learning_rate: per step, in units of the parameters; positive.
        betas: decay of the two moments, in [0, 1).
        epsilon: added to the root of the second moment.
        horizon: steps over which a cosine takes the learning rate to zero; None keeps it constant.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    horizon: int | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not all(0 <= beta < 1 for beta in self.betas) or self.epsilon < 0:
            raise WeightEditError(f"{self} came; expected a positive learning rate and betas in [0, 1): correct them.")

    def init(self, spec: NetworkSpec, params: Params) -> AdamState:
        """Zero moments."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        return AdamState(zeros, dict(zeros), 0)

    def update(
        self, grads: Params, state: AdamState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, AdamState]:
        """See UpdateRule.update."""
        (beta1, beta2), done = self.betas, state.steps + 1
        first = {name: torch.lerp(state.first[name], g, 1 - beta1) for name, g in grads.items()}
        second = {name: torch.lerp(state.second[name], g * g, 1 - beta2) for name, g in grads.items()}
        rate, root = self.learning_rate * self._cosine(state.steps) / (1 - beta1**done), math.sqrt(1 - beta2**done)
        new = {
            name: torch.addcdiv(params[name], first[name], second[name].sqrt() / root + self.epsilon, value=-rate)
            for name in params
        }
        return new, AdamState(first, second, done)

    def _cosine(self, step: int) -> float:
        return 1.0 if self.horizon is None else 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.horizon)))
