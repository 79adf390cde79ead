"""What every hand-designed rule must keep (a new one is one more line of CONTRACT), and what each of them is."""

import math

import pytest
import torch
from torch.func import vmap

from tests.networks import ACTIVATIONS, generator, random_params
from tests.trajectories import function_distance, train
from weightedit.errors import WeightEditError
from weightedit.network.spec import NetworkSpec
from weightedit.network.wiring import Wiring
from weightedit.optim.hand_designed import SGD, Adam, AdamW, GeometricAdam, RMSprop
from weightedit.optim.muon import Muon

SPEC = NetworkSpec.mlp((3, 6, 5, 2), [ACTIVATIONS["relu"], ACTIVATIONS["tanh"]])
WIRING = Wiring.of(SPEC)
CONTRACT = {
    "sgd": SGD(0.1),
    "momentum": SGD(0.1, 0.9),
    "nesterov": SGD(0.1, 0.9, nesterov=True),
    "adam": Adam(0.1),
    "adamw": AdamW(0.1),
    "rmsprop": RMSprop(0.01, momentum=0.5),
    "muon": Muon(0.02, precision="parameters"),
    "geometric adam": GeometricAdam(0.1),
    "geometric adam, permutations": GeometricAdam(0.1, symmetry="permutation"),
}
over_rules = pytest.mark.parametrize("rule", CONTRACT.values(), ids=CONTRACT.keys())


def _problem(count=3, dtype=torch.float64):
    """Stacked parameters, and the center of a quadratic."""
    return random_params(SPEC, count=count, dtype=dtype), random_params(SPEC, count=count, dtype=dtype, seed=1)


def _gradient(params, center):
    return {name: 2 * (p - center[name]) for name, p in params.items()}


def _train(rule, params, center, steps=4):
    return train(rule, WIRING, params, lambda now: _gradient(now, center), steps)


def _close(got, expected, tolerance=1e-12):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=tolerance, atol=tolerance)


@over_rules
def test_a_step_descends(rule):
    params, center = _problem()
    before, after = (
        sum(float((p - center[k]).square().sum()) for k, p in q.items())
        for q in (params, _train(rule, params, center, 20)[0])
    )
    assert after < 0.97 * before


@over_rules
def test_a_stack_is_its_networks(rule):
    params, center = _problem()
    together, state = _train(rule, params, center)
    for i in range(3):
        alone, own = _train(rule, *({k: p[i] for k, p in q.items()} for q in (params, center)))
        _close({k: p[i] for k, p in together.items()}, alone)
        _close({k: s["step"][i] for k, s in state.items()}, {k: s["step"] for k, s in own.items()})


@over_rules
def test_vmap_is_the_stack(rule):
    params, center = _problem()
    _close(vmap(lambda p, c: _train(rule, p, c)[0])(params, center), _train(rule, params, center)[0])


@over_rules
def test_pure_and_deterministic(rule):
    params, center = _problem()
    params, state = _train(rule, params, center, 1)
    inputs = [params, _gradient(params, center), *state.values()]
    copies = [{k: t.clone() for k, t in tensors.items()} for tensors in inputs]
    first, second = (rule.update(WIRING, inputs[1], state, params)[0] for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name])
        assert first[name].shape == params[name].shape
    for tensors, copy in zip(inputs, copies, strict=True):
        assert all(torch.equal(tensors[k], copy[k]) for k in copy)


@over_rules
def test_meta_gradients_are_finite_at_zero_gradients(rule):
    params, _ = _problem()
    params["layers.0.weight"][:, 1] = 0  # and a neuron into which nothing leads
    grads = {k: torch.zeros_like(p).requires_grad_() for k, p in params.items()}
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    state, total = rule.init(WIRING, params), torch.zeros((), dtype=torch.float64)
    for _ in range(2):
        delta, state = rule.update(WIRING, grads, state, leaves)
        total = total + sum(d.sum() for d in delta.values())
    found = torch.autograd.grad(total, [*grads.values(), *leaves.values()], allow_unused=True)
    assert all(bool(f.isfinite().all()) for f in found if f is not None)


@over_rules
def test_meta_gradients_are_finite_differences(rule):
    params, center = _problem(count=1)

    def outcome(start):
        return sum(p.sin().sum() for p in _train(rule, start, center, 3)[0].values())

    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    found = torch.autograd.grad(outcome(leaves), list(leaves.values()))
    source = generator(5)
    way = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
    ends = [outcome({k: p + h * way[k] for k, p in params.items()}) for h in (1e-5, -1e-5)]
    along = sum((f * way[k]).sum() for f, k in zip(found, way, strict=True))
    torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


@over_rules
def test_float32_stays_float32(rule):
    params, center = _problem(dtype=torch.float32)
    params, state = _train(rule, params, center, 2)
    assert {t.dtype for tensors in (params, *state.values()) for t in tensors.values()} == {torch.float32}


