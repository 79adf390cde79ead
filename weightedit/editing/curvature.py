"""Refinement rules that use curvature: K-FAC with numbers set by hand or learned, and Levenberg-Marquardt.

All solve a linear last layer in closed form; one that a function follows they step as they step the others. What they
read of a network are its residuals, gradients and curvature factors (rendering_problem.py); the numbers that steer a
step depend on invariants only, so every rule is equivariant to permutations, signs and phases of the INR's neurons.

One K-FAC step of curved layer l, mean(M) being that of M's diagonal (Martens and Grosse 2015; heavy-ball momentum):

    D_l <- momentum D_l + (G_l + damping_out mean(G_l))^-1  gradient_l  (A_l + damping_in mean(A_l))^-1
    V_l <- V_l - rate D_l
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.capacity import check_capacity
from weightedit.editing.descent import Standing, choose_networks, descend
from weightedit.editing.rendering_problem import Layer, Pass, RenderingProblem, Summary
from weightedit.errors import WeightEditError
from weightedit.files.location import CONFIG
from weightedit.files.pretrained import Pretrained
from weightedit.files.schema import conform
from weightedit.network.spec import Params

RIDGE = 1e-4
"""Penalty on the solved last layer's squared weights, in units of the mean squared residual; as in fitting."""


class Steering(NamedTuple):
    """The numbers of one K-FAC step, each [N, L] or [N, 1] for N networks with L curved layers, or a number for all."""

    rate: Tensor | float
    momentum: Tensor | float
    damping_in: Tensor | float
    damping_out: Tensor | float

    def of_layers(self, count: int) -> list[Steering]:
        """Of every layer: [N, 1, 1], or the number."""
        parts = [list(x[..., None, None].unbind(1)) if isinstance(x, Tensor) else [x] for x in self]
        parts = [part if len(part) == count else part * count for part in parts]
        return [Steering(*numbers) for numbers in zip(*parts, strict=True)]

    def careful(self, care: Tensor) -> Steering:
        """Shorter, more damped steps for networks whose care [N] is above 1, and no momentum for them."""
        care = care.unsqueeze(1)
        root = care.sqrt()
        calm = self.momentum * (care <= 1).to(care.dtype)
        return Steering(self.rate / root, calm, self.damping_in * root, self.damping_out * root)


@dataclass(frozen=True)
class KFAC:
    """K-FAC with numbers set by hand; the defaults are a first guess, which `compare_editors.py` tunes.

    Args:
        rate: of the step, 1 being Newton's for every layer by itself.
        momentum: in [0, 1).
        damping: of both factors, in units of their mean diagonal; positive.

    Raises:
        WeightEditError: numbers outside these ranges.
    """

    rate: float = 0.3
    momentum: float = 0.5
    damping: float = 0.1

    def __post_init__(self) -> None:
        if not (self.rate > 0 and 0 <= self.momentum < 1 and self.damping > 0):
            raise WeightEditError(f"got {self}; expected rate > 0, momentum in [0, 1) and damping > 0: correct them.")

    def refine(self, problem: RenderingProblem, params: Params, steps: int) -> Params:
        """See RefinementRule.refine."""
        steering = Steering(self.rate, self.momentum, self.damping, self.damping)
        return _descend(problem, params, steps, lambda losses: steering)


def _descend(
    problem: RenderingProblem, params: Params, steps: int, steer: Callable[[list[Tensor]], Steering]
) -> Params:
    """K-FAC; `steer` says the numbers of a step from the mean squared errors [N] so far."""

    def step(here: Standing, losses: list[Tensor], care: Tensor) -> tuple[list[Layer], list[Tensor]]:
        return kfac_step(here.layers, here.found, steer(losses).careful(care), here.state)

    curved = problem.curved(problem.layers(params))
    still = [layer.weight.new_zeros(*layer.bias.shape, layer.weight.shape[2] + 1) for layer in curved]
    return descend(problem, params, steps, step, still, ridge=RIDGE)


