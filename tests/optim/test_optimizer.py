"""The contract of an optimizer, over every rule; then what is LearnedOptimizer's own."""

import copy
import io
import logging
import pickle
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tests.modules import GPT, ResNet, Unreadable, seeded
from tests.rules import Recorder, TinyRule
from weightedit.errors import FileFormatError, NonFiniteError, ParamsError, WeightEditError
from weightedit.files.checkpoint import save_checkpoint
from weightedit.network.spec import NetworkSpec
from weightedit.network.wiring import Wiring
from weightedit.optim import stepping
from weightedit.optim.hand_designed import SGD, Adam, GeometricAdam
from weightedit.optim.learned_rule import make_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.muon import Muon
from weightedit.optim.optimizer import LearnedOptimizer, optimizer_factory
from weightedit.optim.rule_module import RuleModule
from weightedit.optim.stepping import rate_of

RULES = {
    "adam": lambda: Adam(1e-2),
    "geometric": lambda: GeometricAdam(1e-2),
    "muon": lambda: Muon(1e-2, precision="parameters"),
    "sgd": lambda: SGD(0.1, momentum=0.9),
    "tiny": TinyRule,
    "mlp": lambda: MLPRule(generator=torch.Generator().manual_seed(0)),
    "small_fc": lambda: MLPRule(MLPRuleConfig.small_fc(), torch.Generator().manual_seed(0)),
    "metanet": lambda: MetanetRule(generator=torch.Generator().manual_seed(0)),
    "gauge-gmn": lambda: seeded(lambda: make_rule("gauge-gmn", network())),
}
CONTRACT = [name for name in RULES if name not in ("geometric", "sgd")]  # of rules without weights, two are enough


@pytest.fixture(params=CONTRACT, name="rule")
def _rule(request):
    return RULES[request.param]()


def network(seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


X = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))


def loss_of(net, x=X):
    return net(x.to(next(net.parameters()).dtype)).square().mean()


def train(net, optimizer, steps, scheduler=None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same(net, other, **tolerance):
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


# The contract, over every rule.


def test_two_runs_are_equal_and_the_loss_falls(rule):
    net, other = network(), network()
    before = loss_of(net).item()
    train(net, LearnedOptimizer(net, rule), 20)
    train(other, LearnedOptimizer(other, rule), 20)
    assert_same(net, other)
    assert loss_of(net).item() < before


def test_a_closure_is_called_once_first_and_its_loss_is_returned(rule):
    net, other = network(), network()
    optimizer, plain = LearnedOptimizer(net, rule), LearnedOptimizer(other, rule)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        calls.append(loss_of(net))
        calls[-1].backward()
        return calls[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    loss = loss_of(other)
    loss.backward()
    plain.observe(loss)
    assert plain.step() is None
    assert_same(net, other)


def test_parameters_without_gradient_stay(rule):
    net = network()
    before = copy.deepcopy(net)
    net[0].weight.requires_grad_(False)
    optimizer = LearnedOptimizer(net, rule)
    optimizer.step()  # no gradient anywhere
    train(net, optimizer, 2)
    assert torch.equal(net[0].weight, before[0].weight) and not torch.equal(net[2].weight, before[2].weight)
    assert net[0].weight not in optimizer.state and net[2].weight in optimizer.state


def test_lr_and_decay_belong_to_groups_and_are_read_at_every_step(rule):
    net, other = network(), network()
    groups = [{"params": net[0].parameters(), "weight_decay": 0.1}, {"params": list(net[2].parameters()), "lr": 0.25}]
    optimizer = LearnedOptimizer(groups, rule, lr=torch.tensor(2.0), net=net)
    plain = LearnedOptimizer(other, rule)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    start = copy.deepcopy(net)
    train(net, optimizer, 1)
    train(other, plain, 1)
    for i, lr, decay in ((0, 2.0, 0.1), (2, 0.25, 0.0)):
        kept = 1 - lr * decay * getattr(rule, "learning_rate", 1e-3)
        for p, p0, q in zip(net[i].parameters(), start[i].parameters(), other[i].parameters(), strict=True):
            torch.testing.assert_close(p, kept * p0 + lr * (q - p0))
    optimizer.param_groups[0]["lr"].zero_()
    kept = net[0].weight.clone()
    train(net, optimizer, 1)
    assert torch.equal(net[0].weight, kept)


@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_schedulers(rule, lr):
    net, other = network(), network()
    optimizer, plain = LearnedOptimizer(net, rule, lr=lr), LearnedOptimizer(other, rule)
    schedules = torch.optim.lr_scheduler
    scheduler = schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, 0.1, total_iters=3), schedules.CosineAnnealingLR(optimizer, 7)], [3]
    )
    for step in range(10):
        plain.param_groups[0]["lr"] = float(optimizer.param_groups[0]["lr"])
        train(net, optimizer, 1, scheduler)
        train(other, plain, 1)
        assert step == 0 or plain.param_groups[0]["lr"] != 1.0 or step == 3
    assert_same(net, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_resuming_continues_bitwise(rule, dtype):
    """Also in bfloat16, whose moments torch would round when it loads them."""
    net = network(dtype=dtype)
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=5, dtype=dtype)
    other.load_state_dict(saved["net"])
    resumed = LearnedOptimizer(other, rule)
    resumed.load_state_dict(saved["optimizer"])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for state in resumed.state.values():
        assert {key: value.dtype for key, value in state.items()} == {
            key: torch.float32 if key == "step" else wide for key in state
        }
    train(net, optimizer, 3)
    train(other, resumed, 3)
    assert_same(net, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_go_on_alike(rule, duplicate):
    net = network()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 3)
    other, copied = duplicate((net, optimizer))
    train(net, optimizer, 3)
    train(other, copied, 3)
    assert_same(net, other)


