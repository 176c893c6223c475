"""The kernels, and the package, on processors that this machine is not, emulated by QEMU.

Where an instruction is missing the emulator ends the program as the processor would. Emulated code
is some hundred times slower, so networks and images are small.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpu.cases import INSTRUCTION_SETS
from cpu.compiled import (
    CPU,
    ROOT,
    Compiler,
    arm_compiler,
    emulator,
    installed_objects,
    native_compiler,
    needs_sources,
    release_options,
)
from cpu.driver import DRIVER, write_operands
from dssnet_fast import FastDSSNet
from dssnet_fast.backends import native
from dssnet_fast.backends.cpu import instruction_set
from dssnet_fast.parity import relative_error
from networks import example

pytestmark = [pytest.mark.slow, needs_sources]

# What emulated processors have, slowest first. QEMU calls `max` all that it knows, which on x86-64
# are more sets in newer versions.
PROCESSORS = {
    ("x86_64", "Nehalem"): ["portable"],
    ("x86_64", "Haswell"): ["portable", "avx2"],
    ("x86_64", "max"): ["portable", "avx2"],
    ("aarch64", "cortex-a53"): ["portable", "neon"],
    ("aarch64", "max"): ["portable", "neon", "neon_dot", "neon_bf16"],
}
PRECISIONS = ("fp32", "bf16", "int8")
FORMS = ("direct", "winograd")
BF16 = ("avx512_bf16", "amx", "neon_bf16")  # these compute in bfloat16 what int8 leaves out
EXACT = 2e-5  # of float32; the worst seen is 1e-7
LOGITS = 16 * 72 * 2  # that `driver answers` writes for the network `gray`, before its edges


@dataclass(frozen=True)
class Done:
    """A process that has ended.

    Attributes:
        code: Its exit code; negative is a signal.
        out: What it printed.
        err: On stderr, without what the emulator says of itself.
    """

    code: int
    out: str
    err: str


def emulated(
    processor: str, command: Sequence[str | Path], machine: str = "x86_64", **environment: str
) -> Done:
    """Run a command on a processor."""
    done = subprocess.run(
        [emulator(machine), "-cpu", processor, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    # Of features of the processor that it knows nothing of.
    warnings = ("qemu-x86_64: warning: ", "qemu-aarch64: warning: ")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(warnings)]
    return Done(done.returncode, done.stdout, "\n".join(lines))


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many processes at once as there are processors."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as found:
        yield found


# --- kernels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the driver gave for a network of one precision on one processor.

    Attributes:
        machine: The kind of processor.
        processor: As the emulator names it; `here` is the one that is really here.
        precision: The network's.
        ran: The instruction sets, slowest first.
        values: Of each set and form, such as `avx2-direct`.
    """

    machine: str
    processor: str
    precision: str
    ran: list[str]
    values: dict[str, np.ndarray]


def build(request: pytest.FixtureRequest, machine: str) -> Path:
    """The driver, of the objects that are installed on such a machine."""
    emulator(machine)
    if machine == platform.machine():
        compiler = Compiler(request, native_compiler(), machine, release_options())
        kernels = {unit: built for unit, built in installed_objects().items() if unit.parent == CPU}
        kernels.pop(CPU / "bind.cpp")
        return compiler.program([*kernels.values(), *compiler.objects([DRIVER], []).values()])
    if machine != "aarch64":
        pytest.skip(f"{machine}: programs for it are compiled on it only")
    compiler = Compiler(request, arm_compiler(), machine, release_options())
    names = compiler.sets()
    objects = compiler.objects([*compiler.units(names), DRIVER], names)
    return compiler.program([*objects.values()], "-static")


