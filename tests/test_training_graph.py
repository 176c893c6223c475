"""The folded graph of training: the reference's numbers and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.training_graph import FoldedTraining

CONFIG = DSSNetConfig(width=9, features=8, blocks=1)
CONFIGS = {
    "all": CONFIG,
    "learned FFM": dataclasses.replace(CONFIG, upsampling="pixel_shuffle"),
    "no supervision": dataclasses.replace(CONFIG, edge=False, super_resolution=False),
    "five classes, gray": dataclasses.replace(CONFIG, classes=5, in_channels=1, block="basic"),
}
SIZES = [(8, 8), (24, 40)]


def answers(network: DSSNet, graph, image: torch.Tensor) -> tuple[list, list]:
    """Outputs and the parameters' gradients of a sum that weighs every value differently."""
    network.zero_grad()
    outputs = [part for part in graph(image) if part is not None]
    random = torch.Generator().manual_seed(2)
    sum(
        (part * torch.randn(part.shape, generator=random, dtype=part.dtype)).sum()
        for part in outputs
    ).backward()
    return outputs, [parameter.grad.clone() for parameter in network.parameters()]


def furthest(ones, others) -> float:
    """Of the tensors the largest difference, relative to the largest value."""
    pairs = list(zip(ones, others, strict=True))
    worst = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs]
    assert all(value == value for value in worst)
    return max(worst)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_the_references(name, size):
    torch.manual_seed(1)
    config = CONFIGS[name]
    network = DSSNet(config).double()
    image = torch.rand(2, config.in_channels, *size, dtype=torch.float64) * 2 - 1
    expected, expected_gradients = answers(network, network, image)
    found, gradients = answers(network, FoldedTraining(network), image)
    assert furthest(expected, found) <= 1e-12
    assert furthest(expected_gradients, gradients) <= 1e-11
    logits = FoldedTraining(network).logits(image)
    assert furthest([network.logits(image)], [logits]) <= 1e-12


def test_in_bf16_it_is_no_worse_than_the_reference():
    torch.manual_seed(1)
    network = DSSNet(dataclasses.replace(CONFIG, features=16, blocks=3))
    image = torch.rand(2, 3, 64, 48) * 2 - 1
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        plain, folded = network(image), FoldedTraining(network)(image)
    for name in ("segmentation", "edge"):
        errors = [
            float((getattr(one, name).float() - getattr(exact, name)).norm())
            for one in (plain, folded)
        ]
        assert errors[1] <= errors[0] * 1.1, name
