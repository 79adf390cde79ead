"""What a step of the lean rule costs on large networks: operations that it dispatches, bytes beside the state.

Both are counted on tensors without numbers, so that no time is measured. Each operation is a launch on a GPU.
"""

import pytest
import torch

from tasks.benchmark import GPT, resnet18
from tests.device_waits import operations
from weightedit.network.reading import wiring_of
from weightedit.optim import metanet_step
from weightedit.optim.memory import memory_of_step
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.metanet_rule_config import MetanetRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer

NETWORKS = {"ResNet-18": (resnet18, None, 1400, 105), "GPT": (GPT, torch.zeros(1, 8, dtype=torch.long), 1260, 90)}


@pytest.mark.parametrize("coherence", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_few_operations_and_little_memory(name, coherence, monkeypatch):
    """Somewhat above what was counted: pieces as on a GPU, then as on a CPU, where a step holds eleven floats."""
    make, inputs, most, held = NETWORKS[name]
    net = make()
    wiring, rule = wiring_of(net, inputs), MetanetRule(MetanetRuleConfig(coherence=coherence))
    params = {n: wiring.by_name[n].arranged(p.detach()).to("meta") for n, p in net.named_parameters()}
    count = sum(p.numel() for p in params.values())
    rule.to("meta")
    state = rule.init(wiring, params)
    with torch.no_grad():
        rule.update(wiring, params, state, params)
        with operations() as mode:
            rule.update(wiring, params, state, params)
    assert mode.count <= most + 100 * coherence, mode.count
    assert memory_of_step(rule, wiring, params) <= held * count
    monkeypatch.setitem(metanet_step.PIECES, "meta", metanet_step.PIECES["cpu"])
    assert memory_of_step(rule, wiring, params) <= 44 * count


class _Ready:
    """A rule that moves along the gradient and dispatches nothing."""

    def init(self, wiring, params):
        return {name: {} for name in params}

    def update(self, wiring, grads, state, params, *, loss=None):
        return dict(grads), {name: {} for name in grads}


def test_around_the_rule_no_parameter_has_operations_of_its_own():
    params = [torch.zeros(256, 256, requires_grad=True) for _ in range(30)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = LearnedOptimizer(params, _Ready())
    optimizer.step()
    with operations() as mode:
        optimizer.step()
    assert mode.count < 20, mode.count
