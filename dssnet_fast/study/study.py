"""A study from its plan to its table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dssnet_fast import outputs
from dssnet_fast.image_kinds import KINDS
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.processes import joined
from dssnet_fast.python_ref.training import TrainingOptions
from dssnet_fast.study import budget, figure, networks, results, runs
from dssnet_fast.study.data import StudyData
from dssnet_fast.study.grids import ALL, GRIDS, Variant
from dssnet_fast.train import RECIPE


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to study.

    Attributes:
        name: One of `GRIDS`.
        title: What it compares, for people.
        command: How it was started, for the caption.
        config: The network that is varied.
        options: The recipe that is varied.
        only: Names of the variants to take; None takes all.
        seeds: A run of each variant from each.
        epochs: See `budget.steps_in_epochs`; None where `minutes` says how long.
        minutes: See `budget.steps_in_minutes`.

    Raises:
        InputError: A name is unknown, or a seed is out of its range or there twice.
    """

    name: str
    title: str
    command: str
    config: DSSNetConfig
    options: TrainingOptions
    only: Sequence[str] | None
    seeds: Sequence[int]
    epochs: float | None
    minutes: float | None

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds must differ, got {', '.join(map(str, self.seeds))}")
        for variant in self.variants:
            for seed in self.seeds:
                variant.run_options(1, seed)  # raises

    @property
    def variants(self) -> list[Variant]:
        """The rows of the table."""
        every = GRIDS[self.name](self.config, self.options)
        names = [variant.name for variant in every]
        if unknown := sorted(set(self.only or ()) - set(names)):
            raise InputError(
                f"--only {', '.join(unknown)}: {self.name} has the rows {', '.join(names)}"
            )
        return [variant for variant in every if not self.only or variant.name in self.only]


def run(
    plan: Plan,
    folder: Path,
    share: float,
    out: Path,
    device: str,
    remark: str | None = None,
) -> list[str]:
    """Train what is not yet trained; the results are written anew after every run.

    Args:
        plan: What to study.
        folder: The data; see `StudyData`.
        share: Of the images, for validation.
        out: Folder of the studies.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        remark: To be said when the data are read.

    Returns:
        What went wrong, a line for each run that could not be finished.

    Raises:
        InputError: The data or the device cannot be used, or a package is missing.
        OSError: A file cannot be read or written.
    """
    variants = plan.variants
    networks.require(tuple(variant.network for variant in variants))
    with joined(device) as process:
        if process.count > 1:
            raise InputError("a study runs in one process; start it without torchrun")

        def progress(items):
            return tqdm(items, desc="checking data", unit="image", disable=None, leave=False)

        data = StudyData(folder, share, plan.config.in_channels, progress)
        if remark:
            tqdm.write(remark, file=sys.stderr)
        own = out / plan.name
        own.mkdir(exist_ok=True)
        seconds = budget.seconds_per_step(variants, data, process, own / "seconds_per_step.json")
        if plan.minutes:
            steps = [budget.steps_in_minutes(plan.minutes, seconds[v.key]) for v in variants]
        else:
            steps = [budget.steps_in_epochs(plan.epochs, data, plan.options)] * len(variants)
        failed: list[str] = []
        # All variants from one seed first: an early look compares them all.
        todo = [(v, n, seed) for seed in plan.seeds for v, n in zip(variants, steps, strict=True)]
        for number, (variant, count, seed) in enumerate(todo, 1):
            about = f"run {number}/{len(todo)}: {variant.name}, seed {seed}, {count} steps"
            tqdm.write(about, file=sys.stderr)
            try:
                runs.train(variant, count, seed, data, out / "runs", process)
            except runs.Diverged as error:
                failed.append(f"{variant.name}, seed {seed}: {error}")
            _write(plan, variants, steps, seconds, out)
    return failed


def _write(
    plan: Plan,
    variants: Sequence[Variant],
    steps: Sequence[int],
    seconds: dict[str, float],
    out: Path,
) -> None:
    rows = [
        row
        for variant, count in zip(variants, steps, strict=True)
        for row in _rows(plan, variant, count, seconds[variant.key], out / "runs")
    ]
    own = out / plan.name
    outputs.write_text(own / "table.md", results.markdown(rows, plan.name, _caption(plan)))
    outputs.write_text(own / "runs.csv", results.as_csv(rows))
    if any(row.scores for row in rows):
        figure.draw(rows, plan.title, own / "figure.png")


def _rows(
    plan: Plan, variant: Variant, steps: int, seconds: float, folder: Path
) -> list[results.Row]:
    names = {seed: variant.run_name(steps, seed) for seed in plan.seeds}
    found = {seed: runs.finished(folder / name) or {} for seed, name in names.items()}
    tested = (ALL, *KINDS) if plan.name == "kinds" else (ALL,)
    return [
        results.Row(
            name=variant.name,
            tested=kind,
            parameters=networks.parameters(variant.network, variant.config),
            macs=networks.multiply_accumulates(variant.network, variant.config, results.SIZE),
            steps=steps,
            seconds=seconds,
            scores={seed: scores[kind] for seed, scores in found.items() if kind in scores},
            runs=names,
        )
        for kind in tested
    ]


def _caption(plan: Plan) -> list[str]:
    recipe = asdict(plan.options)
    described = ", ".join(f"{name.replace('_', ' ')} {recipe[name]}" for name in RECIPE)
    config = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in plan.config.to_dict().items())
    length = (
        f"equal time, {plan.minutes:g} minutes by the seconds a step"
        if plan.minutes
        else f"equal steps, those of {plan.epochs:g} epochs of the recipe"
    )
    return [
        f"{plan.title[0].upper()}{plan.title[1:]}.",
        f"    {plan.command}",
        f"Recipe, where the study does not vary it: {described}; {length}. Network: {config}.",
        "Means over the seeds, and the lowest and highest of them in brackets. Scores are those of "
        "all validation images together with the weights after the last step; nuclei are connected "
        "parts. Parameters and multiply-accumulates are those from image to logits as published; "
        "a step's seconds were measured side by side, in turns.",
    ]
