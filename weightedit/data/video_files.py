"""Clips in files: animated GIF, WEBP and APNG, frame after frame as samples of three inputs, x, y and t.

Here: reading and writing. What samples are is inr/samples.py's, single pictures are images.py's. A file of one frame is
a picture, whatever its format could hold.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightedit.capacity import check_capacity
from weightedit.errors import FileFormatError
from weightedit.files.reading import check_pixels, read_bytes, refusing
from weightedit.files.saving import users_file
from weightedit.inr.convention import SAMPLES
from weightedit.inr.samples import Samples
from weightedit.inr.siren import places
from weightedit.inr.stack import FRAMES

CLIPS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
DURATIONS, LOOP = "durations", "loop"
_BYTES = 2**30
_USUAL = 100.0  # milliseconds of a frame that states none, as browsers take it


def is_clip(path: str | Path) -> bool:
    """Whether there is a file of more than one frame; damaged ones are no clips, for others to refuse."""
    from PIL import Image

    if Path(path).suffix.lower() not in CLIPS or not Path(path).is_file():
        return False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=tuple(CLIPS.values())) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # pillow's formats raise as they please
        return False


def load_clips(
    names: Sequence[str | Path], *, size: tuple[int, int] | None = None, channels: int | None = None
) -> tuple[Samples, dict[str, str]]:
    """Clips as samples, one for each INR.

    Args:
        names: of files, of one number of frames and one size.
        size: (height, width) to resize the frames to; None keeps theirs.
        channels: 1 (gray) or 3 (RGB) to convert to; None is 1 where every frame of every clip is gray, else 3.

    Returns:
        The Samples, float32, values in [0, 1], on a grid of frames x height x width; and for their provenance the
        number of frames, the milliseconds of each (one number where they are the same), and how often the clip is
        played, 0 for without end, where the first file says so.

    Raises:
        FileFormatError: no such file, damaged, a single frame, transparent pixels, or files that differ.
    """
    clips, facts = [], {}
    for name in names:
        clip, told = _read(name, size)
        facts = facts or told
        if clips and clip.shape != clips[0].shape:
            raise FileFormatError(
                f"{name} has (frames, height, width) {tuple(clip.shape[:3])}, but {names[0]} "
                f"{tuple(clips[0].shape[:3])}; expected one shape: give them apart, or a size."
            )
        clips.append(clip)
    frames = torch.stack(clips)
    gray = bool((frames == frames[..., :1]).all()) if channels is None else channels == 1
    if gray:  # of gray ones the weights of brightness give back the gray itself
        weights = frames.new_tensor([0.299, 0.587, 0.114])
        frames = frames[..., :1] if channels is None else (frames * weights).sum(-1, keepdim=True)
    grid = tuple(frames.shape[1:4])
    return Samples(places(grid, SAMPLES), frames.flatten(1, 3), grid), facts


def save_clip(frames: Tensor, path: str | Path, facts: Mapping[str, str]) -> None:
    """Write a clip; FileFormatError if it cannot be.

    WEBP and PNG keep the bytes of the pixels, a GIF those of gray clips and the best 256 colors of each frame.

    Args:
        frames: [T, H, W, channels] in [0, 1], cut off beyond; 1 or 3 channels.
        path: ends in .gif, .webp, .png or .apng.
        facts: of `load_clips`; with another number of frames they share the whole time alike.
    """
    from PIL import Image

    pixels = (255 * frames.detach().cpu().clamp(0, 1)).round().to(torch.uint8).numpy()
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in pixels]
    times = _durations(facts, len(images))
    kind, options = CLIPS[Path(path).suffix.lower()], {}
    loop = facts.get(LOOP, "")
    if loop.isdecimal():
        options[LOOP] = int(loop)
    elif kind != "GIF":  # where none is stated a GIF is played once, the others without end
        options[LOOP] = 1
    options |= {"lossless": True} if kind == "WEBP" else {"disposal": 1} if kind == "GIF" else {}
    data = io.BytesIO()
    images[0].save(data, kind, save_all=True, append_images=images[1:], duration=times, **options)
    with users_file(path) as fresh:
        fresh.write_bytes(data.getvalue())


def _durations(facts: Mapping[str, str], count: int) -> list[int]:
    """Milliseconds of each frame of a clip of `count`."""
    try:
        stated = [float(word) for word in facts.get(DURATIONS, "").split()]
    except ValueError:
        stated = []
    known = facts.get(FRAMES, "")
    frames = int(known) if known.isdecimal() else count
    stated = stated * frames if len(stated) == 1 else stated
    if len(stated) != frames or not all(0 < time < 1e6 for time in stated):
        stated = [_USUAL] * frames
    if frames != count:
        stated = [sum(stated) / count] * count
    return [max(1, round(time)) for time in stated]


def _read(path: str | Path, size: tuple[int, int] | None) -> tuple[Tensor, dict[str, str]]:
    """[T, H, W, 3] in [0, 1], and what the file says of time."""
    import numpy as np
    from PIL import Image

    frames, times = [], []
    with (
        refusing(path, "an animated GIF, WEBP or PNG: convert it, as by `ffmpeg -i FILE -r 10 clip.gif`"),
        warnings.catch_warnings(action="ignore"),
        Image.open(io.BytesIO(read_bytes(path, _BYTES)), formats=tuple(CLIPS.values())) as image,
    ):
        count = getattr(image, "n_frames", 1)
        height, width = size or (image.height, image.width)
        check_pixels(image.height, image.width)
        what = f"a clip of {count:,} frames of {height} x {width}"
        check_capacity(40 * count * height * width, what, "choose a smaller size, or cut it")
        if count < 2:
            raise FileFormatError("it has one frame; expected several: it is a picture, take it as one.")
        for number in range(count):
            image.seek(number)
            image.load()
            times.append(float(image.info.get("duration", 0)) or _USUAL)
            whole = image.convert("RGBA")
            if np.asarray(whole)[..., 3].min() < 255:
                raise FileFormatError(
                    f"frame {number} has transparent pixels; expected opaque ones: put it on a color."
                )
            frame = whole.convert("RGB")
            if size is not None and frame.size != (width, height):
                frame = frame.resize((width, height), Image.Resampling.BICUBIC)
            frames.append(np.asarray(frame))
        loop: Any = image.info.get(LOOP)
    told = [f"{time:g}" for time in times]
    facts = {FRAMES: str(count), DURATIONS: told[0] if len(set(told)) == 1 else " ".join(told)}
    facts |= {} if loop is None else {LOOP: str(int(loop))}
    return torch.from_numpy(np.stack(frames)).float() / 255.0, facts