def test_no_gradient_and_no_lr_change_nothing_and_fill_the_state(rule):
    net = network()
    before = copy.deepcopy(net)
    optimizer = LearnedOptimizer(net, rule, lr=0.0, weight_decay=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_same(net, before)
    assert set(optimizer.state) == set(net.parameters())


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints(rule, flat):
    """As torch.distributed.checkpoint reads and writes an optimizer: all state by parameter name."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net = network()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    other = copy.deepcopy(net)
    resumed = LearnedOptimizer(other, rule)
    set_optimizer_state_dict(other, resumed, saved, options=options)
    train(net, optimizer, 3)
    train(other, resumed, 3)
    assert_same(net, other)


def test_hooks_run_where_torchs_do(rule):
    """Around a step, and after a load, where they see and change the state as it is then."""
    net = network()
    optimizer, calls = LearnedOptimizer(net, rule), []
    before = net[0].weight.detach().clone()
    optimizer.register_step_pre_hook(lambda *_: calls.append(torch.equal(net[0].weight, before)))
    optimizer.register_step_post_hook(lambda *_: calls.append(not torch.equal(net[0].weight, before)))
    train(net, optimizer, 1)
    assert calls == [True, True]

    def restart(loaded):
        calls.append(float(loaded.state[net[0].weight]["step"]))
        loaded.state[net[0].weight]["step"].zero_()

    optimizer.register_load_state_dict_post_hook(restart)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[2:] == [1.0] and optimizer.state[net[0].weight]["step"] == 0


def test_groups_are_added_by_name(rule):
    """A layer that is unfrozen later takes its place in the graph."""
    net = network()
    optimizer = LearnedOptimizer(net[2].parameters(), rule, net=net)
    train(net, optimizer, 1)
    optimizer.add_param_group({"params": net[0].parameters(), "lr": 0.5})
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["2.weight", "2.bias"],
        ["0.weight", "0.bias"],
    ]
    train(net, optimizer, 1)
    assert [int(optimizer.state[layer.weight]["step"]) for layer in (net[0], net[2])] == [1, 2]
    with pytest.raises(ParamsError, match="two parameters called '0.weight'"):
        optimizer.add_param_group({"params": [net[0].weight]})


def test_accumulated_gradients_and_clipping(rule):
    net, other = network(), network()
    optimizer, plain = LearnedOptimizer(net, rule), LearnedOptimizer(other, rule)
    for _ in range(3):
        for part in X.split(4):
            (loss_of(net, part) / 4).backward()
        for one in (net, other):
            if one is other:
                loss_of(other).backward()
            nn.utils.clip_grad_norm_(one.parameters(), 0.01)
        for one in (optimizer, plain):
            one.step()
            one.zero_grad()
    assert_same(net, other, rtol=1e-4, atol=1e-6)


def test_grad_scaler(rule):
    """Its scale does not matter, and a step that overflows is left out."""
    net, other = network(), network()
    optimizer, plain = LearnedOptimizer(net, rule), LearnedOptimizer(other, rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(net)).backward()
        if step == 2:
            net[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    train(other, plain, 3)
    assert_same(net, other, rtol=1e-5, atol=1e-7)


def assert_refused(rule, nonfinite, spoil, message, caplog):
    """The third step is spoilt and leaves no trace; the fourth is the third."""
    net = network()
    optimizer = LearnedOptimizer(net, rule, nonfinite=nonfinite)
    train(net, optimizer, 2)
    before, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict()["state"])
    loss_of(net).backward()
    spoil(net, optimizer)
    if nonfinite == "raise":
        with pytest.raises(NonFiniteError, match=message):
            optimizer.step()
    else:
        with caplog.at_level(logging.WARNING):
            optimizer.step()
        assert "at step 3 came out infinite or NaN" in caplog.text and optimizer.skipped_steps == 1
    assert_same(net, before)
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)
    optimizer.param_groups[0]["lr"] = 1.0
    train(net, optimizer, 1)
    assert int(optimizer.state[net[2].bias]["step"]) == 3


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_step_that_is_not_finite_is_refused_by_name(rule, nonfinite, caplog):
    def spoil(net, optimizer):
        net[2].bias.grad[1] = torch.nan

    message = "of 2.bias at step 3 came out infinite or NaN .its gradient is not finite either"
    assert_refused(rule, nonfinite, spoil, message, caplog)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_moment_or_a_rate_that_is_not_finite(nonfinite, caplog):
    """A gradient of 1e30 has a finite Adam step, and an infinite second moment, after which Adam would stand still."""

    def large(net, optimizer):
        net[2].bias.grad[1] = 1e30

    def fast(net, optimizer):
        optimizer.param_groups[0]["lr"] = float("inf")

    assert_refused(Adam(1e-2), nonfinite, large, "second of 2.bias at step 3", caplog)
    caplog.clear()
    assert_refused(Adam(1e-2), nonfinite, fast, "update of 0.weight at step 3", caplog)


def test_large_numbers_are_no_fault():
    """Their squares overflow, they do not."""
    net = network()
    optimizer = LearnedOptimizer(net, Adam(1e-2))
    loss_of(net).backward()
    net[2].bias.grad.fill_(1e19)
    before = net[2].bias.detach().clone()
    optimizer.step()
    torch.testing.assert_close(net[2].bias.detach(), before - 1e-2)
    with pytest.raises(NonFiniteError):
        train(net, LearnedOptimizer(net, Recorder(), lr=3e38), 5)


@pytest.mark.parametrize("joined", [0, 2**18])
def test_the_size_of_what_a_step_makes(joined, monkeypatch):
    """Numbers of all kinds, and what is not finite in any of them."""
    monkeypatch.setattr(stepping, "_JOINED", joined)
    shapes = ((3, 4), torch.float32), ((), torch.float32), ((5, 2), torch.float64), ((0,), torch.float32)
    found = [torch.rand(shape, generator=torch.Generator(), dtype=dtype) for shape, dtype in shapes]
    found.append(found[0].mT)
    expected = torch.cat([tensor.double().flatten() for tensor in found]).norm()
    torch.testing.assert_close(stepping.size([*found, torch.tensor(3)]).double(), expected, rtol=1e-6, atol=0)
    for tensor in filter(torch.Tensor.numel, found):
        for wrong in (torch.inf, torch.nan):
            others = [torch.full_like(tensor, wrong) if other is tensor else other for other in found]
            assert not stepping.size(others).isfinite()


def test_half_precision_parameters_may_not_overflow():
    net = network(dtype=torch.float16)
    optimizer = LearnedOptimizer(net, Recorder(), lr=1e7)
    with pytest.raises(NonFiniteError, match="update of 0.weight at step 1"):
        train(net, optimizer, 1)


def test_accelerate_prepares_it(rule):
    from accelerate import Accelerator

    net, other = network(), network()
    optimizer = LearnedOptimizer(net, rule)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    accelerator = Accelerator(cpu=True)
    prepared, wrapped, scheduler = accelerator.prepare(net, optimizer, scheduler)
    plain = LearnedOptimizer(other, rule)
    for _ in range(3):
        wrapped.zero_grad()
        accelerator.backward(loss_of(prepared))
        wrapped.step()
        scheduler.step()
    train(other, plain, 3, torch.optim.lr_scheduler.StepLR(plain, 1, 0.9))
    assert_same(net, other)


# Agreement with torch.


def test_adam_is_torchs_adam_and_decay_makes_it_adamw():
    for decay, theirs in ((0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)):
        net, other = network(dtype=torch.float64), network(dtype=torch.float64)
        train(net, LearnedOptimizer(net, Adam(1.0), lr=1e-2, weight_decay=decay), 10)
        train(other, theirs(other.parameters(), lr=1e-2, weight_decay=decay), 10)
        assert_same(net, other, rtol=1e-12, atol=1e-12)


# What the rule is shown.


def test_the_loss_that_a_rule_is_told():
    net, rule = network(), Recorder()
    optimizer = LearnedOptimizer(net, rule)
    loss_of(net).backward()
    optimizer.observe(2.5)
    optimizer.step()
    optimizer.step()  # once told, once used
    optimizer.observe(2.5)
    optimizer.step(lambda: 1.5)  # a closure comes first
    optimizer.step(lambda: torch.tensor([0.5], requires_grad=True))
    told = [None if loss is None else (loss.item(), loss.shape, loss.requires_grad) for loss in rule.losses]
    assert told == [(2.5, (), False), None, (1.5, (), False), (0.5, (), False)]


@pytest.mark.parametrize("result", [(torch.tensor(1.5), torch.ones(3, 2)), {"loss": 1.5}, [1.5, 2.5], "done"])
def test_a_closure_may_return_more_than_a_loss(result):
    """As torch's may; the loss is what is observed, then."""
    net, rule = network(), Recorder()
    optimizer = LearnedOptimizer(net, rule)
    loss_of(net).backward()
    assert optimizer.step(lambda: result) is result
    assert optimizer.step(lambda: (optimizer.observe(2.5), result)[1]) is result
    assert [None if loss is None else loss.item() for loss in rule.losses] == [None, 2.5]


def test_a_rule_that_needs_the_whole_network_gets_it():
    net, rule = network(), Recorder(whole=True)
    net[0].requires_grad_(False)
    before = copy.deepcopy(net)
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 1)
    assert list(rule.grads[0]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not rule.grads[0]["0.weight"].any()
    assert_same(net[0], before[0])
    assert net[0].weight not in optimizer.state and net[2].weight in optimizer.state


def test_weights_in_no_group_are_seen_and_not_moved():
    """Frozen ones, and ones of another optimizer, whose gradients are not this one's; copies see theirs."""
    net, rule = network(), Recorder(whole=True)
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net)
    optimizer = LearnedOptimizer(net[2].parameters(), rule, net=net)
    train(net, optimizer, 1)
    assert sorted(rule.grads[0]) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert net[0].bias.grad.any() and not rule.grads[0]["0.bias"].any() and not rule.grads[0]["0.weight"].any()
    assert_same(net[0], before[0])
    assert list(optimizer.state) == list(net[2].parameters())
    other, copied = pickle.loads(pickle.dumps((net, optimizer)))
    assert copied.seen["0.weight"] is other[0].weight
    train(other, copied, 1)
    assert sorted(copied.rule.grads[1]) == sorted(rule.grads[0])
    optimizer.add_param_group({"params": [net[0].bias]})
    assert list(optimizer.seen) == ["0.weight"]
    plain = Recorder()
    train(net, LearnedOptimizer(net[2].parameters(), plain, net=net), 1)
    assert list(plain.grads[0]) == ["2.weight", "2.bias"]


