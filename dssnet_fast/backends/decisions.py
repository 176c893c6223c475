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
    backend: Backend, config: DSSNetConfig, image: Tensor, core: Box
) -> tuple[Tensor, Tensor]:
    """`Backend.decide` with the stages, the last two of which see little but the core."""
    image, core = crop_image(image, core, config.context_px)
    features = backend.extract(backend.downsample(image))
    height, width = image_size(image)[1:]
    seen = core.around(config.answer_context_px, Box(0, 0, height, width))
    at = (
        slice(None),
        slice(seen.top // 8, seen.bottom // 8),
        slice(seen.left // 8, seen.right // 8),
    )
    logits = backend.segment(backend.fuse(*(part[at] for part in features)), "logits")
    return from_logits(logits[(slice(None), *core.within(seen))])
