"""`python -m dssnet_fast.bench`: how fast this machine runs DSSNet, in all the ways it can."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from dssnet_fast import cli
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write

SIZES = (256, 512, 1024)
BATCHES = (1, 8)


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = cli.parser(
        "bench",
        "Time the reference network, torch.compile, TensorRT on a GPU, ONNX Runtime and OpenVINO "
        "on a CPU, UNet and every fast backend and precision in turn, all on the same threads. "
        "Each answer is compared with the reference's before it is timed. "
        "Speed-ups are ratios to the reference in float32 as PyTorch runs it, in the same rounds.",
    )
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", default=None, help="default: random weights"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="sides in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=None,
        metavar="NAME",
        help="these, beside the reference; also those that are else left out",
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="not these")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="write .md or .json there, too"
    )
    parser.add_argument(
        "--plot", type=Path, default=None, metavar="FILE", help="draw images/s as .png there"
    )
    parser.add_argument(
        "--stages",
        action="store_true",
        help="instead of the contestants, the stages of the backend cpu beside the processor's "
        "peak, as Markdown",
    )
    parser.add_argument(
        "--slide",
        type=Path,
        metavar="FILE",
        help="instead of the contestants, a whole slide from file to outputs in every precision, "
        "beside what reading and network alone would allow, as Markdown",
    )
    parser.add_argument("--list", action="store_true", help="show the names and stop")
    parser.add_argument("--rounds", type=int, default=5, help="each is timed in at least so many")
    parser.add_argument("--seconds", type=float, default=5.0, help="more rounds for so long")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser


def body(arguments: argparse.Namespace) -> None:
    """Measure as the arguments say."""
    import torch

    from dssnet_fast import backends, bench_plot, benchmark
    from dssnet_fast.checkpoint import read_checkpoint

    _check(arguments)
    if arguments.plot is not None:
        bench_plot.require()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    reference = None
    if arguments.checkpoint is not None:
        reference = read_checkpoint(arguments.checkpoint).reference()
    if arguments.stages:
        print_stages(reference, arguments)
        return
    if arguments.slide is not None:
        print_slide(reference, arguments)
        return
    arena = benchmark.Arena(reference, backends.find_device(arguments.device))
    chosen = choose(arena.contestants, arguments.only, arguments.skip)
    if arguments.list:
        print("\n".join(contestant.name for contestant in chosen))
        return
    results = []
    for size in arguments.sizes:
        for batch in arguments.batches:
            how = arguments.rounds, arguments.seconds, arguments.only or ()
            results += measure(arena, chosen, size, batch, *how)
            if not (arguments.json or arguments.markdown):
                print_table(results[-len(chosen) :], size, batch)
    about = machine(arena.device)
    if arguments.json:
        print(as_json(results, about))
    elif arguments.markdown:
        print(markdown(results, about))
    if arguments.out is not None:
        form = as_json if arguments.out.suffix == ".json" else markdown
        with atomic_write(arguments.out) as temporary:
            Path(temporary).write_text(form(results, about) + "\n")
    if arguments.plot is not None:
        bench_plot.draw(results, arguments.plot)


def print_slide(reference, arguments: argparse.Namespace) -> None:
    """Measure and print a whole slide, at its own resolution and without skipping anything.

    Args:
        reference: A network, or None for the packaged one.
        arguments: The command's.

    Raises:
        InputError: It is no slide.
    """
    from dssnet_fast import backends, slide_speed, weights
    from dssnet_fast.model import FastDSSNet
    from dssnet_fast.slides.slide import open_slide
    from dssnet_fast.wsi.options import Options

    # Nothing is computed with these: whichever backend there is in any case.
    anywhere = {"device": "cpu", "backend": "torch"}
    if reference is not None:
        folded = FastDSSNet.from_reference(reference, **anywhere).folded_weights()
    else:
        folded = FastDSSNet.pretrained(**anywhere).folded_weights()
        reference = weights.unfold(folded).float()
    device = backends.find_device(arguments.device)
    backends.check_environment(device)
    slide = open_slide(arguments.slide)
    mpp, size = slide.mpp or 0.5, slide.levels[0]
    slide.close()
    options = Options(mpp=mpp, model_mpp=mpp, skip=False)
    about = machine(device)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{arguments.slide.name}, {size.width} x {size.height} px, rounds: {arguments.rounds}")
    for precision in backends.PRECISIONS:
        try:
            net = FastDSSNet(folded, device, "auto", precision)
        except backends.BackendUnavailable as error:
            print(f"\n{precision}: {cli.one_line(error)}")
            continue
        if net.backend_name == "torch":
            print(f"\n{precision}: no kernels of ours here")
            continue
        print(f"\nbackend {net.backend_name}, {precision}:\n")
        speed = slide_speed.measure(net, reference, arguments.slide, options, arguments.rounds)
        print(slide_speed.table(speed), flush=True)
        reference = None  # it is as fast beside the other precisions


def print_stages(reference, arguments: argparse.Namespace) -> None:
    """Measure and print the stages of the backend `cpu`.

    Args:
        reference: A network, or None for one with random weights.
        arguments: The command's.

    Raises:
        InputError: The backend cannot run here.
    """
    import torch

    from dssnet_fast import backends, benchmark, stage_speed
    from dssnet_fast.checkpoint import from_state
    from dssnet_fast.python_ref.config import DSSNetConfig
    from dssnet_fast.python_ref.released import released_state
    from dssnet_fast.weights import fold_checkpoint

    cpu = torch.device("cpu")
    network = reference or benchmark.random_network(DSSNetConfig())
    folded = fold_checkpoint(from_state(released_state(network)))
    if (reason := backends.module("cpu").why_not(cpu, "fp32", folded.config)) is not None:
        raise InputError(f"backend cpu: {reason}")
    about = machine(cpu)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for size in arguments.sizes:
        for batch in arguments.batches:
            speeds = list(stage_speed.measure(folded, size, batch, arguments.rounds))
            print(
                f"\n{size} x {size} px, batch {batch}:\n\n{stage_speed.markdown(speeds)}",
                flush=True,
            )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.out is not None and arguments.out.suffix not in (".md", ".json"):
        raise InputError(f"--out must end in .md or .json, got {arguments.out}")
    if arguments.plot is not None and arguments.plot.suffix != ".png":
        raise InputError(f"--plot must end in .png, got {arguments.plot}")
    for name, values, unit in (
        ("--sizes", arguments.sizes, 16),
        ("--batches", arguments.batches, 1),
        ("--threads", [1 if arguments.threads is None else arguments.threads], 1),
        ("--rounds", [arguments.rounds], 1),
    ):
        for value in values:
            if value < 1 or value % unit:
                rule = "at least 1" if unit == 1 else f"a positive multiple of {unit}"
                raise InputError(f"{name} must be {rule}, got {value}")


def choose(contestants: list, only: list[str] | None, skip: list[str]) -> list:
    """The contestants that `--only` and `--skip` leave; the first, the baseline, always stays.

    Raises:
        InputError: A name is unknown.
    """
    names = [contestant.name for contestant in contestants]
    unknown = sorted({*(only or []), *skip} - set(names))
    if unknown:
        raise InputError(f"no contestant {', '.join(unknown)} here; there are: {', '.join(names)}")
    kept = set(names if only is None else only) - set(skip)
    return [c for number, c in enumerate(contestants) if number == 0 or c.name in kept]


def measure(
    arena,
    contestants: list,
    size: int,
    batch: int,
    rounds: int,
    seconds: float,
    named: Collection[str] = (),
) -> list:
    """Check and time the contestants on one size and batch.

    Args:
        arena: A `benchmark.Arena`.
        contestants: Of that arena, the baseline first.
        size: Side of the images in pixels.
        batch: Images a call.
        rounds: See `benchmark.race`.
        seconds: See `benchmark.race`.
        named: Contestants to run even if they are `benchmark.why_left_out`.

    Returns:
        One dict a contestant, in their order. Those that were left out, could not run, or whose
        answer was wrong, have `skipped` with the reason in place of numbers.

    Raises:
        InputError: The baseline itself is such a one.
    """
    from dssnet_fast import benchmark

    image = arena.image(size, batch)
    rows, runs = [], {}
    for contestant in contestants:
        row = {"contestant": contestant.name, "size": size, "batch": batch}
        rows.append(row)
        left_out = benchmark.why_left_out(contestant, arena.device)
        if left_out is not None and contestant.name not in named:
            row["skipped"] = f"{left_out}; --only {contestant.name} runs it"
            continue
        try:
            run = arena.prepare(contestant, image)
            row["relative_error"] = arena.check(contestant, run, size, batch)
        except (benchmark.Unavailable, benchmark.WrongAnswer, InputError) as error:
            if contestant is contestants[0]:
                raise InputError(f"nothing to compare with: {error}") from error
            row["skipped"] = cli.one_line(error).removeprefix(f"{contestant.name}: ")
            continue
        runs[contestant.name] = run
    timings = benchmark.race(runs, arena.timed, rounds, seconds)
    for contestant, row in zip(contestants, rows, strict=True):
        if contestant.name not in timings:
            continue
        timing = timings[contestant.name]
        macs = arena.macs(contestant, size, batch)
        row["median_ms"] = timing.median * 1e3
        row["spread"] = timing.spread
        row["rounds"] = len(timing.seconds)
        row["speed_up"] = timing.speed_up(timings[benchmark.BASELINE])
        row["images_per_second"] = batch / timing.median
        row["gmac_per_second"] = macs / timing.median / 1e9
        if arena.device.type == "cuda":
            row["alone_ms"] = arena.alone(runs[contestant.name]) * 1e3
            row["sm_mhz"] = sm_clock(arena.device, runs[contestant.name])
    return rows


def _nvidia_smi(device, field: str) -> list[str] | None:
    """The command that asks for a property of a GPU; None where it cannot be asked."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    program = shutil.which("nvidia-smi")
    if program is None or uuid is None:
        return None
    # As CUDA numbers them, devices are not those of nvidia-smi's numbers.
    return [
        program,
        f"--id=GPU-{uuid}",
        f"--query-gpu={field}",
        "--format=csv,noheader,nounits",
    ]


