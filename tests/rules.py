"""Update rules that tests need: a small learned one, and ones that show what an optimizer hands to its rule."""

import torch
from torch import nn

from weightedit.optim.rule import beside, started


class TinyRule(nn.Module):
    """A learned rule of five weights: momentum, a squashed gradient, the parameter itself, time and loss."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(0.1 + 0.05 * torch.rand(5, generator=generator))

    def init(self, wiring, params):
        return started(wiring, params, "mean")

    def forward(self, wiring, grads, state, params, *, loss=None):
        wiring.lead(params)
        w, deltas, new = self.weights, {}, {}
        for name, grad in grads.items():
            step = state[name]["step"] + 1
            mean = state[name]["mean"].lerp(grad, 0.3)
            time = (beside(step, grad) / 10 - 1).tanh()
            size = w[0] + 0.1 * w[3] * time + (0 if loss is None else 0.1 * w[4] * beside(loss, grad))
            deltas[name] = -size * (mean + w[1] * (3 * grad).tanh()) - 0.01 * w[2] * params[name]
            new[name] = {"step": step, "mean": mean}
        return deltas, new

    def update(self, *args, **kwargs):
        return self(*args, **kwargs)


class Recorder:
    """Steps down the gradient, and keeps what it was shown."""

    def __init__(self, whole=False, needs_wiring=False):
        self.whole, self.needs_wiring = whole, needs_wiring
        self.losses, self.grads, self.wirings = [], [], []

    def init(self, wiring, params):
        return started(wiring, params)

    def update(self, wiring, grads, state, params, *, loss=None):
        self.losses.append(loss)
        self.grads.append(grads)
        self.wirings.append(wiring)
        return {name: -grad for name, grad in grads.items()}, {n: {"step": s["step"] + 1} for n, s in state.items()}
