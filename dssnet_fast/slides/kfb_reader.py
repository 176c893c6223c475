"""KFB slides (KFBio), read by the optional package kfbslide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.slide import (
    Level,
    NotThisFormat,
    UnreadableRegion,
    at_level_0,
    check_box,
    fingerprint,
    one_line,
    over,
    plausible_mpp,
)
from dssnet_fast.tiling import Box

if TYPE_CHECKING:
    from kfbslide import OpenSlide

_SUFFIX = ".kfb"
_WHITE = (255, 255, 255)


def open_slide(path: Path) -> KfbReader:
    """Open a KFB slide.

    Raises:
        NotThisFormat: The file's suffix is another.
        InputError: kfbslide is not installed or cannot open the file.
    """
    if path.suffix.lower() != _SUFFIX:
        raise NotThisFormat(f"is not a {_SUFFIX} file")
    try:
        import kfbslide
    except ImportError as error:
        raise InputError(f"{path}: to read KFB slides: pip install kfbslide") from error
    try:
        return KfbReader(path)
    except kfbslide.OpenSlideError as error:
        raise InputError(f"{path}: cannot be read as a KFB slide: {one_line(error)}") from error


class KfbReader:
    """A `Slide` read by kfbslide."""

    def __init__(self, path: Path):
        self.path = path
        self.format = "kfb"
        self._slides: dict[int, OpenSlide] = {}
        slide = self._slide()
        self.levels = tuple(
            Level(width, height, downsample)
            for (width, height), downsample in zip(
                slide.level_dimensions, slide.level_downsamples, strict=True
            )
        )
        if not self.levels:
            raise InputError(f"{path}: cannot be read as a KFB slide: it has no tiles")
        self.mpp = plausible_mpp(slide.properties.get("openslide.mpp-x"))
        self.mpp_source = "KFB header" if self.mpp else None
        self.bounds = None
        self.fingerprint = fingerprint(path)

    def read(self, level: int, box: Box) -> np.ndarray:
        """See `Slide.read`. Where the scanner stored no tile, the slide is white."""
        check_box(self, level, box)
        downsample = self.levels[level].downsample
        # kfbslide divides by the downsample, which is a ratio of magnifications, and rounds down.
        location = (
            _first_inside(box.left, downsample),
            _first_inside(box.top, downsample),
        )
        try:
            image = self._slide().read_region(location, level, (box.width, box.height))
            pixels = np.asarray(image.convert("RGBA"))
        except Exception as error:  # whatever kfbslide and Pillow raise on damaged tiles
            where = at_level_0(self.levels, level, box)
            raise UnreadableRegion(self.path, where, one_line(error)) from error
        return over(pixels[:, :, :3], pixels[:, :, 3], _WHITE)

    def close(self) -> None:
        """See `Slide.close`."""
        slide = self._slides.pop(os.getpid(), None)
        if slide is not None:
            slide.close()

    def _slide(self) -> OpenSlide:
        # One for each process: locks and cached tiles do not survive a fork in a good state.
        from kfbslide import OpenSlide

        slide = self._slides.get(os.getpid())
        return slide or self._slides.setdefault(os.getpid(), OpenSlide(str(self.path)))


def _first_inside(pixel: int, downsample: float) -> int:
    """The first level-0 px that lies in a pixel of a level."""
    location = round(pixel * downsample)
    return location if int(location / downsample) == pixel else location + 1
