"""The whole network: its PTX on the executor, and as a user runs it in the interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dssnet_fast import FastDSSNet
from dssnet_fast.backends import native
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.weights import unfold
from laboratory import Laboratory, Reference, last, relative_error
from networks import example
from triton_backend.cases import Case
from triton_backend.executed import Executed


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.large)])
def test_as_close_to_cuda_as_torch_is_to_the_truth(precision):
    # Two implementations that share no line of device code.
    if native.problem() is not None:
        pytest.skip(native.problem())
    case = Case(DSSNetConfig(classes=3, blocks=3), (1, 64, 96), precision)
    network, image = case.specimen
    reference = Reference(network, case.dtype, image)
    with torch.no_grad():
        exact = last(reference.exact.logits(reference.image))
        rounded = last(reference.rounded.logits(reference.image.to(case.dtype)))
    ours = Executed(case, racecheck=False).infer(torch.from_numpy(image), "logits")
    theirs = Laboratory(native.module(), network, precision).infer(image, "logits")
    allowed = relative_error(rounded, exact)
    assert relative_error(ours, exact) <= allowed
    assert relative_error(ours, theirs.double()) <= allowed


def test_packaged_model_on_real_pixels():
    folded = FastDSSNet.pretrained(device="cpu", precision="fp32", backend="torch").folded_weights()
    image = example(64, 96)
    with torch.no_grad():
        x = (torch.from_numpy(image).double().permute(0, 3, 1, 2) - 128) / 128
        exact = last(unfold(folded).logits(x)).argmax(3)
    case = Case(folded.config, image.shape[:3], "fp16", folded)
    labels = Executed(case, racecheck=False).infer(torch.from_numpy(image), "labels")
    assert (labels == exact).double().mean().item() >= 0.999


USER = """
import torch
from dssnet_fast import FastDSSNet
from dssnet_fast.tiling import Box
from networks import noise, random_network

network = random_network(classes=2, blocks=1)
image = noise(21, 35, 3)
net = FastDSSNet.from_reference(network, device="cpu", backend="triton")
assert net.backend_name == "triton" and net.precision == "fp32"
auto = FastDSSNet.from_reference(network, device="cpu")
assert auto.backend_name in ("cpu", "torch"), auto
assert (net.predict(image) == auto.predict(image)).all()
core = Box(5, 9, 18, 30)
(labels, probability), (wanted, close) = net.decide(image, core), auto.decide(image, core)
assert (labels == wanted).all() and abs(probability - close).max() < 1e-5
(*_, edges), (*_, near) = (one.decide(image, core, edges=True) for one in (net, auto))
assert edges.shape == (13, 21) and abs(edges - near).max() < 1e-5
assert abs(net.predict(image, output="edges") - auto.predict(image, output="edges")).max() < 1e-5
x = torch.rand(2, 3, 9, 17) - 0.5
assert torch.allclose(net(x), auto(x), atol=1e-5)
assert torch.allclose(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))
"""


def test_a_user_runs_it_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = subprocess.run([sys.executable, "-c", USER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
