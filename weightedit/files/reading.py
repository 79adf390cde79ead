"""Files that anyone may have written: how much of one is believed, and how it is refused, in one line.

Here: regular files only, sizes before memory, values cut short for messages, the net under every reader, and strict
JSON. Not here: what the values in a file must be (schema.py), and the formats themselves.
"""

from __future__ import annotations

import json
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weightedit.errors import FileFormatError, WeightEditError

JSON_BYTES = 2**24
"""No card, config or header of ours is longer."""
RATIO, FREE = 16, 2**26
"""What a file says that it holds may be so many times its own size, or 64 MB."""
PIXELS = 2**26
"""Of one picture, or of the picture of one INR: 67 million."""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxstring = 3, 6, 8, 8, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"<a whole number of {x.bit_length()} bits>"

    def repr_instance(self, x: object, level: int) -> str:
        return repr(x) if isinstance(x, (bool, float, type(None))) else f"<{type(x).__name__}>"


def shortened(value: object) -> str:
    """`value` for a message: plain values as Python writes them, cut at some depth and length, others as their type."""
    return _Short().repr(value)


@contextmanager
def refusing(source: object, expected: str) -> Iterator[None]:
    """A with block that reads `source`: whatever fails inside comes out as a FileFormatError that names it.

    Args:
        source: the path, for the message.
        expected: what was expected and what to do, as in "a card: write the set again".
    """
    try:
        yield
    except WeightEditError as error:
        if isinstance(error, FileFormatError) and str(source) in str(error):
            raise
        raise FileFormatError(f"{source}: {error}") from error
    except Exception as error:  # the readers of others share no base class
        raise FileFormatError(
            f"{source} could not be read ({type(error).__name__}: {error}); expected {expected}."
        ) from error


def size_of(path: str | Path) -> int:
    """Bytes of a regular file.

    Raises:
        FileFormatError: for what is not there, may not be looked at, or is a folder, pipe or device, which could be
            waited for or read for ever.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(
            f"{path} cannot be read ({reason}); expected a readable file: check that the folder is complete"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError(f"{path} is a folder, pipe or device; expected a regular file: name one")
    return status.st_size


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file of at most `limit`; else FileFormatError."""
    size = size_of(path)
    if limit is not None and size > limit:
        raise FileFormatError(f"{path} has {size:,} bytes; expected at most {limit:,}: name the right file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be read ({error.strerror}); expected a readable file: check that the folder is complete"
        ) from error


def check_declared(path: str | Path, declared: int) -> None:
    """Refuse a file that declares more bytes than it can be believed to hold (see RATIO); FileFormatError."""
    size = size_of(path)
    if declared > max(FREE, RATIO * size):
        raise FileFormatError(
            f"{path} has {size:,} bytes and declares {declared:,}; expected at most {RATIO} times its size, or "
            f"{FREE:,}: write it again without what repeats or is empty"
        )


def check_pixels(height: int, width: int) -> None:
    """Refuse pictures of more than PIXELS pixels, before any of them is decoded or rendered; FileFormatError."""
    if height * width > PIXELS:
        raise FileFormatError(f"got {height} x {width} pixels; expected at most {PIXELS:,}: take a smaller picture")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file: UTF-8, one object, no key twice, no NaN or infinity; else FileFormatError."""
    data = read_bytes(path, JSON_BYTES)
    try:
        value = parse_json(data.decode())
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise FileFormatError(f"{path} is not valid JSON: {error}; expected one object: save the file again") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}; expected an object: save the file again")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError for a key twice, NaN or infinity, RecursionError for what is too deep."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a key stands twice in {shortened([key for key, _ in pairs])}")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
