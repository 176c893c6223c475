"""The backend's own word on whether it can run, and graphs, with a stand-in for the GPU."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from dssnet_fast import DSSNetConfig, backends, kernels
from dssnet_fast.backends import native
from dssnet_fast.backends import triton as backend
from dssnet_fast.backends.triton import graphs
from dssnet_fast.backends.triton.engine import TritonBackend
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import fold_checkpoint
from networks import random_network

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PAPER = DSSNetConfig()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability `gpu.capability`."""
    found = SimpleNamespace(capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found.capability)
    monkeypatch.setattr(torch.version, "hip", None)
    return found


@pytest.mark.parametrize("block", ["wneck", "wdsr_b", "bottleneck", "basic"])
@pytest.mark.parametrize("precision", backend.PRECISIONS)
def test_any_network_on_a_gpu(gpu, precision, block):
    assert backend.why_not(GPU, precision, DSSNetConfig(block=block)) is None
    assert backend.why_not_automatic(GPU) is None
    assert backend.best_precision(GPU) == "fp16"


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds none" in backend.why_not(GPU, "fp16", PAPER)


def test_old_gpus(gpu):
    gpu.capability = (7, 5)
    assert backend.why_not(GPU, "fp16", PAPER) is None
    assert "8.0 or newer; cuda:0 has 7.5" in backend.why_not(GPU, "bf16", PAPER)
    gpu.capability = (7, 0)
    assert "7.5 or newer; cuda:0 has 7.0" in backend.why_not(GPU, "fp16", PAPER)


def test_int8_is_left_to_who_has_it(gpu, monkeypatch):
    wanted = "computes in fp32, bf16, fp16; for int8 use backend cpu"
    assert backend.why_not(GPU, "int8", PAPER) == wanted
    monkeypatch.setattr(kernels, "is_interpreted", lambda: True)
    assert backend.why_not(CPU, "int8", PAPER) == wanted


def test_amd(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    gpu.capability = (9, 4)
    assert backend.why_not(GPU, "bf16", PAPER) is None
    assert backend._multiplication(GPU) == "ieee"


def test_float32_is_tf32_only_where_torch_was_told_so(gpu):
    assert backend._multiplication(GPU) == "tf32x3"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert backend._multiplication(GPU) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    gpu.capability = (7, 5)
    assert backend._multiplication(GPU) == "ieee"
    assert backend._multiplication(CPU) == "ieee"


def test_the_cpu_only_in_the_interpreter_and_only_when_named(gpu, monkeypatch):
    assert "TRITON_INTERPRET=1" in backend.why_not(CPU, "fp32", PAPER)
    monkeypatch.setattr(kernels, "is_interpreted", lambda: True)
    assert backend.why_not(CPU, "fp32", PAPER) is None
    assert "unset TRITON_INTERPRET" in backend.why_not(GPU, "fp32", PAPER)
    assert backends.choose("triton", "cpu", "auto", PAPER).precision == "fp32"
    chosen = backends.choose("auto", "cpu", "auto", PAPER)
    assert chosen.name == ("cpu" if native.problem() is None else "torch")
    assert "interpreter, very slowly" in chosen.reason


def test_without_triton(monkeypatch):
    monkeypatch.delitem(sys.modules, "dssnet_fast.kernels")
    monkeypatch.delattr(importlib.import_module("dssnet_fast"), "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("dssnet_fast.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install triton" in backend.why_not(GPU, "fp16", PAPER)


# --- graphs --------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch):
    """What graphs use of torch.cuda; a replay does what was recorded, with the same tensors."""
    log = []

    class Event:
        def record(self, stream):
            log.append("record")

    class Graph:
        def replay(self):
            log.append("replay")
            self.again()

    @contextlib.contextmanager
    def record(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        log.append("capture")
        here.recording = graph
        yield
        here.recording = None

    stream = SimpleNamespace(
        wait_event=lambda event: log.append("wait"), synchronize=lambda: log.append("synchronize")
    )
    here = SimpleNamespace(log=log, recording=None, theirs=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: here.theirs)
    return here


def doubling(cuda):
    """Queues a doubling of its argument."""

    def run(image):
        answer = image * 2
        cuda.log.append("run")
        if cuda.recording is not None:
            cuda.recording.again = lambda: torch.mul(image, 2, out=answer)
        return answer

    return run


def test_a_graph_is_recorded_once_and_gives_tensors_of_the_callers_own(cuda):
    found, run = graphs.Graphs(), doubling(cuda)
    first = found.run("key", run, torch.tensor([1, 2]))
    assert cuda.log == [
        *("run", "synchronize", "capture", "run"),
        *("wait", "replay", "record"),
    ]
    second = found.run("key", run, torch.tensor([5, 7]))
    assert cuda.log[7:] == ["wait", "replay", "record"]
    assert first.tolist() == [2, 4]
    assert second.tolist() == [10, 14]


def test_the_oldest_graph_goes(cuda, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 2)
    found, run = graphs.Graphs(), doubling(cuda)
    for key in (1, 2, 1, 3, 1, 2):
        found.run(key, run, torch.ones(1))
    assert cuda.log.count("capture") == 4  # 1, 2, 3, and 2 again


def test_while_somebody_records_launches_become_part_of_that(cuda):
    cuda.theirs = True
    graphs.Graphs().run("key", doubling(cuda), torch.ones(1))
    assert cuda.log == ["run"]


def test_graphs_only_where_asked_and_on_a_gpu(monkeypatch):
    folded = fold_checkpoint(from_state(released_state(random_network(blocks=1))))
    monkeypatch.setenv(graphs.VARIABLE, "1")
    assert TritonBackend(folded, CPU, torch.float32)._graphs is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b, i: b.infer(i[0], "labels"), ValueError, r"4 dimensions, got \[16, 24, 3\]"),
        (lambda b, i: b.infer(i[:, :15], "labels"), ValueError, "multiples of 8"),
        (lambda b, i: b.infer(i[..., :2], "labels"), ValueError, "must have 3 channels"),
        (lambda b, i: b.infer(i.int(), "labels"), TypeError, "uint8 or floating point"),
        (lambda b, i: b.extract(i.float()), ValueError, "x0 must have 9 channels"),
        (lambda b, i: b.extract(torch.ones(1, 2, 2, 9).half()), TypeError, "must be torch.float32"),
        (lambda b, i: b.fuse(torch.ones(1, 2, 2, 8), i), ValueError, "must have one shape"),
        (lambda b, i: b.segment(torch.ones(2, 2, 32), "labels"), ValueError, "segment: a map must"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_launched(call, error, message):
    folded = fold_checkpoint(from_state(released_state(random_network(blocks=1))))
    with pytest.raises(error, match=message):
        call(TritonBackend(folded, CPU, torch.float32), torch.ones(1, 16, 24, 3, dtype=torch.uint8))
