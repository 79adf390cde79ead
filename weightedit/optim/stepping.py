"""One step of an update rule on named parameters: dtypes, learning rate and decay, what is not finite, the options.

The functions are pure, and higher_bridge.py uses them too; only Step.take writes. How a torch optimizer finds
parameters and keeps state is optimizer.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import reduce
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, _foreach_add_, _foreach_copy_, _foreach_mul, _foreach_mul_, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

from weightedit.errors import WeightEditError
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.rule import RuleState, UpdateRule
from weightedit.optim.rule_module import RuleModule

_REFUSED = {
    "foreach": "a rule sees all parameters at once anyway: leave it out",
    "fused": "use compile=True",
    "capturable": "a group cannot choose; pass it to LearnedOptimizer, which does this for all",
    "maximize": "negate the loss",
    "differentiable": "use rule.update, which is a function, or weightedit.optim.higher_bridge",
    **dict.fromkeys(("momentum", "dampening", "nesterov", "betas", "eps", "amsgrad"), "it is the rule's: leave it out"),
}

ADAMW_LR = 1e-3
"""AdamW's lr that lr = 1 of a learned rule stands for: its weight decay takes as much away."""

_JOINED = 2**18  # numbers that are quick to copy


@dataclass(frozen=True)
class StepOptions:
    """How a LearnedOptimizer steps, beside its learning rate and decay.

    Attributes:
        outside: rule for parameters that are not in the wiring; None: AdamW, with `outside_lr` and the weight decay of
            the group.
        outside_lr: what such parameters begin with, in units of that rule's delta, unless a group that holds nothing
            else states an lr; None: 1e-3 for that AdamW, 1 for a rule that is given.
        nonfinite: a step with infinite or NaN numbers is never taken; "raise" a NonFiniteError, or "skip" it with a
            warning (counted in the attribute `skipped_steps`, which a state_dict does not hold).
        compile: torch.compile the rule's update.
        capturable: read nothing on the host in a step, so that it can be captured as a CUDA graph and a GPU never waits
            for it. Needs nonfinite="skip": a step that is not finite is refused on the device, without a warning, and
            counted. In a captured step, lr is what it was unless it is a tensor.
        average_loss: average the loss that the rule sees over the processes of torch.distributed, all of which must
            then know one, or none; else their parameters would drift apart.
    """

    outside: UpdateRule | None = None
    outside_lr: float | None = None
    nonfinite: Literal["raise", "skip"] = "raise"
    compile: bool = False
    capturable: bool = False
    average_loss: bool = True

    def __post_init__(self) -> None:
        if self.nonfinite not in ("raise", "skip"):
            raise WeightEditError(f"got nonfinite={self.nonfinite!r}; expected 'raise' or 'skip': pass one of these.")
        if self.capturable and self.nonfinite == "raise":
            raise WeightEditError(
                "got capturable=True with nonfinite='raise', for which the host reads every step; expected 'skip': "
                "pass it, and look at skipped_steps now and then."
            )


def proposed(
    rule: UpdateRule,
    wiring: Wiring,
    at: tuple[Params, RuleState, Params],
    *,
    loss: Tensor | None = None,
    update: Callable[..., tuple[Params, RuleState]] | None = None,
) -> tuple[Params, RuleState]:
    """A rule's delta and new state, in float32 at least, under autocast too; differentiable.

    A rule that is `whole` has all tensors in one dtype, the widest.

    Args:
        at: gradients, state and parameters by name. What has no state yet gets the rule's first one.
        update: the rule's own, compiled; None: as it is.
    """
    grads, state, params = at
    grads, params = ({n: wide(t) for n, t in tensors.items()} for tensors in (grads, params))
    if getattr(rule, "whole", False) and len({tensor.dtype for tensor in params.values()}) > 1:
        grads, state, params = _in_one_dtype(grads, state, params)
    fresh = {name: tensor for name, tensor in params.items() if name not in state}
    device = next(iter(params.values())).device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if cast else nullcontext():
        if fresh:
            state = {**state, **rule.init(wiring, fresh)}
        deltas, new = (update or rule.update)(wiring, grads, state, params, loss=loss)
    assert deltas.keys() == new.keys() == params.keys(), f"{rule_name(rule)} has deltas or states for other names"
    return deltas, new


def first_state(rule: UpdateRule, wiring: Wiring, params: Params) -> RuleState:
    """The rule's first state of these parameters, in the dtype that `proposed` steps in."""
    params = {name: wide(tensor) for name, tensor in params.items()}
    if getattr(rule, "whole", False):
        params = _in_one_dtype({}, {}, params)[2]
    return rule.init(wiring, params)


def _in_one_dtype(grads: Params, state: RuleState, params: Params) -> tuple[Params, RuleState, Params]:
    """For a rule that joins tensors: all in the widest dtype among the parameters, but the counts of steps."""
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in params.values()})
    grads, params = ({n: t.to(dtype) for n, t in tensors.items()} for tensors in (grads, params))
    kept = {n: {k: t if k == "step" else t.to(dtype) for k, t in one.items()} for n, one in state.items()}
    return grads, kept, params


