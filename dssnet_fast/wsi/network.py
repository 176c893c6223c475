"""What slides need of a network; `FastDSSNet` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from dssnet_fast.tiling import Box

if TYPE_CHECKING:
    import torch

    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.weights import FoldedWeights


class Network(Protocol):
    """A network for inference."""

    config: DSSNetConfig
    class_names: tuple[str, ...]
    source_digest: str
    digest: str
    mpp: float | None
    backend_name: str
    precision: str
    device: torch.device
    context_px: int
    has_edges: bool
    edge_context_px: int

    def decide(
        self, image: np.ndarray, core: Box | None, edges: bool = False
    ) -> tuple[np.ndarray, ...]:
        """Labels, their probabilities and, where they are wanted, edges in a part of some images.

        See `FastDSSNet.decide`.
        """

    def folded_weights(self) -> FoldedWeights:
        """The weights."""
