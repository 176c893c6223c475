"""Where a kernel's variables lie, and what its code touches, from the text alone."""

from __future__ import annotations

from dataclasses import dataclass

from .syntax import WIDTH, Addr, Function, Instruction, Module, Sym, Vec

SPACES = ("global", "shared", "local", "const", "param")
VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def align_up(n: int, a: int) -> int:
    """The multiple of `a` at or above n."""
    return (n + a - 1) // a * a


def space_of(ins: Instruction) -> str:
    """State space in the opcode, or "generic"."""
    spaces = (m.split("::")[0] for m in ins.op[1:])
    return next((m for m in spaces if m in SPACES), "generic")


@dataclass
class Layout:
    """Offsets of the variables of a kernel.

    Attributes:
        shared: name -> offset in the block's shared memory.
        shared_size: bytes of shared memory, dynamic included.
        dynamic_at: offset of the dynamic part.
        local: name -> offset in the lane's frame.
        local_size: bytes of the frame.
    """

    shared: dict[str, int]
    shared_size: int
    dynamic_at: int
    local: dict[str, int]
    local_size: int


def symbols(operand) -> list[str]:
    """Names of variables in an operand."""
    if isinstance(operand, Sym):
        return [operand.name]
    if isinstance(operand, Vec):
        return [name for item in operand.items for name in symbols(item)]
    return symbols(operand.base) if isinstance(operand, Addr) else []


def lay_out(module: Module, kernel: Function, dynamic_smem: int) -> Layout:
    """Places shared variables and the local frame.

    Dynamic shared memory follows the static variables, at least 16-byte aligned.
    """
    used = {name for ins in kernel.code for o in ins.operands for name in symbols(o)}
    variables = [v for v in module.vars.values() if v.name in used]
    variables += [v for v in kernel.vars.values() if v not in kernel.params]
    shared, dynamic, top = {}, [], 0
    local, frame = {}, 0
    for v in variables:
        if v.space == "shared" and v.extern:
            dynamic.append(v)
        elif v.space == "shared":
            shared[v.name] = align_up(top, v.align)
            top = shared[v.name] + v.size
        elif v.space in ("local", "param"):
            local[v.name] = align_up(frame, max(v.align, 8))
            frame = local[v.name] + v.size
    dynamic_at = top
    if dynamic or dynamic_smem:
        dynamic_at = align_up(top, max([16] + [v.align for v in dynamic]))
        shared.update({v.name: dynamic_at for v in dynamic})
        top = dynamic_at + dynamic_smem
    return Layout(shared, top, dynamic_at, local, frame)


def access_bytes(ins: Instruction) -> int:
    """Bytes that one lane reads or writes at an aligned address, 16 if unknown."""
    if ins.name in ("ld", "st", "atom", "red"):
        vector = next((VECTORS[m] for m in ins.op if m in VECTORS), 1)
        return max(WIDTH.get(ins.op[-1], 128) // 8 * vector, 1)
    if ins.name == "cp" and len(ins.operands) > 2:
        return ins.operands[2].value
    return 16


def granule(kernel: Function, space: str, names: tuple[str, ...]) -> int:
    """Smallest access of the named instructions to a state space, in bytes, at most 8."""
    sizes = [
        access_bytes(ins)
        for ins in kernel.code
        if ins.name in names and space_of(ins) in (space, "generic")
    ]
    return min([8, *sizes])
