"""Result files, read back with other people's readers."""

import csv
import errno
import io
import json
import uuid
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from dssnet_fast import outputs
from dssnet_fast.nuclei import find_nuclei
from dssnet_fast.python_ref.files import atomic_write

NAMES = ("background", "nucleus", 'odd, "name"')
SCHEMA = json.loads((Path(__file__).parent / "qupath_schema.json").read_text())


@pytest.fixture
def labels():
    random = np.random.default_rng(4)
    blobs = gaussian_filter(random.normal(size=(70, 90)), 1.5) > 0.1
    return (blobs * random.integers(1, 3, (1, 90))).astype(np.uint8)


@pytest.fixture
def nuclei(labels):
    probability = np.random.default_rng(5).random(labels.shape, np.float32)
    found = find_nuclei(labels, probability, min_area=2)
    assert len(found) > 20
    assert set(found.class_index) == {1, 2}
    return found


@pytest.fixture
def nothing():
    return find_nuclei(np.zeros((6, 9), np.uint8), np.ones((6, 9), np.float32))


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_labels_read_back(tmp_path, labels):
    outputs.write_labels(tmp_path / "a.png", labels)
    read = Image.open(tmp_path / "a.png")
    assert read.mode == "L"
    np.testing.assert_array_equal(np.asarray(read), labels)


@pytest.mark.parametrize(("highest", "dtype"), [(0, "u2"), (65535, "u2"), (65536, "i4")])
def test_instances_read_back(tmp_path, nuclei, highest, dtype):
    instances = nuclei.instances.copy()
    instances[0, 0] = highest
    instances[instances > highest] = highest
    outputs.write_instances(tmp_path / "a.tif", instances)
    read = tifffile.imread(tmp_path / "a.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, instances)
    if highest < 65536:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), instances)


def test_geojson_is_what_qupath_reads(tmp_path, nuclei):
    outputs.write_geojson(tmp_path / "a.geojson", nuclei, NAMES, "a.png")
    collection = strict_json(tmp_path / "a.geojson")
    jsonschema.validate(collection, SCHEMA)
    features = collection["features"]
    assert len(features) == len(nuclei)
    assert len({feature["id"] for feature in features}) == len(features)
    for number, feature in enumerate(features, 1):
        uuid.UUID(feature["id"])
        polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert polygon.is_valid
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
        properties, at = feature["properties"], number - 1
        assert polygon.area == nuclei.area[at] == properties["measurements"]["Area px^2"]
        assert properties["name"] == str(number)
        kind = nuclei.class_index[at]
        assert properties["classification"]["name"] == NAMES[kind]
        assert tuple(properties["classification"]["color"]) == outputs.CLASS_COLOURS[kind - 1]
        for name, values in (
            ("Perimeter px", nuclei.perimeter),
            ("Eccentricity", nuclei.eccentricity),
            ("Mean probability", nuclei.mean_probability),
        ):
            assert abs(properties["measurements"][name] - values[at]) <= 0.0051


def test_empty_geojson(tmp_path, nothing):
    outputs.write_geojson(tmp_path / "a.geojson", nothing, NAMES, "a.png")
    collection = strict_json(tmp_path / "a.geojson")
    jsonschema.validate(collection, SCHEMA)
    assert collection == {"type": "FeatureCollection", "features": []}


def test_geojson_never_holds_nan(tmp_path, nuclei):
    nuclei.mean_probability[3] = np.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        outputs.write_geojson(tmp_path / "a.geojson", nuclei, NAMES, "a.png")
    assert list(tmp_path.iterdir()) == []


def test_ids_tell_images_apart_and_files_are_reproducible(tmp_path, nuclei):
    for name, identity in (("a", "one"), ("b", "one"), ("c", "two")):
        outputs.write_geojson(tmp_path / f"{name}.geojson", nuclei, NAMES, identity)
        outputs.write_instances(tmp_path / f"{name}.tif", nuclei.instances)
    for ending in ("geojson", "tif"):
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
        assert first == second
    ids = [
        {feature["id"] for feature in strict_json(tmp_path / f"{name}.geojson")["features"]}
        for name in "ac"
    ]
    assert not ids[0] & ids[1]


