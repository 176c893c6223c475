"""Scores against plain definitions, and against StarDist's and cellseg-metrics' where installed."""

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dssnet_fast import metrics
from dssnet_fast.image_kinds import image_kind
from dssnet_fast.metrics import THRESHOLDS, InstanceCounts, count_instances, count_pixels
from dssnet_fast.python_ref.errors import InputError

CASES = 200


def label_image(random, height, width, count):
    """Rectangles that cover one another, single pixels among them, ids with gaps."""
    made = np.zeros((height, width), np.int32)
    for identity in random.choice(np.arange(1, 200), count, replace=False):
        top, left = random.integers(0, height), random.integers(0, width)
        sides = random.integers(1, 9, 2) if random.random() < 0.8 else (1, 1)
        made[top : top + sides[0], left : left + sides[1]] = identity
    return made


def case(number):
    """Truth and answer: unrelated, alike, or empty on one side or both."""
    random = np.random.default_rng(number)
    height, width = random.integers(1, 33, 2)
    truth = label_image(random, height, width, random.integers(0, 12))
    if number % 10 == 0:
        truth[:] = 0
    if number % 4 == 1:
        answer = label_image(random, height, width, random.integers(0, 12))
    else:
        answer = np.roll(truth, random.integers(-1, 2, 2), (0, 1))
        answer[random.random(answer.shape) < 0.1] = 0
        answer[answer == random.integers(1, 200)] = 7  # merges, now and then
        if number % 3 == 0 and width > 1:  # halves: IoU of exactly 0.5 with both
            answer = np.where((np.arange(width) % 2 == 0) & (truth > 0), truth, truth + 200)
            answer[truth == 0] = 0
    if number % 20 == 5:
        answer[:] = 0
    return truth, answer


def pixels(labels):
    return {i: set(np.flatnonzero(labels == i).tolist()) for i in np.unique(labels) if i}


def by_definition(truth, answer):
    """Sets of pixels, fractions, and an assignment problem."""
    truths, answers = pixels(truth), pixels(answer)
    table = [[Fraction(len(t & a), len(t | a)) for a in answers.values()] for t in truths.values()]
    scores = {"truths": len(truths), "answers": len(answers)}
    for threshold in THRESHOLDS:
        good = np.array([[iou * 100 >= threshold for iou in row] for row in table], float)
        good = good.reshape(len(truths), len(answers))
        weights = good * np.array(table, float).reshape(good.shape) * 1e-3 + good
        rows, columns = linear_sum_assignment(weights, maximize=True)
        pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if good[r, c]]
        tp, fp, fn = len(pairs), len(answers) - len(pairs), len(truths) - len(pairs)
        total = sum((table[r][c] for r, c in pairs), Fraction(0))
        scores[threshold] = {
            "matched": tp,
            "precision": tp / (tp + fp) if tp else 0,
            "recall": tp / (tp + fn) if tp else 0,
            "f1": tp / (tp + fp / 2 + fn / 2) if tp else 0,
            "ap": tp / (tp + fp + fn) if tp else 0,
            "sq": float(total / tp) if tp else 0,
            "pq": float(total) / (tp + fp / 2 + fn / 2) if tp else 0,
        }
    intersection, union, used = 0, 0, set()
    for t, row in zip(truths.values(), table, strict=True):
        if row and max(row) > 0:
            name = list(answers)[row.index(max(row))]
            intersection += len(t & answers[name])
            union += len(t | answers[name])
            used.add(name)
        else:
            union += len(t)
    union += sum(len(a) for name, a in answers.items() if name not in used)
    scores["aji"] = intersection / union if union else 0
    return scores


def close(found, expected):
    return abs(found - expected) <= 1e-9  # false for nan


@pytest.mark.parametrize("number", range(CASES))
def test_instances_by_definition(number):
    truth, answer = case(number)
    found, expected = count_instances(truth, answer), by_definition(truth, answer)
    assert (found.truths, found.answers) == (expected["truths"], expected["answers"])
    for threshold in THRESHOLDS:
        for name, value in expected[threshold].items():
            assert close(getattr(found, name)(threshold), value), (threshold, name)
    assert close(found.aji, expected["aji"])


