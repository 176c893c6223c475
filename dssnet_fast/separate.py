"""Touching nuclei are told apart: a marker-controlled watershed inside each connected part.

A *component* is a set of pixels of one class that are connected through their sides. It may be
several nuclei that touch. Each of its pixels has a *level*: 0, or more the surer it is that the
pixel lies inside one nucleus and not between two. `Separation` makes levels of what a network
answers; `divide` makes nuclei of components, each by itself:

1. *Seeds* are found from the highest level down to level 1. At each level the component's pixels of
   this level and above fall into parts that are connected through sides; a part of at least
   `SEED_AREA` px that holds no seed yet is one.
2. A component with one seed, or with none, is one nucleus.
3. Otherwise each seed becomes a nucleus, and they grow over the pixels that are left: first over
   those of the highest level, then over those of the next and above, down to level 0. Within a
   level all seeds grow at the same time, round by round, each round by one pixel through sides. A
   pixel that several reach in the same round goes to the one whose seed comes first, by its first
   pixel, row by row.

So every pixel of a class map belongs to one nucleus, each nucleus is connected through sides, none
that was divided is smaller than a seed, and what becomes of a component depends on nothing outside
of it, nor on where it lies. That is why the nuclei of a slide do not depend on its tiles: what a
tile's border cuts is put together first and divided then, by the same function.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.runs import Runs, components, connect, expand, join_abutting, numbered, touching

# Px of the smallest part that becomes a nucleus of its own.
SEED_AREA = 20

# Px that are grown over at once, at most, unless a single component is larger.
_PX_AT_ONCE = 1 << 22

METHODS = ("auto", "edges", "probability", "no")

# What was best on the training images of the packaged model, see docs/accuracy.md.
INTERIOR_PROBABILITY = {"edges": (0.3, 0.5, 0.7, 0.9), "probability": (0.8, 0.95), "no": ()}

_MOST_LEVELS = 8
_NONE = np.iinfo(np.int64).max  # no seed; larger than any seed's number

# Runs that touch, as `touching` gives them.
Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Separation:
    """How the levels of pixels are made: by the probability that they lie inside one nucleus.

    Attributes:
        by: `edges`: the probability of the pixel's class, times that of being on no nucleus's
            edge; `probability`: that of the class alone, which is lower between nuclei; `no`:
            all levels are 0, so components stay whole.
        interior_probability: Above 0, up to 1, increasing: a pixel's level is the number of those
            that its probability reaches.
    """

    by: str
    interior_probability: tuple[float, ...]

    @property
    def needs_edges(self) -> bool:
        """Whether the network's edge map is used."""
        return self.by == "edges"

    @property
    def top(self) -> int:
        """The highest level there can be."""
        return len(self.interior_probability)

    def levels(
        self, labels: np.ndarray, probability: np.ndarray, edges: np.ndarray | None = None
    ) -> np.ndarray:
        """The level of each pixel.

        Args:
            labels: uint8, any shape, the class; 0 for background, whose level is 0.
            probability: float32, the same shape, the probability of that class.
            edges: float32, the same shape, the probability of being on an edge; what is below 0
                or above 1 counts as that. Only for `edges`.

        Returns:
            uint8, the same shape.
        """
        levels = np.zeros(labels.shape, np.uint8)
        interior = probability
        if self.needs_edges:
            interior = probability * (1 - np.clip(edges, 0, 1))
        for threshold in self.interior_probability:
            levels += interior >= np.float32(threshold)
        levels[labels == 0] = 0
        return levels

    def to_dict(self) -> dict[str, object]:
        """As JSON knows it."""
        return {"by": self.by, "interior_probability": list(self.interior_probability)}


def choose(
    method: str, has_edges: bool, interior_probability: Sequence[float] | None = None
) -> Separation:
    """How nuclei of a network are told apart.

    Args:
        method: One of `METHODS`; `auto` takes edges where there are any, else probabilities.
        has_edges: Whether the network's weights have an edge head.
        interior_probability: See `Separation`; None for `INTERIOR_PROBABILITY` of the method.

    Raises:
        InputError: There is no such method, the network has no edges to go by, or the
            probabilities are out of range.
    """
    check(method, interior_probability)
    if method == "edges" and not has_edges:
        raise InputError(
            "separate: these weights have no edge head to tell nuclei apart by; use probability, "
            "or convert a checkpoint that has one with: python -m dssnet_fast.convert CHECKPOINT"
        )
    by = ("edges" if has_edges else "probability") if method == "auto" else method
    if by == "no" or interior_probability is None:
        interior_probability = INTERIOR_PROBABILITY[by]
    return Separation(by, tuple(float(value) for value in interior_probability))


