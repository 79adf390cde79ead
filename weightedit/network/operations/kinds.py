"""The types of readers, and of what they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weightedit.network.flow import Flow

Shape = tuple[int, ...]
Reader = Callable[[Flow, Mapping[str, Any], Any], Any]
"""The flow, arguments by name, shapes of the results -> values, or None."""
