"""What a machine can hold is asked in bytes, of the machine or of the container around it."""

import os

import pytest
import torch

from weightedit import capacity
from weightedit.capacity import check_capacity, memory_of_machine
from weightedit.errors import WeightEditError
from weightedit.inr.fitting import fit
from weightedit.inr.siren import initial_params, parameter_count, render_images


def test_memory_is_the_machines_or_the_containers(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "_CONTROL_GROUP", tmp_path / "memory.max")
    machine = memory_of_machine()
    assert 2**27 < machine < 2**50
    for text, expected in (("max\n", machine), ("1000000\n", 1_000_000), (f"{2**60}\n", machine)):
        (tmp_path / "memory.max").write_text(text)
        assert memory_of_machine() == expected
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "memory.max").unlink()
    assert memory_of_machine() == 2**63


def test_what_is_too_large_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(capacity, "memory_of_machine", lambda: 3_000_000_000)
    check_capacity(3_000_000_000, "it", "choose less")
    check_capacity(2**60, "it", "choose less", torch.device("cuda"))
    with pytest.raises(WeightEditError, match=r"^it would take at least 4.5 GB .* the 3.0 GB of this machine: choose"):
        check_capacity(4_500_000_000, "it", "choose less", torch.device("cpu"))


@pytest.mark.parametrize("count", [1, 3])
def test_estimates_are_lower_bounds(monkeypatch, count):
    """A byte less than the result is refused; the result itself is not: so it is one, and the least."""
    params = initial_params(count, (2, 8, 1), generator=torch.Generator().manual_seed(0))
    assert parameter_count((2, 8, 1)) == sum(tensor[0].numel() for tensor in params.values())
    images = torch.rand(count, 1, 30, 20, generator=torch.Generator().manual_seed(1))
    convention = fit(images).stack.convention
    cases = {
        4 * count * 33: lambda: initial_params(count, (2, 8, 1)),
        4 * 600 * (2 + count): lambda: render_images(params, convention, 30, 20),
    }
    for least, run in cases.items():
        monkeypatch.setattr(capacity, "memory_of_machine", lambda limit=least: limit)
        run()
        monkeypatch.setattr(capacity, "memory_of_machine", lambda limit=least: limit - 1)
        with pytest.raises(WeightEditError, match="choose"):
            run()
    with pytest.raises(WeightEditError, match="fitting SIRENs of widths 2-32-32-1"):
        fit(images)
