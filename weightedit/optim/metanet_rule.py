"""The learned update rule that reads the optimizee as a graph: a lean network per parameter, mixed over the neurons.

All that it sees is written in the vertex gauge (gauge.py): g^ = s g and w^ = w / s carry no neuron factor, so moments
of g^, their means over rows, columns and tensors, and thresholds relative to those are invariants, up to signs and
permutations. Signs are kept by the form (ours; learned_optimizers.md section 3, symmetry.md section 3):

    step = -s exp(log step size + pace) sum_k o_k f_k (a_k + phi_k)  o odd: g^, m^ over sqrt(v^) or Adafactor's, w^, and
                                                                   m^ with all its singular values made alike
    phi = W3 act(W2 h + A n_target + B n_source + c)
    h = act(W1 e + b)                                              e even: |o|, agreement of momenta, size of v^
    n = act(N [mean of h over a neuron's weights, its layer, the network])     the one equivariant mixing layer

`pace` and the biases b, c come from the clock, the loss and the tensor's place and size, as does f for w^, exp(decay);
the other f are 1. At the start, steps fall with the root of the number of weight matrices (ours; the exponent was
chosen on the vision transformer and the ResNet of tests/optim/test_whole_modules.py). The delta is that of an average
of the iterates that took these steps (schedule-free, Defazio et al. 2024), so that noise dies out without a horizon.
The scale of a neuron, in s, is the largest that it has had, decayed by `memory` a step: of the same type, and not zero
where the weights into it pass through zero. At the start phi = 0 and the rule is Muon in the gauge, geometric Adam
where that is not asked for, averaged. Under symmetry "permutation" the even features are joined by the odd ones, and no
neuron has a gauge; the clock knows no horizon. Where the gradient vanishes, so do the step and the motion of the
average (warrant.py). Large tensors go through in pieces of rows, twice, unless gradients are asked for: memory is
bounded by the piece.

The file is long because one step is: what it sees is in metanet_features.py and gauge.py, the rest shares one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightedit.network.spec import Params
from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.gauge import growth, layers_before, neuron_scales, spread
from weightedit.optim.metanet_features import (
    DAMPING,
    DEPTH,
    PLACES,
    WEIGHT,
    Seen,
    factors,
    features,
    levelled,
    look,
    place,
    unit_features,
)
from weightedit.optim.metanet_passes import Large, Layers, Moments, Passes, averaged, direct, hidden_units
from weightedit.optim.metanet_rule_config import MetanetRuleConfig
from weightedit.optim.rule import RuleState, beside, warmth
from weightedit.optim.rule_module import At, RuleModule, Stepped
from weightedit.optim.unitwise import FROM, goes_alone, pooled, steady
from weightedit.optim.warrant import of_entries, of_tensor

_TIMES = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3)
_GROWTH = 5.0  # what is beyond is not told apart
_SLOWER = -2 * math.log(2)  # by place()'s depth: steps fall with the root of the number of weight matrices
_PIECE = 65536  # parameters at once, over all networks of a stack
_WIDE = 16  # hidden units of a rule whose passes are quick to compile


class MetanetRule(RuleModule):
    """The rule of the file's docstring.

    Works on stacks and in torch.func.vmap, over networks and over its own weights (torch.func.functional_call), and is
    differentiable in all it is given. State: per parameter one float for every momentum, one for the squares and, with
    `averaging`, one for how far the steps are ahead of their average ("ahead", z - x); the factors of the squares, one
    float per row and column; with `memory` one per row for how large its neuron has been ("reach"); and one for the
    largest mean square so far ("peak").

    Args:
        config: see MetanetRuleConfig.
        generator: of the initial weights (CPU); None for one of seed 0.
    """

    kind = "metanet-rule"
    what = "metanetwork update rule"
    configs = MetanetRuleConfig
    config: MetanetRuleConfig
    needs_wiring = True
    whole = True
    fresh: Tensor
    inverse_times: Tensor

    def __init__(self, config: MetanetRuleConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or MetanetRuleConfig()
        source, width = generator or torch.Generator().manual_seed(0), config.hidden
        seen = PLACES + len(_TIMES) + 1 + 2 * config.loss

        def matrix(outputs: int, inputs: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(scale * inputs**-0.5 * torch.randn(outputs, inputs, generator=source))

        self.first, self.second = matrix(width, config.even), matrix(width, width)
        self.tensor_first, self.tensor_second = matrix(width, seen, 0.0), matrix(width, seen, 0.0)
        self.bias_first, self.bias_second = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if config.mixing:
            self.node = matrix(width, 3 * width)
            self.to_target, self.to_source = matrix(width, width), matrix(width, width)
        self.last = nn.Parameter(torch.zeros(config.odd, width))
        pace = torch.zeros(2, seen)
        pace[:, len(_TIMES) + PLACES] = -1.0  # steps do not grow with the network
        pace[:, len(_TIMES) + DEPTH] = _SLOWER
        self.pace, self.decay = nn.Parameter(pace), nn.Parameter(torch.zeros(seen))
        base = torch.zeros(config.odd)
        base[-1] = 1.0
        # The place of Adam's direction among the odd features.
        self._adam = 1 + min(range(len(config.momenta)), key=lambda k: abs(config.momenta[k] - 0.9))
        if config.levelling:
            mix = torch.zeros(1 + len(config.momenta))
            mix[0] = mix[self._adam] = 0.5
            self.mix = nn.Parameter(mix)
        if config.averaging:
            self.lag, self.log_recency = nn.Parameter(torch.tensor(2.2)), nn.Parameter(torch.tensor(0.0))
        self.base = nn.Parameter(base)
        self.log_step_size = nn.Parameter(torch.tensor(math.log(config.step_size)))
        self.register_buffer("fresh", torch.tensor([1 - decay for decay in config.momenta]), persistent=False)
        self.register_buffer("inverse_times", torch.tensor([1 / time for time in _TIMES]), persistent=False)

    @torch.no_grad()
    def forget_unseen(self, wirings: Iterable[Wiring]) -> None:
        """Set weights back to the start's where what `place` says, and they stand for, is zero in all these networks.

        Of what is always zero in meta-training nothing is learned, and evolution strategies leave noise in its weights,
        which would matter in other networks. On these networks the rule stays what it was.
        """
        places = torch.tensor([place(wiring, wire) for wiring in wirings for wire in wiring.wires])
        unseen = len(_TIMES) + (places == 0).all(0).nonzero().squeeze(1)
        for name, weights in MetanetRule(self.config).named_parameters():
            if name in ("tensor_first", "tensor_second", "pace", "decay"):
                own = self.get_parameter(name)
                own[..., unseen.to(own.device)] = weights[..., unseen].to(own)

    def quantities(self, wire: Wire) -> dict[str, tuple[int, ...]]:
        """See RuleModule.quantities; "rows" and "columns" are the means of squares that Adafactor keeps."""
        targets, sources, rest = wire.view
        shapes: dict[str, tuple[int, ...]] = {
            "momenta": (len(self.config.momenta), *wire.shape),
            "second": wire.shape,
            "rows": (targets,),
            "columns": (sources * rest,),
            "peak": (),
        }
        if self.config.averaging:
            shapes["ahead"] = wire.shape
        if self.config.memory:
            shapes["reach"] = (targets,)
        if self.config.loss:
            shapes["first loss"] = ()
        return shapes

    def step(self, wiring: Wiring, at: At, loss: Tensor | None, passes: Passes | None) -> Stepped:
        """See RuleModule.step. Without a loss, a rule that looks at it sees the first one unchanged."""
        grads, state, params = at
        if not grads:
            return {}, {}
        dtype = next(iter(state.values()))["second"].dtype
        values = {name: params[name].to(dtype) for name in grads}
        neurons = neuron_scales(wiring, values, self.config.symmetry)
        reach = self._reach(wiring, neurons, {name: state[name] for name in grads})
        grown = growth(wiring, neurons).clamp(-_GROWTH, _GROWTH)
        alone = {name for name, grad in grads.items() if passes and goes_alone(grad, wiring.by_name[name].shape)}
        together = {name: value for name, value in values.items() if name not in alone}
        scales = self._scales(wiring, together, reach, grown)
        new: RuleState = {}
        tensors: dict[str, _Tensor] = {}
        for name, grad in grads.items():
            wire, gradient = wiring.by_name[name], grad.to(dtype)
            if passes is not None and name in alone:
                seen, moments, square = self._gathered(passes, wire, (gradient, values[name], reach), state[name])
            else:
                seen, moments, square = self._looked(wiring, wire, (gradient, values[name], scales[name]), state[name])
            new[name] = self._kept(state[name], reach[wire.target], loss) | moments
            mean = moments["rows"].mean(-1) / warmth(self.config.second, new[name]["step"].to(dtype))
            warranted, new[name]["peak"] = of_tensor(square, mean, state[name]["peak"])
            facts = self._tensor_features(wiring, wire, new[name], grown, loss)
            tensors[name] = _Tensor(wire, seen, self._layers(wire, facts, warranted), warranted)
        firsts = {name: self._pieces(tensor) for name, tensor in tensors.items() if name not in alone}
        nodes = self._mix(wiring, tensors, firsts, passes) if self.config.mixing else None
        deltas: Params = {}
        for name, grad in grads.items():
            tensor, before, ahead = tensors[name], state[name], None
            if passes is not None and name in alone:
                delta, ahead = self._moved(passes, tensor, nodes, before)
            else:
                delta, moving = (x.view(grad.shape) for x in self._direction(tensor, nodes, firsts[name]()))
                delta = delta * scales[name]
                if self.config.averaging:
                    delta, ahead = self._averaged(delta, before["ahead"], new[name]["step"], tensor.warranted, moving)
            deltas[name] = delta.view(grad.shape).to(grad.dtype)
            new[name] |= {} if ahead is None else {"ahead": ahead.view(grad.shape)}
        return deltas, new

    def _reach(self, wiring: Wiring, neurons: Sequence[Tensor], state: RuleState) -> list[Tensor]:
        """How large every neuron is, or was: the decayed maximum of its scale, per set of `wiring`.

        Where a neuron's incoming weights pass through zero, its scale does; steps of its outgoing weights, which are
        over that scale, would leave the network at once.
        """
        found = list(neurons)
        for name, kept in state.items():
            if self.config.memory:
                i = wiring.by_name[name].target
                found[i] = torch.maximum(found[i], self.config.memory * kept["reach"])
        return found

    def _scales(self, wiring: Wiring, values: Params, reach: Sequence[Tensor], grown: Tensor) -> dict[str, Tensor]:
        """What a step is a multiple of: `spread`, for biases without what the layers have grown by.

        The neurons of the last layer are as large as the product of all layers' weights says, which inputs that are
        correlated or small never make them: biases that moved by as much would leave the network at once. One layer's
        growth is left to `pace`.
        """
        scales, before = spread(wiring, values, reach), layers_before(wiring)
        for name, scale in scales.items():
            wire = wiring.by_name[name]
            if wire.kind == "bias":
                scales[name] = scale * beside((-grown * before[wire.target]).exp(), scale)
        return scales

    def _layers(self, wire: Wire, facts: Tensor, warranted: Tensor) -> Layers:
        """The network as a tensor with these facts meets it: step size, what is warranted of it, f are in `last`."""
        dtype = facts.dtype
        pace = self.pace[int(wire.kind == "weight")].to(dtype)
        size = -(facts @ pace + self.log_step_size.to(dtype)).exp() * warranted
        decay = size * (facts @ self.decay.to(dtype)).exp()
        odd = self.config.odd
        sizes = torch.stack([decay if k == odd + WEIGHT else size for k in range(odd)], -1)
        return Layers(
            self.first.to(dtype),
            facts @ self.tensor_first.to(dtype).mT + self.bias_first.to(dtype),
            self.second.to(dtype),
            facts @ self.tensor_second.to(dtype).mT + self.bias_second.to(dtype),
            self.last.to(dtype) * sizes.unsqueeze(-1),
            self.base.to(dtype) * sizes,
        )

    @property
    def _signed(self) -> bool:
        return self.config.symmetry == "permutation"

    def _levels(self, wire: Wire) -> bool:
        targets, sources, rest = wire.view
        return wire.kind == "weight" and min(targets, sources * rest) <= self.config.levelling

    def _averaged(
        self, step: Tensor, ahead: Tensor, steps: Tensor, warranted: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The delta of the parameters y, and how far z is then ahead of x.

        z moves by `step`, x is the average of all z so far with weights that grow as a power of the step, and
        y = x + (1 - beta) (z - x) is where gradients are taken. Only z - x is kept. x follows z as far as the gradient
        warrants a step, of the tensor and of every entry (`moving`).
        """
        fresh, slack = self._recent(steps, step.dtype, warranted)
        return averaged(step, ahead, beside(fresh, step) * moving, slack)

    def _recent(self, steps: Tensor, dtype: torch.dtype, warranted: Tensor) -> tuple[Tensor, Tensor]:
        """What the newest z counts in x, and 1 - beta."""
        recency = self.log_recency.exp().to(dtype)
        return (1 + recency) / (steps.to(dtype) + recency) * warranted, (-self.lag).sigmoid().to(dtype)

    def _pieces(self, tensor: _Tensor) -> Callable[[], Iterable[_Piece]]:
        """Odd features and the first hidden layer: kept where they are one piece, else made anew at every call."""
        first, bias = tensor.layers.first, tensor.layers.first_bias
        rows, count = tensor.wire.view[0], tensor.seen.gradient.numel()
        compiling = torch.compiler.is_compiling()
        if compiling and count >= FROM:
            odd, even = unit_features(tensor.seen.units(), self._adam, signed=self._signed)
            hidden = hidden_units(even, first, bias)
            return lambda: [(0, rows, odd, hidden)]
        some = count <= _PIECE or torch.is_grad_enabled() or compiling
        step = rows if some else max(1, _PIECE * rows // count)

        def made() -> Iterator[_Piece]:
            for start in range(0, rows, step):
                seen = tensor.seen if step == rows else tensor.seen.part(start, start + step)
                groups = features(seen, self._adam, signed=self._signed)
                odd, even = (torch.cat(parts, -3).flatten(-2) for parts in groups)
                hidden = (first @ even + bias.unsqueeze(-1)).relu()
                yield start, min(start + step, rows), odd, hidden

        kept = list(made()) if step == rows else None
        return made if kept is None else lambda: kept

    def _looked(
        self, wiring: Wiring, wire: Wire, at: tuple[Tensor, Tensor, Tensor], before: Mapping[str, Tensor]
    ) -> tuple[Seen, dict[str, Tensor], Tensor]:
        """What is seen of a tensor, its new moments, its gradient's mean square. `at`: gradient, value and scale."""
        gradient, value, scale = at
        gradient, weight = gradient * scale, None if _shifted(wiring, wire) else value / scale
        moments, square = self._accumulate(wire, gradient, before)
        decays, mix = (self.config.momenta, self.config.second), self.mix if self._levels(wire) else None
        seen = look(wire, gradient, weight, {**moments, "step": before["step"] + 1}, decays, mix)
        return seen, moments, square

    def _accumulate(
        self, wire: Wire, gradient: Tensor, before: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        axes, fresh = len(wire.shape), 1 - self.config.second
        square = wire.matrix(gradient).flatten(-2).square()
        weights = self.fresh.to(gradient.dtype).view(-1, *[1] * axes)
        by_row = square.mean(-1)
        return {
            "momenta": before["momenta"].lerp(gradient.unsqueeze(-1 - axes), weights),
            "second": before["second"].lerp(square.view(gradient.shape), fresh),
            "rows": before["rows"].lerp(by_row, fresh),
            "columns": before["columns"].lerp(square.mean(-2), fresh),
        }, by_row.mean(-1)

    def _kept(self, before: Mapping[str, Tensor], reach: Tensor, loss: Tensor | None) -> dict[str, Tensor]:
        """What else the state holds, but "ahead"."""
        new = {"step": before["step"] + 1}
        if self.config.memory:
            new["reach"] = reach.clone()  # weight and bias have the same
        if self.config.loss:
            now = before["first loss"] if loss is None else loss.to(before["second"].dtype)
            new["first loss"] = torch.where(before["step"] == 0, now, before["first loss"])
        return new

    def _tensor_features(
        self, wiring: Wiring, wire: Wire, moments: Mapping[str, Tensor], grown: Tensor, loss: Tensor | None
    ) -> Tensor:
        """[.., features]: the clock, what the tensor is and where it lies, how large the network is, the loss."""
        steps, dtype = moments["step"], moments["second"].dtype
        clock = (steps.to(dtype).unsqueeze(-1) * self.inverse_times.to(dtype) - 1).tanh()
        where = clock.new_tensor(place(wiring, wire)).expand(*clock.shape[:-1], PLACES)
        parts = [clock, where, grown.unsqueeze(-1)]
        if self.config.loss:
            first = moments["first loss"]
            now = first if loss is None else loss.to(dtype)
            parts.append(torch.stack([_log(now) / 5, (_log(now) - _log(first)) / 3], -1))
        return torch.cat(parts, -1)

    def _mix(
        self,
        wiring: Wiring,
        tensors: Mapping[str, _Tensor],
        firsts: Mapping[str, Callable[[], Iterable[_Piece]]],
        passes: Passes | None,
    ) -> list[Tensor]:
        """Per set of neurons, [.., hidden, size]: means over what touches a neuron, over its set and over all sets."""
        received: list[list[Tensor]] = [[] for _ in wiring.sets]
        for name, tensor in tensors.items():
            wire, by_row, by_column = tensor.wire, [], []
            targets, *shape = wire.view
            if passes is not None and name not in firsts:
                of_rows, of_columns = passes.receive(tensor.seen, *steady(*tensor.layers[:2]))
                by_row.append(of_rows)
                by_column.append(of_columns.unflatten(-1, (wire.view[1], -1)).mean(-1))
            for start, end, _, hidden in firsts[name]() if name in firsts else ():
                if isinstance(hidden, list):
                    of_rows, of_columns = pooled(hidden, wire.view)
                    by_row.append(of_rows)
                    by_column.append(of_columns)
                    continue
                grid = hidden.unflatten(-1, (end - start, *shape))
                by_row.append(grid.mean((-2, -1)))
                by_column.append(grid.mean(-1).sum(-2) / targets)
            received[wire.target].append(by_row[0] if len(by_row) == 1 else torch.cat(by_row, -1))
            if wire.source is not None:
                received[wire.source].append(sum(by_column[1:], by_column[0]))
        like = next(part for parts in received for part in parts)
        own = [
            torch.stack(parts).mean(0) if parts else like.new_zeros(*like.shape[:-1], neurons.size)
            for parts, neurons in zip(received, wiring.sets, strict=True)
        ]
        layers = [neurons.mean(-1, keepdim=True) for neurons in own]
        network = torch.stack(layers).mean(0)
        a, b, c = self.node.to(like.dtype).split(self.config.hidden, -1)
        return [(a @ n + b @ layer + c @ network).relu() for n, layer in zip(own, layers, strict=True)]

    def _ends(self, tensor: _Tensor, nodes: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """The second layer's bias, [.., hidden, rows, 1] plus [.., hidden, 1, columns]."""
        wire, bias = tensor.wire, tensor.layers.second_bias.unsqueeze(-1)
        targets, sources, rest = wire.view
        lead, dtype = bias.shape[:-1], bias.dtype
        rows, columns = bias.expand(*lead, targets), bias.new_zeros(*lead, sources * rest)
        if nodes is not None:
            rows = rows + self.to_target.to(dtype) @ nodes[wire.target]
        if nodes is not None and wire.source is not None:
            columns = (self.to_source.to(dtype) @ nodes[wire.source]).repeat_interleave(rest, -1)
        return rows.unsqueeze(-1), columns.unsqueeze(-2)

    def _direction(
        self, tensor: _Tensor, nodes: Sequence[Tensor] | None, pieces: Iterable[_Piece]
    ) -> tuple[Tensor, Tensor]:
        """The step in the gauge, and what part of it every entry's gradient warrants, [.., parameters]."""
        layers, (rows, columns) = tensor.layers, self._ends(tensor, nodes)
        found = []
        for start, end, odd, hidden in pieces:
            ends = rows[..., start:end, :] + columns
            if isinstance(hidden, list):
                step, moving = direct(odd, hidden, layers, ends.unbind(-3))
                found.append((step.flatten(-2), moving.flatten(-2)))
                continue
            second = (layers.second @ hidden + ends.flatten(-2)).relu()
            moving = of_entries(odd[..., 0, :])
            found.append(((odd * (layers.last @ second + layers.base.unsqueeze(-1))).sum(-2) * moving, moving))
        if len(found) == 1:
            return found[0]
        steps, moving = zip(*found, strict=True)
        return torch.cat(steps, -1), torch.cat(moving, -1)

    # Large tensors, pass by pass.

    def compiled_passes(self) -> Passes | None:
        """See RuleModule.compiled_passes."""
        return Passes(self._adam, signed=self._signed) if self.config.hidden <= _WIDE else None

    def _gathered(
        self,
        passes: Passes,
        wire: Wire,
        at: tuple[Tensor, Tensor, Sequence[Tensor]],
        before: Mapping[str, Tensor],
    ) -> tuple[Large, dict[str, Tensor], Tensor]:
        """What `_looked` gives, of a large tensor. `at`: gradient, value, and scales of all neurons."""
        (gradient, weight, reach), (_, sources, rest) = at, wire.view
        steps, dtype = (before["step"] + 1).to(gradient.dtype), gradient.dtype
        source = gradient.new_ones(1) if wire.source is None else reach[wire.source]
        target = reach[wire.target].unsqueeze(-1).detach()
        source = (source * math.sqrt(sources * rest)).reciprocal().repeat_interleave(rest).unsqueeze(0).detach()
        momenta, second = wire.flat(before["momenta"]), wire.flat(before["second"])
        old = Moments(momenta, second, before["rows"], before["columns"])
        corrections = torch.stack([warmth(decay, steps) for decay in self.config.momenta]).reciprocal()
        calm = warmth(self.config.second, steps).reciprocal()
        weights = self.mix.to(dtype) if self._levels(wire) else corrections.new_zeros(1 + len(corrections))
        (mix,) = steady(weights * torch.cat([corrections.new_ones(1), corrections]))
        fresh = (*steady(self.fresh.to(dtype)), 1 - self.config.second)
        new, mixed, square = passes.gather(wire.flat(gradient), old, (target, source), fresh, mix)
        inverse, row, column = factors(new.rows * calm, new.columns * calm)
        facts = calm, DAMPING * calm * new.rows.mean(), inverse.squeeze(), calm.new_tensor(float(self._levels(wire)))
        large = Large(
            *(wire.flat(gradient), wire.flat(weight), levelled(mixed) if self._levels(wire) else mixed),
            *(new.momenta, new.second, (target, source), (row, column)),
            *steady(torch.cat([torch.stack(facts), corrections])),
        )
        return large, {key: moment.view(before[key].shape) for key, moment in new._asdict().items()}, square

    def _moved(
        self, passes: Passes, tensor: _Tensor, nodes: Sequence[Tensor] | None, before: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """A large tensor's delta and "ahead", from the state before."""
        layers, average = Layers(*steady(*tensor.layers)), None
        if self.config.averaging:
            (recent,) = steady(torch.stack(self._recent(before["step"] + 1, layers.base.dtype, tensor.warranted)))
            average = tensor.wire.flat(before["ahead"]), recent
        return passes.move(tensor.seen, layers, self._ends(tensor, nodes), average)


_Piece = tuple[int, int, Any, Any]
"""First row, the one after the last, odd features and first hidden layer: tensors [.., features, parameters], or lists
of units (unitwise.py)."""


class _Tensor(NamedTuple):
    """A tensor of the optimizee: its wire, what is seen of its parameters, the network that looks at it, warrant.py."""

    wire: Wire
    seen: Any  # Seen; Large where it goes through passes of its own
    layers: Layers
    warranted: Tensor


def _shifted(wiring: Wiring, wire: Wire) -> bool:
    """A bias that moves by itself under the half-period shift of a sine: its value is not looked at."""
    return wire.kind == "bias" and wiring.sets[wire.target].group.shift


def _log(loss: Tensor) -> Tensor:
    return (loss + 1e-10).log()
