"""What 32 MB are counted as: a tensor, and small ones that take the place of as many that were freed."""

import torch

from weightedit.training.timing import peak_megabytes


def small() -> list[torch.Tensor]:
    return [torch.ones(8_000) for _ in range(1000)]


small()
for made in (small, lambda: torch.ones(8_000_000)):
    counted = peak_megabytes(made)
    assert counted == 0 or 16 < counted < 48, (made, counted)  # 0 where the system does not tell
