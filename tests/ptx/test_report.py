"""The report of a run on the executor: its counts, its arithmetic, its complaints."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dssnet_fast import macs
from dssnet_fast.backends.cuda import native
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.released import released_state
from networks import SMALL, noise, random_network
from ptx import report, sass
from ptx.minimum import minimum_macs
from ptx.roofline import GPUS, Work, bounds, residency, rounds
from ptx.toolchain import KernelResources, find_tool

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
    monkeypatch.setattr(report, "resources", lambda run: None)
    monkeypatch.setattr(report, "sass_loops", lambda run, capability: None)


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


@pytest.mark.usefixtures("ready")
def test_compilers_are_asked_where_they_are(files, tmp_path, monkeypatch, capsys):
    if find_tool("ptxas") is None:
        pytest.skip("needs ptxas")
    # Of one module; the others say nothing new.
    ask, look = report.resources, report.sass_loops

    def only_segment(run):
        name = "segment_fp16"
        return types.SimpleNamespace(ptx={name: run.ptx[name]}), [k for k in run.ptx if k != name]

    def resources(run):
        some, rest = only_segment(run)
        return {
            gpu: own | dict.fromkeys(rest, KernelResources(registers=128))
            for gpu, own in ask(some).items()
        }

    def loops(run, capability):
        some, rest = only_segment(run)
        found = look(some, capability)
        return None if found is None else found | {name: [] for name in rest}

    monkeypatch.setattr(report, "resources", resources)
    monkeypatch.setattr(report, "sass_loops", loops)
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


def test_useful_bytes_are_counted_once_a_warp():
    lanes = np.arange(32)
    core = types.SimpleNamespace(lanes=64, lane_numbers=np.arange(64))
    everyone = report.LaneSet(core, np.arange(32))
    assert report.distinct_addresses(everyone, 4096 + 4 * lanes) == 32
    assert report.distinct_addresses(everyone, np.full(32, 4096)) == 1
    assert report.distinct_addresses(everyone, 4096 + 8 * (lanes % 4)) == 4
    two_warps = report.LaneSet(core, np.arange(16, 48))
    assert report.distinct_addresses(two_warps, np.full(32, 4096)) == 2


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
//--------------------- .text.none --------------------------
.text.none:
        /*0000*/                   EXIT ;
"""


def test_innermost_loops():
    assert sass.innermost_loops(SASS) == {
        "work": [sass.Loop(instructions=4, mma=2)],
        "straight": [sass.Loop(instructions=2, mma=1)],
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
        (["--precision", "fp32"], "invalid choice"),
    ],
)
def test_wrong_arguments(files, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(files, *arguments)
    assert message in capsys.readouterr().err


def test_kernels_that_do_not_exist_yet(files, capsys):
    assert main(files, "--kernels", "triton") == 2
    assert capsys.readouterr().err == "tests.ptx.report: there are no triton kernels yet\n"


def test_without_the_extension(files, capsys, monkeypatch):
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    assert main(files) == 1
    assert "nothing is compiled here" in capsys.readouterr().err


@pytest.mark.usefixtures("ready")
def test_without_images_and_compiler(files, capsys, monkeypatch):
    def fail(module):
        raise FileNotFoundError("needs nvcc")

    monkeypatch.setattr(report, "shipped_kernels", fail)
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
