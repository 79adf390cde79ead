"""Any update rule as a torch.optim.Optimizer, for every training loop that takes one.

Here: parameter groups, state, closures, and the refusal of steps that are not finite. The rule proposes a delta for
all wired parameters at once; parameters outside the wiring are moved by a rule designed by hand, in groups of their
own. All state is the rule's, and stands in `state[parameter]`; one step is

    p <- (1 - unit lr decay_unit weight_decay) p + unit lr delta

with two numbers that a group keeps beside what a user sets: "decay_unit", the lr of AdamW that lr = 1 of the rule
stands for, and "unit", 1 but for parameters outside, whose lr moves with the rule's under every schedule. Rules run in
float32 at least, whatever the parameters' dtype, and under autocast too. What lr and decay are to a rule that averages
its iterates is average.py's. The file is long because what torch expects of an optimizer, its state in and out
included, is one class.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.errors import NonFiniteError, ParamsError, WeightEditError
from weightedit.network.graph_spec import spec_of
from weightedit.network.program import unwrapped
from weightedit.network.reading import FirstInputs, read, shapes_of
from weightedit.network.spec import Params
from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.average import POINT, advance, at_average, at_training, averages, beyond, proposed_at_rates
from weightedit.optim.hand_designed import Adam
from weightedit.optim.memory import keep_freed
from weightedit.optim.naming import (
    arranged,
    paired,
    refuse_part,
    refuse_shard,
    refuse_strangers,
    with_axis,
    with_isolated,
)
from weightedit.optim.rule import RuleState, UpdateRule
from weightedit.optim.stepping import (
    One,
    Step,
    check_numbers,
    compiled,
    decay_unit,
    first_state,
    found_rule,
    is_half,
    is_rate_of_another,
    rate_of,
    read_options,
    rule_name,
    stepped,
    wide,
)

_LOG = logging.getLogger(__name__)


_OWN = ("param_names", "outside", "unit", "decay_unit")
"""What no caller and no saved state sets in a group."""
_AWAY = "at_average"
"""In a group, whether its parameters are their average now."""
_COURSE = {_AWAY: False, "steps": 0, "mean_lr": 0.0}
"""What no caller sets in a group and a saved state does: that, and of a rule that averages the steps so far."""


class LearnedOptimizer(torch.optim.Optimizer):
    """An update rule, learned or designed by hand, as an ordinary optimizer.

    LearnedOptimizer(net) optimizes all of a network, by the shipped rule "general" or by the one that is given. Groups
    with their own lr and weight_decay go with the network that names them: LearnedOptimizer(groups, rule, net=net).
    Parameters without a network are treated as isolated matrices, which rules that need the graph refuse.

    Weights of the network that are in no group (frozen ones, or another optimizer's) are not moved. A rule that reads
    the whole network sees them as it sees frozen ones in a group, with a gradient of zero, if they are floating-point
    numbers on the device of the others.

    Parameters outside the neural graph stand in groups of their own, each after the one that it was given in, with
    group["outside"] True. They begin with AdamW's 1e-3 (`outside_lr`, in units of the rule `outside`), whatever the lr
    of the others, and group["unit"] says what their lr is multiplied by for that: group["lr"] is the same for both, and
    schedulers do right by all groups, also those that set an lr. Where a group that holds nothing else states an lr, it
    is in those units. OneCycleLR takes cycle_momentum=False, since no rule takes a momentum from its group.

    Args:
        params: a module; or what torch optimizers take: tensors, (name, tensor) pairs, or dictionaries with `params`
            and perhaps `lr` and `weight_decay`.
        rule: an UpdateRule, or a learned one by its folder or name: "general", "runs/rule", "owner/name".
        lr: factor of the rule's delta, a number >= 0 or a tensor; 1 is the step that the rule was made for.
        weight_decay: decoupled, in units of AdamW at its lr of 1e-3: a step of a learned rule takes the part
            1e-3 * lr * weight_decay of a parameter away; of a rule designed by hand, learning_rate * lr * weight_decay.
        net: the network that `params` belong to, for their names and wiring.
        wiring: instead of the one read from the network.
        inputs: one batch that the network's forward takes, of which only shapes matter: a tensor, a tuple of arguments
            or a dictionary of keywords. None: they are guessed from its first layer or, where that is not possible,
            remembered from its first forward by a hook that then removes itself; until the first step a network is
            then read layer by layer.
        options: fields of StepOptions.

    Attributes:
        rule, wiring, options: as given or read.
        skipped_steps: how many steps were refused under nonfinite="skip"; with capturable=True, reading it waits for
            the device.

    Raises:
        WeightEditError: flags of torch optimizers that have no meaning here; numbers out of range; shards, and parts in
            a ZeroRedundancyOptimizer for a rule that reads the whole network.
        TypeError: what is no rule, and unknown options.
        ParamsError: parameters whose names cannot be found, or are found twice.
    """

    def __init__(
        self,
        params: Any,
        rule: UpdateRule | str | Path = "general",
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        *,
        net: nn.Module | None = None,
        wiring: Wiring | None = None,
        inputs: Any = None,
        **options: Any,
    ) -> None:
        self.options = read_options(options)
        self.rule: UpdateRule = found_rule(rule)
        self._outside: UpdateRule = self.options.outside or Adam(1.0)
        self._skipped, self._refused = 0, None
        self._observed: Any = None
        self._seen: Params = {}
        self._updates: dict[bool, Callable[..., tuple[Params, RuleState]]] = {}
        if isinstance(params, nn.Module):
            net, params = params, list(unwrapped(params).named_parameters())
        whole = net
        net = None if net is None else unwrapped(net)
        self._net = None if net is None else weakref.ref(net)
        self._isolates = net is None and wiring is None
        if self._isolates and getattr(self.rule, "needs_wiring", False):
            raise WeightEditError(
                f"got parameters alone for {rule_name(self.rule)}, which reads the network's graph; expected the "
                "network: LearnedOptimizer(net, rule), or LearnedOptimizer(params, rule, net=net)."
            )
        if self._whole:
            refuse_part(rule_name(self.rule))
        self._first: FirstInputs | None = None
        self._waiting: nn.Module | None = None  # the network whose forward `_first` waits for
        self._inputs: tuple[Any] | None = None  # that the network was read with
        self.wiring = wiring or Wiring((), ())
        if net is not None and whole is not None:
            self._read(net, whole, inputs, given=wiring is not None)
        self._outside_wiring = Wiring((), ())
        check_numbers({"lr": lr, "weight_decay": weight_decay})
        rate = float(lr.detach()) if isinstance(lr, Tensor) else lr
        if is_rate_of_another(self.rule, rate):
            _LOG.warning(
                "lr is %s, which multiplies the learned rule's own step, and is no rate as AdamW's is: begin with 1.",
                rate,
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "outside": False, **_COURSE})
        moved = {side: any(p.requires_grad for p in self._params(outside=side)) for side in (False, True)}
        if moved[True] and not moved[False]:
            _LOG.warning(
                "No parameter that requires a gradient is in the neural graph: %s will move nothing, %s everything. "
                "Read optimizer.wiring.report(); only numbers without axes, and what is empty, are left out of it.",
                rule_name(self.rule),
                self._outside_name(),
            )

    @property
    def skipped_steps(self) -> int:  # noqa: D102, described with the class
        return self._skipped + (0 if self._refused is None else int(self._refused))

    # The network.

    def _read(self, net: nn.Module, whole: nn.Module, inputs: Any, *, given: bool) -> None:
        """Find the wiring, unless it is given; where inputs are missing, wait for those of the first forward."""
        if not given:
            found = read(net, inputs)
            self.wiring, self._inputs = found.wiring, (shapes_of(inputs),)
            if found.waits:
                self._first, self._waiting = FirstInputs(whole), net
        if self.wiring.spec is None and getattr(self.rule, "needs_spec", False):
            self.wiring = replace(self.wiring, spec=spec_of(net, inputs))
        for note in self.wiring.notes if self._first is None else ():
            _LOG.warning(note)

    def settle(self, *, final: bool = False) -> None:
        """Read a network whose inputs could not be guessed, if its first forward is past; or as it is, if `final`.

        A step does, so that this is for who looks at `wiring` before that.
        """
        first, net = self._first, self._net() if self._net is not None else None
        if first is None or (first.inputs is None and not final):
            return
        self._first = self._waiting = None
        if net is None:
            return
        first.remove()
        found = self.wiring
        if first.inputs is not None:
            found, self._inputs = read(net, first.inputs).wiring, (first.inputs,)
        self.wiring = replace(found, spec=self.wiring.spec)
        for note in self.wiring.notes:
            _LOG.warning(note)

    def _read_again(self, net: nn.Module, names: Iterable[str]) -> None:
        """Read a network that has parameters of these names now, if it was read before and they are new to it."""
        known = {*self.wiring.by_name, *self.wiring.outside}
        if self._inputs is None or self._first is not None or all(name in known for name in names):
            return
        old = self.wiring.by_name
        self._read(net, net, self._inputs[0], given=False)
        for group in self.param_groups:
            for name, param in zip(group["param_names"], group["params"], strict=True):
                before, now = old.get(name), self.wiring.by_name.get(name)
                if before and now and self.state.get(param) and _seen_as(before) != _seen_as(now):
                    del self.state[param]
                    _LOG.warning("%s is read in another way now; what was known of its gradients is forgotten.", name)

    # Parameters.

    @property
    def outside(self) -> tuple[UpdateRule, Wiring]:
        """The rule of parameters outside the wiring, and theirs: isolated wires."""
        return self._outside, self._outside_wiring

    @property
    def seen(self) -> Params:
        """Weights of the network that are in no group, which the rule reads all the same."""
        return self._seen

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; parameters outside the wiring get a group of their own, with outside=True (lr: see the class).

        Parameters added later are found by name in the network, which the optimizer knows as long as it lives and as
        the optimizer is not a copy; or else come as (name, tensor) pairs. Where they are new to the network, it is read
        again.
        """
        given = {key: value for key, value in param_group.items() if key not in ("params", *_COURSE, *_OWN)}
        check_numbers(given)
        net = self._net() if self._net is not None else None
        names = {} if net is None else {id(p): name for name, p in net.named_parameters()}
        taken = chain.from_iterable(group["param_names"] for group in self.param_groups)
        pairs = paired(param_group["params"], names, taken, generate=net is not None or self._isolates)
        if net is not None:
            self._read_again(net, [name for name, _ in pairs])
        if self._isolates:
            self.wiring = with_isolated(self.wiring, pairs)
        inside = [pair for pair in pairs if pair[0] in self.wiring.by_name]
        outside = [pair for pair in pairs if pair[0] not in self.wiring.by_name]
        if inside or not outside:
            units = {"unit": 1.0, "decay_unit": decay_unit(self.rule)}
            super().add_param_group({**given, **_group(inside), **units, "outside": False})
        if outside:
            stated, units = not inside and "lr" in given, {"unit": 1.0, "decay_unit": decay_unit(self._outside)}
            super().add_param_group({**given, **_group(outside), **units, "outside": True})
            lr = float(self.param_groups[-1]["lr"])
            self.param_groups[-1]["unit"] = 1.0 if stated else self._outside_lr() / (lr or 1.0)
            self._outside_wiring = with_isolated(self._outside_wiring, [(n, with_axis(p)) for n, p in outside])
            self._tell([name for name, p in outside if p.requires_grad and p.numel()])
        found = self._seen if net is None else dict(net.named_parameters()) if self._whole else {}
        taken = {name for group in self.param_groups for name in group["param_names"]}
        known = self.wiring.by_name.keys() - taken
        self._seen = {name: p for name, p in found.items() if name in known and p.is_floating_point()}

    @property
    def _whole(self) -> bool:
        return getattr(self.rule, "whole", False)

    def _outside_lr(self) -> float:
        own = 1e-3 if self.options.outside is None else 1.0
        return own if self.options.outside_lr is None else self.options.outside_lr

    def _outside_name(self) -> str:
        return "AdamW" if self.options.outside is None else rule_name(self.options.outside)

    def _params(self, *, outside: bool) -> Iterable[Tensor]:
        groups = (group["params"] for group in self.param_groups if bool(group["outside"]) == outside)
        return chain.from_iterable(groups)

    def _tell(self, names: list[str]) -> None:
        if names:
            _LOG.warning(
                "What is not in the neural graph is optimized by %s at lr %s in a group of its own: %s",
                self._outside_name(),
                float(rate_of(self.param_groups[-1])),
                ", ".join(names),
            )

    # Steps.

    def observe(self, loss: Tensor | float) -> None:
        """Tell the next step the loss at which the gradients were taken (one number, or one per stacked network).

        For loops whose closure returns no loss, or that have none, and rules that use the loss; without it they do
        without. A closure's loss comes first.
        """
        self._observed = loss

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step from the gradients of the parameters; those without one stay.

        Args:
            closure: computes the gradients and returns the loss; called once, first, with gradients enabled. Of what
                is no tensor or number, such as (loss, outputs), the rule learns nothing: `observe` the loss there.

        Returns what the closure returned.
        Raises NonFiniteError, with parameters and state as before, if the step would make a number infinite or NaN and
        `nonfinite` is "raise"; WeightEditError for sparse gradients, for shards of parameters, and while the parameters
        are their average.
        """
        if torch.compiler.is_compiling():  # a whole training step: what can be compiled of this one, `compile` does
            from weightedit.graph.uncompiled import uncompiled

            return uncompiled(LearnedOptimizer._stepped, self, closure)
        return self._stepped(closure)

    @torch.no_grad()
    def _stepped(self, closure: Callable[[], Any] | None) -> Any:
        self.refuse_at_average()
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self.settle(final=any(p.grad is not None for outside in (False, True) for p in self._params(outside=outside)))
        seen, self._observed = (result if isinstance(result, Tensor | Real) else self._observed), None
        loss = self._loss(seen)
        concerned = [(outside, self._concerned(outside)) for outside in (False, True)]
        steps = [
            self._step(ones, loss, outside)
            for outside, ones in concerned
            if any(o.grad is not None for o in ones.values())
        ]
        if self.options.capturable and steps:
            self._take_if_sound(steps)
            return result
        for message in filter(None, (step.fault() for step in steps)):
            self.refuse(message)
            return result
        for step in steps:
            step.take(self.state)
            self._advance(step)
        return result

    def _take_if_sound(self, steps: Sequence[Step]) -> None:
        sound = torch.stack([step.sound() for step in steps]).all()
        for step in steps:
            step.take_if(sound, self.state)
            self._advance(step, sound)
        if self._refused is None:
            self._refused = torch.zeros((), dtype=torch.long, device=sound.device)
        self._refused += ~sound

    def _advance(self, step: Step, sound: Tensor | None = None) -> None:
        for group in {id(one.group): one.group for one in step.ones.values()}.values():
            if averages(self._outside if group["outside"] else self.rule):
                advance(group, sound)

    def _concerned(self, outside: bool) -> dict[str, One]:
        """The parameters with gradients, by name; with the others for a rule that needs all of them."""
        found = {}
        whole = self._whole and not outside
        for group in self.param_groups:
            if bool(group["outside"]) != outside:
                continue
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if (param.grad is None and not whole) or not param.numel():
                    continue
                refuse_shard(name, param, None if outside else self.wiring.by_name[name])
                if param.grad is not None and param.grad.layout != torch.strided:
                    raise WeightEditError(
                        f"{name} has a sparse gradient; expected a dense one: make its embedding with sparse=False, or "
                        "give it to torch.optim.SparseAdam."
                    )
                found[name] = One(param, group, param.grad)
        device = next((one.param.device for one in found.values()), None)
        for name, param in self._seen.items() if whole else ():
            if param.device == device:
                refuse_shard(name, param, self.wiring.by_name[name])
                found[name] = One(param, {}, None)
        return found

    def _step(self, ones: dict[str, One], loss: Tensor | None, outside: bool) -> Step:
        rule, wiring = (self._outside, self._outside_wiring) if outside else (self.rule, self.wiring)
        wires = wiring.by_name
        # A compiler would look for the gradients of what requires them; else a view of each is a call for nothing.
        bare = {name: one.param.detach() if self.options.compile else one.param for name, one in ones.items()}
        params = {name: wires[name].arranged(with_axis(param)) for name, param in bare.items()}
        grads = {
            n: torch.zeros_like(params[n]) if o.grad is None else wires[n].arranged(with_axis(o.grad))
            for n, o in ones.items()
        }
        if isinstance(rule, nn.Module):
            _bring(rule, next(iter(params.values())).device)
        if outside not in self._updates:
            self._updates[outside] = compiled(rule) if self.options.compile else rule.update
            keep_freed(next(iter(params.values())).device)
        fresh = {name: params[name] for name, one in ones.items() if not self.state.get(one.param)}
        if self.options.capturable and fresh:
            for name, first in first_state(rule, wiring, fresh).items():
                self.state[ones[name].param] = first
        state = {name: self.state[one.param] for name, one in ones.items() if self.state.get(one.param)}
        groups, update = {name: one.group for name, one in ones.items()}, self._updates[outside]
        deltas, state = proposed_at_rates(rule, wiring, (grads, state, params), groups, loss=loss, update=update)
        taken = {name: one for name, one in ones.items() if one.grad is not None}
        deltas = {name: wires[name].restored(deltas[name]) for name in taken}
        new = {
            n: stepped(with_axis(o.param.detach()), deltas[n], o.group).to(params[n].dtype)
            for n, o in taken.items()
            if is_half(o.param.dtype)
        }
        return Step(taken, {name: state[name] for name in taken}, deltas, new, getattr(update, "size", None))

    def _loss(self, seen: Any) -> Tensor | None:
        if seen is None:
            return None
        first = next(chain.from_iterable(group["params"] for group in self.param_groups))
        loss = wide(torch.as_tensor(seen).detach().to(first.device))
        loss = loss.reshape(()) if loss.numel() == 1 else loss
        distributed = torch.distributed
        if self.options.average_loss and distributed.is_available() and distributed.is_initialized():
            loss = loss.clone()
            distributed.all_reduce(loss)
            loss /= distributed.get_world_size()
        return loss

    def refuse(self, message: str) -> None:
        """Raise NonFiniteError for a step that is not taken; or warn and count it, where `nonfinite` is "skip"."""
        if self.options.nonfinite == "raise":
            raise NonFiniteError(message)
        self._skipped += 1
        _LOG.warning("%s (%d steps refused so far)", message, self.skipped_steps)

    # The average.

    def eval(self) -> None:
        """Move parameters from y, where gradients are taken, to x, the average of the iterates; for evaluating, saving.

        As schedule-free optimizers have it: x is what such a rule has learned so far, and has less noise. Nothing
        happens where the rule does not average, with parameters that have no state, and at a second call. Until
        `train()`, a step is refused; the state holds a copy of y, which a state_dict saves, so that training goes on
        bit by bit, from a checkpoint too. BatchNorm's running statistics are those of y: see tasks/README.md.

        Raises WeightEditError for a loaded state of a network whose first forward is still waited for.
        """
        self._go(away=True)

    def train(self) -> None:
        """The inverse: back to y, bit by bit; entries that were changed meanwhile keep their change. Else nothing."""
        self._go(away=False)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, parameters are their average, as between `eval()` and `train()`; then what they were before."""
        before = [group[_AWAY] for group in self.param_groups]
        self.eval()
        try:
            yield
        finally:
            if not all(before):
                self.train()

    @torch.no_grad()
    def _go(self, *, away: bool) -> None:
        self.settle()
        for group in self.param_groups:
            rule, wiring = self.outside if group["outside"] else (self.rule, self.wiring)
            if group[_AWAY] == away or not averages(rule):
                continue
            waits = self._first is not None and not group["outside"]
            for name, param in zip(group["param_names"], group["params"], strict=True):
                kept = self.state.get(param) or {}
                point = None if away else kept.pop(POINT, None)
                if waits and kept and point is None:
                    raise WeightEditError(
                        f"got a loaded state of {name} before the network's first forward, without which its average "
                        "is not known; expected the inputs: pass inputs=, one batch, or call the network once."
                    )
                lead = None if waits else beyond(rule, wiring, name, kept)
                if lead is not None and away:
                    kept[POINT] = param.detach().clone()
                    param.copy_(at_average(param, lead))
                elif lead is not None or point is not None:
                    param.copy_(point if lead is None else at_training(param, lead, point))
            group[_AWAY] = away

    def refuse_at_average(self) -> None:
        """Raise WeightEditError while the parameters are their average, where no step starts."""
        if any(group[_AWAY] for group in self.param_groups):
            raise WeightEditError(
                "got a step after eval(), with parameters at the average of the iterates; expected them where "
                "gradients are taken: call the optimizer's train() before the forward."
            )

    # Copies and checkpoints.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state keeps the dtypes that it was saved with, and the parameters keep their names.

        Where both sides name the same parameters, state and groups go by name, in whatever order they stand; else by
        position, as torch's do (a scheduler's state goes by position always).

        Raises, with everything as before, ParamsError for what no state_dict() gave, for the state of another kind of
        rule, for shapes that the rule would not keep for these parameters, for what is not finite or no floating-point
        tensor (a number may stand for a tensor without axes), and where parameters of the same names are grouped in
        another way; WeightEditError for an lr or weight_decay that the constructor refuses.
        """
        refuse_strangers(state_dict)
        names = [group["param_names"] for group in self.param_groups]
        own = [{key: group[key] for key in _OWN} for group in self.param_groups]
        came: dict[str, Any] = {}

        def match(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            state = {key: _as_tensors(kept) for key, kept in given["state"].items()}
            groups = [{**group} for group in arranged(given["param_groups"], names)]
            came.update(given, state=state, param_groups=groups)
            for group, here in zip(came["param_groups"], self.param_groups, strict=False):
                for name in ("lr", "weight_decay"):
                    group.setdefault(name, here[name])
                for name, first in _COURSE.items():  # of before there were these
                    group.setdefault(name, first)
                check_numbers(group)
                if here["outside"]:  # of before there were units: an lr of AdamW; or begun with another lr
                    for name in group.keys() & {"lr", "initial_lr"}:
                        group[name] = group[name] * group.get("unit", 1.0) / here["unit"]
            self._check_state(came)
            return came

        def put(_: torch.optim.Optimizer) -> None:
            for group, kept in zip(self.param_groups, own, strict=True):
                group.update(kept)
            saved = chain.from_iterable(group["params"] for group in came["param_groups"])
            here = chain.from_iterable(group["params"] for group in self.param_groups)
            for key, param in zip(saved, here, strict=True):
                for quantity, value in came["state"].get(key, {}).items():
                    self.state[param][quantity] = value.detach().to(param.device, copy=True)  # steps write into it

        # The last before and the first after: hooks of the user may make names, and see the state as it is.
        hooks = [
            self.register_load_state_dict_pre_hook(match),
            self.register_load_state_dict_post_hook(put, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_state(self, came: dict[str, Any]) -> None:
        """Raise ParamsError for a state that the rules would not keep for the parameters at its places."""
        for group, other in zip(self.param_groups, came["param_groups"], strict=False):  # torch refuses other numbers
            rule, wiring = self.outside if group["outside"] else (self.rule, self.wiring)
            for name, param, key in zip(group["param_names"], group["params"], other["params"], strict=False):
                given = came["state"].get(key)
                if not given:
                    continue
                if self._first is not None and not group["outside"]:  # it may be arranged otherwise yet
                    continue
                arranged = wiring.by_name[name].arranged(with_axis(param.detach()))
                expected = rule.init(wiring, {name: wide(arranged)})[name]
                if POINT in given and averages(rule):
                    expected[POINT] = param
                since = {"peak", "origin"} - given.keys()
                if (
                    given.keys() | since == expected.keys() | since
                ):  # of before there were these: the next step finds them
                    given.update({key: expected[key] for key in since & expected.keys()})
                if given.keys() != expected.keys():
                    raise ParamsError(
                        f"got a state with {', '.join(given)} for {name}; expected {', '.join(expected)} of "
                        f"{rule_name(rule)}: load the state of an optimizer with the same rule."
                    )
                for quantity, tensor in expected.items():
                    shape = getattr(given[quantity], "shape", None)
                    if shape != tensor.shape:
                        raise ParamsError(
                            f"got a state whose {quantity} has shape {shape and tuple(shape)} for {name} of shape "
                            f"{tuple(param.shape)}; expected {tuple(tensor.shape)}, as {rule_name(rule)} keeps it: "
                            "load the state of the same network, with its parameters in the same order."
                        )
                    if not given[quantity].is_floating_point() or not bool(given[quantity].isfinite().all()):
                        fault = f"of {given[quantity].dtype}" if given[quantity].isfinite().all() else "not finite"
                        raise ParamsError(
                            f"got a state whose {quantity} is {fault} for {name}; expected finite floating-point "
                            "numbers: load a state that an optimizer saved, from before they broke down."
                        )

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle keeps: not what is compiled, and the network only if its forward is waited for."""
        own = ("rule", "wiring", "options", "_skipped", "_refused", "_seen", "_isolates", "_outside", "_outside_wiring")
        own += ("_first", "_waiting", "_inputs")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(
            {
                "_net": None,
                "_first": None,
                "_waiting": None,
                "_inputs": None,
                "_observed": None,
                "_seen": {},
                "_skipped": 0,
                "_refused": None,
                "_updates": {},
                **self.__dict__,
                **state,
            }
        )
        if self._net is None and self._waiting is not None:  # a copy, with its own network
            self._net = weakref.ref(self._waiting)


