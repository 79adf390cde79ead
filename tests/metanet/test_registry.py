"""Config fields from the words of a command line; names and networks are in test_contract.py."""

import pytest

from weightedit.errors import SpecError
from weightedit.metanet.registry import config_options


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
        with pytest.raises(SpecError, match=f"the option '{word}' came; expected name=value"):
            config_options((word,))
