"""The account of a run: what each stage took, and which one the others waited for."""

from __future__ import annotations

from collections.abc import Sequence

from dssnet_fast import cli
from dssnet_fast.wsi.run import SlideOutcome
from dssnet_fast.wsi.timing import Timing

# A stage that the network waited for longer than this share of the time holds up the run.
_HELD_UP = 0.2

STAGES = ("looking at slides", "reading", "network", "measuring", "storing")
# Once the last tile is there. Those of one slide run beside the tiles of the next.
LAST_STAGES = (
    "comparing with exact context", "joining", "writing labels", "writing nuclei",
    "writing the report",
)  # fmt: skip


def account(
    outcomes: Sequence[SlideOutcome], timing: Timing, seconds: float, workers: int
) -> dict[str, object]:
    """What a run did, as JSON knows it.

    Args:
        outcomes: Of its slides.
        timing: What was counted.
        seconds: From its first slide to its last output.
        workers: Processes that computed.
    """
    done = [outcome.summary for outcome in outcomes if outcome.status == "done"]
    gigapixels = sum(one["analysis_size"][0] * one["analysis_size"][1] for one in done) / 1e9
    cells = [one["provenance"]["cells"] for one in done]
    in_region = sum(one["in_region"] for one in cells)
    analysed = sum(one["analysed"] for one in cells)
    agreed = [one["provenance"].get("labels_as_with_exact_context") for one in done]
    agreed = [share for share in agreed if share is not None]
    stages = {
        name: {
            "seconds": round(stage.seconds, 3),
            "megapixels": round(stage.pixels / 1e6, 3),
            "megabytes": round(stage.bytes / 1e6, 3),
        }
        for name in STAGES + LAST_STAGES
        if (stage := timing.stages.get(name)) is not None
    }
    waiting = {name: round(value, 3) for name, value in timing.waiting.items()}
    return {
        "slides": {
            status: sum(outcome.status == status for outcome in outcomes)
            for status in ("done", "skipped", "failed")
        },
        "nuclei": sum(outcome.summary["nuclei"] for outcome in outcomes if outcome.summary),
        "gigapixels": round(gigapixels, 6),
        "seconds": round(seconds, 3),
        "seconds_per_gigapixel": round(seconds / gigapixels, 3) if gigapixels else None,
        "cells_skipped": round(1 - analysed / in_region, 6) if in_region else None,
        "labels_as_with_exact_context": min(agreed, default=None),
        "tiles_resumed": sum(outcome.resumed for outcome in outcomes),
        "stages": stages,
        "network_waited_for": waiting,
        "bound": _bound(stages, waiting, seconds * workers),
    }


def _bound(stages: dict, waiting: dict[str, float], seconds: float) -> str | None:
    if "network" not in stages:
        return None
    after = sum(stages[name]["seconds"] for name in LAST_STAGES if name in stages)
    if max(after, *waiting.values(), 0) < _HELD_UP * seconds:
        return "network"
    longest = max(waiting, key=waiting.get)
    return longest if waiting[longest] > after else "writing"


def table(account: dict) -> str:
    """An account for people."""
    counts = cli.counted(account["slides"], "slides")
    lines = [f"{counts}: {account['nuclei']:,} nuclei in {account['seconds']:.1f} s"]
    if account["gigapixels"]:
        lines[0] += (
            f" ({account['gigapixels']:.3f} Gpx, {account['seconds_per_gigapixel']:.1f} s/Gpx)"
        )
        lines.append(f"{'':30}{'seconds':>10}{'s/Gpx':>10}{'Mpx':>10}{'MB':>10}")
        for name, stage in account["stages"].items():
            lines.append(
                f"{name:30}{stage['seconds']:10.2f}"
                f"{stage['seconds'] / account['gigapixels']:10.1f}"
                f"{stage['megapixels']:10.1f}{stage['megabytes']:10.1f}"
            )
        waited = sum(account["network_waited_for"].values())
        lines.append(
            f"bound by {account['bound'] or 'writing'}; the network waited {waited:.1f} s; "
            f"{account['cells_skipped']:.0%} of the area is empty glass, not looked at"
        )
        if account["labels_as_with_exact_context"] is not None:
            lines.append(
                f"with exact context {account['labels_as_with_exact_context']:.4%} of the labels "
                "would be the same, by a sample of tiles"
            )
        if account["tiles_resumed"]:
            lines.append(f"{account['tiles_resumed']} tiles were done by an earlier run")
    return "\n".join(lines)
