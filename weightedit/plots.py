"""Pictures to look at: sheets of images beside changes in weights, renderings pixel by pixel, errors against time.

Here: drawing, and writing a PNG under a temporary name that is then moved, so that it is whole or not there. What is
drawn is decided elsewhere. Images are drawn on the one range 0..1 whatever they hold, so that columns can be compared;
changes on one symmetric scale per column, stated by its color bar.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.saving import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_CELL, _GAP, _CAPTION = 1.2, 0.12, 0.17  # inches: a picture, the space between two, a line of small text
_MARGIN, _LABEL, _TITLES, _HEADING, _BAR = 0.2, 0.3, 0.38, 0.34, 0.36
_DPI = 150
_GRAY = "#555555"
_LOUDEST = 0.99  # share of the values inside the color scale
_TILE_GAP = 4


@dataclass(frozen=True)
class ImageColumn:
    """A column of images.

    Attributes:
        title: above the column; what follows a line break stands smaller below it.
        images: [N, C, H, W], C = 1 (gray) or 3 (RGB); values outside [0, 1] are drawn as the nearer end.
        captions: N short texts, one below each image, or none.
    """

    title: str
    images: Tensor
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class ChangeColumn:
    """A column of signed matrices, such as changes of one layer's weights: blue below zero, white at it, red above.

    Attributes:
        title: above the column; what follows a line break stands smaller below it.
        matrices: [N, rows, columns]; the scale ends where 1 % of all values lie beyond it.
        captions: N short texts, one below each matrix, or none.
    """

    title: str
    matrices: Tensor
    captions: Sequence[str] = ()

    @property
    def limit(self) -> float:
        """Where the color scale ends, on both sides."""
        sizes = self.matrices.detach().abs().flatten().sort().values
        return float(sizes[math.ceil(_LOUDEST * len(sizes)) - 1]) or float(sizes[-1]) or 1.0


def sheet(
    columns: Sequence[ImageColumn | ChangeColumn],
    path: str | Path,
    *,
    heading: str = "",
    labels: Sequence[str] = (),
) -> Path:
    """Draw N rows of pictures as one PNG.

    Args:
        columns: from left to right, all of N entries, N >= 1.
        path: where the PNG goes; its folder exists; a file of that name is replaced.
        heading: a line above the sheet.
        labels: N short texts at the left of the rows, or none.

    Returns:
        The path.

    Raises:
        WeightEditError: no columns or rows, lengths that differ, or images of another number of channels.
        FileFormatError: a place that cannot be written.
    """
    from matplotlib.figure import Figure

    count = _checked(columns, labels)
    tall = [_CELL + _GAP + (_CAPTION if any(column.captions for column in columns) else 0.0)] * count
    label = max([_LABEL, *(0.09 * len(text) for text in labels)])
    left = _MARGIN + (label if labels else 0.0)
    width = left + len(columns) * (_CELL + _GAP) - _GAP + _MARGIN
    bar = _BAR if any(isinstance(column, ChangeColumn) for column in columns) else 0.0
    top = _MARGIN + (_HEADING if heading else 0.0) + _TITLES
    height = top + sum(tall) + bar + _MARGIN - _GAP
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    if heading:
        figure.text(left / width, 1 - _MARGIN / height, heading, size=10, weight="bold", va="top")
    for number, column in enumerate(columns):
        x = left + number * (_CELL + _GAP)
        title, _, below = column.title.partition("\n")
        _write(figure, x + _CELL / 2, top - 0.2, title, 9)
        _write(figure, x + _CELL / 2, top - 0.06, below, 7.5, color=_GRAY)
        for row in range(count):
            y = top + sum(tall[:row])
            axes = _axes(figure, (x, y, _CELL, _CELL))
            drawn = _draw(axes, column, row)
            if column.captions:
                _write(figure, x + _CELL / 2, y + _CELL + 0.14, column.captions[row], 7.5, color=_GRAY)
            if labels and number == 0:
                _write(figure, x - label / 2, y + _CELL / 2 + 0.05, labels[row], 10, color=_GRAY)
        if isinstance(column, ChangeColumn):
            _draw_scale(figure, drawn, (x, top + sum(tall) + 0.02, _CELL, 0.08), column.limit)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _put(buffer.getvalue(), path)


def mosaic(images: Tensor, path: str | Path) -> Path:
    """Write images as one PNG, pixel by pixel: one image is a plain picture, several stand in rows with white between.

    Args:
        images: [N, C, H, W], C = 1 or 3, N >= 1; values outside [0, 1] become the nearer end.
        path: as in `sheet`.

    Returns:
        The path.

    Raises:
        WeightEditError: no images, or another number of channels.
        FileFormatError: a place that cannot be written.
    """
    from PIL import Image

    _checked([ImageColumn("", images)], ())
    count, channels, height, width = images.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    pixels = (images.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    gap = _TILE_GAP if count > 1 else 0
    page = pixels.new_full((channels, down * (height + gap) - gap, across * (width + gap) - gap), 255)
    for number, image in enumerate(pixels):
        y, x = (number // across) * (height + gap), (number % across) * (width + gap)
        page[:, y : y + height, x : x + width] = image
    array = page[0].numpy() if channels == 1 else page.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return _put(buffer.getvalue(), path)


@dataclass(frozen=True)
class Curve:
    """One contender's error against its time.

    Attributes:
        label: in the legend.
        milliseconds, errors: of its points, from left to right; one point is drawn as a mark.
        own: whether it is one of ours, drawn strongly.
    """

    label: str
    milliseconds: Sequence[float]
    errors: Sequence[float]
    own: bool = False


def frontier(panels: Mapping[str, Sequence[Curve]], path: str | Path, *, heading: str = "", floor: float = 0.0) -> Path:
    """Draw error against time, both on logarithmic axes, one panel beside the other with one legend.

    Args:
        panels: title -> curves; the same contenders in the same order in each.
        path: as in `sheet`.
        heading: a line above.
        floor: an error drawn as a dotted line in every panel; 0 for none.

    Returns:
        The path.

    Raises:
        WeightEditError: no panels.
        FileFormatError: a place that cannot be written.
    """
    figure = _figure(len(panels))
    for axes, (title, curves) in zip(figure.axes, panels.items(), strict=True):
        others = 0
        for curve in curves:
            color = None if curve.own else f"{0.25 + 0.1 * others:.2f}"
            others += not curve.own
            mark = "o" if curve.own else "sv^Dx"[(others - 1) % 5]
            style = {"color": color, "marker": mark, "markersize": 4, "linewidth": 2.2 if curve.own else 1.1}
            axes.plot(curve.milliseconds, curve.errors, label=curve.label, **style)
        if floor:
            axes.axhline(floor, color=_GRAY, linestyle=":", linewidth=1, label="floor")
        axes.set(xscale="log", yscale="log", xlabel="milliseconds per INR", title=title)
        axes.grid(True, which="major", color="0.9")
    return _finished(figure, "mean squared error", heading, path)


@dataclass(frozen=True)
class Band:
    """One contender's losses over a run, several times.

    Attributes:
        label: in the legend.
        x: where it was measured, [points].
        losses: [runs][points]; the mean is drawn, and the range from the lowest to the highest around it.
        own: whether it is one of ours, drawn strongly.
    """

    label: str
    x: Sequence[float]
    losses: Sequence[Sequence[float]]
    own: bool = False


def bands(panels: Mapping[str, Sequence[Band]], path: str | Path, *, heading: str = "", ylabel: str = "loss") -> Path:
    """Draw losses against something, one panel per title; their axis is logarithmic unless some are not positive.

    Args:
        panels: label of the x axis -> bands; the same contenders in the same order in each.
        path: as in `sheet`.
        heading: a line above.
        ylabel: what the losses are.

    Returns:
        The path.

    Raises:
        WeightEditError: no panels.
        FileFormatError: a place that cannot be written.
    """
    figure = _figure(len(panels))
    losses = [loss for drawn in panels.values() for band in drawn for run in band.losses for loss in run]
    yscale = "log" if min(losses, default=1.0) > 0 else "linear"  # a fit's score is the logarithm of its error
    for axes, (xlabel, drawn) in zip(figure.axes, panels.items(), strict=True):
        for i, band in enumerate(drawn):
            columns = list(zip(*band.losses, strict=True))
            style = {"color": f"C{i}", "linewidth": 2.2 if band.own else 1.1}
            axes.plot(band.x, [sum(column) / len(column) for column in columns], label=band.label, **style)
            axes.fill_between(band.x, list(map(min, columns)), list(map(max, columns)), color=f"C{i}", alpha=0.2)
        axes.set(yscale=yscale, xlabel=xlabel)
        axes.grid(True, which="both", color="0.9")
    return _finished(figure, ylabel, heading, path)


def _figure(panels: int) -> Figure:
    """So many panels side by side, with one y axis and room for a legend."""
    from matplotlib.figure import Figure

    if panels < 1:
        raise WeightEditError("got no panels; expected at least one: give what is to be drawn.")
    figure = Figure(figsize=(4.2 * panels + 2.4, 4.2), dpi=_DPI, facecolor="white", layout="constrained")
    figure.subplots(1, panels, sharey=True)
    return figure


def _finished(figure: Figure, ylabel: str, heading: str, path: str | Path) -> Path:
    """Panels with one legend beside them and a heading above, written."""
    figure.axes[0].set_ylabel(ylabel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    if heading:
        figure.suptitle(heading, size=10, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _put(buffer.getvalue(), path)


def _checked(columns: Sequence[ImageColumn | ChangeColumn], labels: Sequence[str]) -> int:
    """The number of rows."""
    values = [column.images if isinstance(column, ImageColumn) else column.matrices for column in columns]
    lengths = {len(tensor) for tensor in values} | {len(c.captions) for c in columns if c.captions}
    lengths |= {len(labels)} if labels else set()
    if len(lengths) != 1 or 0 in lengths:
        raise WeightEditError(
            f"got columns, captions and labels of the lengths {sorted(lengths)}; expected one length of at least 1 "
            "for all: pass as many of each as there are rows."
        )
    for column, tensor in zip(columns, values, strict=True):
        if isinstance(column, ImageColumn) and (tensor.dim() != 4 or tensor.shape[1] not in (1, 3)):
            raise WeightEditError(
                f"got images of shape {tuple(tensor.shape)} to be drawn; expected (N, channels, height, width) with "
                "1 channel (gray) or 3 (RGB): choose the channels to draw."
            )
    return lengths.pop()


def _axes(figure: Figure, place: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, top, width, height), in inches from the figure's upper left corner."""
    x, y, wide, high = place
    width, height = figure.get_size_inches()
    return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))


