"""Outer gradients: how the mean score of inner runs changes with the weights of the rule that does the steps.

* TruncatedBackprop differentiates through the steps of one truncation: exact for whole runs, biased for parts of them.
* ES (Rechenberg 1973; Salimans et al. 2017): pairs of perturbed weights, on whole runs, or, biased, on parts of runs.
* PES (Vicol, Metz and Sohl-Dickstein 2021): fresh perturbations in every truncation, their sum xi over one run.
* ESSingle (Vicol 2023): one perturbation per run.

With L the mean score over a truncation, eps of standard deviation sigma and runs that see the same batches,

    gradient = mean over particles of (L(theta + eps) - L(theta - eps)) / (2 sigma^2) direction

where the direction is eps, or PES's xi. Averaged over calls this is the gradient of the mean score over the steps of a
run (of PES and ESSingle: up to O(sigma^2)); long runs count by their steps. An estimator is options only: all that
changes is a flat dictionary of tensors, so runs resume exactly, and a schedule is another estimator on the same state.
Nothing is communicated: processes give the same generator to `init`, take each a part, and average what they get.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.errors import WeightEditError
from weightedit.metatrain.draws import keys, seeds
from weightedit.metatrain.unroll import InnerState, Unroll, Weights, start

State = dict[str, Tensor]
"""Of an estimator: "seed" and "outer_step" (), "horizon" [N], "noise" [N, weights], "inner/..." [N or 2 N, ...]."""

_INNER = "inner/"


@dataclass(frozen=True)
class Horizons:
    """Lengths of inner runs in steps, log-uniform between `low` and `high`, both included. Raises WeightEditError."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise WeightEditError(f"got {self}; expected 1 <= low <= high: correct it.")

    def draw(self, generator: torch.Generator, count: int) -> Tensor:
        """[count] int64."""
        uniform = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        low, high = math.log(self.low), math.log(self.high + 1)
        return (low + (high - low) * uniform).exp().long().clamp(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Estimator(ABC):
    """What all estimators share.

    Args:
        unroll: the rule (an nn.Module), the problem, and how steps are done.
        horizons: lengths of runs.
        truncation: steps per call; None: every call does one whole run, of a length drawn for all particles. A run ends
            with the first truncation that reaches its horizon.
        particles: runs side by side, of antithetic estimators pairs of runs.
        random_phase: shorten every particle's first run to a uniformly random number of its steps, at least one, so
            that particles end at different times.
        part, parts: which part this is of `parts` times as many particles: all are drawn, and the others left out, so
            that the mean over the parts is the gradient of one estimator with all of them.

    Raises:
        WeightEditError: numbers that are not positive, a part that is none, or a rule without weights.
    """

    unroll: Unroll
    horizons: Horizons
    truncation: int | None = None
    particles: int = 16
    random_phase: bool = True
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.particles < 1 or (self.truncation is not None and self.truncation < 1):
            raise WeightEditError(
                f"got {self.particles} particles and a truncation of {self.truncation} steps; expected at least one "
                "each (None: whole runs)."
            )
        if not 0 <= self.part < self.parts:
            raise WeightEditError(f"got part {self.part} of {self.parts}; expected one from 0 to parts - 1.")
        if not isinstance(self.unroll.rule, nn.Module) or not dict(self.unroll.rule.named_parameters()):
            raise WeightEditError(
                f"got a {type(self.unroll.rule).__name__}; expected a rule with weights, an nn.Module: there is "
                "nothing to train in this one."
            )

    def init(self, generator: torch.Generator) -> State:
        """The state before the first call: fresh runs, if they outlive a call. On the generator's device."""
        seed = seeds(generator, 1)[0]
        state = {"seed": seed, "outer_step": torch.zeros_like(seed)}
        if self.truncation is not None:
            horizon = self.horizons.draw(generator, self._all)
            if self.random_phase:
                phase = torch.rand(self._all, generator=generator, device=generator.device, dtype=torch.float64)
                horizon = (phase * horizon).ceil().long().clamp(min=1)
            state["horizon"] = self._own(horizon)
            state.update(_stored(self._started(generator)))
        return state

    @abstractmethod
    def gradient(self, weights: Mapping[str, Tensor], state: State) -> tuple[Weights, State, dict[str, Tensor]]:
        """One outer gradient; a function of its arguments alone.

        Args:
            weights: of the rule, by name.
            state: from `init` or the call before.

        Returns:
            The gradient by name, the state after, and metrics (numbers as tensors of shape ()): "loss" the mean score,
            "last" that of the last step, "capped" the share of losses at the cap, "dropped" that of particles whose
            gradient was not finite and counts as zero, "steps" inner steps done, over all networks.
        """

    @property
    def _all(self) -> int:
        return self.parts * self.particles

    def _own(self, drawn: Tensor) -> Tensor:
        """This part of what was drawn for all particles."""
        return drawn if self.parts == 1 else drawn[self.part * self.particles :][: self.particles].clone()

    def _started(self, generator: torch.Generator) -> InnerState:
        return start(self.unroll.rule, self.unroll.optimizee, generator, self._all).map(self._own)

    def _begin(self, state: State, generator: torch.Generator) -> tuple[InnerState, int, State]:
        """Runs to go on with, those that ended replaced; for how many steps; and what else the new state holds."""
        kept = {"seed": state["seed"], "outer_step": state["outer_step"] + 1}
        if self.truncation is None:
            return self._started(generator), int(self.horizons.draw(generator, 1)), kept
        inner = InnerState.from_tensors(
            {name.removeprefix(_INNER): tensor for name, tensor in state.items() if name.startswith(_INNER)}
        )
        horizon = state["horizon"]
        ended = inner.step[: self.particles] >= horizon
        if bool(ended.any()):
            horizon = torch.where(ended, self._own(self.horizons.draw(generator, self._all)), horizon)
            inner = self._started(generator).where(ended.repeat(len(inner) // len(ended)), inner)
        return inner, self.truncation, {**kept, "horizon": horizon}

    def _measure(self, losses: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        """Metrics from losses [steps, networks] and one flat gradient per particle."""
        score, cap = self.unroll.optimizee.score(losses), self.unroll.optimizee.cap
        return {
            "loss": score.mean(),
            "last": score[-1].mean(),
            "capped": (losses >= cap).double().mean(),
            "dropped": (~gradients.isfinite().all(-1)).double().mean(),
            "steps": torch.tensor(losses.numel()),
        }

    def _averaged(self, gradients: Tensor, weights: Mapping[str, Tensor]) -> Weights:
        finite = gradients.isfinite().all(-1, keepdim=True)
        return self._named(torch.where(finite, gradients, 0).mean(0), weights)

    def _flat(self, weights: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(self.unroll.rule, nn.Module)
        return torch.cat([weights[name].detach().flatten() for name, _ in self.unroll.rule.named_parameters()])

    def _named(self, flat: Tensor, weights: Mapping[str, Tensor]) -> Weights:
        """[..., weights] by name, [..., *shape]."""
        assert isinstance(self.unroll.rule, nn.Module)
        names = [name for name, _ in self.unroll.rule.named_parameters()]
        parts = flat.split([weights[name].numel() for name in names], -1)
        return {
            name: part.reshape((*part.shape[:-1], *weights[name].shape))
            for name, part in zip(names, parts, strict=True)
        }


@dataclass(frozen=True, eq=False)
class TruncatedBackprop(Estimator):
    """Backpropagation through the steps of a truncation; what came before it counts as constant.

    memory.py says what a call holds. Particles share the weights, and each has a gradient of its own, so that one that
    diverges spoils no other.

    Raises:
        WeightEditError: also a truncation (or a run) of one step, before which the loss is taken: no gradient.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.unroll.fresh and (self.truncation or self.horizons.low) < 2:
            raise WeightEditError(
                "got backpropagation through one step, whose loss is taken before it; expected at least two, or "
                "Unroll(fresh=True)."
            )

    def gradient(self, weights: Mapping[str, Tensor], state: State) -> tuple[Weights, State, dict[str, Tensor]]:
        """See Estimator.gradient."""
        inner, steps, after = self._begin(state, _generator(state))
        flat = self._flat(weights).expand(self.particles, -1).clone().requires_grad_()
        with torch.enable_grad():
            inner, losses = self.unroll(inner.detached(), steps, self._named(flat, weights))
            score = self.unroll.optimizee.score(losses).mean(0).sum()
            (gradients,) = torch.autograd.grad(score, flat)
        if self.truncation is not None:
            after.update(_stored(inner.detached()))
        return self._averaged(gradients, weights), after, self._measure(losses.detach(), gradients)


@dataclass(frozen=True, eq=False)
class Antithetic(Estimator):
    """Pairs of runs at weights theta + eps and theta - eps, with the same start and the same batches.

    Args:
        sigma: standard deviation of eps, in units of the weights; positive. Keep it along a run.
    """

    sigma: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise WeightEditError(f"got sigma = {self.sigma}; expected a positive number.")

    def gradient(self, weights: Mapping[str, Tensor], state: State) -> tuple[Weights, State, dict[str, Tensor]]:
        """See Estimator.gradient."""
        generator = _generator(state)
        with torch.no_grad():
            base = self._flat(weights)
            like: dict[str, Any] = {"generator": generator, "device": base.device, "dtype": base.dtype}
            noise = self.sigma * self._own(torch.randn(self._all, len(base), **like))
            inner, steps, after = self._begin(state, generator)
            fresh = (inner.step[: self.particles] == 0).unsqueeze(-1)
            noise, direction = self._directed(noise, state.get("noise"), fresh)
            stack = self._named(torch.cat([base + noise, base - noise]), weights)
            inner, losses = self.unroll(inner, steps, stack)
            plus, minus = self.unroll.optimizee.score(losses).mean(0).chunk(2)
            gradients = ((plus - minus) / (2 * self.sigma**2)).unsqueeze(-1) * direction
        if self.truncation is not None:
            after.update(_stored(self._carried(inner)), noise=direction)
        return self._averaged(gradients, weights), after, self._measure(losses, gradients)

    @abstractmethod
    def _directed(self, noise: Tensor, before: Tensor | None, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """eps and the direction of the estimate, from new noise [N, weights] and the direction before.

        `fresh` [N, 1]: whether a run is at its beginning; `before` is None where all are.
        """

    def _carried(self, inner: InnerState) -> InnerState:
        """What goes on after a truncation."""
        return inner

    def _started(self, generator: torch.Generator) -> InnerState:
        return super()._started(generator).paired()


@dataclass(frozen=True, eq=False)
class ES(Antithetic):
    """Evolution strategies. Truncated, a pair starts every truncation from where its first network had come to."""

    def _directed(self, noise: Tensor, before: Tensor | None, fresh: Tensor) -> tuple[Tensor, Tensor]:
        return noise, noise

    def _carried(self, inner: InnerState) -> InnerState:
        return inner.map(lambda tensor: tensor[: self.particles]).paired()


@dataclass(frozen=True, eq=False)
class PES(Antithetic):
    """Persistent evolution strategies: unbiased by truncation; the variance may grow with the truncations of a run."""

    def _directed(self, noise: Tensor, before: Tensor | None, fresh: Tensor) -> tuple[Tensor, Tensor]:
        return noise, noise if before is None else noise + torch.where(fresh, 0, before)


@dataclass(frozen=True, eq=False)
class ESSingle(Antithetic):
    """One perturbation per run: whole-run ES in instalments, hence unbiased by truncation, of a variance
    that does not grow with their number (Vicol 2023)."""

    def _directed(self, noise: Tensor, before: Tensor | None, fresh: Tensor) -> tuple[Tensor, Tensor]:
        kept = noise if before is None else torch.where(fresh, noise, before)
        return kept, kept


def _stored(inner: InnerState) -> State:
    return {_INNER + name: tensor for name, tensor in inner.to_tensors().items()}


def _generator(state: State) -> torch.Generator:
    """Of one call, from the seed and the number of the call."""
    high, low = (int(keys(state["seed"], state["outer_step"], stream)) for stream in (2, 3))
    return torch.Generator(state["seed"].device).manual_seed((high << 31) ^ low)
