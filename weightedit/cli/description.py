"""What a path holds, in a few plain facts: INRs, weight sets, CNN zoos, checkpoints of every kind. main.py prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from weightedit.cli.decibels import decibels
from weightedit.data.cnn_zoo import read_zoo_card
from weightedit.data.inr_files import load_inrs
from weightedit.data.layer_names import Rename
from weightedit.data.weight_set_cards import read_card
from weightedit.editing.editor import Editor
from weightedit.files.checkpoint import load_checkpoint
from weightedit.files.location import CARD, CONFIG, FILES, locate
from weightedit.files.pretrained import Pretrained
from weightedit.files.reading import shortened
from weightedit.inr.convention import DWSNETS, NFN, SIREN_PYTORCH, Convention
from weightedit.inr.stack import INRStack
from weightedit.loading import CHECKPOINT, CNN_ZOO, INRS, WEIGHT_SET, kind_of
from weightedit.network.spec import NetworkSpec

_NAMES = {DWSNETS: "DWSNets' and weightedit's default", NFN: "NFN's", SIREN_PYTORCH: "siren-pytorch's"}
_SPLITS = {0: "train", 1: "validation", 2: "test"}

Facts = list[tuple[str, str]]


def describe(
    path: str | Path,
    convention: Convention | None = None,
    size: tuple[int, int] | None = None,
    rename: Rename | None = None,
) -> Facts:
    """Name and value of what is known about a path, in the order to be read.

    Args:
        path: anything that `load` takes.
        convention, size, rename: of foreign INR files, as load_inrs takes them.

    Raises:
        FileFormatError: nothing there, or nothing that is known.
    """
    kind = kind_of(path)
    if kind is CHECKPOINT:
        return _checkpoint(path)
    if kind is WEIGHT_SET:
        return _weight_set(Path(path))
    if kind is CNN_ZOO:
        return _zoo(Path(path))
    if kind is INRS:
        return _inrs(load_inrs(path, convention, size=size, rename=rename))
    return [("kind", kind.name), ("loads with", f"weightedit.load({str(path)!r}) in Python")]


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
        *_network(stack.widths, stack.convention, f"{stack.height} x {stack.width}", stack.shape),
        ("type", dtype),
    ]
    if stack.psnr is not None and len(stack):
        places = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        # No interpolation: a solid picture that is met exactly has an infinite PSNR, and inf * 0 is NaN.
        found = stack.psnr.double().quantile(places, interpolation="lower").tolist()
        low, middle, high = (decibels(psnr, 2) for psnr in found)
        facts.append(("PSNR", "exact" if low == "exact" else f"{low} to {high} dB, median {middle}"))
    else:
        facts.append(("PSNR", "not recorded"))
    if stack.split is not None:
        counts = {name: int((stack.split == number).sum()) for number, name in _SPLITS.items()}
        facts.append(("splits", ", ".join(f"{name} {count:,}" for name, count in counts.items())))
    if stack.label is not None and len(stack):
        facts.append(("labels", f"{len(stack.label.unique())} classes"))
    return [*facts, *_rows("provenance", stack.provenance), *_history(stack), *symmetry_lines(stack.spec)]


def _history(stack: INRStack) -> Facts:
    """What was done to the INRs, and how much of it can be undone."""
    if not stack.history:
        return [("history", "no edit, nothing to undo")]
    told = {str(number): edit.told for number, edit in enumerate(stack.history, start=1)}
    kept = [edit for edit in stack.history if edit.before is not None]
    words = (
        f"the last {len(kept)} of {len(told)} by edit --undo" if kept else f"0 of {len(told)}, no former weights kept"
    )
    size = sum(edit.size for edit in kept)
    return [*_rows("history", told), ("undo", f"{words}; former weights take {size / 1e3:,.1f} kB" if kept else words)]


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


def _zoo(folder: Path) -> Facts:
    card = read_zoo_card(folder)
    spec = NetworkSpec.from_dict(card["spec"])
    counts = {name: f"{stated['count']:,} of {stated['networks']:,} CNNs" for name, stated in card["splits"].items()}
    return [
        ("kind", "CNN zoo (checkpoints of small CNNs, and how well each did)"),
        *_rows("count", counts),
        ("widths", f"{'-'.join(map(str, spec.widths))} ({spec.parameter_count:,} parameters each)"),
        *_rows("facts", {name: shortened(value) for name, value in card["facts"].items()}),
        *symmetry_lines(spec),
    ]


def _checkpoint(source: str | Path) -> Facts:
    folder = locate(source)
    model, training = Pretrained.from_pretrained(folder), load_checkpoint(folder)[1].get("training", {})
    size = sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())
    facts = [("kind", model.kind), ("class", type(model).__name__)]
    facts += (
        [("operations", ", ".join(model.operations)), ("editor", model.summary)] if isinstance(model, Editor) else []
    )
    for name, value in model.described().items():
        if name == "convention" and value is not None:
            value = _convention(Convention.from_dict(value))
        held = value if isinstance(value, Mapping) else {"": value}
        facts += _rows(name, {key: _listed(part) for key, part in held.items()})
    facts.append(("size", f"{sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.2f} MB"))
    figures = training.get("figures") if isinstance(training, Mapping) else None
    if not isinstance(figures, Mapping) or not figures:
        return [*facts, ("figures", f"not recorded in {CONFIG}; see {CARD} in the folder")]
    return [*facts, *_rows("figures", {name: _figure(value) for name, value in figures.items()})]


def _listed(value: object) -> str:
    """A part of a config: {"a": 1} as "a 1"."""
    if not isinstance(value, Mapping):
        return shortened(value) if not isinstance(value, str) else value
    return ", ".join(f"{key} {_listed(part)}" for key, part in value.items())


def _figure(value: object) -> str:
    """A figure, or a dictionary of figures; anything may stand in a training's facts."""
    parts = (
        {f"{shortened(name)[1:-1]} ": part for name, part in value.items()}
        if isinstance(value, Mapping)
        else {"": value}
    )
    return ", ".join(f"{n}{p:.3e}" if isinstance(p, float) else f"{n}{shortened(p)}" for n, p in parts.items())


