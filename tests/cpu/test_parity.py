"""Each stage and the whole network against the reference, on every instruction set there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

from cpu.cases import (
    ENDS,
    INSTRUCTION_SETS,
    NATIVE_BF16,
    backend,
    calibrated,
    folded_weights,
    run,
    threads,
)
from dssnet_fast.backends import PRECISIONS
from dssnet_fast.weights import FoldedWeights
from laboratory import Reference, last, relative_error, specimen
from networks import CONFIGS, noise, random_network

pytestmark = pytest.mark.usefixtures("extension", "reproducible")

EXACT = 2e-5  # of float32; the worst seen is 5e-7

# Cells are computed in units of 16 and images have 8 pixels a cell: one unit, one cell less and
# more, three units of which the last has one cell, and less than a unit; rows of cells that are
# fewer than the four that Winograd's form computes together, and no multiple of them. Where images
# are tiny there are many, so that rounding is not a matter of luck.
SHAPES = {
    "paper": (1, 24, 136),
    "gray": (2, 40, 120),
    "wide": (1, 16, 264),
    "wdsr_b": (16, 8, 8),
    "bottleneck": (2, 88, 24),
    "basic": (2, 24, 128),
    "pixel_shuffle": (1, 40, 136),
}
MODES = ("fp32", "fp32-direct", "bf16-wide", "bf16-native")
WAYS = [
    (name, mode)
    for name in INSTRUCTION_SETS
    for mode in MODES
    if mode != "bf16-native" or name in NATIVE_BF16
]


@dataclass(frozen=True)
class Stages:
    """What stages are given, in the precision, and what they should give."""

    weights: FoldedWeights
    inputs: dict[str, list[torch.Tensor]]
    exact: dict[str, list[torch.Tensor]]
    rounded: dict[str, list[torch.Tensor]]


@cache
def stages(name: str, precision: str, plain: bool) -> Stages:
    """`plain` networks have biases of the size of everything else."""
    network, image = specimen(CONFIGS[name], SHAPES[name])
    if plain:
        network = random_network(CONFIGS[name])
    weights = folded_weights(network)
    reference = Reference(network, PRECISIONS[precision], image)
    inputs, exact, rounded = {}, {}, {}
    pixels = [torch.from_numpy(image)]
    given = [last(reference.image)]
    for stage in ("downsample", "extract", "fuse", "segment"):
        inputs[stage] = pixels if stage == "downsample" else given
        exact[stage], rounded[stage] = reference.stage(stage, *given)
        given = [x.to(reference.dtype) for x in exact[stage]]
        if stage == "extract" and CONFIGS[name].edge:
            inputs["edges"] = given
            exact["edges"], rounded["edges"] = reference.stage("edges", *given)
    inputs["infer"] = inputs["infer_edges"] = pixels
    image = reference.image
    with torch.no_grad():
        exact["infer"] = [last(reference.exact.logits(image))]
        rounded["infer"] = [last(reference.rounded.logits(image.to(reference.dtype)))]
        if CONFIGS[name].edge:
            exact["infer_edges"] = [last(reference.exact(image).edge)]
            rounded["infer_edges"] = [last(reference.rounded(image.to(reference.dtype)).edge)]
    return Stages(weights, inputs, exact, rounded)


@cache
def engine(name: str, mode: str, plain: bool, instruction_set: str):
    precision, _, form = mode.partition("-")
    weights = stages(name, precision, plain).weights
    return backend(weights, precision, instruction_set, form != "direct", form == "native")


@pytest.mark.parametrize(
    "stage", ["downsample", "extract", "fuse", "segment", "infer", "edges", "infer_edges"]
)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "strange"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("instruction_set", "mode"), WAYS)
def test_stage(instruction_set, name, mode, plain, stage):
    """Float32 is exact; fusing rounds less often than PyTorch does in bfloat16."""
    if "edges" in stage and not CONFIGS[name].edge:
        pytest.skip("this network has no edge head")
    ours = engine(name, mode, plain, instruction_set)
    case = stages(name, mode.partition("-")[0], plain)
    answer = run(ours, stage, case.inputs[stage])
    for mine, wanted, theirs in zip(answer, case.exact[stage], case.rounded[stage], strict=True):
        mine = mine[..., None] if "edges" in stage else mine
        assert mine.shape == wanted.shape
        error = relative_error(mine, wanted)
        limit = relative_error(theirs, wanted) if mode.startswith("bf16") else EXACT
        assert error <= limit, f"{error:.2e}, PyTorch {relative_error(theirs, wanted):.2e}"


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 8), (1, 16, 120), (1, 16, 128), (1, 16, 136), (1, 8, 264), (1, 200, 8), (4, 48, 40)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("name", ["gray", "bottleneck", "pixel_shuffle"])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_any_size_on_any_number_of_threads(instruction_set, name, shape):
    """In Winograd's form, whose squares of rows begin where a thread's share does."""
    image = noise(*shape, CONFIGS[name].in_channels)
    expected, expected_edges = whole(name, shape)
    ours = backend(calibrated(name), "fp32", instruction_set)
    for count in (1, 2, 3, 5) if instruction_set in ENDS else (1, 3):
        with threads(count):
            answer = ours.infer(torch.from_numpy(image), "logits")
            error = relative_error(answer, expected)
            assert error <= EXACT, f"{count} threads: {error:.2e}"
            if CONFIGS[name].edge:
                edges = ours.infer_edges(torch.from_numpy(image))
                assert edges.shape == expected_edges.shape
                assert relative_error(edges, expected_edges) <= EXACT, f"{count} threads"


@cache
def whole(name: str, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits and edges."""
    image = noise(*shape, CONFIGS[name].in_channels)
    reference = Reference(random_network(CONFIGS[name]), torch.float32, image)
    with torch.no_grad():
        output = reference.exact(reference.image)
    return last(output.segmentation), output.edge[:, 0] if CONFIGS[name].edge else None


