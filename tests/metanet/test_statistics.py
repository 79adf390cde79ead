"""Weight statistics: the numbers themselves, and which symmetries they have."""

import pytest
import torch

from tests.networks import SPECS, random_params
from weightedit.errors import SpecError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.statistics import QUANTILES, WeightStatistics, WeightStatisticsConfig, statistics_of
from weightedit.network.spec import NetworkSpec


def test_they_are_mean_variance_and_quantiles_of_every_tensor():
    spec, params = SPECS["tanh"], random_params(SPECS["tanh"], count=3)
    found = statistics_of(spec, params)
    assert found.shape == (3, 2 * 3 * 8)
    for n in range(3):
        for place, name in enumerate(spec.param_shapes()):
            values = params[name][n].flatten()
            size = values.square().mean().sqrt()
            unit = values / size
            quantiles = torch.quantile(unit, torch.tensor(QUANTILES, dtype=torch.float64))
            expected = torch.cat([torch.stack([unit.mean(), unit.var(unbiased=False)]), quantiles, size.log()[None]])
            torch.testing.assert_close(found[n, 8 * place : 8 * place + 8], expected)


def test_any_width_one_depth_kernels_without_their_padding():
    metanet = WeightStatistics(WeightStatisticsConfig(hidden=8, embedding=4)).double()
    for widths in ((2, 5, 4, 3), (4, 9, 9, 1)):
        spec = NetworkSpec.mlp(widths, [SPECS["relu"].layers[0].activation] * 2)
        assert metanet.embed(NeuralGraph.from_params(spec, random_params(spec, count=2))).shape == (2, 4)
    with pytest.raises(SpecError, match="a network with 5 layers; expected 3"):
        metanet.embed(NeuralGraph.from_params(SPECS["mixed"], random_params(SPECS["mixed"])))
    cnn = NetworkSpec.cnn((1, 3, 4, 2), SPECS["relu"].layers[0].activation)
    params = {name: torch.randn(2, *shape).double() for name, shape in cnn.param_shapes().items()}
    graph = NeuralGraph.from_params(cnn, params)
    reader = WeightStatistics(WeightStatisticsConfig(channels=cnn.channels, hidden=8, embedding=4)).double()
    torch.testing.assert_close(reader.embed(graph), reader.body(statistics_of(cnn, params)))
