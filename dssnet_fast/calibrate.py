"""Steps for int8, from what activations really are.

The folded network runs in float32 over images and the size of every value that int8 would store is
counted. What a step should be, and which layers int8 should leave alone, is then a question of
measured errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dssnet_fast import backends, fold
from dssnet_fast.backends.torch_backend import TorchBackend
from dssnet_fast.model import FastDSSNet
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import UPSAMPLING
from dssnet_fast.quantisation import LARGEST, SHARED, Quantisation, layer_names, step_names
from dssnet_fast.weights import FoldedWeights

# Of the logits; layers become exact until it holds. For the packaged model this takes three
# layers, 4 % of its work; 1 % would take a whole block, too.
ERROR_LIMIT = 0.015
BINS = 8192
# Steps are tried that clip at this share of the largest value, and above.
_LEAST_CLIP, _TRIED = 0.05, 100
# Sizes that are as good as zero, and that no network reaches unless its weights have diverged.
_NOTHING, _TOO_MUCH = 1e-30, 1e30


class Histogram:
    """How often absolute values occur, in bins up to a limit that grows with what is added.

    Attributes:
        counts: float64 [BINS], of equal width from 0 to `limit`.
        limit: A power of two; 0 while there are only zeros.
        largest: Of all values.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, values: Tensor) -> None:
        """Count values, float32 of any shape.

        Raises:
            InputError: They are not finite, or close to it.
        """
        sizes = values.abs().flatten()
        largest = float(sizes.max())
        if not largest < _TOO_MUCH:
            raise InputError(f"activations reach {largest}; the training run has diverged")
        if largest > max(self.limit, _NOTHING):
            self._grow(2.0 ** math.ceil(math.log2(largest)))
        self.largest = max(self.largest, largest)
        if self.limit:
            self.counts += torch.histc(sizes, BINS, 0, self.limit).double().numpy()

    def _grow(self, limit: float) -> None:
        if self.limit:
            together = min(int(limit / self.limit), BINS)
            merged = self.counts.reshape(-1, together).sum(1)
            self.counts = np.pad(merged, (0, BINS - merged.size))
        self.limit = limit


class _Observer(TorchBackend):
    """The folded network in float32, counting what its convolutions read."""

    def __init__(self, folded: FoldedWeights) -> None:
        super().__init__(folded, torch.device("cpu"), torch.float32)
        self.histograms = {name: Histogram() for name in step_names(folded.config)}

    def _observe(self, name: str, values: Tensor) -> None:
        try:
            self.histograms[name].add(values)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        convolution = name.rpartition(".")[2]
        if name in self.histograms and convolution not in SHARED:
            self._observe(name, x)
        return super()._conv(name, x, stride)

    def _activate(self, name: str, x: Tensor) -> Tensor:
        y = super()._activate(name, x)
        if name == "fuse.mix" and self.config.upsampling == "nearest":
            for i, factor in enumerate(fold.cell_factors(y)):
                self._observe(f"fuse.smooth.{i}", factor)
        return y


def calibrate(folded: FoldedWeights, images: Iterable[np.ndarray]) -> Quantisation:
    """Steps for what these images make the network compute.

    Args:
        folded: The network.
        images: uint8 [H, W, in_channels] of any sizes, like those that will be segmented.

    Returns:
        Steps, with no layer exact; see `find_exact`.

    Raises:
        InputError: There are no images, or activations are not finite.
        ValueError: An image has another shape or type.
    """
    observer = _Observer(folded)
    count = 0
    for count, image in enumerate(images, start=1):  # noqa: B007
        _check(image, folded.config)
        batch = torch.from_numpy(np.array(image))[None]
        backends.infer(observer, batch, "logits", folded.config.classes)
    if not count:
        raise InputError("there are no images to calibrate with")
    steps = {}
    for name in step_names(folded.config):
        block, _, convolution = name.rpartition(".")
        source = f"{block}.{SHARED[convolution]}" if convolution in SHARED else name
        steps[name] = best_step(observer.histograms[source])
    return Quantisation(steps, images=count)


def _check(image: np.ndarray, config: DSSNetConfig) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != config.in_channels:
        raise ValueError(
            f"image must be uint8 of shape [H, W, {config.in_channels}], "
            f"got {image.dtype} of {list(image.shape)}"
        )


def best_step(histogram: Histogram) -> float:
    """The step with the least squared error, in float32.

    Activations have long tails: on real images the median is a fortieth of the largest value.
    Clipping at the largest gives the logits of the packaged model 1.8 times the error; percentiles
    do as well as this where one hits upon the right one (99.99 %, not 99.9 %).

    Returns:
        Positive and finite, even where there were only zeros.
    """
    if not histogram.limit:
        return float(np.float32(1 / LARGEST))
    values = (np.arange(BINS) + 0.5) * (histogram.limit / BINS)
    steps = histogram.largest / LARGEST * np.geomspace(_LEAST_CLIP, 1, _TRIED)

    def squared_error(step: float) -> float:
        kept = np.minimum(np.round(values / step), LARGEST) * step
        return float(histogram.counts @ (values - kept) ** 2)

    return float(np.float32(min(steps, key=squared_error)))


# --- layers that stay exact ----------------------------------------------------------------------

