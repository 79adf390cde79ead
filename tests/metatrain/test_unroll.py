"""Inner runs: against `higher`, one by one, interrupted, paired, clipped and compiled."""

import shutil
from contextlib import nullcontext

import higher
import pytest
import torch
from torch import nn

from tests.metatrain.problems import Bowl, LogRate, digits
from tests.networks import generator
from tests.rules import TinyRule
from weightedit.errors import ParamsError, WeightEditError
from weightedit.metatrain.draws import keys
from weightedit.metatrain.image_optimizees import (
    ClassifierOptimizee,
    LabeledImages,
    ModuleOptimizee,
    SirenOptimizee,
    conv_net,
)
from weightedit.metatrain.optimizee import Quadratic, Reparametrized
from weightedit.metatrain.unroll import InnerState, Unroll, start, unroll
from weightedit.network.spec import Activation
from weightedit.optim.hand_designed import Adam

DATA = digits(torch.float64)
TANH = ClassifierOptimizee(DATA, hidden=(5,), activation=Activation("tanh"), batch_size=8)
PROBLEMS = {
    "mlp": TANH,
    "cnn": ModuleOptimizee(DATA, batch_size=4, make=lambda: conv_net(1, 10, widths=(3, 4), strides=(2, 1))),
    "siren": SirenOptimizee(DATA.images, hidden=(6, 5)),
    "quadratic": Quadratic(dtype=torch.float64),
    "reparametrized": Reparametrized(TANH, "tensor", 0.1, 10.0),
}


class Net(nn.Module):
    """TANH's network as a module."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 5), nn.Linear(5, 10)]).double()

    def forward(self, images):
        return self.layers[1](self.layers[0](images.flatten(1)).tanh())


def stacked(rule, count):
    return {name: tensor.detach().expand(count, *tensor.shape).clone() for name, tensor in rule.named_parameters()}


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def batches(state, steps):
    for step in range(steps):
        batch = TANH.batch({}, keys(state.seed, state.step + step))
        yield batch["images"][0], batch["labels"][0]


def begun(rule, steps):
    """A run of one network with the rule's weights as leaves, its losses and their meta-gradient; and a module."""
    state, net = start(rule, TANH, generator(), 1), Net()
    net.load_state_dict({name: tensor[0] for name, tensor in state.params.items()})
    weights = {name: tensor.detach().requires_grad_() for name, tensor in rule.named_parameters()}
    _, losses = Unroll(rule, TANH)(state, steps, weights, stacked=False)
    return state, net, losses[:, 0], torch.autograd.grad(losses.mean(), list(weights.values()))


def test_gradient_descent_equals_higher():
    rule = LogRate(0.3)
    state, net, losses, (got,) = begun(rule, 6)
    log_rate = rule.log_rate.detach().requires_grad_()
    optimizer, found = torch.optim.SGD(net.parameters(), lr=1.0), []
    with higher.innerloop_ctx(net, optimizer, override={"lr": [log_rate.exp()]}) as (inner, step):
        for images, labels in batches(state, 6):
            found.append(nn.functional.cross_entropy(inner(images), labels))
            step.step(found[-1])
        (expected,) = torch.autograd.grad(torch.stack(found).mean(), log_rate)
    close(losses, torch.stack(found), 1e-10)
    close(got, expected, 1e-10)