@pytest.mark.parametrize("given", ["all", "trainable"])
@pytest.mark.parametrize("rule", ["geometric", "metanet"])
def test_a_rescaled_copy_with_frozen_weights_stays_a_copy(rule, given):
    """Whether the frozen layer is given to the optimizer or only known from the network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    net[0].requires_grad_(False)
    other = copy.deepcopy(net)
    factors = (4 * torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 2).exp()
    with torch.no_grad():
        other[0].weight *= factors[:, None]
        other[0].bias *= factors
        other[2].weight /= factors
    start = loss_of(net).item()
    for one in (net, other):
        params = [p for p in one.parameters() if p.requires_grad or given == "all"]
        train(one, LearnedOptimizer(params, RULES[rule](), net=one), 15)
    assert loss_of(net).item() < 0.8 * start
    torch.testing.assert_close(other(X.double()), net(X.double()), rtol=1e-9, atol=1e-9)


def test_a_state_may_be_what_the_rule_was_shown():
    """A rule that keeps the last parameters and gradients finds them as they were."""

    class Memory(Recorder):
        def update(self, wiring, grads, state, params, *, loss=None):
            deltas, new = super().update(wiring, grads, state, params)
            return deltas, {n: {**s, "before": params[n], "slope": grads[n]} for n, s in new.items()}

    net = network()
    optimizer = LearnedOptimizer(net, Memory())
    before = copy.deepcopy(net)
    train(net, optimizer, 1)
    slope = net[0].weight.grad.clone()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(optimizer.state[net[0].weight]["before"], before[0].weight)
    assert torch.equal(optimizer.state[net[0].weight]["slope"], slope)


def test_half_precision_is_seen_as_float32():
    net, rule = network(dtype=torch.bfloat16), Recorder()
    train(net, LearnedOptimizer(net, rule), 1)
    assert {grad.dtype for grad in rule.grads[0].values()} == {torch.float32}
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}


def test_autocast_is_the_closures_alone(rule):
    """The rule's products stay in float32: same deltas, same state. The closure's are the user's."""
    net, other = network(), network()
    optimizer, plain = LearnedOptimizer(net, rule), LearnedOptimizer(other, rule)

    def closure():
        assert (X @ X.mT).dtype == torch.bfloat16

    for _ in range(3):
        for one in (net, other):
            one.zero_grad()
            loss_of(one).backward()
        with torch.autocast("cpu", torch.bfloat16):
            optimizer.step(closure)
        plain.step()
    assert_same(net, other)
    torch.testing.assert_close(list(optimizer.state.values()), list(plain.state.values()), rtol=0, atol=0)


