"""Nuclei that tile borders cut equal those of the image that nobody cut."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import shapely
from scipy.ndimage import gaussian_filter
from skimage.measure import regionprops

from dssnet_fast import contours, separate
from dssnet_fast.nuclei import find_nuclei, probability_units
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.runs import run_sums
from dssnet_fast.tiling import Box, plan
from dssnet_fast.wsi import measure
from dssnet_fast.wsi.measure import OpticalDensity
from dssnet_fast.wsi.results import join_tables
from dssnet_fast.wsi.stitch import Stitched
from dssnet_fast.wsi.tile_nuclei import TileFile, find_tile_nuclei, to_bytes

GLASS = (250.0, 240.0, 245.0)


TOP = 3


def random_image(random, height, width, roughness):
    """Labels of two classes, probabilities, levels, pixels."""
    noise = gaussian_filter(random.normal(size=(height, width)), roughness)
    labels = (noise > np.quantile(noise, random.uniform(0.2, 0.9))).astype(np.uint8)
    labels *= (
        random.integers(1, 3, (height // 8 + 1, width // 8 + 1), np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)[:height, :width]
    )
    probability = random.random((height, width), dtype=np.float32)
    depth = gaussian_filter(random.normal(size=(height, width)), 2)
    levels = np.searchsorted(np.quantile(depth, [0.4, 0.6, 0.8]), depth).astype(np.uint8)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    return labels, probability, levels, pixels


def find_in_tile(image, core, whole, min_area=5):
    labels, probability, levels, pixels = (part[core.within(whole)] for part in image)
    return find_tile_nuclei(
        labels, probability, levels, TOP, pixels, OpticalDensity(GLASS), core, whole, min_area
    )


def stitch(folder, image, cores, min_area=5, **options):
    whole = Box(0, 0, *image[0].shape)
    files = []
    for number, core in enumerate(cores):
        files.append(folder / f"{number}.safetensors")
        files[-1].write_bytes(to_bytes(find_in_tile(image, core, whole, min_area)))
    return Stitched(cores, files, min_area, **options)


def dense(runs, shape, step=1):
    labels, ids = np.zeros(shape, np.uint8), np.zeros(shape, np.uint32)
    for row, start, end, label, number in zip(
        runs.row, runs.start, runs.end, runs.label, runs.id, strict=True
    ):
        assert row % step == 0
        labels[row, start:end] = label
        ids[row, start:end] = number
    return labels, ids


def by_place(table):
    """Columns in the order of the nuclei's first points, whatever their ids."""
    order = np.lexsort(table.outlines.points[table.outlines.rings[table.outlines.nuclei[:-1]]].T)
    return table[order]


@pytest.fixture(autouse=True)
def _small_seeds(monkeypatch):
    """So that small images have many nuclei that touch."""
    monkeypatch.setattr(separate, "SEED_AREA", 6)


@pytest.mark.parametrize("roughness", [0.7, 2, 4])
@pytest.mark.parametrize("tile", [8, 24, 56])
def test_any_tiles_give_what_the_whole_image_gives(tmp_path, roughness, tile):
    random = np.random.default_rng(tile)
    height, width = (int(side) for side in random.integers(90, 130, 2))
    image = random_image(random, height, width, roughness)
    cores = [part.core for part in plan(height, width, tile, 0)]
    cut = stitch(tmp_path, image, cores)
    (tmp_path / "whole").mkdir()
    whole = stitch(tmp_path / "whole", image, [Box(0, 0, height, width)])
    tables = list(cut.tables())
    table = join_tables(tables)
    assert len(table) == cut.count > 3
    np.testing.assert_array_equal(table.id, np.arange(1, cut.count + 1))
    expected = by_place(join_tables(list(whole.tables())))
    table = by_place(table)
    for field in fields(expected):
        if field.name not in ("id", "outlines"):
            np.testing.assert_array_equal(
                getattr(table, field.name), getattr(expected, field.name), err_msg=field.name
            )
    for field in fields(contours.Outlines):
        np.testing.assert_array_equal(
            getattr(table.outlines, field.name), getattr(expected.outlines, field.name)
        )
    labels, ids = dense(cut.rows(0, height, 1), image[0].shape)
    np.testing.assert_array_equal(labels, image[0])
    # The same pixels belong together, and they are where the outlines are.
    instances = find_nuclei(*image[:2], 5, image[2]).instances
    assert instances.max() > find_nuclei(*image[:2], 5).instances.max() + 3
    pairs = np.unique(np.stack([ids.ravel(), instances.ravel()]), axis=1)
    assert pairs.shape[1] == cut.count + 1
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == cut.count + 1


