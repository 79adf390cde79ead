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
of the iterates that took these steps (schedule-free, Defazio et al. 2024), so that noise dies out without a horizon;
with `coherence`, its length, the size of the first steps, and what the newest gradient counts in what is leveled go by
how steady gradients are (coherence.py).
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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import product
from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.coherence import KEPT, Coherence, alternates, log_coherence, of_network, shares
from weightedit.optim.gauge import inverse_root, layers_before, root
from weightedit.optim.gauge_lines import Gauge
from weightedit.optim.leveling import leveled
from weightedit.optim.lists import between, products
from weightedit.optim.metanet_features import DAMPING, DEPTH, LEAST, PLACES, WEIGHT, Seen, as_features, place
from weightedit.optim.metanet_line import Ends, Line
from weightedit.optim.metanet_passes import Average, Gathered, LargeLook, Layers, Passes
from weightedit.optim.metanet_rule_config import WITHOUT_BOUNDS, MetanetRuleConfig
from weightedit.optim.metanet_step import Look, kept, together
from weightedit.optim.rounding import Reference, is_rounding, is_vector
from weightedit.optim.rule_module import At, RuleModule, Stepped
from weightedit.optim.stacks import Plan, Stack, plan_of
from weightedit.optim.warrant import of_tensor

_TIMES = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3)
_GROWTH = 5.0  # what is beyond is not told apart
_SLOWER = -2 * math.log(2)  # by place()'s depth: steps fall with the root of the number of weight matrices
_WIDE = 16  # hidden units of a rule whose passes are quick to compile


