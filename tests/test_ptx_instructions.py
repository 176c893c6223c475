"""Instructions that compilers emit for our kernels, in PTX written by hand, against NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from ptx import run
from ptx.samples import HEAD, execute, output

U64 = np.uint64


def words(count: int, n: int = 256) -> np.ndarray:
    """Random uint32 [count, n], corner cases among them."""
    x = np.random.default_rng(1).integers(0, 2**32, (count, n), dtype=U64).astype(np.uint32)
    x[:, :4] = [0, 1, 0x80000000, 0xFFFFFFFF]
    return x


def test_logic_and_shifts():
    a, b = words(2)
    s = np.random.default_rng(2).integers(0, 40, 256).astype(np.uint32)
    body = """shl.b32 %d0, %a0, %a2; shr.u32 %d1, %a0, %a2; shr.s32 %d2, %a0, %a2;
        bfind.u32 %d3, %a0; lop3.b32 %d4, %a0, %a1, %a2, 0x1B; lop3.b32 %d5, %a0, %a1, %a2, 0xCA;
        not.b32 %d6, %a0; shf.l.wrap.b32 %d7, %a0, %a1, %a2; shf.r.clamp.b32 %d8, %a0, %a1, %a2;"""
    r = execute(body, a, b, s, results=9)
    wide, amount = a.astype(U64), s.astype(U64)
    both = b.astype(U64) << U64(32) | a
    assert np.array_equal(r[0], np.where(s < 32, wide << amount, 0).astype(np.uint32))
    assert np.array_equal(r[1], np.where(s < 32, wide >> amount, 0).astype(np.uint32))
    assert np.array_equal(r[2].view(np.int32), a.view(np.int32) >> np.minimum(s, 31))
    assert r[3].tolist() == [(int(v).bit_length() - 1) & 0xFFFFFFFF for v in a]
    bits = [(v >> np.arange(32, dtype=np.uint32)[:, None] & 1) for v in (a, b, s)]
    for result, table in ((r[4], 0x1B), (r[5], 0xCA)):
        chosen = table >> (bits[0] * 4 + bits[1] * 2 + bits[2]) & 1
        want = (chosen.astype(U64) << np.arange(32, dtype=U64)[:, None]).sum(0)
        assert np.array_equal(result, want.astype(np.uint32))
    assert np.array_equal(r[6], ~a)
    assert np.array_equal(r[7], (both << (amount & U64(31)) >> U64(32)).astype(np.uint32))
    assert np.array_equal(r[8], (both >> np.minimum(amount, U64(32))).astype(np.uint32))


def extracted(value: int, pos: int, n: int, bits: int, signed: bool) -> int:
    """bfe as the PTX ISA words it."""
    pos, n = pos & 255, n & 255
    top = value >> bits - 1
    field = 0
    for k in range(bits):
        if k < n:
            field |= (value >> pos + k & 1 if pos + k < bits else top if signed else 0) << k
    last = min(pos + n - 1, bits - 1)
    if signed and 0 < n < bits and value >> last & 1:
        field |= (1 << bits) - (1 << n)
    return field & (1 << bits) - 1


def test_bit_fields():
    a, b = words(2)
    random = np.random.default_rng(3)
    pos, n = random.integers(0, 40, (2, 256)).astype(np.uint32)
    body = """bfe.u32 %d0, %a0, %a2, %a3; bfe.s32 %d1, %a0, %a2, %a3;
        bfi.b32 %d2, %a0, %a1, %a2, %a3;
        mov.b64 %w0, {%a0, %a1}; bfe.u64 %w1, %w0, %a2, %a3; mov.b64 {%d3, %d4}, %w1;
        bfe.s64 %w1, %w0, %a2, %a3; mov.b64 {%d5, %d6}, %w1;"""
    r = execute(body, a, b, pos, n, results=7)
    for i in range(256):
        x, y, p, m = (int(v[i]) for v in (a, b, pos, n))
        assert r[0][i] == extracted(x, p, m, 32, False), i
        assert r[1][i] == extracted(x, p, m, 32, True), i
        mask = ((1 << min(m, 32)) - 1 << p) & 0xFFFFFFFF if p < 32 else 0
        assert r[2][i] == (x << p & mask) | (y & ~mask), i
        xy = y << 32 | x
        assert int(r[4][i]) << 32 | int(r[3][i]) == extracted(xy, p, m, 64, False), i
        assert int(r[6][i]) << 32 | int(r[5][i]) == extracted(xy, p, m, 64, True), i


def test_byte_permutation():
    a, b, c = words(3)
    r = execute("prmt.b32 %d0, %a0, %a1, %a2; prmt.b32 %d1, %a0, %a1, 0xBA50;", a, b, c, results=2)

    def permuted(x, y, selector):
        octets = [(y << 32 | x) >> 8 * k & 255 for k in range(8)]
        out = 0
        for k in range(4):
            s = selector >> 4 * k & 15
            octet = octets[s & 7]
            out |= (255 * (octet >> 7) if s & 8 else octet) << 8 * k
        return out

    for i in range(256):
        x, y, z = int(a[i]), int(b[i]), int(c[i])
        assert r[0][i] == permuted(x, y, z), i
        assert r[1][i] == permuted(x, y, 0xBA50), i


def test_wide_integer_arithmetic():
    a, b, c = words(3)
    body = """mul.wide.s32 %w0, %a0, %a1; mul.wide.u32 %w1, %a0, %a1;
        mad.wide.s32 %w2, %a0, %a1, %w0;
        mov.b64 %w3, {%a1, %a2}; mul.lo.s64 %w4, %w2, %w3; sub.s64 %w4, %w4, %w0;
        add.s64 %w4, %w4, -5; shl.b64 %w5, %w3, 3; shr.s64 %w5, %w5, 5; min.s64 %w6, %w3, %w0;
        cvt.s64.s32 %w7, %a0; max.u64 %w7, %w7, %w1; neg.s64 %w1, %w1; abs.s64 %w6, %w6;
        mov.b64 {%d0, %d1}, %w4; mov.b64 {%d2, %d3}, %w5; mov.b64 {%d4, %d5}, %w6;
        mov.b64 {%d6, %d7}, %w7; mov.b64 {%d8, %d9}, %w1; mul.hi.s64 %w3, %w3, %w2;
        mov.b64 {%d10, %d11}, %w3; mad.lo.s32 %d12, %a0, %a1, %a2; mul.hi.s32 %d13, %a0, %a1;"""
    r = execute(body, a, b, c, results=14).astype(object)

    def signed(v, bits=64):
        v &= (1 << bits) - 1
        return v - (1 << bits) if v >> bits - 1 else v

    for i in range(256):
        x, y, z = int(a[i]), int(b[i]), int(c[i])
        sx, sy = signed(x, 32), signed(y, 32)
        w0, w3 = sx * sy, signed(z << 32 | y)
        w2 = 2 * w0
        wanted = [
            w2 * w3 - w0 - 5,
            signed(w3 << 3) >> 5,
            abs(min(w3, w0)),
            max(sx & 2**64 - 1, x * y),
            -(x * y),
            w3 * signed(w2) >> 64,
        ]
        for k, w in enumerate(wanted):
            assert r[2 * k + 1][i] << 32 | r[2 * k][i] == w & 2**64 - 1, (i, k)
        assert r[12][i] == (x * y + z) & 0xFFFFFFFF
        assert r[13][i] == (sx * sy >> 32) & 0xFFFFFFFF


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
TYPES = {
    "u16": np.uint16,
    "s16": np.int16,
    "u32": np.uint32,
    "s32": np.int32,
    "u64": np.uint64,
    "s64": np.int64,
    "f16": np.float16,
    "f32": np.float32,
    "bf16": None,
}


@pytest.mark.parametrize("typ", TYPES)
def test_comparisons(typ):
    random = np.random.default_rng(4)
    size = 8 if "64" in typ else 2 if "16" in typ else 4
    if typ == "bf16":
        values = torch.from_numpy(random.standard_normal((2, 64))).bfloat16()
        raw, values = values.view(torch.int16).numpy().view(np.uint16), values.float().numpy()
    elif "f" in typ:
        raw = values = random.standard_normal((2, 64)).astype(TYPES[typ])
    else:
        raw = values = random.integers(0, 2 ** (8 * size) - 1, (2, 64), dtype=U64, endpoint=True)
        raw = values = values.astype(f"u{size}").view(TYPES[typ])
    raw[1, :16], values[1, :16] = raw[0, :16], values[0, :16]
    x = np.zeros((2, 64, 2), np.uint32)
    x.view(np.uint8).reshape(2, 64, 8)[:, :, :size] = raw.view(np.uint8).reshape(2, 64, size)
    register = {2: "%h", 4: "%a", 8: "%w"}[size]
    ready = {
        2: "cvt.u16.u32 %h0, %a0; cvt.u16.u32 %h1, %a1;",
        4: "",
        8: "mov.b64 %w0, {%a0, %a2}; mov.b64 %w1, {%a1, %a3};",
    }[size]
    r0, r1 = f"{register}0", f"{register}1"
    body = ready + "setp.eq.u32 %c2, 0, 0; mov.u32 %a4, %t; and.b32 %a4, %a4, 1;"
    body += "setp.eq.u32 %c3, %a4, 1;"
    for k, name in enumerate(COMPARISONS):
        body += f"setp.{name}.{typ} %c0, {r0}, {r1}; selp.u32 %d{k}, 1, 0, %c0;"
        body += f"setp.{name}.and.{typ} %c0|%c1, {r0}, {r1}, !%c3; selp.b32 %a4, 2, 0, %c0;"
        body += f"add.u32 %d{k}, %d{k}, %a4; selp.u32 %a4, 4, 0, %c1; add.u32 %d{k}, %d{k}, %a4;"
    got = execute(body, x[0, :, 0], x[1, :, 0], x[0, :, 1], x[1, :, 1], results=6)
    even = np.arange(64) % 2 == 0
    for k, compare in enumerate(COMPARISONS.values()):
        yes = compare(values[0], values[1])
        assert np.array_equal(got[k], yes + 2 * (yes & even) + 4 * (~yes & even)), k


def test_comparisons_with_nan():
    x = np.array([1, np.nan, np.nan, 2], np.float32)
    y = np.array([1, 1, np.nan, 3], np.float32)
    body = ""
    for k, name in enumerate(("ne", "neu", "ltu", "geu", "num", "nan", "eq")):
        body += f"setp.{name}.f32 %c0, %a0, %a1; selp.u32 %d{k}, 1, 0, %c0;"
    got = execute(body, x.view(np.uint32), y.view(np.uint32), results=7).tolist()
    assert got == [
        [0, 0, 0, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 1],
        [1, 1, 1, 0],
        [1, 0, 0, 1],
        [0, 1, 1, 0],
        [1, 0, 0, 0],
    ]


def test_predicates_and_guards():
    (x,) = words(1, 64)
    body = """setp.lt.u32 %c0, %t, 20; setp.gt.u32 %c1, %t, 9; and.pred %c2, %c0, %c1;
        or.pred %c3, !%c0, %c2; xor.pred %c4, %c0, %c1; not.pred %c5, %c4; mov.pred %c6, %c5;
        mov.u32 %d0, 0; @%c2 add.u32 %d0, %d0, 1; @!%c3 add.u32 %d0, %d0, 2;
        @%c6 add.u32 %d0, %d0, 4; selp.b32 %d1, %a0, %t, %c2; setp.eq.u32 %c7, %t, 99;
        mov.u32 %d2, 7; @%c7 mov.u32 %d2, 8;"""
    r = execute(body, x, results=3)
    t = np.arange(64)
    low, high = t < 20, t > 9
    want = (low & high) + 2 * ~(~low | (low & high)) + 4 * ~(low ^ high)
    assert np.array_equal(r[0], want)
    assert np.array_equal(r[1], np.where(low & high, x, t))
    assert (r[2] == 7).all()


def test_sparse_sets_of_lanes():
    """One lane in many: gathered, not masked; results as for any set."""
    body = """setp.eq.u32 %c0, %t, 77; mov.u32 %d0, %a0; mov.u32 %d1, 1; @!%c0 bra DONE;
        add.u32 %d0, %a0, %a1; selp.b32 %d1, %a1, 5, %c0; mul.lo.u32 %d1, %d1, %d0; DONE:"""
    a, b = words(2)
    r = execute(body, a, b, results=2)
    at = np.arange(256) == 77
    assert np.array_equal(r[0], np.where(at, a + b, a))
    assert np.array_equal(r[1], np.where(at, b * (a + b), 1))


def test_packing_and_conversion():
    x, y = (np.random.default_rng(5).standard_normal((2, 256)) * 300).astype(np.float32)
    body = """cvt.rn.f16x2.f32 %d0, %a0, %a1; cvt.rn.bf16x2.f32 %d1, %a0, %a1;
        cvt.rna.tf32.f32 %d2, %a0; cvt.rn.relu.f16x2.f32 %d3, %a0, %a1;
        cvt.rn.f16.f32 %h0, %a0; cvt.rn.bf16.f32 %h1, %a1; mov.b32 %d4, {%h0, %h1};
        mov.b32 {%h2, %h3}, %d0; cvt.f32.f16 %d5, %h3; cvt.f32.bf16 %d6, %h1;
        cvt.rni.s32.f32 %a2, %a0; cvt.rni.s32.f32 %a3, %a1;
        cvt.pack.sat.s8.s32.b32 %d7, %a2, %a3, 0x1234; cvt.rzi.sat.u8.f32 %d8, %a0;"""
    r = execute(body, x.view(np.uint32), y.view(np.uint32), results=9)
    pair = np.stack([y, x], 1)
    assert np.array_equal(r[0].view(np.float16).reshape(-1, 2), pair.astype(np.float16))
    bf16 = torch.from_numpy(pair).bfloat16().view(torch.int16).numpy()
    assert np.array_equal(r[1].view(np.int16).reshape(-1, 2), bf16)
    tf32 = r[2].view(np.float32)
    assert (np.abs(tf32 - x) <= np.abs(x) * 2.0**-11).all()
    assert not (r[2] & 0x1FFF).any()
    positive = np.maximum(pair.astype(np.float16), 0)
    assert np.array_equal(r[3].view(np.float16).reshape(-1, 2), positive)
    assert np.array_equal(r[4] & 0xFFFF, x.astype(np.float16).view(np.uint16))
    assert np.array_equal(r[4] >> 16, bf16[:, 0].view(np.uint16))
    assert np.array_equal(r[5].view(np.float32), x.astype(np.float16).astype(np.float32))
    assert np.array_equal(r[6] >> 16, bf16[:, 0].view(np.uint16))
    assert not (r[6] & 0xFFFF).any()
    p, q = (np.clip(np.rint(v), -128, 127).astype(np.int64) & 255 for v in (x, y))
    assert np.array_equal(r[7], (0x1234 << 16 | p << 8 | q) & 0xFFFFFFFF)
    assert np.array_equal(r[8], np.clip(np.trunc(x), 0, 255))


@pytest.mark.parametrize("space", ["shared", "global", "local"])
def test_vectors_in_every_space(space):
    """v2 and v4 of all widths; 16- and 8-bit elements extend into wider registers."""
    address = {"global": "%p", "shared": "%s", "local": "%l"}[space]
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u64 y) {{
        .reg .b32 %r<8>, %t, %s, %l; .reg .b64 %p, %q, %w<4>; .reg .b16 %h<4>;
        .shared .align 16 .b8 s[1024]; .local .align 16 .b8 l[32];
        ld.param.u64 %p, [x]; ld.param.u64 %q, [y]; mov.u32 %t, %tid.x;
        mul.wide.u32 %w0, %t, 32; add.u64 %p, %p, %w0; mad.wide.u32 %q, %t, 16, %q;
        mov.u32 %l, l; mov.u32 %s, s; mad.lo.u32 %s, %t, 32, %s;
        ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%p]; ld.global.v2.u64 {{%w0, %w1}}, [%p + 16];
        st.{space}.v4.u32 [{address}], {{%r3, %r2, %r1, %r0}};
        st.{space}.v2.b64 [{address} + 16], {{%w0, %w1}};
        ld.{space}.v2.u16 {{%r4, %h1}}, [{address} + 4]; ld.{space}.v4.s8 {{%r5, %r6, _, %r7}},
            [{address} + 16]; cvt.u32.u16 %r3, %h1;
        add.u32 %r4, %r4, %r3; add.u32 %r5, %r5, %r6;
        ld.{space}.v2.f32 {{%r0, %r1}}, [{address} + 8];
        st.global.v4.b32 [%q], {{%r4, %r5, %r7, %r0}}; ret; }}"""
    x = np.random.default_rng(6).integers(0, 2**32, (32, 8), dtype=U64).astype(np.uint32)
    y = output((32, 4), np.uint32)
    first = x.copy()
    run(text, "k", 1, 32, [x, y])
    assert np.array_equal(y.array[:, 0], (first[:, 2] & 0xFFFF) + (first[:, 2] >> 16))
    octets = first[:, 4:5].view(np.int8).astype(np.int64)
    assert np.array_equal(y.array[:, 1], (octets[:, 0] + octets[:, 1]) & 0xFFFFFFFF)
    assert np.array_equal(y.array[:, 2], octets[:, 3] & 0xFFFFFFFF)
    assert np.array_equal(y.array[:, 3], first[:, 1])


