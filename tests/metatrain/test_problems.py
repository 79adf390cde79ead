import pytest
import torch
from PIL import Image

from weightedit.errors import WeightEditError
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, ModuleOptimizee
from weightedit.metatrain.problems import PROBLEMS, classifier, family, images_of


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
    mlp, cnn = classifier("fashion-mlp", small, batch_size=3), classifier("fashion-cnn", whole)
    assert isinstance(mlp, ClassifierOptimizee) and mlp.spec.widths == (64, 32, 2) and mlp.batch_size == 3
    assert isinstance(cnn, ModuleOptimizee)
    params, _ = cnn.init(torch.Generator().manual_seed(0), 1)
    assert sum(p.numel() for p in params.values()) == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 32 * 32 * 9 + 32 + 32 * 2 + 2


def test_a_family_varies_what_it_is_told_to():
    data = images_of("digits-mlp", "nowhere")
    generator = torch.Generator().manual_seed(0)
    assert family("digits-mlp", data, None).draw(generator)[1] == {"batch_size": 128}
    drawn = [family("digits-mlp", data, None, ("hidden", "activation")).draw(generator)[0] for _ in range(12)]
    assert len({problem.spec for problem in drawn}) > 3
    with pytest.raises(WeightEditError, match="variations"):
        family("digits-mlp", data, None, ("colour",))


def test_an_unknown_problem_is_refused():
    with pytest.raises(WeightEditError, match=", ".join(PROBLEMS)):
        images_of("imagenet", "nowhere")
