"""What is believed of a file: regular ones only, sizes before memory, messages of one line whatever is in them."""

import os

import pytest
import torch

from tests.mutations import shared_lists
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.files.reading import (
    FREE,
    JSON_BYTES,
    RATIO,
    check_declared,
    check_pixels,
    parse_json,
    read_bytes,
    read_json,
    refusing,
    shortened,
    size_of,
)


def test_regular_files_are_read_and_others_are_not_waited_for(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_bytes(tmp_path / "a", 3) == b"abc" and size_of(str(tmp_path / "a")) == 3
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(FileFormatError, match="is a folder, pipe or device; expected a regular file: name one"):
            read_bytes(path)
    with pytest.raises(FileFormatError, match=r"absent cannot be read \(No such file.*check that the folder"):
        size_of(tmp_path / "absent")
    with pytest.raises(FileFormatError, match=r"cannot be read \(.*null"):
        size_of("a\0b")
    with pytest.raises(FileFormatError, match="a has 3 bytes; expected at most 2: name the right file"):
        read_bytes(tmp_path / "a", 2)


def test_what_is_declared_is_held_against_the_size(tmp_path):
    path = tmp_path / "a"
    os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), FREE)  # no room is taken
    check_declared(path, RATIO * FREE)
    with pytest.raises(FileFormatError, match="has 67,108,864 bytes and declares 1,073,741,825; expected at most 16"):
        check_declared(path, RATIO * FREE + 1)
    os.truncate(path, 1)
    check_declared(path, FREE)
    with pytest.raises(FileFormatError, match="or 67,108,864: write it again"):
        check_declared(path, FREE + 1)
    check_pixels(8192, 8192)
    with pytest.raises(FileFormatError, match="100000 x 700 pixels; expected at most 67,108,864"):
        check_pixels(100_000, 700)


def test_a_long_json_file_is_not_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1} and parse_json("[1.5, null]") == [1.5, None]
    os.truncate(tmp_path / "a.json", JSON_BYTES + 1)
    with pytest.raises(FileFormatError, match="a.json has 16,777,217 bytes; expected at most 16,777,216"):
        read_json(tmp_path / "a.json")


def test_values_are_cut_short():
    for value in (shared_lists(), 10**6000, "y" * 10**6, {n: n for n in range(10**5)}, object()):
        assert len(shortened(value)) < 5000


def test_plain_values_are_shown_as_they_are():
    for value in (5, -1.5, "text", None, True, [1, "a"], {"a": (1, 2)}):
        assert shortened(value) == repr(value)
    assert shortened(torch.zeros(3)) == "<Tensor>"


def test_messages_are_one_line():
    text = str(WeightEditError("a\n b\t" + "y" * 10_000 + " do this"))
    assert text.startswith("a b y") and text.endswith("y do this") and len(text) < 1000


def test_every_failure_names_the_file():
    for error, message in (
        (
            RecursionError("deep\ndown"),
            r"^a.pth could not be read \(RecursionError: deep down\); expected INRs: copy",
        ),
        (ParamsError("layer 0 lacks a bias"), "^a.pth: layer 0 lacks a bias$"),
        (FileFormatError("the header is odd"), "^a.pth: the header is odd$"),
        (FileFormatError("a.pth is odd"), "^a.pth is odd$"),
    ):
        with pytest.raises(FileFormatError, match=message), refusing("a.pth", "INRs: copy it"):
            raise error
    with pytest.raises(KeyboardInterrupt), refusing("a.pth", "INRs"):
        raise KeyboardInterrupt