def test_cache_hints():
    text = f"""{HEAD}.visible .entry k(.param .u64 x) {{
        .reg .b32 %r<4>; .reg .b64 %p;
        ld.param.u64 %p, [x];
        ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {{%r0, %r1, %r2, %r3}}, [%p];
        ld.global.nc.L1::evict_last.L2::256B.v2.f32 {{%r1, %r2}}, [%p + 8];
        ld.volatile.global.u32 %r2, [%p]; ld.relaxed.gpu.global.u32 %r2, [%p];
        st.global.cs.v2.b32 [%p + 16], {{%r0, %r1}}; st.global.L1::no_allocate.b32 [%p + 24], %r3;
        prefetch.global.L2 [%p]; ret; }}"""
    x = np.arange(8, dtype=np.uint32) + 5
    run(text, "k", 1, 1, [x])
    assert x.tolist() == [5, 6, 7, 8, 5, 7, 8, 12]


def test_parameter_struct_at_any_offset():
    """By name, by address, as vectors, bytes, and at an offset known at run time only."""
    text = f"""{HEAD}.visible .entry k(.param .align 16 .b8 p[64], .param .u64 y) {{
        .reg .b32 %r<8>, %t; .reg .b64 %p, %q, %w<4>; .reg .b16 %h; .reg .f32 %f;
        ld.param.u64 %q, [y]; mov.u32 %t, %tid.x; mad.wide.u32 %q, %t, 32, %q; mov.b64 %p, p;
        ld.param.v4.u32 {{%r0, %r1, %r2, %r3}}, [p + 16]; ld.param.v2.u32 {{%r4, %r5}}, [%p + 40];
        ld.param.u8 %h, [p + 7]; cvt.u32.u16 %r6, %h; ld.param.f32 %f, [%p + 4];
        mul.wide.u32 %w0, %t, 4; add.u64 %w1, %p, %w0; ld.param.u32 %r7, [%w1 + 32];
        cvta.param.u64 %w2, %p; add.u64 %w2, %w2, %w0; ld.u32 %r0, [%w2];
        st.global.v4.b32 [%q], {{%r0, %r1, %r2, %r3}};
        st.global.v4.b32 [%q + 16], {{%r4, %r5, %r6, %r7}}; ret; }}"""
    raw = struct.pack("<16I", *range(100, 116))
    y = output((8, 8), np.uint32)
    c = run(text, "k", 1, 8, [raw, y]).counters
    w = np.arange(100, 116)
    for t in range(8):
        assert y.array[t].tolist() == [w[t], *w[5:8], *w[10:12], raw[7], w[8 + t]]
    assert c.global_load.requests == 0
    assert set(c.buffers) == {"out"}