class MetanetRule(RuleModule):
    """The rule of the file's docstring.

    Works on stacks and in torch.func.vmap, over networks and over its own weights (torch.func.functional_call), and is
    differentiable in all it is given. State: per parameter one float for every momentum, one for the squares and, with
    `averaging`, one for how far the steps are ahead of their average ("ahead", z - x); the factors of the squares, one
    float per row and column; with `memory` one per row for how large its neuron has been ("reach"), with
    `room` one for how large it was first ("origin"); and one for the largest mean square so far ("peak"), with
    `coherence` what it keeps.

    Args:
        config: see MetanetRuleConfig.
        generator: of the initial weights (CPU); None for one of seed 0.
    """

    kind = "metanet-rule"
    what = "metanetwork update rule"
    configs = MetanetRuleConfig
    before: ClassVar[Mapping[str, Any]] = WITHOUT_BOUNDS
    config: MetanetRuleConfig
    needs_wiring = True
    whole = True
    fresh: Tensor
    inverse_times: Tensor
    made: Tensor
    turned: Tensor

    def __init__(self, config: MetanetRuleConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or MetanetRuleConfig()
        source, width = generator or torch.Generator().manual_seed(0), config.hidden
        seen = PLACES + len(_TIMES) + 1 + 2 * config.loss + 2 * config.coherence

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
        if config.leveling != 0:
            mix = torch.zeros(1 + len(config.momenta))
            mix[0] = mix[self._adam] = 0.5
            self.mix = nn.Parameter(mix)
            if config.coherence:
                self.mix_by = nn.Parameter(torch.zeros(1 + len(config.momenta)))
        if config.averaging:
            self.lag, self.log_recency = nn.Parameter(torch.tensor(2.2)), nn.Parameter(torch.tensor(0.0))
        if config.averaging and config.coherence:
            self.recency_by = nn.Parameter(torch.zeros(2))
        self.base = nn.Parameter(base)
        self.log_step_size = nn.Parameter(torch.tensor(math.log(config.step_size)))
        self.register_buffer("fresh", torch.tensor([1 - decay for decay in config.momenta]), persistent=False)
        made = as_features(config.odd, len(config.momenta), signed=self._signed)
        self.register_buffer("made", torch.tensor(made), persistent=False)
        self.register_buffer("turned", (torch.tensor(made) < 0).float(), persistent=False)
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
        if self.config.room is not None:
            shapes["origin"] = (targets,)
        if self.config.coherence:
            shapes["coherence"] = (KEPT,)
        if self.config.loss:
            shapes["first loss"] = ()
        return shapes

    def step(self, wiring: Wiring, at: At, loss: Tensor | None, passes: Passes | None) -> Stepped:
        """See RuleModule.step. Without a loss, a rule that looks at it sees the first one unchanged."""
        grads, state, params = at
        if not grads:
            return {}, {}
        rates = wiring.rates
        if rates:
            params = {name: p * rates[name] if name in rates else p for name, p in params.items()}
            grads = {name: g / rates[name] if name in rates else g for name, g in grads.items()}
        first = next(iter(grads))
        like = state[first]["second"]
        lead, dtype = like.dim() - len(wiring.by_name[first].shape), like.dtype
        plan = plan_of(wiring, grads, like, alone=passes is not None)
        before = {key: [state[name][key] for name in plan.names] for key in state[first]}
        values = [stack.lines([params[name].to(dtype) for name in stack.names], lead) for stack in plan.stacks]
        gauge = plan.once(f"gauge {self.config.symmetry}", lambda: Gauge(plan, self.config.symmetry))
        neurons = gauge.scales(values)
        grown = gauge.growth(neurons).clamp(-_GROWTH, _GROWTH)
        reach, origin = self._reach(plan, neurons, before)
        decays = *self.config.momenta, self.config.second
        logs = plan.constant(f"decays {decays}", lambda: [-math.inf, *map(math.log, decays)])
        clock = Clock(torch.stack(before["step"], -1) + 1, logs)
        slower = self._slower(plan, grown)
        framing = self._scales(plan, reach, slower)
        steady_before = Coherence.of(before["coherence"]) if self.config.coherence else None
        found: dict[str, Gathered] = {}
        fresh = self.fresh.to(dtype)[:, None], 1 - self.config.second
        known = list(zip(values, plan.pairs(*framing), self._mixes(plan, clock, steady_before), strict=True))
        groups = self._groups(plan, [value.numel() for value in values], passes)
        apart = [[i for i in of if is_vector(plan.stacks[i]) is vectors] for vectors in (False, True) for of in groups]
        for of in filter(None, apart):
            stacks, joined = [plan.stacks[i] for i in of], []
            for stack in stacks:
                slopes = stack.lines([grads[name].to(dtype) for name in stack.names], lead)
                joined.append([slopes, *(stack.lines(before[key][stack.of], lead) for key in ("momenta", "second"))])
            beside = self._beside(plan, stacks, found, before["rows"], slower) if is_vector(stacks[0]) else None
            given = self._gathered(plan, stacks, joined, ([known[i] for i in of], beside, fresh), passes)
            found |= zip([stack.names[0] for stack in stacks], given, strict=True)
        gathered = [found[stack.names[0]] for stack in plan.stacks]
        after: dict[str, Sequence[Tensor]] = {"step": clock.counts.unbind(-1)}
        for key, line in (("reach", reach), ("origin", origin)):
            if key in before:
                after[key] = plan.split_rows(line.index_select(-1, plan.target_of_row))
        numbers, factors, energies = self._squares(plan, gathered, clock, before, after)
        rows, columns = (torch.stack(pair, -2) for pair in zip(framing, factors, strict=True))
        frames = plan.pairs(rows, columns)
        warranted, peak = of_tensor(*energies, torch.stack(before["peak"], -1))
        after["peak"] = peak.unbind(-1)
        losses = self._losses(clock, loss, before, after)
        rising = warranted * (clock.steps / self.config.warm).clamp(max=1) if self.config.warm else warranted
        steady = None
        if steady_before is not None:
            known = self._coherence(plan, gathered, clock, energies, steady_before)
            steady, after["coherence"] = shares(known.log), known.kept()
            rising = rising * known.size.unsqueeze(-1)
        layers, ends = self._layers(plan, self._facts(plan, clock, grown, losses, steady), rising)
        fresh, slack = self._recent(clock, warranted, steady)
        fresh = fresh[..., None, None]
        looks = self._looks(plan, groups, (gathered, frames, numbers), (layers, fresh), passes)
        gathered = [one._replace(mixed=None) for one in gathered]  # nothing needs it any more
        found.clear()
        pairs = self._ends(plan, ends, self._mix(plan, looks) if self.config.mixing else None)
        averages = [None] * len(plan.stacks)
        if self.config.averaging:
            newest = zip(plan.stacks, plan.per_stack(fresh, -3), strict=True)
            averages = [Average(stack.lines(before["ahead"][stack.of], lead), own, slack) for stack, own in newest]
        moved: dict[int, tuple[Tensor, Tensor | None]] = {}
        for of, look in looks:
            if isinstance(look, Line):
                moved |= zip(of, look.moved([pairs[i] for i in of], [averages[i] for i in of]), strict=True)
            else:
                moved[of[0]] = look.moved(pairs[of[0]], averages[of[0]])
        joined = [moved[i] for i in range(len(plan.stacks))]
        count = len(self.config.momenta)
        for key, lines, *inner in (
            ("delta", [delta for delta, _ in joined]),
            ("ahead", [ahead for _, ahead in joined]),
            ("momenta", [one.averages.narrow(-2, 1, count) for one in gathered], count),
            ("second", [one.second for one in gathered]),
        ):
            pairs = zip(plan.stacks, lines, strict=True)
            after[key] = [part for stack, x in pairs if x is not None for part in stack.tensors(x, lead, *inner)]
        place = {name: i for i, name in enumerate(plan.names)}
        deltas = {name: after["delta"][place[name]].to(grad.dtype) for name, grad in grads.items()}
        deltas |= {name: deltas[name] / rates[name] for name in rates.keys() & deltas.keys()}
        return deltas, {name: {key: after[key][place[name]] for key in before} for name in grads}

    def _reach(self, plan: Plan, neurons: Tensor, before: Mapping[str, list[Tensor]]) -> tuple[Tensor, Tensor]:
        """How large every neuron is, or was: the decayed maximum of its scale, [.., neurons + 1]; what it was first.

        Where a neuron's incoming weights pass through zero, its scale does; steps of its outgoing weights, which are
        over that scale, would leave the network at once. Where they grow, steps that grow with them do not end: what it
        was first, times `room`, is the most.
        """
        first = neurons
        if self.config.memory:
            neurons = torch.maximum(neurons, self.config.memory * _of_neurons(plan, before["reach"]))
        if self.config.room is not None:
            kept = _of_neurons(plan, before["origin"])
            first = torch.where(kept > 0, kept, first)
            neurons = torch.minimum(neurons, self.config.room * first)
        return functional.pad(neurons, (0, 1), value=1.0), first

    def _slower(self, plan: Plan, grown: Tensor) -> Tensor:
        """What steps of biases are multiplied by so that they are without what the layers have grown by, [.., tensors].

        The neurons of the last layer are as large as the product of all layers' weights says, which inputs that are
        correlated or small never make them: biases that moved by as much would leave the network at once. One layer's
        growth is left to `pace`.
        """
        depths = layers_before(plan.wiring)
        before = plan.constant("depth", lambda: [-depths[w.target] if w.kind == "bias" else 0.0 for w in plan.wires])
        return (grown.unsqueeze(-1) * before).exp()

    def _scales(self, plan: Plan, reach: Tensor, slower: Tensor) -> tuple[Tensor, Tensor]:
        """What a step is a multiple of, gauge.spread: a number per row times one per column, as lines of both."""
        fans = plan.constant("fan", lambda: [math.prod(wire.view[1:]) ** 0.5 for wire in plan.wires])
        rows = reach.index_select(-1, plan.target_of_row) * slower.index_select(-1, plan.tensor_of_row)
        columns = reach.index_select(-1, plan.source_of_column) * fans.index_select(-1, plan.tensor_of_column)
        return rows, columns.reciprocal()

    def _mixes(self, plan: Plan, clock: Clock, before: Coherence | None) -> list[Tensor | None]:
        """What gradient and momenta count in what is leveled, per stack [.., tensors, 1, 1 + momenta]; or None.

        Where gradients alternate, another mix counts by the square of how much: a little alternation is in all noise.
        """
        if self.config.leveling == 0:
            return [None] * len(plan.stacks)
        counts = self.mix.to(clock.steps.dtype)
        if before is not None:
            counts = counts + alternates(before.log).square().unsqueeze(-1) * self.mix_by.to(counts.dtype)
        counts = counts * clock.corrections
        parts = zip(plan.stacks, plan.per_stack(counts.unsqueeze(-2), -3), strict=True)
        return [part if self._levels(stack) else None for stack, part in parts]

    def _groups(self, plan: Plan, sizes: Sequence[int], passes: Passes | None) -> list[list[int]]:
        """Places of stacks that go together; those that go through passes stand alone."""
        alone = {i for i, stack in enumerate(plan.stacks) if passes is not None and stack.alone}
        rest = [i for i in range(len(sizes)) if i not in alone]
        groups = together([sizes[i] for i in rest], plan.device)
        return [*([rest[i] for i in of] for of in groups), *([i] for i in sorted(alone))]

    def _beside(
        self, plan: Plan, stacks: Sequence[Stack], found: Mapping[str, Gathered], rows: Sequence[Tensor], slower: Tensor
    ) -> list[Tensor] | None:
        """What the squares of stacks of vectors are held against (rounding.py), from those of all weights."""
        reference = plan.once("reference", lambda: Reference(plan))
        now = {name: one.squares[0] for name, one in found.items()}
        beside = reference.of(rows, now, 1 - self.config.second, slower)
        if beside is None:
            return None
        return [stack.padded(beside[plan.stacks.index(stack)]).unsqueeze(-2) for stack in stacks]

    def _gathered(
        self,
        plan: Plan,
        stacks: Sequence[Stack],
        joined: list[list[Tensor]],
        known: tuple[
            Sequence[tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]], list[Tensor] | None, tuple[Tensor, float]
        ],
        passes: Passes | None,
    ) -> list[Gathered]:
        """What is gathered of some stacks.

        Args:
            joined: gradient, momenta and squares of each; emptied.
            known: value, scales and what is leveled of each; `_beside`; what a new gradient counts in momenta and
                squares.
        """
        (weights, scales, mixes), beside, rates = zip(*known[0], strict=True), *known[1:]
        if passes is not None and stacks[0].alone:
            (one,), (scale,), (mix,), of_momenta = joined, scales, mixes, rates[0].flatten()
            counts = None if mix is None else mix.squeeze(-2)
            return [passes.gathered((one[0], weights[0], *one[1:]), scale, (of_momenta, rates[1]), counts)]
        gradients, momenta, second = zip(*joined, strict=True)
        joined.clear()  # of which large ones are copies
        framed = zip(gradients, products(*zip(*scales, strict=True)), strict=True)
        gradients = products(gradients, [scale.reshape(like.shape) for like, scale in framed])
        squares = products(gradients, gradients)
        if beside is not None:
            voids = list(map(is_rounding, between(second, squares, rates[1]), beside))
            gradients, squares = (
                [tensor.masked_fill(void, 0) for tensor, void in zip(tensors, voids, strict=True)]
                for tensors in (gradients, squares)
            )
        averages = [
            torch.cat([gradient, momentum], -2)
            for gradient, momentum in zip(gradients, between(momenta, gradients, rates[0]), strict=True)
        ]
        del gradients, momenta
        second = between(second, squares, rates[1])
        shown = plan.constant("shown", lambda: [not _shifted(plan.wiring, wire) for wire in plan.wires])
        found = []
        for i, stack in enumerate(stacks):
            weight, mix = weights[i], mixes[i]
            mixed = None if mix is None else stack.matrices(product(mix, averages[i]))
            if any(_shifted(plan.wiring, wire) for wire in stack.wires):
                weight = weight * shown[stack.of, None, None]
            found.append(Gathered(averages[i], weight, second[i], mixed, stack.by_row_and_column(squares[i])))
        return found

    def _squares(
        self,
        plan: Plan,
        gathered: Sequence[Gathered],
        clock: Clock,
        before: Mapping[str, list[Tensor]],
        after: dict[str, Sequence[Tensor]],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Means of squares by row and column: new ones into `after`; what Seen says of them, and warrant.of_tensor.

        Seen's numbers, Adafactor's factor as lines of rows and columns, and energies of every tensor.
        """
        fresh = 1 - self.config.second
        now = [torch.cat([one.squares[i] for one in gathered], -1) for i in (0, 1)]
        rows, columns = (
            torch.cat(before[key], -1).lerp(new, fresh) for key, new in zip(("rows", "columns"), now, strict=True)
        )
        after["rows"], after["columns"] = plan.split_rows(rows), plan.split_columns(columns)
        square, mean = plan.rows_of_tensor.mean(torch.stack([now[0], rows], -2)).unbind(-2)
        mean = mean * clock.calm
        damping, inverse = DAMPING * mean, inverse_root(mean).square()
        known = torch.stack([clock.calm, damping, root(mean + damping)], -2)
        calm, added, size = known.index_select(-1, plan.tensor_of_row).unbind(-2)
        row = inverse_root(rows * calm + added) * size
        calm, added, _ = known.index_select(-1, plan.tensor_of_column).unbind(-2)
        column = inverse_root(columns * calm + added)
        told = torch.stack([clock.calm, damping, inverse], -1)
        same = plan.constant("one, least", lambda: [[1.0, LEAST]] * len(plan.names)).expand(*told.shape[:-1], 2)
        numbers = torch.cat([told, same, clock.corrections], -1).unsqueeze(-1)
        return numbers, (row, column), (square, mean)

    def _coherence(
        self,
        plan: Plan,
        gathered: Sequence[Gathered],
        clock: Clock,
        squares: tuple[Tensor, Tensor],
        before: Coherence,
    ) -> Coherence:
        """What coherence.py says of the network.

        Args:
            squares: means of the step's squared gradients per tensor, and of the averaged ones, corrected.
            before: what the states of tensors say.
        """
        decay = self.config.momenta[self._adam - 1]
        lately = before.lately.lerp(squares[0], 1 - decay)
        norms = [torch.linalg.vector_norm(one.averages.select(-2, self._adam), dim=-1) for one in gathered]
        left = (1 - decay) / (1 + decay)
        noise = plan.constant(f"noise {decay}", lambda: [left * math.prod(wire.view) for wire in plan.wires])
        correction = clock.corrections[..., self._adam]
        log = log_coherence(torch.cat(norms, -1), noise, (lately, squares[1]), correction)
        return of_network(log, before, lately, clock.steps, noise)

    def _losses(
        self,
        clock: Clock,
        loss: Tensor | None,
        before: Mapping[str, list[Tensor]],
        after: dict[str, Sequence[Tensor]],
    ) -> tuple[Tensor, Tensor] | None:
        """The loss and the first one, as every tensor knows them; for rules that look at it."""
        if not self.config.loss:
            return None
        first = torch.stack(before["first loss"], -1)
        now = first if loss is None else loss.to(first.dtype).unsqueeze(-1).expand_as(first)
        first = torch.where(clock.counts == 1, now, first)
        after["first loss"] = first.unbind(-1)
        return first if loss is None else now, first

    def _facts(
        self, plan: Plan, clock: Clock, grown: Tensor, losses: tuple[Tensor, Tensor] | None, steady: Tensor | None
    ) -> Tensor:
        """[.., tensors, facts]: the clock, what the tensor is and where it lies, how large the network is, the loss.

        Then, where it is known, how steady gradients are.
        """
        times = (clock.steps.unsqueeze(-1) * self.inverse_times.to(clock.steps.dtype) - 1).tanh()
        places = plan.constant("place", lambda: [place(plan.wiring, wire) for wire in plan.wires])
        lead = times.shape[:-1]
        places = places if len(lead) == 1 else places.expand(*lead, PLACES)
        parts = [times, places, grown[..., None, None].expand(*lead, 1)]
        if losses is not None:
            now, first = map(_log, losses)
            parts.append(torch.stack([now / 5, (now - first) / 3], -1))
        if steady is not None:
            parts.append(steady.unsqueeze(-2).expand(*lead, 2))
        return torch.cat(parts, -1)

    def _layers(self, plan: Plan, facts: Tensor, warranted: Tensor) -> tuple[Layers, Tensor]:
        """The network as every tensor meets it, [.., tensors, .., 1]; the second layer's bias, [.., tensors, hidden].

        `sizes`: of the step, what is warranted of it included, and of that along weights beside it.
        """
        dtype, hidden = facts.dtype, self.config.hidden
        weights = torch.cat([self.pace, self.decay.unsqueeze(0), self.tensor_first, self.tensor_second]).to(dtype)
        paces, decay, first, second = (facts @ weights.mT).split_with_sizes([2, 1, hidden, hidden], -1)
        pace = torch.where(plan.is_weight, paces[..., 1], paces[..., 0])
        size = -(pace + self.log_step_size.to(dtype)).exp() * warranted
        sizes = torch.stack([size, decay.squeeze(-1).exp()], -1)
        made, weights = self.made.to(dtype), self.first.to(dtype)
        both = (weights * made).unsqueeze(0), self.second.to(dtype).unsqueeze(0)
        shift = self.bias_first.to(dtype) + weights @ self.turned.to(dtype)
        return Layers(
            *(both[0], (first + shift).unsqueeze(-1), both[1]),
            *(self.last.to(dtype).unsqueeze(0), self.base.to(dtype)[None, :, None], sizes.unsqueeze(-1)),
        ), second + self.bias_second.to(dtype)

    @property
    def _signed(self) -> bool:
        return self.config.symmetry == "permutation"

    def _levels(self, stack: Stack) -> bool:
        most = self.config.leveling
        return stack.wires[0].kind == "weight" and (most is None or min(stack.rows, stack.columns) <= most)

    def _looks(
        self,
        plan: Plan,
        groups: Sequence[list[int]],
        known: tuple[Sequence[Gathered], Sequence[tuple[Tensor, Tensor]], Tensor],
        network: tuple[Layers, Tensor],
        passes: Passes | None,
    ) -> list[tuple[list[int], Look | LargeLook | Line]]:
        """What is seen of the stacks, group by group; with their places.

        Args:
            groups: from `_groups`.
            known: what is gathered; frames and numbers, as Seen has them.
            network: the layers of all tensors, and what the newest z counts in x, [.., tensors, 1, 1].
        """
        (gathered, frames, numbers), (layers, fresh), looks, held = known, network, [], 0
        found = iter(leveled([one.mixed for one in gathered if one.mixed is not None]))
        levels = [None if one.mixed is None else next(found).reshape(one.second.shape) for one in gathered]
        seen = [
            Seen(one.averages, one.weight, level, one.second, frame, own)
            for one, level, frame, own in zip(gathered, levels, frames, plan.per_stack(numbers, -3), strict=True)
        ]
        how = self._adam, self._signed
        if any(len(of) > 1 for of in groups):
            assert layers.sizes is not None
            laid = [numbers, layers.sizes, fresh, layers.first_bias]
            together_laid = plan.per_stack(torch.cat(laid, -2), -3)
        single = self._per_stack(plan, layers) if any(len(of) == 1 for of in groups) else []
        most = kept(sum(one.second.numel() for one in seen), plan.device)
        for of in groups:
            if passes is not None and plan.stacks[of[0]].alone:
                looks.append((of, passes.look(seen[of[0]], single[of[0]])))
                continue
            count = sum(seen[i].second.numel() for i in of)
            keep = held + count <= most
            held += keep * count
            if len(of) == 1:
                looks.append((of, Look(seen[of[0]], single[of[0]], how, keep=keep)))
                continue
            of = sorted(of, key=lambda i: seen[i].level is None)
            one = [together_laid[i] for i in of]
            looks.append((of, Line([seen[i] for i in of], one, layers, how, keep=keep)))
        return looks

    def _per_stack(self, plan: Plan, layers: Layers) -> list[Layers]:
        """Layers as every stack meets them, the sizes part of the last."""
        assert layers.sizes is not None
        size, decay = layers.sizes.unbind(-2)
        one = torch.ones_like(decay)
        along = [decay if k == self.config.odd + WEIGHT else one for k in range(self.config.odd)]
        sizes = (size * torch.cat(along, -1)).unsqueeze(-1)
        parts = (plan.per_stack(x, -3) for x in (layers.first_bias, layers.last * sizes, layers.base * sizes))
        return [Layers(layers.first, bias, layers.second, last, base) for bias, last, base in zip(*parts, strict=True)]

    def _mix(self, plan: Plan, looks: Sequence[tuple[list[int], Look | LargeLook | Line]]) -> Tensor:
        """Per neuron, [.., hidden, neurons]: means over what touches it, over its set and over all sets."""
        received: dict[int, tuple[Tensor, Tensor | None]] = {}
        for of, look in looks:
            stacks = [plan.stacks[i] for i in of]
            given = look.received(stacks) if isinstance(look, Line) else [look.received(stacks[0])]
            received |= zip(of, given, strict=True)
        of_rows = [received[i][0] for i in range(len(plan.stacks))]
        weights = [i for i, stack in enumerate(plan.stacks) if stack.wires[0].source is not None]
        wires = [wire for i in weights for wire in plan.stacks[i].wires]
        shares = plan.constant("shares", lambda: [1 / (w.view[0] * w.view[2]) for w in wires for _ in range(w.view[1])])
        summed = [sums for i in weights if (sums := received[i][1]) is not None]
        of_sources = [torch.cat(summed, -1) * shares] if summed else []
        own = plan.ends_of_neuron.mean(torch.cat([*of_rows, *of_sources], -1))
        layers = plan.neurons_of_set.mean(own)
        a, b, c = self.node.to(own.dtype).split(self.config.hidden, -1)
        shared = b @ layers + c @ layers.mean(-1, keepdim=True)
        return (a @ own + shared.index_select(-1, plan.set_of_neuron)).relu()

    def _ends(self, plan: Plan, bias: Tensor, nodes: Tensor | None) -> list[Ends]:
        """The second layer's bias per stack, [.., hidden, tensors, rows, 1] plus [.., hidden, tensors, 1, columns]."""
        own = bias.mT
        if nodes is None:
            return [(part[..., None, None],) for part in plan.per_stack(own)]
        to_target = (self.to_target.to(nodes.dtype) @ nodes).index_select(-1, plan.target_of_row)
        to_source = functional.pad(self.to_source.to(nodes.dtype) @ nodes, (0, 1))
        rows = to_target + own.index_select(-1, plan.tensor_of_row)
        return list(plan.pairs(rows, to_source.index_select(-1, plan.source_of_column), 0.0))

    def recency(self, kept: Mapping[str, Tensor]) -> Tensor:
        """See RuleModule.recency: by the clock alone, or also by how steady gradients are."""
        return self._recency(shares(kept["coherence"][..., 0]) if "coherence" in kept else None)

    def _recency(self, steady: Tensor | None) -> Tensor:
        if steady is None:
            return self.log_recency.exp()
        return (self.log_recency.to(steady) + steady @ self.recency_by.to(steady)).exp()

    def _recent(self, clock: Clock, warranted: Tensor, steady: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the newest z counts in x, per tensor, and 1 - beta.

        The delta is that of the parameters y: z moves by the step, x is the average of all z so far with weights that
        grow as a power of the step, and y = x + (1 - beta) (z - x) is where gradients are taken. Only z - x is kept. x
        follows z as far as the gradient warrants a step, of the tensor and of every entry.
        """
        slack = self.slack()
        if slack is None:
            return warranted, warranted
        recency = self._recency(steady).to(warranted.dtype).unsqueeze(-1)
        fresh = (1 + recency) / (clock.steps + recency) * warranted
        return fresh, slack.to(warranted.dtype)

    def compiled_passes(self) -> Passes | None:
        """See RuleModule.compiled_passes."""
        return Passes(self._adam, signed=self._signed) if self.config.hidden <= _WIDE else None


class Clock:
    """How many steps are done with this one, per tensor, and the corrections that follow from it.

    Attributes:
        counts: [.., tensors], float32.
        steps: the same in the state's dtype.
        corrections: of gradient and momenta for their start at zero, [.., tensors, 1 + momenta].
        calm: of the squares, [.., tensors].

    Args:
        counts: see there.
        logs: logarithms of the decays of gradient (-inf, since it is no average), momenta and squares.
    """

    def __init__(self, counts: Tensor, logs: Tensor) -> None:
        self.counts, self.steps = counts, counts.to(logs.dtype)
        inverses = (self.steps.unsqueeze(-1) * logs).expm1().neg().reciprocal()
        self.corrections, self.calm = inverses[..., :-1], inverses[..., -1]


def _of_neurons(plan: Plan, rows: Sequence[Tensor]) -> Tensor:
    """What stands in the state of the tensors that lead to every neuron, [.., neurons]: the same, or not yet there."""
    return plan.rows_of_neuron.gathered(torch.cat(list(rows), -1)).amax(-2)


def _shifted(wiring: Wiring, wire: Wire) -> bool:
    """A bias that moves by itself under the half-period shift of a sine: its value is not looked at."""
    return wire.kind == "bias" and wiring.sets[wire.target].group.shift


def _log(loss: Tensor) -> Tensor:
    return (loss + 1e-10).log()