def test_parameters_of_two_dtypes(rule):
    """They keep theirs, and a rule that joins them steps as in the wider one; also from a state in the other."""
    net, other = network(), network(dtype=torch.float64)
    net[0].double()
    for i in (0, 2):
        for p, q in zip(net[i].parameters(), other[i].parameters(), strict=True):
            p.data.copy_(q)
    optimizer = LearnedOptimizer(net[2].parameters(), rule, net=net)
    plain = LearnedOptimizer(other[2].parameters(), rule, net=other)
    for step in range(3):
        if step == 1:
            optimizer.add_param_group({"params": net[0].parameters()})
            plain.add_param_group({"params": other[0].parameters()})
        plain.zero_grad()
        loss_of(other).backward()
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.grad = q.grad.to(p.dtype)
        optimizer.step()
        plain.step()
    assert [p.dtype for p in net.parameters()] == [torch.float64] * 2 + [torch.float32] * 2
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("rule", [name for name in CONTRACT if name != "gauge-gmn"], indirect=True)
def test_parameters_without_elements_are_left_out(rule, caplog):
    net = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
    optimizer = LearnedOptimizer(net, rule)
    assert list(optimizer.wiring.by_name) == ["1.bias"] and not caplog.text
    nn.init.ones_(net[1].bias)
    train(net, optimizer, 2)
    assert len(optimizer.state) == 1 and (net[1].bias < 1).all()


# What it is given.


def test_a_stack_of_networks_is_optimized_by_its_wiring():
    spec = NetworkSpec.siren((2, 5, 1))
    generator = torch.Generator().manual_seed(0)
    params = {k: nn.Parameter(torch.randn(3, *s, generator=generator)) for k, s in spec.param_shapes().items()}
    optimizer = LearnedOptimizer(params.items(), Adam(1e-2), wiring=Wiring.of(spec))
    sum(p.square().sum() for p in params.values()).backward()
    optimizer.step()
    assert {state["step"].shape for state in optimizer.state.values()} == {(3,)}
    with pytest.raises(ParamsError, match="without a name"):
        LearnedOptimizer(list(params.values()), Adam(1e-2), wiring=Wiring.of(spec))


def test_parameters_alone_are_isolated_matrices():
    tensors = [nn.Parameter(torch.ones(shape)) for shape in ((4, 3), (4,), (2, 3, 3, 3), ())]
    rule = Recorder()
    optimizer = LearnedOptimizer(tensors, rule)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    wires = rule.wirings[0].wires
    assert [(wire.kind, wire.view) for wire in wires] == [
        ("weight", (4, 3, 1)),
        ("bias", (4, 1, 1)),
        ("weight", (2, 3, 9)),
    ]
    assert len({end for w in wires for end in (w.target, w.source) if end is not None}) == 5
    assert [group["outside"] for group in optimizer.param_groups] == [False, True]
    assert optimizer.state[tensors[3]] and tensors[3].item() < 1
    with pytest.raises(WeightEditError, match="parameters alone for Recorder, which reads the network's graph"):
        LearnedOptimizer(tensors, Recorder(needs_wiring=True))


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager"), lambda net: net])
def test_names_are_the_users_modules(wrap):
    optimizer = LearnedOptimizer(wrap(network()), Adam())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


class Tempered(GPT):
    """With two numbers, which no rule for matrices knows anything of."""

    def __init__(self):
        super().__init__()
        self.offset, self.temperature = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(1.0))

    def forward(self, tokens):
        return self.temperature * super().forward(tokens) + self.offset


def test_parameters_outside_the_graph_are_told_of_and_moved_by_adamw(caplog):
    net = Tempered()
    names = ["offset", "temperature"]
    with caplog.at_level(logging.WARNING):
        optimizer = LearnedOptimizer(net, TinyRule(), lr=0.5, weight_decay=0.1)
    assert "What is not in the neural graph is optimized by AdamW at lr 0.001" in caplog.text
    inside, outside = optimizer.param_groups
    assert (inside["lr"], outside["lr"], outside["outside"]) == (0.5, 0.5, True)
    assert sorted(outside["param_names"]) == names and all(name in caplog.text for name in names)
    twins = [nn.Parameter(p.detach().clone()) for p in outside["params"]]
    theirs = torch.optim.AdamW(twins, lr=1e-3, weight_decay=0.1)
    for seed in range(3):
        tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(seed))
        net.zero_grad()
        nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()
        for twin, p in zip(twins, outside["params"], strict=True):
            twin.grad = p.grad.clone()
        optimizer.step()
        theirs.step()
    torch.testing.assert_close([p.detach() for p in outside["params"]], [p.detach() for p in twins])


def test_an_lr_of_the_rule_does_not_reach_what_is_outside():
    """Unless a group that holds nothing else states one."""
    net = Tempered()
    every = [{"params": list(net.parameters()), "lr": 2.0, "initial_lr": 2.0}]

    def rates(groups, **options):
        optimizer = LearnedOptimizer(groups, TinyRule(), net=net, **options)
        return [rate_of(group) for group in optimizer.param_groups]

    assert rates(every) == [2.0, 1e-3]
    assert rates(every, outside_lr=0.5) == [2.0, 0.5]
    assert rates(every, outside=Adam(1e-4)) == [2.0, 1.0]
    numbers = [net.offset, net.temperature]
    rest = [p for p in net.parameters() if all(p is not q for q in numbers)]
    assert rates([{"params": rest, "lr": 2.0}, {"params": numbers, "lr": 0.01}]) == [2.0, 0.01]
    optimizer = LearnedOptimizer(every, TinyRule(), net=net)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5, last_epoch=3)
    assert [rate_of(group) for group in optimizer.param_groups] == [1.0, 5e-4]


SCHEDULES = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (lambda optimizer: SCHEDULES.LambdaLR(optimizer, lambda step: 1 / (1 + step)), [1, 1 / 2, 1 / 3, 1 / 4]),
        (lambda optimizer: SCHEDULES.StepLR(optimizer, 2, 0.1), [1, 1, 0.1, 0.1]),
        (
            lambda optimizer: SCHEDULES.CosineAnnealingLR(optimizer, 4, eta_min=0.2),
            [1, 0.1 + 0.9 * (0.5 + 0.5**1.5), 0.1 + 0.9 * 0.5, 0.1 + 0.9 * (0.5 - 0.5**1.5)],
        ),
        (lambda optimizer: SCHEDULES.OneCycleLR(optimizer, 2.0, 5, div_factor=2, cycle_momentum=False), [0.5]),
    ],
)
def test_schedulers_of_networks_with_parameters_outside(schedule, factors):
    """Both groups keep their proportion, also under what sets an lr, and take the steps that these rates make."""
    (net, other), tokens = (seeded(Tempered), seeded(Tempered)), torch.arange(6)[None]
    optimizer, plain = LearnedOptimizer(net, TinyRule(), lr=2.0), LearnedOptimizer(other, TinyRule(), lr=2.0)
    scheduler = schedule(optimizer)
    for factor in factors:
        rates = [rate_of(group) for group in optimizer.param_groups]
        assert rates == pytest.approx([2.0 * factor, 1e-3 * factor])
        for group in plain.param_groups:
            group["lr"] = 2.0 * factor
        for one, own in ((net, optimizer), (other, plain)):
            own.zero_grad()
            nn.functional.cross_entropy(one(tokens)[0], tokens[0]).backward()
            own.step()
        scheduler.step()
    assert_same(net, other, rtol=1e-6, atol=1e-7)


