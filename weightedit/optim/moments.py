"""Averages of gradients, kept raw, and as the typed channels that a metanetwork takes beside the parameters.

A gradient and its momenta are of type (-1, odd); a momentum over the root of the mean square, Adam's direction, is
(0, odd); clock and loss are invariants, (0, even), the same number at every parameter and positive, since metanetworks
divide quantities by their size and keep its logarithm. What is made of them is learned_rule.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.network.features import DIRECTION, GRADIENT, INVARIANT, ChannelType
from weightedit.network.spec import Params
from weightedit.network.wiring import Wire
from weightedit.optim.gauge import inverse_root
from weightedit.optim.rule import beside, warmth

Kept = Mapping[str, Tensor]
"""What is kept of one parameter: name of a quantity -> tensor."""


@dataclass(frozen=True)
class Moments:
    """Which averages are kept, and what a metanetwork sees besides.

    Attributes:
        momenta: decays of the averaged gradients, ascending; the one nearest to 0.9 is Adam's.
        second: decay of the averaged squares.
        clock: a channel t / (t + time) after t steps, for each of these times in steps.
        loss: a channel that holds the loss; zero where it is not known.

    Raises:
        WeightEditError: no momentum, decays outside (0, 1), times that are not positive.
    """

    momenta: tuple[float, ...] = (0.9, 0.99)
    second: float = 0.99
    clock: tuple[float, ...] = ()
    loss: bool = False

    def __post_init__(self) -> None:
        decays = all(0 < decay < 1 for decay in (*self.momenta, self.second))
        if not self.momenta or not decays or not all(time > 0 for time in self.clock):
            raise WeightEditError(
                f"got {self}; expected at least one momentum, decays inside (0, 1) and positive times: correct them."
            )

    @property
    def types(self) -> tuple[ChannelType, ...]:
        """Of what `channels` gives: gradient, momenta, direction, clock, loss."""
        return (
            *(GRADIENT,) * (1 + len(self.momenta)),
            DIRECTION,
            *(INVARIANT,) * (len(self.clock) + self.loss),
        )

    def quantities(self, wire: Wire) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what is kept of a tensor of one network, besides the step."""
        return dict.fromkeys((*self._names, "second"), wire.shape)

    @property
    def _names(self) -> list[str]:
        return [f"momentum {place}" for place in range(len(self.momenta))]

    def update(self, gradient: Tensor, kept: Kept) -> dict[str, Tensor]:
        """What is kept after one more gradient, the step counted."""
        pairs = zip(self._names, self.momenta, strict=True)
        averages = {name: kept[name].lerp(gradient, 1 - decay) for name, decay in pairs}
        second = kept["second"].lerp(gradient.square(), 1 - self.second)
        return {"step": kept["step"] + 1, **averages, "second": second}

    def direction(self, kept: Kept) -> Tensor:
        """Adam's, without an epsilon: zero where all squares were zero."""
        steps = beside(kept["step"], kept["second"])
        gaps = [abs(decay - 0.9) for decay in self.momenta]
        place = gaps.index(min(gaps))
        calm = warmth(self.second, steps).sqrt() / warmth(self.momenta[place], steps)
        return calm * kept[self._names[place]] * inverse_root(kept["second"])

    def mean_square(self, kept: Kept) -> Tensor:
        """The averaged square, corrected for its start at zero."""
        return kept["second"] / warmth(self.second, beside(kept["step"], kept["second"]))

    def channels(
        self, grads: Params, kept: Mapping[str, Kept], directions: Params, loss: Tensor | None
    ) -> list[tuple[ChannelType, Params]]:
        """Every quantity as named tensors, in the order of `types`; `loss`, one number per network, or None."""
        found: list[Params] = [grads]
        for key, decay in zip(self._names, self.momenta, strict=True):
            found.append({name: own[key] / _warmth(decay, own) for name, own in kept.items()})
        found.append(directions)
        for time in self.clock:
            clocks = {name: own["step"] / (own["step"] + time) for name, own in kept.items()}
            found.append(_spread(clocks, grads))
        if self.loss:
            known = {name: torch.zeros_like(own["step"]) if loss is None else loss for name, own in kept.items()}
            found.append(_spread(known, grads))
        return list(zip(self.types, found, strict=True))


def _warmth(decay: float, kept: Kept) -> Tensor:
    return warmth(decay, beside(kept["step"], kept["second"]))


def _spread(numbers: Mapping[str, Tensor], like: Params) -> Params:
    """Numbers, one per network, at every parameter."""
    return {name: beside(number, like[name]).expand_as(like[name]) for name, number in numbers.items()}
