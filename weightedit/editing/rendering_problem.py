"""Fitting N INRs to N target images, or to samples, as refinement sees it: residuals, gradients, curvature factors.

Here: one pass over the pixels (samples are pixels that lie anywhere), forwards and backwards. How a linear last layer
is solved is last_layer.py's; which step is taken with all this, refinement.py's and curvature.py's. Any function that
network/layer.py knows may follow a layer. Everything is differentiable, so that a rule can be meta-trained through its
steps; inr/fitting_kernel.py computes the same gradients in place, for fits from scratch that take a hundred steps.

Formulas, elementary. Legend: a_l what layer l reads, with a 1 appended; V_l weight and bias of layer l, times omega in
a sine layer, so that a_{l+1} = f_l(V_l a_l) with f_l = sin or another function; r residual, output minus target, C
outputs, P pixels. A layer is curved if a function follows it: all are, but for a linear last one.
* Loss of one network: sum r^2 / (2 P). With J_l the derivative of the outputs by the phases V_l a_l, its gradient by
  V_l is sum_{c, p} r J_l a_l^T / P. J of a curved last layer is diagonal, f'(V a).
* Its Gauss-Newton matrix for V_l alone is about G_l (x) A_l, with A_l = sum_p a_l a_l^T / P and
  G_l = sum_{c, p} J_l J_l^T / P (Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
  Curvature", 2015).
* Curvature of large pictures is that of some rows and columns, which is what most of a step would go to: gradients
  need one sum over the pixels for every layer, factors one for every output as well.
* First layer: on pixels its phase is a function of the row plus one of the column: of sines, H + W places are enough.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.editing.last_layer import Moments, pooled
from weightedit.errors import ParamsError
from weightedit.inr.convention import Convention, widths_of
from weightedit.network.layer import Activation
from weightedit.network.spec import Params

_BAND_CPU, _BAND = 2**21, 2**27
"""Activations of one layer at once, in numbers; a picture that has more is worked on in bands of rows."""
SEEN, SEEN_BY_NEURON = 1024, 8
"""Pixels that curvature factors are found on, at least; and for every neuron of the widest layer."""


class Layer(NamedTuple):
    """V of one layer of N networks: weight [N, out, in] and bias [N, out], times omega in a sine layer."""

    weight: Tensor
    bias: Tensor


class Pass(NamedTuple):
    """One pass over all pixels of N networks.

    Attributes:
        inputs: per layer but the first, what it reads: [N, P, in].
        jacobians: per curved layer, the derivative of the outputs by its phases: [N, C, P, out].
        residual: [N, P, C].
        last: the last layer it was made with.
    """

    inputs: list[Tensor]
    jacobians: list[Tensor]
    residual: Tensor
    last: Layer

    def loss(self) -> Tensor:
        """Mean squared residual [N], over pixels and outputs, on the networks' raw scale."""
        return self.residual.square().mean((1, 2))


class Summary(NamedTuple):
    """What a pass comes to, summed over all pixels.

    Attributes:
        loss: as Pass.loss.
        gradients: per layer, see `gradient`.
        factors: per curved layer, see `factors`; empty where they were not asked for.
        last: the last layer it was made with.
    """

    loss: Tensor
    gradients: list[Tensor]
    factors: list[tuple[Tensor, Tensor]]
    last: Layer

    def times(self, share: float) -> Summary:
        """This many times it."""
        factors = [(share * outer, share * inner) for outer, inner in self.factors]
        return Summary(share * self.loss, [share * gradient for gradient in self.gradients], factors, self.last)

    def plus(self, other: Summary) -> Summary:
        """The sum, with this one's last layer."""
        gradients = [a + b for a, b in zip(self.gradients, other.gradients, strict=True)]
        pairs = zip(self.factors, other.factors, strict=True)
        return Summary(self.loss + other.loss, gradients, [(a + c, b + d) for (a, b), (c, d) in pairs], self.last)


