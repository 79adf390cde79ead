"""The average of the iterates that schedule-free rules keep: where it is, and that no learning rate moves it.

With the symbols of Defazio et al. 2024, "The road less scheduled": z takes the steps, x is the average of all z so far,
and the parameters are y = x + (1 - beta) (z - x), where gradients are taken. A rule gives the delta of y and keeps
"ahead", z - x, both in units of its own step and as if lr were constant. The lr and weight decay of groups come in here
(ours):

    z <- kept z + rate step      x <- (1 - c) kept x + c z      rate = unit lr, kept = 1 - rate decay_unit weight_decay
    c = (1 + r) / (T + r)        T = (sum of all lr so far) / lr

So z - x is kept in units of the parameters that the rule sees, and the rule is told kept (z - x) / rate; without this,
x would be another average as soon as lr changes. An iterate counts with the lr that led to it, times the power r of all
lr before: as the paper weighs a warm-up, but with lr and not its square. T is the number of the step where lr is
constant, which gives the rule's own c. At a rate of zero nothing moves. When parameters go to their average, and come
back, is optimizer.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.lists import products, totals
from weightedit.optim.rule import RuleState, UpdateRule, beside
from weightedit.optim.rule_module import RuleModule
from weightedit.optim.stepping import numbers_of, proposed, wide

POINT = "training point"
"""Where a parameter's state holds y, bit by bit, while the parameter is at x."""
_NONE = 1e-20  # a rate up to this is none: what is divided by it would overflow


def proposed_at_rates(
    rule: UpdateRule,
    wiring: Wiring,
    at: tuple[Params, RuleState, Params],
    groups: Mapping[str, Mapping[str, Any]],
    *,
    loss: Tensor | None = None,
    update: Callable[..., tuple[Params, RuleState]] | None = None,
) -> tuple[Params, RuleState]:
    """`proposed`, of a state in which "ahead" is in units of parameters; differentiable in the numbers of the groups.

    Args:
        groups: the parameter group of a name, for those that the delta is for; {} or none for the others.
    """
    grads, state, params = at
    told, together = dict(state), _by_group(groups)
    for group, names in together:
        rate, kept = numbers_of(group)
        known = [name for name in names if "ahead" in state.get(name, {})]
        _multiply(told, known, _quotient(1.0 if kept is None else kept, rate))
    deltas, new = proposed(rule, wiring, (grads, told, params), loss=loss, update=update)
    deltas, new = dict(deltas), dict(new)
    for group, names in together:
        if not (names := [name for name in names if "ahead" in new[name]]):
            continue
        if isinstance(rule, RuleModule) and (shares := _shares(rule, group, [new[name] for name in names])) is not None:
            rates = [wiring.rates.get(name, 1) for name in names]
            moved = [deltas[name] * omega for name, omega in zip(names, rates, strict=True)]
            ends = [told.get(name, {}).get("ahead") for name in names], [new[name]["ahead"] for name in names]
            for name, omega, delta, ahead in zip(names, rates, *_recounted(rule, moved, ends, shares), strict=True):
                deltas[name], new[name] = delta / omega, {**new[name], "ahead": ahead}
        rate, _ = numbers_of(group)
        _multiply(new, names, rate)
        for name in names:
            new[name] = _at_rate(new[name], state.get(name, {}), rate)
    return deltas, new


