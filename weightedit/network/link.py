"""The parts of a network that is more than a chain, in the words a GraphSpec is made of: levels of neurons, and links.

Kofinas et al. 2024: a residual addition is edges of a fixed weight 1 between the neurons that it joins; a
normalization is a diagonal linear layer, with its gain on edges from every neuron to a node of its own, and its bias on
that node. So a link either runs from all neurons of one level to all of another and carries a weight, or from every
neuron to its counterpart and carries a gain or a fixed number.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightedit.errors import SpecError
from weightedit.network.layer import IDENTITY, Activation, NeuronGroup

# In a fixed order, which embeddings of links rely on: new ones go last.
LINK_KINDS = ("weight", "skip", "batch_norm", "layer_norm", "group_norm", "instance_norm")
# What a normalization leaves of the factors of the neurons it reads: one that takes every channel by itself divides
# positive scales out (up to its epsilon); one that takes them together knows each neuron's share.
READ_BY = {
    "batch_norm": NeuronGroup(scale=True),
    "instance_norm": NeuronGroup(scale=True),
    "layer_norm": NeuronGroup(),
    "group_norm": NeuronGroup(),
}
ANY_FACTOR = NeuronGroup(scale=True, flip=True, shift=True)


@dataclass(frozen=True)
class Level:
    """Neurons that are computed together: units of a linear map, channels of a convolution or of a normalization.

    Attributes:
        name: of the module or operation that computes them, for messages.
        width: how many.
        bias: name of the parameter that is added to them, None without one.
        activation: what is applied to their sum.
        passed: the factors that what follows the activation and is no link passes on: pooling by maximum, no flips.
    """

    name: str
    width: int
    bias: str | None = None
    activation: Activation = IDENTITY
    passed: NeuronGroup = ANY_FACTOR


@dataclass(frozen=True)
class Link:
    """Edges from one level to a later one.

    Attributes:
        source: index of the level that is read.
        target: index of the level that receives.
        kind: one of LINK_KINDS. A "weight" joins all pairs of neurons, the others every neuron with its counterpart:
            "skip" by a fixed number, a normalization by its gain.
        parameter: name of the weight or gain; None where the edges carry the fixed `value`.
        shape: of the parameter, targets first: (out, in), (out, in, kernel...), (out, in * positions) or (n,).
        value: on the edges of a link without a parameter.
    """

    source: int
    target: int
    kind: str = "weight"
    parameter: str | None = None
    shape: tuple[int, ...] = ()
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in LINK_KINDS:
            raise SpecError(f"link kind {self.kind!r} is unknown; expected one of {', '.join(LINK_KINDS)}.")
        axes = len(self.shape)
        fits = axes in (2, 3, 4) if self.kind == "weight" else axes == (0 if self.parameter is None else 1)
        if not 0 <= self.source < self.target or (self.kind == "weight") > (self.parameter is not None) or not fits:
            raise SpecError(
                f"got {self}; expected a link to a later level: a weight with its parameter's (out, in), "
                "(out, in, width) or (out, in, height, width), or a gain of shape (n,), or neither parameter nor shape."
            )

    @property
    def kernel(self) -> tuple[int, int] | None:
        """(height, width) of a convolution's kernel; None for any other link."""
        if len(self.shape) < 3:
            return None
        height, width = (1, *self.shape[2:])[-2:]
        return height, width
