"""Images with label images: found, checked before the first step, split and cropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .errors import InputError
from .images import IMAGE_SUFFIXES, find_images, read_image, read_labels

LABEL_FOLDERS = ("labels", "masks")
LABEL_KINDS = ("instances", "classes")
SAMPLINGS = ("images", "area")
IGNORE = -1  # class of pixels that no loss of labels counts
UNLABELLED = 255  # class maps may mark pixels that nobody classified
CACHE_LIMIT_BYTES = 4 << 30
_MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Labelling:
    """How label images are read.

    Attributes:
        kind: `instances` (0 background, every other value one nucleus of class 1) or `classes`
            (the value is the class; 255 is left out of the loss).
        classes: Number of classes with the background; 2 for instances.

    Raises:
        InputError: The kind is another, or instances are to have several classes.
    """

    kind: str
    classes: int

    def __post_init__(self) -> None:
        if self.kind not in LABEL_KINDS:
            raise InputError(f"labels must be one of {LABEL_KINDS}, got {self.kind!r}")
        if self.kind == "instances" and self.classes != 2:
            raise InputError(
                f"labels of kind 'instances' know one class of nucleus: classes must be 2, got "
                f"{self.classes}; use labels of kind 'classes' for more"
            )

    def problem(self, labels: np.ndarray) -> str | None:
        """Why `labels`, int [H, W], cannot be used; None when it can."""
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            return f"label values must not be negative, found {low}"
        if self.kind == "instances":
            return None if high < 2**24 else f"instance ids must be below 2**24, found {high}"
        known = labels[labels != UNLABELLED]
        if known.size and int(known.max()) >= self.classes:
            return (
                f"class values must be 0 to {self.classes - 1} (or {UNLABELLED} for unlabelled), "
                f"found {int(known.max())}; for instance maps use labels of kind 'instances'"
            )
        return None

    def count(self, labels: np.ndarray) -> np.ndarray:
        """Pixels of each class in int [H, W] labels without a `problem`, int64 [classes]."""
        values = labels > 0 if self.kind == "instances" else labels[labels != UNLABELLED]
        return np.bincount(values.ravel(), minlength=self.classes)

    def class_map(self, labels: Tensor) -> Tensor:
        """[..., H, W] labels (negative: no part of the image) -> int64 classes with `IGNORE`."""
        if self.kind == "instances":
            classes = (labels > 0).long()
        else:
            classes = labels.long().masked_fill(labels == UNLABELLED, IGNORE)
        return classes.masked_fill(labels < 0, IGNORE)

    def objects(self, labels: Tensor) -> Tensor:
        """[..., H, W] labels as ids whose borders are edges, 0 background, negative unknown."""
        return labels if self.kind == "instances" else labels.masked_fill(labels == UNLABELLED, -1)


@dataclass(frozen=True)
class Pair:
    """One image file with its label file."""

    image: Path
    label: Path


def find_pairs(folder: Path) -> list[Pair]:
    """Match `folder/images/*` with `folder/labels/*` (or `masks`) by name without suffix.

    Raises:
        InputError: A folder is missing, or files have no partner; all of them are named.
    """
    folder = Path(folder)
    label_folder = next((folder / n for n in LABEL_FOLDERS if (folder / n).is_dir()), None)
    if not (folder / "images").is_dir() or label_folder is None:
        raise InputError(
            f"{folder}: a data folder holds images/ and labels/ (or masks/) with files of the same "
            f"name; supported: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    images = _by_stem(find_images([folder / "images"]))
    labels = _by_stem(find_images([label_folder]))
    problems = [f"{images[stem]}: has no label image" for stem in sorted(set(images) - set(labels))]
    problems += [f"{labels[stem]}: has no image" for stem in sorted(set(labels) - set(images))]
    _raise_if_any(problems)
    return [Pair(images[stem], labels[stem]) for stem in sorted(images)]


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(f"{path}: has the same name as {found[path.stem].name}; keep one")
        found[path.stem] = path
    return found


def read_pair(pair: Pair, channels: int, labelling: Labelling) -> tuple[np.ndarray, np.ndarray]:
    """Read and check an image with its labels.

    Returns:
        Image uint8 [H, W, channels] and labels int32 [H, W].

    Raises:
        InputError: A file cannot be read, their sizes differ, or labels are out of range.
    """
    image, labels = read_image(pair.image, channels=channels), read_labels(pair.label)
    if image.shape[:2] != labels.shape:
        height, width = image.shape[:2]
        raise InputError(
            f"{pair.label}: is {labels.shape[1]}x{labels.shape[0]} but its image "
            f"{pair.image.name} is {width}x{height}"
        )
    if problem := labelling.problem(labels):
        raise InputError(f"{pair.label}: {problem}")
    return image, labels


def split(pairs: list[Pair], validation: float) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs into training and validation by a hash of their names.

    The same file lands on the same side in every run, on every machine and whatever else the
    folder holds.

    Args:
        pairs: What to divide.
        validation: Expected share of the validation side, between 0 and 1.

    Raises:
        InputError: The share is another, or one side would be empty.
    """
    if not 0 < validation < 1:
        raise InputError(
            f"the share for validation must lie between 0 and 1, got {validation}; "
            "or give a validation folder"
        )
    limit = validation * 2**32
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        number = int(hashlib.sha256(pair.image.stem.encode()).hexdigest()[:8], 16)
        sides[number < limit].append(pair)
    if not all(sides):
        raise InputError(
            f"{len(pairs)} image(s) cannot be split with {validation:.0%} for validation: "
            f"{len(sides[0])} for training, {len(sides[1])} for validation; "
            "add images, change the share, or give a validation folder"
        )
    return sides


