import pytest
import torch

from weightedit.delta import apply_delta
from weightedit.errors import WeightEditError
from weightedit.optim.hand_designed import Adam
from weightedit.spec import NetworkSpec
from weightedit.wiring import Wiring

SPEC = NetworkSpec.siren((2, 5, 1))
WIRING = Wiring.of(SPEC)


def _problem():
    generator = torch.Generator().manual_seed(0)
    shapes = SPEC.param_shapes()
    params = {k: torch.randn(3, *shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}
    return params, {k: torch.randn(p.shape, generator=generator, dtype=torch.float64) for k, p in params.items()}


def test_adam_is_torchs_adam():
    """Ten steps on a quadratic, with a constant rate and with a cosine."""
    for horizon in (None, 10):
        params, centre = _problem()
        theirs = {k: p.clone().requires_grad_() for k, p in params.items()}
        optimizer = torch.optim.Adam(theirs.values(), lr=0.1, betas=(0.8, 0.95))
        rule = Adam(0.1, (0.8, 0.95), horizon=horizon)
        state = rule.init(WIRING, params)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10) if horizon else None
        for _ in range(10):
            optimizer.zero_grad()
            sum((p - centre[k]).square().sum() for k, p in theirs.items()).backward()
            optimizer.step()
            if schedule:
                schedule.step()
            grads = {k: 2 * (p - centre[k]) for k, p in params.items()}
            delta, state = rule.update(WIRING, grads, state, params)
            params = apply_delta(params, delta)
        for k, p in params.items():
            torch.testing.assert_close(p, theirs[k].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [{"learning_rate": 0.0}, {"betas": (1.0, 0.9)}, {"epsilon": -1.0}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(WeightEditError, match="positive learning rate"):
        Adam(**numbers)
