"""Which instruction set the kernels use: the best that the processor has, or the one asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

import dssnet_fast.backends.native as native
import dssnet_fast.backends.sources as sources

VARIABLE = "DSSNET_FAST_ISA"


def found() -> list[Mapping[str, object]]:
    """What this build has kernels for, slowest first.

    Returns:
        Dicts of `name`, `needs` (what of a processor), `runs_here`, `fast_bf16` and `fast_int8`
        (whether these are faster than fp32), and `problem`: what was wrong when it was first tried
        on a processor that has it, usually nothing.
    """
    return native.module().cpu_instruction_sets()


def left_out() -> Mapping[str, str]:
    """Those that this build could have had, and why it has not."""
    build = native.build()
    return build.manifest["extension"].get("left_out", {}) if build else {}


def problem() -> str | None:
    """Why the one that is asked for cannot be used; None if it can, or none is asked for.

    Names are exact: capitals and spaces count.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return None
    wish = f"{VARIABLE}={shlex.quote(asked)}"
    if native.problem() is not None:
        return f"{wish} cannot be used, nor can any other: {native.problem()}"
    able = [one["name"] for one in found() if one["runs_here"]]
    if asked in able:
        return None
    return f"{wish} {_why_not(asked)}; here run: {', '.join(able)}"


def _why_not(name: str) -> str:
    one = {one["name"]: one for one in found()}.get(name)
    if one is not None and one["problem"]:
        return f"gives wrong results here ({one['problem']})"
    if one is not None:
        return f"needs {one['needs']}, which this processor lacks"
    if name in left_out():
        return f"is not in this build: {left_out()[name]}"
    if name in sources.INSTRUCTION_SETS:
        return f"is for {' and '.join(sources.INSTRUCTION_SETS[name].machines)}"
    return "is no instruction set of this version"


def chosen() -> Mapping[str, object]:
    """The one to use; `problem` has returned None."""
    asked = os.environ.get(VARIABLE)
    able = [one for one in found() if one["runs_here"]]
    return next(one for one in able if one["name"] == asked) if asked else able[-1]
