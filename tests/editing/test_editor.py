"""The editor: one INR or many, any convention, to disk and back, what it refuses, and that it can learn."""

import json

import pytest
import torch

from weightedit.cli.demo import digit_images
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import guard
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.operations import operation
from weightedit.editing.refinement import refine, target_of
from weightedit.errors import FileFormatError, ParamsError, SpecError, WeightEditError
from weightedit.inr.convention import NFN, Convention, convert
from weightedit.inr.fitting import fit
from weightedit.inr.siren import initial_params, render_images
from weightedit.inr.stack import INRStack
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.network.features import DELTA, PARAMETER

WIDTHS = (2, 7, 5, 1)


def make_editor(**config) -> OneShotEditor:
    defaults = {"node_width": 6, "edge_width": 4, "layers": 1, "probes": 3, "levels": 3, "initial_scale": 0.1}
    return OneShotEditor(GaugeGMN(GaugeGMNConfig(**{**defaults, **config})), "dilate").eval()


def make_stack(count=5, convention=None, dtype=torch.float32) -> INRStack:
    params = initial_params(count, WIDTHS, generator=torch.Generator().manual_seed(1))
    psnr = torch.full((count,), 40.0)
    return INRStack({k: v.to(dtype) for k, v in params.items()}, convention or Convention(), 6, 8, psnr=psnr)


def assert_close(one, other, tolerance=1e-6):
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


def test_one_inr_and_a_stack_give_the_same():
    editor, stack = make_editor(), make_stack()
    together = editor.edit_params(stack.params)
    for number in range(len(stack)):
        alone = editor.edit_params({name: tensor[number] for name, tensor in stack.params.items()})
        assert_close(alone, {name: tensor[number] for name, tensor in together.items()})
    assert any(not torch.equal(together[name], stack.params[name]) for name in together)


def test_another_convention_is_converting_by_hand():
    editor, ours = make_editor().double(), make_stack(dtype=torch.float64)
    theirs = convert(ours.params, ours.convention, NFN)
    by_hand = convert(editor.edit_params(convert(theirs, NFN, editor.convention)), editor.convention, NFN)
    assert_close(editor.edit_params(theirs, NFN), by_hand, 1e-12)
    assert_close(convert(editor.edit_params(theirs, NFN), NFN, ours.convention), editor.edit_params(ours.params), 1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_do_not_show(batch_size):
    editor, stack = make_editor(), make_stack()
    edited = editor.unguarded(stack, batch_size=batch_size)
    assert_close(edited.params, editor.edit_params(stack.params))
    assert edited.psnr is None and (edited.height, edited.width) == (6, 8)


@pytest.mark.parametrize("layers", [(0, 1, 2), (0,), (1,), (2,)], ids=["all", "first", "middle", "last"])
def test_an_inr_with_layers_of_zeros_does_not_hinder_the_others(layers):
    editor, stack = make_editor(probes=9, forecast=6, refit=True), make_stack()
    for layer in layers:
        for kind in ("weight", "bias"):
            stack.params[f"layers.{layer}.{kind}"][1] = 0.0
    edited, others = editor.unguarded(stack), [0, 2, 3, 4]
    assert all(bool(tensor.isfinite().all()) for tensor in edited.params.values())
    assert_close(edited[others].params, editor.unguarded(stack[others]).params)


def test_editing_keeps_no_graph_and_leaves_the_stack_alone():
    editor, stack = make_editor(), make_stack()
    before = {name: tensor.clone() for name, tensor in stack.params.items()}
    assert not editor.unguarded(stack).params["layers.0.weight"].requires_grad
    assert all(torch.equal(stack.params[name], before[name]) for name in before)
    assert editor.edit_params(stack.params)["layers.0.weight"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_inrs_of_another_type_keep_it(dtype):
    editor, stack = make_editor(), make_stack(dtype=dtype)
    edited = editor.unguarded(stack)
    assert {tensor.dtype for tensor in edited.params.values()} == {dtype}
    single = editor.edit_params({name: tensor.float() for name, tensor in stack.params.items()})
    assert_close({name: tensor.float() for name, tensor in edited.params.items()}, single, 1e-2)


@pytest.mark.parametrize("kind", ["gauge-gmn", "mlp"])
def test_saving_and_loading_is_exact(tmp_path, kind):
    editor = (
        make_editor() if kind == "gauge-gmn" else OneShotEditor(FlatMLP(FlatMLPConfig(WIDTHS, hidden=8)), "erode", NFN)
    )
    folder = editor.save_pretrained(tmp_path / "editor", "# a card\n", {"steps": 3})
    loaded = OneShotEditor.from_pretrained(folder)
    assert (loaded.operation, loaded.convention) == (editor.operation, editor.convention)
    assert not loaded.training
    for name, tensor in editor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    stack = make_stack()
    mine, its = editor.edit_params(stack.params), loaded.edit_params(stack.params)
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert json.loads((folder / "config.json").read_text())["training"] == {"steps": 3}


def _changed(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:200]), "safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n"), "pickle"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: _changed(f, lambda c: c.pop("operation")), "lacks operation"),
        (lambda f: _changed(f, lambda c: c["metanet"].update(name="oracle")), "'oracle' is unknown"),
        (lambda f: _changed(f, lambda c: c["metanet"]["config"].update(extra=1)), "holds no editor"),
        (lambda f: _changed(f, lambda c: c.update(metanet="gauge-gmn")), "holds no editor"),
        (lambda f: _changed(f, lambda c: c["convention"].pop("omega")), "holds no editor"),
        (lambda f: _changed(f, lambda c: c["metanet"]["config"].update(node_width=7)), "do not fit GaugeGMN"),
    ],
)
def test_truncated_forged_and_foreign_checkpoints_are_refused(tmp_path, forge, message):
    folder = make_editor().save_pretrained(tmp_path / "editor", "")
    forge(folder)
    with pytest.raises((FileFormatError, ParamsError), match=message):
        OneShotEditor.from_pretrained(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="does not exist"):
        OneShotEditor.from_pretrained(tmp_path / "nothing")


