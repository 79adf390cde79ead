"""Axes as products of atoms: permutations that are claimed only ever become fewer."""

import pytest
import torch

from weightedit.network.axes import Axes


def test_an_axis_of_one_has_no_atoms():
    assert Axes().new(1) == ()


def test_a_view_cuts_an_axis_wherever_it_stands():
    axes = Axes()
    a, b = axes.new(12), axes.new(12)
    axes.unite(a, b)
    outer, inner = axes.reshape(a, (3, 4))
    assert axes.leaves(b) == axes.leaves(outer) + axes.leaves(inner)
    assert (axes.size(outer), axes.size(inner), axes.size(b)) == (3, 4, 12)
    axes.freeze(outer)
    assert not axes.is_frozen(b) and axes.is_frozen(outer)


def test_freezing_reaches_all_that_is_united():
    axes = Axes()
    a, b, c = axes.new(6), axes.new(6), axes.new(6)
    axes.unite(a, b)
    axes.unite(b, c)
    axes.freeze(c)
    assert axes.is_frozen(a) and axes.is_frozen(b)


@pytest.mark.parametrize(("one", "other"), [((6, 4), (4, 6)), ((2, 9), (3, 6))])
def test_products_that_do_not_fit_are_frozen(one, other):
    axes = Axes()
    a, b = ([atom for n in sizes for atom in axes.new(n)] for sizes in (one, other))
    axes.unite(a, b)
    assert axes.is_frozen(a) and axes.is_frozen(b)


@pytest.mark.parametrize("seed", range(10))
def test_a_view_and_back_is_the_same_axes(seed):
    """Whatever shapes: sizes fit, and the way back is what it was, cut further."""
    source = torch.Generator().manual_seed(seed)
    factors = torch.randint(1, 4, (5,), generator=source).tolist()

    def shape():
        found, cuts = [1], torch.randint(2, (5,), generator=source).tolist()
        for n, cut in zip(factors, cuts, strict=True):
            found = [*found, n] if cut else [*found[:-1], found[-1] * n]
        return found

    axes, start, other = Axes(), shape(), shape()
    dims = [axes.new(n) for n in start]
    there = axes.reshape([atom for axis in dims for atom in axis], other)
    back = axes.reshape([atom for axis in there for atom in axis], start)
    assert [axes.size(axis) for axis in there] == other
    assert [axes.leaves(axis) for axis in dims] == [axes.leaves(axis) for axis in back]
