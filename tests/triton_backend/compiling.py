"""Kernels compiled ahead of time in processes of their own, and what their machine code is like.

`python -m triton_backend.compiling` (in tests/) prints the table of docs/triton_kernels.md.
"""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

import torch

import dssnet_fast.backends.triton as backend
from dssnet_fast.backends import PRECISIONS as DTYPES
from dssnet_fast.checkpoint import from_state
from dssnet_fast.kernels.launch import Launch
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import fold_checkpoint
from networks import random_network
from ptx.tables import table
from ptx.toolchain import triton_resources
from ptx.triton_programs import compile_launch

TARGETS = (80, 86, 89, 90, 100, 120, "gfx942")
PRECISIONS = backend.PRECISIONS
# Each has what the others lack: fused blocks, the learned FFM, blocks as separate convolutions.
NETWORKS = {
    "released": DSSNetConfig(classes=3, blocks=1),
    "learned": DSSNetConfig(blocks=1, upsampling="pixel_shuffle"),
    "widest": DSSNetConfig(width=36, features=128, blocks=1, classes=16),
}
INSTRUCTIONS = {"wgmma": "wgmma.mma_async", "mma": "mma.sync", "tcgen05": "tcgen05.mma"}


@dataclass(frozen=True)
class Compiled:
    """A kernel for a target.

    Attributes:
        rows: Of the matrices it multiplies.
        registers: Per thread.
        stack: Bytes of local memory per thread: spills.
        shared: Bytes per program.
        instructions: How often each kind of matrix instruction stands in the code.
    """

    rows: int
    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]


@functools.cache
def launches(network: str, precision: str, amd: bool = False) -> dict[str, Launch]:
    """The different launches of a network by readable name."""
    from dssnet_fast.backends.triton.operands import pack
    from dssnet_fast.backends.triton.stages import program

    folded = fold_checkpoint(from_state(released_state(random_network(NETWORKS[network]))))
    multiplication = "tf32x3" if precision == "fp32" and not amd else "ieee"
    packed = pack(folded, torch.device("cpu"), DTYPES[precision], multiplication)
    shape = (1, 64, 64)
    found = program(packed, "infer", shape, "labels")
    maps = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in found.maps.items()}
    maps["image"] = torch.zeros(*shape, 3, dtype=torch.uint8)
    maps["answer"] = torch.zeros(shape, dtype=torch.uint8)
    different = {}
    for step in found.steps:
        launch = step.make(maps)
        name = launch.kernel.__name__
        if name == "convolution":
            size, *channels = (launch.constants[key] for key in ("SIZE", "INPUTS", "OUTPUTS"))
            name += " {0}x{0} {1}>{2}".format(size, *channels)
        different.setdefault(name, launch)
    return different


def compile_one(
    network: str, precision: str, name: str, target: int | str, config: int = 0
) -> Compiled:
    """A launch of `launches` compiled."""
    launch = launches(network, precision, isinstance(target, str))[name]
    kernel = compile_launch(launch, target, config)
    used = triton_resources(kernel)
    kinds = {"mfma": "v_mfma"} if isinstance(target, str) else INSTRUCTIONS
    blocks = launch.configs[config].blocks
    constants = launch.constants
    rows = blocks.get("BLOCK_M") or blocks.get("BLOCK_Y", 0) * blocks.get("BLOCK_X", 0)
    return Compiled(
        rows or constants["TILE"] ** 2,
        used.registers,
        used.stack,
        kernel.shared,
        {kind: kernel.text.count(text) for kind, text in kinds.items()},
    )


def compile_all(
    pool: Executor, network: str, precision: str, target: int | str, every_config: bool = False
) -> dict[str, Compiled]:
    """All kernels of a network for a target, by name and config."""
    jobs = {
        f"{name} ({number})" if number else name: pool.submit(
            compile_one, network, precision, name, target, number
        )
        for name, launch in launches(network, precision).items()
        for number in range(len(launch.configs) if every_config else 1)
    }
    return {name: job.result() for name, job in jobs.items()}


def main() -> None:
    """Print registers and shared memory of the released network's kernels for each target."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        for precision in PRECISIONS:
            rows = {}
            for target in TARGETS:
                for name, kernel in compile_all(pool, "released", precision, target).items():
                    spilled = f" ({kernel.stack} spilled)" if kernel.stack else ""
                    cell = f"{kernel.registers}{spilled}, {kernel.shared / 1024:.0f} KiB"
                    rows.setdefault(name, [name]).append(cell)
            headings = [precision, *(f"sm_{t}" if isinstance(t, int) else t for t in TARGETS)]
            print(table(headings, list(rows.values())) + "\n", flush=True)


if __name__ == "__main__":
    main()
