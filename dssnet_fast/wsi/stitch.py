"""Joining what tile borders cut, dividing it into nuclei, and numbering all of a slide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dssnet_fast.nuclei import total
from dssnet_fast.runs import Runs, connect, expand, run_sums
from dssnet_fast.separate import divide
from dssnet_fast.tiling import Box
from dssnet_fast.wsi.measure import measure_nuclei
from dssnet_fast.wsi.results import LabelledRuns, NucleusTable, join_tables
from dssnet_fast.wsi.tile_nuclei import NOBODY, TileFile

# Whether centroids, float64 [N] each, x and y in px of the analysed image, count.
Counts = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _everywhere(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.ones(len(x), bool)


class Stitched:
    """The nuclei of a slide whose tiles are all stored.

    In memory are the nuclei of components that borders cut, and a number for each other nucleus;
    the rest is read tile by tile. Ids run from tile to tile; a nucleus of what was cut counts to
    the tile of its first pixel.

    Args:
        cores: Where the tiles lie, in px of the analysed image; no two overlap.
        files: Their files, as `tile_nuclei.to_bytes` makes them.
        min_area: Nuclei of fewer pixels are none.
        counts: Which nuclei to leave out, by their centroids.
    """

    def __init__(
        self,
        cores: Sequence[Box],
        files: Sequence[Path],
        min_area: int,
        counts: Counts = _everywhere,
    ) -> None:
        self._cores = list(cores)
        self._files = list(files)
        nucleus = self._join(min_area)
        kept = counts(self._joined.x, self._joined.y)

        by_tile = np.flatnonzero(kept)
        by_tile = by_tile[np.argsort(self._tile_of[by_tile], kind="stable")]
        ends = np.searchsorted(self._tile_of[by_tile], np.arange(1, len(self._files)))
        self._joined_of = np.split(by_tile, ends)

        self._whole_ids: list[np.ndarray] = []
        joined_ids = np.zeros(len(kept), np.int64)
        last = 0
        for tile, file in enumerate(self._files):
            mine = counts(*TileFile(file).centroids())
            self._whole_ids.append(np.where(mine, last + np.cumsum(mine), 0).astype(np.uint32))
            last += int(mine.sum())
            joined = self._joined_of[tile]
            joined_ids[joined] = last + 1 + np.arange(len(joined))
            last += len(joined)
        self.count = last
        self._joined = replace(self._joined, id=joined_ids)
        self._cut_ids = np.append(joined_ids, 0)[nucleus].astype(np.uint32)
        self._whole_runs: dict[int, tuple[Runs, np.ndarray]] = {}

    def _join(self, min_area: int) -> np.ndarray:
        """The nucleus that each of the cut runs belongs to, or `NOBODY`."""
        found = [TileFile(file).open() for file in self._files]
        part_count = [int(one.part.max(initial=-1)) + 1 for one in found]
        begin = np.cumsum([0, *part_count])
        tile = np.repeat(np.arange(len(found)), [len(one.runs) for one in found])
        part = np.concatenate(
            [np.zeros(0, np.int64), *(one.part + at for one, at in zip(found, begin, strict=False))]
        )
        runs = _concatenate([one.runs for one in found])
        order = np.lexsort((runs.start, runs.row))

        def joined(name: str, dtype: type) -> np.ndarray:
            return np.concatenate([np.zeros(0, dtype), *(getattr(one, name) for one in found)])

        count = joined("values", np.int64)
        _, value = expand((np.cumsum(count) - count)[order], count[order])
        probability, density = (
            joined(name, np.int64)[value] for name in ("probability", "density")
        )
        level, settled = joined("level", np.uint8)[order], joined("settled", bool)[order]
        runs, part, tile = runs[order], part[order], tile[order]

        division = divide(runs, level, connect(runs, alike=part))
        pieces, source, nucleus = division.runs, division.source, division.nucleus
        large = total(pieces.length, nucleus, int(nucleus.max(initial=-1)) + 1) >= min_area
        number = np.where(large, np.cumsum(large) - 1, NOBODY)
        mine = large[nucleus]
        # A piece has the values of its pixels, or the one value of a run that stays whole.
        count = np.where(settled[source], 1, pieces.length)
        self._joined = measure_nuclei(
            pieces[mine],
            number[nucleus[mine]],
            int(large.sum()),
            run_sums(probability, count)[mine],
            run_sums(density, count)[mine],
        )
        first = np.unique(nucleus, return_index=True)[1][large]
        self._tile_of = tile[source[first]]
        self._cut_runs, nucleus = division.joined()
        return number[nucleus]

    def tables(self) -> Iterator[NucleusTable]:
        """All nuclei, in the order of their ids, a tile's at a time."""
        for tile, file in enumerate(self._files):
            ids = self._whole_ids[tile].astype(np.int64)
            whole = replace(TileFile(file).table(), id=ids)
            yield join_tables([whole[ids > 0], self._joined[self._joined_of[tile]]])

    def rows(self, top: int, bottom: int, step: int) -> LabelledRuns:
        """See `results.Labels`."""
        near = {
            tile for tile, core in enumerate(self._cores) if core.top < bottom and core.bottom > top
        }
        for tile in list(self._whole_runs):
            if tile not in near:
                del self._whole_runs[tile]
        known = [(self._cut_runs, self._cut_ids)]
        for tile in sorted(near):
            if tile not in self._whole_runs:
                self._whole_runs[tile] = self._runs_of(tile)
            known.append(self._whole_runs[tile])
        wanted = []
        for runs, ids in known:
            # They are in the order of rows.
            first, last = np.searchsorted(runs.row, (top, bottom))
            chosen = np.flatnonzero(runs.row[first:last] % step == 0) + first
            wanted.append((runs[chosen], ids[chosen]))
        runs = _concatenate([one for one, _ in wanted])
        ids = np.concatenate([np.zeros(0, np.uint32), *(one for _, one in wanted)])
        order = np.lexsort((runs.start, runs.row))
        runs = runs[order]
        return LabelledRuns(
            row=runs.row.astype(np.int32),
            start=runs.start.astype(np.int32),
            end=runs.end.astype(np.int32),
            label=runs.label,
            id=ids[order],
        )

    def _runs_of(self, tile: int) -> tuple[Runs, np.ndarray]:
        """The runs of what lies within a tile, and their ids."""
        runs, owner = TileFile(self._files[tile]).runs()
        return runs, np.append(self._whole_ids[tile], np.uint32(0))[owner]


def _concatenate(parts: Sequence[Runs]) -> Runs:
    none = np.zeros(0, np.int64)
    parts = [Runs(none, none, none, np.zeros(0, np.uint8)), *parts]
    return Runs(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.label for part in parts]),
    )
