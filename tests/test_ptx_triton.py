"""Kernels compiled by Triton, ahead of time, against PyTorch; most of them under racecheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptx import Buffer, compile_triton, run_triton
from ptx.samples import output

pytest.importorskip("triton", reason="triton is not installed")

from ptx.samples import triton_kernels as kernels


def random() -> np.random.Generator:
    return np.random.default_rng(1)


def stored(t: torch.Tensor) -> np.ndarray:
    """Array that shares a tensor's memory; bf16 as int16."""
    return t.view(torch.int16).numpy() if t.dtype == torch.bfloat16 else t.numpy()


@pytest.mark.parametrize("arch", [80, 89])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("aligned", [True, False])
def test_matmul(arch, dtype, aligned):
    # sizes promised to be divisible by 16 make the compiler pipeline with cp.async
    M, N, K, pitch = (208, 144, 160, 160) if aligned else (201, 137, 155, 208)
    hint = ":16" if aligned else ""
    signature = dict.fromkeys(("M", "N", "K"), "i32" + hint)
    signature |= dict.fromkeys(("sam", "sbk", "scm"), "i32:16")
    signature |= dict.fromkeys("ABC", f"*{dtype}:16") | {"bias": "*fp32:16", "slope": "*fp32:16"}
    k = compile_triton(kernels.matmul_prelu, signature, {"BM": 64, "BN": 64, "BK": 32}, arch)
    kind = torch.float16 if dtype == "fp16" else torch.bfloat16
    torch.manual_seed(0)
    a, b = torch.zeros(M, pitch, dtype=kind), torch.zeros(K, pitch, dtype=kind)
    a[:, :K], b[:, :N] = torch.randn(M, K), torch.randn(K, N)
    c, bias, slope = torch.zeros(M, pitch, dtype=kind), torch.randn(N), torch.rand(N)
    args = [stored(a), stored(b), Buffer(stored(c), uninit=True), bias.numpy(), slope.numpy()]
    sizes = [M, N, K, pitch, pitch, pitch]
    grid = (-(-M // 64), -(-N // 64))
    counters = run_triton(k, grid, args + sizes, racecheck=True).counters
    want = a[:, :K].float() @ b[:, :N].float() + bias
    want = torch.where(want > 0, want, want * slope)
    error = (c[:, :N].float() - want.to(kind).float()).abs()
    ulp = 2.0 ** (-10 if dtype == "fp16" else -7)
    assert (error <= ulp * want.abs() + 1e-3).all()
    assert counters.tensor_macs == 64 * 64 * 32 * grid[0] * grid[1] * -(-K // 32)
    if aligned:
        assert counters.cp_async.requests
        assert counters.ldmatrix.requests
        assert counters.ldmatrix.conflicts == 0  # Triton swizzles


def test_int8_matmul():
    M, N, K = 64, 64, 128
    signature = {"A": "*i8:16", "B": "*i8:16", "C": "*i32:16"}
    signature |= dict.fromkeys("MNK", "i32:16")
    k = compile_triton(kernels.matmul_int8, signature, {"BM": 32, "BN": 32, "BK": 64})
    a = random().integers(-128, 128, (M, K)).astype(np.int8)
    b = random().integers(-128, 128, (N, K)).astype(np.int8)
    y = output((M, N), np.int32)
    c = run_triton(k, (2, 2), [a, b, y, M, N, K], racecheck=True).counters
    assert np.array_equal(y.array, a.astype(np.int32) @ b.astype(np.int32).T)
    assert c.tensor_macs == M * N * K


def test_softmax():
    signature = {"X": "*fp32:16", "Y": "*fp32:16", "n": "i32", "stride": "i32"}
    k = compile_triton(kernels.softmax, signature, {"BLOCK": 512})
    x = random().standard_normal((9, 400)).astype(np.float32) * 5
    y = output((9, 400))
    run_triton(k, 9, [x, y, 397, 400], racecheck=True)
    want = torch.softmax(torch.from_numpy(x[:, :397]), 1).numpy()
    assert np.allclose(y.array[:, :397], want, atol=1e-6)


def test_layernorm():
    signature = {"X": "*fp16:16", "Y": "*fp16:16", "W": "*fp32:16", "B": "*fp32:16"}
    signature |= {"n": "i32", "eps": "fp32"}
    k = compile_triton(kernels.layernorm, signature, {"BLOCK": 1024}, num_warps=8)
    n = 770
    x = random().standard_normal((7, n)).astype(np.float16)
    w, b = random().standard_normal((2, n)).astype(np.float32)
    y = output((7, n), np.float16)
    run_triton(k, 7, [x, y, w, b, n, 1e-5], racecheck=True)
    tensors = [torch.from_numpy(v) for v in (w, b)]
    want = torch.nn.functional.layer_norm(torch.from_numpy(x).float(), (n,), *tensors)
    assert np.allclose(y.array.astype(np.float32), want.numpy(), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("arch", [80, 89])
def test_convolution_and_pooling(arch):
    H, W, CI, CO = 12, 18, 32, 48
    x = random().standard_normal((H, W, CI)).astype(np.float16)
    w = (random().standard_normal((3, 3, CI, CO)) / 10).astype(np.float16)
    y = output((H, W, CO), np.float16)
    signature = dict.fromkeys(("X", "Wt", "Y"), "*fp16:16") | {"H": "i32", "Wd": "i32"}
    signature["CO"] = "i32:16"
    k = compile_triton(kernels.conv3x3, signature, {"CI": CI, "BM": 64, "BN": 32}, arch)
    grid = (-(-H * W // 64), -(-CO // 32))
    c = run_triton(k, grid, [x, w, y, H, W, CO], racecheck=True).counters
    tx = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]
    tw = torch.from_numpy(w.astype(np.float32)).permute(3, 2, 0, 1)
    want = torch.nn.functional.conv2d(tx, tw, padding=1)[0].permute(1, 2, 0).numpy()
    assert np.allclose(y.array.astype(np.float32), want, atol=5e-3)
    assert sum(c.mma.values()) > 0
    pooled = output((H // 2, W // 2, CO), np.float16)
    signature = {"X": "*fp16:16", "Y": "*fp16:16", "OH": "i32", "OW": "i32", "C": "i32:16"}
    k = compile_triton(kernels.maxpool2x2, signature, {"BLOCK": 256}, arch)
    blocks = -(-pooled.array.size // 256)
    run_triton(k, blocks, [y.array, pooled, H // 2, W // 2, CO])
    cells = y.array.reshape(H // 2, 2, W // 2, 2, CO)
    assert np.array_equal(pooled.array, cells.max((1, 3)))


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 3e-2), ("tf32x3", 1e-5)])
def test_tf32(precision, tolerance):
    torch.manual_seed(1)
    a, b = torch.randn(32, 32), torch.randn(32, 32)
    y = output((32, 32))
    signature = dict.fromkeys("ABC", "*fp32:16")
    k = compile_triton(kernels.dot_square, signature, {"N": 32, "PRECISION": precision})
    c = run_triton(k, 1, [a.numpy(), b.numpy(), y], racecheck=True).counters
    assert np.allclose(y.array, (a @ b).numpy(), atol=tolerance)
    assert sum(c.mma.values()) > 0


def test_sort_and_scan():
    signature = {"X": "*fp32:16", "Y": "*fp32:16", "S": "*fp32:16", "A": "*i32"}
    k = compile_triton(kernels.sort_scan, signature, {"BLOCK": 512})
    x = random().standard_normal(512).astype(np.float32)
    outs = [
        Buffer(np.zeros(n, t), uninit=True)
        for n, t in ((512, np.float32), (512, np.float32), (1, np.int32))
    ]
    run_triton(k, 1, [x, *outs], racecheck=True)
    y, s, a = (o.array for o in outs)
    assert np.array_equal(y, np.sort(x))
    assert np.allclose(s, np.cumsum(x), atol=1e-4)
    assert a[0] == x.argmax()


def test_functions_and_atomics():
    signature = {"X": "*fp32:16", "Y": "*fp32:16", "Z": "*fp32:16", "n": "i32"}
    k = compile_triton(kernels.math_atomics, signature, {"BLOCK": 256})
    x = random().standard_normal(1000).astype(np.float32)
    y, z, t = output(1000), np.zeros(9, np.float32), torch.from_numpy(x)
    run_triton(k, 4, [x, y, z, 1000])
    want = torch.sigmoid(t) + torch.exp2(t) + torch.log(t.abs() + 1) + t.abs().sqrt()
    want = want + torch.erf(t) + torch.floor(t)
    assert np.allclose(y.array, want.numpy(), atol=3e-6)
    assert np.allclose(z, [x.sum(), x.max(), *[x[j::7].sum() for j in range(7)]], atol=1e-4)