def test_generic_addresses():
    """cvta there and back, and one load that hits global, shared and local memory."""
    text = f"""{HEAD}.global .align 4 .u32 table[4] = {{7, 8, 9, 10}};
        .visible .entry k(.param .u64 y) {{
        .reg .b32 %r<4>, %t; .reg .b64 %p<4>, %q; .reg .pred %c<3>;
        .shared .align 8 .b8 s[128]; .local .align 8 .b8 l[8];
        ld.param.u64 %q, [y]; mov.u32 %t, %tid.x; mad.wide.u32 %q, %t, 4, %q;
        mov.u64 %p0, s; cvta.shared.u64 %p0, %p0; mov.u64 %p1, l; cvta.local.u64 %p1, %p1;
        mov.u64 %p2, table; cvta.global.u64 %p2, %p2; st.shared.u32 [s], 1; st.local.u32 [l], 2;
        setp.lt.u32 %c0, %t, 10; setp.lt.u32 %c1, %t, 20; selp.b64 %p3, %p1, %p2, %c1;
        selp.b64 %p3, %p0, %p3, %c0; ld.u32 %r0, [%p3]; cvta.to.shared.u64 %p0, %p0;
        ld.shared.u32 %r1, [%p0]; mad.lo.u32 %r0, %r1, 100, %r0; st.u32 [%q], %r0; ret; }}"""
    y = output(32, np.uint32)
    c = run(text, "k", 1, 32, [y]).counters
    t = np.arange(32)
    assert np.array_equal(y.array, 100 + np.where(t < 10, 1, np.where(t < 20, 2, 7)))
    assert c.local_load.requests == 1
    assert c.shared_load.requests == 2
    assert c.buffers["table"].load.bytes == 12 * 4


