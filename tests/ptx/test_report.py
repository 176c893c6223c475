"""The report of a run on the executor: its counts, its arithmetic, its complaints."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dssnet_fast import macs
from dssnet_fast.backends import native
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import fold_checkpoint
from networks import CONFIGS, SMALL, noise, random_network
from ptx import count_cuda, count_triton, counting, report, sass, summary
from ptx.minimum import launch_macs, layer_macs, minimum_macs
from ptx.roofline import GPUS, Work, bounds, residency, rounds
from ptx.toolchain import KernelResources, ToolError, find_tool

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 64, 96
PAPER = DSSNetConfig(classes=3, super_resolution=False, edge=False)


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of the paper's sizes with two blocks, a small one, and an image."""
    folder = tmp_path_factory.mktemp("report")
    for name, changes in {"paper": {"blocks": 2, "classes": 3}, "small": SMALL}.items():
        network = random_network(DSSNetConfig(**changes))
        torch.save(released_state(network), folder / f"{name}.pt")
    Image.fromarray(noise(80, 100, 3)).save(folder / "noise.png")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """No compiling: assembling all kernels for three GPUs takes longer than running them."""
    monkeypatch.setattr(summary, "resources", lambda run: None)
    monkeypatch.setattr(summary, "sass_loops", lambda run, capability: None)


@pytest.fixture
def ready(kernels):
    if native.problem() is not None:
        pytest.skip(f"the report needs the extension: {native.problem()}")


def main(files, *arguments, checkpoint="paper.pt", image="noise.png"):
    paths = ["--checkpoint", files / checkpoint, "--image", files / image]
    return report.main([str(a) for a in (*paths, *arguments)])


def run(files, tmp_path, *arguments, **options):
    path = tmp_path / "report.json"
    assert main(files, *arguments, "--json", path, **options) == 0
    return json.loads(path.read_text())


@pytest.mark.usefixtures("ready", "quick")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_run_of_the_whole_network(files, tmp_path, capsys, precision):
    logits = tmp_path / "logits.npy"
    crop = f"{HEIGHT}x{WIDTH}"
    found = run(files, tmp_path, "--crop", crop, "--precision", precision, "--save-logits", logits)
    assert np.load(logits).shape == (1, HEIGHT, WIDTH, 3)
    accuracy = found["accuracy"]
    assert 0 < accuracy["error"] <= accuracy["torch_error"]
    assert 0.9 < accuracy["labels"] <= 1
    assert accuracy["labels_are_argmax"]
    rows = {row["kernel"]: row for row in found["kernels"]}
    names = ["stem_down", "down", "wneck_4x8", "fuse_nearest", "segment"]
    assert list(rows) == [f"{name}_{precision}" for name in names]
    assert [row["launches"] for row in rows.values()] == [1, 2, 3, 1, 1]
    assert found["totals"]["launches"] == 8
    printed = capsys.readouterr()
    assert printed.out.count("model, not a measurement") == 4
    assert "Registers and residency: not here" in printed.out
    assert printed.err.splitlines()[0].startswith(f"1/9 stem_down_{precision} ")

    # The down-samplers by hand: tiles of 8 x 8 of a 16 x 24 and an 8 x 12 map, 9 taps, 30
    # channels that are stored as 32.
    down = rows[f"down_{precision}"]
    assert down["blocks"] == [6, 2]
    assert down["macs"] == (6 + 2) * 64 * 9 * 32 * 32
    assert down["mma"] == down["macs"] / (16 * 8 * 16)
    assert down["minimum"] == (16 * 24 + 8 * 12) * 9 * 30 * 30
    written = (16 * 24 + 8 * 12) * 32 * 2
    weights = 9 * 32 * 32 * 2 + 32 * 4
    assert down["unique_written"] == down["intermediate"] == written
    assert down["unique_read"] == (32 * 48 + 16 * 24) * 32 * 2 + 2 * weights
    # Weights and maps are copied in whole sectors, but for the image's border.
    assert 0.95 < down["useful_share"] <= 1
    # What segment writes is the answer.
    assert rows[f"segment_{precision}"]["intermediate"] == 0
    assert rows[f"segment_{precision}"]["unique_written"] == HEIGHT * WIDTH
    assert found["totals"]["intermediate_bytes"] == sum(r["intermediate"] for r in rows.values())
    for row in rows.values():
        assert row["macs"] >= row["minimum"]
        assert row["wavefronts"] >= row["ideal"] > 0
        assert 0 < row["useful_share"] <= 1
        for gpu in row["gpus"].values():
            assert gpu["seconds"]["datasheet"] >= gpu["seconds"]["tensor"] > 0
            assert gpu["seconds"]["mma_sync"] >= gpu["seconds"]["datasheet"]


