"""Dropout is a field of every metanetwork's config: it acts in training alone, and configs without it are read."""

import pytest
import torch

from tests.metanet.test_contract import CASES, ENDINGS, make, networks, whole
from tests.networks import SPECS
from weightedit.errors import SpecError
from weightedit.metanet.registry import build_metanet, describe_metanet


def _values(metanet, spec):
    result = whole(metanet, spec)(networks(spec, count=2))
    return result if metanet.embedding else torch.cat([tensor.flatten() for tensor in result.values()])


@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
def test_it_acts_in_training_alone(name, embedding):
    spec = SPECS["relu"]
    plain, metanet = (make(name, spec, embedding=embedding, dropout=share) for share in (0.0, 0.5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = _values(metanet, spec), _values(metanet, spec)
    assert not torch.equal(first, second)
    assert torch.equal(_values(metanet.eval(), spec), _values(plain, spec))


@pytest.mark.parametrize("name", CASES)
def test_configs_from_before_have_none(name):
    metanet = make(name, SPECS["relu"], embedding=6)
    kind, config = describe_metanet(metanet)
    if not kind.startswith("scalegmn"):
        older = {key: value for key, value in config.items() if key != "dropout"}
        assert describe_metanet(build_metanet(kind, older)) == (kind, config)
    with pytest.raises(SpecError, match="dropout"):
        make(name, SPECS["relu"], embedding=6, dropout=1.0)
