"""Any metanetwork as an update rule: a base step that works untrained, and what the metanetwork proposes besides.

    seen  = gradient, momenta, Adam's direction, clock, loss, as typed channels              moments.py
    step  = -a s o + b e f / sqrt(1 + mean (f / s)^2)          f = propose_delta(metanet, spec, parameters, seen)
    delta = that of an average of the iterates that took these steps

o is Adam's direction and s the scale of its parameter in the vertex gauge (gauge.py): -a s o is a geometric Adam, which
keeps every symmetry of the network. f is what the same `propose_delta` gives that an editor calls, of the type of a
delta; e, the root mean square of o over the tensor, is an invariant, and so the rule keeps what the metanetwork keeps.
Where gradients vanish the step does, and the motion of the average, whatever the metanetwork says (warrant.py). a and b
follow the clock; of a fresh rule b fades, so that steps later than meta-training saw are the base's, which is steady.
Steps do not grow with the weights, and fall with the root of the number of weight matrices, as those
of metanet_rule.py, which also says what the scale of a neuron remembers and how iterates are averaged (ours).

A metanetwork holds activations per edge, hence far more than a rule that goes parameter by parameter; memory.py says
how much before it is taken.

>>> from weightedit.metatrain.image_optimizees import conv_net
>>> from weightedit.optim.optimizer import LearnedOptimizer
>>> net = conv_net(1, 10)
>>> optimizer = LearnedOptimizer(net, make_rule("gauge-gmn", net))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from weightedit.delta import propose_delta
from weightedit.errors import SpecError, WeightEditError
from weightedit.files.checkpoint import CONFIG
from weightedit.files.schema import Facts, conform
from weightedit.metanet.base import Metanetwork, types_of
from weightedit.metanet.registry import build_metanet, describe_metanet, entry, make_metanet
from weightedit.network.features import check_types
from weightedit.network.graph_spec import AnySpec
from weightedit.network.layer import Activation
from weightedit.network.spec import NetworkSpec, Params
from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.gauge import growth, inverse_root, layers_before, neuron_scales, root, spread
from weightedit.optim.memory import tell_memory
from weightedit.optim.metanet_passes import averaged
from weightedit.optim.metanet_rule_config import WITHOUT_BOUNDS, check_bounds
from weightedit.optim.moments import Kept, Moments
from weightedit.optim.rounding import rounding_biases
from weightedit.optim.rule import RuleState, beside
from weightedit.optim.rule_module import At, RuleModule, Stepped
from weightedit.optim.warrant import of_entries, of_tensor

_TIMES = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3)
_GROWTH = 5.0  # what is beyond is not told apart
_ODD_ONLY = ("monomial",)
_SHARE = 1.0  # b over what the metanetwork's own scales say, at first: less, and meta-training has to find it first
_FADE, _FADING = 4.0, 300.0  # b falls by up to e^-7 about this step: meta-training sees few late steps
CLOCK = (100.0, 1000.0)
"""Times of the clock's channels, for metanetworks that take even quantities."""
ANY_ENDS = ("gauge-gmn", "gauge-gmn-b", "ng-gnn", "ng-t", "nfn-np")
"""Metanetworks whose rules step networks of any number of inputs and outputs, whatever they were trained on."""
SMALL = {"node_width": 8, "edge_width": 8, "width": 8, "hidden": 32, "layers": 2, "probes": 0}
"""Fields of a metanetwork's config for a rule, where it has them: it is run at every step."""


