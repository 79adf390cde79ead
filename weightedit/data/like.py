"""Edited INRs written back as they came: under the names, nesting and types of a file of the user's own.

Reading such files is foreign_inrs.py's; which tensor is which layer is layer_names.py's.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

from weightedit.data.foreign_inrs import TORCH_SUFFIXES, check_finite, read_content
from weightedit.data.layer_names import Rename, entries, layer_stems
from weightedit.errors import FileFormatError
from weightedit.files.reading import refusing, size_of
from weightedit.files.saving import users_file
from weightedit.inr.stack import INRStack

SAFETENSORS = ".safetensors"


def save_like(stack: INRStack, path: str | Path, like: str | Path, *, rename: Rename | None = None) -> None:
    """Write the weights of one INR in place of those in a copy of another file; all else in it stays as it is.

    Args:
        stack: one INR, or as many as the file has stacked; of the convention that the file was read under.
        path: of the new file; it ends as `like` does, and a file of that name is replaced.
        like: a foreign file that load_inrs reads: .pth, .pt, .ckpt or .safetensors.
        rename: as load_inrs needs it for that file.

    Raises:
        FileFormatError: endings that differ, a file that is no such file, or layers of other shapes.
        ParamsError: weights that are NaN or infinite.
    """
    path, like = Path(path), Path(like)
    if path.suffix != like.suffix or path.suffix not in (SAFETENSORS, *TORCH_SUFFIXES):
        raise FileFormatError(
            f"{path} is to be written like {like}; expected the same ending, one of "
            f"{', '.join((SAFETENSORS, *TORCH_SUFFIXES))}: name it so."
        )
    check_finite(stack.params)
    with refusing(like, "a file of INRs: name the one that these were read from"):
        size_of(like)
        content, metadata = _contents(like)
        found = entries(content)
        found.pop("label", None)  # of DWSNets' Fashion-MNIST files
        stems = layer_stems({name: holder[key] for name, (holder, key) in found.items()}, rename)
        if len(stems) != len(stack.widths) - 1:
            raise FileFormatError(
                f"{like} has {len(stems)} layers, the INRs {len(stack.widths) - 1}; expected the file that they were "
                "read from: name it."
            )
        for layer, stem in enumerate(stems):
            for kind in ("weight", "bias"):
                holder, key = found[f"{stem}.{kind}"]
                before, after = holder[key], stack.params[f"layers.{layer}.{kind}"].detach().cpu()
                after = after[0] if before.dim() == after.dim() - 1 and len(after) == 1 else after
                if before.shape != after.shape:
                    raise FileFormatError(
                        f"{stem}.{kind} in {like} has the shape {tuple(before.shape)}, the new weights "
                        f"{tuple(after.shape)}; expected the same, one INR for one: choose it, and do not widen it."
                    )
                holder[key] = after.to(before.dtype).clone()
    _write(path, content, metadata)


def _contents(like: Path) -> tuple[MutableMapping[Any, Any], dict[str, str] | None]:
    """What the file holds, fit to be changed, and the metadata of a safetensors file."""
    if like.suffix != SAFETENSORS:
        content = read_content(like)
        if not isinstance(content, MutableMapping):
            raise FileFormatError(
                f"{like} holds a {type(content).__name__}; expected a state dict, names to tensors: name such a file."
            )
        return content, None
    import safetensors

    with safetensors.safe_open(like, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _write(path: Path, content: MutableMapping[Any, Any], metadata: dict[str, str] | None) -> None:
    import safetensors.torch

    with users_file(path) as fresh:
        if path.suffix == SAFETENSORS:
            fresh.write_bytes(safetensors.torch.save(dict(content), metadata))
        else:
            torch.save(content, fresh)
