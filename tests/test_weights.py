"""The weight file: what goes in comes out, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dssnet_fast import macs, parity, weights
from dssnet_fast.checkpoint import from_state
from dssnet_fast.model import FastDSSNet
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.quantisation import Quantisation, layer_names, step_names
from networks import CONFIGS, random_network

LAYERS = ("first", "inner", "outer", "last")  # of the edge head


@pytest.fixture
def folded():
    return weights.fold_checkpoint(from_state(released_state(random_network())))


@pytest.fixture
def file(folded, tmp_path):
    weights.save(folded, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def rewrite(path, change_metadata=lambda m: m, change_tensors=lambda t: t):
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(change_tensors(load_file(path)), path, change_metadata(metadata))


def test_round_trip_is_exact(folded, file):
    back = weights.load(file)
    assert back.config == folded.config
    assert back.class_names == folded.class_names
    assert back.source_digest == folded.source_digest
    assert back.tensors.keys() == folded.tensors.keys()
    assert all(torch.equal(back.tensors[k], folded.tensors[k]) for k in folded.tensors)
    assert back.digest == folded.digest


def test_metadata_is_readable_by_anyone(folded, file):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "dssnet_fast.weights"
    assert metadata["format_version"] == "2"
    assert json.loads(metadata["config"]) == folded.config.to_dict()
    assert json.loads(metadata["class_names"]) == ["background", "nucleus"]
    assert len(metadata["source_sha256"]) == 64
    assert json.loads(metadata["folding"]) == ["weight_norm", "downsample.project"]


def test_files_without_an_edge_head_are_what_older_versions_wrote(folded, file, tmp_path):
    plain, old = folded.without_edges(), tmp_path / "old.safetensors"
    assert folded.config.edge
    assert not plain.config.edge
    assert {name for name in folded.tensors if name not in plain.tensors} == {
        *(f"edge.{layer}.{leaf}" for layer in LAYERS for leaf in ("weight", "bias")),
        "edge.first.slope",
    }
    weights.save(plain, old)
    with safe_open(old, framework="pt") as opened:
        metadata = opened.metadata()
        assert not [name for name in opened.keys() if name.startswith("edge")]  # noqa: SIM118
    assert metadata["format_version"] == "1"
    assert weights.load(old).digest == plain.digest != folded.digest
    # Beside other metadata either is damaged, not misread.
    as_old = {**metadata, "format_version": "1"}
    rewrite(file, change_metadata=lambda _: as_old)
    with pytest.raises(InputError, match=r"unexpected: edge\.first\.bias"):
        weights.load(file)
    with_edges = json.dumps(folded.config.to_dict())
    rewrite(old, change_metadata=lambda m: {**m, "config": with_edges})
    with pytest.raises(InputError, match=r"missing: edge\.first\.bias"):
        weights.load(old)


def test_readers_of_version_1_refuse_edges(file, monkeypatch):
    monkeypatch.setattr(weights, "EDGE_FORMAT_VERSION", 1)
    with pytest.raises(InputError, match=r"has format version 2, .* reads up to 1; upgrade"):
        weights.load(file)


def test_fp16_file_is_half_the_size_and_rounds_once(folded, file, tmp_path):
    weights.save(folded, tmp_path / "h.safetensors", "fp16")
    half = weights.load(tmp_path / "h.safetensors")
    for key, value in folded.tensors.items():
        assert torch.equal(half.tensors[key], value.half().float())
    values = sum(value.numel() for value in folded.tensors.values())
    assert file.stat().st_size - (tmp_path / "h.safetensors").stat().st_size >= 2 * values - 200


def test_fp16_overflow_is_refused_and_leaves_nothing(folded, tmp_path):
    folded.tensors["extract.head.bias"][0] = 1e6
    with pytest.raises(InputError, match=r"too large for fp16 in extract\.head\.bias"):
        weights.save(folded, tmp_path / "h.safetensors", "fp16")
    assert list(tmp_path.iterdir()) == []


def quantised(folded):
    """With a step of its own for everything that has one."""
    steps = {name: 0.1 + i for i, name in enumerate(step_names(folded.config))}
    steps |= {name: steps[f"{name[:-1]}1"] for name in steps if name.endswith("expand3")}
    return replace(folded, quantisation=Quantisation(steps, ("extract.head", "fuse.smooth"), 7))


def test_int8_comes_back_with_the_weights(folded, tmp_path):
    file = tmp_path / "q.safetensors"
    folded = quantised(folded)
    weights.save(folded, file, "fp16")
    back = weights.load(file)
    assert back.quantisation == folded.quantisation
    assert back.digest == folded.rounded("fp16").digest
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["int8"])["images"] == 7


def test_digest_says_what_int8_computes(folded):
    """Equal digests give equal results, and none has changed by there being int8."""
    whole = quantised(folded)
    given = whole.quantisation
    others = [
        None,
        replace(given, exact=("extract.head",)),
        replace(given, steps={**given.steps, "segment.tail": 0.5}),
    ]
    digests = {replace(folded, quantisation=other).digest for other in others}
    assert len(digests | {whole.digest}) == 4
    assert whole.digest == replace(folded, quantisation=replace(given, images=8)).digest
    pretrained = FastDSSNet.pretrained(device="cpu", backend="torch").folded_weights()
    known = "63d96c52be3fbf63370d52f85bf978e3d24527bbc90fed12f9674e58b644e64f"
    assert replace(pretrained, quantisation=None).digest == known


def test_damaged_int8_is_named(folded, file):
    names = step_names(folded.config)
    steps = dict.fromkeys(names, 0.5)
    cases = {
        "int8 metadata is damaged": "{",
        "int8 metadata is damaged .*exact": json.dumps({"steps": steps, "images": 1}),
        "int8 metadata is damaged .*list": json.dumps({"steps": [], "exact": [], "images": 1}),
        r"missing: segment\.tail": {"steps": {n: 0.5 for n in names if n != "segment.tail"}},
        "unexpected: downsample.0": {"steps": {**steps, "downsample.0": 0.5}},
        "step fuse.reduce must be positive and finite, got 0.0": {
            "steps": {**steps, "fuse.reduce": 0.0}
        },
        "step fuse.reduce must be positive and finite, got -1.0": {
            "steps": {**steps, "fuse.reduce": -1.0}
        },
        "step fuse.reduce must be positive and finite, got nan": {
            "steps": {**steps, "fuse.reduce": float("nan")}
        },
        "got inf": {"steps": {**steps, "fuse.reduce": float("inf")}},
        "got 1e-40": {"steps": {**steps, "fuse.reduce": 1e-40}},
        "blocks.1.expand3 and extract.blocks.1.expand1 read the same": {
            "steps": {**steps, "extract.blocks.1.expand3": 0.25}
        },
        "unknown layers: extract.blocks.2": {"exact": ["extract.head", "extract.blocks.2"]},
    }
    for message, int8 in cases.items():
        if not isinstance(int8, str):
            int8 = json.dumps({"steps": steps, "exact": [], "images": 1, **int8})
        weights.save(folded, file)
        rewrite(file, change_metadata=lambda m, int8=int8: {**m, "int8": int8})
        with pytest.raises(InputError, match=f"{file}: .*{message}"):
            weights.load(file)


def test_int8_that_does_not_fit_is_not_written(folded, tmp_path):
    with pytest.raises(InputError, match=r"missing: downsample\.1"):
        weights.save(replace(folded, quantisation=Quantisation({})), tmp_path / "q.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_has_names_for_all_that_is_convolved(name):
    """Every convolution in the file has a step and a layer, but for those that need none."""
    shapes = weights.folded_shapes(CONFIGS[name])
    convolutions = {key.removesuffix(".weight") for key in shapes if key.endswith(".weight")}
    convolutions -= {"segment.inner", "segment.outer", "fuse.mix"}
    # The edge head reads what `fuse.reduce` reads, and continues in a higher precision.
    convolutions -= {f"edge.{layer}" for layer in LAYERS}
    blocks = {key.rpartition(".")[0] for key in convolutions if ".blocks." in key}
    single = {key for key in convolutions if ".blocks." not in key}
    assert set(layer_names(CONFIGS[name])) == blocks | single | {"segment.tail"}
    steps = {"fuse.smooth" if "smooth" in key else key for key in step_names(CONFIGS[name])}
    reads_image = {"downsample.stem", "downsample.0"}
    assert steps == (convolutions | {"segment.tail"}) - reads_image


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_those_of_the_config(name):
    network = random_network(CONFIGS[name])
    folded = weights.fold_checkpoint(from_state(released_state(network)))
    actual = {key: value.shape for key, value in folded.tensors.items()}
    assert actual == weights.folded_shapes(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_unfolding_gives_back_the_function(name):
    network = random_network(CONFIGS[name]).double()
    folded = weights.fold_checkpoint(from_state(released_state(network)))
    images = parity.random_images(network.config)
    for image in images:
        expected = parity.reference_logits(network, image)
        unfolded = weights.unfold(folded)
        again = parity.reference_logits(unfolded, image)
        assert parity.relative_error(again, expected) <= 1e-6
        if network.config.edge:
            expected = parity.reference_edges(network, image)
            again = parity.reference_edges(unfolded, image)
            assert parity.relative_error(again, expected) <= 1e-6


def test_damage_is_named(folded, file, tmp_path):
    cases = {
        "no such file": (lambda: file.unlink(), None),
        "format version 9": (None, lambda m: {**m, "format_version": "9"}),
        "not a weight file of dssnet_fast": (None, lambda m: {**m, "format": "other"}),
        "metadata is damaged": (None, lambda m: {**m, "config": "{"}),
        "config must have exactly": (None, lambda m: {**m, "config": "{}"}),
        "1 class names for 2 classes": (None, lambda m: {**m, "class_names": '["a"]'}),
        "wrong shape: .*downsample.stem.weight": (
            None,
            lambda m: {**m, "config": json.dumps({**folded.config.to_dict(), "width": 10})},
        ),
    }
    for message, (action, change) in cases.items():
        weights.save(folded, file)
        if action:
            action()
        else:
            rewrite(file, change_metadata=change)
        with pytest.raises(InputError, match=message):
            weights.load(file)


def test_missing_tensors_and_nan_are_named(folded, file):
    rewrite(file, change_tensors=lambda t: {k: v for k, v in t.items() if k != "fuse.mix.bias"})
    with pytest.raises(InputError, match=r"missing: fuse\.mix\.bias"):
        weights.load(file)
    weights.save(folded, file)
    rewrite(file, change_tensors=lambda t: {**t, "fuse.mix.bias": t["fuse.mix.bias"] * torch.nan})
    with pytest.raises(InputError, match=r"NaN or infinite values in fuse\.mix\.bias"):
        weights.load(file)
    assert weights.load(file, allow_nonfinite=True).tensors["fuse.mix.bias"].isnan().all()


def test_truncated_file_is_named(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        FastDSSNet.load(file)


def test_full_disk_leaves_the_old_file(folded, file, monkeypatch):
    before = file.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(folded, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_macs_agree_with_a_count_by_hand():
    """DESIGN by hand: every convolution's outputs x inputs x taps x pixels, 512 x 512."""
    config = DSSNetConfig(classes=3)
    cells, half, full = 64**2, 256**2, 512**2
    stem = 3 * 30 * 9 * full
    down = [30 * 30 * 9 * (512 >> i) ** 2 // 4 for i in range(3)]
    projections = [30 * 30 * (512 >> i) ** 2 // 4 for i in range(3)]
    head = 30 * 42 * 9 * cells
    wneck = (42 * 126 + 42 * 126 * 9 + 252 * 31 * 9 + 31 * 42 * 9) * cells
    rest = {"mix": 84 * 84, "smooth": 84 * 84 * 9, "reduce": 84 * 32 * 9, "narrow": 32 * 20 * 9}
    tail = (20 * 20 * 9 + 20 * 3 * 9) * full
    shared = stem + sum(down) + head + 10 * wneck
    expected = shared + sum(projections) + sum(rest.values()) * half + tail
    assert macs.reference(config, 512, 512) == expected

    # Folded: 25 products of two or fewer taps a cell, and the border of the last convolution.
    stages = macs.folded(config, 512, 512)
    products = (4 * 65 * 65 * 4 + 2 * 2 * 65 * 64 * 2 + cells) * 84 * 84
    assert stages["downsample"] == stem + sum(down)
    assert stages["extract"] == head + 10 * wneck
    assert stages["fuse"] == 84 * 84 * cells + products + 84 * 32 * 9 * half
    border = 2 * (20 * 20 * 3 * 514 + 20 * 3 * 3 * 512) + 2 * (20 * 20 * 3 + 20 * 3 * 3) * 512
    assert stages["segment"] == (32 * 20 + 20 * 12) * 9 * half + border
    ffm = 84 * 84 * cells + products
    border = (84 * 84 + 84) * 3 * 4 * 256 + 2 * 84 * 84 * 3 * 2
    assert stages["edges"] == ffm + (84 * 84 * 9 + 84 * 25 + 9) * half + border
    assert "edges" not in macs.folded(replace(config, edge=False), 512, 512)


def test_the_scale_of_the_images_is_kept_and_nonsense_refused(folded, tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(folded, path)
    assert weights.load(path).mpp is None
    weights.save(replace(folded, mpp=0.2525), path)
    assert weights.load(path).mpp == 0.2525
    assert replace(folded, mpp=0.2525).digest == folded.digest
    for nonsense in (0, -1, float("nan"), "wide", 1e9):
        with pytest.raises(InputError, match="micrometres per px"):
            weights.save(replace(folded, mpp=nonsense), path)
