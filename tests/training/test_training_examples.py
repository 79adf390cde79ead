"""Rows of tensors that batches are drawn from."""

import pytest
import torch

from weightedit.errors import WeightEditError
from weightedit.training.examples import Examples


def test_a_batch_is_the_same_rows_of_every_tensor_on_any_device():
    params = {"weight": torch.arange(12.0).view(4, 3), "bias": torch.arange(4.0)}
    examples, rows = Examples(params=params, labels=torch.arange(4)), torch.tensor([2, 0, 2])
    batch = examples[rows]
    assert len(examples) == 4 and torch.equal(batch["labels"], rows)
    assert torch.equal(batch["params"]["bias"], rows.float()) and torch.equal(
        batch["params"]["weight"][1], params["weight"][0]
    )
    moved = examples.to("meta")[torch.tensor([1])]
    assert {moved["labels"].device.type, moved["params"]["weight"].device.type} == {"meta"} and len(
        examples.to("meta")
    ) == 4


@pytest.mark.parametrize("parts", [{}, {"a": torch.zeros(3), "b": {"c": torch.zeros(2)}}])
def test_examples_of_several_lengths_are_refused(parts):
    with pytest.raises(WeightEditError, match=r"got examples of lengths \[(2, 3)?\]; expected one length"):
        Examples(**parts)
