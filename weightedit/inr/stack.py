"""A stack of INRs of one architecture, with all that is needed to read them: convention, image size, provenance.

Weights, labels and scores stay together here; files are data/inr_files.py's, parquet sets data/weight_sets.py's.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import Convention, Params, widths_of
from weightedit.inr.history import Edit, bounded, joined
from weightedit.inr.siren import places, raw_outputs, render_images
from weightedit.network.spec import NetworkSpec

PER_INR = ("label", "index", "split", "psnr")
"""The optional fields with one entry per INR."""
FRAMES = "frames"
"""In the provenance of a video's INRs: how many it was fitted to."""
_NEW = "new weights"


@dataclasses.dataclass(frozen=True)
class INRStack:
    """N INRs of one architecture.

    Args:
        params: `layers.{i}.weight` [N, out, in], `layers.{i}.bias` [N, out].
        convention: what inputs and outputs mean.
        height, width: of the fitted image in pixels.
        label: class of the image, int [N], or None.
        index: number of the source image in its data set, int [N], or None.
        split: 0 train, 1 validation, 2 test, int [N], or None.
        psnr: of the rendering against the fitted image in [0, 1], dB [N], or None.
        provenance: how the INRs came to be (initialization, optimizer, target), plain strings.
        history: what was done to them since, the last edit last, see `recorded` and `undone`.

    Raises:
        ParamsError: parameters that are no stacked canonical network, a size below 1, or a per-INR tensor that has
            not N entries.
    """

    params: Params
    convention: Convention
    height: int
    width: int
    label: Tensor | None = None
    index: Tensor | None = None
    split: Tensor | None = None
    psnr: Tensor | None = None
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)
    history: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        widths_of(self.params)
        shape = tuple(self.params["layers.0.weight"].shape)
        if len(shape) != 3:
            raise ParamsError(
                f"layers.0.weight of shape {shape}: expected (N, out, in) in a stack; "
                "add the leading axis to every tensor with unsqueeze(0)."
            )
        if self.height < 1 or self.width < 1:
            raise ParamsError(f"image size {self.height} x {self.width}: expected at least 1 x 1; give pixels.")
        for name in PER_INR:
            values = getattr(self, name)
            if values is not None and tuple(values.shape) != (shape[0],):
                raise ParamsError(
                    f"{name} of shape {tuple(values.shape)}: expected ({shape[0]},), one entry per INR; "
                    "pass None where nothing is known."
                )
        for edit in self.history:
            if edit.before is not None and _told_of(edit.before, edit.psnr) != _told_of(self.params, None):
                raise ParamsError(
                    f"an edit ({edit.told}) of {_told_of(edit.before, edit.psnr)} in the history of "
                    f"{_told_of(self.params, None)}; expected the same INRs: leave their history out."
                )

    def __len__(self) -> int:
        return self.params["layers.0.weight"].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the network, inputs first, e.g. (2, 32, 32, 1)."""
        return widths_of(self.params)

    @property
    def spec(self) -> NetworkSpec:
        """The network as a NetworkSpec, from which its symmetry follows."""
        return self.convention.spec(self.widths)

    @property
    def of_pictures(self) -> bool:
        """Whether they are pictures: 2 inputs, and values in [0, 1]. Others are of samples."""
        return self.widths[0] == 2 and self.convention.bounded

    @property
    def shape(self) -> tuple[int, ...]:
        """Places per axis of an INR's own grid: (samples,), (height, width), or (frames, height, width) of 3 inputs.

        The frames are those of the provenance, else as many as the height.
        """
        both, frames = (self.height, self.width), self.provenance.get(FRAMES, "")
        known = int(frames) if frames.isdecimal() and len(frames) < 7 and int(frames) else self.height
        return {1: (self.height * self.width,), 2: both}.get(self.widths[0], (known, *both))

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> "INRStack":
        """The chosen INRs as a stack, of length one for a single number.

        Raises:
            IndexError: a number outside the stack.
        """
        chosen = self._selection(which)
        return self._per_tensor(
            lambda values: values[chosen if isinstance(chosen, slice) else chosen.to(values.device)]
        )

    def _selection(self, which: int | slice | Sequence[int] | Tensor) -> slice | Tensor:
        if isinstance(which, slice):
            return which
        if isinstance(which, int):
            if not -len(self) <= which < len(self):
                raise IndexError(f"INR {which}: expected a number below {len(self)}, the length of the stack.")
            return slice(which % len(self), which % len(self) + 1)
        positions = which if isinstance(which, Tensor) else torch.tensor(which, dtype=torch.long if not which else None)
        if positions.dim() != 1 or positions.dtype.is_floating_point:
            raise IndexError(
                f"an index of shape {tuple(positions.shape)} and type {positions.dtype}: expected a number, a slice, "
                "or a one-dimensional tensor of integers or booleans."
            )
        return positions if positions.dtype == torch.bool else positions.long()

    def _per_tensor(self, change: Callable[[Tensor], Tensor]) -> "INRStack":
        """The stack with `change` applied to every tensor it holds."""
        fields = {name: getattr(self, name) for name in PER_INR}
        return dataclasses.replace(
            self,
            params={name: change(tensor) for name, tensor in self.params.items()},
            history=tuple(edit.per_tensor(change) for edit in self.history),
            **{name: None if values is None else change(values) for name, values in fields.items()},
        )

    def render(self, height: int | None = None, width: int | None = None) -> Tensor:
        """Images [N, C, H, W] on the [0, 1] scale, not clamped; at the fitted size unless told otherwise."""
        return render_images(self.params, self.convention, height or self.height, width or self.width)

    def at(self, coordinates: Tensor | None = None) -> Tensor:
        """Values anywhere, on the convention's scale and not clamped; differentiable. Memory is bounded as in render.

        Args:
            coordinates: in the convention's ranges, [P, inputs] for all or [N, P, inputs]; None is the own grid.

        Returns:
            [N, P, outputs]; pictures are in [0, 1].

        Raises:
            ParamsError: coordinates of another shape.
        """
        first = self.params["layers.0.weight"]
        if coordinates is None:
            coordinates = places(self.shape, self.convention, dtype=first.dtype, device=first.device)
        return self.convention.to_value(raw_outputs(self.params, coordinates.to(first), self.convention))

    def with_params(self, params: Params) -> "INRStack":
        """The same stack with other weights of the same shapes, such as edited ones; psnr is dropped, being stale.

        The history says so, and keeps no weights: `recorded` is for edits that are to be undone.

        Raises:
            ParamsError: names or shapes that differ from the present ones.
        """
        before = {name: tuple(tensor.shape) for name, tensor in self.params.items()}
        after = {name: tuple(tensor.shape) for name, tensor in params.items()}
        if before != after:
            raise ParamsError(f"new parameters {after}: expected the shapes {before}; build a new INRStack instead.")
        return dataclasses.replace(self, params=dict(params), psnr=None, history=bounded((*self.history, Edit(_NEW))))

    def recorded(self, before: "INRStack", told: str) -> "INRStack":
        """This stack as what an edit made of another, whose weights can be had back with `undone`.

        Args:
            before: the N INRs that were edited; their history goes on here.
            told: what was done, in words.
        """
        history = bounded((*before.history, Edit(told, before.params, before.psnr)))
        return dataclasses.replace(self, history=history)

    def undone(self) -> "INRStack":
        """The stack before the last edit of its history: the weights and psnr of then, to the bit.

        Raises:
            WeightEditError: no edit in the history, or one whose former weights are not kept.
        """
        if not self.history:
            raise WeightEditError(
                "got INRs without a history; expected ones that were edited: there is nothing to undo."
            )
        *earlier, last = self.history
        if last.before is None:
            raise WeightEditError(
                f"got INRs whose last edit ({last.told}) kept no former weights; expected one that did: take the file "
                "that was edited. (Of one stack the last 8 edits are kept, and at most 64 MB.)"
            )
        return dataclasses.replace(self, params=last.before, psnr=last.psnr, history=tuple(earlier))

    def precise(self) -> "INRStack":
        """The stack in float32 at least: half precision is too coarse for phases of tens of radians."""
        wide = torch.promote_types(self.params["layers.0.weight"].dtype, torch.float32)
        return dataclasses.replace(self, params={name: tensor.to(wide) for name, tensor in self.params.items()})

    def to(self, device: torch.device | str) -> "INRStack":
        """The stack with all its tensors on `device`."""
        return self._per_tensor(lambda values: values.to(device))

    @classmethod
    def concatenate(cls, stacks: Sequence["INRStack"]) -> "INRStack":
        """One stack after another, in order. Provenance entries that differ are joined by " | ".

        Raises:
            ParamsError: nothing to join, or stacks that differ in architecture, convention, size, or known fields.
        """
        if not stacks:
            raise ParamsError("no stacks: expected at least one to concatenate.")
        first = stacks[0]
        for number, stack in enumerate(stacks):
            for name, mine, other in zip(_KIND, _kind(first), _kind(stack), strict=True):
                if mine != other:
                    raise ParamsError(
                        f"stack {number} has {name} {other}: expected {mine} as in stack 0; "
                        "convert it or leave the field out before joining."
                    )
        origins: dict[str, dict[str, None]] = {}
        for stack in stacks:
            for name, value in stack.provenance.items():
                origins.setdefault(name, {})[value] = None
        return dataclasses.replace(
            first,
            params={name: torch.cat([stack.params[name] for stack in stacks]) for name in first.params},
            provenance={name: " | ".join(values) for name, values in origins.items()},
            history=bounded(joined([stack.history for stack in stacks])),
            **{
                name: torch.cat([getattr(stack, name) for stack in stacks])
                for name in PER_INR
                if getattr(first, name) is not None
            },
        )


def _told_of(params: Params, psnr: Tensor | None) -> str:
    """What an edit leaves as it was: count, inputs and outputs."""
    widths, counts = widths_of(params), {len(tensor) for tensor in params.values()}
    counts |= set() if psnr is None else {len(psnr) if psnr.dim() == 1 else 0}
    return f"{' or '.join(map(str, sorted(counts)))} INRs from {widths[0]} inputs to {widths[-1]} outputs"


_KIND = ("widths", "the convention", "the image size", "the fields")


def _kind(stack: INRStack) -> tuple[object, ...]:
    """What must agree between stacks that are joined, in the order of _KIND."""
    fields = [name for name in PER_INR if getattr(stack, name) is not None]
    return stack.widths, stack.convention, (stack.height, stack.width), fields
