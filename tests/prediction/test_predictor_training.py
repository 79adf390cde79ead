"""Training predictors: steps that can be captured, accuracies per image, and rankings that are none."""

import math

import pytest
import torch
from torch.nn import functional

from tests.device_waits import device_waits
from tests.networks import CNNS, generator, random_params
from tests.rounding import assert_agree
from weightedit.data.cnn_zoo import CNNZoo
from weightedit.errors import SpecError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import METANETS, make_metanet
from weightedit.network.reparametrization import KINDS
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
        splits = dict.fromkeys(("train", "validation"), [make_zoo()])
        generalization.train_accuracy_predictor(predictor, splits, tmp_path, TrainOptions(), augment=True)
    assert not waits, "\n".join(waits)


def make_zoo(count=3) -> CNNZoo:
    params = random_params(CNNS["relu"], count=count, dtype=torch.float32)
    accuracy = torch.linspace(0.1, 0.3, count, dtype=torch.float64)
    return CNNZoo(CNNS["relu"], params, torch.arange(count), {"test_accuracy": accuracy})


SEVERAL = [
    CNNS["relu"],
    CNNS["tanh"],
    NetworkSpec.cnn((1, 6, 4), "tanh"),
    NetworkSpec.cnn((1, 3, 5, 4), "relu", kernel=(5, 5)),
]
READ_ALL = [name for name in METANETS if name.startswith(("gauge-gmn", "scalegmn", "ng-"))]


def several_zoos(count=5, dtype=torch.float64) -> list[CNNZoo]:
    """Networks of several activations, widths, depths and kernels."""
    accuracies = torch.rand(len(SEVERAL), count, generator=generator(3), dtype=torch.float64)
    return [
        CNNZoo(spec, random_params(spec, count=count, seed=n, dtype=dtype), torch.arange(count), {"test_accuracy": own})
        for n, (spec, own) in enumerate(zip(SEVERAL, accuracies, strict=True))
    ]


def predictor_of_all(name) -> WeightSpacePredictor:
    metanet = make_metanet(name, SEVERAL, embedding=3, layers=1)
    return WeightSpacePredictor(metanet, 1, hidden=4).double().eval()


@pytest.mark.parametrize("name", READ_ALL)
def test_a_mixed_batch_read_zoo_by_zoo_is_the_ragged_batch(name, tmp_path, monkeypatch):
    """Loss and gradients; the batch has several networks of some architectures and none of another."""
    batch, found = torch.tensor([17, 2, 15, 6, 0, 9]), {}

    def trained(model, loss, examples, *rest, about):
        loss(model, examples[batch], generator()).backward()
        found.update({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()

    monkeypatch.setattr(generalization, "train", trained)
    zoos, predictor = several_zoos(), predictor_of_all(name)
    generalization.train_accuracy_predictor(predictor, {"train": zoos, "validation": zoos}, tmp_path, TrainOptions())
    pairs = [(zoos[n // 5], n % 5) for n in batch.tolist()]
    networks = [(zoo.spec, {key: tensor[row] for key, tensor in zoo.params.items()}) for zoo, row in pairs]
    wanted = torch.stack([zoo.numbers("test_accuracy").float()[row] for zoo, row in pairs])
    generalization.LOSSES["mse"](predictor.predict_each(networks)[:, 0], wanted).backward()
    size = max(float(gradient.abs().max()) for gradient in found.values())
    assert size > 1e-6 and len(found) > 5
    for key, parameter in predictor.named_parameters():
        if key in found:
            torch.testing.assert_close(parameter.grad, found[key], rtol=1e-9, atol=1e-11 * size)


@pytest.mark.parametrize("name", ["gauge-gmn", "gauge-gmn-b", "scalegmn"])
def test_networks_of_a_mixed_set_keep_their_rank_under_other_parameters(name):
    predictor, zoos = predictor_of_all(name), several_zoos()
    tests = [generalization.reparametrized_tests(zoo) for zoo in zoos]
    for forms in tests:
        before = generalization.predicted(predictor, [forms[generalization.UNCHANGED]])
        assert float(before.std()) > 1e-6
        for kind, zoo in forms.items():
            torch.testing.assert_close(
                generalization.predicted(predictor, [zoo]), before, rtol=1e-8, atol=0, msg=lambda m, kind=kind: kind + m
            )
    together = generalization.taus(predictor, *tests)
    assert set(together) == {generalization.UNCHANGED, *KINDS} and len(set(together.values())) == 1


def test_tau_of_several_zoos_is_of_one_ranking_and_of_each_its_own():
    predictor, zoos = predictor_of_all("ng-gnn"), several_zoos()
    tests = [generalization.reparametrized_tests(zoo) for zoo in zoos]
    guesses = [generalization.predicted(predictor, [zoo]) for zoo in zoos]
    assert_agree(generalization.predicted(predictor, zoos), torch.cat(guesses))
    together = generalization.taus(predictor, *tests)
    everything = generalization.measured(zoos)
    assert together[generalization.UNCHANGED] == generalization.kendall_tau(torch.cat(guesses), everything)
    # tanh networks cannot be rescaled: they stay among the rescaled ones as they are.
    scaled = [generalization.predicted(predictor, [forms[KINDS[1]]]) for forms in (tests[0], tests[3])]
    mixed = torch.cat([scaled[0], *guesses[1:3], scaled[1]])
    assert together[KINDS[1]] == generalization.kendall_tau(mixed, everything)
    for forms, zoo, guess in zip(tests, zoos, guesses, strict=True):
        own = generalization.taus(predictor, forms)
        assert list(own) == list(forms)
        assert own[generalization.UNCHANGED] == generalization.kendall_tau(guess, zoo.numbers("test_accuracy"))


@pytest.mark.parametrize("name", METANETS)
def test_zoos_that_a_metanetwork_does_not_read_are_refused(name):
    if name in READ_ALL:
        generalization.check_reads(predictor_of_all(name), several_zoos())
        return
    predictor = WeightSpacePredictor(make_metanet(name, SEVERAL, embedding=3), 1, hidden=4).double()
    with pytest.raises(SpecError, match=f"^got {name} for zoos of several architectures, of which it does not read wi"):
        generalization.check_reads(predictor, several_zoos())


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
    splits = dict.fromkeys(("train", "validation"), [make_zoo()])
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