def _network(widths: tuple[int, ...], convention: Convention, size: str, shape: tuple[int, ...] = ()) -> Facts:
    spec = convention.spec(widths)
    channels = f"{widths[-1]} channel{'s' if widths[-1] > 1 else ''}"
    inputs = f"{widths[0]} input{'s' if widths[0] > 1 else ''}"
    pictures = widths[0] == 2 and convention.bounded
    grid = f"of {inputs}, {channels}, on a grid of {' x '.join(f'{n:,}' for n in shape)} by default"
    return [
        ("widths", f"{'-'.join(map(str, widths))} ({spec.parameter_count:,} parameters each)"),
        ("image", f"{size} pixels, {channels}") if pictures or not shape else ("samples", grid),
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
    as_is = (convention.low, convention.high, convention.offset) == (0.0, 1.0, 0.0)
    if convention.bounded or not as_is:
        words += [f"image in [{convention.low:g}, {convention.high:g}]", f"{convention.offset:g} added to the output"]
    words += [] if convention.bounded else ["values of any size"]
    words += [f"{convention.activation} between the layers"] if convention.activation != "sine" else []
    words += [f"{convention.last} at the end"] if convention.last != "linear" else []
    return f"{', '.join(words)}{name}"


def _ranges(ranges: tuple[tuple[float, float], ...]) -> str:
    return " and ".join(f"{first:g} to {last:g}" for first, last in ranges)


def _rows(name: str, values: Mapping[str, object]) -> Facts:
    """One row per entry, the first one named."""
    return [(name if n == 0 else "", f"{key} {value}".strip()) for n, (key, value) in enumerate(values.items())]
