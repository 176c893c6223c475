"""What is empty glass on slides, and that nuclei are not; and that synthetic slides are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from dssnet_fast.slides import glass
from dssnet_fast.slides.glass import overview
from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import Level, UnreadableRegion, at_level_0, open_slide
from dssnet_fast.tiling import Box
from synthetic_slides import KINDS, make_slide


class Pixels:
    """A slide in memory, some boxes of which cannot be read."""

    path = Path("slide")

    def __init__(self, pixels: np.ndarray, bad: tuple[Box, ...] = ()):
        self._pixels = pixels
        self._bad = bad
        self.levels = (Level(pixels.shape[1], pixels.shape[0], 1.0),)

    def read(self, level: int, box: Box) -> np.ndarray:
        for bad in self._bad:
            apart = bad.right <= box.left or box.right <= bad.left
            if not (apart or bad.bottom <= box.top or box.bottom <= bad.top):
                raise UnreadableRegion(self.path, at_level_0(self.levels, level, box), "broken")
        return self._pixels[box.top : box.bottom, box.left : box.right]


def empty(height: int, width: int, level=(243, 241, 238), spread: float = 1.5) -> np.ndarray:
    """Noisy glass."""
    noise = np.random.default_rng(0).normal(0, spread, (256, 256, 3))
    tiled = np.tile(noise, (-(-height // 256), -(-width // 256), 1))[:height, :width]
    return np.clip(np.round(tiled + level), 0, 255).astype(np.uint8)


def missed(found, truth, scale: float, cell: int) -> np.ndarray:
    """Which nuclei lie in skipped cells."""
    side = scale * cell
    return ~found.occupied[(truth.y // side).astype(int), (truth.x // side).astype(int)]


@pytest.mark.parametrize("kind", ["tiff", "plain"])
@pytest.mark.parametrize("contrast", [1.0, 0.1])
def test_pale_scattered_nuclei_are_kept_and_glass_is_skipped(tmp_path, kind, contrast):
    path = tmp_path / "a.tif"
    truth = make_slide(path, 3603, 3101, kind=kind, density=1.6, contrast=contrast, seed=4)
    slide = open_slide(path)
    found = overview(Resampled(slide, 0.5, slide.mpp))
    assert found.occupied.shape == (13, 15)
    assert found.all_because is None
    assert len(truth) > 10
    assert not missed(found, truth, 1, 256).any()
    assert found.occupied.mean() < 0.6
    assert np.abs(np.array(found.glass) - (243, 242, 240)).max() <= 2


def test_the_grid_is_that_of_the_analysed_image(tmp_path):
    path = tmp_path / "a.tif"
    truth = make_slide(path, 4003, 3501, density=1, mpp=0.25, seed=1)
    slide = open_slide(path)
    for mpp, cell in ((0.5, 256), (0.61, 100), (0.25, 333)):
        image = Resampled(slide, mpp, slide.mpp)
        found = overview(image, cell)
        assert found.occupied.shape == (-(-image.height // cell), -(-image.width // cell))
        assert not missed(found, truth, image.scale, cell).any()
        assert not found.occupied.all()


def test_cells_are_kept_with_their_neighbours():
    pixels = empty(2560, 2560)
    pixels[1100:1130, 1310:1340] = (120, 80, 140)
    found = overview(Resampled(Pixels(pixels), None, 0.5))
    expected = np.zeros((10, 10), bool)
    expected[3:6, 4:7] = True
    np.testing.assert_array_equal(found.occupied, expected)


@pytest.mark.parametrize("place", [(0, 0), (2550, 2550), (2558, 1300)])
def test_the_border_is_looked_at(place):
    """The last cells are slivers, the last px of the overview are of fewer px."""
    pixels = empty(2569, 2566)
    row, column = place
    pixels[row : row + 30, column : column + 30] = (120, 80, 140)
    found = overview(Resampled(Pixels(pixels), None, 0.5))
    assert found.occupied.shape == (11, 11)
    assert found.occupied[row // 256, column // 256]
    assert found.occupied.sum() <= 9


def test_a_speck_is_not_enough_but_a_nucleus_is():
    pixels = empty(2560, 2560)
    pixels[1000:1004, 1000:1004] = 100
    assert not overview(Resampled(Pixels(pixels), None, 0.5)).occupied.any()
    pixels[1000:1014, 1000:1014] = 150
    assert overview(Resampled(Pixels(pixels), None, 0.5)).occupied.any()


@pytest.mark.parametrize("fill", [255, 0])
def test_what_was_not_scanned_is_skipped_and_is_not_the_glass(fill):
    pixels = np.full((5120, 5120, 3), fill, np.uint8)
    pixels[:1024, :1024] = empty(1024, 1024, (230, 228, 225))
    pixels[500:520, 500:520] = (120, 80, 140)
    found = overview(Resampled(Pixels(pixels), None, 0.5))
    assert np.abs(np.array(found.glass) - (230, 228, 225)).max() <= 1
    expected = np.zeros((20, 20), bool)
    expected[0:4, 0:4] = True
    # A border between glass and black is seen.
    assert found.occupied[1, 1]
    assert not found.occupied[6:, 6:].any()
    if fill == 255:
        np.testing.assert_array_equal(found.occupied[:3, :3], expected[:3, :3])
        assert found.occupied.sum() == 9


def test_glass_that_is_saturated_is_found():
    pixels = np.full((2560, 2560, 3), 255, np.uint8)
    pixels[1100:1120, 1300:1320] = (180, 160, 200)
    found = overview(Resampled(Pixels(pixels), None, 0.5))
    assert found.glass == (255, 255, 255)
    assert found.occupied[4, 5]
    assert found.occupied.sum() == 9


def test_an_empty_slide_has_nothing():
    for pixels in (empty(1000, 900), np.full((1000, 900, 3), 240, np.uint8)):
        found = overview(Resampled(Pixels(pixels), None, 0.5))
        assert not found.occupied.any()
        assert found.all_because is None


def test_a_tissue_with_little_glass_does_not_hide_the_glass():
    pixels = empty(2560, 2560, (215, 170, 205), 8)
    pixels[:200] = empty(200, 2560)
    found = overview(Resampled(Pixels(pixels), None, 0.5))
    assert np.abs(np.array(found.glass) - (243, 241, 238)).max() <= 2
    assert found.occupied.all()


def test_nothing_of_a_dark_slide_is_skipped():
    pixels = empty(1500, 1500, (12, 10, 14))
    pixels[500:520, 500:520] = 200
    found = overview(Resampled(Pixels(pixels), None, 0.5))
    assert found.occupied.all()
    assert "dark" in found.all_because


def test_unreadable_parts_count_as_occupied():
    bad = Box(600, 1300, 640, 1310)
    found = overview(Resampled(Pixels(empty(2560, 2560), (bad,)), None, 0.5))
    expected = np.zeros((10, 10), bool)
    expected[1:4, 4:7] = True
    np.testing.assert_array_equal(found.occupied, expected)
    assert found.unreadable == [Box(512, 1280, 768, 1536)]
    everything = Pixels(empty(300, 300), (Box(0, 0, 300, 300),))
    assert overview(Resampled(everything, None, 0.5)).occupied.all()


def test_damage_in_a_file(tmp_path):
    path = tmp_path / "a.svs"
    make_slide(path, 4096, 4096, kind="svs", density=0)
    with tifffile.TiffFile(path) as tiff:
        page = next(page for page in list(tiff.pages)[1:] if page.is_tiled)
        start, count = page.dataoffsets[0], page.databytecounts[0]
    whole = overview(Resampled(open_slide(path), 0.5, 0.5))
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    found = overview(Resampled(open_slide(path), 0.5, 0.5))
    # A tile of level 1 holds 8 x 8 cells.
    assert len(found.unreadable) == 64
    assert found.occupied[:9, :9].all()
    assert not whole.occupied[:9, :9].all()
    np.testing.assert_array_equal(found.occupied[9:], whole.occupied[9:])
    np.testing.assert_array_equal(found.occupied[:, 9:], whole.occupied[:, 9:])


@pytest.mark.parametrize(("height", "width"), [(1000, 3000), (20, 17), (1, 1), (4500, 900)])
@pytest.mark.parametrize("block", [2**22, 600**2])
def test_the_thumbnail_is_the_mean_of_squares(monkeypatch, height, width, block):
    monkeypatch.setattr(glass, "_BLOCK", block)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = overview(Resampled(Pixels(pixels), None, 4.0), 64)
    step = -(-max(height, width) // 1024)
    assert found.downsample == step
    padded = np.full((-(-height // step) * step, -(-width // step) * step, 3), np.nan)
    padded[:height, :width] = pixels
    squares = padded.reshape(len(padded) // step, step, -1, step, 3)
    np.testing.assert_allclose(found.thumbnail, np.nanmean(squares, (1, 3)), atol=0.5001)


def test_the_thumbnail_has_the_slides_last_pixels():
    """The analysed image leaves out what is less than a px of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (101, 67, 3), np.uint8)
    image = Resampled(Pixels(pixels), 29.0, 4.0)
    assert (image.width, image.height) == (9, 13)
    np.testing.assert_array_equal(overview(image, 3).thumbnail, pixels)


