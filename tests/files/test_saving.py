"""Saving: one process at a time, whatever the others and the power do; readers see one save or another."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files import saving
from weightedit.files.saving import claimed, is_there, new_file, new_folder, read_settled

ROOT = Path(__file__).parents[2]
STARTED = []


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    while STARTED:
        STARTED.pop().kill()


def start(code, *arguments):
    """Run Python in another process; it prints a line when it is where it should be."""
    heads = "import itertools, os, signal, sys, time\nfrom pathlib import Path\nfrom weightedit.files.saving import *\n"
    heads += "place = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", heads + code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    STARTED.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    return STARTED[-1]


HOLD = "with claimed(place):\n    print('held', flush=True)\n    time.sleep(600)"


def test_a_claim_names_the_process_that_has_it_and_ends_with_it(tmp_path):
    place = tmp_path / "run"
    process = start(HOLD, place)
    assert process.stdout.readline() == "held\n"
    holder = f"process {process.pid} on {re.escape(socket.gethostname())}"
    message = (
        rf"{re.escape(str(place))} is being written by {holder}, since 20.*; expected no other process there: wait"
    )
    with pytest.raises(WeightEditError, match=message), claimed(place):
        raise AssertionError
    process.kill()
    process.wait()
    assert (tmp_path / ".run.lock").exists()
    with claimed(place):
        assert f"process {os.getpid()} " in (tmp_path / ".run.lock").read_text()
        with claimed(tmp_path / "other"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_claim_is_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saving, "_SILENT", 0.05)
    process = start(HOLD, tmp_path / "run")
    assert process.stdout.readline() == "held\n"
    with pytest.raises(WeightEditError, match="is being written by"), claimed(tmp_path / "run", patience=0.2):
        raise AssertionError
    assert caplog.text.count(f"waiting for process {process.pid} on ") == 1
    process.kill()
    with claimed(tmp_path / "run", patience=60):
        pass


def test_a_claim_that_was_only_just_taken_is_waited_for_to_give_its_name(tmp_path, monkeypatch):
    place, lock = tmp_path / "run", tmp_path / ".run.lock"
    with claimed(place):
        name = lock.read_text()
        for later in (name, ""):
            lock.write_text("")
            monkeypatch.setattr(saving.time, "sleep", lambda seconds, later=later: lock.write_text(later))
            expected = f"is being written by {name.strip() if later else 'another process'}; expected"
            with pytest.raises(WeightEditError, match=re.escape(expected)), claimed(place):
                raise AssertionError


def test_a_lock_that_was_removed_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Its holder removes it: who had opened it before would share the place with who makes it anew."""
    lock, order = saving._lock, []

    def slowly(descriptor):
        lock(descriptor)
        order.append(descriptor)
        if len(order) == 1:
            (tmp_path / ".run.lock").unlink()

    monkeypatch.setattr(saving, "_lock", slowly)
    with claimed(tmp_path / "run", patience=60):
        assert len(order) == 2 and os.path.samestat(os.fstat(order[1]), (tmp_path / ".run.lock").stat())


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def none(descriptor):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(saving, "_lock", none)
    with new_file(tmp_path / "file") as path:
        path.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert "this file system has no locks; keep other processes from writing there" in caplog.text


def fill(folder, number):
    for name in ("a", "b"):
        (folder / name).write_text(str(number))


def read_pair(folder):
    """Both files, which state one number in every save."""
    try:
        return tuple(int((folder / name).read_text()) for name in ("a", "b"))
    except (OSError, ValueError) as error:
        raise FileFormatError(str(error)) from error


