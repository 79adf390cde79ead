"""What was done to a stack of INRs, edit by edit, and the weights before each: what an undo gives back.

The former weights are kept as they are, and not as differences: floating-point sums do not undo themselves to the bit,
and INRs are small. So a stack takes at most EDITS times its own room more, and never more than BYTES more; of older
edits the words stay. How a stack grows a history is stack.py's, files are data/inr_files.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightedit.network.spec import Params

EDITS, BYTES = 8, 2**26
"""The former weights of so many edits are kept, the last ones, as long as they take at most so many bytes together."""


@dataclass(frozen=True)
class Edit:
    """One edit in a stack's history.

    Attributes:
        told: what was done, in words.
        before: the parameters that it found, stacked [N, ...]; None where they are not kept.
        psnr: the stack's psnr [N] that it found, or None.
    """

    told: str
    before: Params | None = None
    psnr: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes of the weights that are kept."""
        return sum(tensor.nbytes for tensor in (self.before or {}).values())

    def per_tensor(self, change: Callable[[Tensor], Tensor]) -> Edit:
        """The edit with `change` applied to every tensor that it holds."""
        before = None if self.before is None else {name: change(tensor) for name, tensor in self.before.items()}
        return Edit(self.told, before, None if self.psnr is None else change(self.psnr))


def bounded(history: Sequence[Edit]) -> tuple[Edit, ...]:
    """The same edits, with the former weights of the last ones alone: as many as EDITS and BYTES allow, in a row."""
    found, room, kept = [], BYTES, EDITS
    for edit in reversed(history):
        room, kept = room - edit.size, kept - 1
        if edit.before is None or room < 0 or kept < 0:
            edit, room = replace(edit, before=None, psnr=None), -1  # nor of anything older, which none would reach
        found.append(edit)
    return tuple(reversed(found))


def joined(histories: Sequence[tuple[Edit, ...]]) -> tuple[Edit, ...]:
    """The history of stacks that are joined: theirs if it is the same, else one entry that tells of all of them."""
    told = [tuple(edit.told for edit in history) for history in histories]
    if len(set(told)) > 1:
        return (Edit(" | ".join(", then ".join(words) or "no edit" for words in told)),)
    return tuple(_joined(edits) for edits in zip(*histories, strict=True))


def _joined(edits: Sequence[Edit]) -> Edit:
    kept = [edit.before for edit in edits if edit.before is not None]
    shapes = {tuple((name, tensor.shape[1:]) for name, tensor in sorted(before.items())) for before in kept}
    scores = [edit.psnr for edit in edits if edit.psnr is not None]
    if len(kept) < len(edits) or len(shapes) > 1 or len(scores) not in (0, len(edits)):
        return Edit(edits[0].told)
    before = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
    return Edit(edits[0].told, before, torch.cat(scores) if scores else None)
