"""Inner problems: what a rule is trained to optimize. The protocol, analytic problems, reparametrization, families.

Every problem is a stack of N networks of one architecture, and a pure function of what it is given: parameters, what
one inner run is about (its task), and keys that name the batch (draws.py). Problems on images are
image_optimizees.py's; steps are unroll.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.network.spec import Params
from weightedit.network.wiring import NeuronSet, Wire, Wiring

Task = dict[str, Tensor]
"""What stays the same along one inner run (a target, a curvature): named tensors [N, ...]."""

Batch = dict[str, Tensor]
"""What one step sees: named tensors [N, ...]."""

Level = Literal["global", "tensor", "parameter"]


class Optimizee(Protocol):
    """A stack of inner problems of one architecture."""

    @property
    def wiring(self) -> Wiring:
        """Of one of the networks."""
        ...

    @property
    def cap(self) -> float:
        """Losses count as at most this; those that are not finite count as this."""
        ...

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """Fresh parameters and tasks of `count` runs, [count, ...], drawn on the generator's device.

        `held_out`: tasks that no other run is about, where the problem has such.
        """
        ...

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """The batch that `keys` [N] name, with everything of the task that the loss needs.

        `held_out`: of data that no inner step trains on, where the problem has such data.
        """
        ...

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """One number per network, [N], each a function of its own parameters; differentiable."""
        ...

    def score(self, losses: Tensor) -> Tensor:
        """Losses (any shape, in [0, cap]) on the scale that the meta-loss averages; increasing and differentiable."""
        ...


def clipped(losses: Tensor, cap: float) -> Tensor:
    """Losses inside [0, cap], cap for those that are not finite; the gradient is zero where that changes them."""
    return torch.where(losses.isfinite(), losses, cap).clamp(0, cap)


def _matrix_wiring(rows: int, columns: int) -> Wiring:
    sets = (NeuronSet("inputs", columns), NeuronSet("outputs", rows))
    return Wiring(sets, (Wire("x", (rows, columns), "weight", 1, 0, columns),))


@dataclass(frozen=True)
class Quadratic:
    """loss = mean of curvature (x - target)^2 / 2 over a matrix x, with curvatures of its own in every run.

    Args:
        shape: of x.
        condition: curvatures are log-uniform in [1 / condition, 1]; at least 1.
        cap: see Optimizee.
        dtype: of everything.
    """

    shape: tuple[int, int] = (4, 5)
    condition: float = 100.0
    cap: float = 100.0
    dtype: torch.dtype = torch.float32

    @cached_property
    def wiring(self) -> Wiring:
        """One matrix "x" without symmetry."""
        return _matrix_wiring(*self.shape)

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """Normal x and targets."""
        place: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": self.dtype}
        x, target = (torch.randn(count, *self.shape, **place) for _ in range(2))
        curvature = (-math.log(self.condition) * torch.rand(count, *self.shape, **place)).exp()
        return {"x": x}, {"target": target, "curvature": curvature}

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """The task: the loss has no noise."""
        return task

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See Optimizee.loss."""
        return 0.5 * (batch["curvature"] * (params["x"] - batch["target"]).square()).mean((-2, -1))

    def score(self, losses: Tensor) -> Tensor:
        """Losses as they are."""
        return losses


