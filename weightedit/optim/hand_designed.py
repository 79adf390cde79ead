"""Update rules designed by hand: what learned ones are compared with.

SGD, Adam, AdamW and RMSprop are torch.optim's, to rounding; Muon is muon.py's. GeometricAdam is ours: Adam's direction
times the scale of gauge.py, so that networks which compute one function go on computing one function, however their
neurons are scaled. Every delta is proportional to the learning rate, so a schedule is a factor on it.

Marks on a rule tell optimizer.py how it may be called: `elementwise`, in pieces of a tensor, since no entry looks at
another; `whole`, with all parameters of the wiring, since entries look at other tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.network.layer import SYMMETRIES, Symmetry
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.gauge import inverse_root, parameter_scales, root
from weightedit.optim.rule import RuleState, beside, started, warmth


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
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not all(0 <= beta < 1 for beta in self.betas) or self.epsilon < 0:
            raise WeightEditError(f"got {self}; expected a positive learning rate and betas in [0, 1): correct them.")

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
            deltas[name] = -rate * first / (root(second) / warmth(beta2, steps).sqrt() + self.epsilon)
            new[name] = {"step": step, "first": first, "second": second}
        return deltas, new

    def _cosine(self, step: Tensor) -> Tensor | float:
        return 1.0 if self.horizon is None else 0.5 * (1 + (math.pi * (step / self.horizon).clamp(max=1.0)).cos())


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).

    Args:
        learning_rate, betas, epsilon: as of Adam.
        weight_decay: fraction of a parameter that a step of learning rate 1 takes away; not negative.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._adam()
        if self.weight_decay < 0:
            raise WeightEditError(f"got {self}; expected a weight decay that is not negative: correct it.")

    def _adam(self) -> Adam:
        return Adam(self.learning_rate, self.betas, self.epsilon)

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """Zero moments."""
        return self._adam().init(wiring, params)

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        deltas, new = self._adam().update(wiring, grads, state, params)
        decay = self.learning_rate * self.weight_decay
        return {name: delta - decay * params[name] for name, delta in deltas.items()}, new


@dataclass(frozen=True)
class SGD:
    """Gradient descent with heavy-ball momentum (Polyak 1964) or Nesterov's, as torch has it with no dampening.

    Args:
        learning_rate: positive.
        momentum: in [0, 1); the velocity is the sum of the gradients so far, decayed by it.
        nesterov: step along gradient + momentum velocity; needs momentum.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    learning_rate: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1 or (self.nesterov and not self.momentum):
            raise WeightEditError(
                f"got {self}; expected a positive learning rate, a momentum in [0, 1), and a positive one where "
                "nesterov is asked for: correct them."
            )

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """Zero velocities, where there is momentum."""
        return started(wiring, params, *(["velocity"] if self.momentum else []))

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        deltas: Params = {}
        new: RuleState = {}
        for name, grad in grads.items():
            new[name] = {"step": state[name]["step"] + 1}
            direction = grad
            if self.momentum:
                new[name]["velocity"] = velocity = self.momentum * state[name]["velocity"] + grad
                direction = grad + self.momentum * velocity if self.nesterov else velocity
            deltas[name] = -self.learning_rate * direction
        return deltas, new


@dataclass(frozen=True)
class RMSprop:
    """RMSprop (Tieleman and Hinton, lecture 6.5 of "Neural Networks for Machine Learning", 2012), as torch has it.

    Args:
        learning_rate: positive.
        alpha: decay of the second moment, in [0, 1).
        epsilon: added to its root.
        momentum: in [0, 1); of the directions.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    learning_rate: float = 1e-2
    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        decays = (self.alpha, self.momentum)
        if not self.learning_rate > 0 or not all(0 <= decay < 1 for decay in decays) or self.epsilon < 0:
            raise WeightEditError(
                f"got {self}; expected a positive learning rate, alpha and momentum in [0, 1) and an epsilon that is "
                "not negative: correct them."
            )

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """A zero second moment, and a zero velocity where there is momentum."""
        return started(wiring, params, "second", *(["velocity"] if self.momentum else []))

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        deltas: Params = {}
        new: RuleState = {}
        for name, grad in grads.items():
            second = self.alpha * state[name]["second"] + (1 - self.alpha) * grad * grad
            direction = grad / (root(second) + self.epsilon)
            new[name] = {"step": state[name]["step"] + 1, "second": second}
            if self.momentum:
                new[name]["velocity"] = direction = self.momentum * state[name]["velocity"] + direction
            deltas[name] = -self.learning_rate * direction
        return deltas, new


@dataclass(frozen=True)
class GeometricAdam:
    """Adam's direction times a scale of type +1, delta = -learning_rate s m / sqrt(v) (ours; gauge.py says what s is).

    Exactly equivariant to permutations, sign flips and rescalings of neurons: no epsilon, and a direction of zero where
    v is zero. Moments are carried as they come. The learning rate is a relative one: a step changes a weight by about
    that fraction of the root mean square of its row.

    Args:
        learning_rate: positive.
        betas: decay of the two moments, in [0, 1).
        symmetry: "full" or "scale" for s of every neuron by itself; "sign" or "permutation" for one s per layer.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    symmetry: Symmetry = "full"
    whole: ClassVar[bool] = True
    needs_wiring: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise WeightEditError(f"got {self}; expected a positive learning rate, betas in [0, 1): correct them.")
        if self.symmetry not in SYMMETRIES:
            raise WeightEditError(f"got {self}; expected a symmetry among {', '.join(SYMMETRIES)}: choose one.")

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """Zero moments."""
        return started(wiring, params, "first", "second")

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        (beta1, beta2), deltas, new = self.betas, {}, {}
        if rates := wiring.rates:
            params = {name: tensor * rates.get(name, 1) for name, tensor in params.items()}
        scales = parameter_scales(wiring, params, self.symmetry)
        for name, grad in grads.items():
            before = state[name]
            step = before["step"] + 1
            first, second = before["first"].lerp(grad, 1 - beta1), before["second"].lerp(grad * grad, 1 - beta2)
            steps = beside(step, grad)
            rate = self.learning_rate * warmth(beta2, steps).sqrt() / warmth(beta1, steps) / rates.get(name, 1)
            deltas[name] = -rate * scales[name] * (first * inverse_root(second))
            new[name] = {"step": step, "first": first, "second": second}
        return deltas, new