class Samples:
    """Decoded pairs, checked one by one when made, and kept in memory if they fit.

    Args:
        pairs: The files.
        channels: Channels of the images, 1 or 3.
        labelling: How label images are read.
        progress: Wraps the iteration, for a progress bar.

    Attributes:
        class_pixels: int64 [classes], how many pixels of all images belong to each class.
        areas: Pixels of each image.

    Raises:
        InputError: Names every file (up to 20) that cannot be read, whose size differs from its
            partner's or whose labels are out of range; or no pixel is labelled, or none as a
            nucleus.
    """

    def __init__(self, pairs, channels: int, labelling: Labelling, progress=iter) -> None:
        self.pairs = list(pairs)
        self.channels = channels
        self.labelling = labelling
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.class_pixels = np.zeros(labelling.classes, np.int64)
        self.areas: list[int] = []
        size = 0
        problems = []
        for index, pair in enumerate(progress(self.pairs)):
            try:
                image, labels = read_pair(pair, channels, labelling)
            except InputError as error:
                problems.append(str(error))
                continue
            self.class_pixels += labelling.count(labels)
            self.areas.append(labels.size)
            size += image.nbytes + labels.nbytes
            if size <= CACHE_LIMIT_BYTES:
                self._kept[index] = (image, labels)
        _raise_if_any(problems)
        if self.pairs and not self.class_pixels[1:].any():
            folder = self.pairs[0].label.parent
            hint = "0/255 masks are instance maps to this program; use labels of kind 'instances'"
            raise InputError(
                f"{folder}: none of {len(self)} label image(s) holds a nucleus"
                + (f"; {hint}" if labelling.kind == "classes" else "")
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, channels] and labels int32 [H, W]."""
        return self._kept.get(index) or read_pair(self.pairs[index], self.channels, self.labelling)


class Crops(Dataset):
    """Random squares of the images, in every epoch others.

    Images smaller than the square are extended at the bottom and right with value 128 (0 when
    normalised) and labels of -1, which count neither for the segmentation nor for edges. An item
    is (image uint8 [C, crop, crop], labels int32 [crop, crop]) and depends on nothing but seed,
    epoch and index.

    Args:
        samples: Where to cut from.
        crop: Side of the square in pixels, a multiple of 8.
        seed: Seed of the positions.
        sampling: `images`: one square of every image; `area`: one for each time that the area of a
            square goes into an image's, at least one.
    """

    def __init__(self, samples: Samples, crop: int, seed: int, sampling: str = "images") -> None:
        self.samples, self.crop, self.seed = samples, crop, seed
        self.epoch = 0
        by_area = sampling == "area"
        self._images = [
            image
            for image, area in enumerate(samples.areas)
            for _ in range(max(1, round(area / crop**2)) if by_area else 1)
        ]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.samples[self._images[index]]
        random = np.random.default_rng((self.seed, self.epoch, index))
        top, left = (int(random.integers(0, max(side - self.crop, 0) + 1)) for side in labels.shape)
        window = np.s_[top : top + self.crop, left : left + self.crop]
        return to_tensors(image[window], labels[window], self.crop, self.crop)


def to_tensors(
    image: np.ndarray, labels: np.ndarray, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Channels first and extended at the bottom and right to height x width; see `Crops`."""
    extra = ((0, height - labels.shape[0]), (0, width - labels.shape[1]))
    labels = np.pad(labels, extra, constant_values=-1)
    return extended(image, height, width), torch.from_numpy(labels)


def extended(image: np.ndarray, height: int, width: int) -> Tensor:
    """[H, W, C] to [C, height, width], with 128 at the bottom and right."""
    extra = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    image = np.pad(image, extra, constant_values=128)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        shown = problems[:_MOST_PROBLEMS_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise InputError("; ".join(shown))
