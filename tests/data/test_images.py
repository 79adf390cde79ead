"""Images through `datasets` and pillow: exact pixels and labels from every kind of source, and every error."""

import io
import os
import struct
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from weightedit.data.images import ImageSet, load_images, load_picture
from weightedit.errors import FileFormatError, WeightEditError


def pixels(count: int, channels: int, height: int = 5, width: int = 7) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(image: np.ndarray | Image.Image) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, encoded: list[bytes | None], labels: list[int] | None = None, features=None) -> None:
    """A parquet file as `datasets` writes it: encoded pictures and, if given, class labels."""
    columns = {"image": [None if one is None else {"bytes": one, "path": None} for one in encoded]}
    if labels is not None:
        columns["label"] = labels
    if features is None:
        features = datasets.Features({"image": datasets.Image()})
        if labels is not None:
            features["label"] = datasets.ClassLabel(num_classes=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=features.arrow_schema), path)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_parquet_files(tmp_path, channels):
    train, test = pixels(6, channels), pixels(3, channels)[::-1].copy()
    write_parquet(tmp_path / "train.parquet", [png(image) for image in train], [3, 1, 4, 1, 5, 9])
    write_parquet(tmp_path / "test.parquet", [png(image) for image in test], [2, 6, 5])
    loaded = load_images(tmp_path, "train")
    assert loaded.images.dtype == torch.uint8 and torch.equal(loaded.images, as_tensor(train))
    assert loaded.labels.tolist() == [3, 1, 4, 1, 5, 9] and loaded.index.tolist() == list(range(6))
    assert torch.equal(load_images(str(tmp_path), "test").images, as_tensor(test))
    some = load_images(tmp_path, "train", limit=4)
    assert torch.equal(some.images, loaded.images[:4]) and len(some) == 4
    assert len(load_images(tmp_path, "test", limit=99)) == 3
    with pytest.raises(FileFormatError, match="got split=validation of .*; expected one of train, test"):
        load_images(tmp_path, "validation")
    with pytest.raises(FileFormatError, match="got split=None of"):
        load_images(tmp_path)


def test_one_parquet_file(tmp_path):
    images = pixels(3, 1)
    write_parquet(tmp_path / "train.parquet", [png(image) for image in images])
    for split in (None, "train"):
        loaded = load_images(tmp_path / "train.parquet", split)
        assert torch.equal(loaded.images, as_tensor(images)) and loaded.labels.tolist() == [-1, -1, -1]
    with pytest.raises(FileFormatError, match="split 'test' was asked of the single file"):
        load_images(tmp_path / "train.parquet", "test")


def test_local_pictures_need_no_cache_that_can_be_written(tmp_path, monkeypatch):
    """As with a HOME that is read-only or not there: below a file, no folder can be made, not even by root."""
    (tmp_path / "home").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    images = pixels(2, 3)
    write_parquet(tmp_path / "set" / "train.parquet", [png(image) for image in images])
    (tmp_path / "pictures").mkdir()
    for row, image in enumerate(images):
        (tmp_path / "pictures" / f"{row}.png").write_bytes(png(image))
    for source in ("set", "set/train.parquet", "pictures"):
        assert torch.equal(load_images(tmp_path / source).images, as_tensor(images))


def test_a_folder_of_pictures(tmp_path):
    images = pixels(8, 3)
    for row, (split, label) in enumerate([(s, c) for s in ("train", "test") for c in ("cat", "cat", "dog", "dog")]):
        folder = tmp_path / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}.png").write_bytes(png(images[row]))
    loaded = load_images(tmp_path, "train")
    assert torch.equal(loaded.images, as_tensor(images[:4])) and loaded.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(load_images(tmp_path, "test").images, as_tensor(images[4:]))


def test_a_flat_folder_of_pictures_has_no_labels(tmp_path):
    images = pixels(2, 1)
    for row in range(2):
        (tmp_path / f"{row}.png").write_bytes(png(images[row]))
    loaded = load_images(tmp_path)
    assert torch.equal(loaded.images, as_tensor(images)) and loaded.labels.tolist() == [-1, -1]


