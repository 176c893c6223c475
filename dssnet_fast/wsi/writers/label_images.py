"""The label map of a slide as two pyramidal OME-TIFFs: classes, and ids of nuclei.

Level k of a pyramid holds the pixels whose row and column are multiples of 2**k. So labels stay
labels, and each level is painted straight from runs of pixels, tile by tile, without the level
below: what lies in memory is the runs of one row of tiles and some tiles.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from dssnet_fast import __version__
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.wsi.results import Frame, LabelledRuns, Labels
from dssnet_fast.wsi.writers import provenance as provenances

TILE = 512
# A pyramid ends with the first level that is not larger than this.
_LAST_LEVEL_PX = 1024
_TILES_AHEAD = 8  # of each thread
_COMPRESSION_LEVEL = 3
# Offsets in a classic TIFF have 32 bits; the rest is room for tags and for tiles that do not
# become smaller.
_CLASSIC_TIFF_BYTES = (1 << 32) - (1 << 25)

# Runs within a tile: where in it each begins, how long it is, and what is painted.
_Pieces = tuple[np.ndarray, np.ndarray, np.ndarray]


def write_label_images(
    labels_path: str | os.PathLike,
    nuclei_path: str | os.PathLike,
    labels: Labels,
    frame: Frame,
    provenance: Mapping[str, object],
    threads: int = 1,
) -> None:
    """Write the classes (uint8) and the ids of nuclei (uint32) of an analysed image.

    Both are deflated in tiles of 512 x 512, with the levels as SubIFDs of the only image, and say
    how large a px is. They are BigTIFFs where a map of that size that cannot be compressed would
    not fit into a TIFF. The bytes depend neither on `threads` nor on the time.

    Args:
        labels_path: The `.ome.tif` file of classes, 0 for background.
        nuclei_path: The `.ome.tif` file of ids, 0 where there is no nucleus.
        labels: The runs of labelled pixels.
        frame: The analysed image.
        provenance: How the files came about; values that JSON knows.
        threads: How many tiles are painted and compressed at once.

    Raises:
        OSError: A file cannot be written. It is then not there, or is the old one.
    """
    texts = provenances.as_text(provenance)
    _write(labels_path, labels, "label", np.uint8, frame, texts, threads)
    _write(nuclei_path, labels, "id", np.uint32, frame, texts, threads)


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of each level of the pyramid of a map, largest first."""
    sizes = [(height, width)]
    while max(sizes[-1]) > _LAST_LEVEL_PX:
        # The last pixel of an odd row is a multiple of 2 as well.
        sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
    return sizes


