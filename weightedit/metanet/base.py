"""What every metanetwork is: a module from neural graph to neural graph that declares its channel types."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from weightedit.features import ChannelType, check_types
from weightedit.graph import NeuralGraph


class Metanetwork(nn.Module):
    """Base class. `types_in` and `types_out` are checked wherever two parts are joined.

    Attributes:
        types_in: channel types of the graphs it reads; the first is PARAMETER.
        types_out: channel types of the graphs it returns, (DELTA,) for one that edits.
    """

    types_in: tuple[ChannelType, ...]
    types_out: tuple[ChannelType, ...]

    @abstractmethod
    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """The map itself; `forward` checks types around it."""

    def forward(self, graph: NeuralGraph) -> NeuralGraph:
        """The transformed graph, on the same layout.

        Raises TypeMismatchError if the graph's channels are not `types_in`.
        """
        check_types(graph.types, self.types_in, type(self).__name__)
        result = self.transform(graph)
        check_types(result.types, self.types_out, f"{type(self).__name__} output")
        return result
