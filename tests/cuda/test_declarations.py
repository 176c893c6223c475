"""The declarations that csrc/runtime and the stand-in have of the driver are cuda.h's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUNTIME = HERE.parent.parent / "csrc" / "runtime"


@pytest.fixture(scope="module")
def cuda_include() -> Path:
    """The folder of cuda.h."""
    folders = [
        Path(os.environ[name], "include")
        for name in ("CUDA_HOME", "CUDA_PATH")
        if name in os.environ
    ]
    if shutil.which("nvcc"):
        done = subprocess.run(
            ["nvcc", "-E", "-x", "c++", "-include", "cuda.h", os.devnull],
            capture_output=True,
            text=True,
        )
        folders += [Path(name).parent for name in re.findall(r'"([^"]*/cuda\.h)"', done.stdout)]
    folders.append(Path("/usr/local/cuda/include"))
    found = next((folder for folder in folders if (folder / "cuda.h").is_file()), None)
    if found is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and cuda.h of a CUDA toolkit")
    return found


def advised() -> list[tuple[str, str]]:
    """Numbers and names of the errors that error.cpp and driver.cpp have advice for."""
    text = "".join((RUNTIME / name).read_text() for name in ("error.cpp", "driver.cpp"))
    cases = re.findall(r"\bcase (\d+):(.*)", text)
    named = [(number, re.fullmatch(r"  // (CUDA_ERROR_\w+)", rest)) for number, rest in cases]
    assert len(named) > 20
    assert all(name for _, name in named), "every case has its error's name behind it"
    return [(number, name[1]) for number, name in named]


def compile_with(include: Path, folder: Path, runtime: Path, *options: str) -> str:
    """What the compiler says of declarations.cpp; nothing if all is as in cuda.h."""
    header = (include / "cuda.h").read_text()
    old = int(re.search(r"#define CUDA_VERSION (\d+)", header)[1]) < 13000
    lines = [
        f"ADVISED({number}, {name})\n"
        for number, name in advised()
        if name in header or not old  # a few errors came with CUDA 13
    ]
    (folder / "advised.h").write_text("".join(lines))
    done = subprocess.run(
        [
            *("g++", "-std=c++17", "-fsyntax-only", f"-isystem{include}", *options),
            *(f"-I{folder}", f"-I{runtime}", f"-I{HERE}", str(HERE / "declarations.cpp")),
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return done.stderr


def test_declarations_are_those_of_cuda_h(cuda_include, tmp_path):
    assert compile_with(cuda_include, tmp_path, RUNTIME) == ""


@pytest.mark.parametrize(
    ("declared", "instead"),
    [
        ("unsigned int shared_bytes;", "size_t shared_bytes;"),
        ("    void** extra;\n", ""),
        ("unsigned int grid_x, grid_y, grid_z;", "unsigned int grid_y, grid_x, grid_z;"),
        ("Kernel kernel;", "Context kernel;"),
        ("(Stream stream, int* status)", "(Stream stream, size_t* status)"),
        ("(GraphExec exec, Stream stream)", "(Graph exec, Stream stream)"),
        (
            "(GraphExec* exec, Graph graph, unsigned long long flags)",
            "(GraphExec* exec, Graph graph)",
        ),
        ("const GraphNode* dependencies", "GraphNode* dependencies"),
        ("size_t* offset, size_t* bytes", "int* offset, size_t* bytes"),
        ("jit_error_log_buffer = 5", "jit_error_log_buffer = 3"),
        ("cuDevicePrimaryCtxRelease_v2", "cuDevicePrimaryCtxReset_v3"),
    ],
)
def test_a_wrong_declaration_does_not_compile(cuda_include, tmp_path, declared, instead):
    text = (RUNTIME / "driver.h").read_text()
    assert declared in text
    (tmp_path / "driver.h").write_text(text.replace(declared, instead))
    assert "error" in compile_with(cuda_include, tmp_path, tmp_path)


def test_every_constant_is_compared():
    constants = re.findall(r"constexpr (?:int|Result) (\w+) =", (RUNTIME / "driver.h").read_text())
    compared = re.findall(r"OURS\((\w+), CU", (HERE / "declarations.cpp").read_text())
    assert sorted(constants) == sorted(compared)
    enumerators = re.findall(r"\b(CU\w+) = \d", (HERE / "stand_in_types.h").read_text())
    compared = re.findall(r"STAND_IN\((CU\w+)\)", (HERE / "declarations.cpp").read_text())
    assert sorted(enumerators) == sorted(compared)


def test_the_stand_in_has_the_drivers_signatures(cuda_include):
    """Its functions are declared by cuda.h then, and defined otherwise they would not compile."""
    done = subprocess.run(
        [
            *("g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"),
            *("-DSTAND_IN_WITH_CUDA_H", f"-isystem{cuda_include}", str(HERE / "stand_in.cpp")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