def test_cases_hold_what_they_should():
    counted = [count_instances(*case(number)) for number in range(CASES)]
    assert sum(not c.truths and not c.answers for c in counted) >= 5
    assert sum(bool(c.truths) != bool(c.answers) for c in counted) >= 10
    assert sum((np.bincount(case(n)[0].ravel())[1:] == 1).any() for n in range(CASES)) >= 50
    assert 300 < sum(c.matched(50) for c in counted) < sum(c.truths for c in counted)


def test_instances_as_stardist_counts_them():
    stardist = pytest.importorskip("stardist.matching")
    for number in range(CASES):
        truth, answer = case(number)
        found = count_instances(truth, answer)
        truths, answers = pixels(truth), pixels(answer)
        for threshold in THRESHOLDS:
            # Its IoUs are float32: so is the threshold, or 7/10 would not reach 0.7.
            limit = float(np.float32(threshold / 100))
            theirs = stardist.matching(truth, answer, limit, report_matches=True)
            where = (number, threshold)
            assert (found.truths, found.answers) == (theirs.n_true, theirs.n_pred), where
            assert found.matched(threshold) == theirs.tp, where
            assert close(found.precision(threshold), theirs.precision), where
            assert close(found.recall(threshold), theirs.recall), where
            assert close(found.f1(threshold), theirs.f1), where
            assert close(found.ap(threshold), theirs.accuracy), where
            assert abs(found.pq(threshold) - theirs.panoptic_quality) < 1e-6, where
            # The same sum over its matches, in float64.
            pairs = [theirs.matched_pairs[i] for i in theirs.matched_tps]
            ious = [len(truths[t] & answers[a]) / len(truths[t] | answers[a]) for t, a in pairs]
            assert close(found.sq(threshold) * max(theirs.tp, 1), math.fsum(ious)), where


def test_sums_of_images_as_stardist_counts_them():
    stardist = pytest.importorskip("stardist.matching")
    images = [case(number) for number in range(40)]
    found = sum((count_instances(*pair) for pair in images), InstanceCounts())
    theirs = stardist.matching_dataset(*zip(*images, strict=True), show_progress=False)
    assert close(found.ap(), theirs.accuracy)
    assert close(found.f1(), theirs.f1)
    assert abs(found.pq() - theirs.panoptic_quality) < 1e-6


def test_instances_as_cellseg_metrics_counts_them(monkeypatch):
    theirs = pytest.importorskip("cellseg_metrics.functional")
    # Its guard against 0 / 0 changes the IoU of a pixel by 1e-8.
    guard = 1e-300
    exact = functools.partial(theirs.iou_score, eps=guard)
    monkeypatch.setattr(theirs, "iou_score", exact)
    compared = 0
    for number in range(CASES):
        truth, answer = case(number)
        found = count_instances(truth, answer)
        for threshold in THRESHOLDS:
            below = np.nextafter(threshold / 100, 0) if threshold == 50 else threshold / 100 - 1e-12
            quality = theirs.panoptic_quality(truth, answer, below, eps=guard)
            assert close(found.pq(threshold), quality["pq"]), (number, threshold)
            assert close(found.sq(threshold), quality["sq"]), (number, threshold)
            assert close(found.f1(threshold), quality["dq"]), (number, threshold)
            precision = theirs.average_precision(truth, answer, below, eps=guard)
            assert close(found.precision(threshold), precision), (number, threshold)
        # Its AJI takes the largest intersection, ours (Kumar's) the largest IoU.
        inter = theirs.pairwise_pixel_stats(truth, answer)
        if inter:
            iou = theirs.pairwise_pixel_stats(truth, answer, metric_func=exact)[0]
            rows = inter[0].max(axis=1) > 0
            largest = inter[0] == inter[0].max(axis=1, keepdims=True)
            if (largest[rows].sum(1) != 1).any():
                continue
            if (inter[0].argmax(1) != iou.argmax(1))[rows].any():
                continue
            compared += 1
            aji = theirs.aggregated_jaccard_index(truth, answer, eps=guard)
            assert close(found.aji, aji), number
    assert compared >= 60


