"""Ordinary PNG, JPEG and BMP images as slides of one level, without micrometres per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.images import read_image
from dssnet_fast.slides.slide import Level, NotThisFormat, check_box, fingerprint
from dssnet_fast.tiling import Box

_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"BM": "bmp"}
_LARGEST = 2**28  # px: 800 MB, for such an image is decoded whole


def open_slide(path: Path) -> ImageReader:
    """Read an image.

    Raises:
        NotThisFormat: The file is none.
        InputError: It is damaged or too large.
    """
    with open(path, "rb") as file:
        head = file.read(8)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        raise NotThisFormat("is no PNG, JPEG or BMP")
    return ImageReader(path, kind)


class ImageReader:
    """A `Slide` that is an image in memory."""

    def __init__(self, path: Path, kind: str):
        self.path = path
        self.format = f"image {kind}"
        _check_size(path)
        self._pixels = read_image(path)
        height, width, _ = self._pixels.shape
        self.levels = (Level(width, height, 1.0),)
        self.mpp = None
        self.mpp_source = None
        self.bounds = None
        self.fingerprint = fingerprint(path)

    def read(self, level: int, box: Box) -> np.ndarray:
        """See `Slide.read`."""
        check_box(self, level, box)
        return self._pixels[box.top : box.bottom, box.left : box.right].copy()

    def close(self) -> None:
        """See `Slide.close`."""
        self._pixels = self._pixels[:0]


def _check_size(path: Path) -> None:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, smaller limit
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = _LARGEST
    except Exception:
        return  # `read_image` says what is wrong with it
    if width * height > _LARGEST:
        raise InputError(
            f"{path}: the image is too large to be decoded whole; convert it to a tiled TIFF, for "
            "instance with QuPath or libvips"
        )