def _by_group(groups: Mapping[str, Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Every group once, and the names that are in it; without what is in none."""
    found: dict[int, tuple[Mapping[str, Any], list[str]]] = {}
    for name, group in groups.items():
        if group:
            found.setdefault(id(group), (group, []))[1].append(name)
    return list(found.values())


def travelled(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group keeps, with this step in it: how many there were, and their mean lr; tensors where lr is one."""
    steps, mean, lr = group["steps"], group["mean_lr"], group["lr"]
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    steps = steps + (torch.ones_like(lr) if isinstance(lr, Tensor) else 1)
    return {"steps": steps, "mean_lr": mean + (lr - mean) / steps}


def advance(group: dict[str, Any], sound: Tensor | None = None) -> None:
    """Count a step of a group that was taken; tensors in place, where the truth value on the device says so."""
    for key, value in travelled(group).items():
        if not isinstance(value, Tensor):
            group[key] = value
            continue
        old = group[key] = group[key] if isinstance(group[key], Tensor) else torch.full_like(value, group[key])
        old.copy_(value if sound is None else torch.where(sound.to(value.device), value, old))


def _shares(rule: RuleModule, group: Mapping[str, Any], kept: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
    """What c is, in units of the rule's, [parameters of the group, (N)]; None where it is the same."""
    steps, mean = travelled(group).values()
    lr = group["lr"]
    if isinstance(lr, Tensor):
        parts = steps * (mean / lr.reshape(()).clamp(min=_NONE))
    elif lr <= _NONE or (not isinstance(mean, Tensor) and mean == lr):
        return None
    else:
        parts = steps * (mean / lr)
    told = ("step", *(("coherence",) if "coherence" in kept[0] else ()))
    known = {key: torch.stack([one[key] for one in kept]) for key in told}
    recency = rule.recency(known)
    most = (known["step"].to(recency.dtype) + recency) / (1 + recency)  # c is 1 at most
    return torch.minimum(((steps + recency) / (parts + recency)).to(most), most)


def _recounted(
    rule: RuleModule,
    deltas: Sequence[Tensor],
    ahead: tuple[Sequence[Tensor | None], Sequence[Tensor]],
    shares: Tensor,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Deltas and z - x of a step whose newest z counts `shares` times as much in x; `ahead`: before and after it."""
    after = ahead[1]
    before = [torch.zeros_like(now) if was is None else was for was, now in zip(*ahead, strict=True)]
    slack = rule.slack()
    assert slack is not None
    factors = torch.stack([-torch.ones_like(slack), -slack, slack - 1]).to(after[0].device)
    numbers = {dtype: factors.to(dtype).unbind() for dtype in {x.dtype for x in after}}
    back, ours, others = zip(*(numbers[x.dtype] for x in after), strict=True)
    rest = [beside(share, x) for share, x in zip((1 - shares).unbind(), after, strict=True)]
    own = totals(deltas, products(totals(after, products(before, back)), ours))  # what x moves by
    less = products(own, rest)
    return totals(deltas, products(less, others)), totals(after, less)


def _quotient(kept: Any, rate: Any) -> Any:
    if isinstance(rate, Tensor):
        return torch.where(rate > _NONE, kept / rate.clamp(min=_NONE), 0)
    return kept / rate if rate > _NONE else 0.0


def _multiply(state: RuleState, names: Sequence[str], factor: Any) -> None:
    """Put into `state` entries of these names with another "ahead", `factor` times as large."""
    if isinstance(factor, Tensor) or factor != 1:
        state.update((name, {**state[name], "ahead": state[name]["ahead"] * factor}) for name in names)


def _at_rate(new: dict[str, Tensor], old: Mapping[str, Tensor], rate: Any) -> dict[str, Tensor]:
    """The new state, with "ahead" as it was before where the rate is zero."""
    if not isinstance(rate, Tensor) and rate > _NONE:
        return new
    before = old["ahead"].to(new["ahead"]) if "ahead" in old else torch.zeros_like(new["ahead"])
    return {**new, "ahead": torch.where(rate > _NONE, new["ahead"], before) if isinstance(rate, Tensor) else before}


def averages(rule: UpdateRule) -> bool:
    """Whether a rule has an average to evaluate at."""
    return isinstance(rule, RuleModule) and rule.slack() is not None


def beyond(rule: UpdateRule, wiring: Wiring, name: str, kept: Mapping[str, Tensor]) -> Tensor | None:
    """y - x of a parameter, as the network has it, from its state; None where nothing is averaged, or not yet."""
    if not isinstance(rule, RuleModule) or (slack := rule.slack()) is None or "ahead" not in kept:
        return None
    ahead = kept["ahead"]
    return wiring.by_name[name].restored(slack.to(ahead) * ahead / wiring.rates.get(name, 1))


def at_average(param: Tensor, beyond: Tensor) -> Tensor:
    """x from y, in float32 at least and then in the dtype of y."""
    return (wide(param) - beyond.view_as(param)).to(param.dtype)


def at_training(param: Tensor, beyond: Tensor, point: Tensor | None) -> Tensor:
    """y from x: `point`, y as it was, at entries that are as it left them; else x + (y - x)."""
    moved = (wide(param) + beyond.view_as(param)).to(param.dtype)
    return moved if point is None else torch.where(param == at_average(point, beyond), point, moved)