def _write(
    path: str | os.PathLike,
    labels: Labels,
    values: str,
    dtype: type[np.unsignedinteger],
    frame: Frame,
    provenance: Mapping[str, str],
    threads: int,
) -> None:
    import tifffile

    sizes = level_sizes(frame.height, frame.width)
    size = np.dtype(dtype).itemsize * TILE**2
    size *= sum(-(-height // TILE) * -(-width // TILE) for height, width in sizes)
    encode = _encoder(dtype)
    blank = encode(np.zeros((TILE, TILE), dtype))

    def paint(pieces: _Pieces) -> bytes:
        return encode(_painted(pieces, dtype))

    with (
        atomic_write(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=size > _CLASSIC_TIFF_BYTES, ome=False) as file,
    ):
        for level, (height, width) in enumerate(sizes):
            per_cm = 10_000 / (frame.mpp * (1 << level))
            tiles = _tiles(labels, values, frame, level, height, width)
            file.write(
                _in_order(tiles, paint, blank, threads),
                shape=(height, width),
                dtype=dtype,
                tile=(TILE, TILE),
                photometric="minisblack",
                compression="zlib",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                software=f"dssnet_fast {__version__}",
                metadata=None,
                **(
                    {"subfiletype": 1}
                    if level
                    else {
                        "subifds": len(sizes) - 1,
                        "description": _ome_xml(dtype, frame, values, provenance),
                    }
                ),
            )


def _encoder(dtype: type[np.unsignedinteger]):
    import imagecodecs

    # Ten times as fast as zlib on maps that are mostly background.
    encode = imagecodecs.zlibng_encode if imagecodecs.ZLIBNG.available else imagecodecs.zlib_encode
    return lambda tile: encode(tile, level=_COMPRESSION_LEVEL)


def _in_order(tiles: Iterator[_Pieces | None], paint, blank: bytes, threads: int):
    """The compressed tiles in their order, of which some are made at once."""
    if threads == 1:
        for pieces in tiles:
            yield blank if pieces is None else paint(pieces)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future | None] = deque()
        for pieces in tiles:
            waiting.append(None if pieces is None else pool.submit(paint, pieces))
            if len(waiting) > threads * _TILES_AHEAD:
                made = waiting.popleft()
                yield blank if made is None else made.result()
        for made in waiting:
            yield blank if made is None else made.result()


def _tiles(
    labels: Labels, values: str, frame: Frame, level: int, height: int, width: int
) -> Iterator[_Pieces | None]:
    """What is painted on each tile of a level, row by row; None where that is nothing."""
    step = 1 << level
    for top in range(0, height, TILE):
        bottom = min((top + TILE) * step, frame.height)
        runs = labels.rows(top * step, bottom, step)
        yield from _divided(runs, getattr(runs, values), step, top, -(-width // TILE))


def _divided(
    runs: LabelledRuns, values: np.ndarray, step: int, top: int, columns: int
) -> Iterator[_Pieces | None]:
    """The runs of a row of tiles, cut at the borders of tiles."""
    start, end = -(-runs.start.astype(np.int64) // step), -(-runs.end.astype(np.int64) // step)
    kept = ((end > start) & (values > 0)).nonzero()[0]
    start, end, values = start[kept], end[kept], values[kept]
    row = runs.row[kept].astype(np.int64) // step - top
    first, last = start // TILE, (end - 1) // TILE
    if (first != last).any():
        copies = last - first + 1
        which = np.repeat(np.arange(len(first)), copies)
        # 0, 1, 2, ... over the copies of a run.
        copy = np.arange(len(which)) - np.repeat(copies.cumsum() - copies, copies)
        first = first[which] + copy
        start = np.maximum(start[which], first * TILE)
        end = np.minimum(end[which], (first + 1) * TILE)
        row, values = row[which], values[which]
    order = np.argsort(first, kind="stable")
    borders = np.searchsorted(first[order], np.arange(columns + 1)).tolist()
    offset = (row * TILE + start - first * TILE)[order]
    length, values = (end - start)[order], values[order]
    for here, there in itertools.pairwise(borders):
        part = slice(here, there)
        yield (offset[part], length[part], values[part]) if there > here else None


def _painted(pieces: _Pieces, dtype: type[np.unsignedinteger]) -> np.ndarray:
    offset, length, values = pieces
    begun = length.cumsum() - length
    pixels = np.arange(begun[-1] + length[-1]) + np.repeat(offset - begun, length)
    tile = np.zeros(TILE * TILE, dtype)
    tile[pixels] = np.repeat(values, length)
    return tile.reshape(TILE, TILE)


def _ome_xml(
    dtype: type[np.unsignedinteger], frame: Frame, values: str, provenance: Mapping[str, str]
) -> bytes:
    """OME-XML without what changes from run to run: no UUID, no date."""
    name = {"label": "classes", "id": "nuclei"}[values]
    said = "".join(
        f"<M K={quoteattr(_allowed(key))}>{escape(_allowed(value))}</M>"
        for key, value in provenance.items()
    )
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="{schema}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        f' xsi:schemaLocation="{schema} {schema}/ome.xsd" Creator="dssnet_fast {__version__}">'
        f'<Image ID="Image:0" Name="{name}">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT"'
        f' Type="{np.dtype(dtype).name}" BigEndian="false" Interleaved="false"'
        f' SizeX="{frame.width}" SizeY="{frame.height}" SizeC="1" SizeZ="1" SizeT="1"'
        f' PhysicalSizeX="{frame.mpp!r}" PhysicalSizeXUnit="µm"'
        f' PhysicalSizeY="{frame.mpp!r}" PhysicalSizeYUnit="µm">'
        f'<Channel ID="Channel:0:0" Name="{name}" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstC="0" FirstZ="0" FirstT="0" PlaneCount="1"/>'
        '</Pixels><AnnotationRef ID="Annotation:0"/></Image>'
        "<StructuredAnnotations>"
        '<MapAnnotation ID="Annotation:0" Namespace="dssnet_fast/provenance">'
        f"<Value>{said}</Value></MapAnnotation></StructuredAnnotations></OME>"
    )
    # TIFF's text is ASCII.
    return text.encode("ascii", "xmlcharrefreplace")


def _allowed(text: str) -> str:
    """Text with what XML cannot say, such as control characters, replaced."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
