"""Runs, checks and profiles NVIDIA PTX on the CPU; see README.md."""

from .arguments import Buffer
from .counters import BufferTraffic, Counters
from .errors import (
    AsyncCopyHazard,
    BarrierError,
    DeviceFault,
    GlobalRace,
    LaunchError,
    Misaligned,
    OutOfBounds,
    PtxError,
    PtxParseError,
    ReadOnlyWrite,
    Runaway,
    SharedRace,
    Trap,
    UninitialisedRead,
    UnsupportedInstruction,
    WarpSyncError,
)
from .global_memory import DeviceMemory
from .launch import Result, load, run
from .parser import parse
from .toolchain import (
    ToolError,
    compile_cu,
    compile_triton,
    find_tool,
    ptxas_report,
    run_triton,
    sass_opcodes,
)

__all__ = [
    "AsyncCopyHazard",
    "BarrierError",
    "Buffer",
    "BufferTraffic",
    "Counters",
    "DeviceFault",
    "DeviceMemory",
    "GlobalRace",
    "LaunchError",
    "Misaligned",
    "OutOfBounds",
    "PtxError",
    "PtxParseError",
    "ReadOnlyWrite",
    "Result",
    "Runaway",
    "SharedRace",
    "ToolError",
    "Trap",
    "UninitialisedRead",
    "UnsupportedInstruction",
    "WarpSyncError",
    "compile_cu",
    "compile_triton",
    "find_tool",
    "load",
    "parse",
    "ptxas_report",
    "run",
    "run_triton",
    "sass_opcodes",
]
