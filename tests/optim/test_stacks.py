"""A step over stacks of tensors is the step over one tensor after another; stacks and lines hold what went in."""

import math

import pytest
import torch

from tests.modules import CNN, GPT, ResNet, ViT
from tests.networks import SPECS, generator, random_params
from tests.optim.test_metanet_rule import LEVELING, random_rule
from tests.per_tensor_twin import twin_step
from tests.rounding import assert_agree
from weightedit.delta import apply_delta
from weightedit.network.reading import wiring_of
from weightedit.network.wiring import Wiring
from weightedit.optim.gauge import growth, neuron_scales
from weightedit.optim.gauge_lines import Gauge
from weightedit.optim.pieces import Cut
from weightedit.optim.stacks import plan_of

NETS = {"CNN": lambda: CNN((3, 4, 5, 6)), "ResNet": lambda: ResNet((4, 6)), "ViT": ViT, "GPT": GPT}


def network(name):
    """A wiring and float64 parameters."""
    if name in SPECS:
        return Wiring.of(SPECS[name]), random_params(SPECS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[name]().double()
    wiring = wiring_of(net)
    return wiring, {k: wiring.by_name[k].arranged(p.detach()) for k, p in net.named_parameters()}


def random_like(params, source):
    return {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixing": False, "momenta": (0.5, 0.8, 0.95)},
        {"leveling": 5, "loss": True, "room": 1.001, "warm": 2},
        {"coherence": True, "loss": True, "warm": 0},
        {"symmetry": "permutation", "averaging": False, "memory": 0.0, "room": None, "warm": 0},
    ],
    ids=["default", "momenta", "loss", "coherence", "permutation"],
)
@pytest.mark.parametrize("name", [*NETS, "relu", "sine", "mixed"])
def test_agrees_with_one_tensor_after_another(name, options):
    """Deltas and all of the state over three steps, to rounding as leveling and the roots amplify it."""
    (wiring, params), rule, source = network(name), random_rule(**options), generator(2)
    state = other = rule.init(wiring, params)
    with torch.no_grad():
        for loss in (1.3, 0.4, None):
            grads, loss = random_like(params, source), None if loss is None else torch.tensor(loss).double()
            for slope in grads.values():
                slope[: slope.dim() % 2] *= 1e-15  # of biases, what is rounding alone
            expected, other = twin_step(rule, wiring, grads, other, params, loss)
            delta, state = rule(wiring, grads, state, params, loss=loss)
            assert_agree(delta, expected, LEVELING)
            for k in params:
                assert_agree(
                    {x: t.double() for x, t in state[k].items()},
                    {x: t.double() for x, t in other[k].items()},
                    LEVELING,
                )
            params = apply_delta(params, expected)


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("name", [*NETS, "mixed"])
def test_stacks_give_back_what_they_join(name, lead):
    wiring, params = network(name)
    plan, source = plan_of(wiring, params, next(iter(params.values()))), generator(0)
    assert sorted(plan.names) == sorted(params)
    for stack in plan.stacks:
        for inner in ((), (3,)):
            tensors = [torch.randn(*lead, *inner, *wire.shape, generator=source) for wire in stack.wires]
            joined = stack.join(tensors, len(lead))
            assert joined.shape == (*lead, len(stack), *inner, stack.rows, stack.columns)
            back = stack.parts(joined, len(lead))
            assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))
            lines = stack.lines(tensors, len(lead))
            assert lines.shape == (*lead, len(stack), math.prod(inner), stack.rows * stack.columns)
            back = stack.tensors(lines, len(lead), *inner)
            assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))


@pytest.mark.parametrize("name", [*NETS, "mixed"])
def test_lines_lead_to_rows_columns_and_neurons(name):
    """Each against a loop over the wires, on numbers that tell every row and neuron apart."""
    wiring, params = network(name)
    plan = plan_of(wiring, params, next(iter(params.values())))
    sizes = [neurons.size for neurons in wiring.sets]
    neurons = torch.arange(sum(sizes) + 1.0)
    of_set = neurons[:-1].split(sizes)
    rows = torch.cat([of_set[wire.target] for wire in plan.wires])
    assert torch.equal(neurons[plan.target_of_row], rows)
    columns = [
        of_set[wire.source].repeat_interleave(wire.view[2]) if wire.source is not None else neurons[-1:]
        for wire in plan.wires
    ]
    assert torch.equal(neurons[plan.source_of_column], torch.cat(columns))
    means = torch.stack([of_set[wire.target].mean() for wire in plan.wires])
    torch.testing.assert_close(plan.rows_of_tensor.mean(rows), means)
    expected = torch.zeros(len(wiring.sets), len(plan.wires))
    for i, wire in enumerate(plan.wires):
        expected[wire.target, i] = 1
    arrived = plan.rows_of_neuron.of(torch.eye(len(plan.wires))[:, plan.tensor_of_row])
    assert torch.equal(arrived, expected[plan.set_of_neuron].T)
    again = plan_of(wiring, params, next(iter(params.values())))
    assert again is plan


@pytest.mark.parametrize("symmetry", ["full", "scale", "permutation"])
@pytest.mark.parametrize("name", [*NETS, "mixed", "relu"])
def test_the_gauge_of_a_whole_network_is_that_of_its_sets(name, symmetry):
    """Neurons that zeros lead to and weights that are zero among them; of a stack, one network, some of the tensors."""
    (wiring, params), source = network(name), generator(1)
    params = {k: torch.stack([p, torch.randn(p.shape, generator=source).double()]) for k, p in params.items()}
    params = {k: p * (torch.rand(p.shape, generator=source) > 0.5 if p.dim() > 2 else 1) for k, p in params.items()}
    for k, p in params.items():
        p[:, :2] = 0  # no weight leads to these
        if k.endswith("bias"):
            p[:, 1] = 1
    some = {k: p for i, (k, p) in enumerate(params.items()) if i % 3}
    for given in (params, {k: p[0] for k, p in params.items()}, some):
        like = next(iter(given.values()))
        plan, lead = plan_of(wiring, given, like), like.dim() - len(wiring.by_name[next(iter(given))].shape)
        gauge = Gauge(plan, symmetry)
        found = gauge.scales([stack.lines([given[k] for k in stack.names], lead) for stack in plan.stacks])
        expected = neuron_scales(wiring, given, symmetry)
        assert_agree(found, torch.cat(expected, -1))
        assert_agree(gauge.growth(found), growth(wiring, expected), len(wiring.sets))


@pytest.mark.parametrize("times", [None, 0.4, 1.0, 2.0, 2.9, 5.0, 1000.0])
@pytest.mark.parametrize("shape", [(3, 7, 2), (1, 5, 4), (4, 1, 6)])
def test_pieces_of_a_stack_are_joined_to_it(shape, times):
    """Pieces are of about equal size, rows lie along either axis, and what is one for all is all pieces'."""
    tensors, rows, columns = shape
    cut, source = Cut(shape, times), generator(0)
    x = torch.randn(2, tensors, 3, rows * columns, generator=source)
    parts = cut.of(x, -1, columns)
    assert len(parts) == len(cut) and torch.equal(cut.joined(parts), x)
    per_row = torch.randn(tensors, rows, 1, generator=source)
    assert [p.shape[0] * p.shape[1] * columns for p in cut.of(per_row, -2)] == [
        p.shape[-3] * p.shape[-1] for p in parts
    ]
    assert len(cut) == 1 if times is None else len(cut) <= max(tensors * rows, 1)
    assert all(torch.equal(part, x[:, :1, :, :1]) for part in cut.of(x[:, :1, :, :1], -1, columns))
