"""Backends: who computes the four stages, and how one is chosen.

A backend is a module with the names of `BackendModule`; its row in `_MODULES` is all it takes
to be offered. The order is that of preference. Modules are imported when first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import SCALE
from dssnet_fast.python_ref.once import warn
from dssnet_fast.tiling import Box

if TYPE_CHECKING:
    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.weights import FoldedWeights

_MODULES = {
    "cuda": "dssnet_fast.backends.cuda",
    "triton": "dssnet_fast.backends.triton",
    "cpu": "dssnet_fast.backends.cpu",
    "torch": "dssnet_fast.backends.torch_backend",
}

# Name -> dtype of the maps between stages. Those of int8 have a step each, which a tensor cannot
# carry along.
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}
OUTPUTS = ("labels", "probabilities", "logits")
EDGES = "edges"  # what `FastDSSNet.predict` gives beside them


class BackendUnavailable(InputError):
    """The backend, device or precision asked for cannot run here; the message says why."""


class Backend(Protocol):
    """The four stages on packed weights. Maps are channels last; all calls are thread-safe.

    Activations between the stages have the dtype that `PRECISIONS` tells. H and W are multiples
    of 8. Nothing that is passed in is changed.
    """

    def infer(self, image: Tensor, output: str) -> Tensor:
        """All stages at once: what `downsample` takes, what `segment` returns."""

    def decide(self, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
        """All stages for a part of the images, computing little else.

        Args:
            image: What `downsample` takes.
            core: The part, px; its edges are multiples of 8.
            edges: Whether the edge map is wanted, too; only where the weights have an edge head.

        Returns:
            labels: [B, h, w] uint8, those of `infer` in the core.
            probability: [B, h, w] float32, each label's; not finite where a logit is not.
            edges: [B, h/2, w/2] float32, that of `infer_edges`; only where it is wanted.
        """

    def infer_edges(self, image: Tensor) -> Tensor:
        """The edge map alone: what `downsample` takes, what `edges` returns."""

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1.

        Args:
            image: [B, H, W, in_channels] uint8, or [B, in_channels, H, W] floating point,
                `(value - 128) / 128`.

        Returns:
            [B, H/8, W/8, width].
        """

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2: [B, h, w, width] -> shallow and deep features, [B, h, w, features] each."""

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3: two [B, h, w, features] -> [B, 4h, 4w, 32]."""

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head: what `fuse` takes -> edge map, [B, 4h, 4w] float32."""

    def segment(self, y: Tensor, output: str) -> Tensor:
        """Stage 4: [B, H/2, W/2, 32] -> the answer.

        Args:
            y: What `fuse` returned.
            output: One of `OUTPUTS`.

        Returns:
            [B, H, W] uint8 labels, or [B, H, W, classes] float32 probabilities or logits.
        """


class BackendModule(Protocol):
    """What a backend's module offers."""

    PRECISIONS: tuple[str, ...]

    def why_not(self, device: torch.device, precision: str, config: DSSNetConfig) -> str | None:
        """Why it cannot run this; None when it can."""

    def why_not_automatic(self, device: torch.device) -> str | None:
        """Why `auto` passes it by where it could run; None when it does not."""

    def why_no_gain(self, device: torch.device, precision: str) -> str | None:
        """Why fp32 is the better choice where both run; None when it is not."""

    def unmet(self, device: torch.device) -> str | None:
        """What a variable asks of it on `device` in vain; `auto` does not go on past that."""

    def best_precision(self, device: torch.device) -> str:
        """What `precision="auto"` means on `device`."""

    def make(self, weights: FoldedWeights, device: torch.device, precision: str) -> Backend:
        """Pack the weights; `why_not` has returned None.

        Raises:
            BackendUnavailable: It cannot run after all.
        """


@dataclass(frozen=True)
class Choice:
    """A backend that can run, and what was chosen for it."""

    name: str
    device: torch.device
    precision: str
    reason: str


def names() -> tuple[str, ...]:
    """All backends of this version, best first, whether they can run here or not."""
    return tuple(_MODULES)


def module(name: str) -> BackendModule:
    """The module of a backend."""
    return importlib.import_module(_MODULES[name])


