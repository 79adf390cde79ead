"""The predictive editor: predict the edited picture from the rendering, then take learned steps towards it.

One map from weights to weights, learned from pairs of INRs and edited images alone; no operation is computed at edit
time. It is equivariant to permutations, signs and phases because each part is (predictor.py, curvature.py), takes INRs
of any width, depth and size, and one editor may know several operations, each with a continuous strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weightedit.editing.curvature import LearnedKFAC, LearnedKFACConfig
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.refinement import choose_networks, take_steps
from weightedit.errors import ParamsError, WeightEditError
from weightedit.files.checkpoint import CONFIG, built_from, load_checkpoint, load_into, save_checkpoint
from weightedit.files.schema import Facts, Within, conform
from weightedit.inr.convention import Convention, network_of
from weightedit.inr.siren import render_images
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen
from weightedit.network.spec import Params

_CONFIG_KEYS = ("kind", "predictor", "rule", "steps")
KIND = "predictive editor"


class PredictiveEditorConfig(TypedDict):
    """What the config.json of a predictive editor holds."""

    kind: Literal["predictive editor"]
    predictor: PredictorConfig
    rule: LearnedKFACConfig
    steps: Annotated[int, Within(0, 10_000)]
    training: NotRequired[Facts]


class PredictiveEditor(nn.Module):
    """Edits INRs towards a predicted picture.

    Args:
        predictor: of the edited pictures.
        rule: that takes the steps.
        steps: how many, unless a call says otherwise.
    """

    def __init__(self, predictor: Predictor, rule: LearnedKFAC, steps: int = 4) -> None:
        super().__init__()
        if steps < 0:
            raise WeightEditError(f"steps {steps} came; expected at least 0.")
        self.predictor, self.rule, self.steps = predictor, rule, steps

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations it knows."""
        return self.predictor.config.operations

    @property
    def kind(self) -> str:
        """What a person is told that it is."""
        return f"predictive, {self.steps} steps"

    def forward(
        self,
        params: Mapping[str, Tensor],
        convention: Convention,
        size: tuple[int, int],
        codes: Tensor,
        amounts: Tensor,
        steps: int | None = None,
    ) -> Params:
        """Edited parameters, differentiable in the editor's weights and in `params`.

        Args:
            params: N stacked INRs.
            convention: of `params`.
            size: height and width of the picture that is predicted.
            codes: long [N], see Predictor.code.
            amounts: strengths [N].
            steps: None is the editor's own number.

        Returns those of `params` where the strength is 0 or the steps led to infinite or undefined weights.
        Raises ParamsError on parameters that are no canonical network or not finite.
        """
        network_of(params, convention).check_params(params)
        before, steps = dict(params), self.steps if steps is None else steps
        exact = {name: p.to(torch.promote_types(p.dtype, torch.float32)) for name, p in before.items()}
        wanted = self.predictor(render_images(exact, convention, *size).to(amounts), codes, amounts)
        return choose_networks(amounts > 0, take_steps(self.rule, convention, before, wanted, steps), before)

    @torch.no_grad()
    def predict(self, stack: INRStack, operation: str | None = None, strength: float | Tensor = 1.0) -> Tensor:
        """The pictures that `edit` aims at, [N, C, H, W]."""
        codes, amounts = self._wanted(stack, operation, strength)
        return self.predictor(stack.render().to(amounts), codes, amounts)

    @torch.no_grad()
    def edit(
        self,
        stack: INRStack,
        operation: str | None = None,
        strength: float | Tensor = 1.0,
        *,
        steps: int | None = None,
        factor: int = 1,
        batch_size: int = 16,
        progress: bool = False,
    ) -> INRStack:
        """A whole stack edited in batches, on the editor's device; PSNR, which no longer holds, is dropped.

        Args:
            stack: INRs of any convention, width, depth and size.
            operation: one of `operations`; may be left out if there is only one.
            strength: from 0, which leaves the INR as it was bit for bit (unless it is widened), to 1; or one per INR.
            steps: None is the editor's own number.
            factor: the edited INRs' hidden widths over the given ones', see inr/widening.py.
            batch_size: INRs at once; 16 keep a CPU's caches warm.
            progress: show a tqdm bar.

        Raises:
            WeightEditError: an operation that it does not know, strengths outside [0, 1], other numbers below their
                least.
            ParamsError: an empty stack; another number of channels.
        """
        if batch_size < 1 or (steps is not None and steps < 0):
            raise WeightEditError(f"batch_size {batch_size}, steps {steps} came; expected at least 1, and at least 0.")
        codes, amounts = self._wanted(stack, operation, strength)
        wide, parts, size = widen(stack, factor), [], (stack.height, stack.width)
        home, device = stack.params["layers.0.weight"].device, amounts.device
        with tqdm(total=len(stack), desc="editing", unit="INR", disable=not progress) as bar:
            for rows in torch.arange(len(stack)).split(batch_size):
                part, which = {k: p[rows.to(home)].to(device) for k, p in wide.params.items()}, rows.to(device)
                parts.append(self(part, stack.convention, size, codes[which], amounts[which], steps))
                bar.update(len(rows))
        return replace(wide, params={k: torch.cat([p[k] for p in parts]).to(home) for k in wide.params}, psnr=None)

    def _wanted(self, stack: INRStack, operation: str | None, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        """Codes and strengths, one per INR, on the editor's device."""
        if not len(stack):
            raise ParamsError("an empty stack came; expected at least one INR.")
        if operation is None and len(self.operations) > 1:
            raise WeightEditError(
                f"no operation came; this editor knows {', '.join(self.operations)}: choose one of them."
            )
        weight = self.predictor.last.weight
        device = weight.device
        amounts = torch.as_tensor(strength, dtype=weight.dtype, device=device)
        if amounts.dim() > 1 or (amounts.dim() == 1 and amounts.numel() != len(stack)):
            raise WeightEditError(
                f"strengths of shape {tuple(amounts.shape)} came for {len(stack)} INRs; expected one, or one each."
            )
        if not bool(((amounts >= 0) & (amounts <= 1)).all()):
            raise WeightEditError(f"strength {strength} came; expected 0 (nothing) to 1 (the operation).")
        code = self.predictor.code(next(iter(self.operations)) if operation is None else operation)
        return torch.full((len(stack),), code, device=device), amounts.expand(len(stack))

    def save_pretrained(self, folder: str | Path, card: str, training: Mapping[str, object] | None = None) -> Path:
        """Write model.safetensors, config.json and README.md (the card), atomically; as Editor.save_pretrained."""
        facts = {
            "kind": KIND,
            "predictor": self.predictor.config.to_dict(),
            "rule": asdict(self.rule.config),
            "steps": self.steps,
            "training": dict(training or {}),
        }
        return save_checkpoint(folder, self.state_dict(), facts, card)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> PredictiveEditor:
        """The editor of a checkpoint folder or hub repository, in eval mode on the CPU.

        Raises FileFormatError on anything missing, truncated or forged; nothing in a checkpoint is executed.
        """
        tensors, config = load_checkpoint(source, required=_CONFIG_KEYS)
        with built_from(source, tensors, KIND):
            stated: PredictiveEditorConfig = conform(PredictiveEditorConfig, config, CONFIG)
            editor = cls(Predictor(stated["predictor"]), LearnedKFAC(stated["rule"]), stated["steps"])
            load_into(editor, tensors)
        return editor.eval()
