"""Steps for int8, and the layers that it leaves alone, against what is known of both."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dssnet_fast import calibrate, macs, parity, weights
from dssnet_fast.backends import infer
from dssnet_fast.checkpoint import from_state
from dssnet_fast.model import FastDSSNet
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.images import find_images, read_image
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.quantisation import layer_names, step_names
from int8_oracle import Int8Oracle
from networks import CONFIGS, EXAMPLES, noise, random_network

pytestmark = pytest.mark.usefixtures("one_thread")


def folded_network(name="gray", **changes):
    network = random_network(**changes) if changes else random_network(CONFIGS[name])
    return weights.fold_checkpoint(from_state(released_state(network)))


def simulated(folded):
    """The oracle as a network; see `dssnet_fast.calibrate.int8_network`."""
    oracle = Int8Oracle(folded, torch.float32)

    def network(image):
        batch = torch.from_numpy(image.copy())[None]
        return infer(oracle, batch, "logits", folded.config.classes)[0].numpy()

    return network


def images_for(folded, *sizes):
    channels = folded.config.in_channels
    return [noise(*size, channels, seed=i) for i, size in enumerate(sizes)]


# --- histograms and steps ------------------------------------------------------------------------


def test_histogram_that_grows_is_the_histogram_of_everything():
    random = np.random.default_rng(0)
    parts = [random.normal(0, spread, 500) for spread in (10, 0.01, 1, 100)]
    histogram = calibrate.Histogram()
    for part in parts:
        histogram.add(torch.from_numpy(part).float())
    sizes = np.abs(np.concatenate(parts)).astype(np.float32)
    assert histogram.largest == sizes.max() <= histogram.limit < 2 * sizes.max()
    expected, _ = np.histogram(sizes, calibrate.BINS, (0, histogram.limit))
    # Bins of float32 end a rounding away from those of float64.
    assert np.abs(histogram.counts.cumsum() - expected.cumsum()).max() <= 2
    assert histogram.counts.sum() == 2000


def test_histogram_of_zeros_then_a_power_of_two():
    histogram = calibrate.Histogram()
    histogram.add(torch.zeros(3))
    assert (histogram.limit, histogram.largest) == (0, 0)
    histogram.add(torch.tensor([-4.0]))
    assert (histogram.limit, histogram.largest, histogram.counts[-1]) == (4, 4, 1)


def squared_error(values, step):
    return np.square(np.clip(np.round(values / step), -127, 127) * step - values).sum()


@pytest.mark.parametrize("tail", ["normal", "laplace", "logistic", "random"])
def test_step_has_the_least_squared_error(tail):
    """Against a search over the values themselves; a long tail is clipped, a short one is not."""
    values = getattr(np.random.default_rng(0), tail)(size=20000).astype(np.float32)
    histogram = calibrate.Histogram()
    histogram.add(torch.from_numpy(values))
    step = calibrate.best_step(histogram)
    largest = np.abs(values).max()
    best = min(squared_error(values, largest / 127 * share) for share in np.linspace(0.05, 1, 400))
    assert squared_error(values, step) <= 1.02 * best
    assert step == np.float32(step)
    if tail == "random":
        assert step == pytest.approx(largest / 127)
    else:
        assert step < 0.95 * largest / 127


# --- what is observed ----------------------------------------------------------------------------


def largest_inputs(network, images):
    """Largest |value| that each convolution of the reference reads, by the names of the steps."""
    found = {}
    modules = {"downsample.1": "downsamplers.1.strided", "downsample.2": "downsamplers.2.strided"}
    modules |= {"extract.head": "head", "fuse.smooth": "ffm.smooth"}
    modules |= {"fuse.reduce": "segmentation.reduce", "segment.narrow": "segmentation.narrow"}
    modules |= {"segment.tail": "segmentation.inner"}
    for name, module in network.blocks.named_modules():
        if isinstance(module, nn.Conv2d):
            modules["extract.blocks." + name.replace("layers.", "")] = f"blocks.{name}"

    def remember(name):
        def hook(_module, inputs):
            found[name] = max(found.get(name, 0.0), inputs[0].abs().max().item())

        return hook

    for name, module in modules.items():
        network.get_submodule(module).register_forward_pre_hook(remember(name))
    for image in images:
        parity.reference_logits(network, image)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_observes_what_convolutions_read(name, monkeypatch):
    folded = folded_network(name)
    images = images_for(folded, (16, 24), (13, 9), (8, 8))
    monkeypatch.setattr(calibrate, "best_step", lambda histogram: histogram.largest)
    found = calibrate.calibrate(folded, iter(images))
    assert found.images == 3
    assert found.exact == ()
    assert tuple(found.steps) == step_names(folded.config)
    expected = largest_inputs(random_network(CONFIGS[name]).double(), images)
    actual = dict(found.steps)
    for i in range(9):
        if (factor := actual.pop(f"fuse.smooth.{i}", None)) is not None:
            # The first is the map itself; the reference reads it enlarged. The others are
            # differences, halved once or twice.
            assert factor <= expected["fuse.smooth"] * (1 + 1e-5)
            if i == 0:
                actual["fuse.smooth"] = factor
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pixels", [0, 128, 255])
@pytest.mark.parametrize("upsampling", ["nearest", "pixel_shuffle"])
def test_images_without_content_give_usable_steps(pixels, upsampling):
    folded = folded_network(upsampling=upsampling)
    # Nothing is added to nothing: every value of an image of 128 is zero.
    silent = {k: v * 0 if k.endswith("bias") else v for k, v in folded.tensors.items()}
    folded = replace(folded, tensors=silent)
    images = [np.full((size, size, 3), pixels, np.uint8) for size in (16, 1)]
    given = calibrate.calibrate(folded, images)
    given.check(folded.config)
    if pixels == 128:
        assert set(given.steps.values()) == {np.float32(1 / 127)}
    network = simulated(replace(folded, quantisation=given))
    for image in (*images, noise(16, 16, 3)):
        assert np.isfinite(network(image)).all()


def test_refuses_what_tells_nothing():
    folded = folded_network()
    with pytest.raises(InputError, match="no images to calibrate with"):
        calibrate.calibrate(folded, [])
    for image in (noise(8, 8, 3), noise(8, 8), noise(8, 8, 1) / 255):
        with pytest.raises(ValueError, match=r"must be uint8 of shape \[H, W, 1\]"):
            calibrate.calibrate(folded, [image])
    folded.tensors["extract.head.bias"][0] = torch.nan
    with pytest.raises(InputError, match=r"extract\.blocks\.0\.expand1: activations reach nan"):
        calibrate.calibrate(folded, images_for(folded, (8, 8)))


# --- int8, as the oracle has it ------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_steps_leave_the_composed_network(name):
    """All the oracle's algebra, borders included, is the network's; weights are still rounded."""
    folded = folded_network(name)
    (image,) = images_for(folded, (24, 40))
    given = calibrate.calibrate(folded, [image])
    network, truth = (
        simulated(replace(folded, quantisation=given)),
        calibrate.float32_network(folded),
    )
    assert calibrate.difference(network, [image], [truth(image)]).error <= 0.1
    exact = replace(given, exact=layer_names(folded.config))
    network = simulated(replace(folded, quantisation=exact))
    assert calibrate.difference(network, [image], [truth(image)]).error <= 2e-6


def test_one_odd_image_does_not_coarsen_the_steps(monkeypatch):
    """On the packaged model; clipping at the largest values, which are those of noise, would."""
    folded = FastDSSNet.pretrained(device="cpu", backend="torch").folded_weights()
    images = [read_image(path)[:128, :128] for path in find_images([EXAMPLES])]
    truth = [calibrate.float32_network(folded)(image) for image in images]

    def found():
        given = calibrate.calibrate(folded, [*images, noise(48, 48, 3)])
        network = simulated(replace(folded, quantisation=given))
        return calibrate.difference(network, images, truth)

    chosen = found()
    monkeypatch.setattr(calibrate, "best_step", lambda histogram: histogram.largest / 127)
    assert chosen.error < 0.9 * found().error
    assert chosen.labels > 0.995


# --- layers that stay exact ----------------------------------------------------------------------


def test_difference_is_over_all_images_together():
    logits = [np.zeros((2, 2, 2)), np.zeros((1, 4, 2))]
    expected = [np.full((2, 2, 2), [0.0, 1.0]), np.full((1, 4, 2), [2.0, 0.0])]
    answers = iter(logits)
    found = calibrate.difference(lambda image: next(answers), [0, 1], expected)
    assert found == (1.0, 0.5)
    assert calibrate.difference(lambda i: expected[i], [0, 1], expected) == (0.0, 1.0)


@pytest.mark.parametrize("spoiled", ["extract.blocks.1.squeeze", "fuse.smooth.0", "segment.tail"])
def test_finds_the_layer_that_spoils_it(spoiled):
    folded = folded_network("basic" if "blocks" not in spoiled else "wdsr_b")
    images = images_for(folded, (32, 32), (16, 40))
    given = calibrate.calibrate(folded, images)
    truth = [calibrate.float32_network(folded)(image) for image in images]
    good = simulated(replace(folded, quantisation=given))
    limit = 1.5 * calibrate.difference(good, images, truth).error
    steps = {**given.steps, spoiled: 100 * given.steps[spoiled]}
    folded = replace(folded, quantisation=replace(given, steps=steps, exact=("extract.head",)))
    exact = calibrate.find_exact(folded, images, limit, make=simulated)
    assert exact == tuple(
        name for name in layer_names(folded.config) if f"{spoiled}.".startswith(f"{name}.")
    )


def test_layers_are_not_blamed_for_the_higher_precision():
    """It has errors of its own, which cheap layers would look worst for."""
    folded = folded_network("gray")
    images = images_for(folded, (8, 8))
    folded = replace(folded, quantisation=calibrate.calibrate(folded, images))
    truth = calibrate.float32_network(folded)

    def network(folded):
        error = 0.02 if "extract.blocks.0" in folded.quantisation.exact else 0.036
        return lambda image: truth(image) * (1 + error)

    assert calibrate.find_exact(folded, images, 0.025, make=network) == ("extract.blocks.0",)


def test_the_cheapest_layers_become_exact():
    """The block saves more for its work, the head enough for less of it."""
    folded = folded_network("gray")
    images = images_for(folded, (8, 8))
    folded = replace(folded, quantisation=calibrate.calibrate(folded, images))
    truth = calibrate.float32_network(folded)
    costs = calibrate.layer_costs(folded)
    spoils = {"extract.head": 4e-4, "extract.blocks.0": 1e-2}
    assert costs["extract.head"] < costs["extract.blocks.0"]
    assert 4e-4 / costs["extract.head"] < 1e-2 / costs["extract.blocks.0"]

    def network(folded):
        left = [spoils[name] for name in spoils if name not in folded.quantisation.exact]
        return lambda image: truth(image) * (1 + sum(left) ** 0.5)

    limit = 1.0001e-2**0.5
    assert calibrate.find_exact(folded, images, limit, make=network) == ("extract.head",)
    assert calibrate.find_exact(folded, images, 0.05, make=network) == ("extract.blocks.0",)
    assert calibrate.find_exact(folded, images, 0.01, make=network) == tuple(spoils)


def test_more_is_demanded_while_the_limit_does_not_hold():
    """Where errors of two layers hide each other, they do not add up."""
    folded = folded_network("gray")
    images = images_for(folded, (8, 8))
    folded = replace(folded, quantisation=calibrate.calibrate(folded, images))
    truth = calibrate.float32_network(folded)
    spoilers = ("extract.head", "extract.blocks.0")

    def network(folded):
        spoiled = not set(spoilers) <= set(folded.quantisation.exact)
        return lambda image: truth(image) * (1.1 if spoiled else 1)

    assert calibrate.find_exact(folded, images, 0.05, make=network) == spoilers


def test_cheapest_is_that_of_all_sets():
    random = np.random.default_rng(0)
    for _ in range(20):
        names = "abcdefgh"
        gains, costs = (dict(zip(names, random.integers(0, 20, 8), strict=True)) for _ in range(2))
        needed = random.integers(0, 100)
        enough = [
            sum(costs[name] for name in some)
            for count in range(9)
            for some in itertools.combinations(names, count)
            if sum(gains[name] for name in some) >= needed
        ]
        found = calibrate.cheapest(gains, costs, needed)
        if enough:
            assert sum(gains[name] for name in found) >= needed
            assert sum(costs[name] for name in found) == min(enough)
        else:
            assert found == tuple(names)
    assert calibrate.cheapest({"a": 1.0, "b": -1.0}, {"a": 1.0, "b": 1.0}, np.nan) == ("a", "b")


def test_the_limit_holds_and_no_sooner():
    folded = folded_network("gray")
    images = images_for(folded, (32, 32), (16, 40))
    folded = replace(folded, quantisation=calibrate.calibrate(folded, images))
    truth = [calibrate.float32_network(folded)(image) for image in images]

    def error(exact):
        given = replace(folded.quantisation, exact=exact)
        network = simulated(replace(folded, quantisation=given))
        return calibrate.difference(network, images, truth).error

    layers = layer_names(folded.config)
    assert calibrate.find_exact(folded, images, limit=error(()), make=simulated) == ()
    assert calibrate.find_exact(folded, images, limit=0.0, make=simulated) == layers
    limit = error(()) / 2
    exact = calibrate.find_exact(folded, images, limit=limit, make=simulated)
    assert 0 < len(exact) < len(layers)
    assert error(exact) <= limit
    assert list(exact) == [name for name in layers if name in exact]


@pytest.mark.parametrize("name", CONFIGS)
def test_costs_agree_with_what_pytorch_would_run(name):
    """Where the torch backend computes as int8 does; the rest by hand."""
    folded = folded_network(name)
    config = folded.config
    costs = calibrate.layer_costs(folded)
    assert tuple(costs) == layer_names(config)
    stages = macs.folded(config, 64, 64)
    cells = 64
    extract = sum(cost for layer, cost in costs.items() if layer.startswith("extract"))
    assert extract * cells == stages["extract"]
    strided = 16 * 9 * config.width**2
    composed = 16 * 25 * config.width * config.in_channels
    downsample = sum(cost for layer, cost in costs.items() if layer.startswith("downsample"))
    assert (downsample - composed + strided) * cells == stages["downsample"]
    fused = 2 * config.features
    if config.upsampling == "pixel_shuffle":
        mix = fused * fused * 16
        assert (costs["fuse.smooth"] + costs["fuse.reduce"] + mix) * cells == stages["fuse"]
    else:
        assert costs["fuse.smooth"] == 9 * fused * fused
        assert costs["fuse.reduce"] == 100 * fused * 32
    assert costs["segment.narrow"] == 16 * 9 * 32 * 20
    assert costs["segment.tail"] == 16 * 9 * 20 * 4 * config.classes
