"""Compiled files: none may run on a processor what only a newer one has.

What is compiled for an instruction set may define nothing but its table: a shared inline function
would be the copy that the linker keeps for all, and code that runs when the library is loaded, or
to tell what the set needs, would run everywhere. And what is compiled for all may use nothing that
the oldest processor lacks. An assembler that is told to be as old knows better than a list.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from cpu.compiled import (
    ARM,
    CPU,
    Compiler,
    arm_compiler,
    installed_objects,
    needs_sources,
    release_options,
    run,
)
from dssnet_fast.backends import native, sources

pytestmark = needs_sources

# The assembler's name for the oldest processor that runs us, and what marks functions as targets
# of indirect jumps, which older ones take for nothing.
OLDEST = {"x86_64": "generic64+ibt", "aarch64": "armv8-a"}
# Files of compilers' own libraries that use what they have asked the processor for.
ASKING = ("cpuinfo", "cpu_model")
# Sections whose code or functions run when a library is loaded, and groups that linkers merge.
EARLY = re.compile(r"\.(init|init_array|preinit_array|ctors|text\.startup|group|gnu\.linkonce)\b")


@dataclass(frozen=True)
class Built:
    """Objects for a kind of processor.

    Attributes:
        machine: As `platform.machine()` names it.
        tools: What the names of its binutils begin with.
        objects: Of each source file.
    """

    machine: str
    tools: str
    objects: dict[Path, Path]

    def of_sets(self) -> dict[str, Path]:
        named = {sources.instruction_set(unit): built for unit, built in self.objects.items()}
        return {name: built for name, built in named.items() if name is not None}


def need_tools(prefix: str) -> None:
    for tool in ("as", "objdump", "readelf"):
        if shutil.which(prefix + tool) is None:
            pytest.skip(f"no {prefix}{tool} (Debian's package binutils)")


@pytest.fixture(scope="module", params=["here", "aarch64"])
def built(request) -> Built:
    if request.param == "here":
        if platform.machine() not in OLDEST:
            pytest.skip(f"nothing is known of {platform.machine()}")
        need_tools("")
        return Built(platform.machine(), "", installed_objects())
    command = arm_compiler()
    need_tools(ARM)
    compiler = Compiler(request, command, "aarch64", release_options())
    names = compiler.sets()
    return Built("aarch64", ARM, compiler.objects(compiler.units(names), names))


def instructions(file: Path, tools: str) -> dict[tuple[int, str], set[str]]:
    """Each function's, by address and name, as they can be assembled again."""
    found: dict[tuple[int, str], set[str]] = {}
    for line in run([f"{tools}objdump", "-dw", "--no-show-raw-insn", file]).splitlines():
        if begins := re.match(r"([0-9a-f]+) <(.*)>:$", line):
            current = found.setdefault((int(begins[1], 16), begins[2]), set())
        elif given := re.match(r"\s*[0-9a-f]+:\t(.*)", line):
            text = re.sub(r"\s*(# .*|//.*)$", "", given[1])  # a remark
            text = re.sub(r"\b[0-9a-f]+ <.*>", ".", text)  # a place to jump to
            text = re.sub(r"^(data16 )+(?=cs nopw|rex\.W call)", "", text)  # so as to fill a line
            # What compilers write as `rep bsf` gives the same for all but 0 on any processor.
            current.add(re.sub(r"^tzcnt", "bsf", text).strip())
    return found


def too_new(texts: set[str], machine: str, tools: str) -> dict[str, str]:
    """Instructions that the oldest processor has not, and the assembler's words on each."""
    ordered = sorted(texts)
    source = "\n".join([*ordered, ""])
    command = [f"{tools}as", f"-march={OLDEST[machine]}", "-o", "/dev/null", "-"]
    printed = subprocess.run(command, input=source, capture_output=True, text=True).stderr
    said = re.findall(r"^{standard input}:(\d+): Error: (.*)$", printed, re.MULTILINE)
    assert bool(said) == bool(printed), printed
    return {ordered[int(line) - 1]: why for line, why in said}


