"""What a slide is, and which reader opens a file.

Pixels are counted from the slide's top left corner. Level 0 is the finest level; "level-0 px" are
its pixels. A box at a level is in that level's own pixels.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import find_files
from dssnet_fast.tiling import Box

# In this order: OpenSlide knows scanners best, `kfbslide` what OpenSlide does not know, tifffile
# the TIFFs that are left. Loaded by name, when a slide is opened.
_READERS = (
    ("OpenSlide", "openslide_reader"),
    ("KFB", "kfb_reader"),
    ("TIFF", "tiff_reader"),
    ("image", "image_reader"),
)

# What OpenSlide 4 opens (indexes included, parts of a slide not), and what the other readers do.
SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide",
    ".dcm", ".czi", ".kfb", ".png", ".jpg", ".jpeg", ".bmp",
)  # fmt: skip

# Micrometres per pixel that a microscope can have. What writers put into a file for lack of
# knowledge (1 px per cm, 72 dpi, 0) lies outside.
_MPP_RANGE = (0.02, 20.0)
_FINGERPRINT_PART = 2**20


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width: px.
        height: px.
        downsample: Level-0 px per px of this level, 1 or more.
    """

    width: int
    height: int
    downsample: float


class Slide(Protocol):
    """An open slide. All methods may be called from several threads, and after a fork.

    Attributes:
        path: The file.
        format: Who reads it and what it is, such as "openslide aperio".
        mpp: Micrometres per level-0 px, mean of x and y; None where the file does not say.
        mpp_source: Where that was found, such as "openslide.mpp-x"; None without mpp.
        levels: Finest first.
        bounds: The part of level 0 that QuPath shows, for formats that know one; otherwise None.
        fingerprint: Tells files apart without reading them whole, see `fingerprint`.
    """

    path: Path
    format: str
    mpp: float | None
    mpp_source: str | None
    levels: tuple[Level, ...]
    bounds: Box | None
    fingerprint: str

    def read(self, level: int, box: Box) -> np.ndarray:
        """The pixels of a box: uint8 [h, w, 3], RGB, opaque.

        A pure function of level and box: overlapping boxes agree.

        Raises:
            InputError: There is no such level, or the box is empty or not inside it.
            UnreadableRegion: The file is damaged there. Other boxes can still be read.
        """

    def close(self) -> None:
        """Close files. The slide cannot be read any more."""


class NotThisFormat(Exception):
    """A reader's answer to a file of another kind: the next reader may know it."""


class UnreadableRegion(InputError):
    """A part of a slide that cannot be decoded; other parts can still be read.

    Attributes:
        path: The slide.
        box: What was asked for, level-0 px.
        reason: What the decoder said.
    """

    def __init__(self, path: Path, box: Box, reason: str):
        super().__init__(path, box, reason)  # all of them, so that it can be pickled
        self.path, self.box, self.reason = path, box, reason

    def __str__(self) -> str:
        box = self.box
        return (
            f"{self.path}: cannot be read at x {box.left} to {box.right}, y {box.top} to "
            f"{box.bottom} (px of the finest level): {self.reason}"
        )


def open_slide(path: str | os.PathLike) -> Slide:
    """Open a slide with the first reader that knows its format.

    Raises:
        InputError: There is no such file, or nobody can read it; the message has each reader's
            reason.
    """
    path = Path(path)
    _check_file(path)
    reasons = []
    for name, module in _READERS:
        reader = importlib.import_module(f"dssnet_fast.slides.{module}")
        try:
            return reader.open_slide(path)
        except NotThisFormat as answer:
            reasons.append(f"{name}: {answer}")
    raise InputError(f"{path}: is not a slide that can be read ({'; '.join(reasons)})")


