"""The stages as programs: which kernels run, on which maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dssnet_fast import fold
from dssnet_fast.backends.triton.operands import Packed
from dssnet_fast.backends.triton.program import Map, Program, Step
from dssnet_fast.kernels.convolution import convolve
from dssnet_fast.kernels.downsample import launch_down, launch_stem_down
from dssnet_fast.kernels.fuse import launch_cell_values, launch_reduce_cells
from dssnet_fast.kernels.launch import Launch
from dssnet_fast.kernels.segment import launch_classify
from dssnet_fast.kernels.wneck import MAPS, launch_restore, launch_squeeze

# Maps that the caller brings.
_ENDS = {
    "infer": {"image", "answer"},
    "downsample": {"image", "x0"},
    "extract": {"x0", "joined"},
    "fuse": {"joined", "y"},
    "segment": {"y", "answer"},
}


def program(network: Packed, stage: str, shape: tuple[int, int, int], output: str) -> Program:
    """The launches of one stage, or of all.

    Args:
        network: What runs.
        stage: `downsample`, `extract`, `fuse`, `segment` or `infer`. The maps between them are
            `image`, `x0`, `joined` (shallow and deep features side by side), `y` and `answer`.
        shape: Batch, height and width of the images, both multiples of 8.
        output: One of `dssnet_fast.backends.OUTPUTS`, where the stage has an answer.
    """
    builder = _Builder(network, shape)
    stages = {
        "downsample": builder.downsample,
        "extract": builder.extract,
        "fuse": builder.fuse,
        "segment": lambda: builder.segment(output),
    }
    for name, build in stages.items():
        if stage in (name, "infer"):
            build()
    return Program(builder.maps, builder.steps, _ENDS[stage])


class _Builder:
    """Steps of the stages, appended in order."""

    def __init__(self, network: Packed, shape: tuple[int, int, int]) -> None:
        self.maps: dict[str, Map] = {}
        self.steps: list[Step] = []
        self._shape = shape
        self._network = network
        self._weights = network.tensors
        self._dtype = network.dtype
        self._precision = network.precision

    def _map(self, name: str, scale: int, *channels: int) -> str:
        """A map at 1/scale of the image's resolution."""
        batch, height, width = self._shape
        shape = (batch, height // scale, width // scale, *channels)
        self.maps[name] = Map(shape, self._dtype)
        return name

    def _step(self, make: Callable[[Mapping[str, Tensor]], Launch], *maps: str) -> None:
        self.steps.append(Step(make, maps))

    def _convolve(
        self,
        layer: str,
        x: str,
        y: str,
        *,
        slope: str | None = None,
        residual: str | None = None,
        pointwise: int = 0,
        shuffle: int = 1,
    ) -> None:
        """A convolution between maps; `name[0]` and `name[1]` are the halves of a map."""
        found = self._weights
        self._step(
            lambda maps: convolve(
                _part(maps, x),
                found[f"{layer}.weight"],
                found[f"{layer}.bias"],
                _part(maps, y),
                slope=None if slope is None else found[slope],
                residual=None if residual is None else _part(maps, residual),
                pointwise=pointwise,
                shuffle=shuffle,
                precision=self._precision,
            ),
            *(_name(part) for part in (x, y, residual) if part is not None),
        )

    # --- stages ----------------------------------------------------------------------------------

    def downsample(self) -> None:
        """`image` to `x0`."""
        found, width = self._weights, self._network.sizes.width
        half, quarter = self._map("half", 2, width), self._map("quarter", 4, width)
        x0 = self._map("x0", 8, width)
        self._step(
            lambda maps: launch_stem_down(
                maps["image"],
                *(found[f"downsample.{name}"] for name in ("stem", "strided", "border", "bias")),
                maps[half],
                precision=self._precision,
            ),
            "image",
            half,
        )
        self._down(1, half, quarter)
        self._down(2, quarter, x0)

    def _down(self, i: int, x: str, y: str) -> None:
        weight, bias = (self._weights[f"downsample.{i}.{leaf}"] for leaf in ("weight", "bias"))
        self._step(lambda maps: launch_down(maps[x], weight, bias, maps[y], self._precision), x, y)

    def extract(self) -> None:
        """`x0` to `joined`: shallow features, and beside them deep ones."""
        sizes, blocks = self._network.sizes, self._network.config.blocks
        self._map("x0", 8, sizes.width)
        self._map("joined", 8, 2 * sizes.features)
        x = "joined[0]"
        self._convolve("extract.head", "x0", x)
        # Two maps in turn: a block reads its input to the end.
        turns = [self._map(f"x{turn}", 8, sizes.features) for turn in ("_even", "_odd")]
        block = getattr(self, f"_{self._network.config.block}")
        for i in range(blocks):
            y = "joined[1]" if i == blocks - 1 else turns[i % 2]
            block(f"extract.blocks.{i}", x, y)
            x = y

    def _wneck(self, name: str, x: str, y: str) -> None:
        if self._network.sizes.is_fused:
            self._fused_wneck(name, x, y)
            return
        sizes = self._network.sizes
        wide = self._map("wide", 8, 2 * sizes.expanded)
        squeezed = self._map("squeezed", 8, sizes.squeezed)
        slope = f"{name}.slope"
        self._convolve(f"{name}.expand", x, wide, slope=slope, pointwise=sizes.expanded)
        self._convolve(f"{name}.squeeze", wide, squeezed)
        self._convolve(f"{name}.restore", squeezed, y, residual=x)

    def _fused_wneck(self, name: str, x: str, y: str) -> None:
        found, sizes = self._weights, self._network.sizes
        batch, height, width = self._shape
        cells = (batch, height // 8, width // 8)
        self.maps["sums"] = Map((MAPS, *cells, sizes.squeezed), torch.float32)
        squeeze = [
            found[f"{name}.{leaf}"]
            for leaf in (
                *("expand1.weight", "expand3.weight", "expand.bias"),
                *("slope", "squeeze.weight", "squeeze.bias"),
            )
        ]
        restore = [found[f"{name}.restore.{leaf}"] for leaf in ("weight", "bias")]
        self._step(
            lambda maps: launch_squeeze(_part(maps, x), *squeeze, maps["sums"], self._precision),
            _name(x),
            "sums",
        )
        self._step(
            lambda maps: launch_restore(
                maps["sums"], *restore, _part(maps, x), _part(maps, y), self._precision
            ),
            _name(x),
            _name(y),
            "sums",
        )

    def _wdsr_b(self, name: str, x: str, y: str) -> None:
        wide = self._hidden(f"{name}.expand")
        squeezed = self._hidden(f"{name}.squeeze")
        self._convolve(f"{name}.expand", x, wide, slope=f"{name}.slope")
        self._convolve(f"{name}.squeeze", wide, squeezed)
        self._convolve(f"{name}.restore", squeezed, y, residual=x)

    def _bottleneck(self, name: str, x: str, y: str) -> None:
        reduced, inner = self._hidden(f"{name}.reduce"), self._hidden(f"{name}.inner")
        self._convolve(f"{name}.reduce", x, reduced, slope=f"{name}.slope")
        self._convolve(f"{name}.inner", reduced, inner, slope=f"{name}.inner.slope")
        self._convolve(f"{name}.restore", inner, y, residual=x)

    def _basic(self, name: str, x: str, y: str) -> None:
        hidden = self._hidden(f"{name}.first")
        self._convolve(f"{name}.first", x, hidden, slope=f"{name}.slope")
        self._convolve(f"{name}.second", hidden, y, residual=x)

    def _hidden(self, layer: str) -> str:
        """A map for a layer's outputs; blocks of a network share it."""
        kind = layer.rsplit(".", 1)[1]
        return self._map(kind, 8, self._weights[f"{layer}.bias"].shape[0])

    def fuse(self) -> None:
        """`joined` to `y`."""
        found, sizes = self._weights, self._network.sizes
        self._map("joined", 8, 2 * sizes.features)
        y = self._map("y", 2, sizes.y)
        if self._network.config.upsampling == "pixel_shuffle":
            mixed = self._map("mixed", 2, sizes.fused)
            smooth = self._map("smooth", 2, sizes.fused)
            self._convolve("fuse.mix", "joined", mixed, slope="fuse.mix.slope", shuffle=fold.CELL)
            self._convolve("fuse.smooth", mixed, smooth, slope="fuse.smooth.slope")
            self._convolve("fuse.reduce", smooth, y, slope="fuse.reduce.slope")
            return
        mixed = self._map("mixed", 8, sizes.fused)
        values = self._map("values", 8, fold.PRODUCTS, sizes.fused)
        self._convolve("fuse.mix", "joined", mixed, slope="fuse.mix.slope")
        leaves = ("weight", "bias", "slope")
        smooth = [found[f"fuse.smooth.{leaf}"] for leaf in leaves]
        reduce = [found[f"fuse.reduce.{leaf}"] for leaf in leaves]
        self._step(
            lambda maps: launch_cell_values(maps[mixed], *smooth, maps[values], self._precision),
            mixed,
            values,
        )
        self._step(
            lambda maps: launch_reduce_cells(maps[values], *reduce, maps[y], self._precision),
            values,
            y,
        )

    def segment(self, output: str) -> None:
        """`y` to `answer`."""
        sizes, classes = self._network.sizes, self._network.config.classes
        self._map("y", 2, sizes.y)
        narrow = self._map("narrow", 2, sizes.narrow)
        self._convolve("segment.narrow", "y", narrow, slope="segment.narrow.slope")
        tail = [self._weights[f"segment.{name}"] for name in ("tail", "border", "tail.bias")]
        self._step(
            lambda maps: launch_classify(
                maps[narrow], *tail, maps["answer"], classes, output, self._precision
            ),
            narrow,
            "answer",
        )


def _name(part: str) -> str:
    return part.split("[")[0]


def _part(maps: Mapping[str, Tensor], part: str) -> Tensor:
    """A map, or with `[0]` or `[1]` half of its channels."""
    found = maps[_name(part)]
    return found.chunk(2, dim=3)[int(part[-2])] if part.endswith("]") else found