def test_measurements_are_those_of_scikit_image_and_shapely(tmp_path):
    random = np.random.default_rng(3)
    image = random_image(random, 120, 150, 3)
    cut = stitch(tmp_path, image, [part.core for part in plan(120, 150, 40, 0)])
    table = join_tables(list(cut.tables()))
    labels, ids = dense(cut.rows(0, 120, 1), image[0].shape)
    density = np.log10(np.array(GLASS) / np.maximum(image[3], 1)).clip(0).mean(axis=2)
    regions = regionprops(ids.astype(np.int32))
    assert len(regions) == len(table) > 20
    for at, region in enumerate(regions):
        inside = ids == region.label
        polygon = shapely.Polygon(*_rings(table.outlines.to_lists()[at]))
        assert polygon.is_valid
        assert polygon.area == table.area[at] == region.area
        assert table.class_index[at] == labels[inside][0]
        np.testing.assert_allclose(
            [table.y[at], table.x[at]], np.array(region.centroid) + 0.5, rtol=1e-12
        )
        np.testing.assert_allclose(table.perimeter[at], region.perimeter, rtol=1e-12)
        np.testing.assert_allclose(table.mean_probability[at], image[1][inside].mean(), rtol=1e-5)
        np.testing.assert_allclose(table.mean_od[at], density[inside].mean(), atol=1e-4)
        np.testing.assert_allclose(
            table.integrated_od[at], density[inside].sum(), atol=1e-4 * region.area
        )
        np.testing.assert_allclose(
            table.solidity[at], region.area / polygon.convex_hull.area, rtol=1e-12
        )
        np.testing.assert_allclose(table.eccentricity[at] ** 2, region.eccentricity**2, atol=1e-9)


def _rings(rings):
    return rings[0], rings[1:]


def test_a_nucleus_that_only_another_tile_can_tell_from_its_neighbour(tmp_path):
    """Two squares of 7 px and what lies between them; a border cuts one of the seeds in two."""
    labels = np.zeros((16, 32), np.uint8)
    labels[4:11, 4:20] = 1
    levels = np.zeros_like(labels)
    levels[5:10, 5:9] = levels[5:10, 14:18] = TOP
    random = np.random.default_rng(2)
    image = (
        labels,
        random.random(labels.shape, np.float32),
        levels,
        random.integers(0, 256, (16, 32, 3), np.uint8),
    )
    for cores in ([Box(0, 0, 16, 16), Box(0, 16, 16, 32)], [Box(0, 0, 8, 32), Box(8, 0, 16, 32)]):
        cut = stitch(tmp_path, image, cores)
        table = join_tables(list(cut.tables()))
        assert table.area.tolist() == [7 * 8, 7 * 8]
        assert table.bounds.tolist() == [[4, 4, 12, 11], [12, 4, 20, 11]]
        _, ids = dense(cut.rows(0, 16, 1), labels.shape)
        for number, probability in zip(table.id, table.mean_probability, strict=True):
            np.testing.assert_allclose(probability, image[1][ids == number].mean(), rtol=1e-6)


def test_what_may_be_cut_is_stored_pixel_by_pixel_and_the_rest_in_sums():
    labels = np.ones((8, 20), np.uint8)
    levels = np.zeros_like(labels)
    levels[1:7, 1:15] = TOP  # a seed for certain
    levels[1:7, 17] = 1  # not the highest level: its runs may be cut
    levels[4, 19] = TOP  # may be a crumb
    probability = np.random.default_rng(0).random(labels.shape, np.float32)
    image = (labels, probability, levels, np.zeros((8, 20, 3), np.uint8))
    found = find_in_tile(image, Box(0, 0, 8, 20), Box(0, 0, 8, 40)).open
    assert found.settled.sum() == 6
    assert (found.runs.length[found.settled] == 14).all()
    assert len(found.probability) == found.values.sum() == 8 * 20 - 6 * 13
    sums = run_sums(found.probability, found.values)
    for row, start, end, units in zip(
        found.runs.row, found.runs.start, found.runs.end, sums, strict=True
    ):
        assert units == probability_units(probability[row, start:end]).sum()


