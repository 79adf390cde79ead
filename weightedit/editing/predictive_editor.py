"""The predictive editor: predict the edited picture from the rendering, then take learned steps towards it.

One map from weights to weights, learned from pairs of INRs and edited images alone; no operation is computed at edit
time. It is equivariant to permutations, signs and phases because each part is (predictor.py, curvature.py), takes INRs
of any width, depth and size, and one editor may know several operations, each with a continuous strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, NotRequired, Self, TypedDict

import torch
from torch import Tensor

from weightedit.editing.curvature import LearnedKFAC, LearnedKFACConfig
from weightedit.editing.descent import choose_networks
from weightedit.editing.editor import Editor, Wish
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.refinement import take_steps
from weightedit.errors import WeightEditError
from weightedit.files.location import CONFIG
from weightedit.files.schema import Facts, Within, conform
from weightedit.inr.stack import INRStack
from weightedit.network.spec import Params


class PredictiveEditorConfig(TypedDict):
    """What the config.json of a predictive editor holds."""

    kind: Literal["predictive editor"]
    predictor: PredictorConfig
    rule: LearnedKFACConfig
    steps: Annotated[int, Within(0, 10_000)]
    training: NotRequired[Facts]


class PredictiveEditor(Editor):
    """Edits INRs towards a predicted picture.

    Args:
        predictor: of the edited pictures.
        rule: that takes the steps.
        steps: how many, unless a call says otherwise.
    """

    kind = "predictive editor"
    what = "predictive editor"
    takes = ("strength", "widen")

    def __init__(self, predictor: Predictor, rule: LearnedKFAC, steps: int = 4) -> None:
        super().__init__()
        if steps < 0:
            raise WeightEditError(f"got steps={steps}; expected at least 0.")
        self.predictor, self.rule, self.steps = predictor, rule, steps

    @property
    def operations(self) -> tuple[str, ...]:
        """See Editor."""
        return self.predictor.config.operations

    @property
    def summary(self) -> str:
        """See Editor."""
        return f"predictive, {self.steps} steps"

    @property
    def channels(self) -> int | None:
        """See Editor."""
        return self.predictor.config.channels or None

    def edited(self, part: INRStack, wish: Wish) -> Params:
        """See Editor; differentiable in the editor's weights and in `part`'s.

        Gives the weights of `part` where the strength is 0 or the steps led to infinite or undefined ones.
        """
        wanted = self._foresee(part, wish)
        after = take_steps(wish.rule or self.rule, part.convention, part.params, wanted, wish.steps)
        return choose_networks(wish.strength > 0, after, part.params)

    @torch.no_grad()
    def predict(self, stack: INRStack, operation: str | None = None, strength: float | Tensor = 1.0) -> Tensor:
        """The pictures that a call aims at, [N, C, H, W]."""
        return self._foresee(stack, self.wish(stack, operation, strength))

    def _foresee(self, part: INRStack, wish: Wish) -> Tensor:
        seen = part.precise().render().to(wish.strength)
        code = self.predictor.code(wish.operation)
        return self.predictor(seen, torch.full((len(part),), code, device=seen.device), wish.strength)

    def described(self) -> dict[str, Any]:
        """See Pretrained."""
        return {"predictor": self.predictor.config.to_dict(), "rule": asdict(self.rule.config), "steps": self.steps}

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """See Pretrained."""
        stated: PredictiveEditorConfig = conform(PredictiveEditorConfig, config, CONFIG)
        return cls(Predictor(stated["predictor"]), LearnedKFAC(stated["rule"]), stated["steps"])
