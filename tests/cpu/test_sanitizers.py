"""The C++ without Python under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cpu.cases import ENDS, INSTRUCTION_SETS
from cpu.compiled import Compiler, needs_sources
from cpu.driver import DRIVER, write_operands
from dssnet_fast.backends import sources
from dssnet_fast.quantisation import layer_names
from networks import CONFIGS

SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
OPTIONS = ("-std=c++17", "-O1", "-g1", *sources.CPU_OPTIONS[1:])
# Threads are the same whatever is computed.
EVERY_DAY = {
    "address": [
        ("gray", "fp32"),
        ("gray", "bf16"),
        ("gray", "mixed"),
        ("pixel_shuffle", "mixed"),
    ],
    "thread": [("gray", "fp32")],
}

pytestmark = [
    pytest.mark.slow,
    needs_sources,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


class Program:
    """The driver, compiled."""

    def __init__(self, compiler: Compiler, names: Sequence[str], options: Sequence[str]) -> None:
        objects = compiler.objects([*compiler.units(names), DRIVER], names)
        self.path = compiler.program([*objects.values()], *options)

    def run(self, *arguments: str | Path) -> list[str]:
        """Lines of what it printed."""
        # ThreadSanitizer wants memory where it is without randomised addresses.
        command = ["setarch", "-R"] if shutil.which("setarch") else []
        done = subprocess.run(
            [*command, self.path, *arguments],
            env={**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[:6000]
        assert done.stderr == ""
        return done.stdout.split()


@pytest.fixture(scope="module")
def program(request, tmp_path_factory):
    """Compiles the driver with a sanitizer and for instruction sets."""

    def build(sanitizer: str, names: Sequence[str]) -> Program:
        options = SANITIZERS[sanitizer]
        probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
        probe.write_text("int main() {}\n")
        command = ["g++", *options, str(probe), "-o", str(probe.with_suffix(""))]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip(f"g++ has no {options[0]} here")
        compiler = Compiler(request, ["g++"], platform.machine(), [*OPTIONS, *options])
        return Program(compiler, [name for name in names if name != "portable"], options)

    return build


@pytest.mark.parametrize(
    ("sanitizer", "name", "precision"),
    [(sanitizer, *one) for sanitizer, some in EVERY_DAY.items() for one in some],
)
def test_clean(program, sanitizer, name, precision, tmp_path):
    driver, exact = program(sanitizer, ENDS), ()
    if precision == "mixed":
        # A layer that is not in int8 makes its neighbours convert.
        precision, exact = "int8", ("downsample.1", "extract.blocks.1", "fuse.reduce")
    given = write_operands(tmp_path / "operands", name, precision, exact)
    assert driver.run(given) == (ENDS or ["portable"])


@pytest.mark.large
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_everything_is_clean(program, sanitizer, name, precision, tmp_path):
    """All sets there are, and in int8 each layer once as the only one that is not."""
    driver = program(sanitizer, list(INSTRUCTION_SETS))
    exact = [()]
    if precision == "int8" and sanitizer == "address" and CONFIGS[name].blocks < 5:
        exact += [(layer,) for layer in layer_names(CONFIGS[name])]
    for layers in exact:
        given = write_operands(tmp_path / "operands", name, precision, layers)
        size = ["large"] if layers == () and sanitizer == "address" else []
        assert driver.run(given, *size) == (list(INSTRUCTION_SETS) or ["portable"])


def test_a_fault_is_seen(program, tmp_path):
    """The sanitizer is on, in kernels too."""
    driver = program("address", ENDS)
    given = write_operands(tmp_path / "operands", "gray", "fp32")
    with pytest.raises(AssertionError, match="AddressSanitizer: heap-buffer-overflow"):
        driver.run(given, "short")