def test_a_metanet_that_is_not_registered_is_not_saved(tmp_path):
    class Own(Metanetwork):
        types_in, types_out = (PARAMETER,), (DELTA,)

    with pytest.raises(SpecError, match="Own is not registered"):
        OneShotEditor(Own(), "dilate").save_pretrained(tmp_path / "editor", "")
    assert not (tmp_path / "editor").exists()


def test_bad_parameters_are_refused():
    editor, stack = make_editor(), make_stack()
    params = {name: tensor.clone() for name, tensor in stack.params.items()}
    params["layers.1.bias"][2, 0] = torch.nan
    with pytest.raises(ParamsError, match="layers.1.bias of network 2 holds NaN"):
        editor.edit_params(params)
    with pytest.raises(ParamsError, match="layers.i.weight"):
        editor.edit_params({name.replace("layers", "net"): tensor for name, tensor in stack.params.items()})
    with pytest.raises(SpecError, match="2 inputs and 3 outputs"):
        editor.edit_params(initial_params(2, (2, 4, 4, 3), generator=torch.Generator()))
    with pytest.raises(WeightEditError, match="batch_size=0"):
        editor.unguarded(stack, batch_size=0)
    with pytest.raises(ParamsError, match="empty stack"):
        editor.unguarded(stack[:0])
    with pytest.raises(ParamsError, match="got dict to edit; expected an INRStack"):
        editor.unguarded(stack.params)


def test_it_reads_inrs_of_other_widths_and_depths():
    editor = make_editor()
    for widths in ((2, 4, 1), (2, 9, 3, 8, 1)):
        params = initial_params(2, widths, generator=torch.Generator().manual_seed(0))
        assert editor.edit_params(params)["layers.0.weight"].shape == (2, widths[1], 2)


def _train(editor, loss_of, steps, rate, goal):
    """Adam with a short warm-up and a linear decay, until the loss is below `goal`; returns the loss and the steps."""
    optimizer = torch.optim.Adam(editor.parameters(), rate, betas=(0.9, 0.95))
    value = torch.inf
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        loss = loss_of()
        value = float(loss.detach())
        if value < goal:
            return value, step
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(editor.parameters(), 1.0)
        optimizer.step()
    return value, steps


def test_it_learns_the_identity():
    """From changes as large as the weights to small ones, in every tensor, and so in the rendering."""
    editor, stack = make_editor(initial_scale=1.0), make_stack(16)

    def sizes():
        return {name: delta.square().mean().sqrt() for name, delta in editor.propose(stack.params).items()}

    def difference():
        return float((editor.unguarded(stack).render() - stack.render()).square().mean())

    before, start = {name: float(size.detach()) for name, size in sizes().items()}, difference()
    loss, _ = _train(editor, lambda: sum((size / before[n]).square() for n, size in sizes().items()), 80, 2e-2, 0.02)
    assert loss < 0.02, sizes()
    assert difference() < 0.2 * start


@pytest.mark.slow
def test_it_overfits_eight_inrs():
    images = digit_images(8)[0]
    stack, targets = fit(images, generator=torch.Generator().manual_seed(0)).stack, operation("dilate")(images)
    editor = make_editor(node_width=16, edge_width=8, layers=2, probes=16)

    def loss():
        return (render_images(editor.edit_params(stack.params), editor.convention, 28, 28) - targets).square().mean()

    value, steps = _train(editor, loss, 600, 5e-3, 2e-3)
    assert value < 2e-3 and steps < 400


def test_refined_edits_lie_nearer_to_the_operation() -> None:
    """One INR alone as in a stack, as by hand; other conventions too."""
    editor = OneShotEditor(GaugeGMN(GaugeGMNConfig(layers=1, node_width=8, edge_width=4, probes=4)), "invert")
    params = initial_params(3, (2, 8, 8, 1), generator=torch.Generator().manual_seed(0))
    stack = INRStack(convert(params, Convention(), NFN), NFN, 9, 9)
    targets = target_of("invert", stack)
    plain, refined = editor.unguarded(stack), editor.unguarded(stack, steps=6)
    assert mean_squared_errors(refined, targets).mean() < 0.2 * mean_squared_errors(plain, targets).mean()
    single = editor.unguarded(stack[1], steps=6)
    torch.testing.assert_close(single.render(), refined.render()[1:2], rtol=0, atol=1e-3)
    by_hand = refine(guard(stack, plain, targets).stack, targets, 6)
    torch.testing.assert_close(by_hand.render(), refined.render(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", [{"strength": 0.5}, {"strength": torch.ones(5)}, {"widen": 2}])
def test_options_that_a_one_shot_editor_lacks_are_refused_in_one_way(option):
    with pytest.raises(WeightEditError, match=f"{next(iter(option))}=.* of kind 'editor'; expected only rule, steps"):
        make_editor().unguarded(make_stack(), **option)


def test_its_own_operation_may_be_named():
    editor, stack = make_editor(), make_stack()
    assert_close(editor.unguarded(stack, "dilate", strength=1, widen=1).params, editor.unguarded(stack).params)
    with pytest.raises(WeightEditError, match="got operation 'erode'; this editor knows dilate"):
        editor.unguarded(stack, "erode")
