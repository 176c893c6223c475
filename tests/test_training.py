"""Training: what a run leaves, that it learns, resumes, fails cleanly, and several processes.

Runs are tiny: 9 and 8 channels, one block, crops of 32 px.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("torchmetrics")

from dssnet_fast import cli
from dssnet_fast import train as command
from dssnet_fast.python_ref import hardware, processes, training
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.data import Labelling, Samples, find_pairs, split
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import DSSNet, DSSNetOutput
from dssnet_fast.python_ref.released import load_released, released_state
from dssnet_fast.python_ref.training import TrainingOptions

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).parent
CONFIG = DSSNetConfig(width=9, features=8, blocks=1)
PLAIN = DSSNetConfig(width=9, features=8, blocks=1, super_resolution=False, edge=False)
OPTIONS = TrainingOptions(epochs=2, batch=2, crop=32, learning_rate=0.01, seed=5)
NAMES = ["background", "nucleus"]
CPU = processes.Process(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes longer than training here; `finished`, made before this, has a figure."""
    monkeypatch.setattr(training, "write_figure", lambda path, history: None)


def run(folder: Path, out: Path, config=PLAIN, workers=0, **changes) -> float:
    options = dataclasses.replace(OPTIONS, **changes)
    parts = split(find_pairs(folder), 0.3)
    return training.train(config, options, *parts, NAMES, out, device="cpu", workers=workers)


def checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def rows(out: Path) -> list[dict[str, float]]:
    with open(out / "log.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def same_tensors(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def python(*arguments: object, timeout: int = 240) -> subprocess.CompletedProcess:
    """Run Python on one thread with this checkout's package."""
    root = str(TESTS.parent)
    paths = [root] if importlib.util.find_spec("dssnet_fast").origin.startswith(root) else []
    paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# --- one run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(disk_folder, tmp_path_factory):
    """The folder of a short run of the whole network, and its best mean IoU."""
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    return out, run(disk_folder, out, CONFIG, epochs=3)


def test_a_run_leaves_its_files_and_nothing_else(finished):
    out, _ = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"last.pt", "best.pt", "log.csv", "curves.png", "events"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any(file.stat().st_size > 200 for file in (out / "events").iterdir())


def test_the_log_has_a_row_an_epoch(finished):
    out, best = finished
    log = rows(out)
    assert list(log[0]) == [
        "epoch",
        "loss",
        "loss_segmentation",
        "loss_reconstruction",
        "loss_edge",
        "mean_iou",
        "iou_background",
        "iou_nucleus",
        "learning_rate",
    ]
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert max(row["mean_iou"] for row in log) == best
    for row in log:
        parts = row["loss_segmentation"] + 0.25 * row["loss_reconstruction"]
        assert abs(row["loss"] - parts - 0.4 * row["loss_edge"]) <= 1e-5
        assert abs(row["mean_iou"] - (row["iou_background"] + row["iou_nucleus"]) / 2) <= 1e-9
    # A cosine over all steps: half-way down after half of them.
    expected = [0.01 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)]
    assert np.allclose([row["learning_rate"] for row in log], expected, rtol=1e-9)


def test_clipping_bounds_the_steps(disk_folder, tmp_path):
    """With next to no gradient only the weight decay moves the weights."""
    torch.manual_seed(OPTIONS.seed)
    start = released_state(DSSNet(PLAIN))

    def furthest(name: str, clip_norm: float) -> float:
        run(disk_folder, tmp_path / name, epochs=1, clip_norm=clip_norm)
        state = checkpoint(tmp_path / name / "last.pt")["model"]
        return max(float((state[key] - value).abs().max()) for key, value in start.items())

    assert furthest("clipped", 1e-6) <= 1e-4
    assert furthest("free", 0.0) >= 1e-3


