"""Counters against numbers worked out by hand, and the buffers that they are counted for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ptx import Buffer, DeviceMemory, UninitialisedRead, run
from ptx.lanes import LaneSet
from ptx.patterns import Site, count_sectors
from ptx.samples import HEAD, launch, needs_nvcc

VECTORS = {
    1: ("", "u8", "%a"),
    2: ("", "u16", "%a"),
    4: ("", "b32", "%a"),
    8: (".v2", "b32", "{%a, %b}"),
    16: (".v4", "b32", "{%a, %b, %c, %d}"),
}


@pytest.mark.parametrize(
    ("size", "stride", "wavefronts", "sectors"),
    [
        (1, 1, 1, 1),
        (2, 2, 1, 2),
        (2, 64, 16, 32),
        (4, 4, 1, 4),
        (4, 8, 2, 8),
        (4, 128, 32, 32),
        (4, 132, 1, 32),
        (4, 0, 1, 1),
        (8, 8, 2, 8),
        (8, 16, 4, 16),
        (16, 16, 4, 16),
        (16, 32, 8, 32),
        (16, 0, 4, 1),
        (16, 128, 32, 32),
    ],
)
def test_access_patterns(size, stride, wavefronts, sectors):
    """One warp that moves `size` bytes every `stride` bytes."""
    vector, typ, registers = VECTORS[size]
    text = f"""{HEAD}.visible .entry k(.param .u64 x) {{
        .reg .b32 %a, %b, %c, %d, %t, %o; .reg .b64 %p; .shared .align 16 .b8 s[8192];
        ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mul.lo.u32 %t, %t, {stride};
        mov.u32 %o, s; add.u32 %o, %o, %t; .reg .b64 %q; cvt.u64.u32 %q, %t; add.u64 %p, %p, %q;
        ld.global{vector}.{typ} {registers}, [%p]; st.shared{vector}.{typ} [%o], {registers};
        bar.sync 0; ld.shared{vector}.{typ} {registers}, [%o];
        st.global{vector}.{typ} [%p], {registers}; ret; }}"""
    c = run(text, "k", 1, 32, [Buffer(np.zeros(8192, np.uint8), name="x")]).counters
    for shared in (c.shared_load, c.shared_store):
        assert (shared.requests, shared.bytes) == (1, 32 * size)
        assert (shared.wavefronts, shared.ideal) == (wavefronts, max(size // 4, 1))
    touched = (32 if stride else 1) * size
    for traffic in (c.global_load, c.global_store, c.buffers["x"].load, c.buffers["x"].store):
        assert (traffic.requests, traffic.bytes) == (1, 32 * size)
        assert traffic.sectors == traffic.unique_sectors == sectors
        assert traffic.unique_bytes == touched


@pytest.mark.parametrize(
    ("pitch", "per_matrix"), [(16, 1), (32, 2), (64, 4), (80, 1), (128, 8), (144, 1)]
)
def test_ldmatrix_conflicts(pitch, per_matrix):
    text = f"""{HEAD}.visible .entry k() {{ .reg .b32 %a<4>, %t; .shared .align 16 .b8 s[8192];
        mov.u32 %t, %laneid; mul.lo.u32 %t, %t, {pitch};
        st.shared.v4.b32 [%t], {{%t, %t, %t, %t}}; bar.warp.sync 0xFFFFFFFF;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a0, %a1, %a2, %a3}}, [%t]; ret; }}"""
    c = run(text, "k", 1, 32, []).counters
    assert (c.ldmatrix.requests, c.ldmatrix.ideal) == (1, 4)
    assert c.ldmatrix.wavefronts == 4 * per_matrix
    assert c.warp_barriers == 1


def test_recognised_repetitions_count_like_the_first():
    """Patterns that move by whole sectors are not counted again; others are."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 step) {{
        .reg .b32 %a, %t, %k; .reg .b64 %p, %s; .reg .pred %c, %m;
        ld.param.u64 %p, [x]; ld.param.u64 %s, [step]; mov.u32 %t, %tid.x;
        mad.wide.u32 %p, %t, 4, %p; mov.u32 %k, 0; setp.lt.u32 %m, %t, 40;
        LOOP: ld.global.u32 %a, [%p]; @%m ld.global.u32 %a, [%p + 4]; add.u64 %p, %p, %s;
        add.u32 %k, %k, 1; setp.lt.u32 %c, %k, 6; @%c bra LOOP; ret; }}"""
    for step in (32, 4, 20, 64):
        c = run(text, "k", 1, 64, [np.zeros(4096, np.uint8), step]).counters
        assert c.global_load.requests == 6 * 4
        sectors = 0
        for start in (step * k for k in range(6)):
            for first, lanes in ((0, 64), (4, 40)):
                for warp in (0, 32):
                    lanes_here = range(warp, min(warp + 32, lanes))
                    sectors += len({(start + first + 4 * lane) // 32 for lane in lanes_here})
        assert c.global_load.sectors == sectors, step


def test_lanes_that_differ_between_blocks():
    """Both blocks read the same 32 words, one with a whole warp, one with halves of two."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x) {{
        .reg .b32 %a, %t, %c, %f; .reg .b64 %p; .reg .pred %l, %h;
        ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; shl.b32 %f, %c, 4;
        sub.u32 %t, %t, %f; setp.lt.u32 %l, %t, 32; mad.wide.s32 %p, %t, 4, %p;
        @%l ld.global.u32 %a, [%p]; ret; }}"""
    c = run(text, "k", 2, 64, [np.zeros(32, np.uint32)]).counters
    assert (c.global_load.requests, c.global_load.bytes) == (3, 256)
    assert (c.global_load.sectors, c.global_load.unique_sectors) == (8, 4)


def test_site_asks_again_when_the_pattern_changes():
    class Chunk:
        lanes, nblocks = 64, 1
        lane_numbers = np.arange(64)

    every = LaneSet(Chunk())
    asked = []

    def count(sel, addresses):
        asked.append(addresses)
        return count_sectors(sel, addresses)

    site = Site(count, 32)
    plain, spread = np.arange(64) * 4, np.arange(64) * 8
    assert [site(every, plain), site(every, plain + 64), site(every, spread)] == [8, 8, 16]
    assert [site(every, plain + 32), site(every, plain + 4)] == [8, 10]
    bent = plain + 64
    bent[5] = 4096
    assert site(every, bent) == 9
    assert len(asked) == 4


def test_instruction_counters():
    text = f"""{HEAD}.visible .entry k() {{
        .reg .b32 %a<4>, %t; .reg .f32 %f; .reg .pred %c;
        mov.u32 %t, %tid.x; setp.lt.u32 %c, %t, 8; mov.f32 %f, 0f3F800000; mov.b32 %a0, 0;
        fma.rn.f32 %f, %f, %f, %f; @%c fma.rn.f16x2 %a0, %a0, %a0, %a0;
        @%c bra DONE; mad.lo.u32 %a1, %t, %t, %t; bar.sync 0;
        DONE: ret; }}"""
    c = run(text, "k", 2, 64, []).counters
    assert (c.blocks, c.threads) == (2, 128)
    assert c.warp_instructions["fp_fma"] == 4 + 4  # issued by warps without an active lane, too
    assert c.fma == {"f32": 128, "f16x2": 2 * 2 * 8}
    assert c.opcodes["mad.lo.u32"] == 4
    assert c.warp_instructions["int_mul"] == 4
    assert c.warp_instructions["branch"] == 4 + 4 + 2  # the first warps return in two parts
    assert (c.block_barriers, c.barriers_with_exited_threads) == (2, 2)
    assert c.thread_instructions == 128 * 5 + 2 * 8 * 2 + 2 * 56 * 2 + 128
    assert c.total_warp_instructions == sum(c.opcodes.values())


@needs_nvcc
def test_counters_become_json():
    args = [64, 2.0, np.zeros(64, np.float32), np.zeros(64, np.float32)]
    c = launch("elementary.cu", "saxpy", 1, 64, args)
    kept = json.loads(json.dumps(c.as_dict()))
    assert kept["buffers"]["arg3"]["store"]["unique_bytes"] == 256
    assert kept["shared_load"]["conflicts"] == 0
    c = launch("elementary.cu", "saxpy", 1, 64, args, count=False)
    assert c.warp_instructions["fp_fma"] == 2
    assert c.global_load.requests == c.global_load.bytes == len(c.buffers) == 0


COPY = f"""{HEAD}.visible .entry k(.param .align 8 .b8 p[24]) {{
    .reg .b64 %x, %y; .reg .b32 %t, %n, %v; .reg .pred %c;
    ld.param.u64 %x, [p]; ld.param.u64 %y, [p + 8]; ld.param.u32 %n, [p + 16];
    mov.u32 %t, %tid.x; setp.ge.u32 %c, %t, %n; @%c ret;
    mad.wide.u32 %x, %t, 4, %x; mad.wide.u32 %y, %t, 4, %y;
    ld.global.u32 %v, [%x]; add.u32 %v, %v, 1; st.global.u32 [%y], %v; ret; }}"""


def parameters(source: int, target: int, n: int) -> bytes:
    """The struct of COPY."""
    return source.to_bytes(8, "little") + target.to_bytes(8, "little") + n.to_bytes(8, "little")


def test_buffers_outlive_launches():
    """As in a launch plan: addresses in structs, what is written is read by the next launch."""
    memory = DeviceMemory()
    x = np.arange(64, dtype=np.uint32)
    first = memory.add(x, name="x", readonly=True)
    between = memory.add(nbytes=256, name="between", uninit=True)
    y = np.zeros(64, np.uint32)
    last = memory.add(y, name="y", uninit=True)
    c = run(COPY, "k", 1, 64, [parameters(first, between, 40)], memory=memory).counters
    assert c.buffers["between"].store.unique_bytes == 160
    assert set(c.buffers) == {"x", "between"}
    assert memory["between"].contents[:160].view(np.uint32).tolist() == list(range(1, 41))
    assert not y.any()
    c = run(COPY, "k", 1, 64, [parameters(between, last, 40)], memory=memory).counters
    assert set(c.buffers) == {"between", "y"}
    assert y[:40].tolist() == list(range(2, 42))
    assert not y[40:].any()
    with pytest.raises(UninitialisedRead, match=r"read of between\+160 bytes"):
        run(COPY, "k", 1, 64, [parameters(between, last, 41)], memory=memory)
    memory["between"].contents[160:] = 7  # the host's writes do not count as the kernel's
    with pytest.raises(UninitialisedRead):
        run(COPY, "k", 1, 64, [parameters(between, last, 41)], memory=memory)


def test_addresses_within_buffers():
    memory = DeviceMemory()
    x = np.arange(64, dtype=np.uint32)
    y = np.zeros(64, np.uint32)
    at = memory.add(x, name="x"), memory.add(y, name="y")
    run(COPY, "k", 1, 32, [parameters(at[0] + 128, at[1] + 4, 32)], memory=memory)
    assert y[1:33].tolist() == list(range(33, 65))
    assert memory.add(x) == at[0]
    assert memory.describe(at[1] - 8) == f"address {at[1] - 8:#x} = y-8 bytes; y has 256 bytes"


def test_buffers_that_cannot_be_added():
    memory = DeviceMemory()
    memory.add(nbytes=16, name="x")
    with pytest.raises(ValueError, match="there is a buffer x already"):
        memory.add(nbytes=16, name="x")
    with pytest.raises(ValueError, match="C-contiguous"):
        memory.add(np.zeros((4, 4))[:, ::2])
    with pytest.raises(ValueError, match="an array or a size"):
        memory.add(name="y")


def test_accesses_that_span_buffers():
    """One request, two buffers: each gets its part, the total counts it once."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 y) {{
        .reg .b64 %p, %q; .reg .b32 %t, %v; .reg .pred %c;
        ld.param.u64 %p, [x]; ld.param.u64 %q, [y]; mov.u32 %t, %tid.x; setp.lt.u32 %c, %t, 8;
        selp.b64 %p, %p, %q, %c; mad.wide.u32 %p, %t, 4, %p; ld.global.u32 %v, [%p];
        add.u32 %v, %v, 1; st.global.u32 [%p], %v; ret; }}"""
    x, y = np.zeros(8, np.uint32), np.zeros(32, np.uint32)
    args = [Buffer(x, name="x"), Buffer(y, name="y")]
    c = run(text, "k", 1, 32, args, racecheck=True).counters
    assert x.tolist() == [1] * 8
    assert y.tolist() == [0] * 8 + [1] * 24
    assert c.global_load.requests == c.global_store.requests == 1
    assert (c.buffers["x"].load.requests, c.buffers["y"].load.requests) == (1, 1)
    assert (c.buffers["x"].load.bytes, c.buffers["y"].load.bytes) == (32, 96)
    assert c.global_load.sectors == c.global_store.sectors == 4
