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

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dssnet_fast.runs import Runs, abutting, below, connect, expand, join_abutting, numbered

# Px of the smallest part that becomes a nucleus of its own.
SEED_AREA = 20

# Px that are grown over at once, at most, unless a single component is larger.
_PX_AT_ONCE = 1 << 22

_NONE = np.iinfo(np.int64).max  # larger than any seed's number


@dataclass(frozen=True)
class Division:
    """Runs cut where nuclei meet: pieces of them, in their order. P is the number of pieces.

    Attributes:
        runs: The pieces, of the same pixels as the runs.
        source: int64 [P], the run that each is a piece of.
        nucleus: int64 [P], the nucleus that each belongs to, from 0 on, in the order of the nuclei's
            first pixels, row by row.
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
    seed, count = _seeds(runs, level)
    seeded = seed != _NONE
    home = np.zeros(count, np.int64)
    home[seed[seeded]] = component[seeded]
    several = np.bincount(home, minlength=int(component.max(initial=-1)) + 1)[component] > 1

    # Runs that may be cut are looked at pixel by pixel, the others as a whole.
    source, offset = expand(np.zeros(len(runs), np.int64), np.where(several, runs.length, 1))
    # Two numbers tell nuclei apart: the component's, and the seed's in those that are divided.
    owner = component[source]
    grown = _grow(runs[several], level[several], seed[several], component[several])
    owner[several[source]] = int(component.max(initial=-1)) + 1 + grown
    begins = np.ones(len(source), bool)
    begins[1:] = (source[1:] != source[:-1]) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(begins)
    source, owner, start = source[first], owner[first], (runs.start[source] + offset)[first]
    end = runs.end[source]
    cut = np.flatnonzero(source[1:] == source[:-1])
    end[cut] = start[cut + 1]
    return Division(
        Runs(runs.row[source], start, end, runs.label[source]), source, numbered(owner)
    )


def settled(runs: Runs, level: np.ndarray, top: int) -> np.ndarray:
    """Runs that no division cuts, whatever the component has beyond the part that is known of it.

    Args:
        runs: Pixels of components, perhaps not all of them; those of a run have one level.
        level: uint8 [R].
        top: The highest level there can be.

    Returns:
        bool [R]. They lie in parts of the highest level that are large enough to be a seed.
    """
    found = np.zeros(len(runs), bool)
    at, part, area = _parts(runs, level, top)
    found[at] = (area >= SEED_AREA)[part]
    return found


def _parts(runs: Runs, level: np.ndarray, lowest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected parts of what has a level or more.

    Returns:
        int64 [S], the runs that have it; int64 [S], the part of each; float64, areas of parts, px.
    """
    at = np.flatnonzero(level >= lowest)
    part = connect(runs[at])
    return at, part, np.bincount(part, weights=runs.length[at])


def _seeds(runs: Runs, level: np.ndarray) -> tuple[np.ndarray, int]:
    """int64 [R], the seed that each run is in, by first pixels, or `_NONE`; how many there are."""
    seed = np.full(len(runs), _NONE)
    count = 0
    for lowest in range(int(level.max(initial=0)), 0, -1):
        at, part, area = _parts(runs, level, lowest)
        new = area >= SEED_AREA
        new[part[seed[at] != _NONE]] = False
        number = np.cumsum(new) - 1 + count
        inside = new[part]
        seed[at[inside]] = number[part[inside]]
        count += int(new.sum())
    seeded = seed != _NONE
    seed[seeded] = numbered(seed[seeded])
    return seed, count


def _grow(
    runs: Runs, level: np.ndarray, seed: np.ndarray, component: np.ndarray
) -> np.ndarray:
    """int64 [P], the seed that takes each pixel of components that all have seeds, run by run."""
    component = numbered(component)
    pixels = np.bincount(component, weights=runs.length).astype(np.int64)
    group = (np.cumsum(pixels) // _PX_AT_ONCE)[component]
    taken = np.empty(int(pixels.sum()), np.int64)
    group_of_pixel = np.repeat(group, runs.length)
    for one in np.unique(group):
        mine = group == one
        taken[group_of_pixel == one] = _grow_together(runs[mine], level[mine], seed[mine])
    return taken


def _grow_together(runs: Runs, level: np.ndarray, seed: np.ndarray) -> np.ndarray:
    neighbours = _neighbours(runs)
    count = neighbours.shape[1]
    # One more, for neighbours that are not there.
    taken = np.append(np.repeat(seed, runs.length), _NONE)
    height = np.append(np.repeat(level.astype(np.int16), runs.length), -1)
    for lowest in range(int(level.max(initial=0)), -1, -1):
        reached = np.flatnonzero((taken[:count] == _NONE) & (height[:count] >= lowest))
        while len(reached):
            best = taken[neighbours[:, reached]].min(axis=0)
            reached, best = reached[best != _NONE], best[best != _NONE]
            taken[reached] = best
            around = neighbours[:, reached].ravel()
            reached = np.unique(around[(taken[around] == _NONE) & (height[around] >= lowest)])
    return taken[:count]


def _neighbours(runs: Runs) -> np.ndarray:
    """The pixels above, below, to the left and to the right of each of the same class.

    Returns:
        int64 [4, P], places among the pixels, run by run; P where there is none.
    """
    length = runs.length
    begin = np.cumsum(length) - length
    count = int(length.sum())
    found = np.full((4, count), count)
    upper, lower = below(runs)
    start = np.maximum(runs.start[upper], runs.start[lower])
    shared = np.minimum(runs.end[upper], runs.end[lower]) - start
    _, above = expand(begin[upper] + start - runs.start[upper], shared)
    _, beneath = expand(begin[lower] + start - runs.start[lower], shared)
    found[0, beneath], found[1, above] = above, beneath
    goes_on = np.ones(count, bool)
    goes_on[begin + length - 1] = False
    left = abutting(runs)
    goes_on[begin[left] + length[left] - 1] = True
    left = np.flatnonzero(goes_on)
    found[2, left + 1], found[3, left] = left, left + 1
    return found
