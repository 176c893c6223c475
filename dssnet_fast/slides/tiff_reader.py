"""TIFFs that OpenSlide does not read, or not as their writers meant: striped ones, OME-TIFF.

Only the tiles or strips that a box touches are decoded.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

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
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CACHE_BYTES = 24 * 2**20  # of decoded segments, for each level: what neighbouring tiles share
_BIG_SEGMENT = 8 * 2**20  # bytes; decoded one at a time
_LARGEST_SEGMENT = 2**30  # bytes
_CONVERT = "convert the slide to a tiled 8-bit RGB TIFF, for instance with QuPath or libvips"

_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_MICROMETRES |= {"pm": 1e-6, "in": 25400.0, "Å": 1e-4}
_INCH, _CENTIMETRE = 2, 3
_SURE_COMPRESSIONS = (1, 5, 7, 8, 32946)  # none, LZW, JPEG, deflate
_AXES = {"C": "channels", "Z": "focus planes", "T": "times"}
_PREMULTIPLIED, _OPACITY = 1, 2  # values of the tag ExtraSamples


class BadSegment(Exception):
    """A tile or strip that is missing, truncated or damaged."""


def knows_better(path: Path) -> bool:
    """Whether this reader, rather than OpenSlide, should open a plain tiled TIFF.

    OpenSlide does not read the metadata and pyramids of OME-TIFF. Of stacks, of many channels and
    of values of more than 8 bits it makes a picture without a word; this reader says what they are.
    """
    from tifffile import TiffFile

    try:
        with TiffFile(path) as tiff:
            page = tiff.pages.first
            return (
                bool(tiff.is_ome)
                or page.dtype != np.uint8
                or page.samplesperpixel > 4
                or bool(_stacked(tiff.series[0]))
            )
    except Exception:
        return False  # OpenSlide says what is wrong with it


def planes_of(path: Path, levels: Sequence[Level]) -> dict[int, Plane]:
    """Those levels of a TIFF, by index, that are pages of tiles that are decoded here for sure."""
    from tifffile import TiffFile

    found = {}
    try:
        with TiffFile(path) as tiff:
            for index, level in enumerate(levels):
                pages = [
                    page
                    for page in tiff.pages
                    if page.is_tiled and page.shape[:2] == (level.height, level.width)
                ]
                # Tiles left out mean something in some formats, which OpenSlide knows.
                if (
                    len(pages) == 1
                    and pages[0].compression in _SURE_COMPRESSIONS
                    and all(pages[0].databytecounts)
                ):
                    found[index] = Plane(path, pages[0])
    except Exception:
        return {}  # OpenSlide reads it all the same
    return found


def open_slide(path: Path) -> TiffReader:
    """Open a TIFF.

    Raises:
        NotThisFormat: It is no TIFF.
        InputError: It is one, but damaged, or no 8-bit gray or RGB image.
    """
    with open(path, "rb") as file:
        if file.read(4) not in _MAGIC:
            raise NotThisFormat("is no TIFF")
    try:
        return TiffReader(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a TIFF: {one_line(error)}") from error


class TiffReader:
    """A `Slide` read by tifffile."""

    def __init__(self, path: Path):
        from tifffile import TiffFile

        self.path = path
        with TiffFile(path) as tiff:
            pages = _pyramid(path, tiff)
            self.format = "tiff ome" if tiff.is_ome else "tiff"
            self._planes = [Plane(path, page) for page in pages]
            self.mpp, self.mpp_source = _mpp(tiff, pages[0])
        height, width = pages[0].imagelength, pages[0].imagewidth
        self.levels = tuple(
            Level(
                page.imagewidth,
                page.imagelength,
                (width / page.imagewidth + height / page.imagelength) / 2,
            )
            for page in pages
        )
        self.bounds = None
        self.fingerprint = fingerprint(path)

    def read(self, level: int, box: Box) -> np.ndarray:
        """See `Slide.read`."""
        check_box(self, level, box)
        try:
            return self._planes[level].read(box)
        except BadSegment as error:
            where = at_level_0(self.levels, level, box)
            raise UnreadableRegion(self.path, where, str(error)) from error

    def close(self) -> None:
        """See `Slide.close`."""
        for plane in self._planes:
            plane.close()


class Plane:
    """One page of a TIFF, from which boxes can be read by several threads and after a fork.

    Args:
        path: The file.
        page: Of an open TiffFile, which may be closed afterwards.

    Raises:
        InputError: The page is not 8-bit gray or RGB, or stored in segments that are too large.
    """

    def __init__(self, path: Path, page: TiffPage):
        self._path = path
        _check_kind(path, page)
        self._decode = page.decode
        self._tables = page.jpegtables
        self._header = page.jpegheader
        self._invert = page.photometric == 0  # MINISWHITE
        self._samples = page.samplesperpixel
        self._alpha = page.extrasamples[0] if page.extrasamples else 0
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self._height, self._width = page.imagelength, page.imagewidth
        self._tile = (
            (page.tilelength, page.tilewidth)
            if page.is_tiled
            else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        )
        self._rows, self._columns = (
            math.ceil(page.imagelength / self._tile[0]),
            math.ceil(page.imagewidth / self._tile[1]),
        )
        self._offsets, self._counts = tuple(page.dataoffsets), tuple(page.databytecounts)
        self._bytes = self._tile[0] * self._tile[1] * (self._samples // self._planes)
        if self._bytes > _LARGEST_SEGMENT:
            raise InputError(
                f"{path}: the TIFF is stored in pieces of {self._tile[1]} x {self._tile[0]} px, "
                f"too large to decode one; {_CONVERT}"
            )
        self._files: dict[int, _File] = {}

    def read(self, box: Box) -> np.ndarray:
        """uint8 [h, w, 3], the pixels of a box inside the page.

        Raises:
            BadSegment: One of the segments needed cannot be decoded.
        """
        file = self._files.setdefault(os.getpid(), _File(self._path))
        tall, wide = self._tile
        values = np.empty((box.height, box.width, self._samples), np.uint8)
        for row in range(box.top // tall, -(-box.bottom // tall)):
            for column in range(box.left // wide, -(-box.right // wide)):
                top, left = row * tall, column * wide
                part = Box(
                    max(top, box.top),
                    max(left, box.left),
                    min(top + tall, box.bottom),
                    min(left + wide, box.right),
                )
                for plane in range(self._planes):
                    index = (plane * self._rows + row) * self._columns + column
                    segment = file.segment(index, self._read_segment, self._bytes)
                    rows, columns = part.within(Box(top, left, top + tall, left + wide))
                    piece = segment[rows, columns]
                    if piece.shape[:2] != (part.height, part.width):
                        raise BadSegment(f"piece {index} of the TIFF is too small")
                    samples = slice(plane, plane + 1) if self._planes > 1 else slice(None)
                    rows, columns = part.within(box)
                    values[rows, columns, samples] = piece
        return self._rgb(values)

    def close(self) -> None:
        """Close the file in this process."""
        file = self._files.pop(os.getpid(), None)
        if file is not None:
            file.close()

    def _read_segment(self, index: int, file: _File) -> np.ndarray:
        """uint8 [rows, columns, samples]."""
        if index >= len(self._offsets):
            raise BadSegment(f"piece {index} is not in the TIFF")
        start, count = self._offsets[index], self._counts[index]
        if not start or not count:
            raise BadSegment(f"piece {index} of the TIFF is missing")
        data = file.bytes(start, count)
        # Some decoders fill what is lacking with gray, so this is found out beforehand.
        if len(data) < count:
            raise BadSegment(
                f"the file is truncated: piece {index} of the TIFF ends at byte {start + count}"
            )
        try:
            segment, _, _ = self._decode(
                data, index, jpegtables=self._tables, jpegheader=self._header
            )
        except Exception as error:
            raise BadSegment(
                f"piece {index} of the TIFF cannot be decoded: {one_line(error)}"
            ) from error
        if segment is None or segment.dtype != np.uint8:
            raise BadSegment(f"piece {index} of the TIFF is no 8-bit image")
        return segment[0]

    def _rgb(self, values: np.ndarray) -> np.ndarray:
        colours = 1 if self._samples < 3 else 3
        pixels = values[:, :, :colours]
        if self._invert:
            pixels = 255 - pixels
        if colours == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if self._samples > colours and self._alpha in (_PREMULTIPLIED, _OPACITY):
            opacity = values[:, :, colours]
            if self._alpha == _PREMULTIPLIED:
                # Over white: colour * a + white * (1 - a), the first of which is what is stored.
                lacking = 255 - opacity[:, :, None].astype(np.uint16)
                return np.minimum(pixels + lacking, 255).astype(np.uint8)
            return over(pixels, opacity, (255, 255, 255))
        return np.ascontiguousarray(pixels)


class _File:
    """A file in one process: its bytes and the segments decoded last."""

    def __init__(self, path: Path):
        self._path = path
        self._file = None
        self._reading = threading.Lock()
        self._caching = threading.Lock()
        self._decoding = threading.Lock()
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._size = 0

    def bytes(self, start: int, count: int) -> bytes:
        with self._reading:
            if self._file is None:
                self._file = open(self._path, "rb")  # noqa: SIM115 (kept open)
            self._file.seek(start)
            return self._file.read(count)

    def segment(self, index: int, read, size: int) -> np.ndarray:
        """A decoded segment of `size` bytes: the one kept, or what `read(index, self)` gives."""
        found = self._kept(index)
        if found is None and size > _BIG_SEGMENT:
            # Several threads would decode the same large segment, with memory for each.
            with self._decoding:
                found = self._kept(index)
                if found is None:
                    found = self._keep(index, read(index, self))
        elif found is None:
            found = self._keep(index, read(index, self))
        return found

    def close(self) -> None:
        with self._reading, self._caching:
            self._cache.clear()
            self._size = 0
            if self._file is not None:
                self._file.close()
                self._file = None

    def _kept(self, index: int) -> np.ndarray | None:
        with self._caching:
            if index in self._cache:
                self._cache.move_to_end(index)
            return self._cache.get(index)

    def _keep(self, index: int, segment: np.ndarray) -> np.ndarray:
        with self._caching:
            if index not in self._cache:
                self._cache[index] = segment
                self._size += segment.nbytes
            while self._size > _CACHE_BYTES and len(self._cache) > 1:
                self._size -= self._cache.popitem(last=False)[1].nbytes
        return segment


def _pyramid(path: Path, tiff: TiffFile) -> list[TiffPage]:
    """The pages of the slide, finest first."""
    if not tiff.pages or not tiff.series:
        raise InputError(f"{path}: cannot be read as a slide: the TIFF has no pages")
    series = tiff.series[0]
    if stacked := _stacked(series):
        raise InputError(
            f"{path}: is a stack ({stacked}; axes {series.axes}), not one gray or RGB picture; "
            "save the plane or the mixture of channels to use as an 8-bit RGB TIFF"
        )
    first = series.keyframe
    if len(series.levels) > 1:
        others = [level.keyframe for level in series.levels[1:]]
    elif first.pages:
        others = list(first.pages)
    else:
        others = [page for page in tiff.pages if page.index != first.index]
    pages = [first]
    for page in others:
        page = page.aspage()
        if page.shape[2:] != first.shape[2:] or page.dtype != first.dtype:
            continue
        across = pages[-1].imagewidth / page.imagewidth
        down = pages[-1].imagelength / page.imagelength
        # Each a good deal smaller than the last, and of the same shape to within a pixel.
        if min(across, down) > 1.4 and _same_shape(first, page):
            pages.append(page)
    return pages


def _same_shape(first: TiffPage, page: TiffPage) -> bool:
    across, down = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
    return (
        abs(first.imagelength / across - page.imagelength) <= 1.01
        or abs(first.imagewidth / down - page.imagewidth) <= 1.01
    )


def _stacked(series: TiffPageSeries) -> str:
    """What a stack is a stack of, such as "4 channels"; empty for a single picture."""
    return ", ".join(
        f"{size} {_AXES.get(axis, 'pages')}"
        for axis, size in zip(series.axes, series.shape, strict=True)
        if axis not in "YXS" and size > 1
    )


def _check_kind(path: Path, page: TiffPage) -> None:
    from tifffile import PHOTOMETRIC

    if page.dtype != np.uint8 or page.bitspersample != 8:
        bits = f"{page.bitspersample}-bit {page.dtype}"
        raise InputError(f"{path}: the TIFF holds {bits} values, not 8-bit ones; {_CONVERT}")
    kind = page.photometric
    colours = {PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.RGB: 3}.get(kind)
    if kind == PHOTOMETRIC.YCBCR and "JP" in page.compression.name:
        colours = 3  # the decoders of JPEG and JPEG 2000 return RGB
    samples = page.samplesperpixel
    if (
        colours is None
        or not colours <= samples <= colours + 1
        or page.imagedepth > 1
        or page.tiledepth > 1
    ):
        raise InputError(
            f"{path}: the TIFF has {samples} channels of type {getattr(kind, 'name', kind)}, "
            f"not gray or RGB; {_CONVERT}"
        )


def _mpp(tiff: TiffFile, page: TiffPage) -> tuple[float | None, str | None]:
    """Micrometres per pixel and where they were found."""
    if tiff.is_ome:
        mpp = _ome_mpp(tiff.ome_metadata)
        if mpp:
            return mpp, "OME PhysicalSizeX"
    unit = {_INCH: 25400.0, _CENTIMETRE: 10000.0}.get(page.tags.valueof("ResolutionUnit", _INCH))
    sizes = []
    for name in ("XResolution", "YResolution"):
        value = page.tags.valueof(name)
        numerator, denominator = value if isinstance(value, tuple) else (0, 1)
        sizes.append(unit * denominator / numerator if unit and numerator else None)
    mpp = plausible_mpp(*sizes)
    return mpp, "TIFF XResolution" if mpp else None


def _ome_mpp(xml: str | None) -> float | None:
    try:
        root = ElementTree.fromstring(xml or "")
    except ElementTree.ParseError:
        return None
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    sizes = []
    for name in ("PhysicalSizeX", "PhysicalSizeY"):
        unit = _MICROMETRES.get(pixels.get(f"{name}Unit", "µm"))
        try:
            sizes.append(float(pixels.get(name, "")) * unit if unit else None)
        except ValueError:
            sizes.append(None)
    return plausible_mpp(*sizes)
