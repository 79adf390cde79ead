"""What update rules with weights share: a config and weights that make them, a state of zeros, a folder to be kept in.

How a step is made of gradients is mlp_rule.py's, metanet_rule.py's and learned_rule.py's; what an update rule is,
rule.py's. RuleModule.from_pretrained loads any of them.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from weightedit.files.location import CONFIG
from weightedit.files.pretrained import Pretrained
from weightedit.files.schema import conform
from weightedit.network.spec import Params
from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.rule import RuleState
from weightedit.optim.unitwise import contracting, one_graph

At = tuple[Params, RuleState, Params]
"""Gradients, state and parameters."""
Stepped = tuple[Params, RuleState]
"""The delta and the state after it."""


class RuleModule(Pretrained):
    """An UpdateRule whose `forward` is its `update`, and whose `config` and weights are all that it is.

    Attributes:
        kind: of its checkpoints.
        what: it is called in messages.
        configs: the dataclass of its config.
        before: fields that configs may lack, saved before there were these, and what such configs mean.
        config: JSON values, and tuples for which the dataclass takes lists.
    """

    kind: ClassVar[str]
    what: ClassVar[str]
    configs: ClassVar[type[Any]]
    before: ClassVar[Mapping[str, Any]] = {}
    config: Any
    log_recency: Tensor

    @abstractmethod
    def quantities(self, wire: Wire) -> dict[str, tuple[int, ...]]:
        """What is kept of a tensor besides the step: name -> shape for one network."""

    @abstractmethod
    def step(self, wiring: Wiring, at: At, loss: Tensor | None, passes: Any | None) -> Stepped:
        """See UpdateRule.update; `at`: gradients, state and parameters.

        With `passes`, what `compiled_passes` gave, large tensors of one network go through these, one after another.
        """

    @abstractmethod
    def compiled_passes(self) -> Any | None:
        """Functions of matrices, compiled for all shapes (unitwise.py); None for a rule too wide to be compiled so."""

    def slack(self, weights: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """1 - beta of a rule that averages its iterates (average.py), from its `lag`; None of one that does not.

        `weights`: by name, perhaps in a stack, in place of its own.
        """
        lag = getattr(self, "lag", None) if weights is None else weights.get("lag")
        return None if lag is None else (-lag).sigmoid()

    def recency(self, kept: Mapping[str, Tensor]) -> Tensor:
        """The power of time with which a rule that averages weighs its iterates; `kept`: a tensor's state."""
        return self.log_recency.exp()

    def forward(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> Stepped:
        """See UpdateRule.update."""
        return self.step(wiring, (grads, state, params), loss, None)

    def compiled(self) -> CompiledUpdate:
        """`update`, compiled: a network as one graph or, where it is too large for that, by passes."""
        return CompiledUpdate(self)

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """Zeros in float32 at least, [(N), *shape] for every one of `quantities`."""
        lead, state = wiring.lead(params), {}
        for name, tensor in params.items():
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            shapes = self.quantities(wiring.by_name[name])
            state[name] = {key: tensor.new_zeros((*lead, *shape), dtype=dtype) for key, shape in shapes.items()}
            state[name]["step"] = tensor.new_zeros(lead, dtype=torch.float32)
        return state

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> Stepped:
        """See UpdateRule.update."""
        return self(wiring, grads, state, params, loss=loss)

    def described(self) -> dict[str, Any]:
        """See Pretrained."""
        return {"rule": asdict(self.config)}

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """See Pretrained."""
        return cls(cls.config_of(config))  # type: ignore[call-arg]

    @classmethod
    def config_of(cls, config: Mapping[str, Any]) -> Any:
        """The rule's config from its checkpoint's."""
        given = config["rule"]
        given = {**cls.before, **given} if isinstance(given, Mapping) else given
        return conform(cls.configs, given, f"{CONFIG}: rule")


class CompiledUpdate:
    """`update` of a rule, compiled: see RuleModule.compiled.

    The first step of a network runs as it is: what is made once is made, and a compiler then meets the state as it
    stays. Else the second step would be compiled anew. Of a wiring, a compiled step looks at nothing but its name.

    Attributes:
        size: the norm of all that the last step gave, deltas and state, made on the way; None of one that ran as it is.
    """

    def __init__(self, rule: RuleModule) -> None:
        self.size: Tensor | None = None
        self._rule, self._passes = rule, rule.compiled_passes()
        self._wholes: dict[str, Callable[..., tuple[Params, RuleState, Tensor]]] = {}
        self._names: dict[int, tuple[Wiring, str]] = {}
        self._met: set[tuple[Any, ...]] = set()

    def __call__(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> Stepped:
        self.size = None
        if self._passes is not None and not one_graph(grads.values()) and not torch.is_grad_enabled():
            return self._rule.step(wiring, (grads, state, params), loss, self._passes)
        first = next(iter(grads), None)
        kinds = () if first is None else ((t.dtype, t.device, t.dim()) for t in state[first].values())
        kind = id(wiring), *grads, *kinds
        if kind not in self._met:
            self._met.add(kind)
            self._names.setdefault(id(wiring), (wiring, name_of(wiring)))
            return self._rule.update(wiring, grads, state, params, loss=loss)
        device = "" if first is None else params[first].device.type
        if device not in self._wholes:
            self._wholes[device] = torch.compile(self._named, options=_options(device))
        whole, name = self._wholes[device], self._names[id(wiring)][1]
        deltas, after, self.size = whole(name, wiring, grads, state, params, loss=loss)
        return deltas, after

    def _named(self, name: str, wiring: Wiring, *given: Any, loss: Tensor | None) -> tuple[Params, RuleState, Tensor]:
        """`update` by a wiring that its name stands for, which a compiler sees to be asked for; and its size."""
        assert name
        deltas, after = self._rule.update(wiring, *given, loss=loss)
        made = [*deltas.values(), *(tensor for kept in after.values() for tensor in kept.values())]
        return deltas, after, sum((tensor.square().sum() for tensor in made[1:]), made[0].square().sum()).sqrt()


_SETTLED = re.compile(r"(?:[\w.]+\()*(?:L\['wiring'\]|wiring\b|G\['__import_weightedit)")
"""What does not change under a compiled step: its wiring, by whose name it is found, and what is written here."""


def _options(device: str) -> dict[str, Any]:
    """The compiler's, for a network as one graph: to look at what may change before a step, and not at the rest.

    On a CPU what takes a few operations is made once, else what is one number per tensor is made anew for every eight
    of its parameters. Kernels are called from Python: by calls from C++ the smallest steps would be a fifth faster, and
    compiling would take twice as long.
    """
    found = {**contracting(), "size_asserts": False}
    if device == "cpu":
        found["realize_opcount_threshold"] = 4
    if hasattr(torch.compiler, "skip_guard_on_globals_unsafe"):  # torch before 2.8 looks at everything
        found["guard_filter_fn"] = lambda guards: [_SETTLED.match(one.name) is None for one in guards]
    return found


def name_of(wiring: Wiring) -> str:
    """The same for wirings that a rule sees to be the same, and for no others."""
    return sha256(repr(wiring).encode()).hexdigest()
