"""How steady gradients are: what is known exactly of it, and what a rule that looks at it does."""

import math

import pytest
import torch

from tests.networks import SPECS, generator, random_params
from tests.optim.test_metanet_rule import random_rule
from tests.rounding import assert_agree
from weightedit.network.wiring import Wiring
from weightedit.optim.coherence import CLOSED, MARGIN, OPEN, Coherence, log_coherence, of_network, shares

B = 0.9
LEFT = (1 - B) / (1 + B)


def averages(gradients):
    """Norms of the averaged gradients, means of the averaged squares and the number of steps, step by step."""
    m, v = torch.zeros_like(gradients[0]), torch.zeros(())
    for t, g in enumerate(gradients, 1):
        m, v = B * m + (1 - B) * g, B * v + (1 - B) * g.square().mean()
        yield m.norm()[None], (v[None], torch.zeros(1)), torch.tensor([float(t)])


@pytest.mark.parametrize(("sign", "name"), [(1, "a slope that goes on"), (-1, "a valley that is crossed")])
def test_of_steady_and_of_alternating_gradients_it_is_what_the_sums_give(sign, name):
    g = torch.randn(7, generator=generator(0), dtype=torch.float64)
    for norms, means, steps in averages([sign**t * g for t in range(30)]):
        t = float(steps)
        average = (1 - B) * (1 - (sign * B) ** t) / (1 - sign * B) / (1 - B**t)  # of (sign)^i, but for a sign
        floor = (1 - B) / (1 + B) * (1 + B**t) / (1 - B**t)
        expected = max(0.02, average**2 / floor)
        found = log_coherence(
            norms, torch.tensor([7 * LEFT], dtype=torch.float64), means, 1 / (1 - B ** steps.double())
        )
        assert_agree(found.exp(), torch.tensor([expected], dtype=torch.float64), 1e3, name)


def test_of_uncorrelated_gradients_it_is_one():
    """Of 40,000 entries, whose mean square is as its variance says."""
    gradients = torch.randn(40, 40_000, generator=generator(1), dtype=torch.float64)
    *_, (norms, means, steps) = averages(gradients)
    found = log_coherence(norms, torch.tensor([40_000 * LEFT]), means, 1 / (1 - B ** steps.double()))
    assert abs(float(found)) < 5 * (2 / 40_000) ** 0.5


def test_what_is_new_to_a_network_says_nothing_and_what_is_open_stays_open():
    log, steps = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([1000.0, 1000.0, 1.0])
    before = Coherence(*torch.tensor([[1.5, 1.5, 0.0], [2.0, 2.0, 0.0], [0.9, 0.9, 0.0], [3.0, 4.0, 0.0]]))
    lately, counts = torch.rand(3), torch.tensor([1.0, 3.0, 100.0])
    known = of_network(log, before, lately, steps, counts)
    torch.testing.assert_close(known.log, torch.tensor(1.5 + 0.05 * (2 - 1.5)))
    torch.testing.assert_close(known.slope, torch.tensor(2 + 2.5 - MARGIN))
    for kept, own in zip(known.kept(), lately, strict=True):
        assert torch.equal(kept, torch.stack([*known[:3], own]))
    assert all(map(torch.equal, Coherence.of(known.kept()), [*(x.expand(3) for x in known[:3]), lately]))
    assert torch.equal(known.opened, before.opened.amax())
    further = of_network(log, before._replace(slope=torch.tensor([OPEN, OPEN, 0])), lately, steps, counts)
    assert float(further.opened) == float(further.size) == 1
    noise = of_network(torch.full((3,), -5.0), before, lately, steps, counts)
    assert float(noise.slope) == 0 and torch.equal(noise.opened, before.opened.amax())
    torch.testing.assert_close(noise.size, torch.tensor(CLOSED**0.1))


def test_shares_are_of_slope_and_of_what_alternates():
    expected = torch.tensor([[0.9, 0.0], [0.0, 0.0], [0.0, 0.75]])
    torch.testing.assert_close(shares(torch.tensor([10.0, 1.0, 0.25]).log()), expected)


def test_steps_open_on_a_slope_and_stay_small_in_noise():
    """Beside the same rule without it, of weights that do not look at it: CLOSED of its steps at first, then all."""
    wiring, params = Wiring.of(SPECS["relu"]), random_params(SPECS["relu"])
    rule, plain = (random_rule(coherence=c, averaging=False, warm=0) for c in (True, False))
    with torch.no_grad():
        for name, p in rule.named_parameters():
            p.zero_()
            if (own := dict(plain.named_parameters()).get(name)) is not None:
                p[tuple(map(slice, own.shape))] = own
    source = generator(2)
    slope = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
    for steady in (True, False):
        states, sizes = [one.init(wiring, params) for one in (rule, plain)], []
        for _ in range(40):
            noise = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
            with torch.no_grad():
                (some, states[0]), (whole, states[1]) = (
                    one(wiring, slope if steady else noise, state, params)
                    for one, state in zip((rule, plain), states, strict=True)
                )
            ratios = torch.cat([(a / whole[k]).flatten() for k, a in some.items()])
            torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-9, atol=0)
            sizes.append(float(ratios[0]))
        assert math.isclose(sizes[0], CLOSED, rel_tol=1e-6)
        if steady:
            assert sizes == sorted(sizes) and math.isclose(sizes[-1], 1, rel_tol=1e-9)
        else:
            assert max(sizes) < 0.5
