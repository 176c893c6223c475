"""Files of a slide's nuclei, read back with other people's readers."""

import csv
import dataclasses
import errno
import gzip
import json
import uuid
import zlib
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile

from dssnet_fast import qupath
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.wsi.results import Frame, NucleusTable
from dssnet_fast.wsi.writers import geojson, label_images, parquet, polygons, totals
from dssnet_fast.wsi.writers.geojson import GeoJsonWriter
from dssnet_fast.wsi.writers.label_images import write_label_images
from dssnet_fast.wsi.writers.parquet import ParquetWriter
from dssnet_fast.wsi.writers.summary import summary, write_slides_csv
from dssnet_fast.wsi.writers.totals import Distribution, Totals
from slide_results import NAMES, DenseLabels, blobs, nuclei_of, parts, table_of

SCHEMA = json.loads((Path(__file__).parent / "qupath_schema.json").read_text())
PROVENANCE = {"slide": 'a<b>"&é\x01.svs', "options": {"min_area": 1, "mpp": 0.25}, "tiles": [3, 4]}
FLOATS = [
    field.name
    for field in dataclasses.fields(NucleusTable)
    if field.name not in ("id", "class_index", "area", "bounds", "outlines")
]


@pytest.fixture(scope="module")
def labels():
    return blobs(170, 150)


@pytest.fixture(scope="module")
def nuclei(labels):
    found = nuclei_of(labels)
    assert len(found) > 100
    assert (found.area == 1).any()
    return found


@pytest.fixture(scope="module")
def table(nuclei):
    made = table_of(nuclei)
    assert len(made.outlines.rings) - 1 > len(made), "no nucleus has a hole"
    return made


def frame(scale=1.997, origin=(0, 0)):
    return Frame(150, 170, 0.5, scale, origin)


def one_nucleus(labels):
    return table_of(nuclei_of(np.array(labels, np.uint8)))


def write_geojson(path, tables, at, simplify=0.0, names=NAMES):
    with GeoJsonWriter(path, at, names, "slide", PROVENANCE, simplify) as writer:
        for table in tables:
            writer.add(table)
    return read_geojson(path)


def read_geojson(path):
    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    text = gzip.decompress(path.read_bytes()).decode()
    assert "null" not in text
    return json.loads(text, parse_constant=refuse)


def write_parquet(path, tables, at):
    with ParquetWriter(path, at, NAMES, PROVENANCE) as writer:
        for table in tables:
            writer.add(table)
    return pq.read_table(path)


def polygons_of(collection):
    return np.array(
        [shapely.from_geojson(json.dumps(one["geometry"])) for one in collection["features"]]
    )


# GeoJSON


@pytest.mark.parametrize(
    ("scale", "origin"), [(1.0, (0, 0)), (4.0, (0, 0)), (1.997, (0, 0)), (0.3, (-7, -11))]
)
def test_geojson_is_what_qupath_reads(tmp_path, table, scale, origin):
    at = frame(scale, origin)
    collection = write_geojson(tmp_path / "a.geojson.gz", parts(table, 37), at)
    assert collection.pop("dssnet_fast") == PROVENANCE
    jsonschema.validate(collection, SCHEMA)
    assert len(collection["features"]) == len(table)
    found = polygons_of(collection)
    assert shapely.is_valid(found).all()
    # Rounding moves a side by 0.005 px at most.
    slack = 0 if float(scale).is_integer() else 0.005 * shapely.length(found)
    assert (np.abs(shapely.area(found) - table.area * scale**2) <= slack).all()
    ids = set()
    for index, feature in enumerate(collection["features"]):
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            for value in np.ravel(ring).tolist():
                assert value == round(value, 2)
                assert isinstance(value, int) == float(scale).is_integer()
        properties = feature["properties"]
        assert properties["name"] == str(index + 1)
        kind = table.class_index[index]
        assert properties["classification"] == {
            "name": NAMES[kind],
            "color": list(qupath.CLASS_COLOURS[kind - 1]),
        }
        ids.add(feature["id"])
        measured = {
            "Area µm^2": table.area[index] * 0.25,
            "Perimeter µm": table.perimeter[index] * 0.5,
            "Eccentricity": table.eccentricity[index],
            "Solidity": table.solidity[index],
            "Mean probability": table.mean_probability[index],
            "Mean OD": table.mean_od[index],
            "Integrated OD": table.integrated_od[index] * 0.25,
        }
        assert list(properties["measurements"]) == list(measured)
        for name, value in measured.items():
            assert abs(properties["measurements"][name] - value) <= 0.0051
    assert len(ids) == len(table)