def find_slides(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The slide files that `paths` name.

    A file is taken as given, whatever its suffix. Of a folder, all files with one of
    `SLIDE_SUFFIXES` (in upper or lower case) are taken, in the order of their names; its
    sub-folders and its hidden files are not, nor are images that a VMS or VMU file there names as
    its parts, nor further DICOM files of a slide. A file that is named twice is taken once.

    Raises:
        InputError: A path does not exist, or a folder has no slide.
    """
    return find_files(paths, SLIDE_SUFFIXES, "slide", of_folder=_without_parts)


def fingerprint(path: Path) -> str:
    """SHA-256, in hex, of a file's size and its first and last MiB: quick for any size."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        file.seek(0)
        digest.update(file.read(_FINGERPRINT_PART))
        file.seek(max(size - _FINGERPRINT_PART, 0))
        digest.update(file.read(_FINGERPRINT_PART))
    return digest.hexdigest()


def plausible_mpp(*values: object) -> float | None:
    """The mean of micrometres per pixel along x and y, or None unless each can be true.

    Args:
        values: Numbers or texts; texts that are no numbers, zeros, infinities, NaN and sizes that
            no microscope has are not taken.
    """
    numbers = []
    for value in values:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None
        if not _MPP_RANGE[0] <= number <= _MPP_RANGE[1]:
            return None
        numbers.append(number)
    return sum(numbers) / len(numbers) if numbers else None


def check_box(slide: Slide, level: int, box: Box) -> None:
    """Raise InputError unless `box` is a part of an existing `level`."""
    if not 0 <= level < len(slide.levels):
        raise InputError(f"{slide.path}: level must be 0 to {len(slide.levels) - 1}, got {level!r}")
    at = slide.levels[level]
    if not (0 <= box.top < box.bottom <= at.height and 0 <= box.left < box.right <= at.width):
        raise InputError(
            f"{slide.path}: a box must lie inside level {level} ({at.width} x {at.height} px) and "
            f"not be empty, got {box}"
        )


def at_level_0(levels: tuple[Level, ...], level: int, box: Box) -> Box:
    """The smallest box of level-0 px that covers a box of a level."""
    scale = levels[level].downsample
    return Box(
        math.floor(box.top * scale),
        math.floor(box.left * scale),
        min(math.ceil(box.bottom * scale), levels[0].height),
        min(math.ceil(box.right * scale), levels[0].width),
    )


def over(pixels: np.ndarray, opacity: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Lay colours that are not multiplied by their opacity over an opaque background.

    Args:
        pixels: uint8 [h, w, 3].
        opacity: uint8 [h, w].
        background: RGB.

    Returns:
        uint8 [h, w, 3].
    """
    if (opacity == 255).all():
        return np.ascontiguousarray(pixels)
    weight = opacity[:, :, None].astype(np.uint32)
    mixed = pixels * weight + np.array(background, np.uint32) * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8)


def one_line(error: BaseException) -> str:
    """What a decoder said, or else what kind of error it was."""
    return " ".join(str(error).split()) or type(error).__name__


def _without_parts(files: list[Path]) -> list[Path]:
    """The files without those that are read as parts of another."""
    indexes = [file for file in files if file.suffix.lower() in (".vms", ".vmu")]
    named = "".join(file.read_text("utf-8", "replace") for file in indexes)
    kept, seen = [], set()
    for file in files:
        if file not in indexes and named and file.name in named:
            continue
        if file.suffix.lower() == ".dcm":
            # Any file of a DICOM slide opens all of it.
            series = _dicom_series(file)
            if series is not None and series in seen:
                continue
            seen.add(series)
        kept.append(file)
    return kept


def _dicom_series(file: Path) -> str | None:
    """Something that the files of one slide have in common; None if OpenSlide cannot tell."""
    try:
        import openslide

        with openslide.OpenSlide(file) as slide:
            return slide.properties.get("openslide.quickhash-1")
    except Exception:
        return None  # opening it as a slide will say why


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a slide")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise InputError(f"{path}: cannot be read as a slide: the file is empty")
