"""The training loss: CE + 0.25 (1 - SSIM) + 0.4 L1(edge), and what may be changed in it.

Source: Luo et al. 2022; SSIM over 11x11 Gaussian windows with sigma 1.5, as in the release.
Windows that would stand out of the image do not count, so nothing depends on how they are filled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from .data import IGNORE
from .network import DSSNetOutput

EDGE_LOSSES = ("l1", "l2")
RECONSTRUCTION_WEIGHT = 0.25
EDGE_WEIGHT = 0.4

_SSIM_SIGMA = 1.5
_SSIM_WINDOW = 11
_NORMALISED_RANGE = 2.0  # of pixel values, from -1 to 1


class Loss(NamedTuple):
    """The loss and its parts, scalars; a part without its branch is None."""

    total: Tensor
    segmentation: Tensor
    reconstruction: Tensor | None
    edge: Tensor | None


def edge_target(labels: Tensor) -> Tensor:
    """The edge map that a label map implies, at half its resolution.

    A foreground pixel lies on an edge when its 3x3 neighbourhood holds another label, so touching
    instances are told apart (in a class map, only those of different classes); a half-resolution
    pixel is on an edge when one of its four is. What lies outside the image or is unknown makes no
    edge.

    Args:
        labels: [B, H, W] integer instance or class map, 0 background, negative unknown, below
            2**24; H and W even.

    Returns:
        [B, 1, H/2, W/2] float32, 0 or 1.

    Raises:
        ValueError: The shape is another.
    """
    if labels.ndim != 3 or labels.shape[1] % 2 or labels.shape[2] % 2:
        raise ValueError(
            f"edge_target: labels must have shape [B, H, W] with H and W even, "
            f"got {list(labels.shape)}"
        )
    values = labels.unsqueeze(1).float()
    highest = F.max_pool2d(values, 3, stride=1, padding=1)
    known = values.masked_fill(values < 0, float("inf"))
    lowest = -F.max_pool2d(-known, 3, stride=1, padding=1)
    on_edge = (values > 0) & (highest != lowest)
    return F.max_pool2d(on_edge.float(), 2)


def mean_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two normalised images, a scalar up to 1.

    Args:
        a: [B, C, H, W] float32 in [-1, 1], H and W at least 11.
        b: The same.
    """
    _, similarity = ssim(
        a, b, sigma=_SSIM_SIGMA, data_range=_NORMALISED_RANGE, return_full_image=True
    )
    # Whether torchmetrics' own mean counts the border depends on its version.
    border = _SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border].mean()


def soft_dice(logits: Tensor, classes: Tensor) -> Tensor:
    """1 - the mean over classes of their soft Dice over all known pixels together, a scalar.

    Source: Milletari et al. 2016, without the squares in the denominator.

    Args:
        logits: [B, classes, H, W] float32.
        classes: [B, H, W] int64 class map; `IGNORE` pixels do not count.
    """
    known = (classes != IGNORE).unsqueeze(1)
    predicted = logits.softmax(1) * known
    true = torch.zeros_like(predicted).scatter_(1, classes.clamp(min=0).unsqueeze(1), 1.0) * known
    both, all_ = (predicted * true).sum((0, 2, 3)), (predicted + true).sum((0, 2, 3))
    # A class that is neither there nor predicted is right.
    return 1 - ((2 * both + 1) / (all_ + 1)).mean()


def dssnet_loss(
    output: DSSNetOutput,
    image: Tensor,
    classes: Tensor,
    edges: Tensor,
    dice: float = 0.0,
    edge_loss: str = "l1",
) -> Loss:
    """The paper's loss, computed in float32 whatever the network ran in.

    Args:
        output: What the network returned for `image`.
        image: [B, in_channels, H, W] normalised image, in [-1, 1).
        classes: [B, H, W] int64 class map; `IGNORE` pixels count neither in the segmentation nor,
            where all four of a half-resolution pixel are so, in the edge part.
        edges: [B, 1, H/2, W/2] float target of the edge branch; see `edge_target`.
        dice: Weight of `soft_dice` in the segmentation part; the paper has none.
        edge_loss: `l1`, as in the paper, whose optimum is 0 wherever an edge is less likely than
            not, which may be everywhere: edges are thin. Or `l2`: the optimum is the probability of
            an edge.
    """
    known = (classes != IGNORE).unsqueeze(1).float()
    # Not reduction="mean": a batch without any known pixel has loss 0, not NaN.
    segmentation = F.cross_entropy(
        output.segmentation.float(), classes, ignore_index=IGNORE, reduction="sum"
    ) / known.sum().clamp(min=1)
    if dice:
        segmentation = segmentation + dice * soft_dice(output.segmentation.float(), classes)
    total = segmentation
    reconstruction = edge = None
    if output.reconstruction is not None:
        reconstruction = 1 - mean_ssim(output.reconstruction.float(), image.float())
        total = total + RECONSTRUCTION_WEIGHT * reconstruction
    if output.edge is not None:
        counted = F.max_pool2d(known, 2)
        difference = output.edge.float() - edges
        difference = (difference.abs() if edge_loss == "l1" else difference.square()) * counted
        edge = difference.sum() / counted.sum().clamp(min=1)
        total = total + EDGE_WEIGHT * edge
    return Loss(total, segmentation, reconstruction, edge)
