"""The editor: a metanetwork with a delta head and the operation it was trained for.

One shot: parameters in, edited parameters out; then, if wanted, the steps of refinement.py. Training it is
tasks/edit_inrs.py; what an operation means on images is operations.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weightedit.checkpoint import load_checkpoint, load_into, save_checkpoint
from weightedit.delta import apply_delta, propose_delta
from weightedit.editing.curvature import KFAC
from weightedit.editing.refinement import RefinementRule, target_of
from weightedit.editing.refinement import refine as refine_stack
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.inr.convention import Convention, convert
from weightedit.inr.stack import INRStack
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.registry import build_metanet, describe_metanet
from weightedit.spec import NetworkSpec, Params

_CONFIG_KEYS = ("metanet", "operation", "convention")


class Editor(nn.Module):
    """Edits INRs by changing their weights: theta' = theta + metanet(theta).

    Args:
        metanet: with types_out (DELTA,).
        operation: name of the operation it was trained for.
        convention: under which it was trained; INRs of other conventions are converted exactly, and back.

    >>> from weightedit.inr.siren import initial_params
    >>> from weightedit.metanet.scalegmn import ScaleGMN, ScaleGMNConfig
    >>> editor = Editor(ScaleGMN(ScaleGMNConfig(layers=1)), "dilate")
    >>> editor(initial_params(3, (2, 16, 16, 1)))["layers.1.weight"].shape
    torch.Size([3, 16, 16])
    """

    def __init__(self, metanet: Metanetwork, operation: str, convention: Convention | None = None) -> None:
        super().__init__()
        self.metanet = metanet
        self.operation = operation
        self.convention = convention or Convention()

    def forward(
        self,
        params: Mapping[str, Tensor],
        convention: Convention | None = None,
        *,
        refine: int = 0,
        size: tuple[int, int] | None = None,
        rule: RefinementRule | None = None,
    ) -> Params:
        """Edited parameters, differentiable in the editor's weights and in `params`.

        Args:
            params: one INR (layers.i.weight [out, in]) or a stack ([N, out, in]).
            convention: of `params`; None: the editor's own.
            refine: steps, after the one-shot edit, towards the operation of the rendering before it.
            size: height and width of that rendering; needed for `refine`.
            rule: of these steps; None is KFAC().

        Raises ParamsError on parameters that are no canonical network or not finite, SpecError on one that the
        metanetwork cannot treat, WeightEditError on `refine` without `size`.
        """
        convention = convention or self.convention
        own = convert(dict(params), convention, self.convention)
        edited = convert(apply_delta(own, self.propose(own)), self.convention, convention)
        if not refine:
            return edited
        if size is None or refine < 0:
            raise WeightEditError(
                f"refine {refine}, size {size} came; expected steps of at least 0 and a size: (28, 28)."
            )
        single = edited["layers.0.weight"].dim() == 2
        before, after = ({k: p[None] if single else p for k, p in which.items()} for which in (params, edited))
        targets = target_of(self.operation, INRStack(before, convention, *size))
        after = (rule or KFAC()).refine(RenderingProblem(convention, targets), after, refine)
        return {name: tensor[0] if single else tensor for name, tensor in after.items()}

    def propose(self, params: Mapping[str, Tensor]) -> Params:
        """The delta for `params` under the editor's own convention, computed in the editor's floating-point type."""
        spec, dtype = NetworkSpec.from_params(params, self.convention.omega), next(self.parameters()).dtype
        delta = propose_delta(self.metanet, spec, {name: tensor.to(dtype) for name, tensor in params.items()})
        return {name: tensor.to(params[name].dtype) for name, tensor in delta.items()}

    @torch.no_grad()
    def edit(
        self,
        stack: INRStack,
        *,
        refine: int = 0,
        rule: RefinementRule | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> INRStack:
        """A whole stack edited in batches, on the editor's device; PSNR, which no longer holds, is dropped.

        Args:
            stack: INRs of any convention.
            refine: steps, after the one-shot edit, towards the operation of the rendering before it.
            rule: of these steps; None is KFAC().
            batch_size: INRs at once; 32 keep a CPU's caches warm.
            progress: show a tqdm bar.
        """
        if batch_size < 1:
            raise WeightEditError(f"batch_size {batch_size} came; expected at least 1.")
        if not len(stack):
            raise ParamsError("an empty stack came; expected at least one INR.")
        device = next(self.parameters()).device
        bar = tqdm(total=len(stack), desc=self.operation, unit="INR", disable=not progress)
        parts = []
        for start in range(0, len(stack), batch_size):
            part = {name: tensor[start : start + batch_size].to(device) for name, tensor in stack.params.items()}
            parts.append(self(part, stack.convention))
            bar.update(len(part["layers.0.weight"]))
        bar.close()
        home = stack.params["layers.0.weight"].device
        edited = stack.with_params({k: torch.cat([part[k] for part in parts]).to(home) for k in stack.params})
        if not refine:
            return edited
        return refine_stack(edited, target_of(self.operation, stack), refine, rule=rule, progress=progress)

    def save_pretrained(self, folder: str | Path, card: str, training: Mapping[str, object] | None = None) -> Path:
        """Write model.safetensors, config.json and README.md (the model card), atomically.

        Args:
            folder: where.
            card: Markdown text: protocol, figures and the commands that made them.
            training: the whole configuration of the training, plain JSON data.
        """
        name, config = describe_metanet(self.metanet)
        facts = {
            "kind": "editor",
            "metanet": {"name": name, "config": config},
            "operation": self.operation,
            "convention": self.convention.to_dict(),
            "training": dict(training or {}),
        }
        return save_checkpoint(folder, self.metanet.state_dict(), facts, card)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Editor:
        """The editor of a checkpoint folder, or of a repository on the Hugging Face hub, in eval mode on the CPU.

        Raises FileFormatError on anything missing, truncated or forged; nothing in a checkpoint is executed.
        """
        tensors, config = load_checkpoint(source, required=_CONFIG_KEYS)
        try:
            metanet = build_metanet(config["metanet"]["name"], config["metanet"]["config"])
            editor = cls(metanet, str(config["operation"]), Convention.from_dict(config["convention"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{source} holds a config that makes no editor ({error}); expected one that save_pretrained wrote. "
                "Download or train it again."
            ) from None
        load_into(metanet, tensors)
        return editor.eval()
