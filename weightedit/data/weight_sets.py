"""Weight sets: INRs together with the images they were fitted to, split by source image, as Parquet and a JSON card.

A folder with {train,validation,test}.parquet (those that have rows) and card.json; `datasets` reads it as it is.
Columns: `weights`, float32, all parameters flattened in the order that the card states; `image`, uint8, the source
image flattened from H, W, C (the target of an edit is made from it); `index`, number of the source image, unique over
the whole set; and where known `label` and `psnr` (dB, float32). Several INRs of one image are always in the same split.
The files and the card are weight_set_tables.py's and weight_set_cards.py's, INRs without images inr_files.py's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightedit.data.weight_set_cards import CARD, SPLITS, card_text, read_card
from weightedit.data.weight_set_tables import as_tensor, read_table, unflatten, write_table
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.files.saving import new_folder, read_settled
from weightedit.inr.convention import Convention
from weightedit.inr.stack import INRStack


@dataclass(frozen=True)
class WeightSet:
    """INRs and the images they were fitted to.

    Args:
        stack: N INRs with their index and split, and label and psnr where known.
        images: uint8 [N, C, H, W], the source image of each.
        targets: uint8 [N, K, C, H, W], what each is to become, of which any of the K will do, where that is known by
            examples alone; no part of what is saved.

    Raises:
        WeightEditError: images, or targets, of another type, number, size or number of channels than the INRs'.
    """

    stack: INRStack
    images: Tensor
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (len(self.stack), self.stack.widths[-1], self.stack.height, self.stack.width)
        found = self.targets
        if found is not None and (
            found.dtype != torch.uint8
            or found.dim() != 5
            or not found.shape[1]
            or (len(found), *found.shape[2:]) != expected
        ):
            raise WeightEditError(
                f"targets of shape {tuple(found.shape)} and type {found.dtype}: expected uint8 [{expected[0]}, K, "
                f"{', '.join(map(str, expected[1:]))}], one picture or several per INR: stack them so."
            )
        if self.images.dtype != torch.uint8 or tuple(self.images.shape) != expected:
            raise WeightEditError(
                f"images of shape {tuple(self.images.shape)} and type {self.images.dtype}: expected uint8 {expected}, "
                "one source image per INR; repeat an image that has several INRs (images[which])."
            )

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, rows: Tensor | slice) -> WeightSet:
        """The chosen INRs, by a slice or a one-dimensional tensor of integers or booleans."""
        return WeightSet(self.stack[rows], self.images[rows], None if self.targets is None else self.targets[rows])

    def floats(self) -> Tensor:
        """The images as float32 [N, C, H, W] in [0, 1]."""
        return self.images.to(torch.float32) / 255.0


def split_by_image(
    index: Tensor,
    *,
    fractions: tuple[float, float, float] | None = None,
    counts: tuple[int, int, int] | None = None,
    seed: int,
) -> Tensor:
    """A random split in which all INRs of one source image stay together.

    Args:
        index: int [N], number of the source image of each INR.
        fractions: shares of the images for train, validation and test, summing to 1; or
        counts: numbers of images for train, validation and test, summing to the number of distinct images.
        seed: of the shuffle; record it in the card.

    Returns:
        int64 [N]: 0 train, 1 validation, 2 test.

    Raises:
        WeightEditError: not exactly one of fractions and counts, or ones that are negative or sum to something else.
    """
    images, which = index.unique(return_inverse=True)
    total = len(images)
    if (fractions is None) == (counts is None):
        raise WeightEditError(
            f"fractions={fractions}, counts={counts}: expected exactly one of them; leave the other out."
        )
    shares: tuple[float, ...] = fractions or counts or ()
    goal = total if fractions is None else 1.0
    if len(shares) != len(SPLITS) or min(shares) < 0 or not math.isclose(sum(shares), goal, abs_tol=1e-6):
        raise WeightEditError(
            f"shares {shares} for train, validation and test: expected three that are not negative and sum to {goal:g} "
            f"(there are {total} distinct images); correct them."
        )
    bounds = [round(total * sum(shares[:n]) / goal) if goal else 0 for n in (1, 2)]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    split = torch.full((total,), 2, dtype=torch.int64)
    split[order[: bounds[1]]] = 1
    split[order[: bounds[0]]] = 0
    return split[which]


def save_weight_set(
    folder: str | Path,
    stack: INRStack,
    images: Tensor,
    card: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write all splits of a weight set; the folder appears complete, or not at all (see saving.py).

    Args:
        folder: where; its parent exists. The same set may be written again; another is replaced only if told.
        stack: float32 INRs with `index` and `split` (see split_by_image).
        images: uint8 [N, C, H, W], the source image of each INR.
        card: further facts for the card, plain JSON values: seeds, source, options, hardware, command.
        overwrite: replace a different weight set that is already there; anything else is never replaced.

    Returns:
        The folder.

    Raises:
        WeightEditError: no index or split, one image in two splits or two images under one index, facts that are no
            JSON.
        ParamsError: weights of another type than float32, or NaN or infinite.
        FileFormatError: a folder that holds something else, or a place that cannot be written.
    """
    folder = Path(folder)
    whole = WeightSet(stack.to("cpu"), images.cpu())
    _check(whole)
    try:
        with new_folder(folder) as fresh:
            _check_place(folder)
            text = card_text(whole.stack, _write_splits(whole, fresh), dict(card or {}))
            (fresh / CARD).write_text(text, encoding="utf-8")
            old = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
            if old is not None and old != text and not overwrite:
                raise FileFormatError(
                    f"{folder} holds a different weight set; expected none, or the same: choose another folder, or "
                    "pass overwrite=True."
                )
    except OSError as error:
        raise FileFormatError(
            f"{folder} could not be written ({error}); expected a place in an existing, writable folder with enough "
            "room: choose another, or create it."
        ) from error
    return folder


