"""Samples in files: sounds as PCM .wav, clips, everything else as .npz of two arrays, `coordinates` and `values`.

Here: reading and writing. Clips are video_files.py's, what samples are is inr/samples.py's. Nothing in a file is
executed: arrays of objects, which numpy would unpickle, are refused.
"""

from __future__ import annotations

import io
import wave
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightedit.data.video_files import CLIPS, load_clips
from weightedit.errors import FileFormatError
from weightedit.files.reading import check_declared, read_bytes, refusing
from weightedit.files.saving import users_file
from weightedit.inr.convention import SAMPLES
from weightedit.inr.samples import Samples
from weightedit.inr.siren import places

SOUND, POINTS, RATE = ".wav", ".npz", "rate"
BYTES = 2**30
_SCALES = {1: 2.0**7, 2: 2.0**15, 3: 2.0**23, 4: 2.0**31}
_ARRAYS = ("coordinates", "values")


def load_samples(
    names: Sequence[str | Path], *, size: tuple[int, int] | None = None, channels: int | None = None
) -> tuple[Samples, dict[str, str]]:
    """Sounds, clips or sets of samples, one or several for each INR.

    Args:
        names: of files, all .wav, all .npz or all clips; of one rate, length and number of channels, or of one shape.
        size: of clips, see `load_clips`.
        channels: of clips.

    Returns:
        The Samples, N of one file each (or of one .npz with arrays [N, P, ...]), float32: a sound's values are in
        [-1, 1], its coordinates are linspace(-1, 1, P). And for the provenance of their INRs the rate of sounds in Hz,
        and what `load_clips` says of clips.

    Raises:
        FileFormatError: no such file, damaged, of another kind, or files that differ; ParamsError: arrays that are no
            samples, by Samples.
    """
    suffixes = {Path(name).suffix.lower() for name in names}
    if suffixes <= set(CLIPS):
        return load_clips(names, size=size, channels=channels)
    if len(suffixes) != 1 or not suffixes <= {SOUND, POINTS}:
        raise FileFormatError(
            f"got {', '.join(map(str, names))}; expected sounds ({SOUND}), samples ({POINTS}) or clips "
            f"({', '.join(CLIPS)}), of one kind: give them apart."
        )
    if suffixes == {POINTS}:
        found = [_read_points(name) for name in names]
        if len(found) == 1:
            return found[0], {}
        shapes = {(tuple(one.coordinates.shape), tuple(one.values.shape)) for one in found}
        if len(shapes) > 1:
            raise FileFormatError(f"got files of the shapes {sorted(shapes)}; expected one shape: give them apart.")
        where = [one.coordinates.expand(len(one), -1, -1) for one in found]
        return Samples(torch.cat(where), torch.cat([one.values for one in found])), {}
    sounds = [_read_sound(name) for name in names]
    for name, (values, rate) in zip(names, sounds, strict=True):
        if (values.shape, rate) != (sounds[0][0].shape, sounds[0][1]):
            raise FileFormatError(
                f"{name} has (samples, channels) {tuple(values.shape)} at {rate} Hz, but {names[0]} "
                f"{tuple(sounds[0][0].shape)} at {sounds[0][1]}; expected one length and rate: give them apart."
            )
    values = torch.stack([values for values, _ in sounds])
    return Samples(places((values.shape[1],), SAMPLES), values), {RATE: str(sounds[0][1])}


def load_sample_file(
    source: str | Path, *, size: tuple[int, int] | None = None, channels: int | None = None
) -> Samples:
    """The samples in one file, as of `load_samples`."""
    return load_samples([source], size=size, channels=channels)[0]


def save_points(samples: Samples, path: str | Path) -> None:
    """Write samples as an .npz that `load_samples` reads: whole, or not there. FileFormatError if it cannot be."""
    import numpy as np

    data = io.BytesIO()
    values = samples.values[0] if len(samples) == 1 and samples.coordinates.dim() == 2 else samples.values
    np.savez(data, coordinates=samples.coordinates.cpu().numpy(), values=values.cpu().numpy())
    _write(path, data.getvalue())


def save_sound(values: Tensor, rate: int, path: str | Path) -> None:
    """Write a sound as 16-bit PCM; FileFormatError if it cannot be.

    Args:
        values: [P, channels]; cut off to [-1, 1].
        rate: in Hz.
        path: ends in .wav.
    """
    steps = (values * _SCALES[2]).round().clamp(-_SCALES[2], _SCALES[2] - 1).to(torch.int16)
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(steps.cpu().numpy().astype("<i2").tobytes())
    _write(path, data.getvalue())


def _read_points(path: str | Path) -> Samples:
    import numpy as np

    with refusing(path, "an .npz of the arrays coordinates and values, plain numbers: write it with np.savez"):
        data = read_bytes(path, BYTES)
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            check_declared(path, sum(entry.file_size for entry in file.infolist()))
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            if missing := [name for name in _ARRAYS if name not in file]:
                raise FileFormatError(
                    f"there is no array {missing[0]!r} among {sorted(file)}; expected coordinates and values: name "
                    "them so."
                )
            arrays = [np.asarray(file[name]) for name in _ARRAYS]
        for name, array in zip(_ARRAYS, arrays, strict=True):
            if array.dtype.kind not in "fiu":
                raise FileFormatError(f"{name} is of {array.dtype}; expected real numbers: convert them.")
        where, values = (torch.from_numpy(array.astype("float32")) for array in arrays)
        return Samples(where, values)


def _read_sound(path: str | Path) -> tuple[Tensor, int]:
    """[P, channels] in [-1, 1], and the rate in Hz."""
    import numpy as np

    with refusing(path, "a PCM .wav of 8 to 32 bits: convert it, as by `ffmpeg -i FILE -c:a pcm_s16le sound.wav`"):
        with wave.open(io.BytesIO(read_bytes(path, BYTES)), "rb") as file:
            channels, size, rate, count = (
                file.getnchannels(),
                file.getsampwidth(),
                file.getframerate(),
                file.getnframes(),
            )
            data = np.frombuffer(file.readframes(count), dtype=np.uint8)
        if not count or data.size != count * channels * size:
            raise FileFormatError(
                f"it has {data.size} bytes of {count} samples; expected a whole sound: copy it again."
            )
        parts = data.reshape(-1, size)
        if size == 1:  # the only ones without a sign
            steps = parts[:, 0].astype(np.int64) - 128
        else:
            padded = np.concatenate([np.zeros((len(parts), 4 - size), np.uint8), parts], 1)  # the low bytes come first
            steps = padded.reshape(-1).view("<i4").astype(np.int64) >> (8 * (4 - size))
        values = torch.from_numpy(steps / _SCALES[size]).float().view(-1, channels)
    return values, rate


def _write(path: str | Path, data: bytes) -> None:
    with users_file(path) as fresh:
        fresh.write_bytes(data)
