"""Folders of published weights, one file per INR, as weight sets: classes and splits as they were published.

Here: which file is in which split, source images numbered without a collision, and the pictures that a weight set
needs, which are the INRs' own renderings, as such folders hold none. Not here: reading one file (foreign_inrs.py),
files in general (inr_files.py), the weight set on disk (weight_sets.py).

How the sets are split, read from the codes that use them:

* DWSNets: by a JSON file {"train", "val", "test": {"path": [...], "label": [...]}} (of Fashion-MNIST the paths alone),
  in the folder or beside it, whose paths may be those of another machine. For MNIST everyone draws it anew, from
  folders mnist_png_{training,testing}_<label>_<index>: without the file, a twelfth of the training images (5,000 of
  60,000, as there) is drawn here. Both halves count their images from 0; here the test images follow the training
  images, as in inr_fitting.ImageSource.
* NFN: by the number of the image, net<number>.pth: training below 45,000, validation below 50,000, test beyond.
* INR files of weightedit state their split themselves.

Several INRs of one image stay in its split (NFN: the folders randinit_smaller_aug<k>_<label>s).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, NotRequired, TypedDict

import torch
from torch import Tensor

from weightedit.data.inr_files import inr_paths, is_own_file, load_inrs
from weightedit.data.layer_names import Rename
from weightedit.data.weight_sets import WeightSet, split_by_image
from weightedit.errors import FileFormatError
from weightedit.files.reading import read_json, shortened
from weightedit.files.schema import Within, conform
from weightedit.inr.convention import Convention
from weightedit.inr.stack import INRStack

NFN_POINTS = (45_000, 50_000)
"""The first image of the validation and of the test split of NFN's sets."""
VALIDATION_SHARE = 12
"""Every so many-th training image is for validation where a published set has that drawn: 5,000 of 60,000."""

_SPLITS = {"train": 0, "val": 1, "validation": 1, "test": 2}
_CHUNK = 1000  # INRs rendered at once
_MOST = Within(0, 2**24)  # entries of a split


class _Listed(TypedDict):
    """One split of a splits file."""

    path: Annotated[list[str], _MOST]
    label: NotRequired[Annotated[list[int | str], _MOST]]


_SplitsFile = dict[str, _Listed | Annotated[list[str], _MOST]]


@dataclass(frozen=True)
class PublishedSet:
    """What a folder of published weights holds.

    Args:
        whole: the INRs with index, split, and label where known, and their renderings as pictures.
        split: where the splits come from, in words.
        left_out: files that no split names; they are not read.
    """

    whole: WeightSet
    split: str
    left_out: int


