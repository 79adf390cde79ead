"""Trainings by name: what is held out is held out, losses are means over examples, networks take their batches."""

import pytest
import torch
from torch import nn

from weightedit.errors import WeightEditError
from weightedit.metatrain import networks
from weightedit.metatrain.workloads import Windows, library_bytes, workload

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
