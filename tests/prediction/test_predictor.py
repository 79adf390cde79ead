"""Predictors: batches and conventions do not show, several architectures at once, and what is refused."""

import json

import pytest
import torch

from tests.metanet.chain_networks import perturbed
from tests.networks import CNNS, generator, random_params, relative
from weightedit.errors import FileFormatError, ParamsError, SpecError
from weightedit.inr.convention import Convention, convert
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import make_metanet
from weightedit.network.reparametrization import reparametrized
from weightedit.network.spec import NetworkSpec
from weightedit.prediction import WeightSpacePredictor

SPEC = NetworkSpec.siren((2, 6, 5, 1))
NFN = Convention(coordinates="ij", low=-1.0, offset=0.0)


def _predictor(convention=None, **options):
    metanet = make_metanet("gauge-gmn", [SPEC], layers=1, node_width=8, edge_width=4, probes=3, embedding=6)
    return WeightSpacePredictor(metanet, 4, hidden=8, convention=convention, **options).eval()


def _stack(count=5):
    return INRStack(initial_params(count, SPEC.widths, generator=generator(1)), Convention(), 9, 9)


def test_batches_and_conventions_do_not_show():
    predictor, stack = _predictor(Convention()), _stack()
    expected = predictor.predict(SPEC, stack.params)
    assert expected.shape == (5, 4)
    for size in (1, 2, 64):
        torch.testing.assert_close(predictor.predict_stack(stack, batch_size=size), expected, atol=1e-5, rtol=1e-5)
    moved = INRStack(convert(stack.params, Convention(), NFN), NFN, 9, 9)
    torch.testing.assert_close(predictor.predict_stack(moved), expected, atol=1e-4, rtol=1e-4)


SAME_FUNCTION = {"rescaled e^-6 to e^6": CNNS["relu"], "sign-flipped": CNNS["tanh"]}


@torch.no_grad()
def _told_apart(name, kind, **options):
    """How far predictions of CNNs and of the same functions under other parameters are from each other."""
    spec = SAME_FUNCTION[kind]
    metanet = perturbed(make_metanet(name, [spec], embedding=6, **options), 0.2)
    predictor = WeightSpacePredictor(metanet, 3, hidden=8).double().eval()
    params = random_params(spec, count=4)
    moved = reparametrized(spec, params, kind, generator(2))
    assert all(relative(moved[f"layers.{i}.weight"], params[f"layers.{i}.weight"]) > 0.1 for i in range(spec.depth))
    found, again = predictor.predict(spec, params), predictor.predict(spec, moved)
    assert float(found.std(0).min()) > 1e-3 * float(found.abs().max()), "it does tell networks apart"
    return relative(again, found)


@pytest.mark.parametrize("kind", SAME_FUNCTION)
@pytest.mark.parametrize("name", ["gauge-gmn", "gauge-gmn-b", "monomial"])
def test_predictors_that_know_a_symmetry_lose_nothing_under_it(name, kind):
    assert _told_apart(name, kind) < 1e-9


@pytest.mark.parametrize("kind", SAME_FUNCTION)
def test_so_does_one_with_products(kind):
    assert _told_apart("monomial", kind, products=True) < 1e-9


@pytest.mark.parametrize("kind", SAME_FUNCTION)
@pytest.mark.parametrize("name", ["ng-gnn", "ng-t", "nfn-np", "nfn-hnp", "dws", "mlp", "statistics"])
def test_predictors_that_do_not_know_it_do(name, kind):
    assert _told_apart(name, kind) > 1e-2


def test_several_architectures_at_once_and_other_floating_point_types():
    predictor, stack, wide = _predictor(), _stack(2), NetworkSpec.siren((2, 7, 1))
    other = initial_params(1, wide.widths, generator=generator(2))
    single = {name: tensor[1] for name, tensor in stack.params.items()}
    found = predictor.predict_each([(wide, {name: tensor[0] for name, tensor in other.items()}), (SPEC, single)])
    torch.testing.assert_close(found[1], predictor.predict(SPEC, stack.params)[1], atol=1e-5, rtol=1e-5)
    assert predictor.predict(SPEC, {name: tensor.double() for name, tensor in single.items()}).dtype == torch.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="dropout 1; expected an embedding, outputs and hidden of at least 1"):
        _predictor(dropout=1)
    with pytest.raises(SpecError, match="this predictor was made without a convention"):
        _predictor().predict_stack(_stack())
    with pytest.raises(ParamsError, match="0 INRs and batch_size 64"):
        _predictor(Convention()).predict_stack(_stack()[:0])
    broken = {name: tensor * torch.nan for name, tensor in _stack().params.items()}
    with pytest.raises(ParamsError, match="holds NaN"):
        _predictor().predict(SPEC, broken)


def test_saved_with_its_convention_and_forged_files_are_refused(tmp_path):
    folder = _predictor(NFN, dropout=0.25).save_pretrained(tmp_path / "predictor", "card", {"steps": 3})
    again = WeightSpacePredictor.from_pretrained(folder)
    assert again.convention == NFN and again.dropout == 0.25 and not again.training
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config["training"] == {"steps": 3}
    for change in ({"metanet": {"name": "gmn", "config": {}}}, {"outputs": 0}, {"convention": {"omega": 3}}):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(FileFormatError, match="holds no predictor"):
            WeightSpacePredictor.from_pretrained(folder)
