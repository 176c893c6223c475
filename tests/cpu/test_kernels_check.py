"""Every instruction set against plain loops: kernels_check.cpp, compiled and run as a program."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from cpu.compiled import (
    CPU,
    Compiler,
    arm_compiler,
    emulator,
    native_compiler,
    needs_sources,
    run,
)
from dssnet_fast.backends import sources

COMMON = [
    CPU / "convolution.cpp",
    CPU / "instruction_sets.cpp",
    CPU / "portable.cpp",
    CPU / "self_check.cpp",
    Path(__file__).with_name("kernels_check.cpp"),
]
# -O1 compiles in a fraction of the time, and vectors are written as such.
OPTIONS = ("-std=c++17", "-O1", *sources.CPU_OPTIONS[1:])

pytestmark = [pytest.mark.slow, needs_sources]


def build(compiler: Compiler, names: list[str], *options: str) -> Path:
    """The program, with these instruction sets and the portable one."""
    units = [*(CPU / f"{name}.cpp" for name in names), *COMMON]
    return compiler.program([*compiler.objects(units, names).values()], *options)


@pytest.fixture
def here(request):
    return Compiler(request, native_compiler(), platform.machine(), OPTIONS)


def test_here(here):
    names = here.sets()
    printed = run([build(here, names)])
    print(printed)
    assert [line.split()[0] for line in printed.splitlines()] == ["portable", *names]


def test_tiles_emulated(here):
    if "amx" not in here.sets():
        pytest.skip("amx: not for this machine, or unknown to its compiler")
    here.options.append("-DDSSNET_FAST_EMULATE_TILES")
    printed = run([build(here, ["amx"])])
    print(printed)
    if "amx          not on this processor" in printed:
        pytest.skip("amx: what is not tiles of it is AVX-512 BF16, which this processor lacks")
    assert printed.splitlines()[1].startswith("amx")


def test_aarch64(request):
    """On an emulator that has all extensions."""
    compiler = Compiler(request, arm_compiler(), "aarch64", OPTIONS)
    names = compiler.sets()
    printed = run([emulator("aarch64"), "-cpu", "max", build(compiler, names, "-static")])
    print(printed)
    assert [line.split()[0] for line in printed.splitlines()] == ["portable", *names]
    assert "not on this processor" not in printed


@pytest.mark.parametrize(
    ("machine", "processor", "has"),
    [("x86_64", "Nehalem", ["portable"]), ("aarch64", "cortex-a53", ["portable", "neon"])],
)
def test_old_processors(request, machine, processor, has):
    """The portable kernels where nothing newer than they need is there."""
    qemu = emulator(machine)
    command, options = [], []
    if machine == platform.machine():
        command = native_compiler()
    elif machine == "aarch64":
        command, options = arm_compiler(), ["-static"]
    else:
        pytest.skip(f"{machine}: programs for it are compiled on it only")
    compiler = Compiler(request, command, machine, OPTIONS)
    names = ["portable", *compiler.sets()]
    printed = run([qemu, "-cpu", processor, build(compiler, names[1:], *options)])
    print(printed)
    ran = {line.split()[0]: "comparisons" in line for line in printed.splitlines()[-len(names) :]}
    assert ran == {name: name in has for name in names}
