"""What defines the paper's ScaleGMN: plain data for checkpoints and tasks, and the published settings by name.

Settings are those that the authors published with Kalogeropoulos, Chatzianastasis, Panagakis, "Scale Equivariant Graph
MetaNetworks" (2024): width 128 but for one, sums as aggregation, MLPs of one hidden layer with LayerNorm and SiLU.
The metanetwork is in network.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from weightedit.errors import SpecError
from weightedit.metanet.base import MetanetworkConfig
from weightedit.network.spec import SYMMETRIES, Symmetry

SIGNS = ("canonicalization", "symmetrization")
READOUTS = ("full", "outputs")


@dataclass(frozen=True)
class ScaleGMNConfig(MetanetworkConfig):
    """Everything that defines a ScaleGMN.

    Attributes:
        inputs: input neurons of the networks it treats (their identity matters, so their number is fixed).
        outputs: output neurons of the networks it treats, likewise.
        width: channels of nodes, edges and the hidden layers of all MLPs; 128 in the paper.
        layers: message-passing layers; 10 in the paper for editing, 4 or 2 for classes and generalization.
        symmetry: "full" is what each activation allows; "permutation", "sign" or "scale" keep only that part of it.
        bidirectional: ScaleGMN-B, which also sends messages from targets to sources.
        signs: how invariants forget a sign: "canonicalization", |x| by channel, or "symmetrization", f(x) + f(-x).
        node_codes: learned codes of the nodes, one per input and output neuron and one per hidden layer.
        edge_codes: learned codes of the edges, one per layer and direction.
        layer_codes: let every message and update see the node codes; needs node_codes.
        skip: add each layer's nodes to those before it; edges have no skip in the paper.
        layer_norm: of the MLPs.
        dropout: share of the channels of nodes and edges that is dropped between layers, in [0, 1).
        levels: how many levels, from either end, have codes and output scales of their own.
        initial_scale: of the learned output scales, one per layer.
        readout: what a vector is read off: "full", the sum over hidden neurons and both ends, or "outputs" alone.
        extra_types: quantities after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        channels: of each quantity: the kernel positions of networks with convolutions (NetworkSpec.channels), else 1.
        kernel: (height, width) in which the kernels of all networks are centered, so that they may differ in size; None
            for networks that come with `channels` channels by themselves.
        embedding: 0 to edit, else the width of the vector per network that `embed` gives.
        seed: of the initial weights.
    """

    later = {"kernel"}
    inputs: int = 2
    outputs: int = 1
    width: int = 64
    layers: int = 4
    symmetry: Symmetry = "full"
    bidirectional: bool = True
    signs: Literal["canonicalization", "symmetrization"] = "symmetrization"
    node_codes: bool = True
    edge_codes: bool = False
    layer_codes: bool = False
    skip: bool = True
    layer_norm: bool = True
    dropout: float = 0.0
    levels: int = 8
    initial_scale: float = 0.01
    readout: Literal["full", "outputs"] = "full"
    extra_types: tuple[tuple[int, bool], ...] = ()
    channels: int = 1
    kernel: tuple[int, int] | None = None
    embedding: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("symmetry", self.symmetry, SYMMETRIES),
            ("signs", self.signs, SIGNS),
            ("readout", self.readout, READOUTS),
        ):
            if value not in known:
                raise SpecError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}.")
        sizes = (self.inputs, self.outputs, self.width, self.layers, self.levels, self.channels)
        if min(sizes) < 1 or self.embedding < 0 or not 0 <= self.dropout < 1:
            raise SpecError(f"got {self}; expected positive sizes, an embedding of at least 0 and a dropout in [0, 1).")
        if self.layer_codes and not self.node_codes:
            raise SpecError("got layer_codes without node_codes; expected both: it shows these to every layer.")


_OF_128: dict[str, Any] = {"width": 128, "signs": "symmetrization", "skip": False}
# By experiment and direction, options of make_metanet. A reader's vector has the width of the published last hidden
# layer; what follows it is WeightSpacePredictor's.
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    **{
        ("mnist-editing", name): {
            "width": 128, "layers": 10, "signs": "canonicalization", "skip": True, "dropout": 0.1,
            "initial_scale": 0.01,
        }
        for name in ("scalegmn", "scalegmn-b")
    },
    ("mnist-classes", "scalegmn"): {
        **_OF_128, "layers": 4, "skip": True, "edge_codes": True, "readout": "outputs", "dropout": 0.2, "embedding": 128
    },
    ("mnist-classes", "scalegmn-b"): {
        **_OF_128, "layers": 4, "layer_codes": True, "readout": "outputs", "dropout": 0.2, "embedding": 128
    },
    ("fashion-mnist-classes", "scalegmn-b"): {
        **_OF_128, "layers": 2, "skip": True, "edge_codes": True, "dropout": 0.2, "embedding": 64
    },
    ("cifar10-classes", "scalegmn-b"): {
        "width": 64, "layers": 4, "signs": "canonicalization", "skip": False, "layer_norm": False,
        "readout": "outputs", "dropout": 0.2, "embedding": 64,
    },
    **{
        ("relu-generalization", name): {**_OF_128, "layers": 4, "readout": "outputs", "embedding": 128}
        for name in ("scalegmn", "scalegmn-b")
    },
    ("tanh-generalization", "scalegmn"): {**_OF_128, "layers": 4, "embedding": 128},
    ("tanh-generalization", "scalegmn-b"): {**_OF_128, "layers": 4, "dropout": 0.2, "embedding": 128},
}  # fmt: skip
