"""Checkpoints: a folder with model.safetensors, config.json and README.md (the model card), saved, loaded, published.

Here: writing such a folder atomically, reading it strictly (from disk, or from the Hugging Face hub by name), loading
its tensors into a module, and the two strict readers (tensors, JSON) that a training run's state uses as well. Not
here: where it is (location.py), what a config means (pretrained.py makes modules of it in `built_from`), and the state
of a run (training/state.py).
Nothing is ever unpickled; a local folder never touches the network. The formats are safetensors' and JSON's own.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.files.location import CARD, CONFIG, FILES, WEIGHTS, locate
from weightedit.files.reading import read_bytes, read_json, shortened
from weightedit.files.saving import new_folder, read_settled

FORMAT_VERSION = 1
_OWN_KEYS = ("format_version", "weights_sha256")

# What may be built from a checkpoint: some times its own numbers (initial values are made in steps), and some more.
_SHARE, _SPARE, _LEAST = 4, 2**22, 256
_FROM_SIZES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.eye}


def save_checkpoint(folder: str | Path, tensors: Mapping[str, Tensor], config: dict[str, Any], card: str) -> Path:
    """Write a checkpoint folder; it appears complete, or not at all (see saving.py).

    A checkpoint that is already there is kept until the new one is complete, and replaced.

    Args:
        folder: where; its parents are made if they are missing.
        tensors: name -> tensor of any shape and device; names and values are kept as they are.
        config: JSON values only (str, int, float, bool, None, list, dict with str keys; a tuple comes back
            as a list), without `format_version` and `weights_sha256`, which are added.
        card: the model card, Markdown.
    Returns:
        The absolute path of the folder.
    Raises:
        WeightEditError: for a config that JSON cannot hold, or while another process writes there.
        ParamsError: for tensors that are NaN or infinite.
        FileFormatError: when the folder holds anything that is not a checkpoint's; it is left untouched.
    """
    folder = Path(folder).resolve()
    for key in _OWN_KEYS:
        if key in config:
            raise WeightEditError(f"config holds {key!r}; save_checkpoint writes that key itself: leave it out")
    if broken := _not_finite(tensors):
        raise ParamsError(f"{broken}; expected finite numbers, which alone are loaded again: train again from before")
    weights = encode_tensors(tensors)
    own = dict(zip(_OWN_KEYS, (FORMAT_VERSION, hashlib.sha256(weights).hexdigest()), strict=True))
    files = {WEIGHTS: weights, CONFIG: encode_json({**own, **config}), CARD: card.encode()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as fresh:
        _refuse_foreign(folder)
        write_folder(fresh, files)
    return folder


def load_checkpoint(
    source: str | Path, *, required: Iterable[str] = (), revision: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint from a folder, or from the Hugging Face hub by its name.

    Args:
        source: a folder, the name of a shipped checkpoint, or owner/name on the hub: see `location.locate`.
        required: keys the config must have.
        revision: branch, tag or commit on the hub; unused for a folder.
    Returns:
        (tensors on the CPU by name, config as it was passed to `save_checkpoint`).
    Raises:
        FileFormatError: for anything missing, truncated, forged, pickled, or of another format version, weights that
            are not those of the config, NaN or infinite.
    """
    folder = locate(source, revision)
    return read_settled(folder, lambda: _read(folder, required))


def _read(folder: Path, required: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = read_json(folder / CONFIG)
    version, stated = (config.pop(key, None) for key in _OWN_KEYS)
    if version is None:
        raise FileFormatError(
            f"{folder / CONFIG} has no key 'format_version'; expected a config written by save_checkpoint: "
            "save the checkpoint again with save_checkpoint"
        )
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{folder / CONFIG} has format_version {shortened(version)}; this version of weightedit reads "
            f"{FORMAT_VERSION}: install the version of weightedit that wrote it"
        )
    config = _respelled(config)
    missing = [key for key in required if key not in config]
    if missing:
        raise FileFormatError(
            f"{folder / CONFIG} lacks {', '.join(map(repr, missing))}; it has {shortened(list(config))[1:-1] or None}: "
            "this is another kind of checkpoint, or an edited one; load one that was saved for this purpose"
        )
    weights = read_bytes(folder / WEIGHTS)
    tensors, found = _decoded(folder / WEIGHTS, weights), hashlib.sha256(weights).hexdigest()
    if stated not in (None, found):  # older checkpoints state none
        raise FileFormatError(
            f"{folder / WEIGHTS} has SHA-256 {found}, but {CONFIG} states {shortened(stated)}; expected them to agree: "
            "one of the two was changed, copy the checkpoint again"
        )
    if broken := _not_finite(tensors):
        raise FileFormatError(f"{folder / WEIGHTS}: {broken}; expected finite weights: save or copy it again")
    return tensors, config


_RESPELLED = {"levelling": "leveling", "normalised": "normalized"}  # older checkpoints have the former


def _respelled(data: Any) -> Any:
    """Keys and words of a config as they are spelled today."""
    if isinstance(data, dict):
        return {_RESPELLED.get(key, key): _respelled(value) for key, value in data.items()}
    return _RESPELLED.get(data, data) if isinstance(data, str) else data


