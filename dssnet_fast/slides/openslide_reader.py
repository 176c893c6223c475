"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, VMS, DICOM, CZI, tiled TIFF and more."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides import tiff_reader
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
    from openslide import OpenSlide
    from PIL import Image

_CACHE_BYTES = 24 * 2**20  # of decoded tiles: neighbouring reads share their border
_BLOCK = 512
_PLAIN_TIFFS = ("aperio", "generic-tiff")  # a level is a page, tile by tile
_PROBE = 64  # px
_PROBE_TOLERANCE = 3  # of 255, mean of a colour


def open_slide(path: Path) -> OpenSlideReader:
    """Open a file that OpenSlide knows.

    Raises:
        NotThisFormat: OpenSlide does not know it, or the TIFF reader knows it better.
        InputError: OpenSlide knows the format, but cannot open the file.
    """
    try:
        import openslide
    except ImportError as error:
        raise NotThisFormat(f"not installed ({one_line(error)})") from error
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is None:
        raise NotThisFormat("does not know its format")
    if vendor == "generic-tiff" and tiff_reader.knows_better(path):
        raise NotThisFormat("reads only the first of its images")
    try:
        return OpenSlideReader(path, vendor)
    except openslide.OpenSlideError as error:
        if vendor == "generic-tiff":
            raise NotThisFormat(one_line(error)) from error
        raise InputError(
            f"{path}: cannot be read as a slide of type {vendor}: {one_line(error)}"
        ) from error


