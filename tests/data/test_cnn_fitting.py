"""CNNs trained at once: each as torch's own optimizers train it alone, repeatable, from recipes in their ranges."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.networks import ACTIVATIONS, generator
from weightedit.data.cnn_fitting import (
    FRACTIONS,
    INITIALIZATIONS,
    OPTIMIZERS,
    CenteredImages,
    CNNFitOptions,
    Recipes,
    _batches,
    _kept,
    draw_recipes,
    fit_cnns,
    initial_cnns,
    measure,
)
from weightedit.errors import WeightEditError
from weightedit.network.spec import NetworkSpec

SPEC = NetworkSpec.cnn((1, 4, 3, 5), ACTIVATIONS["tanh"])


def _images(count, seed=0):
    labels = torch.randint(5, (count,), generator=generator(seed))
    images = torch.randn(count, 1, 11, 12, generator=generator(seed + 1)) + labels.reshape(-1, 1, 1, 1) / 2 - 1
    return CenteredImages(images, labels)


def _recipes(dropout=0.0):
    number = torch.tensor([0.05, 0.01, 0.005], dtype=torch.float64)
    return Recipes(
        learning_rate=number,
        l2=torch.tensor([0.0, 1e-2, 1e-3], dtype=torch.float64),
        dropout=torch.full((3,), dropout, dtype=torch.float64),
        init_std=torch.full((3,), 0.2, dtype=torch.float64),
        train_fraction=torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64),
        w_init=("he_normal", "orthogonal", "truncated_normal"),
        optimizer=("sgd", "adam", "rmsprop"),
    )


def test_every_network_is_trained_as_alone_by_torch():
    recipes, train, test = _recipes(), _images(60), _images(20, 5)
    zoo = fit_cnns(SPEC, recipes, train, test, CNNFitOptions((0, 4, 9), 8, 30), generator(3))
    source = generator(3)
    initial, batches = initial_cnns(SPEC, recipes, source), None
    batches = _batches(recipes, 60, 8, source)
    rows = []
    for _ in range(9):
        rows.append(next(batches))
        torch.randint(2**62, (), generator=source)
    assert zoo.numbers("step").tolist() == [0.0] * 3 + [4.0] * 3 + [9.0] * 3 and zoo.network.tolist() == [0, 1, 2] * 3
    made = [
        lambda p, lr: torch.optim.SGD(p, lr),
        lambda p, lr: torch.optim.Adam(p, lr, eps=1e-7),
        lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.9, eps=1e-7),
    ]
    for i, make in enumerate(made):
        params = {name: tensor[i].clone().requires_grad_() for name, tensor in initial.items()}
        optimizer = make(list(params.values()), float(recipes.learning_rate[i]))
        for step in range(9):
            chosen = rows[step][i]
            loss = functional.cross_entropy(SPEC.forward(params, train.images[chosen]), train.labels[chosen])
            decay = sum(params[layer.weight].square().sum() for layer in SPEC.layers)
            optimizer.zero_grad()
            (loss + recipes.l2[i] * decay).backward()
            optimizer.step()
        for name, tensor in params.items():
            torch.testing.assert_close(zoo.params[name][6 + i], tensor.detach(), rtol=1e-3, atol=2e-5)
        logits = SPEC.forward(params, test.images).detach()
        accuracy = float((logits.argmax(-1) == test.labels).double().mean())
        assert float(zoo.numbers("test_accuracy")[6 + i]) == pytest.approx(accuracy, abs=0.051)
        loss = float(functional.cross_entropy(logits, test.labels))
        assert float(zoo.numbers("test_loss")[6 + i]) == pytest.approx(loss, rel=1e-3)


def test_networks_learn_with_dropout_and_two_runs_are_equal():
    recipes, train, test = _recipes(0.1), _images(200), _images(50, 5)
    runs = [fit_cnns(SPEC, recipes, train, test, CNNFitOptions((0, 60), 16, 50), generator(1)) for _ in range(2)]
    losses = runs[0].numbers("train_loss").unflatten(0, (2, 3))
    assert bool((losses[1] < losses[0]).all())
    assert all(torch.equal(runs[0].params[name], runs[1].params[name]) for name in runs[0].params)


def test_what_diverges_is_left_out():
    recipes = _recipes()
    recipes = Recipes(recipes.learning_rate * torch.tensor([1e30, 1.0, 1.0]), *list(vars(recipes).values())[1:])
    relu = NetworkSpec.cnn((1, 4, 3, 5), ACTIVATIONS["relu"])
    zoo = fit_cnns(relu, recipes, _images(60), _images(20, 5), CNNFitOptions((4,), 8, 30), generator(3))
    assert zoo.network.tolist() == [1, 2]


def test_recipes_are_in_their_ranges_and_initializations_have_their_deviation():
    recipes = draw_recipes(2000, generator())
    sgd = torch.tensor([name == "sgd" for name in recipes.optimizer])
    rate = recipes.learning_rate / torch.where(sgd, 10.0, 1.0)
    for values, low, high in (
        (rate, 5e-4, 5e-2),
        (recipes.l2, 1e-8, 1e-2),
        (recipes.dropout, 0, 0.7),
        (recipes.init_std, 1e-2, 0.5),
    ):
        assert low <= float(values.min()) < low + 0.1 * (high - low) and 0.9 * high < float(values.max()) <= high
        place = values / high if low == 0 else (values / low).log() / math.log(high / low)
        for share in (0.25, 0.5, 0.75):  # within five standard errors
            assert abs(float((place < share).double().mean()) - share) < 5 * (share * (1 - share) / 2000) ** 0.5
    assert set(recipes.train_fraction.tolist()) == set(FRACTIONS)
    assert set(recipes.w_init) == set(INITIALIZATIONS) and set(recipes.optimizer) == set(OPTIMIZERS)
    spec = NetworkSpec.cnn((1, 32, 32, 10), ACTIVATIONS["relu"])
    names = Recipes(
        *(getattr(recipes, f)[:5] for f in ("learning_rate", "l2", "dropout")), torch.full((5,), 0.1), *[()] * 3
    )
    names = Recipes(
        names.learning_rate, names.l2, names.dropout, names.init_std.double(), rate[:5], INITIALIZATIONS, ()
    )
    weight = initial_cnns(spec, names, generator())["layers.1.weight"]
    expected = [math.sqrt(2 / (2 * 288)), math.sqrt(2 / 288), 1 / math.sqrt(288), 0.1, 0.1 * 0.8796]
    assert weight.flatten(1).std(1).tolist() == pytest.approx(expected, rel=0.03)
    rows = weight[2].flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-5)


def test_dropout_keeps_the_mean_and_the_rate():
    x, rates = torch.ones(3, 40, 2, 25, 25), torch.tensor([0.0, 0.25, 0.7])
    kept = _kept(x, rates, generator())
    assert (kept == 0).flatten(1).double().mean(1).tolist() == pytest.approx(rates.tolist(), abs=0.01)
    assert kept.flatten(1).mean(1).tolist() == pytest.approx([1.0] * 3, abs=0.02)
    for factors, rate in zip(kept, rates.tolist(), strict=True):
        assert factors[factors > 0].unique().tolist() == pytest.approx([1 / (1 - round(256 * rate) / 256)], rel=1e-6)


def test_dropout_is_every_networks_own_and_drawn_anew_in_every_step(monkeypatch):
    drawn, recipes = [], replace(_recipes(), dropout=torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64))
    monkeypatch.setattr("weightedit.data.cnn_fitting._kept", lambda *given: drawn.append(_kept(*given)) or drawn[-1])
    fit_cnns(SPEC, recipes, _images(60), _images(20, 5), CNNFitOptions((3,), 64, 30), generator(3))
    dropped = [(kept == 0).flatten(1) for kept in drawn]
    convolutions = len(dropped) // 3
    assert convolutions == sum(layer.kernel is not None for layer in SPEC.layers)
    assert torch.cat(dropped, 1).double().mean(1).tolist() == pytest.approx([0.0, 0.25, 0.5], abs=0.02)
    for layer in range(convolutions):
        steps = dropped[layer::convolutions]
        assert not any(torch.equal(steps[i][1], steps[j][1]) for i in range(3) for j in range(i))


def test_batches_come_from_each_networks_own_part():
    batches = _batches(_recipes(), 50, 64, generator())
    seen = [set() for _ in range(3)]
    for _ in range(30):
        for own, rows in zip(seen, next(batches), strict=True):
            own |= set(rows.tolist())
    assert [len(own) for own in seen] == [50, 25, 5]
    assert len(next(_batches(_recipes(), 4, 64, generator()))[2].unique()) == 1  # a tenth of four images is one


def test_the_parts_are_random_and_each_networks_own():
    """Of equal fractions, for twenty networks: no two have the same tenth, and together they see all images evenly."""
    recipes = draw_recipes(20, generator())
    recipes = replace(recipes, train_fraction=torch.full((20,), 0.1, dtype=torch.float64))

    def parts(seed):
        batches = _batches(recipes, 100, 64, generator(seed))
        drawn = [next(batches) for _ in range(5)]
        assert len({tuple(rows.tolist()) for rows in torch.cat(drawn)}) == 5 * 20  # and own batches of it
        return [frozenset(own.tolist()) for own in torch.cat(drawn, 1)]

    one, again, other = parts(0), parts(0), parts(1)
    assert [len(own) for own in one] == [10] * 20 and len(set(one)) == 20
    assert len(frozenset().union(*one)) > 70  # of 100; 88 on average
    assert one == again and not set(one) & set(other)


def test_measuring_in_parts_is_measuring_at_once():
    params = initial_cnns(SPEC, _recipes(), generator())
    data = _images(1201)
    accuracy, loss = measure(SPEC, params, data)
    logits = SPEC.forward(params, data.images)
    torch.testing.assert_close(accuracy, (logits.argmax(-1) == data.labels).double().mean(1))
    expected = torch.stack([functional.cross_entropy(one, data.labels) for one in logits]).double()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [((3, 2), 8, 5), ((), 8, 5), ((-1, 3), 8, 5), ((3,), 0, 5)])
def test_bad_options_are_refused(options):
    with pytest.raises(WeightEditError, match="expected ascending checkpoints and positive sizes"):
        CNNFitOptions(*options)
