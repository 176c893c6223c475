"""The edge head at inference: `predict(output="edges")` and `decide(edges=True)`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dssnet_fast import FastDSSNet, backends, parity
from dssnet_fast.backends import native
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiling import Box
from networks import CONFIGS, noise, random_network

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 2e-5
WITH_EDGES = [name for name, config in CONFIGS.items() if config.edge]
BACKENDS = ["torch"] if native.problem() is not None else ["torch", "cpu"]


def make(name: str = "gray", backend: str = "torch", precision: str = "fp32") -> FastDSSNet:
    network = random_network(CONFIGS[name])
    return FastDSSNet.from_reference(network, "cpu", backend, precision)


@pytest.fixture(params=BACKENDS)
def net(request) -> FastDSSNet:
    return make(backend=request.param)


# --- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_EDGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_edges_are_the_references(backend, name):
    """Borders in every position, sides that are not even, and one pixel."""
    network = random_network(CONFIGS[name])
    with torch.no_grad():
        # What the composed convolutions see of the outside is large.
        network.edge[2].bias.mul_(30)
    net = FastDSSNet.from_reference(network.double(), "cpu", backend, "fp32")
    channels = network.config.in_channels
    images = [noise(*size, channels) for size in ((41, 23), (1, 1), (7, 130))]
    found = parity.compare(net, network, [*parity.random_images(network.config), *images])
    assert found.edge_error <= TOLERANCE
    assert found.error <= TOLERANCE


def test_parity_sees_other_edges():
    network = random_network(CONFIGS["gray"])
    net = FastDSSNet.from_reference(network, "cpu", "torch", "fp32")
    with torch.no_grad():
        network.edge[4].bias.add_(0.01)
    found = parity.compare(net, network.double(), parity.random_images(network.config))
    assert found.edge_error > 100 * TOLERANCE > TOLERANCE >= found.error


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_is_no_worse_than_the_reference_in_it(backend, precision):
    config = DSSNetConfig(blocks=2)
    why = backends.module(backend).why_not(torch.device("cpu"), precision, config)
    if why is not None:
        pytest.skip(why)
    network = random_network(config).double()
    net = FastDSSNet.from_reference(network, "cpu", backend, precision)
    image = noise(64, 96, 3)
    exact = parity.reference_edges(network, image)
    theirs = parity.reference_edges(network.to(backends.PRECISIONS[precision]), image)
    limit = parity.relative_error(theirs, exact)
    assert parity.relative_error(net.predict(image, "edges"), exact) <= limit


def test_each_pixel_has_the_value_of_its_pixel_at_half_resolution(net):
    image = noise(2, 21, 35, 1)
    edges = net.predict(image, output="edges")
    assert edges.shape == (2, 21, 35)
    assert edges.dtype == np.float32
    half = edges[:, ::2, ::2]
    assert len(np.unique(half)) > 0.9 * half.size
    np.testing.assert_array_equal(edges, half.repeat(2, 1).repeat(2, 2)[:, :21, :35])


def test_a_decision_with_edges_is_that_without_and_what_predict_says(net):
    image = noise(2, 21, 35, 1)
    labels, probability, edges = net.decide(image, edges=True)
    np.testing.assert_array_equal(labels, net.decide(image)[0])
    np.testing.assert_allclose(probability, net.decide(image)[1], rtol=1e-6)
    np.testing.assert_allclose(edges, net.predict(image, "edges"), rtol=0, atol=1e-6)
    # One image, and a tensor, are answered as they are asked.
    for one in (image[1], torch.from_numpy(image[1])):
        answers = net.decide(one, edges=True)
        assert all(type(answer) is type(one) for answer in answers)
        assert [tuple(answer.shape) for answer in answers] == 3 * [(21, 35)]
        np.testing.assert_allclose(answers[2], edges[1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(net.predict(one, "edges"), edges[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WITH_EDGES)
def test_a_core_is_the_wholes(name):
    net = make(name)
    height, width = 203, 157
    image = noise(1, height, width, net.config.in_channels)
    whole = net.decide(image, edges=True)
    for core in (Box(0, 0, 9, 4), Box(97, 78, 98, 79), Box(80, 3, 203, 157), Box(7, 60, 120, 99)):
        at = (slice(None), *core.within(Box(0, 0, height, width)))
        found = net.decide(image, core, edges=True)
        # PyTorch may sum in another order for another size.
        assert (found[0] != whole[0][at]).mean() < 0.01
        for part, wanted in zip(found[1:], whole[1:], strict=True):
            np.testing.assert_allclose(part, wanted[at], rtol=1e-5, atol=1e-6)


# --- what has none -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_an_edge_head_it_says_so(backend):
    net = make("bottleneck", backend)
    assert not net.has_edges
    assert make("gray", backend).has_edges
    image = noise(16, 24, 3)
    features = net.extract(net.downsample(torch.from_numpy(image[None])))
    for call in (
        lambda: net.predict(image, output="edges"),
        lambda: net.decide(image, edges=True),
        lambda: net.edges(*features),
    ):
        with pytest.raises(InputError, match=r"no edge head: .*--no-edges.*convert CHECKPOINT"):
            call()
    assert len(net.decide(image)) == 2


def test_an_edge_map_that_is_not_finite_is_an_error(net):
    net.folded.edge.last.bias[0] = np.nan
    net.load_state_dict(net.state_dict())
    image = noise(20, 20, 1)
    with pytest.raises(InputError, match="not finite; use --precision fp32"):
        net.decide(image, edges=True)
    assert len(net.decide(image)) == 2


def test_without_edges_the_weights_give_the_same_labels():
    net = make()
    without = net.folded_weights().without_edges()
    plain = FastDSSNet(without, "cpu", "torch", "fp32")
    assert not plain.has_edges
    assert plain.digest != net.digest
    image = noise(24, 32, 1)
    np.testing.assert_array_equal(plain.predict(image, "logits"), net.predict(image, "logits"))


def test_context_is_the_configs():
    net = make()
    assert net.edge_context_px == net.config.edge_context_px == net.context_px + 8


# --- torch.compile -------------------------------------------------------------------------------


def test_it_can_be_compiled():
    net = make()
    image = torch.from_numpy(noise(20, 30, 1))
    batch = torch.from_numpy(noise(1, 16, 24, 1))
    core = Box(1, 2, 18, 20)

    def all_of_it(image, batch):
        features = net.extract(net.downsample(batch))
        decided = net.decide(image, core, edges=True)
        return *decided, net.predict(image, output="edges"), net.edges(*features)

    torch.compiler.reset()
    compiled = torch.compile(all_of_it, backend="eager")
    for found, wanted in zip(compiled(image, batch), all_of_it(image, batch), strict=True):
        assert torch.equal(found, wanted)
    plain = make("bottleneck")
    with pytest.raises(InputError, match="no edge head"):
        torch.compile(lambda x: plain.predict(x, output="edges"), backend="eager")(
            torch.from_numpy(noise(20, 30, 3))
        )
    torch.compiler.reset()
