"""One run of a study: trained in its folder, scored when it is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dssnet_fast import accuracy, outputs, separate
from dssnet_fast.image_kinds import KINDS
from dssnet_fast.python_ref.data import to_tensors
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.processes import Process
from dssnet_fast.python_ref.training import Trainer, TrainingOptions, normalise
from dssnet_fast.study import networks
from dssnet_fast.study.data import StudyData
from dssnet_fast.study.grids import ALL, Variant
from dssnet_fast.tiling import Box

SCORES = "scores.json"
_LARGEST = 1 << 20  # px: images go through the network in one piece, as in the trainer's validation


class Diverged(Exception):
    """The run cannot be finished; the message says why."""


def make_trainer(
    variant: Variant, options: TrainingOptions, data: StudyData, out: Path, process: Process
) -> Trainer:
    """The run of a variant in the folder `out`; see `Trainer`."""
    return Trainer(
        variant.config,
        options,
        data.training(variant.images),
        data.validation,
        data.class_names,
        out,
        process,
        graph=networks.graph_of(variant.network),
        make_network=networks.MAKERS[variant.network],
    )


def finished(folder: Path) -> dict[str, dict] | None:
    """The scores of a finished run by kind of validation image and for `ALL`; None before."""
    path = folder / SCORES
    return json.loads(path.read_text())["scores"] if path.exists() else None


def train(
    variant: Variant, steps: int, seed: int, data: StudyData, runs: Path, process: Process
) -> dict[str, dict]:
    """Train and score a run, or continue it; a finished one is not repeated.

    The scores are those of the weights after the last step: no epoch is chosen by them.

    Args:
        variant: What to train.
        steps: For how long.
        seed: Of the initial weights, the crops and the augmentation.
        data: What on.
        runs: Folder of the runs' folders.
        process: Where.

    Returns:
        See `finished`.

    Raises:
        Diverged: Its loss or its network did not stay finite.
        InputError: The folder holds another run, or the data are too few.
        OSError: The folder cannot be read or written.
    """
    folder = runs / variant.run_name(steps, seed)
    scores = finished(folder)
    if scores is None:
        options = variant.run_options(steps, seed)
        trainer = make_trainer(variant, options, data, folder, process)
        try:
            trainer.run()
        except InputError as error:
            raise Diverged(str(error)) from error
        scores = score(trainer, data)
        about = {
            "network": variant.network,
            "config": variant.config.to_dict(),
            "options": asdict(options),
            "images": variant.images,
        }
        outputs.write_json(folder / SCORES, {**about, "scores": scores})
    return scores


def score(trainer: Trainer, data: StudyData) -> dict[str, dict]:
    """Scores of the network to be used, of all validation images and of each kind among them.

    Nuclei of an answer are its connected parts, so that networks with and without edges are
    compared by the same; see `dssnet_fast.accuracy`.

    Returns:
        `Counts.scores` by `ALL` and kind; a kind without an image is left out.
    """
    connected_parts = separate.choose("no", has_edges=False)
    images = list(
        accuracy.evaluate(
            [accuracy.Contender("network", _Answering(trainer), connected_parts)],
            data.validation.pairs,
            data.labelling,
            tile=_LARGEST,
        )
    )
    by_kind = {ALL: images, **{k: [i for i in images if i.kind == k] for k in KINDS}}
    return {kind: _together(some, data.class_names) for kind, some in by_kind.items() if some}


def _together(images: Sequence[accuracy.ImageCounts], names: Sequence[str]) -> dict:
    first, *rest = (image.counts[0] for image in images)
    return sum(rest, first).scores(names)


class _Answering:
    """A trained network of any kind with what `accuracy` asks of a `FastDSSNet`.

    It runs as in training: the same graph, in the same precision.
    """

    context_px = 0

    def __init__(self, trainer: Trainer) -> None:
        self.config = trainer.config
        self._network: nn.Module = trainer.graph(trainer.usable.eval())
        self._device = trainer.process.device
        self._low = trainer.options.precision == "bf16"

    @torch.no_grad()
    def decide(self, image: np.ndarray, core: Box, edges: bool) -> tuple[np.ndarray, np.ndarray]:
        """Labels, uint8, and their probabilities, float32, of the core; no edges."""
        assert not edges
        height, width = (-(-side // 8) * 8 for side in image.shape[:2])
        x, _ = to_tensors(image, np.zeros(image.shape[:2], np.int32), height, width)
        x = normalise(x[None].to(self._device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low):
            logits: Tensor = self._network.logits(x)
        probability, labels = logits.float()[0].softmax(0).max(0)
        at = core.within(Box(0, 0, *logits.shape[2:]))
        return labels.byte().cpu().numpy()[at], probability.cpu().numpy()[at]
