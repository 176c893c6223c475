"""The C++ and CUDA sources as files, and what is made of them: names, options, digests.

`setup.py` runs this file by its path, before there is a package to import it from, so it knows
nothing but the standard library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

KERNELS = Path("csrc", "cuda")  # below the package's folder where installed, the root's elsewhere
IMAGES = Path("backends", "cuda", "images")  # below the package's folder
MANIFEST = "manifest.json"  # in IMAGES: what was built, from what, and why not the rest

# Compute capabilities, 10 * major + minor, that images are built for. Devices between them take
# the nearest lower one of their major; later ones take the PTX.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
PTX_ARCHITECTURE = 80

# Of nvcc and NVRTC. Those before it mistake arrays that lambdas capture for pointers.
OLDEST_COMPILER = (12, 4)

NVCC_OPTIONS = ("-std=c++17",)
# nvcc takes lambdas in kernels for device code by itself, as newer versions of NVRTC do.
NVRTC_OPTIONS = (*NVCC_OPTIONS, "--device-as-default-execution-space")

# Of the CPU's kernels: loops over cells become vectors, and nothing is assumed of numbers that is
# not so, except that nobody looks at floating-point exceptions. Products and sums are fused only
# where a kernel says so, so that all processors compute the same from the same sums.
CPU_OPTIONS = (
    "-O3",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",
)
_X86_V4 = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_WIDE = (*_X86_V4, "-mprefer-vector-width=512")
_WIDE_BF16 = (*_WIDE, "-mavx512vnni", "-mavx512bf16")
# GCC would load all weights before it uses the first, and have no registers left for sums.
_NEON = ("-fno-schedule-insns",)


class InstructionSet(NamedTuple):
    """A file `csrc/cpu/NAME.cpp` that is compiled for more than every processor has.

    Attributes:
        machines: What `platform.machine()` says where it can be compiled.
        options: What lets the compiler use it.
        newest: Its newest instructions, in assembly; an assembler that knows them knows all.
    """

    machines: tuple[str, ...]
    options: tuple[str, ...]
    newest: str


_X86, _ARM = ("x86_64",), ("aarch64",)
_BYTES, _HALVES = "vpdpbusd %zmm2, %zmm1, %zmm0", "vdpbf16ps %zmm2, %zmm1, %zmm0"
_TILES = "tdpbf16ps %tmm2, %tmm1, %tmm0; tdpbsud %tmm2, %tmm1, %tmm0"

INSTRUCTION_SETS = {
    "avx2": InstructionSet(
        _X86,
        ("-mavx2", "-mfma"),
        "vpmaddwd %ymm2, %ymm1, %ymm0; vfmadd231ps %ymm2, %ymm1, %ymm0",
    ),
    "avx_vnni": InstructionSet(
        _X86, ("-mavx2", "-mfma", "-mavxvnni"), "{vex} vpdpbusd %ymm2, %ymm1, %ymm0"
    ),
    "avx512": InstructionSet(_X86, _WIDE, "vpmaddwd %zmm2, %zmm1, %zmm0; vcvtps2qq %ymm1, %zmm0"),
    "avx512_vnni": InstructionSet(_X86, (*_WIDE, "-mavx512vnni"), _BYTES),
    "avx512_bf16": InstructionSet(_X86, _WIDE_BF16, f"{_BYTES}; {_HALVES}"),
    "amx": InstructionSet(
        _X86,
        (*_WIDE_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        f"{_HALVES}; {_TILES}",
    ),
    "neon": InstructionSet(_ARM, _NEON, "fmla v0.4s, v1.4s, v2.4s"),
    "neon_dot": InstructionSet(
        _ARM, (*_NEON, "-march=armv8.2-a+dotprod"), "sdot v0.4s, v1.16b, v2.16b"
    ),
    "neon_bf16": InstructionSet(
        _ARM, (*_NEON, "-march=armv8.2-a+dotprod+bf16"), "bfdot v0.4s, v1.8h, v2.8h"
    ),
}


def instruction_set(path: Path) -> str | None:
    """The key in `INSTRUCTION_SETS` that a source file is for."""
    return path.stem if path.parent.name == "cpu" and path.stem in INSTRUCTION_SETS else None


def kernel_files(kernels: Path) -> list[Path]:
    """Translation units and headers in the folder `csrc/cuda`."""
    return sorted(p for p in kernels.iterdir() if p.suffix in (".cu", ".cuh", ".h"))


def modules(kernels: Path) -> list[str]:
    """Names of the translation units in the folder `csrc/cuda`: each becomes one kernel image."""
    return [path.stem for path in kernel_files(kernels) if path.suffix == ".cu"]


def extension_files(csrc: Path) -> list[Path]:
    """What the extension is compiled from: its sources and headers, those of `csrc/cuda` too.

    In `csrc/cuda` a `.h` is for host and device, a `.cuh` for the device alone.
    """
    folders = [csrc, csrc / "plan", csrc / "runtime", csrc / "cuda", csrc / "cpu"]
    return sorted(
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix in (".cpp", ".h", ".inl")
    )


def digest(files: list[Path], root: Path) -> str:
    """SHA-256 of the names below `root` and the contents of `files`, hexadecimal."""
    state = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        state.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        state.update(content)
    return state.hexdigest()
