"""The editor: a metanetwork with a delta head and the operation it was trained for.

One shot: parameters in, edited parameters out; then, if wanted, the steps of refinement.py. An editor may be informed:
guided by the target that the operation makes of the INR's own rendering (guidance.py), with its last layer solved
towards it. Training it is training.py's; what an operation means on images is operations.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weightedit.delta import apply_delta, propose_delta
from weightedit.editing.curvature import KFAC, RIDGE
from weightedit.editing.guidance import check_guides, guides
from weightedit.editing.refinement import RefinementRule, take_steps, target_of
from weightedit.editing.refinement import refine as refine_stack
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import ParamsError, SpecError, WeightEditError
from weightedit.files.checkpoint import CONFIG, built_from, load_checkpoint, load_into, save_checkpoint
from weightedit.files.schema import Facts, conform
from weightedit.inr.convention import Convention, StatedConvention, convert, network_of
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widened
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.registry import MetanetConfig, build_metanet, describe_metanet
from weightedit.network.features import PARAMETER, check_types
from weightedit.network.spec import Params

_CONFIG_KEYS = ("metanet", "operation", "convention")


@dataclass(frozen=True)
class EditorOptions:
    """What an editor does besides adding its metanetwork's delta.

    Attributes:
        guides: features made from the known target, names of guidance.GUIDES.
        solve_last: solve the last layer towards the known target, after the delta.
        widen: hidden widths of the edited INR, as a multiple of the given one's.
    """

    guides: tuple[str, ...] = ()
    solve_last: bool = False
    widen: int = 1

    def __post_init__(self) -> None:
        check_guides(self.guides)
        if self.widen < 1:
            raise SpecError(f"widen {self.widen} came; expected at least 1, which keeps the width.")

    @property
    def informed(self) -> bool:
        """Whether the target must be known, hence the size of the image."""
        return bool(self.guides) or self.solve_last


class EditorConfig(TypedDict):
    """What the config.json of an editor holds; editors older than the options have none, nor a kind."""

    kind: NotRequired[Literal["editor"]]
    metanet: MetanetConfig
    operation: str
    convention: StatedConvention
    options: NotRequired[EditorOptions]
    training: NotRequired[Facts]


class Editor(nn.Module):
    """Edits INRs by changing their weights: theta' = theta + metanet(theta).

    Args:
        metanet: with types_out (DELTA,).
        operation: name of the operation it was trained for.
        convention: under which it was trained; INRs of other conventions are converted exactly, and back.
        options: see EditorOptions; the metanetwork reads one more channel per guide.

    Raises TypeMismatchError if the metanetwork does not read just these channels, SpecError if it does not edit.

    >>> from weightedit.inr.siren import initial_params
    >>> from weightedit.metanet.scalegmn.network import ScaleGMN, ScaleGMNConfig
    >>> editor = Editor(ScaleGMN(ScaleGMNConfig(layers=1)), "dilate")
    >>> editor(initial_params(3, (2, 16, 16, 1)))["layers.1.weight"].shape
    torch.Size([3, 16, 16])
    """

    def __init__(
        self,
        metanet: Metanetwork,
        operation: str,
        convention: Convention | None = None,
        options: EditorOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options or EditorOptions()
        if metanet.embedding:
            raise SpecError(
                f"{type(metanet).__name__} came with embedding {metanet.embedding}; expected 0: this one reads, an "
                "editor needs one that edits."
            )
        check_types(metanet.types_in, (PARAMETER, *check_guides(self.options.guides)), "the editor's metanetwork")
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
        finite: bool = False,
    ) -> Params:
        """Edited parameters, differentiable in the editor's weights and in `params`.

        The target of an informed editor and of `refine`, and the guides made from it, count as constants.

        Args:
            params: one INR (layers.i.weight [out, in]) or a stack ([N, out, in]).
            convention: of `params`; None: the editor's own.
            refine: steps, after the one-shot edit, towards the operation of the rendering before it.
            size: height and width of that rendering; needed for `refine` and by an informed editor.
            rule: of these steps; None is KFAC().
            finite: the values of `params` are known to be finite; then none is read, and nothing waits for the device.

        Raises ParamsError on parameters that are no canonical network or not finite, SpecError on one that the
        metanetwork cannot treat, WeightEditError where a size is needed and missing.
        """
        if refine < 0 or (size is None and (refine or self.options.informed)):
            raise WeightEditError(
                f"refine {refine}, size {size} came; expected steps of at least 0 and a size: (28, 28)."
            )
        convention = convention or self.convention
        single = params["layers.0.weight"].dim() == 2 if "layers.0.weight" in params else False
        given = {name: tensor[None] for name, tensor in params.items()} if single else dict(params)
        own = convert(given, convention, self.convention)
        home = {name: tensor.dtype for name, tensor in own.items()}
        if refine or self.options.informed:  # curvature needs float32 at least
            own = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in own.items()}
        problem = wanted = None
        if size is not None and (refine or self.options.informed):
            spec = network_of(own, self.convention)
            (spec.check_shapes if finite else spec.check_params)(own)
            wanted = target_of(self.operation, INRStack(own, self.convention, *size))
            problem = RenderingProblem(self.convention, wanted)
        start = widened(own, self.options.widen, self.convention.frequency)
        edited = apply_delta(start, self.propose(start, problem, finite=finite))
        if problem is not None and self.options.solve_last:
            edited = problem.params(problem.solve_last(problem.layers(edited), RIDGE))
        if wanted is not None and refine:
            edited = take_steps(rule or KFAC(), self.convention, edited, wanted, refine)
        edited = convert({name: p.to(home[name]) for name, p in edited.items()}, self.convention, convention)
        return {name: tensor[0] for name, tensor in edited.items()} if single else edited

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations it knows: its own."""
        return (self.operation,)

    @property
    def kind(self) -> str:
        """What a person is told that it is."""
        return describe_metanet(self.metanet)[0]

    def propose(
        self, params: Mapping[str, Tensor], problem: RenderingProblem | None = None, *, finite: bool = False
    ) -> Params:
        """The delta for `params` under the editor's own convention, computed in the editor's floating-point type.

        Args:
            params: one INR or a stack; a stack if the editor has guides.
            problem: what the guides are made from.
            finite: as in `forward`.
        """
        spec, dtype = network_of(params, self.convention), next(self.parameters()).dtype
        extra = guides(self.options.guides, problem, dict(params)) if problem is not None else []
        cast = [(kind, {name: tensor.to(dtype) for name, tensor in guide.items()}) for kind, guide in extra]
        given = {name: tensor.to(dtype) for name, tensor in params.items()}
        delta = propose_delta(self.metanet, spec, given, cast, finite=finite)
        return {name: tensor.to(params[name].dtype) for name, tensor in delta.items()}

    @torch.no_grad()
    def edit(
        self,
        stack: INRStack,
        *,
        refine: int = 0,
        rule: RefinementRule | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> INRStack:
        """A whole stack edited in batches, on the editor's device; PSNR, which no longer holds, is dropped.

        Args:
            stack: INRs of any convention.
            refine: steps, after the one-shot edit, towards the operation of the rendering before it.
            rule: of these steps; None is KFAC().
            batch_size: INRs at once; None is 32 on a CPU, whose caches they keep warm, and 1,024 elsewhere.
            progress: show a tqdm bar.
        """
        device = next(self.parameters()).device
        batch_size = (32 if device.type == "cpu" else 1024) if batch_size is None else batch_size
        if batch_size < 1:
            raise WeightEditError(f"batch_size {batch_size} came; expected at least 1.")
        if not len(stack):
            raise ParamsError("an empty stack came; expected at least one INR.")
        stack.spec.check_params(stack.params)
        bar = tqdm(total=len(stack), desc=self.operation, unit="INR", disable=not progress)
        parts = []
        for start in range(0, len(stack), batch_size):
            part = {name: tensor[start : start + batch_size].to(device) for name, tensor in stack.params.items()}
            parts.append(self(part, stack.convention, size=(stack.height, stack.width), finite=True))
            bar.update(len(part["layers.0.weight"]))
        bar.close()
        home = stack.params["layers.0.weight"].device
        edited = replace(
            stack, params={k: torch.cat([part[k] for part in parts]).to(home) for k in stack.params}, psnr=None
        )
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
            "options": asdict(self.options),
            "training": dict(training or {}),
        }
        return save_checkpoint(folder, self.metanet.state_dict(), facts, card)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Editor:
        """The editor of a checkpoint folder, or of a repository on the Hugging Face hub, in eval mode on the CPU.

        Raises FileFormatError on anything missing, truncated or forged; nothing in a checkpoint is executed.
        """
        tensors, config = load_checkpoint(source, required=_CONFIG_KEYS)
        with built_from(source, tensors, "editor"):
            stated: EditorConfig = conform(EditorConfig, config, CONFIG)
            metanet = build_metanet(stated["metanet"]["name"], stated["metanet"]["config"])
            editor = cls(metanet, stated["operation"], stated["convention"], stated.get("options"))
            load_into(metanet, tensors)
        return editor.eval()