@pytest.fixture(scope="module")
def answers_of(request, workers, tmp_path_factory) -> Callable[[str], list[Answer]]:
    """From a machine to the answers of all its processors."""

    @cache
    def answers(machine: str) -> list[Answer]:
        driver, folder = build(request, machine), tmp_path_factory.mktemp(machine)
        given = {p: write_operands(folder / p, "gray", p) for p in PRECISIONS}
        processors = [name for kind, name in PROCESSORS if kind == machine]
        if machine == platform.machine():
            processors.append("here")

        def run(job: tuple[str, str]) -> Answer:
            processor, precision = job
            place = folder / f"{processor}-{precision}"
            place.mkdir()
            command = [driver, given[precision], "answers", place]
            if processor == "here":
                ran = subprocess.run(command, capture_output=True, text=True)
                done = Done(ran.returncode, ran.stdout, ran.stderr)
            else:
                done = emulated(processor, command, machine)
            assert (done.code, done.err) == (0, ""), f"{processor}, {precision}: {done}"
            values = {path.name: np.fromfile(path, np.float32) for path in place.iterdir()}
            return Answer(machine, processor, precision, done.out.split(), values)

        jobs = [(processor, precision) for processor in processors for precision in PRECISIONS]
        return list(workers.map(run, jobs))

    return answers


@pytest.fixture(params=["x86_64", "aarch64"])
def answers(request, answers_of) -> list[Answer]:
    return answers_of(request.param)


def test_each_processor_runs_what_it_has(answers):
    for one in answers:
        if one.processor == "here":
            expected = list(INSTRUCTION_SETS)
        else:
            expected = PROCESSORS[one.machine, one.processor]
        ran = one.ran
        if (one.machine, one.processor) == ("x86_64", "max"):
            ran = ran[: len(expected)]
        assert ran == expected, one.processor
        assert set(one.values) == {f"{name}-{form}" for name in one.ran for form in FORMS}


def expect_the_same(answers: Sequence[Answer]) -> None:
    """To the bit, whoever runs it."""
    first: dict[tuple[str, str], np.ndarray] = {}
    for one in answers:
        for name, values in one.values.items():
            expected = first.setdefault((one.precision, name), values)
            assert np.isfinite(values).all()
            assert np.array_equal(values, expected), (one.processor, one.precision, name)


def test_a_set_computes_the_same_on_every_processor(answers):
    expect_the_same(answers)


def test_what_is_portable_computes_the_same_on_every_machine(answers_of):
    """Nothing is fused, reordered or left to a compiler's taste."""
    both = [*answers_of("x86_64"), *answers_of("aarch64")]
    assert {one.machine for one in both if "portable" in one.ran} == {"x86_64", "aarch64"}
    expect_the_same(both)


def test_sets_agree(answers):
    """In float32 but for rounding, in int8 to the bit where no layer is in bfloat16."""
    truth = {
        one.processor: one.values["portable-direct"] for one in answers if one.precision == "fp32"
    }
    for one in answers:
        portable = one.values["portable-direct"]
        assert len(portable) > LOGITS
        loss = relative_error(portable, truth[one.processor])
        if one.precision != "fp32":
            assert loss > 1e-4, "this is not less precise at all"
        for name, values in one.values.items():
            about = (one.processor, one.precision, name)
            limit = EXACT if one.precision == "fp32" else loss
            assert relative_error(values, portable) <= limit, about
            if one.precision == "int8" and name.endswith("direct") and not name.startswith(BF16):
                assert np.array_equal(values[:LOGITS], portable[:LOGITS]), about


