"""Errors of renderings against targets, by hand and in batches."""

import pytest
import torch

from weightedit.editing.evaluation import mean_squared_errors
from weightedit.errors import ParamsError
from weightedit.inr.convention import NFN, Convention, convert
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack


def _stack(count, channels=1, convention=None):
    params = initial_params(count, (2, 6, 5, channels), generator=torch.Generator().manual_seed(3))
    return INRStack(params, convention or Convention(), 7, 9)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_mean_over_pixels_and_channels_of_each_inr(channels):
    stack = _stack(4, channels)
    targets = torch.rand(4, channels, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(stack[n].render()[0] - targets[n]).square().mean() for n in range(4)])
    torch.testing.assert_close(mean_squared_errors(stack, targets), expected)


def test_batches_do_not_show(monkeypatch):
    stack, targets = _stack(11), torch.rand(11, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = mean_squared_errors(stack, targets)
    monkeypatch.setattr("weightedit.editing.evaluation._BATCH", 4)
    torch.testing.assert_close(mean_squared_errors(stack, targets), whole)


def test_the_rendering_is_not_clamped():
    stack = _stack(1)
    dark = stack.with_params({**stack.params, "layers.2.bias": stack.params["layers.2.bias"] - 10})
    assert float(mean_squared_errors(dark, torch.zeros(1, 1, 7, 9))) > 50


def test_conventions_and_resolutions_do_not_change_the_scale():
    stack, targets = _stack(3), torch.rand(3, 1, 12, 5, generator=torch.Generator().manual_seed(0))
    other = INRStack(convert(stack.params, stack.convention, NFN), NFN, 7, 9)
    torch.testing.assert_close(mean_squared_errors(other, targets), mean_squared_errors(stack, targets))


def test_no_graph_is_kept():
    stack = _stack(2)
    stack.params["layers.0.weight"].requires_grad_()
    assert not mean_squared_errors(stack, torch.zeros(2, 1, 7, 9)).requires_grad


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(3, 1, 7, 9), r"expected \(2, 1, height, width\)"),
        (torch.zeros(2, 3, 7, 9), r"expected \(2, 1, height, width\)"),
        (torch.zeros(2, 7, 9), "one image per INR"),
        (torch.zeros(2, 1, 7, 9, dtype=torch.uint8), "divide bytes"),
        (torch.full((2, 1, 7, 9), 255.0), "not all in"),
        (torch.full((2, 1, 7, 9), torch.nan), "not all in"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets, message):
    with pytest.raises(ParamsError, match=message):
        mean_squared_errors(_stack(2), targets)
