"""INRs from tensors and modules: exact weights, and modules that compute something else are found out."""

import pytest
import torch
from torch import nn

from weightedit.data.inr_modules import from_module, from_tensors
from weightedit.errors import ParamsError
from weightedit.inr.convention import DWSNETS, NFN, Convention
from weightedit.inr.siren import Siren, initial_params


def make_siren() -> Siren:
    return Siren((2, 8, 8, 3), generator=torch.Generator().manual_seed(0))


class Sine(nn.Module):
    def forward(self, values):
        return torch.sin(30 * values)


class Owned(nn.Module):
    """A layer that is no nn.Linear, as DWSNets' are, in a network that adds the offset itself or returns a pair."""

    def __init__(self, siren: Siren, offset: float = 0.0, pair: bool = False):
        super().__init__()
        self.first = nn.Sequential(siren.layers[0], Sine())
        self.rest = nn.ModuleList([siren.layers[1], siren.layers[2]])
        self.offset, self.pair = offset, pair

    def forward(self, coordinates):
        values = self.rest[1](torch.sin(30 * self.rest[0](self.first(coordinates)))) + self.offset
        return (values, coordinates) if self.pair else values


def test_a_siren_is_read_exactly():
    net = make_siren()
    stack = from_module(net, DWSNETS, 5, 6)
    assert len(stack) == 1 and stack.widths == (2, 8, 8, 3) and stack.render().shape == (1, 3, 5, 6)
    for name, tensor in net.state_dict().items():
        assert torch.equal(stack.params[name][0], tensor) and stack.params[name].data_ptr() != tensor.data_ptr()
        assert not stack.params[name].requires_grad


@pytest.mark.parametrize(("offset", "pair"), [(0.0, False), (0.5, False), (0.0, True)])
def test_any_module_of_this_function_is_read(offset, pair):
    net = make_siren()
    stack = from_module(Owned(net, offset, pair).double(), DWSNETS, 4, 4)
    assert all(torch.equal(stack.params[name][0], tensor) for name, tensor in net.state_dict().items())


def test_modules_that_compute_something_else_are_refused():
    with pytest.raises(ParamsError, match="got a Siren with sine 30 after.*expected sine 20.*pass the right omega"):
        from_module(make_siren(), Convention(omega=20.0), 4, 4)
    with pytest.raises(ParamsError, match=r"Owned .*, add 0.5 after the last.*\(with or without nothing\)"):
        from_module(Owned(make_siren(), offset=0.5), NFN, 4, 4)
    tanh = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    with pytest.raises(ParamsError, match="Sequential with tanh after its hidden layers"):
        from_module(tanh, DWSNETS, 4, 4)
    with pytest.raises(ParamsError, match="Sequential that is no INR: .*examples are not told apart"):
        from_module(nn.Sequential(*make_siren().layers, nn.Flatten(0)), DWSNETS, 4, 4)
    with pytest.raises(ParamsError, match=r"layer 1 of the Sequential \(2.weight\) has no bias"):
        from_module(nn.Sequential(nn.Linear(2, 8), Sine(), nn.Linear(8, 1, bias=False)), DWSNETS, 4, 4)
    with pytest.raises(ParamsError, match="ReLU that is no INR: .*inputs its first layer does not tell"):
        from_module(nn.ReLU(), DWSNETS, 4, 4)


def test_layers_come_in_the_order_of_the_forward():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(8, 3), nn.Linear(2, 8)

        def forward(self, x):
            return self.last(torch.sin(30 * self.first(x))) + 0.5

    net = Backwards()
    assert torch.equal(from_module(net, DWSNETS, 4, 4).params["layers.0.weight"][0], net.first.weight)


@pytest.mark.parametrize("prefix", ["layers", "seq", "module.net"])
def test_tensors_single_and_stacked(prefix):
    params = initial_params(3, (2, 8, 1))
    named = {name.replace("layers", prefix): tensor for name, tensor in reversed(params.items())}
    stack = from_tensors(named, NFN, 4, 5)
    assert len(stack) == 3 and (stack.convention, stack.height, stack.width) == (NFN, 4, 5)
    assert all(torch.equal(stack.params[name], params[name]) for name in params)
    single = from_tensors({name: tensor[1] for name, tensor in named.items()}, NFN, 4, 5)
    assert all(torch.equal(single.params[name], params[name][1:2]) for name in params)


def test_bad_tensors_are_refused():
    params = initial_params(3, (2, 8, 1))
    params["layers.1.bias"][1] = torch.nan
    with pytest.raises(ParamsError, match=r"layers\.1\.bias of INR 1 has NaN"):
        from_tensors(params, DWSNETS, 4, 4)
    with pytest.raises(ParamsError, match="a tensor named 'scale'"):
        from_tensors({"scale": torch.ones(1)}, DWSNETS, 4, 4)