def test_the_hub_is_asked_by_name(tmp_path, monkeypatch):
    images = pixels(3, 1)
    write_parquet(tmp_path / "t.parquet", [png(image) for image in images], [1, 2, 3])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    stored = datasets.Dataset(pq.read_table(tmp_path / "t.parquet")).cast(features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or {"train": stored})
    monkeypatch.chdir(tmp_path)
    loaded = load_images("someone/pictures", "train")
    assert asked == ["someone/pictures"] and torch.equal(loaded.images, as_tensor(images))
    assert loaded.labels.tolist() == [1, 2, 3]

    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": stored.select([])})
    with pytest.raises(FileFormatError, match="has no images in split 'train'"):
        load_images("someone/pictures", "train")

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileFormatError, match="no file or folder 'someone/pictures' here, and the hub .*no network"):
        load_images("someone/pictures", "train")


@pytest.mark.parametrize(("name", "told"), [("photoss", "one, such as photos: "), ("photos/ca", "such as photos/cat: "),
                                            ("photos/dog", "expected one: ")])  # fmt: skip
def test_a_misspelt_path_is_not_asked_of_the_hub(name, told, tmp_path, monkeypatch):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("the hub was asked"))
    with pytest.raises(FileFormatError, match=f"no file or folder '{name}'.* {told}check the path"):
        load_images(name)


def test_resizing_and_converting(tmp_path):
    wide, square = pixels(1, 3, 4, 8)[0], pixels(1, 1, 6, 6)[0]
    write_parquet(tmp_path / "train.parquet", [png(wide), png(square)])
    with pytest.raises(
        FileFormatError, match="row 1 of .* 6 x 6 pixels and 1 channel, but row 0 .* 4 x 8 pixels and 3"
    ):
        load_images(tmp_path)
    loaded = load_images(tmp_path, size=(4, 8), channels=3)
    assert loaded.images.shape == (2, 3, 4, 8)
    assert torch.equal(loaded.images[0], as_tensor(wide[None])[0])
    gray = Image.fromarray(square[..., 0]).resize((8, 4), Image.Resampling.BICUBIC)
    assert np.array_equal(loaded.images[1, 0].numpy(), np.asarray(gray))


def test_columns_are_found_by_type_or_by_name(tmp_path):
    encoded = [png(image) for image in pixels(2, 1)]
    picture = {"bytes": encoded[0], "path": None}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "fine": datasets.ClassLabel(num_classes=9),
            "coarse": datasets.ClassLabel(num_classes=3),
        }
    )
    table = pa.table({"image": [picture] * 2, "fine": [7, 8], "coarse": [1, 2]}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(FileFormatError, match=r"1 image columns \['image'\] and 2 label columns \['fine', 'coarse'\]"):
        load_images(tmp_path)
    assert load_images(tmp_path, columns=("image", "coarse")).labels.tolist() == [1, 2]
    assert load_images(tmp_path, columns=("image", None)).labels.tolist() == [-1, -1]
    with pytest.raises(FileFormatError, match=r"columns=\('picture', None\) for "):
        load_images(tmp_path, columns=("picture", None))
    pq.write_table(pa.table({"pixel": [1, 2]}), tmp_path / "train.parquet")
    with pytest.raises(FileFormatError, match="has 0 image columns"):
        load_images(tmp_path)


def test_an_integer_column_named_label_is_enough(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")})
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pixels(2, 1)], [11, 12], features)
    assert load_images(tmp_path).labels.tolist() == [11, 12]


