"""Nothing waits for the device: a training step of every metanetwork, and an edit after its door."""

import pytest
import torch

from tests.device_waits import device_waits, operations
from weightedit.delta import propose_delta
from weightedit.editing.curvature import LearnedKFAC
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.training import edit_loss
from weightedit.inr.siren import initial_params, render_images
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.metanet.registry import METANETS, make_metanet
from weightedit.network.features import ChannelType
from weightedit.network.spec import NetworkSpec
from weightedit.training.loop import TrainOptions, train

EDITORS = tuple(name for name in METANETS if name != "statistics")
WIDTHS = (2, 8, 8, 1)
EVERYTHING = GaugeGMNConfig(
    node_width=8, edge_width=4, layers=2, probes=16, forecast=4, refit=True, grid=True, solved=True
)


def _step(editor: OneShotEditor, params: dict[str, torch.Tensor], target: torch.Tensor) -> None:
    editor.zero_grad(set_to_none=True)
    edited = editor.edit_params(params, size=(6, 6), finite=True)
    (render_images(edited, editor.convention, 6, 6) - target).square().mean().backward()


@pytest.mark.parametrize("name", [*EDITORS, "everything"])
def test_a_training_step_waits_for_nothing(name):
    params = initial_params(3, WIDTHS, generator=torch.Generator().manual_seed(0))
    metanet = GaugeGMN(EVERYTHING) if name == "everything" else make_metanet(name, [NetworkSpec.siren(WIDTHS)])
    editor, target = OneShotEditor(metanet, "dilate"), torch.rand(3, 1, 6, 6)
    _step(editor, params, target)
    with device_waits() as found:
        _step(editor, params, target)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_and_scales_wait_for_nothing_either(activation):
    spec = NetworkSpec.mlp((3, 6, 5, 2), activation)
    params = {name: torch.randn(4, *shape) for name, shape in spec.param_shapes().items()}
    config = GaugeGMNConfig(3, 2, node_width=8, edge_width=4, layers=1, probes=0, extra_types=((-1, True), (-2, False)))
    metanet, extra = GaugeGMN(config), [(ChannelType(-1, True), params), (ChannelType(-2, False), params)]
    propose_delta(metanet, spec, params, extra, finite=True)
    with device_waits() as found:
        propose_delta(metanet, spec, params, extra, finite=True)
    assert not found, "\n".join(found)


def test_an_edit_reads_values_at_its_door_only():
    stack = INRStack(initial_params(18, WIDTHS), OneShotEditor(GaugeGMN(EVERYTHING), "dilate").convention, 6, 6)
    editor = OneShotEditor(GaugeGMN(EVERYTHING), "dilate").eval()
    rule = LearnedKFAC()
    for steps in (0, 2):
        editor.unguarded(stack, steps=steps, rule=rule)
        with device_waits() as found:
            editor.unguarded(stack, steps=steps, rule=rule)
        assert found and not [line for line in found if "spec.py" not in line and "aminmax" not in line], found


class _Counting:
    """One batch, and how many operations had been dispatched whenever it was asked for: once per step."""

    def __init__(self, mode, batch):
        self.mode, self.batch, self.counts = mode, batch, []

    def __len__(self):
        return len(self.batch["targets"])

    def __getitem__(self, indices):
        self.counts.append(self.mode.count)
        return self.batch


# The default editor when a step was first counted, and the one that is shipped now, which has a layer more, convolves
# over its probes and solves for its readings.
@pytest.mark.parametrize(("editor", "share"), [("first counted", 0.463), ("shipped", 0.589)])
def test_an_editors_training_step_is_few_operations(editor, share, tmp_path):
    """Every operation is a launch on a GPU: a step, from its batch to the averaged weights, dispatched 6,050 at first.

    What is left is forward and backward: a third of it in the layout, which goes from layer to layer of the network
    under edit, a third and more in the metanetwork's layers, at 16 to 19 for a linear map. Clipping, the optimizer and
    the average are some ten, however many parameters there are; autograd hands over each gradient by one or two.
    Nearly half are views, which count here and launch nothing.
    """
    if editor == "shipped":
        editor = OneShotEditor.from_pretrained("mnist-dilate")
    else:
        config = GaugeGMNConfig(edge_width=16, layers=3, probes=196, forecast=512, refit=True)
        editor = OneShotEditor(GaugeGMN(config), "dilate")
    batch = {"params": initial_params(2, (2, 32, 32, 1)), "targets": torch.rand(2, 1, 28, 28)}
    options = TrainOptions(steps=3, batch_size=2, clip_norm=1.0, ema_decay=0.999, cpu=True)
    with operations() as mode:
        data = _Counting(mode, batch)
        train(editor, edit_loss, data, lambda model: 0.0, tmp_path, options, progress=False)
    _, second, third = data.counts
    assert third - second < share * 6050


def test_the_judge_finds_what_waits():
    values, where = torch.randn(3), torch.tensor([True, False, True])
    with device_waits() as found:
        values[where], values[[0, 1]], torch.tensor([1.0]), values.sum().item(), where.nonzero()
    words = " ".join(found)
    assert all(name in words for name in ("mask", "list", "tensor of Python data", "item", "nonzero")), found


# Of names that share a class, the last, which does what the others do.
@pytest.mark.slow
@pytest.mark.parametrize("name", {METANETS[name].kind: name for name in EDITORS}.values())
def test_a_metanetwork_compiles_whole_and_has_two_derivatives(name):
    from weightedit.graph.neural_graph import NeuralGraph

    torch.compiler.reset()
    spec = NetworkSpec.siren(WIDTHS)
    params = {key: 0.1 * torch.randn(2, *shape).double() for key, shape in spec.param_shapes().items()}
    metanet = make_metanet(name, [spec], layers=1).double()
    graph = NeuralGraph.from_params(spec, params)
    expected = metanet(graph)
    got = torch.compile(metanet, fullgraph=True, backend="aot_eager")(graph)
    assert torch.equal(got.edges, expected.edges) and torch.equal(got.nodes, expected.nodes)
    weights = [p for p in metanet.parameters() if p.requires_grad]
    first = torch.autograd.grad(expected.edges.square().sum(), weights, create_graph=True, allow_unused=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first if g is not None), weights, allow_unused=True)
    assert any(g is not None and bool(g.abs().sum() > 0) for g in second)
