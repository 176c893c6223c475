"""What `Backend.decide` needs where kernels do not decide: cropping, and logits to decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dssnet_fast.backends import Backend, image_size
from dssnet_fast.tiling import Box

if TYPE_CHECKING:
    from dssnet_fast.python_ref.config import DSSNetConfig


def crop_image(image: Tensor, core: Box, context: int) -> tuple[Tensor, Box]:
    """What of images a core can depend on.

    Args:
        image: What `Backend.downsample` takes.
        core: The part of the images that is wanted, px; its edges are multiples of 8.
        context: Pixels to each side that can influence it, a multiple of 8.

    Returns:
        The images there, and the core as it lies in them.
    """
    _, height, width = image_size(image)
    read = core.around(context, Box(0, 0, height, width))
    rows, columns = read.within(Box(0, 0, height, width))
    cut = image[:, rows, columns] if image.dtype == torch.uint8 else image[:, :, rows, columns]
    return cut, core.seen_from(read)


def from_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, W, classes] to labels, uint8, and their probabilities, both [B, H, W].

    From logits, not from probabilities: rounding to these can make two classes equal, and the
    labels would differ from the network's own.
    """
    highest, labels = logits.max(dim=3, keepdim=True)
    probability = 1 / (logits - highest).exp_().sum(dim=3)
    return labels[..., 0].to(torch.uint8), probability


def by_whole(
    backend: Backend, config: DSSNetConfig, image: Tensor, core: Box
) -> tuple[Tensor, Tensor]:
    """`Backend.decide` with `Backend.infer`, for backends that run all stages as one."""
    image, core = crop_image(image, core, config.context_px)
    logits = backend.infer(image, "logits")
    return from_logits(logits[:, core.top : core.bottom, core.left : core.right])


def by_stages(
    backend: Backend, config: DSSNetConfig, image: Tensor, core: Box, edges: bool = False
) -> tuple[Tensor, ...]:
    """`Backend.decide` with the stages, the last of which see little but the core."""
    context = config.edge_context_px if edges else config.context_px
    of_answer = config.edge_answer_context_px if edges else config.answer_context_px
    image, core = crop_image(image, core, context)
    features = backend.extract(backend.downsample(image))
    height, width = image_size(image)[1:]
    seen = core.around(of_answer, Box(0, 0, height, width))
    features = tuple(part[_at(seen, 8)] for part in features)
    inner = core.seen_from(seen)
    decided = from_logits(backend.segment(backend.fuse(*features), "logits")[_at(inner, 1)])
    return (*decided, backend.edges(*features)[_at(inner, 2)]) if edges else decided


def infer_edges(backend: Backend, image: Tensor) -> Tensor:
    """`Backend.infer_edges` with the stages."""
    return backend.edges(*backend.extract(backend.downsample(image)))


def _at(box: Box, scale: int) -> tuple[slice, slice, slice]:
    """The place of a box, px, in maps [B, h, w] or [B, h, w, C] at 1/scale resolution."""
    return (
        slice(None),
        slice(box.top // scale, box.bottom // scale),
        slice(box.left // scale, box.right // scale),
    )
