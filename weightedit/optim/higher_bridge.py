"""Update rules, and torch's own optimizers done right, inside `higher.innerloop_ctx`.

After `register_with_higher()`, code written for higher unrolls a LearnedOptimizer with meta-gradients into its rule's
weights, and torch.optim.SGD, Adam, AdamW and RMSprop take the steps that torch takes (higher's Adam corrects its
epsilon differently and it has no AdamW; found with higher 0.2.1). What higher would ignore or copy in silence is
refused by name. Square roots have derivative 0 at 0, so that a parameter which no gradient reached gives no NaN.
Formulas: torch.optim's documentation.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightedit.errors import WeightEditError
from weightedit.optim.average import proposed_at_rates, travelled
from weightedit.optim.gauge import root
from weightedit.optim.naming import with_axis
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.stepping import One, Step, rule_name, stepped


def register_with_higher() -> None:
    """Make `higher` treat LearnedOptimizer, and SGD, Adam, AdamW and RMSprop of torch.optim, as said above.

    For the whole process; higher's own versions of these four are replaced. Again is no harm.
    """
    import higher

    base = higher.optim.DifferentiableOptimizer
    for optimizer, formula in _FORMULAS.items():
        attributes = {"formula": staticmethod(formula)}
        higher.register_optim(optimizer, type(f"Differentiable{optimizer.__name__}", (_Formula, base), attributes))
    learned: Any = LearnedOptimizer
    higher.register_optim(learned, type("DifferentiableLearnedOptimizer", (_Learned, base), {}))


class _Bridged:
    """What all of ours add to higher's DifferentiableOptimizer: refusals, and no graph when none is wanted."""

    param_groups: list[dict[str, Any]]
    state: list[dict[int, dict[str, Any]]]
    _track_higher_grads: bool

    def __init__(self, other: torch.optim.Optimizer, *arguments: Any, **options: Any) -> None:
        for group in other.param_groups:
            _refuse(other, group)
        super().__init__(other, *arguments, **options)  # type: ignore[call-arg]

    def _apply_override(self, override: dict[str, list[Any]]) -> None:
        unknown = sorted(override.keys() - self.param_groups[0].keys())
        if unknown:
            known = sorted(self.param_groups[0].keys() - {"params"})
            raise WeightEditError(
                f"got override of {', '.join(unknown)}, which would do nothing; expected {', '.join(known)}: correct "
                "the name."
            )
        super()._apply_override(override)  # type: ignore[misc]

    def _update(self, grouped_grads: list[list[Tensor | None]], **_: Any) -> None:
        with torch.set_grad_enabled(self._track_higher_grads and torch.is_grad_enabled()):
            self.move(grouped_grads)

    def move(self, grouped_grads: list[list[Tensor | None]]) -> None:
        """Replace the parameters in the groups, and their states."""
        raise NotImplementedError


class _Formula(_Bridged):
    """An optimizer of torch, by what it does to one parameter."""

    formula: Any

    def move(self, grouped_grads: list[list[Tensor | None]]) -> None:
        for group, grads, states in zip(self.param_groups, grouped_grads, self.state, strict=True):
            for i, grad in enumerate(grads):
                if grad is not None:
                    group["params"][i], states[i] = self.formula(group, group["params"][i], grad, states[i])


class _Learned(_Bridged):
    """A LearnedOptimizer. Its rules stay attributes: what stands in groups is copied, and a copy gets no gradient."""

    def __init__(self, other: LearnedOptimizer, *arguments: Any, **options: Any) -> None:
        other.settle()
        other.refuse_at_average()
        self._sides = {False: (other.rule, other.wiring), True: other.outside}
        self._seen = {name: tensor.detach() for name, tensor in other.seen.items()}
        self._told = other.refuse
        self._loss: Tensor | None = None
        super().__init__(other, *arguments, **options)

    def step(self, loss: Tensor, *arguments: Any, **options: Any) -> Any:
        """As higher's; the rule sees the loss.

        A step that is not finite is refused as the LearnedOptimizer refuses it, with a NonFiniteError or, under
        nonfinite="skip", a warning; parameters and state are as before it.
        """
        self._loss = loss
        try:
            return super().step(loss, *arguments, **options)  # type: ignore[misc]
        finally:
            self._loss = None

    def move(self, grouped_grads: list[list[Tensor | None]]) -> None:
        steps = [self._step(outside, grouped_grads) for outside in self._sides]
        for message in filter(None, (step.fault() for _, step in steps)):
            self._told(message)
            return
        for places, step in steps:
            for name, (g, i) in places.items():
                self.param_groups[g]["params"][i] = step.new[name]
                self.state[g][i] = step.state[name]
            for g in {g for g, _ in places.values()}:
                self.param_groups[g].update(travelled(self.param_groups[g]))

    def _step(self, outside: bool, grouped_grads: list[list[Tensor | None]]) -> tuple[dict[str, tuple[int, int]], Step]:
        """What becomes of the parameters on one side, as `new`, and the places in the groups where they stand."""
        rule, wiring = self._sides[outside]
        whole = getattr(rule, "whole", False) and not outside
        places, grads, params, state = {}, {}, {}, {}
        for g, group in enumerate(self.param_groups):
            for i, name in enumerate(group["param_names"]):
                grad = grouped_grads[g][i]
                if bool(group["outside"]) != outside or (grad is None and not whole):
                    continue
                wire = wiring.by_name[name]
                params[name] = wire.arranged(with_axis(group["params"][i]))
                grads[name] = torch.zeros_like(params[name]) if grad is None else wire.arranged(with_axis(grad))
                if grad is not None:
                    places[name] = g, i
                if self.state[g].get(i):
                    state[name] = self.state[g][i]
        if not places:
            return {}, Step({}, {}, {}, {})
        for name, tensor in self._seen.items() if whole else ():
            params[name] = wiring.by_name[name].arranged(tensor)
            grads[name] = torch.zeros_like(params[name])
        groups = {name: self.param_groups[g] for name, (g, _) in places.items()}
        deltas, after = proposed_at_rates(rule, wiring, (grads, state, params), groups, loss=self._loss)
        ones, new = {}, {}
        for name, (g, i) in places.items():
            group, old = self.param_groups[g], self.param_groups[g]["params"][i]
            ones[name] = One(old, group, grads[name])
            deltas[name] = wiring.by_name[name].restored(deltas[name])
            new[name] = stepped(with_axis(old), deltas[name], group).to(old.dtype).view_as(old)
        return places, Step(ones, {name: after[name] for name in places}, {name: deltas[name] for name in places}, new)