def test_a_state_of_before_groups_had_units_goes_on_at_its_rates():
    """An lr of AdamW stood with parameters outside; loading changes nothing of what is loaded."""
    net = Tempered()
    optimizer = LearnedOptimizer(net, TinyRule(), lr=0.5)
    saved = optimizer.state_dict()
    for group, lr in zip(saved["param_groups"], (0.3, 4e-4), strict=True):
        del group["unit"], group["decay_unit"]
        group["lr"] = lr
    for _ in range(2):
        optimizer.load_state_dict(saved)
        assert [rate_of(group) for group in optimizer.param_groups] == pytest.approx([0.3, 4e-4])


def test_weight_decay_is_in_units_of_adamw():
    """At lr 1 a learned rule decays as AdamW does at 1e-3; one designed by hand as at its own learning rate."""
    for rule, rate in ((MLPRule(), 1e-3), (MetanetRule(), 1e-3), (Adam(0.01), 0.01), (Muon(0.02), 0.02)):
        net = network()
        before = copy.deepcopy(net)
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        LearnedOptimizer(net, rule, lr=2.0, weight_decay=0.1).step()
        lost = 0.1 if isinstance(rule, Muon) else 0.0  # its own
        for p, q in zip(net.parameters(), before.parameters(), strict=True):
            kept = 1 - 2 * rate * 0.1 - 2 * rate * lost * (p.dim() > 1)
            torch.testing.assert_close(p.detach(), kept * q.detach())


def test_outside_can_be_stated(caplog):
    net = Tempered()
    optimizer = LearnedOptimizer(net, TinyRule(), outside=Adam(1e-4), outside_lr=2.0)
    assert rate_of(optimizer.param_groups[1]) == 2.0 and "by Adam at lr 2.0" in caplog.text
    caplog.clear()
    frozen = Tempered()
    frozen.offset.requires_grad_(False)
    frozen.temperature.requires_grad_(False)
    LearnedOptimizer(frozen, TinyRule())
    assert not caplog.text


def test_what_cannot_be_followed_is_told_of_at_the_first_step(caplog):
    net = Unreadable()
    optimizer = LearnedOptimizer(net, TinyRule())
    assert not caplog.text
    for _ in range(2):
        net(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert [record.getMessage() for record in caplog.records] == [
        "Unreadable is read layer by layer, without the symmetries that join its layers, since its forward cannot be "
        "followed without data: it stops in Unreadable, which decides by the values of tensors. Mend that part, or go "
        "on: every layer is optimized all the same."
    ]


@pytest.mark.parametrize("net", [nn.Linear(4, 2), nn.Conv2d(3, 4, 3), nn.MultiheadAttention(4, 2)])
def test_a_layer_alone_is_moved_by_the_rule(net, caplog):
    optimizer = LearnedOptimizer(net, MetanetRule())
    assert [group["outside"] for group in optimizer.param_groups] == [False] and not caplog.text
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all("momenta" in optimizer.state[p] for p in net.parameters())


def test_a_rule_that_will_move_nothing_is_told_of(caplog):
    """Nothing is read as a layer, or what is does not require a gradient."""
    said = "No parameter that requires a gradient is in the neural graph: MetanetRule will move nothing, %s everything"
    LearnedOptimizer(nn.ParameterList([torch.tensor(1.0)]), MetanetRule())
    assert said % "AdamW" in caplog.text
    caplog.clear()
    net = Tempered()
    LearnedOptimizer(net, MetanetRule())
    assert "will move nothing" not in caplog.text
    for name, p in net.named_parameters():
        p.requires_grad_(name == "offset")
    LearnedOptimizer(net, MetanetRule(), outside=Adam())
    assert said % "Adam" in caplog.text


def test_a_residual_network_with_batch_norm_trains():
    net = ResNet()
    optimizer = LearnedOptimizer(net, Adam(1e-2))
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), torch.arange(8) % 5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and len(optimizer.param_groups) == 1


# Refusals.


@pytest.mark.parametrize("flag", ["foreach", "fused", "maximize", "differentiable"])
def test_flags_are_refused_by_name(flag):
    with pytest.raises(WeightEditError, match=f"{flag}=True; LearnedOptimizer does not take it"):
        LearnedOptimizer(network(), Adam(), **{flag: True})
    net = network()
    with pytest.raises(WeightEditError, match=f"{flag}=True"):
        LearnedOptimizer([{"params": net.parameters(), flag: True}], Adam(), net=net)
    LearnedOptimizer(net, Adam(), **{flag: False})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, WeightEditError, "lr=-1.0; expected one finite number"),
        ({"lr": torch.ones(2)}, WeightEditError, "expected one finite number"),
        ({"lr": torch.tensor(-1.0)}, WeightEditError, r"lr=-1.0; expected one finite number"),
        ({"lr": torch.tensor([float("nan")])}, WeightEditError, r"lr=tensor.*nan.*; expected one finite number"),
        ({"weight_decay": float("nan")}, WeightEditError, "weight_decay=nan"),
        ({"nonfinite": "ignore"}, WeightEditError, "nonfinite='ignore'"),
        ({"lr": "1"}, WeightEditError, "lr='1'; expected one finite number"),
        ({"betas": (0.9, 0.9)}, WeightEditError, "betas=.*does not take it: it is the rule's"),
        ({"inputz": None}, TypeError, "inputz; expected lr, weight_decay, net, wiring, inputs"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LearnedOptimizer(network(), Adam(), **arguments)


@pytest.mark.parametrize(
    ("rule", "named"), [(1e-3, "0.001"), (Adam, "the class Adam"), (torch.optim.Adam, "the class Adam"), (None, "None")]
)
def test_what_is_no_rule_is_refused(rule, named):
    """A rate by its place, as torch's optimizers take it, would be one."""
    with pytest.raises(TypeError, match=f"got {named} as the rule; expected an update rule.*by its keyword, lr="):
        LearnedOptimizer(network(), rule)


def test_a_rate_of_another_optimizer_is_warned_of(caplog):
    net, learned = network(), RULES["small_fc"]()
    for rule, lr, warned in (
        (learned, 1e-3, True),
        (learned, 1.0, False),
        (learned, 0.0, False),
        (Adam(), 1e-3, False),
    ):
        caplog.clear()
        LearnedOptimizer(net, rule, lr=lr)
        assert ("no rate as AdamW's is: begin with 1" in caplog.text) == warned


def test_a_rate_that_is_learned_is_looked_at_without_a_warning(recwarn):
    LearnedOptimizer(network(), RULES["metanet"](), lr=torch.tensor(1.0, requires_grad=True))
    assert not [warning for warning in recwarn if "requires_grad" in str(warning.message)]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda: {nn.Parameter(torch.ones(2))}, TypeError, "a set of parameters"),
        (lambda: ["weight"], TypeError, "a str as a parameter"),
        (lambda: [nn.Parameter(torch.ones(2, dtype=torch.complex64))], ParamsError, "parameter.0 is complex"),
        (lambda: [("a", nn.Parameter(torch.ones(2)))] * 2, ParamsError, "two parameters called 'a'"),
    ],
)
def test_wrong_parameters(params, error, message):
    with pytest.raises(error, match=message):
        LearnedOptimizer([{"params": params()}], Adam())


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = LearnedOptimizer(embedding, Adam())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(WeightEditError, match="weight has a sparse gradient"):
        optimizer.step()


