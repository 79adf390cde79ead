"""One elementwise operation on every tensor of a list, in a single call: small tensors cost as much as their calls.

torch.func.vmap has no rules for such calls and refuses them with a RuntimeError, and a compiler needs none of them:
there it is one operation after another, which raises whatever else was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, _foreach_add, _foreach_lerp, _foreach_mul  # pyright: ignore[reportPrivateImportUsage]


def products(a: Iterable[Tensor], b: Iterable[Tensor]) -> Sequence[Tensor]:
    """a b of every pair."""
    return _of_all(_foreach_mul, torch.mul, list(a), list(b))


def totals(a: Iterable[Tensor], b: Iterable[Tensor]) -> Sequence[Tensor]:
    """a + b of every pair."""
    return _of_all(_foreach_add, torch.add, list(a), list(b))


def between(a: Iterable[Tensor], b: Iterable[Tensor], part: float | Tensor) -> Sequence[Tensor]:
    """a + part (b - a) of every pair."""
    a, b = list(a), list(b)
    parts = [part] * len(a) if isinstance(part, Tensor) else part
    return _of_all(lambda x, y: _foreach_lerp(x, y, parts), lambda x, y: x.lerp(y, part), a, b)


def _of_all(
    at_once: Callable[..., Any], one: Callable[..., Tensor], a: list[Tensor], b: list[Tensor]
) -> Sequence[Tensor]:
    if a and not torch.compiler.is_compiling():
        try:
            return at_once(a, b)
        except RuntimeError:
            pass  # under vmap
    return [one(x, y) for x, y in zip(a, b, strict=True)]
