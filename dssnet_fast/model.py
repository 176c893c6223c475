"""`FastDSSNet`: a trained DSSNet, folded, on the best backend, from images to labels."""

from __future__ import annotations

import importlib.resources
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dssnet_fast import backends, weights
from dssnet_fast.backends import Backend
from dssnet_fast.checkpoint import Checkpoint, from_state, read_checkpoint
from dssnet_fast.cli import need_packages
from dssnet_fast.operators import Operators, describe, remember
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.quantisation import Quantisation
from dssnet_fast.tiling import Box
from dssnet_fast.weights import FoldedWeights

log = logging.getLogger("dssnet_fast")

PRETRAINED = "dsb2018"
Image = TypeVar("Image", np.ndarray, Tensor)


class FastDSSNet(nn.Module):
    """DSSNet for inference.

    Any height and width from 1 on: images are extended at the bottom and right to multiples of 8
    with value 128 (zero when normalised, what the convolutions pad with) and answers are cropped.
    Nothing is trainable. `.to(device)` moves the network, `.half()`, `.bfloat16()` and `.float()`
    change its precision without rounding the stored weights, `state_dict` holds the folded float32
    weights. `predict` may be called from several threads.

    Args:
        folded: The weights; see `load`, `from_checkpoint` and `pretrained`.
        device: `auto`, or a torch device.
        backend: `auto`, or one of `dssnet_fast.backends.names()`.
        precision: `auto`, `fp32`, `bf16`, `fp16` or `int8`.

    Raises:
        BackendUnavailable: What was asked for cannot run here; says why and what can.
    """

    def __init__(
        self,
        folded: FoldedWeights,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.config: DSSNetConfig = folded.config
        self.class_names: tuple[str, ...] = folded.class_names
        self.source_digest: str = folded.source_digest
        self.quantisation: Quantisation | None = folded.quantisation
        self.mpp: float | None = folded.mpp
        choice = backends.choose(backend, device, precision, folded.config)
        self.folded = nn.Module()
        for name, value in folded.tensors.items():
            _register(self.folded, name, value.to(choice.device, copy=True))
        self._requested_backend = backend
        self._use(choice)
        self.register_load_state_dict_post_hook(_repack)
        self.eval()
        log.info("%r", self)

    # --- where a network comes from --------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "auto",
    ) -> FastDSSNet:
        """The network in a weight file of `python -m dssnet_fast.convert`.

        Raises:
            InputError: The file is missing, damaged or of another kind.
            BackendUnavailable: See `FastDSSNet`.
        """
        return cls(weights.load(path), device, backend, precision)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | os.PathLike | Mapping[str, Tensor] | Checkpoint,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "auto",
    ) -> FastDSSNet:
        """The network in a checkpoint, converted in memory.

        Args:
            checkpoint: A file (released, of our training, plain or safetensors), a state dict, or
                what `dssnet_fast.checkpoint.read_checkpoint` returned.
            device: See `FastDSSNet`.
            backend: See `FastDSSNet`.
            precision: See `FastDSSNet`.

        Raises:
            InputError: It is no checkpoint of a DSSNet; all wrong keys are listed.
            BackendUnavailable: See `FastDSSNet`.
        """
        if isinstance(checkpoint, Mapping):
            checkpoint = from_state(checkpoint)
        elif not isinstance(checkpoint, Checkpoint):
            checkpoint = read_checkpoint(checkpoint)
        return cls(weights.fold_checkpoint(checkpoint), device, backend, precision)

    @classmethod
    def from_reference(
        cls,
        network: DSSNet,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "auto",
    ) -> FastDSSNet:
        """The fast twin of a reference network, with its weights as they are now."""
        return cls.from_checkpoint(released_state(network), device, backend, precision)

    @classmethod
    def pretrained(
        cls,
        name: str = PRETRAINED,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "auto",
    ) -> FastDSSNet:
        """A model of this package; its card lies beside it in `dssnet_fast/models`.

        Raises:
            InputError: There is no model of this name.
            BackendUnavailable: See `FastDSSNet`.
        """
        folder = importlib.resources.files("dssnet_fast") / "models"
        models = {
            item.name.removesuffix(".safetensors"): item
            for item in folder.iterdir()
            if item.name.endswith(".safetensors")
        }
        if name not in models:
            raise InputError(f"no pretrained model {name!r}; this version has: {sorted(models)}")
        with importlib.resources.as_file(models[name]) as path:
            return cls.load(path, device, backend, precision)

    # --- what it is ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._choice.device

    @property
    def precision(self) -> str:
        """`fp32`, `bf16`, `fp16` or `int8`."""
        return self._choice.precision

    @property
    def backend_name(self) -> str:
        """Who computes."""
        return self._choice.name

    @property
    def context_px(self) -> int:
        """Pixels around a pixel that can influence it; see `DSSNetConfig.context_px`."""
        return self.config.context_px

    @property
    def has_edges(self) -> bool:
        """Whether the weights carry an edge head, which tells touching nuclei apart."""
        return self.config.edge

    @property
    def edge_context_px(self) -> int:
        """`context_px` where edges are asked for."""
        return self.config.edge_context_px

    @property
    def digest(self) -> str:
        """SHA-256 of config and weights, hexadecimal: equal networks give equal answers."""
        return self.folded_weights().digest

    def folded_weights(self) -> FoldedWeights:
        """The weights it was made from, as float32 on the CPU."""
        tensors = {name: value.cpu() for name, value in self.folded.state_dict().items()}
        return FoldedWeights(
            self.config,
            tensors,
            self.class_names,
            self.source_digest,
            self.quantisation,
            self.mpp,
        )

    def __repr__(self) -> str:
        choice = self._choice
        return (
            f"FastDSSNet(backend={choice.name} ({choice.reason}), device={choice.device}, "
            f"precision={choice.precision}, classes={', '.join(self.class_names)})"
        )

    # --- what it does ----------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Tensor:
        """Logits of normalised images: what the reference's `logits` computes.

        Args:
            image: [B, in_channels, H, W] floating point, `(value - 128) / 128`; any H, W >= 1, any
                memory layout, any device.

        Returns:
            [B, classes, H, W] float32 on the image's device.

        Raises:
            TypeError: Not a floating point tensor.
            ValueError: The shape is another.
        """
        channels = self.config.in_channels
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise TypeError(
                f"image must be a floating point tensor, (value - 128) / 128, got {_kind(image)}; "
                "for uint8 images use predict"
            )
        if image.ndim != 4 or image.shape[1] != channels or 0 in image.shape[2:]:
            raise ValueError(
                f"image must have shape [B, {channels}, H, W] with H, W >= 1, "
                f"got {list(image.shape)}"
            )
        logits = self._run(image.to(self.device), "logits")
        return logits.permute(0, 3, 1, 2).to(image.device)

    def predict(self, image: Image, output: str = "labels") -> Image:
        """Segment images.

        Args:
            image: uint8 [H, W, 3] or [B, H, W, 3] (a network for gray images: [H, W], [H, W, 1] or
                [B, H, W, 1]), NumPy array or torch tensor on any device, in any memory layout.
            output: `labels`, `probabilities`, `logits`, or `edges` where `has_edges`.

        Returns:
            uint8 labels [H, W] or [B, H, W], float32 [H, W, classes] or [B, H, W, classes], or
            float32 edges [H, W] or [B, H, W], see `decide`; the same kind as `image`, on the same
            device.

        Raises:
            TypeError: Not an array or tensor of uint8.
            ValueError: The shape is another, or `output` is none of the four.
            InputError: Edges are asked for and the weights have no edge head.
        """
        if output == backends.EDGES:
            backends.check_edges(self.config)
            return self._like(image, self._infer_edges(self._as_batch(image).to(self.device)))
        backends.check_output(output, (*backends.OUTPUTS, backends.EDGES))
        return self._like(image, self._run(self._as_batch(image).to(self.device), output))

    def decide(
        self, image: Image, core: Box | None = None, edges: bool = False
    ) -> tuple[Image, ...]:
        """Segment a part of images: what `predict` says there, for less work.

        A part whose image reaches `context_px` around it, with edges `edge_context_px`, to
        multiples of 8 px, gets the answer that it has in a larger image; in fp32 the last digits
        may differ from that.

        Args:
            image: As for `predict`.
            core: The part, px of the image, the same in all of a batch; by default everything.
            edges: Whether the edge map is wanted, too.

        Returns:
            labels: uint8 [h, w] or [B, h, w] of the core, those of `predict`.
            probability: float32, the same shape: each label's.
            edges: float32, the same shape, only where it is asked for: what the edge head says of
                the pixel at half resolution that each pixel lies in, after training near 1 on
                borders of nuclei, also where they touch, and near 0 elsewhere.
            All are the same kind as `image`, on the same device.

        Raises:
            TypeError: Not an array or tensor of uint8.
            ValueError: The shape is another.
            InputError: `core` is no box in the image, the network's answer is not finite, or edges
                are asked for and the weights have no edge head.
        """
        if edges:
            backends.check_edges(self.config)
        batch = self._as_batch(image)
        height, width = batch.shape[1:3]
        core = Box(0, 0, height, width) if core is None else core
        _check_core(core, height, width)
        batch = batch.to(self.device)
        if torch.compiler.is_compiling():
            answers = self._operators().decide(batch, core, edges)
        else:
            answers = backends.decide(self._backend, batch, core, edges)
        if not all(answer.isfinite().all() for answer in answers[1:]):
            raise InputError(
                "the network's answer is not finite; use --precision fp32, or check the weights"
            )
        return tuple(self._like(image, answer) for answer in answers)

    def segment_slide(
        self, path: str | os.PathLike, out: str | os.PathLike, **options: object
    ) -> dict[str, object]:
        """Segment a whole slide, tile by tile, as `python -m dssnet_fast.wsi` does.

        A call that was interrupted goes on where it stopped when it is made again.

        Args:
            path: A slide of any format that OpenSlide or tifffile reads.
            out: Folder for the results, made if need be.
            options: Those of `dssnet_fast.wsi.options.Options`, such as `assume_mpp=0.25`.

        Returns:
            What `NAME.json` holds: counts, scale, the names of the result files.

        Raises:
            InputError: The slide cannot be read or does not say how large its pixels are, or the
                extra `wsi` is not installed.
            OSError: Results cannot be written.
        """
        from dssnet_fast.wsi import PACKAGES

        need_packages("wsi", PACKAGES)
        from dssnet_fast.wsi.analysis import segment_slide

        return segment_slide(self, path, out, **options)

    def downsample(self, image: Tensor) -> Tensor:
        """Stage 1; see `dssnet_fast.backends.Backend`, as for the others."""
        return self._stages.downsample(image)

    def extract(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2."""
        return self._stages.extract(x0)

    def fuse(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Stage 3."""
        return self._stages.fuse(shallow, deep)

    def edges(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """The edge head, where `has_edges`."""
        backends.check_edges(self.config)
        return self._stages.edges(shallow, deep)

    def segment(self, y: Tensor, output: str = "labels") -> Tensor:
        """Stage 4."""
        return self._stages.segment(y, output)

    @property
    def _stages(self) -> Backend:
        # What torch traces goes through operators: it could not follow what backends do.
        return self._operators() if torch.compiler.is_compiling() else self._backend

    def _operators(self) -> Operators:
        buffers = dict(self.folded.named_buffers(remove_duplicate=False))
        tensors = [buffers[name] for name in sorted(buffers)]
        return Operators(tensors, self._config_json, self.backend_name, self.precision)

    def _run(self, image: Tensor, output: str) -> Tensor:
        if torch.compiler.is_compiling():
            return self._operators().infer(image.detach(), output)
        return backends.infer(self._backend, image, output, self.config.classes)

    def _infer_edges(self, image: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._operators().infer_edges(image)
        return backends.infer_edges(self._backend, image)

    @staticmethod
    def _like(image: Image, answer: Tensor) -> Image:
        """A batch's answer as the caller gave the image: one or several, which kind, where."""
        if image.ndim < 4:
            answer = answer[0]
        if isinstance(image, np.ndarray):
            return np.ascontiguousarray(answer.cpu().numpy())
        return answer.to(image.device).contiguous()

    def _as_batch(self, image: object) -> Tensor:
        """[B, H, W, in_channels] uint8, or an error that says what to do instead."""
        channels = self.config.in_channels
        if not isinstance(image, (np.ndarray, Tensor)):
            raise TypeError(f"image must be a NumPy array or torch tensor, got {_kind(image)}")
        if image.dtype not in (np.uint8, torch.uint8):
            raise TypeError(
                f"image must be uint8 with values 0 to 255, got {_kind(image)}; for values in "
                "[0, 1] give (image * 255).round() as uint8; call the network itself on "
                "normalised tensors"
            )
        shape = list(image.shape)
        batch = image[..., None] if channels == 1 and image.ndim == 2 else image
        batch = batch[None] if batch.ndim == 3 else batch
        if batch.ndim != 4 or batch.shape[3] != channels:
            hint = ""
            if channels == 3 and shape[-1:] == [4]:
                hint = "; drop the alpha channel with image[..., :3]"
            elif channels == 3 and image.ndim == 2:
                hint = "; repeat a gray image three times along a new last axis"
            elif channels in shape[-3:-2] and len(shape) >= 3:
                hint = "; channels come last"
            raise ValueError(
                f"image must have shape [H, W, {channels}] or [B, H, W, {channels}], "
                f"got {shape}{hint}"
            )
        if 0 in batch.shape[1:3]:
            raise ValueError(f"image must have at least one pixel, got shape {shape}")
        if isinstance(batch, np.ndarray):
            # torch takes neither negative strides nor read-only memory without a warning.
            if not (batch.flags.c_contiguous and batch.flags.writeable):
                batch = np.array(batch, order="C", copy=True)
            batch = torch.from_numpy(batch)
        return batch

    # --- as a module -----------------------------------------------------------------------------

    def _use(self, choice: backends.Choice) -> None:
        weights = self.folded_weights()
        self._choice, self._backend = backends.start(choice, self._requested_backend, weights)
        self._config_json = describe(self.config, self.quantisation)
        remember(self._operators(), self._backend)

    def __getstate__(self) -> dict[str, object]:
        # A backend may hold what cannot be copied; it is made again from the weights.
        return {name: value for name, value in self.__dict__.items() if name != "_backend"}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._use(self._choice)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastDSSNet:
        # What would happen to a tensor of our device and precision says what the caller wants. The
        # stored weights follow to the device but stay in float32, so no precision is lost for good.
        dtype = backends.PRECISIONS[self.precision]
        probe = fn(torch.empty(0, dtype=dtype, device=self.device))
        names = [name for name, one in backends.PRECISIONS.items() if one == probe.dtype]
        # Float32 is what int8's maps are made of: whoever asks for it asks int8 for no change.
        wanted = self.precision if self.precision in names else next(iter(names), None)
        if wanted is None:
            raise backends.BackendUnavailable(
                f"FastDSSNet has no {probe.dtype}; use {', '.join(backends.PRECISIONS)}"
            )
        if (probe.device, wanted) != (self.device, self.precision):
            choice = backends.choose(self._requested_backend, probe.device, wanted, self.config)
            super()._apply(lambda tensor: tensor.to(probe.device), recurse)
            self._use(choice)
        return self


def _check_core(core: object, height: int, width: int) -> None:
    inside = isinstance(core, Box) and all(type(edge) is int for edge in astuple(core))
    if inside:
        rows, columns = 0 <= core.top < core.bottom <= height, 0 <= core.left < core.right <= width
        inside = rows and columns
    if not inside:
        raise InputError(
            f"core must be a Box of whole pixels, at least one, inside the image of {height} x "
            f"{width} px, got {core!r}"
        )


def _repack(net: FastDSSNet, _: object) -> None:
    net._use(net._choice)


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    """Make `value` the buffer that `root.state_dict()` lists as `name`."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    root.register_buffer(leaf, value)


def _kind(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{type(value).__name__} of {dtype}"
