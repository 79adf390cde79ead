"""Small files that ask for much: each refused in one line, below 1 GB and 5 s, in a process of its own."""

import json

from tests.processes import start


def test_what_asks_for_much_is_refused_before_it_is_given(tmp_path):
    start("tests/programs/hostile_files.py", tmp_path).succeed()
    *cases, last = map(json.loads, (tmp_path / "told.jsonl").read_text().splitlines())
    assert len(cases) == 14 and last["row"] == 600
    for case in cases:
        assert "expected" in case["message"] and "\n" not in case["message"] and case["seconds"] < 5, case
    assert last["peak"] < 10**9
