"""What a path holds, in a few plain facts: INR files, weight sets, editors, refinement rules. Printing is main.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from weightedit.data.inr_files import load_inrs
from weightedit.data.weight_set_cards import CARD, read_card
from weightedit.editing.curvature import LearnedKFAC
from weightedit.editing.editor import Editor
from weightedit.editing.predictive_editor import KIND, PredictiveEditor
from weightedit.errors import FileFormatError
from weightedit.files.checkpoint import CONFIG, FILES, load_checkpoint
from weightedit.files.schema import conform
from weightedit.inr.convention import DWSNETS, NFN, SIREN_PYTORCH, Convention
from weightedit.inr.stack import INRStack
from weightedit.network.spec import NetworkSpec

_NAMES = {DWSNETS: "DWSNets' and weightedit's default", NFN: "NFN's", SIREN_PYTORCH: "siren-pytorch's"}
_SPLITS = {0: "train", 1: "validation", 2: "test"}

Facts = list[tuple[str, str]]


def describe(path: str | Path, convention: Convention | None = None, size: tuple[int, int] | None = None) -> Facts:
    """Name and value of what is known about a path, in the order to be read.

    Args:
        path: an INR file or a folder of them, a weight set, or the checkpoint folder of an editor or a rule.
        convention, size: of foreign INR files, as load_inrs takes them.

    Raises:
        FileFormatError: nothing there, or nothing that is known.
    """
    folder = Path(path)
    if (folder / CARD).is_file():
        return _weight_set(folder)
    if (folder / CONFIG).is_file():
        kind = load_checkpoint(folder)[1].get("kind")
        known = {"refinement rule": _rule, KIND: _predictive_editor}
        return known.get(str(kind), _editor)(folder)
    return _inrs(load_inrs(path, convention, size=size))


def symmetry_lines(spec: NetworkSpec) -> Facts:
    """Per layer, what it is and which changes of its neurons leave the network's function as it is."""
    lines = []
    for number, (layer, group) in enumerate(zip(spec.layers, [*spec.neuron_groups(), None], strict=True)):
        if group is None:
            text = "linear output, no symmetry of its own"
        else:
            parts = [f"permutation of {layer.fan_out} neurons"]
            parts += ["positive scale"] if group.scale else []
            parts += ["sign flip"] if group.flip else []
            parts += ["half-period shift"] if group.shift else []
            activation = layer.activation
            omega = f"(omega {activation.parameter:g})" if activation.name == "sine" else ""
            text = f"{activation.name}{omega}: {', '.join(parts)}"
        lines.append((f"layer {number}", f"{layer.fan_in} -> {layer.fan_out}, {text}"))
    return lines


def _inrs(stack: INRStack) -> Facts:
    dtype = str(stack.params["layers.0.weight"].dtype).removeprefix("torch.")
    facts = [
        ("kind", "INRs (SIRENs)"),
        ("count", f"{len(stack):,}"),
        *_network(stack.widths, stack.convention, f"{stack.height} x {stack.width}"),
        ("type", dtype),
    ]
    if stack.psnr is not None and len(stack):
        places = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        # No interpolation: a solid picture that is met exactly has an infinite PSNR, and inf * 0 is NaN.
        low, middle, high = stack.psnr.double().quantile(places, interpolation="lower").tolist()
        facts.append(("PSNR", f"{low:.2f} to {high:.2f} dB, median {middle:.2f}"))
    else:
        facts.append(("PSNR", "not recorded"))
    if stack.split is not None:
        counts = {name: int((stack.split == number).sum()) for number, name in _SPLITS.items()}
        facts.append(("splits", ", ".join(f"{name} {count:,}" for name, count in counts.items())))
    if stack.label is not None and len(stack):
        facts.append(("labels", f"{len(stack.label.unique())} classes"))
    return [*facts, *_rows("provenance", stack.provenance), *symmetry_lines(stack.spec)]


def _weight_set(folder: Path) -> Facts:
    card = read_card(folder)
    convention = Convention.from_dict(card["convention"])
    counts = {split: stated["count"] for split, stated in card["splits"].items()}
    facts = [
        ("kind", "weight set (INRs with their images)"),
        ("count", f"{sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})"),
        *_network(tuple(card["widths"]), convention, f"{card['height']} x {card['width']}"),
    ]
    histogram = card["psnr_histogram"]
    if histogram is None:
        facts.append(("PSNR", "not recorded"))
    else:
        edges = histogram["dB"]
        facts.append(("PSNR", f"{edges[0]:g} to {edges[-1]:g} dB (in bins of 1 dB)"))
    spec = convention.spec(tuple(card["widths"]))
    return [*facts, *_rows("provenance", card["provenance"]), *symmetry_lines(spec)]


