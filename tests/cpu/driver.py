"""What `driver.cpp` is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cpu.cases import calibrated
from dssnet_fast.backends.cpu.operands import operands

DRIVER = Path(__file__).with_name("driver.cpp")


def write_operands(path: Path, name: str, precision: str, exact: Sequence[str] = ()) -> Path:
    """A network as the engine gives it to the extension, for `read` in driver.cpp."""
    weights = calibrated(name)
    weights = replace(weights, quantisation=replace(weights.quantisation, exact=tuple(exact)))
    # Of bfloat16 the driver makes what each set has.
    found = operands(weights, precision, "bf16" if precision == "bf16" else "fp32")
    with open(path, "wb") as file:

        def write(*words) -> None:
            file.write((" ".join(map(str, words)) + "\n").encode())

        order = ("in_channels", "classes", "width", "features", "fused", "y", "narrow")
        flags = (int(found.sizes[key]) for key in ("learned_upsampling", "edges"))
        write(*(found.sizes[key] for key in order), *flags)
        write(len(found.blocks), len(found.slopes), len(found.convolutions))
        for block in found.blocks:
            write(len(block))
            for parts, slope in block:
                write(len(parts), slope, *parts)
        for slope in found.slopes.items():
            write(*slope)
        for convolution, one in found.convolutions.items():
            write(convolution, *one.weight.shape, one.type, one.step)
            file.write(one.weight.tobytes() + one.bias.tobytes())
    return path
