"""Trainings by name: what is held out is held out, losses are means over examples, networks take their batches."""

import pytest
import torch
from PIL import Image
from torch import nn

from weightedit.errors import WeightEditError
from weightedit.metatrain import networks, workloads
from weightedit.metatrain.workloads import Windows, library_bytes, turned, workload
from weightedit.network.reading import wiring_of

IMAGE = torch.zeros(2, 3, 32, 32)
NETWORKS = {
    "mlp": (lambda: networks.mlp(784, 16, 10), IMAGE[:, :1, :28, :28], (2, 10)),
    "conv_net": (lambda: networks.conv_net(3, 4, 8), IMAGE, (2, 10)),
    "resnet18": (networks.resnet18, IMAGE, (2, 10)),
    "ViT": (networks.ViT, IMAGE, (2, 10)),
    "RowLSTM": (networks.RowLSTM, IMAGE[:, :1, :28, :28], (2, 10)),
    "GPT": (networks.GPT, torch.zeros(2, 7, dtype=torch.long), (2, 7, 256)),
    "siren": (lambda: networks.siren(2, 8, 3), IMAGE[0, 0, :5, :2], (5, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_their_inputs(name):
    make, inputs, wanted = NETWORKS[name]
    with torch.device("meta"):
        net = make()
    assert net(inputs.to("meta")).shape == wanted


def test_a_siren_passes_on_waves_of_unit_size():
    """What its initialization is for (Sitzmann et al. 2020, section 3.2): in every layer, half the square of a sine."""
    torch.manual_seed(0)
    net, x = networks.siren(2, 256, 256, 256, 1), 2 * torch.rand(2048, 2) - 1
    for layer in net:
        x = layer(x)
        if isinstance(layer, networks.Sine):
            assert abs(float(x.detach().square().mean()) - 0.5) < 0.05  # of 256 neurons with random frequencies


@pytest.mark.parametrize("name", ["digits-mlp", "photo-siren", "bytes-gpt"])
def test_a_training_is_what_a_plain_loop_of_it_is(name):
    task = workload(name)
    torch.manual_seed(0)
    net = task.network().double() if name != "bytes-gpt" else task.network()
    x, y = task.batch(torch.Generator().manual_seed(1))
    again, _ = task.batch(torch.Generator().manual_seed(1))
    assert torch.equal(x, again) and len(x) == (task.batch_size or len(task.train))
    rows = torch.linspace(0, len(task.test) - 1, min(task.evaluated, len(task.test))).long()

    class Twin(nn.Module):
        def forward(self, x):
            return net(x.double() if x.is_floating_point() else x)

    inputs, targets = task.test[rows]
    found, wanted = task.evaluate(Twin(), task.test), float(task.loss(Twin()(inputs), targets))
    assert abs(found - wanted) < 1e-6 * wanted, "a mean over parts is weighted by their sizes"  # float32 targets
    assert net.training


def test_what_is_held_out_is_not_trained_on():
    task = workload("digits-mlp")
    sets = [{tuple(x.flatten().tolist()) for x in part.inputs} for part in (task.train, task.validation, task.test)]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and sum(map(len, sets)) == 1797
    text, task = library_bytes(), workload("bytes-gpt")
    assert torch.equal(torch.cat([task.train.text, task.validation.text, task.test.text]), text)


def test_windows_want_the_next_token():
    x, y = Windows(torch.arange(9), 4)[torch.tensor([0, 4])]
    assert x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and torch.equal(y, x + 1)
    assert len(Windows(torch.arange(9), 4)) == 5


def test_unknown_trainings_are_refused():
    with pytest.raises(WeightEditError, match="got training 'gpt'; expected one of digits-mlp"):
        workload("gpt")


@pytest.fixture
def pictures(tmp_path):
    """Two classes that are easily told apart, under two names: bright above, and bright below."""
    for i in range(64):
        split, label = ("train", "test")[i % 4 == 3], i % 2
        pixels = torch.zeros(28, 28, dtype=torch.uint8)
        pixels[14 * label : 14 * (label + 1)] = 100 + i
        for name in ("mnist", "fashion_mnist"):
            folder = tmp_path / name / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return str(tmp_path)


def test_images_turn_about_their_middle():
    """A quarter turn puts every pixel where rot90 does, a whole one where it was."""
    images = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    quarter = turned(images, 90)
    ways = [float((quarter - torch.rot90(images, k, (2, 3))).abs().max()) for k in (1, -1)]
    assert min(ways) < 1e-5 < max(ways)
    assert float((turned(images, 360) - images).abs().max()) < 1e-5


def test_networks_to_be_tuned_know_the_upright_images_and_frozen_layers_get_no_gradient(pictures):
    tuned = workloads._tuned(pictures, frozen=1, rows=8, starts=1)
    net, known = tuned.network(), workloads._images(pictures, "mnist", 8)
    assert len(tuned.train) == 8 and tuned.evaluate(net, known[2]) < 0.1 and len(tuned.test) == len(known[2])
    assert torch.equal(tuned.test.inputs, turned(known[2].inputs, 30))
    x, y = tuned.batch(torch.Generator().manual_seed(0))
    tuned.loss(net(x), y).backward()
    moved = {name: bool(p.grad is not None and p.grad.any()) for name, p in net.named_parameters()}
    assert moved == {f"{i}.{kind}": i > 1 for i in (1, 3, 5) for kind in ("weight", "bias")}
    targets = {wire.name: wire.target for wire in wiring_of(net, (x,)).wires}
    assert targets["1.weight"] == targets["1.bias"] != targets["3.weight"], "a frozen layer has its place in the graph"


def test_wrong_labels_are_in_what_is_trained_on_alone(pictures):
    noisy, right = workloads._noisy(pictures, rows=32, wrong=0.5), workloads._images(pictures, "fashion_mnist", 8)
    same = noisy.train.targets == right[0].targets[:32]
    assert 8 < int(same.sum()) < 32 and torch.equal(noisy.train.inputs, right[0].inputs[:32])
    assert torch.equal(noisy.validation.targets, right[1].targets)


def test_rescaled_networks_differ_by_one_factor_of_their_weights():
    torch.manual_seed(0)
    plain = networks.mlp(4, 3, 2)
    torch.manual_seed(0)
    scaled = networks.rescaled(networks.mlp(4, 3, 2), 0.1, 4.0)
    ratios = [b / a for (name, a), b in zip(plain.named_parameters(), scaled.parameters(), strict=True) if a.dim() > 1]
    assert 0.1 <= float(ratios[0].mean()) <= 4 and all(torch.allclose(r, ratios[0].mean()) for r in ratios)
    assert torch.equal(plain[1].bias, scaled[1].bias)
