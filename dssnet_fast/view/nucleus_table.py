"""Single rows of the Parquet table of nuclei."""

from __future__ import annotations

import math
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.view.memory import Memory

if TYPE_CHECKING:
    import pyarrow

_KEPT_BYTES = 128 << 20
_GEOMETRY = "geometry"
_POLYGON = 3


class NucleusTable:
    """The table of nuclei: row i is the nucleus with id i + 1. May be read from several threads.

    Args:
        path: The Parquet file.

    Raises:
        InputError: The file is damaged or another table.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{path.name}: not a Parquet file that can be read ({error})"
            ) from error
        missing = {"id", _GEOMETRY} - set(self._file.schema_arrow.names)
        if missing:
            self._file.close()
            raise InputError(f"{path.name}: has no column {', '.join(sorted(missing))}")
        metadata = self._file.metadata
        rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *rows])
        self._lock = threading.Lock()
        # Rows that lie together are asked for together: ids are in the order of their places.
        self._memory: Memory[pyarrow.Table] = Memory(_KEPT_BYTES, lambda table: table.nbytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def nucleus(self, number: int) -> dict[str, object] | None:
        """What the table says of a nucleus; None if it has no such one.

        Returns:
            The columns by name, and instead of the geometry `outline`: its rings, each a closed
            list of [x, y], the exterior first. Numbers that are not finite are None.

        Raises:
            InputError: This part of the table is damaged.
        """
        if not 1 <= number <= len(self):
            return None
        group = int(np.searchsorted(self._starts, number - 1, side="right")) - 1
        rows = self._memory.get(group, lambda: self._read(group))
        row = rows.slice(number - 1 - int(self._starts[group]), 1).to_pylist()[0]
        if row["id"] != number:
            raise InputError(
                f"{self._path.name}: row {number} is of nucleus {row['id']}; not in order"
            )
        geometry = row.pop(_GEOMETRY)
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[name] = None
        try:
            row["outline"] = read_polygon(geometry)
        except (ValueError, TypeError, struct.error) as error:
            raise InputError(
                f"{self._path.name}: outline of nucleus {number} is damaged ({error})"
            ) from error
        return row

    def _read(self, group: int) -> pyarrow.Table:
        import pyarrow

        try:
            with self._lock:
                return self._file.read_row_group(group)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{self._path.name}: row group {group} is damaged ({error})"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_polygon(wkb: bytes) -> list[list[list[float]]]:
    """The rings of a polygon in well-known binary, each a list of [x, y].

    Raises:
        ValueError: It is no flat polygon, or damaged.
    """
    order = {b"\0": ">", b"\1": "<"}.get(wkb[:1])
    if order is None:
        raise ValueError("no byte order")
    kind, count = struct.unpack_from(f"{order}II", wkb, 1)
    if kind != _POLYGON:
        raise ValueError(f"geometry of type {kind}")
    at = 9
    rings = []
    for _ in range(count):
        (length,) = struct.unpack_from(f"{order}I", wkb, at)
        points = np.frombuffer(wkb, f"{order}f8", 2 * length, at + 4)
        if not np.isfinite(points).all():
            raise ValueError("a point that is not finite")
        rings.append(points.reshape(length, 2).tolist())
        at += 4 + 16 * length
    return rings
