"""Reading images and label maps from files, for training and inference alike."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError
from .files import find_files

if TYPE_CHECKING:
    from PIL import Image
    from tifffile import TiffPage

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SIXTEEN_BIT_RULES = ("range", "full")
MAX_PIXELS = 2**31

_FORMATS = "PNG, JPEG, TIFF or BMP"
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF_ORIENTATION = 0x0112
_LABEL_MAX = np.iinfo(np.int32).max

# Pillow keeps its limit on an image's size in a module variable; see `_open`.
_pillow_limit = threading.Lock()


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The image files that `paths` name.

    A file is taken as given. Of a folder, all files with one of `IMAGE_SUFFIXES` (in upper or
    lower case) are taken, in the order of their names; its sub-folders and its hidden files are
    not. A file that is named twice is taken once.

    Raises:
        InputError: A path does not exist, a named file has another suffix, or a folder has no
            image.
    """
    return find_files(paths, IMAGE_SUFFIXES, "image", check_named=_check_suffix)


def read_image(
    path: str | os.PathLike, channels: int = 3, sixteen_bit: str = "range"
) -> np.ndarray:
    """Read a PNG, JPEG, TIFF or BMP file as 8-bit pixels.

    The format is told from the content, not from the name. Palettes are looked up, CMYK is
    converted to RGB, two-level images become 0 and 255, the EXIF orientation of PNG and JPEG files
    is applied, and TIFFs that store white as 0 are inverted. Where an image has an alpha channel
    it is laid over white; an opaque image keeps its exact colours.

    Args:
        path: The file.
        channels: 3 for RGB (gray is repeated), 1 for gray (from RGB by ITU-R 601: 0.299 R +
            0.587 G + 0.114 B, as Pillow's mode `L`).
        sixteen_bit: How 16-bit values become 8-bit ones: `range` maps the image's own smallest to
            largest value (over all colour channels) linearly to 0..255, a constant image to 0;
            `full` divides by 257, so that values of different images stay comparable.

    Returns:
        uint8 [H, W, channels], C-contiguous.

    Raises:
        InputError: The file is missing, damaged, truncated, empty, larger than `MAX_PIXELS` pixels,
            no image, a stack of several planes, or holds numbers other than 1 to 16 unsigned bits.
    """
    if channels not in (1, 3):
        raise InputError(f"read_image: channels must be 1 or 3, got {channels!r}")
    if sixteen_bit not in SIXTEEN_BIT_RULES:
        raise InputError(
            f"read_image: sixteen_bit must be one of {SIXTEEN_BIT_RULES}, got {sixteen_bit!r}"
        )
    with _reading(path):
        head = _head(path)
        if head.startswith(_TIFF):
            pixels = _tiff_pixels(path, sixteen_bit)
        elif _png_depth(head) == 16:
            pixels = _deep_png_pixels(path, head, sixteen_bit)
        else:
            pixels = _pillow_pixels(path)
        return _with_channels(pixels, channels)


def read_labels(path: str | os.PathLike) -> np.ndarray:
    """Read a map of classes or instances, one whole number per pixel, exactly as stored.

    PNG and BMP files may be gray (1 to 16 bits) or have a palette, whose indices are the labels.
    TIFF files may have any integer type. Orientation tags are not applied.

    Returns:
        int32 [H, W], C-contiguous.

    Raises:
        InputError: The file cannot be read (as for `read_image`), has colours instead of numbers,
            is a JPEG (which changes values), or holds values that are negative, not whole or
            above 2**31 - 1.
    """
    with _reading(path):
        head = _head(path)
        if head.startswith(_TIFF):
            labels = _tiff_labels(path)
        elif _png_depth(head) == 16:
            labels = _decode_deep_png(path, head)
        else:
            labels = _pillow_labels(path, head)
        if labels.ndim != 2:
            raise ValueError(_not_labels(f"{labels.shape[2]} channels"))
        if labels.dtype.kind not in "bui":
            raise ValueError(_not_labels(f"{labels.dtype} values"))
        if labels.dtype.itemsize > 2 or labels.dtype.kind == "i":
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > _LABEL_MAX:
                raise ValueError(f"labels must lie in 0..{_LABEL_MAX}, got {low}..{high}")
        return np.ascontiguousarray(labels, dtype=np.int32)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: is not one of {', '.join(IMAGE_SUFFIXES)}")


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever goes wrong while reading into one InputError that names the file.

    Decoders raise exceptions of every kind on damaged files (OSError, ValueError, SyntaxError,
    struct.error, their own), so every kind is caught here, and kept as the cause.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: cannot be read as an image: no such file") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as an image: {reason or type(error).__name__}"
        ) from error


