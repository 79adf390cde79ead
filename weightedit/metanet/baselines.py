"""Controls without equivariance: what a table needs to show that the symmetry earns its place.

The flat MLP sees all parameters of one architecture as one vector. It knows no permutation, reads no other widths, and
is here to be beaten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from weightedit.errors import SpecError
from weightedit.features import DELTA, PARAMETER
from weightedit.graph import DenseLayout, NeuralGraph
from weightedit.metanet.base import Metanetwork
from weightedit.spec import NetworkSpec


@dataclass(frozen=True)
class FlatMLPConfig:
    """Everything that defines a FlatMLP.

    Attributes:
        widths: of the networks it treats, all of one architecture, e.g. (2, 32, 32, 1).
        hidden: hidden width of the MLP.
        layers: hidden layers of the MLP.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        seed: of the initial weights.
    """

    widths: tuple[int, ...] = (2, 32, 32, 1)
    hidden: int = 512
    layers: int = 2
    initial_scale: float = 0.01
    seed: int = 0

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> FlatMLPConfig:
        """The config that `to_dict` wrote. Raises SpecError on unknown or missing entries."""
        if set(data) != {field.name for field in fields(cls)}:
            raise SpecError(f"entries {sorted(data)} came; expected {sorted(field.name for field in fields(cls))}.")
        return cls(**{**data, "widths": tuple(data["widths"])})  # type: ignore[arg-type]


class FlatMLP(Metanetwork):
    """All parameters as one vector -> all deltas, by an MLP; equivariant to nothing.

    Args:
        config: see FlatMLPConfig.
    """

    types_in = (PARAMETER,)
    types_out = (DELTA,)

    def __init__(self, config: FlatMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = NetworkSpec.siren(config.widths)
        size = self.spec.parameter_count
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            sizes = [size, *[config.hidden] * config.layers]
            hidden = [
                part
                for a, b in zip(sizes, sizes[1:], strict=False)
                for part in (nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU())
            ]
            self.body = nn.Sequential(*hidden, nn.Linear(sizes[-1], size))
        self.scale = nn.Parameter(torch.full((len(config.widths) - 1,), config.initial_scale))

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError for a ragged graph or networks of other widths than the config's."""
        layout = graph.layout
        if not isinstance(layout, DenseLayout) or layout.spec.widths != self.config.widths:
            widths = [spec.widths for spec in layout.specs]
            raise SpecError(
                f"networks of widths {widths} came; expected {self.config.widths}: a flat MLP reads no others."
            )
        sizes = layout.layer_mean_edges(graph.edges.square()).sqrt().clamp(min=1e-12)
        at_nodes = layout.sum_at_target(sizes) / layout.sum_at_target(torch.ones_like(sizes)).clamp(min=1)
        inputs = self.config.widths[0]
        unit = torch.cat([sizes, at_nodes[..., inputs:, :]], -2)[..., 0]
        flat = torch.cat([graph.edges, graph.nodes[..., inputs:, :]], -2)[..., 0]
        delta = self.body(flat / unit) * unit * self._scales(layout)
        edges, nodes = delta.split([graph.edges.shape[-2], delta.shape[-1] - graph.edges.shape[-2]], -1)
        return graph.with_features(
            torch.cat([torch.zeros_like(graph.nodes[..., :inputs, 0]), nodes], -1).unsqueeze(-1),
            edges.unsqueeze(-1),
            self.types_out,
        )

    def _scales(self, layout: DenseLayout) -> Tensor:
        layers = layout.spec.layers
        counts = [layer.fan_in * layer.fan_out for layer in layers] + [layer.fan_out for layer in layers]
        return torch.cat([self.scale, self.scale]).repeat_interleave(torch.tensor(counts, device=self.scale.device))
