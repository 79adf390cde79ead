"""Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024), as torch.optim has it.

A matrix moves along its averaged gradient with all singular values made about equal, by a Newton-Schulz iteration

    X <- a X + (b A + c A^2) X,   A = X X^T,   X = G / |G| at the start.

A convolution is the matrix of its output channels by everything they read. Biases and gains are no matrices: AdamW
moves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.hand_designed import AdamW
from weightedit.optim.rule import RuleState, started

Round = tuple[float, float, float]
"""The numbers a, b, c of one round of the iteration."""
COEFFICIENTS: Round = (3.4445, -4.7750, 2.0315)
_PRECISIONS = ("bfloat16", "parameters")


@dataclass(frozen=True)
class Muon:
    """Muon for weights, AdamW for biases and gains.

    Args:
        learning_rate: times sqrt(max(1, rows / columns)); positive.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: step along the average of the gradient and of the averaged one.
        weight_decay: decoupled, of the matrices; not negative.
        iterations: of Newton-Schulz, at least 1.
        coefficients: its a, b, c.
        precision: in which it runs: "bfloat16", as torch, or "parameters", in that of the parameters: for inner loops,
            and for steps that do not depend on how networks are stacked.
        others: moves what is no matrix, with learning rate and numbers of its own.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.1
    iterations: int = 5
    coefficients: Round = COEFFICIENTS
    precision: str = "bfloat16"
    others: AdamW = AdamW(3e-4)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0 or self.iterations < 1:
            raise WeightEditError(
                f"got {self}; expected a positive learning rate, a momentum in [0, 1), a weight decay that is not "
                "negative and at least one iteration: correct them."
            )
        if self.precision not in _PRECISIONS:
            raise WeightEditError(f"got {self}; expected a precision among {', '.join(_PRECISIONS)}: choose one.")

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """A zero averaged gradient for matrices, AdamW's state for the rest."""
        matrices, others = _split(wiring, params)
        wiring.lead(params)
        state = started(wiring, matrices, "average") if matrices else {}
        return state | (self.others.init(wiring, others) if others else {})

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        matrices, others = _split(wiring, grads)
        deltas, new = self.others.update(wiring, others, state, params)
        for name, grad in matrices.items():
            average = state[name]["average"].lerp(grad, 1 - self.momentum)
            direction = wiring.by_name[name].matrix(grad.lerp(average, self.momentum) if self.nesterov else average)
            rows, columns = direction.shape[-3], direction.shape[-2] * direction.shape[-1]
            moved = self._orthogonal(direction.flatten(-2)).reshape(grad.shape).to(grad.dtype)
            rate = self.learning_rate * math.sqrt(max(1, rows / columns))
            deltas[name] = -rate * moved - self.learning_rate * self.weight_decay * params[name]
            new[name] = {"step": state[name]["step"] + 1, "average": average}
        return {name: deltas[name] for name in grads}, {name: new[name] for name in grads}

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        """`matrix` [..., rows, columns] with singular values near 1; zero stays zero."""
        x = matrix.bfloat16() if self.precision == "bfloat16" else matrix
        return orthogonal(x, self.coefficients, self.iterations)


def orthogonal(matrix: Tensor, coefficients: Round, rounds: int) -> Tensor:
    """`matrix` [rows, columns] or [n, rows, columns] with singular values near 1, in its precision; zero stays zero."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    product, multiply = (torch.mm, torch.addmm) if x.dim() == 2 else (torch.bmm, torch.baddbmm)
    a, b, c = coefficients
    for _ in range(rounds):
        gram = product(x, x.mT)
        x = multiply(x, multiply(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _split(wiring: Wiring, tensors: Params) -> tuple[Params, Params]:
    matrices = {name: tensor for name, tensor in tensors.items() if wiring.by_name[name].kind == "weight"}
    return matrices, {name: tensor for name, tensor in tensors.items() if name not in matrices}
