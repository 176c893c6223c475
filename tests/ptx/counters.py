"""Exact, deterministic event counters: the quantities that a profiler would report.

A *request* is one warp executing one memory instruction with at least one active lane. Sectors
are 32-byte aligned pieces of global memory; wavefronts are passes of shared memory through its
32 banks of 4 bytes.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class GlobalTraffic:
    """Global-memory traffic of one direction.

    Attributes:
        requests: warp requests.
        bytes: requested by the lanes.
        sectors: 32-byte sectors summed over requests.
        unique_bytes, unique_sectors: distinct ones over the whole launch (compulsory traffic).
            Atomics count as reads and writes here.
    """

    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    unique_bytes: int = 0
    unique_sectors: int = 0

    def add(self, other: GlobalTraffic) -> None:
        """Adds all but the requests: one request may touch several buffers."""
        self.bytes += other.bytes
        self.sectors += other.sectors
        self.unique_bytes += other.unique_bytes
        self.unique_sectors += other.unique_sectors


@dataclass
class BufferTraffic:
    """Traffic of one launch to one buffer."""

    load: GlobalTraffic = field(default_factory=GlobalTraffic)
    store: GlobalTraffic = field(default_factory=GlobalTraffic)
    atomic: GlobalTraffic = field(default_factory=GlobalTraffic)


@dataclass
class SharedTraffic:
    """Shared-memory traffic of one kind; `ideal` is the wavefronts it takes without conflicts."""

    requests: int = 0
    bytes: int = 0
    wavefronts: int = 0
    ideal: int = 0

    @property
    def conflicts(self) -> int:
        """Wavefronts above the ideal."""
        return self.wavefronts - self.ideal


@dataclass
class LocalTraffic:
    """Local-memory traffic of one direction."""

    requests: int = 0
    bytes: int = 0


@dataclass
class Counters:
    """Totals of one launch.

    Attributes:
        warp_instructions: by class, as issued (a warp whose guard is false for every lane still
            issues).
        opcodes: the same by PTX opcode.
        thread_instructions: lanes that executed (guard true).
        mma: tensor-core warp instructions by PTX opcode.
        tensor_macs: multiply-accumulates done by them.
        fma: scalar fused multiply-adds by type, counted per element (f16x2 counts two).
        buffers: global traffic by the name of the buffer; buffers without any are left out.
        barriers_with_exited_threads: block barriers passed after a thread had returned.
    """

    warp_instructions: Counter = field(default_factory=Counter)
    opcodes: Counter = field(default_factory=Counter)
    thread_instructions: int = 0
    mma: Counter = field(default_factory=Counter)
    tensor_macs: int = 0
    fma: Counter = field(default_factory=Counter)
    global_load: GlobalTraffic = field(default_factory=GlobalTraffic)
    global_store: GlobalTraffic = field(default_factory=GlobalTraffic)
    global_atomic: GlobalTraffic = field(default_factory=GlobalTraffic)
    buffers: dict[str, BufferTraffic] = field(default_factory=dict)
    shared_load: SharedTraffic = field(default_factory=SharedTraffic)
    shared_store: SharedTraffic = field(default_factory=SharedTraffic)
    shared_atomic: SharedTraffic = field(default_factory=SharedTraffic)
    ldmatrix: SharedTraffic = field(default_factory=SharedTraffic)
    stmatrix: SharedTraffic = field(default_factory=SharedTraffic)
    cp_async: SharedTraffic = field(default_factory=SharedTraffic)
    local_load: LocalTraffic = field(default_factory=LocalTraffic)
    local_store: LocalTraffic = field(default_factory=LocalTraffic)
    block_barriers: int = 0
    barriers_with_exited_threads: int = 0
    warp_barriers: int = 0
    blocks: int = 0
    threads: int = 0

    @property
    def total_warp_instructions(self) -> int:
        """Warp instructions of all classes."""
        return sum(self.warp_instructions.values())

    def as_dict(self) -> dict:
        """Plain nested dict, for JSON."""
        return {name: plain(value) for name, value in vars(self).items()}


def plain(value: object) -> dict | int:
    """A counter field as dicts and ints."""
    if isinstance(value, int):
        return value
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value)}
    out = {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, SharedTraffic):
        out["conflicts"] = value.conflicts
    return out


CLASSES = {
    "fp_fma": "fma",
    "int_mul": "mad mul dp4a",
    "load": "ld ldu",
    "store": "st",
    "atomic": "atom red",
    "cp_async": "cp",
    "ldmatrix": "ldmatrix",
    "stmatrix": "stmatrix",
    "mma": "mma",
    "barrier": "bar barrier",
    "branch": "bra brx call ret exit",
    "convert": "cvt",
    "move": "cvta mov",
    "warp": "shfl vote redux activemask",
    "compare": "setp",
    "select": "selp",
    "special": "ex2 lg2 sin cos rcp rsqrt sqrt tanh",
    "divide": "div rem",
    "fence": "membar fence",
    "int_logic": "and or xor not lop3",
    "int_shift": "shl shr shf bfe bfi prmt",
}
CLASS_OF = {name: c for c, names in CLASSES.items() for name in names.split()}
FLOAT = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f64"}
SPACES = ("global", "shared", "local", "const", "param")


@functools.cache
def opcode_class(op: tuple[str, ...]) -> str:
    """Counter class of an opcode, such as fp_fma, int_add, load_global or mma."""
    name = op[0]
    base = CLASS_OF.get(name)
    floating = op[-1] in FLOAT
    if base in ("load", "store", "atomic"):
        spaces = (m.split("::")[0] for m in op)
        return f"{base}_{next((m for m in spaces if m in SPACES), 'generic')}"
    if base == "int_mul" and floating:
        return "fp_fma" if name == "mad" else "fp_mul"
    if base:
        return base
    if name in ("add", "sub", "min", "max", "abs", "neg") and floating:
        return "fp_add" if name in ("add", "sub") else "fp_other"
    return "int_add" if name in ("add", "sub") else "other"
