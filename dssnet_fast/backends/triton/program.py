"""A stage's launches between named maps, and one workspace that holds those in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dssnet_fast.kernels.launch import Launch

ALIGNMENT = 256  # bytes; cache lines of a GPU have 128


@dataclass(frozen=True)
class Map:
    """A tensor that does not exist yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of its memory, contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Step:
    """One launch.

    Attributes:
        make: From tensors by name to the launch.
        maps: Names of those it reads and writes.
    """

    make: Callable[[Mapping[str, Tensor]], Launch]
    maps: tuple[str, ...]


class Program:
    """Steps in order, and where their maps lie.

    Args:
        maps: All of them by name.
        steps: In the order in which they run.
        given: Names of maps whose tensors the caller brings; all others lie in the workspace,
            and those that are never needed at the same time share memory.
    """

    def __init__(self, maps: Mapping[str, Map], steps: Iterable[Step], given: set[str]) -> None:
        self.maps = dict(maps)
        self.steps = list(steps)
        uses = {
            name: [i for i, step in enumerate(self.steps) if name in step.maps]
            for name in self.maps
            if name not in given
        }
        lifetimes = {name: (found[0], found[-1]) for name, found in uses.items() if found}
        self.offsets, self.workspace_bytes = _lay_out(lifetimes, self.maps)

    def run(self, given: Mapping[str, Tensor], device: torch.device) -> None:
        """Queue all steps.

        Args:
            given: The caller's tensors by name.
            device: Where they are, and the workspace goes.
        """
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=device)
        tensors = dict(given)
        for name, offset in self.offsets.items():
            found = self.maps[name]
            memory = workspace[offset : offset + found.nbytes]
            tensors[name] = memory.view(found.dtype).view(found.shape)
        for step in self.steps:
            step.make(tensors).run()


def _lay_out(
    lifetimes: Mapping[str, tuple[int, int]], maps: Mapping[str, Map]
) -> tuple[dict[str, int], int]:
    """First fit, largest first: an offset for each map, and how many bytes all take."""
    offsets: dict[str, int] = {}
    total = 0
    for name in sorted(lifetimes, key=lambda name: -maps[name].nbytes):
        first, last = lifetimes[name]
        neighbours = sorted(
            (offsets[other], offsets[other] + maps[other].nbytes)
            for other in offsets
            if lifetimes[other][0] <= last and first <= lifetimes[other][1]
        )
        offset = 0
        for begin, end in neighbours:
            if offset + maps[name].nbytes <= begin:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[name] = offset
        total = max(total, offset + maps[name].nbytes)
    return offsets, total
