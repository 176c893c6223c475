"""The whole network on the PTX executor: as exact as PyTorch in the same precision, or better."""

from __future__ import annotations

import pytest
import torch

from dssnet_fast import FastDSSNet
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.weights import unfold
from laboratory import Laboratory, Reference, last, relative_error, specimen
from networks import example, noise

pytestmark = pytest.mark.usefixtures("one_thread", "kernels")

SIZES = [
    (64, 96),
    (128, 72),
    pytest.param(256, 320, marks=pytest.mark.slow),
    pytest.param(512, 512, marks=pytest.mark.large),
]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_random_weights(native, precision):
    network, image = specimen(DSSNetConfig(classes=3), (1, 64, 96))
    laboratory = Laboratory(native, network, precision)
    reference = Reference(network, laboratory.dtype, image)
    with torch.no_grad():
        exact = last(reference.exact.logits(reference.image))
        rounded = last(reference.rounded.logits(reference.image.to(laboratory.dtype)))
    logits = laboratory.infer(image, "logits")
    assert relative_error(logits, exact) <= relative_error(rounded, exact)
    agreement = (logits.argmax(3) == exact.argmax(3)).double().mean().item()
    assert agreement >= (rounded.argmax(3) == exact.argmax(3)).double().mean().item()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_packaged_model_on_real_pixels(native, height, width):
    folded = FastDSSNet.pretrained(device="cpu", precision="fp32", backend="torch").folded_weights()
    image = example(height, width)
    laboratory = Laboratory(native, folded)
    with torch.no_grad():
        x = (torch.from_numpy(image).double().permute(0, 3, 1, 2) - 128) / 128
        exact = last(unfold(folded).logits(x)).argmax(3)
    labels = laboratory.infer(image, "labels")
    assert (labels == exact).double().mean().item() >= 0.999


def test_answers_do_not_depend_on_tiles_or_neighbours(native):
    # The sums are the same, but partial sums meet in other places: they round differently.
    network, image = specimen(DSSNetConfig(classes=2, blocks=3), (2, 72, 72))
    alone = Laboratory(native, network, device=("H100", {}))
    crowd = Laboratory(native, network, device=("H100", {"multiprocessors": 1}))
    assert (
        alone.plan("all", (2, 72, 72), "uint8", "labels").launches[4].kernel.startswith("wneck_4x8")
    )
    assert "8x16" in crowd.plan("all", (2, 72, 72), "uint8", "labels").launches[4].kernel
    together = alone.infer(image, "logits")
    torch.testing.assert_close(together, crowd.infer(image, "logits"), rtol=0, atol=2e-3)
    assert torch.equal(alone.infer(image[1:], "logits"), together[1:])


def test_values_near_the_end_of_the_range(native):
    # Activations up to 4e4 everywhere behind the stem, nearly as far as fp16 reaches (bf16 reaches
    # as far as float32): what is finite in PyTorch stays finite here, differences and partial sums
    # included.
    network, _ = specimen(DSSNetConfig(classes=2, blocks=2), (1, 40, 72))
    image = noise(1, 40, 72, 3, seed=3)
    x = (torch.from_numpy(image).double().permute(0, 3, 1, 2) - 128) / 128
    with torch.no_grad():
        network = network.double()
        scale = 4e4 / network.extract(network.downsample(x))[1].abs().max().item()
        for layer in (network.stem, network.head):
            layer.parametrizations.weight.original0.mul_(scale**0.5)
            layer.bias.mul_(scale**0.5)
        for block in network.blocks:
            for layer in (block.expand1, block.expand3):
                layer.bias.mul_(scale)
            for layer in (block.squeeze, block.restore):
                layer.bias.mul_(scale)
    laboratory = Laboratory(native, network.float())
    reference = Reference(network, laboratory.dtype, image)
    with torch.no_grad():
        maps = reference.exact.extract(reference.exact.downsample(reference.image))
        assert 1e4 < max(x.abs().max().item() for x in maps) < 6e4
        exact = last(reference.exact.logits(reference.image))
        rounded = last(reference.rounded.logits(reference.image.to(laboratory.dtype)))
    logits = laboratory.infer(image, "logits")
    assert torch.isfinite(logits).all()
    assert relative_error(logits, exact) <= relative_error(rounded, exact)
