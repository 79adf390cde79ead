"""Operations: bit-equality with OpenCV, exact definitions, the range of values, and every error."""

import sys

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from weightedit.editing.operations import OPERATIONS, Operation, operation
from weightedit.errors import WeightEditError


def byte_images(count: int, channels: int, height: int = 28, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def smooth_images(count: int) -> torch.Tensor:
    """Color images [count, 3, 32, 32] with structure, as uint8: noise enlarged."""
    small = byte_images(count, 3, 6, 6).float()
    return torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic").clamp(0, 255).round().to(torch.uint8)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("name", "reference"), [("dilate", cv2.dilate), ("erode", cv2.erode)])
@pytest.mark.parametrize("channels", [1, 3])
def test_dilate_and_erode_are_bit_equal_to_opencv(name, reference, channels):
    images = byte_images(8, channels)
    kernel = np.ones((3, 3), np.uint8)
    expected = [[reference(channel.numpy(), kernel, iterations=1) for channel in image] for image in images]
    edited = operation(name)(images.float() / 255)
    assert torch.equal(edited, torch.from_numpy(np.array(expected)).float() / 255)


def test_erode_is_dilate_of_the_inverted_image():
    images = byte_images(4, 1).double() / 255
    twin = 1 - operation("dilate")(1 - images)
    assert torch.allclose(operation("erode")(images), twin, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "forth", "back"),
    [
        ("contrast", cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB),
        ("contrast-nfn", cv2.COLOR_BGR2LAB, cv2.COLOR_LAB2BGR),
    ],
)
def test_contrast_follows_its_definition(name, forth, back):
    images = smooth_images(5)
    expected = []
    for image in images:
        lightness, a, b = cv2.split(cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), forth))
        lightness = cv2.createCLAHE(clipLimit=1.0, tileGridSize=(3, 3)).apply(lightness)
        expected.append(cv2.cvtColor(cv2.merge((lightness, a, b)), back))
    edited = operation(name)(images.float() / 255)
    assert torch.equal(to_bytes(edited), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_the_published_contrast_differs_from_the_right_one():
    images = smooth_images(5).float() / 255
    right, published = operation("contrast")(images), operation("contrast-nfn")(images)
    assert (right - published).square().mean() > 1e-5
    assert torch.equal(operation("contrast-nfn")(images.flip(1)).flip(1), right)


def test_contrast_of_a_gray_image_is_clahe_of_its_channel():
    images = byte_images(3, 1)
    expected = [cv2.createCLAHE(clipLimit=1.0, tileGridSize=(3, 3)).apply(image[0].numpy()) for image in images]
    edited = operation("contrast")(images.float() / 255)
    assert torch.equal(to_bytes(edited)[:, 0], torch.from_numpy(np.stack(expected)))


def test_contrast_rounds_to_bytes_first():
    images = smooth_images(2).float() / 255
    nudged = (images + 0.3 / 255).clamp(max=1.0)
    assert torch.equal(operation("contrast")(nudged), operation("contrast")(images))


def test_the_short_operations_are_what_they_say():
    images = byte_images(3, 2).double() / 255
    assert torch.equal(operation("identity")(images), images)
    assert torch.equal(operation("invert")(images), 1 - images)
    assert torch.equal(operation("darken")(images), images * images)
    assert torch.equal(operation("brighten")(images), images.sqrt())
    assert torch.equal(operation("shift")(images)[..., 2:], images[..., :-2])
    assert torch.equal(operation("shift")(images)[..., :2], images[..., :1].expand(-1, -1, -1, 2))
    expected = (2 * images - operation("blur")(images)).clamp(0, 1)
    assert torch.equal(operation("sharpen")(images), expected)
    binomial = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    expected = [
        [cv2.filter2D(channel.numpy(), -1, binomial, borderType=cv2.BORDER_REPLICATE) for channel in image]
        for image in images
    ]
    assert torch.allclose(operation("blur")(images), torch.from_numpy(np.array(expected)), atol=1e-12)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_range_and_dtype_are_kept(name, dtype):
    images = (smooth_images(2).float() / 255).to(dtype)
    before = images.clone()
    edited = operation(name)(images)
    assert edited.shape == images.shape and edited.dtype == dtype
    assert edited.min() >= 0 and edited.max() <= 1
    assert torch.equal(images, before), "the input was changed in place"
    assert operation(name)(images[:0]).shape == images[:0].shape
    white = torch.ones(1, 3, 9, 9, dtype=dtype)
    assert operation(name)(white).max() <= 1


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_differentiable_says_the_truth(name):
    images = (smooth_images(1).float() / 255).requires_grad_()
    assert operation(name)(images).requires_grad == operation(name).differentiable


def test_a_rendering_is_clamped():
    rendering = torch.tensor([[[[-0.5, 0.25], [0.75, 1.5]]]])
    assert torch.equal(operation("identity").on_rendering(rendering), rendering.clamp(0, 1))
    with pytest.raises(WeightEditError, match="got values from nan to nan"):
        operation("dilate").on_rendering(rendering * torch.nan)


def test_a_function_of_the_user_is_an_operation():
    def mirror(images):
        """Left to right."""
        return images.flip(-1)

    own = operation(mirror)
    images = byte_images(2, 1).float() / 255
    assert (own.name, own.description) == ("mirror", "Left to right.")
    assert torch.equal(own(images), images.flip(-1))
    assert operation(own) is own


def test_unknown_operations_are_refused():
    with pytest.raises(
        WeightEditError, match="there is no operation 'dilatate'.*blur, brighten, contrast, contrast-nfn, darken"
    ):
        operation("dilatate")
    with pytest.raises(WeightEditError, match="an operation was given as int"):
        operation(3)  # type: ignore[arg-type]


def test_bad_images_are_refused():
    dilate, good = operation("dilate"), byte_images(1, 1).float() / 255
    with pytest.raises(WeightEditError, match="got a tensor of torch.uint8.*images.float"):
        dilate(byte_images(1, 1))
    with pytest.raises(WeightEditError, match="got ndarray"):
        dilate(good.numpy())
    with pytest.raises(WeightEditError, match=r"shape \(28, 32\).*\[N, C, H, W\]"):
        dilate(good[0, 0])
    with pytest.raises(WeightEditError, match=r"values from -1 to .*\(images \+ 1\) / 2"):
        dilate(good * 2 - 1)
    with pytest.raises(WeightEditError, match="values from nan"):
        dilate(good.clone().index_fill_(3, torch.tensor([0]), torch.nan))
    with pytest.raises(WeightEditError, match="with 2 channels.*defined for 1 or 3"):
        operation("contrast")(byte_images(1, 2).float() / 255)
    with pytest.raises(WeightEditError, match="with 1 channels.*defined for 3"):
        operation("contrast-nfn")(good)


def _exits(images):
    sys.exit(0)


def _recurses(images):
    return _recurses(images)


def _wordy(images):
    raise RuntimeError("many\nlines of it " * 100)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_exits, r"raised SystemExit \(0\); expected a function from images"),
        (_recurses, "raised RecursionError"),
        (_wordy, r"raised RuntimeError \(many lines of it .{150,200} \.\.\.\)"),
        (lambda: None, "raised TypeError .*takes 0 positional arguments"),
        (lambda images: images.to("meta"), "raised NotImplementedError"),
        (lambda images: images[..., 1:], r"returned torch.float32 \(2, 1, 28, 31\) for images of shape"),
        (lambda images: images.repeat(3, 1, 1, 1), "returned torch.float32"),
        (lambda images: images.to(torch.complex64), "returned torch.complex64"),
        (lambda images: (images, images), "returned tuple for images"),
        (lambda images: images.numpy(), "returned ndarray"),
        (lambda images: images * 255, r"values from 0 to 255; expected images in \[0, 1\]"),
        (lambda images: images - 1e-3, r"values from -0\.001 to"),
        (lambda images: images / 0, "values from nan to nan"),
    ],
)
def test_what_a_function_of_the_user_does_wrong_is_told(function, message):
    images = byte_images(2, 1).float() / 255
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(WeightEditError, match=message):
        operation(function)(images)
    with pytest.raises(WeightEditError, match=message):
        Operation("own", "", torch.clone, graded=lambda images, strength: function(images)).at(images, 0.5)