class RenderingProblem:
    """N target images and what the networks' inputs and outputs mean; `of_samples` makes one of values anywhere.

    Args:
        convention: of the networks.
        targets: floating point [N, C, H, W] in [0, 1].

    Attributes:
        linear_end: whether the last layer is linear, so that it can be solved and is not curved.
        targets: raw outputs that are wanted, [N, P, C].
        grid: what the first layer reads, and a 1: [P, inputs + 1], or [N, P, inputs + 1] where networks differ.
        size: (rows, columns) of pixels, or (P, 1).
        axes: coordinates of the rows and of the columns; None of samples.

    Raises:
        WeightEditError: a convention other than its own `plain`.
    """

    axes: tuple[Tensor, Tensor] | None

    def __init__(self, convention: Convention, targets: Tensor) -> None:
        self._read(convention)
        self.size = targets.shape[2], targets.shape[3]
        self.targets = convention.to_raw(targets).flatten(2).mT.contiguous()
        rows, columns = (
            torch.linspace(-1.0, 1.0, length, dtype=targets.dtype, device=targets.device) for length in self.size
        )
        places = rows.repeat_interleave(len(columns)), columns.repeat(len(rows))
        self.axes = rows, columns
        pair = places if self.row_input == 0 else places[::-1]
        self.grid = torch.stack([*pair, torch.ones_like(places[0])], 1)
        self._keep()

    @classmethod
    def of_samples(cls, convention: Convention, coordinates: Tensor, values: Tensor) -> RenderingProblem:
        """The problem of values at places.

        Args:
            convention: of the networks.
            coordinates: floating point [P, inputs] in [-1, 1], or [N, P, inputs].
            values: on the convention's scale [N, P, C].
        """
        problem = cls.__new__(cls)
        problem._read(convention)
        problem.size, problem.axes = (values.shape[1], 1), None
        problem.targets = convention.to_raw(values).contiguous()
        problem.grid = torch.cat([coordinates, torch.ones_like(coordinates[..., :1])], -1)
        problem._keep()
        return problem

    def _read(self, convention: Convention) -> None:
        convention.check_plain()
        self.convention = convention
        self.linear_end = convention.last == "linear"
        self.row_input = 1 if convention.coordinates == "xy" else 0

    def _keep(self) -> None:
        """Moments of what stays the same: of what the first layer reads, [1 or N, in + 1, in + 1], and the targets."""
        inner = self.grid.mT @ self.grid / self.places
        self._inner = inner if inner.dim() == 3 else inner.unsqueeze(0)
        self._wanted = self.targets.mean(1, keepdim=True)

    @property
    def places(self) -> int:
        """Pixels or samples of one network, P."""
        return self.grid.shape[-2]

    def layers(self, params: Params) -> list[Layer]:
        """V of every layer; raises ParamsError unless the networks map coordinates to C outputs, one per target."""
        widths, count, inputs = widths_of(params), len(params["layers.0.weight"]), self.grid.shape[-1] - 1
        if widths[0] != inputs or widths[-1] != self.targets.shape[2] or count != len(self.targets) or len(widths) < 3:
            raise ParamsError(
                f"got {count} networks of widths {widths} for {len(self.targets)} targets of {self.targets.shape[2]} "
                f"channels; expected one SIREN {inputs}-hidden-..-channels per target: choose those of these INRs."
            )
        scaled = enumerate(self._scales(len(widths) - 1))
        return [Layer(params[f"layers.{i}.weight"] * s, params[f"layers.{i}.bias"] * s) for i, s in scaled]

    def curved(self, layers: list[Layer]) -> list[Layer]:
        """Those that a function follows."""
        return layers[:-1] if self.linear_end else layers

    def _scales(self, count: int) -> list[float]:
        """V over the parameters, of every layer: omega before a sine."""
        return [f.parameter if f.name == "sine" else 1.0 for f in self.convention.activations(count)]

    def params(self, layers: list[Layer]) -> Params:
        """The parameters of `layers`; the inverse of `layers()`."""
        found: Params = {}
        for i, (layer, scale) in enumerate(zip(layers, self._scales(len(layers)), strict=True)):
            found[f"layers.{i}.weight"], found[f"layers.{i}.bias"] = layer.weight / scale, layer.bias / scale
        return found

    def evaluate(self, layers: list[Layer], *, ridge: float | None = None) -> Pass:
        """One pass, with the last layer as it is, or (with `ridge`, if it is linear) with the best one."""
        values, slopes = self._forward(layers[:-1])
        last = layers[-1] if ridge is None or not self.linear_end else self._best(values[-1], ridge)
        upstream, jacobians = last.weight.unsqueeze(2), []  # [N, C, 1, h]
        if self.linear_end:
            residual = self._residual(values[-1], last)
        else:
            output, slope = _followed(self.convention.last, _phase(values[-1], last))
            residual = output - self.targets
            upstream = slope.mT.unsqueeze(-1) * upstream
            jacobians.append(torch.diag_embed(slope, dim1=1, dim2=3))  # [N, C, P, C]
        for i in range(len(slopes) - 1, -1, -1):
            jacobian = slopes[i].unsqueeze(1) * upstream  # [N, C, P, h]
            jacobians.append(jacobian)
            if i:
                upstream = torch.bmm(jacobian.flatten(1, 2), layers[i].weight).unflatten(1, jacobian.shape[1:3])
        return Pass(values, jacobians[::-1], residual, last)

    def bands(self, layers: list[Layer]) -> list[RenderingProblem]:
        """The problem in parts of some rows each, so that what a pass keeps is bounded; most pictures are one part."""
        (height, width), count = self.size, self.targets.shape[0]
        most = _BAND_CPU if self.targets.device.type == "cpu" else _BAND
        rows = max(1, most // (max(layer.weight.shape[1] for layer in layers) * width * max(count, 1)))
        if rows >= height:
            return [self]
        parts = []
        for top in range(0, height, rows):
            part, pixels = copy.copy(self), slice(top * width, (top + rows) * width)
            part.axes = self.axes and (self.axes[0][top : top + rows], self.axes[1])
            part.size = min(rows, height - top), width
            part.targets, part.grid = self.targets[:, pixels], self.grid[..., pixels, :]
            part._keep()
            parts.append(part)
        return parts

    def thinned(self, layers: list[Layer]) -> RenderingProblem:
        """The problem on every second, third, ... row and column, on which the factors of large pictures are found.

        Itself where that would be too few pixels, and for samples, whose order says nothing.
        """
        least = max(SEEN, SEEN_BY_NEURON * max(layer.weight.shape[1] for layer in layers))
        stride = int((self.places / least) ** 0.5)
        if self.axes is None or stride < 2:
            return self
        part, (rows, columns) = copy.copy(self), (slice(stride // 2, None, stride),) * 2
        part.axes = self.axes[0][rows], self.axes[1][columns]
        part.size = len(part.axes[0]), len(part.axes[1])
        part.targets, part.grid = (
            x.unflatten(-2, self.size)[..., rows, columns, :].flatten(-3, -2) for x in (self.targets, self.grid)
        )
        part._keep()
        return part

    def summarize(self, layers: list[Layer], *, ridge: float | None = None, factors: bool = False) -> Summary:
        """One pass, and what it comes to; arguments as `evaluate`, and whether factors are wanted, see `thinned`."""
        bands, thin = self.bands(layers), self.thinned(layers) if factors else None
        if len(bands) > 1 and ridge is not None:
            layers, ridge = self.solve_last(layers, ridge), None
        total = None
        for band in bands:
            part = band._summary(band.evaluate(layers, ridge=ridge)) if thin is self else band._slopes(layers, ridge)
            part = part if len(bands) == 1 else part.times(band.places / self.places)
            total = part if total is None else total.plus(part)
        assert total is not None
        if thin is None or thin is self:
            return total
        found = thin.evaluate([*layers[:-1], total.last])
        return total._replace(factors=[thin.factors(found, i) for i in range(len(found.jacobians))])

    def _summary(self, found: Pass) -> Summary:
        gradients = [self.gradient(found, i) for i in range(len(found.inputs) + 1)]
        factors = [self.factors(found, i) for i in range(len(found.jacobians))]
        return Summary(found.loss(), gradients, factors, found.last)

    def _slopes(self, layers: list[Layer], ridge: float | None) -> Summary:
        """What a pass comes to without factors: the residual goes back through the layers, and no jacobian."""
        values, slopes = self._forward(layers[:-1])
        last = layers[-1] if ridge is None or not self.linear_end else self._best(values[-1], ridge)
        if self.linear_end:
            residual = back = self._residual(values[-1], last)
        else:
            output, slope = _followed(self.convention.last, _phase(values[-1], last))
            residual = output - self.targets
            back = residual * slope
        gradients = []
        for i, layer in reversed(list(enumerate([*layers[:-1], last]))):
            read = values[i - 1] if i else self.grid.expand(len(back), -1, -1)
            gradient = torch.bmm(back.mT, read)
            gradients.append((torch.cat([gradient, back.sum(1).unsqueeze(-1)], -1) if i else gradient) / self.places)
            if i:
                back = torch.bmm(back, layer.weight) * slopes[i - 1]
        return Summary(residual.square().mean((1, 2)), gradients[::-1], [], last)

    def solve_last(self, layers: list[Layer], ridge: float) -> list[Layer]:
        """`layers` with the last one at its best; no derivative by the others is needed for it."""
        return self.solved(layers, ridge)[0]

    def solved(self, layers: list[Layer], ridge: float) -> tuple[list[Layer], Tensor]:
        """`layers` with the last one, if it is linear, at its best, and their loss [N]; one pass serves both."""
        if not self.linear_end:
            return layers, self.losses(layers)
        bands = self.bands(layers)
        if len(bands) > 1:
            shares = [band.places / self.places for band in bands]
            moments = pooled([band._moments(band._values(layers)) for band in bands], shares)
            layers = [*layers[:-1], Layer(*moments.solved(ridge))]
            return layers, self.losses(layers)
        values = self._values(layers)
        last = self._best(values, ridge)
        return [*layers[:-1], last], self._residual(values, last).square().mean((1, 2))

    def _best(self, values: Tensor, ridge: float) -> Layer:
        return Layer(*self._moments(values).solved(ridge))

    def losses(self, layers: list[Layer]) -> Tensor:
        """As Pass.loss, without derivatives' cost."""
        total = torch.zeros_like(layers[-1].bias[:, 0])
        for band in self.bands(layers):
            residual = band._residual(band._values(layers), layers[-1])
            total = total + residual.square().sum((1, 2))
        return total / self.targets.shape[1:].numel()

    def _values(self, layers: list[Layer]) -> Tensor:
        """What the last layer reads, [N, P, h]."""
        return self._forward(layers[:-1], slopes=False)[0][-1]

    def _residual(self, values: Tensor, last: Layer) -> Tensor:
        phase = _phase(values, last)
        if self.linear_end:
            return phase.sub_(self.targets)
        return _followed(self.convention.last, phase, slope=False)[0] - self.targets

    def gradient(self, found: Pass, i: int) -> Tensor:
        """Of the loss sum r^2 / (2 P) by [weight, bias] of layer i: [N, out, in + 1]."""
        residual, pixels = found.residual.mT.unsqueeze(-1), self.places  # [N, C, P, 1]
        if i == len(found.jacobians):
            weight = torch.bmm(found.residual.mT, found.inputs[-1])
            return torch.cat([weight, residual.sum(2)], -1) / pixels
        jacobian = found.jacobians[i].flatten(1, 2).mT  # [N, out, C P]
        # The residual goes onto what the layer reads: of the two it is often the smaller.
        if i == 0:
            return torch.bmm(jacobian, (residual * self.grid.unsqueeze(-3)).flatten(1, 2)) / pixels
        weight = torch.bmm(jacobian, (residual * found.inputs[i - 1].unsqueeze(1)).flatten(1, 2))
        return torch.cat([weight, torch.bmm(jacobian, residual.flatten(1, 2))], -1) / pixels

    def gradients(self, found: Summary) -> Params:
        """Of every image's mean squared error, in [0, 1], by the parameters themselves; named as they are."""
        # V is omega theta in a sine layer.
        factor, named = 2 / (self.convention.span**2 * self.targets.shape[2]), {}
        for i, (gradient, scale) in enumerate(zip(found.gradients, self._scales(len(found.gradients)), strict=True)):
            slope = gradient * (factor * scale)
            named[f"layers.{i}.weight"], named[f"layers.{i}.bias"] = slope[..., :-1], slope[..., -1]
        return named

    def factors(self, found: Pass, i: int) -> tuple[Tensor, Tensor]:
        """G [N, out, out] and A [N, in + 1, in + 1] (of the first layer [1, ...] where it reads the same)."""
        pixels, jacobian = self.places, found.jacobians[i].flatten(1, 2)
        outer = torch.bmm(jacobian.mT, jacobian) / pixels
        if i == 0:
            return outer, self._inner
        values = found.inputs[i - 1]
        mean, square = values.mean(1).unsqueeze(-1), torch.bmm(values.mT, values) / pixels
        corner = torch.ones_like(mean[:, :1])
        return outer, torch.cat([torch.cat([square, mean], 2), torch.cat([mean.mT, corner], 2)], 1)

    def _forward(self, hidden: list[Layer], *, slopes: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Activations and, if wanted, slopes of the hidden layers, [N, P, out]."""
        name = self.convention.activation
        value, slope = self._first(hidden[0]) if name == "sine" else _followed(name, self._first_phase(hidden[0]))
        values, found = [value], [slope]
        for layer in hidden[1:]:
            value, slope = _followed(name, _phase(values[-1], layer), slope=slopes)
            values.append(value)
            found.append(slope)
        return values, found

    def _first_phase(self, layer: Layer) -> Tensor:
        return (self.grid @ torch.cat([layer.weight, layer.bias.unsqueeze(-1)], -1).mT).contiguous()

    def _first(self, layer: Layer) -> tuple[Tensor, Tensor]:
        if self.axes is None:
            return _followed("sine", self._first_phase(layer))
        rows, columns = self.axes
        p = layer.weight[:, None, :, self.row_input] * rows[:, None]
        q = torch.addcmul(layer.bias[:, None], layer.weight[:, None, :, 1 - self.row_input], columns[:, None])
        sin_p, cos_p = p.sin().unsqueeze(2), p.cos().unsqueeze(2)
        sin_q, cos_q = q.sin().unsqueeze(1), q.cos().unsqueeze(1)
        value, cosine = (sin_p * cos_q).addcmul_(cos_p, sin_q), (cos_p * cos_q).addcmul_(sin_p, sin_q, value=-1)
        return value.flatten(1, 2), cosine.flatten(1, 2)

    def _moments(self, values: Tensor) -> Moments:
        """Of what the last layer reads [N, P, h]."""
        return Moments.of(values, self.targets, self._wanted)


def _phase(values: Tensor, layer: Layer) -> Tensor:
    """What the layer makes of [N, P, in], before its function: [N, P, out]."""
    return torch.bmm(values, layer.weight.mT).add_(layer.bias.unsqueeze(1))


def _followed(name: str, phase: Tensor, *, slope: bool = True) -> tuple[Tensor, Tensor]:
    """A function of network/layer.py of phases, which hold omega already, and its derivative (where it is wanted)."""
    if name == "sine":
        return phase.sin(), phase.cos() if slope else phase
    return Activation(name)(phase), Activation(name).slope(phase) if slope else phase
