"""Results of slides, made from small dense label maps, for the tests of their writers."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from dssnet_fast.nuclei import Nuclei, find_nuclei, outlines
from dssnet_fast.wsi.results import LabelledRuns, NucleusTable

NAMES = ("background", "nucleus", 'odd <b>"&é')


def blobs(height: int, width: int, seed: int = 4, sigma: float = 1.5) -> np.ndarray:
    """uint8 [height, width]: blobs of classes 1 and 2, some with holes, some touching."""
    random = np.random.default_rng(seed)
    inside = gaussian_filter(random.normal(size=(height, width)), sigma) > 0.1 / sigma
    classes = np.repeat(random.integers(1, 3, width // 20 + 1), 20)[:width]
    return (inside * classes).astype(np.uint8)


def nuclei_of(labels: np.ndarray, min_area: int = 1) -> Nuclei:
    probability = np.random.default_rng(5).random(labels.shape, np.float32)
    return find_nuclei(labels, probability, min_area=min_area)


def table_of(nuclei: Nuclei) -> NucleusTable:
    """All nuclei of an image as one table; what the image does not give is made up."""
    random = np.random.default_rng(6)
    mean_od = random.uniform(0.1, 1.5, len(nuclei))
    return NucleusTable(
        id=np.arange(1, len(nuclei) + 1),
        class_index=nuclei.class_index,
        x=nuclei.x,
        y=nuclei.y,
        area=nuclei.area,
        perimeter=nuclei.perimeter,
        eccentricity=nuclei.eccentricity,
        solidity=random.uniform(0.5, 1, len(nuclei)),
        mean_probability=nuclei.mean_probability,
        mean_od=mean_od,
        integrated_od=mean_od * nuclei.area,
        bounds=nuclei.bounds,
        outlines=outlines(nuclei.instances),
    )


def parts(table: NucleusTable, size: int) -> list[NucleusTable]:
    """A table cut into tables of `size` nuclei."""
    ids = np.arange(len(table))
    return [table[ids[start : start + size]] for start in range(0, len(table), size)]


class DenseLabels:
    """`Labels` over maps in memory: uint8 [H, W] classes, integer [H, W] ids."""

    def __init__(self, labels: np.ndarray, instances: np.ndarray):
        self.labels = labels
        self.instances = instances

    def rows(self, top: int, bottom: int, step: int) -> LabelledRuns:
        rows = np.arange(-(-top // step) * step, bottom, step)
        keys = self.labels[rows].astype(np.int64) << 32 | self.instances[rows]
        changes = np.diff(keys, axis=1, prepend=-1, append=-1) != 0
        row, column = changes.nonzero()
        inside = (row[1:] == row[:-1]) & (keys[row[:-1], column[:-1] % keys.shape[1]] > 0)
        row, start, end = row[:-1][inside], column[:-1][inside], column[1:][inside]
        return LabelledRuns(
            row=rows[row].astype(np.int32),
            start=start.astype(np.int32),
            end=end.astype(np.int32),
            label=self.labels[rows[row], start],
            id=self.instances[rows[row], start].astype(np.uint32),
        )