@pytest.mark.usefixtures("ready", "quick")
def test_the_first_image_stands_for_all(files, tmp_path):
    options = ("--crop", "40x32", "--batch", 3)
    every = run(files, tmp_path, *options, checkpoint="small.pt")
    first = run(files, tmp_path, *options, "--first-image-only", checkpoint="small.pt")
    assert first["kernels"] == every["kernels"]
    assert first["model"] == every["model"]
    assert first["accuracy"] == every["accuracy"]
    one = run(files, tmp_path, "--crop", "40x32", checkpoint="small.pt")
    assert [3 * row["macs"] for row in one["kernels"]] == [row["macs"] for row in every["kernels"]]
    assert every["totals"]["macs_an_image"] == one["totals"]["macs"]


def only_compile(monkeypatch, machine, field, wanted):
    """Ask the compilers for one kernel of a run; of the others nothing is known.

    Args:
        monkeypatch: The fixture.
        machine: The class of the run's machine.
        field: Where it has its kernels by name.
        wanted: The kernel's name.
    """
    ask, look = machine.compiled, machine.loops

    def split(own):
        kernels = getattr(own, field)
        some = dataclasses.replace(own, **{field: {wanted: kernels[wanted]}})
        return some, [name for name in kernels if name != wanted]

    def compiled(own, capability):
        some, rest = split(own)
        nothing = counting.Compiled(KernelResources(registers=128), 0)
        return ask(some, capability) | dict.fromkeys(rest, nothing)

    def loops(own, capability):
        some, rest = split(own)
        found = look(some, capability)
        return None if found is None else found | {name: [] for name in rest}

    monkeypatch.setattr(machine, "compiled", compiled)
    monkeypatch.setattr(machine, "loops", loops)


@pytest.mark.usefixtures("ready")
def test_compilers_are_asked_where_they_are(files, tmp_path, monkeypatch, capsys):
    if find_tool("ptxas") is None:
        pytest.skip("needs ptxas")
    # Of one module; the others say nothing new.
    only_compile(monkeypatch, count_cuda.CudaMachine, "ptx", "segment_fp16")
    found = run(files, tmp_path, "--crop", "32x32")
    gpu = found["kernels"][-1]["gpus"]["A100"]
    assert 32 <= gpu["resources"]["registers"] <= 128
    assert gpu["resources"]["spill_stores"] == gpu["resources"]["spill_loads"] == 0
    assert gpu["resident"]["registers"] == 2  # __launch_bounds__(256, 2) sees to that
    assert gpu["rounds"] == [1]
    assert gpu["waves"] == [1 / (108 * gpu["resident"]["all"])]
    printed = capsys.readouterr().out
    assert "| segment_fp16" in printed
    if find_tool("nvdisasm") is not None:
        # A 3 x 3 convolution of 32 channels to 24: three rows of 3 taps, 2 steps, 3 tiles, 3
        # fragments of pixels.
        assert 54 in [loop["mma"] for loop in found["kernels"][-1]["sass"]]


HEAD = "convolution head 3x3 16>16"


