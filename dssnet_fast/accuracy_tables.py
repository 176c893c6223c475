"""Scores of networks as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dssnet_fast.accuracy import Contender, ImageCounts

SHOWN = ("0.50", "0.60", "0.70", "0.80", "0.90")


def report(summary: dict) -> str:
    """Markdown of what the command prints as JSON."""
    networks, names = summary["networks"], summary["class_names"]
    which = "all" if summary["split"] == "all" else f"the {summary['split']} split"
    lines = [
        f"{summary['images']} images of {summary['data']} ({which}), {summary['nuclei']} nuclei"
    ]
    lines += [
        f"{n['name']}: backend {n['backend']}, device {n['device']}, precision {n['precision']}, "
        f"{_how(n['separation'])}"
        for n in networks
    ]
    lines += ["", *_markdown("network", [(n["name"], n["scores"]) for n in networks], names)]
    if len(networks) > 1:
        lines += ["", f"Points more than {networks[0]['name']}, and the share of equal labels:", ""]
        lines += _differences(networks)
    lines += ["", *_markdown("kind", _by_kind(networks), names, images=True)]
    if len(names) > 2:
        lines += ["", *_markdown_of_classes(networks)]
    if summary["worst"]:
        found = (f"{image['image']} {image['mean_iou']:.4f}" for image in summary["worst"])
        lines += ["", f"lowest mean IoU: {', '.join(found)}"]
    return "\n".join(lines)


def _how(separation: dict) -> str:
    if separation["by"] == "no":
        return "touching nuclei not told apart"
    limits = ", ".join(f"{value:g}" for value in separation["interior_probability"])
    return f"nuclei told apart by {separation['by']} ({limits})"


def _by_kind(networks: Sequence[dict]) -> list[tuple[str, dict]]:
    several = len(networks) > 1
    return [
        (f"{kind}, {network['name']}" if several else kind, network["kinds"][kind])
        for kind in networks[0]["kinds"]
        for network in networks
    ]


def _markdown(
    what: str, rows: Iterable[tuple[str, dict]], names: Sequence[str], images: bool = False
) -> list[str]:
    heads = [what, *(["images"] if images else []), "mean IoU"]
    heads += [f"{score} {name}" for score in ("IoU", "Dice") for name in names[1:]]
    heads += [f"AP {float(t):.1f}" for t in SHOWN]
    heads += ["precision", "recall", "F1", "PQ", "AJI"]
    cells = []
    for name, scores in rows:
        values = [scores["mean_iou"]]
        values += [scores[score][n] for score in ("iou", "dice") for n in names[1:]]
        values += [scores["ap"][t] for t in SHOWN]
        values += [scores[score]["0.50"] for score in ("precision", "recall", "f1")]
        values += [scores["pq"], scores["aji"]]
        counted = [str(scores["images"])] if images else []
        cells.append([name, *counted, *map(_number, values)])
    return _rows(heads, cells)


def _markdown_of_classes(networks: Sequence[dict]) -> list[str]:
    cells = []
    for network in networks:
        for name, scores in network["scores"]["classes"].items():
            values = [scores[score]["0.50"] for score in ("ap", "precision", "recall", "f1")]
            label = f"{name}, {network['name']}" if len(networks) > 1 else name
            cells.append([label, str(scores["truths"]), *map(_number, [*values, scores["pq"]])])
    return _rows(["class", "nuclei", "AP 0.5", "precision", "recall", "F1", "PQ"], cells)


def _differences(networks: Sequence[dict]) -> list[str]:
    def values(scores: dict) -> list[float | None]:
        return [scores["mean_iou"], *(scores["ap"][t] for t in SHOWN), scores["pq"], scores["aji"]]

    base = values(networks[0]["scores"])
    cells = []
    for network in networks[1:]:
        pairs = zip(values(network["scores"]), base, strict=True)
        points = ["" if None in (a, b) else f"{100 * (a - b):+.2f}" for a, b in pairs]
        cells.append([network["name"], *points, f"{100 * network['scores']['agreement']:.3f} %"])
    heads = ["network", "mean IoU", *(f"AP {float(t):.1f}" for t in SHOWN), "PQ", "AJI", "labels"]
    return _rows(heads, cells)


def _rows(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def table_of_images(
    contenders: Sequence[Contender], images: Iterable[ImageCounts], names: Sequence[str]
) -> str:
    """CSV, a line for each image and network; empty where a score is not defined."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    heads = ["image", "kind", "network", "mean_iou"]
    heads += [f"{score}_{name}" for score in ("iou", "dice") for name in names]
    heads += ["truths", "answers", *(f"ap_{t}" for t in SHOWN)]
    heads += ["precision", "recall", "f1", "pq", "aji", "agreement"]
    writer.writerow(heads)
    for image in images:
        for contender, counts in zip(contenders, image.counts, strict=True):
            found = counts.scores(names)
            values = [found["mean_iou"]]
            values += [found[score][name] for score in ("iou", "dice") for name in names]
            values += [found["truths"], found["answers"], *(found["ap"][t] for t in SHOWN)]
            values += [found[score]["0.50"] for score in ("precision", "recall", "f1")]
            values += [found["pq"], found["aji"], found["agreement"]]
            writer.writerow([image.pair.image.name, image.kind, contender.name, *values])
    return made.getvalue()