@dataclass(frozen=True)
class LearnedRuleConfig:
    """What defines a LearnedRule beside its metanetwork.

    Attributes:
        momenta, second, clock, loss: see Moments.
        averaging: the parameters follow an average of the iterates (Defazio et al. 2024, "The road less scheduled").
        memory: decay per step of the largest scale that a neuron has had, which is what counts as its scale.
        room, warm: see MetanetRuleConfig.
        step_size: of the base step at the start, in units of the weights' own size; positive.

    Raises:
        WeightEditError: values outside these ranges.
    """

    momenta: tuple[float, ...] = (0.9, 0.99)
    second: float = 0.99
    clock: tuple[float, ...] = CLOCK
    loss: bool = False
    averaging: bool = True
    memory: float = 0.999
    room: float | None = 4.0
    warm: int = 10
    step_size: float = 0.05

    def __post_init__(self) -> None:
        for name in ("momenta", "clock"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives a list back
        if not 0 <= self.memory < 1 or not self.step_size > 0:
            raise WeightEditError(f"got {self}; expected a memory in [0, 1) and a positive step size: correct them.")
        check_bounds(self, self.room, self.warm)
        self.moments()

    def moments(self) -> Moments:
        """What is kept, and seen."""
        return Moments(self.momenta, self.second, self.clock, self.loss)

    @property
    def extra_types(self) -> tuple[tuple[int, bool], ...]:
        """The field of a metanetwork's config that fits."""
        return tuple((kind.scale, kind.odd) for kind in self.moments().types)


@dataclass(frozen=True)
class _Held:
    """What config.json says of the metanetwork."""

    name: str
    config: Facts


class LearnedRule(RuleModule):
    """The rule of the file's docstring: an UpdateRule for networks of which there is a spec.

    Works on stacks, in torch.func.vmap over networks and over its own weights, and is differentiable in all it is
    given. State, per parameter: a float for every momentum, one for the squares and one for how far the steps are ahead
    of their average; one per row for how large its neuron has been; and one for the largest mean square so far.

    Args:
        metanet: one that edits, with the config's `extra_types`; make_rule makes both.
        config: see LearnedRuleConfig.

    Raises:
        SpecError: a metanetwork that reads.
        TypeMismatchError: one that takes other quantities.
    """

    kind = "learned-rule"
    what = "update rule of a metanetwork"
    configs = LearnedRuleConfig
    before = WITHOUT_BOUNDS
    config: LearnedRuleConfig
    needs_wiring = True
    needs_spec = True
    whole = True
    inverse_times: Tensor

    def __init__(self, metanet: Metanetwork, config: LearnedRuleConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LearnedRuleConfig()
        if metanet.embedding:
            raise SpecError(
                f"got {type(metanet).__name__} with embedding {metanet.embedding} as a rule; expected one that edits: "
                "build it with embedding=0."
            )
        check_types(metanet.types_in, types_of(config.extra_types, len(metanet.types_out)), type(self).__name__)
        self.metanet, self.moments = metanet, config.moments()
        self.log_step_size = nn.Parameter(torch.full((2,), math.log(config.step_size)))  # of weights, of other tensors
        self.log_share = nn.Parameter(torch.full((2,), math.log(_SHARE) - _FADE * math.tanh(1)))
        pace = torch.zeros(2, len(_TIMES))  # of the base step, of the proposed one
        pace[1, _TIMES.index(_FADING)] = -_FADE
        self.pace = nn.Parameter(pace)
        if config.averaging:
            self.lag, self.log_recency = nn.Parameter(torch.tensor(2.2)), nn.Parameter(torch.tensor(0.0))
        self.register_buffer("inverse_times", torch.tensor([1 / time for time in _TIMES]), persistent=False)

    def described(self) -> dict[str, Any]:
        """See RuleModule. Raises SpecError for a metanetwork that is not registered."""
        name, config = describe_metanet(self.metanet)
        return {**super().described(), "metanet": {"name": name, "config": config}}

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """See RuleModule."""
        held = conform(_Held, config.get("metanet"), f"{CONFIG}: metanet")
        return cls(build_metanet(held.name, held.config), cls.config_of(config))

    def quantities(self, wire: Wire) -> dict[str, tuple[int, ...]]:
        """See RuleModule."""
        ahead = {"ahead": wire.shape} if self.config.averaging else {}
        origin = {} if self.config.room is None else {"origin": wire.shape[:1]}
        return {**self.moments.quantities(wire), **ahead, "reach": wire.shape[:1], **origin, "peak": ()}

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """See RuleModule; says what a step will hold where that is much, and refuses where it is more than there is."""
        if wiring.spec is not None and params.keys() == wiring.spec.param_shapes().keys():
            tell_memory(self, f"a rule of {type(self.metanet).__name__}", wiring, params)
        return super().init(wiring, params)

    def compiled_passes(self) -> None:
        """See RuleModule."""
        return None

    def step(self, wiring: Wiring, at: At, loss: Tensor | None, passes: Any | None) -> Stepped:
        """See RuleModule."""
        grads, state, params = at
        if not grads:
            return {}, {}
        dtype, rates = next(iter(state.values()))["second"].dtype, wiring.rates
        values, slopes = ({name: tensors[name].to(dtype) for name in grads} for tensors in (params, grads))
        for name in rates.keys() & grads.keys():
            values[name], slopes[name] = values[name] * rates[name], slopes[name] / rates[name]
        scales, reach, origin = self._scales(wiring, values, state)
        slopes = self._telling(wiring, slopes, state, spread(wiring, values, reach))
        new: RuleState = {name: self.moments.update(slope, state[name]) for name, slope in slopes.items()}
        for name, kept in new.items():
            target = wiring.by_name[name].target
            kept["reach"] = reach[target].clone()  # weight and bias have the same
            if self.config.room is not None:
                kept["origin"] = origin[target].clone()
        directions = {name: self.moments.direction(kept) for name, kept in new.items()}
        proposed = self.propose(wiring, values, self.moments.channels(slopes, new, directions, loss))
        deltas: Params = {}
        for name, direction in directions.items():
            wire, kept = wiring.by_name[name], new[name]
            size, share = (beside(number, direction) for number in self._sizes(wire, kept["step"], dtype))
            # However large the metanetwork's word, it moves no tensor by much more than its scale.
            word = proposed[name] * (1 + _mean_square(wire, proposed[name] / scales[name])).rsqrt()
            energy = root(_mean_square(wire, direction))
            warranted, kept["peak"] = self._warranted(wire, slopes[name], kept, scales[name], state[name]["peak"])
            rising = warranted if not self.config.warm else warranted * self._rise(kept["step"], warranted)
            step = rising * (share * energy * word - size * scales[name] * direction)
            if self.config.averaging:
                step, kept["ahead"] = self._averaged(step, state[name]["ahead"], kept["step"], warranted)
            deltas[name] = (step / rates[name] if name in rates else step).to(grads[name].dtype)
        return deltas, new

    def propose(self, wiring: Wiring, params: Params, seen: Sequence[tuple[Any, Params]]) -> Params:
        """What the metanetwork says, computed in its own dtype, of parameters times their rates.

        Raises SpecError where nobody said what the network is, ParamsError where some of its parameters are missing.
        """
        if wiring.spec is None:
            raise SpecError(
                f"got a network without a spec for a rule of {type(self.metanet).__name__}; expected one that is read "
                "as a whole: pass the network, LearnedOptimizer(net, rule), or a wiring with spec=spec_of(net)."
            )
        dtype, home = self.log_share.dtype, next(iter(params.values())).dtype

        def cast(tensors: Params) -> Params:
            return {name: tensor.to(dtype) for name, tensor in tensors.items()}

        extra = [(kind, cast(values)) for kind, values in seen]
        # A step that is not finite is the optimizer's to refuse; a meta-loss counts it as the worst.
        found = propose_delta(self.metanet, _rated(wiring), cast(params), extra, finite=True)
        return {name: found[name].to(home) for name in params}

    def _telling(self, wiring: Wiring, slopes: Params, state: RuleState, gauge: Params) -> Params:
        """Gradients, zero where they are rounding alone (rounding.py)."""
        fresh = 1 - self.config.second
        squares = {
            name: state[name]["second"].lerp(slope.square(), fresh) * gauge[name].square()
            for name, slope in slopes.items()
        }
        void = rounding_biases(wiring, squares)
        return {name: slope.masked_fill(void[name], 0) if name in void else slope for name, slope in slopes.items()}

    def _scales(
        self, wiring: Wiring, values: Params, state: RuleState
    ) -> tuple[dict[str, Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """What a base step is a multiple of; "reach" and "origin" per set. See MetanetRule's functions."""
        reach = neuron_scales(wiring, values)
        origin, room = list(reach), self.config.room
        grown = growth(wiring, reach).clamp(-_GROWTH, _GROWTH)
        for name in values:
            i, kept = wiring.by_name[name].target, state[name]
            reach[i] = torch.maximum(reach[i], self.config.memory * kept["reach"])
            if room is not None:
                origin[i] = torch.where(kept["origin"] > 0, kept["origin"], origin[i])
        if room is not None:
            reach = [torch.minimum(own, room * first) for own, first in zip(reach, origin, strict=True)]
        scales, before = spread(wiring, values, reach), layers_before(wiring)
        matrices = sum(wire.kind == "weight" for wire in wiring.wires)
        for name, scale in scales.items():
            wire = wiring.by_name[name]
            layers = 1 + (before[wire.target] if wire.kind == "bias" else 0)
            scales[name] = scale * beside((-layers * grown).exp(), scale) * math.sqrt(2 / max(matrices, 1))
        return scales, reach, origin

    def _sizes(self, wire: Wire, steps: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
        """a and b, one number per network each."""
        kind = int(wire.kind != "weight")
        clock = (steps.to(dtype).unsqueeze(-1) * self.inverse_times.to(dtype) - 1).tanh()
        logs = torch.stack([self.log_step_size[kind], self.log_share[kind]]).to(dtype)
        return (clock @ self.pace.to(dtype).mT + logs).exp().unbind(-1)

    def _warranted(self, wire: Wire, slope: Tensor, kept: Kept, scale: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
        """What part of a step every entry's gradient warrants, and the tensor's new peak in the gauge (warrant.py)."""
        mean = self.moments.mean_square(kept)
        axes = tuple(range(-len(wire.shape), 0))
        now, before = ((x * scale.square()).mean(axes).view(peak.shape) for x in (slope.square(), mean))
        whole, peak = of_tensor(now, before, peak)
        return beside(whole, slope) * of_entries(slope * inverse_root(mean)), peak

    def _rise(self, steps: Tensor, like: Tensor) -> Tensor:
        return beside((steps / self.config.warm).clamp(max=1), like)

    def _averaged(self, step: Tensor, ahead: Tensor, steps: Tensor, warranted: Tensor) -> tuple[Tensor, Tensor]:
        """See MetanetRule."""
        recency, slack = self.recency({}).to(step.dtype), self.slack()
        assert slack is not None
        fresh = (1 + recency) / (steps.to(step.dtype) + recency)
        return averaged(step, ahead, beside(fresh, step) * warranted, slack.to(step.dtype))


def make_rule(
    name: str,
    networks: nn.Module | AnySpec | Sequence[nn.Module | AnySpec],
    config: LearnedRuleConfig | None = None,
    **options: Any,
) -> LearnedRule:
    """A fresh rule of the metanetwork `name` for such networks, small enough to be run at every step.

    Args:
        name: see metanet.registry.METANETS; one that edits.
        networks: a module or spec that it must treat, or several.
        config: of the rule; None for `default_config`.
        options: fields of the metanetwork's config, e.g. layers=3; those of SMALL are the default.

    Raises SpecError on an unknown name or option, and for networks that it does not treat.
    """
    config = config or default_config(name)
    known = entry(name).config.__dataclass_fields__
    if "extra_types" not in known:
        raise SpecError(f"got {name} as a rule; expected a metanetwork that edits, which takes gradients.")
    small = {key: value for key, value in SMALL.items() if key in known}
    small |= {"inputs": 0, "outputs": 0} if name in ANY_ENDS else {}
    return LearnedRule(make_metanet(name, networks, **{**small, **options, "extra_types": config.extra_types}), config)


def default_config(name: str) -> LearnedRuleConfig:
    """Of a rule of the metanetwork `name`: without a clock's channels where it takes no even quantity."""
    return LearnedRuleConfig(clock=() if name in _ODD_ONLY else CLOCK)


def _rated(wiring: Wiring) -> Any:
    """The spec of the network that has its rates in its weights (Wiring.rates): sines of omega 1 where these lead."""
    if not (rates := wiring.rates):
        return wiring.spec
    if "rated" not in wiring.plans:
        spec = wiring.spec
        if isinstance(spec, NetworkSpec):
            layers = (_plain(layer) if layer.weight in rates else layer for layer in spec.layers)
            wiring.plans["rated"] = replace(spec, layers=tuple(layers))
        else:
            reached = {link.target for link in spec.links if link.parameter in rates}
            levels = (_plain(level) if i in reached else level for i, level in enumerate(spec.levels))
            wiring.plans["rated"] = replace(spec, levels=tuple(levels))
    return wiring.plans["rated"]


def _plain(part: Any) -> Any:
    """A layer or level, with omega 1 if it has a sine."""
    return replace(part, activation=Activation("sine", 1.0)) if part.activation.name == "sine" else part


def _mean_square(wire: Wire, tensor: Tensor) -> Tensor:
    """Over the whole tensor, one number per network that broadcasts with it."""
    return tensor.square().mean(tuple(range(-len(wire.shape), 0)), keepdim=True)
