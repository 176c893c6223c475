"""Networks beside the truth: what each gets right, image by image and together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dssnet_fast.image_kinds import KINDS, image_kind
from dssnet_fast.metrics import (
    THRESHOLDS,
    InstanceCounts,
    PixelCounts,
    count_classes,
    count_instances,
    count_pixels,
)
from dssnet_fast.nuclei import find_nuclei
from dssnet_fast.python_ref.data import IGNORE, UNLABELLED, Labelling, Pair, read_pair
from dssnet_fast.separate import Separation
from dssnet_fast.tiled import predict_tiled

if TYPE_CHECKING:
    from dssnet_fast.model import FastDSSNet


@dataclass(frozen=True)
class Contender:
    """A network, and how nuclei come of its answers, under the name that tables give them."""

    name: str
    net: FastDSSNet
    separation: Separation


class Objects(NamedTuple):
    """The classes and the instances of one image, of the truth or of an answer.

    Attributes:
        labels: integer [H, W], the class; negative where nobody knows.
        instances: integer [H, W], 0 for background; ids 1 to N.
        class_index: integer [N], the class of each id.
    """

    labels: np.ndarray
    instances: np.ndarray
    class_index: np.ndarray


@dataclass(frozen=True)
class Counts:
    """What a network got right in some images; adds up.

    Attributes:
        images: How many.
        pixels: Class by class, where the truth is known.
        instances: Of all classes; a match needs no equal class.
        classes: Those of classes 1, 2, ... alone.
        agreeing: Pixels that have the class which the first network gives them.
        size: Pixels, those that nobody knows included.
    """

    images: int
    pixels: PixelCounts
    instances: InstanceCounts
    classes: tuple[InstanceCounts, ...]
    agreeing: int
    size: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images,
            self.pixels + other.pixels,
            self.instances + other.instances,
            tuple(a + b for a, b in zip(self.classes, other.classes, strict=True)),
            self.agreeing + other.agreeing,
            self.size + other.size,
        )

    def scores(self, class_names: Sequence[str]) -> dict[str, object]:
        """Plain values, None where a score is not defined; keys of thresholds are `0.50` to `0.90`.

        Args:
            class_names: Background first.
        """
        ious, dices = self.pixels.iou.tolist(), self.pixels.dice.tolist()
        return {
            "images": self.images,
            "mean_iou": _defined(self.pixels.mean_iou),
            "mean_dice": _defined(self.pixels.mean_dice),
            "iou": {n: _defined(v) for n, v in zip(class_names, ious, strict=True)},
            "dice": {n: _defined(v) for n, v in zip(class_names, dices, strict=True)},
            **_instance_scores(self.instances),
            "classes": {
                name: _instance_scores(counts)
                for name, counts in zip(class_names[1:], self.classes, strict=True)
            },
            "agreement": _defined(self.agreeing / self.size if self.size else math.nan),
        }


@dataclass(frozen=True)
class ImageCounts:
    """One image: its files, its kind, and what each network got right, in their order."""

    pair: Pair
    kind: str
    counts: tuple[Counts, ...]


def truth_objects(labels: np.ndarray, labelling: Labelling) -> Objects:
    """The truth in a label map.

    An instance map with one value beside 0, such as a 0/255 mask, does not tell nuclei apart: they
    are its connected parts. So are they in a map of classes, those of each class.

    Args:
        labels: int32 [H, W] without a problem; see `Labelling`.
        labelling: What its values mean.
    """
    ids, index = np.unique(labels, return_inverse=True)
    if labelling.kind == "classes":
        classes = np.where(labels == UNLABELLED, IGNORE, labels)
    else:
        classes = (labels > 0).astype(np.int32)
        background = int(ids[0] == 0)
        if (count := len(ids) - background) > 1:
            instances = index.reshape(labels.shape) + (1 - background)
            return Objects(classes, instances, np.ones(count, np.int64))
    parts = np.maximum(classes, 0).astype(np.uint8)
    found = find_nuclei(parts, np.zeros(parts.shape, np.float32), min_area=0)
    return Objects(classes, found.instances, found.class_index)


def answer_objects(
    contenders: Sequence[Contender], image: np.ndarray, tile: int, min_area: int
) -> list[Objects]:
    """What each answers, as `python -m dssnet_fast.segment` writes it.

    A network that several share runs once.
    """
    wanted: dict[FastDSSNet, bool] = {}
    for one in contenders:
        wanted[one.net] = wanted.get(one.net, False) or one.separation.needs_edges
    answers = {net: predict_tiled(net, image, tile, edges) for net, edges in wanted.items()}
    made = []
    for one in contenders:
        labels, probability = answers[one.net][:2]
        levels = one.separation.levels(*answers[one.net])
        found = find_nuclei(labels, probability, min_area, levels)
        made.append(Objects(labels, found.instances, found.class_index))
    return made


def compare(truth: Objects, answer: Objects, first: Objects, classes: int) -> Counts:
    """Count what an answer gets right.

    Pixels of instances that lie where nobody knows the class are left out of the answer's.

    Args:
        truth: Of the image.
        answer: Of a network.
        first: The answer of the first network.
        classes: With the background.
    """
    instances = np.where(truth.labels < 0, 0, answer.instances)
    every = count_instances(truth.instances, instances)
    return Counts(
        images=1,
        pixels=count_pixels(truth.labels, answer.labels, classes),
        instances=every,
        # Of one class alone it is the same.
        classes=(every,)
        if classes == 2
        else tuple(
            count_classes(
                truth.instances, truth.class_index, instances, answer.class_index, classes
            )
        ),
        agreeing=int((answer.labels == first.labels).sum()),
        size=truth.labels.size,
    )


def evaluate(
    contenders: Sequence[Contender],
    pairs: Iterable[Pair],
    labelling: Labelling,
    tile: int = 2048,
    min_area: int = 15,
) -> Iterator[ImageCounts]:
    """Let every contender answer every image; memory is that of one image.

    Args:
        contenders: For images of equal channels, and with the classes of `labelling`.
        pairs: The images with their truth.
        labelling: How label images are read.
        tile: See `predict_tiled`.
        min_area: Smallest nucleus of an answer that counts, px; those of the truth all count.

    Raises:
        InputError: A file cannot be used, or a network's answer is not finite.
    """
    for pair in pairs:
        image, labels = read_pair(pair, contenders[0].net.config.in_channels, labelling)
        truth = truth_objects(labels, labelling)
        answers = answer_objects(contenders, image, tile, min_area)
        yield ImageCounts(
            pair,
            image_kind(image),
            tuple(compare(truth, a, answers[0], labelling.classes) for a in answers),
        )


def total(images: Iterable[ImageCounts], index: int = 0) -> Counts:
    """What one of the networks, by default the first, got right in one image or more."""
    first, *rest = (image.counts[index] for image in images)
    return sum(rest, first)


def by_kind(images: Iterable[ImageCounts]) -> dict[str, list[ImageCounts]]:
    """Images by those of `image_kinds.KINDS` that occur among them, in its order."""
    images = list(images)
    found = {kind: [image for image in images if image.kind == kind] for kind in KINDS}
    return {kind: some for kind, some in found.items() if some}


def worst(images: Sequence[ImageCounts], count: int) -> list[ImageCounts]:
    """The images in which the first network's mean IoU is lowest, the lowest first.

    Images without a known pixel are none of them.
    """
    known = [image for image in images if not math.isnan(image.counts[0].pixels.mean_iou)]
    return sorted(known, key=lambda image: image.counts[0].pixels.mean_iou)[:count]


def _instance_scores(counts: InstanceCounts) -> dict[str, object]:
    def at_all(score) -> dict[str, float]:
        return {f"{threshold / 100:.2f}": score(threshold) for threshold in THRESHOLDS}

    return {
        "truths": counts.truths,
        "answers": counts.answers,
        "ap": at_all(counts.ap),
        "precision": at_all(counts.precision),
        "recall": at_all(counts.recall),
        "f1": at_all(counts.f1),
        "sq": counts.sq(),
        "pq": counts.pq(),
        "aji": counts.aji,
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