def test_outlines_lie_where_the_pixels_are(tmp_path):
    """The one pixel at column 3, row 2, at 2 px of the slide each, from (5, 1) on."""
    image = np.zeros((4, 6))
    image[2, 3] = 1
    table = one_nucleus(image)
    collection = write_geojson(tmp_path / "a.geojson.gz", [table], Frame(6, 4, 0.5, 2.0, (5, 1)))
    assert collection["features"][0]["geometry"]["coordinates"] == [
        [[1, 3], [3, 3], [3, 5], [1, 5], [1, 3]]
    ]
    row = write_parquet(tmp_path / "a.parquet", [table], Frame(6, 4, 0.5, 2.0, (5, 1))).to_pylist()
    assert [row[0][name] for name in ("x", "y", "xmin", "ymin", "xmax", "ymax")] == [
        *(2, 4),
        *(1, 3, 3, 5),
    ]


def test_uuids_are_those_of_the_standard_library():
    namespace = uuid.UUID("6f1d0c5e-5b0f-5d1c-9a53-7a1c7f3c8e21")
    found = qupath.nucleus_uuids("é/a.svs", range(1, 300))
    assert found == [str(uuid.uuid5(namespace, f"é/a.svs/{n}")) for n in range(1, 300)]
    assert qupath.nucleus_uuids("a", []) == []
    # Names of files may hold what is no text.
    assert len(qupath.nucleus_uuids("\udce9.svs", [1])) == 1


@pytest.mark.parametrize("scale", [2.0, 1.997])
@pytest.mark.parametrize("tolerance", [0.8, 1.5, 40.0])
def test_simplified_outlines_stay_valid_and_near(tmp_path, table, scale, tolerance):
    exact = polygons_of(write_geojson(tmp_path / "a.geojson.gz", [table], frame(scale)))
    collection = write_geojson(tmp_path / "b.geojson.gz", [table], frame(scale), tolerance)
    simple = polygons_of(collection)
    assert shapely.is_valid(simple).all()
    assert not shapely.is_empty(simple).any()
    assert shapely.get_num_coordinates(simple).sum() < shapely.get_num_coordinates(exact).sum()
    near = (tolerance + 0.02) * scale
    assert shapely.covers(shapely.buffer(exact, near), simple).all()


def test_a_simplified_outline_that_would_be_invalid_stays_exact(tmp_path, table, monkeypatch):
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])

    def careless(found, *_, **__):
        return np.array([bow, shapely.Polygon(), *found[2:]])

    monkeypatch.setattr(polygons.shapely, "simplify", careless)
    written = polygons.written_outlines(table.outlines, frame(1.0), 1.0)
    np.testing.assert_array_equal(written.points, table.outlines.points)
    np.testing.assert_array_equal(written.nuclei, table.outlines.nuclei)


@pytest.mark.parametrize("wrong", [-1, np.nan, np.inf])
def test_a_tolerance_that_is_no_length_is_refused(tmp_path, table, wrong):
    with pytest.raises(InputError, match="simplify must be"):
        write_geojson(tmp_path / "a.geojson.gz", [table], frame(), wrong)
    assert not list(tmp_path.iterdir())


def test_gzip_says_neither_name_nor_time_and_does_not_depend_on_the_tables(
    tmp_path, table, monkeypatch
):
    monkeypatch.setattr(geojson, "_PIECE_BYTES", 5000)
    for name, size in (("a", 1000), ("b", 7), ("c", 1)):
        write_geojson(tmp_path / f"{name}.geojson.gz", parts(table, size), frame())
    first = (tmp_path / "a.geojson.gz").read_bytes()
    assert first[:4] == b"\x1f\x8b\x08\x00"
    assert first[4:8] == bytes(4)
    assert first == (tmp_path / "b.geojson.gz").read_bytes()
    assert first == (tmp_path / "c.geojson.gz").read_bytes()
    # One member: readers that know no more see all of it.
    alone = zlib.decompressobj(31)
    assert alone.decompress(first).endswith(b"\n]}\n")
    assert alone.eof
    assert not alone.unused_data


