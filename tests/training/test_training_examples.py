"""Rows of tensors that batches are drawn from."""

import pytest
import torch

from weightedit.errors import WeightEditError
from weightedit.training.examples import EndToEnd, Examples


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


def test_sets_end_to_end_are_one_set_whose_every_row_comes_once():
    sets = EndToEnd([Examples(x=torch.arange(n) + 10 * n) for n in (3, 1, 4)])
    rows = torch.tensor([7, 2, 3, 0, 6, 1, 5, 4])
    batch = sets[rows]
    assert len(sets) == 8 and {n: part["x"].tolist() for n, part in batch.items()} == {
        0: [32, 30, 31],
        1: [10],
        2: [43, 42, 41, 40],
    }
    assert set(sets[torch.tensor([4, 0])]) == {0, 2} and sets.to("meta").parts[2][rows[:1]]["x"].device.type == "meta"


@pytest.mark.parametrize("parts", [{}, {"a": torch.zeros(3), "b": {"c": torch.zeros(2)}}])
def test_examples_of_several_lengths_are_refused(parts):
    with pytest.raises(WeightEditError, match=r"got examples of lengths \[(2, 3)?\]; expected one length"):
        Examples(**parts)