def test_a_function_of_the_user_may_overwrite_its_images():
    images = byte_images(2, 1).float() / 255
    kept = images.clone()
    own = operation(lambda images: images.neg_().add_(1))
    assert torch.equal(own(images), 1 - kept) and torch.equal(images, kept)
    torch.testing.assert_close(own.at(images, 0.25), 0.75 * kept + 0.25 * (1 - kept))
    degrees = Operation("own", "", own.function, graded=lambda images, strength: images.lerp_(1 - images, strength))
    assert torch.equal(degrees.at(images, 0.5), kept.lerp(1 - kept, 0.5)) and torch.equal(images, kept)


def test_a_function_of_the_user_may_return_a_mask_or_miss_the_range_by_rounding():
    images = byte_images(2, 1).double() / 255
    for kind in (torch.bool, torch.uint8, torch.float16):
        assert torch.equal(
            operation(lambda images, kind=kind: (images > 0.5).to(kind))(images), (images > 0.5).double()
        )
    for dtype in (torch.float64, torch.float32):
        one_ulp = 1 + torch.finfo(dtype).eps
        found = operation(lambda images, dtype=dtype, by=one_ulp: torch.ones_like(images, dtype=dtype) * by)(images)
        assert torch.equal(found, torch.ones_like(images))


@pytest.mark.parametrize("size", [(21, 21), (12, 25)])
def test_rotate_is_a_rotation_in_pixels(size):
    """Against scipy's interpolation at the places that a rotation by 15 degrees counterclockwise comes from."""
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    angle = np.deg2rad(15)
    # Rows point down: what is now at (row, column) was turned counterclockwise from the place read here.
    from_row = np.cos(angle) * rows + np.sin(angle) * columns
    from_column = -np.sin(angle) * rows + np.cos(angle) * columns
    places = [from_row + (size[0] - 1) / 2, from_column + (size[1] - 1) / 2]
    expected = ndimage.map_coordinates(image[0, 0].numpy(), places, order=1, mode="nearest")
    assert np.allclose(operation("rotate")(image)[0, 0].numpy(), expected, atol=1e-9)
    bright = torch.zeros(1, 1, 21, 21)
    bright[..., 10, 18] = 1.0  # right of the center
    row, column = np.unravel_index(int(operation("rotate")(bright).argmax()), (21, 21))
    assert row < 10 and column > 10  # went up
