"""Nuclei against scikit-image's and shapely's definitions."""

import numpy as np
import pytest
import shapely
from scipy.ndimage import gaussian_filter
from skimage.measure import label, regionprops

from dssnet_fast.nuclei import find_nuclei, outlines
from dssnet_fast.python_ref.errors import InputError


def random_maps(number, classes=3):
    """Maps from noise to blobs, with holes, touching corners, nuclei at borders, tiny sizes."""
    random = np.random.default_rng(8)
    for at in range(number):
        height, width = random.integers(1, 40, 2)
        noise = random.normal(size=(height, width))
        if at % 3:
            noise = gaussian_filter(noise, at % 3) * 4
        kinds = random.integers(1, classes, (height, width)) if at % 2 else 1
        labels = ((noise > random.normal()) * kinds).astype(np.uint8)
        yield labels, random.random((height, width), dtype=np.float32)


def polygons_of(instances):
    return [shapely.Polygon(rings[0], rings[1:]) for rings in outlines(instances).to_lists()]


def raster(polygon, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return shapely.contains_xy(polygon, columns + 0.5, rows + 0.5)


def test_instances_are_components_of_one_class_in_raster_order():
    for labels, probability in random_maps(150):
        found = find_nuclei(labels, probability, min_area=0)
        expected = 0
        for kind in range(1, 3):
            expected += label(labels == kind, connectivity=1).max()
        assert len(found) == expected
        assert found.instances.dtype == np.int32
        np.testing.assert_array_equal(found.instances > 0, labels > 0)
        ids, first = np.unique(found.instances, return_index=True)
        first = first[ids > 0]
        np.testing.assert_array_equal(ids[ids > 0], np.arange(1, len(found) + 1))
        assert (np.diff(first) > 0).all()
        np.testing.assert_array_equal(labels.ravel()[first], found.class_index)


def test_measurements_are_those_of_scikit_image():
    seen = 0
    for labels, probability in random_maps(150):
        found = find_nuclei(labels, probability, min_area=3)
        regions = regionprops(found.instances)
        assert len(regions) == len(found)
        seen += len(found)
        expected = {
            "area": [region.area for region in regions],
            "perimeter": [region.perimeter for region in regions],
            "mean_probability": [
                probability[found.instances == region.label].mean() for region in regions
            ],
            "y": [region.centroid[0] + 0.5 for region in regions],
            "x": [region.centroid[1] + 0.5 for region in regions],
        }
        for name, values in expected.items():
            tolerance = 1e-5 if name == "mean_probability" else 1e-9
            np.testing.assert_allclose(getattr(found, name), values, rtol=tolerance, err_msg=name)
        # The square root makes much of rounding near a circle.
        np.testing.assert_allclose(
            found.eccentricity**2, [region.eccentricity**2 for region in regions], atol=1e-9
        )
        boxes = [(box[1], box[0], box[3], box[2]) for box in (region.bbox for region in regions)]
        np.testing.assert_array_equal(found.bounds, np.reshape(boxes, (-1, 4)))
    assert seen > 500


def test_outlines_are_valid_and_enclose_exactly_the_pixels():
    holes = touching = 0
    for labels, probability in random_maps(300):
        found = find_nuclei(labels, probability, min_area=0)
        polygons = polygons_of(found.instances)
        assert len(polygons) == len(found)
        for number, polygon in enumerate(polygons):
            assert polygon.is_valid, shapely.is_valid_reason(polygon)
            assert polygon.area == found.area[number]
            np.testing.assert_array_equal(
                raster(polygon, labels.shape), found.instances == number + 1
            )
            centre = polygon.centroid
            np.testing.assert_allclose((centre.x, centre.y), (found.x[number], found.y[number]))
            assert polygon.bounds == tuple(found.bounds[number])
            holes += len(polygon.interiors)
            touching += any(polygon.exterior.intersects(hole) for hole in polygon.interiors)
    assert holes > 100
    assert touching > 10


def test_rings_are_closed_oriented_and_without_needless_points():
    for labels, probability in random_maps(60):
        for rings in outlines(find_nuclei(labels, probability, 0).instances).to_lists():
            assert shapely.LinearRing(rings[0]).is_ccw
            assert not any(shapely.LinearRing(ring).is_ccw for ring in rings[1:])
            for ring in rings:
                assert ring.dtype == np.int32
                assert (ring[0] == ring[-1]).all()
                steps = np.diff(np.concatenate([ring, ring[1:2]]), axis=0)
                # Along the axes, and every point a corner.
                assert ((steps != 0).sum(axis=1) == 1).all()
                assert ((steps[1:] != 0) != (steps[:-1] != 0)).all()


def test_a_single_pixel():
    labels = np.zeros((3, 4), np.uint8)
    labels[1, 2] = 1
    found = find_nuclei(labels, np.full((3, 4), 0.75, np.float32), min_area=1)
    assert found.area.tolist() == [1]
    assert found.eccentricity.tolist() == [0]
    assert (found.x[0], found.y[0]) == (2.5, 1.5)
    ((ring,),) = outlines(found.instances).to_lists()
    assert ring.tolist() == [[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]


def test_a_ring_that_touches_itself_at_a_corner_is_one_valid_polygon():
    labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    found = find_nuclei(labels, np.ones((3, 3), np.float32), 0)
    (polygon,) = polygons_of(found.instances)
    assert polygon.is_valid
    assert len(polygon.interiors) == 1
    assert polygon.area == 7


def test_corners_do_not_connect_and_classes_do_not_merge():
    labels = np.array([[1, 0], [0, 1]], np.uint8)
    assert len(find_nuclei(labels, np.ones((2, 2), np.float32), 0)) == 2
    labels = np.array([[1, 2], [1, 2]], np.uint8)
    found = find_nuclei(labels, np.ones((2, 2), np.float32), 0)
    assert found.class_index.tolist() == [1, 2]
    assert found.area.tolist() == [2, 2]


def test_min_area_drops_smaller_ones_only_and_ids_stay_dense():
    labels = np.zeros((9, 40), np.uint8)
    for number, length in enumerate((14, 15, 16, 3)):
        labels[2 * number, :length] = 1
    found = find_nuclei(labels, np.ones(labels.shape, np.float32))
    assert found.area.tolist() == [15, 16]
    assert np.unique(found.instances).tolist() == [0, 1, 2]
    assert len(outlines(found.instances)) == 2


@pytest.mark.parametrize("shape", [(1, 1), (5, 7)])
def test_nothing_found(shape):
    found = find_nuclei(np.zeros(shape, np.uint8), np.ones(shape, np.float32))
    assert len(found) == 0
    assert found.bounds.shape == (0, 4)
    assert found.instances.shape == shape
    assert outlines(found.instances).to_lists() == []


def test_an_image_that_is_one_nucleus():
    labels = np.full((20, 30), 2, np.uint8)
    found = find_nuclei(labels, np.ones(labels.shape, np.float32))
    (polygon,) = polygons_of(found.instances)
    assert polygon.equals(shapely.box(0, 0, 30, 20))
    assert found.class_index.tolist() == [2]


def test_wrong_input_is_refused():
    labels, probability = np.ones((4, 4), np.uint8), np.ones((4, 4), np.float32)
    with pytest.raises(InputError, match=r"labels must be uint8 \[H, W\], got int64 \[4, 4\]"):
        find_nuclei(labels.astype(np.int64), probability)
    with pytest.raises(InputError, match="probability must have the shape of labels"):
        find_nuclei(labels, probability[1:])
    with pytest.raises(InputError, match="min_area must be 0 or more"):
        find_nuclei(labels, probability, -1)
    probability[1, 1] = np.nan
    with pytest.raises(InputError, match="probability must be finite"):
        find_nuclei(labels, probability)