def test_initialised_variables_hold_addresses():
    text = f"""{HEAD}.const .align 8 .u64 where[2] = {{generic(table) + 4, table}};
        .global .align 4 .u32 table[2] = {{3, 4}}; .const .align 4 .f32 one[1] = {{0f3F800000}};
        .visible .entry k(.param .u64 y) {{ .reg .b64 %p, %q; .reg .b32 %r<3>;
        ld.param.u64 %q, [y]; ld.const.u64 %p, [where]; ld.global.u32 %r0, [%p];
        ld.const.u64 %p, [where + 8]; ld.global.u32 %r1, [%p]; ld.const.u32 %r2, [one];
        st.global.v2.u32 [%q], {{%r0, %r1}}; st.global.u32 [%q + 8], %r2; ret; }}"""
    y = output(3, np.uint32)
    run(text, "k", 1, 1, [y])
    assert y.array.tolist() == [4, 3, 0x3F800000]


def test_shuffles_and_votes():
    (x,) = words(1, 64)
    body = """shfl.sync.up.b32 %d0|%c0, %a0, 3, 0, 0xFFFFFFFF; selp.u32 %d1, 1, 0, %c0;
        shfl.sync.down.b32 %d2|%c1, %a0, 2, 0x181F, 0xFFFFFFFF; selp.u32 %d3, 1, 0, %c1;
        and.b32 %a1, %t, 7; shfl.sync.idx.b32 %d4, %a0, %a1, 0x1F, 0xFFFFFFFF;
        xor.b32 %a2, %a1, 5; shfl.sync.bfly.b32 %d5, %a0, %a2, 0x1F, 0xFFFFFFFF;
        setp.lt.u32 %c2, %a0, 0x80000000; vote.sync.ballot.b32 %d6, %c2, 0xFFFFFFFF;
        vote.sync.uni.pred %c3, !%c2, 0xFFFFFFFF; selp.u32 %d7, 1, 0, %c3;"""
    r = execute(body, x, results=8)
    for t in range(64):
        base, k = t // 32 * 32, t % 32
        low = x[base : base + 32] < 0x80000000
        wanted = [
            x[t - 3] if k >= 3 else x[t],
            k >= 3,
            x[t + 2] if k % 8 < 6 else x[t],
            k % 8 < 6,
            x[base + k % 8],
            x[base + (k ^ (k % 8 ^ 5))],
            sum(1 << j for j in range(32) if low[j]),
            low.all() or not low.any(),
        ]
        assert r[:, t].tolist() == [int(w) for w in wanted], t


