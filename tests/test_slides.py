"""Readers of slides: their pixels are the file's, and damage is named."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import pickle
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides import tiff_reader
from dssnet_fast.slides.openslide_reader import OpenSlideReader, _Handle
from dssnet_fast.slides.slide import (
    Level,
    UnreadableRegion,
    at_level_0,
    find_slides,
    open_slide,
    over,
    plausible_mpp,
)
from dssnet_fast.tiling import Box
from synthetic_slides import KINDS, make_slide

WIDTH, HEIGHT = 2503, 2101  # no multiples of 4, nor of tiles


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slides")
    made = {}
    for kind in KINDS:
        made[kind] = folder / f"{kind}.{'svs' if kind == 'svs' else 'tif'}"
        make_slide(made[kind], WIDTH, HEIGHT, kind=kind, density=60)
    return made


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def boxes(width: int, height: int, count: int = 12):
    """Boxes of all sizes, the whole, and its four corners."""
    rng = np.random.default_rng(1)
    yield Box(0, 0, height, width)
    yield Box(0, 0, 1, 1)
    yield Box(height - 1, width - 1, height, width)
    for _ in range(count):
        top, bottom = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
        left, right = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
        yield Box(top, left, bottom, right)


def level_pages(path: Path) -> list[np.ndarray]:
    """The levels' pixels by tifffile alone."""
    with tifffile.TiffFile(path) as tiff:
        pages = [tiff.pages[0], *(tiff.pages[0].pages or ())]
        pages += [page for page in list(tiff.pages)[1:] if page.is_tiled]
        return [page.asarray() for page in pages]


@pytest.mark.parametrize(
    ("kind", "reader", "levels", "source"),
    [
        ("tiff", "openslide generic-tiff", 2, "openslide.mpp-x"),
        ("svs", "openslide aperio", 2, "openslide.mpp-x"),
        ("ome", "tiff ome", 2, "OME PhysicalSizeX"),
        ("plain", "tiff", 1, "TIFF XResolution"),
    ],
)
def test_each_kind_is_read_and_has_its_resolution(slides, kind, reader, levels, source):
    slide = open_slide(slides[kind])
    assert slide.format == reader
    assert slide.mpp == pytest.approx(0.5, rel=1e-6)
    assert slide.mpp_source == source
    assert len(slide.levels) == levels
    assert slide.levels[0] == Level(WIDTH, HEIGHT, 1.0)
    assert slide.bounds is None
    data = slides[kind].read_bytes()
    parts = str(len(data)).encode() + data[: 2**20] + data[max(len(data) - 2**20, 0) :]
    assert slide.fingerprint == hashlib.sha256(parts).hexdigest()
    slide.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_of_a_level_is_that_part_of_its_page(slides, kind):
    """Level 1 of these slides has a downsample that is no whole number."""
    slide = open_slide(slides[kind])
    pages = level_pages(slides[kind])
    assert len(pages) == len(slide.levels)
    for index, (level, page) in enumerate(zip(slide.levels, pages, strict=True)):
        assert page.shape == (level.height, level.width, 3)
        for box in boxes(level.width, level.height):
            found = slide.read(index, box)
            assert found.dtype == np.uint8
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, page[box.top : box.bottom, box.left : box.right])


@pytest.mark.parametrize("direct", [True, False])
def test_pixels_are_those_of_openslide(slides, direct):
    slide, other = open_slide(slides["svs"]), openslide.OpenSlide(slides["svs"])
    assert len(slide._planes) == 2
    if not direct:
        slide._planes.clear()
    for box in boxes(WIDTH, HEIGHT):
        region = other.read_region((box.left, box.top), 0, (box.width, box.height))
        np.testing.assert_array_equal(slide.read(0, box), np.asarray(region.convert("RGB")))


def test_openslide_reads_a_level_with_a_whole_downsample(tmp_path):
    path = tmp_path / "whole.tif"
    fine, coarse = noise(1200, 1600), noise(300, 400)
    _write_pyramid(path, fine, coarse)
    slide = open_slide(path)
    assert slide.levels[1] == Level(400, 300, 4.0)
    slide._planes.clear()
    for box in boxes(400, 300):
        np.testing.assert_array_equal(
            slide.read(1, box), coarse[box.top : box.bottom, box.left : box.right]
        )


