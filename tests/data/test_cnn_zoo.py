"""CNN zoos: saved and loaded whole, split by network; the public Small CNN Zoo, from files written in its layout."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from tests.networks import ACTIVATIONS, generator, random_params
from weightedit.data.cnn_zoo import (
    SPLITS,
    CNNZoo,
    concatenate_zoos,
    load_zoo,
    read_zoo_card,
    read_zoo_table,
    save_zoo,
    split_by_network,
    write_zoo_table,
)
from weightedit.data.small_cnn_zoo import load_small_cnn_zoo
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.network.spec import NetworkSpec

SPEC = NetworkSpec.cnn((1, 4, 3, 5), ACTIVATIONS["relu"])


def _zoo(networks=10, checkpoints=2, seed=0):
    count = networks * checkpoints
    params = random_params(SPEC, count=count, seed=seed, dtype=torch.float32)
    facts = {
        "step": torch.arange(checkpoints, dtype=torch.float64).repeat(networks),
        "test_accuracy": torch.rand(count, generator=generator(seed), dtype=torch.float64),
        "config.optimizer": tuple("adam" if i % 3 else "sgd" for i in range(count)),
    }
    return CNNZoo(SPEC, params, torch.arange(networks).repeat_interleave(checkpoints), facts)


def _equal(one, other):
    assert one.spec == other.spec and torch.equal(one.network, other.network) and set(one.facts) == set(other.facts)
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
    for name, fact in one.facts.items():
        assert torch.equal(fact, other.facts[name]) if isinstance(fact, torch.Tensor) else fact == other.facts[name]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    splits = split_by_network(_zoo())
    save_zoo(tmp_path / "zoo", splits, {"images": "blobs"})
    card = read_zoo_card(tmp_path / "zoo")
    assert card["facts"] == {"images": "blobs"} and card["splits"]["test"]["networks"] == 2
    for name in SPLITS:
        _equal(load_zoo(tmp_path / "zoo", name), splits[name])
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == sorted(
        [*(f"{s}.parquet" for s in SPLITS), "card.json"]
    )


class PowerCut(BaseException):
    """Nothing catches it."""


def test_whenever_the_power_fails_a_folder_with_a_card_is_whole(tmp_path, monkeypatch):
    """In the midst of every file, and before and after it gets its name; the zoo can be written there again."""

    splits = split_by_network(_zoo())
    for point in range(20):
        left, folder = [point], tmp_path / str(point)

        def mortal(function, midst=None, left=left):
            def call(*given, **options):
                left[0] -= 1
                if left[0] < 0:
                    midst(*given) if midst else None
                    raise PowerCut
                return function(*given, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(
                pq, "write_table", mortal(pq.write_table, lambda table, path: Path(path).write_bytes(b"PAR1"))
            )
            patch.setattr(Path, "write_text", mortal(Path.write_text, lambda path, text: path.write_bytes(b"{")))
            patch.setattr(os, "replace", mortal(os.replace))
            try:
                save_zoo(folder, splits, {})
                break
            except PowerCut:
                pass
        for path in folder.glob("*.parquet"):
            _equal(read_zoo_table(path, SPEC), splits[path.stem])
        assert not (folder / "card.json").exists()
        save_zoo(folder, splits, {})
        _equal(load_zoo(folder, "train"), splits["train"])
    assert point == 8  # four files, each written and named


def test_a_table_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):

    path, zoo = tmp_path / "part.parquet", _zoo()
    write_zoo_table(zoo, path)

    def midst(table, place, **options):
        Path(place).write_bytes(b"PAR1")
        raise PowerCut

    monkeypatch.setattr(pq, "write_table", midst)
    with pytest.raises(PowerCut):
        write_zoo_table(_zoo(seed=1), path)
    _equal(read_zoo_table(path, SPEC), zoo)


def test_a_network_is_in_one_split_and_the_choice_repeats():
    splits, again, other = (split_by_network(_zoo(20, 3), (0.2, 0.3), seed) for seed in (1, 1, 2))
    sets = [set(splits[name].network.tolist()) for name in SPLITS]
    assert [len(s) for s in sets] == [10, 4, 6] and len(set().union(*sets)) == 20
    assert [len(splits[name]) for name in SPLITS] == [30, 12, 18]
    _equal(splits["test"], again["test"])
    assert not torch.equal(splits["test"].network, other["test"].network)


def test_last_checkpoints_choices_and_joins():
    zoo = _zoo()
    assert zoo.last().numbers("step").tolist() == [1.0] * 10 and zoo.last().network.tolist() == list(range(10))
    halves = [zoo[zoo.network < 4], zoo[zoo.network >= 4]]
    _equal(concatenate_zoos(halves), zoo)
    assert len(zoo[2:5]) == 3 and zoo[2:5].facts["config.optimizer"] == zoo.facts["config.optimizer"][2:5]
    moved = zoo.with_params({name: 2 * tensor for name, tensor in zoo.params.items()})
    assert torch.equal(moved.numbers("test_accuracy"), zoo.numbers("test_accuracy"))
    with pytest.raises(WeightEditError, match="the fact 'config.optimizer'; expected one of step, test_accuracy"):
        zoo.numbers("config.optimizer")
    with pytest.raises(WeightEditError, match="zoos of different specs or facts"):
        concatenate_zoos([zoo, CNNZoo(zoo.spec, zoo.params, zoo.network, {})])


def test_zoos_that_do_not_fit_are_refused(tmp_path):
    zoo = _zoo()
    with pytest.raises(WeightEditError, match=r"network torch.float32 .* for 20 checkpoints; expected int64"):
        CNNZoo(SPEC, zoo.params, zoo.network.float(), zoo.facts)
    with pytest.raises(WeightEditError, match=r"expected int64 \(N,\), and float64"):
        CNNZoo(SPEC, zoo.params, zoo.network, {"step": zoo.numbers("step").float()})
    with pytest.raises(ParamsError, match="holds NaN"):
        CNNZoo(SPEC, {**zoo.params, "layers.0.bias": zoo.params["layers.0.bias"] / 0}, zoo.network, zoo.facts)
    with pytest.raises(WeightEditError, match="expected at least one network in each"):
        split_by_network(_zoo(3), (0.1, 0.1))
    with pytest.raises(WeightEditError, match="splits that share a network"):
        save_zoo(tmp_path / "a", {"train": zoo, "test": zoo}, {})
    with pytest.raises(WeightEditError, match="are no JSON"):
        save_zoo(tmp_path / "b", {"train": zoo}, {"rate": float("nan")})
    save_zoo(tmp_path / "c", {"train": zoo}, {})
    with pytest.raises(WeightEditError, match="already holds card.json"):
        save_zoo(tmp_path / "c", {"train": zoo}, {})


def test_damaged_folders_are_refused(tmp_path):
    save_zoo(tmp_path, split_by_network(_zoo()), {})
    with pytest.raises(FileFormatError, match="has no split 'holdout'; expected one of train"):
        load_zoo(tmp_path, "holdout")
    for outputs in (4, 6):
        other = NetworkSpec.cnn((1, 4, 3, outputs), ACTIVATIONS["relu"])
        with pytest.raises(FileFormatError, match=r"rows of \d+ weights; expected"):
            read_zoo_table(tmp_path / "test.parquet", other)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileFormatError, match="missing or not the file the card states"):
        load_zoo(tmp_path, "test")
    with pytest.raises(FileFormatError, match="could not be read .*expected a zoo table: copy it again"):
        read_zoo_table(tmp_path / "test.parquet", SPEC)
    (tmp_path / "card.json").write_text(json.dumps({"format": "weightedit-weight-set", "version": 1}))
    with pytest.raises(FileFormatError, match="is not of the format 'weightedit-cnn-zoo'"):
        load_zoo(tmp_path, "train")
    with pytest.raises(FileFormatError, match="there is no .*card.json; .* make a zoo with"):
        load_zoo(tmp_path / "nowhere", "train")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(FileFormatError, match="is not valid JSON"):
        load_zoo(tmp_path, "train")


LAYOUT = [
    ("sequential/conv2d/bias:0", (16,)),
    ("sequential/conv2d/kernel:0", (3, 3, 1, 16)),
    ("sequential/conv2d_1/bias:0", (16,)),
    ("sequential/conv2d_1/kernel:0", (3, 3, 16, 16)),
    ("sequential/conv2d_2/bias:0", (16,)),
    ("sequential/conv2d_2/kernel:0", (3, 3, 16, 16)),
    ("sequential/dense/bias:0", (10,)),
    ("sequential/dense/kernel:0", (16, 10)),
]


def _write_public(folder, rows=8):
    """The three files, as the public zoo has them; returns the weights."""
    folder.mkdir(exist_ok=True)
    source = np.random.default_rng(0)
    lines, start = ["varname,start_idx,end_idx,shape"], 0
    for name, shape in LAYOUT:
        end = start + int(np.prod(shape))
        lines.append(f'{name},{start},{end},"{shape}"')
        start = end
    (folder / "layout.csv").write_text("\n".join(lines) + "\n")
    weights = source.normal(0, 0.3, (rows, start)).astype(np.float32)
    np.save(folder / "weights.npy", weights)
    table = [",config.activation,config.learning_rate,config.optimizer,modeldir,step,test_accuracy"]
    for i in range(rows):
        activation = "relu" if i % 4 < 2 else "tanh"
        table.append(f"{i},{activation},{0.01 * (i + 1)},adam,/models/{i // 2},{86 if i % 2 else 20},{0.1 * i}")
    with gzip.open(folder / "metrics.csv.gz", "wt") as file:
        file.write("\n".join(table) + "\n")
    return weights


def _as_tensorflow_computes(weights, image):
    """A loop over positions and filters, from the flat row itself: kernels (height, width, in, out), no padding."""
    parts, start = {}, 0
    for name, shape in LAYOUT:
        parts[name] = weights[start : start + int(np.prod(shape))].reshape(shape).astype(np.float64)
        start += int(np.prod(shape))
    for layer in ("conv2d", "conv2d_1", "conv2d_2"):
        kernel, bias = parts[f"sequential/{layer}/kernel:0"], parts[f"sequential/{layer}/bias:0"]
        size = (image.shape[0] - 3) // 2 + 1
        found = np.zeros((size, size, 16))
        for row in range(size):
            for column in range(size):
                window = image[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                found[row, column] = np.einsum("hwi,hwio->o", window, kernel) + bias
        image = np.maximum(found, 0)
    return image.mean((0, 1)) @ parts["sequential/dense/kernel:0"] + parts["sequential/dense/bias:0"]


def test_the_public_zoo_computes_what_tensorflow_would(tmp_path):
    weights = _write_public(tmp_path)
    zoo = load_small_cnn_zoo(tmp_path, "relu")
    assert zoo.spec == NetworkSpec.cnn((1, 16, 16, 16, 10), ACTIVATIONS["relu"]) and zoo.spec.parameter_count == 4970
    assert zoo.numbers("test_accuracy").tolist() == pytest.approx([0.1, 0.5])
    assert zoo.numbers("config.learning_rate").tolist() == pytest.approx([0.02, 0.06])
    assert zoo.facts["config.optimizer"] == ("adam", "adam") and zoo.network.tolist() == [0, 1]
    image = torch.rand(1, 1, 32, 32, generator=generator(), dtype=torch.float64)
    double = {name: tensor.double() for name, tensor in zoo.params.items()}
    found = zoo.spec.forward(double, image)
    for row, source in zip(found, (1, 5), strict=True):
        expected = _as_tensorflow_computes(weights[source], image[0].permute(1, 2, 0).numpy())
        torch.testing.assert_close(row[0], torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    assert functional.softmax(found, -1).isfinite().all()


def test_steps_and_activations_are_chosen(tmp_path):
    _write_public(tmp_path)
    tanh = load_small_cnn_zoo(tmp_path, "tanh", steps=None)
    assert tanh.numbers("step").tolist() == [20, 86, 20, 86] and tanh.network.tolist() == [0, 0, 1, 1]
    assert tanh.spec.layers[0].activation == ACTIVATIONS["tanh"]
    assert load_small_cnn_zoo(tmp_path, "relu", steps=[20]).numbers("test_accuracy").tolist() == pytest.approx([0, 0.4])


def test_checkpoints_that_are_not_finite_are_left_out(tmp_path):
    weights = _write_public(tmp_path)
    weights[1, 7] = np.nan
    np.save(tmp_path / "weights.npy", weights)
    zoo = load_small_cnn_zoo(tmp_path, "relu")
    assert zoo.numbers("test_accuracy").tolist() == pytest.approx([0.5]) and zoo.network.tolist() == [1]


def _spoil(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _spoil_metrics(row, before, after):
    """Change row `row` of the table, counted from 1 without the heads."""

    def spoil(folder):
        lines = gzip.decompress((folder / "metrics.csv.gz").read_bytes()).decode().split("\n")
        assert before in lines[row]
        lines[row] = lines[row].replace(before, after)
        (folder / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))

    return spoil


def _damage(folder):
    """Wrong bytes where gzip's own heads and ends are right."""
    path = folder / "metrics.csv.gz"
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)


