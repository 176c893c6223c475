"""NVRTC, NVIDIA's compiler as a library: found where torch or a toolkit put it, called by ctypes.

It needs neither a GPU nor a driver, nor any header of a toolkit: the kernels include only each
other.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dssnet_fast.backends.sources import OLDEST_COMPILER

_SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12")


class CompileError(RuntimeError):
    """NVRTC refused a program; the message holds its log."""


@dataclass(frozen=True)
class Target:
    """What to compile for: a real architecture gives a cubin, a virtual one PTX.

    Attributes:
        capability: 10 * major + minor.
        real: Whether the device's own instructions are wanted.
    """

    capability: int
    real: bool

    def __str__(self) -> str:
        return f"{'sm' if self.real else 'compute'}_{self.capability}"


class Nvrtc:
    """A loaded library; safe from several threads.

    Args:
        path: The file, or a name for the dynamic linker.

    Raises:
        OSError: It cannot be loaded, or is too old.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        self.path = path
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        if self.version < OLDEST_COMPILER:
            raise OSError(f"{path}: NVRTC {self} is older than {_dotted(OLDEST_COMPILER)}")

    def __str__(self) -> str:
        return _dotted(self.version)

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            reason = self._library.nvrtcGetErrorString(result).decode(errors="replace")
            raise CompileError(f"{name}: {reason}")

    @functools.cached_property
    def architectures(self) -> tuple[int, ...]:
        """Compute capabilities it compiles for, 10 * major + minor, ascending."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        return tuple(sorted(numbers))

    def target(self, capability: int) -> Target | None:
        """What to compile for a device: its own architecture, else PTX of the newest before it."""
        if capability in self.architectures:
            return Target(capability, real=True)
        older = [one for one in self.architectures if one < capability]
        return Target(older[-1], real=False) if older else None

    def compile(
        self,
        name: str,
        source: str,
        headers: Mapping[str, str],
        target: Target,
        options: Sequence[str],
    ) -> bytes:
        """Compile one translation unit.

        Args:
            name: What messages call it.
            source: CUDA C++.
            headers: What `#include "key"` brings.
            target: A cubin for a real architecture, PTX for a virtual one.
            options: Further options of the compiler.

        Raises:
            CompileError: The program is wrong, or the target not one of this library's.
        """
        program = ctypes.c_void_p()
        texts, names = [text.encode() for text in headers.values()], [n.encode() for n in headers]
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.encode(),
            name.encode(),
            len(names),
            (ctypes.c_char_p * len(names))(*texts),
            (ctypes.c_char_p * len(names))(*names),
        )
        try:
            given = [f"--gpu-architecture={target}".encode(), *(o.encode() for o in options)]
            try:
                array = (ctypes.c_char_p * len(given))(*given)
                self._call("nvrtcCompileProgram", program, len(given), array)
            except CompileError as error:
                messages = self._get("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
                raise CompileError(f"{name} for {target}: {error}\n{messages}".strip()) from None
            # PTX is text and ends with a zero byte, as the driver wants it.
            return self._get("CUBIN" if target.real else "PTX", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _get(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _places() -> Iterator[Path]:
    """Folders that may hold the library: wheels of torch, conda, toolkits."""
    for entry in sys.path:
        yield from (Path(entry, "nvidia", part, "lib") for part in ("cuda_nvrtc", "cu13"))
    yield Path(torch.__file__).parent / "lib"
    yield Path(sys.prefix, "lib")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable], "lib64")
    yield Path("/usr/local/cuda/lib64")


def candidates() -> list[str]:
    """Libraries to try. Those of torch's own version of CUDA first: its driver takes their code."""
    files = (place / name for place in _places() for name in _SONAMES)
    found = [str(path) for path in files if path.exists()] + list(_SONAMES)
    own = (torch.version.cuda or "").split(".")[0]

    def foreign(path: str) -> bool:
        version = re.search(r"\.so\.(\d+)", path)
        return version is not None and version[1] != own

    return sorted(dict.fromkeys(found), key=foreign)


@functools.cache
def library() -> Nvrtc | None:
    """The first of `candidates` that can be loaded; None if there is none."""
    for path in candidates():
        try:
            return Nvrtc(path)
        except (OSError, AttributeError, CompileError):
            continue
    return None
