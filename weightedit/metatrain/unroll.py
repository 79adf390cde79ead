"""Inner runs: many networks of one architecture, trained by an update rule for some steps. Pure functions of a state.

Batches are named by (seed, step) of each network, so that an antithetic pair sees the same ones, and a run that was
interrupted, or a network by itself, goes on exactly as it would have. Whether a graph is kept is the caller's: under
no_grad (evolution strategies) none is. What is done with the losses is estimators.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from weightedit.delta import apply_delta
from weightedit.errors import ParamsError, WeightEditError
from weightedit.metatrain.draws import keys, seeds
from weightedit.metatrain.optimizee import Batch, Optimizee, Task, clipped
from weightedit.network.spec import Params
from weightedit.optim.rule import RuleState, UpdateRule, beside
from weightedit.optim.rule_module import RuleModule

Weights = dict[str, Tensor]
"""Weights of a learned rule by name; in a stack [N, ...], each network's own."""


@dataclass(frozen=True)
class InnerState:
    """Where N inner runs stand; every tensor has the leading axis N.

    Attributes:
        params: of the networks.
        rule: state of the update rule.
        task: what stays the same along a run.
        seed: [N] int64, names the batches together with `step`.
        step: [N] int64, steps done since the run began.
    """

    params: Params
    rule: RuleState
    task: Task
    seed: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.seed)

    def where(self, mask: Tensor, other: InnerState) -> InnerState:
        """This where `mask` [N] holds, `other` elsewhere: `fresh.where(ended, state)` restarts runs that ended."""

        def chosen(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

        return InnerState(*(tree_map(chosen, a, b) for a, b in zip(self._parts(), other._parts(), strict=True)))

    def map(self, function: Callable[[Tensor], Tensor]) -> InnerState:
        """`function` of every tensor; it keeps the axis N leading."""
        return InnerState(*(tree_map(function, part) for part in self._parts()))

    def detached(self) -> InnerState:
        """The same numbers without their history: where truncated backprop cuts."""
        return self.map(Tensor.detach)

    def paired(self) -> InnerState:
        """Every run twice, [2 N]: the second half repeats the first, seeds included."""
        return self.map(lambda tensor: torch.cat([tensor, tensor]))

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary for a checkpoint, names joined by "/"."""
        rule = {f"rule/{name}/{key}": value for name, own in self.rule.items() for key, value in own.items()}
        params = {f"params/{name}": value for name, value in self.params.items()}
        task = {f"task/{name}": value for name, value in self.task.items()}
        return {**params, **rule, **task, "seed": self.seed, "step": self.step}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InnerState:
        """What `to_tensors` made. Raises ParamsError on names that it does not write."""
        parts: dict[str, dict[str, Any]] = {"params": {}, "rule": {}, "task": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "rule":
                parameter, _, quantity = rest.rpartition("/")
                parts["rule"].setdefault(parameter, {})[quantity] = tensor
            elif kind in parts:
                parts[kind][rest] = tensor
            elif name not in ("seed", "step"):
                kind = ""
            if not kind:
                raise ParamsError(f"got a tensor {name!r} for an inner state; expected what to_tensors wrote.")
        missing = [name for name in ("seed", "step") if name not in tensors]
        if missing or not parts["params"]:
            raise ParamsError(f"got an inner state without {missing or 'parameters'}; expected what to_tensors wrote.")
        return cls(parts["params"], parts["rule"], parts["task"], tensors["seed"], tensors["step"])

    def _parts(self) -> tuple[Any, ...]:
        return self.params, self.rule, self.task, self.seed, self.step


def start(
    rule: UpdateRule, optimizee: Optimizee, generator: torch.Generator, count: int, *, held_out: bool = False
) -> InnerState:
    """`count` fresh runs, everything random drawn from `generator` and on its device; see Optimizee.init."""
    params, task = optimizee.init(generator, count, held_out=held_out)
    seed = seeds(generator, count)
    return InnerState(params, rule.init(optimizee.wiring, params), task, seed, torch.zeros_like(seed))


@dataclass(frozen=True, eq=False)
class Unroll:
    """Steps of `rule` on `optimizee`, kept as an object so that one compilation serves all calls.

    Args:
        rule: any update rule; a learned one is an nn.Module whose forward is its update.
        optimizee: the problem.
        fresh: losses are those after each step on a batch of its own (held-out data where the problem has it), at the
            average of a rule that averages its iterates, in place of those before each step on the batch that it steps
            on. One more forward per step.
        compile: torch.compile the pieces of a step; shapes are static, so every new number of networks compiles anew.
    """

    rule: UpdateRule
    optimizee: Optimizee
    fresh: bool = False
    compile: bool = False

    def __call__(
        self, state: InnerState, steps: int, weights: Weights | None = None, *, stacked: bool = True
    ) -> tuple[InnerState, Tensor]:
        """Run for `steps` steps.

        Args:
            state: where the runs stand.
            steps: at least 1.
            weights: of the rule: [N, ...] each network's own, or without that axis one for all (`stacked` False). None:
                the rule's own, as it stands.

        Returns:
            The state after, and the losses [steps, N], clipped to [0, cap] of the problem.

        Raises:
            WeightEditError: no steps, or weights for a rule that has none or of other names.
        """
        self._check(steps, weights)
        if weights is None and isinstance(self.rule, nn.Module):
            weights, stacked = dict(self.rule.named_parameters()), False
        params, rule_state, step, losses = state.params, state.rule, state.step, []
        for _ in range(steps):
            params, rule_state, loss = self._advance(weights, stacked, params, rule_state, state.task, state.seed, step)
            step = step + 1
            losses.append(loss)
        return InnerState(params, rule_state, state.task, state.seed, step), torch.stack(losses)

    def _check(self, steps: int, weights: Weights | None) -> None:
        if steps < 1:
            raise WeightEditError(f"got {steps} steps; expected at least one.")
        if weights is not None:
            own = dict(self.rule.named_parameters()) if isinstance(self.rule, nn.Module) else {}
            if set(own) != set(weights):
                raise WeightEditError(
                    f"got rule weights {sorted(weights)}; expected those of the rule, {sorted(own)}: give them by "
                    "name, or None for a rule that has none."
                )

    @cached_property
    def _graphs(self) -> dict[Any, Callable[..., Any]]:
        return {}

    def _piece(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled if that is asked for.

        A step is not compiled in one: the compiler would draw a batch anew for every number that reads of it, which
        makes it ten times slower. Each piece is traced to a graph of tensor operations first, so that a rule may be any
        Python, once for every set of shapes.
        """
        if not self.compile:
            return function

        def call(*args: Any) -> Any:
            leaves, _ = tree_flatten([_ordered(arg) for arg in args])
            shapes = tuple(
                (leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
                for leaf in leaves
            )
            key = (function.__name__, shapes, torch.is_grad_enabled())
            if key not in self._graphs:
                self._graphs[key] = _compile(function)
            return self._graphs[key](*args)

        return call

    def _advance(
        self,
        weights: Weights | None,
        stacked: bool,
        params: Params,
        rule_state: RuleState,
        task: Task,
        seed: Tensor,
        step: Tensor,
    ) -> tuple[Params, RuleState, Tensor]:
        batch = self._piece(self._batch)(task, seed, step)
        grads, losses = self._piece(self._gradients)(params, batch)
        params, rule_state = self._piece(self._moved)(weights, stacked, grads, rule_state, params, losses)
        if self.fresh:
            losses = self._piece(self._fresh_losses)(weights, params, rule_state, task, seed, step)
        return params, rule_state, clipped(losses, self.optimizee.cap)

    def _batch(self, task: Task, seed: Tensor, step: Tensor) -> Batch:
        return self.optimizee.batch(task, keys(seed, step))

    def _gradients(self, params: Params, batch: Batch) -> tuple[Params, Tensor]:
        def total(theta: Params) -> tuple[Tensor, Tensor]:
            losses = self.optimizee.loss(theta, batch)
            return losses.sum(), losses

        return torch.func.grad(total, has_aux=True)(params)

    def _fresh_losses(
        self, weights: Weights | None, params: Params, state: RuleState, task: Task, seed: Tensor, step: Tensor
    ) -> Tensor:
        batch = self.optimizee.batch(task, keys(seed, step, 1), held_out=True)
        return self.optimizee.loss(self._averages(weights, params, state), batch)

    def _averages(self, weights: Weights | None, params: Params, state: RuleState) -> Params:
        """Where the networks are evaluated: at the average of the iterates, if the rule has one (average.py)."""
        slack = self.rule.slack(weights) if isinstance(self.rule, RuleModule) else None
        if slack is None:
            return params
        rates = self.optimizee.wiring.rates
        return {
            name: tensor - beside(slack, ahead := state[name]["ahead"]) * ahead / rates.get(name, 1)
            for name, tensor in params.items()
        }

    def _moved(
        self,
        weights: Weights | None,
        stacked: bool,
        grads: Params,
        rule_state: RuleState,
        params: Params,
        losses: Tensor,
    ) -> tuple[Params, RuleState]:
        deltas, rule_state = self._deltas(weights, stacked, grads, rule_state, params, losses)
        return apply_delta(params, deltas), rule_state

    def _deltas(
        self,
        weights: Weights | None,
        stacked: bool,
        grads: Params,
        state: RuleState,
        params: Params,
        losses: Tensor,
    ) -> tuple[Params, RuleState]:
        rule, wiring = self.rule, self.optimizee.wiring
        if weights is None:
            return rule.update(wiring, grads, state, params, loss=losses)
        assert isinstance(rule, nn.Module)

        def own(weights: Weights, *inputs: Any) -> tuple[Params, RuleState]:
            return torch.func.functional_call(rule, weights, (wiring, *inputs[:-1]), {"loss": inputs[-1]})

        call = torch.func.vmap(own) if stacked else own
        return call(weights, grads, state, params, losses)


def unroll(
    rule: UpdateRule, optimizee: Optimizee, state: InnerState, steps: int, weights: Weights | None = None
) -> tuple[InnerState, Tensor]:
    """One call of `Unroll`, not compiled: state after, losses [steps, N]."""
    return Unroll(rule, optimizee)(state, steps, weights)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of trees of tensors, traced at its first call, for these shapes and these non-tensors alone."""
    compiled, returned = None, None

    def call(*args: Any) -> Any:
        nonlocal compiled, returned
        leaves, given = tree_flatten([_ordered(arg) for arg in args])
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if compiled is None:

            def flat(*tensors: Tensor) -> list[Tensor]:
                nonlocal returned
                rest = iter(tensors)
                inputs = tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], given)
                outputs, returned = tree_flatten(function(*inputs))
                return outputs

            distinct = [tensor.clone() for tensor in tensors]  # one tensor given twice would be one input of the graph
            compiled = torch.compile(make_fx(flat)(*distinct), fullgraph=True, dynamic=False)
        assert returned is not None
        return tree_unflatten(compiled(*tensors), returned)

    return call


def _ordered(tree: Any) -> Any:
    """Dictionaries sorted by name: a rule need not return its state in the order in which it got it."""
    return {name: _ordered(tree[name]) for name in sorted(tree)} if isinstance(tree, dict) else tree
