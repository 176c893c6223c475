"""Regions: boxes and what QuPath exports, against shapely."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely.geometry import mapping

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.slides.cells import dilated, grid
from dssnet_fast.slides.region import Region, make_region


def annotation(geometry, kind: str | None = "annotation") -> dict:
    properties = {} if kind is None else {"objectType": kind}
    if not isinstance(geometry, dict):
        geometry = mapping(geometry)
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write(path: Path, content) -> Path:
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


DONUT = shapely.Point(1000, 800).buffer(500).difference(shapely.Point(1000, 800).buffer(300))
TWO = shapely.MultiPolygon([shapely.box(2000, 100, 2300, 400), shapely.box(2500, 900, 2510, 905)])


def check(region: Region, shape, scale: float = 1.3, cell: int = 64) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-100, 3000, 4000), rng.uniform(-100, 1800, 4000)
    np.testing.assert_array_equal(region.contains(x, y), shapely.contains_xy(shape, x, y))
    rows, columns = 25, 40
    side = cell * scale
    expected = np.zeros((rows, columns), bool)
    for row in range(rows):
        for column in range(columns):
            around = shapely.box(
                (column - 1) * side, (row - 1) * side, (column + 2) * side, (row + 2) * side
            )
            expected[row, column] = shape.intersects(around)
    found = region.cells(scale, rows, columns, cell)
    # Neighbours of a cell beyond the grid's border are not known from inside.
    np.testing.assert_array_equal(found[2:-2, 2:-2], expected[2:-2, 2:-2])
    assert expected.any()
    assert not expected.all()


def test_the_whole_is_everything():
    region = make_region(None)
    assert region.key == "whole"
    assert region.cells(2.0, 3, 5, 256).all()
    assert region.contains(np.array([-1e9, 5]), np.array([0, 5])).all()
    region.check(Path("slide"), 10, 10)


@pytest.mark.parametrize("text", ["200,300,1500,700", " 200, 300 ,1500, 700.0"])
def test_a_box(text):
    region = make_region(text)
    assert region.key == "box 200,300,1500,700"
    check(region, shapely.box(200, 300, 1700, 1000))


def test_boxes_side_by_side_share_no_point():
    points = np.arange(0, 20, 0.5)
    left, right = make_region("0,0,10,20"), make_region("10,0,10,20")
    inside = left.contains(points, points).astype(int) + right.contains(points, points)
    assert (inside == 1).all()


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz", "a.json"])
@pytest.mark.parametrize("origin", [(0, 0), (150, -40)])
def test_what_qupath_exports(tmp_path, name, origin):
    shape = shapely.union_all([DONUT, TWO])
    features = [annotation(DONUT), annotation(TWO, None)]
    path = write(tmp_path / name, {"type": "FeatureCollection", "features": features})
    region = make_region(path, origin)
    check(region, shapely.transform(shape, lambda points: points + origin))
    assert region.key == make_region(str(path), origin).key
    assert region.key.startswith("polygons ")
    assert pickle.loads(pickle.dumps(region)).key == region.key


@pytest.mark.parametrize(
    "content",
    [
        mapping(DONUT),
        annotation(DONUT),
        [annotation(DONUT)],
        {"type": "FeatureCollection", "features": [annotation(DONUT)]},
        {"type": "Feature", "geometry": mapping(DONUT)},
    ],
)
def test_all_its_forms(tmp_path, content):
    check(make_region(write(tmp_path / "a.geojson", content)), DONUT)


def test_detections_are_left_out(tmp_path):
    others = [annotation(shapely.box(0, 0, 50, 50), kind) for kind in ("detection", "cell", "tile")]
    points = [annotation(shapely.Point(1, 1), "detection")]
    path = write(tmp_path / "a.geojson", [*others, *points, annotation(DONUT)])
    check(make_region(path), DONUT)
    with pytest.raises(InputError, match="has no annotation"):
        make_region(write(tmp_path / "b.geojson", others))


def test_a_polygon_that_crosses_itself_is_repaired(tmp_path):
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [1000, 1000], [1000, 0], [0, 1000], [0, 0]]]}
    region = make_region(write(tmp_path / "a.geojson", bow))
    check(region, shapely.Polygon([(0, 0), (500, 500), (0, 1000)]).union(
        shapely.Polygon([(1000, 0), (500, 500), (1000, 1000)])
    ))  # fmt: skip


def test_heights_are_ignored(tmp_path):
    flat = {"type": "Polygon", "coordinates": [[[0, 0, 5], [900, 0, 5], [900, 870, 5], [0, 0, 5]]]}
    check(
        make_region(write(tmp_path / "a.geojson", flat)),
        shapely.Polygon([(0, 0), (900, 0), (900, 870)]),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (annotation(shapely.Point(1, 2)), "geometry 1 is a Point"),
        ([annotation(DONUT), annotation(shapely.LineString([(0, 0), (1, 1)]))], "2 is a LineStr"),
        ({"type": "Feature", "geometry": None, "properties": {}}, "geometry 1 is a None"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "geometry 1 is no polygon"),
        ({"type": "Polygon", "coordinates": "no"}, "geometry 1 is no polygon"),
        ({"type": "Polygon", "coordinates": []}, "have no area"),
        ({"type": "Polygon"}, "geometry 1 is no polygon"),
        (
            {"type": "Polygon", "coordinates": [[[0, 0], [1, float("nan")], [1, 0], [0, 0]]]},
            "not finite",
        ),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2], [0, 0]]]}, "have no area"),
        ({"type": "FeatureCollection", "features": []}, "has no annotation"),
        ({"type": "FeatureCollection"}, "is no GeoJSON"),
        ({"type": "Topology"}, "geometry 1 is a Topology"),
        ({"a": 1}, "is no GeoJSON"),
        ([1, 2], "is no GeoJSON"),
        ("text", "is no GeoJSON"),
        (7, "is no GeoJSON"),
    ],
)
def test_files_that_are_no_regions(tmp_path, content, message):
    path = write(tmp_path / "a.geojson", content)
    with pytest.raises(InputError, match=message) as raised:
        make_region(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", gzip.compress(b"{}" * 99, mtime=0)[:-12], b"\x1f\x8b\x08rest"]
)
def test_damaged_files(tmp_path, data):
    path = tmp_path / "a.geojson"
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as GeoJSON"):
        make_region(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "has 3 numbers instead of 4"),
        ("1,2,3,4,5", "has 5 numbers"),
        ("1,2,0,4", "must be more than 0"),
        ("1,2,3,-4", "must be more than 0"),
        ("1,2,nan,4", "must be more than 0"),
        ("1,2,inf,4", "must be more than 0"),
        ("left", "neither a box nor a file"),
        ("", "neither a box nor a file"),
    ],
)
def test_texts_that_are_no_boxes(text, message):
    with pytest.raises(InputError, match=message):
        make_region(text)


@pytest.mark.parametrize("text", ["1000,0,5,5", "0,500,5,5", "-10,0,10,5", "0,-10,5,10"])
def test_a_region_beside_the_slide_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="lies outside the slide"):
        make_region(text).check(Path("a.svs"), 1000, 500)
    x, y, width, height = map(float, text.split(","))
    path = write(tmp_path / "a.geojson", mapping(shapely.box(x, y, x + width, y + height)))
    with pytest.raises(InputError, match="lies outside the slide"):
        make_region(path).check(Path("a.svs"), 1000, 500)
    make_region("999,499,50,50").check(Path("a.svs"), 1000, 500)


def test_neighbours():
    import scipy.ndimage

    cells = np.random.default_rng(0).random((23, 31)) < 0.05
    expected = scipy.ndimage.binary_dilation(cells, np.ones((3, 3)))
    np.testing.assert_array_equal(dilated(cells), expected)
    np.testing.assert_array_equal(dilated(np.ones((1, 1), bool)), [[True]])


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1, 1, (1, 1)), (256, 257, (2, 1)), (1000, 500, (2, 4))]
)
def test_cells_cover_the_image(width, height, expected):
    assert grid(width, height, 256) == expected