def check(method: str, interior_probability: Sequence[float] | None) -> None:
    """Raise InputError unless these are values for `choose`, whatever the network."""
    if method not in METHODS:
        raise InputError(f"separate must be one of {', '.join(METHODS)}, got {method!r}")
    if interior_probability is None:
        return
    values = list(interior_probability)
    rising = all(a < b for a, b in itertools.pairwise(values))
    if not 1 <= len(values) <= _MOST_LEVELS or not rising or not all(0 < v <= 1 for v in values):
        raise InputError(
            f"interior_probability must be 1 to {_MOST_LEVELS} increasing numbers above 0 and up "
            f"to 1, got {values}"
        )


@dataclass(frozen=True)
class Division:
    """Runs cut where nuclei meet: pieces of them, in their order. P is the number of pieces.

    Attributes:
        runs: The pieces, of the same pixels as the runs.
        source: int64 [P], the run that each is a piece of.
        nucleus: int64 [P], the nucleus that each belongs to, from 0 on, in the order of the
            nuclei's first pixels, row by row.
    """

    runs: Runs
    source: np.ndarray
    nucleus: np.ndarray

    def joined(self) -> tuple[Runs, np.ndarray]:
        """As few runs as can be, and the nucleus of each."""
        return join_abutting(self.runs, self.nucleus)


def divide(runs: Runs, level: np.ndarray, component: np.ndarray) -> Division:
    """Divide components into nuclei, as the module says.

    Args:
        runs: All pixels of the components, by rows, then columns; those of a run have one level.
        level: uint8 [R].
        component: int64 [R], the component of each run, from 0 on.
    """
    if not level.any():
        return Division(runs, np.arange(len(runs)), numbered(component))
    pairs = touching(runs)
    seed, count = _seeds(runs, level, pairs)
    seeded = seed != _NONE
    home = np.zeros(count, np.int64)
    home[seed[seeded]] = component[seeded]
    whole = int(component.max(initial=-1)) + 1
    divided = np.bincount(home, minlength=whole)[component] > 1

    # Runs that may be cut are looked at pixel by pixel, the others as a whole.
    loose = divided & ~seeded
    source, offset = expand(np.zeros(len(runs), np.int64), np.where(loose, runs.length, 1))
    # Nuclei are told apart by the number of the component or, where that is divided, of the seed.
    owner = np.where(divided, whole + seed, component)[source]
    owner[loose[source]] = whole + _grow(runs, level, seed, component, divided, pairs)

    begins = np.ones(len(source), bool)
    begins[1:] = (source[1:] != source[:-1]) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(begins)
    source, offset, owner = source[first], offset[first], owner[first]
    start, end = runs.start[source] + offset, runs.end[source]
    cut = np.flatnonzero(source[1:] == source[:-1])
    end[cut] = start[cut + 1]
    pieces = Runs(runs.row[source], start, end, runs.label[source])
    return Division(pieces, source, numbered(owner))


def settled(runs: Runs, level: np.ndarray, top: int) -> np.ndarray:
    """Runs that no division cuts, whatever the component has beyond the part that is known of it.

    Args:
        runs: Pixels of components, perhaps not all of them; those of a run have one level.
        level: uint8 [R].
        top: The highest level there can be.

    Returns:
        bool [R]. They lie in parts of the highest level that are large enough to be a seed.
    """
    part = connect(runs[level == top])
    area = np.bincount(part, weights=runs.length[level == top])
    found = level == top
    found[found] = (area >= SEED_AREA)[part]
    return found


def _seeds(runs: Runs, level: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, int]:
    """int64 [R], the seed that each run is in, by first pixels, or `_NONE`; how many there are."""
    seed = np.full(len(runs), _NONE)
    count = 0
    one, other = pairs
    both = np.minimum(level[one], level[other])
    for lowest in range(int(level.max(initial=0)), 0, -1):
        at = np.flatnonzero(level >= lowest)
        place = np.zeros(len(runs), np.int64)
        place[at] = np.arange(len(at))
        within = both >= lowest
        part = components(len(at), place[one[within]], place[other[within]])
        new = np.bincount(part, weights=runs.length[at]) >= SEED_AREA
        new[part[seed[at] != _NONE]] = False
        inside = new[part]
        seed[at[inside]] = (np.cumsum(new) - 1 + count)[part[inside]]
        count += int(new.sum())
    seeded = seed != _NONE
    seed[seeded] = numbered(seed[seeded])
    return seed, count