def optimizer_factory() -> type[LearnedOptimizer]:
    """For trainers that make the optimizer from the model themselves: optimizer_factory()(model, rule=..., lr=...).

    With Hugging Face's Trainer: optimizer_cls_and_kwargs=(optimizer_factory, {"rule": rule, "lr": 1.0}), from
    transformers 5.2 on; before that, (LearnedOptimizer, {"rule": rule, "lr": 1.0, "net": model}). A Trainer tells a
    factory nothing of its TrainingArguments: give {..., "weight_decay": args.weight_decay}, which is then that of all
    parameters, biases too. With the class, decay is that of the groups that a Trainer makes.
    """
    return LearnedOptimizer


def _as_tensors(state: Any) -> Any:
    """A parameter's state with numbers as tensors. Raises ParamsError for what is no dictionary of either."""
    given = state if isinstance(state, dict) else {"itself": state}
    found = {key: torch.tensor(float(x)) if isinstance(x, Real) else x for key, x in given.items()}
    if given is not state or not all(isinstance(kept, Tensor) for kept in found.values()):
        wrong = ", ".join(f"{key} ({type(x).__name__})" for key, x in given.items() if not isinstance(x, Tensor))
        raise ParamsError(f"got a state with {wrong}; expected tensors or numbers: load what state_dict() gave.")
    return found


def _bring(rule: nn.Module, device: torch.device) -> None:
    first = next(rule.parameters(), None)
    if first is not None and first.device != device:
        rule.to(device)


def _seen_as(wire: Wire) -> tuple[Any, ...]:
    """As what a rule sees a parameter, and keeps its state."""
    return wire.view, wire.shape, wire.stored, wire.axes


def _group(pairs: list[tuple[str, Tensor]]) -> dict[str, Any]:
    return {"params": [tensor for _, tensor in pairs], "param_names": [name for name, _ in pairs]}
