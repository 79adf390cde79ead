"""One elementwise operation on every tensor of a list, in a single call: small tensors cost as much as their calls.

torch.func has no rules for such calls, and a compiler needs none of them: there it is one operation after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, _foreach_add, _foreach_lerp, _foreach_mul  # pyright: ignore[reportPrivateImportUsage]


def products(a: Iterable[Tensor], b: Iterable[Tensor]) -> Sequence[Tensor]:
    """a b of every pair."""
    a, b = list(a), list(b)
    return _foreach_mul(a, b) if _at_once() and a else [x * y for x, y in zip(a, b, strict=True)]


def totals(a: Iterable[Tensor], b: Iterable[Tensor]) -> Sequence[Tensor]:
    """a + b of every pair."""
    a, b = list(a), list(b)
    return _foreach_add(a, b) if _at_once() and a else [x + y for x, y in zip(a, b, strict=True)]


def between(a: Iterable[Tensor], b: Iterable[Tensor], part: float | Tensor) -> Sequence[Tensor]:
    """a + part (b - a) of every pair."""
    a, b = list(a), list(b)
    if not _at_once() or not a:
        return [x.lerp(y, part) for x, y in zip(a, b, strict=True)]
    return _foreach_lerp(a, b, [part] * len(a) if isinstance(part, Tensor) else part)


def _at_once() -> bool:
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore[reportAttributeAccessIssue]
