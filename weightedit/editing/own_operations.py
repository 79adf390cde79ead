"""Operations by words: a known name, or a function in a file of the user's own, FILE.py:FUNCTION."""

from __future__ import annotations

import runpy
from typing import Any

from weightedit.editing.operations import Operation, named_error, operation
from weightedit.errors import WeightEditError


def named_operation(text: str) -> Operation:
    """The operation called `text`, or a function of the user's own, FILE.py:FUNCTION.

    Raises:
        WeightEditError: an unknown name, or a file that cannot be imported or has no such function.
    """
    if not is_own(text):
        return operation(text)
    path, _, name = text.rpartition(":")
    try:
        found = runpy.run_path(path).get(name)
    except (Exception, SystemExit) as error:  # whatever the user's own file raises
        raise WeightEditError(f"{path} could not be run: {named_error(error)}; correct it.") from error
    if not callable(found):
        raise WeightEditError(f"{path} has no function {name!r}; expected one from images [N, C, H, W] to the same.")
    function: Any = found
    return operation(function)


def is_own(text: str) -> bool:
    """Whether these words name a function of the user's own, FILE.py:FUNCTION."""
    return text.rpartition(":")[0].endswith(".py")
