"""The door: what `import weightedit as we` offers, that it costs nothing to open, and that its map is complete."""

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weightedit as we
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.refinement import refine, target_of
from weightedit.inr.convention import convert
from weightedit.inr.fitting import FitOptions
from weightedit.inr.fitting import fit as fit_all
from weightedit.inr.widening import widen

PACKAGE = Path(we.__file__).parent
NAMES = """
    Adam AdamW CNNZoo Convention ES Editor EditorOptions FileFormatError FitOptions GeometricAdam GraphSpec
    Horizons INRStack KFAC LearnedKFAC LearnedOptimizer LearnedRule LearnedRuleConfig METANETS MLPRule MetanetRule
    ModuleRun Muon NetworkSpec NeuralGraph NonFiniteError OPERATIONS OneShotEditor Operation PES ParamsError
    PredictiveEditor Predictor PredictorConfig PyGAdapter SGD Samples GaugeGMN GaugeGMNConfig SpecError TrainOptions
    TrainResult TruncatedBackprop TypeMismatchError Unroll UpdateRule WeightEditError WeightSet
    WeightSpacePredictor act apply_delta assert_equivariant canonicalize edit fit from_pyg load load_images
    load_picture make_metanet make_rule mean_squared_errors meta_gradient optimizer_factory propose_delta
    ragged_from_params random_element read refine register_with_higher save_inrs save_weight_set shipped
    split_by_image target_of to_pyg train undo widen
""".split()  # noqa: SIM905


def test_the_public_names_are_these() -> None:
    assert we.__all__ == sorted(NAMES) and set(NAMES) <= set(dir(we))


def test_every_name_is_there_and_says_what_it_is() -> None:
    for name in NAMES:
        found = getattr(we, name)
        assert name in we.__dict__, f"{name} would be looked up at every use"
        assert found.__doc__ or isinstance(found, Mapping), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        we.nothing  # noqa: B018


def test_the_map_names_them_all() -> None:
    assert we.__doc__ is not None
    assert set(NAMES) <= set(re.findall(r"\w+", we.__doc__))


def test_no_name_is_that_of_a_module() -> None:
    """Or an import of the module would put it in the name's place."""
    assert not {path.stem for path in PACKAGE.iterdir()} & set(NAMES)


def test_type_checkers_are_told_the_same() -> None:
    stub = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            stub |= {alias.asname: (node.module, alias.name) for alias in node.names}
    assert sorted(stub) == we.__all__
    for name, (module, own) in stub.items():
        assert getattr(sys.modules[str(module)], own) is getattr(we, name), name


def test_opening_it_imports_nothing() -> None:
    code = "import sys; before = set(sys.modules); import weightedit; print(sorted(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert set(ast.literal_eval(shown.stdout)) == {"weightedit"}


@pytest.fixture(scope="module")
def inrs() -> we.INRStack:
    small = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return we.fit(torch.nn.functional.interpolate(small, (9, 8)), (8, 8), seed=1, target_psnr=25)


def same(one: we.INRStack, other: we.INRStack) -> bool:
    return all(torch.equal(one.params[name], tensor) for name, tensor in other.params.items())


def test_fit_is_the_fit_of_the_library(inrs: we.INRStack) -> None:
    images = torch.rand(2, 3, 6, 5)
    expected = fit_all(
        images, widths=(2, 7, 3), options=FitOptions(max_steps=4), generator=torch.Generator().manual_seed(3)
    )
    found = we.fit(images, [7], seed=3, max_steps=4)
    assert same(found, expected.stack) and found.psnr is not None and len(inrs) == 3
    with pytest.raises(we.WeightEditError, match="got target; expected some of method, init, target_psnr"):
        we.fit(images, target=3)
    with pytest.raises(we.ParamsError):
        we.fit(images[0])
    assert len(we.fit(images[:0])) == 0 and we.fit(images[:0], [7]).widths == (2, 7, 3)
    wrong = {
        "hidden=7; expected the widths": {"hidden": 7},
        "got seed=1.5; expected a whole number of at most 18 digits": {"seed": 1.5},
    }
    wrong |= {f"got seed={seed}; expected a whole": {"seed": seed} for seed in (True, 2**63, -(2**63) - 1)}
    wrong |= {"got max_steps=1.5; expected": {"max_steps": 1.5}, "target_psnr='a': expected": {"target_psnr": "a"}}
    for message, options in wrong.items():
        with pytest.raises(we.WeightEditError, match=message):
            we.fit(images, **options)
    with pytest.raises(we.ParamsError, match="images list"):
        we.fit([1.0], [7])  # pyright: ignore[reportArgumentType]


def test_edit_is_learned_steps_towards_the_operation(inrs: we.INRStack) -> None:
    rule, targets = LearnedKFAC.from_pretrained("refine-rule"), target_of("invert", inrs, strength=0.5)
    expected = refine(widen(inrs, 2), targets, 10, rule=rule)
    assert same(we.edit(inrs, "invert", strength=0.5, widen=2), expected)
    assert same(we.edit(inrs, lambda images: images.lerp(1 - images, 0.5), widen=2), expected)
    assert same(we.edit(inrs, targets, widen=2), expected)
    by_hand = refine(inrs, target_of("erode", inrs), 2, rule=KFAC())
    assert same(we.edit(inrs, we.OPERATIONS["erode"], steps=2, rule=KFAC()), by_hand)


