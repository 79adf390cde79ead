"""The card of a weight set: one JSON file that says how to read the Parquet files beside it, and where they come from.

Here: what a card states, writing its text, reading it strictly. Not here: the Parquet files (weight_set_tables.py), and
the set as a whole (weight_sets.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from weightedit.data.weight_set_tables import column_names
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.reading import check_pixels, read_json, refusing, shortened
from weightedit.files.schema import Count, Facts, Width, Widths, conform
from weightedit.inr.convention import StatedConvention
from weightedit.inr.stack import INRStack

FORMAT = "weightedit-weight-set"
VERSION = 1
CARD = "card.json"
SPLITS = ("train", "validation", "test")


class Split(TypedDict):
    """What a card says of one Parquet file: rows, distinct images, its size and SHA-256."""

    count: Count
    images: Count
    bytes: Count
    sha256: str


class Histogram(TypedDict):
    """PSNRs in bins of 1 dB: the edges, and the numbers between them."""

    dB: list[float]
    count: list[Count]


class Card(TypedDict):
    """What a card holds."""

    format: Literal["weightedit-weight-set"]
    version: Literal[1]
    widths: Widths
    activation: Literal["sine"]
    convention: StatedConvention
    height: Width
    width: Width
    channels: Width
    parameters: list[tuple[str, list[Width]]]
    columns: list[Literal["weights", "image", "index", "label", "psnr"]]
    splits: dict[Literal["train", "validation", "test"], Split]
    psnr_histogram: Histogram | None
    provenance: dict[str, str]
    facts: Facts


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
    card = read_json(path)
    if card.get("format") != FORMAT or card.get("version") != VERSION:
        raise FileFormatError(
            f"{path} is not of the format {FORMAT!r}, version {VERSION}, which is expected here: read it with the "
            "weightedit that wrote it."
        )
    with refusing(path, "a card: write the set again"):
        held: Card = conform(Card, card, str(path))
        spec = held["convention"].spec(tuple(held["widths"]))
        check_pixels(held["height"], held["width"])
    stated = {name: tuple(shape) for name, shape in held["parameters"]}
    if list(stated.items()) != list(spec.param_shapes().items()) or held["channels"] != spec.widths[-1]:
        raise FileFormatError(
            f"{path} states the parameters {shortened(stated)} for widths {shortened(held['widths'])} and "
            f"{held['channels']} channels; expected {shortened(spec.param_shapes())}: write the set again."
        )
    return card


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
