"""What every metanetwork must keep, over one table: a new one adds a line to CASES and inherits all of it.

Equivariance by the protocol of weightedit.testing, with random, not initial, weights, whole path, dense and ragged; and
every symmetry that is not declared is shown to fail. What is special to one system is in its own test file.
"""

import json
import math
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from torch.nn import functional

from tests.metanet.chain_networks import perturbed, wider
from tests.networks import ACTIVATIONS, SPECS, generator, random_params, relative
from weightedit.delta import propose_delta
from weightedit.editing.one_shot import OneShotEditor
from weightedit.errors import SpecError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.inr.siren import initial_params, render_images
from weightedit.metanet.registry import METANETS, build_metanet, describe_metanet, make_metanet
from weightedit.network.spec import SYMMETRIES, NetworkSpec
from weightedit.prediction import WeightSpacePredictor
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error, invariance_error


@dataclass(frozen=True)
class Case:
    """A small instance of a system, and what it can do.

    Attributes:
        options: of its config, small.
        editing: further options of the ending that edits.
        mixes: what may share a batch: "any" architecture, any widths of one "depth", or "one" architecture.
        edits: whether it has the ending that edits.
        learns: whether it learns 16 edits by heart in the steps of a test.
        rate: learning rate of the tests that train.
        steps: of the test that learns 16 edits.
        class_steps: of the test that learns 16 classes.
        noise: standard deviation added to its weights, to make them random; smaller where float32 needs it.
    """

    options: dict
    editing: dict = field(default_factory=dict)
    mixes: str = "any"
    edits: bool = True
    learns: bool = True
    rate: float = 1e-2
    steps: int = 150
    class_steps: int = 50
    noise: float = 0.2


CASES = {
    "gauge-gmn": Case({"node_width": 16, "edge_width": 8, "layers": 2, "probes": 5}, {"forecast": 4}),
    "gauge-gmn-b": Case({"node_width": 16, "edge_width": 8, "layers": 2, "probes": 5}, {"forecast": 4}),
    # Its inputs are not normalized and its edges have no skip: the slowest learner of all.
    "scalegmn": Case({"width": 16, "layers": 2}, learns=False, class_steps=150),
    "scalegmn-b": Case({"width": 16, "layers": 2}, learns=False, class_steps=150),
    "ng-gnn": Case({"node_width": 16, "edge_width": 8, "layers": 2, "probes": 5}, rate=8e-3, steps=300),
    "ng-t": Case({"node_width": 16, "edge_width": 8, "layers": 2, "probes": 5}, rate=8e-3, steps=300),
    "monomial": Case({"width": 16, "layers": 2}, {"products": True}, mixes="depth", rate=2e-2, steps=400),
    "nfn-np": Case({"width": 16, "layers": 1}, {"layers": 2}, mixes="depth", rate=2e-2, steps=600),
    "nfn-hnp": Case({"width": 16, "layers": 2}, mixes="depth", steps=400),
    "dws": Case({"width": 16, "layers": 2}, mixes="depth", steps=400),
    "mlp": Case({"hidden": 48}, mixes="one"),
    "statistics": Case({"hidden": 48}, mixes="depth", edits=False),
}
EDITORS = [name for name, case in CASES.items() if case.edits]
ENDINGS = [(name, embedding) for name, case in CASES.items() for embedding in (0, 6) if case.edits or embedding]
# Networks that have a symmetry, and for what is not declared one network that shows it; "full" beyond signs is a phase.
HAVING = {
    "permutation": ("silu", "relu"),
    "sign": ("tanh", "sine"),
    "scale": ("relu", "identity"),
    "full": ("leaky_relu", "identity", "sine", "mixed"),
}
TELLING = {"permutation": "silu", "sign": "tanh", "scale": "relu", "full": "sine"}
WIDTHS = (2, 6, 5, 1)


def make(name, spec, *, dtype=torch.float64, noise=None, **options):
    """A metanetwork for `spec` with random weights: every parameter perturbed (noise 0: as it was made)."""
    case = CASES[name]
    editing = case.editing if not options.get("embedding") and case.edits else {}
    metanet = make_metanet(name, [spec], **{**case.options, **editing, **options})
    return perturbed(metanet, case.noise if noise is None else noise, dtype)


def networks(spec, *, count=None, seed=0, dtype=torch.float64):
    """Random networks of the size of trained ones: omega = 30 multiplies pre-activations, and the rounding in them."""
    omega = (
        max(layer.activation.parameter for layer in spec.layers if layer.activation.name == "sine") if sine(spec) else 1
    )
    return {
        k: t / (10 if omega > 1 else 1) for k, t in random_params(spec, count=count, seed=seed, dtype=dtype).items()
    }


