"""The card of a weight set: one JSON file that says how to read the Parquet files beside it, and where they come from.

Here: what a card states, writing its text, reading it strictly. Not here: the Parquet files (weight_set_tables.py), and
the set as a whole (weight_sets.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightedit.data.weight_set_tables import column_names
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.stack import INRStack
from weightedit.spec import NetworkSpec

FORMAT = "weightedit-weight-set"
VERSION = 1
CARD = "card.json"
SPLITS = ("train", "validation", "test")

_KEYS = {"format", "version", "widths", "activation", "convention", "height", "width", "channels", "parameters"}
_KEYS |= {"columns", "splits", "psnr_histogram", "provenance", "facts"}


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a weight set, checked for completeness and version.

    Raises:
        FileFormatError: no folder, no card, no JSON, missing or unknown keys, another version, another format.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise FileFormatError(
            f"there is no {path}; expected the card of a weight set: check the path, or make a set with "
            "tasks/fit_inrs.py."
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is no readable JSON ({error}); expected a card: write the set again.") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("version") != VERSION:
        raise FileFormatError(
            f"{path} is not of the format {FORMAT!r}, version {VERSION}, which is expected here: read it with the "
            "weightedit that wrote it."
        )
    if set(card) != _KEYS:
        raise FileFormatError(f"{path} has the keys {sorted(card)}; expected {sorted(_KEYS)}: write the set again.")
    try:
        Convention.from_dict(card["convention"])
        spec = NetworkSpec.siren(tuple(card["widths"]), card["convention"]["omega"])
        stated = {name: tuple(shape) for name, shape in card["parameters"]}
        _check_values(card)
    except (WeightEditError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: {error}; expected the card as it was written: write the set again.") from error
    if list(stated.items()) != list(spec.param_shapes().items()) or card["channels"] != spec.widths[-1]:
        raise FileFormatError(
            f"{path} states the parameters {stated} for widths {card['widths']} and {card['channels']} channels; "
            f"expected {spec.param_shapes()}: write the set again."
        )
    return card


def _check_values(card: dict[str, Any]) -> None:
    for name in ("height", "width", "channels"):
        if not isinstance(card[name], int) or card[name] < 1:
            raise ValueError(f"{name} is {card[name]!r}, not a positive whole number")
    for split, stated in card["splits"].items() if isinstance(card["splits"], dict) else [("splits", None)]:
        if split not in SPLITS or not isinstance(stated, dict) or set(stated) != {"count", "images", "bytes", "sha256"}:
            raise ValueError(f"the split {split!r} has {stated!r}, not count, images, bytes and sha256")


def card_text(stack: INRStack, splits: dict[str, Any], facts: dict[str, Any]) -> str:
    """The card of these INRs as JSON text.

    Args:
        stack: all INRs of the set.
        splits: what was written: split -> count, images (distinct), bytes, sha256.
        facts: the user's own, plain JSON values.

    Raises:
        WeightEditError: facts that are no JSON.
    """
    card = {
        "format": FORMAT,
        "version": VERSION,
        "widths": list(stack.widths),
        "activation": "sine",
        "convention": stack.convention.to_dict(),
        "height": stack.height,
        "width": stack.width,
        "channels": stack.widths[-1],
        "parameters": [[name, list(shape)] for name, shape in stack.spec.param_shapes().items()],
        "columns": column_names(stack),
        "splits": splits,
        "psnr_histogram": _histogram(stack.psnr),
        "provenance": stack.provenance,
        "facts": facts,
    }
    try:
        return json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise WeightEditError(
            f"facts {facts!r} for the card are no JSON ({error}): expected strings, finite numbers, lists and dicts; "
            "convert them."
        ) from error


def _histogram(psnr: Tensor | None) -> dict[str, list[float]] | None:
    """Counts of the finite values in bins of 1 dB."""
    if psnr is None or not bool(torch.isfinite(psnr).any()):
        return None
    values = psnr[torch.isfinite(psnr)].double().cpu()
    low = math.floor(values.min())
    counts = (values.floor().long() - low).bincount()
    return {"dB": [float(low + n) for n in range(len(counts) + 1)], "count": counts.tolist()}
