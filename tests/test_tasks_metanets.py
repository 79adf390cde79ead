"""The parts of the tasks that train and compare metanetworks, one by one; that they run is in test_tasks.py."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from tests.networks import CNNS, random_params
from weightedit.data.cnn_zoo import CNNZoo, load_zoo
from weightedit.errors import WeightEditError
from weightedit.files.saving import claimed

TASKS = Path(__file__).parent.parent / "tasks"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch):
    """A task's module by its name."""
    monkeypatch.syspath_prepend(str(TASKS))
    return importlib.import_module


def test_predictions_that_are_no_numbers_rank_nothing_and_the_table_says_so(task):
    generalization, comparison = task("predict_generalization"), task("compare_metanets")
    right = torch.tensor([0.1, 0.2, 0.3])
    assert generalization.kendall_tau(right.exp(), right) == 1
    assert generalization.kendall_tau(torch.ones(3), right) == 0
    for wrong in (math.nan, math.inf):
        broken = torch.tensor([wrong, 0.2, 0.3])
        assert math.isnan(generalization.kendall_tau(broken, right))
        assert math.isnan(generalization.kendall_tau(right, broken))
    run = {"parameters": 1000, "seconds": 1.0, "steps": 10, "tau": {"as trained": 0.5, "rescaled": 0.25}}
    other = run | {"tau": {"as trained": 0.7, "rescaled": math.nan}}
    row = generalization.table({"dws": [other, run]}, ["as trained", "rescaled"]).splitlines()[-1]
    assert row == "| dws | 1,000 | 100 | 0.600 ± 0.141 | nan ± nan |"
    assert comparison._spread([0.25, math.nan], 3) == "nan" and comparison._spread([0.25, 0.75], 1) == "0.5 ± 0.4"


def test_a_predictor_that_ranks_nothing_in_a_test_is_saved(task, tmp_path):
    generalization = task("predict_generalization")
    config = generalization.Config(embedding=3, hidden=4, out=str(tmp_path))
    predictor = generalization.build_predictor(config, "statistics", CNNS["relu"], 0)
    run = {"tau": {"as trained": 0.5, "rescaled": math.nan}, "parameters": 3, "steps": 4, "best_step": 4}
    generalization.save(predictor, run, config, tmp_path)
    told = json.loads((tmp_path / "predictor" / "config.json").read_text())["training"]
    assert told["tau"] == {"as trained": 0.5, "rescaled": None}
    assert "| rescaled | nan |" in (tmp_path / "predictor" / "README.md").read_text()