def sine(spec):
    return any(layer.activation.name == "sine" for layer in spec.layers)


def whole(metanet, spec):
    """The whole path of either ending, dense."""
    return lambda params: outcome(metanet, NeuralGraph.from_params(spec, params))


def outcome(metanet, graph):
    return metanet.embed(graph) if metanet.embedding else metanet(graph).to_params()


def neighbor(name, spec):
    """A network of another architecture that may share a batch."""
    if CASES[name].mixes == "any":
        return NetworkSpec.siren((spec.widths[0], 6, spec.widths[-1]))
    return wider(spec)


def batched(metanet, name, spec):
    """The same in a ragged batch, after a network of another architecture."""
    other = neighbor(name, spec)
    first = (other, networks(other, seed=7, dtype=next(metanet.parameters()).dtype))
    return lambda params: outcome(metanet, ragged_from_params([first, (spec, params)]))[1]


def judge(metanet, path, spec, params, symmetry):
    if metanet.embedding:
        assert_invariant(path, spec, params, symmetry=symmetry)
    else:
        assert_equivariant(path, spec, params, symmetry=symmetry)


def test_every_registered_system_is_in_the_table():
    assert set(CASES) == set(METANETS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
@torch.no_grad()
def test_declared_symmetries_are_kept_and_no_others(name, embedding, symmetry, dtype):
    for network in HAVING[symmetry]:
        spec = SPECS[network]
        metanet = make(name, spec, dtype=dtype, embedding=embedding)
        if symmetry in metanet.declared:
            judge(metanet, whole(metanet, spec), spec, networks(spec, count=2, dtype=dtype), symmetry)
            if CASES[name].mixes != "one" and dtype == torch.float64:  # in float32 test_layouts_agree
                judge(metanet, batched(metanet, name, spec), spec, networks(spec, seed=1, dtype=dtype), symmetry)
        elif network == TELLING[symmetry]:
            error = invariance_error if embedding else equivariance_error
            found = error(whole(metanet, spec), spec, networks(spec, count=2, dtype=dtype), symmetry=symmetry)
            assert (found if embedding else max(found.values())) > 1e-3, found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("network", ["relu", "sine"])
@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
@torch.no_grad()
def test_layouts_agree(name, embedding, network, dtype, tolerance):
    spec = SPECS[network]
    metanet, stack = make(name, spec, dtype=dtype, embedding=embedding), networks(spec, count=3, dtype=dtype)
    singles = [{key: tensor[i] for key, tensor in stack.items()} for i in range(3)]
    dense, path = whole(metanet, spec)(stack), whole(metanet, spec)
    found = [[path(params) for params in singles]]
    if CASES[name].mixes != "one":
        found.append([batched(metanet, name, spec)(params) for params in singles])
    for results in found:
        if embedding:
            assert dense.shape == (3, embedding) and relative(torch.stack(list(results)), dense) < tolerance
            continue
        for key in stack:
            assert relative(torch.stack([delta[key] for delta in results]), dense[key]) < tolerance, key


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.mixes != "any"])
def test_what_cannot_share_a_batch_is_refused(name):
    spec, deeper = SPECS["relu"], NetworkSpec.mlp((2, 4, 4, 4, 3), ACTIVATIONS["relu"])
    metanet, others = make(name, spec, embedding=6), [deeper]
    if CASES[name].mixes == "one":
        others.append(neighbor(name, spec))
    for other in others:
        with pytest.raises(SpecError, match="; expected"):
            whole(metanet, other)(networks(other))
        with pytest.raises(SpecError, match="; expected"):
            metanet.embed(ragged_from_params([(spec, networks(spec)), (other, networks(other))]))


@pytest.mark.parametrize(("name", "embedding"), [end for end in ENDINGS if end[0] != "statistics"])
def test_other_ends_are_refused(name, embedding):
    """Input and output neurons are known one by one; networks with other numbers of them are not."""
    metanet = make(name, SPECS["relu"], embedding=embedding)
    for widths in ((3, 5, 4, 3), (2, 5, 4, 1)):
        other = NetworkSpec.mlp(widths, ACTIVATIONS["relu"])
        with pytest.raises(SpecError, match="; expected"):
            whole(metanet, other)(networks(other))
        with pytest.raises(SpecError, match="; expected"):
            outcome(metanet, ragged_from_params([(other, networks(other))]))


