"""The viewer's server: every address, and everything that must not be reached."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from PIL import Image

from dssnet_fast.nuclei import border, find_nuclei
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.slide import Level, UnreadableRegion
from dssnet_fast.tiling import Box
from dssnet_fast.view.deepzoom import DeepZoom
from dssnet_fast.view.label_map import LabelMap
from dssnet_fast.view.library import Library
from dssnet_fast.view.memory import Memory, Shelf
from dssnet_fast.view.nuclei_picture import FINEST
from dssnet_fast.view.nucleus_table import read_polygon
from dssnet_fast.view.server import make_server
from dssnet_fast.view.slide_picture import SlidePicture
from dssnet_fast.view.summary import read_result
from view_folder import COLOURS, REPORT, draw_slide, write_results, write_slide

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 1330, 710
ORIGIN = (40, 30)


class Site:
    """A served folder and what it was made of."""

    def __init__(self, folder: Path, slides: Path | None = None):
        self.library = Library(folder, slides)
        self.server = make_server(self.library, 0)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def ask(self, target: str, method: str = "GET", host: str | None = None, **headers: str):
        """Status, headers and body; the target goes out as it is."""
        port = self.server.server_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.putrequest(method, target, skip_host=True)
            connection.putheader("Host", f"127.0.0.1:{port}" if host is None else host)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, target: str) -> bytes:
        status, _, body = self.ask(target)
        assert status == 200, (target, status, body[:200])
        return body

    def json(self, target: str):
        return json.loads(self.get(target))

    def picture(self, target: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.get(target))))

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)
        self.library.close()


@pytest.fixture(scope="module")
def drawn():
    return draw_slide(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, drawn):
    """Slides `one` (origin and small row groups), `half` (analysed at half size) and `gone`."""
    base = tmp_path_factory.mktemp("view")
    out = base / "out"
    out.mkdir()
    image, labels = drawn
    slide = write_slide(base / "slide one.tiff", image)
    size = (WIDTH, HEIGHT)
    write_results(out, "one", slide, labels, slide_size=size, origin=ORIGIN, rows_in_a_group=50)
    write_results(out, "half", slide, labels[::2, ::2], slide_size=size, scale=2.0, mpp=0.5)
    write_results(out, "gone & 1-2", base / "x.svs", labels, slide_size=size)
    (base / "secret.txt").write_text("secret")
    return out


@pytest.fixture(scope="module")
def site(folder):
    made = Site(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def nuclei(drawn):
    return find_nuclei(drawn[1], np.ones(drawn[1].shape, np.float32))


# --- Pages ------------------------------------------------------------------------------------


def test_the_index_shows_every_slide_and_escapes_names(site):
    page = site.get("/").decode()
    assert page.count('<article class="card">') == 3
    assert "gone &amp; 1-2" in page
    assert "gone & 1-2" not in page
    assert "/slides/gone%20%26%201-2/" in page
    assert page.count("is not there") == 1


def test_every_address_that_pages_name_is_there(site):
    for page in ("/", "/slides/one/", "/slides/gone%20%26%201-2/"):
        text = site.get(page).decode()
        for address in re.findall(r'(?:src|href)="(/[^"]*)"', text):
            assert site.ask(address.replace("&amp;", "&"))[0] == 200, address
    for script in ("viewer", "gallery", "nucleus", "scale_bar"):
        for name in re.findall(r'from "\./([^"]+)"', site.get(f"/static/{script}.js").decode()):
            assert site.ask(f"/static/{name}")[1]["Content-Type"].startswith("text/javascript")


def test_summary_report_and_view(site, folder):
    assert site.json("/slides/one/summary.json") == json.loads((folder / "one.json").read_text())
    status, headers, body = site.ask("/slides/one/report")
    assert (status, body.decode()) == (200, REPORT)
    # Without allow-same-origin: a report's script is a stranger here.
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts; ")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    view = site.json("/slides/one/view.json")
    assert view["problems"] == {}
    assert view["nuclei_size"] == [FINEST * WIDTH, FINEST * HEIGHT]


def test_a_name_without_slash_leads_to_the_page(site):
    status, headers, _ = site.ask("/slides/gone%20%26%201-2")
    assert (status, headers["Location"]) == (301, "/slides/gone%20%26%201-2/")


def test_headers_keep_others_out_and_json_fresh(site):
    for target, kept in (("/", False), ("/slides/one/summary.json", False),
                         ("/slides/one/slide/9/0_0.jpg", True), ("/nothing", False)):  # fmt: skip
        _, headers, _ = site.ask(target)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "http" not in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert ("max-age" in headers["Cache-Control"]) is kept
        assert ("no-store" in headers["Cache-Control"]) is not kept


def test_head_has_the_headers_of_get_and_no_body(site):
    for target in ("/", "/slides/one/slide/9/0_0.jpg", "/nothing"):
        status, headers, body = site.ask(target, "HEAD")
        again = site.ask(target)
        assert (status, headers["Content-Length"], body) == (again[0], str(len(again[2])), b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(site, method):
    status, headers, _ = site.ask("/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_connection_serves_many_requests(site):
    connection = http.client.HTTPConnection("127.0.0.1", site.server.server_port, timeout=20)
    for target in ("/", "/slides/one/view.json", "/nothing", "/slides/one/slide/9/0_0.jpg"):
        connection.request("GET", target)
        assert connection.getresponse().read()
    connection.close()


# --- What must not be reached -----------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil.example",
        "[::1]", "127.0.0.1:x",
    ],
)  # fmt: skip
def test_other_hosts_get_nothing(site, host):
    assert site.ask("/", host=host)[0] == 403
    assert site.ask("/slides/one/summary.json", host=host)[0] == 403


def test_this_machine_gets_answers_whatever_the_port(site):
    """A port may be forwarded to another one."""
    for host in ("localhost", "localhost:9000", "127.0.0.1", "LOCALHOST:1"):
        assert site.ask("/", host=host)[0] == 200


def test_a_second_host_or_none_is_refused(site):
    for lines in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", site.server.server_port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + lines + b"Connection: close\r\n\r\n")
            assert connection.makefile("rb").readline().split()[1] == b"403"


def test_only_this_machine_is_listened_to(site):
    assert site.server.server_address[0] == "127.0.0.1"


TRAVERSALS = (
    "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/slides/../../secret.txt",
    "/slides/..%2f..%2fsecret.txt/", "/slides/one/../../secret.txt", "/static/../server.py",
    "/static/..%2fserver.py", "/static/%2e%2e%2fserver.py", "/static/openseadragon/../../server.py",
    "/static//etc/passwd", "//etc/passwd", "/slides//etc/passwd/summary.json",
    "/static/viewer.html",
    "/slides/%2fetc%2fpasswd/report", "/slides/one%00/", "/slides/one/report%00.html",
    "/slides/one/slide/..%2f9/0_0.jpg", "/slides/one/one.json", "/slides/one/files/one.parquet",
    "/slides/one/summary.json/", "/slides/ONE/", "/slides/one%2f", "/slides/%6fne/%2e%2e/",
    "/etc/passwd", "/static/", "/static", "/slides/", "/favicon.ico", "/one.json",
    "/..\\secret.txt",
    "/slides/one\\..\\half/", "/static/viewer.js/..", "/;/", "/./",
)  # fmt: skip


@pytest.mark.parametrize("target", TRAVERSALS)
def test_nothing_else_is_reached(site, target):
    status, _, body = site.ask(target)
    assert status in (400, 404), (target, body[:100])
    assert b"secret" not in body
    assert b"root:" not in body


@pytest.mark.parametrize(
    "target", ["http://evil.example/", "*", "secret.txt", "/%ff", "/slides/%c3/"]
)
def test_what_is_no_address_is_refused(site, target):
    assert site.ask(target)[0] == 400


@pytest.mark.parametrize(
    "target",
    [
        "slide/9/0_0.png", "slide/9/0_0.jpg.jpg", "slide/9/00", "slide/9/-1_0.jpg",
        "slide/9/1_0.jpg",
        "slide/11/3_0.jpg", "slide/11/0_2.jpg", "slide/12/0_0.jpg", "slide/99/0_0.jpg",
        "slide/9/9999999999_0.jpg", "nuclei/9/0_9.png", "nuclei/14/0_0.png", "nuclei/9/0_0.jpg",
        "nucleus/0", "nucleus/999999", "nucleus/999999999999", "slide/9/0_0\u0660.jpg", "nothing",
    ],
)  # fmt: skip
def test_tiles_and_nuclei_that_are_not(site, target):
    assert site.ask("/slides/one/" + quote(target, safe="/"))[0] == 404


@pytest.mark.parametrize(
    "target",
    [
        "slide/x/0_0.jpg", "slide/-1/0_0.jpg", "slide/1e1/0_0.jpg", "slide/9999999999/0_0.jpg",
        "nucleus/x", "nucleus/-1", "nucleus/1.0", "nucleus/9999999999999", "nucleus/%D9%A1",
        "at", "at?x=1", "at?x=nan&y=1", "at?x=inf&y=1", "at?x=1e9&y=1", "at?x=1&x=2&y=1",
        "at?x=&y=1", "at?x=99999999999&y=1", "at?x=0x1&y=1", "at?x=%D9%A1&y=1",
        "crop?x=1&y=1", "crop?x=1&y=1&size=0", "crop?x=1&y=1&size=100000", "crop?x=1&y=1&size=-5",
        "nuclei/9/0_0.png?hidden=x", "nuclei/9/0_0.png?hidden=1,,2", "nuclei/9/0_0.png?hidden=999",
        "nuclei/9/0_0.png?hidden=1&hidden=2", "at?" + "&".join(f"a{n}=1" for n in range(40)),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused(site, target):
    assert site.ask(f"/slides/one/{target}")[0] == 400


def test_a_request_that_is_none_is_answered_in_one_line(site):
    for sent in (
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n",
    ):
        with socket.create_connection(("127.0.0.1", site.server.server_port)) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        # A line that is no HTTP gets no headers either.
        head, _, body = answer.rpartition(b"\r\n\r\n")
        assert body.count(b"\n") == 1
        assert b"<" not in body
        assert not head or int(head.split(maxsplit=2)[1]) >= 400
    assert site.get("/")


# --- Tiles ------------------------------------------------------------------------------------


def test_tiles_of_the_finest_level_are_the_slide(site, drawn):
    image = drawn[0]
    pyramid = DeepZoom(WIDTH, HEIGHT)
    found = np.zeros_like(image)
    for row in range(2):
        for column in range(3):
            box = pyramid.box(pyramid.last, column, row)
            tile = site.picture(f"/slides/one/slide/{pyramid.last}/{column}_{row}.jpg")
            assert tile.shape == (box.height, box.width, 3)
            found[box.top : box.bottom, box.left : box.right] = tile
    difference = np.abs(found.astype(int) - image)
    assert difference.mean() < 8  # JPEG
    # Shifted by a px it would be more.
    assert difference.mean() < np.abs(np.roll(found, 1, 1).astype(int) - image).mean() - 1


class FlatSlide:
    """A stand-in for `Slide`: levels without noise, one of which may be broken."""

    def __init__(self, width, height, steps, broken=None):
        rows, columns = np.mgrid[:height, :width]
        # Gray, for JPEG blurs colours.
        gray = (columns / width + rows / height) * 255 / 2
        ramp = np.stack([gray] * 3, 2)
        self.images = [ramp[::step, ::step].astype(np.uint8) for step in steps]
        self.levels = tuple(
            Level(image.shape[1], image.shape[0], float(step))
            for image, step in zip(self.images, steps, strict=True)
        )
        self.broken = broken
        self.most = 0
        self.closed = False

    def read(self, level, box):
        whole = self.levels[level]
        assert 0 <= box.top < box.bottom <= whole.height
        assert 0 <= box.left < box.right <= whole.width
        self.most = max(self.most, box.height * box.width)
        if self.broken and box.left < self.broken < box.right:
            raise UnreadableRegion(Path("flat"), box, "broken")
        return self.images[level][box.top : box.bottom, box.left : box.right]

    def close(self):
        self.closed = True


@pytest.mark.parametrize("steps", [(1,), (1, 2, 4), (1, 4, 16)])
def test_every_level_shows_the_same_picture(steps):
    slide = FlatSlide(3001, 2203, steps)
    picture = SlidePicture(slide)
    pyramid = picture.pyramid
    # Levels of some px are mostly errors of JPEG.
    for level in range(5, pyramid.last + 1):
        width, height = pyramid.size(level)
        found = np.zeros((height, width, 3))
        for row in range(-(-height // 512)):
            for column in range(-(-width // 512)):
                tile = np.asarray(Image.open(io.BytesIO(picture.tile(level, column, row))))
                found[row * 512 :, column * 512 :][: tile.shape[0], : tile.shape[1]] = tile
        step = pyramid.step(level)
        rows, columns = (np.mgrid[:height, :width] + 0.5) * step
        expected = (columns / 3001 + rows / 2203) * 255 / 2
        # The last row and column may be narrower. A level of every n-th px is off by n / 2 of it.
        difference = np.abs(found[:, :, 0] - expected)[:-1, :-1].max()
        assert difference < 4 + max(step, steps[-1]) / 2 * (1 / 3001 + 1 / 2203) * 255 / 2
    # However few levels there are, only so much is read at once.
    assert slide.most <= (4 * 512 * 1.02 + 10) ** 2


def test_what_cannot_be_read_is_hatched_and_the_rest_is_not():
    picture = SlidePicture(FlatSlide(1500, 600, (1,), broken=700))
    last = picture.pyramid.last
    tiles = [
        np.asarray(Image.open(io.BytesIO(picture.tile(last, column, 0)))) for column in range(3)
    ]
    coloured = [(np.ptp(tile.astype(int), axis=2) > 40).mean() for tile in tiles]
    assert coloured[0] == coloured[2] == 0
    assert coloured[1] > 0.05
    assert tiles[0].mean() < tiles[2].mean() < 240


def test_crops_are_centred_and_padded(site, drawn):
    image = drawn[0]
    x, y = 500, 300  # outputs
    crop = site.picture(f"/slides/one/crop?x={x}&y={y}&size=192")
    assert crop.shape == (192, 192, 3)
    top, left = y + ORIGIN[1] - 96, x + ORIGIN[0] - 96
    difference = np.abs(crop.astype(int) - image[top : top + 192, left : left + 192])
    assert difference.mean() < 8
    corner = site.picture(f"/slides/one/crop?x={-ORIGIN[0]}&y={-ORIGIN[1]}&size=100.5")
    assert corner[:90, :90].std() < 2
    assert corner[100:, 100:].std() > 2
    outside = site.picture("/slides/one/crop?x=-5000&y=-5000&size=8192")
    assert outside.shape == (192, 192, 3)


def overlay(site, name, level, size, query=""):
    width, height = size
    found = np.zeros((height, width, 4), np.uint8)
    for row in range(-(-height // 512)):
        for column in range(-(-width // 512)):
            tile = site.picture(f"/slides/{name}/nuclei/{level}/{column}_{row}.png{query}")
            found[row * 512 :, column * 512 :][: tile.shape[0], : tile.shape[1]] = tile
    return found


def test_close_by_nuclei_are_outlined_in_their_colours(site, drawn, nuclei):
    pyramid = DeepZoom(WIDTH * FINEST, HEIGHT * FINEST)
    found = overlay(site, "one", pyramid.last - 2, (WIDTH, HEIGHT))
    line = border(nuclei.instances)
    line |= border(np.where(line, 0, nuclei.instances))
    assert ((found[:, :, 3] == 255) == line).all()
    assert (found[~line] == 0).all()
    assert (found[line][:, :3] == np.array(COLOURS, np.uint8)[drawn[1][line]]).all()


def test_enlarged_outlines_are_those_of_enlarged_nuclei(site, nuclei):
    pyramid = DeepZoom(WIDTH * FINEST, HEIGHT * FINEST)
    found = overlay(site, "one", pyramid.last - 1, (2 * WIDTH, 2 * HEIGHT))
    enlarged = nuclei.instances.repeat(2, 0).repeat(2, 1)
    line = border(enlarged)
    line |= border(np.where(line, 0, enlarged))
    assert ((found[:, :, 3] > 0) == line).all()


def test_from_afar_nuclei_are_filled(site, nuclei):
    pyramid = DeepZoom(WIDTH * FINEST, HEIGHT * FINEST)
    for level, step in ((pyramid.last - 4, 4), (pyramid.last - 6, 16)):
        width, height = pyramid.size(level)
        found = overlay(site, "one", level, (width, height))
        expected = nuclei.instances[::step, ::step] > 0
        assert ((found[:, :, 3] > 0) == expected).all()
        assert set(np.unique(found[:, :, 3])) == {0, 170}


def test_hidden_classes_are_left_out(site, drawn, nuclei):
    level = DeepZoom(WIDTH * FINEST, HEIGHT * FINEST).last - 4
    size = -(-WIDTH // 4), -(-HEIGHT // 4)
    for hidden, shown in (("1", (2,)), ("2", (1,)), ("1,2", ()), ("", (1, 2))):
        found = overlay(site, "one", level, size, f"?hidden={hidden}")
        expected = np.isin(np.where(nuclei.instances > 0, drawn[1], 0), shown)[::4, ::4]
        assert ((found[:, :, 3] > 0) == expected).all()


# --- Nuclei -----------------------------------------------------------------------------------


def test_the_nucleus_at_a_point(site, nuclei, folder):
    rows = pq.read_table(folder / "one.parquet").to_pylist()
    random = np.random.default_rng(3)
    # The ends of row groups among them.
    for number in [1, 50, 51, len(nuclei), *random.integers(1, len(nuclei), 9).tolist()]:
        row, column = map(int, np.argwhere(nuclei.instances == number)[0])
        # Both ends of the first px of the nucleus.
        for part in (0, 0.99):
            x, y = column - ORIGIN[0] + part, row - ORIGIN[1] + part
            found = site.json(f"/slides/one/at?x={x:.2f}&y={y:.2f}")["nucleus"]
            expected = dict(rows[number - 1])
            polygon = shapely.from_wkb(expected.pop("geometry"))
            outline = found.pop("outline")
            assert found == expected
            assert shapely.equals(shapely.Polygon(outline[0], outline[1:]), polygon)
        by_number = site.json(f"/slides/one/nucleus/{number}")["nucleus"]
        assert by_number["outline"] == outline


def test_points_without_a_nucleus(site, nuclei):
    row, column = map(int, np.argwhere(nuclei.instances == 0)[0])
    target = f"/slides/one/at?x={column - ORIGIN[0]}&y={row - ORIGIN[1]}"
    assert site.json(target) == {"nucleus": None}
    for x, y in ((-41, 0), (0, -31), (WIDTH, 0), (0, HEIGHT), (1e9, 1e9)):
        assert site.json(f"/slides/one/at?x={x:.0f}&y={y:.0f}") == {"nucleus": None}


def test_a_scaled_analysis_is_asked_in_slide_px(site, folder):
    ids = tifffile.imread(folder / "half_nuclei.ome.tif")
    row, column = map(int, np.argwhere(ids == 7)[0])
    found = site.json(f"/slides/half/at?x={column * 2 + 1.5}&y={row * 2 + 1.5}")
    assert found["nucleus"]["id"] == 7


def test_wkb_is_read_as_shapely_reads_it():
    ring = [(0, 0), (9, 0), (9, 9), (0, 9), (0, 0)]
    hole = [(2.5, 2), (4, 2), (4, 4), (2.5, 2)]
    for order in (0, 1):
        wkb = shapely.to_wkb(shapely.Polygon(ring, [hole]), byte_order=order)
        assert read_polygon(wkb) == [[list(p) for p in ring], [list(p) for p in hole]]
    for bad in (b"", b"\1", wkb[:-1], wkb[:9], shapely.to_wkb(shapely.Point(1, 2)),
                wkb.replace(struct.pack("<d", 2.5), struct.pack("<d", np.nan))):  # fmt: skip
        with pytest.raises((ValueError, struct.error)):
            read_polygon(bad)


# --- Missing and damaged ----------------------------------------------------------------------


def test_without_the_slide_the_rest_works(site):
    base = "/slides/gone%20%26%201-2/"
    problems = site.json(base + "view.json")["problems"]
    assert set(problems) == {"slide"}
    assert "x.svs" in problems["slide"]
    assert "--slides" in problems["slide"]
    for target in ("slide/9/0_0.jpg", "crop?x=9&y=9&size=50"):
        assert (np.ptp(site.picture(base + target), axis=(0, 1)) == 0).all()
    assert site.picture(base + "nuclei/9/0_0.png").any()
    assert site.json(base + "nucleus/1")["nucleus"]["id"] == 1


def test_a_slide_that_moved_is_found(folder, tmp_path, drawn):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    summary = json.loads((out / "one.json").read_text())
    for recorded in ("/nowhere/slide one.tiff", r"C:\scans\slide one.tiff"):
        summary["slide"] = recorded
        (out / "one.json").write_text(json.dumps(summary))
        made = Site(out, folder.parent)
        try:
            assert made.json("/slides/one/view.json")["problems"] == {}
            assert made.picture("/slides/one/slide/9/0_0.jpg").std() > 10
        finally:
            made.close()
    write_slide(tmp_path / "slide one.tiff", drawn[0][:600])
    made = Site(out, tmp_path)
    try:
        assert "1330 x 600 px" in made.json("/slides/one/view.json")["problems"]["slide"]
    finally:
        made.close()


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("kind", "part", "target"),
    [
        ("one_nuclei.ome.tif", "nuclei", "nuclei/9/0_0.png"),
        ("one_labels.ome.tif", "nuclei", "at?x=1&y=1"),
        ("one.parquet", "table", "nucleus/1"),
    ],
)
@pytest.mark.parametrize("harm", ["gone", "empty", "noise", "other"])
def test_damaged_files_are_named_and_the_rest_works(copy, kind, part, target, harm):
    path = copy / kind
    if harm == "gone":
        path.unlink()
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(9000))
    elif part == "nuclei":
        tifffile.imwrite(path, np.zeros((9, 9), np.uint8))
    else:
        pq.write_table(pq.read_table(path).slice(0, 5), path)
    made = Site(copy)
    try:
        problems = made.json("/slides/one/view.json")["problems"]
        assert set(problems) == {part}
        assert kind in problems[part]
        assert "\n" not in problems[part]
        status, _, body = made.ask(f"/slides/one/{target}")
        assert status == 500
        assert kind in body.decode()
        assert made.picture("/slides/one/slide/9/0_0.jpg").std() > 10
        assert made.get("/")
    finally:
        made.close()


def test_a_damaged_tile_spoils_only_itself(copy):
    path = copy / "one_nuclei.ome.tif"
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[0].pages[0]
        start, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    made = Site(copy)
    try:
        last = DeepZoom(WIDTH * FINEST, HEIGHT * FINEST).last
        status, _, body = made.ask(f"/slides/one/nuclei/{last - 2}/0_0.png")
        assert status == 500
        assert b"one_nuclei.ome.tif: tile 0 is damaged" in body
        assert made.picture(f"/slides/one/nuclei/{last - 2}/2_0.png").any()
    finally:
        made.close()


def change(folder: Path, **changed: object) -> Path:
    path = folder / "one.json"
    summary = json.loads(path.read_text())
    summary.update(changed)
    path.write_text(json.dumps(summary))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt", "/etc/passwd", "a/../../secret.txt", "..\\x", "C:\\x", "\\\\host\\x",
        "", "a\0b", 7, None, ["one.parquet"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["report", "parquet"])
def test_summaries_that_name_files_elsewhere_are_refused(copy, kind, name):
    summary = json.loads((copy / "one.json").read_text())
    change(copy, files={**summary["files"], kind: name})
    library = Library(copy)
    assert "one" not in library.results
    assert len(library.refused) == 1
    assert library.refused[0].startswith("one.json: ")


def test_links_that_leave_the_folder_are_refused(copy):
    (copy / "one_report.html").unlink()
    (copy / "one_report.html").symlink_to(copy.parent / "elsewhere.html")
    (copy.parent / "elsewhere.html").write_text("secret")
    shutil.move(copy / "half.json", copy.parent / "half.json")
    (copy / "half.json").symlink_to(copy.parent / "half.json")
    (copy / "loop.json").symlink_to("loop.json")
    library = Library(copy)
    assert set(library.results) == {"gone & 1-2"}
    assert [reason.split(":")[0] for reason in library.refused] == [
        "half.json", "loop.json", "one.json",
    ]  # fmt: skip


def test_links_within_the_folder_and_to_it_are_followed(copy):
    shutil.move(copy / "one_report.html", copy / "real.html")
    (copy / "one_report.html").symlink_to("real.html")
    (copy.parent / "link").symlink_to(copy)
    library = Library(copy.parent / "link")
    assert set(library.results) == {"one", "half", "gone & 1-2"}
    assert "report" in library.results["one"].files


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2}, {"version": "1"}, {"name": "two"}, {"name": "../one"}, {"slide": 3},
        {"slide_size": [0, 5]}, {"slide_size": [5]}, {"slide_size": "big"}, {"scale": 0},
        {"scale": float("nan")}, {"scale": float("inf")}, {"scale": True}, {"origin": [0.5, 0]},
        {"analysis_size": [2**40, 1]}, {"slide_mpp": None}, {"analysis_mpp": -1},
        {"class_names": ["background"]}, {"class_names": "ab"}, {"class_colours": [[0, 0, 0]]},
        {"class_colours": [[0, 0, 0], [0, 0, 256], [0, 0, 0]]}, {"nuclei": -1}, {"nuclei": 1.5},
        {"nuclei_per_class": {"a": "b"}}, {"unreadable": [[1, 2, 3]]}, {"gallery": []},
        {"gallery": {"largest": [{"id": 1}]}},
        {"gallery": {"a": [{"id": 1, "class": 3, "x": 1, "y": 1, "area_um2": 1, "mean_od": 1}]}},
        {"files": []}, {"provenance": 1},
        {"analysed_mm2": "1"}, {"provenance": {"a": float("nan")}}, {"reader": "\ud800"},
        {"files": {"report": "a" * 5000}},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_summaries_are_refused_and_named(copy, changed):
    path = change(copy, **changed)
    with pytest.raises(InputError, match=r"^one\.json: ") as caught:
        read_result(path, None)
    assert "\n" not in str(caught.value)


def test_names_that_are_no_text_are_told_as_well_as_possible(copy):
    try:
        (copy / os.fsdecode(b"\xff.json")).write_text("{")
    except OSError:
        pytest.skip("this file system has no such names")
    change(copy, slide="/" + "a" * 5000)
    made = Site(copy)
    try:
        page = made.get("/").decode()
        assert "?.json: not a JSON file" in page
        assert page.count("is not there") == 2
    finally:
        made.close()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_named_and_other_json_is_none_of_ours(copy, content):
    (copy / "bad.json").write_bytes(content)
    for name, text in (("other", '{"a": 1}'), ("list", "[]"), (".hidden", "{")):
        (copy / f"{name}.json").write_text(text)
    library = Library(copy)
    assert set(library.results) == {"one", "half", "gone & 1-2"}
    assert [reason.split(":")[0] for reason in library.refused] == ["bad.json"]


def test_new_slides_and_new_results_are_seen(copy, drawn):
    made = Site(copy)
    try:
        before = made.json("/slides/one/view.json")["stamp"]
        assert made.ask("/slides/two/")[0] == 404
        slide = copy.parent / "two.tiff"
        write_slide(slide, drawn[0])
        write_results(copy, "two", slide, drawn[1] * 0, slide_size=(WIDTH, HEIGHT))
        write_results(copy, "one", slide, drawn[1] // 2, slide_size=(WIDTH, HEIGHT))
        assert b"/slides/two/" in made.get("/")
        assert made.json("/slides/two/view.json")["problems"] == {}
        assert not made.picture("/slides/two/nuclei/9/0_0.png").any()
        after = made.json("/slides/one/view.json")
        assert after["stamp"] != before
        assert after["problems"] == {}
    finally:
        made.close()


# --- Parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{"tile": (64, 128)}, {"rowsperstrip": 7}])
@pytest.mark.parametrize("steps", [(1,), (1, 2, 4), (1, 3)])
def test_maps_are_read_in_parts_as_tifffile_reads_them_whole(tmp_path, layout, steps):
    random = np.random.default_rng(1)
    image = random.integers(0, 2**32, (203, 311), np.uint32)
    path = tmp_path / "map.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(image, compression="zlib", subifds=len(steps) - 1, metadata=None, **layout)
        for step in steps[1:]:
            file.write(image[::step, ::step], compression="zlib", metadata=None, **layout)
    with tifffile.TiffFile(path) as file:
        assert len(file.series[0].levels) == len(steps)
    made = LabelMap(path)
    for step in (1, 2, 4, 8, 64):
        reduced = np.pad(image[::step, ::step], 5)
        height, width = (side - 10 for side in reduced.shape)
        for _ in range(6):
            top, bottom = np.sort(random.integers(-5, height + 6, 2)).tolist()
            left, right = np.sort(random.integers(-5, width + 6, 2)).tolist()
            expected = reduced[top + 5 : bottom + 5, left + 5 : right + 5]
            found = made.read(step, Box(top, left, bottom, right))
            assert found.shape == expected.shape
            assert (found == expected).all()
    made.close()


def test_deepzoom_tiles_cover_each_level_once():
    for width, height in ((1, 1), (512, 512), (513, 1), (5000, 1234)):
        pyramid = DeepZoom(width, height)
        assert pyramid.size(pyramid.last) == (width, height)
        assert pyramid.size(0) == (1, 1)
        for level in range(pyramid.last + 1):
            across, down = pyramid.size(level)
            seen = np.zeros((down, across), int)
            for row in range(12):
                for column in range(12):
                    if (box := pyramid.box(level, column, row)) is not None:
                        seen[box.top : box.bottom, box.left : box.right] += 1
            assert (seen == 1).all()
        assert pyramid.box(pyramid.last + 1, 0, 0) is None
        assert pyramid.box(-1, 0, 0) is None


def test_memory_keeps_what_was_used_last():
    memory = Memory(10, len)
    made = []

    def get(key, size):
        return memory.get(key, lambda: made.append(key) or "x" * size)

    get("a", 4), get("b", 4), get("a", 4), get("c", 4), get("a", 4), get("b", 4)
    assert made == ["a", "b", "c", "b"]
    assert len(get("large", 50)) == 50
    assert len(get("large", 50)) == 50
    assert made.count("large") == 2


def test_nothing_is_closed_while_it_is_used():
    class Thing:
        closed = False

        def close(self):
            assert not self.closed
            self.closed = True

    shelf = Shelf(1)
    with shelf.use("a", Thing) as a:
        with shelf.use("b", Thing) as b, shelf.use("a", Thing) as other:
            assert other is not a
            assert not a.closed
        assert not a.closed
        assert b.closed
    assert a.closed
    shelf.close()
    assert other.closed


def test_many_at_once_get_what_one_gets(site):
    targets = [
        *(f"/slides/one/slide/10/{column}_{row}.jpg" for column in range(2) for row in range(1)),
        *(f"/slides/one/nuclei/12/{column}_{row}.png" for column in range(5) for row in range(3)),
        *(f"/slides/half/nucleus/{number}" for number in range(1, 120, 9)),
        *(f"/slides/one/nucleus/{number}" for number in range(1, 160, 9)),
        "/", "/slides/one/view.json", "/slides/gone%20%26%201-2/crop?x=5&y=5&size=9",
    ]  # fmt: skip
    one_by_one = [site.get(target) for target in targets]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(site.get, targets * 3)) == one_by_one * 3


def test_browsers_that_hang_up_are_no_news(site, capfd):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", site.server.server_port)) as connection:
            # Nothing is read, and what comes is answered by a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            request = b"GET /slides/one/nuclei/12/0_0.png HTTP/1.1\r\nHost: localhost\r\n\r\n"
            connection.sendall(request * 10)
    assert site.get("/")
    assert capfd.readouterr().err == ""


# --- The command ------------------------------------------------------------------------------


def view(*arguments: str, **options):
    return subprocess.run(
        [sys.executable, "-m", "dssnet_fast.view", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def test_the_command_prints_its_address_and_ends_with_ctrl_c(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "dssnet_fast.view", str(folder), "--port", "0", "--no-browser"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell runs in the background are started with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    line = process.stdout.readline()
    port = int(line.split("127.0.0.1:")[1].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    # An open connection does not keep it.
    busy = view(str(folder), "--port", str(port), "--no-browser")
    assert busy.returncode == 1
    assert busy.stderr == (
        f"dssnet_fast.view: error: port {port} is in use; take a free one with --port 0\n"
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    connection.close()
    assert (process.returncode, errors) == (0, "")
    assert line.startswith("3 slides at http://127.0.0.1:")


def test_the_command_refuses_what_is_no_folder_of_results(tmp_path):
    for given, said in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path)], "no results of python -m dssnet_fast.wsi"),
        ([str(tmp_path), "--slides", str(tmp_path / "none")], "--slides"),
    ):
        done = view(*given, "--no-browser", "--port", "0")
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    for port in ("x", "-1", "65536"):
        assert view(str(tmp_path), "--port", port).returncode == 2
    (tmp_path / "a.json").write_text("{")
    done = view(str(tmp_path), "--no-browser", "--port", "0")
    assert "a.json: not a JSON file" in done.stderr


def test_the_vendored_script_is_the_one_that_its_note_names():
    home = ROOT / "dssnet_fast" / "view" / "static" / "openseadragon"
    digest = hashlib.sha256((home / "openseadragon.min.js").read_bytes()).hexdigest()
    assert digest in (home / "VERSION").read_text()
    assert sorted(os.listdir(home)) == ["LICENSE.txt", "VERSION", "openseadragon.min.js"]
