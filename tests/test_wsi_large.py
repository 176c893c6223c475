"""Whole slides at the size of whole slides: minutes, so behind `-m large`."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from dssnet_fast import FastDSSNet
from dssnet_fast.backends.cpu import engine
from dssnet_fast.nuclei import find_nuclei
from dssnet_fast.separate import choose
from dssnet_fast.slides.slide import open_slide
from dssnet_fast.tiling import Box, plan
from dssnet_fast.wsi import store
from dssnet_fast.wsi.measure import OpticalDensity
from dssnet_fast.wsi.stitch import Stitched
from dssnet_fast.wsi.tile_nuclei import find_tile_nuclei, to_bytes
from synthetic_slides import make_slide

pytestmark = pytest.mark.large

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments):
    return [sys.executable, "-m", "dssnet_fast.wsi", *map(str, arguments), "--model-mpp", "0.5"]


def results(out, name):
    return {what: (out / (name + ending)).read_bytes() for what, ending in store.RESULTS.items()}


def test_twenty_kills_change_nothing(tmp_path):
    slide = tmp_path / "cells.tiff"
    make_slide(slide, 3000, 2600, seed=1)
    arguments = (slide, "--tile", "512", "--no-skip", "--quiet", "--out")
    begun = time.monotonic()
    subprocess.run(command(*arguments, tmp_path / "whole"), cwd=ROOT, check=True)
    seconds = time.monotonic() - begun
    moments = random.Random(4)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(command(*arguments, tmp_path / "killed"), cwd=ROOT)
        try:
            process.wait(moments.uniform(0.2, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            # It had the time to end; begin anew for the kills that are left.
            assert process.returncode == 0
            assert results(tmp_path / "killed", "cells") == results(tmp_path / "whole", "cells")
            if kills >= 20:
                break
            for path in (tmp_path / "killed").glob("cells*"):
                path.unlink()
    assert kills >= 20
    subprocess.run(command(*arguments, tmp_path / "killed"), cwd=ROOT, check=True)
    assert results(tmp_path / "killed", "cells") == results(tmp_path / "whole", "cells")


def peak(path, out):
    """Peak resident memory, bytes, of a run in a process of its own."""
    code = (
        "import resource, sys; from dssnet_fast.wsi.__main__ import main; "
        "code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
    )
    options = ("--out", out, "--model-mpp", "0.5", "--no-skip", "--quiet", "--precision", "int8")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (path, *options))],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_slide(tmp_path):
    peaks = []
    for side in (4000, 20_000):
        path = tmp_path / f"{side}.svs"
        make_slide(path, side, side, kind="svs", seed=2)
        peaks.append(peak(path, tmp_path / str(side)))
    print(f"peak memory: {[one // 10**6 for one in peaks]} MB")
    assert peaks[1] < 1.1 * peaks[0]


def exact(path, out):
    """A slide in tiles beside the same slide in one piece of memory."""
    subprocess.run(command(path, "--out", out, "--no-skip", "--quiet"), cwd=ROOT, check=True)
    name = path.name.removesuffix(path.suffix)
    net = FastDSSNet.pretrained(device="cpu")
    slide = open_slide(path)
    size = slide.levels[0]
    separation = choose("auto", net.has_edges)
    image = slide.read(0, Box(0, 0, size.height, size.width))
    answers = net.decide(image, edges=separation.needs_edges)
    labels, probability = answers[:2]
    mpp = json.loads((out / f"{name}.json").read_text())["analysis_mpp"]
    min_area = int(np.ceil(4 / mpp**2))
    nuclei = find_nuclei(labels, probability, min_area, separation.levels(*answers))
    assert len(nuclei) > len(find_nuclei(labels, probability, min_area))
    with tifffile.TiffFile(out / f"{name}_labels.ome.tif") as file:
        np.testing.assert_array_equal(file.series[0].asarray(level=0), labels)
    with tifffile.TiffFile(out / f"{name}_nuclei.ome.tif") as file:
        ids = file.series[0].asarray(level=0)
    keys = np.unique(ids.ravel().astype(np.int64) << 32 | nuclei.instances.ravel())
    assert len(keys) == len(np.unique(keys >> 32)) == len(nuclei) + 1
    table = pq.read_table(out / f"{name}.parquet", columns=["area_um2"])
    np.testing.assert_allclose(np.sort(table["area_um2"]), np.sort(nuclei.area * mpp**2), rtol=1e-9)
    return len(nuclei)


def test_a_large_slide_is_that_of_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WORKSPACE_BYTES", 8 << 30)
    path = tmp_path / "cells.svs"
    make_slide(path, 12_000, 12_000, kind="svs", seed=6)
    assert exact(path, tmp_path / "out") > 3000


def test_a_real_slide_is_that_of_one_piece(tmp_path, monkeypatch):
    import os

    if "DSSNET_FAST_SLIDES" not in os.environ:
        pytest.skip("DSSNET_FAST_SLIDES names no folder with CMU-1-Small-Region.svs")
    monkeypatch.setattr(engine, "WORKSPACE_BYTES", 8 << 30)
    path = tmp_path / "CMU-1-Small-Region.svs"
    path.write_bytes((Path(os.environ["DSSNET_FAST_SLIDES"]) / path.name).read_bytes())
    # At the slide's own resolution, of which the model's differs by less than 5 %.
    assert exact(path, tmp_path / "out") > 1000


def test_a_million_nuclei_in_bounded_memory_and_linear_time(tmp_path):
    """Stored tiles, the same one in many places, joined and written by a process of its own."""
    labels, levels = np.zeros((2, 2048, 2048), np.uint8)
    rows, columns = np.mgrid[-7:8, -7:8]
    distance = rows**2 + columns**2
    # Every second one is moved so far that it touches the one before.
    for row in range(0, 2048, 16):
        for column in [*range(0, 2048, 32), *range(12, 2048, 32)]:
            place = np.s_[max(row - 7, 0) : row + 8, max(column - 7, 0) : column + 8]
            for spot, radius_2 in ((labels[place], 40), (levels[place], 12)):
                disk = (distance <= radius_2).astype(np.uint8)
                spot |= disk[-spot.shape[0] :, -spot.shape[1] :]
    figures = []
    for tiles in (32, 64):
        folder = tmp_path / str(tiles)
        folder.mkdir()
        side = 2048
        whole = Box(0, 0, side * 8, side * (tiles // 8))
        pixels = np.zeros((side, side, 3), np.uint8)
        cores = [part.core for part in plan(whole.height, whole.width, side, 0)]
        assert len(cores) == tiles
        for number, core in enumerate(cores):
            found = find_tile_nuclei(
                labels,
                np.ones(labels.shape, np.float32),
                levels,
                1,
                pixels,
                OpticalDensity((240, 240, 240)),
                core,
                whole,
                5,
            )
            (folder / f"{number:06}.tile").write_bytes(to_bytes(found))
        done = subprocess.run(
            [sys.executable, __file__, folder, str(tiles)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        figures.append(json.loads(done.stdout))
    print(figures)
    half, full = figures
    assert full["nuclei"] > 1_000_000
    assert full["nuclei"] > 1.99 * half["nuclei"]
    assert full["bytes"] < 2e9
    assert full["bytes"] < 1.25 * half["bytes"]


def write_all(folder: Path, tiles: int) -> dict:
    from dssnet_fast.wsi.results import Frame
    from dssnet_fast.wsi.writers.geojson import GeoJsonWriter
    from dssnet_fast.wsi.writers.label_images import write_label_images
    from dssnet_fast.wsi.writers.parquet import ParquetWriter
    from dssnet_fast.wsi.writers.totals import Totals

    side = 2048
    frame = Frame(side * (tiles // 8), side * 8, 0.5, 1.0)
    cores = [part.core for part in plan(frame.height, frame.width, side, 0)]
    names = ("background", "nucleus")
    begun = time.process_time()
    stitched = Stitched(cores, [folder / f"{n:06}.tile" for n in range(tiles)], 5)
    totals = Totals(frame, names)
    with (
        GeoJsonWriter(folder / "a.geojson.gz", frame, names, "a", {}) as geojson,
        ParquetWriter(folder / "a.parquet", frame, names, {}) as parquet,
    ):
        for table in stitched.tables():
            geojson.add(table)
            parquet.add(table)
            totals.add(table)
    write_label_images(folder / "l.tif", folder / "n.tif", stitched, frame, {})
    return {
        "nuclei": stitched.count,
        "seconds": round(time.process_time() - begun, 2),
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    print(json.dumps(write_all(Path(sys.argv[1]), int(sys.argv[2]))))