def test_unreadable_rows_are_named(tmp_path):
    good = png(pixels(1, 1)[0])
    write_parquet(tmp_path / "a" / "train.parquet", [good, good[: len(good) // 2]])
    with pytest.raises(FileFormatError, match="row 1 of .* is not a readable picture"):
        load_images(tmp_path / "a")
    write_parquet(tmp_path / "b" / "train.parquet", [good, b"no picture"])
    with pytest.raises(FileFormatError, match="row 1 of .* is not a readable picture"):
        load_images(tmp_path / "b")
    write_parquet(tmp_path / "c" / "train.parquet", [None, good])
    with pytest.raises(FileFormatError, match="row 0 of .* has no image"):
        load_images(tmp_path / "c")


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="there is no file or folder '.*absent'"):
        load_images(tmp_path / "absent")
    with pytest.raises(FileFormatError, match="holds no files; expected .parquet or picture"):
        load_images(tmp_path)
    (tmp_path / "notes.txt").write_text("no pictures here")
    with pytest.raises(FileFormatError, match="is a .txt file"):
        load_images(tmp_path / "notes.txt")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(FileFormatError, match="could not be read .*expected readable parquet or pictures"):
        load_images(tmp_path)


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(WeightEditError, match="limit=0"):
        load_images(tmp_path, limit=0)
    with pytest.raises(WeightEditError, match=r"size=\(28,\)"):
        load_images(tmp_path, size=(28,))  # type: ignore[arg-type]
    with pytest.raises(WeightEditError, match="channels=4"):
        load_picture(tmp_path, channels=4)


def test_a_picture_is_read_exactly(tmp_path):
    image = pixels(1, 3)[0]
    (tmp_path / "a.png").write_bytes(png(image))
    loaded = load_picture(tmp_path / "a.png")
    assert loaded.dtype == torch.float32 and torch.equal(loaded, as_tensor(image[None])[0].float() / 255)
    assert load_picture(tmp_path / "a.png", size=(3, 4), channels=1).shape == (1, 3, 4)
    turned = Image.fromarray(image)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_picture(tmp_path / "turned.png"), loaded.rot90(-1, (1, 2)))


def test_modes_of_pictures(tmp_path):
    def saved(mode: str, name: str = "a.png"):
        Image.fromarray(pixels(1, 3)[0]).convert(mode).save(tmp_path / name)
        return tmp_path / name

    assert set(load_picture(saved("1")).unique().tolist()) <= {0.0, 1.0}
    assert load_picture(saved("P")).shape == (3, 5, 7)
    with pytest.raises(FileFormatError, match="pillow's mode RGBA.*channels=3"):
        load_picture(saved("RGBA"))
    assert load_picture(tmp_path / "a.png", channels=3).shape == (3, 5, 7)
    with pytest.raises(FileFormatError, match="pillow's mode I;16; expected 8 bits"):
        load_picture(saved("I;16"), channels=1)


def test_unreadable_pictures_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="there is no picture file"):
        load_picture(tmp_path / "absent.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(FileFormatError, match=r"b\.png is not a readable picture \(of no known format\)"):
        load_picture(tmp_path / "b.png")


def test_an_image_set_checks_its_parts():
    images, count = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.arange(2)
    part = ImageSet(images, count, count)[1:]
    assert part.index.tolist() == [1] and part.floats().dtype == torch.float32
    with pytest.raises(WeightEditError, match="type torch.float32: expected uint8"):
        ImageSet(images.float(), count, count)
    with pytest.raises(WeightEditError, match=r"labels of shape \(3,\)"):
        ImageSet(images, torch.arange(3), count)


def test_only_pictures_of_some_formats_are_decoded_and_only_up_to_a_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    with pytest.raises(FileFormatError, match=r"\(of no known format\); expected one of PNG, JPEG, BMP"):
        load_picture(tmp_path / "a.png")
    for side in (13_000, 30_000):  # the second is one that pillow itself refuses
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
        with pytest.raises(FileFormatError, match="pixels; expected at most 67,108,864|exceeds limit"):
            load_picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(FileFormatError, match="is a folder, pipe or device"):
        load_picture(tmp_path / "b.png")
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "b.png")}]}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(rows, schema=features.arrow_schema), tmp_path / "set" / "train.parquet")
    with pytest.raises(FileFormatError, match="is a folder, pipe or device"):
        load_images(tmp_path / "set")


def test_a_limit_unpacks_no_more_rows_than_it_needs(tmp_path, monkeypatch):
    images = pixels(4, 1)
    write_parquet(tmp_path / "train.parquet", [png(image) for image in images], [1, 2, 3, 4])
    asked, load = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append(k["batch_size"]) or load(*a, **k))
    assert torch.equal(load_images(tmp_path, limit=1).images, as_tensor(images[:1])) and len(load_images(tmp_path)) == 4
    assert asked == [1, 200]


def test_labels_are_whole_numbers(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    write_parquet(tmp_path / "train.parquet", [png(pixels(1, 1)[0])], ["cat"], features)
    with pytest.raises(FileFormatError, match="row 0 of .*: label is 'cat'; expected a whole number"):
        load_images(tmp_path, columns=("image", "label"))