@pytest.fixture(scope="module")
def both(files):
    """Both kinds of kernels on two images: what is written and what is printed.

    Compilers are asked for one kernel in Triton and for none in CUDA.
    """
    pytest.importorskip("triton")
    if native.problem() is not None:
        pytest.skip(f"the report needs the extension: {native.problem()}")

    def fail(own, capability):
        raise ToolError("is not asked")

    path, printed = files / "both.json", io.StringIO()
    options = ("--crop", "64x64", "--batch", 2, "--kernels", "both", "--json", path)
    with pytest.MonkeyPatch.context() as patches, contextlib.redirect_stdout(printed):
        patches.setattr(count_cuda.CudaMachine, "compiled", fail)
        patches.setattr(count_cuda.CudaMachine, "loops", fail)
        only_compile(patches, count_triton.TritonMachine, "launches", HEAD)
        assert main(files, *options, checkpoint="small.pt") == 0
    return json.loads(path.read_text())["runs"], printed.getvalue()


@pytest.mark.usefixtures("kernels")
def test_both_kinds_side_by_side(both):
    found, printed = both
    assert list(found) == ["cuda", "triton"]
    for kind, one in found.items():
        assert one["run"]["kernels"] == kind
        assert 0 < one["accuracy"]["error"] <= one["accuracy"]["torch_error"]
        assert one["accuracy"]["labels_are_argmax"]
        for field in ("launches", *summary.SUMMED):
            whole = one["totals"][field]
            assert sum(row[field] for row in one["stages"]) == whole
            assert sum(row[field] for row in one["kernels"]) == whole
    assert [[row["launches"] for row in one["stages"]] for one in found.values()] == [
        [1, 2, 3, 1, 1],
        [1, 2, 5, 3, 2],
    ]
    cuda, triton = (
        [(row["stage"], row["minimum"]) for row in one["stages"]] for one in found.values()
    )
    assert cuda == triton
    table = printed[printed.index("Side by side") :].splitlines()
    rows = [line.split(" | ") for line in table if line.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == ["cuda", "triton"] * 6
    assert [row[2].strip() for row in rows] == [*"1122351312", "8", "13"]
    for row, one in zip(rows[-2:], found.values(), strict=True):
        assert row[12].strip() == f"{one['accuracy']['error']:.2e}"
        assert float(row[3]) == round(one["totals"]["macs"] / 1e9, 4)


@pytest.mark.usefixtures("kernels")
def test_counts_of_a_triton_kernel_by_hand(both):
    rows = both[0]["triton"]["kernels"]
    row = {row["kernel"]: row for row in rows}[HEAD]
    # Two images of 64 cells; 9 taps, 9 channels to 8, stored as 16 and 16.
    assert row["launches"] == 1
    assert row["macs"] == 2 * 64 * 9 * 16 * 16
    assert row["mma"] == row["macs"] / (16 * 8 * 16)
    assert row["minimum"] == 2 * 64 * 9 * 9 * 8
    assert row["unique_written"] == row["intermediate"] == 2 * 64 * 16 * 2
    assert row["unique_read"] == 2 * 64 * 16 * 2 + 9 * 16 * 16 * 2 + 16 * 4
    # What the last kernel writes is the answer.
    assert rows[-1]["kernel"] == "classify"
    assert rows[-1]["unique_written"] == 2 * 64 * 64
    assert rows[-1]["intermediate"] == 0


@pytest.mark.usefixtures("kernels")
def test_compilers_are_asked_for_triton(both):
    if find_tool("cuobjdump") is None or find_tool("nvdisasm") is None:
        pytest.skip("needs cuobjdump and nvdisasm")
    found, printed = both
    row = {row["kernel"]: row for row in found["triton"]["kernels"]}[HEAD]
    for gpu in row["gpus"].values():
        assert 16 <= gpu["resources"]["registers"] <= 255
        assert gpu["resources"]["shared"] == 0
        assert gpu["resident"]["all"] > 0
    # What the executor launched is the A100's kernel.
    assert row["gpus"]["A100"]["dynamic_shared"] == row["dynamic_shared"] > 0
    # 64 pixels and four warps are what Hopper multiplies at once.
    assert sum(loop["wgmma"] for loop in row["sass"]) > 0
    assert sum(loop["mma"] for loop in row["sass"]) == 0
    assert printed.count("HGMMA)") == len(row["sass"])
    assert "| stack bytes |" in printed


@pytest.mark.usefixtures("kernels", "quick")
def test_the_first_image_stands_for_all_in_triton(files, tmp_path, both):
    every = both[0]["triton"]
    options = ("--crop", "64x64", "--batch", 2, "--kernels", "triton", "--first-image-only")
    first = run(files, tmp_path, *options, checkpoint="small.pt")
    for same in ("stages", "model", "accuracy"):
        assert first[same] == every[same]
    for ours, theirs in zip(first["kernels"], every["kernels"], strict=True):
        assert all(ours[field] == theirs[field] for field in ("blocks", *summary.SUMMED))
    for total in ("macs_an_image", "workspace_bytes", "weight_bytes"):
        assert first["totals"][total] == every["totals"][total]


def test_blocks_with_pixels_of_two_images_stand_for_nothing():
    def launch(pixels):
        return types.SimpleNamespace(
            configs=[types.SimpleNamespace(blocks={"BLOCK_M": 64})], arguments={"cells": pixels}
        )

    count_triton._require_whole_blocks("restore", launch(128))
    with pytest.raises(InputError, match="blocks of restore would hold pixels of two images"):
        count_triton._require_whole_blocks("restore", launch(96))


def test_float32_is_multiplied_in_parts_of_tf32(files, monkeypatch):
    pytest.importorskip("triton")

    def stop(program, inputs, outputs, **options):
        maps = {name: torch.empty(m.shape, dtype=m.dtype) for name, m in program.maps.items()}
        launches = [step.make({**maps, **inputs, **outputs}) for step in program.steps]
        assert {launch.constants["PRECISION"] for launch in launches} == {"tf32x3"}
        assert {launch.arguments["weight_ptr"].dtype for launch in launches[1:]} == {torch.float32}
        raise InputError("seen enough")

    monkeypatch.setattr(count_triton, "run_program", stop)
    arguments = ("--kernels", "triton", "--precision", "fp32", "--crop", "16x16")
    with pytest.raises(InputError, match="seen enough"):
        main(files, *arguments, "--debug", checkpoint="small.pt")


@pytest.mark.large
@pytest.mark.usefixtures("quick")
def test_float32_and_other_blocks(files, tmp_path):
    pytest.importorskip("triton")
    network = random_network(DSSNetConfig(**SMALL, block="basic"))
    torch.save(released_state(network), files / "basic32.pt")
    options = ("--crop", "16x16", "--kernels", "triton", "--precision", "fp32")
    found = run(files, tmp_path, *options, checkpoint="basic32.pt")
    assert found["accuracy"]["error"] < 1e-6
    rows = {row["kernel"]: row for row in found["kernels"]}
    row = rows["convolution block.second 3x3 16>16"]
    # One block of 64 cells for each of two launches, three products for each.
    assert row["macs"] == 2 * 3 * 64 * 9 * 16 * 16
    # TF32 has half the rate.
    gpu = GPUS["A100"]
    seconds = row["gpus"]["A100"]["seconds"]["tensor"]
    assert seconds == pytest.approx(2 * row["macs"] / gpu.macs / gpu.hertz)


def test_useful_bytes_are_counted_once_a_warp():
    lanes = np.arange(32)
    core = types.SimpleNamespace(lanes=64, lane_numbers=np.arange(64))
    everyone = counting.LaneSet(core, np.arange(32))
    assert counting.distinct_addresses(everyone, 4096 + 4 * lanes) == 32
    assert counting.distinct_addresses(everyone, np.full(32, 4096)) == 1
    assert counting.distinct_addresses(everyone, 4096 + 8 * (lanes % 4)) == 4
    two_warps = counting.LaneSet(core, np.arange(16, 48))
    assert counting.distinct_addresses(two_warps, np.full(32, 4096)) == 2


# --- arithmetic ----------------------------------------------------------------------------------


def test_minimum_of_the_papers_network():
    found = minimum_macs(PAPER, 1, 512, 512)
    assert len(found) == 16
    by_stage = {}
    for kernel, count in found:
        by_stage[kernel] = by_stage.get(kernel, 0) + count / 1e9
    # 10^9, by hand: stem and 5x5; two down-samplers; head and ten blocks; 1x1, nine products and
    # 100 taps; 32 -> 20 and the sub-pixel convolution.
    assert by_stage["stem_down"] == pytest.approx(0.2123 + 0.1475, abs=1e-4)
    assert by_stage["down"] == pytest.approx(0.1327 + 0.0332, abs=1e-4)
    assert by_stage["wneck"] == pytest.approx(0.0464 + 5.5275, abs=1e-4)
    assert by_stage["fuse_nearest"] == pytest.approx(0.0289 + 0.2601 + 1.1010, abs=1e-4)
    assert by_stage["segment"] == pytest.approx(0.3775 + 0.1416, abs=1e-4)
    assert sum(by_stage.values()) == pytest.approx(8.01, abs=0.005)
    assert minimum_macs(PAPER, 2, 256, 512) == found


@pytest.mark.parametrize("upsampling", ["nearest", "pixel_shuffle"])
def test_minimum_where_the_torch_backend_computes_the_same_form(upsampling):
    config = DSSNetConfig(
        width=9, features=11, blocks=3, upsampling=upsampling, super_resolution=False, edge=False
    )
    folded = macs.folded(config, 64, 96)
    found = minimum_macs(config, 1, 64, 96)
    assert sum(n for kernel, n in found if kernel == "wneck") == folded["extract"]
    if upsampling == "pixel_shuffle":
        assert found[-2] == ("fuse_shuffle", folded["fuse"])


# In float32 W-NECK blocks are three convolutions.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float16) for name in CONFIGS), ("gray", torch.float32)],
)
def test_minimum_of_triton_launches(name, dtype):
    pytest.importorskip("triton")
    from dssnet_fast.backends.triton.operands import pack
    from dssnet_fast.backends.triton.stages import program

    config = dataclasses.replace(CONFIGS[name], super_resolution=False, edge=False)
    layers = layer_macs(config, 1, 64, 96)
    if config.block == "wneck":
        assert sum(layers.values()) == sum(n for _, n in minimum_macs(config, 1, 64, 96))
    folded = fold_checkpoint(from_state(released_state(random_network(config))))
    network = pack(folded, torch.device("cpu"), dtype, "ieee")
    steps = program(network, "infer", (1, 64, 96), "labels")
    maps = {name: torch.empty(m.shape, dtype=m.dtype) for name, m in steps.maps.items()}
    maps["image"] = torch.empty((1, 64, 96, config.in_channels), dtype=torch.uint8)
    maps["answer"] = torch.empty((1, 64, 96), dtype=torch.uint8)
    each, stages = [], {}
    for step in steps.steps:
        launch = step.make(maps)
        weights = count_triton.weights_of(launch, network)
        each.append((count_triton.launch_name(launch, weights), launch_macs(weights, layers)))
        stage = weights[0].split(".")[0]
        stages[stage] = stages.get(stage, 0) + each[-1][1]
    assert all(minimum > 0 for _, minimum in each)
    assert sum(minimum for _, minimum in each) == sum(layers.values())
    assert len({minimum for found, minimum in each if found == "restore"}) <= 1
    # The torch backend computes these in the same form.
    theirs = macs.folded(config, 64, 96)
    assert stages["extract"] == theirs["extract"]
    if config.upsampling == "pixel_shuffle":
        assert stages["fuse"] == theirs["fuse"]


