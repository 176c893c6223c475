"""Launch plans of the CUDA backend on the executor: the same kernels with the same parameters.

Every buffer of a plan becomes a buffer of its own with red zones around it, where the real
workspace is one block of memory; what nobody has written yet is known to be so.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dssnet_fast.backends import native, sources

from .counters import Counters
from .global_memory import DeviceMemory
from .launch import run

if TYPE_CHECKING:
    from dssnet_fast import _native

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "cuda"

# What plans ask of a device. Sources: NVIDIA's white papers on the A100, H100 and Ada.
DEVICES = {
    "A100": {"capability": 80, "multiprocessors": 108, "shared": (166_912, 167_936)},
    "H100": {"capability": 90, "multiprocessors": 132, "shared": (232_448, 233_472)},
    "RTX 4090": {"capability": 89, "multiprocessors": 128, "shared": (101_376, 102_400)},
}


def device_properties(extension: _native, name: str, **changes: int) -> _native.DeviceProperties:
    """`DeviceProperties` of one of `DEVICES`."""
    facts = dict(DEVICES[name])
    block, multiprocessor = facts.pop("shared")
    facts |= {"shared_bytes_block": block, "shared_bytes_sm": multiprocessor}
    return extension.DeviceProperties(**(facts | changes))


def compile_kernels(module: str, folder: Path = KERNELS) -> str:
    """PTX of `folder`/`module`.cu, compiled as `setup.py` does.

    Raises:
        FileNotFoundError: There is no nvcc.
        RuntimeError: The compiler failed; the message is what it said.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise FileNotFoundError("needs nvcc")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "out.ptx")
        options = ["-ptx", "-lineinfo", "-O3", f"-arch=compute_{sources.PTX_ARCHITECTURE}"]
        command = [nvcc, *options, *sources.NVCC_OPTIONS, str(folder / f"{module}.cu")]
        done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        return out.read_text()


@functools.cache
def shipped_kernels(module: str) -> str:
    """PTX of a module: the installed image if it is of these sources, else compiled now.

    Raises:
        FileNotFoundError: Neither an image nor nvcc is here.
    """
    build = native.build()
    if build is not None and build.images_problem() is None:
        return (build.images / f"{module}.ptx").read_text()
    return compile_kernels(module)


@dataclass
class Executed:
    """One launch of a plan, done.

    Attributes:
        launch: As the plan has it.
        counters: What it did.
        seconds: How long the executor took.
    """

    launch: _native.Launch
    counters: Counters
    seconds: float


def run_plan(
    plan: _native.Plan,
    weights: bytes,
    inputs: Sequence[np.ndarray],
    *,
    ptx: Callable[[str], str] = shipped_kernels,
    racecheck: bool = False,
    count: bool = False,
    done: Callable[[Executed], None] | None = None,
    memory: DeviceMemory | None = None,
) -> list[np.ndarray]:
    """Run all launches of a plan, one after another.

    Args:
        plan: From `_native.plan`.
        weights: From `_native.pack`.
        inputs: Arrays in the order of the plan's input buffers, of their sizes.
        ptx: Module name to PTX.
        racecheck: Also look for unordered accesses.
        count: Count memory traffic.
        done: Called after each launch.
        memory: Where the buffers go; new and empty.

    Returns:
        Bytes of the output buffers, uint8, in the plan's order.

    Raises:
        ValueError: An input has another size than its buffer.
        DeviceFault: A check failed.
    """
    memory = memory or DeviceMemory()
    waiting = list(inputs)
    addresses, outputs = [], []
    for buffer in plan.buffers:
        role = buffer.role.name
        if role in ("input", "weights"):
            array = np.frombuffer(weights, np.uint8) if role == "weights" else waiting.pop(0)
            array = np.ascontiguousarray(array)
            if array.nbytes != buffer.bytes:
                raise ValueError(f"{buffer.name} has {buffer.bytes} bytes, got {array.nbytes}")
            address = memory.add(array, name=buffer.name, readonly=True)
        else:
            array = np.zeros(buffer.bytes, np.uint8)
            address = memory.add(array, name=buffer.name, uninit=True)
            if role == "output":
                outputs.append(array)
        addresses.append(address)
    for launch in plan.launches:
        block = bytearray(launch.parameters)
        for relocation in launch.relocations:
            address = addresses[relocation.buffer] + relocation.addend
            block[relocation.offset : relocation.offset + 8] = address.to_bytes(8, "little")
        started = time.perf_counter()
        result = run(
            ptx(launch.module),
            launch.kernel,
            launch.grid,
            launch.threads,
            [bytes(block)],
            launch.shared_bytes,
            memory=memory,
            racecheck=racecheck,
            count=count,
        )
        if done is not None:
            done(Executed(launch, result.counters, time.perf_counter() - started))
    return outputs
