"""Every instruction set against plain loops: kernels_check.cpp, compiled and run as a program."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dssnet_fast.backends import sources

ROOT = Path(__file__).parents[2]
CPU = ROOT / "csrc" / "cpu"
COMMON = [
    CPU / "convolution.cpp",
    CPU / "instruction_sets.cpp",
    CPU / "portable.cpp",
    CPU / "self_check.cpp",
    Path(__file__).with_name("kernels_check.cpp"),
]
# -O1 compiles in a fraction of the time, and vectors are written as such.
OPTIONS = ("-std=c++17", "-O1", *sources.CPU_OPTIONS[1:])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CPU.is_dir(), reason="the C++ sources are not here"),
]


def run(command) -> str:
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def build(compiler: list[str], folder: Path, names: list[str], *extra: str) -> Path:
    """The program, with these instruction sets and the portable one."""
    options = [*OPTIONS, *extra, *(f"-DDSSNET_FAST_{name.upper()}" for name in names)]

    def compiled(source: Path) -> Path:
        own = sources.INSTRUCTION_SETS[source.stem].options if source.stem in names else ()
        output = folder / f"{source.stem}.o"
        run([*compiler, *options, *own, "-c", source, "-o", output])
        return output

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        objects = list(workers.map(compiled, [*(CPU / f"{n}.cpp" for n in names), *COMMON]))
    program = folder / "kernels_check"
    run([*compiler, *objects, "-o", program])
    return program


def known_sets(compiler: list[str], machine: str, folder: Path) -> list[str]:
    """Those for this machine whose options the compiler knows."""
    empty = folder / "empty.cpp"
    empty.write_text("")

    def knows(options: tuple[str, ...]) -> bool:
        command = [*compiler, *options, "-c", str(empty), "-o", str(folder / "empty.o")]
        return subprocess.run(command, capture_output=True).returncode == 0

    sets = sources.INSTRUCTION_SETS.items()
    return [name for name, one in sets if machine in one.machines and knows(one.options)]


def native_compiler() -> list[str]:
    named = os.environ.get("CXX")
    found = shlex.split(named) if named else ["c++"]
    if not shutil.which(found[0]):
        pytest.skip("no C++ compiler")
    return found


def test_here(tmp_path):
    compiler = native_compiler()
    names = known_sets(compiler, platform.machine(), tmp_path)
    printed = run([build(compiler, tmp_path, names)])
    print(printed)
    assert [line.split()[0] for line in printed.splitlines()] == ["portable", *names]


def test_tiles_emulated(tmp_path):
    compiler = native_compiler()
    if "amx" not in known_sets(compiler, platform.machine(), tmp_path):
        pytest.skip("amx: not for this machine, or unknown to its compiler")
    printed = run([build(compiler, tmp_path, ["amx"], "-DDSSNET_FAST_EMULATE_TILES")])
    print(printed)
    if "amx          not on this processor" in printed:
        pytest.skip("amx: what is not tiles of it is AVX-512 BF16, which this processor lacks")
    assert printed.splitlines()[1].startswith("amx")


def test_aarch64(tmp_path):
    """On an emulator that has all extensions."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    compiler = ["aarch64-linux-gnu-g++", "-static"]
    if platform.machine() == "aarch64":
        pytest.skip("aarch64: test_here is for it")
    if found is None or shutil.which(compiler[0]) is None:
        pytest.skip("aarch64: no qemu-aarch64 or no aarch64-linux-gnu-g++")
    names = known_sets(compiler, "aarch64", tmp_path)
    printed = run([found, "-cpu", "max", build(compiler, tmp_path, names)])
    print(printed)
    assert [line.split()[0] for line in printed.splitlines()] == ["portable", *names]
    assert "not on this processor" not in printed
