"""Compilers and binary tools: nvcc, ptxas, nvdisasm or cuobjdump, and Triton without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .launch import Result, load, run


class ToolError(RuntimeError):
    """A compiler or binary tool failed or is not there; the message carries its output."""


def find_tool(name: str) -> str | None:
    """Path of a CUDA tool: on PATH, else the copy inside Triton's wheel, else None."""
    found = shutil.which(name)
    if found:
        return found
    try:
        import triton
    except ImportError:
        return None
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if path.exists() else None


def call(tool: str, *arguments: object) -> str:
    """Runs a tool; returns what it printed.

    Raises:
        ToolError: it is not there, or it failed.
    """
    path = find_tool(tool)
    if path is None:
        raise ToolError(f"{tool} not found")
    command = [path, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(" ".join(command) + "\n" + done.stderr + done.stdout)
    return done.stdout + done.stderr


def compile_cu(
    path: str | Path, arch: int = 80, defines: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> str:
    """CUDA C++ file -> PTX text with source lines.

    Args:
        arch: compute capability, such as 80.
        defines: names, or "name=value".
        options: further arguments of nvcc.

    Raises:
        ToolError: nvcc is not there, or it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.ptx"
        defines = [f"-D{d}" for d in defines]
        general = ["-ptx", "-lineinfo", "-std=c++17", f"-arch=compute_{arch}"]
        call("nvcc", *general, *defines, *options, path, "-o", out)
        return out.read_text()


# ---- Triton -----------------------------------------------------------------------------------
@dataclass
class TritonKernel:
    """An ahead-of-time compiled Triton kernel.

    Attributes:
        text: PTX, or AMD's assembly.
        binary: machine code as the driver takes it.
        shared: dynamic shared memory in bytes.
        scratch: bytes per program of the trailing scratch parameters that Triton adds.
    """

    text: str
    binary: bytes
    name: str
    shared: int
    num_warps: int
    scratch: tuple[int, ...]

    @property
    def ptx(self) -> str:
        """The text of a kernel for NVIDIA."""
        return self.text


def compile_triton(
    fn,
    signature: dict[str, str],
    constexprs: dict[str, object] | None = None,
    arch: int | str = 80,
    num_warps: int = 4,
    num_stages: int = 3,
) -> TritonKernel:
    """Compiles a @triton.jit function with no GPU driver present.

    Args:
        signature: {argument: type}, such as {"X": "*fp16", "n": "i32"}; a type may end in ":16"
            to promise divisibility by 16 (pointers: 16-byte alignment), as Triton's JIT does.
        constexprs: {argument: value}.
        arch: compute capability such as 80, or AMD's name such as gfx942.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constexprs = dict(constexprs or {})
    types = {n: "constexpr" if n in constexprs else signature[n] for n in fn.arg_names}
    hints = {
        (k,): [["tt.divisibility", 16]]
        for k, name in enumerate(fn.arg_names)
        if types[name].endswith(":16")
    }
    types = {name: t.removesuffix(":16") for name, t in types.items()}
    source = ASTSource(fn=fn, signature=types, constexprs=constexprs, attrs=hints)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    amd = isinstance(arch, str)
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", arch, 32)
    k = triton.compile(source, target=target, options=options)
    m = k.metadata
    sizes = ("global_scratch_size", "profile_scratch_size")
    scratch = tuple(getattr(m, size, None) or 0 for size in sizes)
    text, binary = (k.asm[kind] for kind in (("amdgcn", "hsaco") if amd else ("ptx", "cubin")))
    return TritonKernel(text, binary, m.name, m.shared, m.num_warps, scratch)


def run_triton(kernel: TritonKernel, grid: int | tuple[int, ...], args: list, **options) -> Result:
    """Launches a TritonKernel.

    Args:
        args: the arguments that are not constexpr, in order, as for `run`.
        options: those of `run`.
    """
    f = load(kernel.ptx).module.functions[kernel.name]
    args = list(args)
    for size in kernel.scratch[: len(f.params) - len(args)]:
        args.append(np.zeros(size * int(np.prod(grid)), np.uint8) if size else None)
    threads = 32 * kernel.num_warps
    return run(kernel.ptx, kernel.name, grid, threads, args, kernel.shared, **options)


# ---- ptxas and SASS ---------------------------------------------------------------------------
def assemble(ptx: str, arch: int = 80) -> SimpleNamespace:
    """PTX text -> namespace of `cubin` (bytes) and `log` (of ptxas -v)."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "in.ptx", Path(folder) / "out.cubin"
        source.write_text(ptx)
        log = call("ptxas", "-v", f"-arch=sm_{arch}", source, "-o", cubin)
        return SimpleNamespace(cubin=cubin.read_bytes(), log=log)


@dataclass
class KernelResources:
    """What ptxas -v reports.

    Attributes:
        registers: per thread.
        shared: bytes of static shared memory.
        stack, spill_stores, spill_loads: bytes per thread.
    """

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    barriers: int = 0


def triton_resources(kernel: TritonKernel) -> KernelResources:
    """What a kernel's own machine code takes.

    Raises:
        ToolError: cuobjdump, which Triton brings for NVIDIA, is not there.
    """
    if ".vgpr_count:" in kernel.text:

        def number(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", kernel.text)[1])

        return KernelResources(
            registers=number("vgpr_count"),
            stack=number("private_segment_fixed_size"),
            spill_stores=number("vgpr_spill_count"),
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.cubin"
        path.write_bytes(kernel.binary)
        text = call("cuobjdump", "-res-usage", path)
    used = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", text)}
    return KernelResources(registers=used["REG"], stack=used["STACK"])


SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def ptxas_report(ptx: str, arch: int = 80) -> dict[str, KernelResources]:
    """{kernel: resources} of PTX text.

    Raises:
        ToolError: ptxas is not there, or it failed.
    """
    report, current = {}, None
    for line in assemble(ptx, arch).log.splitlines():
        if m := re.search(r"Compiling entry function '([^']+)'", line):
            current = report.setdefault(m[1], KernelResources())
        elif current is None:
            continue
        elif m := SPILLS.search(line):
            current.stack, current.spill_stores, current.spill_loads = map(int, m.groups())
        elif m := re.search(r"Used (\d+) registers", line):
            current.registers = int(m[1])
            if m := re.search(r"(\d+) bytes smem", line):
                current.shared = int(m[1])
            if m := re.search(r"used (\d+) barriers", line):
                current.barriers = int(m[1])
    return report


FUNCTION = re.compile(r"^\s*\.text\.(\S+):|^\s*Function : (\S+)")
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def sass_opcodes(ptx: str, arch: int = 80) -> dict[str, Counter] | None:
    """{kernel: counts of SASS opcodes}, such as HMMA.16816.F32, LDSM.16.M88.4, LDGSTS.E.128.

    None where neither nvdisasm nor cuobjdump is.
    """
    tool = next((t for t in ("nvdisasm", "cuobjdump") if find_tool(t)), None)
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.cubin"
        path.write_bytes(assemble(ptx, arch).cubin)
        text = call(tool, "-c" if tool == "nvdisasm" else "-sass", path)
    counts, current = {}, None
    for line in text.splitlines():
        if m := FUNCTION.search(line):
            current = counts.setdefault(m[1] or m[2], Counter())
        elif current is not None and (m := OPCODE.search(line)):
            current[m[1]] += 1
    return counts
