"""What meta_train.py and compare_optimizers.py say and do, in this process: no training of more than a few steps."""

import importlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tyro

from tests.rules import TinyRule
from tests.test_tasks import ROOT, run_task
from weightedit.errors import WeightEditError
from weightedit.metanet.registry import METANETS, describe_metanet
from weightedit.metatrain.estimators import PES, Horizons, TruncatedBackprop
from weightedit.metatrain.image_optimizees import LabeledImages
from weightedit.metatrain.optimizee import Quadratic
from weightedit.metatrain.problems import TRAINED, images_of, optimizee
from weightedit.metatrain.unroll import Unroll
from weightedit.optim.learned_rule import LearnedRule, make_rule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.rule_module import RuleModule
from weightedit.plots import Band
from weightedit.training.loop import TrainOptions, train


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tasks"))
    return importlib.import_module("compare_optimizers")


def test_the_rate_told_is_the_rules_own(
    comparison: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = []
    monkeypatch.setattr(comparison, "milliseconds", lambda problem, rule, steps: run.append(rule) or 1.0)
    rules = ("adam", "sgd", "muon", "geometric-adam")
    config = comparison.Config(rules=rules, out=str(tmp_path), smoke=True, lowest_rate=0.003, highest_rate=0.003)
    facts = comparison.main(replace(config, images="nowhere"))["rules"]
    for name, rule in zip(rules[1:], run[1:], strict=True):  # Adam is timed as torch's
        assert facts[name]["rate"] == rule.learning_rate == pytest.approx(0.03)
        assert f"| {name} | 0.03 |" in (tmp_path / "comparison.md").read_text()
    assert "| adam | 0.003 |" in (tmp_path / "comparison.md").read_text()


def test_controls_beside_the_rules(comparison: ModuleType, tmp_path: Path) -> None:
    """A second problem, here the first again; rescaled networks; a cosine; a metanetwork's rule without it."""
    data = images_of("digits-mlp", "nowhere")
    rule = make_rule("ng-gnn", [optimizee("digits-mlp", data).wiring.spec])
    folder = str(tmp_path / "rule")
    rule.save_pretrained(folder, "A card.")
    words = {"rescale": 3.0, "unseen": "digits-mlp", "control_seeds": 1, "timed_steps": 0, "images": "nowhere"}
    rules = ("sgd+cosine", folder, f"{folder}+base")
    facts = comparison.main(comparison.Config(rules=rules, smoke=True, out=str(tmp_path / "out"), **words))["rules"]
    ends = {name: found["losses"]["standard"][0][-1] for name, found in facts.items()}
    assert len({round(end, 4) for end in ends.values()}) == 4
    for found in facts.values():
        assert [len(found["losses"][kind]) for kind in ("standard", "rescaled", "digits-mlp")] == [2, 1, 1]
    rescaled, again = (facts[f"{folder}+base"]["losses"][kind] for kind in ("rescaled", "digits-mlp"))
    assert rescaled[0] == pytest.approx(again[0], rel=1e-3)  # the same network, and base steps keep its symmetry
    base = comparison.learned_rule(f"{folder}+base")
    rule.load_state_dict({**rule.state_dict(), "log_share": torch.full((2,), -math.inf)})
    assert comparison.named("rule", base, 1.0) == comparison.named("rule", rule, 1.0)
    lean = str(ROOT / "checkpoints/small-classifier")
    with pytest.raises(WeightEditError, match="of kind metanet-rule; expected the rule of a metanetwork"):
        comparison.main(comparison.Config(rules=(f"{lean}+base",)))


def test_rules_of_folders_of_one_name_are_told_apart(comparison: ModuleType) -> None:
    names = ["adam", "a/x/rule", "a/y/rule", "b/y/rule/", "c/small", "runs/adam", "./d/rule", "d/rule"]
    found = ["adam", "x/rule", "a/y/rule", "b/y/rule", "small", "runs/adam", "./d/rule", "d/rule"]
    assert list(comparison.labels(names).values()) == found


def test_steps_that_end_between_two_evaluations_are_refused(comparison: ModuleType) -> None:
    with pytest.raises(WeightEditError, match="1000 steps evaluated every 300; expected a multiple.*--steps 900"):
        comparison.main(comparison.Config(steps=1000, evaluate_every=300))
    with pytest.raises(WeightEditError, match="evaluated every 0"):
        comparison.main(comparison.Config(evaluate_every=0))


def test_seconds_to_adams_lowest_loss(comparison: ModuleType) -> None:
    """Steps times milliseconds, and as a multiple of Adam's; no column where nothing was timed."""
    losses = {"adam": [3.0, 2.0, 1.0], "quick": [3.0, 1.0, 1.0], "slow": [3.0, 2.0, 1.5]}
    times = {"adam": 10.0, "quick": 50.0, "slow": 20.0}
    facts = {
        name: {
            "rate": None,
            "losses": {"standard": [run]},
            "accuracy": {"standard": [0.5]},
            "milliseconds": times[name],
        }
        for name, run in losses.items()
    }
    config = comparison.Config(steps=400, evaluate_every=200, seeds=1)
    table = comparison.report(config, facts).splitlines()
    assert table[2].endswith("| ms per step | times fused Adam's | seconds to 1.000 | times Adam's |")
    assert len({line.count("|") for line in table[2:]}) == 1
    assert table[4].endswith("| 10.00 | 1.00 | 4.00 | 1.00 |")
    assert table[5].endswith("| 50.00 | 5.00 | 10.00 | 2.50 |")
    assert table[6].endswith("| 20.00 | 2.00 | never | - |")
    assert "seconds" not in comparison.report(replace(config, timed_steps=0), facts)


@pytest.fixture
def meta_training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tasks"))
    return importlib.import_module("meta_train")


def test_fits_are_validated_on_images_that_no_inner_step_saw(meta_training: ModuleType) -> None:
    """The images of training are black, those held out white: a rule that does nothing shows which it was asked."""
    black = LabeledImages(torch.zeros(4, 1, 6, 6), torch.zeros(4, dtype=torch.long), 1)
    white = replace(black, images=torch.ones(4, 1, 6, 6))
    rule = MLPRule(MLPRuleConfig.per_parameter(1e-30))
    validated, (expected, trained) = (
        meta_training.score_of(rule, optimizee("mnist-siren", black, white, hidden=(4,)), 2),
        [meta_training.score_of(rule, optimizee("mnist-siren", seen, hidden=(4,)), 2) for seen in (white, black)],
    )
    assert validated == expected != trained


def test_memory_is_told_of_all_problems(
    meta_training: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The states of all, and the most that a call needs beside its own: here 1 + 2 + 3 and 9 MiB."""
    found = iter([(1, 3), (2, 11), (3, 5)])
    monkeypatch.setattr(meta_training, "memory_of", lambda *_: tuple(2**20 * size for size in next(found)))
    meta_training.tell_memory(meta_training.Config(), [None] * 3)
    assert "an outer step holds up to 15.0 MiB per process" in capsys.readouterr().out


def test_the_curve_is_drawn_at_every_validation(
    meta_training: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, bands = [], meta_training.bands

    def recorded(panels: dict[str, list[Band]], path: Path, **options: str) -> Path:
        drawn.append({band.label: list(band.x) for band in panels["outer step"]})
        return bands(panels, path, **options)

    monkeypatch.setattr(meta_training, "bands", recorded)
    meta_training.main(meta_training.Config(smoke=True, rule="per-parameter", out=str(tmp_path)))
    assert [curve["validation"] for curve in drawn] == [[2], [2, 4], [2, 4]]
    assert drawn[0]["meta-loss"] == [1.0] and drawn[-1]["meta-loss"] == [1.0, 2.0, 3.0, 4.0]
    assert (tmp_path / "curve.png").stat().st_size > 5000


# Of names that share a class, the last; optim/test_learned_rule.py takes steps with all of them.
@pytest.mark.parametrize("name", {e.kind: name for name, e in METANETS.items() if name != "statistics"}.values())
def test_every_metanetwork_is_meta_trained_by_its_name(
    meta_training: ModuleType, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what is the same for all of them: the curve, and the run that memory is measured in."""
    for same in ("draw", "tell_memory"):
        monkeypatch.setattr(meta_training, same, lambda *_: None)
    layers = () if name == "mlp" else ("layers=1",)
    config = meta_training.Config(smoke=True, rule=name, options=layers, validation_runs=1, out=str(tmp_path))
    meta_training.main(config)
    rule = RuleModule.from_pretrained(tmp_path / "rule")
    assert isinstance(rule, LearnedRule) and describe_metanet(rule.metanet)[0] == name
    assert f"kind {name}" in (tmp_path / "rule/README.md").read_text()


def test_a_metanetwork_is_no_rule_for_what_is_no_network(meta_training: ModuleType) -> None:
    with pytest.raises(WeightEditError, match="dws for a problem that is no network which a spec describes"):
        meta_training.new_rule(meta_training.Config(rule="dws"), [Quadratic()])


def test_a_state_is_taken_up_on_the_device_of_the_rule(meta_training: ModuleType) -> None:
    rule = MLPRule(MLPRuleConfig.per_parameter(1e-3)).to("meta")
    carried = meta_training.MetaLoss([PES(Unroll(rule, Quadratic()), Horizons(2, 3))])
    carried.load({"turn": torch.tensor(5), "0/seed": torch.tensor(1), "0/inner/step": torch.zeros(4)})
    assert carried.turn == 5 and {tensor.device.type for tensor in carried.states[0].values()} == {"meta"}


def test_a_meta_training_resumed_twenty_times_is_one(meta_training: ModuleType, tmp_path: Path) -> None:
    """Gradients are summed over the tensors of an inner run, which come back in their order."""
    problem = optimizee("digits-mlp", *images_of("digits-mlp", "").split(TRAINED), hidden=(4, 4, 4))
    options = TrainOptions(steps=2, batch_size=1, validate_every=1, checkpoint_every=1, cpu=True)

    def state_after(folder: Path, steps: int) -> bytes:
        rule = TinyRule()
        carried = meta_training.MetaLoss([TruncatedBackprop(Unroll(rule, problem), Horizons(300, 900), 2, 2)])
        data, place = meta_training.OuterSteps(), replace(options, steps=steps)
        train(rule, carried, data, lambda rule: 1.0, folder, place, carried=carried, progress=False)
        return (folder / f"state/step-{steps:08d}/state.safetensors").read_bytes()

    whole = state_after(tmp_path / "whole", 2)
    state_after(tmp_path / "half", 1)
    for attempt in range(20):
        assert state_after(shutil.copytree(tmp_path / "half", tmp_path / str(attempt)), 2) == whole


def test_problems_are_optimizees_too(meta_training: ModuleType) -> None:
    """`--optimizee` is another name of `--problems`."""
    for flag in ("--problems", "--optimizee"):
        assert tyro.cli(meta_training.Config, args=[flag, "cifar-mlp", "mnist-siren"]).problems[1] == "mnist-siren"


def test_compare_trainings(tmp_path: Path) -> None:
    words = ("--smoke", "--tasks", "digits-mlp", "--rivals", "sgd", "--out", str(tmp_path / "t"))
    words += ("--rules", str(ROOT / "checkpoints/small-classifier"))
    first = run_task("compare_trainings", *words)
    assert "| adamw |" in first.stdout and "| sgd |" in first.stdout, "AdamW, the mark, is always there"
    found = json.loads((tmp_path / "t/trainings.json").read_text())["runs"]["digits-mlp"]
    for runs in found.values():
        assert runs[0]["test"][0] == found["adamw"][0]["test"][0], "all start from the same network"
        assert runs[0]["ms"] > 0
    assert found["sgd"][0]["state"] == 1.0 and 2 <= found["adamw"][0]["state"] < 2.1, (
        "a momentum; two, and step numbers"
    )
    assert (tmp_path / "t/digits-mlp.png").exists()
    again = run_task("compare_trainings", *words)
    assert again.stdout == first.stdout, "what was run once stays"
    wrong = run_task("compare_trainings", "--tasks", "mnist", check=False)
    assert wrong.returncode == 2 and "got ['mnist']" in wrong.stderr.splitlines()[-1]


def test_learned_rules_come_with_a_rate_and_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tasks"))
    task = importlib.import_module("compare_trainings")
    found = [task.Learned.of(name) for name in ("a", "runs/a@0.3", "a+cosine", "a@3+cosine+compiled")]
    asked = [("a", 1.0), ("runs/a", 0.3), ("a", 1.0), ("a", 3.0)]
    ways = [(False, False), (False, False), (True, False), (True, True)]
    assert found == [(*one, *way) for one, way in zip(asked, ways, strict=True)]
    net, data = torch.nn.Linear(64, 10), task.workload("digits-mlp")
    (optimizer,), factor = task.made(str(ROOT / "checkpoints/small-classifier@3+cosine"), net, 3.0, 40, data, "cpu")
    assert optimizer.param_groups[0]["lr"] == 3 and factor(39) < 0.01 < factor(20)
    for wrong in ("a@x", "a@-1"):
        with pytest.raises(WeightEditError, match=f"got the rule {wrong}; expected a positive number after @"):
            task.Learned.of(wrong)
    assert task.Learned.of("runs/a+b+compiled").folder == "runs/a+b"


@pytest.mark.parametrize(("best", "expected"), [(0.003, 0.003), (0.1, 0.0949), (1e-9, 9.49e-6), (math.inf, 0.949)])
def test_rivals_are_tried_at_rates_beyond_while_the_best_is_at_an_end(
    best: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW with three rates around 3e-3: four more at most, all over a run of another seed."""
    monkeypatch.syspath_prepend(str(ROOT / "tasks"))
    task = importlib.import_module("compare_trainings")
    contest, tried = task.Contest("fashion-8x8", task.Config(rates=3, seeds=2), None), []

    def run(_: object, __: str, rate: float, seed: int) -> dict[str, object]:
        tried.append((rate, seed))
        return {"validation": [abs(math.log(rate / best)) if best < math.inf else -rate], "rate": rate}

    monkeypatch.setattr(task.Contest, "run", run)
    assert [run["rate"] for run in contest.runs("adamw")] == [expected] * 2
    assert len(set(tried)) == len(tried) <= 3 + 4 + 2
    assert {seed for _, seed in tried[:-2]} == {task.TUNING_SEED} and [seed for _, seed in tried[-2:]] == [0, 1]


def test_the_mark_is_adamws_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points by hand: AdamW ends at .5 after 4 steps of 2 ms, the rule is there after 2 of 3 ms."""
    monkeypatch.syspath_prepend(str(ROOT / "tasks"))
    task = importlib.import_module("compare_trainings")

    def runs(losses: list[float], milliseconds: float) -> list[dict[str, object]]:
        common = {"rate": 1.0, "every": 1, "validation": losses, "state": 2.0, "train": [2.0, 1.0, 1.5]}
        return [{**common, "test": losses, "ms": milliseconds}]

    own, adamw = runs([2, 1, 0.4, 0.3, 0.2], 3), runs([2, 1, 0.8, 0.6, 0.5], 2)
    text = task.report(
        task.Config(evaluations=4, seeds=1), {"t": {"adamw": adamw, "own": own, "sgd": runs([2] * 5, 1)}}
    )
    row = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()[6:] if " | " in line}
    assert row["own"][6:9] == ["50", "2.00x", "1.33x"] and row["sgd"][7:9] == ["never", "never"]
