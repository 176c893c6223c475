"""The outputs of the released network itself, where DSSNET_FAST_GOLDEN names their folder.

The reconstruction is stored in float16, hence its own tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dssnet_fast import FastDSSNet, backends, parity
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import load_released
from oracle import Oracle

RECONSTRUCTION_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def golden(golden_folder):
    """State dict, and a list of (image float64 [3, H, W], expected outputs)."""
    name = golden_folder / "released_10blocks_3classes"
    state = torch.load(f"{name}.pth", map_location="cpu", weights_only=True)
    cases = []
    with np.load(f"{name}.npz") as arrays:
        for number in range(sum(key.startswith("image") for key in arrays)):
            image = (arrays[f"image{number}"].astype(np.float64) - 128) / 128
            expected = [arrays[f"{part}{number}"] for part in ("logits", "recon", "boundary")]
            cases.append((image.transpose(2, 0, 1), expected))
    assert cases
    return state, cases


def assert_equal(output, expected, tolerance: float) -> None:
    for value, wanted, allowed in zip(
        output, expected, (tolerance, RECONSTRUCTION_TOLERANCE, tolerance), strict=True
    ):
        value, wanted = np.asarray(value, np.float64), wanted.astype(np.float64)
        assert value.shape == wanted.shape
        assert np.linalg.norm(value - wanted) / np.linalg.norm(wanted) <= allowed


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)], ids=str
)
def test_network_matches_the_release(golden, dtype, tolerance):
    state, cases = golden
    network = DSSNet(DSSNetConfig(classes=3))
    load_released(network, state)
    network.to(dtype).eval()
    for image, expected in cases:
        with torch.no_grad():
            output = network(torch.from_numpy(image).to(dtype)[None])
        assert_equal([part[0] for part in output], expected, tolerance)


def test_oracle_matches_the_release(golden):
    state, cases = golden
    oracle = Oracle(state)
    # The smallest is enough: it reaches every layer.
    image, expected = min(cases, key=lambda case: case[0].size)
    assert_equal(oracle(image), expected, 1e-6)


def skip_unless_able(backend: str, precision: str) -> None:
    why = backends.module(backend).why_not(torch.device("cpu"), precision, DSSNetConfig(classes=3))
    if why is not None:
        pytest.skip(f"{backend}: {why}")


@pytest.mark.parametrize(
    "backend", [n for n in backends.names() if "fp32" in backends.module(n).PRECISIONS]
)
def test_fast_network_matches_the_release(golden, backend):
    state, cases = golden
    skip_unless_able(backend, "fp32")
    net = FastDSSNet.from_checkpoint(state, device="cpu", backend=backend, precision="fp32")
    for image, (logits, _, edges) in cases:
        x = torch.from_numpy(image)[None].float()
        answer = net(x)[0].numpy()
        assert parity.relative_error(answer, logits.astype(np.float64)) <= 2e-5
        assert (answer.argmax(0) == logits.argmax(0)).mean() >= 0.9999
        answer = net.edges(*net.extract(net.downsample(x))).numpy()
        assert answer.shape == edges.shape
        assert parity.relative_error(answer, edges.astype(np.float64)) <= 2e-5


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        (name, precision)
        for name in backends.names()
        for precision in ("bf16", "fp16")
        if precision in backends.module(name).PRECISIONS
    ],
)
def test_low_precision_is_as_close_to_the_release_as_the_reference_in_it(
    golden, backend, precision
):
    state, cases = golden
    skip_unless_able(backend, precision)
    net = FastDSSNet.from_checkpoint(state, device="cpu", backend=backend, precision=precision)
    network = DSSNet(DSSNetConfig(classes=3))
    load_released(network, state)
    network.to(backends.PRECISIONS[precision]).eval()
    for image, (logits, _, edges) in cases:
        x = torch.from_numpy(image)[None].float()
        with torch.no_grad():
            theirs = network(x.to(backends.PRECISIONS[precision]))
        ours = net(x)[0], net.edges(*net.extract(net.downsample(x)))
        for mine, other, exact in zip(
            ours, (theirs.segmentation[0], theirs.edge[0]), (logits, edges), strict=True
        ):
            exact = exact.astype(np.float64)
            limit = parity.relative_error(other.float().numpy(), exact)
            assert parity.relative_error(mine.numpy(), exact) <= limit
