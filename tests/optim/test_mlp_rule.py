"""The per-parameter rules: as a slow twin, alone, stacked and vmapped; differentiable; no more than they claim."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from tests.networks import ACTIVATIONS, generator, random_params
from tests.trajectories import RELU, function_distance, regression, train
from weightedit.delta import apply_delta
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.checkpoint import save_checkpoint
from weightedit.network.spec import NetworkSpec
from weightedit.network.symmetry import act, random_element
from weightedit.network.wiring import NeuronSet, Wire, Wiring
from weightedit.optim import mlp_rule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig

SPEC = NetworkSpec.mlp((3, 6, 5, 2), [ACTIVATIONS["relu"], ACTIVATIONS["tanh"]])
WIRING = Wiring.of(SPEC)
CONFIGS = {"per_parameter": MLPRuleConfig.per_parameter(0.01), "small_fc": MLPRuleConfig.small_fc(0.01)}
over_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def _problem(count=3):
    return random_params(SPEC, count=count), random_params(SPEC, count=count, seed=1)


def _train(rule, params, center, steps=3):
    return train(rule, WIRING, params, lambda now: {k: 2 * (p - center[k]) for k, p in now.items()}, steps)


def _close(got, expected, tolerance=1e-11):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=tolerance, atol=tolerance)


def _rule(config, seed=0):
    return MLPRule(config, generator(seed)).double()


def test_sizes():
    lean, small = MLPRule(), MLPRule(MLPRuleConfig.small_fc())
    assert sum(p.numel() for p in lean.parameters()) == 194
    assert MLPRuleConfig.small_fc().sizes == (39, 32, 32, 2)
    assert [tuple(layer.weight.shape) for layer in small.layers] == [(32, 39), (32, 32), (2, 32)]
    wiring = Wiring.of(NetworkSpec.mlp((64, 32, 10), ACTIVATIONS["relu"]))
    params = {wire.name: torch.zeros(wire.shape) for wire in wiring.wires}
    state = lean.init(wiring, params)
    floats = sum(t.numel() for entry in state.values() for t in entry.values())
    assert floats / sum(p.numel() for p in params.values()) < 3.2
    assert {tuple(entry["momenta"].shape) for entry in state.values()} == {(2, *wire.shape) for wire in wiring.wires}


def _twin(rule, kind, grads, weight):
    """The delta after the gradients `grads` of one matrix [rows, columns] (a bias: one column), feature by feature."""
    config, ones = rule.config, torch.ones_like(weight)
    momenta, second = [0 * weight for _ in config.momenta], 0 * weight
    rows, columns = ([0 * ones[:, :1] for _ in config.factors], [0 * ones[:1] for _ in config.factors])
    for g in grads:
        momenta = [b * m + (1 - b) * g for b, m in zip(config.momenta, momenta, strict=True)]
        second = config.second * second + (1 - config.second) * g**2
        rows = [b * r + (1 - b) * (g**2).mean(1, True) for b, r in zip(config.factors, rows, strict=True)]
        columns = [b * c + (1 - b) * (g**2).mean(0, True) for b, c in zip(config.factors, columns, strict=True)]
    factors = [(r * c / r.mean()) ** -0.5 for r, c in zip(rows, columns, strict=True)]
    r, c, v = [x * ones for x in rows], [x * ones for x in columns], second
    features = [g, weight, *momenta, *(m / v.sqrt() for m in momenta)]
    if config.features == "full":
        features += [
            v.sqrt(),
            v**-0.5,
            *(g * f for f in factors),
            *(m * f for m, f in zip(momenta, factors, strict=True)),
        ]
        features += [*(x.sqrt() for x in r + c), *(x**-0.5 for x in r + c)]
    else:
        features += [g * factors[0], momenta[0] * factors[0], r[0] ** -0.5, c[0] ** -0.5]
    features = [f / (f**2).mean().sqrt() for f in features]
    times = [torch.tanh(torch.tensor(len(grads) / tau - 1)).double() * ones for tau in config.times]
    stages = [stage for layer in rule.layers for stage in (layer, nn.ReLU())][:-1]
    out = nn.Sequential(*stages)(torch.stack([*features, *times], -1))
    correction = out[..., 0] * ((1e-3 * out[..., 1]).exp() if out.shape[-1] == 2 else 1)
    t, beta = len(grads), config.momenta[0]
    adam = momenta[0] / (1 - beta**t) / (v / (1 - config.second**t)).sqrt()
    if config.output == "normalized" and kind == "weight":
        direction = adam / (adam**2).mean().sqrt() + config.correction * correction
        direction = direction / (direction**2).mean().sqrt()
    else:
        direction = adam + config.correction * correction
    return -rule.log_step_size.exp() * direction


@over_configs
def test_agrees_with_a_slow_twin(config, monkeypatch):
    """To 1e-6 for the damping and for decays in float32."""
    rule, source = _rule(config), generator(4)
    wires = (Wire("kernel", (6, 4, 3, 1), "weight", 1, 0, 4), Wire("bias", (6,), "bias", 1))
    wiring = Wiring((NeuronSet("inputs", 4), NeuronSet("outputs", 6)), wires)
    params = {w.name: torch.randn(w.shape, generator=source, dtype=torch.float64) for w in wires}
    state, seen = rule.init(wiring, params), []
    for _ in range(3):
        seen.append({w.name: torch.randn(w.shape, generator=source, dtype=torch.float64) for w in wires})
        delta, state = rule.update(wiring, seen[-1], state, params)
    for wire in wires:
        grads = [wire.matrix(grads[wire.name]).flatten(1) for grads in seen]
        expected = _twin(rule, wire.kind, grads, wire.matrix(params[wire.name]).flatten(1)).reshape(wire.shape)
        torch.testing.assert_close(delta[wire.name], expected, rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(mlp_rule, "_PIECES", {"cpu": 20})  # two rows at a time
    pieces = train(rule, wiring, params, lambda _: seen[0], 2)[0]
    monkeypatch.setattr(mlp_rule, "_PIECES", {"cpu": 10**6})
    _close(pieces, train(rule, wiring, params, lambda _: seen[0], 2)[0], 1e-13)


@over_configs
def test_a_stack_is_its_networks_and_vmap(config):
    rule, (params, center) = _rule(config), _problem()
    together, state = _train(rule, params, center)
    _close(vmap(lambda p, c: _train(rule, p, c)[0])(params, center), together)
    for i in range(3):
        alone, own = _train(rule, *({k: p[i] for k, p in q.items()} for q in (params, center)))
        _close({k: p[i] for k, p in together.items()}, alone)
        for name in own:
            _close({k: t[i] for k, t in state[name].items()}, own[name])


@over_configs
def test_what_is_compiled_is_the_same(config, monkeypatch):
    """The code that a compiler is given, both for large tensors and for small ones, run without one."""
    rule, (params, center) = _rule(config), _problem()
    expected = _train(rule, params, center)[0]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for fused_from in (1, 10**9):
        monkeypatch.setattr(mlp_rule, "FROM", fused_from)
        monkeypatch.setattr(mlp_rule, "_UNITWISE_TO", 10**9)
        _close(_train(rule, params, center)[0], expected)
        _close(vmap(lambda p, c: _train(rule, p, c)[0])(params, center), expected)


@over_configs
def test_large_tensors_pass_by_pass_are_the_same(config, monkeypatch):
    """What is compiled once for all shapes, run without a compiler: deltas and all state, over three steps."""
    rule, params, center, seen = _rule(config), random_params(SPEC), random_params(SPEC, seed=1), []
    monkeypatch.setattr("weightedit.optim.unitwise._ALONE", 15)
    monkeypatch.setattr("weightedit.optim.mlp_rule._LINE", 12)
    passes = mlp_rule._Passes(rule._gather, rule._energies, lambda *given: seen.append(given) or rule._combined(*given))
    state = other = rule.init(WIRING, params)
    with torch.no_grad():
        for step in range(3):
            grads = {k: p - center[k] for k, p in params.items()}
            delta, state = rule(WIRING, grads, state, params)
            passed, other = rule.step(WIRING, (grads, other, params), None, passes)
            assert len(seen) == 3 * (step + 1)  # one tensor in two pieces
            _close(passed, delta)
            for k in params:
                _close(other[k], state[k])
            params = apply_delta(params, delta)


@pytest.mark.slow
def test_compiled():
    """By torch.compile, which takes half a minute and a C++ compiler; no gradients of the rule.

    The per-parameter rule is compiled in test_optimizer.py.
    """
    rule, (params, center) = MLPRule(CONFIGS["small_fc"]), _problem()
    params, center = ({k: p.float() for k, p in tensors.items()} for tensors in (params, center))
    grads, state = {k: p - center[k] for k, p in params.items()}, rule.init(WIRING, params)
    with torch.no_grad():
        expected, got = (step(WIRING, grads, state, params)[0] for step in (rule, torch.compile(rule, dynamic=False)))
    _close(got, expected, 1e-4)


@over_configs
def test_one_set_of_weights_per_network(config):
    rules, (params, center) = [_rule(config, seed) for seed in range(3)], _problem()
    weights = {
        k: torch.stack([dict(rule.named_parameters())[k] for rule in rules]) for k in dict(rules[0].named_parameters())
    }
    grads = {k: p - center[k] for k, p in params.items()}
    state = rules[0].init(WIRING, params)

    def step(w, g, s, p):
        return functional_call(rules[0], w, (WIRING, g, s, p))

    delta, _ = vmap(step)(weights, grads, state, params)
    for i, rule in enumerate(rules):
        own = [{k: p[i] for k, p in q.items()} for q in (grads, params)]
        expected, _ = rule(WIRING, own[0], rule.init(WIRING, own[1]), own[1])
        _close({k: d[i] for k, d in delta.items()}, expected)


@over_configs
def test_pure_and_deterministic(config):
    rule, (params, center) = _rule(config), _problem()
    params, state = _train(rule, params, center, 1)
    inputs = [params, {k: p - center[k] for k, p in params.items()}, *state.values()]
    copies = [{k: t.clone() for k, t in tensors.items()} for tensors in inputs]
    one, other = (rule.update(WIRING, inputs[1], state, params)[0] for _ in range(2))
    assert all(torch.equal(one[k], other[k]) for k in one)
    for tensors, copy in zip(inputs, copies, strict=True):
        assert all(torch.equal(tensors[k], copy[k]) for k in copy)
    assert rule.update(WIRING, {}, {}, {}) == ({}, {})


@over_configs
def test_equivariant_to_permutations(config):
    rule, params = _rule(config), random_params(SPEC)
    center = random_params(SPEC, seed=1)
    for seed in range(3):
        element = random_element(SPEC, generator(seed), symmetry="permutation")
        moved = [act(element, SPEC, p) for p in (params, center)]
        ends = [_train(rule, *start)[0] for start in ((params, center), moved)]
        _close(ends[1], act(element, SPEC, ends[0]), 1e-10)


@over_configs
def test_drifts_under_rescaling(config):
    assert function_distance(MLPRule(replace(config, step_size=0.003)).double(), "permutation") < 1e-9
    assert function_distance(MLPRule(replace(config, step_size=0.003)).double(), "scale") > 0.1


@over_configs
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_starts_as_a_working_optimizer(config, seed):
    rule, params, source = MLPRule(config, generator(seed)), random_params(RELU, dtype=torch.float32), generator(6)

    def gradient(now):
        leaves = {k: p.detach().requires_grad_() for k, p in now.items()}
        loss = regression(RELU, source, leaves, 64)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    after = train(rule, Wiring.of(RELU), params, gradient, 50)[0]
    before, after = (float(regression(RELU, generator(7), p, 500).detach()) for p in (params, after))
    assert after < 0.5 * before


@over_configs
def test_meta_gradient_through_five_steps(config):
    """Against finite differences, along random directions of the rule's weights and of the first parameters."""
    rule, (params, center) = _rule(config), _problem(count=2)
    weights = {k: w.detach() for k, w in rule.named_parameters()}

    def loss(w, p):
        state, total = rule.init(WIRING, p), 0.0
        for _ in range(5):
            delta, state = functional_call(rule, w, (WIRING, {k: 2 * (x - center[k]) for k, x in p.items()}, state, p))
            p = apply_delta(p, delta)
            total = total + sum((x - center[k]).square().sum() for k, x in p.items())
        return total

    found = torch.func.grad(loss, argnums=(0, 1))(weights, params)
    for number, given in enumerate((weights, params)):
        for seed in range(2):
            source = generator(seed)
            way = {k: torch.randn(t.shape, generator=source, dtype=t.dtype) for k, t in given.items()}
            ends = []
            for h in (1e-6, -1e-6):
                moved = [weights, params]
                moved[number] = {k: t + h * way[k] for k, t in given.items()}
                ends.append(loss(*moved))
            along = sum((found[number][k] * way[k]).sum() for k in given)
            torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@over_configs