def test_tiles_are_not_decoded_directly_if_they_look_different(slides, monkeypatch):
    """Whatever tifffile may make of colours, OpenSlide's are right."""
    read = tiff_reader.Plane.read
    monkeypatch.setattr(tiff_reader.Plane, "read", lambda self, box: read(self, box)[:, :, ::-1])
    path = slides["svs"].parent / "purple.tif"
    _write_pyramid(path, np.full((400, 500, 3), (200, 100, 220), np.uint8))
    slide = open_slide(path)
    assert not slide._planes
    assert (slide.read(0, Box(0, 0, 400, 500)) == (200, 100, 220)).all()


def test_levels_that_are_not_decoded_directly_do_not_depend_on_the_box(tmp_path):
    path = tmp_path / "odd.tif"
    coarse = np.asarray(Image.fromarray(noise(40, 60)).resize((1100, 752), Image.BICUBIC))
    _write_pyramid(path, noise(3009, 4403), coarse)
    slide = open_slide(path)
    slide._planes.clear()
    whole = slide.read(1, Box(0, 0, 752, 1100))
    for box in boxes(1100, 752):
        np.testing.assert_array_equal(
            slide.read(1, box), whole[box.top : box.bottom, box.left : box.right]
        )
    # Shifted by half a level-0 px at most: an eighth of a px of this smooth level.
    steps = np.abs(np.diff(coarse.astype(int), axis=1)).max()
    assert np.abs(whole.astype(int) - coarse).max() <= steps / 8 * 2 + 2


def _write_pyramid(path: Path, *levels: np.ndarray, **options) -> None:
    with tifffile.TiffWriter(path) as writer:
        for index, pixels in enumerate(levels):
            writer.write(
                pixels,
                tile=(256, 256),
                compression="adobe_deflate",
                photometric="rgb",
                subfiletype=1 if index else 0,
                **options,
            )


def test_boxes_outside_are_refused(slides):
    slide = open_slide(slides["tiff"])
    for box in (Box(0, 0, 1, WIDTH + 1), Box(-1, 0, 1, 1), Box(5, 5, 5, 6), Box(0, 9, 1, 8)):
        with pytest.raises(InputError, match="must lie inside"):
            slide.read(0, box)
    with pytest.raises(InputError, match="level must be 0 to 1, got 2"):
        slide.read(2, Box(0, 0, 1, 1))
    with pytest.raises(InputError, match="level must be"):
        slide.read(-1, Box(0, 0, 1, 1))


# Resolution.


@pytest.mark.parametrize(
    "value", [None, "", "0", "-0.5", "nan", "inf", "half", "0.0004", "352.8", "1e400"]
)
def test_nonsense_is_no_resolution(value):
    assert plausible_mpp(value, "0.5") is None
    assert plausible_mpp("0.5", value) is None


def test_resolution_is_the_mean_of_x_and_y():
    assert plausible_mpp("0.25", "0.26") == pytest.approx(0.255)
    assert plausible_mpp() is None


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20000, 20000), "CENTIMETER", 0.5),
        ((50800, 50800), "INCH", 0.5),
        ((20000, 10000), "CENTIMETER", 0.75),
        ((1, 1), "NONE", None),
        ((72, 72), "INCH", None),
        ((20000, 20000), "NONE", None),
        (((0, 1), (0, 1)), "CENTIMETER", None),
    ],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_resolution_of_tiff_tags(tmp_path, resolution, unit, mpp, tiled):
    path = tmp_path / "a.tif"
    options = {"tile": (64, 64)} if tiled else {}
    tifffile.imwrite(
        path,
        noise(100, 120),
        photometric="rgb",
        resolution=resolution,
        resolutionunit=unit,
        **options,
    )
    slide = open_slide(path)
    assert slide.format == ("openslide generic-tiff" if tiled else "tiff")
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-6))
    assert (slide.mpp_source is None) == (mpp is None)


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [
        (0.25, None, 0.25),
        (0.25, "µm", 0.25),
        (250.0, "nm", 0.25),
        (0.00025, "mm", 0.25),
        (0.25, "mm", None),
        (1.0, "pixel", None),
        (0.0, "µm", None),
    ],
)
def test_resolution_of_ome(tmp_path, size, unit, mpp):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(path, noise(90, 70), photometric="rgb", metadata=metadata, tile=(32, 32))
    slide = open_slide(path)
    assert slide.format == "tiff ome"
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))


