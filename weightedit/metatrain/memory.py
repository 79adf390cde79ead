"""What an outer step holds in memory: measured on a small one, of few particles and steps, and extended linearly.

Counted is every tensor that is alive at once: inner runs, batches, activations, what backpropagation keeps. Not counted
are the images and the rule, which are there once, and what a kernel needs for itself. Compiled steps hold less.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from weightedit.metatrain.estimators import Estimator, Horizons, TruncatedBackprop
from weightedit.metatrain.unroll import Unroll
from weightedit.optim.memory import Alive


def memory_of(estimator: Estimator, steps: int, generator: torch.Generator) -> tuple[int, int]:
    """Bytes of one estimator.

    Args:
        estimator: any; it is measured with one and two particles, over two and (of backpropagation) three steps.
        steps: of a call: the truncation, or the longest run.
        generator: for runs that are begun and thrown away.

    Returns:
        What its state holds between calls, and what a call holds at most, the state before it included, if all runs
        begin anew in it.
    """
    one, two = (_measured(estimator, particles, 2, generator) for particles in (1, 2))
    longer = (one, two)
    if isinstance(estimator, TruncatedBackprop):
        longer = tuple(_measured(estimator, particles, 3, generator) for particles in (1, 2))

    def extended(which: int) -> int:
        first, second = (
            a[which] + (steps - 2) * (b[which] - a[which]) for a, b in zip((one, two), longer, strict=True)
        )
        return first + (estimator.particles - 1) * (second - first)

    return extended(0), extended(1)


def _measured(estimator: Estimator, particles: int, steps: int, generator: torch.Generator) -> tuple[int, int]:
    """Of the second call: in the first, all runs come to their end."""
    plain = Unroll(estimator.unroll.rule, estimator.unroll.optimizee, estimator.unroll.fresh)
    truncation = None if estimator.truncation is None else steps
    small = replace(
        estimator, unroll=plain, horizons=Horizons(steps, steps), truncation=truncation, particles=particles
    )
    assert isinstance(plain.rule, nn.Module)
    weights = {name: tensor.detach() for name, tensor in plain.rule.named_parameters()}
    with Alive() as alive:
        state = small.init(generator)
        _, state, _ = small.gradient(weights, state)
        small.gradient(weights, state)
    return sum(tensor.nbytes for tensor in state.values()), alive.most
