"""`python -m dssnet_fast.info`: what this installation can run, and why not the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from typing import TYPE_CHECKING

from dssnet_fast import cli

if TYPE_CHECKING:
    import torch

    from dssnet_fast.python_ref.config import DSSNetConfig

_PACKAGES = ("torch", "triton", "numpy", "kornia", "onnxruntime")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = cli.parser("info", "Show versions, devices and which backends can run.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def collect() -> dict[str, object]:
    """Versions, devices, and for every backend and precision None or why it cannot run.

    `no_gain` says of those that can run but are no better than fp32 why.
    `cuda` and `cpu` say what the backends of these names have to run with, `auto` what would be
    chosen: no backend and no precision where that is an error, which `reason` then tells.
    """
    import torch

    import dssnet_fast
    import dssnet_fast.backends.cpu.report as cpu
    import dssnet_fast.backends.cuda.report as cuda
    from dssnet_fast import backends
    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.python_ref.hardware import CPU_FEATURES, cpu_supports

    config = DSSNetConfig(super_resolution=False, edge=False)
    devices = {"cpu": {"name": platform.processor() or platform.machine()}}
    devices["cpu"]["features"] = [name for name in CPU_FEATURES if cpu_supports(name)]
    devices["cpu"]["threads"] = torch.get_num_threads()
    capabilities = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if not torch.version.hip:
            capabilities[f"cuda:{index}"] = 10 * properties.major + properties.minor
        devices[f"cuda:{index}"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
        }
    table = {}
    for device in devices:
        where = torch.device(device)
        table[device] = {
            name: {p: backends.module(name).why_not(where, p, config) for p in backends.PRECISIONS}
            for name in backends.names()
        }
    no_gain = {
        device: {name: _no_gain(torch.device(device), name, rows) for name, rows in found.items()}
        for device, found in table.items()
    }
    return {
        "dssnet_fast": dssnet_fast.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": devices,
        "backends": table,
        "no_gain": no_gain,
        "cuda": cuda.collect(capabilities),
        "cpu": cpu.collect(),
        "auto": _automatic(config),
    }


def _automatic(config: DSSNetConfig) -> dict[str, str | None]:
    from dssnet_fast import backends

    device = backends.find_device("auto")
    try:
        chosen = backends.choose("auto", device, "auto", config)
    except backends.BackendUnavailable as error:
        return {
            "backend": None,
            "device": str(device),
            "precision": None,
            "reason": cli.one_line(error),
        }
    return {
        "backend": chosen.name,
        "device": str(device),
        "precision": chosen.precision,
        "reason": chosen.reason,
    }


def _no_gain(device: torch.device, backend: str, rows: dict[str, str | None]) -> dict[str, str]:
    """Of one backend's precisions, given why each cannot run."""
    from dssnet_fast import backends

    module = backends.module(backend)
    able = (precision for precision, reason in rows.items() if reason is None)
    found = {precision: module.why_no_gain(device, precision) for precision in able}
    return {precision: why for precision, why in found.items() if why is not None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def body(arguments: argparse.Namespace) -> None:
    """Print what `collect` found."""
    import dssnet_fast.backends.cpu.report as cpu
    import dssnet_fast.backends.cuda.report as cuda

    found = collect()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"dssnet_fast {found['dssnet_fast']}, Python {found['python']}, {found['system']}")
    versions = [f"{name} {version or 'absent'}" for name, version in found["packages"].items()]
    print(f"packages   {', '.join(versions)}")
    for device, facts in found["devices"].items():
        details = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "name")
        print(f"{device:<10} {facts['name']}: {details}")
        for backend, reasons in found["backends"][device].items():
            for precision, reason in reasons.items():
                no_gain = found["no_gain"][device][backend].get(precision)
                ready = f"ready, but {no_gain}" if no_gain else "ready"
                print(f"  {backend:<8} {precision}  {reason or ready}")
    print("cuda       what the backend for NVIDIA GPUs finds here")
    for line in cuda.lines(found["cuda"]):
        print(f"  {line}")
    print("cpu        what the backend for CPUs finds here")
    for line in cpu.lines(found["cpu"]):
        print(f"  {line}")
    auto = found["auto"]
    if auto["backend"] is None:
        print(f"auto       nothing: {auto['reason']}")
        return
    print(f"auto       {auto['backend']}, {auto['device']}, {auto['precision']} ({auto['reason']})")


if __name__ == "__main__":
    sys.exit(cli.main("info", make_parser, body))
