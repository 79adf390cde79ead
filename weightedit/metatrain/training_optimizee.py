"""Ordinary trainings (workloads.py) as inner problems: what a rule is trained on is what people train.

Any module, any loss, any examples: a stack of networks is torch.func.vmap's. Parameters stand as rules see them,
targets first. BatchNorm goes by the statistics of its batch, as it does in training.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from weightedit.errors import SpecError
from weightedit.metatrain.draws import indices
from weightedit.metatrain.optimizee import Batch, Task
from weightedit.metatrain.workloads import Source, Workload
from weightedit.network.reading import wiring_of
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring

FLOOR = 1e-8  # of losses in decibels


@dataclass(frozen=True, eq=False)
class TrainingOptimizee:
    """A training, in stacks.

    Args:
        task: what is trained, on which examples. Meta-losses may be taken on its validation examples.

    Raises:
        SpecError: a module with buffers other than running statistics.
    """

    task: Workload
    net: nn.Module = field(init=False, repr=False)
    _wiring: Wiring = field(init=False, repr=False)

    def __post_init__(self) -> None:
        x, _ = self.task.train[torch.arange(2)]
        net = _without_statistics(self._made(0))
        wiring, buffers = wiring_of(net, (x,)), [name for name, _ in net.named_buffers()]
        if buffers:
            raise SpecError(
                f"got a {type(net).__name__} with buffers {', '.join(buffers)}; expected none but running statistics "
                "of BatchNorm, since a stack of networks has one of each: train a module without them."
            )
        object.__setattr__(self, "net", net)
        object.__setattr__(self, "_wiring", wiring)

    def _made(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.task.network()

    @property
    def wiring(self) -> Wiring:
        """As reading.wiring_of reads the module."""
        return self._wiring

    @property
    def cap(self) -> float:
        """1.5 times the loss of a guess that does not look, of fits ten times."""
        return (10 if self.task.decibels else 1.5) * self.task.guess

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """`count` modules' parameters; there is no task."""
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        made = [dict(self._made(seed + i).named_parameters()) for i in range(count)]
        params: Params = {}
        for wire in self._wiring.wires:
            stack = torch.stack([net[wire.name].detach() for net in made]).to(generator.device)
            params[wire.name] = wire.arranged(stack)
        return params, {}

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """See Optimizee.batch. On the device of the keys, where all examples are copied once."""
        source = self._source(keys.device, held_out=held_out)
        if self.task.batch_size:
            rows = indices(keys, self.task.batch_size, len(source))
        else:
            rows = torch.arange(len(source), device=keys.device).expand(len(keys), -1)
        x, y = source[rows]
        return {"inputs": x, "targets": y}

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, bool], Source]:
        return {}

    def _source(self, device: torch.device, *, held_out: bool) -> Source:
        if (device, held_out) not in self._copies:
            with _disable_current_modes():  # a step that is being traced would copy them every time
                self._copies[device, held_out] = (self.task.validation if held_out else self.task.train).to(device)
        return self._copies[device, held_out]

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See Optimizee.loss."""
        held = {name: self._wiring.by_name[name].restored(tensor) for name, tensor in params.items()}

        def of_one(own: Params, x: Tensor, y: Tensor) -> Tensor:
            return self.task.loss(torch.func.functional_call(self.net, own, (x,)), y)

        with sdpa_kernel(SDPBackend.MATH):  # fused attention does not go over stacks
            return torch.func.vmap(of_one)(held, batch["inputs"], batch["targets"])

    def score(self, losses: Tensor) -> Tensor:
        """Losses in units of a guess that does not look; those of fits as the logarithm of that, in units of 10 dB."""
        ratio = losses / self.task.guess
        return ratio.clamp(min=FLOOR).log10() if self.task.decibels else ratio


def _without_statistics(net: nn.Module) -> nn.Module:
    net = deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return net
