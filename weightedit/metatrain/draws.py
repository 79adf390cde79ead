"""Random numbers as a pure function of a seed and a counter, for a whole stack of inner runs at once.

A batch must be the same for both networks of an antithetic pair, for a run that was interrupted, and for a network
alone or in a stack, and drawing it must not cost a generator per network. Hence a hash in place of a generator: the
rounds of C. Wellons' hash prospector (constants 21f0aaad and 735a2d97, published in the public domain), which change
half of the output bits, within .1 %, when any input bit changes. It is no cryptography.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 0xFFFFFFFF  # every number is one of 32 bits in an int64: products with constants below 2^31 do not overflow


def hashed(numbers: Tensor) -> Tensor:
    """A bijection of [0, 2^32) that looks random; int64 of any shape, of which the lowest 32 bits count."""
    x = numbers & _BITS
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _BITS
    return x ^ (x >> 15)


def keys(seeds: Tensor, counters: Tensor, stream: int = 0) -> Tensor:
    """One key per (seed, counter, stream), each int64 of shape [N]; different streams give unrelated keys."""
    return hashed(hashed(hashed(seeds + stream) + (seeds >> 32)) ^ hashed(counters + 0x3C6EF372))


def indices(keys: Tensor, size: int, below: int) -> Tensor:
    """`size` numbers from 0 to `below` - 1 per key, independent and uniform to `below` / 2^32: [N] -> [N, size]."""
    lanes = hashed(torch.arange(size, device=keys.device) + 0x1B873593)
    return (hashed(keys.unsqueeze(-1) ^ lanes) * below) >> 32


def seeds(generator: torch.Generator, count: int) -> Tensor:
    """`count` fresh seeds, int64, on the generator's device."""
    return torch.randint(2**62, (count,), generator=generator, device=generator.device)
