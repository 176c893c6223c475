"""The C++ without Python under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cpu.cases import ENDS, INSTRUCTION_SETS, calibrated
from dssnet_fast.backends import sources
from dssnet_fast.backends.cpu.operands import float_type, operands
from dssnet_fast.quantisation import layer_names
from networks import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
CPU, DRIVER = ROOT / "csrc" / "cpu", Path(__file__).with_name("driver.cpp")
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
    pytest.mark.skipif(not CPU.is_dir(), reason="the C++ sources are not here"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


class Program:
    """The driver, compiled; what was compiled is kept from one run of the tests to the next."""

    def __init__(self, folder: Path, names: Sequence[str], options: Sequence[str]) -> None:
        self.folder = folder
        self.options = [*OPTIONS, *options, *(f"-DDSSNET_FAST_{name.upper()}" for name in names)]
        self.headers = [p for p in CPU.iterdir() if p.suffix in (".h", ".inl")]
        units = [
            path
            for path in sorted(CPU.glob("*.cpp"))
            if path.name != "bind.cpp" and sources.instruction_set(path) in (None, *names)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
            objects = list(workers.map(self.compile, [*units, DRIVER]))
        self.path = self.make(["g++", *options, *map(str, objects), "-pthread"], objects, "driver")

    def compile(self, unit: Path) -> Path:
        name = sources.instruction_set(unit)
        own = sources.INSTRUCTION_SETS[name].options if name else ()
        command = ["g++", *self.options, *own, f"-I{CPU}", "-c", str(unit)]
        return self.make(command, [unit, *self.headers], unit.stem + ".o")

    def make(self, command: Sequence[str], inputs: Sequence[Path], name: str) -> Path:
        state = hashlib.sha256("\0".join(command).encode())
        for path in sorted(inputs):
            state.update(path.read_bytes())
        kept = self.folder / f"{state.hexdigest()[:24]}-{name}"
        if not kept.is_file():
            begun = kept.with_suffix(f".{os.getpid()}")
            done = subprocess.run([*command, "-o", str(begun)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(begun, kept)
        return kept

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


def write_operands(path: Path, name: str, precision: str, exact: Sequence[str] = ()) -> Path:
    """A network as the engine gives it to the extension, for `read` in driver.cpp."""
    weights = calibrated(name)
    weights = replace(weights, quantisation=replace(weights.quantisation, exact=tuple(exact)))
    found = operands(weights, precision, float_type(precision, fast_bf16=False))
    with open(path, "wb") as file:

        def write(*words) -> None:
            file.write((" ".join(map(str, words)) + "\n").encode())

        order = ("in_channels", "classes", "width", "features", "fused", "y", "narrow")
        flags = (int(found.sizes[key]) for key in ("learned_upsampling", "edges"))
        write(*(found.sizes[key] for key in order), *flags)
        write(len(found.blocks), len(found.slopes), len(found.convolutions))
        for block in found.blocks:
            write(len(block))
            for parts, slope in block:
                write(len(parts), slope, *parts)
        for slope in found.slopes.items():
            write(*slope)
        for convolution, one in found.convolutions.items():
            write(convolution, *one.weight.shape, one.type, one.step)
            file.write(one.weight.tobytes() + one.bias.tobytes())
    return path


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
        cache = getattr(request.config, "cache", None)
        kept = cache.mkdir("dssnet_sanitized") if cache else tmp_path_factory.mktemp("sanitized")
        return Program(kept, [name for name in names if name != "portable"], options)

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
