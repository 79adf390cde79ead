"""Trainings as inner problems: a stack is the networks one by one, as a plain loop trains them."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.rounding import assert_agree
from weightedit.errors import SpecError
from weightedit.metatrain import networks
from weightedit.metatrain.draws import indices, keys
from weightedit.metatrain.training_optimizee import TrainingOptimizee
from weightedit.metatrain.unroll import Unroll, start
from weightedit.metatrain.workloads import MINIATURES, Pairs, Windows, Workload, workload
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule_module import RuleModule

GENERATOR = partial(torch.Generator().manual_seed, 0)


def classes(logits, labels):
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def of_images(make):
    parts = [Pairs(torch.rand(40, 3, 8, 8, generator=GENERATOR()), torch.arange(40) % 10 + i * 0) for i in range(3)]
    return Workload(make, classes, parts[0], Pairs(-parts[1].inputs, parts[1].targets), parts[2], 6)


class TinyGPT(networks.GPT):
    def __init__(self):
        super().__init__(11, 8, 1, 2, 5)


TASKS = {
    "BatchNorm": lambda: of_images(lambda: networks.conv_net(3, 4, 6)),
    "attention": lambda: of_images(lambda: networks.ViT(3, 8, 4, 8, 1, 2)),
    "tokens": lambda: Workload(TinyGPT, classes, *[Windows(torch.arange(90) % 11, 5)] * 3, 4, guess=math.log(11)),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_stack_is_its_networks_one_by_one(name):
    """Losses and gradients, in training mode, of parameters under their own names and in their own shapes."""
    task = TASKS[name]()
    problem = TrainingOptimizee(task)
    params, about = problem.init(GENERATOR(), 2)
    named = keys(torch.tensor([3, 4]), torch.tensor([0, 7]))
    batch = problem.batch(about, named)
    grads = torch.func.grad(lambda own: problem.loss(own, batch).sum())(params)
    losses = problem.loss(params, batch)
    for i, rows in enumerate(indices(named, task.batch_size, len(task.train))):
        net = task.network().train()
        own = {wire.name: wire.restored(params[wire.name][i]).detach() for wire in problem.wiring.wires}
        net.load_state_dict(own, strict=False)
        assert own.keys() == dict(net.named_parameters()).keys()
        x, y = task.train[rows]
        loss = task.loss(net(x), y)
        loss.backward()
        assert_agree(losses[i].detach(), loss.detach(), 10)
        for wire in problem.wiring.wires:
            parameter = net.get_parameter(wire.name)
            assert_agree(wire.restored(grads[wire.name][i]), parameter.grad, 1000, wire.name)  # through normalizations


def test_starts_are_the_modules_own_and_held_out_batches_are_of_validation():
    problem = TrainingOptimizee(of_images(lambda: networks.conv_net(3, 4, 6)))
    params, _ = problem.init(GENERATOR(), 3)
    for wire in problem.wiring.wires:
        same = torch.equal(params[wire.name][0], params[wire.name][1])
        assert same == wire.name.startswith(("1.", "4.")), "gains and biases of BatchNorm start as ones and zeros"
    for held_out in (False, True):
        assert bool((problem.batch({}, torch.tensor([5]), held_out=held_out)["inputs"] <= 0).all()) == held_out


def test_a_training_on_all_examples_at_once_has_each_of_them_once():
    problem = TrainingOptimizee(workload("mini-siren"))
    batch, (x, y) = problem.batch({}, torch.tensor([5, 6])), problem.task.batch(GENERATOR())
    assert all(torch.equal(one, x) for one in batch["inputs"]) and all(torch.equal(one, y) for one in batch["targets"])


@pytest.mark.parametrize("name", TASKS)
def test_batches_and_losses_are_on_the_device_of_the_keys(name):
    """Tensors without numbers stand for a GPU's: nothing of another device meets them."""
    problem = TrainingOptimizee(TASKS[name]())
    params = {k: p.to("meta") for k, p in problem.init(GENERATOR(), 2)[0].items()}
    batch = problem.batch({}, torch.zeros(2, dtype=torch.long, device="meta"))
    assert problem.loss(params, batch).shape == (2,) and problem.loss(params, batch).is_meta


def test_scores_are_in_units_of_a_guess_and_those_of_fits_in_bels_of_it():
    of_classes = TrainingOptimizee(of_images(lambda: networks.mlp(192, 10)))
    assert torch.equal(of_classes.score(torch.tensor([of_classes.task.guess])), torch.ones(1))
    fit = TrainingOptimizee(workload("mini-siren"))
    guess = torch.tensor([fit.task.guess])
    constant = fit.task.train.targets.mean(0).expand_as(fit.task.train.targets)  # type: ignore[attr-defined]
    assert_agree(fit.task.loss(constant, fit.task.train.targets).view(1), guess)  # type: ignore[attr-defined]
    assert torch.equal(fit.score(guess), torch.zeros(1))
    assert_agree(fit.score(guess / 10), -torch.ones(1))


def test_a_rule_learns_on_them():
    problem = TrainingOptimizee(workload("mini-siren"))
    rule = MetanetRule()
    with torch.no_grad():
        _, losses = Unroll(rule, problem)(start(rule, problem, GENERATOR(), 2), 30)
    assert bool((losses[-1] < 0.5 * losses[0]).all())


def test_fresh_losses_are_those_of_an_optimizer_that_evaluates_at_its_average():
    """On a SIREN, whose parameters a rule sees times omega; every step is on all pixels."""
    problem = TrainingOptimizee(workload("mini-siren"))
    rule, (x, y) = RuleModule.from_pretrained("general"), problem.task.batch(GENERATOR())
    with torch.no_grad():
        state = start(rule, problem, GENERATOR(), 1)
        _, losses = Unroll(rule, problem, fresh=True)(state, 4)
        stacked = {name: torch.stack([w, w + 0.3]) for name, w in rule.named_parameters()}
        _, both = Unroll(rule, problem, fresh=True)(state.paired(), 4, stacked)
    net = problem._made(0)
    net.load_state_dict({wire.name: wire.restored(state.params[wire.name][0]) for wire in problem.wiring.wires})
    optimizer = LearnedOptimizer(net, rule, inputs=(x,))
    for loss in losses[:, 0]:
        optimizer.zero_grad()
        problem.task.loss(net(x), y).backward()
        optimizer.step()
        with optimizer.averaged():
            assert_agree(loss, problem.task.loss(net(x), y).detach(), 1000)  # through normalizations
    assert_agree(both[:, 0], losses[:, 0], 1000)
    assert bool((both[:, 1] != losses[:, 0]).all()), "a run goes by its own weights"


def test_buffers_are_refused():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(8, 10)
            self.register_buffer("calls", torch.zeros(1))

    with pytest.raises(SpecError, match="got a Counting with buffers calls; expected none but running statistics"):
        TrainingOptimizee(of_images(Counting))


def test_miniatures_are_small_and_known_by_name():
    for name in ("mini-siren", "mini-gpt"):  # of those that need no folder
        assert name in MINIATURES
        assert sum(p.numel() for p in workload(name).network().parameters()) < 20_000
