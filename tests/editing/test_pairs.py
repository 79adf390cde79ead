"""Edits that are known by examples alone: which targets an INR gets, what is learned, and that nothing judges it."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weightedit.cli.demo import run_demo
from weightedit.data.weight_sets import WeightSet
from weightedit.editing.curvature import LearnedKFAC, LearnedKFACConfig
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.operations import operation
from weightedit.editing.pairs import Pairing, error_to_nearest, errors_to_nearest, in_order, nearest_of, wanted_of
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.predictor_training import prediction_errors, prediction_loss, train_predictor
from weightedit.editing.training import edit_error, edit_examples, edit_loss, floor_error, make_editor
from weightedit.errors import SpecError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import fit
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.training.plan import TrainOptions

TINY = GaugeGMNConfig(node_width=6, edge_width=4, layers=1, probes=3)


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def make_set(count: int = 4, first: int = 0) -> WeightSet:
    params = initial_params(count, (2, 6, 5, 1), generator=torch.Generator().manual_seed(first))
    stack = INRStack(params, Convention(), 6, 7, index=first + torch.arange(count))
    return WeightSet(stack, random_bytes(count, 1, 6, 7, seed=first))


def save(pictures: torch.Tensor, folder: Path) -> None:
    for number, picture in enumerate(pictures):
        place = folder / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(picture[0])).save(place / f"{number:03d}.png")


def test_a_copy_is_nearest_to_itself_and_several_come_in_order():
    weights = make_set(5)
    heap = torch.cat([random_bytes(20, 1, 6, 7, seed=9), weights.images.flip(0)])
    found = nearest_of(weights, heap, 3)
    assert found.targets is not None and tuple(found.targets.shape) == (5, 3, 1, 6, 7)
    assert torch.equal(found.targets[:, 0], weights.images)
    blurred = found.targets.float().div(255)
    sources = weights.floats()
    for _ in range(4):
        blurred, sources = operation("blur")(blurred.flatten(0, 1)).view_as(blurred), operation("blur")(sources)
    distances = (blurred - sources.unsqueeze(1)).square().sum((2, 3, 4))
    assert bool((distances.diff(dim=1) >= -1e-4).all())
    assert len(found[torch.tensor([1, 4])].targets) == 2, "rows take their targets along"


def test_targets_of_a_folder_of_nothing_but_pictures_are_in_order(tmp_path):
    pictures, weights = random_bytes(6, 1, 6, 7, seed=5), make_set(6)
    for number, picture in enumerate(pictures):
        Image.fromarray(np.asarray(picture[0])).save(tmp_path / f"{number}.png")
    rows = {"train": [0, 3, 5], "validation": [1], "test": [4, 2]}
    splits = {name: weights[torch.tensor(chosen)] for name, chosen in rows.items()}
    for name, part in Pairing(str(tmp_path)).of(splits).items():
        assert torch.equal(part.targets[:, 0], pictures[rows[name]]), name


def test_a_function_of_ones_own_makes_the_targets(tmp_path):
    own, weights = tmp_path / "mine.py", make_set(5)
    own.write_text("def dimmed(x):\n    return x.mul_(0.5)\n\n\ndef broken(x):\n    return x[0]\n")
    splits = {"train": weights, "validation": weights[torch.arange(2)], "test": weights[torch.arange(3, 5)]}
    for name, part in Pairing(f"{own}:dimmed").of(splits).items():
        expected = (0.5 * part.images.double()).round().byte()  # halves of odd bytes are exact in float32 as well
        assert torch.equal(part.targets.squeeze(1), expected), name
        assert torch.equal(part.images, splits[name].images), "the function gets a copy"
    with pytest.raises(WeightEditError, match="operation 'broken' returned .* returns a real tensor of the same shape"):
        Pairing(f"{own}:broken").of(splits)
    with pytest.raises(WeightEditError, match="got nearest=2 with targets=.*dimmed, a function; expected a heap"):
        Pairing(f"{own}:dimmed", nearest=2)


def test_targets_in_order_go_by_the_number_of_the_source_image():
    weights, pictures = make_set(4, first=3), random_bytes(6, 1, 6, 7, seed=5)
    found = in_order(weights[torch.tensor([3, 0])], pictures, first=2)
    assert torch.equal(found.targets[:, 0], pictures[[4, 1]])
    for count, first in ((4, 0), (9, 4)):
        with pytest.raises(WeightEditError, match=f"source images {first} to .* numbers 3 to 6; expected one target"):
            in_order(weights, random_bytes(count, 1, 6, 7), first=first)


def test_an_error_is_that_to_the_nearest_and_one_target_is_as_a_picture():
    pictures, wanted = torch.rand(3, 1, 6, 7), random_bytes(3, 4, 1, 6, 7)
    slow = torch.stack([error_to_nearest(pictures, wanted[:, k].float() / 255) for k in range(4)], 1).amin(1)
    torch.testing.assert_close(error_to_nearest(pictures, wanted), slow)
    stack = make_set(3).stack
    torch.testing.assert_close(errors_to_nearest(stack, wanted), error_to_nearest(stack.render(), wanted))
    torch.testing.assert_close(
        errors_to_nearest(stack, wanted[:, :1]), errors_to_nearest(stack, wanted[:, 0].float() / 255)
    )


def test_both_kinds_of_editors_learn_from_targets_alone(tmp_path):
    weights = make_set()
    weights = in_order(weights, 255 - weights.images)
    editor = make_editor("mine", weights.stack, gauge_gmn=TINY)
    before = edit_error(weights, "mine", editor)
    loss = edit_loss(editor, edit_examples(weights, "mine")[torch.arange(4)])
    assert float(loss.detach()) == pytest.approx(before, rel=1e-4)
    assert 0 < floor_error(weights, "mine", 2) < before
    predictor = Predictor(PredictorConfig(("mine",), width=6, graded=False))
    steps = TrainOptions(steps=40, learning_rate=2e-2, validate_every=20, checkpoint_every=20, batch_size=4, cpu=True)
    found = train_predictor(predictor, [{"train": weights, "validation": weights}], tmp_path / "run", steps)
    figures = prediction_errors(PredictiveEditor(predictor, LearnedKFAC(LearnedKFACConfig()), 1), weights)["mine 1"]
    assert figures["predicted picture"] == pytest.approx(found.best_validation, rel=1e-4)
    assert figures["predicted picture"] < 0.7 * figures["do nothing"]


def test_the_loss_leaves_the_targets_that_are_far_alone():
    predictor = Predictor(PredictorConfig(("mine",), width=6, graded=False))
    near = random_bytes(2, 1, 1, 6, 7)
    batch = {"renderings": near[:, 0] / 255.0, "targets": near}
    alone = prediction_loss(predictor, batch, torch.Generator())
    both = {**batch, "targets": torch.cat([255 - near, near], 1)}
    torch.testing.assert_close(prediction_loss(predictor, both, torch.Generator()), alone)


def test_folders_of_pictures_are_targets(tmp_path):
    pictures, others = random_bytes(6, 1, 6, 7, seed=1), random_bytes(4, 1, 6, 7, seed=2)
    save(pictures, tmp_path / "train")
    save(others, tmp_path / "test")
    order = [0, 2, 4, 1, 3, 5]  # by class, then by name
    splits = {"train": make_set(4), "validation": make_set(2, first=4), "test": make_set(4, first=6)}
    found = Pairing(str(tmp_path)).of(splits)
    assert torch.equal(found["train"].targets[:, 0], pictures[order[:4]])
    assert torch.equal(found["validation"].targets[:, 0], pictures[order[4:]])
    assert torch.equal(found["test"].targets[:, 0], others[[0, 2, 1, 3]])
    near = Pairing(str(tmp_path), nearest=2, target_labels=(1,)).of(splits)
    ones = {tuple(picture.flatten().tolist()) for picture in pictures[1::2]}
    assert {tuple(p.flatten().tolist()) for p in near["validation"].targets.flatten(0, 1)} <= ones
    assert Pairing().of(splits)["test"].targets is None and not Pairing().facts()
    assert Pairing("a", 2, (8,), "b").facts() == {"targets": "a", "nearest": 2, "target_labels": (8,)}
    with pytest.raises(WeightEditError, match=r"got labels \(7,\); expected some of 0, 1"):
        Pairing(str(tmp_path), nearest=2, target_labels=(7,)).of(splits)
    with pytest.raises(WeightEditError, match=r"got 3 targets of \(1, 6, 7\) for .*, 5 for each; expected as many"):
        Pairing(str(tmp_path), nearest=5, target_labels=(1,)).of(splits)
    with pytest.raises(WeightEditError, match="got target_labels=.* without nearest; expected all targets"):
        Pairing(str(tmp_path), target_labels=(1,))


def test_names_and_targets_go_together(tmp_path):
    weights = in_order(make_set(), random_bytes(4, 1, 6, 7))
    with pytest.raises(WeightEditError, match="got targets for 'dilate', a known operation"):
        wanted_of(weights, "dilate")
    with pytest.raises(WeightEditError, match="there is no operation 'mine'"):
        wanted_of(make_set(), "mine")
    several = Predictor(PredictorConfig(("mine", "yours"), width=4))
    with pytest.raises(WeightEditError, match="got targets for mine, yours by degrees; expected one operation"):
        train_predictor(several, [dict.fromkeys(("train", "validation"), weights)], tmp_path, TrainOptions(cpu=True))
    with pytest.raises(WeightEditError, match=r"targets of shape \(3, 1, 1, 6, 7\).* expected uint8 \[4, K, 1, 6, 7\]"):
        WeightSet(weights.stack, weights.images, random_bytes(3, 1, 1, 6, 7))
    around = EditorOptions(solve_last=True)
    with pytest.raises(SpecError, match="got guides or a solved last layer for 'mine', which is known by examples"):
        OneShotEditor(GaugeGMN(TINY), "mine", options=around)


def test_nothing_judges_what_is_known_by_examples_alone(caplog):
    """Otherwise an editor that knows what it does would be held against something else, or fail."""
    stack = fit(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))).stack
    editor = PredictiveEditor(Predictor(PredictorConfig(("mine",), width=6)), LearnedKFAC(LearnedKFACConfig()), 2)
    torch.nn.init.normal_(editor.predictor.last.weight)  # harm, to whoever hopes for the picture itself
    with caplog.at_level(logging.WARNING):
        edited, raw = editor(stack), editor.unguarded(stack)
    assert not caplog.records and all(torch.equal(edited.params[k], raw.params[k]) for k in raw.params)
    assert float((edited.render() - stack.render()).square().mean()) > 1e-3
    one_shot = make_editor("mine", stack, gauge_gmn=TINY)
    with pytest.raises(WeightEditError, match="got steps=3 after 'mine', which is known by examples alone"):
        one_shot(stack, steps=3)
    with pytest.raises(WeightEditError, match="got an editor of 'mine', which is known by examples alone"):
        run_demo(editor, 2)