# TIFFs of all sorts.


@pytest.mark.parametrize(
    "options",
    [
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"rowsperstrip": 10000},
        {"tile": (32, 48), "planarconfig": "separate"},
        {"rowsperstrip": 16, "planarconfig": "separate", "compression": "adobe_deflate"},
        {"tile": (64, 64), "compression": "jpeg2000"},
        {"tile": (64, 64), "bigtiff": True, "byteorder": ">"},
    ],
)
def test_ways_to_store_a_tiff(tmp_path, options):
    path = tmp_path / "a.tif"
    pixels = noise(205, 131)
    data = np.moveaxis(pixels, 2, 0) if options.get("planarconfig") == "separate" else pixels
    tifffile.imwrite(path, data, photometric="rgb", **options)
    slide = tiff_reader.open_slide(path)
    assert slide.levels == (Level(131, 205, 1.0),)
    for box in boxes(131, 205):
        np.testing.assert_array_equal(
            slide.read(0, box), pixels[box.top : box.bottom, box.left : box.right]
        )


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_gray_is_repeated(tmp_path, kind):
    path = tmp_path / "a.tif"
    gray = noise(60, 50, 1)[:, :, 0]
    tifffile.imwrite(path, gray, photometric=kind)
    seen = 255 - gray if kind == "miniswhite" else gray
    expected = np.repeat(seen[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(open_slide(path).read(0, Box(0, 0, 60, 50)), expected)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_opacity_is_laid_over_white(tmp_path, kind):
    path = tmp_path / "a.tif"
    pixels = noise(60, 50, 4)
    if kind == "assocalpha":
        pixels[:, :, :3] = np.minimum(pixels[:, :, :3], pixels[:, :, 3:])
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=[kind])
    colour, alpha = pixels[:, :, :3].astype(float), pixels[:, :, 3:] / 255
    expected = {
        "unassalpha": colour * alpha + 255 * (1 - alpha),
        "assocalpha": colour + 255 * (1 - alpha),
        "unspecified": colour,
    }[kind]
    found = open_slide(path).read(0, Box(0, 0, 60, 50))
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_a_pyramid_of_pages_is_found_and_other_pages_are_not_levels(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for height, width in ((401, 603), (200, 301), (300, 300), (100, 150)):
            writer.write(noise(height, width), photometric="rgb", rowsperstrip=32)
    slide = tiff_reader.open_slide(path)
    assert [(level.width, level.height) for level in slide.levels] == [
        (603, 401), (301, 200), (150, 100),
    ]  # fmt: skip
    assert slide.levels[1].downsample == pytest.approx((603 / 301 + 401 / 200) / 2)
    np.testing.assert_array_equal(slide.read(2, Box(0, 0, 100, 150)), noise(100, 150))


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((64, 64, 3), np.uint16, {"photometric": "rgb"}, "16-bit uint16 values"),
        ((64, 64), np.float32, {"photometric": "minisblack"}, "32-bit float32 values"),
        ((5, 64, 64, 3), np.uint8, {"photometric": "rgb"}, "is a stack"),
        ((4, 64, 64), np.uint8, {"ome": True, "metadata": {"axes": "CYX"}}, "4 channels"),
        ((6, 64, 64), np.uint8, {"ome": True, "metadata": {"axes": "ZYX"}}, "6 focus planes"),
        ((64, 64, 5), np.uint8, {"photometric": "minisblack", "planarconfig": 1}, "5 channels"),
    ],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_tiffs_that_are_no_pictures_are_refused_with_a_hint(
    tmp_path, shape, dtype, options, message, tiled
):
    path = tmp_path / "a.tif"
    options = options | ({"tile": (32, 32)} if tiled else {})
    tifffile.imwrite(path, np.ones(shape, dtype), **options)
    with pytest.raises(InputError, match=message) as raised:
        open_slide(path)
    assert str(path) in str(raised.value)
    assert "RGB" in str(raised.value)


# Other readers.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_images_are_slides_of_one_level(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(70, 90)).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    slide = open_slide(path)
    assert slide.format.startswith("image ")
    assert (slide.mpp, slide.mpp_source, slide.levels) == (None, None, (Level(90, 70, 1.0),))
    np.testing.assert_array_equal(slide.read(0, Box(3, 5, 60, 80)), expected[3:60, 5:80])


def test_kfb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kfbslide", None)
    path = tmp_path / "a.kfb"
    path.write_bytes(b"KFB")
    with pytest.raises(InputError, match="pip install kfbslide"):
        open_slide(path)


def _write_kfb(path: Path, levels: dict[float, np.ndarray], mpp: float, tile: int = 256) -> None:
    """A KFB file as far as its reader looks at it: header, index, JPEG tiles."""
    import io

    finest = levels[max(levels)]
    records, tiles = [], []
    for scale, pixels in levels.items():
        for y in range(0, pixels.shape[0], tile):
            for x in range(0, pixels.shape[1], tile):
                part = pixels[y : y + tile, x : x + tile]
                buffer = io.BytesIO()
                Image.fromarray(part).save(buffer, "JPEG", quality=95)
                tiles.append(buffer.getvalue())
                size = (x, y, part.shape[1], part.shape[0])
                records.append(struct.pack("<4xIIIIf8xI28x", *size, scale, len(tiles[-1])))
    index = b"".join(records)
    start = 96 + 52
    header = struct.pack(
        "<4s4xfIIII4s4xIqIIQQf8xI",
        b"KFB\0", 1.6, len(records), finest.shape[0], finest.shape[1], int(max(levels)),
        b"JPEG", 0, 0, 0, 0, start + len(index), start, mpp, tile,
    )  # fmt: skip
    assert len(header) == 88
    macro = struct.pack("<4xII4xII20x", 1, 1, 0, 52)  # none
    sections = b"".join(
        bytes([0xF1, number, 0xEE, 0xEE]) + content + bytes([0xFF, number, 0xEE, 0xEE])
        for number, content in ((1, header), (2, macro))
    )
    assert len(sections) == start
    path.write_bytes(sections + index + b"".join(tiles))


def test_kfb_levels_and_boxes(tmp_path):
    pytest.importorskip("kfbslide", reason="kfbslide is not installed")
    path = tmp_path / "a.kfb"
    smooth = Image.fromarray(noise(20, 30)).resize((900, 600), Image.BICUBIC)
    levels = {40.0: np.asarray(smooth), 20.0: np.asarray(smooth.resize((450, 300)))}
    _write_kfb(path, levels, 0.25)
    slide = open_slide(path)
    assert (slide.format, slide.mpp) == ("kfb", pytest.approx(0.25))
    assert slide.levels == (Level(900, 600, 1.0), Level(450, 300, 2.0))
    for index, pixels in enumerate(levels.values()):
        height, width, _ = pixels.shape
        whole = slide.read(index, Box(0, 0, height, width))
        assert np.abs(whole.astype(int) - pixels).mean() < 3
        for box in boxes(width, height):
            np.testing.assert_array_equal(
                slide.read(index, box), whole[box.top : box.bottom, box.left : box.right]
            )
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)  # the last tile, of level 1
    path.write_bytes(data)
    slide = open_slide(path)
    slide.read(0, Box(0, 0, 600, 900))
    with pytest.raises(UnreadableRegion, match="x 800 to 802"):
        slide.read(1, Box(299, 400, 300, 401))


