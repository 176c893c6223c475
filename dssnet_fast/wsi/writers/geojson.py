"""Nuclei of a slide as detections that QuPath (0.4 and newer) opens by drag and drop."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import orjson

from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.qupath import classification, nucleus_uuids
from dssnet_fast.wsi.results import Frame, NucleusTable
from dssnet_fast.wsi.writers import provenance as provenances
from dssnet_fast.wsi.writers.polygons import written_outlines

# Level 6 takes twice as long for a tenth less, level 1 a fifth less for a third more.
_COMPRESSION_LEVEL = 4
_PIECE_BYTES = 1 << 22


class GeoJsonWriter:
    """Writes `NAME.geojson.gz`, one nucleus after the other.

    The file is one FeatureCollection with a Polygon in output px for each nucleus, in the order of
    the ids, one a line. A detection's name is its id in the other outputs. How the file came about
    stands in a member `dssnet_fast` of the collection, which QuPath passes over.

    Used in a `with` statement: the file appears, whole, at its end, and not at all if it raises.
    The same nuclei give the same bytes, however they are divided into tables.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frame: Frame,
        class_names: Sequence[str],
        identity: str,
        provenance: Mapping[str, object],
        simplify: float = 0.0,
    ):
        """See the class.

        Args:
            path: The `.geojson.gz` file.
            frame: Where the analysed image lies in the slide.
            class_names: Names of the classes, background first.
            identity: Something that tells this slide from others. With a nucleus's id it gives the
                nucleus's UUID, so that the same slide gives the same file.
            provenance: How the file came about; values that JSON knows.
            simplify: How far an outline may move, in px of the analysed image, to have fewer
                points; 0 keeps it exact.
        """
        self._path = path
        self._frame = frame
        self._identity = identity
        self._simplify = simplify
        self._provenance = provenances.as_json(provenance).encode()
        self._classifications = [None] + [
            classification(index, class_names) for index in range(1, len(class_names))
        ]
        self._any = False

    def __enter__(self) -> GeoJsonWriter:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self._path))
            self._file = stack.enter_context(_GzipFile(temporary))
            self._file.write(b'{"type":"FeatureCollection",\n"dssnet_fast":')
            self._file.write(self._provenance + b',\n"features":[')
            self._stack = stack.pop_all()
        return self

    def add(self, table: NucleusTable) -> None:
        """Write the next nuclei.

        Raises:
            InputError: A measurement is not finite, or `simplify` is no length.
            OSError: The disk is full.
        """
        table.require_finite()
        features = b",\n".join(
            orjson.dumps(feature, option=orjson.OPT_SERIALIZE_NUMPY)
            for feature in self._features(table)
        )
        if features:
            self._file.write(b",\n" if self._any else b"\n")
            self._file.write(features)
            self._any = True

    def __exit__(self, *raised: object) -> None:
        # The stack closes the file, then renames it, or removes it if something was raised.
        if raised[0] is None:
            with self._stack:
                self._file.write(b"\n]}\n")
        else:
            self._stack.__exit__(*raised)

    def _features(self, table: NucleusTable) -> Iterator[dict]:
        outlines = written_outlines(table.outlines, self._frame, self._simplify)
        points = np.ascontiguousarray(outlines.points)
        rings, nuclei = outlines.rings.tolist(), outlines.nuclei.tolist()
        mpp = self._frame.mpp
        ids = table.id.tolist()
        columns = zip(
            ids,
            nucleus_uuids(self._identity, ids),
            nuclei[:-1],
            nuclei[1:],
            table.class_index.tolist(),
            np.round(table.area * mpp**2, 2).tolist(),
            np.round(table.perimeter * mpp, 2).tolist(),
            np.round(table.eccentricity, 4).tolist(),
            np.round(table.solidity, 4).tolist(),
            np.round(table.mean_probability, 4).tolist(),
            np.round(table.mean_od, 4).tolist(),
            np.round(table.integrated_od * mpp**2, 4).tolist(),
            strict=True,
        )
        for number, uuid, first, end, kind, area, perimeter, *shape in columns:
            eccentricity, solidity, probability, mean_od, integrated_od = shape
            yield {
                "type": "Feature",
                "id": uuid,
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [
                        points[rings[ring] : rings[ring + 1]] for ring in range(first, end)
                    ],
                },
                "properties": {
                    "objectType": "detection",
                    "name": str(number),
                    "classification": self._classifications[kind],
                    "measurements": {
                        "Area µm^2": area,
                        "Perimeter µm": perimeter,
                        "Eccentricity": eccentricity,
                        "Solidity": solidity,
                        "Mean probability": probability,
                        "Mean OD": mean_od,
                        "Integrated OD": integrated_od,
                    },
                },
            }


class _GzipFile:
    """A gzip file without name and time, whose bytes do not depend on how it was written."""

    def __init__(self, path: os.PathLike):
        self._path = path
        self._waiting = bytearray()

    def __enter__(self) -> _GzipFile:
        self._file = open(self._path, "wb")
        # 31: a gzip header and trailer around the window of 32 KiB.
        self._compressor = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, 31)
        return self

    def write(self, data: bytes) -> None:
        # The compressor is given pieces of one size: its output may depend on where they end.
        self._waiting += data
        whole = len(self._waiting) - len(self._waiting) % _PIECE_BYTES
        for start in range(0, whole, _PIECE_BYTES):
            piece = self._waiting[start : start + _PIECE_BYTES]
            self._file.write(self._compressor.compress(piece))
        del self._waiting[:whole]

    def __exit__(self, *raised: object) -> None:
        with self._file:
            if raised[0] is None:
                self._file.write(self._compressor.compress(self._waiting))
                self._file.write(self._compressor.flush())