def test_zero_gradients_give_finite_steps_and_meta_gradients(config):
    rule, (params, _) = _rule(config), _problem()
    params = {k: 0 * p if k.endswith("bias") else p for k, p in params.items()}
    grads = {k: torch.zeros_like(p).requires_grad_() for k, p in params.items()}
    state, total = rule.init(WIRING, params), torch.zeros((), dtype=torch.float64)
    for _ in range(2):
        delta, state = rule.update(WIRING, grads, state, params)
        total = total + sum(d.sum() for d in delta.values())
    found = torch.autograd.grad(total, [*grads.values(), *rule.parameters()])
    assert bool(total.isfinite()) and all(bool(f.isfinite().all()) for f in found)


def test_half_precision_has_float32_state():
    rule, params = MLPRule(), {k: p.bfloat16() for k, p in _problem()[0].items()}
    delta, state = rule.update(WIRING, params, rule.init(WIRING, params), params)
    assert {d.dtype for d in delta.values()} == {torch.bfloat16}
    assert {t.dtype for entry in state.values() for t in entry.values()} == {torch.float32}


@over_configs
def test_saved_and_loaded(config, tmp_path):
    rule, (params, center) = MLPRule(config, generator(3)), _problem()
    rule.save_pretrained(tmp_path / "rule", "A card.", {"steps": 3})
    again = MLPRule.from_pretrained(tmp_path / "rule")
    assert again.config == config and not again.training
    one, other = (_train(r, params, center)[0] for r in (rule, again))
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"kind": "editor", "rule": {}}, "of kind 'editor'; expected one of kind mlp-rule"),
        ({"kind": "mlp-rule", "rule": {"depth": 3}}, "unknown key 'depth'"),
        ({"kind": "mlp-rule", "rule": {"momenta": [2.0]}}, "decays inside"),
        ({"kind": "mlp-rule", "rule": {"hidden": [4]}}, "do not fit MLPRule"),
    ],
)
def test_forged_files(facts, message, tmp_path):
    save_checkpoint(tmp_path / "rule", MLPRule().state_dict(), facts, "A card.")
    with pytest.raises(FileFormatError, match=f"(no per-parameter update rule|holds a checkpoint).*{message}"):
        MLPRule.from_pretrained(tmp_path / "rule")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"features": "some"}, "features in"),
        ({"output": "linear"}, "an output in"),
        ({"second": 1.0}, "decays inside"),
        ({"factors": ()}, "at least one of each"),
        ({"features": "full"}, "as many factors as momenta"),
        ({"hidden": ()}, "at least one hidden layer"),
        ({"step_size": 0.0}, "positive widths, times and step size"),
        ({"correction": -1.0}, "a correction that is not negative"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(WeightEditError, match=message):
        MLPRuleConfig(**values)


@over_configs
def test_dtypes_and_lengths_may_differ_from_tensor_to_tensor(config):
    """Each tensor gets what it gets alone, in its own dtype: biases of two lengths, and a weight in another dtype."""
    rule, params, grads = _rule(config), random_params(SPEC), random_params(SPEC, seed=1)
    params["layers.1.weight"], grads["layers.1.weight"] = (p["layers.1.weight"].float() for p in (params, grads))
    delta, state = rule.update(WIRING, grads, rule.init(WIRING, params), params)
    for k in params:
        one, g = {k: params[k]}, {k: grads[k]}
        alone, own = rule.update(WIRING, g, rule.init(WIRING, one), one)
        assert delta[k].dtype == params[k].dtype == state[k]["second"].dtype
        tolerance = 1e-11 if params[k].dtype == torch.float64 else 1e-5
        _close({k: delta[k]}, alone, tolerance)
        _close(state[k], own[k], tolerance)