def test_the_compressor_is_given_pieces_of_one_size(tmp_path, table, monkeypatch):
    """Not every zlib gives the same bytes when pieces differ."""
    monkeypatch.setattr(geojson, "_PIECE_BYTES", 5000)
    pieces = []

    class Recorder:
        def __init__(self, *_):
            pass

        def compress(self, piece):
            pieces.append(len(piece))
            return b""

        def flush(self):
            return b""

    monkeypatch.setattr(geojson.zlib, "compressobj", Recorder)
    with GeoJsonWriter(tmp_path / "a", frame(), NAMES, "slide", PROVENANCE) as writer:
        for part in parts(table, 13):
            writer.add(part)
    assert set(pieces[:-1]) == {5000}
    assert pieces[-1] < 5000


# GeoParquet


@pytest.mark.parametrize("scale", [1.0, 1.997])
def test_parquet_says_what_geojson_says(tmp_path, table, scale):
    at = frame(scale, (3, -5))
    found = write_parquet(tmp_path / "a.parquet", parts(table, 37), at)
    assert found.column_names == [
        *("id", "class", "class_name", "x", "y", "area_um2", "perimeter_um", "eccentricity"),
        *("solidity", "mean_probability", "mean_od", "integrated_od"),
        *("xmin", "ymin", "xmax", "ymax", "geometry"),
    ]
    columns = found.to_pydict()
    np.testing.assert_array_equal(columns["id"], table.id)
    np.testing.assert_array_equal(columns["class"], table.class_index)
    assert columns["class_name"] == [NAMES[kind] for kind in table.class_index]
    np.testing.assert_array_equal(columns["x"], table.x * scale - 3)
    np.testing.assert_array_equal(columns["y"], table.y * scale + 5)
    np.testing.assert_allclose(columns["area_um2"], table.area * 0.25)
    np.testing.assert_allclose(columns["perimeter_um"], table.perimeter * 0.5)
    np.testing.assert_allclose(columns["integrated_od"], table.integrated_od * 0.25)
    for name in ("eccentricity", "solidity", "mean_probability", "mean_od"):
        np.testing.assert_array_equal(columns[name], getattr(table, name))
    geometry = shapely.from_wkb(columns["geometry"])
    other = polygons_of(write_geojson(tmp_path / "a.geojson.gz", [table], at))
    assert shapely.equals_exact(geometry, other, tolerance=0).all()
    bounds = np.stack([columns[name] for name in ("xmin", "ymin", "xmax", "ymax")], axis=1)
    np.testing.assert_array_equal(bounds, shapely.bounds(geometry))


def test_parquet_is_geoparquet(tmp_path, table):
    write_parquet(tmp_path / "a.parquet", [table], frame())
    metadata = pq.read_metadata(tmp_path / "a.parquet").metadata
    geo = json.loads(metadata[b"geo"])
    geometry = shapely.from_wkb(pq.read_table(tmp_path / "a.parquet")["geometry"].to_pylist())
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    assert column.pop("bbox") == shapely.total_bounds(geometry).tolist()
    assert column == {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None,
        "edges": "planar",
        "orientation": "counterclockwise",
    }
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
    assert json.loads(metadata[b"dssnet_fast"]) == PROVENANCE


