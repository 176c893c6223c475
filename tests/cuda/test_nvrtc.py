"""Kernels at first use: finding NVRTC, what it compiles, and the cache behind it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dssnet_fast import DSSNetConfig
from dssnet_fast.backends import BackendUnavailable, sources
from dssnet_fast.backends import native as compiled
from dssnet_fast.backends.cuda import cache, kernels, nvrtc
from dssnet_fast.backends.cuda.engine import network_of
from dssnet_fast.python_ref import once

ROOT = Path(__file__).parent.parent.parent
ELF = b"\x7fELF"
KERNEL = """
#include "twice.cuh"
struct Params { const float* in; float* out; int count; };
extern "C" __global__ void KERNEL(const __grid_constant__ Params p) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.out[i] = twice(p.in[i]);
}
"""
HEADER = "#pragma once\n__device__ __forceinline__ float twice(float x) { return 2 * x; }\n"


@pytest.fixture
def library():
    found = nvrtc.library()
    if found is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSSNET_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- the compiler --------------------------------------------------------------------------------


def test_it_compiles_for_the_device_that_was_named(library):
    headers, options = {"twice.cuh": HEADER}, sources.NVRTC_OPTIONS
    for capability in (80, 90):
        target = library.target(capability)
        assert str(target) == f"sm_{capability}"
        cubin = library.compile("k.cu", KERNEL, headers, target, options)
        assert cubin.startswith(ELF)
        # A byte of the ELF header's flags is the architecture; which one depends on the version.
        assert capability in cubin[48:52]
        assert b"KERNEL" in cubin
    newest = library.target(10_000)
    assert newest == nvrtc.Target(library.architectures[-1], real=False)
    ptx = library.compile("k.cu", KERNEL, headers, newest, options)
    assert f".target sm_{newest.capability}".encode() in ptx
    assert b".entry KERNEL" in ptx
    assert ptx.endswith(b"\0")
    assert library.target(10) is None


def test_errors_are_those_of_the_compiler(library):
    target = library.target(80)
    with pytest.raises(nvrtc.CompileError, match=r"(?s)k\.cu for sm_80: .*twice\.cuh"):
        library.compile("k.cu", KERNEL, {}, target, ())
    with pytest.raises(nvrtc.CompileError, match="sm_7"):
        library.compile("k.cu", KERNEL, {}, nvrtc.Target(7, real=True), ())


@pytest.mark.slow
def test_it_compiles_the_kernels(native, library, folder):
    target = library.target(80)
    images = {name: kernels._compiled(library, target, name) for name in kernels.modules()}
    device = native.DeviceProperties(
        capability=80, multiprocessors=108, shared_bytes_block=166912, shared_bytes_sm=167936
    )
    plan = native.plan(
        network_of(DSSNetConfig(), native), "all", 1, 64, 64, "fp16", "uint8", "labels", device
    )
    for launch in plan.launches:
        assert images[launch.module].startswith(ELF)
        assert launch.kernel.encode() in images[launch.module]
    assert len(list(folder.iterdir())) == len(images)


def test_no_library_is_no_error(monkeypatch, tmp_path):
    damaged = tmp_path / "libnvrtc.so.13"
    damaged.write_bytes(b"not a library")
    # A library, but another one.
    other = next(Path(torch.__file__).parent.joinpath("lib").glob("libc10.so"))
    monkeypatch.setattr(nvrtc, "candidates", lambda: [str(damaged), str(other)])
    nvrtc.library.cache_clear()
    try:
        assert nvrtc.library() is None
    finally:
        nvrtc.library.cache_clear()


def test_torchs_own_version_comes_first(monkeypatch, tmp_path):
    wheels = tmp_path / "nvidia"
    for part, name in (("cuda_nvrtc", "libnvrtc.so.12"), ("cu13", "libnvrtc.so.13")):
        (wheels / part / "lib").mkdir(parents=True)
        (wheels / part / "lib" / name).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for version, first in (("12.8", "libnvrtc.so.12"), ("13.0", "libnvrtc.so.13")):
        monkeypatch.setattr(torch.version, "cuda", version)
        found = nvrtc.candidates()
        assert found[0].startswith(str(wheels))
        assert found[0].endswith(first)
        assert {Path(path).name for path in found} == {"libnvrtc.so.12", "libnvrtc.so.13"}
    monkeypatch.setattr(torch.version, "cuda", None)
    assert len(nvrtc.candidates()) >= 4


def test_a_compiler_that_is_too_old_is_passed_over(monkeypatch):
    def version(major, minor):
        major._obj.value, minor._obj.value = 12, 3
        return 0

    old = SimpleNamespace(nvrtcVersion=version, nvrtcGetErrorString=SimpleNamespace())
    monkeypatch.setattr(ctypes, "CDLL", lambda path: old)
    with pytest.raises(OSError, match=r"NVRTC 12\.3 is older than 12\.4"):
        nvrtc.Nvrtc("libnvrtc.so.12")


# --- the cache -----------------------------------------------------------------------------------


def counted(result: bytes = b"image"):
    calls = []

    def compile_it():
        calls.append(None)
        return result

    return compile_it, calls


def test_a_second_time_nothing_is_compiled(folder):
    compile_it, calls = counted()
    for _ in range(3):
        assert cache.cached("a", compile_it) == b"image"
    assert len(calls) == 1
    assert cache.cached("b", lambda: b"other") == b"other"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "header cut", "cut", "one bit", "zeros"],
)
def test_a_damaged_file_is_made_again(folder, damage):
    image = bytes(range(100))
    cache.cached("a", lambda: image)
    (folder / "a").write_bytes(damage((folder / "a").read_bytes()))
    compile_it, calls = counted(image)
    for _ in range(2):
        assert cache.cached("a", compile_it) == image
    assert len(calls) == 1


def test_a_failed_compilation_leaves_nothing(folder):
    def fails():
        raise nvrtc.CompileError("no")

    with pytest.raises(nvrtc.CompileError):
        cache.cached("a", fails)
    assert not folder.exists() or not list(folder.iterdir())
    assert cache.cached("a", lambda: b"image") == b"image"


def test_where_nothing_can_be_written_there_is_one_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSSNET_FAST_CACHE", str(tmp_path / "file" / "below"))
    once.warn.cache_clear()
    compile_it, calls = counted()
    with caplog.at_level(logging.WARNING):
        for name in ("a", "a", "b"):
            assert cache.cached(name, compile_it) == b"image"
    assert len(calls) == 3
    (record,) = caplog.records
    assert "DSSNET_FAST_CACHE" in record.getMessage()
    assert str(tmp_path / "file" / "below") in record.getMessage()


def test_a_full_disk_leaves_nothing_half_written(folder, monkeypatch):
    whole = Path.write_bytes

    def half(path, content):
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    assert cache.cached("a", lambda: b"image") == b"image"
    assert list(folder.iterdir()) == []


def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("DSSNET_FAST_CACHE", str(tmp_path / "mine"))
    assert cache.folder() == tmp_path / "mine"
    monkeypatch.delenv("DSSNET_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "dssnet_fast"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for invalid in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", invalid)
        assert cache.folder() == tmp_path / "home" / ".cache" / "dssnet_fast"


WRITER = """
import sys
from dssnet_fast.backends.cuda import cache
image = bytes(range(256)) * 4096
for round in range(30):
    name = f"image{round}"
    assert cache.cached(name, lambda: image) == image, "half a file"