class OpenSlideReader:
    """A `Slide` read by OpenSlide."""

    def __init__(self, path: Path, vendor: str):
        self.path = path
        self.format = f"openslide {vendor}"
        self._handles: dict[int, _Handle] = {}
        with self._handle().fresh() as slide:
            properties = dict(slide.properties)
            self.levels = tuple(
                Level(width, height, downsample)
                for (width, height), downsample in zip(
                    slide.level_dimensions, slide.level_downsamples, strict=True
                )
            )
        self.mpp = plausible_mpp(
            properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
        )
        self.mpp_source = "openslide.mpp-x" if self.mpp else None
        self.bounds = _bounds(properties, self.levels[0])
        self.fingerprint = fingerprint(path)
        self._background = _colour(properties.get("openslide.background-color"))
        self._planes = self._checked_planes() if vendor in _PLAIN_TIFFS else {}

    def read(self, level: int, box: Box) -> np.ndarray:
        """See `Slide.read`.

        Tiles of TIFFs are decoded directly: OpenSlide's way over premultiplied RGBA takes several
        times as long.

        OpenSlide takes a box's corner in level-0 px and shifts tiles by fractions of a pixel to
        meet it. A corner at a level with a whole downsample is a whole level-0 px, and what comes
        back is what the level holds. With other downsamples (4.0002, say, for a width that is no
        multiple of 4) there is no such level-0 px. Such levels are read in blocks at fixed places,
        so that the shift, half a level-0 px at most, does not depend on the box.
        """
        check_box(self, level, box)
        if level in self._planes:
            try:
                return self._planes[level].read(box)
            except tiff_reader.BadSegment as error:
                where = at_level_0(self.levels, level, box)
                raise UnreadableRegion(self.path, where, str(error)) from error
        if self.levels[level].downsample.is_integer():
            return self._read(level, box)
        return self._read_in_blocks(level, box)

    def close(self) -> None:
        """See `Slide.close`."""
        for plane in self._planes.values():
            plane.close()
        handle = self._handles.pop(os.getpid(), None)
        if handle is not None:
            handle.close()

    def _checked_planes(self) -> dict[int, tiff_reader.Plane]:
        """Levels that can be decoded directly, and look as OpenSlide has them."""
        planes = {}
        for index, plane in tiff_reader.planes_of(self.path, self.levels).items():
            level = self.levels[index]
            top, left = level.height // 2, level.width // 2
            part = Box(top, left, min(top + _PROBE, level.height), min(left + _PROBE, level.width))
            try:
                difference = plane.read(part).astype(int) - self._read(index, part)
            except (tiff_reader.BadSegment, UnreadableRegion):
                continue
            # Decoders differ by a little, and OpenSlide's levels by a shift; colours taken for
            # others differ by much.
            if np.abs(difference.mean(axis=(0, 1))).max() <= _PROBE_TOLERANCE:
                planes[index] = plane
            plane.close()
        return planes

    def _handle(self) -> _Handle:
        # A handle must not be used on both sides of a fork. One that a child inherited stays in
        # the dictionary: closing it there could wait for a lock of a thread that is not there.
        return self._handles.setdefault(os.getpid(), _Handle(self.path))

    def _read_in_blocks(self, level: int, box: Box) -> np.ndarray:
        at = self.levels[level]
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for top in range(box.top // _BLOCK * _BLOCK, box.bottom, _BLOCK):
            for left in range(box.left // _BLOCK * _BLOCK, box.right, _BLOCK):
                block = Box(top, left, min(top + _BLOCK, at.height), min(left + _BLOCK, at.width))
                part = Box(
                    max(block.top, box.top),
                    max(block.left, box.left),
                    min(block.bottom, box.bottom),
                    min(block.right, box.right),
                )
                pixels[part.within(box)] = self._read(level, block)[part.within(block)]
        return pixels

    def _read(self, level: int, box: Box) -> np.ndarray:
        from openslide import OpenSlideError

        downsample = self.levels[level].downsample
        location = (round(box.left * downsample), round(box.top * downsample))
        size = (box.width, box.height)
        handle = self._handle()
        try:
            return self._opaque(handle.shared().read_region(location, level, size))
        except OpenSlideError:
            # From its first error on a handle refuses everything, so this one may be another
            # thread's. A handle of our own tells.
            handle.renew()
        try:
            with handle.fresh() as slide:
                return self._opaque(slide.read_region(location, level, size))
        except OpenSlideError as error:
            where = at_level_0(self.levels, level, box)
            raise UnreadableRegion(self.path, where, one_line(error)) from error

    def _opaque(self, image: Image.Image) -> np.ndarray:
        if image.getchannel("A").getextrema() == (255, 255):
            return np.array(image.convert("RGB"))
        pixels = np.asarray(image)
        return over(pixels[:, :, :3], pixels[:, :, 3], self._background)


class _Handle:
    """OpenSlide's handle on a file in this process, opened when first needed."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._slide: OpenSlide | None = None

    def fresh(self) -> OpenSlide:
        """A handle that nobody else uses; close it."""
        from openslide import OpenSlide

        return OpenSlide(self._path)

    def shared(self) -> OpenSlide:
        """The handle that all threads use."""
        from openslide import OpenSlideCache

        with self._lock:
            if self._slide is None:
                self._slide = self.fresh()
                self._slide.set_cache(OpenSlideCache(_CACHE_BYTES))
            return self._slide

    def renew(self) -> None:
        """Let the next `shared` open the file again; other threads may still be using this one."""
        with self._lock:
            self._slide = None

    def close(self) -> None:
        with self._lock:
            if self._slide is not None:
                self._slide.close()
                self._slide = None


def _bounds(properties: dict[str, str], level: Level) -> Box | None:
    try:
        left, top, width, height = (
            int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return None
    box = Box(top, left, top + height, left + width)
    inside = 0 <= top < box.bottom <= level.height and 0 <= left < box.right <= level.width
    return box if inside else None


def _colour(text: str | None) -> tuple[int, int, int]:
    """RGB from six hexadecimal digits, white from anything else."""
    try:
        value = int(text or "", 16)
    except ValueError:
        return (255, 255, 255)
    if len(text) != 6:
        return (255, 255, 255)
    return (value >> 16, value >> 8 & 255, value & 255)
