import math

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from tests.modules import CNN, ResNet, ViT
from tests.network.test_read_wirings import acted
from tests.networks import SPECS, generator, random_params, relative
from tests.optim.test_leveling import growth
from tests.rounding import assert_agree
from weightedit.delta import apply_delta
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.network import symmetry
from weightedit.network.reading import wiring_of
from weightedit.network.spec import NetworkSpec
from weightedit.network.wiring import NeuronSet, Wire, Wiring
from weightedit.optim.gauge import neuron_scales
from weightedit.optim.hand_designed import SGD, Adam
from weightedit.optim.metanet_features import DEPTH, place
from weightedit.optim.metanet_passes import Passes
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.metanet_rule_config import MetanetRuleConfig
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.muon import Muon

LEVELING = growth()


def random_rule(seed=0, **config):
    """A rule whose every weight counts, in float64, with steps small enough for 100 of them."""
    rule = MetanetRule(MetanetRuleConfig(step_size=0.012, **config)).double()
    source = generator(seed)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=source, dtype=p.dtype))
    return rule


def trajectories(rule, spec, element, steps):
    """Largest relative difference of the functions of a network and of its transformed copy, trained alike."""
    wiring, source = Wiring.of(spec), generator(3)
    first = random_params(spec)
    pair = [first, symmetry.act(element, spec, first)]
    states = [rule.init(wiring, params) for params in pair]
    x = torch.randn(256, spec.widths[0], generator=source, dtype=torch.float64)
    y = torch.randint(spec.widths[-1], (256,), generator=source)

    def loss(params, rows):
        return functional.cross_entropy(spec.forward(params, x[rows]), y[rows])

    worst = 0.0
    with torch.no_grad():
        for _ in range(steps):
            rows = torch.randint(256, (32,), generator=source)
            for i, params in enumerate(pair):
                delta, states[i] = rule.update(wiring, grad(loss)(params, rows), states[i], params)
                pair[i] = apply_delta(params, delta)
            worst = max(worst, relative(spec.forward(pair[1], x), spec.forward(pair[0], x)))
    assert relative(spec.forward(pair[0], x), spec.forward(first, x)) > 0.02  # it did train
    return worst


def test_steps_do_not_grow_with_the_weights():
    """Five layers, all weights three times as large, the same gradients: the same first steps, biases' too.

    The neurons of the last layer are then 3^5 times as large by the weights, and must not be moved by so much.
    """
    spec = NetworkSpec.mlp((6, 7, 8, 8, 7, 5), "relu")
    params, grads = random_params(spec), random_params(spec, seed=1)
    wiring, rule = Wiring.of(spec), MetanetRule(MetanetRuleConfig(averaging=False)).double()
    larger = {name: p * (3 if name.endswith("weight") else 1) for name, p in params.items()}
    steps, wider = (rule.update(wiring, grads, rule.init(wiring, p), p)[0] for p in (params, larger))
    assert_agree(wider, steps, LEVELING)
    sizes = [steps[f"layers.{i}.bias"].square().mean().sqrt() for i in range(5)]
    assert max(sizes) < 3 * min(sizes)


@pytest.mark.parametrize(
    ("name", "loss", "steps"),
    [("relu", False, 25), ("leaky_relu", True, 25), ("tanh", False, 25), ("sine", True, 25), ("identity", False, 25)]
    + [("gelu", True, 25), ("mixed", False, 25), ("mixed", True, 100)],
)
def test_networks_of_one_function_stay_of_one_function(name, loss, steps):
    """From permuted, flipped, rescaled and shifted weights, on the same batches, in float64.

    A sine of omega 30 with weights of this size is chaotic: rounding grows a hundredfold a step. Here omega is 3.
    """
    spec = SPECS[name] if name != "sine" else NetworkSpec.siren((2, 5, 4, 3), 3.0)
    assert (
        trajectories(
            random_rule(loss=loss, coherence=steps < 100), spec, symmetry.random_element(spec, generator(1)), steps
        )
        < 1e-9
    )