KILLED = {
    "filling": "with new_folder(place) as fresh:\n    (fresh / 'a').write_text('2')\n    die()",
    "taken away": "Path.rename = lambda path, to: (rename(path, to), die())\nsave()",
    "replaced": "Path.rename = lambda path, to: (rename(path, to), path != place and die())\nsave()",
    "deleting": "import shutil\nshutil.rmtree = lambda *a, **k: saved and die()\nsaved = []\nsave()",
}
SAVE = """
rename, saved = Path.rename, []
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def save():
    with new_folder(place) as fresh:
        for name in ('a', 'b'):
            (fresh / name).write_text('2')
        saved.append(1)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("point", KILLED)
def test_a_killed_save_loses_nothing_and_leaves_nothing(tmp_path, point, caplog):
    folder = tmp_path / "folder"
    with new_folder(folder) as fresh:
        fill(fresh, 1)
    process = start(SAVE + KILLED[point], folder)
    assert process.wait() == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) >= 2
    held = 2 if point in ("replaced", "deleting") else 1
    assert is_there(folder) and read_settled(folder, lambda: read_pair(folder)) == (held, held)
    assert ("a save was interrupted; what was there before is back" in caplog.text) == (point == "taken away")
    with new_folder(folder) as fresh:
        fill(fresh, 3)
    assert read_pair(folder) == (3, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_a_dead_process_left_of_a_file_is_removed_and_what_others_write_is_not(tmp_path):
    process = start("with new_file(place) as fresh:\n    fresh.write_text('half')\n    os._exit(0)", tmp_path / "x.1")
    process.wait()
    (tmp_path / ".x.9.saving").write_text("another file's")
    (tmp_path / ".x.1.1.9.saving").write_text("another file's")
    assert (tmp_path / f".x.1.{process.pid}.saving").read_text() == "half"
    with new_file(tmp_path / "x.1") as fresh:
        fresh.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.1.1.9.saving", ".x.9.saving", "x.1"]
    assert (tmp_path / "x.1").read_text() == "whole"


def test_what_fails_leaves_all_as_it_was(tmp_path):
    with new_file(tmp_path / "file") as fresh:
        fresh.write_text("whole")
    for place, new in ((tmp_path / "file", new_file), (tmp_path / "none", new_folder), (tmp_path / "nil", new_file)):
        with pytest.raises(KeyboardInterrupt), new(place) as fresh:
            (fresh / "a" if new is new_folder else fresh).write_text("half")
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "whole"


FIGHT = """
print('ready', flush=True)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 100):
    with new_folder(place) as fresh:
        for name in ('a', 'b'):
            (fresh / name).write_text(str(number))
    assert is_there(place)
"""


def test_two_writers_and_a_reader_lose_nothing_and_mix_nothing(tmp_path):
    folder = tmp_path / "folder"
    with new_folder(folder) as fresh:
        fill(fresh, 0)
    writers = [start(FIGHT, folder, first) for first in (1000, 2000)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        first, second = read_settled(folder, lambda: read_pair(folder))
        assert first == second
        seen.add(first)
    assert [writer.returncode for writer in writers] == [0, 0] and len(seen) > 2
    assert read_pair(folder)[0] in (1099, 2099) and [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_stays_is_refused_at_once(tmp_path):
    calls = []

    def refuse():
        calls.append(1)
        raise FileFormatError("damaged")

    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileFormatError, match="damaged"):
            read_settled(folder, refuse)
    assert len(calls) == 2


def test_a_folder_that_never_stays_is_refused_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_PAUSE", 0.0)
    monkeypatch.setattr(saving, "_ATTEMPTS", 5)
    folder, calls = tmp_path / "folder", []

    def overtaken():
        calls.append(1)
        with new_folder(folder) as fresh:
            fill(fresh, len(calls))
        return read_pair(folder)

    with pytest.raises(FileFormatError, match="was replaced each of 5 times that it was read; expected it to stay"):
        read_settled(folder, overtaken)


def test_where_nothing_can_be_renamed_the_way_out_is_said(tmp_path, monkeypatch):
    (tmp_path / ".folder.previous").mkdir()

    def read_only(lock):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(saving, "_acquired", read_only)
    with pytest.raises(FileFormatError, match=r"folder does not exist, but .*\.folder\.previous does: .*Read-only"):
        is_there(tmp_path / "folder")
