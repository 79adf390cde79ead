"""What every metanetwork is: a module that reads a neural graph, declares its channel types, and edits or embeds it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from weightedit.errors import SpecError
from weightedit.files.schema import conform_fields
from weightedit.graph.frame import Frame
from weightedit.graph.neural_graph import Layout, NeuralGraph
from weightedit.network.features import PARAMETER, ChannelType, check_types
from weightedit.network.link import LINK_KINDS
from weightedit.network.spec import SYMMETRIES, Symmetry


class MetanetworkConfig:
    """Base class of the frozen dataclasses that define metanetworks: plain data, for checkpoints and tasks.

    Attributes:
        later: fields that came later; configs from before have their defaults.
    """

    later: ClassVar[Collection[str]] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """The config that `to_dict` wrote. Raises SpecError on unknown entries, and on missing ones but for `later`."""
        return conform_fields(cls, data, cls.later, SpecError)


class Metanetwork(nn.Module):
    """Base class. A metanetwork has one of two endings: it edits (`forward`) or it reads (`embed`).

    `types_in` and `types_out` are checked wherever two parts are joined.

    Attributes:
        types_in: channel types of the graphs it reads; the first is PARAMETER.
        types_out: channel types of the graphs it returns, for one that edits all DELTA: one per position of a kernel.
        embedding: width of the vector that `embed` gives, 0 for a metanetwork that edits.
        declared: the symmetries to which it is equivariant (or, reading, invariant) on networks that have them.
        frame: in which it takes the kernels of all networks; None where every network has to come with its channels.
    """

    types_in: tuple[ChannelType, ...]
    types_out: tuple[ChannelType, ...]
    embedding: int = 0
    declared: tuple[Symmetry, ...] = ()
    frame: Frame | None = None

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """The map of one that edits; `forward` checks types around it."""
        raise NotImplementedError

    def read(self, graph: NeuralGraph) -> Tensor:
        """The map of one that reads; `embed` checks types before it."""
        raise NotImplementedError

    def forward(self, graph: NeuralGraph) -> NeuralGraph:
        """The transformed graph, on the same layout; with one channel per position of a kernel, zeros in the padding.

        Raises:
            TypeMismatchError: the graph's channels are not `types_in`.
            SpecError: this metanetwork reads, it does not edit; or kernels are too large for it.
        """
        if self.embedding:
            raise SpecError(
                f"got {type(self).__name__} with embedding {self.embedding}; expected 0 for deltas: call embed, or "
                "build it with embedding=0."
            )
        framed = self._framed(graph)
        check_types(framed.types, self.types_in, type(self).__name__)
        result = self.transform(framed)
        check_types(result.types, self.types_out, f"{type(self).__name__} output")
        result = result.without_padding() if len(self.types_out) > 1 else result
        return result if framed is graph else result.in_frame(graph.layout.frame)

    def embed(self, graph: NeuralGraph) -> Tensor:
        """One vector per network: [N, embedding] for a stack, [embedding] for one, [networks, embedding] if ragged.

        Raises:
            TypeMismatchError: the graph's channels are not `types_in`.
            SpecError: this metanetwork edits, it does not read; or kernels are too large for it.
        """
        if not self.embedding:
            raise SpecError(
                f"got {type(self).__name__} with embedding 0; expected the width of a vector per network: build it "
                "with embedding > 0."
            )
        framed = self._framed(graph)
        check_types(framed.types, self.types_in, type(self).__name__)
        return self.read(framed)

    def _framed(self, graph: NeuralGraph) -> NeuralGraph:
        frame, own = self.frame, graph.layout.frame
        if frame is None or frame == own:
            return graph
        if not frame.holds(own):
            raise SpecError(
                f"got networks with kernels of {own} in {type(self).__name__} for kernels of {frame}; expected none "
                "that is larger: build it with make_metanet for all of these networks."
            )
        return graph.in_frame(frame)


def types_of(extra_types: Sequence[tuple[int, bool]], channels: int) -> tuple[ChannelType, ...]:
    """Types of all channels: the parameters, then quantities of these (scale, odd), `channels` of each."""
    quantities = PARAMETER, *(ChannelType(scale, odd) for scale, odd in extra_types)
    return tuple(kind for kind in quantities for _ in range(channels))


def declared(symmetry: Symmetry) -> tuple[Symmetry, ...]:
    """What a metanetwork of this symmetry keeps: the permutations, and every part of "full"."""
    if symmetry == "full":
        return SYMMETRIES
    return ("permutation",) if symmetry == "permutation" else ("permutation", symmetry)


def frame_of(kernel: tuple[int, int] | None, channels: int) -> Frame | None:
    """The frame of a metanetwork, None without a kernel.

    Raises SpecError for a kernel with more positions than there are channels.
    """
    if kernel is None:
        return None
    if min(kernel) < 1 or math.prod(kernel) > channels:
        raise SpecError(
            f"got a kernel of {kernel} with {channels} channels; expected positive sizes, and a channel per position."
        )
    return Frame(*kernel, channels - math.prod(kernel))


def check_dropout(dropout: float) -> None:
    """Raises SpecError unless it is a share that leaves something."""
    if not 0 <= dropout < 1:
        raise SpecError(f"got a dropout of {dropout}; expected a share in [0, 1).")


def check_chains(graph: NeuralGraph, name: str) -> None:
    """Raises SpecError if networks that are no chains come to the metanetwork `name`, which goes layer by layer."""
    if graph.layout.link_kind is not None:
        raise SpecError(
            f"got networks that are no chains in {name}; expected chains of layers (NetworkSpec): take gauge-gmn, "
            "ng-gnn or ng-t for networks with residual additions or normalizations."
        )


def check_link_kinds(kinds: int, probes: int) -> None:
    """Raises SpecError unless so many kinds of links can be told apart, beside so many probes."""
    if not 1 <= kinds <= len(LINK_KINDS):
        raise SpecError(f"got link_kinds {kinds}; expected at least 1 and at most {len(LINK_KINDS)} kinds of links.")
    if probes and kinds > 1:
        raise SpecError(f"got {probes} probes with {kinds} kinds of links; expected probes=0: probes are for chains.")


def check_links(graph: NeuralGraph, kinds: int) -> None:
    """Raises SpecError if a graph has other kinds of links than the first so many."""
    if graph.layout.link_kinds > kinds:
        raise SpecError(
            f"got networks with links of the kind {LINK_KINDS[graph.layout.link_kinds - 1]} for link_kinds {kinds}; "
            f"expected at most the first so many of {', '.join(LINK_KINDS)}. Build it with make_metanet for such "
            "networks."
        )


def link_numbers(layout: Layout, edges: Tensor) -> Tensor:
    """[e], the place of every edge's kind in link.LINK_KINDS; in a chain all edges [..., e, C] carry weights."""
    if layout.link_kind is None:
        return torch.zeros(edges.shape[-2], dtype=torch.long, device=edges.device)
    return layout.link_kind


def check_any_ends(inputs: int, outputs: int, probes: int, embedding: int) -> None:
    """Raises SpecError for any number of inputs or outputs, 0, in a config whose probes or vectors need to know it."""
    if min(inputs, outputs) < 0 or (not (inputs and outputs) and (probes or embedding)):
        raise SpecError(
            f"got {inputs} inputs and {outputs} outputs with probes {probes} and embedding {embedding}; expected "
            "numbers of at least 1, or 0 for any number with probes=0 and embedding=0: probes are inputs, and vectors "
            "are read off every end."
        )


def check_ends(graph: NeuralGraph, inputs: int, outputs: int) -> None:
    """Raises SpecError if a network has other numbers of inputs or outputs than the metanetwork, which knows each.

    0 stands for any number: of neurons that the metanetwork does not tell apart.
    """
    for spec in graph.layout.specs:
        ends = (spec.widths[0], spec.widths[-1])
        if any(known not in (0, end) for known, end in zip((inputs, outputs), ends, strict=True)):
            raise SpecError(
                f"got a network with {ends[0]} inputs and {ends[1]} outputs; expected {inputs} and {outputs}. Hidden "
                "widths and depth are free; the two ends are fixed by the config: take one made for these."
            )
