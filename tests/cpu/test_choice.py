"""The backend's own word on whether it can run, the instruction set, and what `info` tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cpu.cases import ENDS, INSTRUCTION_SETS, folded_weights
from dssnet_fast import (
    DSSNetConfig,
    FastDSSNet,
    backends,
    bench,
    cli,
    convert,
    evaluate,
    info,
    segment,
)
from dssnet_fast.backends import BackendUnavailable, cpu, native
from dssnet_fast.backends.cpu import instruction_set, report
from dssnet_fast.wsi import __main__ as wsi
from networks import noise, random_network

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PAPER = DSSNetConfig()

# Those that choose a backend, or have a use for one.
COMMANDS = {
    "segment": segment,
    "wsi": wsi,
    "evaluate": evaluate,
    "bench": bench,
    "convert": convert,
}

OLD = {"needs": "nothing", "runs_here": True, "fast_bf16": False, "fast_int8": False, "problem": ""}
NEW = {**OLD, "needs": "silicon", "fast_bf16": True, "fast_int8": True}


@pytest.fixture
def machine(monkeypatch):
    """A processor with the sets that a test puts into it, slowest first."""
    found = [
        {**OLD, "name": "portable"},
        {**OLD, "name": "half", "fast_int8": True},
        {**NEW, "name": "full"},
        {**NEW, "name": "broken", "runs_here": False, "problem": "int8: 3 instead of 4"},
        {**NEW, "name": "next", "runs_here": False},
    ]
    extension = SimpleNamespace(cpu_instruction_sets=lambda: found)
    build = SimpleNamespace(manifest={"extension": {"left_out": {"later": "unknown flag -mlater"}}})
    monkeypatch.setattr(native, "problem", lambda: None)
    monkeypatch.setattr(native, "module", lambda: extension)
    monkeypatch.setattr(native, "build", lambda: build)
    monkeypatch.delenv(instruction_set.VARIABLE, raising=False)
    return found


# --- the backend ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["wneck", "wdsr_b", "bottleneck", "basic"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_nothing_is_in_the_way_of_any_network(machine, precision, block):
    for upsampling in ("nearest", "pixel_shuffle"):
        config = DSSNetConfig(block=block, upsampling=upsampling)
        assert cpu.why_not(CPU, precision, config) is None
    assert cpu.why_not_automatic(CPU) is None
    assert cpu.best_precision(CPU) == "fp32"


def test_the_first_thing_in_the_way_is_named(machine, monkeypatch):
    assert cpu.why_not(CPU, "fp16", PAPER) == (
        "computes in fp32, bf16, int8; for fp16 use backend torch"
    )
    monkeypatch.setenv(instruction_set.VARIABLE, "avx9")
    assert "DSSNET_FAST_ISA=avx9 is no instruction set" in cpu.why_not(CPU, "fp16", PAPER)
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    assert cpu.why_not(CPU, "fp16", PAPER) == "nothing is compiled here"
    assert cpu.why_not(GPU, "fp16", PAPER) == "runs on the CPU; cuda:0 is none"


def test_auto_takes_it_on_a_cpu(machine):
    chosen = backends.choose("auto", "cpu", "auto", PAPER)
    assert (chosen.name, chosen.precision) == ("cpu", "fp32")
    for precision in ("bf16", "int8"):
        assert backends.choose("auto", "cpu", precision, PAPER).name == "cpu"
    with pytest.raises(BackendUnavailable, match="for fp16 use backend torch"):
        backends.choose("cpu", "cpu", "fp16", PAPER)


def test_without_the_extension_auto_goes_on_and_says_why(monkeypatch):
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    net = FastDSSNet.from_reference(random_network(), device="cpu")
    assert net.backend_name == "torch"
    assert "cpu: nothing is compiled here" in repr(net)
    with pytest.raises(BackendUnavailable, match=r"cpu: nothing .*available on cpu: torch"):
        FastDSSNet.from_reference(random_network(), device="cpu", backend="cpu")


@pytest.mark.usefixtures("extension")
def test_a_network_is_packed_for_the_choice_of_its_time(monkeypatch):
    monkeypatch.delenv(instruction_set.VARIABLE, raising=False)
    weights, image = folded_weights(random_network()), noise(24, 40, 3)
    best = FastDSSNet(weights, device="cpu")
    assert best.backend_name == "cpu"
    assert best._backend.instruction_set == list(INSTRUCTION_SETS)[-1] == ENDS[-1]
    for name in INSTRUCTION_SETS:
        monkeypatch.setenv(instruction_set.VARIABLE, name)
        net = FastDSSNet(weights, device="cpu")
        assert net._backend.instruction_set == name
        expected = best.predict(image, output="logits")
        np.testing.assert_allclose(net.predict(image, output="logits"), expected, 1e-4, 1e-5)


# --- the instruction set -------------------------------------------------------------------------


def test_the_best_that_runs_is_taken(machine):
    assert instruction_set.problem() is None
    assert instruction_set.chosen()["name"] == "full"
    machine[2]["runs_here"] = False
    assert instruction_set.chosen()["name"] == "half"


@pytest.mark.parametrize("asked", ["portable", "half", "full"])
def test_one_can_be_asked_for(machine, monkeypatch, asked):
    monkeypatch.setenv(instruction_set.VARIABLE, asked)
    assert instruction_set.problem() is None
    assert instruction_set.chosen()["name"] == asked


def test_an_empty_wish_is_none(machine, monkeypatch):
    monkeypatch.setenv(instruction_set.VARIABLE, "")
    assert instruction_set.problem() is None
    assert instruction_set.chosen()["name"] == "full"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("next", "needs silicon, which this processor lacks"),
        ("broken", "gives wrong results here (int8: 3 instead of 4)"),
        ("later", "is not in this build: unknown flag -mlater"),
        ("neon", "is for aarch64"),
        ("avx9", "is no instruction set of this version"),
        ("Full", "is no instruction set of this version"),
        ("' full'", "is no instruction set of this version"),
        ("' '", "is no instruction set of this version"),
    ],
)
def test_one_that_does_not_run_is_refused_with_those_that_do(machine, monkeypatch, asked, why):
    """By `auto` too: it goes on past what is missing, not past what was asked for."""
    monkeypatch.setenv(instruction_set.VARIABLE, asked.strip("'"))
    expected = f"DSSNET_FAST_ISA={asked} {why}; here run: portable, half, full"
    assert instruction_set.problem() == expected
    for precision in ("auto", "bf16", "fp16"):
        with pytest.raises(BackendUnavailable) as caught:
            backends.choose("auto", "cpu", precision, PAPER)
        assert str(caught.value) == expected
        with pytest.raises(BackendUnavailable) as caught:
            backends.choose("cpu", "cpu", precision, PAPER)
        assert str(caught.value).startswith(f"cpu: {expected}; available on cpu: torch ")


def test_without_the_extension_none_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    monkeypatch.setenv(instruction_set.VARIABLE, "avx2")
    expected = "DSSNET_FAST_ISA=avx2 cannot be used, nor can any other: nothing is compiled here"
    with pytest.raises(BackendUnavailable) as caught:
        backends.choose("auto", "cpu", "auto", PAPER)
    assert str(caught.value) == expected
    assert next(iter(report.lines(report.collect()))) == f"uses         nothing: {expected}"


def test_who_names_another_backend_asks_for_none(machine, monkeypatch):
    monkeypatch.setenv(instruction_set.VARIABLE, "avx9")
    for backend in ("auto", "cpu"):
        with pytest.raises(BackendUnavailable, match="DSSNET_FAST_ISA=avx9 "):
            FastDSSNet.from_reference(random_network(), device="cpu", backend=backend)
    net = FastDSSNet.from_reference(random_network(), device="cpu", backend="torch")
    assert net.backend_name == "torch"
    assert cpu.unmet(GPU) is None
    backends.check_environment(GPU)
    # `auto` takes another backend before it comes to this one.
    modules = backends.module
    able = SimpleNamespace(**{**vars(modules("torch")), "why_not": lambda *_: None})
    monkeypatch.setattr(backends, "module", lambda n: able if n == "triton" else modules(n))
    assert backends.choose("auto", "cpu", "auto", PAPER).name == "triton"


def test_a_choice_made_elsewhere_is_no_way_around(machine, monkeypatch):
    choice = backends.choose("auto", "cpu", "auto", PAPER)
    monkeypatch.setenv(instruction_set.VARIABLE, "avx9")
    with pytest.raises(BackendUnavailable, match=r"^DSSNET_FAST_ISA=avx9 is no instruction set"):
        backends.start(choice, "auto", folded_weights(random_network()))


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("segment", ["IMAGE", "--out", "OUT"]),
        ("segment", ["IMAGE", "--out", "OUT", "--precision", "fp16"]),
        ("segment", ["IMAGE", "--out", "OUT", "--backend", "cpu"]),
        ("wsi", ["IMAGE", "--out", "OUT", "--mpp", "0.5"]),
        ("evaluate", ["DATA"]),
        ("evaluate", ["DATA", "--backend", "torch", "--compare", "cpu:fp32"]),
        ("bench", ["--list"]),
        ("bench", ["--stages"]),
        ("bench", ["--slide", "IMAGE"]),
        ("convert", ["MODEL", "--int8", "--calibrate", "IMAGE", "--out", "OUT.safetensors"]),
    ],
)
def test_commands_refuse_it_in_one_line(
    monkeypatch, tmp_path, capsys, disk_folder, command, options
):
    monkeypatch.setenv(instruction_set.VARIABLE, "avx9")
    places = {
        "IMAGE": sorted((disk_folder / "images").iterdir())[0],
        "DATA": disk_folder,
        "MODEL": next((ROOT / "dssnet_fast" / "models").glob("*.safetensors")),
        "OUT": tmp_path / "out",
        "OUT.safetensors": tmp_path / "out.safetensors",
    }
    arguments = [str(places.get(word, word)) for word in options]
    if command != "convert":
        arguments += ["--device", "cpu"]
    module = COMMANDS[command]
    if hasattr(module, "main"):
        code = module.main(arguments)
    else:
        code = cli.main(command, module.make_parser, module.body, arguments)
    assert code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"dssnet_fast.{command}: error: ")
    assert "DSSNET_FAST_ISA=avx9 " in said.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.usefixtures("extension")
def test_info_tells_of_a_wrong_name_and_of_all_else(monkeypatch, capsys):
    monkeypatch.setenv(instruction_set.VARIABLE, "avx9")
    problem = instruction_set.problem()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.main("info", info.make_parser, info.body, ["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu"]["problem"] == problem
    assert found["auto"] == {
        "backend": None,
        "device": "cpu",
        "precision": None,
        "reason": problem,
    }
    assert found["backends"]["cpu"]["torch"]["fp32"] is None
    assert cli.main("info", info.make_parser, info.body, []) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  uses         nothing: {problem}" in lines
    assert all(f"  {name:<12} ready" in lines for name in INSTRUCTION_SETS)
    assert lines[-1] == f"auto       nothing: {problem}"


@pytest.mark.usefixtures("extension")
def test_the_extension_refuses_what_it_has_not():
    for wrong in ("avx9", *(s["name"] for s in instruction_set.found() if not s["runs_here"])):
        with pytest.raises(ValueError, match=f"instruction set {wrong} "):
            native.module().CpuNetwork(
                instruction_set=wrong,
                sizes={
                    **dict.fromkeys(("in_channels", "classes", "width", "features"), 3),
                    **dict.fromkeys(("fused", "y", "narrow"), 3),
                    **dict.fromkeys(("learned_upsampling", "edges"), False),
                },
                convolutions={},
                blocks=[],
                slopes={},
                winograd=True,
            )


def test_a_set_without_bf16_gains_nothing_from_it(machine, monkeypatch):
    for precision in cpu.PRECISIONS:
        assert cpu.why_no_gain(CPU, precision) is None
    monkeypatch.setenv(instruction_set.VARIABLE, "half")
    assert cpu.why_no_gain(CPU, "bf16") == (
        "half has no fast bf16 instructions here, so bf16 is computed as fp32 and rounded; "
        "fp32 is as fast and more exact"
    )
    assert cpu.why_no_gain(CPU, "fp32") is None
    assert cpu.why_no_gain(CPU, "int8") is None


# --- info ----------------------------------------------------------------------------------------


def test_info_tells_what_is_there(machine, monkeypatch):
    found = report.collect()
    json.dumps(found)
    assert list(report.lines(found)) == [
        "uses         full (bf16 fast, int8 fast)",
        "portable     ready",
        "half         ready",
        "full         ready",
        "broken       gives wrong results here: int8: 3 instead of 4",
        "next         needs silicon",
        "later        not in this build: unknown flag -mlater",
    ]
    assert found["chosen"] == "full"
    monkeypatch.setenv(instruction_set.VARIABLE, "half")
    first = next(iter(report.lines(report.collect())))
    assert first == "uses         half (int8 fast, bf16 as fp32)"
    monkeypatch.setenv(instruction_set.VARIABLE, "portable")
    first = next(iter(report.lines(report.collect())))
    assert first == "uses         portable (bf16 as fp32, int8 slow)"
    monkeypatch.setenv(instruction_set.VARIABLE, "next")
    first = next(iter(report.lines(report.collect())))
    assert first.startswith("uses         nothing: DSSNET_FAST_ISA=next needs silicon")


def test_info_tells_what_is_not(monkeypatch):
    monkeypatch.setattr(native, "build", lambda: None)
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    found = report.collect()
    assert list(report.lines(found)) == ["uses         nothing: nothing is compiled here"]
    assert found["chosen"] is None
    assert found["instruction_sets"] == []


@pytest.mark.usefixtures("extension")
def test_the_command_tells_what_is_used():
    def info(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "dssnet_fast.info", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    asked = ENDS[0]
    found = json.loads(info("--json", DSSNET_FAST_ISA=asked))
    assert found["cpu"]["chosen"] == asked
    assert found["auto"]["backend"] == "cpu" or found["auto"]["device"] != "cpu"
    assert found["backends"]["cpu"]["cpu"]["int8"] is None
    ready = [one["name"] for one in found["cpu"]["instruction_sets"] if one["runs_here"]]
    assert ready == list(INSTRUCTION_SETS)
    text = info(DSSNET_FAST_ISA=asked)
    assert f"  uses         {asked} (" in text
    assert all(f"  {name:<12} ready\n" in text for name in ready)
