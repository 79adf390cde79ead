import pytest
import torch
from PIL import Image

from weightedit.data.images import load_images
from weightedit.errors import WeightEditError
from weightedit.metatrain import problems
from weightedit.metatrain.draws import keys
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, LabeledImages, ModuleOptimizee, SirenOptimizee
from weightedit.metatrain.optimizee import Reparametrized
from weightedit.metatrain.problems import PROBLEMS, family, images_of, optimizee
from weightedit.metatrain.unroll import start
from weightedit.optim.hand_designed import Adam


def test_digits_need_no_folder_and_splits_do_not_overlap():
    train, test = images_of("digits-mlp", "nowhere"), images_of("digits-mlp", "nowhere", split="test")
    assert train.images.shape == (1400, 1, 8, 8) and len(test.labels) == 397 and train.classes == test.classes == 10
    assert float(train.images.min()) >= 0 and float(train.images.max()) == 1


@pytest.fixture
def pictures(tmp_path):
    source = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in range(2):
            folder = tmp_path / "fashion_mnist" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = torch.randint(256, (28, 28), generator=source, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tmp_path


def test_problems_read_their_images_at_their_size(pictures):
    small, whole = images_of("fashion-mlp", pictures), images_of("fashion-cnn", pictures, split="test")
    assert small.images.shape == (8, 1, 8, 8) and whole.images.shape == (8, 1, 28, 28)
    mlp, cnn = optimizee("fashion-mlp", small, batch_size=3), optimizee("fashion-cnn", whole)
    assert isinstance(mlp, ClassifierOptimizee) and mlp.spec.widths == (64, 32, 2) and mlp.batch_size == 3
    assert isinstance(cnn, ModuleOptimizee)
    for name, size in (("fashion-mlp-16", 16), ("fashion-mlp-full", 28)):
        larger = optimizee(name, images_of(name, pictures))
        assert isinstance(larger, ClassifierOptimizee) and larger.spec.widths == (size * size, 32, 2)
    gelu = optimizee("fashion-mlp-gelu", small)
    assert isinstance(gelu, ClassifierOptimizee) and gelu.spec.layers[0].activation.name == "gelu"
    params, _ = cnn.init(torch.Generator().manual_seed(0), 1)
    assert sum(p.numel() for p in params.values()) == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 32 * 32 * 9 + 32 + 32 * 2 + 2


def test_without_a_folder_every_data_set_comes_from_the_hub(pictures, monkeypatch):
    asked, found = [], load_images(pictures / "fashion_mnist", "test")
    monkeypatch.setattr(problems, "load_images", lambda *words: asked.append(words) or found)
    for name in {problem.source: name for name, problem in PROBLEMS.items() if problem.source}.values():
        images_of(name, "", split="test")
    hub = ("uoft-cs/cifar10", "ylecun/mnist", "zalando-datasets/fashion_mnist")
    assert sorted(asked) == [(name, "test") for name in hub]


def test_a_family_varies_what_it_is_told_to():
    data = images_of("digits-mlp", "nowhere")
    generator = torch.Generator().manual_seed(0)
    assert family("digits-mlp", data, None).draw(generator)[1] == {"hidden": (32,)}
    drawn = [family("digits-mlp", data, None, ("hidden", "activation")).draw(generator)[0] for _ in range(12)]
    assert len({problem.spec for problem in drawn}) > 3
    with pytest.raises(WeightEditError, match="variations"):
        family("digits-mlp", data, None, ("color",))
    with pytest.raises(WeightEditError, match="color.* of fashion-cnn; expected some of hidden, activation"):
        optimizee("fashion-cnn", data, color="red")
    plain, large = (optimizee("fashion-cnn", data, initial_scale=scale, activation="tanh") for scale in (1.0, 2.0))
    small, twice = (problem.init(torch.Generator().manual_seed(0), 1)[0] for problem in (plain, large))
    assert all(torch.equal(2 * small[name], tensor) for name, tensor in twice.items())
    assert isinstance(large, ModuleOptimizee) and any(isinstance(m, torch.nn.Tanh) for m in large.net.modules())
    cnn = optimizee("fashion-cnn", data, hidden=(8, 16), batch_size=32)
    assert isinstance(cnn, ModuleOptimizee) and cnn.batch_size == 32
    assert {tuple(p.shape) for p in cnn.net.parameters() if p.dim() == 4} == {(8, 1, 3, 3), (16, 8, 3, 3)}


def test_a_siren_is_fitted_to_the_images(pictures):
    siren = optimizee("fashion-siren", images_of("fashion-siren", pictures), hidden=(8, 8))
    assert isinstance(siren, SirenOptimizee) and siren.widths == (2, 8, 8, 1)
    params, task = siren.init(torch.Generator().manual_seed(0), 3)
    assert siren.loss(params, siren.batch(task, torch.arange(3))).shape == (3,)


@pytest.mark.parametrize("wrapped", [False, True])
def test_held_out_fits_are_of_images_that_no_training_fit_draws(wrapped):
    def pictures(value):
        return LabeledImages(torch.full((5, 1, 6, 6), value), torch.zeros(5, dtype=torch.long), 1)

    plain, both = (optimizee("mnist-siren", pictures(0.2), unseen, hidden=(4,)) for unseen in (None, pictures(0.7)))
    made = torch.Generator().manual_seed
    for problem, value in ((plain, 0.2), (both, 0.7)):
        problem = Reparametrized(problem) if wrapped else problem
        state = start(Adam(), problem, made(0), 3, held_out=True)
        assert (problem.batch(state.task, keys(state.seed, state.step), held_out=True)["values"] == value).all()
    training, before = (start(Adam(), problem, made(0), 3).to_tensors() for problem in (both, plain))
    assert all(torch.equal(training[name], tensor) for name, tensor in before.items())


def test_an_unknown_problem_is_refused():
    with pytest.raises(WeightEditError, match=", ".join(PROBLEMS)):
        images_of("imagenet", "nowhere")
