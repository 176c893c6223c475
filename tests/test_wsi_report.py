"""The report of a slide, read by an HTML parser and, where there is one, by a browser."""

import base64
import dataclasses
import errno
import io
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.wsi.results import Frame
from dssnet_fast.wsi.writers import charts
from dssnet_fast.wsi.writers.report import write_report
from dssnet_fast.wsi.writers.summary import summary
from dssnet_fast.wsi.writers.totals import Distribution, Totals
from slide_results import blobs, nuclei_of, parts, table_of

NAMES = ("background", 'pale <b>"&é', "<script>alert(1)</script>")
NAME = "</title><script>alert(2)</script>&é"
HEIGHT, WIDTH = 240, 300
FRAME = Frame(WIDTH, HEIGHT, 0.5, 2.0, (6, 8))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img", "input"}


@pytest.fixture(scope="module")
def table():
    return table_of(nuclei_of(blobs(HEIGHT, WIDTH), min_area=4))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def gathered(tables):
    found = Totals(FRAME, NAMES)
    for table in tables:
        found.add(table)
    return found


def facts(totals, **other):
    given = {
        "name": NAME,
        "slide": "/slides/<i>.svs",
        "reader": "openslide aperio",
        "slide_size": (2 * WIDTH, 2 * HEIGHT),
        "slide_mpp": 0.25,
        "mpp_source": "aperio.MPP",
        "analysed_mm2": 0.018,
        "unreadable": [(40, 60, 80, 100)],
        "files": {"geojson": "<x>.geojson.gz"},
        "provenance": {"<key>": "<value>", "backend": ["cpu", "int8"]},
    }
    return summary(totals, **(given | other))


def crop_of(image, asked=None):
    def crop(left, top, side):
        if asked is not None:
            asked.append((left, top, side))
        rows, columns = np.mgrid[top : top + side, left : left + side]
        found = image[rows % HEIGHT, columns % WIDTH]
        return None if asked is not None and len(asked) == 3 else found

    return crop