def _editor(folder: Path) -> Facts:
    editor = Editor.from_pretrained(folder)
    _, config = load_checkpoint(folder)
    metanet, training = config["metanet"], config.get("training")
    size = sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())
    facts = [
        ("kind", "editor"),
        ("operation", editor.operation),
        ("metanet", f"{metanet['name']}, {sum(p.numel() for p in editor.parameters()):,} parameters"),
        ("size", f"{size / 1e6:.2f} MB"),
        ("config", ", ".join(f"{name} {value}" for name, value in metanet["config"].items())),
        ("convention", _convention(editor.convention)),
    ]
    try:
        figures: dict[str, float] = conform(dict[str, float], (training or {}).get("figures"), "figures")
    except FileFormatError:
        return [*facts, ("test MSE", f"not recorded in {CONFIG}; see README.md in the folder")]
    ordered = {f"{value:.3e}": name for name, value in sorted(figures.items(), key=lambda item: -item[1])}
    return [*facts, *_rows("test MSE", ordered)]


def _predictive_editor(folder: Path) -> Facts:
    editor = PredictiveEditor.from_pretrained(folder)
    config = editor.predictor.config.to_dict()
    facts = [
        ("kind", KIND),
        ("operations", ", ".join(editor.operations)),
        ("parameters", f"{sum(p.numel() for p in editor.parameters()):,}"),
        ("steps", f"{editor.steps} of learned K-FAC"),
        ("config", ", ".join(f"{name} {value}" for name, value in config.items() if name != "operations")),
    ]
    stated = load_checkpoint(folder)[1].get("training", {}).get("figures", {})
    try:
        figures: dict[str, dict[str, float]] = conform(dict[str, dict[str, float]], stated, "figures")
    except FileFormatError:
        figures = {}
    figures = {name: found for name, found in figures.items() if {"edited", "do nothing"} <= found.keys()}
    errors = {name: f"{found['edited']:.3e} (do nothing {found['do nothing']:.3e})" for name, found in figures.items()}
    return [*facts, *_rows("test MSE", errors)]


def _rule(folder: Path) -> Facts:
    rule = LearnedKFAC.from_pretrained(folder)
    config = ", ".join(f"{name} {value}" for name, value in asdict(rule.config).items())
    return [
        ("kind", "refinement rule"),
        ("rule", f"learned K-FAC, {sum(p.numel() for p in rule.parameters()):,} parameters"),
        ("config", config),
        ("test MSE", "by number of steps: see README.md in the folder"),
    ]


def _network(widths: tuple[int, ...], convention: Convention, size: str) -> Facts:
    spec = convention.spec(widths)
    return [
        ("widths", f"{'-'.join(map(str, widths))} ({spec.parameter_count:,} parameters each)"),
        ("image", f"{size} pixels, {widths[-1]} channel{'s' if widths[-1] > 1 else ''}"),
        ("convention", _convention(convention)),
    ]


def _convention(convention: Convention) -> str:
    first = "column" if convention.coordinates == "xy" else "row"
    name = f"; {_NAMES[convention]}" if convention in _NAMES else ""
    omega = convention.omega if isinstance(convention.omega, tuple) else (convention.omega,)
    sines = "sine" in (convention.activation, convention.last)
    words = ["omega " + ", then ".join(f"{number:g}" for number in omega)] if sines else []
    words += [f"{first} first ({convention.coordinates})"]
    words += [f"coordinates {_ranges(convention.ranges)}"] if convention.ranges else []
    words += [f"image in [{convention.low:g}, {convention.high:g}]", f"{convention.offset:g} added to the output"]
    words += [f"{convention.activation} between the layers"] if convention.activation != "sine" else []
    words += [f"{convention.last} at the end"] if convention.last != "linear" else []
    return f"{', '.join(words)}{name}"


def _ranges(ranges: tuple[tuple[float, float], ...]) -> str:
    return " and ".join(f"{first:g} to {last:g}" for first, last in ranges)


def _rows(name: str, values: Mapping[str, object]) -> Facts:
    """One row per entry, the first one named."""
    return [(name if n == 0 else "", f"{key} {value}") for n, (key, value) in enumerate(values.items())]
