"""The engine as a guest in a process: what it takes, what it leaves alone, threads, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cpu.cases import ENDS, INSTRUCTION_SETS, backend, calibrated, threads
from dssnet_fast import FastDSSNet
from dssnet_fast.tiling import Box
from networks import CONFIGS, noise

pytestmark = pytest.mark.usefixtures("extension")

TESTS = Path(__file__).resolve().parents[1]
MODES = ("fp32", "bf16", "int8")


def image_of(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(noise(*shape, CONFIGS[name].in_channels))


def python(program: str) -> str:
    """What a program prints that starts with these tests' modules at hand."""
    begin = "from cpu.cases import *\nfrom cpu.test_engine import *\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what it is given ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b, i: b.infer(i[0], "labels"), ValueError, r"4 dimensions, got \[16, 24, 3\]"),
        (lambda b, i: b.infer(i[:, :15], "labels"), ValueError, "multiples of 8"),
        (lambda b, i: b.infer(i[:, :, :12], "labels"), ValueError, "multiples of 8"),
        (lambda b, i: b.infer(i[..., :2], "labels"), ValueError, "must have 3 channels"),
        (lambda b, i: b.infer(i.float(), "labels"), ValueError, "must have 3 channels"),
        (lambda b, i: b.infer(i.int(), "labels"), TypeError, "uint8 or floating point"),
        (lambda b, i: b.infer(i.bool(), "labels"), TypeError, "uint8 or floating point"),
        (lambda b, i: b.infer(i.to("meta"), "labels"), ValueError, "on cpu, got meta"),
        (lambda b, i: b.infer(i, "mask"), ValueError, "must be one of .*, got 'mask'"),
        (lambda b, i: b.infer(i, "decision"), ValueError, "must be one of .*, got 'decision'"),
        (lambda b, i: b.decide(i, Box(0, 0, 8, 12)), ValueError, "edges that are multiples of 8"),
        (lambda b, i: b.decide(i, Box(0, 8, 24, 16)), ValueError, "the core must lie in the image"),
        (lambda b, i: b.decide(i, Box(-8, 8, 8, 16)), ValueError, "the core must lie in the image"),
        (lambda b, i: b.decide(i, Box(16, 8, 8, 16)), ValueError, "the core must lie in the image"),
        (lambda b, i: b.downsample(i[:, :9]), ValueError, "multiples of 8"),
        (lambda b, i: b.extract(i.float()), ValueError, "x0 must have 30 channels"),
        (lambda b, i: b.extract(torch.ones(1, 2, 2, 30).half()), TypeError, "be torch.float32"),
        (lambda b, i: b.extract(torch.ones(2, 2, 30)), ValueError, "extract: a map must"),
        (lambda b, i: b.fuse(torch.ones(1, 2, 2, 42), i), ValueError, "must have one shape"),
        (lambda b, i: b.edges(torch.ones(1, 2, 2, 42), i), ValueError, "edges: .* one shape"),
        (lambda b, i: b.edges(i.float(), i.float()), ValueError, "shallow must have 42 channels"),
        (lambda b, i: b.decide(i, Box(0, 0, 8, 12), True), ValueError, "edges that are multiples"),
        (lambda b, i: b.segment(torch.ones(2, 2, 32), "labels"), ValueError, "segment: a map must"),
        (lambda b, i: b.segment(torch.ones(1, 4, 6, 32), "labels"), ValueError, "multiples of 4"),
        (
            lambda b, i: b.segment(torch.ones(1, 4, 4, 32).int(), "labels"),
            TypeError,
            "got torch.int",
        ),
        (
            lambda b, i: b.segment(torch.ones(1, 4, 4, 32, device="meta"), "labels"),
            ValueError,
            "on cpu, got meta",
        ),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call(backend(calibrated("paper")), image_of("paper", 1, 16, 24))


def test_edges_of_a_network_without_them_are_refused():
    plain = backend(calibrated("bottleneck"))
    image = image_of("bottleneck", 1, 16, 24)
    for call in (
        lambda: plain.infer_edges(image),
        lambda: plain.decide(image, Box(0, 0, 16, 24), edges=True),
        lambda: plain.edges(*plain.extract(plain.downsample(image))),
    ):
        with pytest.raises(ValueError, match="the network has no edge head"):
            call()


