"""What the processor can do, asked through public interfaces only."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

CPU_FEATURES = ("avx512_bf16", "avx512_fp16", "amx_bf16")


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
def _features() -> frozenset[str]:
    ask_torch = getattr(torch.cpu, "get_capabilities", None)
    if ask_torch is not None:
        return frozenset(name for name, present in ask_torch().items() if present is True)
    # Linux calls these features by the same names.
    return _linux_flags(Path("/proc/cpuinfo"))


def _linux_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
