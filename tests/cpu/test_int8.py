"""int8 against an oracle that does the same in float64, and against itself on other processors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from cpu.cases import INSTRUCTION_SETS, backend, calibrated, folded_weights, run, threads
from dssnet_fast import FastDSSNet, backends
from dssnet_fast.backends import BackendUnavailable
from dssnet_fast.quantisation import layer_names, step_names
from int8_oracle import Int8Oracle
from laboratory import relative_error
from networks import CONFIGS, noise, random_network

pytestmark = pytest.mark.usefixtures("extension", "reproducible")

# Sums of bytes are exact, and what becomes of them is computed in float32: 1e-7 from the oracle.
# Now and then a value lies so close to the middle between two steps that it is rounded to the other
# one, which every layer after it sees. These are shares of what int8 itself does to an answer; the
# worst seen of the first was 0.05, of the second 1.04. Edges lose little to int8, some 0.1 %, so
# bfloat16 after their first convolution counts for more: the worst seen of the third was 1.29.
FLIPS, LOW, LOW_EDGES = 0.2, 1.1, 1.5
# What is not int8, the FFM's first convolution for one, is in bfloat16 where that is fast.
BF16 = [name for name, one in INSTRUCTION_SETS.items() if one["fast_bf16"]]
FP32 = [name for name in INSTRUCTION_SETS if name not in BF16]
STAGES = ("downsample", "extract", "fuse", "segment", "infer", "edges", "infer_edges")
WITH_FFM = ("fuse", "infer", "edges", "infer_edges")


def pixels(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(noise(*shape, CONFIGS[name].in_channels, seed=3))


@cache
def expected(name: str, strange: bool):
    """For each stage what it is given, what the oracle makes of it, and what float32 does."""
    weights = calibrated(name, strange)
    oracle, exact, image = Int8Oracle(weights), backend(weights), pixels(name, 2, 24, 136)
    found, given = {}, [image]
    for stage in STAGES:
        if "edges" in stage and not CONFIGS[name].edge:
            continue
        given = [image] if "infer" in stage else given
        given = found["fuse"][0] if stage == "edges" else given
        wide = [x if x.dtype == torch.uint8 else x.double() for x in given]
        made = run(oracle, stage, wide)
        truth = [x.double() for x in run(exact, stage, given)]
        found[stage] = given, [x.double() for x in made], truth
        given = [x.float().contiguous() for x in made]
    return found


def skip_without_edges(name: str, stage: str) -> None:
    if "edges" in stage and not CONFIGS[name].edge:
        pytest.skip("this network has no edge head")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("strange", [False, True], ids=["plain", "strange"])
@pytest.mark.parametrize("name", CONFIGS)
def test_stage_is_the_oracles(name, strange, stage):
    skip_without_edges(name, stage)
    given, made, truth = expected(name, strange)[stage]
    for instruction_set in INSTRUCTION_SETS:
        engine = backend(calibrated(name, strange), "int8", instruction_set)
        answers = run(engine, stage, given)
        for mine, wanted, exact in zip(answers, made, truth, strict=True):
            loss = relative_error(wanted, exact)
            assert loss > 1e-5, "this is not int8 at all"
            if instruction_set in BF16 and stage in WITH_FFM:
                low = LOW_EDGES if "edges" in stage else LOW
                assert relative_error(mine, exact) <= low * loss, instruction_set
            else:
                assert relative_error(mine, wanted) <= FLIPS * loss, instruction_set


@pytest.mark.parametrize("stage", [stage for stage in STAGES if "edges" not in stage])
@pytest.mark.parametrize("name", CONFIGS)
def test_processors_agree_to_the_bit(name, stage):
    """Where they compute what is exact in the same type; without Winograd's form in that.

    Edges end in sums of floats, which not all round alike. Nor do the portable kernels round the
    FFM's first convolution, whose products they do not fuse with its sums.
    """
    given, *_ = expected(name, False)[stage]
    fused = [one for one in FP32 if one != "portable"]
    together = [fused, BF16] if stage in WITH_FFM else [list(INSTRUCTION_SETS)]
    for group in together:
        engines = [backend(calibrated(name), "int8", one, winograd=False) for one in group]
        answers = [run(engine, stage, given) for engine in engines]
        for one in answers[1:]:
            assert all(torch.equal(a, b) for a, b in zip(one, answers[0], strict=True))


@pytest.mark.parametrize("name", ["gray", "wdsr_b", "bottleneck", "basic", "pixel_shuffle"])
def test_layers_that_stay_exact(name):
    weights, image = calibrated(name), pixels(name, 1, 24, 136)
    config = CONFIGS[name]
    plain = backend(weights, "int8", FP32[-1]).infer(image, "logits")
    exact = backend(weights, "fp32", FP32[-1]).infer(image, "logits").double()
    for layer in layer_names(config):
        given = replace(weights, quantisation=replace(weights.quantisation, exact=(layer,)))
        mine = backend(given, "int8", FP32[-1]).infer(image, "logits")
        wanted = Int8Oracle(given).infer(image, "logits").double()
        limit = FLIPS * relative_error(wanted, exact)
        assert relative_error(mine, wanted) <= limit, layer
        # `downsample.0` reads the image, as the stem does; whatever else is exact is seen.
        assert not torch.equal(mine, plain), layer


@pytest.mark.parametrize("name", CONFIGS)
def test_with_every_layer_exact_it_is_no_longer_int8(name):
    weights, image = calibrated(name), pixels(name, 1, 24, 136)
    exact = layer_names(CONFIGS[name])
    given = replace(weights, quantisation=replace(weights.quantisation, exact=exact))
    for instruction_set in INSTRUCTION_SETS:
        other = "bf16" if instruction_set in BF16 else "fp32"
        mine = backend(given, "int8", instruction_set).infer(image, "logits")
        theirs = backend(weights, other, instruction_set).infer(image, "logits")
        assert torch.equal(mine, theirs), instruction_set


def test_without_steps_it_says_how_to_get_them():
    weights = folded_weights(random_network())
    for name in ("auto", "cpu"):
        with pytest.raises(BackendUnavailable, match=r"not calibrated .*convert FILE --int8"):
            FastDSSNet(weights, device="cpu", backend=name, precision="int8")


def test_nobody_else_computes_in_it():
    """A backend that took int8 for float32 would be believed to be int8."""
    config, gpu = CONFIGS["paper"], torch.device("cuda", 0)
    for name in set(backends.names()) - {"cpu"}:
        entry = backends.module(name)
        for device in (torch.device("cpu"), gpu):
            assert entry.why_not(device, "int8", config) is not None, name
    with pytest.raises(BackendUnavailable, match="for int8 use backend cpu"):
        FastDSSNet(calibrated("paper"), device="cpu", backend="torch", precision="int8")


def test_a_user_who_has_steps():
    weights = calibrated("paper")
    net = FastDSSNet(weights, device="cpu", precision="int8")
    assert (net.backend_name, net.precision) == ("cpu", "int8")
    image = pixels("paper", 24, 40).numpy()
    answer = net.predict(image, output="logits")
    expected = backend(weights, "int8").infer(torch.from_numpy(image)[None], "logits")
    assert np.array_equal(answer, expected[0].numpy())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (9, 17), (33, 121)])
@pytest.mark.parametrize("name", ["gray", "basic", "pixel_shuffle"])
def test_any_size(name, size):
    weights, image = calibrated(name), pixels(name, 1, *size)
    wanted = backends.infer(Int8Oracle(weights), image, "logits", CONFIGS[name].classes)
    for instruction_set in FP32:
        engine = backend(weights, "int8", instruction_set)
        mine = backends.infer(engine, image, "logits", CONFIGS[name].classes)
        assert mine.shape == wanted.shape == (1, *size, CONFIGS[name].classes)
        assert relative_error(mine, wanted.double()) <= 1e-3


@pytest.mark.parametrize("factor", [0.02, 50], ids=["narrow", "coarse"])
@pytest.mark.parametrize("name", ["gray", "wide", "pixel_shuffle"])
def test_what_does_not_fit_is_clamped(name, factor):
    """With steps for quite other images; values far outside the range keep their sign."""
    weights, image = calibrated(name), pixels(name, 2, 24, 40)
    steps = {step: factor * weights.quantisation.steps[step] for step in step_names(CONFIGS[name])}
    weights = replace(weights, quantisation=replace(weights.quantisation, steps=steps))
    wanted = Int8Oracle(weights).infer(image, "logits").double()
    for instruction_set in FP32:
        mine = backend(weights, "int8", instruction_set).infer(image, "logits")
        assert relative_error(mine, wanted) <= 1e-3
    for instruction_set in BF16:
        assert backend(weights, "int8", instruction_set).infer(image, "logits").isfinite().all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["gray", "paper"])
def test_floats_far_outside_the_range_of_images(instruction_set, name):
    engine = backend(calibrated(name), "int8", instruction_set)
    x = torch.randn(1, CONFIGS[name].in_channels, 16, 136)
    limit = 127 / 128
    clamped = engine.infer(x.sign() * limit, "logits")
    for scale in (1e4, 1e30, 3e38, float("inf")):
        answer = engine.infer(x.sign() * scale, "logits")
        assert answer.isfinite().all()
        assert torch.equal(answer.round(decimals=3), clamped.round(decimals=3)) or (
            relative_error(answer, clamped.double()) <= 0.01
        )
    assert engine.infer(torch.full_like(x, float("nan")), "logits").isfinite().all()


def test_threads_change_nothing_in_any_layer():
    """Sums of integers do not depend on their order, so Winograd's form is the one exception."""
    engine = backend(calibrated("paper"), "int8", winograd=False)
    image = pixels("paper", 1, 56, 72)
    with threads(1):
        alone = engine.infer(image, "logits")
    for count in (2, 3, 5):
        with threads(count):
            assert torch.equal(engine.infer(image, "logits"), alone)
