"""Parts of the tasks, one by one; that the tasks run is in test_tasks.py."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file

from tests.networks import CNNS, random_params
from weightedit.data.cnn_zoo import CNNZoo, load_zoo, save_zoo, split_by_network
from weightedit.errors import WeightEditError
from weightedit.files.saving import claimed
from weightedit.network.spec import NetworkSpec
from weightedit.prediction import generalization
from weightedit.training.plan import TrainOptions
from weightedit.training.state import read_log

TASKS = Path(__file__).parent.parent / "tasks"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch):
    """A task's module by its name."""
    monkeypatch.syspath_prepend(str(TASKS))
    return importlib.import_module


def test_a_predictor_that_ranks_nothing_in_a_test_says_so(task):
    training = task("train_predictor")
    run = {"parameters": 1000, "seconds": 1.0, "steps": 10, "tau": {"as trained": 0.5, "rescaled": 0.25}}
    other = run | {"tau": {"as trained": 0.7, "rescaled": None}}
    row = training.tau_table({"dws": [other, run]}).splitlines()[-1]
    assert row == "| dws | 1,000 | 100 | 0.600 ± 0.141 | nan |"
    assert "| rescaled | nan |" in training.Accuracy().card(other | {"best_step": 4})


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
    training, name = task("train_predictor"), option.partition(".")[0]
    words = (option, "dws.width=5")
    predictor = training.Accuracy(metanet=(name, "dws"), options=words, embedding=3).predictor(name, CNNS["relu"], 0)
    found = predictor.metanet.config
    assert getattr(found, field) == expected and isinstance(hash(found), int)
    assert predictor.predict(CNNS["relu"], random_params(CNNS["relu"], count=2)).shape == (2, 1)


@pytest.mark.parametrize("option", ["nobody.layers=2", "dws.layers", "dws", "dws.=3"])
def test_options_of_nothing_are_refused(option, task):
    config = task("train_predictor").Accuracy(metanet=("dws",), options=(option,))
    with pytest.raises(WeightEditError, match=f"got the option '{option}'; expected name"):
        config.predictor("dws", CNNS["relu"], 0)


@pytest.fixture
def zoos(tmp_path):
    """Folders of two saved zoos that differ in activation, filters and kernel, and of one for other images."""
    specs = [CNNS["relu"], NetworkSpec.cnn((1, 3, 4), "tanh", kernel=(5, 5)), NetworkSpec.cnn((1, 3, 7), "relu")]
    for number, spec in enumerate(specs):
        facts = {name: torch.linspace(0.1, 0.9, 20, dtype=torch.float64) for name in ("step", "test_accuracy")}
        zoo = CNNZoo(spec, random_params(spec, count=20, dtype=torch.float32), torch.arange(20), facts)
        save_zoo(tmp_path / f"zoo{number}", split_by_network(zoo), {})
    return tuple(str(tmp_path / f"zoo{number}") for number in range(3))