def test_edits_of_strength_zero_change_nothing(inrs: we.INRStack) -> None:
    assert same(we.edit(inrs, "invert", strength=0.0), inrs) and same(we.edit(inrs, "invert", steps=0), inrs)
    some = we.edit(inrs, "invert", strength=torch.tensor([0.0, 1.0, 0.0]), steps=2)
    assert same(some[[0, 2]], inrs[[0, 2]]) and not same(some[1], inrs[1])
    for value in (-1, 1.5, "a", None, True):
        with pytest.raises(we.WeightEditError, match=f"steps={value!r}; expected a whole number of at least 0"):
            we.edit(inrs, "invert", steps=value)  # pyright: ignore[reportArgumentType]
    for value, message in ((-1, "strength -1"), ("a", "strength='a'; expected a number"), (None, "strength=None;")):
        with pytest.raises(we.WeightEditError, match=message):
            we.edit(inrs, "invert", strength=value)  # pyright: ignore[reportArgumentType]
    for value in (0, 1.5, "a"):
        with pytest.raises(we.WeightEditError, match=f"widen={value!r}; expected a whole number of at least 1"):
            we.edit(inrs, "invert", widen=value)  # pyright: ignore[reportArgumentType]
    for value in (-1, 1.5, "a", None):
        with pytest.raises(we.WeightEditError, match=f"steps={value!r}; expected a whole number of at least 0"):
            refine(inrs, inrs.render().clamp(0, 1), value)  # pyright: ignore[reportArgumentType]
    with pytest.raises(we.ParamsError, match=r"got a Tensor; expected INRs: we.fit\(pictures\), or we.load"):
        we.edit(torch.rand(1, 1, 8, 8), "blur")  # pyright: ignore[reportArgumentType]
    with pytest.raises(we.WeightEditError, match=r"got rule 'kfac'; expected None, we.KFAC\(\), or a rule that"):
        we.edit(inrs, "blur", rule="kfac")  # pyright: ignore[reportArgumentType]
    with pytest.raises(we.ParamsError, match="expected one size: resize them"):
        we.edit(inrs, inrs.render(9, 9).clamp(0, 1), strength=0.5)


def test_pictures_and_samples_are_mixed_in_by_degrees(inrs: we.INRStack) -> None:
    """At 0.5 the target is halfway between what the INRs are and what is given, whichever way it is given."""
    other = inrs.render().clamp(0, 1).flip(-1)
    half = we.edit(inrs, inrs.render().clamp(0, 1).lerp(other, 0.5), steps=2)
    mixed = we.edit(inrs, other, strength=0.5, steps=2)
    assert all(torch.equal(mixed.params[name], tensor) for name, tensor in half.params.items())
    assert mixed.history[-1].told == "pictures (2 steps, strength 0.5)"
    places = torch.rand(40, 2) * 2 - 1
    values = we.Samples(places, inrs.at(places) + 0.5)
    halves = we.edit(inrs, we.Samples(places, inrs.at(places) + 0.25), steps=2)
    mixed = we.edit(inrs, values, strength=0.5, steps=2)
    torch.testing.assert_close(mixed.at(places), halves.at(places), rtol=0, atol=1e-3)


def test_an_editor_is_found_by_name_whatever_its_kind(inrs: we.INRStack) -> None:
    edited = we.Editor.from_pretrained("mnist-multi")(inrs, "rotate", strength=0.5, steps=2, widen=2)
    assert edited.widths == (2, 16, 16, 1) and edited.psnr is None
    assert type(we.load("mnist-dilate-predictive")) is type(we.Editor.from_pretrained("mnist-multi"))
    for name in we.shipped():
        assert isinstance(we.load(name), torch.nn.Module)


def test_read_gives_what_metanetworks_take() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    spec = we.read(net)
    assert we.read(net, torch.zeros(5, 3)) == spec
    params = spec.params_of(net)
    delta = we.propose_delta(we.make_metanet("gauge-gmn", [spec], probes=0), spec, params)
    assert {name: change.shape for name, change in delta.items()} == {name: p.shape for name, p in params.items()}


def test_inrs_that_end_in_a_sine_are_edited_by_steps_and_not_converted():
    stack = we.fit(torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)), (6,), seed=0, max_steps=2)
    ended = replace(stack, convention=replace(stack.convention, last="sine"))
    wanted = we.target_of("invert", ended)
    before, after = (we.mean_squared_errors(inrs, wanted) for inrs in (ended, we.edit(ended, "invert", steps=5)))
    assert bool((after < before).all())
    with pytest.raises(we.ParamsError, match="use what was made for sine, or render it and fit the pictures anew"):
        convert(ended.params, ended.convention, stack.convention)