def _spoil_layout(before, after):
    return lambda folder: (folder / "layout.csv").write_text((folder / "layout.csv").read_text().replace(before, after))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "layout.csv").unlink(), "layout.csv cannot be read"),
        (
            _spoil("layout.csv", b"varname,start\na,0\n"),
            r"layout.csv has 1 rows and the columns \['varname', 'start'\]",
        ),
        (_spoil("layout.csv", b"varname,start_idx,end_idx,shape\n"), "layout.csv has 0 rows"),
        (_spoil("layout.csv", b"\xff\xfe"), "layout.csv could not be read .*copy the zoo again"),
        (_spoil_layout('0,16,"(16,)"', "0,16"), "layout.csv: row 1 has 3 values; expected 4"),
        (_spoil_layout('0,16,"(16,)"', 'first,16,"(16,)"'), "in columns first to 16; expected a kernel or bias"),
        (_spoil_layout('"(16, 10)"', '"(160,)"'), r"of shape \(160,\) .*; expected a kernel or bias"),
        (_spoil_layout("(16,)", "__import__('os')"), "expected a kernel or bias whose shape fits its columns"),
        (_spoil_layout("(3, 3, 1, 16)", "(3, 3, 2, 16)"), "expected a kernel or bias whose shape fits"),
        (_spoil_layout("dense/kernel", "dense/gamma"), "expected a kernel or bias"),
        (_spoil_layout("dense/bias:0", "other/bias:0"), "expected a kernel each"),
        (_spoil("weights.npy", b"no array"), "weights.npy could not be read .*copy it again"),
        (lambda folder: np.save(folder / "weights.npy", np.zeros((8, 4), np.int64)), "holds int64"),
        (lambda folder: np.save(folder / "weights.npy", np.zeros((8, 4), np.float32)), "within 4 columns"),
        (
            lambda folder: np.save(folder / "weights.npy", np.zeros((7, 4970), np.float32)),
            "has 7 rows and metrics.csv.gz 8",
        ),
        (_spoil("metrics.csv.gz", b"plain"), "metrics.csv.gz could not be read .*copy it again"),
        (_damage, "metrics.csv.gz could not be read .*copy it again"),
        (_spoil("metrics.csv.gz", gzip.compress(b"1\n" * 99)), "has more than 26 lines, or one of 65536 characters"),
        (_spoil("metrics.csv.gz", gzip.compress(b"1" * 99_999)), "expected a line for each row of weights.npy: copy"),
        (
            _spoil("metrics.csv.gz", gzip.compress(b"step\n1\n")),
            r"has 1 rows and the columns \['step'\]; expected a row",
        ),
        (_spoil_metrics(3, ",20,", ",,"), "metrics.csv.gz: row 3 has '' in the column 'step'; expected a number"),
        (_spoil_metrics(8, ",86,", ",nan,"), "row 8 has 'nan' in the column 'step'; expected a number"),
        (_spoil_metrics(2, ",86,0.1", ",86,"), "row 2 has '' in the column 'test_accuracy'; expected a number"),
        (_spoil_metrics(7, ",20,", ","), "metrics.csv.gz: row 7 has 6 values; expected 7, the last one in"),
        (_spoil_metrics(1, ",20,", ",20,20,"), "metrics.csv.gz: row 1 has 8 values; expected 7"),
    ],
)
def test_damaged_public_files_are_refused(spoil, message, tmp_path):
    _write_public(tmp_path)
    spoil(tmp_path)
    with pytest.raises(FileFormatError, match=message):
        load_small_cnn_zoo(tmp_path, "relu")


def test_a_choice_of_nothing_is_refused(tmp_path):
    _write_public(tmp_path)
    with pytest.raises(FileFormatError, match="no checkpoint of activation 'selu' at steps"):
        load_small_cnn_zoo(tmp_path, "selu")
