"""Sounds and samples in files: written and read to the bit, read as other programs write them, and every refusal."""

import pickle
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from weightedit.data.sample_files import load_samples, save_points, save_sound
from weightedit.errors import FileFormatError, ParamsError
from weightedit.files import reading
from weightedit.inr.samples import Samples
from weightedit.loading import load


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_sound(name: str, steps: np.ndarray, size: int, rate: int = 8000) -> None:
    """PCM of steps [P, channels], int64, by Python's own integers."""
    data = b"".join((int(n) + (128 if size == 1 else 0)).to_bytes(size, "little", signed=size > 1) for n in steps.flat)
    with wave.open(name, "wb") as file:
        file.setnchannels(steps.shape[1])
        file.setsampwidth(size)
        file.setframerate(rate)
        file.writeframes(data)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pcm_of_any_width_is_read(size: int, channels: int) -> None:
    full = 2 ** (8 * size - 1)
    steps = np.random.default_rng(size).integers(-full, full, (20, channels))
    steps[0], steps[1] = -full, full - 1
    write_sound("a.wav", steps, size, rate=11025)
    samples, facts = load_samples(["a.wav"])
    assert facts == {"rate": "11025"} and torch.equal(samples.values[0], torch.from_numpy(steps / full).float())
    assert torch.equal(samples.coordinates, torch.linspace(-1, 1, 20).unsqueeze(1))


def test_sounds_are_written_as_they_are_read_and_cut_off() -> None:
    values = torch.randint(-(2**15), 2**15, (30, 2), generator=torch.Generator().manual_seed(0)) / 2**15
    save_sound(values, 8000, "a.wav")
    assert torch.equal(load_samples(["a.wav"])[0].values[0], values)
    save_sound(torch.tensor([[-3.0], [3.0]]), 8000, "a.wav")
    assert load_samples(["a.wav"])[0].values.flatten().tolist() == [-1.0, 1 - 2**-15]


def test_points_are_written_as_they_are_read_and_several_files_are_joined() -> None:
    one, many = (Samples(torch.rand(7, 3), torch.rand(*lead, 7, 2)) for lead in ((), (4,)))
    for samples in (one, many, Samples(torch.rand(4, 7, 3), many.values)):
        save_points(samples, "a.npz")
        found, facts = load_samples(["a.npz"])
        assert facts == {} and torch.equal(found.coordinates, samples.coordinates)
        assert torch.equal(found.values, samples.values) and torch.equal(load("a.npz").values, samples.values)
    save_points(one, "a.npz")
    joined = load_samples([Path("a.npz"), "a.npz"])[0]
    assert torch.equal(joined.coordinates, one.coordinates.expand(2, -1, -1)) and len(joined) == 2
    np.savez("a.npz", coordinates=np.arange(3)[:, None] / 4, values=np.ones((3, 1)))
    assert load_samples(["a.npz"])[0].values.dtype == torch.float32


class Code:
    def __reduce__(self):
        return (open, ("executed", "w"))


def _prepare() -> None:
    write_sound("a.wav", np.zeros((4, 1), dtype=np.int64), 2)
    write_sound("other.wav", np.zeros((4, 2), dtype=np.int64), 2)
    write_sound("none.wav", np.zeros((0, 1), dtype=np.int64), 2)
    whole = Path("a.wav").read_bytes()
    Path("cut.wav").write_bytes(whole[:-3])
    Path("float.wav").write_bytes(whole[:20] + b"\x03\x00" + whole[22:])
    where, values = np.zeros((3, 1)), np.zeros((3, 1))
    np.savez("a.npz", coordinates=where, values=values)
    np.savez("longer.npz", coordinates=np.zeros((4, 1)), values=np.zeros((4, 1)))
    np.savez("named.npz", x=where, values=values)
    np.savez("objects.npz", coordinates=where, values=np.array([Code()], dtype=object))
    np.savez("complex.npz", coordinates=where, values=values + 1j)
    np.savez("nan.npz", coordinates=where, values=values + np.nan)
    np.savez("shape.npz", coordinates=where, values=np.zeros((2, 1)))
    np.savez_compressed("bomb.npz", coordinates=where, values=np.zeros(10**5))
    Path("pickled.npz").write_bytes(pickle.dumps(Code()))
    np.save("array.npy", where)
    Path("array.npy").rename("array.npz")


WRONG = {
    "absent.wav": "absent.wav cannot be read",
    "cut.wav": "it has 5 bytes of 4 samples; expected a whole sound|could not be read",
    "none.wav": "it has 0 bytes of 0 samples",
    "float.wav": "expected a PCM .wav of 8 to 32 bits: convert it",
    "a.wav other.wav": r"other.wav has \(samples, channels\) \(4, 2\) at 8000 Hz, but a.wav \(4, 1\)",
    "a.wav a.npz": "expected sounds .* of one kind: give them apart",
    "a.mp3": "expected sounds",
    "a.npz longer.npz": "got files of the shapes .*; expected one shape",
    "named.npz": r"there is no array 'coordinates' among \['values', 'x'\]",
    "objects.npz": "allow_pickle=False.*expected an .npz of the arrays coordinates and values, plain numbers",
    "complex.npz": "values is of complex128; expected real numbers",
    "nan.npz": "nan.npz: values with NaN or infinite numbers",
    "shape.npz": r"shape.npz: coordinates \(3, 1\) and values \(2, 1\)",
    "bomb.npz": "bomb.npz has .* bytes and declares",
    "pickled.npz": "expected an .npz of the arrays",
    "array.npz": "expected an .npz of the arrays",
}


@pytest.mark.parametrize("names", WRONG)
def test_what_is_wrong_with_a_file_is_one_error(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FREE", 10**5)
    _prepare()
    with pytest.raises((FileFormatError, ParamsError), match=WRONG[names]):
        load_samples(names.split())
    assert not Path("executed").exists()


def test_places_that_cannot_be_written_are_told() -> None:
    with pytest.raises(FileFormatError, match="could not be written .* expected a place in an existing"):
        save_sound(torch.zeros(3, 1), 8000, "none/a.wav")
