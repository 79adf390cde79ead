"""The outer loop: against a plain loop, over processes, through kills and stops, and where it refuses."""

import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parents[1] / "programs/train_regression.py"
STARTED = []
sys.path.insert(0, str(PROGRAM.parent))

from train_regression import (  # noqa: E402
    POINTS,
    Examples,
    Partial,
    make_model,
    mean_squared_error,
    noisy_error,
    partial_error,
    reaches,
    validate,
)

from tests.processes import ENVIRONMENT, start  # noqa: E402
from weightedit.errors import FileFormatError, NonFiniteError, ParamsError, WeightEditError  # noqa: E402
from weightedit.training.loop import TrainOptions, _check_launch, train  # noqa: E402
from weightedit.training.plan import BatchOrder, learning_rate  # noqa: E402
from weightedit.training.state import read_log  # noqa: E402

OPTIONS = TrainOptions(steps=20, batch_size=16, learning_rate=1e-2, validate_every=5, checkpoint_every=6, cpu=True)
NOISY = replace(OPTIONS, steps=24, ema_decay=0.9, clip_norm=0.5, weight_decay=0.1, validate_every=4, seed=3)


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equality across processes asks for the programs' thread count; a failed test leaves no program behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    while STARTED:
        STARTED.pop().kill()


def run(folder, options=OPTIONS, *, model=None, loss=mean_squared_error, data=None, check=validate, about=None):
    model = make_model() if model is None else model
    data = Examples() if data is None else data
    return model, train(model, loss, data, check, folder, options, about=about, progress=False)


def run_noisy(folder, options=NOISY):
    return run(folder, options, model=make_model(0.2), loss=noisy_error)


