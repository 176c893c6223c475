"""The C++ of `csrc`, compiled for tests; what was compiled is kept from one run to the next."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from dssnet_fast.backends import sources

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CPU = CSRC / "cpu"
ARM = "aarch64-linux-gnu-"  # what the cross compiler's tools begin with

needs_sources = pytest.mark.skipif(not CPU.is_dir(), reason="the C++ sources are not here")


def run(command: Sequence[str | Path], **options) -> str:
    """What a command printed on both streams; it must succeed."""
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **options,
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@cache
def setup_script() -> ModuleType:
    """`setup.py` as a module, which installs nothing."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    spec = importlib.util.spec_from_file_location("dssnet_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        spec.loader.exec_module(module)
    return module


@cache
def installed_objects() -> dict[Path, Path]:
    """The very objects that an installation links, each unit's; compiled by `setup.py`."""
    script, found = setup_script(), {}

    def made(command, inputs, suffix, recipe):
        output = script_made(command, inputs, suffix, recipe)
        if suffix == ".o":
            found[Path(command[-1])] = output[0]
        return output

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(os.cpu_count()) as workers:
        script_made = script.made
        patch.setattr(script, "made", made)
        try:
            script.compile_extension(workers)
        except script.LeftOut as reason:
            pytest.skip(f"the extension cannot be built: {reason}")
    return found


def release_options() -> tuple[str, ...]:
    """What an installation compiles the kernels with, on any processor."""
    return (*setup_script().CXX_OPTIONS, *sources.CPU_OPTIONS)


def native_compiler() -> list[str]:
    """The command of the compiler for this machine."""
    named = os.environ.get("CXX")
    found = shlex.split(named) if named else ["c++"]
    if not shutil.which(found[0]):
        pytest.skip(f"no C++ compiler {found[0]}")
    return found


def arm_compiler() -> list[str]:
    """The command of a compiler for aarch64 on other machines."""
    if platform.machine() == "aarch64":
        pytest.skip("aarch64: tested natively here")
    if shutil.which(f"{ARM}g++") is None:
        pytest.skip(f"aarch64: no {ARM}g++ (Debian's package g++-aarch64-linux-gnu)")
    return [f"{ARM}g++"]


def emulator(machine: str) -> str:
    """The path of QEMU's emulator of programs for a kind of processor."""
    names = (f"qemu-{machine}", f"qemu-{machine}-static")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no {names[0]} (Debian's package qemu-user)")
    return found


class Compiler:
    """A C++ compiler that keeps what it has made.

    Args:
        request: Of pytest; its cache is where that is kept.
        command: The compiler.
        machine: The kind of processor it compiles for, as `platform.machine()` names it.
        options: For every unit.
    """

    def __init__(
        self,
        request: pytest.FixtureRequest,
        command: Sequence[str],
        machine: str,
        options: Sequence[str],
    ) -> None:
        self.command, self.machine, self.options = list(command), machine, list(options)
        kept = getattr(request.config, "cache", None)
        self.folder = (
            kept.mkdir("dssnet_compiled")
            if kept
            else request.getfixturevalue("tmp_path_factory").mktemp("compiled")
        )
        self.version = run([*self.command, "--version"])
        self.headers = [path for path in CPU.iterdir() if path.suffix in (".h", ".inl")]

    def sets(self) -> list[str]:
        """The instruction sets that it and its assembler know."""
        return setup_script().usable_instruction_sets(self.command, self.machine)[0]

    def units(self, names: Sequence[str]) -> list[Path]:
        """What a program with these instruction sets is made of, without its own file."""
        return [
            path
            for path in sorted(CPU.glob("*.cpp"))
            if path.name != "bind.cpp" and sources.instruction_set(path) in (None, *names)
        ]

    def objects(self, units: Sequence[Path], names: Sequence[str]) -> dict[Path, Path]:
        """Compile units, which are told of these instruction sets."""
        defines = [f"-DDSSNET_FAST_{name.upper()}" for name in names]

        def compiled(unit: Path) -> Path:
            name = sources.instruction_set(unit)
            own = sources.INSTRUCTION_SETS[name].options if name else ()
            command = [*self.command, *self.options, *defines, *own, f"-I{CPU}", "-c", str(unit)]
            return self._made(command, [unit, *self.headers], f"{unit.stem}.o")

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
            return dict(zip(units, workers.map(compiled, units), strict=True))

    def program(self, objects: Sequence[Path], *options: str) -> Path:
        """Link objects."""
        command = [*self.command, *options, *map(str, objects), "-pthread"]
        return self._made(command, list(objects), "program")

    def _made(self, command: Sequence[str], inputs: Sequence[Path], name: str) -> Path:
        state = hashlib.sha256("\0".join([self.version, *command]).encode())
        for path in sorted(inputs):
            state.update(path.read_bytes())
        kept = self.folder / f"{state.hexdigest()[:24]}-{name}"
        if not kept.is_file():
            begun = kept.with_suffix(f".{os.getpid()}")
            run([*command, "-o", str(begun)])
            os.replace(begun, kept)
        return kept
