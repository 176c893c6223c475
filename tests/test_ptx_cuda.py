"""CUDA kernels on the executor, against NumPy and Python integers."""

from __future__ import annotations

import numpy as np
import pytest

from ptx import Buffer
from ptx.samples import launch, needs_nvcc, output

pytestmark = needs_nvcc


def random() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.mark.parametrize("arch", [80, 90])
def test_saxpy(arch):
    n = 10007
    x, y = random().standard_normal((2, n)).astype(np.float32)
    want = (np.float64(np.float32(1.7)) * x + y).astype(np.float32)
    args = [n, 1.7, Buffer(x, readonly=True), y]
    c = launch("elementary.cu", "saxpy", (n + 255) // 256, 256, args, arch=arch)
    assert np.array_equal(y, want)
    assert c.fma["f32"] == n
    assert c.global_load.bytes == c.global_load.unique_bytes == 8 * n
    assert c.global_store.unique_bytes == 4 * n
    assert c.global_load.sectors == 2 * -(-n // 8) == c.global_load.unique_sectors


@pytest.mark.parametrize("lanes", [256, 16384])
def test_block_reduce(lanes):
    n = 5000
    x = random().integers(-50, 50, n).astype(np.float32)
    y = output(20)
    options = {"lanes": lanes, "racecheck": True}
    launch("elementary.cu", "block_reduce", 20, 256, [n, x, y], **options)
    padded = np.append(x, np.zeros(120)).reshape(20, 256)
    assert np.array_equal(y.array, padded.sum(1))


def test_transpose_counts_bank_conflicts():
    n = 64
    x = random().standard_normal((n, n)).astype(np.float32)
    counts = {}
    for kernel in ("transpose_conflict", "transpose_padded"):
        y = output((n, n))
        args = [n, x, y]
        counts[kernel] = launch("elementary.cu", kernel, (2, 2), (32, 32), args, racecheck=True)
        assert np.array_equal(y.array, x.T)
    bad, good = counts["transpose_conflict"].shared_load, counts["transpose_padded"].shared_load
    assert bad.requests == good.requests == 128
    assert bad.wavefronts == 32 * 128
    assert bad.conflicts == 31 * 128
    assert good.conflicts == counts["transpose_padded"].shared_store.conflicts == 0


def collatz(lanes):
    x = random().integers(1, 3000, 700).astype(np.uint32)
    y = output(700, np.int32)
    return x, y.array, launch("elementary.cu", "collatz", 6, 128, [700, x, y], lanes=lanes)


@pytest.mark.parametrize("lanes", [128, 16384])
def test_divergent_loop(lanes):
    def steps(v):
        k = 0
        while v != 1:
            v, k = (3 * v + 1 if v & 1 else v >> 1), k + 1
        return k

    x, y, _ = collatz(lanes)
    assert y.tolist() == [steps(int(v)) for v in x]


def test_results_do_not_depend_on_how_many_lanes_run_at_once():
    def runs(lanes):
        x = np.arange(5000, dtype=np.float32)
        octets = (np.arange(1000) * 7 % 10).astype(np.uint8)
        hist, total = np.zeros(256, np.uint32), np.zeros(1, np.float32)
        a = random().integers(-4, 5, (96, 96)).astype(np.float16)
        product = output((96, 96))
        args = [1000, octets, hist, output(1000, np.uint32), total]
        counters = [
            collatz(lanes)[2],
            launch("elementary.cu", "block_reduce", 20, 256, [5000, x, output(20)], lanes=lanes),
            launch("elementary.cu", "histogram", 4, 256, args, lanes=lanes),
            launch("gemm.cu", "gemm_f16", (2, 2), 128, [96, 96, 96, a, a, product], lanes=lanes),
        ]
        return [c.as_dict() for c in counters], hist.tolist(), product.array.tolist()

    assert runs(128) == runs(640) == runs(16384)


def test_switch():
    n = 1000
    x = random().integers(-40000, 40000, n).astype(np.int32)
    y = output(n, np.int32)
    launch("elementary.cu", "switch_steps", 8, 128, [n, x, y])

    def truncated(a, b):
        return int(a / b)

    def expected(v):
        cases = {
            0: lambda: v * v - 3,
            1: lambda: v * 5 + 1,
            2: lambda: truncated(v, 7),
            3: lambda: ~v - 1000 * truncated(~v, 1000),
            4: lambda: v << (v & 15),
            5: lambda: v ^ 0x5A5A,
        }
        return int(np.int64(cases.get(v & 7, lambda: -v)()).astype(np.int32))

    assert y.array.tolist() == [expected(int(v)) for v in x]


def test_struct_parameter_and_local_array():
    scale = np.arange(1, 7, dtype=np.float32)
    raw = scale.tobytes() + np.array([7, 0, 3], np.uint8).tobytes() + bytes(1)
    x = random().standard_normal(96).astype(np.float32)
    y = output(96)
    c = launch("elementary.cu", "structs", 3, 32, [raw, x, y, 5])
    t = np.arange(96) % 32
    stack = [scale[(t * 7 + k) % 6] * x for k in range(5)]  # pushed in order, summed by index
    want = sum((stack[k] * np.float32(k + 1) for k in range(5)), np.zeros(96, np.float32)) + 10
    assert np.allclose(y.array, want, rtol=1e-5, atol=1e-4)
    assert c.local_store.requests == c.warp_instructions["store_local"] >= 15
    assert c.local_load.requests == c.warp_instructions["load_local"] >= 15


@pytest.mark.parametrize("arch", [80, 90])
def test_integer_operations(arch):
    n = 2000
    a, b, c = random().integers(0, 2**32, (3, n), dtype=np.uint64).astype(np.uint32)
    a[:8] = [0, 1, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, 2, 3, 0x10000]
    b[:8] = [0, 0xFFFFFFFE, 0xFFFFFFFE, 0xFFFFFFFF, 1, 0, 7, 0x8000]
    r, r64 = output((n, 19), np.uint32), output((n, 3), np.uint64)
    r64.name = "out64"
    launch("elementary.cu", "integer_ops", -(-n // 128), 128, [n, a, b, c, r, r64], arch=arch)
    for i in range(n):
        wanted, wanted64 = integer_results(int(a[i]), int(b[i]), int(c[i]))
        assert [v & 0xFFFFFFFF for v in wanted] == r.array[i].tolist(), i
        assert [v & 2**64 - 1 for v in wanted64] == r64.array[i].tolist(), i


def integer_results(x, y, z):
    """What `integer_ops` computes."""

    def signed(v):
        return v - (1 << 32) if v >> 31 else v

    def octet(v, k):
        v = v >> 8 * k & 255
        return v - 256 if v > 127 else v

    def truncated(p, q):
        return abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)

    xy, w = y << 32 | x, x << 32 | y
    sx, sy, odd = signed(x), signed(y), signed(y | 1)
    field, mask = x >> 5 & 511, 0xFFF << 7
    wanted = [
        x + y,
        x * y + z,
        x * y >> 32,
        sx * sy >> 32,
        x // (y | 1),
        sx - truncated(sx, odd) * odd,
        x.bit_count(),
        32 - x.bit_length(),
        int(f"{x:032b}"[::-1], 2),
        sum((xy >> 8 * (z >> 4 * k & 7) & 255) << 8 * k for k in range(4)),
        (xy << (z & 31)) >> 32,
        xy >> min(z & 63, 32),
        (x & y) ^ (z | ~x),
        sum(octet(x, k) * octet(y, k) for k in range(4)) + z,
        field - 512 if field > 255 else field,
        (y & ~mask) | (x << 7 & mask),
        min(sx, sy) + max(x, y),
        sx >> (z & 31),
        (x & -x).bit_length(),
    ]
    high = w * (z << 31 | x) >> 64
    return wanted, [w * z + x * y, high, w // (z | 1) + w.bit_count() + 64 - w.bit_length()]


def test_atomics():
    n = 1000
    x = random().integers(0, 10, n).astype(np.uint8)
    hist, total = np.zeros(256, np.uint32), np.zeros(1, np.float32)
    tickets = output(n, np.uint32)
    args = [n, x, hist, tickets, total]
    c = launch("elementary.cu", "histogram", 4, 256, args, racecheck=True)
    assert np.array_equal(hist, np.bincount(x, minlength=256))
    assert total[0] == x.sum()
    for block in range(4):
        part, t = x[block * 256 :][:256], tickets.array[block * 256 :][:256]
        for v in range(10):
            assert sorted(t[part == v]) == list(range((part == v).sum()))
    assert c.shared_atomic.requests == 32
    assert c.buffers["arg2"].atomic.requests == c.buffers["arg2"].atomic.bytes // 128 == 32
    assert c.global_atomic.requests == 32 + c.buffers["arg4"].atomic.requests


def test_warp_operations():
    x = random().integers(1, 100, 64).astype(np.int32)
    y = output((64, 8), np.int32)
    launch("elementary.cu", "warp_ops", 1, 64, [x, y])
    for t in range(64):
        warp, k = x[t // 32 * 32 :][:32].astype(np.int64), t % 32
        want = [
            sum(1 << j for j in range(32) if warp[j] > 3),
            2 * bool((warp > 90).any()) + bool((warp > 0).all()),
            -1,
            warp[k - 3] if k % 8 >= 3 else warp[k],
            warp[k // 16 * 16 + 5],
            (x & 1).sum(),
            None,
            warp.sum() + warp.max(),
        ]
        got = y.array[t]
        assert bool(got[6]) == bool((x == 77).any())
        for j in (0, 1, 2, 3, 4, 5, 7):
            assert int(got[j]) & 0xFFFFFFFF == int(want[j]) & 0xFFFFFFFF, (t, j)


def test_named_barrier():
    y = output(32, np.int32)
    launch("elementary.cu", "named_barrier", 3, 64, [y], racecheck=True)
    assert np.array_equal(y.array, 131 - np.arange(32))
