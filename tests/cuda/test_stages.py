"""Each stage's kernels on the PTX executor, with all its checks, against the reference."""

from __future__ import annotations

import pytest
import torch

from dssnet_fast.python_ref.config import DSSNetConfig
from laboratory import Laboratory, Reference, last, relative_error, specimen
from networks import CONFIGS

pytestmark = pytest.mark.usefixtures("one_thread", "kernels")

# Sizes that are no multiple of any tile, more than one image, kernels compiled for the released
# network and general ones, narrow and wide, and every tile that a plan can choose.
SMALL_GPU = ("H100", {"multiprocessors": 1})
CASES = {
    "released": (DSSNetConfig(classes=3, blocks=2), (1, 72, 104), "fp16", ("H100", {})),
    "released-bf16": (DSSNetConfig(classes=2, blocks=1), (1, 40, 136), "bf16", ("H100", {})),
    "large-tiles": (DSSNetConfig(classes=4, blocks=2), (1, 136, 136), "fp16", SMALL_GPU),
    "batch-of-tiny": (DSSNetConfig(classes=2, blocks=2), (3, 8, 16), "fp16", ("A100", {})),
    "gray": (CONFIGS["gray"], (2, 40, 72), "fp16", ("RTX 4090", {})),
    "wide": (CONFIGS["wide"], (1, 72, 40), "bf16", ("A100", {})),
    "pixel_shuffle": (CONFIGS["pixel_shuffle"], (1, 40, 72), "fp16", ("H100", {})),
    "widest": (
        DSSNetConfig(width=12, features=128, blocks=1, upsampling="pixel_shuffle"),
        (1, 24, 40),
        "fp16",
        ("RTX 4090", {}),
    ),
    "widest-nearest": (
        DSSNetConfig(width=20, features=128, blocks=1),
        (1, 24, 40),
        "bf16",
        ("RTX 4090", {}),
    ),
}


@pytest.fixture(params=CASES, scope="module")
def bench(request, native):
    config, shape, precision, device = CASES[request.param]
    network, image = specimen(config, shape)
    laboratory = Laboratory(native, network, precision, device, racecheck=True)
    return laboratory, Reference(network, laboratory.dtype, image), image


def assert_as_good_as_torch(got, exact, rounded):
    """Fusing rounds less often than PyTorch does in the same precision, so errors are smaller."""
    for ours, wanted, theirs in zip(got, exact, rounded, strict=True):
        ours, theirs = relative_error(ours, wanted), relative_error(theirs, wanted)
        assert ours <= theirs, f"{ours:.2e} against {theirs:.2e} of PyTorch"


def test_downsample(bench):
    laboratory, reference, image = bench
    exact, rounded = reference.stage("downsample", last(reference.image))
    assert_as_good_as_torch([laboratory.downsample(image)], exact, rounded)


def test_downsample_of_normalised_floats(bench):
    laboratory, reference, image = bench
    # The same numbers, so the same sums in the same order.
    from_bytes = laboratory.downsample(image)
    assert torch.equal(laboratory.downsample(reference.image), from_bytes)


def test_extract(bench):
    laboratory, reference, _ = bench
    (x0,), _ = reference.stage("downsample", last(reference.image))
    x0 = x0.to(laboratory.dtype)
    exact, rounded = reference.stage("extract", x0)
    assert_as_good_as_torch(laboratory.extract(x0), exact, rounded)


def test_fuse(bench):
    laboratory, reference, _ = bench
    (x0,), _ = reference.stage("downsample", last(reference.image))
    maps = [x.to(laboratory.dtype) for x in reference.stage("extract", x0)[0]]
    exact, rounded = reference.stage("fuse", *maps)
    assert_as_good_as_torch([laboratory.fuse(*maps)], exact, rounded)


def test_segment(bench):
    laboratory, reference, _ = bench
    (x0,), _ = reference.stage("downsample", last(reference.image))
    (y,), _ = reference.stage("fuse", *reference.stage("extract", x0)[0])
    y = y.to(laboratory.dtype)
    (exact,), (rounded,) = reference.stage("segment", y)
    logits = laboratory.segment(y, "logits")
    assert_as_good_as_torch([logits], [exact], [rounded])
    assert torch.equal(laboratory.segment(y, "labels"), logits.argmax(3).to(torch.uint8))
    probabilities = laboratory.segment(y, "probabilities")
    torch.testing.assert_close(probabilities, logits.softmax(3), rtol=2e-6, atol=2e-7)
