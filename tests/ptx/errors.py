"""Exceptions of the executor.

Every fault found while a kernel runs carries the PTX line, the source line (where the PTX has
`.loc`) and the block and thread of the first offending lane.
"""

from __future__ import annotations

from .syntax import Instruction


class PtxError(Exception):
    """Base class of everything this package raises."""


class PtxParseError(PtxError):
    """The PTX text could not be parsed."""


class UnsupportedInstruction(PtxError):
    """The instruction, or this form of it, is not implemented."""


class LaunchError(PtxError):
    """The launch configuration does not match the kernel."""


class DeviceFault(PtxError):
    """A check failed while the kernel ran.

    Attributes:
        instruction: the instruction at fault, or None.
        block, thread: coordinates (x, y, z), or None.
    """

    def __init__(
        self,
        message: str,
        instruction: Instruction | None = None,
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
    ):
        self.instruction, self.block, self.thread = instruction, block, thread
        where = []
        if instruction is not None:
            where.append(f"PTX line {instruction.line}: `{instruction.text}`")
            if instruction.loc:
                where.append(f"source {instruction.loc[0]}:{instruction.loc[1]}")
        if block is not None:
            where.append(f"block {block}")
        if thread is not None:
            where.append(f"thread {thread}")
        super().__init__(message + "".join("\n  at " + w for w in where))


class OutOfBounds(DeviceFault):
    """Address outside every buffer, or outside the block's shared or local memory."""


class Misaligned(DeviceFault):
    """Address not a multiple of the access size (PTX ISA 6.4.1)."""


class UninitialisedRead(DeviceFault):
    """Read of memory never written: shared memory, or a buffer declared `uninit`."""


class AsyncCopyHazard(DeviceFault):
    """Shared memory touched while a cp.async into it is still in flight."""


class ReadOnlyWrite(DeviceFault):
    """Write to a read-only buffer, to .const or to kernel parameters."""


class SharedRace(DeviceFault):
    """Unordered accesses of two threads to one byte of shared memory (racecheck)."""


class GlobalRace(DeviceFault):
    """Two blocks wrote different values to one byte of global memory (racecheck)."""


class BarrierError(DeviceFault):
    """Barrier divergence or deadlock."""


class WarpSyncError(DeviceFault):
    """Warp-synchronous instruction without all lanes it needs."""


class Trap(DeviceFault):
    """`trap`, or a failed device-side assertion."""


class Runaway(DeviceFault):
    """The launch exceeded `max_steps` scheduler steps: an endless loop?"""
