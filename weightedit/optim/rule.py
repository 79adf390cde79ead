"""What an update rule is: two pure functions, as in optax.

Here: the protocol, and what every rule needs to keep it. Rules designed by hand are hand_designed.py's, learned ones
mlp_rule.py's, metanet_rule.py's and learned_rule.py's; optimizer.py makes a torch.optim.Optimizer of any of them. A
rule knows nothing of the loss that its gradients come from, so the same one refines an INR and trains a classifier.

The state is a dictionary of tensors per parameter, because that is the one form which every checkpoint format of the
PyTorch world keeps. What belongs to all parameters (the number of steps done) stands with each of them.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring

RuleState = dict[str, dict[str, Tensor]]
"""Parameter name -> name of a quantity -> tensor. "step" counts the steps done, a float32 of shape () or (N,)."""


class UpdateRule(Protocol):
    """Gradients, a state and theta in; a delta and a state out. Nothing is changed in place; differentiable.

    Parameters are those of one network or of a stack of N (one leading axis on every tensor, of the state too); a rule
    treats the networks of a stack independently, and works inside torch.func.vmap.
    """

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """The state before the first step.

        Args:
            wiring: of the network; `params` may be a part of its parameters.
            params: one network or N stacked ones.
        """
        ...

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """One step.

        Args:
            wiring: as in `init`.
            grads: of the loss, with the names and shapes of `params`.
            state: from `init` or from the step before.
            params: where the gradients were taken.
            loss: its value there, one number per network, for rules that use it; None where it is not known.

        Returns:
            The delta to add to the parameters (its sign is that of descent), and the new state.
        """
        ...


def started(wiring: Wiring, params: Params, *quantities: str) -> RuleState:
    """A state of no steps done, with zeros shaped as the parameters for every one of `quantities`."""
    lead = wiring.lead(params)
    return {
        name: {
            "step": torch.zeros(lead, dtype=torch.float32, device=tensor.device),
            **{quantity: torch.zeros_like(tensor) for quantity in quantities},
        }
        for name, tensor in params.items()
    }


def beside(number: Tensor, like: Tensor) -> Tensor:
    """One number per network, of shape () or (N,), as a tensor that broadcasts with `like` and has its dtype."""
    return number.to(like.dtype).view(*number.shape, *[1] * (like.dim() - number.dim()))


def warmth(decay: float, steps: Tensor) -> Tensor:
    """1 - decay^steps: what a moving average that began at zero must be divided by; exact where that is tiny."""
    return -torch.expm1(steps * math.log(decay)) if decay > 0 else torch.ones_like(steps)
