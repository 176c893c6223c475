"""`FastDSSNet.decide` on the backends that have no kernels for it, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dssnet_fast import FastDSSNet
from dssnet_fast.backends import decisions
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.tiling import Box
from networks import CONFIGS, noise, random_network

pytestmark = pytest.mark.usefixtures("one_thread")


def make(name: str, precision: str = "fp32") -> FastDSSNet:
    network = random_network(CONFIGS[name])
    return FastDSSNet.from_reference(network, "cpu", "torch", precision)


def boxes(height: int, width: int, count: int):
    random = np.random.default_rng(4)
    for number in range(count):
        top, left = (int(random.integers(side)) for side in (height, width))
        bottom, right = int(random.integers(top, height)), int(random.integers(left, width))
        yield Box(top, left, bottom + 1, right + 1) if number else Box(top, left, top + 1, left + 1)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "paper"])
def test_a_core_is_the_wholes(name):
    net = make(name)
    for height, width in ((9, 4), (203, 157)):
        image = noise(2, height, width, net.config.in_channels)
        labels, probability = net.predict(image), net.predict(image, "probabilities").max(axis=3)
        logits = np.sort(net.predict(image, "logits"), axis=3)
        # PyTorch may sum in another order for another size.
        sure = logits[..., -1] - logits[..., -2] > 1e-5
        assert sure.mean() > 0.9
        whole = Box(0, 0, height, width)
        for core in (whole, *boxes(height, width, 6)):
            at = (slice(None), *core.within(whole))
            found = net.decide(image, core)
            np.testing.assert_array_equal(found[0][sure[at]], labels[at][sure[at]])
            np.testing.assert_allclose(found[1], probability[at], rtol=1e-5)


@pytest.mark.parametrize("name", ["gray", "pixel_shuffle"])
@pytest.mark.parametrize("way", [decisions.by_stages, decisions.by_whole])
def test_missing_context_is_noticed(way, name):
    net = make(name)
    image = torch.from_numpy(noise(1, 320, 344, net.config.in_channels))
    whole = net._backend.decide(image, Box(0, 0, 320, 344))[1]
    core = Box(152, 160, 176, 184)

    def error(context: int, of_answer: int) -> float:
        config = SimpleNamespace(context_px=context, answer_context_px=of_answer)
        found = way(net._backend, config, image, core)[1]
        return float((found - whole[(slice(None), *core.within(Box(0, 0, 320, 344)))]).abs().max())

    enough, of_answer = net.config.context_px, net.config.answer_context_px
    assert error(enough, of_answer) < 1e-6
    assert error(8, of_answer) > 1e-5
    if way is decisions.by_stages:
        assert error(enough, of_answer - 8) > 1e-5


@pytest.mark.parametrize("name", ["gray", "pixel_shuffle"])
def test_missing_context_of_edges_is_noticed(name):
    net = make(name)
    image = torch.from_numpy(noise(1, 320, 344, net.config.in_channels))
    core = Box(152, 160, 176, 184)
    whole = net._backend.infer_edges(image)[:, 76:88, 80:92]

    def error(context: int, of_answer: int) -> float:
        config = SimpleNamespace(edge_context_px=context, edge_answer_context_px=of_answer)
        found = decisions.by_stages(net._backend, config, image, core, edges=True)[2]
        return float((found - whole).abs().max())

    enough, of_answer = net.config.edge_context_px, net.config.edge_answer_context_px
    assert error(enough, of_answer) < 1e-6
    assert error(8, of_answer) > 1e-5
    assert error(enough, of_answer - 8) > 1e-6


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_it_gives_what_it_is_given(kind):
    net = make("gray")
    image = noise(2, 24, 40, 1)
    image = torch.from_numpy(image) if kind == "tensor" else image
    core = Box(3, 2, 20, 30)
    many = net.decide(image, core)
    for one in (net.decide(image[1], core), net.decide(image[1, :, :, 0], core)):
        for answer, of_batch in zip(one, many, strict=True):
            assert type(answer) is type(image)
            assert answer.shape == (17, 28)
            np.testing.assert_allclose(answer, of_batch[1], rtol=1e-6)
    labels, probability = many
    assert labels.dtype in (np.uint8, torch.uint8)
    assert probability.dtype in (np.float32, torch.float32)


def test_a_tie_is_the_first_class():
    labels, probability = decisions.from_logits(torch.zeros(1, 2, 3, 4))
    assert torch.equal(labels, torch.zeros(1, 2, 3, dtype=torch.uint8))
    assert torch.equal(probability, torch.full((1, 2, 3), 0.25))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_an_error(value):
    net = make("gray")
    net.folded.segment.outer.bias[0] = value
    net.load_state_dict(net.state_dict())
    with pytest.raises(InputError, match="not finite; use --precision fp32"):
        net.decide(noise(20, 20, 1))


@pytest.mark.parametrize(
    "core",
    [
        Box(0, 0, 21, 30),
        Box(0, 0, 20, 31),
        Box(-1, 0, 20, 30),
        Box(0, -1, 20, 30),
        Box(5, 0, 5, 30),
        Box(0, 9, 20, 8),
        Box(0, 0, 20.0, 30),
        Box(False, 0, 20, 30),
        (0, 0, 20, 30),
    ],
)
def test_cores_that_are_none_are_refused(core):
    with pytest.raises(InputError, match="inside the image of 20 x 30 px, got"):
        make("gray").decide(noise(20, 30, 1), core)


def test_images_that_are_none_are_refused():
    net = make("gray")
    with pytest.raises(TypeError, match="must be uint8"):
        net.decide(noise(20, 30, 1).astype(np.float32))
    with pytest.raises(ValueError, match="must have shape"):
        net.decide(noise(20, 30, 3))


def test_it_can_be_compiled():
    net = make("gray")
    image = torch.from_numpy(noise(20, 30, 1))
    core = Box(1, 2, 18, 20)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: net.decide(x, core), backend="eager")
    for found, wanted in zip(compiled(image), net.decide(image, core), strict=True):
        assert torch.equal(found, wanted)
    torch.compiler.reset()
