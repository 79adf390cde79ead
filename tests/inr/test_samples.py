"""Samples: the shapes that they come in, what follows from their number, values anywhere, and every refusal."""

from dataclasses import replace

import pytest
import torch

import weightedit as we
from weightedit.inr.convention import SAMPLES, Convention, convert
from weightedit.inr.samples import Samples, to_plain
from weightedit.inr.siren import initial_params, places
from weightedit.inr.stack import INRStack


def stack_of(inputs: int, convention: Convention = SAMPLES) -> INRStack:
    params = initial_params(2, (inputs, 7, 6, 2), generator=torch.Generator().manual_seed(0))
    return INRStack({name: tensor.double() for name, tensor in params.items()}, convention, 3, 4)


def test_one_and_many_are_kept_alike() -> None:
    where, values = torch.rand(5, 3), torch.rand(4, 5, 2)
    one, many = Samples(where, values[0]), Samples(where, values)
    assert one.values.shape == (1, 5, 2) and (len(many), many.count, many.inputs) == (4, 5, 3)
    own = Samples(torch.rand(4, 5, 3), values)
    rows = torch.tensor([2, 0])
    assert torch.equal(own[rows].coordinates, own.coordinates[rows]) and torch.equal(many[rows].coordinates, where)
    few = own.only(torch.tensor([4, 1]))
    assert torch.equal(few.values, values[:, [4, 1]]) and torch.equal(few.coordinates, own.coordinates[:, [4, 1]])
    assert torch.equal(Samples(where, torch.zeros(5, 1)).span(), torch.ones(1))


@pytest.mark.parametrize(("inputs", "shape"), [(1, (12,)), (2, (3, 4)), (3, (3, 3, 4))])
def test_values_are_had_anywhere_in_the_ranges_of_the_convention(inputs: int, shape: tuple[int, ...]) -> None:
    stack = stack_of(inputs)
    grid = places(shape, stack.convention, dtype=torch.float64)
    assert stack.shape == shape and torch.equal(stack.at(), stack.at(grid))
    ranged = replace(SAMPLES, ranges=tuple((0.0, 2.0 + axis) for axis in range(inputs)), omega=(7.0, 30.0))
    moved = replace(stack, params=convert(stack.params, SAMPLES, ranged), convention=ranged)
    ends = torch.tensor(ranged.ranges_of(inputs), dtype=torch.float64)
    where = torch.lerp(ends[:, 0], ends[:, 1], torch.rand(2, 9, inputs, dtype=torch.float64))
    torch.testing.assert_close(moved.at(where), stack.at(to_plain(where, ranged)))


def test_what_follows_from_the_number_of_samples() -> None:
    sound, cloud = (Samples(torch.rand(8000, inputs), torch.rand(8000, 1)) for inputs in (1, 3))
    assert sound.convention().omega == (1000.0, 30.0) and cloud.convention().omega == (10.0, 30.0)
    assert sound.widths() == (1, 64, 64, 64, 1) and sound.shape() == (1, 8000) and cloud.shape() == (20, 20)
    long = Samples(torch.zeros(1, 1).expand(2**20 + 1, 1), torch.zeros(1, 1).expand(2**20 + 1, 1))
    assert long.shape() == (2, 2**19 + 1)


SHAPES = [
    ((5, 2), (4, 1)),
    ((5, 4), (5, 1)),
    ((5,), (5, 1)),
    ((0, 2), (0, 1)),
    ((3, 5, 2), (5, 1)),
    ((3, 5, 2), (2, 5, 1)),
]


@pytest.mark.parametrize(("where", "values"), SHAPES)
def test_shapes_that_do_not_fit_are_refused(where: tuple[int, ...], values: tuple[int, ...]) -> None:
    with pytest.raises(we.ParamsError, match=r"expected \(samples, inputs\) and \(samples, channels\), or"):
        Samples(torch.rand(where), torch.rand(values))


def test_other_refusals() -> None:
    where, values = torch.rand(5, 2), torch.rand(5, 1)
    with pytest.raises(we.ParamsError, match="coordinates came as a list; expected a floating-point tensor"):
        Samples([1.0], values)  # pyright: ignore[reportArgumentType]
    with pytest.raises(we.ParamsError, match="values came as a tensor of torch.int64; expected a floating-point"):
        Samples(where, values.long())
    with pytest.raises(we.ParamsError, match="values with NaN or infinite numbers"):
        Samples(where, values / 0)
    with pytest.raises(we.ParamsError, match="coordinates from 0 to 3 and .*, -1 to 1 and -1 to 1: rescale them"):
        Samples(torch.tensor([[0.0, 0.5], [3.0, 0.5]]), values[:2]).check_range(SAMPLES)
    with pytest.raises(we.WeightEditError, match="convention bounded=1: expected True for images"):
        Convention(bounded=1)  # pyright: ignore[reportArgumentType]
