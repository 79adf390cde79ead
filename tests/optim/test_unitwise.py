"""Dense layers written unit by unit."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from weightedit.optim.unitwise import affine


def test_a_dense_layer_is_one_operation_per_number_to_a_compiler():
    """All else that it has to look at is a few operations per row: compiling takes time by the operation."""
    outputs, inputs = 6, 5
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, outputs, inputs, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, 2, 1, 1, generator=generator, dtype=torch.float64)
    units = torch.randn(inputs, 2, 3, 4, generator=generator, dtype=torch.float64)
    found = torch.stack(affine(weight, bias.unbind(), units.unbind()), -1)
    expected = torch.einsum("nji,inrc->nrcj", weight, units) + bias.squeeze().mT[:, None, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=inputs * 2**-52 * 16)
    graph = make_fx(affine)(weight, list(bias.unbind()), list(units.unbind())).graph
    operations = [node for node in graph.nodes if node.op == "call_function" and "getitem" not in str(node.target)]
    assert len(operations) <= outputs * inputs + outputs + 3, len(operations)
