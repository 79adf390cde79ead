"""Config fields from the words of a command line, and readers that are asked to edit; the rest in test_contract.py."""

import pytest
import torch

from tests.networks import CNNS, random_params
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import SpecError
from weightedit.metanet.registry import METANETS, config_options, make_metanet


def test_words_become_fields():
    words = ("layers=6", "symmetry=sign", "refit=true", "initial_scale=0.5", "widths=[2, 8, 1]", "name=a=b")
    expected = {
        "layers": 6,
        "symmetry": "sign",
        "refit": True,
        "initial_scale": 0.5,
        "widths": (2, 8, 1),
        "name": "a=b",
    }
    assert config_options(words) == expected
    for word in ("layers", "=3"):
        with pytest.raises(SpecError, match=f"the option '{word}'; expected name=value"):
            config_options((word,))


@pytest.mark.parametrize("name", METANETS)
def test_one_that_reads_says_so_when_it_is_asked_for_a_delta(name):
    spec, params = CNNS["relu"], random_params(CNNS["relu"], dtype=torch.float32)
    metanet = make_metanet(name, [spec], embedding=4)
    for ask in (lambda: propose_delta(metanet, spec, params), lambda: propose_deltas(metanet, [(spec, params)])):
        with pytest.raises(SpecError, match="with embedding 4; expected 0 for deltas: call embed"):
            ask()
