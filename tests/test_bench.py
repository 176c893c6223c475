"""The measuring core and the bench command, without asserting any time."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dssnet_fast import bench, bench_plot, benchmark, cli
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.python_ref.unet import UNet

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = DSSNetConfig(width=9, features=8, blocks=1)


@pytest.fixture(scope="module")
def arena():
    return benchmark.Arena(benchmark.random_network(SMALL), CPU)


def named(arena, name):
    return next(one for one in arena.contestants if one.name == name)


# --- UNet ----------------------------------------------------------------------------------------


def test_unet_has_the_papers_size():
    with torch.device("meta"):
        network = UNet()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 31.0


def test_unet_keeps_the_size():
    torch.manual_seed(0)
    network = UNet(1, 3).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 32, 48))
    assert logits.shape == (1, 3, 32, 48)
    assert bool(torch.isfinite(logits).all())
    with pytest.raises(ValueError, match="multiples of 16"):
        network(torch.zeros(1, 1, 24, 32))


def test_unets_deepest_layer_reaches_the_output():
    torch.manual_seed(0)
    network = UNet()
    network(torch.randn(1, 3, 32, 32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


# --- contestants and their checks ----------------------------------------------------------------


def test_the_baseline_comes_first_and_names_are_unique(arena):
    names = [one.name for one in arena.contestants]
    assert names[0] == benchmark.BASELINE
    assert len(set(names)) == len(names)
    assert {"reference-channels-last", "reference-compile", "unet", "fast-torch-fp32"} <= set(names)


@pytest.mark.parametrize(
    "name", ["reference", "reference-channels-last", "unet", "fast-torch-fp32", "fast-torch-bf16"]
)
def test_right_answers_pass(arena, name):
    contestant = named(arena, name)
    run = arena.prepare(contestant, arena.image(32, 2))
    error = arena.check(contestant, run, 32, 2)
    assert 0 <= error <= (2e-5 if contestant.precision == "fp32" else 5e-2)


@pytest.mark.parametrize("fault", ["scale", "nan", "shape"])
@pytest.mark.parametrize("name", ["reference-channels-last", "fast-torch-fp32", "fast-torch-bf16"])
def test_wrong_answers_are_found(arena, name, fault):
    contestant = named(arena, name)
    run = arena.prepare(contestant, arena.image(32, 1))

    def wrong():
        answer = run()
        if fault == "scale":
            return answer * (1.1 if contestant.precision != "fp32" else 1.0001)
        if fault == "nan":
            return answer.where(torch.rand_like(answer) > 0.01, torch.nan)
        return answer[:, :, :-1]

    with pytest.raises(benchmark.WrongAnswer, match=f"{name}: "):
        arena.check(contestant, wrong, 32, 1)


def test_images_are_neither_constant_nor_out_of_range(arena):
    image = arena.image(64, 2)
    assert image.shape == (2, 3, 64, 64)
    assert -1 <= float(image.min()) < -0.5
    assert 0.5 < float(image.max()) < 1
    assert torch.equal(image, arena.image(64, 2))
    assert not torch.equal(image[0], image[1])


def test_a_compiler_that_fails_is_named(arena, monkeypatch):
    def fail(function, **options):
        def call(x):
            raise RuntimeError("no C++ compiler\nmore")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    rows = bench.measure(
        arena, [*arena.contestants[:1], named(arena, "reference-compile")], 32, 1, 1, 0
    )
    assert rows[1]["skipped"] == "torch.compile failed: no C++ compiler"
    assert "speed_up" not in rows[1]


def test_macs_count_the_whole_network_once(arena):
    paper = benchmark.Arena(DSSNet(DSSNetConfig(classes=3)), CPU)
    fast, unet = named(paper, "fast-torch-fp32"), named(paper, "unet")
    assert paper.macs(paper.contestants[0], 512, 1) == paper.macs(fast, 512, 1)
    # 14.23 GMAC by hand, from the table of layers.
    assert abs(paper.macs(fast, 512, 1) / 1e9 - 14.23) < 0.005
    assert paper.macs(fast, 256, 8) == 2 * paper.macs(fast, 512, 1)
    assert paper.macs(unet, 512, 1) > 10 * paper.macs(fast, 512, 1)


def test_the_callers_network_is_left_as_it_was():
    network = DSSNet(SMALL).double().train()
    benchmark.Arena(network, CPU)
    assert network.stem.bias.dtype == torch.float64
    assert network.stem.bias.requires_grad
    assert network.training


# --- rounds --------------------------------------------------------------------------------------


def test_contestants_take_turns():
    calls = []
    durations = {"slow": 8.0, "fast": 1.0}

    def timed(run):
        return run()

    def contestant(name):
        def run():
            calls.append(name)
            return durations[name]

        return run

    timings = benchmark.race({name: contestant(name) for name in durations}, timed, 3, 0)
    # A warm-up of each; then rounds, in which the fast one is called twice.
    assert calls == ["slow", "fast"] + ["slow", "fast", "fast"] * 3
    assert timings["slow"].seconds == (8.0,) * 3
    assert timings["fast"].speed_up(timings["slow"]) == 8


def test_rounds_go_on_for_the_time_asked():
    run = {"a": lambda: 1.0}
    assert len(benchmark.race(run, lambda f: f(), 2, 0)["a"].seconds) == 2
    assert len(benchmark.race(run, lambda f: f(), 2, 1e9)["a"].seconds) == 20
    with pytest.raises(InputError, match="rounds must be at least 1"):
        benchmark.race(run, lambda f: f(), 0, 0)


def test_median_spread_and_ratio():
    own = benchmark.Timing((1.0, 2.0, 3.0, 4.0, 5.0))
    assert own.median == 3
    assert own.spread == pytest.approx(2 / 3)
    # Of ratios within rounds, not of medians: drift that hits both leaves it alone.
    base = benchmark.Timing((10.0, 20.0, 30.0, 40.0, 50.0))
    assert own.speed_up(base) == 10
    assert benchmark.Timing((2.0,)).spread == 0


# --- the command ---------------------------------------------------------------------------------


def main(*arguments: object) -> int:
    return cli.main("bench", bench.make_parser, bench.body, [str(a) for a in arguments])


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "small.pt"
    torch.save(released_state(benchmark.random_network(SMALL)), path)
    return path


QUICK = ["--device", "cpu", "--threads", 1, "--rounds", 2, "--seconds", 0, "--batches", 1, 2]


def test_the_command_prints_json(checkpoint, capsys):
    options = ["--sizes", 32, "--only", "fast-torch-fp32", "fast-torch-bf16", "--json"]
    assert main(checkpoint, *QUICK, *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["threads"] == 1
    rows = report["results"]
    assert [(row["batch"], row["contestant"]) for row in rows] == [
        (batch, name)
        for batch in (1, 2)
        for name in ("reference", "fast-torch-fp32", "fast-torch-bf16")
    ]
    for row in rows:
        assert row["rounds"] == 2
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median_ms"] * 1e3)
        assert row["gmac_per_second"] > 0
        assert row["speed_up"] > 0
        assert row["spread"] >= 0
    assert rows[0]["speed_up"] == 1
    assert 0 < rows[1]["relative_error"] <= 2e-5 < rows[2]["relative_error"]


@pytest.mark.parametrize("form", [[], ["--markdown"]])
def test_the_command_prints_tables(checkpoint, capsys, form):
    assert main(checkpoint, *QUICK, "--sizes", 32, 48, "--only", "fast-torch-fp32", *form) == 0
    printed = capsys.readouterr().out
    for size in (32, 48):
        for batch in (1, 2):
            assert printed.count(f"{size} x {size} px, batch {batch}") == 1
    assert printed.count("fast-torch-fp32") == 4
    assert printed.count("speed-up") == 4
    if form:
        tables = [line for line in printed.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in tables} == {8}


def test_a_wrong_answer_is_reported_not_timed(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "FP32_TOLERANCE", -1.0)
    options = ["--sizes", 32, "--skip", "reference-compile", "unet", "--json"]
    # Not even the baseline is right then, and there is nothing to compare with.
    assert main(checkpoint, *QUICK, *options) == 1
    assert "reference: relative error of the logits is" in capsys.readouterr().err


def test_the_command_lists_contestants(checkpoint, capsys):
    assert main(checkpoint, "--list", "--device", "cpu", "--skip", "unet") == 0
    names = capsys.readouterr().out.split()
    assert names[0] == "reference"
    assert "fast-torch-fp32" in names
    assert "unet" not in names


def test_the_command_draws(checkpoint, tmp_path):
    picture = tmp_path / "speed.png"
    options = ["--sizes", 32, 48, "--only", "fast-torch-fp32", "--plot", picture]
    assert main(checkpoint, *QUICK, *options) == 0
    width, height = Image.open(picture).size
    assert height > width / 2


def test_bars_are_images_a_second_of_those_who_ran(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: figures.append(self))
    rows = [
        {"contestant": "a", "size": 32, "batch": 1, "images_per_second": 2.5},
        {"contestant": "b", "size": 32, "batch": 1, "skipped": "needs luck"},
        {"contestant": "a", "size": 32, "batch": 8, "images_per_second": 5.0},
    ]
    bench_plot.draw(rows, tmp_path / "speed.png")
    shown = {
        panel.get_title(): [bar.get_width() for bar in panel.patches] for panel in figures[0].axes
    }
    assert shown == {"32 x 32 px, batch 1": [2.5], "32 x 32 px, batch 8": [5.0]}
    assert [text.get_text() for text in figures[0].axes[0].get_yticklabels()] == ["a"]


def test_drawing_without_matplotlib_fails_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main("--plot", "speed.png") == 1
    assert capsys.readouterr().err == (
        "dssnet_fast.bench: error: --plot needs matplotlib: pip install matplotlib\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "speed.jpg"], "--plot must end in .png, got speed.jpg"),
        (["--only", "tensorrt"], "no contestant tensorrt here; there are: reference,"),
        (["--sizes", "100"], "--sizes must be a positive multiple of 16, got 100"),
        (["--batches", "0"], "--batches must be at least 1, got 0"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "tpu"], "device 'tpu'"),
        (["missing.pt"], "missing.pt"),
    ],
)
def test_the_command_fails_in_one_line(capsys, arguments, message):
    assert main(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("dssnet_fast.bench: error: ")
    assert message in error
    assert error.count("\n") == 1
