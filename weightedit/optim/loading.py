"""Any learned update rule from its folder: which kind it is, its config says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from weightedit.errors import FileFormatError
from weightedit.files.checkpoint import load_checkpoint
from weightedit.files.reading import shortened
from weightedit.optim.rule_module import RuleModule

KINDS = {
    "mlp-rule": ("weightedit.optim.mlp_rule", "MLPRule"),
    "learned-rule": ("weightedit.optim.learned_rule", "LearnedRule"),
    "metanet-rule": ("weightedit.optim.metanet_rule", "MetanetRule"),
}
"""The value of "kind" in a config.json -> module and class that saves and loads such rules."""


def load_rule(source: str | Path) -> RuleModule:
    """The update rule of a checkpoint folder or hub repository, in eval mode on the CPU.

    Raises FileFormatError on another kind of checkpoint, and on anything missing, truncated or forged; nothing in a
    checkpoint is executed.
    """
    kind = load_checkpoint(source)[1].get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise FileFormatError(
            f"{source} holds a checkpoint of kind {shortened(kind)}; expected an update rule, of kind "
            f"{' or '.join(sorted(KINDS))}: give the folder of a rule that tasks/meta_train.py saved."
        )
    module, name = KINDS[kind]
    return getattr(import_module(module), name).from_pretrained(source)