@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
def test_each_ending_refuses_the_work_of_the_other(name, embedding):
    metanet, graph = (
        make(name, SPECS["relu"], embedding=embedding),
        NeuralGraph.from_params(SPECS["relu"], networks(SPECS["relu"])),
    )
    with pytest.raises(SpecError, match=f"with embedding {embedding}; expected"):
        (metanet if embedding else metanet.embed)(graph)
    if embedding:
        with pytest.raises(SpecError, match="an editor needs one that edits"):
            OneShotEditor(metanet, "dilate")
    else:
        with pytest.raises(SpecError, match="with embedding 0, 2 outputs"):
            WeightSpacePredictor(metanet, 2)


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_make_no_sense_are_refused(name):
    with pytest.raises(SpecError, match="embedding"):
        make(name, SPECS["relu"], embedding=-1)
    if not CASES[name].edits:
        with pytest.raises(SpecError, match="Take another metanetwork for an editor"):
            make(name, SPECS["relu"], embedding=0)


@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
def test_the_registry_gives_it_back(name, embedding):
    metanet = make(name, SPECS["tanh"], embedding=embedding)
    found, config = describe_metanet(metanet)
    again = build_metanet(found, json.loads(json.dumps(config)))
    assert found == name and describe_metanet(again) == (found, config)
    assert again.types_in == metanet.types_in and again.declared == metanet.declared
    assert {k: t.shape for k, t in again.state_dict().items()} == {k: t.shape for k, t in metanet.state_dict().items()}
    with pytest.raises(SpecError, match="; expected"):
        build_metanet(found, {**config, "color": 1})


@pytest.mark.parametrize("name", EDITORS)
def test_an_editor_of_it_is_saved_and_loaded_exactly(name, tmp_path):
    spec = NetworkSpec.siren(WIDTHS)
    editor = OneShotEditor(make(name, spec, dtype=torch.float32), "dilate")
    params = initial_params(3, WIDTHS, generator=generator(2))
    again = OneShotEditor.from_pretrained(editor.save_pretrained(tmp_path / "editor", "card", {"steps": 1}))
    assert again.summary == name
    assert all(torch.equal(again.edit_params(params)[key], value) for key, value in editor.edit_params(params).items())


@pytest.mark.parametrize("name", CASES)
def test_a_predictor_of_it_is_saved_and_loaded_exactly(name, tmp_path):
    spec = NetworkSpec.siren(WIDTHS)
    predictor = WeightSpacePredictor(make(name, spec, dtype=torch.float32, embedding=6), 4, hidden=8)
    params = initial_params(3, WIDTHS, generator=generator(2))
    again = WeightSpacePredictor.from_pretrained(predictor.save_pretrained(tmp_path / "predictor", "card"))
    assert again.predict(spec, params).shape == (3, 4)
    assert torch.equal(again.predict(spec, params), predictor.predict(spec, params))


@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
def test_every_parameter_gets_a_gradient(name, embedding):
    spec = SPECS["mixed"] if CASES[name].mixes == "any" else SPECS["tanh"]
    metanet = make(name, spec, embedding=embedding)
    result = whole(metanet, spec)(networks(spec, count=2))
    weigh = [result] if embedding else list(result.values())
    sum((t * torch.randn(t.shape, dtype=t.dtype, generator=generator(3))).sum() for t in weigh).backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("network", ["relu", "sine", "silu", "identity"])
@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
def test_zero_networks_and_dead_neurons_stay_finite(name, embedding, network):
    spec = SPECS[network]
    metanet, dead = make(name, spec, embedding=embedding), networks(spec, count=3)
    dead["layers.0.weight"][0, 1], dead["layers.0.bias"][0, 1] = 0, 0
    dead["layers.1.weight"][1, :, 2] = 0
    for tensor in dead.values():
        tensor[2] = 0
    leaves = {key: tensor.requires_grad_() for key, tensor in dead.items()}
    result = whole(metanet, spec)(leaves)
    found = [result] if embedding else list(result.values())
    sum(tensor.square().sum() for tensor in found).backward()
    for tensors in (found, [p.grad for p in metanet.parameters()], [t.grad for t in leaves.values()]):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@pytest.mark.parametrize(("name", "embedding"), ENDINGS)
def test_the_seed_decides_and_two_runs_are_bitwise_equal(name, embedding):
    spec = SPECS["relu"]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, other = (make(name, spec, noise=0, embedding=embedding, seed=seed, dtype=torch.float32) for seed in (5, 6))
    torch.rand(3)
    late = make(name, spec, noise=0, embedding=embedding, seed=5, dtype=torch.float32)
    torch.set_rng_state(before)
    params = networks(spec, count=2, dtype=torch.float32)
    results = [whole(metanet, spec)(params) for metanet in (one, one, late, other)]
    assert torch.equal(torch.get_rng_state(), before)
    tensors = [result if embedding else torch.cat([t.flatten() for t in result.values()]) for result in results]
    assert torch.equal(tensors[0], tensors[1]) and torch.equal(tensors[0], tensors[2])
    assert not torch.equal(tensors[0], tensors[3])


