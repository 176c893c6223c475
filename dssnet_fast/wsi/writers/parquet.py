"""Nuclei of a slide as a GeoParquet table, for analysis."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.wsi.results import Frame, NucleusTable
from dssnet_fast.wsi.writers import provenance as provenances
from dssnet_fast.wsi.writers.polygons import written_polygons

ROW_GROUP = 65_536
_LITTLE_ENDIAN = 1

_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("id", pa.int64()),
            ("class", pa.uint8()),
            ("class_name", pa.dictionary(pa.int8(), pa.string())),
            ("x", pa.float64()),
            ("y", pa.float64()),
            ("area_um2", pa.float64()),
            ("perimeter_um", pa.float64()),
            ("eccentricity", pa.float64()),
            ("solidity", pa.float64()),
            ("mean_probability", pa.float64()),
            ("mean_od", pa.float64()),
            ("integrated_od", pa.float64()),
            ("xmin", pa.float64()),
            ("ymin", pa.float64()),
            ("xmax", pa.float64()),
            ("ymax", pa.float64()),
            ("geometry", pa.binary()),
        )
    ]
)


class ParquetWriter:
    """Writes `NAME.parquet` (GeoParquet 1.1, zstd), one row a nucleus in the order of the ids.

    Centroid (`x`, `y`), bounds (`xmin` to `ymax`) and `geometry` are in output px, lengths and
    areas in µm and µm², `integrated_od` is optical density times µm². Outlines are exact. The
    metadata `dssnet_fast` says as JSON how the file came about.

    Used in a `with` statement: the file appears, whole, at its end, and not at all if it raises.
    The same nuclei give the same bytes, however they are divided into tables. At most one row
    group (65,536 nuclei) and one table are in memory.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frame: Frame,
        class_names: Sequence[str],
        provenance: Mapping[str, object],
    ):
        """See the class.

        Args:
            path: The `.parquet` file.
            frame: Where the analysed image lies in the slide.
            class_names: Names of the classes, background first.
            provenance: How the file came about; values that JSON knows.
        """
        self._path = path
        self._frame = frame
        self._class_names = pa.array(list(class_names), pa.string())
        self._provenance = provenances.as_json(provenance)
        self._waiting: list[pa.Table] = []
        self._bounds: list[float] = []

    def __enter__(self) -> ParquetWriter:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self._path))
            self._writer = stack.enter_context(
                pq.ParquetWriter(
                    temporary,
                    _SCHEMA,
                    compression="zstd",
                    use_dictionary=["class_name"],
                    # A page of a column is compressed at once; bounds of WKB mean nothing.
                    write_statistics=[name for name in _SCHEMA.names if name != "geometry"],
                )
            )
            self._stack = stack.pop_all()
        return self

    def add(self, table: NucleusTable) -> None:
        """Write the next nuclei.

        Raises:
            InputError: A measurement is not finite.
            OSError: The disk is full.
        """
        table.require_finite()
        if not len(table):
            return
        self._waiting.append(self._columns(table))
        rows = sum(part.num_rows for part in self._waiting)
        if rows >= ROW_GROUP:
            waiting = pa.concat_tables(self._waiting)
            whole = rows - rows % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                self._write(waiting.slice(start, ROW_GROUP))
            self._waiting = [waiting.slice(whole)]

    def __exit__(self, *raised: object) -> None:
        # The stack closes the file, then renames it, or removes it if something was raised.
        if raised[0] is None:
            with self._stack:
                self._write(pa.concat_tables([_SCHEMA.empty_table(), *self._waiting]))
                self._writer.add_key_value_metadata(
                    {"geo": self._geo(), "dssnet_fast": self._provenance}
                )
        else:
            self._stack.__exit__(*raised)

    def _write(self, rows: pa.Table) -> None:
        # Where pages end depends on chunks, and those on the tables that were added.
        if rows.num_rows:
            self._writer.write_table(rows.combine_chunks(), ROW_GROUP)

    def _columns(self, table: NucleusTable) -> pa.Table:
        mpp = self._frame.mpp
        centroids = self._frame.to_output(np.stack([table.x, table.y], axis=1))
        corners = self._frame.to_vertices(table.bounds.reshape(-1, 2)).reshape(-1, 4)
        corners = corners.astype(np.float64)
        lows, highs = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
        if self._bounds:
            lows = np.minimum(lows, self._bounds[:2])
            highs = np.maximum(highs, self._bounds[2:])
        self._bounds = [*lows.tolist(), *highs.tolist()]
        polygons = written_polygons(table.outlines, self._frame)
        columns = (
            table.id,
            table.class_index,
            pa.DictionaryArray.from_arrays(table.class_index.astype(np.int8), self._class_names),
            *centroids.T,
            table.area * mpp**2,
            table.perimeter * mpp,
            table.eccentricity,
            table.solidity,
            table.mean_probability,
            table.mean_od,
            table.integrated_od * mpp**2,
            *corners.T,
            shapely.to_wkb(polygons, output_dimension=2, byte_order=_LITTLE_ENDIAN),
        )
        return pa.Table.from_arrays(
            [
                column if isinstance(column, pa.Array) else pa.array(column, field.type)
                for column, field in zip(columns, _SCHEMA, strict=True)
            ],
            schema=_SCHEMA,
        )

    def _geo(self) -> str:
        """The metadata that GeoParquet asks for.

        Bounds of rows are not named as a `covering`: that has to be a column of structs.
        """
        column = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            # Pixels are no place on Earth.
            "crs": None,
            "edges": "planar",
            "orientation": "counterclockwise",
            **({"bbox": self._bounds} if self._bounds else {}),
        }
        return json.dumps(
            {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        )