@pytest.mark.parametrize(
    "rule", [SGD(0.5), Adam(0.01), MLPRule(MLPRuleConfig.small_fc(0.01)).double(), random_rule(symmetry="sign")]
)
def test_other_rules_drift_under_rescaling(rule):
    spec = SPECS["relu"]
    assert trajectories(rule, spec, symmetry.random_element(spec, generator(1)), 40) > 0.05


@pytest.mark.parametrize("net", [CNN((3, 4, 5, 6)), ResNet((4, 6)), ViT()], ids=["CNN", "ResNet", "ViT"])
def test_deltas_transform_as_weights_in_any_module(net):
    """Three updates with gradients that transform by the inverse: the delta of the copy is the copy of the delta."""
    wiring, rule, source = wiring_of(net.double()), random_rule(coherence=True), generator(2)
    named = {k: p.detach() for k, p in net.named_parameters() if not wiring.by_name[k].stored}
    params = {k: p + 0.1 * torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in named.items()}
    copy = acted(wiring, params)
    state, other = rule.init(wiring, params), rule.init(wiring, copy)
    with torch.no_grad():
        for _ in range(3):
            potential = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
            _, pull = torch.func.vjp(lambda p: acted(wiring, p), params)
            # gradients g' of the copy with pull(g') = g: act on g as the inverse transpose, found from the element
            moved = inverse_transpose(wiring, params, potential)
            for k, g in pull(moved)[0].items():
                assert_agree(g, potential[k])
            delta, state = rule.update(wiring, potential, state, params)
            changed, other = rule.update(wiring, moved, other, copy)
            expected = acted(wiring, delta)
            assert_agree(changed, {k: expected[k] for k in changed}, LEVELING)


def inverse_transpose(wiring, params, grads):
    """The element acts on one parameter as a permutation times factors: on gradients by the inverse factors."""
    ones = acted(wiring, {k: torch.ones_like(p) for k, p in params.items()})
    return {k: g / ones[k].square() for k, g in acted(wiring, grads).items()}


def test_a_stack_is_its_networks_one_by_one_and_so_is_vmap():
    spec = SPECS["relu"]
    wiring, rule = Wiring.of(spec), random_rule(coherence=True)
    params, grads = random_params(spec, count=3), random_params(spec, count=3, seed=1)
    state = rule.init(wiring, params)
    with torch.no_grad():
        _, state = rule(wiring, grads, state, params)
        delta, after = rule(wiring, grads, state, params)
        mapped, _ = vmap(lambda g, s, p: rule(wiring, g, s, p))(grads, state, params)
        for i in range(3):
            one = {k: {key: x[i] for key, x in values.items()} for k, values in state.items()}
            alone, last = rule(
                wiring, *({k: v[i] for k, v in grads.items()}, one), {k: v[i] for k, v in params.items()}
            )
            assert_agree({k: v[i] for k, v in delta.items()}, alone, LEVELING)
            for k in delta:
                assert_agree(after[k]["rows"][i], last[k]["rows"])
    assert_agree(mapped, delta, LEVELING)


@pytest.mark.parametrize("net", [CNN((3, 4, 5, 6)), ResNet((4, 6))], ids=["CNN", "ResNet"])
def test_pieces_of_rows_make_no_difference(net, monkeypatch):
    wiring, rule, source = wiring_of(net.double()), random_rule(), generator(2)
    params = {k: p.detach() for k, p in net.named_parameters()}
    grads = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
    with torch.no_grad():
        whole, state = rule(wiring, grads, rule.init(wiring, params), params)
        monkeypatch.setattr("weightedit.optim.metanet_step.PIECES", {"cpu": 50})
        parts, again = rule(wiring, grads, rule.init(wiring, params), params)
    assert_agree(parts, whole, LEVELING)
    for k in params:
        assert_agree(again[k]["columns"], state[k]["columns"])