def test_validation_of_a_broken_network_is_not_a_number(task, tmp_path, monkeypatch):
    """`train` passes over such a step; a tau of 0 would have been kept."""
    generalization = task("predict_generalization")
    config, seen = generalization.Config(embedding=3, hidden=4), []

    def trained(model, loss, examples, validate, *rest, **about):
        seen.append(validate(model))
        with torch.no_grad():
            model.head[-1].bias.fill_(math.nan)
        seen.append(validate(model))

    params, accuracy = random_params(CNNS["relu"], count=3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    zoo = CNNZoo(CNNS["relu"], params, torch.arange(3), {"test_accuracy": accuracy})
    monkeypatch.setattr(generalization, "train", trained)
    predictor = generalization.build_predictor(config, "statistics", zoo.spec, 0)
    generalization.run_training(predictor, dict.fromkeys(("train", "validation"), zoo), config, "dws", 0, tmp_path)
    assert math.isfinite(seen[0]) and math.isnan(seen[1])


@pytest.mark.parametrize(
    ("option", "field", "expected"),
    [
        ("mlp.widths=[1, 5, 4, 3, 4]", "widths", (1, 5, 4, 3, 4)),
        ("ng-gnn.scalers=[\"identity\"]", "scalers", ("identity",)),
        ("monomial.activations=[\"relu|tanh\", \"relu\", \"relu\"]", "activations", ("relu|tanh", "relu", "relu")),
        ("monomial.symmetry=scale", "symmetry", "scale"),
        ("nfn-np.initial_scale=0.5", "initial_scale", 0.5),
    ],
)  # fmt: skip
def test_options_are_read_as_those_of_the_other_tasks_are(option, field, expected, task):
    generalization, name = task("predict_generalization"), option.partition(".")[0]
    words = (option, "dws.width=5")
    config = generalization.Config(metanet=(name, "dws"), options=words, embedding=3)
    predictor = generalization.build_predictor(config, name, CNNS["relu"], 0)
    found = predictor.metanet.config
    assert getattr(found, field) == expected and isinstance(hash(found), int)
    assert predictor.predict(CNNS["relu"], random_params(CNNS["relu"], count=2)).shape == (2, 1)


@pytest.mark.parametrize("option", ["nobody.layers=2", "dws.layers", "dws", "dws.=3"])
def test_options_of_nothing_are_refused(option, task):
    generalization = task("predict_generalization")
    config = generalization.Config(metanet=("dws",), options=(option,))
    with pytest.raises(WeightEditError, match=f"the option '{option}' came; expected name"):
        generalization.build_predictor(config, "dws", CNNS["relu"], 0)


def test_systems_are_trained_where_their_time_is_counted(task):
    trials = task("metanet_trials")
    assert trials.training(trials.Config(), trials.Job("classes", "mlp", 0, 1e-3, 10)).cpu


def test_a_zoo_goes_on_after_a_kill_while_it_was_saved(task, tmp_path, monkeypatch):
    making, out = task("make_cnn_zoo"), tmp_path / "zoo"
    facts = {name: torch.zeros(10, dtype=torch.float64) for name in ("step", "test_accuracy")}
    zoo = CNNZoo(CNNS["relu"], random_params(CNNS["relu"], count=10), torch.arange(10), facts)
    config = making.Config(out=str(out), networks=10, fit=making.CNNFitOptions((1,)))

    def join(config, parts):
        parts.mkdir(exist_ok=True)
        return zoo

    def kill(*rest, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "join_stacks", join)
    with monkeypatch.context() as killing:
        killing.setattr("weightedit.data.cnn_zoo.json.dumps", kill)
        with pytest.raises(KeyboardInterrupt):
            making.main(config)
    assert (out / "train.parquet").exists() and not (out / "card.json").exists()
    making.main(config)
    assert len(load_zoo(out, "train")) == 6 and not making._parts(config, out).exists()
    (tmp_path / "file").touch()
    with pytest.raises(WeightEditError, match="file is a file; expected a folder: choose another --out"):
        making.main(making.Config(out=str(tmp_path / "file")))


def test_a_zoo_that_is_finished_says_so(task, tmp_path, monkeypatch, capsys):
    making, out = task("make_cnn_zoo"), tmp_path / "zoo"
    facts = {name: torch.linspace(0, 1, 10, dtype=torch.float64) for name in ("step", "test_accuracy")}
    zoo = CNNZoo(CNNS["relu"], random_params(CNNS["relu"], count=10), torch.arange(10), facts)
    config = making.Config(out=str(out), networks=10, fit=making.CNNFitOptions((1,)))
    monkeypatch.setattr(making, "join_stacks", lambda config, parts: parts.mkdir() or zoo)
    with claimed(making._parts(config, out)), pytest.raises(WeightEditError, match="is being written by process"):
        making.main(config)
    assert not out.exists() and making.main(config) == out
    told = capsys.readouterr().out.splitlines()
    monkeypatch.delattr(making, "join_stacks")
    assert making.main(dataclasses.replace(config, device="cuda")) == out
    again = capsys.readouterr().out.splitlines()
    assert again[0] == f"{out}: was finished before, nothing is trained" and again[1:-1] == told[:-1]
    with pytest.raises(WeightEditError, match="zoo holds a zoo of other options; expected none, or this one: choose"):
        making.main(dataclasses.replace(config, seed=1))


def test_a_comparison_keeps_what_another_process_measured(task, tmp_path):
    Measured = task("measured").Measured
    one, other = (Measured(tmp_path / "runs.json", {"steps": 3}) for _ in range(2))
    one("a", lambda: 1)
    assert other("b", lambda: 2) == 2 and other.values == {"a": 1, "b": 2}
    assert one("c", lambda: 3) == 3
    assert Measured(tmp_path / "runs.json", {"steps": 3}).values == {"a": 1, "b": 2, "c": 3}
