"""How far apart two right computations of the same numbers may be: machine epsilon times the condition of the problem.

Processors, their instruction sets and numbers of threads add in different orders. What a test allows follows from what
it computes, not from the figure that one machine once gave: some units of rounding, amplified by the condition,
relative to the largest entry of a tensor, since an entry that nearly cancels has no digits of its own.
"""

import math

import torch

from tests.networks import relative

ORDERS = 8  # units of rounding between two orders of the same sums and products


def condition(spec):
    """Product of max(1, omega): a sine layer turns an error of its input, relative to 1, into omega times that."""
    return math.prod(max(1.0, layer.activation.parameter) for layer in spec.layers if layer.activation.name == "sine")


def rounding(condition=1.0, dtype=torch.float64):
    """The relative difference that is allowed where the problem amplifies errors by `condition`."""
    return ORDERS * torch.finfo(dtype).eps * condition


def assert_agree(got, expected, condition=1.0, name="output"):
    """Assert of two tensors, sequences or dicts of tensors that nothing but rounding lies between them, one by one."""
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype and got.shape == expected.shape, name
        error, allowed = relative(got, expected), rounding(condition, expected.dtype)
        assert error <= allowed, f"{name}: relative difference {error:.1e}; expected at most {allowed:.1e}"
        return
    keys = list(expected) if isinstance(expected, dict) else range(len(expected))
    assert len(got) == len(keys), name
    for key in keys:
        assert_agree(got[key], expected[key], condition, f"{name} {key}")
