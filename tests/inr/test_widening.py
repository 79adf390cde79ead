import pytest
import torch

from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.refinement import refine
from weightedit.errors import WeightEditError
from weightedit.inr.convention import NFN
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen


def _stack(widths=(2, 6, 5, 3), count=4):
    params = initial_params(count, widths, generator=torch.Generator().manual_seed(0))
    return INRStack(params, NFN, 9, 8, label=torch.arange(count))


@pytest.mark.parametrize("widths", [(2, 6, 1), (2, 6, 5, 3), (2, 4, 5, 6, 1)])
@pytest.mark.parametrize("factor", [1, 2, 5])
def test_the_picture_stays(widths, factor):
    stack = _stack(widths)
    wide = widen(stack, factor, seed=1)
    assert wide.widths == (widths[0], *(factor * width for width in widths[1:-1]), widths[-1])
    torch.testing.assert_close(wide.render(), stack.render(), rtol=0, atol=1e-6)
    assert torch.equal(wide.label, stack.label) and wide.convention == NFN


def test_new_neurons_are_alive_and_the_same_for_every_inr():
    one, again = (widen(_stack(count=4), 2, seed=1).params for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    new = one["layers.1.weight"][:, 5:]
    assert new.std(dim=(1, 2)).min() > 0 and torch.equal(new[0], new[1])
    assert not torch.equal(new, widen(_stack(), 2, seed=2).params["layers.1.weight"][:, 5:])
    assert not one["layers.1.weight"][:, :5, 6:].any() and not one["layers.2.weight"][:, :, 5:].any()


def test_wider_is_an_ordinary_inr_and_holds_more(tmp_path):
    stack = _stack((2, 6, 6, 1), count=6)
    targets = torch.rand(6, 1, 9, 8, generator=torch.Generator().manual_seed(3))
    errors = []
    for factor in (1, 2, 4):
        wide = widen(stack, factor, seed=1)
        errors.append(float(mean_squared_errors(refine(wide, targets, 3), targets).mean()))
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0]
    save_inrs(wide, tmp_path / "wide.safetensors")
    assert load_inrs(tmp_path / "wide.safetensors").widths == (2, 24, 24, 1)


def test_wrong_factor():
    with pytest.raises(WeightEditError, match="at least 1"):
        widen(_stack(), 0)