def test_training_on_several_zoos_goes_on_to_the_same_bits(task, zoos, tmp_path, monkeypatch, capsys):
    options = TrainOptions(6, batch_size=5, validate_every=2, checkpoint_every=1)
    whole = task("train_predictor").Accuracy(
        zoos[:2],
        out=str(tmp_path / "whole"),
        metanet=("gauge-gmn",),
        options=("gauge-gmn.layers=1",),
        embedding=4,
        augment=True,
        training=options,
    )
    run = whole.run()["gauge-gmn"][0]
    told = capsys.readouterr().out
    assert "on 10 test networks" in told and [list(taus) for taus in run["tau by zoo"].values()] == [
        ["as trained", "permuted", "rescaled 1 to 1000", "rescaled e^-6 to e^6"],
        ["as trained", "permuted", "sign-flipped"],
    ]
    assert list(run["tau by zoo"]) == list(zoos[:2]) and f"| gauge-gmn on {zoos[1]} |  |  | " in told
    card = (tmp_path / "whole" / "gauge-gmn-seed0" / "predictor" / "README.md").read_text()
    assert f"| test networks | Kendall's tau-b | {zoos[0]} | {zoos[1]} |" in card and "| - |" in card
    stopped, validations = dataclasses.replace(whole, out=str(tmp_path / "stopped")), []
    ranked = generalization.kendall_tau

    def kill(*rest):
        validations.append(ranked(*rest))
        if len(validations) == 2:
            raise KeyboardInterrupt
        return validations[0]

    with monkeypatch.context() as killing:
        killing.setattr(generalization, "kendall_tau", kill)
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
    assert len(read_log(tmp_path / "stopped" / "gauge-gmn-seed0" / "run")) == 3, "in the second of three validations"
    stopped.run()
    weights = [
        load_file(tmp_path / out / "gauge-gmn-seed0/predictor/model.safetensors") for out in ("whole", "stopped")
    ]
    logs = [
        [record["loss"] for record in read_log(tmp_path / out / "gauge-gmn-seed0/run")] for out in ("whole", "stopped")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 6
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_both_halves_of_the_public_zoo_are_two_zoos(task, monkeypatch):
    training, count = task("train_predictor"), 20

    def half(folder, activation, steps):
        facts = {name: torch.zeros(count, dtype=torch.float64) for name in ("step", "test_accuracy")}
        params = random_params(CNNS[activation], count=count)
        return CNNZoo(CNNS[activation], params, torch.arange(count) // 2, facts)

    monkeypatch.setattr(training, "load_small_cnn_zoo", half)
    config = training.Accuracy(small_cnn_zoo="public", activation=("tanh", "relu"))
    assert config.names() == ["public tanh", "public relu"]
    for split, size in (("train", 8), ("validation", 1), ("test", 5)):
        zoos = config.splits()[split]
        assert [(zoo.spec, len(zoo)) for zoo in zoos] == [(CNNS["tanh"], size), (CNNS["relu"], size)]


def test_zoos_that_make_no_set_are_refused(task, zoos, tmp_path):
    def refused(message, zoo, metanet="gauge-gmn"):
        with pytest.raises(WeightEditError, match=message):
            task("train_predictor").Accuracy(zoo, out=str(tmp_path / "out"), metanet=("gauge-gmn", metanet)).run()

    refused(r"got zoos of \(channels, classes\) \[\(1, 4\), \(1, 7\)\]; expected the same in all", zoos)
    refused(r"got the zoos \[.*\]; expected at least one, and each once: correct", (zoos[0], zoos[0]))
    refused("got statistics for zoos of several architectures, of which it does not read", zoos[:2], "statistics")
    assert not (tmp_path / "out").exists(), "nothing was trained before"


def test_systems_are_trained_where_their_time_is_counted(task):
    assert task("compare_metanets").Job("classes", "mlp", 0, 1e-3, 10).training(32).cpu


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
    for other in ({"seed": 1}, {"kernel": 5}):
        with pytest.raises(WeightEditError, match="zoo holds a zoo of other options; expected none, or this one: choo"):
            making.main(dataclasses.replace(config, **other))
    card = json.loads((out / "card.json").read_text())
    del card["facts"]["config"]["kernel"]  # as zoos of before have it
    (out / "card.json").write_text(json.dumps(card))
    assert making.is_finished(config, out)


def test_fits_of_photographs_by_size_go_on_where_they_were(task, tmp_path, monkeypatch):
    sizes = task("compare_fits").Sizes
    config = sizes(smoke=True, out=str(tmp_path))
    rows = config.run()
    assert [row["pixels"] for row in rows] == ["16 x 16 x 1"] * 2 + ["16 x 16 x 3"] * 2
    assert rows[0]["dB"] >= 15 and rows[1]["fit"].startswith("adam, rate 0.00")
    monkeypatch.setattr(sizes, "row", lambda *rest: pytest.fail("measured again"))
    assert config.run() == rows and "| 16 x 16 x 3 |" in (tmp_path / "sizes.md").read_text()


def test_a_set_of_which_nothing_is_left_says_so(task, tmp_path):
    fitting, pictures = task("fit_inrs"), tmp_path / "pictures" / "train" / "a"
    pictures.mkdir(parents=True)
    for number in range(3):
        noise = torch.randint(256, (8, 8), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(pictures / f"{number}.png")
    source = fitting.ImageSource(str(tmp_path / "pictures"), test_split="", validation=1)
    config = fitting.Config(source=source, out=str(tmp_path / "set"), hidden=(2,), workers=1)
    with pytest.raises(WeightEditError, match="none of 3 images reached 40 dB; expected some: lower --target-psnr"):
        fitting.main(config)
    few = dataclasses.replace(config, init="dwsnets", target_psnr=None, hidden=(16, 16))
    assert fitting.main(few) == Path(config.out)


def commands() -> list[tuple[str, list[str]]]:
    """What pages and tasks tell a reader to type: the name of a task, and its arguments."""
    root, lines, found = TASKS.parent, [], {}
    for path in [root / "README.md", TASKS / "README.md", *root.glob("checkpoints/*/README.md"), *TASKS.glob("*.py")]:
        for place, part in enumerate(path.read_text(encoding="utf-8").replace("\\\n", " ").split("```")):
            prose = path.suffix == ".md" and place % 2 == 0
            lines += [span.replace("\n", " ") for span in re.findall("`([^`]+)`", part)] if prose else part.splitlines()
    for line in lines:
        for name, words in re.findall(r"(?:python|nproc_per_node 2) tasks/(\w+)\.py([^#`]*)", line):
            given = [word for word in words.split("     ")[0].split() if word != "..."]
            found[f"{name} {' '.join(given)}"] = name, given
    return list(found.values())


@pytest.mark.parametrize(("name", "words"), commands(), ids=lambda part: part if isinstance(part, str) else None)
def test_commands_that_pages_name_are_understood(name, words, task):
    tyro.cli(task(name).Config, args=words)