def kfac_step(
    layers: list[Layer], found: Summary, steering: Steering, momenta: list[Tensor]
) -> tuple[list[Layer], list[Tensor]]:
    """One step of every curved layer from what `summarize` found, factors included.

    Returns new layers (a linear last one as in `found`) and momenta.
    """
    new, moved, curved = [], [], layers[: len(found.factors)]
    for i, (layer, own) in enumerate(zip(curved, steering.of_layers(len(curved)), strict=True)):
        rate, momentum, damping_in, damping_out = own
        outer, inner = found.factors[i]
        direction = _solve(outer, damping_out, found.gradients[i])
        direction = _solve(inner, damping_in, direction.mT).mT
        if momenta:
            direction = momentum * momenta[i] + direction
        moved.append(direction)
        change = rate * direction
        new.append(Layer(layer.weight - change.narrow(-1, 0, change.shape[-1] - 1), layer.bias - change.select(-1, -1)))
    return [*new, found.last][: len(layers)], moved


def _solve(matrix: Tensor, damping: Tensor | float, right: Tensor) -> Tensor:
    """(matrix + damping mean(diagonal) I)^-1 right, for positive semidefinite matrices [N, n, n]; finite at zero.

    One matrix [1, n, n] may stand for all.
    """
    size = damping * matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).unsqueeze(-1) + 1e-20
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(torch.addcmul(matrix, size, eye))[0])


@dataclass(frozen=True)
class LearnedKFACConfig:
    """What defines a LearnedKFAC: numbers of the KFAC that it starts from, and the size of its network.

    Attributes:
        width: hidden units of the network that steers.
        horizon: unit of the clocks of steps done and left; beyond two of them all steps look alike.

    Raises:
        WeightEditError: a width or horizon that is no whole number of at least 1, or numbers that KFAC refuses.
    """

    width: int = 32
    horizon: int = 16
    rate: float = 0.3
    momentum: float = 0.5
    damping: float = 0.1

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and size >= 1 for size in (self.width, self.horizon)):
            raise WeightEditError(f"got {self}; expected a width and a horizon of at least 1: correct them.")
        KFAC(self.rate, self.momentum, self.damping)


SHIPPED_RULE = "refine-rule"
"""Name of the shipped LearnedKFAC, which takes the steps unless another rule is given."""


