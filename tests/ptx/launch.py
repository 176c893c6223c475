"""Launching kernels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from .arguments import load_variables, pack_arguments
from .core import Core
from .counters import Counters, opcode_class
from .errors import LaunchError, Runaway
from .global_memory import DeviceMemory
from .parser import parse
from .syntax import Function, Module

DEFAULT_LANES = 16384
KEPT_PROGRAMS = 4
KEPT_MODULES = 8


@dataclass
class Result:
    """Outcome of a launch."""

    counters: Counters


class Launch:
    """Options, counters and values of one launch."""

    def __init__(self, memory: DeviceMemory, racecheck: bool, count: bool, max_steps: int):
        self.memory, self.racecheck, self.count = memory, racecheck, count
        self.counters = Counters()
        self.budget = max_steps

    def spend(self, steps: int) -> None:
        """Takes steps from the budget."""
        self.budget -= steps
        if self.budget < 0:
            raise Runaway(
                "launch exceeded max_steps (an endless loop, "
                "or a spin-wait that this scheduler cannot serve?)"
            )


class Executable:
    """A parsed module with its decoded programs, kept per kernel and shape of chunk."""

    def __init__(self, module: Module):
        self.module = module
        self.cores = OrderedDict()

    def core(self, name: str, block: tuple, nblocks: int, dynamic_smem: int) -> Core:
        """The chunk of that shape, decoded."""
        key = (name, block, nblocks, dynamic_smem)
        if key not in self.cores:
            function = self.module.functions[name].complete()
            self.cores[key] = Core(self.module, function, block, nblocks, dynamic_smem)
        self.cores.move_to_end(key)
        while len(self.cores) > KEPT_PROGRAMS:
            self.cores.popitem(last=False)
        return self.cores[key]


_LOADED = OrderedDict()


def load(ptx: str | Executable) -> Executable:
    """Parses PTX text; the last few texts are kept."""
    if isinstance(ptx, Executable):
        return ptx
    if ptx not in _LOADED:
        _LOADED[ptx] = Executable(parse(ptx))
        while len(_LOADED) > KEPT_MODULES:
            _LOADED.popitem(last=False)
    return _LOADED[ptx]


def dim3(v: int | tuple[int, ...]) -> tuple[int, int, int]:
    """One to three extents -> three."""
    v = (v,) if isinstance(v, int | np.integer) else tuple(v)
    return tuple(int(x) for x in v) + (1,) * (3 - len(v))


def check_shape(f: Function, grid: tuple, block: tuple) -> None:
    """Raises LaunchError unless the kernel can run so."""
    threads = block[0] * block[1] * block[2]
    if not 0 < threads <= 1024 or min(grid) < 1:
        raise LaunchError(f"bad launch: grid {grid}, block {block}")
    most = int(np.prod(f.directives.get("maxntid", [1024])))
    exact = int(np.prod(f.directives.get("reqntid", [threads])))
    if threads > most or threads != exact:
        declared = {k: v for k, v in f.directives.items() if k.endswith("ntid")}
        raise LaunchError(f"{threads} threads per block; the kernel declares {declared}")


def run(
    ptx: str | Executable,
    kernel: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    args: list,
    dynamic_smem: int = 0,
    *,
    memory: DeviceMemory | None = None,
    racecheck: bool = False,
    count: bool = True,
    lanes: int = DEFAULT_LANES,
    max_steps: int = 50_000_000,
) -> Result:
    """Launches a kernel and waits for it.

    Args:
        ptx: text, or what `load` made of it.
        kernel: PTX name: mangled unless declared `extern "C"`.
        grid, block: extents, x first.
        args: per kernel parameter a NumPy array (device buffer, updated in place), a `Buffer`,
            None (null), a number, or bytes for a struct by value.
        dynamic_smem: bytes of dynamic shared memory.
        memory: buffers that outlive the launch; their addresses are passed as ints or lie in
            structs.
        racecheck: also look for unordered accesses; slower.
        count: count memory traffic; without it, only instructions.
        lanes: how many lanes to run at once.
        max_steps: limit on instructions executed by groups of lanes.

    Returns:
        The counters.

    Raises:
        PtxParseError, UnsupportedInstruction: before the launch starts.
        LaunchError: the arguments or the shape do not fit the kernel.
        DeviceFault: a check failed; the message says which, where and by which thread.
    """
    exe = load(ptx)
    f = exe.module.functions.get(kernel)
    if f is None or not f.entry:
        raise LaunchError(f"no kernel {kernel}; the module has {exe.module.kernels}")
    grid, block = dim3(grid), dim3(block)
    check_shape(f, grid, block)
    memory = memory or DeviceMemory()
    persistent = len(memory.buffers)
    launch = Launch(memory, racecheck, count, max_steps)
    try:
        for b in memory.buffers:
            b.start_launch()
        launch.param_bytes = pack_arguments(f, args, memory)
        launch.symbols = load_variables(exe.module, f.complete(), memory)
        parameters = np.frombuffer(launch.param_bytes, np.uint8).copy()
        launch.symbols["kernel parameters"] = memory.add(
            parameters, name="kernel parameters", readonly=True, counted=False
        )
        launch.grid = grid
        run_chunks(exe, launch, kernel, block, dynamic_smem, lanes)
        if count:
            collect_traffic(launch)
        return Result(launch.counters)
    finally:
        for b in memory.buffers:
            b.finish_launch()
        memory.truncate(persistent)


def run_chunks(
    exe: Executable, launch: Launch, kernel: str, block: tuple, dynamic_smem: int, lanes: int
) -> None:
    """Runs all blocks, as many at a time as fill `lanes`."""
    total = launch.grid[0] * launch.grid[1] * launch.grid[2]
    threads = block[0] * block[1] * block[2]
    at_once = max(1, min(total, lanes // ((threads + 31) // 32 * 32)))
    launch.counters.blocks, launch.counters.threads = total, total * threads
    first = 0
    while first < total:
        core = exe.core(kernel, block, min(at_once, total - first), dynamic_smem)
        core.start_launch(launch)
        while total - first >= core.nblocks:
            core.run_chunk(first, launch.grid)
            first += core.nblocks
        count_instructions(core, launch.counters)


def count_instructions(core: Core, c: Counters) -> None:
    """Enters how often each instruction ran."""
    for op, issued, executed in zip(core.program.code, core.issued, core.executed, strict=True):
        if not issued or op.ins is None:
            continue
        ins = op.ins
        c.warp_instructions[opcode_class(ins.op)] += issued
        c.opcodes[ins.opcode] += issued
        c.thread_instructions += executed
        if op.macs:
            c.mma[ins.opcode] += executed // 32
            c.tensor_macs += executed // 32 * op.macs
        if ins.name == "fma" or (ins.name == "mad" and ins.op[-1] == "f32"):
            c.fma[ins.op[-1]] += executed * (2 if ins.op[-1].endswith("x2") else 1)
        if ins.name == "bar" and ins.has("warp"):
            c.warp_barriers += issued


def collect_traffic(launch: Launch) -> None:
    """Enters the traffic of the buffers."""
    c = launch.counters
    for b in launch.memory.buffers:
        b.finish_counting()
        if b.read is not None or b.written is not None:
            c.buffers[b.name] = b.traffic
            c.global_load.add(b.traffic.load)
            c.global_store.add(b.traffic.store)
            c.global_atomic.add(b.traffic.atomic)
