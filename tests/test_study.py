"""Studies: what they compare, for how long, that runs are shared and continued, what they tell.

Runs are tiny: 9 and 8 channels, one block, crops of 32 px.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("kornia")
pytest.importorskip("torchmetrics")

from conftest import disks

from dssnet_fast import FastDSSNet, accuracy, separate
from dssnet_fast.image_kinds import KINDS
from dssnet_fast.python_ref import training, unet
from dssnet_fast.python_ref.config import BLOCKS, DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.training import TrainingOptions
from dssnet_fast.study import budget, figure, grids, networks, results
from dssnet_fast.study.__main__ import STUDIES, main
from dssnet_fast.study.data import StudyData

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = DSSNetConfig(super_resolution=False)
OPTIONS = TrainingOptions(sampling="area", average=0.995)
SMALL = ["--width", "9", "--features", "8", "--blocks", "1", "--no-super-resolution"]
SMALL += ["--crop", "32", "--batch", "2", "--device", "cpu", "--precision", "fp32"]
SMALL += ["--learning-rate", "0.01", "--average", "0.9"]
SHORT = [*SMALL, "--epochs", "0.5"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Curves of single runs take longer than training here, and seven timed rounds, too."""
    monkeypatch.setattr(training, "write_figure", lambda path, history: None)
    monkeypatch.setattr(budget, "ROUNDS", 1)


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory) -> Path:
    """Bright disks on dark ground, and dark ones on light and colourful ground."""
    folder, random = tmp_path_factory.mktemp("kinds"), np.random.default_rng(3)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(16):
        image, labels = disks(random, 40, 40)
        image = 255 - image if number % 2 else image
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def scores(out: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.rglob("scores.json")}


# --- what is compared ----------------------------------------------------------------------------


def differences(variant: grids.Variant) -> dict[str, object]:
    """What a variant changes in the network and the recipe that it was made of."""
    found = {}
    for values, base in ((variant.config, CONFIG), (variant.options, OPTIONS)):
        found |= {
            field.name: getattr(values, field.name)
            for field in dataclasses.fields(values)
            if getattr(values, field.name) != getattr(base, field.name)
        }
    return found


def test_every_study_has_a_grid_and_a_description():
    assert list(STUDIES) == list(grids.GRIDS)
    for name, grid in grids.GRIDS.items():
        names = [variant.name for variant in grid(CONFIG, OPTIONS)]
        assert len(set(names)) == len(names) > 1, name


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ("width", {str(n): {"width": n} for n in (9, 12, 15, 18, 21, 24, 27, 30, 33, 36)}),
        ("depth", {str(n): {"blocks": n} for n in range(4, 14)}),
        ("blocks", {name: {"block": name} for name in BLOCKS}),
        (
            "supervisions",
            {
                "none": {"edge": False},
                "super-resolution": {"super_resolution": True, "edge": False},
                "edge": {},
                "both": {"super_resolution": True},
            },
        ),
        (
            "recipe",
            {
                "unchanged": {},
                "sampling images": {"sampling": "images"},
                "average 0": {"average": 0.0},
                "dice 1": {"dice": 1.0},
                "edge loss l2": {"edge_loss": "l2"},
                "augment off": {"augment": False},
                "learning rate 0.0003": {"learning_rate": 3e-4},
                "learning rate 0.003": {"learning_rate": 3e-3},
            },
        ),
    ],
)
def test_a_study_changes_what_its_rows_say_and_nothing_else(study, expected):
    base = {"width": CONFIG.width, "blocks": CONFIG.blocks, "block": CONFIG.block}
    found = {v.name: differences(v) for v in grids.GRIDS[study](CONFIG, OPTIONS)}
    wanted = {
        name: {key: value for key, value in changes.items() if base.get(key) != value}
        for name, changes in expected.items()
    }
    assert found == wanted