@pytest.mark.parametrize("number", range(CASES))
def test_pixels_by_definition(number):
    random = np.random.default_rng(number)
    classes = int(random.integers(2, 6))
    shape = random.integers(1, 20, 2)
    truth, answer = (random.integers(0, random.integers(1, classes + 1), shape) for _ in range(2))
    found = count_pixels(truth, answer, classes)
    ious = []
    for c in range(classes):
        t, a = set(np.flatnonzero(truth == c)), set(np.flatnonzero(answer == c))
        if not t | a:
            assert math.isnan(found.iou[c])
            assert math.isnan(found.dice[c])
            continue
        ious.append(len(t & a) / len(t | a))
        assert close(found.iou[c], ious[-1])
        assert close(found.dice[c], 2 * len(t & a) / (len(t) + len(a)))
    assert close(found.mean_iou, sum(ious) / len(ious))


def test_pixels_as_others_count_them():
    random = np.random.default_rng(0)
    images = [random.integers(0, 4, (2, 13, 17)) for _ in range(10)]
    found = functools.reduce(lambda a, b: a + b, (count_pixels(t, a, 4) for t, a in images))
    truth, answer = np.stack(images, 1)
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    tensors = torch.from_numpy(answer), torch.from_numpy(truth)
    for ours, theirs in (
        (found.iou, torchmetrics.multiclass_jaccard_index),
        (found.dice, torchmetrics.multiclass_f1_score),
    ):
        expected = theirs(*tensors, num_classes=4, average="none").numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)  # it divides in float32
    cellseg = pytest.importorskip("cellseg_metrics")
    expected = cellseg.iou_multiclass(truth[0], answer[0], 5, eps=1e-300)
    ours = count_pixels(truth[0], answer[0], 5).iou
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), expected, rtol=0, atol=1e-9)


def test_unknown_pixels_are_not_counted():
    found = count_pixels(np.array([0, 1, -1, -1]), np.array([0, 1, 0, 1]), 2)
    assert found.confusion.tolist() == [[1, 0], [0, 1]]
    assert math.isnan(count_pixels(np.array([-1]), np.array([0]), 2).mean_iou)


def test_sums_do_not_depend_on_order():
    counts = [count_instances(*case(number)) for number in range(50)]
    ahead, back = sum(counts, InstanceCounts()), sum(reversed(counts), InstanceCounts())
    assert ahead == back
    assert ahead.truths == sum(c.truths for c in counts)


def test_thousands_of_single_pixels():
    """More IoU than an int64 of `IOU_UNITS` holds."""
    truth = np.arange(20_000).reshape(100, 200)
    found = count_instances(truth, truth)
    assert found.matched(90) == 19_999
    assert found.pq(90) == found.aji == 1


def test_classes_match_only_their_own():
    truth = np.array([[1, 1, 0, 2, 2]])
    answer = np.array([[2, 2, 0, 1, 1]])
    same = metrics.count_classes(truth, np.array([1, 2]), answer, np.array([2, 1]), 3)
    assert [c.precision() for c in same] == [1, 1]
    swapped = metrics.count_classes(truth, np.array([1, 2]), answer, np.array([1, 2]), 3)
    assert [c.matched(50) for c in swapped] == [0, 0]
    assert [c.truths for c in swapped] == [1, 1]


def test_bad_input_is_named():
    one, two = np.zeros((2, 2), int), np.zeros((2, 3), int)
    with pytest.raises(InputError, match=r"\[2, 2\] and \[2, 3\]"):
        count_instances(one, two)
    with pytest.raises(InputError, match=r"\[2, 2\] and \[2, 3\]"):
        count_pixels(one, two, 2)
    with pytest.raises(InputError, match="negative"):
        count_instances(one, one - 1)
    with pytest.raises(InputError, match="below 2"):
        count_pixels(one, one + 2, 2)
    with pytest.raises(InputError, match="negative"):
        count_pixels(one, one - 1, 2)
    with pytest.raises(ValueError, match="not in tuple"):
        count_instances(one, one).ap(51)


def test_kinds_of_images():
    light = np.full((8, 8, 3), 220, np.uint8)
    assert image_kind(light) == "bright field"
    assert image_kind(light[:, :, :1]) == "bright field"
    assert image_kind(light // 20) == "fluorescence"
    assert image_kind(light - np.uint8([0, 60, 10])) == "stained"
    assert image_kind(np.uint8([[[0, 0, 120]]])) == "fluorescence"
