"""The outer loop of everything trained here: AdamW on batches, with Accelerate for devices, processes and precision.

Here: the loop and its result; the only importer of accelerate. Not here: losses, data and networks, what happens at
which step (plan.py), and the files of a run (state.py).

Gradients of several processes are averaged by one all-reduce of all of them after the last micro-step, not by
DistributedDataParallel: `loss` may then use the module in any way (methods, attributes, functional_call, or an
estimator that never calls its forward) and the average is still right.

The decay of the averaged weights, min(ema_decay, (1 + s) / (10 + s)) after s steps, is the one of TensorFlow's
ExponentialMovingAverage: a short memory at first, because the average starts at the initial weights.

The file is long because everything that a bit-exact resume must keep in step is one class, _Run.
"""

import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.errors import NonFiniteError, WeightEditError
from weightedit.files.checkpoint import load_into
from weightedit.training.plan import BatchOrder, TrainOptions, derive_seed, learning_rate, require_option
from weightedit.training.state import (
    RunLog,
    claim_folder,
    held,
    load_optimizer_tensors,
    load_random_tensors,
    load_state,
    optimizer_tensors,
    part,
    preserved_random,
    random_tensors,
    read_log,
    save_state,
    seed_random,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Data", "TrainOptions", "TrainResult", "train"]

_logger = logging.getLogger(__name__)
_WARM_UP = 3  # steps before one is captured
_READ_EVERY = 20  # steps whose losses wait on an accelerator before they are read in one synchronization
_RECORD = ("device", "log_bytes", "seconds", "best_step", "best_validation", "skipped", "skipped_in_row")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        best_step: steps done when validation was lowest; 0 when nothing has been validated yet (unfinished runs only).
        best_validation: the value then; infinity when there is none.
        losses: mean training loss of every step done, over all processes; NaN where it was not finite.
        seconds: wall clock of the whole run, all calls up to their last saved state together.
        steps: steps done.
        folder: the run's folder.
        finished: whether all steps were done, or `max_seconds` ended the call.
        skipped: steps skipped because their gradient or loss was not finite.
        main: whether this is process 0, the one that should write what is made of the run.
    """

    best_step: int
    best_validation: float
    losses: list[float]
    seconds: float
    steps: int
    folder: Path
    finished: bool
    skipped: int
    main: bool = True


class Data(Protocol):
    """What a batch is drawn from.

    Data with a method `to(device)`, which returns them on that device, are moved once and then drawn from there.
    """

    def __len__(self) -> int:
        """Number of examples, at least 1."""
        ...

    def __getitem__(self, indices: Tensor, /) -> Any:
        """The examples at these indices (LongTensor [B], where the data are): nested dicts, lists or tuples."""
        ...


class Carried(Protocol):
    """What `loss` carries from step to step besides the model (inner runs, say); every process has its own."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it, of the same names, shapes and dtypes at every step."""
        ...

    def load(self, tensors: dict[str, Tensor], /) -> None:
        """Take up what `tensors` gave; they come on the CPU."""
        ...


def train(
    model: torch.nn.Module,
    loss: Callable[..., Tensor],
    data: Data,
    validate: Callable[[torch.nn.Module], float],
    folder: str | Path,
    options: TrainOptions,
    *,
    about: Mapping[str, Any] | None = None,
    carried: Carried | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train `model` in place, or go on where the run in `folder` stopped; the model ends up holding the best weights.

    Killed at any moment and called again with the same arguments, a run ends with the weights, bit for bit, that it
    would have had otherwise, where the operations are deterministic (they are on a CPU with a fixed number of threads).

    Several processes: start the program with `torchrun --nproc_per_node N` (on CPUs with ACCELERATE_USE_CPU=1); all of
    them need the same `folder`. Process 0's initial weights and, after every step, its buffers are everyone's.

    Args:
        model: moved to the device; its modules come back in the mode (training or not) they came in.
        loss: `loss(model, batch)`, the mean over the batch, a scalar. When it has a parameter called `generator`, it is
            given a torch.Generator on the device, seeded by (seed, step, process, micro-step): the place to draw from.
        data: examples, moved to the device at once where they can be; else their batches are.
        validate: `validate(model)`, lower is better; called without gradients, in eval mode and float32, on the
            averaged weights if there is an average. It runs on process 0 alone and the others are told the result:
            it must not communicate, and should take less than the process group's timeout.
        folder: the run's folder (see state.py); a folder that holds another run, or in which another process is
            training now, is refused.
        options: see TrainOptions.
        about: what else makes the run what it is, JSON values (the data, the task): a folder whose run was about
            something else is refused.
        carried: what `loss` carries from step to step; saved with every state and taken up again.
        progress: a progress bar on process 0.
    Returns:
        TrainResult. After a call that ended before the first validation, the model holds the current weights.
    Raises:
        WeightEditError: for the folder of another run or of a process that trains now, a loss that is no scalar or
            reaches no parameter, a missing tracker, a step that cannot be captured.
        FileFormatError: for a damaged folder.
        NonFiniteError: after `nonfinite_limit` steps in a row, or when no validation was finite.
    """
    modes = [(module, module.training) for module in model.modules()]
    with (
        _accelerator(Path(folder), options) as accelerator,
        held(Path(folder), accelerator.is_main_process),
        preserved_random(accelerator.device),
    ):
        try:
            place = (Path(folder), options, about or {})
            return _Run(accelerator, model, loss, data, validate, place, carried).complete(progress)
        finally:
            for module, mode in modes:
                module.training = mode


@dataclass(frozen=True)
class _Pending:
    """A step whose figures may still be on their way from the device; `step` counts steps done."""

    step: int
    rate: float
    seconds: float
    figures: Tensor  # [3]: loss, gradient norm, share of the processes whose time is up
    norms: Tensor  # [P]: gradient norm of each parameter in `names`
    names: list[str]


class _CapturedStep:
    """A step as a CUDA graph: run as it is a few times, which warms everything up, then recorded once and replayed.

    Args:
        work: from a batch's indices on the device to tensors on the device and the names of parameters; it may wait
            for nothing.
        indices: how many a step has.
        generators: those that `work` draws from; they are seeded before every call.
    """

    def __init__(self, work: "Callable[[Tensor], tuple[Tensor, Tensor, list[str]]]", indices: Tensor, generators):
        self.work, self.indices, self.generators = work, torch.zeros_like(indices), generators
        self.calls, self.graph, self.stream = 0, None, torch.cuda.Stream(indices.device)

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        self.indices.copy_(indices)
        self.calls += 1
        if self.calls <= _WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                found = self.work(self.indices)
            torch.cuda.current_stream().wait_stream(self.stream)
            return found
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()
        figures, norms, names = self.found
        return figures.clone(), norms.clone(), names

    def _record(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.found = self.work(self.indices)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise WeightEditError(
                f"capture is True, and a step cannot be captured ({str(error).splitlines()[0]}); expected a loss that "
                "reads no value back from the device: look for item(), bool(), nonzero() or boolean masks in it, or "
                "set capture to False"
            ) from error


class _Run:
    """One call of train: what every process holds and does."""

    def __init__(
        self,
        accelerator: "Accelerator",
        model,
        loss,
        data,
        validate,
        place: tuple[Path, TrainOptions, Mapping[str, Any]],
        carried: Carried | None,
    ):
        self.accelerator, self.model, self.loss, self.data, self.validate = accelerator, model, loss, data, validate
        self.folder, self.options, about = place
        self.carried = carried
        self.about = {f"about {name}": value for name, value in about.items()}
        self.device, self.main, self.called = accelerator.device, accelerator.is_main_process, time.perf_counter()
        self.movable = hasattr(data, "to")
        if self.movable:
            self.data = data.to(self.device)
        require_option(len(data) >= 1, "data", f"of length {len(data)}", "at least one example")
        model.to(self.device).train()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        require_option(bool(named), "model", type(model).__name__, "a module with parameters that require gradients")
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        o = self.options
        # A rate on the device can change without a captured step being recorded anew.
        rate = torch.zeros((), device=self.device) if o.capture else o.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, betas=o.betas, weight_decay=o.weight_decay, fused=True, capturable=o.capture
        )
        self.order = BatchOrder(len(data), o.batch_size * o.accumulate * accelerator.num_processes, o.seed)
        takes_generator = "generator" in inspect.signature(loss).parameters
        self.generators = [torch.Generator(self.device) for _ in range(o.accumulate)] if takes_generator else []
        self.loss = torch.compile(loss) if o.compile else loss
        self.late = torch.zeros((), device=self.device)
        self.work = self._captured() if o.capture else self._work
        self._share([*model.parameters(), *model.buffers()])
        self.average = [p.detach().clone() for p in self.parameters] if o.ema_decay else []
        self.step = self.skipped = self.skipped_in_row = self.best_step = 0
        self.best_validation = math.inf
        self.best: dict[str, Tensor] = {}
        self.seconds = self.seconds_before = 0.0
        self.pending: list[_Pending] = []
        self.expired = False
        self._start()

    def complete(self, progress: bool) -> TrainResult:
        """Do the remaining steps; load the best weights."""
        o = self.options
        bar = tqdm(total=o.steps, initial=self.step, disable=not (progress and self.main))
        wait = 1 if self.device.type == "cpu" else _READ_EVERY
        try:
            while self.step < o.steps and not self.expired:
                self._advance()
                last = self.step == o.steps
                validation = self._validate() if last or self.step % o.validate_every == 0 else None
                save = last or self.step % o.checkpoint_every == 0
                if save or validation is not None or self.step % wait == 0:
                    self._read(bar, validation)
                if save or self.expired:
                    self._save()
        finally:
            bar.close()
            self.log.close() if self.log else None
        return self._conclude()

    def _start(self) -> None:
        """Claim the folder, and take up the state in it, or save the first one."""
        seed_random(derive_seed(self.options.seed, "process", self.accelerator.process_index))
        if self.main:
            claim_folder(
                self.folder,
                {
                    **asdict(self.options),
                    **self.about,
                    "processes": self.accelerator.num_processes,
                    "examples": len(self.data),
                },
                may_differ=frozenset({"checkpoint_every", "max_seconds", "log_with", "cpu", "compile", "capture"}),
                may_grow=frozenset({"steps"}),
            )
        self.accelerator.wait_for_everyone()
        state = load_state(self.folder, _RECORD)
        length = self._take_up(*state) if state else 0
        self.log = RunLog(self.folder, length) if self.main else None
        self.accelerator.wait_for_everyone()
        if state is None:
            self._save()

    def _take_up(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> int:
        """Go on from a saved state; the length of the log that belongs to it."""
        if record["device"] != self.device.type:
            _logger.warning(
                "the run began on %s and continues on %s: equal to rounding only", record["device"], self.device.type
            )
        load_into(self.model, part(tensors, "model"))
        load_optimizer_tensors(self.model, self.optimizer, part(tensors, "optimizer"))
        average = part(tensors, "average")
        self.average = [average[name].to(self.device) for name in self.names] if self.average else []
        self.best = {name: value.to(self.device) for name, value in part(tensors, "best").items()}
        rank = self.accelerator.process_index
        load_random_tensors({name: value[rank] for name, value in part(tensors, "random").items()}, self.device)
        if self.carried is not None:
            self.carried.load({name: value[rank] for name, value in part(tensors, "carried").items()})
        self.step, self.best_step = record["step"], record["best_step"]
        self.seconds = self.seconds_before = record["seconds"]
        self.best_validation = math.inf if record["best_validation"] is None else record["best_validation"]
        self.skipped, self.skipped_in_row = record["skipped"], record["skipped_in_row"]
        return record["log_bytes"]

    def _save(self) -> None:
        """Write the state (process 0), with everyone's random number generators."""
        states = self._everyones(random_tensors(self.device))
        carried = {} if self.carried is None else self._everyones(self.carried.tensors())
        self.seconds = self._clock()
        if self.log is not None:
            parts = {
                "model": self.model.state_dict(),
                "optimizer": optimizer_tensors(self.model, self.optimizer),
                "average": dict(zip(self.names, self.average, strict=False)),
                "best": self.best,
                "random": states,
                "carried": carried,
            }
            record = {
                "device": self.device.type,
                "log_bytes": self.log.sync(),
                "seconds": self.seconds,
                "best_step": self.best_step,
                "best_validation": self.best_validation if self.best else None,
                "skipped": self.skipped,
                "skipped_in_row": self.skipped_in_row,
            }
            tensors = {f"{name}/{key}": value for name, held in parts.items() for key, value in held.items()}
            save_state(self.folder, self.step, tensors, record)
        self.accelerator.wait_for_everyone()

    def _everyones(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Tensors that every process has, stacked over the processes; they need not be in the same order everywhere."""
        if self.accelerator.num_processes == 1:
            return {name: value[None] for name, value in tensors.items()}
        gathered = {name: self.accelerator.gather(tensors[name][None].to(self.device)) for name in sorted(tensors)}
        return {name: gathered[name] for name in tensors}

    def _advance(self) -> None:
        """One optimizer step, without waiting for the device."""
        o, rank, rate = self.options, self.accelerator.process_index, learning_rate(self.options, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        for micro, generator in enumerate(self.generators):
            generator.manual_seed(derive_seed(o.seed, "step", self.step, rank, micro))
        self.late.fill_(float(0 < o.max_seconds <= time.perf_counter() - self.called))
        mine = self.order(self.step).chunk(self.accelerator.num_processes)[rank]
        figures, norms, names = self.work(mine.to(self.device) if self.movable else mine)
        seconds = self._clock()
        self.step += 1
        if self.average:
            decay = min(o.ema_decay, self.step / (9 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        if self.accelerator.num_processes > 1:
            self._share(list(self.model.buffers()))
        self.pending.append(_Pending(self.step, rate, seconds, figures, norms, names))

    def _captured(self) -> _CapturedStep:
        o = self.options
        require_option(
            self.carried is None, "capture", "True with `carried`", "False: a replay runs no Python that could carry it"
        )
        on, alone = self.device.type == "cuda", self.accelerator.num_processes == 1
        came = f"True on {self.device.type} in {self.accelerator.num_processes} process(es)"
        require_option(on and alone, "capture", came, "False, or a CUDA device and one process")
        require_option(
            self.movable, "capture", f"True for {type(self.data).__name__}", "data with a method to(device), or False"
        )
        indices = torch.zeros(o.batch_size * o.accumulate, dtype=torch.long, device=self.device)
        return _CapturedStep(self._work, indices, self.generators)

    def _work(self, indices: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """What a step does on the device, for the examples of this process: figures, norms and names of a _Pending."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(indices)
        scalars = self._average_gradients(torch.stack([loss, self.late]))
        used = [(name, p.grad) for name, p in zip(self.names, self.parameters, strict=True) if p.grad is not None]
        require_option(
            bool(used), "loss", "independent of every parameter", "a loss that reaches the model's parameters"
        )
        gradients = [gradient for _, gradient in used]
        norms = torch.stack(torch._foreach_norm(gradients)).float()  # pyright: ignore[reportPrivateImportUsage]
        norm = torch.linalg.vector_norm(norms)
        if self.options.clip_norm:
            factor = (self.options.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
        # AdamW's fused step leaves parameters and state untouched where found_inf is 1: a skip without waiting.
        skip = (~torch.isfinite(norm + scalars[0])).float()
        vars(self.optimizer)["found_inf"] = skip
        self.optimizer.step()
        return torch.stack([scalars[0], norm, scalars[1]]).detach(), norms, [name for name, _ in used]

    def _accumulate_gradients(self, indices: Tensor) -> Tensor:
        """Backward through the micro-steps of this process; their mean loss, float32, detached."""
        from accelerate.utils import send_to_device

        o, total = self.options, torch.zeros((), device=self.device)
        for micro, rows in enumerate(indices.split(o.batch_size)):
            batch = send_to_device(self.data[rows], self.device)
            drawn = {"generator": self.generators[micro]} if self.generators else {}
            with self.accelerator.autocast():
                loss = self.loss(self.model, batch, **drawn)
            came = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            require_option(
                isinstance(loss, Tensor) and loss.dim() == 0, "loss", came, "a scalar tensor, the batch's mean"
            )
            require_option(
                loss.requires_grad, "loss", "without a gradient", "a loss that reaches the model's parameters"
            )
            # Not accelerator.backward: it divides by a number of micro-steps that an environment variable may set.
            (loss / o.accumulate).backward()
            total += loss.detach().float() / o.accumulate
        return total

    def _average_gradients(self, scalars: Tensor) -> Tensor:
        """Average gradients and scalars over the processes in one all-reduce; a gradient that nobody has stays None."""
        if self.accelerator.num_processes == 1:
            return scalars
        lacking = [p.grad is None for p in self.parameters]
        flags = torch.tensor([float(not lacks) for lacks in lacking], device=self.device)
        local = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([scalars, flags, *[gradient.flatten() for gradient in local]])
        sizes = [len(scalars), len(flags), *[p.numel() for p in self.parameters]]
        scalars, flags, *averaged = self.accelerator.reduce(flat, "mean").split(sizes)  # pyright: ignore
        had = flags.tolist() if any(lacking) else None
        for index, (p, gradient) in enumerate(zip(self.parameters, averaged, strict=True)):
            if had is None or had[index] > 0:
                p.grad = gradient.view_as(p).to(p.dtype)
        return scalars.float()

    @torch.no_grad()
    def _validate(self) -> float:
        """Process 0's validation of the averaged weights, known to all; keeps the weights when they are the best."""
        value = torch.zeros((), dtype=torch.float64)
        with self._averaged(), preserved_random(self.device):
            if self.main:
                self.model.eval()
                value.fill_(float(self.validate(self.model)))
                self.model.train()
            value = value.to(self.device if self.accelerator.num_processes > 1 else "cpu")
            self._share([value])
            if value < self.best_validation:
                self.best_step, self.best_validation = self.step, value.item()
                self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        if not torch.isfinite(value):
            _logger.warning("validation after step %d is %s: never the best", self.step, value.item())
        return value.item()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the model, when there is an average."""
        with torch.no_grad():
            own = [p.clone() for p in self.parameters[: len(self.average)]]
            for p, mean in zip(self.parameters, self.average, strict=False):
                p.copy_(mean)
            yield
            for p, value in zip(self.parameters, own, strict=False):
                p.copy_(value)

    def _read(self, bar: tqdm, validation: float | None) -> None:
        """Bring the pending figures from the device in one transfer; log, count and, where it is time, raise."""
        records, fault = [], None
        for pending, figures in zip(self.pending, torch.stack([p.figures for p in self.pending]).tolist(), strict=True):
            loss, norm, late = figures
            record = {
                "step": pending.step,
                "loss": loss,
                "lr": pending.rate,
                "grad_norm": norm,
                "seconds": pending.seconds,
            }
            self.expired = self.expired or late > 0
            self.skipped_in_row = 0 if math.isfinite(loss + norm) else self.skipped_in_row + 1
            if self.skipped_in_row:
                self.skipped += 1
                record["skipped"] = fault = _culprit(pending)
                _logger.warning("step %d skipped: %s is not finite", pending.step, fault)
            records.append({key: _finite(value) for key, value in record.items()})
            if self.skipped_in_row >= self.options.nonfinite_limit:
                break
        if validation is not None:
            records[-1]["validation"] = _finite(validation)
        self.pending = []
        if self.log is not None:
            self.log.append(records)
        for record in records if self.accelerator.trackers else []:
            self.accelerator.log({k: v for k, v in record.items() if isinstance(v, float)}, step=record["step"])
        bar.update(len(records))
        bar.set_postfix(loss=records[-1]["loss"], best=self.best_validation, refresh=False)
        if self.skipped_in_row >= self.options.nonfinite_limit:
            raise NonFiniteError(
                f"{fault} was not finite in {self.skipped_in_row} steps in a row, up to step {records[-1]['step']}; "
                "expected finite losses and gradients: lower the learning rate, set clip_norm, or look into the data"
            )

    def _conclude(self) -> TrainResult:
        """Load the best weights; the result."""
        finished = self.step >= self.options.steps
        if finished and not self.best:
            raise NonFiniteError(
                f"no validation in {self.step} steps was finite; expected validate to return a finite number "
                "once at least: look into validate and the losses in log.jsonl"
            )
        with self._averaged():
            best = self.best or {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        load_into(self.model, best)
        self.accelerator.wait_for_everyone()
        losses = [math.nan if record["loss"] is None else record["loss"] for record in read_log(self.folder)]
        return TrainResult(
            best_step=self.best_step,
            best_validation=self.best_validation,
            losses=losses,
            seconds=self.seconds,
            steps=self.step,
            folder=self.folder,
            finished=finished,
            skipped=self.skipped,
            main=self.main,
        )

    def _clock(self) -> float:
        return self.seconds_before + time.perf_counter() - self.called

    def _share(self, tensors: list[Tensor]) -> None:
        """Give every process the values of process 0, in place."""
        from accelerate.utils import broadcast

        for tensor in tensors if self.accelerator.num_processes > 1 else []:
            broadcast(tensor.detach(), from_process=0)


@contextmanager
def _accelerator(folder: Path, options: TrainOptions) -> Iterator["Accelerator"]:
    """An Accelerator for one call; its process-wide state is left as found: the next call may differ in precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    ours, alone = not AcceleratorState._shared_state, not PartialState._shared_state
    accelerator = Accelerator(
        cpu=options.cpu, mixed_precision=options.precision, log_with=options.log_with, project_dir=folder
    )
    try:
        _check_launch(str(accelerator.distributed_type))
        if options.log_with is not None:
            require_option(
                bool(accelerator.log_with), "log_with", repr(options.log_with), "a tracker that is installed"
            )
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in asdict(options).items()}
            accelerator.init_trackers("weightedit", config=plain)
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        if ours:
            AcceleratorState._reset_state(reset_partial_state=alone and accelerator.num_processes == 1)


def _check_launch(kind: str) -> None:
    kind = kind.rsplit(".", 1)[-1]
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise WeightEditError(
            f"the launcher chose {kind}; expected one process, or several that each hold the whole model (DDP's way): "
            "start the program with torchrun, or with an accelerate config of that kind"
        )


def _culprit(pending: _Pending) -> str:
    """Which gradient was not finite; the loss when all of them were."""
    bad = [
        name for name, finite in zip(pending.names, torch.isfinite(pending.norms).tolist(), strict=True) if not finite
    ]
    return f"the gradient of {', '.join(bad)}" if bad else "the loss"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