def available(device: torch.device, config: DSSNetConfig) -> dict[str, tuple[str, ...]]:
    """Backends that can run `config` on `device`, with their precisions."""
    found = {}
    for name in names():
        entry = module(name)
        able = tuple(p for p in entry.PRECISIONS if entry.why_not(device, p, config) is None)
        if able:
            found[name] = able
    return found


def find_device(device: str | torch.device) -> torch.device:
    """The torch device that `device` names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        BackendUnavailable: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise BackendUnavailable(
            f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N"
        ) from error
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise BackendUnavailable(
                f"device {str(found)!r} is not available: torch finds {count} CUDA device(s)"
            )
        if found.index is None:
            # Weights stay where they are when the caller's current device changes.
            found = torch.device("cuda", torch.cuda.current_device())
    return found


def check_environment(device: torch.device) -> None:
    """Raise BackendUnavailable if a variable asks for what a backend has not got on `device`."""
    for name in names():
        if (unmet := module(name).unmet(device)) is not None:
            raise BackendUnavailable(unmet)


def choose(
    backend: str,
    device: str | torch.device,
    precision: str,
    config: DSSNetConfig,
    failed: Mapping[str, str] | None = None,
) -> Choice:
    """Decide who computes. Only `auto` may fall back; what is named either runs or raises.

    What a variable of the environment names is named, too: where `auto` comes to a backend that
    cannot run because of it, that is an error.

    Args:
        backend: A name or `auto`.
        device: A torch device or `auto`.
        precision: `fp32`, `bf16`, `fp16`, `int8` or `auto`.
        config: The network to run.
        failed: Backends that have turned out not to run, and why.

    Raises:
        BackendUnavailable: With the reason and what is available.
    """
    if precision not in ("auto", *PRECISIONS):
        raise BackendUnavailable(
            f"precision {precision!r} is unknown; use auto, {', '.join(PRECISIONS)}"
        )
    if backend != "auto" and backend not in _MODULES:
        raise BackendUnavailable(
            f"backend {backend!r} is unknown; this version has: {', '.join(names())}"
        )
    where = find_device(device)
    reasons = []
    for name in names() if backend == "auto" else (backend,):
        entry = module(name)
        exact = entry.best_precision(where) if precision == "auto" else precision
        reason = (failed or {}).get(name) or entry.why_not(where, exact, config)
        if reason is None and backend == "auto":
            reason = entry.why_not_automatic(where)
        if reason is None:
            best = "best available" if backend == "auto" else "named by the caller"
            return Choice(name, where, exact, "; ".join(reasons) or best)
        if backend == "auto" and (unmet := entry.unmet(where)) is not None:
            raise BackendUnavailable(unmet)
        reasons.append(f"{name}: {reason}")
    able = {n: p for n, p in available(where, config).items() if n not in (failed or {})}
    options = "; ".join(f"{name} ({', '.join(p)})" for name, p in able.items()) or "nothing"
    raise BackendUnavailable(f"{'; '.join(reasons)}; available on {where}: {options}")


def start(choice: Choice, requested: str, weights: FoldedWeights) -> tuple[Choice, Backend]:
    """Pack the weights for the chosen backend, or for the next where `auto` was asked for.

    Warns, once in a process, of a precision that gains nothing there.

    Args:
        choice: What `choose` returned, here or, for a network that was saved, elsewhere.
        requested: The backend that was asked for.
        weights: The network.

    Returns:
        The choice that held, and its backend.

    Raises:
        BackendUnavailable: Nothing that was asked for can run.
    """
    failed: dict[str, str] = {}
    while True:
        entry = module(choice.name)
        reason = entry.why_not(choice.device, choice.precision, weights.config)
        if reason is None:
            try:
                backend = entry.make(weights, choice.device, choice.precision)
            except BackendUnavailable as error:
                reason = str(error)
            else:
                slow = entry.why_no_gain(choice.device, choice.precision)
                if slow is not None:
                    warn(f"backend {choice.name}, {choice.precision}: {slow}; use precision fp32")
                return choice, backend
        failed[choice.name] = reason
        choice = choose(requested, choice.device, choice.precision, weights.config, failed)


def check_output(output: str, known: tuple[str, ...] = OUTPUTS) -> None:
    """Raise ValueError if `output` is none of the known ones."""
    if output not in known:
        raise ValueError(f"output must be one of {known}, got {output!r}")


def check_edges(config: DSSNetConfig) -> None:
    """Raise InputError unless the network has an edge head."""
    if not config.edge:
        raise InputError(
            "these weights have no edge head: the network was trained without one, or the file was "
            "converted with --no-edges or before files could hold it; convert the training "
            "checkpoint again with: python -m dssnet_fast.convert CHECKPOINT"
        )


def image_size(image: Tensor) -> tuple[int, int, int]:
    """Batch, height and width of what `Backend.infer` takes."""
    height = 1 if image.dtype == torch.uint8 else 2
    return image.shape[0], image.shape[height], image.shape[height + 1]


def new_answer(like: Tensor, size: tuple[int, int, int], output: str, classes: int) -> Tensor:
    """Memory for what `Backend.segment` returns for `size`, on the device of `like`."""
    if output == "labels":
        return like.new_empty(size, dtype=torch.uint8)
    return like.new_empty((*size, classes), dtype=torch.float32)


@torch.no_grad()
def infer(backend: Backend, image: Tensor, output: str, classes: int) -> Tensor:
    """All stages on images of any size: extended at the bottom and right, answers cropped.

    Args:
        backend: Who computes.
        image: What `Backend.infer` takes, but of any H, W >= 1 and B >= 0.
        output: One of `OUTPUTS`.
        classes: The network's.

    Returns:
        [B, H, W] or [B, H, W, classes], see `Backend.segment`.
    """
    batch, height, width = size = image_size(image)
    if batch == 0:
        return new_answer(image, size, output, classes)
    return backend.infer(_of_whole_cells(image), output)[:, :height, :width]


@torch.no_grad()
def infer_edges(backend: Backend, image: Tensor) -> Tensor:
    """The edge map of images of any size, at full resolution.

    Args:
        backend: Who computes; its weights have an edge head.
        image: As for `infer`.

    Returns:
        [B, H, W] float32: of each pixel that of the pixel at 1/2 resolution it lies in.
    """
    batch, height, width = size = image_size(image)
    if batch == 0:
        return image.new_empty(size, dtype=torch.float32)
    return _doubled(backend.infer_edges(_of_whole_cells(image)))[:, :height, :width]


@torch.no_grad()
def decide(backend: Backend, image: Tensor, core: Box, edges: bool = False) -> tuple[Tensor, ...]:
    """What `Backend.decide` gives for a part of images of any size, at full resolution.

    Args:
        backend: Who computes.
        image: As for `infer`.
        core: The part, px: any box of at least one pixel in the image.
        edges: See `Backend.decide`.

    Returns:
        Labels, their probabilities and, where they are wanted, edges, [B, h, w] each.
    """
    shape = (image_size(image)[0], core.height, core.width)
    if shape[0] == 0:
        dtypes = (torch.uint8, torch.float32, torch.float32)[: 3 if edges else 2]
        return tuple(image.new_empty(shape, dtype=dtype) for dtype in dtypes)
    cells = core.rounded_out(SCALE)
    place = (slice(None), *core.within(cells))
    answers = backend.decide(_of_whole_cells(image), cells, edges)
    if edges:
        *decisions, edge_map = answers
        answers = (*decisions, _doubled(edge_map))
    return tuple(answer[place] for answer in answers)


def _doubled(edges: Tensor) -> Tensor:
    """[B, h, w] -> [B, 2h, 2w], each value four times."""
    return edges.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def _of_whole_cells(image: Tensor) -> Tensor:
    """The images extended at the bottom and right to multiples of 8 px."""
    _, height, width = image_size(image)
    padding = (0, -width % SCALE, 0, -height % SCALE)
    # PyTorch copies even where there is nothing to add.
    if not any(padding):
        return image
    padding = (0, 0, *padding) if image.dtype == torch.uint8 else padding
    # 128 is zero when normalised, what the convolutions pad with.
    return F.pad(image, padding, value=128 if image.dtype == torch.uint8 else 0)
