"""What defines a metanet_rule.py rule, as plain data that goes into its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightedit.errors import WeightEditError
from weightedit.files.schema import Count
from weightedit.network.layer import SYMMETRIES, Symmetry

WITHOUT_BOUNDS: Mapping[str, Any] = {"room": None, "warm": 0}
"""What configs that were saved before there were these fields mean."""


def check_bounds(config: Any, room: float | None, warm: int) -> None:
    """Raise WeightEditError for a room below 1 or a negative warm-up, of `config`."""
    if (room is not None and not room >= 1) or not isinstance(warm, int) or warm < 0:
        raise WeightEditError(
            f"got {config}; expected a room of at least 1 or None, and a whole number of warm steps: correct them."
        )


@dataclass(frozen=True)
class MetanetRuleConfig:
    """What defines a MetanetRule.

    Attributes:
        symmetry: "full" is what the optimizee's wiring says; "sign" and "permutation" are parts of it, "scale" too.
        hidden: width of every hidden layer.
        momenta: decays of the averaged gradients, ascending.
        second: decay of the averaged squares, also of Adafactor's rows and columns.
        mixing: exchange over neurons, layers and the network; without it the rule is a per-parameter one.
        leveling: matrices whose smaller side is at most this long are also seen with all singular values made alike,
            as Muon does, and move along that at the start; None for all matrices, 0 for none.
        averaging: the parameters follow an average of the iterates (Defazio et al. 2024, "The road less scheduled").
        memory: decay per step of the largest scale that a neuron has had, which is what counts as its scale; 0: what it
            has now counts.
        room: at most so many times its first scale counts as a neuron's, so that steps do not grow with the weights
            that they grow; None for no bound.
        warm: the first so many steps rise from 1 / warm of their size to all of it; 0 for no such rise.
        step_size: at the start, in units of the weights' own size.
        coherence: the rule looks at how steady gradients are from step to step (coherence.py), averages by that,
            levels less of the newest gradient where they alternate, and begins with three tenths of its steps until
            they have shown a slope.
        loss: the rule looks at the logarithm of the loss and of how it fell since the first step.

    Raises:
        WeightEditError: values outside these ranges.
    """

    symmetry: Symmetry = "full"
    hidden: int = 8
    momenta: tuple[float, ...] = (0.9, 0.99)
    second: float = 0.99
    mixing: bool = True
    leveling: Count | None = None
    averaging: bool = True
    memory: float = 0.999
    room: float | None = 4.0
    warm: int = 10
    step_size: float = 0.05
    coherence: bool = False
    loss: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "momenta", tuple(self.momenta))  # JSON gives a list back
        if self.symmetry not in SYMMETRIES or not isinstance(self.hidden, int) or self.hidden < 1:
            raise WeightEditError(
                f"got {self}; expected a symmetry among {', '.join(SYMMETRIES)} and a whole width of at least 1: "
                "correct them."
            )
        if self.leveling is not None and (not isinstance(self.leveling, int) or self.leveling < 0):
            raise WeightEditError(
                f"got {self}; expected leveling to be a whole number, the longest smaller side that is leveled, "
                "None for all or 0 for none: correct it."
            )
        check_bounds(self, self.room, self.warm)
        decays = all(0 < decay < 1 for decay in (*self.momenta, self.second)) and 0 <= self.memory < 1
        if not self.momenta or not decays or self.step_size <= 0:
            raise WeightEditError(
                f"got {self}; expected at least one momentum, decays inside (0, 1), a memory in [0, 1) and a positive "
                "step size: correct them."
            )

    @property
    def odd(self) -> int:
        """Odd features per parameter: gradient and momenta over sqrt(v^), two of them over Adafactor's, w^, level."""
        return 1 + len(self.momenta) + 2 + 1 + 1

    @property
    def even(self) -> int:
        """Even features per parameter (under "permutation" the odd ones too)."""
        return self.odd + len(self.momenta) + 1 + (self.odd if self.symmetry == "permutation" else 0)
