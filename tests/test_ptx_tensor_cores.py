"""mma, ldmatrix, stmatrix and cp.async: fragment layouts, pipelines, and what makes them fast."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from ptx import AsyncCopyHazard, Buffer, DeviceMemory, UnsupportedInstruction, load, run
from ptx.samples import HEAD, compiled, execute, launch, needs_nvcc, output

# Shape and type of mma -> k, and how many elements a register holds.
KINDS = {
    "m16n8k8.f16": (8, 2),
    "m16n8k16.f16": (16, 2),
    "m16n8k8.bf16": (8, 2),
    "m16n8k16.bf16": (16, 2),
    "m16n8k4.tf32": (4, 1),
    "m16n8k8.tf32": (8, 1),
    "m16n8k16.s8": (16, 4),
    "m16n8k32.s8": (32, 4),
    "m16n8k32.u8": (32, 4),
}
STORED = {"f16": np.float16, "bf16": np.uint16, "tf32": np.float32, "s8": np.int8, "u8": np.uint8}


def random() -> np.random.Generator:
    return np.random.default_rng(1)


def stored(values: np.ndarray, typ: str) -> np.ndarray:
    """Small integers in a type of fragments; exact in all of them."""
    if typ == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(STORED[typ])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [32, 96])
def test_fragment_layouts(kind, threads):
    """Every element of A, B and C is put where the PTX ISA (9.7.14.5) says, lane by lane."""
    k, per = KINDS[kind]
    shape, typ = kind.split(".")
    low = 0 if typ == "u8" else -8
    warps = threads // 32
    a, b = random().integers(low, 9, (warps, 16, k)), random().integers(low, 9, (warps, k, 8))
    c = random().integers(-99, 100, (warps, 16, 8))
    lane = np.arange(32)
    group, t = lane // 4, lane % 4
    registers_a, registers_b = 16 * k // 32 // per, k * 8 // 32 // per
    fa = np.zeros((warps, 32, registers_a, per), STORED[typ])
    fb = np.zeros((warps, 32, registers_b, per), STORED[typ])
    for r in range(registers_a):
        for e in range(per):
            row, column = group + 8 * (r % 2), t * per + e + 4 * per * (r // 2)
            fa[:, :, r, e] = stored(a[:, row, column], typ)
    for r in range(registers_b):
        for e in range(per):
            fb[:, :, r, e] = stored(b[:, t * per + e + 4 * per * r, group], typ)
    integer = typ in ("s8", "u8")
    place = [(group + 8 * (i // 2), 2 * t + i % 2) for i in range(4)]
    fc = np.stack([c[:, row, column] for row, column in place], -1)
    fc = fc.astype(np.int32 if integer else np.float32)
    words = [f.reshape(threads, -1).view(np.uint32) for f in (fa, fb, fc)]
    names = [f"%a{i}" for i in range(registers_a + registers_b)]
    acc = "s32" if integer else "f32"
    text = f"""{HEAD}.visible .entry k(.param .u64 buffer) {{
        .reg .b32 %a<8>, %d<4>, %t; .reg .b64 %q;
        ld.param.u64 %q, [buffer]; mov.u32 %t, %tid.x;
        mad.wide.u32 %q, %t, {4 * (len(names) + 4)}, %q;
        {"".join(f"ld.global.u32 {n}, [%q + {4 * i}];" for i, n in enumerate(names))}
        {"".join(f"ld.global.u32 %d{i}, [%q + {4 * (len(names) + i)}];" for i in range(4))}
        mma.sync.aligned.{shape}.row.col.{acc}.{typ}.{typ}.{acc} {{%d0, %d1, %d2, %d3}},
            {{{", ".join(names[:registers_a])}}}, {{{", ".join(names[registers_a:])}}},
            {{%d0, %d1, %d2, %d3}};
        {"".join(f"st.global.u32 [%q + {4 * (len(names) + i)}], %d{i};" for i in range(4))}
        ret; }}"""
    data = np.ascontiguousarray(np.concatenate(words, axis=1))
    counters = run(text, "k", 1, threads, [data]).counters
    got = data[:, len(names) :].view(np.int32 if integer else np.float32).reshape(warps, 32, 4)
    want = a @ b + c
    for i, (row, column) in enumerate(place):
        assert np.array_equal(got[:, :, i], want[:, row, column]), i
    assert counters.tensor_macs == warps * 16 * 8 * k


def test_saturating_integer_accumulation():
    body = """mov.b32 %a1, 0x7F7F7F7F;
        mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%d0, %d1, %d2, %d3},
            {%a1, %a1, %a1, %a1}, {%a1, %a1}, {%a0, %a0, %a0, %a0};"""
    start = np.full(32, 2**31 - 5, np.uint32)
    assert (execute(body, start, results=4).view(np.int32) == 2**31 - 1).all()


@needs_nvcc
@pytest.mark.parametrize("shape", [(100, 72, 104), (64, 128, 64), (130, 64, 72)])
def test_pipelined_gemm(shape):
    M, N, K = shape
    a = random().standard_normal((M, K)).astype(np.float16)
    b = random().standard_normal((K, N)).astype(np.float16)
    y = output((M, N))
    grid = (-(-N // 64), -(-M // 64))
    c = launch("gemm.cu", "gemm_f16", grid, 128, [M, N, K, a, b, y], racecheck=True)
    assert np.allclose(y.array, a.astype(np.float32) @ b.astype(np.float32), atol=2e-4)
    tiles = grid[0] * grid[1] * -(-K // 32)
    assert c.tensor_macs == tiles * 64 * 64 * 32
    assert sum(c.mma.values()) == tiles * 64 * 64 * 32 // (16 * 8 * 16)
    assert c.ldmatrix.conflicts == 0  # rows are padded
    assert c.global_load.unique_bytes == a.nbytes + b.nbytes


@needs_nvcc
def test_int8_gemm():
    M, N, K = 32, 24, 96
    a = random().integers(-128, 128, (M, K)).astype(np.int8)
    b = random().integers(-128, 128, (N, K)).astype(np.int8)
    y = output((M, N), np.int32)
    launch("gemm.cu", "gemm_s8", (3, 2), 32, [N, K, a, b, y])
    assert np.array_equal(y.array, a.astype(np.int32) @ b.astype(np.int32).T)


@needs_nvcc
@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 37)])
@pytest.mark.parametrize("racecheck", [False, True])
def test_convolution_with_weights_in_fragment_order(height, width, racecheck):
    """A struct of addresses, buffers by name, B fragments straight from global memory."""
    random_ = random()
    x = random_.standard_normal((height, width, 48)).astype(np.float16)
    w = (random_.standard_normal((3, 3, 48, 64)) / 20).astype(np.float16)
    bias = random_.standard_normal(64).astype(np.float32)
    lane = np.arange(32)
    group, t = lane // 4, lane % 4
    rows = w.reshape(9 * 48, 64)
    fragments = np.zeros((27, 4, 32, 4, 2), np.float16)
    for s, j, r, e in np.ndindex(27, 4, 4, 2):
        k = s * 16 + 2 * t + e + 8 * (r & 1)
        fragments[s, j, :, r, e] = rows[k, j * 16 + 8 * (r >> 1) + group]
    memory = DeviceMemory()
    addresses = [
        memory.add(v, name=n, readonly=True)
        for n, v in (("x", x), ("weights", fragments), ("bias", bias))
    ]
    addresses.append(memory.add(nbytes=height * width * 64 * 2, name="y", uninit=True))
    struct_ = struct.pack("<QQQQiif4x", *addresses, height, width, 0.25)
    grid = (-(-width // 16), -(-height // 16))
    ptx = compiled("conv.cu")
    shared = 18 * 18 * 56 * 2
    c = run(ptx, "conv3x3", grid, 256, [struct_], shared, memory=memory, racecheck=racecheck)
    c = c.counters
    y = memory["y"].contents.view(np.float16).reshape(height, width, 64)
    want = reference_convolution(x, w, bias)
    want = np.where(want > 0, want, want * 0.25)
    assert np.allclose(y.astype(np.float32), want, atol=5e-3)
    blocks = grid[0] * grid[1]
    assert sum(c.mma.values()) == blocks * 8 * 27 * 16
    assert c.ldmatrix.conflicts == 0
    traffic = c.buffers
    assert set(traffic) == {"x", "weights", "bias", "y"}
    assert traffic["weights"].load.bytes == blocks * 8 * fragments.nbytes
    assert traffic["weights"].load.unique_bytes == fragments.nbytes
    assert traffic["weights"].load.sectors == blocks * 8 * fragments.nbytes // 32
    assert traffic["x"].load.unique_bytes == x.nbytes
    assert traffic["y"].store.bytes == traffic["y"].store.unique_bytes == y.nbytes
    assert traffic["y"].load.requests == traffic["x"].store.requests == 0


def reference_convolution(x, w, bias=None):
    """3x3, padding 1, [H, W, C] and [3, 3, CI, CO]."""
    x = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]
    w = torch.from_numpy(w.astype(np.float32)).permute(3, 2, 0, 1)
    bias = None if bias is None else torch.from_numpy(bias)
    return torch.nn.functional.conv2d(x, w, bias, padding=1)[0].permute(1, 2, 0).numpy()


MMA = """mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{d}}}, {{{a}}}, {{{b}}}, {{{d}}};"""


def product(d, a, b):
    """PTX of an mma on registers given by their first numbers."""
    return MMA.format(
        d=", ".join(f"%d{d + i}" for i in range(4)),
        a=f"%a{a}, %a{a}, %a{a}, %a{a}",
        b=f"%a{b}, %a{b}",
    )


def test_products_run_together_only_when_nothing_between_them_interferes():
    """Grouped or not, across a loop, a guarded mma, a late operand and an early result."""
    one, two = 0x3C003C00, 0x40004000
    setup = f"""mov.b32 %a0, {one}; mov.b32 %a1, {one}; mov.b32 %a2, {two}; mov.u32 %a3, 0;
        setp.lt.u32 %c0, %t, 32;"""
    setup += "".join(f"mov.b32 %d{i}, 0;" for i in range(12))
    body = f"""{setup}
        LOOP: {product(0, 0, 1)} {product(4, 0, 2)} @%c0 {product(0, 0, 1)} {product(0, 0, 1)}
        mov.b32 %a2, {one}; {product(8, 0, 2)} mov.b32 %a2, {two};
        add.u32 %a3, %a3, 1; setp.ge.u32 %c1, %a3, 2; @%c1 bra DONE;
        mov.b32 %a0, {two}; bra LOOP; DONE: add.f32 %d8, %d8, %d4;"""
    r = execute(body, np.zeros(64, np.uint32), results=9).view(np.float32)
    assert (r[0:4, :32] == 3 * (16 + 32)).all()
    assert (r[0:4, 32:] == 2 * (16 + 32)).all()
    assert (r[4:8] == 32 + 64).all()
    assert (r[8] == 16 + 32 + 32 + 64).all()


def test_fragments_follow_their_registers():
    """Operands that change between two products, and a result that is read before the next."""
    one, two = 0x3C003C00, 0x40004000
    body = f"""mov.b32 %a0, {one}; mov.b32 %a1, {one};
        {"".join(f"mov.b32 %d{i}, 0;" for i in range(14))}
        {product(0, 0, 1)} mov.b32 %a1, {two}; {product(4, 0, 1)} mov.b32 %a0, {two};
        {product(8, 0, 1)} {product(0, 0, 1)} mov.b32 %d12, %d4; {product(4, 0, 1)}
        mov.b32 %d13, %d4; mov.b32 %d4, 0; {product(4, 0, 1)}"""
    r = execute(body, np.zeros(32, np.uint32), results=14).view(np.float32)
    wanted = [16 + 64] * 4 + [64] + [32 + 64 + 64] * 3 + [64] * 4 + [32, 32 + 64]
    assert r[:, 0].tolist() == wanted
    assert (r == r[:, :1]).all()


def test_products_of_warps_that_part():
    """Two of three warps take the products, and half of them a second round."""
    one = 0x3C003C00
    body = f"""mov.b32 %a0, {one}; mov.b32 %a1, {one};
        mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0;
        mov.b32 %d4, 0; mov.b32 %d5, 0; mov.b32 %d6, 0; mov.b32 %d7, 0;
        setp.ge.u32 %c0, %t, 64; @%c0 bra DONE;
        AGAIN: {product(0, 0, 1)} {product(4, 0, 1)}
        setp.lt.u32 %c1, %t, 32; setp.eq.f32 %c2, %d0, 0f41800000; and.pred %c1, %c1, %c2;
        @%c1 bra AGAIN; DONE:"""
    r = execute(body, np.zeros(96, np.uint32), results=8).view(np.float32)
    assert (r[:, :32] == 32).all()
    assert (r[:, 32:64] == 16).all()
    assert (r[:, 64:] == 0).all()


def test_operands_that_are_the_same_in_every_block():
    """What blocks share is decoded once, what differs is not: A, B, both or neither."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 y, .param .u32 s) {{
        .reg .b32 %a<4>, %d<8>, %t, %c; .reg .b64 %p, %q; .reg .pred %z;
        ld.param.u64 %p, [x]; ld.param.u32 %a3, [s]; mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x;
        mul.lo.u32 %a2, %c, %a3; mad.lo.u32 %a2, %t, 4, %a2;
        cvt.u64.u32 %q, %a2; add.u64 %p, %p, %q; ld.global.nc.u32 %a0, [%p];
        ld.global.nc.u32 %a1, [%p + 1024]; ld.param.u64 %q, [y]; mad.lo.u32 %t, %c, 64, %t;
        mad.wide.u32 %q, %t, 32, %q; setp.eq.u32 %z, %c, 9; @%z ret;
        {"".join(f"mov.b32 %d{i}, 0;" for i in range(8))}
        {product(0, 0, 1)} {product(4, 0, 0)}
        st.global.v4.b32 [%q], {{%d0, %d1, %d2, %d3}};
        st.global.v4.b32 [%q + 16], {{%d4, %d5, %d6, %d7}}; ret; }}"""
    x = random().integers(-3, 4, (4096, 2)).astype(np.float16)
    results = {}
    for stride in (0, 256):
        for lanes in (64, 4096):
            y = output((3, 64, 8))
            counters = run(text, "k", 3, 64, [x, y, stride], lanes=lanes).counters
            results[stride, lanes] = y.array.tolist(), counters.as_dict()
        assert results[stride, 64] == results[stride, 4096]
    assert results[0, 64][0] != results[256, 64][0]
    assert results[0, 64][0][0] == results[0, 64][0][2]


def test_operands_that_blocks_share_only_at_first():
    """One load, the same address for all blocks in the first turn of a loop, then their own."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 y) {{
        .reg .b32 %a<2>, %d<4>, %t, %c, %k; .reg .b64 %p, %q; .reg .pred %z;
        ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; mov.u32 %k, 0;
        mad.wide.u32 %p, %t, 4, %p; ld.param.u64 %q, [y]; mad.lo.u32 %t, %c, 64, %t;
        mad.wide.u32 %q, %t, 16, %q; {"".join(f"mov.b32 %d{i}, 0;" for i in range(4))}
        LOOP: ld.global.nc.u32 %a0, [%p]; ld.global.nc.u32 %a1, [%p + 1024]; {product(0, 0, 1)}
        mad.wide.u32 %p, %c, 256, %p; add.u32 %k, %k, 1; setp.lt.u32 %z, %k, 2; @%z bra LOOP;
        st.global.v4.b32 [%q], {{%d0, %d1, %d2, %d3}}; ret; }}"""
    x = random().integers(-3, 4, (4096, 2)).astype(np.float16)
    results = []
    for lanes in (64, 4096):
        y = output((3, 64, 4))
        run(text, "k", 3, 64, [x, y], lanes=lanes)
        results.append(y.array.tolist())
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]


@pytest.mark.parametrize("transposed", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count, transposed):
    """What stmatrix stores and ldmatrix loads, against the layout of 8x8 matrices."""
    registers = ", ".join(f"%d{i}" for i in range(count))
    text = f"""{HEAD.replace("sm_80", "sm_90")}.visible .entry k(.param .u64 x, .param .u64 y) {{
        .reg .b32 %d<4>, %t, %s, %o; .reg .b64 %p, %q; .shared .align 16 .b8 m[1024];
        ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mul.wide.u32 %q, %t, 4; add.u64 %p, %p, %q;
        mul.lo.u32 %s, %t, 16; mov.u32 %o, m;
        {"".join(f"ld.global.u32 %d{i}, [%p + {128 * i}];" for i in range(count))}
        add.u32 %s, %s, %o;
        stmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 [%s], {{{registers}}};
        bar.warp.sync 0xFFFFFFFF;
        ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {{{registers}}}, [%s];
        ld.param.u64 %p, [y]; add.u64 %p, %p, %q;
        {"".join(f"st.global.u32 [%p + {128 * i}], %d{i};" for i in range(count))} ret; }}"""
    x = random().integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    y = output((count, 8, 8), np.uint16)
    c = run(text, "k", 1, 32, [x, y], racecheck=True).counters
    assert np.array_equal(y.array, x.swapaxes(1, 2) if transposed else x)
    for traffic in (c.ldmatrix, c.stmatrix):
        assert (traffic.requests, traffic.bytes) == (1, 128 * count)
        assert (traffic.ideal, traffic.wavefronts) == (count, count)


@pytest.mark.parametrize(("size", "source"), [(4, 4), (8, 3), (16, 16), (16, 0), (16, 5), (16, 99)])
def test_async_copy_fills_up_with_zeros(size, source):
    words = size // 4
    vector, registers = {
        1: ("", "%d0"),
        2: (".v2", "{%d0, %d1}"),
        4: (".v4", "{%d0, %d1, %d2, %d3}"),
    }[words]
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 y, .param .u32 n) {{
        .reg .b32 %d<4>, %t, %s, %n; .reg .b64 %p, %q; .shared .align 16 .b8 m[1024];
        ld.param.u64 %p, [x]; ld.param.u32 %n, [n]; mov.u32 %t, %tid.x;
        mul.wide.u32 %q, %t, {size}; add.u64 %p, %p, %q;
        mul.lo.u32 %t, %t, {size}; mov.u32 %s, m; add.u32 %s, %s, %t;
        cp.async.ca.shared.global.L2::128B [%s], [%p], {size}, %n;
        cp.async.commit_group; cp.async.wait_group 0;
        ld.shared{vector}.b32 {registers}, [%s]; ld.param.u64 %p, [y]; add.u64 %p, %p, %q;
        st.global{vector}.b32 [%p], {registers}; ret; }}"""
    x = random().integers(1, 255, (32, size)).astype(np.uint8)
    y = output((32, size), np.uint8)
    c = run(text, "k", 1, 32, [x, y, source]).counters
    taken = min(size, source)
    want = np.where(np.arange(size) < taken, x, 0)
    assert np.array_equal(y.array, want)
    assert c.global_load.bytes == c.global_load.unique_bytes == 32 * taken
    assert c.cp_async.bytes == 32 * size


