"""How steady gradients are from step to step, and what a rule makes of it: how long it averages, how far it steps.

    k = mean(m^2) / (floor mean(v))        floor = (1 - b) / (1 + b) (1 + b^t) / (1 - b^t)

of a tensor, with m the averaged gradient of decay b and v the averaged squares of the same decay or of the rule's,
whichever is larger, corrected for their start at zero and in the units in which the rule keeps them. Gradients that are
uncorrelated from step to step leave the floor in their average: k is 1 where noise is all there is. It is above 1, up
to (1 + b) / (1 - b), while steps go down a slope that goes on, below where gradients alternate since steps cross a
valley. Of a network, log k is the mean over its tensors, smoothed over some twenty steps (ours; the sign of the product
of successive gradients is what Rprop goes by, Riedmiller and Braun 1993, its size what hypergradient descent goes by,
Baydin et al. 2018).

Noise wants a long average of the iterates. A slope that goes on and a valley that is crossed want a short one: a rule
learns by how much (metanet_rule.py). And a rule that begins with small steps opens as slopes show: networks with random
weights have them at once, networks that are trained already have none, and keep small steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.optim.gauge import inverse_root
from weightedit.optim.rule import warmth

CLOSED = 0.1
"""Of its size: a step before anything has shown."""
OPEN = 5.0
"""The sum of log k beyond MARGIN at which steps have all their size."""
MARGIN = 0.15
"""Of log k: what the bursts of rare large gradients make of noise."""
_SMOOTH = 0.95  # decay of the average of log k
_LEAST = math.log(0.02)  # of log k


class Coherence(NamedTuple):
    """What is known of networks [..] after a step.

    Attributes:
        log: the smoothed log k.
        slope: the sum of log k beyond MARGIN so far, from zero anew whenever it falls below.
        opened: the largest part of OPEN that the sum has been, in [0, 1].
    """

    log: Tensor
    slope: Tensor
    opened: Tensor

    @property
    def size(self) -> Tensor:
        """What steps are multiplied by: CLOSED at first, 1 once opened."""
        return CLOSED ** (1 - self.opened)


def log_coherence(norms: Tensor, counts: Tensor, means: tuple[Tensor, Tensor], steps: Tensor, decay: float) -> Tensor:
    """log k per tensor, [.., tensors], at least log 0.02; 0 at its first step and where there is no gradient.

    Args:
        norms: of the averaged gradients, not corrected.
        counts: of parameters, [tensors].
        means: of the averaged squares of the same decay, not corrected, and of a longer one, corrected.
        steps: that every tensor has done with this one.
        decay: of the average.
    """
    warm = warmth(decay, steps)
    mean = torch.maximum(means[0], warm * means[1])
    floor = (1 - decay) / (1 + decay) * (2 - warm)
    ratio = norms * inverse_root(counts * floor * mean)
    return torch.where((mean > 0) & (steps > 1), 2 * ratio.clamp(min=math.exp(_LEAST / 2)).log(), 0)


def of_network(log: Tensor, before: Coherence, steps: Tensor) -> Coherence:
    """What is known after a step, of one network or a stack of them.

    Args:
        log: log k of the step, [.., tensors].
        before: what every tensor's state says of the network, a Coherence; those that are new to it say nothing.
        steps: how many steps every tensor has done with this one.
    """
    known = (steps > 1).to(log)
    old = (before.log * known).sum(-1) / known.sum(-1).clamp(min=1)
    new, most = log.mean(-1), steps.amax(-1)
    smooth = old + (1 - _SMOOTH) / warmth(_SMOOTH, most) * (new - old)
    slope = (before.slope.amax(-1) + new - MARGIN).clamp(min=0)
    return Coherence(smooth, slope, torch.maximum(before.opened.amax(-1), (slope / OPEN).clamp(max=1)))


def shares(log: Tensor) -> Tensor:
    """How much of gradients is slope and how much alternates, [.., 2]: 1 - 1 / k and 1 - k where these are positive."""
    return -torch.expm1(torch.stack([-log.clamp(min=0), log.clamp(max=0)], -1))
