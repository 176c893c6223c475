"""Which instruction set the kernels use: the best that the processor has, or the one asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping

import dssnet_fast.backends.native as native

VARIABLE = "DSSNET_FAST_ISA"


def found() -> list[Mapping[str, object]]:
    """What this build has kernels for, slowest first.

    Returns:
        Dicts of `name`, `needs` (what of a processor), `runs_here`, `fast_bf16` and `fast_int8`
        (whether these are faster than fp32), and `problem`: what was wrong when it was first tried
        on a processor that has it, usually nothing.
    """
    return native.module().cpu_instruction_sets()


def problem() -> str | None:
    """What is the matter with the one that is asked for; None if nothing is."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return None
    able = [one["name"] for one in found() if one["runs_here"]]
    if asked in able:
        return None
    known = {one["name"]: one for one in found()}
    if asked not in known:
        why = "is not in this build"
    elif known[asked]["problem"]:
        why = f"gives wrong results here ({known[asked]['problem']})"
    else:
        why = f"needs {known[asked]['needs']}"
    return f"{VARIABLE}={asked} {why}; here run: {', '.join(able)}"


def chosen() -> Mapping[str, object]:
    """The one to use; `problem` has returned None."""
    asked = os.environ.get(VARIABLE)
    able = [one for one in found() if one["runs_here"]]
    return next(one for one in able if one["name"] == asked) if asked else able[-1]
