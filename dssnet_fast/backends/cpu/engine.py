"""Running the network on the CPU: torch's tensors around the extension's network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dssnet_fast.backends import EDGES, check_output, new_answer
from dssnet_fast.backends import PRECISIONS as DTYPES
from dssnet_fast.backends.cpu.operands import float_type, operands
from dssnet_fast.backends.decisions import crop_image
from dssnet_fast.backends.inputs import (
    check_features,
    check_image,
    check_map,
    map_size,
    readable,
)
from dssnet_fast.tiling import Box, plan
from dssnet_fast.weights import FoldedWeights

if TYPE_CHECKING:
    from types import ModuleType

CPU = torch.device("cpu")
WORKSPACE_BYTES = 512 << 20  # of one image, at most
DECISION = "decision"  # labels and their probabilities, beside the `OUTPUTS`


class CpuBackend:
    """The four stages; see `dssnet_fast.backends.Backend`.

    Runs on as many threads as torch says (`torch.set_num_threads`), without Python's lock. Several
    calls at a time run on one thread each but the first. Sums are float32 (int32 in int8).

    Args:
        weights: The network.
        precision: `fp32`, `bf16` or `int8`.
        native: The extension.
        instruction_set: One of `dssnet_fast.backends.cpu.instruction_set.found`.
        winograd: Whether float32 may use Winograd's form of 3x3 convolutions.
    """

    def __init__(
        self,
        weights: FoldedWeights,
        precision: str,
        native: ModuleType,
        instruction_set: Mapping[str, object],
        winograd: bool = True,
    ) -> None:
        self.config = weights.config
        self.dtype = DTYPES[precision]
        self.instruction_set = instruction_set["name"]
        found = operands(weights, precision, float_type(precision, instruction_set["fast_bf16"]))
        self._channels = found.sizes
        self._network = native.CpuNetwork(
            instruction_set=self.instruction_set,
            sizes=found.sizes,
            convolutions={
                name: (one.weight, one.bias, one.type, one.step)
                for name, one in found.convolutions.items()
            },
            blocks=found.blocks,
            slopes=found.slopes,
            winograd=winograd,
        )

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages; see `dssnet_fast.backends.Backend`.

        Images that would take more memory than `WORKSPACE_BYTES` go through in tiles, exactly.
        """
        check_output(output)
        _, height, width = check_image(image, self.config.in_channels)
        (answer,) = self._part(image, (output,), Box(0, 0, height, width))
        return answer

    def decide(self, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
        """All stages for a part of the images; see `dssnet_fast.backends.Backend`."""
        return self._part(image, (DECISION, EDGES) if edges else (DECISION,), core)

    def infer_edges(self, image: Tensor) -> Tensor:
        """The edge map of whole images; see `dssnet_fast.backends.Backend`."""
        _, height, width = check_image(image, self.config.in_channels)
        (edges,) = self._part(image, (EDGES,), Box(0, 0, height, width))
        return edges

    def _part(self, image: Tensor, wanted: Sequence[str], core: Box) -> tuple[Tensor, ...]:
        """What is wanted of a part: one of the outputs, `DECISION`, `EDGES`, or the last two."""
        _, height, width = check_image(image, self.config.in_channels)
        whole = Box(0, 0, height, width)
        needed = self.workspace_bytes(height, width, core, EDGES in wanted)
        if needed <= WORKSPACE_BYTES:
            return self._run_part(image, wanted, core)
        context = self.config.edge_context_px if EDGES in wanted else self.config.context_px
        if core.around(context, whole) != whole:
            image, core = crop_image(image, core, context)
            return self._part(image, wanted, core)
        # A tile with its context on both sides takes what the limit allows, less what narrow tiles
        # lose to partly filled vectors.
        side = math.isqrt(WORKSPACE_BYTES * 9 // 10 * height * width // needed)
        tile = max(side - 2 * context, context) // 8 * 8
        answers = self._new_answers(image, core, wanted)
        for part in plan(core.height, core.width, tile, 0):
            cut, inner = crop_image(image, part.core.moved(core.top, core.left), context)
            for answer, found in zip(answers, self._run_part(cut, wanted, inner), strict=True):
                scale = core.height // answer.shape[1]
                top, left = part.core.top // scale, part.core.left // scale
                answer[:, top : top + found.shape[1], left : left + found.shape[2]] = found
        return answers

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1."""
        size, given = self._image(image)
        x0 = self._map(size, 8, "width")
        self._run("downsample", size, given | {"x0": x0})
        return x0.to(self.dtype)

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2."""
        size = map_size("extract", x0, 8)
        given = {"x0_in": self._readable("x0", x0, "width")}
        features = {name: self._map(size, 8, "features") for name in ("shallow", "deep")}
        self._run("extract", size, given | features)
        return features["shallow"].to(self.dtype), features["deep"].to(self.dtype)

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        size, given = self._features("fuse", shallow, deep)
        y = self._map(size, 2, "y")
        self._run("fuse", size, given | {"y": y})
        return y.to(self.dtype)

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head."""
        size, given = self._features("edges", shallow, deep)
        edges = self._new_edges(*size)
        self._run("edges", size, given | {EDGES: edges})
        return edges

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4."""
        check_output(output)
        size = map_size("segment", y, 2)
        if size[1] % 8 or size[2] % 8:
            raise ValueError(f"y must have sides that are multiples of 4, got {list(y.shape)}")
        given = {"y_in": self._readable("y", y, "y")}
        answer = new_answer(y, size, output, self.config.classes)
        name = "labels" if output == "labels" else "values"
        self._run("segment", size, given | {name: answer}, output)
        return answer

    def workspace_bytes(
        self, height: int, width: int, core: Box | None = None, edges: bool = False
    ) -> int:
        """What an image of this size needs beyond itself, its answer and the weights.

        Args:
            height: Of the image, px; a multiple of 8.
            width: Likewise.
            core: The part whose answer is wanted, if not all; see `decide`.
            edges: Whether the edge map is wanted, too.
        """
        box = None if core is None else astuple(core)
        return self._network.workspace_bytes(height, width, torch.get_num_threads(), box, edges)

    def profile(self, image: Tensor) -> dict[str, tuple[float, dict[str, float]]]:
        """Seconds and multiply-accumulates of one run, by stage.

        Args:
            image: What `infer` takes.

        Returns:
            `downsample`, `extract`, and `fuse, segment`, which run row by row in turn; the
            multiply-accumulates are those executed, padding included, by the type of what is
            multiplied: `fp32`, `bf16`, `int8` or `wide_bf16` (see `operands.float_type`). Those of
            int8 in Winograd's form, in 16 bits, count twice where bytes have instructions of
            their own, which do twice as many.
        """
        size, given = self._image(image)
        seconds = torch.zeros(3, dtype=torch.float64)
        labels = new_answer(image, size, "labels", self.config.classes)
        self._run("all", size, given | {"labels": labels, "seconds": seconds})
        names = ("downsample", "extract", "fuse, segment")
        return {
            name: (float(one), {kind: size[0] * count for kind, count in macs.items()})
            for name, one, macs in zip(
                names, seconds, self._network.macs(size[1], size[2]), strict=True
            )
        }

    def _image(self, image: Tensor) -> tuple[tuple[int, int, int], dict[str, Tensor]]:
        size = check_image(image, self.config.in_channels)
        if image.dtype == torch.uint8:
            return size, {"bytes": readable(image, CPU)}
        return size, {"floats": readable(image.float(), CPU)}

    def _features(
        self, stage: str, shallow: Tensor, deep: Tensor
    ) -> tuple[tuple[int, int, int], dict[str, Tensor]]:
        check_features(stage, shallow, deep)
        return map_size(stage, shallow, 8), {
            "shallow_in": self._readable("shallow", shallow, "features"),
            "deep_in": self._readable("deep", deep, "features"),
        }

    def _readable(self, name: str, x: Tensor, channels: str) -> Tensor:
        check_map(name, x, self._channels[channels], self.dtype)
        return readable(x.float(), CPU)

    def _map(self, size: tuple[int, int, int], scale: int, channels: str) -> Tensor:
        batch, height, width = size
        return torch.empty(batch, height // scale, width // scale, self._channels[channels])

    @staticmethod
    def _new_edges(batch: int, height: int, width: int) -> Tensor:
        return torch.empty(batch, height // 2, width // 2)

    def _new_answers(self, image: Tensor, core: Box, wanted: Sequence[str]) -> tuple[Tensor, ...]:
        size = (image.shape[0], core.height, core.width)
        answers = []
        for one in wanted:
            if one == DECISION:
                answers.append(new_answer(image, size, "labels", self.config.classes))
                answers.append(torch.empty(size))
            elif one == EDGES:
                answers.append(self._new_edges(*size))
            else:
                answers.append(new_answer(image, size, one, self.config.classes))
        return tuple(answers)

    def _run_part(self, image: Tensor, wanted: Sequence[str], core: Box) -> tuple[Tensor, ...]:
        size, given = self._image(image)
        answers = self._new_answers(image, core, wanted)
        parts = {"labels": ("labels",), DECISION: ("labels", "values"), EDGES: (EDGES,)}
        names = [name for one in wanted for name in parts.get(one, ("values",))]
        given |= zip(names, answers, strict=True)
        output = wanted[0] if wanted[0] != EDGES else ""
        self._run("all", size, given, output, core)
        return answers

    def _run(
        self,
        stage: str,
        size: tuple[int, int, int],
        tensors: Mapping[str, Tensor],
        output: str = "labels",
        core: Box | None = None,
    ) -> None:
        batch, height, width = size
        self._network.run(
            stage=stage,
            batch=batch,
            height=height,
            width=width,
            addresses={name: tensor.data_ptr() for name, tensor in tensors.items()},
            output=output,
            threads=torch.get_num_threads(),
            core=None if core is None else astuple(core),
        )