def test_row_groups_are_full_whatever_the_tables(tmp_path, table, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 50)
    for name, size in (("a", 1000), ("b", 7), ("c", 50)):
        write_parquet(tmp_path / f"{name}.parquet", parts(table, size), frame())
    found = pq.read_metadata(tmp_path / "a.parquet")
    rows = [found.row_group(index).num_rows for index in range(found.num_row_groups)]
    assert rows[:-1] == [50] * (len(table) // 50)
    assert sum(rows) == len(table)
    assert found.row_group(0).column(0).compression == "ZSTD"
    first = (tmp_path / "a.parquet").read_bytes()
    assert first == (tmp_path / "b.parquet").read_bytes()
    assert first == (tmp_path / "c.parquet").read_bytes()


def test_pages_do_not_depend_on_the_tables(tmp_path, table):
    """A page ends after about 1 MB, so there must be more than that."""
    write_parquet(tmp_path / "a.parquet", [table] * 40, frame())
    write_parquet(tmp_path / "b.parquet", parts(table, 50) * 40, frame())
    geometry = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(16)
    assert geometry.total_uncompressed_size > 3 << 20
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


# Both


def test_no_nuclei(tmp_path):
    nothing = one_nucleus(np.zeros((4, 5)))
    for tables in ([], [nothing]):
        collection = write_geojson(tmp_path / "a.geojson.gz", tables, frame(), simplify=1.0)
        assert collection.pop("dssnet_fast") == PROVENANCE
        assert collection == {"type": "FeatureCollection", "features": []}
        found = write_parquet(tmp_path / "a.parquet", tables, frame())
        assert found.num_rows == 0
        assert len(found.column_names) == 17
        metadata = pq.read_metadata(tmp_path / "a.parquet").metadata
        assert "bbox" not in json.loads(metadata[b"geo"])["columns"]["geometry"]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_leaves_nothing(tmp_path, table, name, value):
    values = getattr(table, name).copy()
    values[4] = value
    wrong = dataclasses.replace(table, **{name: values})
    with pytest.raises(InputError, match=f"nucleus 5: its {name} is {value}"):
        write_geojson(tmp_path / "a.geojson.gz", [table, wrong], frame())
    with pytest.raises(InputError, match=f"nucleus 5: its {name}"):
        write_parquet(tmp_path / "a.parquet", [table, wrong], frame())
    with pytest.raises(InputError, match=f"nucleus 5: its {name}"):
        Totals(frame(), NAMES).add(wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, object()])
def test_provenance_that_json_cannot_say_is_refused(tmp_path, value):
    for make in (
        lambda: GeoJsonWriter(tmp_path / "a.geojson.gz", frame(), NAMES, "a", {"a": value}),
        lambda: ParquetWriter(tmp_path / "a.parquet", frame(), NAMES, {"a": value}),
    ):
        with pytest.raises(InputError, match="provenance cannot be written"):
            make()


