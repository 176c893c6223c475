"""Where a kernel's machine code spends its time: its innermost loops."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .toolchain import assemble, call, find_tool

_FUNCTION = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_TARGET = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Loop:
    """An innermost loop that works on tensor cores.

    Attributes:
        instructions: In its body.
        mma: Of them, matrix multiplications of a warp (HMMA).
        wgmma: Of them, such of four warps together (HGMMA), on Hopper.
    """

    instructions: int
    mma: int
    wgmma: int = 0


def innermost_loops(text: str) -> dict[str, list[Loop]]:
    """{kernel: its innermost loops with matrix multiplications} of what `nvdisasm -c` prints.

    A kernel that has such instructions in no loop counts as one whole loop.
    """
    found = {}
    for name, lines in _functions(text).items():
        labels, opcodes, jumps = {}, [], []
        for line in lines:
            if label := _LABEL.match(line):
                labels[label[1]] = len(opcodes)
            elif instruction := _INSTRUCTION.search(line):
                if target := _TARGET.search(line):
                    jumps.append((target[1], len(opcodes)))
                opcodes.append(instruction[1])
        loops = {(labels[to], at + 1) for to, at in jumps if to in labels and labels[to] < at}
        innermost = [
            (begin, end)
            for begin, end in sorted(loops)
            if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops)
        ]
        bodies = [_loop(opcodes[begin:end]) for begin, end in innermost]
        bodies = [loop for loop in bodies if loop.mma or loop.wgmma]
        whole = _loop([opcode for opcode in opcodes if opcode != "NOP"])
        if not bodies and (whole.mma or whole.wgmma):
            bodies = [whole]
        if bodies:
            found[name] = bodies
    return found


def disassemble(ptx: str, arch: int) -> str | None:
    """What `nvdisasm -c` prints of PTX text, assembled; None where there is no nvdisasm.

    Raises:
        ToolError: It does not know the architecture, or the text does not assemble.
    """
    if find_tool("nvdisasm") is None:
        return None
    return disassemble_cubin(assemble(ptx, arch).cubin)


def disassemble_cubin(cubin: bytes) -> str | None:
    """As `disassemble`, of machine code."""
    if find_tool("nvdisasm") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        return call("nvdisasm", "-c", path)


def _functions(text: str) -> dict[str, list[str]]:
    found, current = {}, None
    for line in text.splitlines():
        if name := _FUNCTION.match(line):
            current = found.setdefault(name[1], [])
        elif line.startswith("//-----"):
            current = None
        elif current is not None:
            current.append(line)
    return found


def _loop(opcodes: list[str]) -> Loop:
    mma, wgmma = (sum(opcode.startswith(kind) for opcode in opcodes) for kind in ("HMMA", "HGMMA"))
    return Loop(len(opcodes), mma, wgmma)
