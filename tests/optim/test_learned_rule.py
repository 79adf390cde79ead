"""Metanetworks as update rules: each trains by its own output, keeps what it claims, and shares one door with edits."""

import copy
import math
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn.models import GAT

from tests.metanet.chain_networks import perturbed
from tests.metatrain.problems import digits
from tests.modules import ResNet
from tests.networks import generator, relative
from tests.residual_networks import PreActivation
from weightedit import delta as core
from weightedit.editing import one_shot as editing
from weightedit.errors import SpecError, TypeMismatchError, WeightEditError
from weightedit.inr.siren import initial_params
from weightedit.metanet.pyg_adapter import PyGAdapter, PyGAdapterConfig
from weightedit.metanet.registry import METANETS, make_metanet
from weightedit.metatrain.estimators import PES, Horizons, TruncatedBackprop
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, ModuleOptimizee, conv_net
from weightedit.metatrain.unroll import Unroll, start
from weightedit.network.graph_spec import spec_of
from weightedit.network.spec import NetworkSpec
from weightedit.network.symmetry import act, random_element
from weightedit.optim import learned_rule
from weightedit.optim.learned_rule import LearnedRule, LearnedRuleConfig, make_rule
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule_module import RuleModule

NAMES = [name for name in METANETS if name != "statistics"]
DATA = digits()
X, Y = DATA.images[:128].double(), DATA.labels[:128]


def mlp(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 11), nn.Tanh(), nn.Linear(11, 10)
        )


