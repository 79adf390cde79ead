"""The one-shot editor: a metanetwork with a delta head and the operation it was trained for.

Parameters in, edited parameters out; then, if wanted, the steps of refinement.py. An editor may be informed:
guided by the target that the operation makes of the INR's own rendering (guidance.py), with its last layer solved
towards it. Training it is training.py's; what an operation means on images is operations.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NotRequired, Self, TypedDict

import torch
from torch import Tensor

from weightedit.delta import apply_delta, propose_delta
from weightedit.editing.curvature import RIDGE
from weightedit.editing.editor import Editor, Wish
from weightedit.editing.guard import judged
from weightedit.editing.guidance import check_guides, guides
from weightedit.editing.operations import OPERATIONS
from weightedit.editing.refinement import shipped_rule, take_steps, target_of
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import SpecError, WeightEditError
from weightedit.files.location import CONFIG
from weightedit.files.schema import Facts, conform
from weightedit.inr.convention import Convention, StatedConvention, convert, network_of
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widened
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.registry import MetanetConfig, build_metanet, describe_metanet
from weightedit.network.features import PARAMETER, check_types
from weightedit.network.spec import Params


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
            raise SpecError(f"got widen {self.widen}; expected at least 1, which keeps the width.")

    @property
    def informed(self) -> bool:
        """Whether the target must be known, hence the size of the image."""
        return bool(self.guides) or self.solve_last


class EditorConfig(TypedDict):
    """What the config.json of a one-shot editor holds."""

    kind: Literal["editor"]
    metanet: MetanetConfig
    operation: str
    convention: StatedConvention
    options: NotRequired[EditorOptions]
    training: NotRequired[Facts]


class OneShotEditor(Editor):
    """Edits INRs by changing their weights: theta' = theta + metanet(theta).

    Args:
        metanet: with types_out (DELTA,).
        operation: name of the operation it was trained for.
        convention: under which it was trained; INRs of other conventions are converted exactly, and back.
        options: see EditorOptions; the metanetwork reads one more channel per guide.

    Raises TypeMismatchError if the metanetwork does not read just these channels, SpecError if it does not edit.

    >>> from weightedit.inr.siren import initial_params
    >>> from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
    >>> from weightedit.metanet.gauge_gmn.network import GaugeGMN
    >>> editor = OneShotEditor(GaugeGMN(GaugeGMNConfig(layers=1)), "dilate")
    >>> editor.edit_params(initial_params(3, (2, 16, 16, 1)))["layers.1.weight"].shape
    torch.Size([3, 16, 16])
    """

    kind = "editor"
    takes = ("rule",)
    steps = 0

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
                f"got {type(metanet).__name__} with embedding {metanet.embedding}; expected 0: this one reads, an "
                "editor needs one that edits."
            )
        check_types(metanet.types_in, (PARAMETER, *check_guides(self.options.guides)), "the editor's metanetwork")
        self.metanet = metanet
        self.operation = operation
        self.convention = convention or Convention()
        if self.options.informed and operation not in OPERATIONS:
            raise SpecError(
                f"got guides or a solved last layer for {operation!r}, which is known by examples alone; expected an "
                "operation that is known, to make its target: leave them out."
            )

    @property
    def operations(self) -> tuple[str, ...]:
        """See Editor: its own."""
        return (self.operation,)

    @property
    def summary(self) -> str:
        """See Editor."""
        return describe_metanet(self.metanet)[0]

    @property
    def native_convention(self) -> Convention:
        """See Editor."""
        return self.convention

    @property
    def channels(self) -> int | None:
        """See Editor."""
        return getattr(getattr(self.metanet, "config", None), "outputs", 0) or None

    @property
    def delta_alone(self) -> Metanetwork | None:
        """See Editor."""
        return None if self.options.informed or self.options.widen > 1 else self.metanet

    @property
    def stored(self) -> Metanetwork:
        """See Pretrained."""
        return self.metanet

    def edited(self, part: INRStack, wish: Wish) -> Params:
        """See Editor; the steps go towards the operation of the rendering before the edit.

        They start from the edit, or from the INR itself where that is nearer.
        """
        edited = self.edit_params(part.params, part.convention, size=(part.height, part.width), finite=True)
        if not wish.steps:
            return edited
        if self.operation not in OPERATIONS:
            raise WeightEditError(
                f"got steps={wish.steps} after {self.operation!r}, which is known by examples alone; expected 0, since "
                "there is nothing to step to: leave them out."
            )
        rule = wish.rule or shipped_rule(part.params["layers.0.weight"].device)
        targets = target_of(self.operation, part)
        start = judged(part, replace(part, params=edited), targets).stack.params
        return take_steps(rule, part.convention, start, targets, wish.steps)

    def edit_params(
        self,
        params: Mapping[str, Tensor],
        convention: Convention | None = None,
        *,
        size: tuple[int, int] | None = None,
        finite: bool = False,
    ) -> Params:
        """Edited parameters, without steps, differentiable in the editor's weights and in `params`.

        The target of an informed editor, and the guides made from it, count as constants.

        Args:
            params: one INR (layers.i.weight [out, in]) or a stack ([N, out, in]).
            convention: of `params`; None: the editor's own.
            size: height and width of the rendering that an informed editor is guided by; others need none.
            finite: the values of `params` are known to be finite; then none is read, and nothing waits for the device.

        Raises ParamsError on parameters that are no canonical network or not finite, SpecError on one that the
        metanetwork cannot treat, WeightEditError where a size is needed and missing.
        """
        if size is None and self.options.informed:
            raise WeightEditError("got no size for an informed editor; expected that of its pictures: size=(28, 28).")
        convention = convention or self.convention
        single = params["layers.0.weight"].dim() == 2 if "layers.0.weight" in params else False
        given = {name: tensor[None] for name, tensor in params.items()} if single else dict(params)
        own = convert(given, convention, self.convention)
        home = {name: tensor.dtype for name, tensor in own.items()}
        problem = None
        if size is not None and self.options.informed:
            # Curvature needs float32 at least.
            own = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in own.items()}
            spec = network_of(own, self.convention)
            (spec.check_shapes if finite else spec.check_params)(own)
            problem = RenderingProblem(
                self.convention, target_of(self.operation, INRStack(own, self.convention, *size))
            )
        start = widened(own, self.options.widen, self.convention.frequency)
        edited = apply_delta(start, self.propose(start, problem, finite=finite))
        if problem is not None and self.options.solve_last:
            edited = problem.params(problem.solve_last(problem.layers(edited), RIDGE))
        edited = convert({name: p.to(home[name]) for name, p in edited.items()}, self.convention, convention)
        return {name: tensor[0] for name, tensor in edited.items()} if single else edited

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

    def described(self) -> dict[str, Any]:
        """See Pretrained. Raises SpecError for a metanetwork that is not registered."""
        name, config = describe_metanet(self.metanet)
        return {
            "metanet": {"name": name, "config": config},
            "operation": self.operation,
            "convention": self.convention.to_dict(),
            "options": asdict(self.options),
        }

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """See Pretrained."""
        stated: EditorConfig = conform(EditorConfig, config, CONFIG)
        metanet = build_metanet(stated["metanet"]["name"], stated["metanet"]["config"])
        return cls(metanet, stated["operation"], stated["convention"], stated.get("options"))
