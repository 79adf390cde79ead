"""What a long comparison has measured so far, in a file: started again, it goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightedit.errors import WeightEditError
from weightedit.files.saving import new_file


class Measured:
    """JSON values by key.

    Args:
        path: the file; made, with its folder, at the first value.
        about: what must be the same for values to stand in one table, of JSON types or tuples of them.

    Raises WeightEditError if a file is there and is of something else.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, json.loads(json.dumps(about))
        self.values: dict[str, Any] = {}
        if path.exists():
            held = json.loads(path.read_text())
            if held["about"] != self.about:
                there = {key: value for key, value in held["about"].items() if self.about.get(key) != value}
                wanted = {key: value for key, value in self.about.items() if held["about"].get(key) != value}
                raise WeightEditError(
                    f"{path} is of a comparison with {there}; expected {wanted}: give --out another folder, or the "
                    "former options."
                )
            self.values = held["runs"]

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of `key`, measured now if it has not been yet."""
        if key not in self.values:
            self.values[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.path) as fresh:
                if self.path.exists():  # another process may have measured other values meanwhile
                    self.values = {**json.loads(self.path.read_text())["runs"], **self.values}
                fresh.write_text(json.dumps({"about": self.about, "runs": self.values}, indent=1))
        return self.values[key]
