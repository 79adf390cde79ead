"""Sheets and mosaics: what is on them, pixel by pixel where that can be said, and whole files or none."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from weightedit.errors import FileFormatError, WeightEditError
from weightedit.plots import Band, ChangeColumn, Curve, ImageColumn, bands, frontier, mosaic, sheet


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _columns(count=3):
    ramp = torch.linspace(-1, 2, 36).reshape(1, 1, 6, 6).expand(count, 1, 6, 6)
    colors = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    change = torch.randn(count, 4, 5, generator=torch.Generator().manual_seed(0))
    return [
        ImageColumn("gray", ramp, [f"MSE {n}" for n in range(count)]),
        ImageColumn("color\nRGB", colors),
        ChangeColumn("change\n4 × 5", change),
    ]


def test_a_sheet_grows_with_rows_and_columns(tmp_path):
    sizes = []
    for count, wide in ((1, 1), (3, 1), (3, 3)):
        path = sheet(_columns(count)[:wide], tmp_path / "sheet.png", heading="A heading", labels=list("abc")[:count])
        sizes.append(_pixels(path).shape[:2])
    assert sizes[0][0] < sizes[1][0] < sizes[2][0] and sizes[0][1] == sizes[1][1] < sizes[2][1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_all_images_share_the_range_from_0_to_1(tmp_path):
    """A dim image stays dim beside a bright one, and by itself; what is outside is drawn as the nearer end."""
    for value, shown in ((0.25, 64), (1.0, 255), (-3.0, 0), (7.0, 255)):
        path = sheet([ImageColumn("one", torch.full((1, 1, 4, 4), value))], tmp_path / "sheet.png")
        pixels = _pixels(path)
        center = pixels[pixels.shape[0] * 2 // 3, pixels.shape[1] // 2]
        assert abs(center - shown).max() <= 1, value


def test_changes_are_centered_at_zero(tmp_path):
    halves = torch.zeros(1, 2, 3)
    halves[0, :, 0], halves[0, :, 2] = -1e-3, 2e-3
    pixels = _pixels(sheet([ChangeColumn("change", halves)], tmp_path / "sheet.png"))
    row = pixels[pixels.shape[0] // 2]
    third = pixels.shape[1] // 2
    blue, white, red = row[third - 55], row[third], row[third + 55]
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and white.min() > 240
    assert 2 * abs(int(blue.min()) - 250) > 50 and blue.min() > red.min()  # half the change, half the color


def test_the_scale_leaves_out_one_value_in_a_hundred_and_survives_zeros():
    values = torch.cat([torch.full((99,), 0.5), torch.tensor([100.0])]).reshape(1, 10, 10)
    assert ChangeColumn("", values).limit == 0.5
    assert ChangeColumn("", torch.zeros(2, 3, 3)).limit == 1.0
    assert ChangeColumn("", torch.tensor([[[3.0]]])).limit == 3.0


def test_gradients_and_other_types_are_drawn(tmp_path):
    images = torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    sheet([ImageColumn("a", images), ChangeColumn("b", images[:, 0].bfloat16())], tmp_path / "sheet.png")
    mosaic(images, tmp_path / "mosaic.png")


def test_one_image_is_a_plain_picture(tmp_path):
    image = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    path = mosaic(image, tmp_path / "one.png")
    expected = (image[0].permute(1, 2, 0) * 255).round().long().numpy()
    assert (_pixels(path) == expected).all()
    with Image.open(mosaic(image[:, :1], tmp_path / "gray.png")) as gray:
        assert (gray.mode, gray.size) == ("L", (7, 5))


def test_several_images_stand_row_by_row(tmp_path):
    images = torch.stack([torch.full((1, 5, 7), value) for value in (0.0, 0.2, 0.4, 0.6, 0.8)])
    pixels = _pixels(mosaic(images, tmp_path / "many.png"))[..., 0]
    assert pixels.shape == (2 * 5 + 4, 3 * 7 + 8)
    assert [pixels[2, 3], pixels[2, 14], pixels[2, 25], pixels[11, 3], pixels[11, 14]] == [0, 51, 102, 153, 204]
    assert pixels[11, 25] == 255 and (pixels[5:9] == 255).all()


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        ([], [], "expected one length"),
        ([ImageColumn("a", torch.zeros(0, 1, 2, 2))], [], "at least 1"),
        ([ImageColumn("a", torch.zeros(2, 1, 2, 2)), ChangeColumn("b", torch.zeros(3, 2, 2))], [], r"\[2, 3\]"),
        ([ImageColumn("a", torch.zeros(2, 1, 2, 2), ["one"])], [], r"\[1, 2\]"),
        ([ImageColumn("a", torch.zeros(2, 1, 2, 2))], ["1", "2", "3"], r"\[2, 3\]"),
        ([ImageColumn("a", torch.zeros(2, 2, 2, 2))], [], "1 channel"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, columns, labels, message):
    with pytest.raises(WeightEditError, match=message):
        sheet(columns, tmp_path / "sheet.png", labels=labels)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "taken.png").mkdir()
    for place in (tmp_path / "none" / "a.png", tmp_path / "taken.png"):
        with pytest.raises(FileFormatError, match="could not be written"):
            mosaic(torch.zeros(1, 1, 2, 2), place)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.png"]


def test_no_global_state(tmp_path):
    import matplotlib

    def settings():
        # Looking up "backend" would itself choose one.
        return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if not name.startswith("backend")}

    before, figures = settings(), "matplotlib.pyplot" in sys.modules
    sheet(_columns(1), tmp_path / "sheet.png")
    assert settings() == before and ("matplotlib.pyplot" in sys.modules) == figures


def test_frontier_has_a_panel_per_title(tmp_path):
    curves = [Curve("one", [1.0, 10.0], [0.1, 0.01], own=True), Curve("two", [5.0], [0.05])]
    sizes = [
        _pixels(frontier(panels, tmp_path / "plot.png", heading="A heading", floor=1e-3)).shape[1]
        for panels in ({"left": curves}, {"left": curves, "right": curves})
    ]
    assert sizes[0] < sizes[1]
    with pytest.raises(WeightEditError, match="no panels"):
        frontier({}, tmp_path / "plot.png")


def test_bands_have_a_panel_per_axis(tmp_path):
    drawn = [
        Band("rule", [0, 10, 20], [[2.0, 1.0, 0.5], [2.0, 1.5, 0.7]], own=True),
        Band("Adam", [0, 20], [[2.0, 1.0]]),
    ]
    one = _pixels(bands({"steps": drawn}, tmp_path / "one.png", ylabel="test loss"))
    two = _pixels(bands({"steps": drawn, "seconds": drawn}, tmp_path / "two.png", heading="A heading"))
    assert two.shape[1] > one.shape[1] and (one != 255).any()
    with pytest.raises(WeightEditError, match="no panels"):
        bands({}, tmp_path / "plot.png")


def test_losses_that_are_not_positive_are_drawn(tmp_path):
    """Scores of fits are logarithms: on a logarithmic axis the band would be left out."""
    down, up = ([Band("score", [0, 1, 2], [values])] for values in ([-1.0, -2.0, -3.0], [-3.0, -2.0, -1.0]))
    pictures = [_pixels(bands({"steps": drawn}, tmp_path / "score.png")) for drawn in (down, up)]
    blue = [(picture[..., 0].astype(int) + 60 < picture[..., 2]).sum() for picture in pictures]
    assert min(blue) > 100 and (pictures[0] != pictures[1]).any()