def write(path, totals, image, crop=None, **other):
    write_report(path, facts(totals, **other), totals, image, crop or crop_of(image))
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects elements and text, and fails at tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag, **wanted):
        return [
            attributes
            for name, attributes in self.found
            if name == tag and all(attributes.get(k.rstrip("_")) == v for k, v in wanted.items())
        ]


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path, table, image):
    text = write(tmp_path / "a.html", gathered([table]), image)
    read = Reader(text)
    for _, attributes in read.found:
        for name in ("src", "href", "xlink:href"):
            link = attributes.get(name)
            assert link is None or link.startswith(("data:image/", "./#")), link
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = (m["content"] for m in read.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "prefers-color-scheme:dark" in text


def test_names_are_text_and_never_markup(tmp_path, table, image):
    text = write(tmp_path / "a.html", gathered([table]), image)
    read = Reader(text)
    assert len(read.all("script")) == 1
    assert not read.all("b", title=None)
    # All but the scale of the density map are dots.
    assert len(read.all("i", class_=None)) == 1
    said = "".join(read.text)
    for name in (NAME, *NAMES[1:], "/slides/<i>.svs", "<key>", "<value>", "<x>.geojson.gz"):
        assert name in said


def test_names_that_are_no_text_are_written_somehow(tmp_path, table, image):
    text = write(tmp_path / "a.html", gathered([table]), image, name="slide\udce9")
    assert "slide\\udce9" in text


def test_key_figures_and_provenance(tmp_path, table, image):
    totals = gathered([table])
    said = "".join(Reader(write(tmp_path / "a.html", totals, image)).text)
    for figure in (
        f"{len(table):,}",
        f"{len(table) / 0.018:,.0f} per mm²",
        f"{np.median(table.area) / 4:,.1f} µm²",
        "1 area of the slide could not be read",
        '["cpu","int8"]',
        "600 × 480 px",
        "aperio.MPP",
    ):
        assert figure in said, figure
    whole = Reader(write(tmp_path / "a.html", totals, image, unreadable=[]))
    assert "could not be read" not in "".join(whole.text)
    assert not whole.all("rect", class_="unreadable")


def decoded(link):
    kind, data = link.split(";base64,")
    made = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == f"data:image/{made.format.lower()}"
    return made


def test_the_gallery_shows_each_nucleus_where_it_is(tmp_path, table, image):
    totals, asked = gathered(parts(table, 30)), []
    page = write(tmp_path / "a.html", totals, image, crop_of(image, asked))
    assert page.count("could not be read</span>") == 1
    read = Reader(page)
    shown = totals.largest + totals.darkest
    assert len(shown) == len(asked) == 48
    links = read.all("a", class_="viewer")
    paths = [one["d"] for one in read.all("path", class_="over")]
    crops = [one["href"] for one in read.all("image")]
    assert len(paths) == len(crops) == 47
    del shown[2], asked[2], links[2]
    marks = [m for m in read.all("li") if "data-x" in m]
    del marks[2]
    listed = facts(totals)["gallery"]
    listed = [*listed["largest"], *listed["darkest"]]
    del listed[2]
    for one, (left, top, side), link, path, crop, mark, said in zip(
        shown, asked, links, paths, crops, marks, listed, strict=True
    ):
        assert link["href"] == f"./#x={said['x']}&y={said['y']}&id={one.id}"
        assert (said["x"], said["y"]) == (
            pytest.approx(one.x * 2 - 6, abs=0.01),
            pytest.approx(one.y * 2 - 8, abs=0.01),
        )
        assert float(mark["data-x"]) == pytest.approx(one.x, abs=0.06)
        assert float(mark["data-y"]) == pytest.approx(one.y, abs=0.06)
        # All of the nucleus is in the crop, and about in the middle.
        assert left <= one.bounds[0]
        assert top <= one.bounds[1]
        assert left + side >= one.bounds[2]
        assert top + side >= one.bounds[3]
        rings = [
            [list(map(int, corner.split())) for corner in ring[1:].split("L")]
            for ring in path.split("Z")[:-1]
        ]
        assert len(rings) == len(one.rings)
        for drawn, ring in zip(rings, one.rings, strict=True):
            np.testing.assert_array_equal(np.add(drawn, (left, top)), ring[:-1])
        assert decoded(crop).size == (min(side, 192),) * 2


def test_very_large_nuclei_are_shown_in_part(tmp_path, image):
    labels = np.zeros((1200, 1200), np.uint8)
    labels[100:1100, 100:1100] = 1
    totals, asked = Totals(Frame(1200, 1200, 0.5, 1.0), NAMES), []
    totals.add(table_of(nuclei_of(labels)))
    write(tmp_path / "a.html", totals, image, crop_of(image, asked))
    assert asked == [(344, 344, 512)] * 2


def test_the_thumbnail_is_made_smaller_and_carries_the_density(tmp_path, table, image):
    thumbnail = np.repeat(np.repeat(image, 8, axis=0), 8, axis=1)
    read = Reader(write(tmp_path / "a.html", gathered([table]), thumbnail))
    slide, density = read.all("img")
    assert decoded(slide["src"]).size == (1600, 1280)
    # Cells of 100 px; the lowest ones reach over the end of the image.
    assert decoded(density["src"]).size == (3, 3)
    assert density["style"] == "width:100.0000%;height:125.0000%"
    (box,) = read.all("rect", class_="unreadable")
    assert (box["x"], box["y"], box["width"], box["height"]) == ("20.0", "30.0", "20.0", "20.0")


def test_density_colours_say_where_nuclei_are():
    density = np.zeros((40, 60), int)
    density[10, 10] = 50
    density[30:34, 40:44] = 200
    made, most = charts.density_image(density, 0.01)
    pixels = np.asarray(Image.open(io.BytesIO(made)))
    assert pixels.shape == (40, 60, 4)
    assert pixels[0, 30, 3] == 0
    assert pixels[10, 10, 3] > 0
    assert pixels[32, 42, :3].sum() > pixels[10, 10, :3].sum()
    # In the middle of a patch of 4 x 4 cells, a little less than what is there.
    assert 0.7 * 200 / 0.01 < most < 200 / 0.01
    empty, _ = charts.density_image(np.zeros((3, 4), int), 0.01)
    assert not np.asarray(Image.open(io.BytesIO(empty)))[:, :, 3].any()


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([5], 1.0),
        ([0, 0, 0], 0.9),
        (list(range(200)), 1.0),
        ([7] * 9, 1.0),
        ([3] * 500 + [9000], 0.99),
    ],
)
def test_histograms_draw_every_nucleus(values, share):
    found = Distribution(3, 0.5, 1 << 16, whole=True)
    found.add(np.arange(len(values)) % 2 + 1, np.array(values))
    svg = charts.histogram(found, "a <title>", "µm²", ["#000", "#111", "#222"], 1, share)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "a <title>"
    counted = [int(g.find("title").text.split(": ")[1].replace(",", "")) for g in root.iter("g")]
    assert sum(counted) == len(values)
    left, right = (float(next(root.iter("line")).get(name)) for name in ("x1", "x2"))
    bars = list(root.iter("rect"))
    for bar in bars:
        x, y, width, height = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
        assert left <= x
        assert x + width <= right + 0.01
        assert width > 0
        assert height > 0
        assert y > 0
    for g in root.iter("g"):
        ends = [(float(bar.get("y")), float(bar.get("height"))) for bar in g.iter("rect")]
        for (below, _), (y, height) in itertools.pairwise(ends):
            assert y + height == pytest.approx(below, abs=0.02)
    heights = [sum(float(bar.get("height")) for bar in g.iter("rect")) for g in root.iter("g")]
    np.testing.assert_allclose(heights, np.multiply(counted, heights[0] / counted[0]), rtol=0.02)
    assert f"median {np.median(values) * 0.5:,.1f} µm²" in "".join(root.itertext())


