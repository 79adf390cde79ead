"""Learned update rules of the per-parameter kind: one small network maps what is known of a parameter to its step.

The features are mlp_features.py's, each divided by its root mean square over the tensor, and the time as tanh(t / tau -
1), which is the same for a whole tensor and enters as a bias. The full set of features and the exponential output are
those of Metz et al. (2022); the size and the normalized output of the lean preset are those of Celo2 (2026), its
selection of features is ours.

The rule adds to Adam's direction instead of replacing it, so that it optimizes before any meta-training:

    delta = -exp(log step size) (m / sqrt(v) + correction F(features))

times what part of it the gradient warrants (warrant.py), since F has no size of its own.

Equivariant to permutations, and to nothing more: scales over a tensor break rescaling, a ReLU on odd features breaks
signs. Features stand as [features, parameters], a third of the time of the other order, in pieces that fit the cache.

The file is long because a step over stacks and a step by pieces are one computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightedit.errors import WeightEditError
from weightedit.network.spec import Params
from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.gauge import inverse_root
from weightedit.optim.mlp_features import Seen, full_features, lean_features, seen
from weightedit.optim.rounding import is_rounding
from weightedit.optim.rule import RuleState, beside, warmth
from weightedit.optim.rule_module import At, RuleModule, Stepped
from weightedit.optim.stacks import plan_of
from weightedit.optim.unitwise import (
    FROM,
    affine,
    compiled_for_all_shapes,
    dense,
    goes_alone,
    numbers,
    pieces,
    split,
    steady,
)
from weightedit.optim.warrant import of_entries, of_tensor

FEATURES, OUTPUTS = ("full", "lean"), ("exponential", "normalized")
_MAGNITUDE = 1e-3  # of Metz et al., as are the times
_TIMES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
_PIECES = {"cpu": 16384}  # parameters that go through the network at once
_PIECE = 2**20  # where every call takes long
_LINE = 2**16  # and, compiled, in one loop
_UNITWISE_TO = 256  # products of a network that is compiled unit by unit


@dataclass(frozen=True)
class MLPRuleConfig:
    """What defines an MLPRule.

    Attributes:
        features: "full" for all of the paper's, "lean" for ten of them.
        hidden: widths of the hidden layers.
        output: "exponential" for F = direction exp(1e-3 magnitude); "normalized" for one number, the sum with Adam's
            direction divided by its root mean square over the tensor (biases and gains are not: few of them would never
            come to rest).
        momenta: decays of the averaged gradients, the first one also of Adam's direction.
        second: decay of the averaged squares.
        factors: decays of the rows and columns; for "full" as many as `momenta`.
        times: the tau of the clocks, in steps.
        step_size: at the start; the rule's own weights hold its logarithm.
        correction: how much F counts beside Adam's direction.

    Raises:
        WeightEditError: values outside these ranges.
    """

    features: str = "lean"
    hidden: tuple[int, ...] = (8, 8)
    output: str = "normalized"
    momenta: tuple[float, ...] = (0.9, 0.99)
    second: float = 0.999
    factors: tuple[float, ...] = (0.999,)
    times: tuple[float, ...] = (10.0, 100.0, 1000.0)
    step_size: float = 1e-3
    correction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("hidden", "momenta", "factors", "times"):  # JSON gives lists back
            object.__setattr__(self, name, tuple(getattr(self, name)))
        decays = (*self.momenta, self.second, *self.factors)
        if self.features not in FEATURES or self.output not in OUTPUTS:
            raise WeightEditError(f"got {self}; expected features in {FEATURES} and an output in {OUTPUTS}: choose.")
        if not all(0 < decay < 1 for decay in decays) or not self.momenta or not self.factors:
            raise WeightEditError(f"got {self}; expected decays inside (0, 1), at least one of each: correct them.")
        if self.features == "full" and len(self.factors) != len(self.momenta):
            raise WeightEditError(f"got {self}; expected as many factors as momenta for full features: correct them.")
        sizes = (*self.hidden, *self.times, self.step_size)
        if not self.hidden or not all(size > 0 for size in sizes) or self.correction < 0:
            raise WeightEditError(
                f"got {self}; expected at least one hidden layer, positive widths, times and step size, and a "
                "correction that is not negative: correct them."
            )

    @classmethod
    def small_fc(cls, step_size: float = 1e-3) -> MLPRuleConfig:
        """39-32-32-2: all features of Metz et al.'s small_fc_lopt (theirs is 39-4-4-2), in the width of later ports."""
        decays = (0.9, 0.99, 0.999)
        return cls("full", (32, 32), "exponential", decays, 0.999, decays, _TIMES, step_size)

    @classmethod
    def per_parameter(cls, step_size: float = 1e-3) -> MLPRuleConfig:
        """13-8-8-1, fewer than 200 weights, three floats of state per parameter and the factors."""
        return cls(step_size=step_size)

    @property
    def seen(self) -> int:
        """Features per parameter, clocks not counted."""
        momenta, factors = len(self.momenta), len(self.factors)
        return 4 + 2 * momenta + 6 * factors if self.features == "full" else 2 + 2 * momenta + 4 * factors

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the network, inputs (clocks counted) and outputs included."""
        return (self.seen + len(self.times), *self.hidden, 2 if self.output == "exponential" else 1)


class MLPRule(RuleModule):
    """A per-parameter learned update rule.

    Works on stacks and in torch.func.vmap, over networks and over its own weights (torch.func.functional_call), and is
    differentiable in all it is given. Half-precision parameters get float32 state.

    Args:
        config: see MLPRuleConfig; None for the lean one.
        generator: of the rule's initial weights (CPU); None for one of seed 0.
    """

    kind = "mlp-rule"
    what = "per-parameter update rule"
    configs = MLPRuleConfig
    config: MLPRuleConfig
    complements: Tensor
    factor_complements: Tensor
    inverse_times: Tensor

    def __init__(self, config: MLPRuleConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or MLPRuleConfig.per_parameter()
        generator = generator or torch.Generator().manual_seed(0)
        pairs = zip(config.sizes, config.sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, a, b) for a, b in pairs)
        for layer in self._linear:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        self.log_step_size = nn.Parameter(torch.tensor(math.log(config.step_size)))
        for name, values in (
            ("complements", [1 - decay for decay in config.momenta]),
            ("factor_complements", [1 - decay for decay in config.factors]),
            ("inverse_times", [1 / time for time in config.times]),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    @property
    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def quantities(self, wire: Wire) -> dict[str, tuple[int, ...]]:
        """See RuleModule.quantities; "rows" and "columns" are the means of squares that Adafactor keeps, per decay.

        "peak" is the largest mean over the tensor so far.
        """
        targets, sources, rest = wire.view
        factors = len(self.config.factors)
        return {
            "momenta": (len(self.config.momenta), *wire.shape),
            "second": wire.shape,
            "rows": (factors, targets),
            "columns": (factors, sources * rest),
            "peak": (),
        }

    def step(self, wiring: Wiring, at: At, loss: Tensor | None, passes: _Passes | None) -> Stepped:
        """See RuleModule.step; the loss is not looked at."""
        grads, state, params = at
        grads = self._telling(wiring, grads, state)
        large = [name for name, grad in grads.items() if passes and goes_alone(grad, wiring.by_name[name].shape)]
        deltas: Params = {}
        new: RuleState = {}
        kinds: dict[tuple[torch.dtype, torch.device], Params] = {}
        for name, grad in grads.items():
            if name not in large:
                kinds.setdefault((state[name]["second"].dtype, grad.device), {})[name] = grad
        for some in kinds.values():
            found = self._stacked(wiring, (some, state, params))
            deltas, new = deltas | found[0], new | found[1]
        for name in large:
            assert passes is not None
            one = (grads[name], state[name], params[name])
            deltas[name], new[name] = self._alone(wiring.by_name[name], one, passes)
        return {name: deltas[name] for name in grads}, {name: new[name] for name in grads}

    def _telling(self, wiring: Wiring, grads: Params, state: RuleState) -> Params:
        """Gradients, those of biases zero where they are rounding alone (rounding.py).

        For want of a gauge, a bias is held against the mean over the weights that lead to its neuron, not their sum.
        """
        slow = self.config.factors.index(max(self.config.factors))
        weights: dict[int, Tensor] = {}
        for name, grad in grads.items():
            wire, rows = wiring.by_name[name], state[name]["rows"][..., slow, :]
            if wire.source is not None:
                now = wire.matrix(grad.to(rows.dtype)).square().mean((-2, -1))
                mean = rows.lerp(now, 1 - self.config.factors[slow])
                weights[wire.target] = weights[wire.target] + mean if wire.target in weights else mean
        told = dict(grads)
        for name, grad in grads.items():
            wire, second = wiring.by_name[name], state[name]["second"]
            if wire.kind == "bias" and len(wire.shape) == 1 and wire.target in weights:
                square = second.lerp(grad.to(second.dtype).square(), 1 - self.config.second)
                told[name] = grad.masked_fill(is_rounding(square, weights[wire.target].to(square)), 0)
        return told

    def _stacked(self, wiring: Wiring, at: At) -> Stepped:
        """Tensors of one dtype and device, those of one shape in one go (stacks.py)."""
        grads, state, params = at
        first = next(iter(grads))
        like = state[first]["second"]
        lead, dtype, plan = like.dim() - len(wiring.by_name[first].shape), like.dtype, plan_of(wiring, grads, like)
        before = {key: [state[name][key] for name in plan.names] for key in state[first]}
        steps = torch.stack(before["step"], -1) + 1
        joined = []
        for stack in plan.stacks:
            given = [[tensors[name].to(dtype) for name in stack.names] for tensors in (grads, params)]
            given += [before[key][stack.of] for key in ("momenta", "second")]
            joined.append([stack.join(tensors, lead) for tensors in given])
        squares = [gradient.square() for gradient, *_ in joined]
        fresh = self.factor_complements.to(dtype).unsqueeze(-1)
        now = torch.cat([s.unpadded(square.mean(-1)) for s, square in zip(plan.stacks, squares, strict=True)], -1)
        rows = torch.cat(before["rows"], -1).lerp(now.unsqueeze(-2), fresh)
        own = [s.column_means(square).flatten(-2) for s, square in zip(plan.stacks, squares, strict=True)]
        columns = torch.cat(before["columns"], -1).lerp(torch.cat(own, -1).unsqueeze(-2), fresh)
        slow = self.config.factors.index(max(self.config.factors))
        mean = plan.rows_of_tensor.mean(rows[..., slow, :]) / warmth(self.config.factors[slow], steps).to(dtype)
        warranted, peak = of_tensor(plan.rows_of_tensor.mean(now), mean, torch.stack(before["peak"], -1))
        sizes = plan.per_stack(-self.log_step_size.exp().to(dtype) * warranted)
        clocks, warm = (plan.per_stack(x, axis) for x, axis in zip(self._clocks(steps, dtype), (-2, -1), strict=True))
        parts: dict[str, list[Tensor]] = {"delta": [], "momenta": [], "second": []}
        by_row, by_column = plan.rows_per_stack(rows), plan.columns_per_stack(columns)
        for i, (stack, (gradient, parameter, momenta, second)) in enumerate(zip(plan.stacks, joined, strict=True)):
            moments = {
                "momenta": momenta.lerp(gradient.unsqueeze(-3), self.complements.to(dtype).view(-1, 1, 1)),
                "second": second.lerp(squares[i], 1 - self.config.second),
                "rows": by_row[i].movedim(-2, -3),
                "columns": by_column[i].movedim(-2, -3),
            }
            factors = [moments[key].unsqueeze(-1) for key in ("rows", "columns")]
            averages = [
                stack.means(factors[0].movedim(-3, -4)).movedim(-4, -3),
                factors[1].mean((-2, -1), keepdim=True),
            ]
            known = seen(gradient, parameter, moments, stack.means(moments["second"]), averages)
            normalized = self._normalizes(stack.wires[0])
            direction = self._direction(known, clocks[i], None if normalized else warm[i], stack.real)
            size = self._sized(sizes[i], direction) if normalized else sizes[i]
            for key, tensor in (("delta", size[..., None, None] * direction), *list(moments.items())[:2]):
                parts[key] += stack.parts(tensor, lead)
        after: dict[str, Sequence[Tensor]] = {
            **parts,
            **{"rows": plan.split_rows(rows), "columns": plan.split_columns(columns)},
            **{"step": steps.unbind(-1), "peak": peak.unbind(-1)},
        }
        deltas = {name: after["delta"][i].to(grads[name].dtype) for i, name in enumerate(plan.names)}
        return deltas, {name: {key: after[key][i] for key in before} for i, name in enumerate(plan.names)}

    def _normalizes(self, wire: Wire) -> bool:
        return self.config.output == "normalized" and wire.kind == "weight"

    def _sized(self, size: Tensor, direction: Tensor) -> Tensor:
        """The factor of a direction [.., rows, columns] whose root mean square over the tensor is to be 1."""
        return size * inverse_root(_energy(direction.flatten(-2)) / math.prod(direction.shape[-2:]))

    def _alone(
        self, wire: Wire, at: tuple[Tensor, Mapping[str, Tensor], Tensor], passes: _Passes
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Delta and state of one large tensor, pass by pass. `at`: gradient, state and value."""
        (grad, before, param), dtype = at, at[1]["second"].dtype
        steps, slow = before["step"] + 1, self.config.factors.index(max(self.config.factors))
        clock, warm = self._clocks(steps, dtype)
        matrices = wire.flat(grad.to(dtype)), wire.flat(param.to(dtype))
        normalized = self._normalizes(wire)
        direction, new = self._passed(passes, wire, matrices, before, (clock, None if normalized else warm))
        mean = new["rows"][slow].mean(-1) / warmth(self.config.factors[slow], steps).to(dtype)
        warranted, new["peak"] = of_tensor(matrices[0].square().mean(), mean, before["peak"])
        size = -self.log_step_size.exp().to(dtype) * warranted
        size = self._sized(size, direction) if normalized else size
        return (size * direction).reshape(grad.shape).to(grad.dtype), {**new, "step": steps}

    def compiled_passes(self) -> _Passes | None:
        """See RuleModule.compiled_passes."""
        if self._products > _UNITWISE_TO:
            return None
        return _Passes(*map(compiled_for_all_shapes, (self._gather, self._energies, self._combined)))

    @property
    def _products(self) -> int:
        return sum(a * b for a, b in zip(self.config.sizes, self.config.sizes[1:], strict=False))

    def _passed(
        self,
        passes: _Passes,
        wire: Wire,
        at: tuple[Tensor, Tensor],
        before: Mapping[str, Tensor],
        clock: tuple[Tensor, Tensor | None],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`_direction` and new moments of a large tensor; gradient and value are the matrices `at`."""
        matrices = {key: wire.flat(before[key]) for key in ("momenta", "second")}
        moments, mean = passes.gather(at[0], {"rows": before["rows"], "columns": before["columns"], **matrices})
        known, direction = seen(*at, moments, mean), torch.empty_like(at[0])
        weights, biases, base = self._network_of(inverse_root(passes.energies(known)), *clock)
        network = steady(*weights), steady(*biases), *steady(base)
        for start, end in pieces(direction, _LINE):
            direction[start:end] = passes.move(known.part(start, end).lines(), *network).view(end - start, -1)
        return direction, {key: moments[key].view(before[key].shape) for key in moments}

    def _gather(self, gradient: Tensor, before: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """New moments of a matrix [rows, columns], and the mean of the second, [1, 1]."""
        moments = self._moments(gradient, gradient.square(), before)
        return moments, moments["second"].mean((-2, -1), keepdim=True)

    def _clocks(self, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The bias of the first layer, time included, [.., hidden]; what the uncorrected m / sqrt(v) lacks, [..]."""
        first = self._linear[0]
        times = (steps.to(first.weight.dtype).unsqueeze(-1) * self.inverse_times.to(first.weight.dtype) - 1).tanh()
        warm = warmth(self.config.second, steps).sqrt() / warmth(self.config.momenta[0], steps)
        return (times @ first.weight[:, self.config.seen :].mT + first.bias).to(dtype), warm

    def _moments(
        self, gradient: Tensor, square: Tensor, before: Mapping[str, Tensor], axes: int = 2
    ) -> dict[str, Tensor]:
        """Of a gradient with this many axes, and its squares [.., rows, columns]."""
        fresh = self.complements.to(gradient.dtype).view(-1, *[1] * axes)
        fresh_factors = self.factor_complements.to(gradient.dtype).view(-1, 1)
        return {
            "momenta": before["momenta"].lerp(gradient.unsqueeze(-1 - axes), fresh),
            "second": before["second"].lerp(square.view(gradient.shape), 1 - self.config.second),
            "rows": before["rows"].lerp(square.mean(-1).unsqueeze(-2), fresh_factors),
            "columns": before["columns"].lerp(square.mean(-2).unsqueeze(-2), fresh_factors),
        }

    def _direction(self, seen: Seen, clock: Tensor, warm: Tensor | None, real: Tensor | None) -> Tensor:
        """Adam's direction plus the correction, [.., rows, columns].

        `warm` is what the uncorrected m / sqrt(v) is multiplied by; None: make its root mean square 1. `real`: which
        rows there are, [tensors, rows], of vectors that are padded.
        """
        rows, columns = seen.gradient.shape[-2:]
        count = max(1, _PIECES.get(seen.gradient.device.type, _PIECE) * rows // seen.gradient.numel())
        if torch.compiler.is_compiling():
            if seen.gradient.numel() >= FROM and self._products <= _UNITWISE_TO and real is None:
                return self._fused(seen, clock, warm)
            count = rows
        starts = range(0, rows, count)
        pieces = [seen.part(start, start + count) for start in starts]
        built = [self._features(pieces[0])] if len(pieces) == 1 else []  # large tensors: twice, rather than kept
        energies = []
        for start, piece in zip(starts, pieces, strict=True):
            found = built[0] if built else self._features(piece)
            energies.append(_energy(found if real is None else found * real[:, None, start : start + count]))
        number = rows * columns if real is None else real.sum(-1, keepdim=True)
        inverse = inverse_root(sum(energies[1:], energies[0]) / number)
        first = self._first(inverse)
        base = inverse[..., self._adam : self._adam + 1] if warm is None else beside(warm, inverse)
        found = []
        for piece in built or map(self._features, pieces):
            correction = self._correction(self._network(first, clock, piece).unbind(-2))
            moving = of_entries(piece[..., self._plain, :])
            found.append((base * piece[..., self._adam, :] + correction) * moving)
        joined = found[0] if len(found) == 1 else torch.cat(found, -1)
        return joined.unflatten(-1, (rows, columns))

    def _fused(self, seen: Seen, clock: Tensor, warm: Tensor | None) -> Tensor:
        """`_direction` for a compiler: no pieces, and every unit a sum of its own (unitwise.py)."""
        return self._combined(seen, *self._network_of(inverse_root(self._energies(seen)), clock, warm))

    def _energies(self, seen: Seen) -> Tensor:
        """Mean squares of the features, [.., features]."""
        return torch.stack([part.square().mean((-2, -1)) for part in split(self._build(seen))], -1)

    def _network_of(
        self, inverse: Tensor, clock: Tensor, warm: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Weights and biases for features that are multiplied by `inverse`, and what m / sqrt(v) is."""
        weights = [self._first(inverse), *(layer.weight.to(clock.dtype) for layer in self._linear[1:])]
        biases = [clock, *(layer.bias.to(clock.dtype) for layer in self._linear[1:])]
        return weights, biases, inverse[..., self._adam] if warm is None else warm

    def _combined(self, seen: Seen, weights: Sequence[Tensor], biases: Sequence[Tensor], base: Tensor) -> Tensor:
        """The direction by a network of these weights, unit by unit."""
        features = split(self._build(seen))
        x = features
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if i > 0:
                x = [unit.relu() for unit in x]
            x = affine(weight, numbers(bias), x)
        moving = of_entries(features[self._plain])
        return (beside(base, features[0]) * features[self._adam] + self._correction(x)) * moving

    @property
    def _adam(self) -> int:
        """The place of m / sqrt(v) in both sets of features."""
        return 2 + len(self.config.momenta)

    @property
    def _plain(self) -> int:
        """The place of the gradient by Adafactor's factor."""
        return 2 * (1 + len(self.config.momenta)) + 2 * (self.config.features == "full")

    def _build(self, seen: Seen) -> list[Tensor]:
        return (full_features if self.config.features == "full" else lean_features)(seen)

    def _features(self, seen: Seen) -> Tensor:
        """[.., features, n]."""
        return torch.cat(self._build(seen), -3).flatten(-2)

    def _first(self, inverse: Tensor) -> Tensor:
        """The first layer's weight for features that are multiplied by `inverse`, [.., hidden, features]."""
        return self._linear[0].weight[:, : self.config.seen].to(inverse.dtype) * inverse.unsqueeze(-2)

    def _correction(self, outputs: Sequence[Tensor]) -> Tensor:
        found = outputs[0] * (_MAGNITUDE * outputs[1]).exp() if self.config.output == "exponential" else outputs[0]
        return self.config.correction * found

    def _network(self, first: Tensor, clock: Tensor, features: Tensor) -> Tensor:
        """[.., features, n] -> [.., outputs, n]; `first` and `clock` are the first layer's weight and bias."""
        x = dense(first, clock.unsqueeze(-1), features)
        for layer in self._linear[1:]:
            x = dense(layer.weight.to(x.dtype), layer.bias.to(x.dtype).unsqueeze(-1), x.relu_())
        return x


class _Passes(NamedTuple):
    """MLPRule's functions of matrices, compiled or as they are."""

    gather: Callable[..., tuple[dict[str, Tensor], Tensor]]
    energies: Callable[..., Tensor]
    move: Callable[..., Tensor]


def _energy(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features, dim=-1).square()
