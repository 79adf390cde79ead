"""The operations of a layout by edge indices, as PyTorch Geometric has them: what ragged and general graphs share.

Networks stand one after the other, without a network axis; which edge touches which node is `edge_index`, and sizes are
averaged over the edges and nodes of one number in `layer_of_edge` and `layer_of_node`. Nodes are ordered network by
network, level by level.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightedit.errors import ParamsError, SpecError
from weightedit.graph.frame import Frame
from weightedit.graph.neural_graph import Layout
from weightedit.network.layer import Activation

_Kept = TypeVar("_Kept")


def kept(make: Callable[[Any], _Kept]) -> cached_property[_Kept]:
    """A cached property whose tensors serve a training, too, wherever it is first asked for."""

    @wraps(make)
    def made(layout: Any) -> _Kept:
        with torch.inference_mode(False):
            return make(layout)

    return cached_property(made)


@lru_cache(maxsize=256)
def _node_level(widths: tuple[int, ...]) -> Tensor:
    return torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))


class IndexedLayout(Layout):
    """Several networks, one after the other; node tensors are [n, C], edge tensors [e, C]. Abstract.

    Args:
        specs: of every network, in order, at least one (else ParamsError).
        device: where the index tensors live.

    Attributes:
        sizes: nodes of every network.
        edge_index: [2, e], source and target node of every edge.
        network: [n], the network of every node.
        level: [n], the level of every node in its network.
    """

    edge_index: Tensor
    # Tables are made on the CPU: nobody waits for a device, and layouts of tensors without numbers have them, too.
    _ends: Tensor

    def __init__(self, specs: Sequence[Any], device: torch.device | str = "cpu") -> None:
        if not specs:
            raise ParamsError(f"got no network; expected at least one spec for a {type(self).__name__}.")
        super().__init__(Frame.of(*dict.fromkeys(specs)))
        self.specs = tuple(specs)
        self.sizes = [sum(spec.widths) for spec in self.specs]
        self._level = torch.cat([_node_level(spec.widths) for spec in self.specs])
        self.level = self._level.to(device)
        self.network = torch.arange(len(self.specs)).repeat_interleave(torch.tensor(self.sizes)).to(device)

    @property
    def offsets(self) -> list[int]:
        """The first node of every network."""
        return torch.tensor([0, *self.sizes]).cumsum(0)[:-1].tolist()

    @kept
    def layer_of_node(self) -> Tensor:
        """[n], a number per network and level."""
        return self.network * self.levels + self.level

    @property
    @abstractmethod
    def layer_of_edge(self) -> Tensor:
        """[e], a number per network and layer."""

    @property
    @abstractmethod
    def layer_count(self) -> int:
        """Above all of these numbers."""

    def _of_level(self, levels: Tensor) -> list[Tensor]:
        return [(levels == level).nonzero().squeeze(1).to(self.level.device) for level in range(self.levels)]

    @kept
    def nodes_of_level(self) -> list[Tensor]:
        """Per level, its nodes, of all networks."""
        return self._of_level(self._level)

    @kept
    def place_among_levels(self) -> Tensor:
        """[n], the place of every node when level stands after level."""
        return self._level.argsort(stable=True).argsort().to(self.level.device)

    @kept
    def place_in_level(self) -> Tensor:
        """[n], the place of every node among those of its level."""
        firsts = torch.bincount(self._level, minlength=self.levels).cumsum(0).roll(1)
        firsts[0] = 0
        return (self._level.argsort(stable=True).argsort() - firsts[self._level]).to(self.level.device)

    @kept
    def edges_into_level(self) -> list[Tensor]:
        """Per level, the edges whose target is there."""
        return self._of_level(self._level[self._ends[1]])

    def at_level(self, level: int, nodes: Tensor) -> Tensor:
        return nodes.index_select(0, self.nodes_of_level[level])

    def join_levels(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(values)).index_select(0, self.place_among_levels)

    @abstractmethod
    def _activation(self, network: int, level: int) -> Activation | None:
        """What a network applies at a level; None where it has no such level."""

    @kept
    def _activations(self) -> list[list[tuple[Activation, Tensor | None]]]:
        networks = torch.arange(len(self.specs)).repeat_interleave(torch.tensor(self.sizes))
        found = []
        for level in range(self.levels):
            of_network = [self._activation(network, level) for network in range(len(self.specs))]
            kinds = sorted({a for a in of_network if a is not None}, key=lambda a: (a.name, a.parameter))
            if len(kinds) == 1:
                found.append([(kinds[0], None)])
                continue
            here = networks[self._level == level]
            chosen = [torch.tensor([a == kind for a in of_network])[here].nonzero().squeeze(1) for kind in kinds]
            found.append([(kind, at.to(self.level.device)) for kind, at in zip(kinds, chosen, strict=True)])
        return found

    def activations_at(self, level: int) -> list[tuple[Activation, Tensor | None]]:
        return self._activations[level]

    @property
    def source(self) -> Tensor:
        return self.edge_index[0]

    @property
    def target(self) -> Tensor:
        return self.edge_index[1]

    def to_source(self, nodes: Tensor) -> Tensor:
        return nodes.index_select(0, self.source)

    def to_target(self, nodes: Tensor) -> Tensor:
        return nodes.index_select(0, self.target)

    def _scatter(self, edges: Tensor, where: Tensor, count: int) -> Tensor:
        return edges.new_zeros(count, edges.shape[-1]).index_add(0, where, edges)

    def sum_at_source(self, edges: Tensor) -> Tensor:
        return self._scatter(edges, self.source, sum(self.sizes))

    def sum_at_target(self, edges: Tensor) -> Tensor:
        return self._scatter(edges, self.target, sum(self.sizes))

    def _scatter_max(self, edges: Tensor, where: Tensor) -> Tensor:
        lowest = edges.new_full((sum(self.sizes), edges.shape[-1]), -math.inf)
        return lowest.scatter_reduce(0, where.unsqueeze(-1).expand_as(edges), edges, "amax")

    def max_at_source(self, edges: Tensor) -> Tensor:
        return self._scatter_max(edges, self.source)

    def max_at_target(self, edges: Tensor) -> Tensor:
        return self._scatter_max(edges, self.target)

    def outer(self, target: Tensor, source: Tensor, mix: Tensor | None = None) -> Tensor:
        products = self.to_target(target) * self.to_source(source)
        return products.sum(-1, keepdim=True) if mix is None else products @ mix.T

    def _layer_mean(self, values: Tensor, where: Tensor) -> Tensor:
        size = self._scatter(torch.ones_like(values[:, :1]), where, self.layer_count).clamp(min=1)
        return (self._scatter(values, where, self.layer_count) / size).index_select(0, where)

    def layer_mean_edges(self, edges: Tensor) -> Tensor:
        return self._layer_mean(edges, self.layer_of_edge)

    def layer_mean_nodes(self, nodes: Tensor) -> Tensor:
        return self._layer_mean(nodes, self.layer_of_node)

    def network_mean(self, nodes: Tensor, among: Tensor | None = None) -> Tensor:
        among = nodes.new_ones(len(nodes), 1) if among is None else among
        count = self._scatter(among, self.network, len(self.specs)).clamp(min=1)
        return self._scatter(nodes * among, self.network, len(self.specs)) / count

    def network_sum(self, nodes: Tensor) -> Tensor:
        return self._scatter(nodes, self.network, len(self.specs))

    @kept
    def _nodes_of_ends(self) -> tuple[Tensor, Tensor]:
        first = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        inputs, outputs = ({spec.widths[end] for spec in self.specs} for end in (0, -1))
        if max(len(inputs), len(outputs)) > 1:
            raise SpecError(
                f"got networks with {sorted(inputs)} inputs and {sorted(outputs)} outputs in one batch; expected "
                "equally many in all of them. Put networks with other ends into a batch of their own."
            )
        low = [torch.arange(start, start + min(inputs)) for start in first[:-1]]
        high = [torch.arange(end - min(outputs), end) for end in first[1:]]
        return torch.stack(low).to(self.network.device), torch.stack(high).to(self.network.device)

    def ends(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        inputs, outputs = self._nodes_of_ends
        return nodes[inputs], nodes[outputs]
