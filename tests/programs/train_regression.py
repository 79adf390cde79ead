"""One training run on a toy regression, as a program: for the tests that launch it twice, or kill it.

usage: train_regression.py FOLDER [--out FILE] [--kill N] [--pause SECONDS] [--KEY VALUE ...]

KEY VALUE are TrainOptions. With --kill, one child per point of a saving trains in FOLDER/<point> and kills itself
with SIGKILL there, in its N-th saving. With "--partial true" the model is a Partial, and every process writes what it
drew beside FILE.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from weightedit.training import state as run_state
from weightedit.training.loop import TrainOptions, train

POINTS = ("writing", "written", "renamed", "deleting")


class Examples:
    """Noisy sines of sums of four numbers, from a fixed seed."""

    def __init__(self, count: int = 100):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(count, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices):
        return {"x": self.x[indices], "targets": (self.y[indices],)}


def make_model(dropout: float = 0.0) -> torch.nn.Sequential:
    """A small MLP from a fixed seed, with a batch norm when there is dropout (buffers to save)."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        middle = [torch.nn.BatchNorm1d(16), torch.nn.Dropout(dropout)] if dropout else []
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), *middle, torch.nn.Linear(16, 1))


def mean_squared_error(model, batch):
    """The loss."""
    return torch.nn.functional.mse_loss(model(batch["x"]), batch["targets"][0])


def noisy_error(model, batch, generator):
    """A loss with randomness of every kind: the generator it is given, and dropout on the global one."""
    noise = torch.randn(batch["x"].shape, generator=generator)
    return torch.nn.functional.mse_loss(model(batch["x"] + 0.1 * noise), batch["targets"][0])


class Partial(torch.nn.Module):
    """A small MLP, a parameter that only examples with a first number above 1.2 reach, and one that none does."""

    def __init__(self):
        super().__init__()
        self.net, self.seldom, self.idle = (
            make_model(),
            torch.nn.Parameter(torch.ones(1)),
            torch.nn.Parameter(torch.ones(1)),
        )
        self.drawn: list[float] = []

    def forward(self, x):
        return self.net(x)


def reaches(batch):
    """Which examples reach Partial's `seldom`."""
    return batch["x"][:, 0] > 1.2


def partial_error(model, batch, generator):
    """A loss of Partial, which keeps the numbers that it draws, from its generator and from the global one."""
    model.drawn += [torch.rand((), generator=source, dtype=torch.float64).item() for source in (generator, None)]
    loss, some = mean_squared_error(model, batch), reaches(batch)
    return loss + (model.seldom * some).square().mean() if some.any() else loss


def validate(model) -> float:
    """The error on other examples."""
    examples = Examples(40)
    return mean_squared_error(model, examples[torch.arange(40)]).item()


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_children(folder: str, count: int) -> str:
    """Fork a child per point; the folder to train in, in a child; in the parent, wait for all of them and exit."""
    import accelerate  # noqa: F401  # once, for all of them

    for point in POINTS:
        child = os.fork()
        if child == 0:
            kill_in_saving(point, count)
            return f"{folder}/{point}"
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, status)
    sys.exit(0)


def kill_in_saving(point: str, count: int) -> None:
    """Arrange for SIGKILL at a point of the count-th saving."""
    saves, write, remove = [0], run_state.write_folder, run_state.shutil.rmtree

    def write_folder(folder, files):
        saves[0] += 1
        if saves[0] == count and point == "writing":
            half = {name: data[: len(data) // 2] for name, data in list(files.items())[:1]}
            write(folder, half)
            kill()
        write(folder, files)
        if saves[0] == count and point == "written":
            kill()

    def rmtree(path, **kwargs):
        if saves[0] == count and Path(path).name.startswith("step-"):
            if point == "deleting":
                next(Path(path).iterdir()).unlink()
            kill()
        remove(path, **kwargs)

    run_state.write_folder = write_folder
    if point in ("renamed", "deleting"):
        run_state.shutil.rmtree = rmtree


def main(arguments: list[str]) -> None:
    """Run it."""
    torch.set_num_threads(1)
    folder, out, pause, options = arguments[0], None, 0.0, {}
    rest = iter(arguments[1:])
    for flag in rest:
        if flag == "--kill":
            folder = killed_children(folder, int(next(rest)))
        elif flag == "--out":
            out = Path(next(rest))
        elif flag == "--pause":
            pause = float(next(rest))
        else:
            options[flag[2:]] = json.loads(next(rest))
    noisy, partial = options.pop("noisy", False), options.pop("partial", False)
    model = Partial() if partial else make_model(0.2 if noisy else 0.0)

    def loss(model, batch):
        time.sleep(pause)
        return mean_squared_error(model, batch)

    chosen = partial_error if partial else noisy_error if noisy else loss
    result = train(model, chosen, Examples(), validate, folder, TrainOptions(**options), progress=False)
    from accelerate import PartialState

    state = PartialState()
    if out and partial:
        out.with_suffix(f".{state.process_index}.json").write_text(json.dumps(model.drawn))
    if out and state.is_main_process:
        save_file(dict(model.state_dict()), out)
        figures = {"processes": state.num_processes, "losses": result.losses, "best": result.best_validation}
        out.with_suffix(".json").write_text(json.dumps(figures))
    if state.num_processes > 1:
        state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
