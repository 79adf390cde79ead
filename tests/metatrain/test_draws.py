"""Random numbers from seeds and counters: uniform, unrelated across seeds, steps, lanes and streams, and pure."""

import torch

from weightedit.metatrain.draws import hashed, indices, keys, seeds


def some_keys(count=2000):
    return keys(torch.arange(count) % 50, torch.arange(count) // 50)


def test_hashing_is_a_bijection_that_changes_half_of_the_bits():
    numbers = torch.arange(200_000)
    assert len(hashed(numbers).unique()) == len(numbers)
    changed = hashed(numbers) ^ hashed(numbers ^ 1)
    share = torch.stack([(changed >> bit) & 1 for bit in range(32)]).double().mean(1)
    assert (share - 0.5).abs().max() < 0.02


def test_indices_are_uniform_and_uncorrelated():
    drawn = indices(some_keys(), 128, 10)
    counts = torch.bincount(drawn.flatten(), minlength=10).double()
    assert drawn.min() == 0 and drawn.max() == 9
    expected = drawn.numel() / 10
    assert ((counts - expected).square() / expected).sum() < 30  # chi square with 9 degrees of freedom
    z = (drawn.double() - 4.5) / 8.25**0.5
    for a, b in ((z[1:], z[:-1]), (z[50:], z[:-50]), (z[:, 1:], z[:, :-1])):  # seeds, steps, lanes
        assert (a * b).mean().abs() < 4 / a.numel() ** 0.5


def test_keys_are_functions_of_their_own_row_and_stream():
    seed = seeds(torch.Generator().manual_seed(0), 6)
    step = torch.arange(6)
    assert torch.equal(keys(seed, step)[2:3], keys(seed[2:3], step[2:3]))
    assert not (keys(seed, step) == keys(seed, step, 1)).any()
    assert not (keys(seed, step) == keys(seed + 2**40, step)).any()  # the upper half of a seed counts
    assert len(some_keys().unique()) == 2000
