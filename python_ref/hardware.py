"""What processors and GPUs can do, asked through public interfaces only."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

# `bf16` is that of ARM processors.
CPU_FEATURES = ("avx512_bf16", "avx512_fp16", "amx_bf16", "bf16")
_WITH_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def why_no_fast_bf16(device: torch.device) -> str | None:
    """Why PyTorch gains nothing from bf16 on a device; None where it is faster than fp32.

    What holds for our own kernels for CPUs is asked of `backends.cpu`.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if fast else f"{device} has no bf16 instructions, so bf16 gains nothing"
    if device.type != "cpu":
        return None
    if not torch.backends.mkldnn.is_available():
        return "PyTorch is built without oneDNN here, so its bf16 is slower than fp32"
    if not any(cpu_supports(feature) for feature in _WITH_BF16):
        return (
            "no bf16 instructions are found on this processor, so PyTorch's bf16 is up to 10 times "
            "slower than fp32"
        )
    if _is_intel() and not cpu_supports("amx_bf16"):
        # A vdpbf16ps starts every other cycle there: half the products of vfmadd231ps.
        return "without AMX Intel's bf16 instructions are slower than those for fp32"
    return None


def cpu_supports(feature: str) -> bool:
    """Whether this machine's processor has an instruction set.

    Args:
        feature: One of `CPU_FEATURES`.

    Returns:
        False also where neither torch (before 2.11) nor the operating system (other than Linux)
        tells.

    Raises:
        ValueError: The feature is not one of `CPU_FEATURES`.
    """
    if feature not in CPU_FEATURES:
        raise ValueError(f"cpu_supports: feature must be one of {CPU_FEATURES}, got {feature!r}")
    return feature in _features()


@functools.cache
def _is_intel() -> bool:
    # Linux and Windows tell, one in a file, the other by the processor's full name.
    told = _cpu_field(Path("/proc/cpuinfo"), "vendor_id") or platform.processor()
    return told.endswith("GenuineIntel")


@functools.cache
def _features() -> frozenset[str]:
    ask_torch = getattr(torch.cpu, "get_capabilities", None)
    if ask_torch is not None:
        return frozenset(name for name, present in ask_torch().items() if present is True)
    # Linux calls these features by the same names.
    return _linux_flags(Path("/proc/cpuinfo"))


def _linux_flags(cpuinfo: Path) -> frozenset[str]:
    # x86 has `flags`, ARM `Features`.
    return frozenset((_cpu_field(cpuinfo, "flags") or _cpu_field(cpuinfo, "Features")).split())


def _cpu_field(cpuinfo: Path, name: str) -> str:
    """What Linux tells of the first processor under a name; nothing where it does not."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines if line.startswith(name))
    return next((value.strip() for _, _, value in found), "")
