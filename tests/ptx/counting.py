"""A run of the network on the executor as data: what to run, and what each launch did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dssnet_fast.weights import FoldedWeights

from .counters import Counters
from .global_memory import DeviceMemory
from .lanes import LaneSet
from .patterns import SECTOR, PatternCache, Site, distinct, relative, warp_rows
from .roofline import Work
from .sass import Loop
from .toolchain import KernelResources

SHARED = ("shared_load", "shared_store", "shared_atomic", "ldmatrix", "stmatrix", "cp_async")
# What the launches of all kinds of kernels have in common, in their order.
STAGES = ("stem, down 1", "down 2, 3", "head, blocks", "FFM", "segmentation head")


class CountingMemory(DeviceMemory):
    """Device memory that also counts the bytes that requests use.

    Attributes:
        useful: Distinct bytes of each request, summed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.useful = 0
        self._sites: dict[tuple[Site, int], Site] = {}

    def count(self, core, direction, b, sel, addr, at, size, sectors, times=1):
        """As `DeviceMemory.count`, and `useful`."""
        DeviceMemory.count(core, direction, b, sel, addr, at, size, sectors, times)
        key = sectors, size
        if key not in self._sites:
            self._sites[key] = Site(distinct_addresses, 1)
        if at is None:
            found = self._sites[key](sel, addr)
        else:
            found = distinct_addresses(LaneSet(core, sel.lanes()[at]), addr[at])
        self.useful += found * size * times


DISTINCT = PatternCache(lambda rows: distinct(np.sort(rows, axis=1)).sum(axis=1))


def distinct_addresses(sel: LaneSet, addresses: np.ndarray) -> int:
    """Of a warp-wide access, summed over the warps."""
    rows, active = warp_rows(addresses, sel)
    return DISTINCT.total(relative(rows, active, SECTOR))


@dataclass(frozen=True)
class Task:
    """What to run.

    Attributes:
        folded: The network.
        image: uint8 [H, W, in_channels], both sides multiples of 8; the batch repeats it.
        batch: Images.
        precision: A key of `dssnet_fast.backends.PRECISIONS`.
        device: One of `DEVICES`.
        first_image: Run only the blocks of the first image and multiply what they did. Every
            image is the same and blocks of different images share nothing but the weights, so
            this changes no count.
    """

    folded: FoldedWeights
    image: np.ndarray
    batch: int
    precision: str
    device: str
    first_image: bool

    @property
    def images_run(self) -> int:
        """How many the executor computes."""
        return 1 if self.first_image else self.batch

    @property
    def times(self) -> int:
        """How often what ran stands for itself."""
        return self.batch // self.images_run


@dataclass(frozen=True)
class Launched:
    """How a launch looks from outside.

    Attributes:
        kernel: Its name; launches with one name run the same code.
        stage: One of `STAGES`.
        grid: As launched on a GPU, for the whole batch.
        threads: Of a block.
        dynamic_shared: Bytes of shared memory that it asks for.
        minimum: Multiply-accumulates that the folded graph needs for the whole batch.
    """

    kernel: str
    stage: str
    grid: tuple[int, int, int]
    threads: int
    dynamic_shared: int
    minimum: int


@dataclass(frozen=True)
class Done(Launched):
    """One launch, counted for the whole batch.

    Attributes:
        macs: Done on tensor cores.
        half_rate: Whether they are of TF32, which takes twice as long as fp16.
        mma: Instructions that did them.
        instructions: Of warps, all.
        wavefronts: Of shared memory.
        ideal: Wavefronts without bank conflicts.
        sectors: Of global memory, requested.
        useful: Distinct bytes that requests used.
        unique_read: Distinct bytes read.
        unique_written: As `unique_read`.
        intermediate: Distinct bytes written to the workspace.
        seconds: That the executor took.
    """

    macs: int
    half_rate: bool
    mma: int
    instructions: int
    wavefronts: int
    ideal: int
    sectors: int
    useful: int
    unique_read: int
    unique_written: int
    intermediate: int
    seconds: float

    @property
    def blocks(self) -> int:
        """In the grid."""
        return int(np.prod(self.grid))

    @property
    def work(self) -> Work:
        """For the roofline."""
        unique = self.unique_read + self.unique_written
        macs = self.macs * (2 if self.half_rate else 1)
        return Work(self.blocks, macs, self.wavefronts, self.instructions, self.sectors, unique)


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a GPU.

    Attributes:
        resources: What its machine code takes.
        dynamic_shared: Bytes of shared memory that a launch asks for there.
    """

    resources: KernelResources
    dynamic_shared: int


class Machine(Protocol):
    """The kernels of a run as machine code."""

    def compiled(self, capability: int) -> dict[str, Compiled]:
        """Kernel -> what it takes; a `ToolError` where the tools are not here."""

    def loops(self, capability: int) -> dict[str, Sequence[Loop]] | None:
        """Kernel -> its innermost loops with matrix multiplications; None as in `disassemble`."""


@dataclass(frozen=True)
class Run:
    """The network run on a batch.

    Attributes:
        labels: uint8 [B, H, W].
        logits: float32 [B, H, W, classes].
        launches: Those that give the labels.
        machine: Their kernels.
        compiled_as: For whom, in words.
        workspace: Bytes for maps in between.
        weights: Bytes of packed weights.
    """

    labels: np.ndarray
    logits: np.ndarray
    launches: list[Done]
    machine: Machine
    compiled_as: str
    workspace: int
    weights: int


def counted(
    launched: Launched,
    counters: Counters,
    seconds: float,
    task: Task,
    roles: Mapping[str, str],
    useful: int,
) -> Done:
    """What a launch did, for the whole batch.

    Args:
        launched: The launch.
        counters: Of the blocks that ran.
        seconds: That they took.
        task: What it belongs to.
        roles: Of buffers by name: `weights`, `workspace`, or another.
        useful: Distinct bytes that requests used.
    """
    c = counters
    times = task.times
    shared = [getattr(c, kind) for kind in SHARED]
    traffic = (c.global_load, c.global_store, c.global_atomic)

    def unique(direction: str, *wanted: str) -> int:
        """Distinct bytes; all images read the same weights."""
        return sum(
            getattr(buffer, direction).unique_bytes * (1 if roles.get(name) == "weights" else times)
            for name, buffer in c.buffers.items()
            if not wanted or roles.get(name) in wanted
        )

    return Done(
        **vars(launched),
        macs=c.tensor_macs * times,
        half_rate=any("tf32" in opcode for opcode in c.mma),
        mma=sum(c.mma.values()) * times,
        instructions=c.total_warp_instructions * times,
        wavefronts=sum(kind.wavefronts for kind in shared) * times,
        ideal=sum(kind.ideal for kind in shared) * times,
        sectors=sum(direction.sectors for direction in traffic) * times,
        useful=useful * times,
        unique_read=unique("load"),
        unique_written=unique("store"),
        intermediate=unique("store", "workspace"),
        seconds=seconds,
    )