def test_events_hold_the_log(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = finished
    events = EventAccumulator(str(out / "events")).Reload()
    for name in ("loss", "mean_iou", "iou_nucleus", "learning_rate"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [
            (row["epoch"], pytest.approx(row[name], rel=1e-6, abs=1e-9)) for row in rows(out)
        ]
    assert len(events.Scalars("seconds")) == 3


def test_checkpoints_are_readable_as_released_ones(finished):
    out, best = finished
    saved = checkpoint(out / "best.pt")
    assert DSSNetConfig.from_dict(saved["config"]) == CONFIG
    assert saved["class_names"] == NAMES
    assert "pre.con.weight_g" in saved["model"]
    load_released(DSSNet(CONFIG), saved["model"])
    log = rows(out)
    assert log[saved["epoch"] - 1]["mean_iou"] == best == saved["best"]
    assert checkpoint(out / "last.pt")["epoch"] == 3


def test_the_best_checkpoint_scores_its_mean_iou(finished, disk_folder):
    """The logged IoU, computed anew in plain NumPy from best.pt."""
    out, best = finished
    network = DSSNet(CONFIG)
    load_released(network, checkpoint(out / "best.pt")["model"])
    _, validation = split(find_pairs(disk_folder), 0.3)
    predicted, true = [], []
    for image, labels in Samples(validation, 3, Labelling("instances", 2)):
        height, width = labels.shape
        padded = np.full((-(-height // 8) * 8, -(-width // 8) * 8, 3), 128, np.uint8)
        padded[:height, :width] = image
        x = (torch.from_numpy(padded).permute(2, 0, 1)[None].float() - 128) / 128
        with torch.no_grad():
            predicted.append(network(x).segmentation[0].argmax(0)[:height, :width].numpy().ravel())
        true.append((labels > 0).ravel())
    predicted, true = np.concatenate(predicted), np.concatenate(true)
    scores = [
        ((predicted == c) & (true == c)).sum() / ((predicted == c) | (true == c)).sum()
        for c in (0, 1)
    ]
    assert abs(np.mean(scores) - best) <= 1e-3


def test_a_short_run_learns(disk_folder, tmp_path):
    best = run(disk_folder, tmp_path, optimizer="adam", learning_rate=0.01, epochs=12, crop=40)
    assert best > 0.8


def test_stderr_of_a_file_has_one_line_an_epoch(disk_folder, tmp_path, capfd):
    run(disk_folder, tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2: loss ")


def test_same_seed_same_run(disk_folder, tmp_path):
    for name, changes in {"a": {}, "b": {}, "c": {"seed": 6}, "d": {"augment": False}}.items():
        run(disk_folder, tmp_path / name, epochs=1, **changes)
    weights = {name: checkpoint(tmp_path / name / "last.pt")["model"] for name in "abcd"}
    assert same_tensors(weights["a"], weights["b"])
    assert not same_tensors(weights["a"], weights["c"])
    assert not same_tensors(weights["a"], weights["d"])


def test_steps_end_the_run_within_an_epoch(disk_folder, tmp_path):
    samples = Samples(find_pairs(disk_folder)[:6], 3, Labelling("instances", 2))
    options = dataclasses.replace(OPTIONS, epochs=9, steps=5)  # of 3 steps each
    trainer = training.Trainer(PLAIN, options, samples, samples, NAMES, tmp_path, CPU)
    losses = {0: [], 1: []}
    step = trainer.step

    def noted(*batch):
        loss = step(*batch)
        losses[trainer.epoch].append(loss.total.item())
        return loss

    trainer.step = noted
    trainer.run()
    assert [len(some) for some in losses.values()] == [3, 2]
    assert trainer.schedule.last_epoch == trainer.schedule.T_max == 5
    assert trainer.schedule.get_last_lr()[0] <= 1e-9
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]
    means = [np.mean(some) for some in losses.values()]
    assert np.allclose([row["loss"] for row in rows(tmp_path)], means, rtol=1e-5)


def test_workers_change_nothing(disk_folder, tmp_path):
    run(disk_folder, tmp_path / "here")
    run(disk_folder, tmp_path / "workers", workers=1)
    here, workers = (checkpoint(tmp_path / name / "last.pt") for name in ("here", "workers"))
    assert same_tensors(here["model"], workers["model"])


def test_bf16_keeps_parameters_in_float32(disk_folder, tmp_path, monkeypatch):
    seen = []
    loss = training.dssnet_loss
    monkeypatch.setattr(
        training, "dssnet_loss", lambda output, *a: (seen.append(output), loss(output, *a))[1]
    )
    run(disk_folder, tmp_path, CONFIG, precision="bf16", epochs=1)
    assert {part.dtype for output in seen for part in output} == {torch.bfloat16}
    saved = checkpoint(tmp_path / "last.pt")
    assert {value.dtype for value in saved["model"].values()} == {torch.float32}
    assert math.isfinite(saved["history"][0]["loss"])


def test_the_papers_recipe_is_the_default(disk_folder, tmp_path):
    options = TrainingOptions()
    assert (options.epochs, options.batch, options.crop) == (400, 4, 512)
    samples = Samples(find_pairs(disk_folder), 3, Labelling("instances", 2))
    trainer = training.Trainer(
        PLAIN, dataclasses.replace(options, crop=32), samples, samples, NAMES, tmp_path, CPU
    )
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    group = trainer.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 5e-4, 1e-3)
    assert trainer.schedule.T_max == 400 * 3
    assert trainer.schedule.eta_min == 0


def test_the_average_is_what_is_saved_and_validated(disk_folder, tmp_path):
    """The average, computed anew from the weights after every step."""
    seen = []

    class Watched(training.Trainer):
        def step(self, images, labels):
            loss = super().step(images, labels)
            seen.append(released_state(self.network)["pre.con.bias"].double().clone())
            return loss

    parts = split(find_pairs(disk_folder), 0.3)
    samples = [Samples(part, 3, Labelling("instances", 2)) for part in parts]
    options = dataclasses.replace(OPTIONS, average=0.4)
    best = Watched(PLAIN, options, *samples, NAMES, tmp_path, CPU).run()
    average = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        keep = min(0.4, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * weights
    saved = checkpoint(tmp_path / "last.pt")
    assert saved["averaged"] == len(seen) > 2
    assert torch.allclose(saved["model"]["pre.con.bias"].double(), average, rtol=1e-5, atol=1e-8)
    assert torch.equal(saved["trained"]["pre.con.bias"].double(), seen[-1])
    network = DSSNet(PLAIN)
    load_released(network, checkpoint(tmp_path / "best.pt")["model"])
    probe = training.Trainer(PLAIN, OPTIONS, *samples, NAMES, tmp_path / "probe", CPU)
    probe.network = network
    assert probe._validate()["mean_iou"] == best


def test_a_run_with_an_average_resumes(disk_folder, tmp_path):
    run(disk_folder, tmp_path / "whole", epochs=3, average=0.9)
    parts = split(find_pairs(disk_folder), 0.3)
    samples = [Samples(part, 3, Labelling("instances", 2)) for part in parts]
    options = dataclasses.replace(OPTIONS, epochs=3, average=0.9)

    def trainer():
        return training.Trainer(PLAIN, options, *samples, NAMES, tmp_path / "parts", CPU)

    first = trainer()
    first.history.append(first._one_epoch())
    first._save(improved=True)
    trainer().run()
    whole, parts = (checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert same_tensors(whole["model"], parts["model"])
    assert same_tensors(whole["trained"], parts["trained"])
    assert whole["averaged"] == parts["averaged"]


def test_an_epoch_by_area_has_more_steps(disk_folder, tmp_path):
    samples = Samples(find_pairs(disk_folder), 3, Labelling("instances", 2))
    steps = {}
    for sampling in ("images", "area"):
        options = dataclasses.replace(OPTIONS, crop=16, sampling=sampling)
        out = tmp_path / sampling
        trainer = training.Trainer(PLAIN, options, samples, samples, NAMES, out, CPU)
        steps[sampling] = len(trainer.loader)
        assert trainer.schedule.T_max == 2 * len(trainer.loader)
    assert steps["area"] >= 2 * steps["images"]


def test_another_network_is_trained_and_resumed(disk_folder, tmp_path):
    class Small(torch.nn.Module):
        def __init__(self, config: DSSNetConfig) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(config.in_channels, config.classes, 3, padding=1)

        def logits(self, image):
            return self.layer(image)

        def forward(self, image):
            return DSSNetOutput(self.logits(image), None, None)

    parts = split(find_pairs(disk_folder), 0.3)
    samples = [Samples(part, 3, Labelling("instances", 2)) for part in parts]
    options = dataclasses.replace(OPTIONS, epochs=2, average=0.5)
    for _ in range(2):
        best = training.Trainer(
            PLAIN, options, *samples, NAMES, tmp_path, CPU, make_network=Small
        ).run()
    assert best > 0
    assert set(checkpoint(tmp_path / "best.pt")["model"]) == {"layer.weight", "layer.bias"}
    with pytest.raises(InputError, match="network was 'Small', now 'DSSNet'"):
        training.train(PLAIN, options, *parts, NAMES, tmp_path, device="cpu")


# --- scores --------------------------------------------------------------------------------------


def test_iou_of_a_confusion_matrix():
    confusion = torch.tensor([[50, 10, 0], [5, 35, 0], [0, 0, 7]])
    expected = [50 / 65, 35 / 50, 1]
    assert np.allclose(training.iou(confusion), expected, rtol=1e-12)


def test_a_class_without_pixels_has_no_iou_but_costs_the_others():
    scores = training.iou(torch.tensor([[90, 0, 10], [0, 20, 0], [0, 0, 0]]))
    assert np.allclose(scores[:2], [0.9, 1])
    assert math.isnan(scores[2])


def test_a_class_that_validation_lacks_does_not_spoil_the_mean(disk_folder, tmp_path):
    config = dataclasses.replace(PLAIN, classes=3)
    samples = Samples(find_pairs(disk_folder), 3, Labelling("classes", 5))
    samples.labelling = Labelling("classes", 5)
    config = dataclasses.replace(PLAIN, classes=6)
    names = ["background", "a", "b", "c", "d", "never"]
    trainer = training.Trainer(config, OPTIONS, samples, samples, names, tmp_path, CPU)
    best = trainer.run()
    for row in rows(tmp_path):
        present = [row[f"iou_{name}"] for name in names[:5]]
        assert abs(row["mean_iou"] - np.mean(present)) <= 1e-9
        assert math.isnan(row["iou_never"])
    assert best == max(row["mean_iou"] for row in rows(tmp_path)) > 0


# --- resuming ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(disk_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupted")
    done = python(TESTS / "interrupted_run.py", disk_folder, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "point",
    [
        "in-epoch",
        "in-first-epoch-log",
        "saving-best",
        "saving-last",
        "last-unnamed",
        "before-log",
        "before-final-log",
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(interrupted, point):
    whole, resumed = interrupted / "whole", interrupted / point
    for name in ("last.pt", "best.pt"):
        expected, found = checkpoint(whole / name), checkpoint(resumed / name)
        assert same_tensors(expected["model"], found["model"]), name
        assert found["epoch"] == expected["epoch"]
        assert found["history"] == expected["history"]
        momenta = (
            {str(key): state["momentum_buffer"] for key, state in one["optimizer"]["state"].items()}
            for one in (expected, found)
        )
        assert same_tensors(*momenta)
    assert (resumed / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    assert not [path.name for path in resumed.iterdir() if ".part" in path.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_leaves_whole_checkpoints(interrupted):
    epochs, left = {}, {}
    for folder in interrupted.glob("*.killed"):
        last = folder / "last.pt"
        epochs[folder.stem] = checkpoint(last)["epoch"] if last.exists() else 0
        left[folder.stem] = sum(".part" in path.name for path in folder.iterdir())
    assert epochs == {
        "in-epoch": 1,
        "in-first-epoch-log": 1,
        "saving-best": 0,
        "saving-last": 1,
        "last-unnamed": 1,
        "before-log": 2,
        "before-final-log": 3,
    }
    # The points were reached as meant: these died in the middle of a file.
    assert {name for name, files in left.items() if files} == {
        "saving-best",
        "saving-last",
        "last-unnamed",
    }


@pytest.mark.parametrize(
    ("changes", "config", "expected"),
    [
        ({"learning_rate": 0.02}, PLAIN, "learning_rate was 0.01, now 0.02"),
        ({"epochs": 3, "seed": 1}, PLAIN, "epochs was 2, now 3; seed was 5, now 1"),
        ({}, dataclasses.replace(PLAIN, blocks=2), "blocks was 1, now 2"),
    ],
)
def test_other_settings_are_refused_by_name(disk_folder, tmp_path, changes, config, expected):
    run(disk_folder, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError) as caught:
        run(disk_folder, tmp_path, config, **changes)
    assert f"({expected})" in str(caught.value)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_other_data_are_refused(disk_folder, tmp_path):
    run(disk_folder, tmp_path)
    pairs = find_pairs(disk_folder)
    with pytest.raises(InputError, match=r"training images was '\d+ of digest .*', now '6 of"):
        training.train(PLAIN, OPTIONS, pairs[:6], pairs[6:], NAMES, tmp_path, device="cpu")


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_foreign_checkpoint_is_refused(disk_folder, tmp_path, content):
    path = tmp_path / "last.pt"
    if content is None:
        torch.save({"pre.con.bias": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"last\.pt: is not a checkpoint of a training run"):
        run(disk_folder, tmp_path)
    assert path.read_bytes() == before


def test_a_finished_run_is_left_alone(disk_folder, tmp_path):
    best = run(disk_folder, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    assert run(disk_folder, tmp_path) == best
    assert (tmp_path / "last.pt").read_bytes() == before


# --- failing -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_leaves_the_checkpoint(disk_folder, tmp_path, monkeypatch):
    loss = training.dssnet_loss

    def spoilt(*arguments):
        result = loss(*arguments)
        spoil = (tmp_path / "last.pt").exists()
        return result._replace(total=result.total * float("nan")) if spoil else result

    monkeypatch.setattr(training, "dssnet_loss", spoilt)
    with pytest.raises(
        InputError, match=r"the loss became nan in epoch 2; lower the learning rate"
    ):
        run(disk_folder, tmp_path)
    saved = checkpoint(tmp_path / "last.pt")
    assert saved["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in saved["model"].values())
    assert len(rows(tmp_path)) == 1


def test_a_spoilt_last_step_leaves_the_checkpoint(disk_folder, tmp_path, monkeypatch):
    validate = training.Trainer._validate

    def spoilt(self):
        if self.epoch == 1:
            with torch.no_grad():
                self.network.head.bias[0] = float("inf")
        return validate(self)

    monkeypatch.setattr(training.Trainer, "_validate", spoilt)
    with pytest.raises(InputError, match="the network's output became nan in epoch 2"):
        run(disk_folder, tmp_path)
    assert checkpoint(tmp_path / "last.pt")["epoch"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs and batch must be at least 1"),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"crop": 36}, "crop must be a multiple of 8"),
        ({"crop": 8}, "crop must be a multiple of 8 from 16 on"),
        ({"clip_norm": -1.0}, "clip norm must be 0 or more"),
        ({"learning_rate": float("nan")}, "learning rate must be positive"),
        ({"optimizer": "rmsprop"}, "optimizer must be one of"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"labels": "boxes"}, "labels must be one of"),
        ({"seed": -1}, "seed must be from 0"),
        ({"batch": 64}, r"\d+ training image\(s\) are fewer than the batch of 64"),
    ],
)
def test_options_out_of_range_are_refused(disk_folder, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(disk_folder, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99", "cuda:x"])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(InputError, match="device"), processes.joined(device):
        pass


# --- the command ---------------------------------------------------------------------------------


def main(*arguments: object) -> int:
    return cli.main("train", command.make_parser, command.body, [str(a) for a in arguments])


def test_the_command_trains(disk_folder, tmp_path, capsys):
    options = "--epochs 1 --batch 2 --crop 32 --width 9 --features 8 --blocks 1 --no-edge --seed 3"
    out = tmp_path / "out"
    code = main(disk_folder, "--out", out, "--device", "cpu", *options.split())
    assert code == 0
    saved = checkpoint(out / "best.pt")
    assert saved["identity"]["seed"] == 3
    assert saved["config"]["edge"] is False
    assert saved["class_names"] == NAMES
    printed = capsys.readouterr().out
    assert "best mean IoU" in printed
    assert str(out / "best.pt") in printed


def test_the_command_takes_a_validation_folder(disk_folder, tmp_path):
    options = "--epochs 1 --batch 2 --crop 32 --width 9 --features 8 --blocks 1 --no-edge"
    options += " --no-super-resolution --class-names rest,cell --device cpu --optimizer adam"
    arguments = ["--validation", disk_folder, *options.split()]
    assert main(disk_folder, "--out", tmp_path / "out", *arguments) == 0
    saved = checkpoint(tmp_path / "out" / "last.pt")
    assert saved["class_names"] == ["rest", "cell"]
    assert saved["identity"]["training images"] == saved["identity"]["validation images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "a data folder holds images/ and labels/"),
        (["DATA", "--validation", "2"], "must lie between 0 and 1"),
        (["DATA", "--validation", "missing"], "a data folder holds images/ and labels/"),
        (["DATA", "--class-names", "a,b,c"], "--class-names must be 2 different names"),
        (["DATA", "--classes", "3"], "classes must be 2, got 3"),
        (["DATA", "--width", "99"], "width must be an integer from 9 to 36"),
        (["DATA", "--workers", "-1"], "workers must be 0 or more"),
        (["DATA", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N"),
        (["DATA", "--batch", "1000"], "fewer than the batch of 1000"),
    ],
)
def test_the_command_fails_in_one_line(disk_folder, tmp_path, capsys, arguments, message):
    given = [disk_folder if a == "DATA" else a for a in arguments]
    assert main(*given, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("dssnet_fast.train: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_names_missing_packages(disk_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    for name in ("training", "augment"):
        monkeypatch.delitem(sys.modules, f"dssnet_fast.python_ref.{name}")
    monkeypatch.delattr("dssnet_fast.python_ref.training")
    assert main(disk_folder, "--out", tmp_path / "out") == 1
    assert "pip install 'dssnet_fast[train]'" in capsys.readouterr().err


# --- several processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(disk_folder, tmp_path_factory):
    """The folder of the runs, and how each scenario ended in processes 0 and 1."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    out = tmp_path_factory.mktemp("two")
    done = python(TESTS / "several_processes.py", disk_folder, out)
    ends = {}
    for line in done.stdout.splitlines():
        scenario, rank, end = line.split(" ", 2)
        ends.setdefault(scenario, {})[int(rank)] = end
    assert {name: set(both) for name, both in ends.items()} == {
        name: {0, 1} for name in ("normal", "loss-fails", "save-fails")
    }, done.stderr
    return out, ends


def test_two_processes_train_as_one(two_processes, disk_folder, tmp_path):
    out, ends = two_processes
    config = dataclasses.replace(CONFIG, super_resolution=False)
    run(disk_folder, tmp_path, config, batch=4, augment=False)
    one, two = rows(tmp_path), rows(out / "normal")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for name in a:
            tolerance = 5e-3 if "iou" in name else 1e-4  # pixels on the brink change class
            assert abs(a[name] - b[name]) <= tolerance, name
    assert ends["normal"][0] == ends["normal"][1]
    assert ends["normal"][0].startswith("best 0.")
    assert len(list((out / "normal" / "events").iterdir())) == 1
    assert checkpoint(out / "normal" / "last.pt")["identity"]["processes"] == 2


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("loss-fails", "InputError: the loss became nan in epoch 2"),
        ("save-fails", "No space left on device"),
    ],
)
def test_an_error_in_one_process_stops_both(two_processes, scenario, message):
    _, ends = two_processes
    assert message in ends[scenario][0]
    assert message in ends[scenario][1]


@pytest.mark.slow
def test_torchrun_trains(disk_folder, tmp_path):
    options = "--epochs 1 --batch 2 --crop 32 --width 9 --features 8 --blocks 1 --device cpu"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = python(
        *launch, "-m", "dssnet_fast.train", disk_folder, "--out", tmp_path, *options.split()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best mean IoU") == 1
    assert done.stderr.count("epoch 1/1: ") == 1
    assert checkpoint(tmp_path / "last.pt")["identity"]["processes"] == 2


# --- hardware ------------------------------------------------------------------------------------


def test_unknown_cpu_features_are_refused():
    with pytest.raises(ValueError, match=r"feature must be one of .* got 'mmx'"):
        hardware.cpu_supports("mmx")


@pytest.mark.parametrize("feature", hardware.CPU_FEATURES)
def test_cpu_features_are_told_without_torchs_help(monkeypatch, feature):
    answer = hardware.cpu_supports(feature)
    assert isinstance(answer, bool)
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("needs Linux")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    hardware._features.cache_clear()
    try:
        assert hardware.cpu_supports(feature) == answer
    finally:
        hardware._features.cache_clear()


def test_cpu_flags_are_read_from_linux(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: x\nflags\t\t: fpu sse avx512_bf16\nflags : fpu amx_bf16\n")
    assert hardware._linux_flags(file) == {"fpu", "sse", "avx512_bf16"}
    assert hardware._linux_flags(tmp_path / "absent") == frozenset()
