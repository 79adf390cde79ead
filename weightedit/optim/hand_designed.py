"""Update rules designed by hand: what learned ones are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.optim.rule import RuleState, beside, started, warmth
from weightedit.spec import Params
from weightedit.wiring import Wiring


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

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """Zero moments."""
        return started(wiring, params, "first", "second")

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        (beta1, beta2), deltas, new = self.betas, {}, {}
        for name, grad in grads.items():
            before = state[name]
            step = before["step"] + 1
            first, second = before["first"].lerp(grad, 1 - beta1), before["second"].lerp(grad * grad, 1 - beta2)
            steps = beside(step, grad)
            rate = self.learning_rate * self._cosine(steps - 1) / warmth(beta1, steps)
            deltas[name] = -rate * first / (second.sqrt() / warmth(beta2, steps).sqrt() + self.epsilon)
            new[name] = {"step": step, "first": first, "second": second}
        return deltas, new

    def _cosine(self, step: Tensor) -> Tensor | float:
        return 1.0 if self.horizon is None else 0.5 * (1 + (math.pi * (step / self.horizon).clamp(max=1.0)).cos())