"""


def test_several_processes_at_once(folder):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER], cwd=ROOT, env=environment)
        for _ in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    image = bytes(range(256)) * 4096
    assert len(list(folder.iterdir())) == 30, "temporary files are left"
    assert all(cache.read(path) == image for path in folder.iterdir())


# --- which image for which device ----------------------------------------------------------------


class Compiler:
    """A fake NVRTC that knows 8.0 and 9.0; an image tells what it was made from."""

    def __init__(self, version="13.0"):
        self.version = version
        self.calls = []

    def __str__(self):
        return self.version

    target = nvrtc.Nvrtc.target
    architectures = (80, 90)

    def compile(self, name, source, headers, target, options):
        assert headers
        assert not any(header.endswith(".cu") for header in headers)
        assert options == sources.NVRTC_OPTIONS
        self.calls.append((name, str(target)))
        return f"{name} {target} {hashlib.sha256(source.encode()).hexdigest()}".encode()


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A build with images for 8.0, 8.6 and 9.0 of the sources here, and no NVRTC."""
    package = tmp_path / "dssnet_fast"
    images = package / sources.IMAGES
    images.mkdir(parents=True)
    for module in kernels.modules():
        (images / f"{module}.ptx").write_bytes(b"// ptx of " + module.encode())
        for architecture in (80, 86, 90):
            name = f"{module}.sm_{architecture}.cubin"
            (images / name).write_bytes(name.encode())
    manifest = {
        "architectures": [80, 86, 90],
        "compiler": "nvcc 13.0.88",
        "problem": None,
        "source_sha256": compiled.kernels_digest(),
    }
    build = compiled.Build(package, manifest)
    monkeypatch.setattr(compiled, "build", lambda: build)
    monkeypatch.setattr(kernels, "library", lambda: None)
    return build


def descriptions(capability):
    return [way.description for way in kernels.ways(capability)]


