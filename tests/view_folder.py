"""Folders of results as `python -m dssnet_fast.wsi` writes them, small, for the viewer's tests.

They are written with tifffile, pyarrow and shapely from the description of the formats, not with
the package's own writers, so that the viewer is held to the description.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import tifffile

from dssnet_fast.nuclei import Nuclei, find_nuclei, outlines

CLASSES = ("background", "small", "large")
COLOURS = ([0, 0, 0], [0, 230, 60], [255, 200, 0])
# As real ones it has a script and links to places in the viewer; this one also tries to spy.
REPORT = """<!doctype html><meta charset="utf-8"><title>Report</title>
<link rel="icon" href="data:,"><style>p{color:red}</style>
<p>A report. <a href="./#x=300.5&amp;y=200.5&amp;id=20">open</a></p>
<script>
document.title = "Report with a script";
window.spied = fetch("summary.json").then((answer) => answer.text()).catch(() => "nothing");
</script>
"""


def draw_slide(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [H, W, 3] of violet ellipses on white, and their classes uint8 [H, W]."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), 240, np.int16)
    labels = np.zeros((height, width), np.uint8)
    for top in range(0, height - 60, 60):
        for left in range(0, width - 60, 60):
            a, b = random.uniform(7, 22, 2)
            x, y = random.uniform(25, 35, 2)
            rows, columns = np.mgrid[:60, :60]
            inside = ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1
            part = np.s_[top : top + 60, left : left + 60]
            labels[part][inside] = 1 if a * b < 200 else 2
            image[part][inside] = (110, 60, 150)
    image += random.integers(-8, 8, image.shape, np.int16)
    return image.clip(0, 255).astype(np.uint8), labels


def write_slide(path: Path, image: np.ndarray, levels: int = 2) -> Path:
    """A tiled TIFF with levels of 1/2, 1/4, ..."""
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            file.write(
                image[:: 1 << level, :: 1 << level],
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if level else 0,
                resolution=(1e4 / 0.25, 1e4 / 0.25),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def write_results(
    folder: Path,
    name: str,
    slide: Path,
    labels: np.ndarray,
    *,
    slide_size: tuple[int, int],
    mpp: float = 0.25,
    scale: float = 1.0,
    origin: tuple[int, int] = (0, 0),
    od: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    classes: tuple[str, ...] = CLASSES,
    rows_in_a_group: int = 65_536,
    **changed: object,
) -> Nuclei:
    """Write all files of one slide.

    Args:
        labels: uint8 [h, w], classes at the resolution of the analysis.
        slide_size: Width and height, px of the finest level.
        mpp: Of the finest level.
        scale: Px of the finest level per px of the analysis.
        origin: Of outputs, px of the finest level.
        od: float [h, w], optical density.
        probability: float32 [h, w], of the class.
        rows_in_a_group: Of the Parquet file.
        changed: Values of the summary that are to be others.
    """
    if probability is None:
        probability = np.full(labels.shape, 0.9, np.float32)
    od = np.full(labels.shape, 0.5) if od is None else od
    nuclei = find_nuclei(labels, probability)
    files = {
        "labels": f"{name}_labels.ome.tif",
        "nuclei": f"{name}_nuclei.ome.tif",
        "geojson": f"{name}.geojson.gz",
        "parquet": f"{name}.parquet",
        "report": f"{name}_report.html",
    }
    _write_map(folder / files["labels"], labels)
    _write_map(folder / files["nuclei"], nuclei.instances.astype(np.uint32))
    (folder / files["geojson"]).write_bytes(b"")
    (folder / files["report"]).write_text(REPORT)
    table = _table(nuclei, od, mpp, scale, origin, classes)
    pq.write_table(table, folder / files["parquet"], row_group_size=rows_in_a_group)
    rows = table.drop_columns(["geometry"]).to_pylist()
    keys = ("id", "class", "x", "y", "area_um2", "mean_od")
    summary = {
        "format": "dssnet_fast.slide",
        "version": 1,
        "name": name,
        "slide": str(slide),
        "reader": "tiff",
        "slide_size": list(slide_size),
        "slide_mpp": mpp,
        "mpp_source": "TIFF resolution",
        "analysis_size": [labels.shape[1], labels.shape[0]],
        "analysis_mpp": mpp * scale,
        "scale": scale,
        "origin": list(origin),
        "class_names": list(classes),
        "class_colours": list(COLOURS[: len(classes)]),
        "nuclei": len(nuclei),
        "nuclei_per_class": {
            one: int((nuclei.class_index == kind).sum()) for kind, one in enumerate(classes) if kind
        },
        "analysed_mm2": labels.size * (mpp * scale) ** 2 / 1e6,
        "unreadable": [],
        "gallery": {
            title: [
                {key: row[key] for key in keys}
                for row in sorted(rows, key=lambda row: -row[by])[:24]
            ]
            for title, by in (("largest", "area_um2"), ("darkest", "mean_od"))
        },
        "files": files,
        "provenance": {"dssnet_fast": "0.1.0", "weights": {"sha256": "00ff"}},
        **changed,
    }
    (folder / f"{name}.json").write_text(json.dumps(summary))
    return nuclei


def _write_map(path: Path, labels: np.ndarray) -> None:
    levels = [labels]
    while max(levels[-1].shape) > 256:
        levels.append(levels[-1][::2, ::2])
    with tifffile.TiffWriter(path, ome=True) as file:
        for index, level in enumerate(levels):
            file.write(
                level,
                tile=(256, 256),
                compression="zlib",
                photometric="minisblack",
                **({"subfiletype": 1} if index else {"subifds": len(levels) - 1}),
            )


def _table(
    nuclei: Nuclei,
    od: np.ndarray,
    mpp: float,
    scale: float,
    origin: tuple[int, int],
    classes: tuple[str, ...],
) -> pa.Table:
    shift = np.asarray(origin, float)
    polygons = [
        shapely.Polygon(rings[0] * scale - shift, [ring * scale - shift for ring in rings[1:]])
        for rings in outlines(nuclei.instances).to_lists()
    ]
    area = nuclei.area * (mpp * scale) ** 2
    sums = np.bincount(nuclei.instances.ravel(), od.ravel(), len(nuclei) + 1)[1:]
    mean_od = sums / nuclei.area
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    hulls = shapely.area(shapely.convex_hull(polygons))
    return pa.table(
        {
            "id": pa.array(range(1, len(nuclei) + 1), pa.int64()),
            "class": pa.array(nuclei.class_index, pa.uint8()),
            "class_name": pa.array([classes[k] for k in nuclei.class_index]).dictionary_encode(),
            "x": nuclei.x * scale - origin[0],
            "y": nuclei.y * scale - origin[1],
            "area_um2": area,
            "perimeter_um": nuclei.perimeter * mpp * scale,
            "eccentricity": nuclei.eccentricity,
            "solidity": shapely.area(polygons) / hulls,
            "mean_probability": nuclei.mean_probability,
            "mean_od": mean_od,
            "integrated_od": mean_od * area,
            "xmin": bounds[:, 0],
            "ymin": bounds[:, 1],
            "xmax": bounds[:, 2],
            "ymax": bounds[:, 3],
            "geometry": pa.array(shapely.to_wkb(polygons), pa.binary()),
        }
    )