@dataclass(frozen=True)
class Rosenbrock:
    """sum of 100 (x_(i+1) - x_i^2)^2 + (1 - x_i)^2 over a row x (Rosenbrock 1960), from x normal around zero.

    Args:
        size: of x, at least 2.
        cap: see Optimizee; the score is log(1 + loss) over log(1 + cap).
        dtype: of everything.
    """

    size: int = 2
    cap: float = 1e4
    dtype: torch.dtype = torch.float32

    @cached_property
    def wiring(self) -> Wiring:
        """One matrix "x" of one row, without symmetry."""
        return _matrix_wiring(1, self.size)

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """Normal x; there is no task."""
        x = torch.randn(count, 1, self.size, generator=generator, device=generator.device, dtype=self.dtype)
        return {"x": x}, {}

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """Nothing: the loss has no noise."""
        return {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See Optimizee.loss."""
        x = params["x"].squeeze(-2)
        return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)

    def score(self, losses: Tensor) -> Tensor:
        """log(1 + loss) / log(1 + cap), in [0, 1]."""
        return losses.log1p() / math.log1p(self.cap)


@dataclass(frozen=True)
class Reparametrized:
    """A problem whose rule sees theta' = theta / c in place of theta (task augmentation; learned_optimizers.md, 2).

    The function at the start is the one that the problem would start with. Factors of single parameters change what
    permutations mean; the wiring is that of the problem all the same.

    Args:
        problem: the one that theta belongs to.
        level: one factor c for all parameters of a run ("global"), per "tensor" or per "parameter".
        low, high: c is log-uniform between them; positive.

    Raises:
        WeightEditError: an unknown level, or a range that is none.
    """

    problem: Optimizee
    level: Level = "tensor"
    low: float = 1e-3
    high: float = 1e3

    def __post_init__(self) -> None:
        if self.level not in get_args(Level) or not 0 < self.low <= self.high:
            raise WeightEditError(
                f"got a reparametrization at level {self.level!r} between {self.low} and {self.high}; expected a "
                f"level among {', '.join(get_args(Level))} and 0 < low <= high: correct it."
            )

    @property
    def wiring(self) -> Wiring:
        """The problem's."""
        return self.problem.wiring

    @property
    def cap(self) -> float:
        """The problem's."""
        return self.problem.cap

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """The problem's start, divided by fresh factors, which are kept in the task as "factor of <parameter>"."""
        params, task = self.problem.init(generator, count, held_out=held_out)
        factors = {name: self._factor(generator, tensor) for name, tensor in params.items()}
        if self.level == "global":
            one = next(iter(factors.values())).flatten()
            factors = {name: one.view(factor.shape) for name, factor in factors.items()}
        inner = {name: tensor / factors[name] for name, tensor in params.items()}
        return inner, {**task, **{f"factor of {name}": factor for name, factor in factors.items()}}

    def _factor(self, generator: torch.Generator, like: Tensor) -> Tensor:
        shape = like.shape if self.level == "parameter" else (len(like), *[1] * (like.dim() - 1))
        uniform = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
        return (math.log(self.low) + math.log(self.high / self.low) * uniform).exp()

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """The problem's, and the factors."""
        factors = {name: tensor for name, tensor in task.items() if name.startswith("factor of ")}
        own = {name: tensor for name, tensor in task.items() if name not in factors}
        return {**self.problem.batch(own, keys, held_out=held_out), **factors}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The problem's at c theta'."""
        theta = {name: tensor * batch[f"factor of {name}"] for name, tensor in params.items()}
        return self.problem.loss(theta, batch)

    def score(self, losses: Tensor) -> Tensor:
        """The problem's."""
        return self.problem.score(losses)


@dataclass(frozen=True)
class TaskFamily:
    """Problems of different architectures: every draw takes one value of each choice, uniformly.

    Args:
        make: a problem from one value of each choice, given by name.
        choices: name -> values, none of them empty; `Reparametrized` is applied to what `make` returns where a choice
            "reparametrize" holds a Level (None leaves the problem as it is).

    Raises:
        WeightEditError: a choice without values.
    """

    make: Callable[..., Optimizee]
    choices: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        empty = [name for name, values in self.choices.items() if not len(values)]
        if empty:
            raise WeightEditError(f"got no values for {', '.join(empty)}; expected at least one: leave the choice out.")

    def draw(self, generator: torch.Generator) -> tuple[Optimizee, dict[str, Any]]:
        """A problem, and the values that made it; a function of the generator's state alone."""
        chosen = {
            name: values[int(torch.randint(len(values), (), generator=generator, device=generator.device))]
            for name, values in self.choices.items()
        }
        made = self.make(**{name: value for name, value in chosen.items() if name != "reparametrize"})
        level = chosen.get("reparametrize")
        return (made if level is None else Reparametrized(made, level)), chosen
