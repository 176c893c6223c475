"""What int8 is to compute, in float64 where every sum of products of integers is exact.

The network as the backend `cpu` composes it: the stem and the first down-sampler as one, nine
products and a hundred taps around the up-sampling, the last two convolutions as one. A layer that
is not exact has int8 weights with a scale for each output of each of its matrices, and reads int8
activations. Between layers, for pooling and for the blocks' sums, values stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast import border, fold
from dssnet_fast.backends.torch_backend import TorchBackend
from dssnet_fast.quantisation import LARGEST, layer_names, step_names
from dssnet_fast.weights import FoldedWeights

IMAGE_STEP = 1 / 128


def quantise(values: Tensor, step: float | Tensor) -> Tensor:
    """What is left of values in int8: whole numbers from -127 to 127."""
    return (values / step).round().clamp(-LARGEST, LARGEST)


class Matrix:
    """A convolution's weights [O, ...] and bias [O], in int8 if `step` is given.

    step: of its input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, step: float | None) -> None:
        self.weight, self.bias, self.step = weight, bias, step
        self.scale = 1.0
        if step is not None:
            largest = weight.flatten(1).abs().amax(1)
            scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
            self.weight = quantise(weight, scale.view(-1, 1, 1, 1))
            self.scale = (scale * step).view(1, -1, 1, 1)

    def __call__(self, x: Tensor, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        if self.step == IMAGE_STEP:
            x = x / IMAGE_STEP  # whole numbers already, -128 among them
        elif self.step is not None:
            x = quantise(x, self.step)
        y = F.conv2d(x, self.weight, None, stride, padding) * self.scale
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)


