"""The kernels of a device: which images may serve it, and loading the first that the driver takes.

In this order: the image for its own architecture, one for an earlier architecture of the same
major, PTX that the driver compiles, and the sources compiled by NVRTC. A driver may refuse what a
newer toolkit made; NVRTC as torch brings it fits the driver that torch runs on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import dssnet_fast.backends.cuda.cache as cache
import dssnet_fast.backends.native as native
import dssnet_fast.backends.sources as sources
from dssnet_fast.backends import BackendUnavailable
from dssnet_fast.backends.cuda.nvrtc import CompileError, Nvrtc, Target, library

if TYPE_CHECKING:
    from dssnet_fast import _native

log = logging.getLogger("dssnet_fast")


@dataclass(frozen=True)
class Way:
    """One way to come by the kernels of a device.

    Attributes:
        description: What it is, for people.
        image: From the name of a module to its cubin or PTX.
    """

    description: str
    image: Callable[[str], bytes]


def ways(capability: int) -> list[Way]:
    """All ways for a device, best first.

    Args:
        capability: The device's, 10 * major + minor.
    """
    found = []
    build = native.build()
    if build is not None and build.images_problem() is None:
        found += _built(build, capability)
    compiler = library()
    target = compiler.target(capability) if compiler else None
    if target is not None:
        found.append(
            Way(f"{target} by NVRTC {compiler}", lambda module: _compiled(compiler, target, module))
        )
    return found


def _built(build: native.Build, capability: int) -> list[Way]:
    major = capability // 10
    fitting = [a for a in build.manifest["architectures"] if a // 10 == major and a <= capability]
    names = [f"sm_{architecture}" for architecture in sorted(fitting, reverse=True)]
    compiler = build.manifest["compiler"]
    found = [
        Way(f"{name} by {compiler}", _reader(build.images, f".{name}.cubin")) for name in names
    ]
    if capability >= sources.PTX_ARCHITECTURE:
        # The driver's compiler wants text that ends with a zero byte.
        read = _reader(build.images, ".ptx")
        description = f"compute_{sources.PTX_ARCHITECTURE} by {compiler} and the driver"
        found.append(Way(description, lambda module: read(module) + b"\0"))
    return found


def _reader(folder: Path, ending: str) -> Callable[[str], bytes]:
    return lambda module: (folder / f"{module}{ending}").read_bytes()


def _compiled(compiler: Nvrtc, target: Target, module: str) -> bytes:
    identity = [native.kernels_digest(), module, str(target), str(compiler)]
    identity += sources.NVRTC_OPTIONS
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def compile_it() -> bytes:
        log.info("compiling the CUDA kernels of %s for %s, NVRTC %s", module, target, compiler)
        texts = {
            path.name: path.read_text() for path in sources.kernel_files(native.kernel_sources())
        }
        source = texts.pop(f"{module}.cu")
        headers = {name: text for name, text in texts.items() if not name.endswith(".cu")}
        return compiler.compile(f"{module}.cu", source, headers, target, sources.NVRTC_OPTIONS)

    return cache.cached(f"{module}.{target}.{key[:16]}", compile_it)


def modules() -> list[str]:
    """The translation units that a device needs."""
    return sources.modules(native.kernel_sources())


def problem(capability: int) -> str | None:
    """Why there are no kernels for a device; None when there are."""
    if ways(capability):
        return None
    build = native.build()
    images = build.images_problem() if build else "not built"
    if images is None:
        images = f"none for compute capability {capability / 10}"
    package = "nvidia-cuda-nvrtc"
    if (torch.version.cuda or "").startswith("12."):
        package += "-cu12"
    return (
        f"no kernels: images {images}; no NVRTC to compile them either: pip install {package}, "
        "or install again with nvcc on PATH"
    )


def load(runner: _native.Runner, capability: int, able: Iterable[Way]) -> str:
    """Load all modules into a runner, by the first of the ways that works.

    Args:
        runner: The device's.
        capability: Its compute capability, 10 * major + minor.
        able: What `ways` returned.

    Returns:
        The description of the way.

    Raises:
        BackendUnavailable: None works; says why each did not.
    """
    refusals = []
    # ValueError: the runner sees that an image is cut short.
    refused = (OSError, ValueError, CompileError, native.module().CudaError)
    for way in able:
        missing = [name for name in modules() if name not in runner.loaded]
        try:
            with ThreadPoolExecutor(max(len(missing), 1)) as workers:
                images = list(workers.map(way.image, missing))
            for name, image in zip(missing, images, strict=True):
                runner.load(name, image)
        except refused as error:
            log.debug("kernels %s: %s", way.description, error)
            refusals.append(f"{way.description}: {' '.join(str(error).splitlines()[:2])}")
        else:
            return way.description
    raise BackendUnavailable(
        f"no kernels for compute capability {capability / 10} could be loaded: "
        f"{'; '.join(refusals)}"
    )


_lock = threading.Lock()
_runners: dict[int, _native.Runner] = {}


def runner(index: int) -> _native.Runner:
    """The runner of CUDA device `index` with all kernels loaded; one for the whole process.

    Raises:
        BackendUnavailable: No kernels can be loaded.
    """
    with _lock:
        if index not in _runners:
            extension = native.module()
            capability = extension.device_properties(index).capability
            made = extension.Runner(index)
            way = load(made, capability, ways(capability))
            log.info("CUDA device %d: kernels %s", index, way)
            _runners[index] = made
        return _runners[index]
