"""The reference network: sizes, names, shapes, gradients, reach, and an independent oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dssnet_fast.python_ref.config import BLOCKS, UPSAMPLINGS, DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import (
    from_released,
    load_released,
    released_state,
    to_released,
)
from networks import SMALL, random_network
from oracle import Oracle

pytestmark = pytest.mark.usefixtures("one_thread")


def relative_error(value, expected) -> float:
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    assert value.shape == expected.shape
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


# --- size and names ------------------------------------------------------------------------------


def test_parameter_counts_are_the_releases():
    network = DSSNet(DSSNetConfig(classes=3))
    assert sum(p.numel() for p in network.parameters()) == 3_694_765
    inference = DSSNet(DSSNetConfig(classes=3, super_resolution=False, edge=False))
    assert sum(p.numel() for p in inference.parameters()) == 1_500_723


def test_released_names_are_as_the_release_has_them():
    state = released_state(DSSNet(DSSNetConfig(**SMALL)))
    for name, shape in {
        "pre.con.weight_v": (9, 3, 3, 3),
        "pre.con.weight_g": (9, 1, 1, 1),
        "pre.module.2.pool3.bias": (9,),
        "head.0.weight_v": (8, 9, 3, 3),
        "body.module.1.gw1.weight_v": (24, 8, 1, 1),
        "body.module.1.gw2.weight_v": (24, 8, 3, 3),
        "body.module.0.re.weight": (1,),
        "body.module.0.module.0.weight_v": (6, 48, 3, 3),
        "tail1.1.weight_v": (16, 16, 1, 1),
        "tail1.4.weight": (1,),
        "tail2.5.weight": (20, 20, 3, 3),
        "tail2.6.weight": (2, 20, 3, 3),
        "boundary.4.weight_v": (1, 1, 3, 3),
        "sr_body.4.module.1.bias": (64,),
        "sr_tail.2.weight_v": (192, 192, 3, 3),
    }.items():
        assert state[name].shape == shape, name
    assert not any("parametrizations" in name or "original" in name for name in state)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_state_round_trip(block, prefix):
    source, target = random_network(seed=1, block=block), random_network(seed=2, block=block)
    state = released_state(source)
    for key in source.state_dict():
        assert from_released(to_released(key)) == key
    load_released(target, {prefix + key: value for key, value in state.items()})
    again = released_state(target)
    assert list(again) == list(state)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_names_outside_the_network_are_refused():
    assert from_released("tail9.0.bias") is None
    with pytest.raises(KeyError):
        to_released("tail9.0.bias")
    network = random_network()
    state = released_state(network)
    state["tail9.0.bias"] = state.pop("head.0.bias")
    with pytest.raises(RuntimeError, match=r"(?s)head\.bias.*tail9\.0\.bias"):
        load_released(network, state)


# --- shapes and gradients ------------------------------------------------------------------------

VARIANTS = [
    *(
        {"block": block, "super_resolution": sr, "edge": edge}
        for block, sr, edge in itertools.product(BLOCKS, (True, False), (True, False))
    ),
    *(
        {"upsampling": upsampling, "in_channels": channels, "width": width, "classes": classes}
        for upsampling, channels, width, classes in itertools.product(
            UPSAMPLINGS, (1, 3), (9, 36), (2, 16)
        )
    ),
]


@pytest.mark.parametrize(
    "changes", VARIANTS, ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items())
)
def test_shapes_and_gradients(changes):
    network = random_network(**changes).train()
    config = network.config
    torch.manual_seed(3)
    output = network(torch.randn(2, config.in_channels, 16, 24))

    assert output.segmentation.shape == (2, config.classes, 16, 24)
    assert (output.reconstruction is None) == (not config.super_resolution)
    assert (output.edge is None) == (not config.edge)
    if config.super_resolution:
        assert output.reconstruction.shape == (2, config.in_channels, 16, 24)
    if config.edge:
        assert output.edge.shape == (2, 1, 8, 12)

    present = [part for part in output if part is not None]
    sum((part * torch.randn_like(part)).sum() for part in present).backward()
    for name, parameter in network.named_parameters():
        size = parameter.grad.abs().max() if parameter.grad is not None else torch.tensor(0.0)
        assert 0 < size < float("inf"), f"no gradient reaches {name}: {size}"


def test_logits_are_those_of_forward():
    network = random_network()
    image = torch.randn(2, 3, 24, 16)
    with torch.no_grad():
        assert torch.equal(network.logits(image), network(image).segmentation)


@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 12, 16), (1, 3, 16, 20), (1, 4, 16, 16)]
)
def test_rejects_other_shapes(shape):
    network = random_network()
    message = r"image must have shape \[B, 3, H, W\] with H and W multiples of 8, got \["
    for call in (network, network.logits):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


# --- reach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [False, True], ids=["logits", "edges"])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("block", BLOCKS)
def test_context_px_is_the_measured_reach(block, upsampling, edges):
    network = random_network(
        block=block, upsampling=upsampling, blocks=1, super_resolution=False
    ).double()
    context = network.config.edge_context_px if edges else network.config.context_px

    def answer(image):
        """Logits, or the edge map at full resolution."""
        if not edges:
            return network.logits(image)
        half = network.edges(*network.extract(network.downsample(image)))
        return F.interpolate(half, scale_factor=2, mode="nearest")

    start, size = context + 16, 8
    side = 2 * start + size
    torch.manual_seed(5)
    image, other = torch.randn(2, 1, 3, side, side, dtype=torch.float64)

    def change_beyond(distance: int) -> float:
        """Largest change of the centre's answer when all pixels further away change."""
        mixed = other.clone()
        inside = np.s_[..., start - distance : start + size + distance]
        near = (slice(None), slice(None), inside[-1], inside[-1])
        mixed[near] = image[near]
        centre = (slice(None), slice(None), *(slice(start, start + size),) * 2)
        return float((answer(mixed)[centre] - reference[centre]).abs().max())

    with torch.no_grad():
        reference = answer(image)
        assert change_beyond(context) <= 1e-13
        assert change_beyond(context - 8) > 1e-12

        # And so a crop with that much around it gives what the whole image gives.
        near = slice(start - context, start + size + context)
        crop = answer(image[:, :, near, near])[..., context:-context, context:-context]
        whole = reference[..., start : start + size, start : start + size]
        assert float((crop - whole).abs().max()) <= 1e-13


def test_context_px_of_the_papers_network():
    assert DSSNetConfig().context_px == 264


# --- an independent oracle -----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_equals_the_oracle(classes):
    network = random_network(seed=4, classes=classes, features=12).double()
    state = {key: value.numpy() for key, value in released_state(network).items()}
    image = torch.randn(1, 3, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        output = network(image)
    for part, expected in zip(output, Oracle(state)(image[0].numpy()), strict=True):
        assert relative_error(part[0], expected) <= 1e-10