# Things OpenSlide says.


def _stub(monkeypatch, properties: dict[str, str], image: Image.Image | None = None):
    """An OpenSlide with given properties and pixels."""

    class Stub:
        level_dimensions = ((100, 80),)
        level_downsamples = (1.0,)

        def __init__(self, path):
            self.properties = properties

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def set_cache(self, cache):
            pass

        def read_region(self, location, level, size):
            return image.crop((*location, location[0] + size[0], location[1] + size[1]))

    monkeypatch.setattr(openslide, "OpenSlide", Stub)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (("10", "20", "30", "40"), Box(20, 10, 60, 40)),
        (("10", "20", "91", "40"), None),
        (("10", "20", "0", "40"), None),
        (("10", "20", "30", "forty"), None),
        (("10", "20", "30"), None),
    ],
)
def test_bounds_are_taken_if_they_make_sense(tmp_path, monkeypatch, bounds, expected):
    names = ("x", "y", "width", "height")
    _stub(monkeypatch, {f"openslide.bounds-{n}": b for n, b in zip(names, bounds, strict=False)})
    path = tmp_path / "a.mrxs"
    path.write_bytes(b"x")
    assert OpenSlideReader(path, "mirax").bounds == expected


@pytest.mark.parametrize(
    ("given", "colour"), [("0A141E", (10, 20, 30)), (None, (255,) * 3), ("red", (255,) * 3)]
)
def test_what_was_not_scanned_has_the_background_colour(tmp_path, monkeypatch, given, colour):
    pixels = noise(80, 100, 4)
    pixels[:10, :, 3] = 0
    properties = {} if given is None else {"openslide.background-color": given}
    _stub(monkeypatch, properties, Image.fromarray(pixels, "RGBA"))
    path = tmp_path / "a.mrxs"
    path.write_bytes(b"x")
    found = OpenSlideReader(path, "mirax").read(0, Box(0, 0, 80, 100))
    alpha = pixels[:, :, 3:] / 255
    expected = pixels[:, :, :3] * alpha + np.array(colour) * (1 - alpha)
    assert (found[:10] == colour).all()
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_opaque_pixels_stay_as_they_are():
    pixels = noise(5, 6)
    np.testing.assert_array_equal(over(pixels, np.full((5, 6), 255, np.uint8), (1, 2, 3)), pixels)


