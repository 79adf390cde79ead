"""What would make a GPU wait for the host, or keep a step from being captured as a CUDA graph; found on any machine.

    with device_waits() as found:
        step()  # run once before, so that caches are warm
    assert not found

Found are tensors made from Python data (each is a copy from the host) and reads of a tensor's value (each makes the
host wait), with the line of the library that does it.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_MAKERS = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
_READS = {f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")}
_READS |= {f"aten::{name}" for name in ("_unique2", "unique_dim", "unique_consecutive", "bincount")}


class _Functions(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        if func in _MAKERS and not (args and isinstance(args[0], torch.Tensor)):
            self.found.append(f"{name} of Python data, {_line()}")
        if name in ("__getitem__", "__setitem__"):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
            if masks or any(isinstance(part, list) for part in parts):
                self.found.append(f"a {'mask' if masks else 'list'} as an index, {_line()}")
        if name in ("tolist", "numpy", "item", "cpu"):
            self.found.append(f"{name}, {_line()}")
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found, self.count = found, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if func._schema.name in _READS or str(func) == "aten.repeat_interleave.Tensor":
            self.found.append(f"{func._schema.name}, {_line()}")
        return func(*args, **(kwargs or {}))


def _line() -> str:
    for frame in reversed(traceback.extract_stack()):
        if "/weightedit/" in frame.filename.replace("\\", "/") and "/tests/" not in frame.filename:
            return f"{frame.filename.rsplit('weightedit', 1)[-1]}:{frame.lineno}: {frame.line}"
    return "outside the library"


@contextmanager
def device_waits() -> Iterator[list[str]]:
    """Collect what is found inside, each line once, in order."""
    found: list[str] = []
    with _Operations(found), _Functions(found):
        yield found
    found[:] = list(dict.fromkeys(found))


@contextmanager
def operations() -> Iterator[_Operations]:
    """Count the operations dispatched inside: `.count`."""
    with _Operations([]) as mode:
        yield mode
