"""The analysed image has the same bytes however it is cut, and they are Pillow's for the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides import resampled
from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import Level
from dssnet_fast.tiling import Box


class Pixels:
    """A slide in memory that remembers what was read."""

    path = Path("slide")

    def __init__(self, *levels: np.ndarray):
        self._pixels = levels
        self.boxes: list[Box] = []
        height, width, _ = levels[0].shape
        self.levels = tuple(
            Level(p.shape[1], p.shape[0], (width / p.shape[1] + height / p.shape[0]) / 2)
            for p in levels
        )

    def read(self, level: int, box: Box) -> np.ndarray:
        at = self.levels[level]
        assert 0 <= box.top < box.bottom <= at.height
        assert 0 <= box.left < box.right <= at.width
        self.boxes.append(box)
        return self._pixels[level][box.top : box.bottom, box.left : box.right]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def random_boxes(width: int, height: int, count: int):
    rng = np.random.default_rng(2)
    for _ in range(count):
        top, bottom = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
        left, right = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
        yield Box(top, left, bottom, right)


FACTORS = [0.25, 0.3, 0.5, 0.77, 1.06, 1.3, 2.0, 2.37, 3.999, 7.2]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("piece", [4096, 100])
def test_any_box_is_that_part_of_the_whole(monkeypatch, factor, piece):
    monkeypatch.setattr(resampled, "_PIECE", piece)
    slide = Pixels(noise(331, 467))
    image = Resampled(slide, 0.5 * factor, 0.5)
    exact = round(factor * 256) / 256
    assert (image.width, image.height) == (int(467 / exact), int(331 / exact))
    assert image.scale == exact
    assert image.mpp == 0.5 * exact
    whole = image.read(Box(0, 0, image.height, image.width))
    assert whole.dtype == np.uint8
    expected = Image.fromarray(slide._pixels[0])
    for size, box in (
        ((image.width, 331), (0, 0, image.width * exact, 331)),
        ((image.width, image.height), (0, 0, image.width, image.height * exact)),
    ):
        expected = expected.resize(size, Image.Resampling.BICUBIC, box)
    np.testing.assert_array_equal(whole, np.asarray(expected))
    for box in random_boxes(image.width, image.height, 40):
        np.testing.assert_array_equal(
            image.read(box), whole[box.top : box.bottom, box.left : box.right]
        )


@pytest.mark.parametrize("factor", [0.4, 1.7])
def test_a_partition_gives_the_whole_far_from_the_corner(factor):
    """Float32 has no more digits to the right of 32,768 px than Pillow's box needs."""
    slide = Pixels(np.tile(noise(12, 1000), (1, 71, 1)))
    image = Resampled(slide, factor, 1.0)
    whole = image.read(Box(0, 0, image.height, image.width))
    columns = np.sort(np.random.default_rng(0).choice(image.width, 150, replace=False)).tolist()
    for left, right in zip([0, *columns], [*columns, image.width], strict=True):
        if left < right:
            np.testing.assert_array_equal(
                image.read(Box(1, left, 5, right)), whole[1:5, left:right]
            )


def test_little_more_is_read_than_needed():
    slide = Pixels(noise(2000, 2000))
    image = Resampled(slide, 1.0, 0.5)
    image.read(Box(300, 400, 500, 650))
    assert slide.boxes == [Box(595, 795, 1005, 1305)]


def test_one_read_never_asks_for_much_at_once(monkeypatch):
    monkeypatch.setattr(resampled, "_PIECE", 200)
    slide = Pixels(noise(900, 1100))
    image = Resampled(slide, 4.0, 0.5)
    image.read(Box(0, 0, image.height, image.width))
    assert max(box.width for box in slide.boxes) <= 200 + 2 * 17
    assert max(box.height for box in slide.boxes) <= 200 + 2 * 17


@pytest.mark.parametrize(
    ("mpp", "level", "resized"),
    [
        (None, 0, False),
        (0.25, 0, False),
        (0.26, 0, False),
        (0.24, 0, False),
        (0.5, 0, True),
        (0.94, 0, True),
        (0.96, 1, False),  # within 5 % of 1.0
        (1.0, 1, False),
        (1.05, 1, False),
        (1.06, 1, True),
        (3.9, 2, False),
        (20.0, 2, True),
        (0.1, 0, True),
    ],
)
def test_the_coarsest_level_that_is_fine_enough(mpp, level, resized):
    slide = Pixels(noise(640, 800), noise(160, 200), noise(40, 50))
    image = Resampled(slide, mpp, 0.25)
    assert image.level == level
    if not resized:
        assert image.scale == (1, 4, 16)[level]
        assert image.mpp == 0.25 * (1, 4, 16)[level]
        box = Box(3, 4, 20, 30)
        np.testing.assert_array_equal(image.read(box), slide._pixels[level][3:20, 4:30])
    else:
        assert image.mpp == pytest.approx(mpp, rel=0.01)


def test_a_level_of_an_odd_downsample_keeps_its_scale():
    slide = Pixels(noise(643, 801), noise(160, 200))
    image = Resampled(slide, 2.0, 0.25)
    downsample = (801 / 200 + 643 / 160) / 2
    factor = round(2.0 / (0.25 * downsample) * 256) / 256
    assert image.scale == pytest.approx(downsample * factor, rel=1e-12)
    assert image.mpp == pytest.approx(0.25 * downsample * factor, rel=1e-12)


def test_what_cannot_be_is_refused():
    slide = Pixels(noise(64, 64))
    with pytest.raises(InputError, match="too few pixels"):
        Resampled(slide, 0.5, 2.1)
    with pytest.raises(InputError, match="smaller than one pixel"):
        Resampled(slide, 40.0, 0.5)
    for mpp in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="must be a positive number"):
            Resampled(slide, mpp, 0.5)
        with pytest.raises(InputError, match="must be a positive number"):
            Resampled(slide, 0.5, mpp)
    image = Resampled(slide, 1.0, 0.5)
    for box in (Box(0, 0, 33, 1), Box(0, 0, 1, 33), Box(2, 2, 2, 3), Box(-1, 0, 3, 3)):
        with pytest.raises(InputError, match="must lie inside"):
            image.read(box)
