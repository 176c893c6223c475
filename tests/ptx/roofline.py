"""How long counted work would take if a GPU did nothing but run at its datasheet's rates.

A model, not a measurement: no latencies, no gaps between launches, caches that help as the
documentation of each bound says, clocks at boost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .plans import DEVICES
from .toolchain import KernelResources

REGISTERS = 65_536  # of a multiprocessor, in four parts, one for each scheduler
SCHEDULERS = 4
REGISTER_UNIT = 256  # that a warp's registers are rounded up to
SHARED_UNIT, SHARED_RESERVED = 128, 1024  # bytes a block: rounding, and the system's own
SHARED_WAVEFRONT_RATE = 1  # a clock and multiprocessor: 128 bytes


@dataclass(frozen=True)
class Gpu:
    """A GPU by its documents.

    Sources: NVIDIA's white papers on the A100 (80 GB SXM), H100 (SXM5) and Ada (RTX 4090); the
    tables of compute capabilities in the CUDA C++ programming guide.

    Attributes:
        name: One of `DEVICES`, where the number of multiprocessors and their shared memory are.
        hertz: Boost clock that the datasheet's tensor rate is given at.
        macs: Dense fp16 or bf16 multiply-accumulates with fp32 accumulation, a clock and
            multiprocessor.
        mma_share: Of `macs`, what `mma.sync` reaches.
        dram: Bytes a second.
        l2: Bytes a clock from L2 to all multiprocessors, None where not documented.
        warps: Resident on a multiprocessor at most.
        blocks: As `warps`.
    """

    name: str
    hertz: float
    macs: int
    mma_share: float
    dram: float
    l2: int | None
    warps: int
    blocks: int

    @property
    def multiprocessors(self) -> int:
        """How many there are."""
        return DEVICES[self.name]["multiprocessors"]

    @property
    def shared(self) -> int:
        """Shared memory of a multiprocessor, bytes."""
        return DEVICES[self.name]["shared"][1]

    @property
    def capability(self) -> int:
        """10 * major + minor."""
        return DEVICES[self.name]["capability"]


# The H100's datasheet rate is that of wgmma. What mma.sync reaches of it is not documented: the
# share here is an assumption.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 1.410e9, 1024, 1.0, 2.039e12, 5120, 64, 32),
        Gpu("H100", 1.830e9, 2048, 0.62, 3.352e12, None, 64, 32),
        Gpu("RTX 4090", 2.520e9, 256, 1.0, 1.008e12, None, 48, 24),
    )
}


@dataclass(frozen=True)
class Work:
    """What a launch does.

    Attributes:
        blocks: In its grid.
        macs: On tensor cores, at the rate of fp16: what takes twice as long counts twice.
        wavefronts: Of shared memory.
        instructions: Of warps.
        sectors: 32 bytes each, requested of global memory.
        unique_bytes: Distinct bytes read, plus distinct bytes written.
    """

    blocks: int
    macs: int
    wavefronts: int
    instructions: int
    sectors: int
    unique_bytes: int


def rounds(blocks: int, gpu: Gpu) -> int:
    """Blocks that the busiest multiprocessor runs."""
    return math.ceil(blocks / gpu.multiprocessors)


def bounds(work: Work, gpu: Gpu) -> dict[str, float]:
    """Seconds that each unit needs at least.

    Tensor cores, shared memory and schedulers belong to a multiprocessor, so the busiest one
    counts: its number of blocks times what a block does on average. DRAM serves every distinct
    byte once a launch, as if L2 kept nothing from one launch to the next. L2 serves every
    requested sector, as if L1 kept nothing; the bound is absent where L2's rate is not documented.
    """
    clocks = rounds(work.blocks, gpu) / work.blocks
    found = {
        "tensor": clocks * work.macs / gpu.macs / gpu.hertz,
        "shared": clocks * work.wavefronts / SHARED_WAVEFRONT_RATE / gpu.hertz,
        "issue": clocks * work.instructions / SCHEDULERS / gpu.hertz,
        "dram": work.unique_bytes / gpu.dram,
    }
    if gpu.l2 is not None:
        found["l2"] = 32 * work.sectors / gpu.l2 / gpu.hertz
    return found


def residency(
    resources: KernelResources, threads: int, dynamic_shared: int, gpu: Gpu
) -> dict[str, int]:
    """Blocks that fit on a multiprocessor by each limit, and `all` of them."""
    warps = math.ceil(threads / 32)
    a_warp = _round_up(max(resources.registers, 1) * 32, REGISTER_UNIT)
    by_registers = REGISTERS // SCHEDULERS // a_warp * SCHEDULERS // warps
    used = _round_up(resources.shared + dynamic_shared, SHARED_UNIT) + SHARED_RESERVED
    limits = {
        "registers": by_registers,
        "shared": gpu.shared // used,
        "warps": min(gpu.warps // warps, gpu.blocks),
    }
    return limits | {"all": min(limits.values())}


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
