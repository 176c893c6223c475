"""Writing what was found: maps, overlay, outlines for QuPath, and the table of nuclei.

Every file appears whole or not at all, and the same nuclei give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.nuclei import Nuclei, border, outlines
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.qupath import CLASS_COLOURS, classification, nucleus_uuids

if TYPE_CHECKING:
    from PIL import Image

TABLE_COLUMNS = (
    "image",
    "id",
    "class",
    "class_name",
    "x",
    "y",
    "area_px",
    "perimeter_px",
    "eccentricity",
    "mean_probability",
)

OVERLAY_MAX_SIDE_PX = 4096
# One more px of line width for so many px of the image's longer side.
_LINE_STEP_PX = 800
# A picture whose median is below this is dark; the share of its pixels that stay below white.
_DARK = 64
_WHITE_SHARE = 0.995


def write_labels(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Write a class map, uint8 [H, W], as an 8-bit gray PNG of the same values."""
    _write(path, _png(labels))


def write_instances(path: str | os.PathLike, instances: np.ndarray) -> None:
    """Write an instance map, integer [H, W], as a compressed single-page TIFF.

    Its type is uint16 up to 65,535 nuclei and int32 above: the types that label images have in
    Fiji, QuPath, napari and CellProfiler.
    """
    import tifffile

    dtype = np.uint16 if instances.max(initial=0) <= np.iinfo(np.uint16).max else np.int32
    made = io.BytesIO()
    tifffile.imwrite(
        made,
        instances.astype(dtype),
        photometric="minisblack",
        compression="zlib",
        rowsperstrip=256,
        metadata=None,
    )
    _write(path, made.getvalue())


def write_overlay(path: str | os.PathLike, image: np.ndarray, nuclei: Nuclei) -> None:
    """Write the image as an RGB PNG with its nuclei outlined in the colours of their classes.

    Lines grow thicker with the image. A dark image, as from fluorescence, is brightened until its
    nuclei show. An image with a side above `OVERLAY_MAX_SIDE_PX` is reduced
    by a whole factor to fit: the picture is for looking at, the outlines for measuring are in the
    GeoJSON file.

    Args:
        path: The PNG file.
        image: uint8 [H, W, 3] or [H, W, 1].
        nuclei: The nuclei of that image.
    """
    # Run lengths of filtered rows: a fifth of the default's time for about the same size on photos.
    _write(path, _png(draw_overlay(image, nuclei), compress_level=1, compress_type=zlib.Z_RLE))


def draw_overlay(image: np.ndarray, nuclei: Nuclei) -> np.ndarray:
    """The picture that `write_overlay` writes, uint8 [h, w, 3]."""
    return draw_outlines(image, nuclei.instances, nuclei.class_index)


def draw_outlines(image: np.ndarray, instances: np.ndarray, class_index: np.ndarray) -> np.ndarray:
    """Instances outlined on their image, as `write_overlay` does.

    Args:
        image: uint8 [H, W, 3] or [H, W, 1].
        instances: integer [H, W], 0 for background; the ids are 1 to N.
        class_index: integer [N], their classes.

    Returns:
        uint8 [h, w, 3].
    """
    from PIL import Image
    from scipy.ndimage import maximum_filter

    factor = -(-max(image.shape[:2]) // OVERLAY_MAX_SIDE_PX)
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).convert("RGB")
    lines = _edge_classes(instances, class_index)
    if factor > 1:
        picture = picture.reduce(factor)
        lines = _reduce_by_maximum(lines, factor)
    drawn = np.array(_brightened(picture))
    thickness = 1 + max(lines.shape) // _LINE_STEP_PX
    if thickness > 1:
        lines = maximum_filter(lines, size=thickness)
    at = lines > 0
    drawn[at] = np.array(((0, 0, 0), *CLASS_COLOURS), np.uint8)[lines[at]]
    return drawn


