"""One run of a study: trained in its folder, scored when it is finished."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dssnet_fast import accuracy, outputs, separate
from dssnet_fast.backends.decisions import from_logits
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.processes import Process
from dssnet_fast.python_ref.training import Trainer, TrainingOptions
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
    sets = {ALL: images, **accuracy.by_kind(images)}
    return {name: accuracy.total(some).scores(data.class_names) for name, some in sets.items()}


class _Answering:
    """A trained network of any kind with what `accuracy` asks of a `FastDSSNet`.

    It runs as in training: the same graph, in the same precision.
    """

    context_px = 0

    def __init__(self, trainer: Trainer) -> None:
        self.config = trainer.config
        self._logits = trainer.answering()

    def decide(self, image: np.ndarray, core: Box, edges: bool) -> tuple[np.ndarray, np.ndarray]:
        """Labels, uint8, and their probabilities, float32, of the core; no edges."""
        assert not edges
        logits = self._logits(image).float().permute(0, 2, 3, 1)
        at = core.within(Box(0, 0, *image.shape[:2]))
        labels, probability = (answer[0].cpu().numpy()[at] for answer in from_logits(logits))
        return labels, probability