@pytest.mark.parametrize("instruction", ["bar.sync", "barrier.sync", "barrier.sync.aligned"])
def test_named_barriers(instruction):
    """Two halves of a block exchange through shared memory, each at its own barrier."""
    body = f""".shared .align 4 .b8 s[512]; shr.u32 %a1, %t, 6; add.u32 %a1, %a1, 1; mov.u32 %a2, s;
        mad.lo.u32 %a3, %t, 4, %a2; st.shared.u32 [%a3], %a0; {instruction} %a1, 64;
        xor.b32 %a4, %t, 63; mad.lo.u32 %a3, %a4, 4, %a2; ld.shared.u32 %d0, [%a3];
        {instruction} %a1, 64; st.shared.u32 [%a3], %t; bar.sync 0; ld.shared.u32 %d1, [%a3];
        bar.red.popc.u32 %d2, 3, %c0; setp.eq.u32 %c1, %t, 5; bar.red.or.pred %c2, 3, %c1;
        selp.u32 %d3, 1, 0, %c2; bar.red.and.pred %c2, 3, !%c1; selp.u32 %d4, 1, 0, %c2;"""
    x = words(1, 128)[0]
    text_body = "setp.lt.u32 %c0, %t, 100;" + body
    r = execute(text_body, x, results=5)
    assert np.array_equal(r[0], x[np.arange(128) ^ 63])
    assert np.array_equal(r[1], np.arange(128))
    assert [v.tolist() for v in r[2:, 0]] == [100, 1, 0]


