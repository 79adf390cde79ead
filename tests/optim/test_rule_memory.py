"""What a step holds: told without taking it, as it is when it is taken."""

import logging
import platform
import resource
from dataclasses import replace

import pytest
import torch

from tests.networks import generator
from tests.residual_networks import RESIDUAL, trained
from weightedit.errors import WeightEditError
from weightedit.metanet.registry import METANETS
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.reading import wiring_of
from weightedit.network.spec import NetworkSpec
from weightedit.network.wiring import Wiring
from weightedit.optim import memory
from weightedit.optim.learned_rule import make_rule
from weightedit.optim.memory import Alive, keep_freed, memory_of_step, tell_memory

SPEC = NetworkSpec.mlp((5, 30, 20, 3), "relu")


def random_network(spec=SPEC):
    return {name: torch.randn(shape, generator=generator()) for name, shape in spec.param_shapes().items()}


@pytest.mark.parametrize("name", [name for name in METANETS if name != "statistics"])
def test_a_step_holds_what_was_told(name):
    rule, wiring, params = make_rule(name, [SPEC]), Wiring.of(SPEC), random_network()
    told = memory_of_step(rule, wiring, params)
    state = rule.init(wiring, params)
    with torch.no_grad():
        rule.update(wiring, params, state, params)  # constants are kept from here on
        with Alive() as alive:
            rule.update(wiring, params, state, params)
    assert 0.8 * alive.most < told < 1.5 * alive.most


@pytest.mark.parametrize("name", ["gauge-gmn-b", "ng-gnn"])
def test_so_does_a_step_of_a_network_that_is_no_chain(name):
    net, params = trained(RESIDUAL["small"], dtype=torch.float32)
    spec = GraphSpec.from_module(net)
    rule, wiring = make_rule(name, [spec]), replace(wiring_of(net), spec=spec)
    told, state = memory_of_step(rule, wiring, params), rule.init(wiring, params)
    with torch.no_grad():
        rule.update(wiring, params, state, params)
        with Alive() as alive:
            rule.update(wiring, params, state, params)
    assert 0.8 * alive.most < told < 1.5 * alive.most


def test_what_is_much_is_said_and_what_is_more_than_there_is_refused(caplog, monkeypatch):
    """10 million parameters: nothing of that size is made but the parameters themselves, which are expanded zeros."""
    spec = NetworkSpec.mlp((5, 3000, 3000, 3), "relu")
    params = {name: torch.zeros(()).expand(shape) for name, shape in spec.param_shapes().items()}
    rule, wiring = make_rule("gauge-gmn", [spec]), Wiring.of(spec)
    monkeypatch.setattr(memory, "memory_there", lambda _: 2**50)
    with caplog.at_level(logging.WARNING):
        tell_memory(rule, "it", wiring, params)
    assert "A step of it holds up to" in caplog.text and "GiB for 9030003 parameters" in caplog.text
    monkeypatch.setattr(memory, "memory_there", lambda _: 2**30)
    with pytest.raises(WeightEditError, match=r"a step would hold .* GiB; expected at most the 1.0 GiB of cpu: take a"):
        rule.init(wiring, params)
    assert memory.memory_there(torch.device("cpu")) == 2**30
    monkeypatch.undo()
    assert memory.memory_there(torch.device("cpu")) > 2**28


def test_a_model_that_looks_at_numbers_says_so(caplog, monkeypatch):
    spec = NetworkSpec.mlp((5, 300, 300, 3), "relu")
    rule = make_rule("dws", [spec])
    monkeypatch.setattr(type(rule.metanet), "edit", lambda *_: torch.zeros(1, device="meta").nonzero())
    with caplog.at_level(logging.WARNING):
        tell_memory(rule, "it", Wiring.of(spec), random_network(spec))
    assert "cannot be told beforehand" in caplog.text


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is freed stays at hand by how glibc adapts")
def test_what_a_step_frees_is_not_taken_anew():
    """Of 16 MB that are freed and taken again, nothing is a page fault: at the best of some times, since the system may
    take pages back by itself; what is given back is a fault every time."""

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**18) for _ in range(16)]
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed(torch.device("cpu"))
    assert min(faults() for _ in range(8)) < 2**12 / 10
