"""bf16 where there are no instructions for it: who asks, what is chosen, what is said."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dssnet_fast import DSSNetConfig, FastDSSNet, backends, bench, benchmark, cli, evaluate, info
from dssnet_fast import segment as segment_command
from dssnet_fast import train as command
from dssnet_fast.backends.cpu import instruction_set
from dssnet_fast.python_ref import hardware, once, processes
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.wsi import engines
from networks import noise, random_network

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).parent
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
SMALL = DSSNetConfig(width=9, features=8, blocks=1)
WHY = (
    "no bf16 instructions are found on this processor, so PyTorch's bf16 is up to 10 times "
    "slower than fp32"
)
BY_TORCH = ["reference-bf16", "fast-torch-bf16"]


def processor(monkeypatch, *features: str, intel: bool = False) -> None:
    monkeypatch.setattr(hardware, "_features", lambda: frozenset(features))
    monkeypatch.setattr(hardware, "_is_intel", lambda: intel)


@pytest.fixture
def slow(monkeypatch):
    """A processor without bf16 instructions."""
    processor(monkeypatch, "avx2")


@pytest.fixture
def fast(monkeypatch):
    """A processor with them."""
    processor(monkeypatch, "avx2", "avx512_bf16")


@pytest.fixture
def said(caplog):
    """What this process warns of from now on."""
    once.warn.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dssnet_fast"):
        yield lambda: [record.getMessage() for record in caplog.records]
    once.warn.cache_clear()


# --- the question --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ((), WHY),
        (("avx512_fp16",), WHY),
        (("avx512_bf16",), None),
        (("amx_bf16",), None),
        (("bf16",), None),
    ],
)
def test_a_processor_with_instructions_for_it_is_fast(monkeypatch, features, why):
    processor(monkeypatch, *features)
    assert hardware.why_no_fast_bf16(CPU) == why


def test_intels_instructions_are_fast_with_tiles_only(monkeypatch):
    processor(monkeypatch, "avx512_bf16", intel=True)
    assert hardware.why_no_fast_bf16(CPU) == (
        "without AMX Intel's bf16 instructions are slower than those for fp32"
    )
    processor(monkeypatch, "avx512_bf16", "amx_bf16", intel=True)
    assert hardware.why_no_fast_bf16(CPU) is None


@pytest.mark.parametrize(
    ("text", "processor", "intel"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "x86_64", True),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "x86_64", False),
        (None, "Intel64 Family 6 Model 207 Stepping 2, GenuineIntel", True),
        (None, "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", False),
        (None, "", False),
    ],
)
def test_who_made_the_processor(monkeypatch, tmp_path, text, processor, intel):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    field = hardware._cpu_field
    monkeypatch.setattr(hardware, "_cpu_field", lambda _, name: field(file, name))
    monkeypatch.setattr(hardware.platform, "processor", lambda: processor)
    hardware._is_intel.cache_clear()
    assert hardware._is_intel() is intel
    hardware._is_intel.cache_clear()


def test_without_onednn_instructions_are_no_use(fast, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert hardware.why_no_fast_bf16(CPU) == (
        "PyTorch is built without oneDNN here, so its bf16 is slower than fp32"
    )


def test_a_gpu_that_only_emulates_it_is_not_fast(slow, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def current(device):
        asked.append(device)
        yield

    def supported(including_emulation=True):
        return including_emulation or able

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    able = True
    assert hardware.why_no_fast_bf16(GPU) is None
    able = False
    assert hardware.why_no_fast_bf16(GPU) == (
        "cuda:1 has no bf16 instructions, so bf16 gains nothing"
    )
    assert asked == [GPU, GPU]


def test_of_other_devices_nothing_is_known(slow):
    assert hardware.why_no_fast_bf16(torch.device("mps")) is None


def test_arm_processors_tell_linux(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp bf16\nCPU part\t: 0xd4f\n")
    assert hardware._linux_flags(file) == {"fp", "asimd", "asimddp", "bf16"}


# --- training ------------------------------------------------------------------------------------


def chosen(*options: str) -> tuple[str, str | None]:
    """The precision of the recipe, and the remark."""
    arguments = command.make_parser().parse_args(["DATA", "--out", "OUT", *options])
    return command.recipe(arguments)["precision"], command.remark(arguments)


def test_training_chooses_fp32_where_bf16_is_slow(slow):
    assert chosen("--device", "cpu") == ("fp32", f"training in fp32: {WHY}")
    assert chosen("--device", "cpu", "--precision", "fp32") == ("fp32", None)
    assert chosen("--device", "cpu", "--precision", "bf16") == ("bf16", None)


def test_training_chooses_bf16_where_it_is_fast(fast):
    assert chosen("--device", "cpu") == ("bf16", None)
    assert chosen("--device", "cpu", "--precision", "fp32") == ("fp32", None)


@pytest.mark.parametrize("leads", [True, False])
def test_training_says_once_all_is_checked_what_it_chose(
    slow, disk_folder, tmp_path, monkeypatch, capsys, leads
):
    pytest.importorskip("kornia")
    from dssnet_fast.python_ref import training

    monkeypatch.setattr(training, "write_figure", lambda path, history: None)
    monkeypatch.setattr(processes.Process, "leads", leads)
    monkeypatch.setattr(training.Trainer, "run", lambda self: 0.5)
    options = "--width 9 --features 8 --blocks 1 --crop 32 --epochs 1 --device cpu --batch"
    arguments = [str(disk_folder), "--out", str(tmp_path), *options.split()]
    assert cli.main("train", command.make_parser, command.body, [*arguments, "99"]) == 1
    assert capsys.readouterr().err.startswith("dssnet_fast.train: error: ")
    assert cli.main("train", command.make_parser, command.body, [*arguments, "2"]) == 0
    assert capsys.readouterr().err == f"training in fp32: {WHY}\n" * leads


def test_training_asks_for_the_device_it_gets(slow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    asked = []
    monkeypatch.setattr(hardware, "why_no_fast_bf16", lambda device: asked.append(device))
    assert chosen("--device", "auto") == chosen("--device", "cpu") == ("bf16", None)
    assert asked == [torch.device("cuda", 3)] * 2 + [CPU] * 2
    assert processes.find_device("cuda") == torch.device("cuda", 3)


@pytest.mark.parametrize("name", ["train", "study"])
def test_training_in_bf16_where_it_is_slow_is_warned_of_once(
    slow, said, disk_folder, tmp_path, monkeypatch, name
):
    pytest.importorskip("kornia")
    from dssnet_fast.python_ref import training
    from dssnet_fast.study import budget
    from dssnet_fast.study.__main__ import main as study

    monkeypatch.setattr(training, "write_figure", lambda path, history: None)
    monkeypatch.setattr(budget, "ROUNDS", 1)
    options = "--width 9 --features 8 --blocks 1 --no-super-resolution --crop 32 --batch 2"
    options += " --device cpu --precision bf16"
    out = [str(disk_folder), "--out", str(tmp_path), *options.split()]
    if name == "train":
        out += ["--epochs", "1"]
        assert cli.main("train", command.make_parser, command.body, out) == 0
        assert cli.main("train", command.make_parser, command.body, out) == 0
    else:
        assert study(["supervisions", *out, "--only", "edge", "--epochs", "0.5"]) == 0
    assert said() == [f"training in bf16: {WHY}; use precision fp32"]


def test_training_in_bf16_where_it_is_fast_is_nothing_to_warn_of(fast, said, disk_folder, tmp_path):
    pytest.importorskip("kornia")
    options = "--width 9 --features 8 --blocks 1 --crop 32 --batch 2 --epochs 1 --device cpu"
    out = [str(disk_folder), "--out", str(tmp_path), *options.split(), "--precision", "bf16"]
    assert cli.main("train", command.make_parser, command.body, out) == 0
    assert said() == []


def test_a_study_chooses_fp32_and_says_so(slow, disk_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("kornia")
    from dssnet_fast.python_ref import training
    from dssnet_fast.study import budget
    from dssnet_fast.study.__main__ import main as study

    monkeypatch.setattr(training, "write_figure", lambda path, history: None)
    monkeypatch.setattr(budget, "ROUNDS", 1)
    options = "--width 9 --features 8 --blocks 1 --no-super-resolution --crop 32 --batch 2"
    options += " --device cpu --only edge --epochs 0.5 --seeds 0"
    arguments = ["supervisions", str(disk_folder), "--out", str(tmp_path), *options.split()]
    assert study(arguments) == 0
    assert capsys.readouterr().err.count(f"training in fp32: {WHY}\n") == 1
    (scores,) = tmp_path.rglob("scores.json")
    assert json.loads(scores.read_text())["options"]["precision"] == "fp32"


# --- networks ------------------------------------------------------------------------------------

BY_BACKEND_TORCH = f"backend torch, bf16: {WHY}; use precision fp32"


def test_auto_is_never_bf16_on_a_cpu(fast):
    for name in backends.names():
        if backends.module(name).why_not(CPU, "fp32", SMALL) is None:
            assert backends.choose(name, CPU, "auto", SMALL).precision == "fp32"
    assert backends.choose("auto", CPU, "auto", SMALL).precision == "fp32"


def test_a_network_in_slow_bf16_is_warned_of_once(slow, said):
    network = random_network()
    net = FastDSSNet.from_reference(network, device="cpu", backend="torch", precision="fp32")
    assert said() == []
    net.bfloat16()
    FastDSSNet.from_reference(network, device="cpu", backend="torch", precision="bf16")
    assert said() == [BY_BACKEND_TORCH]


def test_a_network_in_fast_bf16_is_nothing_to_warn_of(fast, said):
    FastDSSNet.from_reference(random_network(), device="cpu", backend="torch", precision="bf16")
    assert said() == []


def test_the_backend_cpu_says_that_it_computes_in_fp32(said, monkeypatch):
    if (reason := backends.module("cpu").why_not(CPU, "bf16", SMALL)) is not None:
        pytest.skip(f"backend cpu: {reason}")
    network = random_network()
    for one in instruction_set.found():
        if not one["runs_here"]:
            continue
        once.warn.cache_clear()
        before = len(said())
        monkeypatch.setenv(instruction_set.VARIABLE, one["name"])
        for precision in ("fp32", "bf16", "bf16"):
            FastDSSNet.from_reference(network, device="cpu", backend="cpu", precision=precision)
        expected = [
            f"backend cpu, bf16: {one['name']} has no fast bf16 instructions here, so bf16 is "
            "computed as fp32 and rounded; fp32 is as fast and more exact; use precision fp32"
        ]
        assert said()[before:] == ([] if one["fast_bf16"] else expected)


def test_what_is_said_is_a_line_on_stderr():
    script = (
        "from dssnet_fast.python_ref import hardware\n"
        "hardware._features = frozenset\n"
        "from dssnet_fast import FastDSSNet\n"
        "for _ in range(2):\n"
        "    FastDSSNet.pretrained(device='cpu', backend='torch', precision='bf16')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"{BY_BACKEND_TORCH}\n"


def test_commands_say_it_once(slow, said, disk_folder, tmp_path):
    how = ["--device", "cpu", "--backend", "torch"]
    images = str(disk_folder / "images" / "disks0.png")
    options = [images, "--out", str(tmp_path / "out"), "--quiet", *how, "--precision", "bf16"]
    assert segment_command.main(options) == 0
    assert said() == [BY_BACKEND_TORCH]
    once.warn.cache_clear()
    compared = [
        str(disk_folder),
        *how,
        "--precision",
        "fp32",
        "--compare",
        "bf16",
        "bf16+separate=no",
    ]
    assert cli.main("evaluate", evaluate.make_parser, evaluate.body, [*compared, "--quiet"]) == 0
    assert said() == [BY_BACKEND_TORCH] * 2


def test_evaluate_is_in_fp32_unless_another_is_named(slow, said, disk_folder, capsys):
    options = [str(disk_folder), "--device", "cpu", "--backend", "torch", "--json", "--quiet"]
    assert cli.main("evaluate", evaluate.make_parser, evaluate.body, options) == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["precision"] == "fp32"
    assert said() == []


def test_processes_that_read_a_slide_leave_it_to_the_first(slow, said, monkeypatch):
    net = FastDSSNet.from_reference(
        random_network(), device="cpu", backend="torch", precision="bf16"
    )
    portable = engines.PortableNet.of(net, deterministic=False)
    assert said() == [BY_BACKEND_TORCH]
    once.warn.cache_clear()  # as in a new process
    monkeypatch.setattr(engines, "_leave_with_parent", lambda: None)
    monkeypatch.setattr(engines, "give_back_large_blocks", lambda: None)
    monkeypatch.setattr(engines, "_net", None)
    level = logging.getLogger("dssnet_fast").level
    try:
        engines._start_process(portable, torch.get_num_threads(), "cpu")
    finally:
        logging.getLogger("dssnet_fast").setLevel(level)
    image = noise(16, 24, 3)
    assert (engines._net.predict(image) == net.predict(image)).all()
    assert said() == [BY_BACKEND_TORCH]


# --- benchmarks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arena():
    return benchmark.Arena(benchmark.random_network(SMALL), CPU)


def test_pytorchs_slow_bf16_is_left_out(slow, arena):
    left_out = {one.name: benchmark.why_left_out(one, CPU) for one in arena.contestants}
    assert {name: why for name, why in left_out.items() if why} == dict.fromkeys(BY_TORCH, WHY)


def test_nobody_is_left_out_where_bf16_is_fast(fast, arena):
    assert not any(benchmark.why_left_out(one, CPU) for one in arena.contestants)


def measured(arena, tmp_path, capsys, *options: str) -> dict[str, dict]:
    checkpoint = tmp_path / "small.pt"
    torch.save(released_state(arena.reference), checkpoint)
    quick = "--device cpu --threads 1 --rounds 1 --seconds 0 --batches 1 --sizes 32 --json"
    arguments = [str(checkpoint), *quick.split(), *options]
    assert cli.main("bench", bench.make_parser, bench.body, arguments) == 0
    return {row["contestant"]: row for row in json.loads(capsys.readouterr().out)["results"]}


def test_the_command_names_whom_it_leaves_out_and_why(slow, arena, tmp_path, capsys):
    kept = {"reference", "fast-torch-fp32", *BY_TORCH}
    here = benchmark.contestants(CPU, SMALL)  # as the command finds them
    others = [one.name for one in here if one.name not in kept]
    rows = measured(arena, tmp_path, capsys, "--skip", *others)
    assert set(rows) == kept
    for name, row in rows.items():
        if name in BY_TORCH:
            assert row["skipped"] == f"{WHY}; --only {name} runs it"
        else:
            assert row["median_ms"] > 0


def test_the_command_runs_whom_one_names(slow, arena, tmp_path, capsys):
    rows = measured(arena, tmp_path, capsys, "--only", *BY_TORCH)
    assert list(rows) == ["reference", *BY_TORCH]
    assert all(row["median_ms"] > 0 for row in rows.values())


def test_benchmarks_of_pytest_leave_the_same_out(slow, arena, monkeypatch):
    pytest.importorskip("pytest_benchmark")
    file = TESTS / "benchmarks" / "test_inference.py"
    spec = importlib.util.spec_from_file_location("benchmarks_of_inference", file)
    benches = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec.loader.exec_module(benches)

    def left_out() -> dict[str, str]:
        found = {}
        for contestant in arena.contestants:
            try:
                benches.skip_if_left_out(arena, contestant, 256, 1)
            except pytest.skip.Exception as error:
                found[contestant.name] = str(error)
        return found

    monkeypatch.delenv("DSSNET_FAST_BENCH", raising=False)
    found = left_out()
    assert {name: found[name] for name in BY_TORCH} == {
        name: f"{name}: {WHY}; DSSNET_FAST_BENCH=all runs it" for name in BY_TORCH
    }
    assert "fast-torch-fp32" not in found
    monkeypatch.setenv("DSSNET_FAST_BENCH", "all")
    assert left_out() == {}


def test_pytorchs_own_error_is_found_once(monkeypatch):
    arena = benchmark.Arena(benchmark.random_network(SMALL), CPU)
    prepare, prepared = arena.prepare, []

    def counted(contestant, image):
        prepared.append(contestant.name)
        return prepare(contestant, image)

    contestant = next(one for one in arena.contestants if one.name == "fast-torch-bf16")
    run = prepare(contestant, arena.image(32, 1))
    monkeypatch.setattr(arena, "prepare", counted)
    first = arena.check(contestant, run, 32, 1)
    assert (arena.check(contestant, run, 32, 1), prepared) == (first, [""])
    larger = prepare(contestant, arena.image(48, 1))
    arena.check(contestant, larger, 48, 1)
    assert prepared == ["", ""]


# --- info ----------------------------------------------------------------------------------------


def test_info_says_where_bf16_gains_nothing(slow, capsys):
    found = info.collect()
    json.dumps(found)
    assert found["backends"]["cpu"]["torch"]["bf16"] is None
    assert found["no_gain"]["cpu"]["torch"] == {"bf16": WHY}
    assert cli.main("info", info.make_parser, info.body, []) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  torch    bf16  ready, but {WHY}" in lines
    assert "  torch    fp32  ready" in lines


def test_info_says_nothing_where_bf16_gains(fast):
    assert info.collect()["no_gain"]["cpu"]["torch"] == {}