@pytest.mark.parametrize("options", [{}, {"mixing": False}, {"symmetry": "permutation", "leveling": 0}])
@pytest.mark.parametrize("net", [CNN((3, 4, 5, 6)), ResNet((4, 6))], ids=["CNN", "ResNet"])
def test_unit_by_unit_as_for_a_compiler_is_the_same(net, options, monkeypatch):
    wiring, rule, source = wiring_of(net.double()), random_rule(**options), generator(2)
    params = {k: p.detach() for k, p in net.named_parameters()}
    grads = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
    with torch.no_grad():
        plain, _ = rule(wiring, grads, rule.init(wiring, params), params)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr("weightedit.optim.metanet_step.FROM", 1)
        unitwise, _ = rule(wiring, grads, rule.init(wiring, params), params)
    assert_agree(unitwise, plain, LEVELING)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"leveling": 5, "loss": True, "coherence": True},
        {"mixing": False, "momenta": (0.5, 0.8, 0.95)},
        {"symmetry": "permutation", "leveling": 0, "averaging": False, "memory": 0.0},
    ],
    ids=["default", "leveling", "mixing", "permutation"],
)
@pytest.mark.parametrize("name", ["CNN", "ResNet", "sine", "relu"])
def test_large_tensors_pass_by_pass_are_the_same(name, options, monkeypatch):
    """What is compiled once for all shapes, run without a compiler: deltas and all state, over three steps."""
    if name in SPECS:
        wiring, params = Wiring.of(SPECS[name]), random_params(SPECS[name])
    else:
        net = {"CNN": CNN((3, 4, 5, 6)), "ResNet": ResNet((4, 6))}[name].double()
        wiring, params = wiring_of(net), {k: p.detach() for k, p in net.named_parameters()}
    rule, source, seen = random_rule(**options), generator(2), []
    monkeypatch.setattr("weightedit.optim.unitwise._ALONE", 15)
    monkeypatch.setattr("weightedit.optim.metanet_passes._PIECE", 40)
    passes, state = Passes(rule._adam, signed=rule._signed, compiled=False), rule.init(wiring, params)
    look, other, loss = passes.look, state, torch.tensor(1.3, dtype=torch.float64)
    passes.look = lambda *given: seen.append(given) or look(*given)
    with torch.no_grad():
        for _ in range(3):
            grads = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
            plain, state = rule(wiring, grads, state, params, loss=loss)
            passed, other = rule.step(wiring, (grads, other, params), loss, passes)
            assert_agree(passed, plain, LEVELING)
            assert_agree(other, state, LEVELING)
            params = apply_delta(params, plain)
    assert len(seen) == 3 * sum(15 <= p.numel() > len(p) > 1 for p in params.values()) > 0


def test_by_default_no_matrix_is_too_large_to_be_leveled():
    """Beside a rule that levels up to the smaller side, and one that stops below it."""
    spec = NetworkSpec.mlp((260, 258, 3), ("relu",))
    wiring, params, grads = Wiring.of(spec), random_params(spec), random_params(spec, seed=1)
    found = []
    for leveling in (None, 258, 257):
        rule = MetanetRule(MetanetRuleConfig(leveling=leveling)).double()
        with torch.no_grad():
            found.append(rule.update(wiring, grads, rule.init(wiring, params), params)[0]["layers.0.weight"])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], rtol=0.01)
    assert MetanetRuleConfig().leveling is None


def test_averaging_is_schedule_free():
    """Against Defazio et al. 2024 written out with z and x; the parameters are y, later iterates weigh more."""
    spec, source = SPECS["relu"], generator(5)
    wiring, rule, plain = Wiring.of(spec), random_rule(), random_rule(averaging=False)
    plain.load_state_dict({k: v for k, v in rule.state_dict().items() if k not in ("lag", "log_recency")})
    beta, recency = float(rule.lag.detach().sigmoid()), float(rule.log_recency.detach().exp())
    y = random_params(spec)
    z, x, state, other = dict(y), dict(y), rule.init(wiring, y), plain.init(wiring, y)
    with torch.no_grad():
        for t in range(1, 6):
            grads = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in y.items()}
            delta, state = rule.update(wiring, grads, state, y)
            step, other = plain.update(wiring, grads, other, y)
            fresh = (1 + recency) / (t + recency)
            z = {k: z[k] + step[k] for k in z}
            x = {k: (1 - fresh) * x[k] + fresh * z[k] for k in z}
            y = apply_delta(y, delta)
            assert_agree(y, {k: beta * x[k] + (1 - beta) * z[k] for k in y}, LEVELING)