def write_geojson(
    path: str | os.PathLike, nuclei: Nuclei, class_names: Sequence[str], identity: str
) -> None:
    """Write the nuclei as detections that QuPath (0.4 and newer) opens by drag and drop.

    The file is one FeatureCollection with a Polygon in pixels of the image for each nucleus, in
    the order of the ids, written one by one. A detection's name is its id in the other outputs.

    Args:
        path: The `.geojson` file.
        nuclei: The nuclei of one image.
        class_names: Names of the classes, background first.
        identity: Something that tells this image from others. With a nucleus's id it gives the
            nucleus's UUID, so that the same image gives the same file.
    """
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        file.write('{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(_features(nuclei, class_names, identity)):
            file.write(",\n" if number else "\n")
            # QuPath cannot read NaN; json would write it without a word.
            file.write(json.dumps(feature, separators=(",", ":"), allow_nan=False))
        file.write("\n]}\n")


def table_rows(image: str, nuclei: Nuclei, class_names: Sequence[str]) -> str:
    """The rows of `nuclei.csv` for one image, as CSV text without a header."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    measured = zip(
        nuclei.class_index.tolist(),
        nuclei.x.tolist(),
        nuclei.y.tolist(),
        nuclei.area.tolist(),
        nuclei.perimeter.tolist(),
        nuclei.eccentricity.tolist(),
        nuclei.mean_probability.tolist(),
        strict=True,
    )
    for number, (kind, x, y, area, perimeter, eccentricity, probability) in enumerate(measured, 1):
        writer.writerow(
            (
                image,
                number,
                kind,
                class_names[kind],
                f"{x:.2f}",
                f"{y:.2f}",
                area,
                f"{perimeter:.2f}",
                f"{eccentricity:.4f}",
                f"{probability:.4f}",
            )
        )
    return made.getvalue()


def write_table(path: str | os.PathLike, rows: Iterable[str]) -> None:
    """Write `nuclei.csv`: the header and the rows of all images, each as from `table_rows`."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(",".join(TABLE_COLUMNS) + "\n")
        file.writelines(rows)


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as an RGB PNG."""
    _write(path, _png(picture))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as a UTF-8 file, its line ends as they are."""
    _write(path, text.encode())


def write_json(path: str | os.PathLike, values: object) -> None:
    """Write plain values as a JSON file."""
    _write(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def _write(path: str | os.PathLike, data: bytes) -> None:
    # Encoded first, then written: encoders that write themselves hide the reason of a failure.
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _png(pixels: np.ndarray, **compression: int) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG", **compression)
    return made.getvalue()


def _edge_classes(instances: np.ndarray, class_index: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: the class at pixels on a nucleus's border, 0 elsewhere."""
    lines = np.zeros(instances.shape, np.uint8)
    at = border(instances)
    lines[at] = class_index[instances[at] - 1]
    return lines


def _brightened(picture: Image.Image) -> Image.Image:
    """A mostly dark picture multiplied so that its brightest parts become white."""
    levels = np.cumsum(picture.convert("L").histogram()) / (picture.width * picture.height)
    if np.searchsorted(levels, 0.5) >= _DARK:
        return picture
    white = max(int(np.searchsorted(levels, _WHITE_SHARE)), 1)
    table = np.minimum(np.arange(256) * max(255 / white, 1), 255).astype(np.uint8)
    return picture.point(table.tolist() * 3)


def _reduce_by_maximum(values: np.ndarray, factor: int) -> np.ndarray:
    rows = np.maximum.reduceat(values, np.arange(0, values.shape[0], factor), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, values.shape[1], factor), axis=1)


def _features(nuclei: Nuclei, class_names: Sequence[str], identity: str) -> Iterator[dict]:
    ids = nucleus_uuids(identity, range(1, len(nuclei) + 1))
    for index, rings in enumerate(outlines(nuclei.instances).to_lists()):
        yield {
            "type": "Feature",
            "id": ids[index],
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]},
            "properties": {
                "objectType": "detection",
                "name": str(index + 1),
                "classification": classification(int(nuclei.class_index[index]), class_names),
                "measurements": {
                    "Area px^2": int(nuclei.area[index]),
                    "Perimeter px": round(float(nuclei.perimeter[index]), 2),
                    "Eccentricity": round(float(nuclei.eccentricity[index]), 4),
                    "Mean probability": round(float(nuclei.mean_probability[index]), 4),
                },
            },
        }