def compiled(rule: UpdateRule) -> Callable[..., tuple[Params, RuleState]]:
    """A rule's update, compiled; a learned rule says how."""
    return rule.compiled() if isinstance(rule, RuleModule) else torch.compile(rule.update)


def decay_unit(rule: UpdateRule) -> float:
    """The lr of AdamW that lr = 1 of a rule stands for, in which weight decay is measured."""
    return float(getattr(rule, "learning_rate", ADAMW_LR))


def stepped(param: Tensor, delta: Tensor, group: Mapping[str, Any]) -> Tensor:
    """One step by the numbers of a parameter group, as optimizer.py states it; differentiable in them."""
    lr, kept = numbers_of(group)
    param = wide(param) if kept is None else wide(param) * kept
    return param + lr * delta if isinstance(lr, Tensor) else torch.add(param, delta, alpha=lr)


def steps_in_place(params: list[Tensor], deltas: list[Tensor], group: Mapping[str, Any]) -> None:
    """`stepped` for parameters in float32 or more, where they stand, in one call each for decay and step."""
    lr, kept = numbers_of(group)
    if kept is not None:
        _foreach_mul_(params, kept)
    if isinstance(lr, Tensor):
        _foreach_add_(params, _foreach_mul(deltas, lr))
    else:
        _foreach_add_(params, deltas, alpha=lr)


def rate_of(group: Mapping[str, Any]) -> Any:
    """What a delta is multiplied by."""
    lr, unit = group["lr"], group["unit"]
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    return lr if unit == 1 else lr * unit


def numbers_of(group: Mapping[str, Any]) -> tuple[Any, Any]:
    """The factor of the delta, and that of the parameter; None for 1."""
    rate, decay = rate_of(group), group["weight_decay"]
    return rate, 1 - rate * group["decay_unit"] * decay if isinstance(decay, Tensor) or decay != 0 else None


def wide(tensor: Tensor) -> Tensor:
    """`tensor`, in float32 if its dtype is a half-precision one."""
    return tensor.float() if is_half(tensor.dtype) else tensor


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype are too coarse to take small steps."""
    return dtype in (torch.float16, torch.bfloat16)


def size(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of some tensors; not finite where an entry is not, or is so large that its square is not."""
    of_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            of_kind.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    norms = [_norm(of) for of in of_kind.values()]
    return norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0]) for norm in norms]).norm()


def _norm(tensors: list[Tensor]) -> Tensor:
    """The norm of tensors of one kind: small ones joined first, since reading them one by one would take longer."""
    if tensors[0].device.type == "cpu" and sum(tensor.numel() for tensor in tensors) < _JOINED:
        return torch.cat([tensor.flatten() for tensor in tensors]).norm()
    return torch.stack(_foreach_norm(tensors)).norm()


def fault(updates: Params, state: RuleState, grads: Mapping[str, Tensor | None]) -> str | None:
    """What is not finite among updates and state, in words; first what has such a gradient, as the cause."""
    sound = {name: grad is None or bool(grad.isfinite().all()) for name, grad in grads.items()}
    for name in sorted(state, key=sound.__getitem__):
        quantities = {"update": updates[name], **state[name]}
        bad = [key for key, tensor in quantities.items() if not bool(tensor.isfinite().all())]
        if bad:
            cause = "finite" if sound[name] else "not finite either"
            step = f" at step {int(quantities['step'].max())}" if "step" in quantities else ""
            return (
                f"{', '.join(bad)} of {name}{step} came out infinite or NaN (its gradient is {cause}); expected finite "
                "numbers. The step was refused; parameters and state are as before it. Lower lr, clip gradients, or "
                "pass nonfinite='skip'."
            )
    return None


class One(NamedTuple):
    """One parameter that a step concerns: where it stands, and its gradient (None: the rule reads it, nothing more)."""

    param: Tensor
    group: dict[str, Any]
    grad: Tensor | None


