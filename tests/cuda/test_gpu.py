"""The backend on a real GPU; docs/on_a_gpu.md says how to run these, with compute-sanitizer too.

Parity is that of test_stages.py: no worse than PyTorch's own run of the reference in the same
precision, which happens on the CPU.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dssnet_fast import FastDSSNet, parity
from dssnet_fast.backends import OUTPUTS, PRECISIONS
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.weights import unfold
from laboratory import Reference, last, relative_error, specimen
from networks import CONFIGS, noise

pytestmark = pytest.mark.gpu

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "images"

# Sizes that are no multiple of any tile, more than one image, narrow, wide and learned networks;
# the last two are large enough for the large tiles of the W-NECK chain on any GPU.
CASES = {
    "released-fp16": (DSSNetConfig(classes=3), (1, 72, 104), "fp16"),
    "released-bf16": (DSSNetConfig(classes=2, blocks=2), (2, 40, 136), "bf16"),
    "tiny": (DSSNetConfig(classes=2, blocks=2), (3, 8, 16), "fp16"),
    "gray": (CONFIGS["gray"], (2, 40, 72), "fp16"),
    "wide": (CONFIGS["wide"], (1, 72, 40), "bf16"),
    "pixel_shuffle": (CONFIGS["pixel_shuffle"], (1, 40, 72), "fp16"),
    "large-fp16": (DSSNetConfig(classes=4, blocks=2), (16, 520, 264), "fp16"),
    "large-bf16": (DSSNetConfig(classes=2, blocks=1), (16, 264, 520), "bf16"),
}


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.device("cuda", torch.cuda.current_device())
    if torch.version.hip or torch.cuda.get_device_capability(found) < (8, 0):
        pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or newer")
    return found


def fast(network, device, precision="fp16") -> FastDSSNet:
    return FastDSSNet.from_reference(network, device, "cuda", precision)


# --- parity --------------------------------------------------------------------------------------


@pytest.fixture(params=CASES, scope="module")
def parity_case(request, device):
    config, shape, precision = CASES[request.param]
    network, image = specimen(config, shape)
    net = fast(network, device, precision)
    return net, Reference(network, PRECISIONS[precision], image), torch.from_numpy(image)


def assert_as_good_as_torch(got, exact, rounded):
    for ours, wanted, theirs in zip(got, exact, rounded, strict=True):
        ours, theirs = relative_error(ours.cpu(), wanted), relative_error(theirs, wanted)
        assert ours <= theirs, f"{ours:.2e} against {theirs:.2e} of PyTorch"


def test_parity_of_stages(parity_case):
    # Each stage on what the one before should have given.
    net, reference, image = parity_case
    dtype, device = reference.dtype, net.device
    exact, rounded = reference.stage("downsample", last(reference.image))
    from_bytes = net.downsample(image.to(device))
    assert_as_good_as_torch([from_bytes], exact, rounded)
    from_floats = net.downsample(reference.image.float().to(device))
    assert torch.equal(from_floats, from_bytes)

    x0 = exact[0].to(dtype)
    exact, rounded = reference.stage("extract", x0)
    assert_as_good_as_torch(net.extract(x0.to(device)), exact, rounded)

    maps = [x.to(dtype) for x in exact]
    exact, rounded = reference.stage("fuse", *maps)
    assert_as_good_as_torch([net.fuse(*(x.to(device) for x in maps))], exact, rounded)

    y = exact[0].to(dtype)
    exact, rounded = reference.stage("segment", y)
    logits = net.segment(y.to(device), "logits")
    assert_as_good_as_torch([logits], exact, rounded)
    assert torch.equal(net.segment(y.to(device), "labels"), logits.argmax(3).to(torch.uint8))
    probabilities = net.segment(y.to(device), "probabilities")
    torch.testing.assert_close(probabilities, logits.softmax(3), rtol=2e-6, atol=2e-7)


def test_parity_of_the_whole(parity_case):
    net, reference, image = parity_case
    with torch.no_grad():
        exact = last(reference.exact.logits(reference.image))
        rounded = last(reference.rounded.logits(reference.image.to(reference.dtype)))
    logits = net.predict(image.to(net.device), "logits")
    assert_as_good_as_torch([logits], [exact], [rounded])
    assert torch.equal(net.predict(image.to(net.device)), logits.argmax(3).to(torch.uint8))


def test_parity_of_the_packaged_model_on_real_images(device):
    net = FastDSSNet.pretrained(device=device, backend="cuda", precision="fp16")
    exact = unfold(net.folded_weights())
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(EXAMPLES.iterdir())]
    assert parity.compare(net, exact, images[:3]).labels >= 0.999


# --- a guest in people's programs ----------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return specimen(DSSNetConfig(classes=3, blocks=3), (1, 8, 8))[0]


@pytest.fixture(scope="module")
def images(device):
    return [torch.from_numpy(noise(2, 72, 104, 3, seed=seed)).to(device) for seed in range(4)]


@pytest.fixture(scope="module")
def expected(network, device, images):
    # The first run of a network launches its kernels one by one.
    return [fast(network, device).predict(image, "logits") for image in images]


@pytest.fixture
def net(network, device):
    return fast(network, device)


def test_replayed_graphs_equal_plain_launches(net, images, expected):
    # From the second run on a graph is replayed, on tensors at other addresses each time.
    found = [net.predict(image, "logits") for _ in range(3) for image in images]
    for number, answer in enumerate(found):
        assert torch.equal(answer, expected[number % len(images)]), f"run {number}"


def test_sizes_in_turn(net, device):
    sizes = [(8, 8), (64, 96), (8, 200), (72, 8), (136, 264), (256, 256), (24, 40)]
    batches = [torch.from_numpy(noise(1 + h % 3, h, w, 3)).to(device) for h, w in sizes]
    first = [{form: net.predict(batch, form) for form in OUTPUTS} for batch in batches]
    for _ in range(3):
        for batch, wanted in zip(batches, first, strict=True):
            for form in OUTPUTS:
                assert torch.equal(net.predict(batch, form), wanted[form])


def test_sides_that_are_no_multiple_of_8(net, device):
    image = torch.from_numpy(noise(1, 43, 61, 3)).to(device)
    padded = torch.nn.functional.pad(image, (0, 0, 0, 3, 0, 5), value=128)
    assert torch.equal(net.predict(image, "logits"), net.predict(padded, "logits")[:, :43, :61])


def test_threads_with_streams_of_their_own(net, device, images, expected):
    ready = threading.Barrier(len(images))
    wrong, failed = [], []

    def work(number: int) -> None:
        try:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.default_stream(device))
            ready.wait(timeout=60)
            with torch.cuda.stream(stream):
                for turn in range(30):
                    answer = net.predict(images[number], "logits")
                    # On the same stream, so after the answer is there.
                    if not torch.equal(answer, expected[number]):
                        wrong.append((number, turn))
        except Exception as error:  # a thread's exception would be lost
            failed.append(error)

    torch.cuda.synchronize(device)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert wrong == []


def test_streams_in_turn_from_one_thread(net, device, images, expected):
    streams = [torch.cuda.Stream(device) for _ in images]
    torch.cuda.synchronize(device)
    for _ in range(5):
        answers = []
        for stream, image in zip(streams, images, strict=True):
            with torch.cuda.stream(stream):
                answers.append(net.predict(image, "logits"))
        torch.cuda.synchronize(device)
        for answer, wanted in zip(answers, expected, strict=True):
            assert torch.equal(answer, wanted)


def test_the_callers_own_graph(net, device, images, expected):
    image = images[0].clone()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            net.predict(image, "logits")
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = net.predict(image, "logits")
    for other, wanted in zip(images, expected, strict=True):
        image.copy_(other)
        graph.replay()
        assert torch.equal(answer, wanted)
    # And the network itself goes on as before.
    assert torch.equal(net.predict(images[1], "logits"), expected[1])


def test_no_memory_is_kept(net, device, images):
    def run() -> int:
        for image in images:
            net.predict(image, "probabilities")
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)

    run()
    before = run()
    assert [run() for _ in range(10)] == [before] * 10


def test_a_device_that_is_not_the_current_one(network, images, expected):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    current = torch.cuda.current_device()
    other = torch.device("cuda", (current + 1) % torch.cuda.device_count())
    if torch.cuda.get_device_capability(other) < (8, 0):
        pytest.skip("the other GPU is older than compute capability 8.0")
    net = fast(network, other)
    for image, wanted in zip(images, expected, strict=True):
        # Another kind of GPU may get other tiles, and so sums in another order.
        answer = net.predict(image.to(other), "logits")
        torch.testing.assert_close(answer.cpu(), wanted.cpu(), rtol=0, atol=2e-3)
        assert answer.device == other
    assert torch.cuda.current_device() == current


# --- where kernels come from ---------------------------------------------------------------------


WAYS = {
    "cubin": lambda way: way.description.startswith("sm_") and "NVRTC" not in way.description,
    "ptx": lambda way: "and the driver" in way.description,
    "nvrtc": lambda way: "NVRTC" in way.description,
}


@pytest.mark.parametrize("kind", WAYS)
def test_parity_of_each_kind_of_image(device, kind):
    from dssnet_fast.backends import native
    from dssnet_fast.backends.cuda import kernels
    from dssnet_fast.backends.cuda.engine import CudaBackend, TorchDevice

    network, pixels = specimen(DSSNetConfig(classes=3, blocks=2), (1, 72, 104))
    extension = native.module()
    properties = extension.device_properties(device.index)
    able = [way for way in kernels.ways(properties.capability) if WAYS[kind](way)]
    if not able:
        pytest.skip(f"there is no {kind} here for compute capability {properties.capability / 10}")
    runner = extension.Runner(device.index)
    kernels.load(runner, properties.capability, able[:1])
    weights = fast(network, device).folded_weights()
    here = TorchDevice(device, properties)
    backend = CudaBackend(weights, "fp16", here, extension, runner)
    image = torch.from_numpy(pixels).to(device)
    answers = [backend.infer(image, "logits") for _ in range(3)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    reference = Reference(network, torch.float16, pixels)
    with torch.no_grad():
        exact = last(reference.exact.logits(reference.image))
        rounded = last(reference.rounded.logits(reference.image.half()))
    assert_as_good_as_torch(answers[:1], [exact], [rounded])
