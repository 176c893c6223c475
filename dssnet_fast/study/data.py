"""The images of a study: split as in training, read once, told apart by kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from dssnet_fast.image_kinds import image_kind
from dssnet_fast.python_ref.config import default_class_names
from dssnet_fast.python_ref.data import Labelling, Samples, find_pairs, split
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.study.grids import ALL


class StudyData:
    """Training and validation images with instance maps.

    Args:
        folder: With images/ and labels/ of the same names.
        share: Of the images, for validation.
        channels: Of the images, 1 or 3.
        progress: Wraps the reading, for a progress bar.

    Raises:
        InputError: A file cannot be used, or the images cannot be split.
    """

    def __init__(
        self, folder: Path, share: float, channels: int, progress: Callable = iter
    ) -> None:
        training, validation = split(find_pairs(folder), share)
        self.labelling = Labelling("instances", 2)
        self.class_names = default_class_names(self.labelling.classes)
        self.validation = Samples(validation, channels, self.labelling, progress)
        self._all = Samples(training, channels, self.labelling, progress)
        self.training = cache(self._training)

    def _training(self, kind: str) -> Samples:
        """Training images of one of `KINDS`, or all.

        Raises:
            InputError: There is none.
        """
        if kind == ALL:
            return self._all
        pairs = [
            pair
            for pair, (image, _) in zip(self._all.pairs, self._all, strict=True)
            if image_kind(image) == kind
        ]
        if not pairs:
            raise InputError(f"no training image is of the kind {kind!r}; leave it out by --only")
        return Samples(pairs, self._all.channels, self.labelling)