class Step(NamedTuple):
    """What a rule would have its parameters and their state become; those in half precision, or all, stand in `new`.

    `size`: the norm of deltas and state, where it is known.
    """

    ones: dict[str, One]
    state: RuleState
    deltas: Params
    new: Params
    size: Tensor | None = None

    @torch.no_grad()
    def fault(self) -> str | None:
        """What is not finite, in words. Looks at the device once, and again only if something is wrong."""
        if not self.ones or bool(self.sound()):
            return None
        updates = {name: delta * rate_of(self.ones[name].group) for name, delta in self.deltas.items()}
        return fault({**updates, **self.new}, self.state, {name: one.grad for name, one in self.ones.items()})

    @torch.no_grad()
    def sound(self) -> Tensor:
        """Whether all of it is finite, a truth value on the device."""
        rates = {id(one.group): rate_of(one.group) for one in self.ones.values()}.values()
        rate = sum(lr.detach() if isinstance(lr, Tensor) else lr for lr in rates)
        made, known = [*self.new.values()], self.size
        if known is None:
            made += chain(self.deltas.values(), *(quantities.values() for quantities in self.state.values()))
        sizes = [one for one in (known, size(made) if made else None) if one is not None]
        return (sum(sizes[1:], sizes[0]) * (1 + rate)).isfinite()

    def take_if(self, sound: Tensor, states: dict[Tensor, Any]) -> None:
        """Write it, where the truth value on the device says so. All parameters have a state of these quantities."""
        for name, one in self.ones.items():
            for key, kept in states[one.param].items():
                kept.copy_(torch.where(sound, self.state[name][key], kept))
            new = self.new.get(name)
            new = stepped(one.param, self.deltas[name].view_as(one.param), one.group) if new is None else new
            one.param.copy_(torch.where(sound, new.view_as(one.param), one.param))

    def take(self, states: dict[Tensor, Any]) -> None:
        """Write it: into the state's own tensors where it has them, and they are none of what the rule gave."""
        before = {name: states.get(one.param, {}) for name, one in self.ones.items()}
        own = {t.untyped_storage().data_ptr() for kept in before.values() for t in kept.values()}
        here: list[Tensor] = []
        there: list[Tensor] = []
        for name, one in self.ones.items():
            kept, given = before[name], self.state[name]
            for key, tensor in given.items():
                old = kept.get(key)
                if tensor is old:
                    continue
                if tensor.untyped_storage().data_ptr() in own:  # an old one, by another name
                    tensor = tensor.clone()
                if old is None or not _alike(old, tensor):
                    kept[key] = tensor.clone()
                else:
                    here.append(old)
                    there.append(tensor)
            if kept.keys() != given.keys() or one.param not in states:
                states[one.param] = {key: kept[key] for key in given}
        if here:
            _foreach_copy_(here, there)
        for name, new in self.new.items():
            self.ones[name].param.copy_(new.view_as(self.ones[name].param))
        for names in self._groups():
            params = [self.ones[name].param for name in names]
            pairs = ((self.deltas[name], param) for name, param in zip(names, params, strict=True))
            deltas = [delta if delta.shape == param.shape else delta.view_as(param) for delta, param in pairs]
            steps_in_place(params, deltas, self.ones[names[0]].group)

    def _groups(self) -> Iterable[list[str]]:
        """Names of what is not in `new`, group by group."""
        found: dict[int, list[str]] = {}
        for name, one in self.ones.items():
            if name not in self.new:
                found.setdefault(id(one.group), []).append(name)
        return found.values()


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def read_options(given: dict[str, Any]) -> StepOptions:
    """StepOptions from keywords; WeightEditError for flags of torch optimizers, TypeError for unknown ones."""
    known = {field.name for field in fields(StepOptions)}
    check_numbers({key: value for key, value in given.items() if key != "capturable"})
    given = {key: value for key, value in given.items() if key not in _REFUSED or key == "capturable"}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise TypeError(
            f"got {', '.join(unknown)}; expected lr, weight_decay, net, wiring, inputs, {', '.join(sorted(known))}."
        )
    return StepOptions(**given)


def check_numbers(group: Mapping[str, Any]) -> None:
    """Refuse flags of torch optimizers by name, and numbers that cannot be meant."""
    for flag in _REFUSED.keys() & group.keys():
        if group[flag]:
            raise WeightEditError(f"got {flag}={group[flag]!r}; LearnedOptimizer does not take it: {_REFUSED[flag]}.")
    for key in ("lr", "weight_decay"):
        value = group.get(key, 0.0)
        if isinstance(value, Tensor):
            value = float(value.detach()) if value.numel() == 1 else math.nan
        shown = repr(value) if isinstance(value, str) else group.get(key)
        if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise WeightEditError(f"got {key}={shown}; expected one finite number >= 0: correct it.")


def found_rule(given: Any) -> UpdateRule:
    """The rule that is meant: itself, or a learned one by its folder or name. Raises TypeError for what is neither."""
    if isinstance(given, str | Path):
        return RuleModule.from_pretrained(given)
    if isinstance(given, type) or not all(callable(getattr(given, name, None)) for name in ("init", "update")):
        kind = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
        raise TypeError(
            f"got {kind} as the rule; expected an update rule, such as weightedit.Adam(1e-3), or the name of a learned "
            "one: pass one, and a rate by its keyword, lr=."
        )
    return given


def is_rate_of_another(rule: UpdateRule, lr: float) -> bool:
    """Whether `lr` can only be meant for another optimizer: for a learned rule, below a hundredth of its own step."""
    return isinstance(rule, RuleModule) and 0 < lr < 1e-2


def rule_name(rule: UpdateRule) -> str:
    """What messages call a rule."""
    return type(rule).__name__
