"""One step of an update rule on named parameters: dtypes, learning rate and decay, what is not finite, the options.

Pure functions that optimizer.py and higher_bridge.py share. How a torch optimizer keeps parameters and state is not
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.optim.rule import RuleState, UpdateRule
from weightedit.spec import Params
from weightedit.wiring import Wiring

_REFUSED = {
    "foreach": "a rule sees all parameters at once anyway: leave it out",
    "fused": "use compile=True",
    "capturable": "a step is checked on the host before it is taken: train without graph capture",
    "maximize": "negate the loss",
    "differentiable": "use rule.update, which is a function, or weightedit.optim.higher_bridge",
}


@dataclass(frozen=True)
class StepOptions:
    """How a LearnedOptimizer steps, beside its learning rate and decay.

    Attributes:
        outside: rule for parameters that are not in the wiring; None: AdamW, with `outside_lr` and the weight decay of
            the group.
        outside_lr: `lr` of groups of such parameters where they state none, in units of the rule's delta; None: 1e-3
            for that AdamW, 1 for a rule that is given.
        nonfinite: a step with infinite or NaN numbers is never taken; "raise" a NonFiniteError, or "skip" it with a
            warning (counted in the attribute `skipped_steps`, which a state_dict does not hold).
        compile: torch.compile the rule's update.
        average_loss: average the loss that the rule sees over the processes of torch.distributed, all of which must
            then know one, or none; else their parameters would drift apart.
    """

    outside: UpdateRule | None = None
    outside_lr: float | None = None
    nonfinite: Literal["raise", "skip"] = "raise"
    compile: bool = False
    average_loss: bool = True

    def __post_init__(self) -> None:
        if self.nonfinite not in ("raise", "skip"):
            raise WeightEditError(f"nonfinite={self.nonfinite!r} came; expected 'raise' or 'skip': pass one of these.")


def proposed(
    rule: UpdateRule,
    wiring: Wiring,
    at: tuple[Params, RuleState, Params],
    *,
    loss: Tensor | None = None,
    update: Callable[..., tuple[Params, RuleState]] | None = None,
) -> tuple[Params, RuleState]:
    """A rule's delta and new state, in float32 at least; differentiable.

    Args:
        at: gradients, state and parameters by name. What has no state yet gets the rule's first one.
        update: the rule's own, compiled; None: as it is.
    """
    grads, state, params = at
    grads, params = ({n: wide(t) for n, t in tensors.items()} for tensors in (grads, params))
    fresh = {name: tensor for name, tensor in params.items() if name not in state}
    if fresh:
        state = {**state, **rule.init(wiring, fresh)}
    deltas, new = (update or rule.update)(wiring, grads, state, params, loss=loss)
    assert deltas.keys() == new.keys() == params.keys(), f"{rule_name(rule)} has deltas or states for other names"
    return deltas, new


def stepped(param: Tensor, delta: Tensor, group: Mapping[str, Any]) -> Tensor:
    """(1 - lr weight_decay) param + lr delta, with the numbers of a parameter group; differentiable in them."""
    lr, decay = group["lr"], group["weight_decay"]
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    param = wide(param)
    kept = param if isinstance(decay, float | int) and decay == 0 else param - lr * decay * param
    return torch.add(kept, delta, alpha=lr) if isinstance(lr, float | int) else kept + lr * delta


def wide(tensor: Tensor) -> Tensor:
    """`tensor`, in float32 if its dtype is a half-precision one."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def all_finite(new: Params, state: RuleState) -> bool:
    """Whether new parameters and a new state are finite throughout; one look at the device for all of them."""
    tensors = chain(new.values(), *(quantities.values() for quantities in state.values()))
    norms = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return not norms or bool(torch.nn.utils.get_total_norm(norms, math.inf).isfinite())


def fault(new: Params, state: RuleState, grads: Mapping[str, Tensor | None]) -> str:
    """What is not finite among new parameters and state, in words; first what has such a gradient, as the cause."""
    sound = {name: grad is None or bool(grad.isfinite().all()) for name, grad in grads.items()}
    for name in sorted(state, key=sound.__getitem__):
        quantities = state[name]
        everything = {**quantities, **({"update": new[name]} if name in new else {})}
        bad = [key for key, tensor in everything.items() if not bool(tensor.isfinite().all())]
        if bad:
            cause = "finite" if sound[name] else "not finite either"
            step = f" at step {int(quantities['step'].max())}" if "step" in quantities else ""
            return (
                f"{', '.join(reversed(bad))} of {name}{step} came out infinite or NaN (its gradient is {cause}); "
                "expected finite numbers. The step was refused; parameters and state are as before it. Lower lr, clip "
                "gradients, or pass nonfinite='skip'."
            )
    raise AssertionError("fault() was asked about a step that is finite")


def read_options(given: dict[str, Any]) -> StepOptions:
    """StepOptions from keywords; WeightEditError for flags of torch optimizers, TypeError for unknown ones."""
    known = {field.name for field in fields(StepOptions)}
    check_numbers(given)
    given = {key: value for key, value in given.items() if key not in _REFUSED}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)} came; expected lr, weight_decay, net, wiring, {', '.join(sorted(known))}."
        )
    return StepOptions(**given)


def check_numbers(group: Mapping[str, Any]) -> None:
    """Refuse flags of torch optimizers by name, and numbers that cannot be meant."""
    for flag in _REFUSED.keys() & group.keys():
        if group[flag]:
            raise WeightEditError(f"{flag}={group[flag]!r} came; LearnedOptimizer does not take it: {_REFUSED[flag]}.")
    for key in ("lr", "weight_decay"):
        value = group.get(key, 0.0)
        single = value.numel() == 1 if isinstance(value, Tensor) else math.isfinite(value) and value >= 0
        if not single:
            raise WeightEditError(f"{key}={value} came; expected one finite number >= 0: correct it.")


def rule_name(rule: UpdateRule) -> str:
    """What messages call a rule."""
    return type(rule).__name__