TORCHS = {
    "sgd": (SGD(0.01), torch.optim.SGD, {"lr": 0.01}),
    "momentum": (SGD(0.01, 0.9), torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "nesterov": (SGD(0.01, 0.9, True), torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adam": (Adam(0.1, (0.8, 0.95)), torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.95)}),
    "adamw": (AdamW(0.1, weight_decay=0.3), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
    "rmsprop": (RMSprop(0.01, 0.9, 1e-6), torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-6}),
    "rmsprop momentum": (RMSprop(0.01, momentum=0.7), torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.7}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rule, theirs, numbers", TORCHS.values(), ids=TORCHS.keys())
def test_ten_steps_are_torchs(rule, theirs, numbers, dtype):
    params, center = _problem(dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    _close(_train(rule, params, center, 10)[0], _torchs(theirs, numbers, params, center), tolerance)


def _torchs(optimizer, numbers, params, center, schedule=None):
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    optimizer = optimizer(leaves.values(), **numbers)
    schedule = schedule and schedule(optimizer)
    for _ in range(10):
        for k, leaf in leaves.items():
            leaf.grad = 2 * (leaf.detach() - center[k])
        optimizer.step()
        if schedule:
            schedule.step()
    return {k: leaf.detach() for k, leaf in leaves.items()}


def test_adams_horizon_is_torchs_cosine():
    params, center = _problem()
    expected = _torchs(
        torch.optim.Adam, {"lr": 0.1}, params, center, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10)
    )
    _close(_train(Adam(0.1, horizon=10), params, center, 10)[0], expected)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon with torch 2.9")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_muon_and_adamw(dtype, nesterov):
    params, center = ({k: p[0] for k, p in q.items()} for q in _problem(dtype=dtype))
    rule = Muon(0.02, 0.9, nesterov, 0.3, others=AdamW(0.05, weight_decay=0.1))
    got = _train(rule, params, center, 10)[0]
    for kind, theirs, numbers in (
        ("weight", torch.optim.Muon, {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.3}),
        ("bias", torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    ):
        part = {k: p for k, p in params.items() if k.endswith(kind)}
        expected = _torchs(theirs, numbers, part, center)
        _close({k: got[k] for k in part}, expected, 1e-12 if dtype == torch.float64 else 2e-6)


def test_muon_equalizes_singular_values():
    params, center = _problem(count=1)
    for precision, tolerance in (("parameters", 1e-9), ("bfloat16", 0.05)):
        rule = Muon(1.0, weight_decay=0.0, precision=precision)
        delta, _ = rule.update(WIRING, _gradient(params, center), rule.init(WIRING, params), params)
        for i in range(3):
            values = torch.linalg.svdvals(delta[f"layers.{i}.weight"])
            rows, columns = delta[f"layers.{i}.weight"].shape[-2:]
            values = values / math.sqrt(max(1, rows / columns))
            assert 0.3 - tolerance < float(values.min()) and float(values.max()) < 1.3 + tolerance


def test_geometric_adam_keeps_rescaled_copies_together_and_adam_does_not():
    assert function_distance(GeometricAdam(0.01)) < 1e-9
    assert function_distance(Adam(0.01)) > 0.1
    assert function_distance(GeometricAdam(0.01, symmetry="permutation")) > 0.1


def test_geometric_adam_keeps_signs_and_permutations():
    spec = NetworkSpec.mlp((4, 9, 7, 3), [ACTIVATIONS["tanh"], ACTIVATIONS["relu"]])
    assert function_distance(GeometricAdam(0.01), "full", spec) < 1e-9
    assert function_distance(GeometricAdam(0.01, symmetry="sign"), "sign", spec) < 1e-9
    assert function_distance(GeometricAdam(0.01), "full", NetworkSpec.siren((4, 9, 7, 3), omega=2.0)) < 1e-9


RANGES = [
    (Adam, {"learning_rate": 0.0}, "positive learning rate"),
    (Adam, {"betas": (1.0, 0.9)}, r"betas in \[0, 1\)"),
    (Adam, {"epsilon": -1.0}, "positive learning rate"),
    (AdamW, {"weight_decay": -1.0}, "weight decay that is not negative"),
    (AdamW, {"learning_rate": -1.0}, "positive learning rate"),
    (SGD, {"learning_rate": 0.0}, "positive learning rate, a momentum"),
    (SGD, {"momentum": 1.0}, r"a momentum in \[0, 1\)"),
    (SGD, {"nesterov": True}, "a positive one where nesterov is asked for"),
    (RMSprop, {"alpha": 1.0}, r"alpha and momentum in \[0, 1\)"),
    (RMSprop, {"epsilon": -1.0}, "an epsilon that is not negative"),
    (Muon, {"iterations": 0}, "at least one iteration"),
    (Muon, {"precision": "float8"}, "a precision among bfloat16, parameters"),
    (GeometricAdam, {"betas": (0.9, 1.0)}, r"betas in \[0, 1\)"),
    (GeometricAdam, {"symmetry": "rotation"}, "a symmetry among full, permutation, sign, scale"),
]


@pytest.mark.parametrize("kind, numbers, message", RANGES)
def test_numbers_out_of_range(kind, numbers, message):
    with pytest.raises(WeightEditError, match=message):
        kind(**numbers)
