"""Every kernel compiled ahead of time for every target: what it becomes, without a GPU."""

from __future__ import annotations

import pytest

from triton_backend.compiling import NETWORKS, PRECISIONS, TARGETS, compile_all

# The rest are variations of these.
EVERY_DAY = [
    *(("released", "fp16", target) for target in TARGETS),
    ("learned", "fp16", 90),
]
ALL = [
    (network, precision, target)
    for network in NETWORKS
    for precision in PRECISIONS
    for target in TARGETS
]
# Bytes that a program can have: CUDA C++ programming guide, table of compute capabilities; AMD's
# CDNA 3 ISA document.
KIB = 1024
MOST_SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx942": 64}


def name_of(case) -> str:
    return "-".join(map(str, case))


@pytest.fixture(
    params=[
        pytest.param(case, marks=() if case in EVERY_DAY else pytest.mark.large, id=name_of(case))
        for case in ALL
    ],
    scope="module",
)
def kernels(request, compilers):
    """A network, a target and the kernels for it."""
    network, precision, target = request.param
    return network, target, compile_all(compilers, network, precision, target)


def test_nothing_spills(kernels):
    network, target, found = kernels
    if target in (100, 120) or network == "widest":
        pytest.skip(f"up to 152 bytes may spill for network {network} on sm_{target}")
    spilled = {name: kernel.stack for name, kernel in found.items() if kernel.stack}
    assert not spilled


def test_default_configs_fit(kernels):
    _, target, found = kernels
    largest = max(found, key=lambda name: found[name].shared)
    assert found[largest].shared <= MOST_SHARED[target] * KIB, largest


def test_tensor_cores_do_the_work(kernels):
    _, target, found = kernels
    for name, kernel in found.items():
        if target == 90 and kernel.rows >= 64:
            assert kernel.instructions["wgmma"] > 0, f"{name} has no wgmma"
        assert sum(kernel.instructions.values()) > 0, f"{name} multiplies without tensor cores"


@pytest.mark.large
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_configs_compile(compilers, precision, target):
    found = compile_all(compilers, "released", precision, target, every_config=True)
    assert len(found) > len(compile_all(compilers, "released", precision, target))
    assert all(sum(kernel.instructions.values()) > 0 for kernel in found.values())