# Damage.


def _segment(path: Path, page: int, index: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[page].dataoffsets[index], tiff.pages[page].databytecounts[index]


def _damage(path: Path, copy: Path, index: int = 1) -> Path:
    """A copy in which one tile or strip of level 0 is all zeros."""
    data = bytearray(path.read_bytes())
    start, count = _segment(path, 0, index)
    data[start : start + count] = bytes(count)
    copy.write_bytes(data)
    return copy


def _open(path: Path, direct: bool):
    """A slide whose tiles OpenSlide decodes, unless `direct`."""
    slide = open_slide(path)
    if not direct:
        slide._planes.clear()
    return slide


WAYS = [(kind, True) for kind in KINDS] + [("tiff", False), ("svs", False)]


@pytest.mark.parametrize(("kind", "direct"), WAYS)
def test_a_damaged_tile_is_named_and_the_rest_is_read(slides, tmp_path, kind, direct):
    path = _damage(slides[kind], tmp_path / slides[kind].name)
    whole, slide = open_slide(slides[kind]), _open(path, direct)
    bad = Box(70, 0, 80, 20) if kind == "plain" else Box(10, 600, 20, 620)
    good = Box(1500, 100, 1700, 900)
    for _ in range(2):
        with pytest.raises(UnreadableRegion) as raised:
            slide.read(0, bad)
        assert raised.value.box == bad
        assert str(path) in str(raised.value)
        assert f"x {bad.left} to {bad.right}, y {bad.top} to {bad.bottom}" in str(raised.value)
        np.testing.assert_array_equal(slide.read(0, good), whole.read(0, good))


def test_a_slide_is_opened_again_once_for_each_error(slides, tmp_path, monkeypatch):
    slide = _open(_damage(slides["svs"], tmp_path / "a.svs"), direct=False)
    opened = []
    fresh = _Handle.fresh
    monkeypatch.setattr(_Handle, "fresh", lambda self: opened.append(1) or fresh(self))
    with pytest.raises(UnreadableRegion):
        slide.read(0, Box(10, 600, 20, 620))
    for _ in range(5):
        slide.read(0, Box(1500, 100, 1700, 900))
    assert len(opened) <= 3  # the first shared one, one to make sure, the next shared one


@pytest.mark.parametrize("part", [0.5, 0.98, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_slide_gives_no_wrong_pixels(slides, tmp_path, kind, part):
    """It is refused, or names what is lacking, or lacks other things than pixels."""
    data = slides[kind].read_bytes()
    path = tmp_path / slides[kind].name
    path.write_bytes(data[: int(len(data) * part)])
    box = Box(0, 0, HEIGHT, WIDTH)
    try:
        found = open_slide(path).read(0, box)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 (either outcome will do)
    else:
        assert part > 0.5
        np.testing.assert_array_equal(found, open_slide(slides[kind]).read(0, box))


def test_a_tile_beyond_the_end_of_the_file(tmp_path):
    """The directory at the front, the pixels at the end, as many writers do it."""
    path = tmp_path / "a.tif"
    pixels = noise(512, 512)
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64, compression="jpeg")
    start, count = _segment(path, 0, 7)
    os.truncate(path, start + count - 10)
    slide = open_slide(path)
    assert slide.read(0, Box(0, 0, 448, 512)).shape == (448, 512, 3)
    with pytest.raises(UnreadableRegion, match="truncated"):
        slide.read(0, Box(440, 0, 449, 5))


@pytest.mark.parametrize("field", ["offset", "count"])
def test_a_tile_that_was_never_written(tmp_path, field):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(128, 128), photometric="rgb", rowsperstrip=64)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags["StripOffsets" if field == "offset" else "StripByteCounts"]
        where, size = tag.valueoffset, 4 if tag.dtype == 4 else 2
    data = bytearray(path.read_bytes())
    data[where : where + size] = bytes(size)
    path.write_bytes(data)
    slide = open_slide(path)
    with pytest.raises(UnreadableRegion, match="missing"):
        slide.read(0, Box(0, 0, 1, 1))
    slide.read(0, Box(64, 0, 128, 128))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.svs", b"", "empty"),
        ("a.svs", b"not a slide", "is not a slide that can be read"),
        ("a.tif", b"II*\0", "a.tif"),
        ("a.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(40), "a.tif"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(20), "cannot be read"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(20), "cannot be read"),
        ("a.mrxs", b"\0" * 100, "is not a slide that can be read"),
        ("a.csv", b"x,y\n1,2\n", "is not a slide that can be read"),
        ("a.tif.gz", gzip.compress(b"II*\0", mtime=0), "is not a slide that can be read"),
    ],
)
def test_files_that_are_no_slides(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        open_slide(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        open_slide(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        open_slide(tmp_path / "nothing.svs")


def test_each_readers_reason_is_told(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"something")
    with pytest.raises(InputError) as raised:
        open_slide(path)
    for reader in ("OpenSlide: ", "KFB: ", "TIFF: ", "image: "):
        assert reader in str(raised.value)


def test_unreadable_regions_travel_between_processes():
    error = UnreadableRegion(Path("a.svs"), Box(1, 2, 3, 4), "broken")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.box) == (str(error), error.box)


def test_level_0_boxes_cover_and_stay_inside():
    levels = (Level(1001, 999, 1.0), Level(250, 249, 4.006))
    assert at_level_0(levels, 1, Box(0, 1, 249, 250)) == Box(0, 4, 998, 1001)


# Several threads, several processes.


@pytest.mark.parametrize(("kind", "direct"), WAYS)
def test_threads_read_at_once(slides, kind, direct):
    whole = open_slide(slides[kind]).read(0, Box(0, 0, HEIGHT, WIDTH))
    slide = _open(slides[kind], direct)
    places = list(boxes(WIDTH, HEIGHT, 30))
    with ThreadPoolExecutor(8) as pool:
        for box, found in zip(places, pool.map(lambda b: slide.read(0, b), places), strict=True):
            np.testing.assert_array_equal(found, whole[box.top : box.bottom, box.left : box.right])


def test_threads_are_not_disturbed_by_anothers_damage(slides, tmp_path):
    """OpenSlide's handle refuses everything after its first error."""
    slide = _open(_damage(slides["svs"], tmp_path / "a.svs"), direct=False)
    bad, good = Box(10, 600, 20, 620), Box(1100, 100, 1400, 900)
    expected = open_slide(slides["svs"]).read(0, good)

    def work(number: int) -> bool:
        if number % 2:
            with pytest.raises(UnreadableRegion):
                slide.read(0, bad)
            return True
        return np.array_equal(slide.read(0, good), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(60)))


def _read_often(slide, start, places, queue) -> None:
    start.wait()
    queue.put([hashlib.sha256(slide.read(0, box)).hexdigest() for box in places])


@pytest.mark.parametrize(("kind", "direct"), WAYS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_children_read_with_files_of_their_own(slides, monkeypatch, kind, direct):
    """A file shared with the parent has one position for both, so all read at the same time."""
    monkeypatch.setattr(tiff_reader, "_CACHE_BYTES", 0)
    slide = _open(slides[kind], direct)
    places = list(boxes(WIDTH, HEIGHT, 12)) * (3 if direct else 1)
    expected = [hashlib.sha256(slide.read(0, box)).hexdigest() for box in places]
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    children = [
        context.Process(target=_read_often, args=(slide, start, places, queue)) for _ in range(2)
    ]
    for child in children:
        child.start()
    start.set()
    for _ in children:
        assert queue.get(timeout=100) == expected
    assert [hashlib.sha256(slide.read(0, box)).hexdigest() for box in places] == expected
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def test_slides_can_be_read_by_spawned_children(slides):
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(_read_by_path, (slides["svs"], Box(5, 6, 700, 800)))
    np.testing.assert_array_equal(found, open_slide(slides["svs"]).read(0, Box(5, 6, 700, 800)))


def _read_by_path(path: Path, box: Box) -> np.ndarray:
    return open_slide(path).read(0, box)


# Finding them.


def test_slides_of_a_folder(tmp_path):
    for name in ("b.SVS", "a.ndpi", "c.ome.tif", "d.kfb", "e.png", ".hidden.svs", "f.txt", "g.dat"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.svs").mkdir()
    found = find_slides([tmp_path, tmp_path / "a.ndpi", tmp_path / "f.txt"])
    names = [path.name for path in found]
    assert names == ["a.ndpi", "b.SVS", "c.ome.tif", "d.kfb", "e.png", "f.txt"]


def test_parts_of_a_slide_are_not_slides(tmp_path, monkeypatch):
    for name in ("a.dcm", "b.dcm", "c.dcm", "d.dcm", "s(0,0).jpg", "other.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "s.vms").write_text("[Virtual Microscope Specimen]\nImageFile=s(0,0).jpg\n")

    class Stub:
        def __init__(self, path):
            if path.name == "d.dcm":
                raise openslide.OpenSlideError("no DICOM")
            series = "2" if path.name == "c.dcm" else "1"
            self.properties = {"openslide.quickhash-1": series}

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(openslide, "OpenSlide", Stub)
    found = [path.name for path in find_slides([tmp_path])]
    assert found == ["a.dcm", "c.dcm", "d.dcm", "other.jpg", "s.vms"]


def test_a_folder_without_slides(tmp_path):
    with pytest.raises(InputError, match="the folder has no slide"):
        find_slides([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        find_slides([tmp_path / "nothing"])


# A real one.


@pytest.fixture(scope="session")
def real_slide() -> Path:
    """CMU-1-Small-Region.svs (CC0), from the OpenSlide test data."""
    folder = os.environ.get("DSSNET_FAST_SLIDES")
    path = Path(folder or ".") / "CMU-1-Small-Region.svs"
    if not folder or not path.is_file():
        pytest.skip("needs DSSNET_FAST_SLIDES: a folder with CMU-1-Small-Region.svs")
    return path


def test_a_real_slide(real_slide):
    slide = open_slide(real_slide)
    assert slide.format == "openslide aperio"
    assert slide.mpp == pytest.approx(0.499)
    assert slide.levels == (Level(2220, 2967, 1.0),)
    page = tifffile.imread(real_slide, key=0)
    for box in boxes(2220, 2967):
        found = slide.read(0, box).astype(int)
        # Two JPEG decoders, two ways to spread colours.
        assert np.abs(found - page[box.top : box.bottom, box.left : box.right]).max() <= 2
