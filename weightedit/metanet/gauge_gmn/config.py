"""GaugeGMNConfig: everything that defines a GaugeGMN, and the refusal of what does not go together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightedit.errors import SpecError
from weightedit.files.schema import Seed
from weightedit.metanet.base import MetanetworkConfig, check_any_ends, check_dropout, check_link_kinds
from weightedit.network.spec import SYMMETRIES, Symmetry


@dataclass(frozen=True)
class GaugeGMNConfig(MetanetworkConfig):
    """Everything that defines a GaugeGMN.

    Attributes:
        inputs: input neurons of the networks it treats, each with a code of its own; 0: any number, all alike.
        outputs: output neurons of the networks it treats, likewise.
        node_width: channels of each of the three node streams.
        edge_width: channels of the edges, and of the messages along them.
        layers: message-passing layers.
        probes: learned inputs (fixed ones with `grid`) at which activations are read, 0 for none.
        forecast: hidden width of the forecast (see Forecast), 0 for none.
        refit: finish with LastLayerRefit towards the forecast; needs probes and a forecast.
        grid: probes on a fixed, regular grid over [-1, 1]^2, their number a square, which lets the forecast convolve
            (see GridForecast), or what reads the outputs for an embedding (see GridShown); needs two inputs and a
            forecast or `shown`, whose width is that of its convolutions.
        dilations: of the inner convolutions of a forecast over the grid, one each; wide ones see parts of the picture,
            as an edit needs that is more than a neighborhood's.
        shown: hidden width of what reads the outputs at the probes for an embedding, beside the messages (see Shown);
            0 for none.
        solved: the head solves its reading term against the activations, too (see heads.SolvedReading); needs probes.
        symmetry: "full" is what each activation allows; "permutation", "sign" or "scale" keep only that part of it.
        bidirectional: also send messages from targets to sources.
        levels: how many levels, from either end, have node codes and output scales of their own.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        rank_one: keep the terms x_i y_j of edges and head, which let a zero weight become non-zero.
        edge_skip: keep the edge of the layer before, e + update instead of update.
        relative_signs: let nonlinear functions see products of two odd channels; else their absolute values only.
        neuron_codes: a learned code for each of the first so many neurons of every level, which gives permutation
            symmetry up on purpose; a control for studies, 0 for none.
        extra_types: channels after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        channels: of each quantity: the kernel positions of networks with convolutions (NetworkSpec.channels), else 1;
            more than one needs probes=0 and forecast=0.
        kernel: (height, width) in which the kernels of all networks are centered, so that they may differ in size; None
            for networks that come with `channels` channels by themselves.
        link_kinds: how many kinds of edges it tells apart, in the order of link.LINK_KINDS; 1 (weights) for chains;
            more than one needs probes=0.
        embedding: 0 to edit, else the width of the vector per network that `embed` gives; then without a forecast.
        dropout: share of the hidden features that is dropped in training, in [0, 1).
        seed: of the initial weights.
    """

    later = {
        "grid",
        "dilations",
        "shown",
        "solved",
        "rank_one",
        "edge_skip",
        "relative_signs",
        "neuron_codes",
        "embedding",
        "channels",
        "dropout",
        "link_kinds",
        "kernel",
    }
    inputs: int = 2
    outputs: int = 1
    node_width: int = 64
    edge_width: int = 32
    layers: int = 4
    probes: int = 32
    forecast: int = 0
    refit: bool = False
    grid: bool = False
    dilations: tuple[int, ...] = (1, 1)
    shown: int = 0
    solved: bool = False
    symmetry: Symmetry = "full"
    bidirectional: bool = True
    levels: int = 8
    initial_scale: float = 0.01
    rank_one: bool = True
    edge_skip: bool = True
    relative_signs: bool = True
    neuron_codes: int = 0
    extra_types: tuple[tuple[int, bool], ...] = ()
    channels: int = 1
    kernel: tuple[int, int] | None = None
    link_kinds: int = 1
    embedding: int = 0
    dropout: float = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.symmetry not in SYMMETRIES:
            raise SpecError(f"symmetry {self.symmetry!r} is unknown; expected one of {', '.join(SYMMETRIES)}.")
        check_any_ends(self.inputs, self.outputs, self.probes, self.embedding)
        sizes = (self.node_width, self.edge_width, self.layers, self.levels, self.channels)
        if min(sizes) < 1 or min(self.probes, self.neuron_codes, self.embedding, self.shown) < 0:
            raise SpecError(
                f"got {self}; expected positive sizes, and an embedding, probes and neuron codes of at least 0."
            )
        check_link_kinds(self.link_kinds, self.probes)
        check_dropout(self.dropout)
        if self.channels > 1 and (self.probes or self.forecast):
            raise SpecError(
                f"got {self.channels} channels per quantity with {self.probes} probes and a forecast of "
                f"{self.forecast}; expected probes=0 and forecast=0: probes are inputs of networks without "
                "convolutions, and a forecast is of what they see."
            )
        if self.refit and not (self.probes and self.forecast):
            raise SpecError(
                "got refit without probes or without a forecast; expected both, it fits the one to the other."
            )
        if self.shown and not (self.probes and self.embedding and self.outputs):
            raise SpecError(
                f"got shown {self.shown} with {self.probes} probes, an embedding of {self.embedding} and "
                f"{self.outputs} outputs; expected some of each: it reads the outputs at the probes for the embedding."
            )
        reads = self.shown if self.embedding else self.forecast
        if self.grid and not (reads and self.inputs == 2 and math.isqrt(self.probes) ** 2 == self.probes):
            what = "shown" if self.embedding else "a forecast"
            raise SpecError(
                f"grid has {self.probes} probes, {self.inputs} inputs and {what} of {reads}; expected 784 or another "
                f"square, two inputs and {what}: the grid is what it convolves over."
            )
        if min(self.dilations, default=1) < 1 or (self.dilations != (1, 1) and not (self.grid and self.forecast)):
            raise SpecError(
                f"got dilations {self.dilations}, a forecast of {self.forecast} and grid={self.grid}; expected numbers "
                "of at least 1, and others than (1, 1) only for a forecast over a grid: correct them."
            )
        if self.solved and not self.probes:
            raise SpecError("got solved without probes; expected some: it solves for what they should read.")
        if self.embedding and self.forecast:
            raise SpecError(
                f"got embedding {self.embedding} with a forecast of {self.forecast}; expected forecast 0: only "
                "an edit has changes to forecast."
            )
