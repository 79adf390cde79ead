"""Any editor from its folder: which kind it is, its config says."""

from __future__ import annotations

from pathlib import Path

from weightedit.editing.editor import Editor
from weightedit.editing.predictive_editor import KIND, PredictiveEditor
from weightedit.files.checkpoint import load_checkpoint


def load_editor(source: str | Path) -> Editor | PredictiveEditor:
    """The editor of a checkpoint folder or hub repository, in eval mode on the CPU.

    Raises FileFormatError on anything missing, truncated or forged; nothing in a checkpoint is executed.
    """
    kind = load_checkpoint(source)[1].get("kind")
    return PredictiveEditor.from_pretrained(source) if kind == KIND else Editor.from_pretrained(source)
