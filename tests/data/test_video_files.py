"""Clips in files: what is written is read, time is kept, stills stay pictures, and every refusal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weightedit.data.sample_files import load_samples
from weightedit.data.video_files import CLIPS, is_clip, load_clips, save_clip
from weightedit.errors import FileFormatError
from weightedit.inr.convention import SAMPLES
from weightedit.inr.siren import places
from weightedit.loading import load


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_clip(channels: int = 1, shape: tuple[int, int, int] = (4, 5, 6)) -> torch.Tensor:
    """Bytes as floats, [T, H, W, channels], of which no two frames are alike."""
    size = (*shape, channels)
    return torch.randint(256, size, generator=torch.Generator().manual_seed(channels)).float() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", CLIPS)
def test_clips_are_written_as_they_are_read(suffix: str, channels: int) -> None:
    clip, facts = make_clip(channels), {"frames": "4", "durations": "40 50 60 70", "loop": "3"}
    name = f"a{suffix}"
    save_clip(clip, name, facts)
    assert is_clip(name)
    samples, told = load_clips([name])
    assert told == facts and samples.grid == (4, 5, 6) and torch.equal(samples.coordinates, places((4, 5, 6), SAMPLES))
    if (suffix, channels) == (".gif", 3):  # a palette of 256 colors, of which 30 pixels need 30
        assert float((samples.values[0] - clip.flatten(0, 2)).abs().max()) < 0.1
    else:
        assert torch.equal(samples.values[0], clip.flatten(0, 2))
    assert torch.equal(load(name).values, samples.values) and load_samples([name])[1] == facts


def test_the_place_of_a_sample_is_x_y_and_t() -> None:
    clip = torch.zeros(3, 4, 5, 1)
    clip[2, 1, 4] = 1.0
    clip[0, 0, 0], clip[1, 3, 3] = 0.2, 0.4  # no two frames alike
    save_clip(clip, "a.webp", {})
    samples = load_clips(["a.webp"])[0]
    assert samples.coordinates[samples.values[0, :, 0] == 1].tolist() == [[1.0, pytest.approx(-1 / 3), 1.0]]


def test_other_numbers_of_frames_take_as_long_in_all() -> None:
    facts = {"frames": "4", "durations": "100", "loop": "0"}
    save_clip(make_clip(shape=(8, 3, 3)), "a.webp", facts)
    assert load_clips(["a.webp"])[1] == {"frames": "8", "durations": "50", "loop": "0"}
    for durations in ("40 50", "fast", "-3", "1e99"):  # what someone else wrote into a file is no reason to fail
        save_clip(make_clip(), "a.gif", {"frames": "4", "durations": durations})
        assert load_clips(["a.gif"])[1] == {"frames": "4", "durations": "100"}, "without a loop a GIF plays once"


def test_clips_are_resized_and_gray_ones_have_one_channel() -> None:
    clip = make_clip().expand(-1, -1, -1, 3)
    save_clip(clip, "a.webp", {})
    assert load_clips(["a.webp"])[0].values.shape == (1, 120, 1)
    assert load_clips(["a.webp"], channels=3)[0].values.shape == (1, 120, 3)
    save_clip(make_clip(3), "b.webp", {})
    two, gray = load_clips(["a.webp", "b.webp"])[0], load_clips(["b.webp"], channels=1)[0]
    assert two.values.shape == (2, 120, 3) and torch.equal(two.values[0], clip.flatten(0, 2))
    wanted = (make_clip(3) * torch.tensor([0.299, 0.587, 0.114])).sum(-1)
    torch.testing.assert_close(gray.values[0, :, 0], wanted.flatten())
    small = load_clips(["b.webp"], size=(2, 3))[0]
    assert small.grid == (4, 2, 3) and small.values.shape == (1, 24, 3)


def test_a_still_is_a_picture_and_what_is_damaged_no_clip() -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save("a.gif")
    Path("c.gif").write_bytes(b"GIF")
    assert not any(map(is_clip, ("a.gif", "c.gif", "absent.gif", "a.txt", ".")))
    assert load("a.gif").shape == (3, 4, 5)


def _prepare() -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save("still.gif")
    save_clip(make_clip(), "a.webp", {})
    save_clip(make_clip(shape=(3, 5, 6)), "shorter.webp", {})
    clear = [Image.fromarray(np.full((4, 4, 4), n, np.uint8)) for n in (10, 200)]
    clear[0].save("clear.webp", save_all=True, append_images=clear[1:], lossless=True)
    data = Path("a.webp").read_bytes()
    Path("cut.webp").write_bytes(data[: len(data) // 2])


WRONG = {
    "still.gif": "still.gif: it has one frame; expected several: it is a picture",
    "a.webp shorter.webp": r"shorter.webp has \(frames, height, width\) \(3, 5, 6\), but a.webp \(4, 5, 6\)",
    "clear.webp": "frame 0 has transparent pixels; expected opaque ones",
    "cut.webp": "cut.webp could not be read .* expected an animated GIF, WEBP or PNG: convert it",
    "absent.webp": "absent.webp cannot be read",
}


@pytest.mark.parametrize("names", WRONG)
def test_what_is_wrong_with_a_clip_is_one_error(names: str) -> None:
    _prepare()
    with pytest.raises(FileFormatError, match=WRONG[names]):
        load_clips(names.split())


def test_a_clip_that_no_machine_holds_is_refused_before_it_is_read() -> None:
    save_clip(make_clip(), "a.webp", {})
    with pytest.raises(FileFormatError, match="a clip of 4 frames of 1000000 x 1000000.*choose a smaller size"):
        load_clips(["a.webp"], size=(10**6, 10**6))