def test_table_reads_back(tmp_path, nuclei, nothing):
    rows = [
        outputs.table_rows(name, found, NAMES)
        for name, found in (("x/a,1.png", nuclei), ("empty.png", nothing), ("b.png", nuclei))
    ]
    outputs.write_table(tmp_path / "nuclei.csv", rows)
    text = (tmp_path / "nuclei.csv").read_bytes().decode()
    assert "\r" not in text
    read = list(csv.DictReader(io.StringIO(text)))
    assert tuple(read[0]) == outputs.TABLE_COLUMNS
    assert len(read) == 2 * len(nuclei)
    assert {row["image"] for row in read} == {"x/a,1.png", "b.png"}
    for at, row in enumerate(read[: len(nuclei)]):
        assert int(row["id"]) == at + 1
        assert int(row["class"]) == nuclei.class_index[at]
        assert row["class_name"] == NAMES[nuclei.class_index[at]]
        assert int(row["area_px"]) == nuclei.area[at]
        for name, values in (
            ("x", nuclei.x),
            ("y", nuclei.y),
            ("perimeter_px", nuclei.perimeter),
            ("eccentricity", nuclei.eccentricity),
            ("mean_probability", nuclei.mean_probability),
        ):
            assert abs(float(row[name]) - values[at]) <= 0.0051


def test_overlay_outlines_each_nucleus_in_its_colour_and_changes_nothing_else():
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:20] = 1
    labels[20:35, 30:50] = 2
    image = np.random.default_rng(6).integers(100, 256, (40, 60, 3), dtype=np.uint8)
    found = find_nuclei(labels, np.ones(labels.shape, np.float32))
    drawn = outputs.draw_overlay(image, found)
    for colour, (top, left, bottom, right) in zip(
        outputs.CLASS_COLOURS, ((5, 5, 15, 20), (20, 30, 35, 50)), strict=False
    ):
        ring = np.zeros(labels.shape, bool)
        ring[top:bottom, left:right] = True
        ring[top + 1 : bottom - 1, left + 1 : right - 1] = False
        assert (drawn[ring] == colour).all()
        image[ring] = colour
    np.testing.assert_array_equal(drawn, image)


def test_overlay_brightens_dark_images_only():
    found = find_nuclei(np.zeros((40, 60), np.uint8), np.ones((40, 60), np.float32))
    dark = np.full((40, 60, 1), 4, np.uint8)
    dark[10:20, 10:20] = 40
    drawn = outputs.draw_overlay(dark, found)
    assert drawn.shape == (40, 60, 3)
    assert drawn[15, 15].tolist() == [255] * 3
    assert drawn[0, 0].tolist() == [25] * 3
    bright = np.full((40, 60, 3), 200, np.uint8)
    np.testing.assert_array_equal(outputs.draw_overlay(bright, found), bright)
    black = np.zeros((40, 60, 3), np.uint8)
    np.testing.assert_array_equal(outputs.draw_overlay(black, found), black)


def test_overlay_of_a_large_image_is_reduced_and_keeps_small_nuclei(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "OVERLAY_MAX_SIDE_PX", 64)
    labels = np.zeros((130, 301), np.uint8)
    labels[91:95, 201:205] = 1
    found = find_nuclei(labels, np.ones(labels.shape, np.float32))
    image = np.full((130, 301, 3), 200, np.uint8)
    outputs.write_overlay(tmp_path / "a.png", image, found)
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert drawn.shape == (26, 61, 3)
    assert (drawn[18, 40] == outputs.CLASS_COLOURS[0]).all()


def test_lines_grow_with_the_image(monkeypatch):
    labels = np.zeros((50, 50), np.uint8)
    labels[10:40, 10:40] = 1
    found = find_nuclei(labels, np.ones(labels.shape, np.float32))
    image = np.full((50, 50, 3), 200, np.uint8)
    thin = (outputs.draw_overlay(image, found) != image).any(axis=2).sum()
    monkeypatch.setattr(outputs, "_LINE_STEP_PX", 20)
    assert (outputs.draw_overlay(image, found) != image).any(axis=2).sum() > 2.5 * thin


def test_a_full_disk_leaves_no_part_and_names_the_file(tmp_path, monkeypatch, nuclei, labels):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(outputs, "_features", full)
    image = np.zeros((*labels.shape, 3), np.uint8)
    for write in (
        lambda: outputs.write_labels(tmp_path / "a.png", labels),
        lambda: outputs.write_instances(tmp_path / "a.tif", labels),
        lambda: outputs.write_overlay(tmp_path / "b.png", image, nuclei),
        lambda: outputs.write_geojson(tmp_path / "a.geojson", nuclei, NAMES, "a"),
        lambda: outputs.write_json(tmp_path / "a.json", {}),
    ):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
        assert Path(caught.value.filename).parent == tmp_path
        assert ".part" not in caught.value.filename
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_stays_when_writing_fails(tmp_path):
    (tmp_path / "nuclei.csv").write_text("old")

    def rows():
        yield "first\n"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        outputs.write_table(tmp_path / "nuclei.csv", rows())
    assert (tmp_path / "nuclei.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_write(tmp_path / "nuclei.csv") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "nuclei.csv").read_text() == "new"
