"""`python -m dssnet_fast.evaluate` on small made images, with networks that threshold."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dssnet_fast import cli, contact_sheet, evaluate
from dssnet_fast.accuracy import truth_objects
from dssnet_fast.metrics import InstanceCounts, count_instances
from dssnet_fast.nuclei import find_nuclei
from dssnet_fast.python_ref.data import Labelling, find_pairs, split
from dssnet_fast.qupath import CLASS_COLOURS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
INSTANCES = Labelling("instances", 2)


class ThresholdNet:
    """Class 1 is what differs from the first pixel, class 2 what differs much."""

    context_px = edge_context_px = 8
    has_edges = True
    device = "cpu"
    digest = "d" * 64

    def __init__(self, limit, names=("background", "nucleus"), channels=3):
        self.limit, self.class_names = limit, names
        self.config = SimpleNamespace(in_channels=channels)
        self.backend_name, self.precision = "threshold", "fp32"

    def decide(self, image, core, edges):
        gray = image.astype(int).mean(2)
        distance = abs(gray - gray[0, 0])
        labels = (distance > self.limit).astype(np.uint8)
        if len(self.class_names) > 2:
            labels += distance > 3 * self.limit
        at = np.s_[core.top : core.bottom, core.left : core.right]
        decided = labels[at], np.full(labels.shape, 0.9, np.float32)[at]
        # An edge is where blue differs from green by one.
        edge_map = (abs(image[:, :, 1].astype(int) - image[:, :, 2]) == 1).astype(np.float32)[at]
        return (*decided, edge_map) if edges else decided


NETS = {"pretrained": 30, "int8": 40, "cpu:bf16": 30, "other.safetensors": 300}


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    def load(options):
        if options.model != "pretrained":
            return ThresholdNet(NETS[options.model])
        asked = (options.backend, options.precision)
        return ThresholdNet(
            {("auto", "auto"): 30, ("auto", "int8"): 40, ("cpu", "bf16"): 30}[asked]
        )

    monkeypatch.setattr(evaluate, "load_net", load)


def save(folder, name, image, labels):
    for kind, pixels in (("images", image), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{name}.png")


@pytest.fixture
def data(tmp_path):
    """Ten images: dark, light gray and coloured ones; one has no nucleus."""
    for number in range(10):
        random = np.random.default_rng(number)
        background = [(10, 10, 10), (230, 230, 230), (220, 150, 220)][number % 3]
        image = np.full((48, 64, 3), background)
        labels = np.zeros((48, 64), int)
        for identity in range(1, 1 if number == 7 else 7):
            top, left = random.integers(1, 38), random.integers(1, 54)
            box = np.s_[top : top + 8, left : left + 8]
            labels[box] = identity
            image[box] += 35 + identity if number % 3 == 0 else -(35 + identity)
        # What networks do not find, or find without a nucleus.
        image[20:30, 20:30] = background
        image[40:46, 40:46] = np.array(background) + (60 if number % 3 == 0 else -60)
        if number == 7:
            image[:] = background
        save(tmp_path / "data", f"image{number}", image, labels)
    return tmp_path / "data"


def run(*arguments):
    return cli.main(
        "evaluate", evaluate.make_parser, evaluate.body, [*map(str, arguments), "--quiet"]
    )


def evaluated(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def by_hand(pairs, limit):
    both, either, total = np.zeros(2, int), np.zeros(2, int), InstanceCounts()
    for pair in pairs:
        gray = np.asarray(Image.open(pair.image)).astype(int).mean(2)
        answer = abs(gray - gray[0, 0]) > limit
        truth = np.asarray(Image.open(pair.label))
        for c in range(2):
            both[c] += ((truth > 0) == c)[answer == c].sum()
            either[c] += (((truth > 0) == c) | (answer == c)).sum()
        found = find_nuclei(answer.astype(np.uint8), np.ones(answer.shape, np.float32))
        total += count_instances(truth, found.instances)
    return both / either, total


def test_numbers_are_those_of_metrics_by_hand(data, capsys):
    found = evaluated(capsys, data, "--split", "all")
    iou, total = by_hand(find_pairs(data), 30)
    (network,) = found["networks"]
    scores = network["scores"]
    assert found["images"] == scores["images"] == 10
    assert found["nuclei"] == scores["truths"] == total.truths > 40
    assert scores["iou"] == pytest.approx(
        {"background": iou[0], "nucleus": iou[1]}, rel=0, abs=1e-12
    )
    assert scores["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert scores["dice"]["nucleus"] == pytest.approx(2 * iou[1] / (1 + iou[1]), abs=1e-12)
    assert 0 < scores["ap"]["0.90"] < scores["ap"]["0.50"] < 1
    for name in ("ap", "precision", "recall", "f1"):
        for threshold, value in scores[name].items():
            expected = getattr(total, name)(round(100 * float(threshold)))
            assert value == pytest.approx(expected, abs=1e-12)
    assert scores["pq"] == pytest.approx(total.pq(), abs=1e-12)
    assert scores["aji"] == pytest.approx(total.aji, abs=1e-12)
    assert scores["classes"]["nucleus"]["ap"] == scores["ap"]
    assert scores["agreement"] == 1
    assert network["model_sha256"] == "d" * 64


def test_kinds_and_worst(data, capsys):
    found = evaluated(capsys, data, "--split", "all", "--worst", 2)
    kinds = found["networks"][0]["kinds"]
    counted = {kind: scores["images"] for kind, scores in kinds.items()}
    assert counted == {"fluorescence": 4, "stained": 3, "bright field": 3}
    pairs = find_pairs(data)
    iou, total = by_hand([p for p in pairs if int(p.image.stem[-1]) % 3 == 2], 30)
    assert kinds["stained"]["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert kinds["stained"]["ap"]["0.50"] == pytest.approx(total.ap(), abs=1e-12)
    # The image without a nucleus, answered without one, is not among the worst.
    means = {p.image.name: by_hand([p], 30)[0].mean() for p in pairs if "7" not in p.image.stem}
    assert [w["image"] for w in found["worst"]] == sorted(means, key=means.get)[:2]


def test_split_is_that_of_training(data, capsys):
    training, validation = split(find_pairs(data), 0.4)
    for name, pairs in (("training", training), ("validation", validation)):
        found = evaluated(capsys, data, "--split", name, "--validation", 0.4)
        assert found["images"] == len(pairs)
        assert found["nuclei"] == by_hand(pairs, 30)[1].truths
    assert evaluated(capsys, data, "--validation", 0.4)["split"] == "validation"


def test_others_beside_the_first(data, capsys):
    asked = ("int8", "cpu:bf16", "other.safetensors")
    found = evaluated(capsys, data, "--split", "all", "--compare", *asked)
    assert [n["name"] for n in found["networks"]] == ["pretrained", *asked]
    for network in found["networks"]:
        iou, total = by_hand(find_pairs(data), NETS[network["name"]])
        assert network["scores"]["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
        assert network["scores"]["ap"]["0.70"] == pytest.approx(total.ap(70), abs=1e-12)
    same = [n["scores"]["agreement"] for n in found["networks"]]
    gray = [np.asarray(Image.open(p.image)).astype(int).mean(2) for p in find_pairs(data)]
    differs = sum(((d := abs(g - g[0, 0])) > 30).sum() - (d > 40).sum() for g in gray)
    assert same[1] == pytest.approx(1 - differs / (10 * 48 * 64), abs=1e-12)
    assert same[0] == same[2] == 1 > same[1] > same[3]

    assert run(data, "--split", "all", "--compare", *asked) == 0
    text = capsys.readouterr().out
    points = 100 * (
        found["networks"][1]["scores"]["mean_iou"] - found["networks"][0]["scores"]["mean_iou"]
    )
    assert f"| int8 | {points:+.2f} |" in text
    assert "| stained, cpu:bf16 | 3 |" in text
    for line in text.splitlines():
        if line.startswith("| int8 | 0."):
            assert f" {found['networks'][1]['scores']['pq']:.4f} " in line


def test_table_of_images(data, tmp_path, capsys):
    path = tmp_path / "images.csv"
    found = evaluated(capsys, data, "--split", "all", "--compare", "int8", "--csv", path)
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 20
    for network in found["networks"]:
        own = [row for row in rows if row["network"] == network["name"]]
        assert sum(int(row["answers"]) for row in own) == network["scores"]["answers"]
    empty = next(row for row in rows if row["image"] == "image7.png")
    assert (empty["mean_iou"], empty["iou_nucleus"], empty["truths"]) == ("1.0", "", "0")
    first = by_hand([find_pairs(data)[0]], 30)
    assert float(rows[0]["mean_iou"]) == pytest.approx(first[0].mean(), abs=1e-12)
    assert float(rows[0]["ap_0.50"]) == pytest.approx(first[1].ap(), abs=1e-12)


def test_sheet_of_the_worst(data, tmp_path, capsys):
    sheets = [tmp_path / "one.png", tmp_path / "two.png"]
    for sheet in sheets:
        evaluated(
            capsys, data, "--split", "all", "--worst", 2, "--compare", "int8", "--sheet", sheet
        )
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    drawn = np.asarray(Image.open(sheets[0]))
    assert drawn.shape[1] >= 5 * contact_sheet.PANEL_PX
    assert drawn.shape[0] > 2 * 48 * (contact_sheet.PANEL_PX // 64)
    for colour in (contact_sheet.RIGHT, contact_sheet.MISSED, contact_sheet.EXTRA):
        assert (drawn == colour).all(2).sum() > 100
    assert not list(tmp_path.glob("*.part*"))


@pytest.fixture
def pairs_that_touch(tmp_path):
    """Two nuclei side by side, each with a column of edge towards the other."""
    for number in range(3):
        image, labels = np.full((32, 48, 3), 10), np.zeros((32, 48), int)
        image[8:24, 8:40], labels[8:24, 8:24], labels[8:24, 24:40] = 100, 1, 2
        image[8:24, 23:25, 2] += 1
        save(tmp_path / "touching", f"image{number}", image, labels)
    return tmp_path / "touching"


def test_ways_to_tell_nuclei_apart_beside_each_other(pairs_that_touch, monkeypatch, capsys):
    loaded = []
    load = evaluate.load_net
    monkeypatch.setattr(evaluate, "load_net", lambda options: loaded.append(1) or load(options))
    ways = {
        "pretrained": ("edges", [0.5], 2),
        "separate=no": ("no", [], 1),
        "separate=probability": ("probability", [0.5], 1),
        "interior-probability=0.95": ("edges", [0.95], 1),
        "separate=edges+interior-probability=0.2,0.8": ("edges", [0.2, 0.8], 2),
        "int8+separate=no": ("no", [], 1),
    }
    options = ("--split", "all", "--interior-probability", "0.5", "--compare", *list(ways)[1:])
    found = evaluated(capsys, pairs_that_touch, *options)
    for network in found["networks"]:
        by, probabilities, answers = ways[network["name"]]
        assert network["separation"] == {"by": by, "interior_probability": probabilities}
        assert network["scores"]["answers"] == 3 * answers
        assert network["scores"]["ap"]["0.90"] == (1 if answers == 2 else 0)
        assert network["scores"]["mean_iou"] == 1
    # Once for all that is one network.
    assert len(loaded) == 2
    assert run(pairs_that_touch, *options) == 0
    text = capsys.readouterr().out
    assert (
        "\npretrained: backend threshold, device cpu, precision fp32, nuclei told apart by edges ("
        in text
    )
    assert (
        "\nseparate=no: backend threshold, device cpu, precision fp32, touching nuclei not " in text
    )


def test_a_network_that_several_share_runs_once_on_an_image(pairs_that_touch, monkeypatch, capsys):
    calls = []
    decide = ThresholdNet.decide

    def count(self, image, core, edges):
        calls.append(edges)
        return decide(self, image, core, edges)

    monkeypatch.setattr(ThresholdNet, "decide", count)
    others = ("separate=no", "separate=edges", "separate=probability")
    options = ("--split", "all", "--separate", "no", "--compare", *others[1:])
    evaluated(capsys, pairs_that_touch, *options)
    assert calls == 3 * [True]
    calls.clear()
    evaluated(capsys, pairs_that_touch, *options[:-2], others[2])
    assert calls == 3 * [False]


def test_the_sheet_shows_nuclei_that_are_told_apart(pairs_that_touch, tmp_path, capsys):
    options = ("--split", "all", "--worst", 1, "--interior-probability", "0.5", "--separate")
    drawn = {}
    for first, second in (("edges", "no"), ("no", "edges")):
        sheet = tmp_path / f"{first}.png"
        others = ("--compare", f"separate={second}", "--sheet", sheet)
        evaluated(capsys, pairs_that_touch, *options, first, *others)
        image = np.asarray(Image.open(sheet)).astype(int)
        step = contact_sheet.PANEL_PX + contact_sheet._GAP_PX
        for way, column in ((first, 2), (second, 4)):
            panel = image[:, column * step : (column + 1) * step]
            outlined = (panel == CLASS_COLOURS[0]).all(axis=2).sum()
            assert drawn.setdefault(way, outlined) == outlined
    # Outlines between the two nuclei, as well as around them.
    assert drawn["edges"] > drawn["no"] > 0


def test_differences_are_drawn():
    first, second = np.array([[0, 1, 1, 0, 1, -1]]), np.array([[0, 1, 0, 1, 2, 1]])
    drawn = contact_sheet.draw_difference(first, second)[0].tolist()
    black = (0, 0, 0)
    expected = [
        black,
        contact_sheet.RIGHT,
        contact_sheet.MISSED,
        contact_sheet.EXTRA,
        contact_sheet.MISTAKEN,
        black,
    ]
    assert drawn == [list(colour) for colour in expected]


def test_classes_and_unknown_pixels(tmp_path, monkeypatch, capsys):
    names = ("background", "pale", "dense")
    monkeypatch.setattr(evaluate, "load_net", lambda options: ThresholdNet(20, names))
    gray = np.full((40, 60), 10)
    labels = np.zeros((40, 60), int)
    for (top, left), step, value in (
        ((2, 2), 30, 1),  # found
        ((2, 20), 90, 1),  # found with the wrong class
        ((20, 2), 90, 2),  # found
        ((20, 20), 0, 2),  # missed
        ((20, 40), 90, 255),  # nobody knows
    ):
        box = np.s_[top : top + 8, left : left + 8]
        labels[box] = value
        gray[box] += step
    save(tmp_path, "one", np.stack([gray] * 3, 2), labels)
    (network,) = evaluated(capsys, tmp_path, "--labels", "classes", "--split", "all")["networks"]
    scores = network["scores"]
    assert (scores["truths"], scores["answers"]) == (4, 3)
    assert scores["precision"]["0.50"] == 1
    pale, dense = scores["classes"]["pale"], scores["classes"]["dense"]
    assert (pale["precision"]["0.50"], pale["recall"]["0.50"]) == (1, 0.5)
    assert (dense["precision"]["0.50"], dense["recall"]["0.50"]) == (0.5, 0.5)
    assert scores["iou"] == {
        "background": pytest.approx((40 * 60 - 5 * 64) / (40 * 60 - 4 * 64)),
        "pale": 0.5,
        "dense": pytest.approx(1 / 3),
    }
    assert run(tmp_path, "--labels", "classes", "--split", "all") == 0
    assert "| dense | 2 | 0.3333 | 0.5000 | 0.5000 |" in capsys.readouterr().out


def test_a_mask_has_its_parts_as_nuclei():
    mask = np.array([[255, 0, 255, 255], [0, 0, 0, 255]], np.int32)
    assert truth_objects(mask, INSTANCES).instances.tolist() == [[1, 0, 2, 2], [0, 0, 0, 2]]
    # Ids say it otherwise: parts that touch are two, parts that lie apart one.
    ids = np.array([[7, 0, 9, 7]], np.int32)
    assert truth_objects(ids, INSTANCES).instances.tolist() == [[1, 0, 2, 1]]
    full = np.array([[3, 9]], np.int32)
    assert truth_objects(full, INSTANCES).instances.tolist() == [[1, 2]]
    assert not truth_objects(mask * 0, INSTANCES).instances.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "int9"], "--compare int9: must be a precision"),
        (["--compare", "nothing:fp32"], "--compare nothing:fp32: must be"),
        (["--compare", "int8", "int8"], "int8 is there twice"),
        (["--compare", "separate=edge"], "separate must be one of auto, edges, probability, no"),
        (
            ["--compare", "interior-probability=2"],
            "--compare interior-probability=2: interior-probability must be increasing numbers",
        ),
        (["--compare", "int9+separate=no"], "--compare int9: must be a precision"),
        (["--compare", "tile=8"], "or separate=... or interior-probability=..."),
        (["--compare", "pretrained"], "pretrained is there twice"),
        (["--csv", "no/such/folder.csv"], "--csv no/such/folder.csv: must be a file"),
        (["--sheet", "sheet.jpg"], "must end with .png"),
        (["--sheet", "sheet.png", "--worst", "0"], "needs --worst"),
        (["--validation", "2"], "between 0 and 1"),
    ],
)
def test_wrong_options_are_one_line(data, options, message, capsys):
    assert run(data, *options) == 1
    said = capsys.readouterr()
    assert said.err.startswith("dssnet_fast.evaluate: error: ")
    assert message in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


def test_wrong_data_is_one_line(data, tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 1
    assert "a data folder holds images/ and labels/" in capsys.readouterr().err
    save(tmp_path / "data", "image3", np.zeros((48, 64, 3)), np.zeros((9, 9)))
    assert run(data, "--split", "all", "--csv", tmp_path / "x.csv") == 1
    assert "image3.png: is 9x9 but its image image3.png is 64x48" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
    (data / "labels" / "image3.png").write_bytes(b"no image")
    assert run(data, "--split", "all") == 1
    assert "image3.png" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        run(data, "--worst", "-1")
    assert exit_.value.code == 2


def test_networks_must_be_alike(data, monkeypatch, capsys):
    several = ThresholdNet(30, ("background", "a", "b"))
    monkeypatch.setattr(evaluate, "load_net", lambda options: several)
    assert run(data, "--split", "all") == 1
    assert "labels of kind 'instances' know one class" in capsys.readouterr().err
    nets = iter([ThresholdNet(30), several])
    monkeypatch.setattr(evaluate, "load_net", lambda options: next(nets))
    assert run(data, "--compare", "b.safetensors") == 1
    assert "--compare b.safetensors: its channels and classes" in capsys.readouterr().err


def test_the_packaged_model(monkeypatch, capsys):
    monkeypatch.undo()
    options = ("--split", "all", "--backend", "torch", "--precision", "fp32")
    found = evaluated(capsys, EXAMPLES, *options, "--compare", "torch:bf16")
    first, second = (network["scores"] for network in found["networks"])
    assert (found["images"], found["nuclei"]) == (6, 484)
    assert first["mean_iou"] > 0.85
    assert math.isclose(first["mean_iou"], second["mean_iou"], abs_tol=0.005)
    assert second["agreement"] > 0.99