def test_rows_are_sampled_in_bands(tmp_path):
    image = random_image(np.random.default_rng(5), 100, 90, 2)
    cut = stitch(tmp_path, image, [part.core for part in plan(100, 90, 24, 0)])
    labels, ids = dense(cut.rows(0, 100, 1), image[0].shape)
    for step in (1, 2, 8):
        for top in range(0, 100, 16):
            runs = cut.rows(top, min(top + 16, 100), step)
            assert (np.diff(runs.row.astype(int) * 1000 + runs.start) > 0).all()
            some_labels, some_ids = dense(runs, image[0].shape, step)
            keep = np.zeros(labels.shape, bool)
            keep[top : top + 16] = True
            keep &= (np.arange(100) % step == 0)[:, None]
            np.testing.assert_array_equal(some_labels, labels * keep)
            np.testing.assert_array_equal(some_ids, ids * keep)


def test_nuclei_that_do_not_count_are_left_out_and_ids_have_no_gaps(tmp_path):
    image = random_image(np.random.default_rng(6), 100, 90, 2)
    cores = [part.core for part in plan(100, 90, 24, 0)]
    everything = join_tables(list(stitch(tmp_path, image, cores).tables()))
    some = stitch(tmp_path, image, cores, counts=lambda x, y: x < 40)
    table = join_tables(list(some.tables()))
    np.testing.assert_array_equal(np.sort(table.x), np.sort(everything.x[everything.x < 40]))
    np.testing.assert_array_equal(table.id, np.arange(1, len(table) + 1))
    _, ids = dense(some.rows(0, 100, 1), image[0].shape)
    np.testing.assert_array_equal(np.unique(ids), np.arange(len(table) + 1))
    np.testing.assert_array_equal(np.bincount(ids.ravel())[1:], table.area)


def test_tiles_may_leave_gaps(tmp_path):
    labels = np.ones((8, 24), np.uint8)
    image = (
        labels,
        np.ones(labels.shape, np.float32),
        labels,
        np.zeros((8, 24, 3), np.uint8),
    )
    cut = stitch(tmp_path, image, [Box(0, 0, 8, 8), Box(0, 16, 8, 24)])
    table = join_tables(list(cut.tables()))
    assert table.area.tolist() == [64, 64]
    assert table.bounds.tolist() == [[0, 0, 8, 8], [16, 0, 24, 8]]


def test_nothing_found(tmp_path):
    labels = np.zeros((16, 16), np.uint8)
    image = (
        labels,
        np.ones(labels.shape, np.float32),
        labels,
        np.zeros((16, 16, 3), np.uint8),
    )
    cut = stitch(tmp_path, image, [part.core for part in plan(16, 16, 8, 0)])
    assert cut.count == 0
    assert len(join_tables(list(cut.tables()))) == 0
    assert len(cut.rows(0, 16, 1).row) == 0


@pytest.mark.parametrize("canvas", [64, 700, 5000])
def test_nuclei_larger_than_a_canvas(tmp_path, monkeypatch, canvas):
    image = random_image(np.random.default_rng(9), 120, 110, 3)
    image[0][image[0] > 0] = 1
    cores = [part.core for part in plan(120, 110, 40, 0)]
    expected = join_tables(list(stitch(tmp_path, image, cores).tables()))
    monkeypatch.setattr(measure, "_CANVAS_PX", canvas)
    table = join_tables(list(stitch(tmp_path, image, cores).tables()))
    assert (expected.area > canvas).any() or canvas > 64
    np.testing.assert_allclose(table.perimeter, expected.perimeter, rtol=1e-12)
    for field in fields(contours.Outlines):
        np.testing.assert_array_equal(
            getattr(table.outlines, field.name), getattr(expected.outlines, field.name)
        )


def test_the_same_tile_gives_the_same_bytes_and_damage_is_named(tmp_path):
    image = random_image(np.random.default_rng(1), 64, 64, 2)
    made = [to_bytes(find_in_tile(image, Box(0, 0, 64, 64), Box(0, 0, 64, 90))) for _ in range(2)]
    assert made[0] == made[1]
    path = tmp_path / "tile.safetensors"
    path.write_bytes(made[0][: len(made[0]) // 2])
    with pytest.raises(InputError, match="damaged"):
        TileFile(path)


def test_probabilities_must_be_finite():
    labels = np.ones((8, 8), np.uint8)
    probability = np.full((8, 8), np.nan, np.float32)
    image = (labels, probability, labels, np.zeros((8, 8, 3), np.uint8))
    for whole in (Box(0, 0, 8, 8), Box(0, 0, 8, 16)):
        with pytest.raises(InputError, match="finite"):
            find_in_tile(image, Box(0, 0, 8, 8), whole)
