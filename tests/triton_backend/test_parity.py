"""Each stage's kernels against the reference: in Triton's interpreter, and their PTX executed."""

from __future__ import annotations

import pytest
import torch

from laboratory import Reference, last, relative_error
from triton_backend.cases import CASES, Interpreted
from triton_backend.executed import Executed

EXACT = 2e-5  # of float32
# Whose answers of every kind are looked at, and whose images come as floats, too; others take long
# to compile or interpret, and differ in nothing that matters to these.
THOROUGH = ("interpreted-released-fp16", "interpreted-gray", "executed-released-fp16")
EXECUTED = ("released-fp16", "released-bf16", "released-fp32", "wide", "pixel_shuffle")
BENCHES = [
    *(f"interpreted-{name}" for name in CASES),
    *(
        pytest.param(f"executed-{name}", marks=() if name in EXECUTED else pytest.mark.large)
        for name in CASES
    ),
]


@pytest.fixture(params=BENCHES, scope="module")
def bench(request, interpreter):
    """Something that computes the stages, its reference, the image, and whether to be thorough."""
    how, name = request.param.split("-", 1)
    case = CASES[name]
    network, image = case.specimen
    stages = Executed(case) if how == "executed" else Interpreted(name, interpreter.submit)
    reference = Reference(network, case.dtype, image)
    return stages, reference, torch.from_numpy(image), request.param in THOROUGH


def assert_parity(dtype, got, exact, rounded):
    """Float32 is exact; fusing rounds less often than PyTorch does in the same half precision."""
    for ours, wanted, theirs in zip(got, exact, rounded, strict=True):
        ours, theirs = relative_error(ours, wanted), relative_error(theirs, wanted)
        assert ours <= (EXACT if dtype == torch.float32 else theirs), f"{ours:.2e}, {theirs:.2e}"


def test_downsample(bench):
    stages, reference, image, thorough = bench
    exact, rounded = reference.stage("downsample", last(reference.image))
    x0 = stages.downsample(image)
    assert_parity(reference.dtype, [x0], exact, rounded)
    if thorough:
        # The same numbers, so the same sums in the same order.
        assert torch.equal(stages.downsample(reference.image), x0)


def test_extract(bench):
    stages, reference, *_ = bench
    (x0,), _ = reference.stage("downsample", last(reference.image))
    x0 = x0.to(reference.dtype)
    exact, rounded = reference.stage("extract", x0)
    assert_parity(reference.dtype, stages.extract(x0), exact, rounded)


def test_fuse(bench):
    stages, reference, *_ = bench
    (x0,), _ = reference.stage("downsample", last(reference.image))
    maps = [x.to(reference.dtype) for x in reference.stage("extract", x0)[0]]
    exact, rounded = reference.stage("fuse", *maps)
    assert_parity(reference.dtype, [stages.fuse(*maps)], exact, rounded)


def test_edges(bench):
    """By the torch backend's operators, on what the kernels' own stages give."""
    stages, reference, _, _ = bench
    if isinstance(stages, Executed) or not reference.exact.config.edge:
        pytest.skip("no kernels, or no edge head")
    (x0,), _ = reference.stage("downsample", last(reference.image))
    maps = [x.to(reference.dtype) for x in reference.stage("extract", x0)[0]]
    exact, rounded = reference.stage("edges", *maps)
    assert_parity(reference.dtype, [stages.edges(*maps)[..., None]], exact, rounded)


def test_segment(bench):
    stages, reference, _, thorough = bench
    (x0,), _ = reference.stage("downsample", last(reference.image))
    (y,), _ = reference.stage("fuse", *reference.stage("extract", x0)[0])
    y = y.to(reference.dtype)
    exact, rounded = reference.stage("segment", y)
    logits = stages.segment(y, "logits")
    assert_parity(reference.dtype, [logits], exact, rounded)
    if thorough:
        assert torch.equal(stages.segment(y, "labels"), logits.argmax(3).to(torch.uint8))
        probabilities = stages.segment(y, "probabilities")
        torch.testing.assert_close(probabilities, logits.softmax(3), rtol=4e-6, atol=4e-7)
