"""From a slide's stored tiles to its outputs: a pass over its labels, another over its nuclei."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dssnet_fast.outputs import write_json
from dssnet_fast.slides.resampled import Resampled
from dssnet_fast.slides.slide import UnreadableRegion, open_slide
from dssnet_fast.tiling import Box
from dssnet_fast.wsi import layout
from dssnet_fast.wsi.agreement import agreement
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.options import Options
from dssnet_fast.wsi.prepare import Prepared
from dssnet_fast.wsi.stitch import Stitched
from dssnet_fast.wsi.store import SlideStore
from dssnet_fast.wsi.tile_nuclei import TileFile
from dssnet_fast.wsi.timing import Timing
from dssnet_fast.wsi.writers.geojson import GeoJsonWriter
from dssnet_fast.wsi.writers.label_images import write_label_images
from dssnet_fast.wsi.writers.parquet import ParquetWriter
from dssnet_fast.wsi.writers.report import write_report
from dssnet_fast.wsi.writers.summary import summary
from dssnet_fast.wsi.writers.totals import Totals


def write_outputs(
    prepared: Prepared,
    store: SlideStore,
    options: Options,
    net: Network,
    provenance: Mapping[str, object],
    threads: int,
    timing: Timing,
) -> dict:
    """Write all results of a slide whose tiles are all stored.

    Returns:
        What NAME.json holds.

    Raises:
        InputError: A stored tile is damaged.
        OSError: Results cannot be written.
    """
    frame, work, about = prepared.frame, prepared.work, prepared.about
    files = [store.tile(number) for number in range(len(prepared.cores))]

    def counts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return prepared.region.contains(x * frame.scale, y * frame.scale)

    if not about["exact"]:
        with timing.work("comparing with exact context"):
            share = agreement(work, prepared.cores, net)
        provenance = {**provenance, "labels_as_with_exact_context": share}
    with timing.work("joining"):
        stitched = Stitched(prepared.cores, files, work.min_area, counts)
    area = frame.width * frame.height
    with timing.work("writing labels", area) as stage:
        labels, nuclei = store.results["labels"], store.results["nuclei"]
        write_label_images(labels, nuclei, stitched, frame, provenance, threads)
        stage.bytes = labels.stat().st_size + nuclei.stat().st_size
    totals = Totals(frame, net.class_names)
    with timing.work("writing nuclei", area) as stage:
        geojson = GeoJsonWriter(
            store.results["geojson"],
            frame,
            net.class_names,
            f"{prepared.job.label}/{about['fingerprint']}",
            provenance,
            options.simplify,
        )
        parquet = ParquetWriter(store.results["parquet"], frame, net.class_names, provenance)
        with geojson, parquet:
            for table in stitched.tables():
                geojson.add(table)
                parquet.add(table)
                totals.add(table)
        stage.bytes = sum(store.results[what].stat().st_size for what in ("geojson", "parquet"))
    # Tiles look beyond their borders, so neighbours may tell of the same.
    unreadable = np.unique(
        np.concatenate([np.zeros((0, 4), np.int64), *(TileFile(f).unreadable() for f in files)]),
        axis=0,
    )
    found = summary(
        totals,
        name=prepared.job.name,
        slide=prepared.job.path,
        reader=about["reader"],
        slide_size=about["slide_size"],
        slide_mpp=about["slide_mpp"],
        mpp_source=about["mpp_source"],
        analysed_mm2=_pixels(work.wanted, frame.height, frame.width) * (frame.mpp / 1000) ** 2,
        unreadable=[tuple(box) for box in unreadable.tolist()],
        files={what: path.name for what, path in store.results.items() if what != "summary"},
        provenance=provenance,
    )
    with timing.work("writing the report") as stage:
        slide = open_slide(prepared.job.path)
        try:
            image = Resampled(slide, work.mpp, work.slide_mpp)
            write_report(
                store.results["report"],
                found,
                totals,
                prepared.overview.thumbnail,
                lambda left, top, side: _crop(image, work.image, left, top, side),
            )
        finally:
            slide.close()
        stage.bytes = store.results["report"].stat().st_size
    write_json(store.results["summary"], found)
    return found


def _pixels(wanted: np.ndarray, height: int, width: int) -> int:
    """Px of the analysed image in wanted cells; those at the end may be smaller."""
    heights = np.diff(np.minimum(np.arange(wanted.shape[0] + 1) * layout.CELL_PX, height))
    widths = np.diff(np.minimum(np.arange(wanted.shape[1] + 1) * layout.CELL_PX, width))
    return int(heights @ wanted.astype(np.int64) @ widths)


def _crop(image: Resampled, whole: Box, left: int, top: int, side: int) -> np.ndarray | None:
    """A square of the analysed image, white outside of it; None where it cannot be read."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    square = Box(top, left, top + side, left + side)
    inside = square.around(0, whole)
    try:
        pixels[inside.within(square)] = image.read(inside)
    except UnreadableRegion:
        return None
    return pixels
