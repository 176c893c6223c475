"""The converter as a command: what it writes, says and refuses."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dssnet_fast import calibrate, cli, convert, parity, weights
from dssnet_fast.backends import BackendUnavailable
from dssnet_fast.model import FastDSSNet
from dssnet_fast.python_ref.released import released_state
from networks import noise, random_network

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments) -> int:
    return cli.main("convert", convert.make_parser, convert.body, [str(a) for a in arguments])


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(released_state(random_network()), tmp_path / "ckpt.pt")
    return tmp_path / "ckpt.pt"


def test_converts_and_reports(checkpoint, capsys):
    assert run(checkpoint) == 0
    out = capsys.readouterr().out
    network = random_network().double()
    net = FastDSSNet.load(checkpoint.with_suffix(".safetensors"))
    images = parity.random_images(network.config)
    assert parity.compare(net, network, images).error <= 2e-5
    parameters = sum(p.numel() for p in network.parameters())
    stored = sum(value.numel() for value in net.folded_weights().tensors.values())
    assert f"parameters  {parameters:,} in training -> {stored:,}" in out
    assert re.search(r"MACs +\d+\.\d+ -> \d+\.\d+ G for 512x512", out)
    error = float(re.search(r"worst relative error (\S+),", out)[1])
    assert 0 < error <= 2e-5
    assert "3 images" in out
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["ckpt.pt", "ckpt.safetensors"]


def test_verifies_on_given_images(checkpoint, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(noise(40, 30, 3, seed=i)).save(tmp_path / "images" / f"{i}.png")
    assert run(checkpoint, "--verify", tmp_path / "images") == 0
    assert "5 images" in capsys.readouterr().out


def test_a_wrong_conversion_is_never_kept(checkpoint, monkeypatch, capsys):
    fold = weights.fold_checkpoint

    def wrong(source):
        folded = fold(source)
        folded.tensors["downsample.1.weight"][0, 0, 0, 0] += 0.1
        return folded

    monkeypatch.setattr(weights, "fold_checkpoint", wrong)
    assert run(checkpoint) == 1
    assert "differ from the reference by" in capsys.readouterr().err
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ckpt.pt"]


def test_class_names_and_fp16(checkpoint, tmp_path):
    out = tmp_path / "half.safetensors"
    assert run(checkpoint, "-o", out, "--dtype", "fp16", "--class-names", "glass, cell") == 0
    assert FastDSSNet.load(out).class_names == ("glass", "cell")
    again = tmp_path / "again.safetensors"
    assert run(out, "-o", again) == 0
    assert FastDSSNet.load(again).digest == FastDSSNet.load(out).digest


def test_the_edge_head_is_kept_or_left_out(checkpoint, tmp_path, capsys):
    whole, plain = tmp_path / "whole.safetensors", tmp_path / "plain.safetensors"
    assert run(checkpoint, "-o", whole) == 0
    out = capsys.readouterr().out
    assert re.search(r"G for 512x512, edges \d+\.\d+ G", out)
    assert "with edge head" in out
    assert float(re.search(r"edges +worst relative error (\S+)", out)[1]) <= 2e-5
    assert run(checkpoint, "-o", plain, "--no-edges") == 0
    out = capsys.readouterr().out
    assert "no edge head" in out
    assert "edges  " not in out
    assert plain.stat().st_size < whole.stat().st_size
    with_edges, without = FastDSSNet.load(whole), FastDSSNet.load(plain)
    assert with_edges.has_edges
    assert not without.has_edges
    image = noise(24, 32, 3)
    assert (with_edges.predict(image, "logits") == without.predict(image, "logits")).all()
    # From a weight file, too; and what is not there does not come back.
    again, back = tmp_path / "again.safetensors", tmp_path / "back.safetensors"
    assert run(whole, "-o", again, "--no-edges") == 0
    assert FastDSSNet.load(again).digest == without.digest
    assert run(plain, "-o", back) == 0
    assert not FastDSSNet.load(back).has_edges
    assert run(whole, "-o", back, "--overwrite") == 0
    assert FastDSSNet.load(back).digest == with_edges.digest


def test_wrong_edges_are_never_kept(checkpoint, monkeypatch, capsys):
    fold = weights.fold_checkpoint

    def wrong(source):
        folded = fold(source)
        folded.tensors["edge.inner.bias"].add_(0.1)
        return folded

    monkeypatch.setattr(weights, "fold_checkpoint", wrong)
    assert run(checkpoint) == 1
    assert re.search(r"differ from the reference by \S+, edges by", capsys.readouterr().err)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ckpt.pt"]


def test_nothing_is_overwritten_unasked(checkpoint, capsys):
    out = checkpoint.with_suffix(".safetensors")
    out.write_text("mine")
    assert run(checkpoint) == 1
    assert "exists; choose another --out or add --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(checkpoint, "--overwrite") == 0
    assert run(out, "-o", out, "--overwrite") == 1
    assert "is the checkpoint itself" in capsys.readouterr().err
    FastDSSNet.load(out)


def test_errors_are_one_line_and_leave_nothing(checkpoint, tmp_path, capsys):
    (tmp_path / "empty.pt").write_bytes(b"")
    state = released_state(random_network())
    state["head.0.bias"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    before = sorted(os.listdir(tmp_path))
    cases = [
        (("missing.pt",), "missing.pt: no such file"),
        ((tmp_path / "empty.pt",), "empty.pt: is empty"),
        ((tmp_path / "nan.pt",), "NaN or infinite values in head.0.bias"),
        ((checkpoint, "-o", tmp_path / "no" / "where.safetensors"), "no such folder"),
        ((checkpoint, "-o", tmp_path), "is a folder"),
        ((checkpoint, "--class-names", "a"), "--class-names must be 2 different names"),
        ((checkpoint, "--verify", tmp_path / "nothing"), "nothing"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert error.startswith("dssnet_fast.convert: error: ")
        assert sorted(os.listdir(tmp_path)) == before
    assert run(tmp_path / "nan.pt", "--allow-nonfinite") == 0
    assert "not checked" in capsys.readouterr().out


def test_full_disk_is_one_line_and_leaves_nothing(checkpoint, monkeypatch, capsys):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    assert run(checkpoint) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ckpt.pt"]


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(noise(40, 30, 3, seed=i)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def test_int8_where_it_cannot_run_stores_steps_and_says_so(
    checkpoint, pictures, monkeypatch, capsys
):
    def nowhere(folded):
        raise BackendUnavailable("no such thing here")

    monkeypatch.setattr(calibrate, "int8_network", nowhere)
    assert run(checkpoint, "--int8", "--calibrate", pictures) == 0
    assert (
        "int8        steps from 3 image(s); not measured, and no layer kept exact: no such thing"
    ) in capsys.readouterr().out
    back = weights.load(checkpoint.with_suffix(".safetensors"))
    images = [noise(40, 30, 3, seed=i) for i in range(3)]
    assert back.quantisation == calibrate.calibrate(back, images)


def test_int8_is_measured_and_keeps_layers_exact(checkpoint, pictures, monkeypatch, capsys):
    """Errors as if only one layer spoiled int8."""

    def network(folded):
        truth = calibrate.float32_network(folded)
        good = "extract.blocks.1" in folded.quantisation.exact
        return lambda image: truth(image) * (1.01 if good else 1.1)

    monkeypatch.setattr(calibrate, "int8_network", network)
    out = checkpoint.with_suffix(".safetensors")
    assert run(checkpoint, "--dtype", "fp16", "--int8", "--calibrate", pictures) == 0
    assert (
        "exact: extract.blocks.1; relative error 1.0e-02, labels equal 100.0000%, against fp32"
    ) in capsys.readouterr().out
    back = weights.load(out)
    assert back.quantisation.exact == ("extract.blocks.1",)
    assert back.quantisation.images == 3


def test_int8_is_added_to_a_weight_file_and_stays(checkpoint, pictures, tmp_path):
    plain = checkpoint.with_suffix(".safetensors")
    assert run(checkpoint) == 0
    assert weights.load(plain).quantisation is None
    first, again, other = (tmp_path / f"{n}.safetensors" for n in ("first", "again", "other"))
    assert run(plain, "-o", first, "--int8", "--calibrate", pictures) == 0
    given = weights.load(first).quantisation
    assert given.images == 3
    assert run(first, "-o", again, "--class-names", "glass, cell") == 0
    assert weights.load(again).quantisation == given
    assert run(first, "-o", other, "--int8", "--calibrate", pictures / "1.png") == 0
    assert weights.load(other).quantisation.images == 1
    for name in given.steps:
        assert weights.load(other).quantisation.steps[name] > 0
    assert weights.load(other).quantisation.steps != given.steps


def test_int8_errors_are_one_line_and_leave_nothing(checkpoint, pictures, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (pictures / "2.png").write_bytes(b"no image")
    before = sorted(os.listdir(tmp_path))
    cases = [
        (("--int8",), "--int8 and --calibrate IMAGES need each other"),
        (("--calibrate", pictures), "--int8 and --calibrate IMAGES need each other"),
        (("--int8", "--calibrate", tmp_path / "nothing"), "the folder has no image"),
        (("--int8", "--calibrate", pictures), "2.png: "),
        (("--int8", "--calibrate", tmp_path / "no"), "no such file or folder"),
    ]
    for arguments, message in cases:
        assert run(checkpoint, *arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("upsampling", ["nearest", "pixel_shuffle"])
def test_onnx_equals_the_reference_in_onnxruntime(tmp_path, upsampling, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = random_network(upsampling=upsampling, classes=3).double()
    torch.save(released_state(network), tmp_path / "ckpt.pt")
    assert run(tmp_path / "ckpt.pt", "--onnx") == 0
    assert "ONNX opset 18" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "ckpt.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name) == ("image", "logits")
    assert session.get_modelmeta().custom_metadata_map["normalisation"] == "(value - 128) / 128"
    for batch, height, width in ((1, 8, 8), (2, 24, 56)):
        images = noise(batch, height, width, 3)
        x = (images.transpose(0, 3, 1, 2).astype(np.float32) - 128) / 128
        (logits,) = session.run(None, {"image": x})
        for image, answer in zip(images, logits, strict=True):
            expected = parity.reference_logits(network, image)
            assert parity.relative_error(answer.transpose(1, 2, 0), expected) <= 2e-5
