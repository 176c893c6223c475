"""What came out of a study: rows of runs, a Markdown table, a CSV of every run."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIZE = 512  # px; side of the image whose multiply-accumulates tables tell
_HEADS = ("mean IoU", "IoU nucleus", "AP 0.5")


@dataclass(frozen=True)
class Row:
    """One variant's runs on one set of validation images.

    Attributes:
        name: Of the variant.
        tested: Kind of the validation images, or `all`.
        parameters: Of the path from image to logits.
        macs: Multiply-accumulates of that path on an image of `SIZE` px.
        steps: Of each run.
        seconds: Of a step.
        scores: `Counts.scores` by seed, of the finished runs.
        runs: Folder names by seed.
    """

    name: str
    tested: str
    parameters: int
    macs: int
    steps: int
    seconds: float
    scores: Mapping[int, dict]
    runs: Mapping[int, str]

    def values(self) -> list[dict[str, float | None]]:
        """The scores that tables show, of each finished run."""
        return [dict(zip(_HEADS, shown(score), strict=True)) for score in self.scores.values()]


def shown(scores: dict) -> tuple[float | None, float | None, float | None]:
    """Mean IoU, IoU of the nuclei and instance AP at an IoU of 0.5, of `Counts.scores`."""
    return scores["mean_iou"], scores["iou"]["nucleus"], scores["ap"]["0.50"]


def markdown(rows: Sequence[Row], title: str, notes: Sequence[str]) -> str:
    """A table, a line a row, under its caption.

    Args:
        rows: Of the study.
        title: What it compares.
        notes: Lines that say how it was made.
    """
    by_kind = len({row.tested for row in rows}) > 1
    heads = [title, *(["tested on"] if by_kind else []), "seeds", *_HEADS]
    heads += ["parameters", f"GMAC at {SIZE}", "steps", "s a step"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in rows:
        values = row.values()
        cells = [row.name, *([row.tested] if by_kind else []), str(len(values))]
        cells += [_with_spread([value[head] for value in values]) for head in _HEADS]
        cells += [f"{row.parameters:,}", f"{row.macs / 1e9:.2f}", str(row.steps)]
        lines.append([*cells, f"{row.seconds:.3f}"])
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*(f"{note}\n" for note in notes), *table, ""])


def _with_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.4f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4f}–{max(known):.4f})"


def as_csv(rows: Sequence[Row]) -> str:
    """Every finished run, a line for each kind of validation image."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    heads = ["variant", "tested_on", "seed", "mean_iou", "iou_nucleus", "ap_50"]
    writer.writerow([*heads, "parameters", "macs", "steps", "seconds_per_step", "run"])
    for row in rows:
        for seed, scores in row.scores.items():
            about = [row.parameters, row.macs, row.steps, row.seconds, row.runs[seed]]
            writer.writerow([row.name, row.tested, seed, *shown(scores), *about])
    return made.getvalue()