def test_blocks_do_not_show(monkeypatch, tmp_path):
    path = tmp_path / "a.tif"
    make_slide(path, 2900, 2700, kind="plain", density=3, mpp=0.3)
    slide = open_slide(path)
    image = Resampled(slide, 0.5, slide.mpp)
    once = overview(image, 100)
    monkeypatch.setattr(glass, "_BLOCK", 350**2)
    pieces = overview(image, 100)
    np.testing.assert_array_equal(once.occupied, pieces.occupied)
    np.testing.assert_array_equal(once.thumbnail, pieces.thumbnail)
    assert once.glass == pieces.glass


# Synthetic slides.


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_slides_are_the_same_each_time(tmp_path, kind):
    truths = [
        make_slide(tmp_path / name, 700, 1100, kind=kind, seed=3, density=80) for name in "ab"
    ]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(truths[0].x, truths[1].x)
    make_slide(tmp_path / "c", 700, 1100, kind=kind, seed=4, density=80)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_larger_synthetic_slide_goes_on_where_a_smaller_one_ends(tmp_path):
    small = make_slide(tmp_path / "a.tif", 900, 800, kind="plain", density=80)
    large = make_slide(tmp_path / "b.tif", 1800, 1700, kind="plain", density=80)
    inside = (large.x < 900) & (large.y < 800)
    np.testing.assert_array_equal(small.x, large.x[inside])
    np.testing.assert_array_equal(small.angle, large.angle[inside])


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_nuclei_of_synthetic_slides_are_where_the_truth_says(tmp_path, mpp):
    path = tmp_path / "a.tif"
    truth = make_slide(path, 2000, 1800, kind="plain", density=20, mpp=mpp)
    pixels = open_slide(path).read(0, Box(0, 0, 1800, 2000))
    assert len(truth) > 20
    assert (truth.minor <= truth.major).all()
    diameters = 2 * np.concatenate([truth.minor, truth.major]) * mpp / 0.5
    assert diameters.min() >= 15.9
    assert diameters.max() <= 30.1
    inside = np.zeros((1800, 2000), bool)
    near = np.zeros((1800, 2000), bool)
    for x, y, major, minor, angle in zip(
        truth.x, truth.y, truth.major, truth.minor, truth.angle, strict=True
    ):
        top, left = max(int(y) - 50, 0), max(int(x) - 50, 0)
        window = np.s_[top : top + 100, left : left + 100]
        rows, columns = np.indices(inside[window].shape) + 0.5
        right, down = columns + left - x, rows + top - y
        along = right * np.cos(angle) + down * np.sin(angle)
        across = down * np.cos(angle) - right * np.sin(angle)
        distance = np.sqrt((along / major) ** 2 + (across / minor) ** 2)
        inside[window] |= distance < 0.8
        near[window] |= distance < 1.3
    green = pixels[:, :, 1]
    assert np.mean(green[inside] < 110) > 0.97
    assert np.mean(green[~near] > 110) > 0.99