def descend(parameters, loss_of, steps, rate, done):
    """The losses of Adam with a learning rate that falls linearly to a hundredth, up to one that is `done`."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule, losses = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps), []
    for _ in range(steps):
        loss = loss_of()
        losses.append(float(loss.detach()))
        if done(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return losses


@pytest.mark.parametrize("name", EDITORS)
def test_it_learns_the_identity_edit(name):
    """Every delta, weights and biases of every layer, falls to a fifth of what it was."""
    spec, stack = NetworkSpec.siren(WIDTHS), initial_params(8, WIDTHS, generator=generator(2))
    metanet = make(name, spec, noise=0, dtype=torch.float32, initial_scale=0.3)

    def sizes():
        return {key: delta.square().mean() for key, delta in propose_delta(metanet, spec, stack).items()}

    before = {key: float(size.detach()) for key, size in sizes().items()}

    def relative_sizes():
        return sum(size / before[key] for key, size in sizes().items())

    descend(metanet.parameters(), relative_sizes, 50, CASES[name].rate, lambda loss: loss < 0.04)
    assert all(float(size.detach()) < 0.04 * before[key] for key, size in sizes().items())


@cache
def sixteen():
    """16 random SIRENs of one small architecture, and pictures that are not theirs."""
    stack = initial_params(16, (2, 12, 12, 1), generator=generator(4))
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9), indexing="ij")
    centers = torch.rand(16, 2, 1, 1, generator=generator(5)) - 0.5
    pictures = torch.exp(-4 * ((rows - centers[:, 0]).square() + (columns - centers[:, 1]).square()))
    return stack, pictures.unsqueeze(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EDITORS if CASES[name].learns])
def test_it_overfits_sixteen_edits(name):
    stack, pictures = sixteen()
    editor = OneShotEditor(make(name, NetworkSpec.siren((2, 12, 12, 1)), noise=0, dtype=torch.float32), "dilate")

    def loss():
        return (render_images(editor.edit_params(stack), editor.convention, 9, 9) - pictures).square().mean()

    goal = float(loss().detach()) / 10
    losses = descend(editor.parameters(), loss, CASES[name].steps, CASES[name].rate, lambda loss: loss < goal)
    assert losses[-1] < goal, (losses[0], losses[-1])


@pytest.mark.parametrize("name", CASES)
def test_it_overfits_sixteen_classes(name):
    stack, _ = sixteen()
    spec = NetworkSpec.siren((2, 12, 12, 1))
    metanet = make(name, spec, noise=0, dtype=torch.float32, embedding=16)
    predictor, labels = WeightSpacePredictor(metanet, 16, hidden=32), torch.arange(16)

    def right():
        return torch.equal(predictor.predict(spec, stack).argmax(-1), labels)

    losses = descend(
        predictor.parameters(),
        lambda: functional.cross_entropy(predictor.predict(spec, stack), labels),
        CASES[name].class_steps,
        CASES[name].rate,
        lambda loss: loss < 0.2 * math.log(16) and right(),
    )
    assert losses[-1] < 0.2 * math.log(16) and right(), losses[-1]


@pytest.mark.parametrize("name", CASES)
def test_networks_without_biases(name):
    spec = NetworkSpec(tuple(replace(layer, bias=None) for layer in SPECS["relu"].layers))
    metanet = make(name, spec, embedding=6)
    assert metanet.embed(NeuralGraph.from_params(spec, networks(spec, count=2))).shape == (2, 6)


def test_names_options_and_networks_are_checked():
    spec = SPECS["relu"]
    with pytest.raises(SpecError, match="metanetwork 'gmn' is unknown; expected one of gauge-gmn"):
        make_metanet("gmn", [spec])
    with pytest.raises(SpecError, match="gauge-gmn has no option heads; expected some of"):
        make_metanet("gauge-gmn", [spec], heads=2)
    with pytest.raises(SpecError, match="bidirectional True with gauge-gmn, which is bidirectional False"):
        make_metanet("gauge-gmn", [spec], bidirectional=True)
    with pytest.raises(SpecError, match="no network"):
        make_metanet("gauge-gmn", [])


def test_a_config_older_than_the_name_decides_for_itself():
    """Older checkpoints of it say scalegmn, and those before scalegmn and bidirectional."""
    _, config = describe_metanet(make("gauge-gmn-b", SPECS["relu"]))
    for older in ("scalegmn", "scalegmn-b", "gauge-gmn"):
        assert describe_metanet(build_metanet(older, config))[0] == "gauge-gmn-b"
