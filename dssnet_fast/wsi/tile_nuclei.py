"""What one tile gives: the nuclei that lie in it, and the parts of those that its border cuts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dssnet_fast.nuclei import probability_units, total
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.runs import Runs, connect, expand, find_runs, run_sums
from dssnet_fast.separate import divide, settled
from dssnet_fast.tiling import Box
from dssnet_fast.wsi.measure import OpticalDensity, measure_nuclei
from dssnet_fast.wsi.results import NucleusTable, Outlines

# Owner of runs that belong to no nucleus, for it was too small.
NOBODY = -1


@dataclass(frozen=True)
class OpenParts:
    """Pixels of components that touch the tile's border and may go on beyond it.

    They are divided into nuclei when they are whole, which may cut runs that are not settled. So
    these have a value for each pixel, and settled ones a sum: `probability` and `density` hold all
    values, run by run.

    Attributes:
        runs: Their runs, in px of the analysed image, each of one level.
        part: int64 [R], which part of a component each run belongs to, from 0 on.
        level: uint8 [R], see `dssnet_fast.separate`.
        settled: bool [R], see `separate.settled`.
        probability: int64 [V], in `nuclei.PROBABILITY_UNITS`.
        density: int64 [V], in `OpticalDensity.UNITS`, over three colours.
    """

    runs: Runs
    part: np.ndarray
    level: np.ndarray
    settled: np.ndarray
    probability: np.ndarray
    density: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """int64 [R], how many values each run has."""
        return np.where(self.settled, 1, self.runs.length)


@dataclass(frozen=True)
class TileNuclei:
    """The nuclei of one tile, in px of the analysed image.

    Attributes:
        table: Nuclei of components that do not touch the tile's border; not numbered.
        runs: Their runs, and those of what was too small to be one.
        owner: int64 [R], the row in `table` that each run belongs to, or `NOBODY`.
        open: What touches the border.
        unreadable: int64 [U, 4], parts of the slide that could not be read, (left, top, right,
            bottom) in px of the finest level.
    """

    table: NucleusTable
    runs: Runs
    owner: np.ndarray
    open: OpenParts
    unreadable: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))


def find_tile_nuclei(
    labels: np.ndarray,
    probability: np.ndarray,
    levels: np.ndarray,
    top: int,
    pixels: np.ndarray,
    optical_density: OpticalDensity,
    core: Box,
    image: Box,
    min_area: int,
) -> TileNuclei:
    """Find and measure the nuclei of a tile.

    Args:
        labels: uint8 [h, w], the class of each pixel of the core.
        probability: float32 [h, w], the probability of that class.
        levels: uint8 [h, w], see `dssnet_fast.separate`.
        top: The highest level there can be.
        pixels: uint8 [h, w, 3], the core's image.
        optical_density: Of the slide.
        core: Where the tile lies in the analysed image.
        image: All of the analysed image; beyond it nothing goes on.
        min_area: Nuclei of fewer pixels are none.

    Raises:
        InputError: A probability is not finite.
    """
    runs = find_runs(labels, levels)
    level = levels[runs.row, runs.start]
    component = connect(runs)

    at_border = np.zeros(len(runs), bool)
    for edge, end, touches in (
        (core.top, image.top, runs.row == 0),
        (core.bottom, image.bottom, runs.row == core.height - 1),
        (core.left, image.left, runs.start == 0),
        (core.right, image.right, runs.end == core.width),
    ):
        if edge != end:
            at_border |= touches
    is_open = np.zeros(int(component.max(initial=-1)) + 1, bool)
    is_open[component[at_border]] = True
    opened = is_open[component]

    def values(some: Runs) -> tuple[np.ndarray, np.ndarray]:
        """Of each pixel of runs its probability and its density, in units."""
        place = expand(some.row * core.width + some.start, some.length)[1]
        return (
            probability_units(probability.ravel()[place]),
            optical_density.units(pixels.reshape(-1, 3)[place]),
        )

    closed, nucleus = divide(runs[~opened], level[~opened], component[~opened]).joined()
    count = int(nucleus.max(initial=-1)) + 1
    large = total(closed.length, nucleus, count) >= min_area
    number = np.cumsum(large) - 1
    mine = large[nucleus]
    counted = closed[mine]
    table = measure_nuclei(
        counted.moved(core.top, core.left),
        number[nucleus[mine]],
        int(large.sum()),
        *(run_sums(units, counted.length) for units in values(counted)),
    )

    cut, part = runs[opened], (np.cumsum(is_open) - 1)[component[opened]]
    stays = settled(cut, level[opened], top)
    run, offset = expand(np.zeros(len(cut), np.int64), cut.length)
    # Where a value begins: at each pixel, but in settled runs at the first one only.
    begins = np.flatnonzero((offset == 0) | ~stays[run])
    sizes = np.diff(begins, append=len(run))
    return TileNuclei(
        table=table,
        runs=closed.moved(core.top, core.left),
        owner=np.where(large, number, NOBODY)[nucleus],
        open=OpenParts(
            cut.moved(core.top, core.left),
            part,
            level[opened],
            stays,
            *(run_sums(units, sizes) for units in values(cut)),
        ),
    )


# --- as bytes ------------------------------------------------------------------------------------

# One entry only: safetensors writes several in any order.
_METADATA = {"format": "dssnet_fast.tile 2"}
_TABLE = (
    "class_index", "x", "y", "area", "perimeter", "eccentricity", "solidity", "mean_probability",
    "mean_od", "integrated_od", "bounds",
)  # fmt: skip
_OUTLINES = ("points", "rings", "nuclei")
_RUNS = ("row", "start", "end", "label")
_OPEN = ("part", "level", "settled", "probability", "density")


def to_bytes(tile: TileNuclei) -> bytes:
    """A tile's nuclei as a safetensors file, the same bytes for the same nuclei."""
    from safetensors.numpy import save

    arrays = {f"table.{name}": getattr(tile.table, name) for name in _TABLE}
    arrays |= {f"outlines.{name}": getattr(tile.table.outlines, name) for name in _OUTLINES}
    arrays |= {f"runs.{name}": _narrow(getattr(tile.runs, name)) for name in _RUNS}
    arrays |= {f"open.{name}": _narrow(getattr(tile.open.runs, name)) for name in _RUNS}
    arrays |= {f"open.{name}": getattr(tile.open, name) for name in _OPEN}
    arrays["open.part"] = _narrow(tile.open.part)
    arrays["runs.owner"] = _narrow(tile.owner)
    arrays["unreadable"] = tile.unreadable
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(arrays, _METADATA)


