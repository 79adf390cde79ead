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
learns by how much (metanet_rule.py), and how much less of the newest gradient it follows in a valley, where most of it
points across. And a rule that begins with small steps opens as slopes show: most networks with random weights have them
at once, networks that are trained already have few, and keep small steps for long. It is no proof: a small vision
transformer with random weights shows no slope at CLOSED steps and learns at these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.optim.gauge import inverse_root
from weightedit.optim.rule import warmth

CLOSED = 0.3
"""Of its size: a step before anything has shown."""
OPEN = 5.0
"""The sum of log k, a mean over parameters, beyond MARGIN at which steps have all their size."""
MARGIN = 0.15
"""Of log k: what the bursts of rare large gradients make of noise."""
_SMOOTH = 0.95  # decay of the average of log k
_LEAST = 0.02**0.5  # of the root of k


class Coherence(NamedTuple):
    """What is known of a network after a step, [..], or what its tensors say, [.., tensors]; `kept` is how it is kept.

    Attributes:
        log: the smoothed log k.
        slope: the sum of log k beyond MARGIN so far, from zero anew whenever it falls below.
        opened: the largest part of OPEN that the sum has been, in [0, 1].
        lately: per tensor, the averaged squares of the decay of m, not corrected.
    """

    log: Tensor
    slope: Tensor
    opened: Tensor
    lately: Tensor

    @classmethod
    def of(cls, kept: Sequence[Tensor]) -> Coherence:
        """From the states of tensors, [.., 4] each."""
        return cls(*torch.stack(list(kept), -2).unbind(-1))

    def kept(self) -> Sequence[Tensor]:
        """For the states of tensors, [.., 4] each."""
        of_network = torch.stack(self[:3], -1).unsqueeze(-2).expand(*self.lately.shape, 3)
        return torch.cat([of_network, self.lately.unsqueeze(-1)], -1).unbind(-2)

    @property
    def size(self) -> Tensor:
        """What steps are multiplied by: CLOSED at first, 1 once opened."""
        return CLOSED ** (1 - self.opened)


KEPT = len(Coherence._fields)
"""Numbers in the state of a tensor."""


def log_coherence(norms: Tensor, noise: Tensor, means: tuple[Tensor, Tensor], correction: Tensor) -> Tensor:
    """log k per tensor, [.., tensors], at least log 0.02.

    Args:
        norms: of the averaged gradients, not corrected.
        noise: parameters times (1 - b) / (1 + b), [tensors].
        means: of the averaged squares of the same decay, not corrected, and of a longer one, corrected.
        correction: 1 / (1 - b^t).
    """
    mean = torch.maximum(means[0] * correction, means[1])
    ratio = norms * correction * inverse_root(noise * (2 * correction - 1) * mean)
    return 2 * ratio.masked_fill(mean <= 0, 1).clamp(min=_LEAST).log()


def of_network(log: Tensor, before: Coherence, lately: Tensor, steps: Tensor, counts: Tensor) -> Coherence:
    """What is known after a step, of one network or a stack of them.

    Args:
        log: log k of the step, [.., tensors]; of a tensor's first step it says nothing, and is not looked at.
        before: what every tensor's state says; those that are new to the network say nothing.
        lately: as in Coherence, with this step.
        steps: how many steps every tensor has done with this one.
        counts: of parameters, or what is proportional to them, [tensors].
    """
    known = (steps > 1).to(log)
    count = known.sum(-1).clamp(min=1)
    old, new = (torch.stack([before.log, log], -2) * known.unsqueeze(-2)).sum(-1).unbind(-1)
    old, new, most = old / count, new / count, steps.amax(-1)
    smooth = old + (1 - _SMOOTH) / warmth(_SMOOTH, most) * (new - old)
    sizes = known * counts
    new = (log * sizes).sum(-1) / sizes.sum(-1).clamp(min=counts.amin())
    slope = (before.slope.amax(-1) + new - MARGIN).clamp(min=0)
    return Coherence(smooth, slope, torch.maximum(before.opened.amax(-1), (slope / OPEN).clamp(max=1)), lately)


def alternates(log: Tensor) -> Tensor:
    """How much of gradients alternates, less than nothing: k - 1 where k is below 1."""
    return log.clamp(max=0).expm1()


def shares(log: Tensor) -> Tensor:
    """How much of gradients is slope and how much alternates, [.., 2]: 1 - 1 / k and 1 - k where these are positive."""
    return -torch.expm1(torch.stack([-log, log], -1).clamp(max=0))
