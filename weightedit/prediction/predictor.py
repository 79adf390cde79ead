"""Predicting something of a whole network from its weights: a metanetwork that reads, and a small MLP after it.

Here: the predictor, saved and loaded as editors are (editing/editor.py). Not here: its training for classes of INRs
(classes.py) and for the test accuracy of CNNs (generalization.py); any other regression is a loss of yours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, Self, TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weightedit.errors import ParamsError, SpecError
from weightedit.files.location import CONFIG
from weightedit.files.pretrained import Pretrained
from weightedit.files.schema import Facts, Width, Within, conform
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.inr.convention import Convention, StatedConvention, convert, network_of
from weightedit.inr.stack import INRStack
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.registry import MetanetConfig, build_metanet, describe_metanet
from weightedit.network.graph_spec import AnySpec, GraphSpec


class PredictorConfig(TypedDict):
    """What the config.json of a predictor holds; the convention is null where its networks are no INRs."""

    kind: Literal["predictor"]
    metanet: MetanetConfig
    outputs: Width
    hidden: Width
    dropout: Annotated[float, Within(0, 1)]
    convention: StatedConvention | None
    training: NotRequired[Facts]


class WeightSpacePredictor(Pretrained):
    """Networks -> `outputs` numbers each: embed, LayerNorm, one hidden layer (SiLU, dropout), linear.

    Args:
        metanet: one that reads, embedding > 0.
        outputs: numbers per network: classes, or 1 for a regression.
        hidden: width of the hidden layer.
        dropout: share of it that is dropped in training.
        convention: of the INRs it was trained on; others are converted exactly. None: its networks are no INRs.
        seed: of the initial weights after the metanetwork's.

    Raises SpecError for a metanetwork that edits, or sizes below 1.

    >>> from weightedit.inr.siren import initial_params
    >>> from weightedit.metanet.registry import make_metanet
    >>> from weightedit.network.spec import NetworkSpec
    >>> spec = NetworkSpec.siren((2, 16, 16, 1))
    >>> predictor = WeightSpacePredictor(make_metanet("gauge-gmn", [spec], layers=1, embedding=8), outputs=10)
    >>> predictor.predict(spec, initial_params(3, spec.widths)).shape
    torch.Size([3, 10])
    """

    kind = "predictor"
    what = "predictor"

    def __init__(
        self,
        metanet: Metanetwork,
        outputs: int,
        *,
        hidden: int = 128,
        dropout: float = 0.0,
        convention: Convention | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if metanet.embedding < 1 or min(outputs, hidden) < 1 or not 0 <= dropout < 1:
            raise SpecError(
                f"got {type(metanet).__name__} with embedding {metanet.embedding}, {outputs} outputs, hidden {hidden} "
                f"and dropout {dropout}; expected an embedding, outputs and hidden of at least 1, dropout in [0, 1)."
            )
        self.metanet, self.outputs, self.hidden, self.dropout = metanet, outputs, hidden, dropout
        self.convention = convention
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head = nn.Sequential(
                nn.LayerNorm(metanet.embedding),
                nn.Linear(metanet.embedding, hidden),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, outputs),
            )

    def forward(self, graph: NeuralGraph) -> Tensor:
        """[N, outputs] for a stack, [outputs] for a single network, [networks, outputs] for a ragged graph."""
        return self.head(self.metanet.embed(graph))

    def predict(self, spec: AnySpec, params: Mapping[str, Tensor], *, finite: bool = False) -> Tensor:
        """`forward` of one network or a stack of chains, checked, in the predictor's floating-point type.

        Args:
            spec: of the networks.
            params: of one, or stacked; of a GraphSpec, of one.
            finite: the values of a chain's `params` are known to be finite; then none is read.

        Raises ParamsError on parameters that do not fit or are not finite, SpecError on networks of another kind.
        """
        if isinstance(spec, GraphSpec):
            return self.predict_each([(spec, params)])[0]
        (spec.check_shapes if finite else spec.check_params)(params)
        return self(NeuralGraph.from_params(spec, self._cast(params)))

    def predict_each(self, networks: Sequence[tuple[AnySpec, Mapping[str, Tensor]]]) -> Tensor:
        """`predict` for networks of different architectures in one ragged batch: [networks, outputs]."""
        for spec, params in networks:
            spec.check_params(params)
        return self(ragged_from_params([(spec, self._cast(params)) for spec, params in networks]))

    @torch.no_grad()
    def predict_stack(self, stack: INRStack, *, batch_size: int = 64, progress: bool = False) -> Tensor:
        """[N, outputs] of a whole stack of INRs, in batches on the predictor's device, on the CPU.

        Raises ParamsError for an empty stack, SpecError if this predictor's networks are no INRs.
        """
        if self.convention is None:
            raise SpecError("got INRs; expected networks for `predict`: this predictor was made without a convention.")
        if not len(stack) or batch_size < 1:
            raise ParamsError(f"got {len(stack)} INRs and batch_size {batch_size}; expected at least one of each.")
        device, found = next(self.parameters()).device, []
        for start in tqdm(range(0, len(stack), batch_size), desc="reading", unit="batch", disable=not progress):
            part = {name: tensor[start : start + batch_size].to(device) for name, tensor in stack.params.items()}
            own = convert(part, stack.convention, self.convention)
            found.append(self.predict(network_of(own, self.convention), own).cpu())
        return torch.cat(found)

    def _cast(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.parameters()).dtype
        return {name: tensor.to(dtype) for name, tensor in params.items()}

    def described(self) -> dict[str, Any]:
        """See Pretrained. Raises SpecError for a metanetwork that is not registered."""
        name, config = describe_metanet(self.metanet)
        return {
            "metanet": {"name": name, "config": config},
            "outputs": self.outputs,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "convention": self.convention.to_dict() if self.convention else None,
        }

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """See Pretrained."""
        stated: PredictorConfig = conform(PredictorConfig, config, CONFIG)
        return cls(
            build_metanet(stated["metanet"]["name"], stated["metanet"]["config"]),
            stated["outputs"],
            hidden=stated["hidden"],
            dropout=stated["dropout"],
            convention=stated["convention"],
        )
