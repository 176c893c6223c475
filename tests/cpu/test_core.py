"""A part's answer is the whole's, to the last bit, and nothing that is left out matters to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from cpu.cases import ENDS, INSTRUCTION_SETS, backend, calibrated, threads
from dssnet_fast import FastDSSNet
from dssnet_fast.backends.cpu import engine
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.quantisation import layer_names
from dssnet_fast.tiling import Box
from networks import CONFIGS, noise

pytestmark = pytest.mark.usefixtures("extension")

MODES = ("fp32", "bf16", "int8")
# Beyond the reach of small networks in both directions, and of the paper's in either.
# Widths that fill vectors exactly have nothing but their pads to the right.
SIZES = {"paper": [(61, 768), (780, 43)]}
SMALL_SIZES = [(3, 5), (61, 777), (44, 768), (400, 413)]


def cores(random: np.random.Generator, height: int, width: int, count: int) -> Iterator[Box]:
    """Any, single pixels, stripes, those at borders, and those that begin where units do."""

    def edges(length: int, kind: int) -> tuple[int, int]:
        first = int(random.integers(length))
        last = int(random.integers(first, length)) + 1
        if kind == 1:
            last = first + 1
        elif kind == 2:
            first = 0
        elif kind == 3:
            last = length
        elif kind == 4:
            first = first // 128 * 128
            last = min(first + 128 * int(random.integers(1, 3)), length)
        return first, last

    for _ in range(count):
        top, bottom = edges(height, int(random.integers(5)))
        left, right = edges(width, int(random.integers(5)))
        yield Box(top, left, bottom, right)


def some_exact(name: str) -> tuple[str, ...]:
    """Every third layer of a network."""
    return tuple(layer_names(CONFIGS[name])[::3])


def check(ours: engine.CpuBackend, name: str, sizes: list[tuple[int, int]], count: int) -> None:
    """Random cores of random images beside the whole image's decision, labels and edges."""
    random = np.random.default_rng(3)
    channels = ours.config.in_channels
    net = FastDSSNet(calibrated(name), device="cpu", backend="cpu", precision="fp32")
    net._backend = ours
    edges = net.has_edges
    for height, width in sizes:
        batch = int(random.integers(1, 4))
        image = noise(batch, height, width, channels)
        # Memory that is used again holds what is no number, or another image.
        poison = torch.full((batch, channels, height, width), torch.nan)
        with threads(1):
            whole = net.decide(image, edges=edges)
            labels, probability, *edge_map = whole
            assert labels.dtype == np.uint8
            assert probability.dtype == np.float32
            np.testing.assert_array_equal(labels, net.predict(image))
            for found, wanted in zip(net.decide(image), whole[:2], strict=True):
                np.testing.assert_array_equal(found, wanted)
            if edges:
                assert edge_map[0].dtype == np.float32
                np.testing.assert_array_equal(edge_map[0], net.predict(image, "edges"))
            expected = net.predict(image, "probabilities").max(axis=3)
            np.testing.assert_allclose(probability, expected, rtol=1e-6)
        for number, core in enumerate(cores(random, height, width, count)):
            with threads(1 + number % 2):
                if number < 3:
                    net(poison)
                # Each with the context that it needs, and no more of the memory.
                found = [*net.decide(image, core)]
                if edges:
                    net(poison)
                    found += net.decide(image, core, edges=True)
            at = (slice(None), *core.within(Box(0, 0, height, width)))
            for part, wanted in zip(found, [*whole[:2], *whole][: len(found)], strict=True):
                np.testing.assert_array_equal(part, wanted[at], err_msg=f"{core} of {image.shape}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_core_has_the_wholes_bits(name, mode):
    check(backend(calibrated(name), mode), name, SIZES.get(name, SMALL_SIZES), 7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_with_every_instruction_set(instruction_set, mode):
    check(backend(calibrated("gray"), mode, instruction_set), "gray", [(93, 420)], 6)


@pytest.mark.parametrize("name", ["gray", "basic", "pixel_shuffle"])
def test_where_layers_differ_in_precision(name):
    """Winograd's groups of rows beside layers that have none."""
    weights = calibrated(name)
    weights = replace(weights, quantisation=replace(weights.quantisation, exact=some_exact(name)))
    (without_bf16,) = [n for n in INSTRUCTION_SETS if n in ("avx2", "neon")][:1] or ENDS[:1]
    check(backend(weights, "int8", without_bf16), name, [(400, 413)], 8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["paper", "pixel_shuffle"])
def test_threads_change_no_bit(name, mode):
    ours = backend(calibrated(name), mode)
    for height, width in ((8, 8), (24, 40), (72, 136), (200, 24)):
        image = torch.from_numpy(noise(1, height, width, ours.config.in_channels))
        with threads(1):
            alone, edges = ours.infer(image, "logits"), ours.infer_edges(image)
        for count in (2, 3, 5):
            with threads(count):
                assert torch.equal(ours.infer(image, "logits"), alone)
                assert torch.equal(ours.infer_edges(image), edges)


@pytest.mark.parametrize("mode", MODES)
def test_tiles_of_a_core(mode, monkeypatch):
    """Where memory is short, the engine cuts what it is asked for, and only that."""
    ours = backend(calibrated("gray"), mode, winograd=False)
    image = torch.from_numpy(noise(2, 800, 1400, 1))
    core = Box(240, 400, 720, 1160)
    expected = ours.decide(image, core, edges=True)
    logits, edges = ours.infer(image, "logits"), ours.infer_edges(image)
    runs, run = [], ours._run

    def counting(stage, size, *others):
        runs.append(size[1] * size[2])
        run(stage, size, *others)

    monkeypatch.setattr(ours, "_run", counting)
    for with_edges in (False, True):
        runs.clear()
        # What is needed depends on the number of threads.
        with threads(2):
            limit = ours.workspace_bytes(400, 400, edges=True)
            monkeypatch.setattr(engine, "WORKSPACE_BYTES", limit)
            answers = ours.decide(image, core, with_edges)
        for found, wanted in zip(answers, expected[: len(answers)], strict=True):
            assert torch.equal(found, wanted)
        assert len(answers) == 2 + with_edges
        assert len(runs) > 4
        assert sum(runs) < 800 * 1400
    assert torch.equal(ours.infer(image, "logits"), logits)
    assert torch.equal(ours.infer_edges(image), edges)


@pytest.mark.parametrize("mode", MODES)
def test_a_small_core_takes_little_memory(mode):
    ours = backend(calibrated("gray"), mode)
    core = Box(1000, 1000, 1064, 1064)
    assert ours.workspace_bytes(2048, 2048, core) < 0.6 * ours.workspace_bytes(2048, 2048)
    assert ours.workspace_bytes(2048, 2048, Box(0, 0, 2048, 2048)) == ours.workspace_bytes(
        2048, 2048
    )


def test_no_images_give_no_answers():
    net = FastDSSNet(calibrated("gray"), device="cpu", backend="cpu", precision="fp32")
    labels, probability, edges = net.decide(noise(0, 40, 40, 1), Box(3, 4, 10, 20), edges=True)
    assert labels.shape == probability.shape == edges.shape == (0, 7, 16)
    assert (labels.dtype, probability.dtype, edges.dtype) == (np.uint8, np.float32, np.float32)
    assert len(net.decide(noise(0, 40, 40, 1))) == 2
    assert net.predict(noise(0, 40, 41, 1), "edges").shape == (0, 40, 41)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_an_error(value):
    weights = calibrated("gray")
    for name in ("segment.outer.bias", "extract.head.weight"):
        tensors = {key: one.clone() for key, one in weights.tensors.items()}
        tensors[name].flatten()[0] = value
        net = FastDSSNet(replace(weights, tensors=tensors), "cpu", "cpu", "fp32")
        with pytest.raises(InputError, match="not finite; use --precision fp32"):
            net.decide(noise(40, 40, 1))
