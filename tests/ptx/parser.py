"""PTX text -> Module (PTX ISA sections 4 'Syntax', 5 'State Spaces and Types').

The parser keeps instructions close to the text: an opcode split at the dots, a guard predicate
and a tuple of operands. Names declared in nested `{ }` scopes (inline assembly, call sequences)
are made unique, so that each function has one flat register file and one flat list of code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .errors import PtxParseError
from .syntax import (
    WIDTH,
    Addr,
    Function,
    Imm,
    Instruction,
    Module,
    Operand,
    Pair,
    Reg,
    Sym,
    Variable,
    Vec,
)

TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"'
    r"|0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b"
    r"|0[xX][0-9a-fA-F]+U?|\d+\.\d*(?:[eE][+-]?\d+)?|\d+U?"
    r"|[A-Za-z_$%.][\w$.%]*(?:::[\w.]+)*"
    r"|[{}()\[\];:,=<>!|+\-@*/&^~]"
)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# A function's head up to the brace of its body, or the end of its declaration.
FUNCTION = re.compile(r"\.(?:entry|func)\b[^{;]*[{;]")
MARK = re.compile(r'[{}]|"(?:[^"\\]|\\.)*"')
LINKAGE = (".visible", ".extern", ".weak", ".common")
SPACES = (".shared", ".local", ".param", ".global", ".const")


class Scope:
    """Chain of name -> unique name maps for nested `{ }` blocks."""

    def __init__(self, parent: Scope | None = None):
        self.parent, self.names, self.ranges = parent, {}, []

    def find(self, name: str) -> str | None:
        """The unique name that `name` stands for here, or None."""
        scope = self
        while scope:
            if name in scope.names:
                return scope.names[name]
            for prefix, count in scope.ranges:
                tail = name[len(prefix) :]
                if name.startswith(prefix) and tail.isdigit() and int(tail) < count:
                    return name
            scope = scope.parent
        return None


class Parser:
    """Recursive descent over the tokens of a module, or of one function's body.

    Args:
        text: without comments.
        line: number of its first line.
        module: what is known so far.
    """

    def __init__(self, text: str, line: int = 1, module: Module | None = None):
        self.module = module or Module()
        self.lines, self.first = text.split("\n"), line
        self.tok, self.line = [], []
        for number, content in enumerate(self.lines, line):
            for t in TOKEN.findall(content):
                # directives may be written together, as in `.reg.b32`
                parts = re.findall(r"\.[^.]+", t) if t[0] == "." else [t]
                self.tok += parts
                self.line += [number] * len(parts)
        self.tok.append("")
        self.line.append(line + len(self.lines) - 1)
        self.i = self.serial = self.depth = 0
        self.loc = None

    # ---- tokens -------------------------------------------------------------------------------
    def peek(self, k: int = 0) -> str:
        return self.tok[min(self.i + k, len(self.tok) - 1)]

    def next(self) -> str:
        t = self.tok[self.i]
        self.i += 1
        return t

    def accept(self, t: str) -> bool:
        if self.tok[self.i] == t:
            self.i += 1
            return True
        return False

    def expect(self, t: str) -> None:
        got = self.next()
        if got != t:
            self.fail(f"expected {t!r}, found {got!r}")

    def skip_past(self, t: str) -> None:
        while self.next() != t:
            if not self.peek():
                self.fail(f"expected {t!r}")

    def fail(self, message: str) -> None:
        n = self.line[max(self.i - 1, 0)]
        raise PtxParseError(f"line {n}: {message}: {self.lines[n - self.first].strip()}")

    @staticmethod
    def is_int(t: str) -> bool:
        return t[:1].isdigit() and t[:2] not in ("0f", "0F", "0d", "0D") and "." not in t

    @staticmethod
    def int_value(t: str) -> int:
        t = t.rstrip("U")
        if t[:2] in ("0x", "0X"):
            return int(t, 16)
        if len(t) > 1 and t[0] == "0":
            return int(t, 8)
        return int(t)

    def const_expr(self) -> int:
        """Integer constant with + - * (PTX ISA 4.5.4, the part compilers emit)."""
        value = self.const_atom()
        while self.peek() and self.peek() in "+-*":
            operator = self.next()
            other = self.const_atom()
            if operator == "*":
                value *= other
            else:
                value += other if operator == "+" else -other
        return value

    def const_atom(self) -> int:
        t = self.next()
        if t == "-":
            return -self.const_atom()
        if t == "(":
            value = self.const_expr()
            self.expect(")")
            return value
        if not self.is_int(t):
            self.fail(f"expected a constant, found {t!r}")
        return self.int_value(t)

    # ---- module level -------------------------------------------------------------------------
    def parse(self, bodies: list[tuple[str, int]]) -> Module:
        """Parses a module in which function bodies have been replaced by `{}`.

        Args:
            bodies: what stood there, and its line.
        """
        m = self.module
        waiting = iter(bodies)
        while self.peek():
            t = self.peek()
            if t == ".version":
                self.i += 1
                m.version = self.next()
            elif t == ".target":
                self.i += 1
                m.target = self.next()
                while self.accept(","):
                    self.next()
            elif t == ".address_size":
                self.i += 2
            elif t == ".file":
                self.file_directive()
            elif t == ".section":
                self.skip_past("}")
            elif t in (".pragma", ".alias"):
                self.skip_past(";")
            elif t in (*LINKAGE, *SPACES, ".func", ".entry"):
                self.declaration(waiting)
            else:
                self.fail(f"unexpected {t!r} at module level")
        return m

    def file_directive(self) -> None:
        self.expect(".file")
        number = int(self.next())
        name = self.next().strip('"')
        if self.peek().startswith('"'):
            name = name + "/" + self.next().strip('"')
        while self.accept(","):
            self.next()
        self.module.files[number] = name

    def declaration(self, bodies: Iterator[tuple[str, int]]) -> None:
        linkage = set()
        while self.peek() in LINKAGE:
            linkage.add(self.next())
        if self.peek() in (".entry", ".func"):
            self.function(bodies)
        else:
            for v in self.variables(".extern" in linkage):
                self.module.vars[v.name] = v

    def variables(self, extern: bool = False, scope: Scope | None = None) -> list[Variable]:
        """`.space .align n .type name[dims] = init, ...;`."""
        space = self.next()[1:].split("::")[0]
        align, vector, typ = None, 1, None
        while self.peek().startswith("."):
            t = self.next()
            if t == ".align":
                align = self.int_value(self.next())
            elif t in (".v2", ".v4"):
                vector = int(t[2])
            elif t[1:] in WIDTH:
                typ = t[1:]
            elif t == ".attribute":
                self.skip_past(")")
            else:
                self.fail(f"variable with {t}")
        out = []
        while True:
            name = self.next()
            count, unsized = vector, False
            while self.accept("["):
                if self.accept("]"):
                    unsized = True
                else:
                    count *= self.const_expr()
                    self.expect("]")
            each = max(WIDTH[typ] // 8, 1)
            init, fixups = None, ()
            if self.accept("="):
                init, fixups = self.initialiser(typ, count * each)
                if unsized:
                    count, unsized = len(init) // each, False
            out.append(
                Variable(
                    self.unique(scope, name) if scope else name,
                    space,
                    0 if unsized else count * each,
                    align or each * vector,
                    typ,
                    init,
                    extern or unsized,
                    fixups,
                )
            )
            if not self.accept(","):
                break
        self.expect(";")
        return out

    def initialiser(self, typ: str, size: int) -> tuple[bytes, tuple]:
        """Initialiser -> (bytes, address fixups)."""
        data, fixups = bytearray(), []
        self.initial_item(max(WIDTH[typ] // 8, 1), data, fixups)
        data.extend(bytes(max(size - len(data), 0)))
        return bytes(data), tuple(fixups)

    def initial_item(self, width: int, data: bytearray, fixups: list) -> None:
        if self.accept("{"):
            while not self.accept("}"):
                self.initial_item(width, data, fixups)
                self.accept(",")
            return
        t = self.peek()
        if t[:2] in ("0f", "0F", "0d", "0D"):
            self.i += 1
            data.extend(int(t[2:], 16).to_bytes(width, "little"))
        elif t in ("-", "(") or self.is_int(t):
            value = self.const_expr()
            data.extend((value & (1 << 8 * width) - 1).to_bytes(width, "little"))
        else:
            name = self.next()
            if name == "generic":
                self.expect("(")
                name = self.next()
                self.expect(")")
            addend = self.const_expr() if self.accept("+") else 0
            fixups.append((len(data), name, addend))
            data.extend(bytes(width))

    # ---- functions ----------------------------------------------------------------------------
    def parameter(self) -> Variable:
        space = self.next()
        align, typ, pointer = None, None, False
        while self.peek().startswith("."):
            t = self.next()
            if t == ".align":  # after .ptr: of what it points to
                value = self.int_value(self.next())
                align = align if pointer else value
            elif t == ".ptr":
                pointer = True
            elif t[1:] in WIDTH:
                typ = t[1:]
        name = self.next()
        count = 1
        while self.accept("["):
            count *= 0 if self.peek() == "]" else self.const_expr()
            self.expect("]")
        if space == ".reg":
            self.fail("function parameters in .reg are not supported")
        width = WIDTH[typ] // 8
        return Variable(name, "param", width * count, align or width, typ)

    def parameters(self) -> list[Variable]:
        out = []
        if self.accept("("):
            while not self.accept(")"):
                out.append(self.parameter())
                self.accept(",")
        return out

    def function(self, bodies: Iterator[tuple[str, int]]) -> None:
        entry = self.next() == ".entry"
        returns = [] if entry else self.parameters()
        name = self.next()
        f = Function(name, entry, self.parameters())
        while self.peek() not in ("{", ";", ""):
            directive = self.next()
            if directive == ".pragma":
                self.next()
                self.accept(";")
                continue
            values = []
            while self.is_int(self.peek()):
                values.append(self.int_value(self.next()))
                self.accept(",")
            f.directives[directive[1:]] = values
        if self.accept(";"):
            f.defined = False
            self.module.functions.setdefault(name, f)
            return
        self.expect("{")
        self.expect("}")
        text, line = next(bodies)
        f.vars.update({v.name: v for v in f.params + returns})
        f.body = lambda f: Parser(text, line, self.module).function_body(f)
        self.module.functions[name] = f

    def function_body(self, f: Function) -> None:
        """The body of a function, without its outer braces."""
        scope = Scope()
        scope.names.update({name: name for name in f.vars})
        self.body(f, scope)

    def body(self, f: Function, scope: Scope) -> None:
        """Statements up to the end, or to the `}` of the block whose `{` has been consumed."""
        self.prescan_labels(scope)
        while not (self.depth and self.accept("}")):
            t = self.peek()
            if t == "" and not self.depth:
                return
            if t == "{":
                self.i += 1
                self.depth += 1
                self.body(f, Scope(scope))
                self.depth -= 1
            elif t == ".reg":
                self.register_directive(f, scope)
            elif t == ".loc":
                self.loc_directive()
            elif t == ".pragma":
                self.skip_past(";")
            elif t in SPACES:
                for v in self.variables(scope=scope):
                    f.vars[v.name] = v
            elif t == ";":
                self.i += 1
            elif self.peek(1) == ":" and not t.startswith("."):
                self.label(f, scope)
            elif t == "":
                self.fail("unterminated function")
            else:
                f.code.append(self.instruction(f, scope))

    def label(self, f: Function, scope: Scope) -> None:
        name = scope.find(self.next())
        self.expect(":")
        if self.accept(".branchtargets"):
            targets = [self.next()]
            while self.accept(","):
                targets.append(self.next())
            self.expect(";")
            f.tables[name] = [scope.find(t) for t in targets]
        elif self.peek() in (".callprototype", ".calltargets"):
            self.skip_past(";")
        else:
            f.labels[name] = len(f.code)

    def prescan_labels(self, scope: Scope) -> None:
        """Enter the labels of this block into `scope`: branches may go forward."""
        depth, i = 0, self.i
        while depth >= 0:
            t = self.tok[i]
            if t in ("{", "}"):
                depth += 1 if t == "{" else -1
            elif depth == 0 and self.tok[i + 1 : i + 2] == [":"]:
                self.unique(scope, t)
            elif t == "":
                break
            i += 1

    def unique(self, scope: Scope, name: str) -> str:
        """Declare `name` in `scope`; nested scopes get a serial suffix."""
        if self.depth:
            self.serial += 1
            scope.names[name] = f"{name}@{self.serial}"
        else:
            scope.names[name] = name
        return scope.names[name]

    def register_directive(self, f: Function, scope: Scope) -> None:
        self.expect(".reg")
        typ = None
        while self.peek().startswith("."):
            typ = self.next()[1:]
            if typ not in WIDTH:
                self.fail(f"register type {typ}")
        while True:
            name = self.next()
            if self.accept("<"):
                count = self.const_expr()
                self.expect(">")
                if self.depth:
                    for k in range(count):
                        f.regs[self.unique(scope, f"{name}{k}")] = typ
                else:
                    scope.ranges.append((name, count))
                    f.regs[name + "<>"] = typ
            else:
                f.regs[self.unique(scope, name)] = typ
            if not self.accept(","):
                break
        self.expect(";")

    def loc_directive(self) -> None:
        """`.loc file line column [, function_name ..., inlined_at ...]`."""
        self.expect(".loc")
        number, line = int(self.next()), int(self.next())
        self.next()
        n = self.line[self.i - 1]
        while self.line[self.i] == n and self.peek() not in ("", "}"):
            self.i += 1
        if line:
            self.loc = (self.module.files.get(number, str(number)), line)

    def instruction(self, f: Function, scope: Scope) -> Instruction:
        line, first = self.line[self.i], self.i
        guard = None
        if self.accept("@"):
            negate = self.accept("!")
            guard = Reg(self.register(f, scope, self.next()), negate)
        op = self.next()
        if not op[0].isalpha():
            self.fail(f"expected an instruction, found {op!r}")
        operands = []
        while not self.accept(";"):
            if self.peek() == "":
                self.fail("unterminated instruction")
            operands.append(self.operand(f, scope))
            self.accept(",")
        text = " ".join(self.tok[first : self.i])
        text = re.sub(r" ([,;\])}])", r"\1", re.sub(r"([\[({@!]) ", r"\1", text))
        return Instruction(tuple(op.split(".")), tuple(operands), guard, line, text, self.loc)

    # ---- operands -----------------------------------------------------------------------------
    def is_register(self, f: Function, name: str) -> bool:
        """Whether a unique name is a register; numbered ones are entered at their first use."""
        if name in f.regs:
            return True
        base = name.rstrip("0123456789") + "<>"
        if base not in f.regs or name in f.vars:
            return False
        f.regs[name] = f.regs[base]
        return True

    def register(self, f: Function, scope: Scope, name: str) -> str:
        found = scope.find(name)
        if found is None or not self.is_register(f, found):
            self.fail(f"undeclared register {name}")
        return found

    def named(self, f: Function, scope: Scope, name: str) -> Reg | Sym:
        found = scope.find(name)
        if found is not None and self.is_register(f, found):
            return Reg(found)
        return Sym(found or name)

    def operand(self, f: Function, scope: Scope) -> Operand:
        t = self.peek()
        if t in ("{", "("):
            self.i += 1
            items = []
            while not self.accept("}" if t == "{" else ")"):
                items.append(self.operand(f, scope))
                self.accept(",")
            return Vec(tuple(items))
        if t == "[":
            return self.address(f, scope)
        if t == "!":
            self.i += 1
            return Reg(self.register(f, scope, self.next()), True)
        if t[:2] in ("0f", "0F"):
            self.i += 1
            return Imm(int(t[2:], 16), 32)
        if t[:2] in ("0d", "0D"):
            self.i += 1
            return Imm(int(t[2:], 16), 64)
        if t == "-" or self.is_int(t):
            return Imm(self.const_expr())
        if t[0].isdigit():
            self.fail("decimal floating-point immediate")
        value = self.named(f, scope, self.next())
        if self.accept("|"):
            return Pair(value, self.named(f, scope, self.next()))
        if isinstance(value, Sym) and self.peek() == "+":
            self.i += 1
            return Addr(value, self.const_expr())
        return value

    def address(self, f: Function, scope: Scope) -> Addr:
        self.expect("[")
        base, offset = None, 0
        if self.is_int(self.peek()) or self.peek() == "-":
            offset = self.const_expr()
        else:
            base = self.named(f, scope, self.next())
            if self.accept("+") or self.peek() == "-":
                offset = self.const_expr()
        if self.peek() == ",":
            self.fail("tensor coordinates")
        self.expect("]")
        return Addr(base, offset)


def take_bodies(text: str) -> tuple[str, list[tuple[str, int]]]:
    """Replaces the bodies of functions by `{}`, keeping lines; returns them with their lines."""
    kept, bodies, at = [], [], 0
    for declaration in FUNCTION.finditer(text):
        if declaration.start() < at or declaration[0].endswith(";"):
            continue
        start = end = declaration.end()
        depth = 1
        while depth:
            mark = MARK.search(text, end)
            if mark is None:
                line = text.count("\n", 0, start) + 1
                raise PtxParseError(f"line {line}: unterminated function")
            depth += {"{": 1, "}": -1}.get(mark[0], 0)
            end = mark.end()
        body = text[start : end - 1]
        bodies.append((body, text.count("\n", 0, start) + 1))
        kept += [text[at:start], "\n" * body.count("\n")]
        at = end - 1
    return "".join([*kept, text[at:]]), bodies


def parse(text: str) -> Module:
    """Parses PTX text.

    Raises:
        PtxParseError: naming the line.
    """
    text = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    outside, bodies = take_bodies(text)
    return Parser(outside).parse(bodies)