def test_the_other_networks_have_no_branches():
    found = {v.network: v for v in grids.networks(CONFIG, OPTIONS)}
    assert list(found) == ["DSSNet", "UNet", "UNet++", "PSPNet"]
    assert found["DSSNet"].config == CONFIG
    for name in ("UNet", "UNet++", "PSPNet"):
        assert not found[name].config.edge
        assert not found[name].config.super_resolution


def test_kinds_are_trained_alone_and_together():
    assert [v.images for v in grids.kinds(CONFIG, OPTIONS)] == ["all", *KINDS]


def variant(**changes) -> grids.Variant:
    values = {"name": "a", "config": CONFIG, "options": OPTIONS, **changes}
    return grids.Variant(**values)


def test_a_folder_is_named_by_all_that_a_run_depends_on():
    others = {
        "in_channels": 1,
        "classes": 3,
        "width": 9,
        "features": 8,
        "blocks": 1,
        "block": "basic",
        "super_resolution": True,
        "edge": False,
        "upsampling": "pixel_shuffle",
        "batch": 1,
        "crop": 64,
        "optimizer": "adam",
        "learning_rate": 0.5,
        "clip_norm": 2.0,
        "augment": False,
        "sampling": "images",
        "average": 0.5,
        "dice": 0.5,
        "edge_loss": "l2",
        "precision": "bf16",
        "labels": "classes",
    }
    fields = {field.name for kind in (CONFIG, OPTIONS) for field in dataclasses.fields(kind)}
    assert fields == {*others, "epochs", "steps", "seed"}
    names = {variant().run_name(5, 0), variant().run_name(6, 0), variant().run_name(5, 1)}
    names |= {variant(network="UNet").run_name(5, 0), variant(images="stained").run_name(5, 0)}
    keys = {variant().key}
    for name, value in others.items():
        part = "config" if hasattr(CONFIG, name) else "options"
        base = CONFIG if part == "config" else OPTIONS
        changed = variant(**{part: dataclasses.replace(base, **{name: value})})
        names.add(changed.run_name(5, 0))
        keys.add(changed.key)
    assert len(names) == 5 + len(others)
    assert len(keys) == 1 + len(others)


def test_what_a_variant_is_called_and_its_own_budget_do_not_count():
    options = dataclasses.replace(OPTIONS, epochs=7, steps=8, seed=9)
    assert variant().run_name(5, 0) == variant(name="b", options=options).run_name(5, 0)
    assert variant().run_options(5, 3).steps == 5
    assert variant().run_options(5, 3).seed == 3


# --- for how long --------------------------------------------------------------------------------


def test_equal_time_is_as_many_steps_as_fit():
    assert budget.steps_in_minutes(2, 0.5) == 240
    assert budget.steps_in_minutes(2, 0.7) == 171  # 171.4
    assert budget.steps_in_minutes(0.001, 5) == 1


def test_equal_steps_are_those_of_the_recipe(disk_folder):
    data = StudyData(disk_folder, 0.2, 3)
    images = len(data.training("all"))
    options = TrainingOptions(crop=32, batch=2, sampling="area")
    # Of an image of 44 x 52 px two crops of 32 x 32 px.
    assert budget.steps_in_epochs(1, data, options) == images
    assert budget.steps_in_epochs(2.5, data, options) == round(2.5 * images)
    by_image = dataclasses.replace(options, sampling="images")
    assert budget.steps_in_epochs(2, data, by_image) == 2 * (images // 2)
    assert budget.steps_in_epochs(0.001, data, options) == 1


def test_steps_are_timed_in_turns_and_by_their_medians(monkeypatch):
    monkeypatch.setattr(budget, "ROUNDS", 5)
    now, turns = [0.0], []
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])

    def trainer(name: str, costs: list[float]) -> SimpleNamespace:
        left = iter(costs)

        def step(images, labels):
            turns.append(name)
            now[0] += next(left)

        return SimpleNamespace(
            loader=[(0, 0)],
            network=SimpleNamespace(train=lambda: None),
            process=SimpleNamespace(device=torch.device("cpu")),
            step=step,
        )

    # The first two are warm-up; each has one round that something else slowed down.
    fast, slow = [9, 9, 1, 1, 8, 1, 2], [9, 9, 3, 3, 3, 4, 80]
    found = budget.median_seconds([trainer("fast", fast), trainer("slow", slow)])
    assert found == [1, 3]
    assert turns == ["fast", "slow"] * 7


