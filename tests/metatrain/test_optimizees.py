"""The inner problems: their losses against plain torch, reparametrization, families, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from tests.metatrain.problems import digits
from tests.networks import generator
from weightedit.errors import SpecError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import render_images
from weightedit.metatrain.draws import keys
from weightedit.metatrain.image_optimizees import (
    ClassifierOptimizee,
    LabeledImages,
    ModuleOptimizee,
    SirenOptimizee,
    conv_net,
)
from weightedit.metatrain.optimizee import Quadratic, Reparametrized, Rosenbrock, TaskFamily, clipped
from weightedit.metatrain.unroll import start, unroll
from weightedit.network.spec import Activation
from weightedit.optim.hand_designed import Adam

DATA = digits()
KEYS = keys(torch.arange(3), torch.arange(3))


def test_a_quadratic_and_rosenbrock_are_what_they_say():
    problem = Quadratic((2, 3), condition=50.0, dtype=torch.float64)
    params, task = problem.init(generator(), 200)
    assert 1 / 50 <= task["curvature"].min() < 0.03 and 0.9 < task["curvature"].max() <= 1
    assert not problem.loss({"x": task["target"]}, task).any()
    close = torch.func.grad(lambda x: problem.loss({"x": x}, task).sum())(params["x"])
    torch.testing.assert_close(close, task["curvature"] * (params["x"] - task["target"]) / 6)
    valley = Rosenbrock(3)
    point = {"x": torch.tensor([[[1.0, 1.0, 1.0]], [[-1.0, 1.0, 2.0]]])}
    assert valley.loss(point, {}).tolist() == [0.0, 104.0]
    assert valley.score(torch.tensor([0.0, valley.cap])).tolist() == [0.0, 1.0]
    assert valley.wiring.lead(valley.init(generator(), 4)[0]) == (4,)


def test_a_classifier_is_cross_entropy_of_its_network():
    problem = ClassifierOptimizee(DATA, hidden=(6, 5), activation=Activation("tanh"), batch_size=16)
    params, task = problem.init(generator(), 3)
    batch = problem.batch(task, KEYS)
    assert batch["images"].shape == (3, 16, 1, 8, 8) and batch["labels"].shape == (3, 16)
    got = problem.loss(params, batch)
    for i in range(3):
        own = {name: tensor[i] for name, tensor in params.items()}
        logits = problem.spec.forward(own, batch["images"][i].flatten(1))
        torch.testing.assert_close(got[i], nn.functional.cross_entropy(logits, batch["labels"][i]))
    assert problem.cap == 1.5 * math.log(10)
    assert problem.score(torch.tensor(problem.cap)) == pytest.approx(1.5)


@pytest.mark.parametrize(("name", "bias"), [("uniform", True), ("zero-biases", False)])
def test_classifiers_start_as_they_are_told(name, bias):
    problem = ClassifierOptimizee(DATA, hidden=(50,), init_name=name, initial_scale=2.0)
    params, _ = problem.init(generator(), 20)
    deviation = params["layers.0.weight"].std() * 64**0.5
    assert deviation == pytest.approx(2 / 3**0.5 if bias else 2.0, rel=0.02)
    assert bool(params["layers.0.bias"].any()) is bias
    assert params["layers.0.weight"].unique().numel() > 60_000


def test_any_module_can_be_an_optimizee():
    problem = ModuleOptimizee(DATA, batch_size=8, make=lambda: conv_net(1, 10, widths=(3, 4), strides=(2, 1)))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    params, task = problem.init(generator(), 3)
    assert torch.rand(1) == expected  # torch's own generator is left alone
    assert problem.wiring.lead(params) == (3,) and not torch.equal(params["0.weight"][0], params["0.weight"][1])
    batch = problem.batch(task, KEYS)
    got = problem.loss(params, batch)
    for i in range(3):
        problem.net.load_state_dict({name: tensor[i] for name, tensor in params.items()})
        torch.testing.assert_close(
            got[i], nn.functional.cross_entropy(problem.net(batch["images"][i]), batch["labels"][i])
        )
    torch.testing.assert_close(problem.init(generator(), 3)[0]["0.weight"], params["0.weight"])


def test_a_siren_is_fitted_to_the_image_of_its_run():
    convention = Convention(low=-1.0, high=1.0, offset=0.0, coordinates="ij")
    problem = SirenOptimizee((DATA.images[:7] * 255).to(torch.uint8), (9, 8), convention)
    params, task = problem.init(generator(), 3)
    image = task["values"].mT.reshape(3, 1, 8, 8)
    assert all(any(torch.equal(one, known) for known in problem.images) for one in image)
    expected = (render_images(params, convention, 8, 8) - image).square().mean((1, 2, 3))
    torch.testing.assert_close(problem.loss(params, problem.batch(task, KEYS)), expected)
    torch.testing.assert_close(problem.score(torch.tensor([1.0, 1e-3, 0.0])), torch.tensor([0.0, -3.0, -8.0]))
    _, losses = unroll(Adam(1e-3), problem, start(Adam(), problem, generator(), 3), 20)
    assert (losses[-1] < losses[0]).all() and problem.cap == 1.0


@pytest.mark.parametrize(("level", "distinct"), [("global", 1), ("tensor", 4), ("parameter", 64 * 6 + 6 + 60 + 10)])
def test_reparametrization_keeps_the_function_at_the_start(level, distinct):
    plain = ClassifierOptimizee(digits(torch.float64), hidden=(6,), batch_size=16)
    changed = Reparametrized(plain, level)
    params, task = changed.init(generator(), 3)
    factors = {name: task[f"factor of {name}"] for name in params}
    for i in range(3):
        found = torch.cat([factor[i].flatten() for factor in factors.values()])
        assert len(found.unique()) == distinct
        assert found.min() >= 0.99e-3 and found.max() <= 1.01e3
    assert factors["layers.1.bias"].shape[1:] == ((10,) if level == "parameter" else (1,))
    same, _ = plain.init(generator(), 3)
    batch = changed.batch(task, KEYS)
    torch.testing.assert_close(changed.loss(params, batch), plain.loss(same, batch))
    grads = torch.func.grad(lambda p: changed.loss(p, batch).sum())(params)
    expected = torch.func.grad(lambda p: plain.loss(p, batch).sum())(same)
    for name in params:
        torch.testing.assert_close(grads[name], factors[name] * expected[name])
    assert changed.cap == plain.cap and changed.wiring is plain.wiring
    assert changed.score(torch.ones(())) == plain.score(torch.ones(()))


def test_a_family_draws_from_its_choices_by_seed():
    def make(hidden, activation):
        return ClassifierOptimizee(DATA, hidden=hidden, activation=Activation(activation), batch_size=4)

    family = TaskFamily(
        make, {"hidden": [(4,), (5, 3)], "activation": ["relu", "tanh"], "reparametrize": [None, "tensor"]}
    )
    source, again, seen = generator(), generator(), set()
    for _ in range(40):
        problem, chosen = family.draw(source)
        assert family.draw(again)[1] == chosen
        assert isinstance(problem, Reparametrized) == (chosen["reparametrize"] == "tensor")
        inner = problem.problem if isinstance(problem, Reparametrized) else problem
        assert inner.hidden == chosen["hidden"] and inner.activation.name == chosen["activation"]
        seen.add(tuple(chosen.values()))
    assert len(seen) == 8


def test_held_out_batches_come_from_held_out_images():
    first, second = DATA.split(0.8, seed=3)
    assert len(first.labels) + len(second.labels) == len(DATA.labels) == 1797
    assert torch.equal(DATA.split(0.8, seed=3)[0].labels, first.labels)
    problem = ClassifierOptimizee(
        LabeledImages(first.images, first.labels * 0, 10), LabeledImages(second.images, second.labels * 0 + 1, 10)
    )
    assert not problem.batch({}, KEYS)["labels"].any() and problem.batch({}, KEYS, held_out=True)["labels"].all()


def test_clipping_has_a_gradient_only_inside():
    losses = torch.tensor([1.0, 5.0, torch.inf, torch.nan], requires_grad=True)
    out = clipped(losses, 4.0)
    assert out.tolist() == [1.0, 4.0, 4.0, 4.0]
    assert torch.autograd.grad(out.sum(), losses)[0].tolist() == [1.0, 0.0, 0.0, 0.0]


class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.tensor(0.0))

    def forward(self, images):
        return self.free.expand(len(images), 10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Reparametrized(Quadratic(), "layer"), WeightEditError, "level 'layer'"),
        (lambda: Reparametrized(Quadratic(), low=2.0, high=1.0), WeightEditError, "0 < low <= high"),
        (lambda: TaskFamily(Quadratic, {"condition": []}), WeightEditError, "no values for condition"),
        (lambda: LabeledImages.of(DATA.images[0], DATA.labels), WeightEditError, "n, C, H, W"),
        (lambda: DATA.split(1.0), WeightEditError, "two parts"),
        (lambda: ClassifierOptimizee(DATA, init_name="large"), WeightEditError, "initialization 'large'"),
        (lambda: SirenOptimizee(DATA.images[0]), WeightEditError, "n, C, H, W"),
        (lambda: SirenOptimizee(DATA.images, held_out=DATA.images[..., :7]), WeightEditError, "held_out .*1, 8, 7"),
        (lambda: ModuleOptimizee(DATA, make=lambda: nn.BatchNorm2d(1)), SpecError, "running_mean"),
        (lambda: ModuleOptimizee(DATA, make=Number), SpecError, "free"),
        (lambda: ModuleOptimizee(DATA, make=nn.Flatten), SpecError, "expected parameters"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
