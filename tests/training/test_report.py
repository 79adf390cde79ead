"""What runs say of themselves, what they cost, and values that are kept while a comparison goes on."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.processes import start
from weightedit.errors import WeightEditError
from weightedit.training.loop import TrainResult
from weightedit.training.measured import Measured
from weightedit.training.plan import TrainOptions
from weightedit.training.report import run_facts, spread, write_result
from weightedit.training.timing import gigaflop, take_turns


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (2, 3)
    place: Path = Path("here")
    training: TrainOptions = field(default_factory=lambda: TrainOptions(cpu=True))


def test_facts_are_json_and_come_back_as_they_are(tmp_path):
    result = TrainResult(2, math.inf, [], 1.5, 4, tmp_path, True, 0)
    facts = run_facts(Config(), torch.nn.Linear(3, 2), result, figures={"tau": math.nan, 3: 0.5})
    assert facts["figures"] == {"tau": None, "3": 0.5} and facts["best_validation"] is None
    assert (facts["parameters"], facts["steps"], facts["config"]["widths"]) == (8, 4, [2, 3])
    assert facts["config"]["place"] == "here" and facts["config"]["training"]["cpu"] and "cores" in facts["hardware"]
    write_result(tmp_path / "new", "result", facts, "| a |")
    assert json.loads((tmp_path / "new/result.json").read_text()) == facts
    assert (tmp_path / "new/result.md").read_text() == "| a |\n"


def test_means_of_nothing_and_of_what_is_no_number_say_so():
    assert [spread(values, 1) for values in ([], [1.0], [0.25, None], [0.25, math.nan])] == ["-", "1.0", "nan", "nan"]


def test_a_brief_training_keeps_what_it_trains_with():
    brief = TrainOptions(steps=1000, learning_rate=0.5, seed=3).brief(1)
    assert (brief.steps, brief.validate_every, brief.batch_size) == (1, 1, 4)
    assert (brief.learning_rate, brief.seed) == (0.5, 3)


def test_contenders_take_turns():
    turns = []
    timed = take_turns({name: lambda name=name: turns.append(name) for name in "ab"}, 2, warmup=1)
    assert turns == list("ababab") and set(timed) == {"a", "b"} and min(t.wall for t in timed.values()) >= 0


def test_products_and_memory_are_counted():
    one = torch.rand(100, 200)
    assert gigaflop(lambda: one @ one.T) == pytest.approx(2 * 100 * 200 * 100 / 1e9)
    start("tests/programs/peak_memory.py").succeed()  # here, memory that another test freed may be taken for it


def test_a_comparison_keeps_what_another_process_measured(tmp_path):
    one, other = (Measured(tmp_path / "runs.json", {"steps": 3}) for _ in range(2))
    one("a", lambda: 1)
    assert other("b", lambda: 2) == 2 and other.values == {"a": 1, "b": 2}
    assert one("c", lambda: 3) == 3
    assert Measured(tmp_path / "runs.json", {"steps": 3}).values == {"a": 1, "b": 2, "c": 3}
    with pytest.raises(WeightEditError, match="of a comparison with {'steps': 3}; expected {'steps': 4}: give --out"):
        Measured(tmp_path / "runs.json", {"steps": 4})