def test_bounds_by_hand():
    gpu = GPUS["A100"]
    work = Work(
        blocks=216,
        macs=216 * 1024 * 1410,
        wavefronts=216 * 2 * 1410,
        instructions=216 * 4 * 3 * 1410,
        sectors=160 * 1410,
        unique_bytes=2_039_000,
    )
    # 216 blocks on 108 multiprocessors: two each. 1410 clocks are a microsecond.
    found = {name: 1e6 * seconds for name, seconds in bounds(work, gpu).items()}
    assert found == pytest.approx({"tensor": 2, "shared": 4, "issue": 6, "dram": 1, "l2": 1})
    assert "l2" not in bounds(work, GPUS["H100"])


def test_one_block_more_is_one_round_more():
    gpu = GPUS["H100"]
    assert [rounds(blocks, gpu) for blocks in (1, 132, 133, 264, 265)] == [1, 1, 2, 2, 3]
    full = Work(132, 132 * 1000, 0, 0, 0, 0)
    more = Work(133, 133 * 1000, 0, 0, 0, 0)
    assert bounds(more, gpu)["tensor"] == pytest.approx(2 * bounds(full, gpu)["tensor"])


@pytest.mark.parametrize(
    ("name", "registers", "threads", "shared", "limits"),
    [
        # 100 registers: 3,328 a warp with rounding, 4 of a scheduler's 16,384, 16 warps.
        ("A100", 100, 256, 24_704, {"registers": 2, "shared": 6, "warps": 8, "all": 2}),
        ("RTX 4090", 100, 256, 24_704, {"registers": 2, "shared": 3, "warps": 6, "all": 2}),
        # 168 registers: 5,376 a warp, 3 of a scheduler's, 12 warps.
        ("H100", 168, 256, 79_200, {"registers": 1, "shared": 2, "warps": 8, "all": 1}),
        ("H100", 40, 128, 200_000, {"registers": 12, "shared": 1, "warps": 16, "all": 1}),
        # 3,840 a warp: 4 of each scheduler's, though the whole file has room for 17.
        ("A100", 120, 32, 0, {"registers": 16, "shared": 164, "warps": 32, "all": 16}),
        ("RTX 4090", 16, 32, 0, {"registers": 128, "shared": 100, "warps": 24, "all": 24}),
        ("A100", 32, 32, 100, {"registers": 64, "shared": 145, "warps": 32, "all": 32}),
    ],
)
def test_residency(name, registers, threads, shared, limits):
    resources = KernelResources(registers=registers)
    assert residency(resources, threads, shared, GPUS[name]) == limits


