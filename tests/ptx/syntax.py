"""What the parser produces: modules, functions, variables, instructions, operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# Bits of each fundamental type (PTX ISA 5.2).
WIDTH = {
    "pred": 1,
    "b8": 8,
    "u8": 8,
    "s8": 8,
    "b16": 16,
    "u16": 16,
    "s16": 16,
    "f16": 16,
    "bf16": 16,
    "b32": 32,
    "u32": 32,
    "s32": 32,
    "f32": 32,
    "f16x2": 32,
    "bf16x2": 32,
    "tf32": 32,
    "b64": 64,
    "u64": 64,
    "s64": 64,
    "f64": 64,
    "b128": 128,
}


@dataclass(frozen=True)
class Reg:
    """Register operand; `negate` is the `!` of a predicate source."""

    name: str
    negate: bool = False


@dataclass(frozen=True)
class Imm:
    """Immediate: an int, or the raw bits of a float with `bits` 32 or 64 (0 for an int)."""

    value: int
    bits: int = 0


@dataclass(frozen=True)
class Sym:
    """Variable, label, function or special register, by name."""

    name: str


@dataclass(frozen=True)
class Vec:
    """Brace list `{a, b, ...}` or parenthesised list of operands."""

    items: tuple


@dataclass(frozen=True)
class Addr:
    """`[base + offset]`; base is a Reg, a Sym or None."""

    base: Reg | Sym | None
    offset: int


@dataclass(frozen=True)
class Pair:
    """`d|p` destination pair."""

    first: Reg | Sym
    second: Reg | Sym


Operand = Reg | Imm | Sym | Vec | Addr | Pair


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        op: the opcode split at the dots.
        operands: as written, destination first.
        guard: predicate register, or None.
        line: line of the PTX text.
        text: the instruction, for messages.
        loc: (file, line) of the source, or None.
    """

    op: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Reg | None
    line: int
    text: str
    loc: tuple | None = None

    @property
    def name(self) -> str:
        """First word of the opcode."""
        return self.op[0]

    @property
    def opcode(self) -> str:
        """The whole opcode."""
        return ".".join(self.op)

    def has(self, *modifiers: str) -> bool:
        """Whether the opcode contains any of the modifiers."""
        return any(m in self.op for m in modifiers)


@dataclass
class Variable:
    """Variable in a state space.

    Attributes:
        size, align: in bytes; an extern array has size 0.
        init: initial bytes, or None.
        fixups: (byte offset, symbol, addend) for initialisers that hold addresses.
    """

    name: str
    space: str
    size: int
    align: int
    type: str = "b8"
    init: bytes | None = None
    extern: bool = False
    fixups: tuple = ()


@dataclass
class Function:
    """Kernel (`entry`) or device function, flattened: one register file, one list of code.

    Attributes:
        regs: register name -> type; `name<>` stands for a numbered range.
        vars: unique name -> Variable.
        labels: label -> index in code.
        tables: label of a `.branchtargets` -> labels.
        directives: such as maxntid -> its numbers.
        body: enters regs, vars, code, labels and tables, once; None: done, or only declared.
    """

    name: str
    entry: bool
    params: list[Variable]
    regs: dict[str, str] = field(default_factory=dict)
    vars: dict[str, Variable] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)
    directives: dict[str, list[int]] = field(default_factory=dict)
    defined: bool = True
    body: Callable[[Function], None] | None = None

    def complete(self) -> Function:
        """Parses the body if that has not been done; a module has more kernels than one runs.

        Raises:
            PtxParseError: naming the line.
        """
        if self.body is not None:
            parse, self.body = self.body, None
            parse(self)
        return self


@dataclass
class Module:
    """Parsed PTX module; the bodies of functions are parsed when `complete` asks for them."""

    version: str = ""
    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    vars: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels."""
        return [f.name for f in self.functions.values() if f.entry]


def registers(operand: Operand | None) -> list[str]:
    """Names of the registers in an operand."""
    if isinstance(operand, Reg):
        return [operand.name]
    if isinstance(operand, Vec):
        return [name for item in operand.items for name in registers(item)]
    if isinstance(operand, Addr):
        return registers(operand.base)
    if isinstance(operand, Pair):
        return registers(operand.first) + registers(operand.second)
    return []


# Opcodes whose first operand is a source or an address.
NO_DESTINATION = {"st", "red", "bra", "brx", "call", "cp", "stmatrix", "bar", "barrier"}


def written(ins: Instruction) -> list[str]:
    """Names of the registers an instruction writes."""
    if not ins.operands or isinstance(ins.operands[0], Addr):
        return []
    if ins.name in NO_DESTINATION and not ins.has("red"):
        return []
    return registers(ins.operands[0])


def read(ins: Instruction) -> list[str]:
    """Names of the registers an instruction reads, its guard included."""
    first = 1 if written(ins) else 0
    names = [name for operand in ins.operands[first:] for name in registers(operand)]
    return names + registers(ins.guard)
