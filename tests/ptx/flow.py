"""Basic blocks, and which registers can share an array."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from .syntax import WIDTH, Function, read, written

ENDS_BLOCK = {"bra", "brx", "call", "ret", "exit", "bar", "barrier", "trap"}
WARP_SYNC = {"mma", "ldmatrix", "stmatrix", "shfl", "vote", "redux"}


def basic_blocks(f: Function) -> Iterator[range]:
    """Stretches of code that lanes run from first to last without joining, parting, waiting.

    The instructions that end a block belong to none.
    """
    labels = set(f.labels.values())
    start = 0
    for k, ins in enumerate(f.code):
        if k in labels:
            yield range(start, k)
            start = k
        if ins.name in ENDS_BLOCK or (ins.guard and ins.name in WARP_SYNC):
            yield range(start, k)
            start = k + 1
    yield range(start, len(f.code))


def share_registers(f: Function, apart: set[str]) -> dict[str, tuple[int, int]]:
    """Registers that live within one basic block -> (width, number of the array they share).

    Few arrays stay in the processor's cache where one for each of thousands of virtual registers
    would not. An array is free again after the instruction that uses its register last.

    Args:
        apart: names of registers that shall not share.
    """
    first, last, seen_in = {}, {}, defaultdict(set)
    starts_written = set()
    block_of = {k: n for n, block in enumerate(basic_blocks(f)) for k in block}
    for k, ins in enumerate(f.code):
        names = read(ins)
        for name in (*names, *written(ins)):
            if name not in first and name not in names and ins.guard is None:
                starts_written.add(name)
            first.setdefault(name, k)
            last[name] = k
            seen_in[name].add(block_of.get(k, -1 - k))
    starts_written -= apart
    ends = defaultdict(list)
    for name, blocks in seen_in.items():
        if len(blocks) == 1 and min(blocks) >= 0 and name in starts_written:
            ends[last[name]].append(name)
    local = {name for names in ends.values() for name in names}
    out, free, made = {}, defaultdict(list), defaultdict(int)
    for k, ins in enumerate(f.code):
        for name in written(ins):
            if name in local and first[name] == k and name not in out:
                width = WIDTH[f.regs[name]]
                if not free[width]:
                    free[width].append(made[width])
                    made[width] += 1
                out[name] = width, free[width].pop()
        for name in ends[k]:
            width, number = out[name]
            free[width].append(number)
    return out
