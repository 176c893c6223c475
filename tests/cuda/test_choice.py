"""The CUDA backend's own word on whether it can run, and what `info` tells of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dssnet_fast import DSSNetConfig, backends
from dssnet_fast.backends import cuda
from dssnet_fast.backends.cuda import cache, kernels, native, report

GPU = torch.device("cuda", 0)
PAPER = DSSNetConfig()


class PlanError(ValueError):
    pass


@pytest.fixture
def machine(monkeypatch):
    """A machine on which nothing is in the way, as the extension sees it."""

    def plan(network, stage, batch, height, width, precision, input, output, device):
        assert device is extension.properties
        if network["features"] > 100:
            raise PlanError("a block of this network needs 300000 bytes of shared memory")

    extension = SimpleNamespace(
        properties=SimpleNamespace(capability=90),
        driver_problem=lambda: None,
        device_properties=lambda index: extension.properties,
        Network=dict,
        PlanError=PlanError,
        plan=plan,
    )
    monkeypatch.setattr(native, "problem", lambda: None)
    monkeypatch.setattr(native, "module", lambda: extension)
    monkeypatch.setattr(kernels, "problem", lambda capability: None)
    return extension


def test_nothing_in_the_way(machine):
    assert [cuda.why_not(GPU, precision, PAPER) for precision in cuda.PRECISIONS] == [None, None]
    assert cuda.best_precision(GPU) == "fp16"
    instead = "computes in fp16 and bf16; for int8 use backend cpu"
    assert cuda.why_not(GPU, "int8", PAPER) == instead


def test_the_first_thing_in_the_way_is_named(machine, monkeypatch):
    # From the last that is looked at to the first: each is named while all after it are in the way.
    ways = [
        (lambda: None, "computes in fp16 and bf16; for fp32 use backend triton or torch"),
        (lambda: None, "computes W-NECK blocks; this network has basic blocks"),
        (
            lambda: monkeypatch.setattr(kernels, "problem", lambda c: f"no kernels for {c}"),
            "for 90",
        ),
        (lambda: setattr(machine.properties, "capability", 75), r"8\.0 \(Ampere\).*has 7\.5"),
        (lambda: setattr(machine, "driver_problem", lambda: "no libcuda"), "no libcuda"),
        (lambda: monkeypatch.setattr(native, "problem", lambda: "not built"), "not built"),
        (lambda: monkeypatch.setattr(torch.version, "hip", "6.2"), r"built for AMD's \(ROCm\)"),
    ]
    for number, (put_in_the_way, reason) in enumerate(ways):
        put_in_the_way()
        config = DSSNetConfig(block="basic") if number >= 1 else PAPER
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(cuda.why_not(GPU, "fp32", config))
    assert cuda.why_not(torch.device("cpu"), "fp32", PAPER) == "needs an NVIDIA GPU; cpu is none"


def test_a_network_that_is_too_large_for_the_device_is_torchs(machine):
    large = DSSNetConfig(features=128)
    assert cuda.why_not(GPU, "fp16", large) == (
        "a block of this network needs 300000 bytes of shared memory: use backend triton or torch"
    )


def test_the_planner_is_asked_as_it_wants_to_be(native, machine, monkeypatch):
    """The same with the real planner, on a device with very little memory."""
    properties = native.DeviceProperties(
        capability=86, multiprocessors=84, shared_bytes_block=101376, shared_bytes_sm=102400
    )
    for name in ("Network", "PlanError", "plan"):
        setattr(machine, name, getattr(native, name))
    machine.properties = properties
    assert cuda.why_not(GPU, "bf16", PAPER) is None
    machine.properties = native.DeviceProperties(
        capability=86, multiprocessors=84, shared_bytes_block=9999, shared_bytes_sm=9999
    )
    assert "bytes of shared memory" in cuda.why_not(GPU, "bf16", PAPER)


def test_it_comes_first_where_it_runs(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    choice = backends.choose("auto", "cuda", "auto", PAPER)
    assert (choice.name, choice.device, choice.precision) == ("cuda", GPU, "fp16")
    exact = backends.choose("auto", "cuda", "fp32", PAPER)
    assert exact.name == "triton"
    assert exact.reason == "cuda: computes in fp16 and bf16; for fp32 use backend triton or torch"
    with pytest.raises(
        backends.BackendUnavailable, match=r"available on cuda:0: cuda \(fp16, bf16\)"
    ):
        backends.choose("cuda", "cuda", "fp32", PAPER)


# --- info ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSSNET_FAST_CACHE", str(tmp_path))
    return tmp_path


def test_info_tells_what_is_there(machine, folder, monkeypatch):
    build = SimpleNamespace(
        extension=folder / "_native.so",
        images=folder / "images",
        images_problem=lambda: None,
        manifest={
            "extension": {"compiler": "g++ 12"},
            "architectures": [80, 90],
            "compiler": "nvcc 13.0.88",
            "warnings": {},
        },
    )
    monkeypatch.setattr(native, "build", lambda: build)
    monkeypatch.setattr(report, "library", lambda: None)
    monkeypatch.setattr(kernels, "library", lambda: None)
    cache.cached("extract.sm_90.0123", lambda: b"k" * 968)
    (folder / "damaged").write_bytes(b"damaged")
    found = report.collect({"cuda:0": 90, "cuda:1": 75})
    assert list(report.lines(found)) == [
        f"extension  {folder / '_native.so'}",
        "images     sm_80 sm_90 and PTX by nvcc 13.0.88",
        "NVRTC      not found",
        "driver     ready",
        f"cache      {folder}: 1 kernels, 1 kB",
        "cuda:0     sm_90 by nvcc 13.0.88",
        "cuda:1     no kernels",
    ]
    assert found["cache"]["bytes"] == 1000
    build.manifest["warnings"] = {"extract.ptx": "spilled"}
    warned = list(report.lines(report.collect({})))[1]
    assert warned.endswith("by nvcc 13.0.88, compiled with warnings: extract.ptx")


def test_info_tells_what_is_not(folder, monkeypatch):
    monkeypatch.setattr(native, "build", lambda: None)
    monkeypatch.setattr(native, "problem", lambda: "nothing is compiled here")
    monkeypatch.setattr(
        report, "library", lambda: type("N", (), {"path": "/n.so", "__str__": lambda s: "12.8"})()
    )
    monkeypatch.setenv("DSSNET_FAST_CACHE", str(folder / "not" / "there"))
    found = report.collect({})
    assert list(report.lines(found)) == [
        "extension  nothing is compiled here",
        "images     not built",
        "NVRTC      12.8, /n.so",
        "driver     not looked for without the extension",
        f"cache      {folder / 'not' / 'there'}: 0 kernels, 0 kB",
    ]
    assert found["nvrtc"] == {"library": "/n.so", "version": "12.8", "problem": None}