def published_set(
    folder: str | Path,
    convention: Convention | None = None,
    *,
    size: tuple[int, int] | None = None,
    splits: str | Path | None = None,
    rename: Rename | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PublishedSet:
    """Read a folder of published weights, each of its files once.

    Args:
        folder: with one INR per file, at any depth (.pth, .pt, .ckpt, .safetensors), or with INR files of weightedit.
        convention, size, rename: see inr_files.load_inrs; required, or not, as there.
        splits: the JSON file of the splits; None looks for *split*.json in the folder and beside it.
        seed: of the validation images, where they are drawn here.
        progress: show a tqdm bar.

    Returns:
        A PublishedSet. Its pictures are the renderings, cut off to [0, 1] and rounded to 8 bits, one per source image:
        that of its first INR.

    Raises:
        FileFormatError: what load_inrs refuses, splits that are not known, and a splits file that is damaged, names
            files that are not there, one twice, or a class that is not the file's own.
    """
    paths, listed, file = members(folder, splits)
    load_inrs(paths[:1], convention, size=size, rename=rename)  # what is not stated is told before all are read
    stack = load_inrs(paths, convention, size=size, rename=rename, progress=progress)
    ours = is_own_file(paths[0])
    halves = stack.split
    stack = replace(stack, index=_numbered(stack, apart=not ours))
    if file is not None:
        stack, told = _as_listed(stack, listed, paths), f"those of {file.name}"
    elif ours and halves is not None:
        told = "the files' own"
    elif halves is not None and bool((halves >= 0).all()):
        stack, told = _with_validation(stack, seed), f"the folders', validation drawn with seed {seed}"
    elif halves is None and stack.provenance.get("file names") == "nfn" and stack.label is not None:
        split = sum((stack.index >= point).long() for point in NFN_POINTS)  # type: ignore[operator]
        stack, told = replace(stack, split=split), f"NFN's, by number from {NFN_POINTS[0]:,} and {NFN_POINTS[1]:,}"
    else:
        raise FileFormatError(
            f"{folder} does not say which INRs are for training, validation and test; expected a JSON file that does, "
            '{"train": {"path": [...]}, "val": {"path": [...]}, "test": {"path": [...]}}: name it (splits, --splits).'
        )
    assert stack.split is not None
    return PublishedSet(WeightSet(stack, _pictures(stack)), told, len(inr_paths(folder)) - len(paths))


Listed = list[tuple[int, int | None]]
"""Of every file its split, and its class where the splits file says it."""


def members(folder: str | Path, splits: str | Path | None = None) -> tuple[list[Path], Listed, Path | None]:
    """The INR files of a published set, in natural order, what the splits file says of each, and that file.

    Without a splits file these are all files in the folder, of which nothing is said.

    Args:
        folder, splits: see `published_set`.

    Raises:
        FileFormatError: as published_set, of folder and splits file.
    """
    folder, paths = Path(folder), inr_paths(folder)
    places = {path.relative_to(folder).as_posix(): row for row, path in enumerate(paths)}
    file = _splits_file(folder, places) if splits is None else Path(splits)
    if file is None:
        return paths, [], None
    found = _listed(file, folder, places)
    return [paths[row] for row in sorted(found)], [found[row] for row in sorted(found)], file


def listing(folder: str | Path, splits: str | Path | None = None) -> str:
    """SHA-256 of the members' names and sizes and of what the splits file says, by which a set is known again unread.

    Args, Raises: see `members`.
    """
    paths, listed, _ = members(folder, splits)
    said = listed or [()] * len(paths)
    lines = (
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size} {of_it}\n"
        for path, of_it in zip(paths, said, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _numbered(stack: INRStack, *, apart: bool) -> Tensor:
    """Numbers of the source images; `apart` puts those of the test half after all others, which count from 0, too."""
    if stack.index is None:
        return torch.arange(len(stack))
    index = stack.index.clone()
    if apart and stack.split is not None:
        test = stack.split == 2
        index[test & (index >= 0)] += 1 + int(index[~test].max()) if bool((~test).any()) else 0
    unknown = index < 0
    index[unknown] = int(index.max()) + 1 + torch.arange(int(unknown.sum()))
    return index


def _with_validation(stack: INRStack, seed: int) -> INRStack:
    assert stack.split is not None and stack.index is not None
    training = stack.split == 0
    index = stack.index[training]
    images = len(index.unique())
    counts = (images - images // VALIDATION_SHARE, images // VALIDATION_SHARE, 0)
    split = stack.split.clone()
    split[training] = split_by_image(index, counts=counts, seed=seed)
    return replace(stack, split=split)


def _pictures(stack: INRStack) -> Tensor:
    """uint8 [N, C, H, W]: of every source image the rendering of its first INR."""
    assert stack.index is not None
    images, place = stack.index.unique(return_inverse=True)
    rows = torch.full((len(images),), len(stack)).scatter_reduce(0, place, torch.arange(len(stack)), "amin")
    with torch.no_grad():
        parts = [(255 * stack[part].render().clamp(0, 1)).round().to(torch.uint8) for part in rows.split(_CHUNK)]
    return torch.cat(parts)[place]


def _as_listed(stack: INRStack, listed: Listed, paths: Sequence[Path]) -> INRStack:
    """The stack with the splits and classes of a splits file."""
    if len(paths) != len(stack):
        raise FileFormatError(
            f"{paths[0].parent} holds {len(stack)} INRs in {len(paths)} file(s); expected one in each, as splits name "
            "files: leave the splits file out."
        )
    label = torch.full((len(stack),), -1) if stack.label is None else stack.label.clone()
    for row, (_, said) in enumerate(listed):
        if said is not None and int(label[row]) not in (-1, said):
            raise FileFormatError(
                f"{paths[row]} is of class {int(label[row])}, but the splits file says {said}; expected one answer: "
                "correct the splits file."
            )
        label[row] = label[row] if said is None else said
    split = torch.tensor([number for number, _ in listed])
    return replace(stack, split=split, label=None if bool((label < 0).all()) else label)


def _splits_file(folder: Path, places: dict[str, int]) -> Path | None:
    """The splits file in the folder, or one beside it that names its files; raises FileFormatError for several."""
    inside, beside = (sorted(place.glob("*split*.json")) for place in (folder, folder.resolve().parent))
    found = inside or [path for path in beside if _names_one(path, places)]
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise FileFormatError(f"{folder} has the splits files {names}; expected one: name it (splits, --splits).")
    return found[0] if found else None


def _names_one(file: Path, places: dict[str, int]) -> bool:
    try:
        return any(_place(text, places) is not None for part in _read(file).values() for text in part["path"][:1])
    except FileFormatError:
        return False  # of something else


def _read(file: Path) -> dict[str, _Listed]:
    content = conform(_SplitsFile, read_json(file), str(file))
    if unknown := sorted(set(content) - set(_SPLITS)):
        raise FileFormatError(
            f"{file} has the split {shortened(unknown[0])}; expected train, val and test: correct it."
        )
    return {name: part if isinstance(part, dict) else {"path": part} for name, part in content.items()}


def _place(text: str, places: dict[str, int]) -> int | None:
    """Row of the file that a path means, by the longest end of it that is a path in the folder."""
    parts = PurePosixPath(text.replace("\\", "/")).parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((places[end] for end in ends if end in places), None)


def _listed(file: Path, folder: Path, places: dict[str, int]) -> dict[int, tuple[int, int | None]]:
    """What a splits file says, by row of the file; raises FileFormatError where it does not fit the folder."""
    found: dict[int, tuple[int, int | None]] = {}
    for name, part in _read(file).items():
        labels = part.get("label", [None] * len(part["path"]))
        if len(labels) != len(part["path"]):
            raise FileFormatError(
                f"{file} has {len(part['path'])} paths and {len(labels)} classes in {name}; expected a class for each: "
                "correct it."
            )
        for text, label in zip(part["path"], labels, strict=True):
            row = _place(text, places)
            if row is None or row in found:
                fault = f"not a file in {folder}" if row is None else "named twice"
                raise FileFormatError(
                    f"{file} names {shortened(text)}, which is {fault}; expected each file of the set once: copy the "
                    "set again, or correct the file."
                )
            found[row] = _SPLITS[name], None if label is None else _class(label, file)
    return found


def _class(label: int | str, file: Path) -> int:
    if isinstance(label, str) and not (label.isdecimal() and len(label) < 7):
        raise FileFormatError(f"{file} has the class {shortened(label)}; expected a whole number: correct it.")
    return int(label)