def test_datasheets():
    # Dense fp16 with fp32 accumulation, TFLOPS.
    for name, teraflops in {"A100": 312, "H100": 989.4, "RTX 4090": 165.2}.items():
        gpu = GPUS[name]
        rate = 2 * gpu.macs * gpu.multiprocessors * gpu.hertz / 1e12
        assert rate == pytest.approx(teraflops, rel=1e-3)


SASS = """
//--------------------- .text.work --------------------------
\t.section\t.text.work,"ax",@progbits
work:
.text.work:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0030*/              @!P0 IADD3 R2, R2, 0x1, RZ ;
        /*0040*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/                   STS [R2], R3 ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
        /*0090*/                   EXIT ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4);
        /*00b0*/                   NOP;
//--------------------- .text.straight --------------------------
\t.section\t.text.straight,"ax",@progbits
.text.straight:
        /*0000*/                   HMMA.1688.F32 R8, R4, R6, R8 ;
        /*0010*/                   EXIT ;
        /*0020*/                   NOP;
//--------------------- .text.hopper --------------------------
.text.hopper:
.L_x_5:
        /*0000*/                   WARPGROUP.ARRIVE ;
        /*0010*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8], R24, gsb0 ;
        /*0020*/               @P0 BRA `(.L_x_5) ;
        /*0030*/                   EXIT ;
//--------------------- .text.none --------------------------
.text.none:
        /*0000*/                   EXIT ;
"""


