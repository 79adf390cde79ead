"""What an editor is: INRs in, edited INRs out, with one signature for every kind.

    editor = Editor.from_pretrained("varied-multi")
    edited = editor(inrs, "rotate", strength=0.5, steps=8, widen=2)

Here: the signature, its checks, batches and devices. The kinds are one_shot.py's and predictive_editor.py's; edits
without an editor are refinement.py's. What a call gives is guarded (guard.py); tables and trainings take `unguarded`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.editing.evaluation import check_pictures
from weightedit.editing.guard import guard, known_target
from weightedit.editing.refinement import CHUNK, CHUNK_PIXELS, RefinementRule
from weightedit.errors import ParamsError, SpecError, WeightEditError
from weightedit.files.checkpoint import load_checkpoint
from weightedit.files.location import shipped
from weightedit.files.pretrained import Pretrained, class_of
from weightedit.files.reading import shortened
from weightedit.inr.convention import Convention
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen as widened_stack
from weightedit.metanet.base import Metanetwork
from weightedit.network.spec import Params

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What is wanted of some INRs.

    Attributes:
        operation: its name.
        strength: [N] in [0, 1].
        steps: to take.
        rule: of the steps; None is the editor's own.
    """

    operation: str
    strength: Tensor
    steps: int
    rule: RefinementRule | None