@pytest.mark.parametrize("mode", MODES)
def test_edges_take_some_more_memory(mode):
    engine = backend(calibrated("paper"), mode)
    labels = engine.workspace_bytes(512, 512)
    assert labels < engine.workspace_bytes(512, 512, edges=True) < 1.5 * labels


def awkward(x: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of the same values that lie otherwise in memory: part of a larger one, permuted, at
    an odd address, and one that wants a gradient."""
    larger = x.new_full((x.shape[0] + 1, *(size + 3 for size in x.shape[1:])), 77)
    inside = larger[(slice(1, None), *(slice(2, 2 + size) for size in x.shape[1:]))]
    inside.copy_(x)
    order = [*range(1, x.ndim), 0]
    back = [order.index(axis) for axis in range(x.ndim)]
    permuted = x.permute(order).contiguous().permute(back)
    odd = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    found = [inside, permuted, odd]
    if x.is_floating_point():
        found.append(x.clone().requires_grad_())
    return found


@pytest.mark.parametrize("mode", MODES)
def test_tensors_may_lie_anywhere_and_are_left_as_they_are(mode):
    engine = backend(calibrated("paper"), mode)
    image = image_of("paper", 2, 16, 24)
    x0 = engine.downsample(image)
    shallow, deep = engine.extract(x0)
    y = engine.fuse(shallow, deep)
    floats = ((image.permute(0, 3, 1, 2).float() - 128) / 128).contiguous()
    calls = [
        (lambda x: engine.infer(x, "logits"), image),
        (lambda x: engine.infer(x, "labels"), floats),
        (engine.downsample, floats),
        (lambda x: torch.stack(engine.extract(x)), x0),
        (lambda x: engine.fuse(x, deep), shallow),
        (lambda x: engine.fuse(shallow, x), deep),
        (lambda x: engine.edges(shallow, x), deep),
        (engine.infer_edges, image),
        (lambda x: engine.segment(x, "probabilities"), y),
    ]
    for call, given in calls:
        before = given.clone()
        answer = call(given)
        assert torch.equal(given, before)
        for other in awkward(given):
            assert not (other.is_contiguous() and other.data_ptr() % 16 == 0) or other.requires_grad
            again = call(other)
            assert torch.equal(again, answer)
            assert not again.requires_grad
            assert torch.equal(other, before)


def test_answers_are_the_callers_own():
    engine = backend(calibrated("paper"))
    first, second = image_of("paper", 1, 16, 24), 255 - image_of("paper", 1, 16, 24)
    for output in ("labels", "logits", "probabilities"):
        answer = engine.infer(first, output)
        kept = answer.clone()
        other = engine.infer(second, output)
        assert answer.data_ptr() != other.data_ptr()
        assert torch.equal(answer, kept)
        other.fill_(1)
        assert torch.equal(engine.infer(first, output), kept)
    x0 = engine.downsample(first)
    kept = x0.clone()
    maps = engine.extract(x0)
    engine.downsample(second)
    assert torch.equal(x0, kept)
    assert maps[0].data_ptr() != maps[1].data_ptr()


@pytest.mark.parametrize("mode", MODES)
def test_no_images_give_no_answers(mode):
    engine = backend(calibrated("paper"), mode)
    for image in (image_of("paper", 0, 16, 24), torch.zeros(0, 3, 16, 24)):
        assert engine.infer(image, "labels").shape == (0, 16, 24)
        assert engine.infer(image, "logits").shape == (0, 16, 24, 3)
        x0 = engine.downsample(image)
        assert x0.shape == (0, 2, 3, 30)
        shallow, deep = engine.extract(x0)
        assert engine.fuse(shallow, deep).shape == (0, 8, 12, 32)
    net = FastDSSNet(calibrated("paper"), device="cpu", backend="cpu", precision=mode)
    assert net.predict(noise(0, 20, 28, 3)).shape == (0, 20, 28)
    assert net(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["gray", "pixel_shuffle"])
@pytest.mark.parametrize("instruction_set", ENDS)
def test_what_is_no_number_stays_in_its_image(instruction_set, name, mode, value):
    """Memory is used again for the next image and the next call, pads and all."""
    engine = backend(calibrated(name), mode, instruction_set)
    images = torch.randn(5, CONFIGS[name].in_channels, 24, 136).clamp(-1, 127 / 128)
    wrong = images.clone()
    wrong[[0, 3]] = value
    for count in (1, 2, 3):
        with threads(count):
            clean = engine.infer(images, "logits")
            assert clean.isfinite().all()
            answer = engine.infer(wrong, "logits")
            # Another size leaves other pads where this image's cells were.
            engine.infer(wrong[:1, :, :16, :120], "labels")
            engine.infer(wrong, "labels")
            again = engine.infer(images, "logits")
        for number in (1, 2, 4):
            assert torch.equal(answer[number], clean[number])
        assert torch.equal(again, clean)
        if mode != "int8":
            assert not answer[[0, 3]].isfinite().all() or value == 3e38


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_many_threads_call_at_once(mode):
    engine = backend(calibrated("paper"), mode, winograd=False)
    images = [image_of("paper", 1 + i % 3, 24 + 8 * i, 40) for i in range(5)]
    with threads(1):
        expected = [engine.infer(image, "logits") for image in images]
    wrong = []

    def work(number):
        # This is torch's, and a thread's own.
        torch.set_num_threads(1 + number % 3)
        for _ in range(6):
            if not torch.equal(engine.infer(images[number], "logits"), expected[number]):
                wrong.append(number)

    with threads(3):
        callers = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


def test_other_python_threads_go_on_meanwhile():
    engine = backend(calibrated("paper"))
    image = image_of("paper", 2, 1024, 1024)
    engine.infer(image, "labels")
    gaps, stop = [], threading.Event()

    def look_at_the_clock():
        before = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            gaps.append(now - before)
            before = now
            time.sleep(1e-3)

    other = threading.Thread(target=look_at_the_clock)
    other.start()
    with threads(1):
        begun = time.perf_counter()
        engine.infer(image, "labels")
        taken = time.perf_counter() - begun
    stop.set()
    other.join()
    # With Python's lock kept there would be one gap as long as the run.
    assert max(gaps) < 0.6 * taken


def in_child(work) -> int:
    """Exit code of a forked child: 0 where `work` returned true, a signal where it hung."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_runs_it_too():
    engine = backend(calibrated("gray"), winograd=False)
    image = image_of("gray", 3, 40, 40)
    with threads(3):
        expected = engine.infer(image, "logits")

        def same():
            return torch.equal(engine.infer(image, "logits"), expected)

        for _ in range(3):
            assert in_child(same) == 0
            assert in_child(lambda: same() and in_child(same) == 0) == 0
            assert same()


def test_a_child_forked_in_the_middle_of_a_run():
    engine = backend(calibrated("gray"), winograd=False)
    small, large = image_of("gray", 3, 40, 40), image_of("gray", 1, 512, 512)
    stop, runs = threading.Event(), []
    with threads(3):
        expected = engine.infer(small, "logits")
        wanted = engine.infer(large, "labels")

        def same():
            return torch.equal(engine.infer(small, "logits"), expected)

        def keep_busy():
            torch.set_num_threads(3)
            while not stop.is_set():
                runs.append(torch.equal(engine.infer(large, "labels"), wanted))

        busy = [threading.Thread(target=keep_busy) for _ in range(2)]
        for one in busy:
            one.start()
        try:
            codes = [in_child(same) for _ in range(20)]
        finally:
            stop.set()
            for one in busy:
                one.join()
        assert codes == [0] * 20
        assert runs
        assert all(runs)
        assert same()


def test_idle_threads_use_no_processor():
    engine = backend(calibrated("gray"))
    with threads(3):
        engine.infer(image_of("gray", 3, 40, 40), "logits")
        # They spin for some microseconds, at the most, where members of a team wait.
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        used = time.process_time() - before
    assert used < 0.05


COUNT = """
engine = backend(calibrated("gray"))
image = image_of("gray", 4, 40, 40)
found = []
for count in (1, 3, 2, 4, 1):
    torch.set_num_threads(count)
    before = len(os.listdir("/proc/self/task"))
    engine.infer(image, "labels")
    engine.infer(image[:1], "labels")
    found.append(len(os.listdir("/proc/self/task")) - before)
print(found)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_it_starts_as_many_threads_as_torch_says():
    assert python(COUNT).strip() == "[0, 2, 0, 1, 0]"


def test_a_limit_to_one_thread_is_kept():
    """More processor time than wall time would tell of a second one."""
    engine = backend(calibrated("paper"))
    image = image_of("paper", 2, 256, 256)
    with threads(1):
        engine.infer(image, "labels")
        wall, used = time.perf_counter(), time.process_time()
        for _ in range(5):
            engine.infer(image, "labels")
        wall, used = time.perf_counter() - wall, time.process_time() - used
    assert used <= 1.2 * wall


# --- memory --------------------------------------------------------------------------------------

MEMORY = """
import ctypes
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) / 1024
def forget():
    ctypes.CDLL(None).malloc_trim(0)  # what is free now would be used again and not be counted
    open("/proc/self/clear_refs", "w").write("5")  # the peak is the present again