def test_a_shard_is_refused_and_ddp_named():
    net = network()
    optimizer = LearnedOptimizer(net, Adam())
    with torch.no_grad():
        net[0].weight.set_(net[0].weight.flatten()[:7].clone())  # as FSDP leaves it
    net[0].weight.grad = torch.ones(7)
    with pytest.raises(WeightEditError, match="0.weight as a Parameter of shape .7,., a shard.*DDP instead of FSDP"):
        optimizer.step()


def test_a_resized_parameter_is_refused_as_what_it_is():
    net = network()
    optimizer = LearnedOptimizer(net, Adam())
    net[0].weight.data = torch.ones(7, 3)
    net[0].weight.grad = torch.ones(7, 3)
    with pytest.raises(WeightEditError, match=r"of shape \(7, 3\); expected \(5, 3\), as .*make the optimizer anew"):
        optimizer.step()


def with_names(saved):
    """As JSON has it."""
    return {**saved, "state": {str(key): kept for key, kept in saved["state"].items()}}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (with_names, "a state for '0', '1'.*; expected keys that stand as params in its groups, 0, 1"),
        (
            lambda saved: saved["state"],
            "got 0, 1, 2, 3 as the state of an optimizer; expected a dictionary of state and",
        ),
        (lambda saved: {"optimizer": saved}, "got optimizer as the state"),
        (lambda saved: [saved], "got a list as the state"),
        (lambda saved: {}, "got nothing as the state"),
    ],
)
def test_what_no_state_dict_gave_is_refused(mistake, message):
    """Torch's own would leave such a state out, and begin anew without a word."""
    net = network()
    optimizer = LearnedOptimizer(net, Adam())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(ParamsError, match=message):
        optimizer.load_state_dict(mistake(optimizer.state_dict()))


def test_a_state_of_another_rule_is_refused():
    net = network()
    optimizer = LearnedOptimizer(net, Adam())
    train(net, optimizer, 1)
    with pytest.raises(ParamsError, match="first, second for 0.weight; expected step, mean of TinyRule"):
        LearnedOptimizer(net, TinyRule()).load_state_dict(optimizer.state_dict())


def grouped(net, order, rule):
    """An optimizer with one group per layer, in this order, each with an lr of its own."""
    groups = [{"params": list(net[i].parameters())[::step], "lr": 0.5 + i} for i, step in order]
    return LearnedOptimizer(groups, rule, net=net)


