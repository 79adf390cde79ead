"""What defines an NG-GNN or an NG-T: plain data for checkpoints and tasks. The metanetworks are in network.py."""

from __future__ import annotations

from dataclasses import dataclass

from weightedit.errors import SpecError
from weightedit.files.schema import Seed
from weightedit.metanet.base import MetanetworkConfig, check_any_ends, check_dropout, check_link_kinds

SCALERS = ("identity", "amplification", "attenuation")


@dataclass(frozen=True)
class NeuralGraphsConfig(MetanetworkConfig):
    """What the configs of NG-GNN and NG-T have in common.

    Attributes:
        inputs: input neurons of the networks it treats, each with a code of its own; 0: any number, all alike.
        outputs: output neurons of the networks it treats, likewise.
        node_width: channels of the nodes.
        edge_width: channels of the pairs.
        layers: message-passing or attention layers.
        probes: learned inputs at which activations are read, 0 for none; 4, 16 and 64 in the paper.
        levels: how many levels, from either end, have node codes and output scales of their own.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        embedding: 0 to edit; else the width of the vector that is read off every network.
        channels: of each quantity: the kernel positions of networks with convolutions (NetworkSpec.channels), else 1.
        kernel: (height, width) in which the kernels of all networks are centered, so that they may differ in size; None
            for networks that come with `channels` channels by themselves.
        link_kinds: how many kinds of edges it tells apart, in the order of link.LINK_KINDS; 1 (weights) for chains.
        fourier: random frequencies that lift the parameters of a neuron or of a pair, 0 for these themselves.
        fourier_scale: their standard deviation, for parameters of unit size.
        extra_types: quantities after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        dropout: share of the hidden features that is dropped in training, in [0, 1).
        seed: of the initial weights.
    """

    later = {"kernel", "link_kinds", "dropout", "fourier", "fourier_scale"}
    inputs: int = 2
    outputs: int = 1
    node_width: int = 64
    edge_width: int = 32
    layers: int = 4
    probes: int = 0
    levels: int = 8
    initial_scale: float = 0.01
    embedding: int = 0
    channels: int = 1
    kernel: tuple[int, int] | None = None
    link_kinds: int = 1
    fourier: int = 0
    fourier_scale: float = 3.0
    extra_types: tuple[tuple[int, bool], ...] = ()
    dropout: float = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_any_ends(self.inputs, self.outputs, self.probes, self.embedding)
        sizes = (self.node_width, self.edge_width, self.layers, self.levels, self.channels)
        if min(sizes) < 1 or min(self.probes, self.fourier, self.embedding) < 0 or not self.fourier_scale > 0:
            raise SpecError(
                f"got {self}; expected positive sizes and fourier_scale; fourier, probes and embedding of at least 0."
            )
        check_link_kinds(self.link_kinds, self.probes)
        check_dropout(self.dropout)
        if self.probes and self.channels > 1:
            raise SpecError(
                f"got {self.probes} probes with {self.channels} channels per quantity; expected probes=0: probes are "
                "for networks without convolutions."
            )


@dataclass(frozen=True)
class NGGNNConfig(NeuralGraphsConfig):
    """Everything that defines an NGGNN; see NeuralGraphsConfig.

    Attributes:
        reverse_edges: also send messages from targets to sources; the published settings do for editing INRs, and do
            not for classifying them.
        scalers: of the aggregates: "identity", "amplification", "attenuation"; the published ones by default.
        typical_degree: number of received messages at which all scalers are 1. Theirs: the exponential of the mean of
            log(degree + 1) over the nodes of the training set, less 1 (2-32-32-1: 33 with reverse edges, 8.5 without).
    """

    reverse_edges: bool = True
    scalers: tuple[str, ...] = ("identity", "amplification")
    typical_degree: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scalers or not set(self.scalers) <= set(SCALERS) or self.typical_degree <= 0:
            raise SpecError(
                f"got scalers {self.scalers} with a typical degree of {self.typical_degree}; expected some of "
                f"{', '.join(SCALERS)}, and a positive degree."
            )


@dataclass(frozen=True)
class NGTConfig(NeuralGraphsConfig):
    """Everything that defines an NGT; see NeuralGraphsConfig. Reverse edges are always there.

    Attributes:
        heads: of the attention, which is twice as wide as the nodes.
    """

    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or 2 * self.node_width % self.heads:
            raise SpecError(
                f"got {self.heads} heads for an attention of width {2 * self.node_width}; expected a number that "
                "divides it."
            )