def test_no_nuclei(tmp_path, image):
    read = Reader(write(tmp_path / "a.html", gathered([]), image, analysed_mm2=0.0))
    assert "No nuclei were found." in "".join(read.text)
    assert not read.all("button")


def test_one_nucleus_of_one_px(tmp_path, image):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[0, 0] = 1
    text = write(tmp_path / "a.html", gathered([table_of(nuclei_of(labels))]), image)
    assert len(Reader(text).all("button")) == 2


def test_the_same_nuclei_give_the_same_bytes(tmp_path, table, image):
    first = write(tmp_path / "a.html", gathered([table]), image)
    assert write(tmp_path / "b.html", gathered(parts(table, 9)), image) == first


def test_pictures_that_are_none_are_refused(tmp_path, table, image):
    totals = gathered([table])
    for wrong in (image[:, :, 0], image.astype(float), image[:0]):
        with pytest.raises(InputError, match="thumbnail must be uint8"):
            write(tmp_path / "a.html", totals, wrong)
    with pytest.raises(InputError, match=r"a crop must be uint8 \[96, 96, 3\]"):
        write(tmp_path / "a.html", totals, image, lambda left, top, side: image)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_report(tmp_path, table, image, monkeypatch):
    (tmp_path / "a.html").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "a.html", gathered([table]), image)
    assert caught.value.filename == str(tmp_path / "a.html")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_dataclass_rings_do_not_keep_tables_alive(table):
    for one in gathered([table]).largest:
        assert all(ring.base is None for ring in one.rings)
        assert dataclasses.is_dataclass(one)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_click_marks_the_nucleus_in_a_browser(tmp_path, table, image):
    totals = gathered([table])
    text = write(tmp_path / "a.html", totals, image)
    click = "<script>document.querySelectorAll('.gallery button')[1].click()</script></body>"
    (tmp_path / "b.html").write_text(text.replace("</body>", click), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"),
            *("--dump-dom", (tmp_path / "b.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    read = Reader(done.stdout)
    assert read.all("g", id="place", class_="on")
    one = totals.largest[1]
    circles = read.all("circle")
    assert {(c["cx"], c["cy"]) for c in circles} == {(f"{one.x:.1f}", f"{one.y:.1f}")}
    # As a file there is no viewer to link to.
    assert read.all("html") == [{"lang": "en"}]