"""

CYCLES = """
from dssnet_fast.backends.cpu import engine
image = image_of("paper", 1, 64, 64)
weights = calibrated("paper")
operands, sizes = {}, []
def kept(weights, mode, exact):  # what Python does is slow, and none of this
    if mode not in operands:
        operands[mode] = made(weights, mode, exact)
    return operands[mode]
made, engine.operands = engine.operands, kept
for _ in range(60):
    for mode in MODES:
        backend(weights, mode).infer(image, "labels")
    sizes.append(status("VmRSS:"))
print(sizes[9], sizes[-1])
"""

PEAK = """
torch.set_num_threads(2)
weights, image = calibrated("paper"), image_of("paper", 1, SIZE, SIZE)
engine = backend(weights, "MODE")
torch.empty(1, SIZE, SIZE, dtype=torch.uint8).fill_(0)
forget()
before = status("VmRSS:")
engine.infer(image, "labels")
print(status("VmHWM:") - before, engine.workspace_bytes(SIZE, SIZE) / 2**20)
"""

needs_proc = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs"
)


@needs_proc
def test_networks_that_are_gone_leave_no_memory():
    first, last = map(float, python(MEMORY + CYCLES).split())
    # 150 networks were made and run in between, each of more than a megabyte.
    assert last - first < 10


def peak(size: int, mode: str) -> tuple[float, float]:
    """MiB beyond weights and image that a run takes, and that it says it takes."""
    program = (MEMORY + PEAK).replace("SIZE", str(size)).replace("MODE", mode)
    taken, told = map(float, python(program).split())
    return taken, told


@needs_proc
@pytest.mark.parametrize("mode", MODES)
def test_an_image_takes_what_it_says_and_little(mode):
    taken, told = peak(512, mode)
    assert told < 64
    assert taken < 64
    assert 0.5 * told < taken < told + 6  # the answer, and stacks of threads


@needs_proc
@pytest.mark.large
@pytest.mark.parametrize(("mode", "limit"), [("fp32", 400), ("bf16", 250), ("int8", 200)])
def test_a_large_image(mode, limit):
    """4096 x 4096 on two threads: 270, 150 and 120 MiB beside 48 of image and 16 of labels."""
    taken, told = peak(4096, mode)
    assert told < limit
    assert 0.5 * told < taken < told + 16 + 6


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_workspace_grows_with_the_image_and_the_threads(instruction_set):
    for mode in MODES:
        engine = backend(calibrated("paper"), mode, instruction_set)
        sizes = []
        for count in (1, 2, 4):
            with threads(count):
                sizes.append([engine.workspace_bytes(side, side) for side in (8, 64, 512)])
        assert np.all(np.diff(sizes, axis=0) > 0)
        assert np.all(np.diff(sizes, axis=1) > 0)