@pytest.mark.parametrize("name", ["gray", "paper"])
def test_networks_on_emulated_tiles(request, tmp_path, name):
    """All but the tiles of AMX is what this processor has; int8 to the bit."""
    options = [*release_options(), "-DDSSNET_FAST_EMULATE_TILES"]
    compiler = Compiler(request, native_compiler(), platform.machine(), options)
    if "amx" not in compiler.sets():
        pytest.skip("amx: not for this machine, or unknown to its compiler")
    objects = compiler.objects([*compiler.units(["amx"]), DRIVER], ["amx"])
    driver = compiler.program([*objects.values()])
    for precision in ("bf16", "int8"):
        place = tmp_path / precision
        place.mkdir()
        given = write_operands(tmp_path / f"{precision}.operands", name, precision)
        done = subprocess.run([driver, given, "answers", place], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        if "amx" not in done.stdout.split():
            pytest.skip("amx: what is not tiles of it is AVX-512 BF16, which this processor lacks")
        tiles, portable = (
            np.fromfile(place / f"{one}-direct", np.float32) for one in ("amx", "portable")
        )
        assert relative_error(tiles, portable) <= (1e-2 if precision == "bf16" else EXACT)


# --- the package ---------------------------------------------------------------------------------

PREDICT = """
import sys
import numpy as np
from dssnet_fast import FastDSSNet

image, out = sys.argv[1:]
net = FastDSSNet.pretrained(device="cpu")
np.save(out, net.predict(np.load(image), output="logits"))
print(net.backend_name, net._backend.instruction_set)
"""
NEWER = {"DSSNET_FAST_ISA": "avx512"}  # than Haswell
REFUSED = r"DSSNET_FAST_ISA=avx512 (needs|is not in this build).*; here run: portable, avx2"


@pytest.fixture(scope="module")
def sessions(workers, tmp_path_factory):
    """What Python said of the package on several processors, all of them begun at once."""
    if platform.machine() != "x86_64":
        pytest.skip("x86-64: Python and torch for it are on such a machine only")
    if native.problem() is not None:
        pytest.skip(native.problem())
    emulator("x86_64")
    folder = tmp_path_factory.mktemp("sessions")
    pixels = example(16, 64)[0]
    np.save(folder / "image.npy", pixels)
    Image.fromarray(pixels).save(folder / "image.png")

    def predict(processor: str) -> tuple[Done, np.ndarray | None]:
        out = folder / f"{processor}.npy"
        done = python(processor, "-c", PREDICT, folder / "image.npy", out)
        return done, np.load(out) if out.is_file() else None

    def python(processor: str, *arguments: str | Path, **environment: str) -> Done:
        unset = {"DSSNET_FAST_ISA": ""}
        return emulated(processor, [sys.executable, *arguments], **{**unset, **environment})

    segment = ("-m", "dssnet_fast.segment", folder / "image.png", "--out", folder / "out")
    begun = {
        "Haswell": workers.submit(predict, "Haswell"),
        "Nehalem": workers.submit(predict, "Nehalem"),
        "info": workers.submit(python, "Nehalem", "-m", "dssnet_fast.info", "--json"),
        "info, newer": workers.submit(python, "Haswell", "-m", "dssnet_fast.info", **NEWER),
        "segment, newer": workers.submit(python, "Haswell", *segment, **NEWER),
    }
    return {"image": pixels, **{name: future.result() for name, future in begun.items()}}


def test_info_on_an_old_processor(sessions):
    done = sessions["info"]
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    ready = [one["name"] for one in found["cpu"]["instruction_sets"] if one["runs_here"]]
    assert ready == ["portable"]
    assert (found["cpu"]["chosen"], found["auto"]["backend"]) == ("portable", "cpu")


@pytest.mark.parametrize("processor", ["Nehalem", "Haswell"])
def test_the_packaged_network_answers_as_here(sessions, processor, monkeypatch):
    best = PROCESSORS["x86_64", processor][-1]
    done, logits = sessions[processor]
    # torch may say on stderr what of its own needs more than this processor has.
    assert (done.code, done.out) == (0, f"cpu {best}\n"), done
    if best not in INSTRUCTION_SETS:
        pytest.skip(f"this machine cannot run {best}")
    monkeypatch.setenv(instruction_set.VARIABLE, best)
    expected = FastDSSNet.pretrained(device="cpu").predict(sessions["image"], output="logits")
    assert len(np.unique(expected.argmax(-1))) > 1
    assert np.array_equal(logits, expected)


def test_a_set_that_the_processor_lacks_is_refused_in_one_line(sessions):
    done = sessions["segment, newer"]
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(rf"dssnet_fast\.segment: error: {REFUSED}", done.err)
    done = sessions["info, newer"]
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert re.fullmatch(rf"auto       nothing: {REFUSED}", lines[-1])
    assert any(re.fullmatch(rf"  uses         nothing: {REFUSED}", line) for line in lines)
    assert "  avx2         ready" in lines