def test_innermost_loops():
    assert sass.innermost_loops(SASS) == {
        "work": [sass.Loop(instructions=4, mma=2)],
        "straight": [sass.Loop(instructions=2, mma=1)],
        "hopper": [sass.Loop(instructions=3, mma=0, wgmma=1)],
    }


# --- what can be wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "none.pt"}, "none.pt: no such file"),
        ({"image": "none.png"}, "none.png"),
        ({"checkpoint": "noise.png"}, "is not a checkpoint"),
    ],
)
def test_files_that_cannot_be_read(files, capsys, options, message):
    assert main(files, **options) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_crop_larger_than_the_image(files, capsys):
    assert main(files, "--crop", "80x104") == 1
    assert "--crop 80x104 is larger than the image, 80x100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crop", "512"], "must be HxW"),
        (["--crop", "0x8"], "must be HxW"),
        (["--batch", "0"], "must be at least 1"),
        (["--device", "V100"], "invalid choice"),
        (["--precision", "int8"], "invalid choice"),
        (["--kernels", "cuda,opencl"], "must be cuda, triton or both"),
    ],
)
def test_wrong_arguments(files, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(files, *arguments)
    assert message in capsys.readouterr().err


def test_kernels_by_name():
    assert report.kernels("both") == report.kernels("cuda,triton") == ("cuda", "triton")
    assert report.kernels("triton") == ("triton",)
    assert report.make_parser().get_default("kernels") == "cuda"


def test_logits_of_two_kinds_are_not_saved(files, tmp_path, capsys):
    arguments = ("--kernels", "both", "--save-logits", tmp_path / "logits.npy")
    assert main(files, *arguments) == 1
    assert "--save-logits takes those of one kind" in capsys.readouterr().err


@pytest.mark.usefixtures("ready")
def test_a_precision_that_the_cuda_kernels_do_not_have(files, capsys):
    assert main(files, "--precision", "fp32") == 1
    assert "compute in fp16 and bf16, not in fp32" in capsys.readouterr().err


def test_without_triton(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dssnet_fast.backends.triton.operands", None)
    assert main(files, "--kernels", "triton") == 1
    assert "needs Triton, which cannot be imported" in capsys.readouterr().err


def test_without_the_extension(files, capsys, monkeypatch):
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    assert main(files) == 1
    assert "nothing is compiled here" in capsys.readouterr().err


@pytest.mark.usefixtures("ready")
def test_without_images_and_compiler(files, capsys, monkeypatch):
    def fail(module):
        raise FileNotFoundError("needs nvcc")

    monkeypatch.setattr(count_cuda, "shipped_kernels", fail)
    assert main(files) == 1
    assert (
        "no kernel images are installed, and compiling them needs nvcc" in capsys.readouterr().err
    )


@pytest.mark.usefixtures("ready")
def test_a_network_that_the_kernels_do_not_compute(files, capsys):
    network = random_network(DSSNetConfig(**SMALL, block="basic"))
    torch.save(released_state(network), files / "basic.pt")
    assert main(files, checkpoint="basic.pt") == 1
    assert "this network has basic blocks" in capsys.readouterr().err


def test_pixels_are_cropped_and_extended(files):
    pixels = report.read_pixels(files / "noise.png", 3, (60, 92))
    assert pixels.shape == (64, 96, 3)
    assert np.array_equal(pixels[:60, :92], noise(80, 100, 3)[:60, :92])
    assert (pixels[60:] == 128).all()
    assert (pixels[:, 92:] == 128).all()
