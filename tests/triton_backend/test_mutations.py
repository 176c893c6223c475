"""Kernels broken on purpose: the parity tests must notice each time."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from laboratory import Reference, last, relative_error
from triton_backend.cases import CASES, interpret
from triton_backend.interpreter import switch_on

pytestmark = pytest.mark.large

STAGES = ("downsample", "extract", "fuse", "segment")
SOURCES = Path(__file__).resolve().parents[2] / "kernels"

# Case, stage, file, what stands there, what is put in its place.
MUTATIONS = [
    ("released-fp16", "downsample", "downsample.py", "other=128", "other=0"),
    ("released-fp16", "downsample", "downsample.py", "(kind + 1) * OUTPUTS", "kind * OUTPUTS"),
    ("released-fp16", "downsample", "downsample.py", "left = inside & (column == 0)", "left = top"),
    ("released-fp16", "downsample", "downsample.py", "source = r - 1", "source = r"),
    (
        "released-fp16", "downsample", "downsample.py", "nothing, x2, x3, x4, at_right",
        "nothing, x1, x2, x3, at_right",
    ),
    ("released-fp16", "downsample", "downsample.py", "seen & (row > 0)", "seen"),
    ("released-fp16", "downsample", "downsample.py", "tap >= 4 and", "tap > 4 and"),
    (
        "released-fp16", "extract", "wneck.py", "tl.where(inside[:, None], wide, 0.0)",
        "wide",
    ),
    (
        "released-fp16", "extract", "wneck.py", "stay += tl.where(kept, product, 0.0)",
        "stay += product",
    ),
    ("released-fp16", "extract", "wneck.py", "(y3 + dy) & (TILE - 1)", "(y3 - dy) & (TILE - 1)"),
    (
        "released-fp16", "extract", "wneck.py", "tl.where(y3 == 0, TILE, -1)",
        "tl.where(y3 == 0, -1, TILE)",
    ),
    ("released-fp16", "extract", "wneck.py", "(across | (part < 2))", "(beside | (part < 2))"),
    (
        "released-fp16", "extract", "convolution.py", "(column + dx < width)",
        "(column + dx <= width)",
    ),
    ("wdsr_b", "extract", "convolution.py", "sums += residual.to(tl.float32)", "pass"),
    ("widest", "extract", "convolution.py", "first_n < POINTWISE", "first_n <= POINTWISE"),
    (
        "released-fp16", "fuse", "fuse.py", "left, right = column > 0, column + 1 < width",
        "left, right = column >= 0, column + 1 < width",
    ),
    ("released-fp16", "fuse", "fuse.py", "* 0.5 - to_left) * 0.5", "* 0.5 - to_right) * 0.5"),
    ("released-fp16", "fuse", "fuse.py", "4 - 2 * seen", "4 - seen"),
    ("released-fp16", "fuse", "fuse.py", "at - 7 * CHANNELS", "at - 8 * CHANNELS"),
    ("pixel_shuffle", "fuse", "convolution.py", "sub_pixel % SHUFFLE", "sub_pixel // SHUFFLE"),
    ("gray", "segment", "segment.py", "(8 + side) * size", "(7 + side) * size"),
    (
        "gray", "segment", "segment.py", "bias_ptr + (side + 1) * COLUMNS",
        "bias_ptr + side * COLUMNS",
    ),
    ("gray", "segment", "segment.py", "seen = seen & seen_before", "seen = seen & seen_after"),
]  # fmt: skip


def run_broken(folder: str, name: str, stage: str, *inputs: torch.Tensor | str):
    """A stage with the kernels in `folder`."""
    import dssnet_fast

    dssnet_fast.__path__.insert(0, folder)
    return interpret(name, stage, *inputs)


@pytest.mark.parametrize(
    ("name", "stage", "file", "old", "new"),
    MUTATIONS,
    ids=[f"{file}-{old}" for _, _, file, old, _ in MUTATIONS],
)
def test_broken_kernels_are_noticed(tmp_path, name, stage, file, old, new):
    broken = tmp_path / "kernels"
    shutil.copytree(SOURCES, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = (broken / file).read_text()
    assert old in text
    (broken / file).write_text(text.replace(old, new))
    case = CASES[name]
    network, image = case.specimen
    reference = Reference(network, case.dtype, image)
    inputs = [torch.from_numpy(image)]
    exact, rounded = reference.stage("downsample", last(reference.image))
    for following in STAGES[1 : STAGES.index(stage) + 1]:
        inputs = [x.to(case.dtype) for x in exact]
        exact, rounded = reference.stage(following, *inputs)
    if stage == "segment":
        inputs.append("logits")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=switch_on) as pool:
        try:
            got = pool.submit(run_broken, str(tmp_path), name, stage, *inputs).result()
        except Exception:
            return  # noticed, loudly
    got = got if isinstance(got, tuple) else (got,)
    errors = [relative_error(x, wanted) for x, wanted in zip(got, exact, strict=True)]
    allowed = [relative_error(x, wanted) for x, wanted in zip(rounded, exact, strict=True)]
    assert any(not error <= most for error, most in zip(errors, allowed, strict=True)), np.divide(
        errors, allowed
    )