def paced(column, size, losses):
    """First deltas of a rule under these losses, over those of one that paces nothing; gradients stay the same."""
    spec = SPECS["relu"]
    wiring, params, grads = Wiring.of(spec), random_params(spec, count=2), random_params(spec, count=2, seed=1)
    found = []
    for number in (size, 0.0):
        rule = MetanetRule(MetanetRuleConfig(loss=True, averaging=False)).double()
        with torch.no_grad():
            rule.pace[:, column] = number
            state, deltas = rule.init(wiring, params), []
            for loss in losses:
                loss = None if loss is None else torch.tensor(loss, dtype=torch.float64)
                delta, state = rule.update(wiring, grads, state, params, loss=loss)
                deltas.append(delta["layers.1.weight"])
        found.append(torch.stack(deltas))
    ratios = (found[0] / found[1]).flatten(2)
    torch.testing.assert_close(ratios, ratios[..., :1].expand_as(ratios), rtol=1e-9, atol=0)
    return ratios[..., 0]


def test_the_loss_of_every_step_is_seen_and_how_it_stands_to_the_first():
    """By hand: the features are log(loss) / 5 and log(loss / first) / 3, each network's own; None is the first loss."""
    losses = [[0.5, 3.0], [2.0, 1.0], None, [0.1, 3.0]]
    now = torch.tensor([[0.5, 3.0], [2.0, 1.0], [0.5, 3.0], [0.1, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(paced(-2, 5.0, losses), now, rtol=1e-8, atol=0)
    torch.testing.assert_close(paced(-1, 3.0, losses), now / now[0], rtol=1e-8, atol=0)


def test_the_clock_counts_from_one_on_seven_scales():
    for column, time in enumerate((3, 10, 30, 100, 300, 1000, 3000)):
        expected = (torch.arange(1, 5, dtype=torch.float64) / time - 1).tanh().exp().unsqueeze(1).expand(-1, 2)
        torch.testing.assert_close(paced(column, 1.0, [[1.0, 1.0]] * 4), expected, rtol=1e-6, atol=0)


def test_where_a_tensor_lies_is_told_by_these_numbers():
    """By hand: kind, whether it reads the inputs or makes the outputs, sizes, how far along, one, kernel, matrices."""
    sets = tuple(NeuronSet(name, size) for name, size in (("in", 3), ("a", 8), ("b", 6), ("out", 4)))
    wires = (
        Wire("first", (8, 3, 2, 2), "weight", 1, 0, 3),
        Wire("bias", (8,), "bias", 1),
        Wire("gain", (8,), "gain", 1),
        Wire("middle", (6, 8), "weight", 2, 1, 8),
        Wire("last", (4, 30), "weight", 3, 2, 6),
        Wire("final bias", (4,), "bias", 3),
    )
    expected = {
        "first": [1, 0, 1, 0, math.log2(12) / 10, 0.3, 1 / 3, 1, 0.5],
        "bias": [0, 0, 0, 0, 0, 0.3, 1 / 3, 1, 0],
        "gain": [0, 1, 0, 0, 0, 0.3, 1 / 3, 1, 0],
        "middle": [1, 0, 0, 0, 0.3, math.log2(6) / 10, 2 / 3, 1, 0],
        "last": [1, 0, 0, 1, math.log2(30) / 10, 0.2, 1, 1, math.log2(5) / 4],
        "final bias": [0, 0, 0, 1, 0, 0.2, 1, 1, 0],
    }
    for wire in wires:
        found = place(Wiring(sets, wires), wire)
        assert found == pytest.approx([*expected[wire.name], (math.log2(3) - 1) / 4], rel=1e-12), wire.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [MetanetRule(), MLPRule(), Adam(0.01), SGD(0.1, momentum=0.9), Muon(0.01)])
def test_steps_are_counted_exactly_in_half_precision(rule, dtype):
    """Where bfloat16 stops at 256 and float16 at 2048; what a learned rule keeps is float32, its deltas are not."""
    spec = SPECS["relu"]
    wiring = Wiring.of(spec)
    params, grads = (random_params(spec, seed=seed, dtype=dtype) for seed in (0, 1))
    state = rule.init(wiring, params)
    for own in state.values():
        own["step"] += 5000
    with torch.no_grad():
        for _ in range(3):
            deltas, state = rule.update(wiring, grads, state, params)
    for name, own in state.items():
        assert own["step"] == 5003 and own["step"].dtype == torch.float32
        assert deltas[name].dtype == dtype and deltas[name].isfinite().all()
        if isinstance(rule, MetanetRule | MLPRule):
            assert {tensor.dtype for tensor in own.values()} == {torch.float32}


def test_how_large_a_neuron_has_been_fades_by_memory_a_step():
    spec = SPECS["relu"]
    wiring, params, grads = Wiring.of(spec), random_params(spec), random_params(spec, seed=1)
    rule = MetanetRule(MetanetRuleConfig(memory=0.9, room=None)).double()
    state, reach = rule.init(wiring, params), None
    with torch.no_grad():
        for factor in (1.0, 0.7, 0.1, 0.1, 2.0, 0.3):
            scaled = {name: factor * tensor for name, tensor in params.items()}
            _, state = rule.update(wiring, grads, state, scaled)
            now = neuron_scales(wiring, scaled)
            reach = now if reach is None else [torch.maximum(a, 0.9 * b) for a, b in zip(now, reach, strict=True)]
            for name, own in state.items():
                torch.testing.assert_close(own["reach"], reach[wiring.by_name[name].target], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("memory", "low", "high"), [(0.99, 0.1, 10.0), (0.0, 1e4, 1e8)])
def test_a_neuron_that_passes_through_zero_does_not_throw_its_outgoing_weights(memory, low, high):
    """Their steps are over the neuron's scale; with a memory, over what it was a moment ago."""
    spec, source = NetworkSpec.mlp((5, 8, 8, 3), ("relu", "relu")), generator(0)
    wiring, params = Wiring.of(spec), random_params(spec)
    rule = MetanetRule(MetanetRuleConfig(memory=memory)).double()
    state = rule.init(wiring, params)
    with torch.no_grad():
        for step in range(8):
            if step == 7:
                for name in ("layers.0.weight", "layers.0.bias"):
                    params[name][0] *= 1e-6
            grads = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
            delta, state = rule.update(wiring, grads, state, params)
            params = apply_delta(params, delta)
    outgoing = delta["layers.1.weight"].square().mean(0).sqrt()
    assert low < outgoing[0] / outgoing[1:].mean() < high


def test_every_network_may_have_rule_weights_of_its_own():
    spec = SPECS["relu"]
    wiring, rules = Wiring.of(spec), [random_rule(seed, coherence=True) for seed in (0, 1)]
    params, grads = random_params(spec, count=2), random_params(spec, count=2, seed=1)
    state = rules[0].init(wiring, params)
    weights = {
        k: torch.stack([dict(r.named_parameters())[k].detach() for r in rules]) for k, _ in rules[0].named_parameters()
    }
    found, _ = vmap(lambda w, g, s, p: functional_call(rules[0], w, (wiring, g, s, p)))(weights, grads, state, params)
    for i, rule in enumerate(rules):
        one = {k: {key: x[i] for key, x in values.items()} for k, values in state.items()}
        alone, _ = rule(wiring, {k: v[i] for k, v in grads.items()}, one, {k: v[i] for k, v in params.items()})
        assert_agree({k: v[i] for k, v in found.items()}, alone, LEVELING)


def test_the_meta_gradient_is_finite_at_zero_gradients_and_right_elsewhere():
    spec = SPECS["tanh"]
    wiring, rule = Wiring.of(spec), random_rule(coherence=True)
    params, target = random_params(spec), random_params(spec, seed=5)
    for zero in (True, False):

        def final(size, zero=zero):
            weights = {k: p.detach() for k, p in rule.named_parameters()} | {"log_step_size": size}
            theta, state = params, rule.init(wiring, params)
            for _ in range(4):
                grads = {k: 0 * p if zero else p - target[k] for k, p in theta.items()}
                delta, state = functional_call(rule, weights, (wiring, grads, state, theta))
                theta = apply_delta(theta, delta)
            return sum((p - target[k]).square().sum() for k, p in theta.items())

        size = rule.log_step_size.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(final(size), size)
        with torch.no_grad():
            expected = (final(size + 1e-5) - final(size - 1e-5)) / 2e-5
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("matrices", [2, 4, 8])
def test_at_the_start_steps_fall_with_the_root_of_the_number_of_layers(matrices):
    """Beside a rule to which every network has two matrices."""
    spec = NetworkSpec.mlp((5, *[6] * (matrices - 1), 3), ("relu",) * (matrices - 1))
    wiring, params, source = Wiring.of(spec), random_params(spec), generator(0)
    grads = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}

    def moved(blind):
        rule = MetanetRule(MetanetRuleConfig(averaging=False)).double()
        with torch.no_grad():
            rule.pace[:, len(rule.inverse_times) + DEPTH] *= not blind
            return rule.update(wiring, grads, rule.init(wiring, params), params)[0]["layers.1.weight"]

    assert torch.allclose(moved(False), (2 / matrices) ** 0.5 * moved(True), rtol=1e-6)


def test_what_is_always_zero_in_meta_training_is_forgotten():
    """Weights that noise has reached: nothing changes on networks of the depth that was seen, and the others' go."""
    source, rule = generator(0), MetanetRule().double()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    specs = {depth: NetworkSpec.mlp((5, *[6] * (depth - 1), 3), ("relu",) * (depth - 1)) for depth in (2, 4)}
    forgetful = MetanetRule().double()
    forgetful.load_state_dict(rule.state_dict())
    forgetful.forget_unseen([Wiring.of(specs[2])])

    def moved(rule, spec):
        wiring, params = Wiring.of(spec), random_params(spec)
        with torch.no_grad():
            return rule.update(wiring, params, rule.init(wiring, params), params)[0]["layers.1.weight"]

    assert torch.equal(moved(forgetful, specs[2]), moved(rule, specs[2]))
    assert not torch.allclose(moved(forgetful, specs[4]), moved(rule, specs[4]), rtol=0.01)
    kept = len(rule.inverse_times) + torch.tensor([0, 2, 3, 4, 5, 6, 7])  # no gains, kernels of 1, two matrices
    assert forgetful.tensor_first[:, kept].all()
    assert not forgetful.tensor_first[:, len(rule.inverse_times) + torch.tensor([1, 8, 9])].any()


def test_before_training_it_optimizes():
    spec, rule = SPECS["relu"], MetanetRule(MetanetRuleConfig(step_size=0.02))
    wiring, source = Wiring.of(spec), generator(0)
    params = random_params(spec, dtype=torch.float32)
    x = torch.randn(128, 2, generator=source)
    y = torch.cat([x, x.prod(1, keepdim=True)], 1)

    def loss(p):
        return (spec.forward(p, x) - y).square().mean()

    state, start = rule.init(wiring, params), loss(params)
    with torch.no_grad():
        for _ in range(50):
            delta, state = rule.update(wiring, grad(loss)(params), state, params)
            params = apply_delta(params, delta)
    assert loss(params) < 0.7 * start


def test_saved_and_loaded(tmp_path):
    rule = MetanetRule(MetanetRuleConfig(hidden=5, loss=True, momenta=(0.9,)))
    rule.save_pretrained(tmp_path / "rule", "a card")
    again = MetanetRule.from_pretrained(tmp_path / "rule")
    assert again.config == rule.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), rule.state_dict().values(), strict=True))
    MLPRule().save_pretrained(tmp_path / "other", "a card")
    with pytest.raises(FileFormatError, match="of kind 'mlp-rule'; expected one of kind metanet-rule"):
        MetanetRule.from_pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"symmetry": "all"}, "expected a symmetry"),
        ({"hidden": 0}, "whole width"),
        ({"second": 1.0}, "inside"),
        ({"leveling": -1}, "expected leveling"),
        ({"leveling": 0.5}, "expected leveling"),
        ({"memory": 1.0}, "a memory in"),
    ],
)
def test_numbers_out_of_range(config, message):
    with pytest.raises(WeightEditError, match=message):
        MetanetRuleConfig(**config)
