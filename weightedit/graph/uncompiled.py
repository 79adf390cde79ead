"""What torch.compile leaves as it is; import it only where something is being compiled.

It imports the compiler, which takes two seconds: no command line should wait for it.
"""

from collections.abc import Callable
from typing import Any

import torch


def _called(function: Callable[..., Any], *given: Any) -> Any:
    """function(*given), called by the compiled code as if it was not."""
    return function(*given)


uncompiled: Any = torch.compiler.disable(_called)
