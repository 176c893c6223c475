"""The backend on a real GPU, NVIDIA's or AMD's; docs/on_a_gpu.md says how to run these."""

from __future__ import annotations

import threading

import pytest
import torch

from dssnet_fast import FastDSSNet
from dssnet_fast.backends.triton import graphs, why_not
from dssnet_fast.kernels import launch
from laboratory import Reference, last, relative_error
from networks import example
from triton_backend.cases import CASES, Case
from triton_backend.test_parity import assert_parity

pytestmark = pytest.mark.gpu


@pytest.fixture(params=CASES)
def case(request) -> Case:
    found = CASES[request.param]
    device = torch.device("cuda", torch.cuda.current_device())
    reason = why_not(device, found.precision, found.config)
    if reason is not None:
        pytest.skip(reason)
    return found


def fast(case: Case) -> FastDSSNet:
    return FastDSSNet(case.folded, "cuda", "triton", case.precision)


def test_parity_of_stages(case):
    network, image = case.specimen
    net, reference = fast(case), Reference(network, case.dtype, image)
    image = torch.from_numpy(image).cuda()
    exact, rounded = reference.stage("downsample", last(reference.image))
    assert_parity(case.dtype, [net.downsample(image).cpu()], exact, rounded)
    x0 = exact[0].to(case.dtype)
    exact, rounded = reference.stage("extract", x0)
    assert_parity(case.dtype, [x.cpu() for x in net.extract(x0.cuda())], exact, rounded)
    maps = [x.to(case.dtype) for x in exact]
    exact, rounded = reference.stage("fuse", *maps)
    assert_parity(case.dtype, [net.fuse(*(x.cuda() for x in maps)).cpu()], exact, rounded)
    y = exact[0].to(case.dtype)
    exact, rounded = reference.stage("segment", y)
    assert_parity(case.dtype, [net.segment(y.cuda(), "logits").cpu()], exact, rounded)


@pytest.mark.parametrize("variable", [graphs.VARIABLE, launch.AUTOTUNE])
def test_graphs_and_tuning_change_nothing(case, variable, monkeypatch):
    image = case.specimen[1]
    plain = fast(case).predict(image, "logits")
    monkeypatch.setenv(variable, "1")
    net = fast(case)
    for _ in range(3):
        again = net.predict(image, "logits")
    again, plain = torch.from_numpy(again), torch.from_numpy(plain)
    # Other blocks add up in another order, and what is rounded then may round the other way.
    allowed = 0 if variable == graphs.VARIABLE else 4 * torch.finfo(case.dtype).eps
    assert relative_error(again, plain.double()) <= allowed


def test_sizes_in_turn_threads_and_streams():
    case = CASES["released-fp16"]
    net = fast(case)
    images = [example(height, 64) for height in (8, 72, 200)]
    wanted = [net.predict(image) for image in images]
    wrong = []

    def run() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                for image, labels in zip(images, wanted, strict=True):
                    if (net.predict(image) != labels).any():
                        wrong.append(image.shape)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_graph_of_the_callers_own():
    case = CASES["released-fp16"]
    net = fast(case)
    image = torch.from_numpy(case.specimen[1]).cuda()
    wanted = net.predict(image)
    recorded = torch.zeros_like(image)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = net.predict(recorded)
    recorded.copy_(image)
    graph.replay()
    assert torch.equal(answer, wanted)
