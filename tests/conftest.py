"""Makes the tests a package, so that what several share can be imported as tests.networks; what every test leaves."""

import gc
import os
import sys

import pytest
import torch

gc.disable()  # until all is collected: nothing of it goes away

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or the first compilation starts a pool of processes


def forget_accelerator() -> None:
    """Accelerate keeps one state per process, which a test's Accelerator would leave to what comes after it."""
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def no_accelerator_left():
    yield
    forget_accelerator()


def pytest_collection_finish() -> None:
    """Five thousand tests and all modules are no garbage: each look through them would take a third of a second."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that no worker is left with one of them at the end; GPU tests need a GPU."""
    items.sort(key=lambda item: item.path.name != "test_tasks.py")
    for item in items if not torch.cuda.is_available() else []:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