def test_barrier_reached_by_lanes_one_after_the_other():
    """Odd lanes come to the barrier from code behind it, after the even lanes wait there."""
    body = """and.b32 %a1, %t, 1; setp.eq.u32 %c0, %a1, 1; mov.u32 %d0, 1; @%c0 bra LATER;
        MEET: bar.sync 0; bra DONE; LATER: add.u32 %d0, %d0, 1; bra MEET; DONE:
        add.u32 %d0, %d0, 10;"""
    (r,) = execute(body, np.zeros(64, np.uint32))
    assert np.array_equal(r, 11 + np.arange(64) % 2)


def test_indexed_branch():
    body = """TABLE: .branchtargets ZERO, ONE, TWO; and.b32 %a1, %t, 3; min.u32 %a1, %a1, 2;
        brx.idx %a1, TABLE; ZERO: mov.u32 %d0, 10; bra DONE; ONE: mov.u32 %d0, 11; bra DONE;
        TWO: mov.u32 %d0, 12; DONE:"""
    (r,) = execute(body, np.zeros(64, np.uint32))
    assert np.array_equal(r, 10 + np.minimum(np.arange(64) % 4, 2))


def test_scopes_have_their_own_names():
    """As inline assembly does: registers and labels of the same names, one block after another."""
    block = """{{ .reg .b32 %t, %x<2>; .reg .pred %c0; mov.u32 %t, {start}; mov.u32 %x1, 0;
        AGAIN: add.u32 %x1, %x1, %t; sub.u32 %t, %t, 1; setp.ne.u32 %c0, %t, 0; @%c0 bra AGAIN;
        add.u32 %d0, %d0, %x1; }}"""
    body = "mov.u32 %d0, %t; AGAIN:" + block.format(start=3) + block.format(start=5)
    body += "setp.lt.u32 %c0, %d0, 100; @%c0 bra AGAIN;"
    (r,) = execute(body, np.zeros(64, np.uint32))
    want = np.arange(64) + 21
    while (want < 100).any():
        want = np.where(want < 100, want + 21, want)
    assert np.array_equal(r, want)