def test_a_state_goes_to_the_parameters_of_its_names(rule):
    """Groups and parameters stand in another order than when they were saved."""
    net, other = network(), network()
    optimizer = grouped(net, [(0, 1), (2, 1)], rule)
    train(net, optimizer, 2)
    other.load_state_dict(net.state_dict())
    resumed = grouped(other, [(2, 1), (0, -1)], rule)
    resumed.param_groups[0]["lr"] = resumed.param_groups[1]["lr"] = 7.0
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in resumed.param_groups] == [2.5, 0.5]
    assert [group["param_names"] for group in resumed.param_groups] == [["2.weight", "2.bias"], ["0.bias", "0.weight"]]
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(resumed.state[q], optimizer.state[p], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mlp", "metanet"])
def test_a_state_of_before_there_was_a_peak_or_an_origin_goes_on(name):
    """One that is not there is found anew: a peak is that of two steps, and an origin the scale of now."""
    net, other = network(), network()
    optimizer, resumed = (LearnedOptimizer(net, rule := RULES[name]()), LearnedOptimizer(other, rule))
    train(net, optimizer, 2)
    other.load_state_dict(net.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    for kept in saved["state"].values():
        kept.pop("peak"), kept.pop("origin", None)
    resumed.load_state_dict(saved)
    train(net, optimizer, 1)
    train(other, resumed, 1)
    assert_same(net, other)


def test_a_group_without_an_lr_has_the_optimizers():
    optimizer = LearnedOptimizer(network(), MLPRule(), lr=0.3)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["lr"], saved["param_groups"][0]["weight_decay"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.3 and optimizer.param_groups[0]["weight_decay"] == 0.0


@pytest.mark.parametrize("wrong", [5, [1.0], {"step": "two"}])
def test_a_state_of_other_things_is_refused(wrong):
    net = network()
    optimizer = LearnedOptimizer(net, MLPRule())
    train(net, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0] = wrong
    with pytest.raises(ParamsError, match="expected tensors or numbers: load what state_dict"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("quantity", ["step", "momenta", "peak"])
def test_a_state_that_is_not_of_finite_numbers_is_refused(quantity):
    net = network()
    optimizer = LearnedOptimizer(net, MLPRule())
    train(net, optimizer, 2)
    for spoil, fault in (
        (lambda kept: kept * torch.nan, "not finite"),
        (lambda kept: kept.long(), "of torch.int64"),
        (lambda kept: kept.to(torch.complex64), "of torch.complex64"),
    ):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][1][quantity] = spoil(saved["state"][1][quantity])
        with pytest.raises(ParamsError, match=f"whose {quantity} is {fault} for 0.bias; expected finite floating"):
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), -1.0, torch.tensor(float("inf"))])
def test_numbers_of_a_saved_group_are_held_to_the_constructors(key, value):
    net = network()
    optimizer = LearnedOptimizer(net, TinyRule())
    train(net, optimizer, 1)
    saved, before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][key] = value
    with pytest.raises(WeightEditError, match=f"{key}=.*; expected one finite number >= 0"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_a_step_may_be_a_number(rule):
    """As torch keeps it where it may."""
    net = network()
    optimizer, resumed = LearnedOptimizer(net, rule), LearnedOptimizer(net, rule)
    train(net, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    resumed.load_state_dict(saved)
    torch.testing.assert_close(resumed.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)


def test_no_two_tensors_of_a_state_share_memory(rule, tmp_path):
    """safetensors refuses those."""
    net = network()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 2)
    state = optimizer.state_dict()["state"]
    tensors = {f"{name}/{key}": tensor for name, kept in state.items() for key, tensor in kept.items()}
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == len(tensors)
    save_file(tensors, tmp_path / "state.safetensors")


def resized(width):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


def test_a_refused_state_leaves_the_optimizer_as_it_was(rule):
    """It steps on bit by bit, whatever was refused."""
    net, other = network(), network()
    optimizer, plain = LearnedOptimizer(net, rule), LearnedOptimizer(other, rule)
    train(net, optimizer, 2)
    train(other, plain, 2)
    before = optimizer.state_dict()
    wide = resized(6)
    foreign = LearnedOptimizer(wide, rule)
    train(wide, foreign, 1)
    one, stranger = grouped(net, [(0, 1), (2, 1)], rule), LearnedOptimizer(net, Recorder())
    train(network(), one, 1)
    for quantity in ("step", "other"):
        stranger.state[net[0].weight][quantity] = torch.zeros(())
    fewer = {**before, "param_groups": [{**before["param_groups"][0], "params": [0], "param_names": ["0.weight"]}]}
    for state, message in (
        (foreign.state_dict(), r"has shape .* for 0.weight of shape \(5, 3\); expected"),
        (stranger.state_dict(), "a state with step, other for 0.weight; expected .*step"),
        (one.state_dict(), "no group holds 0.weight, 0.bias, 2.weight, 2.bias and nothing else"),
        (fewer, "doesn't match the size"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
    train(net, optimizer, 1)
    train(other, plain, 1)
    assert_same(net, other)
    torch.testing.assert_close(list(optimizer.state.values()), list(plain.state.values()), rtol=0, atol=0)


def test_a_state_without_names_goes_by_position():
    net = network()
    optimizer = LearnedOptimizer(net, TinyRule())
    train(net, optimizer, 2)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["param_names"]
    resumed = LearnedOptimizer(net, TinyRule())
    resumed.load_state_dict(saved)
    torch.testing.assert_close(resumed.state_dict()["state"], saved["state"], rtol=0, atol=0)


def test_hooks_see_a_state_before_it_is_checked():
    net = network()
    optimizer, other = LearnedOptimizer(net, TinyRule()), LearnedOptimizer(net, TinyRule())
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    renamed = {key: {"steps": s["step"], "mean": s["mean"]} for key, s in saved["state"].items()}

    def rename(_, given):
        return {**given, "state": {k: {"step": s["steps"], "mean": s["mean"]} for k, s in given["state"].items()}}

    other.register_load_state_dict_pre_hook(rename)
    other.load_state_dict({**saved, "state": renamed})
    torch.testing.assert_close(other.state_dict()["state"], saved["state"], rtol=0, atol=0)


def test_loading_names_the_kinds_of_rules(tmp_path):
    save_checkpoint(tmp_path / "editor", {"a": torch.ones(1)}, {"kind": "editor"}, "card")
    with pytest.raises(FileFormatError, match="kind 'editor'; expected one of kind mlp-rule"):
        RuleModule.from_pretrained(tmp_path / "editor")
    with pytest.raises(FileFormatError, match="does not exist"):
        LearnedOptimizer(network(), str(tmp_path / "a" / "b" / "nothing"))


# Trainers that make the optimizer, and loops that own the step.


def test_the_factory():
    net = network()
    optimizer = optimizer_factory()(net, rule=Adam(), lr=0.5)
    assert isinstance(optimizer, LearnedOptimizer) and optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize(("name", "steps"), [("adam", 4), ("tiny", 4), ("mlp", 4), ("metanet", 2)])
def test_compiled_updates_agree(name, steps):
    """As one graph, which small networks are; the metanetwork rule's takes most of a minute to compile."""
    rule = RULES[name]()
    net, other = network(), network()
    train(net, LearnedOptimizer(net, rule, compile=True), steps)
    train(other, LearnedOptimizer(other, rule), steps)
    assert_same(net, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mlp", "metanet"])
def test_a_rule_says_how_it_is_compiled(name, monkeypatch):
    """compile=True uses the rule's own `compiled`; here large networks go through its passes, without a compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function.__name__) or function)
    for size in ("_WHOLE", "_ALONE"):
        monkeypatch.setattr(f"weightedit.optim.unitwise.{size}", 1)
    rule, compiled = RULES[name](), []
    net, other = network(), network()
    optimizer = LearnedOptimizer(net, rule, compile=True)
    train(net, optimizer, 4)
    passes = {"mlp": ["_gather", "_energies", "_combined"], "metanet": ["hidden", "_gather", "move", "move_on"]}
    assert compiled == passes[name]
    train(other, LearnedOptimizer(other, rule), 4)
    # Rounding of float32, which leveling amplifies; in float64 they agree to 1e-11 (test_metanet_rule.py).
    assert_same(net, other, rtol=1e-4, atol=1e-6)
    before = [p.detach().clone() for p in net.parameters()]
    net[0].weight.grad[1, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"0.weight at step 5 .*\(its gradient is not finite either\)"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("bad", ["gradient", "update"])
def test_a_compiled_step_says_itself_whether_it_is_sound(bad, monkeypatch):
    """As one graph: the size of all that it gives comes with it, and nothing is read anew to refuse it."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    net = network()
    optimizer = LearnedOptimizer(net, RULES["metanet"](), compile=True)
    train(net, optimizer, 2)
    monkeypatch.setattr("weightedit.optim.stepping.size", lambda _: pytest.fail("read anew"))
    train(net, optimizer, 1)
    update = optimizer._updates[False]
    made = [tensor for p in net.parameters() for tensor in optimizer.state[p].values()]
    least = torch.cat([tensor.flatten() for tensor in made]).norm()  # beside it, the deltas, which are smaller
    assert least < update.size < 2 * least
    before = [p.detach().clone() for p in net.parameters()], copy.deepcopy(optimizer.state_dict()["state"])
    if bad == "gradient":
        net[0].weight.grad[1, 1] = torch.inf
    else:  # finite, with squares that are not
        net[0].weight.grad[1, 1] = 1e30
    with pytest.raises(NonFiniteError, match="0.weight at step 4"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before[0], strict=True))
    for kept, was in zip(optimizer.state_dict()["state"].values(), before[1].values(), strict=True):
        assert all(torch.equal(kept[key], tensor) for key, tensor in was.items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize("name", ["mlp", "metanet"])
def test_compiled_passes_over_large_tensors_agree(name, monkeypatch):
    for size in ("_WHOLE", "_ALONE"):
        monkeypatch.setattr(f"weightedit.optim.unitwise.{size}", 1)
    rule = RULES[name]()
    net, other = network(), network()
    optimizers = [LearnedOptimizer(net, rule, compile=True), LearnedOptimizer(other, rule)]
    for optimizer, own in zip(optimizers, (net, other), strict=True):
        train(own, optimizer, 4)
    assert_same(net, other, rtol=1e-4, atol=1e-6)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        for key, quantity in optimizers[0].state[p].items():
            torch.testing.assert_close(quantity, optimizers[1].state[q][key], rtol=1e-4, atol=1e-6)


class Pair(nn.Module):
    """Two inputs, whose shapes nobody can guess, and a weight that is read from the right."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)
        self.table, self.last = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 2)

    def forward(self, x, y):
        return self.last(torch.relu(torch.relu(self.a(x) + self.b(y)) @ self.table))


def test_the_first_forward_says_what_the_inputs_are(caplog):
    """Read again at the first step, as if they had been given; a state is loaded before that or after."""

    def trained(net, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.ones(3, 4), torch.arange(9.0).view(3, 3)).square().sum().backward()
            optimizer.step()
        return net

    (net, other, third), rule = (seeded(Pair), seeded(Pair), seeded(Pair)), seeded(MetanetRule)
    waiting = LearnedOptimizer(net, rule)
    told = LearnedOptimizer(other, rule, inputs=(torch.ones(3, 4), torch.ones(3, 3)))
    assert str(waiting.wiring.sets[waiting.wiring.by_name["a.weight"].target]) == "none" and not caplog.text
    assert_same(trained(net, waiting, 3), trained(other, told, 3))
    assert waiting.wiring == told.wiring and not net._forward_pre_hooks
    assert str(waiting.wiring.sets[waiting.wiring.by_name["a.weight"].target]) == "permutation + scale"
    assert waiting.state[net.table]["second"].shape == (5, 6) and waiting.wiring.by_name["table"].stored == (6, 5)
    third.load_state_dict(net.state_dict())
    fresh = LearnedOptimizer(third, rule)
    fresh.load_state_dict(waiting.state_dict())
    assert_same(trained(net, waiting, 2), trained(third, fresh, 2))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_before_the_first_forward_waits_too(duplicate):
    net, x, y = Pair(), torch.ones(3, 4), torch.ones(3, 3)
    optimizer = LearnedOptimizer(net, TinyRule())
    for one, own in (duplicate((net, optimizer)), (net, optimizer)):
        one(x, y).sum().backward()
        own.step()
        assert not own.wiring.notes and own.wiring.sets[own.wiring.by_name["a.weight"].target].permutable
        assert not one._forward_pre_hooks
    alone = copy.deepcopy(LearnedOptimizer(Pair(), TinyRule()))
    for p in alone.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    alone.step()
    assert alone.wiring.notes


class Growing(nn.Module):
    """A layer may be put before the last."""

    def __init__(self):
        super().__init__()
        self.first, self.more, self.last = nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.relu(self.more(torch.relu(self.first(x)))))


def test_a_network_with_layers_added_later_is_read_again():
    """Their state and the rule are those of the network that it has become."""
    net, rule = seeded(Growing), seeded(MetanetRule)
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 2)
    kept = copy.deepcopy(optimizer.state[net.first.weight])
    net.more = seeded(lambda: nn.Linear(4, 4))
    optimizer.add_param_group({"params": list(net.more.parameters()), "lr": 0.5})
    assert [group["outside"] for group in optimizer.param_groups] == [False, False]
    assert optimizer.wiring == LearnedOptimizer(net, rule).wiring and "more.weight" in optimizer.wiring.by_name
    torch.testing.assert_close(optimizer.state[net.first.weight], kept, rtol=0, atol=0)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, 1)
    assert all(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_a_state_that_a_new_reading_would_arrange_otherwise_is_forgotten(caplog):
    net = seeded(Growing)
    optimizer = LearnedOptimizer(net, TinyRule())
    train(net, optimizer, 1)
    wire = optimizer.wiring.by_name["first.weight"]
    swapped = replace(wire, shape=(3, 4), target=wire.source, source=wire.target, sources=4, stored=(4, 3), axes=(1, 0))
    wires = tuple(swapped if one is wire else one for one in optimizer.wiring.wires)
    optimizer.wiring = replace(optimizer.wiring, wires=wires, plans={})
    net.more = nn.Linear(4, 4)
    optimizer.add_param_group({"params": list(net.more.parameters())})
    assert not optimizer.state.get(net.first.weight) and optimizer.state[net.last.weight]
    assert "first.weight is read in another way now" in caplog.text


def test_a_step_without_gradients_still_waits_for_the_first_forward():
    net = Pair()
    optimizer = LearnedOptimizer(net, TinyRule())
    optimizer.step()
    net(torch.ones(3, 4), torch.ones(3, 3)).sum().backward()
    optimizer.step()
    assert not optimizer.wiring.notes and optimizer.wiring.sets[optimizer.wiring.by_name["a.weight"].target].permutable


def test_without_a_forward_of_the_module_it_is_told_what_to_do(caplog):
    net = Pair()
    optimizer = LearnedOptimizer(net, TinyRule())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert "Pair is read layer by layer" in caplog.text and "pass inputs=, one batch" in caplog.text
    assert not net._forward_pre_hooks