def test_a_learned_rule_equals_higher():
    rule = TinyRule().double()
    state, net, losses, got = begun(rule, 6)
    model, found = higher.monkeypatch(net), []
    params, memory = dict(net.named_parameters()), rule.init(TANH.wiring, dict(net.named_parameters()))
    for images, labels in batches(state, 6):
        loss = nn.functional.cross_entropy(model(images, params=list(params.values())), labels)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        deltas, memory = rule(TANH.wiring, dict(zip(params, grads, strict=True)), memory, params, loss=loss)
        params = {name: tensor + deltas[name] for name, tensor in params.items()}
        found.append(loss)
    expected = torch.autograd.grad(torch.stack(found).mean(), list(rule.parameters()))
    close(losses, torch.stack(found), 1e-10)
    close(got, expected, 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_stack_is_its_networks_one_by_one(name):
    rule, problem = TinyRule().double(), PROBLEMS[name]
    state, weights = start(rule, problem, generator(), 3), stacked(rule, 3)
    for tensor in weights.values():
        tensor += 0.01 * torch.randn(tensor.shape, generator=generator(1), dtype=tensor.dtype)
    after, losses = unroll(rule, problem, state, 3, weights)
    assert losses.shape == (3, 3) and losses.isfinite().all()
    for i in range(3):

        def part(tensor, i=i):
            return tensor[i : i + 1]

        own = {name: part(tensor) for name, tensor in weights.items()}
        alone, own_losses = unroll(rule, problem, state.map(part), 3, own)
        close(own_losses, losses[:, i : i + 1], 1e-10)
        for key, tensor in alone.to_tensors().items():
            close(tensor, part(after.to_tensors()[key]), 1e-10)


@pytest.mark.parametrize("rule", [Adam(1e-2), TinyRule()], ids=["adam", "learned"])
def test_an_interrupted_run_goes_on_as_it_would_have(rule):
    problem = ClassifierOptimizee(digits(), hidden=(5,), batch_size=8)
    state = start(rule, problem, generator(), 2)
    whole, losses = unroll(rule, problem, state, 7)
    middle, first = unroll(rule, problem, state, 3)
    again = InnerState.from_tensors({name: tensor.clone() for name, tensor in middle.to_tensors().items()})
    end, second = unroll(rule, problem, again, 4)
    assert torch.equal(torch.cat([first, second]), losses)
    for name, tensor in whole.to_tensors().items():
        assert torch.equal(end.to_tensors()[name], tensor)
    assert torch.equal(end.step, torch.tensor([7, 7]))


def test_pairs_see_the_same_batches():
    rule = TinyRule()
    problem = ClassifierOptimizee(digits(), hidden=(5,), batch_size=8)
    state = start(rule, problem, generator(), 3).paired()
    _, losses = unroll(rule, problem, state, 4, stacked(rule, 6))
    assert torch.equal(losses[:, :3], losses[:, 3:]) and len(losses.unique()) == 12
    weights = stacked(rule, 6)
    weights["weights"][3:] += 0.01
    assert torch.equal(unroll(rule, problem, state, 1, weights)[1], losses[:1])  # the first step is the same start


def test_runs_are_restarted_where_a_mask_says():
    rule = Adam(1e-2)
    old, _ = unroll(rule, TANH, start(rule, TANH, generator(), 3), 2)
    fresh = start(rule, TANH, generator(1), 3)
    both = fresh.where(torch.tensor([True, False, True]), old).to_tensors()
    for name, tensor in both.items():
        assert torch.equal(tensor[1], old.to_tensors()[name][1])
        assert torch.equal(tensor[::2], fresh.to_tensors()[name][::2])


def test_losses_are_clipped_to_the_cap():
    state = start(LogRate(), Bowl(), generator(), 3)
    state.params["x"][0] = torch.nan
    state.params["x"][1] = 1e200
    _, losses = unroll(LogRate(), Bowl(), state, 2)
    assert torch.equal(losses[:, :2], torch.full((2, 2), 100.0, dtype=torch.float64))
    assert (losses[:, 2] < 100).all()


def test_fresh_losses_are_those_after_the_step_on_held_out_images():
    seen, unseen = DATA.split(0.5)
    problem = ClassifierOptimizee(seen, unseen, hidden=(5,), batch_size=8)
    rule, state = Adam(1e-2), start(Adam(), problem, generator(), 2)
    after, losses = Unroll(rule, problem, fresh=True)(state, 1)
    batch = problem.batch({}, keys(state.seed, state.step, 1), held_out=True)
    close(losses[0], problem.loss(after.params, batch))
    assert torch.equal(after.params["layers.0.weight"], unroll(rule, problem, state, 1)[0].params["layers.0.weight"])


def both_ways(rule, problem):
    """[(losses, state), meta-gradient] of four steps, plain and compiled; two calls each, so that graphs are reused."""
    state, found = start(rule, problem, generator(), 2), []
    for compiled in (False, True):
        one = Unroll(rule, problem, compile=compiled)
        weights = {name: tensor.requires_grad_() for name, tensor in stacked(rule, 2).items()}
        middle, first = one(state, 2, weights)
        after, second = one(middle, 2, weights)
        losses = torch.cat([first, second])
        found.append([(losses, after.to_tensors()), torch.autograd.grad(losses.sum(), list(weights.values()))])
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_traced_steps_equal_eager_ones_with_their_gradient(name, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: compiled.append(graph) or graph)
    plain, traced = both_ways(TinyRule().double(), PROBLEMS[name])
    assert len(compiled) == 6  # gradients and steps anew once the parameters, then the state, carry gradients
    close(traced, plain, 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_data_moves_to_where_the_runs_are(name, monkeypatch):
    """On the meta device, which refuses to be mixed with another; once, and not as a part of a traced step."""
    rule, problem, graphs = TinyRule().double(), PROBLEMS[name], []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graphs.append(graph) or graph)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device
    state = start(rule, problem, generator(), 2).map(lambda tensor: tensor.to("meta"))
    for fresh, compiled in ((False, True), (True, False)):
        after, losses = Unroll(rule.to("meta"), problem, fresh, compiled)(state, 2)
        assert {tensor.device.type for tensor in [losses, *after.to_tensors().values()]} == {"meta"}
    moved = [node for node in graphs[0].graph.nodes if "_to_copy" in str(node.target) and node.op == "call_function"]
    assert len(graphs) >= 3 and not moved


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_steps_equal_eager_ones():
    plain, compiled = both_ways(TinyRule().double(), Quadratic((2, 3), dtype=torch.float64))
    close(compiled, plain, 1e-10)


def test_refusals():
    state = start(LogRate(), Bowl(), generator(), 1)
    with pytest.raises(WeightEditError, match="0 steps"):
        unroll(LogRate(), Bowl(), state, 0)
    for rule, weights in ((LogRate(), {"rate": torch.ones(1)}), (Adam(), {"rate": torch.ones(1)})):
        with pytest.raises(WeightEditError, match="those of the rule"):
            unroll(rule, Bowl(), state, 1, weights)
    with pytest.raises(ParamsError, match="'moment'"):
        InnerState.from_tensors({**state.to_tensors(), "moment": torch.ones(1)})
    with pytest.raises(ParamsError, match=r"without \['seed'\]"):
        InnerState.from_tensors({name: tensor for name, tensor in state.to_tensors().items() if name != "seed"})
    with pytest.raises(ParamsError, match="without parameters"):
        InnerState.from_tensors({"seed": state.seed, "step": state.step})


def test_images_of_another_size_are_resized():
    images = torch.randint(256, (3, 1, 28, 28), generator=generator(), dtype=torch.uint8)
    small = LabeledImages.of(images, torch.tensor([0, 1, 1]), size=8)
    assert small.images.shape == (3, 1, 8, 8) and small.classes == 2 and small.images.max() <= 1
