"""Pictures as tensors: the images that INRs are fitted to and from which the target of an edit is made.

Data sets are read through Hugging Face `datasets` (a hub name, a folder or file of parquet, a folder of picture files),
single pictures through pillow. Local sources are streamed, so nothing is written to the cache of `datasets`. Not here:
INRs of the images (inr_files.py, weight_sets.py) and what an edit does to an image (editing/operations.py).

Pixels come out as the encoded bytes say; nothing is cropped, normalized or resized unless asked for. The orientation
that a camera wrote into a picture's EXIF block is applied, as `datasets` does.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from weightedit.capacity import check_capacity
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.reading import check_pixels, read_bytes, refusing, shortened
from weightedit.files.schema import Within, conform

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # others start programs (EPS), or are rarely meant
_BYTES = 2**28  # of one encoded picture
_BATCH = 200
_Label = Annotated[int, Within(-(2**62), 2**62)]
_READABLE = (
    "readable parquet or pictures, or the name of a data set on the hub: check the path or the name, and the network"
)
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, with what their source says about them.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], class of the image, -1 where the source has none.
        index: int64 [N], position of the image in its split of the source.

    Raises:
        WeightEditError: tensors of other types, or of lengths that differ.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise WeightEditError(
                f"images of shape {tuple(self.images.shape)} and type {self.images.dtype}: expected uint8 "
                "[N, C, H, W]; convert floats in [0, 1] by (255 * images).round().to(torch.uint8)."
            )
        for name, values in (("labels", self.labels), ("index", self.index)):
            if values.dtype != torch.int64 or tuple(values.shape) != (len(self.images),):
                raise WeightEditError(
                    f"{name} of shape {tuple(values.shape)} and type {values.dtype}: expected int64 "
                    f"({len(self.images)},), one entry per image; use -1 where no label is known."
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: slice | Tensor) -> ImageSet:
        """The chosen images, by a slice or a one-dimensional tensor of integers or booleans."""
        return ImageSet(self.images[which], self.labels[which], self.index[which])

    def of_labels(self, labels: Sequence[int]) -> ImageSet:
        """Those of these classes; all where none is named. Raises WeightEditError where there are none of them."""
        chosen = torch.isin(self.labels, torch.tensor(labels, dtype=torch.int64)) if labels else slice(None)
        if not len(self[chosen]):
            raise WeightEditError(
                f"got labels {tuple(labels)}; expected some of {', '.join(map(str, self.labels.unique().tolist()))}, "
                "which the images have: name those."
            )
        return self[chosen]

    def floats(self) -> Tensor:
        """The images as float32 [N, C, H, W] in [0, 1]."""
        return self.images.to(torch.float32) / 255.0


def load_images(
    source: str | Path,
    split: str | None = None,
    *,
    limit: int | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    columns: tuple[str, str | None] | None = None,
) -> ImageSet:
    """Images and labels of one split of a data set.

    Args:
        source: a folder of parquet files ({train,test}.parquet, or any names `datasets` understands), one parquet file,
            a folder of picture files (its subfolders name splits and classes), or the name of a set on the hub.
        split: name of the split; None where the source has only one.
        limit: read the first `limit` images only, at least 1.
        size: (height, width) in pixels to resize to (bicubic); None keeps the size, which must then be common to all.
        channels: 1 (gray) or 3 (RGB) to convert to, dropping transparency; None keeps what the pictures have.
        columns: names of the image and label columns (None: no labels) where their feature types leave a doubt.

    Returns:
        An ImageSet in the order of the source.

    Raises:
        FileFormatError: a source, split or column that is not there or not clear, an unreadable image (by its row), or
            images that differ in size or channels.
        WeightEditError: a limit, size or number of channels out of range.
    """
    _check_options(size, channels)
    if limit is not None and limit < 1:
        raise WeightEditError(f"limit={limit}: expected at least 1 image; pass None to read all of them.")
    images: list[np.ndarray] = []
    labels: list[int] = []
    with refusing(source, _READABLE):
        dataset = _open(str(source), split, _BATCH if limit is None else min(limit, _BATCH))
        names = _find_columns(dataset.features, columns, str(source))
        for row, (cell, label) in enumerate(_rows(dataset, names)):
            if row == limit:
                break
            image = _decode(cell, f"row {row} of {source}", size, channels)
            if images and image.shape != images[0].shape:
                raise FileFormatError(
                    f"row {row} of {source} is an image of {_sized(image)}, but row 0 is one of {_sized(images[0])}; "
                    "all must agree: pass size=(height, width) to resize, channels=1 or 3 to convert."
                )
            images.append(image)
            labels.append(-1 if label is None else conform(_Label, label, f"row {row} of {source}: label"))
    if not images:
        raise FileFormatError(
            f"{source} has no images in split {split!r}; expected at least one: choose another split."
        )
    return ImageSet(_stacked(images), torch.tensor(labels, dtype=torch.int64), torch.arange(len(images)))


def load_picture(path: str | Path, *, size: tuple[int, int] | None = None, channels: int | None = None) -> Tensor:
    """One picture file.

    Args:
        path: of a file that pillow reads (png, jpg, ...).
        size: (height, width) in pixels to resize to (bicubic); None keeps its size.
        channels: 1 (gray) or 3 (RGB) to convert to, dropping transparency; None keeps what the picture has.

    Returns:
        Float32 [C, H, W] in [0, 1].

    Raises:
        FileFormatError: no such file, or one that is not a readable 8-bit picture.
        WeightEditError: a size or number of channels out of range.
    """
    _check_options(size, channels)
    if not Path(path).exists():
        raise FileFormatError(f"there is no picture file {str(path)!r}; expected a png or jpg file: check the path.")
    image = _decode({"bytes": read_bytes(path, _BYTES)}, str(path), size, channels)
    return _stacked([image])[0].to(torch.float32) / 255.0


def _check_options(size: tuple[int, int] | None, channels: int | None) -> None:
    if size is not None and (
        len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size)
    ):
        raise WeightEditError(f"size={size!r}: expected (height, width), two whole numbers of pixels; correct it.")
    if size is not None:
        what = f"one picture of {size[0]} x {size[1]}"
        check_capacity(5 * size[0] * size[1] * (channels or 1), what, "choose a smaller size")  # in bytes and in floats
    if channels is not None and channels not in _MODES:
        raise WeightEditError(
            f"channels={channels!r}: expected 1 for gray or 3 for RGB, or None to keep what is there."
        )


def is_undivided(source: str | Path) -> bool:
    """Whether a source is a local folder that names no split but "train". Raises as `load_images`."""
    if not Path(source).is_dir():
        return False
    with refusing(source, _READABLE):
        return [str(name) for name in _stream(_builder(Path(source)), _BATCH, data_dir=str(source))] == ["train"]


def _open(source: str, split: str | None, rows: int) -> Any:
    """The split of a local or hub data set as a `datasets` Dataset or IterableDataset; `rows` are unpacked at once."""
    import datasets

    path = Path(source)
    if path.is_file():
        return _open_file(path, split, rows)
    if path.is_dir():
        splits = _stream(_builder(path), rows, data_dir=str(path))
    else:
        check_hub_name(source)
        try:
            with _quiet("huggingface_hub"):  # which tells of every try
                splits = datasets.load_dataset(source)
        except Exception as error:  # datasets' and the hub's share no base class
            raise FileFormatError(
                f"there is no file or folder {source!r} here, and the hub gave no data set of that name "
                f"({type(error).__name__}: {error}); expected one or the other: check the path, or name and network."
            ) from error
    return _choose({str(name): part for name, part in splits.items()}, split, source)


def check_hub_name(source: str) -> None:
    """Raise FileFormatError unless what is no path may be meant as the name of a data set on the hub."""
    path = Path(source)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) or path.suffix in (".parquet", *PICTURES):
        raise FileFormatError(
            f"there is no file or folder {source!r}; expected a parquet file, a folder of parquet or picture files, "
            "or the name of a data set on the hub: check the path."
        )
    if not path.parent.is_dir():
        return
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1)
    if near or "/" in source:
        such = f", such as {path.parent / near[0]}" if near else ""
        raise FileFormatError(
            f"there is no file or folder {source!r}; expected one{such}: "
            "check the path. (A data set on the hub is named OWNER/NAME, and no folder OWNER is here.)"
        )


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _stream(builder: str, rows: int, **where: Any) -> Any:
    """A local source, whose empty cache is a temporary folder: a HOME that cannot be written is no obstacle."""
    import datasets

    if builder == "parquet":
        where["batch_size"] = rows
    with tempfile.TemporaryDirectory() as cache:
        return datasets.load_dataset(builder, cache_dir=cache, streaming=True, **where)


def _open_file(path: Path, split: str | None, rows: int) -> Any:
    if path.suffix != ".parquet":
        raise FileFormatError(
            f"{str(path)!r} is a {path.suffix or 'nameless'} file; expected one of parquet: give a parquet file or the "
            "folder that holds the pictures, and use load_picture for a single picture."
        )
    if split is not None and split not in path.stem:
        raise FileFormatError(
            f"split {split!r} was asked of the single file {str(path)!r}, whose name does not contain it; a file is "
            "one split: leave the split out, or give the folder."
        )
    return _stream("parquet", rows, data_files=str(path), split="train")


def _builder(folder: Path) -> str:
    found = {entry.suffix.lower() for entry in folder.rglob("*") if entry.is_file()}
    if ".parquet" in found:
        return "parquet"
    if found & set(PICTURES):
        return "imagefolder"
    raise FileFormatError(
        f"the folder {str(folder)!r} holds {', '.join(sorted(found)) or 'no files'}; expected .parquet or picture "
        f"files ({', '.join(PICTURES)}): give the folder that holds them."
    )


def _choose(splits: dict[str, Any], split: str | None, source: str) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        raise FileFormatError(f"got split={split} of {source!r}; expected one of {', '.join(splits)}: choose one.")
    return splits[split]


def _find_columns(features: Any, columns: tuple[str, str | None] | None, source: str) -> tuple[str, str | None]:
    """Names of the image and the label column, by the types of the features."""
    import datasets

    if features is None:
        raise FileFormatError(f"{source!r} does not state its columns; expected typed features: convert it to parquet.")
    image_names = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    label_names = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if columns is not None:
        if columns[0] not in image_names or (columns[1] is not None and columns[1] not in features):
            raise FileFormatError(
                f"columns={columns!r} for {source!r}, which has {shortened(list(features))}; expected an image column "
                "and a label column of these (or None): correct the names."
            )
        return columns
    if not label_names:
        label_names = [name for name in ("label", "labels") if _is_integer(features.get(name))]
    if len(image_names) != 1 or len(label_names) > 1:
        raise FileFormatError(
            f"{source!r} has {len(image_names)} image columns {image_names} and {len(label_names)} label columns "
            f"{label_names} among {shortened(list(features))}; expected one image column and at most one label column: "
            "pass columns=(image, label), or store encoded pictures as the `datasets` feature Image."
        )
    return image_names[0], label_names[0] if label_names else None


def _is_integer(feature: Any) -> bool:
    return "int" in str(getattr(feature, "dtype", ""))


def _rows(dataset: Any, names: tuple[str, str | None]) -> Iterator[tuple[Any, int | None]]:
    """(encoded image {"bytes", "path"}, label) of every row."""
    import datasets

    image, label = names
    wanted = [image] if label is None else [image, label]
    encoded = dataset.select_columns(wanted).cast_column(image, datasets.Image(decode=False))
    for table in encoded.with_format("arrow").iter(batch_size=_BATCH):
        cells = table[image].to_pylist()
        yield from zip(cells, [None] * len(cells) if label is None else table[label].to_pylist(), strict=True)


def _decode(cell: Any, where: str, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """The picture in a cell {"bytes", "path"} as uint8 [H, W, C]; `where` names it in errors."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    if cell is None or (cell.get("bytes") is None and cell.get("path") is None):
        raise FileFormatError(f"{where} has no image; expected an encoded picture: remove the row.")
    data = cell["bytes"] if cell.get("bytes") is not None else read_bytes(cell["path"], _BYTES)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            check_pixels(image.height, image.width)
            image.load()
            upright = ImageOps.exif_transpose(image) if _ORIENTATION in image.getexif() else image
            picture = _with_channels(upright, where, channels)
            if size is not None and picture.size != size[::-1]:
                picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture)
    except FileFormatError as error:
        raise FileFormatError(str(error) if where in str(error) else f"{where}: {error}") from error
    except Exception as error:  # pillow's formats raise as they please
        # Pillow names the buffer that it was given, which says nothing to anyone.
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise FileFormatError(
            f"{where} is not a readable picture ({reason}); expected one of {', '.join(_FORMATS)}: replace or "
            "remove it."
        ) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _with_channels(image: Image.Image, where: str, channels: int | None) -> Image.Image:
    """The picture in mode L or RGB; nothing is dropped unless `channels` asks for it."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise FileFormatError(
            f"{where} is a picture of pillow's mode {image.mode}; expected 8 bits per channel: convert it first, since "
            "how to scale it is not known."
        )
    if channels is not None:
        return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode not in ("L", "RGB"):
        raise FileFormatError(
            f"{where} is a picture of pillow's mode {image.mode} (transparency or another color space); expected gray "
            "or RGB: pass channels=1 or channels=3 to convert it."
        )
    return image


def _stacked(images: Sequence[np.ndarray]) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _sized(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{height} x {width} pixels and {channels} channel{'s' if channels > 1 else ''}"
