"""Histories: undos give back what was, to the bit and one by one, and what is kept is bounded."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import weightedit as we
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.inr import history
from weightedit.inr.convention import Convention
from weightedit.inr.history import BYTES, EDITS, Edit, bounded
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack


def fresh(count: int = 3, **fields: Any) -> INRStack:
    params = initial_params(count, (2, 6, 5, 1), generator=torch.Generator().manual_seed(count))
    return INRStack(params, Convention(), 9, 7, **{"psnr": torch.rand(count), **fields})


def edited(stack: INRStack, times: int) -> list[INRStack]:
    """The stack, and what it becomes edit by edit."""
    found = [stack]
    for number in range(times):
        moved = {name: tensor + 0.1 * torch.rand_like(tensor) for name, tensor in found[-1].params.items()}
        found.append(replace(found[-1], params=moved, psnr=None).recorded(found[-1], f"edit {number}"))
    return found


def same(one: INRStack, other: INRStack) -> bool:
    pairs = [(one.params, other.params)]
    pairs += [(a.before or {}, b.before or {}) for a, b in zip(one.history, other.history, strict=True)]
    scores = [(one.psnr, other.psnr), *((a.psnr, b.psnr) for a, b in zip(one.history, other.history, strict=True))]
    equal = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
    equal &= all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in scores)
    return equal and [edit.told for edit in one.history] == [edit.told for edit in other.history]


def test_edits_of_every_kind_are_undone_one_by_one_to_the_bit() -> None:
    editor = we.Editor.from_pretrained("mnist-multi")
    stacks = [fresh()]
    stacks.append(we.edit(stacks[-1], "invert", steps=1, widen=2))
    stacks.append(we.edit(stacks[-1], lambda images: images.flip(-1), steps=1, strength=torch.tensor([0, 0.5, 1])))
    stacks.append(editor.unguarded(stacks[-1], "dilate", steps=1))
    stacks.append(editor(stacks[-1], "dilate", steps=1))
    stacks.append(we.widen(stacks[-1], 2))
    stacks.append(we.edit(stacks[-1], torch.full((3, 1, 9, 7), 0.5), steps=0))
    assert [edit.told for edit in stacks[-1].history] == [
        "invert (1 steps, 2 times as wide)",
        "<lambda> (1 steps, strengths)",
        "dilate (editor)",
        "dilate (editor)",
        "2 times as wide",
        "pictures (0 steps)",
    ]
    now = stacks[-1]
    for before in reversed(stacks[:-1]):
        now = we.undo(now)
        assert same(now, before) and now.widths == before.widths
    with pytest.raises(we.WeightEditError, match="without a history; expected ones that were edited"):
        we.undo(now)
    with pytest.raises(we.ParamsError, match="got a Tensor; expected INRs"):
        we.undo(torch.ones(3))  # pyright: ignore[reportArgumentType]


def test_new_weights_that_no_edit_made_are_not_undone_past() -> None:
    stack = edited(fresh(), 2)[-1].with_params(fresh(3).params)
    with pytest.raises(we.WeightEditError, match=r"whose last edit \(new weights\) kept no former weights; expected"):
        stack.undone()


def test_a_file_keeps_the_history_and_choosing_and_joining_do(tmp_path) -> None:
    stacks = edited(fresh(), 3)
    for stack in stacks:
        save_inrs(stack, tmp_path / "inrs.safetensors")
        assert same(load_inrs(tmp_path / "inrs.safetensors"), stack)
    last = stacks[-1]
    assert same(last[[2, 0]].undone(), stacks[2][[2, 0]])
    assert same(INRStack.concatenate([last[:1], last[1:]]), last)


def test_stacks_of_other_histories_are_joined_and_tell_both() -> None:
    stacks = edited(fresh(psnr=None), 2)
    joined = INRStack.concatenate([stacks[0], stacks[2]])
    assert [edit.told for edit in joined.history] == ["no edit | edit 0, then edit 1"]
    wider = we.widen(fresh(), 2)
    odd = replace(wider, history=()).recorded(replace(wider, history=()), "2 times as wide")
    assert INRStack.concatenate([wider, odd]).history == (Edit("2 times as wide"),)


def test_what_is_kept_is_bounded(monkeypatch) -> None:
    stack = edited(fresh(), EDITS + 3)[-1]
    assert [edit.before is not None for edit in stack.history] == [False] * 3 + [True] * EDITS
    one = stack.history[-1].size
    assert 0 < one < BYTES and one == sum(4 * tensor.numel() for tensor in stack.params.values())
    monkeypatch.setattr(history, "BYTES", 3 * one - 1)
    assert [edit.before is not None for edit in bounded(stack.history)] == [False] * (EDITS + 1) + [True] * 2
    monkeypatch.setattr(history, "BYTES", one - 1)
    assert not any(edit.before for edit in edited(fresh(), 2)[-1].history)


def test_a_history_of_other_inrs_is_refused() -> None:
    stack = fresh()
    for other in (fresh(2), replace(stack, params=initial_params(3, (3, 6, 5, 1)))):
        with pytest.raises(we.ParamsError, match=r"in the history of 3 INRs from 2 inputs to 1 outputs; expected the"):
            stack.recorded(other, "an edit")
    with pytest.raises(we.ParamsError, match="of 2 or 3 INRs from 2 inputs"):
        replace(stack, history=(Edit("an edit", stack.params, torch.ones(2)),))
