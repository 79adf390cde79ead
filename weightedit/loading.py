"""Anything that weightedit writes or reads, from its path alone: its files say which kind it is.

Here: telling the kinds apart, and handing a path to the loader of its kind. What the files hold is the loaders'.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from weightedit.data import cnn_zoo, weight_set_cards
from weightedit.data.cnn_zoo import load_zoo
from weightedit.data.foreign_inrs import TORCH_SUFFIXES
from weightedit.data.images import PICTURES, load_images, load_picture
from weightedit.data.inr_files import SUFFIX, load_inrs
from weightedit.data.sample_files import POINTS, SOUND, load_sample_file
from weightedit.data.small_cnn_zoo import load_small_cnn_zoo
from weightedit.data.video_files import CLIPS, is_clip
from weightedit.data.weight_sets import load_weight_set
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.location import CONFIG, shipped
from weightedit.files.pretrained import Pretrained
from weightedit.files.reading import read_json

CARD = "card.json"
assert {cnn_zoo.CARD, weight_set_cards.CARD} == {CARD}


class Kind(NamedTuple):
    """A kind of file or folder: its name, how it is known, and the function that loads it."""

    name: str
    mark: str
    load: Callable[..., Any]


CHECKPOINT = Kind("checkpoint", f"a folder with {CONFIG}, or the name of one", Pretrained.from_pretrained)
WEIGHT_SET = Kind("weight set", f"a folder with {CARD} of {weight_set_cards.FORMAT}", load_weight_set)
CNN_ZOO = Kind("CNN zoo", f"a folder with {CARD} of {cnn_zoo.FORMAT}", load_zoo)
SMALL_CNN_ZOO = Kind("Small CNN Zoo", "a folder with weights.npy", load_small_cnn_zoo)
INRS = Kind("INRs", f"{', '.join((SUFFIX, *TORCH_SUFFIXES))}, or a folder of them", load_inrs)
PICTURE_SET = Kind("pictures", "a .parquet file, or a folder of parquet or picture files", load_images)
PICTURE = Kind("picture", ", ".join(PICTURES), load_picture)
SAMPLES = Kind("samples", ", ".join((SOUND, POINTS, "animated GIF, WEBP or PNG")), load_sample_file)
KINDS = (CHECKPOINT, WEIGHT_SET, CNN_ZOO, SMALL_CNN_ZOO, INRS, PICTURE_SET, PICTURE, SAMPLES)

_CARDS = {weight_set_cards.FORMAT: WEIGHT_SET, cnn_zoo.FORMAT: CNN_ZOO}


def load(source: str | Path, **options: Any) -> Any:
    """What a file or folder holds.

    Args:
        source: a path; or the name of a shipped checkpoint, or owner/name of one on the hub (see `location.locate`).
        options: of the loader of its kind: `split` of a weight set or CNN zoo that has several, `convention` and `size`
            of INR files of other codes, `activation` of the public Small CNN Zoo, `revision` on the hub, ...

    Returns:
        By kind: an Editor, an update rule, a refinement rule or a WeightSpacePredictor; an INRStack; a WeightSet; a
        CNNZoo; an ImageSet; a picture, float32 [C, H, W] in [0, 1]; or Samples.

    Raises:
        FileFormatError: nothing there, of no known kind, or damaged. WeightEditError: options that the kind lacks.
    """
    kind = kind_of(source)
    if kind in _CARDS.values() and "split" not in options:
        splits = list(read_json(Path(source) / CARD).get("splits", {}))
        if len(splits) != 1:
            raise WeightEditError(
                f"got {source} is a {kind.name} of the splits {', '.join(splits)}, and none; expected one: split=..."
            )
        options["split"] = splits[0]
    try:
        inspect.signature(kind.load).bind(source, **options)
    except TypeError as error:
        known = list(inspect.signature(kind.load).parameters)[1:]
        raise WeightEditError(
            f"{source} ({kind.name}) {error}; expected options among {', '.join(known)}: correct them."
        ) from error
    return kind.load(source, **options)


def kind_of(source: str | Path) -> Kind:
    """Which kind of thing a path is; one of KINDS. Only marks are looked at, so that it may still be damaged.

    Raises:
        FileFormatError: nothing that is known; the kinds are listed.
    """
    if not isinstance(source, (str, Path)) or not str(source):
        raise FileFormatError(f"got {source!r}; expected a path, or the name of a checkpoint: {', '.join(shipped())}.")
    path = Path(source)
    if not path.is_dir():
        known = ((INRS, (SUFFIX, *TORCH_SUFFIXES)), (PICTURE_SET, (".parquet",)), (PICTURE, PICTURES))
        for kind, suffixes in ((SAMPLES, (SOUND, POINTS, *(CLIPS if is_clip(path) else ()))), *known):
            if path.suffix.lower() in suffixes:
                return kind
        if path.exists():
            raise _unknown(source, f"a {path.suffix or 'nameless'} file")
    if not path.is_dir() or (path / CONFIG).is_file() or str(source) in shipped():
        return CHECKPOINT  # or nothing, as its loader will say
    if (path / CARD).is_file():
        stated = read_json(path / CARD).get("format")
        if isinstance(stated, str) and stated in _CARDS:
            return _CARDS[stated]
        raise _unknown(source, f"a folder whose {CARD} states another format")
    if (path / "weights.npy").is_file():
        return SMALL_CNN_ZOO
    if inside := sorted(str(found.parent) for found in path.rglob(CONFIG)):
        raise _unknown(source, f"a folder around checkpoints ({', '.join(inside[:8])})")
    found = {entry.suffix.lower() for entry in path.rglob("*") if entry.is_file() and not entry.name.startswith(".")}
    if found & {SUFFIX, *TORCH_SUFFIXES}:
        return INRS
    if found & {".parquet", *PICTURES}:
        return PICTURE_SET
    raise _unknown(source, f"a folder with {', '.join(sorted(found)) or 'nothing'} in it")


def _unknown(source: str | Path, what: str) -> FileFormatError:
    known = "; ".join(f"{kind.name} ({kind.mark})" for kind in KINDS)
    return FileFormatError(f"{source} is {what}; expected one of these kinds: {known}. Name one.")