def test_the_nearest_image_comes_first(built, monkeypatch):
    ptx = "compute_80 by nvcc 13.0.88 and the driver"
    expected = {80: ["sm_80"], 86: ["sm_86", "sm_80"], 89: ["sm_86", "sm_80"], 90: ["sm_90"]}
    for capability, names in (expected | {100: [], 121: []}).items():
        found = [f"{name} by nvcc 13.0.88" for name in names] + [ptx]
        assert descriptions(capability) == found
    assert descriptions(75) == []
    exact, _, jit = kernels.ways(86)
    assert exact.image("extract") == b"extract.sm_86.cubin"
    assert jit.image("extract") == b"// ptx of extract\0", "the driver wants a zero at the end"
    monkeypatch.setattr(kernels, "library", Compiler)
    assert descriptions(90)[-1] == "sm_90 by NVRTC 13.0"
    assert descriptions(121)[-1] == "compute_90 by NVRTC 13.0"


def test_images_of_other_sources_are_not_used(built, monkeypatch):
    built.manifest["source_sha256"] = "0" * 64
    assert "are of other sources" in built.images_problem()
    assert kernels.ways(80) == []
    problem = kernels.problem(80)
    assert "of other sources" in problem
    assert "pip install nvidia-cuda-nvrtc" in problem
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "pip install nvidia-cuda-nvrtc-cu12" in kernels.problem(80)
    monkeypatch.setattr(kernels, "library", Compiler)
    assert kernels.problem(80) is None
    assert descriptions(80) == ["sm_80 by NVRTC 13.0"]


class Runner:
    """Takes images that begin with what it is told to take."""

    def __init__(self, *accepts: bytes):
        self.accepts = accepts
        self.images = {}

    @property
    def loaded(self):
        return list(self.images)

    def load(self, module, image):
        assert module not in self.images
        if not image.startswith(self.accepts):
            raise Refused(f"{module}: CUDA_ERROR_UNSUPPORTED_PTX_VERSION\nthe driver's log")
        self.images[module] = image


class Refused(RuntimeError):
    pass


@pytest.fixture
def refusing(monkeypatch):
    monkeypatch.setattr(compiled, "module", lambda: SimpleNamespace(CudaError=Refused))


def test_the_driver_has_the_last_word(built, refusing, folder, monkeypatch):
    names = kernels.modules()
    every = tuple(name.encode() for name in names)
    runner = Runner(*every)
    assert kernels.load(runner, 86, kernels.ways(86)) == "sm_86 by nvcc 13.0.88"
    assert sorted(runner.loaded) == names

    runner = Runner(b"// ptx")
    assert kernels.load(runner, 86, kernels.ways(86)).startswith("compute_80")

    compiler = Compiler()
    monkeypatch.setattr(kernels, "library", lambda: compiler)
    runner = Runner(*(f"{name}.cu sm_80 ".encode() for name in names))
    for _ in range(2):
        runner.images.clear()
        assert kernels.load(runner, 80, kernels.ways(80)) == "sm_80 by NVRTC 13.0"
    assert sorted(compiler.calls) == [(f"{name}.cu", "sm_80") for name in names], "or not cached"

    with pytest.raises(BackendUnavailable) as caught:
        kernels.load(Runner(b"nothing"), 80, kernels.ways(80))
    assert all(way in str(caught.value) for way in descriptions(80))
    assert str(caught.value).count("CUDA_ERROR_UNSUPPORTED_PTX_VERSION") == 3


def test_what_is_loaded_stays_when_the_rest_is_refused(built, refusing):
    first, *others = kernels.modules()
    runner = Runner(first.encode(), b"// ptx")
    assert kernels.load(runner, 86, kernels.ways(86)).startswith("compute_80")
    assert runner.images[first] == f"{first}.sm_86.cubin".encode()
    assert all(runner.images[name].startswith(b"// ptx of ") for name in others)


def test_a_missing_image_is_like_a_refused_one(built, refusing):
    (built.images / f"{kernels.modules()[0]}.sm_80.cubin").unlink()
    runner = Runner(b"// ptx", *(name.encode() for name in kernels.modules()))
    assert kernels.load(runner, 80, kernels.ways(80)).startswith("compute_80")
    assert sorted(runner.loaded) == kernels.modules()


def test_the_cache_knows_what_decides_about_an_image(built, folder, monkeypatch):
    def calls(version="13.0", capability=80):
        compiler = Compiler(version)
        kernels._compiled(compiler, nvrtc.Target(capability, real=True), "extract")
        return len(compiler.calls)

    assert calls() == 1
    assert calls() == 0
    assert calls(version="13.1") == 1
    assert calls(capability=90) == 1
    monkeypatch.setattr(sources, "NVRTC_OPTIONS", (*sources.NVRTC_OPTIONS, "-lineinfo"))
    assert calls() == 1
    monkeypatch.setattr(compiled, "kernels_digest", lambda: "0" * 64)
    assert calls() == 1
    assert calls() == 0


def test_compiling_from_several_threads(library):
    target, found = library.target(80), []

    def work():
        found.append(library.compile("k.cu", KERNEL, {"twice.cuh": HEADER}, target, ()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
