"""Launch plans and packed weights as plain data: no compiler for kernels, no device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dssnet_fast.backends.cuda.engine import network_of
from dssnet_fast.backends.cuda.operands import operands
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import fold_checkpoint
from laboratory import Laboratory
from networks import CONFIGS, random_network
from ptx.plans import DEVICES, device_properties

PAPER = DSSNetConfig(super_resolution=False, edge=False)
ALL = ("uint8", "labels")


def make(native, config, shape, stage="all", precision="fp16", form=ALL, device="H100", **changes):
    properties = device_properties(native, device, **changes)
    network = network_of(config, native)
    return native.plan(network, stage, *shape, precision, *form, properties)


def chain_tile(plan):
    return next(x.kernel for x in plan.launches if x.kernel.startswith("wneck")).split("_")[1]


def test_the_released_network_takes_sixteen_launches(native):
    plan = make(native, PAPER, (1, 512, 512))
    names = [launch.kernel for launch in plan.launches]
    assert names[:3] == ["stem_down_fp16", "down_fp16", "down_fp16"]
    assert len([name for name in names if name.startswith("wneck")]) == 11
    assert names[-2:] == ["fuse_nearest_fp16", "segment_two_fp16"]
    assert len(names) == 16


def test_tiles_grow_with_the_batch(native):
    assert chain_tile(make(native, PAPER, (1, 512, 512))) == "4x8"
    assert chain_tile(make(native, PAPER, (16, 512, 512))) == "8x16"
    assert chain_tile(make(native, PAPER, (1, 512, 512), multiprocessors=20)) == "8x16"


def test_what_plans_ask_for_is_what_devices_have(native):
    configs = [*CONFIGS.values(), PAPER, DSSNetConfig(features=128, width=9, blocks=1)]
    for config, (name, facts) in itertools.product(configs, DEVICES.items()):
        if config.block != "wneck":
            continue
        for batch, form in itertools.product((1, 16), (ALL, ("float32", "probabilities"))):
            plan = make(native, config, (batch, 256, 264), form=form, device=name)
            for launch in plan.launches:
                assert launch.shared_bytes <= facts["shared"][0]
                assert launch.threads % 32 == 0
                assert 0 < launch.threads <= 1024
                assert len(launch.parameters) <= 4096


def test_every_address_is_set_and_nothing_else(native):
    plan = make(native, PAPER, (2, 64, 72), form=("float32", "logits"))
    sizes = {buffer.name: buffer.bytes for buffer in plan.buffers}
    assert sizes["image"] == 2 * 64 * 72 * 3 * 4
    assert sizes["answer"] == 2 * 64 * 72 * 2 * 4
    for launch in plan.launches:
        offsets = [relocation.offset for relocation in launch.relocations]
        assert len(set(offsets)) == len(offsets)
        for relocation in launch.relocations:
            at = relocation.offset
            assert at % 8 == 0
            assert launch.parameters[at : at + 8] == bytes(8)
            assert relocation.addend < plan.buffers[relocation.buffer].bytes


def test_buffers_alive_at_once_do_not_share_memory(native):
    plan = make(native, PAPER, (1, 512, 512))
    life = {}
    for number, launch in enumerate(plan.launches):
        for relocation in launch.relocations:
            start, _ = life.get(relocation.buffer, (number, number))
            life[relocation.buffer] = start, number
    work = [i for i, b in enumerate(plan.buffers) if b.role.name == "workspace"]
    for i, j in itertools.combinations(work, 2):
        a, b = plan.buffers[i], plan.buffers[j]
        if life[i][0] <= life[j][1] and life[j][0] <= life[i][1]:
            assert a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset, (a, b)
    assert max(plan.buffers[i].offset + plan.buffers[i].bytes for i in work) <= plan.workspace_bytes
    # Sharing is worth it: all of them side by side would take more than twice the room.
    assert plan.workspace_bytes < sum(plan.buffers[i].bytes for i in work) / 2


def test_written_tensors_of_a_512_image_stay_below_20_megabytes(native):
    plan = make(native, PAPER, (1, 512, 512))
    assert sum(b.bytes for b in plan.buffers if b.role.name == "workspace") <= 20e6


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((0, 64, 64), "batch must be at least 1"),
        ((1, 60, 64), "multiples of 8"),
        ((1, 64, 0), "multiples of 8"),
        ((70_000, 8, 8), "too large or too many"),
        ((1, 65_536, 65_536), "2\\^30 pixels"),
    ],
)
def test_shapes_that_cannot_be(native, shape, says):
    with pytest.raises(native.PlanError, match=says):
        make(native, PAPER, shape)


def test_a_device_with_too_little_shared_memory(native):
    with pytest.raises(native.PlanError, match=r"needs \d+ bytes of shared memory"):
        make(native, DSSNetConfig(features=128), (1, 64, 64), shared_bytes_block=49_152)


def test_unknown_words(native):
    for changes, says in (
        ({"stage": "middle"}, "stage must be one of all"),
        ({"precision": "fp8"}, "precision must be one of fp16, bf16"),
        ({"form": ("uint16", "labels")}, "input must be one of"),
        ({"form": ("uint8", "masks")}, "output must be one of"),
    ):
        with pytest.raises(ValueError, match=says):
            make(native, PAPER, (1, 64, 64), **changes)


# --- packed weights -------------------------------------------------------------------------------


def matrices(config, native):
    folded = fold_checkpoint(from_state(released_state(random_network(config))))
    network = network_of(config, native)
    return network, operands(folded, native.Sizes(network))


@pytest.mark.parametrize("name", [k for k, c in CONFIGS.items() if c.block == "wneck"])
def test_operands_have_the_shapes_that_the_kernels_read(native, name):
    network, found = matrices(CONFIGS[name], native)
    assert {key: value.shape for key, value in found.items()} == native.operand_shapes(network)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_rounding_is_that_of_torch(native, precision, dtype):
    network, found = matrices(CONFIGS["gray"], native)
    rng = np.random.default_rng(0)
    exponents = rng.uniform(-30, 18, found["segment.narrow"].shape)
    values = (rng.choice([-1, 1], exponents.shape) * 2.0**exponents).astype(np.float32)
    special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e30, 2**-24, 2**-25, 1.00048828125, np.nan]
    values.flat[: len(special)] = special
    packed = native.pack(network, precision, {**found, "segment.narrow": values})
    rounded = torch.from_numpy(values).to(dtype).view(torch.int16).numpy()
    # Packing moves numbers about and changes none: the same ones, however often each occurs.
    clean = native.pack(network, precision, {**found, "segment.narrow": np.zeros_like(values)})
    packed, clean = np.frombuffer(packed, np.int16), np.frombuffer(clean, np.int16)
    changed = packed[packed != clean]
    wanted = rounded[rounded != 0]
    finite = ~np.isnan(torch.from_numpy(wanted).view(dtype).float().numpy())
    assert len(changed) == len(wanted)
    nans = np.isnan(torch.from_numpy(changed.copy()).view(dtype).float().numpy())
    assert nans.sum() == (~finite).sum() == 1
    assert sorted(changed[~nans]) == sorted(wanted[finite])


def test_packing_is_the_fragment_order_of_mma(native):
    # PTX ISA, m16n8k16, B: register r of lane l holds k = 8 r + 2 (l % 4) + {0, 1}, n = l / 4.
    network, found = matrices(PAPER, native)
    zeros = {name: np.zeros_like(value) for name, value in found.items()}
    matrix = np.arange(288 * 24, dtype=np.float32).reshape(288, 24) % 2039 + 1
    packed = np.frombuffer(
        native.pack(network, "fp16", {**zeros, "segment.narrow": matrix}), np.float16
    )
    packed = packed[np.flatnonzero(packed)[0] :][: matrix.size].astype(np.float32)
    step = packed.reshape(18, 3 * 128)[5]
    rows = matrix[5 * 16 : 6 * 16]
    pair = step[: 2 * 128].reshape(32, 2, 2, 2)  # two tiles: lane, tile, register, half
    single = step[2 * 128 :].reshape(32, 1, 2, 2)
    for lane, tile, register, half in itertools.product(range(32), range(3), range(2), range(2)):
        block = pair[lane, tile] if tile < 2 else single[lane, 0]
        k, n = 8 * register + 2 * (lane % 4) + half, 8 * tile + lane // 4
        assert block[register, half] == rows[k, n]


def test_missing_and_misshapen_operands(native):
    network, found = matrices(CONFIGS["gray"], native)
    with pytest.raises(ValueError, match=r"no values for the operand extract\.head"):
        native.pack(network, "fp16", {k: v for k, v in found.items() if k != "extract.head"})
    with pytest.raises(ValueError, match=r"operand segment.narrow must have shape \[288, 24\]"):
        native.pack(network, "fp16", {**found, "segment.narrow": found["segment.narrow"][:-1]})


def test_laboratory_refuses_inputs_of_the_wrong_size(native):
    laboratory = Laboratory(native, random_network(CONFIGS["gray"]))
    with pytest.raises(ValueError, match="image has 64 bytes, got 32"):
        laboratory.run("downsample", (1, 8, 8), np.zeros((1, 8, 4, 1), np.uint8))
