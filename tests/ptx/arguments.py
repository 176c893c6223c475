"""Kernel arguments and module variables: from Python values to bytes and addresses."""

from __future__ import annotations

import numpy as np

from .errors import LaunchError
from .global_memory import DeviceMemory
from .syntax import Function, Module

FLOATS = {"f16": np.float16, "f64": np.float64}


class Buffer:
    """Kernel argument: an array with attributes, or a pointer into it.

    Args:
        array: C-contiguous; updated in place by the launch.
        uninit: its contents are garbage until the device writes them.
        readonly: the device must not write.
        name: what errors and counters call it; `arg<position>` if None.
        offset: bytes added to the pointer that the kernel gets.
    """

    def __init__(
        self,
        array: np.ndarray,
        uninit: bool = False,
        readonly: bool = False,
        name: str | None = None,
        offset: int = 0,
    ):
        self.array, self.uninit, self.readonly = array, uninit, readonly
        self.name, self.offset = name, offset


def parameter_offsets(f: Function) -> tuple[list[int], int]:
    """Offsets of the parameters in the parameter block, and its size (PTX ISA 5.1.6.1)."""
    out, at = [], 0
    for v in f.params:
        at = -(-at // v.align) * v.align
        out.append(at)
        at += v.size
    return out, at


def pack_arguments(f: Function, args: list, memory: DeviceMemory) -> bytes:
    """Python arguments -> parameter block; registers the buffers among them.

    Raises:
        LaunchError: an argument too many, too few or too large.
    """
    if len(args) != len(f.params):
        wanted = ", ".join(f".{v.type} {v.name} ({v.size} bytes)" for v in f.params)
        raise LaunchError(f"{f.name} takes {len(f.params)} parameters, got {len(args)}: {wanted}")
    offsets, size = parameter_offsets(f)
    block = bytearray(max(size, 1))
    for k, (v, at, a) in enumerate(zip(f.params, offsets, args, strict=True)):
        if isinstance(a, np.ndarray) and a.ndim:
            a = Buffer(a)
        if isinstance(a, Buffer):
            name = a.name or f"arg{k}"
            a = memory.add(a.array, name=name, uninit=a.uninit, readonly=a.readonly) + a.offset
        if a is None:
            a = 0
        if isinstance(a, bytes | bytearray):
            raw = bytes(a)
        elif isinstance(a, np.generic | np.ndarray):
            raw = a.tobytes()
        elif isinstance(a, float) or v.type in ("f16", "f32", "f64"):
            raw = np.array(a, FLOATS.get(v.type, np.float32)).tobytes()
        else:
            raw = (int(a) & (1 << 8 * v.size) - 1).to_bytes(v.size, "little")
        if len(raw) > v.size:
            raise LaunchError(f"argument {k} has {len(raw)} bytes; parameter {v.name} has {v.size}")
        block[at : at + len(raw)] = raw
    return bytes(block)


def load_variables(module: Module, kernel: Function, memory: DeviceMemory) -> dict[str, int]:
    """Allocates the .global and .const variables; returns their addresses."""
    scoped = [*module.vars.values(), *kernel.vars.values()]
    scoped = {v.name: v for v in scoped if v.space in ("global", "const")}
    addresses = {}
    for v in scoped.values():
        constant = v.space == "const"
        addresses[v.name] = memory.add(
            nbytes=v.size, name=v.name, readonly=constant, counted=not constant
        )
    for v in scoped.values():
        data = memory[v.name].contents
        if v.init:
            data[: len(v.init)] = np.frombuffer(v.init, np.uint8)
        for at, name, addend in v.fixups:
            address = np.array([addresses.get(name, 0) + addend], np.uint64)
            data[at : at + 8] = address.view(np.uint8)
    return addresses