def readelf(option: str, file: Path, tools: str) -> str:
    return run([f"{tools}readelf", "-W", option, file])


@dataclass(frozen=True)
class Symbol:
    """A line of an object's table; of one that it does not define the section is UND."""

    address: int
    kind: str
    binding: str
    section: str
    name: str


def symbols(file: Path, tools: str) -> list[Symbol]:
    words = (line.split() for line in readelf("--symbols", file, tools).splitlines())
    return [
        Symbol(int(word[1], 16), word[3], word[4], word[6], word[7] if len(word) > 7 else "")
        for word in words
        if word and re.fullmatch(r"\d+:", word[0])
    ]


def test_there_is_an_object_of_every_set(built):
    known = {
        name for name, one in sources.INSTRUCTION_SETS.items() if built.machine in one.machines
    }
    assert known == set(built.of_sets()), "this compiler lacks some"
    units = {path for path in CPU.glob("*.cpp") if sources.instruction_set(path) in (None, *known)}
    assert units - {CPU / "bind.cpp"} <= set(built.objects)


def test_a_set_defines_its_table_and_nothing_else(built):
    for name, file in built.of_sets().items():
        visible = [one for one in symbols(file, built.tools) if one.binding != "LOCAL"]
        defined = [one for one in visible if one.section != "UND"]
        assert len(defined) == 1, f"{name}: {defined}"
        table = defined[0]
        assert (table.kind, table.binding) == ("OBJECT", "GLOBAL"), f"{name}: {table}"
        assert f"{name}_kernels" in table.name


def test_nothing_of_a_set_runs_early(built):
    for name, file in built.of_sets().items():
        assert not EARLY.findall(readelf("--sections", file, built.tools)), name
        assert "IFUNC" not in {one.kind for one in symbols(file, built.tools)}, name


def test_a_set_calls_nothing_of_ours(built):
    """What it calls would have to be compiled for it."""
    for name, file in built.of_sets().items():
        wanted = {one.name for one in symbols(file, built.tools) if one.section == "UND"}
        assert not [symbol for symbol in wanted if "dssnet" in symbol], name


def test_what_is_for_all_runs_on_the_oldest(built):
    for unit, file in built.objects.items():
        if sources.instruction_set(unit) is None:
            texts = set().union(*instructions(file, built.tools).values())
            assert texts, unit.name
            assert too_new(texts, built.machine, built.tools) == {}, unit.name


def test_what_is_for_newer_ones_is_told(built):
    """Otherwise nothing is proven by what is not."""
    for name, file in built.of_sets().items():
        texts = set().union(*instructions(file, built.tools).values())
        found = too_new(texts, built.machine, built.tools)
        has_options = any(one.startswith("-m") for one in sources.INSTRUCTION_SETS[name].options)
        assert bool(found) == has_options, name
        newest = {text.split()[0] for text in sources.INSTRUCTION_SETS[name].newest.split(";")}
        assert newest & {text.split()[0] for text in found} or not has_options, name


def test_the_installed_extension():
    """Functions that the oldest processor has not are in files of instruction sets."""
    if native.problem() is not None:
        pytest.skip(native.problem())
    if platform.machine() not in OLDEST:
        pytest.skip(f"nothing is known of {platform.machine()}")
    need_tools("")
    file = Path(native.module().__file__)
    table = symbols(file, "")
    if not any(one.kind == "FUNC" and one.section != "UND" for one in table):
        pytest.skip(f"{file.name} is stripped")
    # Symbols of a file follow its name, those that other files see come after all of them.
    owners, owner = {}, ""
    for one in table:
        if one.kind == "FILE":
            owner = Path(one.name).stem
        elif one.kind == "FUNC" and one.binding == "LOCAL":
            owners[one.address] = owner
    functions = instructions(file, "")
    new = too_new(set().union(*functions.values()), platform.machine(), "").keys()
    strays = {
        name: owners.get(address)
        for (address, name), texts in functions.items()
        if texts & new and owners.get(address) not in {*sources.INSTRUCTION_SETS, *ASKING}
    }
    assert strays == {}
