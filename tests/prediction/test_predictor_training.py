"""Training predictors: steps that can be captured, accuracies per image, and rankings that are none."""

import math

import pytest
import torch
from torch.nn import functional

from tests.device_waits import device_waits
from tests.networks import CNNS, generator, random_params
from weightedit.data.cnn_zoo import CNNZoo
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import METANETS, make_metanet
from weightedit.network.spec import NetworkSpec
from weightedit.prediction import classes, generalization
from weightedit.prediction.predictor import WeightSpacePredictor
from weightedit.training.plan import TrainOptions

SPEC = NetworkSpec.siren((2, 6, 5, 1))


def make_predictor(spec, name="statistics", outputs=1, **options) -> WeightSpacePredictor:
    return WeightSpacePredictor(make_metanet(name, [spec], embedding=3, **options), outputs, hidden=4)


@pytest.mark.parametrize("name", METANETS)
@pytest.mark.parametrize("module", ["classes", "generalization"])
def test_a_step_waits_for_nothing(name, module, tmp_path, monkeypatch):
    """So that a GPU replays it as one graph; also where INRs are moved along their group and shaken."""
    waits = []

    def trained(model, loss, examples, validate, folder, options, *, about):
        batch, draws = examples.to("cpu")[torch.arange(2)], torch.Generator()
        loss(model, batch, draws).backward()
        with device_waits() as found:
            loss(model, batch, draws).backward()
        waits.extend(found)

    layers = {} if name in ("mlp", "statistics") else {"layers": 1}
    if module == "classes":
        monkeypatch.setattr(classes, "train", trained)
        stack = INRStack(
            initial_params(4, SPEC.widths), Convention(), 5, 5, label=torch.tensor([0, 1, 1, 0], dtype=torch.int64)
        )
        splits = dict.fromkeys(("train", "validation"), stack)
        predictor = make_predictor(SPEC, name, 2, **layers)
        classes.train_classifier(predictor, splits, tmp_path, TrainOptions(), augment=True, noise=0.1, smoothing=0.1)
    else:
        monkeypatch.setattr(generalization, "train", trained)
        predictor = make_predictor(CNNS["relu"], name, **layers)
        splits = dict.fromkeys(("train", "validation"), make_zoo())
        generalization.train_accuracy_predictor(predictor, splits, tmp_path, TrainOptions(), augment=True)
    assert not waits, "\n".join(waits)


def make_zoo(count=3) -> CNNZoo:
    params = random_params(CNNS["relu"], count=count, dtype=torch.float32)
    accuracy = torch.linspace(0.1, 0.3, count, dtype=torch.float64)
    return CNNZoo(CNNS["relu"], params, torch.arange(count), {"test_accuracy": accuracy})


def test_predictions_that_are_no_numbers_rank_nothing():
    tau, right = generalization.kendall_tau, torch.tensor([0.1, 0.2, 0.3])
    assert tau(right.exp(), right) == 1 and tau(torch.ones(3), right) == 0
    for wrong in (math.nan, math.inf):
        broken = torch.tensor([wrong, 0.2, 0.3])
        assert math.isnan(tau(broken, right)) and math.isnan(tau(right, broken))


def test_validation_of_a_broken_network_is_not_a_number(tmp_path, monkeypatch):
    """`train` passes over such a step; a tau of 0 would have been kept."""
    seen = []

    def trained(model, loss, examples, validate, *rest, **about):
        seen.append(validate(model))
        with torch.no_grad():
            model.head[-1].bias.fill_(math.nan)
        seen.append(validate(model))

    monkeypatch.setattr(generalization, "train", trained)
    splits = dict.fromkeys(("train", "validation"), make_zoo())
    generalization.train_accuracy_predictor(make_predictor(CNNS["relu"]), splits, tmp_path, TrainOptions())
    assert math.isfinite(seen[0]) and math.isnan(seen[1])


def test_a_majority_of_inrs_decides_for_their_image_and_logits_decide_a_tie():
    params = initial_params(5, SPEC.widths, generator=generator())
    stack = INRStack(
        params, Convention(), 5, 5, label=torch.tensor([0, 0, 0, 1, 1]), index=torch.tensor([7, 7, 7, 9, 9])
    )
    logits = 2.0 * functional.one_hot(torch.tensor([0, 0, 1, 0, 1]), 2)
    logits[2] *= 5
    logits[4] *= 2
    found = classes.accuracies(logits, stack)
    assert found["one INR"] == pytest.approx(0.6)
    assert found["all INRs of an image, majority"] == 1 and found["all INRs of an image, mean logits"] == 0.5
    assert set(classes.accuracies(logits[:1], stack[:1])) == {"one INR"}
    assert classes.first_of_each(stack.index, 2).tolist() == [0, 1, 3, 4]


def test_inrs_without_labels_are_refused():
    stack = INRStack(initial_params(2, SPEC.widths), Convention(), 5, 5)
    with pytest.raises(WeightEditError, match="got a weight set without labels; expected one made from images with"):
        classes.class_examples(stack)