def test_async_copies_land_group_by_group():
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 y) {{
        .reg .b32 %d<4>, %t, %s; .reg .b64 %p, %q; .shared .align 16 .b8 m[1024];
        ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mul.wide.u32 %q, %t, 16; add.u64 %p, %p, %q;
        mul.lo.u32 %t, %t, 16; mov.u32 %s, m; add.u32 %s, %s, %t;
        cp.async.cg.shared.global [%s], [%p], 16; cp.async.commit_group;
        cp.async.cg.shared.global [%s + 512], [%p + 512], 16; cp.async.commit_group;
        cp.async.wait_group WAIT; ld.shared.u32 %d0, [%s + WHICH]; cp.async.wait_all;
        ld.shared.u32 %d0, [%s + WHICH];
        ld.param.u64 %p, [y]; add.u64 %p, %p, %q; st.global.u32 [%p], %d0; ret; }}"""
    x, y = np.arange(256, dtype=np.uint32), np.zeros(128, np.uint32)
    for wait, which, fine in ((1, 0, True), (1, 512, False), (0, 512, True), (2, 0, False)):
        ptx = text.replace("WAIT", str(wait)).replace("WHICH", str(which))
        if fine:
            run(ptx, "k", 1, 32, [x, y])
            assert np.array_equal(y[::4], x[which // 4 :][:128:4])
        else:
            with pytest.raises(AsyncCopyHazard, match="read of shared offset"):
                run(ptx, "k", 1, 32, [x, y])


def test_async_copies_that_no_wait_covers():
    """Without a commit a group stays open; nobody may write where a copy is on its way."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x) {{
        .reg .b32 %d, %t, %s; .reg .b64 %p, %q; .shared .align 16 .b8 m[1024];
        ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mul.wide.u32 %q, %t, 16; add.u64 %p, %p, %q;
        mul.lo.u32 %t, %t, 16; mov.u32 %s, m; add.u32 %s, %s, %t;
        cp.async.cg.shared.global [%s], [%p], 16; cp.async.wait_all; ld.shared.u32 %d, [%s];
        cp.async.cg.shared.global [%s], [%p], 16; NEXT
        cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %d, [%s]; ret; }}"""
    x = np.arange(256, dtype=np.uint32)
    run(text.replace("NEXT", ""), "k", 1, 32, [x])
    four = "{%d, %d, %d, %d}"
    for bug, kind in (
        ("cp.async.wait_group 0; ld.shared.u32 %d, [%s];", "read of"),
        ("st.shared.u32 [%s + 4], %d;", "write to"),
        ("cp.async.ca.shared.global [%s + 8], [%p], 8;", "write to"),
        (f"st.shared.v4.u32 [%s], {four};", "write to"),
        (f"ld.shared.v4.u32 {four}, [%s];", "read of"),
    ):
        for size in (16, 4):  # a copy may touch only a part of what is accessed
            if size == 4 and "v4" not in bug:
                continue
            ptx = text.replace("[%p], 16; NEXT", f"[%p], {size}; {bug}").replace("cg.", "ca.")
            with pytest.raises(AsyncCopyHazard, match=f"{kind} shared offset"):
                run(ptx, "k", 1, 32, [x])


def test_other_shapes_are_refused():
    ins = "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%w0}, {%w1}, {%w2}, {%w0};"
    with pytest.raises(UnsupportedInstruction, match="m8n8k4"):
        execute(ins, np.zeros(32, np.uint32))


@needs_nvcc
def test_accumulators_of_a_group_share_one_array():
    """What makes groups fast holds for the sample: no product of it is on its own."""
    launch(
        "gemm.cu",
        "gemm_f16",
        1,
        128,
        [64, 64, 32, *[np.zeros((64, 64), np.float16)] * 2, Buffer(np.zeros((64, 64), np.float32))],
    )
    (core,) = load(compiled("gemm.cu")).cores.values()
    groups = core.program.groups.values()
    assert {len(g.members) for g in groups} == {4}
    assert len(core.program.tiles) >= 2
