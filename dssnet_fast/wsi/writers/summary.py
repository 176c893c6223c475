"""What is known about a slide as a whole: `NAME.json`, and the rows of `slides.csv`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence

from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.qupath import CLASS_COLOURS
from dssnet_fast.wsi.writers.totals import Distribution, Standout, Totals

FORMAT = "dssnet_fast.slide"
VERSION = 1


def summary(
    totals: Totals,
    *,
    name: str,
    slide: str | os.PathLike,
    reader: str,
    slide_size: tuple[int, int],
    slide_mpp: float,
    mpp_source: str,
    analysed_mm2: float,
    unreadable: Sequence[tuple[int, int, int, int]],
    files: Mapping[str, str],
    provenance: Mapping[str, object],
) -> dict:
    """The content of `NAME.json`: what the viewer and the report say about a slide.

    Args:
        totals: Of all the slide's nuclei.
        name: NAME.
        slide: The slide's file.
        reader: What read it.
        slide_size: (width, height) of its finest level, px.
        slide_mpp: Micrometres per px of its finest level.
        mpp_source: Where that was found.
        analysed_mm2: Area that was analysed.
        unreadable: (left, top, right, bottom) of what could not be read, px of the finest level.
        files: From what they are (`labels`, `nuclei`, `geojson`, `parquet`, `report`) to the names
            of the files in the same folder.
        provenance: How the results came about.

    Returns:
        A dict of plain values for `outputs.write_json`. Besides what is given: `nuclei`,
        `nuclei_per_class`, the analysed image's size, resolution, scale and origin, and
        `statistics` (mean and median of `area_um2`, `mean_od` and `eccentricity`; None without
        nuclei), and `gallery`, the nuclei that stand out. x and y are in output px.
    """
    frame = totals.frame
    colours = CLASS_COLOURS[: len(totals.class_names) - 1]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "slide": os.path.abspath(slide),
        "reader": reader,
        "slide_size": list(slide_size),
        "slide_mpp": slide_mpp,
        "mpp_source": mpp_source,
        "analysis_size": [frame.width, frame.height],
        "analysis_mpp": frame.mpp,
        "scale": frame.scale,
        "origin": list(frame.origin),
        "class_names": list(totals.class_names),
        "class_colours": [[0, 0, 0], *map(list, colours)],
        "nuclei": len(totals),
        "nuclei_per_class": dict(
            zip(totals.class_names[1:], totals.per_class[1:].tolist(), strict=True)
        ),
        "analysed_mm2": round(analysed_mm2, 6),
        "unreadable": [list(box) for box in unreadable],
        "statistics": {
            "area_um2": _statistics(totals.area_um2),
            "mean_od": _statistics(totals.mean_od),
            "eccentricity": _statistics(totals.eccentricity),
        },
        "gallery": {
            "largest": [_gallery(totals, one) for one in totals.largest],
            "darkest": [_gallery(totals, one) for one in totals.darkest],
        },
        "files": dict(files),
        "provenance": dict(provenance),
    }


def density_per_mm2(summary: Mapping) -> float | None:
    """Nuclei per mm² of what was analysed; None where nothing was."""
    return summary["nuclei"] / summary["analysed_mm2"] if summary["analysed_mm2"] else None


def write_slides_csv(path: str | os.PathLike, summaries: Iterable[Mapping]) -> None:
    """Write `slides.csv`, one row a slide.

    Args:
        path: The file.
        summaries: Each as from `summary`, with a member `status` if it is not `done`. A slide that
            failed has no more than `name`, `slide`, `status` and `reason`; its other cells are
            empty.
    """
    summaries = list(summaries)
    names = list(
        dict.fromkeys(name for one in summaries for name in one.get("nuclei_per_class", ()))
    )
    header = [
        "name",
        "slide",
        "status",
        "nuclei",
        *(f"nuclei {name}" for name in names),
        "density_per_mm2",
        "mean_area_um2",
        "median_area_um2",
        "mean_od",
        "slide_mpp",
        "mpp_source",
        "analysed_mm2",
        "unreadable_areas",
        "reason",
    ]
    with (
        atomic_write(path) as temporary,
        # Names of files may hold what is no text.
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for one in summaries:
            row = [one["name"], one["slide"], one.get("status", "done")]
            if "nuclei" in one:
                density, statistics = density_per_mm2(one), one["statistics"]
                row += [
                    one["nuclei"],
                    *(one["nuclei_per_class"].get(name) for name in names),
                    None if density is None else round(density, 3),
                    statistics["area_um2"]["mean"],
                    statistics["area_um2"]["median"],
                    statistics["mean_od"]["mean"],
                    one["slide_mpp"],
                    one["mpp_source"],
                    one["analysed_mm2"],
                    len(one["unreadable"]),
                ]
            row += [None] * (len(header) - 1 - len(row))
            writer.writerow([*row, one.get("reason")])


def _statistics(values: Distribution) -> dict[str, float | None]:
    mean, median = values.mean(), values.quantile(0.5)
    return {
        "mean": None if mean is None else round(mean, 4),
        "median": None if median is None else round(median, 4),
    }


def _gallery(totals: Totals, one: Standout) -> dict:
    x, y = totals.frame.to_output((one.x, one.y)).tolist()
    return {
        "id": one.id,
        "class": one.class_index,
        "x": round(x, 2),
        "y": round(y, 2),
        "area_um2": round(one.area * totals.frame.mpp**2, 2),
        "mean_od": round(one.mean_od, 4),
    }