class FullDisk:
    """Takes the place of a file or of an encoder."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    write = compress = write_table = __call__


@pytest.mark.parametrize("kind", ["geojson", "parquet", "labels"])
def test_a_full_disk_leaves_no_part_and_names_the_file(
    tmp_path, table, labels, nuclei, monkeypatch, kind
):
    if kind == "geojson":
        monkeypatch.setattr(geojson.zlib, "compressobj", FullDisk)
        path = tmp_path / "a.geojson.gz"
    elif kind == "parquet":
        monkeypatch.setattr(parquet.pq.ParquetWriter, "write_table", FullDisk())
        path = tmp_path / "a.parquet"
    else:
        monkeypatch.setattr(label_images, "_painted", FullDisk())
        path = tmp_path / "a_labels.ome.tif"
    path.write_text("old")
    dense = DenseLabels(labels, nuclei.instances)
    write = {
        "geojson": lambda: write_geojson(path, [table], frame()),
        "parquet": lambda: write_parquet(path, [table], frame()),
        "labels": lambda: write_label_images(path, tmp_path / "b", dense, frame(), {}, 3),
    }[kind]
    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_missing_folder_is_named(tmp_path, labels, nuclei):
    folder = tmp_path / "no"
    dense = DenseLabels(labels, nuclei.instances)
    for write in (
        lambda: write_geojson(folder / "a.geojson.gz", [], frame()),
        lambda: write_parquet(folder / "a.parquet", [], frame()),
        lambda: write_label_images(folder / "a.tif", folder / "b.tif", dense, frame(), {}),
        lambda: write_slides_csv(folder / "slides.csv", []),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            write()
        assert Path(caught.value.filename).parent == folder


# Label images


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 3000), (700, 513), (1025, 1024), (2051, 1537)]
)
def test_label_images_hold_the_maps_at_all_levels(tmp_path, height, width):
    random = np.random.default_rng(height)
    labels = np.zeros((height, width), np.uint8)
    # Some tiles stay empty, some runs go through several.
    inside = random.random((height, width)) < 0.02
    inside[:, width // 2 :] = False
    labels[inside] = random.integers(1, 4, np.count_nonzero(inside))
    labels[::97, width // 5 : 4 * width // 5] = 2
    labels[-1, -1] = 3
    instances = np.where(random.random((height, width)) < 0.8, labels.astype(np.int64) + 70_000, 0)
    instances[labels == 0] = 0
    at = Frame(width, height, 0.2525, 1.0)
    dense = DenseLabels(labels, instances)
    write_label_images(tmp_path / "l.ome.tif", tmp_path / "n.ome.tif", dense, at, PROVENANCE, 2)
    for path, expected in (("l", labels), ("n", instances.astype(np.uint32))):
        with tifffile.TiffFile(tmp_path / f"{path}.ome.tif") as file:
            assert file.is_ome
            assert not file.is_bigtiff
            assert len(file.series) == 1
            levels = file.series[0].levels
            assert max(levels[-1].shape) <= 1024
            assert len(levels) == 1 or max(levels[-2].shape) > 1024
            for level, found in enumerate(levels):
                assert found.dtype == expected.dtype
                page = found.keyframe
                assert (page.tilelength, page.tilewidth) == (512, 512)
                numerator, denominator = page.tags["XResolution"].value
                mpp = 10_000 / (numerator / denominator)
                assert mpp == pytest.approx(0.2525 * 2**level, rel=1e-6)
                np.testing.assert_array_equal(
                    found.asarray(), expected[:: 1 << level, :: 1 << level]
                )


def test_label_images_are_painted_where_no_level_sees_a_run(tmp_path):
    """A px on odd rows and columns is on no level but the first."""
    labels = np.zeros((1100, 1100), np.uint8)
    labels[1, 1] = labels[511, 511] = labels[512, 512] = 1
    dense = DenseLabels(labels, labels.astype(int))
    at = Frame(1100, 1100, 0.25, 1.0)
    write_label_images(tmp_path / "l.ome.tif", tmp_path / "n.ome.tif", dense, at, {})
    for path in ("l", "n"):
        with tifffile.TiffFile(tmp_path / f"{path}.ome.tif") as file:
            sums = [level.asarray().sum() for level in file.series[0].levels]
    assert sums == [3, 1]


def test_label_images_do_not_depend_on_threads(tmp_path, labels, nuclei):
    dense = DenseLabels(np.tile(labels, (9, 9)), np.tile(nuclei.instances, (9, 9)))
    at = Frame(150 * 9, 170 * 9, 0.5, 2.0)
    for threads in (1, 4):
        paths = tmp_path / f"l{threads}", tmp_path / f"n{threads}"
        write_label_images(*paths, dense, at, PROVENANCE, threads)
    for kind in "ln":
        first, second = (tmp_path / f"{kind}{threads}" for threads in (1, 4))
        assert first.read_bytes() == second.read_bytes()


def test_label_images_say_what_they_are(tmp_path, labels, nuclei):
    dense = DenseLabels(labels, nuclei.instances)
    at = Frame(150, 170, 0.2525, 1.0)
    write_label_images(tmp_path / "l.ome.tif", tmp_path / "n.ome.tif", dense, at, PROVENANCE)
    for path, kind in (("l", "uint8"), ("n", "uint32")):
        with tifffile.TiffFile(tmp_path / f"{path}.ome.tif") as file:
            text = file.ome_metadata
        root = ElementTree.fromstring(text)
        space = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
        assert root.tag == f"{space}OME"
        assert "UUID" not in root.attrib
        pixels = root.find(f"{space}Image/{space}Pixels")
        assert (pixels.get("SizeX"), pixels.get("SizeY")) == ("150", "170")
        assert pixels.get("Type") == kind
        assert pixels.get("PhysicalSizeX") == pixels.get("PhysicalSizeY") == "0.2525"
        assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
        annotation = root.find(f"{space}StructuredAnnotations/{space}MapAnnotation")
        reference = root.find(f"{space}Image/{space}AnnotationRef")
        assert reference.get("ID") == annotation.get("ID")
        said = {one.get("K"): one.text for one in annotation.iter(f"{space}M")}
        assert said["slide"] == 'a<b>"&é�.svs'
        assert json.loads(said["options"]) == PROVENANCE["options"]


def test_large_maps_are_bigtiffs(tmp_path, labels, nuclei, monkeypatch):
    monkeypatch.setattr(label_images, "_CLASSIC_TIFF_BYTES", 512 * 512)
    dense = DenseLabels(labels, nuclei.instances)
    write_label_images(tmp_path / "l", tmp_path / "n", dense, frame(), {})
    for path, expected, big in (("l", labels, False), ("n", nuclei.instances, True)):
        with tifffile.TiffFile(tmp_path / path) as file:
            assert file.is_bigtiff == big
            np.testing.assert_array_equal(file.asarray(), expected)


def test_openslide_knows_label_images(tmp_path, labels, nuclei):
    openslide = pytest.importorskip("openslide")
    dense = DenseLabels(labels, nuclei.instances)
    at = Frame(150, 170, 0.25, 1.0)
    write_label_images(tmp_path / "l.ome.tif", tmp_path / "n.ome.tif", dense, at, PROVENANCE)
    with openslide.OpenSlide(tmp_path / "l.ome.tif") as slide:
        assert slide.dimensions == (150, 170)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        found = np.asarray(slide.read_region((0, 0), 0, (150, 170)))[:, :, 0]
    np.testing.assert_array_equal(found, labels)
    assert openslide.OpenSlide.detect_format(tmp_path / "n.ome.tif") in (None, "generic-tiff")


# Totals


def facts(found, **other):
    given = {
        "name": "a",
        "slide": "/slides/a.svs",
        "reader": "openslide aperio",
        "slide_size": (300, 340),
        "slide_mpp": 0.25,
        "mpp_source": "aperio.MPP",
        "analysed_mm2": 2.0,
        "unreadable": [],
        "files": {"geojson": "a.geojson.gz"},
        "provenance": PROVENANCE,
    }
    return summary(found, **(given | other))


def gathered(tables, at=None, names=NAMES):
    found = Totals(at or frame(2.0), names)
    for table in tables:
        found.add(table)
    return found


def test_distributions_agree_with_numpy():
    random = np.random.default_rng(1)
    kinds = random.integers(1, 3, 999)
    areas = random.integers(1, 300, 999)
    whole, fine = Distribution(3, 0.25, 400, whole=True), Distribution(3, 0.001, 2000)
    values = random.random(999)
    for part in (slice(0, 10), slice(10, 600), slice(600, None)):
        whole.add(kinds[part], areas[part])
        fine.add(kinds[part], values[part] / 0.001)
    at_once = Distribution(3, 0.001, 2000)
    at_once.add(kinds, values / 0.001)
    assert [at_once.mean(kind) for kind in (None, 1, 2)] == [fine.mean(k) for k in (None, 1, 2)]
    for kind in (None, 1, 2):
        chosen = kinds == kind if kind else slice(None)
        assert whole.mean(kind) == pytest.approx(np.mean(areas[chosen] * 0.25), rel=1e-12)
        assert fine.mean(kind) == pytest.approx(np.mean(values[chosen]), rel=1e-6)
        for share in (0, 0.1, 0.5, 0.995, 1):
            expected = np.quantile(areas[chosen] * 0.25, share)
            assert whole.quantile(share, kind) == pytest.approx(expected)
            expected = np.quantile(values[chosen], share)
            assert abs(fine.quantile(share, kind) - expected) < 0.0011
    assert whole.mean(0) is None
    assert whole.quantile(0.5, 0) is None


def test_values_beyond_the_bins_count_in_the_last():
    found = Distribution(2, 1.0, 10, whole=True)
    found.add(np.array([1, 1, 1]), np.array([3, 500, 600]))
    assert found.counts[1].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert found.mean() == pytest.approx(1103 / 3)


def test_totals_do_not_depend_on_the_tables(table):
    found = facts(gathered([table]))
    assert facts(gathered(parts(table, 7))) == found
    assert facts(gathered(parts(table, 1))) == found
    assert found["nuclei"] == len(table)
    assert found["nuclei_per_class"] == {
        NAMES[kind]: np.count_nonzero(table.class_index == kind) for kind in (1, 2)
    }
    assert found["statistics"]["area_um2"]["mean"] == pytest.approx(
        np.mean(table.area) / 4, abs=1e-4
    )
    assert found["statistics"]["mean_od"]["median"] == pytest.approx(
        np.median(table.mean_od), abs=0.001
    )


def test_gallery_lists_the_most_extreme_ties_by_id(table):
    equal = dataclasses.replace(table, mean_od=np.round(table.mean_od * 4) / 4)
    found = gathered(parts(equal, 13), frame(2.0, (3, 4)))
    for name, values in (("largest", equal.area), ("darkest", equal.mean_od)):
        expected = sorted(range(len(equal)), key=lambda i, v=values: (-v[i], i))[:24]
        listed = facts(found)["gallery"][name]
        assert [one["id"] for one in listed] == [index + 1 for index in expected]
        for one, index in zip(listed, expected, strict=True):
            assert one["class"] == equal.class_index[index]
            assert one["x"] == pytest.approx(equal.x[index] * 2 - 3, abs=0.0051)
            assert one["y"] == pytest.approx(equal.y[index] * 2 - 4, abs=0.0051)
            assert one["area_um2"] == pytest.approx(equal.area[index] / 4, abs=0.0051)
            assert one["mean_od"] == pytest.approx(equal.mean_od[index], abs=1e-4)
    largest = found.largest[0]
    polygon = shapely.Polygon(largest.rings[0], largest.rings[1:])
    assert polygon.area == largest.area
    assert polygon.bounds == largest.bounds


def test_density_counts_centroids_and_stays_small(table, monkeypatch):
    assert gathered([table]).cell == 100  # 50 micrometres of 0.5 a px
    monkeypatch.setattr(totals, "_DENSITY_CELLS", 20)
    monkeypatch.setattr(totals, "_DENSITY_CELL_UM", 1)
    found = gathered(parts(table, 50))
    assert found.cell == 9
    assert found.density.shape == (19, 17)
    expected, _, _ = np.histogram2d(table.y, table.x, bins=(np.arange(20) * 9, np.arange(18) * 9))
    np.testing.assert_array_equal(found.density, expected)


def test_summary_is_plain_json(table):
    found = facts(gathered([table]), unreadable=[(1, 2, 3, 4)])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["format"] == "dssnet_fast.slide"
    assert found["version"] == 1
    assert found["class_colours"] == [[0, 0, 0], [0, 230, 60], [255, 200, 0]]
    assert found["analysis_size"] == [150, 170]
    assert found["unreadable"] == [[1, 2, 3, 4]]
    empty = facts(gathered([]), analysed_mm2=0.0)
    assert empty["nuclei"] == 0
    assert empty["gallery"] == {"largest": [], "darkest": []}
    assert empty["statistics"]["area_um2"] == {"mean": None, "median": None}


def test_slides_csv(tmp_path, table):
    done = facts(gathered([table]), name='a,"b"', unreadable=[(1, 2, 3, 4)])
    empty = facts(gathered([], names=("background", "other")), name="e", analysed_mm2=0.0)
    failed = {"name": "c\udce9", "slide": "/slides/c.svs", "status": "failed: it\nis no slide"}
    write_slides_csv(tmp_path / "slides.csv", [done, empty, failed])
    with open(tmp_path / "slides.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ['a,"b"', "e", "c\\udce9"]
    assert [row["status"] for row in rows] == ["done", "done", "failed: it\nis no slide"]
    assert [row["nuclei"] for row in rows] == [str(len(table)), "0", ""]
    assert rows[0]["nuclei nucleus"] == str(np.count_nonzero(table.class_index == 1))
    assert [row["nuclei other"] for row in rows] == ["", "0", ""]
    assert float(rows[0]["density_per_mm2"]) == len(table) / 2
    assert rows[1]["density_per_mm2"] == rows[1]["median_area_um2"] == ""
    assert [row["unreadable_areas"] for row in rows] == ["1", "0", ""]
    assert rows[0]["mpp_source"] == "aperio.MPP"
    assert None not in rows[2].values()