# --- networks ------------------------------------------------------------------------------------


def test_other_sizes_are_extended_and_cropped(monkeypatch):
    monkeypatch.setattr(unet, "WIDTHS", (4, 4, 4, 4, 4))
    network = networks.MAKERS["UNet"](CONFIG)
    image = torch.randn(1, 3, 40, 24)
    with torch.no_grad():
        logits = network.logits(image)
        expected = network.network(torch.nn.functional.pad(image, (0, 8, 0, 8)))
    assert logits.shape == (1, 2, 40, 24)
    assert torch.equal(logits, expected[..., :40, :24])
    output = network(image)
    assert torch.equal(output.segmentation, logits)
    assert output.reconstruction is None
    assert output.edge is None


def test_sizes_are_those_of_the_segmentation_alone():
    plain = dataclasses.replace(CONFIG, edge=False)
    assert networks.parameters("DSSNet", CONFIG) == networks.parameters("DSSNet", plain) == 1496840
    assert networks.parameters("UNet", plain) == sum(p.numel() for p in unet.UNet().parameters())
    assert abs(networks.multiply_accumulates("DSSNet", CONFIG, 512) / 1e9 - 14.19) <= 0.01
    # Four times the pixels, four times the work.
    large, small = (networks.multiply_accumulates("UNet", plain, size) for size in (128, 64))
    assert large == 4 * small > 0


@pytest.mark.parametrize("name", ["UNet++", "PSPNet"])
def test_networks_of_the_library_answer_for_every_size(name):
    pytest.importorskip("segmentation_models_pytorch")
    network = networks.MAKERS[name](CONFIG).train()
    output = network(torch.randn(2, 3, 40, 72))
    assert output.segmentation.shape == (2, 2, 40, 72)
    output.segmentation.sum().backward()
    assert networks.multiply_accumulates(name, CONFIG, 64) > 0


def test_a_missing_library_is_named_before_the_work(disk_folder, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    library = "segmentation_models_pytorch"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == library else find(name, *a)
    )
    assert main(["networks", str(disk_folder), "--out", str(tmp_path), *SHORT]) == 1
    assert f"{library}: not installed; install with: pip install 'dssnet_fast[study]'" in (
        capsys.readouterr().err
    )
    assert not list((tmp_path / "runs").iterdir())


# --- a whole study -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studied(disk_folder, tmp_path_factory):
    """Folder of a study of two rows from two seeds, and what it printed."""
    out = tmp_path_factory.mktemp("study") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_figure", lambda path, history: None)
        patch.setattr(budget, "ROUNDS", 1)
        patch.setattr(results, "SIZE", 64)
        code = main(arguments(disk_folder, out))
    assert code == 0
    return out


def arguments(data: Path, out: Path, study: str = "supervisions") -> list[str]:
    rows = {"supervisions": ["none", "edge"], "recipe": ["unchanged"]}[study]
    return [study, str(data), "--out", str(out), "--only", *rows, *SMALL, "--epochs", "4"]


