"""Programs in processes of their own, forked from one that has imported what they need: a start takes no time.

The processes of one program are told of each other as torchrun tells them; that torchrun itself starts them is tested
once, in training/test_loop.py.
"""

import multiprocessing
import os
import runpy
import sys
import traceback
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(ROOT)}
IMPORTED = ["accelerate", "weightedit.optim.optimizer", "weightedit.metatrain.estimators", "weightedit.training.loop"]


class Started:
    """The processes of a program.

    Attributes:
        first: the process of rank 0.
    """

    def __init__(self, processes: list[ForkServerProcess], told: list[Connection], store: object) -> None:
        self.first, self._processes, self._told, self._store = processes[0], processes, told, store

    def succeed(self) -> None:
        """Wait for all of them; the first traceback of one that failed is the failure of the test."""
        for process, told in zip(self._processes, self._told, strict=True):
            process.join(120)
            assert process.exitcode == 0, told.recv() if told.poll() else f"exit code {process.exitcode}"

    def kill(self) -> None:
        """End them at once, those that have ended too."""
        for process in self._processes:
            process.kill()
            process.join()


def start(program: str | Path, *arguments: object, processes: int = 1) -> Started:
    """Run `python PROGRAM ARGUMENTS` in so many processes; the program's path begins at the repository."""
    words, store = [str(ROOT / program), *map(str, arguments)], None
    environment = dict(ENVIRONMENT)
    if processes > 1:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes)}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    begun, told = [], []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        reader, writer = _server().Pipe(duplex=False)
        begun.append(_server().Process(target=_run, args=(words, {**environment, **own}, writer)))
        with _environment(ENVIRONMENT):  # of the server, which the first start starts
            begun[-1].start()
        writer.close()
        told.append(reader)
    return Started(begun, told, store)


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@contextmanager
def _environment(changes: dict[str, str]):
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(words: list[str], environment: dict[str, str], tell: Connection) -> None:
    os.environ.update(environment)
    sys.argv = words
    torch.set_num_threads(1)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Exception:
        tell.send(traceback.format_exc())
        sys.exit(1)
