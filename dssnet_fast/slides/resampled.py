"""The analysed image: a slide at the resolution of the model.

How exactness comes about. Pillow resizes with weights that are functions of output coordinates
times the factor. The factor here is a multiple of 1/256, so these products are exact in the float32
of Pillow's `box` (up to 65,536 px) and in its float64 sums; a part that is read with a margin as
wide as the filter then has the very weights of the whole, and so, in Pillow's integer arithmetic,
its very bytes. At the slide's border both end where the slide ends. Which of the two directions
comes first changes roundings, and Pillow chooses by size; so each is a call of its own.

The filter is Pillow's BICUBIC, stretched by the factor when shrinking, which is what keeps it from
aliasing. Edges of nuclei stay sharper than with a triangle or a box, without the wide halo that
LANCZOS draws around dark nuclei on glass, and the margin is a third smaller than with LANCZOS.
"""

from __future__ import annotations

import math

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.slide import Slide
from dssnet_fast.tiling import Box

TOLERANCE = 0.05  # of the resolution: pixels as near as that are taken as they are

_TOLERATED = TOLERANCE + 1e-9  # with what rounding adds
_STEPS = 256  # the factor is a multiple of 1 / _STEPS
_SUPPORT = 2  # px of a bicubic filter to each side, times the factor when shrinking
_LARGEST_ENLARGEMENT = 4
_PIECE = 4096  # px of the level, the largest side that is resized at once


class Resampled:
    """A slide at another resolution.

    A pure function of absolute coordinates: a box of it has the same bytes, however the image is
    cut into boxes.

    Args:
        slide: The slide; stays the caller's to close.
        mpp: Micrometres per px wanted; None for the slide's own.
        slide_mpp: Micrometres per level-0 px.

    Attributes:
        slide: The slide.
        width: px; whole ones only, so a last part of a px of the slide may be left out.
        height: px.
        mpp: Micrometres per px that it has: within `TOLERANCE` of what is wanted.
        scale: Level-0 px per px.
        level: The level of the slide that it is made from.

    Raises:
        InputError: `mpp` or `slide_mpp` is no positive number, the slide is more than four times
            coarser than wanted, or smaller than one px.
    """

    def __init__(self, slide: Slide, mpp: float | None, slide_mpp: float):
        for name, value in (("mpp", mpp), ("slide_mpp", slide_mpp)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{slide.path}: {name} must be a positive number, got {value}")
        wanted = slide_mpp if mpp is None else mpp
        self.slide = slide
        self.level = max(
            (
                index
                for index, level in enumerate(slide.levels)
                if index == 0 or level.downsample * slide_mpp <= wanted * (1 + _TOLERATED)
            ),
            key=lambda index: slide.levels[index].downsample,
        )
        level = slide.levels[self.level]
        factor = wanted / (level.downsample * slide_mpp)
        if abs(factor - 1) <= _TOLERATED:
            self._factor = _STEPS
        elif factor * _LARGEST_ENLARGEMENT < 1:
            raise InputError(
                f"{slide.path}: has {slide_mpp:g} micrometres per pixel, too few pixels for a "
                f"model at {wanted:g}; scan at a higher magnification, or give a larger --mpp"
            )
        else:
            self._factor = round(factor * _STEPS)
        # Whole numbers of 1 / _STEPS px, so without rounding.
        self.width = level.width * _STEPS // self._factor
        self.height = level.height * _STEPS // self._factor
        if not self.width or not self.height:
            raise InputError(
                f"{slide.path}: the slide is smaller than one pixel of {wanted:g} micrometres"
            )
        self.scale = level.downsample * self._factor / _STEPS
        self.mpp = slide_mpp * self.scale

    def read(self, box: Box) -> np.ndarray:
        """The pixels of a box inside the image: uint8 [h, w, 3].

        Raises:
            InputError: The box is empty or not inside.
            UnreadableRegion: The slide is damaged there, or so near that the resampling needs it.
        """
        if not (
            0 <= box.top < box.bottom <= self.height and 0 <= box.left < box.right <= self.width
        ):
            raise InputError(
                f"{self.slide.path}: a box must lie inside {self.width} x {self.height} px and "
                f"not be empty, got {box}"
            )
        if self._factor == _STEPS:
            return self.slide.read(self.level, box)
        side = max(_PIECE * _STEPS // self._factor, 1)
        if box.height <= side and box.width <= side:
            return self._resize(box)
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for top in range(box.top, box.bottom, side):
            for left in range(box.left, box.right, side):
                piece = Box(top, left, min(top + side, box.bottom), min(left + side, box.right))
                pixels[piece.within(box)] = self._resize(piece)
        return pixels

    def _resize(self, box: Box) -> np.ndarray:
        from PIL import Image

        level = self.slide.levels[self.level]
        top, bottom = self._needed(box.top, box.bottom, level.height)
        left, right = self._needed(box.left, box.right, level.width)
        image = Image.fromarray(self.slide.read(self.level, Box(top, left, bottom, right)))
        across = self._place(box.left, left), self._place(box.right, left)
        down = self._place(box.top, top), self._place(box.bottom, top)
        bicubic = Image.Resampling.BICUBIC
        image = image.resize(
            (box.width, bottom - top), bicubic, (across[0], 0, across[1], bottom - top)
        )
        image = image.resize((box.width, box.height), bicubic, (0, down[0], box.width, down[1]))
        return np.array(image)

    def _place(self, edge: int, start: int) -> float:
        """Where the left or top edge of a px lies, px of the level from `start` on; exact."""
        return (edge * self._factor - start * _STEPS) / _STEPS

    def _needed(self, first: int, last: int, length: int) -> tuple[int, int]:
        """The px of the level, of `length`, that px `first` to `last` are made from."""
        margin = math.ceil(_SUPPORT * max(self._factor, _STEPS) / _STEPS) + 1
        return (
            max(first * self._factor // _STEPS - margin, 0),
            min(-(-last * self._factor // _STEPS) + margin, length),
        )