def test_special_registers():
    text = f"""{HEAD}.extern .shared .align 16 .b8 dynamic[];
        .visible .entry k(.param .u64 y) {{ .reg .b32 %r<12>, %o; .reg .b64 %q, %w;
        .shared .align 4 .b8 fixed[40]; st.shared.u32 [fixed], 0;
        ld.param.u64 %q, [y]; mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %ctaid.x;
        mov.u32 %r3, %ctaid.y; mov.u32 %r4, %ntid.x; mov.u32 %r5, %nctaid.y; mov.u32 %r6, %laneid;
        mov.u32 %r7, %warpid; mov.u32 %r8, %lanemask_lt; mov.u32 %r9, %dynamic_smem_size;
        mov.u32 %r10, dynamic; mov.u32 %r11, WARP_SZ;
        mad.lo.u32 %o, %r3, 2, %r2; mad.lo.u32 %o, %o, 4, %r1; mad.lo.u32 %o, %o, 20, %r0;
        mul.wide.u32 %w, %o, 48; add.u64 %q, %q, %w;
        {"".join(f"st.global.u32 [%q + {4 * k}], %r{k};" for k in range(12))} ret; }}"""
    y = output((3, 2, 4, 20, 12), np.uint32)
    run(text, "k", (2, 3), (20, 4), [y], 100)
    for row, column, ty, tx in np.ndindex(3, 2, 4, 20):
        t = ty * 20 + tx
        want = [tx, ty, column, row, 20, 3, t % 32, t // 32, (1 << t % 32) - 1, 100, 48, 32]
        assert y.array[row, column, ty, tx].tolist() == want
