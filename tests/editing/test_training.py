"""The trainings of editors, predictors and rules: steps that can be captured, targets, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from tests.device_waits import device_waits
from weightedit.data.weight_sets import WeightSet
from weightedit.editing.curvature import LearnedKFAC
from weightedit.editing.one_shot import EditorOptions
from weightedit.editing.operations import operation
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.predictor_training import (
    prediction_examples,
    prediction_loss,
    relative_errors,
    targets_of,
    train_predictor,
    varied,
    varied_loss,
)
from weightedit.editing.rule_training import Fits, Mixture, RuleProblems, rule_examples, train_rule
from weightedit.editing.training import (
    augmented_loss,
    edit_error,
    edit_examples,
    edit_loss,
    make_editor,
    train_forecast,
)
from weightedit.errors import SpecError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.training.plan import TrainOptions

TINY = GaugeGMNConfig(node_width=6, edge_width=4, layers=1, probes=3, symmetry="full")


def make_set(count=5, widths=(2, 6, 5, 1), omega=30.0) -> WeightSet:
    params = initial_params(count, widths, generator=torch.Generator().manual_seed(0))
    images = torch.randint(256, (count, 1, 6, 7), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return WeightSet(INRStack(params, Convention(omega=omega), 6, 7), images)


@pytest.mark.parametrize("augment", [False, True])
def test_a_step_of_an_editor_waits_for_nothing(augment):
    """So that a GPU replays it as one graph; a random group element is drawn on the device."""
    weights = make_set()
    editor, generator = make_editor("dilate", weights.stack, gauge_gmn=TINY), torch.Generator()
    batch = edit_examples(weights, "dilate")[torch.arange(3)]

    def step():
        (augmented_loss(editor, batch, generator) if augment else edit_loss(editor, batch)).backward()

    step()
    with device_waits() as found:
        step()
    assert not found, "\n".join(found)


def test_a_forecast_is_trained_alone(tmp_path):
    """It learns to invert pictures, which is to add -2 times the raw output; nothing else of the editor moves."""
    stack = replace(make_set().stack, width=6)
    weights = WeightSet(stack, (255 * stack.render().clamp(0, 1)).byte())
    editor = make_editor("invert", weights.stack, gauge_gmn=replace(TINY, probes=36, forecast=6, grid=True))
    before = {name: tensor.clone() for name, tensor in editor.state_dict().items()}
    own = edit_error(weights, "invert")
    options = TrainOptions(steps=40, batch_size=5, learning_rate=2e-2, validate_every=20)
    result = train_forecast(editor, {"train": weights, "validation": weights}, tmp_path, options)
    assert result.best_validation < 0.5 * own
    moved = {name for name, tensor in editor.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("metanet.forecast.") for name in moved)


def test_a_forecast_that_is_no_picture_is_not_trained_alone(tmp_path):
    weights = make_set()
    for config in (TINY, replace(TINY, probes=36, forecast=2, grid=True)):
        editor = make_editor("dilate", weights.stack, gauge_gmn=config)
        with pytest.raises(SpecError, match="for pictures of 6 x 7; expected one over a grid with a probe for every"):
            train_forecast(editor, {"train": weights, "validation": weights}, tmp_path, TrainOptions(steps=1))


def test_an_equivariant_editor_gains_nothing_by_augmentation():
    weights = make_set()
    editor = make_editor("dilate", weights.stack, gauge_gmn=TINY)
    batch = edit_examples(weights, "dilate")[torch.arange(5)]
    plain, moved = edit_loss(editor, batch), augmented_loss(editor, batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=0)


def test_an_editor_is_made_by_name_with_its_guides_and_options():
    stack = make_set().stack
    around = EditorOptions(guides=("gradient",), widen=2)
    editor = make_editor("erode", stack, name="gauge-gmn", gauge_gmn=TINY, options=("layers=2",), around=around)
    assert editor.operation == "erode" and len(editor.metanet.types_in) == 2
    assert (editor.metanet.config.layers, editor.metanet.config.node_width) == (2, 6)
    assert not editor.metanet.config.bidirectional and make_editor("erode", stack).metanet.config.bidirectional
    weights = make_set()
    assert edit_error(weights, "identity") != edit_error(weights, "identity", editor)


def test_a_step_of_a_predictor_of_one_operation_waits_for_nothing():
    weights, generator = make_set(), torch.Generator()
    predictor = Predictor(PredictorConfig(operations=("dilate",), width=4, tiles=2))
    batch = prediction_examples(weights, ("dilate",), graded=False)[torch.arange(4)]
    prediction_loss(predictor, batch, generator).backward()
    with device_waits() as found:
        prediction_loss(predictor, batch, generator).backward()
    assert not found, "\n".join(found)


def test_targets_of_several_operations_are_each_its_own():
    weights, names = make_set(), ("dilate", "darken")
    codes, strengths = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1.0, 0.5, 1.0, 0.25, 0.0])
    found = targets_of(names, weights.images, codes, strengths)
    for row, (code, strength) in enumerate(zip(codes.tolist(), strengths.tolist(), strict=True)):
        torch.testing.assert_close(found[row : row + 1], operation(names[code]).at(weights.floats()[[row]], strength))


def test_pairs_are_changed_alike_into_those_of_other_inrs():
    images = torch.rand(8, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    sizes, channels = set(), set()
    for seed in range(40):
        pairs = varied(torch.stack([images, images], 1), torch.Generator().manual_seed(seed))
        assert torch.equal(pairs[:, 0], pairs[:, 1]) and float(pairs.min()) >= 0 and float(pairs.max()) <= 1
        sizes |= {*pairs.shape[-2:]}
        channels.add(pairs.shape[2])
    assert channels == {1, 3} and min(sizes) == 28 and len(sizes) > 5 and max(sizes) <= 40
    whole = varied(images[:, None, :, :28, :28].expand(-1, 2, -1, -1, -1), torch.Generator().manual_seed(3))
    assert whole.shape[-2:] == (28, 28), "small pictures stay whole"


@pytest.mark.parametrize(("often", "share"), [(None, 1 / 4), ("darken", 5 / 8)])
def test_half_of_varied_practice_may_be_for_one_operation(often, share):
    names, drawn = ("dilate", "erode", "darken", "blur"), []
    predictor = Predictor(PredictorConfig(operations=names, channels=0, width=2, blocks=1))
    predictor.register_forward_pre_hook(lambda module, given: drawn.append(given[1]))
    batch = {"renderings": torch.rand(400, 1, 8, 8), "sources": torch.zeros(400, 1, 8, 8, dtype=torch.uint8)}
    assert math.isfinite(float(varied_loss(predictor, batch, torch.Generator().manual_seed(0), often).detach()))
    assert abs(float((drawn[0] == 2).double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / 400)


def test_errors_are_relative_to_doing_nothing():
    given, wanted = torch.zeros(3, 1, 4, 4), torch.full((3, 1, 4, 4), 0.5)
    found = relative_errors(torch.stack([given[0], wanted[1], 0.75 * wanted[2]]), given, wanted)
    torch.testing.assert_close(found, torch.tensor([1.01, 0.01, 1 / 16 + 0.01]), rtol=5e-3, atol=0)
    assert float(relative_errors(given, given, given).max()) == 1, "nothing to do, and nothing done"


def test_a_mixture_draws_every_batch_from_one_part_and_moves():
    weights = make_set()
    examples = rule_examples(weights, ("dilate", "erode"))
    wanted = examples[torch.arange(5)]["wanted"]
    assert torch.equal(wanted[::2], operation("dilate")(weights.floats()[::2]))
    assert torch.equal(wanted[1::2], operation("erode")(weights.floats()[1::2]))
    mixture = Mixture([(examples, 1), (examples, 2), (Fits(weights.stack, weights.floats()), 1)], 30.0)
    assert len(mixture) == 15
    widths = [mixture[torch.tensor([first, 7])]["params"]["layers.0.weight"].shape[1] for first in range(3)]
    assert widths == [6, 12, 6] and [("fit" in mixture[torch.tensor([first])]) for first in range(3)] == [0, 0, 1]
    moved = mixture.to("meta")
    assert moved.parts[0][0] is moved.parts[1][0], "what is drawn at two widths is moved once"
    assert {part.to("meta")[torch.arange(2, device="meta")]["wanted"].device.type for part, _ in mixture.parts[:2]} == {
        "meta"
    }


def test_what_cannot_be_captured_is_refused(tmp_path):
    splits, captured = dict.fromkeys(("train", "validation"), make_set()), TrainOptions(capture=True)
    predictor = Predictor(PredictorConfig(operations=("dilate", "erode"), width=4, graded=True))
    with pytest.raises(WeightEditError, match="got capture with operations dilate, erode by degrees.*leave"):
        train_predictor(predictor, [splits], tmp_path, captured)
    with pytest.raises(WeightEditError, match="of 1 conventions, capture True; expected sets of one, and no capture"):
        train_rule(LearnedKFAC(), [splits], RuleProblems(), tmp_path, captured)
    other = dict.fromkeys(splits, make_set(omega=20.0))
    with pytest.raises(WeightEditError, match="of 2 conventions, capture False; expected sets of one"):
        train_rule(LearnedKFAC(), [splits, other], RuleProblems(), tmp_path, TrainOptions())
