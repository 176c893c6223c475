"""Touching nuclei against a division that looks at pixels one by one, and by hand."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from skimage.segmentation import watershed

from dssnet_fast import separate
from dssnet_fast.nuclei import find_nuclei, outlines
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.runs import connect, find_runs
from dssnet_fast.separate import Separation, check, choose, divide, settled

SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def instances_of(labels, levels):
    """int32 [H, W]; probabilities do not matter."""
    return find_nuclei(labels, np.ones(labels.shape, np.float32), 0, levels).instances


def parts_of(pixels):
    """Connected parts of a set of (row, column), by their first pixels."""
    left, parts = set(pixels), []
    while left:
        part, waiting = set(), [min(left)]
        while waiting:
            pixel = waiting.pop()
            if pixel in left:
                left.remove(pixel)
                part.add(pixel)
                waiting += [(pixel[0] + down, pixel[1] + right) for down, right in SIDES]
        parts.append(part)
    return parts


def divided_by_hand(component, levels):
    """The nuclei of one component, a set of (row, column): sets of (row, column)."""
    seeds = []
    for lowest in range(levels.max(), 0, -1):
        for part in parts_of({pixel for pixel in component if levels[pixel] >= lowest}):
            if len(part) >= separate.SEED_AREA and not any(seed & part for seed in seeds):
                seeds.append(part)
    if len(seeds) < 2:
        return [component]
    seeds.sort(key=min)
    owner = {pixel: number for number, seed in enumerate(seeds) for pixel in seed}
    for lowest in range(levels.max(), -1, -1):
        while True:
            reached = {}
            for row, column in component - owner.keys():
                beside = [(row + down, column + right) for down, right in SIDES]
                near = [owner[pixel] for pixel in beside if pixel in owner]
                if near and levels[row, column] >= lowest:
                    reached[row, column] = min(near)
            if not reached:
                break
            owner |= reached
    return [{pixel for pixel in owner if owner[pixel] == number} for number in range(len(seeds))]


def by_hand(labels, levels):
    """What `instances_of` gives, pixel by pixel."""
    nuclei = []
    for kind in np.unique(labels[labels > 0]):
        for component in parts_of(set(zip(*(labels == kind).nonzero(), strict=True))):
            nuclei += divided_by_hand(component, levels)
    instances = np.zeros(labels.shape, np.int32)
    for number, nucleus in enumerate(sorted(nuclei, key=min), 1):
        for pixel in nucleus:
            instances[pixel] = number
    return instances


def random_map(random, side=45):
    """Labels of up to two classes and levels up to 3, from noise to smooth hills."""
    height, width = random.integers(1, side, 2)
    noise = gaussian_filter(random.normal(size=(height, width)), random.choice([0, 0.7, 1.5, 3]))
    labels = (noise >= np.quantile(noise, random.uniform(0, 0.7))).astype(np.uint8)
    if random.random() < 0.5:
        labels[:, width // 2 :] *= 2
    steps = np.sort(random.uniform(0, 1, random.integers(1, 4)))
    return labels, np.searchsorted(np.quantile(noise, steps), noise).astype(np.uint8)


def discs(gap, radius=7, classes=(1, 1), height=25):
    """Two discs beside each other, their centres `gap` apart; each pixel's distance to a centre."""
    rows, columns = np.mgrid[:height, : gap + 25]
    distances = [np.hypot(rows - height // 2, columns - 12 - x) for x in (0, gap)]
    labels = np.zeros(rows.shape, np.uint8)
    for distance, kind in zip(distances, classes, strict=True):
        labels[(distance <= radius) & (labels == 0)] = kind
    return labels, np.minimum(*distances)


# --- by hand -------------------------------------------------------------------------------------


def test_two_discs_with_an_edge_between_them():
    labels, distance = discs(gap=12)
    levels = (distance < 5).astype(np.uint8)
    assert label(labels, connectivity=1).max() == 1
    found = instances_of(labels, levels)
    assert found.max() == 2
    np.testing.assert_array_equal(found > 0, labels > 0)
    # They meet in the middle, whose column is equally far from both and goes to the first.
    middle = 12 + 6
    assert set(np.unique(found[:, : middle + 1])) == {0, 1}
    assert set(np.unique(found[:, middle + 1 :])) == {0, 2}


def test_an_edge_with_a_gap_is_no_edge():
    labels, distance = discs(gap=12)
    levels = (distance < 5).astype(np.uint8)
    levels[12, 12:24] = 1
    assert instances_of(labels, levels).max() == 1


@pytest.mark.parametrize("level", [0, 1])
def test_components_without_a_seed_and_with_one_stay_whole(level):
    labels, distance = discs(gap=12)
    levels = np.zeros_like(labels)
    levels[:, :18] = level * (distance[:, :18] < 5)
    np.testing.assert_array_equal(instances_of(labels, levels), labels)


def test_a_ring_is_divided_once_around():
    rows, columns = np.mgrid[-15:16, -15:16]
    radius = np.hypot(rows, columns)
    labels = ((radius > 7) & (radius < 14)).astype(np.uint8)
    levels = labels * (np.abs(rows) > 3)
    found = instances_of(labels, levels)
    # The upper half first; it also has the pixels that are as far from both.
    np.testing.assert_array_equal(found, labels * (1 + (rows > 0)))


def test_a_tie_goes_to_the_seed_that_comes_first_row_by_row(monkeypatch):
    monkeypatch.setattr(separate, "SEED_AREA", 1)
    labels = np.ones((3, 5), np.uint8)
    levels = np.zeros_like(labels)
    levels[2, 0] = levels[1, 4] = 1
    # The seed to the right lies higher, so it is the first.
    expected = np.array([[2, 2, 1, 1, 1], [2, 2, 1, 1, 1], [2, 2, 2, 1, 1]])
    # The ids are in the order of the nuclei's own first pixels, not of the seeds'.
    np.testing.assert_array_equal(instances_of(labels, levels), 3 - expected)


def test_small_parts_are_no_seeds(monkeypatch):
    labels, distance = discs(gap=12)
    levels = (distance < 5).astype(np.uint8)
    area = int(levels[:, 18:].sum())
    monkeypatch.setattr(separate, "SEED_AREA", area)
    assert instances_of(labels, levels).max() == 2
    monkeypatch.setattr(separate, "SEED_AREA", area + 1)
    assert instances_of(labels, levels).max() == 1


def test_crumbs_of_the_interior_are_divided_like_all_else():
    labels, distance = discs(gap=12)
    levels = (distance < 5).astype(np.uint8)
    without = instances_of(labels, levels)
    levels[11:14, 18] = 1  # in the middle of the edge
    np.testing.assert_array_equal(instances_of(labels, levels), without)


def test_classes_that_touch_do_not_grow_into_each_other():
    labels, distance = discs(gap=12, classes=(1, 2))
    levels = (distance < 5).astype(np.uint8)
    np.testing.assert_array_equal(instances_of(labels, levels), labels)
    # Nor do seeds of one make nuclei of the other.
    three = np.concatenate([labels, np.where(labels == 1, 2, labels)[:, 5:]], axis=1)
    levels = np.concatenate([levels, levels[:, 5:]], axis=1)
    np.testing.assert_array_equal(instances_of(three, levels), by_hand(three, levels))


def test_lower_levels_find_nuclei_that_higher_ones_miss():
    labels, distance = discs(gap=12)
    levels = (distance < 5).astype(np.uint8)
    levels[:, :18] *= 2
    found = instances_of(labels, levels)
    assert found.max() == 2
    # A part that has a seed is none again.
    levels[12, 12:24] = np.maximum(levels[12, 12:24], 1)
    assert instances_of(labels, levels).max() == 1


def test_higher_levels_are_grown_over_first():
    labels = np.ones((5, 24), np.uint8)
    levels = np.zeros_like(labels)
    levels[:, :5] = levels[:, -5:] = 2
    levels[:, 5:15] = 1
    found = instances_of(labels, levels)
    # Of the four columns of level 0 each has two; that of level 1 is far into the other's half.
    np.testing.assert_array_equal(found, np.where(np.arange(24) < 17, 1, 2) * labels)


# --- at random -----------------------------------------------------------------------------------


def test_any_map_is_divided_as_by_hand(monkeypatch):
    random = np.random.default_rng(1)
    divided = 0
    for _ in range(150):
        monkeypatch.setattr(separate, "SEED_AREA", int(random.integers(1, 12)))
        labels, levels = random_map(random)
        found = instances_of(labels, levels)
        np.testing.assert_array_equal(found, by_hand(labels, levels))
        divided += int(found.max()) - int(instances_of(labels, None).max())
    assert divided > 300


def test_every_pixel_has_a_nucleus_and_each_is_connected_and_no_crumb(monkeypatch):
    monkeypatch.setattr(separate, "SEED_AREA", 6)
    random = np.random.default_rng(2)
    for _ in range(60):
        labels, levels = random_map(random)
        found = instances_of(labels, levels)
        whole = instances_of(labels, None)
        np.testing.assert_array_equal(found > 0, labels > 0)
        ids, first, area = np.unique(found, return_index=True, return_counts=True)
        np.testing.assert_array_equal(np.diff(first[ids > 0]) > 0, True)
        assert label(found, connectivity=1).max() == found.max() == (ids > 0).sum()
        for number, size in zip(ids[ids > 0], area[ids > 0], strict=True):
            (component,) = np.unique(whole[found == number])
            assert len(np.unique(labels[found == number])) == 1
            assert size >= 6 or size == (whole == component).sum()
        assert len(outlines(found)) == found.max()


def test_what_lies_around_a_component_makes_no_difference(monkeypatch):
    monkeypatch.setattr(separate, "SEED_AREA", 3)
    random = np.random.default_rng(3)
    for _ in range(40):
        labels, levels = random_map(random, 30)
        height, width = labels.shape
        canvas, depth = (np.zeros((height + 40, width + 40), np.uint8) for _ in range(2))
        down, right = random.integers(1, 39, 2)
        canvas[:] = random.integers(0, 3, canvas.shape)
        depth[:] = random.integers(0, 4, canvas.shape)
        inside = np.s_[down : down + height, right : right + width]
        canvas[down - 1 : down + height + 1, right - 1 : right + width + 1] = 0
        canvas[inside], depth[inside] = labels, levels
        found = instances_of(canvas, depth)[inside]
        expected = instances_of(labels, levels)
        pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def test_scikit_images_watershed_differs_only_where_seeds_are_equally_far():
    """It floods from the same seeds but breaks ties by the order in which it happens to queue."""
    random = np.random.default_rng(4)
    compared = 0
    for _ in range(20):
        noise = gaussian_filter(random.normal(size=(80, 90)), 3)
        labels = (noise > np.quantile(noise, 0.4)).astype(np.uint8)
        levels = (noise > np.quantile(noise, 0.7)).astype(np.uint8) * labels
        found = instances_of(labels, levels)
        # Its seeds, one to a nucleus.
        parts = label(levels, connectivity=1)
        area = np.bincount(parts.ravel())
        seeds = np.where((area >= separate.SEED_AREA)[parts] & (parts > 0), found, 0)
        flooded = watershed(np.zeros(labels.shape), seeds, mask=(labels > 0), connectivity=1)
        differs = (found != flooded) & (flooded > 0)
        compared += int((flooded > 0).sum())
        assert differs.mean() < 0.01
        # A pixel that went elsewhere can be reached from there in as many steps.
        for row, column in zip(*differs.nonzero(), strict=True):
            component = label(labels, connectivity=1)
            distances = [
                _steps(component == component[row, column], seeds == number)[row, column]
                for number in (found[row, column], flooded[row, column])
            ]
            assert distances[0] == distances[1]
    assert compared > 10_000


def _steps(mask, start):
    """Rounds of growth through sides inside a mask until each pixel is reached."""
    steps = np.where(start, 0, -1)
    count = 0
    while True:
        count += 1
        reached = np.pad(steps >= 0, 1)
        near = reached[:-2, 1:-1] | reached[2:, 1:-1] | reached[1:-1, :-2] | reached[1:-1, 2:]
        new = near & mask & (steps < 0)
        if not new.any():
            return steps
        steps[new] = count


def test_many_components_are_grown_some_at_a_time(monkeypatch):
    random = np.random.default_rng(5)
    maps = [random_map(random, 90) for _ in range(10)]
    monkeypatch.setattr(separate, "SEED_AREA", 4)
    expected = [instances_of(*one) for one in maps]
    monkeypatch.setattr(separate, "_PX_AT_ONCE", 100)
    for one, instances in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(instances_of(*one), instances)


def test_settled_runs_are_cut_by_no_division_of_any_whole(monkeypatch):
    monkeypatch.setattr(separate, "SEED_AREA", 5)
    random = np.random.default_rng(6)
    some = cut = 0
    for _ in range(120):
        labels, levels = random_map(random)
        height, width = labels.shape
        top, left = int(random.integers(0, height)), int(random.integers(0, width))
        part = find_runs(labels[top:, left:], levels[top:, left:])
        stays = settled(part, levels[top:, left:][part.row, part.start], levels.max())
        instances = instances_of(labels, levels)[top:, left:]
        for row, start, end in zip(
            part.row[stays], part.start[stays], part.end[stays], strict=True
        ):
            assert len(np.unique(instances[row, start:end])) == 1
        some += int(stays.sum())
        cut += sum(
            len(np.unique(instances[row, start:end])) > 1
            for row, start, end in zip(part.row, part.start, part.end, strict=True)
        )
    assert min(some, cut) > 100


def test_pieces_are_those_of_their_runs():
    labels, distance = discs(gap=12)
    levels = (distance < 5).astype(np.uint8)
    runs = find_runs(labels, levels)
    found = divide(runs, levels[runs.row, runs.start], connect(runs))
    assert (np.diff(found.source) >= 0).all()
    for name in ("row", "label"):
        np.testing.assert_array_equal(getattr(found.runs, name), getattr(runs, name)[found.source])
    np.testing.assert_array_equal(np.bincount(found.source, weights=found.runs.length), runs.length)
    joined, nucleus = found.joined()
    assert len(joined) == len(nucleus) < len(runs)
    assert joined.length.sum() == runs.length.sum()


# --- levels --------------------------------------------------------------------------------------


def test_levels_count_the_thresholds_that_are_reached():
    labels = np.array([[0, 1, 1, 2, 2]], np.uint8)
    probability = np.array([[0.99, 0.5, 0.8, 0.94, 1]], np.float32)
    by = Separation("probability", (0.8, 0.95))
    assert by.levels(labels, probability).tolist() == [[0, 0, 1, 1, 2]]
    assert (by.top, by.needs_edges) == (2, False)
    # An edge head's answer may lie beside 0 and 1.
    edges = np.array([[0, 0, -0.2, 0.1, 1.2]], np.float32)
    by = Separation("edges", (0.5, 0.81))
    assert by.levels(labels, probability, edges).tolist() == [[0, 1, 1, 2, 0]]
    assert by.needs_edges
    assert not Separation("no", ()).levels(labels, probability).any()


def test_levels_are_whole_pixels_decisions():
    """Whatever array a pixel comes in."""
    random = np.random.default_rng(7)
    labels = np.ones((40, 50), np.uint8)
    probability, edges = random.random((2, 40, 50), dtype=np.float32)
    by = Separation("edges", (0.3, 0.4, 0.5))
    whole = by.levels(labels, probability, edges)
    part = np.s_[7:31, 11:48]
    np.testing.assert_array_equal(
        by.levels(labels[part], probability[part], edges[part]), whole[part]
    )


def test_auto_takes_edges_where_there_are_any():
    assert choose("auto", True).by == "edges"
    assert choose("auto", False).by == "probability"
    assert choose("probability", True).by == "probability"
    assert choose("no", True, (0.5,)) == Separation("no", ())
    assert choose("auto", True, [0.25, 0.5]).interior_probability == (0.25, 0.5)
    for method in ("edges", "probability"):
        chosen = choose(method, True)
        assert chosen.interior_probability == separate.INTERIOR_PROBABILITY[method] != ()
        assert chosen.to_dict() == {
            "by": method,
            "interior_probability": list(chosen.interior_probability),
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("edge", None), "separate must be one of auto, edges, probability, no, got 'edge'"),
        (("auto", ()), "interior_probability must be 1 to 8 increasing numbers"),
        (("auto", (0.5, 0.5)), "increasing"),
        (("auto", (0.0,)), "above 0"),
        (("auto", (0.5, 1.01)), "up to 1"),
        (("auto", (float("nan"),)), "above 0"),
        (("no", tuple(n / 10 for n in range(1, 10))), "1 to 8"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        check(*arguments)


def test_edges_need_an_edge_head():
    with pytest.raises(InputError, match="separate: these weights have no edge head"):
        choose("edges", False)


def test_levels_of_another_shape_are_refused():
    labels, probability = np.ones((4, 4), np.uint8), np.ones((4, 4), np.float32)
    for levels in (labels[1:], labels.astype(bool)):
        with pytest.raises(InputError, match=r"levels must be uint8 \[4, 4\] as labels"):
            find_nuclei(labels, probability, 0, levels)
