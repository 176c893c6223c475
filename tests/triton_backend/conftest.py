"""Processes that interpret or compile kernels."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from triton_backend.interpreter import switch_on

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="session")
def interpreter():
    """A process that interprets: Triton is either compiled or interpreted for good."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=switch_on) as pool:
        yield pool


@pytest.fixture(scope="session")
def compilers():
    """Processes that compile."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def reproducible():
    """References are computed on one thread, as small as they are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
