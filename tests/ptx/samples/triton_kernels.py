"""Triton kernels; what Triton compiles them to is independent ground truth for the executor."""

import triton
import triton.language as tl


@triton.jit
def matmul_prelu(
    A,
    B,
    C,
    bias,
    slope,
    M,
    N,
    K,
    sam,
    sbk,
    scm,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """C = prelu(A @ B + bias), masked in all three dimensions."""
    om = tl.program_id(0) * BM + tl.arange(0, BM)
    on = tl.program_id(1) * BN + tl.arange(0, BN)
    ok = tl.arange(0, BK)
    pa = A + om[:, None] * sam + ok[None, :]
    pb = B + ok[:, None] * sbk + on[None, :]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        a = tl.load(pa, mask=(om[:, None] < M) & (ok[None, :] + k < K), other=0.0)
        b = tl.load(pb, mask=(on[None, :] < N) & (ok[:, None] + k < K), other=0.0)
        acc = tl.dot(a, b, acc)
        pa += BK
        pb += BK * sbk
    acc += tl.load(bias + on, mask=on < N, other=0.0)[None, :]
    acc = tl.where(acc > 0, acc, acc * tl.load(slope + on, mask=on < N, other=0.0)[None, :])
    tl.store(
        C + om[:, None] * scm + on[None, :],
        acc.to(C.dtype.element_ty),
        mask=(om[:, None] < M) & (on[None, :] < N),
    )


@triton.jit
def matmul_int8(A, B, C, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C[int32] = A[int8] @ B[int8]^T with B stored N x K."""
    om = tl.program_id(0) * BM + tl.arange(0, BM)
    on = tl.program_id(1) * BN + tl.arange(0, BN)
    ok = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for k in range(0, K, BK):
        a = tl.load(A + om[:, None] * K + (k + ok)[None, :])
        b = tl.load(B + on[None, :] * K + (k + ok)[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(C + om[:, None] * N + on[None, :], acc)


@triton.jit
def softmax(X, Y, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    o = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride + o, mask=o < n, other=-float("inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(Y + row * stride + o, e / tl.sum(e, axis=0), mask=o < n)


@triton.jit
def layernorm(X, Y, W, B, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    o = tl.arange(0, BLOCK)
    m = o < n
    x = tl.load(X + row * n + o, mask=m, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / n
    d = tl.where(m, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(d * d, axis=0) / n + eps)
    w = tl.load(W + o, mask=m, other=0.0)
    b = tl.load(B + o, mask=m, other=0.0)
    tl.store(Y + row * n + o, (d * rstd * w + b).to(Y.dtype.element_ty), mask=m)


@triton.jit
def conv3x3(X, Wt, Y, H, Wd, CO, CI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """NHWC 3x3 convolution, zero padding 1, as implicit GEMM; weights [3*3*CI, CO]."""
    pix = tl.program_id(0) * BM + tl.arange(0, BM)
    on = tl.program_id(1) * BN + tl.arange(0, BN)
    oc = tl.arange(0, CI)
    total = H * Wd
    y, x = pix // Wd, pix % Wd
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for tap in range(9):
        yy, xx = y + tap // 3 - 1, x + tap % 3 - 1
        ok = (pix < total) & (yy >= 0) & (yy < H) & (xx >= 0) & (xx < Wd)
        a = tl.load(X + ((yy * Wd + xx) * CI)[:, None] + oc[None, :], mask=ok[:, None], other=0.0)
        b = tl.load(
            Wt + (tap * CI + oc)[:, None] * CO + on[None, :], mask=on[None, :] < CO, other=0.0
        )
        acc = tl.dot(a, b, acc)
    tl.store(
        Y + pix[:, None] * CO + on[None, :],
        acc.to(Y.dtype.element_ty),
        mask=(pix[:, None] < total) & (on[None, :] < CO),
    )


@triton.jit
def maxpool2x2(X, Y, OH, OW, C, BLOCK: tl.constexpr):
    """NHWC 2x2 max pooling, stride 2; input is (2*OH, 2*OW, C)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < OH * OW * C
    c, x, y = i % C, i // C % OW, i // (C * OW)
    base = (2 * y * 2 * OW + 2 * x) * C + c
    a = tl.maximum(tl.load(X + base, mask=m), tl.load(X + base + C, mask=m))
    b = tl.maximum(
        tl.load(X + base + 2 * OW * C, mask=m), tl.load(X + base + 2 * OW * C + C, mask=m)
    )
    tl.store(Y + i, tl.maximum(a, b), mask=m)


@triton.jit
def dot_square(A, B, C, N: tl.constexpr, PRECISION: tl.constexpr):
    """One N x N x N product in the given precision of the inputs."""
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(C + at, tl.dot(tl.load(A + at), tl.load(B + at), input_precision=PRECISION))


@triton.jit
def sort_scan(X, Y, S, A, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    x = tl.load(X + o)
    tl.store(Y + o, tl.sort(x))
    tl.store(S + o, tl.cumsum(x, axis=0))
    tl.store(A, tl.argmax(x, axis=0))


@triton.jit
def math_atomics(X, Y, Z, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    x = tl.load(X + o, mask=m, other=0.0)
    y = tl.sigmoid(x) + tl.exp2(x) + tl.log(tl.abs(x) + 1) + tl.sqrt(tl.abs(x)) + tl.math.erf(x)
    tl.store(Y + o, y + tl.floor(x), mask=m)
    tl.atomic_add(Z, tl.sum(x, axis=0))
    tl.atomic_max(Z + 1, tl.max(x, axis=0))
    tl.atomic_add(Z + 2 + o % 7, x, mask=m)
