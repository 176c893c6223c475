"""What there is of the backend `cuda` on this machine, for `python -m dssnet_fast.info`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import dssnet_fast.backends.cuda.cache as cache
import dssnet_fast.backends.cuda.kernels as kernels
import dssnet_fast.backends.native as native
from dssnet_fast.backends.cuda.nvrtc import library


def collect(capabilities: Mapping[str, int]) -> dict[str, dict]:
    """Each part, with `problem` None or what is the matter with it.

    Args:
        capabilities: Device name to compute capability, 10 * major + minor.
    """
    build, compiler = native.build(), library()
    found = build.manifest if build else {}
    kept = [path for path in cache.folder().glob("*") if cache.read(path) is not None]
    if native.problem() is None:
        driver = native.module().driver_problem()
    else:
        driver = "not looked for without the extension"
    return {
        "extension": {
            "file": str(build.extension) if native.problem() is None else None,
            "compiler": found.get("extension", {}).get("compiler"),
            "problem": native.problem(),
        },
        "images": {
            "folder": str(build.images) if build else None,
            "architectures": found.get("architectures", []),
            "compiler": found.get("compiler"),
            "warnings": found.get("warnings", {}),
            "problem": build.images_problem() if build else "not built",
        },
        "nvrtc": {
            "library": compiler.path if compiler else None,
            "version": str(compiler) if compiler else None,
            "problem": None if compiler else "not found",
        },
        "driver": {"problem": driver},
        "cache": {
            "folder": str(cache.folder()),
            "files": len(kept),
            "bytes": sum(path.stat().st_size for path in kept),
            "problem": None,
        },
        "kernels": {
            device: [way.description for way in kernels.ways(capability)]
            for device, capability in capabilities.items()
        },
    }


def lines(found: Mapping[str, dict]) -> Iterable[str]:
    """What `collect` found, for people."""
    extension, images, compiler, kept = (
        found[part] for part in ("extension", "images", "nvrtc", "cache")
    )
    names = [f"sm_{architecture}" for architecture in images["architectures"]]
    warned = f", compiled with warnings: {', '.join(images['warnings'])}"
    yield f"extension  {extension['problem'] or extension['file']}"
    yield "images     " + (
        images["problem"]
        or f"{' '.join(names)} and PTX by {images['compiler']}{warned * bool(images['warnings'])}"
    )
    yield f"NVRTC      {compiler['problem'] or compiler['version'] + ', ' + compiler['library']}"
    yield f"driver     {found['driver']['problem'] or 'ready'}"
    yield f"cache      {kept['folder']}: {kept['files']} kernels, {kept['bytes'] / 1000:.0f} kB"
    for device, ways in found["kernels"].items():
        yield f"{device:<10} {ways[0] if ways else 'no kernels'}"