Network = Callable[[np.ndarray], np.ndarray]  # image uint8 [H, W, C] -> logits [H, W, classes]


class Difference(NamedTuple):
    """How far logits are from expected ones, over all images together.

    Attributes:
        error: |difference| / |expected|, in 2-norms.
        labels: Share of pixels whose label is the same.
    """

    error: float
    labels: float


def float32_network(folded: FoldedWeights) -> Network:
    """Who knows the truth."""
    net = FastDSSNet(folded, device="cpu", backend="torch", precision="fp32")
    return lambda image: net.predict(image, output="logits")


def int8_network(folded: FoldedWeights) -> Network:
    """Who is measured.

    Raises:
        BackendUnavailable: There is no int8 here.
    """
    net = FastDSSNet(folded, device="cpu", backend="cpu", precision="int8")
    return lambda image: net.predict(image, output="logits")


def difference(
    network: Network, images: Iterable[np.ndarray], expected: Iterable[np.ndarray]
) -> Difference:
    """Compare a network's logits with those expected, one image after the other."""
    wrong = total = 0.0
    equal = pixels = 0
    for image, truth in zip(images, expected, strict=True):
        logits = network(image)
        wrong += float(np.square(logits.astype(np.float64) - truth).sum())
        total += float(np.square(truth.astype(np.float64)).sum())
        equal += int((logits.argmax(-1) == truth.argmax(-1)).sum())
        pixels += truth[..., 0].size
    return Difference(math.sqrt(wrong / total), equal / pixels)


def find_exact(
    folded: FoldedWeights,
    images: Sequence[np.ndarray],
    limit: float = ERROR_LIMIT,
    make: Callable[[FoldedWeights], Network] = int8_network,
) -> tuple[str, ...]:
    """The layers that int8 should leave in a higher precision.

    Each layer's error is measured with all others exact. As squared errors of layers add up, that
    tells the fewest multiply-accumulates to make exact for an error within the limit; it is then
    measured, and more demanded while it does not hold.

    Args:
        folded: With a quantisation, whose own exact layers do not count.
        images: See `calibrate`; each is run some dozens of times.
        limit: Of `Difference.error`, against float32.
        make: Builds the network in int8.

    Returns:
        Names as in `layer_names`; none where int8 is within the limit throughout, all where it
        never is.

    Raises:
        BackendUnavailable: There is no int8 here.
    """
    truth = float32_network(folded)
    expected = [truth(image) for image in images]
    layers = layer_names(folded.config)

    def error(exact: Iterable[str]) -> float:
        kept = replace(folded.quantisation, exact=tuple(name for name in layers if name in exact))
        return difference(make(replace(folded, quantisation=kept)), images, expected).error

    if (now := error(())) <= limit:
        return ()
    costs = layer_costs(folded)
    least = error(layers)  # of the higher precision itself
    gains = {name: error(set(layers) - {name}) ** 2 - least**2 for name in layers}
    needed = now**2 - limit**2
    while True:
        exact = cheapest(gains, costs, needed)
        if len(exact) == len(layers) or (now := error(exact)) <= limit:
            return exact
        needed = sum(gains[name] for name in exact) + now**2 - limit**2


def cheapest(
    gains: Mapping[str, float], costs: Mapping[str, float], needed: float
) -> tuple[str, ...]:
    """The names that cost least and together gain what is needed; all where none do."""
    # (cost, gain, names) of sets, the cheaper first, each of which gains more than all before it.
    sets = [(0.0, 0.0, ())]
    for name in gains:
        more = [(cost + costs[name], gain + gains[name], (*s, name)) for cost, gain, s in sets]
        most = -math.inf
        sets, merged = [], sorted(sets + more)
        for one in merged:
            if one[1] > most:
                most = one[1]
                sets.append(one)
    return next((names for _, gain, names in sets if gain >= needed), tuple(gains))


def layer_costs(folded: FoldedWeights) -> dict[str, float]:
    """Multiply-accumulates of each layer, for each cell of 8 x 8 pixels."""
    config = folded.config

    def numbers(name: str) -> int:
        return sum(
            value.numel()
            for key, value in folded.tensors.items()
            if key.startswith(f"{name}.") and key.endswith("weight")
        )

    halves = UPSAMPLING**2  # pixels at half resolution
    nearest = config.upsampling == "nearest"
    taps = 100 / 9 if nearest else halves
    inner, outer = (folded.tensors[f"segment.{name}.weight"] for name in ("inner", "outer"))
    return {
        "downsample.stem": 64 * numbers("downsample.stem"),
        # Composed with the stem, it has 5 x 5 taps of the image.
        "downsample.0": 16 * 25 * config.width * config.in_channels,
        "downsample.1": 4 * numbers("downsample.1"),
        "downsample.2": numbers("downsample.2"),
        "extract.head": numbers("extract.head"),
        **{f"extract.blocks.{i}": numbers(f"extract.blocks.{i}") for i in range(config.blocks)},
        "fuse.smooth": numbers("fuse.smooth") * (1 if nearest else halves),
        "fuse.reduce": numbers("fuse.reduce") * taps,
        "segment.narrow": halves * numbers("segment.narrow"),
        "segment.tail": halves * 4 * 9 * inner.shape[1] * outer.shape[0],
    }