def same(a, b):
    a, b = (x if isinstance(x, dict) else x.state_dict() for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def begin(*arguments, processes=1):
    """The program, in processes of its own."""
    STARTED.append(start(PROGRAM, *arguments, processes=processes))
    return STARTED[-1]


def torchrun(program, *arguments):
    """The program in two processes that torchrun starts."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(program), *map(str, arguments)], check=True, env={**os.environ, **ENVIRONMENT})


def arguments(options, **more):
    flags = {"steps", "batch_size", "learning_rate", "ema_decay", "clip_norm", "weight_decay", "seed", "accumulate"}
    flags |= {"validate_every", "checkpoint_every"}
    values = {**{name: getattr(options, name) for name in sorted(flags)}, "cpu": True, **more}
    return [word for name, value in values.items() for word in (f"--{name}", json.dumps(value))]


# What a step does


def plain_loop(options, batches):
    """The slow, obvious twin: losses, and the weights or their average after the last step."""
    model, examples, losses = make_model(), Examples(), []
    average = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options.weight_decay, betas=options.betas)
    for step in range(options.steps):
        peak, warm = options.learning_rate, options.warmup_steps
        rate = peak * (step + 1) / warm if step < warm else peak
        if step >= warm and options.schedule == "cosine":
            rate = peak * (1 + math.cos(math.pi * (step - warm) / (options.steps - warm))) / 2
        optimizer.param_groups[0]["lr"] = rate
        loss = mean_squared_error(model, examples[batches(step)])
        optimizer.zero_grad()
        loss.backward()
        if options.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        decay = min(options.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * weight)
        losses.append(loss.item())
    return losses, average if options.ema_decay else model


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"warmup_steps": 5, "schedule": "cosine", "weight_decay": 0.3, "betas": (0.8, 0.95)},
        {"clip_norm": 0.1, "ema_decay": 0.9},
        {"clip_norm": 0.7},
    ],
)
def test_agrees_with_a_plain_loop(tmp_path, change):
    options = replace(OPTIONS, validate_every=1000, **change)
    model, result = run(tmp_path, options)
    losses, twin = plain_loop(options, BatchOrder(100, 16, options.seed))
    assert result.losses == pytest.approx(losses, abs=1e-6)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=2e-6, rtol=0)
    norms = [record["grad_norm"] for record in read_log(tmp_path)]
    assert min(norms) < 0.7 < max(norms)  # gradients on both sides of that limit


def test_a_step_draws_by_seed_step_and_micro_step_alone(tmp_path):
    def drawn(name, options):
        model, _ = run(tmp_path / name, options, model=Partial(), loss=partial_error)
        return model.drawn

    options = replace(OPTIONS, steps=6, accumulate=3)
    first, other = drawn("first", options), drawn("other", replace(options, seed=1))
    assert len({*first, *other}) == 2 * 6 * 3 * 2
    parts = [drawn("parts", replace(options, max_seconds=1e-9)) for _ in range(3)]
    assert sum(parts, []) == first[: 3 * 3 * 2]


def test_log_and_result(tmp_path):
    model, result = run(tmp_path)
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert set(records[0]) == {"step", "loss", "lr", "grad_norm", "seconds"}
    validations = {record["step"]: record["validation"] for record in records if "validation" in record}
    assert list(validations) == [5, 10, 15, 20]
    assert result.best_validation == min(validations.values()) == validations[result.best_step]
    assert validate(model) == result.best_validation < validations[5]
    assert (result.steps, result.finished, result.skipped, len(result.losses)) == (20, True, 0, 20)
    assert 0 < records[-1]["seconds"] <= result.seconds


def test_best_weights_are_kept_when_validation_rises(tmp_path):
    seen = []

    def rising(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return float(len(seen))

    model, result = run(tmp_path, check=rising)
    assert result.best_step == 5 and same(model, seen[0])


def test_accumulated_micro_steps_are_one_batch(tmp_path):
    _, whole = run(tmp_path / "whole")
    _, parts = run(tmp_path / "parts", replace(OPTIONS, batch_size=4, accumulate=4))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-6)
    norms = [[record["grad_norm"] for record in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_bf16_is_autocast_in_the_loss_only(tmp_path):
    kinds = {"loss": set(), "validate": set()}

    def loss(model, batch):
        kinds["loss"].add(model(batch["x"]).dtype)
        return mean_squared_error(model, batch)

    def check(model):
        kinds["validate"].add(model(torch.zeros(2, 4)).dtype)
        return validate(model)

    _, exact = run(tmp_path / "no")
    model, rough = run(tmp_path / "bf16", replace(OPTIONS, precision="bf16"), loss=loss, check=check)
    assert kinds == {"loss": {torch.bfloat16}, "validate": {torch.float32}}
    assert rough.losses != exact.losses and rough.losses == pytest.approx(exact.losses, rel=0.05)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_double_precision_and_frozen_parameters(tmp_path):
    class Doubles(Examples):
        def __getitem__(self, indices):
            return {"x": self.x[indices].double(), "targets": (self.y[indices].double(),)}

    model = make_model().double()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    run(
        tmp_path,
        replace(OPTIONS, clip_norm=0.1, ema_decay=0.5),
        model=model,
        data=Doubles(),
        check=lambda m: m[0].weight.sum().item(),
    )
    assert torch.equal(model[0].weight, before) and model[2].weight.dtype == torch.float64


def test_leaves_modes_and_global_generators_as_found(tmp_path):
    model = make_model(0.2).train()
    model[2].eval()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run(tmp_path, model=model, loss=noisy_error)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert model.training and not model[2].training and model[3].training


def test_learning_rate_is_a_function_of_the_step():
    options = TrainOptions(steps=14, learning_rate=2.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(options, step) for step in range(15)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[9] == pytest.approx(1.0) and rates[14] == pytest.approx(0.0)
    assert learning_rate(replace(options, schedule="constant"), 13) == 2.0


@pytest.mark.parametrize("size", [3, 10, 17, 45])
def test_batches_are_epochs_laid_end_to_end(size):
    order, again = BatchOrder(20, size, seed=4), BatchOrder(20, size, seed=4)
    stream = torch.cat([order(step) for step in range(200 // size)])
    for epoch in stream.split(20)[: len(stream) // 20]:
        assert epoch.sort().values.tolist() == list(range(20))
    assert not torch.equal(stream[:20], stream[20:40])
    assert torch.equal(again(2), order(2)) and torch.equal(again(0), order(0))
    assert not torch.equal(BatchOrder(20, 45, seed=5)(0), BatchOrder(20, 45, seed=4)(0))


# Stops and kills


def test_stopped_and_resumed_equals_left_alone(tmp_path):
    model, whole = run_noisy(tmp_path / "whole")
    stopped = replace(NOISY, max_seconds=1e-9)
    calls = 0
    while True:
        part, result = run_noisy(tmp_path / "parts", stopped if calls < 4 else NOISY)
        calls += 1
        assert result.finished == (calls == 5)
        if result.finished:
            break
        assert result.steps == calls and (result.best_step, result.best_validation) in (
            (0, math.inf),
            (4, pytest.approx(1, abs=1)),
        )
    assert same(part, model) and result.losses == whole.losses and result.best_step == whole.best_step
    again, repeated = run_noisy(tmp_path / "parts")
    assert same(again, model) and repeated == result


@pytest.mark.parametrize("normal", [False, True])
def test_what_draws_on_the_global_generators_goes_on_with_them(tmp_path, normal):
    """Of torch, Python and NumPy, with numbers drawn in pairs of which one waits; whatever they were before."""
    seen = []

    def loss(model, batch):
        drawn = [torch.randn(()).item(), random.random(), np.random.random_sample()]
        drawn += [random.gauss(0, 1), np.random.standard_normal()] if normal else []
        seen.append(drawn)
        return mean_squared_error(model, batch) + model[0].bias @ torch.tensor(drawn + [0.0] * (16 - len(drawn)))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    model, whole = run(tmp_path / "whole", replace(OPTIONS, steps=7), loss=loss)
    run(tmp_path / "seed", replace(OPTIONS, steps=7, seed=1), loss=loss)
    assert not set(sum(seen[:7], [])) & set(sum(seen[7:], []))
    for calls in range(7):
        random.seed(calls), np.random.seed(calls), torch.manual_seed(calls)
        part, result = run(tmp_path / "parts", replace(OPTIONS, steps=7, max_seconds=1e-9), loss=loss)
    assert same(part, model) and result.losses == whole.losses


def test_a_validation_that_draws_random_numbers_changes_nothing(tmp_path):
    def drawing(model):
        torch.rand(()), random.random(), np.random.rand()
        return validate(model)

    results = [
        run(tmp_path / check.__name__, NOISY, model=make_model(0.2), check=check) for check in (validate, drawing)
    ]
    assert same(results[0][0], results[1][0]) and results[0][1].losses == results[1][1].losses


def test_seconds_run_on_through_all_calls(tmp_path, monkeypatch):
    """On a clock that goes on by one whenever it is read."""
    ticks = count()
    monkeypatch.setattr("weightedit.training.loop.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    for _ in range(3):
        _, result = run(tmp_path, replace(OPTIONS, max_seconds=1e-9))
    seconds = [record["seconds"] for record in read_log(tmp_path)]
    assert all(a < b for a, b in zip(seconds, [*seconds[1:], result.seconds], strict=True))


def test_steps_that_are_skipped_count_through_a_resume(tmp_path):
    """In a row up to the limit, and all of them; a step that is finite ends the row."""
    options = replace(OPTIONS, steps=20, nonfinite_limit=3)
    skipped = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1]

    def attempt(folder, options, done):
        left = iter(skipped[done:])
        return run(folder, options, loss=lambda *given: mean_squared_error(*given) + (math.inf if next(left) else 0.0))

    for done in range(9):
        _, result = attempt(tmp_path / "parts", replace(options, max_seconds=1e-9), done)
        assert (result.steps, result.skipped) == (done + 1, sum(skipped[: done + 1]))
    for folder, done in ((tmp_path / "parts", 9), (tmp_path / "whole", 0)):
        with pytest.raises(NonFiniteError, match="the loss was not finite in 3 steps in a row, up to step 10"):
            attempt(folder, options, done)


def test_more_steps_continue_the_run(tmp_path):
    run(tmp_path / "grown", replace(OPTIONS, steps=10))
    model, result = run(tmp_path / "grown", OPTIONS)
    other, whole = run(tmp_path / "whole", OPTIONS)
    assert same(model, other) and result.losses == whole.losses


class Memory:
    """A loss that looks back: the mean of all targets so far is what it aims at."""

    def __init__(self):
        self.total, self.count = torch.zeros(1), torch.zeros((), dtype=torch.int64)

    def tensors(self):
        return {"total": self.total, "count": self.count}

    def load(self, tensors):
        self.total, self.count = tensors["total"], tensors["count"]

    def __call__(self, model, batch):
        self.total, self.count = self.total + batch["targets"][0].mean(), self.count + 1
        return (model(batch["x"]) - self.total / self.count).square().mean()


def test_what_a_loss_carries_is_saved_and_taken_up(tmp_path):
    def finish(folder, options):
        model, memory = make_model(), Memory()
        result = train(model, memory, Examples(), validate, folder, options, carried=memory, progress=False)
        return model, memory, result

    model, memory, whole = finish(tmp_path / "whole", OPTIONS)
    for _ in range(3):
        finish(tmp_path / "parts", replace(OPTIONS, max_seconds=1e-9))
    other, again, result = finish(tmp_path / "parts", OPTIONS)
    assert same(model, other) and result.losses == whole.losses
    assert again.count == memory.count == OPTIONS.steps and torch.equal(again.total, memory.total)


def test_killed_and_resumed_equals_left_alone(tmp_path):
    """Killed at four points of a saving, the third of the run; resumed here."""
    model, whole = run_noisy(tmp_path / "whole")
    begin(tmp_path, "--kill", 3, *arguments(NOISY, noisy=True)).succeed()
    for point in POINTS:
        assert len(read_log(tmp_path / point)) == 12
        resumed, result = run_noisy(tmp_path / point)
        assert same(resumed, model) and result.losses == whole.losses, point
        assert [r["step"] for r in read_log(tmp_path / point)] == list(range(1, 25))
        assert [path.name for path in (tmp_path / point / "state").iterdir()] == ["step-00000024"]


def test_killed_from_outside_and_launched_again(tmp_path):
    process = begin(tmp_path / "run", "--pause", 0.05, *arguments(OPTIONS)).first
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 8:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(WeightEditError, match=f"state is being written by process {process.pid} on "):
        run(tmp_path / "run")
    process.kill()
    process.join()
    with log.open("ab") as stream:
        stream.write(b'{"step": 9, "lo')  # as if killed within a line
    again = begin(tmp_path / "run", "--out", tmp_path / "out.safetensors", *arguments(OPTIONS))
    model, whole = run(tmp_path / "whole")
    again.succeed()
    assert same(load_file(tmp_path / "out.safetensors"), model)
    assert json.loads((tmp_path / "out.json").read_text())["losses"] == whole.losses
    assert [record["step"] for record in read_log(tmp_path / "run")] == list(range(1, 21))


@pytest.mark.parametrize("accumulate", [2, 1])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, accumulate):
    """Draws differ by process; a gradient that one process has is everyone's half, and nobody's is no gradient.

    Without accumulation launched by torchrun itself.
    """
    options = replace(OPTIONS, batch_size=8 // accumulate, accumulate=accumulate, clip_norm=0.3, ema_decay=0.8)
    options = replace(options, weight_decay=0.1)
    out = tmp_path / "out.safetensors"
    words = (tmp_path / "two", "--out", out, *arguments(options, partial=True))
    torchrun(PROGRAM, *words) if accumulate == 1 else begin(*words, processes=2).succeed()
    larger = replace(options, batch_size=16 // accumulate)
    model, one = run(tmp_path / "one", larger, model=Partial(), loss=partial_error)
    order, examples = BatchOrder(100, 16, options.seed), Examples()
    who = [tuple(bool(reaches(examples[half]).any()) for half in order(step).chunk(2)) for step in range(20)]
    assert {(False, False), (True, False), (False, True), (True, True)} <= set(who)
    assert torch.equal(model.idle, torch.ones(1)) and not torch.equal(model.seldom, torch.ones(1))
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["processes"] == 2
    assert figures["losses"] == pytest.approx(one.losses, abs=1e-5)
    assert figures["best"] == pytest.approx(one.best_validation, abs=1e-5)
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-5, rtol=0)
    drawn = [number for rank in (0, 1) for number in json.loads((tmp_path / f"out.{rank}.json").read_text())]
    assert len(drawn) == len(set(drawn)) == 2 * options.steps * accumulate * 2
    with pytest.raises(WeightEditError, match="processes was 2 and is 1 now"):
        run(tmp_path / "two", options)


def test_two_processes_resume_bit_for_bit(tmp_path):
    """Process-wise randomness and buffers (dropout, batch norm): stopped halfway by growing steps, and left alone."""
    options = replace(NOISY, steps=12)
    first = begin(tmp_path / "parts", *arguments(replace(options, steps=6), noisy=True), processes=2)
    whole = begin(tmp_path / "whole", "--out", tmp_path / "a.safetensors", *arguments(options, noisy=True), processes=2)
    first.succeed()
    begin(
        tmp_path / "parts", "--out", tmp_path / "b.safetensors", *arguments(options, noisy=True), processes=2
    ).succeed()
    whole.succeed()
    assert same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


# Gradients and figures that are not finite


class Spoiled(Examples):
    """Examples, some of which have no number for a target."""

    def __init__(self, indices):
        super().__init__()
        self.y[torch.tensor(indices)] = math.nan


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path, caplog):
    order = BatchOrder(100, 16, OPTIONS.seed)
    spoiled = order(3)[0]
    affected = [step for step in range(8) if spoiled in order(step)]
    seen = []

    def loss(model, batch):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return mean_squared_error(model, batch)

    with caplog.at_level(logging.WARNING):
        model, result = run(tmp_path, replace(OPTIONS, steps=8), loss=loss, data=Spoiled([spoiled]))
    assert affected == [3] and result.skipped == 1
    assert same(seen[3], seen[4]) and not same(seen[2], seen[3]) and not same(seen[4], seen[5])
    assert math.isnan(result.losses[3]) and all(map(math.isfinite, result.losses[:3] + result.losses[4:]))
    record = read_log(tmp_path)[3]
    assert record["loss"] is None and record["grad_norm"] is None
    assert record["skipped"] == "the gradient of 0.weight, 0.bias, 2.weight, 2.bias"
    assert "step 4 skipped: the gradient of 0.weight" in caplog.text
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_only_the_parameter_at_fault_is_named(tmp_path):
    def loss(model, batch):
        model[2].bias.register_hook(lambda gradient: gradient * math.inf) if not model[2].bias._backward_hooks else None
        return mean_squared_error(model, batch)

    with pytest.raises(
        NonFiniteError, match=r"the gradient of 2\.bias was not finite in 3 steps in a row, up to step 3"
    ):
        run(tmp_path, replace(OPTIONS, nonfinite_limit=3), loss=loss)
    assert [record["skipped"] for record in read_log(tmp_path)] == ["the gradient of 2.bias"] * 3


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    model = make_model()
    with pytest.raises(NonFiniteError, match="the loss was not finite in 10 steps in a row"):
        run(tmp_path, model=model, loss=lambda *given: mean_squared_error(*given) + math.inf)
    assert same(model, make_model())  # also where the gradients are finite


def test_a_validation_that_is_never_finite(tmp_path, caplog):
    with pytest.raises(NonFiniteError, match="no validation in 20 steps was finite"):
        run(tmp_path, check=lambda model: math.nan)
    assert "validation after step 5 is nan: never the best" in caplog.text
    assert read_log(tmp_path)[4]["validation"] is None


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"learning_rate": math.nan}, "learning_rate is nan; expected a finite number"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; expected a finite number of at least 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; expected a number in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\); expected two numbers"),
        ({"schedule": "linear"}, "schedule is linear; expected 'constant' or 'cosine'"),
        ({"precision": "fp16"}, "precision is fp16; expected 'no' or 'bf16'"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(WeightEditError, match=message):
        replace(OPTIONS, **change)


def test_another_runs_folder(tmp_path):
    run(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(WeightEditError, match="learning_rate was 0.01 and is 0.5 now; seed was 0 and is 1 now"):
        run(tmp_path, replace(OPTIONS, learning_rate=0.5, seed=1))
    with pytest.raises(WeightEditError, match="steps was 20 and is 10 now"):
        run(tmp_path, replace(OPTIONS, steps=10))
    with pytest.raises(WeightEditError, match="examples was 100 and is 40 now"):
        run(tmp_path, data=Examples(40))
    with pytest.raises(WeightEditError, match="about task was None and is 'other' now"):
        run(tmp_path, about={"task": "other"})
    with pytest.raises(ParamsError, match="unexpected 0.bias"):
        run(tmp_path, model=torch.nn.Linear(4, 1))
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    run(tmp_path, replace(OPTIONS, checkpoint_every=3, max_seconds=5.0))


def test_damaged_folders(tmp_path):
    run(tmp_path)
    state = tmp_path / "state" / "step-00000020"
    weights, record, log = state / "state.safetensors", state / "state.json", tmp_path / "log.jsonl"
    held = {path: path.read_bytes() for path in (weights, record, log)}

    def damaged(path, data, message):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=message):
            run(tmp_path)
        path.write_bytes(held[path])

    damaged(weights, held[weights][:-100], "expected a complete safetensors file")
    damaged(record, b"{", "is not valid JSON")
    damaged(record, b'{"format_version": 1, "step": 19}', "says format_version 1 and step 19, and lacks .'device'")
    damaged(log, held[log][:-5], "expected at least the")
    damaged(log, b"{" + held[log][1:].replace(b"loss", b"lo\ns", 1), "expected one JSON object per line")
    names = json.loads(held[record])
    names["tensors"].remove("model/0.bias")
    damaged(record, json.dumps(names).encode(), "tensors that its state.json names: .'model/0.bias'.")
    weights.write_bytes(held[weights].replace(b'"optimizer/0.bias.step"', b'"optimizer/9.bias.step"'))
    stray = held[record].replace(b'"optimizer/0.bias.step"', b'"optimizer/9.bias.step"')
    damaged(record, stray, "the model has no parameter '9.bias'")
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileFormatError, match="holds log.jsonl and state but no run.json"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch["x"]), r"loss is of shape \(16, 1\); expected a scalar tensor"),
        (lambda model, batch: 1.0, "loss is a float; expected a scalar tensor"),
        (lambda model, batch: torch.zeros(()), "loss is without a gradient; expected a loss that reaches"),
        (lambda model, batch: torch.zeros((), requires_grad=True), "loss is independent of every parameter"),
    ],
)
def test_losses_that_cannot_train(tmp_path, loss, message):
    with pytest.raises(WeightEditError, match=message):
        run(tmp_path, loss=loss)


def test_nothing_to_train_or_to_train_on(tmp_path):
    with pytest.raises(WeightEditError, match="data is of length 0; expected at least one example"):
        run(tmp_path, data=Examples(0))
    with pytest.raises(WeightEditError, match="expected a module with parameters that require gradients"):
        run(tmp_path, model=torch.nn.Identity())


@pytest.mark.filterwarnings("ignore:.*no supported trackers")
def test_a_tracker_that_is_not_installed(tmp_path):
    from accelerate.tracking import get_available_trackers

    missing = next(name for name in ("aim", "comet_ml", "dvclive", "swanlab") if name not in get_available_trackers())
    with pytest.raises(WeightEditError, match=f"log_with is '{missing}'; expected a tracker that is installed"):
        run(tmp_path, replace(OPTIONS, log_with=missing))


def test_launches_that_shard_the_model():
    _check_launch("DistributedType.MULTI_GPU")
    with pytest.raises(WeightEditError, match="the launcher chose FSDP; expected one process, or several"):
        _check_launch("DistributedType.FSDP")


class OnDevice(Examples):
    """Examples that can be moved, as captured steps need them."""

    def to(self, device):
        moved = OnDevice()
        moved.x, moved.y = self.x.to(device), self.y.to(device)
        return moved


class Halved(Examples):
    """Examples that are not the same on another device."""

    def to(self, device):
        moved = Examples()
        moved.y = (self.y / 2).to(device)
        return moved


def test_data_that_can_be_moved_are_drawn_where_they_went(tmp_path):
    expected, other = Examples(), Examples()
    other.y = other.y / 2
    moved, plain = run(tmp_path / "a", data=Halved())[0], run(tmp_path / "b", data=other)[0]
    assert same(moved, plain) and not same(moved, run(tmp_path / "c", data=expected)[0])


def test_what_cannot_be_captured_is_said_before_the_first_step(tmp_path):
    with pytest.raises(WeightEditError, match=r"capture is True on cpu in 1 process\(es\); expected False, or a CUDA"):
        run(tmp_path, replace(OPTIONS, capture=True), data=OnDevice())
    memory = Memory()
    with pytest.raises(
        WeightEditError, match="capture is True with `carried`; expected False: a replay runs no Python"
    ):
        options = replace(OPTIONS, capture=True)
        train(make_model(), memory, OnDevice(), validate, tmp_path, options, carried=memory, progress=False)
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_a_compiled_run_is_the_run_to_rounding(tmp_path):
    compiled = run(tmp_path / "a", replace(OPTIONS, compile=True))[1]
    plain = run(tmp_path / "b")[1]
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_run_is_the_run_and_resumes(tmp_path, compiled):
    options = replace(NOISY, cpu=False)
    arguments = {"loss": noisy_error_anywhere, "data": OnDevice()}
    plain = run(tmp_path / "a", options, model=make_model(0.2), **arguments)[1]
    captured = replace(options, capture=True, compile=compiled)
    whole = run(tmp_path / "b", captured, model=make_model(0.2), **arguments)[1]
    run(tmp_path / "c", replace(captured, steps=12), model=make_model(0.2), **arguments)
    resumed = run(tmp_path / "c", captured, model=make_model(0.2), **arguments)[1]
    assert whole.losses[:3] == pytest.approx(plain.losses[:3], rel=1e-5)  # dropout draws otherwise in a graph
    assert resumed.losses[:12] == pytest.approx(whole.losses[:12], rel=1e-5)
    assert all(map(math.isfinite, resumed.losses)) and len(resumed.losses) == options.steps


@pytest.mark.gpu
def test_a_loss_that_reads_a_value_cannot_be_captured(tmp_path):
    def reads(model, batch):
        return mean_squared_error(model, batch) * (2.0 if batch["x"].sum().item() > 0 else 1.0)

    with pytest.raises(WeightEditError, match="a step cannot be captured .* reads no value back"):
        run(tmp_path, replace(OPTIONS, cpu=False, capture=True), data=OnDevice(), loss=reads)


def noisy_error_anywhere(model, batch, generator):
    """`noisy_error` on the generator's device."""
    noise = torch.randn(batch["x"].shape, generator=generator, device=generator.device)
    return torch.nn.functional.mse_loss(model(batch["x"] + 0.1 * noise), batch["targets"][0])


def test_the_progress_bar_is_the_only_output(tmp_path, capsys):
    train(make_model(), mean_squared_error, Examples(), validate, tmp_path, OPTIONS)
    out, err = capsys.readouterr()
    assert out == "" and "20/20" in err
