"""Programs: what shares memory, what runs, and how a launch picks its config."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from triton.runtime.errors import OutOfResources

from dssnet_fast.backends.triton.operands import pack
from dssnet_fast.backends.triton.program import ALIGNMENT, Map, Program, Step
from dssnet_fast.backends.triton.stages import program
from dssnet_fast.checkpoint import from_state
from dssnet_fast.kernels import launch
from dssnet_fast.kernels.launch import Config, Launch
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import fold_checkpoint
from networks import CONFIGS, random_network


def packed(name, dtype=torch.float16):
    folded = fold_checkpoint(from_state(released_state(random_network(CONFIGS[name]))))
    return pack(folded, torch.device("cpu"), dtype, "ieee")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", CONFIGS)
def test_maps_that_are_needed_together_do_not_overlap(name, dtype):
    found = program(packed(name, dtype), "infer", (2, 40, 72), "labels")
    uses = {
        name: [i for i, step in enumerate(found.steps) if name in step.maps]
        for name in found.offsets
    }
    for one, offset in found.offsets.items():
        assert offset % ALIGNMENT == 0
        end = offset + found.maps[one].nbytes
        assert end <= found.workspace_bytes
        for other in found.offsets:
            together = uses[one][0] <= uses[other][-1] and uses[other][0] <= uses[one][-1]
            if other != one and together:
                begin = found.offsets[other]
                assert end <= begin or begin + found.maps[other].nbytes <= offset, (one, other)


def test_maps_that_are_not_needed_together_share_memory():
    found = program(packed("paper"), "infer", (1, 512, 512), "labels")
    everything = sum(found.maps[name].nbytes for name in found.offsets)
    largest = found.maps["values"].nbytes + found.maps["y"].nbytes
    assert found.workspace_bytes < 1.05 * largest < everything


def test_steps_see_each_map_as_the_one_before_left_it():
    maps = {name: Map((3,), torch.float32) for name in "abcd"}
    log = []

    def step(source, target):
        def run(tensors):
            log.append(target)
            return SimpleNamespace(run=lambda: torch.add(tensors[source], 1, out=tensors[target]))

        return Step(run, (source, target))

    steps = [step("a", "b"), step("b", "c"), step("c", "d")]
    end = torch.zeros(3)
    Program(maps, steps, {"a", "d"}).run({"a": torch.arange(3.0), "d": end}, torch.device("cpu"))
    assert log == ["b", "c", "d"]
    assert torch.equal(end, torch.arange(3.0) + 3)


@pytest.mark.parametrize(
    ("name", "launches"), [("paper", 29), ("gray", 13), ("wide", 11), ("pixel_shuffle", 13)]
)
def test_how_many_launches(name, launches):
    # Three down-samplers, the head, two a block, three for the FFM, two at the end.
    assert len(program(packed(name), "infer", (1, 64, 64), "labels").steps) == launches


class Kernel:
    """Remembers what it was launched with; configs above `fits` do not fit."""

    def __init__(self, fits=100):
        self.fits, self.calls = fits, []

    def __getitem__(self, grid):
        def run(**arguments):
            if arguments["BLOCK"] > self.fits:
                raise OutOfResources(arguments["BLOCK"], self.fits, "shared memory")
            self.calls.append((grid, arguments))

        return run


class TunedKernel:
    """Takes its grid from what was chosen for it, as Triton's autotuner does."""

    def __getitem__(self, grid):
        def run(**arguments):
            assert grid({"BLOCK": 50}) == (2,)
            assert arguments == {"n": 100, "WIDTH": 7, "enable_fp_fusion": True}

        return run


def launched(kernel):
    configs = [Config({"BLOCK": block}, 4, 3) for block in (64, 32, 16)]
    return Launch(
        kernel, {"n": 100}, {"WIDTH": 7}, configs, lambda blocks: -(-100 // blocks["BLOCK"])
    )


def test_the_default_config_is_the_first():
    kernel = Kernel()
    launched(kernel).run()
    ((grid, arguments),) = kernel.calls
    assert grid == (2,)
    assert arguments == {
        **{"n": 100, "WIDTH": 7, "BLOCK": 64},
        **{"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True},
    }


def test_the_next_config_where_one_does_not_fit_and_from_then_on():
    kernel = Kernel(fits=40)
    launched(kernel).run()
    kernel.fits = 100
    launched(kernel).run()
    assert [arguments["BLOCK"] for _, arguments in kernel.calls] == [32, 32]


def test_no_config_fits():
    with pytest.raises(OutOfResources):
        launched(Kernel(fits=8)).run()


def test_autotuning_only_where_asked(monkeypatch):
    tuned = []

    def tune(kernel, configs, sizes):
        tuned.append((len(configs), sizes))
        return kernel

    monkeypatch.setattr(launch, "_tuned", tune)
    launched(Kernel()).run()
    assert not tuned
    monkeypatch.setenv(launch.AUTOTUNE, "1")
    launched(TunedKernel()).run()
    assert tuned == [(3, ("n", "WIDTH"))]