def cnn(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return conv_net(1, 10, widths=(6, 5))


def residual(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PreActivation(classes=10, norm=lambda width: nn.GroupNorm(1, width))


def resnet(seed=0):
    """Blocks with BatchNorm, which has next to no epsilon: rows before it may be rescaled."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ResNet((4,), channels=1, classes=10)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-300
                nn.init.normal_(module.weight, 1.0, 0.3)
        return net


NETWORKS = {"mlp": mlp, "cnn": cnn, "residual": residual, "resnet": resnet}


def pyg(spec, config):
    ends = {"inputs": spec.widths[0], "outputs": spec.widths[-1], "channels": spec.channels}
    around = PyGAdapterConfig(**ends, node_width=8, edge_width=6, width_out=8, extra_types=config.extra_types)
    return PyGAdapter(GAT(8, 8, num_layers=2, out_channels=8, v2=True, edge_dim=6), around)


def rule_of(name, net, **config):
    """Untrained, in float64."""
    given = LearnedRuleConfig(**{**({"clock": ()} if name == "monomial" else {}), **config})
    rule = LearnedRule(pyg(spec_of(net), given), given) if name == "pyg" else make_rule(name, [spec_of(net)], given)
    return rule.double()


def train(net, rule, steps=20, x=X, **options):
    """Losses before every step."""
    optimizer, losses = LearnedOptimizer(net, rule, **options), []

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), Y[: len(x)])
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(float(optimizer.step(closure).detach()))
    return losses


@cache
def trained_by_base_steps(kind):
    """Where 20 steps lead without what a metanetwork proposes."""
    net = NETWORKS[kind]().double()
    rule = rule_of("ng-gnn", net)
    with torch.no_grad():
        rule.log_share.fill_(-math.inf)
    train(net, rule)
    return {key: p.detach() for key, p in net.named_parameters()}


CASES = [(name, kind) for name in [*NAMES, "pyg"] for kind in ("mlp", "cnn")] + [
    (name, "residual") for name in ("ng-gnn", "ng-t", "pyg", "gauge-gmn-b")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_metanetwork_trains_a_network_untrained_and_moves_every_parameter_itself(name, kind):
    net = NETWORKS[kind]().double()
    losses = train(net, rule_of(name, net))
    assert losses[-1] < losses[0] - 0.02
    for key, by_base_steps in trained_by_base_steps(kind).items():
        assert relative(net.get_parameter(key).detach(), by_base_steps) > 1e-4, key


def scrambled(net, seed=3):
    """The same function: hidden neurons rescaled (after ReLU), flipped (before Tanh) and permuted.

    Running statistics are not moved: in training none is read.
    """
    spec, copied = spec_of(net), copy.deepcopy(net)
    element = random_element(spec, generator(seed), scale_range=(math.exp(-3), math.exp(3)))
    moved = act(element, spec, {name: p.detach() for name, p in net.named_parameters()})
    copied.load_state_dict({**net.state_dict(), **moved})
    return copied


KEPT = {"gauge-gmn": True, "gauge-gmn-b": True, "ng-gnn": False, "ng-t": False}
SCRAMBLED = [*product(KEPT, ("mlp", "cnn")), *product(("gauge-gmn", "gauge-gmn-b", "ng-gnn"), ("resnet",))]


@pytest.mark.parametrize(("name", "kind"), SCRAMBLED)
def test_a_scrambled_copy_stays_the_same_function_under_what_keeps_scales_and_not_under_what_does_not(name, kind):
    """Ten steps: a random rule may then take a neuron through zero, past which rounding alone is a billion times as
    large in a copy of the same weights, rounded otherwise. Such a copy says that it did not."""
    net, x = NETWORKS[kind]().double(), X[:32]
    other, rounded = scrambled(net), copy.deepcopy(net)
    rule = perturbed(rule_of(name, net, step_size=0.03), 0.1)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.mul_(
                1 + 2**-50 * (torch.rand(parameter.shape, generator=generator(), dtype=parameter.dtype) - 0.5)
            )
    before = net(x).detach()
    assert relative(other(x).detach(), before) < 1e-10
    for one in (net, other, rounded):
        train(one, rule, 10, x)
    after = net(x).detach()
    assert relative(after, before) > 0.02
    assert relative(rounded(x).detach(), after) < 1e-12
    apart = relative(other(x).detach(), after)
    assert apart < 1e-9 if KEPT[name] else apart > 1e-4


def test_what_a_fresh_rule_proposes_fades_and_its_base_steps_do_not():
    net = mlp().double()
    full, base = rule_of("gauge-gmn", net), rule_of("gauge-gmn", net)
    with torch.no_grad():
        base.log_share.fill_(-math.inf)
    wiring, params = LearnedOptimizer(net, full).wiring, {name: p.detach() for name, p in net.named_parameters()}
    gradients = {name: torch.randn(p.shape, generator=generator(), dtype=p.dtype) for name, p in params.items()}
    apart = []
    for step in (0, 2000):
        state = full.init(wiring, params)
        for kept in state.values():
            kept["step"] += step
        both = (rule.update(wiring, gradients, state, params)[0]["1.weight"].detach() for rule in (full, base))
        apart.append(relative(*both))
    assert apart[0] > 0.01 and apart[1] < 0.01 * apart[0]


def test_editing_and_optimizing_go_through_propose_delta(monkeypatch):
    calls, both = [], (learned_rule, editing)
    assert all(module.propose_delta is core.propose_delta for module in both)

    def counted(*args, **options):
        calls.append(args[0])
        return core.propose_delta(*args, **options)

    for module in both:
        monkeypatch.setattr(module, "propose_delta", counted)
    net = mlp().double()
    rule = rule_of("gauge-gmn", net)
    train(net, rule, steps=3)
    editor = editing.OneShotEditor(make_metanet("gauge-gmn", [NetworkSpec.siren((2, 4, 4, 1))]), "dilate")
    editor.edit_params(initial_params(2, (2, 4, 4, 1)))
    assert calls == [rule.metanet] * 3 + [editor.metanet]


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_give_zero_steps_and_vanishing_ones_vanishing_steps(name):
    net = mlp().double()
    rule = perturbed(rule_of(name, net, warm=0), 0.2)
    optimizer = LearnedOptimizer(net, rule)

    def moved(gradient):
        before = [p.detach().clone() for p in net.parameters()]
        for p in net.parameters():
            p.grad = gradient * torch.ones_like(p)
        optimizer.step()
        return max(float((p.detach() - b).abs().max()) for p, b in zip(net.parameters(), before, strict=True))

    assert [moved(0.0) for _ in range(3)] == [0.0] * 3
    first = moved(1.0)
    assert first > 1e-3
    assert [moved(0.0) for _ in range(3)] == [0.0] * 3
    assert 0 < moved(1e-5) < 1e-2 * first


@pytest.mark.parametrize("name", NAMES)
def test_estimators_reach_every_weight_of_the_metanetwork(name):
    problem = ClassifierOptimizee(DATA, hidden=(6, 5), batch_size=8)
    rule = perturbed(make_rule(name, [problem.wiring.spec]), 0.02, torch.float32)
    weights = {key: p.detach() for key, p in rule.named_parameters()}
    for estimator in (
        PES(Unroll(rule, problem), Horizons(4, 6), 3, 2, sigma=0.01),
        TruncatedBackprop(Unroll(rule, problem), Horizons(4, 6), 3, 2),
    ):
        gradient, _, metrics = estimator.gradient(weights, estimator.init(generator()))
        assert gradient.keys() == weights.keys() and bool(metrics["loss"].isfinite())
        assert all(bool(g.isfinite().all()) for g in gradient.values())
        assert sum(float(g.abs().max()) > 0 for g in gradient.values()) > 0.8 * len(gradient)


@pytest.mark.parametrize(("name", "kind"), [("gauge-gmn-b", "cnn"), ("ng-gnn", "residual"), ("nfn-np", "cnn")])
def test_stacks_of_modules_move_as_their_networks_do_with_shared_weights_and_with_their_own(name, kind):
    problem = ModuleOptimizee(digits(torch.float64), batch_size=4, make=NETWORKS[kind])
    rule = perturbed(make_rule(name, [problem.wiring.spec]), 0.05)
    state = start(rule, problem, generator(), 2)
    with torch.no_grad():
        after, losses = Unroll(rule, problem)(state, 3)
        own = {key: torch.stack([p, p]) for key, p in rule.named_parameters()}
        again, others = Unroll(rule, problem)(state, 3, own)
    torch.testing.assert_close(losses, others, rtol=1e-9, atol=1e-9)
    for key in after.params:
        torch.testing.assert_close(after.params[key], again.params[key], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_comes_back_from_its_folder(name, tmp_path):
    net = mlp()
    rule = perturbed(make_rule(name, [spec_of(net)]), 0.1, torch.float32)
    rule.save_pretrained(tmp_path / "rule", "A card.")
    again = RuleModule.from_pretrained(tmp_path / "rule")
    assert isinstance(again, LearnedRule) and again.config == rule.config
    nets = [copy.deepcopy(net) for _ in range(2)]
    x = X.float()
    assert train(nets[0], rule, 4, x) == train(nets[1], again, 4, x)


def test_the_rule_in_higher_is_the_rule_in_the_optimizer():
    from weightedit.metatrain.higher_unroll import ModuleRun, meta_gradient, unrolled

    net, rule = mlp().double(), perturbed(rule_of("gauge-gmn-b", mlp()), 0.1)
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]

    def loss(net, batch):
        return functional.cross_entropy(net(batch[0]), batch[1])

    run = ModuleRun(net, batches, loss)
    expected, plain = [], copy.deepcopy(net)
    optimizer = LearnedOptimizer(plain, rule)
    for batch in batches:
        optimizer.zero_grad()
        found = loss(plain, batch)
        found.backward()
        optimizer.step(lambda found=found: found)
        expected.append(found.detach())
    torch.testing.assert_close(unrolled(rule, run).detach(), torch.stack(expected), rtol=1e-9, atol=1e-9)
    gradient, _ = meta_gradient(rule, [run])
    assert float(gradient["metanet.head.read_edges.weight"].abs().max()) > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name in learned_rule.ANY_ENDS])
def test_a_rule_steps_networks_with_other_numbers_of_inputs_and_outputs(name):
    rule, net = make_rule(name, [spec_of(cnn())]), conv_net(3, 7, widths=(4, 5))
    x = torch.randn(32, 3, 8, 8, generator=generator())
    optimizer, losses = LearnedOptimizer(net, rule), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), Y[:32] % 7)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_what_is_refused():
    spec = spec_of(mlp())
    with pytest.raises(SpecError, match="GaugeGMN with embedding 3 as a rule; expected one that edits"):
        LearnedRule(make_metanet("gauge-gmn", [spec], embedding=3, probes=0))
    with pytest.raises(TypeMismatchError, match="LearnedRule: got channels of type"):
        LearnedRule(make_metanet("gauge-gmn", [spec], probes=0, extra_types=((-1, True),)))
    with pytest.raises(SpecError, match="statistics as a rule; expected a metanetwork that edits"):
        make_rule("statistics", [spec])
    with pytest.raises(SpecError, match="not registered"):
        config = LearnedRuleConfig()
        LearnedRule(pyg(spec, config), config).described()
    with pytest.raises(WeightEditError, match="expected a memory in"):
        LearnedRuleConfig(step_size=0.0)
    with pytest.raises(WeightEditError, match="at least one momentum, decays inside"):
        LearnedRuleConfig(clock=(0.0,))
    net, rule = mlp(), make_rule("gauge-gmn", [spec])
    with pytest.raises(SpecError, match="LSTM"):
        LearnedOptimizer(nn.LSTM(3, 4), rule)
    wiring = replace(LearnedOptimizer(net, rule).wiring, spec=None)
    with pytest.raises(SpecError, match="a network without a spec for a rule of GaugeGMN; expected one that is"):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        LearnedOptimizer(list(net.named_parameters()), rule, wiring=wiring).step()


@pytest.mark.parametrize("unit", [1.0, 1e-10, 1e10])
def test_neither_the_unit_of_the_loss_nor_a_smaller_gradient_stops_a_rule(unit):
    """What a gradient warrants is linear, from a thousandth of the largest on; the metanetwork sees units as logs."""
    net, lengths = mlp().double(), []
    optimizer = LearnedOptimizer(net, rule_of("gauge-gmn", net, warm=0))
    for size in (1.0, 1e-2):
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        (unit * size * functional.cross_entropy(net(X), Y)).backward()
        optimizer.step()
        moves = zip(net.parameters(), before, strict=True)
        lengths.append(sum(float((p.detach() - old).square().sum()) for p, old in moves) ** 0.5)
    assert lengths[0] > 0.1 and lengths[1] > 0.1 * lengths[0]