def sm_clock(device, run: Callable[[], object]) -> int | None:
    """MHz of a GPU's multiprocessors while it runs `run`; None where nvidia-smi does not tell."""
    import torch

    command = _nvidia_smi(device, "clocks.sm")
    if command is None:
        return None
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while asking.poll() is None:
        run()
        torch.cuda.synchronize(device)
    answer = asking.communicate()[0].strip()
    return int(answer) if answer.isdecimal() else None


def machine(device) -> dict[str, str | int]:
    """What the numbers belong to."""
    import torch

    import dssnet_fast

    if device.type == "cuda":
        gpu = {"device": torch.cuda.get_device_name(device), "CUDA": torch.version.cuda}
        command = _nvidia_smi(device, "driver_version")
        if command is not None:
            asked = subprocess.run(command, capture_output=True, text=True)
            gpu["driver"] = asked.stdout.strip() if asked.returncode == 0 else "unknown"
        peers = {"TensorRT": "tensorrt"}
    else:
        gpu = {"device": _processor()}
        peers = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "NNCF": "nncf"}
    versions = {name: _version(package) for name, package in peers.items()}
    return {
        **gpu,
        **{name: version for name, version in versions.items() if version is not None},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "dssnet_fast": dssnet_fast.__version__,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


_HEADINGS = ("contestant", "median", "spread", "images/s", "GMAC/s", "speed-up", "error")
_GPU_HEADINGS = ("alone", "SM MHz")


def _headings(rows: list[dict]) -> tuple[str, ...]:
    on_gpu = any("sm_mhz" in row for row in rows)
    return _HEADINGS + _GPU_HEADINGS if on_gpu else _HEADINGS


def _cells(row: dict) -> tuple[str, ...]:
    if "skipped" in row:
        return (row["contestant"], f"skipped: {row['skipped']}")
    # Calls on a GPU take tens of microseconds.
    digits = 4 if "sm_mhz" in row else 2
    cells = (
        row["contestant"],
        f"{row['median_ms']:.{digits}f} ms",
        f"{row['spread']:.0%}",
        f"{row['images_per_second']:.1f}",
        f"{row['gmac_per_second']:.1f}",
        f"{row['speed_up']:.2f}x",
        f"{row['relative_error']:.1e}" if row["relative_error"] else "-",
    )
    if "sm_mhz" in row:
        clock = row["sm_mhz"]
        cells += (f"{row['alone_ms']:.3f} ms", "-" if clock is None else str(clock))
    return cells


def print_table(rows: list[dict], size: int, batch: int) -> None:
    """Print the results of one size and batch for reading in a terminal."""
    headings = _headings(rows)
    table = [headings, *(_cells(row) for row in rows)]
    whole = [line for line in table if len(line) == len(headings)]
    widths = [max(len(line[column]) for line in whole) for column in range(len(headings))]
    widths[0] = max(len(line[0]) for line in table)
    print(f"{size} x {size} px, batch {batch}")
    for name, *cells in table:
        rest = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)]
        print("  ".join([name.ljust(widths[0]), *rest]).rstrip())
    print(flush=True)


def as_json(rows: list[dict], about: dict) -> str:
    """The results for programs."""
    return json.dumps({"machine": about, "results": rows}, indent=1)


def markdown(rows: list[dict], about: dict) -> str:
    """The results as Markdown, one table for each size and batch."""
    headings = _headings(rows)
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    groups = dict.fromkeys((row["size"], row["batch"]) for row in rows)
    for size, batch in groups:
        lines += [f"{size} x {size} px, batch {batch}:", ""]
        lines += [f"| {' | '.join(headings)} |", "|---" + "|---:" * (len(headings) - 1) + "|"]
        for row in rows:
            if (row["size"], row["batch"]) == (size, batch):
                cells = _cells(row)
                cells += ("",) * (len(headings) - len(cells))
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(cli.main("bench", make_parser, body))
