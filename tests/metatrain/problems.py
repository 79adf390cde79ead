"""Problems and rules of which the outer gradient is known in closed form."""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn

from weightedit.metatrain.image_optimizees import LabeledImages
from weightedit.metatrain.optimizee import Quadratic
from weightedit.optim.rule import started


class LogRate(nn.Module):
    """Gradient descent whose learned weight is the logarithm of its learning rate."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64).log())

    def init(self, wiring, params):
        return started(wiring, params)

    def forward(self, wiring, grads, state, params, *, loss=None):
        deltas = {name: -self.log_rate.exp() * grad for name, grad in grads.items()}
        return deltas, {name: {"step": own["step"] + 1} for name, own in state.items()}

    update = forward


@dataclass(frozen=True)
class Bowl(Quadratic):
    """A Quadratic with the same curvatures and start in every run, in float64; the target is zero."""

    shape: tuple[int, int] = (1, 2)
    curvatures: tuple[float, ...] = (1.0, 0.03)
    begin: tuple[float, ...] = (1.0, 3.0)
    dtype: torch.dtype = torch.float64

    def init(self, generator, count, *, held_out=False):
        def row(numbers):
            return torch.tensor(numbers, dtype=self.dtype).view(self.shape).repeat(count, 1, 1)

        return {"x": row(self.begin)}, {"target": row([0.0] * len(self.begin)), "curvature": row(self.curvatures)}

    def losses(self, log_rate, steps):
        """Before each step of gradient descent, in closed form; [steps], differentiable in `log_rate`.

        Gradients are those of a mean over the entries of x.
        """
        h = torch.tensor(self.curvatures, dtype=self.dtype)
        times = torch.arange(steps, dtype=self.dtype).unsqueeze(-1)
        left = (1 - log_rate.exp() * h / len(h)).abs() ** times * torch.tensor(self.begin, dtype=self.dtype)
        return 0.5 * (h * left.square()).mean(-1)

    def gradient(self, log_rate, steps):
        """Of the mean loss over `steps`."""
        log_rate = log_rate.detach().clone().requires_grad_()
        return torch.autograd.grad(self.losses(log_rate, steps).mean(), log_rate)[0]


@cache
def digits(dtype=torch.float32):
    """scikit-learn's handwritten digits, 8 x 8."""
    found = load_digits()
    images = torch.tensor(found.images).unsqueeze(1) / 16
    return LabeledImages.of(images, torch.tensor(found.target), dtype=dtype)
