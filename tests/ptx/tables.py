"""A run's numbers as Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .roofline import GPUS
from .summary import MODEL


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return " | ".join([first, *rest])

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([f"| {line(headings)} |", f"|{rule}|", *(f"| {line(r)} |" for r in rows)])


def print_report(report: dict) -> None:
    """Print what `report.body` found."""
    run, error, totals = report["run"], report["accuracy"], report["totals"]
    kernels, batch = report["kernels"], report["run"]["batch"]
    print(
        f"{run['checkpoint']}, {run['image']}: {run['height']} x {run['width']} px, batch {batch}, "
        f"{run['precision']}, {run['kernels']} kernels, {run['compiled_as']}\n"
    )
    if run["first_image_only"]:
        print("Only the blocks of the first image were run; counts are theirs times the batch.\n")
    print(
        f"logits: relative error {error['error']:.2e} against float64 "
        f"(PyTorch in {run['precision']}: {error['torch_error']:.2e})\n"
        f"labels: {error['labels']:.4%} as in float64 "
        f"(PyTorch in {run['precision']}: {error['torch_labels']:.4%})\n"
    )
    print("Counted on the PTX, before ptxas optimises; all launches of a kernel together:\n")
    rows = [
        (
            row["kernel"],
            str(row["launches"]),
            _spread(row["blocks"]),
            f"{row['macs'] / 1e9:.4f}",
            f"{row['minimum'] / 1e9:.4f}",
            f"{row['macs_by_minimum']:.2f}",
            f"{row['instructions_by_mma']:.2f}",
            f"{row['wavefronts'] / 1e6:.3f}",
            f"{row['excess_wavefronts']:.1%}",
            f"{row['sectors'] / 1e6:.3f}",
            f"{row['useful_share']:.1%}",
            f"{(row['unique_read'] + row['unique_written']) / 1e6:.2f}",
        )
        for row in kernels
    ]
    headings = ("kernel", "launches", "blocks", "GMAC", "minimum", "ratio", "instr./MMA")
    headings += ("M wavefronts", "excess", "M sectors", "useful", "unique MB")
    print(table(headings, rows))
    print(
        f"\ntotal: {totals['launches']} launches; {totals['macs'] / 1e9:.4f} GMAC on tensor cores, "
        f"minimum {totals['minimum'] / 1e9:.4f} ({totals['macs'] / totals['minimum']:.2f} times); "
        f"excess wavefronts {totals['excess_wavefronts']:.1%}; "
        f"useful {totals['useful_share']:.1%} of requested sectors; "
        f"intermediate tensors written {totals['intermediate_bytes'] / 1e6:.2f} MB; "
        f"workspace {totals['workspace_bytes'] / 1e6:.2f} MB, "
        f"weights {totals['weight_bytes'] / 1e6:.2f} MB\n"
    )
    _print_resources(kernels, run["kernels"])
    _print_sass(kernels, run["device"])
    _print_model(report)


def print_side_by_side(reports: Mapping[str, dict]) -> None:
    """Print a table that has a row of each report for each stage.

    Args:
        reports: By kind of kernels.
    """
    first = next(iter(reports.values()))
    precision, error = first["run"]["precision"], first["accuracy"]
    rows = []
    for number, stage in enumerate(first["stages"]):
        rows += [
            (stage["stage"], kind, *_counts(report["stages"][number]), "", "")
            for kind, report in reports.items()
        ]
    rows += [
        (
            "**all**",
            kind,
            *_counts(report["totals"]),
            f"{report['accuracy']['error']:.2e}",
            f"{report['accuracy']['labels']:.3%}",
        )
        for kind, report in reports.items()
    ]
    headings = ("stage", "kernels", "launches", "GMAC", "minimum", "M instr.", "instr./MMA")
    headings += ("M wavefronts", "excess", "M sectors", "unique MB", "intermediate MB")
    print("Side by side, counted on the PTX executor, before ptxas optimises:\n")
    print(table((*headings, "error", "labels"), rows))
    print(
        f"\nPyTorch in {precision}: error {error['torch_error']:.2e}, "
        f"labels {error['torch_labels']:.3%}\n"
    )


def _counts(row: dict) -> tuple[str, ...]:
    return (
        str(row["launches"]),
        f"{row['macs'] / 1e9:.4f}",
        f"{row['minimum'] / 1e9:.4f}",
        f"{row['instructions'] / 1e6:.2f}",
        f"{row['instructions_by_mma']:.2f}",
        f"{row['wavefronts'] / 1e6:.3f}",
        f"{row['excess_wavefronts']:.1%}",
        f"{row['sectors'] / 1e6:.3f}",
        f"{(row['unique_read'] + row['unique_written']) / 1e6:.2f}",
        f"{row['intermediate'] / 1e6:.2f}",
    )


def _print_resources(kernels: list[dict], kind: str) -> None:
    names = list(GPUS)
    if kernels[0]["gpus"][names[0]]["resources"] is None:
        print("Registers and residency: not here, they need ptxas.\n")
        return
    source = {"cuda": "of the very PTX", "triton": "of what Triton compiles for each"}[kind]
    print(f"By ptxas, {source}, for {' / '.join(names)}:\n")
    rows = []
    for row in kernels:
        gpus = [row["gpus"][name] for name in names]
        used = [gpu["resources"] for gpu in gpus]
        rows.append(
            (
                row["kernel"],
                str(row["threads"]),
                _each(one["registers"] for one in used),
                _each(
                    one["stack"] if kind == "triton" else one["spill_stores"] + one["spill_loads"]
                    for one in used
                ),
                f"{used[0]['shared']} + {_each(gpu['dynamic_shared'] for gpu in gpus)}",
                _each(gpu["resident"]["registers"] for gpu in gpus),
                _each(gpu["resident"]["shared"] for gpu in gpus),
                _each(gpu["resident"]["warps"] for gpu in gpus),
                _each(gpu["resident"]["all"] for gpu in gpus),
                _each(_spread(gpu["waves"], "{:.2f}") for gpu in gpus),
            )
        )
    # Triton's machine code tells but the frame, which holds what is spilled.
    spilled = "stack bytes" if kind == "triton" else "spilled bytes"
    headings = ("kernel", "threads", "registers", spilled, "shared bytes")
    headings += ("blocks/SM by registers", "by shared", "by warps", "blocks/SM", "waves")
    print(table(headings, rows) + "\n")


def _print_sass(kernels: list[dict], device: str) -> None:
    if kernels[0]["sass"] is None:
        print("Machine code: not looked at, needs ptxas and nvdisasm.\n")
        return
    hopper = any(loop["wgmma"] for row in kernels for loop in row["sass"])
    print(
        f"Machine code for {device}: instructions per HMMA in each innermost loop, static"
        f"{'; per HGMMA, of four warps together, where it says so' if hopper else ''}:\n"
    )
    rows = [(row["kernel"], ", ".join(map(_loop, row["sass"])) or "-") for row in kernels]
    print(table(("kernel", "loops"), rows) + "\n")


def _loop(loop: dict) -> str:
    kinds = {"": loop["mma"], " HGMMA": loop["wgmma"]}
    return " and ".join(
        f"{loop['instructions'] / count:.2f} ({loop['instructions']}/{count}{kind})"
        for kind, count in kinds.items()
        if count
    )


def _print_model(report: dict) -> None:
    batch = report["run"]["batch"]
    print(
        f"Roofline, {MODEL}. Microseconds, summed over the launches of a kernel; "
        "of each launch the largest bound counts.\n"
    )
    for gpu in GPUS.values():
        keys = ["tensor", "shared", "issue", "dram"] + ["l2"] * (gpu.l2 is not None)
        rows = []
        for row in report["kernels"]:
            seconds = row["gpus"][gpu.name]["seconds"]
            values = [seconds[key] for key in (*keys, "datasheet")]
            if gpu.mma_share < 1:
                values.append(seconds["mma_sync"])
            rows.append((row["kernel"], *(f"{1e6 * value:.2f}" for value in values)))
        headings = [gpu.name, *keys, "time"]
        if gpu.mma_share < 1:
            headings.append(f"time, mma.sync at {gpu.mma_share:.0%}")
        print(table(headings, rows))
        found = report["model"][gpu.name]
        print(f"\n{gpu.name}, {MODEL}: {_an_image(found['datasheet'], batch)}", end="")
        if gpu.mma_share < 1:
            print(
                f" at the datasheet's tensor rate; {_an_image(found['mma_sync'], batch)} "
                f"if mma.sync reaches {gpu.mma_share:.0%} of it",
                end="",
            )
        rate = found["requested_bytes_per_second"] / 1e12
        print(f"; in that time L1 and L2 would have to serve {rate:.1f} TB/s\n")


def _an_image(seconds: float, batch: int) -> str:
    whole = f"{1e6 * seconds:.1f} us"
    return whole if batch == 1 else f"{whole} a batch, {1e6 * seconds / batch:.1f} us an image"


def _spread(values: Sequence[float | None], form: str = "{}") -> str:
    """Different values in order, each once."""
    return ", ".join("-" if v is None else form.format(v) for v in dict.fromkeys(values))


def _each(values) -> str:
    """One value where all are equal, else all with slashes."""
    values = [str(value) for value in values]
    return values[0] if len(set(values)) == 1 else " / ".join(values)