class LearnedKFAC(Pretrained):
    """K-FAC whose numbers a small network chooses, per INR, layer and step: a learned update rule for refinement.

    It sees invariants only: the logarithms of the loss and of how it changed, the steps done and left, where a layer
    lies (first, or not; last curved one, or not) and its two widths. At the start it is the KFAC of its config exactly.

    Args:
        config: see LearnedKFACConfig.
    """

    kind = "refinement rule"
    what = "refinement rule"

    def __init__(self, config: LearnedKFACConfig | None = None) -> None:
        super().__init__()
        self.config = config or LearnedKFACConfig()
        start = KFAC(self.config.rate, self.config.momentum, self.config.damping)
        self._start = Steering(start.rate, start.momentum, start.damping, start.damping)
        self._kept: dict[Any, Tensor] = {}
        self._logit = math.log(start.momentum / (1 - start.momentum)) if start.momentum else -math.inf
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.first, self.last = nn.Linear(13, self.config.width), nn.Linear(self.config.width, 4)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def refine(self, problem: RenderingProblem, params: Params, steps: int) -> Params:
        """See RefinementRule.refine; differentiable in the rule's own weights."""
        dtype, like, curved = self.first.weight.dtype, problem.targets, problem.curved(problem.layers(params))
        clocks = self._clocks(steps, tuple(one.weight.shape[1:] for one in curved), dtype, like.device)
        hidden = functional.linear(clocks, self.first.weight[:, 3:], self.first.bias).unbind()
        return _descend(problem, params, steps, lambda losses: self._steer(losses, hidden[len(losses) - 1]))

    def _clocks(
        self, steps: int, sizes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """[steps, L, 10]: the clocks and the layers as all steps see them, made once.

        `sizes`: of the curved layers, outputs and inputs.
        """
        key = steps, sizes, dtype, device
        if key not in self._kept:
            horizon, rows, depth = self.config.horizon, [], len(sizes)
            widths = [[math.log2(n / 32) / 2 for n in size] for size in sizes]
            for step in range(steps):
                left = steps - step
                clock = [step / horizon, left / horizon, 1 / left, 1 / (step + 1), float(step == 0), float(step == 1)]
                clock = [min(x, 2.0) for x in clock]
                rows.append([[*clock, float(i == 0), float(i == depth - 1), *widths[i]] for i in range(depth)])
            with torch.inference_mode(False):  # what is kept must serve a training, too
                self._kept[key] = torch.tensor(rows, dtype=dtype, device=device).view(steps, depth, 10)
        return self._kept[key]

    def _steer(self, losses: list[Tensor], clock: Tensor) -> Steering:
        now = losses[-1]
        logs = (torch.stack([now, losses[-2] if len(losses) > 1 else now, losses[0]], -1) + 1e-8).log()
        last, before, first = logs.unbind(-1)
        seen = torch.stack([last / 5 + 1, last - before, (last - first) / 3], -1)
        hidden = functional.linear(seen.to(clock.dtype), self.first.weight[:, :3]).unsqueeze(1) + clock
        rate, momentum, damping_in, damping_out = self.last(hidden.tanh()).to(now.dtype).unbind(-1)
        start = self._start
        return Steering(
            start.rate * rate.exp(),
            torch.sigmoid(momentum + self._logit),
            start.damping_in * damping_in.exp(),
            start.damping_out * damping_out.exp(),
        )

    def described(self) -> dict[str, Any]:
        """See Pretrained."""
        return {"rule": asdict(self.config)}

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """See Pretrained."""
        return cls(conform(LearnedKFACConfig, config["rule"], f"{CONFIG}: rule"))


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Levenberg-Marquardt on all weights at once, every step exact up to rounding, damped per network.

    With more weights than pixels the step is found in the space of residuals: J^T (J J^T + lambda)^-1 r, and J J^T is
    a sum over layers of Gram matrices of what the layer reads times those of its jacobians. A step that does not lower
    the loss is taken back, and counts.

    Args:
        damping: lambda of the first step, in units of J J^T's mean diagonal.
        shrink, grow: its factors after a step that lowered the loss, and after one that did not.
    """

    damping: float = 1e-2
    shrink: float = 0.3
    grow: float = 4.0

    def refine(self, problem: RenderingProblem, params: Params, steps: int) -> Params:
        """See RefinementRule.refine; raises WeightEditError on pictures whose J J^T this machine cannot hold."""
        layers = problem.layers(params)
        count, pixels, outputs = problem.targets.shape
        what, size = f"Levenberg-Marquardt on {count} pictures of {pixels} pixels", problem.targets.element_size()
        check_capacity(count * (outputs * pixels) ** 2 * size, what, "choose KFAC", problem.targets.device)
        found = problem.evaluate(layers)
        damping = torch.full_like(found.loss(), self.damping)
        for _ in range(steps):
            tried = _exact_step(problem, layers, found, damping)
            at_trial = problem.evaluate(tried)
            better = at_trial.loss() < found.loss()  # false for NaN
            layers, found = choose_networks(better, [tried, at_trial], [layers, found])
            damping = torch.where(better, damping * self.shrink, damping * self.grow)
        solved, loss = problem.solved(layers, RIDGE)
        return problem.params(choose_networks(loss < found.loss(), solved, layers))


def _exact_step(problem: RenderingProblem, layers: list[Layer], found: Pass, damping: Tensor) -> list[Layer]:
    """layers - J^T (J J^T + damping mean(diagonal))^-1 r; rows of J are output by output, pixel by pixel."""
    count, pixels, outputs = found.residual.shape
    total = found.residual.new_zeros(count, outputs, pixels, outputs, pixels)
    if problem.linear_end:
        last = torch.bmm(found.inputs[-1], found.inputs[-1].mT) + 1
        for c in range(outputs):
            total[:, c, :, c] = last
    total = total.view(count, outputs * pixels, -1)
    for i, jacobian in enumerate(found.jacobians):
        rows = jacobian.flatten(1, 2)
        read = _products(problem, found, i).repeat(1, outputs, outputs)
        total.add_(torch.bmm(rows, rows.mT).mul_(read))
    solved = _solve(total, damping[:, None, None], found.residual.mT.flatten(1).unsqueeze(-1))
    weights = solved.view(count, outputs, pixels).mT  # [N, P, C]: in the place of residuals
    moved = found._replace(residual=weights * pixels)
    new = []
    for i, layer in enumerate(layers):
        change = problem.gradient(moved, i)
        new.append(Layer(layer.weight - change[..., :-1], layer.bias - change[..., -1]))
    return new


def _products(problem: RenderingProblem, found: Pass, i: int) -> Tensor:
    """a_l a_l^T over pixels, [N or 1, P, P], for what layer i reads and its 1."""
    if i == 0:
        products = problem.grid @ problem.grid.mT
        return products if products.dim() == 3 else products.unsqueeze(0)
    return torch.bmm(found.inputs[i - 1], found.inputs[i - 1].mT) + 1
