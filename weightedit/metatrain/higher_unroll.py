"""Inner runs of any modules, of different architectures in one outer batch, unrolled with `higher` and backpropagated.

For what unroll.py has no optimizee for: buffers (BatchNorm), parameters outside the neural graph, losses of any form.
One network after the other, eager; memory is that of one run. Stacks of one architecture are much faster there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightedit.errors import NonFiniteError, WeightEditError
from weightedit.metatrain.unroll import Weights
from weightedit.optim.higher_bridge import register_with_higher
from weightedit.optim.optimizer import LearnedOptimizer


@dataclass(frozen=True, eq=False)
class ModuleRun:
    """One inner run.

    Attributes:
        net: as it begins, in the mode (training or not) that it runs in; never changed, buffers included.
        batches: one per loss; a step is done between one and the next.
        loss: of a module with net's forward and a batch; a scalar, differentiable twice.
    """

    net: nn.Module
    batches: Iterable[Any]
    loss: Callable[[Any, Any], Tensor]


def unrolled(rule: nn.Module, run: ModuleRun) -> Tensor:
    """The losses of one run before each step, [batches], differentiable in the weights of `rule`.

    Calls register_with_higher, which is for the whole process. Parameters outside the neural graph move as
    LearnedOptimizer says.

    Args:
        rule: an UpdateRule with weights.
        run: see ModuleRun.

    Raises:
        WeightEditError: a rule without weights; fewer than two batches, whose loss no weight reaches.
        NonFiniteError: a step that is not finite, by parameter and step.
    """
    import higher

    if not isinstance(rule, nn.Module) or not dict(rule.named_parameters()):
        raise WeightEditError(
            f"got a {type(rule).__name__}; expected a rule with weights, an nn.Module: there is nothing to train in "
            "this one."
        )
    register_with_higher()
    optimizer, losses = LearnedOptimizer(run.net, cast(Any, rule)), []
    with torch.enable_grad(), higher.innerloop_ctx(run.net, optimizer) as (fast, inner):
        for batch in run.batches:
            if losses:
                inner.step(losses[-1])
            losses.append(run.loss(fast, batch))
    if len(losses) < 2:
        raise WeightEditError(
            f"got {len(losses)} batches for a run; expected at least two: the first loss is taken before any step."
        )
    return torch.stack(losses)


def meta_gradient(rule: nn.Module, runs: Sequence[ModuleRun]) -> tuple[Weights, Tensor]:
    """The gradient of the mean over runs of their mean losses, by name of the rule's weights; and that mean, ().

    Args:
        rule: as in `unrolled`.
        runs: of any architectures, at least one.

    Raises:
        WeightEditError: no runs, and what `unrolled` raises.
        NonFiniteError: a run whose steps, loss or gradient are not finite.
    """
    if not runs:
        raise WeightEditError("got no runs; expected at least one.")
    named = dict(rule.named_parameters())
    total, mean = {name: torch.zeros_like(weight) for name, weight in named.items()}, torch.zeros(())
    for i, run in enumerate(runs):
        try:
            loss = unrolled(rule, run).mean()
        except NonFiniteError as error:
            raise NonFiniteError(f"run {i}, of a {type(run.net).__name__}: {error}") from error
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        found = [torch.zeros_like(w) if g is None else g for w, g in zip(named.values(), grads, strict=True)]
        if not all(bool(tensor.isfinite().all()) for tensor in (loss, *found)):
            raise NonFiniteError(
                f"run {i}, of a {type(run.net).__name__}, has a loss or a gradient that is infinite or NaN; expected "
                "finite ones: give it fewer batches, or leave it out."
            )
        total = {name: total[name] + g / len(runs) for name, g in zip(named, found, strict=True)}
        mean = mean.to(loss) + loss.detach() / len(runs)
    return total, mean