def test_a_study_leaves_its_results_and_its_runs(studied):
    names = {path.name for path in (studied / "supervisions").iterdir()}
    assert names == {"table.md", "runs.csv", "figure.png", "seconds_per_step.json"}
    assert (studied / "supervisions" / "figure.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted(path.name for path in (studied / "runs").iterdir())
    assert len(runs) == 4
    assert sum("-edge-" in name for name in runs) == 2
    assert sum("-seed-1-" in name for name in runs) == 2
    for name in runs:
        assert {"last.pt", "log.csv", "scores.json"} <= {
            path.name for path in (studied / "runs" / name).iterdir()
        }


def test_the_csv_has_a_line_a_run(studied):
    found = lines(studied / "supervisions" / "runs.csv")
    assert [(line["variant"], line["seed"]) for line in found] == [
        ("none", "0"),
        ("none", "1"),
        ("edge", "0"),
        ("edge", "1"),
    ]
    seconds = json.loads((studied / "supervisions" / "seconds_per_step.json").read_text())
    for line in found:
        expected = scores(studied)[line["run"]]["scores"]["all"]
        assert float(line["mean_iou"]) == expected["mean_iou"]
        assert float(line["iou_nucleus"]) == expected["iou"]["nucleus"]
        assert float(line["ap_50"]) == expected["ap"]["0.50"]
        assert float(line["seconds_per_step"]) in seconds.values()
        assert int(line["steps"]) == scores(studied)[line["run"]]["options"]["steps"]


def test_the_table_has_means_and_spreads_under_how_it_was_made(studied, disk_folder):
    text = (studied / "supervisions" / "table.md").read_text()
    assert f"python -m dssnet_fast.study supervisions {disk_folder}" in text
    assert "learning rate 0.01" in text
    assert "equal steps, those of 4 epochs" in text
    found = lines(studied / "supervisions" / "runs.csv")
    for name in ("none", "edge"):
        values = [float(line["mean_iou"]) for line in found if line["variant"] == name]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | 2 | "))
        mean, low, high = sum(values) / 2, min(values), max(values)
        assert f"| {mean:.4f} ({low:.4f}–{high:.4f}) |" in row


def test_scores_are_those_of_the_last_weights(studied, disk_folder):
    """As `evaluate` finds them, with another implementation of the network."""
    data = StudyData(disk_folder, 0.2, 3)
    for name, saved in scores(studied).items():
        net = FastDSSNet.from_checkpoint(studied / "runs" / name / "last.pt", device="cpu")
        contender = [accuracy.Contender("net", net, separate.choose("no", has_edges=True))]
        first, *rest = accuracy.evaluate(contender, data.validation.pairs, data.labelling)
        counts = sum((image.counts[0] for image in rest), first.counts[0])
        expected = counts.scores(data.class_names)
        assert abs(saved["scores"]["all"]["mean_iou"] - expected["mean_iou"]) <= 2e-3
        assert abs(saved["scores"]["all"]["ap"]["0.50"] - expected["ap"]["0.50"]) <= 0.05
        assert expected["mean_iou"] > 0.5  # it has learnt something


def test_a_finished_study_trains_nothing(studied, disk_folder, monkeypatch):
    def no_step(*_):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(training.Trainer, "step", no_step)
    monkeypatch.setattr(results, "SIZE", 64)
    table = (studied / "supervisions" / "table.md").read_bytes()
    assert main(arguments(disk_folder, studied)) == 0
    assert (studied / "supervisions" / "table.md").read_bytes() == table


def test_studies_share_runs(studied, disk_folder, monkeypatch):
    monkeypatch.setattr(results, "SIZE", 64)
    before = {path: path.stat().st_mtime_ns for path in studied.rglob("last.pt")}
    assert main(arguments(disk_folder, studied, "recipe")) == 0
    assert {path: path.stat().st_mtime_ns for path in studied.rglob("last.pt")} == before
    edge = [v for v in lines(studied / "supervisions" / "runs.csv") if v["variant"] == "edge"]
    unchanged = lines(studied / "recipe" / "runs.csv")
    assert [line["run"] for line in unchanged] == [line["run"] for line in edge]
    assert [line["mean_iou"] for line in unchanged] == [line["mean_iou"] for line in edge]


def test_an_interrupted_study_ends_as_an_uninterrupted_one(
    studied, disk_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "SIZE", 64)
    step, taken = training.Trainer.step, [0]

    def interrupted(self, *batch):
        taken[0] += 1
        if self.options.seed == 1 and self.epoch == 2:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(training.Trainer, "step", interrupted)
    assert main(arguments(disk_folder, tmp_path)) == 130
    monkeypatch.setattr(training.Trainer, "step", step)
    done = scores(tmp_path)
    assert len(done) == 2  # those of the first seed
    assert all(scores(studied)[name] == saved for name, saved in done.items())
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("scores.json")}
    assert main(arguments(disk_folder, tmp_path)) == 0
    assert scores(tmp_path) == scores(studied)
    assert (
        kept.items()
        <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("scores.json")}.items()
    )


