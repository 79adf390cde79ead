"""What every checkpoint of weightedit has in common: a kind, a config that makes the module, weights, and a card.

Here: saving, loading by kind, and publishing. Not here: the folder itself (checkpoint.py), where it is (location.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from torch import nn

from weightedit.errors import FileFormatError
from weightedit.files.checkpoint import built_from, load_checkpoint, load_into, push_to_hub, save_checkpoint
from weightedit.files.reading import shortened

KINDS = {
    "editor": "weightedit.editing.one_shot:OneShotEditor",
    "predictive editor": "weightedit.editing.predictive_editor:PredictiveEditor",
    "refinement rule": "weightedit.editing.curvature:LearnedKFAC",
    "mlp-rule": "weightedit.optim.mlp_rule:MLPRule",
    "metanet-rule": "weightedit.optim.metanet_rule:MetanetRule",
    "learned-rule": "weightedit.optim.learned_rule:LearnedRule",
    "predictor": "weightedit.prediction.predictor:WeightSpacePredictor",
}
"""The value of "kind" in a config.json -> the class that saves and loads such checkpoints."""


class Pretrained(nn.Module, ABC):
    """A module whose kind, description and weights are all that it is, so that a checkpoint folder can keep it.

    Attributes:
        kind: of its checkpoints; a key of KINDS.
        what: it is called in messages.
    """

    kind: ClassVar[str]
    what: ClassVar[str] = "checkpoint"

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What config.json says of it, JSON values; `from_description` makes the same one, without its weights."""

    @classmethod
    @abstractmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """The module that a config.json describes; what it raises becomes a FileFormatError."""

    @property
    def stored(self) -> nn.Module:
        """The module whose weights are kept: itself, unless a part holds them all."""
        return self

    def save_pretrained(
        self, folder: str | Path, card: str | None = None, training: Mapping[str, object] | None = None
    ) -> Path:
        """Write model.safetensors, config.json and README.md (the model card), atomically.

        Args:
            folder: where; a checkpoint that is there is replaced, anything else refused.
            card: Markdown: protocol, figures and the commands that made them. None: `default_card`.
            training: the whole configuration of the training, JSON values.

        Returns the folder, absolute. Raises as `save_checkpoint` does.
        """
        facts = {"kind": self.kind, **self.described(), "training": dict(training or {})}
        return save_checkpoint(folder, self.stored.state_dict(), facts, default_card(self) if card is None else card)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """The module of a checkpoint, in eval mode on the CPU; of an abstract class, whichever kind the folder holds.

        Args:
            source: a folder, the name of a shipped checkpoint, or owner/name on the hub, see `location.locate`.
            revision: on the hub.

        Raises FileFormatError on another kind, and on anything missing, truncated or forged; nothing is executed.
        """
        tensors, config = load_checkpoint(source, required=("kind",), revision=revision)
        found = class_of(config["kind"])
        if found is None or not issubclass(found, cls):
            known = [kind for kind in KINDS if issubclass(class_of(kind) or nn.Module, cls)]
            raise FileFormatError(
                f"{source} holds a checkpoint of kind {shortened(config['kind'])}; expected one of kind "
                f"{' or '.join(known)}: name one."
            )
        with built_from(source, tensors, found.what):
            built = found.from_description(config)
            load_into(built.stored, tensors)
        return built.eval()

    def push_to_hub(self, repo_id: str, card: str | None = None, **options: Any) -> str:
        """Publish as a model repository on the Hugging Face hub; returns the address of the commit.

        Args:
            repo_id: `owner/name`; made if it does not exist.
            card: as for `save_pretrained`.
            options: private, token, message, see `checkpoint.push_to_hub`.
        """
        with TemporaryDirectory() as place:
            return push_to_hub(self.save_pretrained(Path(place) / "checkpoint", card), repo_id, **options)


def class_of(kind: object) -> type[Pretrained] | None:
    """The class of checkpoints of this kind; None for a kind that is not known."""
    if not isinstance(kind, str) or kind not in KINDS:
        return None
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name)


def default_card(model: Pretrained) -> str:
    """The card of a checkpoint of which nobody said more: what it is, how to load it, and that nothing was measured."""
    from weightedit import __version__

    rows = "\n".join(f"| {name} | {shortened(value)} |" for name, value in model.described().items())
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"# {model.kind[0].upper()}{model.kind[1:]}\n\nSaved by weightedit {__version__}. Load it with\n\n"
        f"```python\nimport weightedit as we\n\nmodel = we.load(FOLDER)  # a {type(model).__name__}\n```\n\n"
        f"| | |\n|---|---|\n| parameters | {count:,} |\n{rows}\n\nNo figures were recorded with it.\n"
    )
