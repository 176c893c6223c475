"""The part of a slide to analyse: all of it, a box, or what was drawn in QuPath."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.cells import dilated

if TYPE_CHECKING:
    from shapely import Geometry

_GZIP = b"\x1f\x8b"
_HINT = 'give "x,y,width,height" in pixels of the finest level, or a GeoJSON file'


class Region:
    """A part of a slide, in level-0 px.

    Made by `make_region`. A box has its left and top border, not its right and bottom ones, so
    that of boxes side by side each point is in one. Polygons have their borders.

    Attributes:
        key: Says which region it is, the same for the same region: "whole", "box x,y,width,height"
            or "polygons" and a digest of them.
    """

    def __init__(
        self,
        box: tuple[float, float, float, float] | None = None,
        polygons: Geometry | None = None,
    ):
        self._box = box
        self._polygons = polygons
        if box is not None:
            self.key = "box " + ",".join(f"{value:g}" for value in box)
        elif polygons is not None:
            self.key = f"polygons {hashlib.sha256(polygons.wkb).hexdigest()}"
        else:
            self.key = "whole"

    def cells(self, scale: float, rows: int, columns: int, cell: int) -> np.ndarray:
        """The cells of the analysed image that touch the region, and their neighbours.

        Args:
            scale: Level-0 px per px of the analysed image.
            rows: Of cells.
            columns: Of cells.
            cell: Side of a cell, px of the analysed image.

        Returns:
            bool [rows, columns].
        """
        top = np.arange(rows)[:, None] * (cell * scale)
        left = np.arange(columns) * (cell * scale)
        side = cell * scale
        if self._box is not None:
            x, y, width, height = self._box
            tall = (top < y + height) & (top + side > y)
            wide = (left < x + width) & (left + side > x)
            return dilated(tall & wide)
        if self._polygons is not None:
            import shapely

            shapely.prepare(self._polygons)
            boxes = shapely.box(left, top, left + side, top + side)
            return dilated(shapely.intersects(self._polygons, boxes))
        return np.ones((rows, columns), bool)

    def contains(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether points, in level-0 px, are in the region: bool of the shape of `x` and `y`."""
        if self._box is not None:
            left, top, width, height = self._box
            return (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
        if self._polygons is not None:
            import shapely

            shapely.prepare(self._polygons)
            return shapely.intersects_xy(self._polygons, x, y)
        return np.ones(np.shape(x), bool)

    def check(self, path: Path, width: int, height: int) -> None:
        """Raise InputError unless the region overlaps a slide of `width` x `height` level-0 px."""
        if self._box is not None:
            left, top, right, bottom = self._box
            right, bottom = left + right, top + bottom
        elif self._polygons is not None:
            left, top, right, bottom = self._polygons.bounds
        else:
            return
        if not (left < width and top < height and right > 0 and bottom > 0):
            raise InputError(
                f"{path}: the region (x {left:g} to {right:g}, y {top:g} to {bottom:g}) lies "
                f"outside the slide ({width} x {height} px); regions are counted in pixels of the "
                "finest level"
            )


def make_region(given: str | os.PathLike | None, origin: tuple[float, float] = (0, 0)) -> Region:
    """A region from what a user gives.

    Args:
        given: None for the whole slide; "x,y,width,height" in level-0 px; or a GeoJSON file
            (`.geojson`, `.json`, also gzipped) as QuPath exports it: a FeatureCollection, a list
            of features, a feature or a geometry, of polygons. Detections, cells and tiles in it
            are left out. Polygons that cross themselves are repaired.
        origin: (x, y), level-0 px, of the point that is (0, 0) in the file.

    Raises:
        InputError: It is none of these, or has no area.
    """
    if given is None:
        return Region()
    if isinstance(given, str):
        box = _box(given)
        if box is not None:
            return Region(box=box)
    path = Path(given)
    if not path.is_file():
        raise InputError(f"{given}: is neither a box nor a file; {_HINT}")
    return Region(polygons=_read_polygons(path, origin))


def _box(text: str) -> tuple[float, float, float, float] | None:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    if len(values) != 4:
        raise InputError(f"region {text!r}: has {len(values)} numbers instead of 4; {_HINT}")
    if not all(map(math.isfinite, values)) or values[2] <= 0 or values[3] <= 0:
        raise InputError(f"region {text!r}: width and height must be more than 0; {_HINT}")
    return tuple(values)


def _read_polygons(path: Path, origin: tuple[float, float]) -> Geometry:
    import shapely

    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        content = json.loads(data)
    except (OSError, EOFError, ValueError) as error:
        # zlib.error, of a damaged file, is raised by gzip as one of these.
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read as GeoJSON: {reason}") from error
    polygons = [
        _polygon(path, number, geometry)
        for number, geometry in enumerate(_geometries(path, content), 1)
    ]
    if not polygons:
        raise InputError(f"{path}: has no annotation; draw one in QuPath and export it")
    united = shapely.union_all(polygons)
    if not united.area > 0:
        raise InputError(f"{path}: its polygons have no area")
    return shapely.transform(united, lambda points: points + np.asarray(origin, float))


def _geometries(path: Path, content: Any) -> list[Any]:
    """The geometries of annotations and of features of no stated kind."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    if isinstance(content, dict) and content.get("type") not in (None, "Feature"):
        return [content]
    features = content if isinstance(content, list) else [content]
    if not all(
        isinstance(feature, dict) and feature.get("type") == "Feature" for feature in features
    ):
        raise InputError(f"{path}: is no GeoJSON of features or polygons")
    return [feature.get("geometry") for feature in features if _is_annotation(feature)]


def _is_annotation(feature: dict) -> bool:
    properties = feature.get("properties")
    kind = properties.get("objectType") if isinstance(properties, dict) else None
    return kind in (None, "annotation")


def _polygon(path: Path, number: int, geometry: Any) -> Geometry:
    import shapely
    import shapely.geometry

    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(
            f"{path}: geometry {number} is a {kind}; only Polygon and MultiPolygon have an inside"
        )
    try:
        with np.errstate(invalid="ignore"):  # of NaN; told below
            shape = shapely.geometry.shape(geometry)
        finite = np.isfinite(shapely.get_coordinates(shape)).all()
    except Exception as error:  # shapely's own, and those of lists of a wrong depth
        raise InputError(f"{path}: geometry {number} is no polygon: {error}") from error
    if not finite:
        raise InputError(f"{path}: geometry {number} has coordinates that are not finite")
    parts = shapely.get_parts(shapely.make_valid(shapely.force_2d(shape)))
    # Repaired polygons may leave lines and points behind; collections may hold collections.
    while (nested := shapely.get_type_id(parts) >= 4).any():
        parts = np.concatenate([parts[~nested], shapely.get_parts(parts[nested])])
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