def test_equal_time_gives_the_slower_network_fewer_steps(disk_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(unet, "WIDTHS", (4, 4, 4, 4, 4))
    monkeypatch.setattr(budget, "median_seconds", lambda trainers: [0.5, 2.0])
    out = ["--out", str(tmp_path), "--only", "DSSNet", "UNet", "--seeds", "4"]
    assert main(["networks", str(disk_folder), *out, *SMALL, "--minutes", "0.1"]) == 0
    found = {line["variant"]: line for line in lines(tmp_path / "networks" / "runs.csv")}
    assert {name: line["steps"] for name, line in found.items()} == {"DSSNet": "12", "UNet": "3"}
    monkeypatch.setattr(budget, "median_seconds", lambda trainers: [9.0, 9.0])
    assert main(["networks", str(disk_folder), *out, *SMALL, "--minutes", "0.1"]) == 0
    again = {line["variant"]: line for line in lines(tmp_path / "networks" / "runs.csv")}
    assert again == found


def test_kinds_are_tested_apart(two_kinds, tmp_path):
    out = ["--out", str(tmp_path), "--seeds", "0", "--only", "all", "fluorescence", "stained"]
    assert main(["kinds", str(two_kinds), *out, *SHORT, "--validation", "0.4"]) == 0
    found = lines(tmp_path / "kinds" / "runs.csv")
    assert [(line["variant"], line["tested_on"]) for line in found] == [
        (trained, tested)
        for trained in ("all", "fluorescence", "stained")
        for tested in ("all", "fluorescence", "stained")
    ]
    for line in found:
        expected = scores(tmp_path)[line["run"]]["scores"][line["tested_on"]]
        assert float(line["mean_iou"]) == expected["mean_iou"]
    assert len({line["mean_iou"] for line in found}) >= 3
    text = (tmp_path / "kinds" / "table.md").read_text()
    assert "| kinds | tested on | seeds |" in text
    assert "| stained | bright field | 0 | - | - | - |" in text
    data = StudyData(two_kinds, 0.4, 3)
    parts = [data.training(kind) for kind in ("fluorescence", "stained")]
    assert sorted(p.image.name for part in parts for p in part.pairs) == sorted(
        p.image.name for p in data.training("all").pairs
    )
    assert {int(p.image.stem) % 2 for p in parts[0].pairs} == {0}
    for kind, part in zip(("fluorescence", "stained"), parts, strict=True):
        run = next(line["run"] for line in found if line["variant"] == kind)
        saved = torch.load(tmp_path / "runs" / run / "last.pt", weights_only=True)
        assert saved["identity"]["training images"].startswith(f"{len(part)} of ")


def test_a_kind_that_is_missing_is_named(two_kinds):
    with pytest.raises(InputError, match=r"no training image is of the kind 'bright field'"):
        StudyData(two_kinds, 0.4, 3).training("bright field")


def test_a_run_that_diverges_is_told_and_the_others_go_on(
    disk_folder, tmp_path, monkeypatch, capsys
):
    run = training.Trainer.run

    def diverging(self):
        if self.options.seed == 0:
            raise InputError("the loss became nan in epoch 1; lower the learning rate")
        return run(self)

    monkeypatch.setattr(training.Trainer, "run", diverging)
    out = ["--out", str(tmp_path), "--only", "edge"]
    assert main(["supervisions", str(disk_folder), *out, *SHORT]) == 1
    captured = capsys.readouterr()
    assert "dssnet_fast.study: edge, seed 0: the loss became nan in epoch 1" in captured.err
    assert "| edge | 1 | 0." in captured.out
    assert [line["seed"] for line in lines(tmp_path / "supervisions" / "runs.csv")] == ["1"]


# --- results -------------------------------------------------------------------------------------


def row(name: str, **changes) -> results.Row:
    found = {
        seed: {"mean_iou": value, "iou": {"nucleus": value / 2}, "ap": {"0.50": value / 4}}
        for seed, value in ((0, 0.8), (3, 0.6))
    }
    values = {
        "name": name,
        "tested": "all",
        "parameters": 1234567,
        "macs": 14_190_000_000,
        "steps": 70,
        "seconds": 0.1234,
        "scores": found,
        "runs": {0: "folder-a", 3: "folder-b"},
    }
    return results.Row(**{**values, **changes})


def test_markdown_of_rows():
    text = results.markdown([row("a"), row("b", scores={})], "width", ["One.", "Two."])
    assert text.splitlines() == [
        "One.",
        "",
        "Two.",
        "",
        "| width | seeds | mean IoU | IoU nucleus | AP 0.5 | parameters | GMAC at 512 | steps "
        "| s a step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| a | 2 | 0.7000 (0.6000–0.8000) | 0.3500 (0.3000–0.4000) | 0.1750 (0.1500–0.2000) "
        "| 1,234,567 | 14.19 | 70 | 0.123 |",
        "| b | 0 | - | - | - | 1,234,567 | 14.19 | 70 | 0.123 |",
    ]


def test_csv_of_rows():
    text = results.as_csv([row("a")]).splitlines()
    assert text[1] == "a,all,0,0.8,0.4,0.2,1234567,14190000000,70,0.1234,folder-a"
    assert text[2] == "a,all,3,0.6,0.3,0.15,1234567,14190000000,70,0.1234,folder-b"


def test_the_figure_grows_with_its_rows(tmp_path):
    figure.draw([row("a")], "one", tmp_path / "one.png")
    several = [row(name, macs=10**9 * n) for n, name in enumerate("abcdef", 1)]
    figure.draw([*several, row("none", scores={})], "six", tmp_path / "six.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "six.png") as six:
        assert one.width == six.width
        assert six.height - one.height == 5 * 32


# --- failing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "bth"], "--only bth: supervisions has the rows none, super-resolution, edge"),
        (["--seeds", "1", "1"], "--seeds must differ, got 1, 1"),
        (["--seeds", "-1"], "seed must be from 0 to 2**32 - 1, got -1"),
        (["--width", "5"], "config: width must be an integer from 9 to 36, got 5"),
        (["--crop", "20"], "crop must be a multiple of 8 from 16 on, got 20"),
        (["--batch", "99"], "image(s) are fewer than the batch of 99"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_settings_that_cannot_be_are_refused(disk_folder, tmp_path, capsys, options, message):
    assert main(["supervisions", str(disk_folder), "--out", str(tmp_path), *SHORT, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of the arguments --epochs --minutes is required"),
        (["--epochs", "1", "--minutes", "1"], "not allowed with argument"),
        (["--epochs", "0"], "must be a number above 0, got 0"),
        (["--minutes", "nan"], "must be a number above 0, got nan"),
    ],
)
def test_a_study_needs_one_budget(disk_folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        main(["width", str(disk_folder), "--out", str(tmp_path), *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused(disk_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["width", str(disk_folder), "--out", str(tmp_path / "file"), *SHORT]) == 1
    assert "is a file; name a folder" in capsys.readouterr().err