def _refuse(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Raise WeightEditError for what higher would ignore, or lose by copying the group."""
    name = type(optimizer).__name__
    if group.get("maximize"):
        raise WeightEditError(f"got {name} with maximize=True; expected False in an inner loop: negate the loss.")
    if group.get("decoupled_weight_decay") and type(optimizer) is torch.optim.Adam:
        raise WeightEditError(f"got {name} with decoupled_weight_decay=True; expected False: use torch.optim.AdamW.")
    for key, value in group.items():
        if key == "params":
            continue
        if isinstance(value, nn.Module):
            raise WeightEditError(
                f"got {name} with {rule_name(value)} as {key} in a parameter group, where it would be copied and get "  # type: ignore[arg-type]
                "no gradient; expected networks as attributes of the optimizer: keep it there."
            )
        if isinstance(value, Tensor) and value.requires_grad:
            raise WeightEditError(
                f"got {name} with a {key} that requires a gradient in a parameter group, where it would be copied and "
                f"get none; expected it in innerloop_ctx: pass override={{{key!r}: [{key}]}}."
            )


_Group: TypeAlias = dict[str, Any]
_State: TypeAlias = dict[str, Any]


def _sgd(group: _Group, p: Tensor, grad: Tensor, state: _State) -> tuple[Tensor, _State]:
    momentum = group["momentum"]
    grad = _decayed(group, p, grad)
    if _given(momentum):
        before = state.get("momentum_buffer")
        buffer = grad if before is None else momentum * before + (1 - group["dampening"]) * grad
        state = {"momentum_buffer": buffer}
        grad = grad + momentum * buffer if group["nesterov"] else buffer
    return p - group["lr"] * grad, state


def _adam(group: _Group, p: Tensor, grad: Tensor, state: _State) -> tuple[Tensor, _State]:
    return _adams(group, p, _decayed(group, p, grad), state)


def _adamw(group: _Group, p: Tensor, grad: Tensor, state: _State) -> tuple[Tensor, _State]:
    return _adams(group, p - group["lr"] * group["weight_decay"] * p, grad, state)


def _adams(group: _Group, p: Tensor, grad: Tensor, state: _State) -> tuple[Tensor, _State]:
    beta1, beta2 = group["betas"]
    step = float(state.get("step", 0)) + 1
    first = beta1 * state.get("exp_avg", 0) + (1 - beta1) * grad
    second = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * grad * grad
    new = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    if group["amsgrad"]:
        second = torch.maximum(state["max_exp_avg_sq"], second) if "max_exp_avg_sq" in state else second
        new["max_exp_avg_sq"] = second
    size = root(second) / (1 - beta2**step) ** 0.5 + group["eps"]
    return p - group["lr"] / (1 - beta1**step) * first / size, new


def _rmsprop(group: _Group, p: Tensor, grad: Tensor, state: _State) -> tuple[Tensor, _State]:
    alpha, momentum = group["alpha"], group["momentum"]
    grad = _decayed(group, p, grad)
    square = alpha * state.get("square_avg", 0) + (1 - alpha) * grad * grad
    new = {"step": float(state.get("step", 0)) + 1, "square_avg": square}
    if group["centered"]:
        new["grad_avg"] = alpha * state.get("grad_avg", 0) + (1 - alpha) * grad
        square = square - new["grad_avg"] * new["grad_avg"]
    move = grad / (root(square) + group["eps"])
    if _given(momentum):
        move = new["momentum_buffer"] = momentum * state.get("momentum_buffer", 0) + move
    return p - group["lr"] * move, new


_FORMULAS = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.RMSprop: _rmsprop,
}


def _decayed(group: _Group, p: Tensor, grad: Tensor) -> Tensor:
    return grad + group["weight_decay"] * p if _given(group["weight_decay"]) else grad


def _given(number: Tensor | float) -> bool:
    return isinstance(number, Tensor) or number != 0
