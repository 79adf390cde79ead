"""Small files that ask for much: each refused in one line, below 1 GB and 5 s, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_asks_for_much_is_refused_before_it_is_given(tmp_path):
    program = [sys.executable, "-m", "tests.programs.hostile_files", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    *cases, last = map(json.loads, done.stdout.splitlines())
    assert len(cases) == 14 and last["row"] == 600
    for case in cases:
        assert "expected" in case["message"] and "\n" not in case["message"] and case["seconds"] < 5, case
    assert last["peak"] < 10**9