def _head(path: str | os.PathLike) -> bytes:
    with open(path, "rb") as file:
        head = file.read(26)
    if not head:
        raise ValueError("the file is empty")
    return head


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"the image is empty ({width} x {height} pixels)")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}; cut it into parts"
        )


def _not_labels(found: str) -> str:
    return f"labels must be one whole number per pixel (gray, palette or integer TIFF), got {found}"


# What follows returns pixels as uint8 [H, W] or [H, W, 3].


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.ndim == 3 and channels == 1:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], channels, axis=2)
    return np.ascontiguousarray(pixels)


def _over_white(colours: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Lay uint8 [H, W(, 3)] over white with uint8 alpha [H, W]; exact where alpha is 255."""
    if (alpha == 255).all():
        return colours
    alpha = alpha.astype(np.uint32)
    if colours.ndim == 3:
        alpha = alpha[:, :, None]
    weighted = colours.astype(np.uint32) * (255 if premultiplied else alpha)
    return np.minimum((weighted + 255 * (255 - alpha) + 127) // 255, 255).astype(np.uint8)


def _to_eight_bits(values: np.ndarray, rule: str) -> np.ndarray:
    """uint16 values to uint8 ones of the same shape; see `read_image`."""
    numbers = np.arange(65536)
    if rule == "full":
        table = (numbers + 128) // 257
    else:
        low, high = int(values.min()), int(values.max())
        span = max(high - low, 1)
        table = (np.clip(numbers - low, 0, high - low) * 510 + span) // (2 * span)
    return table.astype(np.uint8)[values]


# Pillow: PNG up to 8 bits, JPEG, BMP.


def _open(file: object) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    # Pillow refuses images above a limit that it keeps in a variable for the whole process. Ours
    # is larger, so theirs is lifted while the header is read and then put back.
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=("PNG", "JPEG", "BMP"))
        except UnidentifiedImageError:
            raise ValueError(f"it is not a {_FORMATS} image, or it is damaged") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    _check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    # MPO: a JPEG as some cameras write it, with previews after the image.
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it is an animation of {frames} pages; save one as its own file")
    return image


def _upright(image: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_EXIF_ORIENTATION))
    except Exception:
        # Damaged EXIF data, in any of many ways; the pixels are as good without them.
        turn = None
    return image if turn is None else image.transpose(turn)


def _pillow_pixels(path: str | os.PathLike) -> np.ndarray:
    with open(path, "rb") as file:
        image = _open(file)
        image.load()
        image = _upright(image)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
        return _over_white(pixels[:, :, :3], pixels[:, :, 3])
    return np.asarray(image.convert("RGB"))


def _pillow_labels(path: str | os.PathLike, head: bytes) -> np.ndarray:
    with open(path, "rb") as file:
        image = _open(file)
        if image.format not in ("PNG", "BMP"):
            raise ValueError(f"labels must be a PNG, TIFF or BMP, got a {image.format}")
        if image.mode not in ("1", "L", "P"):
            raise ValueError(_not_labels(f"an image of type {image.mode}"))
        labels = np.asarray(image)
    depth = _png_depth(head)
    if image.mode == "L" and depth in (2, 4):
        # Decoders spread gray values of few bits over 0..255.
        labels = labels // (255 // (2**depth - 1))
    return labels


# PNG with 16 bits. Pillow cuts 16-bit colour to 8 bits without a word, so these go elsewhere.


def _png_depth(head: bytes) -> int:
    """Bits per channel of a PNG, from its first 26 bytes; 0 for another format."""
    return head[24] if head.startswith(_PNG) and len(head) == 26 else 0


def _decode_deep_png(path: str | os.PathLike, head: bytes) -> np.ndarray:
    """uint16 [H, W] or [H, W, 2 to 4]."""
    import imagecodecs

    _check_size(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    return imagecodecs.png_decode(Path(path).read_bytes())


def _deep_png_pixels(path: str | os.PathLike, head: bytes, rule: str) -> np.ndarray:
    values = _decode_deep_png(path, head)
    samples = 1 if values.ndim == 2 else values.shape[2]
    return _scaled(values, rule, alpha=samples in (2, 4), premultiplied=False)


def _scaled(values: np.ndarray, rule: str, *, alpha: bool, premultiplied: bool) -> np.ndarray:
    """uint8 or uint16 [H, W] or [H, W, 1 to 4] to pixels; `alpha`: the last sample is opacity."""
    if values.ndim == 2:
        values = values[:, :, None]
    opacity = values[:, :, -1] if alpha else None
    colours = values[:, :, :-1] if alpha else values
    if colours.shape[2] == 1:
        colours = colours[:, :, 0]
    if values.dtype == np.uint16:
        colours = _to_eight_bits(colours, rule)
        opacity = _to_eight_bits(opacity, "full") if alpha else None
    return _over_white(colours, opacity, premultiplied) if alpha else colours


# TIFF.


def _tiff_plane(path: str | os.PathLike) -> tuple[np.ndarray, TiffPage, np.ndarray | None]:
    """The stored values [H, W] or [H, W, samples] of a single-plane TIFF, its page, its palette.

    The palette is uint16 [3, colours], or None.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if not tiff.pages or not tiff.series:
            raise ValueError("the TIFF has no pages")
        if len(tiff.series) > 1:
            raise ValueError(
                f"the TIFF has {len(tiff.series)} images of different kinds on "
                f"{len(tiff.pages)} pages; save the one to use as its own file"
            )
        series = tiff.series[0]
        page = series.keyframe
        sizes = list(zip(series.axes, series.shape, strict=True))
        # A kind of axis may occur twice, but for those of a plane.
        kept = [(axis, size) for axis, size in sizes if axis in "YX" or size > 1]
        axes = "".join(axis for axis, _ in kept)
        if sorted(axes) not in (["X", "Y"], ["S", "X", "Y"]):
            pages = int(np.prod([size for axis, size in kept if axis not in "YXS"]))
            raise ValueError(
                f"the TIFF is a stack of {pages} pages (axes {series.axes}, shape "
                f"{' x '.join(map(str, series.shape))}); save each plane as its own file"
            )
        _check_size(dict(kept)["X"], dict(kept)["Y"])
        _check_whole(page, tiff.filehandle.size)
        values = series.asarray(level=0).reshape([size for _, size in kept])
        values = values.transpose([axes.index(axis) for axis in "YXS" if axis in axes])
        return values, page, page.colormap  # large tags are read from the open file only


def _check_whole(page: TiffPage, size: int) -> None:
    # Some decoders fill what a truncated file lacks with gray; find out beforehand.
    ends = [
        start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    ]
    if max(ends, default=0) > size:
        raise ValueError(f"the file is truncated: {size} bytes of at least {max(ends)}")


def _tiff_labels(path: str | os.PathLike) -> np.ndarray:
    return _tiff_plane(path)[0]


def _tiff_pixels(path: str | os.PathLike, rule: str) -> np.ndarray:
    from tifffile import PHOTOMETRIC

    values, page, colour_map = _tiff_plane(path)
    kind = page.photometric
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"the TIFF holds {values.dtype} values; "
            "convert it to 8-bit or 16-bit unsigned integers first"
        )
    samples = 1 if values.ndim == 2 else values.shape[2]

    if kind == PHOTOMETRIC.PALETTE and samples == 1:
        # Entries are 8-bit colours times 257 (or times 256, by some writers).
        return np.moveaxis(colour_map >> 8, 0, -1).astype(np.uint8)[values]
    if kind == PHOTOMETRIC.SEPARATED and samples == 4 and values.dtype == np.uint8:
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(values), "CMYK").convert("RGB"))

    colours = {PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.RGB: 3}.get(kind)
    if kind == PHOTOMETRIC.YCBCR and "JP" in page.compression.name:
        colours = 3  # the decoders of JPEG and JPEG 2000 return RGB
    # An extra channel is opacity, or nothing that belongs to the picture.
    extras_allowed = kind in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
    if colours is None or not colours <= samples <= colours + extras_allowed:
        raise ValueError(
            f"the TIFF has {samples} {values.dtype} channels of type "
            f"{getattr(kind, 'name', kind)}; save it as gray or RGB"
        )
    if values.dtype == np.uint8 and page.bitspersample < 8:
        values = values * np.uint8(255 // (2**page.bitspersample - 1))
    if kind == PHOTOMETRIC.MINISWHITE:
        values = np.iinfo(values.dtype).max - values
    # 1: opacity that the colours are already multiplied by, 2: opacity they are not, 0: unstated.
    extra = page.extrasamples[0] if samples > colours and page.extrasamples else 0
    if samples > colours and extra not in (1, 2):
        values = values[:, :, :colours]
    return _scaled(values, rule, alpha=extra in (1, 2), premultiplied=extra == 1)
