"""`python -m dssnet_fast.wsi` from slides to files, with the packaged model."""

from __future__ import annotations

import csv
import errno
import functools
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import shapely.affinity
import tifffile
import torch

from dssnet_fast import DSSNetConfig, FastDSSNet, weights
from dssnet_fast.backends.cpu.engine import CpuBackend
from dssnet_fast.nuclei import find_nuclei
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.separate import choose
from dssnet_fast.slides.slide import open_slide
from dssnet_fast.tiling import Box
from dssnet_fast.wsi import store
from dssnet_fast.wsi.__main__ import main
from synthetic_slides import make_slide

ROOT = Path(__file__).resolve().parents[1]
SCALE = ("--model-mpp", "0.5")
TILES = ("--tile", "512")
WIDTH, HEIGHT = 1100, 1300


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "cells.tiff"
    make_slide(path, WIDTH, HEIGHT, seed=3)
    return path


@pytest.fixture(scope="module")
def net():
    return FastDSSNet.pretrained(device="cpu")


@pytest.fixture(scope="module")
def done(slide, tmp_path_factory):
    """Results of a whole slide in tiles, nothing skipped."""
    out = tmp_path_factory.mktemp("done")
    assert main([str(slide), "--out", str(out), *SCALE, *TILES, "--no-skip", "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def untiled(slide, net):
    """Labels and nuclei of the whole slide in one piece."""
    opened = open_slide(slide)
    return in_one_piece(opened.read(0, Box(0, 0, HEIGHT, WIDTH)), net)


def in_one_piece(image, net, separation=None):
    separation = separation or choose("auto", net.has_edges)
    answers = net.decide(image, edges=separation.needs_edges)
    levels = separation.levels(*answers)
    nuclei = find_nuclei(*answers[:2], 16, levels)
    assert len(nuclei) > len(find_nuclei(*answers[:2], 16))
    return answers[0], nuclei


def run(*arguments):
    return main([str(argument) for argument in (*arguments, "--quiet")])


def results(out, name="cells"):
    """The bytes of a slide's results."""
    return {what: (out / (name + ending)).read_bytes() for what, ending in store.RESULTS.items()}


def features(out, name="cells"):
    return json.loads(gzip.decompress((out / f"{name}.geojson.gz").read_bytes()))["features"]


def read_map(path):
    with tifffile.TiffFile(path) as file:
        return file.series[0].asarray(level=0)


def test_tiles_give_the_labels_and_nuclei_of_the_whole_slide(done, untiled):
    labels, nuclei = untiled
    assert len(nuclei) > 30
    np.testing.assert_array_equal(read_map(done / "cells_labels.ome.tif"), labels)
    ids = read_map(done / "cells_nuclei.ome.tif")
    pairs = np.unique(np.stack([ids.ravel(), nuclei.instances.ravel()]), axis=1)
    # One to one, background included.
    assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == len(nuclei) + 1
    table = pq.read_table(done / "cells.parquet").to_pydict()
    place = dict(zip(*pairs, strict=True))
    order = np.array([place[number] for number in table["id"]]) - 1
    np.testing.assert_allclose(table["x"], nuclei.x[order], rtol=1e-9)
    np.testing.assert_allclose(table["area_um2"], nuclei.area[order] * 0.25, rtol=1e-9)
    np.testing.assert_allclose(table["perimeter_um"], nuclei.perimeter[order] * 0.5, rtol=1e-9)
    np.testing.assert_allclose(table["mean_probability"], nuclei.mean_probability[order], rtol=1e-5)


def test_all_outputs_tell_of_the_same_nuclei(done):
    table = pq.read_table(done / "cells.parquet")
    count = table.num_rows
    polygons = shapely.from_wkb(table["geometry"].to_pylist())
    found = features(done)
    assert len(found) == count == json.loads((done / "cells.json").read_text())["nuclei"]
    (row,) = csv.DictReader((done / "slides.csv").open())
    assert (int(row["nuclei"]), row["status"]) == (count, "done")
    ids = read_map(done / "cells_nuclei.ome.tif")
    np.testing.assert_array_equal(np.unique(ids), np.arange(count + 1))
    np.testing.assert_allclose(np.bincount(ids.ravel())[1:] * 0.25, table["area_um2"], rtol=1e-9)
    for number, (feature, polygon) in enumerate(zip(found, polygons, strict=True), 1):
        assert feature["properties"]["name"] == str(number)
        assert shapely.equals(shapely.geometry.shape(feature["geometry"]), polygon)
        assert polygon.is_valid
        point = polygon.representative_point()
        assert ids[int(point.y), int(point.x)] == number
    assert not list((done / ".dssnet_fast").glob("**/*.tile"))


@pytest.mark.parametrize(
    "how",
    [
        ("--batch-size", "3"),
        ("--tile", "768,512"),
        ("--workers", "2"),
        ("--engine", "ray", "--workers", "1"),
    ],
    ids=["batches", "tiles", "processes", "ray"],
)
def test_who_computes_makes_no_difference(done, slide, how, tmp_path):
    if "ray" in how:
        pytest.importorskip("ray")
    assert run(slide, "--out", tmp_path, *SCALE, *TILES, "--no-skip", *how) == 0
    if "--tile" not in how:
        assert results(tmp_path) == results(done)
        return
    # Ids follow the tiles; all else is the same.
    np.testing.assert_array_equal(
        read_map(tmp_path / "cells_labels.ome.tif"), read_map(done / "cells_labels.ome.tif")
    )
    polygons = [
        sorted(pq.read_table(out / "cells.parquet")["geometry"].to_pylist())
        for out in (tmp_path, done)
    ]
    assert polygons[0] == polygons[1]


def test_results_do_not_depend_on_threads(done, slide, tmp_path):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(slide, "--out", tmp_path, *SCALE, *TILES, "--no-skip") == 0
    finally:
        torch.set_num_threads(threads)
    assert results(tmp_path) == results(done)


def test_pytorchs_convolutions_can_be_made_deterministic(slide, tmp_path):
    import torch

    threads = torch.get_num_threads()
    made = []
    how = ("--backend", "torch", "--deterministic", "--region", "0,0,300,300")
    try:
        for batch in (1, 2):
            torch.set_num_threads(batch)
            out = tmp_path / str(batch)
            arguments = (slide, "--out", out, *SCALE, *TILES, *how, "--batch-size", batch)
            assert run(*arguments) == 0
            made.append(results(out))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert made[0] == made[1]


def test_what_is_done_is_not_done_again_unless_something_changed(slide, tmp_path, capsys):
    arguments = (str(slide), "--out", str(tmp_path), *SCALE, *TILES, "--json")

    def statuses(*more):
        assert main([*arguments, *more]) == 0
        return json.loads(capsys.readouterr().out)["slides"]

    assert statuses()["done"] == 1
    made = results(tmp_path)
    assert statuses() == {"done": 0, "skipped": 1, "failed": 0}
    assert statuses("--overwrite")["done"] == 1
    assert results(tmp_path) == made
    assert statuses("--min-area", "9")["done"] == 1
    assert results(tmp_path) != made
    (tmp_path / "cells.parquet").unlink()
    assert statuses("--min-area", "9")["done"] == 1


def test_how_nuclei_are_told_apart_is_asked_for_and_recorded(slide, net, tmp_path, capsys):
    arguments = [str(slide), "--out", str(tmp_path), *SCALE, *TILES, "--quiet"]
    counts = {}
    for how in ((), ("--separate", "no"), ("--interior-probability", "0.5,0.9")):
        assert main([*arguments, *how]) == 0
        summary = json.loads((tmp_path / "cells.json").read_text())
        expected = choose(
            "no" if "no" in how else "auto",
            net.has_edges,
            (0.5, 0.9) if "0.5,0.9" in how else None,
        ).to_dict()
        assert summary["provenance"]["separation"] == expected
        collection = json.loads(gzip.decompress((tmp_path / "cells.geojson.gz").read_bytes()))
        assert collection["dssnet_fast"]["separation"] == expected
        metadata = pq.read_metadata(tmp_path / "cells.parquet").metadata[b"dssnet_fast"]
        assert json.loads(metadata)["separation"] == expected
        counts[how] = summary["nuclei"]
    assert len(set(counts.values())) == 3
    # From Python, the same.
    again = net.segment_slide(
        slide, tmp_path / "python", model_mpp=0.5, tile=(512, 512), separate="no"
    )
    assert again["nuclei"] == counts["--separate", "no"]
    with pytest.raises(InputError, match="separate must be one of"):
        net.segment_slide(slide, tmp_path / "python", separate="yes")


def test_a_slides_nuclei_are_told_apart_by_edges_as_in_one_piece(
    slide, tmp_path, capsys, monkeypatch
):
    """A network of random weights, whose edges are anywhere, and half of all px in nuclei.

    Not in Winograd's form, whose last digits depend on tiles: so many px are near the limit between
    two labels that they tip some.
    """
    direct = functools.partialmethod(CpuBackend.__init__, winograd=False)
    monkeypatch.setattr(CpuBackend, "__init__", direct)
    how = {"device": "cpu", "backend": "cpu", "precision": "fp32"}
    torch.manual_seed(3)
    # With edges it sees 104 px far, without 96: tiles take 128.
    config = DSSNetConfig(width=9, features=8, blocks=3, super_resolution=False)
    reference = DSSNet(config)
    opened = open_slide(slide)
    image = opened.read(0, Box(0, 0, HEIGHT, WIDTH))
    logits = FastDSSNet.from_reference(reference, **how).predict(image, "logits")
    with torch.no_grad():
        reference.segmentation.outer.bias[0] += float(np.median(logits[..., 1] - logits[..., 0]))
    net = FastDSSNet.from_reference(reference, **how)
    labels, probability, edges = net.decide(image, edges=True)
    interior = (probability * (1 - edges.clip(0, 1)))[labels > 0]
    levels = tuple(float(level) for level in np.quantile(interior, [0.4, 0.7]))
    weights.save(net.folded_weights(), tmp_path / "edges.safetensors")
    options = (
        *("--model", tmp_path / "edges.safetensors", *SCALE, "--no-skip", "--separate", "edges"),
        *("--interior-probability", ",".join(map(str, levels))),
        *("--backend", "cpu", "--precision", "fp32"),
    )
    expected, nuclei = in_one_piece(image, net, choose("edges", True, levels))
    for tile in ("256", "512,768"):
        out = tmp_path / tile
        assert run(slide, "--out", out, *options, "--tile", tile) == 0
        np.testing.assert_array_equal(read_map(out / "cells_labels.ome.tif"), expected)
        ids = read_map(out / "cells_nuclei.ome.tif")
        pairs = np.unique(np.stack([ids.ravel(), nuclei.instances.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
        assert len(nuclei) == ids.max() > 100
        summary = json.loads((out / "cells.json").read_text())
        assert summary["provenance"]["exact"]
        assert summary["provenance"]["context_px"] >= config.edge_context_px
    # Without an edge head there are none to go by.
    weights.save(net.folded_weights().without_edges(), tmp_path / "none.safetensors")
    assert run(slide, "--out", out, *options, "--model", tmp_path / "none.safetensors") == 1
    assert error_of(capsys).startswith("dssnet_fast.wsi: error: separate: these weights have no")


# Kills itself at the n-th moment at which something is written or renamed.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
moments = iter(range({moment} + 1))

def count(function):
    def counted(*arguments, **options):
        if next(moments) == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return counted

os.replace, os.fsync = count(os.replace), count(os.fsync)
from dssnet_fast.wsi.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("moment", [1, 4, 9, 14, 18])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(done, slide, tmp_path, moment):
    arguments = [str(slide), "--out", str(tmp_path), *SCALE, *TILES, "--no-skip", "--quiet"]
    code = KILLED.format(root=str(ROOT), moment=moment)
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    tiles = len(list((tmp_path / ".dssnet_fast").glob("cells/[0-9]*.tile")))
    assert (tiles > 0) == (moment > 3)
    assert main(arguments) == 0
    assert results(tmp_path) == results(done)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    expected = {path.name for path in done.rglob("*") if path.is_file()}
    assert left == expected


def test_a_lost_worker_loses_no_result(done, slide, tmp_path, monkeypatch):
    """One process is killed while it computes; its tiles are given to another."""
    from dssnet_fast.wsi import engines

    submit = engines.ProcessWorker.submit
    lost = []

    def submit_and_kill(self, group):
        future = submit(self, group)
        if not lost:
            while not self._pool._processes:
                time.sleep(0.01)
            (process,) = self._pool._processes.values()
            lost.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return future

    monkeypatch.setattr(engines.ProcessWorker, "submit", submit_and_kill)
    arguments = (slide, "--out", tmp_path, *SCALE, *TILES, "--no-skip", "--workers", "2")
    assert run(*arguments) == 0
    assert lost
    assert results(tmp_path) == results(done)


def test_a_lost_worker_of_ray_loses_no_result(done, slide, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from dssnet_fast.wsi import ray_engine

    submit = ray_engine.RayWorker.submit
    lost = []

    def submit_and_kill(self, group):
        future = submit(self, group)
        if not lost:
            lost.append(self)
            ray.kill(self._actor)
        return future

    monkeypatch.setattr(ray_engine.RayWorker, "submit", submit_and_kill)
    arguments = (slide, "--out", tmp_path, *SCALE, *TILES, "--no-skip", "--engine", "ray")
    assert run(*arguments) == 0
    assert lost
    assert results(tmp_path) == results(done)


def test_workers_leave_with_their_parent(slide, tmp_path):
    arguments = [slide, "--out", tmp_path, *SCALE, *TILES, "--no-skip", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dssnet_fast.wsi", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def children():
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == process.pid and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found

    deadline = time.monotonic() + 60
    while len(workers := children()) < 3 and time.monotonic() < deadline:  # two and a tracker
        time.sleep(0.05)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


# --- what is analysed ----------------------------------------------------------------------------


def test_a_region_gives_the_nuclei_of_the_whole_that_lie_in_it(done, slide, tmp_path):
    x, y, width, height = 300, 410, 420, 333
    assert (
        run(slide, "--out", tmp_path, *SCALE, *TILES, "--region", f"{x},{y},{width},{height}") == 0
    )
    everything = pq.read_table(done / "cells.parquet").to_pydict()
    inside = [
        at
        for at, (a, b) in enumerate(zip(everything["x"], everything["y"], strict=True))
        if x <= a < x + width and y <= b < y + height
    ]
    found = pq.read_table(tmp_path / "cells.parquet").to_pydict()
    assert len(inside) > 3
    assert sorted(found["geometry"]) == sorted(everything["geometry"][at] for at in inside)
    ids = read_map(tmp_path / "cells_nuclei.ome.tif")
    np.testing.assert_array_equal(np.unique(ids), np.arange(len(inside) + 1))


def test_annotations_of_qupath_are_regions(done, slide, tmp_path):
    polygon = shapely.Polygon([(100, 100), (900, 300), (500, 1200), (150, 900)])
    path = tmp_path / "annotations.geojson"
    geometry = shapely.geometry.mapping(polygon)
    feature = {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert run(slide, "--out", tmp_path / "out", *SCALE, *TILES, "--region", path) == 0
    everything = pq.read_table(done / "cells.parquet").to_pydict()
    expected = [
        shape
        for shape, a, b in zip(
            everything["geometry"], everything["x"], everything["y"], strict=True
        )
        if shapely.intersects_xy(polygon, a, b)
    ]
    found = pq.read_table(tmp_path / "out" / "cells.parquet").to_pydict()
    assert 3 < len(expected) < len(everything["x"])
    assert sorted(found["geometry"]) == sorted(expected)


def test_empty_glass_is_skipped_and_no_nucleus(tmp_path):
    path = tmp_path / "sparse.tiff"
    truth = make_slide(path, 2600, 2000, seed=5, density=2)
    found = []
    for more in ((), ("--no-skip",)):
        out = tmp_path / f"out{len(more)}"
        assert run(path, "--out", out, *SCALE, *TILES, *more) == 0
        area = json.loads((out / "sparse.json").read_text())["analysed_mm2"]
        found.append((area, read_map(out / "sparse_nuclei.ome.tif") > 0))
    (some, skipping), (all_of_it, looking) = found
    assert some < 0.9 * all_of_it
    assert (skipping <= looking).all()
    at = truth.y.astype(int), truth.x.astype(int)
    np.testing.assert_array_equal(skipping[at], looking[at])
    assert looking[at].sum() > 5


def test_less_context_is_faster_and_says_what_it_costs(slide, tmp_path, capsys):
    arguments = [str(slide), "--out", str(tmp_path), *SCALE, *TILES, "--context", "16"]
    assert main([*arguments, "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert 0.9 < account["labels_as_with_exact_context"] < 1
    provenance = json.loads((tmp_path / "cells.json").read_text())["provenance"]
    assert provenance["exact"] is False
    assert provenance["labels_as_with_exact_context"] == account["labels_as_with_exact_context"]


def test_slides_are_brought_to_the_scale_of_the_model(slide, tmp_path):
    for scale in ("0.25", "1"):
        out = tmp_path / scale
        arguments = (slide, "--out", out, "--model-mpp", scale, "--region", "200,200,500,500")
        assert run(*arguments, *TILES) == 0
        summary = json.loads((out / "cells.json").read_text())
        factor = float(scale) / 0.5
        assert summary["scale"] == pytest.approx(factor)
        assert summary["analysis_size"] == [int(WIDTH / factor), int(HEIGHT / factor)]
        table = pq.read_table(out / "cells.parquet").to_pydict()
        for polygon, area in zip(
            shapely.from_wkb(table["geometry"]), table["area_um2"], strict=True
        ):
            assert polygon.area * 0.25 == pytest.approx(area)


def test_coordinates_begin_where_qupath_shows_the_slide(done, slide, tmp_path, monkeypatch):
    """As for MIRAX, of which QuPath shows a part."""
    from dssnet_fast.wsi import prepare

    def open_with_bounds(path):
        opened = open_slide(path)
        opened.bounds = Box(40, 100, HEIGHT, WIDTH)
        return opened

    monkeypatch.setattr(prepare, "open_slide", open_with_bounds)
    expected = pq.read_table(done / "cells.parquet").to_pydict()
    for origin, x, y in (("bounds", 100, 40), ("level0", 0, 0)):
        out = tmp_path / origin
        assert run(slide, "--out", out, *SCALE, *TILES, "--no-skip", "--origin", origin) == 0
        found = pq.read_table(out / "cells.parquet").to_pydict()
        np.testing.assert_allclose(np.array(found["x"]) + x, expected["x"], rtol=1e-12)
        np.testing.assert_allclose(np.array(found["y"]) + y, expected["y"], rtol=1e-12)
        summary = json.loads((out / "cells.json").read_text())
        assert summary["origin"] == [x, y]
        (first, *_), (whole, *_) = features(out), features(done)
        moved = shapely.affinity.translate(shapely.geometry.shape(first["geometry"]), x, y)
        assert shapely.equals(moved, shapely.geometry.shape(whole["geometry"]))


def test_a_slide_from_python(slide, net, done, tmp_path):
    summary = net.segment_slide(slide, tmp_path, model_mpp=0.5, tile=(512, 512), skip=False)
    assert summary["nuclei"] == json.loads((done / "cells.json").read_text())["nuclei"]
    assert results(tmp_path) == results(done)
    with pytest.raises(InputError, match=r"no\.tiff: no such file"):
        net.segment_slide(tmp_path / "no.tiff", tmp_path / "out")
    with pytest.raises(TypeError, match="colour"):
        net.segment_slide(slide, tmp_path, colour="red")


# --- what goes wrong -----------------------------------------------------------------------------


def error_of(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def damaged(slide, path):
    """A copy of which one JPEG tile of the finest level is no JPEG any more."""
    data = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        at = 6
        begin, count = page.dataoffsets[at], page.databytecounts[at]
    data[begin : begin + count] = bytes(count)
    path.write_bytes(data)
    return path


def test_bad_slides_are_named_and_the_others_finish(slide, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    damaged(slide, folder / "a_damaged.tiff")
    (folder / "b_truncated.tiff").write_bytes(slide.read_bytes()[:20_000])
    (folder / "c_text.svs").write_text("this is no slide")
    (folder / "d_empty.tiff").write_bytes(b"")
    (folder / "e_good.tiff").write_bytes(slide.read_bytes())
    out = tmp_path / "out"
    assert main([str(folder), "--out", str(out), *SCALE, *TILES, "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    for name in ("a_damaged", "b_truncated", "c_text", "d_empty"):
        assert f"{name}." in captured.err
        assert not list(out.glob(f"{name}*"))
    account = json.loads(captured.out)
    assert account["slides"] == {"done": 1, "skipped": 0, "failed": 4}
    assert (out / "e_good.parquet").is_file()
    rows = list(csv.DictReader((out / "slides.csv").open()))
    assert [row["status"] for row in rows] == ["failed"] * 4 + ["done"]
    assert all(row["reason"] for row in rows[:4])
    assert rows[4]["reason"] == ""
    assert "cannot be read at x" in captured.err  # where the damage is


def test_results_without_what_cannot_be_read_say_so(slide, done, tmp_path, capsys):
    path = damaged(slide, tmp_path / "cells.tiff")
    out = tmp_path / "out"
    arguments = [str(path), "--out", str(out), *SCALE, *TILES, "--no-skip", "--keep-going"]
    assert main([*arguments, "--json"]) == 1
    account = json.loads(capsys.readouterr().out)
    (result,) = account["results"]
    assert result["status"] == "incomplete"
    summary = json.loads((out / "cells.json").read_text())
    assert summary["unreadable"]
    for left, top, right, bottom in summary["unreadable"]:
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
        assert right - left <= 256
    # Far from the damage nothing has changed.
    whole, found = (read_map(one / "cells_labels.ome.tif") for one in (done, out))
    left, top, right, bottom = np.array(summary["unreadable"]).reshape(-1, 4).T
    near = np.zeros(whole.shape, bool)
    for a, b, c, d in zip(left, top, right, bottom, strict=True):
        near[max(b - 264, 0) : d + 264, max(a - 264, 0) : c + 264] = True
    assert (~near).any()
    np.testing.assert_array_equal(whole[~near], found[~near])
    (row,) = csv.DictReader((out / "slides.csv").open())
    assert row["status"] == "incomplete"
    assert int(row["unreadable_areas"]) == len(summary["unreadable"])


def test_a_slide_that_does_not_say_its_scale(tmp_path, capsys):
    path = tmp_path / "photo.tiff"
    image = np.full((300, 300, 3), 240, np.uint8)
    tifffile.imwrite(path, image)
    assert main([str(path), "--out", str(tmp_path / "out"), *SCALE]) == 1
    error = error_of(capsys)
    assert "--assume-mpp" in error
    assert "--mpp" in error
    for how in ("--assume-mpp", "--mpp"):
        out = tmp_path / f"out{how}"
        assert run(path, "--out", out, *SCALE, how, "0.5") == 0
        assert json.loads((out / "photo.json").read_text())["mpp_source"] == how


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mpp", "0"], "micrometres per px"),
        (["--mpp", "nan"], "micrometres per px"),
        (["--tile", "100"], "multiples of 256"),
        (["--region", "5000,5000,10,10"], "outside the slide"),
        (["--region", "nowhere.geojson"], "neither a box nor a file"),
        (["--context", "-8"], "context"),
        (["--min-area", "-1"], "min_area"),
        (["--backend", "abacus"], "unknown"),
    ],
)
def test_wrong_options_are_one_line(slide, tmp_path, capsys, arguments, message):
    assert main([str(slide), "--out", str(tmp_path), *SCALE, *arguments]) == 1
    error = error_of(capsys)
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_wrong_places_for_results(slide, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(slide), "--out", str(tmp_path / "file")]) == 1
    assert "is a file" in error_of(capsys)
    assert main([str(slide), "--out", str(slide.parent)]) == 1
    assert "another folder" in error_of(capsys)
    assert main([str(tmp_path / "nothing.svs"), "--out", str(tmp_path / "out")]) == 1
    assert "nothing.svs" in error_of(capsys)


def test_only_one_run_at_a_time(slide, tmp_path, capsys):
    with_lock = tmp_path / ".dssnet_fast"
    with_lock.mkdir()
    with store.only_run(tmp_path):
        assert main([str(slide), "--out", str(tmp_path), *SCALE]) == 1
    assert "another run" in error_of(capsys)


@pytest.mark.parametrize("what", ["000002.tile", "cells.geojson", "cells_nuclei.ome", "slides"])
def test_a_full_disk_stops_the_run_with_one_line_and_it_can_go_on(
    slide, done, tmp_path, capsys, monkeypatch, what
):
    replace = os.replace

    def full(source, target):
        if Path(target).name.startswith(what):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    arguments = [str(slide), "--out", str(tmp_path), *SCALE, *TILES, "--no-skip", "--quiet"]
    assert main(arguments) == 1
    error = error_of(capsys)
    assert "No space left on device" in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.part*"))
    monkeypatch.undo()
    assert main(arguments) == 0
    assert results(tmp_path) == results(done)


def test_a_folder_that_cannot_be_written(slide, capsys):
    assert main([str(slide), "--out", "/proc/nowhere"]) == 1
    assert "/proc/nowhere" in error_of(capsys)


def test_missing_packages_are_named(slide, net, tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openslide" else find(name)
    )
    assert main([str(slide), "--out", str(tmp_path)]) == 1
    assert "pip install 'dssnet_fast[wsi]'" in error_of(capsys)
    with pytest.raises(InputError, match="openslide: not installed"):
        net.segment_slide(slide, tmp_path)
