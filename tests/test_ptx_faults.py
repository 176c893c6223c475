"""Planted bugs: every check of the executor is shown to fire, and to say where."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ptx import (
    AsyncCopyHazard,
    BarrierError,
    Buffer,
    DeviceFault,
    GlobalRace,
    LaunchError,
    Misaligned,
    OutOfBounds,
    PtxParseError,
    ReadOnlyWrite,
    Runaway,
    SharedRace,
    Trap,
    UninitialisedRead,
    UnsupportedInstruction,
    WarpSyncError,
    run,
)
from ptx.samples import HEAD, execute, launch, needs_nvcc, output


def fault(error: type, kernel: str, grid, block, args, file="faults.cu", **options) -> DeviceFault:
    """The fault that a kernel must raise."""
    with pytest.raises(error) as caught:
        launch(file, kernel, grid, block, args, **options)
    return caught.value


def integers(n: int) -> np.ndarray:
    return np.zeros(n, np.int32)


def floats(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


@needs_nvcc
def test_out_of_bounds_says_who_and_where():
    e = fault(OutOfBounds, "store_past_end", 2, 64, [100, floats(100)])
    assert (e.block, e.thread) == ((1, 0, 0), (36, 0, 0))
    assert re.search(r"4-byte global write at .* = arg1\+400 bytes; arg1 has 400 bytes", str(e))
    assert "faults.cu:7" in str(e)
    assert "st.global" in str(e)


@needs_nvcc
def test_null_pointer():
    assert "in no buffer" in str(fault(OutOfBounds, "copy_words", 1, 32, [32, None, integers(32)]))


@needs_nvcc
def test_neighbouring_buffers_do_not_touch():
    """An address just past one buffer is not in the next."""
    x, y = Buffer(integers(32), name="x"), Buffer(integers(64), name="y")
    e = fault(OutOfBounds, "copy_words", 1, 64, [64, x, y])
    assert "x+128 bytes" in str(e)


@needs_nvcc
def test_shared_out_of_bounds():
    e = fault(OutOfBounds, "shared_past_end", 1, 64, [floats(64), 1])
    assert e.thread == (63, 0, 0)
    assert "the block has 256 bytes" in str(e)


def test_local_out_of_bounds():
    body = """.local .align 4 .b8 frame[16]; mov.u32 %a1, frame; mad.lo.u32 %a1, %a0, 4, %a1;
        st.local.u32 [%a1], %a0; ld.local.u32 %d0, [%a1];"""
    (r,) = execute(body, np.arange(32, dtype=np.uint32) % 4)
    assert np.array_equal(r, np.arange(32) % 4)
    with pytest.raises(OutOfBounds, match="the frame has 16 bytes"):
        execute(body, np.arange(32, dtype=np.uint32) % 5)


@needs_nvcc
@pytest.mark.parametrize(
    ("kernel", "block", "hazard"),
    [
        ("missing_syncthreads", 128, "read-after-write"),
        ("missing_second_syncthreads", 64, "write-after-read"),
    ],
)
def test_missing_barrier(kernel, block, hazard):
    args = [floats(256), np.zeros(256, np.float32)]
    launch("faults.cu", kernel, 1, block, args)
    assert hazard in str(fault(SharedRace, kernel, 1, block, args, racecheck=True))


@needs_nvcc
def test_barrier_of_the_wrong_threads():
    args = [integers(64)]
    e = fault(SharedRace, "wrong_named_barrier", 1, 128, args, racecheck=True)
    assert "read-after-write" in str(e)


@needs_nvcc
def test_halves_of_a_word():
    """Accesses of different sizes: a hazard lies in a half of what is read."""
    e = fault(SharedRace, "halves_of_a_word", 1, 64, [np.zeros(32, np.uint32)], racecheck=True)
    assert "read-after-write hazard on shared offset 2:" in str(e)


@needs_nvcc
def test_warp_barrier():
    launch("faults.cu", "missing_syncwarp", 1, 32, [integers(32)], racecheck=True)
    options = {"defines": ("MISSING_SYNCWARP",), "racecheck": True}
    fault(SharedRace, "missing_syncwarp", 1, 32, [integers(32)], **options)


@needs_nvcc
def test_two_writes_of_one_instruction():
    launch("faults.cu", "same_address", 1, 32, [integers(32), 7], racecheck=True)
    e = fault(SharedRace, "same_address", 1, 32, [integers(32), -1], racecheck=True)
    assert "in one instruction" in str(e)


@pytest.mark.parametrize(("value", "fine"), [(5, True), (6, False)])
def test_writing_the_same_value_is_no_hazard(value, fine):
    """Thread 1 writes where thread 0 has written, with no barrier between."""
    body = f""".shared .align 4 .b8 s[64]; setp.eq.u32 %c0, %t, 0; setp.eq.u32 %c1, %t, 1;
        mov.u32 %d0, 5; mov.u32 %d1, {value};
        @%c0 st.shared.u32 [s], %d0; @%c1 st.shared.v2.u32 [s], {{%d1, %d1}};"""
    text = f"""{HEAD}.visible .entry k() {{ .reg .b32 %d<2>, %t; .reg .pred %c<2>;
        mov.u32 %t, %tid.x; {body} ret; }}"""
    if fine:
        run(text, "k", 1, 32, [], racecheck=True)
    else:
        with pytest.raises(SharedRace, match="write-after-write hazard on shared offset 0"):
            run(text, "k", 1, 32, [], racecheck=True)


@needs_nvcc
@pytest.mark.parametrize("lanes", [32, 4096])
def test_blocks_collide(lanes):
    args = [integers(32)]
    launch("faults.cu", "blocks_collide", 3, 32, args)
    fault(GlobalRace, "blocks_collide", 3, 32, args, racecheck=True, lanes=lanes)


@needs_nvcc
@pytest.mark.parametrize(
    ("bug", "error"),
    [
        ("MISSING_WAIT", AsyncCopyHazard),
        ("LATE_WAIT=1", AsyncCopyHazard),
        ("MISSING_BARRIER", SharedRace),
    ],
)
def test_bugs_in_a_pipelined_gemm(bug, error):
    a, b = np.ones((64, 160), np.float16), np.ones((160, 64), np.float16)
    args = [64, 64, 160, a, b, output((64, 64))]
    options = {"defines": (bug,), "racecheck": error is SharedRace}
    fault(error, "gemm_f16", 1, 128, args, "gemm.cu", **options)


@needs_nvcc
def test_uninitialised():
    e = fault(UninitialisedRead, "uninitialised_shared", 1, 64, [floats(64)])
    assert e.thread == (63, 0, 0)
    x = Buffer(integers(32), uninit=True, name="x")
    e = fault(UninitialisedRead, "copy_words", 1, 32, [32, x, integers(32)])
    assert "read of x+0 bytes, never written" in str(e)


def test_partly_initialised_words():
    """Two of four bytes written, by this launch or an earlier one, are not enough."""
    text = f"""{HEAD}.visible .entry k(.param .u64 x, .param .u32 both) {{
        .reg .b64 %p; .reg .b32 %r, %b; .reg .b16 %h; .reg .pred %c; .shared .align 8 .b8 s[8];
        ld.param.u64 %p, [x]; ld.param.u32 %b, [both]; setp.ne.u32 %c, %b, 0; mov.b16 %h, 5;
        st.global.u16 [%p], %h; st.shared.u16 [s], %h;
        @%c st.global.u16 [%p + 2], %h; @%c st.shared.u16 [s + 2], %h;
        ld.global.u32 %r, [%p]; ld.shared.u32 %r, [s]; ret; }}"""
    x = np.zeros(1, np.uint32)
    run(text, "k", 1, 1, [Buffer(x, uninit=True), 1])
    assert x[0] == 0x50005
    with pytest.raises(UninitialisedRead, match="never written"):
        run(text, "k", 1, 1, [Buffer(x, uninit=True), 0])
    with pytest.raises(UninitialisedRead, match="shared offset 0"):
        run(text, "k", 1, 1, [x, 0])


@needs_nvcc
def test_misaligned():
    fault(Misaligned, "misaligned_vector", 1, 8, [floats(64), floats(64)])


def test_misaligned_shared_and_local():
    for space in ("shared", "local"):
        body = f".{space} .align 8 .b8 m[64]; mov.u32 %a1, m; st.{space}.u32 [%a1 + 2], %a0;"
        with pytest.raises(Misaligned, match=f"4-byte {space} access at offset 0x2"):
            execute(body, np.zeros(32, np.uint32))


@needs_nvcc
def test_read_only():
    y = Buffer(integers(32), readonly=True, name="weights")
    e = fault(ReadOnlyWrite, "copy_words", 1, 32, [32, integers(32), y])
    assert "write to read-only weights" in str(e)


@needs_nvcc
def test_barriers():
    e = fault(BarrierError, "divergent_barrier", 1, 64, [floats(64)])
    assert "waits for lanes that never arrive" in str(e) or "different barriers" in str(e)
    e = fault(BarrierError, "missing_arrival", 1, 64, [floats(64)])
    assert "barrier 1 has 32 of 64 threads" in str(e)


def test_different_barriers_of_one_block():
    body = """setp.lt.u32 %c0, %t, 32; @%c0 bra ONE; bar.sync 0; bra DONE; ONE: bar.sync 0; DONE:
        mov.u32 %d0, 1;"""
    with pytest.raises(BarrierError, match="met at different barriers"):
        execute(body, np.zeros(64, np.uint32))
    with pytest.raises(BarrierError, match=r"barrier number 16 is not in 0\.\.15"):
        execute("bar.sync 16;", np.zeros(32, np.uint32))


@needs_nvcc
def test_partial_warps():
    e = fault(WarpSyncError, "partial_warp_ldmatrix", 1, 32, [np.zeros(32, np.uint32)])
    assert "executed by 20 of 32 lanes" in str(e)
    e = fault(WarpSyncError, "partial_warp_shuffle", 1, 32, [integers(32)])
    assert "waits for lanes" in str(e)


def test_lanes_that_have_gone_or_are_not_named():
    mma = """mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3},
        {%a0, %a0, %a0, %a0}, {%a0, %a0}, {%d0, %d1, %d2, %d3};"""
    body = f"setp.gt.u32 %c0, %t, 40; @%c0 ret; {mma}"
    with pytest.raises(WarpSyncError, match="executed by 9 of 32 lanes"):
        execute(body, np.zeros(64, np.uint32))
    with pytest.raises(WarpSyncError, match="not in its membermask"):
        execute("shfl.sync.bfly.b32 %d0, %a0, 1, 31, 0xFFFF;", np.zeros(32, np.uint32))


@needs_nvcc
def test_failed_assertion():
    e = fault(Trap, "failed_assertion", 1, 32, [20])
    assert e.thread == (20, 0, 0)
    launch("faults.cu", "failed_assertion", 1, 32, [32])


def test_trap():
    with pytest.raises(Trap, match="trap executed"):
        execute("trap;", np.zeros(32, np.uint32))


@needs_nvcc
def test_endless_loop():
    fault(Runaway, "endless", 1, 32, [integers(1)], max_steps=10000)


@needs_nvcc
def test_launches_that_do_not_fit():
    for block, args, match in (
        (2048, [1, 1.0, None, None], "bad launch"),
        (32, [1, 1.0], "takes 4 parameters, got 2"),
        (32, [bytes(5), 1.0, None, None], "argument 0 has 5 bytes"),
    ):
        with pytest.raises(LaunchError, match=match):
            launch("elementary.cu", "saxpy", 1, block, args)
    with pytest.raises(LaunchError, match="no kernel nothing; the module has"):
        launch("elementary.cu", "nothing", 1, 32, [])
    with pytest.raises(LaunchError, match="256 threads per block; the kernel declares"):
        launch("gemm.cu", "gemm_f16", 1, 256, [0, 0, 0, None, None, None])


def test_ptx_that_cannot_run():
    zeros = np.zeros(32, np.uint32)
    with pytest.raises(UnsupportedInstruction, match="wgmma"):
        execute("wgmma.fence.sync.aligned;", zeros)
    with pytest.raises(UnsupportedInstruction, match=r"line .*%nothing"):
        execute("add.u32 %d0, %nothing, 1;", zeros)
    with pytest.raises(PtxParseError, match=r"line \d+: undeclared register nothing: @nothing"):
        execute("@nothing add.u32 %d0, %a0, 1;", zeros)
    with pytest.raises(PtxParseError, match="line 4: unterminated function"):
        run(HEAD + ".visible .entry k() { ret;", "k", 1, 32, [])