class Editor(Pretrained):
    """Edits INRs by changing their weights; `Editor.from_pretrained` loads every kind.

    Attributes:
        takes: options that this kind has besides the operation and `steps`: of strength, widen and rule.
        steps: how many a call takes, unless it says otherwise.
    """

    what = "editor"
    takes: ClassVar[tuple[str, ...]]
    steps: int

    @property
    @abstractmethod
    def operations(self) -> tuple[str, ...]:
        """Names of the operations it knows."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What a person is told that it is, in a few words."""

    @property
    def native_convention(self) -> Convention | None:
        """What it was trained under, and other INRs are converted to; None where all are the same to it."""
        return None

    @property
    def channels(self) -> int | None:
        """How many outputs the INRs that it treats have; None for any number."""
        return None

    @property
    def delta_alone(self) -> Metanetwork | None:
        """The metanetwork whose delta, under `native_convention`, is the whole edit; None where an edit is more."""
        return None

    @abstractmethod
    def edited(self, part: INRStack, wish: Wish) -> Params:
        """The edited parameters of a batch on the editor's device; the strengths are `part`'s."""

    def __call__(self, inrs: INRStack, operation: str | None = None, **options: Any) -> INRStack:
        """See `forward`."""
        return super().__call__(inrs, operation, **options)

    @torch.no_grad()
    def forward(
        self, inrs: INRStack, operation: str | None = None, *, strength: float | Tensor = 1.0, **options: Any
    ) -> INRStack:
        """The edited INRs, of which none is worse than it was.

        An INR that the edit would bring further away from what the operation makes of its rendering is edited in part,
        or stays as it was where no part of the edit helps (guard.PARTS), and is named in a logged warning: the editor
        is off its domain. What is known by examples alone, as a 3 that becomes an 8, judges nothing: then every INR is
        edited, sensibly or not.

        Arguments, result and errors as of `unguarded`.
        """
        edited = self.unguarded(inrs, operation, strength=strength, **options)
        name = self._known(operation)
        targets = known_target(name, inrs, strength)
        if targets is None:
            return edited
        found = guard(inrs, edited, targets)
        if told := found.told():
            _logger.warning(
                "left as they were, or edited in part: %s. This editor is off its domain there: weightedit.edit(inrs, "
                "%r) takes steps towards the operation instead, and editor.unguarded(...) gives the edit as it comes.",
                told,
                name,
            )
        return replace(found.stack, history=edited.history)

    @torch.no_grad()
    def unguarded(
        self,
        inrs: INRStack,
        operation: str | None = None,
        *,
        strength: float | Tensor = 1.0,
        steps: int | None = None,
        widen: int = 1,
        rule: RefinementRule | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> INRStack:
        """The edited INRs as they come, whether that betters them or not.

        They are made in batches on the editor's device, without gradients; psnr is dropped, being stale.

        Args:
            inrs: N of them, of any convention, width, depth and size that the kind of editor treats.
            operation: one of `operations`; may be left out where there is only one.
            strength: from 0, which leaves an INR as it was bit for bit (unless it is widened), to 1; or one per INR.
            steps: learned steps towards the edited picture; None is the editor's own number.
            widen: hidden widths of the edited INRs, as a multiple of the given ones'.
            rule: that takes the steps; None is the editor's own.
            batch_size: INRs at once; None is few on a CPU, whose caches they share, and 1,024 elsewhere.
            progress: show a tqdm bar.

        Raises:
            WeightEditError: an operation that it does not know, an option that this kind does not have, or a value out
                of range.
            ParamsError: an empty stack, or INRs that are not finite; SpecError: ones that it cannot treat.
        """
        if not isinstance(inrs, INRStack):
            raise ParamsError(
                f"got {type(inrs).__name__} to edit; expected an INRStack, as weightedit.fit and load give it."
            )
        self._refuse(widen=None if widen == 1 else widen, rule=rule)
        wish = replace(self.wish(inrs, operation, strength, steps), rule=rule)
        home, device = inrs.params["layers.0.weight"].device, wish.strength.device
        size = _batch(inrs, device) if batch_size is None else batch_size
        if size < 1:
            raise WeightEditError(f"got batch_size={batch_size}; expected at least 1.")
        inrs.spec.check_params(inrs.params)
        wide, parts = widened_stack(inrs, widen), []
        with tqdm(total=len(inrs), desc=wish.operation, unit="INR", disable=not progress) as bar:
            for start in range(0, len(inrs), size):
                rows = slice(start, start + size)
                part = wide[rows].to(device)
                parts.append(self.edited(part, replace(wish, strength=wish.strength[rows])))
                bar.update(len(part))
        params = {name: torch.cat([part[name] for part in parts]).to(home) for name in wide.params}
        told = f"{wish.operation} (editor" + (f", {widen} times as wide)" if widen != 1 else ")")
        return replace(wide, params=params, psnr=None).recorded(inrs, told)

    def wish(
        self, inrs: INRStack, operation: str | None = None, strength: float | Tensor = 1.0, steps: int | None = None
    ) -> Wish:
        """What a call with these arguments wants; raises as `forward` does."""
        if not len(inrs):
            raise ParamsError("got an empty stack; expected at least one INR.")
        check_pictures(inrs, "an editor")
        if self.channels not in (None, inrs.widths[-1]):
            raise SpecError(
                f"got INRs of {inrs.widths[-1]} channels; this editor was made for {self.channels}: take one for "
                f"{inrs.widths[-1]}{_others(inrs.widths[-1])}, or the operation alone (weightedit edit --operation "
                "NAME), which needs no editor."
            )
        given = isinstance(strength, Tensor) or strength != 1
        self._refuse(strength=strength if given else None)
        if steps is not None and steps < 0:
            raise WeightEditError(f"got steps={steps}; expected at least 0.")
        return Wish(
            self._known(operation), self._strengths(strength, inrs), self.steps if steps is None else steps, None
        )

    def _refuse(self, **given: object) -> None:
        """Raise for an option that was given, and that this kind of editor does not have."""
        for name, value in given.items():
            if value is not None and name not in self.takes:
                raise WeightEditError(
                    f"got {name}={shortened(value)} for an editor of kind {self.kind!r}; expected only "
                    f"{', '.join((*self.takes, 'steps'))}: leave it out, or take another editor."
                )

    def _known(self, operation: str | None) -> str:
        """The operation's name."""
        known = ", ".join(self.operations)
        if operation is None and len(self.operations) > 1:
            raise WeightEditError(f"got no operation; this editor knows {known}: choose one of them.")
        if operation not in (None, *self.operations):
            raise WeightEditError(f"got operation {operation!r}; this editor knows {known}: choose one of them.")
        return next(iter(self.operations)) if operation is None else operation

    def _strengths(self, strength: float | Tensor, inrs: INRStack) -> Tensor:
        """One per INR, in the editor's dtype and on its device."""
        weight = next(self.parameters())
        if not isinstance(strength, Tensor):  # then no value is read from the device
            found, fits = weight.new_full((), strength), 0 <= strength <= 1
        else:
            found = strength.to(weight)
            if found.dim() > 1 or (found.dim() == 1 and found.numel() != len(inrs)):
                raise WeightEditError(
                    f"got strengths of shape {tuple(found.shape)} for {len(inrs)} INRs; expected one, or one each."
                )
            fits = bool(((found >= 0) & (found <= 1)).all())
        if not fits:
            raise WeightEditError(f"got strength={strength}; expected 0 (nothing) to 1 (the operation).")
        return found.expand(len(inrs))


def _batch(inrs: INRStack, device: torch.device) -> int:
    """INRs at once: fewer where their pictures are large."""
    most = CHUNK if device.type == "cpu" else 1024
    return max(1, min(most, most * CHUNK_PIXELS // (CHUNK * inrs.widths[-1] * inrs.height * inrs.width)))


def _others(channels: int) -> str:
    """The shipped editors for INRs of so many channels, in brackets; "" if there is none."""
    found = []
    for name in shipped():
        kind = class_of(load_checkpoint(name)[1]["kind"])
        if kind is not None and issubclass(kind, Editor) and kind.from_pretrained(name).channels in (channels, None):
            found.append(name)
    return f" ({', '.join(found)})" if found else ""
