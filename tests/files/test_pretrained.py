"""Every kind of checkpoint: saved with and without a card, loaded by its kind alone, published."""

import json

import pytest
import torch

from weightedit.editing.curvature import LearnedKFAC, LearnedKFACConfig
from weightedit.editing.editor import Editor
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.errors import FileFormatError
from weightedit.files.location import CARD, CONFIG
from weightedit.files.pretrained import KINDS, Pretrained, class_of
from weightedit.metanet.registry import make_metanet
from weightedit.network.spec import NetworkSpec
from weightedit.optim.learned_rule import make_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.mlp_rule import MLPRule
from weightedit.optim.rule_module import RuleModule
from weightedit.prediction.predictor import WeightSpacePredictor

SPEC = NetworkSpec.siren((2, 5, 4, 1))
MADE = {
    "editor": lambda: OneShotEditor(make_metanet("dws", [SPEC], width=4), "dilate"),
    "predictive editor": lambda: PredictiveEditor(Predictor(PredictorConfig(width=4)), LearnedKFAC(), 2),
    "refinement rule": lambda: LearnedKFAC(LearnedKFACConfig(width=3)),
    "mlp-rule": MLPRule,
    "metanet-rule": MetanetRule,
    "learned-rule": lambda: make_rule("ng-gnn", [SPEC]),
    "predictor": lambda: WeightSpacePredictor(make_metanet("statistics", [SPEC]), 3),
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A module of every kind, and the folder that it was saved to without a word."""
    torch.manual_seed(0)
    made = MADE[request.param]()
    return made, made.save_pretrained(tmp_path_factory.mktemp("checkpoints") / "one")


def test_every_kind_is_loaded_by_its_kind_alone(saved):
    made, folder = saved
    again = Pretrained.from_pretrained(folder)
    assert type(again) is type(made) is class_of(made.kind) and not again.training
    assert again.described() == made.described()
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_card_that_nobody_wrote_says_what_it_is_and_claims_nothing(saved):
    made, folder = saved
    card = (folder / CARD).read_text()
    count = sum(parameter.numel() for parameter in made.parameters())
    assert made.kind in card.lower() and f"{count:,}" in card and type(made).__name__ in card
    assert "No figures" in card and "we.load" in card


def test_a_kind_of_ones_own_choice(saved):
    """An abstract class loads all kinds of its own, and refuses the others by name."""
    made, folder = saved
    for wanted in (Editor, RuleModule, LearnedKFAC, WeightSpacePredictor):
        if isinstance(made, wanted):
            assert type(wanted.from_pretrained(folder)) is type(made)
        else:
            with pytest.raises(FileFormatError, match=f"of kind '{made.kind}'; expected one of kind "):
                wanted.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["oracle", None, 3, ["editor"]])
def test_an_unknown_kind_is_told_the_known_ones(tmp_path, kind):
    folder = LearnedKFAC().save_pretrained(tmp_path / "rule", "")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "kind": kind}))
    with pytest.raises(FileFormatError, match=f"expected one of kind {' or '.join(KINDS)}: name"):
        Pretrained.from_pretrained(folder)


def test_publishing_is_a_method(monkeypatch):
    calls = []

    def push(folder, repo_id, **options):
        calls.append((repo_id, options, (folder / CARD).read_text()))
        return "https://hub/commit"

    monkeypatch.setattr("weightedit.files.pretrained.push_to_hub", push)
    assert LearnedKFAC().push_to_hub("owner/name", "# card", private=True) == "https://hub/commit"
    assert calls == [("owner/name", {"private": True}, "# card")]
