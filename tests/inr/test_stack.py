"""Stacks: choosing, joining and replacing keep weights, labels and scores together."""

import pytest
import torch

from weightedit.errors import ParamsError
from weightedit.inr.convention import NFN, Convention
from weightedit.inr.siren import initial_params, render_images
from weightedit.inr.stack import INRStack


def _stack(count=5, **fields):
    params = initial_params(count, (2, 4, 1), generator=torch.Generator().manual_seed(0))
    fields = {"label": torch.arange(count), "psnr": torch.rand(count), "provenance": {"init": "siren"}} | fields
    return INRStack(params, Convention(), 6, 5, **fields)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (1, [1]),
        (-1, [4]),
        (slice(1, 3), [1, 2]),
        ([4, 0], [4, 0]),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor([True, False, False, False, True]), [0, 4]),
        ([], []),
    ],
)
def test_choosing(which, expected):
    stack = _stack()
    chosen = stack[which]
    assert len(chosen) == len(expected) and chosen.label.tolist() == expected and chosen.index is None
    assert torch.equal(chosen.params["layers.0.bias"], stack.params["layers.0.bias"][torch.tensor(expected).long()])
    assert chosen.provenance == stack.provenance and chosen.convention == stack.convention


def test_rendering_and_iteration():
    stack = _stack()
    assert torch.equal(stack.render(), render_images(stack.params, Convention(), 6, 5))
    assert stack.render(12, 10).shape == (5, 1, 12, 10)
    assert [int(one.label) for one in stack] == [0, 1, 2, 3, 4]
    assert stack.widths == (2, 4, 1) and stack.to("cpu").label.tolist() == stack.label.tolist()


def test_spec_is_that_of_the_siren():
    spec = _stack().spec
    assert tuple(spec.widths) == (2, 4, 1)


def test_concatenation_undoes_splitting():
    stack = _stack()
    joined = INRStack.concatenate([stack[:2], stack[2:]])
    for name, tensor in stack.params.items():
        assert torch.equal(joined.params[name], tensor)
    assert torch.equal(joined.psnr, stack.psnr) and joined.provenance == {"init": "siren"}
    mixed = INRStack.concatenate([stack, _stack(provenance={"init": "dwsnets"})])
    assert mixed.provenance == {"init": "siren | dwsnets"}


def test_new_parameters_drop_the_old_score():
    stack = _stack()
    edited = stack.with_params({name: tensor + 1 for name, tensor in stack.params.items()})
    assert edited.psnr is None and torch.equal(edited.label, stack.label)
    with pytest.raises(ParamsError, match="expected the shapes"):
        stack.with_params(stack[:2].params)


def test_bad_input_is_refused():
    params = initial_params(3, (2, 4, 1))
    with pytest.raises(ParamsError, match="unsqueeze"):
        INRStack({name: tensor[0] for name, tensor in params.items()}, Convention(), 6, 5)
    with pytest.raises(ParamsError, match="label of shape"):
        INRStack(params, Convention(), 6, 5, label=torch.arange(4))
    with pytest.raises(ParamsError, match="image size 0 x 5"):
        INRStack(params, Convention(), 0, 5)
    with pytest.raises(ParamsError, match="no stacks"):
        INRStack.concatenate([])
    stack = _stack()
    with pytest.raises(ParamsError, match="stack 1 has the convention"):
        INRStack.concatenate([stack, INRStack(params, NFN, 6, 5, label=torch.arange(3), psnr=torch.rand(3))])
    with pytest.raises(ParamsError, match="stack 1 has the fields"):
        INRStack.concatenate([stack, _stack(label=None)])
    with pytest.raises(IndexError, match="INR 5"):
        stack[5]
    with pytest.raises(IndexError, match="one-dimensional tensor of integers"):
        stack[torch.tensor([0.5])]
