"""What there is of the backend `cpu` on this machine, for `python -m dssnet_fast.info`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import dssnet_fast.backends.cpu.instruction_set as instruction_set
import dssnet_fast.backends.native as native


def collect() -> dict[str, object]:
    """What the build has kernels for, what of it runs here, and what is used.

    Returns:
        `problem` (of the backend, or None), `instruction_sets` as `instruction_set.found` gives
        them, the name of the `chosen` one, which precisions are `fast` with it, which are computed
        `as_fp32` and which are `slow`, and `left_out`: name to why the build has none.
    """
    found = instruction_set.found() if native.problem() is None else []
    problem = instruction_set.problem() or native.problem()
    chosen = instruction_set.chosen() if problem is None else None
    fast = [name for name in ("bf16", "int8") if chosen and chosen[f"fast_{name}"]]
    others = [name for name in ("bf16", "int8") if chosen and name not in fast]
    return {
        "problem": problem,
        "instruction_sets": [dict(one) for one in found],
        "chosen": chosen and chosen["name"],
        "fast": fast,
        "as_fp32": [name for name in others if name == "bf16"],
        "slow": [name for name in others if name == "int8"],
        "left_out": dict(instruction_set.left_out()),
    }


def lines(found: Mapping[str, object]) -> Iterable[str]:
    """What `collect` found, for people."""
    if found["problem"]:
        yield f"uses         nothing: {found['problem']}"
    else:
        speeds = [f"{name} fast" for name in found["fast"]]
        speeds += [f"{name} as fp32" for name in found["as_fp32"]]
        speeds += [f"{name} slow" for name in found["slow"]]
        yield f"uses         {found['chosen']} ({', '.join(speeds)})"
    for one in found["instruction_sets"]:
        if one["runs_here"]:
            state = "ready"
        elif one.get("problem"):
            state = f"gives wrong results here: {one['problem']}"
        else:
            state = f"needs {one['needs']}"
        yield f"{one['name']:<12} {state}"
    for name, why in found["left_out"].items():
        yield f"{name:<12} not in this build: {why}"
