"""How right a segmentation is, counted in whole numbers: pixels, and instances.

Counts of images add up (`+`), in whatever order, to those of all images together; every score is a
ratio of such sums. So a score of many images is not the mean of the images' scores: each pixel,
and each nucleus, counts the same wherever it lies.

**Pixels.** Of class c with TP pixels that are c in truth and answer, FP only in the answer and FN
only in the truth: IoU = TP / (TP + FP + FN), the Jaccard index; Dice = 2 TP / (2 TP + FP + FN). A
class that occurs in neither has no score, nan, and no part in the mean; one that was only
answered has 0.

**Instances.** The IoU of two instances is the size of their intersection over that of their union.
At a threshold t, a nucleus of the truth and one of the answer match if their IoU is at least t,
each with one other at most, so that there are as many matches as can be: the definition of StarDist
(Schmidt et al. 2018, doi:10.1007/978-3-030-00934-2_30). With TP matches, FP answers and FN nuclei
without one:

- precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN);
- AP = TP / (TP + FP + FN), the "average precision" of the Data Science Bowl 2018 (Caicedo et al.
  2019, doi:10.1038/s41592-019-0612-7), StarDist and Cellpose; StarDist's code calls it accuracy;
- SQ = mean IoU of the matches, RQ = F1, PQ = SQ RQ, panoptic quality (Kirillov et al. 2019,
  arXiv:1801.00868). There a match needs an IoU above 0.5; here, as in StarDist, of 0.5 or more;
- AJI, the aggregated Jaccard index (Kumar et al. 2017, doi:10.1109/TMI.2017.2677499): each nucleus
  takes the answer of largest IoU, the first of equals, which others may have taken, too; the sum of
  the intersections over the sum of the unions, of the nuclei that no answer touches, and of the
  answers that nobody took. It depends on no threshold.

Without a match these are 0, as in StarDist and cellseg-metrics: also where there is neither a
nucleus nor an answer. In sums over images such an image changes nothing.

For networks of several classes the counts are made of each class alone (`count_classes`): a nucleus
matches only answers of its own class. Their precision and recall are instance precision and recall
per class as cytology reports them, with the threshold said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dssnet_fast.python_ref.errors import InputError

# IoU in per cent, whole numbers so that "at least" is exact. From 50 on, matches are unique; see
# `_matches`.
THRESHOLDS = tuple(range(50, 95, 5))
# IoUs are summed as whole multiples of 1 / IOU_UNITS: exact, in whatever order.
IOU_UNITS = 2**50


@dataclass(frozen=True)
class PixelCounts:
    """Pixels by their class in the truth (rows) and in the answer (columns).

    Attributes:
        confusion: int64 [classes, classes].
    """

    confusion: np.ndarray

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.confusion + other.confusion)

    @property
    def iou(self) -> np.ndarray:
        """float64 [classes]; nan for a class that occurs nowhere."""
        both, either = self._both_and_sum()
        return _ratios(both, either - both)

    @property
    def dice(self) -> np.ndarray:
        """float64 [classes]; nan for a class that occurs nowhere."""
        both, either = self._both_and_sum()
        return _ratios(2 * both, either)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur, background included; nan without pixels."""
        return _mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that occur, background included; nan without pixels."""
        return _mean(self.dice)

    def _both_and_sum(self) -> tuple[np.ndarray, np.ndarray]:
        return self.confusion.diagonal(), self.confusion.sum(0) + self.confusion.sum(1)


@dataclass(frozen=True)
class InstanceCounts:
    """Instances, matched at each of `THRESHOLDS`. Thresholds are given in per cent.

    Attributes:
        truths: Nuclei in the truth.
        answers: Nuclei in the answer.
        matches: How many match, for each threshold.
        iou_units: Sum of the matches' IoU in 1 / `IOU_UNITS`, for each threshold.
        intersection: Pixels, the numerator of AJI.
        union: Pixels, the denominator of AJI.
    """

    truths: int = 0
    answers: int = 0
    matches: tuple[int, ...] = (0,) * len(THRESHOLDS)
    iou_units: tuple[int, ...] = (0,) * len(THRESHOLDS)
    intersection: int = 0
    union: int = 0

    def __add__(self, other: InstanceCounts) -> InstanceCounts:
        return InstanceCounts(
            self.truths + other.truths,
            self.answers + other.answers,
            tuple(a + b for a, b in zip(self.matches, other.matches, strict=True)),
            tuple(a + b for a, b in zip(self.iou_units, other.iou_units, strict=True)),
            self.intersection + other.intersection,
            self.union + other.union,
        )

    def matched(self, threshold: int) -> int:
        """Matches at a threshold."""
        return self.matches[THRESHOLDS.index(threshold)]

    def precision(self, threshold: int = 50) -> float:
        """Share of the answers that match."""
        return _ratio(self.matched(threshold), self.answers)

    def recall(self, threshold: int = 50) -> float:
        """Share of the nuclei that match."""
        return _ratio(self.matched(threshold), self.truths)

    def f1(self, threshold: int = 50) -> float:
        """Harmonic mean of precision and recall; RQ of panoptic quality."""
        return _ratio(2 * self.matched(threshold), self.truths + self.answers)

    def ap(self, threshold: int = 50) -> float:
        """Matches over nuclei and answers, matches counted once."""
        matched = self.matched(threshold)
        return _ratio(matched, self.truths + self.answers - matched)

    def sq(self, threshold: int = 50) -> float:
        """Mean IoU of the matches."""
        units = self.iou_units[THRESHOLDS.index(threshold)]
        return _ratio(units, self.matched(threshold) * IOU_UNITS)

    def pq(self, threshold: int = 50) -> float:
        """Panoptic quality: `sq` times `f1`."""
        return self.sq(threshold) * self.f1(threshold)

    @property
    def aji(self) -> float:
        """Aggregated Jaccard index."""
        return _ratio(self.intersection, self.union)


def count_pixels(truth: np.ndarray, answer: np.ndarray, classes: int) -> PixelCounts:
    """Count the pixels of two class maps.

    Args:
        truth: Integers of any shape; negative where nobody knows, which is not counted.
        answer: Integers of the same shape, 0 to `classes` - 1.
        classes: With the background.

    Raises:
        InputError: The shapes differ, or a value is out of range.
    """
    _check_shapes(truth, answer)
    known = truth >= 0
    truth, answer = truth[known].astype(np.int64), answer[known].astype(np.int64)
    if truth.size and max(truth.max(), answer.max()) >= classes:
        raise InputError(f"class values must be below {classes}")
    if answer.min(initial=0) < 0:
        raise InputError("an answer's class values must not be negative")
    counts = np.bincount(truth * classes + answer, minlength=classes**2)
    return PixelCounts(counts.reshape(classes, classes))


def count_instances(truth: np.ndarray, answer: np.ndarray) -> InstanceCounts:
    """Match the instances of two maps.

    Args:
        truth: Integers of any shape, 0 for background; ids may have gaps, and the pixels of an id
            may lie apart.
        answer: The same of the same shape.

    Raises:
        InputError: The shapes differ, or an id is negative.
    """
    _check_shapes(truth, answer)
    if min(truth.min(initial=0), answer.min(initial=0)) < 0:
        raise InputError("ids of instances must not be negative")
    truth_ids, truth_of, truth_area = _relabelled(truth)
    answer_ids, answer_of, answer_area = _relabelled(answer)
    both = (truth_of >= 0) & (answer_of >= 0)
    keys, intersection = np.unique(
        truth_of[both] * max(answer_ids, 1) + answer_of[both], return_counts=True
    )
    row, column = np.divmod(keys, max(answer_ids, 1))
    union = truth_area[row] + answer_area[column] - intersection
    matches, units = [], []
    for threshold in THRESHOLDS:
        at = _matches(row, column, 100 * intersection >= threshold * union)
        matches.append(len(at))
        iou = intersection[at] / union[at]
        # Python's integers: 2**13 matches of IoU 1 would overflow an int64.
        units.append(sum(np.rint(iou * IOU_UNITS).astype(np.int64).tolist()))

    # AJI: the largest IoU of each row comes first; lexsort keeps equals in the order of ids.
    order = np.lexsort((-(intersection / union), row))
    taken_rows, first = np.unique(row[order], return_index=True)
    best = order[first]
    alone = truth_area.sum() - truth_area[taken_rows].sum()
    unused = answer_area.sum() - answer_area[np.unique(column[best])].sum()
    return InstanceCounts(
        truths=truth_ids,
        answers=answer_ids,
        matches=tuple(matches),
        iou_units=tuple(units),
        intersection=int(intersection[best].sum()),
        union=int(union[best].sum() + alone + unused),
    )


def count_classes(
    truth: np.ndarray,
    truth_class: np.ndarray,
    answer: np.ndarray,
    answer_class: np.ndarray,
    classes: int,
) -> list[InstanceCounts]:
    """Match the instances of two maps, those of each class by themselves.

    Args:
        truth: Integer [H, W], ids 1 to N, 0 for background.
        truth_class: Integer [N], the class of each id, 1 or more.
        answer: As `truth`.
        answer_class: As `truth_class`.
        classes: With the background.

    Returns:
        Counts of classes 1 to `classes` - 1.
    """
    of_truth = np.append(0, truth_class)[truth]
    of_answer = np.append(0, answer_class)[answer]
    return [
        count_instances(np.where(of_truth == c, truth, 0), np.where(of_answer == c, answer, 0))
        for c in range(1, classes)
    ]


def _relabelled(ids: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """How many there are; int64 [pixels], which one (-1: none); int64 [N], their areas."""
    known, index, area = np.unique(ids.ravel(), return_inverse=True, return_counts=True)
    background = int(known.size > 0 and known[0] == 0)
    return len(known) - background, index.reshape(-1) - background, area[background:]


def _matches(row: np.ndarray, column: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Indices of pairs, each row and column in one at most, and as many as can be.

    At IoU 0.5 or more this needs no search. Of two answers that overlap one nucleus so far, each
    is exactly a half of it, and so overlaps nothing else: either may be dropped.
    """
    at = np.flatnonzero(good)
    at = at[np.unique(row[at], return_index=True)[1]]
    return at[np.unique(column[at], return_index=True)[1]]


def _check_shapes(truth: np.ndarray, answer: np.ndarray) -> None:
    if truth.shape != answer.shape:
        raise InputError(
            f"truth and answer must have one shape, got {list(truth.shape)} "
            f"and {list(answer.shape)}"
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), math.nan), where=whole > 0)


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else math.nan