@contextmanager
def built_from(source: str | Path, tensors: Mapping[str, Tensor], what: str) -> Iterator[None]:
    """A with block that builds `what` from the checkpoint `source`, and loads its tensors into it.

    Inside, torch makes tensors of no more numbers than the checkpoint's own would explain, so that a config of a few
    bytes does not fill the memory.

    Args:
        source: as `load_checkpoint` was given it.
        tensors: as `load_checkpoint` gave them.
        what: in words, as in "update rule"; for the message.
    Raises:
        FileFormatError: in place of whatever a config or tensors that do not fit raise in the block.
    """
    remedy = "name the folder of one, or download or train it again."
    try:
        with _Bounded(_SPARE + _SHARE * sum(tensor.numel() for tensor in tensors.values())):
            yield
    except Exception as error:
        reason = error if isinstance(error, WeightEditError) else f"{type(error).__name__}: {error}"
        raise FileFormatError(
            f"{source} holds no {what} ({reason}); expected what its save_pretrained writes: {remedy}"
        ) from error


class _Bounded(TorchFunctionMode):
    """Refuses to make tensors from their sizes once they have `left` numbers in all; small ones count as _LEAST."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func in _FROM_SIZES and args:
            size = args[0] if isinstance(args[0], Iterable) else [n for n in args if isinstance(n, int)]
            self.left -= max(math.prod(size) ** (2 if func is torch.eye else 1), _LEAST)
            if self.left < 0:
                raise ValueError("its config asks for far more numbers than its tensors have")
        return func(*args, **kwargs or {})


def load_into(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module's parameters and buffers, strictly by name and shape.

    Floating-point tensors are cast to the module's own floating-point dtype; the module keeps its device.

    A part of the module that has a method `renew(name, tensors)` lays out anew what an older version of it kept.

    Raises:
        ParamsError: naming every missing or unexpected tensor and every shape or kind that differs; nothing is copied.
    """
    own, tensors = model.state_dict(), dict(tensors)
    for name, part in model.named_modules():
        if callable(renew := getattr(part, "renew", None)):
            renew(name, tensors)
    faults = [f"missing {name} {_shape(own[name])}" for name in own if name not in tensors]
    faults += [f"unexpected {name} {_shape(tensors[name])}" for name in tensors if name not in own]
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            faults.append(f"{name} has shape {_shape(tensors[name])}, expected {_shape(own[name])}")
        elif own[name].is_floating_point() != tensors[name].is_floating_point():
            faults.append(f"{name} has dtype {tensors[name].dtype}, expected {own[name].dtype}")
    if faults:
        raise ParamsError(
            f"the tensors do not fit {type(model).__name__}: {'; '.join(sorted(faults))}. "
            "Build the module from the checkpoint's own config, or load the checkpoint that belongs to it"
        )
    model.load_state_dict(tensors, strict=True)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload checkpoint",
) -> str:
    """Publish a checkpoint folder as a model repository on the Hugging Face hub.

    The folder is loaded first, so that nothing unreadable is published; only its three files are uploaded.

    Args:
        folder: a local checkpoint folder.
        repo_id: `owner/name`; made if it does not exist.
        private: whether a repository that is made here is private.
        token: an access token; None takes the one stored by `hf auth login`.
        message: the commit message.
    Returns:
        The address of the commit.
    Raises:
        FileFormatError: when the folder is not a checkpoint; whatever huggingface_hub raises when the upload fails.
    """
    folder = Path(folder)
    load_checkpoint(folder)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message, repo_type="model"
    )
    return str(commit.commit_url)


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; tensors are copied to the CPU, contiguous, and ties are written twice."""
    return safetensors.torch.save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()})


def encode_json(value: dict[str, Any]) -> bytes:
    """The bytes of a JSON file that gives `value` back, tuples as lists; WeightEditError when JSON cannot hold it."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightEditError(
            f"a value that JSON cannot hold: {error}; expected str, int, finite float, bool, None, "
            "list, tuple or dict: convert it first"
        ) from error
    if json.loads(text) != _lists(value):
        raise WeightEditError(
            f"a dict that JSON does not give back as it is: {value}; expected dicts with str keys: "
            "turn keys into strings first"
        )
    return text.encode() + b"\n"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; FileFormatError for anything else. Nothing is executed.

    They come sorted by name: `safetensors` gives them in another order at every call, and sums over them would differ.
    """
    path = Path(path)
    return _decoded(path, read_bytes(path))


def _decoded(path: Path, data: bytes) -> dict[str, Tensor]:
    try:  # cloned: aligned, each its own
        return {name: value.clone() for name, value in sorted(safetensors.torch.load(data).items())}
    except Exception as error:  # a header may say anything, and dtypes that torch lacks raise as they please
        raise FileFormatError(
            f"{path} ({len(data)} bytes) {_looks_like(data)}: {error}; expected a complete safetensors file: "
            "fetch or save it again"
        ) from error


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write these files into a folder, made if it is missing, and see them through to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with (folder / name).open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else None
    foreign = ["not a folder"] if found is None else [name for name in found if name not in FILES]
    if foreign or (found and not {WEIGHTS, CONFIG} <= set(found)):
        raise FileFormatError(
            f"{folder} is not a checkpoint folder ({', '.join(foreign or found or [])}); expected nothing there, "
            f"or only {', '.join(FILES)}: choose another folder, or move what is there away"
        )


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Which tensors are NaN or infinite, for a message; empty when none is."""
    kept = {name: t.float() if t.is_floating_point() and t.itemsize < 2 else t for name, t in tensors.items()}
    broken = [name for name, tensor in kept.items() if not bool(tensor.isfinite().all())]
    return f"NaN or infinite numbers in {shortened(broken)[1:-1]}" if broken else ""


def _looks_like(data: bytes) -> str:
    if data.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer (run `git lfs pull`)"
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return "looks like a pickle, which is never opened here (convert it with safetensors where you trust it)"
    return "is not a safetensors file"


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