def load_weight_set(folder: str | Path, split: str, limit: int | None = None) -> WeightSet:
    """One split of a weight set.

    Args:
        folder: written by save_weight_set.
        split: "train", "validation" or "test"; rows come in the order of the stack that was saved.
        limit: read the first `limit` INRs only, at least 1.

    Returns:
        A WeightSet on the CPU; its stack carries index, split, and label and psnr where known.

    Raises:
        FileFormatError: no such set or split, a card or file that is damaged, or one that does not fit the other (the
            whole file is held against the SHA-256 on the card, whatever the limit).
        WeightEditError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise WeightEditError(f"limit={limit}: expected at least 1 INR; pass None to read all of them.")
    return read_settled(folder, lambda: _read(Path(folder), split, limit))


def load_splits(folder: str | Path, *, train: int = 0, validation: int = 0, test: int = 0) -> dict[str, WeightSet]:
    """All three splits of a weight set by name, of each the first so many INRs, 0 for all; see load_weight_set."""
    limits = zip(SPLITS, (train, validation, test), strict=True)
    return {split: load_weight_set(folder, split, limit or None) for split, limit in limits}


def _read(folder: Path, split: str, limit: int | None) -> WeightSet:
    card = read_card(folder)
    path = _path_of(folder, card, split)
    table = read_table(path, card, card["splits"][split]["count"], limit)
    columns = {name: as_tensor(table[name]) for name in table.column_names}
    convention = Convention.from_dict(card["convention"])
    shape = (len(table), card["height"], card["width"], card["channels"])
    facts: dict[str, Any] = {name: columns[name] for name in ("label", "index", "psnr") if name in columns}
    stack = INRStack(
        unflatten(columns["weights"], convention.spec(tuple(card["widths"]))),
        convention,
        card["height"],
        card["width"],
        split=torch.full((len(table),), SPLITS.index(split)),
        provenance=card["provenance"],
        **facts,
    )
    if not torch.stack(columns["weights"].aminmax()).isfinite().all():  # one pass without a mask
        raise FileFormatError(f"{path} has NaN or infinite weights; expected finite ones: write the set again.")
    return WeightSet(stack, columns["image"].reshape(shape).permute(0, 3, 1, 2).contiguous())


def verify_weight_set(folder: str | Path) -> dict[str, Any]:
    """Compare the SHA-256 of every file with the card; reads all of the set once.

    Returns:
        The card.

    Raises:
        FileFormatError: as read_card, or a file that is missing or changed.
    """
    return read_settled(folder, lambda: _verified(Path(folder)))


def _verified(folder: Path) -> dict[str, Any]:
    card = read_card(folder)
    for split in card["splits"]:
        _path_of(folder, card, split)
    return card


def _check(whole: WeightSet) -> None:
    """What makes a set worth keeping: finite float32 weights, and no image in two splits."""
    stack = whole.stack
    if stack.index is None or stack.split is None:
        raise WeightEditError(
            "a stack without index or split: expected both, to keep every INR of one image in one split; use "
            "dataclasses.replace(stack, index=..., split=split_by_image(...))."
        )
    types = {tensor.dtype for tensor in stack.params.values()}
    if types != {torch.float32}:
        raise ParamsError(f"weights of {', '.join(sorted(map(str, types)))}: expected torch.float32; cast them.")
    if not all(torch.isfinite(tensor).all() for tensor in stack.params.values()):
        raise ParamsError("weights that are NaN or infinite: expected finite ones; leave these INRs out.")
    if len(stack) == 0 or not bool(((stack.split >= 0) & (stack.split <= 2)).all()):
        raise WeightEditError(
            "no INRs, or splits other than 0, 1, 2: expected train 0, validation 1, test 2; correct it."
        )
    order = stack.index.argsort(stable=True)
    index, split, images = stack.index[order], stack.split[order], whole.images[order]
    same = index[1:] == index[:-1]
    for values, what in ((split[:, None], "in two splits"), (images.flatten(1), "with two different images")):
        differs = (values[1:] != values[:-1]).any(1) & same
        if differs.any():
            raise WeightEditError(
                f"source image {int(index[1:][differs][0])} occurs {what}: expected one image and one split per index; "
                "split with split_by_image, and number images of several sources apart (add an offset)."
            )


def _check_place(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileFormatError(f"{folder} is a file; expected a folder: choose another place.")
    own = {CARD, *(f"{split}.parquet" for split in SPLITS)}
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if names and (CARD not in names or names - own):
        raise FileFormatError(
            f"{folder} holds {', '.join(sorted(names - own or names))}, which is no part of a weight set; expected an "
            "empty or new folder, or a weight set: choose another."
        )


def _write_splits(whole: WeightSet, folder: Path) -> dict[str, dict[str, Any]]:
    """Write a parquet file per split that has rows; returns what the card says about them."""
    described = {}
    assert whole.stack.split is not None  # _check saw to it
    for number, split in enumerate(SPLITS):
        rows = (whole.stack.split == number).nonzero()[:, 0]
        if len(rows):
            part, path = whole.stack[rows], folder / f"{split}.parquet"
            write_table(part, whole.images[rows], path)
            images = 0 if part.index is None else len(part.index.unique())
            described[split] = {
                "count": len(rows),
                "images": images,
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
    return described


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path_of(folder: Path, card: dict[str, Any], split: str) -> Path:
    """The file of a split, which is the one that the card states."""
    if split not in card["splits"]:
        raise FileFormatError(
            f"split {split!r} was asked of {folder}, which has {', '.join(card['splits'])}; pass one of them."
        )
    path, stated = folder / f"{split}.parquet", card["splits"][split]
    size = path.stat().st_size if path.is_file() else None
    if size != stated["bytes"]:
        raise FileFormatError(
            f"{path} {'is missing' if size is None else f'has {size} bytes'}; expected {stated['bytes']} as the card "
            "states: copy it again."
        )
    if (found := _sha256(path)) != stated["sha256"]:
        raise FileFormatError(
            f"{path} has SHA-256 {found}, but the card states {stated['sha256']}; expected them to agree: the file "
            "was changed, copy it again."
        )
    return path