def _write(figure: Figure, x: float, y: float, text: str, size: float, *, color: str = "black") -> None:
    """A line of text, its middle at x and its baseline at y."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, size=size, ha="center", va="baseline", color=color)


def _draw_scale(figure: Figure, drawn: AxesImage, place: tuple[float, float, float, float], limit: float) -> None:
    """The color bar, its ends labeled inside its own width."""
    axes = _axes(figure, place)
    bar = figure.colorbar(drawn, cax=axes, orientation="horizontal", ticks=[-limit, 0, limit])
    axes.set_xticklabels([f"\N{MINUS SIGN}{limit:.2g}", "0", f"+{limit:.2g}"])
    axes.tick_params(labelsize=7, length=2, pad=1.5, color=_GRAY, labelcolor=_GRAY)
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set(horizontalalignment=side)
    bar.outline.set(linewidth=0.4, edgecolor="#999999")  # type: ignore[operator]


def _draw(axes: Axes, column: ImageColumn | ChangeColumn, row: int) -> AxesImage:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color="#999999")
    if isinstance(column, ChangeColumn):
        matrix = column.matrices[row].detach().cpu().double().numpy()
        return axes.imshow(
            matrix, cmap="RdBu_r", vmin=-column.limit, vmax=column.limit, interpolation="nearest", aspect="auto"
        )
    image = column.images[row].detach().cpu().float().clamp(0, 1)
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    return axes.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")


def _put(data: bytes, path: str | Path) -> Path:
    path = Path(path)
    try:
        with new_file(path) as fresh:
            fresh.write_bytes(data)
    except OSError as error:
        raise FileFormatError(
            f"{path} could not be written ({error}); expected a place in an existing, writable folder: choose "
            "another, or create it."
        ) from error
    return path
