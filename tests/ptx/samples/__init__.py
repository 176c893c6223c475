"""Sample kernels for the executor's own tests, compiled when asked for."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from .. import Buffer, Counters, compile_cu, find_tool, run

needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="nvcc is not installed")


@functools.cache
def compiled(name: str, arch: int = 80, defines: tuple[str, ...] = ()) -> str:
    """PTX of a .cu file of this folder."""
    return compile_cu(Path(__file__).parent / name, arch, defines)


def launch(
    name: str, kernel: str, grid, block, args, smem=0, *, arch=80, defines=(), **options
) -> Counters:
    """Runs a kernel of a .cu file of this folder; options are those of `run`."""
    ptx = compiled(name, arch, defines)
    return run(ptx, kernel, grid, block, args, smem, **options).counters


def output(shape: int | tuple[int, ...], dtype: type = np.float32) -> Buffer:
    """A buffer for results, which the kernel must not read before it has written them."""
    return Buffer(np.zeros(shape, dtype), uninit=True, name="out")


HEAD = ".version 8.7\n.target sm_80\n.address_size 64\n"
REGISTERS = """
    .reg .b32 %a<8>, %d<16>, %t; .reg .b64 %p, %q, %w<8>; .reg .pred %c<8>; .reg .b16 %h<8>;
"""


def execute(body: str, *inputs: np.ndarray, results: int = 1) -> np.ndarray:
    """Runs PTX over arrays of 32-bit words, one block, one thread for each element.

    Args:
        body: reads %a0, %a1, ... and writes %d0, %d1, ...; %h (16 bits), %w (64), %c (predicates)
            and %t (the thread's number) are free to use.
        inputs: uint32 [threads] each.

    Returns:
        uint32 [results, threads].
    """
    n = len(inputs[0])
    loads = "".join(f"ld.global.u32 %a{k}, [%q + {4 * n * k}];\n" for k in range(len(inputs)))
    stores = "".join(
        f"st.global.u32 [%q + {4 * n * (len(inputs) + k)}], %d{k};\n" for k in range(results)
    )
    text = f"""{HEAD}.visible .entry k(.param .u64 buffer) {{ {REGISTERS}
        ld.param.u64 %q, [buffer]; mov.u32 %t, %tid.x; mad.wide.u32 %q, %t, 4, %q;
        {loads}{body}\n{stores} ret; }}"""
    data = np.concatenate([*inputs, np.zeros(n * results, np.uint32)]).astype(np.uint32)
    run(text, "k", 1, n, [data])
    return data.reshape(-1, n)[len(inputs) :]
