"""What an update rule is: two pure functions, as in optax.

Here: the protocol, and nothing else. Rules designed by hand are hand_designed.py's. A rule knows nothing of the loss
that its gradients come from, so the same one refines an INR and trains a classifier.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from weightedit.spec import NetworkSpec, Params


class UpdateRule(Protocol):
    """theta, gradients and a state in; theta and a state out. Nothing is changed in place; differentiable.

    Parameters are those of one network or of a stack of N (one leading axis on every tensor); a rule treats the
    networks of a stack independently.
    """

    def init(self, spec: NetworkSpec, params: Params) -> Any:
        """The state before the first step: any nest of tensors, dicts and tuples."""
        ...

    def update(self, grads: Params, state: Any, params: Params, *, loss: Tensor | None = None) -> tuple[Params, Any]:
        """One step.

        Args:
            grads: of the loss, with the names and shapes of `params`.
            state: from `init` or from the step before.
            params: where the gradients were taken.
            loss: its value there, one number per network, for rules that use it.

        Returns:
            New parameters (not a delta), and the new state.
        """
        ...
