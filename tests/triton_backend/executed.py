"""The backend on the PTX executor: the PTX that a GPU would get."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dssnet_fast.backends.triton.engine import TritonBackend
from ptx.triton_programs import run_program
from triton_backend.cases import Case

WRITTEN = {"downsample": "x0", "extract": "joined", "fuse": "y"}  # else "answer"


class Executed(TritonBackend):
    """The stages with the executor's checks, and one that padding channels are zero.

    Args:
        case: What runs.
        racecheck: Whether runs also look for races.
    """

    def __init__(self, case: Case, racecheck: bool = True) -> None:
        precision = "tf32x3" if case.precision == "fp32" else "ieee"
        super().__init__(case.folded, torch.device("cpu"), case.dtype, precision)
        self._racecheck = racecheck

    def _run(
        self, stage: str, shape: tuple[int, int, int], output: str, given: Mapping[str, Tensor]
    ) -> None:
        inputs = dict(given)
        name = WRITTEN.get(stage, "answer")
        written = inputs.pop(name)
        program = self._program(stage, shape, output)
        run_program(program, inputs, {name: written}, racecheck=self._racecheck)
        if stage == "downsample":
            assert not written[..., self.config.width :].any(), "padding must be zero"
        if stage == "extract":
            for half in written.chunk(2, dim=3):
                assert not half[..., self.config.features :].any(), "padding must be zero"