# --- threads and batches -------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["gray", "basic", "pixel_shuffle"])
@pytest.mark.parametrize("instruction_set", ENDS)
def test_threads_and_batches_change_nothing(instruction_set, name, precision):
    """Not a bit, in direct form."""
    ours = backend(calibrated(name), precision, instruction_set, winograd=False)
    images = torch.from_numpy(noise(7, 40, 24, CONFIGS[name].in_channels))
    with threads(1):
        alone = torch.cat([ours.infer(image[None], "logits") for image in images])
        edges = torch.cat([ours.infer_edges(image[None]) for image in images])
        middle = ours.fuse(*ours.extract(ours.downsample(images)))
    assert len({image.numpy().tobytes() for image in alone}) == len(alone)
    for count in (2, 3, 5):
        with threads(count):
            # As many as threads, fewer, and more: each image on one thread, on all, and both.
            for batch in (1, 2, 3, 5, 7):
                assert torch.equal(ours.infer(images[:batch], "logits"), alone[:batch])
                assert torch.equal(ours.infer_edges(images[:batch]), edges[:batch])
            assert torch.equal(ours.fuse(*ours.extract(ours.downsample(images))), middle)
            one = images[:1, :8]  # a single row of cells
            assert torch.equal(
                ours.infer(one, "logits"), ours.infer(torch.cat([one] * 6), "logits")[:1]
            )


# --- kinds of images and answers -----------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["gray", "wide", "pixel_shuffle"])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_bytes_and_floats_are_the_same_image(instruction_set, name, precision):
    ours = backend(calibrated(name), precision, instruction_set)
    image = torch.from_numpy(noise(2, 24, 136, CONFIGS[name].in_channels))
    floats = (image.permute(0, 3, 1, 2).float() - 128) / 128
    assert torch.equal(ours.downsample(floats), ours.downsample(image))
    answer = ours.infer(image, "logits")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        # All values are multiples of 1/128 below 1, which each of these holds.
        assert torch.equal(ours.infer(floats.to(dtype), "logits"), answer)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_labels_and_probabilities_are_those_of_the_logits(instruction_set, name, precision):
    weights = calibrated(name)
    image = torch.from_numpy(noise(1, 40, 264, CONFIGS[name].in_channels))
    # Every class is somewhere the largest.
    mean = backend(weights).infer(image, "logits").mean((0, 1, 2))
    bias = weights.tensors["segment.outer.bias"] - mean
    weights = replace(weights, tensors={**weights.tensors, "segment.outer.bias": bias})
    ours = backend(weights, precision, instruction_set)
    logits = ours.infer(image, "logits")
    labels = ours.infer(image, "labels")
    assert labels.dtype == torch.uint8
    assert np.array_equal(labels.numpy(), logits.numpy().argmax(3))
    assert len(labels.unique()) == CONFIGS[name].classes
    probabilities = ours.infer(image, "probabilities")
    torch.testing.assert_close(probabilities, logits.softmax(3), rtol=4e-6, atol=4e-7)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_of_equal_logits_the_first_class_is_the_label(instruction_set):
    weights = folded_weights(random_network(CONFIGS["wide"]))
    for name in ("weight", "bias"):
        weights.tensors[f"segment.outer.{name}"].zero_()
    ours = backend(weights, "fp32", instruction_set)
    image = torch.from_numpy(noise(1, 8, 136, 3))
    assert not ours.infer(image, "labels").any()
    probabilities = ours.infer(image, "probabilities")
    assert torch.equal(probabilities, torch.full_like(probabilities, 1 / 16))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_logits_of_any_size_have_probabilities(instruction_set):
    weights = folded_weights(random_network(CONFIGS["gray"]))
    weights.tensors["segment.outer.bias"].copy_(torch.tensor([300.0, -300.0]))
    ours = backend(weights, "fp32", instruction_set)
    probabilities = ours.infer(torch.from_numpy(noise(1, 8, 16, 1)), "probabilities")
    assert torch.equal(probabilities[..., 0], torch.ones(1, 8, 16))
    assert (probabilities[..., 1] < 1e-30).all()
