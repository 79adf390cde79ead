"""One call for a list of tensors is one operation on each, wherever it is called."""

import pytest
import torch
from torch.func import jvp, vmap

from weightedit.optim.lists import between, products, totals

A = [torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)), torch.ones(3)]
B = [torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1)), torch.arange(3.0)]
CALLS = {
    "products": (products, torch.mul),
    "totals": (totals, torch.add),
    "between": (lambda a, b: between(a, b, 0.3), lambda x, y: x.lerp(y, 0.3)),
    "between, a tensor": (lambda a, b: between(a, b, torch.tensor(0.3)), lambda x, y: x.lerp(y, torch.tensor(0.3))),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_list_is_its_tensors_one_by_one(name):
    at_once, one = CALLS[name]
    expected = [one(x, y) for x, y in zip(A, B, strict=True)]
    torch.testing.assert_close(list(at_once(A, B)), expected)
    torch.testing.assert_close(list(vmap(lambda a, b: tuple(at_once(a, b)))(A, B)), expected)
    torch.testing.assert_close(list(vmap(lambda a: tuple(at_once([a[0]], [B[0][0]])))([A[0]])), [one(A[0], B[0][0])])
    tangent = jvp(lambda x: at_once([A[0], x], B)[1], (A[1],), (A[1],))[1]
    torch.testing.assert_close(tangent, jvp(lambda x: one(x, B[1]), (A[1],), (A[1],))[1])
    assert list(at_once([], [])) == []


def test_tensors_that_do_not_fit_are_refused_as_by_one_operation():
    with pytest.raises(RuntimeError, match="must match the size"):
        products([torch.ones(2)], [torch.ones(3)])