class TileFile:
    """A stored tile, its parts read when they are asked for.

    Args:
        path: A file of what `to_bytes` gave.

    Raises:
        InputError: It is none, or damaged.
    """

    def __init__(self, path: object) -> None:
        from safetensors import safe_open

        try:
            self._file = safe_open(path, framework="np")
            metadata = self._file.metadata()
        except OSError:
            raise
        except Exception as error:
            raise InputError(
                f"{path}: is damaged ({error}); delete it, and it is made anew"
            ) from error
        if metadata != _METADATA:
            raise InputError(f"{path}: is of another version; delete it, and it is made anew")

    def table(self) -> NucleusTable:
        """`TileNuclei.table`."""
        columns = {name: self._get(f"table.{name}") for name in _TABLE}
        outlines = Outlines(*(self._get(f"outlines.{name}") for name in _OUTLINES))
        none = np.zeros(len(columns["area"]), np.int64)
        return NucleusTable(id=none, **columns, outlines=outlines)

    def centroids(self) -> tuple[np.ndarray, np.ndarray]:
        """`x` and `y` of the table."""
        return self._get("table.x"), self._get("table.y")

    def runs(self) -> tuple[Runs, np.ndarray]:
        """`TileNuclei.runs` and `owner`."""
        return self._runs("runs"), self._get("runs.owner").astype(np.int64)

    def open(self) -> OpenParts:
        """`TileNuclei.open`."""
        part, *rest = (self._get(f"open.{name}") for name in _OPEN)
        return OpenParts(self._runs("open"), part.astype(np.int64), *rest)

    def unreadable(self) -> np.ndarray:
        """`TileNuclei.unreadable`."""
        return self._get("unreadable")

    def _get(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def _runs(self, name: str) -> Runs:
        *places, label = (self._get(f"{name}.{field}") for field in _RUNS)
        return Runs(*(place.astype(np.int64) for place in places), label)


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if values.dtype == np.int64 else values