class Int8Oracle(TorchBackend):
    """The four stages for uint8 images; see `dssnet_fast.backends.Backend`.

    dtype: float64, or float32 where speed counts more than the last bit.
    """

    def __init__(self, weights: FoldedWeights, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(weights, torch.device("cpu"), dtype)
        self.given = weights.quantisation
        self.tensors = {name: value.to(dtype) for name, value in weights.tensors.items()}
        exact = set(self.given.exact)
        if exact & {"downsample.stem", "downsample.0"}:
            exact |= {"downsample.stem", "downsample.0"}  # both read the image, stored once
        self.layers = set(layer_names(weights.config)) - exact
        self.matrices: dict[str, Matrix] = {}
        for name in step_names(weights.config):
            if name in ("segment.tail", "fuse.reduce") or name.startswith("fuse.smooth."):
                continue
            self.matrices[name] = self.matrix(name, *self.get(name))
        self.make_stem()
        self.reading_ffm = ["fuse.reduce", *(["edge.first"] if weights.config.edge else [])]
        if weights.config.upsampling == "nearest":
            self.make_cells()
        else:
            for name in self.reading_ffm:
                self.matrices[name] = self.matrix("fuse.reduce", *self.get(name))
        inner, outer = self.get("segment.inner"), self.get("segment.outer")
        self.tail = []
        for weight, bias in border.tail_terms(*inner, *outer):
            matrix = self.matrix("segment.tail", weight.flatten(0, 2), bias.flatten())
            self.tail.append(matrix)

    def get(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def matrix(self, name: str, weight: Tensor, bias: Tensor | None) -> Matrix:
        """`name` is that of the step; what has none reads the image."""
        layer = ".".join(name.split(".")[:3]) if ".blocks." in name else name
        layer = "fuse.smooth" if layer.startswith("fuse.smooth") else layer
        step = self.given.steps.get(name, IMAGE_STEP)
        return Matrix(weight, bias, step if layer in self.layers else None)

    # --- downsample ------------------------------------------------------------------------------

    def make_stem(self) -> None:
        stem, first = self.get("downsample.stem"), self.get("downsample.0")
        self.matrices["downsample.stem"] = self.matrix("downsample.stem", *stem)
        terms = border.stem_terms(*stem, *first)
        self.stem = [self.matrix("downsample.0", *term) for term in terms]

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1."""
        assert image.dtype == torch.uint8
        x = ((image.to(self.dtype) - 128) / 128).permute(0, 3, 1, 2)
        everywhere, top, left, corner = (matrix(x, 2, 2) for matrix in self.stem)
        everywhere[:, :, 0] += top[:, :, 0]
        everywhere[..., 0] += left[..., 0]
        everywhere[:, :, 0, 0] += corner[:, :, 0, 0]
        x = everywhere + F.max_pool2d(self._conv("downsample.stem", x), 2)
        for name in ("downsample.1", "downsample.2"):
            x = F.max_pool2d(x, 2) + self._conv(name, x, stride=2)
        return x.permute(0, 2, 3, 1)

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        if name in self.matrices:
            matrix = self.matrices[name]
            return matrix(x, stride, matrix.weight.shape[-1] // 2)
        return super()._conv(name, x, stride)

    # --- fuse ------------------------------------------------------------------------------------

    def make_cells(self) -> None:
        products = fold.cell_differences(self.get("fuse.smooth")[0])
        self.smooth = [
            self.matrix(f"fuse.smooth.{i}", product.t()[..., None, None], None)
            for i, product in enumerate(products)
        ]
        # Per sub-row: the first of the values that it reads (0: c of the cell before), and sums of
        # taps as `cell_taps` numbers them.
        reads = ((0, (0, 1, 2)), (1, (0, 3)), (2, (4, 2)), (2, (0, 1, 2)))
        self.over_cells = {}
        for name in self.reading_ffm:
            weight, bias = self.get(name)
            taps = fold.cell_taps(weight).permute(3, 2, 0, 1)
            self.over_cells[name] = []
            for row, rows in reads:
                for column, columns in reads:
                    part = taps[:, :, list(rows)][..., list(columns)]
                    matrix = self.matrix("fuse.reduce", part, bias)
                    self.over_cells[name].append((row, column, matrix))

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        y = self._reading_ffm("fuse.reduce", shallow, deep)
        return self._activate("fuse.reduce", y).permute(0, 2, 3, 1)

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head, exact but for its first convolution, which reads what `fuse` reads."""
        x = self._activate("edge.first", self._reading_ffm("edge.first", shallow, deep))
        for name in ("edge.inner", "edge.outer", "edge.last"):
            x = F.conv2d(x, *self.get(name), padding=1)
        return x[:, 0]

    def _reading_ffm(self, name: str, shallow: Tensor, deep: Tensor) -> Tensor:
        """A 3x3 convolution of the FFM's map."""
        if self.config.upsampling != "nearest":
            return self._conv(name, self._smooth(shallow, deep))
        joined = torch.cat([shallow, deep], dim=-1).permute(0, 3, 1, 2)
        mixed = self._activate("fuse.mix", self._conv("fuse.mix", joined))
        factors = fold.cell_factors(mixed)
        products = [product(factor) for product, factor in zip(self.smooth, factors, strict=True)]
        # A cell's values a, b, c: the cell itself, and the difference to that before or after.
        used = ((0, 1), (0,), (0, 2))
        values = torch.stack(
            [
                sum(products[3 * i + j] for i in row for j in column)
                for row in used
                for column in used
            ]
        )
        batch, channels, h, w = products[0].shape
        values = values.view(3, 3, batch, channels, h, w).permute(2, 3, 4, 0, 5, 1)
        values = values.reshape(batch, channels, 3 * h, 3 * w)
        values = self._activate("fuse.smooth", values + self.get("fuse.smooth")[1].view(-1, 1, 1))
        padded = F.pad(values, (1, 1, 1, 1))
        parts = [
            matrix(padded[:, :, row:, column:], stride=3)[:, :, :h, :w]
            for row, column, matrix in self.over_cells[name]
        ]
        return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 4)

    # --- segment ---------------------------------------------------------------------------------

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        x = self._conv("segment.narrow", y.permute(0, 3, 1, 2))
        x = self._activate("segment.narrow", x)
        terms = [t(x, 1, tuple(s // 2 for s in t.weight.shape[2:])) for t in self.tail]
        logits, top, bottom, left, right, *corners = terms
        logits[:, :, 0] += top[:, :, 0]
        logits[:, :, -1] += bottom[:, :, -1]
        logits[..., 0] += left[..., 0]
        logits[..., -1] += right[..., -1]
        for (i, j), corner in zip(((0, 0), (0, -1), (-1, 0), (-1, -1)), corners, strict=True):
            logits[:, :, i, j] += corner[:, :, i, j]
        # Sub-row and sub-column are slowest here, fastest in `pixel_shuffle`.
        classes = self.config.classes
        logits = logits.unflatten(1, (4, classes)).transpose(1, 2).flatten(1, 2)
        logits = F.pixel_shuffle(logits, 2).permute(0, 2, 3, 1)
        if output == "labels":
            return logits.argmax(-1).to(torch.uint8)
        return (logits.softmax(-1) if output == "probabilities" else logits).float()
