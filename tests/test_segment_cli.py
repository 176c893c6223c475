"""`python -m dssnet_fast.segment` from files to files, with a network that thresholds."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dssnet_fast import batch, jobs, outputs, segment

ROOT = Path(__file__).resolve().parents[1]

# Also run by a process of its own, which cannot import this module.
THRESHOLD_NET = '''
import time
from types import SimpleNamespace

import numpy as np


class ThresholdNet:
    """Nuclei are what is bright; class 2 what is very bright. Edges are what is 151 or 251."""

    class_names = ("background", "pale", "bright")
    context_px = edge_context_px = 8
    has_edges = True
    backend_name = "threshold"
    device = "cpu"
    precision = "fp32"
    digest = "d" * 64

    def __init__(self, channels=3, seconds=0.0):
        self.config = SimpleNamespace(in_channels=channels, classes=3)
        self.seconds = seconds
        self.images = []

    def decide(self, image, core, edges):
        assert image.shape[2] == self.config.in_channels
        self.images.append(image.shape)
        time.sleep(self.seconds)
        value = image.astype(np.float32).mean(axis=2)
        zero = np.zeros_like(value)
        logits = np.stack([zero, (value - 100) / 50, (value - 180) / 20], axis=2)
        part = np.s_[core.top : core.bottom, core.left : core.right]
        logits = logits[part]
        highest = logits.max(axis=2, keepdims=True)
        decided = logits.argmax(axis=2).astype(np.uint8), 1 / np.exp(logits - highest).sum(axis=2)
        edge_map = np.isin(value, (151, 251)).astype(np.float32)[part]
        return (*decided, edge_map) if edges else decided
'''
exec(THRESHOLD_NET)  # defines ThresholdNet


def picture(seed, height=60, width=80):
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    image = random.integers(0, 40, (height, width, 3))
    for _ in range(8):
        row, column = random.integers(0, height), random.integers(0, width)
        radius = random.integers(3, 9)
        image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = random.integers(110, 256)
    return image.astype(np.uint8)


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        save(tmp_path / "in" / f"image{number}.png", number)
    return tmp_path / "in"


@pytest.fixture
def net(monkeypatch):
    made = ThresholdNet()  # noqa: F821
    monkeypatch.setattr(segment, "load_net", lambda arguments: made)
    return made


def run(*arguments):
    return segment.main([str(argument) for argument in arguments])


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def summary_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_files_of_a_folder(folder, tmp_path, net, capsys):
    out = tmp_path / "new" / "out"
    assert run(folder, "--out", out) == 0
    captured = capsys.readouterr()
    assert "6 images segmented:" in captured.out
    assert "backend threshold, device cpu, precision fp32" in captured.out
    assert str(out) in captured.out
    assert captured.err == ""
    names = {path.name for path in out.iterdir()}
    endings = ("_labels.png", "_nuclei.tif", "_overlay.png", ".geojson")
    assert names == {f"image{n}{ending}" for n in range(6) for ending in endings} | {
        "nuclei.csv",
        ".dssnet_fast",
    }
    rows = list(csv.DictReader((out / "nuclei.csv").open(newline="")))
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    for number in range(6):
        image = picture(number).astype(np.float32).mean(axis=2)
        labels = np.asarray(Image.open(out / f"image{number}_labels.png"))
        scores = np.stack([0 * image, (image - 100) / 50, (image - 180) / 20], 2)
        np.testing.assert_array_equal(labels, scores.argmax(2))
        instances = tifffile.imread(out / f"image{number}_nuclei.tif")
        assert instances.shape == labels.shape
        mine = [row for row in rows if row["image"] == f"image{number}.png"]
        features = json.loads((out / f"image{number}.geojson").read_text())["features"]
        assert len(mine) == len(features) == instances.max() > 0
        for row, feature in zip(mine, features, strict=True):
            at = instances == int(row["id"])
            assert feature["properties"]["name"] == row["id"]
            assert at.sum() == int(row["area_px"]) >= 15
            assert (labels[at] == int(row["class"])).all()
            assert row["class_name"] == net.class_names[int(row["class"])]


def test_json_summary(folder, tmp_path, net, capsys):
    (folder / "broken.png").write_bytes((folder / "image0.png").read_bytes()[:200])
    out = tmp_path / "out"
    assert run(folder, "--out", out, "--json") == 1
    summary = summary_of(capsys)
    assert summary["images"] == {"done": 6, "skipped": 0, "failed": 1}
    assert summary["backend"] == "threshold"
    assert summary["device"] == "cpu"
    assert summary["precision"] == "fp32"
    assert summary["model"] == "pretrained"
    assert summary["model_sha256"] == net.digest
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    by_image = {result["image"]: result for result in summary["results"]}
    assert len(by_image) == 7
    assert by_image["broken.png"]["status"] == "failed"
    assert "cannot be read as an image" in by_image["broken.png"]["reason"]
    rows = list(csv.DictReader((out / "nuclei.csv").open(newline="")))
    assert summary["nuclei"] == len(rows)
    assert summary["nuclei"] == sum(result.get("nuclei", 0) for result in summary["results"])


def test_bad_files_are_reported_and_the_rest_goes_on(folder, tmp_path, net, capsys):
    good = tmp_path / "good"
    assert run(folder, "--out", good, "--quiet") == 0
    (folder / "image00.png").write_bytes(b"")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    tifffile.imwrite(folder / "stack.tif", np.zeros((5, 9, 9), np.uint8))
    out = tmp_path / "out"
    capsys.readouterr()
    assert run(folder, "--out", out, "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 3
    for name in ("image00.png", "broken.jpg", "stack.tif"):
        assert sum(str(folder / name) in line for line in lines) == 1
    assert contents(out) == contents(good)


def test_a_fault_of_the_network_fails_one_image_only(folder, tmp_path, net, capsys, monkeypatch):
    sane = net.decide

    def decide(image, core, edges):
        if np.array_equal(image, picture(2)):
            raise RuntimeError("kernel\nfell over")
        if np.array_equal(image, picture(3)):
            raise MemoryError
        return sane(image, core, edges)

    monkeypatch.setattr(net, "decide", decide)
    assert run(folder, "--out", tmp_path / "out", "--json") == 1
    results = {result["image"]: result for result in summary_of(capsys)["results"]}
    assert results["image2.png"]["reason"].startswith("RuntimeError: kernel fell over")
    assert "smaller --tile" in results["image3.png"]["reason"]
    assert [result["status"] for result in results.values()].count("done") == 4
    assert not list((tmp_path / "out").glob("image2*"))


def test_debug_shows_where_an_image_failed(folder, tmp_path, net, capsys):
    (folder / "broken.png").write_bytes(b"x")
    assert run(folder, "--out", tmp_path / "out", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_tiles_give_the_same_files(folder, tmp_path, net):
    assert run(folder, "--out", tmp_path / "whole") == 0
    net.images.clear()
    assert run(folder, "--out", tmp_path / "tiled", "--tile", 24) == 0
    assert max(max(shape) for shape in net.images) <= 24 + 2 * net.context_px
    assert contents(tmp_path / "whole") == contents(tmp_path / "tiled")


def test_a_network_for_gray_images(folder, tmp_path, monkeypatch):
    net = ThresholdNet(channels=1)  # noqa: F821
    monkeypatch.setattr(segment, "load_net", lambda arguments: net)
    assert run(folder, "--out", tmp_path / "out") == 0
    assert {shape[2] for shape in net.images} == {1}


def test_options_reach_the_results(tmp_path, net, capsys):
    deep = np.full((40, 40), 1000, np.uint16)
    deep[10:20, 10:20] = 2000
    deep[30, 30] = 2000
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", deep)
    for arguments, expected in (
        (["--min-area", 1], 2),
        (["--min-area", 2], 1),
        (["--min-area", 101], 0),
        (["--sixteen-bit", "full"], 0),
    ):
        assert run(tmp_path / "in", "--out", tmp_path / "out", "--json", *arguments) == 0
        summary = summary_of(capsys)
        assert summary["nuclei"] == expected
        assert summary["images"]["done"] == 1, "changed options must not use old results"


def test_touching_nuclei_are_told_apart_as_asked(tmp_path, net, capsys):
    """Two squares of one class with an edge of one column in each, which the network sees."""
    image = np.zeros((30, 60, 3), np.uint8)
    image[5:25, 10:50] = 150
    image[5:25, 29:31] = 151
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "pair.png")
    digests = set()
    for arguments, nuclei, by in (
        ((), 2, "edges"),
        (("--separate", "edges"), None, "edges"),
        (("--separate", "no"), 1, "no"),
        (("--separate", "probability"), 1, "probability"),
        # The network is never as sure as that, so there is nothing to begin with.
        (("--interior-probability", "0.99"), 1, "edges"),
        (("--interior-probability", "0.3,0.5"), 2, "edges"),
        (("--interior-probability", "0.3,0.5", "--tile", "16", "--overwrite"), 2, "edges"),
    ):
        given = () if "--interior-probability" in arguments else ("--interior-probability", "0.5")
        assert run(tmp_path / "in", "--out", tmp_path / "out", "--json", *given, *arguments) == 0
        summary = summary_of(capsys)
        assert summary["separation"]["by"] == by
        if nuclei is None:  # asked for what was chosen before
            assert summary["images"]["skipped"] == 1
            continue
        assert summary["images"]["done"] == 1, "changed options must not use old results"
        assert summary["nuclei"] == nuclei
        instances = tifffile.imread(tmp_path / "out" / "pair_nuclei.tif")
        expected = np.zeros((30, 60))
        expected[5:25, 10:50] = 1
        expected[5:25, 30:50] = nuclei
        np.testing.assert_array_equal(instances, expected)
        digests.add((tmp_path / "out" / "pair.geojson").read_bytes())
    assert len(digests) == 2


def test_edges_of_a_network_without_them_are_refused(folder, tmp_path, net, monkeypatch, capsys):
    monkeypatch.setattr(net, "has_edges", False)
    assert run(folder, "--out", tmp_path / "out", "--separate", "edges") == 1
    assert capsys.readouterr().err.startswith(
        "dssnet_fast.segment: error: separate: these weights have no edge head"
    )


@pytest.mark.parametrize("value", ["", "x", "0", "0.5,0.5", "2", "nan"])
def test_interior_probabilities_that_are_none(folder, tmp_path, net, value, capsys):
    with pytest.raises(SystemExit) as stop:
        run(folder, "--out", tmp_path / "out", "--interior-probability", value)
    assert stop.value.code == 2
    assert "must be increasing numbers above 0 and up to 1" in capsys.readouterr().err


# --- going on -------------------------------------------------------------------------------------


def test_a_second_run_skips_what_is_done(folder, tmp_path, net, capsys):
    out = tmp_path / "out"
    assert run(folder, "--out", out) == 0
    first = contents(out)
    net.images.clear()
    capsys.readouterr()
    assert run(folder, "--out", out, "--json") == 0
    assert summary_of(capsys)["images"] == {"done": 0, "skipped": 6, "failed": 0}
    assert net.images == []
    assert contents(out) == first
    assert run(folder, "--out", out, "--overwrite", "--json") == 0
    assert summary_of(capsys)["images"]["done"] == 6
    assert len(net.images) == 6
    assert contents(out) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, out, net: save(folder / "image1.png", 77),
        lambda folder, out, net: (out / "image1_overlay.png").unlink(),
        lambda folder, out, net: (out / ".dssnet_fast" / "image1.json").unlink(),
        lambda folder, out, net: (out / ".dssnet_fast" / "image1.json").write_text('{"rows": '),
        lambda folder, out, net: (out / ".dssnet_fast" / "image1.json").write_text("[1]"),
    ],
)
def test_one_changed_image_is_redone(folder, tmp_path, net, capsys, change):
    out = tmp_path / "out"
    assert run(folder, "--out", out) == 0
    change(folder, out, net)
    capsys.readouterr()
    assert run(folder, "--out", out, "--json") == 0
    assert summary_of(capsys)["images"] == {"done": 1, "skipped": 5, "failed": 0}
    assert run(folder, "--out", tmp_path / "fresh") == 0
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("what", ["digest", "backend_name", "precision", "class_names"])
def test_another_network_redoes_everything(folder, tmp_path, net, capsys, monkeypatch, what):
    assert run(folder, "--out", tmp_path / "out") == 0
    other = ("a", "b", "c") if what == "class_names" else "other"
    monkeypatch.setattr(net, what, other, raising=True)
    capsys.readouterr()
    assert run(folder, "--out", tmp_path / "out", "--json") == 0
    assert summary_of(capsys)["images"]["done"] == 6


def test_no_old_record_vouches_for_results_that_are_being_redone(
    folder, tmp_path, net, monkeypatch
):
    out = tmp_path / "out"
    assert run(folder / "image1.png", "--out", out) == 0
    sane, left = net.decide, []

    def decide(image, core, edges):
        left.extend(path for path in out.rglob("image1*") if path.is_file())
        return sane(image, core, edges)

    monkeypatch.setattr(net, "decide", decide)
    assert run(folder / "image1.png", "--out", out, "--min-area", "3") == 0
    assert left == []
    assert len(list(out.rglob("image1*"))) == 5


def test_an_image_that_breaks_loses_its_results(folder, tmp_path, net):
    out = tmp_path / "out"
    assert run(folder, "--out", out) == 0
    (folder / "image1.png").write_bytes(b"")
    assert run(folder, "--out", out) == 1
    assert not list(out.rglob("image1*"))
    assert b"image1.png" not in (out / "nuclei.csv").read_bytes()


def start(folder, out, seconds):
    script = THRESHOLD_NET + (
        "\nimport sys\nfrom dssnet_fast import segment\n"
        f"segment.load_net = lambda arguments: ThresholdNet(seconds={seconds})\n"
        f"sys.exit(segment.main([{str(folder)!r}, '--out', {str(out)!r}]))\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_to_the_same_result(folder, tmp_path, net, capsys):
    for number in range(6, 16):
        save(folder / f"image{number}.png", number)
    out = tmp_path / "out"
    process = start(folder, out, seconds=0.15)
    records = out / ".dssnet_fast"
    deadline = time.monotonic() + 60
    # Not the temporary files beside them, which begin with a dot.
    while len(list(records.glob("[!.]*.json")) if records.is_dir() else ()) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (out / "nuclei.csv").exists()
    # What a kill at the worst moment leaves; other hidden files are none of our business.
    (out / ".image15_labels.abcd_123.part.png").write_bytes(b"half")
    (out / ".nuclei.abcd_123.part.csv").write_bytes(b"half")
    (out / "image15_labels.png").write_bytes(b"not of this run")
    (out / ".keep.abcd_123.part.png").write_bytes(b"mine")

    assert run(folder, "--out", out, "--json") == 0
    images = summary_of(capsys)["images"]
    assert 3 <= images["skipped"] < 16
    assert images["done"] == 16 - images["skipped"] > 0
    (out / ".keep.abcd_123.part.png").unlink()
    assert run(folder, "--out", tmp_path / "fresh") == 0
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_run_that_is_interrupted_goes_on(folder, tmp_path, net, monkeypatch):
    sane, lock, calls = net.decide, threading.Lock(), []

    def decide(image, core, edges):
        with lock:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return sane(image, core, edges)

    monkeypatch.setattr(net, "decide", decide)
    assert run(folder, "--out", tmp_path / "out") == 130
    assert not (tmp_path / "out" / "nuclei.csv").exists()
    assert run(folder, "--out", tmp_path / "out") == 0
    monkeypatch.setattr(net, "decide", sane)
    assert run(folder, "--out", tmp_path / "fresh") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


# --- names ----------------------------------------------------------------------------------------


def names_of(*paths):
    return [(job.label, job.name) for job in jobs.make_jobs([Path(path) for path in paths])]


def test_names_of_results():
    assert names_of("x/a.png", "x/b.tif") == [("a.png", "a"), ("b.tif", "b")]
    assert names_of("x/a.png", "x/a.jpg", "x/b.png") == [
        ("a.png", "a.png"),
        ("a.jpg", "a.jpg"),
        ("b.png", "b"),
    ]
    assert names_of("p1/a.png", "p2/a.png") == [
        ("p1/a.png", "p1_a"),
        ("p2/a.png", "p2_a"),
    ]
    assert names_of("x/p1/a.png", "y/p1/a.png") == [
        ("x/p1/a.png", "x_p1_a"),
        ("y/p1/a.png", "y_p1_a"),
    ]
    assert [name for _, name in names_of("p/a.png", "p/A.tif", "q/a.png")] == [
        "p_a.png",
        "p_A.tif",
        "q_a.png",
    ]


def test_names_that_only_differ_by_case_are_told_apart_or_refused():
    from dssnet_fast.python_ref.errors import InputError

    with pytest.raises(InputError, match="rename one, or segment them into different"):
        names_of("p/a.png", "q/a.png", "z/p_a.png")
    with pytest.raises(InputError, match="results of the same name"):
        names_of("same/A.png", "same/a.png")


def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path, net):
    for number, name in enumerate(("p1/a.png", "p2/a.png", "p1/b.png", "p1/b.bmp")):
        save(tmp_path / name, number)
    out = tmp_path / "out"
    assert run(tmp_path / "p1", tmp_path / "p2", "--out", out) == 0
    rows = list(csv.DictReader((out / "nuclei.csv").open(newline="")))
    assert {row["image"] for row in rows} == {"p1/a.png", "p2/a.png", "b.png", "b.bmp"}
    for name, number in (("p1_a", 0), ("p2_a", 1), ("b.png", 2), ("b.bmp", 3)):
        labels = np.asarray(Image.open(out / f"{name}_labels.png"))
        np.testing.assert_array_equal(labels > 0, picture(number).mean(axis=2) > 100)


# --- where results go -----------------------------------------------------------------------------


def error_of(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("dssnet_fast.segment: error: ")
    return line


def test_out_inside_the_input_folder_is_not_read(folder, net, capsys):
    out = folder / "out"
    for _ in range(2):
        assert run(folder, *sorted(folder.iterdir()), "--out", out, "--json") == 0
        assert len(summary_of(capsys)["results"]) == 6


def test_out_must_not_be_the_input_folder(folder, net, capsys):
    before = contents(folder)
    for paths in ([folder], sorted(folder.iterdir())):
        assert run(*paths, "--out", folder) == 1
        assert "must be another folder than that of the inputs" in error_of(capsys)
    assert contents(folder) == before


def test_out_that_is_a_file(folder, tmp_path, net, capsys):
    (tmp_path / "file").write_text("x")
    assert run(folder, "--out", tmp_path / "file") == 1
    assert "is a file; name a folder" in error_of(capsys)
    assert run(folder, "--out", tmp_path / "file" / "out") == 1
    assert "Not a directory" in error_of(capsys)


def test_a_folder_that_cannot_be_written(folder, tmp_path, net, capsys, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(folder, "--out", tmp_path / "out") == 1
    assert "Permission denied" in error_of(capsys)


@pytest.mark.parametrize("where", ["_labels.png", "_overlay.png", ".json", ".csv"])
def test_a_full_disk_stops_the_run_with_one_line(folder, tmp_path, net, capsys, monkeypatch, where):
    out = tmp_path / "out"
    real = os.fsync
    whole = tmp_path / "whole"
    assert run(folder, "--out", whole, "--quiet") == 0

    def fsync(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        if (
            name.startswith(str(out))
            and name.endswith(Path(where).suffix)
            and (("_labels" in name) == ("_labels" in where))
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    assert run(folder, "--out", out) == 1
    assert "No space left on device" in error_of(capsys)
    left = contents(out)
    assert not [name for name in left if ".part" in name.name]
    assert all(contents(whole)[name] == data for name, data in left.items())
    if where != ".csv":
        assert left == {}
    monkeypatch.setattr(os, "fsync", real)
    assert run(folder, "--out", out) == 0
    assert contents(out) == contents(whole)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png"], "--out"),
        (["--out", "y"], "path"),
        (["x.png", "--out", "y", "--tile", "100"], "must be a positive multiple of 8, got 100"),
        (["x.png", "--out", "y", "--tile", "0"], "must be a positive multiple of 8"),
        (["x.png", "--out", "y", "--min-area", "-1"], "expected one argument|at least 0"),
        (["x.png", "--out", "y", "--min-area", "1.5"], "must be a whole number"),
        (["x.png", "--out", "y", "--sixteen-bit", "max"], "invalid choice"),
        (["x.png", "--out", "y", "--precision", "int7"], "invalid choice"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_missing_input_is_one_line(tmp_path, net, capsys):
    assert run(tmp_path / "no.png", "--out", tmp_path / "out") == 1
    assert "no such file or folder" in error_of(capsys)
    assert not (tmp_path / "out").exists()
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 1
    assert "the folder has no image" in error_of(capsys)


def test_help_needs_no_heavy_import():
    script = (
        "import sys\nfrom dssnet_fast import segment\n"
        "try: segment.main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'skimage', 'PIL', 'tifffile', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--sixteen-bit" in done.stdout


def test_large_images_wait_for_room():
    room = batch.Room(100)
    inside, most, lock = [], [], threading.Lock()

    def work(pixels):
        with room.for_pixels(pixels):
            with lock:
                inside.append(pixels)
                most.append(list(inside))
            time.sleep(0.01)
            with lock:
                inside.remove(pixels)

    threads = [threading.Thread(target=work, args=(n,)) for n in (30, 60, 500, 40, 100, 70, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(most) == 7
    assert all(sum(together) <= 100 or len(together) == 1 for together in most)


def test_result_endings_are_the_ones_written():
    assert len(jobs.RESULTS) == 4
    assert len(outputs.TABLE_COLUMNS) == 10
