"""Which mma instructions run together, and how their accumulators are stored.

Up to GROUP products of one A fragment with several B fragments become one matrix product, done
where the first of them stands. Their accumulators share one array laid out as the product is:

    tile[h, lane, 2 * j + e]    row h * 8 + lane / 4, column 8 * j + lane % 4 * 2 + e

so that a whole group accumulates in one addition, and each register is a strided view of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .flow import basic_blocks
from .lanes import LaneSet
from .syntax import Function, Instruction, Reg, Vec, read, registers, written

GROUP = 4
WINDOW = 400  # instructions searched for further members of a group


@dataclass
class Group:
    """Mma instructions, by index in the function's code, that share their A fragment.

    Attributes:
        members: in the order of the code.
        reuse_a, reuse_b: an earlier group of the basic block has decoded the same fragments.
        done: the lanes for which the leader has done the work of all, or None.
    """

    members: list[int]
    reuse_a: bool = False
    reuse_b: bool = False
    done: LaneSet | None = None


def find_groups(f: Function) -> list[Group]:
    """Partitions the mma instructions of a function."""
    groups, grouped = [], set()
    for block in basic_blocks(f):
        leaders = {}
        for k in block:
            if f.code[k].name == "mma" and k not in grouped:
                leaders[k] = Group(members_from(f, k, block, grouped))
                grouped.update(leaders[k].members)
        mark_reuse(f, block, leaders)
        groups += leaders.values()
    guarded = [k for k, ins in enumerate(f.code) if ins.name == "mma" and k not in grouped]
    return groups + [Group([k]) for k in guarded]


def members_from(f: Function, first: int, block: range, grouped: set[int]) -> list[int]:
    """The group led by `first`: a later one joins if it may move up past all in between."""
    leader = f.code[first]
    a = registers(leader.operands[1])
    members, reads, writes = [first], set(read(leader)), set(written(leader))
    for k in range(first + 1, min(block.stop, first + WINDOW)):
        ins = f.code[k]
        if ins.op == leader.op and k not in grouped and registers(ins.operands[1]) == a:
            moves = not writes.intersection(read(ins)) and not (reads | writes).intersection(
                written(ins)
            )
            if moves:
                members.append(k)
                if len(members) == GROUP:
                    break
        reads.update(read(ins))
        writes.update(written(ins))
        if writes.intersection(a):
            break
    return members


def mark_reuse(f: Function, block: range, leaders: dict[int, Group]) -> None:
    """Finds groups whose fragments are those of an earlier one, not written since."""
    seen, last_write = {}, {}
    for k in block:
        if k in leaders:
            group = leaders[k]
            for attribute, names in zip(("reuse_a", "reuse_b"), fragments(f, group), strict=True):
                key = (attribute, f.code[k].op, names)
                since = seen.get(key)
                reuse = since is not None and all(last_write.get(n, -1) < since for n in names)
                setattr(group, attribute, reuse)
                seen[key] = k
        last_write.update(dict.fromkeys(written(f.code[k]), k))


def fragments(f: Function, group: Group) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Register names of a group's A fragment and of all its B fragments."""
    b = [name for k in group.members for name in registers(f.code[k].operands[2])]
    return tuple(registers(f.code[group.members[0]].operands[1])), tuple(b)


def quad(ins: Instruction, k: int) -> tuple[str, ...] | None:
    """Names of the four accumulators in operand k, or None if they are not four registers."""
    operand = ins.operands[k]
    if not isinstance(operand, Vec) or not all(isinstance(o, Reg) for o in operand.items):
        return None
    names = tuple(o.name for o in operand.items)
    return names if len(set(names)) == 4 == len(names) else None


def accumulator_tiles(f: Function, groups: list[Group]) -> list[list[tuple[str, ...]]]:
    """Register quads that share a tile: destinations of each group, then its other inputs."""
    tiles, taken = [], set()
    for k in (0, 3):
        for group in groups:
            quads = [quad(f.code[m], k) for m in group.members]
            if None in quads:
                continue
            names = {name for q in quads for name in q}
            if len(names) == 4 * len(quads) and not names & taken:
                tiles.append(quads)
                taken |= names
    return tiles
