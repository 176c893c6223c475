"""The CPU's stages beside what its instructions do on registers."""

from __future__ import annotations

import pytest
import torch

from cpu.cases import INSTRUCTION_SETS, NATIVE_BF16, backend, calibrated
from dssnet_fast import stage_speed
from dssnet_fast.backends import native
from dssnet_fast.stage_speed import Peak, StageSpeed
from networks import CONFIGS, noise

PEAKS = {"fp32": Peak("fma", 2e9), "int8": Peak("dot", 8e9), "wide_bf16": Peak("", 0.0)}


def speed(macs, stage="all", seconds=2.0) -> StageSpeed:
    return StageSpeed("int8", stage, seconds, macs, PEAKS)


def test_the_share_is_the_time_that_multiplications_take():
    """Each type at its own rate: a second for 2 G of float32, another for 8 G of int8."""
    assert speed({"fp32": 2e9}).share == 0.5
    assert speed({"fp32": 2e9, "int8": 8e9}).share == 1.0
    assert speed({"int8": 8e9}, seconds=4.0).share == 0.25
    assert speed({"fp32": 2e9, "wide_bf16": 1e9}).share is None


def test_the_table_names_the_instructions():
    text = stage_speed.markdown([speed({"fp32": 2e9}), speed({"wide_bf16": 4e9}, "extract")])
    assert text.splitlines()[2:4] == [
        "| int8 | all | 2000.0 | 2.00 | 1 | 50% |",
        "| int8 | extract | 2000.0 | 4.00 | 2 | unknown |",
    ]
    assert text.splitlines()[-3:] == [
        "| fp32 | fma | 2 |",
        "| int8 | dot | 8 |",
        "| wide_bf16 | unknown |  |",
    ]


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_set_knows_its_instructions(name):
    """The portable one is whatever a compiler makes of it."""
    module = native.module()
    for kind in ("fp32", "wide_bf16", "int8", "bf16"):
        given = {"instruction_set": name, "type": kind}
        rate = module.cpu_peak(**given, threads=1, seconds=0.01)
        instructions = module.cpu_peak_instructions(**given)
        known = name != "portable" and (kind != "bf16" or name in NATIVE_BF16)
        assert (rate > 1e8, bool(instructions)) == (known, known), kind


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_products_are_counted_by_type(name):
    image = torch.from_numpy(noise(2, 16, 128, CONFIGS["gray"].in_channels))
    weights = calibrated("gray")
    found = {
        precision: backend(weights, precision, name, winograd=False, fast_bf16=False).profile(image)
        for precision in ("fp32", "bf16", "int8")
    }
    stages = ["downsample", "extract", "fuse, segment"]
    assert all(list(one) == stages for one in found.values())
    for stage in stages:
        assert found["fp32"][stage][0] > 0
        (exact,) = found["fp32"][stage][1].items()
        (rounded,) = found["bf16"][stage][1].items()
        assert (exact[0], rounded[0]) == ("fp32", "wide_bf16")
        assert exact[1] == rounded[1]
        # Whole words of four channels, and at least as many.
        assert sum(found["int8"][stage][1].values()) >= exact[1]
    assert set(found["int8"]["fuse, segment"][1]) == {"fp32", "int8"}


@pytest.mark.usefixtures("extension")
def test_winograd_multiplies_less():
    image = torch.from_numpy(noise(1, 16, 256, CONFIGS["paper"].in_channels))
    for name in INSTRUCTION_SETS:
        counts = []
        for form in (True, False):
            stages = backend(calibrated("paper"), "fp32", name, form).profile(image).values()
            counts.append(sum(sum(macs.values()) for _, macs in stages))
        assert 0.35 < counts[0] / counts[1] < 0.5


@pytest.mark.usefixtures("extension")
def test_all_stages_and_precisions_are_measured():
    speeds = list(stage_speed.measure(calibrated("gray"), 64, 1, 1))
    stages = ["downsample", "extract", "fuse, segment", "all"]
    assert [(one.precision, one.stage) for one in speeds] == [
        (precision, stage) for precision in ("fp32", "bf16", "int8") for stage in stages
    ]
    assert all(one.seconds > 0 and one.macs for one in speeds)