def _grow(
    runs: Runs,
    level: np.ndarray,
    seed: np.ndarray,
    component: np.ndarray,
    divided: np.ndarray,
    pairs: Pairs,
) -> np.ndarray:
    """Let seeds grow over the components that are divided.

    Args:
        runs: As `divide` takes them.
        level: Likewise.
        seed: int64 [R], as `_seeds` gives it.
        component: As `divide` takes it.
        divided: bool [R], whether the run's component is divided.
        pairs: The runs that touch.

    Returns:
        int64, the seed that takes each pixel of the divided components' runs without a seed, run by
        run.
    """
    loose = np.where(divided & (seed == _NONE), runs.length, 0)
    before = np.cumsum(np.bincount(component, weights=loose))
    group = np.where(divided, (before // _PX_AT_ONCE)[component], -1)
    taken = np.empty(int(loose.sum()), np.int64)
    group_of_pixel = np.repeat(group, loose)
    place = np.zeros(len(runs), np.int64)
    for one in np.unique(group[loose > 0]).tolist():
        mine = group == one
        place[mine] = np.arange(int(mine.sum()))
        within = mine[pairs[0]]  # and so the other one: they are of one component
        taken[group_of_pixel == one] = _grow_together(
            runs[mine], level[mine], seed[mine], (place[pairs[0][within]], place[pairs[1][within]])
        )
    return taken


def _grow_together(runs: Runs, level: np.ndarray, seed: np.ndarray, pairs: Pairs) -> np.ndarray:
    neighbours = _neighbours(runs, seed != _NONE, pairs)
    loose = seed == _NONE
    count = neighbours.shape[1]
    # Behind the pixels are the runs that have a seed, and a last one that nobody ever takes.
    taken = np.concatenate([np.full(count, _NONE), seed[~loose], [_NONE]])
    height = np.full(len(taken), -1, np.int16)
    height[:count] = np.repeat(level[loose], runs.length[loose])
    last = np.zeros(len(taken), np.int64)
    for lowest in range(int(level.max(initial=0)), -1, -1):
        reached = np.flatnonzero((taken[:count] == _NONE) & (height[:count] >= lowest))
        while len(reached):
            best = taken[neighbours[:, reached]].min(axis=0)
            reached, best = reached[best != _NONE], best[best != _NONE]
            taken[reached] = best
            around = neighbours[:, reached].ravel()
            around = around[(taken[around] == _NONE) & (height[around] >= lowest)]
            # Each once.
            order = np.arange(len(around))
            last[around] = order
            reached = around[last[around] == order]
    return taken[:count]


def _neighbours(runs: Runs, seeded: np.ndarray, pairs: Pairs) -> np.ndarray:
    """What lies above, below, to the left and to the right of pixels that have no seed.

    Nodes are numbered: first the pixels of runs without a seed, run by run; then the runs with a
    seed, whole; the last number means that there is nothing of the component.

    Returns:
        int64 [4, pixels without a seed], nodes.
    """
    # Of each run the node of its first pixel, and the step from a pixel's node to the next one's.
    step = np.where(seeded, 0, 1)
    pixels = runs.length * step
    count = int(pixels.sum())
    node = np.where(seeded, count + np.cumsum(seeded) - 1, np.cumsum(pixels) - pixels)
    found = np.full((4, count), count + int(seeded.sum()))

    def link(direction: int, ones: np.ndarray, others: np.ndarray) -> None:
        pixel = ones < count
        found[direction, ones[pixel]] = others[pixel]

    one, other = pairs
    below = runs.row[one] != runs.row[other]
    upper, lower = one[below], other[below]
    start = np.maximum(runs.start[upper], runs.start[lower])
    shared = np.minimum(runs.end[upper], runs.end[lower]) - start
    which, offset = expand(np.zeros(len(start), np.int64), shared)
    upper_node, lower_node = (
        (node[run] + (start - runs.start[run]) * step[run])[which] + offset * step[run][which]
        for run in (upper, lower)
    )
    link(0, lower_node, upper_node)
    link(1, upper_node, lower_node)

    inner = np.ones(count, bool)
    inner[(node + pixels - 1)[~seeded]] = False
    left = np.flatnonzero(inner)
    link(2, left + 1, left)
    link(3, left, left + 1)
    left, right = one[~below], other[~below]
    left_node, right_node = node[left] + (runs.length[left] - 1) * step[left], node[right]
    link(2, right_node, left_node)
    link(3, left_node, right_node)
    return found
